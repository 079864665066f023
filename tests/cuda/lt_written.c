/* lt_written.c - stands before cublasLtMatmul under compute-sanitizer's initcheck (tests/cuda/sanitize.sh, LD_PRELOAD).
 *
 * cuBLASLt writes by bulk stores, which that tool does not follow: all that comes from a product would count as never
 * written. Here a product's output is cleared first, so that the tool knows it. What this hides, a product that leaves
 * part of its output, is test_products' matter: its buffers begin as NaN.
 */
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

/* cuMemsetD2D8Async(to, pitch, value, width, height, stream): of the driver, which is not linked here. */
typedef int clear_fn(unsigned long long, size_t, unsigned char, size_t, size_t, cudaStream_t);

static clear_fn *driver_clear(void)
{
    static clear_fn *found;
    void *driver = found ? NULL : dlopen("libcuda.so.1", RTLD_NOW);
    if (driver) *(void **)&found = dlsym(driver, "cuMemsetD2D8Async");
    if (found) return found;
    fprintf(stderr, "lt_written: no driver\n");
    exit(2);
}

static size_t type_bytes(int32_t type)
{
    switch (type) {
    case CUDA_R_32F:
        return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
        return 2;
    case CUDA_R_8F_E4M3:
        return 1;
    default:
        fprintf(stderr, "lt_written: a product of type %d\n", type);
        exit(2);
    }
}

static void attribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t what, void *to,
                      size_t bytes)
{
    if (cublasLtMatrixLayoutGetAttribute(layout, what, to, bytes, NULL) == CUBLAS_STATUS_SUCCESS)
        return;
    fprintf(stderr, "lt_written: a layout without attribute %d\n", (int)what);
    exit(2);
}

static void clear(void *out, cublasLtMatrixLayout_t layout, cudaStream_t stream)
{
    uint64_t rows, cols;
    int64_t ld;
    uint32_t type;
    attribute(layout, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, sizeof rows);
    attribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof cols);
    attribute(layout, CUBLASLT_MATRIX_LAYOUT_LD, &ld, sizeof ld);
    attribute(layout, CUBLASLT_MATRIX_LAYOUT_TYPE, &type, sizeof type);
    size_t bytes = type_bytes((int32_t)type);
    if (driver_clear()((uintptr_t)out, (size_t)ld * bytes, 0, rows * bytes, cols, stream) == 0)
        return;
    fprintf(stderr, "lt_written: a product's output could not be cleared\n");
    exit(2);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t a_layout, const void *B,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c_layout, void *D,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    static __typeof__(cublasLtMatmul) *real;
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "cublasLtMatmul");
    if (C != D || *(const float *)beta == 0) clear(D, d_layout, stream); /* else it adds to it */
    return real(handle, desc, alpha, A, a_layout, B, b_layout, beta, C, c_layout, D, d_layout, algo,
                workspace, workspace_bytes, stream);
}

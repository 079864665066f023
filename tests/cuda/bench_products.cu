/* bench_products.cu - GB/s of the memory-bound products and conversions, TFLOP/s of cuda_gemm.
 *
 * Arguments: any of matvec, convert, gemm. Calls are timed within a CUDA graph, over matrices that take turns so that
 * none is found in the L2.
 */
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

extern "C" {
#include "../../src/quant.h"
}
#include "../../cuda/kernels.h"

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(e));
    exit(2);
}

struct Buffer {
    uint8_t *p;
    size_t bytes;

    explicit Buffer(size_t n) : bytes(n) { must(cudaMalloc(&p, n), "cudaMalloc"); }
    Buffer(const Buffer &) = delete;
    ~Buffer() { cudaFree(p); }
};

static const int types[] = {DT_BF16, DT_F16,  DT_F32,  DT_Q4_0, DT_Q4_1, DT_Q5_0,
                            DT_Q5_1, DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};

static struct GemmPlan *plan;

static uint8_t *pool; /* random bytes */
static const size_t pool_bytes = (size_t)2 << 30;
static cudaStream_t stream;

__global__ void fill_kernel(uint32_t *p, size_t n, uint32_t mask, uint32_t set)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        p[i] = ((uint32_t)(z >> 32) & mask) | set;
    }
}

/* bf16 of magnitude 2^-8 to 1 and either sign; as e4m3 bytes they are finite too. */
static void fill(void *p, size_t bytes)
{
    fill_kernel<<<2048, 256>>>((uint32_t *)p, bytes / 4, 0xbbfebbfe, 0x38003800);
    must(cudaDeviceSynchronize(), "fill");
}

/* Median seconds of one call of f(i), i = 0 ... n - 1 in turn, from a graph of all of them. */
template <class F> static double seconds(int n, F f)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t a, b;
    f(0); /* shapes are looked up outside the capture */
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < n; i++) f(i);
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "graph");
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    std::vector<float> ms;
    for (int run = 0; run < 13; run++) {
        cudaEventRecord(a, stream);
        cudaGraphLaunch(exec, stream);
        cudaEventRecord(b, stream);
        must(cudaStreamSynchronize(stream), "timing");
        float t;
        cudaEventElapsedTime(&t, a, b);
        if (run > 2) ms.push_back(t);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2] * 1e-3 / n;
}

struct MatvecShape {
    int rows, cols;
};

static void time_matvec(const int *some_types, int n_types, const MatvecShape *shapes, int n_shapes,
                        int n_rows)
{
    Buffer x((size_t)4 * 28672 * 2), y((size_t)4 * 128256 * 4);
    fill(x.p, x.bytes);
    printf("%-6s n_rows %d, GB/s (us):", "matvec", n_rows);
    for (int s = 0; s < n_shapes; s++) printf(" %dx%d", shapes[s].rows, shapes[s].cols);
    printf("\n");
    for (int t = 0; t < n_types; t++) {
        printf("%-6s", dtype_name((uint32_t)some_types[t]));
        for (int s = 0; s < n_shapes; s++) {
            int rows = shapes[s].rows, cols = shapes[s].cols;
            size_t bytes = dtype_row_bytes((enum DType)some_types[t], cols) * (size_t)rows,
                   stride = (bytes + 255) / 256 * 256;
            if (bytes == 0) continue;
            int copies = (int)std::min<size_t>(pool_bytes / stride, (400u << 20) / stride + 2);
            double sec = seconds(copies, [&](int i) {
                struct CudaMatvec m = {
                    some_types[t],     rows, cols, n_rows, pool + (size_t)i * stride,
                    (const bf16 *)x.p, NULL, y.p,  true,   false};
                must(cuda_matvec(&m, stream), "cuda_matvec");
            });
            printf(" %5.0f (%.1f)", bytes / sec * 1e-9, sec * 1e6);
        }
        printf("\n");
    }
}

static void time_silu(int type, int rows, int cols)
{
    Buffer x((size_t)cols * 2), y((size_t)rows * 2);
    fill(x.p, x.bytes);
    size_t bytes = dtype_row_bytes((enum DType)type, cols) * (size_t)rows;
    int copies = (int)(pool_bytes / 2 / bytes);
    double sec = seconds(copies, [&](int i) {
        struct CudaMatvec m = {type, rows, cols,  1,    pool + 2 * i * bytes, (const bf16 *)x.p,
                               NULL, y.p,  false, false};
        must(cuda_matvec_silu(&m, pool + (2 * i + 1) * bytes, stream), "cuda_matvec_silu");
    });
    printf("silu %-6s 2 x %d x %d: %.0f GB/s (%.1f us)\n", dtype_name((uint32_t)type), rows, cols,
           2 * bytes / sec * 1e-9, sec * 1e6);
}

static void time_conversions(void)
{
    Buffer out((size_t)1 << 30), scale(1 << 20);
    for (int type : types) {
        int weights, bytes;
        dtype_block((uint32_t)type, &weights, &bytes);
        int64_t n = 28672 * 4096;
        size_t in = (size_t)(n / weights * bytes);
        double sec = seconds(3, [&](int i) {
            must(cuda_dequantize(type, pool + (size_t)i * in / 256 * 256, n,
                                 (bf16 *)(out.p + (size_t)i * n * 2), stream),
                 "dequantize");
        });
        printf("dequantize %-5s %.0f GB/s%s", dtype_name((uint32_t)type),
               (in + 2.0 * n) / sec * 1e-9,
               type == DT_Q6_K || type == DT_Q4_1 || type == DT_Q5_1 ? "\n" : ", ");
    }
    for (int cols : {576, 896, 4096, 14336, 28672}) {
        int n_rows = 16384;
        size_t n = (size_t)n_rows * cols;
        int copies = (int)std::min<size_t>(16, pool_bytes / (2 * n));
        double sec = seconds(copies, [&](int i) {
            must(cuda_quantize_fp8((const bf16 *)pool + i * n, n_rows, cols, out.p + i * n,
                                   (float *)scale.p, stream),
                 "quantize_fp8");
        });
        printf("quantize_fp8 %d x %d: %.0f GB/s (%.1f us)\n", n_rows, cols,
               3.0 * n_rows * cols / sec * 1e-9, sec * 1e6);
    }
}

static void time_gemm(int n_rows, int rows, int cols)
{
    size_t n_act = (size_t)n_rows * cols, n_w = (size_t)rows * cols, n_out = (size_t)n_rows * rows;
    Buffer act(n_act * 2), w(n_w * 2), out(n_out * 4), act_scale((size_t)n_rows * 4),
        w_scale((size_t)rows * 4);
    fill(act.p, act.bytes);
    fill(w.p, w.bytes);
    fill(act_scale.p, act_scale.bytes);
    fill(w_scale.p, w_scale.bytes);
    printf("gemm %d x (%d, %d):", n_rows, rows, cols);
    for (int kind = 0; kind < 4; kind++) {
        struct CudaGemm g = {n_rows,
                             rows,
                             cols,
                             act.p,
                             w.p,
                             kind >= 2,
                             (const float *)act_scale.p,
                             (const float *)w_scale.p,
                             NULL,
                             out.p,
                             (kind & 1) != 0,
                             (kind & 1) != 0};
        static const char *names[] = {"bf16", "bf16 add", "fp8", "fp8 add"};
        if (cuda_gemm(plan, &g, stream) != cudaSuccess) {
            printf(" %s unsupported", names[kind]);
            continue;
        }
        double sec = seconds(1, [&](int) { must(cuda_gemm(plan, &g, stream), "cuda_gemm"); });
        printf(" %s %.0f", names[kind], 2.0 * n_rows * rows * cols / sec * 1e-12);
    }
    printf(" TFLOP/s\n");
}

static bool wanted(int argc, char **argv, const char *what)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], what) == 0) return true;
    return argc == 1;
}

int main(int argc, char **argv)
{
    int n_devices = 0;
    void *workspace;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("SKIP: no GPU\n");
        return 0;
    }
    must(cudaMalloc(&workspace, GEMM_WORKSPACE), "workspace");
    plan = gemm_open(workspace);
    if (!plan) return 2;
    const MatvecShape shapes[] = {{4096, 4096}, {28672, 4096}, {4096, 14336}, {128256, 4096}};
    must(cudaStreamCreate(&stream), "stream");
    must(cudaMalloc(&pool, pool_bytes), "pool");
    fill(pool, pool_bytes);
    if (wanted(argc, argv, "matvec")) {
        time_matvec(types, (int)(sizeof types / sizeof *types), shapes, 4, 1);
        const int some[] = {DT_BF16, DT_Q8_0, DT_Q4_1, DT_Q4_K, DT_Q6_K};
        const MatvecShape small[] = {
            {576, 576}, {1536, 576}, {896, 896}, {4864, 896}, {1024, 4096}};
        for (int n_rows = 2; n_rows <= 4; n_rows += 2) time_matvec(some, 5, shapes, 3, n_rows);
        time_matvec(some, 3, small, 5, 1);
        for (int type : some) time_silu(type, 14336, 4096);
    }
    if (wanted(argc, argv, "convert")) time_conversions();
    if (wanted(argc, argv, "gemm")) {
        for (int n : {8192, 16384}) {
            const MatvecShape big[] = {{4096, 4096},  {1024, 4096},  {6144, 4096},
                                       {28672, 4096}, {14336, 4096}, {4096, 14336}};
            for (MatvecShape s : big) time_gemm(n, s.rows, s.cols);
        }
        const MatvecShape small[] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536},
                                     {896, 896}, {128, 896}, {4864, 896}, {896, 4864}};
        for (MatvecShape s : small) time_gemm(65536, s.rows, s.cols);
    }
    return 0;
}

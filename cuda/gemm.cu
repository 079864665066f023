/* gemm.cu - products of many rows, by cuBLASLt.
 *
 * Row-major out = act W^T is column-major out^T = W act^T: A is W (transposed), B the activations, so m counts output
 * channels and n rows. The algorithm is the heuristic's first that runs, never one chosen by timing, and it may split
 * sums only through the workspace, so the same input gives the same bytes.
 * Row counts of questions are alike but seldom the same, and an algorithm's first run loads its code, for milliseconds: so
 * neighbouring counts share one.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum {
    PLAN_SHAPES = 256, /* shapes remembered; a ragged prompt brings new row counts all the time */
    CANDIDATES = 8,
    ALIGNMENT = 16,
    SHARED_ROWS = 1024,  /* up to here row counts share algorithms */
    BIAS_ROOM = 1 << 20, /* end of the workspace: a bias as bf16 */
    BIAS_THREADS = 256,
};

/* Whole words only, so that keys compare as bytes. n_rows as step_up() has it. */
struct ShapeKey {
    int n_rows, rows, cols;
    int fp8, bias, out_f32, add;
};

struct Shape {
    struct ShapeKey key;
    cublasLtMatmulAlgo_t algo;
};

struct GemmPlan {
    cublasLtHandle_t handle;
    uint8_t *workspace;
    int n_shapes, oldest;
    struct Shape shapes[PLAN_SHAPES];
};

struct GemmPlan *gemm_open(void *workspace)
{
    struct GemmPlan *p = (struct GemmPlan *)calloc(1, sizeof *p);
    if (!p) return NULL;
    p->workspace = (uint8_t *)workspace;
    if (cublasLtCreate(&p->handle) == CUBLAS_STATUS_SUCCESS) return p;
    free(p);
    return NULL;
}

void gemm_close(struct GemmPlan *p)
{
    if (!p) return;
    cublasLtDestroy(p->handle);
    free(p);
}

/* ==== Description of a product ==== */

struct Product {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t a, b, d;
};

static bool set_int(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t name, int32_t value)
{
    return cublasLtMatmulDescSetAttribute(op, name, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

static bool set_pointer(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t name,
                        const void *value)
{
    return cublasLtMatmulDescSetAttribute(op, name, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

/* cuBLASLt wants the bias in the type of the output, but in bf16 for e4m3 to f32. */
static bool bias_is_f32(const struct CudaGemm *g)
{
    return g->out_f32 && !g->fp8;
}

static bool set_bias(cublasLtMatmulDesc_t op, const struct CudaGemm *g, const void *bias)
{
    return set_int(op, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS) &&
           set_int(op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                   bias_is_f32(g) ? CUDA_R_32F : CUDA_R_16BF) &&
           set_pointer(op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
}

/* Fast accumulation is a quarter faster; its error is a tenth of what rounding to e4m3 costs, or less. With a bias not
 * all shapes have it. */
static bool set_fp8(cublasLtMatmulDesc_t op, const struct CudaGemm *g)
{
    int8_t fast = g->bias == NULL;
    return cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast,
                                          sizeof fast) == CUBLAS_STATUS_SUCCESS &&
           set_int(op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
                   CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F) &&
           set_int(op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
                   CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F) &&
           set_pointer(op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, g->w_scale) &&
           set_pointer(op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, g->act_scale);
}

static bool layout(cublasLtMatrixLayoutOpaque_t *m, cudaDataType_t type, int rows, int cols)
{
    return cublasLtMatrixLayoutInit(m, type, (uint64_t)rows, (uint64_t)cols, rows) ==
           CUBLAS_STATUS_SUCCESS;
}

static bool describe(struct Product *d, const struct CudaGemm *g, const void *bias)
{
    cudaDataType_t in = g->fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    if (cublasLtMatmulDescInit(&d->op, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS)
        return false;
    return set_int(&d->op, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T) &&
           (!bias || set_bias(&d->op, g, bias)) && (!g->fp8 || set_fp8(&d->op, g)) &&
           layout(&d->a, in, g->cols, g->rows) && layout(&d->b, in, g->cols, g->n_rows) &&
           layout(&d->d, g->out_f32 ? CUDA_R_32F : CUDA_R_16BF, g->rows, g->n_rows);
}

/* ==== Algorithms ==== */

static cublasStatus_t run_product(struct GemmPlan *p, struct Product *d, const struct CudaGemm *g,
                                  const cublasLtMatmulAlgo_t *algo, cudaStream_t s)
{
    float one = 1, beta = g->add ? 1.0f : 0.0f;
    return cublasLtMatmul(p->handle, &d->op, &one, g->w, &d->a, g->act, &d->b, &beta, g->out, &d->d,
                          g->out, &d->d, algo, p->workspace, GEMM_WORKSPACE - BIAS_ROOM, s);
}

static bool set_preference(cublasLtMatmulPreferenceOpaque_t *pref)
{
    const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    uint64_t room = GEMM_WORKSPACE - BIAS_ROOM;
    uint32_t alignment = ALIGNMENT, schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    bool ok =
        cublasLtMatmulPreferenceInit(pref) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room,
                                             sizeof room) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                             &schemes, sizeof schemes) == CUBLAS_STATUS_SUCCESS;
    for (int i = 0; i < 4; i++)
        ok = ok && cublasLtMatmulPreferenceSetAttribute(pref, aligned[i], &alignment,
                                                        sizeof alignment) == CUBLAS_STATUS_SUCCESS;
    return ok;
}

static int candidates(struct GemmPlan *p, struct Product *d, cublasLtMatmulHeuristicResult_t *found)
{
    cublasLtMatmulPreferenceOpaque_t pref;
    int n = 0;
    if (!set_preference(&pref)) return 0;
    cublasStatus_t st = cublasLtMatmulAlgoGetHeuristic(p->handle, &d->op, &d->a, &d->b, &d->d,
                                                       &d->d, &pref, CANDIDATES, found, &n);
    return st == CUBLAS_STATUS_SUCCESS ? n : 0;
}

/* Few rows go by steps of an eighth to a quarter of their number; many are counted, since there tiles that do not fill cost more
 * than code to load. */
static int step_up(int n_rows)
{
    int step = 8;
    if (n_rows > SHARED_ROWS) return n_rows;
    while (step * 8 < n_rows) step *= 2;
    return (n_rows + step - 1) / step * step;
}

static struct ShapeKey key_of(const struct CudaGemm *g)
{
    return {step_up(g->n_rows), g->rows, g->cols, g->fp8, g->bias != NULL, g->out_f32, g->add};
}

static struct Shape *find_shape(struct GemmPlan *p, const struct ShapeKey *key)
{
    for (int i = 0; i < p->n_shapes; i++)
        if (memcmp(&p->shapes[i].key, key, sizeof *key) == 0) return &p->shapes[i];
    return NULL;
}

static void remember(struct GemmPlan *p, const struct ShapeKey *key,
                     const cublasLtMatmulAlgo_t *algo)
{
    int at = p->n_shapes < PLAN_SHAPES ? p->n_shapes++ : p->oldest++ % PLAN_SHAPES;
    p->shapes[at].key = *key;
    p->shapes[at].algo = *algo;
}

static cudaError_t run_first(struct GemmPlan *p, struct Product *d, const struct CudaGemm *g,
                             const void *bias, cudaStream_t s)
{
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    struct ShapeKey key = key_of(g);
    struct CudaGemm most = *g;
    struct Product all;
    most.n_rows = key.n_rows;
    if (!describe(&all, &most, bias)) return cudaErrorInvalidValue;
    int n = candidates(p, &all, found);
    for (int i = 0; i < n; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
        if (run_product(p, d, g, &found[i].algo, s) != CUBLAS_STATUS_SUCCESS) continue;
        remember(p, &key, &found[i].algo);
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

/* ==== The launcher ==== */

__global__ void bias_to_bf16_kernel(const float *bias, int n, bf16 *out)
{
    int i = (int)(blockIdx.x * BIAS_THREADS + threadIdx.x);
    if (i < n) out[i] = __float2bfloat16_rn(bias[i]);
}

/* The bias as the epilogue wants it, or NULL. Models store biases as bf16, so the rounding changes none of theirs. */
static const void *epilogue_bias(struct GemmPlan *p, const struct CudaGemm *g, cudaStream_t s)
{
    if (!g->bias || bias_is_f32(g)) return g->bias;
    bf16 *room = (bf16 *)(p->workspace + GEMM_WORKSPACE - BIAS_ROOM);
    int grid = (g->rows + BIAS_THREADS - 1) / BIAS_THREADS;
    bias_to_bf16_kernel<<<(unsigned)grid, BIAS_THREADS, 0, s>>>(g->bias, g->rows, room);
    return room;
}

static bool gemm_ok(const struct CudaGemm *g)
{
    if (g->n_rows < 0 || g->rows <= 0 || g->cols <= 0 || (g->add && !g->out_f32)) return false;
    if (g->bias && (size_t)g->rows * sizeof(bf16) > BIAS_ROOM) return false;
    return ((uintptr_t)g->act | (uintptr_t)g->w | (uintptr_t)g->out) % ALIGNMENT == 0;
}

cudaError_t cuda_gemm(struct GemmPlan *p, const struct CudaGemm *g, cudaStream_t s)
{
    if (!gemm_ok(g)) return cudaErrorInvalidValue;
    if (g->n_rows == 0) return cudaSuccess;
    struct Product d;
    const void *bias = epilogue_bias(p, g, s);
    if (!describe(&d, g, bias)) return cudaErrorInvalidValue;
    struct ShapeKey key = key_of(g);
    struct Shape *known = find_shape(p, &key);
    if (!known) return run_first(p, &d, g, bias, s);
    return run_product(p, &d, g, &known->algo, s) == CUBLAS_STATUS_SUCCESS ? cudaSuccess
                                                                           : cudaErrorUnknown;
}

/* parts.cu - attention in parts of the keys: from what the kernels of many rows write to a part, and from parts to the whole
 * (headwise.md D.7). Sums run over the parts in their order, so whoever joins the same parts has the same bytes.
 */
#include "device.h"

#include <math.h>

enum { THREADS = 256 };

/* ==== A part ==== */

struct FromRows {
    const bf16 *out;  /* [n_rows, n_heads, head_dim] */
    const float *lse; /* [n_heads, n_rows] */
    float *part_out, *part_lse;
    int n_rows, n_heads, head_dim;
};

/* A block a row. */
static __global__ void from_rows_kernel(struct FromRows a)
{
    int row = blockIdx.x, width = a.n_heads * a.head_dim;
    for (int i = threadIdx.x; i < width; i += THREADS)
        a.part_out[(int64_t)row * width + i] = __bfloat162float(a.out[(int64_t)row * width + i]);
    for (int h = threadIdx.x; h < a.n_heads; h += THREADS)
        a.part_lse[(int64_t)row * a.n_heads + h] = a.lse[(int64_t)h * a.n_rows + row];
}

cudaError_t part_from_rows(const struct CudaAttn *c, const struct AttnPart *part, cudaStream_t s)
{
    struct FromRows a = {c->out, c->lse, part->out, part->lse, c->n_rows, c->n_heads, c->head_dim};
    from_rows_kernel<<<c->n_rows, THREADS, 0, s>>>(a);
    return cudaGetLastError();
}

/* lse [n_rows, n_heads] of a part to [n_heads, n_rows]. */
static __global__ void turn_lse_kernel(const float *from, float *to, int n_rows, int n_heads)
{
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n_rows * n_heads) to[i] = from[i % n_rows * n_heads + i / n_rows];
}

cudaError_t part_lse(const struct AttnPart *part, int n_rows, int n_heads, float *lse,
                     cudaStream_t s)
{
    turn_lse_kernel<<<(n_rows * n_heads + THREADS - 1) / THREADS, THREADS, 0, s>>>(part->lse, lse,
                                                                                   n_rows, n_heads);
    return cudaGetLastError();
}

/* ==== The whole ==== */

struct Join {
    const float *out[CUDA_PARTS], *lse[CUDA_PARTS];
    int n, n_heads, head_dim;
    bf16 *to;      /* [n_rows, n_heads, head_dim] */
    float *to_lse; /* [n_rows, n_heads], perhaps one of `lse` */
};

/* The largest lse of a head, and the sum of all against it. */
static __device__ float2 weigh(const struct Join &a, int64_t head)
{
    float most = -INFINITY, sum = 0;
    for (int p = 0; p < a.n; p++) most = fmaxf(most, a.lse[p][head]);
    for (int p = 0; p < a.n && most > -INFINITY; p++) sum += expf(a.lse[p][head] - most);
    return make_float2(most, sum);
}

/* A block a row, whose lse is overwritten when all have read it. */
static __global__ void join_kernel(const __grid_constant__ struct Join a)
{
    int64_t first = (int64_t)blockIdx.x * a.n_heads;
    for (int i = threadIdx.x; i < a.n_heads * a.head_dim; i += THREADS) {
        int64_t head = first + i / a.head_dim, at = head * a.head_dim + i % a.head_dim;
        float2 all = weigh(a, head);
        float x = 0;
        for (int p = 0; p < a.n && all.y > 0; p++) x += expf(a.lse[p][head] - all.x) * a.out[p][at];
        a.to[at] = __float2bfloat16_rn(all.y > 0 ? x / all.y : 0);
    }
    extern __shared__ float lse[]; /* [n_heads] */
    for (int h = threadIdx.x; h < a.n_heads; h += THREADS) {
        float2 all = weigh(a, first + h);
        lse[h] = all.y > 0 ? all.x + logf(all.y) : -INFINITY;
    }
    __syncthreads();
    for (int h = threadIdx.x; h < a.n_heads; h += THREADS) a.to_lse[first + h] = lse[h];
}

int cuda_join(struct Device *d, const struct AttnArgs *args, const struct AttnPart *parts, int n)
{
    Range range("join parts");
    const struct ModelConfig *m = &d->model->cfg;
    int rows = args->seq_begin[args->n_seqs];
    struct Join a = {};
    if (n > CUDA_PARTS)
        return err_set(PC_ECONFIG,
                       "answer_ranks all: %d ranks, and a GPU joins the parts of up to %d; use "
                       "--answer-ranks lead",
                       n, (int)CUDA_PARTS);
    for (int p = 0; p < n; p++) a.out[p] = parts[p].out, a.lse[p] = parts[p].lse;
    a.n = n;
    a.n_heads = m->n_heads;
    a.head_dim = m->head_dim;
    a.to = (bf16 *)args->out;
    a.to_lse = args->part->lse;
    join_kernel<<<rows, THREADS, (size_t)m->n_heads * sizeof(float), d->stream>>>(a);
    CUDA_TRY(cudaGetLastError());
    return PC_OK;
}

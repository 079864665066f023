/* rows.cu - what is done row by row: embedding, norms, rotation, the gate of the feed-forward, log-likelihoods.
 *
 * All of it is bound by memory: 16 bytes an access where widths allow, one block or warp a row.
 */
#include "dependent.cuh"
#include "device.h"
#include "rope.cuh"

#include <math_constants.h>

enum { THREADS = 256 };

static __device__ float warp_sum(float v)
{
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

static __device__ float warp_max(float v)
{
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

/* The same sum in every thread; the order does not depend on anything but the block's size. */
static __device__ float block_sum(float v, float *shared)
{
    int warp = threadIdx.x / 32, n = blockDim.x / 32;
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) shared[warp] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < n; i++) sum += shared[i];
    __syncthreads();
    return sum;
}

/* ==== Embedding and angles ==== */

/* In double, as on the CPU: at position 16M an f32 angle would be off by a radian. */
static __device__ void row_angles(const float *inv_freq, int pos, int half, float scale, float *out)
{
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        double sine, cosine;
        sincos((double)pos * (double)inv_freq[i], &sine, &cosine);
        out[i] = (float)cosine * scale;
        out[half + i] = (float)sine * scale;
    }
}

static __device__ void row_embed(const uint4 *row, int dim, float4 *out)
{
    for (int i = threadIdx.x; i < dim / 8; i += blockDim.x) {
        uint4 eight = row[i];
        const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&eight;
        float2 v[4];
        for (int k = 0; k < 4; k++) v[k] = __bfloat1622float2(pair[k]);
        out[2 * i] = make_float4(v[0].x, v[0].y, v[1].x, v[1].y);
        out[2 * i + 1] = make_float4(v[2].x, v[2].y, v[3].x, v[3].y);
    }
}

/* Two blocks a row; what else a step needs goes along with the first row's angles. */
static __global__ void begin_kernel(struct BeginArgs a)
{
    int row = blockIdx.x, half = a.rope_dim / 2;
    let_next_begin();
    wait_for_inputs();
    if (blockIdx.y == 0) {
        row_embed((const uint4 *)(a.table + (size_t)a.tokens[row] * a.dim), a.dim,
                  (float4 *)(a.x + (size_t)row * a.dim));
        return;
    }
    for (int i = threadIdx.x; row == 0 && i < a.n_slots; i += blockDim.x) a.slots[i] = a.told[i];
    row_angles(a.inv_freq, a.pos[row], half, a.scale, a.angles + (size_t)row * a.rope_dim);
}

cudaError_t rows_begin(const struct BeginArgs *a, cudaStream_t s)
{
    if (a->dim % 8) return cudaErrorInvalidValue;
    return launch_dependent<begin_kernel>(dim3((unsigned)a->n_rows, 2), THREADS, 0, s, *a);
}

static __global__ void angles_kernel(const float *inv_freq, const int *pos, int half, float *out)
{
    row_angles(inv_freq, pos[blockIdx.x], half, 1, out + (size_t)blockIdx.x * 2 * half);
}

cudaError_t rows_angles(const float *inv_freq, const int *pos, int n_rows, int half, float *out,
                        cudaStream_t s)
{
    angles_kernel<<<n_rows, 64, 0, s>>>(inv_freq, pos, half, out);
    return cudaGetLastError();
}

/* ==== RMS norm ==== */

static __device__ uint2 scaled(float4 x, float r, float4 w)
{
    __nv_bfloat162 lo = __floats2bfloat162_rn(x.x * r * w.x, x.y * r * w.y),
                   hi = __floats2bfloat162_rn(x.z * r * w.z, x.w * r * w.w);
    return make_uint2(*(unsigned *)&lo, *(unsigned *)&hi);
}

/* PER float4 a thread stay in registers between the sum and the scaling; rows wider than that are read twice. */
template <int PER> static __global__ void norm_kernel(struct RowsArgs a)
{
    __shared__ float shared[THREADS / 32];
    size_t row = a.idx ? (size_t)a.idx[blockIdx.x] : blockIdx.x;
    const float4 *x = (const float4 *)(a.x + row * a.dim), *w = (const float4 *)a.weight;
    uint2 *out = (uint2 *)(a.out + (size_t)blockIdx.x * a.dim);
    int n = a.dim / 4;
    float4 v[PER];
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PER; j++) {
        int i = j * blockDim.x + threadIdx.x;
        v[j] = i < n ? x[i] : make_float4(0, 0, 0, 0);
        sum += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
    }
    for (int i = PER * blockDim.x + threadIdx.x; i < n; i += blockDim.x) {
        float4 t = x[i];
        sum += t.x * t.x + t.y * t.y + t.z * t.z + t.w * t.w;
    }
    float r = rsqrtf(block_sum(sum, shared) / (float)a.dim + a.eps);
#pragma unroll
    for (int j = 0; j < PER; j++) {
        int i = j * blockDim.x + threadIdx.x;
        if (i < n) out[i] = scaled(v[j], r, w[i]);
    }
    for (int i = PER * blockDim.x + threadIdx.x; i < n; i += blockDim.x)
        out[i] = scaled(x[i], r, w[i]);
}

cudaError_t rows_norm(const struct RowsArgs *a, cudaStream_t s)
{
    if (a->dim % 4) return cudaErrorInvalidValue;
    int threads = a->dim >= 4 * THREADS ? THREADS : (a->dim / 4 + 31) / 32 * 32;
    int per = (a->dim / 4 + threads - 1) / threads;
    if (per <= 1)
        norm_kernel<1><<<a->n_rows, threads, 0, s>>>(*a);
    else if (per <= 4)
        norm_kernel<4><<<a->n_rows, threads, 0, s>>>(*a);
    else
        norm_kernel<8><<<a->n_rows, threads, 0, s>>>(*a);
    return cudaGetLastError();
}

/* ==== Rotation ==== */

/* One warp a head of a row. */
template <bool EVEN> static __global__ void rope_kernel(struct HeadsArgs a)
{
    __shared__ float held[EVEN ? THREADS / 32 : 1][EVEN ? 256 : 1];
    size_t head = (size_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= (size_t)a.n_rows * a.n_heads) return;
    bf16 *x = a.x + head * a.head_dim;
    struct CudaTurn turn = a.turn;
    turn.angles += head / a.n_heads * turn.rope_dim;
    const float *slow = a.slow ? a.slow + head % a.n_heads * a.head_dim : NULL;
    auto store = [&](int i, float v) { x[i] = __float2bfloat16_rn(v); };
    if constexpr (EVEN) {
        const float *balance = turn.balance;
        if (balance) balance += head % a.n_heads / a.group * a.head_dim;
        turn_even_head(turn, x, a.norm, slow, a.head_dim,
                       EvenHead{balance, a.queries, held[threadIdx.x / 32]}, store);
    } else {
        turn_head(turn, x, a.norm, slow, a.head_dim, store);
    }
}

cudaError_t rows_rope(const struct HeadsArgs *a, cudaStream_t s)
{
    size_t heads = (size_t)a->n_rows * a->n_heads;
    unsigned blocks = (unsigned)((heads + THREADS / 32 - 1) / (THREADS / 32));
    if (a->turn.even)
        rope_kernel<true><<<blocks, THREADS, 0, s>>>(*a);
    else
        rope_kernel<false><<<blocks, THREADS, 0, s>>>(*a);
    return cudaGetLastError();
}

/* ==== Feed-forward gate ==== */

static __device__ float silu(float x)
{
    return x / (1.0f + expf(-x));
}

static __device__ unsigned silu_pair(unsigned gate, unsigned up)
{
    float2 g = __bfloat1622float2(*(__nv_bfloat162 *)&gate),
           u = __bfloat1622float2(*(__nv_bfloat162 *)&up);
    __nv_bfloat162 h = __floats2bfloat162_rn(silu(g.x) * u.x, silu(g.y) * u.y);
    return *(unsigned *)&h;
}

/* Rows `ld` apart, eight values a thread. */
static __global__ void silu_kernel(const uint4 *gate, const uint4 *up, int ld, int n_rows,
                                   int hidden, uint4 *out)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)n_rows * hidden) return;
    size_t at = i / hidden * ld + i % hidden;
    uint4 g = gate[at], u = up[at];
    out[i] = make_uint4(silu_pair(g.x, u.x), silu_pair(g.y, u.y), silu_pair(g.z, u.z),
                        silu_pair(g.w, u.w));
}

cudaError_t rows_silu(const bf16 *gate, const bf16 *up, int ld, int n_rows, int hidden, bf16 *out,
                      cudaStream_t s)
{
    if (hidden % 8 || ld % 8) return cudaErrorInvalidValue;
    size_t n = (size_t)n_rows * (hidden / 8);
    silu_kernel<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, s>>>(
        (const uint4 *)gate, (const uint4 *)up, ld / 8, n_rows, hidden / 8, (uint4 *)out);
    return cudaGetLastError();
}

/* ==== Rows picked out ==== */

static __global__ void gather_kernel(const uint32_t *x, int words, const int *idx, uint32_t *out)
{
    const uint32_t *row = x + (size_t)idx[blockIdx.x] * words;
    uint32_t *to = out + (size_t)blockIdx.x * words;
    for (int i = threadIdx.x; i < words; i += blockDim.x) to[i] = row[i];
}

cudaError_t rows_gather(const void *x, size_t row_bytes, const int *idx, int n, void *out,
                        cudaStream_t s)
{
    if (row_bytes % 4) return cudaErrorInvalidValue;
    gather_kernel<<<n, THREADS, 0, s>>>((const uint32_t *)x, (int)(row_bytes / 4), idx,
                                        (uint32_t *)out);
    return cudaGetLastError();
}

/* ==== Log-likelihood ==== */

static __global__ void nll_kernel(const float *logits, int vocab, const int *target, float *out)
{
    __shared__ float shared[THREADS / 32];
    const float *row = logits + (size_t)blockIdx.x * vocab;
    float most = -CUDART_INF_F, sum = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) most = fmaxf(most, row[i]);
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = most;
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++) most = fmaxf(most, shared[i]);
    __syncthreads();
    for (int i = threadIdx.x; i < vocab; i += THREADS) sum += expf(row[i] - most);
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) out[blockIdx.x] = most + logf(sum) - row[target[blockIdx.x]];
}

cudaError_t rows_nll(const float *logits, int vocab, const int *target, int n, float *out,
                     cudaStream_t s)
{
    nll_kernel<<<n, THREADS, 0, s>>>(logits, vocab, target, out);
    return cudaGetLastError();
}

/* attn_mass.cu - how much attention the last rows of each sequence pay to every key.
 *
 * A warp owns KT x 16 keys: it reads them once, straight into the registers of an mma's left operand, and walks over
 * the rows of all query heads of the group, 8 at a time. So a key's sum stays in one lane and needs no atomics, and the
 * order of the sum is fixed. The dimensions of a head are permuted alike in keys and queries, so that a lane's operands of
 * two products lie in one 16-byte piece.
 */
#include "kernels.h"
#include "mma.cuh"

static constexpr int WARPS = 4;

/* A key's or query's share of 32 dimensions in one lane: the operands of two products. */
union Piece {
    uint4 all;
    uint32_t part[4];
};

__device__ __forceinline__ Piece piece_load(const bf16 *p, bool wanted)
{
    Piece r;
    r.all = wanted ? __ldg((const uint4 *)p) : make_uint4(0, 0, 0, 0);
    return r;
}

/* The asking rows of one block: number n is row n / group of the observed ones, query head n % group of the KV head. */
struct Askers {
    int n, group, first_head;
    int begin;         /* first observed row of the batch */
    int place;         /* the same, counted from the head's first past key */
    uint64_t division; /* ceil(2^32 / group) */

    __device__ __forceinline__ int row(int i) const { return (int)(i * division >> 32); }
    __device__ __forceinline__ int head(int i) const { return first_head + i - row(i) * group; }
};

template <int D>
__device__ __forceinline__ void queries_load(Piece (&q)[D / 32], const struct CudaAttn &a,
                                             const Askers &ask, int i, int lane)
{
    const bf16 *p = a.q + ((int64_t)(ask.begin + ask.row(i)) * a.n_heads + ask.head(i)) * D;
#pragma unroll
    for (int d = 0; d < D / 32; d++) q[d] = piece_load(p + d * 32 + lane % 4 * 8, i < ask.n);
}

/* Whether row `i` of the askers sees key j, and with which bias. */
__device__ __forceinline__ float seen(const struct CudaAttn &a, const Askers &ask, int i, int j)
{
    int at = ask.place + ask.row(i), window = a.window ? a.window[ask.head(i)] : 0;
    if (j > at || (window && j >= a.sinks && at - j >= window)) return -INFINITY;
    return j < a.n_biased ? a.bias * LOG2_E : 0;
}

template <int D, int KT>
__device__ __forceinline__ void add_mass(float (&mass)[KT][2], const Piece (&k)[KT][2][D / 32],
                                         const struct CudaAttn &a, const Askers &ask, int key,
                                         int lane)
{
    float scale2 = a.scale * LOG2_E;
    int past_rows = key - ask.place; /* rows before the first key see none of these */
    int i = past_rows > 0 ? past_rows * ask.group / 8 * 8 : 0;
    Piece q[D / 32];
    queries_load<D>(q, a, ask, i + lane / 4, lane);
    for (; i < ask.n; i += 8) {
        float low[2];
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int at = i + lane % 4 * 2 + c;
            low[c] =
                at < ask.n
                    ? -LOG2_E * a.lse[(int64_t)ask.head(at) * a.n_rows + ask.begin + ask.row(at)]
                    : -INFINITY;
        }
        float s[KT][4] = {};
#pragma unroll
        for (int d = 0; d < D / 32; d++)
#pragma unroll
            for (int t = 0; t < KT; t++)
#pragma unroll
                for (int h = 0; h < 4; h += 2) {
                    uint32_t keys[4] = {k[t][0][d].part[h], k[t][1][d].part[h],
                                        k[t][0][d].part[h + 1], k[t][1][d].part[h + 1]};
                    mma_bf16(s[t], keys, q[d].part[h], q[d].part[h + 1]);
                }
        queries_load<D>(q, a, ask, i + 8 + lane / 4, lane);
        bool plain = ask.place + ask.row(i) >= key + KT * 16 - 1 && !a.window && key >= a.n_biased;
#pragma unroll
        for (int t = 0; t < KT; t++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float x = fmaf(s[t][c], scale2, low[c & 1]);
                if (!plain)
                    x += seen(a, ask, min(i + lane % 4 * 2 + (c & 1), ask.n - 1),
                              key + t * 16 + lane / 4 + (c >> 1) * 8);
                mass[t][c >> 1] += exp2_fast(x);
            }
    }
}

template <int D, int KT>
__global__ __launch_bounds__(WARPS * 32,
                             3) void attn_mass_kernel(const __grid_constant__ struct CudaMass m)
{
    const struct CudaAttn &a = m.attn;
    int kv_head = blockIdx.y, seq = blockIdx.z, lane = threadIdx.x % 32;
    int key = (blockIdx.x * WARPS + threadIdx.x / 32) * (KT * 16);
    if (key >= m.stride) return;
    int begin = a.seq_begin[seq], len = a.seq_begin[seq + 1] - begin, past = a.kv.past[kv_head];
    int n_keys = len > 0 ? past + len : 0, obs = min(m.obs_rows, len);
    float mass[KT][2] = {};
    if (key < n_keys && obs > 0) {
        int group = a.n_heads / a.n_kv_heads;
        Askers ask = {obs * group,      group,
                      kv_head * group,  begin + len - obs,
                      past + len - obs, ((1ull << 32) + group - 1) / group};
        const bf16 *keys =
            a.kv.k + ((int64_t)seq * a.n_kv_heads + kv_head) * a.kv.key_stride * D + lane % 4 * 8;
        Piece k[KT][2][D / 32];
#pragma unroll
        for (int t = 0; t < KT; t++)
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int d = 0; d < D / 32; d++) {
                    int j = key + t * 16 + h * 8 + lane / 4;
                    k[t][h][d] = piece_load(keys + (int64_t)j * D + d * 32, j < n_keys);
                }
        add_mass<D, KT>(mass, k, a, ask, key, lane);
    }
    float *out = m.mass + ((int64_t)seq * a.n_kv_heads + kv_head) * m.stride;
#pragma unroll
    for (int t = 0; t < KT; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = quad_sum(mass[t][h]);
            int j = key + t * 16 + h * 8 + lane / 4;
            if (lane % 4 == 0 && j < m.stride) out[j] = sum;
        }
}

template <int D, int KT> static cudaError_t launch(const struct CudaMass *m, cudaStream_t s)
{
    const int keys = WARPS * KT * 16;
    dim3 grid((m->stride + keys - 1) / keys, m->attn.n_kv_heads, m->attn.n_seqs);
    attn_mass_kernel<D, KT><<<grid, WARPS * 32, 0, s>>>(*m);
    return cudaGetLastError();
}

cudaError_t cuda_attn_mass(const struct CudaMass *m, cudaStream_t s)
{
    const struct CudaAttn *a = &m->attn;
    if (!a->lse || a->n_kv_heads < 1 || a->n_heads % a->n_kv_heads) return cudaErrorInvalidValue;
    if (a->n_seqs < 1 || m->stride < 1) return cudaSuccess;
    switch (a->head_dim) {
    case 64:
        return launch<64, 2>(m, s);
    case 96:
        return launch<96, 2>(m, s);
    case 128:
        return launch<128, 2>(m, s);
    case 256:
        return launch<256, 1>(m, s);
    default:
        return cudaErrorInvalidValue;
    }
}

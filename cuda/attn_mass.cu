/* attn_mass.cu - how much attention the last rows of each sequence pay to every key.
 *
 * A warp owns KT x 16 keys: it reads them once, straight into the registers of an mma's left operand, and walks over the
 * rows of all query heads of the group, 8 at a time. So a key's sum stays in one lane and needs no atomics, and the order of
 * the sum is fixed. The rows come to shared memory, ASKERS at a time, while the keys are under way. The dimensions of a head
 * are permuted alike in keys and queries, so that a lane's operands of two products lie in one 16-byte piece.
 */
#include "kernels.h"
#include "mma.cuh"

static constexpr int ASKERS = 32;

template <int D_, int KT_, int WARPS_, int BLOCKS_> struct MassShape {
    static constexpr int D = D_, KT = KT_, WARPS = WARPS_, BLOCKS = BLOCKS_;
    static constexpr int THREADS = WARPS * 32, KEYS = WARPS * KT * 16;
};

/* A key's or query's share of 32 dimensions in one lane: the operands of two products. */
union Piece {
    uint4 all;
    uint32_t part[4];
};

/* The asking rows of one block: number i is row i / group of the observed ones, query head i % group of the KV head. */
struct Askers {
    int n, group, first_head;
    int begin;         /* first observed row of the batch */
    int place;         /* the same, counted from the head's first past key */
    uint64_t division; /* ceil(2^32 / group) */

    __device__ __forceinline__ int row(int i) const { return (int)(i * division >> 32); }
    __device__ __forceinline__ int head(int i) const { return first_head + i - row(i) * group; }
};

/* ASKERS of them with their log-sum-exp. */
template <int D> struct AskerTile {
    uint4 q[ASKERS][D / 8];
    float lse[ASKERS];
};

/* Chunks of odd rows change halves of a 128-byte line, so that the pieces of two rows lie in all banks. */
template <int D> __device__ __forceinline__ int tile_chunk(int row, int chunk)
{
    return D % 64 == 0 ? chunk ^ (row & 1) << 2 : chunk;
}

template <class T>
__device__ __forceinline__ void askers_load(AskerTile<T::D> &tile, const struct CudaAttn &a,
                                            const Askers &ask, int first)
{
    constexpr int CHUNKS = T::D / 8;
    for (int i = threadIdx.x; i < ASKERS * CHUNKS; i += T::THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS, at = min(first + row, ask.n - 1);
        const bf16 *q =
            a.q + ((int64_t)(ask.begin + ask.row(at)) * a.n_heads + ask.head(at)) * T::D;
        copy_async(shared_address(&tile.q[row][tile_chunk<T::D>(row, chunk)]), q + chunk * 8,
                   first + row < ask.n);
        if (chunk == 0)
            copy_async4(shared_address(&tile.lse[row]),
                        a.lse + (int64_t)ask.head(at) * a.n_rows + ask.begin + ask.row(at), true);
    }
}

template <class T>
__device__ __forceinline__ void keys_load(Piece (&k)[T::KT][2][T::D / 32], const bf16 *keys,
                                          int key, int n_keys, int lane)
{
#pragma unroll
    for (int t = 0; t < T::KT; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int j = key + t * 16 + h * 8 + lane / 4;
            const uint4 *from = (const uint4 *)(keys + (int64_t)j * T::D) + lane % 4;
#pragma unroll
            for (int d = 0; d < T::D / 32; d++)
                k[t][h][d].all = j < n_keys ? __ldg(from + d * 4) : make_uint4(0, 0, 0, 0);
        }
}

/* What to add to the logit, base 2, of asker i on key j. */
__device__ __forceinline__ float seen(const struct CudaAttn &a, const Askers &ask, int i, int j)
{
    int at = ask.place + ask.row(i), window = a.window ? a.window[ask.head(i)] : 0;
    if (j > at || (window && j >= a.sinks && at - j >= window)) return -INFINITY;
    if (j >= a.n_biased) return 0;
    int kv_head = ask.head(i) / (a.n_heads / a.n_kv_heads);
    return a.key_bias[(int64_t)kv_head * a.kv.key_stride + j] * LOG2_E;
}

/* 8 askers from `row` of the tile on, the first of them number i. */
template <class T>
__device__ __forceinline__ void
add_mass(float (&mass)[T::KT][2], const Piece (&k)[T::KT][2][T::D / 32],
         const AskerTile<T::D> &tile, int row, const struct CudaAttn &a, const Askers &ask, int i,
         int key, int lane)
{
    float scale2 = a.scale * LOG2_E, s[T::KT][4] = {}, low[2];
#pragma unroll
    for (int d = 0; d < T::D / 32; d++) {
        Piece q;
        int at = row + lane / 4;
        q.all = tile.q[at][tile_chunk<T::D>(at, d * 4 + lane % 4)];
#pragma unroll
        for (int t = 0; t < T::KT; t++)
#pragma unroll
            for (int h = 0; h < 4; h += 2) {
                uint32_t keys[4] = {k[t][0][d].part[h], k[t][1][d].part[h], k[t][0][d].part[h + 1],
                                    k[t][1][d].part[h + 1]};
                mma_bf16(s[t], keys, q.part[h], q.part[h + 1]);
            }
    }
    i += lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < 2; c++)
        low[c] = i + c < ask.n ? -LOG2_E * tile.lse[row + lane % 4 * 2 + c] : -INFINITY;
    int first = ask.place + ask.row(i - lane % 4 * 2);
    bool plain = first >= key + T::KT * 16 - 1 && !a.window && key >= a.n_biased;
#pragma unroll
    for (int t = 0; t < T::KT; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float x = fmaf(s[t][c], scale2, low[c & 1]);
            if (!plain)
                x += seen(a, ask, min(i + (c & 1), ask.n - 1),
                          key + t * 16 + lane / 4 + (c >> 1) * 8);
            mass[t][c >> 1] += exp2_fast(x);
        }
}

template <class T>
__device__ __forceinline__ void block_mass(float (&mass)[T::KT][2], const struct CudaAttn &a,
                                           const Askers &ask, const bf16 *keys, int block_key,
                                           int key, int n_keys, int lane)
{
    __shared__ __align__(16) AskerTile<T::D> tiles[2];
    Piece k[T::KT][2][T::D / 32];
    keys_load<T>(k, keys, key, n_keys, lane);
    int unseen = max(block_key - ask.place, 0); /* rows before the block's first key */
    int i = unseen * ask.group / 8 * 8, turn = 0;
    askers_load<T>(tiles[0], a, ask, i);
    copy_commit();
    for (; i < ask.n; i += ASKERS, turn ^= 1) {
        copy_wait<0>();
        __syncthreads();
        if (i + ASKERS < ask.n) askers_load<T>(tiles[turn ^ 1], a, ask, i + ASKERS);
        copy_commit();
        if (key >= n_keys) continue;
        for (int row = 0; row < ASKERS && i + row < ask.n; row += 8)
            add_mass<T>(mass, k, tiles[turn], row, a, ask, i + row, key, lane);
    }
}

template <class T>
__global__
__launch_bounds__(T::THREADS,
                  T::BLOCKS) void attn_mass_kernel(const __grid_constant__ struct CudaMass m)
{
    const struct CudaAttn &a = m.attn;
    int kv_head = blockIdx.y, seq = blockIdx.z, lane = threadIdx.x % 32;
    int block_key = blockIdx.x * T::KEYS, key = block_key + threadIdx.x / 32 * (T::KT * 16);
    int begin = a.seq_begin[seq], len = a.seq_begin[seq + 1] - begin, past = a.kv.past_of(seq, kv_head);
    int n_keys = past + len, obs = min(m.obs_rows, len);
    float mass[T::KT][2] = {};
    if (block_key < n_keys && obs > 0) {
        int group = a.n_heads / a.n_kv_heads;
        Askers ask = {obs * group,      group,
                      kv_head * group,  begin + len - obs,
                      past + len - obs, ((1ull << 32) + group - 1) / group};
        const bf16 *keys =
            a.kv.k + ((int64_t)seq * a.n_kv_heads + kv_head) * a.kv.key_stride * T::D;
        block_mass<T>(mass, a, ask, keys, block_key, key, n_keys, lane);
    }
    float *out = m.mass + ((int64_t)seq * a.n_kv_heads + kv_head) * m.stride;
#pragma unroll
    for (int t = 0; t < T::KT; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = quad_sum(mass[t][h]);
            int j = key + t * 16 + h * 8 + lane / 4;
            if (lane % 4 == 0 && j < m.stride) out[j] = sum;
        }
}

template <class T> static cudaError_t launch(const struct CudaMass *m, cudaStream_t s)
{
    dim3 grid((m->stride + T::KEYS - 1) / T::KEYS, m->attn.n_kv_heads, m->attn.n_seqs);
    attn_mass_kernel<T><<<grid, T::THREADS, 0, s>>>(*m);
    return cudaGetLastError();
}

cudaError_t cuda_attn_mass(const struct CudaMass *m, cudaStream_t s)
{
    const struct CudaAttn *a = &m->attn;
    if (!a->lse || a->n_kv_heads < 1 || a->n_heads % a->n_kv_heads) return cudaErrorInvalidValue;
    if (a->n_seqs < 1 || m->stride < 1) return cudaSuccess;
    switch (a->head_dim) {
    case 64:
        return launch<MassShape<64, 2, 8, 3>>(m, s);
    case 96:
        return launch<MassShape<96, 2, 8, 2>>(m, s);
    case 128:
        return launch<MassShape<128, 2, 8, 2>>(m, s);
    case 256:
        return launch<MassShape<256, 1, 8, 2>>(m, s);
    default:
        return cudaErrorInvalidValue;
    }
}

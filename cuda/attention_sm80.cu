/* attention_sm80.cu - attention of many rows over packed keys with mma.sync: any GPU of compute capability 8.0 or newer.
 *
 * A block takes BM rows of one query head and walks over the tiles of BN keys that any of them sees. Each warp holds the
 * running sums of its RM x 16 rows in registers, so that a tile's keys and values, read once from shared memory, serve RM
 * products. The copy of the next tile runs under the work on this one, and two blocks share an SM so that one's
 * exponentials run under the other's products.
 *
 * Softmax is base 2. The reference point of a row (its largest logit at some time) moves only when a logit passes it by
 * 2^RISE: until then no sum need be scaled again and the lanes need not agree on a maximum, and 2^RISE is far from f32's
 * limits. Both change no bit of the relative precision.
 */
#include "kernels.h"
#include "mma.cuh"

#include <limits.h>

static constexpr float RISE = 8;

template <int D_, int RM_, int BN_, int WARPS_, int STAGES_, int BLOCKS_> struct AttnShape {
    static constexpr int D = D_, RM = RM_, BN = BN_, WARPS = WARPS_, STAGES = STAGES_;
    static constexpr int BLOCKS = BLOCKS_; /* on an SM */
    static constexpr int WM = RM * 16;     /* rows of a warp */
    static constexpr int BM = WARPS * WM, THREADS = WARPS * 32;
    static constexpr int Q_BYTES = BM * D * 2, KV_BYTES = BN * D * 2;
    static constexpr int SHARED = Q_BYTES + 2 * STAGES * KV_BYTES;
};

/* What the rows of a block see: row i the keys j <= i, with a window those with j < sinks or i - j < window. Both count
 * from the head's first past key. */
struct View {
    int past, window, sinks, n_biased;
    float bias; /* in units of the product q.k */

    /* Whether rows from i0 to i1 see all keys from j0 to j1 and none has a bias. */
    __device__ __forceinline__ bool plain(int i0, int i1, int j0, int j1) const
    {
        return j1 <= i0 && j0 >= n_biased && (window == 0 || j1 < sinks || i1 - j0 < window);
    }
};

/* The tiles that a block visits: `n_sink` from the first one, then those from `first` on. */
struct TileWalk {
    int n, n_sink, first;
    template <class T> __device__ __forceinline__ static TileWalk of(const View &v, int i0, int i1)
    {
        TileWalk w = {0, 0, 0};
        if (v.window > 0) {
            int low = v.past + i0 - v.window + 1;
            w.first = low > 0 ? low / T::BN : 0;
            w.n_sink = min((v.sinks + T::BN - 1) / T::BN, w.first);
        }
        w.n = w.n_sink + (v.past + i1 + T::BN) / T::BN - w.first;
        return w;
    }
    __device__ __forceinline__ int tile(int it) const
    {
        return it < n_sink ? it : it - n_sink + first;
    }
};

/* A warp's rows: lane l has rows l / 4 and l / 4 + 8 of each 16, there columns l % 4 * 2 and the next one of each 8. */
template <class T> struct Rows {
    float o[T::RM][T::D / 8][4];
    float top[T::RM][2]; /* reference point, in units of q.k */
    float sum[T::RM][2]; /* this lane's share */
};

template <class T> __device__ __forceinline__ void rows_clear(Rows<T> &r)
{
#pragma unroll
    for (int m = 0; m < T::RM; m++) {
#pragma unroll
        for (int n = 0; n < T::D / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) r.o[m][n][c] = 0;
        r.top[m][0] = r.top[m][1] = -INFINITY;
        r.sum[m][0] = r.sum[m][1] = 0;
    }
}

template <class T>
__device__ __forceinline__ void products_qk(float (&s)[T::RM][T::BN / 8][4], uint32_t q, uint32_t k,
                                            int lane)
{
    LaneRow<T::D> at_q = lane_row_a<T::D>(lane), at_k = lane_row_b<T::D>(lane);
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[m][n][c] = 0;
#pragma unroll
    for (int d = 0; d < T::D / 16; d++) {
        uint32_t a[T::RM][4];
#pragma unroll
        for (int m = 0; m < T::RM; m++) load_matrix(a[m], at_q.block(q, m * 16, d));
#pragma unroll
        for (int n = 0; n < T::BN / 16; n++) {
            uint32_t b[4];
            load_matrix(b, at_k.block(k, n * 16, d));
#pragma unroll
            for (int m = 0; m < T::RM; m++) {
                mma_bf16(s[m][2 * n], a[m], b[0], b[1]);
                mma_bf16(s[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* i0, j0: the warp's first row and the tile's first key. Keys are counted from the lane's first column here, so that all
 * but the rows' limits is known to the compiler. */
template <class T>
__device__ __forceinline__ void mask(float (&s)[T::RM][T::BN / 8][4], const View &v, int i0, int j0,
                                     int lane)
{
    int column = j0 + lane % 4 * 2, biased = v.n_biased - column, sinks = v.sinks - column;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int last = i0 + m * 16 + h * 8 + lane / 4 - column;
            int first = v.window ? last - v.window + 1 : INT_MIN;
#pragma unroll
            for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int j = n * 8 + c;
                    float &x = s[m][n][2 * h + c];
                    x += j < biased ? v.bias : 0;
                    x = (j <= last) & ((j >= first) | (j < sinks)) ? x : -INFINITY;
                }
        }
}

/* Moves the reference points to the rows' maxima when one is passed by too much. */
template <class T>
__device__ __forceinline__ void raise(Rows<T> &r, const float (&s)[T::RM][T::BN / 8][4],
                                      float scale2)
{
    float most[T::RM][2];
    bool far = false;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
#pragma unroll
            for (int n = 1; n < T::BN / 8; n++)
                x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            most[m][h] = x;
            far |= (x - r.top[m][h]) * scale2 > RISE;
        }
    if (!__any_sync(0xffffffffu, far)) return;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = fmaxf(r.top[m][h], quad_max(most[m][h]));
            float shrink = top == -INFINITY ? 1 : exp2_fast((r.top[m][h] - top) * scale2);
            r.top[m][h] = top;
            r.sum[m][h] *= shrink;
#pragma unroll
            for (int n = 0; n < T::D / 8; n++) {
                r.o[m][n][2 * h] *= shrink;
                r.o[m][n][2 * h + 1] *= shrink;
            }
        }
}

/* The exponentials of 16 keys stand beside the products of the 16 before, so that the two kinds of unit overlap. */
template <class T>
__device__ __forceinline__ void products_pv(Rows<T> &r, const float (&s)[T::RM][T::BN / 8][4],
                                            uint32_t v, float scale2, int lane)
{
    LaneRow<T::D> at_v = lane_row_a<T::D>(lane);
    float low[T::RM][2];
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            low[m][h] = r.top[m][h] == -INFINITY ? 0 : -r.top[m][h] * scale2;
#pragma unroll
    for (int k = 0; k < T::BN / 16; k++) {
        uint32_t p[T::RM][4];
#pragma unroll
        for (int m = 0; m < T::RM; m++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float *x = &s[m][2 * k + (c >> 1)][(c & 1) * 2];
                float p0 = exp2_fast(fmaf(x[0], scale2, low[m][c & 1]));
                float p1 = exp2_fast(fmaf(x[1], scale2, low[m][c & 1]));
                r.sum[m][c & 1] += p0 + p1;
                p[m][c] = pack_bf16(p0, p1);
            }
#pragma unroll
        for (int n = 0; n < T::D / 16; n++) {
            uint32_t b[4];
            load_matrix_turned(b, at_v.block(v, k * 16, n));
#pragma unroll
            for (int m = 0; m < T::RM; m++) {
                mma_bf16(r.o[m][2 * n], p[m], b[0], b[1]);
                mma_bf16(r.o[m][2 * n + 1], p[m], b[2], b[3]);
            }
        }
    }
}

/* Through the warp's own rows of the Q tile, so that rows leave in whole lines. n_rows of the warp's rows exist. */
template <class T>
__device__ __forceinline__ void rows_store(const Rows<T> &r, const struct CudaAttn &a, char *q,
                                           int row, int n_rows, int head, int lane)
{
    constexpr int LANES = T::D % 64 == 0 ? 8 : 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int at = m * 16 + h * 8 + lane / 4;
            float sum = quad_sum(r.sum[m][h]), part = sum > 0 ? 1 / sum : 0;
#pragma unroll
            for (int n = 0; n < T::D / 8; n++)
                *(uint32_t *)(q + tile_offset<T::D>(at, n) + lane % 4 * 4) =
                    pack_bf16(r.o[m][n][2 * h] * part, r.o[m][n][2 * h + 1] * part);
            if (a.lse && lane % 4 == 0 && at < n_rows)
                a.lse[(int64_t)head * a.n_rows + row + at] = r.top[m][h] * a.scale + logf(sum);
        }
    __syncwarp();
    for (int at = lane / LANES; at < n_rows; at += 32 / LANES) {
        bf16 *out = a.out + ((int64_t)(row + at) * a.n_heads + head) * T::D;
#pragma unroll
        for (int c = lane % LANES; c < T::D / 8; c += LANES)
            *(uint4 *)(out + c * 8) = *(const uint4 *)(q + tile_offset<T::D>(at, c));
    }
}

template <class T>
__global__
__launch_bounds__(T::THREADS,
                  T::BLOCKS) void attention_sm80_kernel(const __grid_constant__ struct CudaAttn a)
{
    extern __shared__ __align__(128) char shared[];
    int head = blockIdx.x % a.n_heads, seq = blockIdx.x / a.n_heads;
    int begin = a.seq_begin[seq], len = a.seq_begin[seq + 1] - begin;
    /* The last tiles see the most keys: they start first. */
    int i0 = (gridDim.y - 1 - blockIdx.y) * T::BM;
    if (a.last_rows && a.last_rows < len) i0 += len - a.last_rows;
    if (i0 >= len) return;
    int kv_head = head / (a.n_heads / a.n_kv_heads);
    View view = {a.kv.past[kv_head], a.window ? a.window[head] : 0, a.sinks, a.n_biased,
                 a.bias / a.scale};
    TileWalk walk = TileWalk::of<T>(view, i0, min(i0 + T::BM, len) - 1);

    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int64_t keys = ((int64_t)seq * a.n_kv_heads + kv_head) * a.kv.key_stride * T::D;
    const bf16 *k = a.kv.k + keys, *v = a.kv.v + keys;
    uint32_t q_tile = shared_address(shared), kv_tiles = q_tile + T::Q_BYTES;
    auto load = [&](int it) {
        uint32_t to = kv_tiles + it % T::STAGES * (2 * T::KV_BYTES);
        int64_t from = (int64_t)walk.tile(it) * (T::BN * T::D);
        tile_load<T::D, T::BN, T::THREADS>(to, k + from, T::D, T::BN, thread);
        tile_load<T::D, T::BN, T::THREADS>(to + T::KV_BYTES, v + from, T::D, T::BN, thread);
    };
    tile_load<T::D, T::BM, T::THREADS>(q_tile,
                                       a.q + ((int64_t)(begin + i0) * a.n_heads + head) * T::D,
                                       (int64_t)a.n_heads * T::D, len - i0, thread);
    for (int it = 0; it < T::STAGES - 1; it++) {
        if (it < walk.n) load(it);
        copy_commit();
    }

    Rows<T> rows;
    rows_clear(rows);
    float scale2 = a.scale * LOG2_E;
    int row = i0 + warp * T::WM; /* of the sequence */
    uint32_t q = q_tile + warp * (T::WM * T::D * 2);
    for (int it = 0; it < walk.n; it++) {
        copy_wait<T::STAGES - 2>();
        __syncthreads();
        if (it + T::STAGES - 1 < walk.n) load(it + T::STAGES - 1);
        copy_commit();
        int j = walk.tile(it) * T::BN, i = view.past + row;
        if (j > i + T::WM - 1) continue;
        uint32_t k_tile = kv_tiles + it % T::STAGES * (2 * T::KV_BYTES);
        float s[T::RM][T::BN / 8][4];
        products_qk<T>(s, q, k_tile, lane);
        if (!view.plain(i, i + T::WM - 1, j, j + T::BN - 1)) mask<T>(s, view, i, j, lane);
        raise<T>(rows, s, scale2);
        products_pv<T>(rows, s, k_tile + T::KV_BYTES, scale2, lane);
    }
    rows_store<T>(rows, a, shared + warp * (T::WM * T::D * 2), begin + row, min(len - row, T::WM),
                  head, lane);
}

template <class T> static cudaError_t launch(const struct CudaAttn *a, cudaStream_t s)
{
    cudaError_t err = cudaFuncSetAttribute(attention_sm80_kernel<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, T::SHARED);
    if (err) return err;
    int rows = a->last_rows && a->last_rows < a->max_seq_rows ? a->last_rows : a->max_seq_rows;
    dim3 grid(a->n_heads * a->n_seqs, (rows + T::BM - 1) / T::BM);
    attention_sm80_kernel<T><<<grid, T::THREADS, T::SHARED, s>>>(*a);
    return cudaGetLastError();
}

cudaError_t cuda_attention_sm80(const struct CudaAttn *a, cudaStream_t s)
{
    if (a->n_kv_heads < 1 || a->n_heads % a->n_kv_heads) return cudaErrorInvalidValue;
    if (a->n_seqs < 1 || a->max_seq_rows < 1) return cudaSuccess;
    switch (a->head_dim) {
    case 64:
        return launch<AttnShape<64, 2, 64, 4, 2, 2>>(a, s);
    case 96:
        return launch<AttnShape<96, 2, 64, 4, 2, 2>>(a, s);
    case 128:
        return launch<AttnShape<128, 2, 64, 4, 2, 2>>(a, s);
    case 256:
        return launch<AttnShape<256, 1, 32, 4, 2, 2>>(a, s);
    default:
        return cudaErrorInvalidValue;
    }
}

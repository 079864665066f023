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
static constexpr float NO_KEY = 1e30f;

template <int D_, int RM_, int BN_, int WARPS_, int STAGES_, int BLOCKS_, bool HOLD_Q_>
struct AttnShape {
    static constexpr int D = D_, RM = RM_, BN = BN_, WARPS = WARPS_, STAGES = STAGES_;
    static constexpr int BLOCKS = BLOCKS_;  /* on an SM */
    static constexpr bool HOLD_Q = HOLD_Q_; /* in registers */
    static constexpr int WM = RM * 16;      /* rows of a warp */
    static constexpr int BM = WARPS * WM, THREADS = WARPS * 32;
    static constexpr int Q_BYTES = BM * D * 2, KV_BYTES = BN * D * 2;
    static constexpr int SHARED = Q_BYTES + 2 * STAGES * KV_BYTES;
};

/* Row i sees the keys j <= i, with a window those with j < sinks or i - j < window. Both count from the head's first past
 * key. Whether rows from i0 to i1 see all keys from j0 to j1: */
__device__ __forceinline__ bool is_plain(const struct CudaAttn &a, int window, int i0, int i1,
                                         int j0, int j1)
{
    return j1 <= i0 && (window == 0 || j1 < a.sinks || i1 - j0 < window);
}

/* The tiles that a block visits, by their first keys: from 0 up to `gap`, then from `behind` up to `end`. */
struct Walk {
    int gap, behind, end;

    template <class T>
    __device__ __forceinline__ static Walk of(const struct CudaAttn &a, int window, int i0, int i1)
    {
        Walk w = {0, 0, i1 + 1};
        if (window > 0) {
            w.behind = max(i0 - window + 1, 0) / T::BN * T::BN;
            w.gap = min((a.sinks + T::BN - 1) / T::BN * T::BN, w.behind);
        }
        return w;
    }
    __device__ __forceinline__ int skip(int j) const { return j == gap ? behind : j; }
};

/* A warp's rows: lane l has rows l / 4 and l / 4 + 8 of each 16, there columns l % 4 * 2 and the next one of each 8. */
template <class T> struct Rows {
    float o[T::RM][T::D / 8][4];
    float low[T::RM][2]; /* the reference point, base 2, negated; huge before the first key */
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
        r.low[m][0] = r.low[m][1] = NO_KEY;
        r.sum[m][0] = r.sum[m][1] = 0;
    }
}

/* The rows' queries: in registers, or where they lie in shared memory. */
template <class T> struct Queries {
    uint32_t held[T::HOLD_Q ? T::D / 16 : 1][T::RM][4];
    uint32_t at;

    __device__ __forceinline__ void load(uint32_t (&a)[T::RM][4], int d, int lane) const
    {
#pragma unroll
        for (int m = 0; m < T::RM; m++)
            load_matrix(a[m], lane_row_a<T::D>(lane).block(at, m * 16, d));
    }
    __device__ __forceinline__ void hold(int lane)
    {
#pragma unroll
        for (int d = 0; d < T::D / 16; d++) load(held[d], d, lane);
    }
    __device__ __forceinline__ void get(uint32_t (&a)[T::RM][4], int d, int lane) const
    {
        if constexpr (T::HOLD_Q) {
#pragma unroll
            for (int m = 0; m < T::RM; m++)
#pragma unroll
                for (int c = 0; c < 4; c++) a[m][c] = held[d][m][c];
        } else {
            load(a, d, lane);
        }
    }
};

template <class T>
__device__ __forceinline__ void products_qk(float (&s)[T::RM][T::BN / 8][4], const Queries<T> &q,
                                            uint32_t k, int lane)
{
    LaneRow<T::D> at_k = lane_row_b<T::D>(lane);
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[m][n][c] = 0;
#pragma unroll
    for (int d = 0; d < T::D / 16; d++) {
        uint32_t a[T::RM][4];
        q.get(a, d, lane);
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
__device__ __forceinline__ void mask(float (&s)[T::RM][T::BN / 8][4], const struct CudaAttn &a,
                                     int window, int i0, int j0, int lane)
{
    int column = j0 + lane % 4 * 2, sinks = a.sinks - column;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int last = i0 + m * 16 + h * 8 + lane / 4 - column;
            int first = window ? last - window + 1 : INT_MIN;
#pragma unroll
            for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int j = n * 8 + c;
                    float &x = s[m][n][2 * h + c];
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
            far |= fmaf(x, scale2, r.low[m][h]) > RISE;
        }
    if (!__any_sync(0xffffffffu, far)) return;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float low = fminf(r.low[m][h], -quad_max(most[m][h]) * scale2);
            float shrink = exp2_fast(low - r.low[m][h]);
            r.low[m][h] = low;
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
#pragma unroll
    for (int k = 0; k < T::BN / 16; k++) {
        uint32_t p[T::RM][4];
#pragma unroll
        for (int m = 0; m < T::RM; m++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float *x = &s[m][2 * k + (c >> 1)][(c & 1) * 2];
                float p0 = exp2_fast(fmaf(x[0], scale2, r.low[m][c & 1]));
                float p1 = exp2_fast(fmaf(x[1], scale2, r.low[m][c & 1]));
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
                a.lse[(int64_t)head * a.n_rows + row + at] = logf(sum) - r.low[m][h] * LN_2;
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
    extern __shared__ __align__(1024) char shared[];
    int head = blockIdx.x % a.n_heads, seq = blockIdx.x / a.n_heads;
    int begin = a.seq_begin[seq], len = a.seq_begin[seq + 1] - begin;
    /* The last tiles see the most keys: they start first. */
    int i0 = (gridDim.y - 1 - blockIdx.y) * T::BM;
    if (a.last_rows && a.last_rows < len) i0 += len - a.last_rows;
    if (i0 >= len) return;
    int kv_head = head / (a.n_heads / a.n_kv_heads), window = a.window ? a.window[head] : 0;
    int past = a.kv.past[kv_head];
    Walk walk = Walk::of<T>(a, window, past + i0, past + min(i0 + T::BM, len) - 1);

    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int64_t keys = ((int64_t)seq * a.n_kv_heads + kv_head) * a.kv.key_stride * T::D;
    uint32_t q_tile = shared_address(shared), kv_tiles = q_tile + T::Q_BYTES;
    int ahead = walk.skip(0), load_stage = 0;
    auto load = [&]() {
        if (ahead < walk.end) {
            uint32_t to = kv_tiles + load_stage * (2 * T::KV_BYTES);
            int64_t from = keys + (int64_t)ahead * T::D;
            tile_load<T::D, T::BN, T::THREADS>(to, a.kv.k + from, T::D, T::BN, thread);
            tile_load<T::D, T::BN, T::THREADS>(to + T::KV_BYTES, a.kv.v + from, T::D, T::BN,
                                               thread);
        }
        copy_commit();
        ahead = walk.skip(ahead + T::BN);
        load_stage = load_stage + 1 == T::STAGES ? 0 : load_stage + 1;
    };
    tile_load<T::D, T::BM, T::THREADS>(q_tile,
                                       a.q + ((int64_t)(begin + i0) * a.n_heads + head) * T::D,
                                       (int64_t)a.n_heads * T::D, len - i0, thread);
    copy_commit();
#pragma unroll
    for (int s = 0; s < T::STAGES - 1; s++) load();

    Rows<T> rows;
    rows_clear(rows);
    float scale2 = a.scale * LOG2_E;
    int i = past + i0 + warp * T::WM, stage = 0;
    Queries<T> q;
    q.at = q_tile + warp * (T::WM * T::D * 2);
    if constexpr (T::HOLD_Q) {
        copy_wait<T::STAGES - 1>();
        __syncthreads();
        q.hold(lane);
    }
    for (int j = walk.skip(0); j < walk.end; j = walk.skip(j + T::BN)) {
        copy_wait<T::STAGES - 2>();
        __syncthreads();
        load();
        uint32_t k_tile = kv_tiles + stage * (2 * T::KV_BYTES);
        stage = stage + 1 == T::STAGES ? 0 : stage + 1;
        if (j > i + T::WM - 1) continue;
        float s[T::RM][T::BN / 8][4];
        asm volatile("" : "+r"(q.at)); /* or else the addresses of its blocks stay in registers */
        products_qk<T>(s, q, k_tile, lane);
        if (!is_plain(a, window, i, i + T::WM - 1, j, j + T::BN - 1))
            mask<T>(s, a, window, i, j, lane);
        raise<T>(rows, s, scale2);
        products_pv<T>(rows, s, k_tile + T::KV_BYTES, scale2, lane);
    }
    int row = i0 + warp * T::WM;
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
        return launch<AttnShape<64, 2, 64, 4, 3, 2, true>>(a, s);
    case 96:
        return launch<AttnShape<96, 2, 64, 4, 2, 2, false>>(a, s);
    case 128:
        return launch<AttnShape<128, 2, 64, 4, 2, 2, false>>(a, s);
    case 256:
        return launch<AttnShape<256, 1, 32, 4, 2, 2, false>>(a, s);
    default:
        return cudaErrorInvalidValue;
    }
}

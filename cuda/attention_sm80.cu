/* attention_sm80.cu - attention of many rows over packed keys with mma.sync: any GPU of compute capability 8.0 or newer.
 *
 * A block takes BM rows of one query head and walks over the tiles of BN keys that any of them sees. Each warp holds the
 * running sums of its RM x 16 rows in registers, so that a tile's keys and values, read once from shared memory, serve RM
 * products. The copy of the next tile runs under the work on this one, and two blocks share an SM so that one's
 * exponentials run under the other's products.
 */
#include "attention.cuh"

#include <limits.h>

template <int D_, int RM_, int BN_, int WARPS_, int STAGES_, int BLOCKS_, bool HOLD_Q_>
struct AttnShape {
    using Reference = LowPoint;
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

/* The rows' queries: in registers, or where they lie in shared memory. */
template <class T> struct Queries {
    uint32_t held[T::HOLD_Q ? T::D / 16 : 1][T::RM][4];
    uint32_t at;

    __device__ __forceinline__ void load(uint32_t (&a)[T::RM][4], int d, int lane) const
    {
        SharedQueries<T>(at, lane).get(a, d, lane);
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

/* i0, j0: the warp's first row and the tile's first key. Keys are counted from the lane's first column here, so that all
 * but the rows' limits is known to the compiler. */
template <class T>
__device__ __forceinline__ void mask(Logits<T> &s, const struct CudaAttn &a, int window, int i0,
                                     int j0, int lane)
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

/* n_rows of the warp's rows exist. */
template <class T>
__device__ __forceinline__ void rows_store(const Sums<T> &r, const struct CudaAttn &a, char *q,
                                           int row, int n_rows, int head, int lane)
{
    constexpr int LANES = T::D % 64 == 0 ? 8 : 4;
    sums_to_tile<T>(r, a, q, row, n_rows, head, lane);
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
    int past = a.kv.past_of(seq, kv_head);
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

    Sums<T> sums;
    sums_clear(sums);
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
        Logits<T> s;
        asm volatile("" : "+r"(q.at)); /* or else the addresses of its blocks stay in registers */
        products_qk<T>(s, q, k_tile, lane);
        if (!is_plain(a, window, i, i + T::WM - 1, j, j + T::BN - 1))
            mask<T>(s, a, window, i, j, lane);
        raise<T>(sums, s, scale2);
        products_pv<T>(sums, sums.point, s, k_tile + T::KV_BYTES, scale2, lane);
    }
    int row = i0 + warp * T::WM;
    rows_store<T>(sums, a, shared + warp * (T::WM * T::D * 2), begin + row, min(len - row, T::WM),
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

/* attention_any.cu - attention of many rows over packed keys for heads of any width, and for rows with far keys; and
 * the mass on keys for the widths that attn_mass.cu does not have.
 *
 * A head stands in shared memory padded with zeros to a width D that the products are compiled for. A block takes BM rows
 * of one query head. With far keys it walks twice: first over the tiles behind its rows' windows with turned queries, then
 * over the windows with the queries as they are, which take the same place in shared memory. The sums go on from one walk
 * to the next, so both parts share one softmax; a tile at the border is visited twice, each time for its part.
 */
#include "attention.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * 32;

/* A reference point in units of q.k; the functions are LowPoint's. */
struct TopPoint {
    static constexpr float NONE = -INFINITY;

    __device__ __forceinline__ static bool passed(float point, float x, float scale2)
    {
        return (x - point) * scale2 > RISE;
    }
    __device__ __forceinline__ static float move(float &point, float x, float scale2)
    {
        float top = fmaxf(point, x);
        float shrink = top == NONE ? 1 : exp2_fast((point - top) * scale2);
        point = top;
        return shrink;
    }
    __device__ __forceinline__ static float log_sum_exp(float point, float sum, float scale)
    {
        return point * scale + logf(sum);
    }
};

template <int D_, int RM_, int BN_> struct Shape {
    using Reference = TopPoint;
    static constexpr int D = D_, RM = RM_, BN = BN_;
    static constexpr int WM = RM * 16, BM = WARPS * WM; /* rows of a warp, of a block */
    static constexpr int LANES = D % 64 == 0 ? 8 : 4;   /* that share a row in copies */
    static constexpr int Q_BYTES = BM * D * 2, KV_BYTES = BN * D * 2;
    static constexpr int SHARED = Q_BYTES + 4 * KV_BYTES; /* two stages of keys and values */
    static constexpr int MASS_SHARED = Q_BYTES + KV_BYTES + WARPS * BN * 4;
};

/* One of the two parts of what rows see; rows and keys are counted from the head's first past key. */
struct Part {
    bool far;
    int window, limit, sinks, n_biased;

    /* Row i sees the keys from first(i) up to, not including, end(i), and the sinks before them. */
    __device__ __forceinline__ int first(int i) const
    {
        return far || !window ? 0 : max(i - window + 1, 0);
    }
    __device__ __forceinline__ int end(int i) const
    {
        return far ? min(limit, max(i - window + 1, 0)) : i + 1;
    }
    /* No row from i0 to i1 sees a key from j0 to j1. */
    __device__ __forceinline__ bool unseen(int i0, int i1, int j0, int j1) const
    {
        return j0 >= end(i1) || (j1 < first(i0) && j0 >= sinks);
    }
    /* Each row sees each key, and none has a bias. */
    __device__ __forceinline__ bool plain(int i0, int i1, int j0, int j1) const
    {
        return j1 < end(i0) && (j0 >= first(i1) || j1 < sinks) && j0 >= n_biased;
    }
};

/* What a query head sees without far keys: the part that every head has. */
__device__ __forceinline__ Part near_part(const struct CudaAttn &a, const struct CudaFar &f,
                                          int head)
{
    if (a.window) return {false, a.window[head], 0, a.sinks, a.n_biased};
    return {false, f.window, f.n, 0, a.n_biased};
}

/* ==== Tiles ==== */

/* `rows` rows of `dim` values to a tile of ROWS x D; zeros elsewhere. */
template <class T, int ROWS>
__device__ __forceinline__ void keys_load(uint32_t to, const bf16 *from, int dim, int rows)
{
    int row = threadIdx.x / T::LANES, lane = threadIdx.x % T::LANES;
#pragma unroll
    for (int i = 0; i < ROWS; i += THREADS / T::LANES) {
        if (i + row >= ROWS) break;
#pragma unroll
        for (int step = 0; step < T::D / 8; step += T::LANES) {
            int c = step + lane;
            copy_async(to + tile_offset<T::D>(i + row, c), from + (int64_t)(i + row) * dim + c * 8,
                       i + row < rows && c * 8 < dim);
        }
    }
}

/* A warp's own rows of Q; row_of(at) is where row `at` begins, or NULL: zeros. */
template <class T, class F> __device__ __forceinline__ void queries_load(char *q, int dim, F row_of)
{
    int lane = threadIdx.x % 32;
    __syncwarp();
    for (int at = lane / T::LANES; at < T::WM; at += 32 / T::LANES) {
        const bf16 *row = row_of(at);
        for (int c = lane % T::LANES; c < T::D / 8; c += T::LANES) {
            uint4 x = make_uint4(0, 0, 0, 0);
            if (row && c * 8 < dim) x = *(const uint4 *)(row + c * 8);
            *(uint4 *)(q + tile_offset<T::D>(at, c)) = x;
        }
    }
    __syncwarp();
}

__device__ __forceinline__ void turn(bf16 *a, bf16 *b, float x, float y, const float *turn, int i,
                                     int half)
{
    float c = turn[i], s = turn[half + i];
    *a = __float2bfloat16(x * c - y * s);
    *b = __float2bfloat16(x * s + y * c);
}

/* Turns the first n_rows of a warp's rows of Q, which have their turns in rows of `turns`. */
template <class T>
__device__ __forceinline__ void queries_turn(char *q, const struct CudaFar &f, const float *turns,
                                             int n_rows)
{
    int half = f.rope_dim / 2;
    for (int n = threadIdx.x % 32; n < n_rows * half; n += 32) {
        int at = n / half, i = n % half;
        int first = f.pairs ? 2 * i : i, second = f.pairs ? first + 1 : first + half;
        bf16 *a = (bf16 *)(q + tile_offset<T::D>(at, first / 8)) + first % 8;
        bf16 *b = (bf16 *)(q + tile_offset<T::D>(at, second / 8)) + second % 8;
        turn(a, b, __bfloat162float(*a), __bfloat162float(*b), turns + (int64_t)at * f.rope_dim, i,
             half);
    }
    __syncwarp();
}

/* ==== Logits and sums ==== */

/* The reference points as products_pv takes them. */
template <class T>
__device__ __forceinline__ void lows(float (&low)[T::RM][2], const Sums<T> &r, float scale2)
{
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            low[m][h] = r.point[m][h] == -INFINITY ? 0 : -r.point[m][h] * scale2;
}

/* bias: of the tile's keys, times `unit` in units of q.k; i0, j0: the warp's first row and the tile's first key. */
template <class T>
__device__ __forceinline__ void mask(Logits<T> &s, const Part &p, const float *bias, float unit,
                                     int i0, int j0, int lane)
{
    int column = j0 + lane % 4 * 2, biased = p.n_biased - column, sinks = p.sinks - column;
    bias += lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int i = i0 + m * 16 + h * 8 + lane / 4;
            int first = p.first(i) - column, end = p.end(i) - column;
#pragma unroll
            for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int j = n * 8 + c;
                    float &x = s[m][n][2 * h + c];
                    if (j < biased) x += bias[j] * unit;
                    x = ((j >= first) | (j < sinks)) & (j < end) ? x : -INFINITY;
                }
        }
}

/* n_rows of the warp's rows exist. */
template <class T>
__device__ __forceinline__ void sums_store(const Sums<T> &r, const struct CudaAttn &a, char *q,
                                           int row, int n_rows, int head, int lane)
{
    int dim = a.head_dim;
    sums_to_tile<T>(r, a, q, row, n_rows, head, lane);
    for (int at = lane / T::LANES; at < n_rows; at += 32 / T::LANES) {
        bf16 *out = a.out + ((int64_t)(row + at) * a.n_heads + head) * dim;
        for (int c = lane % T::LANES; c * 8 < dim; c += T::LANES)
            *(uint4 *)(out + c * 8) = *(const uint4 *)(q + tile_offset<T::D>(at, c));
    }
}

/* ==== Attention ==== */

/* A block's rows, and the tiles that it visits: `n_front` from the first one, with far keys or sinks, then those of the
 * windows from `first`. */
template <class T> struct Walk {
    int begin, len, i0;    /* of the sequence; the block's first row of it */
    int past, last;        /* the row of the last of the block, counted as keys are */
    int n_front, first, n; /* tiles */
    int n_far;             /* those in front that are the far part's: all or none */
    Part near;

    __device__ __forceinline__ Walk(const struct CudaAttn &a, const struct CudaFar &f, int seq,
                                    int head)
    {
        int kv_head = head / (a.n_heads / a.n_kv_heads);
        begin = a.seq_begin[seq], len = a.seq_begin[seq + 1] - begin;
        /* The last rows see the most keys: they start first. */
        i0 = (gridDim.y - 1 - blockIdx.y) * T::BM;
        if (a.last_rows && a.last_rows < len) i0 += len - a.last_rows;
        past = a.kv.past_of(seq, kv_head);
        last = past + min(i0 + T::BM, len) - 1;
        near = near_part(a, f, head);
        first = near.first(past + i0) / T::BN;
        n_far = f.window ? (far().end(last) + T::BN - 1) / T::BN : 0;
        n_front = f.window ? n_far : min((near.sinks + T::BN - 1) / T::BN, first);
        n = n_front + last / T::BN + 1 - first;
    }
    __device__ __forceinline__ Part far() const
    {
        Part p = near;
        p.far = true;
        return p;
    }
    __device__ __forceinline__ Part part(int it) const { return it < n_far ? far() : near; }
    /* The first key of tile `it` of the walk. */
    __device__ __forceinline__ int key(int it) const
    {
        return (it < n_front ? it : it - n_front + first) * T::BN;
    }
};

template <class T>
__global__ __launch_bounds__(THREADS,
                             2) void attention_any_kernel(const __grid_constant__ struct CudaAttn a,
                                                          const __grid_constant__ struct CudaFar f)
{
    extern __shared__ __align__(128) char shared[];
    int head = blockIdx.x % a.n_heads, seq = blockIdx.x / a.n_heads;
    int kv_head = head / (a.n_heads / a.n_kv_heads);
    Walk<T> w(a, f, seq, head);
    if (w.i0 >= w.len) return;

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = a.head_dim;
    int64_t set = ((int64_t)seq * a.n_kv_heads + kv_head) * a.kv.key_stride * dim;
    uint32_t kv_tiles = shared_address(shared) + T::Q_BYTES;
    auto load = [&](int it) {
        uint32_t to = kv_tiles + it % 2 * (2 * T::KV_BYTES);
        int key = w.key(it), n = w.part(it).end(w.last) - key;
        int64_t from = set + (int64_t)key * dim;
        keys_load<T, T::BN>(to, (it < w.n_far && f.k ? f.k : a.kv.k) + from, dim, n);
        keys_load<T, T::BN>(to + T::KV_BYTES, a.kv.v + from, dim, n);
    };
    load(0);
    copy_commit();

    int row = w.i0 + warp * T::WM, n_rows = min(w.len - row, T::WM); /* the warp's */
    char *q = shared + warp * (T::WM * T::D * 2);
    auto query = [&](int at) {
        return at < n_rows ? a.q + ((int64_t)(w.begin + row + at) * a.n_heads + head) * dim : NULL;
    };
    queries_load<T>(q, dim, query);
    if (w.n_far) queries_turn<T>(q, f, f.q_turn + (int64_t)(w.begin + row) * f.rope_dim, n_rows);

    Sums<T> sums;
    sums_clear(sums);
    float scale2 = a.scale * LOG2_E;
    int i = w.past + row;
    for (int it = 0; it < w.n; it++) {
        copy_wait<0>();
        __syncthreads();
        if (it + 1 < w.n) load(it + 1);
        copy_commit();
        if (it == w.n_far && it) queries_load<T>(q, dim, query);
        Part part = w.part(it);
        int j = w.key(it);
        if (n_rows <= 0 || part.unseen(i, i + T::WM - 1, j, j + T::BN - 1)) continue;
        uint32_t k_tile = kv_tiles + it % 2 * (2 * T::KV_BYTES);
        Logits<T> s;
        products_qk<T>(s, SharedQueries<T>(shared_address(q), lane), k_tile, lane);
        if (!part.plain(i, i + T::WM - 1, j, j + T::BN - 1))
            mask<T>(s, part, a.key_bias + (int64_t)kv_head * a.kv.key_stride + j, 1 / a.scale, i, j,
                    lane);
        raise<T>(sums, s, scale2);
        float low[T::RM][2];
        lows(low, sums, scale2);
        products_pv<T>(sums, low, s, k_tile + T::KV_BYTES, scale2, lane);
    }
    sums_store<T>(sums, a, q, w.begin + row, n_rows, head, lane);
}

/* ==== Keys for far rows ==== */

enum { TURNED_KEYS = 64 }; /* of a block */

/* A key a warp. Those within every row's window are far from none. */
__global__ void turn_keys_kernel(struct CudaAttn a, struct CudaFar f)
{
    int set = blockIdx.y, seq = set / a.n_kv_heads, kv_head = set % a.n_kv_heads;
    int keys = a.kv.past_of(seq, kv_head) + a.seq_begin[seq + 1] - a.seq_begin[seq];
    int limit = min(f.n, keys - f.window), lane = threadIdx.x % 32, half = f.rope_dim / 2;
    for (int at = threadIdx.x / 32; at < TURNED_KEYS; at += blockDim.x / 32) {
        int key = blockIdx.x * TURNED_KEYS + at;
        if (key >= limit) return;
        int64_t first = ((int64_t)set * a.kv.key_stride + key) * a.head_dim;
        const bf16 *from = a.kv.k + first;
        bf16 *to = f.k + first;
        for (int i = lane; i < half; i += 32) {
            int p = f.pairs ? 2 * i : i, q = f.pairs ? p + 1 : p + half;
            turn(to + p, to + q, __bfloat162float(from[p]), __bfloat162float(from[q]),
                 f.k_turn + (int64_t)key * f.rope_dim, i, half);
        }
        for (int i = f.rope_dim + lane; i < a.head_dim; i += 32) to[i] = from[i];
    }
}

/* ==== Mass ==== */

/* A block has BN keys of one (sequence, KV head); its warps take the asking rows in turn, 16 of all query heads' at a
 * time, and their shares are added in the order of the warps. */
template <class T>
__global__
__launch_bounds__(THREADS) void mass_any_kernel(const __grid_constant__ struct CudaMass m)
{
    extern __shared__ __align__(128) char shared[];
    const struct CudaAttn &a = m.attn;
    int kv_head = blockIdx.y, seq = blockIdx.z, j0 = blockIdx.x * T::BN;
    int begin = a.seq_begin[seq], len = a.seq_begin[seq + 1] - begin, past = a.kv.past_of(seq, kv_head);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = a.n_heads / a.n_kv_heads;
    int obs = min(m.obs_rows, len), n_ask = j0 < past + len ? obs * group : 0;
    char *q = shared + warp * (T::WM * T::D * 2);
    float *share = (float *)(shared + T::Q_BYTES + T::KV_BYTES);
    uint32_t k_tile = shared_address(shared) + T::Q_BYTES;
    int64_t set = ((int64_t)seq * a.n_kv_heads + kv_head) * a.kv.key_stride + j0;
    keys_load<T, T::BN>(k_tile, a.kv.k + set * a.head_dim, a.head_dim, past + len - j0);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    float mass[T::BN / 8][2] = {};
    for (int ask = warp * 16; ask < n_ask; ask += WARPS * 16) {
        /* asker n: row n / group of the observed ones, query head n % group of the KV head */
        auto place = [&](int n) {
            return (int64_t)(begin + len - obs + n / group) * a.n_heads + kv_head * group +
                   n % group;
        };
        queries_load<T>(q, a.head_dim, [&](int at) {
            return ask + at < n_ask ? a.q + place(ask + at) * a.head_dim : NULL;
        });
        Logits<T> s;
        products_qk<T>(s, SharedQueries<T>(shared_address(q), lane), k_tile, lane);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int n = ask + h * 8 + lane / 4;
            if (n >= n_ask) continue;
            int64_t head = kv_head * group + n % group, row = begin + len - obs + n / group;
            int last = past + len - obs + n / group, window = a.window ? a.window[head] : 0;
            int first = window ? last - window + 1 : 0;
            float low = -LOG2_E * a.lse[head * a.n_rows + row];
#pragma unroll
            for (int t = 0; t < T::BN / 8; t++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int j = j0 + t * 8 + lane % 4 * 2 + c;
                    float x = fmaf(s[0][t][2 * h + c], a.scale * LOG2_E, low);
                    if (j < a.n_biased)
                        x += a.key_bias[(int64_t)kv_head * a.kv.key_stride + j] * LOG2_E;
                    if (j <= last && (j >= first || j < a.sinks)) mass[t][c] += exp2_fast(x);
                }
        }
    }
#pragma unroll
    for (int t = 0; t < T::BN / 8; t++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float x = mass[t][c];
            for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
            if (lane < 4) share[warp * T::BN + t * 8 + lane * 2 + c] = x;
        }
    __syncthreads();
    for (int j = threadIdx.x; j < T::BN && j0 + j < m.stride; j += THREADS) {
        float x = 0;
        for (int p = 0; p < WARPS; p++) x += share[p * T::BN + j];
        m.mass[((int64_t)seq * a.n_kv_heads + kv_head) * m.stride + j0 + j] = x;
    }
}

/* ==== Launchers ==== */

template <class T>
static cudaError_t attend(const struct CudaAttn *a, const struct CudaFar *f, cudaStream_t s)
{
    cudaError_t err = cudaFuncSetAttribute(attention_any_kernel<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, T::SHARED);
    if (err) return err;
    int rows = a->last_rows && a->last_rows < a->max_seq_rows ? a->last_rows : a->max_seq_rows;
    dim3 grid(a->n_heads * a->n_seqs, (rows + T::BM - 1) / T::BM);
    attention_any_kernel<T><<<grid, THREADS, T::SHARED, s>>>(*a, *f);
    return cudaGetLastError();
}

template <class T> static cudaError_t weigh(const struct CudaMass *m, cudaStream_t s)
{
    cudaError_t err = cudaFuncSetAttribute(
        mass_any_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::MASS_SHARED);
    if (err) return err;
    dim3 grid((m->stride + T::BN - 1) / T::BN, m->attn.n_kv_heads, m->attn.n_seqs);
    mass_any_kernel<T><<<grid, THREADS, T::MASS_SHARED, s>>>(*m);
    return cudaGetLastError();
}

static bool shape_ok(const struct CudaAttn *a)
{
    return a->n_kv_heads > 0 && a->n_heads % a->n_kv_heads == 0 && a->head_dim > 0 &&
           a->head_dim % 8 == 0;
}

static bool far_ok(const struct CudaAttn *a, const struct CudaFar *f)
{
    return !a->window && f->window > 0 && f->n >= 0 && (f->n == 0 || f->q_turn) &&
           !f->k_turn == !f->k && f->rope_dim % 2 == 0 && f->rope_dim <= a->head_dim;
}

cudaError_t cuda_attention_any(const struct CudaAttn *a, const struct CudaFar *far, cudaStream_t s)
{
    struct CudaFar f = {};
    if (!shape_ok(a) || (far && !far_ok(a, far))) return cudaErrorInvalidValue;
    if (a->n_seqs < 1 || a->max_seq_rows < 1) return cudaSuccess;
    if (far) f = *far;
    if (f.k_turn && f.n) {
        dim3 grid(a->kv.key_stride / TURNED_KEYS, a->n_seqs * a->n_kv_heads);
        turn_keys_kernel<<<grid, 256, 0, s>>>(*a, f);
        cudaError_t err = cudaGetLastError();
        if (err) return err;
    }
    if (a->head_dim <= 32) return attend<Shape<32, 2, 64>>(a, &f, s);
    if (a->head_dim <= 64) return attend<Shape<64, 2, 64>>(a, &f, s);
    if (a->head_dim <= 96) return attend<Shape<96, 2, 64>>(a, &f, s);
    if (a->head_dim <= 128) return attend<Shape<128, 2, 64>>(a, &f, s);
    if (a->head_dim <= 192) return attend<Shape<192, 1, 32>>(a, &f, s);
    if (a->head_dim <= 256) return attend<Shape<256, 1, 32>>(a, &f, s);
    return cudaErrorInvalidValue;
}

cudaError_t cuda_attn_mass_any(const struct CudaMass *m, cudaStream_t s)
{
    const struct CudaAttn *a = &m->attn;
    if (!shape_ok(a) || !a->lse) return cudaErrorInvalidValue;
    if (a->n_seqs < 1 || m->stride < 1) return cudaSuccess;
    if (a->head_dim <= 64) return weigh<Shape<64, 1, 64>>(m, s);
    if (a->head_dim <= 128) return weigh<Shape<128, 1, 64>>(m, s);
    if (a->head_dim <= 256) return weigh<Shape<256, 1, 64>>(m, s);
    return cudaErrorInvalidValue;
}

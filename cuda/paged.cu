/* paged.cu - attention of few rows over ragged pages: bound by how fast the pages come from memory.
 *
 * The pages of all heads are dealt to the blocks of one fixed grid, which fits a CUDA graph: every block finds its share
 * from the heads' true numbers of pages, read from memory, and a head with more pages gets more blocks. A block brings in
 * STAGES tiles of PP pages ahead of use. Its warps are WM groups of 16 query rows (all query heads of a KV head in one
 * tile) times WK ranges of a tile's tokens; each keeps its own sums, joined in shared memory at the end. The last block of
 * a head to finish joins the head's blocks in their order.
 *
 * Where windows leave out pages between the sinks and the window, those count nowhere: the pages of a head are numbered as if
 * they were not there, and what is shared out are the pages that some row sees.
 */
#include "attention.cuh"
#include "codes.cuh"
#include "dependent.cuh"
#include "rope.cuh"

#include <limits.h>

static constexpr int MAX_HEADS = 256, TICKET_BYTES = MAX_HEADS * 4;
static constexpr int MAX_ROWS = 64; /* of a KV head's tile */
static constexpr unsigned ALL = 0xffffffffu;

/* BITS: of a page's numbers, 16 for bf16. A stage is a tile, or a page of codes: then there is one tile beside the stages. */
template <int D_, int WM_, int PP_, int STAGES_, int BLOCKS_, int BITS_> struct PagedShape {
    using Reference = LowPoint;
    static constexpr int BITS = BITS_;
    static constexpr bool CODES = BITS < 16;
    static constexpr int D = D_, WM = WM_, PP = PP_, STAGES = STAGES_, BLOCKS = BLOCKS_;
    static constexpr int WARPS = 4 * PP, THREADS = WARPS * 32, WK = WARPS / WM;
    static constexpr int ROWS = 16 * WM; /* of the query tile */
    static constexpr int RM = 1;         /* a warp's rows are 16 */
    static constexpr int BN = 16 * WM;   /* a warp's tokens of a tile */
    static constexpr int TILE = 64 * PP; /* tokens */
    static constexpr int KV_BYTES = TILE * D * 2;
    static constexpr int TILE_BYTES =
        2 * KV_BYTES; /* and just what the warps' sums take at the end */
    static constexpr int STAGE_BYTES = CODES ? code_page_bytes<BITS>(D) : TILE_BYTES;
    static constexpr int Q_BYTES = ROWS * D * 2;
    static constexpr int TILE_AT = Q_BYTES + (CODES ? STAGES * STAGE_BYTES : 0);
    static constexpr int SHARED = Q_BYTES + STAGES * STAGE_BYTES + (CODES ? TILE_BYTES : 0);
    static_assert(WARPS * 16 * D * 4 <= TILE_BYTES, "the sums fit one tile");
    static_assert(WARPS * 16 * 2 * 4 <= Q_BYTES, "reference points and sums fit the query tile");
};

/* ==== Which pages are a block's ==== */

struct Share {
    int head, pages;               /* the head's pages that some row sees */
    int item, first_item, n_items; /* of the grid; the head's first and how many it has */
    int begin, end;                /* pages of the share */
};

/* The heads' numbers of pages, lane by lane: the first 32 stay in a register. */
struct HeadCounts {
    const int *n_refs;
    const struct CudaSeen *seen;
    int n_heads, lane, mine;

    __device__ __forceinline__ HeadCounts(const struct CudaPaged &a, int the_lane)
        : n_refs(a.n_refs), seen(a.seen), n_heads(a.n_kv_heads), lane(the_lane)
    {
        mine = count(lane);
    }
    __device__ __forceinline__ int count(int head) const
    {
        if (head >= n_heads) return 0;
        int n = __ldg(n_refs + head);
        return seen ? n - __ldg(&seen[head].back) + __ldg(&seen[head].front) : n;
    }
    /* Pages of head `first` + lane; `first` a multiple of 32. */
    __device__ __forceinline__ int pages(int first) const
    {
        return first == 0 ? mine : count(first + lane);
    }
    /* Its items if an item has `chunk` pages at most. A head without pages still has an output. */
    __device__ __forceinline__ int items(int first, int chunk) const
    {
        int n = max((pages(first) + chunk - 1) / chunk, 1);
        return first + lane < n_heads ? n : 0;
    }
    __device__ __forceinline__ int all_items(int chunk) const
    {
        int n = 0;
        for (int first = 0; first < n_heads; first += 32) n += items(first, chunk);
        return __reduce_add_sync(ALL, n);
    }
    /* The smallest chunk with which no more items than blocks arise. */
    __device__ __forceinline__ int chunk(int n_blocks) const
    {
        int sum = 0, most = 1;
        for (int first = 0; first < n_heads; first += 32) {
            sum += pages(first);
            most = max(most, pages(first));
        }
        sum = __reduce_add_sync(ALL, sum);
        most = __reduce_max_sync(ALL, most);
        int low = max((sum + n_blocks - 1) / n_blocks, 1), high = most;
        if (n_blocks > n_heads) {
            int spare = n_blocks - n_heads; /* ceil(pages / chunk) is less than a page more */
            high = max(min(high, (sum + spare - 1) / spare), low);
        }
        while (low < high) {
            int middle = (low + high) / 2;
            if (all_items(middle) <= n_blocks)
                high = middle;
            else
                low = middle + 1;
        }
        return low;
    }
};

/* False when nothing is left for this block. Each warp reckons for itself. */
__device__ __forceinline__ bool share_of(const struct CudaPaged &a, Share &s, int lane)
{
    HeadCounts counts(a, lane);
    int chunk = counts.chunk(gridDim.x), before = 0;
    s.item = blockIdx.x;
    for (int first = 0; first < a.n_kv_heads; first += 32) {
        int n = counts.items(first, chunk), last = n;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            int y = __shfl_up_sync(ALL, last, d);
            if (lane >= d) last += y;
        }
        unsigned mine = __ballot_sync(ALL, s.item < before + last);
        if (mine) {
            int owner = __ffs(mine) - 1;
            s.head = first + owner;
            s.pages = __shfl_sync(ALL, counts.pages(first), owner);
            s.n_items = __shfl_sync(ALL, n, owner);
            s.first_item = before + __shfl_sync(ALL, last, owner) - s.n_items;
            int i = s.item - s.first_item;
            s.begin = (int)((int64_t)s.pages * i / s.n_items);
            s.end = (int)((int64_t)s.pages * (i + 1) / s.n_items);
            return true;
        }
        before += __shfl_sync(ALL, last, 31);
    }
    return false;
}

/* The refs come from memory while the shares are reckoned: each block fetches some lines of the table into L2. */
__device__ __forceinline__ void refs_prefetch(const struct CudaPaged &a)
{
    const int per_line = 128 / sizeof(struct CudaPageRef);
    int lines = (a.max_refs + per_line - 1) / per_line, all = lines * a.n_kv_heads;
    for (int i = blockIdx.x + threadIdx.x * gridDim.x; i < all; i += gridDim.x * blockDim.x) {
        const void *line = a.refs + (int64_t)(i / lines) * a.ref_stride + i % lines * per_line;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
}

/* ==== The tokens of a tile ==== */

/* The pages of one head that some row sees, and behind the last page the rows' own keys, if they are not in pages. */
struct HeadPages {
    const struct CudaPageRef *refs;
    int n_refs, head, end; /* end: of the block's share, with the own keys */
    int front, gap;        /* `gap` pages of the table are left out behind the first `front` */

    __device__ __forceinline__ const struct CudaPageRef *at(int page) const
    {
        return refs + page + (page < front ? 0 : gap);
    }
    __device__ __forceinline__ uint2 ref(const struct CudaPaged &a, int page) const
    {
        if (page < n_refs && page < end)
            return make_uint2(__ldg(&at(page)->page), __ldg(&at(page)->len));
        return make_uint2(0, page < end ? a.n_rows : 0);
    }
    __device__ __forceinline__ int len(int page) const { return (int)__ldg(&at(page)->len); }
    __device__ __forceinline__ float bias(int page) const { return __ldg(&at(page)->bias); }
};

template <class T>
__device__ __forceinline__ void page_load(const struct CudaPaged &a, const HeadPages &h, int page,
                                          uint2 ref, uint32_t to, int thread)
{
    const bf16 *k = (const bf16 *)(a.pool + ref.x * a.page_bytes), *v = k + 64 * T::D;
    int64_t pitch = T::D;
    if (page >= h.n_refs) {
        k = a.k + h.head * T::D;
        v = a.v + h.head * T::D;
        pitch = (int64_t)a.n_kv_heads * T::D;
    }
    tile_load<T::D, 64, 128>(to, k, pitch, ref.y, thread);
    tile_load<T::D, 64, 128>(to + T::KV_BYTES, v, pitch, ref.y, thread);
}

/* The tokens of a page of codes, as they are; the rows' own keys come when the tile is made. */
template <class T>
__device__ __forceinline__ void codes_load(const struct CudaPaged &a, const HeadPages &h, int page,
                                           uint2 ref, uint32_t to, int thread)
{
    constexpr int ROW = code_row_bytes<T::BITS>(T::D), GRIDS = 2 * 64 * ROW;
    const uint8_t *from = a.pool + ref.x * a.page_bytes;
    if (page >= h.n_refs || page >= h.end) return;
#pragma unroll
    for (int i = thread * 16; i < GRIDS; i += T::THREADS * 16)
        if (i / ROW % 64 < (int)ref.y) copy_async(to + i, from + i, true);
    static_assert(T::THREADS == 2 * 64, "a thread brings a scale and a zero");
    if (thread % 64 < (int)ref.y) copy_async4(to + GRIDS + thread * 4, from + GRIDS + thread * 4);
}

/* What the rows see of a page: row r of the batch its first `len - max(hidden - r, 0)` tokens, with the page's bias. */
struct PageView {
    int len, hidden;
    float bias;
};

__device__ __forceinline__ PageView page_view(const struct CudaPaged &a, const HeadPages &h,
                                              int page)
{
    if (page >= h.end) return {0, 0, 0};
    if (page >= h.n_refs) return {a.n_rows, a.n_rows - 1, 0};
    PageView v = {h.len(page), 0, h.bias(page)};
    if (a.k || a.n_rows == 1) return v;
    int after = 0;
    for (int p = page + 1; p < h.n_refs && after < a.n_rows - 1; p++) after += h.len(p);
    v.hidden = a.n_rows - 1 - after;
    return v;
}

/* ==== What windows hide ==== */

/* Keys are counted from the head's first one. */
struct Sight {
    struct CudaSeen seen;
    int row;   /* the first row's own key */
    int plain; /* the keys from here on are in every row's window, as far as rows see them at all */
};

/* Each warp reckons for itself. */
__device__ __forceinline__ Sight sight_of(const struct CudaPaged &a, int head, int lane)
{
    Sight s = {};
    if (!a.window) return s;
    int group = a.n_heads / a.n_kv_heads, least = INT_MAX;
    for (int i = lane; i < group; i += 32) {
        int window = __ldg(a.window + head * group + i);
        if (window) least = min(least, window);
    }
    least = __reduce_min_sync(ALL, least);
    s.seen = a.seen[head];
    s.row = __ldg(a.n_tokens + head) - (a.k ? 0 : a.n_rows);
    s.plain = max(s.row + a.n_rows - least, 0);
    return s;
}

/* The first key of a page: by the lengths of those before it. */
__device__ __forceinline__ int first_key(const HeadPages &h, const Sight &s, int page, int lane)
{
    int behind = page >= h.front, sum = 0;
    for (int i = (behind ? h.front : 0) + lane; i < page; i += 32) sum += h.len(i);
    return (behind ? s.seen.before : 0) + __reduce_add_sync(ALL, sum);
}

/* Takes from a warp's rows, the first of them row `row` of the tile, what lies before their windows of the keys from `key` on. */
template <class T>
__device__ __forceinline__ void hide(Logits<T> &s, const struct CudaPaged &a, const Sight &sight,
                                     int head, int row, int key, int lane)
{
    int group = a.n_heads / a.n_kv_heads, column = key + lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int line = row + h * 8 + lane / 4, r = line / group;
        int window = __ldg(a.window + head * group + line % group);
        int low = window ? sight.row + r - window + 1 - column : 0, sinks = a.sinks - column;
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int j = n * 8 + c;
                if (j < low && j >= sinks) s[0][n][2 * h + c] = -INFINITY;
            }
    }
}

/* ==== A warp's 16 rows over its tokens of a tile ==== */

template <class T>
__device__ __forceinline__ void mask(Logits<T> &s, const struct CudaPaged &a, const PageView &v,
                                     int row, int token, float group_part, float bias, int lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = (int)((row + h * 8 + lane / 4 + 0.5f) * group_part); /* of the batch */
        int seen = v.len - max(v.hidden - r, 0);
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int t = token + n * 8 + lane % 4 * 2 + c;
                s[0][n][2 * h + c] = t < seen ? s[0][n][2 * h + c] + bias : -INFINITY;
            }
    }
}

/* ==== Joining sums ==== */

/* Sums of 4 columns of a row that were taken against several reference points. */
struct Joined {
    float4 o;
    float sum;
    __device__ __forceinline__ void add(float4 x, float its_sum, float weight)
    {
        o.x += x.x * weight;
        o.y += x.y * weight;
        o.z += x.z * weight;
        o.w += x.w * weight;
        sum += its_sum * weight;
    }
};

__device__ __forceinline__ void write_out(const struct CudaPaged &a, int head_dim, int head,
                                          int row, int column, const Joined &j)
{
    int group = a.n_heads / a.n_kv_heads, r = row / group;
    int64_t at = (int64_t)r * a.n_heads + head * group + row % group;
    float part = j.sum > 0 ? 1 / j.sum : 0;
    uint2 packed = {pack_bf16(j.o.x * part, j.o.y * part), pack_bf16(j.o.z * part, j.o.w * part)};
    *(uint2 *)(a.out + at * head_dim + column) = packed;
}

/* Scratch: tickets, then o [items, rows, D], then (reference point, sum) [items, rows]. */
struct Scratch {
    int *tickets;
    float4 *o;
    float2 *ml;
};

__device__ __forceinline__ Scratch scratch_of(const struct CudaPaged &a, int head_dim, int rows)
{
    Scratch s;
    s.tickets = (int *)a.part;
    s.o = (float4 *)((char *)a.part + TICKET_BYTES);
    s.ml = (float2 *)(s.o + (int64_t)a.n_splits * a.n_kv_heads * rows * (head_dim / 4));
    return s;
}

/* A warp's row in shared memory: 16-byte chunks, permuted so that lanes of different rows meet in no bank. */
__device__ __forceinline__ int sums_chunk(int row, int chunk)
{
    return chunk ^ (row & 3) << 1;
}

template <class T>
__device__ __forceinline__ void sums_to_shared(const Sums<T> &r, float4 *o, float2 *ml, int warp,
                                               int lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = warp * 16 + h * 8 + lane / 4;
        float sum = quad_sum(r.sum[0][h]);
        if (lane % 4 == 0) ml[row] = make_float2(-r.point[0][h], sum);
#pragma unroll
        for (int n = 0; n < T::D / 8; n++) {
            int chunk = sums_chunk(row, n * 2 + (lane >> 1 & 1));
            float2 *to = (float2 *)(o + row * (T::D / 4) + chunk) + (lane & 1);
            *to = make_float2(r.o[0][n][2 * h], r.o[0][n][2 * h + 1]);
        }
    }
}

/* The block's sums of `rows` rows from its warps' (warp w has row group w % WM and range w / WM): to the output if they are all, else to scratch. */
template <class T>
__device__ __forceinline__ void join_warps(const struct CudaPaged &a, const Share &share, int rows,
                                           const float4 *o, const float2 *ml)
{
    constexpr int CHUNKS = T::D / 4;
    Scratch s = scratch_of(a, T::D, rows);
    for (int i = threadIdx.x; i < rows * CHUNKS; i += T::THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        float most = -NO_KEY;
#pragma unroll
        for (int w = 0; w < T::WK; w++) most = fmaxf(most, ml[row + w * T::ROWS].x);
        Joined j = {};
#pragma unroll
        for (int w = 0; w < T::WK; w++) {
            int at = row + w * T::ROWS;
            j.add(o[at * CHUNKS + sums_chunk(at, chunk)], ml[at].y, exp2_fast(ml[at].x - most));
        }
        if (share.n_items == 1) {
            write_out(a, T::D, share.head, row, chunk * 4, j);
            continue;
        }
        int64_t to = (int64_t)share.item * rows + row;
        __stcg(s.o + to * CHUNKS + chunk, j.o);
        if (chunk == 0) __stcg(s.ml + to, make_float2(most, j.sum));
    }
}

/* True in the last block of a head; the ticket is then ready for the next launch. */
__device__ __forceinline__ bool is_last(const struct CudaPaged &a, const Share &share)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        int *ticket = (int *)a.part + share.head;
        last = atomicAdd(ticket, 1) == share.n_items - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

/* Items `first`, first + step, ... of a row's 4 columns. Several loads are under way at a time: this is all that the
 * head's last block does after its own share. */
__device__ __forceinline__ float join_some(Joined &j, const Scratch &s, const Share &share,
                                           int64_t rows, int row, int chunk, int chunks, int first,
                                           int step)
{
    constexpr int AT_ONCE = 8;
    float top = -NO_KEY;
    for (; first < share.n_items; first += AT_ONCE * step) {
        float4 o[AT_ONCE];
        float2 ml[AT_ONCE];
        float most = top;
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = first + u * step;
            int64_t from = (share.first_item + min(i, share.n_items - 1)) * rows + row;
            ml[u] = __ldcg(s.ml + from);
            o[u] = __ldcg(s.o + from * chunks + chunk);
            if (i >= share.n_items) ml[u] = make_float2(-NO_KEY, 0), o[u] = make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) most = fmaxf(most, ml[u].x);
        Joined next = {};
        next.add(j.o, j.sum, exp2_fast(top - most));
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) next.add(o[u], ml[u].y, exp2_fast(ml[u].x - most));
        j = next;
        top = most;
    }
    return top;
}

/* By as many groups of threads as there are for the rows, each with every so many-th item. */
template <class T>
__device__ __forceinline__ void join_items(const struct CudaPaged &a, const Share &share, int rows,
                                           float4 *o, float2 *ml)
{
    constexpr int CHUNKS = T::D / 4;
    Scratch s = scratch_of(a, T::D, rows);
    int places = rows * CHUNKS, groups = max(T::THREADS / places, 1);
    for (int at = threadIdx.x; at < places * groups; at += T::THREADS) {
        int row = at % places / CHUNKS, chunk = at % CHUNKS;
        Joined j = {};
        float top = join_some(j, s, share, rows, row, chunk, CHUNKS, at / places, groups);
        if (groups == 1) {
            write_out(a, T::D, share.head, row, chunk * 4, j);
        } else {
            o[at] = j.o;
            ml[at] = make_float2(top, j.sum);
        }
    }
    if (groups == 1) return;
    __syncthreads();
    int at = threadIdx.x;
    if (at >= places) return;
    float most = -NO_KEY;
    for (int g = 0; g < groups; g++) most = fmaxf(most, ml[at + g * places].x);
    Joined j = {};
    for (int g = 0; g < groups; g++) {
        float2 x = ml[at + g * places];
        j.add(o[at + g * places], x.y, exp2_fast(x.x - most));
    }
    write_out(a, T::D, share.head, at / CHUNKS, at % CHUNKS * 4, j);
}

/* ==== Heads as they are ==== */

template <class T>
__device__ __forceinline__ void queries_load(const struct CudaPaged &a, int head, int rows,
                                             uint32_t to)
{
    int group = a.n_heads / a.n_kv_heads;
    for (int i = threadIdx.x; i < T::ROWS * (T::D / 8); i += T::THREADS) {
        int row = i / (T::D / 8), chunk = i % (T::D / 8);
        int64_t line = (int64_t)(row / group) * a.n_heads + head * group + row % group;
        copy_async(to + tile_offset<T::D>(row, chunk),
                   a.q + (row < rows ? line * T::D + chunk * 8 : 0), row < rows);
    }
}

/* ==== Heads turned on the way in ==== */

__device__ __forceinline__ void put_shared(uint32_t at, bf16 v)
{
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(at), "h"(__bfloat16_as_ushort(v)) : "memory");
}

__device__ __forceinline__ void put_shared(uint32_t at, uint4 v)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

/* Zeros behind the first `rows` rows of a tile of ROWS. */
template <class T, int ROWS>
__device__ __forceinline__ void zero_rows(uint32_t tile, int rows, int thread, int threads)
{
    for (int i = rows * (T::D / 8) + thread; i < ROWS * (T::D / 8); i += threads)
        put_shared(tile + tile_offset<T::D>(i / (T::D / 8), i % (T::D / 8)),
                   make_uint4(0, 0, 0, 0));
}

/* The row's own key, turned, and its value. */
template <class T> struct Own {
    bf16 key[T::D], value[T::D];
};

/* The query heads of a KV head to their tile, a warp a head; where `keeps`, also the row's own key and value to `own` and
 * to the page that keeps them. */
template <class T>
__device__ __forceinline__ void heads_turn(const struct CudaPaged &a, int head, int rows,
                                           bool keeps, uint32_t to, Own<T> *own)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bool brings = keeps && warp == T::WARPS - 1 && lane < T::D / 8;
    bf16 *page = NULL;
    uint4 value;
    if (keeps) {
        struct CudaPageSlot slot = a.slots[head];
        page = (bf16 *)(a.pool + slot.page * a.page_bytes) + slot.at * T::D;
    }
    if (brings) value = __ldcg((const uint4 *)(a.v + head * T::D) + lane);
    for (int row = warp; row < rows + keeps; row += T::WARPS)
        if (row < rows)
            turn_head(a.turn, a.q + (int64_t)(head * rows + row) * T::D, a.turn.q_norm, NULL, T::D,
                      [&](int i, float v) {
                          put_shared(to + tile_offset<T::D>(row, i / 8) + i % 8 * 2,
                                     __float2bfloat16_rn(v));
                      });
        else
            turn_head(a.turn, a.k + head * T::D, a.turn.k_norm,
                      a.turn.k_slow ? a.turn.k_slow + head * T::D : NULL, T::D,
                      [&](int i, float v) { own->key[i] = page[i] = __float2bfloat16_rn(v); });
    if (!brings) return;
    ((uint4 *)own->value)[lane] = value;
    ((uint4 *)(page + 64 * T::D))[lane] = value;
}

/* The same over pages of codes: heads are evened out, each warp with its part of `held`. */
template <class T>
__device__ __forceinline__ void heads_even(const struct CudaPaged &a, int head, int rows,
                                           bool keeps, uint32_t to, Own<T> *own, float *held)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float *balance = a.turn.balance ? a.turn.balance + head * T::D : NULL;
    EvenHead query = {balance, true, held + warp * T::D}, key = {balance, false, query.held};
    for (int row = warp; row < rows; row += T::WARPS)
        turn_even_head(a.turn, a.q + (int64_t)(head * rows + row) * T::D, a.turn.q_norm, NULL, T::D,
                       query, [&](int i, float v) {
                           put_shared(to + tile_offset<T::D>(row, i / 8) + i % 8 * 2,
                                      __float2bfloat16_rn(v));
                       });
    if (!keeps || warp != rows % T::WARPS) return;
    struct CudaPageSlot slot = a.slots[head];
    uint8_t *page = a.pool + slot.page * a.page_bytes;
    turn_even_head(a.turn, a.k + head * T::D, a.turn.k_norm,
                   a.turn.k_slow ? a.turn.k_slow + head * T::D : NULL, T::D, key,
                   [&](int i, float v) { own->key[i] = __float2bfloat16_rn(v); });
    uint4 k = make_uint4(0, 0, 0, 0), v = k;
    if (lane < T::D / 8) {
        k = ((const uint4 *)own->key)[lane];
        v = __ldcg((const uint4 *)(a.v + head * T::D) + lane);
        ((uint4 *)own->value)[lane] = v;
    }
    codes_put<T::BITS>(page, 0, slot.at, k, T::D);
    codes_put<T::BITS>(page, 1, slot.at, v, T::D);
}

/* The row's own key and value as the tile behind the head's pages. */
template <class T> __device__ __noinline__ void own_tile(const Own<T> *own, uint32_t to, int thread)
{
    zero_rows<T, 64>(to, 1, thread, 128);
    zero_rows<T, 64>(to + T::KV_BYTES, 1, thread, 128);
    if (thread < T::D / 8) {
        put_shared(to + tile_offset<T::D>(0, thread), ((const uint4 *)own->key)[thread]);
        put_shared(to + T::KV_BYTES + tile_offset<T::D>(0, thread),
                   ((const uint4 *)own->value)[thread]);
    }
}

/* ==== A tile of codes ==== */

/* 8 values of an own row's K or V. */
template <class T>
__device__ __forceinline__ uint4 own_chunk(const struct CudaPaged &a, const Own<T> *own, int head,
                                           int part, int row, int chunk)
{
    if (a.turn.angles) return ((const uint4 *)(part ? own->value : own->key))[chunk];
    const bf16 *from = (part ? a.v : a.k) + ((int64_t)row * a.n_kv_heads + head) * T::D;
    return __ldcg((const uint4 *)from + chunk);
}

/* The first `len` tokens of a page of codes as a tile of bf16, or the rows' own keys where stage is NULL; zeros behind. */
template <class T>
__device__ __forceinline__ void tile_make(const struct CudaPaged &a, const Own<T> *own, int head,
                                          const char *stage, int len, uint32_t to)
{
    constexpr int CHUNKS = T::D / 8;
    for (int i = threadIdx.x; i < 2 * 64 * CHUNKS; i += T::THREADS) {
        int part = i / (64 * CHUNKS), row = i / CHUNKS % 64, chunk = i % CHUNKS;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row < len)
            v = stage ? codes_get<T::BITS>(stage, part, row, chunk, T::D)
                      : own_chunk<T>(a, own, head, part, row, chunk);
        put_shared(to + part * T::KV_BYTES + tile_offset<T::D>(row, chunk), v);
    }
    __syncthreads();
}

/* ==== The kernel ==== */

template <class T>
__global__
__launch_bounds__(T::THREADS,
                  T::BLOCKS) void paged_attention_kernel(const __grid_constant__ struct CudaPaged a)
{
    extern __shared__ __align__(1024) char shared[];
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    Share share;
    bool turns = a.turn.angles; /* pages and tables are as they were before this step */
    static_assert(T::PP == 1, "the own key has a tile to itself");
    __shared__ __align__(16) Own<T> own;
    let_next_begin();
    if (!turns || a.chosen) wait_for_inputs();
    refs_prefetch(a);
    if (!share_of(a, share, lane)) return;
    int n_refs = share.pages;
    if (a.k && share.item == share.first_item + share.n_items - 1) share.end++;
    Sight sight = sight_of(a, share.head, lane);
    HeadPages pages = {a.refs + (int64_t)share.head * a.ref_stride,
                       n_refs,
                       share.head,
                       share.end,
                       sight.seen.front,
                       sight.seen.back - sight.seen.front};
    int n = (share.end - share.begin + T::PP - 1) / T::PP;

    /* Each 128 threads bring one page of a tile; they know its ref before its turn comes. */
    uint32_t q_tile = shared_address(shared), stages = q_tile + T::Q_BYTES;
    int slot = thread / 128, next = share.begin + slot;
    uint2 ref = pages.ref(a, next);
    auto load = [&](int it) {
        uint32_t to = stages + it % T::STAGES * T::STAGE_BYTES + slot * (64 * T::D * 2);
        if constexpr (T::CODES)
            codes_load<T>(a, pages, next, ref, to, thread);
        else if (turns && next == n_refs && next < share.end)
            own_tile<T>(&own, to, thread % 128);
        else
            page_load<T>(a, pages, next, ref, to, thread % 128);
        next += T::PP;
        ref = pages.ref(a, next);
    };
    int group = a.n_heads / a.n_kv_heads, rows = a.n_rows * group;
    if (!turns) queries_load<T>(a, share.head, rows, q_tile);
    int early = turns && share.end > n_refs ? n - 1 : n; /* tiles there before the row's own key */
    for (int it = 0; it < T::STAGES - 1; it++) {
        if (it < early) load(it);
        copy_commit();
    }
    if (turns) {
        zero_rows<T, T::ROWS>(q_tile, rows, thread, T::THREADS);
        wait_for_inputs();
        if constexpr (T::CODES)
            heads_even<T>(a, share.head, rows, early < n, q_tile, &own,
                          (float *)(shared + T::TILE_AT));
        else
            heads_turn<T>(a, share.head, rows, early < n, q_tile, &own);
        if (early < n && early < T::STAGES - 1) {
            __syncthreads();
            load(early);
        }
    }

    Sums<T> sums;
    sums_clear(sums);
    float scale2 = a.scale * LOG2_E, group_part = 1.0f / group;
    int row = warp % T::WM * 16, token = warp / T::WM * T::BN; /* of the tile */
    int at = sight.plain > 0 ? first_key(pages, sight, share.begin, lane) : 0;
    uint32_t q = q_tile + row * (T::D * 2);
    for (int it = 0; it < n; it++) {
        copy_wait<T::STAGES - 2>();
        __syncthreads();
        if (it + T::STAGES - 1 < n) load(it + T::STAGES - 1);
        copy_commit();
        int first = share.begin + it * T::PP, page = first + token / 64, in_page = token % 64;
        PageView view = page_view(a, pages, page);
        if (page == pages.front) at = sight.seen.before;
        int key = at + in_page;
        at += view.len;
        uint32_t k = stages + it % T::STAGES * T::STAGE_BYTES + token * (T::D * 2);
        if constexpr (T::CODES) {
            const char *stage = shared + T::Q_BYTES + it % T::STAGES * T::STAGE_BYTES;
            k = q_tile + T::TILE_AT + token * (T::D * 2);
            tile_make<T>(a, &own, share.head, page < n_refs ? stage : NULL, view.len,
                         q_tile + T::TILE_AT);
        }
        if (in_page >= view.len) continue;
        Logits<T> s;
        products_qk<T>(s, SharedQueries<T>(q, lane), k, lane);
        if (in_page + T::BN > view.len || view.hidden > 0 || view.bias != 0)
            mask<T>(s, a, view, row, in_page, group_part, view.bias / a.scale, lane);
        if (key < sight.plain && key + T::BN > a.sinks)
            hide<T>(s, a, sight, share.head, row, key, lane);
        raise<T>(sums, s, scale2);
        products_pv<T>(sums, sums.point, s, k + T::KV_BYTES, scale2, lane);
    }

    copy_wait<0>();
    __syncthreads();
    float2 *ml = (float2 *)shared;
    float4 *o = (float4 *)(shared + T::TILE_AT);
    sums_to_shared<T>(sums, o, ml, warp, lane);
    __syncthreads();
    join_warps<T>(a, share, rows, o, ml);
    if (share.n_items > 1 && is_last(a, share)) join_items<T>(a, share, rows, o, ml);
}

/* Less than LEAST_PAGES to an item would save less than the joining of more items costs. */
int cuda_paged_splits(int n_kv_heads, int max_refs, int n_sm)
{
    enum { LEAST_PAGES = 4 };
    int n = 2 * n_sm / (n_kv_heads > 0 ? n_kv_heads : 1);
    if (n > max_refs / LEAST_PAGES) n = max_refs / LEAST_PAGES;
    return n > 1 ? n : 1;
}

size_t cuda_paged_scratch(int n_rows, int n_heads, int head_dim, int n_splits)
{
    return TICKET_BYTES + (size_t)n_splits * n_rows * n_heads * (head_dim + 2) * sizeof(float);
}

template <class T> static cudaError_t launch(const struct CudaPaged *a, cudaStream_t s)
{
    cudaError_t err = cudaFuncSetAttribute(paged_attention_kernel<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, T::SHARED);
    if (err) return err;
    return launch_dependent<paged_attention_kernel<T>>((unsigned)(a->n_splits * a->n_kv_heads),
                                                       T::THREADS, T::SHARED, s, *a);
}

template <int D, int STAGES, int BLOCKS, int BITS>
static cudaError_t launch_rows(const struct CudaPaged *a, cudaStream_t s)
{
    int rows = a->n_rows * (a->n_heads / a->n_kv_heads);
    if (rows <= 16) return launch<PagedShape<D, 1, 1, STAGES, BLOCKS, BITS>>(a, s);
    if (rows <= 32) return launch<PagedShape<D, 2, 1, STAGES, BLOCKS, BITS>>(a, s);
    return launch<PagedShape<D, 4, 1, STAGES, BLOCKS, BITS>>(a, s);
}

template <int BITS> static cudaError_t launch_heads(const struct CudaPaged *a, cudaStream_t s)
{
    switch (a->head_dim) {
    case 64:
        return launch_rows<64, 4, 2, BITS>(a, s);
    case 96:
        return launch_rows<96, 4, 2, BITS>(a, s);
    case 128:
        return launch_rows<128, 3, 2, BITS>(a, s);
    case 256:
        return launch_rows<256, 2, 1, BITS>(a, s);
    default:
        return cudaErrorInvalidValue;
    }
}

cudaError_t cuda_paged_attention(const struct CudaPaged *a, cudaStream_t s)
{
    if (a->n_kv_heads < 1 || a->n_kv_heads > MAX_HEADS || a->n_heads % a->n_kv_heads)
        return cudaErrorInvalidValue;
    if (a->n_rows * (a->n_heads / a->n_kv_heads) > MAX_ROWS || a->n_splits < 1)
        return cudaErrorInvalidValue;
    if (a->n_rows < 1) return cudaSuccess;
    if (a->turn.angles && (a->n_rows > 1 || !a->k || !a->slots)) return cudaErrorInvalidValue;
    if (!a->window != !a->seen || (a->window && !a->n_tokens)) return cudaErrorInvalidValue;
    switch (a->format) {
    case CUDA_PAGE_Q8:
        return launch_heads<8>(a, s);
    case CUDA_PAGE_Q4:
        return launch_heads<4>(a, s);
    default:
        return launch_heads<16>(a, s);
    }
}

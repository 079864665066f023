/* paged.cuh - what attention over pages of numbers (paged.cu) and of codes (paged_codes.cu) have in common: which pages are a
 * block's, which of their tokens its rows see, and how the sums of warps and blocks are joined.
 *
 * The pages of all heads are dealt to the blocks of one fixed grid, which fits a CUDA graph: every block finds its share
 * from the heads' true numbers of pages, read from memory, and a head with more pages gets more blocks. A block's warps are
 * WM groups of 16 query rows (all query heads of a KV head in one tile) times WK ranges of a page's tokens; each keeps its
 * own sums, joined in shared memory at the end. The last block of a head to finish joins the head's blocks in their order.
 *
 * Where windows leave out pages between the sinks and the window, those count nowhere: the pages of a head are numbered as if
 * they were not there, and what is shared out are the pages that some row sees.
 */
#ifndef PCOMP_CUDA_PAGED_CUH
#define PCOMP_CUDA_PAGED_CUH

#include "attention.cuh"
#include "dependent.cuh"
#include "rope.cuh"

#include <limits.h>

static constexpr int MAX_HEADS = CUDA_HEADS, TICKET_BYTES = MAX_HEADS * 4;
static constexpr unsigned ALL = 0xffffffffu;

/* Blocks that a multiprocessor is to hold over pages of numbers, and of codes with few rows. */
static constexpr int NUMBER_BLOCKS = 2;
static constexpr int code_blocks(int head_dim)
{
    return head_dim > 128 ? 2 : 3;
}

/* Over pages of codes; of rows that cuda_paged_attention has judged. */
cudaError_t cuda_paged_codes(const struct CudaPaged *a, cudaStream_t s);

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

/* ==== A block begins ==== */

struct Work {
    Share share;
    Sight sight;
    HeadPages pages;
    float row_part; /* of the batch's rows, that a row of the tile is */
};

/* False when nothing is left for this block. The rows' own keys count as one page more of the head's last block. */
__device__ __forceinline__ bool work_begin(const struct CudaPaged &a, Work &w, int lane)
{
    Share &s = w.share;
    let_next_begin();
    /* before a step that turns heads, pages and tables are as they were */
    if (!a.turn.angles || a.chosen) wait_for_inputs();
    refs_prefetch(a);
    if (!share_of(a, s, lane)) return false;
    bool apart = a.apart[s.head / 32] >> s.head % 32 & 1;
    if (a.k && !apart && s.item == s.first_item + s.n_items - 1) s.end++;
    w.sight = sight_of(a, s.head, lane);
    w.pages = {a.refs + (int64_t)s.head * a.ref_stride, s.pages, s.head, s.end, w.sight.seen.front,
               w.sight.seen.back - w.sight.seen.front};
    w.row_part = 1.0f / (a.n_heads / a.n_kv_heads);
    return true;
}

/* ==== A warp's 16 rows over its tokens of a tile ==== */

template <class T>
__device__ __forceinline__ void mask(Logits<T> &s, const struct CudaPaged &a, const PageView &v,
                                     int row, int token, float row_part, float bias, int lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = (int)((row + h * 8 + lane / 4 + 0.5f) * row_part); /* of the batch */
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

/* What a warp's rows, the first of them row `row` of the tile, do not see of a page's tokens from `token` on goes, the page's
 * bias comes. key: the first of these tokens, counted from the head's first key. */
template <class T>
__device__ __forceinline__ void see(Logits<T> &s, const struct CudaPaged &a, const Work &w,
                                    const PageView &v, int row, int token, int key, int lane)
{
    if (token + T::BN > v.len || v.hidden > 0 || v.bias != 0)
        mask<T>(s, a, v, row, token, w.row_part, v.bias / a.scale, lane);
    if (key < w.sight.plain && key + T::BN > a.sinks)
        hide<T>(s, a, w.sight, w.share.head, row, key, lane);
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

/* top: what the sums were taken against. */
__device__ __forceinline__ void write_out(const struct CudaPaged &a, int head_dim, int head,
                                          int row, int column, const Joined &j, float top)
{
    int group = a.n_heads / a.n_kv_heads, r = row / group;
    int64_t at = (int64_t)r * a.n_heads + head * group + row % group;
    float part = j.sum > 0 ? 1 / j.sum : 0;
    if (a.part_out) {
        *(float4 *)(a.part_out + at * head_dim + column) =
            make_float4(j.o.x * part, j.o.y * part, j.o.z * part, j.o.w * part);
        if (column == 0) a.part_lse[at] = j.sum > 0 ? top * LN_2 + logf(j.sum) : -INFINITY;
        return;
    }
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
            write_out(a, T::D, share.head, row, chunk * 4, j, most);
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
            write_out(a, T::D, share.head, row, chunk * 4, j, top);
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
    write_out(a, T::D, share.head, at / CHUNKS, at % CHUNKS * 4, j, most);
}

/* ==== Heads on the way in ==== */

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

#endif

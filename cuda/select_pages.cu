/* select_pages.cu - the pages that one row reads of each KV head: eviction/page_select.c on the device.
 *
 * Several blocks score the pages of a head, which takes as long as their index takes to come from memory; the last of
 * them to finish chooses. The index holds bf16 as the pages do: the least and the largest of bf16 values are bf16 values,
 * and half the bytes are read. The threshold is found by radix, a byte of the key at a time, in 256 bins that add up
 * whole numbers, 1 a page or its share of the estimated attention, so that the outcome does not hang on the order of
 * threads (threshold.cuh). What is written is a page table for attention, compact and in order.
 */
#include "dependent.cuh"
#include "kernels.h"
#include "rope.cuh"
#include "threshold.cuh"

static constexpr int AT_ONCE = 4; /* pages whose index is under way for a group of lanes */
static constexpr int SHARED_MOST = 48 << 10;
static constexpr float WHOLE = 1 << 30; /* the heaviest page's share */

/* ==== What is to be chosen from ==== */

struct HeadPages {
    const struct CudaPageRef *refs;
    float *score;
    int n, n_open;  /* pages; those at the end that still fill */
    int first, end; /* those between are chosen from; first == n: all are read */
};

__device__ __forceinline__ HeadPages pages_of(const struct CudaPageSelect &a, int head)
{
    HeadPages p;
    p.refs = a.refs + (int64_t)head * a.ref_stride;
    p.score = a.score + (int64_t)head * a.ref_stride;
    p.n = __ldg(a.n_refs + head);
    p.n_open = 0;
    while (p.n_open < p.n && __ldg(&p.refs[p.n - 1 - p.n_open].len) < CUDA_PAGE_TOKENS) p.n_open++;
    p.end = max(p.n - max(a.last, p.n_open), 0);
    int between = p.end - a.first;
    bool all = a.whole[head / 32] >> head % 32 & 1 || between <= 0 ||
               (a.mass > 0 ? a.mass >= 1 : between <= a.pages);
    p.first = all ? p.n : a.first;
    return p;
}

/* ==== Scores ==== */

/* The block's share of the index on its way into L2 while the query is still being made. */
__device__ __forceinline__ void index_prefetch(const struct CudaPageSelect &a, const HeadPages &p,
                                               int begin, int end)
{
    for (int i = begin + threadIdx.x; i < end; i += THREADS) {
        const uint8_t *entry = a.index + (size_t)__ldg(&p.refs[i].page) * a.index_bytes;
        for (size_t at = 0; at < a.index_bytes; at += 128)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(entry + at));
    }
}

/* A row of f32 for each warp that has a head to even out. */
__host__ __device__ __forceinline__ int held_rows(const struct CudaPageSelect &a)
{
    int group = a.n_heads / a.n_kv_heads;
    return !a.turn.even ? 0 : group < WARPS ? group : WARPS;
}

/* The query heads of the KV head, turned, as bf16: what attention itself makes of them. */
__device__ __forceinline__ void queries_turn(const struct CudaPageSelect &a, int head, bf16 *to)
{
    int group = a.n_heads / a.n_kv_heads, dim = a.head_dim, warp = threadIdx.x / 32;
    const bf16 *q = a.q + (int64_t)head * group * dim;
    if (!a.turn.angles) {
        for (int i = threadIdx.x; i < group * dim / 8; i += THREADS)
            ((uint4 *)to)[i] = __ldcg((const uint4 *)q + i);
        return;
    }
    float *held = (float *)(to + group * dim) + warp * dim;
    EvenHead even = {a.turn.balance ? a.turn.balance + head * dim : NULL, true, held};
    for (int g = warp; g < group; g += WARPS) {
        auto store = [&](int i, bf16 v) { to[g * dim + i] = v; };
        if (a.turn.even)
            turn_even_head(a.turn, q + g * dim, a.turn.q_norm, NULL, dim, even, store);
        else
            turn_head(a.turn, q + g * dim, a.turn.q_norm, NULL, dim, store);
    }
}

__device__ __forceinline__ void widen(uint4 x, float *out)
{
    const uint32_t *word = &x.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(word[i] << 16);
        out[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}

/* A lane's 8 channels of a page's index. */
template <bool BOUND> struct Entry {
    uint4 low, high; /* the mean; or the least and the largest value */

    __device__ __forceinline__ void load(const struct CudaPageSelect &a, uint32_t page, int lane)
    {
        const uint8_t *at = a.index + (size_t)page * a.index_bytes;
        low = __ldg((const uint4 *)at + lane);
        if (BOUND) high = __ldg((const uint4 *)(at + a.head_dim * sizeof(bf16)) + lane);
    }
    __device__ __forceinline__ float score(const float *q) const
    {
        float x[8], y[8], sum = 0;
        widen(low, x);
        if (BOUND) widen(high, y);
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum = BOUND ? sum + fmaxf(q[i] * x[i], q[i] * y[i]) : fmaf(q[i], x[i], sum);
        return sum;
    }
};

/* Pages [begin, end), each by `lanes` neighbouring lanes. */
template <bool BOUND>
__device__ __forceinline__ void score_pages(const struct CudaPageSelect &a, const HeadPages &p,
                                            int begin, int end, const bf16 *queries)
{
    int lanes = a.lanes, lane = threadIdx.x % lanes, slot = threadIdx.x / lanes,
        step = THREADS / lanes;
    int group = a.n_heads / a.n_kv_heads;
    bool has = lane * 8 < a.head_dim;
    for (int first = begin; first < end; first += AT_ONCE * step) { /* the same for all threads */
        int base = first + slot;
        Entry<BOUND> entry[AT_ONCE] = {};
        float best[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = base + u * step;
            best[u] = -INFINITY;
            if (has && i < end) entry[u].load(a, __ldg(&p.refs[i].page), lane);
        }
        for (int g = 0; g < group; g++) {
            float q[8] = {};
            if (has) widen(((const uint4 *)(queries + g * a.head_dim))[lane], q);
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                float sum = entry[u].score(q);
                for (int o = lanes / 2; o; o /= 2) sum += __shfl_xor_sync(ALL, sum, o);
                best[u] = fmaxf(best[u], sum);
            }
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = base + u * step;
            if (lane == 0 && i < end)
                __stcg(p.score + i, best[u] * a.scale + __ldg(&p.refs[i].bias));
        }
    }
}

/* True in the last block of a head; the ticket is then ready for the next launch. */
__device__ __forceinline__ bool is_last(const struct CudaPageSelect &a, int head)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(a.tickets + head, 1) == (int)gridDim.x - 1;
        if (last) a.tickets[head] = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

/* ==== Choosing ==== */

/* What pages are ordered by and what each brings of what is wanted. */
struct Order {
    HeadPages p;
    bool by_mass;
    float most; /* by mass: of all scored pages */

    __device__ __forceinline__ int begin() const { return p.first; }
    __device__ __forceinline__ int end() const { return p.end; }
    __device__ __forceinline__ bool has(int) const { return true; }
    __device__ __forceinline__ float value(int i) const
    {
        float score = __ldcg(p.score + i);
        return by_mass ? score + logf((float)__ldg(&p.refs[i].len)) : score;
    }
    __device__ __forceinline__ uint32_t brings(float value) const
    {
        if (!by_mass) return 1;
        float part = value == most ? 1 : expf(value - most);
        return part > 0 ? (uint32_t)(part * WHOLE) : 0;
    }
};

/* What the pages between must bring: a number, or what those always read leave open of the share. */
__device__ Weight wanted(const struct CudaPageSelect &a, struct Order *o)
{
    if (!o->by_mass) return (Weight)a.pages;
    const HeadPages &p = o->p;
    float most = -INFINITY;
    for (int i = threadIdx.x; i < p.n - p.n_open; i += THREADS) most = fmaxf(most, o->value(i));
    o->most = block_max(most);
    Weight mine = 0, mine_sure = 0, all, sure;
    for (int i = threadIdx.x; i < p.n - p.n_open; i += THREADS) {
        Weight share = o->brings(o->value(i));
        mine += share;
        if (i < p.first || i >= p.end) mine_sure += share;
    }
    block_scan(mine, &all);
    block_scan(mine_sure, &sure);
    Weight want = (Weight)ceil((double)a.mass * (double)all);
    return want > sure ? want - sure : 0;
}

/* The chosen pages in order; of those at the threshold the first until they bring what is left. */
__device__ void write_pages(const struct CudaPageSelect &a, const struct Order &o,
                            struct Threshold t, int head)
{
    struct CudaPageRef *out = a.out + (int64_t)head * a.ref_stride;
    int n_equal = 0, n_out = 0, tokens = 0, all;
    for (int base = 0; base < o.p.n; base += THREADS) {
        int i = base + threadIdx.x;
        bool there = i < o.p.n, between = there && i >= o.p.first && i < o.p.end;
        float value = between ? o.value(i) : 0;
        uint32_t key = order_key(value);
        bool equal = between && key == t.key;
        int rank = n_equal + block_scan((int)equal, &all);
        n_equal += all;
        bool taken = there && (!between || key > t.key ||
                               (equal && (Weight)rank * o.brings(value) < t.left));
        int at = n_out + block_scan((int)taken, &all);
        n_out += all;
        if (!taken) continue;
        struct CudaPageRef ref = o.p.refs[i];
        out[at] = ref;
        if (a.idx) a.idx[(int64_t)head * a.ref_stride + at] = i;
        tokens += (int)ref.len;
    }
    block_scan(tokens, &all);
    if (threadIdx.x) return;
    a.n_out[head] = n_out;
    a.n_tokens[head] = all;
    if (a.idx) a.kept[head] = {n_out, o.p.n};
    if (!a.counts || a.whole[head / 32] >> head % 32 & 1) return;
    atomicAdd(a.counts, (Weight)n_out);
    atomicAdd(a.counts + 1, (Weight)o.p.n);
}

/* ==== The kernel ==== */

template <bool BOUND>
__global__
__launch_bounds__(THREADS) void select_pages_kernel(const __grid_constant__ struct CudaPageSelect a)
{
    extern __shared__ __align__(16) bf16 queries[]; /* [group, head_dim], then held_rows */
    int head = blockIdx.y;
    HeadPages p = pages_of(a, head);
    bool all = p.first == p.n;
    int n = p.n - p.n_open, begin = (int)((int64_t)n * blockIdx.x / gridDim.x),
        end = (int)((int64_t)n * (blockIdx.x + 1) / gridDim.x);
    let_next_begin();
    if (!all) index_prefetch(a, p, begin, end);
    wait_for_inputs();
    struct Order o = {p, a.mass > 0, 0};
    if (all) {
        if (blockIdx.x) return;
        for (int i = threadIdx.x; a.idx && i < n; i += THREADS)
            p.score[i] = 0; /* a tier asks for them all the same */
        write_pages(a, o, {~0u, 0}, head);
        return;
    }
    queries_turn(a, head, queries);
    __syncthreads();
    score_pages<BOUND>(a, p, begin, end, queries);
    if (is_last(a, head)) write_pages(a, o, threshold(o, wanted(a, &o)), head);
}

/* Fewer pages to a block would save less than the joining of more blocks costs. */
int cuda_select_blocks(int n_kv_heads, int max_refs, int n_sm)
{
    enum { LEAST_PAGES = 64 };
    int n = n_sm / (n_kv_heads > 0 ? n_kv_heads : 1);
    if (n > max_refs / LEAST_PAGES) n = max_refs / LEAST_PAGES;
    return n > 1 ? n : 1;
}

cudaError_t cuda_select_pages(const struct CudaPageSelect *a, cudaStream_t s)
{
    struct CudaPageSelect args = *a;
    if (a->n_kv_heads < 1 || a->n_kv_heads > CUDA_HEADS || a->n_heads % a->n_kv_heads ||
        a->head_dim % 8 || a->head_dim > 256 || a->n_blocks < 1 || a->index_bytes % 16)
        return cudaErrorInvalidValue;
    size_t shared = (size_t)(a->n_heads / a->n_kv_heads) * a->head_dim * sizeof(bf16) +
                    (size_t)held_rows(*a) * a->head_dim * sizeof(float);
    if (shared > SHARED_MOST) return cudaErrorInvalidValue;
    for (args.lanes = 1; args.lanes * 8 < a->head_dim;) args.lanes *= 2;
    dim3 grid((unsigned)a->n_blocks, (unsigned)a->n_kv_heads);
    if (a->bound)
        return launch_dependent<select_pages_kernel<true>>(grid, THREADS, shared, s, args);
    return launch_dependent<select_pages_kernel<false>>(grid, THREADS, shared, s, args);
}

/* place_pages.cu - page tables of choices that stand, and of chosen pages that lie below: eviction/residency.c on the device.
 *
 * A block takes a KV head. What its choice lacks is given slots, whose contents a kernel that follows copies from the host's
 * memory; the host itself has no part in it. Pages for which there is no slot are read where they lie, or are late.
 */
#include "dependent.cuh"
#include "kernels.h"
#include "threshold.cuh"

static constexpr float WHOLE = 1 << 30;

/* ==== The choice of a head ==== */

struct Head {
    const struct CudaPageRef *refs;
    int *idx; /* [n] */
    const float *score;
    int head, n, n_refs, n_scored;
    bool whole; /* all pages are read, and none lies below */
};

__device__ __forceinline__ Head head_of(const struct CudaPagePlace &a, int head)
{
    Head h;
    h.refs = a.refs + (int64_t)head * a.ref_stride;
    h.idx = a.idx + (int64_t)head * a.ref_stride;
    h.score = a.score + (int64_t)head * a.ref_stride;
    h.head = head;
    h.n = a.kept[head].n;
    h.n_refs = h.n_scored = a.n_refs[head];
    while (h.n_scored > 0 && h.refs[h.n_scored - 1].len < CUDA_PAGE_TOKENS) h.n_scored--;
    h.whole = a.whole[head / 32] >> head % 32 & 1;
    return h;
}

/* Pages from `first` on join the choice. */
__device__ void add_pages(const struct CudaPagePlace &a, Head &h, int first)
{
    int n = h.n;
    for (int i = first + threadIdx.x; i < h.n_refs; i += THREADS) h.idx[n + i - first] = i;
    h.n = n + h.n_refs - first;
    __syncthreads();
    if (threadIdx.x == 0) a.kept[h.head] = {h.n, h.n_refs};
}

/* ==== What is to come near ==== */

/* A head's part of the tier. */
struct Slots {
    int *slot_of, *page_at, *take, *give, *held;
    uint32_t *share;
    struct CudaPageCopy *copies;
    uint32_t first;
};

__device__ __forceinline__ Slots slots_of(const struct CudaSlots &t, int head)
{
    int64_t slot = (int64_t)head * t.slots, page = (int64_t)head * t.max_refs;
    return {t.slot_of + page, t.page_at + slot, t.take + slot,   t.give + slot,
            t.held + slot,    t.share + page,   t.copies + slot, t.first[head]};
}

/* Chosen pages without a slot, by score; those that still fill have none and come first. */
struct Missing {
    const Head &h;
    const Slots &s;
    uint32_t n_near;
    __device__ __forceinline__ int begin() const { return 0; }
    __device__ __forceinline__ int end() const { return h.n; }
    __device__ __forceinline__ bool has(int i) const
    {
        return h.refs[h.idx[i]].page >= n_near && s.slot_of[h.idx[i]] < 0;
    }
    __device__ __forceinline__ float value(int i) const
    {
        return h.idx[i] < h.n_scored ? h.score[h.idx[i]] : INFINITY;
    }
    __device__ __forceinline__ uint32_t brings(float) const { return 1; }
    __device__ __forceinline__ int item(int i) const { return h.idx[i]; }
};

/* Slots without a chosen page, the worst page's first. */
struct Spare {
    const Head &h;
    const Slots &s;
    int n;
    __device__ __forceinline__ int begin() const { return 0; }
    __device__ __forceinline__ int end() const { return n; }
    __device__ __forceinline__ bool has(int i) const { return !s.held[i]; }
    __device__ __forceinline__ float value(int i) const
    {
        int page = s.page_at[i];
        if (page < 0) return INFINITY;
        float score = page < h.n_scored ? h.score[page] : INFINITY;
        return isnan(score) ? INFINITY : -score;
    }
    __device__ __forceinline__ uint32_t brings(float) const { return 1; }
    __device__ __forceinline__ int item(int i) const { return i; }
};

/* The n highest of at least as many items, in order; of equals the first. */
template <class O> __device__ void highest(const O &o, int n, int *out)
{
    struct Threshold t = threshold(o, (Weight)n);
    int n_equal = 0, n_out = 0, all;
    for (int base = o.begin(); base < o.end(); base += THREADS) {
        int i = base + (int)threadIdx.x;
        bool there = i < o.end() && o.has(i);
        uint32_t key = there ? order_key(o.value(i)) : 0;
        bool equal = there && key == t.key;
        int rank = n_equal + block_scan((int)equal, &all);
        n_equal += all;
        bool taken = there && (key > t.key || (equal && (Weight)rank < t.left));
        int at = n_out + block_scan((int)taken, &all);
        n_out += all;
        if (taken) out[at] = o.item(i);
    }
    __syncthreads();
}

/* How many chosen pages lie below and how many of these have no slot; the slots of the others are held. */
__device__ void find_missing(const struct CudaSlots &t, const Head &h, const Slots &s, int *wanted,
                             int *missed, int *spare)
{
    int mine = 0, lacks = 0, free_slots = 0;
    for (int i = threadIdx.x; i < t.slots; i += THREADS) s.held[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < h.n; i += THREADS) {
        if (h.refs[h.idx[i]].page < t.n_near) continue;
        int slot = s.slot_of[h.idx[i]];
        mine++;
        lacks += slot < 0;
        if (slot >= 0) s.held[slot] = 1;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < t.slots; i += THREADS) free_slots += !s.held[i];
    block_scan(mine, wanted);
    block_scan(lacks, missed);
    block_scan(free_slots, spare);
}

__device__ void fetch(const struct CudaSlots &t, const Head &h)
{
    Slots s = slots_of(t, h.head);
    int wanted, missed, spare;
    find_missing(t, h, s, &wanted, &missed, &spare);
    int n = min(missed, spare);
    if (threadIdx.x == 0) {
        t.n_copies[h.head] = n;
        atomicAdd(t.counts + CUDA_TIER_WANTED, (Weight)wanted);
        atomicAdd(t.counts + CUDA_TIER_MISSED, (Weight)missed);
        atomicAdd(t.counts + CUDA_TIER_FETCHED, (Weight)n);
    }
    if (n == 0) return;
    highest(Missing{h, s, t.n_near}, n, s.take);
    highest(Spare{h, s, t.slots}, n, s.give);
    for (int i = threadIdx.x; i < n; i += THREADS) {
        int page = s.take[i], slot = s.give[i];
        if (s.page_at[slot] >= 0) s.slot_of[s.page_at[slot]] = -1;
        s.page_at[slot] = page;
        s.slot_of[page] = slot;
        s.copies[i] = {h.refs[page].page, s.first + (uint32_t)slot};
    }
    __syncthreads();
}

/* ==== What the host is asked for ==== */

/* Whether a chosen page lies below and is read there by the row, or copied from there for it. */
__device__ __forceinline__ bool is_asked(const struct CudaPagePlace &a, const Head &h,
                                         const Slots &s, int page, bool *stays)
{
    int slot = s.slot_of[page];
    *stays = slot < 0;
    if (h.refs[page].page < a.tier.n_near) return false;
    return slot < 0 ? !a.tier.late : !a.again && !s.held[slot];
}

__device__ void ask(const struct CudaPagePlace &a, const Head &h)
{
    const struct CudaAsks &to = a.tier.asks;
    int64_t first = (int64_t)h.head * a.tier.max_refs;
    Slots s = slots_of(a.tier, h.head);
    int n = h.whole ? 0 : h.n_refs, n_asked = 0, all;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        uint32_t page = h.refs[i].page;
        to.page[first + i] = page < a.tier.n_near ? UINT32_MAX : page - a.tier.n_near;
        to.score[first + i] = i < h.n_scored && !a.again ? h.score[i] : INFINITY;
    }
    for (int base = 0; base < (h.whole ? 0 : h.n); base += THREADS) {
        int i = base + (int)threadIdx.x;
        bool stays = false, asked = i < h.n && is_asked(a, h, s, h.idx[i], &stays);
        int at = n_asked + block_scan((int)asked, &all);
        n_asked += all;
        if (asked) to.asked[first + at] = {h.idx[i], stays};
    }
    if (threadIdx.x) return;
    to.n[h.head] = n;
    to.n_asked[h.head] = n_asked;
}

/* ==== What late pages would have been worth ==== */

__device__ __forceinline__ float weight(const Head &h, int i, float most)
{
    int page = h.idx[i];
    if (page >= h.n_scored) return 0;
    float w = expf(h.score[page] - most) * (float)h.refs[page].len;
    return w > 0 ? w : 0; /* what is no number weighs nothing */
}

__device__ void weigh(const Head &h, uint32_t *share)
{
    float most = -INFINITY, sum = 0, all;
    for (int i = threadIdx.x; i < h.n; i += THREADS)
        if (h.idx[i] < h.n_scored) most = fmaxf(most, h.score[h.idx[i]]);
    most = block_max(most);
    for (int i = threadIdx.x; i < h.n; i += THREADS) sum += weight(h, i, most);
    block_scan(sum, &all);
    for (int i = threadIdx.x; i < h.n; i += THREADS)
        share[i] = all > 0 ? (uint32_t)(weight(h, i, most) / all * WHOLE) : 0;
    __syncthreads();
}

/* ==== The table ==== */

/* Where a chosen page is read; len 0: it is late. */
__device__ __forceinline__ struct CudaPageRef place(const struct CudaPagePlace &a, const Head &h,
                                                    int i, bool *below)
{
    const struct CudaSlots &t = a.tier;
    struct CudaPageRef ref = h.refs[h.idx[i]];
    *below = t.slot_of && !h.whole && ref.page >= t.n_near;
    if (!*below) return ref;
    int slot = t.slot_of[(int64_t)h.head * t.max_refs + h.idx[i]];
    if (slot >= 0) {
        ref.page = t.first[h.head] + (uint32_t)slot;
        *below = false;
    } else if (t.late) {
        ref.len = 0;
    }
    return ref;
}

__device__ void count(const struct CudaPagePlace &a, const Head &h, int n_out, int late,
                      int through, Weight share)
{
    if (h.whole) return;
    atomicAdd(a.counts, (Weight)n_out);
    atomicAdd(a.counts + 1, (Weight)h.n_refs);
    if (!a.tier.slot_of) return;
    atomicAdd(a.tier.counts + CUDA_TIER_LATE, (Weight)late);
    atomicAdd(a.tier.counts + CUDA_TIER_THROUGH, (Weight)through);
    atomicAdd(a.tier.counts + CUDA_TIER_SHARE, share);
    atomicAdd(a.tier.counts + CUDA_TIER_HEADS, (Weight)1);
}

__device__ void write_table(const struct CudaPagePlace &a, const Head &h)
{
    struct CudaPageRef *out = a.out + (int64_t)h.head * a.ref_stride;
    int n_out = 0, tokens = 0, late = 0, through = 0, all, n_late, n_through;
    Weight share = 0, late_share;
    for (int base = 0; base < h.n; base += THREADS) {
        int i = base + (int)threadIdx.x;
        bool below = false, there = i < h.n;
        struct CudaPageRef ref = {0, 0, 0};
        if (there) ref = place(a, h, i, &below);
        bool taken = there && ref.len > 0;
        int at = n_out + block_scan((int)taken, &all);
        n_out += all;
        late += there && !taken;
        through += taken && below;
        if (there && !taken) share += a.tier.share[(int64_t)h.head * a.tier.max_refs + i];
        if (!taken) continue;
        out[at] = ref;
        tokens += (int)ref.len;
    }
    block_scan(tokens, &all);
    block_scan(late, &n_late);
    block_scan(through, &n_through);
    block_scan(share, &late_share);
    if (threadIdx.x) return;
    a.n_out[h.head] = n_out;
    a.n_tokens[h.head] = all;
    count(a, h, n_out, n_late, n_through, late_share);
}

__global__
__launch_bounds__(THREADS) void place_pages_kernel(const __grid_constant__ struct CudaPagePlace a)
{
    let_next_begin();
    wait_for_inputs();
    Head h = head_of(a, blockIdx.x);
    bool tiered = a.tier.slot_of && !a.again;
    int seen = h.whole ? 0 : a.kept[h.head].seen;
    if (h.whole) h.n = 0;
    __syncthreads();
    if (h.whole || a.again) add_pages(a, h, seen);
    if (tiered && threadIdx.x == 0) a.tier.n_copies[h.head] = 0;
    if (tiered && !h.whole && a.tier.late) weigh(h, slots_of(a.tier, h.head).share);
    /* a row that does not wait sees what was there before */
    if (a.tier.late) write_table(a, h);
    if (tiered && !h.whole) fetch(a.tier, h);
    if (!a.tier.late) write_table(a, h);
    if (a.tier.asks.page) ask(a, h);
}

cudaError_t cuda_place_pages(const struct CudaPagePlace *a, cudaStream_t s)
{
    if (a->n_kv_heads < 1 || a->n_kv_heads > CUDA_HEADS) return cudaErrorInvalidValue;
    return launch_dependent<place_pages_kernel>((unsigned)a->n_kv_heads, THREADS, 0, s, *a);
}

/* ==== Copies ==== */

__global__ void copy_pages_kernel(const __grid_constant__ struct CudaCopies a)
{
    let_next_begin();
    wait_for_inputs();
    int head = blockIdx.y, n = a.n_copies[head], per = (int)(a.page_bytes / sizeof(uint4));
    for (int c = blockIdx.x; c < n; c += gridDim.x) {
        struct CudaPageCopy copy = a.copies[(int64_t)head * a.slots + c];
        const uint4 *from = (const uint4 *)cuda_page(a.near, a.below, copy.from, a.page_bytes);
        uint4 *to = (uint4 *)cuda_page(a.near, a.below, copy.to, a.page_bytes);
#pragma unroll 8
        for (int i = threadIdx.x; i < per; i += blockDim.x) to[i] = from[i];
    }
}

cudaError_t cuda_copy_pages(const struct CudaCopies *a, cudaStream_t s)
{
    if (a->page_bytes % sizeof(uint4)) return cudaErrorInvalidValue;
    dim3 grid((unsigned)a->n_blocks, (unsigned)a->n_kv_heads);
    if (!a->apart) return launch_dependent<copy_pages_kernel>(grid, 256, 0, s, *a);
    copy_pages_kernel<<<grid, 256, 0, s>>>(*a);
    return cudaGetLastError();
}

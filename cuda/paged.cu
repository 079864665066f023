/* paged.cu - attention of few rows over ragged pages: bound by how fast the pages come from memory. See paged.cuh for how the
 * work is dealt out and joined; pages of codes are the work of paged_codes.cu.
 *
 * A block brings in STAGES tiles of PP pages ahead of use.
 */
#include "paged.cuh"

static constexpr int MAX_ROWS = 64; /* of a KV head's tile */

template <int D_, int WM_, int PP_, int STAGES_, int BLOCKS_> struct PagedShape {
    using Reference = LowPoint;
    static constexpr int D = D_, WM = WM_, PP = PP_, STAGES = STAGES_, BLOCKS = BLOCKS_;
    static constexpr int WARPS = 4 * PP, THREADS = WARPS * 32, WK = WARPS / WM;
    static constexpr int ROWS = 16 * WM; /* of the query tile */
    static constexpr int RM = 1;         /* a warp's rows are 16 */
    static constexpr int BN = 16 * WM;   /* a warp's tokens of a tile */
    static constexpr int TILE = 64 * PP; /* tokens */
    static constexpr int KV_BYTES = TILE * D * 2;
    static constexpr int STAGE_BYTES =
        2 * KV_BYTES; /* and just what the warps' sums take at the end */
    static constexpr int Q_BYTES = ROWS * D * 2;
    static constexpr int SHARED = Q_BYTES + STAGES * STAGE_BYTES;
    static_assert(WARPS * 16 * D * 4 <= STAGE_BYTES, "the sums fit a stage");
    static_assert(WARPS * 16 * 2 * 4 <= Q_BYTES, "reference points and sums fit the query tile");
};

/* ==== The tokens of a tile ==== */

template <class T>
__device__ __forceinline__ void page_load(const struct CudaPaged &a, const HeadPages &h, int page,
                                          uint2 ref, uint32_t to, int thread)
{
    const bf16 *k = (const bf16 *)cuda_page(a.pool, a.below, ref.x, a.page_bytes),
               *v = k + 64 * T::D;
    int64_t pitch = T::D;
    if (page >= h.n_refs) {
        k = a.k + h.head * T::D;
        v = a.v + h.head * T::D;
        pitch = (int64_t)a.n_kv_heads * T::D;
    }
    tile_load<T::D, 64, 128>(to, k, pitch, ref.y, thread);
    tile_load<T::D, 64, 128>(to + T::KV_BYTES, v, pitch, ref.y, thread);
}

/* ==== Sums ==== */

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

/* ==== Heads turned on the way in ==== */

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

/* ==== The kernel ==== */

template <class T>
__global__
__launch_bounds__(T::THREADS,
                  T::BLOCKS) void paged_attention_kernel(const __grid_constant__ struct CudaPaged a)
{
    extern __shared__ __align__(1024) char shared[];
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    Work w;
    bool turns = a.turn.angles;
    static_assert(T::PP == 1, "the own key has a tile to itself");
    __shared__ __align__(16) Own<T> own;
    if (!work_begin(a, w, lane)) return;
    const Share &share = w.share;
    const Sight &sight = w.sight;
    const HeadPages &pages = w.pages;
    int n_refs = pages.n_refs, n = (share.end - share.begin + T::PP - 1) / T::PP;

    /* Each 128 threads bring one page of a tile; they know its ref before its turn comes. */
    uint32_t q_tile = shared_address(shared), stages = q_tile + T::Q_BYTES;
    int slot = thread / 128, next = share.begin + slot;
    uint2 ref = pages.ref(a, next);
    auto load = [&](int it) {
        uint32_t to = stages + it % T::STAGES * T::STAGE_BYTES + slot * (64 * T::D * 2);
        if (turns && next == n_refs && next < share.end)
            own_tile<T>(&own, to, thread % 128);
        else
            page_load<T>(a, pages, next, ref, to, thread % 128);
        next += T::PP;
        ref = pages.ref(a, next);
    };
    int rows = a.n_rows * (a.n_heads / a.n_kv_heads);
    if (!turns) queries_load<T>(a, share.head, rows, q_tile);
    int early = turns && share.end > n_refs ? n - 1 : n; /* tiles there before the row's own key */
    for (int it = 0; it < T::STAGES - 1; it++) {
        if (it < early) load(it);
        copy_commit();
    }
    if (turns) {
        zero_rows<T, T::ROWS>(q_tile, rows, thread, T::THREADS);
        wait_for_inputs();
        heads_turn<T>(a, share.head, rows, early < n, q_tile, &own);
        if (early < n && early < T::STAGES - 1) {
            __syncthreads();
            load(early);
        }
    }

    Sums<T> sums;
    sums_clear(sums);
    float scale2 = a.scale * LOG2_E;
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
        if (in_page >= view.len) continue;
        Logits<T> s;
        products_qk<T>(s, SharedQueries<T>(q, lane), k, lane);
        see<T>(s, a, w, view, row, in_page, key, lane);
        raise<T>(sums, s, scale2);
        products_pv<T>(sums, sums.point, s, k + T::KV_BYTES, scale2, lane);
    }

    copy_wait<0>();
    __syncthreads();
    float2 *ml = (float2 *)shared;
    float4 *o = (float4 *)(shared + T::Q_BYTES);
    sums_to_shared<T>(sums, o, ml, warp, lane);
    __syncthreads();
    join_warps<T>(a, share, rows, o, ml);
    if (share.n_items > 1 && is_last(a, share)) join_items<T>(a, share, rows, o, ml);
}

/* Less than LEAST_PAGES to an item would save less than the joining of more items costs. */
int cuda_paged_splits(enum CudaPageFormat format, int head_dim, int n_kv_heads, int max_refs,
                      int n_sm)
{
    enum { LEAST_PAGES = 4 };
    int blocks = format == CUDA_PAGE_BF16 ? NUMBER_BLOCKS : code_blocks(head_dim);
    int n = blocks * n_sm / (n_kv_heads > 0 ? n_kv_heads : 1);
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

template <int D, int STAGES, int BLOCKS>
static cudaError_t launch_rows(const struct CudaPaged *a, cudaStream_t s)
{
    int rows = a->n_rows * (a->n_heads / a->n_kv_heads);
    if (rows <= 16) return launch<PagedShape<D, 1, 1, STAGES, BLOCKS>>(a, s);
    if (rows <= 32) return launch<PagedShape<D, 2, 1, STAGES, BLOCKS>>(a, s);
    return launch<PagedShape<D, 4, 1, STAGES, BLOCKS>>(a, s);
}

static cudaError_t launch_heads(const struct CudaPaged *a, cudaStream_t s)
{
    switch (a->head_dim) {
    case 64:
        return launch_rows<64, 4, 2>(a, s);
    case 96:
        return launch_rows<96, 4, 2>(a, s);
    case 128:
        return launch_rows<128, 3, 2>(a, s);
    case 256:
        return launch_rows<256, 2, 1>(a, s);
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
    return a->format == CUDA_PAGE_BF16 ? launch_heads(a, s) : cuda_paged_codes(a, s);
}

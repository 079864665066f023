/* paged_codes.cu - attention of few rows over ragged pages of codes. See paged.cuh for how the work is dealt out and joined,
 * codes_mma.cuh for how codes become operands.
 *
 * A block brings in STAGES pages ahead of use, and codes stay codes until they are in registers: so there is room for more
 * pages under way and for more blocks than over pages of bf16. The rows' own keys are bf16; after the pages they are a tile in
 * the freed stages, its values' columns in the order of the sums.
 */
#include "codes_mma.cuh"
#include "paged.cuh"

template <int BITS_, int D_, int WM_> struct CodesShape {
    using Reference = LowPoint;
    using Codes = CodeTile<BITS_, D_>;
    static constexpr int BITS = BITS_, D = D_, WM = WM_;
    static constexpr int WARPS = 4, THREADS = WARPS * 32, WK = WARPS / WM;
    static constexpr int BLOCKS = WM > 1 ? 2 : code_blocks(D); /* on a multiprocessor */
    static constexpr int ROWS = 16 * WM;                       /* of the query tile */
    static constexpr int RM = 1;                               /* a warp's rows are 16 */
    static constexpr int BN = 16 * WM;                         /* a warp's tokens of a page */
    static constexpr int KV_BYTES = 64 * D * 2, TILE_BYTES = 2 * KV_BYTES;
    static constexpr int Q_BYTES = ROWS * D * 2;
    static constexpr int STAGE_BYTES = code_page_bytes<BITS>(D);
    /* a block's share of a multiprocessor's 228 KiB, less 1 KiB of the system's and the own key */
    static constexpr int ROOM = (228 << 10) / BLOCKS - 1024 - (D * 4 + 64) - Q_BYTES;
    static constexpr int STAGES = ROOM / STAGE_BYTES < 8 ? ROOM / STAGE_BYTES : 8;
    static constexpr int SHARED = Q_BYTES + STAGES * STAGE_BYTES;
    static_assert(STAGES >= 2 && TILE_BYTES <= STAGES * STAGE_BYTES, "the own keys' tile fits");
    static_assert(WARPS * 16 * D * 4 <= TILE_BYTES, "the sums fit the stages");
    static_assert(WARPS * 16 * 2 * 4 <= Q_BYTES, "reference points and sums fit the query tile");
    static_assert(WARPS * D * 4 <= STAGE_BYTES, "a head to even out a warp fits a stage");
    static_assert(STAGE_BYTES % 512 == 0 && Q_BYTES % 512 == 0, "pages begin where CodeTile says");
};

/* ==== The tokens of a page ==== */

/* The page's first `ref.y` tokens; zeros for scales and zeros behind, since no number may stand there. */
template <class T>
__device__ __forceinline__ void page_load(const struct CudaPaged &a, uint2 ref, uint32_t to,
                                          int thread)
{
    using C = typename T::Codes;
    /* so many lanes permute their chunks among themselves, the same way in every 8th row */
    constexpr int LANES = C::CHUNKS & -C::CHUNKS, STEP = T::THREADS / LANES;
    int len = (int)ref.y, row = thread / LANES, lane = thread % LANES;
    const uint8_t *from = cuda_page(a.pool, a.below, ref.x, a.page_bytes),
                  *line = from + row * C::ROW + lane * 16;
    uint32_t to_line = to + C::offset(row, lane);
#pragma unroll
    for (int i = 0; i < 2 * CUDA_PAGE_TOKENS; i += STEP)
#pragma unroll
        for (int c = 0; c < C::CHUNKS; c += LANES)
            copy_async(to_line + i * C::ROW + c * 16, line + i * C::ROW + c * 16,
                       (row + i) % CUDA_PAGE_TOKENS < len);
    static_assert(T::THREADS == 2 * CUDA_PAGE_TOKENS, "a thread brings a scale and a zero");
    bool wanted = thread % CUDA_PAGE_TOKENS < len;
    copy_async4(to + C::GRIDS_AT + thread * 4, from + C::GRIDS_AT + thread * 4, wanted);
}

/* ==== Heads turned on the way in ==== */

/* The query heads of a KV head, evened out, to their tile, a warp a head with its part of `held`; where `keeps`, also the row's
 * own key and value to `own` and to the page that keeps them. */
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

/* ==== The rows' own keys ==== */

/* The values of block n of the sums' columns. */
template <class T>
__device__ __forceinline__ uint4 own_values(const unsigned short *from, bool shared, int n)
{
    uint32_t x[8];
#pragma unroll
    for (int g = 0; g < 8; g++) {
        const unsigned short *at = from + value_column<T::BITS>(n, g);
        x[g] = shared ? *at : __ldcg(at);
    }
    return make_uint4(x[0] | x[1] << 16, x[2] | x[3] << 16, x[4] | x[5] << 16, x[6] | x[7] << 16);
}

/* All rows' own keys and values as a tile; zeros behind. */
template <class T>
__device__ __forceinline__ void own_tile(const struct CudaPaged &a, const Own<T> *own, int head,
                                         uint32_t to)
{
    bool turns = a.turn.angles;
    for (int i = threadIdx.x; i < 64 * (T::D / 8); i += T::THREADS) {
        int row = i / (T::D / 8), n = i % (T::D / 8);
        int64_t at = ((int64_t)row * a.n_kv_heads + head) * T::D;
        uint4 k = make_uint4(0, 0, 0, 0), v = k;
        if (row < a.n_rows) {
            const bf16 *value = turns ? own->value : a.v + at;
            k = turns ? ((const uint4 *)own->key)[n] : __ldcg((const uint4 *)(a.k + at) + n);
            v = own_values<T>((const unsigned short *)value, turns, n);
        }
        put_shared(to + tile_offset<T::D>(row, n), k);
        put_shared(to + T::KV_BYTES + tile_offset<T::D>(row, n), v);
    }
}

/* ==== Sums ==== */

template <class T> __device__ __forceinline__ void code_sums_clear(CodeSums<T> &r)
{
    sums_clear<T>(r);
    r.zero[0] = r.zero[1] = 0;
}

/* In the order of a head's values. */
template <class T>
__device__ __forceinline__ void sums_to_shared(const CodeSums<T> &r, float4 *o, float2 *ml,
                                               int warp, int lane)
{
    int t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = warp * 16 + h * 8 + lane / 4;
        float sum = quad_sum(r.sum[0][h]), zero = quad_sum(r.zero[h]);
        if (t == 0) ml[row] = make_float2(-r.point[0][h], sum);
#pragma unroll
        for (int n = 0; n < T::D / 8; n += 2) {
            const float *x = &r.o[0][n][2 * h], *y = &r.o[0][n + 1][2 * h];
            int chunk = sums_chunk(row, value_column<T::BITS>(n, 2 * t) / 4);
            float4 four = T::BITS == 8 ? make_float4(x[0], y[0], x[1], y[1])
                                       : make_float4(x[0], x[1], y[0], y[1]);
            o[row * (T::D / 4) + chunk] =
                make_float4(four.x + zero, four.y + zero, four.z + zero, four.w + zero);
        }
    }
}

/* ==== The kernel ==== */

template <class T>
__global__
__launch_bounds__(T::THREADS,
                  T::BLOCKS) void paged_codes_kernel(const __grid_constant__ struct CudaPaged a)
{
    extern __shared__ __align__(1024) char shared[];
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    Work w;
    bool turns = a.turn.angles;
    __shared__ __align__(16) Own<T> own;
    if (!work_begin(a, w, lane)) return;
    const Share &share = w.share;
    const HeadPages &pages = w.pages;
    bool owns = share.end > pages.n_refs; /* the rows' keys */
    int n = share.end - share.begin - owns, next = share.begin;

    uint32_t q_tile = shared_address(shared), stages = q_tile + T::Q_BYTES;
    uint2 ref = pages.ref(a, next); /* known before its turn comes */
    auto load = [&](int it) {
        page_load<T>(a, ref, stages + it % T::STAGES * T::STAGE_BYTES, thread);
        ref = pages.ref(a, ++next);
    };
    int rows = a.n_rows * (a.n_heads / a.n_kv_heads);
    if (!turns) queries_load<T>(a, share.head, rows, q_tile);
    for (int it = 0; it < T::STAGES - 1; it++) {
        if (it < n) load(it);
        copy_commit();
    }
    if (turns) {
        zero_rows<T, T::ROWS>(q_tile, rows, thread, T::THREADS);
        wait_for_inputs();
        heads_even<T>(a, share.head, rows, owns, q_tile, &own,
                      (float *)(shared + T::SHARED - T::STAGE_BYTES));
    }
    copy_wait<T::STAGES - 2>();
    __syncthreads();

    int row = warp % T::WM * 16, token = warp / T::WM * T::BN; /* of the tile, of a page */
    uint32_t q = q_tile + row * (T::D * 2);
    CodeQueries<T> queries(q, lane);
    CodeSums<T> sums;
    code_sums_clear(sums);
    float scale2 = a.scale * LOG2_E;
    int at = w.sight.plain > 0 ? first_key(pages, w.sight, share.begin, lane) : 0;
    PageView next_view = page_view(a, pages, share.begin);
    Logits<T> s;
    for (int it = 0; it < n; it++) {
        copy_wait<T::STAGES - 2>();
        __syncthreads();
        if (it + T::STAGES - 1 < n) load(it + T::STAGES - 1);
        copy_commit();
        PageView view = next_view;
        next_view = page_view(a, pages, share.begin + it + 1);
        if (share.begin + it == pages.front) at = w.sight.seen.before;
        int key = at + token;
        at += view.len;
        if (token >= view.len) continue;
        uint32_t page = stages + it % T::STAGES * T::STAGE_BYTES;
        codes_qk<T>(s, queries, page, token, lane);
        see<T>(s, a, w, view, row, token, key, lane);
        raise<T>(sums, s, scale2);
        codes_pv<T>(sums, s, page, token, scale2, lane);
    }

    copy_wait<0>();
    __syncthreads();
    if (owns) {
        own_tile<T>(a, &own, share.head, stages);
        __syncthreads();
        if (token < a.n_rows) {
            uint32_t k = stages + token * (T::D * 2);
            products_qk<T>(s, SharedQueries<T>(q, lane), k, lane);
            see<T>(s, a, w, next_view, row, token, at + token, lane);
            raise<T>(sums, s, scale2);
            products_pv<T>(sums, sums.point, s, k + T::KV_BYTES, scale2, lane);
        }
        __syncthreads();
    }
    float2 *ml = (float2 *)shared;
    float4 *o = (float4 *)(shared + T::Q_BYTES);
    sums_to_shared<T>(sums, o, ml, warp, lane);
    __syncthreads();
    join_warps<T>(a, share, rows, o, ml);
    if (share.n_items > 1 && is_last(a, share)) join_items<T>(a, share, rows, o, ml);
}

/* Work items as for few rows, of which a multiprocessor holds more blocks. */
template <class T> static cudaError_t launch(const struct CudaPaged *a, cudaStream_t s)
{
    cudaError_t err = cudaFuncSetAttribute(paged_codes_kernel<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, T::SHARED);
    if (err) return err;
    int blocks = a->n_splits * a->n_kv_heads * T::BLOCKS / code_blocks(T::D);
    if (blocks < a->n_kv_heads) blocks = a->n_kv_heads;
    return launch_dependent<paged_codes_kernel<T>>((unsigned)blocks, T::THREADS, T::SHARED, s, *a);
}

template <int BITS, int D> static cudaError_t launch_rows(const struct CudaPaged *a, cudaStream_t s)
{
    int rows = a->n_rows * (a->n_heads / a->n_kv_heads);
    if (rows <= 16) return launch<CodesShape<BITS, D, 1>>(a, s);
    if (rows <= 32) return launch<CodesShape<BITS, D, 2>>(a, s);
    return launch<CodesShape<BITS, D, 4>>(a, s);
}

template <int BITS> static cudaError_t launch_heads(const struct CudaPaged *a, cudaStream_t s)
{
    switch (a->head_dim) {
    case 64:
        return launch_rows<BITS, 64>(a, s);
    case 96:
        return launch_rows<BITS, 96>(a, s);
    case 128:
        return launch_rows<BITS, 128>(a, s);
    case 256:
        return launch_rows<BITS, 256>(a, s);
    default:
        return cudaErrorInvalidValue;
    }
}

cudaError_t cuda_paged_codes(const struct CudaPaged *a, cudaStream_t s)
{
    return a->format == CUDA_PAGE_Q8 ? launch_heads<8>(a, s) : launch_heads<4>(a, s);
}

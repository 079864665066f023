/* pages.cu - keys and values between a batch's rows, pages of 64 tokens, and the packed form of attention. */
#include "codes.cuh"
#include "device.h"

#include <math.h>

enum { CHUNK = 8, WARPS = 4 }; /* CHUNK: values of a 16-byte access */

size_t page_size(enum CudaPageFormat format, int head_dim)
{
    if (format == CUDA_PAGE_Q8) return (size_t)code_page_bytes<8>(head_dim);
    if (format == CUDA_PAGE_Q4) return (size_t)code_page_bytes<4>(head_dim);
    return (size_t)2 * CUDA_PAGE_TOKENS * head_dim * sizeof(bf16);
}

static __device__ uint8_t *page_start(const struct PagesArgs &p, uint32_t page)
{
    return cuda_page(p.pool, p.below, page, p.page_bytes);
}

static __device__ const bf16 *page_key(const struct PagesArgs &p, uint32_t page, int slot)
{
    return (const bf16 *)page_start(p, page) + (size_t)slot * p.head_dim;
}

static __device__ size_t value_offset(const struct PagesArgs &p)
{
    return (size_t)CUDA_PAGE_TOKENS * p.head_dim;
}

/* ==== Rows to pages ==== */

static __global__ void write_kernel(struct PagesArgs p, const struct DevWrite *writes)
{
    struct DevWrite w = writes[blockIdx.x];
    int per = p.head_dim / CHUNK;
    for (int i = threadIdx.x; i < w.n * per; i += blockDim.x) {
        int token = i / per, part = i % per;
        int row = w.row0 + (w.index ? w.index[token] : w.first + token);
        size_t src = ((size_t)row * p.n_kv_heads + w.kv_head) * p.head_dim;
        bf16 *key = (bf16 *)page_key(p, w.page, w.at + token);
        ((uint4 *)key)[part] = ((const uint4 *)(w.k + src))[part];
        ((uint4 *)(key + value_offset(p)))[part] = ((const uint4 *)(w.v + src))[part];
    }
}

/* A warp takes a token's K or V. */
template <int BITS>
static __global__ void write_codes_kernel(struct PagesArgs p, const struct DevWrite *writes)
{
    struct DevWrite w = writes[blockIdx.x];
    int lane = threadIdx.x % 32;
    uint8_t *page = page_start(p, w.page);
    for (int i = threadIdx.x / 32; i < 2 * w.n; i += WARPS) {
        int token = i / 2, row = w.row0 + (w.index ? w.index[token] : w.first + token);
        const bf16 *src =
            (i % 2 ? w.v : w.k) + ((size_t)row * p.n_kv_heads + w.kv_head) * p.head_dim;
        uint4 values = make_uint4(0, 0, 0, 0);
        if (lane < p.head_dim / CHUNK) values = ((const uint4 *)src)[lane];
        codes_put<BITS>(page, i % 2, w.at + token, values, p.head_dim);
    }
}

cudaError_t pages_write(const struct PagesArgs *p, const struct DevWrite *w, int n, cudaStream_t s)
{
    if (p->head_dim % CHUNK || p->head_dim > 32 * CHUNK) return cudaErrorInvalidValue;
    if (p->format == CUDA_PAGE_Q8)
        write_codes_kernel<8><<<n, WARPS * 32, 0, s>>>(*p, w);
    else if (p->format == CUDA_PAGE_Q4)
        write_codes_kernel<4><<<n, WARPS * 32, 0, s>>>(*p, w);
    else
        write_kernel<<<n, WARPS * 32, 0, s>>>(*p, w);
    return cudaGetLastError();
}

/* ==== Pages to pages ==== */

/* One block: 64 tokens are all read before one is written, and runs follow each other. */
static __global__ void pack_kernel(struct PagesArgs p, const uint32_t *from, const uint32_t *to,
                                   int n)
{
    extern __shared__ uint4 held[]; /* [64, 2 * per] */
    int per = p.head_dim / CHUNK;
    for (int first = 0; first < n; first += CUDA_PAGE_TOKENS) {
        int tokens = min(CUDA_PAGE_TOKENS, n - first);
        for (int i = threadIdx.x; i < tokens * per; i += blockDim.x) {
            uint32_t at = from[first + i / per];
            const bf16 *key = page_key(p, at / CUDA_PAGE_TOKENS, at % CUDA_PAGE_TOKENS);
            held[2 * i] = ((const uint4 *)key)[i % per];
            held[2 * i + 1] = ((const uint4 *)(key + value_offset(p)))[i % per];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < tokens * per; i += blockDim.x) {
            uint32_t at = to[first + i / per];
            bf16 *key = (bf16 *)page_key(p, at / CUDA_PAGE_TOKENS, at % CUDA_PAGE_TOKENS);
            ((uint4 *)key)[i % per] = held[2 * i];
            ((uint4 *)(key + value_offset(p)))[i % per] = held[2 * i + 1];
        }
        __syncthreads();
    }
}

/* Word i of a token in a page of codes: those of its K, of its V, then its two grids. */
template <int BITS>
static __device__ uint32_t *code_word(const struct PagesArgs &p, uint32_t at, int i)
{
    uint8_t *page = page_start(p, at / CUDA_PAGE_TOKENS);
    int slot = at % CUDA_PAGE_TOKENS, row = code_row_bytes<BITS>(p.head_dim) / 4;
    if (i >= 2 * row) return (uint32_t *)code_grid<BITS>(page, i - 2 * row, slot, p.head_dim);
    return (uint32_t *)code_row<BITS>(page, i / row, slot, p.head_dim) + i % row;
}

/* The same with codes, which move as they are. */
template <int BITS>
static __global__ void pack_codes_kernel(struct PagesArgs p, const uint32_t *from,
                                         const uint32_t *to, int n)
{
    extern __shared__ uint4 held[];
    uint32_t *words = (uint32_t *)held; /* [64, per] */
    int per = 2 * code_row_bytes<BITS>(p.head_dim) / 4 + 2;
    for (int first = 0; first < n; first += CUDA_PAGE_TOKENS) {
        int tokens = min(CUDA_PAGE_TOKENS, n - first);
        for (int i = threadIdx.x; i < tokens * per; i += blockDim.x)
            words[i] = *code_word<BITS>(p, from[first + i / per], i % per);
        __syncthreads();
        for (int i = threadIdx.x; i < tokens * per; i += blockDim.x)
            *code_word<BITS>(p, to[first + i / per], i % per) = words[i];
        __syncthreads();
    }
}

cudaError_t pages_pack(const struct PagesArgs *p, const uint32_t *from, const uint32_t *to, int n,
                       cudaStream_t s)
{
    size_t bytes = p->page_bytes;
    auto kernel = p->format == CUDA_PAGE_Q8   ? pack_codes_kernel<8>
                  : p->format == CUDA_PAGE_Q4 ? pack_codes_kernel<4>
                                              : pack_kernel;
    cudaError_t e =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    kernel<<<1, 512, bytes, s>>>(*p, from, to, n);
    return cudaGetLastError();
}

/* A block a page that is written; its tokens come from pages that no block writes. */
static __global__ void take_kernel(struct PagesArgs p, const struct DevGather *list)
{
    struct DevGather g = list[blockIdx.x];
    int per = p.head_dim / CHUNK;
    for (int i = threadIdx.x; i < g.n * per; i += blockDim.x) {
        int token = i / per, part = i % per;
        uint32_t from = g.from + (uint32_t)(g.index ? g.index[token] : g.first + token);
        const bf16 *key = page_key(p, from / CUDA_PAGE_TOKENS, from % CUDA_PAGE_TOKENS);
        bf16 *to = (bf16 *)page_key(p, g.page, g.at + token);
        ((uint4 *)to)[part] = ((const uint4 *)key)[part];
        ((uint4 *)(to + value_offset(p)))[part] = ((const uint4 *)(key + value_offset(p)))[part];
    }
}

template <int BITS>
static __global__ void take_codes_kernel(struct PagesArgs p, const struct DevGather *list)
{
    struct DevGather g = list[blockIdx.x];
    int per = 2 * code_row_bytes<BITS>(p.head_dim) / 4 + 2;
    for (int i = threadIdx.x; i < g.n * per; i += blockDim.x) {
        int token = i / per, word = i % per;
        uint32_t from = g.from + (uint32_t)(g.index ? g.index[token] : g.first + token);
        *code_word<BITS>(p, g.page * CUDA_PAGE_TOKENS + (uint32_t)(g.at + token), word) =
            *code_word<BITS>(p, from, word);
    }
}

cudaError_t pages_take(const struct PagesArgs *p, const struct DevGather *list, int n,
                       cudaStream_t s)
{
    if (n < 1) return cudaSuccess;
    auto kernel = p->format == CUDA_PAGE_Q8   ? take_codes_kernel<8>
                  : p->format == CUDA_PAGE_Q4 ? take_codes_kernel<4>
                                              : take_kernel;
    kernel<<<n, 256, 0, s>>>(*p, list);
    return cudaGetLastError();
}

/* ==== Pages to their index ==== */

/* Channel d of a token's key. */
template <int FORMAT>
static __device__ float key_value(const struct PagesArgs &p, uint32_t page, int slot, int d)
{
    if constexpr (FORMAT == CUDA_PAGE_BF16)
        return __bfloat162float(page_key(p, page, slot)[d]);
    else
        return code_value < FORMAT == CUDA_PAGE_Q8
                   ? 8
                   : 4 > (page_start(p, page), 0, slot, d, p.head_dim);
}

/* A block a page, a thread a channel. Bounds of what codes stand for are rounded outward. */
template <int FORMAT>
static __global__ void index_kernel(struct PagesArgs p, const struct CudaPageRef *refs, bool bound,
                                    uint8_t *index, size_t index_bytes)
{
    struct CudaPageRef ref = refs[blockIdx.x];
    bf16 *out = (bf16 *)(index + (size_t)ref.page * index_bytes);
    for (int d = threadIdx.x; d < p.head_dim; d += blockDim.x) {
        float sum = 0, least = INFINITY, most = -INFINITY;
#pragma unroll 8
        for (int t = 0; t < (int)ref.len; t++) {
            float x = key_value<FORMAT>(p, ref.page, t, d);
            sum += x;
            least = fminf(least, x);
            most = fmaxf(most, x);
        }
        out[d] = bound ? __float2bfloat16_rd(least) : __float2bfloat16_rn(sum / (float)ref.len);
        if (bound) out[p.head_dim + d] = __float2bfloat16_ru(most);
    }
}

cudaError_t pages_index(const struct PagesArgs *p, const struct CudaPageRef *refs, int n,
                        bool bound, uint8_t *index, size_t index_bytes, cudaStream_t s)
{
    auto kernel = p->format == CUDA_PAGE_Q8   ? index_kernel<CUDA_PAGE_Q8>
                  : p->format == CUDA_PAGE_Q4 ? index_kernel<CUDA_PAGE_Q4>
                                              : index_kernel<CUDA_PAGE_BF16>;
    kernel<<<n, 128, 0, s>>>(*p, refs, bound, index, index_bytes);
    return cudaGetLastError();
}

/* ==== Pages and rows to packed keys ==== */

/* One warp: the page that holds token `at` of a head, which has it; *slot is its place there. Pages may be part full
 * anywhere, so their lengths are summed, 128 pages at a time. */
static __device__ int find_token(const struct CudaPageRef *refs, int n_refs, int at, int *slot)
{
    enum { EACH = 4 };
    int lane = threadIdx.x % 32;
    for (int i = 0;; i += 32 * EACH) {
        int mine = i + lane * EACH, sum = 0, upto;
        for (int j = 0; j < EACH; j++)
            if (mine + j < n_refs) sum += (int)refs[mine + j].len;
        upto = sum;
        for (int d = 1; d < 32; d *= 2) {
            int before = __shfl_up_sync(~0u, upto, d);
            if (lane >= d) upto += before;
        }
        unsigned past = __ballot_sync(~0u, upto > at);
        if (!past) {
            at -= __shfl_sync(~0u, upto, 31);
            continue;
        }
        int holder = __ffs((int)past) - 1;
        at -= __shfl_sync(~0u, upto - sum, holder);
        i += holder * EACH;
        while (at >= (int)refs[i].len) at -= (int)refs[i++].len;
        *slot = at;
        return i;
    }
}

/* One warp: where tokens [first, first + n) of a head's pages lie. */
static __device__ void find_tokens(const struct CudaPageRef *refs, int n_refs, int first, int n,
                                   struct CudaPageSlot *where, float *bias)
{
    int slot, i = find_token(refs, n_refs, first, &slot), lane = threadIdx.x % 32;
    for (int at = 0; at < n; i++, slot = 0) {
        int run = min((int)refs[i].len - slot, n - at);
        for (int j = lane; j < run; j += 32) {
            where[at + j] = {refs[i].page, (uint32_t)(slot + j)};
            if (bias) bias[at + j] = refs[i].bias;
        }
        at += run;
    }
}

/* 8 values of a token's K and V from its page. */
template <int FORMAT>
static __device__ void page_get(const struct PagesArgs &p, struct CudaPageSlot at, int part,
                                uint4 *k, uint4 *v)
{
    if constexpr (FORMAT == CUDA_PAGE_BF16) {
        const bf16 *key = page_key(p, at.page, at.at);
        *k = ((const uint4 *)key)[part];
        *v = ((const uint4 *)(key + value_offset(p)))[part];
    } else {
        constexpr int BITS = FORMAT == CUDA_PAGE_Q8 ? 8 : 4;
        const uint8_t *page = page_start(p, at.page);
        *k = codes_get<BITS>(page, 0, at.at, part, p.head_dim);
        *v = codes_get<BITS>(page, 1, at.at, part, p.head_dim);
    }
}

/* A block takes 64 packed tokens of one (sequence, KV head). What lies behind the last tile that holds a key is left as
 * it is: nobody reads there. */
template <int FORMAT> static __global__ void gather_kernel(struct GatherArgs a)
{
    __shared__ struct CudaPageSlot where[CUDA_PAGE_TOKENS];
    int head = blockIdx.y % a.pages.n_kv_heads, seq = blockIdx.y / a.pages.n_kv_heads;
    int dim = a.pages.head_dim, per = dim / CHUNK, past = a.kv.past_of(seq, head);
    int row0 = a.seq_begin[seq], rows = a.seq_begin[seq + 1] - row0;
    int first = blockIdx.x * CUDA_PAGE_TOKENS;
    size_t out = ((size_t)blockIdx.y * a.kv.key_stride) * dim;
    bool apart = a.apart[head / 32] >> head % 32 & 1;
    if (first / CUDA_KEY_TILE * CUDA_KEY_TILE >= past + rows) return;
    if (threadIdx.x < 32 && first < past)
        find_tokens(a.refs + ((size_t)seq * a.kv.past_step + head) * a.ref_stride,
                    a.n_refs[(size_t)seq * a.kv.past_step + head], first,
                    min(past - first, (int)CUDA_PAGE_TOKENS), where,
                    a.key_bias && seq == 0 ? a.key_bias + (size_t)head * a.kv.key_stride + first
                                           : NULL);
    __syncthreads();
    for (int i = threadIdx.x; i < CUDA_PAGE_TOKENS * per; i += blockDim.x) {
        int token = i / per, at = first + token, part = i % per;
        uint4 k = make_uint4(0, 0, 0, 0), v = k;
        if (at < past) {
            page_get<FORMAT>(a.pages, where[token], part, &k, &v);
        } else if (at < past + rows) {
            size_t src = ((size_t)(row0 + at - past) * a.pages.n_kv_heads + head) * dim;
            k = ((const uint4 *)(a.k + src))[part];
            v = ((const uint4 *)(a.v + src))[part];
        }
        if (a.key_bias && seq == 0 && part == 0 && at >= past)
            a.key_bias[(size_t)head * a.kv.key_stride + at] = apart ? -INFINITY : 0;
        ((uint4 *)(a.kv.k + out + (size_t)at * dim))[part] = k;
        ((uint4 *)(a.kv.v + out + (size_t)at * dim))[part] = v;
    }
}

cudaError_t pages_gather(const struct GatherArgs *a, cudaStream_t s)
{
    if (a->pages.head_dim % CHUNK) return cudaErrorInvalidValue;
    dim3 grid((unsigned)(a->kv.key_stride / CUDA_PAGE_TOKENS),
              (unsigned)(a->n_seqs * a->pages.n_kv_heads));
    auto kernel = a->pages.format == CUDA_PAGE_Q8   ? gather_kernel<CUDA_PAGE_Q8>
                  : a->pages.format == CUDA_PAGE_Q4 ? gather_kernel<CUDA_PAGE_Q4>
                                                    : gather_kernel<CUDA_PAGE_BF16>;
    kernel<<<grid, 256, 0, s>>>(*a);
    return cudaGetLastError();
}

/* threshold.cuh - the highest of a block's items by radix, a byte of the key at a time, in 256 bins that add up whole numbers,
 * so that the outcome does not hang on the order of threads.
 *
 * Items are numbered from begin() to end(), of which those count that has() names; value() orders them, and brings() says
 * how much of what is wanted an item of that value stands for.
 */
#ifndef PCOMP_CUDA_THRESHOLD_CUH
#define PCOMP_CUDA_THRESHOLD_CUH

#include <math.h>
#include <stdint.h>

static constexpr int THREADS = 512, WARPS = THREADS / 32, BINS = 256;
static constexpr int PART_BITS =
    15; /* what an item brings is added up in two parts: 2^17 items cannot overflow them */
static constexpr unsigned ALL = 0xffffffffu;
using Weight = unsigned long long;

/* ==== Over the block ==== */

/* Sum of the threads before this one; *all: of all threads. Every thread calls it. */
template <class T> __device__ __forceinline__ T block_scan(T x, T *all)
{
    __shared__ T warps[WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T sum = x, before = 0;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        T y = __shfl_up_sync(ALL, sum, d);
        if (lane >= d) sum += y;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    *all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += warps[w];
        *all += warps[w];
    }
    __syncthreads();
    return before + sum - x;
}

__device__ __forceinline__ float block_max(float x)
{
    __shared__ float warps[WARPS];
    for (int o = 16; o; o /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, o));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) x = fmaxf(x, warps[w]);
    __syncthreads();
    return x;
}

/* ==== The highest ==== */

/* A key that compares as an unsigned number just as the values compare; NaN is the least. */
__device__ __forceinline__ uint32_t order_key(float value)
{
    if (isnan(value)) return 0;
    uint32_t bits = __float_as_uint(value + 0.0f); /* -0 becomes +0: they must tie */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Threshold {
    uint32_t key;
    Weight left; /* what pages with this very key bring of what is wanted */
};

/* One byte of the key: the bin in which the weights from the highest down reach t->left. */
template <class O>
__device__ __forceinline__ void find_byte(const O &o, uint32_t mask, int shift, struct Threshold *t)
{
    __shared__ uint32_t low[BINS], high[BINS];
    __shared__ struct Threshold found;
    for (int i = threadIdx.x; i < BINS; i += THREADS) low[i] = high[i] = 0;
    __syncthreads();
    for (int i = o.begin() + threadIdx.x; i < o.end(); i += THREADS) {
        if (!o.has(i)) continue;
        float value = o.value(i);
        uint32_t key = order_key(value), bin = key >> shift & (BINS - 1);
        if ((key & mask) != t->key) continue;
        uint32_t brings = o.brings(value);
        atomicAdd(&low[bin], brings & ((1u << PART_BITS) - 1));
        if (brings >> PART_BITS) atomicAdd(&high[bin], brings >> PART_BITS);
    }
    __syncthreads();
    int bin = BINS - 1 - (int)threadIdx.x; /* thread 0 has the highest */
    Weight sum = bin >= 0 ? ((Weight)high[bin] << PART_BITS) + low[bin] : 0, all;
    Weight above = block_scan(sum, &all);
    if (above < t->left && t->left <= above + sum) {
        found.key = t->key | (uint32_t)bin << shift;
        found.left = t->left - above;
    }
    __syncthreads();
    *t = found;
    __syncthreads();
}

template <class O> __device__ __forceinline__ struct Threshold threshold(const O &o, Weight want)
{
    struct Threshold t = {0, want};
    if (want == 0) return {~0u, 0}; /* no key is so high */
    for (int shift = 24; shift >= 0; shift -= 8)
        find_byte(o, shift == 24 ? 0 : ~0u << (shift + 8), shift, &t);
    return t;
}

#endif

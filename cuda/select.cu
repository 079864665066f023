/* select.cu - the most attended tokens of each head: eviction/kv_evict.c and eviction/select.c on the device.
 *
 * The values are pooled by as many blocks as there are tokens for; then one block a head finds the cap-th largest key by
 * radix (11, 11 and 10 bits) and writes the indices of what lies above it, and of the first of its equals, in order.
 * Everything is a count of integers, so the outcome does not hang on the order of threads.
 */
#include "kernels.h"

#include <math.h>

static constexpr int THREADS = 1024, WARPS = THREADS / 32;
static constexpr int BINS = 2048; /* two a thread */
static constexpr int POOL_THREADS = 256;

/* A key that compares as an unsigned number just as the values compare; NaN is the least. */
__device__ __forceinline__ uint32_t order_key(float value)
{
    if (isnan(value)) return 0;
    uint32_t bits = __float_as_uint(value + 0.0f); /* -0 becomes +0: they must tie */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__global__ void pool_kernel(const __grid_constant__ struct CudaSelect a)
{
    int n = a.n[blockIdx.z], i = blockIdx.x * POOL_THREADS + threadIdx.x;
    if (i >= n || a.cap < 0 || n <= a.cap) return;
    int64_t line = ((int64_t)blockIdx.z * a.n_kv_heads + blockIdx.y) * a.stride;
    const float *mass = a.mass + line + a.first;
    int reach = a.pool > 1 ? min((a.pool - 1) / 2, n) : 0;
    int end = min(i + reach, n - 1);
    float most = -INFINITY;
#pragma unroll 4
    for (int j = max(i - reach, 0); j <= end; j++)
        most = fmaxf(most, __ldg(mass + j)); /* not NaN */
    a.pooled[line + i] = most;
}

/* Exclusive sum over the block's threads in their order; every thread calls it. */
__device__ int block_scan(int x, int *scratch)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        int y = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += y;
    }
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    int before = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        if (w < warp) before += scratch[w];
    __syncthreads();
    return before + sum - x;
}

struct Kth {
    uint32_t key;
    int n_equal; /* how many of the values with this key belong to the top */
};

/* The k-th largest key of n values, 1 <= k <= n. */
__device__ struct Kth kth_key(const float *value, int n, int k)
{
    __shared__ int count[BINS];
    __shared__ int scratch[WARPS];
    __shared__ struct Kth found;
    uint32_t prefix = 0, mask = 0;
#pragma unroll
    for (int pass = 0; pass < 3; pass++) {
        const int bits = pass == 2 ? 10 : 11, shift = pass == 0 ? 21 : pass == 1 ? 10 : 0;
        const uint32_t digit = (1u << bits) - 1;
        count[2 * threadIdx.x] = count[2 * threadIdx.x + 1] = 0;
        __syncthreads();
#pragma unroll 8
        for (int i = threadIdx.x; i < n; i += THREADS) {
            uint32_t key = order_key(__ldg(value + i));
            if ((key & mask) == prefix) atomicAdd(&count[key >> shift & digit], 1);
        }
        __syncthreads();
        int high = BINS - 1 - 2 * threadIdx.x; /* thread 0 has the two largest digits */
        int first = count[high], second = count[high - 1];
        int above = block_scan(first + second, scratch);
        if (above < k && k <= above + first + second) {
            bool in_first = k <= above + first;
            found.key = prefix | (uint32_t)(in_first ? high : high - 1) << shift;
            found.n_equal = k - above - (in_first ? 0 : first);
        }
        __syncthreads();
        prefix = found.key;
        k = found.n_equal;
        mask |= digit << shift;
        __syncthreads();
    }
    return {prefix, k};
}

/* Each warp has a run of values: the warps count, the counts are summed up, and the warps write. */
__device__ void write_top(const float *value, int n, struct Kth kth, int *keep)
{
    __shared__ int scratch[WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int run = (n + THREADS - 1) / THREADS * 32, begin = min(warp * run, n),
        end = min(begin + run, n);
    int above = 0, equal = 0;
#pragma unroll 8
    for (int i = begin + lane; i < end; i += 32) {
        uint32_t key = order_key(__ldg(value + i));
        above += key > kth.key;
        equal += key == kth.key;
    }
    above = block_scan(above, scratch);
    equal = block_scan(equal, scratch);
    above = __shfl_sync(0xffffffffu, above, 0);
    equal = __shfl_sync(0xffffffffu, equal, 0);
    uint32_t before = (1u << lane) - 1;
#pragma unroll 8
    for (int i = begin; i < end; i += 32) {
        uint32_t key = i + lane < end ? order_key(__ldg(value + i + lane)) : 0;
        uint32_t is_above = __ballot_sync(0xffffffffu, i + lane < end && key > kth.key);
        uint32_t is_equal = __ballot_sync(0xffffffffu, i + lane < end && key == kth.key);
        int n_above = above + __popc(is_above & before),
            n_equal = equal + __popc(is_equal & before);
        bool kept = is_above >> lane & 1 || (is_equal >> lane & 1 && n_equal < kth.n_equal);
        if (kept) keep[n_above + min(n_equal, kth.n_equal)] = i + lane;
        above += __popc(is_above);
        equal += __popc(is_equal);
    }
}

__global__ __launch_bounds__(THREADS,
                             1) void select_kernel(const __grid_constant__ struct CudaSelect a)
{
    int64_t line = (int64_t)blockIdx.y * a.n_kv_heads + blockIdx.x;
    int n = a.n[blockIdx.y];
    int *keep = a.keep + blockIdx.y * a.keep_step + (int64_t)blockIdx.x * a.keep_stride;
    if (n <= 0 || a.cap == 0) return;
    if (a.cap < 0 || n <= a.cap) {
        for (int i = threadIdx.x; i < n; i += THREADS) keep[i] = i;
        return;
    }
    const float *pooled = a.pooled + line * a.stride;
    write_top(pooled, n, kth_key(pooled, n, a.cap), keep);
}

cudaError_t cuda_select(const struct CudaSelect *a, cudaStream_t s)
{
    if (a->n_seqs < 1 || a->n_kv_heads < 1 || a->max_n < 1) return cudaSuccess;
    if (a->cap >= 0 && a->max_n > a->cap) {
        dim3 grid((a->max_n + POOL_THREADS - 1) / POOL_THREADS, a->n_kv_heads, a->n_seqs);
        pool_kernel<<<grid, POOL_THREADS, 0, s>>>(*a);
    }
    select_kernel<<<dim3(a->n_kv_heads, a->n_seqs), THREADS, 0, s>>>(*a);
    return cudaGetLastError();
}

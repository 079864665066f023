/* dequant.cu - GGUF blocks to bf16, and rows of bf16 to e4m3. Both are bound by the memory. */
#include <float.h>

#include "blocks.cuh"
#include "kernels.h"

enum { THREADS = 256, WARP = 32, E4M3_MAX = 448 };

/* ==== Blocks to bf16 ==== */

/* A thread decodes eight weights and stores them at once, so stores are whole and a block's bytes come from L1 for
 * all of its threads but the first. */
template <int T>
__global__ void __launch_bounds__(THREADS)
    dequantize_kernel(const uint8_t *blocks, int64_t n_eights, bf16 *out)
{
    const int per_block = Block<T>::WEIGHTS / 8;
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < n_eights; e += step) {
        float w[8];
        Block<T>::decode8(blocks + e / per_block * Block<T>::BYTES, (int)(e % per_block), w);
        union {
            __nv_bfloat162 pair[4];
            uint4 all;
        } v;
        for (int k = 0; k < 4; k++) v.pair[k] = __floats2bfloat162_rn(w[2 * k], w[2 * k + 1]);
        ((uint4 *)out)[e] = v.all;
    }
}

struct Dequantize {
    const void *blocks;
    int64_t n;
    bf16 *out;
    cudaStream_t stream;

    template <int T> cudaError_t run() const
    {
        if (n % Block<T>::WEIGHTS != 0) return cudaErrorInvalidValue;
        int64_t eights = n / 8, grid = (eights + THREADS - 1) / THREADS;
        if (grid > 1 << 20) grid = 1 << 20;
        dequantize_kernel<T>
            <<<(unsigned)grid, THREADS, 0, stream>>>((const uint8_t *)blocks, eights, out);
        return cudaGetLastError();
    }
};

cudaError_t cuda_dequantize(int type, const void *blocks, int64_t n, bf16 *out, cudaStream_t s)
{
    if (n < 0 || (uintptr_t)blocks % 16 != 0 || (uintptr_t)out % 16 != 0)
        return cudaErrorInvalidValue;
    if (n == 0) return cudaSuccess;
    return with_block_type(type, Dequantize{blocks, n, out, s});
}

/* ==== Rows to e4m3 ==== */

__device__ static float largest8(uint4 v)
{
    const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&v;
    float m = 0;
    for (int k = 0; k < 4; k++) {
        float2 f = __bfloat1622float2(pair[k]);
        m = fmaxf(m, fmaxf(fabsf(f.x), fabsf(f.y)));
    }
    return m;
}

__device__ static uint2 e4m3_of8(uint4 v, float factor)
{
    const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&v;
    union {
        __nv_fp8x2_storage_t two[4];
        uint2 all;
    } out;
    for (int k = 0; k < 4; k++) {
        float2 f = __bfloat1622float2(pair[k]);
        f.x *= factor;
        f.y *= factor;
        out.two[k] = __nv_cvt_float2_to_fp8x2(f, __NV_SATFINITE, __NV_E4M3);
    }
    return out.all;
}

/* The largest of `m` over the row's warps, for every thread. */
__device__ static float largest_of_row(float m, int warps_per_row)
{
    __shared__ float part[WARP];
    for (int d = WARP / 2; d > 0; d >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
    if (warps_per_row == 1) return m;
    int warp = threadIdx.x / WARP, first = warp - warp % warps_per_row;
    if (threadIdx.x % WARP == 0) part[warp] = m;
    __syncthreads();
    for (int i = 0; i < warps_per_row; i++) m = fmaxf(m, part[first + i]);
    return m;
}

/* A row is read once and waits in the registers of its warps, HELD eights a thread, for its scale. */
template <int HELD>
__global__ void __launch_bounds__(1024)
    quantize_fp8_kernel(const bf16 *x, int n_rows, int cols, int warps_per_row, uint8_t *out,
                        float *scale)
{
    int per_row = warps_per_row * WARP, in_row = (int)threadIdx.x % per_row, eights = cols / 8;
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / per_row) + threadIdx.x / per_row;
    bool live = row < n_rows;
    const uint4 *src = (const uint4 *)(x + row * cols);
    uint4 held[HELD];
    float m = 0;
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int e = in_row + k * per_row;
        held[k] = live && e < eights ? src[e] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < HELD; k++) m = fmaxf(m, largest8(held[k]));
    m = largest_of_row(m, warps_per_row);
    if (!live) return;
    if (in_row == 0) scale[row] = m / E4M3_MAX;
    /* A row of zeros stays zeros: 0 times a finite factor. */
    float factor = fminf((float)E4M3_MAX / m, FLT_MAX);
    uint2 *dst = (uint2 *)(out + row * cols);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int e = in_row + k * per_row;
        if (e < eights) dst[e] = e4m3_of8(held[k], factor);
    }
}

cudaError_t cuda_quantize_fp8(const bf16 *x, int n_rows, int cols, void *out, float *scale,
                              cudaStream_t s)
{
    const int held = 4, widest = 1024 * held * 8;
    if (n_rows < 0 || cols <= 0 || cols % 8 != 0 || cols > 2 * widest) return cudaErrorInvalidValue;
    if (n_rows == 0) return cudaSuccess;
    bool wide = cols > widest;
    int warps = 1;
    while (warps * WARP * 8 * (wide ? 2 * held : held) < cols) warps *= 2;
    int rows_per_cta = warps < 8 ? 8 / warps : 1;
    unsigned grid = (unsigned)((n_rows + rows_per_cta - 1) / rows_per_cta),
             block = (unsigned)(rows_per_cta * warps * WARP);
    if (wide)
        quantize_fp8_kernel<2 * held>
            <<<grid, block, 0, s>>>(x, n_rows, cols, warps, (uint8_t *)out, scale);
    else
        quantize_fp8_kernel<held>
            <<<grid, block, 0, s>>>(x, n_rows, cols, warps, (uint8_t *)out, scale);
    return cudaGetLastError();
}

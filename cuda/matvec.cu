/* matvec.cu - products of a stored matrix and one to four rows, for decoding. Bound by the reading of the matrix. */
#include "blocks.cuh"
#include "kernels.h"

enum { THREADS = 256, WARP = 32, WARPS = THREADS / WARP, MAX_X_ROWS = 4 };

/* One warp an output row: a lane decodes eight weights at a time, sums in f32, and the lanes' sums add up in a fixed
 * tree. */
template <int T>
__device__ static void row_product(const uint8_t *w, const bf16 *x, int cols, int n_rows,
                                   float *sum)
{
    const int per_block = Block<T>::WEIGHTS / 8;
    for (int r = 0; r < MAX_X_ROWS; r++) sum[r] = 0;
    for (int e = threadIdx.x % WARP; e < cols / 8; e += WARP) {
        float v[8];
        Block<T>::decode8(w + (int64_t)(e / per_block) * Block<T>::BYTES, e % per_block, v);
#pragma unroll
        for (int r = 0; r < MAX_X_ROWS; r++) {
            if (r >= n_rows) break;
            uint4 xs = ((const uint4 *)(x + (int64_t)r * cols))[e];
            const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&xs;
            for (int k = 0; k < 4; k++) {
                float2 f = __bfloat1622float2(pair[k]);
                sum[r] = fmaf(v[2 * k], f.x, sum[r]);
                sum[r] = fmaf(v[2 * k + 1], f.y, sum[r]);
            }
        }
    }
    for (int r = 0; r < MAX_X_ROWS; r++)
        for (int d = WARP / 2; d > 0; d >>= 1) sum[r] += __shfl_xor_sync(~0u, sum[r], d);
}

__device__ static void store_output(const struct CudaMatvec &m, int r, int row, float v)
{
    int64_t at = (int64_t)r * m.rows + row;
    if (m.bias) v += m.bias[row];
    if (!m.out_f32)
        ((bf16 *)m.out)[at] = __float2bfloat16_rn(v);
    else if (m.add)
        ((float *)m.out)[at] += v;
    else
        ((float *)m.out)[at] = v;
}

__device__ static float silu(float g)
{
    return g / (1 + expf(-g));
}

template <int T, bool SILU>
__global__ void __launch_bounds__(THREADS)
    matvec_kernel(const struct CudaMatvec m, const uint8_t *up)
{
    int row = (int)(blockIdx.x * WARPS + threadIdx.x / WARP);
    if (row >= m.rows) return;
    int64_t at = (int64_t)row * (m.cols / Block<T>::WEIGHTS) * Block<T>::BYTES;
    float sum[MAX_X_ROWS], sum_up[MAX_X_ROWS];
    row_product<T>((const uint8_t *)m.w + at, m.x, m.cols, m.n_rows, sum);
    if (SILU) row_product<T>(up + at, m.x, m.cols, m.n_rows, sum_up);
    if (threadIdx.x % WARP != 0) return;
    for (int r = 0; r < m.n_rows; r++)
        store_output(m, r, row, SILU ? silu(sum[r]) * sum_up[r] : sum[r]);
}

struct Matvec {
    const struct CudaMatvec &m;
    const void *up;
    cudaStream_t stream;

    template <int T> cudaError_t run() const
    {
        if (m.cols % Block<T>::WEIGHTS != 0) return cudaErrorInvalidValue;
        unsigned grid = (unsigned)((m.rows + WARPS - 1) / WARPS);
        if (up)
            matvec_kernel<T, true><<<grid, THREADS, 0, stream>>>(m, (const uint8_t *)up);
        else
            matvec_kernel<T, false><<<grid, THREADS, 0, stream>>>(m, NULL);
        return cudaGetLastError();
    }
};

static bool shape_ok(const struct CudaMatvec *m)
{
    if (m->rows < 0 || m->cols <= 0 || m->n_rows < 1 || m->n_rows > MAX_X_ROWS) return false;
    return (uintptr_t)m->w % 16 == 0 && (uintptr_t)m->x % 16 == 0 && !(m->add && !m->out_f32);
}

cudaError_t cuda_matvec(const struct CudaMatvec *m, cudaStream_t s)
{
    if (!shape_ok(m)) return cudaErrorInvalidValue;
    if (m->rows == 0) return cudaSuccess;
    return with_block_type(m->type, Matvec{*m, NULL, s});
}

cudaError_t cuda_matvec_silu(const struct CudaMatvec *m, const void *up, cudaStream_t s)
{
    if (!shape_ok(m) || !up || (uintptr_t)up % 16 != 0) return cudaErrorInvalidValue;
    if (m->bias || m->out_f32 || m->add) return cudaErrorInvalidValue;
    if (m->rows == 0) return cudaSuccess;
    return with_block_type(m->type, Matvec{*m, up, s});
}

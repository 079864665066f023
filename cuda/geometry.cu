/* geometry.cu - rows of random weights made where they are used, by the rule of src/geometry.h. */
#include "device.h"

#include <cuda_fp16.h>

#define GOLDEN 0x9e3779b97f4a7c15ull

static __device__ uint64_t word(const struct GeometryRule &r, int64_t row, uint64_t i)
{
    uint64_t z = r.seed + ((uint64_t)row << 32) * GOLDEN + i * GOLDEN;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Eight values a thread; an f16 value is rounded as a file of f16 would hold it. */
static __global__ void plain_kernel(struct GeometryRule r, bool half, int row0, int cols, size_t n,
                                    bf16 *out)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    int words = (cols + 7) / 8;
    if (i >= n) return;
    size_t row = i / words;
    int first = (int)(i % words) * 8;
    uint64_t bytes = word(r, row0 + (int64_t)row, i % words);
    for (int j = 0; j < 8 && first + j < cols; j++) {
        float v = (float)(2 * (int)(bytes >> 8 * j & 255) - 255) * r.step;
        if (half) v = __half2float(__float2half(v));
        out[row * cols + first + j] = __float2bfloat16(v);
    }
}

static __device__ uint64_t put_words(const struct GeometryRule &r, int64_t row, uint64_t i,
                                     uint64_t odd, uint8_t *out, int bytes)
{
    for (int at = 0; at < bytes; at += 8, i++) {
        uint64_t bits = word(r, row, i) | odd;
        for (int j = 0; j < 8 && at + j < bytes; j++) out[at + j] = (uint8_t)(bits >> 8 * j);
    }
    return i;
}

/* A block a thread. */
static __global__ void block_kernel(struct GeometryRule r, int row0, int per_row, size_t n,
                                    uint8_t *out)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int64_t row = row0 + (int64_t)(i / per_row);
    uint64_t words = (uint64_t)((r.low + 7) / 8 + (r.high + 7) / 8);
    uint8_t *block = out + i * r.block_bytes;
    for (int j = 0; j < r.block_bytes; j++) block[j] = r.block[j];
    uint64_t next = put_words(r, row, i % per_row * words, r.odd, block + r.low_at, r.low);
    put_words(r, row, next, 0, block + r.high_at, r.high);
}

cudaError_t geometry_fill(const struct Weight *w, int row, int n_rows, void *out, cudaStream_t s)
{
    enum { THREADS = 256 };
    struct GeometryRule r;
    geometry_rule(w, &r);
    size_t per_row = r.plain ? (size_t)(w->cols + 7) / 8 : (size_t)(w->cols / r.block_weights);
    size_t n = per_row * n_rows;
    unsigned blocks = (unsigned)((n + THREADS - 1) / THREADS);
    if (r.plain)
        plain_kernel<<<blocks, THREADS, 0, s>>>(r, w->type == DT_F16, row, w->cols, n, (bf16 *)out);
    else
        block_kernel<<<blocks, THREADS, 0, s>>>(r, row, (int)per_row, n, (uint8_t *)out);
    return cudaGetLastError();
}

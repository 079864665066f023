/* codes.cuh - KV pages whose numbers are codes of 8 or 4 bits (BITS), as the device holds them.
 *
 * Of each token K and V are whole numbers c >= 0 with a scale and a zero: x = zero + scale * c. A page holds the codes of K
 * [64, head_dim], those of V, then (scale, zero) of each token's K and of its V, [2, 64] pairs of f16. A row's codes stand in
 * pieces of 8 values: 8 bytes in order; or 4 bytes, with value 2 j in bits 4 j and value 2 j + 1 in bits 16 + 4 j, so that one
 * mask takes out two that belong together. Nothing of a page belongs to two tokens but the page.
 */
#ifndef PCOMP_CUDA_CODES_CUH
#define PCOMP_CUDA_CODES_CUH

#include "kernels.h"
#include "mma.cuh"

#include <cuda_fp16.h>

/* Bytes of 8 codes. */
template <int BITS> struct CodePiece;
template <> struct CodePiece<8> {
    using Type = uint2;
};
template <> struct CodePiece<4> {
    using Type = uint32_t;
};

template <int BITS> __host__ __device__ constexpr int code_row_bytes(int head_dim)
{
    return head_dim * BITS / 8;
}

template <int BITS> __host__ __device__ constexpr int code_page_bytes(int head_dim)
{
    return 2 * CUDA_PAGE_TOKENS * (code_row_bytes<BITS>(head_dim) + (int)sizeof(__half2));
}

/* part 0: K, 1: V. */
template <int BITS>
__device__ __forceinline__ typename CodePiece<BITS>::Type *code_row(void *page, int part, int slot,
                                                                    int head_dim)
{
    int row = part * CUDA_PAGE_TOKENS + slot;
    return (typename CodePiece<BITS>::Type *)((uint8_t *)page +
                                              row * code_row_bytes<BITS>(head_dim));
}

/* A token's scale and zero. */
template <int BITS>
__device__ __forceinline__ __half2 *code_grid(void *page, int part, int slot, int head_dim)
{
    uint8_t *grids = (uint8_t *)page + 2 * CUDA_PAGE_TOKENS * code_row_bytes<BITS>(head_dim);
    return (__half2 *)grids + part * CUDA_PAGE_TOKENS + slot;
}

/* ==== Codes to numbers ==== */

/* 0x43000000 | c << 16 is the f32 128 + c for c < 128, 0x4b000000 | c is 2^23 + c. */
__device__ __forceinline__ uint4 codes_expand(uint32_t piece, float2 grid)
{
    float zero = fmaf(-128.0f, grid.x, grid.y);
    uint32_t out[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t pair = (piece >> 4 * j & 0x000f000fu) | 0x43004300u;
        out[j] = pack_bf16(fmaf(__uint_as_float(pair << 16), grid.x, zero),
                           fmaf(__uint_as_float(pair & 0xffff0000u), grid.x, zero));
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

__device__ __forceinline__ uint4 codes_expand(uint2 piece, float2 grid)
{
    uint32_t out[4];
    auto number = [&](uint32_t word, int i) {
        float c = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 | i)) - 8388608.0f;
        return fmaf(c, grid.x, grid.y);
    };
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t word = j < 2 ? piece.x : piece.y;
        out[j] = pack_bf16(number(word, j % 2 * 2), number(word, j % 2 * 2 + 1));
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

/* 8 values of a token, from value 8 * piece on, as bf16. */
template <int BITS>
__device__ __forceinline__ uint4 codes_get(const void *page, int part, int slot, int piece,
                                           int head_dim)
{
    void *p = (void *)page;
    return codes_expand(code_row<BITS>(p, part, slot, head_dim)[piece],
                        __half22float2(*code_grid<BITS>(p, part, slot, head_dim)));
}

/* One value of a token. */
template <int BITS>
__device__ __forceinline__ float code_value(const void *page, int part, int slot, int i,
                                            int head_dim)
{
    void *p = (void *)page;
    float2 grid = __half22float2(*code_grid<BITS>(p, part, slot, head_dim));
    const uint8_t *row = (const uint8_t *)code_row<BITS>(p, part, slot, head_dim);
    int at = i / 8 * BITS * 8 + (BITS == 8 ? i % 8 * 8 : i % 8 / 2 * 4 + i % 2 * 16); /* bits */
    int c = row[at / 8] >> at % 8 & ((1 << BITS) - 1);
    return fmaf((float)c, grid.x, grid.y);
}

/* ==== Numbers to codes ==== */

__device__ __forceinline__ uint32_t codes_pack(const uint32_t (&c)[8], uint32_t)
{
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) word |= c[i] << (i / 2 * 4 + i % 2 * 16);
    return word;
}

__device__ __forceinline__ uint2 codes_pack(const uint32_t (&c)[8], uint2)
{
    return make_uint2(c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24,
                      c[4] | c[5] << 8 | c[6] << 16 | c[7] << 24);
}

/* A warp's largest and smallest number, and NaN in `broken` where one is none. */
struct CodeRange {
    float low, high, broken;

    __device__ __forceinline__ CodeRange(const float (&x)[8], bool has)
        : low(INFINITY), high(-INFINITY), broken(0)
    {
#pragma unroll
        for (int i = 0; has && i < 8; i++) {
            low = fminf(low, x[i]);
            high = fmaxf(high, x[i]);
            broken += x[i] * 0;
        }
        for (int d = 16; d; d >>= 1) {
            low = fminf(low, __shfl_xor_sync(~0u, low, d));
            high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
            broken += __shfl_xor_sync(~0u, broken, d);
        }
    }
};

/* One warp: a token's K or V to its place. Lane i brings values 8 i to 8 i + 7, as bf16, while there are such. The same
 * numbers as the CPU's grid_of and code_of give (kernels_codes.c). */
template <int BITS>
__device__ __forceinline__ void codes_put(void *page, int part, int slot, uint4 values,
                                          int head_dim)
{
    constexpr float TOP = (1 << BITS) - 1, F16_MOST = 65504;
    int lane = threadIdx.x % 32;
    bool has = lane < head_dim / 8;
    const uint32_t word[4] = {values.x, values.y, values.z, values.w};
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] = __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
    CodeRange r(x, has);
    float low = fminf(fmaxf(r.low, -F16_MOST), F16_MOST);
    __half2 grid =
        __halves2half2(__float2half_rn(fminf((r.high - fmaxf(r.low, -F16_MOST)) / TOP, F16_MOST)),
                       __float2half_rn(low + r.broken));
    float2 g = __half22float2(grid);
    uint32_t c[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        c[i] = g.x > 0 ? (uint32_t)fminf(fmaxf(rintf((x[i] - g.y) / g.x), 0), TOP) : 0;
    if (has)
        code_row<BITS>(page, part, slot, head_dim)[lane] =
            codes_pack(c, typename CodePiece<BITS>::Type());
    if (lane == 0) *code_grid<BITS>(page, part, slot, head_dim) = grid;
}

#endif

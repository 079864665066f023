/* blocks.cuh - GGUF blocks decoded eight weights at a time, for kernels and for their tests on the host.
 *
 * The values are those of src/quant.c: every product of a scale and a code is exact in f32 and only the addition of
 * a minimum rounds, so neither the order nor a fused multiply-add changes a bit.
 */
#ifndef PCOMP_CUDA_BLOCKS_CUH
#define PCOMP_CUDA_BLOCKS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

#include "../src/quant.h"

#define BLOCKS_FN static __host__ __device__ __forceinline__

/* Blocks of 18, 22, 34 and 210 bytes leave only two bytes of alignment. */
BLOCKS_FN uint32_t load_u16(const uint8_t *p)
{
    return *(const uint16_t *)(const void *)p;
}

BLOCKS_FN uint32_t load_u32(const uint8_t *p)
{
    return load_u16(p) | load_u16(p + 2) << 16;
}

BLOCKS_FN float load_half(const uint8_t *p)
{
    __half_raw h;
    h.x = (unsigned short)load_u16(p);
    return __half2float(__half(h));
}

/* Four codes, one a byte, to floats less `offset`. */
BLOCKS_FN void widen4(uint32_t codes, float offset, float *w)
{
    for (int i = 0; i < 4; i++) w[i] = (float)(codes >> 8 * i & 255) - offset;
}

/* Four bits to bit 4 of four bytes. */
BLOCKS_FN uint32_t spread4(uint32_t bits)
{
    return (bits & 1) << 4 | (bits & 2) << 11 | (bits & 4) << 18 | (bits & 8) << 25;
}

/* Weights 8 i to 8 i + 7 of a block of type T; `scale` and `add` say w = code * scale + add. */
template <int T> struct Block;

/* The low halves of the bytes are the first 16 weights, the high halves the others. */
BLOCKS_FN void nibbles8(const uint8_t *qs, int i, uint32_t *codes)
{
    const uint8_t *p = qs + 8 * (i & 1);
    int shift = i & 2 ? 4 : 0;
    codes[0] = load_u32(p) >> shift & 0x0f0f0f0f;
    codes[1] = load_u32(p + 4) >> shift & 0x0f0f0f0f;
}

BLOCKS_FN void fifth_bits8(const uint8_t *high, int i, uint32_t *codes)
{
    uint32_t bits = load_u16(high + (i & 2)) >> 8 * (i & 1) & 255;
    codes[0] |= spread4(bits & 15);
    codes[1] |= spread4(bits >> 4);
}

BLOCKS_FN void scale8(const uint32_t *codes, float offset, float scale, float add, float *w)
{
    widen4(codes[0], offset, w);
    widen4(codes[1], offset, w + 4);
    for (int k = 0; k < 8; k++) w[k] = w[k] * scale + add;
}

/* (code - offset) * scale, kept apart from scale8: adding +0 would turn -0 into +0. */
BLOCKS_FN void center8(const uint32_t *codes, float offset, float scale, float *w)
{
    widen4(codes[0], offset, w);
    widen4(codes[1], offset, w + 4);
    for (int k = 0; k < 8; k++) w[k] *= scale;
}

template <> struct Block<DT_Q4_0> {
    enum { WEIGHTS = 32, BYTES = 18 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        uint32_t codes[2];
        nibbles8(b + 2, i, codes);
        center8(codes, 8, load_half(b), w);
    }
};

template <> struct Block<DT_Q4_1> {
    enum { WEIGHTS = 32, BYTES = 20 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        uint32_t codes[2];
        nibbles8(b + 4, i, codes);
        scale8(codes, 0, load_half(b), load_half(b + 2), w);
    }
};

template <> struct Block<DT_Q5_0> {
    enum { WEIGHTS = 32, BYTES = 22 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        uint32_t codes[2];
        nibbles8(b + 6, i, codes);
        fifth_bits8(b + 2, i, codes);
        center8(codes, 16, load_half(b), w);
    }
};

template <> struct Block<DT_Q5_1> {
    enum { WEIGHTS = 32, BYTES = 24 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        uint32_t codes[2];
        nibbles8(b + 8, i, codes);
        fifth_bits8(b + 4, i, codes);
        scale8(codes, 0, load_half(b), load_half(b + 2), w);
    }
};

template <> struct Block<DT_Q8_0> {
    enum { WEIGHTS = 32, BYTES = 34 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        float d = load_half(b);
        for (int k = 0; k < 8; k += 4) {
            uint32_t q = load_u32(b + 2 + 8 * i + k);
            for (int j = 0; j < 4; j++) w[k + j] = d * (float)(int8_t)(q >> 8 * j & 255);
        }
    }
};

/* Scale and minimum of group j (32 weights) of a Q4_K or Q5_K block: 6 bits each, packed in 12 bytes. */
BLOCKS_FN void group_scales(const uint8_t *s, int j, float *scale, float *min)
{
    int k = j & 3;
    if (j < 4) {
        *scale = (float)(s[k] & 63);
        *min = (float)(s[k + 4] & 63);
    } else {
        *scale = (float)((s[k + 8] & 15) | (s[k] >> 6) << 4);
        *min = (float)(s[k + 8] >> 4 | (s[k + 4] >> 6) << 4);
    }
}

template <> struct Block<DT_Q4_K> {
    enum { WEIGHTS = 256, BYTES = 144 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        int j = i >> 2;
        float scale, min;
        group_scales(b + 4, j, &scale, &min);
        const uint8_t *qs = b + 16 + 32 * (j >> 1) + 8 * (i & 3);
        int shift = j & 1 ? 4 : 0;
        uint32_t codes[2];
        for (int k = 0; k < 2; k++) codes[k] = load_u32(qs + 4 * k) >> shift & 0x0f0f0f0f;
        scale8(codes, 0, load_half(b) * scale, -(load_half(b + 2) * min), w);
    }
};

template <> struct Block<DT_Q5_K> {
    enum { WEIGHTS = 256, BYTES = 176 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        int j = i >> 2;
        float scale, min;
        group_scales(b + 4, j, &scale, &min);
        const uint8_t *high = b + 16 + 8 * (i & 3), *qs = b + 48 + 32 * (j >> 1) + 8 * (i & 3);
        int shift = j & 1 ? 4 : 0;
        uint32_t codes[2];
        for (int k = 0; k < 2; k++) {
            uint32_t h = load_u32(high + 4 * k) >> j & 0x01010101;
            codes[k] = (load_u32(qs + 4 * k) >> shift & 0x0f0f0f0f) | h << 4;
        }
        scale8(codes, 0, load_half(b) * scale, -(load_half(b + 2) * min), w);
    }
};

template <> struct Block<DT_Q6_K> {
    enum { WEIGHTS = 256, BYTES = 210 };
    BLOCKS_FN void decode8(const uint8_t *b, int i, float *w)
    {
        /* A half of 128 weights has four rows of 32, a row four eights. */
        int half = i >> 4, row = i >> 2 & 3, at = 8 * (i & 3);
        const uint8_t *ql = b + 64 * half + 32 * (row & 1) + at, *qh = b + 128 + 32 * half + at;
        int shift = row & 2 ? 4 : 0;
        uint32_t codes[2];
        for (int k = 0; k < 2; k++) {
            uint32_t high = load_u32(qh + 4 * k) >> 2 * row & 0x03030303;
            codes[k] = (load_u32(ql + 4 * k) >> shift & 0x0f0f0f0f) | high << 4;
        }
        float scale = (float)(int8_t)b[192 + (i >> 1)];
        center8(codes, 32, load_half(b + 208) * scale, w);
    }
};

/* Plain types go by eight weights too. */
template <> struct Block<DT_F32> {
    enum { WEIGHTS = 8, BYTES = 32 };
    BLOCKS_FN void decode8(const uint8_t *b, int, float *w)
    {
        for (int k = 0; k < 8; k++) w[k] = ((const float *)(const void *)b)[k];
    }
};

template <> struct Block<DT_F16> {
    enum { WEIGHTS = 8, BYTES = 16 };
    BLOCKS_FN void decode8(const uint8_t *b, int, float *w)
    {
        for (int k = 0; k < 8; k++) w[k] = load_half(b + 2 * k);
    }
};

template <> struct Block<DT_BF16> {
    enum { WEIGHTS = 8, BYTES = 16 };
    BLOCKS_FN void decode8(const uint8_t *b, int, float *w)
    {
        for (int k = 0; k < 8; k++) {
            __nv_bfloat16_raw h;
            h.x = (unsigned short)load_u16(b + 2 * k);
            w[k] = __bfloat162float(__nv_bfloat16(h));
        }
    }
};

/* Calls f.template run<T>() for the type; cudaErrorInvalidValue for one that has no decoder. */
template <class F> static cudaError_t with_block_type(int type, F f)
{
    switch (type) {
    case DT_F32:
        return f.template run<DT_F32>();
    case DT_F16:
        return f.template run<DT_F16>();
    case DT_BF16:
        return f.template run<DT_BF16>();
    case DT_Q4_0:
        return f.template run<DT_Q4_0>();
    case DT_Q4_1:
        return f.template run<DT_Q4_1>();
    case DT_Q5_0:
        return f.template run<DT_Q5_0>();
    case DT_Q5_1:
        return f.template run<DT_Q5_1>();
    case DT_Q8_0:
        return f.template run<DT_Q8_0>();
    case DT_Q4_K:
        return f.template run<DT_Q4_K>();
    case DT_Q5_K:
        return f.template run<DT_Q5_K>();
    case DT_Q6_K:
        return f.template run<DT_Q6_K>();
    default:
        return cudaErrorInvalidValue;
    }
}

#endif

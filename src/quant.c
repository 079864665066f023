/* quant.c - stored tensor types and their exact f32 values.
 *
 * Every quantised value here is d * q or d * q + m with d of 11 significant bits and small whole q,
 * so the products are exact in f32 and only the final addition rounds: the result does not depend
 * on how the compiler orders or fuses the arithmetic. Weights are decoded eight at a time, with fixed
 * trip counts and no branches.
 */
#include "quant.h"

#include <string.h>

#if defined __F16C__ || defined __AVX2__
#include <immintrin.h>
#endif

#define SMALL_BLOCK 32  /* weights in a block of Q4_0 … Q8_0 */
#define SUPER_BLOCK 256 /* weights in a block of Q4_K, Q5_K, Q6_K */

struct TypeInfo {
    const char *name;
    int weights, bytes; /* of one block; 0 for a type that is only named */
};

/* clang-format off */
static const struct TypeInfo types[] = {
    [0] = { "F32", 1, 4 },          [1] = { "F16", 1, 2 },
    [2] = { "Q4_0", 32, 18 },       [3] = { "Q4_1", 32, 20 },
    [4] = { "Q4_2", 0, 0 },         [5] = { "Q4_3", 0, 0 },
    [6] = { "Q5_0", 32, 22 },       [7] = { "Q5_1", 32, 24 },
    [8] = { "Q8_0", 32, 34 },       [9] = { "Q8_1", 0, 0 },
    [10] = { "Q2_K", 0, 0 },        [11] = { "Q3_K", 0, 0 },
    [12] = { "Q4_K", 256, 144 },    [13] = { "Q5_K", 256, 176 },
    [14] = { "Q6_K", 256, 210 },    [15] = { "Q8_K", 0, 0 },
    [16] = { "IQ2_XXS", 0, 0 },     [17] = { "IQ2_XS", 0, 0 },
    [18] = { "IQ3_XXS", 0, 0 },     [19] = { "IQ1_S", 0, 0 },
    [20] = { "IQ4_NL", 0, 0 },      [21] = { "IQ3_S", 0, 0 },
    [22] = { "IQ2_S", 0, 0 },       [23] = { "IQ4_XS", 0, 0 },
    [24] = { "I8", 0, 0 },          [25] = { "I16", 0, 0 },
    [26] = { "I32", 0, 0 },         [27] = { "I64", 0, 0 },
    [28] = { "F64", 0, 0 },         [29] = { "IQ1_M", 0, 0 },
    [30] = { "BF16", 1, 2 },        [31] = { "Q4_0_4_4", 0, 0 },
    [32] = { "Q4_0_4_8", 0, 0 },    [33] = { "Q4_0_8_8", 0, 0 },
    [34] = { "TQ1_0", 0, 0 },       [35] = { "TQ2_0", 0, 0 },
    [36] = { "IQ4_NL_4_4", 0, 0 },  [37] = { "IQ4_NL_4_8", 0, 0 },
    [38] = { "IQ4_NL_8_8", 0, 0 },  [39] = { "MXFP4", 0, 0 },
    [40] = { "NVFP4", 0, 0 },       [41] = { "Q1_0", 0, 0 },
};
/* clang-format on */

#define N_TYPES (sizeof types / sizeof types[0])

bool dtype_block(uint32_t type, int *weights, int *bytes)
{
    if (type >= N_TYPES || types[type].weights == 0) return false;
    *weights = types[type].weights;
    *bytes = types[type].bytes;
    return true;
}

const char *dtype_name(uint32_t type)
{
    return type < N_TYPES ? types[type].name : NULL;
}

size_t dtype_row_bytes(enum DType type, int64_t cols)
{
    int weights, bytes;
    if (!dtype_block((uint32_t)type, &weights, &bytes)) return 0;
    if (cols <= 0 || cols % weights != 0 || cols / weights > INT64_MAX / bytes) return 0;
    return (size_t)(cols / weights) * (size_t)bytes;
}

/* ==== Half precision ==== */

#ifdef __F16C__

float f16_to_f32(uint16_t h)
{
    return _cvtsh_ss(h);
}

uint16_t f32_to_f16(float f)
{
    return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
}

#else

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, frac = h & 0x3ff;
    union {
        uint32_t u;
        float f;
    } v;
    if (exp == 0) { /* zero or subnormal: frac * 2^-24, exact in f32 */
        v.f = (float)frac * 0x1p-24f;
        v.u |= sign;
        return v.f;
    }
    /* A NaN comes back quiet, as the hardware conversion gives it. */
    if (exp == 31)
        v.u = sign | 0x7f800000 | frac << 13 | (frac ? 0x400000 : 0);
    else
        v.u = sign | (exp + 112) << 23 | frac << 13;
    return v.f;
}

uint16_t f32_to_f16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = {f};
    uint16_t sign = (uint16_t)(v.u >> 16 & 0x8000);
    uint32_t mag = v.u & 0x7fffffff;
    if (mag > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (mag >> 13 & 0x3ff));
    if (mag >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and up round to infinity */
    if (mag < 0x38800000) { /* below 2^-14: adding 0.5 makes the f32 adder round at 2^-24 */
        v.u = mag;
        v.f += 0.5f;
        return (uint16_t)(sign | (v.u - 0x3f000000));
    }
    mag += 0xfff + (mag >> 13 & 1); /* ties to even */
    return (uint16_t)(sign | (mag - 0x38000000) >> 13);
}

#endif

static inline float load_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return f16_to_f32(h);
}

/* ==== Plain types ==== */

static void decode_f16(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(src + 2 * i));
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(h));
    }
#endif
    for (; i < n; i++) dst[i] = load_f16(src + 2 * i);
}

static void decode_bf16(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, src + 2 * i, sizeof h);
        dst[i] = bf16_to_f32(h);
    }
}

/* ==== Eight weights at a time ==== */

/* Compilers do not widen loops over 8 or 16 bytes well, so eight codes travel as the bytes of one
 * word, are taken apart with word arithmetic, and become eight floats at once. */
#define LOW_NIBBLES 0x0f0f0f0f0f0f0f0fu

static inline uint64_t load_word(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, sizeof w);
    return w;
}

/* store_scaled: code * scale + add. store_centered: (code - offset) * scale; the subtraction comes
 * first because scale * code - scale * offset would round, and give +0 for -0. */
#ifdef __AVX2__

static inline __m256 widen(uint64_t codes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)codes)));
}

static inline void store_scaled(float *dst, uint64_t codes, float scale, float add)
{
    __m256 x = _mm256_mul_ps(widen(codes), _mm256_set1_ps(scale));
    _mm256_storeu_ps(dst, _mm256_add_ps(x, _mm256_set1_ps(add)));
}

static inline void store_centered(float *dst, uint64_t codes, float scale, float offset)
{
    __m256 x = _mm256_sub_ps(widen(codes), _mm256_set1_ps(offset));
    _mm256_storeu_ps(dst, _mm256_mul_ps(x, _mm256_set1_ps(scale)));
}

#else

static inline void store_scaled(float *dst, uint64_t codes, float scale, float add)
{
    for (int i = 0; i < 8; i++) dst[i] = (float)(codes >> 8 * i & 255) * scale + add;
}

static inline void store_centered(float *dst, uint64_t codes, float scale, float offset)
{
    for (int i = 0; i < 8; i++) dst[i] = ((float)(codes >> 8 * i & 255) - offset) * scale;
}

#endif

/* Eight bits to eight bytes, 16 where the bit is set (bit 0 first). */
static inline uint64_t spread_bits(uint8_t bits)
{
    uint64_t own = bits * 0x0101010101010101u & 0x8040201008040201u; /* byte i keeps bit i */
    return ((own + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
}

/* ==== Blocks of 32 ==== */

/* The first 16 weights sit in the low halves of the bytes of qs, the other 16 in the high halves. */
static inline void split_nibbles(const uint8_t *qs, uint64_t *codes)
{
    uint64_t w0 = load_word(qs), w1 = load_word(qs + 8);
    codes[0] = w0 & LOW_NIBBLES;
    codes[1] = w1 & LOW_NIBBLES;
    codes[2] = w0 >> 4 & LOW_NIBBLES;
    codes[3] = w1 >> 4 & LOW_NIBBLES;
}

/* As split_nibbles, with bit i of `high` as the fifth bit of weight i. */
static inline void split_five_bits(const uint8_t *high, const uint8_t *qs, uint64_t *codes)
{
    split_nibbles(qs, codes);
    for (int i = 0; i < 4; i++) codes[i] |= spread_bits(high[i]);
}

static void decode_q4_0(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t b = 0; b < n / SMALL_BLOCK; b++, src += 18, dst += SMALL_BLOCK) {
        uint64_t codes[4];
        split_nibbles(src + 2, codes);
        for (int i = 0; i < 4; i++) store_centered(dst + 8 * i, codes[i], load_f16(src), 8);
    }
}

static void decode_q4_1(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t b = 0; b < n / SMALL_BLOCK; b++, src += 20, dst += SMALL_BLOCK) {
        float d = load_f16(src), m = load_f16(src + 2);
        uint64_t codes[4];
        split_nibbles(src + 4, codes);
        for (int i = 0; i < 4; i++) store_scaled(dst + 8 * i, codes[i], d, m);
    }
}

static void decode_q5_0(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t b = 0; b < n / SMALL_BLOCK; b++, src += 22, dst += SMALL_BLOCK) {
        uint64_t codes[4];
        split_five_bits(src + 2, src + 6, codes);
        for (int i = 0; i < 4; i++) store_centered(dst + 8 * i, codes[i], load_f16(src), 16);
    }
}

static void decode_q5_1(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t b = 0; b < n / SMALL_BLOCK; b++, src += 24, dst += SMALL_BLOCK) {
        float d = load_f16(src), m = load_f16(src + 2);
        uint64_t codes[4];
        split_five_bits(src + 4, src + 8, codes);
        for (int i = 0; i < 4; i++) store_scaled(dst + 8 * i, codes[i], d, m);
    }
}

static void decode_q8_0(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t b = 0; b < n / SMALL_BLOCK; b++, src += 34, dst += SMALL_BLOCK) {
        float d = load_f16(src);
        const int8_t *q = (const int8_t *)(src + 2);
        for (int i = 0; i < SMALL_BLOCK; i++) dst[i] = d * (float)q[i];
    }
}

/* ==== Blocks of 256 ==== */

/* Six-bit scales and minima of the eight 32-weight groups of Q4_K and Q5_K, packed in 12 bytes:
 * the first four of each whole in bytes 0-3 and 4-7, whose two top bits hold the top bits of the
 * last four; their low bits share bytes 8-11. */
static inline void unpack_scales(const uint8_t *s, uint8_t *scale, uint8_t *min)
{
    for (int j = 0; j < 4; j++) {
        scale[j] = s[j] & 63;
        min[j] = s[j + 4] & 63;
        scale[j + 4] = (uint8_t)((s[j + 8] & 15) | (s[j] >> 6) << 4);
        min[j + 4] = (uint8_t)(s[j + 8] >> 4 | (s[j + 4] >> 6) << 4);
    }
}

static void decode_q4_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t b = 0; b < n / SUPER_BLOCK; b++, src += 144) {
        float d = load_f16(src), dmin = load_f16(src + 2);
        uint8_t scale[8], min[8];
        unpack_scales(src + 4, scale, min);
        const uint8_t *qs = src + 16;
        for (int j = 0; j < 8; j += 2, qs += 32, dst += 64) {
            float d0 = d * scale[j], m0 = dmin * min[j];
            float d1 = d * scale[j + 1], m1 = dmin * min[j + 1];
            for (int i = 0; i < 32; i += 8) {
                uint64_t w = load_word(qs + i);
                store_scaled(dst + i, w & LOW_NIBBLES, d0, -m0);
                store_scaled(dst + 32 + i, w >> 4 & LOW_NIBBLES, d1, -m1);
            }
        }
    }
}

static void decode_q5_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t b = 0; b < n / SUPER_BLOCK; b++, src += 176) {
        float d = load_f16(src), dmin = load_f16(src + 2);
        uint8_t scale[8], min[8];
        unpack_scales(src + 4, scale, min);
        const uint8_t *high = src + 16, *qs = src + 48;
        for (int j = 0; j < 8; j += 2, qs += 32, dst += 64) {
            float d0 = d * scale[j], m0 = dmin * min[j];
            float d1 = d * scale[j + 1], m1 = dmin * min[j + 1];
            for (int i = 0; i < 32; i += 8) {
                uint64_t w = load_word(qs + i), h = load_word(high + i) >> j;
                uint64_t h0 = h & 0x0101010101010101u, h1 = h >> 1 & 0x0101010101010101u;
                store_scaled(dst + i, (w & LOW_NIBBLES) | h0 << 4, d0, -m0);
                store_scaled(dst + 32 + i, (w >> 4 & LOW_NIBBLES) | h1 << 4, d1, -m1);
            }
        }
    }
}

/* Each half of a block holds 128 weights as four rows of 32: four low bits in 64 bytes of ql, two
 * high bits in 32 bytes of qh, and a scale for every 16. */
static void decode_q6_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    const uint64_t pairs = 0x0303030303030303u;
    for (int64_t b = 0; b < n / SUPER_BLOCK; b++, src += 210) {
        const uint8_t *ql = src, *qh = src + 128;
        float d[16], d_all = load_f16(src + 208);
        for (int i = 0; i < 16; i++) d[i] = d_all * (float)(int8_t)src[192 + i];
        for (int half = 0; half < 2; half++, ql += 64, qh += 32, dst += 128) {
            for (int i = 0; i < 32; i += 8) {
                const float *s = d + 8 * half + i / 16;
                uint64_t a = load_word(ql + i), c = load_word(ql + 32 + i), h = load_word(qh + i);
                store_centered(dst + i, (a & LOW_NIBBLES) | (h & pairs) << 4, s[0], 32);
                store_centered(dst + 32 + i, (c & LOW_NIBBLES) | (h >> 2 & pairs) << 4, s[2], 32);
                store_centered(dst + 64 + i, (a >> 4 & LOW_NIBBLES) | (h >> 4 & pairs) << 4, s[4],
                               32);
                store_centered(dst + 96 + i, (c >> 4 & LOW_NIBBLES) | (h >> 6 & pairs) << 4, s[6],
                               32);
            }
        }
    }
}

void quant_decode(enum DType type, const void *src, float *dst, int64_t n)
{
    /* clang-format off */
    switch (type) {
    case DT_F32: memcpy(dst, src, (size_t)n * sizeof *dst); break;
    case DT_F16: decode_f16(src, dst, n); break;
    case DT_BF16: decode_bf16(src, dst, n); break;
    case DT_Q4_0: decode_q4_0(src, dst, n); break;
    case DT_Q4_1: decode_q4_1(src, dst, n); break;
    case DT_Q5_0: decode_q5_0(src, dst, n); break;
    case DT_Q5_1: decode_q5_1(src, dst, n); break;
    case DT_Q8_0: decode_q8_0(src, dst, n); break;
    case DT_Q4_K: decode_q4_k(src, dst, n); break;
    case DT_Q5_K: decode_q5_k(src, dst, n); break;
    case DT_Q6_K: decode_q6_k(src, dst, n); break;
    }
    /* clang-format on */
}

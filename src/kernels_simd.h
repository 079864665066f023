/* kernels_simd.h - the few vector words the kernels are written in, for AVX2 and AVX-512.
 *
 * VL floats a vector (8 or 16). vf_ works on f32 lanes, vi_ on int32 lanes; vi_dot adds the products of
 * int16 pairs to int32 lanes, with VNNI where the copy is compiled for it.
 */
#ifndef PCOMP_KERNELS_SIMD_H
#define PCOMP_KERNELS_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)

enum { VL = 16, PANEL_VECS = 4 };
typedef __m512 vf;
typedef __m512i vi;

static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline float vf_sum(vf a)
{
    return _mm512_reduce_add_ps(a);
}
static inline float vf_hmax(vf a)
{
    return _mm512_reduce_max_ps(a);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_scale2(vf a, vf e)
{
    return _mm512_scalef_ps(a, e);
}
/* lanes < n keep a, the others take b */
static inline vf vf_first(int n, vf a, vf b)
{
    return _mm512_mask_blend_ps(n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1), b, a);
}
static inline vi vi_zero(void)
{
    return _mm512_setzero_si512();
}
static inline vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
static inline vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
static inline void vi_store(void *p, vi x)
{
    _mm512_storeu_si512(p, x);
}
/* bytes to int16, 2 * VL of them; bytes to int32, VL of them */
static inline vi vi_load_u8x2(const uint8_t *p)
{
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
static inline vi vi_load_u8(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
static inline vi vi_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}
static inline vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
static inline vi vi_left(vi a, int bits)
{
    return _mm512_slli_epi32(a, (unsigned)bits);
}
static inline vi vi_right(vi a, int bits)
{
    return _mm512_srli_epi32(a, (unsigned)bits);
}
/* 16 x 16 int32: first within 128-bit lanes, then the lanes themselves, in two halvings */
static inline void vi_transpose(vi r[VL])
{
    vi t[VL];
    for (int i = 0; i < VL; i += 4) {
        vi a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        vi c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]),
           d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        vi a = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88),
           b = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
        vi c = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88),
           d = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
        r[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}
static inline vf vi_to_f32(vi a)
{
    return _mm512_cvtepi32_ps(a);
}
/* 16 floats, rounded to nearest even, to 16 int16 */
static inline void vf_store_i16(int16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a)));
}
static inline vi vi_dot(vi acc, vi a, vi b)
{
#if defined(__AVX512VNNI__)
    /* gcc 12 copies and spills the accumulator around the intrinsic: 3x slower */
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
}

#else

enum { VL = 8, PANEL_VECS = 2 };
typedef __m256 vf;
typedef __m256i vi;

static inline vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_zero(void)
{
    return _mm256_setzero_ps();
}
static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline float vf_sum(vf a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float vf_hmax(vf a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a * 2^e for whole e in [-126, 127]; lower e give a tiny number instead of zero, which no sum here can tell */
static inline vf vf_scale2(vf a, vf e)
{
    __m256i n = _mm256_cvtps_epi32(_mm256_max_ps(e, _mm256_set1_ps(-126.0f)));
    return _mm256_mul_ps(
        a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)));
}
static inline vf vf_first(int n, vf a, vf b)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_ps(b, a,
                            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane)));
}
static inline vi vi_zero(void)
{
    return _mm256_setzero_si256();
}
static inline vi vi_load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
static inline vi vi_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}
static inline void vi_store(void *p, vi x)
{
    _mm256_storeu_si256((__m256i *)p, x);
}
static inline vi vi_load_u8x2(const uint8_t *p)
{
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
}
static inline vi vi_load_u8(const uint8_t *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
static inline vi vi_or(vi a, vi b)
{
    return _mm256_or_si256(a, b);
}
static inline vi vi_and(vi a, vi b)
{
    return _mm256_and_si256(a, b);
}
static inline vi vi_left(vi a, int bits)
{
    return _mm256_slli_epi32(a, bits);
}
static inline vi vi_right(vi a, int bits)
{
    return _mm256_srli_epi32(a, bits);
}
static inline void vi_transpose(vi r[VL])
{
    vi t[VL];
    for (int i = 0; i < VL; i += 4) {
        vi a = _mm256_unpacklo_epi32(r[i], r[i + 1]), b = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        vi c = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]),
           d = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm256_unpacklo_epi64(a, c);
        t[i + 1] = _mm256_unpackhi_epi64(a, c);
        t[i + 2] = _mm256_unpacklo_epi64(b, d);
        t[i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x31);
    }
}
static inline vf vi_to_f32(vi a)
{
    return _mm256_cvtepi32_ps(a);
}
static inline void vf_store_i16(int16_t *p, vf a)
{
    __m256i n = _mm256_cvtps_epi32(a);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1)));
}
static inline vi vi_dot(vi acc, vi a, vi b)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}

#endif

/* 2^x for x <= 0 (relative error below 3e-7); -inf and anything under 2^-126 give 0 or as good as 0. */
static inline vf vf_exp2(vf x)
{
    x = vf_max(x, vf_set1(-150.0f));
    vf n = vf_round(x), f = vf_sub(x, n);
    vf p = vf_set1(1.5353362e-4f);
    p = vf_fma(p, f, vf_set1(1.3398874e-3f));
    p = vf_fma(p, f, vf_set1(9.6184370e-3f));
    p = vf_fma(p, f, vf_set1(5.5503324e-2f));
    p = vf_fma(p, f, vf_set1(2.4022648e-1f));
    p = vf_fma(p, f, vf_set1(6.9314720e-1f));
    p = vf_fma(p, f, vf_set1(1.0f));
    return vf_scale2(p, n);
}

#endif

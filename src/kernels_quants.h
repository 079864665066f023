/* kernels_quants.h - quants of a matrix row widened to int16 and multiplied, for kernels_matvec.c.
 *
 * Integer sums are exact, and so is their conversion to f32: a lane takes 8 products at most of quants
 * below 32, or 4 of quants below 64 or within +-128, with vector values within +-32767, and stays below 2^24.
 * The vector comes in `pieces`: packed bytes read as 16-bit words fall apart into
 * values 0, 2, … 14 of a block, then 16, 18, … 30, then 1, 3, … 15 and 17, 19, … 31.
 */
#ifndef PCOMP_KERNELS_QUANTS_H
#define PCOMP_KERNELS_QUANTS_H

#include "kernels_simd.h"
#include "quant.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    BLOCK = 32,  /* values that share a scale of the vector */
    QUAD = 128,  /* values of four blocks */
    SUPER = 256, /* weights of a K block */
};

/* Where piece k < 4 of a block lies: by block, or, for AVX-512, beside those of three more blocks. */
INLINE size_t piece_at(size_t block, size_t k)
{
    if (VL == 8) return block * BLOCK + k * 8;
    return block / 4 * QUAD + k * BLOCK + block % 4 * 8;
}

/* Bytes of a block of 32 weights. */
INLINE int flat_bytes(enum DType type)
{
    return type == DT_Q4_0   ? 18
           : type == DT_Q4_1 ? 20
           : type == DT_Q5_0 ? 22
           : type == DT_Q5_1 ? 24
                             : 34;
}

enum { WORD_VECS = 16 / VL }; /* vectors that hold 32 int16 */

struct Words {
    vi v[WORD_VECS];
};

INLINE uint32_t load32(const uint8_t *p)
{
    uint32_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

INLINE __m128i load128(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

INLINE __m256i load256(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

INLINE struct Words words_load(const int16_t *p)
{
    struct Words w;
    for (int i = 0; i < WORD_VECS; i++) w.v[i] = vi_load(p + 2 * VL * i);
    return w;
}

/* Weights whose products one pass over the lanes sums, 16 weights in 4 lanes. */
enum { SIX_UNIT = 4 * VL };

#if defined(__AVX512F__)

/* ==== AVX-512 ==== */

INLINE vf words_dot(struct Words a, struct Words b)
{
    return vi_to_f32(_mm512_madd_epi16(a.v[0], b.v[0]));
}

INLINE struct Words widen_int8(const uint8_t *p)
{
    return (struct Words){{_mm512_cvtepi8_epi16(load256(p))}};
}

INLINE vi low_nibbles(vi v)
{
    return _mm512_and_si512(v, _mm512_set1_epi16(15));
}

/* Adds 16 to the words whose bit is set in `from`. */
INLINE vi add_fifth(vi v, vi from, vi bit)
{
    return _mm512_mask_add_epi16(v, _mm512_test_epi16_mask(from, bit), v, _mm512_set1_epi16(16));
}

/* The f16 numbers in the low words of int32 lanes. */
INLINE vf vf_from_half(vi v)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}

INLINE vf vf_from_int8(const uint8_t *p)
{
    return vi_to_f32(_mm512_cvtepi8_epi32(load128(p)));
}

INLINE vf vf_from_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(load256((const uint8_t *)p)), 16));
}

INLINE vi vi_high_words(vi v)
{
    return _mm512_srli_epi32(v, 16);
}

/* Four floats, over and over. */
INLINE vf vf_load4(const float *p)
{
    return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
}

/* Four of the eight 128-bit quarters of two vectors. */
#define PICK(a, b, i0, i1, i2, i3) _mm512_permutex2var_epi64(a, QUARTERS(i0, i1, i2, i3), b)
#define QUARTERS(i0, i1, i2, i3)                                                                   \
    _mm512_setr_epi64(2 * i0, 2 * i0 + 1, 2 * i1, 2 * i1 + 1, 2 * i2, 2 * i2 + 1, 2 * i3,          \
                      2 * i3 + 1)

INLINE vi vi_join(const __m128i q[4])
{
    __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(q[0]), q[1], 1);
    __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(q[2]), q[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

INLINE __m256 vf_fold(vf v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

/* Only Q8_0 is multiplied block by block. */
INLINE struct Words flat_widen(enum DType type, const uint8_t *b)
{
    (void)type;
    return widen_int8(b + 2);
}

/* Where the parts of four blocks of `s` words lie in two vectors, one with their first 32 words and one
 * with their last 32: indices for permutex2var. */
#define AT(s, w)   ((w) < 32 ? (w) : (w) + 64 - 4 * (s))
#define PAIR(s, w) AT(s, w), AT(s, w + 1)
#define RUN(s, w)  PAIR(s, w), PAIR(s, w + 2), PAIR(s, w + 4), PAIR(s, w + 6)
#define SAME(s, w) AT(s, w), AT(s, w), AT(s, w), AT(s, w), AT(s, w), AT(s, w), AT(s, w), AT(s, w)
#define HEAD(s)    PAIR(s, 0), PAIR(s, s), PAIR(s, 2 * s), PAIR(s, 3 * s)
#define PARTS(s)                                                                                   \
    {                                                                                              \
        {HEAD(s), HEAD(s), HEAD(s), HEAD(s)},                                                      \
            {RUN(s, s - 8), RUN(s, 2 * s - 8), RUN(s, 3 * s - 8), RUN(s, 4 * s - 8)},              \
            {SAME(s, s - 10), SAME(s, 2 * s - 10), SAME(s, 3 * s - 10), SAME(s, 4 * s - 10)},      \
            {SAME(s, s - 9), SAME(s, 2 * s - 9), SAME(s, 3 * s - 9), SAME(s, 4 * s - 9)},          \
    }

enum QuadPart { HEADS, QUANTS, FIFTH_LOW, FIFTH_HIGH };

/* By words of a block, from 9 (Q4_0) to 12 (Q5_1). The fifth bits: low or high half of each block's. */
static const int16_t quad_parts[4][4][32] = {PARTS(9), PARTS(10), PARTS(11), PARTS(12)};

/* The first and the last 64 bytes of four blocks. */
struct QuadBytes {
    vi first, last;
};

/* Reads nothing behind the n present blocks; the others are zeros. */
INLINE struct QuadBytes quad_load(const uint8_t *b, int size, int n)
{
    if (n == 4) return (struct QuadBytes){vi_load(b), vi_load(b + 4 * size - 64)};
    int have = n * size, have_last = have - (4 * size - 64);
    __mmask64 first = have >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << have) - 1;
    __mmask64 last = have_last <= 0 ? 0 : (UINT64_C(1) << have_last) - 1;
    return (struct QuadBytes){_mm512_maskz_loadu_epi8(first, b),
                              _mm512_maskz_loadu_epi8(last, b + 4 * size - 64)};
}

INLINE vi quad_part(enum DType type, struct QuadBytes q, enum QuadPart part)
{
    return _mm512_permutex2var_epi16(q.first, vi_load(quad_parts[flat_bytes(type) / 2 - 9][part]),
                                     q.last);
}

/* Products of four blocks of a row: lanes 4 j .. 4 j + 3 belong to block j. */
INLINE vf quad_dot(enum DType type, struct QuadBytes q, const vi x[4])
{
    vi v = quad_part(type, q, QUANTS);
    vi w[4] = {low_nibbles(v), low_nibbles(_mm512_srli_epi16(v, 4)),
               low_nibbles(_mm512_srli_epi16(v, 8)), _mm512_srli_epi16(v, 12)};
    if (type == DT_Q5_0 || type == DT_Q5_1) {
        const vi even =
            _mm512_broadcast_i32x4(_mm_setr_epi16(1, 4, 16, 64, 256, 1024, 4096, 16384));
        const vi odd = _mm512_slli_epi16(even, 1);
        vi low = quad_part(type, q, FIFTH_LOW), high = quad_part(type, q, FIFTH_HIGH);
        w[0] = add_fifth(w[0], low, even);
        w[1] = add_fifth(w[1], high, even);
        w[2] = add_fifth(w[2], low, odd);
        w[3] = add_fifth(w[3], high, odd);
    }
    vi sum = _mm512_madd_epi16(w[0], x[0]);
    for (int k = 1; k < 4; k++) sum = vi_dot(sum, w[k], x[k]);
    return vi_to_f32(sum);
}

/* Groups 4 u .. 4 u + 3 of a block, in two chunks of 32 bytes; of each chunk, one group in the low nibbles
 * and one in the high ones. fifth: NULL, or 32 bytes with a bit for each group. */
INLINE vf groups_dot(const uint8_t *quants, const uint8_t *fifth, int u, const struct Words x[4],
                     __m256 steps, vf acc)
{
    const vi lane = _mm512_inserti64x4(vi_zero(), _mm256_set1_epi32(2), 1);
    vf step = _mm512_castps256_ps512(steps);
    vi v = vi_load(quants + 64 * u);
    vi w[4] = {low_nibbles(v), low_nibbles(_mm512_srli_epi16(v, 8)),
               low_nibbles(_mm512_srli_epi16(v, 4)), _mm512_srli_epi16(v, 12)};
    if (fifth) {
        const vi bit = _mm512_inserti64x4(_mm512_set1_epi16(1), _mm256_set1_epi16(4), 1);
        vi bits = _mm512_broadcast_i64x4(load256(fifth));
        if (u) bits = _mm512_srli_epi16(bits, 4);
        w[0] = add_fifth(w[0], bits, bit);
        w[1] = add_fifth(w[1], bits, _mm512_slli_epi16(bit, 8));
        w[2] = add_fifth(w[2], bits, _mm512_slli_epi16(bit, 1));
        w[3] = add_fifth(w[3], bits, _mm512_slli_epi16(bit, 9));
    }
    vf low = vi_to_f32(vi_dot(_mm512_madd_epi16(w[0], x[0].v[0]), w[1], x[1].v[0]));
    vf high = vi_to_f32(vi_dot(_mm512_madd_epi16(w[2], x[2].v[0]), w[3], x[3].v[0]));
    acc = vf_fma(low, _mm512_permutexvar_ps(_mm512_add_epi32(lane, vi_set1(4 * u)), step), acc);
    return vf_fma(high, _mm512_permutexvar_ps(_mm512_add_epi32(lane, vi_set1(4 * u + 1)), step),
                  acc);
}

/* The vector in that order: even and odd values for the low nibbles, then for the high ones. */
INLINE void groups_vector(const int16_t *pieces, int block, struct Words x[4])
{
    vi q[4];
    for (int k = 0; k < 4; k++) q[k] = vi_load(pieces + piece_at((size_t)block, (size_t)k));
    for (int odd = 0; odd < 2; odd++) {
        x[odd].v[0] = PICK(q[2 * odd], q[2 * odd + 1], 0, 4, 2, 6);
        x[2 + odd].v[0] = PICK(q[2 * odd], q[2 * odd + 1], 1, 5, 3, 7);
    }
}

/* Quants 64 u .. 64 u + 63 of a block, as bytes; u < 4. */
INLINE vi six_bytes(const uint8_t *b, int u)
{
    const vi to_left = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
    const vi to_right = _mm512_inserti64x4(vi_zero(), _mm256_set1_epi16(2), 1);
    vi low = vi_load(b + u / 2 * 64), high = _mm512_broadcast_i64x4(load256(b + 128 + u / 2 * 32));
    if (u % 2 == 0) {
        high = _mm512_sllv_epi16(high, to_left);
    } else {
        low = _mm512_srli_epi16(low, 4);
        high = _mm512_srlv_epi16(high, to_right);
    }
    /* low nibbles of `low`, the rest of `high` */
    vi v = _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(15), 0xe4);
    return _mm512_and_si512(v, _mm512_set1_epi8(63));
}

INLINE vf six_dot(vi bytes, vi even, vi odd)
{
    vi sum = vi_dot(vi_zero(), _mm512_and_si512(bytes, _mm512_set1_epi16(255)), even);
    return vi_to_f32(vi_dot(sum, _mm512_srli_epi16(bytes, 8), odd));
}

INLINE void six_vector(const int16_t *pieces, int block, vi *even, vi *odd)
{
    vi q[4];
    for (int k = 0; k < 4; k++) q[k] = vi_load(pieces + piece_at((size_t)block / 4 * 4, (size_t)k));
    bool second = block % 4 != 0;
    *even = second ? PICK(q[0], q[1], 2, 6, 3, 7) : PICK(q[0], q[1], 0, 4, 1, 5);
    *odd = second ? PICK(q[2], q[3], 2, 6, 3, 7) : PICK(q[2], q[3], 0, 4, 1, 5);
}

/* The steps of four groups, each in its four lanes; steps holds those of 16 groups. */
INLINE vf six_spread(const vf *steps, int u)
{
    const vi lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lane, vi_set1(4 * u)), steps[0]);
}

#else

/* ==== AVX2 ==== */

INLINE vf words_dot(struct Words a, struct Words b)
{
    return vi_to_f32(
        _mm256_add_epi32(_mm256_madd_epi16(a.v[0], b.v[0]), _mm256_madd_epi16(a.v[1], b.v[1])));
}

INLINE struct Words widen_int8(const uint8_t *p)
{
    return (struct Words){
        {_mm256_cvtepi8_epi16(load128(p)), _mm256_cvtepi8_epi16(load128(p + 16))}};
}

/* 32 bytes to the order of the pieces. */
INLINE struct Words words_from_bytes(vi v)
{
    return (struct Words){{_mm256_and_si256(v, _mm256_set1_epi16(255)), _mm256_srli_epi16(v, 8)}};
}

/* 16 bytes, values 0..15 in the low nibbles and 16..31 in the high ones, as 32 bytes. */
INLINE vi split_nibbles(const uint8_t *p)
{
    const vi shift = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    vi v = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(load128(p)), shift);
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

INLINE struct Words widen_nibbles(const uint8_t *p)
{
    return words_from_bytes(split_nibbles(p));
}

/* The same, and 16 more for value i when bit i is set. */
INLINE struct Words widen_fives(const uint8_t *p, uint32_t bits)
{
    const vi place =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const vi bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    vi spread = _mm256_and_si256(_mm256_shuffle_epi8(vi_set1((int32_t)bits), place), bit);
    vi fifth = _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(16));
    return words_from_bytes(_mm256_or_si256(split_nibbles(p), fifth));
}

/* The f16 numbers in the low words of int32 lanes. */
INLINE vf vf_from_half(vi v)
{
    vi words = _mm256_and_si256(v, vi_set1(0xffff));
    words = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(words));
}

INLINE vf vf_from_int8(const uint8_t *p)
{
    return vi_to_f32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

INLINE vf vf_from_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(load128((const uint8_t *)p)), 16));
}

INLINE vi vi_high_words(vi v)
{
    return _mm256_srli_epi32(v, 16);
}

/* Four floats, over and over. */
INLINE vf vf_load4(const float *p)
{
    return _mm256_broadcast_ps((const __m128 *)p);
}

INLINE vi vi_join(const __m128i q[2])
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(q[0]), q[1], 1);
}

INLINE __m256 vf_fold(vf v)
{
    return v;
}

INLINE struct Words flat_widen(enum DType type, const uint8_t *b)
{
    switch (type) {
    case DT_Q4_0:
        return widen_nibbles(b + 2);
    case DT_Q4_1:
        return widen_nibbles(b + 4);
    case DT_Q5_0:
        return widen_fives(b + 6, load32(b + 2));
    case DT_Q5_1:
        return widen_fives(b + 8, load32(b + 4));
    default:
        return widen_int8(b + 2);
    }
}

/* Groups 4 u .. 4 u + 3 of a block, in two chunks of 32 bytes; of each chunk, one group in the low nibbles
 * and one in the high ones. fifth: NULL, or 32 bytes with a bit for each group. */
INLINE vf groups_dot(const uint8_t *quants, const uint8_t *fifth, int u, const struct Words x[4],
                     __m256 steps, vf acc)
{
    const vi mask = _mm256_set1_epi8(15);
    for (int i = 0; i < 4; i++) {
        int group = 4 * u + i;
        vi v = load256(quants + group / 2 * 32);
        v = _mm256_and_si256(i % 2 ? _mm256_srli_epi16(v, 4) : v, mask);
        if (fifth) {
            vi bits = _mm256_srl_epi16(load256(fifth), _mm_cvtsi32_si128(group));
            v = _mm256_or_si256(v,
                                _mm256_slli_epi16(_mm256_and_si256(bits, _mm256_set1_epi8(1)), 4));
        }
        vf step = _mm256_permutevar8x32_ps(steps, vi_set1(group));
        acc = vf_fma(words_dot(words_from_bytes(v), x[i]), step, acc);
    }
    return acc;
}

INLINE void groups_vector(const int16_t *pieces, int block, struct Words x[4])
{
    for (int i = 0; i < 4; i++) x[i] = words_load(pieces + piece_at((size_t)block + i, 0));
}

/* Quants 32 u .. 32 u + 31 of a block, as bytes; u < 8. */
INLINE vi six_bytes(const uint8_t *b, int u)
{
    vi low = load256(b + u / 4 * 64 + u % 2 * 32), high = load256(b + 128 + u / 4 * 32);
    low = _mm256_srl_epi16(low, _mm_cvtsi32_si128(u % 4 / 2 * 4));
    high = _mm256_srl_epi16(high, _mm_cvtsi32_si128(u % 4 * 2));
    high = _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4);
    return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), high);
}

INLINE vf six_dot(vi bytes, vi even, vi odd)
{
    vi sum = vi_dot(vi_zero(), _mm256_and_si256(bytes, _mm256_set1_epi16(255)), even);
    return vi_to_f32(vi_dot(sum, _mm256_srli_epi16(bytes, 8), odd));
}

INLINE void six_vector(const int16_t *pieces, int block, vi *even, vi *odd)
{
    *even = vi_load(pieces + piece_at((size_t)block, 0));
    *odd = vi_load(pieces + piece_at((size_t)block, 2));
}

/* The steps of two groups, each in its four lanes; steps holds those of 16 groups. */
INLINE vf six_spread(const vf *steps, int u)
{
    const vi lane = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_permutevar8x32_ps(steps[u / 4], _mm256_add_epi32(lane, vi_set1(u % 4 * 2)));
}

#endif

#endif

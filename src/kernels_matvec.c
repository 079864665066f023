/* kernels_matvec.c - one vector times rows of a stored matrix, straight from the blocks of the file.
 *
 * Generating a token reads every weight once, so the aim is to read at the speed of memory. The vector
 * is turned once into int16 with one scale for 32 values (32767 steps a side); quants are widened to
 * int16 and multiplied exactly (kernels_quants.h), and then scaled in f32. What a format adds to or
 * subtracts from its quants (Q4_1's minimum, Q6_K's 32) is applied to sums of the vector, once a block.
 *
 * Four rows go together: they share the loads of the vector and the unpacking of scales. Each row is
 * summed in an order that depends on its length only, so that any split of the rows among calls gives
 * the same bytes. F32, F16 and BF16 rows, and every row in exact mode, are multiplied in f32.
 */
#include "kernels_matvec.h"
#include "kernels_quants.h"

enum {
    ROWS = 4,         /* rows multiplied together */
    STEP_MAX = 32767, /* largest magnitude of the vector as int16 */
    AHEAD =
        6144, /* bytes to prefetch ahead, at least: more than memory hands over within its latency */
};

/* Vectors below this are as good as zero; keeps STEP_MAX / max finite. */
static const float TINY = 1e-30f;

/* ==== The prepared vector ==== */

/* Where things lie in the memory given to matvec_prepare; exact mode fills x only. */
struct Prep {
    float *x;               /* [padded] f32 */
    int16_t *natural;       /* [padded] int16 */
    int16_t *pieces;        /* [padded] int16 in the order of packed quants (kernels_quants.h) */
    float *scale, *sum;     /* [padded / 32] f32 step of a block, and sum of its rounded values */
    float *scale16, *sum16; /* [padded / 16] f32 the same for halves of blocks (Q6_K) */
};

INLINE size_t padded_cols(int cols)
{
    return ((size_t)cols + QUAD - 1) / QUAD * QUAD;
}

/* Floats kept for n scales: whole cache lines, as scales are read four or sixteen at a time. */
INLINE size_t scale_room(size_t n)
{
    return (n + 15) / 16 * 16;
}

INLINE struct Prep prep_at(const void *base, int cols)
{
    size_t n = padded_cols(cols), room = scale_room(n / BLOCK), room16 = scale_room(n / 16);
    struct Prep p;
    p.x = (float *)base;
    p.natural = (int16_t *)(p.x + n);
    p.pieces = p.natural + n;
    p.scale = (float *)(p.pieces + n);
    p.sum = p.scale + room;
    p.scale16 = p.sum + room;
    p.sum16 = p.scale16 + room16;
    return p;
}

size_t KERNEL(matvec_prep_bytes)(int cols)
{
    size_t n = padded_cols(cols);
    return n * (sizeof(float) + 2 * sizeof(int16_t)) +
           2 * (scale_room(n / BLOCK) + scale_room(n / 16)) * sizeof(float);
}

INLINE int sum_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* Two vectors of int32 as one of int16, in order. */
INLINE __m256i narrow(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

/* Largest magnitude of 32 values, compared as integers: a NaN counts as larger than all. */
INLINE float block_max(const __m256 v[4])
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++)
        m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(h));
}

/* A value that is not finite makes the block's scale not finite, and with it every product. */
static void prepare_block(const struct Prep *p, size_t block)
{
    __m256 v[4];
    __m256i q[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(p->x + block * BLOCK + 8 * i);
    float max = block_max(v);
    float step = max < TINY ? 0 : max / STEP_MAX;
    __m256 inverse = _mm256_set1_ps(max < TINY ? 0 : STEP_MAX / max);
    for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));

    __m256i n0 = narrow(q[0], q[1]), n1 = narrow(q[2], q[3]);
    _mm256_storeu_si256((__m256i *)(p->natural + block * BLOCK), n0);
    _mm256_storeu_si256((__m256i *)(p->natural + block * BLOCK) + 1, n1);
    __m256i even = narrow(_mm256_srai_epi32(_mm256_slli_epi32(n0, 16), 16),
                          _mm256_srai_epi32(_mm256_slli_epi32(n1, 16), 16));
    __m256i odd = narrow(_mm256_srai_epi32(n0, 16), _mm256_srai_epi32(n1, 16));
    _mm_storeu_si128((__m128i *)(p->pieces + piece_at(block, 0)), _mm256_castsi256_si128(even));
    _mm_storeu_si128((__m128i *)(p->pieces + piece_at(block, 1)),
                     _mm256_extracti128_si256(even, 1));
    _mm_storeu_si128((__m128i *)(p->pieces + piece_at(block, 2)), _mm256_castsi256_si128(odd));
    _mm_storeu_si128((__m128i *)(p->pieces + piece_at(block, 3)), _mm256_extracti128_si256(odd, 1));

    const __m256i ones = _mm256_set1_epi16(1);
    int s0 = sum_lanes(_mm256_madd_epi16(n0, ones)), s1 = sum_lanes(_mm256_madd_epi16(n1, ones));
    p->scale[block] = p->scale16[2 * block] = p->scale16[2 * block + 1] = step;
    p->sum16[2 * block] = step * (float)s0;
    p->sum16[2 * block + 1] = step * (float)s1;
    p->sum[block] = step * (float)(s0 + s1);
}

void KERNEL(matvec_prepare)(const float *x, int cols, bool exact, void *prep)
{
    struct Prep p = prep_at(prep, cols);
    size_t n = padded_cols(cols), n_blocks = n / BLOCK;
    memcpy(p.x, x, (size_t)cols * sizeof *x);
    memset(p.x + cols, 0, (n - (size_t)cols) * sizeof *x);
    if (exact) return;
    memset(p.scale, 0, 2 * (scale_room(n_blocks) + scale_room(n / 16)) * sizeof(float));
    for (size_t b = 0; b < n_blocks; b++) prepare_block(&p, b);
}

/* ==== Four rows ==== */

/* What one call multiplies. */
struct Job {
    const uint8_t *first; /* row 0 of the call */
    size_t row_bytes;
    int n_rows, cols;
    const struct Prep *p;
    float *y; /* [n_rows] f32 */
};

/* Four rows that are multiplied together. */
struct Rows {
    const uint8_t *at[ROWS];
    size_t ahead; /* bytes from a row to one that will take its place soon */
};

/* Rows i .. i + 3 of a call; those it lacks repeat its last. */
INLINE struct Rows rows_at(const struct Job *job, int i)
{
    const size_t group_bytes = ROWS * job->row_bytes;
    struct Rows rows = {.ahead = (AHEAD + group_bytes - 1) / group_bytes * group_bytes};
    for (int r = 0; r < ROWS; r++)
        rows.at[r] =
            job->first + (size_t)(i + r < job->n_rows ? i + r : job->n_rows - 1) * job->row_bytes;
    return rows;
}

INLINE void rows_store(const struct Job *job, int i, __m128 sums)
{
    if (i + ROWS <= job->n_rows) {
        _mm_storeu_ps(job->y + i, sums);
    } else {
        float out[ROWS];
        _mm_storeu_ps(out, sums);
        memcpy(job->y + i, out, (size_t)(job->n_rows - i) * sizeof *out);
    }
}

/* Asks for what takes the place of bytes at .. at + bytes of these rows, which lie one after the other. */
INLINE void rows_prefetch(const struct Rows *rows, size_t at, int bytes)
{
    const char *next = (const char *)rows->at[0] + rows->ahead + ROWS * at;
    for (int line = 0; line < ROWS * bytes; line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
}

/* The sums of four vectors. */
INLINE __m128 sum_each(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

INLINE __m128 sum_rows(const vf acc[ROWS])
{
    return sum_each(vf_fold(acc[0]), vf_fold(acc[1]), vf_fold(acc[2]), vf_fold(acc[3]));
}

/* ==== Formats with blocks of 32 ==== */

/* Sums of four rows, taken four blocks at a time: lane 4 r + j is block j of row r. */
struct FlatSums {
    vf acc[ROWS];
    vf low[WORD_VECS]; /* what the minimums of the blocks contribute */
};

/* From the first dwords of the 16 blocks, f16 step and for some f16 minimum, to steps times the vector's. */
INLINE void flat_scales(enum DType type, const vi heads[WORD_VECS], const struct Prep *p, int block,
                        vf steps[WORD_VECS], struct FlatSums *s)
{
    vf scale = vf_load4(p->scale + block), sum = vf_load4(p->sum + block);
    for (int i = 0; i < WORD_VECS; i++) {
        vf d = vf_from_half(heads[i]);
        steps[i] = vf_mul(d, scale);
        if (type == DT_Q4_1 || type == DT_Q5_1) {
            s->low[i] = vf_fma(vf_from_half(vi_high_words(heads[i])), sum, s->low[i]);
        } else if (type != DT_Q8_0) {
            vf minimum = vf_mul(d, vf_set1(type == DT_Q4_0 ? -8 : -16));
            s->low[i] = vf_fma(minimum, sum, s->low[i]);
        }
    }
}

/* One block after the other: n <= 4 blocks from w[r] on. */
INLINE void block_step(enum DType type, const uint8_t *const w[ROWS], int n, const struct Prep *p,
                       int block, struct FlatSums *s)
{
    const int size = flat_bytes(type);
    __m128i head[ROWS];
    vi heads[WORD_VECS];
    vf steps[WORD_VECS];
    float step[16];
    for (int r = 0; r < ROWS; r++) {
        /* absent blocks repeat the first: what the vector keeps for them is 0 */
        const uint8_t *b = w[r];
        head[r] = _mm_setr_epi32((int)load32(b), (int)load32(b + (n > 1 ? size : 0)),
                                 (int)load32(b + (n > 2 ? 2 * size : 0)),
                                 (int)load32(b + (n > 3 ? 3 * size : 0)));
    }
    for (int i = 0; i < WORD_VECS; i++) heads[i] = vi_join(head + i * (VL / 4));
    flat_scales(type, heads, p, block, steps, s);
    for (int i = 0; i < WORD_VECS; i++) vf_store(step + i * VL, steps[i]);
    const int16_t *x = (type == DT_Q8_0 ? p->natural : p->pieces) + (size_t)block * BLOCK;
    for (int j = 0; j < n; j++) {
        struct Words xj = words_load(x + j * BLOCK);
        for (int r = 0; r < ROWS; r++) {
            vf dot = words_dot(flat_widen(type, w[r] + j * size), xj);
            s->acc[r] = vf_fma(dot, vf_set1(step[4 * r + j]), s->acc[r]);
        }
    }
}

#if defined(__AVX512F__)

/* Four blocks at once; the n present ones start at w[r]. */
INLINE void quad_step(enum DType type, const uint8_t *const w[ROWS], int n, const struct Prep *p,
                      int block, struct FlatSums *s)
{
    const int size = flat_bytes(type);
    struct QuadBytes q[ROWS];
    for (int r = 0; r < ROWS; r++) q[r] = quad_load(w[r], size, n);
    vi heads = quad_part(type, q[0], HEADS);
    for (int r = 1; r < ROWS; r++)
        heads =
            _mm512_mask_mov_epi32(heads, (__mmask16)(15 << 4 * r), quad_part(type, q[r], HEADS));
    vf steps;
    flat_scales(type, &heads, p, block, &steps, s);
    vi x[4];
    for (int k = 0; k < 4; k++) x[k] = vi_load(p->pieces + piece_at((size_t)block, (size_t)k));
    const vi lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    for (int r = 0; r < ROWS; r++) {
        vf step = _mm512_permutexvar_ps(_mm512_add_epi32(lane, vi_set1(4 * r)), steps);
        s->acc[r] = vf_fma(quad_dot(type, q[r], x), step, s->acc[r]);
    }
}

INLINE void flat_step(enum DType type, const uint8_t *const w[ROWS], int n, const struct Prep *p,
                      int block, struct FlatSums *s)
{
    if (type == DT_Q8_0)
        block_step(type, w, n, p, block, s);
    else
        quad_step(type, w, n, p, block, s);
}

#else

INLINE void flat_step(enum DType type, const uint8_t *const w[ROWS], int n, const struct Prep *p,
                      int block, struct FlatSums *s)
{
    block_step(type, w, n, p, block, s);
}

#endif

INLINE __m128 flat_rows(enum DType type, const struct Rows *rows, int cols, const struct Prep *p)
{
    const int size = flat_bytes(type);
    struct FlatSums s;
    for (int r = 0; r < ROWS; r++) s.acc[r] = vf_zero();
    for (int i = 0; i < WORD_VECS; i++) s.low[i] = vf_zero();
    int n_blocks = cols / BLOCK, block = 0;
    const uint8_t *w[ROWS] = {rows->at[0], rows->at[1], rows->at[2], rows->at[3]};
    for (; block + 4 <= n_blocks; block += 4) {
        rows_prefetch(rows, (size_t)block * size, 4 * size);
        flat_step(type, w, 4, p, block, &s);
        for (int r = 0; r < ROWS; r++) w[r] += 4 * size;
    }
    switch (n_blocks - block) { /* constants: the loads of the tail need no run-time masks */
    case 1:
        flat_step(type, w, 1, p, block, &s);
        break;
    case 2:
        flat_step(type, w, 2, p, block, &s);
        break;
    case 3:
        flat_step(type, w, 3, p, block, &s);
        break;
    default:
        break;
    }

    float low[16];
    for (int i = 0; i < WORD_VECS; i++) vf_store(low + i * VL, s.low[i]);
    __m128 a = _mm_hadd_ps(_mm_loadu_ps(low), _mm_loadu_ps(low + 4));
    __m128 b = _mm_hadd_ps(_mm_loadu_ps(low + 8), _mm_loadu_ps(low + 12));
    return _mm_add_ps(sum_rows(s.acc), _mm_hadd_ps(a, b));
}

INLINE void flat_job(enum DType type, const struct Job *job)
{
    for (int i = 0; i < job->n_rows; i += ROWS) {
        struct Rows rows = rows_at(job, i);
        rows_store(job, i, flat_rows(type, &rows, job->cols, job->p));
    }
}

/* ==== Q4_K and Q5_K ==== */

/* Steps of the 8 groups of a block times those of the vector; adds what its minimums take away to low. The
 * 12 bytes hold 8 steps and 8 minimums of 6 bits: low 6 bits of bytes 0..3 and 4..7 for the first four,
 * nibbles of bytes 8..11 and the two bits left for the others. */
INLINE __m256 group_scales(const uint8_t *b, const struct Prep *p, int block, __m256 *low)
{
    uint32_t u0 = load32(b + 4), u1 = load32(b + 8), u2 = load32(b + 12);
    uint64_t step_low = u0 & 0x3f3f3f3f, step_high = (u2 & 0x0f0f0f0f) | (u0 >> 2 & 0x30303030);
    uint64_t min_low = u1 & 0x3f3f3f3f, min_high = (u2 >> 4 & 0x0f0f0f0f) | (u1 >> 2 & 0x30303030);
    __m128i step_bytes = _mm_cvtsi64_si128((long long)(step_high << 32 | step_low));
    __m128i min_bytes = _mm_cvtsi64_si128((long long)(min_high << 32 | min_low));
    __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128((int)load32(b)));
    __m256 step = _mm256_mul_ps(_mm256_broadcastss_ps(d), _mm256_loadu_ps(p->scale + block));
    __m256 min =
        _mm256_mul_ps(_mm256_broadcastss_ps(_mm_movehdup_ps(d)), _mm256_loadu_ps(p->sum + block));
    *low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(min_bytes)), min, *low);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(step_bytes)), step);
}

INLINE __m128 group_rows(enum DType type, const struct Rows *rows, int cols, const struct Prep *p)
{
    const int size = type == DT_Q4_K ? 144 : 176;
    vf acc[ROWS];
    __m256 low[ROWS];
    for (int r = 0; r < ROWS; r++) {
        acc[r] = vf_zero();
        low[r] = _mm256_setzero_ps();
    }
    for (int i = 0; i < cols / SUPER; i++) {
        __m256 steps[ROWS];
        rows_prefetch(rows, (size_t)i * size, size);
        for (int r = 0; r < ROWS; r++)
            steps[r] = group_scales(rows->at[r] + (size_t)i * size, p, 8 * i, &low[r]);
        for (int u = 0; u < 2; u++) {
            struct Words x[4];
            groups_vector(p->pieces, 8 * i + 4 * u, x);
            for (int r = 0; r < ROWS; r++) {
                const uint8_t *b = rows->at[r] + (size_t)i * size;
                acc[r] = groups_dot(b + size - 128, type == DT_Q5_K ? b + 16 : NULL, u, x, steps[r],
                                    acc[r]);
            }
        }
    }
    return _mm_sub_ps(sum_rows(acc), sum_each(low[0], low[1], low[2], low[3]));
}

INLINE void group_job(enum DType type, const struct Job *job)
{
    for (int i = 0; i < job->n_rows; i += ROWS) {
        struct Rows rows = rows_at(job, i);
        rows_store(job, i, group_rows(type, &rows, job->cols, job->p));
    }
}

/* ==== Q6_K ==== */

INLINE __m128 six_rows(const struct Rows *rows, int cols, const struct Prep *p)
{
    vf acc[ROWS], low[ROWS];
    for (int r = 0; r < ROWS; r++) acc[r] = low[r] = vf_zero();
    for (int i = 0; i < cols / SUPER; i++) {
        const uint8_t *b[ROWS];
        vf steps[ROWS][WORD_VECS];
        rows_prefetch(rows, (size_t)i * 210, 210);
        for (int r = 0; r < ROWS; r++) {
            b[r] = rows->at[r] + (size_t)i * 210;
            uint16_t half;
            memcpy(&half, b[r] + 208, sizeof half);
            vf d = vf_set1(_cvtsh_ss(half));
            for (int v = 0; v < WORD_VECS; v++) {
                vf step = vf_mul(d, vf_from_int8(b[r] + 192 + v * VL));
                steps[r][v] = vf_mul(step, vf_load(p->scale16 + 16 * i + v * VL));
                low[r] = vf_fma(step, vf_load(p->sum16 + 16 * i + v * VL), low[r]);
            }
        }
        for (int u = 0; u < SUPER / SIX_UNIT; u++) {
            vi even, odd;
            six_vector(p->pieces, 8 * i + u * (SIX_UNIT / BLOCK), &even, &odd);
            for (int r = 0; r < ROWS; r++)
                acc[r] =
                    vf_fma(six_dot(six_bytes(b[r], u), even, odd), six_spread(steps[r], u), acc[r]);
        }
    }
    return _mm_sub_ps(sum_rows(acc), _mm_mul_ps(_mm_set1_ps(32), sum_rows(low)));
}

INLINE void six_job(const struct Job *job)
{
    for (int i = 0; i < job->n_rows; i += ROWS) {
        struct Rows rows = rows_at(job, i);
        rows_store(job, i, six_rows(&rows, job->cols, job->p));
    }
}

/* ==== f32 products ==== */

enum { FLOAT_VECS = 32 / VL };

INLINE vf plain_load(enum DType type, const uint8_t *p, int i)
{
    if (type == DT_F32) return vf_load((const float *)(const void *)p + i);
    const uint16_t *half = (const uint16_t *)(const void *)p + i;
    return type == DT_F16 ? vf_load_f16(half) : vf_from_bf16(half);
}

/* Adds the products of 32 weights; lanes stay apart until plain_sum. */
INLINE void plain_step(enum DType type, const uint8_t *w, const float *x, vf acc[FLOAT_VECS])
{
    for (int i = 0; i < FLOAT_VECS; i++)
        acc[i] = vf_fma(plain_load(type, w, i * VL), vf_load(x + i * VL), acc[i]);
}

INLINE float plain_sum(vf acc[FLOAT_VECS])
{
    for (int n = FLOAT_VECS / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) acc[i] = vf_add(acc[i], acc[i + n]);
    return vf_sum(acc[0]);
}

INLINE float plain_row(enum DType type, const uint8_t *w, int cols, const float *x)
{
    const size_t size = type == DT_F32 ? 4 : 2;
    vf acc[FLOAT_VECS];
    for (int i = 0; i < FLOAT_VECS; i++) acc[i] = vf_zero();
    int at = 0;
    for (; at + BLOCK <= cols; at += BLOCK) {
        plain_step(type, w + (size_t)at * size, x + at, acc);
        for (size_t line = 0; line < BLOCK * size; line += 64)
            _mm_prefetch((const char *)w + (size_t)at * size + AHEAD + line, _MM_HINT_T0);
    }
    if (at < cols) {
        uint8_t tail[BLOCK * sizeof(float)] = {0}; /* the last row may end with the file */
        memcpy(tail, w + (size_t)at * size, (size_t)(cols - at) * size);
        plain_step(type, tail, x + at, acc);
    }
    return plain_sum(acc);
}

static float exact_row(enum DType type, const uint8_t *w, int cols, const float *x)
{
    float weights[SUPER];
    vf acc[FLOAT_VECS];
    for (int i = 0; i < FLOAT_VECS; i++) acc[i] = vf_zero();
    for (int at = 0; at < cols; at += SUPER) {
        int n = cols - at < SUPER ? cols - at : SUPER;
        quant_decode(type, w + dtype_row_bytes(type, at), weights, n);
        for (int i = 0; i < n; i += BLOCK)
            plain_step(DT_F32, (const uint8_t *)(weights + i), x + at + i, acc);
    }
    return plain_sum(acc);
}

/* ==== Rows ==== */

static void block_rows(enum DType type, const struct Job *job)
{
    switch (type) {
    case DT_Q4_0:
        flat_job(DT_Q4_0, job);
        break;
    case DT_Q4_1:
        flat_job(DT_Q4_1, job);
        break;
    case DT_Q5_0:
        flat_job(DT_Q5_0, job);
        break;
    case DT_Q5_1:
        flat_job(DT_Q5_1, job);
        break;
    case DT_Q8_0:
        flat_job(DT_Q8_0, job);
        break;
    case DT_Q4_K:
        group_job(DT_Q4_K, job);
        break;
    case DT_Q5_K:
        group_job(DT_Q5_K, job);
        break;
    default:
        six_job(job);
        break;
    }
}

static float single_row(enum DType type, const uint8_t *row, int cols, const float *x)
{
    switch (type) {
    case DT_F32:
        return plain_row(DT_F32, row, cols, x);
    case DT_F16:
        return plain_row(DT_F16, row, cols, x);
    case DT_BF16:
        return plain_row(DT_BF16, row, cols, x);
    default:
        return exact_row(type, row, cols, x);
    }
}

void KERNEL(matvec_rows)(const struct Weight *w, int row0, int n_rows, const void *prep, bool exact,
                         float *y)
{
    const size_t row_bytes = dtype_row_bytes(w->type, w->cols);
    const struct Prep p = prep_at(prep, w->cols);
    const struct Job job = {.first = (const uint8_t *)w->data + (size_t)row0 * row_bytes,
                            .row_bytes = row_bytes,
                            .n_rows = n_rows,
                            .cols = w->cols,
                            .p = &p,
                            .y = y};
    if (!exact && w->type != DT_F32 && w->type != DT_F16 && w->type != DT_BF16) {
        block_rows(w->type, &job);
        return;
    }
    for (int i = 0; i < n_rows; i++)
        y[i] = single_row(w->type, job.first + (size_t)i * row_bytes, w->cols, p.x);
}

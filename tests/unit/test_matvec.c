/* test_matvec.c - decode products of every format and instruction set against double precision. */
#include "src/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { COLS_MAX = 5120, ROWS_MAX = 11, GUARD = 64 };

static const enum DType types[] = { DT_F32,  DT_F16,  DT_BF16, DT_Q4_0, DT_Q4_1, DT_Q5_0,
                                    DT_Q5_1, DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K };
enum { N_TYPES = sizeof types / sizeof *types, FIRST_QUANT = 3 };

static const struct Kernels *tables[3];
static int n_tables;

static uint64_t rng_state = 7;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

/* In (-1, 1). */
static float uniform(void)
{
    return (float)((int)(rng() & 0xffffff) - 0x800000) / 0x800000;
}

/* ==== Matrices ==== */

static void put_half(uint8_t *at, float f)
{
    uint16_t h = f32_to_f16(f);
    memcpy(at, &h, sizeof h);
}

/* A block with random bits and finite scales. Returns a bound of |step * quant| + |minimum| for its
 * weights: the numbers that are really added, larger than the weights where the minimum cancels. */
static double fill_block(enum DType type, uint8_t *b, int bytes)
{
    for (int i = 0; i < bytes; i++) b[i] = (uint8_t)rng();
    float d = uniform() / 64, m = uniform() / 8;
    switch (type) {
    case DT_F32: memcpy(b, &d, sizeof d); return fabs(d);
    case DT_F16: put_half(b, d); return 1.01 * fabs(d) + 1e-7;
    case DT_BF16: b[1] = (uint8_t)((b[1] & 0x80) | 0x3c); return 0.0313;
    case DT_Q6_K: put_half(b + 208, d / 32); return 1.01 * (63 + 32) * 128 * fabs(d) / 32 + 1e-3;
    case DT_Q4_0: put_half(b, d); return 1.01 * (15 + 8) * fabs(d) + 1e-4;
    case DT_Q5_0: put_half(b, d); return 1.01 * (31 + 16) * fabs(d) + 1e-4;
    case DT_Q8_0: put_half(b, d); return 1.01 * 128 * fabs(d) + 1e-4;
    case DT_Q4_K:
    case DT_Q5_K:
        d /= 32;
        m /= 32;
        put_half(b, d);
        put_half(b + 2, m);
        return 1.01 * (63 * 31 * fabs(d) + 63 * fabs(m)) + 1e-3;
    default: put_half(b, d); put_half(b + 2, m); return 1.01 * (31 * fabs(d) + fabs(m)) + 1e-4;
    }
}

struct Matrix {
    struct Weight w;
    uint8_t *data; /* ends with the last row: a read past it is seen by the address sanitizer */
    double terms;  /* bound of |step * quant| + |minimum| of all weights */
};

static void matrix_make(struct Matrix *m, enum DType type, int rows, int cols)
{
    int weights, bytes;
    assert_true(dtype_block(type, &weights, &bytes));
    size_t size = dtype_row_bytes(type, cols) * (size_t)rows;
    m->data = malloc(size);
    assert_non_null(m->data);
    m->terms = 0;
    for (size_t at = 0; at < size; at += (size_t)bytes)
        m->terms = fmax(m->terms, fill_block(type, m->data + at, bytes));
    m->w = (struct Weight){ .type = type, .rows = rows, .cols = cols, .data = m->data };
}

static void vector_make(float *x, int cols)
{
    for (int i = 0; i < cols; i++) x[i] = uniform() * expf(3 * uniform());
    x[rng() % (uint32_t)cols] *= 200; /* a block where most values are small beside the largest */
    for (int i = 0; i < cols && i < 3; i++) x[(rng() >> 4) % (uint32_t)cols] = 0;
}

/* W[row] . x, and how far from it a product may be.
 *
 * Rounding the vector: a block of 32 values has the step max / 32767, so a value moves by half a step at most
 * and the product by sum |w| step / 2, plus 2^-22 of |w x| for rounding the step and its inverse.
 * Adding in f32: every term passes at most 16 multiplications and the additions of its lane (one per block,
 * one per 8 weights when multiplied as f32) and of the lanes; each errs by 2^-24 of sums that terms * sum |x| bounds.
 * Exact mode has the second part alone. */
static double oracle(const struct Matrix *m, int row, const float *x, bool exact, double *bound)
{
    static float weights[COLS_MAX];
    int cols = m->w.cols;
    const uint8_t *data = m->data + dtype_row_bytes(m->w.type, cols) * (size_t)row;
    quant_decode(m->w.type, data, weights, cols);
    bool rounded = !exact && m->w.type != DT_F32 && m->w.type != DT_F16 && m->w.type != DT_BF16;
    double sum = 0, sum_x = 0, moved = 0;
    for (int at = 0; at < cols; at += 32) {
        double max = 0, w = 0;
        for (int i = at; i < cols && i < at + 32; i++) {
            sum += (double)weights[i] * x[i];
            sum_x += fabs(x[i]);
            max = fmax(max, fabs(x[i]));
            w += fabs(weights[i]);
            moved += fabs((double)weights[i] * x[i]) * 0x1p-22;
        }
        moved += w * max / 32767 / 2;
    }
    double f32_error = (cols / 8.0 + 32) * 0x1p-24 * m->terms * sum_x;
    *bound = f32_error + (rounded ? moved : 0);
    return sum;
}

/* ==== Tests ==== */

static void *prep_make(const struct Kernels *k, const float *x, int cols, bool exact)
{
    size_t bytes = k->matvec_prep_bytes(cols);
    uint8_t *prep = aligned_alloc(64, (bytes + GUARD + 63) / 64 * 64);
    assert_non_null(prep);
    memset(prep, 0xff, bytes + GUARD); /* NaN where nothing is written, and a fence behind */
    k->matvec_prepare(x, cols, exact, prep);
    for (int i = 0; i < GUARD; i++) assert_int_equal(prep[bytes + (size_t)i], 0xff);
    return prep;
}

static void check_product(const struct Kernels *k, enum DType type, int rows, int cols, bool exact)
{
    static float x[COLS_MAX];
    float y[ROWS_MAX + 1];
    struct Matrix m;
    matrix_make(&m, type, rows, cols);
    vector_make(x, cols);
    void *prep = prep_make(k, x, cols, exact);
    y[rows] = 12345;
    k->matvec_rows(&m.w, 0, rows, prep, exact, y);
    assert_true(y[rows] == 12345);
    for (int r = 0; r < rows; r++) {
        double bound, expected = oracle(&m, r, x, exact, &bound);
        if (!(fabs(y[r] - expected) <= bound))
            fail_msg("%s %s %dx%d%s row %d: %.9g, expected %.9g +- %.3g", k->isa, dtype_name(type), rows, cols,
                     exact ? " exact" : "", r, (double)y[r], expected, bound);
    }
    free(prep);
    free(m.data);
}

static bool cols_fit(enum DType type, int cols)
{
    return dtype_row_bytes(type, cols) > 0;
}

static void test_against_double(void **state)
{
    (void)state;
    static const int cols[] = { 1,   7,   16,  31,  32,  33,  64,  95,  96,   100, 128,
                                160, 192, 224, 256, 576, 768, 896, 1536, 4864, 5120 };
    for (int k = 0; k < n_tables; k++)
        for (int t = 0; t < N_TYPES; t++)
            for (size_t c = 0; c < sizeof cols / sizeof *cols; c++) {
                if (!cols_fit(types[t], cols[c])) continue;
                for (int rows = 1; rows <= ROWS_MAX; rows += 2)
                    for (int exact = 0; exact < 2; exact++) check_product(tables[k], types[t], rows, cols[c], exact);
            }
}

/* The errors are those of rounding to 1/32767 of a block's largest value and no coarser: e_i uniform in
 * +- step / 2 gives a product the variance sum w^2 step^2 / 12. 240 products of 20 vectors come near it. */
static void test_rounding_step(void **state)
{
    (void)state;
    enum { COLS = 512, VECTORS = 20, N = ROWS_MAX + 1 };
    float x[COLS], y[N], weights[COLS];
    for (int k = 0; k < n_tables; k++)
        for (int t = FIRST_QUANT; t < N_TYPES; t++) {
            struct Matrix m;
            matrix_make(&m, types[t], N, COLS);
            double squares = 0, variance = 0;
            for (int v = 0; v < VECTORS; v++) {
                for (int i = 0; i < COLS; i++) x[i] = uniform();
                void *prep = prep_make(tables[k], x, COLS, false);
                tables[k]->matvec_rows(&m.w, 0, N, prep, false, y);
                for (int r = 0; r < N; r++) {
                    double bound, e = y[r] - oracle(&m, r, x, false, &bound);
                    squares += e * e;
                    quant_decode(types[t], m.data + dtype_row_bytes(types[t], COLS) * (size_t)r, weights, COLS);
                    for (int i = 0; i < COLS; i++) variance += pow(weights[i] / 32767, 2) / 12;
                }
                free(prep);
            }
            assert_true(squares < 1.8 * variance);
            free(m.data);
        }
}

/* Largest quants and largest values, all of one sign: the integer sums at their limit. */
static void test_largest(void **state)
{
    (void)state;
    enum { COLS = 512 };
    float x[COLS];
    for (int i = 0; i < COLS; i++) x[i] = -3;
    for (int k = 0; k < n_tables; k++)
        for (int t = FIRST_QUANT; t < N_TYPES; t++)
            for (int byte = 0; byte < 256; byte += 51) { /* 0x00, 0x33, … 0xff */
                struct Matrix m;
                matrix_make(&m, types[t], 1, COLS);
                int weights, bytes;
                dtype_block(types[t], &weights, &bytes);
                for (int at = 0; at < COLS / weights * bytes; at += bytes) {
                    memset(m.data + at, types[t] == DT_Q8_0 && byte == 0 ? 0x80 : byte, (size_t)bytes);
                    put_half(m.data + at + (types[t] == DT_Q6_K ? 208 : 0), 0x1p-10f);
                    if (types[t] != DT_Q6_K && types[t] != DT_Q8_0) put_half(m.data + at + 2, 0x1p-10f);
                }
                m.terms = 0x1p-10 * 95 * 128;
                void *prep = prep_make(tables[k], x, COLS, false);
                float y;
                tables[k]->matvec_rows(&m.w, 0, 1, prep, false, &y);
                double bound, expected = oracle(&m, 0, x, false, &bound);
                assert_true(fabs(y - expected) <= bound);
                free(prep);
                free(m.data);
            }
}

/* Any split of the rows among calls gives the same bytes. */
static void test_row_splits(void **state)
{
    (void)state;
    enum { N = ROWS_MAX };
    static float x[COLS_MAX];
    static const int cols[] = { 45, 96, 256, 1536 };
    for (int k = 0; k < n_tables; k++)
        for (int t = 0; t < N_TYPES; t++)
            for (int c = 0; c < 4; c++)
                for (int exact = 0; exact < 2; exact++) {
                    if (!cols_fit(types[t], cols[c])) continue;
                    struct Matrix m;
                    matrix_make(&m, types[t], N, cols[c]);
                    vector_make(x, cols[c]);
                    void *prep = prep_make(tables[k], x, cols[c], exact);
                    float whole[N], parts[N];
                    tables[k]->matvec_rows(&m.w, 0, N, prep, exact, whole);
                    for (int step = 1; step < N; step++) {
                        for (int r = 0; r < N; r += step)
                            tables[k]->matvec_rows(&m.w, r, r + step < N ? step : N - r, prep, exact, parts + r);
                        assert_memory_equal(whole, parts, sizeof whole);
                    }
                    free(prep);
                    free(m.data);
                }
}

/* Zeros and tiny values give zero or nearly so; what is not finite is not hidden. */
static void test_odd_vectors(void **state)
{
    (void)state;
    enum { COLS = 256 };
    float x[COLS], y;
    for (int k = 0; k < n_tables; k++)
        for (int t = 0; t < N_TYPES; t++) {
            struct Matrix m;
            matrix_make(&m, types[t], 1, COLS);
            static const float odd[] = { 0, 1e-38f, 1e-42f, INFINITY, -INFINITY, NAN };
            for (int i = 0; i < 6; i++) {
                for (int j = 0; j < COLS; j++) x[j] = i < 3 ? odd[i] : 1;
                x[77] = odd[i];
                void *prep = prep_make(tables[k], x, COLS, false);
                tables[k]->matvec_rows(&m.w, 0, 1, prep, false, &y);
                if (i < 3) assert_true(fabsf(y) <= COLS * m.terms * fabsf(odd[i]));
                else assert_false(isfinite(y));
                free(prep);
            }
            free(m.data);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_rounding_step),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_row_splits),
        cmocka_unit_test(test_odd_vectors),
    };
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables[n_tables++] = &kernels_avx2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        tables[n_tables++] = &kernels_avx512;
        if (__builtin_cpu_supports("avx512vnni")) tables[n_tables++] = &kernels_avx512vnni;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

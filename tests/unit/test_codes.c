/* test_codes.c - KV pages of 8- and 4-bit codes, on every kernel table that this CPU can run: round trips within what the
 * bits allow, tokens that move as they are, attention against double-precision loops over what the pages hold; and what
 * evens keys out before: the Hadamard transform and the balance of biases.
 */
#include "kernel_support.h"

#include "src/quant.h"

static const int DIMS[] = {8, 33, 40, 64, 80, 96, 100, 128, 192, 256, 1024};
enum { N_DIMS = sizeof DIMS / sizeof *DIMS };
static const enum PageFormat CODED[] = {PAGE_Q8, PAGE_Q4};

static int top_code(enum PageFormat format)
{
    return format == PAGE_Q8 ? 255 : 15;
}

/* ==== Round trips ==== */

/* Half a step, what f16 rounds off the step (all codes of it) and off the zero. */
static void check_values(const float *x, const float *got, int n, enum PageFormat format)
{
    float low = x[0], high = x[0];
    for (int i = 0; i < n; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    double top = top_code(format), step = ((double)high - low) / top;
    double bound = step * (0.501 + top * 0x1p-11) + fabs(low) * 0x1p-11 + (top + 1) * 0x1p-24;
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - x[i]) <= bound))
            fail_msg("format %d: %g for %g, more than %g off", format, got[i], x[i], bound);
}

static void make_tokens(float *x, int n, int dim, int kind)
{
    static const float spreads[] = {1, 100, 1e-3f, 0};
    fill(x, (size_t)n * (size_t)dim, spreads[kind]);
    for (int i = 0; kind == 1 && i < n * dim; i++) x[i] += 500; /* far from zero */
}

static void test_round_trip(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < N_DIMS * 8; i++) {
        int dim = DIMS[i / 8];
        enum PageFormat format = CODED[i / 4 % 2];
        size_t n = (size_t)QBLOCK * (size_t)dim, bytes = page_bytes(format, dim);
        float *keys = floats(n), *values = floats(n), *key = floats((size_t)dim),
              *value = floats((size_t)dim);
        void *page = block(bytes);
        make_tokens(keys, QBLOCK, dim, i % 4);
        make_tokens(values, QBLOCK, dim, (i + 1) % 4);
        for (int s = 0; s < QBLOCK; s++) { /* any order */
            int at = s * 37 % QBLOCK;
            k->page_write(page, at, dim, keys + at * dim, values + at * dim, format);
        }
        for (int at = 0; at < QBLOCK; at++) {
            k->page_read(page, at, dim, key, value, format);
            check_values(keys + at * dim, key, dim, format);
            check_values(values + at * dim, value, dim, format);
        }
        free(keys);
        free(values);
        free(key);
        free(value);
        free(page);
    }
}

/* What f16 cannot hold is cut to what it can; what is no number shows. */
static void test_odd_numbers(void **state)
{
    const struct Kernels *k = kernels_of(state);
    enum { DIM = 16 };
    float key[DIM], value[DIM], x[DIM] = {0}, y[DIM] = {0};
    for (int f = 0; f < 2; f++) {
        void *page = block(page_bytes(CODED[f], DIM));
        x[3] = 1e6f;
        y[5] = -1e6f;
        k->page_write(page, 7, DIM, x, y, CODED[f]);
        k->page_read(page, 7, DIM, key, value, CODED[f]);
        float most = fminf(1e6f, 65504.0f * (float)top_code(CODED[f]));
        assert_true(fabsf(key[3] - most) < 1e3f && key[0] == 0);
        assert_true(value[5] == -65504 && fabsf(value[0]) < 65504 * 0.07f);
        x[3] = NAN;
        y[5] = INFINITY;
        k->page_write(page, 7, DIM, x, y, CODED[f]);
        k->page_read(page, 7, DIM, key, value, CODED[f]);
        for (int i = 0; i < DIM; i++) assert_true(isnan(key[i]) && isnan(value[i]));
        free(page);
    }
}

/* A token is the same bytes wherever it goes, and nothing else of a page changes. */
static void test_move(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < N_DIMS * 4; i++) {
        int dim = DIMS[i / 4];
        enum PageFormat format = (enum PageFormat)(i % 4);
        size_t n = (size_t)dim, bytes = page_bytes(format, dim);
        uint8_t *from = block(bytes), *to = block(bytes), *alone = block(bytes);
        float *x = floats(2 * n);
        for (int at = 0; at < QBLOCK; at++) {
            fill(x, 2 * n, 2);
            k->page_write(from, at, dim, x, x + n, format);
            k->page_write(to, at, dim, x + n, x, format);
        }
        memcpy(alone, to, bytes);
        k->page_write(from, 11, dim, x, x + n, format);
        k->page_write(alone, 40, dim, x, x + n, format);
        k->page_move(to, 40, from, 11, dim, format);
        assert_memory_equal(to, alone, bytes);
        k->page_write(alone, 3, dim, x, x + n, format); /* within a page */
        k->page_move(to, 3, to, 40, dim, format);
        assert_memory_equal(to, alone, bytes);
        free(from);
        free(to);
        free(alone);
        free(x);
    }
}

/* Tokens read together are those read one by one, of numbers and of codes. */
static void test_rows(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < N_DIMS * 4; i++) {
        int dim = DIMS[i / 4];
        enum PageFormat format = (enum PageFormat)(i % 4);
        size_t n = (size_t)dim;
        void *page = block(page_bytes(format, dim));
        float *x = floats(2 * n), *keys = floats(QBLOCK * n), *values = floats(QBLOCK * n);
        for (int at = 0; at < QBLOCK; at++) {
            fill(x, 2 * n, 2);
            k->page_write(page, at, dim, x, x + n, format);
        }
        for (int at = 0; at < QBLOCK; at += 7) {
            int count = 1 + (at * 5 + dim) % (QBLOCK - at);
            k->page_rows(page, at, count, dim, keys, values, format);
            for (int t = 0; t < count; t++) {
                k->page_read(page, at + t, dim, x, x + n, format);
                assert_memory_equal(keys + (size_t)t * n, x, n * sizeof *x);
                assert_memory_equal(values + (size_t)t * n, x + n, n * sizeof *x);
            }
        }
        free(page);
        free(x);
        free(keys);
        free(values);
    }
}

/* ==== Attention ==== */

enum { RUNS = 5 };

struct Pages {
    const struct Kernels *k;
    enum PageFormat format;
    int dim, n_q, n_runs;
    float *q, *out; /* [n_q, dim + 7], [n_q, dim] */
    struct PageRun runs[RUNS];
    struct Partial *part;
    float *keys, *values; /* [RUNS, 64, dim] as the pages hold them */
};

static bool is_seen(const struct PageRun *run, int t)
{
    return t < run->len && (t < run->hidden || t >= run->seen);
}

/* How far a logit may be off: half a step of the query's int16, and f32 sums of the parts with the codes and the zeros. */
static double logit_error(const struct Pages *p, const float *q, const float *k)
{
    double pairs = (p->dim + 1) / 2, most = fmin(INT16_MAX, floor(INT32_MAX / (510 * pairs)));
    double half = max_abs(q, p->dim) / most / 2, error = 0, size = 0, low = k[0], top;
    for (int d = 0; d < p->dim; d++) low = fmin(low, k[d]);
    top = max_abs(k, p->dim) + fabs(low);
    for (int d = 0; d < p->dim; d++) {
        error += half * fabs(k[d]);
        size += fabs(q[d]) * 2 * top;
    }
    return (error + 6 * EPS * size) / sqrt(p->dim);
}

static void check_query(const struct Pages *p, int g)
{
    const float *q = p->q + (size_t)g * (size_t)(p->dim + 7);
    double top = -INFINITY, sum = 0, off = 0, logit[RUNS * QBLOCK], slack = 0;
    double *want = calloc((size_t)p->dim * 2, sizeof *want);
    for (int i = 0; i < p->n_runs * QBLOCK; i++) {
        const struct PageRun *run = &p->runs[i / QBLOCK];
        const float *k = p->keys + (size_t)i * (size_t)p->dim;
        logit[i] = -INFINITY;
        if (!is_seen(run, i % QBLOCK)) continue;
        double s = 0;
        for (int d = 0; d < p->dim; d++) s += (double)q[d] * k[d];
        logit[i] = s / sqrt(p->dim) + run->bias;
        off = fmax(off, logit_error(p, q, k) + 4 * EPS * (fabs(logit[i]) + fabs(run->bias)));
        top = fmax(top, logit[i]);
    }
    for (int i = 0; i < p->n_runs * QBLOCK; i++) {
        const float *v = p->values + (size_t)i * (size_t)p->dim;
        double w = exp(logit[i] - top), low = 0, high = 0;
        if (w == 0) continue;
        sum += w;
        for (int d = 0; d < p->dim; d++) {
            want[d] += w * v[d];
            want[p->dim + d] += w * fabs(v[d]);
            low = fmin(low, v[d]), high = fmax(high, v[d]);
        }
        slack =
            fmax(slack, w * (high - low)); /* of a page's weights, 64 times half a step of int16 */
    }
    double lse = (p->part[g].max + log2(p->part[g].sum)) * log(2), error = 2 * off + 1e-6;
    assert_true(fabs(lse - (top + log(sum))) <= error + 4 * EPS * fabs(top));
    for (int d = 0; d < p->dim; d++) {
        double have = p->out[(size_t)g * (size_t)p->dim + (size_t)d] / p->part[g].sum;
        double bound = (expm1(error) + 40 * EPS) * (want[p->dim + d] + slack) / sum +
                       p->n_runs * QBLOCK * slack / INT16_MAX / 2 / sum * exp(error) + 1e-30;
        if (!(fabs(have - want[d] / sum) <= bound))
            fail_msg("%s format %d dim %d: query %d [%d] %g for %g, more than %g off", p->k->isa,
                     p->format, p->dim, g, d, have, want[d] / sum, bound);
    }
    free(want);
}

static void run_pages(struct Pages *p, const struct PageRun *runs, float spread)
{
    size_t n = (size_t)p->n_q * (size_t)(p->dim + 7), row = (size_t)p->dim;
    void *pages[RUNS];
    float *x = floats(2 * row);
    p->q = floats(n);
    p->out = floats((size_t)p->n_q * row);
    p->part = block(sizeof *p->part * (size_t)p->n_q);
    p->keys = floats(RUNS * QBLOCK * row);
    p->values = floats(RUNS * QBLOCK * row);
    fill(p->q, n, spread);
    for (int i = 0; i < p->n_runs; i++) {
        pages[i] = block(page_bytes(p->format, p->dim));
        memset(pages[i], 0xff, page_bytes(p->format, p->dim)); /* scales of unused slots are NaN */
        for (int t = 0; t < runs[i].len; t++) {
            size_t at = ((size_t)i * QBLOCK + (size_t)t) * row;
            fill(x, 2 * row, 1);
            p->k->page_write(pages[i], t, p->dim, x, x + row, p->format);
            p->k->page_read(pages[i], t, p->dim, p->keys + at, p->values + at, p->format);
        }
        p->runs[i] = runs[i];
        p->runs[i].page = pages[i];
    }
    struct PageAttn a = {.format = p->format,
                         .head_dim = p->dim,
                         .q = p->q,
                         .ld_q = p->dim + 7,
                         .n_q = p->n_q,
                         .runs = p->runs,
                         .n_runs = p->n_runs};
    p->k->attn_pages(&a, p->part, p->out);
    for (int g = 0; g < p->n_q; g++) check_query(p, g);
    for (int i = 0; i < p->n_runs; i++) free(pages[i]);
    void *all[] = {x, p->q, p->out, p->part, p->keys, p->values};
    for (int i = 0; i < 6; i++) free(all[i]);
}

static void test_attention(void **state)
{
    static const int groups[] = {1, 3, 4, 7, 17};
    static const struct PageRun runs[][RUNS] = {
        {{.len = 1}},
        {{.len = 64, .bias = 1.3f},
         {.len = 13},
         {.len = 64},
         {.len = 1, .bias = -0.7f},
         {.len = 40}},
        {{.len = 64, .hidden = 4, .seen = 50}, {.len = 0}, {.len = 2}, {.len = 63}, {.len = 64}},
        {{.len = 5, .bias = 2}, {.len = 64, .hidden = 0, .seen = 63}},
    };
    static const int n_runs[] = {1, 5, 5, 2};
    static const float spreads[] = {1, 1, 20, 0};
    const struct Kernels *k = kernels_of(state);
    for (int d = 0; d < N_DIMS; d++)
        for (int g = 0; g < 5; g++)
            for (int c = 0; c < 8; c++) {
                struct Pages p = {.k = k,
                                  .format = CODED[c / 4],
                                  .dim = DIMS[d],
                                  .n_q = groups[g],
                                  .n_runs = n_runs[c % 4]};
                run_pages(&p, runs[c % 4], spreads[c % 4]);
            }
}

/* A query or a token that is no number gives an output that is none. */
static void test_broken(void **state)
{
    const struct Kernels *k = kernels_of(state);
    enum { DIM = 64 };
    for (int i = 0; i < 6; i++) {
        enum PageFormat format = CODED[i % 2];
        float q[DIM], x[2 * DIM], out[DIM];
        struct Partial part;
        void *page = block(page_bytes(format, DIM));
        fill(q, DIM, 1);
        fill(x, 2 * DIM, 1);
        if (i / 2 == 0) q[3] = NAN;
        if (i / 2 == 1) x[3] = INFINITY;
        if (i / 2 == 2) x[DIM + 3] = NAN;
        k->page_write(page, 0, DIM, x, x + DIM, format);
        struct PageRun run = {.page = page, .len = 1};
        struct PageAttn a = {.format = format,
                             .head_dim = DIM,
                             .q = q,
                             .ld_q = DIM,
                             .n_q = 1,
                             .runs = &run,
                             .n_runs = 1};
        k->attn_pages(&a, &part, out);
        assert_true(isnan(out[0] / part.sum));
        free(page);
    }
}

/* ==== Evening out ==== */

/* The sign of column j in row i of a Hadamard matrix. */
static int hadamard(int i, int j)
{
    return __builtin_popcount((unsigned)(i & j)) % 2 ? -1 : 1;
}

static void test_spread(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int t = 0; t < N_DIMS; t++) {
        int dim = DIMS[t], run = dim & -dim;
        float *x = floats((size_t)dim), *y = floats((size_t)dim);
        fill(x, (size_t)dim, 1);
        memcpy(y, x, sizeof *x * (size_t)dim);
        k->spread(y, dim);
        for (int i = 0; i < dim; i++) {
            double want = 0, size = 0;
            for (int j = 0; j < run; j++) {
                want += hadamard(i % run, j) * (double)x[i / run * run + j];
                size += fabs(x[i / run * run + j]);
            }
            assert_true(fabs(y[i] - want / sqrt(run)) <= 12 * EPS * size / sqrt(run));
        }
        k->spread(y, dim); /* undoes itself */
        for (int i = 0; i < dim; i++) assert_true(fabs(y[i] - x[i]) <= 1e-5 * max_abs(x, dim));
        free(x);
        free(y);
    }
}

/* Columns that turn together have one factor; none where there is no bias; the fourth power of the biases' ratio else. */
static void test_balance(void **state)
{
    (void)state;
    enum { HEADS = 4, KV = 2, DIM = 8 };
    float freq[3] = {1, 0.1f, 1e-6f}, bq[HEADS * DIM] = {0}, bk[KV * DIM] = {0}, out[KV * DIM];
    struct Layer l = {.bq = bq, .bk = bk};
    for (int style = 0; style < 2; style++) {
        struct ModelConfig m = {.n_heads = HEADS,
                                .n_kv_heads = KV,
                                .head_dim = DIM,
                                .rope_dim = 6,
                                .inv_freq = freq,
                                .train_len = 1000,
                                .rope_style = style ? ROPE_PAIRS : ROPE_HALVES};
        memset(bq, 0, sizeof bq);
        memset(bk, 0, sizeof bk);
        key_balance(&m, &l, out);
        for (int i = 0; i < KV * DIM; i++) assert_true(out[i] == 1);
        /* head 1: pair 1's other column; a slow pair and a column that never turns count for nothing */
        int first = style ? 2 : 1, second = style ? 3 : 4, slow = style ? 4 : 2;
        bk[DIM + second] = 100;
        bk[DIM + slow] = bk[DIM + 7] = 1000;
        bq[2 * DIM + first] = 10;
        key_balance(&m, &l, out);
        double want = pow((2 + 5000.0) * 2 / (2 + 50.0 + 2), 0.25);
        for (int i = 0; i < KV * DIM; i++) {
            bool pair = i == DIM + first || i == DIM + second;
            assert_true(fabs(out[i] - (pair ? want : 1)) < 1e-5);
        }
        for (int i = 0; i < DIM; i++)
            assert_true(key_column_slow(&m, i) == (i > 5 || i == slow || i == (style ? 5 : 5)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_round_trip), EACH(test_odd_numbers),         EACH(test_move),
        EACH(test_rows),       EACH(test_attention),           EACH(test_broken),
        EACH(test_spread),     cmocka_unit_test(test_balance),
    };
    return cmocka_run_group_tests_name("codes", tests, NULL, NULL) != 0;
}

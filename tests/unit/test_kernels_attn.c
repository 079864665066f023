/* test_kernels_attn.c - attention over packed keys, its mass, and attention over pages: every kernel table that
 * this CPU can run against plain double-precision loops.
 *
 * The allowed error of int16 mode follows from the quantisation step, as in test_kernels.c.
 */
#include "tests/unit/kernel_support.h"

/* ==== Attention over packed keys ==== */

struct Attn {
    const struct Kernels *k;
    bool exact;
    int dim, n_heads, n_kv_heads, head; /* query head `head` reads KV head `head / group` */
    int rows, first_visible, n_biased;
    float bias, spread;       /* spread of the queries: 0 flat, large peaked */
    float *q, *keys, *values; /* [rows, n_heads * dim], [n_keys, n_kv_heads * dim] */
    float biases[160];        /* runs of keys with `bias`, half of it, and none */
    int tail;                 /* as in KvPack */
    bool halves;
    struct AttnTile tile;
};

static int n_keys(const struct Attn *a)
{
    return a->first_visible + a->rows - 1;
}

static const float *key_row(const struct Attn *a, const float *rows, int j)
{
    return rows + ((size_t)j * a->n_kv_heads + a->head / (a->n_heads / a->n_kv_heads)) * a->dim;
}

static const float *query_row(const struct Attn *a, int r)
{
    return a->q + ((size_t)r * a->n_heads + a->head) * a->dim;
}

static void attn_pack(struct Attn *a)
{
    struct KvPack *kv = &a->tile.kv;
    kv->exact = a->exact;
    kv->head_dim = a->dim;
    kv->tail = a->tail;
    kv->halves = a->halves;
    size_t scales, bytes = a->k->kv_pack_bytes(a->dim, a->exact, &scales);
    int blocks = (n_keys(a) + QBLOCK - 1) / QBLOCK;
    kv->k = block(bytes * (size_t)blocks);
    kv->v = block(bytes * (size_t)blocks);
    kv->k_scale = floats(scales * (size_t)blocks);
    kv->v_scale = floats(scales * (size_t)blocks);
    kv->tail_v = block(bytes);
    kv->tail_scale = floats(scales);
    for (int b = 0; b < blocks; b++)
        a->k->kv_pack(key_row(a, a->keys, b * QBLOCK), key_row(a, a->values, b * QBLOCK),
                      a->n_kv_heads * a->dim, min_int(QBLOCK, n_keys(a) - b * QBLOCK), b, kv);
}

static void attn_open(struct Attn *a)
{
    size_t nq = (size_t)a->rows * a->n_heads * a->dim,
           nk = (size_t)n_keys(a) * a->n_kv_heads * a->dim;
    a->q = floats(nq);
    a->keys = floats(nk);
    a->values = floats(nk);
    fill(a->q, nq, a->spread);
    fill(a->keys, nk, 1);
    fill(a->values, nk, 1);
    for (int j = 0; j < 160; j++) a->biases[j] = a->bias * (float)(2 - j / 17 % 3) / 2;
    a->tile = (struct AttnTile){.exact = a->exact,
                                .head_dim = a->dim,
                                .q = query_row(a, 0),
                                .ld_q = a->n_heads * a->dim,
                                .n_rows = a->rows,
                                .first_visible = a->first_visible,
                                .scale = 1.0f / sqrtf((float)a->dim),
                                .bias = a->biases,
                                .n_biased = a->n_biased,
                                .ld_out = a->n_heads * a->dim};
    attn_pack(a);
}

static void attn_close(struct Attn *a)
{
    void *blocks[] = {a->q,
                      a->keys,
                      a->values,
                      a->tile.kv.k,
                      a->tile.kv.v,
                      a->tile.kv.k_scale,
                      a->tile.kv.v_scale,
                      a->tile.kv.tail_v,
                      a->tile.kv.tail_scale};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

/* Softmax of row r in prob [n_keys]; returns a bound of |log p - log p'|.
 *
 * A logit errs by its product's bound and a few roundings of its own size; probabilities are then within
 * e^(2 error), both from the numerator and the sum. */
static double attn_softmax(const struct Attn *a, int r, double *prob)
{
    int visible = a->first_visible + r;
    double top = -INFINITY, sum = 0, error = 0;
    struct Format f = {a->exact, QBLOCK, LIMIT_QUERY, LIMIT_KEY};
    for (int j = 0; j < n_keys(a); j++) prob[j] = 0;
    for (int j = 0; j < visible; j++) {
        double bound, s = dot_bound(query_row(a, r), key_row(a, a->keys, j), a->dim, f, &bound);
        double bias = j < a->n_biased ? a->biases[j] : 0;
        prob[j] = s * a->tile.scale + bias;
        error = fmax(error, bound * a->tile.scale + 4 * EPS * (fabs(prob[j]) + fabs(bias)));
        top = fmax(top, prob[j]);
    }
    for (int j = 0; j < visible; j++) sum += prob[j] = exp(prob[j] - top);
    for (int j = 0; j < visible; j++) prob[j] /= sum;
    return fmin(2 * error, 50) + 1e-6; /* beyond that nothing is claimed */
}

/* Output d of a row. Beside the probabilities' error: values move by half a step of their block, and
 * probabilities by half a step of the block's largest. */
static double attn_value(const struct Attn *a, int visible, const double *prob, double error, int d,
                         double *bound)
{
    double out = 0, size = 0, moved = 0;
    for (int at = 0; at < visible; at += QBLOCK) {
        double top_p = 0, top_v = 0, size_v = 0;
        for (int j = at; j < n_keys(a) && j < at + QBLOCK; j++) {
            double v = key_row(a, a->values, j)[d];
            top_v = fmax(top_v, fabs(v));
            if (j >= visible) continue;
            out += prob[j] * v;
            size += prob[j] * fabs(v);
            size_v += fabs(v);
            top_p = fmax(top_p, prob[j]);
        }
        for (int j = at; j < visible && j < at + QBLOCK; j++)
            moved += prob[j] * top_v / LIMIT_VALUE / 2;
        moved += top_p / LIMIT_PROB / 2 * (size_v + QBLOCK * top_v / LIMIT_VALUE);
    }
    double roundings = (visible + 16) * EPS;
    *bound = (expm1(error) + roundings) * size + (a->exact ? 0 : exp(error) * moved) + 1e-34;
    return out;
}

static void check_attn_tile(struct Attn *a)
{
    size_t n = (size_t)a->rows * a->n_heads * a->dim;
    float *out = floats(n);
    double *prob = calloc((size_t)n_keys(a), sizeof *prob);
    void *scratch = block(a->k->attn_scratch_bytes(a->dim, 0, a->exact));
    for (size_t i = 0; i < n; i++) out[i] = 77;
    a->tile.out = out + (size_t)a->head * a->dim;
    a->k->attn_tile(&a->tile, scratch);
    for (int r = 0; r < a->rows; r++) {
        double error = attn_softmax(a, r, prob);
        for (int i = 0; i < a->n_heads * a->dim; i++) {
            float have = out[(size_t)r * a->n_heads * a->dim + i];
            if (i / a->dim != a->head) {
                assert_true(have == 77);
                continue;
            }
            double bound,
                want = attn_value(a, a->first_visible + r, prob, error, i % a->dim, &bound);
            if (!(fabs(have - want) <= bound))
                fail_msg("%s exact %d dim %d keys %d spread %g row %d: %g for %g, bound %g",
                         a->k->isa, a->exact, a->dim, n_keys(a), a->spread, r, have, want, bound);
        }
    }
    free(out);
    free(prob);
    free(scratch);
}

static void check_attn_mass(struct Attn *a)
{
    int n = n_keys(a);
    float *mass = floats((size_t)n);
    double *prob = calloc((size_t)n, sizeof *prob), *want = calloc((size_t)n, sizeof *want),
           *bound = calloc((size_t)n, sizeof *bound);
    void *scratch = block(a->k->attn_scratch_bytes(a->dim, n, a->exact));
    for (int j = 0; j < n; j++) mass[j] = 1; /* the kernel adds */
    a->k->attn_mass(&a->tile, n, mass, scratch);
    for (int r = 0; r < a->rows; r++) {
        double error = attn_softmax(a, r, prob);
        for (int j = 0; j < n; j++) {
            want[j] += prob[j];
            bound[j] += (expm1(error) + (n + 16) * EPS) * prob[j] + 1e-30;
        }
    }
    double sum = 0;
    for (int j = 0; j < n; j++) {
        sum += mass[j] - 1.0;
        if (!(fabs(mass[j] - 1 - want[j]) <= bound[j] + (a->rows + 1) * EPS * (1 + want[j])))
            fail_msg("%s exact %d dim %d keys %d: mass[%d] %g for %g", a->k->isa, a->exact, a->dim,
                     n, j, mass[j] - 1, want[j]);
    }
    assert_true(fabs(sum - a->rows) <= 1e-5 * a->rows + n * EPS);
    free(mass);
    free(prob);
    free(want);
    free(bound);
    free(scratch);
}

/* The mass under a sum of twice the own keys' is half of it; one under the own sum, as the tile tells it, is all of it. */
static void check_attn_lse(struct Attn *a)
{
    enum { LD = 3 };
    int n = n_keys(a);
    float *out = floats((size_t)a->rows * a->n_heads * a->dim), *mass = floats((size_t)n),
          *lse = floats((size_t)a->rows * LD);
    void *scratch = block(a->k->attn_scratch_bytes(a->dim, n, a->exact));
    for (int i = 0; i < a->rows * LD; i++) lse[i] = 77;
    struct AttnTile tile = a->tile;
    tile.out = out;
    tile.lse = lse + 1;
    tile.ld_lse = LD;
    a->k->attn_tile(&tile, scratch);
    for (int i = 0; i < a->rows * LD; i++) assert_true((lse[i] == 77) == (i % LD != 1));
    for (int half = 0; half < 2; half++) {
        double sum = 0, top = 1;
        memset(mass, 0, sizeof *mass * (size_t)n);
        for (int r = 0; r < a->rows && half; r++) lse[r * LD + 1] += logf(2);
        for (int r = 0; r < a->rows; r++) top = fmax(top, fabs(lse[r * LD + 1]));
        a->k->attn_mass(&tile, n, mass, scratch);
        for (int j = 0; j < n; j++) sum += mass[j];
        double want = half ? a->rows / 2.0 : a->rows;
        if (!(fabs(sum - want) <= (n + 16 + 4 * top) * EPS * want))
            fail_msg("%s exact %d dim %d keys %d: mass of all keys %g for %g", a->k->isa, a->exact,
                     a->dim, n, sum, want);
    }
    free(out);
    free(mass);
    free(lse);
    free(scratch);
}

static const struct {
    int rows, first_visible, n_biased;
    float bias, spread;
} attn_cases[] = {
    {1, 1, 0, 0, 1},      {48, 1, 0, 0, 1},
    {48, 17, 0, 0, 0},    {7, 64, 0, 0, 1},
    {13, 65, 0, 0, 40},   {48, 129, 5, 1.6f, 1},
    {31, 300, 70, -2, 1}, {2, 190, 64, 0.7f, 0.01f},
    {48, 210, 3, 3, 200}, {5, 3, 130, 1.0986123f, 1},
};

static void test_attention(void **state)
{
    static const int dims[] = {16, 64, 80, 96, 100, 128, 256};
    const struct Kernels *k = kernels_of(state);
    for (int d = 0; d < 7; d++)
        for (size_t c = 0; c < sizeof attn_cases / sizeof *attn_cases; c++)
            for (int exact = 0; exact < 2; exact++) {
                struct Attn a = {.k = k,
                                 .exact = exact,
                                 .dim = dims[d],
                                 .n_heads = 6,
                                 .n_kv_heads = 2,
                                 .head = (int)c % 6,
                                 .rows = attn_cases[c].rows,
                                 .first_visible = attn_cases[c].first_visible,
                                 .n_biased = attn_cases[c].n_biased,
                                 .bias = attn_cases[c].bias,
                                 .spread = attn_cases[c].spread};
                a.tail = c % 2 ? n_keys(&a) * (int)c / 10 : 0;
                attn_open(&a);
                check_attn_tile(&a);
                check_attn_mass(&a);
                check_attn_lse(&a);
                attn_close(&a);
            }
}

/* Rows before a tail do not depend on it, however large its values are; and the tail's own rows see all. */
static void test_attention_tail(void **state)
{
    static const int tails[] = {1, 30, 64, 65, 100, 127};
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < 24; i++) {
        struct Attn a = {.k = k,
                         .exact = i % 2,
                         .dim = i % 4 < 2 ? 64 : 100,
                         .n_heads = 2,
                         .n_kv_heads = 1,
                         .rows = 40,
                         .first_visible = tails[i / 4] < 20 ? 1 : tails[i / 4] - 19,
                         .spread = 1};
        int width = a.n_heads * a.dim;
        size_t n = (size_t)a.rows * (size_t)width;
        float *out[2] = {floats(n), floats(n)};
        void *scratch = block(k->attn_scratch_bytes(a.dim, 0, a.exact));
        a.tail = tails[i / 4];
        attn_open(&a);
        for (int turn = 0; turn < 2; turn++) {
            a.tile.out = out[turn];
            k->attn_tile(&a.tile, scratch);
            struct KvPack old = a.tile.kv;
            for (int j = a.tail * a.dim; turn == 0 && j < n_keys(&a) * a.dim; j++)
                a.values[j] *= 1000;
            if (turn == 0) attn_pack(&a);
            void *first[] = {old.k, old.v, old.k_scale, old.v_scale, old.tail_v, old.tail_scale};
            for (int f = 0; turn == 0 && f < 6; f++) free(first[f]);
        }
        int differ = 0;
        for (int x = 0; x < a.rows * a.dim; x++) {
            size_t at = (size_t)(x / a.dim) * (size_t)width + (size_t)(x % a.dim);
            bool other =
                fabsf(out[0][at] - out[1][at]) > 1e-30f; /* what blocks that are not seen leave */
            if (other && a.first_visible + x / a.dim <= a.tail)
                fail_msg("%s exact %d dim %d tail %d: %g and %g in row %d", k->isa, a.exact, a.dim,
                         a.tail, out[0][at], out[1][at], x / a.dim);
            differ += other;
        }
        assert_true(differ > 0);
        check_attn_tile(&a);
        free(out[0]);
        free(out[1]);
        free(scratch);
        attn_close(&a);
    }
}

/* What is rounded on the way is what was rounded before. */
static void test_attention_halves(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < 12; i++) {
        struct Attn a = {.k = k,
                         .halves = true,
                         .dim = i % 3 == 0   ? 64
                                : i % 3 == 1 ? 100
                                             : 16,
                         .n_heads = 2,
                         .n_kv_heads = 2,
                         .rows = 20 + i,
                         .first_visible = 30 * i + 1,
                         .tail = i % 2 ? 20 * i : 0,
                         .spread = 1};
        attn_open(&a);
        struct KvPack old = a.tile.kv;
        size_t n = (size_t)n_keys(&a) * (size_t)(a.n_kv_heads * a.dim), scales,
               bytes = k->kv_pack_bytes(a.dim, false, &scales),
               blocks = (size_t)(n_keys(&a) + QBLOCK - 1) / QBLOCK;
        for (size_t j = 0; j < n; j++) {
            a.keys[j] = f16_to_f32(f32_to_f16(a.keys[j]));
            a.values[j] = f16_to_f32(f32_to_f16(a.values[j]));
        }
        a.halves = false;
        attn_pack(&a);
        assert_memory_equal(a.tile.kv.k, old.k, bytes * blocks);
        assert_memory_equal(a.tile.kv.v, old.v, bytes * blocks);
        assert_memory_equal(a.tile.kv.k_scale, old.k_scale, scales * blocks * sizeof(float));
        assert_memory_equal(a.tile.kv.v_scale, old.v_scale, scales * blocks * sizeof(float));
        if (a.tail % QBLOCK) assert_memory_equal(a.tile.kv.tail_v, old.tail_v, bytes);
        void *first[] = {old.k, old.v, old.k_scale, old.v_scale, old.tail_v, old.tail_scale};
        for (int f = 0; f < 6; f++) free(first[f]);
        attn_close(&a);
    }
}

/* One key matches the query far better than all others: the output is its value, within the value's own step. */
static void test_attention_one_hot(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int exact = 0; exact < 2; exact++) {
        struct Attn a = {.k = k,
                         .exact = exact,
                         .dim = 64,
                         .n_heads = 1,
                         .n_kv_heads = 1,
                         .rows = 20,
                         .first_visible = 140,
                         .spread = 1};
        attn_open(&a);
        int winner = 77;
        for (int r = 0; r < a.rows; r++)
            for (int d = 0; d < 64; d++) a.q[r * 64 + d] = d % 2 ? 30.0f : -30.0f;
        for (int d = 0; d < 64; d++) a.keys[winner * 64 + d] = d % 2 ? 30.0f : -30.0f;
        struct KvPack old = a.tile.kv;
        attn_pack(&a);
        check_attn_tile(&a);
        check_attn_mass(&a);
        float *out = floats((size_t)a.rows * 64);
        void *scratch = block(k->attn_scratch_bytes(64, 0, exact));
        a.tile.out = out;
        k->attn_tile(&a.tile, scratch);
        for (int r = 0; r < a.rows; r++)
            for (int d = 0; d < 64; d++) {
                double top = 0;
                for (int j = 64; j < 128; j++) top = fmax(top, fabs(a.values[j * 64 + d]));
                double step = exact ? 4 * EPS * top : 0.51 * top / LIMIT_VALUE;
                assert_true(fabs(out[r * 64 + d] - a.values[winner * 64 + d]) <= step);
            }
        free(out);
        free(scratch);
        void *first[] = {old.k, old.v, old.k_scale, old.v_scale, old.tail_v, old.tail_scale};
        for (int i = 0; i < 6; i++) free(first[i]);
        attn_close(&a);
    }
}

/* Queries, keys, probabilities and values all at their limits: the sums of 64 products must not wrap, and
 * nothing is rounded but f32 numbers. */
static void test_attention_limit(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int sign = -1; sign <= 1; sign += 2) {
        struct Attn a = {.k = k,
                         .dim = 128,
                         .n_heads = 1,
                         .n_kv_heads = 1,
                         .rows = 48,
                         .first_visible = 145,
                         .spread = 1};
        attn_open(&a);
        for (int i = 0; i < a.rows * a.dim; i++) a.q[i] = 0.5f;
        for (int j = 0; j < n_keys(&a); j++)
            for (int d = 0; d < a.dim; d++) {
                a.keys[j * a.dim + d] = j < 128 ? (float)sign : (float)-sign;
                a.values[j * a.dim + d] = d % 2 ? 2.5f : -2.5f;
            }
        struct KvPack old = a.tile.kv;
        attn_pack(&a);
        float *out = floats((size_t)a.rows * a.dim), *mass = floats((size_t)n_keys(&a));
        void *scratch = block(k->attn_scratch_bytes(a.dim, n_keys(&a), false));
        double *prob = calloc((size_t)n_keys(&a), sizeof *prob),
               *want = calloc((size_t)n_keys(&a), sizeof *want);
        memset(mass, 0, sizeof *mass * (size_t)n_keys(&a));
        a.tile.out = out;
        k->attn_tile(&a.tile, scratch);
        k->attn_mass(&a.tile, n_keys(&a), mass, scratch);
        for (int i = 0; i < a.rows * a.dim; i++)
            assert_true(fabs(out[i] - (i % 2 ? 2.5 : -2.5)) <= 2.5e-5);
        for (int r = 0; r < a.rows; r++) {
            attn_softmax(&a, r, prob);
            for (int j = 0; j < n_keys(&a); j++) want[j] += prob[j];
        }
        for (int j = 0; j < n_keys(&a); j++) assert_true(fabs(mass[j] - want[j]) <= 2e-5 * want[j]);
        free(out);
        free(mass);
        free(scratch);
        free(prob);
        free(want);
        void *first[] = {old.k, old.v, old.k_scale, old.v_scale, old.tail_v, old.tail_scale};
        for (int i = 0; i < 6; i++) free(first[i]);
        attn_close(&a);
    }
}

/* ==== Pages ==== */

static void test_pages_round_trip(void **state)
{
    static const int dims[] = {16, 64, 80, 256};
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < 4; i++)
        for (int exact = 0; exact < 2; exact++) {
            int dim = dims[i];
            size_t n = (size_t)QBLOCK * dim;
            void *page = block(page_bytes(exact ? PAGE_F32 : PAGE_F16, dim));
            float *keys = floats(n), *values = floats(n), *key = floats((size_t)dim),
                  *value = floats((size_t)dim);
            fill(keys, n, 3);
            fill(values, n, 3);
            keys[5] = 1e6f;                    /* beyond f16 */
            for (int s = 0; s < QBLOCK; s++) { /* any order */
                int at = s * 37 % QBLOCK;
                k->page_write(page, at, dim, keys + at * dim, values + at * dim,
                              exact ? PAGE_F32 : PAGE_F16);
            }
            for (int at = 0; at < QBLOCK; at++) {
                k->page_read(page, at, dim, key, value, exact ? PAGE_F32 : PAGE_F16);
                for (int d = 0; d < dim; d++) {
                    float x = keys[at * dim + d], y = values[at * dim + d];
                    assert_true(key[d] == (exact ? x : f16_to_f32(f32_to_f16(x))));
                    assert_true(value[d] == (exact ? y : f16_to_f32(f32_to_f16(y))));
                }
            }
            free(page);
            free(keys);
            free(values);
            free(key);
            free(value);
        }
}

#define BIAS_MAX 30.0f

struct Pages {
    const struct Kernels *k;
    enum PageFormat format;
    int dim, n_q, n_runs;
    float *q, *out;
    struct PageRun runs[5];
    struct Partial *part;
};

/* Of one query: the merged output and log-sum-exp (base 2) by brute force over what the pages hold. */
static void check_query(const struct Pages *p, int g)
{
    const float *q = p->q + (size_t)g * (p->dim + 7);
    double top = -INFINITY, sum = 0, size = 0, logit[5 * QBLOCK],
           *want = calloc((size_t)p->dim * 2, sizeof *want);
    float *k = floats((size_t)p->dim), *v = floats((size_t)p->dim);
    int n = 0;
    for (int i = 0; i < p->n_runs; i++)
        for (int t = 0; t < p->runs[i].len; t++, n++) {
            p->k->page_read(p->runs[i].page, t, p->dim, k, v, p->format);
            double s = 0;
            for (int d = 0; d < p->dim; d++)
                s += (double)q[d] * k[d], size = fmax(size, fabs((double)q[d] * k[d]) * p->dim);
            logit[n] = s / sqrt(p->dim) + p->runs[i].bias;
            top = fmax(top, logit[n]);
        }
    n = 0;
    for (int i = 0; i < p->n_runs; i++)
        for (int t = 0; t < p->runs[i].len; t++, n++) {
            p->k->page_read(p->runs[i].page, t, p->dim, k, v, p->format);
            double w = exp(logit[n] - top);
            sum += w;
            for (int d = 0; d < p->dim; d++)
                want[d] += w * v[d], want[p->dim + d] += w * fabs(v[d]);
        }
    /* the pages' numbers are used as they are: only f32 roundings remain */
    double error =
        2 * (p->dim * EPS * size / sqrt(p->dim) + 4 * EPS * (fabs(top) + BIAS_MAX)) + 1e-6;
    double lse = p->part[g].max + log2(p->part[g].sum);
    assert_true(fabs(lse * log(2) - (top + log(sum))) <= error + 4 * EPS * fabs(top));
    for (int d = 0; d < p->dim; d++) {
        double have = p->out[(size_t)g * p->dim + d] / p->part[g].sum;
        /* 2^-126 instead of less: see vf_scale2 */
        double bound = (expm1(error) + (n + 16) * EPS) * want[p->dim + d] / sum + 1e-34;
        if (!(fabs(have - want[d] / sum) <= bound))
            fail_msg("%s format %d dim %d: query %d [%d] %g for %g", p->k->isa, p->format, p->dim,
                     g, d, have, want[d] / sum);
    }
    free(want);
    free(k);
    free(v);
}

static void run_pages(struct Pages *p, const int *lens, const float *biases, float spread)
{
    size_t n = (size_t)p->n_q * (p->dim + 7);
    void *pages[5];
    float *k = floats((size_t)p->dim), *v = floats((size_t)p->dim);
    p->q = floats(n);
    p->out = floats((size_t)p->n_q * p->dim);
    p->part = block(sizeof *p->part * (size_t)p->n_q);
    fill(p->q, n, spread);
    for (int i = 0; i < p->n_runs; i++) {
        pages[i] = block(page_bytes(p->format, p->dim));
        memset(pages[i], 0xff, page_bytes(p->format, p->dim)); /* unused slots hold NaN */
        for (int t = 0; t < lens[i]; t++) {
            fill(k, (size_t)p->dim, 1);
            fill(v, (size_t)p->dim, 1);
            p->k->page_write(pages[i], t, p->dim, k, v, p->format);
        }
        p->runs[i] = (struct PageRun){.page = pages[i], .len = lens[i], .bias = biases[i]};
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
    free(k);
    free(v);
    free(p->q);
    free(p->out);
    free(p->part);
}

static void test_attn_pages(void **state)
{
    static const int dims[] = {16, 24, 64, 80, 96, 100, 128, 256}, groups[] = {1, 3, 4, 7, 17};
    static const int lens[][5] = {{1}, {64, 13, 64, 1, 40}, {64, 0, 2, 63, 64}, {5, 64}};
    static const int n_runs[] = {1, 5, 5, 2};
    static const float biases[][5] = {
        {0}, {1.3f, 1.3f, 0, -0.7f, 0}, {BIAS_MAX, 0, -BIAS_MAX, 0, 1}, {-0.2f, 1.1f}};
    static const float spreads[] = {1, 1, 60, 0};
    const struct Kernels *k = kernels_of(state);
    for (int d = 0; d < 8; d++)
        for (int g = 0; g < 5; g++)
            for (int c = 0; c < 4; c++)
                for (int exact = 0; exact < 2; exact++) {
                    struct Pages p = {.k = k,
                                      .format = exact ? PAGE_F32 : PAGE_F16,
                                      .dim = dims[d],
                                      .n_q = groups[g],
                                      .n_runs = n_runs[c]};
                    run_pages(&p, lens[c], biases[c], spreads[c]);
                }
}

/* ==== The index of pages ==== */

/* A page and its index, of values in f32 when `exact`. */
struct Indexed {
    enum PageFormat format;
    bool exact;
    int dim, len;
    const void *page, *entry;
};

/* Whether `low` is the nearest value not above `least`; of codes in f16, which hold neither, no more than a step below. */
static bool right_bound(const struct Indexed *x, double low, double least)
{
    bool codes = x->format == PAGE_Q8 || x->format == PAGE_Q4;
    if (x->exact || !codes) return low == (float)least;
    return low <= least && least - low <= 0x1p-10 * fabs(least) + 0x1p-24;
}

/* What a page's keys have in common, value by value. */
static void check_index(const struct Kernels *k, const struct Indexed *x, enum PageIndex index)
{
    int dim = x->dim, len = x->len;
    bool exact = x->exact;
    const void *entry = x->entry;
    float *key = floats((size_t)dim), *value = floats((size_t)dim);
    for (int d = 0; d < dim; d++) {
        double sum = 0, size = 0, least = INFINITY, most = -INFINITY;
        for (int t = 0; t < len; t++) {
            k->page_read(x->page, t, dim, key, value, x->format);
            sum += key[d];
            size += fabs((double)key[d]);
            least = fmin(least, key[d]);
            most = fmax(most, key[d]);
        }
        const uint16_t *half = entry;
        const float *full = entry;
        float low = exact ? full[d] : f16_to_f32(half[d]);
        if (index == PAGE_INDEX_MEAN) {
            double step = exact ? 0 : 0x1p-11 * fabs(sum / len) + 0x1p-25;
            assert_true(fabs(low - sum / len) <= 64 * EPS * size / len + step);
            continue;
        }
        float high = exact ? full[dim + d] : f16_to_f32(half[dim + d]);
        assert_true(right_bound(x, low, least) && right_bound(x, -high, -most));
    }
    free(key);
    free(value);
}

/* The score by double sums over the entry; a bound is also no lower than any key's own product. */
static void check_score(const struct Kernels *k, const struct IndexQuery *q,
                        const struct Indexed *of)
{
    int dim = q->head_dim, len = of->len;
    const void *entry = of->entry;
    float *key = floats((size_t)dim), *value = floats((size_t)dim);
    const uint16_t *half = entry;
    const float *full = entry;
    double best = -INFINITY, size = 0, reached = -INFINITY;
    for (int g = 0; g < q->n_q; g++) {
        double sum = 0;
        for (int d = 0; d < dim; d++) {
            double x = q->q[g * dim + d], low = q->exact ? full[d] : f16_to_f32(half[d]),
                   high = low;
            if (q->index == PAGE_INDEX_BOUND)
                high = q->exact ? full[dim + d] : f16_to_f32(half[dim + d]);
            sum += fmax(x * low, x * high);
            size = fmax(size, dim * fmax(fabs(x * low), fabs(x * high)));
        }
        best = fmax(best, sum);
        for (int t = 0; t < len; t++) {
            k->page_read(of->page, t, dim, key, value, of->format);
            double own = 0;
            for (int d = 0; d < dim; d++) own += (double)q->q[g * dim + d] * key[d];
            reached = fmax(reached, own);
        }
    }
    double score = k->index_score(q, entry), error = (dim + 2) * EPS * size * q->scale;
    if (!(fabs(score - best * q->scale) <= error))
        fail_msg("%s exact %d dim %d: score %g, not %g", k->isa, q->exact, dim, score,
                 best * q->scale);
    if (q->index == PAGE_INDEX_BOUND) assert_true(score >= reached * q->scale - error);
    free(key);
    free(value);
}

static void run_index(const struct Kernels *k, int dim, int n_q, int len, enum PageFormat format,
                      bool exact)
{
    void *page = block(page_bytes(format, dim)), *entry = block(2 * (size_t)dim * sizeof(float));
    float *key = floats((size_t)dim), *value = floats((size_t)dim),
          *q = floats((size_t)(n_q * dim));
    memset(page, 0xff, page_bytes(format, dim)); /* unused slots hold NaN */
    fill(value, (size_t)dim, 1);
    fill(q, (size_t)(n_q * dim), 2);
    for (int t = 0; t < len; t++) {
        fill(key, (size_t)dim, 3);
        k->page_write(page, t, dim, key, value, format);
    }
    for (int index = PAGE_INDEX_MEAN; index <= PAGE_INDEX_BOUND; index++) {
        struct IndexQuery query = {.index = (enum PageIndex)index,
                                   .exact = exact,
                                   .head_dim = dim,
                                   .q = q,
                                   .n_q = n_q,
                                   .scale = 1 / sqrtf((float)dim)};
        struct Indexed of = {format, exact, dim, len, page, entry};
        k->index_write(page, format, len, dim, query.index, exact, entry);
        check_index(k, &of, query.index);
        check_score(k, &query, &of);
    }
    free(page);
    free(entry);
    free(key);
    free(value);
    free(q);
}

static void test_index(void **state)
{
    static const int dims[] = {8, 16, 24, 64, 80, 100, 128, 256}, lens[] = {1, 7, 16, 33, 63, 64};
    const struct Kernels *k = kernels_of(state);
    for (int d = 0; d < 8; d++)
        for (int l = 0; l < 6; l++)
            for (int f = PAGE_F32; f <= PAGE_Q4; f++)
                for (int exact = f == PAGE_F32; exact < (f == PAGE_F16 ? 1 : 2); exact++)
                    run_index(k, dims[d], 1 + 3 * (l % 3), lens[l], (enum PageFormat)f, exact);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_attention),        EACH(test_attention_one_hot),
        EACH(test_attention_limit),  EACH(test_attention_tail),
        EACH(test_attention_halves), EACH(test_pages_round_trip),
        EACH(test_attn_pages),       EACH(test_index),
    };
    return cmocka_run_group_tests_name("kernels_attn", tests, NULL, NULL) != 0;
}

/* test_kernels.c - every kernel table that this CPU can run against plain double-precision loops.
 *
 * In int16 mode the allowed error follows from the quantisation step: a value moves by at most half of
 * max / limit, max taken over those that share its scale, and sums of the moved values are exact. What comes
 * on top are f32 roundings.
 */
#include "src/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define EPS 0x1p-23 /* one f32 rounding, generously */

/* ==== Tables ==== */

static const struct Isa {
    const char *name;
    const struct Kernels *table;
} isas[] = {
    {"avx2", &kernels_avx2},
    {"avx512", &kernels_avx512},
    {"avx512vnni", &kernels_avx512vnni},
};

static bool isa_runs(const struct Isa *isa)
{
    if (isa->table == &kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) return false;
    if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) return false;
    return isa->table == &kernels_avx512 || __builtin_cpu_supports("avx512vnni");
}

static const struct Kernels *kernels_of(void **state)
{
    const struct Isa *isa = *state;
    if (!isa_runs(isa)) {
        print_message("SKIP: this CPU lacks %s\n", isa->name);
        skip();
    }
    assert_string_equal(isa->table->isa, isa->name);
    return isa->table;
}

/* ==== Numbers and memory ==== */

static uint64_t rng_state = 11;

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

/* Values of differing size, a few of them much larger. */
static void fill(float *x, size_t n, float spread)
{
    for (size_t i = 0; i < n; i++) x[i] = spread * uniform() * expf(uniform());
    for (size_t i = 0; i < n / 100; i++) x[rng() % n] *= 20;
}

/* 64-byte aligned and of the exact size, so that the address sanitizer sees any step outside. */
static void *block(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes ? bytes : 1), 0);
    memset(p, 0x5a, bytes); /* finite, large garbage */
    return p;
}

static float *floats(size_t n)
{
    return block(n * sizeof(float));
}

static double max_abs(const float *x, int n)
{
    double top = 0;
    for (int i = 0; i < n; i++) top = fmax(top, fabs(x[i]));
    return top;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* How the two sides of a product are stored: values that share a scale, and the whole numbers' limits. */
struct Format {
    bool exact;
    int group;
    double limit_a, limit_b;
};

/* a . b in double, and in *bound how far from it a product may be: half a step on either side for
 * quantised values, and f32 sums. */
static double dot_bound(const float *a, const float *b, int n, struct Format f, double *bound)
{
    double sum = 0, size = 0, moved = 0;
    for (int at = 0; at < n; at += f.group) {
        int len = min_int(f.group, n - at);
        double half_a = max_abs(a + at, len) / f.limit_a / 2,
               half_b = max_abs(b + at, len) / f.limit_b / 2;
        for (int i = at; i < at + len; i++) {
            sum += (double)a[i] * b[i];
            size += fabs((double)a[i] * b[i]);
            moved += fabs(a[i]) * half_b + fabs(b[i]) * half_a + half_a * half_b;
        }
    }
    /* exact: n products and sums; else: the sums are whole numbers, scaled and added once a group */
    double roundings = f.exact ? n + 2 : n / f.group + 7;
    if (f.exact) moved = 0;
    *bound = moved + roundings * EPS * (size + moved) + 1e-30;
    return sum;
}

/* ==== Matrix products ==== */

struct Product {
    const struct Kernels *k;
    bool exact;
    int rows, cols, outs, group, together;
    enum DType type;
    float *x; /* [rows, cols + 3] */
    struct Act act;
    struct Weight w[2];
    void *stored[2];
    float *plain[2]; /* [outs, cols] what the stored blocks stand for */
    float *bias;
    void *scratch;
};

static struct Act act_make(int rows, int cols, bool exact, int group)
{
    struct Act a = {
        .exact = exact, .cols = cols, .n_blocks = (cols + QBLOCK - 1) / QBLOCK, .group = group};
    size_t blocks = act_at(&a, (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS, 0);
    a.v = block(blocks * QBLOCK * (exact ? sizeof(float) : sizeof(int16_t)));
    a.scale = exact ? NULL : floats(blocks);
    return a;
}

static float act_value(const struct Act *a, int row, int col)
{
    int block = col / QBLOCK;
    size_t i = act_at(a, row, block) * QBLOCK + (size_t)(col % QBLOCK);
    return a->exact ? ((float *)a->v)[i]
                    : ((int16_t *)a->v)[i] * a->scale[act_at(a, row, block / a->group * a->group)];
}

static void weight_make(struct Product *p, int i)
{
    size_t n = (size_t)p->outs * p->cols;
    p->plain[i] = floats(n);
    fill(p->plain[i], n, 0.1f);
    size_t bytes = dtype_row_bytes(p->type, p->cols) * (size_t)p->outs;
    p->stored[i] = block(bytes);
    if (p->type == DT_F32) {
        memcpy(p->stored[i], p->plain[i], bytes);
    } else if (p->type == DT_F16) {
        for (size_t j = 0; j < n; j++) ((uint16_t *)p->stored[i])[j] = f32_to_f16(p->plain[i][j]);
    } else { /* Q8_0: 2 bytes of scale, 32 of values */
        uint8_t *b = p->stored[i];
        for (size_t j = 0; j < bytes; j++) b[j] = (uint8_t)rng();
        for (size_t j = 0; j < bytes; j += 34) {
            uint16_t d = f32_to_f16(0.001f * (1.5f + uniform()));
            memcpy(b + j, &d, sizeof d);
        }
    }
    quant_decode(p->type, p->stored[i], p->plain[i], (int64_t)n);
    p->w[i] =
        (struct Weight){.type = p->type, .rows = p->outs, .cols = p->cols, .data = p->stored[i]};
}

static void product_open(struct Product *p)
{
    int ld = p->cols + 3, first = min_int(p->rows, 31);
    p->x = floats((size_t)p->rows * ld);
    fill(p->x, (size_t)p->rows * ld, 1);
    p->act = act_make(p->rows, p->cols, p->exact, p->group);
    /* the last row is packed from a copy without anything behind it */
    float *last = floats((size_t)p->cols);
    memcpy(last, p->x + (size_t)(p->rows - 1) * ld, sizeof *last * (size_t)p->cols);
    p->k->act_pack(p->x, ld, 0, first, &p->act);
    p->k->act_pack(p->x + (size_t)first * ld, ld, first, p->rows - first, &p->act);
    p->k->act_pack(last, ld, p->rows - 1, 1, &p->act);
    free(last);
    for (int i = 0; i < 2; i++) weight_make(p, i);
    p->bias = floats((size_t)p->outs);
    fill(p->bias, (size_t)p->outs, 1);
    p->scratch = block(p->k->panel_bytes(p->cols, p->exact));
}

static void product_close(struct Product *p)
{
    free(p->x);
    free(p->act.v);
    free(p->act.scale);
    for (int i = 0; i < 2; i++) {
        free(p->plain[i]);
        free(p->stored[i]);
    }
    free(p->bias);
    free(p->scratch);
}

static void product_run(struct Product *p, const struct MatmulArgs *m)
{
    int step = m->n_panels > 1 && m->mode != MATMUL_SILU ? m->n_panels : 1;
    for (int panel = 0; panel * PANEL_COLS < p->outs; panel += step) {
        int cut = p->rows > TILE_ROWS && panel % 2 ? TILE_ROWS : 0;
        if (cut) p->k->matmul_tile(m, panel, 0, cut, p->scratch);
        p->k->matmul_tile(m, panel, cut, p->rows, p->scratch);
    }
}

static double product_bound(const struct Product *p, int i, int row, int out, double *bound)
{
    struct Format f = {p->exact, p->group * QBLOCK, LIMIT_ACT / p->group, LIMIT_WEIGHT};
    return dot_bound(p->x + (size_t)row * (p->cols + 3), p->plain[i] + (size_t)out * p->cols,
                     p->cols, f, bound);
}

static void check_linear(struct Product *p, enum MatmulMode mode, bool biased)
{
    int ld = p->outs + 5;
    size_t n = (size_t)p->rows * ld;
    float *out = floats(n), *before = floats(n);
    fill(before, n, 1);
    memcpy(out, before, n * sizeof *out);
    struct MatmulArgs m = {.a = &p->act,
                           .n_rows = p->rows,
                           .w = &p->w[0],
                           .bias = biased ? p->bias : NULL,
                           .mode = mode,
                           .out = out,
                           .ld_out = ld,
                           .n_panels = p->together};
    product_run(p, &m);
    for (int r = 0; r < p->rows; r++)
        for (int c = 0; c < ld; c++) {
            size_t at = (size_t)r * ld + c;
            if (c >= p->outs) {
                assert_true(out[at] == before[at]);
                continue;
            }
            double bound, want = product_bound(p, 0, r, c, &bound), rest = biased ? p->bias[c] : 0;
            double old = mode == MATMUL_ADD ? before[at] : 0;
            bound += 3 * EPS * (fabs(want) + fabs(rest) + fabs(old));
            if (!(fabs(out[at] - (want + rest + old)) <= bound))
                fail_msg("%s exact %d %dx%dx%d type %d mode %d [%d, %d]: %g for %g, bound %g",
                         p->k->isa, p->exact, p->rows, p->cols, p->outs, p->type, mode, r, c,
                         out[at], want + rest + old, bound);
        }
    free(out);
    free(before);
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

/* silu(g) u, each of g and u known to its bound; silu's slope lies in (-0.1, 1.1). */
static double glu_bound(const struct Product *p, int row, int out, double *bound)
{
    double bg, bu, g = product_bound(p, 0, row, out, &bg), u = product_bound(p, 1, row, out, &bu);
    *bound = 1.1 * bg * (fabs(u) + bu) + fabs(silu(g)) * bu + 8 * EPS * fabs(silu(g) * u);
    return silu(g) * u;
}

static void check_silu(struct Product *p)
{
    struct Act out = act_make(p->rows, p->outs, p->exact, 1);
    struct MatmulArgs m = {.a = &p->act,
                           .n_rows = p->rows,
                           .w = &p->w[0],
                           .w2 = &p->w[1],
                           .mode = MATMUL_SILU,
                           .act_out = &out};
    product_run(p, &m);
    for (int r = 0; r < p->rows; r++)
        for (int b = 0; b < out.n_blocks; b++) {
            double want[QBLOCK] = {0}, bound[QBLOCK] = {0}, top = 0;
            for (int i = 0; i < QBLOCK && b * QBLOCK + i < p->outs; i++) {
                want[i] = glu_bound(p, r, b * QBLOCK + i, &bound[i]);
                top = fmax(top, fabs(want[i]) + bound[i]);
            }
            double half = p->exact ? 0 : top / LIMIT_ACT / 2 * (1 + 1e-3);
            for (int i = 0; i < QBLOCK; i++) {
                double have = act_value(&out, r, b * QBLOCK + i);
                if (b * QBLOCK + i >= p->outs)
                    assert_true(have == 0);
                else if (!(fabs(have - want[i]) <= bound[i] + half))
                    fail_msg("%s exact %d %dx%dx%d silu [%d, %d]: %g for %g", p->k->isa, p->exact,
                             p->rows, p->cols, p->outs, r, b * QBLOCK + i, have, want[i]);
            }
        }
    free(out.v);
    free(out.scale);
}

static void test_matmul(void **state)
{
    static const int shapes[][3] = {{1, 32, 1},    {2, 33, 64},   {5, 64, 65},    {6, 96, 63},
                                    {7, 320, 130}, {47, 65, 17},  {48, 128, 64},  {49, 191, 127},
                                    {96, 256, 32}, {97, 63, 200}, {100, 319, 70}, {49, 1600, 130},
                                    {2, 3100, 330}};
    static const enum DType types[] = {DT_F32, DT_F16, DT_Q8_0};
    const struct Kernels *k = kernels_of(state);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int t = 0; t < 3; t++)
            for (int exact = 0; exact < 2; exact++) {
                struct Product p = {.k = k,
                                    .exact = exact,
                                    .rows = shapes[s][0],
                                    .cols = shapes[s][1],
                                    .outs = shapes[s][2],
                                    .group = t % 2 ? 1 : GROUP_BLOCKS,
                                    .type = types[t],
                                    .together = (int)s % PANELS_MAX};
                if (p.type == DT_Q8_0 && p.cols % 32) continue;
                product_open(&p);
                check_linear(&p, MATMUL_STORE, false);
                check_linear(&p, MATMUL_STORE, true);
                check_linear(&p, MATMUL_ADD, true);
                check_silu(&p);
                product_close(&p);
            }
}

/* Outputs do not depend on how many panels and rows a call makes: on sizes of waves and numbers of threads. */
static void test_matmul_same_bits(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int mode = MATMUL_STORE; mode <= MATMUL_ADD; mode++)
        for (int exact = 0; exact < 2; exact++) {
            struct Product p = {.k = k,
                                .exact = exact,
                                .rows = 60,
                                .cols = 3100,
                                .outs = 300,
                                .group = GROUP_BLOCKS,
                                .type = DT_F16};
            size_t n = (size_t)p.rows * p.outs;
            float *out[2], *before = floats(n);
            fill(before, n, 1);
            product_open(&p);
            for (int i = 0; i < 2; i++) {
                out[i] = floats(n);
                memcpy(out[i], before, n * sizeof *before);
                struct MatmulArgs m = {.a = &p.act,
                                       .n_rows = p.rows,
                                       .w = &p.w[0],
                                       .bias = p.bias,
                                       .mode = mode,
                                       .out = out[i],
                                       .ld_out = p.outs,
                                       .n_panels = i ? 3 : 1};
                product_run(&p, &m);
            }
            assert_memory_equal(out[0], out[1], n * sizeof *before);
            for (int i = 0; i < 2; i++) free(out[i]);
            free(before);
            product_close(&p);
        }
}

/* All values at plus or minus the limit: the sum over a group comes near 2^31 and must not wrap. Every step is
 * exact but the f32 scales, and limits of groups that are no whole numbers. */
static void test_matmul_limit(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < 3 * GROUP_BLOCKS; i++) {
        int sign = i % 3 - 1;
        struct Product p = {
            .k = k, .rows = 50, .cols = 512, .outs = 70, .group = 1 + i / 3, .type = DT_F32};
        product_open(&p);
        for (int j = 0; j < p.rows * (p.cols + 3); j++)
            p.x[j] = sign ? 3.7f * (float)sign : j % 2 ? 3.7f : -3.7f;
        float *w = p.stored[0], *out = floats((size_t)p.rows * p.outs);
        for (int j = 0; j < p.outs * p.cols; j++) w[j] = sign ? 0.9f : j % 2 ? 0.9f : -0.9f;
        k->act_pack(p.x, p.cols + 3, 0, p.rows, &p.act);
        struct MatmulArgs m = {.a = &p.act,
                               .n_rows = p.rows,
                               .w = &p.w[0],
                               .mode = MATMUL_STORE,
                               .out = out,
                               .ld_out = p.outs};
        product_run(&p, &m);
        for (int r = 0; r < p.rows; r++)
            for (int c = 0; c < p.outs; c++) {
                double want = 0;
                for (int j = 0; j < p.cols; j++)
                    want += (double)p.x[(size_t)r * (p.cols + 3) + j] * w[(size_t)c * p.cols + j];
                double step = LIMIT_ACT % p.group ? 0.5 * p.group / LIMIT_ACT
                                                  : 0; /* the limit itself is rounded */
                assert_true(fabs(out[r * p.outs + c] - want) <= (step + 12 * EPS) * fabs(want));
            }
        free(out);
        product_close(&p);
    }
}

/* Blocks of zeros and of numbers far below any use give zero or as good as zero, not garbage. */
static void test_matmul_tiny_values(void **state)
{
    const struct Kernels *k = kernels_of(state);
    static const float spreads[] = {0, 1e-44f, 1e-38f, 1e-30f};
    for (int s = 0; s < 4; s++) {
        struct Product p = {.k = k, .rows = 3, .cols = 128, .outs = 64, .group = 1, .type = DT_F32};
        product_open(&p);
        for (int r = 0; r < p.rows; r++)
            for (int i = 0; i < 64; i++) p.x[r * (p.cols + 3) + i] = spreads[s] * uniform();
        k->act_pack(p.x, p.cols + 3, 0, p.rows, &p.act);
        check_linear(&p, MATMUL_STORE, false);
        product_close(&p);
    }
}

/* ==== Attention over packed keys ==== */

struct Attn {
    const struct Kernels *k;
    bool exact;
    int dim, n_heads, n_kv_heads, head; /* query head `head` reads KV head `head / group` */
    int rows, first_visible, n_biased;
    float bias, spread;       /* spread of the queries: 0 flat, large peaked */
    float *q, *keys, *values; /* [rows, n_heads * dim], [n_keys, n_kv_heads * dim] */
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
    size_t scales, bytes = a->k->kv_pack_bytes(a->dim, a->exact, &scales);
    int blocks = (n_keys(a) + QBLOCK - 1) / QBLOCK;
    kv->k = block(bytes * (size_t)blocks);
    kv->v = block(bytes * (size_t)blocks);
    kv->k_scale = floats(scales * (size_t)blocks);
    kv->v_scale = floats(scales * (size_t)blocks);
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
    a->tile = (struct AttnTile){.exact = a->exact,
                                .head_dim = a->dim,
                                .q = query_row(a, 0),
                                .ld_q = a->n_heads * a->dim,
                                .n_rows = a->rows,
                                .first_visible = a->first_visible,
                                .scale = 1.0f / sqrtf((float)a->dim),
                                .n_biased = a->n_biased,
                                .bias = a->bias,
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
                      a->tile.kv.v_scale};
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
        double bias = j < a->n_biased ? a->bias : 0;
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
                attn_open(&a);
                check_attn_tile(&a);
                check_attn_mass(&a);
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
        void *first[] = {old.k, old.v, old.k_scale, old.v_scale};
        for (int i = 0; i < 4; i++) free(first[i]);
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
        void *first[] = {old.k, old.v, old.k_scale, old.v_scale};
        for (int i = 0; i < 4; i++) free(first[i]);
        attn_close(&a);
    }
}

/* ==== Pages ==== */

static size_t page_bytes(int dim, bool exact)
{
    return (size_t)2 * QBLOCK * dim * (exact ? sizeof(float) : sizeof(uint16_t));
}

static void test_pages_round_trip(void **state)
{
    static const int dims[] = {16, 64, 80, 256};
    const struct Kernels *k = kernels_of(state);
    for (int i = 0; i < 4; i++)
        for (int exact = 0; exact < 2; exact++) {
            int dim = dims[i];
            size_t n = (size_t)QBLOCK * dim;
            void *page = block(page_bytes(dim, exact));
            float *keys = floats(n), *values = floats(n), *key = floats((size_t)dim),
                  *value = floats((size_t)dim);
            fill(keys, n, 3);
            fill(values, n, 3);
            keys[5] = 1e6f;                    /* beyond f16 */
            for (int s = 0; s < QBLOCK; s++) { /* any order */
                int at = s * 37 % QBLOCK;
                k->page_write(page, at, dim, keys + at * dim, values + at * dim, exact);
            }
            for (int at = 0; at < QBLOCK; at++) {
                k->page_read(page, at, dim, key, value, exact);
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

struct Pages {
    const struct Kernels *k;
    bool exact;
    int dim, n_q, n_runs;
    float bias, *q, *out;
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
            p->k->page_read(p->runs[i].page, t, p->dim, k, v, p->exact);
            double s = 0;
            for (int d = 0; d < p->dim; d++)
                s += (double)q[d] * k[d], size = fmax(size, fabs((double)q[d] * k[d]) * p->dim);
            logit[n] = s / sqrt(p->dim) + (t < p->runs[i].n_biased ? p->bias : 0);
            top = fmax(top, logit[n]);
        }
    n = 0;
    for (int i = 0; i < p->n_runs; i++)
        for (int t = 0; t < p->runs[i].len; t++, n++) {
            p->k->page_read(p->runs[i].page, t, p->dim, k, v, p->exact);
            double w = exp(logit[n] - top);
            sum += w;
            for (int d = 0; d < p->dim; d++)
                want[d] += w * v[d], want[p->dim + d] += w * fabs(v[d]);
        }
    /* the pages' numbers are used as they are: only f32 roundings remain */
    double error =
        2 * (p->dim * EPS * size / sqrt(p->dim) + 4 * EPS * (fabs(top) + fabs(p->bias))) + 1e-6;
    double lse = p->part[g].max + log2(p->part[g].sum);
    assert_true(fabs(lse * log(2) - (top + log(sum))) <= error + 4 * EPS * fabs(top));
    for (int d = 0; d < p->dim; d++) {
        double have = p->out[(size_t)g * p->dim + d] / p->part[g].sum;
        /* 2^-126 instead of less: see vf_scale2 */
        double bound = (expm1(error) + (n + 16) * EPS) * want[p->dim + d] / sum + 1e-34;
        if (!(fabs(have - want[d] / sum) <= bound))
            fail_msg("%s exact %d dim %d: query %d [%d] %g for %g", p->k->isa, p->exact, p->dim, g,
                     d, have, want[d] / sum);
    }
    free(want);
    free(k);
    free(v);
}

static void run_pages(struct Pages *p, const int *lens, int n_biased, float spread)
{
    size_t n = (size_t)p->n_q * (p->dim + 7);
    void *pages[5];
    float *k = floats((size_t)p->dim), *v = floats((size_t)p->dim);
    p->q = floats(n);
    p->out = floats((size_t)p->n_q * p->dim);
    p->part = block(sizeof *p->part * (size_t)p->n_q);
    fill(p->q, n, spread);
    for (int i = 0; i < p->n_runs; i++) {
        pages[i] = block(page_bytes(p->dim, p->exact));
        memset(pages[i], 0xff, page_bytes(p->dim, p->exact)); /* unused slots hold NaN */
        for (int t = 0; t < lens[i]; t++) {
            fill(k, (size_t)p->dim, 1);
            fill(v, (size_t)p->dim, 1);
            p->k->page_write(pages[i], t, p->dim, k, v, p->exact);
        }
        int biased = min_int(n_biased, lens[i]);
        p->runs[i] = (struct PageRun){pages[i], lens[i], biased};
        n_biased -= biased;
    }
    struct PageAttn a = {.exact = p->exact,
                         .head_dim = p->dim,
                         .q = p->q,
                         .ld_q = p->dim + 7,
                         .n_q = p->n_q,
                         .runs = p->runs,
                         .n_runs = p->n_runs,
                         .bias = p->bias};
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
    static const int n_runs[] = {1, 5, 5, 2}, n_biased[] = {0, 70, 3, 5};
    static const float spreads[] = {1, 1, 60, 0};
    const struct Kernels *k = kernels_of(state);
    for (int d = 0; d < 8; d++)
        for (int g = 0; g < 5; g++)
            for (int c = 0; c < 4; c++)
                for (int exact = 0; exact < 2; exact++) {
                    struct Pages p = {.k = k,
                                      .exact = exact,
                                      .dim = dims[d],
                                      .n_q = groups[g],
                                      .n_runs = n_runs[c],
                                      .bias = 1.3f};
                    run_pages(&p, lens[c], n_biased[c], spreads[c]);
                }
}

/* ==== Row-wise operations ==== */

static void test_rmsnorm(void **state)
{
    static const int sizes[] = {1, 7, 8, 15, 16, 17, 64, 100, 576, 1025};
    const struct Kernels *k = kernels_of(state);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s];
        float *x = floats((size_t)n), *w = floats((size_t)n), *out = floats((size_t)n);
        fill(x, (size_t)n, 2);
        fill(w, (size_t)n, 1);
        double sum = 0;
        for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
        k->rmsnorm(x, w, n, 1e-5f, out);
        for (int i = 0; i < n; i++) {
            double want = x[i] / sqrt(sum / n + 1e-5) * w[i];
            assert_true(fabs(out[i] - want) <= (n / 8.0 + 8) * EPS * fabs(want));
        }
        k->rmsnorm(x, w, n, 1e-5f, x); /* in place */
        assert_memory_equal(x, out, sizeof *x * (size_t)n);
        free(x);
        free(w);
        free(out);
    }
}

static void test_rope(void **state)
{
    static const int shapes[][2] = {{16, 16}, {64, 64}, {80, 80}, {96, 32}, {128, 126}};
    const struct Kernels *k = kernels_of(state);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int style = 0; style < 2; style++) {
            int dim = shapes[s][0], rope_dim = shapes[s][1], half = rope_dim / 2;
            float *head = floats((size_t)dim), *before = floats((size_t)dim),
                  *angles = floats((size_t)rope_dim);
            fill(head, (size_t)dim, 1);
            memcpy(before, head, sizeof *head * (size_t)dim);
            for (int i = 0; i < half; i++) {
                angles[i] = cosf(0.3f * (float)i);
                angles[half + i] = sinf(0.3f * (float)i);
            }
            k->rope(head, angles, rope_dim, style == 0 ? ROPE_HALVES : ROPE_PAIRS);
            for (int i = 0; i < half; i++) {
                int a = style == 0 ? i : 2 * i, b = style == 0 ? half + i : 2 * i + 1;
                double c = angles[i], t = angles[half + i],
                       size = fabs(before[a]) + fabs(before[b]);
                assert_true(fabs(head[a] - (before[a] * c - before[b] * t)) <= 2 * EPS * size);
                assert_true(fabs(head[b] - (before[b] * c + before[a] * t)) <= 2 * EPS * size);
            }
            assert_memory_equal(head + rope_dim, before + rope_dim,
                                sizeof *head * (size_t)(dim - rope_dim));
            free(head);
            free(before);
            free(angles);
        }
}

static void test_silu_add(void **state)
{
    static const float special[] = {0,    -0.0f, 88,    -88,    104,    -104,
                                    1e4f, -1e4f, 1e30f, -1e30f, 1e-30f, 0.5f};
    const struct Kernels *k = kernels_of(state);
    for (int n = 1; n < 70; n += 3) {
        float *gate = floats((size_t)n), *up = floats((size_t)n), *x = floats((size_t)n);
        double *want = calloc((size_t)n, sizeof *want);
        fill(gate, (size_t)n, 10);
        fill(up, (size_t)n, 3);
        for (int i = 0; i < n; i += 2)
            gate[i] = special[rng() % (sizeof special / sizeof *special)];
        memcpy(x, gate, sizeof *x * (size_t)n);
        for (int i = 0; i < n; i++) want[i] = silu(gate[i]) * up[i];
        k->silu_mul(gate, up, n);
        /* the exponent x log2 e is rounded, and e^-|x| below 2^-126 may become that: times |x| and |up| nothing
         * that f32 sums would see */
        for (int i = 0; i < n; i++) {
            double size = fabs((double)x[i]), error = 1e-6 + (x[i] < 0 ? fmin(size, 200) * EPS : 0);
            assert_true(fabs(gate[i] - want[i]) <=
                        error * fabs(want[i]) + size * fabs(up[i]) * 2e-38);
        }
        k->add(x, up, n);
        k->add(x, up, n);
        for (int i = 0; i < n; i++) assert_true(isfinite(x[i]));
        free(gate);
        free(up);
        free(x);
        free(want);
    }
}

static void test_add(void **state)
{
    const struct Kernels *k = kernels_of(state);
    for (int n = 1; n < 70; n += 2) {
        float *x = floats((size_t)n), *y = floats((size_t)n), *sum = floats((size_t)n);
        fill(x, (size_t)n, 1);
        fill(y, (size_t)n, 1);
        for (int i = 0; i < n; i++) sum[i] = x[i] + y[i];
        k->add(x, y, n);
        assert_memory_equal(x, sum, sizeof *x * (size_t)n);
        free(x);
        free(y);
        free(sum);
    }
}

static double lse(const float *x, int n)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) top = fmax(top, x[i]);
    for (int i = 0; i < n; i++) sum += exp(x[i] - top);
    return top + log(sum);
}

static void test_log_sum_exp(void **state)
{
    static const int sizes[] = {1, 2, 7, 8, 9, 16, 31, 283, 1000, 49152};
    static const float offsets[] = {0, 500, -500, 1e6f, 3e38f, -3e38f};
    const struct Kernels *k = kernels_of(state);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
            int n = sizes[s];
            float *x = floats((size_t)n);
            fill(x, (size_t)n, 4);
            for (int i = 0; i < n; i++) x[i] += offsets[o];
            if (n > 2) x[n / 2] = -INFINITY;
            if (n > 8) x[1] = -3e38f, x[n - 1] = offsets[o]; /* the widest gap that f32 has */
            double want = lse(x, n);
            /* the lanes' sums err by one rounding an addition, of a sum of positive numbers */
            double bound = (n / 8.0 + 8) * EPS + 1e-6 + 2 * EPS * fabs(want);
            assert_true(fabs(k->log_sum_exp(x, n) - want) <= bound);
            free(x);
        }
}

#define EACH(test)                                                                                 \
    {#test " avx2", test, NULL, NULL, (void *)&isas[0]},                                           \
        {#test " avx512", test, NULL, NULL, (void *)&isas[1]},                                     \
    {                                                                                              \
#test " avx512vnni", test, NULL, NULL, (void *)&isas[2]                                    \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_matmul),
        EACH(test_matmul_same_bits),
        EACH(test_matmul_limit),
        EACH(test_matmul_tiny_values),
        EACH(test_attention),
        EACH(test_attention_one_hot),
        EACH(test_attention_limit),
        EACH(test_pages_round_trip),
        EACH(test_attn_pages),
        EACH(test_rmsnorm),
        EACH(test_rope),
        EACH(test_silu_add),
        EACH(test_add),
        EACH(test_log_sum_exp),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL) != 0;
}

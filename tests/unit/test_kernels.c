/* test_kernels.c - every kernel table that this CPU can run against plain double-precision loops: matrix
 * products and row-wise operations. Attention is in test_kernels_attn.c.
 *
 * In int16 mode the allowed error follows from the quantisation step: a value moves by at most half of
 * max / limit, max taken over those that share its scale, and sums of the moved values are exact. What comes
 * on top are f32 roundings.
 */
#include "tests/unit/kernel_support.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_matmul),       EACH(test_matmul_same_bits),
        EACH(test_matmul_limit), EACH(test_matmul_tiny_values),
        EACH(test_rmsnorm),      EACH(test_rope),
        EACH(test_silu_add),     EACH(test_add),
        EACH(test_log_sum_exp),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL) != 0;
}

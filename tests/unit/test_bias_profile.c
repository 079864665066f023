/* test_bias_profile.c - attention bias as numbers: bins and classes against a count of our own, shapes, rules from
 * planted bias, and the arithmetic that judges them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/bias_rules.h"

static uint32_t next_number(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static double next_real(uint64_t *state)
{
    return next_number(state) / 2147483648.0;
}

/* ==== Bins and classes ==== */

enum { LAYERS = 3, HEADS = 2, MOST = 500 };

/* What should be in a profile, counted token by token. */
struct Count {
    double tokens[BIAS_BINS], class_tokens[3];
    double bin[LAYERS][HEADS][BIAS_BINS], part[LAYERS][HEADS][BIAS_PARTS],
        above[LAYERS][3][BIAS_STEPS];
};

static int class_of(int j, int n, int region)
{
    if (j < region) return 0;
    return j >= n - region ? 2 : 1;
}

static int bin_of(int j, int n)
{
    int bin = 0;
    while ((double)(bin + 1) * n / BIAS_BINS <= j) bin++;
    return bin;
}

/* One view of random chunks with random attention; all of it sums to 1 in every head. */
static void add_view(struct BiasProfile *p, struct Count *c, uint64_t *state)
{
    float mean[3][MOST];
    int n = 1 + (int)(next_number(state) % 3), len[3];
    for (int k = 0; k < n; k++) len[k] = 1 + (int)(next_number(state) % MOST);
    bias_view(p, len, n);
    for (int k = 0; k < n; k++)
        for (int j = 0; j < len[k]; j++) {
            c->tokens[bin_of(j, len[k])]++;
            c->class_tokens[class_of(j, len[k], p->region)]++;
        }
    for (int l = 0; l < LAYERS; l++)
        for (int h = 0; h < HEADS; h++) {
            double all = 1 + next_real(state), rest = 0.3 / all;
            for (int k = 0; k < n; k++)
                for (int j = 0; j < len[k]; j++)
                    all += mean[k][j] = (float)pow(next_real(state), 20);
            for (int k = 0; k < n; k++) {
                for (int j = 0; j < len[k]; j++) {
                    float x = mean[k][j] = (float)(mean[k][j] / all);
                    int t = class_of(j, len[k], p->region);
                    c->bin[l][h][bin_of(j, len[k])] += (double)x;
                    c->part[l][h][t] += (double)x;
                    for (int s = 0; s < BIAS_STEPS; s++)
                        if ((double)x > pow(2, -(s + 1))) c->above[l][t][s] += (double)x;
                }
                bias_context(p, l, h, mean[k], len[k]);
            }
            bias_rest(p, l, h, rest, rest / 2);
            c->part[l][h][PART_PREFIX] += rest;
            c->part[l][h][PART_QUESTION] += rest / 2;
        }
}

static void near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-9 * (1 + fabs(b)))) fail_msg("%.12g is not %.12g", a, b);
}

static void check_counts(const struct BiasProfile *p, const struct Count *c)
{
    for (int b = 0; b < BIAS_BINS; b++) near(p->tokens[b], c->tokens[b]);
    for (int t = 0; t < 3; t++) near(p->class_tokens[t], c->class_tokens[t]);
    double all = c->class_tokens[0] + c->class_tokens[1] + c->class_tokens[2];
    for (int l = 0; l < LAYERS; l++) {
        for (int h = 0; h < HEADS; h++) {
            const double *part = c->part[l][h];
            double context = part[0] + part[1] + part[2];
            for (int i = 0; i < BIAS_PARTS; i++)
                near(bias_share(p, l, h, (enum BiasPart)i), part[i] / p->n_views);
            for (int t = 0; t < 3 && c->class_tokens[t] > 0; t++)
                near(bias_density(p, l, h, (enum TokenClass)t),
                     part[t] / context / (c->class_tokens[t] / all));
            for (int b = 0; b < BIAS_BINS && c->tokens[b] > 0; b++)
                near(bias_bin_density(p, l, h, b),
                     c->bin[l][h][b] / context / (c->tokens[b] / all));
        }
        for (int i = 0; i < BIAS_PARTS; i++)
            near(bias_share(p, l, ALL_HEADS, (enum BiasPart)i),
                 (c->part[l][0][i] + c->part[l][1][i]) / 2 / p->n_views);
        for (int t = 0; t < 3; t++)
            for (int s = 0; s < BIAS_STEPS; s++)
                near(bias_above(p, l, (enum TokenClass)t, s),
                     c->above[l][t][s] / HEADS / p->n_views);
    }
}

static void test_counts(void **state)
{
    (void)state;
    static const int regions[] = {1, 7, 100, 400};
    for (int r = 0; r < 4; r++)
        for (uint64_t seed = 1; seed <= 20; seed++) {
            struct BiasProfile p;
            struct Count *c = calloc(1, sizeof *c);
            uint64_t random = seed;
            assert_int_equal(bias_open(&p, LAYERS, HEADS, regions[r]), PC_OK);
            for (int v = 0; v < 4; v++) add_view(&p, c, &random);
            check_counts(&p, c);
            bias_close(&p);
            free(c);
        }
}

/* Without views nothing divides by nothing. */
static void test_empty(void **state)
{
    (void)state;
    struct BiasProfile p;
    struct CalibRule rules[4];
    assert_int_equal(bias_open(&p, LAYERS, HEADS, 100), PC_OK);
    assert_true(bias_share(&p, 0, 0, PART_SINK) == 0);
    assert_true(bias_density(&p, 1, ALL_HEADS, CLASS_SINK) == 0);
    assert_true(bias_bin_density(&p, 2, 1, 63) == 0);
    assert_int_equal(bias_shape_of(&p, 0, 0), SHAPE_UNIFORM);
    assert_int_equal(bias_propose(&p, 8, 1, rules, 4), 0);
    bias_close(&p);
}

static void test_faults(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    struct BiasProfile p;
    for (long n = 1; n <= 3; n++) {
        mem_fail_after(n);
        assert_int_equal(bias_open(&p, 4, 2, 100), PC_ENOMEM);
        mem_fail_after(0);
        bias_close(&p);
        assert_int_equal(mem_in_use(), before);
    }
    assert_int_equal(bias_open(&p, 4, 2, 100), PC_OK);
    bias_close(&p);
}

/* ==== Shapes ==== */

static void test_shapes(void **state)
{
    (void)state;
    static const struct {
        double density[3];
        enum BiasShape shape;
    } cases[] = {
        {{1, 1, 1}, SHAPE_UNIFORM},
        {{4, 0.7, 3}, SHAPE_U},
        {{2, 0.9, 2}, SHAPE_U},
        {{9, 0.5, 1}, SHAPE_SINK},
        {{1, 0.9, 2.5}, SHAPE_RECENT},
        {{0.2, 1.1, 0.3}, SHAPE_MOUNTAIN},
        {{0.55, 1.1, 0.4}, SHAPE_MOUNTAIN},
        {{0.6, 1.1, 0.2}, SHAPE_UNIFORM},
        {{1.9, 0.95, 1.9}, SHAPE_UNIFORM},
        {{0, 0, 0}, SHAPE_UNIFORM},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(bias_shape(cases[i].density), cases[i].shape);
    assert_string_equal(bias_shape_name(SHAPE_U), "U");
    assert_string_equal(bias_shape_name(SHAPE_SINK), "sink-heavy");
    assert_string_equal(bias_shape_name(SHAPE_RECENT), "recent-heavy");
    assert_string_equal(bias_shape_name(SHAPE_MOUNTAIN), "mountain");
    assert_string_equal(bias_shape_name(SHAPE_UNIFORM), "uniform");
}

/* A synthetic chunk: weights by place, as one head's attention. */
static enum BiasShape shape_of(double (*weight)(double place))
{
    enum { N = 1000 };
    struct BiasProfile p;
    float mean[N];
    double all = 0;
    int n = N;
    for (int j = 0; j < N; j++) all += weight((j + 0.5) / N);
    for (int j = 0; j < N; j++) mean[j] = (float)(weight((j + 0.5) / N) / all);
    assert_int_equal(bias_open(&p, 1, 1, 100), PC_OK);
    bias_view(&p, &n, 1);
    bias_context(&p, 0, 0, mean, N);
    enum BiasShape shape = bias_shape_of(&p, 0, 0);
    bias_close(&p);
    return shape;
}

static double flat(double x)
{
    return 1 + 0 * x;
}
static double u(double x)
{
    return exp(-20 * x) + exp(-20 * (1 - x));
}
static double sink(double x)
{
    return 0.1 + exp(-20 * x);
}
static double recent(double x)
{
    return 0.1 + exp(-20 * (1 - x));
}
static double mountain(double x)
{
    return exp(-30 * (x - 0.5) * (x - 0.5));
}

static void test_shapes_of_profiles(void **state)
{
    (void)state;
    assert_int_equal(shape_of(flat), SHAPE_UNIFORM);
    assert_int_equal(shape_of(u), SHAPE_U);
    assert_int_equal(shape_of(sink), SHAPE_SINK);
    assert_int_equal(shape_of(recent), SHAPE_RECENT);
    assert_int_equal(shape_of(mountain), SHAPE_MOUNTAIN);
}

/* ==== Rules ==== */

enum { DEPTH = 16, LEN = 1000 };

/* Uniform attention, but in layers lo to hi n_tokens tokens of a class draw `each`. */
struct Planted {
    enum TokenClass token_class;
    int lo, hi, n_tokens;
    double each;
};

static void plant(struct BiasProfile *p, const struct Planted *what)
{
    static const int first[3] = {3, LEN / 2, LEN - 60};
    float mean[LEN];
    int n = LEN;
    assert_int_equal(bias_open(p, DEPTH, HEADS, 100), PC_OK);
    bias_view(p, &n, 1);
    for (int l = 0; l < DEPTH; l++)
        for (int h = 0; h < HEADS; h++) {
            bool here = l >= what->lo && l <= what->hi;
            double left = here ? 1 - what->n_tokens * what->each : 1;
            for (int j = 0; j < LEN; j++) mean[j] = (float)(left / LEN);
            for (int i = 0; here && i < what->n_tokens; i++)
                mean[first[what->token_class] + i] = (float)what->each;
            bias_context(p, l, h, mean, LEN);
        }
}

static void test_planted(void **state)
{
    (void)state;
    for (int c = 0; c < 3; c++)
        for (int band = 0; band < 4; band++)
            for (int inner = 0; inner < 2; inner++) {
                struct Planted what = {(enum TokenClass)c, 4 * band + inner, 4 * band + 3 - inner,
                                       3, 0.07};
                struct BiasProfile p;
                struct CalibRule rules[BIAS_RULES_MAX];
                plant(&p, &what);
                int n = bias_propose(&p, 8, 1, rules, BIAS_RULES_MAX);
                assert_int_equal(n, 1);
                assert_int_equal(rules[0].token_class, c);
                assert_int_equal(rules[0].layer_lo, what.lo);
                assert_int_equal(rules[0].layer_hi, what.hi);
                assert_true(rules[0].lambda == 0.0625f); /* the power of two below 0.07 */
                assert_int_equal(rules[0].region, 100);
                assert_int_equal(rules[0].rows, 8);
                assert_int_equal(rules[0].stage, 1);
                bias_close(&p);
            }
}

/* Uniform attention asks for nothing, nor does a layer whose outliers hold next to nothing. */
static void test_nothing_planted(void **state)
{
    (void)state;
    struct Planted none = {CLASS_SINK, 99, 99, 0, 0}, little = {CLASS_SINK, 4, 6, 1, 0.02};
    struct CalibRule rules[BIAS_RULES_MAX];
    struct BiasProfile p;
    plant(&p, &none);
    assert_int_equal(bias_propose(&p, 8, 1, rules, BIAS_RULES_MAX), 0);
    bias_close(&p);
    plant(&p, &little);
    assert_int_equal(bias_propose(&p, 8, 1, rules, BIAS_RULES_MAX), 0);
    bias_close(&p);
}

/* Two bands and two heights: the sharp rule of each, a wide one where the sharp leaves most, and what takes most first. */
static void test_order(void **state)
{
    (void)state;
    struct BiasProfile p;
    struct CalibRule rules[BIAS_RULES_MAX];
    float mean[LEN];
    int n = LEN;
    assert_int_equal(bias_open(&p, DEPTH, 1, 100), PC_OK);
    bias_view(&p, &n, 1);
    for (int l = 0; l < DEPTH; l++) {
        for (int j = 0; j < LEN; j++) mean[j] = 1e-4f;
        if (l == 5)
            mean[0] = 0.06f; /* sharp: above 1/32; the middle is far from uniform's 8 / LEN */
        if (l == 5)
            for (int j = 1; j < 10; j++) mean[j] = 0.02f;
        if (l >= 8 && l < 12) mean[990] = 0.4f;
        bias_context(&p, l, 0, mean, LEN);
    }
    assert_int_equal(bias_propose(&p, 4, 2, rules, BIAS_RULES_MAX), 3);
    assert_int_equal(rules[0].token_class, CLASS_RECENT);
    assert_int_equal(rules[0].layer_lo, 8);
    assert_int_equal(rules[0].layer_hi, 11);
    assert_true(rules[0].lambda == 0.25f);
    assert_int_equal(rules[0].stage, 2);
    assert_true(rules[1].token_class == CLASS_SINK && rules[1].lambda == 1.0f / 64);
    assert_true(rules[2].token_class == CLASS_SINK && rules[2].lambda == 1.0f / 32);
    assert_true(rules[1].layer_lo == 5 && rules[1].layer_hi == 5);
    assert_int_equal(bias_propose(&p, 4, 2, rules, 2), 2);
    assert_int_equal(rules[0].token_class, CLASS_RECENT);
    assert_int_equal(rules[1].token_class, CLASS_SINK);
    bias_close(&p);
}

/* The preset here and in configs/ are one: the rules of 32 layers, and their place in other depths. */
static void test_paper(void **state)
{
    (void)state;
    struct CalibRule rules[PAPER_RULES];
    struct Settings set;
    settings_default(&set);
    if (settings_load(&set, "configs/calib-paper.json") < 0) fail_msg("%s", err_text());
    assert_int_equal(set.calib_layers, 32);
    assert_int_equal(bias_paper_rules(32, rules), set.n_calib);
    for (int i = 0; i < set.n_calib; i++) {
        const struct CalibRule *a = &rules[i], *b = &set.calib[i];
        assert_true(a->token_class == b->token_class && a->layer_lo == b->layer_lo &&
                    a->layer_hi == b->layer_hi && a->lambda == b->lambda &&
                    a->region == b->region && a->rows == b->rows && a->stage == b->stage);
    }
    for (int layers = 1; layers <= 80; layers++) {
        int n = bias_paper_rules(layers, rules);
        for (int i = 0; i < n; i++)
            assert_true(rules[i].layer_lo >= 0 && rules[i].layer_hi < layers);
    }
}

/* ==== Judgement ==== */

static void test_paired(void **state)
{
    (void)state;
    const double a[] = {2, 3, 4, 5}, b[] = {1.5, 3, 3.5, 4};
    struct Paired x = paired(a, b, 4);
    near(x.a, 3.5);
    near(x.b, 3);
    near(x.diff, -0.5);
    near(x.error, sqrt((0 + 0.25 + 0 + 0.25) / 3 / 4));
    assert_int_equal(x.n_better, 3);
    assert_true(paired_helps(&x));
    x = paired(b, a, 4);
    assert_false(paired_helps(&x));
    x = paired(a, a, 4);
    assert_false(paired_helps(&x));
    const double wild[] = {0, 6, 1, 6};
    x = paired(a, wild, 4);
    assert_true(x.diff < 0);
    assert_false(paired_helps(&x));               /* less than its error */
    const double likely[] = {1.4, 3.3, 3.5, 4.4}; /* more than its error, less than twice that */
    x = paired(a, likely, 4);
    assert_true(-x.diff > x.error && -x.diff < 2 * x.error);
    assert_false(paired_helps(&x));
    x = paired(a, b, 1);
    assert_false(paired_helps(&x));
    x = paired(a, b, 0);
    assert_int_equal(x.n, 0);
    assert_false(paired_helps(&x));
}

static void test_text(void **state)
{
    (void)state;
    struct CalibRule rule = {CLASS_RECENT, 3, 7, 0.0625f, 100, 8, 1};
    char text[96];
    bias_rule_text(&rule, text, sizeof text);
    assert_string_equal(text, "recent, layers 3-7, above 0.0625");
    rule.stage = 2;
    bias_rule_text(&rule, text, sizeof text);
    assert_string_equal(text, "recent, layers 3-7, above 0.0625, merged cache");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_shapes_of_profiles),
        cmocka_unit_test(test_planted),
        cmocka_unit_test(test_nothing_planted),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_paper),
        cmocka_unit_test(test_paired),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

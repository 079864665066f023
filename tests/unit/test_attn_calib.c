/* test_attn_calib.c - classes, thresholds, unions and scaling of calibration rules. */
#include "calib/attn_calib.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_MAX = 260, HEADS = 3, ROWS = 8 };

static uint64_t rng_state = 5;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

static struct CalibRule paper_rule(enum TokenClass token_class, int lo, int hi)
{
    return (struct CalibRule){.token_class = token_class,
                              .layer_lo = lo,
                              .layer_hi = hi,
                              .lambda = 0.1f,
                              .region = 100,
                              .rows = 1,
                              .stage = 1};
}

static void test_classes(void **state)
{
    (void)state;
    assert_int_equal(calib_class(0, 300, 100), CLASS_SINK);
    assert_int_equal(calib_class(99, 300, 100), CLASS_SINK);
    assert_int_equal(calib_class(100, 300, 100), CLASS_MIDDLE);
    assert_int_equal(calib_class(199, 300, 100), CLASS_MIDDLE);
    assert_int_equal(calib_class(200, 300, 100), CLASS_RECENT);
    assert_int_equal(calib_class(299, 300, 100), CLASS_RECENT);
    /* Shorter than both ends together: sink wins, no middle is left. */
    assert_int_equal(calib_class(99, 150, 100), CLASS_SINK);
    assert_int_equal(calib_class(100, 150, 100), CLASS_RECENT);
    assert_int_equal(calib_class(40, 50, 100), CLASS_SINK);
}

/* Every token judged on its own, straight from the definition, in double. */
static bool dropped_by(const struct CalibRule *rule, int layer, int stage,
                       const struct CalibAttention *a, int at)
{
    if (layer < rule->layer_lo || layer > rule->layer_hi || stage != rule->stage) return false;
    bool sink = at < rule->region, recent = !sink && at + rule->region >= a->n;
    enum TokenClass is = sink ? CLASS_SINK : recent ? CLASS_RECENT : CLASS_MIDDLE;
    if (is != rule->token_class) return false;
    int rows = rule->rows == 0 || rule->rows > a->n_rows ? a->n_rows : rule->rows;
    double sum = 0;
    for (int h = 0; h < a->n_heads; h++)
        for (int i = a->n_rows - rows; i < a->n_rows; i++)
            sum += a->prob[(size_t)h * a->head_stride + (size_t)i * a->row_stride + (size_t)at];
    return sum / (rows * a->n_heads) > (double)rule->lambda;
}

static void test_against_definition(void **state)
{
    (void)state;
    static float prob[HEADS * ROWS * (N_MAX + 3)];
    for (int round = 0; round < 2000; round++) {
        struct CalibAttention a = {.prob = prob,
                                   .n_heads = 1 + (int)(rng() % HEADS),
                                   .n_rows = 1 + (int)(rng() % ROWS),
                                   .n = (int)(rng() % (round % 10 ? 30 : N_MAX))};
        a.row_stride = (size_t)a.n + rng() % 4;
        a.head_stride = a.row_stride * (size_t)a.n_rows;
        /* Multiples of 1/64 add up exactly, so that the order of summation cannot matter. */
        for (size_t i = 0; i < a.head_stride * (size_t)a.n_heads; i++)
            prob[i] = (float)(rng() % 64) / 64;
        struct CalibRule rules[4];
        int n_rules = (int)(rng() % 5), layer = (int)(rng() % 6), stage = 1 + (int)(rng() % 2);
        for (int i = 0; i < n_rules; i++) {
            int lo = (int)(rng() % 4);
            rules[i] = (struct CalibRule){.token_class = (enum TokenClass)(rng() % 3),
                                          .layer_lo = lo,
                                          .layer_hi = lo + (int)(rng() % 4),
                                          .lambda = (float)(rng() % 80) / 64 + 0.001f,
                                          .region = 1 + (int)(rng() % 12),
                                          .rows = (int)(rng() % 10),
                                          .stage = 1 + (int)(rng() % 2)};
        }
        float mean[N_MAX];
        uint8_t drop[N_MAX + 1];
        memset(drop, 0xEE, sizeof drop);
        int n_dropped = calib_drop(rules, n_rules, layer, stage, &a, mean, drop), expected = 0;
        for (int j = 0; j < a.n; j++) {
            bool hit = false;
            for (int i = 0; i < n_rules; i++) hit |= dropped_by(&rules[i], layer, stage, &a, j);
            assert_int_equal(drop[j], hit);
            expected += hit;
        }
        assert_int_equal(n_dropped, expected);
        assert_int_equal(drop[a.n], 0xEE);
    }
}

static void test_lambda_bounds(void **state)
{
    (void)state;
    float prob[4] = {1.0f, 0.0f, NAN, 0.5f}, mean[4];
    uint8_t drop[4];
    struct CalibAttention a = {
        .prob = prob, .head_stride = 4, .row_stride = 4, .n_heads = 1, .n_rows = 1, .n = 4};
    struct CalibRule rule = paper_rule(CLASS_SINK, 0, 0);
    rule.lambda = 1.0f; /* no probability exceeds it: the same as no rule */
    assert_int_equal(calib_drop(&rule, 1, 0, 1, &a, mean, drop), 0);
    rule.lambda = 0.5f; /* exceeds, not reaches */
    assert_int_equal(calib_drop(&rule, 1, 0, 1, &a, mean, drop), 1);
    assert_int_equal(drop[0], 1);
    rule.lambda = 0.0f;
    assert_int_equal(calib_drop(&rule, 1, 0, 1, &a, mean, drop), 2);
    assert_int_equal(calib_drop(&rule, 1, 1, 1, &a, mean, drop), 0);
    assert_int_equal(calib_drop(&rule, 1, 0, 2, &a, mean, drop), 0);
    assert_int_equal(calib_drop(NULL, 0, 0, 1, &a, mean, drop), 0);
}

static void test_rule_check(void **state)
{
    (void)state;
    struct CalibRule good = paper_rule(CLASS_SINK, 24, 31), rule = good;
    assert_int_equal(calib_rule_check(&rule, 32), PC_OK);
    assert_int_equal(calib_rule_check(&rule, 31), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "0 to 30"));
    rule.layer_lo = -1;
    assert_int_equal(calib_rule_check(&rule, 32), PC_ECONFIG);
    rule.layer_lo = 32;
    assert_int_equal(calib_rule_check(&rule, 40), PC_ECONFIG);
    rule = good;
    rule.lambda = NAN;
    assert_int_equal(calib_rule_check(&rule, 32), PC_ECONFIG);
    rule.lambda = -0.1f;
    assert_int_equal(calib_rule_check(&rule, 32), PC_ECONFIG);
    rule = good;
    rule.region = 0;
    assert_int_equal(calib_rule_check(&rule, 32), PC_ECONFIG);
    rule = good;
    rule.rows = -1;
    assert_int_equal(calib_rule_check(&rule, 32), PC_ECONFIG);
    rule = good;
    rule.stage = 3;
    assert_int_equal(calib_rule_check(&rule, 32), PC_ECONFIG);
}

static void check_band(int lo, int hi, int to_layers, int want_lo, int want_hi)
{
    struct CalibRule rule = paper_rule(CLASS_MIDDLE, lo, hi);
    assert_true(calib_scale(&rule, 32, to_layers));
    assert_int_equal(rule.layer_lo, want_lo);
    assert_int_equal(rule.layer_hi, want_hi);
    assert_int_equal(calib_rule_check(&rule, to_layers), PC_OK);
}

static void test_scale(void **state)
{
    (void)state;
    check_band(9, 16, 32, 9, 16);
    check_band(1, 8, 30, 1, 8); /* SmolLM2's depth */
    check_band(9, 16, 30, 9, 15);
    check_band(24, 31, 30, 23, 29);
    check_band(1, 8, 24, 1, 6);
    check_band(24, 31, 80, 60, 79);
    check_band(1, 8, 64, 2, 17);
    struct CalibRule rule = paper_rule(CLASS_SINK, 1, 8), same = rule;
    assert_false(calib_scale(&rule, 32, 2));
    assert_memory_equal(&rule, &same, sizeof rule);
}

/* The paper's four bands at every depth: they meet without gap or overlap, layer 0 stays out, the
 * last layer in. */
static void test_scale_keeps_partition(void **state)
{
    (void)state;
    static const int bands[4][2] = {{1, 8}, {9, 16}, {17, 23}, {24, 31}};
    for (int to_layers = 1; to_layers <= 200; to_layers++) {
        int next = 1;
        for (int i = 0; i < 4; i++) {
            struct CalibRule rule = paper_rule(CLASS_SINK, bands[i][0], bands[i][1]);
            if (!calib_scale(&rule, 32, to_layers)) continue;
            if (to_layers <= 32)
                assert_int_equal(rule.layer_lo, next);
            else
                assert_true(i == 0 ? rule.layer_lo >= 1 : rule.layer_lo == next);
            next = rule.layer_hi + 1;
        }
        assert_int_equal(next, to_layers > 1 ? to_layers : 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_classes),       cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_lambda_bounds), cmocka_unit_test(test_rule_check),
        cmocka_unit_test(test_scale),         cmocka_unit_test(test_scale_keeps_partition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

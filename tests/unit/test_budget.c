/* test_budget.c - budgets of layers, against values worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>

#include "eviction/budget.h"

static void assert_budgets(int n_layers, int mean, int n, const int *want)
{
    int budget[8];
    pyramid_budgets(n_layers, mean, n, budget);
    for (int l = 0; l < n_layers; l++)
        if (budget[l] != want[l])
            fail_msg("mean %d of %d: layer %d has %d, want %d", mean, n, l, budget[l], want[l]);
}

static void test_by_hand(void **state)
{
    (void)state;
    /* mean 100: the last gets 100 / 20 = 5, the first 2 * 100 - 5 = 195, steps of 190 / 4 = 47.5 */
    assert_budgets(5, 100, 1000, (const int[]){195, 148, 100, 52, 5});
    /* mean 30: 1.5 and 58.5, steps of 19: 58.5, 39.5, 20.5, 1.5, whole and 120 together */
    assert_budgets(4, 30, 1000, (const int[]){59, 40, 20, 1});
    /* only 150 tokens: 150 and 200 - 150 = 50, steps of 25 */
    assert_budgets(5, 100, 150, (const int[]){150, 125, 100, 75, 50});
    /* no more than the mean: all of them */
    assert_budgets(3, 100, 100, (const int[]){100, 100, 100});
    assert_budgets(3, 100, 40, (const int[]){40, 40, 40});
    assert_budgets(1, 100, 1000, (const int[]){100});
    assert_budgets(2, 1, 1000, (const int[]){2, 0}); /* 1.95 and 0.05 */
}

static void test_flat(void **state)
{
    (void)state;
    int budget[3];
    flat_budgets(3, 7, 100, budget);
    for (int l = 0; l < 3; l++) assert_int_equal(budget[l], 7);
    flat_budgets(3, 7, 5, budget);
    for (int l = 0; l < 3; l++) assert_int_equal(budget[l], 5);
}

/* Any sizes: the sum is exact, the shape falls, and steps differ by less than the rounding. */
static void test_shape(void **state)
{
    (void)state;
    enum { LAYERS_MAX = 90 };
    int budget[LAYERS_MAX];
    for (int layers = 2; layers <= LAYERS_MAX; layers += 7)
        for (int mean = 1; mean < 5000; mean = mean * 3 + 1)
            for (int n = mean + 1; n < 300000; n = n * 2 + 5) {
                int64_t sum = 0;
                double step = 0;
                pyramid_budgets(layers, mean, n, budget);
                for (int l = 0; l < layers; l++) {
                    assert_in_range(budget[l], 0, n);
                    sum += budget[l];
                    if (l == 0) continue;
                    assert_true(budget[l] <= budget[l - 1]);
                    double d = budget[l - 1] - budget[l];
                    if (l > 1) assert_true(d - step <= 2 && step - d <= 2);
                    step = d;
                }
                assert_true(sum == (int64_t)layers * mean);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_shape),
    };
    return cmocka_run_group_tests_name("budget", tests, NULL, NULL) != 0;
}

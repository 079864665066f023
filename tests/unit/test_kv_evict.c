/* test_kv_evict.c - pooling and survivors against their definitions. */
#include "eviction/kv_evict.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_MAX = 300 };

static uint64_t rng_state = 11;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

static float pool_at(const float *x, int n, int pool, int at)
{
    float highest = -INFINITY;
    int reach = (pool - 1) / 2;
    for (int j = at - reach; j <= at + reach; j++)
        if (j >= 0 && j < n && x[j] > highest) highest = x[j];
    return highest;
}

/* By counting: a token stays if fewer than cap others have a higher pooled value, or an equal one
 * earlier. */
static bool stays(const float *pooled, int n, int cap, int at)
{
    int before = 0;
    for (int j = 0; j < n; j++)
        before += pooled[j] > pooled[at] || (pooled[j] == pooled[at] && j < at);
    return before < cap;
}

static void test_against_definition(void **state)
{
    (void)state;
    static const int pools[] = {1, 2, 3, 5, 7, 31, 1001};
    for (int round = 0; round < 4000; round++) {
        float x[N_MAX], pooled[N_MAX], expected[N_MAX];
        int keep[N_MAX], n = 1 + (int)(rng() % (round % 20 ? 40 : N_MAX));
        for (int i = 0; i < n; i++) {
            x[i] = round % 2 ? (float)(rng() % 5) : (float)rng() * 1e-9f;
            if (round % 5 == 0 && rng() % 4 == 0) x[i] = NAN;
        }
        struct KvEvict rule = {.cap = (int)(rng() % 50) - 1, .pool = pools[round % 7]};
        kv_pool(x, n, rule.pool, pooled, keep);
        for (int i = 0; i < n; i++) {
            expected[i] = pool_at(x, n, rule.pool, i);
            assert_true(pooled[i] == expected[i]);
        }
        int n_kept = kv_evict(&rule, x, n, pooled, keep), at = 0;
        bool all = rule.cap < 0 || n <= rule.cap;
        assert_int_equal(n_kept, all ? n : rule.cap);
        for (int i = 0; i < n; i++)
            if (all || stays(expected, n, rule.cap, i)) assert_int_equal(keep[at++], i);
        assert_int_equal(at, n_kept);
    }
}

static void test_by_hand(void **state)
{
    (void)state;
    /* One peak: with width 7 it carries three neighbours on each side; the cap cuts the last. */
    float x[12] = {0}, pooled[12];
    int keep[12];
    x[6] = 1.0f;
    struct KvEvict rule = {.cap = 5, .pool = 7};
    assert_int_equal(kv_evict(&rule, x, 12, pooled, keep), 5);
    static const int expected[] = {3, 4, 5, 6, 7};
    assert_memory_equal(keep, expected, sizeof expected);
    rule.cap = 0;
    assert_int_equal(kv_evict(&rule, x, 12, pooled, keep), 0);
    rule.cap = -1;
    assert_int_equal(kv_evict(&rule, x, 12, pooled, keep), 12);
    assert_int_equal(kv_evict(&rule, x, 0, pooled, keep), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

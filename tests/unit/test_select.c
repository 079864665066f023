/* test_select.c - select_top against a full stable sort. */
#include "eviction/select.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_MAX = 700 };

static uint64_t rng_state = 42;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

static const float *sorted_by;

static int by_score(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;
    float x = sorted_by[i], y = sorted_by[j];
    if (isnan(x) != isnan(y)) return isnan(x) ? 1 : -1;
    if (x > y) return -1;
    if (x < y) return 1;
    return i - j;
}

static int by_position(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static void check(const float *score, int n, int k)
{
    int expected[N_MAX], got[N_MAX + 1];
    for (int i = 0; i < n; i++) expected[i] = i;
    sorted_by = score;
    qsort(expected, (size_t)n, sizeof *expected, by_score);
    int n_expected = k < 0 ? 0 : k < n ? k : n;
    qsort(expected, (size_t)n_expected, sizeof *expected, by_position);
    got[n_expected] = -77;
    assert_int_equal(select_top(score, n, k, got), n_expected);
    assert_int_equal(got[n_expected], -77);
    for (int i = 0; i < n_expected; i++)
        if (got[i] != expected[i])
            fail_msg("n %d k %d: place %d holds %d, not %d", n, k, i, got[i], expected[i]);
}

static float any_score(int kind)
{
    static const float odd[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, -1e-40f, 1.0f};
    switch (kind) {
    case 0:
        return (float)(rng() % 3); /* mostly ties */
    case 1:
        return (float)rng() / 2147483648.0f; /* like attention */
    case 2:
        return ((float)rng() - 1073741824.0f) * 1e-3f;
    case 3:
        return odd[rng() % 8];
    default: {
        uint32_t bits = rng() << 1 ^ rng();
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    }
}

static void test_against_sort(void **state)
{
    (void)state;
    for (int round = 0; round < 20000; round++) {
        float score[N_MAX];
        int n = round % 50 == 0 ? (int)(rng() % N_MAX) : (int)(rng() % 40);
        for (int i = 0; i < n; i++) score[i] = any_score(round % 5);
        check(score, n, (int)(rng() % 45) - 2);
        check(score, n, n / 2);
    }
}

static void test_edges(void **state)
{
    (void)state;
    float same[8] = {0};
    for (int k = -1; k <= 9; k++) check(same, 8, k);
    float all_nan[4] = {NAN, NAN, NAN, NAN};
    for (int k = 0; k <= 5; k++) check(all_nan, 4, k);
    float signs[4] = {-0.0f, 0.0f, -NAN, -1.0f};
    for (int k = 0; k <= 4; k++) check(signs, 4, k);
    assert_int_equal(select_top(NULL, 0, 3, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_sort),
        cmocka_unit_test(test_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

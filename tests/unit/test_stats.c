/* test_stats.c - means, intervals and paired differences against values worked out by other means. */
#include "eval/stats.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define NEAR(a, b, eps) assert_true(fabs((a) - (b)) <= (eps))

static struct Estimate mean(const double *x, int n)
{
    struct Estimate e;
    assert_int_equal(stats_mean((struct Values){x, n}, &e), PC_OK);
    return e;
}

static struct Difference difference(const double *x, int n)
{
    struct Difference d;
    struct Values values = {x, n};
    assert_int_equal(stats_difference(&values, 1, &d), PC_OK);
    return d;
}

static void none_and_one(void **state)
{
    (void)state;
    double one = 0.4;
    struct Estimate e = mean(NULL, 0);
    assert_int_equal(e.n, 0);
    assert_true(isnan(e.mean));
    assert_int_equal(e.kind, INTERVAL_NONE);
    e = mean(&one, 1);
    assert_int_equal(e.kind, INTERVAL_NONE);
    NEAR(e.mean, 0.4, 0);
    one = 1; /* also where Wilson would have something to say */
    assert_int_equal(mean(&one, 1).kind, INTERVAL_NONE);
}

/* Values of the score interval as statistics packages give them. */
static void wilson(void **state)
{
    (void)state;
    const double right[5] = {1, 1, 1, 1, 1}, mixed[10] = {1, 0, 0, 1, 0, 0, 1, 0, 0, 0};
    struct Estimate e = mean(right, 5);
    assert_int_equal(e.kind, INTERVAL_WILSON);
    NEAR(e.low, 0.56551, 1e-5);
    NEAR(e.high, 1, 0);
    e = mean(mixed, 10);
    NEAR(e.mean, 0.3, 1e-15);
    NEAR(e.low, 0.10779, 1e-5);
    NEAR(e.high, 0.60323, 1e-5);
    NEAR(stats_share(0, 10).low, 0, 0);
    NEAR(stats_share(0, 10).high, 0.27753, 1e-5);
    assert_int_equal(stats_share(0, 0).n, 0);
}

/* For many values the bootstrap must come near mean +- 1.96 standard errors. */
static void bootstrap_near_theory(void **state)
{
    (void)state;
    enum { N = 400 };
    double x[N], sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        x[i] = 0.5 + 0.4 * sin(i * 1.7);
        sum += x[i];
    }
    for (int i = 0; i < N; i++) squares += (x[i] - sum / N) * (x[i] - sum / N);
    double error = sqrt(squares / N / N);
    struct Estimate e = mean(x, N);
    assert_int_equal(e.kind, INTERVAL_BOOTSTRAP);
    NEAR(e.mean, sum / N, 1e-12);
    NEAR(e.low, e.mean - 1.96 * error, 0.05 * error + 0.002);
    NEAR(e.high, e.mean + 1.96 * error, 0.05 * error + 0.002);
}

/* Two values 0.2 and 0.4: a resample's mean is 0.2, 0.3 or 0.4 with chances 1/4, 1/2, 1/4. */
static void bootstrap_small(void **state)
{
    (void)state;
    const double x[2] = {0.2, 0.4}, same[3] = {0.5, 0.5, 0.5};
    struct Estimate e = mean(x, 2);
    NEAR(e.low, 0.2, 1e-12);
    NEAR(e.high, 0.4, 1e-12);
    e = mean(same, 3);
    NEAR(e.low, 0.5, 1e-12);
    NEAR(e.high, 0.5, 1e-12);
}

static void deterministic(void **state)
{
    (void)state;
    const double x[6] = {0.1, 0.9, 0.35, 0.5, 0.72, 0.2}, y[6] = {0.9, 0.2, 0.1, 0.72, 0.35, 0.5};
    struct Estimate a = mean(x, 6), b = mean(x, 6), c = mean(y, 6);
    assert_true(a.low == b.low && a.high == b.high);
    assert_true(a.low == c.low && a.high == c.high && a.mean == c.mean);
}

static void means_of_means(void **state)
{
    (void)state;
    const double a[2] = {0, 0.2}, b[4] = {0.8, 0.9, 1, 0.9}, c[1] = {0.5};
    const struct Values groups[4] = {{a, 2}, {b, 4}, {NULL, 0}, {c, 1}};
    struct Estimate e;
    assert_int_equal(stats_mean_of_means(groups, 3, &e), PC_OK);
    assert_int_equal(e.n, 6);
    NEAR(e.mean, 0.5, 1e-12); /* each task counts the same, the empty one not at all */
    assert_true(e.low >= 0.4 && e.low < e.mean && e.high > e.mean && e.high <= 0.6);
    assert_int_equal(stats_mean_of_means(groups, 4, &e), PC_OK);
    assert_int_equal(e.kind, INTERVAL_BOOTSTRAP); /* c borrows the spread of a and b */
    assert_int_equal(stats_mean_of_means(groups + 2, 2, &e), PC_OK);
    assert_int_equal(e.kind, INTERVAL_NONE);
    const double d[1] = {0.1}, f[1] = {0.9};
    const struct Values singles[3] = {{c, 1}, {d, 1}, {f, 1}};
    assert_int_equal(stats_mean_of_means(singles, 3, &e), PC_OK);
    assert_int_equal(e.kind, INTERVAL_BOOTSTRAP);
    assert_true(e.low < 0.3 && e.high > 0.7);
}

static void differences(void **state)
{
    (void)state;
    const double up[8] = {0.1, 0.2, 0.1, 0.3, 0.2, 0.15, 0.1, 0.2}, zero[6] = {0},
                 swing[6] = {-1, 1, -1, 1, -1, 1};
    double down[8];
    for (int i = 0; i < 8; i++) down[i] = -up[i];
    struct Difference d = difference(up, 8);
    assert_int_equal(d.verdict, VERDICT_BETTER);
    assert_int_equal(d.n_differ, 8);
    NEAR(d.below, 0, 0);
    NEAR(d.mean.mean, 0.16875, 1e-12);
    d = difference(down, 8);
    assert_int_equal(d.verdict, VERDICT_WORSE);
    NEAR(d.below, 1, 0);
    assert_int_equal(difference(up, 5).verdict, VERDICT_UNDECIDED); /* too few to decide */
    d = difference(zero, 6);
    assert_int_equal(d.verdict, VERDICT_UNDECIDED);
    assert_int_equal(d.n_differ, 0);
    NEAR(d.below, 0, 0);
    d = difference(swing, 6);
    assert_int_equal(d.verdict, VERDICT_UNDECIDED);
    /* the mean is below zero in 22 of 64 resamples: fewer than three of six are +1 */
    NEAR(d.below, 22.0 / 64, 0.02);
    assert_true(isnan(difference(up, 1).below));
    assert_int_equal(difference(NULL, 0).mean.n, 0);
}

static void quantiles(void **state)
{
    (void)state;
    const double x[4] = {4, 1, 3, 2};
    double q;
    assert_int_equal(stats_quantile((struct Values){x, 4}, 0.5, &q), PC_OK);
    NEAR(q, 2.5, 1e-12);
    assert_int_equal(stats_quantile((struct Values){x, 4}, 1, &q), PC_OK);
    NEAR(q, 4, 0);
    assert_int_equal(stats_quantile((struct Values){x, 4}, 0.9, &q), PC_OK);
    NEAR(q, 3.7, 1e-12);
    assert_int_equal(stats_quantile((struct Values){x, 0}, 0.5, &q), PC_OK);
    assert_true(isnan(q));
}

static void faults(void **state)
{
    (void)state;
    const double x[4] = {0.4, 0.1, 0.3, 0.2};
    struct Values values = {x, 4};
    struct Difference d;
    double q;
    int status;
    long n = 0;
    do {
        mem_fail_after(++n);
        status = stats_difference(&values, 1, &d);
        if (status == PC_OK) status = stats_quantile(values, 0.5, &q);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        assert_int_equal(mem_in_use(), 0);
    } while (status != PC_OK);
    assert_true(n > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_and_one),
        cmocka_unit_test(wilson),
        cmocka_unit_test(bootstrap_near_theory),
        cmocka_unit_test(bootstrap_small),
        cmocka_unit_test(deterministic),
        cmocka_unit_test(means_of_means),
        cmocka_unit_test(differences),
        cmocka_unit_test(quantiles),
        cmocka_unit_test(faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

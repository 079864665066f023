/* stats.c - see stats.h */
#include "stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double Z95 = 1.959963984540054;
static const uint64_t SEED = 0x70636f6d70; /* any constant would do */

static int n_resamples = STATS_RESAMPLES;

void stats_hurry(int resamples)
{
    n_resamples = resamples;
}

/* ==== Generator ==== */

/* splitmix64: short, and good enough to draw row numbers. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

/* 0..n-1; the bias of multiply-and-shift is below n / 2^32. */
static int draw_below(uint64_t *state, int n)
{
    return (int)(((draw(state) >> 32) * (uint64_t)n) >> 32);
}

/* ==== Order ==== */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void stats_sort(double *x, int n)
{
    if (n > 1) qsort(x, (size_t)n, sizeof *x, by_value);
}

static double quantile_sorted(const double *x, int n, double q)
{
    double at = q * (n - 1), part = at - floor(at);
    int i = (int)at;
    if (i >= n - 1) return x[n - 1];
    return x[i] + part * (x[i + 1] - x[i]);
}

int stats_quantile(struct Values values, double q, double *out)
{
    *out = NAN;
    if (values.n == 0) return PC_OK;
    double *sorted = mem_alloc((size_t)values.n, sizeof *sorted);
    if (!sorted) return PC_ENOMEM;
    memcpy(sorted, values.x, (size_t)values.n * sizeof *sorted);
    stats_sort(sorted, values.n);
    *out = quantile_sorted(sorted, values.n, q);
    mem_free(sorted);
    return PC_OK;
}

/* ==== Bootstrap ==== */

/* Sums of the same numbers in another order differ in their last bits; a zero must stay one. */
static double settle(double mean)
{
    return fabs(mean) < 1e-12 ? 0 : mean;
}

/* The groups that have values, sorted, one after the other in one block. */
struct Strata {
    double *block;
    struct Values *groups;
    int n_groups, n_values;
    /* What a group of one value varies by: the deviations of all larger groups from their means or,
     * where there are none, of the single values from theirs. */
    double *spread; /* [n_spread] */
    int n_spread, n_single;
};

static void strata_free(struct Strata *s)
{
    mem_free(s->block);
    mem_free(s->groups);
    mem_free(s->spread);
}

static double mean_of(const double *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return sum / n;
}

static void strata_spread(struct Strata *s)
{
    double singles = 0;
    for (int g = 0; g < s->n_groups; g++) {
        const struct Values *group = &s->groups[g];
        double mean = mean_of(group->x, group->n);
        if (group->n == 1) {
            s->n_single++;
            singles += mean;
        }
        for (int i = 0; i < group->n && group->n > 1; i++)
            s->spread[s->n_spread++] = group->x[i] - mean;
    }
    if (s->n_spread > 0 || s->n_single < 2) return;
    for (int g = 0; g < s->n_groups; g++)
        s->spread[s->n_spread++] = s->groups[g].x[0] - singles / s->n_single;
    stats_sort(s->spread, s->n_spread);
}

static int strata_make(const struct Values *groups, int n_groups, struct Strata *out)
{
    *out = (struct Strata){0};
    for (int i = 0; i < n_groups; i++) out->n_values += groups[i].n;
    out->block = mem_alloc((size_t)out->n_values, sizeof *out->block);
    out->groups = mem_alloc((size_t)n_groups, sizeof *out->groups);
    out->spread = mem_alloc((size_t)out->n_values, sizeof *out->spread);
    if (!out->block || !out->groups || !out->spread) {
        strata_free(out);
        return PC_ENOMEM;
    }
    double *to = out->block;
    for (int i = 0; i < n_groups; i++) {
        int n = groups[i].n;
        if (n == 0) continue;
        memcpy(to, groups[i].x, (size_t)n * sizeof *to);
        stats_sort(to, n);
        out->groups[out->n_groups++] = (struct Values){to, n};
        to += n;
    }
    strata_spread(out);
    return PC_OK;
}

static double strata_mean(const struct Strata *s)
{
    double sum = 0;
    for (int g = 0; g < s->n_groups; g++) sum += mean_of(s->groups[g].x, s->groups[g].n);
    return settle(sum / s->n_groups);
}

static double strata_resample(const struct Strata *s, uint64_t *state)
{
    double sum = 0;
    for (int g = 0; g < s->n_groups; g++) {
        const struct Values *group = &s->groups[g];
        double part = 0;
        if (group->n == 1) part = group->x[0] + s->spread[draw_below(state, s->n_spread)];
        for (int i = 0; i < group->n && group->n > 1; i++)
            part += group->x[draw_below(state, group->n)];
        sum += part / group->n;
    }
    return settle(sum / s->n_groups);
}

/* Fills mean, interval and (when asked for) the share of resamples below zero. */
static int bootstrap(const struct Strata *s, struct Estimate *out, double *below)
{
    *out = (struct Estimate){.n = s->n_values, .mean = NAN};
    if (s->n_values == 0) return PC_OK;
    out->mean = out->low = out->high = strata_mean(s);
    if (s->n_spread == 0) return PC_OK;
    double *means = mem_alloc((size_t)n_resamples, sizeof *means);
    if (!means) return PC_ENOMEM;
    uint64_t state = SEED;
    int negative = 0;
    for (int i = 0; i < n_resamples; i++) {
        means[i] = strata_resample(s, &state);
        negative += means[i] < 0;
    }
    stats_sort(means, n_resamples);
    out->low = quantile_sorted(means, n_resamples, 0.025);
    out->high = quantile_sorted(means, n_resamples, 0.975);
    out->kind = INTERVAL_BOOTSTRAP;
    if (below) *below = (double)negative / n_resamples;
    mem_free(means);
    return PC_OK;
}

/* ==== Means ==== */

struct Estimate stats_share(int hits, int n)
{
    if (n <= 0) return (struct Estimate){.mean = NAN};
    double p = (double)hits / n, z2 = Z95 * Z95;
    double middle = (p + z2 / (2.0 * n)) / (1 + z2 / n);
    double half = Z95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4.0 * n * n));
    struct Estimate share = {.n = n, .mean = p, .kind = INTERVAL_WILSON};
    /* at the ends the formula's rounding would miss 0 and 1 by a hair */
    share.low = hits == 0 ? 0 : middle - half;
    share.high = hits == n ? 1 : middle + half;
    if (n == 1) share = (struct Estimate){.n = 1, .mean = p, .low = p, .high = p};
    return share;
}

int stats_mean(struct Values values, struct Estimate *out)
{
    int ones = 0, n = values.n;
    bool binary = n > 0;
    for (int i = 0; i < n && binary; i++) {
        binary = values.x[i] == 0 || values.x[i] == 1;
        ones += values.x[i] == 1;
    }
    if (binary) {
        *out = stats_share(ones, n);
        return PC_OK;
    }
    return stats_mean_of_means(&values, 1, out);
}

int stats_mean_of_means(const struct Values *groups, int n_groups, struct Estimate *out)
{
    struct Strata strata;
    TRY(strata_make(groups, n_groups, &strata));
    int status = bootstrap(&strata, out, NULL);
    strata_free(&strata);
    return status;
}

int stats_difference(const struct Values *groups, int n_groups, struct Difference *out)
{
    struct Strata strata;
    *out = (struct Difference){.below = NAN};
    TRY(strata_make(groups, n_groups, &strata));
    int status = bootstrap(&strata, &out->mean, &out->below);
    for (int i = 0; i < strata.n_values; i++) out->n_differ += strata.block[i] != 0;
    strata_free(&strata);
    if (status < 0 || out->mean.kind == INTERVAL_NONE || out->mean.n < STATS_DECIDE) return status;
    if (out->mean.low > 0) out->verdict = VERDICT_BETTER;
    if (out->mean.high < 0) out->verdict = VERDICT_WORSE;
    return PC_OK;
}

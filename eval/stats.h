/* stats.h - means with honest intervals, and paired differences.
 *
 * Everything is deterministic: the generator starts from one seed in every call and the values are
 * sorted first, so that the numbers depend on the values only, not on the order of the rows.
 *
 * Which interval: scores that are all exactly 0 or 1 get Wilson's score interval, since resampling
 * ten right answers out of ten would claim certainty. Others get the percentile bootstrap: 10,000
 * resamples with replacement, the 2.5th and 97.5th percentile of their means. One value: no interval.
 */
#ifndef PCOMP_STATS_H
#define PCOMP_STATS_H

#include "base.h"

enum {
    STATS_RESAMPLES = 10000,
    /* Fewer pairs never decide: with 5 of 5 in one direction a sign test still gives p = 0.06. */
    STATS_DECIDE = 6,
};

enum IntervalKind { INTERVAL_NONE, INTERVAL_WILSON, INTERVAL_BOOTSTRAP };

struct Estimate {
    int n;            /* values; 0: nothing to say, mean is NAN */
    double mean;      /* in the values' unit */
    double low, high; /* 95% */
    enum IntervalKind kind;
};

struct Values {
    const double *x; /* [n] finite */
    int n;
};

int stats_mean(struct Values values, struct Estimate *out);
/* Mean of the groups' means, each group resampled apart; empty groups are left out. A group of one value
 * does not know its own spread and borrows that of the others. Estimate.n counts all values. */
int stats_mean_of_means(const struct Values *groups, int n_groups, struct Estimate *out);
/* `hits` of n as a share with Wilson's interval. */
struct Estimate stats_share(int hits, int n);

enum Verdict { VERDICT_UNDECIDED, VERDICT_BETTER, VERDICT_WORSE };

struct Difference {
    struct Estimate mean; /* always by bootstrap */
    double below;         /* share of resamples whose mean is below zero; NAN without an interval */
    int n_differ;         /* pairs that differ at all */
    enum Verdict verdict; /* decided: the interval leaves out zero, and there are enough pairs */
};

/* groups: differences row by row (method minus baseline), one group a task; mean of the groups' means. */
int stats_difference(const struct Values *groups, int n_groups, struct Difference *out);

/* Quantile q (0..1) of unsorted finite values by linear interpolation; NAN when there are none. */
int stats_quantile(struct Values values, double q, double *out);
void stats_sort(double *x, int n);

/* For fuzzing, where speed counts and numbers do not: fewer resamples from now on. */
void stats_hurry(int resamples);

#endif

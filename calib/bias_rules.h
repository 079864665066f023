/* bias_rules.h - from a measured profile to calibration rules that are worth a try, and what a try has shown. */
#ifndef PCOMP_BIAS_RULES_H
#define PCOMP_BIAS_RULES_H

#include "bias_profile.h"

enum { BIAS_BANDS = 4, BIAS_RULES_MAX = 2 * BIAS_CLASSES * BIAS_BANDS, PAPER_RULES = 3 };

/* The paper's setting, for 32 layers (configs/calib-paper.json, method.md 4.3), carried over to n_layers. Returns how
 * many of the rules fall on a layer. */
int bias_paper_rules(int n_layers, struct CalibRule rules[PAPER_RULES]);

/* Rules that take from the cache what draws far above uniform in this profile, those first that take most; at most
 * `max` of them. rows, stage: of the profile, and of every rule. Returns how many. */
int bias_propose(const struct BiasProfile *p, int rows, int stage, struct CalibRule *rules,
                 int max);

/* Two arms on the same items, lower is better. */
struct Paired {
    int n, n_better;    /* items, and those on which b is lower */
    double a, b;        /* means */
    double diff, error; /* mean of b - a and its standard error; error INFINITY below two items */
};

struct Paired paired(const double *a, const double *b, int n);
/* b is lower by more than twice the error of the difference: one error is what the best of several tries has by luck. */
bool paired_helps(const struct Paired *x);

/* "sink, layers 8-15, above 0.0625" */
void bias_rule_text(const struct CalibRule *rule, char *text, size_t room);

#endif

/* bias_study.h - attention bias of a model over a text: measured, rules tried on one half of the questions, judged on
 * the other.
 */
#ifndef PCOMP_BIAS_STUDY_H
#define PCOMP_BIAS_STUDY_H

#include "bias_items.h"
#include "calib/bias_rules.h"
#include "pcomp.h"

/* Questions 0, 2, 4, … choose; 1, 3, 5, … report. */
enum BiasHalf { HALF_CHOOSE, HALF_REPORT, BIAS_HALVES };
enum { TRIES_LOCAL = 6, TRIES_MERGED = 3, TRIES_JOINT = 2 };
enum { TRIES_MAX = TRIES_LOCAL + TRIES_MERGED + TRIES_JOINT };

/* One list of rules, and how well answers are predicted with it. */
struct BiasArm {
    const char *name; /* "no rules", "the paper's preset", "own rules", "tried" */
    struct CalibRule rules[CALIB_RULES_MAX];
    int n_rules, layers; /* layers: the depth the bands were written for; AUTO: the model's */
    double *nll;         /* [n_items] of each item's answer; 0 where it was not run */
    bool ran[BIAS_HALVES];
};

/* What no rule changes of an item. */
struct BiasSeen {
    int *kept; /* [n_kept] */
    int n_kept, n_chunks;
    bool hit; /* the chunk of the quoted sentence was kept */
};

struct BiasStudy {
    struct Engine *engine; /* borrowed, as all up to say */
    struct Request req;    /* the text and the callbacks; every run gets its own question */
    const struct BiasItems *items;
    void (*say)(void *user, const char *text); /* a line on what is being done; req.user */

    struct Settings settings; /* the engine's; those of the runs have each arm's rules */
    struct PlanInfo plan;     /* of the first run */
    int rows;                 /* question rows that were watched */
    struct BiasProfile local[BIAS_HALVES], merged[BIAS_HALVES]; /* without rules */
    struct BiasProfile after;        /* merged cache, HALF_REPORT, under `shown` */
    struct BiasSeen *seen;           /* [n_items] */
    struct BiasArm none, paper, own; /* own: rules that the settings had */
    struct BiasArm tries[TRIES_MAX];
    int n_tries;
    struct BiasArm *best;        /* of tries, on HALF_CHOOSE; NULL: there was nothing to try */
    const struct BiasArm *shown; /* best, or paper */
    bool helps;                  /* best is proposed */
};

/* Does it all. bias_study_close always. The engine is left with the settings that it had. */
int bias_study_run(struct BiasStudy *study);
void bias_study_close(struct BiasStudy *study);

/* An arm against no rules on one half; n 0 when it was not run there. */
struct Paired study_paired(const struct BiasStudy *study, const struct BiasArm *arm,
                           enum BiasHalf half);
/* What came of it, in plain sentences. */
int bias_study_verdict(const struct BiasStudy *study, struct Str *out);
/* "sink, layers 8-15, above 0.0625; recent, …" */
int arm_rules_text(const struct BiasArm *arm, struct Str *out);

#endif

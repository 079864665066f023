/* attn_calib.h - attention-bias calibration: which tokens draw too much and are dropped. */
#ifndef PCOMP_ATTN_CALIB_H
#define PCOMP_ATTN_CALIB_H

#include "config.h"

/* Attention that the last question rows of one layer pay to one KV head's context tokens.
 * Prefix and question tokens are not among them, so no rule can reach them. */
struct CalibAttention {
    const float *prob;  /* [n_heads, n_rows, n] f32 softmax over all keys; rows in question order */
    size_t head_stride; /* floats from one query head of the group to the next */
    size_t row_stride;  /* floats from one question row to the next */
    int n_heads;        /* query heads that share the KV head */
    int n_rows;         /* question rows at hand */
    int n;              /* context tokens */
};

/* Class of the context token at `index` of n. Where the two ends overlap, sink wins. */
enum TokenClass calib_class(int index, int n, int region);

/* Whether a rule speaks about this layer and stage. */
bool calib_applies(const struct CalibRule *rule, int layer, int stage);

/* mean[n]: attention averaged over the last `rows` rows (0, or more than there are: all) and the
 * group's heads. */
void calib_mean(const struct CalibAttention *a, int rows, float *mean);

/* Sets drop[n] to 1 where a rule of this layer and stage drops the token, else to 0: the union of
 * the rules. mean: [n] f32 scratch. Returns how many tokens are dropped. */
int calib_drop(const struct CalibRule *rules, int n_rules, int layer, int stage,
               const struct CalibAttention *a, float *mean, uint8_t *drop);

/* Refuses (PC_ECONFIG) a rule that cannot hold for a model of n_layers. */
int calib_rule_check(const struct CalibRule *rule, int n_layers);

/* Carries a rule's band from a model of from_layers over to one of to_layers, by relative depth:
 * bands that met still meet, and a band that left out layer 0 still does. False, leaving the rule
 * alone, when no layer of the smaller model falls into the band: leave the rule out then. */
bool calib_scale(struct CalibRule *rule, int from_layers, int to_layers);

#endif

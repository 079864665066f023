/* head_score.h - what a head is judged by: how far an answer's distribution moves without its long past, and
 * what its own attention looks at (headwise.md A.3, D.4).
 *
 * Pure arithmetic on rows of logits and attention; sums are in double and in a fixed order.
 */
#ifndef PCOMP_HEAD_SCORE_H
#define PCOMP_HEAD_SCORE_H

#include "base.h"

/* ==== Rows of logits ==== */

/* A row under full attention, which others are held against. */
struct AnswerRow {
    const float *logits; /* [n] */
    const float *prob;   /* [n] their softmax */
    double lse;          /* log of the sum of exp(logits), nats */
};

double logits_lse(const float *logits, int n);
void logits_softmax(const float *logits, int n, double lse, float *prob);
/* The likeliest token; of equals the lowest. */
int logits_best(const float *logits, int n);
/* KL(row || other) in nats, other[n] with its own lse. */
double answer_kl(const struct AnswerRow *row, const float *other, double lse, int n);

/* ==== Rows of attention ==== */

/* prob[n] = softmax of q . k / sqrt(dim) over keys [n, dim]. */
void attention_row(const float *q, const float *keys, int n, int dim, float *prob);
/* Mass on tokens [begin, end): needle mass. */
double attention_mass(const float *prob, int begin, int end);
/* Whether the key that is attended to most lies in [begin, end) and is the token that follows the row: the copy
 * score of Wu et al. (arXiv 2404.15574). ids: [n] tokens of the keys. */
bool attention_copies(const float *prob, int n, int begin, int end, const int *ids, int next);
/* Mass on earlier keys of the row's own token (echo) and on those right behind them (induction), as in
 * RazorAttention; n counts the row's own key, the last. */
double attention_echo(const float *prob, const int *ids, int n);

/* ==== Locality of the rotation alone ==== */

struct Rotation {
    const float *inv_freq; /* [rope_dim / 2] radians a position */
    int rope_dim, head_dim;
    bool pairs;  /* elements 2i and 2i + 1 turn together, else i and i + rope_dim / 2 */
    float scale; /* of rotated elements */
};

/* Takes the rotation of position pos out of x [head_dim]. */
void rotation_undo(const struct Rotation *r, int pos, double *x);
/* A mean query at the last of n positions, the mean key at all of them: the mean over positions of the attention
 * that has been given up to there. 1: all to the first, near 0: all to itself (kvpress's estimate). */
double rotation_reach(const struct Rotation *r, const double *q, const double *k, int n);

#endif

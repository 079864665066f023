/* gca_ref.h - grouped cross attention in its published form (GCA, arXiv 2410.01651; headwise.md C.1), for conformance tests.
 *
 * The engine has no such operator: an untrained retrieval score is no probability, so it weighs what each page says by
 * the page's share of the softmax. The two are one operator with other weights, which is what tests hold against each
 * other. Plain loops over one query head's row; sums in double.
 */
#ifndef PCOMP_GCA_REF_H
#define PCOMP_GCA_REF_H

#include <stdbool.h>

/* Chunks of one head, whose token t of chunk c stands at (c * tokens + t) * head_dim. */
struct GcaChunks {
    const float *k, *v; /* [n, tokens, head_dim] f32 */
    const int *len;     /* [n] tokens that count, 1 to tokens each; NULL: all */
    int n, tokens, head_dim;
};

/* What a landmark query retrieves of the n chunks before its own: the `most` of the highest <q, l_c> / sqrt(dim), of equal
 * ones the lower, and their weights, the softmax over these scores alone.
 * q [dim], landmark [n, dim]. Writes idx, ascending, and weight, room for `most` each; returns how many, n at most. */
int gca_retrieve(const float *q, const float *landmark, int n, int dim, int most, int *idx,
                 double *weight);

/* out [head_dim] = sum over the n_idx chunks of weight_i * softmax(q k^T / sqrt(head_dim)) v, each chunk by itself.
 * off_by_one: each softmax has 1 more in its denominator, which is a landmark's slot of zeros.
 * lse: NULL, or [n_idx] natural logs of the denominators. */
void gca_attend(const float *q, const struct GcaChunks *c, const int *idx, const double *weight,
                int n_idx, bool off_by_one, double *out, double *lse);

/* Weights with which the chunks' outputs add up to one softmax over all their tokens: exp(lse_c - lse). weight [n] */
void gca_exact_weights(const double *lse, int n, double *weight);

#endif

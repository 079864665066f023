/* gca_ref.c - see gca_ref.h. */
#include "gca_ref.h"

#include <math.h>
#include <stddef.h>

static double product(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* out may be x. */
static void softmax(const double *x, int n, double *out)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) top = fmax(top, x[i]);
    for (int i = 0; i < n; i++) sum += exp(x[i] - top);
    for (int i = 0; i < n; i++) out[i] = exp(x[i] - top) / sum;
}

/* ==== Retrieval ==== */

static double score_of(const float *q, const float *landmark, int dim, int chunk)
{
    return product(q, landmark + (size_t)chunk * dim, dim) / sqrt(dim);
}

/* How many of n chunks come before this one: those of higher scores, and of equal ones the lower. */
static int rank_of(const float *q, const float *landmark, int n, int dim, int chunk)
{
    double own = score_of(q, landmark, dim, chunk);
    int before = 0;
    for (int c = 0; c < n; c++) {
        double score = score_of(q, landmark, dim, c);
        before += score > own || (score == own && c < chunk);
    }
    return before;
}

int gca_retrieve(const float *q, const float *landmark, int n, int dim, int most, int *idx,
                 double *weight)
{
    int k = 0;
    for (int c = 0; c < n; c++) {
        if (rank_of(q, landmark, n, dim, c) >= most) continue;
        weight[k] = score_of(q, landmark, dim, c);
        idx[k++] = c;
    }
    softmax(weight, k, weight);
    return k;
}

/* ==== Attention ==== */

/* One chunk: adds weight times its output; returns the log of its denominator. */
static double attend_chunk(const float *q, const struct GcaChunks *c, int chunk, double weight,
                           bool off_by_one, double *out)
{
    const float *k = c->k + (size_t)chunk * c->tokens * c->head_dim,
                *v = c->v + (size_t)chunk * c->tokens * c->head_dim;
    int len = c->len ? c->len[chunk] : c->tokens;
    double top = off_by_one ? 0 : -INFINITY, scale = 1 / sqrt(c->head_dim);
    for (int t = 0; t < len; t++)
        top = fmax(top, scale * product(q, k + (size_t)t * c->head_dim, c->head_dim));
    double sum = off_by_one ? exp(-top) : 0;
    for (int t = 0; t < len; t++)
        sum += exp(scale * product(q, k + (size_t)t * c->head_dim, c->head_dim) - top);
    for (int t = 0; t < len; t++) {
        double p = exp(scale * product(q, k + (size_t)t * c->head_dim, c->head_dim) - top) / sum;
        for (int d = 0; d < c->head_dim; d++) out[d] += weight * p * v[(size_t)t * c->head_dim + d];
    }
    return top + log(sum);
}

void gca_attend(const float *q, const struct GcaChunks *c, const int *idx, const double *weight,
                int n_idx, bool off_by_one, double *out, double *lse)
{
    for (int d = 0; d < c->head_dim; d++) out[d] = 0;
    for (int i = 0; i < n_idx; i++) {
        double denominator = attend_chunk(q, c, idx[i], weight[i], off_by_one, out);
        if (lse) lse[i] = denominator;
    }
}

void gca_exact_weights(const double *lse, int n, double *weight)
{
    softmax(lse, n, weight);
}

/* head_score.c - see head_score.h. */
#include "head_score.h"

#include <math.h>

/* ==== Rows of logits ==== */

static float highest(const float *logits, int n)
{
    float top = logits[0];
#pragma omp simd reduction(max : top)
    for (int i = 0; i < n; i++) top = logits[i] > top ? logits[i] : top;
    return top;
}

double logits_lse(const float *logits, int n)
{
    float top = highest(logits, n);
    double sum = exp((double)logits[0] - top);
    for (int i = 1; i < n; i++) sum += exp((double)logits[i] - top);
    return top + log(sum);
}

void logits_softmax(const float *logits, int n, double lse, float *prob)
{
    for (int i = 0; i < n; i++) prob[i] = (float)exp(logits[i] - lse);
}

int logits_best(const float *logits, int n)
{
    float top = highest(logits, n);
    int best = 0;
    while (best + 1 < n && logits[best] != top) best++;
    return best;
}

/* Of differences, so that what both rows share costs no digits. */
double answer_kl(const struct AnswerRow *row, const float *other, double lse, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)row->prob[i] * ((double)row->logits[i] - other[i] - row->lse + lse);
    return sum > 0 ? sum : 0;
}

/* ==== Rows of attention ==== */

static float dot(const float *a, const float *b, int n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

void attention_row(const float *q, const float *keys, int n, int dim, float *prob)
{
    float scale = 1.0f / sqrtf((float)dim), top = -INFINITY;
    double sum = 0;
    for (int j = 0; j < n; j++) {
        prob[j] = scale * dot(q, keys + (size_t)j * dim, dim);
        top = prob[j] > top ? prob[j] : top;
    }
    for (int j = 0; j < n; j++) sum += prob[j] = expf(prob[j] - top);
    for (int j = 0; j < n; j++) prob[j] = (float)(prob[j] / sum);
}

double attention_mass(const float *prob, int begin, int end)
{
    double sum = 0;
    for (int j = begin; j < end; j++) sum += prob[j];
    return sum;
}

bool attention_copies(const float *prob, int n, int begin, int end, const int *ids, int next)
{
    int best = logits_best(prob, n);
    return best >= begin && best < end && ids[best] == next;
}

double attention_echo(const float *prob, const int *ids, int n)
{
    double sum = 0;
    for (int j = 0; j + 1 < n; j++)
        if (ids[j] == ids[n - 1] || (j > 0 && ids[j - 1] == ids[n - 1])) sum += prob[j];
    return sum;
}

/* ==== Locality of the rotation alone ==== */

/* The two elements that turn by frequency i. */
static void partners(const struct Rotation *r, int i, int *a, int *b)
{
    *a = r->pairs ? 2 * i : i;
    *b = r->pairs ? 2 * i + 1 : i + r->rope_dim / 2;
}

void rotation_undo(const struct Rotation *r, int pos, double *x)
{
    for (int i = 0; i < r->rope_dim / 2; i++) {
        int a, b;
        partners(r, i, &a, &b);
        double angle = (double)pos * (double)r->inv_freq[i];
        double c = cos(angle) / r->scale, s = sin(angle) / r->scale, xa = x[a], xb = x[b];
        x[a] = xa * c + xb * s;
        x[b] = xb * c - xa * s;
    }
}

/* q . k when the key stands `distance` positions before the query. */
static double turned_dot(const struct Rotation *r, const double *q, const double *k, int distance)
{
    double sum = 0, scale = (double)r->scale * r->scale;
    for (int i = 0; i < r->rope_dim / 2; i++) {
        int a, b;
        partners(r, i, &a, &b);
        double angle = (double)distance * (double)r->inv_freq[i];
        sum += scale * (cos(angle) * (q[a] * k[a] + q[b] * k[b]) +
                        sin(angle) * (q[a] * k[b] - q[b] * k[a]));
    }
    for (int i = r->rope_dim; i < r->head_dim; i++) sum += q[i] * k[i];
    return sum;
}

double rotation_reach(const struct Rotation *r, const double *q, const double *k, int n)
{
    double scale = 1 / sqrt(r->head_dim), top = -INFINITY, all = 0, given = 0;
    for (int j = 0; j < n; j++) top = fmax(top, scale * turned_dot(r, q, k, n - 1 - j));
    /* the weight of position j counts in the n - j sums that reach it */
    for (int j = 0; j < n; j++) {
        double weight = exp(scale * turned_dot(r, q, k, n - 1 - j) - top);
        all += weight;
        given += weight * (n - j);
    }
    return given / all / n;
}

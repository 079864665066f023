/* chunk_choose.c - see chunk_choose.h. The loss is the mean over samples of log(1 + exp(wrong - right)), a smooth count of the
 * chunks ahead; features are compared in units of their own spread, so that one weight serves all.
 */
#include "chunk_choose.h"

#include <math.h>

#define WINNER_WEIGHT 0.25 /* of the loss for the final winner, beside the answer's */
#define GAIN_LEAST    1e-3 /* of the loss, for one more feature */
#define BLEND_GAIN    0.05
#define BLEND_FIRST   (1.0 / 256) /* nats */
#define BLEND_LAST    4.0

static size_t cell(const struct ChunkSamples *s, int sample, int chunk)
{
    return (size_t)sample * (size_t)s->n_chunks + (size_t)chunk;
}

static double value(const struct ChunkSamples *s, int sample, int chunk, int feature)
{
    return (double)s->feature[cell(s, sample, chunk) * (size_t)s->n_features + (size_t)feature];
}

/* The mean of its spread among the chunks of a sample, over the samples where it has any; 1 where it has none. */
static double spread(const struct ChunkSamples *s, int feature)
{
    double all = 0;
    int n = 0;
    for (int i = 0; i < s->n; i++) {
        double mean = 0, square = 0;
        for (int c = 0; c < s->chunks[i]; c++) mean += value(s, i, c, feature) / s->chunks[i];
        for (int c = 0; c < s->chunks[i]; c++) {
            double off = value(s, i, c, feature) - mean;
            square += off * off / s->chunks[i];
        }
        all += sqrt(square);
        n += square > 0;
    }
    return all > 1e-6 * n ? all / n : 1;
}

/* ==== Loss ==== */

static bool has_right(const struct ChunkSamples *s, int sample)
{
    for (int c = 0; c < s->chunks[sample]; c++)
        if (s->right[cell(s, sample, c)]) return true;
    return false;
}

static int final_best(const struct ChunkSamples *s, int sample)
{
    const double *score = s->final + cell(s, sample, 0);
    int best = 0;
    for (int c = 1; c < s->chunks[sample]; c++)
        if (score[c] < score[best]) best = c;
    return best;
}

/* Best of the right chunks' scores. */
static double right_score(const struct ChunkSamples *s, int sample, const double *score)
{
    double best = -INFINITY;
    for (int c = 0; c < s->chunks[sample]; c++)
        if (s->right[cell(s, sample, c)]) best = fmax(best, score[c]);
    return best;
}

static double sample_loss(const struct ChunkSamples *s, int sample, const double *score)
{
    int n = s->chunks[sample], best = final_best(s, sample);
    double right = right_score(s, sample, score), loss = 0;
    for (int c = 0; c < n; c++) {
        if (!s->right[cell(s, sample, c)]) loss += log1p(exp(score[c] - right));
        if (c != best) loss += WINNER_WEIGHT * log1p(exp(score[c] - score[best]));
    }
    return loss;
}

/* Of the scores so far and one feature more; weight 0: of those alone. */
static double loss_with(const struct ChunkSamples *s, const double *sum, int feature, double weight,
                        double *score)
{
    double loss = 0;
    for (int i = 0; i < s->n; i++) {
        if (!has_right(s, i)) continue;
        for (int c = 0; c < s->chunks[i]; c++)
            score[c] = sum[cell(s, i, c)] + weight * value(s, i, c, feature);
        loss += sample_loss(s, i, score) / s->n;
    }
    return loss;
}

/* ==== Choice ==== */

static void take(const struct ChunkSamples *s, struct ChunkScorer *out, int feature, double weight,
                 double *sum)
{
    for (int i = 0; i < s->n; i++)
        for (int c = 0; c < s->chunks[i]; c++)
            sum[cell(s, i, c)] += weight * value(s, i, c, feature);
    out->feature[out->n] = feature;
    out->weight[out->n++] = (float)weight;
}

static bool taken(const struct ChunkScorer *s, int feature)
{
    for (int i = 0; i < s->n; i++)
        if (s->feature[i] == feature) return true;
    return false;
}

/* The feature that lowers the loss most, or -1. */
static int best_feature(const struct ChunkSamples *s, const uint8_t *allowed,
                        const struct ChunkScorer *out, const double *weight, const double *sum,
                        double *score)
{
    double least = loss_with(s, sum, 0, 0, score) * (1 - GAIN_LEAST);
    int best = -1;
    for (int f = 0; f < s->n_features; f++) {
        if (!allowed[f] || taken(out, f)) continue;
        double loss = loss_with(s, sum, f, weight[f], score);
        if (loss < least || (best < 0 && out->n == 0)) least = loss, best = f;
    }
    return best;
}

int chunk_choose(const struct ChunkSamples *s, const uint8_t *allowed, struct ChunkScorer *out)
{
    double *sum = mem_alloc((size_t)s->n * (size_t)s->n_chunks, sizeof *sum),
           *score = mem_alloc((size_t)s->n_chunks, sizeof *score),
           *weight = mem_alloc((size_t)s->n_features, sizeof *weight);
    int status = sum && score && weight ? PC_OK : PC_ENOMEM;
    out->n = 0;
    for (int f = 0; f < s->n_features && status == PC_OK; f++)
        if (allowed[f]) weight[f] = 1 / spread(s, f);
    while (status == PC_OK && out->n < out->room) {
        int f = best_feature(s, allowed, out, weight, sum, score);
        if (f < 0) break;
        take(s, out, f, weight[f], sum);
    }
    mem_free(sum);
    mem_free(score);
    mem_free(weight);
    return status;
}

/* ==== Ranks ==== */

static double score_of(const struct ChunkSamples *s, int sample, int chunk,
                       const struct ChunkScorer *scorer)
{
    double sum = 0;
    for (int i = 0; i < scorer->n; i++)
        sum += (double)scorer->weight[i] * value(s, sample, chunk, scorer->feature[i]);
    return sum;
}

static double blended(const struct ChunkSamples *s, int sample, int chunk,
                      const struct ChunkScorer *scorer, double nats)
{
    return s->final[cell(s, sample, chunk)] - nats * score_of(s, sample, chunk, scorer);
}

int chunks_ahead(const struct ChunkSamples *s, int sample, const struct ChunkScorer *scorer)
{
    double right = -INFINITY;
    int n = 0;
    if (!has_right(s, sample)) return -1;
    for (int c = 0; c < s->chunks[sample]; c++)
        if (s->right[cell(s, sample, c)]) right = fmax(right, score_of(s, sample, c, scorer));
    for (int c = 0; c < s->chunks[sample]; c++)
        n += !s->right[cell(s, sample, c)] && score_of(s, sample, c, scorer) >= right;
    return n;
}

int finals_ahead(const struct ChunkSamples *s, int sample)
{
    const double *score = s->final + cell(s, sample, 0);
    double right = INFINITY;
    int n = 0;
    if (!has_right(s, sample)) return -1;
    for (int c = 0; c < s->chunks[sample]; c++)
        if (s->right[cell(s, sample, c)]) right = fmin(right, score[c]);
    for (int c = 0; c < s->chunks[sample]; c++)
        n += !s->right[cell(s, sample, c)] && score[c] <= right;
    return n;
}

int blended_ahead(const struct ChunkSamples *s, int sample, const struct ChunkScorer *scorer,
                  double nats)
{
    double right = INFINITY;
    int n = 0;
    if (!has_right(s, sample)) return -1;
    for (int c = 0; c < s->chunks[sample]; c++)
        if (s->right[cell(s, sample, c)]) right = fmin(right, blended(s, sample, c, scorer, nats));
    for (int c = 0; c < s->chunks[sample]; c++)
        n += !s->right[cell(s, sample, c)] && blended(s, sample, c, scorer, nats) <= right;
    return n;
}

static double blend_loss(const struct ChunkSamples *s, const struct ChunkScorer *scorer,
                         double nats)
{
    double loss = 0;
    for (int i = 0; i < s->n; i++) {
        int ahead = blended_ahead(s, i, scorer, nats);
        if (ahead > 0) loss += log1p(ahead);
    }
    return loss;
}

double chunk_blend(const struct ChunkSamples *s, const struct ChunkScorer *scorer)
{
    double least = blend_loss(s, scorer, 0) * (1 - BLEND_GAIN), best = 0;
    for (double nats = BLEND_FIRST; nats <= BLEND_LAST; nats *= 2) {
        double loss = blend_loss(s, scorer, nats);
        if (loss < least) least = loss, best = nats;
    }
    return best;
}

int winner_ahead(const struct ChunkSamples *s, int sample, const struct ChunkScorer *scorer)
{
    int best = final_best(s, sample), n = 0;
    double score = score_of(s, sample, best, scorer);
    for (int c = 0; c < s->chunks[sample]; c++)
        n += c != best && score_of(s, sample, c, scorer) >= score;
    return n;
}

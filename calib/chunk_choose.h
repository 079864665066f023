/* chunk_choose.h - which numbers that are known of a chunk early tell best whether it holds the answer: pure arithmetic over
 * a table of samples. A sample is one question over some chunks, a feature what one head says of one of them.
 */
#ifndef PCOMP_CHUNK_CHOOSE_H
#define PCOMP_CHUNK_CHOOSE_H

#include "base.h"

struct ChunkSamples {
    int n, n_chunks, n_features; /* samples; chunks of one at most; features of a chunk */
    float *feature;              /* [n, n_chunks, n_features] log shares */
    double *final;  /* [n, n_chunks] the score behind the last layer; lower is better */
    uint8_t *right; /* [n, n_chunks] 1: holds the answer */
    int *chunks;    /* [n] chunks of this one */
};

/* A sum of features, each times its weight, which is one over its spread among a question's chunks. */
struct ChunkScorer {
    int *feature; /* [room] */
    float *weight;
    int n, room;
};

/* Takes up to scorer->room of the features with allowed[f], one after another, each that lowers the loss most, until none
 * does: how much more often, and by how much, wrong chunks are ahead of the right one, and, counting a quarter,
 * ahead of the one with the best final score. Samples without a right chunk are left out. Errors: PC_ENOMEM. */
int chunk_choose(const struct ChunkSamples *s, const uint8_t *allowed, struct ChunkScorer *scorer);

/* Wrong chunks of the sample that score at least as high as the best right one; -1 without a right one. */
int chunks_ahead(const struct ChunkSamples *s, int sample, const struct ChunkScorer *scorer);
/* The same by the final score. */
int finals_ahead(const struct ChunkSamples *s, int sample);
/* Chunks ahead of the one with the best final score. */
int winner_ahead(const struct ChunkSamples *s, int sample, const struct ChunkScorer *scorer);
/* finals_ahead() where the scorer's sum, times nats, is taken off the final score. */
int blended_ahead(const struct ChunkSamples *s, int sample, const struct ChunkScorer *scorer,
                  double nats);
/* Of a row of values, each twice the one before, those nats with fewest wrong chunks ahead (the mean of log(1 + ahead));
 * 0 where none has a twentieth fewer than the final score alone. */
double chunk_blend(const struct ChunkSamples *s, const struct ChunkScorer *scorer);

#endif

/* chunk_evict.h - which chunks stay: self-information and the queue of the k best. */
#ifndef PCOMP_CHUNK_EVICT_H
#define PCOMP_CHUNK_EVICT_H

#include "base.h"

/* Mean of nll[begin, end): the self-information of the scored tokens given the chunk, in nats a
 * token; lower is more relevant. An empty range stands for the whole of nll[n], which is the
 * published form (every token after the chunk is scored); n = 0 gives NAN. */
double self_information(const float *nll, int n, int begin, int end);

struct ChunkEntry {
    int chunk;
    double score;
};

/* The chunks kept so far. The set depends on the scores alone, not on the order of pushing: a
 * chunk is better if its score is lower, or equal and its number lower; NAN is the worst score. */
struct ChunkQueue {
    int k;                      /* most that may stay */
    int n;                      /* now kept */
    struct ChunkEntry *entries; /* [k] a heap, the worst first; owned */
};

/* k < 0 (KEEP_ALL) keeps all of n_chunks. The caller owns the queue: chunk_queue_close.
 * Errors: PC_ECONFIG (k = 0), PC_ENOMEM. */
int chunk_queue_open(struct ChunkQueue *q, int k, int n_chunks);
void chunk_queue_close(struct ChunkQueue *q);

/* Offers a chunk, each once. *evicted becomes the chunk that leaves for good (perhaps the one
 * offered), or -1 when none does: its memory may be used again at once. Allocates nothing. */
void chunk_queue_push(struct ChunkQueue *q, int chunk, double score, int *evicted);

/* Scores by chance, uniform in [0, 1): the baseline that any other score has to beat. The same seed
 * gives the same scores. */
void chance_scores(uint64_t seed, int n, double *score);

/* Writes the kept chunks in document order; returns how many. */
int chunk_queue_kept(const struct ChunkQueue *q, int *chunks);

#endif

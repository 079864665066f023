/* chunk_profile.h - what `pcomp calibrate chunks` found of a model: after which layers the question's attention tells
 * chunks apart, by which KV heads, and how far ahead of the right chunk others were (eviction/early.h). A JSON file,
 * schema "pcomp.chunks.v1", in configs/chunks beside the head maps; it is found by the model's hash.
 */
#ifndef PCOMP_CHUNK_PROFILE_H
#define PCOMP_CHUNK_PROFILE_H

#include "eviction/early.h"

enum { STOPS_MAX = 4, STOP_HEADS_MAX = 64, STOP_SAMPLES_MAX = 512 };

/* A KV head whose attention counts. */
struct StopHead {
    int layer, head;
    enum EarlyMeasure measure;
    int rows;     /* last question rows whose attention counts, EARLY_ROWS at most */
    float weight; /* of early_measure() in the sum, above 0 */
};

/* A decision behind the first `layer` layers. The score of a chunk is the sum over the heads, and what its words add; higher
 * stays. */
struct ChunkStop {
    int layer;
    float words; /* of its BM25 as a share of the best chunk's, in the sum; 0: words do not count */
    struct StopHead heads[STOP_HEADS_MAX]; /* of layers before it */
    int n_heads;
    /* Of each sample whose right chunk all layers would keep: share of the other chunks that scored higher. */
    float ahead[STOP_SAMPLES_MAX];
    int n_ahead;
};

struct ChunkProfile {
    uint64_t model_hash;
    int n_layers, n_kv_heads;
    struct ChunkStop stops[STOPS_MAX]; /* layers ascend */
    int n_stops;                       /* 0: no profile */
    struct ChunkStop
        last;   /* heads of all layers whose sum counts in the end; neither words nor samples */
    float nats; /* that a unit of that sum takes off a chunk's score; 0: it does not count */
};

/* PC_EFORMAT tells what is wrong with the file; PC_ECONFIG: it is for another shape of model. */
int chunk_profile_read(const char *path, int n_layers, int n_kv_heads, struct ChunkProfile *out);
/* The file in configs/chunks beside this program whose model_hash is this one, into path; else an empty path. */
int chunk_profile_find(uint64_t model_hash, char *path, size_t room);
/* facts: a JSON object, put into the file as "facts"; or NULL. */
int chunk_profile_write(const struct ChunkProfile *p, const char *facts, const char *path);

#endif

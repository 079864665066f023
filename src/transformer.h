/* transformer.h - the transformer, written once over the backend table.
 *
 * A layer comes in two halves, because the method acts between them: after tf_attend the layer's keys and
 * values lie in the batch buffers, rotated, for eviction to choose from; tf_ffn goes on.
 */
#ifndef PCOMP_TRANSFORMER_H
#define PCOMP_TRANSFORMER_H

#include "backend.h"

struct Transformer {
    const struct Backend *be;
    struct Device *dev;
    const struct Model *model;
    int max_rows;
    struct Rope rope; /* the model's, unless set otherwise after tf_open */
    float *x;         /* [max_rows, dim] f32 residual stream */
    void *q, *out;    /* [max_rows, n_heads * head_dim] in the device's type */
    void *k, *v;      /* [max_rows, n_kv_heads * head_dim] */
};

size_t tf_bytes(const struct Backend *be, const struct ModelConfig *m, int max_rows);
int tf_open(struct Transformer *t, const struct Backend *be, struct Device *dev,
            const struct Model *model, int max_rows);
void tf_close(struct Transformer *t);

/* Token rows into x, positions to the device. */
int tf_begin(struct Transformer *t, const struct Batch *b);
/* The first half up to attention, for which *args is ready. */
int tf_project(struct Transformer *t, const struct Batch *b, int layer, int last_rows,
               struct AttnArgs *args);
/* First half: norm, q k v, rotation, attention into out. last_rows as in AttnArgs; *args is what attn_mass needs. */
int tf_attend(struct Transformer *t, const struct Batch *b, int layer, int last_rows,
              struct AttnArgs *args);
/* Second half for n_rows rows of x and out: output projection and feed-forward, each added to x. */
int tf_ffn(struct Transformer *t, int layer, int n_rows);

#endif

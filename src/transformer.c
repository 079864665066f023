/* transformer.c - see transformer.h. */
#include "transformer.h"

#include <string.h>

static size_t row_floats(const struct ModelConfig *m)
{
    return (size_t)m->dim + (size_t)2 * m->n_heads * m->head_dim +
           (size_t)2 * m->n_kv_heads * m->head_dim;
}

size_t tf_bytes(const struct ModelConfig *m, int max_rows)
{
    return sizeof(float) * row_floats(m) * (size_t)max_rows;
}

int tf_open(struct Transformer *t, const struct Backend *be, struct Device *dev,
            const struct Model *model, int max_rows)
{
    const struct ModelConfig *m = &model->cfg;
    size_t rows = (size_t)max_rows, q_dim = (size_t)m->n_heads * m->head_dim,
           kv_dim = (size_t)m->n_kv_heads * m->head_dim;
    *t = (struct Transformer){.be = be,
                              .dev = dev,
                              .model = model,
                              .max_rows = max_rows,
                              .rope = {m->inv_freq, m->rope_scale}};
    t->x = be->alloc(dev, sizeof(float) * row_floats(m) * rows);
    if (!t->x) return PC_ENOMEM;
    t->q = t->x + rows * m->dim;
    t->out = t->q + rows * q_dim;
    t->k = t->out + rows * q_dim;
    t->v = t->k + rows * kv_dim;
    return PC_OK;
}

void tf_close(struct Transformer *t)
{
    if (t->be && t->x) t->be->release(t->dev, t->x);
    memset(t, 0, sizeof *t);
}

int tf_begin(struct Transformer *t, const struct Batch *b)
{
    int rows = b->seq_begin[b->n_seqs];
    if (rows > t->max_rows)
        return err_set(PC_EINTERNAL, "batch of %d rows in room for %d", rows, t->max_rows);
    TRY(t->be->embed(t->dev, b->tokens, rows, t->x));
    return t->be->positions(t->dev, &t->rope, b->pos, rows);
}

int tf_attend(struct Transformer *t, const struct Batch *b, int layer, int last_rows,
              struct AttnArgs *args)
{
    const struct Layer *l = &t->model->layers[layer];
    int rows = b->seq_begin[b->n_seqs];
    struct LinearOp qkv[3] = {{&l->wq, l->bq, t->q}, {&l->wk, l->bk, t->k}, {&l->wv, l->bv, t->v}};
    TRY(t->be->norm_linear(t->dev, t->x, rows, l->attn_norm, qkv, 3));
    struct RopeArgs rope = {t->q, t->k, l->q_norm, l->k_norm, rows};
    TRY(t->be->rope(t->dev, &rope));
    *args = (struct AttnArgs){
        .q = t->q,
        .k = t->k,
        .v = t->v,
        .out = t->out,
        .seq_begin = b->seq_begin,
        .n_seqs = b->n_seqs,
        .layer = layer,
        .pool = b->pool,
        .past = b->past,
        .last_rows = last_rows,
        .n_biased = b->n_biased,
        .bias = b->bias,
        .far = b->far,
    };
    return t->be->attention(t->dev, args);
}

int tf_ffn(struct Transformer *t, int layer, int n_rows)
{
    const struct Layer *l = &t->model->layers[layer];
    struct LinearOp wo = {&l->wo, l->bo, t->x};
    TRY(t->be->linear_add(t->dev, t->out, n_rows, &wo));
    struct FfnWeights ffn = {l->ffn_norm, &l->w_gate, &l->w_up, &l->w_down};
    return t->be->ffn_add(t->dev, t->x, n_rows, &ffn);
}

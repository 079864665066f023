/* transformer.c - see transformer.h. */
#include "transformer.h"

#include <string.h>

enum { ALIGN = 256 }; /* bytes: what copies in bulk want */

static size_t round_up(size_t bytes)
{
    return (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
}

/* Bytes of x, of q or out, and of k or v. */
static void parts(const struct Backend *be, const struct ModelConfig *m, int max_rows, size_t *x,
                  size_t *q, size_t *kv)
{
    size_t rows = (size_t)max_rows, head = (size_t)m->head_dim * be->act_bytes;
    *x = round_up(rows * (size_t)m->dim * sizeof(float));
    *q = round_up(rows * (size_t)m->n_heads * head);
    *kv = round_up(rows * (size_t)m->n_kv_heads * head);
}

size_t tf_bytes(const struct Backend *be, const struct ModelConfig *m, int max_rows)
{
    size_t x, q, kv;
    parts(be, m, max_rows, &x, &q, &kv);
    return x + 2 * q + 2 * kv;
}

int tf_open(struct Transformer *t, const struct Backend *be, struct Device *dev,
            const struct Model *model, int max_rows)
{
    const struct ModelConfig *m = &model->cfg;
    size_t x, q, kv;
    *t = (struct Transformer){.be = be,
                              .dev = dev,
                              .model = model,
                              .max_rows = max_rows,
                              .rope = {m->inv_freq, m->rope_scale}};
    parts(be, m, max_rows, &x, &q, &kv);
    uint8_t *p = be->alloc(dev, tf_bytes(be, m, max_rows));
    if (!p) return PC_ENOMEM;
    t->x = (float *)(void *)p;
    t->q = p += x;
    t->out = p += q;
    t->k = p += q;
    t->v = p + kv;
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
    return t->be->begin(t->dev, b, &t->rope, t->x);
}

int tf_project(struct Transformer *t, const struct Batch *b, int layer, int last_rows,
               struct AttnArgs *args)
{
    const struct Layer *l = &t->model->layers[layer];
    int rows = b->seq_begin[b->n_seqs];
    struct LinearOp qkv[3] = {{&l->wq, l->bq, t->q}, {&l->wk, l->bk, t->k}, {&l->wv, l->bv, t->v}};
    TRY(t->be->norm_linear(t->dev, t->x, rows, l->attn_norm, qkv, 3));
    struct RopeArgs rope = {t->q, t->k, l->q_norm, l->k_norm, rows, l->bk};
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
        .own_pasts = b->own_pasts,
        .tail_rows = b->tail_rows,
        .last_rows = last_rows,
        .far = b->far,
        .masks = b->masks,
        .select = b->select,
        .select_kept = b->select_kept,
    };
    return PC_OK;
}

int tf_attend(struct Transformer *t, const struct Batch *b, int layer, int last_rows,
              struct AttnArgs *args)
{
    TRY(tf_project(t, b, layer, last_rows, args));
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

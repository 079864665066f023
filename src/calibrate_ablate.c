/* calibrate_ablate.c - one KV head at a time without its long past: causal ablation from cached keys (headwise.md D.4).
 *
 * Layers below a head's own do not notice that it is confined, so a walk goes up the layers with the tail's
 * residual stream under full attention. In each layer attention runs twice, with all heads free and with all
 * confined; a head's output does not depend on the others, so that mixing the two gives every head's ablation.
 * The copies of a layer go on together, a sequence each, over the one cache.
 */
#include "calibrate.h"

#include <string.h>

/* The walk's state under full attention; all in host memory, owned. */
struct Walk {
    size_t x_bytes, out_bytes;    /* of one tail */
    size_t head_bytes, row_bytes; /* of attention's output: a KV head's group in a row, a row */
    uint8_t *free,
        *confined;   /* [tail, n_heads * head_dim] attention's output, in the device's type */
    uint8_t *mixed;  /* [n_kv_heads, tail, n_heads * head_dim] */
    float *x, *next; /* [tail, dim] the residual stream before and after the layer */
    float *copies;   /* [n_kv_heads, tail, dim] */
    float *whole;    /* [tail, dim] */
};

static int walk_open(const struct Study *st, struct Walk *w)
{
    const struct ModelConfig *m = &st->e->model.cfg;
    size_t tail = (size_t)st->reading.n_tail, heads = (size_t)m->n_kv_heads;
    *w = (struct Walk){0};
    w->row_bytes = (size_t)m->n_heads * (size_t)m->head_dim * st->e->be->act_bytes;
    w->head_bytes = w->row_bytes / heads;
    w->x_bytes = tail * (size_t)m->dim * sizeof(float);
    w->out_bytes = tail * w->row_bytes;
    w->free = mem_alloc(w->out_bytes, 1);
    w->confined = mem_alloc(w->out_bytes, 1);
    w->mixed = mem_alloc(heads, w->out_bytes);
    w->x = mem_alloc(w->x_bytes, 1);
    w->next = mem_alloc(w->x_bytes, 1);
    w->copies = mem_alloc(heads, w->x_bytes);
    w->whole = mem_alloc(w->x_bytes, 1);
    return w->free && w->confined && w->mixed && w->x && w->next && w->copies && w->whole
               ? PC_OK
               : PC_ENOMEM;
}

static void walk_close(struct Walk *w)
{
    void *blocks[] = {w->free, w->confined, w->mixed, w->x, w->next, w->copies, w->whole};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
}

/* ==== One layer ==== */

/* Attention's output with all heads of the layer confined, as the batch has them, then with all free. */
static int attend_both(struct Study *st, const struct Batch *b, int layer, struct Walk *w)
{
    struct Reading *r = &st->reading;
    const struct Backend *be = r->tf.be;
    struct AttnArgs args;
    TRY(tf_attend(&r->tf, b, layer, 0, &args));
    TRY(be->download(r->tf.dev, w->confined, r->tf.out, w->out_bytes));
    args.masks = NULL;
    TRY(be->attention(r->tf.dev, &args));
    return be->download(r->tf.dev, w->free, r->tf.out, w->out_bytes);
}

/* The walk's own step: from x to next under full attention. */
static int walk_layer(struct Study *st, int layer, struct Walk *w)
{
    struct Reading *r = &st->reading;
    const struct Backend *be = r->tf.be;
    struct HeadMasks masks = {r->window, st->opt.sink};
    struct Batch b;
    for (int q = 0; q < st->shape.n_heads; q++)
        r->window[(size_t)layer * st->shape.n_heads + q] = st->opt.recent;
    TRY(tail_begin(st, 1, &masks, &b));
    if (layer == 0) TRY(be->download(r->tf.dev, w->x, r->tf.x, w->x_bytes));
    TRY(be->upload(r->tf.dev, r->tf.x, w->x, w->x_bytes));
    TRY(attend_both(st, &b, layer, w));
    TRY(be->upload(r->tf.dev, r->tf.out, w->free, w->out_bytes));
    TRY(tf_ffn(&r->tf, layer, r->n_tail));
    return be->download(r->tf.dev, w->next, r->tf.x, w->x_bytes);
}

/* A copy of the layer's attention for each KV head, in which that head alone is confined. */
static void mix(const struct Study *st, struct Walk *w)
{
    for (int h = 0; h < st->shape.n_kv_heads; h++) {
        uint8_t *copy = w->mixed + (size_t)h * w->out_bytes;
        memcpy(copy, w->free, w->out_bytes);
        for (int row = 0; row < st->reading.n_tail; row++) {
            size_t at = (size_t)row * w->row_bytes + (size_t)h * w->head_bytes;
            memcpy(copy + at, w->confined + at, w->head_bytes);
        }
    }
}

/* Puts the copies before the layer's output projection: every x, or zeros, and each attention of its own. */
static int load_copies(struct Study *st, struct Walk *w, bool with_x, struct Batch *b)
{
    struct Reading *r = &st->reading;
    const struct Backend *be = r->tf.be;
    int n = st->shape.n_kv_heads;
    TRY(tail_begin(st, n, NULL, b));
    for (int h = 0; h < n; h++) {
        float *copy = w->copies + (size_t)h * (w->x_bytes / sizeof *copy);
        if (with_x)
            memcpy(copy, w->x, w->x_bytes);
        else
            memset(copy, 0, w->x_bytes);
    }
    mix(st, w);
    TRY(be->upload(r->tf.dev, r->tf.x, w->copies, (size_t)n * w->x_bytes));
    return be->upload(r->tf.dev, r->tf.out, w->mixed, (size_t)n * w->out_bytes);
}

/* ==== Scores of one layer ==== */

static int score_ablation(struct Study *st, int layer, struct Walk *w, double *sum)
{
    struct Reading *r = &st->reading;
    struct Batch b;
    int n = st->shape.n_kv_heads;
    TRY(load_copies(st, w, true, &b));
    TRY(tf_ffn(&r->tf, layer, n * r->n_tail));
    TRY(tail_layers(st, &b, layer + 1));
    for (int h = 0; h < n; h++) {
        double kl = 0;
        TRY(tail_judge(st, h));
        for (int i = 0; i < r->sample.n_rows; i++) kl += r->kl[i];
        sum[h] += kl / r->sample.n_rows;
    }
    return PC_OK;
}

/* What the layer's attention adds to the residual stream: x [n * tail, dim] of n tails in tf.out. */
static int project(struct Study *st, int layer, int n, float *x)
{
    struct Transformer *tf = &st->reading.tf;
    const struct Layer *l = &st->e->model.layers[layer];
    struct LinearOp wo = {&l->wo, l->bo, tf->x};
    int rows = n * st->reading.n_tail;
    TRY(tf->be->linear_add(tf->dev, tf->out, rows, &wo));
    return tf->be->download(tf->dev, x, tf->x,
                            (size_t)rows * (size_t)st->e->model.cfg.dim * sizeof(float));
}

/* Squared length of a row of a, or of its difference from b's. */
static double squared(const float *a, const float *b, int dim)
{
    double sum = 0;
    for (int i = 0; i < dim; i++) {
        double x = (double)a[i] - (b ? b[i] : 0);
        sum += x * x;
    }
    return sum;
}

/* The layer's attention, projected: with all heads free into `whole`, with one confined each into copies. */
static int project_both(struct Study *st, int layer, struct Walk *w)
{
    struct Reading *r = &st->reading;
    struct Batch b;
    TRY(load_copies(st, w, false, &b));
    TRY(project(st, layer, st->shape.n_kv_heads, w->copies));
    memset(w->whole, 0, w->x_bytes);
    TRY(tail_begin(st, 1, NULL, &b));
    TRY(r->tf.be->upload(r->tf.dev, r->tf.x, w->whole, w->x_bytes));
    TRY(r->tf.be->upload(r->tf.dev, r->tf.out, w->free, w->out_bytes));
    return project(st, layer, 1, w->whole);
}

static int score_deviation(struct Study *st, int layer, struct Walk *w, double *sum)
{
    const struct StudySample *s = &st->reading.sample;
    int dim = st->e->model.cfg.dim, tail = st->reading.n_tail;
    TRY(project_both(st, layer, w));
    for (int i = 0; i < s->n_rows; i++) {
        const float *whole = w->whole + (size_t)s->rows[i] * dim;
        double all = squared(whole, NULL, dim) * s->n_rows;
        for (int h = 0; h < st->shape.n_kv_heads; h++) {
            const float *copy = w->copies + ((size_t)h * tail + s->rows[i]) * dim;
            sum[h] += all > 0 ? squared(copy, whole, dim) / all : 0;
        }
    }
    return PC_OK;
}

/* ==== The walk ==== */

/* Share of a sample's work that is done after n of its layers: the first ones have the longest way up. */
static double walked(int n, int n_layers)
{
    double left = 1 - (double)n / n_layers;
    return 1 - left * left;
}

static int walk_up(struct Study *st, enum HeadMethod method, int at, struct Walk *w, double *sum)
{
    int n = st->shape.n_layers;
    for (int l = 0; l < n; l++) {
        double *of_layer = sum + (size_t)l * st->shape.n_kv_heads;
        TRY(study_stop(st));
        TRY(walk_layer(st, l, w));
        TRY(method == HEADS_ALONE ? score_ablation(st, l, w, of_layer)
                                  : score_deviation(st, l, w, of_layer));
        float *x = w->x;
        w->x = w->next;
        w->next = x;
        study_progress(st, head_method_name(method), (at + walked(l + 1, n)) / st->opt.samples);
    }
    return PC_OK;
}

int ablate_sample(struct Study *st, enum HeadMethod method, int at, double *sum)
{
    struct Walk w;
    int status = walk_open(st, &w);
    if (status == PC_OK) status = walk_up(st, method, at, &w, sum);
    walk_close(&w);
    return status;
}

/* naive_support.h - a transformer by the book for tests of the session: it takes the model's products from the backend, but
 * rotates and attends by itself, pair by pair, in double; a view says who sees whom from where.
 */
#ifndef PCOMP_NAIVE_SUPPORT_H
#define PCOMP_NAIVE_SUPPORT_H

#include "tests/unit/session_support.h"

/* ==== The oracle ==== */

/* The positions at which row i meets key j <= i; false: it does not see it. */
struct View {
    bool (*meet)(const struct View *v, int i, int j, int *q, int *k);
    int window, group, neighbours, sinks;
    const struct Session *session; /* whose heads have windows, and where its text ends */
    int text_end;
    int layer, head;    /* at hand: set by the oracle */
    const double *freq; /* [rope_dim / 2]; NULL: the model's */
    double scale;       /* on cosines and sines of both sides */
};

static inline bool meet_plain(const struct View *v, int i, int j, int *q, int *k)
{
    (void)v;
    *q = i, *k = j;
    return true;
}

/* Cosines and sines of every distance up to n. */
struct Turns {
    double *cosv, *sinv; /* [n, half] */
    int half;
    enum RopeStyle style;
};

static inline struct Turns turns_open(const struct ModelConfig *m, const struct View *v, int n)
{
    struct Turns t = {NULL, NULL, m->rope_dim / 2, m->rope_style};
    t.cosv = calloc((size_t)n * t.half, sizeof *t.cosv);
    t.sinv = calloc((size_t)n * t.half, sizeof *t.sinv);
    for (int d = 0; d < n; d++)
        for (int i = 0; i < t.half; i++) {
            double angle = d * (v->freq ? v->freq[i] : (double)m->inv_freq[i]);
            t.cosv[d * t.half + i] = cos(angle);
            t.sinv[d * t.half + i] = sin(angle);
        }
    return t;
}

/* q at a position `apart` behind that of k: the product of the two, each turned to its place. */
static inline double turned_product(const struct Turns *t, const float *q, const float *k,
                                    int apart)
{
    double sum = 0;
    const double *c = t->cosv + (size_t)apart * t->half, *s = t->sinv + (size_t)apart * t->half;
    for (int i = 0; i < t->half; i++) {
        int a = t->style == ROPE_PAIRS ? 2 * i : i,
            b = t->style == ROPE_PAIRS ? 2 * i + 1 : i + t->half;
        sum += ((double)q[a] * k[a] + (double)q[b] * k[b]) * c[i] +
               ((double)q[a] * k[b] - (double)q[b] * k[a]) * s[i];
    }
    return sum;
}

static inline void naive_attention(const struct Transformer *tf, struct View *v,
                                   const struct Turns *t, int n)
{
    const struct ModelConfig *m = &tf->model->cfg;
    int group = m->n_heads / m->n_kv_heads, dim = m->head_dim;
    assert_int_equal(m->rope_dim, dim);
    double *p = calloc((size_t)n, sizeof *p), *o = calloc((size_t)dim, sizeof *o);
    for (int h = v->head = 0; h < m->n_heads; v->head = ++h)
        for (int i = 0; i < n; i++) {
            const float *q = (float *)tf->q + ((size_t)i * m->n_heads + h) * dim;
            double top = -INFINITY, sum = 0;
            for (int j = 0; j <= i; j++) {
                int at_q, at_k;
                p[j] = -INFINITY;
                if (!v->meet(v, i, j, &at_q, &at_k)) continue;
                const float *k = (float *)tf->k + ((size_t)j * m->n_kv_heads + h / group) * dim;
                p[j] = turned_product(t, q, k, at_q - at_k) * v->scale * v->scale / sqrt(dim);
                top = fmax(top, p[j]);
            }
            memset(o, 0, sizeof *o * (size_t)dim);
            for (int j = 0; j <= i; j++) {
                if (p[j] == -INFINITY) continue;
                double w = exp(p[j] - top);
                const float *x = (float *)tf->v + ((size_t)j * m->n_kv_heads + h / group) * dim;
                sum += w;
                for (int d = 0; d < dim; d++) o[d] += w * x[d];
            }
            float *out = (float *)tf->out + ((size_t)i * m->n_heads + h) * dim;
            for (int d = 0; d < dim; d++) out[d] = (float)(o[d] / sum);
        }
    free(p);
    free(o);
}

/* Logits of the last row of ids. */
static inline void naive_logits(struct Engine *e, struct Tokens ids, const struct View *view,
                                float *logits)
{
    struct View now = *view, *v = &now;
    const struct ModelConfig *m = &e->model.cfg;
    struct Transformer tf;
    struct BatchShape shape = {.rows = ids.n, .seqs = 1, .keys = ids.n, .head_rows = 1};
    int last = ids.n - 1, *zero = calloc((size_t)ids.n, sizeof *zero);
    struct Turns t = turns_open(m, v, ids.n);
    must(tf_open(&tf, e->be, e->dev, &e->model, ids.n));
    must(e->be->reserve(e->dev, &shape));
    int ends[2] = {0, ids.n};
    struct Batch batch = {.tokens = ids.ids, .pos = zero, .seq_begin = ends, .n_seqs = 1};
    must(tf_begin(&tf, &batch)); /* rope() then only norms the heads */
    for (int l = 0; l < m->n_layers; l++) {
        const struct Layer *w = &e->model.layers[l];
        struct LinearOp qkv[3] = {
            {&w->wq, w->bq, tf.q}, {&w->wk, w->bk, tf.k}, {&w->wv, w->bv, tf.v}};
        struct RopeArgs rope = {tf.q, tf.k, w->q_norm, w->k_norm, ids.n, w->bk};
        must(e->be->norm_linear(e->dev, tf.x, ids.n, w->attn_norm, qkv, 3));
        must(e->be->rope(e->dev, &rope));
        v->layer = l;
        naive_attention(&tf, v, &t, ids.n);
        must(tf_ffn(&tf, l, ids.n));
    }
    must(e->be->logits(e->dev, tf.x, &last, 1, logits));
    tf_close(&tf);
    free(zero);
    free(t.cosv);
    free(t.sinv);
}

/* The first answer row and the last one, after the answer's own tokens, are the oracle's. */
static inline void check_view(struct Engine *e, struct Input in, const struct View *v,
                              const char *what)
{
    float *logits = calloc((size_t)e->model.cfg.vocab_size, sizeof *logits);
    struct Outcome have = outcome(e, in);
    struct Prompt p = make_prompt(in);
    struct Tokens ids = join(&p, 0, in.context);
    naive_logits(e, ids, v, logits);
    same_logits(e, have.logits, logits, what);
    append(&ids, have.ids, have.n_ids < e->settings.max_tokens ? have.n_ids : have.n_ids - 1);
    naive_logits(e, ids, v, logits);
    same_logits(e, have.last, logits, what);
    tokens_free(&ids);
    prompt_free(&p);
    free(logits);
}

#endif

/* sides.h - for tests of the CUDA backend: two engines side by side, the CPU's in f32 and the GPU's, with the same seeded
 * weights; a case's tokens, its past and its cache on each; a step of decoding op by op or replayed. Each test program has
 * its own copy.
 */
#ifndef PCOMP_TESTS_CUDA_SIDES_H
#define PCOMP_TESTS_CUDA_SIDES_H

#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed, failed;

static inline void check(bool ok, const char *what, const char *where, double value)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s (%s): %g\n", what, where, value);
}

static inline void must(int status)
{
    if (status >= 0) return;
    printf("FAIL %s\n0 passed, 1 failed\n", err_text());
    exit(1);
}

static uint64_t seed = 7;

static inline uint32_t rng(void)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33);
}

/* |a - b| / |b|; NaN never passes. */
static inline double distance(const float *a, const float *b, size_t n)
{
    double d = 0, l = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        l += (double)b[i] * b[i];
    }
    return sqrt(d / (l > 0 ? l : 1));
}

/* ==== Two engines side by side ==== */

struct Side {
    struct Engine *e;
    struct Transformer tf;
    struct KvCache kv;
    struct HeadTable past;
    struct KvWrites writes;
};

struct Case {
    const char *model;
    int seqs, rows[4], past, obs; /* rows of each sequence */
    int window, far_n,
        group; /* far keys, see struct FarKeys; group: the keys turn; window 0: none */
};

static inline struct Engine *open_side(const char *model, const char *backend, const char *kv_type)
{
    struct Settings set;
    struct Engine *e;
    settings_default(&set);
    must(settings_set(&set, "backend", backend));
    must(settings_set(&set, "kv_type", kv_type));
    if (!strcmp(backend, "cpu")) must(settings_set(&set, "precision", "f32"));
    must(engine_open(model, &set, &e));
    must(engine_weights(e));
    return e;
}

/* n values of a device's activations as f32. */
static inline float *fetch(const struct Side *s, const void *p, size_t n, size_t width)
{
    float *out = calloc(n, sizeof *out);
    if (width == sizeof(float)) {
        must(s->e->be->download(s->e->dev, out, p, n * width));
        return out;
    }
    uint16_t *half = calloc(n, sizeof *half);
    must(s->e->be->download(s->e->dev, half, p, n * width));
    for (size_t i = 0; i < n; i++) out[i] = bf16_to_f32(half[i]);
    free(half);
    return out;
}

static inline void compare(const struct Side *s, const void *a, const void *b, size_t n,
                           bool stream, double limit, const char *what, const char *where)
{
    float *x = fetch(&s[0], a, n, stream ? sizeof(float) : s[0].e->be->act_bytes),
          *y = fetch(&s[1], b, n, stream ? sizeof(float) : s[1].e->be->act_bytes);
    double d = distance(y, x, n);
    check(d < limit, what, where, d);
    free(x);
    free(y);
}

struct Plan {
    int *tokens, *pos, seq_begin[5];
    struct BatchShape shape;
};

static inline struct Plan plan_case(const struct Case *c, const struct ModelConfig *m)
{
    struct Plan p = {0};
    int longest = 0;
    for (int i = 0; i < c->seqs; i++) {
        p.seq_begin[i + 1] = p.seq_begin[i] + c->rows[i];
        if (c->rows[i] > longest) longest = c->rows[i];
    }
    int n = p.seq_begin[c->seqs];
    p.tokens = calloc((size_t)n + (size_t)c->past + 1, sizeof(int));
    p.pos = calloc((size_t)n + (size_t)c->past + 1, sizeof(int));
    for (int s = 0; s < c->seqs; s++)
        for (int i = p.seq_begin[s]; i < p.seq_begin[s + 1]; i++)
            p.tokens[i] = (int)(rng() % (unsigned)m->vocab_size),
            p.pos[i] = c->past + i - p.seq_begin[s];
    p.shape = (struct BatchShape){.rows = n > c->past ? n : c->past,
                                  .seqs = c->seqs,
                                  .keys = c->past + longest,
                                  .mass_keys = c->obs ? c->past + longest : 0,
                                  .head_rows = 5,
                                  .far = c->window,
                                  .turned_keys = c->group ? c->past + longest : 0};
    return p;
}

static inline void open_case(struct Side *s, const struct Case *c, const struct Plan *p)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t pages = (size_t)m->n_layers * m->n_kv_heads *
                   (size_t)(4 * (c->past + p->shape.rows) / PAGE_TOKENS + 16);
    must(tf_open(&s->tf, s->e->be, s->e->dev, &s->e->model, p->shape.rows));
    must(s->e->be->reserve(s->e->dev, &p->shape));
    must(kv_open(&s->kv, s->e->be, s->e->dev, m, pages));
    must(kv_table_open(&s->past, m, c->past / PAGE_TOKENS + 8));
    must(kv_writes_open(&s->writes, 64));
}

static inline void close_case(struct Side *s)
{
    kv_writes_close(&s->writes);
    kv_table_close(&s->past);
    kv_close(&s->kv);
    tf_close(&s->tf);
}

/* The past: a sequence of its own of tokens that all differ, all layers. */
static inline void make_past(struct Side *s, const struct Case *c)
{
    int ends[2] = {0, c->past}, *tokens = calloc((size_t)c->past + 1, sizeof(int)),
        *pos = calloc((size_t)c->past + 1, sizeof(int));
    if (c->past) {
        for (int i = 0; i < c->past; i++)
            tokens[i] = (i * 193 + 7) % s->e->model.cfg.vocab_size, pos[i] = i;
        struct Batch b = {.tokens = tokens, .pos = pos, .seq_begin = ends, .n_seqs = 1};
        must(tf_begin(&s->tf, &b));
        for (int l = 0; l < s->e->model.cfg.n_layers; l++) {
            struct AttnArgs a;
            struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, c->past};
            must(tf_attend(&s->tf, &b, l, 0, &a));
            must(kv_append_all(&s->kv, &s->past, l, &rows, &s->writes));
            must(kv_flush(&s->kv, &s->writes));
            must(tf_ffn(&s->tf, l, c->past));
        }
        for (int h = 0; h < s->past.n_heads && c->seqs == 1; h++) /* every second page has a bias */
            for (int i = 0; i < s->past.n_refs[h]; i += 2)
                s->past.refs[(size_t)h * s->past.stride + i].bias = 0.5f;
    }
    free(tokens);
    free(pos);
}

/* ==== Steps of decoding ==== */

static inline int step_layers(struct Side *s, const struct Batch *b, bool append, float *logits)
{
    int row = 0;
    for (int l = 0; l < s->e->model.cfg.n_layers; l++) {
        struct AttnArgs a;
        struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, 1};
        must(tf_attend(&s->tf, b, l, 0, &a));
        if (append) must(kv_append_all(&s->kv, &s->past, l, &rows, &s->writes));
        if (append) must(kv_flush(&s->kv, &s->writes));
        if (!append)
            must(s->e->be->kv_write(s->e->dev, &s->kv.pool, NULL, s->e->model.cfg.n_kv_heads));
        must(tf_ffn(&s->tf, l, 1));
    }
    return s->e->be->logits(s->e->dev, s->tf.x, &row, 1, logits);
}

static inline int step_replayed(struct Side *s, const struct Batch *b, bool *recorded,
                                float *logits, int *best)
{
    const struct Backend *be = s->e->be;
    struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, 1};
    if (!*recorded) {
        must(be->record(s->e->dev, true));
        must(step_layers(s, b, false, logits));
        must(be->record(s->e->dev, false));
        *recorded = true;
    }
    for (int l = 0; l < s->e->model.cfg.n_layers; l++)
        must(kv_append_all(&s->kv, &s->past, l, &rows, &s->writes));
    int n = s->writes.n;
    s->writes.n = 0;
    return be->replay(s->e->dev, s->writes.list, n, logits, best);
}

#endif

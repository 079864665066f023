/* calibrate_attend.c - scores from what each query head attends to: mass, copy, echo; and from rotation alone.
 *
 * A backend gives attention summed over a KV head's group only, so the tail's queries and all keys are taken to the
 * host and every row's softmax is made here, layer by layer. The tail itself goes on with full attention.
 */
#include "calibrate.h"

#include "quant.h"

#include <omp.h>
#include <string.h>

/* One layer on the host; owned. */
struct Looks {
    int n_keys;  /* before the tail, and of one ask at most */
    float *q;    /* [tail, n_heads * head_dim] */
    float *own;  /* [tail, n_kv_heads * head_dim] keys of the tail */
    float *keys; /* [n_kv_heads, n_keys, head_dim]; behind the cache's those of one ask at a time */
    float *prob; /* [threads, n_keys] */
    double *score; /* [n_rows, n_heads] */
    int *ids;      /* [n_keys] tokens */
    double *head;  /* [head_dim] */
    float *value;  /* [head_dim] */
    void *raw;     /* [tail, n_heads * head_dim] in the device's type */
};

static int longest_ask(const struct StudySample *s)
{
    int longest = 0;
    for (int a = 0; a < s->n_asks; a++) {
        int n = s->ask_begin[a + 1] - s->ask_begin[a];
        if (n > longest) longest = n;
    }
    return longest;
}

static int looks_open(const struct Study *st, struct Looks *k)
{
    const struct Reading *r = &st->reading;
    const struct ModelConfig *m = &st->e->model.cfg;
    size_t tail = (size_t)r->n_tail, dim = (size_t)m->head_dim, heads = (size_t)m->n_heads,
           kv = (size_t)m->n_kv_heads, n = (size_t)r->n_keys + (size_t)longest_ask(&r->sample);
    *k = (struct Looks){.n_keys = (int)n};
    k->q = mem_alloc(tail * heads * dim, sizeof *k->q);
    k->own = mem_alloc(tail * kv * dim, sizeof *k->own);
    k->keys = mem_alloc(kv * n * dim, sizeof *k->keys);
    k->prob = mem_alloc((size_t)st->e->settings.threads * n, sizeof *k->prob);
    k->score = mem_alloc((size_t)r->sample.n_rows * heads, sizeof *k->score);
    k->ids = mem_alloc(n, sizeof *k->ids);
    k->head = mem_alloc(dim, sizeof *k->head);
    k->value = mem_alloc(dim, sizeof *k->value);
    k->raw = mem_alloc(tail * heads * dim, st->e->be->act_bytes);
    return k->q && k->own && k->keys && k->prob && k->score && k->ids && k->head && k->value &&
                   k->raw
               ? PC_OK
               : PC_ENOMEM;
}

static void looks_close(struct Looks *k)
{
    void *blocks[] = {k->q, k->own, k->keys, k->prob, k->score, k->ids, k->head, k->value, k->raw};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
}

/* Tokens of the cache's keys in their order. */
static void list_ids(const struct Prompt *p, int *ids)
{
    const struct Tokens *parts[] = {&p->prefix, &p->context};
    for (int i = 0; i < 2; i++) {
        if (parts[i]->n) memcpy(ids, parts[i]->ids, sizeof *ids * (size_t)parts[i]->n);
        ids += parts[i]->n;
    }
}

/* ==== To the host ==== */

/* n activations as f32: a device's type is f32 or bf16. */
static int download_f32(struct Study *st, const void *from, size_t n, void *raw, float *out)
{
    const struct Transformer *tf = &st->reading.tf;
    bool wide = tf->be->act_bytes == sizeof(float);
    TRY(tf->be->download(tf->dev, wide ? (void *)out : raw, from, n * tf->be->act_bytes));
    if (!wide) quant_decode(DT_BF16, raw, out, (int64_t)n);
    return PC_OK;
}

/* The cache's keys of one head. */
static int read_keys(struct Study *st, int layer, int kv_head, struct Looks *k)
{
    struct Reading *r = &st->reading;
    const struct ModelConfig *m = &st->e->model.cfg;
    const struct HeadTable *t = &r->session.merged;
    int head = layer * m->n_kv_heads + kv_head, dim = m->head_dim, n = 0;
    float *keys = k->keys + (size_t)kv_head * k->n_keys * dim;
    const struct PageRef *refs = t->refs + (size_t)head * t->stride;
    for (int i = 0; i < t->n_refs[head]; i++)
        for (int at = 0; at < (int)refs[i].len; at++, n++)
            TRY(r->tf.be->kv_read(r->tf.dev, &r->session.kv.pool, refs[i], at,
                                  keys + (size_t)n * dim, k->value));
    return PC_OK;
}

static int take_rows(struct Study *st, struct Looks *k)
{
    const struct ModelConfig *m = &st->e->model.cfg;
    const struct Transformer *tf = &st->reading.tf;
    size_t n = (size_t)st->reading.n_tail * (size_t)m->head_dim;
    TRY(download_f32(st, tf->q, n * (size_t)m->n_heads, k->raw, k->q));
    return download_f32(st, tf->k, n * (size_t)m->n_kv_heads, k->raw, k->own);
}

static int take_layer(struct Study *st, int layer, struct Looks *k)
{
    TRY(take_rows(st, k));
    for (int h = 0; h < st->shape.n_kv_heads; h++) TRY(read_keys(st, layer, h, k));
    return PC_OK;
}

/* ==== Scores ==== */

static double look_at(const struct Study *st, enum HeadMethod method, const struct Looks *k, int i,
                      const float *prob)
{
    const struct StudySample *s = &st->reading.sample;
    struct Span needle = s->needle[s->ask[i]];
    int n = st->reading.n_keys + s->rows[i] - s->ask_begin[s->ask[i]] + 1;
    if (method == HEADS_MASS) return attention_mass(prob, needle.begin, needle.end);
    if (method == HEADS_COPY)
        return attention_copies(prob, n, needle.begin, needle.end, k->ids, s->targets[i]);
    return attention_echo(prob, k->ids, n);
}

/* An ask's own keys and tokens behind the cache's. */
static void enter_ask(const struct Study *st, int ask, struct Looks *k)
{
    const struct Reading *r = &st->reading;
    int begin = r->sample.ask_begin[ask], n = r->sample.ask_begin[ask + 1] - begin,
        heads = st->shape.n_kv_heads, dim = st->e->model.cfg.head_dim;
    memcpy(k->ids + r->n_keys, r->session.prompt.tail.ids + begin, sizeof *k->ids * (size_t)n);
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < n; i++)
            memcpy(k->keys + ((size_t)h * k->n_keys + (size_t)(r->n_keys + i)) * dim,
                   k->own + ((size_t)(begin + i) * heads + h) * dim, sizeof *k->keys * (size_t)dim);
}

/* Rows [first, end) of those that count, all of one ask. */
static void score_ask(struct Study *st, enum HeadMethod method, struct Looks *k, int first, int end)
{
    const struct Reading *r = &st->reading;
    int heads = st->shape.n_heads, group = heads / st->shape.n_kv_heads, ask = r->sample.ask[first],
        dim = st->e->model.cfg.head_dim;
    enter_ask(st, ask, k);
#pragma omp parallel for schedule(dynamic, 16) num_threads(st->e->settings.threads)
    for (int job = first * heads; job < end * heads; job++) {
        int i = job / heads, head = job % heads, row = r->sample.rows[i];
        float *prob = k->prob + (size_t)omp_get_thread_num() * k->n_keys;
        attention_row(k->q + ((size_t)row * heads + head) * dim,
                      k->keys + (size_t)(head / group) * k->n_keys * dim,
                      r->n_keys + row - r->sample.ask_begin[ask] + 1, dim, prob);
        k->score[job] = look_at(st, method, k, i, prob);
    }
}

/* Mean over rows of what each query head of the layer looks at. */
static void score_layer(struct Study *st, enum HeadMethod method, struct Looks *k, double *q_sum)
{
    const struct StudySample *s = &st->reading.sample;
    int heads = st->shape.n_heads, rows = s->n_spelled;
    for (int first = 0, end; first < rows; first = end) {
        for (end = first; end < rows && s->ask[end] == s->ask[first]; end++) continue;
        score_ask(st, method, k, first, end);
    }
    for (int job = 0; job < rows * heads; job++) q_sum[job % heads] += k->score[job] / rows;
}

static int look_up(struct Study *st, enum HeadMethod method, struct Looks *k, double *q_sum)
{
    struct Reading *r = &st->reading;
    struct Batch b;
    list_ids(&r->session.prompt, k->ids);
    TRY(tail_begin(st, 1, NULL, &b));
    for (int l = 0; l < st->shape.n_layers; l++) {
        struct AttnArgs args;
        TRY(study_stop(st));
        TRY(tf_attend(&r->tf, &b, l, 0, &args));
        TRY(take_layer(st, l, k));
        score_layer(st, method, k, q_sum + (size_t)l * st->shape.n_heads);
        TRY(tf_ffn(&r->tf, l, r->n_tail));
    }
    return PC_OK;
}

int attend_sample(struct Study *st, enum HeadMethod method, double *q_sum)
{
    struct Looks k;
    int status = looks_open(st, &k);
    if (status == PC_OK) status = look_up(st, method, &k, q_sum);
    looks_close(&k);
    return status;
}

/* ==== Rotation alone ==== */

static struct Rotation rotation_of(const struct Study *st)
{
    const struct ModelConfig *m = &st->e->model.cfg;
    return (struct Rotation){m->inv_freq, m->rope_dim, m->head_dim, m->rope_style == ROPE_PAIRS,
                             m->rope_scale};
}

/* Adds one rotated row of n heads, turned back, to the sums; x [head_dim] is scratch. */
static void add_row(const struct Rotation *rot, int pos, const float *row, int n, double *x,
                    double *sum)
{
    int dim = rot->head_dim;
    for (int h = 0; h < n; h++) {
        for (int i = 0; i < dim; i++) x[i] = row[(size_t)h * dim + i];
        rotation_undo(rot, pos, x);
        for (int i = 0; i < dim; i++) sum[(size_t)h * dim + i] += x[i];
    }
}

static void add_layer(const struct Study *st, const struct Looks *k, int layer,
                      struct RopeMeans *means)
{
    const struct Reading *r = &st->reading;
    struct Rotation rot = rotation_of(st);
    size_t q = (size_t)st->shape.n_heads * (size_t)rot.head_dim,
           kv = (size_t)st->shape.n_kv_heads * (size_t)rot.head_dim;
    for (int row = 0; row < r->n_tail; row++) {
        int pos = r->session.plan.question_pos + row;
        add_row(&rot, pos, k->q + (size_t)row * q, st->shape.n_heads, k->head,
                means->q + (size_t)layer * q);
        add_row(&rot, pos, k->own + (size_t)row * kv, st->shape.n_kv_heads, k->head,
                means->k + (size_t)layer * kv);
    }
}

static int gather_means(struct Study *st, struct Looks *k, struct RopeMeans *means)
{
    struct Reading *r = &st->reading;
    struct Batch b;
    TRY(tail_begin(st, 1, NULL, &b));
    for (int l = 0; l < st->shape.n_layers; l++) {
        struct AttnArgs args;
        TRY(study_stop(st));
        TRY(tf_attend(&r->tf, &b, l, 0, &args));
        TRY(take_rows(st, k));
        add_layer(st, k, l, means);
        TRY(tf_ffn(&r->tf, l, r->n_tail));
    }
    means->n += r->n_tail;
    return PC_OK;
}

int rope_sample(struct Study *st, struct RopeMeans *means)
{
    struct Looks k;
    int status = looks_open(st, &k);
    if (status == PC_OK) status = gather_means(st, &k, means);
    looks_close(&k);
    return status;
}

enum { REACH_POSITIONS = 500 }; /* as kvpress has it */

/* Each query head against its KV head's keys. */
void rope_scores(const struct Study *st, struct RopeMeans *means, float *q_scores)
{
    struct Rotation rot = rotation_of(st);
    int heads = st->shape.n_layers * st->shape.n_heads,
        group = st->shape.n_heads / st->shape.n_kv_heads, dim = rot.head_dim;
    for (int i = 0; i < heads * dim; i++) means->q[i] /= (double)means->n;
    for (int i = 0; i < heads / group * dim; i++) means->k[i] /= (double)means->n;
    for (int head = 0; head < heads; head++)
        q_scores[head] =
            (float)rotation_reach(&rot, means->q + (size_t)head * dim,
                                  means->k + (size_t)(head / group) * dim, REACH_POSITIONS);
}

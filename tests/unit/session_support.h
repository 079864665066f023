/* session_support.h - for tests of the session: engines over seeded tiny models, prompts of seeded token ids, runs
 * whose outcomes can be compared, and a plain forward pass to hold against them. Each test program has its own
 * copy.
 */
#ifndef PCOMP_SESSION_SUPPORT_H
#define PCOMP_SESSION_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "calib/attn_calib.h"
#include "session.h"
#include "tests/tiny.h"

enum { LAYERS = 3, TRAIN_LEN = 1024, VOCAB_MAX = 512, ANSWER = 12, IDS = 256 };

static const char *const archs[] = {"llama", "qwen2", "qwen3"};
enum { N_ARCHS = sizeof archs / sizeof *archs };

static inline double logit_tolerance(const struct Engine *e)
{
    return e->settings.precision == PRECISION_F32 ? 2e-4 : 0.1;
}

/* ==== Engines ==== */

static const struct Request no_request = {.context = NULL, .question = ""};

static inline struct Engine *open_engine_of(const char *arch, enum Precision precision,
                                            enum KvType kv_type, int threads)
{
    char path[] = "/tmp/pcomp_session_XXXXXX";
    struct TinySpec spec = tiny_spec(arch);
    struct Settings set;
    struct Engine *e = NULL;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    spec.n_layers = LAYERS;
    spec.train_len = TRAIN_LEN;
    settings_default(&set);
    set.precision = precision;
    set.kv_type = kv_type;
    set.threads = threads;
    set.memory = (size_t)1 << 30;
    set.chunk = 128;
    set.kv_cap = CAP_OFF;
    set.max_tokens = ANSWER;
    if (tiny_gguf(path, &spec) < 0 || engine_open(path, &set, &e) < 0) fail_msg("%s", err_text());
    unlink(path);
    return e;
}

static inline struct Engine *open_engine(const char *arch, enum Precision precision, int threads)
{
    return open_engine_of(arch, precision, KV_AUTO, threads);
}

static inline void add_rule(struct Engine *e, struct CalibRule rule)
{
    e->settings.calib[e->settings.n_calib++] = rule;
}

static inline void each_engine(void (*check)(struct Engine *e))
{
    for (int a = 0; a < N_ARCHS; a++)
        for (int precision = 0; precision < 2; precision++) {
            size_t before = mem_in_use();
            struct Engine *e =
                open_engine(archs[a], precision ? PRECISION_F32 : PRECISION_INT16, 1);
            check(e);
            engine_close(e);
            assert_int_equal(mem_in_use(), before);
        }
}

/* ==== Prompts ==== */

struct Input {
    int prefix, context, tail;
    uint64_t seed;
};

static const struct Input plain_input = {9, 600, 14, 1};

static inline uint32_t next_number(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static inline void push_random(struct Tokens *t, int n, uint64_t *state)
{
    for (int i = 0; i < n; i++)
        assert_int_equal(tokens_push(t, (int)(next_number(state) % IDS)), PC_OK);
}

static inline struct Prompt make_prompt(struct Input in)
{
    struct Prompt p = {0};
    uint64_t state = in.seed;
    push_random(&p.prefix, in.prefix, &state);
    push_random(&p.context, in.context, &state);
    push_random(&p.tail, in.tail, &state);
    return p;
}

static inline void append(struct Tokens *t, const int *ids, int n)
{
    for (int i = 0; i < n; i++) assert_int_equal(tokens_push(t, ids[i]), PC_OK);
}

/* prefix, context[begin, end) and tail as one sequence */
static inline struct Tokens join(const struct Prompt *p, int begin, int end)
{
    struct Tokens t = {0};
    append(&t, p->prefix.ids, p->prefix.n);
    append(&t, p->context.ids + begin, end - begin);
    append(&t, p->tail.ids, p->tail.n);
    return t;
}

/* ==== Runs ==== */

struct Run {
    struct Session s;
    struct Result r;
    float logits[VOCAB_MAX]; /* of the first answer row, where a test keeps them */
};

static inline void must(int status)
{
    if (status < 0) fail_msg("%s", err_text());
}

static inline void run_open_prompt(struct Run *run, struct Engine *e, struct Prompt p)
{
    memset(run, 0, sizeof *run);
    must(session_open(&run->s, e, &no_request, &p, &run->r));
}

static inline void run_open(struct Run *run, struct Engine *e, struct Input in)
{
    run_open_prompt(run, e, make_prompt(in));
}

static inline void run_close(struct Run *run)
{
    session_close(&run->s);
    result_free(&run->r);
    assert_int_equal(mem_guard_hits(), 0); /* the answer was made without allocating */
}

/* What a run gives: all of it comparable. */
struct Outcome {
    int n_chunks, n_ids, ids[ANSWER];
    uint64_t hash;
    bool kept[64];
    double score[64];
    float logits[VOCAB_MAX], last[VOCAB_MAX]; /* of the first answer row and of the last */
    int64_t kv_kept[64];
};

/* The question and the answer over a merged cache that is ready. */
static inline void finish(struct Run *run, struct Outcome *o)
{
    struct Session *s = &run->s;
    size_t row = sizeof(float) * (size_t)s->e->model.cfg.vocab_size;
    memset(o, 0, sizeof *o);
    assert_true(s->e->model.cfg.vocab_size <= VOCAB_MAX);
    must(question_pass(s));
    memcpy(o->logits, s->logits, row);
    must(decode_answer(s));
    memcpy(o->last, s->logits, row);
    o->n_ids = run->r.n_ids;
    memcpy(o->ids, run->r.ids, sizeof(int) * (size_t)o->n_ids);
    o->hash = run->r.logits_hash;
    o->n_chunks = s->plan.n_chunks;
    for (int i = 0; i < o->n_chunks && i < 64; i++) {
        o->kept[i] = run->r.chunks[i].kept;
        o->score[i] = run->r.chunks[i].score;
    }
    for (int h = 0; h < s->e->model.cfg.n_layers * s->e->model.cfg.n_kv_heads; h++)
        o->kv_kept[h] = run->r.kv_kept[h];
}

/* Where a fake of Backend.keep puts the tokens of a batch's i-th pair of sequence and head. */
static inline int *kept_at(const struct KeepArgs *k, int heads, int i)
{
    return k->keep + k->step * (size_t)(i / heads) + (size_t)k->stride * (size_t)(i % heads);
}

static inline struct Outcome outcome_of(struct Engine *e, struct Prompt p)
{
    struct Run run;
    struct Outcome o;
    run_open_prompt(&run, e, p);
    must(session_stages(&run.s, false));
    finish(&run, &o);
    run_close(&run);
    return o;
}

static inline struct Outcome outcome(struct Engine *e, struct Input in)
{
    return outcome_of(e, make_prompt(in));
}

static inline double distance(const float *a, const float *b, int n)
{
    double worst = 0;
    for (int i = 0; i < n; i++) worst = fmax(worst, fabs(a[i] - b[i]));
    return worst;
}

static inline void same_logits(const struct Engine *e, const float *a, const float *b,
                               const char *what)
{
    double off = distance(a, b, e->model.cfg.vocab_size);
    if (!(off <= logit_tolerance(e)))
        fail_msg("%s, %s: logits differ by %g", e->model.cfg.arch, what, off);
}

static inline void same_bits(const struct Outcome *a, const struct Outcome *b)
{
    assert_int_equal(a->n_chunks, b->n_chunks);
    assert_memory_equal(a->score, b->score, sizeof a->score);
    assert_memory_equal(a->kept, b->kept, sizeof a->kept);
    assert_memory_equal(a->logits, b->logits, sizeof a->logits);
    assert_memory_equal(a->last, b->last, sizeof a->last);
    assert_true(a->hash == b->hash);
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, sizeof a->ids);
}

/* ==== Plain forward pass ==== */

/* One causal pass over ids: logits of the last row, NLL of each token given those before, and the rotated
 * queries and keys of every layer for checks of attention mass. */
struct Forward {
    int n, heads, kv_heads, dim;
    float *nll, *logits;          /* [n], [vocab] */
    float *q[LAYERS], *k[LAYERS]; /* [n, heads * dim], [n, kv_heads * dim] */
};

static inline float *copy_of(const float *x, size_t n)
{
    float *c = malloc(sizeof *c * n);
    assert_non_null(c);
    return memcpy(c, x, sizeof *c * n);
}

static inline struct Forward forward(struct Engine *e, struct Tokens ids)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct Forward f = {
        .n = ids.n, .heads = m->n_heads, .kv_heads = m->n_kv_heads, .dim = m->head_dim};
    struct Transformer tf;
    int begin[2] = {0, ids.n}, *pos = calloc((size_t)ids.n, sizeof *pos), last = ids.n - 1;
    struct BatchShape shape = {.rows = ids.n, .seqs = 1, .keys = ids.n, .head_rows = 48};
    for (int i = 0; i < ids.n; i++) pos[i] = i;
    f.nll = calloc((size_t)ids.n, sizeof *f.nll);
    f.logits = calloc((size_t)m->vocab_size, sizeof *f.logits);
    must(tf_open(&tf, e->be, e->dev, &e->model, ids.n));
    must(e->be->reserve(e->dev, &shape));
    struct Batch b = {.tokens = ids.ids, .pos = pos, .seq_begin = begin, .n_seqs = 1};
    must(tf_begin(&tf, &b));
    for (int l = 0; l < m->n_layers; l++) {
        struct AttnArgs args;
        must(tf_attend(&tf, &b, l, 0, &args));
        f.q[l] = copy_of(args.q, (size_t)ids.n * m->n_heads * m->head_dim);
        f.k[l] = copy_of(args.k, (size_t)ids.n * m->n_kv_heads * m->head_dim);
        must(tf_ffn(&tf, l, ids.n));
    }
    must(e->be->nll(e->dev, tf.x, pos, ids.ids + 1, ids.n - 1, f.nll + 1));
    must(e->be->logits(e->dev, tf.x, &last, 1, f.logits));
    tf_close(&tf);
    free(pos);
    return f;
}

static inline void forward_free(struct Forward *f)
{
    free(f->nll);
    free(f->logits);
    for (int l = 0; l < LAYERS; l++) {
        free(f->q[l]);
        free(f->k[l]);
    }
}

/* The sum over the last rows of a forward pass and the heads of a group of the softmax on each token. */
static inline void brute_mass(const struct Forward *f, int layer, int kv_head, int rows,
                              double *mass)
{
    int group = f->heads / f->kv_heads;
    double *p = calloc((size_t)f->n, sizeof *p);
    for (int j = 0; j < f->n; j++) mass[j] = 0;
    for (int g = kv_head * group; g < (kv_head + 1) * group; g++)
        for (int r = f->n - rows; r < f->n; r++) {
            const float *q = f->q[layer] + ((size_t)r * f->heads + g) * f->dim;
            double top = -INFINITY, sum = 0;
            for (int j = 0; j <= r; j++) {
                const float *k = f->k[layer] + ((size_t)j * f->kv_heads + kv_head) * f->dim;
                p[j] = 0;
                for (int d = 0; d < f->dim; d++) p[j] += (double)q[d] * k[d];
                p[j] /= sqrt(f->dim);
                top = fmax(top, p[j]);
            }
            for (int j = 0; j <= r; j++) sum += p[j] = exp(p[j] - top);
            for (int j = 0; j <= r; j++) mass[j] += p[j] / sum;
        }
    free(p);
}

#endif

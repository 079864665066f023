/* test_session.c - the method's identities (method.md 9.4) and its promises about memory, determinism and
 * stopping, on seeded tiny models of every architecture.
 *
 * Prompts are token ids. Where two runs do the same sums in the same order, bits are compared; where only
 * the order differs, logits (of size 2 or so) are: f32 by 2e-4, int16 by what its steps allow.
 */
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

static double logit_tolerance(const struct Engine *e)
{
    return e->settings.precision == PRECISION_F32 ? 2e-4 : 0.1;
}

/* ==== Engines ==== */

static const struct Request no_request = {.context = NULL, .question = ""};

static struct Engine *open_engine(const char *arch, enum Precision precision, int threads)
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
    set.threads = threads;
    set.memory = (size_t)1 << 30;
    set.chunk = 128;
    set.kv_cap = CAP_OFF;
    set.max_tokens = ANSWER;
    if (tiny_gguf(path, &spec) < 0 || engine_open(path, &set, &e) < 0) fail_msg("%s", err_text());
    unlink(path);
    return e;
}

static const struct BatchShape least_shape = {1, 1, 1, 0, 1};

/* Bytes held with the device's scratch at its smallest: what runs leave behind shows against it. */
static size_t held_at_rest(struct Engine *e)
{
    assert_int_equal(e->be->reserve(e->dev, &least_shape), PC_OK);
    return mem_in_use();
}

/* What a run took at its peak: the engine's own bytes and the scratch that was given up do not count. */
static size_t taken(struct Engine *e, size_t peak, size_t at_rest)
{
    return peak - (at_rest - e->be->scratch_bytes(e->dev, &least_shape));
}

static void add_rule(struct Engine *e, struct CalibRule rule)
{
    e->settings.calib[e->settings.n_calib++] = rule;
}

/* Drops nothing, but makes the engine keep lists of what it kept. */
static const struct CalibRule idle_rule = {CLASS_SINK, 0, LAYERS - 1, 1, 1, 1, 1};

/* ==== Prompts ==== */

struct Input {
    int prefix, context, tail;
    uint64_t seed;
};

static const struct Input plain_input = {9, 600, 14, 1};

static uint32_t next_number(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static void push_random(struct Tokens *t, int n, uint64_t *state)
{
    for (int i = 0; i < n; i++)
        assert_int_equal(tokens_push(t, (int)(next_number(state) % IDS)), PC_OK);
}

static struct Prompt make_prompt(struct Input in)
{
    struct Prompt p = {0};
    uint64_t state = in.seed;
    push_random(&p.prefix, in.prefix, &state);
    push_random(&p.context, in.context, &state);
    push_random(&p.tail, in.tail, &state);
    return p;
}

static void append(struct Tokens *t, const int *ids, int n)
{
    for (int i = 0; i < n; i++) assert_int_equal(tokens_push(t, ids[i]), PC_OK);
}

/* prefix, context[begin, end) and tail as one sequence */
static struct Tokens join(const struct Prompt *p, int begin, int end)
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
};

static void must(int status)
{
    if (status < 0) fail_msg("%s", err_text());
}

static void run_open_prompt(struct Run *run, struct Engine *e, struct Prompt p)
{
    memset(run, 0, sizeof *run);
    must(session_open(&run->s, e, &no_request, &p, &run->r));
}

static void run_open(struct Run *run, struct Engine *e, struct Input in)
{
    run_open_prompt(run, e, make_prompt(in));
}

static void run_close(struct Run *run)
{
    session_close(&run->s);
    result_free(&run->r);
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
static void finish(struct Run *run, struct Outcome *o)
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

static struct Outcome outcome_of(struct Engine *e, struct Prompt p)
{
    struct Run run;
    struct Outcome o;
    run_open_prompt(&run, e, p);
    must(session_stages(&run.s, false));
    finish(&run, &o);
    run_close(&run);
    return o;
}

static struct Outcome outcome(struct Engine *e, struct Input in)
{
    return outcome_of(e, make_prompt(in));
}

static double distance(const float *a, const float *b, int n)
{
    double worst = 0;
    for (int i = 0; i < n; i++) worst = fmax(worst, fabs(a[i] - b[i]));
    return worst;
}

static void same_logits(const struct Engine *e, const float *a, const float *b, const char *what)
{
    double off = distance(a, b, e->model.cfg.vocab_size);
    if (!(off <= logit_tolerance(e)))
        fail_msg("%s, %s: logits differ by %g", e->model.cfg.arch, what, off);
}

static void same_bits(const struct Outcome *a, const struct Outcome *b)
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

static float *copy_of(const float *x, size_t n)
{
    float *c = malloc(sizeof *c * n);
    assert_non_null(c);
    return memcpy(c, x, sizeof *c * n);
}

static struct Forward forward(struct Engine *e, struct Tokens ids)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct Forward f = {
        .n = ids.n, .heads = m->n_heads, .kv_heads = m->n_kv_heads, .dim = m->head_dim};
    struct Transformer tf;
    int begin[2] = {0, ids.n}, *pos = calloc((size_t)ids.n, sizeof *pos), last = ids.n - 1;
    struct BatchShape shape = {ids.n, 1, ids.n, 0, 48};
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

static void forward_free(struct Forward *f)
{
    free(f->nll);
    free(f->logits);
    for (int l = 0; l < LAYERS; l++) {
        free(f->q[l]);
        free(f->k[l]);
    }
}

/* ==== 1. One chunk is plain attention ==== */

static void check_one_chunk(struct Engine *e)
{
    struct Prompt p = make_prompt(plain_input);
    struct Tokens all = join(&p, 0, p.context.n);
    struct Forward f = forward(e, all);
    e->settings.chunk = 700;
    struct Outcome one = outcome_of(e, p);
    e->settings.method = METHOD_FULL;
    struct Outcome full = outcome(e, plain_input);
    assert_int_equal(one.n_chunks, 1);
    assert_true(one.kept[0]);
    double nll = 0;
    for (int i = f.n - plain_input.tail; i < f.n; i++) nll += f.nll[i] / plain_input.tail;
    assert_true(fabs(one.score[0] - nll) <= logit_tolerance(e));
    same_logits(e, one.logits, f.logits, "one chunk against plain forward");
    same_logits(e, full.logits, f.logits, "full against plain forward");
    same_logits(e, one.logits, full.logits, "one chunk against full");
    assert_int_equal(one.n_ids, full.n_ids);
    if (e->settings.precision == PRECISION_F32)
        assert_memory_equal(one.ids, full.ids, sizeof one.ids);
    forward_free(&f);
    tokens_free(&all);
}

static void each_engine(void (*check)(struct Engine *e))
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

static void test_one_chunk(void **state)
{
    (void)state;
    each_engine(check_one_chunk);
}

/* Full attention past the trained window, in several segments, still is one causal pass. */
static void test_full_beyond_window(void **state)
{
    (void)state;
    struct Input in = {5, 2500, 20, 3};
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    e->settings.method = METHOD_FULL;
    struct Prompt p = make_prompt(in);
    struct Tokens all = join(&p, 0, p.context.n);
    struct Forward f = forward(e, all);
    struct Outcome full = outcome_of(e, p);
    same_logits(e, full.logits, f.logits, "full beyond the window");
    forward_free(&f);
    tokens_free(&all);
    engine_close(e);
}

/* ==== 2. The order of kept chunks ==== */

static void stage_one(struct Session *s)
{
    must(prefill_prefix(s));
    for (int c = 0; c < s->plan.n_chunks; c += s->plan.wave)
        must(prefill_wave(
            s, c, s->plan.n_chunks - c < s->plan.wave ? s->plan.n_chunks - c : s->plan.wave));
}

/* merge_kept, but the chunks in an order of our own. */
static void merge_in_order(struct Session *s, const int *order, int n)
{
    int longest = 0;
    must(kv_move(&s->merged, &s->prefix));
    for (int i = 0; i < n; i++) {
        struct Slot *slot = session_slot(s, order[i]);
        int len = s->chunks[order[i]].end - s->chunks[order[i]].begin;
        assert_non_null(slot);
        must(kv_move(&s->merged, &slot->table));
        if (len > longest) longest = len;
    }
    s->plan.question_pos = s->prompt.prefix.n + longest;
    must(s->e->be->reserve(s->e->dev, &s->answer_shape));
}

static void check_shuffled(struct Engine *e)
{
    static const int order[] = {3, 0, 4, 1, 2};
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = 90; /* partly filled pages */
    struct Outcome want = outcome(e, plain_input), have;
    struct Run run;
    run_open(&run, e, plain_input);
    assert_int_equal(run.s.plan.n_chunks, 5);
    stage_one(&run.s);
    merge_in_order(&run.s, order, 5);
    finish(&run, &have);
    run_close(&run);
    same_logits(e, have.logits, want.logits, "shuffled chunks");
    if (e->settings.precision == PRECISION_F32)
        assert_memory_equal(have.ids, want.ids, sizeof have.ids);
}

static void test_shuffled(void **state)
{
    (void)state;
    each_engine(check_shuffled);
}

/* ==== 3. Limits that bind nothing ==== */

static void check_idle_limits(struct Engine *e)
{
    struct Outcome off = outcome(e, plain_input), have;
    e->settings.kv_cap = 128;
    have = outcome(e, plain_input);
    same_bits(&off, &have);
    e->settings.kv_cap = 1000;
    have = outcome(e, plain_input);
    same_bits(&off, &have);
    e->settings.kv_cap = CAP_OFF;
    for (int stage = 1; stage <= 2; stage++) {
        e->settings.n_calib = 0;
        for (int c = CLASS_SINK; c <= CLASS_RECENT; c++)
            add_rule(e, (struct CalibRule){c, 0, LAYERS - 1, 1, 20, 2, stage});
        have = outcome(e, plain_input);
        same_bits(&off, &have);
    }
}

static void test_idle_limits(void **state)
{
    (void)state;
    each_engine(check_idle_limits);
}

/* ==== 4. Waves and threads ==== */

static void check_waves(struct Engine *e)
{
    /* questions of 49 and 97 tokens leave single rows over where logits are made in blocks of 48 */
    static const struct Input inputs[] = {
        {9, 400, 14, 1}, {0, 333, 1, 2}, {3, 300, 49, 5}, {70, 300, 97, 6}};
    static const int waves[] = {2, 3, AUTO};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        e->settings.chunk = 90;
        e->settings.kv_cap = i % 2 ? 30 : CAP_OFF;
        e->settings.wave = 1;
        struct Outcome want = outcome(e, inputs[i]);
        for (int w = 0; w < 3; w++) {
            e->settings.wave = waves[w];
            struct Outcome have = outcome(e, inputs[i]);
            same_bits(&want, &have);
        }
    }
}

static void test_waves(void **state)
{
    (void)state;
    each_engine(check_waves);
}

static void test_threads(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++)
        for (int precision = 0; precision < 2; precision++) {
            struct Outcome have[2];
            if (a > 0 && precision != a % 2) continue; /* two threads on a busy machine are slow */
            for (int t = 0; t < 2; t++) {
                struct Engine *e =
                    open_engine(archs[a], precision ? PRECISION_F32 : PRECISION_INT16, 1 + t);
                e->settings.max_tokens = 3;
                e->settings.kv_cap = 40;
                e->settings.keep = 3;
                add_rule(e, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0.01f, 10, 0, 1});
                add_rule(e, (struct CalibRule){CLASS_RECENT, 2, 2, 0.01f, 30, 0, 2});
                have[t] = outcome(e, plain_input);
                engine_close(e);
            }
            same_bits(&have[0], &have[1]);
        }
}

/* ==== 5. The shared prefix ==== */

/* The prefix's tokens at the head of a single chunk instead. */
static void check_prefix(struct Engine *e)
{
    e->settings.chunk = 700;
    struct Outcome shared = outcome(e, plain_input);
    struct Prompt p = make_prompt(plain_input), q = {0};
    append(&q.context, p.prefix.ids, p.prefix.n);
    append(&q.context, p.context.ids, p.context.n);
    append(&q.tail, p.tail.ids, p.tail.n);
    prompt_free(&p);
    struct Outcome inside = outcome_of(e, q);
    assert_true(fabs(inside.score[0] - shared.score[0]) <= logit_tolerance(e));
    same_logits(e, inside.logits, shared.logits, "shared prefix");
}

static void test_prefix(void **state)
{
    (void)state;
    each_engine(check_prefix);
}

/* Appends what the prefix's pages hold once more behind the merged cache. */
static void add_copy(struct Session *s, const struct HeadTable *prefix)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int dim = m->head_dim, width = m->n_kv_heads * dim, n = s->prompt.prefix.n;
    float *k = calloc((size_t)n * width, sizeof *k), *v = calloc((size_t)n * width, sizeof *v);
    for (int l = 0; l < m->n_layers; l++) {
        for (int h = 0; h < m->n_kv_heads; h++) {
            const struct PageRef *ref =
                prefix->refs + (size_t)(l * m->n_kv_heads + h) * prefix->stride;
            for (int i = 0; i < n; i++)
                must(s->e->be->kv_read(s->e->dev, &s->kv.pool, ref[i / PAGE_TOKENS],
                                       i % PAGE_TOKENS, k + i * width + h * dim,
                                       v + i * width + h * dim));
        }
        struct KvRows rows = {k, v, NULL, n};
        must(kv_append_all(&s->kv, &s->merged, l, &rows, &s->writes));
        must(kv_flush(&s->kv, &s->writes));
    }
    free(k);
    free(v);
}

static void check_prefix_copies(struct Engine *e)
{
    enum { COPIES = 3 };
    struct Outcome biased, copied, once = outcome(e, plain_input);
    struct Run run;
    e->settings.prefix_copies = COPIES;
    biased = outcome(e, plain_input);
    e->settings.prefix_copies = 1;
    e->settings.max_tokens = 200; /* room for the copies' pages */
    run_open(&run, e, plain_input);
    must(session_stages(&run.s, false));
    for (int i = 1; i < COPIES; i++) add_copy(&run.s, &run.s.merged); /* the prefix stands first */
    run.s.set.max_tokens = ANSWER;
    finish(&run, &copied);
    run_close(&run);
    same_logits(e, biased.logits, copied.logits, "copies of the prefix");
    if (e->settings.precision == PRECISION_F32) {
        assert_int_equal(biased.n_ids, copied.n_ids);
        assert_memory_equal(biased.ids, copied.ids, sizeof biased.ids);
        same_logits(e, biased.last, copied.last, "copies of the prefix, last token");
    }
    assert_true(distance(biased.logits, once.logits, e->model.cfg.vocab_size) >
                1e-3); /* it does something */
}

static void test_prefix_copies(void **state)
{
    (void)state;
    each_engine(check_prefix_copies);
}

/* ==== 6. Which chunks stay ==== */

static void check_chunks(struct Engine *e)
{
    struct Input in = {4, 700, 11, 8};
    struct Outcome all, some, back;
    struct Run run;
    e->settings.keep = 6;
    all = outcome(e, in);
    assert_int_equal(all.n_chunks, 6);
    for (int i = 0; i < 6; i++) assert_true(all.kept[i]);
    e->settings.keep = 100;
    some = outcome(e, in);
    same_bits(&all, &some);
    e->settings.keep = KEEP_ALL;
    some = outcome(e, in);
    same_bits(&all, &some);
    e->settings.keep = 2;
    some = outcome(e, in);
    assert_memory_equal(some.score, all.score, sizeof all.score);
    for (int i = 0, better; i < 6; i++) { /* the two of lowest score */
        better = 0;
        for (int j = 0; j < 6; j++)
            better += all.score[j] < all.score[i] || (all.score[j] == all.score[i] && j < i);
        assert_int_equal(some.kept[i], better < 2);
    }
    e->settings.wave = 1;
    run_open(&run, e, in);
    must(prefill_prefix(&run.s));
    for (int c = run.s.plan.n_chunks - 1; c >= 0; c--)
        must(prefill_wave(&run.s, c, 1)); /* last one first */
    must(merge_kept(&run.s));
    must(e->be->reserve(e->dev, &run.s.answer_shape));
    finish(&run, &back);
    run_close(&run);
    same_bits(&some, &back);
}

static void test_chunks(void **state)
{
    (void)state;
    each_engine(check_chunks);
}

/* A chunk's score is the question's mean NLL after prefix and chunk. */
static void test_scores(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen2", PRECISION_F32, 1);
    struct Outcome o = outcome(e, plain_input);
    struct Run run;
    run_open(&run, e, plain_input);
    for (int c = 0; c < o.n_chunks; c++) {
        struct Tokens ids = join(&run.s.prompt, run.s.chunks[c].begin, run.s.chunks[c].end);
        struct Forward f = forward(e, ids);
        double nll = 0;
        for (int i = f.n - plain_input.tail; i < f.n; i++) nll += f.nll[i] / plain_input.tail;
        assert_true(fabs(nll - o.score[c]) < 1e-5);
        forward_free(&f);
        tokens_free(&ids);
    }
    run_close(&run);
    engine_close(e);
}

/* ==== 9. Memory ==== */

struct Peak {
    size_t used, planned;
    int n_context, wave;
};

/* A run over n bytes of text, each a token or nearly so; memory over what the engine holds by itself. */
static struct Peak measure(struct Engine *e, int n)
{
    struct Result r;
    char *text = malloc((size_t)n);
    uint64_t state = 4;
    for (int i = 0; i < n; i++)
        text[i] = (char)(next_number(&state) % 12 ? 'A' + next_number(&state) % 26 : ' ');
    struct Request req = {.context = text, .context_len = (size_t)n, .question = "What is IT?"};
    size_t at_rest = held_at_rest(e);
    must(session_run(e, &req, &r));
    struct Peak p = {taken(e, r.peak_bytes, at_rest), r.plan.peak_bytes, r.plan.n_context,
                     r.plan.wave};
    assert_true(r.plan.n_chunks > 3);
    result_free(&r);
    assert_int_equal(held_at_rest(e), at_rest);
    free(text);
    return p;
}

/* Tables, the result and the text's room, which the plan leaves out, matter in a model of 300 KB only. */
enum { PLAN_SLACK = 48 << 10 };

static void check_memory(struct Engine *e)
{
    e->settings.kv_cap = 64;
    e->settings.wave = 2;
    /* lists of ids grow by doubling: both lengths fill theirs */
    struct Peak few = measure(e, 4000), many = measure(e, 32000);
    double planned = (double)(many.planned - few.planned) / (many.n_context - few.n_context);
    double used = ((double)many.used - (double)few.used) / (many.n_context - few.n_context);
    print_message(
        "# %s %s: %.2f bytes a context token, planned %.2f; peak of %d tokens %zu, planned %zu\n",
        e->model.cfg.arch, engine_device(e), used, planned, many.n_context, many.used,
        many.planned);
    assert_true(planned <= 16);
    assert_true(used <= 16);
    const struct Peak *peaks[] = {&few, &many};
    for (int i = 0; i < 2; i++) {
        double off = fabs((double)peaks[i]->used - (double)peaks[i]->planned);
        assert_true(off <= 0.02 * (double)peaks[i]->used + PLAN_SLACK);
    }
}

static void test_memory(void **state)
{
    (void)state;
    each_engine(check_memory);
}

/* Every part of the plan in turn is the largest one. */
static void test_plan_shapes(void **state)
{
    (void)state;
    static const struct {
        enum Method method;
        int keep, cap, wave, n_calib, max_tokens;
    } cases[] = {
        {METHOD_PARALLELCOMP, 1, CAP_OFF, 1, 0, 4},
        {METHOD_PARALLELCOMP, KEEP_ALL, CAP_OFF, 1, 0, 4},
        {METHOD_PARALLELCOMP, KEEP_ALL, 7, 4, 0, 4},
        {METHOD_PARALLELCOMP, 2, 50, 16, 1, 4},
        {METHOD_PARALLELCOMP, KEEP_ALL, CAP_OFF, 3, 1, 300},
        {METHOD_FULL, 1, CAP_OFF, 1, 0, 4},
        {METHOD_TRUNCATE, 1, CAP_OFF, 1, 0, 4},
    };
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    char text[9000];
    uint64_t rng = 4;
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('A' + next_number(&rng) % 26);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct Result r;
        struct PlanInfo plan;
        struct Request req = {.context = text, .context_len = sizeof text, .question = "Which?"};
        struct Settings *set = &e->settings;
        set->method = cases[c].method;
        set->keep = cases[c].keep;
        set->kv_cap = cases[c].cap;
        set->wave = cases[c].wave;
        set->max_tokens = cases[c].max_tokens;
        set->n_calib = 0;
        if (cases[c].n_calib) add_rule(e, (struct CalibRule){CLASS_SINK, 0, 2, 0.5f, 10, 1, 2});
        size_t at_rest = held_at_rest(e);
        must(session_plan(e, &req, &plan));
        assert_int_equal(held_at_rest(e), at_rest);
        must(session_run(e, &req, &r));
        double used = (double)taken(e, r.peak_bytes, at_rest),
               off = fabs(used - (double)plan.peak_bytes);
        print_message("# case %zu: peak %.0f, planned %zu\n", c, used, plan.peak_bytes);
        assert_int_equal(plan.peak_bytes, r.plan.peak_bytes);
        assert_true(off <= 0.02 * used + PLAN_SLACK);
        result_free(&r);
    }
    engine_close(e);
}

/* A plan that does not fit is refused with numbers, and a wave shrinks to fit. */
static void test_plan_limits(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Run run;
    size_t at_rest = held_at_rest(e);
    struct Prompt p = make_prompt((struct Input){9, 4000, 14, 1});
    e->settings.memory = 1 << 20;
    memset(&run, 0, sizeof run);
    int status = session_open(&run.s, e, &no_request, &p, &run.r);
    assert_in_range(run.s.plan.wave, 1, 13); /* 2048 rows of 142 otherwise */
    if (status == PC_OK) {                   /* then it must hold its word */
        assert_true(run.s.plan.peak_bytes <= (size_t)1 << 20);
    } else {
        assert_int_equal(status, PC_ENOMEM);
        assert_non_null(strstr(err_text(), "--kv-cap"));
    }
    prompt_free(&p);
    run_close(&run);
    e->settings.memory = 10000;
    p = make_prompt(plain_input);
    memset(&run, 0, sizeof run);
    assert_int_equal(session_open(&run.s, e, &no_request, &p, &run.r), PC_ENOMEM);
    run_close(&run);
    assert_int_equal(held_at_rest(e), at_rest);
    engine_close(e);
}

/* ==== Determinism, sampling, stopping ==== */

static void test_determinism(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_INT16, a == 0 ? 2 : 1);
        e->settings.max_tokens = 3;
        e->settings.kv_cap = 50;
        struct Outcome first = outcome(e, plain_input), again = outcome(e, plain_input);
        same_bits(&first, &again);
        outcome(e, (struct Input){3, 777, 33, 9}); /* something else in between */
        again = outcome(e, plain_input);
        same_bits(&first, &again);
        engine_close(e);
    }
}

static void test_sampling(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    e->settings.temperature = 1.5f;
    e->settings.top_p = 0.95f;
    e->settings.seed = 7;
    struct Outcome first = outcome(e, plain_input), again = outcome(e, plain_input);
    same_bits(&first, &again);
    e->settings.seed = 8;
    struct Outcome other = outcome(e, plain_input);
    assert_true(first.hash == other.hash);
    assert_true(first.n_ids != other.n_ids || memcmp(first.ids, other.ids, sizeof first.ids) != 0);
    engine_close(e);
}

struct Stopper {
    int asked, stop_at;
    enum Stage seen;
    int last_asked; /* calls after the one that said stop */
};

static bool stop_now(void *user)
{
    struct Stopper *s = user;
    if (s->asked >= s->stop_at) s->last_asked++;
    return s->asked++ >= s->stop_at;
}

static void note_stage(void *user, const struct Progress *p)
{
    ((struct Stopper *)user)->seen = p->stage;
}

static void test_stop(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    static const char text[] =
        "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals.";
    char *context = calloc(1, 40 * sizeof text);
    for (int i = 0; i < 40; i++) strcat(context, text);
    size_t at_rest = held_at_rest(e);
    int n = 0, stages[STAGE_DONE + 1] = {0};
    for (;; n++) {
        struct Stopper stop = {.stop_at = n};
        struct Result r;
        struct Request req = {.context = context,
                              .context_len = strlen(context),
                              .question = "How was the night?",
                              .user = &stop,
                              .stop = stop_now,
                              .on_progress = note_stage};
        e->settings.max_tokens = 5;
        e->settings.wave = 4;
        int status = session_run(e, &req, &r);
        if (status == PC_EINTR) {
            assert_int_equal(stop.last_asked, 1); /* nobody went on after the answer was stop */
            assert_int_equal(r.plan.n_context > 0, 1);
            stages[stop.seen]++;
        }
        result_free(&r);
        assert_int_equal(held_at_rest(e), at_rest);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_EINTR);
    }
    assert_true(n > 2 * LAYERS);
    free(context);
    engine_close(e);
}

/* Nothing is allocated while the answer is made; every run here has passed that loop. */
static void test_decode_allocates_nothing(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen3", PRECISION_INT16, 1);
    e->settings.max_tokens = 150;
    e->settings.temperature = 1;
    static const char text[] =
        "All happy families are alike; each unhappy family is unhappy in its own way. ";
    char context[20 * sizeof text] = "";
    for (int i = 0; i < 20; i++) strcat(context, text);
    struct Request req = {.context = context, .context_len = strlen(context), .question = "Which?"};
    struct Result r;
    must(session_run(e, &req, &r));
    assert_true(r.n_ids > 0);
    assert_int_equal(r.plan.n_chunks > 1, 1);
    /* chunks tile the text, and the answer's text is that of its ids */
    for (int i = 0; i < r.plan.n_chunks; i++) {
        assert_int_equal(r.chunks[i].byte_begin, i ? r.chunks[i - 1].byte_end : 0);
        assert_int_equal(r.chunks[i].begin, i ? r.chunks[i - 1].end : 0);
    }
    assert_int_equal(r.chunks[r.plan.n_chunks - 1].byte_end, strlen(context));
    assert_int_equal(utf8_invalid_at(r.text.data, r.text.len), r.text.len);
    assert_int_equal(mem_guard_hits(), 0);
    result_free(&r);
    engine_close(e);
}

/* ==== Importance: which tokens stay ==== */

/* The sum over the last rows of a forward pass and the heads of a group of the softmax on each token. */
static void brute_mass(const struct Forward *f, int layer, int kv_head, int rows, double *mass)
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

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The forward pass of chunk c as stage 1 sees it. */
static struct Forward forward_chunk(struct Run *run, int c)
{
    struct Session *s = &run->s;
    struct Tokens ids = join(&s->prompt, s->chunks[c].begin, s->chunks[c].end);
    struct Forward f = forward(s->e, ids);
    tokens_free(&ids);
    must(s->e->be->reserve(s->e->dev, &s->answer_shape));
    return f;
}

/* Of one head: the tokens kept are those whose pooled importance is at least the cap-th highest. */
static void check_kept(struct Run *run, const struct Forward *f, int c, int layer, int kv_head)
{
    struct Session *s = &run->s;
    int n = s->chunks[c].end - s->chunks[c].begin, p = s->prompt.prefix.n, q = s->prompt.tail.n,
        reach = s->set.pool / 2;
    int rows = s->set.obs_rows < q ? s->set.obs_rows : q, head = layer * f->kv_heads + kv_head;
    double *mass = calloc((size_t)f->n, sizeof *mass), *pooled = calloc((size_t)n, sizeof *pooled),
           *sorted = calloc((size_t)n, sizeof *sorted);
    brute_mass(f, layer, kv_head, rows, mass);
    for (int j = 0; j < n; j++) {
        for (int i = j - reach; i <= j + reach; i++)
            if (i >= 0 && i < n) pooled[j] = fmax(pooled[j], mass[p + i]);
        sorted[j] = pooled[j];
    }
    qsort(sorted, (size_t)n, sizeof *sorted, compare_doubles);
    const struct Slot *slot = session_slot(s, c);
    int want = n < s->cap ? n : s->cap;
    double least = sorted[n - want];
    assert_non_null(slot);
    assert_int_equal(slot->kept[head], want);
    uint8_t *in = calloc((size_t)n, 1);
    for (int i = 0; i < want; i++) {
        int j = slot->index[(size_t)head * s->cap + i];
        assert_in_range(j, i ? slot->index[(size_t)head * s->cap + i - 1] + 1 : 0, n - 1);
        in[j] = 1;
        if (!(pooled[j] >= least * (1 - 1e-4)))
            fail_msg("chunk %d layer %d head %d: token %d of importance %g stays, %g is the least",
                     c, layer, kv_head, j, pooled[j], least);
    }
    for (int j = 0; j < n; j++)
        if (!in[j] && !(pooled[j] <= least * (1 + 1e-4)))
            fail_msg("chunk %d layer %d head %d: token %d of importance %g goes, %g stays", c,
                     layer, kv_head, j, pooled[j], least);
    free(mass);
    free(pooled);
    free(sorted);
    free(in);
}

static void check_counts(const struct Run *run)
{
    const struct Session *s = &run->s;
    for (int h = 0; h < s->merged.n_heads; h++) {
        int64_t in = 0, kept = 0;
        for (int i = 0; i < s->n_slots; i++) {
            const struct Slot *slot = &s->slots[i];
            if (slot->chunk < 0) continue;
            in += s->chunks[slot->chunk].end - s->chunks[slot->chunk].begin;
            kept += slot->kept[h];
        }
        assert_int_equal(run->r.kv_in[h], in);
        assert_int_equal(run->r.kv_kept[h], kept);
    }
}

/* Tokens of the merged cache: the prefix, what the chunks kept, and what came after. */
static void check_merged(const struct Run *run, int after)
{
    for (int h = 0; h < run->s.merged.n_heads; h++)
        assert_int_equal(run->s.merged.n_tokens[h],
                         run->s.prompt.prefix.n + run->r.kv_kept[h] + after);
}

static void test_kv_cap(void **state)
{
    (void)state;
    static const struct {
        int tail, obs_rows, pool, cap;
    } cases[] = {{14, 8, 7, 40}, {14, 3, 1, 17}, {5, 8, 7, 40}, {1, 8, 3, 64}, {70, 60, 31, 100}};
    for (int a = 0; a < N_ARCHS; a++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
            struct Run run;
            e->settings.keep = 3;
            e->settings.obs_rows = cases[i].obs_rows;
            e->settings.pool = cases[i].pool;
            e->settings.kv_cap = cases[i].cap;
            run_open(&run, e, (struct Input){9, 600, cases[i].tail, 1});
            must(session_stages(&run.s, false));
            check_counts(&run);
            check_merged(&run, 0);
            for (int c = 0; c < run.s.plan.n_chunks; c++) {
                if (!session_slot(&run.s, c)) continue;
                struct Forward f = forward_chunk(&run, c);
                for (int l = 0; l < LAYERS; l++)
                    for (int h = 0; h < f.kv_heads; h++) check_kept(&run, &f, c, l, h);
                forward_free(&f);
            }
            run_close(&run);
            engine_close(e);
        }
}

/* ==== Calibration ==== */

/* lambda 0 drops a class as a whole, in its layers only, prefix and question never. */
static void check_whole_class(struct Engine *e, int stage)
{
    for (int c = CLASS_SINK; c <= CLASS_RECENT; c++) {
        struct Run run;
        struct Outcome o;
        int region = 20;
        e->settings.n_calib = 0;
        e->settings.keep = 2;
        add_rule(e, (struct CalibRule){c, 1, 1, 0, region, 2, stage});
        run_open(&run, e, plain_input);
        must(session_stages(&run.s, false));
        finish(&run, &o);
        check_counts(&run);
        check_merged(&run, plain_input.tail + (o.n_ids < ANSWER ? o.n_ids : ANSWER - 1));
        for (int i = 0; i < run.s.n_slots; i++) {
            const struct Slot *slot = &run.s.slots[i];
            if (slot->chunk < 0) continue;
            int n = run.s.chunks[slot->chunk].end - run.s.chunks[slot->chunk].begin;
            for (int h = 0; h < run.s.merged.n_heads; h++) {
                int kept = 0, layer = h / e->model.cfg.n_kv_heads;
                const int *index = slot->index + (size_t)h * run.s.cap;
                for (int j = 0; j < n; j++) {
                    if (layer == 1 && (int)calib_class(j, n, region) == c) continue;
                    assert_int_equal(index[kept++], j);
                }
                assert_int_equal(slot->kept[h], kept);
            }
        }
        run_close(&run);
    }
}

static void test_calibration_whole_class(void **state)
{
    (void)state;
    for (int stage = 1; stage <= 2; stage++)
        for (int a = 0; a < N_ARCHS; a++) {
            struct Engine *e = open_engine(archs[a], a == 1 ? PRECISION_INT16 : PRECISION_F32, 1);
            check_whole_class(e, stage);
            engine_close(e);
        }
}

/* A threshold in the widest gap near the middle of what a class holds, so that rounding decides nothing. */
static double middle_gap(double *x, int n)
{
    int best = n / 2;
    qsort(x, (size_t)n, sizeof *x, compare_doubles);
    for (int i = n / 4; i + 1 < n * 3 / 4; i++)
        if (x[i + 1] / x[i] > x[best + 1] / x[best]) best = i;
    return sqrt(x[best] * x[best + 1]);
}

enum { HEADS_MAX = 16, CHUNK_MAX = 700 };

/* Stage-1 rule at one layer against attention of a forward pass; rule.lambda is chosen here. */
static void check_stage_one(struct Engine *e, struct Input in, struct CalibRule rule, int cap)
{
    struct Run run;
    static double mean[4][HEADS_MAX][CHUNK_MAX], pool[4 * HEADS_MAX * CHUNK_MAX];
    int n_pool = 0, rows = rule.rows == 0 || rule.rows > in.tail ? in.tail : rule.rows,
        layer = rule.layer_lo;
    int kv_heads = e->model.cfg.n_kv_heads, group = e->model.cfg.n_heads / kv_heads;
    e->settings.n_calib = 0;
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = CAP_OFF;
    add_rule(e, idle_rule);
    run_open(&run, e, in);
    int n_chunks = run.s.plan.n_chunks;
    assert_in_range(n_chunks, 1, 4);
    for (int c = 0; c < n_chunks; c++) {
        struct Forward f = forward_chunk(&run, c);
        double mass[CHUNK_MAX];
        int n = run.s.chunks[c].end - run.s.chunks[c].begin;
        assert_true(f.n <= CHUNK_MAX);
        for (int h = 0; h < kv_heads; h++) {
            brute_mass(&f, layer, h, rows, mass);
            for (int j = 0; j < n; j++) {
                mean[c][h][j] = mass[in.prefix + j] / (rows * group);
                if (calib_class(j, n, rule.region) == rule.token_class)
                    pool[n_pool++] = mean[c][h][j];
            }
        }
        forward_free(&f);
    }
    run_close(&run);
    rule.lambda = (float)middle_gap(pool, n_pool);
    e->settings.n_calib = 0;
    e->settings.kv_cap = cap;
    add_rule(e, rule);
    run_open(&run, e, in);
    must(session_stages(&run.s, false));
    check_counts(&run);
    check_merged(&run, 0);
    int dropped = 0, stay = 0;
    for (int c = 0; c < n_chunks; c++)
        for (int h = 0; h < kv_heads; h++) {
            const struct Slot *slot = session_slot(&run.s, c);
            int head = layer * kv_heads + h, kept = 0,
                n = run.s.chunks[c].end - run.s.chunks[c].begin;
            const int *index = slot->index + (size_t)head * run.s.cap;
            for (int j = 0; j < n; j++) {
                bool drop = calib_class(j, n, rule.region) == rule.token_class &&
                            mean[c][h][j] > rule.lambda;
                dropped += drop;
                stay += !drop;
                if (cap == CAP_OFF && !drop) assert_int_equal(index[kept++], j);
                for (int i = 0; cap != CAP_OFF && drop && i < slot->kept[head]; i++)
                    assert_int_not_equal(index[i], j);
                if (cap != CAP_OFF && !drop) kept++;
            }
            assert_int_equal(slot->kept[head], cap != CAP_OFF && kept > cap ? cap : kept);
        }
    assert_true(dropped > n_pool / 8 && stay > 0);
    run_close(&run);
}

static void test_calibration_stage_one(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        struct Input in = {9, 400, 14, 1}, brief = {9, 400, 3, 2};
        check_stage_one(e, in, (struct CalibRule){CLASS_SINK, 0, 0, 0, 40, 1, 1}, CAP_OFF);
        check_stage_one(e, in, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 4, 1}, CAP_OFF);
        check_stage_one(e, in, (struct CalibRule){CLASS_RECENT, 2, 2, 0, 50, 0, 1}, CAP_OFF);
        check_stage_one(e, in, (struct CalibRule){CLASS_MIDDLE, 2, 2, 0, 10, 0, 1}, 70);
        check_stage_one(e, brief, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 16, 1},
                        CAP_OFF); /* more rows than there are */
        engine_close(e);
    }
}

/* ---- Stage 2 ---- */

/* The softmax of question rows over a head's merged tokens and the question itself: the sums over the last rows
 * and the group, for the merged tokens. */
static void merged_mass(struct Session *s, const struct AttnArgs *args, int layer, int kv_head,
                        int rows, double *mass)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int head = layer * m->n_kv_heads + kv_head, past = s->merged.n_tokens[head],
        q_rows = s->prompt.tail.n, dim = m->head_dim;
    int group = m->n_heads / m->n_kv_heads, n = past + q_rows, at = 0;
    float *keys = calloc((size_t)n * dim, sizeof *keys), *v = calloc((size_t)dim, sizeof *v);
    double *p = calloc((size_t)n, sizeof *p);
    for (int i = 0; i < s->merged.n_refs[head]; i++) {
        struct PageRef ref = s->merged.refs[(size_t)head * s->merged.stride + i];
        for (int t = 0; t < (int)ref.len; t++, at++)
            must(s->e->be->kv_read(s->e->dev, &s->kv.pool, ref, t, keys + at * dim, v));
    }
    for (int i = 0; i < q_rows; i++)
        memcpy(keys + (past + i) * dim, args->k + ((size_t)i * m->n_kv_heads + kv_head) * dim,
               sizeof *keys * (size_t)dim);
    for (int j = 0; j < past; j++) mass[j] = 0;
    for (int g = kv_head * group; g < (kv_head + 1) * group; g++)
        for (int r = q_rows - rows; r < q_rows; r++) {
            const float *q = args->q + ((size_t)r * m->n_heads + g) * dim;
            double top = -INFINITY, sum = 0;
            for (int j = 0; j <= past + r; j++) {
                p[j] = j < args->n_biased ? args->bias * sqrt(dim) : 0;
                for (int d = 0; d < dim; d++) p[j] += (double)q[d] * keys[j * dim + d];
                p[j] /= sqrt(dim);
                top = fmax(top, p[j]);
            }
            for (int j = 0; j <= past + r; j++) sum += p[j] = exp(p[j] - top);
            for (int j = 0; j < past; j++) mass[j] += p[j] / sum;
        }
    free(keys);
    free(v);
    free(p);
}

/* The question's pass by hand; what each layer's rows look at goes to look(). */
static void question_by_hand(struct Session *s,
                             void (*look)(struct Session *s, const struct AttnArgs *args, int layer,
                                          void *user),
                             void *user)
{
    int q = s->prompt.tail.n, begin[2] = {0, q}, *pos = calloc((size_t)q, sizeof *pos);
    for (int i = 0; i < q; i++) pos[i] = s->plan.question_pos + i;
    struct Batch b = {.tokens = s->prompt.tail.ids,
                      .pos = pos,
                      .seq_begin = begin,
                      .n_seqs = 1,
                      .pool = &s->kv.pool,
                      .past = &s->merged};
    if (s->set.prefix_copies > 1) {
        b.n_biased = s->prompt.prefix.n;
        b.bias = logf((float)s->set.prefix_copies);
    }
    must(tf_begin(&s->tf, &b));
    for (int l = 0; l < LAYERS; l++) {
        struct AttnArgs args;
        must(tf_attend(&s->tf, &b, l, 0, &args));
        look(s, &args, l, user);
        struct KvRows rows = {s->tf.k, s->tf.v, NULL, q};
        must(kv_append_all(&s->kv, &s->merged, l, &rows, &s->writes));
        must(kv_flush(&s->kv, &s->writes));
        must(tf_ffn(&s->tf, l, q));
    }
    free(pos);
}

struct Look {
    struct CalibRule rule;
    double mean[HEADS_MAX]
               [4 * CHUNK_MAX]; /* of the merged tokens at the rule's layer, prefix first */
    double pool[HEADS_MAX * 4 * CHUNK_MAX];
    int n_pool;
};

static void note_means(struct Session *s, const struct AttnArgs *args, int layer, void *user)
{
    struct Look *look = user;
    const struct ModelConfig *m = &s->e->model.cfg;
    int q = s->prompt.tail.n,
        rows = look->rule.rows == 0 || look->rule.rows > q ? q : look->rule.rows;
    if (layer != look->rule.layer_lo) return;
    for (int h = 0; h < m->n_kv_heads; h++) {
        int head = layer * m->n_kv_heads + h, at = s->prompt.prefix.n;
        assert_true(s->merged.n_tokens[head] <= 4 * CHUNK_MAX);
        merged_mass(s, args, layer, h, rows, look->mean[h]);
        for (int j = 0; j < s->merged.n_tokens[head]; j++)
            look->mean[h][j] /= rows * (m->n_heads / m->n_kv_heads);
        for (int c = 0; c < s->plan.n_chunks; c++) {
            const struct Slot *slot = session_slot(s, c);
            if (!slot) continue;
            int n = s->chunks[c].end - s->chunks[c].begin;
            for (int j = 0; j < slot->kept[head]; j++, at++)
                if (calib_class(slot->index[(size_t)head * s->cap + j], n, look->rule.region) ==
                    look->rule.token_class)
                    look->pool[look->n_pool++] = look->mean[h][at];
        }
    }
}

/* The flags that the rule sets on one head's merged tokens, from `by_hand`, where nothing was dropped. */
static int want_flags(const struct Run *by_hand, const struct Look *look, int h, uint8_t *keep)
{
    struct Session *s = (struct Session *)&by_hand->s;
    int head = look->rule.layer_lo * s->e->model.cfg.n_kv_heads + h, at = s->prompt.prefix.n,
        dropped = 0;
    memset(keep, 1, 4 * CHUNK_MAX);
    for (int c = 0; c < s->plan.n_chunks; c++) {
        const struct Slot *slot = session_slot(s, c);
        if (!slot) continue;
        int n = s->chunks[c].end - s->chunks[c].begin;
        for (int j = 0; j < slot->kept[head]; j++, at++) {
            if (calib_class(slot->index[(size_t)head * s->cap + j], n, look->rule.region) !=
                look->rule.token_class)
                continue;
            keep[at] = !(look->mean[h][at] > look->rule.lambda);
            dropped += !keep[at];
        }
    }
    return dropped;
}

/* What is left of each chunk in a head, in both runs. */
static void compare_slots(const struct Run *by_rule, const struct Run *by_hand, int head,
                          const uint8_t *keep)
{
    int at = by_hand->s.prompt.prefix.n;
    for (int c = 0; c < by_hand->s.plan.n_chunks; c++) {
        const struct Slot *have = session_slot((struct Session *)&by_rule->s, c),
                          *old = session_slot((struct Session *)&by_hand->s, c);
        assert_int_equal(have != NULL, old != NULL);
        if (!have) continue;
        int kept = 0;
        size_t first = (size_t)head * by_hand->s.cap;
        for (int j = 0; j < old->kept[head]; j++, at++)
            if (keep[at]) assert_int_equal(have->index[first + kept++], old->index[first + j]);
        assert_int_equal(have->kept[head], kept);
    }
}

/* Two runs of the same request: one with the rule, one without whose merged cache is cut by hand afterwards. The
 * answer must come out the same to the bit, whatever lengths the heads have. */
static void check_stage_two(struct Engine *e, struct CalibRule rule, int cap)
{
    struct Run hand, by_rule;
    struct Outcome o;
    struct Look *look = calloc(1, sizeof *look);
    static uint8_t keep[4 * CHUNK_MAX];
    int kv_heads = e->model.cfg.n_kv_heads, dropped = 0, last = plain_input.tail - 1;
    look->rule = rule;
    e->settings.n_calib = 0;
    e->settings.keep = 3;
    e->settings.kv_cap = cap;
    add_rule(e, idle_rule);
    run_open(&hand, e, plain_input);
    must(session_stages(&hand.s, false));
    question_by_hand(&hand.s, note_means, look);
    must(e->be->logits(e->dev, hand.s.tf.x, &last, 1, hand.s.logits));
    look->rule.lambda = (float)middle_gap(look->pool, look->n_pool);

    e->settings.n_calib = 0;
    add_rule(e, look->rule);
    run_open(&by_rule, e, plain_input);
    must(session_stages(&by_rule.s, false));
    must(question_pass(&by_rule.s));
    assert_memory_equal(by_rule.s.logits, hand.s.logits,
                        sizeof(float) * (size_t)e->model.cfg.vocab_size);
    check_counts(&by_rule);
    check_merged(&by_rule, plain_input.tail);
    for (int h = 0; h < kv_heads; h++) {
        int head = rule.layer_lo * kv_heads + h;
        dropped += want_flags(&hand, look, h, keep);
        compare_slots(&by_rule, &hand, head, keep);
        must(kv_filter(&hand.s.kv, &hand.s.merged, rule.layer_lo, h, keep));
    }
    assert_true(dropped > look->n_pool / 8);
    memcpy(by_rule.s.logits, hand.s.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    /* the device's scratch is the last session's, of the same shape */
    must(decode_answer(&by_rule.s));
    must(decode_answer(&hand.s));
    assert_int_equal(by_rule.r.n_ids, hand.r.n_ids);
    assert_memory_equal(by_rule.r.ids, hand.r.ids, sizeof(int) * (size_t)hand.r.n_ids);
    same_logits(e, by_rule.s.logits, hand.s.logits, "decoding over what a rule left");
    run_close(&by_rule);
    run_close(&hand);
    e->settings.n_calib = 0;
    add_rule(e, look->rule);
    o = outcome(e, plain_input);
    assert_true(o.n_ids > 0);
    free(look);
}

static void test_calibration_stage_two(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        check_stage_two(e, (struct CalibRule){CLASS_SINK, 0, 0, 0, 40, 1, 2}, CAP_OFF);
        check_stage_two(e, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 4, 2}, CAP_OFF);
        check_stage_two(e, (struct CalibRule){CLASS_RECENT, 2, 2, 0, 50, 0, 2}, 80);
        e->settings.prefix_copies = 4;
        check_stage_two(e, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 100, 2}, 60);
        engine_close(e);
    }
}

/* Rules of stage 2 have nothing to act on without chunks. */
static void test_calibration_without_chunks(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Input in = {9, 3000, 14, 1};
    e->settings.method = METHOD_FULL;
    struct Outcome want = outcome(e, in);
    add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 2, 0, 10, 0, 2});
    add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 2, 0, 10, 0, 1});
    struct Outcome have = outcome(e, in);
    same_bits(&want, &have);
    struct Run run;
    run_open(&run, e, in);
    assert_null(run.s.mass); /* nobody asks, and the device has no room for it */
    run_close(&run);
    engine_close(e);
}

/* ==== Decoding over ragged heads ==== */

/* The answer token by token (one row over pages) against one pass over question and answer together (many rows
 * over packed keys), on the same merged cache. */
static void check_decode(struct Engine *e, struct Input in)
{
    struct Run slow, fast;
    struct Outcome want;
    for (;; in.seed++) { /* until an answer is long enough to tell */
        run_open(&slow, e, in);
        must(session_stages(&slow.s, false));
        finish(&slow, &want);
        if (want.n_ids > 3) break;
        run_close(&slow);
    }
    int n = want.n_ids;
    if (slow.r.stopped_at_eos) n++; /* the last logits are those that gave the end */
    run_open(&fast, e, in);
    must(session_stages(&fast.s, false));
    append(&fast.s.prompt.tail, want.ids, n - 1);
    struct BatchShape shape = fast.s.answer_shape;
    shape.rows += n;
    shape.keys += n;
    assert_true(fast.s.prompt.tail.n <= fast.s.batch_rows);
    must(e->be->reserve(e->dev, &shape));
    must(question_pass(&fast.s));
    same_logits(e, want.last, fast.s.logits, "decoding against one pass");
    run_close(&fast);
    run_close(&slow);
}

static void check_ragged(struct Engine *e)
{
    struct Settings *set = &e->settings;
    set->keep = 4;
    check_decode(e, plain_input);
    set->prefix_copies = 5;
    check_decode(e, plain_input);
    add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 2, 0.004f, 10, 0,
                                   1}); /* heads of differing lengths */
    check_decode(e, plain_input);
    set->kv_cap = 70;
    check_decode(e, plain_input);
    set->method = METHOD_FULL;
    check_decode(e, (struct Input){5, 1300, 14, 1});
}

/* Far more pages than the tokens would fill. */
static void test_many_pages(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, 1);
    struct Settings *set = &e->settings;
    set->keep = KEEP_ALL;
    set->chunk = 16;
    set->kv_cap = 1;
    check_decode(e, (struct Input){0, 2500, 14, 1});
    set->kv_cap = 5;
    check_decode(e, (struct Input){70, 2500, 14, 1});
    set->chunk = 70;
    set->kv_cap = 65;
    check_decode(e, (struct Input){5, 5000, 14, 1});
    engine_close(e);
}

static void test_ragged(void **state)
{
    (void)state;
    each_engine(check_ragged);
}

/* ==== Middle truncation ==== */

static void check_truncate(struct Engine *e)
{
    struct Input in = {9, 3001, 14, 1};
    struct Prompt p = make_prompt(in), cut = make_prompt(in);
    struct Run run;
    struct Outcome have, want;
    int room = TRAIN_LEN - in.prefix - in.tail - ANSWER, head = room - room / 2;
    p.context_offset = mem_alloc((size_t)p.context.n + 1, sizeof *p.context_offset);
    for (int i = 0; i <= p.context.n; i++) p.context_offset[i] = (size_t)i * 3;
    memmove(cut.context.ids + head, cut.context.ids + in.context - room / 2,
            sizeof(int) * (size_t)(room / 2));
    cut.context.n = room;
    e->settings.method = METHOD_TRUNCATE;
    run_open_prompt(&run, e, p);
    assert_int_equal(run.s.plan.n_truncated, in.context - room);
    assert_int_equal(run.s.plan.n_context, in.context);
    assert_int_equal(run.s.prompt.context.n, room);
    assert_memory_equal(run.s.prompt.context.ids, cut.context.ids, sizeof(int) * (size_t)room);
    assert_int_equal(run.s.prompt.context_offset[head - 1], (head - 1) * 3);
    assert_int_equal(run.s.prompt.context_offset[head], (in.context - room / 2) * 3);
    assert_int_equal(run.s.prompt.context_offset[room], in.context * 3);
    must(session_stages(&run.s, false));
    finish(&run, &have);
    assert_int_equal(run.s.plan.question_pos, in.prefix + room);
    run_close(&run);
    e->settings.method = METHOD_FULL;
    want = outcome_of(e, cut);
    same_bits(&want, &have);
    /* what fits is left alone */
    e->settings.method = METHOD_TRUNCATE;
    have = outcome(e, plain_input);
    e->settings.method = METHOD_FULL;
    want = outcome(e, plain_input);
    same_bits(&want, &have);
}

static void test_truncate(void **state)
{
    (void)state;
    each_engine(check_truncate);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_chunk),
        cmocka_unit_test(test_full_beyond_window),
        cmocka_unit_test(test_shuffled),
        cmocka_unit_test(test_idle_limits),
        cmocka_unit_test(test_waves),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_prefix_copies),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_plan_shapes),
        cmocka_unit_test(test_plan_limits),
        cmocka_unit_test(test_determinism),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_decode_allocates_nothing),
        cmocka_unit_test(test_kv_cap),
        cmocka_unit_test(test_calibration_whole_class),
        cmocka_unit_test(test_calibration_stage_one),
        cmocka_unit_test(test_calibration_stage_two),
        cmocka_unit_test(test_calibration_without_chunks),
        cmocka_unit_test(test_ragged),
        cmocka_unit_test(test_many_pages),
        cmocka_unit_test(test_truncate),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL) != 0;
}

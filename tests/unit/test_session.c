/* test_session.c - the method's identities (method.md 9.4), decoding and truncation, on seeded tiny models of every
 * architecture. Eviction is in test_session_evict.c; memory, determinism and stopping in test_session_memory.c.
 *
 * Prompts are token ids. Where two runs do the same sums in the same order, bits are compared; where only
 * the order differs, logits (of size 2 or so) are: f32 by 2e-4, int16 by what its steps allow.
 */
#include "tests/unit/session_support.h"

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
        struct KvRows rows = {k, v, 0, NULL, n};
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
    set->chunk_bias = 40;
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

/* The question a few rows at a time, as where memory is short: the same answer, and the same surprise at the question. */
static void check_pieces(struct Engine *e)
{
    static const enum Method methods[] = {METHOD_PARALLELCOMP, METHOD_FULL};
    for (int m = 0; m < 2; m++)
        for (int rows = 1; rows < 14; rows += 4) {
            struct Run run;
            struct Outcome whole, pieces;
            float nll[2][32];
            e->settings.method = methods[m];
            for (int i = 0; i < 2; i++) {
                run_open(&run, e, plain_input);
                if (i) run.s.question_rows = rows;
                must(session_stages(&run.s, false));
                must(question_nll(&run.s, nll[i]));
                run_close(&run);
                run_open(&run, e, plain_input);
                if (i) run.s.question_rows = rows;
                must(session_stages(&run.s, false));
                finish(&run, i ? &pieces : &whole);
                run_close(&run);
            }
            same_logits(e, pieces.logits, whole.logits, "pieces");
            same_logits(e, pieces.last, whole.last, "pieces, last token");
            for (int t = 1; t < plain_input.tail; t++)
                assert_true(fabsf(nll[0][t] - nll[1][t]) < logit_tolerance(e));
        }
}

static void test_pieces(void **state)
{
    (void)state;
    each_engine(check_pieces);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
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
        cmocka_unit_test(test_ragged),
        cmocka_unit_test(test_many_pages),
        cmocka_unit_test(test_truncate),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL) != 0;
}

/* test_session_heads.c - head classes in a run, against the naive transformer with the same masks from the first row to the
 * last; what must not change: texts that fit sinks and window, runs in which no head streams; what each head holds; and
 * memory.
 */
#include "tests/unit/naive_support.h"

/* ==== Maps ==== */

static struct HeadShape shape_of(const struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    return (struct HeadShape){m->n_layers, m->n_heads, m->n_kv_heads};
}

/* Gives the engine a random map, as if it had been read from the settings' file. */
static void set_map(struct Engine *e, uint64_t seed, int sinks, int recent, float ratio)
{
    struct HeadShape shape = shape_of(e);
    headmap_close(&e->heads);
    must(headmap_random(&shape, seed, &e->heads));
    e->heads.sink = sinks;
    e->heads.recent = recent;
    e->settings.heads_ratio = ratio;
}

/* Query heads of their own: every second of a kept group is local. */
static void set_query_scores(struct Engine *e)
{
    int n = e->model.cfg.n_layers * e->model.cfg.n_heads;
    e->heads.q_scores = mem_alloc((size_t)n, sizeof(float));
    assert_non_null(e->heads.q_scores);
    for (int i = 0; i < n; i++) e->heads.q_scores[i] = (float)(i % 2 == 0);
}

/* ==== The masked reference ==== */

static bool meet_masked(const struct View *v, int i, int j, int *q, int *k)
{
    const struct HeadRun *h = &v->session->heads;
    int n_heads = v->session->e->model.cfg.n_heads;
    const int *window = i < v->text_end ? h->read_window : h->answer_window;
    int w = window[v->layer * n_heads + v->head];
    *q = i, *k = j;
    return w == 0 || j < h->sinks || i - j < w;
}

/* First and last row of the answer are the reference's: the last one after a step for every token before. */
static void check_masked(struct Engine *e, struct Input in, const char *what)
{
    struct Session plan = {0};
    struct Prompt p = make_prompt(in);
    must(session_open(&plan, e, &no_request, &p, NULL));
    struct View v = {
        .meet = meet_masked, .scale = 1, .session = &plan, .text_end = in.prefix + in.context};
    assert_true(plan.plan.heads_streaming > 0);
    check_view(e, in, &v, what);
    session_close(&plan);
}

static void check_differs(struct Engine *e, struct Input in)
{
    struct Outcome have = outcome(e, in);
    float ratio = e->settings.heads_ratio;
    e->settings.heads_ratio = 1;
    struct Outcome full = outcome(e, in);
    e->settings.heads_ratio = ratio;
    assert_true(distance(have.logits, full.logits, e->model.cfg.vocab_size) > 1e-3);
}

static const struct {
    struct Input in;
    int sinks, recent;
} plain_cases[] = {
    {{9, 400, 14, 1}, 4, 64},    {{0, 250, 1, 2}, 0, 1},     {{70, 330, 97, 3}, 70, 131},
    {{3, 300, 150, 5}, 64, 100}, {{3, 90, 14, 5}, 16, 101},  {{9, 200, 14, 6}, 64, 256},
    {{100, 140, 30, 7}, 16, 63}, {{5, 2300, 70, 4}, 16, 77},
};

static void test_duo(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1 + a % 2);
        e->settings.method = METHOD_DUO;
        int n = sizeof plain_cases / sizeof *plain_cases;
        for (int i = 0; i < (a == 0 ? n : n - 1); i++) {
            set_map(e, (uint64_t)(i + 1), plain_cases[i].sinks, plain_cases[i].recent, 0.5f);
            check_masked(e, plain_cases[i].in, "duo");
        }
        set_map(e, 3, 4, 50, 0.0f);
        check_masked(e, plain_input, "all heads stream");
        check_differs(e, plain_input);
        engine_close(e);
    }
}

/* The default precision too, as far as its steps allow. */
static void test_int16(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_INT16, 1);
        e->settings.method = METHOD_DUO;
        set_map(e, 5, 16, 70, 0.5f);
        check_masked(e, plain_input, "duo, int16");
        engine_close(e);
    }
}

/* Query heads of one KV head differ while the text is read; afterwards they are one. */
static void test_headwise(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        const struct ModelConfig *m = &e->model.cfg;
        e->settings.method = METHOD_HEADWISE;
        set_map(e, 2, 16, 64, 0.5f);
        set_query_scores(e);
        check_masked(e, plain_input, "headwise");
        struct Session plan = {0};
        struct Prompt p = make_prompt(plain_input);
        must(session_open(&plan, e, &no_request, &p, NULL));
        int local = 0, of_full = 0, group = m->n_heads / m->n_kv_heads;
        for (int i = 0; i < m->n_layers * m->n_heads; i++) {
            bool streams = plan.heads.streams[i / group];
            assert_int_equal(plan.heads.answer_window[i], streams ? 64 : 0);
            local += plan.heads.read_window[i] != 0;
            of_full += plan.heads.read_window[i] != 0 && !streams;
        }
        assert_true(group == 1 || of_full > 0);
        assert_true(local >= plan.plan.heads_streaming * group);
        session_close(&plan);
        engine_close(e);
    }
}

/* ==== What must not change ==== */

static void check_nothing_streams(struct Engine *e)
{
    for (int plain = 0; plain < 2; plain++) {
        e->settings.method = plain ? METHOD_FULL : METHOD_PARALLELCOMP;
        headmap_close(&e->heads);
        struct Outcome without = outcome(e, plain_input);
        set_map(e, 7, 4, 64, 1.0f);
        struct Outcome with = outcome(e, plain_input);
        same_bits(&without, &with);
        set_map(e, 7, 4, 64, 0.0f);
        e->heads.threshold = 700; /* of 635 tokens */
        with = outcome(e, plain_input);
        same_bits(&without, &with);
    }
}

static void test_nothing_streams(void **state)
{
    (void)state;
    each_engine(check_nothing_streams);
}

/* Up to sinks + window tokens streaming loses nothing: the same bytes. */
static void check_short(struct Engine *e)
{
    e->settings.method = METHOD_FULL;
    struct Outcome full = outcome(e, plain_input);
    set_map(e, 7, 16, 635 - 16, 0.25f); /* 9 + 600 + 14 + 12 */
    struct Outcome have = outcome(e, plain_input);
    same_bits(&full, &have);
    e->settings.method = METHOD_PARALLELCOMP;
    e->settings.chunk = 600;
    have = outcome(e, plain_input);
    headmap_close(&e->heads);
    full = outcome(e, plain_input);
    assert_int_equal(full.n_chunks, 1);
    same_logits(e, have.logits, full.logits,
                "one chunk"); /* its tokens begin no page of their own */
}

static void test_short(void **state)
{
    (void)state;
    each_engine(check_short);
}

/* ==== Chunks ==== */

/* One chunk, read with the question behind it, is plain reading. */
static void test_one_chunk(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    set_map(e, 4, 16, 64, 0.5f);
    e->settings.chunk = 600;
    struct Outcome chunks = outcome(e, plain_input);
    e->settings.method = METHOD_DUO;
    struct Outcome plain = outcome(e, plain_input);
    same_logits(e, chunks.logits, plain.logits, "one chunk");
    same_logits(e, chunks.last, plain.last, "one chunk, last token");
    engine_close(e);
}

/* All heads stream: the answer is that over the kept chunk alone, of several over the last of them. */
static void check_last_kept(struct Input in, int sinks, int recent, int keep)
{
    struct Engine *e = open_engine("qwen2", PRECISION_F32, 1);
    set_map(e, 4, sinks, recent, 0);
    e->settings.keep = keep;
    struct Outcome chunks = outcome(e, in);
    int last_kept = 0;
    for (int i = 0; i < chunks.n_chunks; i++)
        if (chunks.kept[i]) last_kept = i;
    assert_true(chunks.n_chunks > 3);
    e->settings.method = METHOD_DUO;
    struct Prompt p = make_prompt(in);
    int n = in.context / chunks.n_chunks;
    assert_int_equal(n * chunks.n_chunks, in.context);
    memmove(p.context.ids, p.context.ids + last_kept * n, sizeof(int) * (size_t)n);
    p.context.n = n;
    struct Outcome last = outcome_of(e, p);
    same_logits(e, chunks.logits, last.logits, "last kept chunk");
    same_logits(e, chunks.last, last.last, "last kept chunk, last token");
    engine_close(e);
}

static void test_last_kept(void **state)
{
    (void)state;
    static const int keeps[] = {1, 2, 3, KEEP_ALL};
    for (int i = 0; i < 4; i++) {
        int keep = keeps[i];
        check_last_kept((struct Input){9, 640, 14, 1}, 4, 40, keep);
        check_last_kept((struct Input){9, 640, 14, 2}, 64, 65, keep); /* sinks end in the chunk */
        check_last_kept((struct Input){0, 512, 5, 3}, 7, 200, keep);
        check_last_kept((struct Input){200, 512, 5, 3}, 70, 33, keep); /* and in the prefix */
    }
}

/* Where all chunks are kept only the last one's end is ever held. */
static void test_all_kept(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen2", PRECISION_F32, 1);
    size_t pages[2];
    set_map(e, 4, 4, 40, 0);
    for (int all = 0; all < 2; all++) {
        struct Run run;
        e->settings.keep = all ? KEEP_ALL : 4;
        run_open(&run, e, (struct Input){9, 640, 14, 1});
        assert_true(run.s.plan.n_chunks > 4);
        pages[all] = run.s.n_pages;
        must(session_stages(&run.s, false));
        run_close(&run);
    }
    assert_true(pages[1] < pages[0]);
    engine_close(e);
}

/* Full heads hold what they hold without streaming ones, or more at the same memory; streaming ones sinks and recent tokens. */
static void check_held(enum Freed freed)
{
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Input in = {9, 1024, 14, 1};
    struct Run run;
    set_map(e, 4, 16, 30, 0.5f);
    e->settings.kv_cap = 40;
    e->settings.freed = freed;
    run_open(&run, e, in);
    must(session_stages(&run.s, false));
    const struct Session *s = &run.s;
    int cap = freed == FREED_SHARE ? 80 : 40;
    assert_int_equal(s->plan.heads_full * 2, s->merged.n_heads);
    for (int h = 0; h < s->merged.n_heads; h++) {
        int n = s->merged.n_tokens[h];
        if (s->heads.streams[h])
            assert_in_range(n, 16 + 29, 16 + 29 + 2 * PAGE_TOKENS);
        else
            assert_int_equal(n, 9 + s->plan.keep * cap);
        int64_t kept = run.r.kv_kept[h];
        assert_int_equal(kept, s->heads.streams[h] ? n - 9 : s->plan.keep * cap);
    }
    run_close(&run);
    engine_close(e);
}

static void test_held(void **state)
{
    (void)state;
    check_held(FREED_RELEASE);
    check_held(FREED_SHARE);
}

/* ==== Memory ==== */

/* The pages in use when the answer ends are the formula's. */
static void check_memory(struct Engine *e, enum Method method)
{
    struct Run run;
    size_t formula;
    e->settings.method = method;
    run_open(&run, e, (struct Input){9, 20000, 14, 1});
    must(session_stages(&run.s, true));
    const struct Session *s = &run.s;
    const struct PagePool *pool = &s->kv.pool;
    double held = (double)(pool->n_pages - pool->n_free) * (double)pool->page_bytes;
    must(heads_formula(s, PAGE_TOKENS, &formula));
    print_message("# %s: held %.0f, by the formula %zu in pages, %zu in tokens\n",
                  setting_word("method", (int)method), held, formula, s->plan.heads_bytes);
    assert_true(fabs(held / (double)formula - 1) < 0.02);
    assert_true(fabs(held / (double)s->plan.heads_bytes - 1) < 0.02);
    run_close(&run);
}

static void test_memory(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    set_map(e, 4, 64, 64, 0.5f);
    check_memory(e, METHOD_DUO);
    e->settings.chunk = 1000;
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = 640;
    check_memory(e, METHOD_PARALLELCOMP);
    engine_close(e);
}

/* ==== Settings ==== */

static void test_refusals(void **state)
{
    (void)state;
    struct Settings set;
    settings_default(&set);
    set.method = METHOD_DUO;
    assert_int_equal(settings_check(&set), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "--heads"));
    strcpy(set.heads, "map.json");
    assert_int_equal(settings_check(&set), PC_OK);
    static const enum Method none[] = {METHOD_SELF_EXTEND, METHOD_STREAMING, METHOD_SNAPKV,
                                       METHOD_PYRAMIDKV};
    for (int i = 0; i < 4; i++) {
        set.method = none[i];
        assert_int_equal(settings_check(&set), PC_ECONFIG);
        assert_non_null(strstr(err_text(), "heads"));
    }
}

/* A map's file is read when the engine opens or is configured; a bad one leaves the engine as it was. */
static void test_file(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct HeadShape shape = shape_of(e);
    struct HeadMap map;
    char path[] = "/tmp/pcomp_heads_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    must(headmap_random(&shape, 9, &map));
    must(headmap_write_json(&map, path));
    struct Settings set = e->settings;
    snprintf(set.heads, sizeof set.heads, "%s", path);
    must(engine_configure(e, &set));
    int n = headmap_heads(&map);
    assert_memory_equal(e->heads.scores, map.scores, sizeof(float) * (size_t)n);
    snprintf(set.heads, sizeof set.heads, "%s.missing", path);
    assert_true(engine_configure(e, &set) < 0);
    assert_string_equal(e->settings.heads, path);
    assert_memory_equal(e->heads.scores, map.scores, sizeof(float) * (size_t)n);
    set.heads[0] = '\0';
    must(engine_configure(e, &set));
    assert_null(e->heads.scores);
    headmap_close(&map);
    unlink(path);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_duo),       cmocka_unit_test(test_int16),
        cmocka_unit_test(test_headwise),  cmocka_unit_test(test_nothing_streams),
        cmocka_unit_test(test_short),     cmocka_unit_test(test_one_chunk),
        cmocka_unit_test(test_last_kept), cmocka_unit_test(test_all_kept),
        cmocka_unit_test(test_held),      cmocka_unit_test(test_memory),
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

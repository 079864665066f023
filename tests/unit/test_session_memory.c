/* test_session_memory.c - the session's promises about memory, its plan, determinism and stopping, on seeded tiny
 * models of every architecture.
 */
#include "tests/unit/session_support.h"

static const struct BatchShape least_shape = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};

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

static void stream_half(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    headmap_close(&e->heads);
    must(headmap_random(&shape, 1, &e->heads));
}

/* Every part of the plan in turn is the largest one. */
static void plan_shapes(enum KvType kv_type)
{
    static const struct {
        enum Method method;
        int keep, cap, wave, n_calib, max_tokens;
        bool heads; /* half of them stream */
        enum PageIndex select;
    } cases[] = {
        {METHOD_PARALLELCOMP, 1, CAP_OFF, 1, 0, 4, false, PAGE_INDEX_OFF},
        {METHOD_PARALLELCOMP, KEEP_ALL, CAP_OFF, 1, 0, 4, false, PAGE_INDEX_OFF},
        {METHOD_PARALLELCOMP, KEEP_ALL, 7, 4, 0, 4, false, PAGE_INDEX_OFF},
        {METHOD_PARALLELCOMP, 2, 50, 16, 1, 4, false, PAGE_INDEX_OFF},
        {METHOD_PARALLELCOMP, KEEP_ALL, CAP_OFF, 3, 1, 300, false, PAGE_INDEX_OFF},
        {METHOD_FULL, 1, CAP_OFF, 1, 0, 4, false, PAGE_INDEX_OFF},
        {METHOD_TRUNCATE, 1, CAP_OFF, 1, 0, 4, false, PAGE_INDEX_OFF},
        {METHOD_SELF_EXTEND, 1, CAP_OFF, 1, 0, 4, false, PAGE_INDEX_OFF},
        {METHOD_STREAMING, 1, CAP_OFF, 1, 0, 300, false, PAGE_INDEX_OFF},
        {METHOD_SNAPKV, 1, 50, 1, 0, 4, false, PAGE_INDEX_OFF},
        {METHOD_PYRAMIDKV, 1, 2000, 1, 0, 300, false, PAGE_INDEX_OFF},
        {METHOD_DUO, 1, CAP_OFF, 1, 0, 300, true, PAGE_INDEX_OFF},
        {METHOD_PARALLELCOMP, 2, 50, 3, 0, 4, true, PAGE_INDEX_OFF},
        {METHOD_PARALLELCOMP, KEEP_ALL, CAP_OFF, 1, 0, 300, true, PAGE_INDEX_OFF},
        {METHOD_PARALLELCOMP, KEEP_ALL, CAP_OFF, 1, 0, 300, true, PAGE_INDEX_BOUND},
        {METHOD_FULL, 1, CAP_OFF, 1, 0, 300, false, PAGE_INDEX_MEAN},
        {METHOD_SNAPKV, 1, 50, 1, 0, 4, false, PAGE_INDEX_BOUND},
        {METHOD_STREAMING, 1, CAP_OFF, 1, 0, 300, false,
         PAGE_INDEX_BOUND}, /* keys move: nothing to select by */
    };
    struct Engine *e = open_engine_of("llama", PRECISION_INT16, kv_type, 1);
    char text[9000];
    uint64_t rng = 4;
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('A' + next_number(&rng) % 26);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c += kv_type == KV_AUTO ? 1 : 4) {
        struct Result r;
        struct PlanInfo plan;
        struct Request req = {.context = text, .context_len = sizeof text, .question = "Which?"};
        struct Settings *set = &e->settings;
        set->method = cases[c].method;
        set->keep = cases[c].keep;
        set->kv_cap = cases[c].cap;
        set->wave = cases[c].wave;
        set->max_tokens = cases[c].max_tokens;
        set->select = cases[c].select;
        set->select_every = cases[c].select == PAGE_INDEX_MEAN ? 16 : 1;
        set->n_calib = 0;
        if (cases[c].heads) stream_half(e);
        if (cases[c].n_calib) add_rule(e, (struct CalibRule){CLASS_SINK, 0, 2, 0.5f, 10, 1, 2});
        size_t at_rest = held_at_rest(e);
        must(session_plan(e, &req, &plan));
        assert_int_equal(held_at_rest(e), at_rest);
        must(session_run(e, &req, &r));
        double used = (double)taken(e, r.peak_bytes, at_rest),
               off = fabs(used - (double)plan.peak_bytes);
        print_message("# case %zu: peak %.0f, planned %zu\n", c, used, plan.peak_bytes);
        assert_int_equal(plan.peak_bytes, r.plan.peak_bytes);
        bool index = cases[c].select && cases[c].method != METHOD_STREAMING;
        assert_int_equal(plan.index_bytes > 0, index);
        assert_true(off <= 0.02 * used + PLAN_SLACK);
        result_free(&r);
    }
    engine_close(e);
}

/* Pages times the vectors' bytes, and the room in which a layer's pages are chosen. */
static void check_index(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    size_t value = e->settings.precision == PRECISION_F32 ? 4 : 2,
           heads = (size_t)m->n_layers * (size_t)m->n_kv_heads;
    size_t peak[3], at_rest;
    char text[3000];
    uint64_t rng = 4;
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('A' + next_number(&rng) % 26);
    struct Request req = {.context = text, .context_len = sizeof text, .question = "Which?"};
    e->settings.keep = KEEP_ALL;
    e->settings.max_tokens =
        600; /* the answer's scratch is small: the waves' would hide the choice's */
    for (int index = PAGE_INDEX_OFF; index <= PAGE_INDEX_BOUND; index++) {
        struct Result r;
        e->settings.select = (enum PageIndex)index;
        at_rest = held_at_rest(e);
        must(session_run(e, &req, &r));
        peak[index] = taken(e, r.peak_bytes, at_rest);
        size_t pages = (r.plan.index_bytes - (index ? heads * sizeof(struct PageRef) : 0)) /
                       (index ? (size_t)index * (size_t)m->head_dim * value : 1);
        if (index) assert_true(peak[index] - peak[0] >= r.plan.index_bytes);
        if (index) assert_true(pages * PAGE_TOKENS >= heads * (size_t)r.plan.n_context);
        double off = fabs((double)peak[index] - (double)r.plan.peak_bytes);
        assert_true(off <= 0.02 * (double)peak[index] + PLAN_SLACK);
        result_free(&r);
    }
    assert_true(peak[2] > peak[1]);
}

static void test_index(void **state)
{
    (void)state;
    for (int precision = 0; precision < 2; precision++) {
        struct Engine *e = open_engine("qwen2", precision ? PRECISION_F32 : PRECISION_INT16, 1);
        check_index(e);
        engine_close(e);
    }
}

static void test_plan_shapes(void **state)
{
    (void)state;
    plan_shapes(KV_AUTO);
    plan_shapes(KV_Q8);
    plan_shapes(KV_Q4);
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
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),      cmocka_unit_test(test_plan_shapes),
        cmocka_unit_test(test_index),       cmocka_unit_test(test_plan_limits),
        cmocka_unit_test(test_determinism), cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_stop),        cmocka_unit_test(test_decode_allocates_nothing),
    };
    return cmocka_run_group_tests_name("session_memory", tests, NULL, NULL) != 0;
}

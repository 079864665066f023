/* test_session_store.c - a text that was indexed is asked as it would be answered cold: the same chunks and tokens kept, the
 * same answer, scores apart by what pages round off; under every score, cap, calibration rule and head map, in waves of any
 * size. Interrupted indexing goes on; what was made otherwise is refused by name; memory, faults.
 */
#include "tests/unit/session_support.h"

enum { BYTES = 2600, QUESTIONS = 3 };

static const char *const questions[QUESTIONS] = {"Where is xyzzy?", "who",
                                                 "Which words stand last?"};
static char text[BYTES], path[] = "/tmp/pcomp_asked_XXXXXX";

static int prepare(void **state)
{
    (void)state;
    uint64_t seed = 9;
    for (int i = 0; i < BYTES; i++)
        text[i] =
            i % 4 == 3 ? (i % 240 == 239 ? '\n' : ' ') : (char)('a' + next_number(&seed) % 26);
    memcpy(text + 1777, " XYZZY ", 7);
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    return unlink(path);
}

static int clean(void **state)
{
    char part[64];
    (void)state;
    snprintf(part, sizeof part, "%s.part", path);
    unlink(path);
    unlink(part);
    return 0;
}

static struct Request request(const char *question)
{
    return (struct Request){.context = text, .context_len = BYTES, .question = question};
}

static struct IndexInfo index_text(struct Engine *e)
{
    struct IndexInfo made;
    struct Request req = request("");
    must(session_index(e, &req, path, true, &made));
    assert_int_equal(made.n_done, made.plan.n_chunks);
    return made;
}

static void ask(struct Engine *e, struct Store *store, const char *question, struct Result *r)
{
    struct Request req = {.store = store, .question = question};
    must(session_run(e, &req, r));
}

/* ==== Cold against ask ==== */

/* What streams holds fewer keys before the question than there were: other ones share a block and its scales. */
static double score_tolerance(const struct Engine *e)
{
    if (!e->heads.scores) return 0;
    return e->settings.precision == PRECISION_F32 ? 1e-5 : 5e-3;
}

/* Without a head map to the bit: pages hold what the cold run's rows read, and the question changes nothing that the text's rows see. */
static void same_answer(const struct Engine *e, const struct Result *cold,
                        const struct Result *asked, const char *what)
{
    const struct ModelConfig *m = &e->model.cfg;
    assert_int_equal(asked->plan.n_chunks, cold->plan.n_chunks);
    assert_int_equal(asked->plan.n_read, cold->plan.n_read);
    assert_int_equal(asked->plan.question_pos, cold->plan.question_pos);
    for (int c = 0; c < cold->plan.n_chunks; c++) {
        const struct ChunkInfo *a = &cold->chunks[c], *b = &asked->chunks[c];
        assert_int_equal(a->begin, b->begin);
        assert_int_equal(a->byte_end, b->byte_end);
        if (a->kept != b->kept) fail_msg("%s %s: chunk %d", m->arch, what, c);
        if (isnan(a->score) ? !isnan(b->score) : !(fabs(a->score - b->score) <= score_tolerance(e)))
            fail_msg("%s %s: score %g of chunk %d is %g cold", m->arch, what, b->score, c,
                     a->score);
    }
    for (int h = 0; h < m->n_layers * m->n_kv_heads; h++) {
        assert_int_equal(asked->kv_in[h], cold->kv_in[h]);
        if (asked->kv_kept[h] != cold->kv_kept[h])
            fail_msg("%s %s: head %d keeps %lld, cold %lld", m->arch, what, h,
                     (long long)asked->kv_kept[h], (long long)cold->kv_kept[h]);
    }
    if (asked->n_ids != cold->n_ids ||
        memcmp(asked->ids, cold->ids, sizeof(int) * (size_t)cold->n_ids))
        fail_msg("%s %s: another answer", m->arch, what);
}

/* One question, cold or from a store, with the logits of the first row. */
static void answer(struct Engine *e, struct Store *store, const char *question, struct Result *r,
                   float *logits)
{
    struct Request req = request(question);
    struct Run run = {.s.store = store};
    struct Prompt p = {0};
    req.store = store;
    must(session_prompt(e, &req, &p));
    must(session_open(&run.s, e, &req, &p, &run.r));
    must(session_stages(&run.s, false));
    must(question_pass(&run.s));
    memcpy(logits, run.s.logits, sizeof *logits * (size_t)e->model.cfg.vocab_size);
    must(decode_answer(&run.s));
    run.r.plan = run.s.plan;
    session_close(&run.s);
    *r = run.r;
}

/* Questions [first, end), cold and from the store that is there. */
static void check_questions(struct Engine *e, int first, int end, const char *what)
{
    struct Store store;
    must(store_open(path, &store));
    for (int q = first; q < end; q++) {
        struct Result cold, asked;
        float want[VOCAB_MAX], have[VOCAB_MAX];
        answer(e, NULL, questions[q], &cold, want);
        answer(e, &store, questions[q], &asked, have);
        assert_true(cold.plan.n_chunks > 5 || e->settings.chunk > 300);
        same_answer(e, &cold, &asked, what);
        if (!e->heads.scores && memcmp(have, want, sizeof *have * (size_t)e->model.cfg.vocab_size))
            fail_msg("%s %s: other logits", e->model.cfg.arch, what);
        result_free(&cold);
        result_free(&asked);
    }
    store_close(&store);
}

static void check_asked(struct Engine *e, const char *what)
{
    static int turn;
    int q = turn++ % QUESTIONS;
    index_text(e);
    check_questions(e, q, q + 1, what);
}

/* Heads of two layers, for the score by attention. */
static void set_last(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct ChunkProfile *p = &e->chunks;
    *p = (struct ChunkProfile){
        .n_layers = m->n_layers, .n_kv_heads = m->n_kv_heads, .n_stops = 1, .nats = 0.5f};
    p->last = (struct ChunkStop){.layer = m->n_layers, .n_heads = 2};
    p->last.heads[0] = (struct StopHead){0, 0, MEASURE_PEAK, 4, 1};
    p->last.heads[1] = (struct StopHead){m->n_layers - 1, m->n_kv_heads - 1, MEASURE_SUM, 32, 2};
}

static void check_scores(struct Engine *e)
{
    index_text(e);
    set_last(e);
    for (int score = SCORE_AUTO; score <= SCORE_ATTENTION; score++)
        for (int cap = 0; cap < 2; cap++) {
            e->settings.chunk_score = (enum ChunkScore)score;
            e->settings.kv_cap = cap ? 50 : CAP_OFF;
            check_questions(e, 0, 2, setting_word("chunk_score", score));
        }
}

static void test_scores(void **state)
{
    (void)state;
    each_engine(check_scores);
}

static void check_settings(struct Engine *e)
{
    static const struct {
        int chunk, overlap, keep, cap, obs_rows, pool, copies, wave;
        float bias;
    } cases[] = {
        {100, 0, 1, 1, 1, 1, 1, 1, 0},          {64, 20, 3, 63, 4, 7, 5, 2, 0},
        {65, 0, KEEP_ALL, 7, 8, 3, 1, 5, 0.5f}, {130, 60, 2, CAP_OFF, 8, 7, 2, 3, 2},
        {700, 0, 2, 200, 30, 7, 1, 1, 0},       {128, 5, KEEP_ALL, CAP_OFF, 8, 7, 1, 4, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Settings *set = &e->settings;
        set->chunk = cases[i].chunk;
        set->overlap = cases[i].overlap;
        set->keep = cases[i].keep;
        set->kv_cap = cases[i].cap;
        set->obs_rows = cases[i].obs_rows;
        set->pool = cases[i].pool;
        set->prefix_copies = cases[i].copies;
        set->chunk_bias = cases[i].bias;
        set->wave = cases[i].wave;
        check_asked(e, "settings");
    }
}

static void test_settings(void **state)
{
    (void)state;
    each_engine(check_settings);
}

static void check_calibration(struct Engine *e)
{
    add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 1, 0.02f, 10, 2, 1});
    add_rule(e, (struct CalibRule){CLASS_SINK, 1, 2, 0.01f, 20, 0, 1});
    check_asked(e, "rules of stage 1");
    add_rule(e, (struct CalibRule){CLASS_RECENT, 0, 2, 0.01f, 30, 3, 2});
    e->settings.kv_cap = 60;
    check_asked(e, "rules of both stages and a cap");
}

static void test_calibration(void **state)
{
    (void)state;
    each_engine(check_calibration);
}

static void test_rope(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    e->settings.rope_scaling = SCALING_YARN;
    e->settings.rope_factor = 3;
    check_asked(e, "yarn by 3");
    e->settings.rope_scaling = SCALING_NTK;
    e->settings.rope_factor = AUTO;
    check_asked(e, "ntk");
    engine_close(e);
}

/* ==== Head maps ==== */

static void set_map(struct Engine *e, uint64_t seed, int sinks, int recent, float ratio)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    headmap_close(&e->heads);
    must(headmap_random(&shape, seed, &e->heads));
    e->heads.sink = sinks;
    e->heads.recent = recent;
    e->settings.heads_ratio = ratio;
}

static void check_heads(struct Engine *e)
{
    static const struct {
        int sinks, recent;
        float ratio;
    } maps[] = {{4, 50, 0.5f}, {90, 30, 0.5f}, {16, 200, 0.25f},
                {0, 1, 0.5f},  {20, 90, 0},    {4, 64, 1}};
    set_last(e); /* sums: neighbours are others where a store has a chunk's ends alone */
    e->chunks.last.heads[0].measure = MEASURE_SUM;
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
        bool capped = i % 2;
        set_map(e, i + 1, maps[i].sinks, maps[i].recent, maps[i].ratio);
        e->settings.kv_cap = capped ? 40 : CAP_OFF;
        e->settings.heads_by = capped ? HEADS_BY_QUERY : HEADS_BY_KV;
        e->settings.chunk_score = i % 3 ? SCORE_ATTENTION : SCORE_AUTO;
        check_asked(e, "head map");
    }
}

static void test_heads(void **state)
{
    (void)state;
    each_engine(check_heads);
}

/* A streaming head costs the store what it keeps. */
static void test_heads_bytes(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    const struct ModelConfig *m = &e->model.cfg;
    size_t full = index_text(e).bytes;
    set_map(e, 3, 4, 30, 0);
    struct IndexInfo made = index_text(e);
    size_t heads = (size_t)m->n_layers * m->n_kv_heads,
           page = e->be->page_bytes(e->dev) * heads * (size_t)made.plan.n_chunks;
    assert_true(made.bytes < full);
    assert_in_range(made.bytes, page, 2 * page + made.bytes / 2);
    engine_close(e);
}

/* ==== Waves ==== */

/* Chunks in one batch, each with a past of its own, score as one at a time does: to the bit. */
static void check_waves(struct Engine *e)
{
    struct Store store;
    struct Result one, many;
    struct Request cold = request(questions[0]);
    e->settings.wave = 1;
    e->settings.kv_cap = 60;
    must(session_run(e, &cold, &many));
    index_text(e);
    must(store_open(path, &store));
    ask(e, &store, questions[0], &one);
    assert_true(many.input_hash == one.input_hash); /* of the same text and question */
    result_free(&many);
    for (int wave = 2; wave < 12; wave += 3) {
        e->settings.wave = wave;
        ask(e, &store, questions[0], &many);
        assert_int_equal(many.plan.wave, wave);
        for (int c = 0; c < one.plan.n_chunks; c++)
            assert_true(one.chunks[c].score == many.chunks[c].score);
        assert_true(one.logits_hash == many.logits_hash);
        result_free(&many);
    }
    result_free(&one);
    store_close(&store);
}

static void test_waves(void **state)
{
    (void)state;
    each_engine(check_waves);
}

/* ==== Interrupted ==== */

struct Stop {
    int after; /* chunks */
    int seen;
};

static void note_progress(void *user, const struct Progress *p)
{
    ((struct Stop *)user)->seen = p->chunks_done;
}
static bool stop_now(void *user)
{
    const struct Stop *stop = user;
    return stop->seen >= stop->after;
}

static void test_interrupted(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, 1);
    struct Store store;
    struct Result want, r;
    e->settings.wave = 2;
    index_text(e);
    must(store_open(path, &store));
    ask(e, &store, questions[0], &want);
    store_close(&store);
    for (int after = 0; after < want.plan.n_chunks; after += 3) {
        struct Stop stop = {after, 0};
        struct IndexInfo made;
        struct Request req = request("");
        clean(NULL);
        req.user = &stop;
        req.on_progress = note_progress;
        req.stop = stop_now;
        assert_int_equal(session_index(e, &req, path, false, &made), PC_EINTR);
        assert_in_range(made.n_done, after, after + 1);
        assert_true(access(path, F_OK) != 0);
        struct Request again = request("");
        int done = made.n_done;
        must(session_index(e, &again, path, false, &made));
        assert_int_equal(made.n_before, done);
        must(store_open(path, &store));
        ask(e, &store, questions[0], &r);
        assert_true(r.logits_hash == want.logits_hash);
        store_close(&store);
        result_free(&r);
        must(session_index(e, &again, path, false, &made));
        assert_int_equal(made.n_before, made.plan.n_chunks);
    }
    result_free(&want);
    engine_close(e);
}

/* ==== What does not fit ==== */

static void refused(struct Engine *e, struct Store *store, int want, const char *words)
{
    struct Request req = {.store = store, .question = questions[0]};
    struct Result r;
    int status = session_run(e, &req, &r);
    result_free(&r);
    if (status != want || !strstr(err_text(), words) || !strstr(err_text(), path))
        fail_msg("status %d for %d: '%s' for '%s'", status, want, err_text(), words);
}

static void check_setting(struct Engine *e, struct Store *store, const char *name,
                          const char *value)
{
    struct Settings old = e->settings, new = old;
    must(settings_set(&new, name, value));
    must(engine_configure(e, &new));
    refused(e, store, PC_ECONFIG, name);
    must(engine_configure(e, &old));
}

static void test_foreign(void **state)
{
    (void)state;
    static const char *const other[][2] = {
        {"chunk", "100"},        {"overlap", "3"},         {"window", "900"},
        {"instruction", "Read"}, {"rope_scaling", "yarn"}, {"system", "Be brief."},
        {"head_recent", "7"},    {"heads_by", "query"},    {"chat_template", "raw"}};
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1),
                  *exact = open_engine("llama", PRECISION_F32, 1),
                  *qwen = open_engine("qwen2", PRECISION_INT16, 1);
    struct Store store;
    struct Result r;
    index_text(e);
    must(store_open(path, &store));
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        check_setting(e, &store, other[i][0], other[i][1]);
    refused(qwen, &store, PC_ECONFIG, "another model");
    refused(exact, &store, PC_ECONFIG, "cpu f16, int16");
    set_map(e, 1, 4, 30, FROM_MAP);
    refused(e, &store, PC_ECONFIG, "head map");
    headmap_close(&e->heads);
    e->settings.heads_ratio = FROM_MAP;
    e->settings.max_tokens = 900;
    refused(e, &store, PC_ERANGE, "leave");
    e->settings.max_tokens = ANSWER;
    e->settings.method = METHOD_FULL;
    struct Request req = {.store = &store, .question = questions[0]};
    assert_int_equal(session_run(e, &req, &r), PC_ECONFIG);
    result_free(&r);
    e->settings.method = METHOD_PARALLELCOMP;
    req.question = "";
    assert_true(session_run(e, &req, &r) == PC_OK || strstr(err_text(), "nothing to answer"));
    result_free(&r);
    ask(e, &store, questions[0], &r); /* and still fits what it was made for */
    result_free(&r);
    store_close(&store);
    engine_close(e);
    engine_close(exact);
    engine_close(qwen);
}

/* A flipped bit in a chunk's pages stops the answer before it begins. */
static void test_damaged(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Store store;
    index_text(e);
    struct Str file = {0};
    must(file_read(path, &file));
    file.data[file.len - 9000] ^= 1;
    must(file_write(path, file.data, file.len));
    must(store_open(path, &store));
    refused(e, &store, PC_EFORMAT, "does not fit its hash");
    store_close(&store);
    str_free(&file);
    engine_close(e);
}

/* ==== Memory and faults ==== */

static size_t peak_of(struct Engine *e, int bytes, size_t *plan)
{
    struct Store store;
    struct Result r;
    struct IndexInfo made;
    struct Request req = {.context = text, .context_len = (size_t)bytes, .question = ""};
    must(session_index(e, &req, path, true, &made));
    if (made.peak_bytes > made.plan.peak_bytes + (1 << 16) + mem_in_use())
        fail_msg("index took %zu bytes, planned %zu", made.peak_bytes, made.plan.peak_bytes);
    must(store_open(path, &store));
    size_t before = mem_in_use();
    ask(e, &store, questions[0], &r);
    size_t peak = r.peak_bytes - before;
    *plan = r.plan.peak_bytes;
    result_free(&r);
    store_close(&store);
    return peak;
}

static void test_memory(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    size_t plan[2];
    e->settings.wave = 2;
    e->settings.kv_cap = 50;
    size_t few = peak_of(e, BYTES / 4, &plan[0]), many = peak_of(e, BYTES, &plan[1]);
    assert_true(many < few + 64 * BYTES); /* what is known of the text, and no pages */
    assert_true(many <= plan[1] + (1 << 16));
    engine_close(e);
}

static bool fault_came(long n)
{
    for (long i = 0; i < n; i++) {
        void *p = mem_alloc(1, 1);
        if (!p) return false;
        mem_free(p);
    }
    return true;
}

static size_t held(struct Engine *e)
{
    struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    must(e->be->reserve(e->dev, &least));
    return mem_in_use();
}

static int do_index(struct Engine *e, struct Store *unused)
{
    struct IndexInfo made;
    struct Request req = request("");
    (void)unused;
    clean(NULL);
    return session_index(e, &req, path, false, &made);
}

static int do_ask(struct Engine *e, struct Store *store)
{
    struct Request req = {.store = store, .question = questions[0]};
    struct Result r;
    int status = session_run(e, &req, &r);
    result_free(&r);
    return status;
}

static void each_fault(struct Engine *e, struct Store *store,
                       int (*act)(struct Engine *e, struct Store *store))
{
    must(act(e, store));
    for (long n = 1;; n++) {
        size_t before = held(e);
        mem_fail_after(n);
        int status = act(e, store);
        bool came = fault_came(n);
        mem_fail_after(0);
        if (held(e) != before) fail_msg("allocation %ld failed and memory stays", n);
        if (status == PC_OK && !came) {
            assert_true(n > 20);
            return;
        }
        assert_int_equal(status, PC_ENOMEM);
    }
}

static void test_faults(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Store store;
    e->settings.kv_cap = 40;
    set_map(e, 2, 4, 30, 0.5f);
    each_fault(e, NULL, do_index);
    index_text(e);
    must(store_open(path, &store));
    each_fault(e, &store, do_ask);
    e->settings.early = EARLY_AUTO;
    snprintf(e->settings.early_at, sizeof e->settings.early_at, "1:6,2:4");
    each_fault(e, &store, do_ask);
    store_close(&store);
    engine_close(e);
}

/* Words choose chunks of a store as of a text. */
static void test_prefilter(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    e->settings.keep = 2;
    e->settings.prefilter = 5;
    index_text(e);
    check_questions(e, 0, QUESTIONS, "prefilter");
    engine_close(e);
}

/* Where each chunk left, too. */
static void check_left(struct Engine *e, struct Store *store, const char *question, int *n_left)
{
    struct Result cold, asked;
    float want[VOCAB_MAX], have[VOCAB_MAX];
    answer(e, NULL, question, &cold, want);
    answer(e, store, question, &asked, have);
    same_answer(e, &cold, &asked, e->settings.early_at);
    assert_true(cold.plan.n_early > 0);
    assert_memory_equal(&asked.plan.early, &cold.plan.early, sizeof cold.plan.early);
    for (int c = 0; c < cold.plan.n_chunks; c++) {
        assert_int_equal(asked.chunks[c].n_layers, cold.chunks[c].n_layers);
        *n_left += asked.chunks[c].n_layers < LAYERS;
    }
    result_free(&cold);
    result_free(&asked);
}

static void check_early(struct Engine *e)
{
    static const char *const stops[] = {"1:6", "2:4", "1:7,2:3"};
    struct Store store;
    index_text(e);
    must(store_open(path, &store));
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        for (int wave = 0; wave < 4; wave++) {
            int n_left = 0;
            e->settings.wave = wave;
            e->settings.kv_cap = wave % 2 ? 40 : CAP_OFF;
            snprintf(e->settings.early_at, sizeof e->settings.early_at, "%s", stops[i]);
            check_left(e, &store, questions[wave % QUESTIONS], &n_left);
            assert_true(n_left >= 3);
        }
    store_close(&store);
}

/* Chunks of a store leave where those of the text do, at the question's rows alone. */
static void test_early(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++)
        for (int i = 0; i < 4; i++) {
            struct Engine *e = open_engine(archs[a], i % 2 ? PRECISION_F32 : PRECISION_INT16, 1);
            e->settings.keep = 2;
            e->settings.early = EARLY_AUTO;
            if (i / 2) set_map(e, 4, 4, 30, 0.5f);
            check_early(e);
            engine_close(e);
        }
}

/* Of a capped store: a margin for all changes nothing, and survivors have the scores that they have among all. */
static void check_early_capped(struct Engine *e)
{
    struct Store store;
    struct Result off, all, few;
    e->settings.store_cap = 40;
    e->settings.keep = 2;
    index_text(e);
    must(store_open(path, &store));
    for (int wave = 0; wave < 4; wave++) {
        int n_left = 0;
        e->settings.wave = wave;
        e->settings.kv_cap = wave % 2 ? 20 : CAP_OFF;
        e->settings.early = EARLY_OFF;
        ask(e, &store, questions[0], &off);
        e->settings.early = EARLY_AUTO;
        snprintf(e->settings.early_at, sizeof e->settings.early_at, "1:99,2:99");
        ask(e, &store, questions[0], &all);
        same_answer(e, &off, &all, "a margin for all");
        snprintf(e->settings.early_at, sizeof e->settings.early_at, "1:6,2:4");
        ask(e, &store, questions[0], &few);
        for (int c = 0; c < few.plan.n_chunks; c++) {
            bool left = few.chunks[c].n_layers < LAYERS;
            n_left += left;
            assert_true(left ? isnan(few.chunks[c].score)
                             : few.chunks[c].score == off.chunks[c].score);
        }
        assert_int_equal(n_left, few.plan.n_chunks - 4);
        result_free(&off);
        result_free(&all);
        result_free(&few);
    }
    store_close(&store);
}

static void test_early_capped(void **state)
{
    (void)state;
    each_engine(check_early_capped);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_prefilter, clean),
        cmocka_unit_test_teardown(test_early, clean),
        cmocka_unit_test_teardown(test_early_capped, clean),
        cmocka_unit_test_teardown(test_scores, clean),
        cmocka_unit_test_teardown(test_settings, clean),
        cmocka_unit_test_teardown(test_calibration, clean),
        cmocka_unit_test_teardown(test_rope, clean),
        cmocka_unit_test_teardown(test_heads, clean),
        cmocka_unit_test_teardown(test_heads_bytes, clean),
        cmocka_unit_test_teardown(test_waves, clean),
        cmocka_unit_test_teardown(test_interrupted, clean),
        cmocka_unit_test_teardown(test_foreign, clean),
        cmocka_unit_test_teardown(test_damaged, clean),
        cmocka_unit_test_teardown(test_memory, clean),
        cmocka_unit_test_teardown(test_faults, clean),
    };
    return cmocka_run_group_tests_name("session_store", tests, prepare, clean) != 0;
}

/* test_session_stream.c - runs over texts that are not in memory against the same runs over texts that are: cuts, kept chunks,
 * scores to the bit, answers and hashes; memory that does not grow; ranks; files that change on the way.
 */
#include "stream_support.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include "team_support.h"
#include "tests/unit/session_support.h"

/* ==== Threads ==== */

static bool no_threads;

/* Stands before the C library's own: none can be started. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *user)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    void *found = dlsym(RTLD_NEXT, "pthread_create");
    memcpy(&real, &found, sizeof real);
    return no_threads ? EAGAIN : real(thread, attr, run, user);
}

/* ==== Both ways ==== */

/* A text in memory and in a file. */
struct Text {
    char *path;
    struct Str str;
    struct TextStream stream;
};

static void text_open(struct Text *t)
{
    t->path = malloc(32);
    temp_name(t->path);
    const char *paths[] = {t->path};
    write_text(t->path, t->str.data, t->str.len);
    fine(text_stream_open(&t->stream, paths, 1));
}

static void text_close(struct Text *t)
{
    text_stream_close(&t->stream);
    unlink(t->path);
    free(t->path);
    str_free(&t->str);
}

static struct Text hostile(size_t bytes, uint64_t seed)
{
    struct Text t = {0};
    hostile_text(&t.str, bytes, seed);
    text_open(&t);
    return t;
}

/* Sentences and paragraphs, with one odd word. */
static struct Text prose(size_t bytes, uint64_t seed)
{
    struct Text t = {0};
    uint64_t state = seed;
    while (t.str.len < bytes) {
        for (uint32_t i = 2 + below(&state, 12); i; i--)
            must(str_appendf(&t.str, "%c%.*s ", 'a' + (int)below(&state, 26), (int)below(&state, 5),
                             "nought"));
        must(str_appendf(&t.str, below(&state, 4) ? "end. " : "end.\n\n"));
        if (below(&state, 30) == 0) must(str_appendf(&t.str, "Here is xyzzy. "));
    }
    text_open(&t);
    return t;
}

static struct Request request_of(const struct Text *t, bool streamed, const char *question)
{
    struct Request req = {.question = question};
    if (streamed) {
        req.stream = (struct TextStream *)&t->stream;
    } else {
        req.context = t->str.data;
        req.context_len = t->str.len;
    }
    return req;
}

static void same_plan(struct PlanInfo a, struct PlanInfo b)
{
    a.peak_bytes = b.peak_bytes = a.available_bytes = b.available_bytes = 0;
    assert_memory_equal(&a, &b, sizeof a);
}

static void same_results(const struct Result *a, const struct Result *b)
{
    same_plan(a->plan, b->plan);
    for (int i = 0; i < a->plan.n_chunks; i++) {
        const struct ChunkInfo *x = &a->chunks[i], *y = &b->chunks[i];
        assert_int_equal(x->begin, y->begin);
        assert_int_equal(x->end, y->end);
        assert_int_equal(x->byte_begin, y->byte_begin);
        assert_int_equal(x->byte_end, y->byte_end);
        assert_int_equal(x->kept, y->kept);
        assert_memory_equal(&x->score, &y->score, sizeof x->score);
    }
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, sizeof *a->ids * (size_t)a->n_ids);
    assert_int_equal(a->text.len, b->text.len);
    if (a->text.len) assert_memory_equal(a->text.data, b->text.data, a->text.len);
    assert_true(a->input_hash == b->input_hash && a->config_hash == b->config_hash);
    assert_true(a->logits_hash == b->logits_hash);
}

/* Runs both ways; *n_chunks as they were cut. */
static void both_ways(struct Engine *e, const struct Text *t, const char *question)
{
    struct Result in_memory, streamed;
    struct Request a = request_of(t, false, question), b = request_of(t, true, question);
    must(session_run(e, &a, &in_memory));
    must(session_run(e, &b, &streamed));
    same_results(&in_memory, &streamed);
    result_free(&in_memory);
    result_free(&streamed);
}

/* ==== Cuts ==== */

struct Planned {
    struct Session s;
    struct Prompt prompt;
};

static int plan_way(struct Engine *e, const struct Request *req, struct Planned *p)
{
    memset(p, 0, sizeof *p);
    int status = session_prompt(e, req, &p->prompt);
    if (status == PC_OK) status = session_open(&p->s, e, req, &p->prompt, NULL);
    return status;
}

static void plan_close(struct Planned *p)
{
    prompt_free(&p->prompt);
    session_close(&p->s);
}

static int same_cuts(struct Engine *e, const struct Text *t, const char *question)
{
    struct Planned a, b;
    struct Request in_memory = request_of(t, false, question),
                   streamed = request_of(t, true, question);
    must(plan_way(e, &in_memory, &a));
    must(plan_way(e, &streamed, &b));
    same_plan(a.s.plan, b.s.plan);
    int n = a.s.plan.n_chunks;
    const size_t *offset = a.s.prompt.context_offset;
    for (int i = 0; i < n; i++) {
        const struct Chunk *c = &a.s.chunks[i];
        assert_int_equal(c->begin, b.s.chunks[i].begin);
        assert_int_equal(c->end, b.s.chunks[i].end);
        assert_int_equal(offset[c->begin], b.s.places[2 * i]);
        assert_int_equal(offset[c->end], b.s.places[2 * i + 1]);
    }
    assert_int_equal(a.s.prompt.tail.n, b.s.prompt.tail.n);
    assert_memory_equal(a.s.prompt.tail.ids, b.s.prompt.tail.ids,
                        sizeof(int) * (size_t)a.s.prompt.tail.n);
    plan_close(&a);
    plan_close(&b);
    return n;
}

/* Every size about those where chunks become more, one chunk becomes several, and the window is left. */
static void test_sizes(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    size_t before = mem_in_use();
    int most = 0;
    for (int chunk = 0; chunk < 3; chunk++)
        for (size_t bytes = 1; bytes < 9000; bytes += bytes < 30 ? 1 : 97 + bytes / 5) {
            struct Text h = hostile(bytes, bytes), p = prose(bytes, bytes);
            e->settings.chunk = chunk == 2 ? AUTO : 128;
            e->settings.overlap = chunk == 1 ? 37 : 0;
            int n = same_cuts(e, &h, "Where?"), m = same_cuts(e, &p, "Where is it?");
            if (n > most) most = n;
            if (m > most) most = m;
            text_close(&h);
            text_close(&p);
        }
    assert_true(most > 30);
    assert_int_equal(mem_in_use(), before);
    engine_close(e);
}

/* Boundaries that are decided far before a cut: runs of blanks, lines and closing brackets longer than any stretch. */
static void test_long_runs(void **state)
{
    (void)state;
    static const char *const runs[] = {" ", "\n", " \n", ")", "\xe2\x80\x9d", ".)", "\t\"", "a"};
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        for (int before = 0; before < 3; before++) {
            struct Text t = {0};
            if (before) hostile_text(&t.str, 3000, i);
            must(str_appendf(&t.str, before == 1 ? "end." : "\n\n"));
            while (t.str.len < 7000) must(str_append(&t.str, runs[i], strlen(runs[i])));
            must(str_appendf(&t.str, "x"));
            hostile_text(&t.str, 3000, i);
            text_open(&t);
            assert_true(same_cuts(e, &t, "Where?") > 3);
            text_close(&t);
        }
    engine_close(e);
}

static void repeat(struct Str *text, const char *what, size_t n)
{
    while (n-- > 0) must(str_append(text, what, strlen(what)));
}

/* A sentence that ends in front of brackets and blanks, which fill more than a segment: the cuts near their end are the
 * sentence's. */
static void test_far_stop(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    for (size_t words = 0; words < 150; words += 7) {
        struct Text t = {0};
        repeat(&t.str, "word ", 100 + words);
        must(str_appendf(&t.str, "end."));
        repeat(&t.str, ")", 300);
        repeat(&t.str, " ", 9000 + 2 * words);
        repeat(&t.str, "w x ", 1000);
        text_open(&t);
        assert_true(same_cuts(e, &t, "Where?") > 3);
        text_close(&t);
    }
    engine_close(e);
}

/* ==== Runs ==== */

static void test_runs(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 3, 50, 600, 1500, 3000, 5000};
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, 1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int wave = 0; wave < 2; wave++) {
            struct Text h = hostile(sizes[i], i), p = prose(sizes[i], i);
            e->settings.wave = wave ? 3 : 1;
            e->settings.kv_cap = wave ? 40 : CAP_OFF;
            both_ways(e, &h, "Where is the xyzzy?");
            both_ways(e, &p, "Where is the xyzzy?");
            both_ways(e, &p, "");
            text_close(&h);
            text_close(&p);
        }
    engine_close(e);
}

static void test_scores(void **state)
{
    (void)state;
    static const enum ChunkScore scores[] = {SCORE_AUTO,   SCORE_QUESTION, SCORE_PUBLISHED,
                                             SCORE_RANDOM, SCORE_BM25,     SCORE_FUSION};
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Text p = prose(4000, 3);
    for (size_t i = 0; i < sizeof scores / sizeof *scores; i++)
        for (int overlap = 0; overlap < 2; overlap++) {
            e->settings.chunk_score = scores[i];
            e->settings.overlap = overlap * 23;
            e->settings.keep = overlap ? KEEP_ALL : 3;
            both_ways(e, &p, "Where is the xyzzy and nought?");
        }
    text_close(&p);
    engine_close(e);
}

/* Words are those of each chunk's own bytes, however many chunks are looked at together. */
static void test_words(void **state)
{
    (void)state;
    const char *question = "Where is the xyzzy and nought?";
    for (int threads = 1; threads < 4; threads += 2) {
        struct Engine *e = open_engine("llama", PRECISION_INT16, threads);
        struct Text p = prose(300000, 3);
        e->settings.chunk_score = SCORE_BM25;
        e->settings.max_tokens = 1;
        for (int way = 0; way < 4; way++) {
            struct Request req = request_of(&p, way % 2, question);
            struct Result r;
            static struct LexText text[4000];
            static double score[4000];
            e->settings.overlap = way / 2 * 23;
            must(session_run(e, &req, &r));
            int n = r.plan.n_chunks;
            assert_in_range(n, 1500, 3999); /* several times what is looked at together */
            for (int c = 0; c < n; c++)
                text[c] = (struct LexText){p.str.data + r.chunks[c].byte_begin,
                                           r.chunks[c].byte_end - r.chunks[c].byte_begin};
            must(bm25_scores((struct LexText){question, strlen(question)}, text, n, score));
            for (int c = 0; c < n; c++) assert_true(r.chunks[c].score == -score[c]);
            result_free(&r);
        }
        text_close(&p);
        engine_close(e);
    }
}

/* Methods that read one sequence, with and without room for all of it. */
static void test_methods(void **state)
{
    (void)state;
    static const enum Method methods[] = {METHOD_FULL,        METHOD_TRUNCATE,  METHOD_STREAMING,
                                          METHOD_SNAPKV,      METHOD_PYRAMIDKV, METHOD_SELF_EXTEND,
                                          METHOD_PARALLELCOMP};
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    e->settings.max_tokens = 4;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        for (size_t bytes = 400; bytes <= 2400; bytes += 2000) {
            struct Text p = prose(bytes, i);
            e->settings.method = methods[i];
            e->settings.kv_cap = compresses(&e->settings) ? 60 : AUTO;
            both_ways(e, &p, "Where is the xyzzy?");
            text_close(&p);
        }
    engine_close(e);
}

/* Without a template and a question the text's last token is the one that is answered. */
static void test_no_tail(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    e->chat = (struct Chat){.kind = CHAT_RAW};
    for (size_t bytes = 1; bytes < 5000; bytes = bytes * 3 + 1) {
        struct Text p = prose(bytes, bytes);
        struct Request req = request_of(&p, true, "");
        struct PlanInfo plan;
        same_cuts(e, &p, "");
        both_ways(e, &p, "");
        must(session_plan(e, &req, &plan));
        assert_int_equal(plan.n_context, p.stream.n_tokens - 1);
        text_close(&p);
    }
    struct Text one = {0};
    must(str_appendf(&one.str, "a"));
    text_open(&one);
    struct Request req = request_of(&one, true, "");
    struct PlanInfo plan;
    assert_int_equal(session_plan(e, &req, &plan), PC_ERANGE); /* nothing left before it */
    text_close(&one);
    engine_close(e);
}

/* One scan serves every question, and is made again when the text begins otherwise. */
static void test_scans_once(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Text p = prose(3000, 1);
    both_ways(e, &p, "Where is the xyzzy?");
    const struct TextSegment *scanned = p.stream.segments;
    assert_true(p.stream.seconds == 0); /* counted by the run */
    both_ways(e, &p, "And nought?");
    assert_ptr_equal(p.stream.segments, scanned);
    assert_false(p.stream.begins && e->chat.kind != CHAT_RAW);
    text_close(&p);
    engine_close(e);
}

/* ==== Reading ahead ==== */

/* The stream's own reader has loaded the first wave, and the thread all others; or all, where there is no thread. */
static void check_ahead(struct Engine *e, const struct Text *t, bool early)
{
    struct Result r;
    struct Request req = request_of(t, true, "Where is the xyzzy?");
    both_ways(e, t, "Where is the xyzzy?");
    must(session_run(e, &req, &r));
    int n = r.plan.n_chunks, wave = r.plan.wave, last = no_threads ? n - 1 : wave - 1;
    assert_true(n > 3 * wave && (r.plan.n_early > 0) == early);
    const struct TextStream *st = &t->stream;
    assert_true(st->first <= r.chunks[last].begin && st->first + st->ids.n >= r.chunks[last].end);
    if (!no_threads) assert_true(st->first + st->ids.n < r.chunks[n - 1].begin);
    result_free(&r);
}

static void test_ahead(void **state)
{
    (void)state;
    log_set(LOG_ERROR);
    for (int threads = 1; threads <= 4; threads *= 2) {
        struct Engine *e = open_engine("llama", PRECISION_INT16, threads);
        struct Text p = prose(1600, 8);
        e->settings.keep = 2;
        e->settings.max_tokens = 2;
        for (int way = 0; way < (threads == 1 ? 6 : 2); way++) {
            e->settings.wave = 1 + way / 2;
            e->settings.early = way % 2 ? EARLY_AUTO : EARLY_OFF;
            e->settings.overlap = way == 4 ? 20 : 0;
            snprintf(e->settings.early_at, sizeof e->settings.early_at, way % 2 ? "1:6" : "");
            check_ahead(e, &p, way % 2);
            no_threads = threads == 1; /* others belong to the backend */
            check_ahead(e, &p, way % 2);
            no_threads = false;
        }
        text_close(&p);
        engine_close(e);
    }
}

/* ==== Progress and stopping ==== */

struct Seen {
    int stages[STAGE_DONE + 1], stop_after;
    int64_t counted, share;
};

static void on_seen(void *user, const struct Progress *p)
{
    struct Seen *seen = user;
    seen->stages[p->stage]++;
    if (p->stage != STAGE_TOKENIZE) return;
    assert_true(p->tokens_done >= seen->counted);
    seen->counted = p->tokens_done;
    seen->share = p->n_tokens;
}

static bool stop_seen(void *user)
{
    struct Seen *seen = user;
    return seen->stop_after > 0 && --seen->stop_after == 0;
}

static void test_progress(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Text p = prose(4000000, 1);
    struct Seen seen = {0};
    struct Request req = request_of(&p, true, "Where?");
    struct PlanInfo plan;
    req.on_progress = on_seen;
    req.stop = stop_seen;
    req.user = &seen;
    must(session_plan(e, &req, &plan));
    assert_in_range(seen.stages[STAGE_TOKENIZE], 2, 10);
    assert_true(seen.counted > plan.n_context / 2 && seen.counted < plan.n_context);
    assert_true(llabs(seen.share - plan.n_context) < plan.n_context / 10); /* by the bytes */
    text_close(&p);
    for (int after = 1; after < 4; after++) {
        struct Text q = prose(4000000, 1);
        req = request_of(&q, true, "Where?");
        req.stop = stop_seen;
        req.user = &seen;
        seen.stop_after = after;
        size_t before = mem_in_use();
        assert_int_equal(session_plan(e, &req, &plan), PC_EINTR);
        assert_true(mem_in_use() < before + 40000); /* the buffers for a segment stay */
        text_close(&q);
    }
    engine_close(e);
}

/* ==== Memory ==== */

struct Peak {
    size_t used, planned, held;
    int n_context, n_chunks;
};

static struct Peak measure(struct Engine *e, size_t bytes)
{
    const struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    struct Text p = prose(bytes, 4);
    struct Request req = request_of(&p, true, "What is it?");
    struct Result r;
    str_free(&p.str);
    must(e->be->reserve(e->dev, &least));
    size_t at_rest = mem_in_use() - e->be->scratch_bytes(e->dev, &least);
    must(session_run(e, &req, &r));
    struct Peak peak = {r.peak_bytes - at_rest, r.plan.peak_bytes, text_stream_held(&p.stream),
                        r.plan.n_context, r.plan.n_chunks};
    result_free(&r);
    text_close(&p);
    return peak;
}

/* A few bytes a chunk and a segment, planned as they are taken; the text takes none. */
static void test_memory(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    e->settings.kv_cap = 64;
    e->settings.wave = 2;
    e->settings.max_tokens = 4;
    struct Peak few = measure(e, 20000), many = measure(e, 400000);
    double tokens = many.n_context - few.n_context, chunks = many.n_chunks - few.n_chunks;
    double used = ((double)many.used - (double)few.used) / tokens,
           planned = ((double)many.planned - (double)few.planned) / tokens,
           segments = ((double)many.held - (double)few.held) / tokens;
    print_message("# %d to %d tokens: %.3f bytes a token, planned %.3f; %.3f of segments; %.0f a "
                  "chunk of %.0f\n",
                  few.n_context, many.n_context, used, planned, segments,
                  (used - segments) * tokens / chunks, tokens / chunks);
    assert_true(used < 1.2); /* of which a chunk of 100 tokens takes the most */
    assert_true((used - segments) * tokens / chunks < 120);
    assert_true(fabs(used - planned) < 0.1);
    engine_close(e);
}

/* ==== Several ranks ==== */

enum { TEAM_IDS = 16 };

struct Answer {
    int n_chunks, n_ids, ids[TEAM_IDS];
    bool kept[64];
    uint64_t hash;
};

static int read_share(struct Team *t, const char *path, struct Answer *out)
{
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct TextStream stream;
    struct Request req = {.question = "Where is the xyzzy?", .stream = &stream};
    struct Result r = {0};
    e->settings.kv_cap = 50;
    e->settings.keep = 3;
    must(engine_join(e, t));
    int status = text_stream_open(&stream, &path, 1);
    if (status == PC_OK) status = session_run(e, &req, &r);
    memset(out, 0, sizeof *out);
    if (status == PC_OK) {
        out->n_chunks = r.plan.n_chunks;
        out->n_ids = r.n_ids;
        memcpy(out->ids, r.ids, sizeof(int) * (size_t)r.n_ids);
        for (int i = 0; i < r.plan.n_chunks && i < 64; i++) out->kept[i] = r.chunks[i].kept;
        out->hash = r.logits_hash;
    }
    result_free(&r);
    text_stream_close(&stream);
    engine_close(e);
    return status;
}

static int code_of(int status)
{
    return status < 0 ? 10 - status : 0;
}

static void say_nothing(const char *text)
{
    (void)text;
}

struct Paths {
    const char *first, *others;
};

static int other_rank(struct Team *t, void *user)
{
    const struct Paths *paths = user;
    struct Answer answer;
    int status = read_share(t, paths->others, &answer);
    return code_of(team_close(t, status, say_nothing, code_of));
}

static int read_together(int size, struct Paths *paths, struct Answer *out)
{
    struct Ranks ranks;
    ranks_start(&ranks, size, other_rank, paths);
    int status = read_share(&ranks.team, paths->first, out);
    int end = team_close(&ranks.team, status, say_nothing, code_of);
    for (int i = 1; i < size; i++) assert_int_equal(ranks_wait(&ranks, i), code_of(end));
    return end;
}

static void test_ranks(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 2; seed++) {
        struct Text p = prose(2500 + 900 * seed, seed), q = prose(2500 + 900 * seed, seed + 9);
        struct Paths same = {p.path, p.path}, others = {p.path, q.path};
        struct Answer one, many;
        must(read_together(1, &same, &one));
        assert_true(one.n_chunks > 5 && one.n_ids > 0);
        for (int size = 2; size <= 4; size++) {
            must(read_together(size, &same, &many));
            assert_memory_equal(&one, &many, sizeof one);
        }
        assert_int_equal(read_together(2, &others, &many), PC_ECONFIG);
        text_close(&p);
        text_close(&q);
    }
}

/* ==== What goes wrong ==== */

struct Change {
    struct Text *text;
    enum Stage stage;
    bool shorter;
};

static void on_change(void *user, const struct Progress *p)
{
    struct Change *c = user;
    if (p->stage != c->stage) return;
    if (c->shorter)
        assert_int_equal(truncate(c->text->path, (off_t)c->text->str.len / 2), 0);
    else
        write_text(c->text->path, c->text->str.data + 1, c->text->str.len - 1);
}

/* The file is shorter, or another one, once prefill has begun. */
static void test_changes(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    e->settings.wave = 1;
    for (int shorter = 0; shorter < 2; shorter++) {
        struct Text p = prose(16000, 2);
        struct Change change = {&p, STAGE_PREFILL, shorter};
        struct Request req = request_of(&p, true, "Where?");
        struct Result r;
        req.on_progress = on_change;
        req.user = &change;
        assert_int_equal(session_run(e, &req, &r), PC_EIO);
        assert_non_null(strstr(err_text(), p.path));
        assert_non_null(strstr(err_text(), "changed while it was being read"));
        result_free(&r);
        text_close(&p);
    }
    engine_close(e);
}

static bool stop_late(void *user)
{
    return --*(int *)user == 0;
}

/* Stopped at any moment of the waves: the thread is gone, and what it had. */
static void test_stops(void **state)
{
    (void)state;
    const struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Text p = prose(1000, 2);
    e->settings.wave = 2;
    e->settings.max_tokens = 1;
    int status = PC_EINTR, n_stopped = 0;
    for (int after = 1; status != PC_OK; after++) {
        struct Request req = request_of(&p, true, "Where?");
        struct Result r;
        int left = after;
        req.stop = stop_late;
        req.user = &left;
        must(e->be->reserve(e->dev, &least));
        size_t before = mem_in_use();
        status = session_run(e, &req, &r);
        result_free(&r);
        must(e->be->reserve(e->dev, &least));
        if (after > 2) assert_int_equal(mem_in_use(), before);
        if (status < 0) assert_int_equal(status, PC_EINTR);
        n_stopped += status < 0;
    }
    assert_true(n_stopped > 12);
    text_close(&p);
    engine_close(e);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    e->settings.max_tokens = 2;
    const struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    struct Text p = prose(500, 2);
    const char *path = p.path;
    must(e->be->reserve(e->dev, &least));
    size_t before = mem_in_use();
    int status = PC_ENOMEM, n = 0;
    while (status != PC_OK && n < 1000) {
        struct TextStream stream;
        struct Request req = {.question = "Where?", .stream = &stream};
        struct Result r = {0};
        mem_fail_after(++n);
        status = text_stream_open(&stream, &path, 1);
        if (status == PC_OK) status = session_run(e, &req, &r);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        result_free(&r);
        text_stream_close(&stream);
        must(e->be->reserve(e->dev, &least));
        assert_int_equal(mem_in_use(), before);
    }
    assert_in_range(n, 30, 999);
    text_close(&p);
    engine_close(e);
}

/* Chunks that leave early, and those that words choose, are the same; survivors are not read from the file again. */
static void test_early(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Text p = prose(4000, 6);
    e->settings.keep = 2;
    e->settings.early = EARLY_AUTO;
    snprintf(e->settings.early_at, sizeof e->settings.early_at, "1:6,2:4");
    for (int overlap = 0; overlap < 50; overlap += 23)
        for (int prefilter = 0; prefilter < 20; prefilter += 9) {
            e->settings.overlap = overlap;
            e->settings.prefilter = prefilter;
            both_ways(e, &p, "Where is xyzzy?");
        }
    text_close(&p);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_early),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_far_stop),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_methods),
        cmocka_unit_test(test_no_tail),
        cmocka_unit_test(test_scans_once),
        cmocka_unit_test(test_ahead),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_stops),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_session_pipe.c - chunks that are read while a pipe is still open: cuts, scores, kept chunks and answer are those of the same
 * text in memory, to the bit; what must wait for the end waits; stops, failures and texts that turn out bad.
 */
#include "stream_support.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>

#include "tests/unit/session_support.h"
#include "text_stream.h"

/* ==== A slow pipe ==== */

enum { MANY = 150 }; /* chunks that are read before the pipe goes on */

/* A thread that writes the first bytes, waits until it is told to go on, and writes the rest. */
struct Feeder {
    char path[32];
    const struct Str *text;
    size_t first;
    pthread_t thread;
    sem_t go;
    int n_events; /* of prefill, while the end was open */
    bool went_on;
    atomic_bool done;
    struct TextStream stream; /* of what it writes, */
    struct Request req;       /* and what is asked of that */
};

static void write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t put = write(fd, data, len);
        if (put <= 0) return; /* the reader has gone */
        data += put;
        len -= (size_t)put;
    }
}

static void *feed(void *feeder)
{
    struct Feeder *f = feeder;
    int fd = open(f->path, O_WRONLY);
    assert_true(fd >= 0);
    write_all(fd, f->text->data, f->first);
    sem_wait(&f->go);
    write_all(fd, f->text->data + f->first, f->text->len - f->first);
    close(fd);
    f->done = true;
    return NULL;
}

static void go_on(struct Feeder *f)
{
    if (!f->went_on) sem_post(&f->go);
    f->went_on = true;
}

/* While the end is open no totals are told; once enough chunks are read, the pipe goes on. */
static void on_progress(void *user, const struct Progress *p)
{
    struct Feeder *f = user;
    if (p->stage != STAGE_PREFILL || p->n_chunks) return;
    assert_true(p->n_tokens == 0 && p->tokens_done > 0 && p->seconds > 0);
    f->n_events++;
    if (p->chunks_done >= MANY) go_on(f);
}

static const char question[] = "Where is the xyzzy?";

/* The pipe stops after `first` bytes, if these are not all. */
static void feeder_open(struct Feeder *f, const struct Str *text, size_t first)
{
    *f = (struct Feeder){.text = text, .first = first};
    f->req = (struct Request){
        .stream = &f->stream, .question = question, .user = f, .on_progress = on_progress};
    temp_name(f->path);
    unlink(f->path);
    assert_int_equal(mkfifo(f->path, 0600), 0);
    sem_init(&f->go, 0, 0);
    if (first == text->len) go_on(f);
    assert_int_equal(pthread_create(&f->thread, NULL, feed, f), 0);
    const char *path = f->path;
    must(text_stream_open(&f->stream, &path, 1));
}

/* Takes what nobody wanted, so that the thread comes to its end. */
static void feeder_close(struct Feeder *f)
{
    char rest[4096];
    pipe_read_free(f->req.pipe);
    text_stream_close(&f->stream);
    int fd = open(f->path, O_RDONLY | O_NONBLOCK);
    go_on(f);
    while (!f->done)
        if (read(fd, rest, sizeof rest) <= 0) usleep(1000);
    close(fd);
    pthread_join(f->thread, NULL);
    sem_destroy(&f->go);
    unlink(f->path);
}

/* Sentences and paragraphs of few tokens a byte, with an odd word here and there. */
static struct Str prose(size_t bytes, uint64_t seed)
{
    struct Str text = {0};
    uint64_t state = seed;
    while (text.len < bytes) {
        for (uint32_t i = 2 + below(&state, 12); i; i--)
            must(str_appendf(&text, "%c%.*s the the the the ", 'a' + (int)below(&state, 26),
                             (int)below(&state, 5), "nought"));
        must(str_appendf(&text, below(&state, 4) ? "end. " : "end.\n\n"));
        if (below(&state, 300) == 0) must(str_appendf(&text, "Here is xyzzy. "));
    }
    return text;
}

enum { TEXT = 160000, FIRST = 135000 }; /* a pipe is counted 128 KiB at a time */

/* ==== The same as in memory ==== */

static bool same_chunk(const struct ChunkInfo *x, const struct ChunkInfo *y)
{
    return x->begin == y->begin && x->end == y->end && x->byte_begin == y->byte_begin &&
           x->byte_end == y->byte_end &&
           (x->score == y->score || (isnan(x->score) && isnan(y->score))) && x->kept == y->kept &&
           x->round == y->round && x->n_layers == y->n_layers;
}

static void same_results(const struct Result *a, const struct Result *b)
{
    assert_int_equal(a->plan.n_chunks, b->plan.n_chunks);
    assert_int_equal(a->plan.n_context, b->plan.n_context);
    assert_int_equal(a->plan.question_pos, b->plan.question_pos);
    assert_memory_equal(a->plan.early, b->plan.early, sizeof a->plan.early);
    for (int i = 0; i < a->plan.n_chunks; i++) {
        const struct ChunkInfo *x = &a->chunks[i], *y = &b->chunks[i];
        if (!same_chunk(x, y))
            fail_msg("chunk %d of %d: %d to %d, score %.17g, %d layers; in memory %d to %d, score "
                     "%.17g, %d layers",
                     i, a->plan.n_chunks, y->begin, y->end, y->score, y->n_layers, x->begin, x->end,
                     x->score, x->n_layers);
    }
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, sizeof *a->ids * (size_t)a->n_ids);
    for (int i = 0; i < a->plan.rounds - 1; i++) {
        assert_int_equal(a->found[i].len, b->found[i].len);
        assert_memory_equal(a->found[i].data, b->found[i].data, a->found[i].len);
    }
    assert_true(a->input_hash == b->input_hash && a->config_hash == b->config_hash);
    assert_true(a->logits_hash == b->logits_hash);
}

/* What an engine makes of the text in memory. */
static struct Result in_memory(struct Engine *e, const struct Str *text, const char *asked)
{
    struct Request req = {.context = text->data, .context_len = text->len, .question = asked};
    struct Result r;
    must(session_run(e, &req, &r));
    return r;
}

/* Reads the text from a pipe that stops after `first` bytes; the answer to `asked`, and how many chunks were read before its end. */
static int from_pipe(struct Engine *e, const struct Str *text, size_t first, const char *asked)
{
    struct Feeder f;
    struct Result want = in_memory(e, text, asked), r;
    feeder_open(&f, text, first);
    must(session_pipe(e, &f.req, &f.req.pipe));
    go_on(&f);
    f.req.question = asked;
    f.req.on_progress = NULL;
    must(session_run(e, &f.req, &r));
    int n = r.n_piped;
    assert_true(f.req.pipe || n == 0);
    same_results(&want, &r);
    assert_true(r.time.tokenize >= 0 && r.time.prefill >= 0);
    assert_true(fabs(r.time.tokenize + r.time.prefill + r.time.question + r.time.decode -
                     r.time.total) < 0.01);
    result_free(&want);
    result_free(&r);
    feeder_close(&f);
    return n;
}

static void is_read_early(struct Engine *e, const struct Str *text)
{
    assert_true(from_pipe(e, text, FIRST, question) >= MANY);
}

static struct Engine *open_pipe_engine(const char *arch)
{
    struct Engine *e = open_engine(arch, PRECISION_INT16, 1);
    e->settings.max_tokens = 3;
    return e;
}

/* Every score of a model, with cuts that repeat tokens, waves, caps and more chunks kept. */
static void test_scores(void **state)
{
    (void)state;
    static const enum ChunkScore scores[] = {SCORE_AUTO, SCORE_QUESTION, SCORE_PUBLISHED,
                                             SCORE_FUSION};
    struct Str text = prose(TEXT, 3);
    for (size_t i = 0; i < sizeof scores / sizeof *scores; i++) {
        struct Engine *e = open_pipe_engine(archs[i % N_ARCHS]);
        e->settings.chunk_score = scores[i];
        e->settings.overlap = i % 2 ? 23 : 0;
        e->settings.wave = i % 3 ? 5 : 1;
        e->settings.kv_cap = i > 1 ? 40 : CAP_OFF;
        e->settings.keep = i ? 1 + 4 * (int)i : AUTO;
        is_read_early(e, &text);
        engine_close(e);
    }
    str_free(&text);
}

/* Texts of any length behind what was read, and of any bytes: later cuts do not move earlier ones. */
static void test_lengths(void **state)
{
    (void)state;
    struct Engine *e = open_pipe_engine("llama");
    struct Str text = prose(60000, 8);
    e->settings.max_tokens = 1;
    hostile_text(&text, 9000, 8);
    while (text.len < TEXT) must(str_appendf(&text, "the the the the the end. "));
    for (size_t bytes = FIRST + 500; bytes < TEXT; bytes += 11111) {
        struct Str some = {.data = text.data, .len = bytes};
        is_read_early(e, &some);
    }
    str_free(&text);
    engine_close(e);
}

static void set_profile(struct Engine *e, float nats)
{
    struct ChunkProfile *p = &e->chunks;
    *p = (struct ChunkProfile){.n_layers = LAYERS, .n_kv_heads = 2, .n_stops = 2, .nats = nats};
    p->stops[0] =
        (struct ChunkStop){.layer = 1, .n_heads = 1, .words = 0.5f, .n_ahead = 1, .ahead = {0.3f}};
    p->stops[0].heads[0] = (struct StopHead){0, 1, MEASURE_PEAK, 4, 2};
    p->stops[1] = (struct ChunkStop){.layer = 2, .n_heads = 2, .n_ahead = 2, .ahead = {0, 0.1f}};
    p->stops[1].heads[0] = (struct StopHead){1, 0, MEASURE_SUM, 32, 1};
    p->stops[1].heads[1] = (struct StopHead){0, 0, MEASURE_SUM, 8, 0.3f};
    p->last = (struct ChunkStop){.layer = LAYERS, .n_heads = 1};
    p->last.heads[0] = (struct StopHead){LAYERS - 1, 1, MEASURE_SUM, EARLY_ROWS, 1};
}

/* Decisions that are given, those of a profile with words, attention that counts in the end, and all of it. */
static void test_early(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 6);
    for (int way = 0; way < 4; way++) {
        struct Engine *e = open_pipe_engine(archs[way % N_ARCHS]);
        set_profile(e, way > 1 ? 0.75f : 0);
        e->settings.early = way == 2 ? EARLY_OFF : way ? EARLY_PROFILE : EARLY_AUTO;
        e->settings.early_risk = 0.05f;
        e->settings.wave = way == 3 ? 7 : 2;
        if (way == 0) snprintf(e->settings.early_at, sizeof e->settings.early_at, "1:300,2:40");
        is_read_early(e, &text);
        engine_close(e);
    }
    str_free(&text);
}

/* The finding of the first round stands in a chunk that was read from the pipe, or behind it. */
static void test_rounds(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 9);
    struct Engine *e = open_pipe_engine("qwen2");
    e->settings.rounds = 2;
    e->settings.keep = 4;
    is_read_early(e, &text);
    e->settings.kv_cap = 48;
    e->settings.early = EARLY_PROFILE;
    set_profile(e, 0);
    is_read_early(e, &text);
    engine_close(e);
    str_free(&text);
}

/* Streaming heads keep the end of the last kept chunk, in whatever order chunks are read. */
static void test_heads(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 4);
    struct Engine *e = open_pipe_engine("llama");
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    must(headmap_random(&shape, 5, &e->heads));
    e->heads.sink = 4;
    e->heads.recent = 40;
    e->settings.heads_ratio = 0.5f;
    is_read_early(e, &text);
    e->heads.threshold = 1000000; /* the text is too short for them, which the pipe does not know */
    assert_int_equal(from_pipe(e, &text, FIRST, question), 0);
    engine_close(e);
    str_free(&text);
}

/* ==== What waits for the end ==== */

/* Nobody opens the pipe, which has no writer. */
static void is_left_to_the_run(struct Engine *e)
{
    struct TextStream stream;
    struct PipeRead *pipe;
    char name[32];
    const char *path = name;
    temp_name(name);
    unlink(name);
    assert_int_equal(mkfifo(name, 0600), 0);
    must(text_stream_open(&stream, &path, 1));
    struct Request req = {.stream = &stream, .question = question};
    must(session_pipe(e, &req, &pipe));
    assert_null(pipe);
    text_stream_close(&stream);
    unlink(name);
}

/* One that gives all it has at once. */
static void is_too_fast(struct Engine *e, const struct Str *text)
{
    struct Feeder f;
    feeder_open(&f, text, text->len);
    must(session_pipe(e, &f.req, &f.req.pipe));
    assert_null(f.req.pipe);
    assert_true(f.stream.source.whole);
    feeder_close(&f);
}

static void test_what_waits(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 5), little = {.data = text.data, .len = 9000};
    struct Engine *e = open_pipe_engine("llama");
    const struct Settings plain = e->settings;
    is_too_fast(e, &text);
    assert_int_equal(from_pipe(e, &little, little.len, question), 0);
    for (int way = 0; way < 6; way++) {
        e->settings = plain;
        if (way == 0) e->settings.chunk_score = SCORE_BM25;
        if (way == 1) e->settings.chunk_score = SCORE_RANDOM;
        if (way == 2) e->settings.prefilter = 20;
        if (way == 3) e->settings.keep = EVEN_CHUNKS;
        if (way == 4) e->settings.method = METHOD_STREAMING;
        if (way == 5) e->settings.rope_scaling = SCALING_NTK;
        is_left_to_the_run(e);
    }
    e->settings = plain;
    struct Request in_file = {.context = text.data, .context_len = text.len, .question = ""};
    struct PipeRead *pipe;
    must(session_pipe(e, &in_file, &pipe)); /* no stream at all */
    assert_null(pipe);
    engine_close(e);
    str_free(&text);
}

/* Another question, or other settings, and what was read does not count. */
static void test_other_question(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 5);
    struct Engine *e = open_pipe_engine("llama");
    assert_int_equal(from_pipe(e, &text, FIRST, "And nought, where is that?"), 0);
    engine_close(e);
    str_free(&text);
}

/* Without a question the text's last token is asked for. */
static void test_no_tail(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 5);
    struct Engine *e = open_pipe_engine("llama");
    struct Feeder f;
    e->chat = (struct Chat){.kind = CHAT_RAW};
    feeder_open(&f, &text, FIRST);
    f.req.question = "";
    must(session_pipe(e, &f.req, &f.req.pipe));
    assert_null(f.req.pipe);
    assert_false(f.stream.source.whole);
    feeder_close(&f);
    engine_close(e);
    str_free(&text);
}

/* ==== What goes wrong ==== */

static bool stop_late(void *user)
{
    return --*(int *)user <= 0;
}

/* Reads from a pipe that never goes on, until something ends it. */
static int fails(struct Engine *e, const struct Str *text, int stop_after, int alloc_after)
{
    const struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    struct Feeder f;
    must(e->be->reserve(e->dev, &least));
    size_t before = mem_in_use();
    feeder_open(&f, text, FIRST);
    f.req.on_progress = NULL;
    f.req.stop = stop_late;
    f.req.user = &stop_after;
    mem_fail_after(alloc_after);
    int status = session_pipe(e, &f.req, &f.req.pipe);
    mem_fail_after(0);
    feeder_close(&f);
    must(e->be->reserve(e->dev, &least));
    assert_int_equal(mem_in_use(), before);
    return status;
}

static void test_stops(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 5);
    struct Engine *e = open_pipe_engine("llama");
    e->settings.wave = 1;
    for (int after = 1; after < 400; after = after * 3 + 1)
        assert_int_equal(fails(e, &text, after, 0), PC_EINTR);
    engine_close(e);
    str_free(&text);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 5);
    struct Engine *e = open_pipe_engine("llama");
    set_profile(e, 0.5f);
    e->settings.rounds = 2;
    e->settings.wave = 1;
    for (int n = 1, status = PC_ENOMEM; status == PC_ENOMEM; n += 1 + n / 4) {
        status = fails(e, &text, 400, n); /* by when all allocations are made */
        assert_true(status == PC_ENOMEM || status == PC_EINTR);
        assert_true(status == PC_ENOMEM || n > 60);
    }
    engine_close(e);
    str_free(&text);
}

/* Bad bytes behind what was read are named as ever. */
static void test_bad_text(void **state)
{
    (void)state;
    struct Str text = prose(TEXT, 5);
    struct Engine *e = open_pipe_engine("llama");
    struct Feeder f;
    struct Result r = {0};
    char where[64];
    text.data[TEXT - 100] = '\0';
    feeder_open(&f, &text, FIRST);
    int status = session_pipe(e, &f.req, &f.req.pipe);
    if (status == PC_OK) status = session_run(e, &f.req, &r);
    assert_int_equal(status, PC_EFORMAT);
    snprintf(where, sizeof where, "%s: NUL at byte %d", f.path, TEXT - 100);
    assert_non_null(strstr(err_text(), where));
    assert_true(f.n_events > 3);
    result_free(&r);
    feeder_close(&f);
    engine_close(e);
    str_free(&text);
}

/* Memory is a few bytes a chunk, however many are read, and is given back. */
static void test_memory(void **state)
{
    (void)state;
    const struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    struct PipeRead most = {.cap = 4096, .n_looks = 3};
    struct Str text = prose(2 * TEXT, 5);
    struct Engine *e = open_pipe_engine("llama");
    set_profile(e, 0.5f);
    e->settings.chunk = 256;
    e->settings.early = EARLY_PROFILE;
    assert_true(pipe_bytes(&most) / 4096 < 90);
    must(e->be->reserve(e->dev, &least));
    size_t before = mem_in_use();
    assert_true(from_pipe(e, &text, 2 * FIRST, question) > MANY);
    must(e->be->reserve(e->dev, &least));
    assert_int_equal(mem_in_use(), before);
    engine_close(e);
    str_free(&text);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores),         cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_early),          cmocka_unit_test(test_rounds),
        cmocka_unit_test(test_heads),          cmocka_unit_test(test_what_waits),
        cmocka_unit_test(test_other_question), cmocka_unit_test(test_no_tail),
        cmocka_unit_test(test_stops),          cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_bad_text),       cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

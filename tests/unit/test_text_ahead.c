/* test_text_ahead.c - tokens loaded by a thread of their own against those of the text as a whole: any order of any ranges, over
 * files, pipes small and large; texts that change on the way, allocations that fail, and no thread to be had.
 */
#include "stream_support.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>

#include "parts.h"
#include "tests/tiny_vocab.h"
#include "text_ahead.h"

/* ==== Threads that cannot be started ==== */

static bool no_threads;
static int n_started;

/* Stands before the C library's own. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *user)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    void *found = dlsym(RTLD_NEXT, "pthread_create");
    if (no_threads) return EAGAIN;
    memcpy(&real, &found, sizeof real);
    n_started++;
    return real(thread, attr, run, user);
}

/* ==== A text ==== */

struct Text {
    struct TinyVocab vocab;
    struct Tokenizer *tok;
    struct Str str;
    struct Tokens ids; /* as a whole */
    char path[32];
    struct TextStream stream;
};

/* how: 0 a file, 1 a pipe. */
static struct Text *text_open(size_t bytes, int how, uint64_t seed)
{
    struct Text *t = calloc(1, sizeof *t);
    struct TextPart part;
    const char *path = t->path;
    pid_t child = 0;
    tiny_bpe(&t->vocab, seed % 2 ? "qwen2" : "smollm");
    fine(tokenizer_open(&t->vocab.spec, &t->tok));
    hostile_text(&t->str, bytes, seed);
    part = (struct TextPart){t->str.data, t->str.len, false};
    fine(tokenizer_encode_parts(t->tok, &part, 1, true, &t->ids));
    temp_name(t->path);
    if (how)
        child = pipe_begin(t->path, t->str.data, t->str.len, seed);
    else
        write_text(t->path, t->str.data, t->str.len);
    fine(text_stream_open(&t->stream, &path, 1));
    t->stream.threads = 1 + (int)seed % 4;
    fine(text_stream_scan(&t->stream, t->tok, true, INT_MAX, NULL));
    assert_int_equal(t->stream.n_tokens, t->ids.n);
    if (how) pipe_end(child);
    return t;
}

static void text_close(struct Text *t)
{
    text_stream_close(&t->stream);
    tokens_free(&t->ids);
    tokenizer_close(t->tok);
    str_free(&t->str);
    unlink(t->path);
    free(t);
}

/* ==== Orders ==== */

enum { RANGES = 9, LONGEST = 400 };
static const struct AheadRoom ROOM = {RANGES, RANGES *LONGEST, LONGEST};

static struct TextRange any_range(const struct Text *t, uint64_t *state)
{
    int most = t->ids.n < LONGEST ? t->ids.n : LONGEST, n = 1 + (int)below(state, (uint32_t)most);
    int begin = (int)below(state, (uint32_t)(t->ids.n - n + 1));
    return (struct TextRange){begin, begin + n};
}

static void takes(struct TextAhead *a, const struct Text *t, struct TextRange r, bool there)
{
    const int *ids;
    fine(text_ahead_take(a, r, &ids));
    assert_int_equal(ids != NULL, there);
    if (ids)
        assert_memory_equal(ids, t->ids.ids + r.begin, sizeof *ids * (size_t)(r.end - r.begin));
}

/* An order is taken as a whole, in part, or not at all; in between other ranges are asked for, and the stream's own reader
 * loads. */
static void check_orders(struct Text *t, uint64_t seed)
{
    uint64_t state = seed;
    struct TextAhead *a;
    size_t before = mem_in_use();
    fine(text_stream_reserve(&t->stream, LONGEST, 0));
    size_t reserved = mem_in_use();
    fine(text_ahead_open(&t->stream, ROOM, &a));
    size_t held = mem_in_use();
    assert_true(held - reserved <= text_ahead_bytes(&t->stream, ROOM));
    takes(a, t, any_range(t, &state), false);
    for (int order = 0; order < 30; order++) {
        struct TextRange r[RANGES], other = any_range(t, &state);
        int n = (int)below(&state, RANGES + 1), taken = (int)below(&state, (uint32_t)n + 1);
        for (int i = 0; i < n; i++) r[i] = any_range(t, &state);
        text_ahead_order(a, r, n);
        if (below(&state, 2)) taken = n;
        for (int i = 0; i < taken; i++) {
            struct TextRange wrong = {r[i].begin, r[i].end + 1};
            if (below(&state, 4) == 0) takes(a, t, wrong, false);
            if (below(&state, 4) == 0) fine(text_stream_load(&t->stream, other.begin, other.end));
            takes(a, t, r[i], true);
        }
        if (taken == n && n) takes(a, t, r[n - 1], false);
    }
    text_ahead_close(a);
    assert_true(mem_in_use() <= reserved);
    assert_true(reserved >= before);
}

static void test_orders(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 40, 1023, 1025, 3000, 20000, 200000, 1300000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int how = 0; how < 2; how++) {
            struct Text *t = text_open(sizes[i], how, i + 1);
            check_orders(t, i);
            text_close(t);
        }
}

/* What an order has no room for is left to the caller. */
static void test_room(void **state)
{
    (void)state;
    struct Text *t = text_open(5000, 0, 3);
    struct TextAhead *a;
    struct TextRange r[RANGES + 2];
    for (int i = 0; i < RANGES + 2; i++) r[i] = (struct TextRange){20 * i, 20 * i + 20};
    fine(text_ahead_open(&t->stream, ROOM, &a));
    text_ahead_order(a, r, RANGES + 2);
    for (int i = 0; i < RANGES + 2; i++) takes(a, t, r[i], i < RANGES);
    text_ahead_close(a);
    fine(text_ahead_open(&t->stream, (struct AheadRoom){RANGES, 50, 20}, &a));
    text_ahead_order(a, r, RANGES);
    for (int i = 0; i < RANGES; i++) takes(a, t, r[i], i < 2);
    text_ahead_close(a);
    text_close(t);
}

/* Closed at any time: before an order, while it is loaded, and when nothing of it was taken. */
static void test_close(void **state)
{
    (void)state;
    struct Text *t = text_open(1300000, 0, 5);
    struct TextRange all = {0, t->ids.n};
    fine(text_stream_reserve(&t->stream, 10, 0));
    size_t before = mem_in_use();
    for (int i = 0; i < 30; i++) {
        struct TextAhead *a;
        fine(text_ahead_open(&t->stream, (struct AheadRoom){1, all.end, all.end}, &a));
        if (i) text_ahead_order(a, &all, 1);
        if (i > 20) usleep(100U * (unsigned)i);
        text_ahead_close(a);
        assert_int_equal(mem_in_use(), before);
    }
    text_ahead_close(NULL);
    text_close(t);
}

/* ==== What goes wrong ==== */

/* The file changes behind the first ranges: those are there, and the next one tells; so do all after it. */
static void test_changes(void **state)
{
    (void)state;
    for (int shorter = 0; shorter < 2; shorter++) {
        struct Text *t = text_open(60000, 0, 6);
        struct TextAhead *a;
        int n = t->ids.n;
        struct TextRange r[] = {{0, 50}, {60, 90}, {n - 40, n - 30}, {100, 150}};
        const int *ids;
        fine(text_ahead_open(&t->stream, ROOM, &a));
        if (shorter) assert_int_equal(truncate(t->path, 30000), 0);
        for (size_t i = 30000; i < t->str.len; i++) t->str.data[i] = 'x';
        if (!shorter) write_text(t->path, t->str.data, t->str.len);
        text_ahead_order(a, r, 4);
        takes(a, t, r[0], true);
        takes(a, t, r[1], true);
        for (int i = 2; i < 4; i++) {
            err_set(PC_EINTERNAL, "nothing");
            assert_int_equal(text_ahead_take(a, r[i], &ids), PC_EIO);
            assert_null(ids);
            assert_non_null(strstr(err_text(), t->path));
            assert_non_null(strstr(err_text(), "changed while it was being read"));
        }
        text_ahead_order(a, r, 1); /* nothing more is loaded */
        assert_int_equal(text_ahead_take(a, r[0], &ids), PC_EIO);
        text_ahead_close(a);
        text_close(t);
    }
}

static void test_no_thread(void **state)
{
    (void)state;
    struct Text *t = text_open(9000, 0, 8); /* one thread */
    struct TextRange r[] = {{0, 50}, {60, 90}};
    struct TextAhead *a;
    int before = n_started;
    log_set(LOG_ERROR);
    fine(text_ahead_open(&t->stream, ROOM, &a));
    no_threads = true;
    for (int i = 0; i < 3; i++) {
        text_ahead_order(a, r, 2);
        takes(a, t, r[0], false);
        no_threads = false; /* it is tried once */
    }
    text_ahead_close(a);
    assert_int_equal(n_started, before);
    fine(text_ahead_open(&t->stream, ROOM, &a));
    for (int i = 0; i < 3; i++) {
        text_ahead_order(a, r, 2);
        takes(a, t, r[0], true);
    }
    text_ahead_close(a);
    assert_int_equal(n_started, before + 1);
    text_close(t);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    struct Text *t = text_open(9000, 0, 8);
    struct TextRange r = {100, 400};
    size_t before = mem_in_use();
    int status = PC_ENOMEM, n = 0;
    while (status != PC_OK && n < 100) {
        struct TextAhead *a;
        const int *ids;
        mem_fail_after(++n);
        status = text_ahead_open(&t->stream, ROOM, &a);
        if (status == PC_OK) text_ahead_order(a, &r, 1);
        if (status == PC_OK) status = text_ahead_take(a, r, &ids);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        if (status < 0) assert_non_null(strstr(err_text(), "injected")); /* also from the thread */
        text_ahead_close(a);
        assert_int_equal(mem_in_use(), before);
    }
    assert_in_range(n, 9, 99);
    text_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders),    cmocka_unit_test(test_room),
        cmocka_unit_test(test_close),     cmocka_unit_test(test_changes),
        cmocka_unit_test(test_no_thread), cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

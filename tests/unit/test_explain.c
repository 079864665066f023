/* test_explain.c - the page about a run: well-formed, self-contained, escaped, complete. */
#include "explain.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/html_support.h"

enum { MAX_CHUNKS = 512, LAYERS = 4, HEADS = 2 };

/* A run of n chunks of 10 bytes each; chunk 1 is kept. */
struct Sample {
    struct Result result;
    struct Explain explain;
    struct ChunkInfo chunks[MAX_CHUNKS];
    int64_t kv_in[LAYERS * HEADS], kv_kept[LAYERS * HEADS];
    char context[10 * MAX_CHUNKS + 1];
};

static struct Sample sample; /* too large for the stack */

static void make_sample(int n)
{
    memset(&sample, 0, sizeof sample);
    for (int i = 0; i < 10 * n; i++) sample.context[i] = "<a> & word"[i % 10];
    for (int i = 0; i < n; i++)
        sample.chunks[i] = (struct ChunkInfo){.begin = 5 * i,
                                              .end = 5 * i + 5,
                                              .byte_begin = (size_t)(10 * i),
                                              .byte_end = (size_t)(10 * i + 10),
                                              .score = 3 + sin(i),
                                              .kept = i == 1};
    for (int i = 0; i < LAYERS * HEADS; i++) {
        sample.kv_in[i] = 2000;
        sample.kv_kept[i] = 1000 + i;
    }
    sample.result.plan.n_chunks = n;
    sample.result.plan.n_context = 5 * n;
    sample.result.chunks = sample.chunks;
    sample.result.kv_in = sample.kv_in;
    sample.result.kv_kept = sample.kv_kept;
    sample.result.time = (struct Timings){0.1, 2, 0.3, 0.6, 3};
    sample.result.text = (struct Str){.data = "it is <script>alert(1)</script>", .len = 31};
    sample.explain = (struct Explain){
        .result = &sample.result,
        .context = sample.context,
        .context_len = strlen(sample.context),
        .question = "what's \"that\" & <b>?",
        .model = "<model>",
        .device = "cpu",
        .source = "book<1>.txt",
        .stop = "eos",
        .n_layers = LAYERS,
        .n_kv_heads = HEADS,
    };
}

static char *render(void)
{
    static struct Str page;
    str_free(&page);
    assert_int_equal(explain_page(&sample.explain, &page), PC_OK);
    assert_int_equal(utf8_invalid_at(page.data, page.len), page.len);
    assert_int_equal(strlen(page.data), page.len); /* no NUL */
    assert_well_formed(page.data);
    assert_null(strstr(page.data, "nan"));
    assert_null(strstr(page.data, "inf,"));
    return page.data;
}

static void test_page(void **state)
{
    (void)state;
    make_sample(8);
    const char *page = render();
    assert_int_equal(count(page, "<g><title>chunk "), 8);
    assert_int_equal(count(page, ">kept 2</text>"), 1);
    assert_int_equal(count(page, "class=\"keep\" x=\"1\""), 1); /* legend */
    assert_int_equal(count(page, "<g><title>layer "), LAYERS * HEADS);
    assert_non_null(strstr(page, "1,000 of 2,000 entries kept (50.0%)"));
    assert_non_null(strstr(page, "lowest bars win"));
    assert_non_null(strstr(page, "All 8 chunks"));
    assert_non_null(strstr(page, "prefill 2.00 s"));
}

/* The legend says what the bars are. */
static void test_scores(void **state)
{
    (void)state;
    static const char *const words[] = {NULL,
                                        "surprise",
                                        "surprise",
                                        "chance",
                                        "BM25",
                                        "less for words they share",
                                        "profile's heads"};
    make_sample(8);
    for (int i = SCORE_QUESTION; i <= SCORE_ATTENTION; i++) {
        sample.result.plan.chunk_score = (enum ChunkScore)i;
        assert_non_null(strstr(render(), words[i]));
        assert_non_null(strstr(render(), "lowest bars win</b>."));
    }
}

static void test_escaped(void **state)
{
    (void)state;
    make_sample(4);
    const char *page = render();
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "<b>?"));
    assert_null(strstr(page, "<a>"));
    assert_non_null(strstr(page, "&lt;script&gt;alert(1)"));
    assert_non_null(strstr(page, "what&#39;s &quot;that&quot; &amp; &lt;b&gt;?"));
    assert_non_null(strstr(page, "&lt;model&gt;"));
    assert_non_null(strstr(page, "book&lt;1&gt;.txt"));
}

static void test_self_contained(void **state)
{
    (void)state;
    make_sample(4);
    const char *page = render();
    static const char *const outside[] = {"http:", "https:", "//", "src=", "@import", "href="};
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++)
        if (strstr(page, outside[i])) fail_msg("the page refers to the outside: %s", outside[i]);
    /* The only url() is the hatch of the page itself. */
    assert_int_equal(count(page, "url("), count(page, "url(#hatch)"));
}

static void test_without_scores(void **state)
{
    (void)state;
    make_sample(3);
    for (int i = 0; i < 3; i++) sample.chunks[i].score = NAN;
    assert_non_null(strstr(render(), "No scores were taken"));
    sample.chunks[1].score = 2;
    assert_null(strstr(render(), "No scores were taken"));
    for (int i = 0; i < 3; i++) sample.chunks[i].score = 2; /* no range */
    render();
    for (int i = 0; i < 3; i++) sample.chunks[i].score = i - 1.0; /* about zero */
    render();
}

static void test_edges(void **state)
{
    (void)state;
    make_sample(1);
    sample.result.time = (struct Timings){0};
    render();
    memset(sample.kv_in, 0, sizeof sample.kv_in);
    memset(sample.kv_kept, 0, sizeof sample.kv_kept);
    render();
    sample.result.chunks = NULL;
    sample.result.kv_in = sample.result.kv_kept = NULL;
    sample.result.text = (struct Str){0};
    sample.explain.question = "";
    assert_non_null(strstr(render(), "No chunks were made"));
    make_sample(MAX_CHUNKS);
    for (int i = 0; i < MAX_CHUNKS; i++) sample.chunks[i].kept = true;
    render();
}

static void test_mark(void **state)
{
    (void)state;
    make_sample(6);
    sample.explain.has_mark = true;
    sample.explain.mark_begin = 32;
    sample.explain.mark_end = 38;
    const char *page = render();
    assert_int_equal(count(page, "the hidden sentence</text>"), 1);
    assert_int_equal(count(page, "dropped, holds the sentence"),
                     2); /* among the kept, and in the full table */
    sample.explain.mark_begin = sample.explain.mark_end = 100000;
    assert_int_equal(count(render(), "the hidden sentence</text>"), 0);
}

static void test_rounds(void **state)
{
    (void)state;
    make_sample(6);
    assert_null(strstr(render(), "in round"));
    sample.result.plan.rounds = 3;
    sample.result.found[0] = (struct Str){.data = "it is <b>", .len = 9};
    sample.chunks[1].round = 2;
    const char *page = render();
    assert_int_equal(count(page, "Found in round 1</dt><dd>it is &lt;b&gt;</dd>"), 1);
    assert_int_equal(count(page, "Found in round 2</dt><dd></dd>"), 1);
    assert_null(strstr(page, "Found in round 3"));
    assert_int_equal(count(page, "<td>kept in round 2</td>"), 2);
}

/* Chunks may begin inside a character, and texts may hold any byte. */
static void test_bad_bytes(void **state)
{
    (void)state;
    make_sample(4);
    for (size_t i = 0; i < strlen(sample.context); i++)
        sample.context[i] = "\xe2\x80\x94\xff\x01\xc3"[i % 6];
    const char *page = render();
    assert_null(strchr(page, '\x01'));
    assert_non_null(strstr(page, "\xEF\xBF\xBD"));
    sample.chunks[3].byte_end = 1000000; /* past the text: never read */
    render();
}

static void test_no_memory(void **state)
{
    (void)state;
    make_sample(4);
    for (long n = 1; n < 40; n++) {
        struct Str page = {0};
        mem_fail_after(n);
        int status = explain_page(&sample.explain, &page);
        mem_fail_after(0);
        str_free(&page);
        if (status == PC_OK) return;
        assert_int_equal(status, PC_ENOMEM);
    }
    fail_msg("still failing after 40 allocations");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page),           cmocka_unit_test(test_scores),
        cmocka_unit_test(test_escaped),        cmocka_unit_test(test_self_contained),
        cmocka_unit_test(test_without_scores), cmocka_unit_test(test_edges),
        cmocka_unit_test(test_rounds),         cmocka_unit_test(test_mark),
        cmocka_unit_test(test_bad_bytes),      cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

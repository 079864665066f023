/* test_chunk_plan.c - cuts against brute force, boundary classes, budget and defaults. */
#include "chunk_plan.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CHUNKS_MAX = 4096 };

static uint64_t rng_state = 3;

static int rng(int n)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((rng_state >> 33) % (uint64_t)n);
}

/* ==== Cuts ==== */

static int smallest_count(const struct ChunkInput *in)
{
    int fresh = in->payload - in->slack - in->overlap, n = 1;
    if (in->n_tokens <= in->payload) return 1;
    for (int held = in->payload - in->slack; held < in->n_tokens; n++) held += fresh;
    return n;
}

/* What every plan promises. */
static int plan_and_check(const struct ChunkInput *in, struct Chunk *chunks)
{
    int n_chunks = -1;
    assert_int_equal(chunk_count(in, &n_chunks), PC_OK);
    assert_int_equal(n_chunks, smallest_count(in));
    assert_in_range(n_chunks, 1, CHUNKS_MAX);
    chunk_plan_make(in, n_chunks, chunks);
    assert_int_equal(chunks[0].begin, 0);
    assert_int_equal(chunks[n_chunks - 1].end, in->n_tokens);
    for (int i = 0; i < n_chunks; i++) {
        assert_in_range(chunks[i].end - chunks[i].begin, 1, in->payload);
        if (i == 0) continue;
        assert_int_equal(chunks[i].begin, chunks[i - 1].end - in->overlap);
        assert_true(chunks[i].begin > chunks[i - 1].begin);
        assert_true(chunks[i].end > chunks[i - 1].end);
    }
    return n_chunks;
}

static int near_in(void *user, int lo, int hi, uint8_t *boundary)
{
    memcpy(boundary, (const uint8_t *)user + lo - 1, (size_t)(hi - lo) + 1);
    return PC_OK;
}

/* The first of the last chunks, which are cut evenly. */
static int first_even(int n_chunks)
{
    return n_chunks > EVEN_CHUNKS ? n_chunks - EVEN_CHUNKS : 0;
}

/* Chunks leave their slack; the last ones share alike. */
static void test_balance(void **state)
{
    (void)state;
    static struct Chunk chunks[CHUNKS_MAX];
    for (int round = 0; round < 20000; round++) {
        struct ChunkInput in = {.n_tokens = 1 + rng(3000), .payload = 1 + rng(400)};
        in.overlap = round % 2 ? rng(in.payload / 2 + 1) : 0;
        in.slack = round % 3 ? 0 : rng(in.payload / 4 + 1);
        int n = plan_and_check(&in, chunks), first = first_even(n), least = in.payload, most = 0;
        for (int i = 0; i < n; i++) {
            int len = chunks[i].end - chunks[i].begin;
            if (i < first) assert_int_equal(len, in.payload - in.slack);
            if (i < first) continue;
            least = len < least ? len : least;
            most = len > most ? len : most;
        }
        assert_true(most - least <= 1);
    }
}

/* A cut that is certain is that of every text that goes on behind it. */
static void test_certain_cuts(void **state)
{
    (void)state;
    static struct Chunk chunks[CHUNKS_MAX], again[CHUNKS_MAX];
    static uint8_t boundary[400000];
    struct BoundaryReader reader = {near_in, boundary};
    for (int i = 0; i < 400000; i++) boundary[i] = (uint8_t)(rng(40) ? rng(2) : rng(5));
    for (int round = 0; round < 300; round++) {
        struct ChunkInput in = {.payload = 20 + rng(1000), .boundary = boundary};
        in.overlap = round % 2 ? rng(in.payload / 2 + 1) : 0;
        in.slack = rng(in.payload / 4 + 1);
        int step = in.payload - in.slack - in.overlap, most = 400000 / step;
        in.n_tokens = step * (most < 600 ? 1 + rng(most) : 1 + rng(600)) + rng(step);
        int n = plan_and_check(&in, chunks), known = 0;
        for (; chunk_cut_tokens(&in, known) <= in.n_tokens; known++) {
            int before = known ? chunks[known - 1].end : 0;
            assert_int_equal(chunk_cut_read(&in, known, before, &again[known], &reader), PC_OK);
        }
        assert_int_equal(known, first_even(n));
        known = rng(known + 1);
        assert_int_equal(chunk_plan_read(&in, known, n, again, &reader), PC_OK);
        assert_memory_equal(again, chunks, sizeof *chunks * (size_t)n);
    }
}

/* Compares two cuts of the same place: is a better than b? */
static bool is_better(const struct ChunkInput *in, int a, int b, int ideal)
{
    if (in->boundary[a - 1] != in->boundary[b - 1])
        return in->boundary[a - 1] > in->boundary[b - 1];
    if (abs(a - ideal) != abs(b - ideal)) return abs(a - ideal) < abs(b - ideal);
    return a < b;
}

struct Search {
    const struct ChunkInput *in;
    const struct Chunk *plain;
    int n_chunks, reach;
    int cuts[8], best[8];
    bool found;
};

/* Tries all vectors of cuts; keeps the one that is best in its first cut, then in its second, … */
static void search(struct Search *s, int at)
{
    const struct ChunkInput *in = s->in;
    int begin = at == 0 ? 0 : s->cuts[at - 1] - in->overlap;
    if (at == s->n_chunks - 1) {
        if (in->n_tokens - begin > in->payload) return;
        int i = 0;
        while (s->found && i < at && s->cuts[i] == s->best[i]) i++;
        if (s->found && (i == at || !is_better(in, s->cuts[i], s->best[i], s->plain[i].end)))
            return;
        memcpy(s->best, s->cuts, sizeof s->best);
        s->found = true;
        return;
    }
    for (int cut = s->plain[at].end - s->reach; cut <= s->plain[at].end + s->reach; cut++) {
        s->cuts[at] = cut;
        if (cut - begin <= in->payload) search(s, at + 1);
    }
}

static void test_snap_against_all_vectors(void **state)
{
    (void)state;
    for (int round = 0; round < 5000; round++) {
        uint8_t boundary[64];
        struct ChunkInput in = {.n_tokens = 2 + rng(50), .payload = 4 + rng(20)};
        in.overlap = round % 3 ? 0 : rng(in.payload / 4 + 1);
        if (smallest_count(&in) > 5) continue;
        for (int i = 0; i < in.n_tokens; i++) boundary[i] = (uint8_t)(rng(3) ? 0 : rng(5));
        struct Chunk plain[8], snapped[8];
        struct Search s = {.in = &in, .plain = plain, .n_chunks = plan_and_check(&in, plain)};
        in.boundary = boundary;
        assert_int_equal(plan_and_check(&in, snapped), s.n_chunks);
        int shortest = plain[0].end - in.overlap;
        for (int i = 1; i < s.n_chunks; i++) {
            int gap = plain[i].end - plain[i - 1].end;
            shortest = gap < shortest ? gap : shortest;
        }
        s.reach = (shortest - 1) / 2;
        search(&s, 0);
        assert_true(s.found);
        for (int i = 0; i + 1 < s.n_chunks; i++) assert_int_equal(snapped[i].end, s.best[i]);
    }
}

static void test_snap_large(void **state)
{
    (void)state;
    static struct Chunk plain[CHUNKS_MAX], chunks[CHUNKS_MAX];
    static uint8_t boundary[70000];
    for (int round = 0; round < 200; round++) {
        struct ChunkInput in = {.n_tokens = 1 + rng(70000), .payload = PAYLOAD_MIN + rng(4000)};
        in.overlap = round % 2 ? rng(in.payload / 2 + 1) : 0;
        for (int i = 0; i < in.n_tokens; i++) boundary[i] = (uint8_t)(rng(40) ? rng(2) : rng(5));
        int n = plan_and_check(&in, plain);
        in.boundary = boundary;
        assert_int_equal(plan_and_check(&in, chunks), n);
        for (int i = 0; i < n; i++) assert_true(abs(chunks[i].end - plain[i].end) <= SNAP_MAX);
    }
}

static void test_snap_by_hand(void **state)
{
    (void)state;
    uint8_t boundary[2000] = {0};
    struct Chunk chunks[2];
    struct ChunkInput in = {.n_tokens = 2000, .payload = 1100, .boundary = boundary};
    boundary[1000 - 1 + 64] = BOUNDARY_PARAGRAPH;
    boundary[1000 - 1 + 65] = BOUNDARY_PARAGRAPH;
    boundary[1000 - 1 - 3] = BOUNDARY_SENTENCE;
    assert_int_equal(plan_and_check(&in, chunks), 2);
    assert_int_equal(chunks[0].end, 1064);
    in.payload = 1063; /* the paragraph no longer fits */
    plan_and_check(&in, chunks);
    assert_int_equal(chunks[0].end, 997);
    boundary[1000 - 1 + 3] = BOUNDARY_SENTENCE; /* as near, but later */
    plan_and_check(&in, chunks);
    assert_int_equal(chunks[0].end, 997);
    in.payload = 1000; /* exactly full: no room to move */
    plan_and_check(&in, chunks);
    assert_int_equal(chunks[0].end, 1000);
}

/* With slack a text that fills its chunks exactly still gets cuts at its sentences. */
static void test_slack(void **state)
{
    (void)state;
    static struct Chunk chunks[CHUNKS_MAX];
    static uint8_t boundary[70000];
    for (int round = 0; round < 200; round++) {
        struct ChunkInput in = {.payload = 512 + rng(4000), .slack = 64, .boundary = boundary};
        in.overlap = round % 2 ? rng(in.payload / 4) : 0;
        in.n_tokens = in.payload + (1 + rng(8)) * (in.payload - in.overlap);
        for (int i = 0; i < in.n_tokens; i++)
            boundary[i] = i % 30 ? BOUNDARY_SPACE : BOUNDARY_SENTENCE;
        int n = plan_and_check(&in, chunks);
        for (int i = 0; i + 1 < n; i++)
            assert_int_equal(boundary[chunks[i].end - 1], BOUNDARY_SENTENCE);
        in.n_tokens = in.payload;
        assert_int_equal(plan_and_check(&in, chunks), 1);
    }
}

static void test_count_edges(void **state)
{
    (void)state;
    int n = -1;
    struct ChunkInput in = {.n_tokens = 0, .payload = 256};
    assert_int_equal(chunk_count(&in, &n), PC_OK);
    assert_int_equal(n, 0);
    chunk_plan_make(&in, 0, NULL);
    in.n_tokens = INT32_MAX;
    assert_int_equal(chunk_count(&in, &n), PC_OK);
    assert_int_equal(n, 8388608);
    in.overlap = 129;
    assert_int_equal(chunk_count(&in, &n), PC_ERANGE);
    assert_non_null(strstr(err_text(), "--overlap"));
    in.overlap = -1;
    assert_int_equal(chunk_count(&in, &n), PC_ERANGE);
    in.overlap = 0;
    in.payload = 0;
    assert_int_equal(chunk_count(&in, &n), PC_ERANGE);
}

/* ==== Boundaries ==== */

static void test_boundary_classes(void **state)
{
    (void)state;
    static const struct {
        const char *before, *after;
        enum Boundary class;
    } cases[] = {
        {"", "x", BOUNDARY_PARAGRAPH},
        {"x", "", BOUNDARY_PARAGRAPH},
        {"one\n\n", "two", BOUNDARY_PARAGRAPH},
        {"one\n \t\n", "two", BOUNDARY_PARAGRAPH},
        {"one\r\n\r\n", "two", BOUNDARY_PARAGRAPH},
        {"one\n\n  ", "two", BOUNDARY_PARAGRAPH},
        {"one\n", "two", BOUNDARY_LINE},
        {"one\n", "\ntwo", BOUNDARY_LINE},
        {"one\n    ", "two", BOUNDARY_LINE},
        {"\n", "two", BOUNDARY_LINE},
        {"It ends.", " Then", BOUNDARY_SENTENCE},
        {"It ends. ", "Then", BOUNDARY_SENTENCE},
        {"It ends.", "\nThen", BOUNDARY_SENTENCE},
        {"\"Does it?\"", " Yes", BOUNDARY_SENTENCE},
        {"(It does!)", " Yes", BOUNDARY_SENTENCE},
        {"“So…”", " Yes", BOUNDARY_SENTENCE},
        {"終わり。", "次", BOUNDARY_SENTENCE},
        {"「終わり！」", "次", BOUNDARY_SENTENCE},
        {"3.", "14", BOUNDARY_NONE},
        {"quoted)", " more", BOUNDARY_SPACE},
        {"two", " words", BOUNDARY_SPACE},
        {"two ", "words", BOUNDARY_SPACE},
        {"wo", "rd", BOUNDARY_NONE},
        {"word", "\nnext", BOUNDARY_SPACE},
        {"\xE7\xB5", "\x82", BOUNDARY_NONE},
        {"\"'", " x", BOUNDARY_SPACE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[64];
        int len = snprintf(text, sizeof text, "%s%s", cases[i].before, cases[i].after);
        enum Boundary got = boundary_at(text, (size_t)len, strlen(cases[i].before));
        if (got != cases[i].class)
            fail_msg("'%s|%s': class %d, not %d", cases[i].before, cases[i].after, got,
                     cases[i].class);
    }
}

static void test_boundary_classify(void **state)
{
    (void)state;
    const char *text = "One. Two\n\nThree";
    const size_t offset[] = {0, 4, 8, 9, 10, 12, 15};
    uint8_t boundary[6];
    static const uint8_t expected[] = {BOUNDARY_SENTENCE,  BOUNDARY_SPACE, BOUNDARY_LINE,
                                       BOUNDARY_PARAGRAPH, BOUNDARY_NONE,  BOUNDARY_PARAGRAPH};
    boundary_classify(text, strlen(text), offset, 6, boundary);
    assert_memory_equal(boundary, expected, sizeof expected);
}

/* ==== Budget and defaults ==== */

static void test_payload(void **state)
{
    (void)state;
    struct ChunkBudget b = {
        .window = 8192, .n_prefix = 64, .n_tail = 128, .reserve = 512, .chunk = 2048};
    int payload = -1;
    assert_int_equal(chunk_payload(&b, &payload), PC_OK);
    assert_int_equal(payload, 2048);
    b.chunk = 8192;
    assert_int_equal(chunk_payload(&b, &payload), PC_OK);
    assert_int_equal(payload, 7488);
    b.n_tail = 8192 - 64 - 512 - PAYLOAD_MIN;
    assert_int_equal(chunk_payload(&b, &payload), PC_OK);
    assert_int_equal(payload, PAYLOAD_MIN);
    b.n_tail++;
    assert_int_equal(chunk_payload(&b, &payload), PC_ERANGE);
    assert_non_null(strstr(err_text(), "leaves 255 tokens"));
    assert_non_null(strstr(err_text(), "--max-tokens"));
    b.n_tail = INT32_MAX;
    b.reserve = INT32_MAX;
    assert_int_equal(chunk_payload(&b, &payload), PC_ERANGE);
    assert_non_null(strstr(err_text(), "leaves 0 tokens"));
    assert_int_equal(payload, PAYLOAD_MIN);
}

static void test_defaults(void **state)
{
    (void)state;
    static const int cases[][4] = {
        /* trained length, window, chunk, cap */
        {2048, 2048, 1024, 1024},   {4096, 4096, 1024, 1024},   {8192, 8192, 2048, 2048},
        {12288, 12288, 3072, 2048}, {32768, 32768, 4096, 2048}, {131072, 131072, 4096, 2048},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct Settings s = {
            .window = AUTO, .chunk = AUTO, .keep = AUTO, .kv_cap = AUTO, .rounds = 1 + (int)i % 2};
        assert_int_equal(plan_defaults(&s, cases[i][0], 1 << 20), PC_OK);
        assert_int_equal(s.window, cases[i][1]);
        assert_int_equal(s.chunk, cases[i][2]);
        assert_int_equal(s.keep, 2 + (int)i % 2);
        assert_int_equal(s.kv_cap, cases[i][3]);
    }
    struct Settings s = {
        .window = 4000, .chunk = 8000, .keep = KEEP_ALL, .kv_cap = AUTO, .overlap = 4000};
    assert_int_equal(plan_defaults(&s, 8192, 1 << 20), PC_OK);
    assert_int_equal(s.window, 4000);
    assert_int_equal(s.chunk, 8000);
    assert_int_equal(s.keep, KEEP_ALL);
    assert_int_equal(s.kv_cap, 4000); /* the paper's cap for such chunks */
    s.kv_cap = CAP_OFF;
    assert_int_equal(plan_defaults(&s, 8192, 1 << 20), PC_OK);
    assert_int_equal(s.kv_cap, CAP_OFF);
    s.overlap = 4001;
    assert_int_equal(plan_defaults(&s, 8192, 1 << 20), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "--overlap 4000"));
}

/* What fits is not cut, unless the user says how. */
static void test_whole(void **state)
{
    (void)state;
    static const int cases[][4] = {
        /* window, tokens in all, chunk, cap */
        {8192, 8192, 8192, CAP_OFF},    {8192, 8193, 2048, 2048},
        {32768, 32768, 32768, CAP_OFF}, {131072, 32768, 131072, CAP_OFF},
        {131072, 32769, 4096, 2048},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct Settings s = {.window = cases[i][0]};
        assert_int_equal(plan_defaults(&s, 4096, cases[i][1]), PC_OK);
        assert_int_equal(s.chunk, cases[i][2]);
        assert_int_equal(s.kv_cap, cases[i][3]);
        s = (struct Settings){.window = cases[i][0], .chunk = 700, .kv_cap = 300};
        assert_int_equal(plan_defaults(&s, 4096, cases[i][1]), PC_OK);
        assert_int_equal(s.chunk, 700);
        assert_int_equal(s.kv_cap, 300);
    }
}

/* What stands before the reach of a place decides nothing about it; and places that are looked at in order need not look back over
 * one another. */
static void test_reach(void **state)
{
    (void)state;
    static const char *const atoms[] = {" ", " ", "\n", "\t", ")",  ".",
                                        "a", "”", "…",  "。", "」", "é"};
    uint64_t seed = 9;
    int within = 0;
    for (int n = 0; n < 4000; n++) {
        char text[200] = "";
        uint32_t some[4];
        size_t len = 0, known = 0;
        for (int i = 0; i < 4; i++)
            some[i] = (uint32_t)((seed = seed * 6364136223846793005u + 1) >> 33) % 12;
        while (len < 60) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const char *atom = atoms[seed >> 60 ? some[(seed >> 40) % 4] : (seed >> 40) % 12];
            memcpy(text + len, atom, strlen(atom));
            len += strlen(atom);
        }
        for (size_t at = 1; at < len; at++) {
            size_t reach = boundary_reach(text, at, 0);
            assert_true(reach <= at);
            for (size_t begin = 1; begin <= reach && begin < at; begin++, within++)
                assert_int_equal(boundary_at(text + begin, len - begin, at - begin),
                                 boundary_at(text, len, at));
            if (reach == 0) continue;
            if (known) assert_true(boundary_reach(text, at, known) > 0);
            known = at;
        }
    }
    assert_true(within > 100000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balance),
        cmocka_unit_test(test_certain_cuts),
        cmocka_unit_test(test_snap_against_all_vectors),
        cmocka_unit_test(test_snap_large),
        cmocka_unit_test(test_snap_by_hand),
        cmocka_unit_test(test_slack),
        cmocka_unit_test(test_count_edges),
        cmocka_unit_test(test_boundary_classes),
        cmocka_unit_test(test_boundary_classify),
        cmocka_unit_test(test_reach),
        cmocka_unit_test(test_payload),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_headmap.c - which heads are kept: against brute force on maps full of ties, on the tie structure of the
 * published patterns, the controls, and the bytes they cost.
 */
#include "tests/unit/headmap_support.h"

#include <math.h>
#include <stdlib.h>

#include "eviction/select.h"

/* ==== The choice ==== */

/* How many heads come before head i: higher scores, and equal ones of lower layers and heads. */
static int place_of(const struct HeadMap *map, int i)
{
    int n = headmap_heads(map), before = 0;
    for (int j = 0; j < n; j++)
        before += map->scores[j] > map->scores[i] || (map->scores[j] == map->scores[i] && j < i);
    return before;
}

/* Place among the heads of its own layer. */
static int place_in_layer(const struct HeadMap *map, int i)
{
    int width = map->shape.n_kv_heads, first = i / width * width, before = 0;
    for (int j = first; j < first + width; j++)
        before += map->scores[j] > map->scores[i] || (map->scores[j] == map->scores[i] && j < i);
    return before;
}

static void brute_keep(const struct HeadMap *map, int k, int least, uint8_t *keep)
{
    int n = headmap_heads(map), kept = 0;
    for (int i = 0; i < n; i++) {
        keep[i] = k > 0 && place_in_layer(map, i) < least;
        kept += keep[i];
    }
    for (int place = 0; place < n && kept < k; place++)
        for (int i = 0; i < n; i++)
            if (place_of(map, i) == place && !keep[i]) {
                keep[i] = 1;
                kept++;
            }
}

static float tied_score(int kind)
{
    switch (kind) {
    case 0:
        return (float)(rng() % 3) / 2;
    case 1:
        return (float)(rng() % 257) / 256; /* as bf16 near 1 */
    case 2:
        return rng() % 4 ? 1 : (float)rng() / 2147483648.0f; /* saturated */
    default:
        return rng() % 9 ? 0 : 1;
    }
}

static void check_choice(const struct HeadMap *map, double ratio, int least)
{
    uint8_t want[N_MAX], got[N_MAX + 1];
    int n = headmap_heads(map), picked[N_MAX], in = 0;
    int k = ratio <= 0 ? 0 : ratio >= 1 ? n : (int)lround(ratio * n);
    got[n] = 77;
    int status = headmap_keep(map, ratio, least, got);
    assert_int_equal(got[n], 77);
    if (k < least * map->shape.n_layers && ratio > 0) {
        assert_int_equal(status, PC_ECONFIG);
        return;
    }
    must(status);
    assert_int_equal(status, k);
    brute_keep(map, k, least, want);
    assert_memory_equal(got, want, (size_t)n);
    for (int i = 0; i < n; i++) in += got[i];
    assert_int_equal(in, k);
    if (least > 0) return;
    assert_int_equal(select_top(map->scores, n, k, picked), k);
    for (int i = 0; i < k; i++) assert_int_equal(got[picked[i]], 1);
}

static void test_choice(void **state)
{
    (void)state;
    for (int round = 0; round < 4000; round++) {
        int width = 1 + (int)(rng() % 8);
        struct HeadMap map = blank(1 + (int)(rng() % 12), width, width, false);
        int n = headmap_heads(&map), kind = (int)(rng() % 4);
        for (int i = 0; i < n; i++) map.scores[i] = tied_score(kind);
        double ratio = (double)(rng() % 1201) / 1000 - 0.1;
        check_choice(&map, ratio, 0);
        check_choice(&map, ratio, (int)(rng() % (unsigned)(width + 1)));
        headmap_close(&map);
    }
}

static void test_choice_edges(void **state)
{
    (void)state;
    uint8_t keep[8];
    struct HeadMap map = blank(2, 4, 4, false);
    assert_int_equal(headmap_keep(&map, -1, 4, keep), 0);
    assert_int_equal(headmap_keep(&map, 0, 1, keep), 0);
    for (int i = 0; i < 8; i++) assert_int_equal(keep[i], 0);
    assert_int_equal(headmap_keep(&map, 7, 0, keep), 8);
    assert_int_equal(headmap_keep(&map, INFINITY, -3, keep), 8);
    assert_int_equal(headmap_keep(&map, 0.3125, 0, keep), 3); /* 2.5: halves up */
    static const uint8_t lower_first[8] = {1, 1, 1, 0, 0, 0, 0, 0}, one_each[8] = {1, 1, 0, 0, 1};
    assert_memory_equal(keep, lower_first, 8);
    assert_int_equal(headmap_keep(&map, 0.375, 1, keep), 3);
    assert_memory_equal(keep, one_each, 8);
    assert_int_equal(headmap_keep(&map, NAN, 0, keep), PC_ECONFIG);
    assert_int_equal(headmap_keep(&map, 1, 5, keep), PC_ECONFIG);
    assert_true(has("4 KV heads a layer"));
    assert_int_equal(headmap_keep(&map, 0.125, 1, keep), PC_ECONFIG);
    assert_true(has("keeps 1 of 8 heads") && has("0.25 or more"));
    map.scores[5] = NAN;
    assert_int_equal(headmap_keep(&map, 0.5, 0, keep), PC_EINTERNAL);
    assert_true(has("layer 1, KV head 1"));
    map.scores[5] = 0.5f;
    assert_int_equal(headmap_keep_above(&map, 0.5f, keep), 1);
    assert_int_equal(keep[5], 1);
    headmap_close(&map);
    static const struct HeadShape bad[] = {{0, 4, 4},    {1, 0, 0},       {1, 4, 3}, {1, 2, 4},
                                           {5000, 1, 1}, {4096, 1024, 8}, {-1, 4, 4}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(headmap_open(&bad[i], true, &map), PC_ERANGE);
}

/* ==== The published patterns (spec A.4) ==== */

/* Their tie structure: how many gates are 1.0, and at a cut how many share its value and how many of these fit. */
struct Pattern {
    const char *name;
    int n_layers, n_kv_heads, ones;
    struct {
        int k;
        float value;
        int tied, fit;
    } cuts[2]; /* at 50 %, then at 25 % */
};

static const struct Pattern PATTERNS[] = {
    {"Llama-2-7B-32K-Instruct", 32, 32, 145, {{512, 0.2383f, 2, 2}, {256, 0.9414f, 5, 3}}},
    {"Llama-3-8B-1048k", 32, 8, 82, {{128, 0.9609f, 3, 3}, {64, 1, 82, 64}}},
    {"Llama-3-8B-4194k", 32, 8, 80, {{128, 0.9648f, 4, 4}, {64, 1, 80, 64}}},
    {"Llama-3.1-8B", 32, 8, 57, {{128, 0.9531f, 1, 1}, {64, 0.9961f, 9, 7}}},
    {"Mistral-7B-v0.2", 32, 8, 110, {{128, 0.9961f, 20, 18}, {64, 1, 110, 64}}},
    {"Mistral-7B-v0.3", 32, 8, 107, {{128, 0.9961f, 21, 21}, {64, 1, 107, 64}}},
};

/* Scores from the highest to the lowest, then shuffled over the heads. */
static struct HeadMap make_pattern(const struct Pattern *p)
{
    struct HeadMap map = blank(p->n_layers, p->n_kv_heads * 4, p->n_kv_heads, false);
    int n = headmap_heads(&map);
    for (int i = 0; i < n; i++) map.scores[i] = 0;
    for (int i = 0; i < p->ones; i++) map.scores[i] = 1;
    for (int c = 0; c < 2; c++) {
        int first = p->cuts[c].k - p->cuts[c].fit;
        for (int i = 0; p->cuts[c].value < 1 && i < p->cuts[c].tied; i++)
            map.scores[first + i] = p->cuts[c].value;
    }
    float above = 1, below;
    for (int i = p->ones, end; i < n; i = end + 1) { /* fill the gaps evenly */
        for (end = i; end < n && map.scores[end] == 0;) end++;
        below = end < n ? map.scores[end] : 0;
        for (int j = i; j < end; j++)
            map.scores[j] = above - (above - below) * (float)(j - i + 1) / (float)(end - i + 1);
        if (end < n) above = below;
    }
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(rng() % (unsigned)(i + 1));
        float held = map.scores[i];
        map.scores[i] = map.scores[j];
        map.scores[j] = held;
    }
    return map;
}

static void check_pattern(const struct Pattern *p, const struct HeadMap *map, int c)
{
    uint8_t keep[N_MAX];
    int n = headmap_heads(map), tied = 0, fit = 0, last = -1, first_out = n;
    assert_int_equal(p->cuts[c].k, n / (c ? 4 : 2));
    assert_int_equal(headmap_keep(map, c ? 0.25 : 0.5, 0, keep), p->cuts[c].k);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        kept += keep[i];
        if (map->scores[i] > p->cuts[c].value) assert_int_equal(keep[i], 1);
        if (map->scores[i] < p->cuts[c].value) assert_int_equal(keep[i], 0);
        if (map->scores[i] != p->cuts[c].value) continue;
        tied++;
        fit += keep[i];
        if (keep[i]) last = i;
        if (!keep[i] && first_out == n) first_out = i;
    }
    assert_int_equal(kept, p->cuts[c].k);
    assert_int_equal(tied, p->cuts[c].tied);
    assert_int_equal(fit, p->cuts[c].fit);
    assert_true(last < first_out); /* of the tied, the lower layers and heads */
}

/* What DuoAttention's loader keeps of values in a table: a linear quantile, after noise. */
static int duo_keeps(const char *tsv, int n, double sparsity, uint8_t *keep)
{
    double value[N_MAX], sorted[N_MAX];
    char *at = (char *)(uintptr_t)tsv;
    for (int i = 0; i < n; i++) value[i] = strtod(at, &at) + 1e-6 * (rng() % 1000) / 1000;
    for (int i = 0; i < n; i++) {
        int j = i;
        for (; j > 0 && sorted[j - 1] > value[i]; j--) sorted[j] = sorted[j - 1];
        sorted[j] = value[i];
    }
    double at_rank = sparsity * (n - 1), low = floor(at_rank);
    int i = (int)low;
    double cut = sorted[i] + (at_rank - low) * (sorted[i + 1 < n ? i + 1 : i] - sorted[i]);
    int kept = 0;
    for (int j = 0; j < n; j++) {
        keep[j] = value[j] >= cut;
        kept += keep[j];
    }
    return kept;
}

static void test_patterns(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++) {
        struct HeadMap map = make_pattern(&PATTERNS[i]);
        struct Str tsv = {0}, config = {0};
        uint8_t ours[N_MAX], theirs[N_MAX];
        int n = headmap_heads(&map);
        check_pattern(&PATTERNS[i], &map, 0);
        check_pattern(&PATTERNS[i], &map, 1);
        must(headmap_duo_text(&map, &tsv, &config));
        for (int c = 0; c < 2; c++) {
            int k = headmap_keep(&map, c ? 0.25 : 0.5, 0, ours);
            assert_int_equal(duo_keeps(tsv.data, n, c ? 0.75 : 0.5, theirs), k);
            assert_memory_equal(ours, theirs, (size_t)n);
        }
        str_free(&tsv);
        str_free(&config);
        headmap_close(&map);
    }
}

/* ==== Controls ==== */

static void test_controls(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++) {
        uint8_t keep[N_MAX], other[N_MAX];
        int width = 1 + (int)(rng() % 5);
        struct HeadMap map = blank(1 + (int)(rng() % 9), 2 * width, width, true);
        int n = headmap_heads(&map), before[N_MAX], after[N_MAX];
        for (int i = 0; i < n; i++) map.scores[i] = tied_score(round % 4);
        must(headmap_order(&map, before));
        must(headmap_rank(&map));
        must(headmap_order(&map, after));
        assert_memory_equal(before, after, sizeof(int) * (size_t)n);
        int k = headmap_keep(&map, 0.4, 0, keep);
        must(headmap_invert(&map));
        assert_null(map.q_scores);
        must(headmap_keep(&map, (double)(n - k) / n, 0, other));
        for (int i = 0; i < n; i++) assert_int_equal(keep[i] + other[i], 1);
        must(headmap_invert(&map));
        must(headmap_order(&map, after));
        assert_memory_equal(before, after, sizeof(int) * (size_t)n);
        headmap_close(&map);
    }
}

static void test_random(void **state)
{
    (void)state;
    struct HeadShape shape = {32, 32, 8};
    struct HeadMap a, b, c;
    double sum = 0;
    must(headmap_random(&shape, 5, &a));
    must(headmap_random(&shape, 5, &b));
    must(headmap_random(&shape, 6, &c));
    assert_memory_equal(a.scores, b.scores, 256 * sizeof(float));
    assert_memory_not_equal(a.scores, c.scores, 256 * sizeof(float));
    for (int i = 0; i < 256; i++) sum += (double)a.scores[i];
    assert_true(fabs(sum / 256 - 0.5) < 0.08);
    must(headmap_check(&a));
    assert_true(a.seed == 5 && strcmp(a.method, "random") == 0);
    headmap_close(&a);
    headmap_close(&b);
    headmap_close(&c);
}

static void test_query_heads(void **state)
{
    (void)state;
    struct HeadMap map = blank(1, 6, 3, true);
    static const float q[6] = {0, 0.5f, 0, 0, 0.25f, 0.75f};
    static const uint8_t keep[3] = {1, 1, 0}, own[6] = {0, 1, 1, 1, 0, 0}, all[6] = {1, 1, 1, 1};
    uint8_t flags[6];
    memcpy(map.q_scores, q, sizeof q);
    headmap_from_q(&map);
    assert_true(map.scores[0] == 0.5f && map.scores[1] == 0 && map.scores[2] == 0.75f);
    headmap_q_flags(&map, keep, flags);
    assert_memory_equal(flags, own, 6);       /* the second group has no score: flagged as one */
    static const uint8_t ends[3] = {1, 0, 1}; /* the least needed of those kept has 0.5 */
    headmap_q_flags(&map, ends, flags);
    for (int i = 0; i < 6; i++) assert_int_equal(flags[i], i / 2 != 1 && q[i] >= 0.5f);
    must(headmap_invert(&map));
    headmap_q_flags(&map, keep, flags);
    assert_memory_equal(flags, all, 6);
    headmap_close(&map);
}

/* ==== Memory ==== */

/* Spec D.1: models, their f16 caches of 128K tokens whole, with half and with a quarter of the heads, GiB. */
static void test_memory_table(void **state)
{
    (void)state;
    static const struct {
        size_t heads, head_dim;
        double gib[3], within;
    } rows[] = {{30 * 3, 64, {2.81, 1.41, 0.71}, 0.006},
                {24 * 2, 64, {1.50, 0.75, 0.38}, 0.006},
                {28 * 2, 128, {3.50, 1.76, 0.88}, 0.006},
                {32 * 8, 128, {16.0, 8.02, 4.04}, 0.006},
                {32 * 32, 128, {64.0, 32.1, 16.1}, 0.06}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t c = 0; c < 3; c++) {
            size_t full =
                rows[i].heads * (4 >> c); /* of four caches: a quarter may be half a head */
            struct HeadMemory m = {.n_full = full,
                                   .n_streaming = rows[i].heads * 4 - full,
                                   .prefix = 131072,
                                   .sink = 128,
                                   .recent = 255,
                                   .page_tokens = 1,
                                   .token_bytes = 4 * rows[i].head_dim};
            struct HeadBytes bytes;
            must(headmap_memory(&m, &bytes));
            assert_true(bytes.total == bytes.full + bytes.streaming && bytes.index == 0);
            double gib = (double)bytes.total / 4 / (1 << 30);
            if (fabs(gib - rows[i].gib[c]) > rows[i].within)
                fail_msg("row %zu, column %zu: %.4f GiB, not %.2f", i, c, gib, rows[i].gib[c]);
        }
    /* Llama-3-8B with 1M tokens, weights included: 76 GiB at a half, 137 whole. */
    struct HeadMemory m = {.n_full = 128,
                           .n_streaming = 128,
                           .prefix = 1000000,
                           .sink = 128,
                           .recent = 255,
                           .page_tokens = 1,
                           .token_bytes = 512};
    struct HeadBytes bytes;
    must(headmap_memory(&m, &bytes));
    assert_true(fabs(((double)bytes.total + 16.06e9) / (1 << 30) - 76.0) < 0.1);
    m.n_full = 256, m.n_streaming = 0;
    must(headmap_memory(&m, &bytes));
    assert_true(fabs(((double)bytes.total + 16.06e9) / (1 << 30) - 137.0) < 0.1);
}

static void test_memory(void **state)
{
    (void)state;
    struct HeadMemory m = {.n_full = 3,
                           .n_streaming = 5,
                           .prefix = 10,
                           .chunks = 4,
                           .cap = 100,
                           .tail = 20,
                           .answer = 7,
                           .sink = 65,
                           .recent = 256,
                           .page_tokens = 64,
                           .token_bytes = 512,
                           .head_dim = 128,
                           .landmarks = 2};
    struct HeadBytes bytes;
    must(headmap_memory(&m, &bytes)); /* 437 tokens: 7 pages; a ring of 2 + 4 + 1 */
    assert_int_equal(bytes.full, 3 * 7 * 64 * 512);
    assert_int_equal(bytes.streaming, 5 * 7 * 64 * 512);
    assert_int_equal(bytes.index, 3 * 7 * (2 * 128 * 2 + 16));
    assert_int_equal(bytes.total, bytes.full + bytes.streaming + bytes.index);
    m.page_tokens = 1, m.landmarks = 0;
    must(headmap_memory(&m, &bytes));
    assert_int_equal(bytes.full, 3 * 437 * 512);
    assert_int_equal(bytes.streaming, 5 * (65 + 256 + 1) * 512);
    assert_int_equal(bytes.index, 0);
    m.page_tokens = 0;
    assert_int_equal(headmap_memory(&m, &bytes), PC_ECONFIG);
    /* Each field alone makes it too much. */
    size_t *fields[] = {&m.n_full, &m.n_streaming, &m.prefix,   &m.chunks,
                        &m.cap,    &m.tail,        &m.answer,   &m.sink,
                        &m.recent, &m.token_bytes, &m.head_dim, &m.landmarks};
    m.page_tokens = 64, m.landmarks = 1;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        size_t held = *fields[i];
        *fields[i] = SIZE_MAX;
        assert_int_equal(headmap_memory(&m, &bytes), PC_ENOMEM);
        *fields[i] = held;
    }
    must(headmap_memory(&m, &bytes));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),       cmocka_unit_test(test_choice_edges),
        cmocka_unit_test(test_patterns),     cmocka_unit_test(test_controls),
        cmocka_unit_test(test_random),       cmocka_unit_test(test_query_heads),
        cmocka_unit_test(test_memory_table), cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("headmap", tests, NULL, NULL) != 0;
}

/* test_early.c - eviction/early: measures and risks against sums by brute force; profiles written, read back, found wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chunk_profile.h"

static uint32_t next_number(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

/* ==== Measures ==== */

static double brute_measure(enum EarlyMeasure measure, const float *mass, int n, int rows)
{
    double most = 0;
    int width = measure == MEASURE_PEAK && n > PEAK_TOKENS ? PEAK_TOKENS : n;
    for (int i = 0; i + width <= n; i++) {
        double sum = 0;
        for (int j = i; j < i + width; j++) sum += (double)mass[j];
        most = fmax(most, sum);
    }
    return log(fmax(most / rows, 1e-7));
}

static void test_measures(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 15, 16, 17, 31, 33, 200, 1001};
    float mass[1001];
    uint64_t seed = 3;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int m = 0; m < N_MEASURES; m++) {
            int n = sizes[s];
            for (int i = 0; i < n; i++) mass[i] = (float)(next_number(&seed) % 1000) / 1000;
            double have = early_measure((enum EarlyMeasure)m, mass, n, 7),
                   want = brute_measure((enum EarlyMeasure)m, mass, n, 7);
            assert_true(fabs(have - want) < 1e-9);
        }
    memset(mass, 0, sizeof mass);
    assert_true(early_measure(MEASURE_SUM, mass, 9, 3) == log(1e-7));
    assert_true(early_measure(MEASURE_PEAK, mass, 0, 0) == log(1e-7));
}

/* ==== Risk ==== */

/* Chance of m hits or more, draw by draw. */
static double brute_tail(int n, double p, int m)
{
    double chance[64] = {1};
    for (int draw = 0; draw < n; draw++)
        for (int hits = draw + 1; hits >= 0; hits--)
            chance[hits] = chance[hits] * (1 - p) + (hits ? chance[hits - 1] * p : 0);
    double sum = 0;
    for (int hits = m; hits <= n; hits++) sum += chance[hits];
    return sum;
}

static void test_risk(void **state)
{
    (void)state;
    static const float ahead[] = {0, 0.01f, 0.2f, 0.5f, 0.97f, 1};
    enum { N = sizeof ahead / sizeof *ahead };
    for (int chunks = 1; chunks < 40; chunks += 3)
        for (int m = 0; m <= chunks + 1; m++) {
            double want = 0;
            for (int i = 0; i < N; i++) want += brute_tail(chunks - 1, (double)ahead[i], m) / N;
            if (m >= chunks) want = 0;
            assert_true(fabs(early_risk(ahead, N, chunks, m) - want) < 1e-9);
        }
    assert_true(early_risk(ahead, 0, 10, 3) == 1); /* nothing is known */
}

/* The fewest that meet the risk, all where none do. */
static void test_survivors(void **state)
{
    (void)state;
    static const float ahead[] = {0, 0.02f, 0.05f, 0.1f};
    for (int chunks = 1; chunks < 400; chunks += 7)
        for (int r = 1; r < 6; r++) {
            double risk = 0.4 / (r * r * r);
            int n = early_survivors(ahead, 4, chunks, risk, 2);
            assert_in_range(n, chunks < 2 ? chunks : 2, chunks);
            assert_true(early_risk(ahead, 4, chunks, n) <= risk);
            if (n > 2) assert_true(early_risk(ahead, 4, chunks, n - 1) > risk);
        }
    assert_int_equal(early_survivors(ahead, 4, 1000, 0, 2), 1000);
    assert_int_equal(early_survivors(ahead, 4, 1000, 1, 2), 2);
    assert_int_equal(early_survivors(ahead, 4, 1000, 1, 50), 50);
}

/* Whatever a survivor takes, some may go on; of small ones as many as fit. */
static void test_most(void **state)
{
    (void)state;
    const size_t mib = (size_t)1 << 20, gib = mib << 10;
    assert_int_equal(early_most(0, gib), EARLY_SURVIVORS);
    assert_int_equal(early_most(gib, gib), EARLY_SURVIVORS);
    assert_int_equal(early_most(gib / EARLY_SURVIVORS, gib), EARLY_SURVIVORS);
    assert_int_equal(early_most(4 * mib, gib), 256);
    assert_int_equal(early_most(4 * mib + 1, gib), 255);
}

/* ==== Profiles ==== */

static char path[] = "/tmp/pcomp_profile_XXXXXX";

static int setup(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static struct ChunkProfile sample_profile(void)
{
    struct ChunkProfile p = {.model_hash = 0x00abcdef12345678, .n_layers = 12, .n_kv_heads = 3};
    p.n_stops = 2;
    p.stops[0] = (struct ChunkStop){
        .layer = 4, .words = 2.25f, .n_heads = 2, .n_ahead = 3, .ahead = {0, 0.25f, 1}};
    p.stops[0].heads[0] = (struct StopHead){3, 2, MEASURE_PEAK, 4, 0.75f};
    p.stops[0].heads[1] = (struct StopHead){0, 0, MEASURE_SUM, 32, 1.5f};
    p.stops[1] = (struct ChunkStop){.layer = 11, .n_heads = 1, .n_ahead = 1, .ahead = {0.5f}};
    p.stops[1].heads[0] = (struct StopHead){10, 1, MEASURE_SUM, 1, 1};
    p.nats = 0.125f;
    p.last = (struct ChunkStop){.layer = 12, .n_heads = 2};
    p.last.heads[0] = (struct StopHead){11, 2, MEASURE_SUM, 32, 3};
    p.last.heads[1] = (struct StopHead){7, 0, MEASURE_PEAK, 4, 0.5f};
    return p;
}

static void test_round_trip(void **state)
{
    (void)state;
    static struct ChunkProfile want, have;
    want = sample_profile();
    assert_int_equal(chunk_profile_write(&want, "{\"seed\":1}", path), PC_OK);
    assert_int_equal(chunk_profile_read(path, 12, 3, &have), PC_OK);
    assert_memory_equal(&want, &have, sizeof want);
    assert_int_equal(chunk_profile_read(path, 12, 4, &have), PC_ECONFIG);
    assert_int_equal(have.n_stops, 0);
    want.nats = 0; /* where heads do not help in the end, the file names none */
    want.last = (struct ChunkStop){0};
    assert_int_equal(chunk_profile_write(&want, NULL, path), PC_OK);
    assert_int_equal(chunk_profile_read(path, 12, 3, &have), PC_OK);
    assert_memory_equal(&want, &have, sizeof want);
    char found[64] = "x";
    assert_int_equal(chunk_profile_find(want.model_hash, found, sizeof found), PC_OK);
    assert_string_equal(found, ""); /* it lies in no configs/chunks */
}

/* Words may decide alone; a file that names none has none. */
static void test_words_alone(void **state)
{
    (void)state;
    static struct ChunkProfile want, have;
    struct Str text = {0};
    want = sample_profile();
    want.stops[0].n_heads = 0;
    memset(want.stops[0].heads, 0, sizeof want.stops[0].heads);
    assert_int_equal(chunk_profile_write(&want, NULL, path), PC_OK);
    assert_int_equal(chunk_profile_read(path, 12, 3, &have), PC_OK);
    assert_memory_equal(&want, &have, sizeof want);
    assert_int_equal(file_read(path, &text), PC_OK);
    memcpy(strstr(strstr(text.data, "\"words\"") + 1, "\"words\""), "\"other\"", 7);
    assert_int_equal(file_write(path, text.data, text.len), PC_OK);
    assert_int_equal(chunk_profile_read(path, 12, 3, &have), PC_OK);
    assert_true(have.stops[0].words == 2.25f && have.stops[1].words == 0);
    str_free(&text);
}

/* Each replaces a piece of a good file. */
static void test_bad_files(void **state)
{
    (void)state;
    static const char *const edits[][2] = {
        {"pcomp.chunks.v1", "pcomp.chunks.v9"},
        {"00abcdef12345678", "00abcdef1234567"},
        {"00abcdef12345678", "00abcdef1234567g"},
        {"\"n_layers\": 12", "\"n_layers\": 1.5"},
        {"\"layer\": 4", "\"layer\": 0"},
        {"\"layer\": 4", "\"layer\": 12"},
        {"\"layer\": 11", "\"layer\": 4"},
        {"[3, 2, \"peak\", 4, 0.75]", "[4, 2, \"peak\", 4, 0.75]"},
        {"[3, 2, \"peak\", 4, 0.75]", "[3, 2, \"peak\", 33, 0.75]"},
        {"[3, 2, \"peak\", 4, 0.75]", "[3, 2, \"peak\", 0, 0.75]"},
        {"[3, 2, \"peak\", 4, 0.75]", "[3, 3, \"peak\", 4, 0.75]"},
        {"[3, 2, \"peak\", 4, 0.75]", "[3, 2, \"most\", 4, 0.75]"},
        {"[3, 2, \"peak\", 4, 0.75]", "[3, 2, \"peak\", 4, 0]"},
        {"[3, 2, \"peak\", 4, 0.75]", "[3, 2, \"peak\"]"},
        {"\"words\": 2.25", "\"words\": -1"},
        {"\"words\": 2.25", "\"words\": \"many\""},
        {"[10, 1, \"sum\", 1, 1]", ""}, /* neither heads nor words */
        {"[0, 0.25, 1]", "[]"},
        {"[0, 0.25, 1]", "[0, 1.25, 1]"},
        {"\"nats\": 0.125", "\"nats\": 0"},
        {"\"nats\": 0.125", "\"nats\": \"some\""},
        {"[11, 2, \"sum\", 32, 3]", "[12, 2, \"sum\", 32, 3]"},
        {"[11, 2, \"sum\", 32, 3]", "[11, 2, \"sum\", 32, -3]"},
        {"{", "["},
    };
    static struct ChunkProfile p, have;
    p = sample_profile();
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        struct Str text = {0}, bad = {0};
        assert_int_equal(chunk_profile_write(&p, NULL, path), PC_OK);
        assert_int_equal(file_read(path, &text), PC_OK);
        const char *at = strstr(text.data, edits[i][0]);
        assert_non_null(at);
        assert_int_equal(str_append(&bad, text.data, (size_t)(at - text.data)), PC_OK);
        assert_int_equal(str_appendf(&bad, "%s%s", edits[i][1], at + strlen(edits[i][0])), PC_OK);
        assert_int_equal(file_write(path, bad.data, bad.len), PC_OK);
        if (chunk_profile_read(path, 12, 3, &have) != PC_EFORMAT)
            fail_msg("%s for %s was taken", edits[i][1], edits[i][0]);
        assert_non_null(strstr(err_text(), path));
        assert_int_equal(have.n_stops, 0);
        str_free(&text);
        str_free(&bad);
    }
    assert_int_equal(chunk_profile_read("/no/such/file", 12, 3, &have), PC_EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measures),   cmocka_unit_test(test_risk),
        cmocka_unit_test(test_survivors),  cmocka_unit_test(test_most),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_words_alone),
        cmocka_unit_test(test_bad_files),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

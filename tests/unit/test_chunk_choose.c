/* test_chunk_choose.c - calib/chunk_choose and chunk_facts: the choice of features against every single one by brute force, ranks
 * against counting, facts that differ and answer their own question only.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/chunk_choose.h"
#include "calib/chunk_facts.h"

enum { SAMPLES = 13, CHUNKS = 7, FEATURES = 10, CELLS = SAMPLES * CHUNKS };

static float feature[CELLS * FEATURES];
static double final[CELLS];
static uint8_t right[CELLS];
static int chunks[SAMPLES];

static uint32_t next_number(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

/* Random features; `told` in 10 says something of the right chunk. Sample 4 has no right one, sample 5 two. */
static struct ChunkSamples samples(uint64_t seed, int told)
{
    memset(right, 0, sizeof right);
    for (int i = 0; i < SAMPLES; i++) {
        chunks[i] = 2 + (int)(next_number(&seed) % (CHUNKS - 1));
        if (i != 4) right[i * CHUNKS + (int)(next_number(&seed) % (uint32_t)chunks[i])] = 1;
        if (i == 5) right[i * CHUNKS] = right[i * CHUNKS + 1] = 1;
        for (int c = 0; c < chunks[i]; c++) {
            int cell = i * CHUNKS + c;
            final[cell] = next_number(&seed) % 1000 / 100.0;
            for (int f = 0; f < FEATURES; f++)
                feature[cell * FEATURES + f] = (float)(next_number(&seed) % 1000) / 250 - 8 +
                                               (f == told ? 2.5f * right[cell] : 0);
        }
    }
    return (struct ChunkSamples){SAMPLES, CHUNKS, FEATURES, feature, final, right, chunks};
}

static double brute_loss(int f)
{
    double spread = 0, loss = 0;
    for (int i = 0; i < SAMPLES; i++) {
        double mean = 0, square = 0;
        for (int c = 0; c < chunks[i]; c++)
            mean += (double)feature[(i * CHUNKS + c) * FEATURES + f] / chunks[i];
        for (int c = 0; c < chunks[i]; c++)
            square += pow((double)feature[(i * CHUNKS + c) * FEATURES + f] - mean, 2) / chunks[i];
        spread += sqrt(square) / SAMPLES;
    }
    for (int i = 0; i < SAMPLES; i++) {
        int best = 0, winner = -1;
        double top = -1e9;
        for (int c = 0; c < chunks[i]; c++) {
            double x = (double)feature[(i * CHUNKS + c) * FEATURES + f] / spread;
            if (final[i * CHUNKS + c] < final[i * CHUNKS + best]) best = c;
            if (right[i * CHUNKS + c] && x > top) top = x, winner = c;
        }
        if (winner < 0) continue;
        double chosen = (double)feature[(i * CHUNKS + best) * FEATURES + f] / spread;
        for (int c = 0; c < chunks[i]; c++) {
            double x = (double)feature[(i * CHUNKS + c) * FEATURES + f] / spread;
            if (!right[i * CHUNKS + c]) loss += log(1 + exp(x - top)) / SAMPLES;
            if (c != best) loss += 0.25 * log(1 + exp(x - chosen)) / SAMPLES;
        }
    }
    return loss;
}

static void test_first(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 30; seed++) {
        struct ChunkSamples s = samples(seed, (int)(seed % FEATURES));
        uint8_t allowed[FEATURES];
        int chosen[3], want = -1;
        float weight[3];
        struct ChunkScorer one = {chosen, weight, 0, 1};
        memset(allowed, 1, sizeof allowed);
        allowed[seed % 3] = 0;
        for (int f = 0; f < FEATURES; f++)
            if (allowed[f] && (want < 0 || brute_loss(f) < brute_loss(want))) want = f;
        assert_int_equal(chunk_choose(&s, allowed, &one), PC_OK);
        assert_int_equal(one.n, 1);
        assert_int_equal(chosen[0], want);
    }
}

/* More features never fit worse, and only allowed ones, each once. */
static void test_more(void **state)
{
    (void)state;
    struct ChunkSamples s = samples(7, 3);
    uint8_t allowed[FEATURES];
    int chosen[FEATURES], seen[FEATURES] = {0};
    float weight[FEATURES];
    struct ChunkScorer all = {chosen, weight, 0, FEATURES};
    memset(allowed, 1, sizeof allowed);
    allowed[0] = 0;
    assert_int_equal(chunk_choose(&s, allowed, &all), PC_OK);
    assert_in_range(all.n, 1, FEATURES - 1);
    assert_int_equal(chosen[0], 3);
    for (int i = 0; i < all.n; i++) {
        assert_true(allowed[chosen[i]] && weight[i] > 0);
        assert_int_equal(seen[chosen[i]]++, 0);
    }
}

static void test_ranks(void **state)
{
    (void)state;
    struct ChunkSamples s = samples(5, 2);
    int chosen[2] = {2, 8};
    float weight[2] = {0.5f, 1.25f};
    struct ChunkScorer two = {chosen, weight, 2, 2};
    for (int i = 0; i < SAMPLES; i++) {
        double x[CHUNKS], top = -1e9, least = 1e9;
        int ahead = 0, finals = 0, winner = 0, best = 0;
        for (int c = 0; c < chunks[i]; c++) {
            const float *at = feature + (i * CHUNKS + c) * FEATURES;
            x[c] = 0.5 * (double)at[2] + 1.25 * (double)at[8];
            if (final[i * CHUNKS + c] < final[i * CHUNKS + best]) best = c;
            if (!right[i * CHUNKS + c]) continue;
            top = fmax(top, x[c]);
            least = fmin(least, final[i * CHUNKS + c]);
        }
        for (int c = 0; c < chunks[i]; c++) {
            ahead += !right[i * CHUNKS + c] && x[c] >= top;
            finals += !right[i * CHUNKS + c] && final[i * CHUNKS + c] <= least;
            winner += c != best && x[c] >= x[best];
        }
        assert_int_equal(chunks_ahead(&s, i, &two), i == 4 ? -1 : ahead);
        assert_int_equal(finals_ahead(&s, i), i == 4 ? -1 : finals);
        assert_int_equal(winner_ahead(&s, i, &two), winner);
    }
}

/* Against counting; where the final score tells all, nothing is added; where it tells nothing, the feature is. */
static void test_blend(void **state)
{
    (void)state;
    int f = 3;
    float one = 1;
    struct ChunkScorer scorer = {&f, &one, 1, 1};
    for (uint64_t seed = 1; seed < 30; seed++) {
        struct ChunkSamples s = samples(seed, f);
        for (double nats = 0; nats < 3; nats += 0.5)
            for (int i = 0; i < SAMPLES; i++) {
                double best = INFINITY;
                int ahead = i == 4 ? -1 : 0;
                for (int turn = 0; turn < 2; turn++)
                    for (int c = 0; c < chunks[i]; c++) {
                        int cell = i * CHUNKS + c;
                        double v = final[cell] - nats * (double)feature[cell * FEATURES + f];
                        if (right[cell] && !turn) best = fmin(best, v);
                        if (i != 4 && !right[cell] && turn) ahead += v <= best;
                    }
                assert_int_equal(blended_ahead(&s, i, &scorer, nats), ahead);
                if (nats == 0) assert_int_equal(ahead, finals_ahead(&s, i));
            }
        assert_true(chunk_blend(&s, &scorer) > 0); /* the final score is drawn by chance */
        for (int c = 0; c < CELLS; c++) final[c] = right[c] ? -1 : 1;
        assert_true(chunk_blend(&s, &scorer) == 0);
    }
}

static void test_faults(void **state)
{
    (void)state;
    struct ChunkSamples s = samples(2, 1);
    uint8_t allowed[FEATURES];
    int chosen[2];
    float weight[2];
    struct ChunkScorer two = {chosen, weight, 0, 2};
    size_t before = mem_in_use();
    memset(allowed, 1, sizeof allowed);
    for (long n = 1; n <= 3; n++) {
        mem_fail_after(n);
        assert_int_equal(chunk_choose(&s, allowed, &two), PC_ENOMEM);
        mem_fail_after(0);
        assert_int_equal(mem_in_use(), before);
    }
}

/* All facts of a text are about different people, and the answer stands in the needle, not in the question. */
static void test_facts(void **state)
{
    (void)state;
    struct Str needle[CHUNK_FACTS_MAX] = {0}, question[CHUNK_FACTS_MAX] = {0};
    for (uint64_t seed = 0; seed < 50; seed++) {
        for (int i = 0; i < CHUNK_FACTS_MAX; i++) {
            str_clear(&needle[i]);
            str_clear(&question[i]);
            assert_int_equal(chunk_fact(seed, i, &needle[i], &question[i]), PC_OK);
            struct Str again = {0}, asked = {0};
            assert_int_equal(chunk_fact(seed, i, &again, &asked), PC_OK);
            assert_string_equal(needle[i].data, again.data);
            str_free(&again);
            str_free(&asked);
            for (int k = 0; k < i; k++) {
                assert_string_not_equal(question[i].data, question[k].data);
                assert_string_not_equal(needle[i].data, needle[k].data);
            }
        }
    }
    for (int i = 0; i < CHUNK_FACTS_MAX; i++) {
        str_free(&needle[i]);
        str_free(&question[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first), cmocka_unit_test(test_more),   cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_blend), cmocka_unit_test(test_faults), cmocka_unit_test(test_facts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

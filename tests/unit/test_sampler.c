/* test_sampler.c - greedy, nucleus against a full sort, frequencies, fixed seeds and errors. */
#include "sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { V = 500 };

static uint64_t rng_state = 9;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

static void test_argmax(void **state)
{
    (void)state;
    float logits[6] = {-3, 5, 5, -INFINITY, 4, 5};
    int id = -1;
    assert_int_equal(sampler_argmax(logits, 6, &id), PC_OK);
    assert_int_equal(id, 1);
    logits[5] = 6;
    assert_int_equal(sampler_argmax(logits, 6, &id), PC_OK);
    assert_int_equal(id, 5);
    logits[0] = NAN;
    assert_int_equal(sampler_argmax(logits, 6, &id), PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "token 0"));
    logits[0] = INFINITY;
    assert_int_equal(sampler_argmax(logits, 6, &id), PC_EINTERNAL);
    for (int i = 0; i < 6; i++) logits[i] = -INFINITY;
    assert_int_equal(sampler_argmax(logits, 6, &id), PC_EINTERNAL);
    assert_int_equal(sampler_argmax(logits, 0, &id), PC_EINTERNAL);
    assert_int_equal(id, 5);
}

static void test_greedy_draws_nothing(void **state)
{
    (void)state;
    struct SamplerConfig config = {.temperature = 0, .top_p = 0.9f, .seed = 1};
    struct Sampler s;
    size_t before = mem_in_use();
    assert_int_equal(sampler_open(&s, 3, &config), PC_OK);
    assert_int_equal(mem_in_use(), before);
    uint64_t at_start[4];
    memcpy(at_start, s.state, sizeof at_start);
    const float logits[3] = {1, 2, 2};
    int id = -1;
    assert_int_equal(sampler_next(&s, logits, &id), PC_OK);
    assert_int_equal(id, 1);
    assert_memory_equal(s.state, at_start, sizeof at_start);
    sampler_close(&s);
}

static const float *sorted_by;

static int by_logit(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;
    return sorted_by[i] > sorted_by[j] ? -1 : sorted_by[i] < sorted_by[j] ? 1 : i - j;
}

/* Finds the nucleus by sorting the whole vocabulary: prob gets each token's share in it, else 0.
 * *margin is how clearly the sum is above or below top_p where the nucleus ends. */
static void nucleus(const float *logits, int n, const struct SamplerConfig *c, double *prob,
                    double *margin)
{
    int order[V], size = 0;
    double total = 0, mass = 0;
    for (int i = 0; i < n; i++) order[i] = i;
    sorted_by = logits;
    qsort(order, (size_t)n, sizeof *order, by_logit);
    for (int i = 0; i < n; i++)
        total += exp(((double)logits[i] - (double)logits[order[0]]) / (double)c->temperature);
    for (int i = 0; i < n; i++) prob[i] = 0;
    *margin = 1;
    do {
        int id = order[size++];
        prob[id] = exp(((double)logits[id] - (double)logits[order[0]]) / (double)c->temperature);
        mass += prob[id];
        double off = fabs(mass / total - (double)c->top_p);
        *margin = off < *margin ? off : *margin;
    } while (size < n && mass / total < (double)c->top_p);
    for (int i = 0; i < n; i++) prob[i] /= mass;
}

/* Draws often; every id must lie in the nucleus, and every likely member must come up. */
static void test_nucleus_against_sort(void **state)
{
    (void)state;
    static const float top_ps[] = {0.0f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 1.0f};
    int n_checked = 0;
    for (int round = 0; round < 2000; round++) {
        float logits[V];
        double prob[V], margin;
        int n = 1 + (int)(rng() % (round % 10 ? 30 : V));
        for (int i = 0; i < n; i++) {
            logits[i] = round % 2 ? (float)(rng() % 6) : (float)(rng() % 100000) * 1e-4f;
            if (rng() % 10 == 0) logits[i] = -INFINITY;
        }
        logits[rng() % (uint32_t)n] = 3;
        struct SamplerConfig config = {.temperature = 0.3f + (float)(rng() % 20) * 0.1f,
                                       .top_p = top_ps[round % 7],
                                       .seed = rng()};
        nucleus(logits, n, &config, prob, &margin);
        if (margin < 1e-9 && config.top_p < 1) continue; /* rounding may decide either way */
        n_checked++;
        struct Sampler s;
        assert_int_equal(sampler_open(&s, n, &config), PC_OK);
        bool seen[V] = {false};
        for (int draw = 0; draw < 400; draw++) {
            int id = -1;
            assert_int_equal(sampler_next(&s, logits, &id), PC_OK);
            assert_in_range(id, 0, n - 1);
            assert_true(prob[id] > 0);
            seen[id] = true;
        }
        for (int i = 0; i < n; i++)
            if (prob[i] > 0.1) assert_true(seen[i]); /* missed by chance: 0.9^400 */
        sampler_close(&s);
    }
    assert_true(n_checked > 1900);
}

/* Pearson's chi-square of the observed ids against the shares; 9 degrees of freedom at most. */
static void check_frequencies(float temperature, float top_p)
{
    enum { N = 10, DRAWS = 200000 };
    const float logits[N] = {0.1f, 2.0f, -1.0f, 1.5f, 1.5f, 0.0f, -INFINITY, 0.7f, 2.5f, 0.2f};
    struct SamplerConfig config = {.temperature = temperature, .top_p = top_p, .seed = 2024};
    double prob[V], margin, chi2 = 0;
    nucleus(logits, N, &config, prob, &margin);
    int count[N] = {0}, id;
    struct Sampler s;
    assert_int_equal(sampler_open(&s, N, &config), PC_OK);
    for (int i = 0; i < DRAWS; i++) {
        assert_int_equal(sampler_next(&s, logits, &id), PC_OK);
        count[id]++;
    }
    sampler_close(&s);
    for (int i = 0; i < N; i++) {
        double expected = prob[i] * DRAWS;
        if (prob[i] > 0)
            chi2 += (count[i] - expected) * (count[i] - expected) / expected;
        else
            assert_int_equal(count[i], 0);
    }
    assert_true(chi2 < 27.9); /* 1 in 1000 for 9 degrees; the seed is fixed */
}

static void test_frequencies(void **state)
{
    (void)state;
    check_frequencies(1.0f, 1.0f);
    check_frequencies(0.7f, 1.0f);
    check_frequencies(1.0f, 0.8f);
    check_frequencies(2.0f, 0.95f);
}

/* Frozen ids: they must not change with compiler, flags or C library. */
static void test_same_ids_everywhere(void **state)
{
    (void)state;
    static const int expected[2][12] = {
        {50, 199, 334, 459, 495, 383, 348, 421, 383, 286, 334, 161},
        {210, 235, 38, 187, 422, 458, 285, 199, 137, 223, 38, 25},
    };
    float logits[V];
    for (int i = 0; i < V; i++) logits[i] = (float)((i * 7919) % 1000) * 0.01f;
    for (int round = 0; round < 2; round++) {
        struct SamplerConfig config = {
            .temperature = 0.8f, .top_p = round ? 0.9f : 1.0f, .seed = 42};
        struct Sampler s;
        assert_int_equal(sampler_open(&s, V, &config), PC_OK);
        for (int i = 0; i < 12; i++) {
            int id;
            assert_int_equal(sampler_next(&s, logits, &id), PC_OK);
            assert_int_equal(id, expected[round][i]);
        }
        sampler_close(&s);
    }
}

static void test_open_and_errors(void **state)
{
    (void)state;
    struct SamplerConfig config = {.temperature = 1, .top_p = 0.9f};
    struct Sampler s;
    size_t before = mem_in_use();
    for (int nth = 1; nth <= 2; nth++) {
        mem_fail_after(nth);
        assert_int_equal(sampler_open(&s, 10, &config), PC_ENOMEM);
        mem_fail_after(0);
        assert_int_equal(mem_in_use(), before);
    }
    assert_int_equal(sampler_open(&s, 2, &config), PC_OK);
    const float broken[2] = {0, NAN}, fine[2] = {0, -200};
    int id = -1;
    assert_int_equal(sampler_next(&s, broken, &id), PC_EINTERNAL);
    assert_int_equal(id, -1);
    mem_guard(true);
    int hits = mem_guard_hits();
    for (int i = 0; i < 100; i++) {
        assert_int_equal(sampler_next(&s, fine, &id), PC_OK);
        assert_int_equal(id, 0);
    }
    mem_guard(false);
    assert_int_equal(mem_guard_hits(), hits);
    sampler_close(&s);
    /* The coldest temperature still is one: only the highest can come. */
    config.temperature = 1e-45f;
    const float close_call[2] = {0.999f, 1.0f};
    assert_int_equal(sampler_open(&s, 2, &config), PC_OK);
    assert_int_equal(sampler_next(&s, close_call, &id), PC_OK);
    assert_int_equal(id, 1);
    sampler_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_argmax),
        cmocka_unit_test(test_greedy_draws_nothing),
        cmocka_unit_test(test_nucleus_against_sort),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_same_ids_everywhere),
        cmocka_unit_test(test_open_and_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_chunk_evict.c - the queue of kept chunks against a full sort, in every arrival order. */
#include "eviction/chunk_evict.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_MAX = 64, KEEP_EVERY = -1 };

static uint64_t rng_state = 7;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

/* By counting: a chunk stays if fewer than k others are better. */
static bool stays(const double *score, int n, int k, int chunk)
{
    int better = 0;
    for (int other = 0; other < n; other++) {
        if (other == chunk) continue;
        double a = score[other], b = score[chunk];
        bool tie = (isnan(a) && isnan(b)) || a == b;
        better += tie ? other < chunk : isnan(b) || a < b;
    }
    return better < k;
}

static void check(const double *score, const int *order, int n, int k)
{
    struct ChunkQueue q;
    bool present[N_MAX] = {false};
    assert_int_equal(chunk_queue_open(&q, k, n), PC_OK);
    int limit = k < 0 || k > n ? n : k, held = 0;
    for (int i = 0; i < n; i++) {
        int evicted = -2;
        present[order[i]] = true;
        held++;
        chunk_queue_push(&q, order[i], score[order[i]], &evicted);
        if (evicted != -1) {
            assert_in_range(evicted, 0, n - 1);
            assert_true(present[evicted]);
            present[evicted] = false;
            held--;
        }
        assert_int_equal(held, i + 1 < limit ? i + 1 : limit);
    }
    int kept[N_MAX];
    assert_int_equal(chunk_queue_kept(&q, kept), limit);
    int at = 0;
    for (int chunk = 0; chunk < n; chunk++) {
        bool expected = stays(score, n, limit, chunk);
        assert_int_equal(present[chunk], expected);
        if (expected) assert_int_equal(kept[at++], chunk);
    }
    assert_int_equal(at, limit);
    chunk_queue_close(&q);
}

static void shuffle(int *order, int n)
{
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(rng() % (uint32_t)(i + 1)), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

static void test_random_orders(void **state)
{
    (void)state;
    static const double odd[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1.0, 2.0, -NAN};
    for (int round = 0; round < 5000; round++) {
        double score[N_MAX];
        int order[N_MAX], n = 1 + (int)(rng() % N_MAX);
        for (int i = 0; i < n; i++) {
            score[i] = round % 3 == 0 ? rng() % 4 : round % 3 == 1 ? rng() * 1e-9 : odd[rng() % 8];
            order[i] = i;
        }
        int k = round % 7 == 0 ? KEEP_EVERY : 1 + (int)(rng() % 8);
        check(score, order, n, k);
        shuffle(order, n);
        check(score, order, n, k);
    }
}

/* All 120 arrivals of five chunks with ties, for each k. */
static void test_every_order(void **state)
{
    (void)state;
    const double score[5] = {2.0, 1.0, 2.0, NAN, 1.0};
    for (int code = 0; code < 3125; code++) {
        int order[5], seen = 0;
        for (int i = 0, rest = code; i < 5; i++, rest /= 5) {
            order[i] = rest % 5;
            seen |= 1 << order[i];
        }
        if (seen != 31) continue;
        for (int k = 1; k <= 6; k++) check(score, order, 5, k);
    }
}

static void test_open_errors(void **state)
{
    (void)state;
    struct ChunkQueue q;
    assert_int_equal(chunk_queue_open(&q, 0, 4), PC_ECONFIG);
    chunk_queue_close(&q);
    mem_fail_after(1);
    assert_int_equal(chunk_queue_open(&q, 2, 4), PC_ENOMEM);
    mem_fail_after(0);
    chunk_queue_close(&q);
    size_t before = mem_in_use();
    assert_int_equal(chunk_queue_open(&q, 1000000, 4), PC_OK); /* no more than there are chunks */
    assert_int_equal(mem_in_use() - before, 4 * sizeof(struct ChunkEntry));
    int evicted;
    mem_guard(true);
    chunk_queue_push(&q, 0, 1.0, &evicted);
    mem_guard(false);
    assert_int_equal(mem_guard_hits(), 0);
    assert_int_equal(evicted, -1);
    chunk_queue_close(&q);
    assert_int_equal(mem_in_use(), before);
}

static void test_self_information(void **state)
{
    (void)state;
    const float nll[] = {8.0f, 1.0f, 2.0f, 3.0f, 16.0f};
    assert_true(self_information(nll, 5, 1, 4) == 2.0);
    assert_true(self_information(nll, 5, 0, 5) == 6.0);
    assert_true(self_information(nll, 5, 2, 2) == 6.0);
    assert_true(self_information(nll, 5, 4, 99) == 16.0);
    assert_true(self_information(nll, 5, -3, 1) == 8.0);
    assert_true(isnan(self_information(nll, 0, 0, 0)));
    const float broken[] = {1.0f, NAN};
    assert_true(isnan(self_information(broken, 2, 0, 2)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_orders),
        cmocka_unit_test(test_every_order),
        cmocka_unit_test(test_open_errors),
        cmocka_unit_test(test_self_information),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

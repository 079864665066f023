/* test_gca.c - the reference of grouped cross attention (tests/gca_ref.h) against its definition in long double, and the
 * properties that its authors give it. That the engine's rows over pages are the same operator with exact weights is
 * test_page_select.c's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tests/gca_ref.h"

enum { N_MAX = 19, TOKENS_MAX = 65, DIM_MAX = 96, ROUNDS = 400 };

static uint64_t rng_state = 5;

static int rng(int below)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((rng_state >> 33) % (uint64_t)below);
}

static float uniform(void)
{
    return (float)rng(2001) / 1000 - 1;
}

static struct {
    float q[DIM_MAX], landmark[N_MAX * DIM_MAX], k[N_MAX * TOKENS_MAX * DIM_MAX],
        v[N_MAX * TOKENS_MAX * DIM_MAX];
    int len[N_MAX];
} data;

/* Odd sizes; keys of a spread that makes some chunks matter and others not. */
static struct GcaChunks make_chunks(void)
{
    struct GcaChunks c = {data.k,          data.v, data.len, 1 + rng(N_MAX), 1 + rng(TOKENS_MAX),
                          1 + rng(DIM_MAX)};
    size_t n = (size_t)c.n * (size_t)c.tokens * (size_t)c.head_dim;
    float spread = 1 + 5 * (float)rng(3);
    for (int i = 0; i < c.head_dim; i++) data.q[i] = spread * uniform();
    for (size_t i = 0; i < n; i++) data.k[i] = uniform(), data.v[i] = uniform();
    for (int i = 0; i < c.n * c.head_dim; i++) data.landmark[i] = (float)rng(7) - 3; /* ties */
    for (int i = 0; i < c.n; i++) data.len[i] = 1 + rng(c.tokens);
    return c;
}

static void close_to(double got, long double want, const char *what)
{
    if (!(fabsl(got - want) <= 1e-9L * (1 + fabsl(want))))
        fail_msg("%s: %.12g for %.12Lg", what, got, want);
}

static long double logit(const float *a, const float *b, int n)
{
    long double sum = 0;
    for (int i = 0; i < n; i++) sum += (long double)a[i] * b[i];
    return sum / sqrtl(n);
}

/* ==== Retrieval ==== */

/* The best one after another, then exp over the sum of exps. */
static int brute_retrieve(const struct GcaChunks *c, int n, int most, bool *taken,
                          long double *weight)
{
    int k = 0;
    long double sum = 0;
    memset(taken, 0, N_MAX * sizeof *taken);
    for (; k < most && k < n; k++) {
        int best = -1;
        for (int i = 0; i < n; i++)
            if (!taken[i] &&
                (best < 0 ||
                 logit(data.q, data.landmark + (size_t)i * c->head_dim, c->head_dim) >
                     logit(data.q, data.landmark + (size_t)best * c->head_dim, c->head_dim)))
                best = i;
        taken[best] = true;
    }
    for (int i = 0; i < n; i++) {
        weight[i] = expl(logit(data.q, data.landmark + (size_t)i * c->head_dim, c->head_dim));
        if (taken[i]) sum += weight[i];
    }
    for (int i = 0; i < n; i++) weight[i] /= sum;
    return k;
}

static void test_retrieval(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct GcaChunks c = make_chunks();
        int idx[N_MAX], before = rng(c.n + 1), most = 1 + rng(N_MAX);
        bool taken[N_MAX];
        double weight[N_MAX], sum = 0;
        long double want[N_MAX];
        for (int i = 0; i < c.head_dim; i++) data.q[i] = (float)rng(5) - 2; /* ties */
        int n = gca_retrieve(data.q, data.landmark, before, c.head_dim, most, idx, weight);
        assert_int_equal(n, brute_retrieve(&c, before, most, taken, want));
        for (int i = 0; i < n; i++) {
            assert_true(idx[i] < before && taken[idx[i]] && (i == 0 || idx[i] > idx[i - 1]));
            close_to(weight[i], want[idx[i]], "weight");
            sum += weight[i];
        }
        if (n) close_to(sum, 1, "sum of weights");
    }
}

/* ==== Attention ==== */

static void brute_attend(const struct GcaChunks *c, const int *idx, const double *weight, int n,
                         bool off_by_one, long double *out)
{
    for (int d = 0; d < c->head_dim; d++) out[d] = 0;
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)idx[i] * c->tokens * c->head_dim;
        long double sum = off_by_one, part[DIM_MAX] = {0};
        for (int t = 0; t < data.len[idx[i]]; t++) {
            size_t token = at + (size_t)t * c->head_dim;
            long double e = expl(logit(data.q, data.k + token, c->head_dim));
            sum += e;
            for (int d = 0; d < c->head_dim; d++) part[d] += e * data.v[token + d];
        }
        for (int d = 0; d < c->head_dim; d++) out[d] += weight[i] * part[d] / sum;
    }
}

static void test_attention(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct GcaChunks c = make_chunks();
        int idx[N_MAX];
        double weight[N_MAX], out[DIM_MAX];
        long double want[DIM_MAX];
        int n = gca_retrieve(data.q, data.landmark, c.n, c.head_dim, 8, idx, weight);
        bool off_by_one = rng(2);
        gca_attend(data.q, &c, idx, weight, n, off_by_one, out, NULL);
        brute_attend(&c, idx, weight, n, off_by_one, want);
        for (int d = 0; d < c.head_dim; d++) close_to(out[d], want[d], "output");
    }
}

/* The 1 in the denominator is a token of zeros: what a landmark's slot leaves (headwise.md C.1). */
static void test_landmark_slot(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct GcaChunks c = make_chunks();
        int idx[N_MAX];
        double weight[N_MAX], with[DIM_MAX], without[DIM_MAX];
        if (c.tokens < 2) continue;
        for (int i = 0; i < c.n; i++) {
            idx[i] = i;
            weight[i] = uniform();
            data.len[i] = c.tokens - 1;
            size_t slot = ((size_t)i * c.tokens + (size_t)c.tokens - 1) * c.head_dim;
            memset(data.k + slot, 0, sizeof *data.k * (size_t)c.head_dim);
            memset(data.v + slot, 0, sizeof *data.v * (size_t)c.head_dim);
        }
        gca_attend(data.q, &c, idx, weight, c.n, true, with, NULL);
        c.len = NULL;
        gca_attend(data.q, &c, idx, weight, c.n, false, without, NULL);
        for (int d = 0; d < c.head_dim; d++) close_to(with[d], without[d], "landmark slot");
    }
}

/* With weights exp(lse_c - lse) the chunks make up one softmax over all their tokens; with those of the landmarks not. */
static void test_exact_weights(void **state)
{
    (void)state;
    int differ = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct GcaChunks c = make_chunks();
        int idx[N_MAX], n_tokens = 0;
        double weight[N_MAX], exact[N_MAX], lse[N_MAX], out[DIM_MAX], plain[DIM_MAX], one = 1;
        static float k[N_MAX * TOKENS_MAX * DIM_MAX], v[N_MAX * TOKENS_MAX * DIM_MAX];
        int n = gca_retrieve(data.q, data.landmark, c.n, c.head_dim, 8, idx, weight), all = 0;
        gca_attend(data.q, &c, idx, weight, n, false, plain, lse);
        gca_exact_weights(lse, n, exact);
        gca_attend(data.q, &c, idx, exact, n, false, out, NULL);
        for (int i = 0; i < n; i++) {
            size_t row = (size_t)c.head_dim, at = (size_t)idx[i] * c.tokens * row,
                   size = (size_t)data.len[idx[i]] * row;
            memcpy(k + (size_t)n_tokens * row, data.k + at, size * sizeof *k);
            memcpy(v + (size_t)n_tokens * row, data.v + at, size * sizeof *v);
            n_tokens += data.len[idx[i]];
        }
        struct GcaChunks joined = {k, v, NULL, 1, n_tokens, c.head_dim};
        double want[DIM_MAX], off = 0;
        gca_attend(data.q, &joined, &all, &one, 1, false, want, NULL);
        for (int d = 0; d < c.head_dim; d++) {
            close_to(out[d], want[d], "one softmax");
            off = fmax(off, fabs(plain[d] - want[d]));
        }
        differ += off > 1e-3;
    }
    assert_true(differ > ROUNDS / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_retrieval),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_landmark_slot),
        cmocka_unit_test(test_exact_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

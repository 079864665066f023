/* test_head_score.c - passkeys, divergence of answers, and scores of rows of attention, against brute force. */
#include "calib/head_score.h"
#include "calib/passkey.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t rng_state = 11;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

/* -scale .. scale */
static float real(float scale)
{
    return scale * ((float)(rng() % 20001) / 10000.0f - 1);
}

static void fill(float *x, int n, float scale)
{
    for (int i = 0; i < n; i++) x[i] = real(scale);
}

/* ==== Passkeys ==== */

static void test_depths(void **state)
{
    (void)state;
    double depths[PASSKEYS_MAX], again[PASSKEYS_MAX];
    int moved = 0;
    for (uint64_t seed = 0; seed < 200; seed++)
        for (int n = 1; n <= PASSKEYS_MAX; n += 3) {
            passkey_depths(seed, n, depths);
            passkey_depths(seed, n, again);
            assert_memory_equal(depths, again, sizeof *depths * (size_t)n);
            assert_true(depths[0] >= 0.05 && depths[n - 1] <= 0.95 + 1e-12);
            for (int i = 1; i < n; i++) assert_true(depths[i] > depths[i - 1]);
            passkey_depths(seed + 1, n, again);
            moved += memcmp(depths, again, sizeof *depths * (size_t)n) != 0;
        }
    assert_true(moved > 1350);
}

static int count_words(const char *text)
{
    int n = 0;
    for (; *text; text++) n += *text == ' ';
    return n;
}

static void test_words(void **state)
{
    (void)state;
    struct Str a = {0}, b = {0};
    for (int n = 1; n <= 32; n++) {
        str_clear(&a);
        str_clear(&b);
        assert_int_equal(passkey_words(3, 1, n, &a), PC_OK);
        assert_int_equal(passkey_words(3, 1, n, &b), PC_OK);
        assert_string_equal(a.data, b.data);
        assert_int_equal(count_words(a.data), n);
        assert_true(a.data[0] == ' ' && a.data[a.len - 1] != ' ');
    }
    str_clear(&b);
    assert_int_equal(passkey_words(3, 2, 32, &b), PC_OK);
    assert_string_not_equal(a.data, b.data);
    str_clear(&b);
    assert_int_equal(passkey_words(4, 1, 32, &b), PC_OK);
    assert_string_not_equal(a.data, b.data);
    /* every word of the alphabet comes up */
    str_clear(&b);
    assert_int_equal(passkey_words(5, 0, 1000, &b), PC_OK);
    static const char *const some[] = {" alpha", " mike", " xray", " zulu", " juliet"};
    for (int i = 0; i < 5; i++) assert_non_null(strstr(b.data, some[i]));
    str_free(&a);
    str_free(&b);
}

static void test_texts(void **state)
{
    (void)state;
    struct Str a = {0};
    assert_int_equal(passkey_needle(2, &a), PC_OK);
    assert_string_equal(a.data,
                        "Remember this sequence of words, it's the third passkey to the vault:");
    str_clear(&a);
    assert_int_equal(passkey_question(9, &a), PC_OK);
    assert_non_null(strstr(a.data, "the tenth passkey to the vault?"));
    for (int i = 0; i < PASSKEYS_MAX; i++)
        for (int j = 0; j < i; j++) assert_string_not_equal(passkey_ordinal(i), passkey_ordinal(j));
    str_free(&a);
}

/* Seven digits behind a space; needle and question name the same place, another for each code. */
static void test_codes(void **state)
{
    (void)state;
    struct Str digits = {0}, needle = {0}, question = {0}, last = {0};
    for (int key = 0; key < PASSKEYS_MAX; key++) {
        str_clear(&digits), str_clear(&needle), str_clear(&question);
        assert_int_equal(code_digits(5, key, &digits), PC_OK);
        assert_int_equal(code_needle(key, &needle), PC_OK);
        assert_int_equal(code_question(key, &question), PC_OK);
        assert_int_equal(strlen(digits.data), 8);
        assert_int_equal(strspn(digits.data + 1, "0123456789"), 7);
        const char *place = strstr(needle.data, " of the ") + 8;
        int len = (int)strcspn(place, " ");
        assert_int_equal(strncmp(strstr(question.data, " of the ") + 8, place, (size_t)len), 0);
        assert_true(key == 0 || strcmp(needle.data, last.data) != 0);
        str_clear(&last);
        assert_int_equal(str_append(&last, needle.data, needle.len), PC_OK);
    }
    str_clear(&last);
    assert_int_equal(code_digits(5, 0, &last), PC_OK);
    str_clear(&digits);
    assert_int_equal(code_digits(6, 0, &digits), PC_OK);
    assert_string_not_equal(digits.data, last.data);
    str_free(&digits);
    str_free(&needle);
    str_free(&question);
    str_free(&last);
}

/* ==== Rows of logits ==== */

static double brute_lse(const float *z, int n)
{
    long double sum = 0;
    for (int i = 0; i < n; i++) sum += expl((long double)z[i]);
    return (double)logl(sum);
}

static double brute_kl(const float *a, const float *b, int n)
{
    long double sum = 0, la = brute_lse(a, n), lb = brute_lse(b, n);
    for (int i = 0; i < n; i++) sum += expl(a[i] - la) * ((a[i] - la) - (b[i] - lb));
    return (double)sum;
}

enum { N_MAX = 997 };

static void test_divergence(void **state)
{
    (void)state;
    static float a[N_MAX], b[N_MAX], prob[N_MAX];
    for (int n = 1; n <= N_MAX; n += 1 + n / 3)
        for (int scale = 0; scale < 4; scale++) {
            fill(a, n, scale * 8.0f);
            memcpy(b, a, sizeof a);
            for (int i = 0; i < n; i += 2) b[i] += real((float)scale + 0.01f);
            double lse = logits_lse(a, n), other = logits_lse(b, n);
            assert_true(fabs(lse - brute_lse(a, n)) < 1e-9);
            logits_softmax(a, n, lse, prob);
            struct AnswerRow row = {a, prob, lse};
            double kl = answer_kl(&row, b, other, n), want = brute_kl(a, b, n);
            if (!(fabs(kl - want) <= 1e-9 + 1e-6 * want))
                fail_msg("n %d: KL %.12g, not %.12g", n, kl, want);
            assert_true(answer_kl(&row, a, lse, n) == 0);
        }
}

static void test_best(void **state)
{
    (void)state;
    float z[67];
    for (int n = 1; n <= 67; n++)
        for (int turn = 0; turn < 20; turn++) {
            int best = 0;
            for (int i = 0; i < n; i++) z[i] = (float)(rng() % 9) - 12; /* many ties */
            for (int i = 1; i < n; i++)
                if (z[i] > z[best]) best = i;
            assert_int_equal(logits_best(z, n), best);
        }
}

/* ==== Rows of attention ==== */

static void test_attention(void **state)
{
    (void)state;
    enum { KEYS = 131, DIM = 65 };
    static float q[DIM], keys[KEYS * DIM], prob[KEYS];
    for (int n = 1; n <= KEYS; n += 13)
        for (int dim = 1; dim <= DIM; dim += 16) {
            double want[KEYS], top = -INFINITY, sum = 0;
            fill(q, dim, 3);
            fill(keys, n * dim, 3);
            for (int j = 0; j < n; j++) {
                want[j] = 0;
                for (int d = 0; d < dim; d++) want[j] += (double)q[d] * keys[j * dim + d];
                want[j] /= sqrt(dim);
                top = fmax(top, want[j]);
            }
            for (int j = 0; j < n; j++) sum += want[j] = exp(want[j] - top);
            attention_row(q, keys, n, dim, prob);
            for (int j = 0; j < n; j++) assert_true(fabs(prob[j] - want[j] / sum) < 1e-5);
        }
}

static void test_looks(void **state)
{
    (void)state;
    /* tokens:            0    1    2    3    4    5    6  */
    const int ids[] = {7, 5, 9, 5, 8, 9, 5};
    const float prob[] = {0.05f, 0.1f, 0.2f, 0.3f, 0.05f, 0.1f, 0.2f};
    assert_true(fabs(attention_mass(prob, 2, 5) - 0.55) < 1e-6);
    assert_true(attention_mass(prob, 4, 4) == 0);
    assert_true(attention_copies(prob, 7, 2, 5, ids, 5));
    assert_false(attention_copies(prob, 7, 2, 5, ids, 9)); /* not the token that follows */
    assert_false(attention_copies(prob, 7, 4, 7, ids, 5)); /* outside the needle */
    assert_true(attention_copies(prob, 3, 2, 5, ids, 9));  /* later keys are not seen */
    /* the row's token is 5: earlier copies 1 and 3, behind them 2 and 4; not its own key */
    assert_true(fabs(attention_echo(prob, ids, 7) - (0.1 + 0.2 + 0.3 + 0.05)) < 1e-6);
    assert_true(attention_echo(prob, ids, 1) == 0);
}

/* ==== Rotation ==== */

static void rotate(const struct Rotation *r, int pos, double *x)
{
    for (int i = 0; i < r->rope_dim / 2; i++) {
        int a = r->pairs ? 2 * i : i, b = r->pairs ? a + 1 : i + r->rope_dim / 2;
        double angle = pos * (double)r->inv_freq[i], xa = x[a], xb = x[b];
        x[a] = r->scale * (xa * cos(angle) - xb * sin(angle));
        x[b] = r->scale * (xa * sin(angle) + xb * cos(angle));
    }
}

static struct Rotation random_rotation(float *inv_freq, bool pairs, float scale)
{
    for (int i = 0; i < 6; i++) inv_freq[i] = powf(100.0f, -(float)i / 6);
    return (struct Rotation){inv_freq, 12, 16, pairs, scale};
}

static double brute_reach(const struct Rotation *r, const double *q, const double *k, int n)
{
    double last[16], weight[300], sum = 0, given = 0, all = 0;
    memcpy(last, q, sizeof last);
    rotate(r, n - 1, last);
    for (int j = 0; j < n; j++) {
        double key[16], dot = 0;
        memcpy(key, k, sizeof key);
        rotate(r, j, key);
        for (int d = 0; d < 16; d++) dot += last[d] * key[d];
        all += weight[j] = exp(dot / 4);
    }
    for (int j = 0; j < n; j++) {
        given += weight[j] / all;
        sum += given;
    }
    return sum / n;
}

static void test_rotation(void **state)
{
    (void)state;
    float inv_freq[6];
    for (int style = 0; style < 4; style++) {
        struct Rotation r = random_rotation(inv_freq, style & 1, style & 2 ? 1.25f : 1);
        for (int pos = 0; pos < 400; pos += 37) {
            double x[16], q[16], k[16];
            for (int i = 0; i < 16; i++)
                q[i] = (double)real(2), k[i] = (double)real(2), x[i] = q[i];
            rotate(&r, pos, x);
            rotation_undo(&r, pos, x);
            for (int i = 0; i < 16; i++) assert_true(fabs(x[i] - q[i]) < 1e-9);
            int n = 1 + pos / 2;
            double want = brute_reach(&r, q, k, n), got = rotation_reach(&r, q, k, n);
            if (fabs(want - got) > 1e-9)
                fail_msg("style %d, n %d: %g, not %g", style, n, got, want);
        }
    }
    struct Rotation r = random_rotation(inv_freq, false, 1);
    double none[16] = {0};
    assert_true(fabs(rotation_reach(&r, none, none, 9) - 5.0 / 9) < 1e-12); /* even attention */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_depths),     cmocka_unit_test(test_words),
        cmocka_unit_test(test_texts),      cmocka_unit_test(test_codes),
        cmocka_unit_test(test_divergence), cmocka_unit_test(test_best),
        cmocka_unit_test(test_attention),  cmocka_unit_test(test_looks),
        cmocka_unit_test(test_rotation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_rouge.c - the two ROUGE scores and the two code ratios against their definitions, written here the
 * plain way with whole tables; and where the original's recursion ends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "eval/difflib.h"
#include "eval/rouge.h"

static uint32_t seed = 1;

static uint32_t draw(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

/* ==== Plain definitions, on words that are letters ==== */

enum { MAX_LINE = 200, MAX_LINES = 4 };

struct Lines {
    char word[MAX_LINES][MAX_LINE];
    int n_words[MAX_LINES], n;
};

static void draw_lines(struct Lines *l, uint32_t letters)
{
    static const uint32_t SIZES[] = {1, 5, 30, 63, 64, 65, 130, 200};
    l->n = 1 + (int)draw(MAX_LINES);
    for (int i = 0; i < l->n; i++) {
        l->n_words[i] = 1 + (int)draw(SIZES[draw(8)]);
        for (int k = 0; k < l->n_words[i]; k++) l->word[i][k] = (char)('a' + draw(letters));
    }
}

static void spell(const struct Lines *l, char end, struct Str *out)
{
    str_clear(out);
    for (int i = 0; i < l->n; i++)
        for (int k = 0; k < l->n_words[i]; k++) {
            char text[2] = {l->word[i][k], k + 1 < l->n_words[i] ? ' ' : end};
            assert_int_equal(str_append(out, text, 2), PC_OK);
        }
}

static int table[MAX_LINE + 1][MAX_LINE + 1];

static void fill_table(const char *x, int n, const char *y, int m)
{
    for (int i = 0; i <= n; i++)
        for (int j = 0; j <= m; j++) {
            int up = i ? table[i - 1][j] : 0, left = j ? table[i][j - 1] : 0;
            table[i][j] = !i || !j               ? 0
                          : x[i - 1] == y[j - 1] ? table[i - 1][j - 1] + 1
                          : up > left            ? up
                                                 : left;
        }
}

static double plain_rouge_l(const struct Lines *pred, const struct Lines *truth)
{
    bool in_pred[26] = {0}, in_truth[26] = {0}, in_union[26] = {0};
    int n_pred = 0, n_truth = 0, n_union = 0;
    for (int r = 0; r < truth->n; r++)
        for (int h = 0; h < pred->n; h++) {
            const char *x = truth->word[r], *y = pred->word[h];
            int i = truth->n_words[r], j = pred->n_words[h];
            fill_table(x, i, y, j);
            for (int k = 0; k < i; k++) in_truth[x[k] - 'a'] = true;
            for (int k = 0; k < j; k++) in_pred[y[k] - 'a'] = true;
            while (i && j) {
                if (x[i - 1] == y[j - 1]) {
                    in_union[x[i - 1] - 'a'] = true;
                    i--, j--;
                } else if (table[i - 1][j] > table[i][j - 1]) {
                    i--;
                } else {
                    j--;
                }
            }
        }
    for (int k = 0; k < 26; k++) {
        n_pred += in_pred[k];
        n_truth += in_truth[k];
        n_union += in_union[k];
    }
    double p = (double)n_union / n_pred, r = (double)n_union / n_truth;
    return 2.0 * ((p * r) / (p + r + 1e-8));
}

/* Hits of one line of the truth against all of the prediction. */
static void plain_hits(const struct Lines *pred, const struct Lines *truth, int r, bool *hit)
{
    const char *x = truth->word[r];
    for (int h = 0; h < pred->n; h++) {
        const char *y = pred->word[h];
        int i = truth->n_words[r], j = pred->n_words[h];
        fill_table(x, i, y, j);
        while (i && j) {
            if (x[i - 1] == y[j - 1]) {
                hit[i - 1] = true;
                i--, j--;
            } else if (table[i][j - 1] > table[i - 1][j]) {
                j--;
            } else {
                i--;
            }
        }
    }
}

static double plain_lsum(const struct Lines *pred, const struct Lines *truth)
{
    int left[26] = {0}, hits = 0, n = 0, m = 0;
    for (int h = 0; h < pred->n; h++)
        for (int k = 0; k < pred->n_words[h]; k++, n++) left[pred->word[h][k] - 'a']++;
    for (int r = 0; r < truth->n; r++) {
        bool hit[MAX_LINE] = {0};
        plain_hits(pred, truth, r, hit);
        for (int k = 0; k < truth->n_words[r]; k++, m++) {
            int *of = &left[truth->word[r][k] - 'a'];
            if (!hit[k] || !*of) continue;
            --*of;
            hits++;
        }
    }
    double p = (double)hits / n, r = (double)hits / m;
    return p + r > 0 ? 2 * p * r / (p + r) : 0;
}

static void test_plain_definitions(void **state)
{
    (void)state;
    struct Str a = {0}, b = {0};
    for (int n = 0; n < 400; n++) {
        struct Lines pred, truth;
        uint32_t letters = 1 + draw(26);
        double f;
        draw_lines(&pred, letters);
        draw_lines(&truth, letters);
        spell(&pred, '.', &a);
        spell(&truth, '.', &b);
        assert_int_equal(rouge_l(&a, &b, ROUGE_CALLS, &f), PC_OK);
        assert_true(f == plain_rouge_l(&pred, &truth));
        spell(&pred, '\n', &a);
        spell(&truth, '\n', &b);
        f = rouge_lsum(a.data, a.len, b.data, b.len);
        assert_true(f == plain_lsum(&pred, &truth));
    }
    str_free(&a);
    str_free(&b);
}

/* ==== Where the recursion ends ==== */

static void words(struct Str *out, char mark, int n)
{
    str_clear(out);
    for (int i = 0; i < n; i++) assert_int_equal(str_appendf(out, "%c%d ", mark, i), PC_OK);
    assert_int_equal(str_append(out, ".end", 4), PC_OK);
}

/* As measured with rouge 1.0.1 under CPython 3.11, called as LongBench's eval.py does. */
static void test_recursion(void **state)
{
    (void)state;
    static const struct {
        int pred, truth, calls;
        bool same, overflows;
    } CASES[] = {
        {990, 990, ROUGE_CALLS, true, false},    {991, 991, ROUGE_CALLS, true, true},
        {989, 989, ROUGE_CALLS_ZH, true, false}, {990, 990, ROUGE_CALLS_ZH, true, true},
        {990, 256, ROUGE_CALLS, false, false},   {990, 257, ROUGE_CALLS, false, true},
        {989, 300, ROUGE_CALLS, false, false},   {991, 3, ROUGE_CALLS, false, true},
        {300, 20000, ROUGE_CALLS, false, false}, {20000, 20000, ROUGE_CALLS, false, true},
    };
    struct Str a = {0}, b = {0};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        double f;
        words(&a, 'h', CASES[i].pred);
        words(&b, CASES[i].same ? 'h' : 'r', CASES[i].truth);
        assert_int_equal(rouge_l(&a, &b, CASES[i].calls, &f), PC_OK);
        if ((f == 0) != CASES[i].overflows)
            fail_msg("%d against %d words: %g", CASES[i].pred, CASES[i].truth, f);
    }
    str_free(&a);
    str_free(&b);
}

/* ==== Code lines ==== */

static struct Span span(const char *text)
{
    return (struct Span){text, strlen(text)};
}

static int percent(const char *a, const char *b, bool indel)
{
    int out;
    assert_int_equal(fuzz_ratio(span(a), span(b), indel, &out), PC_OK);
    return out;
}

static void test_ratios(void **state)
{
    (void)state;
    assert_int_equal(percent("", "", false), 100);
    assert_int_equal(percent("", "x", false), 0);
    assert_int_equal(percent("\xC3\xA9", "e", true), 0);
    /* difflib takes the longest match first, and loses what stands crosswise */
    assert_int_equal(percent("abxcd", "cdabx", false), 60);
    assert_int_equal(percent("qabxycd", "abzcdxyqq", false), 50);
    assert_int_equal(percent("qabxycd", "abzcdxyqq", true), 50);
    assert_int_equal(percent("ab", "abb bbb bbb bbbb", false), 22); /* 22.2 */
    /* 2 of 16: 12.5 is even at 12 */
    assert_int_equal(percent("a1234567", "abcdefgh", false), 12);
}

/* From 200 characters on what is frequent begins no match. */
static void test_autojunk(void **state)
{
    (void)state;
    char a[300], b[300];
    double ratio;
    for (int n = 199; n <= 200; n++) {
        memset(a, 'x', sizeof a);
        memset(b, 'x', sizeof b);
        a[0] = 'a';
        b[0] = 'b';
        assert_int_equal(
            difflib_ratio((struct Span){a, (size_t)n}, (struct Span){b, (size_t)n}, &ratio), PC_OK);
        assert_true(ratio == (n < 200 ? 2.0 * (n - 1) / (2 * n) : 0.0));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_definitions),
        cmocka_unit_test(test_recursion),
        cmocka_unit_test(test_ratios),
        cmocka_unit_test(test_autojunk),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

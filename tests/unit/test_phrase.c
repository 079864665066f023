/* test_phrase.c - the scorer of passphrases: what counts as the same words, and what does not; memory that runs out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "eval/score.h"

static int score_of(const char *pred, const char *const *answers, int n, struct ScoreOutput *out)
{
    struct Str texts[3];
    for (int i = 0; i < n; i++)
        texts[i] = (struct Str){.data = (char *)answers[i], .len = strlen(answers[i])};
    struct ScoreInput in = {
        .pred = pred, .pred_len = pred ? strlen(pred) : 0, .answers = texts, .n_answers = n};
    return phrase_score(&in, out);
}

static double score(const char *pred, const char *answer)
{
    struct ScoreOutput out;
    assert_int_equal(score_of(pred, &answer, 1, &out), PC_OK);
    return out.score;
}

static void test_same(void **state)
{
    (void)state;
    static const char *const said[] = {
        "kilo alpha mike",         " kilo alpha mike.",
        "Kilo, Alpha, Mike",       "\n\n kilo  alpha\tmike\nThe",
        "\"kilo alpha mike\"!",    "KILO-ALPHA-MIKE",
        "kilo alpha mike\n\nkilo", "kilo alpha mike. The whale",
    };
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (score(said[i], "kilo alpha mike") != 1) fail_msg("'%s'", said[i]);
    assert_true(score("\xc3\x84pfel sind", "\xc3\xa4pfel sind") == 1);
}

static void test_other(void **state)
{
    (void)state;
    static const char *const said[] = {
        "",
        NULL,
        "kilo alpha",
        "kilo alpha mike mike",
        "kilo mike alpha",
        "kilo alpha mik",
        "kiloalpha mike",
        "xkilo alpha mike",
        "kilo alpha mike and so on",
        "kilo. alpha mike",
        "kilo\nalpha mike",
        "the words are kilo alpha mike",
        "kilo alpha mikes",
        "\n",
        ".",
    };
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (score(said[i], "kilo alpha mike") != 0) fail_msg("'%s'", said[i] ? said[i] : "NULL");
    assert_true(score("", "") == 0); /* no words match none */
}

static void test_several(void **state)
{
    (void)state;
    static const char *const answers[] = {"golf hotel", "", "india"};
    struct ScoreOutput out;
    assert_int_equal(score_of("India.", answers, 3, &out), PC_OK);
    assert_true(out.score == 1 && !out.unparsed);
    assert_int_equal(score_of("golf", answers, 3, &out), PC_OK);
    assert_true(out.score == 0);
    assert_int_equal(score_of("golf", answers, 0, &out), PC_EFORMAT);
}

static void test_faults(void **state)
{
    (void)state;
    static const char *const answer[] = {"kilo alpha mike"};
    struct ScoreOutput out;
    int failed = 0;
    for (long n = 1;; n++, failed++) {
        size_t before = mem_in_use();
        mem_fail_after(n);
        int status = score_of("Kilo alpha, mike.", answer, 1, &out);
        mem_fail_after(0);
        assert_int_equal(mem_in_use(), before);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_ENOMEM);
    }
    assert_true(failed > 2 && out.score == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_other),
        cmocka_unit_test(test_several),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

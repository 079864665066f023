/* test_lexical.c - words and BM25 against values worked out by hand; scores by chance. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eviction/chunk_evict.h"
#include "eviction/lexical.h"

static struct LexText text_of(const char *s)
{
    return (struct LexText){s, strlen(s)};
}

/* The words of s, each followed by '|'. */
static void assert_words(const char *s, const char *want)
{
    char word[64], have[256] = "";
    size_t at = 0;
    for (size_t len; (len = lex_word(text_of(s), &at, word, sizeof word)) > 0;) {
        strncat(have, word, len);
        strcat(have, "|");
    }
    assert_string_equal(have, want);
}

static void test_words(void **state)
{
    (void)state;
    assert_words("The CAT, don't snake_case! 3rd", "the|cat|don|t|snake|case|3rd|");
    assert_words("", "");
    assert_words(" .,;", "");
    assert_words("Émile ΑΒ Привет Ёж “naïve”", "émile|αβ|привет|ёж|naïve|");
    assert_words("東京のcafé２", "東|京|の|café２|");
    assert_words("\x80\xbfword\xe6\x9d",
                 "word|"); /* a chunk may begin and end inside a character */
}

static void test_long_word(void **state)
{
    (void)state;
    char text[300], word[16];
    size_t at = 0;
    memset(text, 'a', sizeof text);
    size_t len = lex_word((struct LexText){text, sizeof text}, &at, word, sizeof word);
    assert_in_range(len, 12, 16);
    assert_int_equal(at, sizeof text);
}

/* Three chunks of 2, 3 and 1 words, 2 on average; "cat" is in two of them, "fish" in one:
 * idf(cat) = ln(1 + 1.5 / 2.5) = 0.470004, idf(fish) = ln(1 + 2.5 / 1.5) = 0.980829;
 * k1 (1 - b + b |c| / 2) = 1.5, 2.0625, 0.9375. */
static void test_by_hand(void **state)
{
    (void)state;
    struct LexText chunks[] = {text_of("cat dog"), text_of("Cat: cat bird."), text_of("fish")};
    static const double want[] = {0.470004 * 1 * 2.5 / (1 + 1.5), 0.470004 * 2 * 2.5 / (2 + 2.0625),
                                  0.980829 * 1 * 2.5 / (1 + 0.9375)};
    double score[3];
    assert_int_equal(bm25_scores(text_of("Cat? Fish!"), chunks, 3, score), PC_OK);
    for (int c = 0; c < 3; c++)
        if (fabs(score[c] - want[c]) > 2e-6) fail_msg("%d: %.7f, want %.7f", c, score[c], want[c]);
    assert_true(score[2] > score[1] && score[1] > score[0]);
    /* a word asked twice counts twice */
    assert_int_equal(bm25_scores(text_of("cat CAT fish unicorn"), chunks, 3, score), PC_OK);
    assert_true(fabs(score[0] - 2 * want[0]) < 2e-6 && fabs(score[2] - want[2]) < 2e-6);
}

static void test_nothing_shared(void **state)
{
    (void)state;
    struct LexText chunks[] = {text_of("cat dog"), text_of("")};
    double score[2] = {1, 1};
    assert_int_equal(bm25_scores(text_of(""), chunks, 2, score), PC_OK);
    assert_true(score[0] == 0 && score[1] == 0);
    assert_int_equal(bm25_scores(text_of("bird"), chunks, 2, score), PC_OK);
    assert_true(score[0] == 0 && score[1] == 0);
    chunks[0].len = 0;
    assert_int_equal(bm25_scores(text_of("bird"), chunks, 2, score), PC_OK);
    assert_true(score[0] == 0 && score[1] == 0);
}

/* Seeds repeat; over many seeds each chunk is first equally often, and values spread evenly. */
static void test_chance(void **state)
{
    (void)state;
    enum { CHUNKS = 10, SEEDS = 20000 };
    double a[CHUNKS], b[CHUNKS];
    int first[CHUNKS] = {0}, tenth[10] = {0};
    chance_scores(7, CHUNKS, a);
    chance_scores(7, CHUNKS, b);
    assert_memory_equal(a, b, sizeof a);
    chance_scores(8, CHUNKS, b);
    assert_memory_not_equal(a, b, sizeof a);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        int best = 0;
        chance_scores(seed, CHUNKS, a);
        for (int c = 0; c < CHUNKS; c++) {
            assert_true(a[c] >= 0 && a[c] < 1);
            tenth[(int)(a[c] * 10)]++;
            if (a[c] < a[best]) best = c;
        }
        first[best]++;
    }
    for (int c = 0; c < CHUNKS; c++) { /* means 2000 and 20000, within five standard deviations */
        assert_in_range(first[c], 2000 - 212, 2000 + 212);
        assert_in_range(tenth[c], 20000 - 670, 20000 + 670);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),   cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_by_hand), cmocka_unit_test(test_nothing_shared),
        cmocka_unit_test(test_chance),
    };
    return cmocka_run_group_tests_name("lexical", tests, NULL, NULL) != 0;
}

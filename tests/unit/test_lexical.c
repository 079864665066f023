/* test_lexical.c - words and BM25 against values worked out by hand; scores by chance. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <ctype.h>
#include <math.h>
#include <stdio.h>
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

/* Every byte of ASCII between two letters: part of a word, folded, or between two. */
static void test_ascii(void **state)
{
    (void)state;
    for (int c = 0; c < 0x80; c++) {
        const char text[] = {'a', (char)c, 'z'};
        char word[16];
        size_t at = 0, len = lex_word((struct LexText){text, 3}, &at, word, sizeof word);
        bool part = isalnum(c);
        assert_int_equal(len, part ? 3 : 1);
        if (part) assert_int_equal(word[1], tolower(c));
        len = lex_word((struct LexText){text, 3}, &at, word, sizeof word);
        assert_int_equal(len, part ? 0 : 1);
    }
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

/* ==== Chunks that are read a few at a time ==== */

enum { CHUNKS_MOST = 40 };

struct Texts {
    char data[CHUNKS_MOST][600];
    struct LexText text[CHUNKS_MOST];
    int n, asked, most; /* chunks asked for so far, and at once */
    int fails_at;       /* the chunk that cannot be read; -1: all can */
};

static int read_texts(void *user, int first, int n, struct LexText *out)
{
    struct Texts *t = user;
    assert_int_equal(first, t->asked % t->n); /* in order, all of them */
    assert_in_range(n, 1, t->most);
    assert_true(first + n <= t->n);
    t->asked += n;
    if (t->fails_at >= first && t->fails_at < first + n) return err_set(PC_EIO, "unreadable");
    memcpy(out, t->text + first, sizeof *out * (size_t)n);
    return PC_OK;
}

static uint32_t draw(uint64_t *state, uint32_t n)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33) % n;
}

/* Words of a small language, some frequent and some rare. */
static void put_words(char *out, int n, uint64_t *state)
{
    *out = 0;
    for (int i = 0; i < n; i++)
        sprintf(out + strlen(out), "%c%u%s", "aBcD"[draw(state, 4)],
                draw(state, 2 + draw(state, 30)), draw(state, 5) ? " " : "... ");
}

static void make_texts(struct Texts *t, int n, uint64_t *state)
{
    *t = (struct Texts){.n = n, .fails_at = -1};
    for (int c = 0; c < n; c++) {
        put_words(t->data[c], (int)draw(state, 60), state);
        t->text[c] = text_of(t->data[c]);
    }
}

/* How often `word` stands in text, and how many words do; compared as strings. */
static int count_word(struct LexText text, const char *word, size_t word_len, int *words)
{
    char other[128];
    int n = 0;
    size_t at = 0;
    *words = 0;
    for (size_t len; (len = lex_word(text, &at, other, sizeof other)) > 0; ++*words)
        n += len == word_len && memcmp(word, other, len) == 0;
    return n;
}

/* What one word of the question adds to each chunk, by the formula of lexical.c. */
static void add_word(const struct Texts *t, const char *word, size_t len, double *score)
{
    int here[CHUNKS_MOST], words[CHUNKS_MOST], df = 0;
    double all = 0;
    for (int c = 0; c < t->n; c++) {
        here[c] = count_word(t->text[c], word, len, &words[c]);
        df += here[c] > 0;
        all += words[c];
    }
    double idf = log(1 + (t->n - df + 0.5) / (df + 0.5));
    for (int c = 0; c < t->n; c++)
        if (here[c])
            score[c] +=
                idf * here[c] * 2.5 / (here[c] + 1.5 * (0.25 + 0.75 * words[c] * t->n / all));
}

static void test_read(void **state)
{
    (void)state;
    static struct Texts t;
    char question[200], word[128];
    uint64_t seed = 7;
    for (int round = 0; round < 60; round++) {
        make_texts(&t, 1 + round % CHUNKS_MOST, &seed);
        put_words(question, (int)draw(&seed, 12), &seed);
        double want[CHUNKS_MOST] = {0}, first[CHUNKS_MOST], score[CHUNKS_MOST];
        size_t at = 0;
        for (size_t len; (len = lex_word(text_of(question), &at, word, sizeof word)) > 0;)
            add_word(&t, word, len, want);
        assert_int_equal(bm25_scores(text_of(question), t.text, t.n, first), PC_OK);
        for (int c = 0; c < t.n; c++) assert_true(fabs(first[c] - want[c]) < 1e-9);
        for (int threads = 1; threads <= 4; threads *= 2) {
            t.most = 1 + (int)draw(&seed, (uint32_t)t.n + 3);
            t.asked = 0;
            struct LexReader reader = {read_texts, &t, t.most, threads};
            assert_int_equal(bm25_read(text_of(question), &reader, t.n, score), PC_OK);
            assert_int_equal(t.asked, 2 * t.n);
            assert_memory_equal(score, first, sizeof *score * (size_t)t.n);
        }
    }
}

static void test_read_fails(void **state)
{
    (void)state;
    static struct Texts t;
    uint64_t seed = 1;
    double score[CHUNKS_MOST];
    make_texts(&t, 11, &seed);
    t.most = 3;
    struct LexReader reader = {read_texts, &t, 3, 2};
    size_t before = mem_in_use();
    for (t.fails_at = 0; t.fails_at < 11; t.fails_at++) {
        t.asked = 0;
        assert_int_equal(bm25_read(text_of("a1 B2"), &reader, 11, score), PC_EIO);
        assert_string_equal(err_text(), "unreadable");
        assert_int_equal(mem_in_use(), before);
    }
    int status = PC_ENOMEM, n = 0;
    for (t.fails_at = -1; status != PC_OK; assert_int_equal(mem_in_use(), before)) {
        t.asked = 0;
        mem_fail_after(++n);
        status = bm25_read(text_of("a1 B2"), &reader, 11, score);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
    }
    assert_int_equal(n, 5);
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
        cmocka_unit_test(test_words),          cmocka_unit_test(test_ascii),
        cmocka_unit_test(test_long_word),      cmocka_unit_test(test_read),
        cmocka_unit_test(test_read_fails),     cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_nothing_shared), cmocka_unit_test(test_chance),
    };
    return cmocka_run_group_tests_name("lexical", tests, NULL, NULL) != 0;
}

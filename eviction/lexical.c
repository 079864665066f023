/* lexical.c - BM25, the retrieval baseline: which chunks share the question's rare words.
 *
 * Robertson and Zaragoza's BM25 with the chunks of the text as the collection:
 *   score(c) = sum over the question's words w, as often as each stands there, of
 *              idf(w) * f(w, c) * (k1 + 1) / (f(w, c) + k1 * (1 - b + b * |c| / mean |c|)),
 *   idf(w)   = ln(1 + (n - df(w) + 0.5) / (df(w) + 0.5)), which is never negative,
 * with k1 = 1.5 and b = 0.75. Takes texts, hands on scores.
 *
 * A word is a run of letters and digits; ASCII, Latin-1, Greek and Cyrillic are folded to lower case.
 * Everything else separates words, the apostrophe and the underscore too. A CJK character is a word of its
 * own. Nothing is stemmed and no word is left out for being common: idf takes care of those.
 */
#include "lexical.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BM25_K1 1.5
#define BM25_B  0.75

enum { WORD_ROOM = 128, NO_CHAR = 0xFFFD };

/* ==== Words ==== */

/* The character at *at, which moves on. Bytes that are none, as at the edge of a chunk, are NO_CHAR. */
static uint32_t next_char(struct LexText text, size_t *at)
{
    const uint8_t *s = (const uint8_t *)text.data + *at;
    int more = s[0] < 0x80 ? 0 : s[0] < 0xC0 ? -1 : s[0] < 0xE0 ? 1 : s[0] < 0xF0 ? 2 : 3;
    uint32_t c = more <= 0 ? s[0] : s[0] & (0x3Fu >> more);
    if (more < 0 || (size_t)more >= text.len - *at) more = 0, c = s[0] < 0x80 ? s[0] : NO_CHAR;
    for (int i = 1; i <= more; i++) {
        if ((s[i] & 0xC0) != 0x80) more = 0, c = NO_CHAR;
        c = c << 6 | (s[i] & 0x3F);
    }
    *at += (size_t)more + 1;
    return c;
}

static bool within(uint32_t c, const uint32_t (*ranges)[2], int n)
{
    for (int i = 0; i < n; i++)
        if (c >= ranges[i][0] && c <= ranges[i][1]) return true;
    return false;
}

/* Kana and Chinese characters: no blanks stand between their words. */
static bool is_word_itself(uint32_t c)
{
    static const uint32_t ranges[][2] = {
        {0x3040, 0x30FF}, {0x3400, 0x9FFF}, {0xF900, 0xFAFF}, {0x20000, 0x3FFFF}};
    return within(c, ranges, 4);
}

static bool is_letter(uint32_t c)
{
    static const uint32_t ascii[][2] = {{'0', '9'}, {'A', 'Z'}, {'a', 'z'}};
    /* punctuation, signs and what is no character */
    static const uint32_t others[][2] = {
        {0x80, 0xA9},     {0xAB, 0xB4},     {0xB6, 0xB9},     {0xBB, 0xBF},
        {0xD7, 0xD7},     {0xF7, 0xF7},     {0x2000, 0x206F}, {0x2190, 0x2BFF},
        {0x2E00, 0x2E7F}, {0x3000, 0x303F}, {0xFE10, 0xFE6F}, {0xFF00, 0xFF0F},
        {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF65}, {0xFFF0, 0xFFFF}};
    if (c < 0x80) return within(c, ascii, 3);
    return !within(c, others, (int)(sizeof others / sizeof *others));
}

static uint32_t fold(uint32_t c)
{
    static const uint32_t by_32[][2] = {
        {'A', 'Z'}, {0xC0, 0xD6}, {0xD8, 0xDE}, {0x391, 0x3A9}, {0x410, 0x42F}};
    if (within(c, by_32, 5)) return c + 32;
    return c >= 0x400 && c <= 0x40F ? c + 80 : c;
}

static size_t put_char(uint32_t c, char *out)
{
    if (c < 0x80) return out[0] = (char)c, 1;
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t lead[] = {0, 0xC0, 0xE0, 0xF0};
    out[0] = (char)(lead[more] | c >> (6 * more));
    for (int i = 1; i <= more; i++) out[i] = (char)(0x80 | (c >> (6 * (more - i)) & 0x3F));
    return (size_t)more + 1;
}

size_t lex_word(struct LexText text, size_t *at, char *word, size_t room)
{
    size_t len = 0;
    while (*at < text.len) {
        size_t next = *at;
        uint32_t c = next_char(text, &next);
        bool alone = is_word_itself(c), part = alone || is_letter(c);
        if (len && (alone || !part)) break;
        *at = next;
        if (part && len + 4 <= room) len += put_char(fold(c), word + len);
        if (alone) break;
    }
    return len;
}

/* ==== BM25 ==== */

/* A distinct word of the question. */
struct Term {
    uint64_t hash;
    int asked;  /* times in the question */
    int chunks; /* chunks that hold it */
    int here;   /* times in the chunk looked at */
};

static int compare_terms(const void *a, const void *b)
{
    uint64_t x = ((const struct Term *)a)->hash, y = ((const struct Term *)b)->hash;
    return (x > y) - (x < y);
}

/* The question's distinct words in order of their hashes; terms has room for all its words. */
static int question_terms(struct LexText question, struct Term *terms)
{
    char word[WORD_ROOM];
    int n = 0, distinct = 0;
    size_t at = 0;
    for (size_t len; (len = lex_word(question, &at, word, sizeof word)) > 0;)
        terms[n++] = (struct Term){.hash = hash64(word, len, 0), .asked = 1};
    qsort(terms, (size_t)n, sizeof *terms, compare_terms);
    for (int i = 0; i < n; i++)
        if (distinct && terms[distinct - 1].hash == terms[i].hash)
            terms[distinct - 1].asked++;
        else
            terms[distinct++] = terms[i];
    return distinct;
}

/* Counts the terms in one chunk; returns how many words it has. */
static int64_t count_terms(struct LexText chunk, struct Term *terms, int n_terms)
{
    char word[WORD_ROOM];
    int64_t words = 0;
    size_t at = 0;
    for (int i = 0; i < n_terms; i++) terms[i].here = 0;
    for (size_t len; (len = lex_word(chunk, &at, word, sizeof word)) > 0; words++) {
        struct Term key = {.hash = hash64(word, len, 0)};
        struct Term *term = bsearch(&key, terms, (size_t)n_terms, sizeof *terms, compare_terms);
        if (term) term->here++;
    }
    return words;
}

static double bm25(const struct Term *terms, int n_terms, int n_chunks, double relative_length)
{
    double sum = 0, norm = BM25_K1 * (1 - BM25_B + BM25_B * relative_length);
    for (int i = 0; i < n_terms; i++) {
        const struct Term *t = &terms[i];
        double idf = log(1 + (n_chunks - t->chunks + 0.5) / (t->chunks + 0.5));
        sum += t->asked * idf * t->here * (BM25_K1 + 1) / (t->here + norm);
    }
    return sum;
}

/* What is known of the collection once every chunk was seen. */
struct Collection {
    struct Term *terms;
    int n_terms, n_chunks;
    int64_t words;
};

static int count_chunks(struct Collection *all, const struct LexReader *chunks)
{
    struct LexText text;
    for (int c = 0; c < all->n_chunks; c++) {
        TRY(chunks->text(chunks->user, c, &text));
        all->words += count_terms(text, all->terms, all->n_terms);
        for (int i = 0; i < all->n_terms; i++) all->terms[i].chunks += all->terms[i].here > 0;
    }
    return PC_OK;
}

static int score_chunks(const struct Collection *all, const struct LexReader *chunks, double *score)
{
    struct LexText text;
    int n = all->n_chunks;
    for (int c = 0; c < n; c++) {
        TRY(chunks->text(chunks->user, c, &text));
        double length = (double)count_terms(text, all->terms, all->n_terms);
        score[c] =
            bm25(all->terms, all->n_terms, n, all->words ? length * n / (double)all->words : 1);
    }
    return PC_OK;
}

int bm25_read(struct LexText question, const struct LexReader *chunks, int n, double *score)
{
    struct Collection all = {.n_chunks = n};
    all.terms = mem_alloc(question.len + 1, sizeof *all.terms);
    if (!all.terms) return PC_ENOMEM;
    all.n_terms = question_terms(question, all.terms);
    int status = count_chunks(&all, chunks);
    if (status == PC_OK) status = score_chunks(&all, chunks, score);
    mem_free(all.terms);
    return status;
}

static int text_of(void *user, int chunk, struct LexText *out)
{
    *out = ((const struct LexText *)user)[chunk];
    return PC_OK;
}

int bm25_scores(struct LexText question, const struct LexText *chunks, int n, double *score)
{
    return bm25_read(question, &(struct LexReader){text_of, (void *)chunks}, n, score);
}

void lex_shares(double *score, int n)
{
    double most = 0;
    for (int c = 0; c < n; c++)
        if (score[c] > most) most = score[c];
    for (int c = 0; c < n; c++) score[c] = most > 0 ? score[c] / most : 0;
}

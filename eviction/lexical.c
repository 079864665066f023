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

/* The character past ASCII at *at, which moves on. Bytes that are none, as at the edge of a chunk, are NO_CHAR. */
static uint32_t next_char(struct LexText text, size_t *at)
{
    const uint8_t *s = (const uint8_t *)text.data + *at;
    int more = s[0] < 0xC0 ? 0 : s[0] < 0xE0 ? 1 : s[0] < 0xF0 ? 2 : 3;
    uint32_t c = s[0] & (0x3Fu >> more);
    if (more == 0 || (size_t)more >= text.len - *at) more = 0, c = NO_CHAR;
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

/* Letters and digits of ASCII as they count; 0 for what separates words. */
static char fold_ascii(uint8_t c)
{
    uint8_t lower = c | 0x20;
    if (lower >= 'a' && lower <= 'z') return (char)lower;
    return c >= '0' && c <= '9' ? (char)c : 0;
}

/* Of characters past ASCII. */
static bool is_letter(uint32_t c)
{
    /* punctuation, signs and what is no character */
    static const uint32_t others[][2] = {
        {0x80, 0xA9},     {0xAB, 0xB4},     {0xB6, 0xB9},     {0xBB, 0xBF},
        {0xD7, 0xD7},     {0xF7, 0xF7},     {0x2000, 0x206F}, {0x2190, 0x2BFF},
        {0x2E00, 0x2E7F}, {0x3000, 0x303F}, {0xFE10, 0xFE6F}, {0xFF00, 0xFF0F},
        {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF65}, {0xFFF0, 0xFFFF}};
    return !within(c, others, (int)(sizeof others / sizeof *others));
}

static uint32_t fold(uint32_t c)
{
    static const uint32_t by_32[][2] = {{0xC0, 0xD6}, {0xD8, 0xDE}, {0x391, 0x3A9}, {0x410, 0x42F}};
    if (within(c, by_32, 4)) return c + 32;
    return c >= 0x400 && c <= 0x40F ? c + 80 : c;
}

static size_t put_char(uint32_t c, char *out)
{
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
        if ((uint8_t)text.data[next] < 0x80) {
            char folded = fold_ascii((uint8_t)text.data[next]);
            if (len && !folded) break;
            if (folded && len + 4 <= room) word[len++] = folded;
            ++*at;
            continue;
        }
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
};

enum { SEEN_BITS = 4096 };

/* What is asked of the chunks, and what is known of those that are looked at. */
struct Collection {
    struct Term *terms; /* [n_terms] in order of their hashes */
    int n_terms, n_chunks;
    uint64_t seen[SEEN_BITS / 64]; /* last bits of the terms' hashes: most words are none of them */
    int64_t words;                 /* of all chunks */
    const struct LexReader *from;
    struct LexText *text; /* [from->most] */
    int64_t *len;         /* [from->most] words of each, */
    int *here;            /* [from->most, n_terms] and how often each term is one of them */
};

static int compare_terms(const void *a, const void *b)
{
    uint64_t x = ((const struct Term *)a)->hash, y = ((const struct Term *)b)->hash;
    return (x > y) - (x < y);
}

/* The question's distinct words; terms has room for all its words. */
static void find_terms(struct Collection *all, struct LexText question)
{
    char word[WORD_ROOM];
    struct Term *terms = all->terms;
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
    all->n_terms = distinct;
    for (int i = 0; i < distinct; i++)
        all->seen[terms[i].hash % SEEN_BITS / 64] |= UINT64_C(1) << terms[i].hash % 64;
}

/* Counts the terms in one chunk; returns how many words it has. */
static int64_t count_terms(const struct Collection *all, struct LexText chunk, int *here)
{
    char word[WORD_ROOM];
    int64_t words = 0;
    size_t at = 0;
    memset(here, 0, sizeof *here * (size_t)all->n_terms);
    for (size_t len; (len = lex_word(chunk, &at, word, sizeof word)) > 0; words++) {
        struct Term key = {.hash = hash64(word, len, 0)};
        if (!(all->seen[key.hash % SEEN_BITS / 64] >> key.hash % 64 & 1)) continue;
        const struct Term *term =
            bsearch(&key, all->terms, (size_t)all->n_terms, sizeof key, compare_terms);
        if (term) here[term - all->terms]++;
    }
    return words;
}

static double bm25(const struct Collection *all, const int *here, double relative_length)
{
    double sum = 0, norm = BM25_K1 * (1 - BM25_B + BM25_B * relative_length);
    for (int i = 0; i < all->n_terms; i++) {
        const struct Term *t = &all->terms[i];
        double idf = log(1 + (all->n_chunks - t->chunks + 0.5) / (t->chunks + 0.5));
        sum += t->asked * idf * here[i] * (BM25_K1 + 1) / (here[i] + norm);
    }
    return sum;
}

static int *here_of(const struct Collection *all, int i)
{
    return all->here + (size_t)i * (size_t)all->n_terms;
}

/* Looks at chunks [first, first + n). */
static int look_at(struct Collection *all, int first, int n)
{
    TRY(all->from->texts(all->from->user, first, n, all->text));
#pragma omp parallel for schedule(dynamic, 1) num_threads(all->from->threads) if (n > 1)
    for (int i = 0; i < n; i++) all->len[i] = count_terms(all, all->text[i], here_of(all, i));
    return PC_OK;
}

static int count_chunks(struct Collection *all)
{
    for (int first = 0, n; first < all->n_chunks; first += n) {
        n = min_int(all->from->most, all->n_chunks - first);
        TRY(look_at(all, first, n));
        for (int i = 0; i < n; i++) {
            all->words += all->len[i];
            for (int t = 0; t < all->n_terms; t++) all->terms[t].chunks += here_of(all, i)[t] > 0;
        }
    }
    return PC_OK;
}

static int score_chunks(struct Collection *all, double *score)
{
    for (int first = 0, n; first < all->n_chunks; first += n) {
        n = min_int(all->from->most, all->n_chunks - first);
        TRY(look_at(all, first, n));
        for (int i = 0; i < n; i++) {
            double length = (double)all->len[i];
            score[first + i] = bm25(all, here_of(all, i),
                                    all->words ? length * all->n_chunks / (double)all->words : 1);
        }
    }
    return PC_OK;
}

/* Finds the terms and makes room for what is looked at. */
static int collection_open(struct Collection *all, struct LexText question)
{
    size_t most = (size_t)all->from->most;
    all->terms = mem_alloc(question.len + 1, sizeof *all->terms);
    if (!all->terms) return PC_ENOMEM;
    find_terms(all, question);
    all->text = mem_alloc(most, sizeof *all->text);
    all->len = mem_alloc(most, sizeof *all->len);
    all->here = mem_alloc(most, sizeof *all->here * (size_t)all->n_terms);
    return all->text && all->len && all->here ? PC_OK : PC_ENOMEM;
}

int bm25_read(struct LexText question, const struct LexReader *chunks, int n, double *score)
{
    struct Collection all = {.n_chunks = n, .from = chunks};
    int status = collection_open(&all, question);
    if (status == PC_OK) status = count_chunks(&all);
    if (status == PC_OK) status = score_chunks(&all, score);
    mem_free(all.terms);
    mem_free(all.text);
    mem_free(all.len);
    mem_free(all.here);
    return status;
}

static int texts_of(void *user, int first, int n, struct LexText *out)
{
    memcpy(out, (const struct LexText *)user + first, sizeof *out * (size_t)n);
    return PC_OK;
}

int bm25_scores(struct LexText question, const struct LexText *chunks, int n, double *score)
{
    const struct LexReader all = {texts_of, (void *)chunks, n, 1};
    return bm25_read(question, &all, n, score);
}

void lex_shares(double *score, int n)
{
    double most = 0;
    for (int c = 0; c < n; c++)
        if (score[c] > most) most = score[c];
    for (int c = 0; c < n; c++) score[c] = most > 0 ? score[c] / most : 0;
}

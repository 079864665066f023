/* rouge.c - see rouge.h
 *
 * Both scores need, for every pair of sentences, one certain longest common subsequence: the one that
 * walking back through the table of lengths finds. Only the direction of each step is needed, and that
 * is one bit: whether a cell of the table exceeds its left neighbour. The bits of a whole row come from
 * the bit-parallel recurrence V' = (V + (V & M)) | (V & ~M), 64 columns at a time.
 */
#include "rouge.h"

#include "pytext.h"

#include <string.h>

/* ==== Texts as numbers ==== */

/* Every distinct word's number. */
struct Lexicon {
    struct Span *words; /* [n] */
    uint32_t *slots;    /* number + 1, or 0; a power of two of them */
    size_t mask, n;
};

/* Sentences one after another. */
struct Text {
    uint32_t *ids; /* [n] */
    size_t *ends;  /* [n_sentences] where each ends in ids */
    size_t n, n_sentences;
};

struct Pair {
    struct Lexicon lex;
    struct Text pred, truth;
    uint64_t *masks; /* [lex.n] while a block is run: where its columns have the word */
};

/* No text has more words or sentences than this: each takes a byte and a separator. */
static size_t most_words(size_t len)
{
    return len / 2 + 1;
}

static int text_alloc(struct Text *t, size_t len)
{
    t->ids = mem_alloc(most_words(len), sizeof *t->ids);
    t->ends = mem_alloc(most_words(len), sizeof *t->ends);
    return t->ids && t->ends ? PC_OK : PC_ENOMEM;
}

static int pair_alloc(struct Pair *p, size_t pred_len, size_t truth_len)
{
    size_t words = most_words(pred_len) + most_words(truth_len), slots = 16;
    while (slots < 2 * words) slots *= 2;
    *p = (struct Pair){.lex.mask = slots - 1};
    p->lex.words = mem_alloc(words, sizeof *p->lex.words);
    p->lex.slots = mem_alloc(slots, sizeof *p->lex.slots);
    p->masks = mem_alloc(words, sizeof *p->masks);
    if (!p->lex.words || !p->lex.slots || !p->masks) return PC_ENOMEM;
    TRY(text_alloc(&p->pred, pred_len));
    return text_alloc(&p->truth, truth_len);
}

static void pair_free(struct Pair *p)
{
    mem_free(p->lex.words);
    mem_free(p->lex.slots);
    mem_free(p->masks);
    mem_free(p->pred.ids);
    mem_free(p->pred.ends);
    mem_free(p->truth.ids);
    mem_free(p->truth.ends);
}

static uint32_t word_id(struct Lexicon *lex, struct Span w)
{
    size_t at = hash64(w.data, w.len, 0) & lex->mask;
    for (; lex->slots[at]; at = (at + 1) & lex->mask) {
        const struct Span *other = &lex->words[lex->slots[at] - 1];
        if (other->len == w.len && memcmp(other->data, w.data, w.len) == 0)
            return lex->slots[at] - 1;
    }
    lex->words[lex->n++] = w;
    lex->slots[at] = (uint32_t)lex->n;
    return (uint32_t)lex->n - 1;
}

static void add_word(struct Text *t, struct Lexicon *lex, struct Span w)
{
    t->ids[t->n++] = word_id(lex, w);
}

/* ==== Walk through the table ==== */

/* Two sentences as rows and columns of the table; bits[row * blocks + block] has a zero where the cell
 * exceeds its left neighbour. */
struct Table {
    const uint32_t *row, *col;
    size_t n_row, n_col, blocks;
    uint64_t *bits;
};

/* The next 64 columns of every row. `carry` has a byte a row, from the columns before. */
static void block_run(const struct Table *t, size_t block, uint64_t *masks, uint8_t *carry)
{
    size_t from = block * 64, to = from + 64 < t->n_col ? from + 64 : t->n_col;
    uint64_t v = ~(uint64_t)0;
    for (size_t j = from; j < to; j++) masks[t->col[j]] |= (uint64_t)1 << (j - from);
    for (size_t i = 0; i < t->n_row; i++) {
        uint64_t mask = masks[t->row[i]], sum;
        bool over = __builtin_add_overflow(v, v & mask, &sum);
        over |= __builtin_add_overflow(sum, (uint64_t)carry[i], &sum);
        carry[i] = over;
        v = sum | (v & ~mask);
        t->bits[i * t->blocks + block] = v;
    }
    for (size_t j = from; j < to; j++) masks[t->col[j]] = 0;
}

static int table_open(struct Table *t, uint64_t *masks)
{
    t->blocks = (t->n_col + 63) / 64;
    t->bits = mem_alloc(t->n_row, t->blocks * sizeof *t->bits);
    uint8_t *carry = mem_alloc(t->n_row, 1);
    if (t->bits && carry)
        for (size_t block = 0; block < t->blocks; block++) block_run(t, block, masks, carry);
    mem_free(carry);
    return t->bits && carry ? PC_OK : PC_ENOMEM;
}

static bool exceeds_left(const struct Table *t, size_t i, size_t j)
{
    return !(t->bits[i * t->blocks + j / 64] >> (j % 64) & 1);
}

/* ==== rouge 1.0.1 ==== */

/* Sentences end at every full stop, empty ones are left out; one of white space alone has the empty word. */
static void split_stops(const struct Str *s, struct Text *t, struct Lexicon *lex)
{
    struct Span part, word;
    for (size_t at = 0; py_split_at(s->data ? s->data : "", s->len, '.', &at, &part);) {
        size_t before = t->n, pos = 0;
        if (!part.len) continue;
        while (py_split_next(part.data, part.len, &pos, &word)) add_word(t, lex, word);
        if (t->n == before) add_word(t, lex, (struct Span){"", 0});
        t->ends[t->n_sentences++] = t->n;
    }
}

/* Largest index that the original's comparisons find without a further frame: CPython keeps one object
 * for each integer up to it. */
enum { SMALL_INT = 256 };

/* Marks the words of the subsequence. False: the original's recursion would exceed max_calls. */
static bool walk_words(const struct Table *t, int max_calls, bool *in_union)
{
    size_t i = t->n_row, j = t->n_col;
    for (int calls = 1; i > 0 && j > 0; calls++) {
        bool same = t->row[i - 1] == t->col[j - 1];
        bool deep = !same && (i > SMALL_INT || j > SMALL_INT);
        if (calls + 1 + deep > max_calls) return false;
        if (same) in_union[t->row[i - 1]] = true;
        bool up = same || exceeds_left(t, i - 1, j - 1);
        i -= up;
        j -= same || !up;
    }
    return true;
}

/* Whether a walk could need more calls than there are, and whether every walk must. */
static bool may_overflow(const struct Table *t, int max_calls)
{
    return t->n_row + t->n_col + 2 > (size_t)max_calls;
}

static bool must_overflow(const struct Table *t, int max_calls)
{
    size_t least = t->n_row < t->n_col ? t->n_row : t->n_col;
    return least + 1 > (size_t)max_calls;
}

static bool shares_new_word(const struct Table *t, const bool *in_pred, const bool *in_union)
{
    for (size_t i = 0; i < t->n_row; i++)
        if (in_pred[t->row[i]] && !in_union[t->row[i]]) return true;
    return false;
}

/* *overflow: the original would raise. */
static int union_lcs(struct Pair *p, int max_calls, bool *in_union, bool *overflow)
{
    bool *in_pred = mem_alloc(p->lex.n, sizeof *in_pred);
    if (!in_pred) return PC_ENOMEM;
    for (size_t k = 0; k < p->pred.n; k++) in_pred[p->pred.ids[k]] = true;
    int status = PC_OK;
    for (size_t r = 0; r < p->truth.n_sentences && status == PC_OK && !*overflow; r++) {
        size_t r0 = r ? p->truth.ends[r - 1] : 0;
        for (size_t h = 0; h < p->pred.n_sentences && status == PC_OK && !*overflow; h++) {
            size_t h0 = h ? p->pred.ends[h - 1] : 0;
            struct Table t = {.row = p->truth.ids + r0,
                              .col = p->pred.ids + h0,
                              .n_row = p->truth.ends[r] - r0,
                              .n_col = p->pred.ends[h] - h0};
            *overflow = must_overflow(&t, max_calls);
            if (*overflow) break;
            if (!may_overflow(&t, max_calls) && !shares_new_word(&t, in_pred, in_union)) continue;
            status = table_open(&t, p->masks);
            if (status == PC_OK) *overflow = !walk_words(&t, max_calls, in_union);
            mem_free(t.bits);
        }
    }
    mem_free(in_pred);
    return status;
}

static size_t count_distinct(const struct Text *t, bool *seen)
{
    size_t n = 0;
    for (size_t k = 0; k < t->n; k++) {
        n += !seen[t->ids[k]];
        seen[t->ids[k]] = true;
    }
    return n;
}

static int rouge_l_pair(struct Pair *p, int max_calls, double *f)
{
    bool overflow = false;
    size_t n = p->lex.n, common = 0;
    if (!p->pred.n_sentences || !p->truth.n_sentences) return PC_OK;
    bool *seen = mem_alloc(3, n); /* in the prediction, in the truth, in the union */
    if (!seen) return PC_ENOMEM;
    size_t n_pred = count_distinct(&p->pred, seen);
    size_t n_truth = count_distinct(&p->truth, seen + n);
    int status = union_lcs(p, max_calls, seen + 2 * n, &overflow);
    for (size_t k = 0; k < n; k++) common += seen[2 * n + k];
    mem_free(seen);
    if (status < 0 || overflow) return status;
    double precision = (double)common / (double)n_pred, recall = (double)common / (double)n_truth;
    *f = 2.0 * ((precision * recall) / (precision + recall + 1e-8));
    return PC_OK;
}

int rouge_l(const struct Str *pred, const struct Str *truth, int max_calls, double *f)
{
    struct Pair p;
    *f = 0;
    int status = pair_alloc(&p, pred->len, truth->len);
    if (status == PC_OK) {
        split_stops(pred, &p.pred, &p.lex);
        split_stops(truth, &p.truth, &p.lex);
        status = rouge_l_pair(&p, max_calls, f);
    }
    pair_free(&p);
    return status;
}

/* ==== rouge_score 0.1.2 ==== */

static bool is_token_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* Sentences are lines; tokens are runs of [a-z0-9] of the lowered text. Lines without one count for nothing. */
static void split_lines(const struct Str *low, struct Text *t, struct Lexicon *lex)
{
    struct Span line;
    for (size_t at = 0; py_split_at(low->data ? low->data : "", low->len, '\n', &at, &line);) {
        size_t before = t->n;
        for (size_t i = 0; i < line.len;) {
            size_t from = i;
            while (i < line.len && is_token_byte(line.data[i])) i++;
            if (i > from) add_word(t, lex, (struct Span){line.data + from, i - from});
            if (i < line.len) i++;
        }
        if (t->n > before) t->ends[t->n_sentences++] = t->n;
    }
}

/* Marks the places of the truth's sentence (the columns) in the subsequence. */
static void walk_places(const struct Table *t, bool *hit)
{
    size_t i = t->n_row, j = t->n_col;
    while (i > 0 && j > 0) {
        bool same = t->row[i - 1] == t->col[j - 1];
        if (same) hit[j - 1] = true;
        bool up = same || exceeds_left(t, i - 1, j - 1);
        i -= up;
        j -= same || !up;
    }
}

/* hit[place in the truth]: some sentence of the prediction has it in common. */
static int mark_hits(struct Pair *p, bool *hit)
{
    for (size_t r = 0; r < p->truth.n_sentences; r++) {
        size_t r0 = r ? p->truth.ends[r - 1] : 0;
        for (size_t h = 0; h < p->pred.n_sentences; h++) {
            size_t h0 = h ? p->pred.ends[h - 1] : 0;
            struct Table t = {.row = p->pred.ids + h0,
                              .col = p->truth.ids + r0,
                              .n_row = p->pred.ends[h] - h0,
                              .n_col = p->truth.ends[r] - r0};
            int status = table_open(&t, p->masks);
            if (status == PC_OK) walk_places(&t, hit + r0);
            mem_free(t.bits);
            TRY(status);
        }
    }
    return PC_OK;
}

/* A word counts at most as often as the prediction has it. */
static int count_hits(struct Pair *p, size_t *hits)
{
    bool *hit = mem_alloc(p->truth.n, sizeof *hit);
    size_t *left = mem_alloc(p->lex.n, sizeof *left);
    int status = hit && left ? mark_hits(p, hit) : PC_ENOMEM;
    if (status == PC_OK) {
        for (size_t k = 0; k < p->pred.n; k++) left[p->pred.ids[k]]++;
        for (size_t k = 0; k < p->truth.n; k++) {
            if (!hit[k] || !left[p->truth.ids[k]]) continue;
            left[p->truth.ids[k]]--;
            ++*hits;
        }
    }
    mem_free(hit);
    mem_free(left);
    return status;
}

static int lsum_pair(struct Pair *p, double *f)
{
    size_t hits = 0;
    if (!p->pred.n || !p->truth.n) return PC_OK;
    TRY(count_hits(p, &hits));
    double recall = (double)hits / (double)p->truth.n;
    double precision = (double)hits / (double)p->pred.n;
    if (precision + recall > 0) *f = 2 * precision * recall / (precision + recall);
    return PC_OK;
}

double rouge_lsum(const char *pred, size_t pred_len, const char *truth, size_t truth_len)
{
    struct Pair p = {0};
    struct Str low_pred = {0}, low_truth = {0};
    double f = 0;
    int status = py_lower(pred, pred_len, &low_pred);
    if (status == PC_OK) status = py_lower(truth, truth_len, &low_truth);
    if (status == PC_OK) status = pair_alloc(&p, low_pred.len, low_truth.len);
    if (status == PC_OK) {
        split_lines(&low_pred, &p.pred, &p.lex);
        split_lines(&low_truth, &p.truth, &p.lex);
        status = lsum_pair(&p, &f);
    }
    pair_free(&p);
    str_free(&low_pred);
    str_free(&low_truth);
    return status < 0 ? status : f;
}

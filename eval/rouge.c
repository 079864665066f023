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
    uint64_t *masks; /* [lex.n] for the block of columns that is run: where they have the word */
    uint64_t *bits;  /* [room] of the table at hand */
    uint8_t *carry;  /* [n_carry] of its rows */
    size_t room, n_carry;
};

/* No text has more words or sentences than this: between two stands a byte that is no letter or digit. */
static size_t most_words(const char *text, size_t len)
{
    size_t n = 1;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        n += (unsigned)(c - '0') > 9 && (unsigned)((c | 0x20) - 'a') > 25;
    }
    return n;
}

static int text_alloc(struct Text *t, size_t words)
{
    t->ids = mem_alloc(words, sizeof *t->ids);
    t->ends = mem_alloc(words, sizeof *t->ends);
    return t->ids && t->ends ? PC_OK : PC_ENOMEM;
}

static int pair_alloc(struct Pair *p, const struct Str *pred, const struct Str *truth)
{
    size_t n_pred = most_words(pred->data, pred->len), slots = 16;
    size_t n_truth = most_words(truth->data, truth->len), words = n_pred + n_truth;
    while (slots < 2 * words) slots *= 2;
    *p = (struct Pair){.lex.mask = slots - 1};
    p->lex.words = mem_alloc(words, sizeof *p->lex.words);
    p->lex.slots = mem_alloc(slots, sizeof *p->lex.slots);
    p->masks = mem_alloc(words, sizeof *p->masks);
    if (!p->lex.words || !p->lex.slots || !p->masks) return PC_ENOMEM;
    TRY(text_alloc(&p->pred, n_pred));
    return text_alloc(&p->truth, n_truth);
}

static void pair_free(struct Pair *p)
{
    mem_free(p->lex.words);
    mem_free(p->lex.slots);
    mem_free(p->masks);
    mem_free(p->bits);
    mem_free(p->carry);
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

/* Enters (or with `enter` false, takes out) the block's columns in the masks. */
static void set_masks(const struct Table *t, size_t block, uint64_t *masks, bool enter)
{
    size_t from = block * 64, to = from + 64 < t->n_col ? from + 64 : t->n_col;
    for (size_t j = from; j < to; j++)
        masks[t->col[j]] = enter ? masks[t->col[j]] | (uint64_t)1 << (j - from) : 0;
}

/* The only block of every row. Returns whether a word matches that is not in `known` (NULL: any). */
static bool run_single(const struct Table *t, const uint64_t *masks, const bool *known)
{
    uint64_t v = ~(uint64_t)0, fresh = 0;
    for (size_t i = 0; i < t->n_row; i++) {
        uint64_t mask = masks[t->row[i]];
        v = (v + (v & mask)) | (v & ~mask);
        t->bits[i] = v;
        fresh |= known && known[t->row[i]] ? 0 : mask;
    }
    return fresh != 0;
}

/* The next 64 columns of every row. `carry` has a byte a row, from the columns before. */
static void run_block(const struct Table *t, size_t block, const uint64_t *masks, uint8_t *carry)
{
    uint64_t v = ~(uint64_t)0;
    for (size_t i = 0; i < t->n_row; i++) {
        uint64_t mask = masks[t->row[i]], sum;
        bool over = __builtin_add_overflow(v, v & mask, &sum);
        over |= __builtin_add_overflow(sum, (uint64_t)carry[i], &sum);
        carry[i] = over;
        v = sum | (v & ~mask);
        t->bits[i * t->blocks + block] = v;
    }
}

static int table_room(struct Pair *p, struct Table *t)
{
    size_t need = t->n_row * t->blocks; /* no overflow: both are counts of words in memory */
    if (need > p->room) {
        mem_free(p->bits);
        p->room = 0;
        if (!(p->bits = mem_alloc(need, 2 * sizeof *p->bits))) return PC_ENOMEM;
        p->room = 2 * need;
    }
    t->bits = p->bits;
    if (t->blocks > 1 && t->n_row > p->n_carry) {
        mem_free(p->carry);
        p->n_carry = 0;
        if (!(p->carry = mem_alloc(t->n_row, 1))) return PC_ENOMEM;
        p->n_carry = t->n_row;
    }
    return PC_OK;
}

/* Fills the table's bits. With one block its masks are set already. *fresh: see run_single. */
static int table_run(struct Pair *p, struct Table *t, const bool *known, bool *fresh)
{
    *fresh = true;
    TRY(table_room(p, t));
    if (t->blocks == 1) {
        *fresh = run_single(t, p->masks, known);
        return PC_OK;
    }
    memset(p->carry, 0, t->n_row);
    for (size_t block = 0; block < t->blocks; block++) {
        set_masks(t, block, p->masks, true);
        run_block(t, block, p->masks, p->carry);
        set_masks(t, block, p->masks, false);
    }
    return PC_OK;
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

static struct Table table_of(const struct Text *rows, size_t r, const struct Text *cols, size_t c)
{
    size_t r0 = r ? rows->ends[r - 1] : 0, c0 = c ? cols->ends[c - 1] : 0;
    size_t n_col = cols->ends[c] - c0;
    return (struct Table){.row = rows->ids + r0,
                          .col = cols->ids + c0,
                          .n_row = rows->ends[r] - r0,
                          .n_col = n_col,
                          .blocks = (n_col + 63) / 64};
}

/* One sentence of the prediction against all of the truth. *overflow: the original would raise. */
static int union_with(struct Pair *p, size_t h, int max_calls, bool *in_union, bool *overflow)
{
    struct Table first = table_of(&p->truth, 0, &p->pred, h);
    int status = PC_OK;
    if (first.blocks == 1) set_masks(&first, 0, p->masks, true);
    for (size_t r = 0; r < p->truth.n_sentences && status == PC_OK && !*overflow; r++) {
        struct Table t = table_of(&p->truth, r, &p->pred, h);
        bool fresh;
        *overflow = must_overflow(&t, max_calls);
        if (*overflow) break;
        status = table_run(p, &t, in_union, &fresh);
        if (status == PC_OK && (fresh || may_overflow(&t, max_calls)))
            *overflow = !walk_words(&t, max_calls, in_union);
    }
    if (first.blocks == 1) set_masks(&first, 0, p->masks, false);
    return status;
}

static int union_lcs(struct Pair *p, int max_calls, bool *in_union, bool *overflow)
{
    for (size_t h = 0; h < p->pred.n_sentences && !*overflow; h++)
        TRY(union_with(p, h, max_calls, in_union, overflow));
    return PC_OK;
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
    int status = pair_alloc(&p, pred, truth);
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

/* One sentence of the truth against all of the prediction. hit[place]: one of them has it in common. */
static int mark_sentence(struct Pair *p, size_t r, bool *hit)
{
    struct Table first = table_of(&p->pred, 0, &p->truth, r);
    int status = PC_OK;
    if (first.blocks == 1) set_masks(&first, 0, p->masks, true);
    for (size_t h = 0; h < p->pred.n_sentences && status == PC_OK; h++) {
        struct Table t = table_of(&p->pred, h, &p->truth, r);
        bool any;
        status = table_run(p, &t, NULL, &any);
        if (status == PC_OK && any) walk_places(&t, hit);
    }
    if (first.blocks == 1) set_masks(&first, 0, p->masks, false);
    return status;
}

static int mark_hits(struct Pair *p, bool *hit)
{
    for (size_t r = 0; r < p->truth.n_sentences; r++)
        TRY(mark_sentence(p, r, hit + (r ? p->truth.ends[r - 1] : 0)));
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
    if (status == PC_OK) status = pair_alloc(&p, &low_pred, &low_truth);
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

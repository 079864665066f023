/* rouge.c - see rouge.h
 *
 * Both scores need, for every pair of sentences, one certain longest common subsequence: the one that
 * walking back through the table of lengths finds. Only the direction of each step is needed, and that
 * is one bit: whether a cell of the table exceeds its left neighbour. The bits of a whole row come from
 * the bit-parallel recurrence V' = (V + (V & M)) | (V & ~M), 64 columns at a time.
 */
#include "rouge.h"

#include "jieba.h"
#include "lexicon.h"

#include <string.h>

/* ==== Texts as numbers ==== */

/* Sentences one after another. */
struct Text {
    uint32_t *ids;  /* [n] numbers of the words */
    uint32_t *ends; /* [n_sentences] where each ends in ids */
    size_t n, n_sentences;
};

struct Pair {
    struct Lexicon lex;
    struct Text pred, truth;
};

/* Every sentence has a word at least. */
static int text_open(struct Text *t, size_t most_words)
{
    *t = (struct Text){0};
    if (most_words > UINT32_MAX) return err_set(PC_ENOMEM, "a text is too long");
    t->ids = mem_alloc(most_words, 2 * sizeof *t->ids);
    t->ends = t->ids + most_words;
    return t->ids ? PC_OK : PC_ENOMEM;
}

/* Most words of a text in which a byte at least stands between two. */
static size_t words_apart(size_t bytes)
{
    return bytes / 2 + 1;
}

static void pair_open(struct Pair *p)
{
    lexicon_open(&p->lex);
    p->pred = p->truth = (struct Text){0};
}

static void text_close(struct Text *t)
{
    mem_free(t->ids);
    *t = (struct Text){0};
}

static void pair_close(struct Pair *p)
{
    lexicon_close(&p->lex);
    text_close(&p->pred);
    text_close(&p->truth);
}

static int add_word(struct Text *t, struct Lexicon *lex, struct Span w)
{
    int64_t id = lexicon_add(lex, w);
    if (id < 0) return PC_ENOMEM;
    t->ids[t->n++] = (uint32_t)id;
    return PC_OK;
}

static void end_sentence(struct Text *t)
{
    t->ends[t->n_sentences++] = (uint32_t)t->n;
}

static size_t sentence_begin(const struct Text *t, size_t i)
{
    return i ? t->ends[i - 1] : 0;
}

/* ==== Walk through the table ==== */

/* Two sentences as rows and columns of the table; bits[row * blocks + block] has a zero where the cell
 * exceeds its left neighbour. */
struct Table {
    const uint32_t *row, *col;
    size_t n_row, n_col, blocks;
    uint64_t *bits;
};

/* The subsequences of each sentence of `cols` with those of `rows`, and what they have in common. */
struct Search {
    const struct Text *rows, *cols;
    size_t n_words, max_calls; /* of the original's recursion */
    bool by_place;             /* what is marked: words, or places in cols */
    bool *marked;              /* [n_words] or [cols->n] */
    uint32_t *where;           /* [rows->n] lists of the rows' sentences that have each word */
    uint32_t *begin, *end;     /* [n_words + 1], [n_words] of each word's list */
    uint32_t *tried; /* [n_words] last sentence of cols, from 1, that met all of its list */
    uint32_t *met;   /* [rows->n_sentences] last sentence of cols, from 1, that met each */
    uint64_t *masks; /* [n_words] for the block of columns at hand: where they have the word */
    bool masked;     /* a sentence of one block is in the masks */
    uint64_t *bits;  /* [room] of the table at hand */
    uint8_t *carry;  /* [n_carry] of its rows */
    size_t room, n_carry;
};

static struct Table table_of(const struct Search *s, size_t r, size_t c)
{
    size_t r0 = sentence_begin(s->rows, r), c0 = sentence_begin(s->cols, c);
    size_t n_col = s->cols->ends[c] - c0;
    return (struct Table){.row = s->rows->ids + r0,
                          .col = s->cols->ids + c0,
                          .n_row = s->rows->ends[r] - r0,
                          .n_col = n_col,
                          .blocks = (n_col + 63) / 64};
}

/* Enters (or with `enter` false, takes out) the block's columns in the masks. */
static void set_masks(const struct Table *t, size_t block, uint64_t *masks, bool enter)
{
    size_t from = block * 64, to = from + 64 < t->n_col ? from + 64 : t->n_col;
    for (size_t j = from; j < to; j++)
        masks[t->col[j]] = enter ? masks[t->col[j]] | (uint64_t)1 << (j - from) : 0;
}

/* The only block of every row. */
static void run_single(const struct Table *t, const uint64_t *masks)
{
    uint64_t v = ~(uint64_t)0;
    for (size_t i = 0; i < t->n_row; i++) {
        uint64_t mask = masks[t->row[i]];
        v = (v + (v & mask)) | (v & ~mask);
        t->bits[i] = v;
    }
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

static int table_room(struct Search *s, struct Table *t)
{
    size_t need = t->n_row * t->blocks; /* no overflow: both are counts of words in memory */
    if (need > s->room) {
        mem_free(s->bits);
        s->room = 0;
        if (!(s->bits = mem_alloc(need, 2 * sizeof *s->bits))) return PC_ENOMEM;
        s->room = 2 * need;
    }
    t->bits = s->bits;
    if (t->blocks > 1 && t->n_row > s->n_carry) {
        mem_free(s->carry);
        s->n_carry = 0;
        if (!(s->carry = mem_alloc(t->n_row, 1))) return PC_ENOMEM;
        s->n_carry = t->n_row;
    }
    return PC_OK;
}

/* Fills the table's bits. With one block its masks stay for the sentence's other tables. */
static int table_run(struct Search *s, struct Table *t)
{
    TRY(table_room(s, t));
    if (t->blocks == 1) {
        if (!s->masked) set_masks(t, 0, s->masks, true);
        s->masked = true;
        run_single(t, s->masks);
        return PC_OK;
    }
    memset(s->carry, 0, t->n_row);
    for (size_t block = 0; block < t->blocks; block++) {
        set_masks(t, block, s->masks, true);
        run_block(t, block, s->masks, s->carry);
        set_masks(t, block, s->masks, false);
    }
    return PC_OK;
}

static bool exceeds_left(const struct Table *t, size_t i, size_t j)
{
    return !(t->bits[i * t->blocks + j / 64] >> (j % 64) & 1);
}

/* Largest index that the original's comparisons find without a further frame: CPython keeps one object
 * for each integer up to it. */
enum { SMALL_INT = 256 };

/* Marks the subsequence. False: the original's recursion would exceed max_calls. */
static bool walk(const struct Search *s, const struct Table *t)
{
    bool *marked = s->by_place ? s->marked + (t->col - s->cols->ids) : s->marked;
    size_t i = t->n_row, j = t->n_col;
    for (size_t calls = 1; i > 0 && j > 0; calls++) {
        uint32_t word = t->row[i - 1];
        bool same = word == t->col[j - 1];
        if (calls + 2 > s->max_calls) { /* else there are enough either way */
            bool deep = !same && (i > SMALL_INT || j > SMALL_INT);
            if (calls + 1 + deep > s->max_calls) return false;
        }
        if (same) marked[s->by_place ? j - 1 : word] = true;
        bool up = same || exceeds_left(t, i - 1, j - 1);
        i -= up;
        j -= same || !up;
    }
    return true;
}

/* ==== Search ==== */

/* Which sentences of the rows have each word: a list for each, in order and without repetition. */
static void list_sentences(struct Search *s)
{
    const struct Text *t = s->rows;
    for (size_t k = 0; k < t->n; k++) s->begin[t->ids[k] + 1]++;
    for (size_t w = 0; w < s->n_words; w++) {
        s->begin[w + 1] += s->begin[w];
        s->end[w] = s->begin[w];
    }
    for (size_t r = 0, k = 0; r < t->n_sentences; r++) {
        for (; k < t->ends[r]; k++) {
            uint32_t w = t->ids[k], at = s->end[w];
            if (at > s->begin[w] && s->where[at - 1] == r) continue;
            s->where[at] = (uint32_t)r;
            s->end[w]++;
        }
    }
}

static int search_open(struct Search *s)
{
    size_t n = s->n_words;
    s->masks = mem_alloc(n, sizeof *s->masks);
    s->marked = mem_alloc(s->by_place ? s->cols->n : n, sizeof *s->marked);
    s->begin = mem_alloc(3 * n + 1 + s->rows->n + s->rows->n_sentences, sizeof *s->begin);
    if (!s->masks || !s->marked || !s->begin) return PC_ENOMEM;
    s->end = s->begin + n + 1;
    s->tried = s->end + n;
    s->where = s->tried + n;
    s->met = s->where + s->rows->n;
    list_sentences(s);
    return PC_OK;
}

static void search_close(struct Search *s)
{
    mem_free(s->masks);
    mem_free(s->marked);
    mem_free(s->begin);
    mem_free(s->bits);
    mem_free(s->carry);
}

/* Whether a walk could need more calls than there are, and whether every walk must. */
static bool may_overflow(const struct Search *s, const struct Table *t)
{
    return t->n_row + t->n_col + 2 > s->max_calls;
}

static bool must_overflow(const struct Search *s, const struct Table *t)
{
    size_t least = t->n_row < t->n_col ? t->n_row : t->n_col;
    return least + 1 > s->max_calls;
}

static size_t longest_sentence(const struct Text *t)
{
    size_t most = 0;
    for (size_t i = 0; i < t->n_sentences; i++) {
        size_t n = t->ends[i] - sentence_begin(t, i);
        if (n > most) most = n;
    }
    return most;
}

/* The walks that may not end well, whatever they would mark. *overflow: the original would raise. */
static int search_deep(struct Search *s, size_t c, bool *overflow)
{
    int status = PC_OK;
    for (size_t r = 0; r < s->rows->n_sentences && status == PC_OK && !*overflow; r++) {
        struct Table t = table_of(s, r, c);
        if (!may_overflow(s, &t)) continue;
        *overflow = must_overflow(s, &t);
        if (*overflow) break;
        status = table_run(s, &t);
        if (status == PC_OK) *overflow = !walk(s, &t);
    }
    return status;
}

/* A sentence of cols against the rows' sentences that have the word. */
static int search_word(struct Search *s, size_t c, uint32_t word)
{
    for (uint32_t k = s->begin[word]; k < s->end[word]; k++) {
        uint32_t r = s->where[k];
        if (s->met[r] == c + 1) continue;
        s->met[r] = (uint32_t)c + 1;
        struct Table t = table_of(s, r, c);
        if (may_overflow(s, &t)) continue; /* walked already */
        TRY(table_run(s, &t));
        walk(s, &t);
        if (!s->by_place && s->marked[word]) return PC_OK;
    }
    s->tried[word] = (uint32_t)c + 1;
    return PC_OK;
}

/* Most pairs of sentences have nothing in common that is not marked yet; only the others are walked. */
static int search_sentence(struct Search *s, size_t c)
{
    for (size_t k = sentence_begin(s->cols, c); k < s->cols->ends[c]; k++) {
        uint32_t word = s->cols->ids[k];
        if (s->marked[s->by_place ? k : word] || s->tried[word] == c + 1) continue;
        TRY(search_word(s, c, word));
    }
    return PC_OK;
}

/* All pairs of sentences. */
static int search(struct Search *s, bool *overflow)
{
    size_t longest = longest_sentence(s->rows) + longest_sentence(s->cols);
    *overflow = false;
    TRY(search_open(s));
    for (size_t c = 0; c < s->cols->n_sentences && !*overflow; c++) {
        if (longest + 2 > s->max_calls) TRY(search_deep(s, c, overflow));
        if (!*overflow) TRY(search_sentence(s, c));
        struct Table last = table_of(s, 0, c);
        if (s->masked) set_masks(&last, 0, s->masks, false);
        s->masked = false;
    }
    return PC_OK;
}

/* ==== rouge 1.0.1 ==== */

/* Sentences end at every full stop, empty ones are left out; one of white space alone has the empty word. */
static int split_stops(const struct Str *s, struct Text *t, struct Lexicon *lex)
{
    struct Span part, word;
    for (size_t at = 0; py_split_at(s->data ? s->data : "", s->len, '.', &at, &part);) {
        size_t before = t->n, pos = 0;
        if (!part.len) continue;
        while (py_split_next(part.data, part.len, &pos, &word)) TRY(add_word(t, lex, word));
        if (t->n == before) TRY(add_word(t, lex, (struct Span){"", 0}));
        end_sentence(t);
    }
    return PC_OK;
}

/* A text on its way from the segmenter. */
struct Pieces {
    struct Text *text;
    struct Lexicon *lex;
    size_t before; /* words before the sentence at hand */
    bool begun;    /* the text has a word */
    bool any;      /* the sentence has a byte, if only a space */
};

static int end_piece(struct Pieces *p)
{
    if (p->any && p->text->n == p->before) TRY(add_word(p->text, p->lex, (struct Span){"", 0}));
    if (p->any) end_sentence(p->text);
    p->before = p->text->n;
    p->any = false;
    return PC_OK;
}

/* The words that split_stops would find in the segmenter's words with a space between; these are white space
 * alone or hold none. */
static int take_word(void *user, const char *word, size_t len)
{
    struct Pieces *p = user;
    struct Span part;
    size_t at = 0;
    p->any |= p->begun;
    p->begun = true;
    if (py_is_space(py_next(word, len, &at))) {
        p->any = true;
        return PC_OK;
    }
    for (at = 0; py_split_at(word, len, '.', &at, &part);) {
        if (part.data > word) TRY(end_piece(p));
        if (!part.len) continue;
        TRY(add_word(p->text, p->lex, part));
        p->any = true;
    }
    return PC_OK;
}

static int read_text(struct Pair *p, const struct Jieba *jieba, const struct Str *s, struct Text *t)
{
    struct Pieces pieces = {.text = t, .lex = &p->lex};
    TRY(text_open(t, jieba ? s->len + 1 : words_apart(s->len)));
    if (!jieba) return split_stops(s, t, &p->lex);
    TRY(jieba_cut(jieba, s->data ? s->data : "", s->len, take_word, &pieces));
    return end_piece(&pieces);
}

/* n_pred: distinct words of the prediction, which are numbered first. */
static int rouge_l_pair(struct Pair *p, size_t n_pred, int max_calls, double *f)
{
    struct Search s = {
        .rows = &p->truth, .cols = &p->pred, .n_words = p->lex.n, .max_calls = (size_t)max_calls};
    bool overflow;
    size_t n_truth = 0, common = 0;
    if (!p->pred.n_sentences || !p->truth.n_sentences) return PC_OK;
    int status = search(&s, &overflow);
    for (size_t w = 0; w < s.n_words && status == PC_OK; w++) {
        n_truth += s.end[w] > s.begin[w];
        common += s.marked[w];
    }
    search_close(&s);
    if (status < 0 || overflow) return status;
    double precision = (double)common / (double)n_pred, recall = (double)common / (double)n_truth;
    *f = 2.0 * ((precision * recall) / (precision + recall + 1e-8));
    return PC_OK;
}

static int best_of(struct Pair *p, const struct Jieba *jieba, const struct Str *truths, int n,
                   int max_calls, double *best)
{
    size_t n_pred = p->lex.n;
    for (int i = 0; i < n; i++) {
        double f = 0;
        int status = read_text(p, jieba, &truths[i], &p->truth);
        if (status == PC_OK) status = rouge_l_pair(p, n_pred, max_calls, &f);
        text_close(&p->truth);
        TRY(status);
        if (f > *best) *best = f;
    }
    return PC_OK;
}

static int rouge_l_any(const struct Jieba *jieba, const struct Str *pred, const struct Str *truths,
                       int n, int max_calls, double *f)
{
    struct Pair p;
    *f = 0;
    pair_open(&p);
    int status = read_text(&p, jieba, pred, &p.pred);
    if (status == PC_OK) status = best_of(&p, jieba, truths, n, max_calls, f);
    pair_close(&p);
    return status;
}

int rouge_l(const struct Str *pred, const struct Str *truth, int max_calls, double *f)
{
    return rouge_l_any(NULL, pred, truth, 1, max_calls, f);
}

int rouge_l_best(const struct Jieba *jieba, const struct Str *pred, const struct Str *truths, int n,
                 double *f)
{
    return rouge_l_any(jieba, pred, truths, n, jieba ? ROUGE_CALLS_ZH : ROUGE_CALLS, f);
}

/* ==== rouge_score 0.1.2 ==== */

static bool is_token_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* Sentences are lines; tokens are runs of [a-z0-9] of the lowered text. Lines without one count for nothing. */
static int split_lines(const struct Str *low, struct Text *t, struct Lexicon *lex)
{
    size_t line = 0; /* where its tokens begin */
    for (size_t i = 0; i < low->len; i++) {
        size_t from = i;
        while (i < low->len && is_token_byte(low->data[i])) i++;
        if (i > from) TRY(add_word(t, lex, (struct Span){low->data + from, i - from}));
        if (t->n == line || (i < low->len && low->data[i] != '\n')) continue;
        end_sentence(t);
        line = t->n;
    }
    if (t->n > line) end_sentence(t);
    return PC_OK;
}

/* A word counts at most as often as the prediction has it. */
static int count_hits(struct Pair *p, size_t *hits)
{
    struct Search s = {.rows = &p->pred,
                       .cols = &p->truth,
                       .n_words = p->lex.n,
                       .max_calls = SIZE_MAX,
                       .by_place = true};
    bool overflow;
    int status = search(&s, &overflow);
    if (status == PC_OK) {
        for (size_t k = 0; k < p->pred.n; k++) p->lex.words[p->pred.ids[k]].count++;
        for (size_t k = 0; k < p->truth.n; k++)
            if (s.marked[k]) *hits += p->lex.words[p->truth.ids[k]].count-- > 0;
    }
    search_close(&s);
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
    struct Pair p;
    struct Str low_pred = {0}, low_truth = {0};
    double f = 0;
    int status = py_lower(pred, pred_len, &low_pred);
    if (status == PC_OK) status = py_lower(truth, truth_len, &low_truth);
    pair_open(&p);
    if (status == PC_OK) status = text_open(&p.pred, words_apart(low_pred.len));
    if (status == PC_OK) status = text_open(&p.truth, words_apart(low_truth.len));
    if (status == PC_OK) status = split_lines(&low_pred, &p.pred, &p.lex);
    if (status == PC_OK) status = split_lines(&low_truth, &p.truth, &p.lex);
    if (status == PC_OK) status = lsum_pair(&p, &f);
    pair_close(&p);
    str_free(&low_pred);
    str_free(&low_truth);
    return status < 0 ? status : f;
}

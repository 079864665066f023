/* gen_words.c - word counts: cwe (ten words more common than the rest), fwe (coded words whose counts
 * fall with the square of their rank).
 */
#include "gen_task.h"

#include <stdio.h>
#include <string.h>

/* Shuffles a list in place. */
static void shuffle(struct Rng r, int32_t *list, int64_t n)
{
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)rng_below(&r, (uint64_t)i + 1);
        int32_t moved = list[i];
        list[i] = list[j];
        list[j] = moved;
    }
}

/* ==== cwe ==== */

enum { N_COMMON = 10, SHORT_LIST = 4096 };

struct Cwe {
    const struct Gen *g;
    struct Units *u;
    bool made;          /* words are made up: there are not enough others */
    int common, others; /* repetitions */
};

static int cwe_repeats(const struct Cwe *c, int64_t i)
{
    return i < N_COMMON ? c->common : c->others;
}

/* Word i; drawn anew, one that no other unit has, if any is left. */
static void cwe_word(const struct Cwe *c, int64_t i, int again, char out[WORD_MAX])
{
    int64_t n = c->made ? (int64_t)words_made() : words_common(), at = i;
    if (again) at = n - GEN_REDRAW * (int64_t)again - i % GEN_REDRAW;
    if (at < c->u->n) at = i;
    uint64_t place = rng_place(rng_join(c->g->key, DRAW_PICK), (uint64_t)at, (uint64_t)n);
    if (c->made)
        words_made_at(place, out);
    else
        snprintf(out, WORD_MAX, "%s", words_common_at((int)place));
}

/* All entries of one word, numbered as if they stood together: the numbers add up the same. */
static int cwe_unit(void *user, int64_t i, int again, struct Str *out)
{
    const struct Cwe *c = user;
    char word[WORD_MAX];
    int64_t before =
        i < N_COMMON ? i * c->common : N_COMMON * c->common + (i - N_COMMON) * c->others;
    cwe_word(c, i, again, word);
    for (int repeat = 0; repeat < cwe_repeats(c, i); repeat++)
        TRY(str_appendf(out, " %lld. %s", (long long)before + repeat + 1, word));
    return PC_OK;
}

/* " 17. word …": the word of a unit. */
static struct Slice cwe_unit_word(const struct Units *u, int64_t i)
{
    struct Slice unit = units_at(u, i);
    const char *word = memchr(unit.data, '.', unit.len);
    word += 2;
    const char *end = memchr(word, ' ', unit.len - (size_t)(word - unit.data));
    size_t len = end ? (size_t)(end - word) : unit.len - (size_t)(word - unit.data);
    return (struct Slice){word, len};
}

static int cwe_write(struct Gen *g, const struct Cwe *c, const int32_t *order, int64_t n)
{
    struct Str *context = &g->out->context;
    TRY(str_reserve(context, c->u->text.len));
    TRY(gen_places(g, N_COMMON));
    g->out->n_answer_at = N_COMMON;
    for (int64_t i = 0; i < n; i++) {
        struct Slice word = cwe_unit_word(c->u, order[i]);
        TRY(str_appendf(context, "%s%lld. ", i ? " " : "", (long long)i + 1));
        if (order[i] < N_COMMON && !g->out->answer_at[order[i]])
            g->out->answer_at[order[i]] = context->len;
        TRY(str_append(context, word.data, word.len));
    }
    for (int i = 0; i < N_COMMON; i++) {
        struct Slice word = cwe_unit_word(c->u, i);
        TRY(gen_answer(g, word.data, word.len));
    }
    return PC_OK;
}

static int cwe_shuffled(struct Gen *g, const struct Cwe *c)
{
    int64_t n = N_COMMON * c->common + (c->u->n - N_COMMON) * c->others, at = 0;
    int32_t *order = mem_alloc((size_t)n, sizeof *order);
    if (!order) return PC_ENOMEM;
    for (int64_t i = 0; i < c->u->n; i++)
        for (int repeat = 0; repeat < cwe_repeats(c, i); repeat++) order[at++] = (int32_t)i;
    shuffle(gen_rng(g, DRAW_ORDER), order, n);
    int status = cwe_write(g, c, order, n);
    mem_free(order);
    return status;
}

/* *more: all words were used up before the budget was. */
static int cwe_build(struct Gen *g, bool made, int64_t budget, bool *more)
{
    bool brief = g->spec->tokens < SHORT_LIST;
    struct Cwe c = {.g = g, .made = made, .common = brief ? 6 : 30, .others = brief ? 1 : 3};
    struct Units u = {.unit = cwe_unit, .user = &c, .before = "1. end", .least = N_COMMON + 2};
    u.most = made ? (int64_t)words_made() / 2 : words_common();
    u.redraw = GEN_REDRAW;
    c.u = &u;
    int status = units_fill(g, &u, budget, 0);
    g->estimate = u.tokens;
    *more = status == PC_OK && u.n == u.most;
    if (status == PC_OK && !*more) status = cwe_shuffled(g, &c);
    units_free(&u);
    return status;
}

int gen_cwe(struct Gen *g, int64_t budget)
{
    bool more;
    TRY(cwe_build(g, false, budget, &more));
    if (!more) return PC_OK;
    TRY(cwe_build(g, true, budget, &more));
    return more ? err_set(PC_ERANGE, "cwe has not words enough for %lld tokens", (long long)budget)
                : PC_OK;
}

/* ==== fwe ==== */

enum { CODED_LEN = 6, LEAST_DRAWS = 74, N_FREQUENT = 3 };
/* LEAST_DRAWS: from there on the counts of ranks 2, 3, 4 and 5 all differ. */

struct Fwe {
    uint64_t key;
    int n;         /* ranks; rank 1 is the noise "..." */
    int64_t *cost; /* [n] tokens of " word" */
};

static void coded_word(const struct Fwe *f, int rank, char out[CODED_LEN + 1])
{
    uint64_t at =
        rng_place(rng_join(f->key, DRAW_PICK), (uint64_t)rank, 26u * 26 * 26 * 26 * 26 * 26);
    for (int i = 0; i < CODED_LEN; i++, at /= 26) out[i] = (char)('a' + at % 26);
    out[CODED_LEN] = '\0';
    if (rank == 0) memcpy(out, "...", 4);
}

/* How often a rank (from 0) stands among `draws` words: their share under a zeta law of exponent 2. */
static int64_t coded_count(int64_t draws, int rank)
{
    const double share = 0.6079271018540267; /* 6 / pi^2 */
    return (int64_t)((double)draws * share / ((double)(rank + 1) * (rank + 1)));
}

static int64_t coded_tokens(const struct Fwe *f, int64_t draws)
{
    int64_t tokens = 0;
    for (int rank = 0; rank < f->n; rank++) tokens += coded_count(draws, rank) * f->cost[rank];
    return tokens;
}

static int coded_costs(struct Gen *g, struct Fwe *f)
{
    char word[CODED_LEN + 1];
    struct Str text = {0};
    int status = PC_OK;
    for (int rank = 0; rank < f->n && status == PC_OK; rank++) {
        coded_word(f, rank, word);
        str_clear(&text);
        status = str_appendf(&text, " %s", word);
        if (status == PC_OK) status = gen_count_after(g, "end", &text, &f->cost[rank]);
    }
    str_free(&text);
    return status;
}

static int64_t most_draws(const struct Fwe *f, int64_t budget)
{
    int64_t lo = LEAST_DRAWS, hi = budget * 2 + LEAST_DRAWS;
    while (lo < hi) {
        int64_t middle = lo + (hi - lo + 1) / 2;
        if (coded_tokens(f, middle) <= budget)
            lo = middle;
        else
            hi = middle - 1;
    }
    return lo;
}

static int fwe_write(struct Gen *g, const struct Fwe *f, const int32_t *list, int64_t n)
{
    char word[CODED_LEN + 1];
    struct Str *context = &g->out->context;
    TRY(str_reserve(context, (size_t)n * (CODED_LEN + 1)));
    TRY(gen_places(g, N_FREQUENT));
    g->out->n_answer_at = N_FREQUENT;
    bool seen[N_FREQUENT] = {false};
    for (int64_t i = 0; i < n; i++) {
        if (i) TRY(str_append(context, " ", 1));
        int asked = list[i] - 1;
        if (asked >= 0 && asked < N_FREQUENT && !seen[asked]) {
            g->out->answer_at[asked] = context->len;
            seen[asked] = true;
        }
        coded_word(f, list[i], word);
        TRY(str_append(context, word, strlen(word)));
    }
    for (int rank = 1; rank <= N_FREQUENT; rank++) {
        coded_word(f, rank, word);
        TRY(gen_answer(g, word, strlen(word)));
    }
    return PC_OK;
}

/* What the counts leave of the budget becomes noise. */
static int fwe_shuffled(struct Gen *g, const struct Fwe *f, int64_t budget)
{
    int64_t draws = most_draws(f, budget), tokens = coded_tokens(f, draws), n = 0, at = 0;
    int64_t noise = (budget - tokens) / f->cost[0];
    for (int rank = 0; rank < f->n; rank++) n += coded_count(draws, rank);
    n += noise;
    int32_t *list = mem_alloc((size_t)n, sizeof *list);
    if (!list) return PC_ENOMEM;
    for (int rank = 0; rank < f->n; rank++)
        for (int64_t i = coded_count(draws, rank) + (rank ? 0 : noise); i > 0; i--)
            list[at++] = rank;
    shuffle(gen_rng(g, DRAW_ORDER), list, n);
    g->estimate = tokens + noise * f->cost[0];
    int status = fwe_write(g, f, list, n);
    mem_free(list);
    return status;
}

int gen_fwe(struct Gen *g, int64_t budget)
{
    struct Fwe f = {.key = g->key, .n = 8};
    while (f.n < g->spec->tokens / 50 && coded_count(2 * budget, f.n)) f.n++;
    f.cost = mem_alloc((size_t)f.n, sizeof *f.cost);
    if (!f.cost) return PC_ENOMEM;
    int status = coded_costs(g, &f);
    if (status == PC_OK) {
        int64_t least = coded_tokens(&f, LEAST_DRAWS);
        status = least > budget ? gen_too_small(g, least) : fwe_shuffled(g, &f, budget);
    }
    mem_free(f.cost);
    return status;
}

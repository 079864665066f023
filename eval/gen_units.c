/* gen_units.c - a list of units grown to a number of tokens.
 *
 * Units begin and end where no token spans, so their tokens add up. They are counted in blocks, and one
 * by one only near the end, where the last few are then drawn anew until the list fits closely.
 */
#include "gen_task.h"

#include <string.h>

enum { BLOCK_BYTES = 1 << 16, TRIES = 2000 };

void units_free(struct Units *u)
{
    str_free(&u->text);
    mem_free(u->at);
    u->at = NULL;
}

struct Slice units_at(const struct Units *u, int64_t i)
{
    return (struct Slice){u->text.data + u->at[i], u->at[i + 1] - u->at[i]};
}

static int units_room(struct Units *u)
{
    if (u->n + 1 < u->cap) return PC_OK;
    int64_t cap = u->cap ? 2 * u->cap : 256;
    size_t *at = u->at ? mem_grow(u->at, (size_t)u->cap, (size_t)cap, sizeof *at)
                       : mem_alloc((size_t)cap, sizeof *at);
    if (!at) return PC_ENOMEM;
    u->at = at;
    u->cap = cap;
    return PC_OK;
}

static int unit_push(struct Units *u, int again)
{
    TRY(units_room(u));
    TRY(u->unit(u->user, u->n, again, &u->text));
    u->at[++u->n] = u->text.len;
    return PC_OK;
}

static void units_cut(struct Units *u, int64_t n)
{
    u->n = n;
    u->text.len = u->at[n];
}

/* Tokens of the units from `first` on. */
static int units_count(struct Gen *g, const struct Units *u, int64_t first, int64_t *n)
{
    struct Str part = {.data = u->text.data + u->at[first], .len = u->text.len - u->at[first]};
    return gen_count_after(g, u->before, &part, n);
}

/* Appends a block if it fits the budget; *full: it did not, and nothing was appended. */
static int block_push(struct Gen *g, struct Units *u, int64_t n_units, int64_t budget, bool *full)
{
    int64_t first = u->n, n;
    while (u->n - first < n_units && u->text.len - u->at[first] < BLOCK_BYTES &&
           (!u->most || u->n < u->most))
        TRY(unit_push(u, 0));
    TRY(units_count(g, u, first, &n));
    *full = u->tokens + n > budget;
    if (*full)
        units_cut(u, first);
    else
        u->tokens += n;
    return PC_OK;
}

/* ==== The last units ==== */

struct Tail {
    int n;                 /* units of the tail: the last ones of the list */
    int again[GEN_REDRAW]; /* how often each was drawn anew */
    int64_t cost[GEN_REDRAW];
};

static int unit_cost(struct Gen *g, struct Units *u, int64_t i, int again, int64_t *cost)
{
    struct Str text = {0};
    int status = u->unit(u->user, i, again, &text);
    if (status == PC_OK) status = gen_count_after(g, u->before, &text, cost);
    str_free(&text);
    return status;
}

static int tail_open(struct Gen *g, struct Units *u, struct Tail *tail)
{
    int64_t most = u->redraw < GEN_REDRAW ? u->redraw : GEN_REDRAW;
    if (most > u->n) most = u->n;
    *tail = (struct Tail){.n = (int)most};
    for (int i = 0; i < tail->n; i++) TRY(unit_cost(g, u, u->n - tail->n + i, 0, &tail->cost[i]));
    return PC_OK;
}

/* Draws tail units anew, keeping what comes nearer to the budget. */
static int tail_fit(struct Gen *g, struct Units *u, struct Tail *tail, int64_t budget)
{
    for (int attempt = 1; attempt <= TRIES && tail->n && u->tokens < budget; attempt++) {
        int at = tail->n - 1 - attempt % tail->n;
        int64_t cost;
        TRY(unit_cost(g, u, u->n - tail->n + at, attempt, &cost));
        int64_t more = cost - tail->cost[at];
        if (more <= 0 || u->tokens + more > budget) continue;
        tail->again[at] = attempt;
        tail->cost[at] = cost;
        u->tokens += more;
    }
    return PC_OK;
}

static int tail_write(struct Units *u, const struct Tail *tail)
{
    units_cut(u, u->n - tail->n);
    for (int i = 0; i < tail->n; i++) TRY(unit_push(u, tail->again[i]));
    return PC_OK;
}

int units_fill(struct Gen *g, struct Units *u, int64_t budget, int64_t fixed)
{
    TRY(units_room(u));
    TRY(str_reserve(&u->text, 1));
    bool full;
    while (u->n < u->least) TRY(block_push(g, u, u->least - u->n, INT64_MAX, &full));
    if (u->tokens > budget - fixed) return gen_too_small(g, u->tokens + fixed);
    budget -= fixed;
    for (int64_t n_units = INT32_MAX; n_units && (!u->most || u->n < u->most);) {
        TRY(block_push(g, u, n_units, budget, &full));
        if (full && n_units == 1) break;
        if (full) n_units = n_units > 1024 ? 256 : n_units > 16 ? 16 : 1;
    }
    struct Tail tail;
    TRY(tail_open(g, u, &tail));
    TRY(tail_fit(g, u, &tail, budget));
    return tail.n ? tail_write(u, &tail) : PC_OK;
}

/* gen_code.c - code_run: Python functions of which each calls one of the next level and adds a number.
 *
 * Functions come in rows, one of each level. Callees are drawn from the rows that a cautious estimate
 * says there will be, so the list can be grown one function after the other; the few rows beyond it are
 * filler that nothing calls.
 */
#include "gen_task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ADD_LEAST = -12, ADD_MOST = 17, X_MOST = 10, SAMPLE = 512, UNCALLED = 10 };

static const char CODE_BEGIN[] = "\nHere is the content of functions_module.py:\n\n";

struct Code {
    uint64_t key;
    int levels;
    int64_t rows; /* that may be called */
    int64_t ids;  /* names are func_1 .. func_<ids> */
};

/* Function i is of level i % levels, in row i / levels. */
struct Function {
    int64_t id, callee; /* callee: index; negative: the last level has none */
    int add;
};

static int64_t function_id(const struct Code *c, int64_t i)
{
    return 1 + (int64_t)rng_place(rng_join(c->key, DRAW_ORDER), (uint64_t)i, (uint64_t)c->ids);
}

/* Only what nothing calls may be drawn anew. */
static struct Function function_at(const struct Code *c, int64_t i, int again)
{
    if (i < c->rows * c->levels) again = 0;
    struct Rng r = rng_stream(rng_join(c->key, DRAW_UNIT), rng_join((uint64_t)i, (uint64_t)again));
    struct Function f = {.id = function_id(c, i), .callee = -1};
    f.add = (int)rng_between(&r, ADD_LEAST, ADD_MOST);
    int64_t level = i % c->levels, row = (int64_t)rng_below(&r, (uint64_t)c->rows);
    if (level + 1 < c->levels) f.callee = row * c->levels + level + 1;
    return f;
}

static int function_unit(void *user, int64_t i, int again, struct Str *out)
{
    const struct Code *c = user;
    struct Function f = function_at(c, i, again);
    TRY(str_appendf(out, "def func_%lld(x):\n    return ", (long long)f.id));
    if (f.callee >= 0)
        TRY(str_appendf(out, "func_%lld(x)", (long long)function_id(c, f.callee)));
    else
        TRY(str_append(out, "x", 1));
    if (f.add) TRY(str_appendf(out, " %c %d", f.add < 0 ? '-' : '+', abs(f.add)));
    return str_append(out, "\n\n", 2);
}

/* ==== How many ==== */

/* Tokens of SAMPLE functions whose names are of the size that `rows` rows give. */
static int code_measure(struct Gen *g, const struct Code *c, int64_t *tokens)
{
    struct Str text = {0};
    int status = PC_OK;
    for (int64_t i = 0; i < SAMPLE && status == PC_OK; i++)
        status = function_unit((void *)c, i, 0, &text);
    if (status == PC_OK) status = gen_count(g, text.data, text.len, tokens);
    str_free(&text);
    return status;
}

/* Names get longer as there are more of them, hence the rounds. */
static int code_size(struct Gen *g, struct Code *c, int64_t budget)
{
    int64_t n = budget / 32, tokens;
    for (int round = 0; round < 3; round++) {
        c->rows = n / c->levels > 1 ? n / c->levels : 1;
        c->ids = 2 * c->rows * c->levels;
        if (c->ids < 2 * SAMPLE) c->ids = 2 * SAMPLE;
        TRY(code_measure(g, c, &tokens));
        n = budget * SAMPLE / tokens * 49 / 50 - UNCALLED;
    }
    return PC_OK;
}

/* ==== Writing ==== */

struct Named {
    int64_t id, at;
};

static int compare_named(const void *a, const void *b)
{
    int64_t x = ((const struct Named *)a)->id, y = ((const struct Named *)b)->id;
    return (x > y) - (x < y);
}

/* Calls from a function of the first level, noting each one's place in the context. */
static int code_ask(struct Gen *g, const struct Code *c, const struct Named *sorted, int64_t n)
{
    struct Rng r = gen_rng(g, DRAW_PICK);
    int64_t start = (int64_t)rng_below(&r, (uint64_t)c->rows) * c->levels;
    int64_t x = rng_between(&r, -X_MOST, X_MOST), value = x;
    TRY(str_appendf(&g->out->input,
                    "Please give me the exact number of the return value of func_%lld(%lld). Your "
                    "response should end with the sentence 'The return value is:'.",
                    (long long)function_id(c, start), (long long)x));
    TRY(gen_places(g, c->levels));
    for (int64_t i = start; i >= 0;) {
        struct Function f = function_at(c, i, 0);
        struct Named key = {.id = f.id};
        const struct Named *found = bsearch(&key, sorted, (size_t)n, sizeof *sorted, compare_named);
        if (!found) return err_set(PC_EINTERNAL, "func_%lld is missing", (long long)f.id);
        gen_place(g, (size_t)found->at);
        value += f.add;
        i = f.callee;
    }
    char answer[24];
    snprintf(answer, sizeof answer, "%lld", (long long)value);
    return gen_answer(g, answer, strlen(answer));
}

static int code_write(struct Gen *g, const struct Code *c, const struct Units *u)
{
    struct Named *sorted = mem_alloc((size_t)u->n, sizeof *sorted);
    if (!sorted) return PC_ENOMEM;
    for (int64_t i = 0; i < u->n; i++) sorted[i] = (struct Named){function_id(c, i), i};
    qsort(sorted, (size_t)u->n, sizeof *sorted, compare_named);
    struct Str *context = &g->out->context;
    int status = str_reserve(context, sizeof CODE_BEGIN + u->text.len);
    if (status == PC_OK) status = str_append(context, CODE_BEGIN, sizeof CODE_BEGIN - 1);
    for (int64_t i = 0; i < u->n && status == PC_OK; i++) {
        struct Slice text = units_at(u, sorted[i].at);
        sorted[i].at = (int64_t)context->len;
        status = str_append(context, text.data, text.len);
    }
    if (status == PC_OK) status = code_ask(g, c, sorted, u->n);
    mem_free(sorted);
    return status;
}

static int code_build(struct Gen *g, struct Code *c, int64_t budget, int64_t fixed)
{
    struct Units u = {.unit = function_unit,
                      .user = c,
                      .before = "\n\n",
                      .least = c->rows * c->levels,
                      .most = c->ids,
                      .redraw = GEN_REDRAW};
    int status = units_fill(g, &u, budget, fixed);
    g->estimate = u.tokens + fixed;
    if (status == PC_OK) status = code_write(g, c, &u);
    units_free(&u);
    return status;
}

int gen_code_run(struct Gen *g, int64_t budget)
{
    struct Code c = {.key = g->key};
    int64_t fixed;
    TRY(gen_knob("number of hops", g->spec->n_hops, 2 + 2 * (g->spec->index % 5), 100, &c.levels));
    TRY(gen_count(g, CODE_BEGIN, sizeof CODE_BEGIN - 1, &fixed));
    TRY(code_size(g, &c, budget));
    int status = code_build(g, &c, budget, fixed);
    while (status == PC_ERANGE && g->least && c.rows > 1) { /* the estimate was too bold */
        c.rows -= 1 + c.rows / 50;
        g->least = 0;
        status = code_build(g, &c, budget, fixed);
    }
    return status;
}

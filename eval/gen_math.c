/* gen_math.c - lists of numbers: math_find (extremes and the median), math_calc (a running sum). */
#include "gen_task.h"

#include <stdio.h>
#include <string.h>

enum { LARGEST_NUMBER = 99, N_VALUES = LARGEST_NUMBER + 1 };

/* ==== math_find ==== */

enum { N_FINDS = 7, FIND_MEDIAN = 6, LEAST_NUMBERS = 32 };
static const char *const FINDS[N_FINDS] = {
    "largest",         "second largest", "third largest", "smallest",
    "second smallest", "third smallest", "median",
};

struct NumberList {
    uint64_t key;
    int lo, hi;
};

/* As published, one end of the range is drawn, so that the answer is not always the same. */
static void range_draw(const struct Gen *g, int find, struct NumberList *list)
{
    struct Rng r = gen_rng(g, DRAW_KIND);
    bool raise_lo = find == FIND_MEDIAN ? rng_below(&r, 2) == 0 : find >= 3;
    int lo = (int)rng_between(&r, 0, LARGEST_NUMBER / 5);
    int hi = (int)rng_between(&r, LARGEST_NUMBER * 4 / 5, LARGEST_NUMBER);
    *list = (struct NumberList){g->key, raise_lo ? lo : 0, raise_lo ? LARGEST_NUMBER : hi};
}

static int number_unit(void *user, int64_t i, int again, struct Str *out)
{
    const struct NumberList *list = user;
    struct Rng r =
        rng_stream(rng_join(list->key, DRAW_UNIT), rng_join((uint64_t)i, (uint64_t)again));
    return str_appendf(out, " %d,", (int)rng_between(&r, list->lo, list->hi));
}

static int unit_number(const struct Units *u, int64_t i)
{
    const char *digits = units_at(u, i).data + 1;
    int number = 0;
    for (; *digits != ','; digits++) number = 10 * number + (*digits - '0');
    return number;
}

/* The value of which `rank` smaller (or, from the top, larger) different ones stand in the list. */
static int ranked(const int64_t counts[N_VALUES], int rank, bool top)
{
    for (int i = 0; i < N_VALUES; i++) {
        int value = top ? LARGEST_NUMBER - i : i;
        if (counts[value] && rank-- == 0) return value;
    }
    return -1;
}

static int at_place(const int64_t counts[N_VALUES], int64_t place)
{
    int value = 0;
    for (; place >= counts[value]; value++) place -= counts[value];
    return value;
}

/* An even count's median is written with a decimal, as the published data has it. */
static int find_answer(const int64_t counts[N_VALUES], int64_t n, int find, char text[32])
{
    if (find == FIND_MEDIAN && n % 2 == 0) {
        int twice = at_place(counts, n / 2 - 1) + at_place(counts, n / 2);
        snprintf(text, 32, "%d.%d", twice / 2, twice % 2 ? 5 : 0);
        return twice % 2 ? -1 : twice / 2;
    }
    int value = find == FIND_MEDIAN ? at_place(counts, n / 2) : ranked(counts, find % 3, find < 3);
    snprintf(text, 32, "%d", value);
    return value;
}

static int find_write(struct Gen *g, const struct Units *u, int find)
{
    int64_t counts[N_VALUES] = {0};
    char answer[32];
    for (int64_t i = 0; i < u->n; i++) counts[unit_number(u, i)]++;
    int value = find_answer(counts, u->n, find, answer);
    TRY(gen_places(g, 1));
    for (int64_t i = 0; i < u->n && value >= 0 && !g->out->n_answer_at; i++)
        if (unit_number(u, i) == value) gen_place(g, u->at[i] + 1);
    struct Str *context = &g->out->context;
    TRY(str_append(context, u->text.data, u->text.len));
    context->data[0] = '[';
    context->data[context->len - 1] = ']';
    TRY(str_appendf(&g->out->input,
                    "You should answer with only one number, no other words. "
                    "The %s number of the list is: ",
                    FINDS[find]));
    return gen_answer(g, answer, strlen(answer));
}

int gen_math_find(struct Gen *g, int64_t budget)
{
    struct NumberList list;
    int find = g->spec->index % N_FINDS;
    range_draw(g, find, &list);
    struct Units u = {.unit = number_unit,
                      .user = &list,
                      .before = " 1,",
                      .least = LEAST_NUMBERS,
                      .redraw = GEN_REDRAW};
    int status = units_fill(g, &u, budget, 0);
    g->estimate = u.tokens;
    if (status == PC_OK) status = find_write(g, &u, find);
    units_free(&u);
    return status;
}

/* ==== math_calc ==== */

struct Sum {
    uint64_t key;
    int *values; /* [cap] after each unit */
    int64_t cap;
};

static int sum_room(struct Sum *s, int64_t i)
{
    if (i < s->cap) return PC_OK;
    int64_t cap = s->cap ? 2 * s->cap : 1024;
    int *values = s->values ? mem_grow(s->values, (size_t)s->cap, (size_t)cap, sizeof *values)
                            : mem_alloc((size_t)cap, sizeof *values);
    if (!values) return PC_ENOMEM;
    s->values = values;
    s->cap = cap;
    return PC_OK;
}

/* The running value stays in 0 .. 99: a number that would lead out is drawn again from those that do
 * not. */
static int sum_unit(void *user, int64_t i, int again, struct Str *out)
{
    struct Sum *s = user;
    struct Rng r = rng_stream(rng_join(s->key, DRAW_UNIT), rng_join((uint64_t)i, (uint64_t)again));
    TRY(sum_room(s, i));
    int number = (int)rng_between(&r, 0, LARGEST_NUMBER);
    if (i == 0) {
        s->values[0] = number;
        return str_appendf(out, " %d", number);
    }
    int value = s->values[i - 1];
    bool plus = rng_below(&r, 2) == 0;
    int most = plus ? LARGEST_NUMBER - value : value;
    if (number > most) number = (int)rng_between(&r, 0, most);
    s->values[i] = plus ? value + number : value - number;
    return str_appendf(out, " %c %d", plus ? '+' : '-', number);
}

/* The values after each operation; the first number is not one of them. */
static int sum_answers(struct Gen *g, const struct Sum *s, int64_t n)
{
    char digits[16];
    g->out->answers = mem_alloc((size_t)n, sizeof *g->out->answers);
    if (!g->out->answers) return PC_ENOMEM;
    for (int64_t i = 1; i < n; i++) {
        int len = snprintf(digits, sizeof digits, "%d", s->values[i]);
        TRY(str_append(&g->out->answers[g->out->n_answers], digits, (size_t)len));
        g->out->n_answers++;
    }
    return PC_OK;
}

int gen_math_calc(struct Gen *g, int64_t budget)
{
    struct Sum sum = {.key = g->key};
    /* Only the last number may change: the values behind another would no longer be right. */
    struct Units u = {.unit = sum_unit, .user = &sum, .before = " 1", .least = 3, .redraw = 1};
    int status = units_fill(g, &u, budget, 0);
    g->estimate = u.tokens;
    if (status == PC_OK) status = str_append(&g->out->context, u.text.data + 1, u.text.len - 1);
    if (status == PC_OK) status = sum_answers(g, &sum, u.n);
    units_free(&u);
    mem_free(sum.values);
    return status;
}

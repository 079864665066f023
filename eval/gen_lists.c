/* gen_lists.c - lists in which one entry is asked for: kv_retrieval, niah_multikey_2, niah_multikey_3. */
#include "gen_task.h"

#include <string.h>

/* ==== kv_retrieval: a JSON object ==== */

static struct Rng unit_rng(uint64_t key, int64_t i, int again)
{
    return rng_stream(rng_join(key, DRAW_UNIT), rng_join((uint64_t)i, (uint64_t)again));
}

static int pair_unit(void *user, int64_t i, int again, struct Str *out)
{
    const struct Gen *g = user;
    struct Rng r = unit_rng(g->key, i, again);
    char key[KEY_MAX], value[KEY_MAX];
    gen_draw(&r, KIND_UUIDS, key);
    gen_draw(&r, KIND_UUIDS, value);
    return str_appendf(out, " \"%s\": \"%s\",", key, value);
}

static const char KV_BEGIN[] = "JSON data:\n{", KV_BEFORE[] = "\",";
enum { UUID_LEN = 36, KEY_AT = 2, VALUE_AT = KEY_AT + UUID_LEN + 4 }; /* in a pair */

/* The pairs, the first without its space, and the last with a brace in place of its comma. */
static int kv_write(struct Gen *g, const struct Units *u)
{
    struct Str *context = &g->out->context;
    int64_t asked = (int64_t)(gen_depth(g) * (double)(u->n - 1));
    const char *pair = units_at(u, asked).data;
    size_t begin = sizeof KV_BEGIN - 1;
    TRY(str_reserve(context, begin + u->text.len));
    TRY(str_append(context, KV_BEGIN, begin));
    TRY(str_append(context, u->text.data + 1, u->text.len - 2));
    TRY(str_append(context, "}", 1));
    TRY(str_appendf(&g->out->input,
                    "\nKey: \"%.*s\"\nThe value associated with the specified key is: ", UUID_LEN,
                    pair + KEY_AT));
    TRY(gen_places(g, 1));
    gen_place(g, begin - 1 + u->at[asked] + VALUE_AT);
    return gen_answer(g, pair + VALUE_AT, UUID_LEN);
}

int gen_kv(struct Gen *g, int64_t budget)
{
    int64_t fixed;
    struct Units u = {
        .unit = pair_unit, .user = g, .before = KV_BEFORE, .least = 2, .redraw = GEN_REDRAW};
    TRY(gen_count(g, KV_BEGIN, sizeof KV_BEGIN - 1, &fixed));
    int status = units_fill(g, &u, budget, fixed);
    g->estimate = u.tokens + fixed;
    if (status == PC_OK) status = kv_write(g, &u);
    units_free(&u);
    return status;
}

/* ==== niah_multikey_2, _3: a needle among lines of its kind ==== */

struct Lines {
    uint64_t key;
    enum GenKind key_kind, value_kind;
    const char *what;
    char asked[KEY_MAX], value[KEY_MAX];
};

static int line_write(const struct Lines *l, const char *key, const char *value, struct Str *out)
{
    return str_appendf(out, "One of the special magic %s for %s is: %s.\n", l->what, key, value);
}

/* A line of another key: the asked one must stand only once. */
static int line_unit(void *user, int64_t i, int again, struct Str *out)
{
    const struct Lines *l = user;
    struct Rng r = unit_rng(l->key, i, again);
    char key[KEY_MAX], value[KEY_MAX];
    do {
        gen_draw(&r, l->key_kind, key);
    } while (strcmp(key, l->asked) == 0);
    gen_draw(&r, l->value_kind, value);
    return line_write(l, key, value, out);
}

static int lines_write(struct Gen *g, const struct Lines *l, const struct Units *u,
                       const struct Str *needle)
{
    struct Str *context = &g->out->context;
    int64_t before = (int64_t)(gen_depth(g) * (double)u->n);
    TRY(str_reserve(context, u->text.len + needle->len));
    TRY(str_append(context, u->text.data, u->at[before]));
    TRY(gen_places(g, 1));
    gen_place(g, context->len + needle->len - 2 - strlen(l->value));
    TRY(str_append(context, needle->data, needle->len));
    TRY(str_append(context, u->text.data + u->at[before], u->text.len - u->at[before]));
    context->data[--context->len] = '\0'; /* lines are joined, not ended, by line feeds */
    TRY(str_append(&g->out->input, l->asked, strlen(l->asked)));
    return gen_answer(g, l->value, strlen(l->value));
}

static int lines_build(struct Gen *g, struct Lines *l, struct Str *needle, int64_t budget)
{
    static const char BEFORE[] = "The end.\n";
    int64_t fixed;
    TRY(line_write(l, l->asked, l->value, needle));
    TRY(gen_count_after(g, BEFORE, needle, &fixed));
    struct Units u = {
        .unit = line_unit, .user = l, .before = BEFORE, .least = 1, .redraw = GEN_REDRAW};
    int status = units_fill(g, &u, budget, fixed);
    g->estimate = u.tokens + fixed;
    if (status == PC_OK) status = lines_write(g, l, &u, needle);
    units_free(&u);
    return status;
}

int gen_niah_lines(struct Gen *g, int64_t budget)
{
    bool uuids = strcmp(g->how, "uuids") == 0;
    struct Lines l = {.key = g->key,
                      .key_kind = uuids ? KIND_UUIDS : KIND_WORDS,
                      .value_kind = uuids ? KIND_UUIDS : KIND_NUMBERS,
                      .what = g->how};
    struct Rng r = gen_rng(g, DRAW_NEEDLES);
    gen_draw(&r, l.key_kind, l.asked);
    gen_draw(&r, l.value_kind, l.value);
    struct Str needle = {0};
    int status = lines_build(g, &l, &needle, budget);
    str_free(&needle);
    return status;
}

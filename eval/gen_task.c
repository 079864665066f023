/* gen_task.c - the table of tasks, and the loop that brings a sample to its length.
 *
 * A task counts its tokens piece by piece. Pieces meet, and tokens may join or part where they do; so the
 * whole text is counted once, and the task is run again with a budget that makes up for the difference.
 * A short trial run finds most of it at no cost.
 */
#include "gen_task.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ==== Random numbers and small helpers ==== */

struct Rng gen_rng(const struct Gen *g, uint64_t stream)
{
    return rng_stream(g->key, stream);
}

enum { DEPTHS = 40 }; /* RULER's grid: 0, 1/39, … 1 */

double gen_depth(struct Gen *g)
{
    double depth = g->spec->depth;
    if (depth < 0) {
        struct Rng r = gen_rng(g, DRAW_DEPTH);
        depth = (double)rng_below(&r, DEPTHS) / (DEPTHS - 1);
    }
    g->out->depth = depth;
    return depth;
}

int gen_knob(const char *name, int given, int usual, int most, int *out)
{
    *out = given ? given : usual;
    if (*out >= 1 && *out <= most) return PC_OK;
    return err_set(PC_ECONFIG, "%s is %d: give 1 to %d", name, *out, most);
}

int gen_too_small(struct Gen *g, int64_t least)
{
    g->least = least;
    return PC_ERANGE;
}

int gen_count(struct Gen *g, const char *text, size_t len, int64_t *n)
{
    g->ids.n = 0;
    TRY(tokenizer_encode(g->tok, text, len, false, &g->ids));
    *n = g->ids.n;
    return PC_OK;
}

int gen_count_after(struct Gen *g, const char *before, const struct Str *text, int64_t *n)
{
    struct Str joined = {0};
    int64_t n_before = 0, n_joined = 0;
    int status = str_append(&joined, before, strlen(before));
    if (status == PC_OK) status = gen_count(g, joined.data, joined.len, &n_before);
    if (status == PC_OK && text->len) status = str_append(&joined, text->data, text->len);
    if (status == PC_OK) status = gen_count(g, joined.data, joined.len, &n_joined);
    str_free(&joined);
    *n = n_joined - n_before;
    return status;
}

int gen_answer(struct Gen *g, const char *text, size_t len)
{
    return texts_push(&g->out->answers, &g->out->n_answers, text, len);
}

int gen_places(struct Gen *g, int n)
{
    g->out->answer_at = mem_alloc((size_t)n, sizeof *g->out->answer_at);
    return g->out->answer_at ? PC_OK : PC_ENOMEM;
}

void gen_place(struct Gen *g, size_t at)
{
    g->out->answer_at[g->out->n_answer_at++] = at;
}

/* ==== Keys and values ==== */

static void draw_uuid(struct Rng *r, char out[KEY_MAX])
{
    uint64_t high = rng_next(r), low = rng_next(r);
    high = (high & ~0xF000ull) | 0x4000;             /* version 4 */
    low = (low & ~(3ull << 62)) | (uint64_t)1 << 63; /* variant 10 */
    snprintf(out, KEY_MAX, "%08llx-%04llx-%04llx-%04llx-%012llx", (unsigned long long)(high >> 32),
             (unsigned long long)(high >> 16 & 0xFFFF), (unsigned long long)(high & 0xFFFF),
             (unsigned long long)(low >> 48), (unsigned long long)(low & 0xFFFFFFFFFFFF));
}

void gen_draw(struct Rng *r, enum GenKind kind, char out[KEY_MAX])
{
    if (kind == KIND_UUIDS) {
        draw_uuid(r, out);
    } else if (kind == KIND_NUMBERS) {
        snprintf(out, KEY_MAX, "%lld", (long long)rng_between(r, 1000000, 9999999));
    } else {
        const char *adjective = ADJECTIVES[rng_below(r, (uint64_t)words_adjectives())];
        snprintf(out, KEY_MAX, "%s-%s", adjective, NOUNS[rng_below(r, (uint64_t)words_nouns())]);
    }
}

int gen_enumerate(const char (*keys)[KEY_MAX], int n, struct Str *out)
{
    for (int i = 0; i < n; i++) {
        const char *join = i == 0 ? "" : i + 1 < n ? ", " : ", and ";
        TRY(str_appendf(out, "%s%s", join, keys[i]));
    }
    return PC_OK;
}

/* ==== Tasks ==== */

static const struct GenTask *task_find(const char *name)
{
    for (const struct GenTask *t = GEN_TASKS; t->name; t++)
        if (strcmp(t->name, name) == 0) return t;
    return NULL;
}

static int task_unknown(const char *name)
{
    const char *best = NULL;
    int least = INT_MAX;
    for (const struct GenTask *t = GEN_TASKS; t->name; t++) {
        int distance = word_distance(name, t->name);
        if (distance >= least) continue;
        least = distance;
        best = t->name;
    }
    return err_set(PC_ECONFIG, "unknown task '%.64s': did you mean '%s'?", name, best);
}

const char *generate_task(int n, const char **help)
{
    if (help) *help = GEN_TASKS[n].help;
    return GEN_TASKS[n].name;
}

int generate_needs(const char *task, bool *haystack, bool *qa)
{
    const struct GenTask *t = task_find(task);
    if (!t) return task_unknown(task);
    *haystack = t->haystack;
    *qa = t->qa;
    return PC_OK;
}

/* ==== Bringing a sample to its length ==== */

enum { ROUNDS = 6, TRIAL_TOKENS = 4096 };

/* Builds anew within `budget`, and counts what came out. */
static int build_once(struct Gen *g, const struct GenTask *task, int64_t budget, int64_t *count)
{
    sample_free(g->out);
    g->out->depth = -1;
    g->least = g->estimate = 0;
    TRY(task->build(g, budget));
    return gen_count(g, g->out->context.data, g->out->context.len, count);
}

static int too_small(const struct GenSpec *spec, int64_t least)
{
    return err_set(PC_ERANGE, "%s cannot be made in %lld tokens: it needs at least %lld",
                   spec->task, (long long)spec->tokens, (long long)least);
}

/* How many tokens more a whole text has than its task counted, from a short one. */
static int trial_run(struct Gen *g, const struct GenTask *task, int64_t *off)
{
    int64_t count;
    *off = 0;
    if (g->spec->tokens <= TRIAL_TOKENS) return PC_OK;
    int status = build_once(g, task, TRIAL_TOKENS, &count);
    if (status == PC_ERANGE && g->least) return PC_OK; /* a long task: do without */
    TRY(status);
    *off = count - g->estimate;
    return PC_OK;
}

static bool tried(const int64_t *offs, int n, int64_t off)
{
    for (int i = 0; i < n; i++)
        if (offs[i] == off) return true;
    return false;
}

/* Ends with the sample built whose count is the largest seen that is not above the wanted one. */
static int fit(struct Gen *g, const struct GenTask *task)
{
    int64_t wanted = g->spec->tokens, off, count = 0, best = -1, best_off = 0, offs[ROUNDS];
    int n = 0;
    TRY(trial_run(g, task, &off));
    while (n < ROUNDS && count != wanted && !tried(offs, n, off)) {
        int status = build_once(g, task, wanted - off, &count);
        if (status == PC_ERANGE && g->least && best >= 0) break;
        if (status == PC_ERANGE && g->least) return too_small(g->spec, g->least + off);
        TRY(status);
        offs[n++] = off;
        if (count <= wanted && count > best) {
            best = count;
            best_off = off;
        }
        off = count - g->estimate;
    }
    if (best < 0)
        return err_set(PC_EINTERNAL, "%s of %lld tokens: no length that fits", g->spec->task,
                       (long long)wanted);
    return offs[n - 1] == best_off ? PC_OK : build_once(g, task, wanted - best_off, &count);
}

/* The length is left out of the key: samples of several lengths hide the same needles. */
static uint64_t spec_key(const struct GenSpec *s)
{
    double depth = s->depth < 0 ? -1 : s->depth;
    uint64_t key = rng_join(hash64(s->task, strlen(s->task), 0), s->seed);
    key = rng_join(key, (uint64_t)(int64_t)lround(depth * 1e6));
    return rng_join(key, (uint64_t)s->index);
}

static int spec_check(const struct GenSpec *s, const struct GenTask *task)
{
    if (s->tokens < 1 || s->tokens > INT_MAX / 8)
        return err_set(PC_ERANGE, "%lld tokens: give 1 to %d", (long long)s->tokens, INT_MAX / 8);
    if (!(s->depth <= 1)) return err_set(PC_ECONFIG, "depth %g: give 0 to 1", s->depth);
    if (s->index < 0) return err_set(PC_ECONFIG, "sample %d: give 0 or more", s->index);
    if (task->haystack && (!s->haystack || !s->haystack->len))
        return err_set(PC_ECONFIG, "%s needs a text to hide in; give one (`make book` fetches one)",
                       s->task);
    if (task->qa && (!s->qa || !s->qa->len))
        return err_set(PC_ECONFIG, "%s needs a question set; give a file of %s", s->task,
                       strcmp(s->task, "qa_2") == 0 ? "HotpotQA (hotpot_dev_distractor)"
                                                    : "SQuAD 2 (dev)");
    return PC_OK;
}

static int sample_name(struct Gen *g)
{
    const struct GenSpec *s = g->spec;
    TRY(str_appendf(&g->out->id, "%s-%lld-", s->task, (long long)s->tokens));
    if (g->out->depth >= 0) TRY(str_appendf(&g->out->id, "%.2f-", g->out->depth));
    return str_appendf(&g->out->id, "%d", s->index);
}

int generate(const struct GenSpec *spec, const struct Tokenizer *tok, struct Sample *out)
{
    const struct GenTask *task = task_find(spec->task);
    *out = (struct Sample){.depth = -1};
    if (!task) return task_unknown(spec->task);
    TRY(spec_check(spec, task));
    struct Gen g = {.spec = spec, .tok = tok, .how = task->how, .key = spec_key(spec), .out = out};
    int status = fit(&g, task);
    out->target_tokens = (int)spec->tokens;
    if (status == PC_OK) status = sample_name(&g);
    tokens_free(&g.ids);
    if (status < 0) sample_free(out);
    return status;
}

/* calibrate.c - a study of a model's heads: its options, the scores over all samples, and joint runs. */
#include "calibrate.h"

#include <string.h>

/* ==== Methods ==== */

struct MethodName {
    const char *name;
};

static const struct MethodName METHODS[N_HEAD_METHODS] = {
    [HEADS_ABLATE] = {"ablate"}, [HEADS_ALONE] = {"alone"},   [HEADS_DEVIATE] = {"deviate"},
    [HEADS_MASS] = {"mass"},     [HEADS_COPY] = {"copy"},     [HEADS_ECHO] = {"echo"},
    [HEADS_ROPE] = {"rope"},     [HEADS_RANDOM] = {"random"},
};

const char *head_method_name(enum HeadMethod m)
{
    return METHODS[m].name;
}

int head_method_by_name(const char *name, enum HeadMethod *out)
{
    for (int i = 0; i < N_HEAD_METHODS; i++)
        if (strcmp(METHODS[i].name, name) == 0) {
            *out = (enum HeadMethod)i;
            return PC_OK;
        }
    return err_set(PC_ECONFIG,
                   "flag '--score': '%.32s' is not known; did you mean '%s'? Accepted: ablate, "
                   "alone, deviate, mass, copy, echo, rope, random",
                   name, word_nearest(name, METHODS, N_HEAD_METHODS, sizeof *METHODS));
}

/* ==== Open and close ==== */

enum { LEN_MIN = 384, TEXT_MIN = 2048 };

/* What the parallel method would keep of a long text: chunks, and tokens of one. */
static int plan_parallel(struct Study *st)
{
    struct Settings set = st->e->settings;
    set.method = METHOD_PARALLELCOMP;
    TRY(plan_defaults(&set, st->e->model.cfg.train_len, INT32_MAX));
    st->chunks = set.keep == KEEP_ALL ? 2 : set.keep;
    st->chunk = set.chunk;
    return PC_OK;
}

static int window_of(const struct Study *st)
{
    const struct Settings *set = &st->e->settings;
    return set->window == AUTO ? st->e->model.cfg.train_len : set->window;
}

/* plain: short, middle and long, as far as the window goes. parallel: half of what is kept, and all of it. */
static void default_lens(struct Study *st)
{
    static const int lens[] = {1024, 4096, 7168};
    struct StudyOptions *o = &st->opt;
    int window = window_of(st), all = st->chunks * st->chunk;
    if (o->parallel) {
        o->lens[o->n_lens++] = all / 2;
        o->lens[o->n_lens++] = all;
        return;
    }
    for (int i = 0; i < 3; i++)
        if (lens[i] < window) o->lens[o->n_lens++] = lens[i];
    if (o->n_lens == 0) o->lens[o->n_lens++] = window - 1;
}

static int check_lens(const struct Study *st)
{
    const struct StudyOptions *o = &st->opt;
    int window = window_of(st);
    for (int i = 0; i < o->n_lens; i++) {
        if (o->lens[i] < LEN_MIN)
            return err_set(PC_ERANGE,
                           "samples of %d tokens are too short to tell the long past from the "
                           "recent one; give --len %d or more (the model's window is %d)",
                           o->lens[i], LEN_MIN, window);
        if (!o->parallel && o->lens[i] >= window)
            return err_set(PC_ECONFIG,
                           "samples of %d tokens do not fit the model's window of %d; give a --len "
                           "below it, or --method parallelcomp for chunks",
                           o->lens[i], window);
    }
    return PC_OK;
}

static int check_options(const struct Study *st)
{
    const struct StudyOptions *o = &st->opt;
    int longest = 0;
    TRY(check_lens(st));
    for (int i = 0; i < o->n_lens; i++) longest = o->lens[i] > longest ? o->lens[i] : longest;
    if (o->sink + o->recent >= longest)
        return err_set(
            PC_ECONFIG,
            "a streaming head that keeps %d and %d tokens forgets nothing of a sample of "
            "%d; give a smaller --sink or --recent, or a longer --len",
            o->sink, o->recent, longest);
    if (st->text.n < TEXT_MIN)
        return err_set(PC_ERANGE,
                       "the text has %d tokens, too few to hide passkeys in; give %d or more with "
                       "-f FILE, or no file for the built-in one",
                       st->text.n, TEXT_MIN);
    return PC_OK;
}

int study_open(struct Study *st, struct Engine *e, const struct StudyOptions *opt, const char *text,
               size_t len)
{
    const struct ModelConfig *m = &e->model.cfg;
    *st = (struct Study){.e = e, .opt = *opt, .shape = {m->n_layers, m->n_heads, m->n_kv_heads}};
    if (!st->opt.held_out) st->opt.held_out = (st->opt.samples + 1) / 2;
    if (opt->parallel) TRY(plan_parallel(st));
    if (st->opt.n_lens == 0) default_lens(st);
    int samples = opt->samples > st->opt.held_out ? opt->samples : st->opt.held_out;
    st->own = mem_alloc((size_t)samples * 2 * PASSKEYS_MAX, sizeof *st->own * (1 + OWN_TOKENS));
    if (!st->own) return PC_ENOMEM;
    TRY(tokenizer_encode(e->tok, text, len, false, &st->text));
    return check_options(st);
}

void study_close(struct Study *st)
{
    study_leave(st);
    tokens_free(&st->text);
    mem_free(st->own);
    *st = (struct Study){0};
}

/* ==== Scores ==== */

/* Sums over samples, which become the map's scores. */
struct Sums {
    double *kv, *q; /* [n_layers * n_kv_heads], [n_layers * n_heads] */
    struct RopeMeans rope;
};

static int sums_open(const struct Study *st, struct Sums *s)
{
    size_t layers = (size_t)st->shape.n_layers, q = layers * (size_t)st->shape.n_heads,
           kv = layers * (size_t)st->shape.n_kv_heads, dim = (size_t)st->e->model.cfg.head_dim;
    *s = (struct Sums){0};
    s->kv = mem_alloc(kv, sizeof *s->kv);
    s->q = mem_alloc(q, sizeof *s->q);
    s->rope.q = mem_alloc(q * dim, sizeof *s->rope.q);
    s->rope.k = mem_alloc(kv * dim, sizeof *s->rope.k);
    return s->kv && s->q && s->rope.q && s->rope.k ? PC_OK : PC_ENOMEM;
}

static void sums_close(struct Sums *s)
{
    mem_free(s->kv);
    mem_free(s->q);
    mem_free(s->rope.q);
    mem_free(s->rope.k);
}

static bool runs_heads(enum HeadMethod m)
{
    return m < HEADS_MASS;
}

static int score_sample(struct Study *st, enum HeadMethod method, int at, struct Sums *s)
{
    struct SamplePlace place = {SAMPLE_PASSKEYS, false, at};
    if (method == HEADS_ECHO) place.kind = SAMPLE_ECHO;
    if (method == HEADS_ROPE) place.kind = SAMPLE_TEXT;
    int status = study_enter(st, &place);
    if (status == PC_OK && runs_heads(method)) status = ablate_sample(st, method, at, s->kv);
    if (status == PC_OK && method == HEADS_ROPE) status = rope_sample(st, &s->rope);
    if (status == PC_OK && !runs_heads(method) && method != HEADS_ROPE)
        status = attend_sample(st, method, s->q);
    study_leave(st);
    study_progress(st, head_method_name(method), (at + 1.0) / st->opt.samples);
    return status;
}

/* Scores of runs, divided by the largest. */
static double set_relative(const double *sum, int n, float *scores)
{
    double most = 0;
    for (int i = 0; i < n; i++) most = sum[i] > most ? sum[i] : most;
    for (int i = 0; i < n; i++) scores[i] = most > 0 ? (float)(sum[i] / most) : 0;
    return most;
}

/* A mean over a group, as kvpress takes it. */
static void mean_of_groups(struct HeadMap *map)
{
    int n = headmap_heads(map), group = map->shape.n_heads / map->shape.n_kv_heads;
    for (int head = 0; head < n; head++) {
        float sum = 0;
        for (int i = 0; i < group; i++) sum += map->q_scores[(size_t)head * group + i];
        map->scores[head] = sum / (float)group;
    }
}

static void set_scores(const struct Study *st, enum HeadMethod method, struct Sums *s,
                       struct HeadMap *map, double *unit)
{
    int n = headmap_heads(map), n_q = st->shape.n_layers * st->shape.n_heads;
    *unit = 1;
    if (runs_heads(method)) {
        *unit = set_relative(s->kv, n, map->scores) / st->opt.samples;
    } else if (method == HEADS_ROPE) {
        rope_scores(st, &s->rope, map->q_scores);
        mean_of_groups(map);
    } else {
        for (int i = 0; i < n_q; i++) {
            double mean = s->q[i] / st->opt.samples;
            map->q_scores[i] = mean < 1 ? (float)mean : 1;
        }
        headmap_from_q(map);
    }
}

static int run_samples(struct Study *st, enum HeadMethod method, struct HeadMap *map, double *unit)
{
    struct Sums s;
    int status = sums_open(st, &s);
    for (int i = 0; i < st->opt.samples && status == PC_OK; i++)
        status = score_sample(st, method, i, &s);
    if (status == PC_OK) set_scores(st, method, &s, map, unit);
    sums_close(&s);
    return status;
}

int study_scores(struct Study *st, enum HeadMethod method, struct HeadMap *map, double *unit)
{
    *unit = 1;
    int status;
    if (method == HEADS_RANDOM) {
        TRY(headmap_random(&st->shape, st->opt.seed, map));
    } else {
        TRY(headmap_open(&st->shape, !runs_heads(method), map));
        status = run_samples(st, method == HEADS_ABLATE ? HEADS_ALONE : method, map, unit);
        if (status == PC_OK && method == HEADS_ABLATE) status = study_descend(st, map, unit);
        if (status < 0) {
            headmap_close(map);
            return status;
        }
    }
    map->sink = st->opt.sink;
    map->recent = st->opt.recent;
    map->seed = st->opt.seed;
    map->model_hash = st->e->model.hash;
    memset(map->method, 0, sizeof map->method);
    memcpy(map->method, head_method_name(method), strlen(head_method_name(method)));
    return PC_OK;
}

/* ==== Joint runs ==== */

/* Adds the judged tail's means. */
static void add_joint(const struct Reading *r, struct Joint *j, int n_samples)
{
    const struct StudySample *s = &r->sample;
    double kl = 0, nll = 0;
    int exact = 0, right = 0;
    for (int i = 0; i < s->n_rows; i++) {
        kl += r->kl[i];
        nll += r->nll[i];
        right += r->hit[i];
    }
    for (int i = 0; i < s->n_rows;) {
        bool all = true;
        int ask = s->ask[i];
        for (; i < s->n_rows && s->ask[i] == ask; i++) all = all && r->hit[i];
        exact += all;
    }
    j->kl += kl / s->n_rows / n_samples;
    j->nll += nll / s->n_rows / n_samples;
    j->right += (double)right / s->n_rows / n_samples;
    j->exact += (double)exact / s->n_asks / n_samples;
}

static int joint_sample(struct Study *st, const struct SamplePlace *place, int first, int n_samples,
                        const uint8_t *keep, int n_choices, struct Joint *out, struct Joint *full)
{
    size_t heads = (size_t)st->shape.n_layers * (size_t)st->shape.n_kv_heads;
    TRY(study_enter(st, place));
    add_joint(&st->reading, full, n_samples);
    for (int c = 0; c < n_choices; c++) {
        TRY(tail_confined(st, keep + (size_t)c * heads));
        add_joint(&st->reading, &out[c], n_samples);
        study_progress(st, place->held_out ? "held-out samples" : "choices",
                       (place->index - first + (c + 1.0) / n_choices) / n_samples);
    }
    return PC_OK;
}

int study_joint(struct Study *st, const struct SamplePlace *set, int n_samples, const uint8_t *keep,
                int n_choices, struct Joint *out, struct Joint *full)
{
    int status = PC_OK;
    memset(out, 0, sizeof *out * (size_t)n_choices);
    *full = (struct Joint){0};
    for (int i = 0; i < n_samples && status == PC_OK; i++) {
        struct SamplePlace place = {set->kind, set->held_out, set->index + i};
        status = joint_sample(st, &place, set->index, n_samples, keep, n_choices, out, full);
        study_leave(st);
    }
    return status;
}

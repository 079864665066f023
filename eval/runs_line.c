/* runs_line.c - one line of JSON to one RunSample. Whatever is not there stays unknown. */
#include "runs_line.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ==== JSON ==== */

/* True when brackets nest deeper than allowed; those in strings do not count. */
static bool too_deep(const char *line, size_t len)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = line[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '{' || c == '['))
            if (++depth > RUNS_DEPTH_MAX) return true;
        if (!in_string && (c == '}' || c == ']')) depth--;
    }
    return false;
}

/* Length of a number that JSON does not have but some writers write; 0 when there is none. */
static size_t odd_number(const char *text, size_t len)
{
    static const char *const words[] = {"NaN", "nan", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        size_t n = strlen(words[i]);
        if (n <= len && memcmp(text, words[i], n) == 0) return n;
    }
    return 0;
}

/* Parses the line; NULL with *bad set to the byte that is not JSON. NaN and the like become an empty text, which
 * is no number either: the row is kept and has no score. */
static int parse(const char *line, size_t len, cJSON **out, size_t *bad)
{
    struct Str copy = {0};
    const char *end = line;
    *out = cJSON_ParseWithLengthOpts(line, len, &end, false);
    for (int tries = 0; !*out && tries < 16; tries++) {
        const char *text = copy.data ? copy.data : line;
        size_t at = end >= text && end <= text + len ? (size_t)(end - text) : len;
        size_t n = odd_number(text + at, len - at);
        if (n == 0) break;
        if (!copy.data && str_append(&copy, line, len) < 0) return PC_ENOMEM;
        memset(copy.data + at, ' ', n);
        copy.data[at] = copy.data[at + 1] = '"';
        *out = cJSON_ParseWithLengthOpts(copy.data, len, &end, false);
    }
    const char *text = copy.data ? copy.data : line;
    size_t at = end >= text && end <= text + len ? (size_t)(end - text) : len;
    while (*out && at < len && strchr(" \t\r", text[at]) && text[at]) at++;
    if (*out && (at < len || !cJSON_IsObject(*out))) {
        cJSON_Delete(*out);
        *out = NULL;
    }
    *bad = at;
    str_free(&copy);
    return PC_OK;
}

static const cJSON *get(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

static double get_number(const cJSON *object, const char *name)
{
    const cJSON *item = get(object, name);
    return cJSON_IsNumber(item) && isfinite(item->valuedouble) ? item->valuedouble : NAN;
}

/* As get_number, for what cannot be negative. */
static double get_amount(const cJSON *object, const char *name)
{
    double value = get_number(object, name);
    return value >= 0 ? value : NAN;
}

static const char *get_text(const cJSON *object, const char *name)
{
    const cJSON *item = get(object, name);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static int put_text(struct RunMethod *method, const char *text, size_t *at)
{
    if (method->texts.len == 0) TRY(str_append(&method->texts, "", 1));
    *at = method->texts.len;
    return str_append(&method->texts, text, strlen(text) + 1);
}

/* ==== Chunks ==== */

static bool is_index(const cJSON *item, double n)
{
    return cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < n &&
           item->valuedouble == floor(item->valuedouble);
}

static bool holds(const cJSON *list, double index)
{
    for (const cJSON *item = list ? list->child : NULL; item; item = item->next)
        if (cJSON_IsNumber(item) && item->valuedouble == index) return true;
    return false;
}

/* 1 + the number of chunks with a lower score (lower is better); NAN when it has none. */
static double rank_of(const cJSON *scores, double index)
{
    const cJSON *mine = cJSON_GetArrayItem(scores, (int)index);
    if (!cJSON_IsNumber(mine) || !isfinite(mine->valuedouble)) return NAN;
    double rank = 1;
    for (const cJSON *item = scores->child; item; item = item->next)
        rank += cJSON_IsNumber(item) && item->valuedouble < mine->valuedouble;
    return rank;
}

enum { ANSWERS_MAX = 4096 }; /* chunks looked at: the lists are walked for each */

static void take_chunks(const cJSON *root, struct RunSample *s)
{
    const cJSON *kept = get(root, "kept"), *answers = get(root, "answer_chunks");
    const cJSON *scores = get(root, "chunk_score");
    s->n_chunks = get_amount(root, "n_chunks");
    if (cJSON_IsArray(kept)) s->n_kept = cJSON_GetArraySize(kept);
    if (!cJSON_IsArray(answers) || !cJSON_IsArray(kept) || !(s->n_chunks > 0)) return;
    bool ranked = cJSON_IsArray(scores);
    double worst = 0;
    for (const cJSON *item = answers->child; item && s->n_answer < ANSWERS_MAX; item = item->next) {
        if (!is_index(item, s->n_chunks)) continue;
        double rank = ranked ? rank_of(scores, item->valuedouble) : NAN;
        if (s->n_answer == 0 || item->valuedouble < s->answer_chunk)
            s->answer_chunk = item->valuedouble;
        s->n_answer++;
        s->n_found += holds(kept, item->valuedouble);
        worst = isnan(rank) || isnan(worst) ? NAN : fmax(worst, rank);
    }
    if (s->n_answer > 0) s->answer_rank = worst;
}

/* ==== KV ==== */

enum { HEADS_MAX = 1 << 16 };

/* The size of a list of equally long lists of numbers; false when it is none. */
static bool heads_shape(const cJSON *layers, struct RunSample *s)
{
    if (!cJSON_IsArray(layers) || !cJSON_IsArray(layers->child)) return false;
    s->n_layers = cJSON_GetArraySize(layers);
    s->n_heads = cJSON_GetArraySize(layers->child);
    bool good = s->n_heads > 0 && (int64_t)s->n_layers * s->n_heads <= HEADS_MAX;
    for (const cJSON *layer = layers->child; layer && good; layer = layer->next) {
        good = cJSON_IsArray(layer) && cJSON_GetArraySize(layer) == s->n_heads;
        for (const cJSON *head = good ? layer->child : NULL; head && good; head = head->next)
            good = cJSON_IsNumber(head) && isfinite(head->valuedouble) && head->valuedouble >= 0;
    }
    if (!good) s->n_layers = s->n_heads = 0;
    return good;
}

static int take_heads(struct RunMethod *method, const cJSON *root, struct RunSample *s)
{
    const cJSON *layers = get(root, "kv_kept_by_head");
    if (!heads_shape(layers, s)) return PC_OK;
    size_t more = (size_t)s->n_layers * (size_t)s->n_heads;
    if (method->n_heads + more > method->cap_heads) {
        size_t cap = 2 * method->cap_heads + more;
        double *grown = mem_grow(method->heads, method->cap_heads, cap, sizeof *grown);
        if (!grown) return PC_ENOMEM;
        method->heads = grown;
        method->cap_heads = cap;
    }
    s->heads = method->n_heads;
    for (const cJSON *layer = layers->child; layer; layer = layer->next)
        for (const cJSON *head = layer->child; head; head = head->next)
            method->heads[method->n_heads++] = head->valuedouble;
    return PC_OK;
}

/* ==== The sample ==== */

/* The file's name without folder, "preds_" and ".jsonl". */
static void task_of_file(const char *file, char *name, size_t room)
{
    const char *slash = strrchr(file, '/');
    const char *base = slash ? slash + 1 : file;
    if (strncmp(base, "preds_", 6) == 0) base += 6;
    size_t len = strlen(base);
    if (len > 6 && strcmp(base + len - 6, ".jsonl") == 0) len -= 6;
    snprintf(name, room, "%.*s", (int)len, base);
}

static int take_task(struct Run *run, const cJSON *root, const char *file, int *task)
{
    char name[256];
    const char *told = get_text(root, "task");
    task_of_file(file, name, sizeof name);
    return run_task(run, told && *told ? told : name, task);
}

/* The id as text, whatever its type; a line without one is known by its place. */
static int take_names(struct RunMethod *method, const cJSON *root, const struct LineAt *at,
                      struct RunSample *s)
{
    char place[320];
    const cJSON *id = get(root, "id");
    const char *text = cJSON_IsString(id) ? id->valuestring : NULL, *key = get_text(root, "key");
    if (cJSON_IsNumber(id)) {
        snprintf(place, sizeof place, "%.17g", id->valuedouble);
        text = place;
    } else if (!text || !*text) {
        snprintf(place, sizeof place, "%.255s:%ld", at->file, at->number);
        text = place;
    }
    TRY(put_text(method, text, &s->id));
    if (!key || !*key) {
        s->key = s->id;
        return PC_OK;
    }
    return put_text(method, key, &s->key);
}

static int take_error(struct RunMethod *method, const cJSON *error, struct RunSample *s)
{
    char text[600];
    const char *code = get_text(error, "code"), *message = get_text(error, "message");
    if (cJSON_IsString(error)) message = error->valuestring;
    snprintf(text, sizeof text, "%.63s%s%.500s", code ? code : "", code && message ? ": " : "",
             message ? message : "");
    /* cut at a whole character */
    text[utf8_invalid_at(text, strlen(text))] = '\0';
    s->state = SAMPLE_FAILED;
    return put_text(method, *text ? text : "no reason told", &s->error);
}

static int take_score(struct Run *run, const cJSON *root, const struct LineAt *at,
                      struct RunSample *s)
{
    const double rounding = 1e-9;
    s->score = get_number(root, "score");
    s->state = isnan(s->score) ? SAMPLE_NO_SCORE : SAMPLE_SCORED;
    if (isnan(s->score)) return PC_OK;
    if (s->score >= -rounding && s->score <= 1 + rounding) {
        s->score = fmin(1, fmax(0, s->score));
        return PC_OK;
    }
    double wrong = s->score;
    s->score = NAN;
    s->state = SAMPLE_NO_SCORE;
    return run_problem(run, at->file, at->number,
                       "score %g is not within 0 to 1; the row counts as one without a score",
                       wrong);
}

static bool blank(const char *text)
{
    return text && text[strspn(text, " \t\r\n")] == '\0';
}

static void take_answer(const cJSON *root, struct RunSample *s)
{
    const cJSON *empty = get(root, "empty");
    const char *pred = get_text(root, "pred"), *stop = get_text(root, "stop");
    if (!pred) pred = get_text(root, "prediction");
    s->empty = cJSON_IsBool(empty) ? cJSON_IsTrue(empty) : blank(pred);
    s->unparsed = cJSON_IsTrue(get(root, "unparsed"));
    s->cut = stop && strcmp(stop, "length") == 0;
}

static void take_numbers(const cJSON *root, struct RunSample *s)
{
    const cJSON *seconds = get(root, "seconds");
    s->truncated = get_amount(root, "truncated");
    s->length = get_amount(root, "length");
    s->n_context = get_amount(root, "n_context");
    s->target_tokens = get_amount(root, "target_tokens");
    s->depth = get_number(root, "depth");
    if (!(s->depth >= 0 && s->depth <= 1)) s->depth = NAN;
    s->kv_in = get_amount(root, "kv_in");
    s->kv_kept = get_amount(root, "kv_kept");
    s->prefill = get_amount(seconds, "prefill");
    s->total = get_amount(seconds, "total");
    s->peak_bytes = get_amount(root, "peak_bytes");
}

static int push(struct RunMethod *method, const struct RunSample *s)
{
    if (method->n_samples == method->cap_samples) {
        int cap = method->cap_samples ? 2 * method->cap_samples : 64;
        struct RunSample *grown =
            mem_grow(method->samples, (size_t)method->cap_samples, (size_t)cap, sizeof *grown);
        if (!grown) return PC_ENOMEM;
        method->samples = grown;
        method->cap_samples = cap;
    }
    method->samples[method->n_samples++] = *s;
    return PC_OK;
}

static int take_sample(struct Run *run, struct RunMethod *method, const struct LineAt *at,
                       const cJSON *root)
{
    struct RunSample s = {.n_chunks = NAN, .n_kept = NAN, .answer_chunk = NAN, .answer_rank = NAN};
    const char *schema = get_text(root, "schema");
    const cJSON *error = get(root, "error");
    if (schema && strcmp(schema, "pcomp.sample.v1") != 0)
        return run_problem(run, at->file, at->number,
                           "schema '%.64s' is not known here (pcomp.sample.v1 is)", schema);
    TRY(take_task(run, root, at->file, &s.task));
    if (s.task < 0)
        return run_problem(run, at->file, at->number, "more than %d tasks in one run",
                           RUNS_TASKS_MAX);
    TRY(take_names(method, root, at, &s));
    take_numbers(root, &s);
    s.score = NAN;
    if (error && !cJSON_IsNull(error)) {
        TRY(take_error(method, error, &s));
        return push(method, &s);
    }
    TRY(take_score(run, root, at, &s));
    take_answer(root, &s);
    take_chunks(root, &s);
    TRY(take_heads(method, root, &s));
    return push(method, &s);
}

int run_take_line(struct Run *run, struct RunMethod *method, const struct LineAt *at,
                  const char *line, size_t len)
{
    cJSON *root = NULL;
    size_t bad = 0;
    if (too_deep(line, len))
        return run_problem(run, at->file, at->number, "nested deeper than %d levels",
                           RUNS_DEPTH_MAX);
    TRY(parse(line, len, &root, &bad));
    int status =
        root ? take_sample(run, method, at, root)
             : run_problem(run, at->file, at->number,
                           at->torn ? "a torn last line (%zu bytes are there); running the same "
                                      "command again finishes it"
                                    : "not a JSON object at byte %zu",
                           at->torn ? len : bad);
    cJSON_Delete(root);
    return status;
}

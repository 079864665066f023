/* attempt.c - one row with one method: the prompt, the official truncation, the run, the score. */
#include "benchmark.h"
#include "prompt.h"
#include "store.h"

#include <string.h>

/* ==== Identity ==== */

static uint64_t hash_text(const struct Str *s, uint64_t seed)
{
    return hash64(s->data ? s->data : "", s->len, seed);
}

static uint64_t hash_texts(const struct Str *list, int n, uint64_t seed)
{
    for (int i = 0; i < n; i++) seed = hash_text(&list[i], seed);
    return hash64(&n, sizeof n, seed);
}

uint64_t sample_key(const struct Sample *s, const struct Task *task, uint64_t settings)
{
    uint64_t key = hash64(task->name, strlen(task->name), settings);
    key = hash_text(&s->id, key);
    key = hash_text(&s->input, hash_text(&s->context, key));
    key = hash_texts(s->answers, s->n_answers, key);
    key = hash_texts(s->all_classes, s->n_classes, key);
    return hash_texts(s->options, s->n_options, key);
}

/* ==== The official baseline's truncation ==== */

static int decode_ids(const struct Tokenizer *t, const int *ids, int n, struct Str *out)
{
    struct Decoder d = {{0}, 0, false};
    for (int i = 0; i < n; i++) TRY(decode_token(t, &d, ids[i], out));
    return decode_flush(&d, out);
}

/* Takes the halves of the prompt apart again: the context is what lies between before and after. */
static int recover_context(struct TaskPrompt *p, const struct Str *whole)
{
    size_t b = p->before.len, a = p->after.len;
    if (whole->len < a + b || memcmp(whole->data, p->before.data, b) != 0 ||
        memcmp(whole->data + whole->len - a, p->after.data, a) != 0)
        return PC_OK; /* the cut fell into the question: the engine's own truncation keeps that whole */
    str_clear(&p->context);
    return str_append(&p->context, whole->data + b, whole->len - a - b);
}

/* LongBench and InfiniteBench: of a prompt with too many tokens the first and last half of the limit are
 * decoded and joined. */
static int truncate_official(const struct Tokenizer *t, int limit, struct TaskPrompt *p, int *cut)
{
    struct Str whole = {0}, joined = {0};
    struct Tokens tokens = {0};
    int status = str_append(&whole, p->before.data, p->before.len), half = limit / 2;
    if (status == PC_OK) status = str_append(&whole, p->context.data, p->context.len);
    if (status == PC_OK) status = str_append(&whole, p->after.data, p->after.len);
    if (status == PC_OK) status = tokenizer_encode(t, whole.data, whole.len, false, &tokens);
    *cut = tokens.n > limit ? tokens.n - 2 * half : 0;
    if (status == PC_OK && *cut) {
        status = decode_ids(t, tokens.ids, half, &joined);
        if (status == PC_OK) status = decode_ids(t, tokens.ids + tokens.n - half, half, &joined);
        if (status == PC_OK) status = recover_context(p, &joined);
    }
    str_free(&whole);
    str_free(&joined);
    tokens_free(&tokens);
    return status;
}

/* ==== The run ==== */

static int configure(struct Attempt *a, struct Engine *engine, const struct Request *req)
{
    struct Settings *s = &a->settings;
    *s = a->arm->settings;
    if (!a->arm->tokens_given) s->max_tokens = a->task->max_tokens;
    if (a->prompt.answer_prefix.len && !*s->answer_prefix)
        TRY(settings_set(s, "answer_prefix", a->prompt.answer_prefix.data));
    if (!a->task->chat) TRY(settings_set(s, "chat_template", "raw"));
    if (!a->task->covers || s->method != METHOD_PARALLELCOMP) return engine_configure(engine, s);
    /* A task about the whole text keeps all of it, thinly (design: coverage). */
    if (!a->arm->keep_given) s->keep = KEEP_ALL;
    return a->arm->cap_given ? engine_configure(engine, s) : engine_cover(engine, req, s);
}

/* An eviction that was asked for and kept everything is a fault, not a result. */
static int check_evicted(const struct Attempt *a, const struct Engine *engine)
{
    const struct ModelConfig *cfg = &engine_model(engine)->cfg;
    const struct Result *r = &a->result;
    int64_t in = 0, kept = 0;
    if (!r->kv_in || !r->kv_kept || a->settings.kv_cap <= 0) return PC_OK;
    for (int i = 0; i < cfg->n_layers * cfg->n_kv_heads; i++) {
        in += r->kv_in[i];
        kept += r->kv_kept[i];
    }
    if (in == kept && r->plan.chunk_tokens > a->settings.kv_cap && r->plan.n_chunks > 1)
        return err_set(PC_EINTERNAL, "kv_cap %d was asked for, but nothing was evicted",
                       a->settings.kv_cap);
    return PC_OK;
}

static int score(struct Attempt *a, const struct ScoreOptions *options)
{
    const struct Str *text = &a->result.text;
    struct ScoreInput in = {.pred = text->data ? text->data : "",
                            .pred_len = text->len,
                            .answers = a->sample->answers,
                            .n_answers = a->sample->n_answers,
                            .all_classes = a->sample->all_classes,
                            .n_classes = a->sample->n_classes};
    return a->bench->score(a->task->name, options, &in, &a->score);
}

/* Rows of one text share its store. Other methods read no chunks that could lie in one. */
static int run_row(struct Attempt *a, struct Engine *engine, struct Request *request)
{
    struct Store store = {.path = ""};
    bool stored = a->cli->store_dir && a->settings.method == METHOD_PARALLELCOMP;
    int status = stored ? cli_store(a->cli, engine, request, &store) : PC_OK;
    if (status == PC_OK) status = session_run(engine, request, &a->result);
    store_close(&store);
    request->store = NULL;
    return status;
}

int attempt_run(struct Attempt *a, struct Engine *engine, const struct TaskSet *set,
                const struct ScoreOptions *options, struct Request *request)
{
    TRY(task_prompt(a->task, a->sample, &a->prompt, &a->moved));
    if (a->arm->settings.method == METHOD_TRUNCATE) {
        int window =
            a->arm->settings.window ? a->arm->settings.window : engine_model(engine)->cfg.train_len;
        int limit = window - set->reserve;
        if (set->truncate && set->truncate < limit) limit = set->truncate;
        if (limit > 0)
            TRY(truncate_official(engine_tokenizer(engine), limit, &a->prompt, &a->cut_tokens));
    }
    struct PromptFrame frame = {a->prompt.before.data, a->prompt.after.data, a->prompt.question_at,
                                a->prompt.question_len};
    request->context = a->prompt.context.data;
    request->context_len = a->prompt.context.len;
    request->question = a->sample->input.data ? a->sample->input.data : "";
    request->frame = &frame;
    request->stop_text = *a->task->stop_text ? a->task->stop_text : NULL;
    int status = configure(a, engine, request);
    if (status == PC_OK) status = run_row(a, engine, request);
    if (status == PC_OK) status = check_evicted(a, engine);
    if (status == PC_OK) status = score(a, options);
    request->frame = NULL;
    return status;
}

void attempt_free(struct Attempt *a)
{
    task_prompt_free(&a->prompt);
    result_free(&a->result);
}

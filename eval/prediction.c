/* prediction.c - an attempt as a line that the official scripts and our reports can read. */
#include "benchmark.h"
#include "provenance.h"

#include <math.h>
#include <string.h>

static void add_texts(cJSON *line, const char *name, const struct Str *list, int n)
{
    cJSON *array = cJSON_AddArrayToObject(line, name);
    for (int i = 0; i < n; i++)
        cJSON_AddItemToArray(array, cJSON_CreateString(list[i].data ? list[i].data : ""));
}

static void add_text(cJSON *line, const char *name, const struct Str *text)
{
    json_add_bytes(line, name, text->data ? text->data : "", text->len);
}

/* LongBench's eval.py reads pred, answers, all_classes, length; InfiniteBench's prediction, ground_truth. */
static void add_official(cJSON *line, const struct Attempt *a)
{
    const struct Sample *s = a->sample;
    if (a->bench->infinite_form) {
        add_text(line, "prediction", &a->result.text);
        add_texts(line, "ground_truth", s->answers, s->n_answers);
        return;
    }
    add_text(line, "pred", &a->result.text);
    add_texts(line, "answers", s->answers, s->n_answers);
    if (s->n_classes)
        add_texts(line, "all_classes", s->all_classes, s->n_classes);
    else
        cJSON_AddNullToObject(line, "all_classes");
    cJSON_AddNumberToObject(line, "length", s->length);
}

static bool is_empty(const struct Str *text)
{
    for (size_t i = 0; i < text->len; i++)
        if (!strchr(" \t\r\n", text->data[i])) return false;
    return true;
}

/* ==== Chunks ==== */

static void add_chunks(cJSON *line, const struct Result *r)
{
    cJSON *ends = cJSON_AddArrayToObject(line, "chunk_end");
    cJSON *scores = cJSON_AddArrayToObject(line, "chunk_score");
    cJSON *kept = cJSON_AddArrayToObject(line, "kept");
    cJSON *round = r->plan.rounds > 1 ? cJSON_AddArrayToObject(line, "kept_round") : NULL;
    for (int i = 0; r->chunks && i < r->plan.n_chunks; i++) {
        const struct ChunkInfo *c = &r->chunks[i];
        cJSON_AddItemToArray(ends, cJSON_CreateNumber(c->end));
        cJSON_AddItemToArray(scores, isfinite(c->score) ? cJSON_CreateNumber(c->score)
                                                        : cJSON_CreateNull());
        if (c->kept) cJSON_AddItemToArray(kept, cJSON_CreateNumber(i));
        if (c->kept && round) cJSON_AddItemToArray(round, cJSON_CreateNumber(c->round));
    }
    json_add_found(line, r);
}

static bool chunk_holds(const struct ChunkInfo *c, const struct Attempt *a)
{
    const struct Sample *s = a->sample;
    const struct Str *text = &a->prompt.context;
    for (int i = 0; i < s->n_answer_at; i++) {
        size_t at = s->answer_at[i] + (size_t)a->moved;
        if (at >= c->byte_begin && at < c->byte_end) return true;
    }
    if (s->n_answer_at || a->cut_tokens) return false;
    /* Rows of files do not say where the answer stands: where its words do. */
    for (int i = 0; i < s->n_answers; i++)
        if (s->answers[i].len > 3 && memmem(text->data + c->byte_begin, c->byte_end - c->byte_begin,
                                            s->answers[i].data, s->answers[i].len))
            return true;
    return false;
}

/* Which chunks hold what the answer needs, so that reports can tell whether these were kept. */
static void add_answer_chunks(cJSON *line, const struct Attempt *a)
{
    const struct Result *r = &a->result;
    cJSON *array = cJSON_AddArrayToObject(line, "answer_chunks");
    for (int i = 0; r->chunks && i < r->plan.n_chunks; i++)
        if (r->chunks[i].byte_end <= a->prompt.context.len && chunk_holds(&r->chunks[i], a))
            cJSON_AddItemToArray(array, cJSON_CreateNumber(i));
}

/* ==== Keys and values ==== */

static void add_kv(cJSON *line, const struct Result *r, const struct ModelConfig *cfg)
{
    double in = 0, kept = 0;
    if (!r->kv_in || !r->kv_kept) return;
    cJSON *layers = cJSON_CreateArray();
    for (int l = 0; l < cfg->n_layers; l++) {
        cJSON *heads = cJSON_CreateArray();
        for (int h = 0; h < cfg->n_kv_heads; h++) {
            int i = l * cfg->n_kv_heads + h;
            in += (double)r->kv_in[i];
            kept += (double)r->kv_kept[i];
            cJSON_AddItemToArray(heads, cJSON_CreateNumber((double)r->kv_kept[i]));
        }
        cJSON_AddItemToArray(layers, heads);
    }
    cJSON_AddNumberToObject(line, "kv_in", in);
    cJSON_AddNumberToObject(line, "kv_kept", kept);
    cJSON_AddItemToObject(line, "kv_kept_by_head", layers);
}

/* ==== The line ==== */

void prediction_fill(cJSON *line, const struct Attempt *a, const struct Engine *engine)
{
    const struct Result *r = &a->result;
    const struct PlanInfo *p = &r->plan;
    cJSON_AddStringToObject(line, "schema", "pcomp.sample.v1");
    cJSON_AddStringToObject(line, "task", a->task->name);
    add_official(line, a);
    cJSON_AddNumberToObject(line, "score", a->score.score);
    cJSON_AddBoolToObject(line, "unparsed", a->score.unparsed);
    cJSON_AddBoolToObject(line, "empty", is_empty(&r->text));
    cJSON_AddStringToObject(line, "stop", stop_reason(r, PC_OK));
    cJSON_AddNumberToObject(line, "n_generated", r->n_ids);
    cJSON_AddNumberToObject(line, "truncated", p->n_truncated + a->cut_tokens);
    cJSON_AddStringToObject(line, "chat_template", p->chat_template);
    cJSON_AddNumberToObject(line, "max_tokens", p->max_tokens);
    cJSON_AddNumberToObject(line, "n_context", p->n_context);
    cJSON_AddNumberToObject(line, "n_question", p->n_question);
    cJSON_AddNumberToObject(line, "n_chunks", p->n_chunks);
    cJSON_AddNumberToObject(line, "chunk_tokens", p->chunk_tokens);
    cJSON_AddNumberToObject(line, "kv_cap", p->kv_cap);
    cJSON_AddNumberToObject(line, "question_pos", p->question_pos);
    add_chunks(line, r);
    add_answer_chunks(line, a);
    add_kv(line, r, &engine_model(engine)->cfg);
    json_add_seconds(line, &r->time);
    cJSON_AddNumberToObject(line, "peak_bytes", (double)r->peak_bytes);
    json_add_hash(line, "input_hash", r->input_hash);
    json_add_hash(line, "config_hash", r->config_hash);
    if (a->sample->target_tokens)
        cJSON_AddNumberToObject(line, "target_tokens", a->sample->target_tokens);
    if (a->sample->depth >= 0) cJSON_AddNumberToObject(line, "depth", a->sample->depth);
}

/* provenance.c - struct Result and its plan turned into JSON. Every number that a reader needs in order to
 * repeat or to doubt a result is here; cJSON writes numbers that are not finite as null.
 */
#include "provenance.h"

#include <stdio.h>
#include <string.h>

const char *stop_reason(const struct Result *r, int status)
{
    if (status < 0) return status == PC_EINTR ? "interrupted" : "error";
    return r->stopped_at_eos ? "eos" : r->stopped_at_text ? "text" : "length";
}

void json_add_bytes(cJSON *object, const char *name, const char *data, size_t len)
{
    struct Str clean = {0};
    for (size_t at = 0; at < len;) {
        size_t good = utf8_invalid_at(data + at, len - at);
        if (str_append(&clean, data + at, good) < 0) break;
        at += good;
        if (at < len && str_append(&clean, "\xEF\xBF\xBD", 3) < 0) break;
        at++;
    }
    cJSON_AddStringToObject(object, name, clean.data ? clean.data : "");
    str_free(&clean);
}

/* A hash has more bits than a JSON number holds. */
void json_add_hash(cJSON *object, const char *name, uint64_t hash)
{
    char text[20];
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) text[i] = digits[hash >> (60 - 4 * i) & 15];
    text[16] = '\0';
    cJSON_AddStringToObject(object, name, text);
}

int json_append(cJSON *object, bool indent, struct Str *out)
{
    char *text = object ? (indent ? cJSON_Print(object) : cJSON_PrintUnformatted(object)) : NULL;
    int status =
        text ? str_append(out, text, strlen(text)) : err_set(PC_ENOMEM, "out of memory for JSON");
    if (status == PC_OK) status = str_append(out, "\n", 1);
    cJSON_free(text);
    cJSON_Delete(object);
    return status;
}

static void add_head(cJSON *root, const char *schema, const struct Engine *engine,
                     const char *model_path)
{
    const struct Model *model = engine_model(engine);
    cJSON_AddStringToObject(root, "schema", schema);
    cJSON_AddStringToObject(root, "version", PCOMP_VERSION);
    cJSON_AddStringToObject(root, "commit", PCOMP_COMMIT);
    cJSON_AddStringToObject(root, "device", engine_device(engine));
    cJSON *object = cJSON_AddObjectToObject(root, "model");
    json_add_bytes(object, "name", model->cfg.name, strlen(model->cfg.name));
    json_add_bytes(object, "path", model_path, strlen(model_path));
    cJSON_AddStringToObject(object, "arch", model->cfg.arch);
    cJSON_AddStringToObject(object, "weights", model->geometry ? "random" : "file");
    json_add_hash(object, "hash", model->hash);
    cJSON_AddNumberToObject(object, "params", (double)model->n_params);
    cJSON_AddNumberToObject(object, "train_len", model->cfg.train_len);
}

/* Where chunks leave before the last layer. */
static void add_early(cJSON *plan_object, const struct PlanInfo *plan)
{
    cJSON *list = cJSON_AddArrayToObject(plan_object, "early");
    for (int i = 0; i < plan->n_early; i++) {
        const struct EarlyDecision *d = &plan->early[i];
        cJSON *object = cJSON_CreateObject();
        cJSON_AddNumberToObject(object, "layer", d->layer);
        cJSON_AddNumberToObject(object, "n_before", d->n_before);
        cJSON_AddNumberToObject(object, "survivors", d->survivors);
        cJSON_AddNumberToObject(object, "risk", (double)d->risk);
        cJSON_AddItemToArray(list, object);
    }
}

static void add_plan(cJSON *root, const struct PlanInfo *plan)
{
    cJSON *object = cJSON_AddObjectToObject(root, "plan");
    cJSON_AddStringToObject(object, "method", setting_word("method", plan->method));
    if (plan->group) {
        cJSON_AddNumberToObject(object, "group", plan->group);
        cJSON_AddNumberToObject(object, "neighbours", plan->neighbours);
    }
    if (plan->method == METHOD_STREAMING) cJSON_AddNumberToObject(object, "sinks", plan->sinks);
    cJSON_AddStringToObject(object, "rope_scaling",
                            setting_word("rope_scaling", plan->rope_scaling));
    cJSON_AddNumberToObject(object, "rope_factor", plan->rope_factor);
    cJSON_AddNumberToObject(object, "n_context", plan->n_context);
    cJSON_AddNumberToObject(object, "n_prefix", plan->n_prefix);
    cJSON_AddNumberToObject(object, "n_question", plan->n_question);
    cJSON_AddNumberToObject(object, "n_chunks", plan->n_chunks);
    if (plan->method == METHOD_PARALLELCOMP)
        cJSON_AddStringToObject(object, "chunk_score",
                                setting_word("chunk_score", plan->chunk_score));
    cJSON_AddNumberToObject(object, "rounds", plan->rounds);
    cJSON_AddNumberToObject(object, "n_found", plan->n_found);
    cJSON_AddNumberToObject(object, "n_read", plan->n_read);
    cJSON_AddNumberToObject(object, "read_share", plan->read_share);
    add_early(object, plan);
    cJSON_AddNumberToObject(object, "early_safe", plan->early_safe);
    cJSON_AddNumberToObject(object, "chunk_tokens", plan->chunk_tokens);
    cJSON_AddNumberToObject(object, "wave", plan->wave);
    cJSON_AddNumberToObject(object, "keep", plan->keep);
    cJSON_AddNumberToObject(object, "kv_cap", plan->kv_cap);
    cJSON_AddNumberToObject(object, "window", plan->window);
    cJSON_AddNumberToObject(object, "question_pos", plan->question_pos);
    cJSON_AddNumberToObject(object, "n_positions", plan->n_positions);
    cJSON_AddNumberToObject(object, "max_tokens", plan->max_tokens);
    cJSON_AddNumberToObject(object, "n_truncated", plan->n_truncated);
    cJSON_AddNumberToObject(object, "heads_full", plan->heads_full);
    cJSON_AddNumberToObject(object, "heads_streaming", plan->heads_streaming);
    cJSON_AddNumberToObject(object, "head_sinks", plan->head_sinks);
    cJSON_AddNumberToObject(object, "head_recent", plan->head_recent);
    cJSON_AddNumberToObject(object, "heads_bytes", (double)plan->heads_bytes);
    cJSON_AddStringToObject(object, "select", setting_word("select", (int)plan->select));
    cJSON_AddNumberToObject(object, "select_every", plan->select_every);
    cJSON_AddNumberToObject(object, "tier_slots", plan->tier_slots);
    cJSON_AddStringToObject(object, "tier_below", plan->tier_below ? plan->tier_below : "");
    cJSON_AddNumberToObject(object, "tier_near_bytes", (double)plan->tier_near_bytes);
    cJSON_AddNumberToObject(object, "tier_below_bytes", (double)plan->tier_below_bytes);
    cJSON_AddNumberToObject(object, "tier_host_bytes", (double)plan->tier_host_bytes);
    cJSON_AddNumberToObject(object, "tier_file_bytes", (double)plan->tier_file_bytes);
    cJSON_AddNumberToObject(object, "kv_bytes", (double)plan->kv_bytes);
    cJSON_AddNumberToObject(object, "store_cap", plan->store_cap);
    cJSON_AddNumberToObject(object, "store_bytes", (double)plan->store_bytes);
    cJSON_AddNumberToObject(object, "index_bytes", (double)plan->index_bytes);
    cJSON_AddNumberToObject(object, "peak_bytes", (double)plan->peak_bytes);
    cJSON_AddNumberToObject(object, "made_bytes", (double)plan->made_bytes);
    cJSON_AddNumberToObject(object, "model_bytes", (double)plan->model_bytes);
    cJSON_AddNumberToObject(object, "available_bytes", (double)plan->available_bytes);
    cJSON_AddBoolToObject(object, "fits", plan->fits);
}

static void add_tiers(cJSON *root, const struct Result *r)
{
    const struct TierCounts *n = &r->tiers;
    if (r->plan.tier_slots == 0) return;
    cJSON *object = cJSON_AddObjectToObject(root, "tiers");
    cJSON_AddNumberToObject(object, "wanted", (double)n->wanted);
    cJSON_AddNumberToObject(object, "missed", (double)n->missed);
    cJSON_AddNumberToObject(object, "fetched", (double)n->fetched);
    cJSON_AddNumberToObject(object, "through", (double)n->through);
    cJSON_AddNumberToObject(object, "from_file", (double)n->from_file);
    cJSON_AddNumberToObject(object, "bytes", (double)r->tier_bytes);
    cJSON_AddNumberToObject(object, "late_pages", (double)n->late);
    cJSON_AddNumberToObject(object, "late_share", n->late_share);
}

static void add_config(cJSON *root, const struct Engine *engine)
{
    struct Str text = {0};
    if (settings_json(engine_settings(engine), &text) == PC_OK)
        cJSON_AddRawToObject(root, "config", text.data);
    str_free(&text);
}

static void add_chunks(cJSON *root, const struct Result *r)
{
    cJSON *array = cJSON_AddArrayToObject(root, "chunks");
    for (int i = 0; r->chunks && i < r->plan.n_chunks; i++) {
        const struct ChunkInfo *chunk = &r->chunks[i];
        cJSON *object = cJSON_CreateObject();
        cJSON_AddNumberToObject(object, "begin", chunk->begin);
        cJSON_AddNumberToObject(object, "end", chunk->end);
        cJSON_AddNumberToObject(object, "byte_begin", (double)chunk->byte_begin);
        cJSON_AddNumberToObject(object, "byte_end", (double)chunk->byte_end);
        cJSON_AddNumberToObject(object, "score", chunk->score);
        cJSON_AddBoolToObject(object, "kept", chunk->kept);
        if (r->plan.rounds > 1) cJSON_AddNumberToObject(object, "round", chunk->round);
        cJSON_AddNumberToObject(object, "n_layers", chunk->n_layers);
        cJSON_AddItemToArray(array, object);
    }
}

void json_add_found(cJSON *root, const struct Result *r)
{
    if (r->plan.rounds < 2) return;
    cJSON *array = cJSON_AddArrayToObject(root, "found");
    for (int i = 0; i < r->plan.rounds - 1; i++) {
        const struct Str *text = &r->found[i];
        cJSON *object = cJSON_CreateObject();
        cJSON_AddNumberToObject(object, "round", i + 1);
        json_add_bytes(object, "text", text->data ? text->data : "", text->len);
        cJSON_AddItemToArray(array, object);
    }
}

/* KV entries as [layer][head], and their sum. */
static void add_entries(cJSON *root, const char *name, const int64_t *entries,
                        const struct ModelConfig *cfg)
{
    double total = 0;
    cJSON *object = cJSON_AddObjectToObject(root, name);
    cJSON *layers = cJSON_CreateArray();
    for (int layer = 0; entries && layer < cfg->n_layers; layer++) {
        cJSON *heads = cJSON_CreateArray();
        for (int head = 0; head < cfg->n_kv_heads; head++) {
            double n = (double)entries[layer * cfg->n_kv_heads + head];
            cJSON_AddItemToArray(heads, cJSON_CreateNumber(n));
            total += n;
        }
        cJSON_AddItemToArray(layers, heads);
    }
    cJSON_AddNumberToObject(object, "total", total);
    cJSON_AddItemToObject(object, "by_layer_head", layers);
}

void json_add_seconds(cJSON *root, const struct Timings *time)
{
    cJSON *object = cJSON_AddObjectToObject(root, "seconds");
    cJSON_AddNumberToObject(object, "tokenize", time->tokenize);
    cJSON_AddNumberToObject(object, "prefill", time->prefill);
    cJSON_AddNumberToObject(object, "question", time->question);
    cJSON_AddNumberToObject(object, "decode", time->decode);
    cJSON_AddNumberToObject(object, "total", time->total);
}

cJSON *provenance_plan(const struct Engine *engine, const char *model_path,
                       const struct PlanInfo *plan)
{
    cJSON *root = cJSON_CreateObject();
    if (!root) return NULL;
    add_head(root, "pcomp.plan.v1", engine, model_path);
    cJSON_AddStringToObject(root, "chat_template", plan->chat_template);
    add_plan(root, plan);
    add_config(root, engine);
    return root;
}

cJSON *provenance_make(const struct Engine *engine, const char *model_path,
                       const struct Request *req, const struct Result *r, int status)
{
    const struct ModelConfig *cfg = &engine_model(engine)->cfg;
    char seed[24];
    cJSON *root = cJSON_CreateObject();
    if (!root) return NULL;
    add_head(root, "pcomp.run.v1", engine, model_path);
    cJSON_AddStringToObject(root, "question", req->question);
    json_add_bytes(root, "text", r->text.data ? r->text.data : "", r->text.len);
    cJSON_AddStringToObject(root, "stop_reason", stop_reason(r, status));
    cJSON_AddNumberToObject(root, "n_ids", r->n_ids);
    cJSON_AddStringToObject(root, "chat_template", r->plan.chat_template);
    add_plan(root, &r->plan);
    cJSON *truncation = cJSON_AddObjectToObject(root, "truncation");
    cJSON_AddBoolToObject(truncation, "truncated", r->plan.n_truncated > 0);
    cJSON_AddNumberToObject(truncation, "n_truncated", r->plan.n_truncated);
    cJSON *positions = cJSON_AddObjectToObject(root, "positions");
    cJSON_AddNumberToObject(positions, "question", r->plan.question_pos);
    cJSON_AddNumberToObject(positions, "last",
                            r->plan.question_pos + r->plan.n_question + r->n_ids - 1);
    cJSON_AddNumberToObject(positions, "window", r->plan.window);
    add_chunks(root, r);
    cJSON_AddNumberToObject(root, "n_piped", r->n_piped);
    json_add_found(root, r);
    add_entries(root, "kv_in", r->kv_in, cfg);
    add_entries(root, "kv_kept", r->kv_kept, cfg);
    cJSON_AddNumberToObject(root, "pages_read", (double)r->pages_read);
    cJSON_AddNumberToObject(root, "pages_there", (double)r->pages_there);
    add_tiers(root, r);
    json_add_seconds(root, &r->time);
    cJSON_AddNumberToObject(root, "peak_bytes", (double)r->peak_bytes);
    int len =
        snprintf(seed, sizeof seed, "%llu", (unsigned long long)engine_settings(engine)->seed);
    if (len < 16)
        cJSON_AddRawToObject(root, "seed", seed);
    else
        cJSON_AddStringToObject(root, "seed", seed);
    json_add_hash(root, "input_hash", r->input_hash);
    json_add_hash(root, "config_hash", r->config_hash);
    json_add_hash(root, "logits_hash", r->logits_hash);
    add_config(root, engine);
    return root;
}

/* model_hf.c - tensors, shape and rotation rule of a model folder with safetensors.
 *
 * The facts come from config.json as the transformers library writes it, defaults included. What
 * would change the arithmetic beyond what this engine does (another activation, stored
 * quantisation, an unknown rope rule) is refused by name.
 */
#include "model_load.h"
#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ==== Tensors ==== */

static int add_tensors(struct ModelFile *f, const struct SafeFile *s)
{
    size_t old = (size_t)f->n_tensors, n = (size_t)s->n_tensors;
    struct StoredTensor *grown = mem_grow(f->tensors, old, old + n, sizeof *grown);
    if (!grown) return PC_ENOMEM;
    f->tensors = grown;
    for (size_t i = 0; i < n; i++) {
        const struct SafeTensor *t = &s->tensors[i];
        struct StoredTensor *out = &f->tensors[old + i];
        char *name = model_keep(f, strlen(t->name) + 1, 1);
        if (!name) return PC_ENOMEM;
        *out = (struct StoredTensor){
            .name = {strcpy(name, t->name), strlen(t->name)},
            .type = t->type,
            .n_dims = t->n_dims,
            .dims = {t->dims[0], t->dims[1], t->dims[2], t->dims[3]},
            .data = t->data,
            .bytes = t->bytes,
        };
        memcpy(out->type_name, t->type_name, sizeof out->type_name);
        f->n_tensors++;
    }
    return 0;
}

static int load_shard(struct ModelFile *f, const char *name)
{
    struct Str path = {0};
    struct SafeFile s = {0};
    struct FileMap *map = &f->maps[f->n_maps];
    int status;
    TRY_GOTO(str_appendf(&path, "%s/%s", f->path, name));
    TRY_GOTO(file_map(path.data, map));
    f->n_maps++;
    TRY_GOTO(safetensors_parse(map->data, map->len, path.data, &s));
    f->header_hash = hash64(map->data, s.header_len, f->header_hash);
    TRY_GOTO(add_tensors(f, &s));
fail:
    safetensors_free(&s);
    str_free(&path);
    return status;
}

int model_hf_load(struct ModelFile *f)
{
    struct Str names = {0};
    int status, n;
    TRY_GOTO(folder_json(f->path, "config.json", true, &f->config, &f->header_hash));
    TRY_GOTO(folder_shards(f->path, &names, &n));
    if (n > MAX_SHARDS) {
        status =
            err_set(PC_EFORMAT, "%s: %d tensor files, at most %d are read", f->path, n, MAX_SHARDS);
        goto fail;
    }
    f->maps = mem_alloc((size_t)n, sizeof *f->maps);
    if (!f->maps) {
        status = PC_ENOMEM;
        goto fail;
    }
    const char *name = names.data;
    for (int i = 0; i < n; i++, name += strlen(name) + 1) TRY_GOTO(load_shard(f, name));
    status = model_sort_tensors(f);
fail:
    str_free(&names);
    return status;
}

/* ==== config.json ==== */

static const cJSON *get(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsNull(item) ? NULL : item;
}

static int read_int(const struct ModelFile *f, const char *name, int max, int *out)
{
    const cJSON *item = get(f->config, name);
    uint64_t value;
    if (!item) return 1;
    if (!json_whole(item, max, &value)) {
        return err_set(PC_EFORMAT, "%s: config.json: %s must be a whole number from 0 to %d",
                       f->path, name, max);
    }
    *out = (int)value;
    return 0;
}

static int need_int(const struct ModelFile *f, const char *name, int max, int *out)
{
    int status = read_int(f, name, max, out);
    if (status == 0 && *out == 0) status = 1;
    if (status == 1)
        return err_set(PC_EFORMAT, "%s: config.json: %s is missing or 0", f->path, name);
    return status;
}

/* Leaves *out alone when the value is absent. */
static int read_double(const struct ModelFile *f, const cJSON *object, const char *name,
                       double *out)
{
    const cJSON *item = get(object, name);
    if (!item) return 0;
    if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble)) {
        return err_set(PC_EFORMAT, "%s: config.json: %s must be a finite number", f->path, name);
    }
    *out = item->valuedouble;
    return 0;
}

static int read_arch(const struct ModelFile *f, struct ModelConfig *cfg)
{
    static const char *const known[][2] = {
        {"LlamaForCausalLM", "llama"},
        {"MistralForCausalLM", "llama"},
        {"Qwen2ForCausalLM", "qwen2"},
        {"Qwen3ForCausalLM", "qwen3"},
    };
    const cJSON *list = get(f->config, "architectures");
    const cJSON *first = cJSON_IsArray(list) ? list->child : NULL;
    if (!cJSON_IsString(first))
        return err_set(PC_EFORMAT, "%s: config.json: architectures is missing", f->path);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(first->valuestring, known[i][0]) != 0) continue;
        strcpy(cfg->arch, known[i][1]);
        return 0;
    }
    return err_set(
        PC_EFORMAT,
        "%s: architecture \"%.64s\" is not supported (LlamaForCausalLM, MistralForCausalLM, "
        "Qwen2ForCausalLM and Qwen3ForCausalLM are)",
        f->path, first->valuestring);
}

static int refuse_extras(const struct ModelFile *f)
{
    const cJSON *act = get(f->config, "hidden_act");
    if (act && (!cJSON_IsString(act) || strcmp(act->valuestring, "silu") != 0)) {
        return err_set(PC_EFORMAT,
                       "%s: config.json: hidden_act \"%.32s\" is not supported (only silu)",
                       f->path, cJSON_IsString(act) ? act->valuestring : "?");
    }
    if (get(f->config, "quantization_config")) {
        return err_set(
            PC_EFORMAT,
            "%s: config.json: quantization_config: only F32, F16 and BF16 weights are read "
            "from safetensors; use a GGUF file of this model",
            f->path);
    }
    return 0;
}

static int read_window(const struct ModelFile *f, struct ModelConfig *cfg)
{
    int window = 0;
    TRY(need_int(f, "max_position_embeddings", MAX_TRAIN_LEN, &cfg->train_len));
    if (cJSON_IsFalse(get(f->config, "use_sliding_window"))) return 0;
    TRY(read_int(f, "sliding_window", INT32_MAX, &window));
    if (window > 0 && window < cfg->train_len) cfg->train_len = window;
    return 0;
}

static int read_shape(const struct ModelFile *f, struct ModelConfig *cfg)
{
    TRY(need_int(f, "num_hidden_layers", MAX_LAYERS, &cfg->n_layers));
    TRY(need_int(f, "hidden_size", MAX_DIM, &cfg->dim));
    TRY(need_int(f, "intermediate_size", MAX_HIDDEN_DIM, &cfg->hidden_dim));
    TRY(need_int(f, "num_attention_heads", MAX_HEADS, &cfg->n_heads));
    cfg->n_kv_heads = cfg->n_heads;
    TRY(read_int(f, "num_key_value_heads", MAX_HEADS, &cfg->n_kv_heads));
    TRY(read_int(f, "head_dim", MAX_HEAD_DIM, &cfg->head_dim));
    if (cfg->head_dim == 0) {
        if (cfg->dim % cfg->n_heads != 0) {
            return err_set(PC_EFORMAT, "%s: config.json: width %d does not split into %d heads",
                           f->path, cfg->dim, cfg->n_heads);
        }
        cfg->head_dim = cfg->dim / cfg->n_heads;
    }
    double eps = 1e-6, part = 1;
    TRY(read_double(f, f->config, "rms_norm_eps", &eps));
    TRY(read_double(f, f->config, "partial_rotary_factor", &part));
    if (!(eps > 0))
        return err_set(PC_EFORMAT, "%s: config.json: rms_norm_eps must be above 0", f->path);
    if (!(part > 0 && part <= 1)) {
        return err_set(PC_EFORMAT, "%s: config.json: partial_rotary_factor %g is not in (0, 1]",
                       f->path, part);
    }
    cfg->norm_eps = (float)eps;
    cfg->rope_dim = (int)(cfg->head_dim * part);
    return 0;
}

/* ==== Rotation ==== */

static int read_yarn(const struct ModelFile *f, const cJSON *rule, struct RopeSpec *rope)
{
    double mscale = 0, mscale_all = 0;
    rope->scaling = ROPE_YARN;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    rope->no_truncate = cJSON_IsFalse(get(rule, "truncate"));
    TRY(read_double(f, rule, "attention_factor", &rope->attn_factor));
    TRY(read_double(f, rule, "beta_fast", &rope->beta_fast));
    TRY(read_double(f, rule, "beta_slow", &rope->beta_slow));
    TRY(read_double(f, rule, "mscale", &mscale));
    TRY(read_double(f, rule, "mscale_all_dim", &mscale_all));
    if (mscale > 0 && mscale_all > 0) { /* the pair is used together or not at all */
        rope->mscale = mscale;
        rope->mscale_all = mscale_all;
    }
    return 0;
}

static int read_rope(const struct ModelFile *f, struct ModelConfig *cfg, struct RopeSpec *rope)
{
    double theta = 10000;
    const cJSON *rule = get(f->config, "rope_scaling");
    if (!rule) rule = get(f->config, "rope_parameters"); /* the newer name, with the base inside */
    TRY(read_double(f, rule, "rope_theta", &theta));
    TRY(read_double(f, f->config, "rope_theta", &theta));
    cfg->rope_theta = (float)theta;
    cfg->rope_style = ROPE_HALVES;
    if (!rule) return 0;

    const cJSON *type = get(rule, "rope_type");
    if (!type) type = get(rule, "type");
    const char *name = cJSON_IsString(type) ? type->valuestring : "?";
    if (strcmp(name, "default") == 0) return 0;
    rope->original_len = cfg->train_len;
    TRY(read_double(f, rule, "factor", &rope->factor));
    TRY(read_double(f, rule, "original_max_position_embeddings", &rope->original_len));
    if (strcmp(name, "linear") == 0) {
        rope->scaling = ROPE_LINEAR;
        return 0;
    }
    if (strcmp(name, "llama3") == 0) {
        rope->scaling = ROPE_LLAMA3;
        TRY(read_double(f, rule, "low_freq_factor", &rope->low_freq));
        return read_double(f, rule, "high_freq_factor", &rope->high_freq);
    }
    if (strcmp(name, "yarn") == 0) return read_yarn(f, rule, rope);
    return err_set(
        PC_EFORMAT,
        "%s: config.json: rope scaling \"%.32s\" is not supported (default, linear, llama3 "
        "and yarn are)",
        f->path, name);
}

int model_hf_config(struct ModelFile *f, struct ModelConfig *cfg, struct RopeSpec *rope)
{
    TRY(read_arch(f, cfg));
    TRY(refuse_extras(f));
    TRY(read_shape(f, cfg));
    TRY(read_window(f, cfg));
    f->tie = cJSON_IsTrue(get(f->config, "tie_word_embeddings")) ? TIE_YES : TIE_NO;
    return read_rope(f, cfg, rope);
}

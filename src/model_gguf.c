/* model_gguf.c - shape, rotation rule and vocabulary of a model from the keys of its GGUF file.
 *
 * Keys that would change the arithmetic in a way this engine does not do are refused by name: to
 * ignore one would give wrong answers without a word.
 */
#include "model_load.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct Keys {
    const struct ModelFile *f;
    char arch[16];
};

static struct Slice slice(struct GgufText t)
{
    return (struct Slice){t.data, t.len};
}

static bool text_is(struct GgufText t, const char *word)
{
    return t.len == strlen(word) && memcmp(t.data, word, t.len) == 0;
}

/* ==== Keys of the architecture ==== */

/* The key ARCH.name; `full` receives its whole name for messages. */
static const struct GgufKey *arch_key(const struct Keys *k, const char *name, char full[96])
{
    snprintf(full, 96, "%s.%s", k->arch, name);
    return gguf_find(&k->f->gguf, full);
}

static int read_int(const struct Keys *k, const char *name, int max, int *out)
{
    char full[96];
    const struct GgufKey *key = arch_key(k, name, full);
    if (!key) return 1;
    if (key->is_array) {
        return err_set(PC_EFORMAT,
                       "%s: %s differs from layer to layer; only models with one value are read",
                       k->f->path, full);
    }
    int64_t value;
    if (!gguf_int(key, 0, &value) || value < 0 || value > max) {
        return err_set(PC_EFORMAT, "%s: %s must be a whole number from 0 to %d", k->f->path, full,
                       max);
    }
    *out = (int)value;
    return 0;
}

static int need_int(const struct Keys *k, const char *name, int max, int *out)
{
    int status = read_int(k, name, max, out);
    if (status == 0 && *out == 0) status = 1;
    if (status == 1)
        return err_set(PC_EFORMAT, "%s: %s.%s is missing or 0", k->f->path, k->arch, name);
    return status;
}

/* Leaves *out alone when the key is absent. */
static int read_double(const struct Keys *k, const char *name, double *out)
{
    char full[96];
    const struct GgufKey *key = arch_key(k, name, full);
    if (!key) return 0;
    if (key->is_array || !gguf_double(key, 0, out) || !isfinite(*out)) {
        return err_set(PC_EFORMAT, "%s: %s must be a finite number", k->f->path, full);
    }
    return 0;
}

static int read_arch(const struct ModelFile *f, char arch[16])
{
    static const char *const known[] = {"llama", "qwen2", "qwen3"};
    const struct GgufKey *key = gguf_find(&f->gguf, "general.architecture");
    struct GgufText text;
    if (!key || !gguf_text(key, &text)) {
        return err_set(PC_EFORMAT, "%s: general.architecture is missing", f->path);
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (text_is(text, known[i])) {
            strcpy(arch, known[i]);
            return 0;
        }
    }
    return err_set(PC_EFORMAT,
                   "%s: architecture \"%.*s\" is not supported (llama, qwen2 and qwen3 are)",
                   f->path, (int)(text.len < 64 ? text.len : 64), text.data);
}

/* Keys that ask for arithmetic we do not do, unless their value is 0, false or `harmless`. */
static int refuse_extras(const struct Keys *k)
{
    /* clang-format off */
    static const struct { const char *name; double harmless; } extras[] = {
        { "expert_count", 0 },              { "expert_used_count", 0 },
        { "logit_scale", 1 },               { "residual_scale", 1 },
        { "embedding_scale", 1 },           { "attention.scale", 0 },
        { "attention.clamp_kqv", 0 },       { "attention.max_alibi_bias", 0 },
        { "attention.temperature_scale", 0 }, { "attn_logit_softcapping", 0 },
        { "final_logit_softcapping", 0 },   { "use_parallel_residual", 0 },
        { "attention.sliding_window_pattern", 0 }, { "rope.dimension_sections", 0 },
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof extras / sizeof extras[0]; i++) {
        char full[96];
        const struct GgufKey *key = arch_key(k, extras[i].name, full);
        double value;
        bool flag;
        if (!key) continue;
        if (!key->is_array && gguf_double(key, 0, &value) &&
            (value == 0 || value == extras[i].harmless))
            continue;
        if (gguf_bool(key, &flag) && !flag) continue;
        return err_set(PC_EFORMAT, "%s: the model uses %s, which is not supported", k->f->path,
                       full);
    }
    char full[96];
    const struct GgufKey *causal = arch_key(k, "attention.causal", full);
    bool on;
    if (causal && (!gguf_bool(causal, &on) || !on)) {
        return err_set(PC_EFORMAT, "%s: %s is false; only causal models are supported", k->f->path,
                       full);
    }
    return 0;
}

static int refuse_split(const struct ModelFile *f)
{
    const struct GgufKey *key = gguf_find(&f->gguf, "split.count");
    int64_t n;
    if (!key || (gguf_int(key, 0, &n) && n <= 1)) return 0;
    return err_set(PC_EFORMAT,
                   "%s: one part of a split GGUF file; merge the parts into one file first",
                   f->path);
}

/* ==== Shape ==== */

static int read_heads(const struct Keys *k, struct ModelConfig *cfg)
{
    TRY(need_int(k, "attention.head_count", MAX_HEADS, &cfg->n_heads));
    cfg->n_kv_heads = cfg->n_heads;
    TRY(read_int(k, "attention.head_count_kv", MAX_HEADS, &cfg->n_kv_heads));
    TRY(read_int(k, "attention.key_length", MAX_HEAD_DIM, &cfg->head_dim));
    int value_dim = 0;
    TRY(read_int(k, "attention.value_length", MAX_HEAD_DIM, &value_dim));
    if (cfg->head_dim == 0) {
        if (cfg->dim % cfg->n_heads != 0) {
            return err_set(PC_EFORMAT,
                           "%s: width %d does not split into %d heads, and %s.attention.key_length "
                           "is missing",
                           k->f->path, cfg->dim, cfg->n_heads, k->arch);
        }
        cfg->head_dim = cfg->dim / cfg->n_heads;
    }
    if (value_dim != 0 && value_dim != cfg->head_dim) {
        return err_set(
            PC_EFORMAT,
            "%s: heads of keys and values differ in width (%d, %d), which is not supported",
            k->f->path, cfg->head_dim, value_dim);
    }
    cfg->rope_dim = cfg->head_dim;
    TRY(read_int(k, "rope.dimension_count", MAX_HEAD_DIM, &cfg->rope_dim));
    return 0;
}

static int read_window(const struct Keys *k, struct ModelConfig *cfg)
{
    int window = 0;
    TRY(need_int(k, "context_length", MAX_TRAIN_LEN, &cfg->train_len));
    TRY(read_int(k, "attention.sliding_window", INT32_MAX, &window));
    if (window > 0 && window < cfg->train_len) cfg->train_len = window;
    return 0;
}

/* ==== Rotation ==== */

static int read_yarn(const struct Keys *k, struct RopeSpec *rope)
{
    double attn_factor = 1;
    rope->scaling = ROPE_YARN;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    TRY(read_double(k, "rope.scaling.attn_factor", &attn_factor));
    TRY(read_double(k, "rope.scaling.yarn_log_multiplier", &rope->mscale_all));
    TRY(read_double(k, "rope.scaling.yarn_beta_fast", &rope->beta_fast));
    TRY(read_double(k, "rope.scaling.yarn_beta_slow", &rope->beta_slow));
    double ext_factor = 1;
    TRY(read_double(k, "rope.scaling.yarn_ext_factor", &ext_factor));
    if (ext_factor != 1) {
        return err_set(PC_EFORMAT,
                       "%s: %s.rope.scaling.yarn_ext_factor %g is not supported (only 1)",
                       k->f->path, k->arch, ext_factor);
    }
    /* In GGUF the key multiplies the rule's own factor; 1, the usual value, leaves it. */
    double log_scale = rope->factor > 1 ? 0.1 * log(rope->factor) + 1 : 1;
    double log_all = rope->factor > 1 && rope->mscale_all > 0
                         ? 0.1 * rope->mscale_all * log(rope->factor) + 1
                         : 1;
    rope->attn_factor = attn_factor * log_scale / log_all;
    return 0;
}

static int read_scaling(const struct Keys *k, const struct ModelConfig *cfg, struct RopeSpec *rope)
{
    char full[96];
    const struct GgufKey *key = arch_key(k, "rope.scaling.type", full);
    struct GgufText type = {"", 0};
    if (key && !gguf_text(key, &type))
        return err_set(PC_EFORMAT, "%s: %s must be a string", k->f->path, full);
    double legacy = 0, original = cfg->train_len;
    TRY(read_double(k, "rope.scale_linear", &legacy));
    TRY(read_double(k, "rope.scaling.factor", &rope->factor));
    TRY(read_double(k, "rope.scaling.original_context_length", &original));
    rope->original_len = original;
    if (rope->factor == 0) rope->factor = legacy;
    if (type.len == 0) { /* files from before the type key mean linear when they give a factor */
        rope->scaling = rope->factor != 0 && rope->factor != 1 ? ROPE_LINEAR : ROPE_NONE;
        return 0;
    }
    if (text_is(type, "none")) return 0;
    if (rope->factor == 0) {
        return err_set(PC_EFORMAT, "%s: %s is given without %s.rope.scaling.factor", k->f->path,
                       full, k->arch);
    }
    if (text_is(type, "linear")) {
        rope->scaling = ROPE_LINEAR;
        return 0;
    }
    if (text_is(type, "yarn")) return read_yarn(k, rope);
    return err_set(PC_EFORMAT, "%s: %s \"%.*s\" is not supported (none, linear and yarn are)",
                   k->f->path, full, (int)(type.len < 64 ? type.len : 64), type.data);
}

static int read_factors(struct ModelFile *f, struct RopeSpec *rope)
{
    struct StoredTensor *t = model_tensor(f, "rope_freqs.weight");
    if (model_tensor(f, "rope_factors_long.weight")) {
        return err_set(PC_EFORMAT,
                       "%s: longrope scaling (rope_factors_long.weight) is not supported", f->path);
    }
    if (!t) return 0;
    if (t->n_dims != 1 || t->dims[0] > MAX_HEAD_DIM / 2) {
        return err_set(PC_EFORMAT,
                       "%s: tensor rope_freqs.weight is not a vector of one factor a pair",
                       f->path);
    }
    t->used = true;
    rope->n_factors = (int)t->dims[0];
    return model_floats(f, t, &rope->factors);
}

int model_gguf_config(struct ModelFile *f, struct ModelConfig *cfg, struct RopeSpec *rope)
{
    struct Keys k = {.f = f};
    TRY(refuse_split(f));
    TRY(read_arch(f, k.arch));
    TRY(refuse_extras(&k));
    strcpy(cfg->arch, k.arch);
    const struct GgufKey *name = gguf_find(&f->gguf, "general.name");
    struct GgufText text;
    if (name && gguf_text(name, &text)) model_set_name(cfg, text.data, text.len);

    TRY(need_int(&k, "block_count", MAX_LAYERS, &cfg->n_layers));
    TRY(need_int(&k, "embedding_length", MAX_DIM, &cfg->dim));
    TRY(need_int(&k, "feed_forward_length", MAX_HIDDEN_DIM, &cfg->hidden_dim));
    TRY(read_heads(&k, cfg));
    TRY(read_window(&k, cfg));

    double theta = 10000, eps = 0;
    TRY(read_double(&k, "rope.freq_base", &theta));
    TRY(read_double(&k, "attention.layer_norm_rms_epsilon", &eps));
    if (!(eps > 0)) {
        return err_set(PC_EFORMAT, "%s: %s.attention.layer_norm_rms_epsilon is missing or 0",
                       f->path, k.arch);
    }
    cfg->rope_theta = (float)theta;
    cfg->norm_eps = (float)eps;
    cfg->rope_style = strcmp(k.arch, "llama") == 0 ? ROPE_PAIRS : ROPE_HALVES;
    TRY(read_scaling(&k, cfg, rope));
    return read_factors(f, rope);
}

/* ==== Vocabulary ==== */

static int need_array(const struct ModelFile *f, const char *name, enum GgufType type,
                      const struct GgufKey **out)
{
    const struct GgufKey *key = gguf_find(&f->gguf, name);
    if (!key) return err_set(PC_EFORMAT, "%s: %s is missing", f->path, name);
    if (!key->is_array || key->type != type) {
        return err_set(PC_EFORMAT, "%s: %s must be an array of %s", f->path, name,
                       gguf_type_name(type));
    }
    *out = key;
    return 0;
}

static int read_texts(struct ModelFile *f, const struct GgufKey *key, struct Slice **out)
{
    *out = model_keep(f, key->n, sizeof **out);
    if (!*out) return PC_ENOMEM;
    const uint8_t *pos = key->data;
    for (uint64_t i = 0; i < key->n; i++) (*out)[i] = slice(gguf_next_text(&pos));
    return 0;
}

static int read_token_types(struct ModelFile *f, struct VocabSpec *v)
{
    v->types = model_keep(f, (size_t)v->n_tokens, 1);
    if (!v->types) return PC_ENOMEM;
    memset(v->types, TOKEN_NORMAL, (size_t)v->n_tokens);
    const struct GgufKey *key = gguf_find(&f->gguf, "tokenizer.ggml.token_type");
    if (!key) return 0;
    if (!key->is_array || key->n != (uint64_t)v->n_tokens) {
        return err_set(PC_EFORMAT, "%s: tokenizer.ggml.token_type has %llu entries for %d tokens",
                       f->path, (unsigned long long)key->n, v->n_tokens);
    }
    for (int i = 0; i < v->n_tokens; i++) {
        int64_t type;
        if (!gguf_int(key, (uint64_t)i, &type) || type < 0 || type > TOKEN_BYTE) {
            return err_set(PC_EFORMAT, "%s: tokenizer.ggml.token_type of token %d is not 0 to %d",
                           f->path, i, TOKEN_BYTE);
        }
        if (type != 0) v->types[i] = (uint8_t)type;
    }
    return 0;
}

static int read_scores(struct ModelFile *f, struct VocabSpec *v)
{
    const struct GgufKey *key = NULL;
    TRY(need_array(f, "tokenizer.ggml.scores", GGUF_F32, &key));
    if (key->n != (uint64_t)v->n_tokens) {
        return err_set(PC_EFORMAT, "%s: tokenizer.ggml.scores has %llu entries for %d tokens",
                       f->path, (unsigned long long)key->n, v->n_tokens);
    }
    v->scores = model_keep(f, key->n, sizeof *v->scores);
    if (!v->scores) return PC_ENOMEM;
    memcpy(v->scores, key->data, key->n * sizeof *v->scores);
    for (int i = 0; i < v->n_tokens; i++) {
        if (isnan(v->scores[i]))
            return err_set(PC_EFORMAT, "%s: tokenizer.ggml.scores[%d] is NaN", f->path, i);
    }
    return 0;
}

static int read_id(const struct ModelFile *f, const char *name, int n_tokens, int *out)
{
    *out = -1;
    const struct GgufKey *key = gguf_find(&f->gguf, name);
    if (!key) return 0;
    int64_t id;
    if (key->is_array || !gguf_int(key, 0, &id))
        return err_set(PC_EFORMAT, "%s: %s must be a token id", f->path, name);
    if (id == -1 || id == UINT32_MAX) return 0; /* converters write "none" so */
    if (id < 0 || id >= n_tokens) {
        return err_set(PC_EFORMAT, "%s: %s is %lld, the vocabulary has %d tokens", f->path, name,
                       (long long)id, n_tokens);
    }
    *out = (int)id;
    return 0;
}

static int read_flag(const struct ModelFile *f, const char *name, bool absent, bool *out)
{
    const struct GgufKey *key = gguf_find(&f->gguf, name);
    *out = absent;
    if (key && !gguf_bool(key, out))
        return err_set(PC_EFORMAT, "%s: %s must be true or false", f->path, name);
    return 0;
}

/* The pre-type's name, other names for the same rules made one. tokenizer.c refuses what it does not know. */
static int read_pre(const struct ModelFile *f, struct VocabSpec *v)
{
    static const char *const same[][2] = {
        {"llama3", "llama-bpe"},
        {"llama-v3", "llama-bpe"},
        {"deepseek-r1-qwen", "qwen2"},
    };
    const struct GgufKey *key = gguf_find(&f->gguf, "tokenizer.ggml.pre");
    struct GgufText pre;
    if (!key || !gguf_text(key, &pre)) {
        return err_set(
            PC_EFORMAT,
            "%s: tokenizer.ggml.pre is missing, so how text is cut into words is not known; "
            "convert the model again with a current tool",
            f->path);
    }
    if (pre.len >= sizeof v->pre) {
        return err_set(PC_EFORMAT, "%s: tokenizer.ggml.pre is too long", f->path);
    }
    memcpy(v->pre, pre.data, pre.len);
    v->pre[pre.len] = '\0';
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        if (strcmp(v->pre, same[i][0]) == 0) strcpy(v->pre, same[i][1]);
    }
    return 0;
}

static int read_bpe(struct ModelFile *f, struct VocabSpec *v)
{
    const struct GgufKey *merges = NULL;
    v->kind = VOCAB_BPE;
    TRY(read_pre(f, v));
    TRY(need_array(f, "tokenizer.ggml.merges", GGUF_STRING, &merges));
    if (merges->n > MAX_VOCAB)
        return err_set(PC_EFORMAT, "%s: more than %d merges", f->path, MAX_VOCAB);
    v->n_merges = (int)merges->n;
    return read_texts(f, merges, &v->merges);
}

static int read_special(const struct ModelFile *f, struct VocabSpec *v)
{
    TRY(read_id(f, "tokenizer.ggml.bos_token_id", v->n_tokens, &v->bos_id));
    TRY(read_id(f, "tokenizer.ggml.eos_token_id", v->n_tokens, &v->eos_id));
    TRY(read_id(f, "tokenizer.ggml.eot_token_id", v->n_tokens, &v->eot_id));
    TRY(read_id(f, "tokenizer.ggml.unknown_token_id", v->n_tokens, &v->unk_id));
    TRY(read_id(f, "tokenizer.ggml.padding_token_id", v->n_tokens, &v->pad_id));
    bool spm = v->kind == VOCAB_SPM;
    bool bos =
        spm || strcmp(v->pre, "llama-bpe") == 0; /* Llama-3 files leave the key out and expect it */
    TRY(read_flag(f, "tokenizer.ggml.add_bos_token", bos, &v->add_bos));
    TRY(read_flag(f, "tokenizer.ggml.add_eos_token", false, &v->add_eos));
    TRY(read_flag(f, "tokenizer.ggml.add_space_prefix", spm, &v->add_space_prefix));
    const struct GgufKey *key = gguf_find(&f->gguf, "tokenizer.chat_template");
    struct GgufText text;
    if (key && gguf_text(key, &text)) v->chat_template = slice(text);
    return 0;
}

int model_gguf_vocab(struct ModelFile *f, struct VocabSpec *v)
{
    const struct GgufKey *key = gguf_find(&f->gguf, "tokenizer.ggml.model");
    const struct GgufKey *tokens = NULL;
    struct GgufText model;
    if (!key || !gguf_text(key, &model))
        return err_set(PC_EFORMAT, "%s: tokenizer.ggml.model is missing", f->path);
    TRY(need_array(f, "tokenizer.ggml.tokens", GGUF_STRING, &tokens));
    if (tokens->n == 0 || tokens->n > MAX_VOCAB) {
        return err_set(PC_EFORMAT, "%s: %llu tokens, must be 1 to %d", f->path,
                       (unsigned long long)tokens->n, MAX_VOCAB);
    }
    v->n_tokens = (int)tokens->n;
    TRY(read_texts(f, tokens, &v->tokens));
    TRY(read_token_types(f, v));
    if (text_is(model, "gpt2")) {
        TRY(read_bpe(f, v));
    } else if (text_is(model, "llama")) {
        v->kind = VOCAB_SPM;
        TRY(read_scores(f, v));
    } else {
        return err_set(PC_EFORMAT, "%s: tokenizer \"%.*s\" is not supported (gpt2 and llama are)",
                       f->path, (int)(model.len < 64 ? model.len : 64), model.data);
    }
    return read_special(f, v);
}

/* ==== Tensors ==== */

int model_gguf_load(struct ModelFile *f)
{
    f->is_gguf = true;
    TRY(gguf_parse(f->maps[0].data, f->maps[0].len, f->path, &f->gguf));
    f->header_hash = hash64(f->gguf.data, f->gguf.header_len, 0);
    f->n_tensors = f->gguf.n_tensors;
    f->tensors = mem_alloc((size_t)f->n_tensors, sizeof *f->tensors);
    if (!f->tensors) return PC_ENOMEM;
    for (int i = 0; i < f->n_tensors; i++) {
        const struct GgufTensor *t = &f->gguf.tensors[i];
        struct StoredTensor *out = &f->tensors[i];
        *out = (struct StoredTensor){
            .name = slice(t->name),
            .type = t->type,
            .n_dims = t->n_dims,
            .dims = {1, 1, 1, 1},
            .data = t->data,
            .bytes = t->bytes,
        };
        const char *type = dtype_name(t->type);
        if (type)
            snprintf(out->type_name, sizeof out->type_name, "%s", type);
        else
            snprintf(out->type_name, sizeof out->type_name, "type %u", t->type);
        for (int d = 0; d < t->n_dims; d++) out->dims[d] = t->dims[t->n_dims - 1 - d];
    }
    return model_sort_tensors(f);
}

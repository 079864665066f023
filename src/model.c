/* model.c - opens a model, binds its tensors by name and checks every shape.
 *
 * Two loaders list the stored tensors and read the shape (model_gguf.c, model_hf.c); from there on
 * both kinds of file take the same way. A tensor that should be there and is not, one of the wrong
 * shape, and one that no part of the arithmetic would use are all errors: each would mean that the
 * model computes something other than what its makers trained.
 */
#include "geometry.h"
#include "model_load.h"

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* For "%.*s": long names are cut, or they would push the rest out of the message. */
#define SHOW(text) (int)((text).len < 80 ? (text).len : 80), (text).data

/* ==== Memory that lives with the model ==== */

void *model_keep(struct ModelFile *f, size_t n, size_t size)
{
    if (f->n_blocks == f->cap_blocks) {
        int cap = f->cap_blocks ? 2 * f->cap_blocks : 64;
        void **grown = mem_grow(f->blocks, (size_t)f->cap_blocks, (size_t)cap, sizeof *grown);
        if (!grown) return NULL;
        f->blocks = grown;
        f->cap_blocks = cap;
    }
    void *block = mem_alloc(n, size);
    if (block) f->blocks[f->n_blocks++] = block;
    return block;
}

/* ==== Stored tensors ==== */

static int compare_slices(struct Slice a, struct Slice b)
{
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    if (order != 0) return order;
    return (a.len > b.len) - (a.len < b.len);
}

static int compare_tensors(const void *a, const void *b)
{
    const struct StoredTensor *x = a, *y = b;
    return compare_slices(x->name, y->name);
}

int model_sort_tensors(struct ModelFile *f)
{
    if (f->n_tensors > 0)
        qsort(f->tensors, (size_t)f->n_tensors, sizeof *f->tensors, compare_tensors);
    for (int i = 1; i < f->n_tensors; i++) {
        if (compare_tensors(&f->tensors[i - 1], &f->tensors[i]) == 0) {
            return err_set(PC_EFORMAT, "%s: tensor %.*s is there twice", f->path,
                           SHOW(f->tensors[i].name));
        }
    }
    return 0;
}

struct StoredTensor *model_tensor(const struct ModelFile *f, const char *name)
{
    struct StoredTensor key = {.name = {name, strlen(name)}};
    if (f->n_tensors == 0) return NULL;
    return bsearch(&key, f->tensors, (size_t)f->n_tensors, sizeof *f->tensors, compare_tensors);
}

int model_floats(struct ModelFile *f, const struct StoredTensor *t, const float **out)
{
    if (t->type != DT_F32 && t->type != DT_F16 && t->type != DT_BF16) {
        return err_set(PC_EFORMAT, "%s: tensor %.*s is stored as %s, must be F32, F16 or BF16",
                       f->path, SHOW(t->name), t->type_name);
    }
    size_t n = (size_t)(t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]);
    float *values = model_keep(f, n, sizeof *values);
    if (!values) return PC_ENOMEM;
    quant_decode((enum DType)t->type, t->data, values, (int64_t)n);
    *out = values;
    return 0;
}

/* ==== Binding ==== */

/* Sizes that shapes are made of. */
enum Extent { EX_ONE, EX_DIM, EX_HIDDEN, EX_Q, EX_KV, EX_HEAD, EX_VOCAB };

/* Which models have a tensor; where it is not `may`, finding one is an error too. */
enum Presence { MUST, MAY, QWEN2_MUST, QWEN3_ONLY };

struct TensorRule {
    size_t offset;          /* of the field in struct Layer or struct Model */
    enum Extent rows, cols; /* cols EX_ONE: a vector, turned into f32 */
    enum Presence presence;
    const char *gguf, *hf; /* stored names, after the layer's prefix */
};

/* clang-format off */
#define LAYER(field) offsetof(struct Layer, field)

static const struct TensorRule layer_rules[] = {
    { LAYER(attn_norm), EX_DIM, EX_ONE, MUST, "attn_norm.weight", "input_layernorm.weight" },
    { LAYER(ffn_norm), EX_DIM, EX_ONE, MUST, "ffn_norm.weight", "post_attention_layernorm.weight" },
    { LAYER(q_norm), EX_HEAD, EX_ONE, QWEN3_ONLY, "attn_q_norm.weight", "self_attn.q_norm.weight" },
    { LAYER(k_norm), EX_HEAD, EX_ONE, QWEN3_ONLY, "attn_k_norm.weight", "self_attn.k_norm.weight" },
    { LAYER(bq), EX_Q, EX_ONE, QWEN2_MUST, "attn_q.bias", "self_attn.q_proj.bias" },
    { LAYER(bk), EX_KV, EX_ONE, QWEN2_MUST, "attn_k.bias", "self_attn.k_proj.bias" },
    { LAYER(bv), EX_KV, EX_ONE, QWEN2_MUST, "attn_v.bias", "self_attn.v_proj.bias" },
    { LAYER(bo), EX_DIM, EX_ONE, MAY, "attn_output.bias", "self_attn.o_proj.bias" },
    { LAYER(wq), EX_Q, EX_DIM, MUST, "attn_q.weight", "self_attn.q_proj.weight" },
    { LAYER(wk), EX_KV, EX_DIM, MUST, "attn_k.weight", "self_attn.k_proj.weight" },
    { LAYER(wv), EX_KV, EX_DIM, MUST, "attn_v.weight", "self_attn.v_proj.weight" },
    { LAYER(wo), EX_DIM, EX_Q, MUST, "attn_output.weight", "self_attn.o_proj.weight" },
    { LAYER(w_gate), EX_HIDDEN, EX_DIM, MUST, "ffn_gate.weight", "mlp.gate_proj.weight" },
    { LAYER(w_up), EX_HIDDEN, EX_DIM, MUST, "ffn_up.weight", "mlp.up_proj.weight" },
    { LAYER(w_down), EX_DIM, EX_HIDDEN, MUST, "ffn_down.weight", "mlp.down_proj.weight" },
};
/* clang-format on */

/* clang-format off */
static const struct TensorRule model_rules[] = {
    { offsetof(struct Model, tok_embd), EX_VOCAB, EX_DIM, MUST, "token_embd.weight", "model.embed_tokens.weight" },
    { offsetof(struct Model, output_norm), EX_DIM, EX_ONE, MUST, "output_norm.weight", "model.norm.weight" },
    { offsetof(struct Model, output), EX_VOCAB, EX_DIM, MAY, "output.weight", "lm_head.weight" },
};
/* clang-format on */

struct Binder {
    struct ModelFile *f;
    const struct ModelConfig *cfg;
};

static int extent(const struct ModelConfig *cfg, enum Extent e)
{
    /* clang-format off */
    switch (e) {
    case EX_ONE: return 1;
    case EX_DIM: return cfg->dim;
    case EX_HIDDEN: return cfg->hidden_dim;
    case EX_Q: return cfg->n_heads * cfg->head_dim;
    case EX_KV: return cfg->n_kv_heads * cfg->head_dim;
    case EX_HEAD: return cfg->head_dim;
    case EX_VOCAB: return cfg->vocab_size;
    }
    /* clang-format on */
    return 0;
}

static int check_shape(const struct Binder *b, const struct StoredTensor *t,
                       const struct TensorRule *rule)
{
    bool vector = rule->cols == EX_ONE;
    int rows = extent(b->cfg, rule->rows), cols = extent(b->cfg, rule->cols);
    bool fits = t->dims[0] == (uint64_t)rows && t->dims[1] == (uint64_t)cols && t->dims[2] == 1 &&
                t->dims[3] == 1;
    if (fits && t->n_dims == (vector ? 1 : 2)) return 0;
    char wanted[48];
    snprintf(wanted, sizeof wanted, vector ? "[%d]" : "[%d, %d]", rows, cols);
    return err_set(
        PC_EFORMAT,
        "%s: tensor %.*s has shape [%llu, %llu, %llu, %llu] in %d dimensions, the model's "
        "shape needs %s",
        b->f->path, SHOW(t->name), (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
        (unsigned long long)t->dims[2], (unsigned long long)t->dims[3], t->n_dims, wanted);
}

static int bind_weight(const struct Binder *b, const struct StoredTensor *t, struct Weight *w)
{
    int rows = (int)t->dims[0], cols = (int)t->dims[1]; /* checked to be the model's */
    int weights, bytes;
    if (!dtype_block(t->type, &weights, &bytes)) {
        return err_set(
            PC_EFORMAT,
            "%s: tensor %.*s is stored as %s, which is not supported (F32, F16, BF16, Q4_0, "
            "Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are)",
            b->f->path, SHOW(t->name), t->type_name);
    }
    if (cols % weights != 0) {
        return err_set(PC_EFORMAT,
                       "%s: tensor %.*s: rows of %d weights do not split into %s blocks of %d",
                       b->f->path, SHOW(t->name), cols, dtype_name(t->type), weights);
    }
    *w = (struct Weight){.type = (enum DType)t->type, .rows = rows, .cols = cols, .data = t->data};
    return 0;
}

/* Binds one tensor to the field of `base` that the rule names. */
static int bind(const struct Binder *b, const struct TensorRule *rule, const char *prefix,
                void *base)
{
    char name[96];
    snprintf(name, sizeof name, "%s%s", prefix, b->f->is_gguf ? rule->gguf : rule->hf);
    bool qwen2 = strcmp(b->cfg->arch, "qwen2") == 0, qwen3 = strcmp(b->cfg->arch, "qwen3") == 0;
    if (rule->presence == QWEN3_ONLY && !qwen3) return 0;
    bool must = rule->presence == MUST || rule->presence == QWEN3_ONLY ||
                (rule->presence == QWEN2_MUST && qwen2);
    struct StoredTensor *t = model_tensor(b->f, name);
    if (!t) {
        return must ? err_set(PC_EFORMAT, "%s: tensor %s is missing (a %s model needs it)",
                              b->f->path, name, b->cfg->arch)
                    : 0;
    }
    TRY(check_shape(b, t, rule));
    t->used = true;
    void *field = (char *)base + rule->offset;
    if (rule->cols == EX_ONE) return model_floats(b->f, t, field);
    return bind_weight(b, t, field);
}

static int bind_layers(const struct Binder *b, struct Model *m)
{
    m->layers = model_keep(b->f, (size_t)m->cfg.n_layers, sizeof *m->layers);
    if (!m->layers) return PC_ENOMEM;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, b->f->is_gguf ? "blk.%d." : "model.layers.%d.", l);
        for (size_t i = 0; i < sizeof layer_rules / sizeof layer_rules[0]; i++) {
            TRY(bind(b, &layer_rules[i], prefix, &m->layers[l]));
        }
    }
    return 0;
}

/* Buffers that some converters write out and that hold nothing learned. */
static bool is_ignorable(struct Slice name)
{
    static const char *const tails[] = {"rotary_emb.inv_freq", "attn_rot_embd.weight"};
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        size_t len = strlen(tails[i]);
        if (name.len >= len && memcmp(name.data + name.len - len, tails[i], len) == 0) return true;
    }
    return false;
}

static int refuse_unused(const struct ModelFile *f, const struct ModelConfig *cfg)
{
    for (int i = 0; i < f->n_tensors; i++) {
        const struct StoredTensor *t = &f->tensors[i];
        if (t->used || is_ignorable(t->name)) continue;
        return err_set(PC_EFORMAT, "%s: tensor %.*s has no place in a %s model of %d layers",
                       f->path, SHOW(t->name), cfg->arch, cfg->n_layers);
    }
    return 0;
}

static int bind_all(struct ModelFile *f, struct Model *m)
{
    struct Binder b = {f, &m->cfg};
    for (size_t i = 0; i < sizeof model_rules / sizeof model_rules[0]; i++) {
        TRY(bind(&b, &model_rules[i], "", m));
    }
    if (f->tie == TIE_NO && !m->output.data) {
        return err_set(PC_EFORMAT,
                       "%s: tensor lm_head.weight is missing (tie_word_embeddings is not set)",
                       f->path);
    }
    m->tied = f->tie == TIE_YES || !m->output.data;
    if (m->tied) m->output = m->tok_embd; /* a stored copy is not looked at, as when training */
    TRY(bind_layers(&b, m));
    return refuse_unused(f, &m->cfg);
}

/* ==== Shape ==== */

void model_set_name(struct ModelConfig *cfg, const char *data, size_t len)
{
    if (len >= sizeof cfg->name) len = sizeof cfg->name - 1;
    len = utf8_invalid_at(data, len);
    for (size_t i = 0; i < len; i++) cfg->name[i] = (unsigned char)data[i] < 32 ? ' ' : data[i];
    cfg->name[len] = '\0';
}

int model_check_config(const struct ModelFile *f, struct ModelConfig *cfg)
{
    const struct StoredTensor *embd =
        model_tensor(f, f->is_gguf ? "token_embd.weight" : "model.embed_tokens.weight");
    if (!embd) return err_set(PC_EFORMAT, "%s: the token embedding tensor is missing", f->path);
    if (embd->dims[0] > MAX_VOCAB) {
        return err_set(PC_EFORMAT, "%s: %llu rows of token embeddings, at most %d are read",
                       f->path, (unsigned long long)embd->dims[0], MAX_VOCAB);
    }
    cfg->vocab_size = (int)embd->dims[0];
    if (cfg->n_kv_heads < 1 || cfg->n_heads % cfg->n_kv_heads != 0) {
        return err_set(PC_EFORMAT, "%s: %d query heads do not share %d key heads evenly", f->path,
                       cfg->n_heads, cfg->n_kv_heads);
    }
    if (cfg->head_dim < 2 || cfg->head_dim % 2 != 0) {
        return err_set(PC_EFORMAT, "%s: head width %d must be even", f->path, cfg->head_dim);
    }
    if (cfg->rope_dim < 2 || cfg->rope_dim % 2 != 0 || cfg->rope_dim > cfg->head_dim) {
        return err_set(PC_EFORMAT,
                       "%s: %d rotated elements, must be even and at most the head width %d",
                       f->path, cfg->rope_dim, cfg->head_dim);
    }
    if (cfg->name[0] == '\0') {
        const char *slash = strrchr(f->path, '/');
        const char *base = slash && slash[1] ? slash + 1 : f->path;
        model_set_name(cfg, base, strlen(base));
    }
    return 0;
}

static int check_vocab(const struct ModelFile *f, const struct Model *m)
{
    if (m->vocab.n_tokens <= m->cfg.vocab_size) return 0;
    return err_set(PC_EFORMAT, "%s: %d tokens but only %d rows of embeddings", f->path,
                   m->vocab.n_tokens, m->cfg.vocab_size);
}

/* Every tensor's first and last bytes: enough to tell files apart without reading them whole. */
static void add_totals(const struct ModelFile *f, struct Model *m)
{
    const size_t sample = 4096;
    m->hash = f->header_hash;
    for (int i = 0; i < f->n_tensors; i++) {
        const struct StoredTensor *t = &f->tensors[i];
        size_t n = t->bytes < sample ? t->bytes : sample;
        m->hash = hash64(t->data, n, m->hash);
        m->hash = hash64(t->data + t->bytes - n, n, m->hash);
        m->weight_bytes += t->bytes;
        m->n_params += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
}

/* ==== Opening ==== */

static int map_gguf(struct ModelFile *f)
{
    f->maps = mem_alloc(1, sizeof *f->maps);
    if (!f->maps) return PC_ENOMEM;
    TRY(file_map(f->path, &f->maps[0]));
    f->n_maps = 1;
    return model_gguf_load(f);
}

int model_file_open(const char *path, struct ModelFile *f)
{
    *f = (struct ModelFile){0};
    char *copy = model_keep(f, strlen(path) + 1, 1);
    if (!copy) return PC_ENOMEM;
    f->path = strcpy(copy, path);
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return model_hf_load(f);
    return map_gguf(f);
}

void model_file_close(struct ModelFile *f)
{
    for (int i = 0; i < f->n_maps; i++) file_unmap(&f->maps[i]);
    cJSON_Delete(f->config);
    mem_free(f->maps);
    mem_free(f->tensors);
    gguf_free(&f->gguf);
    for (int i = 0; i < f->n_blocks; i++) mem_free(f->blocks[i]);
    mem_free(f->blocks);
    *f = (struct ModelFile){0};
}

static int fill_model(const char *path, struct ModelFile *f, struct Model *m)
{
    struct RopeSpec rope = {0};
    TRY(model_file_open(path, f));
    TRY(f->is_gguf ? model_gguf_config(f, &m->cfg, &rope) : model_hf_config(f, &m->cfg, &rope));
    TRY(model_check_config(f, &m->cfg));
    TRY(model_rope(f, &rope, &m->cfg));
    TRY(bind_all(f, m));
    TRY(f->is_gguf ? model_gguf_vocab(f, &m->vocab) : model_hf_vocab(f, &m->vocab));
    TRY(check_vocab(f, m));
    add_totals(f, m);
    return 0;
}

int model_open(const char *path, struct Model *out)
{
    *out = (struct Model){0};
    struct ModelFile *f = mem_alloc(1, sizeof *f);
    if (!f) return PC_ENOMEM;
    out->source = f;
    int status = geometry_named(path) ? model_geometry(f, path, out) : fill_model(path, f, out);
    if (status < 0) model_close(out);
    return status;
}

void model_close(struct Model *m)
{
    if (m->source) model_file_close(m->source);
    mem_free(m->source);
    *m = (struct Model){0};
}

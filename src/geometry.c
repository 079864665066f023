/* geometry.c - the published shapes, and a Model of one: weights known by their seeds (geometry.h), and a made
 * vocabulary in which every byte of a text is one token.
 */
#include "geometry.h"
#include "model_load.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* ==== Shapes ==== */

struct Shape {
    const char *name, *arch;
    int n_layers, dim, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, train_len;
    float rope_theta, norm_eps;
    bool tied, add_bos;
};

/* clang-format off */
static const struct Shape shapes[] = {
    { "llama3-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192, 500000, 1e-5f, false, true },
    { "llama2-7b", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 10000, 1e-5f, false, true },
    { "qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 32768, 1000000, 1e-6f, false, false },
    { "smollm2-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000, 1e-5f, true, false },
    { "qwen2.5-0.5b", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1000000, 1e-6f, true, false },
    { "tiny", "llama", 3, 256, 4, 2, 64, 512, 1024, 512, 10000, 1e-5f, false, true }, /* for tests */
    { "tiny-40", "qwen2", 3, 256, 6, 3, 40, 512, 1024, 512, 10000, 1e-6f, false, false },
};

static const struct TypeName {
    const char *name;
    enum DType type;
} type_names[] = {
    { "bf16", DT_BF16 }, { "f16", DT_F16 }, { "f32", DT_F32 }, { "q8_0", DT_Q8_0 }, { "q6_k", DT_Q6_K },
    { "q5_k", DT_Q5_K }, { "q4_k", DT_Q4_K }, { "q5_1", DT_Q5_1 }, { "q5_0", DT_Q5_0 }, { "q4_1", DT_Q4_1 },
    { "q4_0", DT_Q4_0 },
};
/* clang-format on */

enum {
    N_SHAPES = sizeof shapes / sizeof shapes[0],
    N_TYPES = sizeof type_names / sizeof type_names[0],
};

/* The names of a table, "a, b, c", for a message. */
static void list_names(const void *table, size_t n, size_t size, char *out, size_t room)
{
    size_t len = 0;
    for (size_t i = 0; i < n && len < room; i++)
        len += (size_t)snprintf(out + len, room - len, "%s%s", i ? ", " : "",
                                *(const char *const *)((const char *)table + i * size));
}

static int find_shape(const char *name, const struct Shape **out)
{
    char all[256];
    for (int i = 0; i < N_SHAPES; i++) {
        *out = &shapes[i];
        if (strcasecmp(name, shapes[i].name) == 0) return 0;
    }
    list_names(shapes, N_SHAPES, sizeof shapes[0], all, sizeof all);
    return err_set(PC_ECONFIG, "no geometry '%.64s', did you mean '%s'? (%s)", name,
                   word_nearest(name, shapes, N_SHAPES, sizeof shapes[0]), all);
}

static int find_type(const char *name, const struct TypeName **out)
{
    char all[256];
    for (int i = 0; i < N_TYPES; i++) {
        *out = &type_names[i];
        if (strcasecmp(name, type_names[i].name) == 0) return 0;
    }
    list_names(type_names, N_TYPES, sizeof type_names[0], all, sizeof all);
    return err_set(PC_ECONFIG, "no weight type '%.64s' for a geometry, did you mean '%s'? (%s)",
                   name, word_nearest(name, type_names, N_TYPES, sizeof type_names[0]), all);
}

/* Reads "NAME" or "NAME:TYPE". */
static int parse(const char *spec, const struct Shape **shape, const struct TypeName **type)
{
    char name[64];
    size_t len = strcspn(spec, ":");
    snprintf(name, sizeof name, "%.*s", (int)(len < sizeof name ? len : sizeof name - 1), spec);
    TRY(find_shape(name, shape));
    TRY(find_type(spec[len] ? spec + len + 1 : "bf16", type));
    const int widths[] = {(*shape)->dim, (*shape)->hidden_dim,
                          (*shape)->n_heads * (*shape)->head_dim};
    for (int i = 0; i < 3; i++) {
        int weights, bytes;
        dtype_block((uint32_t)(*type)->type, &weights, &bytes);
        if (widths[i] % weights != 0)
            return err_set(PC_ECONFIG,
                           "%s: its rows of %d weights do not split into blocks of %d as %s needs; "
                           "try %s:q8_0 or %s:q4_0",
                           (*shape)->name, widths[i], weights, (*type)->name, (*shape)->name,
                           (*shape)->name);
    }
    return 0;
}

bool geometry_named(const char *path)
{
    return strncmp(path, GEOMETRY_PREFIX, sizeof GEOMETRY_PREFIX - 1) == 0;
}

/* ==== Weights ==== */

struct Maker {
    struct ModelFile *f;
    struct Model *m;
    uint64_t hash; /* of the shape's name: types of one shape share seeds */
    int n_seeds;
    enum DType type;
};

/* A seed for each tensor, none of them 0. */
static uint64_t next_seed(struct Maker *k)
{
    k->n_seeds++;
    uint64_t seed = hash64(&k->n_seeds, sizeof k->n_seeds, k->hash);
    return seed ? seed : 1;
}

static void make_weight(struct Maker *k, struct Weight *w, int rows, int cols)
{
    *w = (struct Weight){.type = k->type, .rows = rows, .cols = cols, .seed = next_seed(k)};
    k->m->n_params += (uint64_t)rows * (uint64_t)cols;
    k->m->weight_bytes += (size_t)rows * dtype_row_bytes(k->type, cols);
}

/* n values: ones, or random ones. */
static int make_vector(struct Maker *k, const float **out, int n, bool random)
{
    float *values = model_keep(k->f, (size_t)n, sizeof *values);
    if (!values) return PC_ENOMEM;
    struct Weight w = {.type = DT_F32, .rows = 1, .cols = n, .seed = next_seed(k)};
    if (random) geometry_fill_row(&w, 0, values);
    for (int i = 0; !random && i < n; i++) values[i] = 1;
    *out = values;
    k->m->n_params += (uint64_t)n;
    k->m->weight_bytes += (size_t)n * sizeof *values;
    return 0;
}

static int make_layer(struct Maker *k, struct Layer *l)
{
    const struct ModelConfig *c = &k->m->cfg;
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    make_weight(k, &l->wq, q, c->dim);
    make_weight(k, &l->wk, kv, c->dim);
    make_weight(k, &l->wv, kv, c->dim);
    make_weight(k, &l->wo, c->dim, q);
    make_weight(k, &l->w_gate, c->hidden_dim, c->dim);
    make_weight(k, &l->w_up, c->hidden_dim, c->dim);
    make_weight(k, &l->w_down, c->dim, c->hidden_dim);
    TRY(make_vector(k, &l->attn_norm, c->dim, false));
    TRY(make_vector(k, &l->ffn_norm, c->dim, false));
    if (strcmp(c->arch, "qwen2") != 0) return 0;
    TRY(make_vector(k, &l->bq, q, true));
    TRY(make_vector(k, &l->bk, kv, true));
    return make_vector(k, &l->bv, kv, true);
}

static int make_weights(struct Maker *k)
{
    struct Model *m = k->m;
    m->layers = model_keep(k->f, (size_t)m->cfg.n_layers, sizeof *m->layers);
    if (!m->layers) return PC_ENOMEM;
    make_weight(k, &m->tok_embd, m->cfg.vocab_size, m->cfg.dim);
    if (m->tied)
        m->output = m->tok_embd;
    else
        make_weight(k, &m->output, m->cfg.vocab_size, m->cfg.dim);
    TRY(make_vector(k, &m->output_norm, m->cfg.dim, false));
    for (int l = 0; l < m->cfg.n_layers; l++) TRY(make_layer(k, &m->layers[l]));
    return 0;
}

/* ==== Vocabulary ==== */

enum { N_BYTES = 256, ID_BOS = N_BYTES, ID_EOS, N_NAMED, SPELLING_MAX = 20 };

/* Byte-level BPE spells bytes that print as themselves, and the other 68 as U+0100 onwards. */
static bool byte_prints(int byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

static int spell(int id, int *n_odd, char out[SPELLING_MAX])
{
    if (id == ID_BOS) return snprintf(out, SPELLING_MAX, "<|begin_of_text|>");
    if (id == ID_EOS) return snprintf(out, SPELLING_MAX, "<|end_of_text|>");
    /* the space, in that spelling, and a word that no text becomes, for there are no merges */
    if (id > ID_EOS) return snprintf(out, SPELLING_MAX, "\xc4\xa0w%d", id);
    int code = byte_prints(id) ? id : 0x100 + (*n_odd)++;
    if (code < 0x80) return snprintf(out, SPELLING_MAX, "%c", code);
    return snprintf(out, SPELLING_MAX, "%c%c", 0xc0 | code >> 6, 0x80 | (code & 63));
}

static int make_vocab(struct ModelFile *f, const struct Shape *shape, struct VocabSpec *v)
{
    size_t n = (size_t)shape->vocab_size;
    char *text = model_keep(f, n, SPELLING_MAX);
    v->tokens = model_keep(f, n, sizeof *v->tokens);
    v->types = model_keep(f, n, sizeof *v->types);
    if (!text || !v->tokens || !v->types) return PC_ENOMEM;
    v->kind = VOCAB_BPE;
    strcpy(v->pre, "gpt-2");
    v->n_tokens = shape->vocab_size;
    v->bos_id = ID_BOS;
    v->eos_id = ID_EOS;
    v->eot_id = v->unk_id = v->pad_id = -1;
    v->add_bos = shape->add_bos;
    int n_odd = 0;
    for (int id = 0; id < v->n_tokens; id++, text += SPELLING_MAX) {
        v->tokens[id] = (struct Slice){text, (size_t)spell(id, &n_odd, text)};
        v->types[id] = id == ID_BOS || id == ID_EOS ? TOKEN_CONTROL : TOKEN_NORMAL;
    }
    return 0;
}

/* ==== Opening ==== */

static void make_config(const struct Shape *s, const struct TypeName *type, struct ModelConfig *c)
{
    *c = (struct ModelConfig){
        .dim = s->dim,
        .hidden_dim = s->hidden_dim,
        .n_layers = s->n_layers,
        .n_heads = s->n_heads,
        .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim,
        .vocab_size = s->vocab_size,
        .train_len = s->train_len,
        .rope_theta = s->rope_theta,
        .norm_eps = s->norm_eps,
        .rope_style = strcmp(s->arch, "llama") == 0 ? ROPE_PAIRS : ROPE_HALVES, /* as in GGUF */
        .rope_dim = s->head_dim,
    };
    strcpy(c->arch, s->arch);
    snprintf(c->name, sizeof c->name, "%s geometry, random weights, %s", s->name,
             dtype_name((uint32_t)type->type));
}

int model_geometry(struct ModelFile *f, const char *path, struct Model *m)
{
    const struct Shape *shape;
    const struct TypeName *type;
    struct RopeSpec rope = {0};
    TRY(parse(path + sizeof GEOMETRY_PREFIX - 1, &shape, &type));
    f->path = GEOMETRY_PREFIX;
    m->geometry = true;
    m->tied = shape->tied;
    make_config(shape, type, &m->cfg);
    TRY(model_rope(f, &rope, &m->cfg));
    struct Maker k = {f, m, hash64(shape->name, strlen(shape->name), 1), 0, type->type};
    TRY(make_weights(&k));
    m->hash = hash64(m->cfg.name, strlen(m->cfg.name), k.hash);
    return make_vocab(f, shape, &m->vocab);
}

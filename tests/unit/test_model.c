/* test_model.c - opening models: both kinds of file agree, every refusal names its reason, rope
 * rules give the published frequencies, and what inspect says. Real models are looked for in the
 * folder PCOMP_MODELS.
 */
#include "src/gguf.h"
#include "src/model.h"
#include "tests/tiny.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const archs[] = { "llama", "qwen2", "qwen3" };
static char dir[256], file[300], folder[300];

static int make_dir(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/pcomp-model-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(dir)) return -1;
    snprintf(file, sizeof file, "%s/t.gguf", dir);
    snprintf(folder, sizeof folder, "%s/hf", dir);
    return mkdir(folder, 0700);
}

static void in_folder(const char *name, char path[400])
{
    snprintf(path, 400, "%s/%s", folder, name);
}

static int drop_dir(void **state)
{
    (void)state;
    static const char *const names[] = {
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors",
        "chat_template.jinja", "model.safetensors.index.json", "a.safetensors",
    };
    char path[400];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        in_folder(names[i], path);
        unlink(path);
    }
    unlink(file);
    rmdir(folder);
    return rmdir(dir);
}

static void open_ok(const char *path, struct Model *m)
{
    if (model_open(path, m) != 0) fail_msg("%s", err_text());
}

static void refused(const char *path, const char *part)
{
    struct Model m;
    size_t before = mem_in_use();
    int status = model_open(path, &m);
    if (status != PC_EFORMAT || !strstr(err_text(), part)) fail_msg("%d, wanted \"%s\": %s", status, part, err_text());
    assert_int_equal(mem_in_use(), before);
    assert_null(m.source);
}

/* ==== Changing tiny files ==== */

static void write_str(const struct Str *s)
{
    assert_int_equal(file_write(file, s->data, s->len), 0);
}

/* The tiny GGUF file with every `from` in it turned into `to`, of the same length. */
static void write_patched(const char *arch, const char *from, const char *to)
{
    struct TinySpec spec = tiny_spec(arch);
    struct Str s = { 0 };
    assert_int_equal(strlen(from), strlen(to));
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    bool found = false;
    for (char *at = s.data; (at = memmem(at, s.len - (size_t)(at - s.data), from, strlen(from))); at++) {
        memcpy(at, to, strlen(to));
        found = true;
    }
    assert_true(found);
    write_str(&s);
    str_free(&s);
}

static void put(struct Str *s, const void *data, size_t n)
{
    assert_int_equal(str_append(s, data, n), 0);
}

static void put_text(struct Str *s, const char *text)
{
    uint64_t len = strlen(text);
    put(s, &len, sizeof len);
    put(s, text, len);
}

static void put_u32(struct Str *s, uint32_t v) { put(s, &v, sizeof v); }

static void key_u32(struct Str *s, const char *name, uint32_t v)
{
    put_text(s, name);
    put_u32(s, GGUF_U32);
    put_u32(s, v);
}

static void key_f32(struct Str *s, const char *name, float v)
{
    put_text(s, name);
    put_u32(s, GGUF_F32);
    put(s, &v, sizeof v);
}

static void key_text(struct Str *s, const char *name, const char *v)
{
    put_text(s, name);
    put_u32(s, GGUF_STRING);
    put_text(s, v);
}

/* Writes the tiny file with more keys before its own and more tensor entries after its own. */
static void write_with(const struct TinySpec *spec, struct Str *keys, int n_keys, struct Str *tensors, int n_tensors)
{
    enum { HEAD = 24, TENSORS_AT = 8, KEYS_AT = 16 };
    struct Str s = { 0 }, out = { 0 };
    struct Gguf g;
    uint64_t count;
    assert_int_equal(tiny_gguf_bytes(spec, &s), 0);
    assert_int_equal(gguf_parse((const uint8_t *)s.data, s.len, "t", &g), 0);
    put(&out, s.data, HEAD);
    put(&out, keys->data, keys->len);
    put(&out, s.data + HEAD, g.header_len - HEAD);
    put(&out, tensors->data, tensors->len);
    while (out.len % g.alignment) put(&out, "", 1);
    put(&out, s.data + g.data_start, s.len - g.data_start);
    count = (uint64_t)(g.n_tensors + n_tensors);
    memcpy(out.data + TENSORS_AT, &count, sizeof count);
    count = (uint64_t)(g.n_keys + n_keys);
    memcpy(out.data + KEYS_AT, &count, sizeof count);
    write_str(&out);
    gguf_free(&g);
    str_free(&s);
    str_free(&out);
    str_free(keys);
    str_free(tensors);
}

static void write_with_keys(const char *arch, struct Str *keys, int n)
{
    struct TinySpec spec = tiny_spec(arch);
    struct Str none = { 0 };
    write_with(&spec, keys, n, &none, 0);
}

static void write_with_tensor(const char *name, uint64_t cols, uint32_t type)
{
    struct TinySpec spec = tiny_spec("llama");
    struct Str none = { 0 }, entry = { 0 };
    uint64_t offset = 0;
    put_text(&entry, name);
    put_u32(&entry, 1);
    put(&entry, &cols, sizeof cols);
    put_u32(&entry, type);
    put(&entry, &offset, sizeof offset);
    write_with(&spec, &none, 0, &entry, 1);
}

static void write_folder(const char *arch)
{
    char path[400];
    struct TinySpec spec = tiny_spec(arch);
    in_folder("generation_config.json", path);
    unlink(path);
    assert_int_equal(tiny_safetensors(folder, &spec), 0);
}

/* Turns the first `from` in a file of the folder into `to`. */
static void edit(const char *name, const char *from, const char *to)
{
    char path[400];
    struct Str s = { 0 }, out = { 0 };
    in_folder(name, path);
    assert_int_equal(file_read(path, &s), 0);
    char *at = strstr(s.data, from);
    assert_non_null(at);
    put(&out, s.data, (size_t)(at - s.data));
    put(&out, to, strlen(to));
    put(&out, at + strlen(from), strlen(at + strlen(from)));
    assert_int_equal(file_write(path, out.data, out.len), 0);
    str_free(&s);
    str_free(&out);
}

/* ==== Two kinds of file, one model ==== */

static void same_vector(const float *a, const float *b, int n)
{
    assert_int_equal(a == NULL, b == NULL);
    if (a) assert_memory_equal(a, b, (size_t)n * sizeof *a);
}

/* Rows of a; b's rows reordered to match when a's pairs are b's halves. */
static void same_rows(const void *a, const void *b, int rows, int cols, int head_dim, bool paired)
{
    const char *x = a, *y = b;
    size_t row_bytes = (size_t)cols * sizeof(float);
    for (int r = 0; r < rows; r++) {
        int in_head = r % head_dim;
        int from = paired ? r - in_head + in_head % 2 * (head_dim / 2) + in_head / 2 : r;
        assert_memory_equal(x + (size_t)r * row_bytes, y + (size_t)from * row_bytes, row_bytes);
    }
}

static void same_weight(const struct Weight *a, const struct Weight *b, int head_dim, bool paired)
{
    assert_int_equal(a->type, DT_F32);
    assert_int_equal(b->type, DT_F32);
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->cols, b->cols);
    same_rows(a->data, b->data, a->rows, a->cols, head_dim, paired);
}

static void same_layer(const struct Layer *a, const struct Layer *b, const struct ModelConfig *c)
{
    bool paired = c->rope_style == ROPE_PAIRS;
    int hd = c->head_dim;
    same_vector(a->attn_norm, b->attn_norm, c->dim);
    same_vector(a->ffn_norm, b->ffn_norm, c->dim);
    same_vector(a->q_norm, b->q_norm, hd);
    same_vector(a->k_norm, b->k_norm, hd);
    same_vector(a->bv, b->bv, c->n_kv_heads * hd);
    same_vector(a->bq, b->bq, c->n_heads * hd);
    same_vector(a->bk, b->bk, c->n_kv_heads * hd);
    same_weight(&a->wq, &b->wq, hd, paired);
    same_weight(&a->wk, &b->wk, hd, paired);
    same_weight(&a->wv, &b->wv, hd, false);
    same_weight(&a->wo, &b->wo, hd, false);
    same_weight(&a->w_gate, &b->w_gate, hd, false);
    same_weight(&a->w_up, &b->w_up, hd, false);
    same_weight(&a->w_down, &b->w_down, hd, false);
}

static void same_vocab(const struct VocabSpec *a, const struct VocabSpec *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_string_equal(a->pre, b->pre);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_merges, b->n_merges);
    for (int i = 0; i < a->n_tokens; i++) {
        assert_int_equal(a->tokens[i].len, b->tokens[i].len);
        assert_memory_equal(a->tokens[i].data, b->tokens[i].data, a->tokens[i].len);
        assert_int_equal(a->types[i], b->types[i]);
    }
    for (int i = 0; i < a->n_merges; i++) {
        assert_int_equal(a->merges[i].len, b->merges[i].len);
        assert_memory_equal(a->merges[i].data, b->merges[i].data, a->merges[i].len);
    }
    assert_int_equal(a->bos_id, b->bos_id);
    assert_int_equal(a->eos_id, b->eos_id);
    assert_int_equal(a->eot_id, b->eot_id);
    assert_int_equal(a->unk_id, b->unk_id);
    assert_int_equal(a->pad_id, b->pad_id);
    assert_int_equal(a->add_bos, b->add_bos);
    assert_int_equal(a->add_space_prefix, b->add_space_prefix);
    assert_int_equal(a->chat_template.len, b->chat_template.len);
    assert_memory_equal(a->chat_template.data, b->chat_template.data, a->chat_template.len);
}

static void same_config(const struct ModelConfig *a, const struct ModelConfig *b)
{
    assert_string_equal(a->arch, b->arch);
    assert_int_equal(a->dim, b->dim);
    assert_int_equal(a->hidden_dim, b->hidden_dim);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_heads, b->n_heads);
    assert_int_equal(a->n_kv_heads, b->n_kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->vocab_size, b->vocab_size);
    assert_int_equal(a->train_len, b->train_len);
    assert_int_equal(a->rope_dim, b->rope_dim);
    assert_true(a->rope_theta == b->rope_theta && a->norm_eps == b->norm_eps && a->rope_scale == b->rope_scale);
    assert_memory_equal(a->inv_freq, b->inv_freq, (size_t)a->rope_dim / 2 * sizeof(float));
}

static void both_loaders_give_one_model(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++) {
        struct TinySpec spec = tiny_spec(archs[i]);
        struct Model a, b;
        assert_int_equal(tiny_gguf(file, &spec), 0);
        write_folder(archs[i]);
        open_ok(file, &a);
        open_ok(folder, &b);
        same_config(&a.cfg, &b.cfg);
        assert_int_equal(a.cfg.rope_style, i == 0 ? ROPE_PAIRS : ROPE_HALVES);
        assert_int_equal(b.cfg.rope_style, ROPE_HALVES);
        assert_int_equal(a.tied, spec.tied);
        assert_int_equal(b.tied, spec.tied);
        assert_int_equal(a.n_params, b.n_params);
        same_weight(&a.tok_embd, &b.tok_embd, 1, false);
        same_weight(&a.output, &b.output, 1, false);
        same_vector(a.output_norm, b.output_norm, a.cfg.dim);
        for (int l = 0; l < a.cfg.n_layers; l++) same_layer(&a.layers[l], &b.layers[l], &a.cfg);
        same_vocab(&a.vocab, &b.vocab);
        assert_int_equal(a.layers[0].q_norm != NULL, i == 2);
        assert_int_equal(a.layers[0].bq != NULL, i == 1);
        model_close(&a);
        model_close(&b);
    }
}

static void every_type_opens(void **state)
{
    (void)state;
    static const enum DType all[] = { DT_F32, DT_F16, DT_BF16, DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1,
                                      DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K };
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct TinySpec spec = tiny_spec("llama");
        struct Model m;
        float row[256];
        double sum = 0;
        spec.dim = spec.hidden_dim = 256;
        spec.type = all[i];
        assert_int_equal(tiny_gguf(file, &spec), 0);
        open_ok(file, &m);
        assert_int_equal(m.tok_embd.type, all[i]);
        assert_int_not_equal(m.hash, hash);
        hash = m.hash;
        quant_decode(all[i], m.tok_embd.data, row, 256);
        for (int k = 0; k < 256; k++) sum += (double)(row[k] * row[k]);
        if (!(sqrt(sum / 256) > 0.1 && sqrt(sum / 256) < 0.9)) fail_msg("%s: %g", dtype_name(all[i]), sqrt(sum / 256));
        model_close(&m);
    }
}

static void shards_and_hash(void **state)
{
    (void)state;
    char from[400], to[400];
    struct Model m;
    write_folder("llama");
    open_ok(folder, &m);
    uint64_t hash = m.hash;
    model_close(&m);
    in_folder("model.safetensors", from);
    in_folder("a.safetensors", to);
    assert_int_equal(rename(from, to), 0);
    in_folder("model.safetensors.index.json", from);
    static const char index[] = "{\"weight_map\": {\"model.norm.weight\": \"a.safetensors\"}}";
    assert_int_equal(file_write(from, index, strlen(index)), 0);
    open_ok(folder, &m);
    assert_int_equal(m.hash, hash);
    model_close(&m);
    unlink(from);
    unlink(to);
}

/* ==== Refusals ==== */

static void missing_tensors_are_named(void **state)
{
    (void)state;
    static const char *const names[] = {
        "token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight", "blk.0.attn_q_norm.weight",
        "blk.1.ffn_down.weight", "blk.0.attn_norm.weight",
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char other[64];
        snprintf(other, sizeof other, "%s", names[i]);
        other[0] = 'X';
        write_patched("qwen3", names[i], other);
        refused(file, i == 0 ? "token embedding" : names[i]);
    }
    write_patched("qwen2", "blk.0.attn_q.bias", "blk.0.attn_q.biaX");
    refused(file, "blk.0.attn_q.bias is missing");
}

static void strange_tensors_are_named(void **state)
{
    (void)state;
    write_with_tensor("blk.0.attn_q_norm.weight", 16, DT_F32);
    refused(file, "tensor blk.0.attn_q_norm.weight has no place in a llama model");
    write_with_tensor("blk.0.attn_output.bias", 63, DT_F32);
    refused(file, "blk.0.attn_output.bias has shape [63");
    write_with_tensor("blk.0.attn_output.bias", 64, DT_Q8_0);
    refused(file, "blk.0.attn_output.bias is stored as Q8_0");
    write_with_tensor("output.weight", 256, 10);
    refused(file, "output.weight has shape");
    write_with_tensor("blk.7.attn_norm.weight", 64, DT_F32);
    refused(file, "2 layers");
    struct Model m;
    write_with_tensor("blk.0.attn_rot_embd.weight", 8, DT_F32);
    open_ok(file, &m);
    model_close(&m);
}

static void unread_types_are_named(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    struct Str s = { 0 };
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    /* name, dimension count, two dimensions, type */
    char *at = memmem(s.data, s.len, "blk.0.ffn_up.weight", 19);
    uint32_t type = 23;
    memcpy(at + 19 + 4 + 16, &type, sizeof type);
    write_str(&s);
    str_free(&s);
    refused(file, "blk.0.ffn_up.weight is stored as IQ4_XS");
    struct Str out = { 0 };
    assert_int_equal(model_inspect(file, false, &out), 0);
    assert_non_null(strstr(out.data, "Refused"));
    assert_non_null(strstr(out.data, "blk.0.ffn_up.weight IQ4_XS [128, 64] 32.0 KiB"));
    str_free(&out);
}

static void refuse_key(struct Str *key, const char *part)
{
    write_with_keys("llama", key, 1);
    refused(file, part);
}

static void strange_keys_are_named(void **state)
{
    (void)state;
    struct Str k = { 0 };
    write_patched("llama", "general.architecture", "general.architecturX");
    refused(file, "general.architecture is missing");
    struct TinySpec spec = tiny_spec("gemma");
    assert_int_equal(tiny_gguf(file, &spec), 0);
    refused(file, "architecture \"gemma\" is not supported");
    key_u32(&k, "llama.expert_count", 8);
    refuse_key(&k, "llama.expert_count, which is not supported");
    key_f32(&k, "llama.attn_logit_softcapping", 30);
    refuse_key(&k, "llama.attn_logit_softcapping");
    key_u32(&k, "split.count", 2);
    refuse_key(&k, "merge the parts");
    write_patched("llama", "llama.attention.head_count_kv", "llama.attention.head_count_kX");
    refused(file, "tensor blk.0.attn_k.weight has shape");
    write_patched("llama", "llama.block_count", "llama.block_counX");
    refused(file, "llama.block_count is missing or 0");
    write_patched("llama", "layer_norm_rms_epsilon", "layer_norm_rms_epsiloX");
    refused(file, "layer_norm_rms_epsilon is missing");
    write_patched("llama", "tokenizer.ggml.pre", "tokenizer.ggml.prX");
    refused(file, "tokenizer.ggml.pre is missing");
    write_patched("llama", "gpt2", "bert");
    refused(file, "tokenizer \"bert\" is not supported");
    key_u32(&k, "tokenizer.ggml.eot_token_id", 5000);
    refuse_key(&k, "eot_token_id is 5000");
}

static void per_layer_heads_are_named(void **state)
{
    (void)state;
    struct Str k = { 0 };
    struct TinySpec spec = tiny_spec("llama");
    struct Str s = { 0 }, none = { 0 };
    put_text(&k, "qwen9.attention.head_count");
    put_u32(&k, GGUF_ARRAY);
    put_u32(&k, GGUF_U32);
    uint64_t two = 2;
    put(&k, &two, sizeof two);
    put_u32(&k, 4);
    put_u32(&k, 4);
    write_with(&spec, &k, 1, &none, 0);
    assert_int_equal(file_read(file, &s), 0);
    /* Swap the two names: the array takes the place of the number. */
    char *plain = memmem(s.data, s.len, "\32\0\0\0\0\0\0\0llama.attention.head_count", 34);
    char *list = memmem(s.data, s.len, "qwen9.attention.head_count", 26);
    assert_non_null(plain);
    memcpy(plain + 8, "qwen9", 5);
    memcpy(list, "llama", 5);
    write_str(&s);
    refused(file, "llama.attention.head_count differs from layer to layer");
    str_free(&s);
}

static void other_paths_are_refused(void **state)
{
    (void)state;
    struct Model m;
    char path[400];
    assert_int_equal(model_open("/nonexistent/x.gguf", &m), PC_EIO);
    assert_int_equal(file_write(file, "hello", 5), 0);
    refused(file, "not a GGUF file");
    assert_int_equal(file_write(file, "", 0), 0);
    refused(file, "not a GGUF file");
    write_folder("llama");
    in_folder("tokenizer.json", path);
    unlink(path);
    assert_int_equal(model_open(folder, &m), PC_EIO);
    in_folder("config.json", path);
    unlink(path);
    assert_int_equal(model_open(folder, &m), PC_EIO);
}

static void bad_configs_are_named(void **state)
{
    (void)state;
    static const char *const edits[][3] = {
        { "\"LlamaForCausalLM\"", "\"GemmaForCausalLM\"", "GemmaForCausalLM" },
        { "\"silu\"", "\"gelu\"", "hidden_act \"gelu\"" },
        { "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2.5", "num_hidden_layers" },
        { "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2.input_layernorm.weight is missing" },
        { "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "has no place" },
        { "\"num_attention_heads\": 4", "\"num_attention_heads\": 3", "do not share" },
        { "\"head_dim\": 16", "\"head_dim\": 15", "must be even" },
        { "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "lm_head.weight is missing" },
        { "\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"longrope\"}", "\"longrope\" is not supported" },
        { "\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2}", "\"dynamic\"" },
        { "\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"linear\"}", "factor 0 must be above 0" },
        { "\"rope_scaling\": null", "\"quantization_config\": {\"bits\": 4}", "quantization_config" },
        { "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 0", "rms_norm_eps" },
        { "\"rope_theta\": 10000.0", "\"rope_theta\": \"x\"", "rope_theta must be a finite number" },
    };
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        write_folder("llama");
        edit("config.json", edits[i][0], edits[i][1]);
        refused(folder, edits[i][2]);
    }
}

/* ==== tokenizer.json ==== */

#define RULE(digits)                                                                                                   \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "                      \
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" digits                                    \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, "                         \
    "\"behavior\": \"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", \"use_regex\": false}]}"

static const char tiny_pre[] =
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, "
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}]}";

static void known_word_rules_get_their_name(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        { RULE("\\\\p{N}{1,3}"), "llama-bpe" },
        { RULE("\\\\p{N}"), "qwen2" },
        { "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}", "gpt-2" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct Model m;
        write_folder("llama");
        edit("tokenizer.json", tiny_pre, cases[i][0]);
        open_ok(folder, &m);
        assert_string_equal(m.vocab.pre, cases[i][1]);
        model_close(&m);
    }
}

static void other_tokenizers_are_named(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        { tiny_pre, RULE("\\\\p{N}{1,2}"), "{1,2}" },
        { tiny_pre, "{\"type\": \"Metaspace\"}", "\"Metaspace\"" },
        { tiny_pre, "null", "pre_tokenizer \"none\"" },
        { "\"individual_digits\": true", "\"individual_digits\": false", "\"Digits + ByteLevel\"" },
        { "\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}", "normalizer \"Lowercase\"" },
        { "\"type\": \"BPE\"", "\"type\": \"Unigram\"", "model \"Unigram\"" },
        { "\"type\": \"BPE\"", "\"type\": \"BPE\", \"byte_fallback\": true", "byte_fallback" },
        { "\"id\": 281", "\"id\": 99999999", "id of token" },
        { "\": 17,", "\": 18,", "two tokens have id 18" },
        { "\"t h\"", "3", "merge 0" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_folder("llama");
        edit("tokenizer.json", cases[i][0], cases[i][1]);
        refused(folder, cases[i][2]);
    }
}

static void special_tokens_and_templates(void **state)
{
    (void)state;
    char path[400];
    struct Model m;
    write_folder("llama");
    edit("tokenizer.json", "\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}, \"post_processor\": {\"type\": "
         "\"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": \"TemplateProcessing\", \"single\": "
         "[{\"SpecialToken\": {\"id\": \"<|im_start|>\"}}, {\"Sequence\": {\"id\": \"A\"}}]}]}");
    edit("tokenizer.json", "\"t h\"", "[\"t\", \"h\"]");
    edit("tokenizer.json", "\"id\": 281, \"content\": \"<|im_start|>\", \"special\": true",
         "\"id\": 281, \"content\": \"<|im_start|>\", \"special\": false");
    edit("tokenizer_config.json", "\"add_bos_token\": false", "\"eos_token\": {\"content\": \"<|im_start|>\"}, "
         "\"pad_token\": \"<|endoftext|>\"");
    edit("tokenizer_config.json", "\"chat_template\"", "\"no_template\"");
    in_folder("generation_config.json", path);
    static const char generation[] = "{\"eos_token_id\": [282, 280]}";
    assert_int_equal(file_write(path, generation, strlen(generation)), 0);
    in_folder("chat_template.jinja", path);
    assert_int_equal(file_write(path, "{{x}}", 5), 0);
    open_ok(folder, &m);
    assert_true(m.vocab.add_bos);
    assert_int_equal(m.vocab.bos_id, 281);
    assert_int_equal(m.vocab.eos_id, 282);
    assert_int_equal(m.vocab.eot_id, 281);
    assert_int_equal(m.vocab.pad_id, 280);
    assert_int_equal(m.vocab.types[281], TOKEN_USER);
    assert_int_equal(m.vocab.types[282], TOKEN_CONTROL);
    assert_memory_equal(m.vocab.merges[0].data, "t h", 3);
    assert_int_equal(m.vocab.chat_template.len, 5);
    model_close(&m);
    unlink(path);
}

/* ==== Rope ==== */

static void near_all(const float *got, const double *want, int n)
{
    for (int i = 0; i < n; i++) {
        if (fabs((double)got[i] / want[i] - 1) > 1e-6) fail_msg("%d: %.9g, want %.9g", i, (double)got[i], want[i]);
    }
}

/* Heads of 16, base 10000. The values follow the formulas as published, worked out apart. */
static const double plain_freq[] = { 1, 0.316227766, 0.1, 0.0316227766, 0.01, 0.00316227766, 0.001, 0.000316227766 };
/* factor 8, bands 1 and 4, original 128 */
static const double llama3_freq[] = { 1, 0.316227766, 0.0427511788, 0.00395284708, 0.00125, 0.000395284708, 0.000125, 3.95284708e-05 };
/* factor 4, original 512 */
static const double yarn_freq[] = { 1, 0.25693506, 0.0625, 0.0138349648, 0.0025, 0.000790569415, 0.00025, 7.90569415e-05 };

static void plain_rope(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    struct Model m;
    assert_int_equal(tiny_gguf(file, &spec), 0);
    open_ok(file, &m);
    near_all(m.cfg.inv_freq, plain_freq, 8);
    assert_string_equal(m.cfg.rope_scaling, "none");
    assert_true(m.cfg.rope_scale == 1);
    model_close(&m);
}

static void scaled_rope_of_gguf_files(void **state)
{
    (void)state;
    struct Str k = { 0 };
    struct Model m;
    double linear[8];
    for (int i = 0; i < 8; i++) linear[i] = plain_freq[i] / 4;
    key_f32(&k, "llama.rope.scale_linear", 4);
    write_with_keys("llama", &k, 1);
    open_ok(file, &m);
    near_all(m.cfg.inv_freq, linear, 8);
    assert_string_equal(m.cfg.rope_scaling, "linear");
    model_close(&m);

    key_text(&k, "llama.rope.scaling.type", "yarn");
    key_f32(&k, "llama.rope.scaling.factor", 4);
    key_u32(&k, "llama.rope.scaling.original_context_length", 512);
    write_with_keys("llama", &k, 3);
    open_ok(file, &m);
    near_all(m.cfg.inv_freq, yarn_freq, 8);
    assert_true(fabs((double)m.cfg.rope_scale - (0.1 * log(4) + 1)) < 1e-6);
    assert_string_equal(m.cfg.rope_scaling, "yarn");
    model_close(&m);

    key_text(&k, "llama.rope.scaling.type", "longrope");
    key_f32(&k, "llama.rope.scaling.factor", 4);
    write_with_keys("llama", &k, 2);
    refused(file, "\"longrope\" is not supported");
    key_text(&k, "llama.rope.scaling.type", "yarn");
    write_with_keys("llama", &k, 1);
    refused(file, "without llama.rope.scaling.factor");
    key_u32(&k, "llama.rope.dimension_count", 7);
    write_with_keys("llama", &k, 1);
    refused(file, "7 rotated elements");
    key_u32(&k, "llama.attention.sliding_window", 100);
    write_with_keys("llama", &k, 1);
    open_ok(file, &m);
    assert_int_equal(m.cfg.train_len, 100);
    model_close(&m);
}

/* The factors are the first values of the data: an F32 norm's would do, but must be above 0. */
static void stored_rope_factors(void **state)
{
    (void)state;
    struct Model m;
    struct TinySpec spec = tiny_spec("llama");
    struct Str none = { 0 }, entry = { 0 }, s = { 0 };
    struct Gguf g;
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    assert_int_equal(gguf_parse((const uint8_t *)s.data, s.len, "t", &g), 0);
    const struct GgufTensor *norm = gguf_tensor(&g, "output_norm.weight");
    uint64_t n = 8, offset = norm->offset - g.data_start;
    put_text(&entry, "rope_freqs.weight");
    put_u32(&entry, 1);
    put(&entry, &n, sizeof n);
    put_u32(&entry, DT_F32);
    put(&entry, &offset, sizeof offset);
    write_with(&spec, &none, 0, &entry, 1);
    open_ok(file, &m);
    double want[8];
    for (int i = 0; i < 8; i++) want[i] = plain_freq[i] / (double)m.output_norm[i];
    near_all(m.cfg.inv_freq, want, 8);
    assert_string_equal(m.cfg.rope_scaling, "llama3");
    model_close(&m);
    gguf_free(&g);
    str_free(&s);
    write_with_tensor("rope_freqs.weight", 7, DT_F32);
    refused(file, "7 rope factors for 8 pairs");
}

static void scaled_rope_of_folders(void **state)
{
    (void)state;
    struct Model m;
    write_folder("llama");
    edit("config.json", "\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "
         "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 128}");
    open_ok(folder, &m);
    near_all(m.cfg.inv_freq, llama3_freq, 8);
    model_close(&m);

    write_folder("llama");
    edit("config.json", "\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0, "
         "\"attention_factor\": 1.5, \"original_max_position_embeddings\": 512}");
    open_ok(folder, &m);
    near_all(m.cfg.inv_freq, yarn_freq, 8);
    assert_true(m.cfg.rope_scale == 1.5f);
    model_close(&m);

    write_folder("llama");
    edit("config.json", "\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"default\"}, \"sliding_window\": 99");
    open_ok(folder, &m);
    near_all(m.cfg.inv_freq, plain_freq, 8);
    assert_int_equal(m.cfg.train_len, 99);
    model_close(&m);
}

/* ==== Damage, faults ==== */

/* Flips bits anywhere in the header; whatever opens must be usable by its own account. */
static void no_bit_flip_crashes(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("qwen2");
    struct Str s = { 0 };
    struct Gguf g;
    uint64_t seed = 7;
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    assert_int_equal(gguf_parse((const uint8_t *)s.data, s.len, "t", &g), 0);
    size_t header = g.header_len;
    gguf_free(&g);
    for (int round = 0; round < 1500; round++) {
        struct Model m;
        seed = hash64(&round, sizeof round, seed);
        char *at = s.data + seed % header, old = *at;
        *at ^= (char)(1 << (seed >> 40) % 8);
        write_str(&s);
        if (model_open(file, &m) == 0) {
            float row[128];
            for (int l = 0; l < m.cfg.n_layers; l++) {
                const struct Weight *w = &m.layers[l].w_down;
                size_t row_bytes = dtype_row_bytes(w->type, w->cols);
                assert_true(row_bytes > 0 && w->cols <= 128);
                quant_decode(w->type, (const char *)w->data + (size_t)(w->rows - 1) * row_bytes, row, w->cols);
            }
            model_close(&m);
        }
        struct Str out = { 0 };
        if (round % 16 == 0) model_inspect(file, round % 32 == 0, &out);
        str_free(&out);
        *at = old;
    }
    str_free(&s);
}

static void failed_allocations_are_reported(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("qwen3");
    assert_int_equal(tiny_gguf(file, &spec), 0);
    write_folder("qwen3");
    const char *const paths[] = { file, folder };
    for (int i = 0; i < 2; i++) {
        size_t before = mem_in_use();
        int status = PC_ENOMEM;
        for (long n = 1; status != 0; n++) {
            struct Model m;
            assert_true(n < 1000);
            mem_fail_after(n);
            status = model_open(paths[i], &m);
            mem_fail_after(0);
            if (status == 0) model_close(&m);
            else assert_int_equal(status, PC_ENOMEM);
            assert_int_equal(mem_in_use(), before);
        }
    }
}

/* ==== Inspect ==== */

static cJSON *inspect_json(const char *path)
{
    struct Str out = { 0 };
    if (model_inspect(path, true, &out) != 0) fail_msg("%s", err_text());
    assert_int_equal(utf8_invalid_at(out.data, out.len), out.len);
    cJSON *json = cJSON_ParseWithLength(out.data, out.len);
    assert_non_null(json);
    str_free(&out);
    return json;
}

static double json_number(const cJSON *object, const char *name)
{
    return cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(object, name));
}

static void inspect_tells_the_facts(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    assert_int_equal(tiny_gguf(file, &spec), 0);
    write_folder("llama");
    const char *const paths[] = { file, folder };
    for (int i = 0; i < 2; i++) {
        cJSON *json = inspect_json(paths[i]);
        assert_true(json_number(json, "dim") == 64);
        assert_true(json_number(json, "kv_bytes_per_token_f16") == 2 * 2 * 2 * 2 * 16);
        const cJSON *f32 = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(json, "tensor_types"), "F32");
        assert_true(json_number(f32, "n") == 20);
        assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(json, "tensors")), 20);
        cJSON_Delete(json);
        struct Str text = { 0 };
        assert_int_equal(model_inspect(paths[i], false, &text), 0);
        assert_non_null(strstr(text.data, "4 query heads share 2 key heads, each 16 wide"));
        assert_non_null(strstr(text.data, "bos 281 \"<|im_start|>\""));
        str_free(&text);
    }
}

static void inspect_works_on_refused_models(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("gemma");
    assert_int_equal(tiny_gguf(file, &spec), 0);
    cJSON *json = inspect_json(file);
    const char *why = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "refused"));
    assert_non_null(strstr(why, "\"gemma\""));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(json, "tensors")), 20);
    cJSON_Delete(json);
    struct Str out = { 0 };
    assert_int_equal(file_write(file, "hello", 5), 0);
    assert_int_equal(model_inspect(file, true, &out), PC_EFORMAT);
    assert_int_equal(model_inspect("/nonexistent", true, &out), PC_EIO);
    str_free(&out);
}

static void inspect_hides_terminal_commands(void **state)
{
    (void)state;
    struct Str k = { 0 }, text = { 0 };
    key_text(&k, "evil\33[2J", "\33]0;x\7 \302\233 \177 \377 \"");
    write_with_keys("llama", &k, 1);
    assert_int_equal(model_inspect(file, false, &text), 0);
    for (size_t i = 0; i < text.len; i++) assert_true((unsigned char)text.data[i] >= 32 || text.data[i] == '\n');
    assert_null(strstr(text.data, "\302\233"));
    assert_int_equal(utf8_invalid_at(text.data, text.len), text.len);
    str_free(&text);
    cJSON_Delete(inspect_json(file));
}

/* ==== Real models ==== */

struct Known {
    const char *file;
    int dim, n_layers, n_heads, n_kv_heads, head_dim, n_tokens, train_len;
    bool tied, biased;
    const char *pre;
    enum DType embd;
};

static void real_models_open(void **state)
{
    (void)state;
    static const struct Known known[] = {
        { "SmolLM2-135M-Instruct.Q4_1.gguf", 576, 30, 9, 3, 64, 49152, 8192, true, false, "smollm", DT_Q8_0 },
        { "qwen2.5-coder-0.5b-instruct.gguf", 896, 24, 14, 2, 64, 151936, 32768, false, true, "qwen2", DT_Q5_0 },
        { "qwen2.5-coder-1.5b-instruct.gguf", 1536, 28, 12, 2, 128, 151936, 32768, false, true, "qwen2", DT_Q4_K },
    };
    const char *models = getenv("PCOMP_MODELS");
    if (!models) skip();
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const struct Known *k = &known[i];
        struct Model m;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", models, k->file);
        double start = clock_seconds();
        open_ok(path, &m);
        print_message("%s: opened in %.1f ms\n", k->file, 1e3 * (clock_seconds() - start));
        assert_int_equal(m.cfg.dim, k->dim);
        assert_int_equal(m.cfg.n_layers, k->n_layers);
        assert_int_equal(m.cfg.n_heads, k->n_heads);
        assert_int_equal(m.cfg.n_kv_heads, k->n_kv_heads);
        assert_int_equal(m.cfg.head_dim, k->head_dim);
        assert_int_equal(m.vocab.n_tokens, k->n_tokens);
        assert_int_equal(m.cfg.vocab_size, k->n_tokens);
        assert_int_equal(m.cfg.train_len, k->train_len);
        assert_int_equal(m.tied, k->tied);
        assert_int_equal(m.layers[0].bq != NULL, k->biased);
        assert_string_equal(m.vocab.pre, k->pre);
        assert_int_equal(m.tok_embd.type, k->embd);
        assert_false(m.vocab.add_bos);
        model_close(&m);
        cJSON_Delete(inspect_json(path));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_loaders_give_one_model),
        cmocka_unit_test(every_type_opens),
        cmocka_unit_test(shards_and_hash),
        cmocka_unit_test(missing_tensors_are_named),
        cmocka_unit_test(strange_tensors_are_named),
        cmocka_unit_test(unread_types_are_named),
        cmocka_unit_test(strange_keys_are_named),
        cmocka_unit_test(per_layer_heads_are_named),
        cmocka_unit_test(other_paths_are_refused),
        cmocka_unit_test(bad_configs_are_named),
        cmocka_unit_test(known_word_rules_get_their_name),
        cmocka_unit_test(other_tokenizers_are_named),
        cmocka_unit_test(special_tokens_and_templates),
        cmocka_unit_test(plain_rope),
        cmocka_unit_test(scaled_rope_of_gguf_files),
        cmocka_unit_test(stored_rope_factors),
        cmocka_unit_test(scaled_rope_of_folders),
        cmocka_unit_test(no_bit_flip_crashes),
        cmocka_unit_test(failed_allocations_are_reported),
        cmocka_unit_test(inspect_tells_the_facts),
        cmocka_unit_test(inspect_works_on_refused_models),
        cmocka_unit_test(inspect_hides_terminal_commands),
        cmocka_unit_test(real_models_open),
    };
    return cmocka_run_group_tests_name("model", tests, make_dir, drop_dir) != 0;
}

/* test_model.c - opening models: both kinds of file agree, every refusal of a GGUF file names its
 * reason, damage and failed allocations do no harm. Real models are looked for in the folder
 * PCOMP_MODELS.
 */
#include "tests/unit/model_edit.h"

#include <math.h>

static const char *const archs[] = {"llama", "qwen2", "qwen3"};

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
    assert_true(a->rope_theta == b->rope_theta && a->norm_eps == b->norm_eps &&
                a->rope_scale == b->rope_scale);
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
    static const enum DType all[] = {DT_F32,  DT_F16,  DT_BF16, DT_Q4_0, DT_Q4_1, DT_Q5_0,
                                     DT_Q5_1, DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};
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
        if (!(sqrt(sum / 256) > 0.1 && sqrt(sum / 256) < 0.9))
            fail_msg("%s: %g", dtype_name(all[i]), sqrt(sum / 256));
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
        "token_embd.weight",        "output_norm.weight",    "blk.1.attn_q.weight",
        "blk.0.attn_q_norm.weight", "blk.1.ffn_down.weight", "blk.0.attn_norm.weight",
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
    struct Str s = {0};
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    /* name, dimension count, two dimensions, type */
    char *at = memmem(s.data, s.len, "blk.0.ffn_up.weight", 19);
    uint32_t type = 23;
    memcpy(at + 19 + 4 + 16, &type, sizeof type);
    write_str(&s);
    str_free(&s);
    refused(file, "blk.0.ffn_up.weight is stored as IQ4_XS");
    struct Str out = {0};
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
    struct Str k = {0};
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
    struct Str k = {0};
    struct TinySpec spec = tiny_spec("llama");
    struct Str s = {0}, none = {0};
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

/* ==== Damage, faults ==== */

/* Flips bits anywhere in the header; whatever opens must be usable by its own account. */
static void no_bit_flip_crashes(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("qwen2");
    struct Str s = {0};
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
                quant_decode(w->type, (const char *)w->data + (size_t)(w->rows - 1) * row_bytes,
                             row, w->cols);
            }
            model_close(&m);
        }
        struct Str out = {0};
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
    const char *const paths[] = {file, folder};
    for (int i = 0; i < 2; i++) {
        size_t before = mem_in_use();
        int status = PC_ENOMEM;
        for (long n = 1; status != 0; n++) {
            struct Model m;
            assert_true(n < 1000);
            mem_fail_after(n);
            status = model_open(paths[i], &m);
            mem_fail_after(0);
            if (status == 0)
                model_close(&m);
            else
                assert_int_equal(status, PC_ENOMEM);
            assert_int_equal(mem_in_use(), before);
        }
    }
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
        {"SmolLM2-135M-Instruct.Q4_1.gguf", 576, 30, 9, 3, 64, 49152, 8192, true, false, "smollm",
         DT_Q8_0},
        {"qwen2.5-coder-0.5b-instruct.gguf", 896, 24, 14, 2, 64, 151936, 32768, false, true,
         "qwen2", DT_Q5_0},
        {"qwen2.5-coder-1.5b-instruct.gguf", 1536, 28, 12, 2, 128, 151936, 32768, false, true,
         "qwen2", DT_Q4_K},
    };
    const char *models = getenv("PCOMP_MODELS");
    int n_open = 0;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const struct Known *k = &known[i];
        struct Model m;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", models ? models : "", k->file);
        if (!models || access(path, R_OK) != 0) continue; /* each is fetched on its own */
        n_open++;
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
    }
    if (n_open > 0) return;
    print_message("SKIP: PCOMP_MODELS has none of the three models\n");
    skip();
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
        cmocka_unit_test(no_bit_flip_crashes),
        cmocka_unit_test(failed_allocations_are_reported),
        cmocka_unit_test(real_models_open),
    };
    return cmocka_run_group_tests_name("model", tests, make_dir, drop_dir) != 0;
}

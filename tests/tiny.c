/* tiny.c - writes seeded miniature models; see tiny.h.
 *
 * Weights are made in HF layout (halves of a head rotate together) from the seed and the tensor's
 * name alone, so both writers give the same model. For a llama GGUF file the rows of Q and K are
 * reordered as converters do (pairs rotate together). Spreads are chosen so that activations stay
 * near 1 and logits near 2.
 */
#include "tests/tiny.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ==== Random numbers ==== */

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Mean 0, variance 1, bounded: the sum of four uniform numbers. */
static float next_normal(uint64_t *state)
{
    uint64_t x = next_random(state);
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += (double)(x >> 16 * i & 0xffff) / 65536;
    return (float)((sum - 2) * 1.7320508);
}

/* ==== Tensors ==== */

enum { MAX_TENSORS = 1024 };

struct TinyTensor {
    char gguf[64], hf[80];
    int rows, cols; /* rows 0: a vector */
    float mean, spread;
    int rotated; /* heads whose rows a llama GGUF file reorders; 0: none */
};

struct TinyModel {
    const struct TinySpec *spec;
    struct TinyTensor tensors[MAX_TENSORS];
    int n_tensors;
};

static void add(struct TinyModel *m, int layer, const char *gguf, const char *hf, int rows,
                int cols)
{
    struct TinyTensor *t = &m->tensors[m->n_tensors++];
    *t = (struct TinyTensor){.rows = rows, .cols = cols};
    if (layer < 0) {
        snprintf(t->gguf, sizeof t->gguf, "%s", gguf);
        snprintf(t->hf, sizeof t->hf, "%s", hf);
    } else {
        snprintf(t->gguf, sizeof t->gguf, "blk.%d.%s", layer, gguf);
        snprintf(t->hf, sizeof t->hf, "model.layers.%d.%s", layer, hf);
    }
    t->mean = rows == 0 && strstr(gguf, "norm") ? 1 : 0;
    t->spread = rows == 0 ? 0.1f : 0.8f / sqrtf((float)cols);
    if (strstr(gguf, "token_embd") || strcmp(gguf, "output.weight") == 0) t->spread = 0.3f;
    /* Attention should tell keys apart. */
    if (strstr(gguf, "attn_q.weight") || strstr(gguf, "attn_k.weight")) t->spread *= 2;
    if (strstr(gguf, "attn_q.")) t->rotated = m->spec->n_heads;
    if (strstr(gguf, "attn_k.")) t->rotated = m->spec->n_kv_heads;
}

static void add_layer(struct TinyModel *m, int l)
{
    const struct TinySpec *s = m->spec;
    int q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    add(m, l, "attn_norm.weight", "input_layernorm.weight", 0, s->dim);
    add(m, l, "attn_q.weight", "self_attn.q_proj.weight", q, s->dim);
    add(m, l, "attn_k.weight", "self_attn.k_proj.weight", kv, s->dim);
    add(m, l, "attn_v.weight", "self_attn.v_proj.weight", kv, s->dim);
    add(m, l, "attn_output.weight", "self_attn.o_proj.weight", s->dim, q);
    if (strcmp(s->arch, "qwen2") == 0) {
        add(m, l, "attn_q.bias", "self_attn.q_proj.bias", 0, q);
        add(m, l, "attn_k.bias", "self_attn.k_proj.bias", 0, kv);
        add(m, l, "attn_v.bias", "self_attn.v_proj.bias", 0, kv);
    }
    if (strcmp(s->arch, "qwen3") == 0) {
        add(m, l, "attn_q_norm.weight", "self_attn.q_norm.weight", 0, s->head_dim);
        add(m, l, "attn_k_norm.weight", "self_attn.k_norm.weight", 0, s->head_dim);
    }
    add(m, l, "ffn_norm.weight", "post_attention_layernorm.weight", 0, s->dim);
    add(m, l, "ffn_gate.weight", "mlp.gate_proj.weight", s->hidden_dim, s->dim);
    add(m, l, "ffn_up.weight", "mlp.up_proj.weight", s->hidden_dim, s->dim);
    add(m, l, "ffn_down.weight", "mlp.down_proj.weight", s->dim, s->hidden_dim);
}

static int list_tensors(struct TinyModel *m, const struct TinySpec *spec)
{
    m->spec = spec;
    m->n_tensors = 0;
    if (spec->n_layers * 12 + 3 > MAX_TENSORS)
        return err_set(PC_ECONFIG, "too many layers for a tiny model");
    add(m, -1, "token_embd.weight", "model.embed_tokens.weight", tiny_vocab_size(), spec->dim);
    add(m, -1, "output_norm.weight", "model.norm.weight", 0, spec->dim);
    if (!spec->tied) add(m, -1, "output.weight", "lm_head.weight", tiny_vocab_size(), spec->dim);
    for (int l = 0; l < spec->n_layers; l++) add_layer(m, l);
    return 0;
}

static size_t n_values(const struct TinyTensor *t)
{
    return (size_t)(t->rows ? t->rows : 1) * (size_t)t->cols;
}

/* The tensor's values in HF layout; the caller frees them. */
static float *make_values(const struct TinyModel *m, const struct TinyTensor *t)
{
    float *v = mem_alloc(n_values(t), sizeof *v);
    if (!v) return NULL;
    uint64_t state = hash64(t->gguf, strlen(t->gguf), m->spec->seed);
    for (size_t i = 0; i < n_values(t); i++) v[i] = t->mean + t->spread * next_normal(&state);
    return v;
}

/* Row 2j + s of a head is its row s * head_dim / 2 + j: halves become pairs. */
static int pair_rows(const struct TinyTensor *t, float *v)
{
    int rows = t->rows ? t->rows : t->cols, width = t->rows ? t->cols : 1;
    int head_dim = rows / t->rotated;
    float *copy = mem_alloc(n_values(t), sizeof *copy);
    if (!copy) return PC_ENOMEM;
    memcpy(copy, v, n_values(t) * sizeof *v);
    for (int r = 0; r < rows; r++) {
        int head = r / head_dim, in_head = r % head_dim;
        int from = head * head_dim + in_head % 2 * (head_dim / 2) + in_head / 2;
        memcpy(v + (size_t)r * (size_t)width, copy + (size_t)from * (size_t)width,
               (size_t)width * sizeof *v);
    }
    mem_free(copy);
    return 0;
}

/* ==== Encoders ==== */

static void put_f16(uint8_t *p, float f)
{
    uint16_t h = f32_to_f16(f);
    memcpy(p, &h, sizeof h);
}

static uint16_t bf16_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static int to_code(float x, int max)
{
    int q = (int)lrintf(x);
    return q < 0 ? 0 : q > max ? max : q;
}

static void encode_q8_0(const float *x, uint8_t *p)
{
    float top = 0;
    for (int i = 0; i < 32; i++) top = fmaxf(top, fabsf(x[i]));
    float d = top / 127;
    put_f16(p, d);
    for (int i = 0; i < 32; i++) p[2 + i] = (uint8_t)(int8_t)(d > 0 ? lrintf(x[i] / d) : 0);
}

static void encode_q4(const float *x, uint8_t *p, bool with_min)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    float top = fmaxf(fabsf(low), fabsf(high));
    float d = with_min ? (high - low) / 15 : top / 7, m = with_min ? low : -8 * d;
    put_f16(p, d);
    if (with_min) put_f16(p + 2, m);
    uint8_t *q = p + (with_min ? 4 : 2);
    for (int i = 0; i < 16; i++) {
        int a = d > 0 ? to_code((x[i] - m) / d, 15) : 8,
            b = d > 0 ? to_code((x[i + 16] - m) / d, 15) : 8;
        q[i] = (uint8_t)(a | b << 4);
    }
}

/* A random block whose values spread about as widely as asked. */
static void random_block(enum DType type, float spread, uint64_t *state, uint8_t *p, int bytes)
{
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)next_random(state);
    /* clang-format off */
    switch (type) {
    case DT_Q5_0: put_f16(p, spread / 9.2f); break;
    case DT_Q5_1: put_f16(p, spread / 9.2f); put_f16(p + 2, -spread * 15.5f / 9.2f); break;
    case DT_Q4_K: put_f16(p, spread / 170); put_f16(p + 2, spread / 22); break;
    case DT_Q5_K: put_f16(p, spread / 340); put_f16(p + 2, spread / 22); break;
    default: put_f16(p + 208, spread / 1360); break; /* Q6_K */
    }
    /* clang-format on */
}

static void encode(enum DType type, const float *x, size_t n, float spread, uint8_t *out)
{
    int weights, bytes;
    uint64_t state = hash64(x, n * sizeof *x, 1);
    dtype_block(type, &weights, &bytes);
    for (size_t i = 0; i < n; i += (size_t)weights, x += weights, out += bytes) {
        uint16_t h = type == DT_F16 ? f32_to_f16(*x) : bf16_of(*x);
        /* clang-format off */
        switch (type) {
        case DT_F32: memcpy(out, x, sizeof *x); break;
        case DT_F16:
        case DT_BF16: memcpy(out, &h, sizeof h); break;
        case DT_Q8_0: encode_q8_0(x, out); break;
        case DT_Q4_0: encode_q4(x, out, false); break;
        case DT_Q4_1: encode_q4(x, out, true); break;
        default: random_block(type, spread, &state, out, bytes); break;
        }
        /* clang-format on */
    }
}

/* ==== Vocabulary ==== */

/* clang-format off */
static const char *const merges[][2] = {
    { "t", "h" }, { "th", "e" }, { "\u0120", "the" }, { "i", "n" }, { "a", "n" }, { "e", "r" },
    { "\u0120", "a" }, { "o", "u" }, { "r", "e" }, { "in", "g" }, { "an", "d" }, { "\u0120", "and" },
    { "\u0120", "s" }, { "o", "n" }, { "e", "s" }, { "\u0120", "i" }, { "\u0120i", "s" }, { "\u0120", "o" },
    { "\u0120o", "f" }, { "\u0120", "w" }, { "l", "l" }, { "e", "d" }, { "\u0120", "c" }, { "i", "t" },
};
/* clang-format on */
static const char *const controls[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
static const char chat_template[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

enum {
    N_BYTES = 256,
    N_MERGES = sizeof merges / sizeof merges[0],
    N_CONTROLS = sizeof controls / sizeof controls[0],
    ID_END_OF_TEXT = N_BYTES + N_MERGES,
    ID_IM_START,
    ID_IM_END,
    N_TOKENS,
};

int tiny_vocab_size(void)
{
    return N_TOKENS;
}

/* GPT-2's spelling of a byte: printable ones stand for themselves, the rest follow from U+0100. */
static void spell_byte(int byte, char out[3])
{
    int code = 256;
    for (int b = 0; b <= byte; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b < byte)
            code += !printable;
        else if (printable)
            code = b;
    }
    if (code < 128)
        snprintf(out, 3, "%c", code);
    else
        snprintf(out, 3, "%c%c", 0xc0 | code >> 6, 0x80 | (code & 63));
}

static void spell_token(int id, char out[32])
{
    if (id < N_BYTES)
        spell_byte(id, out);
    else if (id < ID_END_OF_TEXT)
        snprintf(out, 32, "%s%s", merges[id - N_BYTES][0], merges[id - N_BYTES][1]);
    else
        snprintf(out, 32, "%s", controls[id - ID_END_OF_TEXT]);
}

/* ==== GGUF ==== */

enum { T_U32 = 4, T_I32 = 5, T_F32 = 6, T_BOOL = 7, T_STRING = 8, T_ARRAY = 9, ALIGNMENT = 32 };

static int put(struct Str *s, const void *data, size_t len)
{
    return str_append(s, data, len);
}

static int put_u32(struct Str *s, uint32_t v)
{
    return put(s, &v, sizeof v);
}
static int put_u64(struct Str *s, uint64_t v)
{
    return put(s, &v, sizeof v);
}

static int put_text(struct Str *s, const char *text)
{
    TRY(put_u64(s, strlen(text)));
    return put(s, text, strlen(text));
}

struct KeyWriter {
    struct Str *s;
    const char *arch;
    uint64_t n;
};

/* name without a dot before it belongs to the arch: "+block_count" is llama.block_count. */
static int put_key(struct KeyWriter *w, const char *name, uint32_t type)
{
    char full[96];
    snprintf(full, sizeof full, "%s%s%s", *name == '+' ? w->arch : "", *name == '+' ? "." : "",
             *name == '+' ? name + 1 : name);
    w->n++;
    TRY(put_text(w->s, full));
    return put_u32(w->s, type);
}

static int key_u32(struct KeyWriter *w, const char *name, int v)
{
    TRY(put_key(w, name, T_U32));
    return put_u32(w->s, (uint32_t)v);
}

static int key_f32(struct KeyWriter *w, const char *name, float v)
{
    TRY(put_key(w, name, T_F32));
    return put(w->s, &v, sizeof v);
}

static int key_text(struct KeyWriter *w, const char *name, const char *v)
{
    TRY(put_key(w, name, T_STRING));
    return put_text(w->s, v);
}

static int key_array(struct KeyWriter *w, const char *name, uint32_t type, uint64_t n)
{
    TRY(put_key(w, name, T_ARRAY));
    TRY(put_u32(w->s, type));
    return put_u64(w->s, n);
}

static int write_shape(struct KeyWriter *w, const struct TinySpec *s)
{
    TRY(key_text(w, "general.architecture", s->arch));
    TRY(key_text(w, "general.name", "tiny"));
    TRY(key_u32(w, "general.alignment", ALIGNMENT));
    TRY(key_u32(w, "+block_count", s->n_layers));
    TRY(key_u32(w, "+context_length", s->train_len));
    TRY(key_u32(w, "+embedding_length", s->dim));
    TRY(key_u32(w, "+feed_forward_length", s->hidden_dim));
    TRY(key_u32(w, "+attention.head_count", s->n_heads));
    TRY(key_u32(w, "+attention.head_count_kv", s->n_kv_heads));
    TRY(key_u32(w, "+attention.key_length", s->head_dim));
    TRY(key_u32(w, "+attention.value_length", s->head_dim));
    TRY(key_f32(w, "+attention.layer_norm_rms_epsilon", 1e-5f));
    return key_f32(w, "+rope.freq_base", 10000);
}

static int write_vocab(struct KeyWriter *w)
{
    char text[64];
    TRY(key_text(w, "tokenizer.ggml.model", "gpt2"));
    TRY(key_text(w, "tokenizer.ggml.pre", "smollm"));
    TRY(key_array(w, "tokenizer.ggml.tokens", T_STRING, N_TOKENS));
    for (int i = 0; i < N_TOKENS; i++) {
        spell_token(i, text);
        TRY(put_text(w->s, text));
    }
    TRY(key_array(w, "tokenizer.ggml.token_type", T_I32, N_TOKENS));
    for (int i = 0; i < N_TOKENS; i++) TRY(put_u32(w->s, i < ID_END_OF_TEXT ? 1 : 3));
    TRY(key_array(w, "tokenizer.ggml.merges", T_STRING, N_MERGES));
    for (int i = 0; i < N_MERGES; i++) {
        snprintf(text, sizeof text, "%s %s", merges[i][0], merges[i][1]);
        TRY(put_text(w->s, text));
    }
    TRY(key_u32(w, "tokenizer.ggml.bos_token_id", ID_IM_START));
    TRY(key_u32(w, "tokenizer.ggml.eos_token_id", ID_IM_END));
    TRY(key_u32(w, "tokenizer.ggml.unknown_token_id", ID_END_OF_TEXT));
    TRY(put_key(w, "tokenizer.ggml.add_bos_token", T_BOOL));
    TRY(put(w->s, "", 1));
    return key_text(w, "tokenizer.chat_template", chat_template);
}

static enum DType stored_type(const struct TinyModel *m, const struct TinyTensor *t)
{
    return t->rows && dtype_row_bytes(m->spec->type, t->cols) ? m->spec->type : DT_F32;
}

static size_t stored_bytes(const struct TinyModel *m, const struct TinyTensor *t)
{
    return dtype_row_bytes(stored_type(m, t), t->cols) * (size_t)(t->rows ? t->rows : 1);
}

static size_t aligned(size_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int write_table(const struct TinyModel *m, struct Str *out)
{
    size_t offset = 0;
    for (int i = 0; i < m->n_tensors; i++) {
        const struct TinyTensor *t = &m->tensors[i];
        TRY(put_text(out, t->gguf));
        TRY(put_u32(out, t->rows ? 2 : 1));
        TRY(put_u64(out, (uint64_t)t->cols));
        if (t->rows) TRY(put_u64(out, (uint64_t)t->rows));
        TRY(put_u32(out, (uint32_t)stored_type(m, t)));
        TRY(put_u64(out, offset));
        offset += aligned(stored_bytes(m, t));
    }
    return 0;
}

static int write_tensor(const struct TinyModel *m, const struct TinyTensor *t, struct Str *out)
{
    int status = PC_ENOMEM;
    size_t bytes = stored_bytes(m, t), room = aligned(bytes);
    float *values = make_values(m, t);
    uint8_t *stored = mem_alloc(room, 1);
    if (!values || !stored) goto fail;
    if (t->rotated && strcmp(m->spec->arch, "llama") == 0) TRY_GOTO(pair_rows(t, values));
    encode(stored_type(m, t), values, n_values(t), t->spread, stored);
    TRY_GOTO(put(out, stored, room));
fail:
    mem_free(values);
    mem_free(stored);
    return status;
}

static int write_gguf(const struct TinyModel *m, struct Str *out)
{
    struct Str keys = {0};
    struct KeyWriter w = {&keys, m->spec->arch, 0};
    int status;
    TRY_GOTO(write_shape(&w, m->spec));
    TRY_GOTO(write_vocab(&w));
    TRY_GOTO(put(out, "GGUF", 4));
    TRY_GOTO(put_u32(out, 3));
    TRY_GOTO(put_u64(out, (uint64_t)m->n_tensors));
    TRY_GOTO(put_u64(out, w.n));
    TRY_GOTO(put(out, keys.data, keys.len));
    TRY_GOTO(write_table(m, out));
    static const char zeros[ALIGNMENT];
    TRY_GOTO(put(out, zeros, aligned(out->len) - out->len));
    for (int i = 0; i < m->n_tensors; i++) TRY_GOTO(write_tensor(m, &m->tensors[i], out));
fail:
    str_free(&keys);
    return status;
}

int tiny_gguf_bytes(const struct TinySpec *spec, struct Str *out)
{
    struct TinyModel *m = mem_alloc(1, sizeof *m);
    if (!m) return PC_ENOMEM;
    int status = list_tensors(m, spec);
    if (status == 0) status = write_gguf(m, out);
    mem_free(m);
    return status;
}

int tiny_gguf(const char *path, const struct TinySpec *spec)
{
    struct Str bytes = {0};
    int status = tiny_gguf_bytes(spec, &bytes);
    if (status == 0) status = file_write(path, bytes.data, bytes.len);
    str_free(&bytes);
    return status;
}

struct TinySpec tiny_spec(const char *arch)
{
    bool qwen3 = strcmp(arch, "qwen3") == 0;
    return (struct TinySpec){
        .arch = arch,
        .n_layers = 2,
        .dim = 64,
        .n_heads = 4,
        .n_kv_heads = 2,
        .head_dim = qwen3 ? 32 : 16,
        .hidden_dim = 128,
        .train_len = 512,
        .type = DT_F32,
        .seed = 1,
        .tied = strcmp(arch, "qwen2") != 0,
    };
}

/* ==== HF folder ==== */

static int json_text(struct Str *s, const char *text)
{
    TRY(str_append(s, "\"", 1));
    for (; *text; text++) {
        if (*text == '\n') {
            TRY(str_append(s, "\\n", 2));
            continue;
        }
        if (*text == '"' || *text == '\\') TRY(str_append(s, "\\", 1));
        TRY(str_append(s, text, 1));
    }
    return str_append(s, "\"", 1);
}

static int make_config(const struct TinySpec *s, struct Str *out)
{
    bool llama = strcmp(s->arch, "llama") == 0, qwen2 = strcmp(s->arch, "qwen2") == 0;
    TRY(str_appendf(
        out, "{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"hidden_act\": \"silu\",\n",
        llama   ? "LlamaForCausalLM"
        : qwen2 ? "Qwen2ForCausalLM"
                : "Qwen3ForCausalLM",
        s->arch));
    TRY(str_appendf(out,
                    "\"num_hidden_layers\": %d, \"hidden_size\": %d, \"intermediate_size\": %d,\n",
                    s->n_layers, s->dim, s->hidden_dim));
    TRY(str_appendf(out,
                    "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d,\n",
                    s->n_heads, s->n_kv_heads, s->head_dim));
    return str_appendf(
        out,
        "\"max_position_embeddings\": %d, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,\n"
        "\"rope_scaling\": null, \"vocab_size\": %d, \"tie_word_embeddings\": %s,\n"
        "\"bos_token_id\": %d, \"eos_token_id\": %d}\n",
        s->train_len, N_TOKENS, s->tied ? "true" : "false", ID_IM_START, ID_IM_END);
}

static int make_tokenizer(struct Str *out)
{
    char text[64];
    TRY(str_appendf(out, "{\"version\": \"1.0\", \"added_tokens\": ["));
    for (int i = 0; i < N_CONTROLS; i++) {
        TRY(str_appendf(out, "%s{\"id\": %d, \"content\": \"%s\", \"special\": true}",
                        i ? ", " : "", ID_END_OF_TEXT + i, controls[i]));
    }
    TRY(str_appendf(
        out,
        "], \"normalizer\": null,\n\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": ["
        "{\"type\": \"Digits\", \"individual_digits\": true}, "
        "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}]},\n"
        "\"model\": {\"type\": \"BPE\", \"vocab\": {"));
    for (int i = 0; i < ID_END_OF_TEXT; i++) {
        spell_token(i, text);
        if (i) TRY(str_append(out, ", ", 2));
        TRY(json_text(out, text));
        TRY(str_appendf(out, ": %d", i));
    }
    TRY(str_appendf(out, "},\n\"merges\": ["));
    for (int i = 0; i < N_MERGES; i++) {
        snprintf(text, sizeof text, "%s %s", merges[i][0], merges[i][1]);
        if (i) TRY(str_append(out, ", ", 2));
        TRY(json_text(out, text));
    }
    return str_appendf(out, "]}}\n");
}

static int make_tokenizer_config(struct Str *out)
{
    TRY(str_appendf(
        out, "{\"add_bos_token\": false, \"unk_token\": \"%s\", \"chat_template\": ", controls[0]));
    TRY(json_text(out, chat_template));
    return str_appendf(out, "}\n");
}

static int make_weights(const struct TinyModel *m, struct Str *out)
{
    struct Str header = {0};
    size_t offset = 0;
    int status;
    TRY_GOTO(str_appendf(&header, "{\"__metadata__\": {\"format\": \"pt\"}"));
    for (int i = 0; i < m->n_tensors; i++) {
        const struct TinyTensor *t = &m->tensors[i];
        size_t bytes = n_values(t) * sizeof(float);
        TRY_GOTO(str_appendf(&header, ", \"%s\": {\"dtype\": \"F32\", \"shape\": [", t->hf));
        if (t->rows) TRY_GOTO(str_appendf(&header, "%d, ", t->rows));
        TRY_GOTO(str_appendf(&header, "%d], \"data_offsets\": [%zu, %zu]}", t->cols, offset,
                             offset + bytes));
        offset += bytes;
    }
    TRY_GOTO(str_appendf(&header, "}"));
    while (header.len % 8) TRY_GOTO(str_append(&header, " ", 1));
    TRY_GOTO(put_u64(out, header.len));
    TRY_GOTO(put(out, header.data, header.len));
    for (int i = 0; i < m->n_tensors; i++) {
        float *values = make_values(m, &m->tensors[i]);
        status = values ? put(out, values, n_values(&m->tensors[i]) * sizeof *values) : PC_ENOMEM;
        mem_free(values);
        if (status < 0) goto fail;
    }
fail:
    str_free(&header);
    return status;
}

static int write_to(const char *dir, const char *name, const struct Str *text)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return file_write(path, text->data, text->len);
}

int tiny_safetensors(const char *dir, const struct TinySpec *spec)
{
    struct Str text = {0};
    int status;
    struct TinyModel *m = mem_alloc(1, sizeof *m);
    if (!m) return PC_ENOMEM;
    TRY_GOTO(list_tensors(m, spec));
    TRY_GOTO(make_config(spec, &text));
    TRY_GOTO(write_to(dir, "config.json", &text));
    str_clear(&text);
    TRY_GOTO(make_tokenizer(&text));
    TRY_GOTO(write_to(dir, "tokenizer.json", &text));
    str_clear(&text);
    TRY_GOTO(make_tokenizer_config(&text));
    TRY_GOTO(write_to(dir, "tokenizer_config.json", &text));
    str_clear(&text);
    TRY_GOTO(make_weights(m, &text));
    TRY_GOTO(write_to(dir, "model.safetensors", &text));
fail:
    mem_free(m);
    str_free(&text);
    return status;
}

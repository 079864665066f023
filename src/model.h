/* model.h - a model's shape, weights and vocabulary, whatever file they came from.
 *
 * model_open() takes a GGUF file or a folder with safetensors, checks every shape and binds the
 * tensors by name. Weights stay in the mapped file in their stored type ([out, in], row-major);
 * norms and biases, being small, are converted to f32. The vocabulary is handed on as raw facts
 * (struct VocabSpec); tokenizer.c makes a tokenizer of it.
 */
#ifndef PCOMP_MODEL_H
#define PCOMP_MODEL_H

#include "base.h"
#include "quant.h"

/* Which elements of a head rotate together. */
enum RopeStyle {
    ROPE_HALVES, /* i and i + rope_dim/2 (qwen2, qwen3, safetensors) */
    ROPE_PAIRS,  /* 2i and 2i + 1 (llama GGUF files, permuted at conversion) */
};

struct ModelConfig {
    char arch[16];  /* llama, qwen2, qwen3 */
    char name[128]; /* general.name, or the file's name */
    int dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size;
    int train_len; /* trained context (positions); min of context_length and a sliding window */
    float rope_theta, norm_eps;
    enum RopeStyle rope_style;
    int rope_dim;     /* rotated elements of a head, even, <= head_dim */
    float *inv_freq;  /* [rope_dim / 2] f32 radians a position, scaling rules already applied */
    float rope_scale; /* factor on cos and sin (yarn's attention factor), else 1 */
    char rope_scaling[16]; /* none, linear, llama3, yarn: what inv_freq holds */
};

/* What turns positions into angles. */
struct Rope {
    const float *inv_freq; /* [rope_dim / 2] */
    float scale;
};

struct Weight {
    enum DType type;
    int rows, cols;   /* [rows = out, cols = in] */
    const void *data; /* borrowed from the mapped file; NULL when absent */
    uint64_t seed;    /* of a geometry's random rows (geometry.h); 0 for weights of files */
};

struct Layer {
    const float *attn_norm, *ffn_norm; /* [dim] f32 */
    const float *q_norm, *k_norm;      /* [head_dim] f32 or NULL (qwen3) */
    const float *bq, *bk, *bv, *bo;    /* [rows] f32 or NULL */
    struct Weight wq;                  /* [n_heads * head_dim, dim] */
    struct Weight wk, wv;              /* [n_kv_heads * head_dim, dim] */
    struct Weight wo;                  /* [dim, n_heads * head_dim] */
    struct Weight w_gate, w_up;        /* [hidden_dim, dim] */
    struct Weight w_down;              /* [dim, hidden_dim] */
};

enum VocabKind { VOCAB_BPE, VOCAB_SPM };
enum TokenType {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN,
    TOKEN_CONTROL,
    TOKEN_USER,
    TOKEN_UNUSED,
    TOKEN_BYTE
};

struct Slice {
    const char *data; /* not NUL-terminated */
    size_t len;
};

/* Raw facts about the vocabulary. All slices borrow from the model. For VOCAB_BPE the tokens
 * are in GPT-2's byte-to-Unicode spelling (as stored in GGUF and tokenizer.json). */
struct VocabSpec {
    enum VocabKind kind;
    char pre[32]; /* smollm, gpt-2, llama-bpe, qwen2 (VOCAB_BPE) */
    int n_tokens;
    struct Slice *tokens; /* [n_tokens] */
    uint8_t *types;       /* [n_tokens] enum TokenType */
    float *scores;        /* [n_tokens] or NULL (VOCAB_SPM needs them) */
    int n_merges;
    struct Slice *merges; /* [n_merges] "left right", rank = index (VOCAB_BPE) */
    int bos_id, eos_id, eot_id, unk_id, pad_id; /* -1 when absent */
    bool add_bos, add_eos, add_space_prefix;
    struct Slice chat_template; /* len 0 when absent */
};

struct Model {
    struct ModelConfig cfg;
    struct Weight tok_embd; /* [vocab_size, dim] */
    struct Weight output;   /* [vocab_size, dim]; the same data as tok_embd when tied */
    bool tied;
    bool geometry;            /* a published shape with random weights and no file (geometry.h) */
    const float *output_norm; /* [dim] f32 */
    struct Layer *layers;     /* [n_layers] */
    struct VocabSpec vocab;
    size_t weight_bytes; /* as stored */
    uint64_t n_params;
    uint64_t hash; /* XXH3 of the header and of samples of the data: names the file */
    void *source;  /* owned: the mapped file and converted vectors */
};

/* Opens a .gguf file, a safetensors folder or a geometry ("geometry:NAME[:TYPE]"). On success the caller owns *out: model_close.
 * Errors: PC_EIO, PC_EFORMAT (what, where in which file, why), PC_ENOMEM, PC_ECONFIG (unknown geometry). */
int model_open(const char *path, struct Model *out);
void model_close(struct Model *m);

/* The model's own rotation stretched to `factor` times the positions it was trained on; both need a file
 * without scaling rules. NTK-aware: the base times factor^(d / (d - 2)). YaRN: by parts, with its published bands. */
void rope_ntk(const struct ModelConfig *cfg, double factor, float *inv_freq);
void rope_yarn(const struct ModelConfig *cfg, double factor, float *inv_freq, float *scale);

/* Whether a column of a head turns by less than a radian over the trained positions: what all keys of a head have there
 * is the same wherever they stand. */
bool key_column_slow(const struct ModelConfig *m, int column);
/* What a layer's keys may be divided by, and its queries multiplied, so that the part of the keys' bias that turns does
 * not stand out: out [n_kv_heads, head_dim], the same for columns that turn together. The layer has a bk and no k_norm. */
void key_balance(const struct ModelConfig *m, const struct Layer *l, float *out);

/* Writes what is in a model file (metadata, shapes, tensor types and their bytes, vocabulary facts)
 * as text, or as one JSON object, into out. Works on files whose tensors model_open would refuse. */
int model_inspect(const char *path, bool json, struct Str *out);

#endif

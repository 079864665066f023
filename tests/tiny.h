/* tiny.h - seeded miniature models for tests: the same weights as a GGUF file or as a HF folder.
 *
 * The vocabulary is byte-level BPE: token b is byte b, then a few merged pieces, then
 * <|endoftext|>, <|im_start|> and <|im_end|> (control).
 */
#ifndef PCOMP_TINY_H
#define PCOMP_TINY_H

#include "src/base.h"
#include "src/quant.h"

struct TinySpec {
    const char *arch; /* llama, qwen2, qwen3 */
    int n_layers, dim, n_heads, n_kv_heads, head_dim, hidden_dim, train_len;
    enum DType type; /* of every matrix whose rows split into its blocks; the rest are F32 */
    uint64_t seed;
    bool tied;
};

/* A small valid model: 2 layers, width 64, F32, tied unless the arch is qwen2. */
struct TinySpec tiny_spec(const char *arch);
int tiny_vocab_size(void);

/* F32, F16, BF16, Q8_0, Q4_0 and Q4_1 hold the seeded weights, rounded; other types hold random
 * blocks of like size. */
int tiny_gguf(const char *path, const struct TinySpec *spec);
/* The bytes tiny_gguf writes. */
int tiny_gguf_bytes(const struct TinySpec *spec, struct Str *out);
/* config.json, tokenizer.json, tokenizer_config.json and model.safetensors in F32; the folder must
 * exist. */
int tiny_safetensors(const char *dir, const struct TinySpec *spec);

#endif

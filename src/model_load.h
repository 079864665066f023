/* model_load.h - what the loaders of GGUF files and safetensors folders hand to model.c.
 *
 * A loader maps the files, lists their tensors under their stored names, and reads the shape and the
 * vocabulary; model.c then binds tensors by name and checks them. Internal to the model module.
 */
#ifndef PCOMP_MODEL_LOAD_H
#define PCOMP_MODEL_LOAD_H

#include "gguf.h"
#include "model.h"

/* Limits on what a file may claim; each is several times what published models use. */
enum {
    MAX_LAYERS = 1024,
    MAX_DIM = 65536,
    MAX_HIDDEN_DIM = 1 << 18,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 1024,
    MAX_TRAIN_LEN = 1 << 26,
    MAX_VOCAB = 1 << 21,
    MAX_SHARDS = 1024,
};

struct StoredTensor {
    struct Slice name;
    uint32_t type;      /* any id; see quant.h */
    char type_name[16]; /* also of types we do not read */
    int n_dims;
    uint64_t dims[4];    /* slowest first; 1 beyond n_dims */
    const uint8_t *data; /* in a mapped file */
    size_t bytes;        /* 0 when the type's size is not known to us */
    bool used;
};

/* Whether the file says that embedding and output are one matrix. */
enum Tie { TIE_IF_ABSENT, TIE_YES, TIE_NO };

/* What Model.source points at. */
struct ModelFile {
    const char *path;     /* owned copy, for messages */
    struct FileMap *maps; /* [n_maps] */
    int n_maps;
    struct Gguf gguf;             /* GGUF only */
    struct StoredTensor *tensors; /* [n_tensors] sorted by name */
    int n_tensors;
    bool is_gguf;
    struct cJSON *config; /* folder only: config.json */
    enum Tie tie;
    uint64_t header_hash; /* of all bytes that describe the tensors */
    void **blocks;        /* [n_blocks] memory that lives as long as the model */
    int n_blocks, cap_blocks;
};

enum RopeScaling { ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

/* The published scaling rules and their parameters; unset fields are ignored by the other rules. */
struct RopeSpec {
    enum RopeScaling scaling;
    double factor;
    double original_len; /* trained length before scaling (llama3, yarn) */
    double attn_factor;  /* yarn: the factor on cos and sin; 0: from the rule */
    double mscale,
        mscale_all; /* yarn: weights of the rule's logarithm; mscale_all 0: not divided */
    double beta_fast, beta_slow; /* yarn: turns within original_len */
    bool no_truncate;            /* yarn: correction range not rounded to whole pairs */
    double low_freq, high_freq;  /* llama3 */
    const float *factors;        /* [n_factors] divisors of each frequency, or NULL */
    int n_factors;
};

/* Zeroed memory that model_close frees. NULL on failure. */
void *model_keep(struct ModelFile *f, size_t n, size_t size);

/* NULL when absent. */
struct StoredTensor *model_tensor(const struct ModelFile *f, const char *name);

/* Sorts the list; refuses two tensors of one name. */
int model_sort_tensors(struct ModelFile *f);

/* Decodes a whole small tensor to f32, kept with the model. */
int model_floats(struct ModelFile *f, const struct StoredTensor *t, const float **out);

/* Fills cfg->inv_freq, rope_scale and rope_scaling from cfg->rope_dim, rope_theta and the spec. */
int model_rope(struct ModelFile *f, const struct RopeSpec *spec, struct ModelConfig *cfg);

/* Each opens and lists, then reads shape and vocabulary. What they took stays in f, for the caller
 * to free whether they fail or not. gguf_load and hf_load list the tensors only. */
int model_gguf_load(struct ModelFile *f);
int model_gguf_config(struct ModelFile *f, struct ModelConfig *cfg, struct RopeSpec *rope);
int model_gguf_vocab(struct ModelFile *f, struct VocabSpec *v);
int model_hf_load(struct ModelFile *f);
int model_hf_config(struct ModelFile *f, struct ModelConfig *cfg, struct RopeSpec *rope);
int model_hf_vocab(struct ModelFile *f, struct VocabSpec *v);

/* Makes a model of the geometry that `path` names (geometry.c). */
int model_geometry(struct ModelFile *f, const char *path, struct Model *m);

/* Maps and lists whatever `path` is. model_file_close frees it, also after an error. */
int model_file_open(const char *path, struct ModelFile *f);
void model_file_close(struct ModelFile *f);

/* Sets head_dim and other facts that follow from the shape and checks the whole. */
int model_check_config(const struct ModelFile *f, struct ModelConfig *cfg);
void model_set_name(struct ModelConfig *cfg, const char *data, size_t len);

#endif

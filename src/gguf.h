/* gguf.h - the directory of a GGUF file: its keys and tensors, every length and offset checked.
 *
 * Nothing is copied: names, texts and arrays point into the file's bytes, which must outlive the
 * struct. Keys and tensors are found by binary search.
 */
#ifndef PCOMP_GGUF_H
#define PCOMP_GGUF_H

#include "base.h"

/* clang-format off */
enum GgufType {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING,
    GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64, GGUF_N_TYPES,
};
/* clang-format on */

enum { GGUF_MAX_DIMS = 4 };

struct GgufText {
    const char *data; /* not NUL-terminated */
    size_t len;
};

struct GgufKey {
    struct GgufText name;
    enum GgufType type; /* of the value, or of the items when is_array */
    bool is_array;
    uint64_t n;          /* items; 1 for a plain value */
    const uint8_t *data; /* the value, or the first item, as stored */
};

struct GgufTensor {
    struct GgufText name;
    uint32_t type; /* any id; see quant.h */
    int n_dims;
    uint64_t dims[GGUF_MAX_DIMS]; /* fastest first, as stored; 1 beyond n_dims */
    uint64_t offset;              /* from the start of the file */
    const uint8_t *data;
    size_t bytes; /* 0 when the type's size is not known to us */
};

struct Gguf {
    const char *name;    /* for messages; borrowed */
    const uint8_t *data; /* borrowed */
    size_t len;
    size_t header_len; /* bytes before the padding that precedes the tensor data */
    size_t data_start;
    size_t alignment;
    int n_keys, n_tensors;
    struct GgufKey *keys;         /* [n_keys] in file order */
    struct GgufTensor *tensors;   /* [n_tensors] in file order */
    const void **keys_by_name;    /* [n_keys] struct GgufKey */
    const void **tensors_by_name; /* [n_tensors] struct GgufTensor */
};

/* True when the bytes begin as a GGUF file of any version does. */
bool gguf_is(const uint8_t *data, size_t len);

/* Reads the directory. On success the caller owns *out: gguf_free. On failure nothing is kept.
 * Errors: PC_EFORMAT (file, offset, what, why), PC_ENOMEM. */
int gguf_parse(const uint8_t *data, size_t len, const char *name, struct Gguf *out);
void gguf_free(struct Gguf *g);

/* NULL when absent. */
const struct GgufKey *gguf_find(const struct Gguf *g, const char *name);
const struct GgufTensor *gguf_tensor(const struct Gguf *g, const char *name);

/* The value of a plain key, or item i of a numeric array. False when it is of another kind (a whole
 * number that does not fit counts as another kind). Any number reads as double, any whole one as int. */
bool gguf_int(const struct GgufKey *key, uint64_t i, int64_t *out);
bool gguf_double(const struct GgufKey *key, uint64_t i, double *out);
bool gguf_bool(const struct GgufKey *key, bool *out);
bool gguf_text(const struct GgufKey *key, struct GgufText *out);

/* The text at *pos, inside the items of an array of strings; moves *pos on to the next. */
struct GgufText gguf_next_text(const uint8_t **pos);

const char *gguf_type_name(enum GgufType type);

#endif

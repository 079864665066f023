/* safetensors.h - the folder form of a model: *.safetensors files and the JSON files beside them.
 *
 * A safetensors file is a length, a JSON header (name, type, shape and byte range of every tensor)
 * and the data. Headers are checked whole; data stays in the mapped file.
 */
#ifndef PCOMP_SAFETENSORS_H
#define PCOMP_SAFETENSORS_H

#include "base.h"

#include <cjson/cJSON.h>

enum { SAFE_MAX_DIMS = 4 };

struct SafeTensor {
    const char *name;   /* owned by the SafeFile */
    char type_name[16]; /* as stored: "F32", "I64", … */
    uint32_t type;      /* enum DType, or SAFE_OTHER */
    int n_dims;
    uint64_t dims[SAFE_MAX_DIMS]; /* slowest first, as stored; 1 beyond n_dims */
    const uint8_t *data;
    size_t bytes;
};

#define SAFE_OTHER UINT32_MAX /* a type that is no weight type of ours */

struct SafeFile {
    struct SafeTensor *tensors; /* [n_tensors] in header order */
    int n_tensors;
    char *names;       /* owned text of all names */
    size_t header_len; /* with the length field */
};

/* Reads a file's header; tensors point into data. On success the caller owns *out: safetensors_free.
 * Errors: PC_EFORMAT (file, tensor, why), PC_ENOMEM. */
int safetensors_parse(const uint8_t *data, size_t len, const char *file, struct SafeFile *out);
void safetensors_free(struct SafeFile *s);

/* Parses a JSON file of the folder; cJSON_Delete the result. When it does not exist: *out = NULL if
 * it is not `needed`, else PC_EIO. hash, when not NULL, is advanced by the file's bytes. */
int folder_json(const char *dir, const char *name, bool needed, cJSON **out, uint64_t *hash);

/* The names of the folder's tensor files, one after the other, each ending in NUL: n of them. */
int folder_shards(const char *dir, struct Str *names, int *n);

/* A whole number from 0 to max. False for anything else. */
bool json_whole(const cJSON *item, double max, uint64_t *out);

#endif

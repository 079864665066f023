/* safetensors.c - reads safetensors headers and finds the files of a model folder.
 *
 * JSON comes from cJSON, whose numbers are doubles: whole numbers are exact up to 2^53, and larger
 * ones are refused. The byte range of every tensor must lie in the file and be exactly as long as
 * its shape and type say, so no later code needs to doubt either.
 */
#include "safetensors.h"

#include "quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LENGTH_BYTES = 8,
    MAX_HEADER = 100 * 1000 * 1000, /* the limit of the format's own library */
    MAX_SHARD_NAME = 255,
};

#define MAX_EXACT 9007199254740992.0 /* 2^53 */

bool json_whole(const cJSON *item, double max, uint64_t *out)
{
    if (!cJSON_IsNumber(item)) return false;
    double v = item->valuedouble;
    if (!(v >= 0) || v > max || v > MAX_EXACT || floor(v) != v) return false;
    *out = (uint64_t)v;
    return true;
}

/* ==== Header ==== */

static int wrong(const char *file, const char *tensor, const char *what)
{
    return err_set(PC_EFORMAT, "%s: tensor %.80s: %s", file, tensor, what);
}

/* Bytes of one element; 0 for a type nobody stores. */
static int read_type(const char *name, uint32_t *type)
{
    /* clang-format off */
    static const struct { const char *name; uint32_t type; int bytes; } types[] = {
        { "F32", DT_F32, 4 },      { "F16", DT_F16, 2 },      { "BF16", DT_BF16, 2 },
        { "F64", SAFE_OTHER, 8 },  { "I64", SAFE_OTHER, 8 },  { "U64", SAFE_OTHER, 8 },
        { "I32", SAFE_OTHER, 4 },  { "U32", SAFE_OTHER, 4 },  { "I16", SAFE_OTHER, 2 },
        { "U16", SAFE_OTHER, 2 },  { "I8", SAFE_OTHER, 1 },   { "U8", SAFE_OTHER, 1 },
        { "BOOL", SAFE_OTHER, 1 }, { "F8_E4M3", SAFE_OTHER, 1 }, { "F8_E5M2", SAFE_OTHER, 1 },
        { "F8_E8M0", SAFE_OTHER, 1 },
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(name, types[i].name) != 0) continue;
        *type = types[i].type;
        return types[i].bytes;
    }
    return 0;
}

static int read_shape(const char *file, const cJSON *item, struct SafeTensor *t, size_t *n)
{
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(item, "shape"), *dim;
    if (!cJSON_IsArray(shape)) return wrong(file, t->name, "its shape is missing");
    *n = 1;
    for (int i = 0; i < SAFE_MAX_DIMS; i++) t->dims[i] = 1;
    cJSON_ArrayForEach(dim, shape)
    {
        if (t->n_dims == SAFE_MAX_DIMS)
            return wrong(file, t->name, "it has more than 4 dimensions");
        uint64_t size;
        if (!json_whole(dim, MAX_EXACT, &size) || !size_mul(*n, (size_t)size, n)) {
            return wrong(file, t->name, "a dimension is not a whole number, or too large");
        }
        t->dims[t->n_dims++] = size;
    }
    return 0;
}

static int read_range(const char *file, const cJSON *item, uint64_t range[2])
{
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    const cJSON *begin = cJSON_IsArray(offsets) ? offsets->child : NULL;
    const cJSON *end = begin ? begin->next : NULL;
    if (!end || end->next || !json_whole(begin, MAX_EXACT, &range[0]) ||
        !json_whole(end, MAX_EXACT, &range[1])) {
        return wrong(file, item->string, "data_offsets must be two whole numbers");
    }
    return 0;
}

struct Payload {
    const uint8_t *data;
    size_t len;
};

static int read_tensor(const char *file, const cJSON *item, struct Payload payload,
                       struct SafeTensor *t)
{
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(item, "dtype");
    if (!cJSON_IsString(dtype)) return wrong(file, t->name, "its dtype is missing");
    snprintf(t->type_name, sizeof t->type_name, "%s", dtype->valuestring);
    int element = read_type(dtype->valuestring, &t->type);
    if (element == 0) {
        return err_set(PC_EFORMAT, "%s: tensor %.80s: type %s is unknown", file, t->name,
                       t->type_name);
    }
    size_t n = 0, bytes = 0;
    TRY(read_shape(file, item, t, &n));
    if (!size_mul(n, (size_t)element, &bytes)) return wrong(file, t->name, "its size overflows");
    uint64_t range[2] = {0};
    TRY(read_range(file, item, range));
    if (range[0] > range[1] || range[1] > payload.len) {
        return err_set(
            PC_EFORMAT,
            "%s: tensor %.80s: bytes %llu to %llu are outside the %zu bytes of data (is the "
            "file whole?)",
            file, t->name, (unsigned long long)range[0], (unsigned long long)range[1], payload.len);
    }
    if (range[1] - range[0] != bytes) {
        return err_set(PC_EFORMAT,
                       "%s: tensor %.80s: its shape needs %zu bytes, its range has %llu", file,
                       t->name, bytes, (unsigned long long)(range[1] - range[0]));
    }
    t->bytes = bytes;
    t->data = payload.data + range[0];
    return 0;
}

static bool is_tensor(const cJSON *item)
{
    return strcmp(item->string, "__metadata__") != 0;
}

static int read_header(const cJSON *root, const char *file, struct Payload payload,
                       struct SafeFile *out)
{
    if (!cJSON_IsObject(root))
        return err_set(PC_EFORMAT, "%s: the header is not a JSON object", file);
    size_t n = 0, text = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        n += is_tensor(item);
        text += strlen(item->string) + 1;
    }
    out->tensors = mem_alloc(n, sizeof *out->tensors);
    out->names = mem_alloc(text, 1);
    if (!out->tensors || !out->names) return PC_ENOMEM;
    char *name = out->names;
    cJSON_ArrayForEach(item, root)
    {
        if (!is_tensor(item)) continue;
        if (!cJSON_IsObject(item))
            return wrong(file, item->string, "its entry is not a JSON object");
        struct SafeTensor *t = &out->tensors[out->n_tensors++];
        size_t len = strlen(item->string);
        if (len == 0 || utf8_invalid_at(item->string, len) < len) {
            return err_set(PC_EFORMAT, "%s: the name of tensor %d is empty or not UTF-8", file,
                           out->n_tensors - 1);
        }
        t->name = memcpy(name, item->string, len + 1);
        name += len + 1;
        TRY(read_tensor(file, item, payload, t));
    }
    return 0;
}

int safetensors_parse(const uint8_t *data, size_t len, const char *file, struct SafeFile *out)
{
    uint64_t header_len = 0;
    *out = (struct SafeFile){0};
    if (len >= LENGTH_BYTES) memcpy(&header_len, data, sizeof header_len);
    if (len < LENGTH_BYTES || header_len > len - LENGTH_BYTES) {
        return err_set(
            PC_EFORMAT,
            "%s: offset 0: a header of %llu bytes does not fit in a file of %zu (is the file "
            "whole?)",
            file, (unsigned long long)header_len, len);
    }
    if (header_len > MAX_HEADER) {
        return err_set(PC_EFORMAT, "%s: offset 0: a header of %llu bytes is over the limit of %d",
                       file, (unsigned long long)header_len, MAX_HEADER);
    }
    cJSON *root = cJSON_ParseWithLength((const char *)data + LENGTH_BYTES, (size_t)header_len);
    if (!root)
        return err_set(PC_EFORMAT, "%s: offset %d: the header is not valid JSON", file,
                       LENGTH_BYTES);
    out->header_len = LENGTH_BYTES + (size_t)header_len;
    struct Payload payload = {data + out->header_len, len - out->header_len};
    int status = read_header(root, file, payload, out);
    cJSON_Delete(root);
    if (status < 0) safetensors_free(out);
    return status;
}

void safetensors_free(struct SafeFile *s)
{
    mem_free(s->tensors);
    mem_free(s->names);
    *s = (struct SafeFile){0};
}

/* ==== Folder ==== */

int folder_json(const char *dir, const char *name, bool needed, cJSON **out, uint64_t *hash)
{
    struct Str path = {0}, text = {0};
    int status;
    *out = NULL;
    TRY_GOTO(str_appendf(&path, "%s/%s", dir, name));
    if (access(path.data, F_OK) != 0 && !needed) goto fail;
    TRY_GOTO(file_read(path.data, &text));
    if (hash) *hash = hash64(text.data, text.len, *hash);
    bool is_text = text.len > 0 && utf8_invalid_at(text.data, text.len) == text.len;
    *out = is_text ? cJSON_ParseWithLength(text.data, text.len) : NULL;
    if (!cJSON_IsObject(*out)) {
        cJSON_Delete(*out);
        *out = NULL;
        status = err_set(PC_EFORMAT, "%s: not a valid JSON object in UTF-8", path.data);
    }
fail:
    str_free(&path);
    str_free(&text);
    return status;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Only names inside the folder: an index must not make us open other files. */
static bool is_plain_name(const char *name)
{
    return *name != '\0' && *name != '.' && !strchr(name, '/') && strlen(name) <= MAX_SHARD_NAME;
}

static int list_shards(const char *dir, const cJSON *map, struct Str *names, int *n)
{
    const cJSON *item;
    int status = 0, n_items = cJSON_GetArraySize(map), i = 0;
    if (!cJSON_IsObject(map) || n_items == 0) {
        return err_set(PC_EFORMAT, "%s: model.safetensors.index.json has no weight_map", dir);
    }
    const char **files = mem_alloc((size_t)n_items, sizeof *files);
    if (!files) return PC_ENOMEM;
    cJSON_ArrayForEach(item, map)
    {
        if (!cJSON_IsString(item) || !is_plain_name(item->valuestring)) {
            status = err_set(
                PC_EFORMAT,
                "%s: model.safetensors.index.json: the file of %.80s is not a plain file name", dir,
                item->string);
            goto fail;
        }
        files[i++] = item->valuestring;
    }
    qsort(files, (size_t)n_items, sizeof *files, compare_texts);
    for (i = 0; i < n_items; i++) {
        if (i > 0 && strcmp(files[i - 1], files[i]) == 0) continue;
        TRY_GOTO(str_append(names, files[i], strlen(files[i]) + 1));
        ++*n;
    }
fail:
    mem_free(files);
    return status;
}

int folder_shards(const char *dir, struct Str *names, int *n)
{
    static const char single[] = "model.safetensors";
    cJSON *index;
    *n = 0;
    TRY(folder_json(dir, "model.safetensors.index.json", false, &index, NULL));
    if (!index) {
        *n = 1;
        return str_append(names, single, sizeof single);
    }
    int status = list_shards(dir, cJSON_GetObjectItemCaseSensitive(index, "weight_map"), names, n);
    cJSON_Delete(index);
    return status;
}

/* gguf.c - reads the directory of a GGUF v3 file: header, key-value pairs, tensor table.
 *
 * The file is hostile until shown otherwise. A cursor holds what is left, every read goes through
 * it, and every length is compared with what is left before it is used, so no sum can wrap. Counts
 * are compared with the smallest size of one entry before memory is taken for them, so the memory
 * asked for stays in proportion to the file. Names are sorted once; that finds duplicates too.
 */
#include "gguf.h"

#include "quant.h"

#include <stdlib.h>
#include <string.h>

enum {
    GGUF_VERSION = 3,
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 20,
    MAX_KEY_LEN = 65535,
    MAX_TENSOR_NAME = 255,
    MAX_NESTING = 4,
    MIN_KEY_BYTES = 8 + 1 + 4 + 1,            /* name length, name, type, value */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8, /* …, dim count, one dim, type, offset */
    MAX_COUNT = 1 << 24,
};

/* For "%.*s": long names are cut, or they would push the rest out of the message. */
#define SHOW(text) (int)((text).len < 80 ? (text).len : 80), (text).data

static const uint8_t magic[4] = {'G', 'G', 'U', 'F'};

struct Cursor {
    const uint8_t *start, *pos;
    size_t left;
    const char *file;
};

/* clang-format off */
static const struct { const char *name; int bytes; } types[GGUF_N_TYPES] = {
    { "u8", 1 }, { "i8", 1 }, { "u16", 2 }, { "i16", 2 }, { "u32", 4 }, { "i32", 4 }, { "f32", 4 },
    { "bool", 1 }, { "string", 0 }, { "array", 0 }, { "u64", 8 }, { "i64", 8 }, { "f64", 8 },
};
/* clang-format on */

const char *gguf_type_name(enum GgufType type)
{
    return (unsigned)type < GGUF_N_TYPES ? types[type].name : "unknown";
}

bool gguf_is(const uint8_t *data, size_t len)
{
    return len >= sizeof magic && memcmp(data, magic, sizeof magic) == 0;
}

/* ==== Cursor ==== */

static int bad(const struct Cursor *c, const char *what)
{
    return err_set(PC_EFORMAT, "%s: offset %zu: %s", c->file, (size_t)(c->pos - c->start), what);
}

static int cut(const struct Cursor *c, const char *what, uint64_t need)
{
    return err_set(PC_EFORMAT,
                   "%s: offset %zu: %s needs %llu bytes, %zu are left (is the file whole?)",
                   c->file, (size_t)(c->pos - c->start), what, (unsigned long long)need, c->left);
}

static int skip(struct Cursor *c, uint64_t n, const char *what)
{
    if (n > c->left) return cut(c, what, n);
    c->pos += n;
    c->left -= (size_t)n;
    return 0;
}

static int read_u32(struct Cursor *c, uint32_t *out, const char *what)
{
    if (c->left < sizeof *out) return cut(c, what, sizeof *out);
    memcpy(out, c->pos, sizeof *out);
    return skip(c, sizeof *out, what);
}

static int read_u64(struct Cursor *c, uint64_t *out, const char *what)
{
    if (c->left < sizeof *out) return cut(c, what, sizeof *out);
    memcpy(out, c->pos, sizeof *out);
    return skip(c, sizeof *out, what);
}

static int read_text(struct Cursor *c, struct GgufText *out, const char *what)
{
    uint64_t len = 0;
    TRY(read_u64(c, &len, what));
    out->data = (const char *)c->pos;
    out->len = (size_t)len;
    return skip(c, len, what);
}

static int read_name(struct Cursor *c, struct GgufText *out, size_t max, const char *what)
{
    struct Cursor before = *c;
    TRY(read_text(c, out, what));
    if (out->len == 0 || out->len > max) {
        return err_set(PC_EFORMAT, "%s: offset %zu: %s of %zu bytes, must be 1 to %zu", c->file,
                       (size_t)(before.pos - c->start), what, out->len, max);
    }
    if (memchr(out->data, '\0', out->len) || utf8_invalid_at(out->data, out->len) < out->len) {
        return err_set(PC_EFORMAT, "%s: offset %zu: %s is not UTF-8 text", c->file,
                       (size_t)(before.pos - c->start), what);
    }
    return 0;
}

/* ==== Keys ==== */

static int read_type(struct Cursor *c, enum GgufType *out)
{
    uint32_t type = 0;
    TRY(read_u32(c, &type, "a value type"));
    if (type >= GGUF_N_TYPES) {
        return err_set(PC_EFORMAT, "%s: offset %zu: value type %u is unknown (0 to %d are known)",
                       c->file, (size_t)(c->pos - c->start) - 4, type, GGUF_N_TYPES - 1);
    }
    *out = (enum GgufType)type;
    return 0;
}

static int read_array_head(struct Cursor *c, enum GgufType *item, uint64_t *n)
{
    TRY(read_type(c, item));
    return read_u64(c, n, "an array's length");
}

/* Moves past n values. Every value takes at least a byte, so the loops end with the file. */
static int skip_values(struct Cursor *c, enum GgufType type, uint64_t n, int depth)
{
    if (type == GGUF_STRING) {
        struct GgufText text;
        for (uint64_t i = 0; i < n; i++) TRY(read_text(c, &text, "a string"));
        return 0;
    }
    if (type == GGUF_ARRAY) {
        if (depth == MAX_NESTING) return bad(c, "arrays are nested too deeply");
        for (uint64_t i = 0; i < n; i++) {
            enum GgufType item = GGUF_U8;
            uint64_t len = 0;
            TRY(read_array_head(c, &item, &len));
            TRY(skip_values(c, item, len, depth + 1));
        }
        return 0;
    }
    uint64_t bytes = (uint64_t)types[type].bytes;
    if (n > c->left / bytes) {
        return err_set(
            PC_EFORMAT, "%s: offset %zu: %llu values of type %s do not fit in the %zu bytes left",
            c->file, (size_t)(c->pos - c->start), (unsigned long long)n, types[type].name, c->left);
    }
    return skip(c, n * bytes, "values");
}

static int read_key(struct Cursor *c, struct GgufKey *key)
{
    TRY(read_name(c, &key->name, MAX_KEY_LEN, "a key's name"));
    TRY(read_type(c, &key->type));
    key->n = 1;
    key->is_array = key->type == GGUF_ARRAY;
    if (key->is_array) TRY(read_array_head(c, &key->type, &key->n));
    key->data = c->pos;
    int status = skip_values(c, key->type, key->n, 1);
    if (status < 0) return err_prefix(status, "key %.*s", SHOW(key->name));
    return 0;
}

/* ==== Tensor table ==== */

static int tensor_bytes(const struct Cursor *c, struct GgufTensor *t)
{
    size_t n = 1;
    for (int i = 0; i < t->n_dims; i++) {
        if (t->dims[i] == 0 || t->dims[i] > INT64_MAX || !size_mul(n, (size_t)t->dims[i], &n)) {
            return err_set(PC_EFORMAT,
                           "%s: tensor %.*s: dimension %d is %llu, which is zero or too large",
                           c->file, SHOW(t->name), i, (unsigned long long)t->dims[i]);
        }
    }
    int weights, bytes;
    if (!dtype_block(t->type, &weights, &bytes)) return 0;
    if (t->dims[0] % (uint64_t)weights != 0) {
        return err_set(
            PC_EFORMAT, "%s: tensor %.*s: rows of %llu weights do not split into %s blocks of %d",
            c->file, SHOW(t->name), (unsigned long long)t->dims[0], dtype_name(t->type), weights);
    }
    if (!size_mul(n / (size_t)weights, (size_t)bytes, &t->bytes)) {
        return err_set(PC_EFORMAT, "%s: tensor %.*s: its size overflows", c->file, SHOW(t->name));
    }
    return 0;
}

static int read_tensor(struct Cursor *c, struct GgufTensor *t)
{
    TRY(read_name(c, &t->name, MAX_TENSOR_NAME, "a tensor's name"));
    uint32_t n_dims = 0;
    TRY(read_u32(c, &n_dims, "a tensor's dimension count"));
    if (n_dims < 1 || n_dims > GGUF_MAX_DIMS) {
        return err_set(PC_EFORMAT, "%s: offset %zu: tensor %.*s has %u dimensions, must be 1 to %d",
                       c->file, (size_t)(c->pos - c->start) - 4, SHOW(t->name), n_dims,
                       GGUF_MAX_DIMS);
    }
    t->n_dims = (int)n_dims;
    for (int i = 0; i < GGUF_MAX_DIMS; i++) t->dims[i] = 1;
    for (int i = 0; i < t->n_dims; i++) TRY(read_u64(c, &t->dims[i], "a tensor's dimension"));
    TRY(read_u32(c, &t->type, "a tensor's type"));
    TRY(read_u64(c, &t->offset, "a tensor's offset"));
    return tensor_bytes(c, t);
}

/* Turns offsets into places in the file once the start of the data is known. */
static int place_tensors(struct Gguf *g)
{
    for (int i = 0; i < g->n_tensors; i++) {
        struct GgufTensor *t = &g->tensors[i];
        if (t->offset % g->alignment != 0) {
            return err_set(PC_EFORMAT,
                           "%s: tensor %.*s: offset %llu is not a multiple of the alignment %zu",
                           g->name, SHOW(t->name), (unsigned long long)t->offset, g->alignment);
        }
        size_t room = g->len - g->data_start;
        if (t->offset > room || t->bytes > room - (size_t)t->offset) {
            return err_set(
                PC_EFORMAT,
                "%s: tensor %.*s: %zu bytes at offset %llu of the data end beyond its %zu bytes "
                "(is the file whole?)",
                g->name, SHOW(t->name), t->bytes, (unsigned long long)t->offset, room);
        }
        t->offset += g->data_start;
        t->data = g->data + t->offset;
    }
    return 0;
}

/* ==== Search ==== */

static int text_compare(struct GgufText a, struct GgufText b)
{
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    if (order != 0) return order;
    return (a.len > b.len) - (a.len < b.len);
}

/* GgufKey and GgufTensor both begin with their name: one set of functions serves both. */
static int compare_named(const void *a, const void *b)
{
    const struct GgufText *const *x = a, *const *y = b;
    return text_compare(**x, **y);
}

/* Fills index with pointers to n items of `size` bytes, by name; refuses two of the same name. */
static int index_names(const struct Gguf *g, const void *items, int n, size_t size,
                       const void **index)
{
    for (int i = 0; i < n; i++) index[i] = (const char *)items + (size_t)i * size;
    if (n > 0) qsort(index, (size_t)n, sizeof *index, compare_named);
    for (int i = 1; i < n; i++) {
        const struct GgufText *name = index[i];
        if (compare_named(&index[i - 1], &index[i]) == 0) {
            return err_set(PC_EFORMAT, "%s: %.*s is there twice", g->name, SHOW(*name));
        }
    }
    return 0;
}

static const void *find_named(const void **index, int n, const char *name)
{
    struct GgufText text = {name, strlen(name)};
    const struct GgufText *key = &text;
    const void **hit = n > 0 ? bsearch(&key, index, (size_t)n, sizeof *index, compare_named) : NULL;
    return hit ? *hit : NULL;
}

const struct GgufKey *gguf_find(const struct Gguf *g, const char *name)
{
    return find_named(g->keys_by_name, g->n_keys, name);
}

const struct GgufTensor *gguf_tensor(const struct Gguf *g, const char *name)
{
    return find_named(g->tensors_by_name, g->n_tensors, name);
}

/* ==== Whole file ==== */

static int read_count(struct Cursor *c, size_t min_bytes, const char *what, int *out)
{
    uint64_t n = 0;
    TRY(read_u64(c, &n, what));
    if (n > MAX_COUNT || n > c->left / min_bytes) {
        return err_set(PC_EFORMAT, "%s: offset %zu: %s %llu cannot fit in the %zu bytes left",
                       c->file, (size_t)(c->pos - c->start) - 8, what, (unsigned long long)n,
                       c->left);
    }
    *out = (int)n;
    return 0;
}

static int read_version(struct Cursor *c)
{
    if (!gguf_is(c->pos, c->left))
        return bad(c, "not a GGUF file (it does not begin with \"GGUF\")");
    TRY(skip(c, sizeof magic, "the magic"));
    uint32_t version = 0;
    TRY(read_u32(c, &version, "the version"));
    if (version == GGUF_VERSION) return 0;
    if (__builtin_bswap32(version) <= GGUF_VERSION) {
        return bad(c, "a big-endian GGUF file; convert it to little-endian");
    }
    return err_set(PC_EFORMAT,
                   "%s: GGUF version %u, only %d is read; convert the file with a current tool",
                   c->file, version, GGUF_VERSION);
}

static int read_alignment(struct Gguf *g)
{
    g->alignment = DEFAULT_ALIGNMENT;
    const struct GgufKey *key = gguf_find(g, "general.alignment");
    if (!key) return 0;
    int64_t n;
    if (!gguf_int(key, 0, &n) || key->is_array || n < 1 || n > MAX_ALIGNMENT ||
        (n & (n - 1)) != 0) {
        return err_set(PC_EFORMAT, "%s: general.alignment must be a power of two from 1 to %d",
                       g->name, MAX_ALIGNMENT);
    }
    g->alignment = (size_t)n;
    return 0;
}

static int read_directory(struct Cursor *c, struct Gguf *g)
{
    TRY(read_version(c));
    TRY(read_count(c, MIN_TENSOR_BYTES, "the tensor count", &g->n_tensors));
    TRY(read_count(c, MIN_KEY_BYTES, "the key count", &g->n_keys));
    g->keys = mem_alloc((size_t)g->n_keys, sizeof *g->keys);
    g->keys_by_name = mem_alloc((size_t)g->n_keys, sizeof *g->keys_by_name);
    g->tensors = mem_alloc((size_t)g->n_tensors, sizeof *g->tensors);
    g->tensors_by_name = mem_alloc((size_t)g->n_tensors, sizeof *g->tensors_by_name);
    if (!g->keys || !g->keys_by_name || !g->tensors || !g->tensors_by_name) return PC_ENOMEM;

    for (int i = 0; i < g->n_keys; i++) TRY(read_key(c, &g->keys[i]));
    TRY(index_names(g, g->keys, g->n_keys, sizeof *g->keys, g->keys_by_name));
    TRY(read_alignment(g));
    for (int i = 0; i < g->n_tensors; i++) TRY(read_tensor(c, &g->tensors[i]));
    TRY(index_names(g, g->tensors, g->n_tensors, sizeof *g->tensors, g->tensors_by_name));

    g->header_len = (size_t)(c->pos - c->start);
    size_t padding = (g->alignment - g->header_len % g->alignment) % g->alignment;
    g->data_start =
        padding < c->left ? g->header_len + padding : g->len; /* no tensors: no padding */
    return place_tensors(g);
}

int gguf_parse(const uint8_t *data, size_t len, const char *name, struct Gguf *out)
{
    struct Cursor c = {data, data, len, name};
    *out = (struct Gguf){.name = name, .data = data, .len = len};
    int status = read_directory(&c, out);
    if (status < 0) gguf_free(out);
    return status;
}

void gguf_free(struct Gguf *g)
{
    mem_free(g->keys);
    mem_free(g->keys_by_name);
    mem_free(g->tensors);
    mem_free(g->tensors_by_name);
    *g = (struct Gguf){0};
}

/* ==== Values ==== */

bool gguf_int(const struct GgufKey *key, uint64_t i, int64_t *out)
{
    if (i >= key->n) return false;
    const uint8_t *p = key->data + i * (uint64_t)types[key->type].bytes;
    /* clang-format off */
    union {
        uint8_t u8; int8_t i8; uint16_t u16; int16_t i16;
        uint32_t u32; int32_t i32; uint64_t u64; int64_t i64;
    } v;
    /* clang-format on */
    memcpy(&v, p, (size_t)types[key->type].bytes);
    switch (key->type) {
    /* clang-format off */
    case GGUF_U8: *out = v.u8; return true;
    case GGUF_I8: *out = (int64_t)v.i8; return true;
    case GGUF_U16: *out = v.u16; return true;
    case GGUF_I16: *out = v.i16; return true;
    case GGUF_U32: *out = v.u32; return true;
    case GGUF_I32: *out = v.i32; return true;
    case GGUF_I64: *out = v.i64; return true;
    /* clang-format on */
    case GGUF_U64:
        if (v.u64 > INT64_MAX) return false;
        *out = (int64_t)v.u64;
        return true;
    default:
        return false;
    }
}

bool gguf_double(const struct GgufKey *key, uint64_t i, double *out)
{
    if (i >= key->n) return false;
    if (key->type == GGUF_F32) {
        float f;
        memcpy(&f, key->data + i * sizeof f, sizeof f);
        *out = (double)f;
        return true;
    }
    if (key->type == GGUF_F64) {
        memcpy(out, key->data + i * sizeof *out, sizeof *out);
        return true;
    }
    int64_t whole;
    if (!gguf_int(key, i, &whole)) return false;
    *out = (double)whole;
    return true;
}

bool gguf_bool(const struct GgufKey *key, bool *out)
{
    if (key->type != GGUF_BOOL || key->is_array) return false;
    *out = key->data[0] != 0;
    return true;
}

struct GgufText gguf_next_text(const uint8_t **pos)
{
    uint64_t len;
    memcpy(&len, *pos, sizeof len);
    struct GgufText text = {(const char *)*pos + sizeof len, (size_t)len};
    *pos += sizeof len + len;
    return text;
}

bool gguf_text(const struct GgufKey *key, struct GgufText *out)
{
    if (key->type != GGUF_STRING || key->is_array) return false;
    const uint8_t *pos = key->data;
    *out = gguf_next_text(&pos);
    return true;
}

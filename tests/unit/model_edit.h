/* model_edit.h - for tests of the model module: a temporary folder, and tiny models with one thing
 * changed. Each test program has its own copy.
 */
#ifndef PCOMP_MODEL_EDIT_H
#define PCOMP_MODEL_EDIT_H

#include "src/gguf.h"
#include "src/model.h"
#include "tests/tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[256], file[300], folder[300];

static inline int make_dir(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/pcomp-model-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(dir)) return -1;
    snprintf(file, sizeof file, "%s/t.gguf", dir);
    snprintf(folder, sizeof folder, "%s/hf", dir);
    return mkdir(folder, 0700);
}

static inline void in_folder(const char *name, char path[400])
{
    snprintf(path, 400, "%s/%s", folder, name);
}

static inline int drop_dir(void **state)
{
    (void)state;
    static const char *const names[] = {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
        "chat_template.jinja",
        "model.safetensors.index.json",
        "a.safetensors",
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

static inline void open_ok(const char *path, struct Model *m)
{
    if (model_open(path, m) != 0) fail_msg("%s", err_text());
}

static inline void refused(const char *path, const char *part)
{
    struct Model m;
    size_t before = mem_in_use();
    int status = model_open(path, &m);
    if (status != PC_EFORMAT || !strstr(err_text(), part))
        fail_msg("%d, wanted \"%s\": %s", status, part, err_text());
    assert_int_equal(mem_in_use(), before);
    assert_null(m.source);
}

/* ==== GGUF files ==== */

/* Plainly: file_write waits for the disk, which thousands of damaged files need not. */
static inline void write_str(const struct Str *s)
{
    FILE *out = fopen(file, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(s->data, 1, s->len, out), s->len);
    assert_int_equal(fclose(out), 0);
}

/* The tiny GGUF file with every `from` in it turned into `to`, of the same length. */
static inline void write_patched(const char *arch, const char *from, const char *to)
{
    struct TinySpec spec = tiny_spec(arch);
    struct Str s = {0};
    assert_int_equal(strlen(from), strlen(to));
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    bool found = false;
    for (char *at = s.data; (at = memmem(at, s.len - (size_t)(at - s.data), from, strlen(from)));
         at++) {
        memcpy(at, to, strlen(to));
        found = true;
    }
    assert_true(found);
    write_str(&s);
    str_free(&s);
}

static inline void put(struct Str *s, const void *data, size_t n)
{
    assert_int_equal(str_append(s, data, n), 0);
}

static inline void put_text(struct Str *s, const char *text)
{
    uint64_t len = strlen(text);
    put(s, &len, sizeof len);
    put(s, text, len);
}

static inline void put_u32(struct Str *s, uint32_t v)
{
    put(s, &v, sizeof v);
}

static inline void key_u32(struct Str *s, const char *name, uint32_t v)
{
    put_text(s, name);
    put_u32(s, GGUF_U32);
    put_u32(s, v);
}

static inline void key_f32(struct Str *s, const char *name, float v)
{
    put_text(s, name);
    put_u32(s, GGUF_F32);
    put(s, &v, sizeof v);
}

static inline void key_text(struct Str *s, const char *name, const char *v)
{
    put_text(s, name);
    put_u32(s, GGUF_STRING);
    put_text(s, v);
}

/* Writes the tiny file with more keys before its own and more tensor entries after its own. */
static inline void write_with(const struct TinySpec *spec, struct Str *keys, int n_keys,
                              struct Str *tensors, int n_tensors)
{
    enum { HEAD = 24, TENSORS_AT = 8, KEYS_AT = 16 };
    struct Str s = {0}, out = {0};
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

static inline void write_with_keys(const char *arch, struct Str *keys, int n)
{
    struct TinySpec spec = tiny_spec(arch);
    struct Str none = {0};
    write_with(&spec, keys, n, &none, 0);
}

static inline void write_with_tensor(const char *name, uint64_t cols, uint32_t type)
{
    struct TinySpec spec = tiny_spec("llama");
    struct Str none = {0}, entry = {0};
    uint64_t offset = 0;
    put_text(&entry, name);
    put_u32(&entry, 1);
    put(&entry, &cols, sizeof cols);
    put_u32(&entry, type);
    put(&entry, &offset, sizeof offset);
    write_with(&spec, &none, 0, &entry, 1);
}

/* ==== Folders ==== */

static inline void write_folder(const char *arch)
{
    char path[400];
    struct TinySpec spec = tiny_spec(arch);
    in_folder("generation_config.json", path);
    unlink(path);
    assert_int_equal(tiny_safetensors(folder, &spec), 0);
}

/* Turns the first `from` in a file of the folder into `to`. */
static inline void edit(const char *name, const char *from, const char *to)
{
    char path[400];
    struct Str s = {0}, out = {0};
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

#endif

/* test_gguf.c - the GGUF directory: good files, every kind of bad one, and damage at every place.
 *
 * The damaged files are only required not to crash and to give a message; run under the sanitizers
 * that is the test.
 */
#include "src/gguf.h"
#include "tests/tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* ==== A writer for small hand-made files ==== */

static void put(struct Str *s, const void *data, size_t n)
{
    assert_int_equal(str_append(s, data, n), 0);
}

static void put_u32(struct Str *s, uint32_t v)
{
    put(s, &v, sizeof v);
}
static void put_u64(struct Str *s, uint64_t v)
{
    put(s, &v, sizeof v);
}

static void put_text(struct Str *s, const char *text)
{
    put_u64(s, strlen(text));
    put(s, text, strlen(text));
}

static void put_head(struct Str *s, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    put(s, "GGUF", 4);
    put_u32(s, version);
    put_u64(s, n_tensors);
    put_u64(s, n_keys);
}

static void put_key_u32(struct Str *s, const char *name, uint32_t value)
{
    put_text(s, name);
    put_u32(s, GGUF_U32);
    put_u32(s, value);
}

static void put_tensor(struct Str *s, const char *name, uint64_t cols, uint32_t type,
                       uint64_t offset)
{
    put_text(s, name);
    put_u32(s, 1);
    put_u64(s, cols);
    put_u32(s, type);
    put_u64(s, offset);
}

/* Padding, then n bytes of data. */
static void put_data(struct Str *s, size_t n)
{
    while (s->len % 32) put(s, "", 1);
    for (size_t i = 0; i < n; i++) put(s, "", 1);
}

static int parse(const struct Str *s, struct Gguf *g)
{
    return gguf_parse((const uint8_t *)s->data, s->len, "t.gguf", g);
}

/* The file is refused with a message that has `part` in it; frees it. */
static void refuse(struct Str *s, const char *part)
{
    struct Gguf g;
    assert_int_equal(parse(s, &g), PC_EFORMAT);
    if (!strstr(err_text(), part) || !strstr(err_text(), "t.gguf"))
        fail_msg("message: %s", err_text());
    str_free(s);
}

/* ==== Good files ==== */

static void tiny_file_is_read(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("qwen2");
    struct Str s = {0};
    struct Gguf g;
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    assert_int_equal(parse(&s, &g), 0);
    int64_t n;
    assert_true(gguf_int(gguf_find(&g, "qwen2.embedding_length"), 0, &n));
    assert_int_equal(n, spec.dim);
    const struct GgufTensor *t = gguf_tensor(&g, "blk.1.ffn_down.weight");
    assert_non_null(t);
    assert_int_equal(t->dims[0], spec.hidden_dim);
    assert_int_equal(t->dims[1], spec.dim);
    assert_int_equal(t->bytes, 4 * spec.dim * spec.hidden_dim);
    assert_null(gguf_find(&g, "qwen2"));
    assert_null(gguf_find(&g, ""));
    assert_null(gguf_tensor(&g, "blk.2.ffn_down.weight"));
    gguf_free(&g);
    str_free(&s);
}

static void every_value_type_is_read(void **state)
{
    (void)state;
    struct Str s = {0};
    struct Gguf g;
    put_head(&s, 3, 0, 5);
    put_text(&s, "i8");
    put_u32(&s, GGUF_I8);
    put(&s, "\xff", 1);
    put_text(&s, "u64");
    put_u32(&s, GGUF_U64);
    put_u64(&s, UINT64_MAX);
    double real = 0.1;
    put_text(&s, "f64");
    put_u32(&s, GGUF_F64);
    put(&s, &real, sizeof real);
    put_text(&s, "flag");
    put_u32(&s, GGUF_BOOL);
    put(&s, "\1", 1);
    put_text(&s, "list");
    put_u32(&s, GGUF_ARRAY);
    put_u32(&s, GGUF_I32);
    put_u64(&s, 2);
    put_u32(&s, 7);
    put_u32(&s, (uint32_t)-8);
    assert_int_equal(parse(&s, &g), 0);

    int64_t n;
    double x;
    bool flag;
    struct GgufText text;
    assert_true(gguf_int(gguf_find(&g, "i8"), 0, &n) && n == -1);
    assert_false(gguf_int(gguf_find(&g, "u64"), 0, &n));
    assert_false(gguf_int(gguf_find(&g, "f64"), 0, &n));
    assert_true(gguf_double(gguf_find(&g, "f64"), 0, &x) && x == real);
    assert_true(gguf_double(gguf_find(&g, "i8"), 0, &x) && x == -1);
    assert_true(gguf_bool(gguf_find(&g, "flag"), &flag) && flag);
    assert_false(gguf_bool(gguf_find(&g, "i8"), &flag));
    assert_true(gguf_int(gguf_find(&g, "list"), 1, &n) && n == -8);
    assert_false(gguf_int(gguf_find(&g, "list"), 2, &n));
    assert_false(gguf_text(gguf_find(&g, "list"), &text));
    gguf_free(&g);
    str_free(&s);
}

static void unknown_tensor_types_are_listed(void **state)
{
    (void)state;
    struct Str s = {0};
    struct Gguf g;
    put_head(&s, 3, 2, 0);
    put_tensor(&s, "a", 256, 10, 0);
    put_tensor(&s, "b", 256, 77, 32);
    put_data(&s, 84);
    assert_int_equal(parse(&s, &g), 0);
    assert_int_equal(gguf_tensor(&g, "a")->bytes, 0);
    assert_int_equal(gguf_tensor(&g, "b")->type, 77);
    gguf_free(&g);
    str_free(&s);
}

/* ==== Bad files ==== */

static void other_files_and_versions_are_refused(void **state)
{
    (void)state;
    struct Str s = {0};
    put(&s, "GGML", 4);
    refuse(&s, "not a GGUF file");
    put(&s, "GG", 2);
    refuse(&s, "not a GGUF file");
    put_head(&s, 1, 0, 0);
    refuse(&s, "version 1");
    put_head(&s, 2, 0, 0);
    refuse(&s, "version 2");
    put_head(&s, 4, 0, 0);
    refuse(&s, "version 4");
    put_head(&s, 0x03000000, 0, 0);
    refuse(&s, "big-endian");
}

static void counts_beyond_the_file_are_refused(void **state)
{
    (void)state;
    struct Str s = {0};
    put_head(&s, 3, UINT64_MAX, 0);
    refuse(&s, "tensor count");
    put_head(&s, 3, 0, 1000000);
    refuse(&s, "key count");
}

static void bad_keys_are_refused(void **state)
{
    (void)state;
    struct Str s = {0};
    put_head(&s, 3, 0, 1);
    put_text(&s, "");
    put_data(&s, 32);
    refuse(&s, "a key's name of 0 bytes");

    put_head(&s, 3, 0, 1);
    put_u64(&s, UINT64_MAX - 3);
    put_data(&s, 32);
    refuse(&s, "a key's name needs");

    put_head(&s, 3, 0, 1);
    put_text(&s, "k\xff");
    put_data(&s, 32);
    refuse(&s, "not UTF-8");

    put_head(&s, 3, 0, 1);
    put_text(&s, "k");
    put_u32(&s, GGUF_N_TYPES);
    put_data(&s, 32);
    refuse(&s, "value type 13");

    put_head(&s, 3, 0, 2);
    put_key_u32(&s, "k", 1);
    put_key_u32(&s, "k", 1);
    refuse(&s, "k is there twice");
}

static void bad_arrays_are_refused(void **state)
{
    (void)state;
    struct Str s = {0};
    put_head(&s, 3, 0, 1);
    put_text(&s, "k");
    put_u32(&s, GGUF_ARRAY);
    put_u32(&s, GGUF_U64);
    put_u64(&s, UINT64_MAX / 8 + 2);
    refuse(&s, "do not fit");

    put_head(&s, 3, 0, 1);
    put_text(&s, "k");
    put_u32(&s, GGUF_ARRAY);
    put_u32(&s, GGUF_STRING);
    put_u64(&s, UINT64_MAX);
    put_u64(&s, 3);
    refuse(&s, "a string needs 3 bytes");

    put_head(&s, 3, 0, 1);
    put_text(&s, "deep");
    put_u32(&s, GGUF_ARRAY);
    for (int i = 0; i < 100; i++) {
        put_u32(&s, GGUF_ARRAY);
        put_u64(&s, 1);
    }
    refuse(&s, "nested too deeply");
}

static void bad_alignments_are_refused(void **state)
{
    (void)state;
    const uint32_t wrong[] = {0, 3, 48, 1u << 31};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct Str s = {0};
        put_head(&s, 3, 0, 1);
        put_key_u32(&s, "general.alignment", wrong[i]);
        refuse(&s, "power of two");
    }
}

static void refuse_tensor(uint64_t cols, uint32_t type, uint64_t offset, const char *part)
{
    struct Str s = {0};
    put_head(&s, 3, 1, 0);
    put_tensor(&s, "w", cols, type, offset);
    put_data(&s, 128);
    refuse(&s, part);
}

static void bad_tensors_are_refused(void **state)
{
    (void)state;
    refuse_tensor(0, DT_F32, 0, "zero or too large");
    refuse_tensor(UINT64_MAX, DT_F32, 0, "zero or too large");
    refuse_tensor(INT64_MAX, DT_F32, 0, "size overflows");
    refuse_tensor(33, DT_Q8_0, 0, "do not split into Q8_0 blocks");
    refuse_tensor(33, DT_F32, 0, "132 bytes at offset 0");
    refuse_tensor(1, DT_F32, 128, "end beyond");
    refuse_tensor(1, DT_F32, UINT64_MAX - 31, "end beyond");
    refuse_tensor(1, DT_F32, 4, "multiple of the alignment");
    refuse_tensor(1, 77, 160, "end beyond");

    struct Str s = {0};
    put_head(&s, 3, 1, 0);
    put_text(&s, "w");
    put_u32(&s, 5);
    put_data(&s, 128);
    refuse(&s, "has 5 dimensions");

    put_head(&s, 3, 1, 0);
    put_text(&s, "w");
    put_u32(&s, 3);
    put_u64(&s, 1u << 31);
    put_u64(&s, 1u << 31);
    put_u64(&s, 1u << 31);
    put_u32(&s, DT_F32);
    put_u64(&s, 0);
    put_data(&s, 128);
    refuse(&s, "too large");

    put_head(&s, 3, 2, 0);
    put_tensor(&s, "w", 1, DT_F32, 0);
    put_tensor(&s, "w", 1, DT_F32, 0);
    put_data(&s, 128);
    refuse(&s, "w is there twice");
}

/* ==== Damage ==== */

/* A copy of its exact size on the heap, so that one byte too far is seen. */
static void parse_exact(const char *data, size_t n)
{
    uint8_t *copy = test_malloc(n ? n : 1);
    struct Gguf g;
    memcpy(copy, data, n);
    if (gguf_parse(copy, n, "t.gguf", &g) == 0)
        gguf_free(&g);
    else
        assert_true(strstr(err_text(), "t.gguf") != NULL);
    test_free(copy);
}

static void no_prefix_crashes(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    struct Str s = {0};
    struct Gguf g;
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    assert_int_equal(parse(&s, &g), 0);
    size_t header = g.data_start;
    gguf_free(&g);
    for (size_t n = 0; n < header + 64; n++) {
        parse_exact(s.data, n);
        assert_int_equal(gguf_parse((const uint8_t *)s.data, n, "t.gguf", &g), PC_EFORMAT);
    }
    str_free(&s);
}

static void no_bit_flip_crashes(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    struct Str s = {0};
    struct Gguf g;
    uint64_t seed = 1;
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    assert_int_equal(parse(&s, &g), 0);
    size_t header = g.data_start;
    gguf_free(&g);
    for (size_t i = 0; i < 8 * header; i++) { /* each bit alone */
        s.data[i / 8] ^= (char)(1 << i % 8);
        if (gguf_parse((const uint8_t *)s.data, s.len, "t.gguf", &g) == 0) gguf_free(&g);
        s.data[i / 8] ^= (char)(1 << i % 8);
    }
    for (int round = 0; round < 500; round++) { /* and several bytes at once */
        size_t at[4];
        char old[4];
        for (int i = 0; i < 4; i++) {
            seed = hash64(&round, sizeof round, seed);
            at[i] = seed % header;
            old[i] = s.data[at[i]];
            s.data[at[i]] = (char)(seed >> 32);
        }
        parse_exact(s.data, header + 4096);
        for (int i = 3; i >= 0; i--) s.data[at[i]] = old[i];
    }
    str_free(&s);
}

static void failed_allocations_are_reported(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    struct Str s = {0};
    struct Gguf g;
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    size_t before = mem_in_use();
    int status = PC_ENOMEM;
    for (long n = 1; status != 0; n++) {
        assert_true(n < 100);
        mem_fail_after(n);
        status = parse(&s, &g);
        mem_fail_after(0);
        if (status == 0)
            gguf_free(&g);
        else
            assert_int_equal(status, PC_ENOMEM);
        assert_int_equal(mem_in_use(), before);
    }
    str_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_file_is_read),
        cmocka_unit_test(every_value_type_is_read),
        cmocka_unit_test(unknown_tensor_types_are_listed),
        cmocka_unit_test(other_files_and_versions_are_refused),
        cmocka_unit_test(counts_beyond_the_file_are_refused),
        cmocka_unit_test(bad_keys_are_refused),
        cmocka_unit_test(bad_arrays_are_refused),
        cmocka_unit_test(bad_alignments_are_refused),
        cmocka_unit_test(bad_tensors_are_refused),
        cmocka_unit_test(no_prefix_crashes),
        cmocka_unit_test(no_bit_flip_crashes),
        cmocka_unit_test(failed_allocations_are_reported),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL) != 0;
}

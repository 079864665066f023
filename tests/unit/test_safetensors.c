/* test_safetensors.c - safetensors headers and the folder around them, good, bad and damaged. */
#include "src/safetensors.h"
#include "tests/tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[256];

static int make_dir(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/pcomp-safe-XXXXXX", base ? base : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static void drop(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static int drop_dir(void **state)
{
    (void)state;
    static const char *const names[] = {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "x.json",
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) drop(names[i]);
    return rmdir(dir);
}

static void write_file(const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(file_write(path, text, strlen(text)), 0);
}

/* A file of this header and n bytes of data. */
static void build(struct Str *out, const char *header, size_t n)
{
    uint64_t len = strlen(header);
    str_clear(out);
    assert_int_equal(str_append(out, (const char *)&len, sizeof len), 0);
    assert_int_equal(str_append(out, header, len), 0);
    while (n-- > 0) assert_int_equal(str_append(out, "", 1), 0);
}

static void refuse(const char *header, size_t n, const char *part)
{
    struct Str s = {0};
    struct SafeFile f;
    build(&s, header, n);
    assert_int_equal(safetensors_parse((const uint8_t *)s.data, s.len, "t.st", &f), PC_EFORMAT);
    if (!strstr(err_text(), part) || !strstr(err_text(), "t.st"))
        fail_msg("message: %s", err_text());
    str_free(&s);
}

static void tensors_are_listed(void **state)
{
    (void)state;
    struct Str s = {0};
    struct SafeFile f;
    build(
        &s,
        "{\"__metadata__\":{\"a\":\"b\"},\"w\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
        "\"i\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}  ",
        16);
    assert_int_equal(safetensors_parse((const uint8_t *)s.data, s.len, "t.st", &f), 0);
    assert_int_equal(f.n_tensors, 2);
    assert_string_equal(f.tensors[0].name, "w");
    assert_int_equal(f.tensors[0].type, DT_BF16);
    assert_int_equal(f.tensors[0].n_dims, 2);
    assert_int_equal(f.tensors[0].dims[1], 3);
    assert_ptr_equal(f.tensors[0].data, s.data + f.header_len + 4);
    assert_int_equal(f.tensors[1].type, SAFE_OTHER);
    assert_string_equal(f.tensors[1].type_name, "I32");
    assert_int_equal(f.tensors[1].bytes, 4);
    safetensors_free(&f);
    str_free(&s);
}

static void bad_headers_are_refused(void **state)
{
    (void)state;
    struct SafeFile f;
    uint64_t len = UINT64_MAX;
    assert_int_equal(safetensors_parse((const uint8_t *)"", 0, "t.st", &f), PC_EFORMAT);
    assert_int_equal(safetensors_parse((const uint8_t *)&len, 8, "t.st", &f), PC_EFORMAT);
    refuse("{", 0, "not valid JSON");
    refuse("", 0, "not valid JSON");
    refuse("[]", 0, "not a JSON object");
    refuse("{\"w\":3}", 0, "not a JSON object");
    refuse("{\"w\":{}}", 0, "dtype is missing");
    refuse("{\"w\":{\"dtype\":\"Q9\"}}", 0, "type Q9 is unknown");
    refuse("{\"w\":{\"dtype\":\"F32\"}}", 0, "shape is missing");
    refuse("{\"\":{\"dtype\":\"F32\"}}", 0, "empty");
}

static void bad_shapes_and_ranges_are_refused(void **state)
{
    (void)state;
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "whole number");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, "whole number");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1e300],\"data_offsets\":[0,4]}}", 4,
           "whole number");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
           "4 dimensions");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}",
           4, "too large");
    refuse("{\"w\":{\"dtype\":\"F64\",\"shape\":[4503599627370496,1024],\"data_offsets\":[0,4]}}",
           4, "overflows");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "data_offsets");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 8, "data_offsets");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "outside");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 4, "outside");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,9007199254740994]}}", 4,
           "whole numbers");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, "needs 4 bytes");
}

static void shards_come_from_the_index(void **state)
{
    (void)state;
    struct Str names = {0};
    int n;
    drop("model.safetensors.index.json");
    assert_int_equal(folder_shards(dir, &names, &n), 0);
    assert_int_equal(n, 1);
    assert_string_equal(names.data, "model.safetensors");
    str_clear(&names);

    write_file("model.safetensors.index.json",
               "{\"weight_map\":{\"a\":\"2.st\",\"b\":\"1.st\",\"c\":\"2.st\"}}");
    assert_int_equal(folder_shards(dir, &names, &n), 0);
    assert_int_equal(n, 2);
    assert_string_equal(names.data, "1.st");
    assert_string_equal(names.data + 5, "2.st");
    str_clear(&names);

    static const char *const bad[] = {
        "{\"weight_map\":{\"a\":\"../2.st\"}}",
        "{\"weight_map\":{\"a\":\"/etc/x\"}}",
        "{\"weight_map\":{\"a\":\"\"}}",
        "{\"weight_map\":{\"a\":3}}",
        "{\"weight_map\":{}}",
        "{}",
        "[]",
        "",
        "{",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_file("model.safetensors.index.json", bad[i]);
        assert_int_equal(folder_shards(dir, &names, &n), PC_EFORMAT);
        assert_non_null(strstr(err_text(), "model.safetensors.index.json"));
    }
    drop("model.safetensors.index.json");
    str_free(&names);
}

static void json_files_are_read(void **state)
{
    (void)state;
    cJSON *json;
    assert_int_equal(folder_json(dir, "absent.json", false, &json, NULL), 0);
    assert_null(json);
    assert_int_equal(folder_json(dir, "absent.json", true, &json, NULL), PC_EIO);
    uint64_t hash = 1;
    write_file("x.json", "{\"a\": 3}");
    assert_int_equal(folder_json(dir, "x.json", true, &json, &hash), 0);
    assert_int_not_equal(hash, 1);
    uint64_t three;
    assert_true(json_whole(cJSON_GetObjectItemCaseSensitive(json, "a"), 3, &three) && three == 3);
    assert_false(json_whole(cJSON_GetObjectItemCaseSensitive(json, "a"), 2, &three));
    assert_false(json_whole(NULL, 2, &three));
    cJSON_Delete(json);
    write_file("x.json", "{\"a\": \"\xff\"}");
    assert_int_equal(folder_json(dir, "x.json", true, &json, NULL), PC_EFORMAT);
}

/* A copy of its exact size on the heap, so that one byte too far is seen. */
static void parse_exact(const char *data, size_t n)
{
    uint8_t *copy = test_malloc(n ? n : 1);
    struct SafeFile f;
    memcpy(copy, data, n);
    if (safetensors_parse(copy, n, "t.st", &f) == 0) safetensors_free(&f);
    test_free(copy);
}

static void no_damage_crashes(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    struct Str s = {0}, path = {0};
    uint64_t header;
    spec.n_layers = 1;
    assert_int_equal(tiny_safetensors(dir, &spec), 0);
    assert_int_equal(str_appendf(&path, "%s/model.safetensors", dir), 0);
    assert_int_equal(file_read(path.data, &s), 0);
    memcpy(&header, s.data, sizeof header);
    for (size_t n = 0; n < header + 16; n++) parse_exact(s.data, n);
    for (size_t i = 0; i < 8 * (header + 8); i++) {
        struct SafeFile f;
        s.data[i / 8] ^= (char)(1 << i % 8);
        if (safetensors_parse((const uint8_t *)s.data, s.len, "t.st", &f) == 0)
            safetensors_free(&f);
        s.data[i / 8] ^= (char)(1 << i % 8);
    }
    str_free(&s);
    str_free(&path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_listed),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(bad_shapes_and_ranges_are_refused),
        cmocka_unit_test(shards_come_from_the_index),
        cmocka_unit_test(json_files_are_read),
        cmocka_unit_test(no_damage_crashes),
    };
    return cmocka_run_group_tests_name("safetensors", tests, make_dir, drop_dir) != 0;
}

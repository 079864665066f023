/* test_inspect.c - what model_inspect says, as text and as JSON, also of models that are refused. */
#include "tests/unit/model_edit.h"

#include <cjson/cJSON.h>

static cJSON *inspect_json(const char *path)
{
    struct Str out = {0};
    if (model_inspect(path, true, &out) != 0) fail_msg("%s", err_text());
    assert_int_equal(utf8_invalid_at(out.data, out.len), out.len);
    cJSON *json = cJSON_ParseWithLength(out.data, out.len);
    assert_non_null(json);
    str_free(&out);
    return json;
}

static double json_number(const cJSON *object, const char *name)
{
    return cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(object, name));
}

static void inspect_tells_the_facts(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    assert_int_equal(tiny_gguf(file, &spec), 0);
    write_folder("llama");
    const char *const paths[] = {file, folder};
    for (int i = 0; i < 2; i++) {
        cJSON *json = inspect_json(paths[i]);
        assert_true(json_number(json, "dim") == 64);
        assert_true(json_number(json, "kv_bytes_per_token_f16") == 2 * 2 * 2 * 2 * 16);
        const cJSON *f32 = cJSON_GetObjectItemCaseSensitive(
            cJSON_GetObjectItemCaseSensitive(json, "tensor_types"), "F32");
        assert_true(json_number(f32, "n") == 20);
        assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(json, "tensors")), 20);
        cJSON_Delete(json);
        struct Str text = {0};
        assert_int_equal(model_inspect(paths[i], false, &text), 0);
        assert_non_null(strstr(text.data, "4 query heads share 2 key heads, each 16 wide"));
        assert_non_null(strstr(text.data, "bos 281 \"<|im_start|>\""));
        str_free(&text);
    }
}

static void inspect_works_on_refused_models(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("gemma");
    assert_int_equal(tiny_gguf(file, &spec), 0);
    cJSON *json = inspect_json(file);
    const char *why = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "refused"));
    assert_non_null(strstr(why, "\"gemma\""));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(json, "tensors")), 20);
    cJSON_Delete(json);
    struct Str out = {0};
    assert_int_equal(file_write(file, "hello", 5), 0);
    assert_int_equal(model_inspect(file, true, &out), PC_EFORMAT);
    assert_int_equal(model_inspect("/nonexistent", true, &out), PC_EIO);
    str_free(&out);
}

static void inspect_hides_terminal_commands(void **state)
{
    (void)state;
    struct Str k = {0}, text = {0};
    key_text(&k, "evil\33[2J", "\33]0;x\7 \302\233 \177 \377 \"");
    write_with_keys("llama", &k, 1);
    assert_int_equal(model_inspect(file, false, &text), 0);
    for (size_t i = 0; i < text.len; i++)
        assert_true((unsigned char)text.data[i] >= 32 || text.data[i] == '\n');
    assert_null(strstr(text.data, "\302\233"));
    assert_int_equal(utf8_invalid_at(text.data, text.len), text.len);
    str_free(&text);
    cJSON_Delete(inspect_json(file));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inspect_tells_the_facts),
        cmocka_unit_test(inspect_works_on_refused_models),
        cmocka_unit_test(inspect_hides_terminal_commands),
    };
    return cmocka_run_group_tests_name("inspect", tests, make_dir, drop_dir) != 0;
}

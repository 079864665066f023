/* test_config.c - the table of settings: values, words, limits, files, environment, and JSON out. */
#include "config.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct Settings fresh(void)
{
    struct Settings s;
    settings_default(&s);
    return s;
}

static int parse(struct Settings *s, const char *json)
{
    return settings_parse(s, json, strlen(json), "here");
}

static void assert_refused(int status, const char *part)
{
    assert_int_equal(status, PC_ECONFIG);
    if (!strstr(err_text(), part)) fail_msg("\"%s\" is not in: %s", part, err_text());
}

static void test_defaults(void **state)
{
    (void)state;
    struct Settings s = fresh();
    assert_int_equal(s.method, METHOD_PARALLELCOMP);
    assert_int_equal(s.keep, AUTO);
    assert_int_equal(s.kv_cap, AUTO);
    assert_int_equal(s.obs_rows, 8);
    assert_int_equal(s.pool, 7);
    assert_int_equal(s.prefix_copies, 1);
    assert_int_equal(s.n_calib, 0);
    assert_string_equal(s.system, "none");
    assert_string_equal(s.answer_prefix, "");
    assert_int_equal(s.max_tokens, 128);
    assert_true(s.temperature == 0 && s.top_p == 1 && s.seed == 1);
    assert_true(s.memory == AUTO && s.rope_factor == AUTO);
    assert_true(s.group == AUTO && s.neighbours == AUTO && s.sinks == 4);
    assert_int_equal(s.rope_scaling, SCALING_AUTO);
    assert_int_equal(s.precision, PRECISION_AUTO);
    /* Every default of the table is itself a value that its setting accepts. */
    for (int i = 0; i < N_SETTINGS; i++)
        assert_int_equal(settings_set(&s, SETTINGS[i].name, SETTINGS[i].def), PC_OK);
    assert_int_equal(settings_check(&s), PC_OK);
}

static void test_default_file(void **state)
{
    (void)state;
    struct Settings defaults = fresh(), loaded;
    struct Str file = {0}, json = {0}, back = {0};
    memset(&loaded, 0x55, sizeof loaded);
    assert_int_equal(file_read("configs/default.json", &file), PC_OK);
    assert_int_equal(settings_load(&loaded, "configs/default.json"), PC_OK);
    for (int i = 0; i < N_SETTINGS; i++) {
        char key[80];
        snprintf(key, sizeof key, "\"%s\":", SETTINGS[i].name);
        if (!strstr(file.data, key)) fail_msg("configs/default.json lacks %s", key);
    }
    assert_int_equal(settings_json(&defaults, &json), PC_OK);
    assert_int_equal(settings_json(&loaded, &back), PC_OK);
    assert_string_equal(json.data, back.data);
    str_free(&file);
    str_free(&json);
    str_free(&back);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const char json[] =
        "{\"method\":\"truncate\",\"window\":8192,\"chunk\":2048,\"overlap\":64,\"keep\":\"all\","
        "\"kv_cap\":\"off\",\"pool\":1,\"chunk_score\":\"published\",\"calib\":[{\"class\":\"middle\","
        "\"layers\":[3,9],\"lambda\":0.1,\"region\":50,\"rows\":0,\"stage\":2}],\"calib_layers\":32,"
        "\"instruction\":\"\\\"quoted\\\"\\n\\u00e9\",\"temperature\":0.7,\"top_p\":0.95,"
        "\"seed\":\"18446744073709551615\",\"precision\":\"f32\",\"memory\":\"8G\"}";
    struct Settings s = fresh(), again = fresh();
    struct Str a = {0}, b = {0};
    assert_int_equal(parse(&s, json), PC_OK);
    assert_int_equal(s.keep, KEEP_ALL);
    assert_int_equal(s.kv_cap, CAP_OFF);
    assert_int_equal(s.n_calib, 1);
    assert_int_equal(s.calib[0].token_class, CLASS_MIDDLE);
    assert_true(s.calib[0].layer_lo == 3 && s.calib[0].layer_hi == 9 && s.calib[0].lambda == 0.1f);
    assert_true(s.calib[0].region == 50 && s.calib[0].rows == 0 && s.calib[0].stage == 2);
    assert_true(s.seed == UINT64_MAX);
    assert_true(s.memory == (size_t)8 << 30);
    assert_string_equal(s.instruction, "\"quoted\"\n\xc3\xa9");
    assert_int_equal(settings_json(&s, &a), PC_OK);
    assert_non_null(strstr(a.data, "\"temperature\":0.7,"));
    assert_non_null(strstr(a.data, "\"lambda\":0.1,"));
    assert_non_null(strstr(a.data, "\"keep\":\"all\""));
    assert_int_equal(parse(&again, a.data), PC_OK);
    assert_int_equal(settings_json(&again, &b), PC_OK);
    assert_string_equal(a.data, b.data);
    str_free(&a);
    str_free(&b);
}

/* The methods and settings of the baselines, there and back. */
static void test_baselines(void **state)
{
    (void)state;
    struct Settings s = fresh();
    struct Str json = {0};
    for (int i = 0; i < N_SETTINGS; i++) {
        if (SETTINGS[i].type != SET_ENUM) continue;
        for (int w = 0; SETTINGS[i].words[w]; w++) {
            assert_int_equal(settings_set(&s, SETTINGS[i].name, SETTINGS[i].words[w]), PC_OK);
            assert_string_equal(setting_word(SETTINGS[i].name, w), SETTINGS[i].words[w]);
        }
    }
    assert_int_equal(settings_set(&s, "method", "self-extend"), PC_OK);
    assert_int_equal(s.method, METHOD_SELF_EXTEND);
    assert_int_equal(settings_set(&s, "method", "streaming-llm"), PC_OK);
    assert_int_equal(s.method, METHOD_STREAMING);
    assert_int_equal(settings_set(&s, "method", "pyramidkv"), PC_OK);
    assert_int_equal(s.method, METHOD_PYRAMIDKV);
    assert_int_equal(settings_set(&s, "chunk_score", "bm25"), PC_OK);
    assert_int_equal(s.chunk_score, SCORE_BM25);
    assert_int_equal(settings_set(&s, "chunk_score", "fusion"), PC_OK);
    assert_int_equal(s.chunk_score, SCORE_FUSION);
    assert_true(s.chunk_bias == 0);
    assert_refused(settings_set(&s, "chunk_bias", "-1"), "out of range");
    str_clear(&json);
    s = fresh();
    assert_int_equal(settings_set(&s, "rope_factor", "2.5"), PC_OK);
    assert_true(s.rope_factor == 2.5f);
    assert_refused(settings_set(&s, "rope_factor", "0.5"), "out of range");
    assert_refused(settings_set(&s, "rope_factor", "0"), "out of range");
    assert_refused(settings_check(&s), "--rope-scaling ntk or yarn");
    assert_int_equal(settings_set(&s, "rope_scaling", "yarn"), PC_OK);
    assert_int_equal(settings_check(&s), PC_OK);
    assert_int_equal(settings_json(&s, &json), PC_OK);
    assert_non_null(strstr(json.data, "\"rope_scaling\":\"yarn\",\"rope_factor\":2.5,"));
    assert_int_equal(parse(&s, "{\"rope_factor\":\"auto\",\"sinks\":0}"), PC_OK);
    assert_true(s.rope_factor == AUTO && s.sinks == 0);
    str_clear(&json);
    assert_int_equal(settings_json(&s, &json), PC_OK);
    assert_non_null(strstr(json.data, "\"rope_factor\":\"auto\""));
    str_free(&json);
}

static void test_unknown_names(void **state)
{
    (void)state;
    struct Settings s = fresh();
    assert_refused(settings_set(&s, "kepe", "2"), "unknown setting 'kepe': did you mean 'keep'?");
    assert_refused(settings_set(&s, "zzzzzzzz", "2"),
                   "unknown setting 'zzzzzzzz'; `pcomp settings`");
    assert_refused(parse(&s, "{\"kvcap\":1}"), "did you mean 'kv_cap'?");
    assert_refused(parse(&s, "{\"Keep\":1}"), "did you mean 'keep'?");
    assert_refused(settings_set(&s, "", "2"), "unknown setting");
}

static void test_numbers(void **state)
{
    (void)state;
    struct Settings s = fresh();
    assert_refused(settings_set(&s, "keep", "0"),
                   "setting 'keep': '0' is out of range; accepted: 1 to 65536");
    assert_refused(settings_set(&s, "keep", "65537"), "out of range");
    assert_refused(settings_set(&s, "keep", "99999999999999999999"), "out of range");
    assert_refused(settings_set(&s, "keep", "2x"), "not a whole number");
    assert_refused(settings_set(&s, "keep", ""), "not a whole number");
    assert_refused(settings_set(&s, "keep", "off"), "auto, all");
    assert_refused(settings_set(&s, "keep", "-1"), "out of range");
    assert_refused(settings_set(&s, "pool", "4"), "is even");
    assert_refused(settings_set(&s, "temperature", "nan"), "out of range");
    assert_refused(settings_set(&s, "temperature", "warm"), "not a number");
    assert_refused(settings_set(&s, "top_p", "1.01"), "out of range");
    assert_refused(settings_set(&s, "seed", "-1"), "0 or more");
    assert_refused(settings_set(&s, "seed", "18446744073709551616"), "out of range");
    assert_refused(settings_set(&s, "method", "best"), "accepted: parallelcomp, full, truncate");
    assert_refused(settings_set(&s, "chat_template", "jinja"), "llama-3");
    assert_int_equal(settings_set(&s, "keep", "65536"), PC_OK);
    assert_int_equal(s.keep, 65536);
    assert_int_equal(settings_set(&s, "keep", "all"), PC_OK);
    assert_int_equal(s.keep, KEEP_ALL);
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t bytes;
    } good[] = {
        {"auto", 0},
        {"8G", (size_t)8 << 30},
        {"512M", 512u << 20},
        {"512m", 512u << 20},
        {"1048576", 1 << 20},
        {"2GiB", (size_t)2 << 30},
        {"2GB", (size_t)2 << 30},
        {"1.5G", (size_t)3 << 29},
        {"4096K", 4u << 20},
        {"1T", (size_t)1 << 40},
        {"2000000B", 2000000},
    };
    static const char *const bad[] = {"8Q",   "G",   "",    "8GG", "-8G",  "1e9G",
                                      "0x8G", "nan", "inf", "8 G", "100K", "8Gi x"};
    struct Settings s = fresh();
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_int_equal(settings_set(&s, "memory", good[i].text), PC_OK);
        assert_true(s.memory == good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_refused(settings_set(&s, "memory", bad[i]), "setting 'memory'");
}

static void test_texts(void **state)
{
    (void)state;
    struct Settings s = fresh();
    char text[1025];
    memset(text, 'x', 1024);
    text[1024] = '\0';
    assert_refused(settings_set(&s, "instruction", text), "1024 bytes; at most 1023");
    text[1023] = '\0';
    assert_int_equal(settings_set(&s, "instruction", text), PC_OK);
    assert_string_equal(s.instruction, text);
    assert_refused(settings_set(&s, "system", "a\xff"), "byte 1 of the text is not UTF-8");
    assert_int_equal(settings_set(&s, "system", ""), PC_OK);
    assert_string_equal(s.system, "");
}

static void test_json_types(void **state)
{
    (void)state;
    struct Settings s = fresh(), before = s;
    assert_refused(parse(&s, "{\"keep\":3,\"chunk\":\"2048\"}"),
                   "here: setting 'chunk': '2048' is a string");
    assert_memory_equal(&s, &before, sizeof s); /* all or nothing */
    assert_refused(parse(&s, "{\"chunk\":null}"), "must be a number");
    assert_refused(parse(&s, "{\"chunk\":true}"), "must be a number");
    assert_refused(parse(&s, "{\"chunk\":2048.5}"), "not a whole number");
    assert_refused(parse(&s, "{\"chunk\":1e300}"), "setting 'chunk'");
    assert_refused(parse(&s, "{\"method\":1}"), "must be a string");
    assert_refused(parse(&s, "{\"system\":[]}"), "must be a string");
    assert_refused(parse(&s, "{\"calib\":{}}"), "must be a list");
    assert_refused(parse(&s, "{\"seed\":1e17}"), "2^53");
    assert_refused(parse(&s, "{\"keep\":2,\"keep\":3}"), "given twice");
    assert_refused(parse(&s, "[]"), "not a JSON object");
    assert_refused(parse(&s, ""), "not valid JSON");
    assert_refused(parse(&s, "{} x"), "not valid JSON at byte 3");
    assert_refused(parse(&s, "{\n\"keep\":2,\n}"), "line 3");
    assert_int_equal(parse(&s, " {\"keep\":\"auto\",\"memory\":2000000,\"window\":8192} \n"),
                     PC_OK);
    assert_true(s.keep == AUTO && s.memory == 2000000 && s.window == 8192);
}

static void test_cut_json(void **state)
{
    (void)state;
    struct Settings s = fresh();
    struct Str json = {0};
    assert_int_equal(settings_json(&s, &json), PC_OK);
    for (size_t len = 0; len < json.len; len++) {
        char *exact = malloc(len + 1); /* so that a read past the end is seen by the sanitizer */
        memcpy(exact, json.data, len);
        assert_int_equal(settings_parse(&s, exact, len, "cut"), PC_ECONFIG);
        free(exact);
    }
    str_free(&json);
}

static void test_calib(void **state)
{
    (void)state;
    struct Settings s = fresh();
    static const char rule[] = "[{\"class\":\"sink\",\"layers\":[0,3],\"lambda\":0.25}]";
    assert_int_equal(settings_set(&s, "calib", rule), PC_OK);
    assert_int_equal(s.n_calib, 1);
    assert_true(s.calib[0].region == 100 && s.calib[0].rows == 1 && s.calib[0].stage == 1);
    assert_refused(settings_set(&s, "calib", "[{\"class\":\"sink\",\"layers\":[0,3]}]"),
                   "'lambda' is missing");
    assert_int_equal(s.n_calib, 1); /* untouched by a refused list */
    assert_refused(settings_set(&s, "calib", "[{\"klass\":\"sink\"}]"),
                   "unknown key 'klass': did you mean 'class'?");
    assert_refused(settings_set(&s, "calib", "[{\"class\":\"edge\"}]"), "sink, middle or recent");
    assert_refused(settings_set(&s, "calib", "[{\"layers\":[5,3]}]"),
                   "first layer 5 is after last layer 3");
    assert_refused(settings_set(&s, "calib", "[{\"layers\":[0,1.5]}]"), "whole number");
    assert_refused(settings_set(&s, "calib", "[{\"layers\":[0]}]"), "[first, last]");
    assert_refused(settings_set(&s, "calib", "[{\"lambda\":-1}]"), "0 to 1");
    assert_refused(settings_set(&s, "calib", "[{\"stage\":3}]"), "1 to 2");
    assert_refused(settings_set(&s, "calib", "[{\"stage\":1,\"stage\":1}]"), "given twice");
    assert_refused(settings_set(&s, "calib", "[3]"), "rule 1 is not a JSON object");
    assert_refused(settings_set(&s, "calib", "[{]"), "not valid JSON");
    assert_int_equal(settings_set(&s, "calib", "off"), PC_OK);
    assert_int_equal(s.n_calib, 0);

    struct Str many = {0};
    str_appendf(&many, "[");
    for (int i = 0; i <= CALIB_RULES_MAX; i++)
        str_appendf(&many, "%s{\"class\":\"recent\",\"layers\":[1,2],\"lambda\":1}", i ? "," : "");
    str_appendf(&many, "]");
    assert_refused(settings_set(&s, "calib", many.data), "33 rules; at most 32");
    str_free(&many);
}

static void test_calib_file(void **state)
{
    (void)state;
    char path[] = "/tmp/pcomp-calib-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct Settings s = fresh();
    static const char good[] =
        "{\"calib\":[{\"class\":\"sink\",\"layers\":[24,31],\"lambda\":0.1}],"
        "\"calib_layers\":32}";
    assert_int_equal(file_write(path, good, strlen(good)), PC_OK);
    assert_int_equal(settings_set(&s, "calib", path), PC_OK);
    assert_true(s.n_calib == 1 && s.calib_layers == 32 && s.calib[0].layer_hi == 31);
    static const char bad[] = "{\"calib\":[],\"keep\":3}";
    assert_int_equal(file_write(path, bad, strlen(bad)), PC_OK);
    assert_refused(settings_set(&s, "calib", path), "has no place in a calibration file");
    unlink(path);
    assert_int_equal(settings_set(&s, "calib", path), PC_EIO);
}

static void test_environment(void **state)
{
    (void)state;
    struct Settings s = fresh();
    log_set(LOG_ERROR);
    setenv("PCOMP_KV_CAP", "77", 1);
    setenv("PCOMP_MODEL", "/nowhere", 1);
    setenv("PCOMP_NOT_A_SETTING", "1", 1);
    assert_int_equal(settings_env(&s), PC_OK);
    assert_int_equal(s.kv_cap, 77);
    setenv("PCOMP_KEEP", "many", 1);
    assert_refused(settings_env(&s), "environment variable PCOMP_KEEP: setting 'keep'");
    unsetenv("PCOMP_KEEP");
    unsetenv("PCOMP_KV_CAP");
    unsetenv("PCOMP_MODEL");
    unsetenv("PCOMP_NOT_A_SETTING");
    log_set(LOG_INFO);
}

static void test_check(void **state)
{
    (void)state;
    struct Settings s = fresh();
    s.chunk = 100;
    s.overlap = 100;
    assert_refused(settings_check(&s), "setting 'overlap'");
    s.overlap = 0;
    s.window = 100;
    assert_refused(settings_check(&s), "setting 'chunk'");
    s.window = 200;
    assert_int_equal(settings_check(&s), PC_OK);
}

static void test_help(void **state)
{
    (void)state;
    struct Str text = {0}, markdown = {0};
    assert_int_equal(settings_help(false, &text), PC_OK);
    assert_int_equal(settings_help(true, &markdown), PC_OK);
    for (int i = 0; i < N_SETTINGS; i++) {
        char cell[80], flag[80];
        snprintf(cell, sizeof cell, "| `%s` |", SETTINGS[i].name);
        snprintf(flag, sizeof flag, "--%s", SETTINGS[i].name);
        for (char *c = flag; *c; c++)
            if (*c == '_') *c = '-';
        assert_non_null(strstr(markdown.data, cell));
        assert_non_null(strstr(text.data, flag));
        assert_non_null(strstr(text.data, SETTINGS[i].help));
        assert_null(strchr(SETTINGS[i].help, '|')); /* it would break the table */
    }
    str_free(&text);
    str_free(&markdown);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),   cmocka_unit_test(test_default_file),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_unknown_names),
        cmocka_unit_test(test_numbers),    cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_texts),      cmocka_unit_test(test_json_types),
        cmocka_unit_test(test_cut_json),   cmocka_unit_test(test_calib),
        cmocka_unit_test(test_calib_file), cmocka_unit_test(test_environment),
        cmocka_unit_test(test_check),      cmocka_unit_test(test_help),
        cmocka_unit_test(test_baselines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

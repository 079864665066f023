/* test_tasks.c - prompts equal to the official templates byte for byte; profiles; faults of task files. */
#include "eval/tasks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char CONTEXT[] =
    "First line of the context.\nSecond line: {braces} and ünïcode 文章。\n";
static const char INPUT[] =
    "What is asked? The second smallest number of the list below is: func_12(-3)";

static struct Sample make_sample(void)
{
    static const char *const options[] = {"alpha", "beta", "gamma", "delta"};
    struct Sample s = {.depth = -1};
    assert_int_equal(str_append(&s.context, CONTEXT, strlen(CONTEXT)), PC_OK);
    assert_int_equal(str_append(&s.input, INPUT, strlen(INPUT)), PC_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(texts_push(&s.options, &s.n_options, options[i], strlen(options[i])),
                         PC_OK);
    return s;
}

static uint64_t fnv1a(const struct Str *s, uint64_t h)
{
    for (size_t i = 0; i < s->len; i++)
        h = (h ^ (unsigned char)s->data[i]) * UINT64_C(0x100000001b3);
    return h;
}

/* Golden: tests/golden/prompts.txt, made by Python's str.format from the published templates. */
static void test_official_prompts(void **state)
{
    (void)state;
    struct TaskSet sets[2];
    struct Sample s = make_sample();
    char line[256], benchmark[32], name[48];
    unsigned long long hash;
    size_t bytes;
    int n = 0, moved;
    FILE *golden = fopen("tests/golden/prompts.txt", "r");
    assert_non_null(golden);
    assert_int_equal(task_set_open("longbench", "official", &sets[0]), PC_OK);
    assert_int_equal(task_set_open("infinitebench", "official", &sets[1]), PC_OK);
    while (fgets(line, sizeof line, golden)) {
        if (*line == '#') continue;
        assert_int_equal(sscanf(line, "%31s %47s %zu %llx", benchmark, name, &bytes, &hash), 4);
        const struct TaskSet *set = &sets[strcmp(benchmark, "longbench") != 0];
        const struct Task *task = task_find(set, name);
        assert_non_null(task);
        struct TaskPrompt p;
        assert_int_equal(task_prompt(task, &s, &p, &moved), PC_OK);
        assert_int_equal(p.before.len + p.context.len + p.after.len, bytes);
        uint64_t h = fnv1a(&p.before, UINT64_C(0xcbf29ce484222325));
        h = fnv1a(&p.after, fnv1a(&p.context, h));
        if (h != hash) print_error("%s %s differs\n", benchmark, name);
        assert_true(h == hash);
        if (strstr(task->after, "{input}")) {
            assert_int_equal(p.question_len, strlen(INPUT));
            assert_memory_equal(p.after.data + p.question_at, INPUT, strlen(INPUT));
        } else {
            assert_int_equal(p.question_len, 0);
        }
        task_prompt_free(&p);
        n++;
    }
    fclose(golden);
    assert_int_equal(n, sets[0].n + sets[1].n);
    assert_int_equal(n, 33);
    task_set_close(&sets[0]);
    task_set_close(&sets[1]);
    sample_free(&s);
}

/* Answer lengths, chat and stop rules as conventions state them. */
static void test_rules(void **state)
{
    (void)state;
    struct TaskSet set;
    int rows = 0, raw = 0;
    assert_int_equal(task_set_open("longbench", "official", &set), PC_OK);
    for (int i = 0; i < set.n; i++) {
        rows += set.tasks[i].official_rows;
        raw += !set.tasks[i].chat;
        assert_true((*set.tasks[i].stop_text != 0) == (strcmp(set.tasks[i].name, "samsum") == 0));
    }
    assert_int_equal(rows, 4750);
    assert_int_equal(raw, 6);
    assert_int_equal(task_find(&set, "gov_report")->max_tokens, 512);
    assert_int_equal(task_find(&set, "trec")->max_tokens, 64);
    assert_int_equal(task_find(&set, "musique")->max_tokens, 32);
    task_set_close(&set);
    assert_int_equal(task_set_open("longbench", "parallelcomp", &set), PC_OK);
    for (int i = 0; i < set.n; i++) {
        assert_false(set.tasks[i].chat);
        assert_string_equal(set.tasks[i].stop_text, "");
    }
    task_set_close(&set);
    assert_int_equal(task_set_open("infinitebench", "parallelcomp", &set), PC_OK);
    assert_int_equal(task_find(&set, "longbook_sum_eng")->max_tokens, 1536);
    assert_int_equal(task_find(&set, "kv_retrieval")->max_tokens, 100);
    assert_null(task_find(&set, "kv_retrival"));
    assert_non_null(strstr(err_text(), "did you mean 'kv_retrieval'?"));
    task_set_close(&set);
    assert_int_equal(task_set_open("longbench", "mine", &set), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "official, parallelcomp"));
    task_set_close(&set);
}

static void parse(const char *json, int status, const char *part)
{
    struct TaskSet set;
    int got = task_set_parse(json, strlen(json), "x.json", "official", &set);
    assert_int_equal(got, status);
    if (part) assert_non_null(strstr(err_text(), part));
    task_set_close(&set);
}

static void test_bad_files(void **state)
{
    (void)state;
    parse("{", PC_EFORMAT, "x.json: is not JSON");
    parse("{}", PC_EFORMAT, "tasks");
    parse("{\"tasks\":[]}", PC_EFORMAT, "tasks");
    parse("{\"tasks\":{\"a\":3}}", PC_EFORMAT, "object");
    parse("{\"tasks\":{\"a\":{\"before\":\"b\"}}}", PC_EFORMAT, "max_tokens");
    parse("{\"tasks\":{\"a\":{\"before\":\"b\",\"max_tokens\":1e300}}}", PC_EFORMAT, "max_tokens");
    parse("{\"tasks\":{\"a\":{\"max_tokens\":3}}}", PC_OK, NULL);
}

/* A field that the row has not is an error; other braces are text. */
static void test_fields(void **state)
{
    (void)state;
    static const char json[] =
        "{\"tasks\":{\"o\":{\"after\":\"{option_a} {other} {\",\"max_tokens\":1},"
        "\"f\":{\"after\":\"{func}|{func_call}\",\"max_tokens\":1},"
        "\"m\":{\"before\":\"{find_prefix}\",\"max_tokens\":1}}}";
    struct TaskSet set;
    struct Sample s = make_sample(), empty = {0};
    struct TaskPrompt p;
    int moved;
    assert_int_equal(task_set_parse(json, strlen(json), "x", "official", &set), PC_OK);
    assert_int_equal(task_prompt(&set.tasks[0], &s, &p, &moved), PC_OK);
    assert_string_equal(p.after.data, "alpha {other} {");
    task_prompt_free(&p);
    assert_int_equal(task_prompt(&set.tasks[1], &s, &p, &moved), PC_OK);
    assert_string_equal(p.after.data, "func_12|func_12(-3)");
    task_prompt_free(&p);
    assert_int_equal(task_prompt(&set.tasks[2], &s, &p, &moved), PC_OK);
    assert_string_equal(p.before.data, "What is the second smallest number in the following list?");
    task_prompt_free(&p);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(task_prompt(&set.tasks[i], &empty, &p, &moved), PC_EFORMAT);
        task_prompt_free(&p);
    }
    task_set_close(&set);
    sample_free(&s);
}

/* The space before the context goes with the context's first word. */
static void test_space_moves(void **state)
{
    (void)state;
    struct TaskSet set;
    struct Sample s = make_sample();
    struct TaskPrompt p;
    int moved;
    assert_int_equal(task_set_open("longbench", "official", &set), PC_OK);
    assert_int_equal(task_prompt(task_find(&set, "narrativeqa"), &s, &p, &moved), PC_OK);
    assert_int_equal(moved, 1);
    assert_int_equal(p.context.data[0], ' ');
    assert_memory_equal(p.context.data + 1, CONTEXT, strlen(CONTEXT));
    assert_int_equal(p.before.data[p.before.len - 1], ':');
    task_prompt_free(&p);
    assert_int_equal(task_prompt(task_find(&set, "hotpotqa"), &s, &p, &moved), PC_OK);
    assert_int_equal(moved, 0);
    task_prompt_free(&p);
    task_set_close(&set);
    sample_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_official_prompts), cmocka_unit_test(test_rules),
        cmocka_unit_test(test_bad_files),        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_space_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

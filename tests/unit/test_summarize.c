/* test_summarize.c - the batch command in this process, on a tiny model: resume, refusal, errors, plan. */
#include "cli.h"
#include "jsonl.h"
#include "tests/tiny.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const DEFAULTS[] = {"keep", "all", "max_tokens", "3", NULL};
static struct Command sum_command; /* pcomp's own, with short answers */

static void find_command(void)
{
    for (int i = 0; i < PCOMP.n_commands; i++)
        if (PCOMP.commands[i].run == cmd_summarize) sum_command = PCOMP.commands[i];
    sum_command.defaults = DEFAULTS;
}

static char folder[64], model[96], out[96], texts[96], list[96];

/* Runs `pcomp summarize -m MODEL -o OUT --quiet ARGS…` and gives its status. */
static int summarize(const char *a, const char *b, const char *c, const char *d)
{
    const char *const args[] = {"-m", model, "-o", out, "--quiet", "--threads", "1", a, b, c, d};
    char *argv[12];
    int argc = 0;
    for (size_t i = 0; i < sizeof args / sizeof args[0]; i++)
        if (args[i]) argv[argc++] = (char *)(uintptr_t)args[i];
    struct Cli cli = {.program = &PCOMP, .command = &sum_command, .depth = -1};
    log_set(LOG_ERROR);
    int status = cli_parse(&cli, argc, argv);
    if (status == PC_OK) status = cmd_summarize(&cli);
    cli_free(&cli);
    return status;
}

static void put(const char *name, const char *text)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", texts, name);
    assert_int_equal(file_write(path, text, strlen(text)), PC_OK);
}

static int set_up(void **state)
{
    (void)state;
    find_command();
    snprintf(folder, sizeof folder, "/tmp/pcomp-sum-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(model, sizeof model, "%s/tiny.gguf", folder);
    snprintf(out, sizeof out, "%s/out.jsonl", folder);
    snprintf(texts, sizeof texts, "%s/texts", folder);
    snprintf(list, sizeof list, "%s/list.jsonl", folder);
    struct TinySpec spec = tiny_spec("llama");
    if (tiny_gguf(model, &spec) < 0 || mkdir(texts, 0777) != 0) return -1;
    put("a.txt", "The first text tells of a mill by the river.\n");
    put("b.md", "The second text tells of a ship in the harbour.\n");
    put("c.txt", "The third text tells of a lamp in the window.\n");
    put("no.log", "not taken");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* Lines of the result file, and how many of them tell of an error; all must be JSON with a key. */
static int lines(int *errors)
{
    struct Str text = {0};
    int n = 0;
    size_t at = 0, len;
    const char *line;
    assert_int_equal(file_read(out, &text), PC_OK);
    assert_true(text.len == 0 || text.data[text.len - 1] == '\n');
    *errors = 0;
    for (; line_next(text.data, text.len, &at, &line, &len); n++) {
        cJSON *root = cJSON_ParseWithLength(line, len);
        assert_non_null(root);
        assert_true(cJSON_IsString(cJSON_GetObjectItem(root, "key")));
        *errors += cJSON_HasObjectItem(root, "error");
        cJSON_Delete(root);
    }
    str_free(&text);
    return n;
}

static void test_resume(void **state)
{
    (void)state;
    int errors;
    assert_int_equal(summarize(texts, NULL, NULL, NULL), PC_OK);
    assert_int_equal(lines(&errors), 3);
    assert_int_equal(errors, 0);
    assert_int_equal(summarize(texts, NULL, NULL, NULL), PC_OK);
    assert_int_equal(lines(&errors), 3); /* nothing twice */
    put("d.txt", "A new text.");
    put("a.txt", "A changed text.");
    assert_int_equal(summarize(texts, NULL, NULL, NULL), PC_OK);
    assert_int_equal(lines(&errors), 5);
}

/* The same file again after its end was lost gives the same bytes as one run in one go. */
static void test_torn(void **state)
{
    (void)state;
    struct Str whole = {0}, again = {0};
    int errors;
    assert_int_equal(summarize(texts, NULL, NULL, NULL), PC_OK);
    assert_int_equal(file_read(out, &whole), PC_OK);
    for (size_t cut = 1; cut < whole.len; cut += whole.len / 5) {
        str_clear(&again);
        assert_int_equal(file_write(out, whole.data, whole.len - cut), PC_OK);
        assert_int_equal(summarize(texts, NULL, NULL, NULL), PC_OK);
        assert_int_equal(lines(&errors), 3);
    }
    str_free(&whole);
    str_free(&again);
}

static void test_changed_settings(void **state)
{
    (void)state;
    int errors;
    assert_int_equal(summarize(texts, NULL, NULL, NULL), PC_OK);
    assert_int_equal(summarize(texts, "--max-tokens", "2", NULL), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "--fresh"));
    assert_int_equal(lines(&errors), 3);
    assert_int_equal(summarize(texts, "-q", "What is it about?", NULL), PC_ECONFIG);
    assert_int_equal(summarize(texts, "--wave", "1", NULL), PC_OK); /* speed only */
    assert_int_equal(lines(&errors), 3);
    assert_int_equal(summarize(texts, "--max-tokens", "2", "--fresh"), PC_OK);
    assert_int_equal(lines(&errors), 6);
    assert_int_equal(summarize(texts, "--max-tokens", "2", "--fresh"), PC_OK);
    assert_int_equal(lines(&errors), 6);
}

static void test_foreign_file(void **state)
{
    (void)state;
    static const char other[] = "{\"pred\":\"x\"}\n";
    assert_int_equal(file_write(out, other, strlen(other)), PC_OK);
    assert_int_equal(summarize(texts, NULL, NULL, NULL), PC_EFORMAT);
    struct Str text = {0};
    assert_int_equal(file_read(out, &text), PC_OK);
    assert_string_equal(text.data, other);
    str_free(&text);
}

static void test_errors_are_lines(void **state)
{
    (void)state;
    int errors;
    static const char items[] =
        "{\"id\":\"good\",\"text\":\"hello there\"}\n"
        "\n{broken\n"
        "{\"id\":\"gone\",\"file\":\"texts/gone.txt\"}\n"
        "{\"id\":\"file\",\"file\":\"texts/a.txt\",\"question\":\"Why?\"}\n"
        "{\"id\":\"nul\",\"text\":\"\"}\n"
        "{\"custom_id\":\"api\",\"body\":{\"max_tokens\":0,\"messages\":[{\"role\":\"user\","
        "\"content\":\"hi\"}]}}\n";
    assert_int_equal(file_write(list, items, strlen(items)), PC_OK);
    assert_int_equal(summarize(list, NULL, NULL, NULL), CLI_EPARTIAL);
    assert_int_equal(lines(&errors), 6);
    assert_int_equal(errors, 4);
    put("gone.txt", "here it is");
    assert_int_equal(summarize(list, NULL, NULL, NULL), CLI_EPARTIAL);
    assert_int_equal(lines(&errors),
                     6 + 4); /* errors are tried again; one of them is a result now */
    assert_int_equal(errors, 4 + 3);
}

static void test_inputs(void **state)
{
    (void)state;
    int errors;
    char path[160];
    snprintf(path, sizeof path, "%s/gone.txt", texts);
    assert_int_equal(summarize(texts, "--glob", "*.log", NULL), PC_OK);
    assert_int_equal(lines(&errors), 1);
    assert_int_equal(summarize(texts, "--glob", "*.none", NULL), PC_EIO);
    assert_int_equal(summarize(path, NULL, NULL, NULL), CLI_EPARTIAL);
    assert_int_equal(summarize(NULL, NULL, NULL, NULL), PC_ECONFIG);
    snprintf(path, sizeof path, "%s/no-such-list.jsonl", folder);
    assert_int_equal(summarize(path, NULL, NULL, NULL), PC_EIO);
}

static void test_text_files(void **state)
{
    (void)state;
    char target[96], path[160];
    struct Str text = {0};
    snprintf(target, sizeof target, "%s/summaries", folder);
    static const char items[] = "{\"id\":\"../up/x.txt\",\"text\":\"hello there\"}\n";
    assert_int_equal(file_write(list, items, strlen(items)), PC_OK);
    assert_int_equal(summarize(list, "--text-dir", target, NULL), PC_OK);
    snprintf(path, sizeof path, "%s/_._up_x.txt", target); /* an id cannot leave the folder */
    assert_int_equal(file_read(path, &text), PC_OK);
    assert_true(text.len > 0);
    str_free(&text);
}

static void test_lock(void **state)
{
    (void)state;
    struct Appender other;
    struct Str old = {0};
    assert_int_equal(appender_open(out, &other, &old), PC_OK);
    assert_int_equal(summarize(texts, NULL, NULL, NULL), CLI_EOUTPUT);
    assert_non_null(strstr(err_text(), "another pcomp"));
    appender_close(&other);
    str_free(&old);
}

static void test_nothing_leaks(void **state)
{
    (void)state;
    assert_int_equal(summarize(texts, NULL, NULL, NULL),
                     PC_OK); /* one-time allocations of the engine */
    size_t before = mem_in_use();
    assert_int_equal(summarize(texts, "--max-tokens", "2", "--fresh"), PC_OK);
    assert_int_equal(mem_in_use(), before);
    assert_int_equal(summarize("/nowhere/x", "--max-tokens", "2", "--fresh"), CLI_EPARTIAL);
    assert_int_equal(mem_in_use(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_resume, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_torn, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_changed_settings, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_foreign_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_errors_are_lines, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_inputs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_text_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lock, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_nothing_leaks, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

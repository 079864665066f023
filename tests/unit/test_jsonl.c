/* test_jsonl.c - work items from JSON lines, and the result file: locks, torn lines, full disks. */
#include "jsonl.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static int parse(const char *line, struct Item *item)
{
    return item_parse(line, strlen(line), 7, item);
}

static void assert_bad(const char *line, const char *part)
{
    struct Item item;
    assert_int_equal(parse(line, &item), PC_EFORMAT);
    if (!strstr(err_text(), part)) fail_msg("\"%s\" is not in: %s", part, err_text());
    assert_true(item.id.len > 0);
    item_free(&item);
}

static void test_simple_items(void **state)
{
    (void)state;
    struct Item item;
    assert_int_equal(parse("{\"id\":\"a\",\"text\":\"T\",\"question\":\"Q\"}", &item), PC_OK);
    assert_string_equal(item.id.data, "a");
    assert_string_equal(item.text.data, "T");
    assert_string_equal(item.question.data, "Q");
    assert_true(item.file.len == 0);
    item_free(&item);
    assert_int_equal(parse("{\"file\":\"x.txt\",\"other\":[1,{}]}  ", &item), PC_OK);
    assert_string_equal(item.id.data, "line 7");
    assert_string_equal(item.file.data, "x.txt");
    item_free(&item);
    assert_int_equal(parse("{\"id\":42,\"text\":\"T\"}", &item), PC_OK);
    assert_string_equal(item.id.data, "42");
    item_free(&item);
}

static void test_bad_items(void **state)
{
    (void)state;
    assert_bad("", "not valid JSON");
    assert_bad("{", "not valid JSON");
    assert_bad("[]", "not a JSON object");
    assert_bad("{\"text\":\"a\"} {}", "not valid JSON at byte 13");
    assert_bad("{\"id\":\"a\"}", "one of 'file' and 'text'");
    assert_bad("{\"text\":\"a\",\"file\":\"b\"}", "one of 'file' and 'text'");
    assert_bad("{\"text\":3}", "'text' is not a string");
    assert_bad("{\"id\":[],\"text\":\"a\"}", "'id' is not a string");
    assert_bad("{\"TEXT\":\"a\"}", "one of 'file' and 'text'");
    assert_bad("{\"text\":\"\xff\"}", "byte 9 is not UTF-8");
    char deep[6002];
    memset(deep, '[', 3000);
    memset(deep + 3000, ']', 3000);
    deep[6000] = '\0';
    assert_bad(deep, "not valid JSON");
}

static void test_openai_items(void **state)
{
    (void)state;
    struct Item item;
    assert_int_equal(
        parse(
            "{\"custom_id\":\"r1\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{"
            "\"max_tokens\":30,\"temperature\":0.5,\"seed\":9,\"messages\":["
            "{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"T\"}]}}",
            &item),
        PC_OK);
    assert_string_equal(item.id.data, "r1");
    assert_string_equal(item.text.data, "T");
    assert_string_equal(item.instruction.data, "S");
    assert_true(item.question.len == 0);
    assert_string_equal(item.max_tokens.data, "30");
    assert_string_equal(item.temperature.data, "0.5");
    assert_string_equal(item.seed.data, "9");
    item_free(&item);
    assert_int_equal(
        parse(
            "{\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"A\"},{\"role\":\"user\","
            "\"content\":[{\"type\":\"text\",\"text\":\"B\"}]},{\"role\":\"user\",\"content\":\"Q\"}]}}",
            &item),
        PC_OK);
    assert_string_equal(item.text.data, "A\n\nB");
    assert_string_equal(item.question.data, "Q");
    item_free(&item);
    assert_bad("{\"body\":{}}", "no list 'messages'");
    assert_bad("{\"body\":{\"messages\":[]}}", "no message of role 'user'");
    assert_bad("{\"body\":{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}}", "role 'tool'");
    assert_bad("{\"body\":{\"messages\":[{\"role\":\"user\"}]}}", "no 'content'");
    assert_bad(
        "{\"body\":{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}}",
        "not text");
    assert_bad(
        "{\"body\":{\"max_tokens\":\"9\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}}",
        "'max_tokens' is not a number");
}

static void test_lines(void **state)
{
    (void)state;
    static const char text[] = "a\r\n\nbc\nd";
    static const char *const want[] = {"a", "", "bc", "d"};
    size_t at = 0, len;
    const char *line;
    for (int i = 0; i < 4; i++) {
        assert_true(line_next(text, strlen(text), &at, &line, &len));
        assert_int_equal(len, strlen(want[i]));
        assert_memory_equal(line, want[i], len);
    }
    assert_false(line_next(text, strlen(text), &at, &line, &len));
    at = 0;
    assert_false(line_next("", 0, &at, &line, &len));
}

static void read_whole(const char *path, struct Str *out)
{
    str_clear(out);
    assert_int_equal(file_read(path, out), PC_OK);
}

static char folder[64], path[96];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/pcomp-jsonl-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/out.jsonl", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void test_append(void **state)
{
    (void)state;
    struct Appender a;
    struct Str old = {0}, now = {0};
    assert_int_equal(appender_open(path, &a, &old), PC_OK);
    assert_true(old.len == 0 && a.torn == 0);
    assert_int_equal(appender_line(&a, "{\"n\":1}", 7), PC_OK);
    assert_int_equal(appender_line(&a, "{\"n\":2}", 7), PC_OK);
    read_whole(path, &now); /* before it is closed: each line is out at once */
    assert_string_equal(now.data, "{\"n\":1}\n{\"n\":2}\n");
    appender_close(&a);
    assert_int_equal(appender_open(path, &a, &old), PC_OK);
    assert_string_equal(old.data, now.data);
    appender_close(&a);
    str_free(&old);
    str_free(&now);
}

/* A crash can cut the file at any byte: what is left is whole lines, and new ones follow. */
static void test_torn_anywhere(void **state)
{
    (void)state;
    static const char whole[] = "{\"n\":1}\n{\"n\":22}\n";
    for (size_t len = 0; len <= strlen(whole); len++) {
        struct Appender a;
        struct Str old = {0}, now = {0};
        assert_int_equal(file_write(path, whole, len), PC_OK);
        assert_int_equal(appender_open(path, &a, &old), PC_OK);
        size_t lines = len >= 17 ? 17 : len >= 8 ? 8 : 0;
        assert_int_equal(old.len, lines);
        assert_int_equal(a.torn, len - lines);
        assert_int_equal(appender_line(&a, "{}", 2), PC_OK);
        appender_close(&a);
        read_whole(path, &now);
        assert_int_equal(now.len, lines + 3);
        assert_memory_equal(now.data, whole, lines);
        assert_string_equal(now.data + lines, "{}\n");
        str_free(&old);
        str_free(&now);
    }
}

static void test_lock(void **state)
{
    (void)state;
    struct Appender first, second;
    struct Str old = {0};
    assert_int_equal(appender_open(path, &first, &old), PC_OK);
    assert_int_equal(appender_open(path, &second, &old), PC_EIO);
    assert_non_null(strstr(err_text(), "another pcomp is writing"));
    appender_close(&second);
    appender_close(&first);
    assert_int_equal(appender_open(path, &second, &old), PC_OK);
    appender_close(&second);
    str_free(&old);
}

static void test_full_device(void **state)
{
    (void)state;
    struct Appender a;
    struct Str old = {0};
    assert_int_equal(appender_open("/dev/full", &a, &old), PC_OK);
    assert_int_equal(appender_line(&a, "{}", 2), PC_EIO);
    assert_non_null(strstr(err_text(), "No space left"));
    appender_close(&a);
    assert_int_equal(appender_open("/nowhere/x", &a, &old), PC_EIO);
    appender_close(&a);
    str_free(&old);
}

/* A disk that fills up in the middle of a line: the part that fitted is taken out again. */
static void test_full_disk(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct Appender a;
        struct Str old = {0};
        struct rlimit limit = {.rlim_cur = 20, .rlim_max = 20};
        signal(SIGXFSZ, SIG_IGN);
        int bad = appender_open(path, &a, &old) != PC_OK;
        bad |= appender_line(&a, "{\"n\":1}", 7) != PC_OK;
        bad |= setrlimit(RLIMIT_FSIZE, &limit) != 0;
        bad |= appender_line(&a, "{\"n\":\"0123456789abcdef\"}", 24) != PC_EIO;
        appender_close(&a);
        _exit(bad);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    struct Str now = {0};
    read_whole(path, &now);
    assert_string_equal(now.data, "{\"n\":1}\n");
    str_free(&now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simple_items),
        cmocka_unit_test(test_bad_items),
        cmocka_unit_test(test_openai_items),
        cmocka_unit_test(test_lines),
        cmocka_unit_test_setup_teardown(test_append, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_torn_anywhere, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lock, set_up, tear_down),
        cmocka_unit_test(test_full_device),
        cmocka_unit_test_setup_teardown(test_full_disk, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

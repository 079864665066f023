/* test_dataset.c - rows from plain, gzip and zstd files and folders; hostile lines; what a row may hold. */
#include "eval/dataset.h"
#include "eval/row_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cmocka.h>

static char folder[64];

static const char ROWS[] =
    "{\"_id\":\"a\",\"context\":\"One.\",\"input\":\"Who?\",\"answers\":[\"x\",\"y\"],\"length\":7,"
    "\"all_classes\":\"['Human', \\\"it's\\\", 'caf\\\\xe9']\"}\r\n"
    "\n"
    "{\"id\":3,\"context\":\"Two.\",\"answer\":\"z\",\"depth\":0.5,\"answer_at\":[1,2]}\n"
    "not json\n"
    "{\"content\":\"Three.\",\"answers\":[1,[2.5]]}"; /* no line feed at the end */

static void path_of(const char *name, char path[160])
{
    snprintf(path, 160, "%s/%s", folder, name);
}

static void put(const char *name, const void *data, size_t len)
{
    char path[160];
    path_of(name, path);
    assert_int_equal(file_write(path, data, len), PC_OK);
}

/* What a walk saw. */
struct Seen {
    int n, bad;
    struct Str ids, answers, classes, error;
};

static int see(void *user, struct DataRow *row)
{
    struct Seen *s = user;
    s->n++;
    if (row->status < 0) {
        s->bad++;
        return str_appendf(&s->error, "%s;", err_text());
    }
    assert_int_equal(str_appendf(&s->ids, "%s;", row->sample.id.data), PC_OK);
    for (int i = 0; i < row->sample.n_answers; i++)
        assert_int_equal(str_appendf(&s->answers, "%s;", row->sample.answers[i].data), PC_OK);
    for (int i = 0; i < row->sample.n_classes; i++)
        assert_int_equal(str_appendf(&s->classes, "%s;", row->sample.all_classes[i].data), PC_OK);
    return PC_OK;
}

static void seen_free(struct Seen *s)
{
    str_free(&s->ids);
    str_free(&s->answers);
    str_free(&s->classes);
    str_free(&s->error);
}

static void check_rows(const char *name, const char *task)
{
    char path[160];
    struct Seen s = {0};
    uint64_t hash = 1;
    path_of(name, path);
    assert_int_equal(dataset_each(path, task, see, &s), PC_OK);
    long rows;
    assert_int_equal(dataset_count(path, task, &rows, &hash), PC_OK);
    assert_int_equal(rows, s.n);
    assert_true(hash != 1);
    assert_int_equal(s.n, 4);
    assert_int_equal(s.bad, 1);
    assert_string_equal(s.ids.data, "a;3;t-5;");
    assert_string_equal(s.answers.data, "x;y;z;1;2.5;");
    assert_string_equal(s.classes.data, "Human;it's;café;");
    assert_non_null(strstr(s.error.data, "line 4: is not JSON"));
    seen_free(&s);
}

static size_t pack_zstd(char *out, size_t room)
{
    size_t n = ZSTD_compress(out, room, ROWS, strlen(ROWS), 3);
    assert_false(ZSTD_isError(n));
    return n;
}

static void test_forms(void **state)
{
    (void)state;
    char packed[4096], path[160];
    put("t.jsonl", ROWS, strlen(ROWS));
    check_rows("t.jsonl", "t");
    check_rows("", "t"); /* the folder */
    path_of("t.jsonl", path);
    unlink(path);
    put("t.jsonl.zst", packed, pack_zstd(packed, sizeof packed));
    check_rows("", "t");
    path_of("t.jsonl.zst", path);
    unlink(path);
    path_of("t.jsonl.gz", path);
    gzFile gz = gzopen(path, "wb");
    assert_int_equal(gzwrite(gz, ROWS, (unsigned)strlen(ROWS)), (int)strlen(ROWS));
    gzclose(gz);
    check_rows("", "t");
    check_rows("t.jsonl.gz", "t");
    unlink(path);
    struct Seen s = {0};
    assert_int_equal(dataset_each(folder, "t", see, &s), PC_EIO);
    assert_non_null(strstr(err_text(), "holds no t.jsonl"));
}

static void test_damaged_packing(void **state)
{
    (void)state;
    char packed[4096], path[160];
    struct Seen s = {0};
    size_t n = pack_zstd(packed, sizeof packed);
    put("cut.zst", packed, n - 6);
    path_of("cut.zst", path);
    assert_int_equal(dataset_each(path, "t", see, &s), PC_EFORMAT);
    packed[n / 2] ^= 0x55;
    put("bad.zst", packed, n);
    path_of("bad.zst", path);
    assert_true(dataset_each(path, "t", see, &s) < 0 || s.bad > 0);
    seen_free(&s);
}

/* One file for several tasks: the rows say whose they are. */
static void test_mixed_file(void **state)
{
    (void)state;
    static const char rows[] = "{\"dataset\":\"a\",\"context\":\"1\",\"answers\":[\"p\"]}\n"
                               "{\"dataset\":\"b\",\"context\":\"2\",\"answers\":[\"q\"]}\n";
    char path[160];
    struct Seen s = {0};
    put("mixed.jsonl", rows, strlen(rows));
    path_of("mixed.jsonl", path);
    assert_int_equal(dataset_each(path, "b", see, &s), PC_OK);
    assert_int_equal(s.n, 1);
    assert_string_equal(s.answers.data, "q;");
    seen_free(&s);
}

static void row_fails(const char *line, size_t len, const char *part)
{
    struct Sample s;
    assert_int_equal(row_parse(line, len, "t", &s), PC_EFORMAT);
    assert_non_null(strstr(err_text(), part));
    sample_free(&s);
}

static void test_hostile_rows(void **state)
{
    (void)state;
    static const char nul[] = "{\"context\":\"a\0b\",\"answers\":[\"x\"]}";
    row_fails("", 0, "JSON");
    row_fails("[]", 2, "object");
    row_fails("{\"context\":\"\xff\",\"answers\":[]}", 26, "not UTF-8");
    row_fails(nul, sizeof nul - 1, "NUL");
    row_fails("{\"context\":\"a\\u0000b\",\"answers\":[\"x\"]}", 38, "NUL");
    row_fails("{\"context\":\"a\"}", 15, "no answers");
    row_fails("{\"context\":7,\"answers\":[\"x\"]}", 29, "not a string");
    row_fails("{\"answers\":[\"x\"]}", 17, "no context");
    row_fails("{\"context\":\"a\",\"answers\":[{}]}", 30, "answers");
    char *deep = malloc(400000);
    memset(deep, '[', 400000);
    row_fails(deep, 400000, "JSON");
    free(deep);
}

/* A 10 MB line is a row like another. */
static void test_long_line(void **state)
{
    (void)state;
    size_t n = 10 << 20;
    struct Str line = {0};
    struct Seen s = {0};
    char path[160];
    assert_int_equal(str_appendf(&line, "{\"context\":\""), PC_OK);
    assert_int_equal(str_reserve(&line, n), PC_OK);
    memset(line.data + line.len, 'x', n);
    line.len += n;
    assert_int_equal(str_appendf(&line, "\",\"answers\":[\"x\"]}\n"), PC_OK);
    put("long.jsonl", line.data, line.len);
    path_of("long.jsonl", path);
    assert_int_equal(dataset_each(path, "t", see, &s), PC_OK);
    assert_int_equal(s.n - s.bad, 1);
    seen_free(&s);
    str_free(&line);
}

static void clean_is(const char *in, const char *want)
{
    struct Str out = {0};
    assert_int_equal(json_clean(in, strlen(in), &out), PC_OK);
    assert_string_equal(out.data, want);
    str_free(&out);
}

static void test_surrogates(void **state)
{
    (void)state;
    clean_is("\"\\ud83d\\ude00\"", "\"\\ud83d\\ude00\"");
    clean_is("\"\\ud83d\"", "\"\\ufffd\"");
    clean_is("\"\\ude00x\"", "\"\\ufffdx\"");
    clean_is("\"\\ud83d\\ud83d\\ude00\"", "\"\\ufffd\\ud83d\\ude00\"");
    clean_is("\"\\\\ud83d\"", "\"\\\\ud83d\"");
    clean_is("\"\\u00e9\\n\"", "\"\\u00e9\\n\"");
    clean_is("\"\\u12\"", "\"\\u12\"");
    clean_is("\\", "\\");
}

static void test_choice(void **state)
{
    (void)state;
    static const char row[] = "{\"id\":1,\"context\":\"c\",\"input\":\"q\",\"answer\":[\"beta\"],"
                              "\"options\":[\"alpha\",\"beta\",\"gamma\",\"delta\"]}";
    struct Sample s;
    assert_int_equal(row_parse(row, strlen(row), "code_debug", &s), PC_OK);
    assert_int_equal(s.n_answers, 2);
    assert_string_equal(s.answers[1].data, "B");
    sample_free(&s);
    assert_int_equal(row_parse(row, strlen(row), "passkey", &s), PC_OK);
    assert_int_equal(s.n_answers, 1);
    sample_free(&s);
}

/* The real rows, where they are. */
static void test_real_rows(void **state)
{
    (void)state;
    const char *shared = getenv("PCOMP_SHARED");
    static const char *const tasks[] = {"trec", "lsht", "lcc", "vcsum", "repobench-p"};
    static const int rows[] = {5, 5, 17, 4, 15};
    char path[512];
    if (!shared) {
        print_message("SKIP: PCOMP_SHARED is not set\n");
        skip();
    }
    snprintf(path, sizeof path, "%s/data/longbench-dev", shared);
    for (int i = 0; i < 5; i++) {
        struct Seen s = {0};
        assert_int_equal(dataset_each(path, tasks[i], see, &s), PC_OK);
        assert_int_equal(s.n, rows[i]);
        assert_int_equal(s.bad, 0);
        assert_true(i > 1 || s.classes.len > 100);
        seen_free(&s);
    }
}

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/pcomp-data-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),      cmocka_unit_test(test_damaged_packing),
        cmocka_unit_test(test_mixed_file), cmocka_unit_test(test_hostile_rows),
        cmocka_unit_test(test_long_line),  cmocka_unit_test(test_surrogates),
        cmocka_unit_test(test_choice),     cmocka_unit_test(test_real_rows),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

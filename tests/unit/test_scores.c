/* test_scores.c - LongBench's and RULER's scorers: rows of the packages that the official scripts call
 * (tests/golden/scores.jsonl), two published runs (needs PCOMP_SHARED, else skipped), quirks by hand; and
 * files of predictions as they should not be. What cuts Chinese needs jieba's dictionary, else it is left out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eval/difflib.h"
#include "eval/jieba.h"
#include "eval/preds.h"
#include "eval/pytext.h"
#include "eval/rescore.h"
#include "eval/rouge.h"

static struct Jieba *jieba; /* NULL: not there */

static int open_jieba(void **state)
{
    (void)state;
    if (jieba_open(NULL, &jieba) < 0) {
        print_message("# no Chinese tasks: %s\n", err_text());
        jieba = NULL;
    }
    return 0;
}

static int close_jieba(void **state)
{
    (void)state;
    jieba_close(jieba);
    return 0;
}

/* ==== Golden rows ==== */

static int task_score(const char *name, const struct ScoreInput *in, double *score)
{
    struct ScoreOptions o = {.jieba = jieba};
    struct ScoreOutput out = {0};
    int status;
    if (strcmp(name, "lcc:indel") == 0) o.code_sim = CODE_SIM_INDEL;
    if (strncmp(name, "ruler:", 6) == 0)
        status = ruler_score(name + 6, &o, in, &out);
    else
        status = longbench_score(strcmp(name, "lcc:indel") == 0 ? "lcc" : name, &o, in, &out);
    *score = out.score;
    return status;
}

static int function_score(const char *name, const struct ScoreInput *in, double *score)
{
    struct Span a = {in->pred, in->pred_len}, b = {in->answers[0].data, in->answers[0].len};
    if (strcmp(name, "difflib") == 0) return difflib_ratio(a, b, score);
    if (strcmp(name, "indel") == 0) return indel_ratio(a, b, score);
    if (strcmp(name, "rouge_lsum") == 0) {
        *score = rouge_lsum(a.data, a.len, b.data, b.len);
        return PC_OK;
    }
    return task_score(name, in, score);
}

static double number_score(const char *name, const struct ScoreInput *in)
{
    double *x = mem_alloc((size_t)in->n_answers, sizeof *x), score;
    assert_non_null(x);
    for (int i = 0; i < in->n_answers; i++) x[i] = strtod(in->answers[i].data, NULL);
    score = strcmp(name, "np_mean") == 0  ? np_mean(x, (size_t)in->n_answers)
            : strcmp(name, "round2") == 0 ? py_round2(x[0])
                                          : np_round2(x[0]);
    mem_free(x);
    return score;
}

static bool is_number_rule(const char *name)
{
    return strcmp(name, "np_mean") == 0 || strcmp(name, "round2") == 0 ||
           strcmp(name, "np_round2") == 0;
}

static void test_golden_rows(void **state)
{
    (void)state;
    struct Preds p;
    int n = 0;
    assert_int_equal(preds_read("tests/golden/scores.jsonl", &p), PC_OK);
    assert_int_equal(p.n_bad, 0);
    for (size_t i = 0; i < p.n; i++) {
        const struct PredRow *row = &p.rows[i];
        const char *name = row->answers[0].data;
        struct ScoreInput in = {row->pred.data,     row->pred.len, row->answers + 1,
                                row->n_answers - 1, row->classes,  row->n_classes};
        double score;
        if (!jieba && (strcmp(name, "dureader") == 0 || strcmp(name, "multifieldqa_zh") == 0))
            continue;
        if (is_number_rule(name))
            score = number_score(name, &in);
        else
            assert_int_equal(function_score(name, &in, &score), PC_OK);
        if (score != row->length)
            fail_msg("%s, line %zu: %.17g, not %.17g", name, row->line, score, row->length);
        n++;
    }
    assert_true(n > 300);
    print_message("# %d rows equal, bit for bit\n", n);
    preds_free(&p);
}

/* ==== Published runs ==== */

static void check_run(const char *folder)
{
    struct ScoreOptions o = {.jieba = jieba};
    struct Rescore r;
    struct Str text = {0};
    char path[5000];
    snprintf(path, sizeof path, "%s/result.json", folder);
    assert_int_equal(file_read(path, &text), PC_OK);
    cJSON *published = cJSON_ParseWithLength(text.data, text.len);
    assert_non_null(published);
    assert_int_equal(rescore_folder("longbench", folder, &o, &r), PC_OK);
    assert_int_equal(r.n_tasks, 21);
    int n = 0;
    for (int i = 0; i < r.n_tasks; i++) {
        const struct TaskScore *t = &r.tasks[i];
        const cJSON *score = cJSON_GetObjectItemCaseSensitive(published, t->task);
        assert_true(cJSON_IsNumber(score));
        if (t->reason.len) {
            assert_null(jieba);
            continue;
        }
        if (rescore_round(&r, t->mean) != score->valuedouble)
            fail_msg("%s: %.4f, not %.2f", t->task, t->mean, score->valuedouble);
        n++;
    }
    print_message("# %d of 21 tasks equal\n", n);
    assert_int_equal(n, jieba ? 21 : 18);
    rescore_free(&r);
    cJSON_Delete(published);
    str_free(&text);
}

static void test_published_runs(void **state)
{
    (void)state;
    static const char *const RUNS[] = {"llama2-7b", "llama3-8b-instruct"};
    const char *shared = getenv("PCOMP_SHARED");
    char folder[4096];
    struct stat info;
    for (int i = 0; i < 2; i++) {
        snprintf(folder, sizeof folder, "%s/data/longbench-preds/%s", shared ? shared : "",
                 RUNS[i]);
        if (!shared || stat(folder, &info) != 0) {
            print_message("SKIP: PCOMP_SHARED has no data/longbench-preds/%s\n", RUNS[i]);
            skip();
        }
        check_run(folder);
    }
}

/* ==== Quirks ==== */

struct Case {
    const char *task, *pred, *answer;
    double score;
    bool unparsed;
};

static struct Str borrow(const char *text)
{
    return (struct Str){.data = (char *)text, .len = strlen(text)};
}

static const struct Case CASES[] = {
    {"qasper", "The Cat, a cat!", "cat", 2 * 0.5 * 1 / 1.5, false},
    {"qasper_e", "anything", "any thing", 0, false},
    {"triviaqa", "\n\nParis\nFrance", "Paris France", 2 * 1 * 0.5 / 1.5, false},
    {"qasper", "", "", 0, false},
    {"gov_report", ".", "a", 0, false},
    {"gov_report", "a a a b", "a b b b", 2.0 * (1.0 / (2.0 + 1e-8)), false},
    {"gov_report", "The Cat", "the cat", 0, false},
    {"passage_count", "3 or 4", "4", 0.5, false},
    {"passage_count", "\xd9\xa4", "4", 0,
     false}, /* ARABIC-INDIC DIGIT FOUR: a number, spelt otherwise */
    {"passage_count", "none", "4", 0, true},
    {"passage_retrieval_en", "Paragraph 12, 1, 12", "Paragraph x Paragraph 12", 2.0 / 3, false},
    {"passage_retrieval_zh", "12", "段落12", 1, false},
    {"lcc", "\n# comment\n// more\nint x = 1;\nint y;", "int x = 1;", 1, false},
    {"lcc", "# only a comment", "int x;", 0, true},
    {"ruler:vt", "ABC d\x01 x", "abc", 1, false},
};

static void test_quirks(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        const struct Case *c = &CASES[i];
        struct Str answer = borrow(c->answer);
        struct ScoreInput in = {c->pred, strlen(c->pred), &answer, 1, NULL, 0};
        struct ScoreOptions o = {.code_sim = CODE_SIM_DIFFLIB};
        struct ScoreOutput out;
        int status = strncmp(c->task, "ruler:", 6) == 0 ? ruler_score(c->task + 6, &o, &in, &out)
                                                        : longbench_score(c->task, &o, &in, &out);
        if (status != PC_OK || out.score != c->score || out.unparsed != c->unparsed)
            fail_msg("%s '%s': %.17g%s", c->task, c->pred, out.score, out.unparsed ? " (?)" : "");
    }
}

/* A class behind a removed one is passed over: the short name stays and halves the score. */
static void test_class_quirk(void **state)
{
    (void)state;
    struct Str classes[] = {borrow("a"), borrow("ab"), borrow("abc")}, answer = borrow("abc");
    struct ScoreInput in = {"abc", 3, &answer, 1, classes, 3};
    struct ScoreOptions o = {0};
    struct ScoreOutput out;
    assert_int_equal(longbench_score("trec", &o, &in, &out), PC_OK);
    assert_true(out.score == 0.5);
    in.pred = "xyz";
    assert_int_equal(longbench_score("trec", &o, &in, &out), PC_OK);
    assert_true(out.score == 0 && out.unparsed);
    in.all_classes = NULL;
    assert_int_equal(longbench_score("trec", &o, &in, &out), PC_EFORMAT);
}

static void test_refusals(void **state)
{
    (void)state;
    struct Str answer = borrow("no mark");
    struct ScoreInput in = {"1", 1, &answer, 1, NULL, 0};
    struct ScoreOptions o = {0};
    struct ScoreOutput out;
    assert_int_equal(longbench_score("narativeqa", &o, &in, &out), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "'narrativeqa'"));
    assert_int_equal(ruler_score("nia_single_1", &o, &in, &out), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "'niah_single_1'"));
    assert_int_equal(longbench_score("dureader", &o, &in, &out), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "fetch.sh jieba"));
    assert_int_equal(longbench_score("passage_retrieval_en", &o, &in, &out), PC_EFORMAT);
    in.n_answers = 0;
    assert_int_equal(ruler_score("vt", &o, &in, &out), PC_EFORMAT);
    assert_null(longbench_metric("nothing", &o));
    assert_null(ruler_metric("nothing"));
    assert_string_equal(ruler_metric("qa_2"), "string_match_part");
    o.code_sim = CODE_SIM_INDEL;
    assert_string_equal(longbench_metric("lcc_e", &o), "code_sim=indel");
}

/* ==== Lines ==== */

static void test_lines(void **state)
{
    (void)state;
    static const char TEXT[] =
        "{\"pred\": \"x\", \"pred\": \"a\\u0000\\ud83d\\u00e9\\ud83d\\ude00\", \"answers\": [\"1\", "
        "[2, -3.50e1]], \"all_classes\": \"['it\\\\'s', \\\"b\\\", 'c\\\\n\\\\u00e9']\", \"length\": 7}\r\n"
        "\n"
        "{\"id\": 0, \"prediction\": \"p\", \"pred\": \"q\", \"label\": \"l\", \"ground_truth\": [[1, 2]]}\n"
        "{\"pred\": \"\", \"answers\": [], \"all_classes\": [], \"other\": {\"a\": [null, true, -Infinity]}}";
    struct Preds p;
    assert_int_equal(preds_parse(TEXT, sizeof TEXT - 1, &p), PC_OK);
    assert_int_equal(p.n_bad, 0);
    assert_int_equal(p.n, 3);
    const struct PredRow *r = p.rows;
    assert_int_equal(r[0].pred.len, 11);
    assert_memory_equal(r[0].pred.data, "a\0\xED\xA0\xBD\xC3\xA9\xF0\x9F\x98\x80", 11);
    assert_int_equal(r[0].n_answers, 3);
    assert_string_equal(r[0].answers[2].data, "-3.50e1");
    assert_int_equal(r[0].n_classes, 3);
    assert_string_equal(r[0].classes[0].data, "it's");
    assert_string_equal(r[0].classes[2].data, "c\n\xC3\xA9");
    assert_true(r[0].length == 7);
    assert_int_equal(r[1].line, 3);
    assert_string_equal(r[1].pred.data, "p");
    assert_int_equal(r[1].n_answers, 2);
    assert_string_equal(r[1].answers[1].data, "2");
    assert_null(r[1].classes);
    assert_true(r[1].length < 0);
    assert_non_null(r[2].classes);
    assert_int_equal(r[2].n_classes + r[2].n_answers, 0);
    preds_free(&p);
}

static void test_bad_lines(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        size_t byte;
        const char *why;
    } BAD[] = {
        {"{\"pred\": \"a\", \"answers\": []} {\"pred\": \"b\"}", 30, "more text"},
        {"{\"pred\": \"a\", \"answers\": [}", 27, "neither"},
        {"{\"pred\": \"a", 12, "does not end"},
        {"{\"pred\": null, \"answers\": []}", 10, "a string"},
        {"{\"answers\": []}", 16, "no prediction"},
        {"{\"pred\": \"\"}", 13, "no truth"},
        {"{\"pred\": \"\\x\", \"answers\": []}", 12, "escape"},
        {"{\"pred\": \"\\u12\", \"answers\": []}", 13, "hexadecimal"},
        {"{\"pred\": \"\x01\", \"answers\": []}", 11, "control"},
        {"{\"pred\": \"\xff\", \"answers\": []}", 11, "UTF-8"},
        {"{\"pred\": \"\", \"answers\": [true]}", 26, "neither"},
        {"{\"pred\": \"\", \"answers\": [], \"all_classes\": \"['a\"}", 0, "Python list"},
        {"[1]", 1, "bracket"},
        {"{\"pred\" 1}", 9, "colon"},
        {"{\"pred\": \"\", \"answers\": [1 2]}", 28, "comma"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        struct Preds p;
        assert_int_equal(preds_parse(BAD[i].line, strlen(BAD[i].line), &p), PC_OK);
        if (p.n_bad != 1 || p.n || !strstr(p.errors[0].why, BAD[i].why) ||
            (BAD[i].byte && p.errors[0].byte != BAD[i].byte))
            fail_msg("%s: %zu bad, byte %zu: %s", BAD[i].line, p.n_bad, p.errors[0].byte,
                     p.errors[0].why);
        preds_free(&p);
    }
    struct Str deep = {0};
    struct Preds p;
    assert_int_equal(str_append(&deep, "{\"x\":", 5), PC_OK);
    for (int i = 0; i < 5000; i++) assert_int_equal(str_append(&deep, "[", 1), PC_OK);
    assert_int_equal(preds_parse(deep.data, deep.len, &p), PC_OK);
    assert_int_equal(p.n_bad, 1);
    assert_non_null(strstr(p.errors[0].why, "deep"));
    preds_free(&p);
    str_free(&deep);
}

/* ==== Folders ==== */

static void put_file(const char *dir, const char *name, const char *text)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(file_write(path, text, strlen(text)), PC_OK);
}

static void drop_folder(const char *dir, const char *const *names, int n)
{
    char path[4096];
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static const char *const FILES[] = {"qasper.jsonl", "trec_e.jsonl", "dureader.jsonl",
                                    "preds_passkey.jsonl"};

static void make_folder(char *dir)
{
    assert_non_null(mkdtemp(dir));
    put_file(
        dir, FILES[0],
        "{\"pred\": \"a cat\", \"answers\": [\"cat\"], \"all_classes\": null, \"length\": 100}\n"
        "{\"pred\": \" \", \"answers\": [\"cat\"], \"all_classes\": null, \"length\": 3999}\n"
        "{\"pred\": \"cat dog\", \"answers\": [\"cat\"], \"all_classes\": null, \"length\": 8000}\n"
        "{\"pred\": \"cat\"}\n");
    put_file(
        dir, FILES[1],
        "{\"pred\": \"Food\", \"answers\": [\"Food\"], \"all_classes\": null, \"length\": 5}\n"
        "{\"pred\": \"?\", \"answers\": [\"Food\"], \"all_classes\": [\"Food\"], \"length\": 5}\n");
    put_file(dir, FILES[2], "{\"pred\": \"\", \"answers\": [\"\"], \"all_classes\": null}\n");
    put_file(dir, FILES[3], "{\"id\": 0, \"prediction\": \"It is 7.\", \"ground_truth\": \"7\"}\n");
}

static void test_folder(void **state)
{
    (void)state;
    char dir[] = "/tmp/pcomp-scores-XXXXXX";
    struct ScoreOptions o = {0};
    struct Rescore r;
    struct Str text = {0};
    make_folder(dir);
    assert_int_equal(rescore_folder("longbench", dir, &o, &r), PC_OK);
    assert_int_equal(r.n_tasks, 3);
    assert_int_equal(r.n_refused, 1);
    assert_string_equal(r.tasks[0].task, "qasper");
    assert_int_equal(r.tasks[0].n, 3);
    assert_int_equal(r.tasks[0].n_bad, 1);
    assert_int_equal(r.tasks[0].n_empty, 1);
    assert_true(rescore_round(&r, r.tasks[0].mean) == 55.56);
    assert_non_null(strstr(r.tasks[1].reason.data, "jieba")); /* dureader */
    assert_true(r.tasks[2].mean == 50); /* the last line's classes are every line's */
    assert_int_equal(r.tasks[2].n_unparsed, 1);
    assert_non_null(strstr(r.errors.data, "qasper.jsonl: line 4"));
    assert_int_equal(rescore_text(&r, &text), PC_OK);
    assert_non_null(strstr(text.data, "55.56"));
    assert_non_null(strstr(text.data, "refused"));
    rescore_free(&r);
    assert_int_equal(rescore_folder("infinitebench", dir, &o, &r), PC_OK);
    assert_true(r.n_tasks == 1 && r.tasks[0].mean == 100);
    rescore_free(&r);
    assert_int_equal(rescore_folder("longbench", "/nowhere", &o, &r), PC_EIO);
    rescore_free(&r);
    assert_int_equal(rescore_folder("squad", dir, &o, &r), PC_ECONFIG);
    rescore_free(&r);
    str_free(&text);
    drop_folder(dir, FILES, 4);
}

static void test_buckets(void **state)
{
    (void)state;
    char dir[] = "/tmp/pcomp-scores-XXXXXX";
    struct ScoreOptions o = {0};
    struct Rescore r;
    struct Str text = {0};
    make_folder(dir);
    assert_int_equal(rescore_folder("longbench-e", dir, &o, &r), PC_OK);
    assert_int_equal(r.n_tasks, 2); /* no Chinese there */
    assert_true(r.tasks[0].bucket[0] == 50 && r.tasks[0].bucket_n[0] == 2);
    assert_true(isnan(r.tasks[0].bucket[1]) && r.tasks[0].bucket_n[1] == 0);
    assert_true(rescore_round(&r, r.tasks[0].bucket[2]) == 66.67);
    assert_int_equal(rescore_json(&r, dir, &text), PC_OK);
    cJSON *root = cJSON_ParseWithLength(text.data, text.len);
    assert_non_null(root);
    const cJSON *task = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "tasks"), 0);
    const cJSON *part = cJSON_GetObjectItem(cJSON_GetObjectItem(task, "by_length"), "8k+");
    assert_true(cJSON_GetObjectItem(part, "score")->valuedouble == 66.67);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(root, "errors")), 1);
    cJSON_Delete(root);
    str_free(&text);
    rescore_free(&r);
    drop_folder(dir, FILES, 4);
}

/* Every allocation fails once: an error each time, and nothing stays held. */
static void test_faults(void **state)
{
    (void)state;
    char dir[] = "/tmp/pcomp-scores-XXXXXX";
    struct ScoreOptions o = {.jieba = jieba};
    size_t before = mem_in_use();
    int status = PC_ENOMEM;
    make_folder(dir);
    put_file(dir, "gov_report.jsonl",
             "{\"pred\": \"a b. c\", \"answers\": [\"c. a\"], \"all_classes\": null}\n");
    put_file(dir, "lcc.jsonl",
             "{\"pred\": \"int x\", \"answers\": [\"int \xC3\xA9\"], \"all_classes\": null}\n");
    for (long n = 1; status != PC_OK && n < 2000; n++) {
        struct Rescore r;
        struct Str text = {0};
        mem_fail_after(n);
        status = rescore_folder("longbench", dir, &o, &r);
        if (status == PC_OK) status = rescore_text(&r, &text);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        str_free(&text);
        rescore_free(&r);
        assert_int_equal(mem_in_use(), before);
    }
    assert_int_equal(status, PC_OK);
    static const char *const MORE[] = {"gov_report.jsonl", "lcc.jsonl"};
    drop_folder(dir, MORE, 2);
    drop_folder(dir, FILES, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_rows), cmocka_unit_test(test_published_runs),
        cmocka_unit_test(test_quirks),      cmocka_unit_test(test_class_quirk),
        cmocka_unit_test(test_refusals),    cmocka_unit_test(test_lines),
        cmocka_unit_test(test_bad_lines),   cmocka_unit_test(test_folder),
        cmocka_unit_test(test_buckets),     cmocka_unit_test(test_faults),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_jieba, close_jieba);
}

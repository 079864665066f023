/* test_report.c - reading runs, the numbers of a report, and its three forms. */
#include "eval/report.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ==== Made-up runs ==== */

static const char HEAD[] =
    "{\"schema\":\"pcomp.eval.v1\",\"benchmark\":\"LongBench\",\"profile\":\"official\","
    "\"model\":{\"name\":\"m\"},\"data\":{\"name\":\"d\",\"hash\":\"7\"},"
    "\"tasks\":{\"trec\":{\"metric\":\"classification\",\"rows\":3,\"official_rows\":200},"
    "\"lcc\":{\"metric\":\"code_sim\",\"rows\":1,\"official_rows\":500}},"
    "\"methods\":{\"a\":{\"keep\":2,\"x\":[1,{}]},\"b\":{\"keep\":3}}}";

static void head(struct Run *run, const char *text)
{
    *run = (struct Run){0};
    assert_int_equal(str_append(&run->name, "run", 3), PC_OK);
    assert_int_equal(run_read_head(run, text, strlen(text)), PC_OK);
}

static struct RunMethod *lines(struct Run *run, const char *label, const char *text)
{
    struct RunMethod *method;
    assert_int_equal(run_add_method(run, label, &method), PC_OK);
    assert_non_null(method);
    assert_int_equal(run_read_lines(run, method, "a/trec.jsonl", text, strlen(text)), PC_OK);
    assert_int_equal(run_settle(method), PC_OK);
    return method;
}

/* count samples of one task with ids from first on; scores step by step. */
static void many(struct Str *out, const char *task, int first, int count, double score)
{
    for (int i = first; i < first + count; i++)
        assert_int_equal(
            str_appendf(
                out,
                "{\"schema\":\"pcomp.sample.v1\",\"id\":\"%s%d\",\"task\":\"%s\",\"score\":%.3f,"
                "\"n_context\":%d,\"target_tokens\":%d,\"depth\":%.2f,\"n_chunks\":4,\"kept\":[1,3],"
                "\"answer_chunks\":[%d],\"chunk_score\":[3.5,1.0,null,2.0],\"kv_in\":40,\"kv_kept\":10,"
                "\"kv_kept_by_head\":[[1,2],[3,4]],\"seconds\":{\"prefill\":2,\"total\":%d},"
                "\"peak_bytes\":%d}\n",
                task, i, task, fmin(1, score + 0.01 * (i % 5)), 1000 + 100 * i, 4096 << (i % 2),
                i % 3 / 2.0, i % 4, i % 7 + 1, 1000 * i),
            PC_OK);
}

static void runs_two(struct Run *run)
{
    struct Str text = {0};
    head(run, HEAD);
    many(&text, "trec", 0, 12, 0.3);
    many(&text, "lcc", 0, 8, 0.6);
    lines(run, "a", text.data);
    str_clear(&text);
    many(&text, "trec", 2, 12, 0.5);
    lines(run, "b", text.data);
    str_free(&text);
}

/* ==== Reading ==== */

static void reads_all_keys(void **state)
{
    (void)state;
    struct Run run;
    head(&run, HEAD);
    struct RunMethod *m = lines(
        &run, "a",
        "{\"schema\":\"pcomp.sample.v1\",\"id\":\"x\",\"key\":\"k\",\"task\":\"trec\",\"pred\":\" \",\"score\":0.5,"
        "\"unparsed\":true,\"stop\":\"length\",\"truncated\":7,\"n_context\":100,\"n_chunks\":5,"
        "\"chunk_score\":[3,1,null,2,2.5],\"kept\":[1,3],\"answer_chunks\":[3,4],\"kv_in\":40,\"kv_kept\":10,"
        "\"kv_kept_by_head\":[[1,2],[3,4]],\"seconds\":{\"prefill\":2.5,\"total\":3},\"peak_bytes\":9,"
        "\"target_tokens\":4096,\"depth\":0.5,\"length\":77}\n");
    const struct RunSample *s = &m->samples[0];
    assert_int_equal(run.n_problems_all, 0);
    assert_string_equal(run.facts[FACT_DATA_HASH].data, "7");
    assert_int_equal(run.n_methods, 2);
    assert_string_equal(run.methods[0].settings[1].value.data, "[1,{}]");
    assert_int_equal(m->n_samples, 1);
    assert_string_equal(run_text(m, s->id), "x");
    assert_true(s->empty && s->unparsed && s->cut && s->truncated == 7);
    assert_true(s->score == 0.5 && s->depth == 0.5 && s->length == 77 && s->target_tokens == 4096);
    assert_true(s->n_answer == 2 && s->n_found == 1 && s->answer_chunk == 3);
    assert_true(s->answer_rank == 3); /* of 2 (rank 2) and 2.5 (rank 3) the worse */
    assert_true(s->n_layers == 2 && s->n_heads == 2 && m->heads[s->heads + 3] == 4);
    run_free(&run);
    assert_int_equal(mem_in_use(), 0);
}

static void missing_keys_are_unknown(void **state)
{
    (void)state;
    struct Run run = {0};
    struct RunMethod *m =
        lines(&run, "a", "{\"score\":1}\n{\"id\":7,\"prediction\":\"x\",\"score\":0}");
    assert_int_equal(m->n_samples, 2);
    assert_int_equal(run.n_problems_all, 0); /* a last line needs no line feed when it is whole */
    assert_string_equal(run.tasks[0].name.data, "trec"); /* from the file's name */
    assert_string_equal(run_text(m, m->samples[0].id), "a/trec.jsonl:1");
    assert_string_equal(run_text(m, m->samples[1].id), "7");
    const struct RunSample *s = &m->samples[0];
    assert_true(isnan(s->n_context) && isnan(s->depth) && isnan(s->total) && isnan(s->answer_rank));
    assert_false(s->empty);
    run_free(&run);
}

static void last_good_line_wins(void **state)
{
    (void)state;
    struct Run run = {0};
    struct RunMethod *m =
        lines(&run, "a",
              "{\"key\":\"1\",\"score\":0.1}\n"
              "{\"key\":\"2\",\"error\":{\"code\":\"c\",\"message\":\"first\"}}\n"
              "{\"key\":\"1\",\"score\":0.2}\n"
              "{\"key\":\"1\",\"error\":{\"message\":\"late\"}}\n"
              "{\"key\":\"3\",\"error\":{\"code\":\"old\"}}\n"
              "{\"key\":\"2\",\"score\":0.3}\n"
              "{\"key\":\"3\",\"error\":{\"code\":\"new\",\"message\":\"why\"}}\n");
    assert_int_equal(m->n_samples, 3);
    assert_int_equal(m->n_replaced, 4);
    assert_true(m->samples[0].score == 0.2);
    assert_true(m->samples[1].score == 0.3);
    assert_int_equal(m->samples[2].state, SAMPLE_FAILED);
    assert_string_equal(run_text(m, m->samples[2].error), "new: why");
    run_free(&run);
}

static void odd_scores(void **state)
{
    (void)state;
    struct Run run = {0};
    struct RunMethod *m = lines(&run, "a",
                                "{\"id\":\"a\",\"score\":NaN}\n{\"id\":\"b\",\"score\":null}\n"
                                "{\"id\":\"c\",\"score\":-Infinity,\"depth\":NaN}\n{\"id\":\"d\"}\n"
                                "{\"id\":\"e\",\"score\":1e999}\n{\"id\":\"f\",\"score\":1.5}\n"
                                "{\"id\":\"g\",\"score\":1.0000000001}\n");
    assert_int_equal(m->n_samples, 7);
    for (int i = 0; i < 6; i++) assert_int_equal(m->samples[i].state, SAMPLE_NO_SCORE);
    assert_true(m->samples[6].score == 1);
    assert_int_equal(run.n_problems_all, 1);
    assert_int_equal(run.problems[0].line, 6);
    run_free(&run);
}

static void bad_lines_are_named(void **state)
{
    (void)state;
    struct Run run = {0};
    struct Str text = {0};
    str_appendf(&text,
                "{\"id\":\"a\",\"score\":1}\nnot json\n\n[1]\n{\"schema\":\"x.v9\",\"score\":1}\n");
    for (int i = 0; i < 40; i++) str_appendf(&text, "[");
    str_appendf(&text, "\n{\"id\":\"b\",\"score\":1} x\n{\"id\":\"c\",\"sco");
    struct RunMethod *m = lines(&run, "a", text.data);
    static const long at[] = {2, 4, 5, 6, 7, 8};
    assert_int_equal(m->n_samples, 1);
    assert_int_equal(run.n_problems, 6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(run.problems[i].line, at[i]);
        assert_string_equal(run.problems[i].file.data, "a/trec.jsonl");
    }
    assert_non_null(strstr(run.problems[3].what.data, "nested"));
    assert_non_null(strstr(run.problems[5].what.data, "torn"));
    str_free(&text);
    run_free(&run);
}

static void long_line_is_left_out(void **state)
{
    (void)state;
    struct Run run = {0};
    size_t len = RUNS_LINE_MAX + 100;
    char *text = malloc(len + 64);
    memset(text, ' ', len);
    strcpy(text + len, "\n{\"score\":0.5}\n");
    struct RunMethod *m = lines(&run, "a", text);
    assert_int_equal(m->n_samples, 1);
    assert_int_equal(run.n_problems_all, 1);
    assert_non_null(strstr(run.problems[0].what.data, "10 MiB"));
    free(text);
    run_free(&run);
    assert_int_equal(mem_in_use(), 0);
}

static void limits_hold(void **state)
{
    (void)state;
    struct Run run = {0};
    struct Str text = {0};
    for (int i = 0; i < RUNS_TASKS_MAX + 20; i++)
        str_appendf(&text, "{\"task\":\"t%d\",\"score\":1}\n", i);
    for (int i = 0; i < RUNS_PROBLEMS_MAX; i++) str_appendf(&text, "bad\n");
    struct RunMethod *m = lines(&run, "a", text.data);
    assert_int_equal(run.n_tasks, RUNS_TASKS_MAX);
    assert_int_equal(m->n_samples, RUNS_TASKS_MAX);
    assert_int_equal(run.n_problems, RUNS_PROBLEMS_MAX);
    assert_int_equal(run.n_problems_all, RUNS_PROBLEMS_MAX + 20);
    str_free(&text);
    run_free(&run);
}

static void head_is_hostile(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "[]",
        "{}",
        "{\"tasks\":[1],\"methods\":7,\"model\":[],\"data\":\"d\"}",
        "{\"methods\":{\"../x\":{},\"a/b\":{},\"\":{},\".\":{},\"ok\":[1]},\"tasks\":{\"t\":5,\"t\":{\"rows\":-1}}}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct Run run = {0};
        assert_int_equal(run_read_head(&run, texts[i], strlen(texts[i])), PC_OK);
        assert_true(run.n_problems_all > 0); /* the schema at least */
        if (i == 4) assert_int_equal(run.n_methods, 1);
        run_free(&run);
    }
    struct Run run;
    assert_int_equal(run_read("/nowhere/at/all", &run), PC_EIO);
    run_free(&run);
    assert_int_equal(mem_in_use(), 0);
}

/* ==== Numbers ==== */

static void pairs_rows_by_id(void **state)
{
    (void)state;
    struct Run run;
    struct Report r;
    runs_two(&run);
    assert_int_equal(report_make(&run, 1, NULL, &r), PC_OK);
    assert_int_equal(r.n_columns, 2);
    /* Tasks stand by LongBench's groups: trec is few-shot, lcc code. */
    assert_string_equal(r.tasks[0].name.data, "trec");
    const struct Cell *a = report_cell(&r, 0, 0), *b = report_cell(&r, 0, 1);
    assert_int_equal(a->score.n, 12);
    assert_int_equal(b->difference.mean.n, 10); /* ids 2 to 11 */
    assert_true(fabs(b->difference.mean.mean - 0.2) < 1e-9);
    assert_int_equal(b->difference.verdict, VERDICT_BETTER);
    assert_int_equal(report_cell(&r, 1, 1)->difference.mean.n, 0);
    assert_int_equal(a->hits.n, 12);
    assert_int_equal(a->hits.all, 6); /* chunks 1 and 3 of 0 to 3 were kept */
    assert_int_equal(a->hits.n_ranked, 9);
    assert_int_equal(a->hits.within[0], 3); /* chunk 1 is the best */
    assert_true(fabs(a->hits.kept_share - 0.5) < 1e-12);
    assert_true(r.kv[0].n_rows == 20 && r.kv[0].mean[3] == 4 && r.kv[0].share_of == 10);
    assert_true(a->cost.kv_in == 40 && a->cost.n_timed == 12);
    report_free(&r);
    assert_int_equal(report_make(&run, 1, "b", &r), PC_OK);
    assert_int_equal(r.baseline, 1);
    assert_int_equal(report_cell(&r, 0, 0)->difference.verdict, VERDICT_WORSE);
    report_free(&r);
    assert_int_equal(report_make(&run, 1, "c", &r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "'a', 'b'"));
    report_free(&r);
    run_free(&run);
    assert_int_equal(mem_in_use(), 0);
}

static void maps_and_curves(void **state)
{
    (void)state;
    struct Run run;
    struct Report r;
    runs_two(&run);
    assert_int_equal(report_make(&run, 1, NULL, &r), PC_OK);
    assert_int_equal(r.n_heats, 2);
    const struct Heat *heat = &r.heats[0];
    assert_int_equal(heat->n_lengths, 2);
    assert_int_equal(heat->n_depths, 3);
    /* ids 0 and 6: length 4096, depth 0, scores 0.30 and 0.31 */
    assert_int_equal(heat->n[0], 2);
    assert_true(fabs(heat->mean[0] - 0.305) < 1e-9);
    assert_true(r.n_curves >= 1 && r.curves[0].by_target && r.curves[0].n_bins == 2);
    assert_int_equal(r.curves[0].points[0].n, 10);
    report_free(&r);
    run_free(&run);
}

/* ==== Wording ==== */

static void page_of(struct Run *runs, int n, struct Str *out,
                    int (*write)(const struct Report *, struct Str *))
{
    struct Report r;
    assert_int_equal(report_make(runs, n, NULL, &r), PC_OK);
    assert_int_equal(write(&r, out), PC_OK);
    report_free(&r);
}

static void partial_never_bears_the_name(void **state)
{
    (void)state;
    struct Run run;
    struct Str page = {0};
    runs_two(&run); /* its run.json says "LongBench" */
    page_of(&run, 1, &page, report_html);
    page_of(&run, 1, &page, report_markdown);
    page_of(&run, 1, &page, report_csv);
    assert_null(strstr(page.data, "LongBench"));
    assert_non_null(strstr(page.data, "<h1>20 rows of 2 longbench tasks</h1>"));
    assert_non_null(
        strstr(page.data, "partial: 20 of 700 official rows of these tasks, 2 of 21 tasks"));
    assert_null(strstr(page.data, "mean of 2 tasks of 21")); /* no total of a part */
    str_free(&page);
    run_free(&run);
}

/* All 4,750 rows scored in every method: only then. One row less, and it is partial again. */
static void complete_bears_the_name(void **state)
{
    (void)state;
    static const char *const tasks[] = {"narrativeqa",
                                        "qasper",
                                        "multifieldqa_en",
                                        "multifieldqa_zh",
                                        "hotpotqa",
                                        "2wikimqa",
                                        "musique",
                                        "dureader",
                                        "gov_report",
                                        "qmsum",
                                        "multi_news",
                                        "vcsum",
                                        "trec",
                                        "triviaqa",
                                        "samsum",
                                        "lsht",
                                        "passage_count",
                                        "passage_retrieval_en",
                                        "passage_retrieval_zh",
                                        "lcc",
                                        "repobench-p"};
    for (int less = 0; less < 2; less++) {
        struct Run run = {0};
        struct Str text = {0}, page = {0};
        str_appendf(&run.name, "r");
        /* a run that calls a few rows the official number is not believed */
        str_appendf(&text, "{\"schema\":\"pcomp.eval.v1\",\"benchmark\":\"longbench\",\"tasks\":{"
                           "\"trec\":{\"official_rows\":3}}}");
        assert_int_equal(run_read_head(&run, text.data, text.len), PC_OK);
        str_clear(&text);
        for (int t = 0; t < 21; t++) {
            int rows = t >= 19 ? 500 : strcmp(tasks[t], "multifieldqa_en") == 0 ? 150 : 200;
            for (int i = 0; i < rows - (less && t == 12); i++)
                str_appendf(&text, "{\"id\":%d,\"task\":\"%s\",\"score\":%d}\n", i, tasks[t],
                            i % 2);
        }
        lines(&run, "a", text.data);
        page_of(&run, 1, &page, report_html);
        if (less) {
            assert_null(strstr(page.data, "LongBench"));
            assert_non_null(strstr(page.data, "partial: 4,749 of 4,750 official rows"));
            assert_null(strstr(page.data, "mean of 21 tasks"));
        } else {
            assert_non_null(strstr(page.data, "<h1>LongBench: all 4,750 rows of 21 tasks</h1>"));
            assert_non_null(strstr(page.data, "mean of 21 tasks"));
        }
        str_free(&text);
        str_free(&page);
        run_free(&run);
    }
}

/* ==== Forms ==== */

/* Every element that is opened is closed in order. */
static void assert_well_formed(const char *page)
{
    static const char *const empty[] = {"meta", "br"};
    char stack[64][16];
    int depth = 0;
    const char *style = strstr(page, "<style>"), *after = strstr(page, "</style>");
    assert_true(style && after);
    for (const char *at = page; *at; at++) {
        if (at == style + 7) at = after;
        assert_true(*at != '>');
        assert_true((unsigned char)*at >= 0x20 || *at == '\n');
        if (*at != '<') continue;
        const char *end = strchr(at, '>');
        assert_non_null(end);
        bool close = at[1] == '/', single = end[-1] == '/' || at[1] == '!';
        char name[16] = "";
        sscanf(at + 1 + close, "%15[a-z0-9]", name);
        for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++)
            single |= strcmp(name, empty[i]) == 0;
        if (close) {
            assert_true(depth > 0);
            assert_string_equal(stack[--depth], name);
        } else if (!single) {
            assert_true(depth < 64);
            snprintf(stack[depth++], 16, "%s", name);
        }
        at = end;
    }
    assert_int_equal(depth, 0);
}

static void hostile(struct Run *run)
{
    head(
        run,
        "{\"schema\":\"pcomp.eval.v1\",\"benchmark\":\"<script>\",\"device\":\"a\\u202eb\\u0007\\u0085\","
        "\"tasks\":{\"<b>&amp;\":{\"metric\":\"\\\"'>\"},\"none\":{}},"
        "\"methods\":{\"<i>|`\":{\"<s>\":\"=1\"},\"=cmd\":{}}}");
    lines(
        run, "<i>|`",
        "{\"id\":\"</td><script>alert(1)</script>\",\"task\":\"<b>&amp;\",\"error\":{\"message\":\"<x> \\u001b[0m\"}}\n"
        "{\"id\":\"\\\"onload=\",\"task\":\"<b>&amp;\",\"score\":0.25}\n\xff\xfe\n");
    lines(
        run, "=cmd",
        "{\"id\":\"q\",\"task\":\"<b>&amp;\",\"score\":0.5,\"n_chunks\":1e300,\"answer_chunks\":[1e299],"
        "\"kept\":[-1,1e299],\"kv_kept_by_head\":[[1e308]],\"target_tokens\":1e308,\"depth\":0.1,"
        "\"seconds\":{\"total\":1e308},\"peak_bytes\":1e300,\"n_context\":1e308}\n");
}

static void page_is_clean(void **state)
{
    (void)state;
    static const char *const never[] = {"<script", "<b>&amp;amp;", "<x>",  "http:",
                                        "https:",  "src=",         "url(", "@import",
                                        "nan",     "inf",          "\x1b", "\xe2\x80\xae"};
    struct Run run;
    struct Str page = {0};
    hostile(&run);
    page_of(&run, 1, &page, report_html);
    assert_well_formed(page.data);
    assert_int_equal(utf8_invalid_at(page.data, page.len), page.len);
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++)
        if (strstr(page.data, never[i])) fail_msg("the page has '%s'", never[i]);
    assert_non_null(strstr(page.data, "&lt;/td&gt;&lt;script&gt;"));
    assert_non_null(strstr(page.data, "1 of 2 failed"));
    str_free(&page);
    run_free(&run);
    runs_two(&run);
    page_of(&run, 1, &page, report_html);
    assert_well_formed(page.data);
    str_free(&page);
    run_free(&run);
}

static void nothing_at_all(void **state)
{
    (void)state;
    struct Run run = {0};
    struct Str page = {0};
    struct RunMethod *m;
    str_appendf(&run.name, "r");
    assert_int_equal(run_add_method(&run, "a", &m), PC_OK);
    page_of(&run, 1, &page, report_html);
    assert_non_null(strstr(page.data, "<h1>No rows</h1>"));
    assert_well_formed(page.data);
    str_clear(&page);
    page_of(&run, 1, &page, report_markdown);
    page_of(&run, 1, &page, report_csv);
    str_free(&page);
    run_free(&run);
}

/* Fields of a line of CSV; *at moves to the next line. */
static int csv_fields(const char **at)
{
    int n = 1;
    bool quoted = false;
    for (; **at && (quoted || **at != '\n'); ++*at) {
        quoted ^= **at == '"';
        n += !quoted && **at == ',';
    }
    if (**at) ++*at;
    return n;
}

static void csv_is_regular(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct Run run;
        struct Str text = {0};
        if (i == 0)
            runs_two(&run);
        else
            hostile(&run);
        page_of(&run, 1, &text, report_csv);
        const char *at = text.data;
        int n = csv_fields(&at), rows = 0;
        for (; *at; rows++) assert_int_equal(csv_fields(&at), n);
        assert_true(rows >= 4);
        assert_null(strstr(text.data, ",=cmd"));
        if (i == 0)
            assert_non_null(
                strstr(text.data, "\ndifference,run,b,longbench,trec,,classification,,,10,20,"));
        str_free(&text);
        run_free(&run);
    }
}

static void several_runs(void **state)
{
    (void)state;
    struct Run runs[2];
    struct Str page = {0};
    runs_two(&runs[0]);
    runs_two(&runs[1]);
    str_clear(&runs[1].facts[FACT_DATA_HASH]);
    str_appendf(&runs[1].facts[FACT_DATA_HASH], "8");
    page_of(runs, 2, &page, report_html);
    assert_non_null(strstr(page.data, "a @ run (2)"));
    assert_non_null(strstr(page.data, "These runs differ in: data."));
    assert_well_formed(page.data);
    str_free(&page);
    run_free(&runs[0]);
    run_free(&runs[1]);
}

/* ==== Faults ==== */

static int all_of(struct Run *run, struct Report *r, struct Str *out)
{
    struct RunMethod *m;
    struct Str text = {0};
    int status = str_appendf(&run->name, "r");
    if (status == PC_OK) status = run_read_head(run, HEAD, strlen(HEAD));
    if (status == PC_OK) status = run_add_method(run, "a", &m);
    if (status == PC_OK)
        status = str_appendf(
            &text,
            "{\"id\":1,\"score\":0.5,\"kv_kept_by_head\":[[1]]}\nbad\n{\"id\":2,\"task\":\"u\","
            "\"score\":0.25,\"error\":{\"code\":\"c\"}}\n");
    if (status == PC_OK) status = run_read_lines(run, m, "a/t.jsonl", text.data, text.len);
    if (status == PC_OK) status = run_settle(m);
    if (status == PC_OK) status = report_make(run, 1, "a", r);
    if (status == PC_OK) status = report_html(r, out);
    if (status == PC_OK) status = report_markdown(r, out);
    if (status == PC_OK) status = report_csv(r, out);
    str_free(&text);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int status;
    long n = 0;
    do {
        struct Run run = {0};
        struct Report r = {0};
        struct Str out = {0};
        mem_fail_after(++n);
        status = all_of(&run, &r, &out);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        report_free(&r);
        run_free(&run);
        str_free(&out);
        assert_int_equal(mem_in_use(), 0);
    } while (status != PC_OK);
    assert_true(n > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_all_keys),
        cmocka_unit_test(missing_keys_are_unknown),
        cmocka_unit_test(last_good_line_wins),
        cmocka_unit_test(odd_scores),
        cmocka_unit_test(bad_lines_are_named),
        cmocka_unit_test(long_line_is_left_out),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(head_is_hostile),
        cmocka_unit_test(pairs_rows_by_id),
        cmocka_unit_test(maps_and_curves),
        cmocka_unit_test(partial_never_bears_the_name),
        cmocka_unit_test(complete_bears_the_name),
        cmocka_unit_test(page_is_clean),
        cmocka_unit_test(nothing_at_all),
        cmocka_unit_test(csv_is_regular),
        cmocka_unit_test(several_runs),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* fuzz_runs.c - a run of any bytes: run.json up to the first NUL, the rest as lines of two methods; then the
 * report in all its forms, which must be text that a browser and a table reader can take. */
#include "eval/report.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int status)
{
    if (status != PC_OK && status != PC_ENOMEM) abort();
}

static void add_lines(struct Run *run, const char *label, const char *text, size_t len)
{
    struct RunMethod *method;
    must(run_add_method(run, label, &method));
    if (!method) return;
    must(run_read_lines(run, method, "m/preds_t.jsonl", text, len));
    must(run_settle(method));
    for (int i = 0; i < method->n_samples; i++) {
        const struct RunSample *s = &method->samples[i];
        if (s->task < 0 || s->task >= run->n_tasks) abort();
        if (s->state == SAMPLE_SCORED && !(s->score >= 0 && s->score <= 1)) abort();
        if (s->n_found > s->n_answer || s->id >= method->texts.len) abort();
    }
}

static void check_forms(const struct Report *r)
{
    struct Str out = {0};
    must(report_html(r, &out));
    if (strlen(out.data) != out.len || utf8_invalid_at(out.data, out.len) < out.len) abort();
    if (strstr(out.data, "<script")) abort();
    str_clear(&out);
    must(report_markdown(r, &out));
    must(report_csv(r, &out));
    if (utf8_invalid_at(out.data, out.len) < out.len) abort();
    str_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *nul = memchr(text, '\0', size);
    size_t head = nul ? (size_t)(nul - text) : 0, at = nul ? head + 1 : 0;
    struct Run run = {0};
    struct Report report = {0};
    stats_hurry(20);
    must(str_append(&run.name, "run", 3));
    if (head) must(run_read_head(&run, text, head));
    add_lines(&run, "a", text + at, size - at);
    add_lines(&run, "b", text + at + (size - at) / 2, size - at - (size - at) / 2);
    int status = report_make(&run, 1, NULL, &report);
    if (status == PC_OK)
        check_forms(&report);
    else if (status != PC_ECONFIG)
        abort(); /* more methods than a report holds */
    report_free(&report);
    run_free(&run);
    if (mem_in_use() != 0) abort();
    return 0;
}

/* fuzz_scores.c - any bytes as a file of predictions, and as the texts of one row: scores stay in 0..1,
 * the two code ratios keep their order, Python's text rules lose no byte, and nothing stays held.
 */
#include "eval/answers.h"
#include "eval/difflib.h"
#include "eval/preds.h"
#include "eval/pytext.h"
#include "eval/rouge.h"
#include "eval/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const TASKS[] = {
    "qasper",      "triviaqa",        "gov_report",           "samsum",
    "trec",        "passage_count",   "passage_retrieval_en", "passage_retrieval_zh",
    "repobench-p", "multifieldqa_zh", "no_such_task",
};

static void check_score(int status, double score)
{
    if (status != PC_OK && status != PC_EFORMAT && status != PC_ECONFIG) abort();
    if (status == PC_OK && !(score >= 0 && score <= 1)) abort();
}

static void score_row(const struct ScoreInput *in)
{
    struct ScoreOutput out;
    struct ScoreOptions o = {.code_sim = in->pred_len % 2 ? CODE_SIM_INDEL : CODE_SIM_DIFFLIB};
    for (size_t i = 0; i < sizeof TASKS / sizeof TASKS[0]; i++)
        check_score(longbench_score(TASKS[i], &o, in, &out), out.score);
    check_score(ruler_score("vt", &o, in, &out), out.score);
    check_score(ruler_score("qa_1", &o, in, &out), out.score);
}

static void check_file(const char *text, size_t len)
{
    struct Preds p;
    if (preds_parse(text, len, &p) != PC_OK) abort();
    for (size_t i = 0; i < p.n; i++) {
        const struct PredRow *row = &p.rows[i];
        struct ScoreInput in = {row->pred.data, row->pred.len, row->answers,
                                row->n_answers, row->classes,  row->n_classes};
        if (strlen(row->pred.data) > row->pred.len) abort();
        if (i < 4) score_row(&in);
    }
    preds_free(&p);
}

/* Words have no white space at their ends, and nothing else stands between them. */
static void check_split(const char *text, size_t len)
{
    struct Span word;
    size_t behind = 0;
    for (size_t at = 0; py_split_next(text, len, &at, &word); behind = at) {
        size_t before = (size_t)(word.data - text);
        if (!word.len || py_strip(word.data, word.len).len != word.len) abort();
        if (py_strip(text + behind, before - behind).len) abort();
    }
    if (py_strip(text + behind, len - behind).len) abort();
}

/* Lowered text is lowered; so is what normalisation leaves normal. */
static void check_rules(const char *text, size_t len)
{
    struct Str once = {0}, twice = {0}, number = {0};
    if (answer_normalize_zh(text, len, &once) != PC_OK) abort();
    str_clear(&once);
    if (py_upper(text, len, &once) != PC_OK) abort();
    str_clear(&once);
    if (py_lower(text, len, &once) != PC_OK) abort();
    if (answer_normalize(once.data ? once.data : "", once.len, &twice) != PC_OK) abort();
    if (py_int(text, len, &number) < 0) abort();
    str_free(&once);
    str_free(&twice);
    str_free(&number);
}

static void check_ratios(struct Span a, struct Span b)
{
    double difflib, indel, f;
    int percent;
    if (difflib_ratio(a, b, &difflib) != PC_OK || indel_ratio(a, b, &indel) != PC_OK) abort();
    if (!(difflib >= 0 && difflib <= indel + 1e-12 && indel <= 1)) abort();
    if (fuzz_ratio(a, a, false, &percent) != PC_OK || percent != 100) abort();
    f = rouge_lsum(a.data, a.len, b.data, b.len);
    if (!(f >= 0 && f <= 1)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const char *middle = size ? memchr(text, '|', size) : NULL;
    size_t n = middle ? (size_t)(middle - text) : size;
    struct Span a = {text, n}, b = {middle ? middle + 1 : "", middle ? size - n - 1 : 0};
    struct Str answers[] = {{.data = (char *)b.data, .len = b.len}};
    struct ScoreInput in = {a.data, a.len, answers, 1, answers, 1};
    check_file(text, size);
    check_split(text, size);
    check_rules(text, size);
    check_ratios(a, b);
    score_row(&in);
    if (mem_in_use() != 0) abort();
    return 0;
}

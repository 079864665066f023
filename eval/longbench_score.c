/* longbench_score.c - LongBench v1's scorers, 21 tasks, with the quirks of the originals. See score.h */
#include "score.h"

#include "answers.h"
#include "difflib.h"
#include "jieba.h"
#include "pytext.h"
#include "rouge.h"

#include <string.h>

enum Metric {
    QA_F1,
    QA_F1_ZH,
    ROUGE,
    ROUGE_ZH,
    CLASSIFICATION,
    RETRIEVAL,
    RETRIEVAL_ZH,
    COUNT,
    CODE_SIM,
};

static const struct Task {
    const char *name;
    enum Metric metric;
    bool first_line; /* only the first line of the prediction counts */
} TASKS[] = {
    {"narrativeqa", QA_F1, false},
    {"qasper", QA_F1, false},
    {"multifieldqa_en", QA_F1, false},
    {"multifieldqa_zh", QA_F1_ZH, false},
    {"hotpotqa", QA_F1, false},
    {"2wikimqa", QA_F1, false},
    {"musique", QA_F1, false},
    {"dureader", ROUGE_ZH, false},
    {"gov_report", ROUGE, false},
    {"qmsum", ROUGE, false},
    {"multi_news", ROUGE, false},
    {"vcsum", ROUGE_ZH, false},
    {"trec", CLASSIFICATION, true},
    {"triviaqa", QA_F1, true},
    {"samsum", ROUGE, true},
    {"lsht", CLASSIFICATION, true},
    {"passage_count", COUNT, false},
    {"passage_retrieval_en", RETRIEVAL, false},
    {"passage_retrieval_zh", RETRIEVAL_ZH, false},
    {"lcc", CODE_SIM, false},
    {"repobench-p", CODE_SIM, false},
};

enum { N_TASKS = sizeof TASKS / sizeof TASKS[0] };

/* One row: the prediction as it counts, and what came with it. */
struct Row {
    struct Span pred;
    const struct ScoreInput *in;
    const struct ScoreOptions *options;
};

static struct Span span_of(const struct Str *s)
{
    return (struct Span){s->data ? s->data : "", s->len};
}

static bool contains(struct Span text, struct Span part)
{
    return !part.len || (text.len && memmem(text.data, text.len, part.data, part.len));
}

static bool equal(struct Span a, struct Span b)
{
    return a.len == b.len && (!a.len || memcmp(a.data, b.data, a.len) == 0);
}

static void keep_best(struct ScoreOutput *out, double score)
{
    if (score > out->score) out->score = score;
}

/* ==== Words in common ==== */

static int take_zh_word(void *user, const char *word, size_t len)
{
    struct Str *words = user;
    size_t before = words->len;
    TRY(answer_normalize_zh(word, len, words));
    return words->len > before ? str_append(words, " ", 1) : PC_OK;
}

/* The text's words with spaces between, in place of what `words` held. */
static int words_read(const struct Row *row, bool zh, struct Span text, struct Str *words)
{
    str_clear(words);
    return zh ? jieba_cut(row->options->jieba, text.data, text.len, take_zh_word, words)
              : answer_normalize(text.data, text.len, words);
}

static int score_f1(const struct Row *row, bool zh, struct ScoreOutput *out)
{
    struct Str pred = {0}, truth = {0};
    struct Bag bag;
    int status = words_read(row, zh, row->pred, &pred);
    bag_open(&bag);
    if (status == PC_OK) status = bag_fill(&bag, &pred);
    for (int i = 0; i < row->in->n_answers && status == PC_OK; i++) {
        status = words_read(row, zh, span_of(&row->in->answers[i]), &truth);
        if (status == PC_OK) keep_best(out, bag_f1(&bag, &truth));
    }
    bag_close(&bag);
    str_free(&pred);
    str_free(&truth);
    return status;
}

/* ==== ROUGE ==== */

static int score_rouge(const struct Row *row, bool zh, struct ScoreOutput *out)
{
    struct Str pred = {.data = (char *)row->pred.data, .len = row->pred.len}; /* only read */
    return rouge_l_best(zh ? row->options->jieba : NULL, &pred, row->in->answers,
                        row->in->n_answers, &out->score);
}

/* ==== Classes ==== */

/* list.remove: the first that is equal. */
static void remove_first(struct Span *list, int *n, struct Span what)
{
    int i = 0;
    while (!equal(list[i], what)) i++;
    memmove(list + i, list + i + 1, (size_t)(*n - i - 1) * sizeof *list);
    --*n;
}

/* The original removes from the list that its loop walks over, so the one behind a removed class is
 * passed over, and stays. */
static double class_score(struct Span *found, int n, struct Span truth)
{
    for (int i = 0; i < n; i++) {
        struct Span name = found[i];
        if (contains(truth, name) && !equal(name, truth)) remove_first(found, &n, name);
    }
    for (int i = 0; i < n; i++)
        if (equal(found[i], truth)) return 1.0 / n;
    return 0;
}

static int score_classes(const struct Row *row, struct ScoreOutput *out)
{
    const struct ScoreInput *in = row->in;
    if (!in->all_classes)
        return err_set(PC_EFORMAT,
                       "the row has no list of classes (all_classes), which its task needs");
    struct Span *names = mem_alloc((size_t)in->n_classes, 2 * sizeof *names), *list;
    if (!names) return PC_ENOMEM;
    list = names + in->n_classes;
    int n = 0;
    for (int i = 0; i < in->n_classes; i++) {
        struct Span name = span_of(&in->all_classes[i]);
        if (contains(row->pred, name)) names[n++] = name;
    }
    out->unparsed = n == 0;
    for (int i = 0; i < in->n_answers; i++) {
        memcpy(list, names, (size_t)n * sizeof *names);
        keep_best(out, class_score(list, n, span_of(&in->answers[i])));
    }
    mem_free(names);
    return PC_OK;
}

/* ==== Numbers ==== */

/* Share of the numbers in the prediction that are spelt as `truth`. */
static void score_numbers(const struct Row *row, struct Span truth, struct ScoreOutput *out)
{
    size_t at = 0, n = 0, right = 0;
    struct Span number;
    while (py_digits_next(row->pred.data, row->pred.len, &at, &number)) {
        right += equal(number, truth);
        n++;
    }
    out->unparsed = n == 0;
    if (n) keep_best(out, (double)right / (double)n);
}

/* The digits behind the first `mark` of the answer that has some. */
static bool marked_number(struct Span text, struct Span mark, struct Span *number)
{
    while (text.len >= mark.len) {
        const char *hit = memmem(text.data, text.len, mark.data, mark.len);
        if (!hit) return false;
        size_t from = (size_t)(hit - text.data) + mark.len, at = from;
        if (py_digits_next(text.data, text.len, &at, number) && number->data == text.data + from)
            return true;
        text = (struct Span){hit + 1, text.len - (size_t)(hit + 1 - text.data)};
    }
    return false;
}

static int score_retrieval(const struct Row *row, struct Span mark, struct ScoreOutput *out)
{
    for (int i = 0; i < row->in->n_answers; i++) {
        struct Span answer = span_of(&row->in->answers[i]), number;
        if (!marked_number(answer, mark, &number))
            return err_set(PC_EFORMAT, "the answer '%.*s' names no paragraph ('%s' and a number)",
                           (int)(answer.len < 60 ? answer.len : 60), answer.data, mark.data);
        score_numbers(row, number, out);
    }
    return PC_OK;
}

static void score_count(const struct Row *row, struct ScoreOutput *out)
{
    for (int i = 0; i < row->in->n_answers; i++)
        score_numbers(row, span_of(&row->in->answers[i]), out);
}

/* ==== Code ==== */

static struct Span skip_feeds(struct Span text)
{
    while (text.len && text.data[0] == '\n') text = (struct Span){text.data + 1, text.len - 1};
    return text;
}

/* The first line without a comment or a fence; empty when there is none. */
static struct Span code_line(struct Span text)
{
    struct Span line;
    text = skip_feeds(text);
    for (size_t at = 0; py_split_at(text.data, text.len, '\n', &at, &line);)
        if (!line.len || (!memchr(line.data, '`', line.len) && !memchr(line.data, '#', line.len) &&
                          !memmem(line.data, line.len, "//", 2)))
            return line;
    return (struct Span){"", 0};
}

static int score_code(const struct Row *row, struct ScoreOutput *out)
{
    struct Span line = code_line(row->pred);
    out->unparsed = line.len == 0;
    for (int i = 0; i < row->in->n_answers; i++) {
        int percent;
        bool indel = row->options->code_sim == CODE_SIM_INDEL;
        TRY(fuzz_ratio(line, span_of(&row->in->answers[i]), indel, &percent));
        keep_best(out, percent / 100.0);
    }
    return PC_OK;
}

/* ==== Tasks ==== */

/* The task of a name, without its _e; NULL when there is none. */
static const struct Task *task_find(const char *name)
{
    size_t len = strlen(name);
    if (len > 2 && strcmp(name + len - 2, "_e") == 0) len -= 2;
    for (int i = 0; i < N_TASKS; i++)
        if (strlen(TASKS[i].name) == len && memcmp(TASKS[i].name, name, len) == 0) return &TASKS[i];
    return NULL;
}

static int unknown_task(const char *name)
{
    return err_set(PC_ECONFIG, "LongBench has no task '%.64s'; did you mean '%s'?", name,
                   word_nearest(name, TASKS, N_TASKS, sizeof TASKS[0]));
}

static int score_row(enum Metric metric, const struct Row *row, struct ScoreOutput *out)
{
    static const struct Span PARAGRAPH = {"Paragraph ", 10}, PARAGRAPH_ZH = {"段落", 6};
    switch (metric) {
    case QA_F1:
        return score_f1(row, false, out);
    case QA_F1_ZH:
        return score_f1(row, true, out);
    case ROUGE:
        return score_rouge(row, false, out);
    case ROUGE_ZH:
        return score_rouge(row, true, out);
    case CLASSIFICATION:
        return score_classes(row, out);
    case RETRIEVAL:
        return score_retrieval(row, PARAGRAPH, out);
    case RETRIEVAL_ZH:
        return score_retrieval(row, PARAGRAPH_ZH, out);
    case COUNT:
        score_count(row, out);
        return PC_OK;
    case CODE_SIM:
        return score_code(row, out);
    }
    return err_set(PC_EINTERNAL, "no such metric");
}

int longbench_score(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                    struct ScoreOutput *out)
{
    *out = (struct ScoreOutput){0};
    const struct Task *t = task_find(task);
    if (!t) return unknown_task(task);
    if ((t->metric == QA_F1_ZH || t->metric == ROUGE_ZH) && !o->jieba)
        return err_set(PC_ECONFIG,
                       "%s counts Chinese words and needs jieba's dictionary: run `tests/fetch.sh "
                       "jieba`, or set PCOMP_JIEBA to its folder",
                       t->name);
    struct Row row = {{in->pred ? in->pred : "", in->pred_len}, in, o};
    if (t->first_line) {
        struct Span text = skip_feeds(row.pred);
        size_t at = 0;
        py_split_at(text.data, text.len, '\n', &at, &row.pred);
    }
    return score_row(t->metric, &row, out);
}

const char *longbench_metric(const char *task, const struct ScoreOptions *o)
{
    const struct Task *t = task_find(task);
    if (!t) return NULL;
    switch (t->metric) {
    case QA_F1:
        return "qa_f1";
    case QA_F1_ZH:
        return "qa_f1_zh";
    case ROUGE:
        return "rouge";
    case ROUGE_ZH:
        return "rouge_zh";
    case CLASSIFICATION:
        return "classification";
    case RETRIEVAL:
        return "retrieval";
    case RETRIEVAL_ZH:
        return "retrieval_zh";
    case COUNT:
        return "count";
    case CODE_SIM:
        return o && o->code_sim == CODE_SIM_INDEL ? "code_sim=indel" : "code_sim=difflib";
    }
    return NULL;
}

/* score_tool.c - the scorers and text rules on standard input, for tests/quality/scores_oracle.py.
 *
 *   score_tool NAME < rows.jsonl > results
 *
 * Rows are LongBench's prediction lines. NAME is a task of LongBench ("lcc:indel" for the other ratio), of
 * RULER ("ruler:vt"), or a function: rouge_lsum, difflib, indel give a number for pred and first answer; lower,
 * upper, strip, split, chars, digits, int, normalize, normalize_zh give a text for pred, in hexadecimal; round2,
 * np_round2, np_mean take the answers as numbers. One line for each row; "error" where there is none.
 */
#include "eval/answers.h"
#include "eval/difflib.h"
#include "eval/jieba.h"
#include "eval/preds.h"
#include "eval/pytext.h"
#include "eval/rouge.h"
#include "eval/score.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct Jieba *jieba;

/* ==== Numbers ==== */

static int score_task(const char *name, const struct ScoreInput *in, double *score)
{
    struct ScoreOptions o = {.jieba = jieba};
    struct ScoreOutput out = {0};
    int status;
    if (strcmp(name, "lcc:indel") == 0) {
        o.code_sim = CODE_SIM_INDEL;
        name = "lcc";
    }
    status = strncmp(name, "ruler:", 6) == 0 ? ruler_score(name + 6, &o, in, &out)
                                             : longbench_score(name, &o, in, &out);
    *score = out.score;
    return status;
}

static int number_of(const char *name, const struct ScoreInput *in, double *out)
{
    struct Span a = {in->pred, in->pred_len};
    struct Span b = {in->n_answers ? in->answers[0].data : "",
                     in->n_answers ? in->answers[0].len : 0};
    double list[4096];
    int n = in->n_answers < 4096 ? in->n_answers : 4096;
    for (int i = 0; i < n; i++) list[i] = strtod(in->answers[i].data, NULL);
    if (strcmp(name, "difflib") == 0) return difflib_ratio(a, b, out);
    if (strcmp(name, "indel") == 0) return indel_ratio(a, b, out);
    if (strcmp(name, "rouge_lsum") == 0) {
        *out = rouge_lsum(a.data, a.len, b.data, b.len);
        return *out < 0 ? PC_ENOMEM : PC_OK;
    }
    if (strcmp(name, "round2") == 0) {
        *out = py_round2(list[0]);
        return PC_OK;
    }
    if (strcmp(name, "np_round2") == 0) {
        *out = np_round2(list[0]);
        return PC_OK;
    }
    if (strcmp(name, "np_mean") == 0) {
        *out = np_mean(list, (size_t)n);
        return PC_OK;
    }
    return score_task(name, in, out);
}

/* ==== Texts ==== */

static int put_piece(struct Span piece, struct Str *out)
{
    TRY(str_append(out, piece.data, piece.len));
    return str_append(out, "|", 1);
}

static int put_words(const char *name, const char *text, size_t len, struct Str *out)
{
    struct Span piece;
    size_t at = 0;
    if (strcmp(name, "digits") == 0) {
        while (py_digits_next(text, len, &at, &piece)) TRY(put_piece(piece, out));
        return PC_OK;
    }
    if (strcmp(name, "split") == 0) {
        while (py_split_next(text, len, &at, &piece)) TRY(put_piece(piece, out));
        return PC_OK;
    }
    for (size_t from = 0; from < len; from = at) {
        py_next(text, len, &at);
        TRY(put_piece((struct Span){text + from, at - from}, out));
    }
    return PC_OK;
}

static const struct TextRule {
    const char *name;
    int (*run)(const char *text, size_t len, struct Str *out);
} RULES[] = {
    {"lower", py_lower},
    {"upper", py_upper},
    {"int", py_int},
    {"normalize", answer_normalize},
    {"normalize_zh", answer_normalize_zh},
};

/* 0: no such rule. */
static int text_of(const char *name, const struct ScoreInput *in, struct Str *out)
{
    if (strcmp(name, "strip") == 0) {
        struct Span s = py_strip(in->pred, in->pred_len);
        TRY(str_append(out, s.data, s.len));
        return 1;
    }
    if (strcmp(name, "split") == 0 || strcmp(name, "chars") == 0 || strcmp(name, "digits") == 0) {
        TRY(put_words(name, in->pred, in->pred_len, out));
        return 1;
    }
    for (size_t i = 0; i < sizeof RULES / sizeof RULES[0]; i++) {
        if (strcmp(name, RULES[i].name) != 0) continue;
        TRY(RULES[i].run(in->pred, in->pred_len, out));
        return 1;
    }
    return 0;
}

static void show_row(const char *name, const struct PredRow *row)
{
    struct ScoreInput in = {row->pred.data, row->pred.len, row->answers,
                            row->n_answers, row->classes,  row->n_classes};
    struct Str text = {0};
    double number;
    int status = text_of(name, &in, &text);
    if (status > 0) {
        for (size_t i = 0; i < text.len; i++) printf("%02x", (unsigned char)text.data[i]);
        putchar('\n');
    } else if (status == 0 && number_of(name, &in, &number) == PC_OK) {
        printf("%.17g\n", number);
    } else {
        puts("error");
    }
    str_free(&text);
}

int main(int argc, char **argv)
{
    struct Str in = {0};
    struct Preds preds = {0};
    const char *name = argc > 1 ? argv[1] : "";
    int status = file_read("-", &in);
    if (status == PC_OK && (strstr(name, "_zh") || strcmp(name, "dureader") == 0))
        status = strcmp(name, "normalize_zh") == 0 ? PC_OK : jieba_open(NULL, &jieba);
    if (status == PC_OK) status = preds_parse(in.data ? in.data : "", in.len, &preds);
    if (status < 0) fprintf(stderr, "score_tool: %s\n", err_text());
    for (size_t i = 0; i < preds.n_bad && i < PRED_ERRORS_KEPT; i++)
        fprintf(stderr, "score_tool: line %zu, byte %zu: %s\n", preds.errors[i].line,
                preds.errors[i].byte, preds.errors[i].why);
    for (size_t i = 0; i < preds.n; i++) show_row(name, &preds.rows[i]);
    preds_free(&preds);
    jieba_close(jieba);
    str_free(&in);
    return status < 0;
}

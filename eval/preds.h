/* preds.h - files of predictions, one JSON object a line, in the form of either benchmark:
 *
 *   LongBench      {"pred", "answers": […], "all_classes": […]|null|"['…']", "length"}
 *   InfiniteBench  {"id", "prediction"|"pred", "ground_truth"|"label"}
 *
 * The truth may be a text, a number, or a list of those, also nested (InfiniteBench's lists of numbers
 * come as [1, 2] and as [[1, 2]]): each text and each number, in order, is one answer; a number is the
 * text that the file has for it. all_classes may also be a text that holds a Python list.
 */
#ifndef PCOMP_PREDS_H
#define PCOMP_PREDS_H

#include "base.h"

/* All texts live in their struct Preds. */
struct PredRow {
    size_t line; /* of the file, from 1 */
    struct Str pred;
    const struct Str *answers; /* [n_answers] */
    const struct Str *classes; /* [n_classes]; NULL: the row has none */
    int n_answers, n_classes;
    double length; /* negative: not said */
    /* Where the lists begin in Preds.texts, until they have come to rest. */
    size_t answers_from, classes_from;
    bool has_classes;
};

/* A line that gave no row. */
struct PredError {
    size_t line, byte; /* both from 1 */
    char why[96];
};

enum { PRED_ERRORS_KEPT = 16 };

struct Preds {
    struct PredRow *rows;
    struct PredError errors[PRED_ERRORS_KEPT]; /* the first of n_bad */
    size_t n, n_bad;
    /* What holds the texts. */
    char *room;
    struct Str *texts;
    size_t n_texts, cap_texts, cap_rows;
};

/* Reads a whole file or text. Bad lines are counted, not an error; blank lines are passed over.
 * preds_free always. */
int preds_read(const char *path, struct Preds *out);
int preds_parse(const char *text, size_t len, struct Preds *out);
void preds_free(struct Preds *p);

#endif

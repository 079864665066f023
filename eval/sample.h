/* sample.h - one row of a benchmark, wherever it came from: a data set's file or a generator. */
#ifndef PCOMP_SAMPLE_H
#define PCOMP_SAMPLE_H

#include "base.h"

/* All texts are owned: sample_free. Unused ones are empty. */
struct Sample {
    struct Str id;
    struct Str context;  /* the long text */
    struct Str input;    /* the user's own words: the question */
    struct Str *answers; /* [n_answers] */
    int n_answers;
    struct Str *all_classes; /* [n_classes] trec, lsht: the labels */
    int n_classes;
    struct Str *options; /* [n_options] multiple choice */
    int n_options;
    int length; /* as the data set says (words or characters); 0: not said */
    /* Generated rows know more. */
    int target_tokens; /* length asked for, in the model's tokens; 0: not generated */
    double depth;      /* 0..1 where the (first) needle stands; negative: none */
    size_t *answer_at; /* [n_answer_at] byte offsets in context where what is needed stands */
    int n_answer_at;
};

void sample_free(struct Sample *s);
/* Appends a copy of text to a list of texts (answers, all_classes, options). */
int texts_push(struct Str **list, int *n, const char *text, size_t len);

#endif

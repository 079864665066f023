/* ruler_score.c - RULER's two scorers: all answers as substrings, or one of them. See score.h */
#include "score.h"

#include "pytext.h"

#include <string.h>

static const struct Task {
    const char *name;
    bool part; /* one answer is enough */
} TASKS[] = {
    {"niah_single_1", false},
    {"niah_single_2", false},
    {"niah_single_3", false},
    {"niah_multikey_1", false},
    {"niah_multikey_2", false},
    {"niah_multikey_3", false},
    {"niah_multivalue", false},
    {"niah_multiquery", false},
    {"vt", false},
    {"cwe", false},
    {"fwe", false},
    {"qa_1", true},
    {"qa_2", true},
};

enum { N_TASKS = sizeof TASKS / sizeof TASKS[0] };

static const struct Task *task_find(const char *name)
{
    for (int i = 0; i < N_TASKS; i++)
        if (strcmp(TASKS[i].name, name) == 0) return &TASKS[i];
    return NULL;
}

static int unknown_task(const char *name)
{
    return err_set(PC_ECONFIG, "RULER has no task '%.64s'; did you mean '%s'?", name,
                   word_nearest(name, TASKS, N_TASKS, sizeof TASKS[0]));
}

/* The prediction as the original prepares it: control characters are line feeds, the ends are stripped. */
static int prepare(const struct ScoreInput *in, struct Str *out)
{
    struct Str text = {0};
    struct Span s = py_strip(in->pred ? in->pred : "", in->pred_len);
    int status = str_append(&text, s.data, s.len);
    if (status == PC_OK && text.len) {
        for (size_t i = 0; i < text.len; i++)
            if ((unsigned char)text.data[i] < 0x20) text.data[i] = '\n';
        s = py_strip(text.data, text.len);
        status = py_lower(s.data, s.len, out);
    }
    str_free(&text);
    return status;
}

static int find_answer(const struct Str *pred, const struct Str *answer, bool *found)
{
    struct Str low = {0};
    int status = py_lower(answer->data ? answer->data : "", answer->len, &low);
    *found = !low.len || (pred->len && memmem(pred->data, pred->len, low.data, low.len));
    str_free(&low);
    return status;
}

int ruler_score(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                struct ScoreOutput *out)
{
    (void)o;
    *out = (struct ScoreOutput){0};
    const struct Task *t = task_find(task);
    if (!t) return unknown_task(task);
    if (in->n_answers <= 0) return err_set(PC_EFORMAT, "the row has no answer to look for");
    struct Str pred = {0};
    int n = 0, status = prepare(in, &pred);
    for (int i = 0; i < in->n_answers && status == PC_OK; i++) {
        bool found = false;
        status = find_answer(&pred, &in->answers[i], &found);
        n += found;
    }
    str_free(&pred);
    out->score = t->part ? n > 0 : (double)n / in->n_answers;
    return status;
}

const char *ruler_metric(const char *task)
{
    const struct Task *t = task_find(task);
    return !t ? NULL : t->part ? "string_match_part" : "string_match_all";
}

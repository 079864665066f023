/* tasks.h - what a benchmark says about its tasks: prompt, length of the answer, chat or not (configs/tasks/). */
#ifndef PCOMP_TASKS_H
#define PCOMP_TASKS_H

#include "sample.h"

struct Task {
    char name[48], group[32];
    char *before,
        *after; /* the prompt is before, context, after; {input} and other fields stand in both */
    char *answer_prefix; /* put into the model's mouth, with fields; "" for none */
    char *stop_text;     /* "" or the text whose last token ends the answer too */
    int max_tokens;
    int official_rows; /* rows of the published set; 0: not known, or made here */
    bool chat;         /* wrapped by the model's chat template */
    bool covers;       /* asks about the whole text: all chunks are kept, at a small cap */
};

struct TaskSet {
    char benchmark[32];
    int truncate; /* tokens that the official baseline's prompt may have; 0: the model's window less reserve */
    int reserve;        /* tokens of the window that the official baseline leaves free */
    struct Task *tasks; /* [n] */
    int n;
};

/* Reads configs/tasks/<benchmark>.json with the changes of a profile ("official", "parallelcomp").
 * The folder: $PCOMP_TASKS, else configs/tasks beside the binary's build folder, else
 * ../share/pcomp/configs/tasks beside its folder. task_set_close always. */
int task_set_open(const char *benchmark, const char *profile, struct TaskSet *out);
int task_set_parse(const char *json, size_t len, const char *what, const char *profile,
                   struct TaskSet *out);
void task_set_close(struct TaskSet *set);
/* NULL and an error that names the nearest task when there is none of that name. */
const struct Task *task_find(const struct TaskSet *set, const char *name);

/* A task's prompt for one sample. */
struct TaskPrompt {
    struct Str before, context, after, answer_prefix;
    size_t question_at, question_len; /* the user's own words in after; len 0: there are none */
};

/* Puts the sample's fields into the texts: {input}, {n_answers}, {option_a} to {option_d}, {func} and {func_call}
 * (of "func_12(3)" in the input), {find_prefix} (of "The smallest number of …"). A space that ends
 * `before` goes to the front of the context, where it belongs to the first word's token; *moved is
 * 1 then. PC_EFORMAT: a field that the sample has not. task_prompt_free always. */
int task_prompt(const struct Task *task, const struct Sample *s, struct TaskPrompt *out,
                int *moved);
void task_prompt_free(struct TaskPrompt *p);

#endif

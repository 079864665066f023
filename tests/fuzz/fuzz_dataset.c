/* fuzz_dataset.c - a data set's row and a task file of any bytes: values or an error, nothing kept. */
#include "eval/dataset.h"
#include "eval/tasks.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_row(const char *text, size_t size)
{
    struct Sample s;
    int status = row_parse(text, size, "longbook_choice_eng", &s);
    if (status == PC_OK && (s.context.len == 0 || s.n_answers == 0)) abort();
    if (status != PC_OK && status != PC_EFORMAT) abort();
    sample_free(&s);
}

static void try_tasks(const char *text, size_t size)
{
    struct TaskSet set;
    struct Sample s = {0};
    int moved;
    if (str_appendf(&s.context, "c") < 0 || str_appendf(&s.input, "func_1(2) The x of") < 0) abort();
    int status = task_set_parse(text, size, "fuzz", "official", &set);
    for (int i = 0; status == PC_OK && i < set.n; i++) {
        struct TaskPrompt p;
        if (task_prompt(&set.tasks[i], &s, &p, &moved) == PC_OK &&
            p.question_at + p.question_len > p.after.len)
            abort();
        task_prompt_free(&p);
    }
    task_set_close(&set);
    sample_free(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_row((const char *)data, size);
    try_tasks((const char *)data, size);
    if (mem_in_use() != 0) abort();
    return 0;
}

/* runs_line.h - inside runs*.c: one line of a run's file, and the list of problems. */
#ifndef PCOMP_RUNS_LINE_H
#define PCOMP_RUNS_LINE_H

#include "runs.h"

/* Where a line stands, for messages. */
struct LineAt {
    const char *file; /* as shown: "method/task.jsonl" */
    long number;      /* from 1 */
    bool torn;        /* the last one, without its line feed */
};

/* Appends the line's sample to the method, or a problem to the run. Fails for want of memory only. */
int run_take_line(struct Run *run, struct RunMethod *method, const struct LineAt *at,
                  const char *line, size_t len);
int run_problem(struct Run *run, const char *file, long line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The task's index, added when it is new; -1 when there are too many. */
int run_task(struct Run *run, const char *name, int *out);

#endif

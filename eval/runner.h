/* runner.h - the rows of a benchmark through every method, into a run's folder. */
#ifndef PCOMP_RUNNER_H
#define PCOMP_RUNNER_H

#include "benchmark.h"
#include "progress.h"

enum { TASKS_MAX = 256 };

/* A finished line on its way to its file. */
struct Delivery {
    int arm, task;
    uint64_t key;
    bool failed;
    cJSON *line; /* taken over */
};

struct Runner {
    struct EvalCli *eval;
    const struct Benchmark *bench;
    struct TaskSet set;
    const struct Task *tasks[TASKS_MAX]; /* [n_tasks] those that run */
    int n_tasks;
    struct Arm arms[ARMS_MAX];
    int n_arms;
    uint64_t arm_key[ARMS_MAX]; /* of model, settings, prompts and profile */
    const char *profile;
    struct Engine *engine;
    struct ScoreOptions score;
    struct Source source;
    long rows[TASKS_MAX]; /* [n_tasks] of the source, before split and limit */
    uint64_t data_hash;
    int split_at, split_of; /* rows whose number modulo split_of is split_at */
    struct Results *files;  /* [n_arms, n_tasks] */
    struct Results *errors; /* [n_arms] */
    struct Str *paths;      /* [n_arms, n_tasks + 1] their names */
    struct ProgressView view;
    int n_done, n_skipped, n_failed;
    /* Hands a line on: to its file, or to the process that owns the files. */
    int (*deliver)(struct Runner *r, const struct Delivery *d);
    void *deliver_to;
    /* Whether this process takes the row of this number; NULL: all. */
    bool (*mine)(struct Runner *r, long row);
};

/* Goes through all rows; again when another process that shares them died at one. PC_EINTR when stopped. */
int runner_rows(struct Runner *r);
/* Writes a line to its file and counts it. */
int runner_store(struct Runner *r, const struct Delivery *d);
/* The same as runner_rows() by several processes; this one writes. */
int runner_workers(struct Runner *r, int n_workers);

#endif

/* benchmark.h - one run of a benchmark: tasks, rows, methods, and the folder its predictions go to. */
#ifndef PCOMP_BENCHMARK_H
#define PCOMP_BENCHMARK_H

#include "arms.h"
#include "dataset.h"
#include "eval.h"
#include "results.h"
#include "score.h"
#include "tasks.h"
#include "tokenizer.h"

#include <cjson/cJSON.h>

/* What differs between benchmarks. */
struct Benchmark {
    const char *name;      /* "longbench", "longbench-e", "infinitebench", "ruler", "niah" */
    const char *task_file; /* configs/tasks/<task_file>.json */
    const char *scorer;    /* "longbench@v1", … */
    bool infinite_form;    /* predictions as InfiniteBench writes them */
    int (*score)(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                 struct ScoreOutput *out);
    const char *(*metric)(const char *task, const struct ScoreOptions *o);
};

/* Where rows come from: files or a generator. Rows are handed on in a fixed order. */
struct Source {
    void *self;
    bool (*has)(void *self, const char *task);
    /* Rows of a task; hash takes in what they are. */
    int (*count)(void *self, const char *task, long *rows, uint64_t *hash);
    int (*each)(void *self, const struct Tokenizer *tok, const char *task,
                int (*row)(void *user, struct DataRow *row), void *user);
    const char *name; /* for the records: the folder or file, or what was generated */
};

/* One row with one method, scored; what becomes a line of predictions. */
struct Attempt {
    const struct Benchmark *bench;
    const struct Task *task;
    const struct Sample *sample;
    const struct Arm *arm;
    struct Cli *cli;          /* its --store */
    struct Settings settings; /* as the row was run */
    struct Result result;
    struct TaskPrompt prompt;
    int moved;      /* bytes by which the context was moved behind before's last space */
    int cut_tokens; /* prompt tokens that the official middle truncation left out */
    struct ScoreOutput score;
};

/* attempt.c: runs and scores one row; attempt_free always. */
int attempt_run(struct Attempt *a, struct Engine *engine, const struct TaskSet *set,
                const struct ScoreOptions *options, struct Request *request);
void attempt_free(struct Attempt *a);
/* The row's identity: hash of all that is asked, on top of a key of settings. */
uint64_t sample_key(const struct Sample *s, const struct Task *task, uint64_t settings);

/* prediction.c: the line of an attempt, to which results_head() was applied. */
void prediction_fill(cJSON *line, const struct Attempt *a, const struct Engine *engine);

#endif

/* rescore.h - scores a folder of existing prediction files: no model, no data set needed. */
#ifndef PCOMP_RESCORE_H
#define PCOMP_RESCORE_H

#include "score.h"

/* Numbers are percent, as the official scripts compute them and not yet rounded. */
struct TaskScore {
    char task[64];
    const char *metric;
    int n;          /* rows that were scored */
    int n_bad;      /* lines that are no row, and rows that their scorer refuses */
    int n_empty;    /* predictions of white space alone */
    int n_unparsed; /* answers without the form that the scorer looks for */
    double mean;
    double bucket[3]; /* LongBench-E: length under 4000, under 8000, above; NaN for an empty one */
    int bucket_n[3];
    double *scores;    /* [n] 0..1, in the file's order */
    struct Str reason; /* why the whole task was refused; empty: it was not */
};

enum Benchmark { BENCH_LONGBENCH, BENCH_LONGBENCH_E, BENCH_INFINITEBENCH };

struct Rescore {
    enum Benchmark benchmark;
    struct TaskScore *tasks; /* [n_tasks] in the benchmark's order, those that the folder has */
    int n_tasks;
    int n_refused;  /* of them */
    size_t n_bytes; /* of the files read */
    double seconds;
    struct Str
        errors; /* a line for each bad row, the first few of each file: file, line, byte, why */
};

/* Scores every file of the folder that the benchmark knows: <task>.jsonl (also <task>_e.jsonl), or
 * preds_<task>.jsonl. "longbench-e" gives the three lengths too. Without o->model_name, math_calc takes
 * the folder's own name. A task that cannot be scored (no Chinese dictionary) is refused with its reason
 * and the others go on. PC_ECONFIG: unknown benchmark; PC_EIO: no such file. rescore_free always. */
int rescore_folder(const char *benchmark, const char *dir, const struct ScoreOptions *o,
                   struct Rescore *out);
void rescore_free(struct Rescore *r);
/* Whether the folder has a file that needs ScoreOptions.jieba, which is slow to open. */
bool rescore_cuts_chinese(const char *benchmark, const char *dir);

/* Both round as the official scripts do: two decimals. */
int rescore_text(const struct Rescore *r, struct Str *out);
int rescore_json(const struct Rescore *r, const char *dir, struct Str *out);

/* A score as it is published; E's means are numpy's, and round apart. */
double rescore_round(const struct Rescore *r, double percent);

#endif

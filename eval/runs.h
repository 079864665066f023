/* runs.h - what evaluation runs left on the disk, read back for reports.
 *
 * A run is a folder: run.json tells what was run, RUN/<method>/<task>.jsonl holds a line a sample
 * (preds_<task>.jsonl for InfiniteBench). Every key but the score may be missing: unknown numbers are
 * NAN, unknown texts "". What cannot be read becomes a problem with its file and line and never stops
 * the rest.
 */
#ifndef PCOMP_RUNS_H
#define PCOMP_RUNS_H

#include "base.h"

enum {
    RUNS_LINE_MAX = 10 << 20, /* bytes of a line, and of run.json */
    RUNS_DEPTH_MAX = 32,      /* nesting of its JSON */
    RUNS_TASKS_MAX = 256,
    RUNS_METHODS_MAX = 64,
    RUNS_PROBLEMS_MAX = 200, /* kept with their text; the others are counted */
};

enum SampleState { SAMPLE_SCORED, SAMPLE_NO_SCORE, SAMPLE_FAILED };

/* One line. Offsets lead into the method's pools: run_text(), RunMethod.heads. */
struct RunSample {
    size_t id, key, error; /* error: "code: message", 0 when there is none */
    int task;              /* in Run.tasks */
    enum SampleState state;
    double score;            /* 0..1; NAN unless SAMPLE_SCORED */
    bool empty, unparsed;    /* the answer: no text at all; not of the form that the scorer reads */
    bool cut;                /* the answer ended at the limit of new tokens */
    double truncated;        /* context tokens left out before the run */
    double length;           /* as the data set says: words or characters */
    double n_context;        /* tokens */
    double target_tokens;    /* length asked for, generated rows only */
    double depth;            /* 0..1, where the needle stands */
    double n_chunks, n_kept; /* chunks made and kept */
    double answer_chunk;     /* first chunk that holds the answer, from 0 */
    int n_answer, n_found;   /* chunks that hold the answer, and those of them that were kept */
    double answer_rank;      /* place of the worst of them by score, 1 is the best */
    double kv_in, kv_kept;   /* entries, all layers and heads */
    size_t heads;            /* [n_layers, n_heads] entries kept, in RunMethod.heads */
    int n_layers, n_heads;   /* 0: not told */
    double prefill, total;   /* seconds */
    double peak_bytes;
};

struct RunSetting {
    struct Str name, value; /* value as JSON, strings without quotes */
};

struct RunMethod {
    struct Str label;
    struct RunSetting *settings; /* [n_settings] */
    int n_settings;
    struct RunSample
        *samples; /* [n_samples] one for each key: the last that is no error, else the last */
    int n_samples, cap_samples;
    int n_replaced;   /* lines that another of the same key took the place of */
    struct Str texts; /* pool; begins with a NUL, so that offset 0 is "" */
    double *heads;    /* pool [n_heads] */
    size_t n_heads, cap_heads;
};

struct RunTask {
    struct Str name, metric;
    double rows, official_rows; /* NAN when not told */
};

enum RunFact {
    FACT_BENCHMARK,
    FACT_PROFILE,
    FACT_SCORER,
    FACT_VERSION,
    FACT_COMMIT,
    FACT_DEVICE,
    FACT_MODEL,
    FACT_MODEL_HASH,
    FACT_DATA,
    FACT_DATA_HASH,
    N_FACTS
};

struct RunProblem {
    struct Str file, what;
    long line; /* 0: the file as a whole */
};

struct Run {
    struct Str name; /* the folder's own name */
    struct Str facts[N_FACTS];
    struct RunTask *tasks; /* [n_tasks] in run.json's order, then as met */
    int n_tasks;
    struct RunMethod *methods; /* [n_methods] in run.json's order, then by name */
    int n_methods;
    struct RunProblem *problems; /* [n_problems] */
    int n_problems;
    long n_problems_all; /* also those beyond RUNS_PROBLEMS_MAX */
};

/* "Model", "Data hash", … */
extern const char *const RUN_FACT_NAMES[N_FACTS];

/* Reads a run's folder. PC_EIO: it is no folder. PC_EFORMAT: nothing of a run is in it. run_free always. */
int run_read(const char *folder, struct Run *out);
void run_free(struct Run *run);

/* The parts, for tests: run.json's text; a method; the lines of one file (any bytes); the end of a
 * method's lines, where repeated keys are settled. */
int run_read_head(struct Run *run, const char *text, size_t len);
int run_add_method(struct Run *run, const char *label, struct RunMethod **out);
int run_read_lines(struct Run *run, struct RunMethod *method, const char *file, const char *text,
                   size_t len);
int run_settle(struct RunMethod *method);

const char *run_text(const struct RunMethod *method, size_t at);

#endif

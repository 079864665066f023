/* report.h - runs side by side: all numbers of a report, and the three forms it is written in.
 *
 * A column is one method of one run. A task is known by its benchmark and name; runs of the same
 * benchmark share it. All numbers are computed once by report_make(); the writers only draw.
 * Scores are 0..1 here and shown times 100.
 */
#ifndef PCOMP_REPORT_H
#define PCOMP_REPORT_H

#include "runs.h"
#include "stats.h"

enum {
    REPORT_BINS = 12,    /* lengths in a curve or a heat map */
    REPORT_DEPTHS = 21,  /* rows of a heat map */
    REPORT_TENTHS = 10,  /* places of the answer in the text */
    REPORT_RANKS = 5,    /* answer's chunk among the best 1, 2, 4, 8, 16 */
    REPORT_GROUPS = 6,   /* of LongBench */
    REPORT_BUCKETS = 3,  /* of LongBench-E */
    REPORT_COLUMNS = 64, /* methods side by side */
};

struct Column {
    const struct Run *run;
    const struct RunMethod *method;
    struct Str label; /* the method's, with the run's name when several runs are shown */
};

struct ReportTask {
    struct Str benchmark, name, metric;
    double official; /* rows of the official set; NAN when there is none */
    int group;       /* of LongBench's six; -1 */
    int n_rows;      /* most rows that a column has */
};

/* Rows by what became of them. */
struct Shares {
    int rows, scored, failed, no_score;
    int empty, unparsed, cut, truncated; /* of those that did not fail */
};

/* NAN where not told. */
struct Cost {
    double total_median, total_p90; /* seconds */
    double prefill_rate;            /* median tokens a second */
    double peak_median, peak_most;  /* bytes */
    double kv_in, kv_kept;          /* mean entries a row */
    int n_timed;
};

/* What became of the chunk with the answer, over rows that tell where it lies. */
struct Hits {
    int n, all, any; /* rows; those whose answer's chunks were all kept, or one of them */
    int n_ranked,
        within[REPORT_RANKS]; /* rows by the rank of the chunk, 1, 2, 4, 8, 16 or better */
    int tenth_n[REPORT_TENTHS], tenth_all[REPORT_TENTHS];
    int n_chunked;     /* rows of more than one chunk */
    double kept_share; /* mean share of the chunks that was kept; NAN */
};

struct Cell {
    const struct RunSample **rows; /* [shares.rows] sorted by id */
    struct Shares shares;
    struct Estimate score;
    struct Cost cost;
    struct Hits hits;
    struct Difference difference; /* to the baseline; mean.n 0: no common rows */
};

/* A set of tasks under one name: a group of LongBench, or all tasks of a benchmark. */
struct Group {
    const char *name;      /* "single-document QA" */
    const char *benchmark; /* borrowed */
    int n_tasks, n_set;    /* tasks present, tasks in the official group (0: not known) */
    bool complete;         /* every official row of every task has a score in every column */
    struct Estimate *mean; /* [n_columns] mean of the tasks' means */
    int *n_tasks_in;       /* [n_columns] tasks with a score */
};

/* Scores by length: of one task, or of all tasks of a benchmark together. */
struct Curve {
    const char *benchmark; /* borrowed */
    int task;              /* -1: all */
    bool by_target;        /* lengths asked for; else ranges of the texts' own */
    int n_bins;
    double low[REPORT_BINS], high[REPORT_BINS]; /* tokens, inclusive */
    struct Estimate *points;                    /* [n_bins, n_columns] */
    double *seconds;                            /* [n_bins, n_columns] median total, NAN */
};

struct Heat {
    int task;
    int n_lengths, n_depths;
    double length_low[REPORT_BINS], length_high[REPORT_BINS];
    double depth_low[REPORT_DEPTHS], depth_high[REPORT_DEPTHS];
    double *mean; /* [n_columns, n_depths, n_lengths] NAN: no rows */
    int *n;       /* the same */
};

/* LongBench-E's three lengths. */
struct Bucket {
    struct Estimate cell[REPORT_BUCKETS];
};

struct KvMap {
    int n_layers, n_heads;  /* 0: none told */
    int n_rows, n_left_out; /* rows in the mean, and rows of another shape */
    double *mean;           /* [n_layers, n_heads] entries kept */
    double share_of; /* mean entries a head before eviction; NAN when not told or of another unit */
};

struct Report {
    const struct Run *runs; /* borrowed */
    int n_runs;
    struct Column *columns;
    int n_columns, baseline;
    struct ReportTask *tasks;
    int n_tasks;
    struct Cell *cells; /* [n_tasks, n_columns] */
    struct Cell *all;   /* [n_columns] all tasks together: shares, cost, hits, mean difference */
    const struct RunSample **pool; /* owns the cells' rows */
    struct Group *groups; /* groups of LongBench, then one for each benchmark ("all tasks") */
    int n_groups;
    struct Curve *curves;
    int n_curves;
    struct Heat *heats;
    int n_heats;
    struct Bucket
        *buckets;     /* [n_tasks + 1, n_columns] last row: mean of tasks; NULL: no LongBench-E */
    struct KvMap *kv; /* [n_columns] */
    bool complete;    /* every benchmark here is a complete official set */
};

/* baseline: a method's label, or NULL for the first. PC_ECONFIG: no such method. The runs must outlive
 * the report. report_free always. */
int report_make(const struct Run *runs, int n_runs, const char *baseline, struct Report *out);
void report_free(struct Report *r);

int report_html(const struct Report *r, struct Str *out);
int report_markdown(const struct Report *r, struct Str *out);
int report_csv(const struct Report *r, struct Str *out);

struct Cell *report_cell(const struct Report *r, int task, int column);

#endif

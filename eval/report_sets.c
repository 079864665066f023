/* report_sets.c - sets of tasks with one mean: LongBench's six groups, LongBench-E's three lengths, and
 * all tasks of a benchmark. Only here is known what a benchmark's whole set is.
 */
#include "report_parts.h"

#include <math.h>
#include <string.h>

/* ==== What is known of the benchmarks ==== */

const char *const LONGBENCH_GROUPS[REPORT_GROUPS] = {
    "Single-document QA", "Multi-document QA", "Summarisation", "Few-shot", "Synthetic", "Code",
};

/* In all 4,750 rows. A run's own word for its official rows does not count when it is less. */
static const struct {
    const char *name;
    int group, rows;
    bool in_e;
} LONGBENCH[] = {
    {"narrativeqa", 0, 200, false},
    {"qasper", 0, 200, true},
    {"multifieldqa_en", 0, 150, true},
    {"multifieldqa_zh", 0, 200, false},
    {"hotpotqa", 1, 200, true},
    {"2wikimqa", 1, 200, true},
    {"musique", 1, 200, false},
    {"dureader", 1, 200, false},
    {"gov_report", 2, 200, true},
    {"qmsum", 2, 200, false},
    {"multi_news", 2, 200, true},
    {"vcsum", 2, 200, false},
    {"trec", 3, 200, true},
    {"triviaqa", 3, 200, true},
    {"samsum", 3, 200, true},
    {"lsht", 3, 200, false},
    {"passage_count", 4, 200, true},
    {"passage_retrieval_en", 4, 200, true},
    {"passage_retrieval_zh", 4, 200, false},
    {"lcc", 5, 500, true},
    {"repobench-p", 5, 500, true},
};

enum { N_LONGBENCH = sizeof LONGBENCH / sizeof LONGBENCH[0] };

bool is_longbench(const char *benchmark)
{
    return strcmp(benchmark, "longbench") == 0 || strcmp(benchmark, "longbench-e") == 0;
}

static int longbench_index(const char *task)
{
    size_t len = strlen(task);
    if (len > 2 && strcmp(task + len - 2, "_e") == 0) len -= 2;
    for (int i = 0; i < N_LONGBENCH; i++)
        if (strlen(LONGBENCH[i].name) == len && memcmp(LONGBENCH[i].name, task, len) == 0) return i;
    return -1;
}

int longbench_group(const char *task)
{
    int i = longbench_index(task);
    return i < 0 ? -1 : LONGBENCH[i].group;
}

/* Tasks of the official set, or of one of its groups (group < 0: all); 0: not known. */
static int official_tasks(const char *benchmark, int group)
{
    int n = 0;
    if (strncmp(benchmark, "infinitebench", 13) == 0) return 12;
    if (strcmp(benchmark, "ruler") == 0) return 13;
    if (!is_longbench(benchmark)) return 0;
    bool e = strcmp(benchmark, "longbench-e") == 0;
    for (int i = 0; i < N_LONGBENCH; i++)
        n += (group < 0 || LONGBENCH[i].group == group) && (!e || LONGBENCH[i].in_e);
    return n;
}

/* ==== Groups ==== */

static bool in_group(const struct Report *r, int task, const char *benchmark, int group)
{
    return strcmp(r->tasks[task].benchmark.data, benchmark) == 0 &&
           (group < 0 || r->tasks[task].group == group);
}

static bool has_benchmark(const struct Report *r, int column, const char *benchmark)
{
    for (int t = 0; t < r->n_tasks; t++)
        if (in_group(r, t, benchmark, -1) && report_cell(r, t, column)->shares.rows) return true;
    return false;
}

/* Rows of the task in its official set, as the run tells and as is known here; 0: neither. */
static double official_rows(const struct ReportTask *task)
{
    int i = strcmp(task->benchmark.data, "longbench") == 0 ? longbench_index(task->name.data) : -1;
    double told = task->official > 0 ? task->official : 0;
    return i >= 0 ? fmax(told, LONGBENCH[i].rows) : told;
}

/* Every official row has a score in every column that has this benchmark. */
static bool task_complete(const struct Report *r, int task)
{
    const struct ReportTask *t = &r->tasks[task];
    double official = official_rows(t);
    if (official == 0 || t->n_rows == 0) return false;
    for (int c = 0; c < r->n_columns; c++)
        if (has_benchmark(r, c, t->benchmark.data) &&
            report_cell(r, task, c)->shares.scored < official)
            return false;
    return true;
}

static int scores_of(const struct Cell *cell, double *room)
{
    int n = 0;
    for (int i = 0; i < cell->shares.rows; i++)
        if (cell->rows[i]->state == SAMPLE_SCORED) room[n++] = cell->rows[i]->score;
    return n;
}

struct Room {
    double *x;             /* as many as the longest column has rows */
    struct Values *groups; /* [n_tasks] */
};

/* A mean of scores: a spread borrowed from other tasks must not lead out of 0 to 1. */
static int mean_of_scores(const struct Values *tasks, int n, struct Estimate *out)
{
    TRY(stats_mean_of_means(tasks, n, out));
    if (out->low < 0) out->low = 0;
    if (out->high > 1) out->high = 1;
    return PC_OK;
}

static int group_mean(const struct Report *r, struct Group *g, int group, int column,
                      const struct Room *room)
{
    int n = 0;
    double *x = room->x;
    for (int t = 0; t < r->n_tasks; t++) {
        if (!in_group(r, t, g->benchmark, group)) continue;
        room->groups[n] = (struct Values){x, scores_of(report_cell(r, t, column), x)};
        x += room->groups[n].n;
        g->n_tasks_in[column] += room->groups[n].n > 0;
        n++;
    }
    if (g->n_tasks_in[column] == 1) {
        for (int i = 0; i < n; i++)
            if (room->groups[i].n) return stats_mean(room->groups[i], &g->mean[column]);
    }
    return mean_of_scores(room->groups, n, &g->mean[column]);
}

static int add_group(struct Report *r, const char *benchmark, int group, const struct Room *room)
{
    struct Group *g = &r->groups[r->n_groups];
    size_t columns = (size_t)r->n_columns;
    *g = (struct Group){.name = group < 0 ? "All tasks" : LONGBENCH_GROUPS[group],
                        .benchmark = benchmark,
                        .n_set = official_tasks(benchmark, group),
                        .complete = true};
    for (int t = 0; t < r->n_tasks; t++) {
        if (!in_group(r, t, benchmark, group)) continue;
        g->n_tasks += r->tasks[t].n_rows > 0;
        g->complete = g->complete && task_complete(r, t);
    }
    if (g->n_tasks == 0 && group >= 0) return PC_OK;
    if (g->n_tasks < g->n_set) g->complete = false;
    r->n_groups++;
    g->mean = mem_alloc(columns, sizeof *g->mean);
    g->n_tasks_in = mem_alloc(columns, sizeof *g->n_tasks_in);
    if (!g->mean || !g->n_tasks_in) return PC_ENOMEM;
    for (int c = 0; c < r->n_columns; c++) TRY(group_mean(r, g, group, c, room));
    return PC_OK;
}

static bool first_of_benchmark(const struct Report *r, int task)
{
    return task == 0 ||
           strcmp(r->tasks[task - 1].benchmark.data, r->tasks[task].benchmark.data) != 0;
}

static int make_groups(struct Report *r, const struct Room *room)
{
    int n_benchmarks = 0;
    for (int t = 0; t < r->n_tasks; t++) n_benchmarks += first_of_benchmark(r, t);
    r->groups = mem_alloc((size_t)n_benchmarks * (REPORT_GROUPS + 1), sizeof *r->groups);
    if (!r->groups) return PC_ENOMEM;
    r->complete = r->n_tasks > 0;
    for (int t = 0; t < r->n_tasks; t++) {
        if (!first_of_benchmark(r, t)) continue;
        const char *benchmark = r->tasks[t].benchmark.data;
        for (int g = is_longbench(benchmark) ? 0 : REPORT_GROUPS; g < REPORT_GROUPS; g++)
            TRY(add_group(r, benchmark, g, room));
        TRY(add_group(r, benchmark, -1, room));
        r->complete = r->complete && r->groups[r->n_groups - 1].complete;
    }
    return PC_OK;
}

/* ==== LongBench-E's lengths ==== */

/* By the data set's own length, as the official script: under 4000, under 8000, above; -1: not told. */
static int bucket_of(const struct RunSample *s)
{
    return isnan(s->length) ? -1 : s->length < 4000 ? 0 : s->length < 8000 ? 1 : 2;
}

static int bucket_scores(const struct Cell *cell, int bucket, double *room)
{
    int n = 0;
    for (int i = 0; i < cell->shares.rows; i++)
        if (cell->rows[i]->state == SAMPLE_SCORED && bucket_of(cell->rows[i]) == bucket)
            room[n++] = cell->rows[i]->score;
    return n;
}

static int fill_bucket(struct Report *r, int column, int bucket, const struct Room *room)
{
    double *x = room->x;
    int n = 0;
    for (int t = 0; t < r->n_tasks; t++) {
        if (strcmp(r->tasks[t].benchmark.data, "longbench-e") != 0) continue;
        struct Values values = {x, bucket_scores(report_cell(r, t, column), bucket, x)};
        TRY(stats_mean(values, &r->buckets[t * r->n_columns + column].cell[bucket]));
        room->groups[n++] = values;
        x += values.n;
    }
    return mean_of_scores(room->groups, n,
                          &r->buckets[r->n_tasks * r->n_columns + column].cell[bucket]);
}

static int make_buckets(struct Report *r, const struct Room *room)
{
    bool any = false;
    for (int t = 0; t < r->n_tasks; t++)
        any |= strcmp(r->tasks[t].benchmark.data, "longbench-e") == 0;
    if (!any) return PC_OK;
    r->buckets = mem_alloc((size_t)(r->n_tasks + 1) * (size_t)r->n_columns, sizeof *r->buckets);
    if (!r->buckets) return PC_ENOMEM;
    for (int c = 0; c < r->n_columns; c++)
        for (int b = 0; b < REPORT_BUCKETS; b++) TRY(fill_bucket(r, c, b, room));
    return PC_OK;
}

int report_sets(struct Report *r)
{
    int most = 0;
    for (int t = 0; t < r->n_tasks; t++) {
        double official = official_rows(&r->tasks[t]);
        r->tasks[t].official = official > 0 ? official : NAN;
    }
    struct Room room = {0};
    for (int c = 0; c < r->n_columns; c++)
        if (r->all[c].shares.rows > most) most = r->all[c].shares.rows;
    int status = values_alloc(most, &room.x);
    room.groups = mem_alloc((size_t)r->n_tasks, sizeof *room.groups);
    if (!room.groups) status = PC_ENOMEM;
    if (status == PC_OK) status = make_groups(r, &room);
    if (status == PC_OK) status = make_buckets(r, &room);
    mem_free(room.x);
    mem_free(room.groups);
    return status;
}

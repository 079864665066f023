/* report.c - see report.h: columns, tasks, and what each cell of the table holds. */
#include "report.h"
#include "report_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Cell *report_cell(const struct Report *r, int task, int column)
{
    return &r->cells[(size_t)task * (size_t)r->n_columns + (size_t)column];
}

int values_alloc(int n, double **out)
{
    *out = mem_alloc((size_t)n, sizeof **out);
    return *out ? PC_OK : PC_ENOMEM;
}

/* ==== Columns ==== */

static int run_number(const struct Report *r, int run)
{
    int n = 1;
    for (int i = 0; i < run; i++) n += strcmp(r->runs[i].name.data, r->runs[run].name.data) == 0;
    return n;
}

static int make_columns(struct Report *r)
{
    int n = 0;
    for (int i = 0; i < r->n_runs; i++) n += r->runs[i].n_methods;
    if (n > REPORT_COLUMNS)
        return err_set(PC_ECONFIG,
                       "%d methods are too many for one report (at most %d); give fewer runs", n,
                       REPORT_COLUMNS);
    r->columns = mem_alloc((size_t)n, sizeof *r->columns);
    if (!r->columns) return PC_ENOMEM;
    for (int i = 0; i < r->n_runs; i++) {
        const struct Run *run = &r->runs[i];
        int number = run_number(r, i);
        for (int m = 0; m < run->n_methods; m++) {
            struct Column *c = &r->columns[r->n_columns++];
            c->run = run;
            c->method = &run->methods[m];
            TRY(str_appendf(&c->label, "%s", run->methods[m].label.data));
            if (r->n_runs > 1) TRY(str_appendf(&c->label, " @ %s", run->name.data));
            if (number > 1) TRY(str_appendf(&c->label, " (%d)", number));
        }
    }
    return PC_OK;
}

static bool is_named(const struct Column *column, const char *label)
{
    return strcmp(column->label.data, label) == 0 || strcmp(column->method->label.data, label) == 0;
}

static int unknown_baseline(const struct Report *r, const char *label)
{
    struct Str all = {0};
    int status = PC_OK;
    for (int i = 0; i < r->n_columns && status == PC_OK; i++)
        status = str_appendf(&all, "%s'%s'", i ? ", " : "", r->columns[i].label.data);
    if (status == PC_OK)
        status =
            err_set(PC_ECONFIG, "--baseline '%.64s' is no method of these runs; they have %.600s",
                    label, all.data ? all.data : "none");
    str_free(&all);
    return status;
}

static int find_baseline(struct Report *r, const char *label)
{
    for (int i = 0; label && i < r->n_columns; i++) {
        if (!is_named(&r->columns[i], label)) continue;
        r->baseline = i;
        return PC_OK;
    }
    return label ? unknown_baseline(r, label) : PC_OK;
}

/* ==== Tasks ==== */

static const char *benchmark_of(const struct Run *run)
{
    return run->facts[FACT_BENCHMARK].len ? run->facts[FACT_BENCHMARK].data : "unnamed";
}

static int task_find(const struct Report *r, const char *benchmark, const char *name)
{
    for (int i = 0; i < r->n_tasks; i++)
        if (strcmp(r->tasks[i].benchmark.data, benchmark) == 0 &&
            strcmp(r->tasks[i].name.data, name) == 0)
            return i;
    return -1;
}

static int task_add(struct Report *r, const struct Run *run, const struct RunTask *from)
{
    const char *benchmark = benchmark_of(run), *name = from->name.data;
    int at = task_find(r, benchmark, name);
    if (at < 0) {
        struct ReportTask *task = &r->tasks[at = r->n_tasks++];
        task->official = NAN;
        task->group = is_longbench(benchmark) ? longbench_group(name) : -1;
        TRY(str_appendf(&task->benchmark, "%s", benchmark));
        TRY(str_appendf(&task->name, "%s", name));
    }
    struct ReportTask *task = &r->tasks[at];
    if (from->official_rows > 0)
        task->official = fmax(from->official_rows, isnan(task->official) ? 0 : task->official);
    if (task->metric.len || !from->metric.len) return PC_OK;
    return str_append(&task->metric, from->metric.data, from->metric.len);
}

/* Tasks of one benchmark together, those of one group together, else as met. */
static void sort_tasks(struct Report *r)
{
    for (int i = 1; i < r->n_tasks; i++) {
        struct ReportTask task = r->tasks[i];
        int at = i, last = i - 1;
        while (last >= 0 && strcmp(r->tasks[last].benchmark.data, task.benchmark.data) != 0) last--;
        if (last < 0) continue;
        /* a task of no group goes last */
        unsigned group = (unsigned)task.group;
        while (last >= 0 && strcmp(r->tasks[last].benchmark.data, task.benchmark.data) == 0 &&
               (unsigned)r->tasks[last].group > group)
            last--;
        for (; at > last + 1; at--) r->tasks[at] = r->tasks[at - 1];
        r->tasks[at] = task;
    }
}

static int make_tasks(struct Report *r)
{
    int n = 0;
    for (int i = 0; i < r->n_runs; i++) n += r->runs[i].n_tasks;
    r->tasks = mem_alloc((size_t)n, sizeof *r->tasks);
    if (!r->tasks) return PC_ENOMEM;
    for (int i = 0; i < r->n_runs; i++)
        for (int t = 0; t < r->runs[i].n_tasks; t++)
            TRY(task_add(r, &r->runs[i], &r->runs[i].tasks[t]));
    sort_tasks(r);
    return PC_OK;
}

/* ==== Rows of a cell ==== */

struct RowKey {
    int task;
    const char *id;
    const struct RunSample *sample;
};

static int by_task_and_id(const void *a, const void *b)
{
    const struct RowKey *x = a, *y = b;
    if (x->task != y->task) return x->task < y->task ? -1 : 1;
    int order = strcmp(x->id, y->id);
    return order ? order : (x->sample > y->sample) - (x->sample < y->sample);
}

/* Cuts the column's sorted rows into the cells of its tasks. */
static void cut_rows(struct Report *r, int column, const struct RowKey *keys,
                     const struct RunSample **rows)
{
    int n = r->columns[column].method->n_samples, at = 0;
    for (int i = 0; i < n; i++) rows[i] = keys[i].sample;
    for (int t = 0; t < r->n_tasks; t++) {
        struct Cell *cell = report_cell(r, t, column);
        cell->rows = rows + at;
        while (at < n && keys[at].task == t) at++;
        cell->shares.rows = (int)(rows + at - cell->rows);
        if (cell->shares.rows > r->tasks[t].n_rows) r->tasks[t].n_rows = cell->shares.rows;
    }
    r->all[column].rows = rows;
    r->all[column].shares.rows = n;
}

static int fill_rows(struct Report *r, int column, const struct RunSample **rows)
{
    const struct Column *c = &r->columns[column];
    int n = c->method->n_samples;
    struct RowKey *keys = mem_alloc((size_t)n, sizeof *keys);
    int *tasks = mem_alloc((size_t)c->run->n_tasks, sizeof *tasks);
    if (!keys || !tasks) {
        mem_free(keys);
        mem_free(tasks);
        return PC_ENOMEM;
    }
    for (int t = 0; t < c->run->n_tasks; t++)
        tasks[t] = task_find(r, benchmark_of(c->run), c->run->tasks[t].name.data);
    for (int i = 0; i < n; i++) {
        const struct RunSample *s = &c->method->samples[i];
        keys[i] = (struct RowKey){tasks[s->task], run_text(c->method, s->id), s};
    }
    if (n > 1) qsort(keys, (size_t)n, sizeof *keys, by_task_and_id);
    cut_rows(r, column, keys, rows);
    mem_free(keys);
    mem_free(tasks);
    return PC_OK;
}

static int make_rows(struct Report *r)
{
    size_t n = 0, at = 0, cells = (size_t)r->n_tasks * (size_t)r->n_columns;
    for (int c = 0; c < r->n_columns; c++) n += (size_t)r->columns[c].method->n_samples;
    r->pool = mem_alloc(n, sizeof(void *));
    r->cells = mem_alloc(cells, sizeof *r->cells);
    r->all = mem_alloc((size_t)r->n_columns, sizeof *r->all);
    if (!r->pool || !r->cells || !r->all) return PC_ENOMEM;
    for (int c = 0; c < r->n_columns; c++) {
        TRY(fill_rows(r, c, r->pool + at));
        at += (size_t)r->columns[c].method->n_samples;
    }
    return PC_OK;
}

/* ==== Numbers of a cell ==== */

static void count_shares(struct Cell *cell)
{
    struct Shares *n = &cell->shares;
    for (int i = 0; i < n->rows; i++) {
        const struct RunSample *s = cell->rows[i];
        n->failed += s->state == SAMPLE_FAILED;
        n->no_score += s->state == SAMPLE_NO_SCORE;
        n->scored += s->state == SAMPLE_SCORED;
        if (s->state == SAMPLE_FAILED) continue;
        n->empty += s->empty;
        n->unparsed += s->unparsed;
        n->cut += s->cut;
        n->truncated += s->truncated > 0;
    }
}

/* The known values of one member over the rows that did not fail. */
static struct Values collect(const struct Cell *cell, size_t member, double *room)
{
    struct Values values = {room, 0};
    for (int i = 0; i < cell->shares.rows; i++) {
        double value = *(const double *)((const char *)cell->rows[i] + member);
        if (cell->rows[i]->state != SAMPLE_FAILED && isfinite(value)) room[values.n++] = value;
    }
    return values;
}

static double mean_of(struct Values values)
{
    double sum = 0;
    for (int i = 0; i < values.n; i++) sum += values.x[i];
    return values.n ? sum / values.n : NAN;
}

static struct Values collect_rates(const struct Cell *cell, double *room)
{
    struct Values values = {room, 0};
    for (int i = 0; i < cell->shares.rows; i++) {
        const struct RunSample *s = cell->rows[i];
        if (s->state != SAMPLE_FAILED && s->prefill > 0 && s->n_context > 0)
            room[values.n++] = s->n_context / s->prefill;
    }
    return values;
}

static int fill_cost(struct Cell *cell, double *room)
{
    struct Cost *cost = &cell->cost;
    struct Values total = collect(cell, offsetof(struct RunSample, total), room);
    cost->n_timed = total.n;
    TRY(stats_quantile(total, 0.5, &cost->total_median));
    TRY(stats_quantile(total, 0.9, &cost->total_p90));
    TRY(stats_quantile(collect_rates(cell, room), 0.5, &cost->prefill_rate));
    struct Values peak = collect(cell, offsetof(struct RunSample, peak_bytes), room);
    TRY(stats_quantile(peak, 0.5, &cost->peak_median));
    TRY(stats_quantile(peak, 1, &cost->peak_most));
    cost->kv_in = mean_of(collect(cell, offsetof(struct RunSample, kv_in), room));
    cost->kv_kept = mean_of(collect(cell, offsetof(struct RunSample, kv_kept), room));
    return PC_OK;
}

static void fill_hits(struct Cell *cell)
{
    struct Hits *h = &cell->hits;
    double share = 0;
    for (int i = 0; i < cell->shares.rows; i++) {
        const struct RunSample *s = cell->rows[i];
        if (s->state == SAMPLE_FAILED || s->n_answer == 0) continue;
        bool all = s->n_found == s->n_answer;
        int tenth = (int)(REPORT_TENTHS * s->answer_chunk / s->n_chunks);
        if (tenth >= REPORT_TENTHS) tenth = REPORT_TENTHS - 1;
        h->n++;
        h->all += all;
        h->any += s->n_found > 0;
        h->n_chunked += s->n_chunks > 1;
        h->tenth_n[tenth]++;
        h->tenth_all[tenth] += all;
        share += fmin(1, s->n_kept / s->n_chunks);
        if (isnan(s->answer_rank)) continue;
        h->n_ranked++;
        for (int k = 0; k < REPORT_RANKS; k++) h->within[k] += s->answer_rank <= 1 << k;
    }
    h->kept_share = h->n ? share / h->n : NAN;
}

static int fill_cells(struct Report *r)
{
    int most = 0;
    double *room;
    for (int c = 0; c < r->n_columns; c++)
        if (r->all[c].shares.rows > most) most = r->all[c].shares.rows;
    TRY(values_alloc(most, &room));
    int n = r->n_tasks * r->n_columns, status = PC_OK;
    for (int i = 0; i < n + r->n_columns && status == PC_OK; i++) {
        struct Cell *cell = i < n ? &r->cells[i] : &r->all[i - n];
        count_shares(cell);
        fill_hits(cell);
        status = fill_cost(cell, room);
        cell->score.mean = NAN; /* over all tasks there is no such number: see groups */
        if (status == PC_OK && i < n)
            status =
                stats_mean(collect(cell, offsetof(struct RunSample, score), room), &cell->score);
    }
    mem_free(room);
    return status;
}

/* ==== Differences ==== */

/* Differences over the rows that both have scored, matched by id (of repeated ids, in order). */
static struct Values pair_rows(const struct Report *r, int task, int column, double *room)
{
    const struct Cell *a = report_cell(r, task, r->baseline), *b = report_cell(r, task, column);
    const struct RunMethod *base = r->columns[r->baseline].method,
                           *mine = r->columns[column].method;
    struct Values values = {room, 0};
    for (int i = 0, j = 0; i < a->shares.rows && j < b->shares.rows;) {
        const struct RunSample *x = a->rows[i], *y = b->rows[j];
        int order = strcmp(run_text(base, x->id), run_text(mine, y->id));
        i += order <= 0;
        j += order >= 0;
        if (order == 0 && x->state == SAMPLE_SCORED && y->state == SAMPLE_SCORED)
            room[values.n++] = y->score - x->score;
    }
    return values;
}

static int fill_column_differences(struct Report *r, int column, struct Values *groups,
                                   double *room)
{
    for (int t = 0; t < r->n_tasks; t++) {
        groups[t] = pair_rows(r, t, column, room);
        room += groups[t].n;
        TRY(stats_difference(&groups[t], 1, &report_cell(r, t, column)->difference));
    }
    return stats_difference(groups, r->n_tasks, &r->all[column].difference);
}

static int fill_differences(struct Report *r)
{
    if (r->n_columns == 0) return PC_OK;
    double *room = NULL;
    struct Values *groups = mem_alloc((size_t)r->n_tasks, sizeof *groups);
    int status = groups ? values_alloc(r->all[r->baseline].shares.rows, &room) : PC_ENOMEM;
    for (int c = 0; c < r->n_columns && status == PC_OK; c++)
        if (c != r->baseline) status = fill_column_differences(r, c, groups, room);
    mem_free(groups);
    mem_free(room);
    return status;
}

/* ==== All ==== */

int report_make(const struct Run *runs, int n_runs, const char *baseline, struct Report *out)
{
    *out = (struct Report){.runs = runs, .n_runs = n_runs};
    TRY(make_columns(out));
    TRY(find_baseline(out, baseline));
    TRY(make_tasks(out));
    TRY(make_rows(out));
    TRY(fill_cells(out));
    TRY(fill_differences(out));
    TRY(report_sets(out));
    return report_maps(out);
}

void report_free(struct Report *r)
{
    for (int i = 0; i < r->n_columns; i++) {
        str_free(&r->columns[i].label);
        if (r->kv) mem_free(r->kv[i].mean);
    }
    for (int i = 0; i < r->n_tasks; i++) {
        str_free(&r->tasks[i].benchmark);
        str_free(&r->tasks[i].name);
        str_free(&r->tasks[i].metric);
    }
    for (int i = 0; i < r->n_groups; i++) {
        mem_free(r->groups[i].mean);
        mem_free(r->groups[i].n_tasks_in);
    }
    for (int i = 0; i < r->n_curves; i++) {
        mem_free(r->curves[i].points);
        mem_free(r->curves[i].seconds);
    }
    for (int i = 0; i < r->n_heats; i++) {
        mem_free(r->heats[i].mean);
        mem_free(r->heats[i].n);
    }
    mem_free(r->columns);
    mem_free(r->tasks);
    mem_free(r->cells);
    mem_free(r->all);
    mem_free(r->pool);
    mem_free(r->groups);
    mem_free(r->curves);
    mem_free(r->heats);
    mem_free(r->buckets);
    mem_free(r->kv);
    *r = (struct Report){0};
}

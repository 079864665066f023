/* report_text.c - a report as Markdown and as CSV. The same numbers as on the page.
 *
 * CSV: one header; the column "kind" says what a row is: "score" (one task and method, all its
 * numbers), "difference" (to the baseline), "group", "bucket", "length", "needle". Texts that a
 * spreadsheet would run as formulas begin with an apostrophe.
 */
#include "report_parts.h"
#include "report_write.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ==== Markdown ==== */

static int md_head_row(struct Str *out, const struct Report *r, const char *first, bool baseline)
{
    TRY(str_appendf(out, "\n| %s |", first));
    for (int c = 0; c < r->n_columns; c++) {
        if (!baseline && c == r->baseline) continue;
        TRY(str_append(out, " ", 1));
        TRY(say_markdown(out, r->columns[c].label.data));
        TRY(str_append(out, " |", 2));
    }
    TRY(str_appendf(out, "\n| --- |"));
    for (int c = 0; c < r->n_columns; c++)
        if (baseline || c != r->baseline) TRY(str_appendf(out, " --- |"));
    return str_append(out, "\n", 1);
}

/* "47.25 [33.10–61.02] n 5" */
static int md_estimate(struct Str *out, const struct Estimate *e)
{
    char mean[NUMBER], interval[LABEL];
    if (e->n == 0) return str_appendf(out, "–");
    return str_appendf(out, "**%s** [%s] n %d", say_score(e->mean, mean),
                       say_interval(e, false, interval), e->n);
}

static int md_cell(struct Str *out, const struct Cell *cell)
{
    struct Str notes = {0};
    if (cell->shares.rows == 0) return str_appendf(out, " no rows |");
    TRY(str_append(out, " ", 1));
    TRY(md_estimate(out, &cell->score));
    int status = say_shares(&cell->shares, &notes);
    if (status == PC_OK && notes.len) status = str_appendf(out, "; %s", notes.data);
    str_free(&notes);
    TRY(status);
    return str_append(out, " |", 2);
}

static int md_groups(struct Str *out, const struct Report *r)
{
    for (int g = 0; g < r->n_groups; g++) {
        if (!group_shown(r, &r->groups[g])) continue;
        TRY(str_appendf(out, "| *%s* (", r->groups[g].name));
        TRY(say_group(&r->groups[g], out));
        TRY(str_appendf(out, ") |"));
        for (int c = 0; c < r->n_columns; c++) {
            TRY(str_append(out, " ", 1));
            TRY(md_estimate(out, &r->groups[g].mean[c]));
            TRY(str_append(out, " |", 2));
        }
        TRY(str_append(out, "\n", 1));
    }
    return PC_OK;
}

static int md_scores(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "\n## Scores\n\nMean, its 95%% interval, and rows.\n"));
    TRY(md_head_row(out, r, "task", true));
    for (int t = 0; t < r->n_tasks; t++) {
        TRY(str_append(out, "| ", 2));
        TRY(say_markdown(out, r->tasks[t].name.data));
        TRY(str_appendf(out, " ("));
        if (r->tasks[t].metric.len) {
            TRY(say_markdown(out, r->tasks[t].metric.data));
            TRY(str_appendf(out, ", "));
        }
        TRY(say_rows(&r->tasks[t], out));
        TRY(str_appendf(out, ") |"));
        for (int c = 0; c < r->n_columns; c++) TRY(md_cell(out, report_cell(r, t, c)));
        TRY(str_append(out, "\n", 1));
    }
    return md_groups(out, r);
}

static int md_difference(struct Str *out, const struct Difference *d)
{
    char mean[NUMBER], interval[LABEL], below[NUMBER];
    if (d->mean.n == 0) return str_appendf(out, " no common rows |");
    TRY(str_appendf(out, " %s [%s] n %d", say_signed(d->mean.mean, mean),
                    say_interval(&d->mean, true, interval), d->mean.n));
    if (isfinite(d->below)) TRY(str_appendf(out, ", below zero in %s", say_share(d->below, below)));
    return str_appendf(out, ": %s |", say_verdict(d->verdict));
}

static int md_differences(struct Str *out, const struct Report *r)
{
    if (r->n_columns < 2) return PC_OK;
    TRY(str_appendf(out, "\n## Differences to "));
    TRY(say_markdown(out, r->columns[r->baseline].label.data));
    TRY(str_appendf(out, "\n\nRow by row over the rows that both have scored. %s\n", NOTE_VERDICT));
    TRY(md_head_row(out, r, "task", false));
    for (int t = 0; t < r->n_tasks + (r->n_tasks > 1); t++) {
        TRY(str_append(out, "| ", 2));
        TRY(t < r->n_tasks ? say_markdown(out, r->tasks[t].name.data)
                           : str_appendf(out, "*mean of the tasks' differences*"));
        TRY(str_append(out, " |", 2));
        for (int c = 0; c < r->n_columns; c++) {
            if (c == r->baseline) continue;
            const struct Cell *cell = t < r->n_tasks ? report_cell(r, t, c) : &r->all[c];
            TRY(md_difference(out, &cell->difference));
        }
        TRY(str_append(out, "\n", 1));
    }
    return PC_OK;
}

static int md_buckets(struct Str *out, const struct Report *r)
{
    static const char *const names[] = {"0–4k", "4–8k", "8k+"};
    if (!r->buckets) return PC_OK;
    TRY(str_appendf(out, "\n## By length, in the data set's words\n"));
    for (int c = 0; c < r->n_columns; c++) {
        TRY(str_append(out, "\n", 1));
        TRY(say_markdown(out, r->columns[c].label.data));
        TRY(str_appendf(out, "\n\n| task | %s | %s | %s |\n| --- | --- | --- | --- |\n", names[0],
                        names[1], names[2]));
        for (int t = 0; t <= r->n_tasks; t++) {
            if (t < r->n_tasks && strcmp(r->tasks[t].benchmark.data, "longbench-e") != 0) continue;
            if (t == r->n_tasks && !bucket_means_shown(r)) continue;
            TRY(str_append(out, "| ", 2));
            TRY(t < r->n_tasks ? say_markdown(out, r->tasks[t].name.data)
                               : str_appendf(out, "*mean of tasks*"));
            for (int b = 0; b < REPORT_BUCKETS; b++) {
                TRY(str_append(out, " | ", 3));
                TRY(md_estimate(out, &r->buckets[t * r->n_columns + c].cell[b]));
            }
            TRY(str_append(out, " |\n", 3));
        }
    }
    return PC_OK;
}

static int md_curves(struct Str *out, const struct Report *r)
{
    char range[LABEL];
    for (int i = 0; i < r->n_curves; i++) {
        const struct Curve *curve = &r->curves[i];
        TRY(str_appendf(out, "\n## Score by length: "));
        TRY(curve->task >= 0 ? say_markdown(out, r->tasks[curve->task].name.data)
                             : str_appendf(out, "all tasks together"));
        TRY(str_append(out, "\n", 1));
        TRY(md_head_row(out, r, "tokens", true));
        for (int b = 0; b < curve->n_bins; b++) {
            TRY(str_appendf(out, "| %s |", say_range(curve->low[b], curve->high[b], range)));
            for (int c = 0; c < r->n_columns; c++) {
                TRY(str_append(out, " ", 1));
                TRY(md_estimate(out, &curve->points[b * r->n_columns + c]));
                TRY(str_append(out, " |", 2));
            }
            TRY(str_append(out, "\n", 1));
        }
    }
    return PC_OK;
}

static int md_heat(struct Str *out, const struct Report *r, const struct Heat *heat, int column)
{
    char text[LABEL], number[NUMBER];
    TRY(str_appendf(out, "\n## Needles: "));
    TRY(say_markdown(out, r->tasks[heat->task].name.data));
    TRY(str_appendf(out, ", "));
    TRY(say_markdown(out, r->columns[column].label.data));
    TRY(str_appendf(out, "\n\n| depth |"));
    for (int x = 0; x < heat->n_lengths; x++)
        TRY(str_appendf(out, " %s |", say_range(heat->length_low[x], heat->length_high[x], text)));
    TRY(str_appendf(out, "\n| --- |"));
    for (int x = 0; x < heat->n_lengths; x++) TRY(str_appendf(out, " --- |"));
    for (int y = 0; y < heat->n_depths; y++) {
        TRY(str_appendf(out, "\n| %s |", say_depth(heat->depth_low[y], heat->depth_high[y], text)));
        for (int x = 0; x < heat->n_lengths; x++) {
            int at = (column * heat->n_depths + y) * heat->n_lengths + x;
            TRY(str_appendf(out, " %s |", say_score(heat->mean[at], number)));
        }
    }
    return str_append(out, "\n", 1);
}

static int md_heats(struct Str *out, const struct Report *r)
{
    for (int i = 0; i < r->n_heats; i++)
        for (int c = 0; c < r->n_columns; c++)
            if (report_cell(r, r->heats[i].task, c)->shares.rows)
                TRY(md_heat(out, r, &r->heats[i], c));
    return PC_OK;
}

static int md_hits(struct Str *out, const struct Report *r)
{
    char a[NUMBER], b[NUMBER], text[LABEL];
    bool any = false;
    for (int c = 0; c < r->n_columns; c++) any |= r->all[c].hits.n > 0;
    if (!any) return PC_OK;
    TRY(str_appendf(out,
                    "\n## Was the answer's chunk kept?\n\n| method | rows | kept | chunks kept "
                    "| best 1 | best 2 | best 4 | best 8 | best 16 |\n"
                    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"));
    for (int c = 0; c < r->n_columns; c++) {
        const struct Hits *h = &r->all[c].hits;
        struct Estimate share = stats_share(h->all, h->n);
        if (h->n == 0) continue;
        TRY(str_append(out, "| ", 2));
        TRY(say_markdown(out, r->columns[c].label.data));
        TRY(str_appendf(out, " | %d | %s [%s] | %s |", h->n, say_share(share.mean, a),
                        say_interval(&share, false, text), say_share(h->kept_share, b)));
        for (int k = 0; k < REPORT_RANKS; k++)
            TRY(str_appendf(out, " %s |",
                            say_share(h->n_ranked ? (double)h->within[k] / h->n_ranked : NAN, a)));
        TRY(str_append(out, "\n", 1));
    }
    return PC_OK;
}

static int md_costs(struct Str *out, const struct Report *r)
{
    char a[NUMBER], b[NUMBER], c[NUMBER], d[NUMBER], e[NUMBER], f[NUMBER];
    TRY(str_appendf(out, "\n## Time and memory\n\n| method | rows timed | median | 90%% within | "
                         "prefill tokens/s | peak memory | KV entries before | KV kept |\n"
                         "| --- | --- | --- | --- | --- | --- | --- | --- |\n"));
    for (int i = 0; i < r->n_columns; i++) {
        const struct Cost *cost = &r->all[i].cost;
        TRY(str_append(out, "| ", 2));
        TRY(say_markdown(out, r->columns[i].label.data));
        TRY(str_appendf(out, " | %d | %s | %s | %s | %s | %s | %s |\n", cost->n_timed,
                        say_seconds(cost->total_median, a), say_seconds(cost->total_p90, b),
                        say_count(cost->prefill_rate, c), say_size(cost->peak_most, d),
                        say_count(cost->kv_in, e), say_count(cost->kv_kept, f)));
    }
    return PC_OK;
}

static int md_problems(struct Str *out, const struct Report *r)
{
    if (failed_rows(r) == 0 && unread_lines(r) == 0) return PC_OK;
    TRY(str_appendf(out, "\n## What went wrong\n\n"));
    int shown = 0;
    for (int c = 0; c < r->n_columns; c++)
        for (int i = 0; i < r->all[c].shares.rows; i++) {
            const struct RunSample *s = r->all[c].rows[i];
            const struct Column *column = &r->columns[c];
            if (s->state != SAMPLE_FAILED || ++shown > REPORT_FAILURES) continue;
            TRY(str_appendf(out, "- row "));
            TRY(say_markdown(out, run_text(column->method, s->id)));
            TRY(str_appendf(out, " of "));
            TRY(say_markdown(out, column->run->tasks[s->task].name.data));
            TRY(str_appendf(out, ", "));
            TRY(say_markdown(out, column->label.data));
            TRY(str_appendf(out, ": "));
            TRY(say_markdown(out, run_text(column->method, s->error)));
            TRY(str_append(out, "\n", 1));
        }
    if (shown > REPORT_FAILURES)
        TRY(str_appendf(out, "- and %d failed rows more\n", shown - REPORT_FAILURES));
    for (int i = 0; i < r->n_runs; i++)
        for (int p = 0; p < r->runs[i].n_problems; p++) {
            const struct RunProblem *problem = &r->runs[i].problems[p];
            TRY(str_appendf(out, "- "));
            TRY(say_markdown(out, r->runs[i].name.data));
            TRY(str_appendf(out, ": "));
            TRY(say_markdown(out, problem->file.data));
            if (problem->line) TRY(str_appendf(out, ", line %ld", problem->line));
            TRY(str_appendf(out, ": "));
            TRY(say_markdown(out, problem->what.data));
            TRY(str_append(out, "\n", 1));
        }
    return PC_OK;
}

static int md_head(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "# "));
    struct Str title = {0};
    int status = say_title(r, &title);
    if (status == PC_OK) status = say_markdown(out, title.data);
    str_free(&title);
    TRY(status);
    TRY(str_appendf(out, "\n"));
    for (int i = 0; i < r->n_runs; i++) {
        TRY(str_appendf(out, "\n- run "));
        TRY(say_markdown(out, r->runs[i].name.data));
        for (int f = 0; f < N_FACTS; f++) {
            if (!r->runs[i].facts[f].len) continue;
            TRY(str_appendf(out, "; %s: ", RUN_FACT_NAMES[f]));
            TRY(say_markdown(out, r->runs[i].facts[f].data));
        }
    }
    TRY(str_append(out, "\n", 1));
    for (int t = 0; t < r->n_tasks; t++) {
        const char *benchmark = r->tasks[t].benchmark.data;
        struct Str part = {0};
        if (t > 0 && strcmp(r->tasks[t - 1].benchmark.data, benchmark) == 0) continue;
        status = say_partial(r, benchmark, &part);
        if (status == PC_OK && part.len) status = str_appendf(out, "\n**%s**\n", part.data);
        str_free(&part);
        TRY(status);
    }
    return PC_OK;
}

int report_markdown(const struct Report *r, struct Str *out)
{
    TRY(md_head(out, r));
    TRY(md_scores(out, r));
    TRY(md_differences(out, r));
    TRY(md_buckets(out, r));
    TRY(md_curves(out, r));
    TRY(md_heats(out, r));
    TRY(md_hits(out, r));
    TRY(md_costs(out, r));
    return md_problems(out, r);
}

/* ==== CSV ==== */

static const char CSV_HEAD[] =
    "kind,run,method,benchmark,task,detail,metric,rows,official_rows,n,mean,low,high,interval,"
    "failed,without_score,empty,unparsed,answer_cut,input_cut,"
    "seconds_median,seconds_p90,prefill_tokens_per_second,peak_bytes_median,peak_bytes_most,"
    "kv_in_mean,kv_kept_mean,answer_rows,answer_kept,answer_ranked,answer_best_1,answer_best_2,"
    "answer_best_4,answer_best_8,answer_best_16,baseline,below_zero,rows_that_differ,verdict\n";

enum { CSV_AFTER_ESTIMATE = 25 }; /* columns behind "interval" */

static int csv_cell(struct Str *out, const char *text)
{
    TRY(say_csv(out, text));
    return str_append(out, ",", 1);
}

static int csv_number(struct Str *out, double value)
{
    return isfinite(value) ? str_appendf(out, "%.10g,", value) : str_append(out, ",", 1);
}

static int csv_begin(struct Str *out, const struct Report *r, const char *kind, int column)
{
    TRY(csv_cell(out, kind));
    TRY(csv_cell(out, r->columns[column].run->name.data));
    return csv_cell(out, r->columns[column].method->label.data);
}

static int csv_estimate(struct Str *out, const struct Estimate *e)
{
    static const char *const kinds[] = {"none", "wilson", "bootstrap"};
    bool interval = e->kind != INTERVAL_NONE;
    TRY(str_appendf(out, "%d,", e->n));
    TRY(csv_number(out, e->n ? 100 * e->mean : NAN));
    TRY(csv_number(out, interval ? 100 * e->low : NAN));
    TRY(csv_number(out, interval ? 100 * e->high : NAN));
    return str_appendf(out, "%s", e->n ? kinds[e->kind] : "");
}

/* Empty columns up to the end of the line. */
static int csv_end(struct Str *out, int columns)
{
    for (int i = 0; i < columns; i++) TRY(str_append(out, ",", 1));
    return str_append(out, "\n", 1);
}

static int csv_task(struct Str *out, const struct Report *r, int task, const char *detail)
{
    const struct ReportTask *t = &r->tasks[task];
    TRY(csv_cell(out, t->benchmark.data));
    TRY(csv_cell(out, t->name.data));
    TRY(csv_cell(out, detail));
    return csv_cell(out, t->metric.data ? t->metric.data : "");
}

static int csv_cost(struct Str *out, const struct Cell *cell)
{
    const struct Cost *cost = &cell->cost;
    const struct Hits *h = &cell->hits;
    TRY(csv_number(out, cost->total_median));
    TRY(csv_number(out, cost->total_p90));
    TRY(csv_number(out, cost->prefill_rate));
    TRY(csv_number(out, cost->peak_median));
    TRY(csv_number(out, cost->peak_most));
    TRY(csv_number(out, cost->kv_in));
    TRY(csv_number(out, cost->kv_kept));
    TRY(str_appendf(out, "%d,%d,%d", h->n, h->all, h->n_ranked));
    for (int k = 0; k < REPORT_RANKS; k++) TRY(str_appendf(out, ",%d", h->within[k]));
    return csv_end(out, 4);
}

static int csv_score(struct Str *out, const struct Report *r, int task, int column)
{
    const struct Cell *cell = report_cell(r, task, column);
    const struct Shares *n = &cell->shares;
    TRY(csv_begin(out, r, "score", column));
    TRY(csv_task(out, r, task, ""));
    TRY(str_appendf(out, "%d,", n->rows));
    TRY(csv_number(out, r->tasks[task].official));
    TRY(csv_estimate(out, &cell->score));
    TRY(str_appendf(out, ",%d,%d,%d,%d,%d,%d,", n->failed, n->no_score, n->empty, n->unparsed,
                    n->cut, n->truncated));
    return csv_cost(out, cell);
}

static int csv_difference(struct Str *out, const struct Report *r, int task, int column)
{
    const struct Difference *d = &report_cell(r, task, column)->difference;
    if (column == r->baseline) return PC_OK;
    TRY(csv_begin(out, r, "difference", column));
    TRY(csv_task(out, r, task, ""));
    TRY(str_append(out, ",,", 2));
    TRY(csv_estimate(out, &d->mean));
    for (int i = 0; i < CSV_AFTER_ESTIMATE - 4; i++) TRY(str_append(out, ",", 1));
    TRY(str_append(out, ",", 1));
    TRY(csv_cell(out, r->columns[r->baseline].label.data));
    TRY(csv_number(out, d->below));
    return str_appendf(out, "%d,%s\n", d->n_differ, d->mean.n ? say_verdict(d->verdict) : "");
}

static int csv_groups(struct Str *out, const struct Report *r)
{
    for (int g = 0; g < r->n_groups; g++) {
        const struct Group *group = &r->groups[g];
        for (int c = 0; c < r->n_columns && group_shown(r, group); c++) {
            TRY(csv_begin(out, r, "group", c));
            TRY(csv_cell(out, group->benchmark));
            TRY(csv_cell(out, ""));
            TRY(csv_cell(out, group->name));
            TRY(str_appendf(out, ",,,"));
            TRY(csv_estimate(out, &group->mean[c]));
            TRY(csv_end(out, CSV_AFTER_ESTIMATE));
        }
    }
    return PC_OK;
}

static int csv_buckets(struct Str *out, const struct Report *r)
{
    static const char *const names[] = {"0-4k", "4-8k", "8k+"};
    if (!r->buckets) return PC_OK;
    for (int i = 0; i < r->n_tasks * r->n_columns; i++)
        for (int b = 0; b < REPORT_BUCKETS; b++) {
            const struct Estimate *e = &r->buckets[i].cell[b];
            if (e->n == 0) continue;
            TRY(csv_begin(out, r, "bucket", i % r->n_columns));
            TRY(csv_task(out, r, i / r->n_columns, names[b]));
            TRY(str_append(out, ",,", 2));
            TRY(csv_estimate(out, e));
            TRY(csv_end(out, CSV_AFTER_ESTIMATE));
        }
    return PC_OK;
}

static int csv_curve(struct Str *out, const struct Report *r, const struct Curve *curve)
{
    for (int i = 0; i < curve->n_bins * r->n_columns; i++) {
        char detail[LABEL];
        int b = i / r->n_columns, c = i % r->n_columns;
        if (curve->points[i].n == 0) continue;
        snprintf(detail, sizeof detail, "%.0f-%.0f tokens", curve->low[b], curve->high[b]);
        TRY(csv_begin(out, r, "length", c));
        TRY(csv_cell(out, curve->benchmark));
        TRY(csv_cell(out, curve->task >= 0 ? r->tasks[curve->task].name.data : ""));
        TRY(csv_cell(out, detail));
        TRY(str_appendf(out, ",,,"));
        TRY(csv_estimate(out, &curve->points[i]));
        TRY(str_append(out, ",,,,,,,", 7));
        TRY(csv_number(out, curve->seconds[i]));
        TRY(csv_end(out, CSV_AFTER_ESTIMATE - 8));
    }
    return PC_OK;
}

static int csv_heat(struct Str *out, const struct Report *r, const struct Heat *heat)
{
    int cells = heat->n_depths * heat->n_lengths;
    for (int i = 0; i < cells * r->n_columns; i++) {
        char detail[LABEL];
        int y = i % cells / heat->n_lengths, x = i % heat->n_lengths;
        if (heat->n[i] == 0) continue;
        snprintf(detail, sizeof detail, "depth %.4g-%.4g; %.0f-%.0f tokens", heat->depth_low[y],
                 heat->depth_high[y], heat->length_low[x], heat->length_high[x]);
        TRY(csv_begin(out, r, "needle", i / cells));
        TRY(csv_task(out, r, heat->task, detail));
        TRY(str_appendf(out, ",,%d,", heat->n[i]));
        TRY(csv_number(out, 100 * heat->mean[i]));
        TRY(str_append(out, ",,", 2));
        TRY(csv_end(out, CSV_AFTER_ESTIMATE));
    }
    return PC_OK;
}

int report_csv(const struct Report *r, struct Str *out)
{
    TRY(str_append(out, CSV_HEAD, strlen(CSV_HEAD)));
    for (int t = 0; t < r->n_tasks; t++)
        for (int c = 0; c < r->n_columns; c++) TRY(csv_score(out, r, t, c));
    for (int t = 0; t < r->n_tasks; t++)
        for (int c = 0; c < r->n_columns; c++) TRY(csv_difference(out, r, t, c));
    TRY(csv_groups(out, r));
    TRY(csv_buckets(out, r));
    for (int i = 0; i < r->n_curves; i++) TRY(csv_curve(out, r, &r->curves[i]));
    for (int i = 0; i < r->n_heats; i++) TRY(csv_heat(out, r, &r->heats[i]));
    return PC_OK;
}

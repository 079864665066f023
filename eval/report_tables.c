/* report_tables.c - the page's tables. A row is a task, a column a method; on a narrow screen each row
 * becomes a block with one line a method, which is why every cell carries its method's name.
 */
#include "report_page.h"
#include "report_parts.h"
#include "report_svg.h"
#include "report_write.h"

#include <math.h>
#include <string.h>

/* ==== Cells ==== */

enum { FIT_COLUMNS = 4 }; /* more methods make the table scroll sideways */

static int table_begin(struct Str *out, const struct Report *r, const char *first, bool baseline)
{
    int columns = r->n_columns - !baseline;
    if (columns > FIT_COLUMNS)
        TRY(str_appendf(
            out, "<p class=\"aside\">All %d methods are in the table: it scrolls sideways.</p>\n",
            columns));
    TRY(str_appendf(
        out,
        "<div class=\"wrap%s\"><table class=\"matrix\" style=\"min-width:%dpx\"><thead><tr><th "
        "class=\"first\" scope=\"col\">%s</th>",
        columns <= FIT_COLUMNS ? " fit" : "", 180 + 200 * columns, first));
    for (int c = 0; c < r->n_columns; c++) {
        if (!baseline && c == r->baseline) continue;
        TRY(str_appendf(out, "<th scope=\"col\">"));
        TRY(page_method(out, r, c));
        TRY(str_appendf(out, "</th>"));
    }
    return str_appendf(out, "</tr></thead><tbody>\n");
}

static int table_end(struct Str *out)
{
    return str_appendf(out, "</tbody></table></div>\n");
}

/* <td> with what a reader of the page's source, or a test, finds it by. */
static int cell_begin(struct Str *out, const struct Report *r, int column, const char *row)
{
    TRY(str_appendf(out, "<td class=\"c%d\" data-column=\"%d\" data-row=\"", column % SVG_STYLES,
                    column));
    TRY(say_html(out, row));
    TRY(str_appendf(out, "\"><div class=\"who\">"));
    TRY(page_method(out, r, column));
    return str_appendf(out, "</div>");
}

static int cell_mean(struct Str *out, const struct Estimate *e)
{
    char mean[NUMBER], interval[LABEL];
    if (e->n == 0) return str_appendf(out, "<div class=\"num\"><b class=\"mean\">–</b></div>");
    return str_appendf(
        out, "<div class=\"num\"><b class=\"mean\">%s</b> <span class=\"ci\">%s</span></div>",
        say_score(e->mean, mean), say_interval(e, false, interval));
}

static int score_cell(struct Str *out, const struct Report *r, int task, int column)
{
    const struct Cell *cell = report_cell(r, task, column);
    TRY(cell_begin(out, r, column, r->tasks[task].name.data));
    if (cell->shares.rows == 0) return str_appendf(out, "<div class=\"note\">no rows</div></td>");
    TRY(cell_mean(out, &cell->score));
    TRY(svg_bar(out, &cell->score, column));
    TRY(str_appendf(out, "<div class=\"note\"><span class=\"n\">n %d</span>", cell->score.n));
    struct Str notes = {0};
    int status = say_shares(&cell->shares, &notes);
    if (status == PC_OK && notes.len)
        status = str_appendf(out, " · <span class=\"shares\">%s</span>", notes.data);
    str_free(&notes);
    TRY(status);
    return str_appendf(out, "</div></td>");
}

/* ==== Scores ==== */

static int task_head(struct Str *out, const struct ReportTask *task)
{
    TRY(str_appendf(out, "<tr><th scope=\"row\">"));
    TRY(page_data(out, task->name.data));
    TRY(str_appendf(out, "<small>"));
    if (task->metric.len) {
        TRY(page_data(out, task->metric.data));
        TRY(str_appendf(out, " · "));
    }
    TRY(say_rows(task, out));
    return str_appendf(out, "</small></th>");
}

static int group_row(struct Str *out, const struct Report *r, const struct Group *g)
{
    TRY(str_appendf(out, "<tr class=\"group\"><th scope=\"row\">%s<small>", g->name));
    TRY(say_group(g, out));
    TRY(str_appendf(out, "</small></th>"));
    for (int c = 0; c < r->n_columns; c++) {
        TRY(cell_begin(out, r, c, g->name));
        TRY(cell_mean(out, &g->mean[c]));
        TRY(svg_bar(out, &g->mean[c], c));
        TRY(str_appendf(out,
                        "<div class=\"note\"><span class=\"n\">n %d</span> in %d task%s</div></td>",
                        g->mean[c].n, g->n_tasks_in[c], g->n_tasks_in[c] == 1 ? "" : "s"));
    }
    return str_appendf(out, "</tr>\n");
}

/* The group that this task begins, or NULL. */
static const struct Group *group_begun(const struct Report *r, int task)
{
    const struct ReportTask *t = &r->tasks[task], *before = task ? t - 1 : NULL;
    if (t->group < 0) return NULL;
    if (before && before->group == t->group &&
        strcmp(before->benchmark.data, t->benchmark.data) == 0)
        return NULL;
    for (int g = 0; g < r->n_groups; g++)
        if (strcmp(r->groups[g].benchmark, t->benchmark.data) == 0 &&
            strcmp(r->groups[g].name, LONGBENCH_GROUPS[t->group]) == 0)
            return &r->groups[g];
    return NULL;
}

static int whole_rows(struct Str *out, const struct Report *r, int task)
{
    const char *benchmark = r->tasks[task].benchmark.data;
    bool last = task + 1 == r->n_tasks || strcmp(r->tasks[task + 1].benchmark.data, benchmark) != 0;
    for (int g = 0; g < r->n_groups && last; g++)
        if (strcmp(r->groups[g].benchmark, benchmark) == 0 &&
            strcmp(r->groups[g].name, "All tasks") == 0 && group_shown(r, &r->groups[g]))
            TRY(group_row(out, r, &r->groups[g]));
    return PC_OK;
}

int page_scores(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(
        out, "<section id=\"scores\"><h2>Scores</h2>\n<p>Mean of the rows, 0 to 100, with its 95%% "
             "interval; n is the number of rows behind it. The line under a mean runs from 0 "
             "to 100, its band is the interval.</p>\n"));
    TRY(table_begin(out, r, "Task", true));
    for (int t = 0; t < r->n_tasks; t++) {
        const struct Group *g = group_begun(r, t);
        if (g) TRY(group_row(out, r, g));
        TRY(task_head(out, &r->tasks[t]));
        for (int c = 0; c < r->n_columns; c++) TRY(score_cell(out, r, t, c));
        TRY(str_appendf(out, "</tr>\n"));
        TRY(whole_rows(out, r, t));
    }
    TRY(table_end(out));
    return str_appendf(out, "</section>\n");
}

/* ==== Differences ==== */

/* The smallest round half-width that holds all intervals. */
static double difference_scale(const struct Report *r)
{
    static const double steps[] = {0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75};
    double most = 0;
    for (int i = 0; i < r->n_tasks * r->n_columns; i++) {
        const struct Estimate *e = &r->cells[i].difference.mean;
        if (e->n) most = fmax(most, fmax(fabs(e->low), fabs(e->high)));
    }
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        if (most <= steps[i]) return steps[i];
    return 1;
}

static int difference_notes(struct Str *out, const struct Difference *d)
{
    char below[NUMBER];
    TRY(str_appendf(out, "<div class=\"note\"><span class=\"n\">n %d</span>", d->mean.n));
    TRY(d->n_differ == 0 ? str_appendf(out, " · no row differs")
                         : str_appendf(out, " · %d row%s differ%s", d->n_differ,
                                       d->n_differ == 1 ? "" : "s", d->n_differ == 1 ? "s" : ""));
    if (isfinite(d->below) && d->n_differ)
        TRY(str_appendf(out, " · below zero in %s", say_share(d->below, below)));
    return str_appendf(out, "</div>");
}

static int difference_cell(struct Str *out, const struct Difference *d, double scale, int column)
{
    static const char *const marks[] = {"", "▲ ", "▼ "};
    char mean[NUMBER], interval[LABEL];
    if (d->mean.n == 0) return str_appendf(out, "<div class=\"note\">no common rows</div></td>");
    TRY(str_appendf(
        out,
        "<div class=\"num\"><b class=\"mean\">%s</b> <span class=\"ci\">%s</span> <span "
        "class=\"verdict v%d\">%s%s</span></div>",
        say_signed(d->mean.mean, mean), say_interval(&d->mean, true, interval), d->verdict,
        marks[d->verdict], say_verdict(d->verdict)));
    TRY(svg_difference(out, &d->mean, scale, column));
    TRY(difference_notes(out, d));
    return str_appendf(out, "</td>");
}

static int difference_row(struct Str *out, const struct Report *r, int task, double scale)
{
    bool all = task == r->n_tasks;
    if (all) {
        TRY(str_appendf(out,
                        "<tr class=\"group\"><th scope=\"row\">All tasks<small>mean of the tasks' "
                        "differences%s</small></th>",
                        r->complete ? "" : ", these rows only"));
    } else {
        TRY(task_head(out, &r->tasks[task]));
    }
    for (int c = 0; c < r->n_columns; c++) {
        if (c == r->baseline) continue;
        TRY(cell_begin(out, r, c, all ? "All tasks" : r->tasks[task].name.data));
        const struct Cell *cell = all ? &r->all[c] : report_cell(r, task, c);
        TRY(difference_cell(out, &cell->difference, scale, c));
    }
    return str_appendf(out, "</tr>\n");
}

int page_differences(struct Str *out, const struct Report *r)
{
    double scale = difference_scale(r);
    if (r->n_columns < 2) return PC_OK;
    int n = r->n_tasks * (r->n_columns - 1);
    TRY(str_appendf(out, "<section id=\"differences\"><h2>Differences to "));
    TRY(page_data(out, r->columns[r->baseline].label.data));
    TRY(str_appendf(out,
                    "</h2>\n<p>Each row of the data is compared with the same row of the baseline; "
                    "only rows that both have scored count. Above zero is better. The lines run "
                    "from −%.0f to +%.0f. ",
                    100 * scale, 100 * scale));
    TRY(say_html(out, NOTE_VERDICT));
    TRY(str_appendf(out, "%s</p>\n",
                    n >= 10
                        ? " Among so many comparisons about one in twenty would look decided by "
                          "chance alone."
                        : ""));
    TRY(table_begin(out, r, "Task", false));
    if (r->n_tasks > 1) TRY(difference_row(out, r, r->n_tasks, scale));
    for (int t = 0; t < r->n_tasks; t++) TRY(difference_row(out, r, t, scale));
    TRY(table_end(out));
    return str_appendf(out, "</section>\n");
}

/* ==== LongBench-E ==== */

static const char *const BUCKETS[REPORT_BUCKETS] = {"0–4k", "4–8k", "8k+"};

static int bucket_head(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "<div class=\"wrap\"><table class=\"plain curve-table\"><thead><tr><th "
                         "scope=\"col\" rowspan=\"2\">Task</th>"));
    for (int c = 0; c < r->n_columns; c++) {
        TRY(str_appendf(out, "<th scope=\"colgroup\" colspan=\"3\">"));
        TRY(page_method(out, r, c));
        TRY(str_appendf(out, "</th>"));
    }
    TRY(str_appendf(out, "</tr><tr>"));
    for (int i = 0; i < REPORT_BUCKETS * r->n_columns; i++)
        TRY(str_appendf(out, "<th scope=\"col\">%s</th>", BUCKETS[i % REPORT_BUCKETS]));
    return str_appendf(out, "</tr></thead><tbody>\n");
}

static int bucket_cell(struct Str *out, const struct Report *r, int task, int at)
{
    int c = at / REPORT_BUCKETS, b = at % REPORT_BUCKETS;
    const struct Estimate *e = &r->buckets[task * r->n_columns + c].cell[b];
    char mean[NUMBER], interval[LABEL];
    TRY(str_appendf(out, "<td data-label=\""));
    TRY(say_html(out, r->columns[c].label.data));
    return str_appendf(out, ", %s\"><span><b>%s</b> <span class=\"ci\">%s%sn %d</span></span></td>",
                       BUCKETS[b], e->n ? say_score(e->mean, mean) : "–",
                       say_interval(e, false, interval), e->n ? " · " : "", e->n);
}

static int bucket_row(struct Str *out, const struct Report *r, int task)
{
    bool all = task == r->n_tasks;
    TRY(str_appendf(out, "<tr%s><th scope=\"row\">%s", all ? " class=\"group\"" : "",
                    all ? "Mean of tasks" : ""));
    if (!all) TRY(page_data(out, r->tasks[task].name.data));
    TRY(str_appendf(out, "</th>"));
    for (int i = 0; i < REPORT_BUCKETS * r->n_columns; i++) TRY(bucket_cell(out, r, task, i));
    return str_appendf(out, "</tr>\n");
}

int page_buckets(struct Str *out, const struct Report *r)
{
    if (!r->buckets) return PC_OK;
    TRY(str_appendf(
        out, "<section id=\"buckets\"><h2>Three lengths</h2>\n<p>Rows by the length that the "
             "data set tells, in words: under 4,000, under 8,000, and above.</p>\n"));
    TRY(bucket_head(out, r));
    if (bucket_means_shown(r)) TRY(bucket_row(out, r, r->n_tasks));
    for (int t = 0; t < r->n_tasks; t++)
        if (strcmp(r->tasks[t].benchmark.data, "longbench-e") == 0) TRY(bucket_row(out, r, t));
    TRY(table_end(out));
    return str_appendf(out, "</section>\n");
}

/* ==== Time and memory ==== */

static int cost_row(struct Str *out, const struct Report *r, int column)
{
    const struct Cost *cost = &r->all[column].cost;
    char a[NUMBER], b[NUMBER], c[NUMBER], d[NUMBER], e[NUMBER], f[NUMBER], g[NUMBER];
    double share = cost->kv_in > 0 ? cost->kv_kept / cost->kv_in : NAN;
    TRY(str_appendf(out, "<tr class=\"c%d\" data-column=\"%d\"><th scope=\"row\">",
                    column % SVG_STYLES, column));
    TRY(page_method(out, r, column));
    TRY(str_appendf(
        out,
        "</th><td data-label=\"rows timed\">%d</td><td data-label=\"median\">%s</td><td "
        "data-label=\"9 of 10 within\">%s</td><td data-label=\"prefill, tokens/s\">%s</td>",
        cost->n_timed, say_seconds(cost->total_median, a), say_seconds(cost->total_p90, b),
        say_count(cost->prefill_rate, c)));
    TRY(str_appendf(
        out,
        "<td data-label=\"memory, median\">%s</td><td data-label=\"memory, peak\">%s</td><td "
        "data-label=\"KV entries kept\">%s</td>",
        say_size(cost->peak_median, d), say_size(cost->peak_most, e), say_count(cost->kv_kept, f)));
    return str_appendf(out, "<td data-label=\"share of KV\">%s</td></tr>\n", say_share(share, g));
}

/* Median seconds by length, from the curve over all tasks. */
static int cost_lengths(struct Str *out, const struct Report *r, const struct Curve *curve)
{
    char text[LABEL], seconds[NUMBER];
    bool any = false;
    for (int i = 0; i < curve->n_bins * r->n_columns; i++) any |= isfinite(curve->seconds[i]);
    if (!any) return PC_OK;
    TRY(str_appendf(
        out,
        "<h3>Median seconds by length</h3><div class=\"wrap\"><table class=\"plain\"><thead><tr>"
        "<th scope=\"col\">tokens of text</th>"));
    for (int b = 0; b < curve->n_bins; b++)
        TRY(str_appendf(out, "<th scope=\"col\">%s</th>",
                        say_range(curve->low[b], curve->high[b], text)));
    TRY(str_appendf(out, "</tr></thead><tbody>\n"));
    for (int c = 0; c < r->n_columns; c++) {
        TRY(str_appendf(out, "<tr class=\"c%d\"><th scope=\"row\">", c % SVG_STYLES));
        TRY(page_method(out, r, c));
        TRY(str_appendf(out, "</th>"));
        for (int b = 0; b < curve->n_bins; b++)
            TRY(str_appendf(out, "<td data-label=\"%s tokens\">%s</td>",
                            say_range(curve->low[b], curve->high[b], text),
                            say_seconds(curve->seconds[b * r->n_columns + c], seconds)));
        TRY(str_appendf(out, "</tr>\n"));
    }
    return str_appendf(out, "</tbody></table></div>\n");
}

int page_costs(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(
        out,
        "<section id=\"cost\"><h2>Time and memory</h2>\n<p>Seconds a row, from the text to the "
        "last token of the answer. Rows that failed are left out. KV entries are means "
        "a row, over all layers and heads.</p>\n<div class=\"wrap\"><table class=\"plain\"><thead>"
        "<tr><th scope=\"col\">Method</th><th scope=\"col\">rows timed</th><th "
        "scope=\"col\">median</th><th scope=\"col\">9 of 10 within</th><th "
        "scope=\"col\">prefill, tokens/s</th><th scope=\"col\">memory, median</th><th "
        "scope=\"col\">memory, peak</th><th scope=\"col\">KV entries kept</th><th "
        "scope=\"col\">share of KV</th></tr></thead><tbody>\n"));
    for (int c = 0; c < r->n_columns; c++) TRY(cost_row(out, r, c));
    TRY(table_end(out));
    for (int i = 0; i < r->n_curves; i++)
        if (r->curves[i].task < 0) TRY(cost_lengths(out, r, &r->curves[i]));
    return str_appendf(out, "</section>\n");
}

/* ==== Settings ==== */

static const char *setting_value(const struct Column *column, const char *name)
{
    for (int i = 0; i < column->method->n_settings; i++)
        if (strcmp(column->method->settings[i].name.data, name) == 0)
            return column->method->settings[i].value.data ? column->method->settings[i].value.data
                                                          : "";
    return NULL;
}

static bool setting_differs(const struct Report *r, const char *name)
{
    const char *first = setting_value(&r->columns[0], name);
    for (int c = 1; c < r->n_columns; c++) {
        const char *other = setting_value(&r->columns[c], name);
        if (!first != !other || (first && strcmp(first, other) != 0)) return true;
    }
    return false;
}

/* True when an earlier column has this setting: it has its row already. */
static bool setting_shown(const struct Report *r, int column, const char *name)
{
    for (int c = 0; c < column; c++)
        if (setting_value(&r->columns[c], name)) return true;
    return false;
}

static int setting_row(struct Str *out, const struct Report *r, const char *name)
{
    TRY(str_appendf(out, "<tr><th scope=\"row\">"));
    TRY(page_data(out, name));
    TRY(str_appendf(out, "</th>"));
    for (int c = 0; c < r->n_columns; c++) {
        const char *value = setting_value(&r->columns[c], name);
        TRY(str_appendf(out, "<td data-label=\""));
        TRY(say_html(out, r->columns[c].label.data));
        TRY(str_appendf(out, "\">"));
        TRY(value ? page_data(out, value) : str_appendf(out, "–"));
        TRY(str_appendf(out, "</td>"));
    }
    return str_appendf(out, "</tr>\n");
}

static int settings_table(struct Str *out, const struct Report *r, bool differing)
{
    TRY(str_appendf(out, "<div class=\"wrap\"><table class=\"plain left\"><thead><tr><th "
                         "scope=\"col\">setting</th>"));
    for (int c = 0; c < r->n_columns; c++) {
        TRY(str_appendf(out, "<th scope=\"col\">"));
        TRY(page_method(out, r, c));
        TRY(str_appendf(out, "</th>"));
    }
    TRY(str_appendf(out, "</tr></thead><tbody>\n"));
    for (int c = 0; c < r->n_columns; c++)
        for (int i = 0; i < r->columns[c].method->n_settings; i++) {
            const char *name = r->columns[c].method->settings[i].name.data;
            if (name && !setting_shown(r, c, name) && setting_differs(r, name) == differing)
                TRY(setting_row(out, r, name));
        }
    return table_end(out);
}

int page_settings(struct Str *out, const struct Report *r)
{
    int n = 0, n_differ = 0;
    for (int c = 0; c < r->n_columns; c++)
        for (int i = 0; i < r->columns[c].method->n_settings; i++) {
            const char *name = r->columns[c].method->settings[i].name.data;
            if (!name || setting_shown(r, c, name)) continue;
            n++;
            n_differ += setting_differs(r, name);
        }
    if (n == 0) return PC_OK;
    TRY(str_appendf(out, "<section id=\"settings\"><h2>Settings</h2>\n"));
    if (n_differ) {
        TRY(str_appendf(out, "<p>Those in which the methods differ.</p>\n"));
        TRY(settings_table(out, r, true));
    }
    if (n > n_differ) {
        TRY(str_appendf(out, "<details><summary>%d setting%s %s</summary>\n", n - n_differ,
                        n - n_differ == 1 ? "" : "s",
                        r->n_columns > 1 ? "that all methods share" : "of this method"));
        TRY(settings_table(out, r, false));
        TRY(str_appendf(out, "</details>\n"));
    }
    return str_appendf(out, "</section>\n");
}

/* ==== What went wrong ==== */

static int failed_row(struct Str *out, const struct Column *column, const struct RunSample *s)
{
    TRY(str_appendf(out, "<tr><td data-label=\"method\">"));
    TRY(page_data(out, column->label.data));
    TRY(str_appendf(out, "</td><td data-label=\"task\">"));
    TRY(page_data(out, column->run->tasks[s->task].name.data));
    TRY(str_appendf(out, "</td><td data-label=\"row\">"));
    TRY(page_data(out, run_text(column->method, s->id)));
    TRY(str_appendf(out, "</td><td data-label=\"error\">"));
    TRY(page_data(out, run_text(column->method, s->error)));
    return str_appendf(out, "</td></tr>\n");
}

static int failed_table(struct Str *out, const struct Report *r)
{
    long n = 0, all = failed_rows(r);
    if (all == 0) return PC_OK;
    TRY(str_appendf(
        out, "<h3>Failed rows</h3><div class=\"wrap\"><table class=\"plain left\"><thead><tr>"
             "<th scope=\"col\">method</th><th scope=\"col\">task</th><th "
             "scope=\"col\">row</th><th scope=\"col\">error</th></tr></thead><tbody>\n"));
    for (int c = 0; c < r->n_columns; c++)
        for (int i = 0; i < r->all[c].shares.rows; i++)
            if (r->all[c].rows[i]->state == SAMPLE_FAILED && n++ < REPORT_FAILURES)
                TRY(failed_row(out, &r->columns[c], r->all[c].rows[i]));
    TRY(table_end(out));
    return all > REPORT_FAILURES ? str_appendf(out, "<p>And %ld more.</p>\n", all - REPORT_FAILURES)
                                 : PC_OK;
}

static int unread_table(struct Str *out, const struct Report *r)
{
    long listed = 0, all = unread_lines(r);
    if (all == 0) return PC_OK;
    TRY(str_appendf(
        out, "<h3>Not read</h3><div class=\"wrap\"><table class=\"plain left\"><thead><tr><th "
             "scope=\"col\">run</th><th scope=\"col\">file</th><th scope=\"col\">line</th>"
             "<th scope=\"col\">what</th></tr></thead><tbody>\n"));
    for (int i = 0; i < r->n_runs; i++)
        for (int p = 0; p < r->runs[i].n_problems; p++, listed++) {
            const struct RunProblem *problem = &r->runs[i].problems[p];
            TRY(str_appendf(out, "<tr><td data-label=\"run\">"));
            TRY(page_data(out, r->runs[i].name.data));
            TRY(str_appendf(out, "</td><td data-label=\"file\">"));
            TRY(page_data(out, problem->file.data ? problem->file.data : ""));
            TRY(str_appendf(out, "</td><td data-label=\"line\">"));
            TRY(problem->line ? str_appendf(out, "%ld", problem->line) : str_appendf(out, "–"));
            TRY(str_appendf(out, "</td><td data-label=\"what\">"));
            TRY(page_data(out, problem->what.data ? problem->what.data : ""));
            TRY(str_appendf(out, "</td></tr>\n"));
        }
    TRY(table_end(out));
    return all > listed ? str_appendf(out, "<p>And %ld more.</p>\n", all - listed) : PC_OK;
}

int page_problems(struct Str *out, const struct Report *r)
{
    if (failed_rows(r) == 0 && unread_lines(r) == 0) return PC_OK;
    TRY(str_appendf(
        out, "<section id=\"problems\"><h2>What went wrong</h2>\n<p>A mean stands over the rows "
             "that have a score: failed rows are in no mean, and are not counted as "
             "zero.</p>\n"));
    TRY(failed_table(out, r));
    TRY(unread_table(out, r));
    return str_appendf(out, "</section>\n");
}

/* report_maps.c - scores by length and depth, and KV by layer and head.
 *
 * One row of the data stands at one length in every column: the longest that any method saw, since a
 * method that cuts its input would else be compared on other texts than the rest.
 */
#include "report_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct Spot {
    const struct RunSample *sample;
    const char *id;
    int task, column;
    double length; /* tokens of the text, NAN */
};

struct Spots {
    struct Spot *at; /* [n] sorted by task and id */
    int n;
    double *room; /* [n] */
};

/* ==== Spots ==== */

static int by_row(const void *a, const void *b)
{
    const struct Spot *x = a, *y = b;
    if (x->task != y->task) return x->task < y->task ? -1 : 1;
    int order = strcmp(x->id, y->id);
    return order ? order : x->column - y->column;
}

static bool same_row(const struct Spot *a, const struct Spot *b)
{
    return a->task == b->task && strcmp(a->id, b->id) == 0;
}

static void share_lengths(struct Spots *s)
{
    for (int i = 0, end; i < s->n; i = end) {
        double most = NAN;
        for (end = i; end < s->n && same_row(&s->at[i], &s->at[end]); end++)
            most = fmax(most, s->at[end].sample->n_context); /* fmax leaves NAN out */
        for (int k = i; k < end; k++) s->at[k].length = most;
    }
}

static int spots_make(const struct Report *r, struct Spots *out)
{
    int n = 0;
    for (int c = 0; c < r->n_columns; c++) n += r->all[c].shares.rows;
    out->at = mem_alloc((size_t)n, sizeof *out->at);
    TRY(values_alloc(n, &out->room));
    if (!out->at) return PC_ENOMEM;
    for (int t = 0; t < r->n_tasks; t++)
        for (int c = 0; c < r->n_columns; c++) {
            const struct Cell *cell = report_cell(r, t, c);
            for (int i = 0; i < cell->shares.rows; i++)
                if (cell->rows[i]->state != SAMPLE_FAILED)
                    out->at[out->n++] =
                        (struct Spot){cell->rows[i],
                                      run_text(r->columns[c].method, cell->rows[i]->id), t, c, NAN};
        }
    if (out->n > 1) qsort(out->at, (size_t)out->n, sizeof *out->at, by_row);
    share_lengths(out);
    return PC_OK;
}

/* ==== Axes ==== */

struct Axis {
    int n, most;
    double *low, *high;
};

/* Ranges of about equally many of the sorted values; equal values stay in one range. */
static void axis_ranges(struct Axis *axis, const double *x, int n, int ranges)
{
    axis->n = 0;
    for (int k = 0; k < ranges; k++) {
        double low = x[(int)((int64_t)n * k / ranges)];
        if (axis->n && low <= axis->low[axis->n - 1]) continue;
        axis->low[axis->n++] = low;
    }
    for (int k = 0, i = 0; k < axis->n; k++) {
        while (i < n && (k + 1 == axis->n || x[i] < axis->low[k + 1])) i++;
        axis->high[k] = x[i - 1];
    }
}

/* Each value by itself when there are few, else ten ranges. Sorts x. */
static void axis_values(struct Axis *axis, double *x, int n)
{
    stats_sort(x, n);
    axis->n = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && x[i] == x[i - 1]) continue;
        if (axis->n == axis->most) {
            axis_ranges(axis, x, n, 10);
            return;
        }
        axis->low[axis->n] = axis->high[axis->n] = x[i];
        axis->n++;
    }
}

static int axis_find(const struct Axis *axis, double x)
{
    for (int k = axis->n - 1; k >= 0; k--)
        if (x >= axis->low[k]) return x <= axis->high[k] ? k : -1;
    return -1;
}

/* ==== Curves ==== */

static bool on_curve(const struct Report *r, const struct Curve *curve, const struct Spot *spot)
{
    return curve->task >= 0 ? spot->task == curve->task
                            : strcmp(r->tasks[spot->task].benchmark.data, curve->benchmark) == 0;
}

static double curve_x(const struct Curve *curve, const struct Spot *spot)
{
    return curve->by_target ? spot->sample->target_tokens : spot->length;
}

static void curve_axis(const struct Report *r, struct Curve *curve, const struct Spots *s)
{
    struct Axis axis = {.most = REPORT_BINS, .low = curve->low, .high = curve->high};
    int n = 0, least_rows = 5, ranges = 5;
    for (int i = 0; i < s->n; i++) {
        bool again = i > 0 && same_row(&s->at[i - 1], &s->at[i]);
        double x = curve_x(curve, &s->at[i]);
        if (on_curve(r, curve, &s->at[i]) && isfinite(x) && !again) s->room[n++] = x;
    }
    if (curve->by_target) {
        axis_values(&axis, s->room, n);
    } else {
        if (n / least_rows < ranges) ranges = n / least_rows;
        stats_sort(s->room, n);
        if (ranges >= 2) axis_ranges(&axis, s->room, n, ranges);
    }
    curve->n_bins = axis.n;
}

static int curve_point(const struct Report *r, struct Curve *curve, const struct Spots *s, int at)
{
    struct Axis axis = {.n = curve->n_bins, .low = curve->low, .high = curve->high};
    int bin = at / r->n_columns, column = at % r->n_columns, n = 0;
    for (int i = 0; i < s->n; i++) {
        const struct Spot *spot = &s->at[i];
        if (spot->column == column && spot->sample->state == SAMPLE_SCORED &&
            on_curve(r, curve, spot) && axis_find(&axis, curve_x(curve, spot)) == bin)
            s->room[n++] = spot->sample->score;
    }
    TRY(stats_mean((struct Values){s->room, n}, &curve->points[at]));
    n = 0;
    for (int i = 0; i < s->n; i++) {
        const struct Spot *spot = &s->at[i];
        if (spot->column == column && isfinite(spot->sample->total) && on_curve(r, curve, spot) &&
            axis_find(&axis, curve_x(curve, spot)) == bin)
            s->room[n++] = spot->sample->total;
    }
    return stats_quantile((struct Values){s->room, n}, 0.5, &curve->seconds[at]);
}

/* A curve needs two lengths. */
static int add_curve(struct Report *r, const struct Curve *made, const struct Spots *s)
{
    struct Curve *curve = &r->curves[r->n_curves];
    *curve = *made;
    curve_axis(r, curve, s);
    if (curve->n_bins < 2) return PC_OK;
    int n = curve->n_bins * r->n_columns;
    r->n_curves++;
    curve->points = mem_alloc((size_t)n, sizeof *curve->points);
    curve->seconds = mem_alloc((size_t)n, sizeof *curve->seconds);
    if (!curve->points || !curve->seconds) return PC_ENOMEM;
    for (int at = 0; at < n; at++) TRY(curve_point(r, curve, s, at));
    return PC_OK;
}

static bool has_target(const struct Spots *s, int task)
{
    for (int i = 0; i < s->n; i++)
        if (s->at[i].task == task && s->at[i].sample->target_tokens > 0) return true;
    return false;
}

static int benchmark_curves(struct Report *r, int first, int end, const struct Spots *s)
{
    int n_target = 0;
    const char *benchmark = r->tasks[first].benchmark.data;
    for (int t = first; t < end; t++) n_target += has_target(s, t);
    TRY(add_curve(r, &(struct Curve){.benchmark = benchmark, .task = -1, .by_target = n_target > 0},
                  s));
    for (int t = first; t < end && n_target > 1; t++)
        if (has_target(s, t))
            TRY(add_curve(r, &(struct Curve){.benchmark = benchmark, .task = t, .by_target = true},
                          s));
    return PC_OK;
}

static int make_curves(struct Report *r, const struct Spots *s)
{
    r->curves = mem_alloc(2 * (size_t)r->n_tasks + 1, sizeof *r->curves);
    if (!r->curves) return PC_ENOMEM;
    for (int t = 0, end; t < r->n_tasks; t = end) {
        for (end = t + 1; end < r->n_tasks &&
                          strcmp(r->tasks[t].benchmark.data, r->tasks[end].benchmark.data) == 0;)
            end++;
        TRY(benchmark_curves(r, t, end, s));
    }
    return PC_OK;
}

/* ==== Needles ==== */

static bool is_needle(const struct Spot *spot)
{
    return spot->sample->state == SAMPLE_SCORED && spot->sample->target_tokens > 0 &&
           !isnan(spot->sample->depth);
}

static void heat_axes(struct Heat *heat, const struct Spot *at, int count, double *room)
{
    struct Axis length = {.most = REPORT_BINS, .low = heat->length_low, .high = heat->length_high};
    struct Axis depth = {.most = REPORT_DEPTHS, .low = heat->depth_low, .high = heat->depth_high};
    int n = 0;
    for (int i = 0; i < count; i++)
        if (is_needle(&at[i])) room[n++] = at[i].sample->target_tokens;
    axis_values(&length, room, n);
    n = 0;
    for (int i = 0; i < count; i++)
        if (is_needle(&at[i])) room[n++] = at[i].sample->depth;
    axis_values(&depth, room, n);
    heat->n_lengths = length.n;
    heat->n_depths = depth.n;
}

static void heat_fill(struct Heat *heat, const struct Spot *at, int count)
{
    struct Axis length = {.n = heat->n_lengths, .low = heat->length_low, .high = heat->length_high};
    struct Axis depth = {.n = heat->n_depths, .low = heat->depth_low, .high = heat->depth_high};
    for (int i = 0; i < count; i++) {
        if (!is_needle(&at[i])) continue;
        int x = axis_find(&length, at[i].sample->target_tokens);
        int y = axis_find(&depth, at[i].sample->depth);
        if (x < 0 || y < 0) continue;
        int cell = (at[i].column * heat->n_depths + y) * heat->n_lengths + x;
        heat->mean[cell] += at[i].sample->score;
        heat->n[cell]++;
    }
}

static int add_heat(struct Report *r, int task, const struct Spot *at, int count, double *room)
{
    struct Heat *heat = &r->heats[r->n_heats];
    *heat = (struct Heat){.task = task};
    heat_axes(heat, at, count, room);
    int n = r->n_columns * heat->n_depths * heat->n_lengths;
    if (n == 0) return PC_OK;
    r->n_heats++;
    heat->n = mem_alloc((size_t)n, sizeof *heat->n);
    TRY(values_alloc(n, &heat->mean));
    if (!heat->n) return PC_ENOMEM;
    heat_fill(heat, at, count);
    for (int i = 0; i < n; i++) heat->mean[i] = heat->n[i] ? heat->mean[i] / heat->n[i] : NAN;
    return PC_OK;
}

static int make_heats(struct Report *r, const struct Spots *s)
{
    r->heats = mem_alloc((size_t)r->n_tasks, sizeof *r->heats);
    if (!r->heats) return PC_ENOMEM;
    for (int i = 0, end; i < s->n; i = end) {
        for (end = i; end < s->n && s->at[end].task == s->at[i].task;) end++;
        TRY(add_heat(r, s->at[i].task, s->at + i, end - i, s->room));
    }
    return PC_OK;
}

/* ==== KV ==== */

/* Entries that the row counts in all; NAN when its two counts are not of one unit. */
static double kv_before(const struct RunSample *s, double sum)
{
    bool same = isfinite(s->kv_kept) && fabs(sum - s->kv_kept) <= 0.01 * fmax(sum, s->kv_kept);
    return same && s->kv_in >= s->kv_kept ? s->kv_in : NAN;
}

static int kv_fill(const struct Report *r, int column, struct KvMap *map)
{
    const struct Cell *all = &r->all[column];
    double before = 0;
    int n_before = 0;
    for (int i = 0; i < all->shares.rows; i++) {
        const struct RunSample *s = all->rows[i];
        int n = s->n_layers * s->n_heads;
        if (n == 0) continue;
        const double *heads = r->columns[column].method->heads + s->heads;
        if (!map->mean) {
            map->n_layers = s->n_layers;
            map->n_heads = s->n_heads;
            TRY(values_alloc(n, &map->mean));
        }
        if (s->n_layers != map->n_layers || s->n_heads != map->n_heads) {
            map->n_left_out++;
            continue;
        }
        double sum = 0;
        for (int k = 0; k < n; k++) {
            map->mean[k] += heads[k];
            sum += heads[k];
        }
        map->n_rows++;
        double in = kv_before(s, sum);
        if (isnan(in)) continue;
        before += in / n;
        n_before++;
    }
    for (int k = 0; k < map->n_layers * map->n_heads; k++) map->mean[k] /= map->n_rows;
    map->share_of = n_before == map->n_rows && before > 0 ? before / n_before : NAN;
    return PC_OK;
}

int report_maps(struct Report *r)
{
    struct Spots spots = {0};
    r->kv = mem_alloc((size_t)r->n_columns, sizeof *r->kv);
    if (!r->kv) return PC_ENOMEM;
    for (int c = 0; c < r->n_columns; c++) TRY(kv_fill(r, c, &r->kv[c]));
    int status = spots_make(r, &spots);
    if (status == PC_OK) status = make_curves(r, &spots);
    if (status == PC_OK) status = make_heats(r, &spots);
    mem_free(spots.at);
    mem_free(spots.room);
    return status;
}

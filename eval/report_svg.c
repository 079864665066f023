/* report_svg.c - see report_svg.h. Widths are near what the page gives, so that text keeps its size. */
#include "report_svg.h"
#include "report_write.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ==== Marks ==== */

static const char *const DASHES[SVG_STYLES] = {"none", "7 3",     "2 3",  "9 3 2 3",
                                               "5 2",  "1.5 2.5", "12 4", "4 2 1 2"};

static int mark(struct Str *out, int column, double x, double y, double r)
{
    switch (column % SVG_STYLES) {
    case 0:
        return str_appendf(out, "<circle class=\"mark\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>", x, y,
                           r);
    case 1:
        return str_appendf(out, "<path class=\"mark\" d=\"M%.1f %.1fh%.1fv%.1fh-%.1fz\"/>",
                           x - r * 0.9, y - r * 0.9, 1.8 * r, 1.8 * r, 1.8 * r);
    case 2:
        return str_appendf(out, "<path class=\"mark\" d=\"M%.1f %.1fl%.1f %.1fh-%.1fz\"/>", x,
                           y - 1.2 * r, 1.15 * r, 2.1 * r, 2.3 * r);
    case 3:
        return str_appendf(
            out, "<path class=\"mark\" d=\"M%.1f %.1fl%.1f %.1fl-%.1f %.1fl-%.1f -%.1fz\"/>", x,
            y - 1.3 * r, 1.2 * r, 1.3 * r, 1.2 * r, 1.3 * r, 1.2 * r, 1.3 * r);
    case 4:
        return str_appendf(out, "<path class=\"mark\" d=\"M%.1f %.1fl-%.1f -%.1fh%.1fz\"/>", x,
                           y + 1.2 * r, 1.15 * r, 2.1 * r, 2.3 * r);
    case 5:
        return str_appendf(out, "<path class=\"mark line\" d=\"M%.1f %.1fv%.1fM%.1f %.1fh%.1f\"/>",
                           x, y - 1.2 * r, 2.4 * r, x - 1.2 * r, y, 2.4 * r);
    case 6:
        return str_appendf(out, "<circle class=\"mark open\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>",
                           x, y, r * 0.9);
    default:
        return str_appendf(out, "<path class=\"mark open\" d=\"M%.1f %.1fh%.1fv%.1fh-%.1fz\"/>",
                           x - r * 0.8, y - r * 0.8, 1.6 * r, 1.6 * r, 1.6 * r);
    }
}

int svg_legend(struct Str *out, int column)
{
    TRY(str_appendf(
        out,
        "<svg class=\"key c%d\" viewBox=\"0 0 30 14\" aria-hidden=\"true\"><line class=\"curve\" "
        "x1=\"1\" x2=\"29\" y1=\"7\" y2=\"7\" stroke-dasharray=\"%s\"/>",
        column % SVG_STYLES, DASHES[column % SVG_STYLES]));
    TRY(mark(out, column, 15, 7, 4.2));
    return str_appendf(out, "</svg>");
}

/* ==== Means on a line ==== */

enum { BAR_WIDTH = 200, BAR_EDGE = 7, BAR_MIDDLE = 8 };

static double bar_x(double share)
{
    return BAR_EDGE + fmin(1, fmax(0, share)) * (BAR_WIDTH - 2 * BAR_EDGE);
}

/* low, mean, high as shares of the line's length. */
static int bar_draw(struct Str *out, const struct Estimate *e, int column, double origin,
                    double scale)
{
    double mean = bar_x((e->mean - origin) / scale);
    if (e->kind != INTERVAL_NONE) {
        double low = bar_x((e->low - origin) / scale), high = bar_x((e->high - origin) / scale);
        TRY(str_appendf(
            out,
            "<rect class=\"ci\" x=\"%.1f\" y=\"4.5\" width=\"%.1f\" height=\"7\"/><path "
            "class=\"cap\" d=\"M%.1f 3.5v9M%.1f 3.5v9\"/>",
            low, fmax(high - low, 0.8), low, high));
    }
    TRY(mark(out, column, mean, BAR_MIDDLE, 3.8));
    return str_appendf(out, "</svg>");
}

int svg_bar(struct Str *out, const struct Estimate *e, int column)
{
    if (e->n == 0) return PC_OK;
    TRY(str_appendf(
        out,
        "<svg class=\"bar\" viewBox=\"0 0 %d 16\" aria-hidden=\"true\"><path class=\"axis\" "
        "d=\"M%d 8H%dM%.1f 5v6M%.1f 5v6M%.1f 5v6\"/>",
        BAR_WIDTH, BAR_EDGE, BAR_WIDTH - BAR_EDGE, bar_x(0), bar_x(0.5), bar_x(1)));
    return bar_draw(out, e, column, 0, 1);
}

int svg_difference(struct Str *out, const struct Estimate *e, double scale, int column)
{
    if (e->n == 0) return PC_OK;
    TRY(str_appendf(
        out,
        "<svg class=\"bar\" viewBox=\"0 0 %d 16\" aria-hidden=\"true\"><path class=\"axis\" "
        "d=\"M%d 8H%d\"/><path class=\"zero\" d=\"M%.1f 0v16\"/>",
        BAR_WIDTH, BAR_EDGE, BAR_WIDTH - BAR_EDGE, bar_x(0.5)));
    return bar_draw(out, e, column, -scale, 2 * scale);
}

/* ==== Curves ==== */

enum { CURVE_WIDTH = 440, CURVE_HEIGHT = 270, CURVE_LEFT = 30, CURVE_TOP = 10, CURVE_BOTTOM = 226 };

struct CurveSpace {
    const struct Report *r;
    const struct Curve *curve;
};

/* Methods stand a little apart, so that their intervals do not cover each other. */
static double curve_x(const struct CurveSpace *s, int bin, int column)
{
    double step = (double)(CURVE_WIDTH - CURVE_LEFT) / s->curve->n_bins;
    double apart = fmin(8, 0.6 * step / s->r->n_columns);
    return CURVE_LEFT + (bin + 0.5) * step + (column - (s->r->n_columns - 1) / 2.0) * apart;
}

static double curve_y(double score)
{
    return CURVE_BOTTOM - score * (CURVE_BOTTOM - CURVE_TOP);
}

static int curve_axes(struct Str *out, const struct CurveSpace *s)
{
    char text[LABEL];
    double step = (double)(CURVE_WIDTH - CURVE_LEFT) / s->curve->n_bins;
    for (int i = 0; i <= 4; i++)
        TRY(str_appendf(
            out,
            "<path class=\"axis\" d=\"M%d %.1fH%d\"/><text class=\"soft\" x=\"%d\" y=\"%.1f\" "
            "text-anchor=\"end\">%d</text>",
            CURVE_LEFT, curve_y(i / 4.0), CURVE_WIDTH, CURVE_LEFT - 6, curve_y(i / 4.0) + 4,
            25 * i));
    for (int b = 0; b < s->curve->n_bins; b++) {
        /* of many labels every other one is put lower */
        int lower = s->curve->n_bins > 6 && b % 2 ? 14 : 0;
        TRY(str_appendf(out,
                        "<text class=\"soft\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>",
                        CURVE_LEFT + (b + 0.5) * step, CURVE_BOTTOM + 17 + lower,
                        say_range(s->curve->low[b], s->curve->high[b], text)));
    }
    return str_appendf(
        out, "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"end\">tokens of text</text>\n",
        CURVE_WIDTH, CURVE_HEIGHT - 2);
}

static int curve_line(struct Str *out, const struct CurveSpace *s, int column)
{
    const struct Estimate *points = s->curve->points;
    bool first = true;
    TRY(str_appendf(out, "<g class=\"c%d\"><path class=\"curve\" stroke-dasharray=\"%s\" d=\"",
                    column % SVG_STYLES, DASHES[column % SVG_STYLES]));
    for (int b = 0; b < s->curve->n_bins; b++) {
        const struct Estimate *e = &points[b * s->r->n_columns + column];
        if (e->n == 0) continue;
        TRY(str_appendf(out, "%c%.1f %.1f", first ? 'M' : 'L', curve_x(s, b, column),
                        curve_y(e->mean)));
        first = false;
    }
    TRY(str_appendf(out, "\"/>"));
    for (int b = 0; b < s->curve->n_bins; b++) {
        const struct Estimate *e = &points[b * s->r->n_columns + column];
        double x = curve_x(s, b, column);
        if (e->n == 0) continue;
        if (e->kind != INTERVAL_NONE)
            TRY(str_appendf(out, "<path class=\"cap thin\" d=\"M%.1f %.1fV%.1f\"/>", x,
                            curve_y(e->low), curve_y(e->high)));
        TRY(mark(out, column, x, curve_y(e->mean), 3.8));
    }
    return str_appendf(out, "</g>\n");
}

int svg_curve(struct Str *out, const struct Report *r, const struct Curve *curve)
{
    struct CurveSpace s = {r, curve};
    TRY(str_appendf(
        out,
        "<svg class=\"chart\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"score by length; the table beside "
        "it has the numbers\">\n",
        CURVE_WIDTH, CURVE_HEIGHT));
    TRY(curve_axes(out, &s));
    for (int c = 0; c < r->n_columns; c++) TRY(curve_line(out, &s, c));
    return str_appendf(out, "</svg>\n");
}

/* ==== Cells ==== */

/* One cell with its number; share (0..1) is its darkness. */
static int cell(struct Str *out, double x, double y, double w, double h)
{
    return str_appendf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"", x, y, w,
                       h);
}

static int shade(struct Str *out, double share)
{
    return str_appendf(out, " class=\"heat\" fill-opacity=\"%.3f\"/>", 0.04 + 0.58 * share);
}

static int number(struct Str *out, double x, double y, const char *text)
{
    return str_appendf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", x, y,
                       text);
}

enum { HEAT_LEFT = 52, HEAT_TOP = 20, HEAT_CELL = 46, HEAT_ROW = 24 };

static int heat_cell(struct Str *out, const struct Heat *heat, int column, int y, int x)
{
    int at = (column * heat->n_depths + y) * heat->n_lengths + x;
    double left = HEAT_LEFT + x * HEAT_CELL, top = HEAT_TOP + y * HEAT_ROW;
    char depth[LABEL], length[LABEL], text[NUMBER], digits[NUMBER];
    say_depth(heat->depth_low[y], heat->depth_high[y], depth);
    say_range(heat->length_low[x], heat->length_high[x], length);
    snprintf(digits, sizeof digits, "%.0f", 100 * heat->mean[at]);
    if (heat->n[at] == 0) {
        TRY(str_appendf(out, "<g><title>depth %s, %s tokens: no rows</title>", depth, length));
        TRY(cell(out, left, top, HEAT_CELL - 1.5, HEAT_ROW - 1.5));
        TRY(str_appendf(out, " class=\"none\"/>"));
        TRY(number(out, left + HEAT_CELL / 2.0, top + 16, "–"));
        return str_appendf(out, "</g>\n");
    }
    TRY(str_appendf(out, "<g><title>depth %s, %s tokens: %s, mean of %d</title>", depth, length,
                    say_score(heat->mean[at], text), heat->n[at]));
    TRY(cell(out, left, top, HEAT_CELL - 1.5, HEAT_ROW - 1.5));
    TRY(shade(out, heat->mean[at]));
    TRY(number(out, left + HEAT_CELL / 2.0 - 0.7, top + 16, digits));
    return str_appendf(out, "</g>\n");
}

int svg_heat_width(const struct Heat *heat)
{
    return HEAT_LEFT + heat->n_lengths * HEAT_CELL;
}

int svg_heat(struct Str *out, const struct Heat *heat, int column)
{
    int width = svg_heat_width(heat);
    int height = HEAT_TOP + heat->n_depths * HEAT_ROW;
    char text[LABEL];
    TRY(str_appendf(out,
                    "<svg class=\"cells\" width=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\" "
                    "aria-label=\"mean score by depth and length\">\n"
                    "<text class=\"soft\" x=\"%d\" y=\"13\" text-anchor=\"end\">depth</text>\n",
                    width, width, height, HEAT_LEFT - 8));
    for (int x = 0; x < heat->n_lengths; x++)
        TRY(str_appendf(
            out, "<text class=\"soft\" x=\"%.1f\" y=\"13\" text-anchor=\"middle\">%s</text>\n",
            HEAT_LEFT + (x + 0.5) * HEAT_CELL,
            say_range(heat->length_low[x], heat->length_high[x], text)));
    for (int y = 0; y < heat->n_depths; y++) {
        TRY(str_appendf(out,
                        "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n",
                        HEAT_LEFT - 8, HEAT_TOP + y * HEAT_ROW + 16,
                        say_depth(heat->depth_low[y], heat->depth_high[y], text)));
        for (int x = 0; x < heat->n_lengths; x++) TRY(heat_cell(out, heat, column, y, x));
    }
    return str_appendf(out, "</svg>\n");
}

/* ==== Chunks ==== */

enum {
    HITS_WIDTH = 380,
    HITS_LEFT = 34,
    HITS_TOP = 16,
    HITS_BOTTOM = 176, /* of the marks; the strip stands below */
    HITS_MARKS = 1500, /* of more rows every so many-th is drawn */
};

struct HitSpace {
    double most; /* worst rank */
    double jitter;
};

static double hit_y(const struct HitSpace *s, double rank)
{
    double span = s->most > 1 ? log2(s->most) : 1;
    return HITS_TOP + 8 + log2(rank) / span * (HITS_BOTTOM - HITS_TOP - 16);
}

static int hit_axes(struct Str *out, const struct HitSpace *s)
{
    TRY(str_appendf(
        out, "<text class=\"soft\" x=\"%d\" y=\"10\">rank of the answer's chunk by score</text>",
        HITS_LEFT));
    for (double rank = 1; rank <= s->most; rank *= 2)
        TRY(str_appendf(
            out,
            "<path class=\"axis\" d=\"M%d %.1fH%d\"/><text class=\"soft\" x=\"%d\" y=\"%.1f\" "
            "text-anchor=\"end\">%.0f</text>",
            HITS_LEFT, hit_y(s, rank), HITS_WIDTH, HITS_LEFT - 6, hit_y(s, rank) + 4, rank));
    return str_append(out, "\n", 1);
}

/* Kept: a dot. Dropped: a cross. Equal rows are moved apart by a fixed pattern. */
static int hit_mark(struct Str *out, const struct HitSpace *s, const struct RunSample *row, int i)
{
    double place = (row->answer_chunk + 0.5) / row->n_chunks;
    double x = HITS_LEFT + 4 + place * (HITS_WIDTH - HITS_LEFT - 8) + s->jitter * (i * 7 % 5 - 2);
    double y = hit_y(s, row->answer_rank) + s->jitter * (i * 3 % 5 - 2);
    if (row->n_found == row->n_answer)
        return str_appendf(out, "<circle class=\"kept\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.2\"/>", x, y);
    return str_appendf(out, "<path class=\"lost\" d=\"M%.1f %.1fl6 6m0 -6l-6 6\"/>", x - 3, y - 3);
}

static int hit_strip(struct Str *out, const struct Hits *h, int top)
{
    double step = (double)(HITS_WIDTH - HITS_LEFT) / REPORT_TENTHS;
    char text[NUMBER], n[NUMBER];
    for (int i = 0; i < REPORT_TENTHS; i++) {
        double share = h->tenth_n[i] ? (double)h->tenth_all[i] / h->tenth_n[i] : NAN;
        double x = HITS_LEFT + i * step;
        snprintf(text, sizeof text, "%.0f", 100 * share);
        TRY(str_appendf(out, "<g><title>tenth %d of the text: %d of %d kept</title>", i + 1,
                        h->tenth_all[i], h->tenth_n[i]));
        TRY(cell(out, x, top, step - 1.5, 22));
        TRY(h->tenth_n[i] ? shade(out, share) : str_appendf(out, " class=\"none\"/>"));
        TRY(number(out, x + step / 2, top + 15, h->tenth_n[i] ? text : "–"));
        snprintf(n, sizeof n, "%d", h->tenth_n[i]);
        TRY(str_appendf(
            out, "<text class=\"soft\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text></g>\n",
            x + step / 2, top + 35, n));
    }
    return str_appendf(
        out,
        "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%%</text><text "
        "class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"end\">rows</text><text class=\"soft\" "
        "x=\"%d\" y=\"%d\">start of the text</text><text class=\"soft\" x=\"%d\" y=\"%d\" "
        "text-anchor=\"end\">end</text>\n",
        HITS_LEFT - 6, top + 15, HITS_LEFT - 6, top + 35, HITS_LEFT, top + 52, HITS_WIDTH,
        top + 52);
}

int svg_hits(struct Str *out, const struct Report *r, int column)
{
    const struct Cell *all = &r->all[column];
    struct HitSpace s = {.most = 1, .jitter = all->hits.n_ranked > 40 ? 1.1 : 0};
    bool ranked = all->hits.n_ranked > 0;
    int top = ranked ? HITS_BOTTOM + 8 : 4, every = all->hits.n_ranked / HITS_MARKS + 1;
    for (int i = 0; i < all->shares.rows; i++)
        if (isfinite(all->rows[i]->answer_rank)) s.most = fmax(s.most, all->rows[i]->answer_rank);
    TRY(str_appendf(
        out,
        "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"place of the answer against what "
        "was kept\">\n",
        HITS_WIDTH, top + 58));
    if (ranked) TRY(hit_axes(out, &s));
    for (int i = 0, seen = 0; i < all->shares.rows && ranked; i++) {
        const struct RunSample *row = all->rows[i];
        if (row->state == SAMPLE_FAILED || row->n_answer == 0 || isnan(row->answer_rank)) continue;
        if (seen++ % every == 0) TRY(hit_mark(out, &s, row, seen));
    }
    TRY(hit_strip(out, &all->hits, top));
    return str_appendf(out, "</svg>\n");
}

/* ==== KV ==== */

enum { KV_LEFT = 40, KV_TOP = 20, KV_WIDTH = 480, KV_MEAN = 52 };

struct KvSpace {
    double most; /* what the darkest cell holds */
    double step;
    int row;
};

static int kv_text(const struct KvMap *map, double entries, char text[NUMBER])
{
    if (isnan(map->share_of))
        say_short(entries, text);
    else
        snprintf(text, NUMBER, "%.0f", 100 * entries / map->share_of);
    return PC_OK;
}

static int kv_row(struct Str *out, const struct KvMap *map, const struct KvSpace *s, int layer)
{
    char text[NUMBER], entries[NUMBER];
    double sum = 0, top = KV_TOP + layer * s->row;
    TRY(str_appendf(out, "<text class=\"soft\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d</text>",
                    KV_LEFT - 6, top + s->row - 4.5, layer));
    for (int head = 0; head < map->n_heads; head++) {
        double value = map->mean[layer * map->n_heads + head], x = KV_LEFT + head * s->step;
        sum += value;
        kv_text(map, value, text);
        TRY(str_appendf(out, "<g><title>layer %d, head %d: %s entries</title>", layer, head,
                        say_count(value, entries)));
        TRY(cell(out, x, top, s->step - 1, s->row - 1));
        TRY(shade(out, s->most > 0 ? value / s->most : 0));
        if (s->step >= 22) TRY(number(out, x + s->step / 2, top + s->row - 4.5, text));
        TRY(str_appendf(out, "</g>"));
    }
    kv_text(map, sum / map->n_heads, text);
    return str_appendf(
        out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\" class=\"strong\">%s</text>\n",
        KV_LEFT + map->n_heads * s->step + KV_MEAN - 8, top + s->row - 4.5, text);
}

static double kv_step(const struct KvMap *map)
{
    double room = KV_WIDTH - KV_LEFT - KV_MEAN;
    return fmin(map->n_heads > 4 ? 31 : 44, room / map->n_heads);
}

int svg_kv_width(const struct KvMap *map)
{
    return (int)(KV_LEFT + kv_step(map) * map->n_heads + KV_MEAN);
}

int svg_kv(struct Str *out, const struct KvMap *map)
{
    struct KvSpace s = {.step = kv_step(map), .row = map->n_layers > 40 ? 14 : 16};
    int n = map->n_layers * map->n_heads, width = svg_kv_width(map);
    for (int i = 0; i < n; i++) s.most = fmax(s.most, map->mean[i]);
    if (!isnan(map->share_of)) s.most = fmax(s.most, map->share_of);
    TRY(str_appendf(
        out,
        "<svg class=\"cells small\" width=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\" "
        "aria-label=\"KV kept by layer and head\">\n<text class=\"soft\" x=\"%d\" y=\"13\" "
        "text-anchor=\"end\">layer</text>",
        width, width, KV_TOP + map->n_layers * s.row + 2, KV_LEFT - 6));
    for (int head = 0; head < map->n_heads; head++)
        if (s.step >= 22 || head % 8 == 0)
            TRY(str_appendf(
                out, "<text class=\"soft\" x=\"%.1f\" y=\"13\" text-anchor=\"middle\">%s%d</text>",
                KV_LEFT + (head + 0.5) * s.step, head || s.step < 40 ? "" : "head ", head));
    TRY(str_appendf(out, "<text class=\"soft\" x=\"%d\" y=\"13\" text-anchor=\"end\">mean</text>\n",
                    width - 8));
    for (int layer = 0; layer < map->n_layers; layer++) TRY(kv_row(out, map, &s, layer));
    return str_appendf(out, "</svg>\n");
}

/* bias_svg.c - see bias_svg.h. */
#include "bias_svg.h"

#include <math.h>

enum { LEFT = 70, TOP = 16, BOTTOM = 22, HEAT_ROW = 12, BAR_ROW = 14, HEAD_ROW = 22 };

static const int PLOT = BIAS_WIDTH - LEFT - 10;

/* A layer's number beside every row, or every few where rows are many. */
static int layer_labels(struct Str *out, int n_layers, int row)
{
    for (int l = 0; l<n_layers; l += n_layers> 40 ? 4 : n_layers > 12 ? 2 : 1)
        TRY(str_appendf(out,
                        "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%s%d</text>\n",
                        LEFT - 6, TOP + l * row + row - 3, l ? "" : "layer ", l));
    return PC_OK;
}

/* ==== Place in the chunk ==== */

/* Densities in powers of two: full colour is this many of them away from uniform. */
static const double FULL = 4;

/* Opacity and colour of a density; a bin that got nothing at all is as far below as can be. */
static double heat_colour(double density, const char **fill)
{
    double powers = density > 0 ? log2(density) : -FULL;
    *fill = powers >= 0 ? "var(--keep)" : "var(--b)";
    return fmin(fabs(powers) / FULL, 1);
}

/* Short, since there are thousands. */
static int heat_cell(struct Str *out, const struct BiasProfile *p, int layer, int bin)
{
    const char *fill;
    double density = bias_bin_density(p, layer, ALL_HEADS, bin), width = (double)PLOT / BIAS_BINS;
    double opacity = heat_colour(density, &fill);
    return str_appendf(
        out,
        "<path d=\"M%.1f %dh%.1fv%dh-%.1fz\" fill=\"%s\" opacity=\"%.2f\"><title>layer "
        "%d, %.0f-%.0f%%: %.2fx</title></path>\n",
        LEFT + bin * width, TOP + layer * HEAT_ROW, width - 0.4, HEAT_ROW - 1, width - 0.4, fill,
        opacity, layer, 100.0 * bin / BIAS_BINS, 100.0 * (bin + 1) / BIAS_BINS, density);
}

int bias_heat_height(const struct BiasProfile *p)
{
    return TOP + p->n_layers * HEAT_ROW + BOTTOM;
}

int bias_heat(struct Str *out, const struct BiasProfile *p)
{
    TRY(layer_labels(out, p->n_layers, HEAT_ROW));
    for (int l = 0; l < p->n_layers; l++)
        for (int b = 0; b < BIAS_BINS; b++) TRY(heat_cell(out, p, l, b));
    for (int i = 0; i <= 4; i++)
        TRY(str_appendf(out,
                        "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"%s\">%d%%%s</text>\n",
                        LEFT + PLOT * i / 4, bias_heat_height(p) - 6,
                        i == 0   ? "start"
                        : i == 4 ? "end"
                                 : "middle",
                        25 * i, i == 2 ? " of the chunk" : ""));
    return PC_OK;
}

int bias_heat_legend(struct Str *out)
{
    static const double steps[] = {1.0 / 16, 1.0 / 4, 1.0 / 2, 1, 2, 4, 16};
    static const char *const names[] = {"1/16", "1/4", "1/2", "uniform", "2x", "4x", "16x"};
    for (int i = 0; i < 7; i++) {
        const char *fill;
        double opacity = heat_colour(steps[i], &fill);
        TRY(str_appendf(out,
                        "<rect x=\"%d\" y=\"3\" width=\"26\" height=\"11\" fill=\"%s\" "
                        "fill-opacity=\"%.2f\" stroke=\"var(--line)\"/><text x=\"%d\" "
                        "y=\"13\">%s</text>\n",
                        LEFT + i * 96, fill, opacity, LEFT + i * 96 + 32, names[i]));
    }
    return PC_OK;
}

/* ==== Shares ==== */

static const struct {
    enum BiasPart part;
    const char *name, *fill, *letter;
    double opacity;
} PARTS[BIAS_PARTS] = {
    {PART_PREFIX, "shared prefix", "var(--drop)", "", 1},
    {PART_SINK, "sink", "var(--b)", "S", 0.75},
    {PART_MIDDLE, "middle", "var(--a)", "M", 0.55},
    {PART_RECENT, "recent", "var(--c)", "R", 0.7},
    {PART_QUESTION, "the question itself", "var(--d)", "", 0.25},
};

static int bar_row(struct Str *out, const struct BiasProfile *p, int layer)
{
    double x = LEFT;
    for (int i = 0; i < BIAS_PARTS; i++) {
        double share = bias_share(p, layer, ALL_HEADS, PARTS[i].part), width = share * PLOT;
        TRY(str_appendf(out,
                        "<g><title>layer %d, %s: %.1f%% of all attention</title><rect x=\"%.2f\" "
                        "y=\"%d\" width=\"%.2f\" height=\"%d\" fill=\"%s\" fill-opacity=\"%.2f\"/>",
                        layer, PARTS[i].name, 100 * share, x, TOP + layer * BAR_ROW,
                        fmax(width - 0.5, 0), BAR_ROW - 2, PARTS[i].fill, PARTS[i].opacity));
        if (width > 40)
            TRY(str_appendf(out, "<text x=\"%.1f\" y=\"%d\">%s %.0f</text>", x + 5,
                            TOP + layer * BAR_ROW + BAR_ROW - 4, PARTS[i].letter, 100 * share));
        TRY(str_appendf(out, "</g>\n"));
        x += width;
    }
    return PC_OK;
}

int bias_bars_height(const struct BiasProfile *p)
{
    return TOP + p->n_layers * BAR_ROW + 4;
}

int bias_bars(struct Str *out, const struct BiasProfile *p)
{
    TRY(layer_labels(out, p->n_layers, BAR_ROW));
    for (int l = 0; l < p->n_layers; l++) TRY(bar_row(out, p, l));
    return PC_OK;
}

int bias_bars_legend(struct Str *out)
{
    for (int i = 0; i < BIAS_PARTS; i++)
        TRY(str_appendf(out,
                        "<rect x=\"%d\" y=\"3\" width=\"26\" height=\"11\" fill=\"%s\" "
                        "fill-opacity=\"%.2f\"/><text x=\"%d\" y=\"13\">%s%s%s</text>\n",
                        LEFT + i * 150, PARTS[i].fill, PARTS[i].opacity, LEFT + i * 150 + 32,
                        PARTS[i].letter, *PARTS[i].letter ? ": " : "", PARTS[i].name));
    return PC_OK;
}

/* ==== Heads ==== */

static int head_cell(struct Str *out, const struct BiasProfile *p, int layer, int head)
{
    static const struct {
        const char *letter, *fill;
        double opacity;
    } looks[BIAS_SHAPES] = {{"U", "var(--d)", 0.6},
                            {"S", "var(--b)", 0.6},
                            {"R", "var(--c)", 0.6},
                            {"M", "var(--a)", 0.5},
                            {"", "var(--drop)", 0.25}};
    enum BiasShape shape = bias_shape_of(p, layer, head);
    double width = fmin(44, (double)PLOT / p->n_layers), x = LEFT + layer * width;
    int y = TOP + head * HEAD_ROW;
    TRY(str_appendf(out,
                    "<g><title>layer %d, head %d: %s; sink %.2f, middle %.2f, recent %.2f times "
                    "uniform</title><rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" "
                    "fill=\"%s\" fill-opacity=\"%.2f\"/>",
                    layer, head, bias_shape_name(shape), bias_density(p, layer, head, CLASS_SINK),
                    bias_density(p, layer, head, CLASS_MIDDLE),
                    bias_density(p, layer, head, CLASS_RECENT), x, y, width - 1.5, HEAD_ROW - 2,
                    looks[shape].fill, looks[shape].opacity));
    if (width > 12 && *looks[shape].letter)
        TRY(str_appendf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>",
                        x + (width - 1.5) / 2, y + 14, looks[shape].letter));
    return str_appendf(out, "</g>\n");
}

int bias_heads_height(const struct BiasProfile *p)
{
    return TOP + p->n_heads * HEAD_ROW + 4;
}

int bias_heads(struct Str *out, const struct BiasProfile *p)
{
    double width = fmin(44, (double)PLOT / p->n_layers);
    for (int l = 0; l<p->n_layers; l += p->n_layers> 40 ? 8 : p->n_layers > 16 ? 4 : 1)
        TRY(str_appendf(
            out, "<text class=\"soft\" x=\"%.1f\" y=\"11\" text-anchor=\"middle\">%s%d</text>\n",
            LEFT + (l + 0.5) * width, l ? "" : "layer ", l));
    for (int h = 0; h < p->n_heads; h++) {
        TRY(str_appendf(
            out, "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"end\">head %d</text>\n",
            LEFT - 6, TOP + h * HEAD_ROW + 14, h));
        for (int l = 0; l < p->n_layers; l++) TRY(head_cell(out, p, l, h));
    }
    return PC_OK;
}

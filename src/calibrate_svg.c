/* calibrate_svg.c - the picture of a head map: a column a layer, a row a KV head.
 *
 * One file that needs no other. Colours follow the reader's scheme; the score is the strength of one colour, by its
 * fourth root, since a few heads do most of the work, and a kept head has a ring and a dot as well, so that the choice
 * shows without colour. Each cell says its numbers when pointed at.
 */
#include "calibrate.h"

#include <math.h>
#include <string.h>

enum { LEFT = 58, TOP = 58, GAP = 3, WIDTH_MIN = 560, LEGEND = 56 };

struct Grid {
    const struct HeadMap *map;
    const uint8_t *keep;
    int cell, n_kept, width, height;
};

static const char STYLE[] =
    "<style>\n"
    "svg{--page:#ffffff;--ink:#1c2430;--soft:#5b6675;--score:#0b62c4;--frame:#c3cad4}\n"
    "@media(prefers-color-scheme:dark){svg{--page:#14181f;--ink:#e8ecf2;--soft:#9aa5b4;"
    "--score:#5aa9ff;--frame:#3b4450}}\n"
    "text{font:12px system-ui,sans-serif;fill:var(--soft)}.head{font-size:14px;fill:var(--ink)}\n"
    ".page{fill:var(--page)}.cell{fill:var(--score)}.frame{fill:none;stroke:var(--frame)}\n"
    ".kept{fill:none;stroke:var(--ink);stroke-width:2}.dot{fill:var(--ink);stroke:var(--page)}\n"
    "</style>\n";

static int add_escaped(struct Str *out, const char *text)
{
    for (; *text; text++) {
        const char *mark = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : NULL;
        TRY(mark ? str_append(out, mark, strlen(mark)) : str_append(out, text, 1));
    }
    return PC_OK;
}

/* A cell of strength 0..1 with its corner at x, y. */
static int add_cell(struct Str *out, int x, int y, int size, double strength, bool kept)
{
    TRY(str_appendf(out,
                    "<rect class=\"cell\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"2\" "
                    "fill-opacity=\"%.3f\"/><rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" "
                    "height=\"%d\" rx=\"2\"/>",
                    x, y, size, size, strength, kept ? "kept" : "frame", x, y, size, size));
    if (!kept) return PC_OK;
    return str_appendf(out, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>",
                       x + size / 2.0, y + size / 2.0, size / 6.0);
}

static double strength(double score)
{
    return sqrt(sqrt(score));
}

static int add_head(struct Str *out, const struct Grid *g, int layer, int head)
{
    int at = layer * g->map->shape.n_kv_heads + head, step = g->cell + GAP;
    double score = (double)g->map->scores[at];
    TRY(str_appendf(out, "<g><title>layer %d, KV head %d: %.4g, %s</title>", layer, head, score,
                    g->keep[at] ? "keeps everything" : "streams"));
    TRY(add_cell(out, LEFT + layer * step, TOP + head * step, g->cell, strength(score),
                 g->keep[at]));
    return str_appendf(out, "</g>\n");
}

static int add_ticks(struct Str *out, const struct Grid *g)
{
    const struct HeadShape *s = &g->map->shape;
    int step = g->cell + GAP;
    TRY(str_appendf(out, "<text x=\"%d\" y=\"%d\">layer</text>\n", 4, TOP - 8));
    for (int l = 0; l < s->n_layers; l += 5)
        TRY(str_appendf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%d</text>\n",
                        LEFT + l * step + g->cell / 2, TOP - 8, l));
    for (int h = 0; h<s->n_kv_heads; h += s->n_kv_heads> 8 ? 4 : 1)
        TRY(str_appendf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s%d</text>\n", LEFT - 6,
                        TOP + h * step + g->cell / 2 + 4, h ? "" : "head ", h));
    return PC_OK;
}

static int add_legend(struct Str *out, const struct Grid *g)
{
    int y = g->height - LEGEND + 24, x = LEFT;
    TRY(str_appendf(out, "<text x=\"%d\" y=\"%d\">score 0</text>\n", x, y + 12));
    for (int i = 0; i <= 4; i++) TRY(add_cell(out, x + 52 + 18 * i, y, 16, i / 4.0, false));
    TRY(str_appendf(out, "<text x=\"%d\" y=\"%d\">1, the highest</text>\n", x + 148, y + 12));
    TRY(add_cell(out, x + 246, y, 16, 0.5, true));
    return str_appendf(out, "<text x=\"%d\" y=\"%d\">keeps everything (%d of %d)</text>\n</svg>\n",
                       x + 270, y + 12, g->n_kept, headmap_heads(g->map));
}

int headmap_svg(const struct HeadMap *map, const uint8_t *keep, const char *title, struct Str *out)
{
    const struct HeadShape *s = &map->shape;
    struct Grid g = {.map = map, .keep = keep, .cell = s->n_kv_heads > 16 ? 10 : 16};
    for (int i = 0; i < headmap_heads(map); i++) g.n_kept += keep[i];
    g.width = LEFT + s->n_layers * (g.cell + GAP) + 16;
    if (g.width < WIDTH_MIN) g.width = WIDTH_MIN;
    g.height = TOP + s->n_kv_heads * (g.cell + GAP) + LEGEND;
    TRY(str_appendf(out,
                    "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
                    "height=\"%d\" role=\"img\" aria-labelledby=\"t\">\n<title id=\"t\">",
                    g.width, g.height, g.width, g.height));
    TRY(add_escaped(out, title));
    TRY(str_appendf(out, "</title>\n%s<rect class=\"page\" width=\"100%%\" height=\"100%%\"/>\n",
                    STYLE));
    TRY(str_appendf(out, "<text class=\"head\" x=\"4\" y=\"22\">"));
    TRY(add_escaped(out, title));
    TRY(str_appendf(out, "</text>\n"));
    TRY(add_ticks(out, &g));
    for (int l = 0; l < s->n_layers; l++)
        for (int h = 0; h < s->n_kv_heads; h++) TRY(add_head(out, &g, l, h));
    return add_legend(out, &g);
}

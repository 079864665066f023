/* bias_page.c - one page about attention bias, with its drawings as inline SVG; and these drawings by themselves.
 *
 * Nothing is fetched and nothing runs. Times and dates are left out: the same study gives the same bytes.
 */
#include "bias_page.h"

#include "bias_svg.h"
#include "html.h"

#include <stdio.h>

/* Wide drawings scroll inside their card, so that a narrow screen shows them at a size that can be read. */
static const char STYLE_MORE[] =
    ".card{overflow-x:auto}.card svg{min-width:640px}.legend{max-width:1000px}"
    "td.wide{min-width:18em}.tables{overflow-x:auto}";

/* ==== Drawings ==== */

struct Drawing {
    const char *title;
    const struct BiasProfile *profile;
    int (*draw)(struct Str *out, const struct BiasProfile *p);
    int (*height)(const struct BiasProfile *p);
};

enum { DRAWINGS = 9, HEATS = 3 };

/* Three of each kind: in each chunk, over the merged cache, and the same with rules. */
static void list_drawings(const struct BiasStudy *s, struct Drawing out[DRAWINGS])
{
    static const char *const titles[DRAWINGS] = {
        "Place in the chunk: each chunk by itself",
        "Place in the chunk: merged cache, no rules",
        "Place in the chunk: merged cache, with rules",
        "Shares of all attention: each chunk by itself",
        "Shares of all attention: merged cache, no rules",
        "Shares of all attention: merged cache, with rules",
        "Shapes of the heads: each chunk by itself",
        "Shapes of the heads: merged cache, no rules",
        "Shapes of the heads: merged cache, with rules",
    };
    const struct BiasProfile *profiles[HEATS] = {&s->local[HALF_REPORT], &s->merged[HALF_REPORT],
                                                 &s->after};
    for (int i = 0; i < DRAWINGS; i++) {
        out[i] = (struct Drawing){titles[i], profiles[i % HEATS], bias_heads, bias_heads_height};
        if (i < 2 * HEATS) out[i].draw = bias_bars, out[i].height = bias_bars_height;
        if (i < HEATS) out[i].draw = bias_heat, out[i].height = bias_heat_height;
    }
}

static int drawing_card(struct Str *out, const struct Drawing *d)
{
    TRY(str_appendf(out,
                    "<h3>%s</h3>\n<div class=\"card\"><svg viewBox=\"0 0 %d %d\" role=\"img\" "
                    "aria-label=\"%s\">\n",
                    d->title, BIAS_WIDTH, d->height(d->profile), d->title));
    TRY(d->draw(out, d->profile));
    return str_appendf(out, "</svg></div>\n");
}

static int legend(struct Str *out, int (*draw)(struct Str *out), const char *label)
{
    TRY(str_appendf(out,
                    "<div class=\"card\"><svg viewBox=\"0 0 %d %d\" role=\"img\" "
                    "aria-label=\"%s\">\n",
                    BIAS_WIDTH, BIAS_LEGEND_HEIGHT, label));
    TRY(draw(out));
    return str_appendf(out, "</svg></div>\n");
}

/* Legends stand before the first drawing of their kind. */
static int figure_parts(struct Str *out, const struct Drawing *drawings, int *y)
{
    for (int i = 0; i < DRAWINGS; i++) {
        const struct Drawing *d = &drawings[i];
        TRY(str_appendf(out, "<text x=\"8\" y=\"%d\" class=\"title\">%s</text>\n", *y + 16,
                        d->title));
        *y += 24;
        if (i % HEATS == 0 && i < 2 * HEATS) {
            TRY(str_appendf(out, "<g transform=\"translate(0,%d)\">\n", *y));
            TRY(i ? bias_bars_legend(out) : bias_heat_legend(out));
            TRY(str_appendf(out, "</g>\n"));
            *y += BIAS_LEGEND_HEIGHT + 4;
        }
        TRY(str_appendf(out, "<g transform=\"translate(0,%d)\">\n", *y));
        TRY(d->draw(out, d->profile));
        TRY(str_appendf(out, "</g>\n"));
        *y += d->height(d->profile) + 14;
    }
    return PC_OK;
}

int bias_figure(const struct BiasPage *page, struct Str *out)
{
    struct Drawing drawings[DRAWINGS];
    struct Str parts = {0};
    int y = 8;
    list_drawings(page->study, drawings);
    int status = figure_parts(&parts, drawings, &y);
    if (status == PC_OK)
        status = str_appendf(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\">\n<style>%s.title{font-size:14px;font-weight:600}svg{background:"
            "var(--bg);font-family:system-ui,sans-serif}</style>\n%s</svg>\n",
            BIAS_WIDTH, y, BIAS_WIDTH, y, HTML_STYLE, parts.data);
    str_free(&parts);
    return status;
}

/* ==== Tables ==== */

static int fact(struct Str *out, const char *name, const char *value)
{
    TRY(str_appendf(out, "<div><dt>%s</dt><dd>", name));
    TRY(html_text(out, value));
    return str_appendf(out, "</dd></div>\n");
}

static int page_facts(struct Str *out, const struct BiasPage *page)
{
    const struct BiasStudy *s = page->study;
    char text[128], a[32], b[32];
    int hits = 0;
    for (int i = 0; i < s->items->n; i++) hits += s->seen[i].hit;
    TRY(str_appendf(out, "<dl>\n"));
    TRY(fact(out, "Model", page->model));
    TRY(fact(out, "Device", page->device));
    TRY(fact(out, "Text", page->source));
    snprintf(text, sizeof text, "%s, in %d chunks of at most %s", html_count(s->plan.n_context, a),
             s->plan.n_chunks, html_count(s->plan.chunk_tokens, b));
    TRY(fact(out, "Tokens", text));
    snprintf(text, sizeof text, "%d; the last %d rows of each are watched", s->items->n, s->rows);
    TRY(fact(out, "Questions", text));
    snprintf(text, sizeof text, "%d of a text; at most %s tokens a head", s->plan.keep,
             html_count(s->plan.kv_cap, a));
    TRY(fact(out, "Chunks kept", text));
    snprintf(text, sizeof text, "first and last %d tokens of a chunk", s->after.region);
    TRY(fact(out, "Sink and recent", text));
    if (s->items->items[0].answer.len) {
        snprintf(text, sizeof text, "the chunk with the quoted sentence was kept for %d of %d",
                 hits, s->items->n);
        TRY(fact(out, "Found", text));
    }
    return str_appendf(out, "</dl>\n");
}

static int arm_half(struct Str *out, const struct BiasStudy *s, const struct BiasArm *arm,
                    enum BiasHalf half)
{
    struct Paired x = study_paired(s, arm, half);
    if (x.n == 0) return str_appendf(out, "<td class=\"n\">–</td><td class=\"n\">–</td>");
    TRY(str_appendf(out, "<td class=\"n\">%.4f</td>", x.b));
    if (arm == &s->none) return str_appendf(out, "<td class=\"n\"></td>");
    if (x.n < 2) return str_appendf(out, "<td class=\"n\">%+.4f</td>", x.diff);
    return str_appendf(out, "<td class=\"n\">%+.4f ± %.4f, %d/%d</td>", x.diff, x.error, x.n_better,
                       x.n);
}

static int arm_row(struct Str *out, const struct BiasStudy *s, const struct BiasArm *arm)
{
    struct Str rules = {0};
    int status = arm_rules_text(arm, &rules);
    if (status == PC_OK)
        status = str_appendf(out, "<tr%s><td>%s%s</td><td class=\"wide\">%s</td>",
                             arm == s->best ? " class=\"k\"" : "", arm->name,
                             arm == s->best ? s->helps ? ", proposed" : ", best" : "", rules.data);
    str_free(&rules);
    TRY(status);
    TRY(arm_half(out, s, arm, HALF_CHOOSE));
    TRY(arm_half(out, s, arm, HALF_REPORT));
    return str_appendf(out, "</tr>\n");
}

static int page_arms(struct Str *out, const struct BiasStudy *s)
{
    const char *of = s->items->items[0].answer.len ? "the answer" : "the question";
    TRY(str_appendf(
        out,
        "<h2>Rules tried</h2>\n<p>Mean NLL of %s, nats a token: lower is better. Differences are "
        "against no rules, question by question: mean ± standard error, and on how many questions "
        "the rules were better. The best of many looks better than it is on the half that chose "
        "it; the other half had no say.</p>\n<div class=\"tables\"><table><thead><tr><th></th>"
        "<th>rules</th><th class=\"n\">choosing half</th><th class=\"n\">difference</th>"
        "<th class=\"n\">other half</th><th class=\"n\">difference</th></tr></thead><tbody>\n",
        of));
    TRY(arm_row(out, s, &s->none));
    TRY(arm_row(out, s, &s->paper));
    if (s->own.nll) TRY(arm_row(out, s, &s->own));
    for (int i = 0; i < s->n_tries; i++) TRY(arm_row(out, s, &s->tries[i]));
    return str_appendf(out, "</tbody></table></div>\n");
}

static int layer_row(struct Str *out, const struct BiasProfile *p, int layer)
{
    static const enum BiasPart parts[BIAS_PARTS] = {PART_PREFIX, PART_SINK, PART_MIDDLE,
                                                    PART_RECENT, PART_QUESTION};
    TRY(str_appendf(out, "<tr><td class=\"n\">%d</td><td>%s</td>", layer,
                    bias_shape_name(bias_shape_of(p, layer, ALL_HEADS))));
    for (int i = 0; i < BIAS_PARTS; i++)
        TRY(str_appendf(out, "<td class=\"n\">%.1f</td>",
                        100 * bias_share(p, layer, ALL_HEADS, parts[i])));
    for (int c = 0; c < BIAS_CLASSES; c++)
        TRY(str_appendf(out, "<td class=\"n\">%.2f</td>",
                        bias_density(p, layer, ALL_HEADS, (enum TokenClass)c)));
    return str_appendf(out, "</tr>\n");
}

static int page_layers(struct Str *out, const struct BiasProfile *p, const char *title)
{
    TRY(str_appendf(
        out,
        "<details><summary>Table: %s</summary>\n<div class=\"tables\"><table><thead><tr><th "
        "class=\"n\">layer</th><th>shape</th><th class=\"n\">prefix %%</th><th class=\"n\">sink "
        "%%</th><th class=\"n\">middle %%</th><th class=\"n\">recent %%</th><th class=\"n\">question "
        "%%</th><th class=\"n\">sink ×</th><th class=\"n\">middle ×</th><th class=\"n\">recent "
        "×</th></tr></thead><tbody>\n",
        title));
    for (int l = 0; l < p->n_layers; l++) TRY(layer_row(out, p, l));
    return str_appendf(out, "</tbody></table></div></details>\n");
}

/* ==== Page ==== */

static int page_head(struct Str *out, const struct BiasPage *page)
{
    struct Str verdict = {0};
    TRY(str_appendf(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
        "<meta name=\"color-scheme\" content=\"light dark\">\n<title>pcomp: attention "
        "bias</title>\n<style>%s%s</style></head><body><main>\n<h1>Attention bias</h1>\n"
        "<p>pcomp %s</p>\n<div class=\"card\">",
        HTML_STYLE, STYLE_MORE, PCOMP_VERSION));
    int status = bias_study_verdict(page->study, &verdict);
    if (status == PC_OK) status = html_text(out, verdict.data);
    str_free(&verdict);
    TRY(status);
    TRY(str_appendf(out, "</div>\n"));
    return page_facts(out, page);
}

static int page_drawings(struct Str *out, const struct Drawing *drawings)
{
    TRY(str_appendf(
        out,
        "<h2>Where the question looks</h2>\n<p>The question's last rows, averaged over the reported "
        "half. Each row is a layer, its heads together; each cell a 64th of a chunk, from its first "
        "token to its last: attention a token, against that of a context token on average. Rules "
        "act on the cache, so what they do shows in the merged cache only; those of the merged cache "
        "itself act behind the question, and only the answer shows them.</p>\n"));
    TRY(legend(out, bias_heat_legend, "colours of the heat maps"));
    for (int i = 0; i < HEATS; i++) TRY(drawing_card(out, &drawings[i]));
    TRY(str_appendf(out,
                    "<h2>What it looks at</h2>\n<p>Shares of all attention, in percent. No rule "
                    "reaches the prefix or the question.</p>\n"));
    TRY(legend(out, bias_bars_legend, "colours of the shares"));
    for (int i = HEATS; i < 2 * HEATS; i++) TRY(drawing_card(out, &drawings[i]));
    TRY(str_appendf(
        out,
        "<h2>Heads</h2>\n<p>An end of the chunk is heavy when its tokens get twice the uniform "
        "attention or more: <b>U</b> both ends, <b>S</b> the first tokens (sink), <b>R</b> the last "
        "(recent); <b>M</b>, a mountain: the middle gets twice as much as either end; empty: "
        "uniform.</p>\n"));
    for (int i = 2 * HEATS; i < DRAWINGS; i++) TRY(drawing_card(out, &drawings[i]));
    return PC_OK;
}

int bias_page(const struct BiasPage *page, struct Str *out)
{
    const struct BiasStudy *s = page->study;
    struct Drawing drawings[DRAWINGS];
    struct Str shown = {0};
    list_drawings(s, drawings);
    TRY(page_head(out, page));
    TRY(page_arms(out, s));
    int status = arm_rules_text(s->shown, &shown);
    if (status == PC_OK)
        status = str_appendf(out, "<p>The drawings «with rules» show %s: %s.</p>\n",
                             s->shown == &s->paper ? "the paper's preset" : "the best of these",
                             shown.data);
    str_free(&shown);
    TRY(status);
    TRY(page_drawings(out, drawings));
    TRY(str_appendf(out, "<h2>Numbers</h2>\n"));
    TRY(page_layers(out, &s->local[HALF_REPORT], "each chunk by itself"));
    TRY(page_layers(out, &s->merged[HALF_REPORT], "merged cache, no rules"));
    TRY(page_layers(out, &s->after, "merged cache, with rules"));
    return str_appendf(out, "</main></body></html>\n");
}

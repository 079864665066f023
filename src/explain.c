/* explain.c - one HTML page about one run, with its drawings as inline SVG.
 *
 * Nothing is fetched and nothing runs: no scripts, no fonts, no pictures. All meaning that colour
 * carries is said a second way (a hatch, a label, a number), so that the page survives a grey printer.
 * Every text that comes from outside passes html_escape().
 */
#include "explain.h"

#include "html.h"
#include "text_stream.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ==== Text ==== */

static int fact(struct Str *out, const char *name, const char *value)
{
    TRY(str_appendf(out, "<div><dt>%s</dt><dd>", name));
    TRY(html_text(out, *value ? value : "(none)"));
    return str_appendf(out, "</dd></div>\n");
}

static int fact_bytes(struct Str *out, const char *name, const struct Str *value)
{
    TRY(str_appendf(out, "<div><dt>%s</dt><dd>", name));
    TRY(html_escape(out, value->data ? value->data : "", value->len));
    return str_appendf(out, "</dd></div>\n");
}

/* Bytes [at, end) of the text, or the first of them; *got is how many. */
static int text_bytes(const struct Explain *e, size_t at, size_t end, const char **data,
                      size_t *got)
{
    enum { STRETCH = 256 };
    *got = end - at;
    if (!e->stream) {
        *data = e->context + at;
        return PC_OK;
    }
    if (*got > STRETCH) *got = STRETCH;
    TRY(text_stream_bytes(e->stream, at, at + *got));
    *data = e->stream->text.data;
    return PC_OK;
}

/* The first words of a chunk on one line. */
static int first_words(struct Str *out, const struct Explain *e, const struct ChunkInfo *chunk)
{
    char words[96] = "";
    const char *text;
    size_t len = e->stream ? e->stream->source.size : e->context_len, n = 0, i, got = 0;
    size_t end = chunk->byte_end < len ? chunk->byte_end : len;
    bool space = true;
    for (i = chunk->byte_begin; i < end && n < 80; i++) {
        if (got == 0) TRY(text_bytes(e, i, end, &text, &got));
        char c = *text++;
        bool white = c == ' ' || c == '\n' || c == '\t' || c == '\r';
        got--;
        if (white && space) continue;
        words[n++] = white ? ' ' : c;
        space = white;
    }
    /* Cut at a whole character. */
    size_t good = utf8_invalid_at(words, n);
    if (good < n && n - good < 4) n = good;
    TRY(html_escape(out, words, n));
    return i < end ? str_appendf(out, "…") : PC_OK;
}

static int n_kept(const struct Result *r)
{
    int n = 0;
    for (int i = 0; r->chunks && i < r->plan.n_chunks; i++) n += r->chunks[i].kept;
    return n;
}

static bool holds_mark(const struct Explain *e, const struct ChunkInfo *chunk)
{
    return e->has_mark && e->mark_begin < chunk->byte_end && e->mark_end > chunk->byte_begin;
}

/* ==== Head ==== */

static int page_facts(struct Str *out, const struct Explain *e)
{
    const struct Result *r = e->result;
    const struct PlanInfo *plan = &r->plan;
    char text[256], a[32], b[32];
    TRY(str_appendf(out, "<dl>\n"));
    TRY(fact(out, "Text", e->source));
    TRY(fact(out, "Model", e->model));
    TRY(fact(out, "Device", e->device));
    snprintf(text, sizeof text, "%s text, %s question", html_count(plan->n_context, a),
             html_count(plan->n_question, b));
    TRY(fact(out, "Tokens", text));
    snprintf(text, sizeof text, "%d of %d, at most %s tokens each", n_kept(r), plan->n_chunks,
             html_count(plan->chunk_tokens, a));
    TRY(fact(out, "Chunks kept", text));
    for (int i = 0; i < plan->rounds - 1; i++) {
        snprintf(text, sizeof text, "Found in round %d", i + 1);
        TRY(fact_bytes(out, text, &r->found[i]));
    }
    snprintf(text, sizeof text, "question at %s, window %s", html_count(plan->question_pos, a),
             html_count(plan->window, b));
    TRY(fact(out, "Positions", text));
    snprintf(text, sizeof text, "%s tokens, ended by %s", html_count(r->n_ids, a), e->stop);
    TRY(fact(out, "Answer", text));
    snprintf(text, sizeof text, "%.2f s, peak memory %.2f GiB", r->time.total,
             (double)r->peak_bytes / (1 << 30));
    TRY(fact(out, "Cost", text));
    snprintf(text, sizeof text,
             plan->n_truncated ? "%s tokens cut out of the middle" : "nothing was cut off",
             html_count(plan->n_truncated, a));
    TRY(fact(out, "Truncation", text));
    snprintf(text, sizeof text, "input %016llx, settings %016llx, logits %016llx",
             (unsigned long long)r->input_hash, (unsigned long long)r->config_hash,
             (unsigned long long)r->logits_hash);
    TRY(fact(out, "Hashes", text));
    return str_appendf(out, "</dl>\n");
}

static int page_head(struct Str *out, const struct Explain *e)
{
    TRY(str_appendf(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
        "<meta name=\"color-scheme\" content=\"light dark\">\n<title>pcomp: how this answer was "
        "made</title>\n<style>%s</style></head><body><main>\n<h1>How this answer was made</h1>\n"
        "<p>pcomp %s</p>\n<div class=\"card\"><dt>Question</dt><pre>",
        HTML_STYLE, PCOMP_VERSION));
    TRY(html_text(out, e->question && *e->question ? e->question : "(none)"));
    TRY(str_appendf(out, "</pre><br><dt>Answer</dt><pre>"));
    TRY(html_escape(out, e->result->text.data ? e->result->text.data : "", e->result->text.len));
    TRY(str_appendf(out, "</pre></div>\n"));
    return page_facts(out, e);
}

/* ==== Chunk map ==== */

/* More kept chunks than this are not labelled one by one, nor listed apart from the others. */
enum { FEW_KEPT = 24 };

enum {
    MAP_WIDTH = 1000,
    MAP_LEFT = 46,
    MAP_RIGHT = 10,
    MAP_TOP = 30,
    MAP_BARS = 180,
    MAP_HEIGHT = 250
};

struct ScoreAxis {
    double low, high; /* nats at the bottom and the top of the bars */
    double step;
    bool any; /* some chunk has a score */
};

/* A round number near range / 4. */
static double axis_step(double range)
{
    double rough = range / 4, power = pow(10, floor(log10(rough)));
    double lead = rough / power;
    return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

/* From zero, unless that would make all bars look alike. */
static struct ScoreAxis score_axis(const struct Result *r)
{
    struct ScoreAxis axis = {.low = INFINITY, .high = -INFINITY};
    for (int i = 0; i < r->plan.n_chunks; i++) {
        double score = r->chunks[i].score;
        if (!isfinite(score)) continue;
        axis.any = true;
        axis.low = fmin(axis.low, score);
        axis.high = fmax(axis.high, score);
    }
    if (!axis.any) return (struct ScoreAxis){.low = 0, .high = 1, .step = 1};
    double range = axis.high - axis.low;
    bool from_zero = range > 0.4 * axis.high || range <= 0;
    double low = from_zero ? 0 : axis.low - 0.25 * range;
    if (axis.low < 0) low = axis.low - 0.1 * range;
    double high = axis.high > low ? axis.high : low + 1;
    axis.step = axis_step(high - low);
    axis.low = floor(low / axis.step) * axis.step;
    axis.high = ceil(high / axis.step) * axis.step;
    return axis;
}

static double map_x(const struct Explain *e, int token)
{
    int n = e->result->plan.n_context > 0 ? e->result->plan.n_context : 1;
    return MAP_LEFT + (double)token / n * (MAP_WIDTH - MAP_LEFT - MAP_RIGHT);
}

static int map_axes(struct Str *out, const struct Explain *e, const struct ScoreAxis *axis)
{
    const int bottom = MAP_TOP + MAP_BARS;
    char count[32];
    for (double v = axis->low; axis->any && v <= axis->high + axis->step / 2; v += axis->step) {
        double y = bottom - (v - axis->low) / (axis->high - axis->low) * MAP_BARS;
        TRY(str_appendf(out,
                        "<line class=\"axis\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text "
                        "class=\"soft\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                        MAP_LEFT, MAP_WIDTH - MAP_RIGHT, y, y, MAP_LEFT - 6, y + 4, v));
    }
    for (int i = 0; i <= 4; i++) {
        int token = (int)((int64_t)e->result->plan.n_context * i / 4);
        TRY(str_appendf(out,
                        "<text class=\"soft\" x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%s</text>\n",
                        map_x(e, token), bottom + 18,
                        i == 0   ? "start"
                        : i == 4 ? "end"
                                 : "middle",
                        html_count(token, count)));
    }
    return str_appendf(
        out,
        "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">place in the text, "
        "tokens</text>\n<text class=\"soft\" x=\"4\" y=\"12\">score: lower is better</text>\n",
        MAP_WIDTH / 2, bottom + 36);
}

static int map_bar(struct Str *out, const struct Explain *e, const struct ScoreAxis *axis, int i)
{
    const struct ChunkInfo *chunk = &e->result->chunks[i];
    const int bottom = MAP_TOP + MAP_BARS;
    double x = map_x(e, chunk->begin), width = map_x(e, chunk->end) - x;
    double gap = width > 6 ? 1.5 : width > 2 ? 0.5 : 0;
    double share =
        isfinite(chunk->score) ? (chunk->score - axis->low) / (axis->high - axis->low) : 0.5;
    double height = fmax(2, share * MAP_BARS);
    char a[32], b[32];
    TRY(str_appendf(out, "<g><title>chunk %d, %s: tokens %s to %s, bytes %zu to %zu", i + 1,
                    chunk->kept ? "kept" : "dropped", html_count(chunk->begin, a),
                    html_count(chunk->end, b), chunk->byte_begin, chunk->byte_end));
    TRY(isfinite(chunk->score) ? str_appendf(out, ", score %.4f\n", chunk->score)
                               : str_appendf(out, ", no score taken\n"));
    TRY(first_words(out, e, chunk));
    TRY(str_appendf(
        out, "</title><rect class=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"/>",
        chunk->kept ? "keep" : "drop", x + gap / 2, bottom - height, fmax(width - gap, 0.6),
        height));
    return str_appendf(out, "</g>\n");
}

/* Numbers above the kept chunks; one that would touch its neighbour is left to the tooltip and the table. */
static int map_labels(struct Str *out, const struct Explain *e, const struct ScoreAxis *axis)
{
    const struct Result *r = e->result;
    double right = -1;
    if (n_kept(r) > FEW_KEPT) return PC_OK;
    for (int i = 0; i < r->plan.n_chunks; i++) {
        const struct ChunkInfo *chunk = &r->chunks[i];
        if (!chunk->kept) continue;
        double x = (map_x(e, chunk->begin) + map_x(e, chunk->end)) / 2;
        double half = i + 1 < 100 ? 21 : 24;
        if (x - half < right) continue;
        right = x + half;
        double share =
            isfinite(chunk->score) ? (chunk->score - axis->low) / (axis->high - axis->low) : 0.5;
        double y = MAP_TOP + MAP_BARS - fmax(2, share * MAP_BARS) - 5;
        const char *anchor = x < MAP_LEFT + half                ? "start"
                             : x > MAP_WIDTH - MAP_RIGHT - half ? "end"
                                                                : "middle";
        TRY(str_appendf(
            out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"label\">kept %d</text>\n",
            x, y, anchor, i + 1));
    }
    return PC_OK;
}

static int map_mark(struct Str *out, const struct Explain *e)
{
    const struct Result *r = e->result;
    const int bottom = MAP_TOP + MAP_BARS;
    for (int i = 0; e->has_mark && i < r->plan.n_chunks; i++) {
        const struct ChunkInfo *chunk = &r->chunks[i];
        if (!holds_mark(e, chunk)) continue;
        double bytes = (double)(chunk->byte_end - chunk->byte_begin);
        double into = ((double)e->mark_begin - (double)chunk->byte_begin) / (bytes > 0 ? bytes : 1);
        double x = map_x(e, chunk->begin) +
                   fmax(0, into) * (map_x(e, chunk->end) - map_x(e, chunk->begin));
        const char *anchor = x < 330 ? "start" : x > MAP_WIDTH - 140 ? "end" : "middle";
        return str_appendf(
            out,
            "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"var(--mark)\" "
            "stroke-width=\"1.6\" stroke-dasharray=\"5 3\"/><path d=\"M%.1f %d l-5 -8 h10 z\" "
            "fill=\"var(--mark)\"/><text x=\"%.1f\" y=\"12\" text-anchor=\"%s\">the hidden "
            "sentence</text>\n",
            x, x, MAP_TOP - 6, bottom, x, MAP_TOP - 6, x, anchor);
    }
    return PC_OK;
}

/* What the bars' heights stand for, and who wins. */
static int map_legend(struct Str *out, const struct Explain *e, const struct ScoreAxis *axis)
{
    static const char *const surprise =
        "the surprise (mean NLL) of the question after it, which is least after the text that "
        "answers it";
    const char *const heights[] = {
        [SCORE_QUESTION] = surprise,
        [SCORE_PUBLISHED] = surprise,
        [SCORE_RANDOM] = "drawn by chance",
        [SCORE_BM25] = "BM25 of the words it shares with the question, with a minus sign",
        [SCORE_ATTENTION] =
            "the surprise of the question after it, less for shared words and what the profile's heads find",
        [SCORE_FUSION] =
            "the surprise (mean NLL) of the question after it, less for words they share",
    };
    if (!axis->any) return str_appendf(out, "No scores were taken, so all bars have one height.");
    TRY(str_appendf(out, "Its height is %s: ", heights[e->result->plan.chunk_score]));
    if (n_kept(e->result) == e->result->plan.n_chunks)
        return str_appendf(out, "lower is better. Every chunk was kept.");
    return str_appendf(out, "<b>the lowest bars win</b>.");
}

static int page_map(struct Str *out, const struct Explain *e)
{
    const struct Result *r = e->result;
    TRY(str_appendf(out, "<h2>Chunks</h2>\n"));
    if (!r->chunks || r->plan.n_chunks == 0)
        return str_appendf(out, "<p>No chunks were made.</p>\n");
    struct ScoreAxis axis = score_axis(r);
    TRY(str_appendf(out, "<p>Each bar is a chunk of the text. "));
    TRY(map_legend(out, e, &axis));
    TRY(str_appendf(
        out,
        "<br><svg class=\"swatch\" "
        "viewBox=\"0 0 28 12\" role=\"img\" aria-label=\"hatched\"><rect class=\"keep\" x=\"1\" y=\"1\" "
        "width=\"26\" height=\"10\"/></svg>kept for the answer&emsp;<svg class=\"swatch\" "
        "viewBox=\"0 0 28 12\" role=\"img\" aria-label=\"plain\"><rect class=\"drop\" width=\"28\" "
        "height=\"12\"/></svg>dropped</p>\n"));
    if (axis.any && axis.low > 0)
        TRY(str_appendf(out, "<p>The axis starts at %.4g, not at zero.</p>\n", axis.low));
    TRY(str_appendf(
        out,
        "<div class=\"card\"><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"chunk "
        "map\"><defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"var(--card)\"/>"
        "<rect width=\"3.4\" height=\"6\" fill=\"var(--keep)\"/></pattern></defs>\n",
        MAP_WIDTH, MAP_HEIGHT));
    TRY(map_axes(out, e, &axis));
    for (int i = 0; i < r->plan.n_chunks; i++) TRY(map_bar(out, e, &axis, i));
    TRY(map_labels(out, e, &axis));
    TRY(map_mark(out, e));
    return str_appendf(out, "</svg></div>\n");
}

/* ==== Table of chunks ==== */

static int chunk_row(struct Str *out, const struct Explain *e, int i)
{
    const struct ChunkInfo *chunk = &e->result->chunks[i];
    char a[32], b[32], c[32], d[32];
    char round[24] = "";
    if (chunk->round) snprintf(round, sizeof round, " in round %d", chunk->round);
    TRY(str_appendf(out, "<tr%s><td class=\"n\">%d</td><td>%s%s%s</td>",
                    chunk->kept ? " class=\"k\"" : "", i + 1, chunk->kept ? "kept" : "dropped",
                    round, holds_mark(e, chunk) ? ", holds the sentence" : ""));
    TRY(isfinite(chunk->score) ? str_appendf(out, "<td class=\"n\">%.4f</td>", chunk->score)
                               : str_appendf(out, "<td class=\"n\">–</td>"));
    TRY(str_appendf(out, "<td class=\"n\">%s–%s</td><td class=\"n\">%s–%s</td><td>",
                    html_count(chunk->begin, a), html_count(chunk->end, b),
                    html_count((int64_t)chunk->byte_begin, c),
                    html_count((int64_t)chunk->byte_end, d)));
    TRY(first_words(out, e, chunk));
    return str_appendf(out, "</td></tr>\n");
}

static int page_table(struct Str *out, const struct Explain *e)
{
    static const char head[] =
        "<table><thead><tr><th class=\"n\">chunk</th><th></th><th class=\"n\">score</th>"
        "<th class=\"n\">tokens</th><th class=\"n\">bytes</th><th>begins with</th></tr>"
        "</thead><tbody>\n";
    const struct Result *r = e->result;
    if (!r->chunks || r->plan.n_chunks == 0) return PC_OK;
    if (n_kept(r) > FEW_KEPT) {
        TRY(str_appendf(out, "<h2>Table of chunks</h2>\n"));
    } else {
        TRY(str_appendf(out, "<h2>Kept chunks%s</h2>\n%s",
                        e->has_mark ? ", and the one with the sentence" : "", head));
        for (int i = 0; i < r->plan.n_chunks; i++)
            if (r->chunks[i].kept || holds_mark(e, &r->chunks[i])) TRY(chunk_row(out, e, i));
        TRY(str_appendf(out, "</tbody></table>\n"));
    }
    TRY(str_appendf(out, "<details><summary>All %d chunks</summary>\n%s", r->plan.n_chunks, head));
    for (int i = 0; i < r->plan.n_chunks; i++) TRY(chunk_row(out, e, i));
    return str_appendf(out, "</tbody></table></details>\n");
}

/* ==== KV by layer and head ==== */

static int kv_cell(struct Str *out, const struct Explain *e, int layer, int head, double size)
{
    const struct Result *r = e->result;
    const int height = 22;
    int at = layer * e->n_kv_heads + head;
    double share = r->kv_in[at] > 0 ? (double)r->kv_kept[at] / (double)r->kv_in[at] : 0;
    double x = 60 + layer * size, y = 18 + head * (height + 2);
    char a[32], b[32];
    TRY(str_appendf(
        out,
        "<g><title>layer %d, head %d: %s of %s entries kept (%.1f%%)</title><rect x=\"%.1f\" "
        "y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"var(--keep)\" fill-opacity=\"%.3f\" "
        "stroke=\"var(--line)\"/>",
        layer, head, html_count(r->kv_kept[at], a), html_count(r->kv_in[at], b), 100 * share, x, y,
        size - 1.5, height, 0.06 + 0.5 * share));
    if (size >= 22)
        TRY(str_appendf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>",
                        x + (size - 1.5) / 2, y + 15, 100 * share));
    return str_appendf(out, "</g>\n");
}

static int kv_map(struct Str *out, const struct Explain *e)
{
    double size = fmin(44, 930.0 / e->n_layers);
    int height = 18 + e->n_kv_heads * 24 + 6, every = e->n_layers > 40   ? 8
                                                      : e->n_layers > 16 ? 4
                                                                         : 1;
    TRY(str_appendf(
        out,
        "<div class=\"card\"><svg viewBox=\"0 0 1000 %d\" role=\"img\" aria-label=\"KV entries "
        "kept by layer and head\">\n",
        height));
    for (int layer = 0; layer < e->n_layers; layer += every)
        TRY(str_appendf(
            out, "<text class=\"soft\" x=\"%.1f\" y=\"11\" text-anchor=\"middle\">%s%d</text>\n",
            60 + (layer + 0.5) * size, layer ? "" : "layer ", layer));
    for (int head = 0; head < e->n_kv_heads; head++)
        TRY(str_appendf(
            out, "<text class=\"soft\" x=\"52\" y=\"%d\" text-anchor=\"end\">head %d</text>\n",
            18 + head * 24 + 15, head));
    for (int head = 0; head < e->n_kv_heads; head++)
        for (int layer = 0; layer < e->n_layers; layer++) TRY(kv_cell(out, e, layer, head, size));
    return str_appendf(out, "</svg></div>\n");
}

static int page_kv(struct Str *out, const struct Explain *e)
{
    const struct Result *r = e->result;
    TRY(str_appendf(out, "<h2>KV entries kept</h2>\n"));
    int n = e->n_layers * e->n_kv_heads;
    if (!r->kv_in || !r->kv_kept || n <= 0) return str_appendf(out, "<p>None were counted.</p>\n");
    int64_t in = 0, kept = 0, least = r->kv_kept[0], most = r->kv_kept[0];
    for (int i = 0; i < n; i++) {
        in += r->kv_in[i];
        kept += r->kv_kept[i];
        if (r->kv_kept[i] < least) least = r->kv_kept[i];
        if (r->kv_kept[i] > most) most = r->kv_kept[i];
    }
    char a[32], b[32], c[32], d[32];
    TRY(str_appendf(
        out,
        "<p>Of %s entries in the kept chunks, %s stay in memory (%.1f%%); a head keeps %s to "
        "%s. Each cell shows the share of one layer and KV head in percent.<br>",
        html_count(in, a), html_count(kept, b), in ? 100 * (double)kept / (double)in : 0,
        html_count(least, c), html_count(most, d)));
    for (int i = 0; i <= 4; i++)
        TRY(str_appendf(
            out,
            "<svg class=\"swatch\" viewBox=\"0 0 28 12\" role=\"img\"><rect width=\"28\" "
            "height=\"12\" fill=\"var(--keep)\" fill-opacity=\"%.3f\" stroke=\"var(--line)\"/></svg>%d ",
            0.06 + 0.5 * i / 4, 25 * i));
    TRY(str_appendf(out, "</p>\n"));
    return kv_map(out, e);
}

/* ==== Time ==== */

static int page_time(struct Str *out, const struct Explain *e)
{
    const struct Timings *time = &e->result->time;
    const struct {
        const char *name, *fill;
        double seconds;
    } parts[] = {
        {"tokenize", "var(--c)", time->tokenize},
        {"prefill", "var(--a)", time->prefill},
        {"question", "var(--b)", time->question},
        {"answer", "var(--d)", time->decode},
    };
    double total = 0, x = 0;
    for (int i = 0; i < 4; i++) total += parts[i].seconds > 0 ? parts[i].seconds : 0;
    TRY(str_appendf(
        out,
        "<h2>Time</h2>\n<p>%.2f s in all.</p>\n<div class=\"card\"><svg viewBox=\"0 0 1000 40\" "
        "role=\"img\" aria-label=\"time by stage\">\n",
        time->total));
    for (int i = 0; i < 4 && total > 0; i++) {
        double width = parts[i].seconds > 0 ? 1000 * parts[i].seconds / total : 0;
        TRY(str_appendf(
            out,
            "<g><title>%s: %.3f s</title><rect x=\"%.1f\" y=\"4\" width=\"%.1f\" height=\"32\" "
            "fill=\"%s\" fill-opacity=\"0.35\" stroke=\"var(--card)\" stroke-width=\"2\"/>",
            parts[i].name, parts[i].seconds, x, width, parts[i].fill));
        if (width > 110)
            TRY(str_appendf(out, "<text x=\"%.1f\" y=\"24\">%s %.2f s</text>", x + 8, parts[i].name,
                            parts[i].seconds));
        TRY(str_appendf(out, "</g>\n"));
        x += width;
    }
    TRY(str_appendf(out,
                    "</svg></div>\n<table><thead><tr><th>stage</th><th class=\"n\">seconds</th>"
                    "<th class=\"n\">share</th></tr></thead><tbody>\n"));
    for (int i = 0; i < 4; i++)
        TRY(str_appendf(
            out, "<tr><td>%s</td><td class=\"n\">%.3f</td><td class=\"n\">%.1f%%</td></tr>\n",
            parts[i].name, parts[i].seconds, total > 0 ? 100 * parts[i].seconds / total : 0));
    return str_appendf(out, "</tbody></table>\n");
}

int explain_page(const struct Explain *e, struct Str *out)
{
    TRY(page_head(out, e));
    TRY(page_map(out, e));
    TRY(page_table(out, e));
    TRY(page_kv(out, e));
    TRY(page_time(out, e));
    return str_appendf(out, "</main></body></html>\n");
}

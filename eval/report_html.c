/* report_html.c - the report as one HTML page that needs nothing but itself.
 *
 * Nothing is fetched and nothing runs: no scripts, no fonts, no pictures. All meaning that colour
 * carries is said a second way (a mark's shape, a word, a number). Every text that comes from outside
 * passes say_html(); none of it goes into a drawing or a style.
 */
#include "pcomp.h"
#include "report_page.h"
#include "report_parts.h"
#include "report_svg.h"
#include "report_write.h"

#include <math.h>
#include <string.h>

static const char STYLE[] =
    ":root{--bg:#f7f6f2;--ink:#1d1d1b;--soft:#63615b;--line:#dcd8ce;--card:#fff;--tint:#f1efe9;--heat:#0b6e63;"
    "--warn:#8a3b12;--warnbg:#fbefe6;--m0:#0b6e63;--m1:#b05c00;--m2:#5f43a0;--m3:#2a6aad;--m4:#b3261e;"
    "--m5:#586610;--m6:#a1337a;--m7:#4b5560}"
    "@media(prefers-color-scheme:dark){:root{--bg:#141413;--ink:#ecebe6;--soft:#a9a69d;--line:#393731;"
    "--card:#1e1d1b;--tint:#272622;--heat:#2c9a8b;--warn:#ffb98f;--warnbg:#33221a;--m0:#5fd0bf;--m1:#f0b054;"
    "--m2:#bda8ec;--m3:#86b9ea;--m4:#ff8f85;--m5:#c3d06a;--m6:#f29bd0;--m7:#b4bec8}}"
    "*{box-sizing:border-box}html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}"
    "body{margin:0;background:var(--bg);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif}"
    "main{max-width:1200px;margin:0 auto;padding:36px 24px 72px}"
    "h1{font-size:28px;line-height:1.2;letter-spacing:-.01em;margin:0 0 10px;text-wrap:balance}"
    "h2{font-size:20px;margin:0 0 4px}h3{font-size:15px;margin:20px 0 8px}"
    "p{margin:4px 0 12px;color:var(--soft);max-width:78ch}a{color:inherit}"
    "section{margin-top:48px}"
    ".eyebrow{font-size:13px;margin:0 0 6px}"
    ".wrap.facts{margin-top:20px}.facts th,.facts td{padding:5px 14px}.badges{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 4px}"
    ".badge{border:1px solid var(--line);border-radius:99px;padding:2px 12px;font-size:13px;background:var(--card)}"
    ".badge.strong{border:1.5px solid var(--ink);font-weight:600}"
    "nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:24px 0 0;padding:10px 0;border-top:1px solid var(--line);"
    "border-bottom:1px solid var(--line);font-size:14px}nav a{text-decoration:none;color:var(--soft)}"
    "nav a:hover{color:var(--ink);text-decoration:underline}"
    ".alert{background:var(--warnbg);color:var(--warn);border-left:4px solid var(--warn);border-radius:4px;"
    "padding:10px 14px;margin:16px 0 0;max-width:none}"
    "dl.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,150px),1fr));gap:10px 24px;"
    "margin:20px 0 0}dt{color:var(--soft);font-size:12.5px}dd{margin:0;overflow-wrap:anywhere}"
    ".cards,.figures{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));"
    "margin:20px 0 0}"
    ".cards{grid-template-columns:repeat(auto-fit,minmax(min(100%,245px),1fr))}"
    ".figures.wide{grid-template-columns:1fr}"
    ".card,figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0;"
    "min-width:0}.card h3{margin:0 0 6px;font-size:16px}.card p{margin:0 0 10px}"
    ".card dl{display:grid;grid-template-columns:repeat(2,1fr);gap:8px 16px;margin:0}"
    ".card p b{color:var(--ink)}"
    "figcaption{margin:0 0 10px;overflow-wrap:anywhere}figcaption b{font-weight:600}"
    "figcaption small{display:block;color:var(--soft);font-size:12.5px}"
    ".split{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:24px;align-items:center}"
    ".scroll{overflow-x:auto}"
    "svg{display:block;width:100%;height:auto}svg.cells{width:auto;max-width:100%;margin:0 auto}"
    "svg text{fill:var(--ink);font-size:12px;font-family:inherit;font-variant-numeric:tabular-nums}"
    "svg .soft{fill:var(--soft);font-size:11.5px}svg.small text{font-size:10.5px}svg .strong{font-weight:600}"
    "svg .axis{stroke:var(--line);fill:none}svg .zero{stroke:var(--soft);fill:none}"
    ".c0{--m:var(--m0)}.c1{--m:var(--m1)}.c2{--m:var(--m2)}.c3{--m:var(--m3)}.c4{--m:var(--m4)}.c5{--m:var(--m5)}"
    ".c6{--m:var(--m6)}.c7{--m:var(--m7)}"
    "svg .mark{fill:var(--m);stroke:var(--card);stroke-width:.8}"
    "svg .mark.open{fill:var(--card);stroke:var(--m);stroke-width:1.8}"
    "svg .mark.line{fill:none;stroke:var(--m);stroke-width:2.4}"
    "svg .ci{fill:var(--m);fill-opacity:.28}svg .cap{stroke:var(--m);stroke-width:1.3;fill:none}"
    "svg .cap.thin{stroke-opacity:.75}svg .curve{stroke:var(--m);stroke-width:1.8;fill:none}"
    "svg .heat{fill:var(--heat);stroke:var(--line)}svg .none{fill:none;stroke:var(--line);stroke-dasharray:2 2}"
    "svg .kept{fill:var(--m);fill-opacity:.75;stroke:var(--card);stroke-width:.6}"
    "svg .lost{stroke:var(--ink);stroke-width:1.5;fill:none}"
    "svg.bar{max-width:230px;margin:1px 0}svg.key{display:inline-block;width:30px;height:14px;vertical-align:-2px;"
    "margin-right:6px}svg.swatch{display:inline-block;width:14px;height:14px;vertical-align:-2px}"
    ".method{font-weight:600;color:var(--ink)}"
    ".wrap{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}"
    "th,td{padding:9px 14px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);"
    "overflow-wrap:break-word}tbody tr:last-child>*{border-bottom:0}"
    "th{font-weight:500}thead th{color:var(--soft);font-size:13px;vertical-align:bottom}"
    "th small{display:block;color:var(--soft);font-weight:400;font-size:12.5px}"
    "table.matrix{table-layout:fixed}th.first{width:180px}"
    "table.matrix th:first-child{position:sticky;left:0;background:var(--card);z-index:1}"
    "table.matrix tr.group th:first-child{background:var(--tint)}"
    ".curve-table .ci{display:block}.curve-table td,.curve-table th{padding:6px 10px}"
    ".split.stacked{grid-template-columns:minmax(0,1fr)}.split.stacked svg.chart{max-width:640px;margin:0 auto}"
    ".wrap.fit tr:last-child>:first-child{border-bottom-left-radius:9px}.wrap.fit thead th:first-child{"
    "border-top-left-radius:9px}.wrap.fit thead th:last-child{border-top-right-radius:9px}"
    "@media(min-width:1060px){.wrap.fit{overflow:visible}.wrap.fit thead th{position:sticky;top:0;"
    "background:var(--card);z-index:2;box-shadow:0 1px 0 var(--line)}.wrap.fit thead th:first-child{z-index:3}}"
    ".num{white-space:nowrap}.mean{font-size:16px}.ci,.note{color:var(--soft);font-size:12.5px}"
    ".n{white-space:nowrap}.who{display:none}"
    ".verdict{font-size:12.5px;padding:0 7px;border-radius:99px;border:1px solid var(--line);color:var(--soft);"
    "margin-left:4px}.v1,.v2{color:var(--ink);border-color:var(--ink);font-weight:600}"
    "tr.group{background:var(--tint)}tr.group th{font-weight:600}"
    "table.plain td,table.plain th{white-space:nowrap}"
    "table.plain:not(.left) td,table.plain:not(.left) th:not(:first-child){text-align:right}"
    "table.plain.curve-table thead tr+tr th{text-align:right}"
    "table.left td{white-space:normal;overflow-wrap:anywhere;min-width:70px}"
    "details{margin-top:14px}summary{cursor:pointer;padding:6px 0;color:var(--soft)}"
    "@media(max-width:720px){.aside{display:none}}.legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0 0 12px;font-size:13.5px}"
    ".how li{color:var(--soft);max-width:78ch;margin:4px 0}"
    "@media(max-width:720px){main{padding:20px 14px 48px}h1{font-size:23px}section{margin-top:36px}"
    ".split{grid-template-columns:minmax(0,1fr)}.card,figure{padding:14px}"
    "table.matrix thead,table.plain thead{display:none}"
    "table.matrix,table.matrix tbody,table.plain,table.plain tbody{display:block}"
    "table.matrix tr,table.plain tr{display:block;padding:10px 12px;border-bottom:1px solid var(--line)}"
    "table.matrix tr:last-child,table.plain tr:last-child{border-bottom:0}"
    "table.matrix{min-width:0!important}table.matrix th:first-child{position:static;background:none!important}"
    ".curve-table .ci{display:inline}svg.chart text,svg.chart .soft{font-size:14.5px}"
    "table.matrix th,table.plain th{display:block;padding:0 0 4px;border:0;font-weight:600;"
    "white-space:normal!important;overflow-wrap:anywhere}"
    "table.matrix td{display:block;padding:6px 0 6px 10px;border:0;border-left:3px solid var(--m);margin:6px 0}"
    "table.plain td{display:flex;justify-content:space-between;gap:16px;padding:2px 0;border:0;"
    "white-space:normal;text-align:right}"
    "table.plain td::before{content:attr(data-label);color:var(--soft);text-align:left;flex:none;max-width:50%}"
    "table.left td{min-width:0}.who{display:block;font-size:13px;margin-bottom:2px}.num{white-space:normal}"
    "svg.bar{max-width:none}}"
    "@media print{body{background:#fff}nav{display:none}.wrap,.card,figure{break-inside:avoid;overflow:visible}}";

/* ==== Pieces ==== */

int page_data(struct Str *out, const char *text)
{
    TRY(str_appendf(out, "<bdi>"));
    TRY(say_html(out, text));
    return str_appendf(out, "</bdi>");
}

int page_method(struct Str *out, const struct Report *r, int column)
{
    TRY(svg_legend(out, column));
    TRY(str_appendf(out, "<bdi class=\"method\">"));
    TRY(say_html(out, r->columns[column].label.data));
    return str_appendf(out, "</bdi>");
}

bool has_hits(const struct Report *r)
{
    for (int c = 0; c < r->n_columns; c++)
        if (r->all[c].hits.n) return true;
    return false;
}

bool has_kv(const struct Report *r)
{
    for (int c = 0; c < r->n_columns; c++)
        if (r->kv[c].n_rows) return true;
    return false;
}

static int legend(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "<div class=\"legend\">"));
    for (int c = 0; c < r->n_columns; c++) {
        TRY(str_appendf(out, "<span>"));
        TRY(page_method(out, r, c));
        TRY(str_appendf(out, "</span>"));
    }
    return str_appendf(out, "</div>\n");
}

/* ==== Head ==== */

static int page_start(struct Str *out, const struct Report *r)
{
    struct Str title = {0};
    int status = say_title(r, &title);
    if (status == PC_OK)
        status = str_appendf(
            out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta "
                 "name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<meta "
                 "name=\"color-scheme\" content=\"light dark\">\n<title>");
    if (status == PC_OK) status = say_html(out, title.data);
    if (status == PC_OK)
        status = str_appendf(out,
                             "</title>\n<style>%s</style></head><body><main>\n<header><p "
                             "class=\"eyebrow\">pcomp-eval %s · report</p>\n<h1>",
                             STYLE, PCOMP_VERSION);
    if (status == PC_OK) status = say_html(out, title.data);
    if (status == PC_OK) status = str_appendf(out, "</h1>\n");
    str_free(&title);
    return status;
}

static int page_badges(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "<div class=\"badges\">"));
    for (int t = 0; t < r->n_tasks; t++) {
        const char *benchmark = r->tasks[t].benchmark.data;
        struct Str part = {0};
        bool several =
            strcmp(r->tasks[0].benchmark.data, r->tasks[r->n_tasks - 1].benchmark.data) != 0;
        if (t > 0 && strcmp(r->tasks[t - 1].benchmark.data, benchmark) == 0) continue;
        int status = say_partial(r, benchmark, &part);
        if (status == PC_OK && part.len) {
            status = str_appendf(out, "<span class=\"badge%s\">",
                                 strncmp(part.data, "partial", 7) == 0 ? " strong" : "");
            if (status == PC_OK && several) status = say_html(out, benchmark);
            if (status == PC_OK)
                status = str_appendf(out, "%s%s</span>", several ? ": " : "", part.data);
        }
        str_free(&part);
        TRY(status);
    }
    TRY(str_appendf(out, "<span class=\"badge\">%d method%s</span>", r->n_columns,
                    r->n_columns == 1 ? "" : "s"));
    if (r->n_runs > 1) TRY(str_appendf(out, "<span class=\"badge\">%d runs</span>", r->n_runs));
    return str_appendf(out, "</div>\n");
}

static int page_alerts(struct Str *out, const struct Report *r)
{
    long failed = failed_rows(r), unread = unread_lines(r);
    struct Str mismatch = {0};
    if (failed || unread) {
        TRY(str_appendf(out, "<p class=\"alert\" role=\"note\">"));
        if (failed) TRY(str_appendf(out, "%ld row%s failed. ", failed, failed == 1 ? "" : "s"));
        if (unread)
            TRY(str_appendf(out, "%ld file%s or line%s could not be read. ", unread,
                            unread == 1 ? "" : "s", unread == 1 ? "" : "s"));
        TRY(str_appendf(out, "<a href=\"#problems\">See what went wrong.</a></p>\n"));
    }
    int status = say_mismatch(r, &mismatch);
    if (status == PC_OK && mismatch.len)
        status = str_appendf(
            out,
            "<p class=\"alert\" role=\"note\">These runs differ in: %s. Differences between "
            "them are not those of the methods alone.</p>\n",
            mismatch.data);
    str_free(&mismatch);
    return status;
}

static const char *fact_of(const struct Run *run, int fact)
{
    return run->facts[fact].len ? run->facts[fact].data : "–";
}

/* Several runs: a fact a row, and a word where they differ. */
static int facts_table(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "<div class=\"wrap facts\"><table class=\"plain left\"><thead><tr><th "
                         "scope=\"col\">Run</th>"));
    for (int i = 0; i < r->n_runs; i++) {
        TRY(str_appendf(out, "<th scope=\"col\">"));
        TRY(page_data(out, r->runs[i].name.data));
        TRY(str_appendf(out, "</th>"));
    }
    TRY(str_appendf(out, "</tr></thead><tbody>\n"));
    for (int f = 0; f < N_FACTS; f++) {
        bool differs = false;
        for (int i = 1; i < r->n_runs; i++)
            differs |= strcmp(fact_of(&r->runs[0], f), fact_of(&r->runs[i], f)) != 0;
        TRY(str_appendf(out, "<tr><th scope=\"row\">%s%s</th>", RUN_FACT_NAMES[f],
                        differs ? " <span class=\"verdict\">differs</span>" : ""));
        for (int i = 0; i < r->n_runs; i++) {
            TRY(str_appendf(out, "<td data-label=\""));
            TRY(say_html(out, r->runs[i].name.data));
            TRY(str_appendf(out, "\">"));
            TRY(page_data(out, fact_of(&r->runs[i], f)));
            TRY(str_appendf(out, "</td>"));
        }
        TRY(str_appendf(out, "</tr>\n"));
    }
    return str_appendf(out, "</tbody></table></div>\n");
}

static int page_facts(struct Str *out, const struct Report *r)
{
    const struct Run *run = &r->runs[0];
    if (r->n_runs != 1) return facts_table(out, r);
    TRY(str_appendf(out, "<dl class=\"facts\"><div><dt>Run</dt><dd>"));
    TRY(page_data(out, run->name.data));
    TRY(str_appendf(out, "</dd></div>"));
    for (int f = 0; f < N_FACTS; f++) {
        if (!run->facts[f].len) continue;
        TRY(str_appendf(out, "<div><dt>%s</dt><dd>", RUN_FACT_NAMES[f]));
        TRY(page_data(out, run->facts[f].data));
        TRY(str_appendf(out, "</dd></div>"));
    }
    return str_appendf(out, "</dl>\n");
}

static int nav_link(struct Str *out, const char *id, const char *name, bool there)
{
    return there ? str_appendf(out, "<a href=\"#%s\">%s</a>", id, name) : PC_OK;
}

static int page_nav(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "<nav aria-label=\"Sections\">"));
    TRY(nav_link(out, "scores", "Scores", true));
    TRY(nav_link(out, "differences", "Differences", r->n_columns > 1));
    TRY(nav_link(out, "buckets", "Three lengths", r->buckets != NULL));
    TRY(nav_link(out, "lengths", "Length", r->n_curves > 0));
    TRY(nav_link(out, "needles", "Needles", r->n_heats > 0));
    TRY(nav_link(out, "chunks", "Chunks", has_hits(r)));
    TRY(nav_link(out, "kv", "KV", has_kv(r)));
    TRY(nav_link(out, "cost", "Time and memory", true));
    TRY(nav_link(out, "problems", "What went wrong", failed_rows(r) || unread_lines(r)));
    TRY(nav_link(out, "how", "How to read this", true));
    return str_appendf(out, "</nav></header>\n");
}

/* ==== Methods ==== */

/* "Against full: better on 2 tasks, worse on 1, undecided on 18." */
static int card_verdicts(struct Str *out, const struct Report *r, int column)
{
    const struct Difference *all = &r->all[column].difference;
    int n[3] = {0};
    char mean[NUMBER], interval[LABEL];
    for (int t = 0; t < r->n_tasks; t++) {
        const struct Difference *d = &report_cell(r, t, column)->difference;
        n[d->verdict] += d->mean.n > 0;
    }
    TRY(str_appendf(out, "<p>Against "));
    TRY(page_data(out, r->columns[r->baseline].label.data));
    if (all->mean.n == 0) return str_appendf(out, ": no common rows.</p>\n");
    TRY(r->n_tasks == 1
            ? str_appendf(out, ": <b>%s</b>.", say_verdict(all->verdict))
            : str_appendf(
                  out, ": <b>better</b> on %d task%s, <b>worse</b> on %d, <b>undecided</b> on %d.",
                  n[VERDICT_BETTER], n[VERDICT_BETTER] == 1 ? "" : "s", n[VERDICT_WORSE],
                  n[VERDICT_UNDECIDED]));
    return str_appendf(out, " Mean difference <b>%s</b> (%s).</p>\n",
                       say_signed(all->mean.mean, mean), say_interval(&all->mean, true, interval));
}

static int card(struct Str *out, const struct Report *r, int column)
{
    const struct Cell *all = &r->all[column];
    char a[NUMBER], b[NUMBER], c[NUMBER], d[NUMBER];
    TRY(str_appendf(out, "<article class=\"card c%d\"><h3>", column % SVG_STYLES));
    TRY(page_method(out, r, column));
    TRY(str_appendf(out, "</h3>"));
    if (r->n_columns > 1)
        TRY(column == r->baseline
                ? str_appendf(out, "<p>The baseline: the others are compared with it "
                                   "row by row.</p>\n")
                : card_verdicts(out, r, column));
    TRY(str_appendf(out, "<dl><div><dt>Rows scored</dt><dd>%s", say_count(all->shares.scored, a)));
    if (all->shares.failed) TRY(str_appendf(out, ", %s failed", say_count(all->shares.failed, a)));
    if (all->shares.no_score)
        TRY(str_appendf(out, ", %s without", say_count(all->shares.no_score, a)));
    double share = all->cost.kv_in > 0 ? all->cost.kv_kept / all->cost.kv_in : NAN;
    return str_appendf(
        out,
        "</dd></div><div><dt>Median time</dt><dd>%s</dd></div><div><dt>Peak "
        "memory</dt><dd>%s</dd></div><div><dt>KV kept</dt><dd>%s</dd></div></dl></article>\n",
        say_seconds(all->cost.total_median, b), say_size(all->cost.peak_most, c),
        say_share(share, d));
}

static int page_cards(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out, "<div class=\"cards\">\n"));
    for (int c = 0; c < r->n_columns; c++) TRY(card(out, r, c));
    return str_appendf(out, "</div>\n");
}

/* ==== Length ==== */

static int curve_table(struct Str *out, const struct Report *r, const struct Curve *curve)
{
    char text[LABEL], mean[NUMBER], interval[LABEL];
    TRY(str_appendf(out, "<div class=\"wrap\"><table class=\"plain curve-table\"><thead><tr><th "
                         "scope=\"col\">tokens</th>"));
    for (int c = 0; c < r->n_columns; c++) {
        TRY(str_appendf(out, "<th scope=\"col\">"));
        TRY(page_method(out, r, c));
        TRY(str_appendf(out, "</th>"));
    }
    TRY(str_appendf(out, "</tr></thead><tbody>\n"));
    for (int b = 0; b < curve->n_bins; b++) {
        TRY(str_appendf(out, "<tr><th scope=\"row\">%s</th>",
                        say_range(curve->low[b], curve->high[b], text)));
        for (int c = 0; c < r->n_columns; c++) {
            const struct Estimate *e = &curve->points[b * r->n_columns + c];
            TRY(str_appendf(out, "<td data-label=\""));
            TRY(say_html(out, r->columns[c].label.data));
            TRY(str_appendf(
                out, "\"><span><b>%s</b> <span class=\"ci\">%s · n %d</span></span></td>",
                e->n ? say_score(e->mean, mean) : "–", say_interval(e, false, interval), e->n));
        }
        TRY(str_appendf(out, "</tr>\n"));
    }
    return str_appendf(out, "</tbody></table></div>\n");
}

static int curve_figure(struct Str *out, const struct Report *r, const struct Curve *curve)
{
    TRY(str_appendf(out, "<figure><figcaption><b>"));
    TRY(curve->task >= 0 ? page_data(out, r->tasks[curve->task].name.data)
                         : str_appendf(out, "All tasks together"));
    TRY(str_appendf(out, "</b><small>%s</small></figcaption>\n<div class=\"split%s\">",
                    curve->by_target
                        ? "by the length that was asked for"
                        : "by the text's length in tokens, in ranges of about equally many "
                          "rows; the tasks are mixed differently in each range",
                    r->n_columns > 3 ? " stacked" : ""));
    TRY(svg_curve(out, r, curve));
    TRY(curve_table(out, r, curve));
    return str_appendf(out, "</div></figure>\n");
}

static int page_lengths(struct Str *out, const struct Report *r)
{
    int shown = 0;
    if (r->n_curves == 0) return PC_OK;
    TRY(str_appendf(
        out,
        "<section id=\"lengths\"><h2>Score by length</h2>\n<p>Mean score and its 95%% interval. "
        "Every method is measured on the same rows in each range.</p>\n"));
    TRY(legend(out, r));
    TRY(str_appendf(out, "<div class=\"figures wide\">\n"));
    for (int i = 0; i < r->n_curves; i++)
        if (r->curves[i].task < 0) TRY(curve_figure(out, r, &r->curves[i]));
    TRY(str_appendf(out, "</div>\n"));
    for (int i = 0; i < r->n_curves; i++) {
        if (r->curves[i].task < 0) continue;
        if (shown++ == 0)
            TRY(str_appendf(out,
                            "<details><summary>Each task by itself</summary><div class=\"figures "
                            "wide\">\n"));
        TRY(curve_figure(out, r, &r->curves[i]));
    }
    return str_appendf(out, "%s</section>\n", shown ? "</div></details>" : "");
}

enum { CARD_EDGES = 38 }; /* padding and border of a card */

/* ==== Needles ==== */

enum {
    HEATS_OPEN = 2,   /* tasks whose maps are shown at once */
    CARD_LEAST = 170, /* pixels that a method's name needs */
};

static int heat_rows(struct Str *out, const struct Heat *heat, int column)
{
    int least = 0, most = 0, n = heat->n_depths * heat->n_lengths;
    for (int i = 0; i < n; i++) {
        int rows = heat->n[column * n + i];
        if (rows && (least == 0 || rows < least)) least = rows;
        if (rows > most) most = rows;
    }
    if (least == most) return str_appendf(out, "%d row%s a cell", most, most == 1 ? "" : "s");
    return str_appendf(out, "%d to %d rows a cell", least, most);
}

static int heat_figures(struct Str *out, const struct Report *r, const struct Heat *heat)
{
    TRY(str_appendf(out, "<h3>"));
    TRY(page_data(out, r->tasks[heat->task].name.data));
    TRY(str_appendf(
        out,
        "</h3><div class=\"figures\" style=\"grid-template-columns:repeat(auto-fill,minmax(min(100%%,"
        "%dpx),1fr))\">\n",
        svg_heat_width(heat) > CARD_LEAST ? svg_heat_width(heat) + CARD_EDGES
                                          : CARD_LEAST + CARD_EDGES));
    for (int c = 0; c < r->n_columns; c++) {
        if (report_cell(r, heat->task, c)->shares.rows == 0) continue;
        TRY(str_appendf(out, "<figure class=\"needle c%d\" data-column=\"%d\"><figcaption>",
                        c % SVG_STYLES, c));
        TRY(page_method(out, r, c));
        TRY(str_appendf(out, "<small>"));
        TRY(heat_rows(out, heat, c));
        TRY(str_appendf(out, "</small></figcaption><div class=\"scroll\">"));
        TRY(svg_heat(out, heat, c));
        TRY(str_appendf(out, "</div></figure>\n"));
    }
    return str_appendf(out, "</div>\n");
}

static int page_needles(struct Str *out, const struct Report *r)
{
    if (r->n_heats == 0) return PC_OK;
    TRY(str_appendf(
        out,
        "<section id=\"needles\"><h2>Needles by depth and length</h2>\n<p>Each cell is a mean "
        "score, 0 to 100; the stronger the shade, the higher. Down: where in the text the needle stands, "
        "0%% is its start. Across: tokens of text.</p>\n"));
    for (int i = 0; i < r->n_heats; i++) {
        if (i == HEATS_OPEN)
            TRY(str_appendf(out, "<details><summary>%d tasks more</summary>\n", r->n_heats - i));
        TRY(heat_figures(out, r, &r->heats[i]));
    }
    return str_appendf(out, "%s</section>\n", r->n_heats > HEATS_OPEN ? "</details>" : "");
}

/* ==== Chunks ==== */

static int hits_row(struct Str *out, const struct Report *r, int column)
{
    const struct Hits *h = &r->all[column].hits;
    struct Estimate share = stats_share(h->all, h->n);
    char a[NUMBER], b[NUMBER], text[LABEL];
    if (h->n == 0) return PC_OK;
    TRY(str_appendf(out, "<tr class=\"c%d\" data-column=\"%d\"><th scope=\"row\">",
                    column % SVG_STYLES, column));
    TRY(page_method(out, r, column));
    TRY(str_appendf(
        out,
        "</th><td data-label=\"rows\">%d</td><td data-label=\"answer kept\"><span><b "
        "class=\"hit\">%s</b> <span class=\"ci\">%s</span></span></td><td data-label=\"chunks "
        "kept\">%s</td>",
        h->n, say_share(share.mean, a), say_interval(&share, false, text),
        say_share(h->kept_share, b)));
    for (int k = 0; k < REPORT_RANKS; k++)
        TRY(str_appendf(out, "<td data-label=\"among best %d\">%s</td>", 1 << k,
                        say_share(h->n_ranked ? (double)h->within[k] / h->n_ranked : NAN, a)));
    return str_appendf(out, "</tr>\n");
}

static int hits_table(struct Str *out, const struct Report *r)
{
    TRY(str_appendf(out,
                    "<div class=\"wrap\"><table class=\"plain\" id=\"hits\"><thead><tr><th "
                    "scope=\"col\">Method</th><th scope=\"col\">rows</th><th scope=\"col\">answer "
                    "kept</th><th scope=\"col\">chunks kept</th>"));
    for (int k = 0; k < REPORT_RANKS; k++)
        TRY(str_appendf(out, "<th scope=\"col\">best %d</th>", 1 << k));
    TRY(str_appendf(out, "</tr></thead><tbody>\n"));
    for (int c = 0; c < r->n_columns; c++) TRY(hits_row(out, r, c));
    return str_appendf(out, "</tbody></table></div>\n");
}

static int page_chunks(struct Str *out, const struct Report *r)
{
    if (!has_hits(r)) return PC_OK;
    TRY(str_appendf(
        out,
        "<section id=\"chunks\"><h2>Was the answer's chunk kept?</h2>\n<p>Over rows that tell in "
        "which chunk the answer lies (of several, all must be kept, and the worst rank "
        "counts). <b>Chunks kept</b> is what keeping at random would reach. <b>Best "
        "1</b> to <b>best 16</b>: how often the chunk was among that many best "
        "scores.</p>\n"));
    TRY(hits_table(out, r));
    TRY(str_appendf(out, "<div class=\"figures\">\n"));
    for (int c = 0; c < r->n_columns; c++) {
        if (r->all[c].hits.n_chunked == 0) continue;
        TRY(str_appendf(out, "<figure class=\"c%d\"><figcaption>", c % SVG_STYLES));
        TRY(page_method(out, r, c));
        TRY(str_appendf(
            out, r->all[c].hits.n_ranked
                     ? "<small><svg class=\"swatch\" viewBox=\"0 0 14 14\" "
                       "aria-hidden=\"true\"><circle class=\"kept\" cx=\"7\" cy=\"7\" "
                       "r=\"4\"/></svg> kept &emsp;<svg class=\"swatch\" viewBox=\"0 0 14 14\" "
                       "aria-hidden=\"true\"><path class=\"lost\" d=\"M4 4l6 6m0 -6l-6 "
                       "6\"/></svg> dropped; below, the share kept by tenth of the "
                       "text</small>"
                     : "<small>no scores of chunks; share kept by tenth of the "
                       "text</small>"));
        TRY(str_appendf(out, "</figcaption>"));
        TRY(svg_hits(out, r, c));
        TRY(str_appendf(out, "</figure>\n"));
    }
    return str_appendf(out, "</div></section>\n");
}

/* ==== KV ==== */

static int kv_figure(struct Str *out, const struct Report *r, int column)
{
    const struct KvMap *map = &r->kv[column];
    char text[NUMBER];
    if (map->n_rows == 0) return PC_OK;
    TRY(str_appendf(out, "<figure class=\"c%d\"><figcaption>", column % SVG_STYLES));
    TRY(page_method(out, r, column));
    TRY(isnan(map->share_of)
            ? str_appendf(out, "<small>mean entries kept, %d row%s", map->n_rows,
                          map->n_rows == 1 ? "" : "s")
            : str_appendf(out, "<small>%% kept of %s entries a head, mean of %d row%s",
                          say_count(map->share_of, text), map->n_rows,
                          map->n_rows == 1 ? "" : "s"));
    if (map->n_left_out) TRY(str_appendf(out, "; %d of another shape left out", map->n_left_out));
    TRY(str_appendf(out, "</small></figcaption><div class=\"scroll\">"));
    TRY(svg_kv(out, map));
    return str_appendf(out, "</div></figure>\n");
}

/* Room for the widest map in its card. */
static int kv_width(const struct Report *r)
{
    int most = 0;
    for (int c = 0; c < r->n_columns; c++)
        if (r->kv[c].n_rows && svg_kv_width(&r->kv[c]) > most) most = svg_kv_width(&r->kv[c]);
    return most + CARD_EDGES;
}

static int page_kv(struct Str *out, const struct Report *r)
{
    if (!has_kv(r)) return PC_OK;
    TRY(str_appendf(
        out,
        "<section id=\"kv\"><h2>KV kept by layer and head</h2>\n<p>Down: layers from the first. "
        "Across: KV heads. The stronger the shade, the more is kept.</p>\n<div class=\"figures\" "
        "style=\"grid-template-columns:repeat(auto-fill,minmax(min(100%%,%dpx),1fr))\">\n",
        kv_width(r)));
    for (int c = 0; c < r->n_columns; c++) TRY(kv_figure(out, r, c));
    return str_appendf(out, "</div></section>\n");
}

/* ==== How to read this ==== */

static int page_how(struct Str *out, const struct Report *r)
{
    char count[NUMBER];
    say_count(STATS_RESAMPLES, count);
    TRY(str_appendf(
        out,
        "<section id=\"how\"><h2>How to read this</h2>\n<ul class=\"how\">"
        "<li><b>Interval.</b> 95%%. Where all scores are 0 or 1 it is Wilson's; else it is the percentile "
        "bootstrap of %s resamples of the rows, seeded, so that the same data give the same numbers. With few "
        "rows a bootstrap interval is too narrow rather than too wide. One row has no interval.</li>"
        "<li><b>Mean of tasks.</b> Each task counts the same, however many rows it has; rows are resampled "
        "within their task; a task with one row borrows the spread of the others.</li>"
        "<li><b>Below zero.</b> The share of resamples in which the mean difference is negative.</li>"
        "<li><b>Empty</b>: the answer has no text. <b>Unparsed</b>: it has not the form that the scorer looks "
        "for, and so counts as wrong. <b>Answer cut</b>: it ended at the limit of new tokens. <b>Input "
        "cut</b>: part of the text was left out before the method saw it. All are shares of the rows that did "
        "not fail.</li>",
        count));
    TRY(str_appendf(out, "<li><b>Not in this report:</b> "));
    size_t begin = out->len;
    if (r->n_curves == 0)
        TRY(str_appendf(out, "score by length (fewer than 10 rows tell their length)"));
    if (r->n_heats == 0)
        TRY(str_appendf(out, "%sneedle map (no row tells depth and length)",
                        out->len > begin ? "; " : ""));
    if (!has_hits(r))
        TRY(str_appendf(out, "%schunks (no row tells where its answer lies)",
                        out->len > begin ? "; " : ""));
    if (!has_kv(r))
        TRY(str_appendf(out, "%sKV by layer and head (not told)", out->len > begin ? "; " : ""));
    return str_appendf(out, "%s.</li></ul></section>\n",
                       out->len > begin ? "" : "nothing is left out");
}

int report_html(const struct Report *r, struct Str *out)
{
    TRY(page_start(out, r));
    TRY(page_badges(out, r));
    TRY(page_alerts(out, r));
    TRY(page_facts(out, r));
    TRY(page_nav(out, r));
    TRY(page_cards(out, r));
    TRY(page_scores(out, r));
    TRY(page_differences(out, r));
    TRY(page_buckets(out, r));
    TRY(page_lengths(out, r));
    TRY(page_needles(out, r));
    TRY(page_chunks(out, r));
    TRY(page_kv(out, r));
    TRY(page_costs(out, r));
    TRY(page_settings(out, r));
    TRY(page_problems(out, r));
    TRY(page_how(out, r));
    return str_appendf(out, "</main></body></html>\n");
}

/* report_write.c - see report_write.h */
#include "report_write.h"
#include "cli.h"
#include "report_parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char NOTE_VERDICT[] =
    "Decided (better, worse) means: the 95% interval of the mean difference leaves out zero, and at "
    "least 6 rows are common to both.";

/* ==== Text from data ==== */

/* Length of the next character of text; 0: this byte must not be shown. */
static size_t good_char(const char *text, size_t len)
{
    unsigned char c = (unsigned char)*text;
    size_t n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (n > len || utf8_invalid_at(text, n) < n || c < 0x20 || c == 0x7F) return 0;
    if (c == 0xC2 && (unsigned char)text[1] < 0xA0) return 0; /* C1 control */
    /* U+202A to U+202E and U+2066 to U+2069 turn the reading direction of what follows */
    if (memcmp(text, "\xE2\x80", n < 2 ? n : 2) == 0 && n == 3) {
        unsigned char last = (unsigned char)text[2];
        if ((last >= 0xA8 && last <= 0xAE) || last == 0x8E || last == 0x8F) return 0;
    }
    if (n == 3 && memcmp(text, "\xE2\x81", 2) == 0 && (unsigned char)text[2] >= 0xA6 &&
        (unsigned char)text[2] <= 0xA9)
        return 0;
    return n;
}

typedef const char *(*Replace)(char c); /* what stands for a character of ASCII; NULL: itself */

static int put_text(struct Str *out, const char *text, Replace replace)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < len;) {
        size_t n = good_char(text + i, len - i);
        const char *other = replace(text[i]);
        if (other)
            TRY(str_append(out, other, strlen(other)));
        else if (n)
            TRY(str_append(out, text + i, n));
        else
            TRY(str_append(out, "\xEF\xBF\xBD", 3));
        i += other || !n ? 1 : n;
    }
    return PC_OK;
}

static const char *replace_html(char c)
{
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    case '\n':
    case '\t':
    case '\r':
        return " ";
    default:
        return NULL;
    }
}

int say_html(struct Str *out, const char *text)
{
    return put_text(out, text, replace_html);
}

static const char *replace_markdown(char c)
{
    static const char marks[] = "\\`*_{}[]()#+!|~$";
    static char pairs[sizeof marks][3];
    switch (c) {
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '&':
        return "&amp;";
    case '\n':
    case '\t':
    case '\r':
        return " ";
    default:
        break;
    }
    const char *mark = c ? strchr(marks, c) : NULL;
    if (!mark) return NULL;
    char *pair = pairs[mark - marks];
    pair[0] = '\\';
    pair[1] = c;
    return pair;
}

int say_markdown(struct Str *out, const char *text)
{
    return put_text(out, text, replace_markdown);
}

static const char *replace_csv(char c)
{
    return c == '"' ? "\"\"" : c == '\n' || c == '\r' || c == '\t' ? " " : NULL;
}

int say_csv(struct Str *out, const char *text)
{
    bool formula = *text && strchr("=+-@", *text); /* a spreadsheet would run it */
    bool quote = formula || strpbrk(text, "\",\n\r\t") || *text == ' ';
    if (quote) TRY(str_append(out, "\"", 1));
    if (formula) TRY(str_append(out, "'", 1));
    TRY(put_text(out, text, replace_csv));
    return quote ? str_append(out, "\"", 1) : PC_OK;
}

/* ==== Numbers ==== */

static const char DASH[] = "–";

const char *say_score(double score, char text[NUMBER])
{
    snprintf(text, NUMBER, isfinite(score) ? "%.2f" : DASH, 100 * score);
    return text;
}

const char *say_signed(double difference, char text[NUMBER])
{
    char plain[24];
    snprintf(plain, sizeof plain, "%.2f", fabs(100 * difference));
    bool zero = strcmp(plain, "0.00") == 0;
    snprintf(text, NUMBER, "%s%s", zero ? "" : difference < 0 ? "−" : "+", plain);
    if (!isfinite(difference)) snprintf(text, NUMBER, "%s", DASH);
    return text;
}

const char *say_share(double share, char text[NUMBER])
{
    double percent = 100 * share;
    bool fine = (percent > 0 && percent < 9.95) || (percent > 99 && percent < 100);
    if (!isfinite(share))
        snprintf(text, NUMBER, "%s", DASH);
    else if (percent > 0 && percent < 0.1)
        snprintf(text, NUMBER, "under 0.1%%");
    else if (percent > 99.9 && percent < 100)
        snprintf(text, NUMBER, "over 99.9%%");
    else
        snprintf(text, NUMBER, fine ? "%.1f%%" : "%.0f%%", percent);
    return text;
}

const char *say_count(double n, char text[NUMBER])
{
    char plain[NUMBER];
    if (!(fabs(n) < 1e15)) {
        snprintf(text, NUMBER, "%s", DASH);
        return text;
    }
    int len = snprintf(plain, sizeof plain, "%.0f", n), to = 0;
    for (int i = 0; i < len; i++) {
        if (i > (plain[0] == '-') && (len - i) % 3 == 0) text[to++] = ',';
        text[to++] = plain[i];
    }
    text[to] = '\0';
    return text;
}

const char *say_short(double n, char text[NUMBER])
{
    double k = n / 1024, m = k / 1024;
    if (!isfinite(n))
        snprintf(text, NUMBER, "%s", DASH);
    else if (n < 1000)
        snprintf(text, NUMBER, "%.0f", n);
    else if (m >= 1)
        snprintf(text, NUMBER, m == floor(m) || m >= 100 ? "%.0fM" : "%.1fM", m);
    else
        snprintf(text, NUMBER, k == floor(k) || k >= 100 ? "%.0fK" : "%.1fK", k);
    return text;
}

const char *say_seconds(double seconds, char text[NUMBER])
{
    snprintf(text, NUMBER,
             !isfinite(seconds) ? DASH
             : seconds < 10     ? "%.2f s"
             : seconds < 100    ? "%.1f s"
                                : "%.0f s",
             seconds);
    return text;
}

const char *say_size(double bytes, char text[NUMBER])
{
    if (bytes >= 0 && bytes < 1e18)
        bytes_text((size_t)bytes, text);
    else
        snprintf(text, NUMBER, "%s", DASH);
    return text;
}

const char *say_range(double low, double high, char text[LABEL])
{
    char a[NUMBER], b[NUMBER];
    say_short(low, a);
    say_short(high, b);
    snprintf(text, LABEL, strcmp(a, b) == 0 ? "%s" : "%s–%s", a, b);
    return text;
}

const char *say_depth(double low, double high, char text[LABEL])
{
    char a[NUMBER], b[NUMBER];
    snprintf(a, sizeof a, "%.3g", 100 * low);
    snprintf(b, sizeof b, "%.3g", 100 * high);
    snprintf(text, LABEL, strcmp(a, b) == 0 ? "%s%%" : "%s–%s%%", a, b);
    return text;
}

const char *say_interval(const struct Estimate *e, bool with_sign, char text[LABEL])
{
    char a[NUMBER], b[NUMBER];
    if (e->kind == INTERVAL_NONE)
        snprintf(text, LABEL, "%s", e->n ? "no interval" : "");
    else if (with_sign)
        snprintf(text, LABEL, "%s to %s", say_signed(e->low, a), say_signed(e->high, b));
    else
        snprintf(text, LABEL, "%s–%s", say_score(e->low, a), say_score(e->high, b));
    return text;
}

const char *say_verdict(enum Verdict verdict)
{
    return verdict == VERDICT_BETTER ? "better" : verdict == VERDICT_WORSE ? "worse" : "undecided";
}

/* ==== Wording ==== */

static const char *plural(double n)
{
    return n == 1 ? "" : "s";
}

/* Rows of the benchmark that are here, and of its official set as far as that is known. */
struct Extent {
    double rows, official;
    int n_tasks, n_told; /* tasks with rows; tasks whose official number of rows is told */
};

static struct Extent extent_of(const struct Report *r, const char *benchmark)
{
    struct Extent e = {0};
    for (int t = 0; t < r->n_tasks; t++) {
        const struct ReportTask *task = &r->tasks[t];
        if (benchmark && strcmp(task->benchmark.data, benchmark) != 0) continue;
        e.n_tasks += task->n_rows > 0;
        e.rows += task->n_rows;
        if (!(task->official > 0)) continue;
        e.n_told++;
        e.official += task->official;
    }
    return e;
}

static const struct Group *whole_of(const struct Report *r, const char *benchmark)
{
    for (int g = 0; g < r->n_groups; g++)
        if (strcmp(r->groups[g].benchmark, benchmark) == 0 &&
            strcmp(r->groups[g].name, "All tasks") == 0)
            return &r->groups[g];
    return NULL;
}

/* Rows made for the run: there is no official set that they could be a part of. */
static bool is_generated(const struct Report *r, const char *benchmark)
{
    return extent_of(r, benchmark).n_told == 0 && !is_longbench(benchmark) &&
           strncmp(benchmark, "infinitebench", 13) != 0;
}

static const char *proper_name(const char *benchmark)
{
    return strcmp(benchmark, "longbench") == 0            ? "LongBench"
           : strcmp(benchmark, "longbench-e") == 0        ? "LongBench-E"
           : strncmp(benchmark, "infinitebench", 13) == 0 ? "InfiniteBench"
           : strcmp(benchmark, "ruler") == 0              ? "RULER"
                                                          : benchmark;
}

int say_title(const struct Report *r, struct Str *out)
{
    struct Extent all = extent_of(r, NULL);
    char rows[NUMBER];
    say_count(all.rows, rows);
    if (all.rows == 0) return str_appendf(out, "No rows");
    const char *first = r->tasks[0].benchmark.data;
    int n = 0;
    for (int t = 0; t < r->n_tasks; t++)
        n += t == 0 || strcmp(r->tasks[t].benchmark.data, r->tasks[t - 1].benchmark.data) != 0;
    if (n > 1)
        return str_appendf(out, "%s row%s of %d tasks from %d benchmarks", rows, plural(all.rows),
                           all.n_tasks, n);
    if (r->complete)
        return str_appendf(out, "%s: all %s rows of %d task%s", proper_name(first), rows,
                           all.n_tasks, plural(all.n_tasks));
    return str_appendf(out, "%s row%s of %d %s task%s", rows, plural(all.rows), all.n_tasks, first,
                       plural(all.n_tasks));
}

int say_partial(const struct Report *r, const char *benchmark, struct Str *out)
{
    struct Extent e = extent_of(r, benchmark);
    const struct Group *whole = whole_of(r, benchmark);
    char a[NUMBER], b[NUMBER];
    if (!whole || whole->complete) return PC_OK;
    if (is_generated(r, benchmark)) return str_appendf(out, "rows made for this run");
    if (e.n_told == 0) return str_appendf(out, "partial: the official number of rows is not told");
    TRY(str_appendf(out, "partial: %s of %s", say_count(e.rows, a), say_count(e.official, b)));
    if (whole->n_set > e.n_tasks)
        return str_appendf(out, " official rows%s, %d of %d tasks",
                           whole->n_set > e.n_told ? " of these tasks" : "", e.n_tasks,
                           whole->n_set);
    if (e.rows >= e.official) return str_appendf(out, " rows, not all of them scored");
    return str_appendf(out, " official rows");
}

int say_rows(const struct ReportTask *task, struct Str *out)
{
    char a[NUMBER], b[NUMBER];
    say_count(task->n_rows, a);
    if (!(task->official > 0)) return str_appendf(out, "%s row%s", a, plural(task->n_rows));
    if (task->n_rows == task->official) return str_appendf(out, "all %s rows", a);
    return str_appendf(out, "%s of %s rows", a, say_count(task->official, b));
}

static int share_part(struct Str *out, size_t begin, const char *name, int part, int n)
{
    char share[NUMBER];
    if (part == 0 || n == 0) return PC_OK;
    return str_appendf(out, "%s%s %s", out->len > begin ? " · " : "", name,
                       say_share((double)part / n, share));
}

int say_shares(const struct Shares *n, struct Str *out)
{
    size_t begin = out->len;
    int ran = n->rows - n->failed;
    if (n->failed) TRY(str_appendf(out, "%d of %d failed", n->failed, n->rows));
    if (n->no_score)
        TRY(str_appendf(out, "%s%d of %d without score", out->len > begin ? " · " : "", n->no_score,
                        n->rows));
    TRY(share_part(out, begin, "empty", n->empty, ran));
    TRY(share_part(out, begin, "unparsed", n->unparsed, ran));
    TRY(share_part(out, begin, "answer cut", n->cut, ran));
    return share_part(out, begin, "input cut", n->truncated, ran);
}

bool group_shown(const struct Report *r, const struct Group *g)
{
    if (strcmp(g->name, "All tasks") != 0) return true;
    return g->n_tasks > 1 && (g->complete || is_generated(r, g->benchmark));
}

bool bucket_means_shown(const struct Report *r)
{
    const struct Group *whole = whole_of(r, "longbench-e");
    return whole && whole->complete;
}

int say_group(const struct Group *g, struct Str *out)
{
    TRY(str_appendf(out, "mean of %d task%s", g->n_tasks, plural(g->n_tasks)));
    if (g->n_set > g->n_tasks) TRY(str_appendf(out, " of %d", g->n_set));
    if (strcmp(g->name, "All tasks") == 0) return PC_OK;
    return g->complete ? PC_OK : str_appendf(out, ", partial");
}

static bool same_fact(const struct Report *r, int i, int k, enum RunFact fact)
{
    const struct Str *a = &r->runs[i].facts[fact], *b = &r->runs[k].facts[fact];
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

int say_mismatch(const struct Report *r, struct Str *out)
{
    static const enum RunFact facts[] = {FACT_PROFILE, FACT_SCORER, FACT_MODEL_HASH,
                                         FACT_DATA_HASH};
    static const char *const names[] = {"profile", "scorer", "model", "data"};
    size_t begin = out->len;
    for (size_t f = 0; f < sizeof facts / sizeof facts[0]; f++) {
        bool differs = false;
        for (int i = 0; i < r->n_runs; i++)
            for (int k = 0; k < i; k++)
                differs |= same_fact(r, i, k, FACT_BENCHMARK) && !same_fact(r, i, k, facts[f]);
        if (differs) TRY(str_appendf(out, "%s%s", out->len > begin ? ", " : "", names[f]));
    }
    return PC_OK;
}

long failed_rows(const struct Report *r)
{
    long n = 0;
    for (int c = 0; c < r->n_columns; c++) n += r->all[c].shares.failed;
    return n;
}

long unread_lines(const struct Report *r)
{
    long n = 0;
    for (int i = 0; i < r->n_runs; i++) n += r->runs[i].n_problems_all;
    return n;
}

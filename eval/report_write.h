/* report_write.h - inside report*.c: text, numbers and wording that the three forms share. */
#ifndef PCOMP_REPORT_WRITE_H
#define PCOMP_REPORT_WRITE_H

#include "report.h"

enum {
    NUMBER = 32,
    LABEL = 80,
    REPORT_FAILURES = 100, /* failed rows listed one by one */
};

extern const char NOTE_VERDICT[]; /* when a difference counts as decided */

/* ==== Text from data: control bytes, bad UTF-8 and marks that turn the reading direction become U+FFFD ==== */

int say_html(struct Str *out, const char *text);
int say_markdown(struct Str *out,
                 const char *text); /* one line, marks escaped, fit for a table's cell */
int say_csv(struct Str *out, const char *text); /* quoted when needed */

/* ==== Numbers; NAN is an en dash ==== */

const char *say_score(double score, char text[NUMBER]);       /* 0.4725: "47.25" */
const char *say_signed(double difference, char text[NUMBER]); /* "+3.20", "−1.05" */
const char *say_share(double share, char text[NUMBER]);       /* "20%", "0.4%" */
const char *say_count(double n, char text[NUMBER]);           /* "131,072" */
const char *say_short(double n, char text[NUMBER]);           /* "128K", "3.9K", "412" */
const char *say_seconds(double seconds, char text[NUMBER]);
const char *say_size(double bytes, char text[NUMBER]);            /* "1.35 GiB" */
const char *say_range(double low, double high, char text[LABEL]); /* of tokens: "4K", "2.1K–3.9K" */
const char *say_depth(double low, double high, char text[LABEL]); /* "50%", "0–10%" */
/* "33.10–61.02", "−1.20 to +5.10"; "no interval" with fewer than two values. */
const char *say_interval(const struct Estimate *e, bool with_sign, char text[LABEL]);
const char *say_verdict(enum Verdict verdict);

/* ==== Wording ==== */

/* The heading: "LongBench: all 4,750 rows" only for the complete set, else "158 rows of 21 longbench tasks". */
int say_title(const struct Report *r, struct Str *out);
/* "partial: 158 of 4,750 official rows", "" for a complete set. One benchmark. */
int say_partial(const struct Report *r, const char *benchmark, struct Str *out);
/* "5 of 200 rows" */
int say_rows(const struct ReportTask *task, struct Str *out);
/* What has to be said beside a mean: "1 of 5 failed · empty 20%"; nothing when all is well. */
int say_shares(const struct Shares *n, struct Str *out);
/* True when a mean over this set may be shown: a group of it, the whole of it, or rows made for the run. */
bool group_shown(const struct Report *r, const struct Group *g);
/* The same for the mean over all tasks of each of LongBench-E's lengths. */
bool bucket_means_shown(const struct Report *r);
int say_group(const struct Group *g, struct Str *out); /* "mean of 4 tasks, partial" */
/* Runs of one benchmark that cannot be compared row by row: names the facts that differ; else nothing. */
int say_mismatch(const struct Report *r, struct Str *out);
/* Rows that failed and lines that could not be read, over all columns and runs. */
long failed_rows(const struct Report *r);
long unread_lines(const struct Report *r);

#endif

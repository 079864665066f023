/* report_page.h - inside report_html.c and report_tables.c: parts of the page. */
#ifndef PCOMP_REPORT_PAGE_H
#define PCOMP_REPORT_PAGE_H

#include "report.h"

/* Text of the data, kept apart from the reading direction of its surroundings. */
int page_data(struct Str *out, const char *text);
/* The method's mark and label. */
int page_method(struct Str *out, const struct Report *r, int column);

/* Sections of tables (report_tables.c); each writes nothing when it has nothing to show. */
int page_scores(struct Str *out, const struct Report *r);
int page_differences(struct Str *out, const struct Report *r);
int page_buckets(struct Str *out, const struct Report *r);
int page_costs(struct Str *out, const struct Report *r);
int page_settings(struct Str *out, const struct Report *r);
int page_problems(struct Str *out, const struct Report *r);

/* Which sections have something to show. */
bool has_hits(const struct Report *r);
bool has_kv(const struct Report *r);

#endif

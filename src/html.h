/* html.h - what the pages about runs and calibrations share: their look, and text that comes from outside. */
#ifndef PCOMP_HTML_H
#define PCOMP_HTML_H

#include "base.h"

/* The style of a page whose body is one <main>. */
extern const char HTML_STYLE[];

/* Appends text as HTML: markup characters as entities, control bytes and bad UTF-8 as U+FFFD. */
int html_escape(struct Str *out, const char *data, size_t len);
int html_text(struct Str *out, const char *text); /* NULL: nothing */
/* "131,072" */
const char *html_count(int64_t n, char text[32]);

#endif

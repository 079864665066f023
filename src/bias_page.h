/* bias_page.h - what a bias study found, as files: a page, a drawing, numbers, and settings to use. */
#ifndef PCOMP_BIAS_PAGE_H
#define PCOMP_BIAS_PAGE_H

#include "bias_study.h"

struct BiasPage {
    const struct BiasStudy *study;
    const char *model, *device, *source; /* source: the text's name */
};

/* A self-contained HTML page: verdict, arms, heat maps, shares and heads, before and after. */
int bias_page(const struct BiasPage *page, struct Str *out);
/* The same drawings as one SVG file. */
int bias_figure(const struct BiasPage *page, struct Str *out);
/* All numbers as one JSON object, schema "pcomp.bias.v1" (bias_json.c). */
int bias_json(const struct BiasPage *page, struct Str *out);
/* The proposed rules as a file for --config (bias_json.c). */
int bias_settings(const struct BiasStudy *study, struct Str *out);

#endif

/* explain.h - a run as a picture: one HTML page that needs nothing but itself. */
#ifndef PCOMP_EXPLAIN_H
#define PCOMP_EXPLAIN_H

#include "pcomp.h"

struct Explain {
    const struct Result *result;
    const char *context; /* the text that was read; for the first words of each chunk */
    size_t context_len;
    struct TextStream *stream;                      /* in the context's place; or NULL */
    const char *question, *model, *device, *source; /* source: the file's name, or "" */
    const char *stop;                               /* why the answer ended */
    int n_layers, n_kv_heads;
    bool has_mark;               /* a place in the text to point at (the demo's hidden sentence) */
    size_t mark_begin, mark_end; /* bytes of context */
};

/* Appends a self-contained page: facts, chunk map, KV by layer and head, time by stage, tables. */
int explain_page(const struct Explain *e, struct Str *out);

#endif

/* bias_items.h - questions to measure attention bias with: the user's, or made from the text by fixed rules. */
#ifndef PCOMP_BIAS_ITEMS_H
#define PCOMP_BIAS_ITEMS_H

#include "base.h"

enum { STUDY_ITEMS_MAX = 512 };

struct BiasItem {
    struct Str question,
        answer; /* answer: a sentence of the text; empty for a user's own question */
    size_t at;  /* byte of the text where the sentence begins */
};

struct BiasItems {
    struct BiasItem *items; /* [cap], n of them made */
    int n, cap;
};

/* n questions of the form "which sentence follows this one?", from places spread evenly over the text; a sentence that
 * stands twice asks nothing. Fewer where the text has fewer; PC_ERANGE below two. items_free, also after an error. */
int items_make(const char *text, size_t len, int n, struct BiasItems *out);
/* The user's own, without answers. */
int items_take(const char *const *questions, int n, struct BiasItems *out);
void items_free(struct BiasItems *items);

#endif

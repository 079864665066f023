/* page_select.h - which pages of a KV head a decoding row reads (headwise.md D.1, class R; D.3, item 4). */
#ifndef PCOMP_PAGE_SELECT_H
#define PCOMP_PAGE_SELECT_H

#include "config.h"

/* Always the first pages and the last ones; of those between the highest scores, or as much estimated attention. */
struct PageSelect {
    enum PageIndex index; /* what scores are made from; PAGE_INDEX_OFF: every page is read */
    int pages;            /* of those between, when mass is 0 */
    float
        mass; /* share of the estimate over all scored pages, those always read counted; 0: by number */
    int first, last; /* pages at either end that are always read */
};

/* Scratch of page_select when mass is above 0: each scored page's estimated attention. */
struct PageWeights {
    float *log;      /* [n] of what the page's tokens weigh together */
    uint32_t *share; /* [n] of the heaviest page's weight, in 2^-30 */
};

/* Writes to idx, ascending, the pages among n that are read; returns how many.
 * The last n_open pages still fill: they are read and have no score. score [n - n_open] f32: log of what one token of
 * the page may weigh; len [n - n_open]: its tokens. Of equal pages the lower index wins; a NaN score ranks lowest.
 * work may hold NULLs when s->mass is 0. idx has room for n. */
int page_select(const struct PageSelect *s, const float *score, const int *len, int n, int n_open,
                const struct PageWeights *work, int *idx);

/* Whether every page of n is read, whatever the scores: nobody need make them. */
bool page_select_all(const struct PageSelect *s, int n, int n_open);

#endif

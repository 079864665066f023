/* residency.h - which pages of a KV head have a copy in fast memory, by their scores (headwise.md D.6). */
#ifndef PCOMP_RESIDENCY_H
#define PCOMP_RESIDENCY_H

#include "base.h"

/* A head's places for copies of its pages, which are numbered by where they stand in its table. */
struct Residency {
    int n_slots;
    int *page_at;         /* [n_slots] the page that a slot holds; -1: none */
    int *slot_of;         /* [pages of the head] the slot that holds a page; -1: none does */
    const uint8_t *fixed; /* [n_slots] 1: what the slot holds stays; NULL: none is fixed */
};

/* A page that is to be copied to a slot. */
struct PageFetch {
    int page, slot;
};

/* Scratch of residency_fetch. */
struct ResidencyWork {
    float *value;     /* [most] the larger of n_wanted and n_slots */
    int *from, *take; /* [most], [most] */
    uint8_t *held;    /* [n_slots] */
};

/* What came of it, over all rows and heads. Pages that lie near by themselves are no part of it. */
struct TierCounts {
    int64_t wanted, missed; /* pages that rows chose anew, and of these those that no slot held */
    int64_t fetched;        /* pages copied to slots */
    int64_t late;           /* chosen pages that rows did without */
    int64_t through;        /* read from below without a slot */
    int64_t from_file;      /* pages read from a file, for whatever reason */
    double
        late_share; /* of the estimated attention on chosen pages, the mean over rows and heads */
};

/* Gives each wanted page that no slot holds a slot: an empty one, or that of the page with the lowest score among those
 * that are neither wanted nor fixed; of equals the lower slot. Where slots are short, the pages of the highest scores
 * get them, of equals the lower page; a NaN score ranks lowest. score: [pages of the head] f32. wanted [n_wanted]
 * ascends. Notes in r what the slots will hold, and in out, with pages and slots ascending, what has to be copied for that;
 * out has room for min(n_wanted, n_slots). Returns how many these are. */
int residency_fetch(struct Residency *r, const float *score, const int *wanted, int n_wanted,
                    const struct ResidencyWork *work, struct PageFetch *out);

#endif

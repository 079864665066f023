/* residency.c - see residency.h. */
#include "residency.h"

#include "select.h"

#include <math.h>
#include <string.h>

/* Wanted pages that no slot holds, into work->from; the slots of the others are held. */
static int find_missing(const struct Residency *r, const int *wanted, int n,
                        const struct ResidencyWork *work)
{
    int n_missing = 0;
    for (int i = 0; i < n; i++) {
        int slot = r->slot_of[wanted[i]];
        if (slot >= 0)
            work->held[slot] = 1;
        else
            work->from[n_missing++] = wanted[i];
    }
    return n_missing;
}

/* The n best of the pages in work->from, into work->take in their order. */
static void take_best(const float *score, int n_missing, int n, const struct ResidencyWork *work)
{
    for (int i = 0; i < n_missing; i++) work->value[i] = score[work->from[i]];
    select_top(work->value, n_missing, n, work->take);
    for (int i = 0; i < n; i++) work->take[i] = work->from[work->take[i]];
}

/* Slots that are not held, into work->from. */
static int find_spare(const struct Residency *r, const struct ResidencyWork *work)
{
    int n = 0;
    for (int s = 0; s < r->n_slots; s++)
        if (!work->held[s]) work->from[n++] = s;
    return n;
}

/* What is gained by giving a slot up. */
static float gain(const struct Residency *r, const float *score, int slot)
{
    int page = r->page_at[slot];
    return page < 0 || isnan(score[page]) ? INFINITY : -score[page];
}

static void hold(struct Residency *r, int page, int slot)
{
    if (r->page_at[slot] >= 0) r->slot_of[r->page_at[slot]] = -1;
    r->page_at[slot] = page;
    r->slot_of[page] = slot;
}

int residency_fetch(struct Residency *r, const float *score, const int *wanted, int n_wanted,
                    const struct ResidencyWork *work, struct PageFetch *out)
{
    if (r->fixed)
        memcpy(work->held, r->fixed, (size_t)r->n_slots);
    else
        memset(work->held, 0, (size_t)r->n_slots);
    int n_missing = find_missing(r, wanted, n_wanted, work), n = r->n_slots;
    for (int s = 0; s < r->n_slots; s++) n -= work->held[s];
    if (n > n_missing) n = n_missing;
    take_best(score, n_missing, n, work);
    for (int i = 0; i < n; i++) out[i].page = work->take[i];
    int n_spare = find_spare(r, work);
    for (int i = 0; i < n_spare; i++) work->value[i] = gain(r, score, work->from[i]);
    select_top(work->value, n_spare, n, work->take);
    for (int i = 0; i < n; i++) {
        out[i].slot = work->from[work->take[i]];
        hold(r, out[i].page, out[i].slot);
    }
    return n;
}

/* calibrate_choose.c - how many heads stay, and exchanges around the cut, by running choices as a whole.
 *
 * A choice is judged on the samples that score, never on those that reports are made from. Many choices go through
 * one reading of each sample, so the search cuts its range into sixteen at a time instead of two.
 */
#include "calibrate.h"

#include <string.h>

enum { TRIED_AT_ONCE = 15 };

static const struct SamplePlace SCORING = {SAMPLE_PASSKEYS, false, 0};

/* Room for choices and how they fare; owned. */
struct Trials {
    int heads;
    uint8_t *keep; /* [TRIED_AT_ONCE, heads] */
    int *order;    /* [heads] most needed first */
    struct Joint joint[TRIED_AT_ONCE], full;
};

static int trials_open(const struct HeadMap *map, struct Trials *t)
{
    *t = (struct Trials){.heads = headmap_heads(map)};
    t->keep = mem_alloc(TRIED_AT_ONCE, (size_t)t->heads);
    t->order = mem_alloc((size_t)t->heads, sizeof *t->order);
    if (!t->keep || !t->order) return PC_ENOMEM;
    return headmap_order(map, t->order);
}

static void trials_close(struct Trials *t)
{
    mem_free(t->keep);
    mem_free(t->order);
}

/* Choice number c keeps the first n heads. */
static void keep_first(struct Trials *t, int c, int n)
{
    uint8_t *keep = t->keep + (size_t)c * t->heads;
    memset(keep, 0, (size_t)t->heads);
    for (int i = 0; i < n; i++) keep[t->order[i]] = 1;
}

static int try_choices(struct Study *st, struct Trials *t, int n)
{
    return study_joint(st, &SCORING, st->opt.samples, t->keep, n, t->joint, &t->full);
}

/* ==== How many ==== */

static bool tolerable(const struct Trials *t, int c, const struct Tolerance *tol)
{
    double loss = tol->exact ? t->full.exact - t->joint[c].exact : t->joint[c].kl;
    return loss <= tol->limit;
}

/* Narrows (lo, hi]: hi heads are enough, lo are not, as far as is known. All heads are always enough. */
static int narrow(struct Study *st, struct Trials *t, const struct Tolerance *tol, int *lo, int *hi,
                  struct Joint *at)
{
    int room = *hi - *lo - 1, n = room < TRIED_AT_ONCE ? room : TRIED_AT_ONCE, count[TRIED_AT_ONCE],
        low = *lo;
    for (int c = 0; c < n; c++) {
        count[c] = low + (int)((int64_t)(*hi - low) * (c + 1) / (n + 1));
        keep_first(t, c, count[c]);
    }
    TRY(try_choices(st, t, n));
    if (tol->exact && t->full.exact == 0)
        return err_set(PC_ERANGE,
                       "full attention spells no passkey of %d words whole, so there is no loss to "
                       "measure; give fewer --words, or --tol in nats",
                       st->opt.words);
    for (int c = n - 1; c >= 0 && tolerable(t, c, tol); c--) {
        *hi = count[c];
        *at = t->joint[c];
    }
    for (int c = 0; c < n && count[c] < *hi; c++) *lo = count[c];
    return PC_OK;
}

int study_tolerance(struct Study *st, const struct HeadMap *map, const struct Tolerance *tol,
                    double *ratio, struct Joint *at)
{
    struct Trials t;
    int status = trials_open(map, &t), lo = -1, hi = t.heads;
    *at = (struct Joint){0};
    while (status == PC_OK && hi - lo > 1) status = narrow(st, &t, tol, &lo, &hi, at);
    *ratio = (double)hi / t.heads;
    trials_close(&t);
    return status;
}

/* ==== Which ==== */

/* The i-th exchange: pairs in order of their distance from the cut k, those of one distance with the last kept first.
 * False when there is none. */
static bool exchange_at(int i, int k, int heads, int *out, int *in)
{
    for (int apart = 0; apart < heads; apart++)
        for (int down = 0; down <= apart; down++) {
            int last = k - 1 - down, first = k + apart - down;
            if (last < 0 || first >= heads) continue;
            if (i-- > 0) continue;
            *out = last;
            *in = first;
            return true;
        }
    return false;
}

/* Tries exchanges [first, first + n) in one reading; the best that gains on *best is made in the map. */
static int try_exchanges(struct Study *st, struct HeadMap *map, struct Trials *t, int k, int first,
                         int n, double *best, bool *made)
{
    int out[TRIED_AT_ONCE], in[TRIED_AT_ONCE], found = 0, winner = -1;
    while (found < n && exchange_at(first + found, k, t->heads, &out[found], &in[found])) {
        uint8_t *keep = t->keep + (size_t)found * t->heads;
        keep_first(t, found, k);
        keep[t->order[out[found]]] = 0;
        keep[t->order[in[found++]]] = 1;
    }
    TRY(try_choices(st, t, found));
    for (int c = 0; c < found; c++)
        if (t->joint[c].kl < *best) *best = t->joint[c].kl, winner = c;
    *made = winner >= 0;
    if (!*made) return PC_OK;
    int a = t->order[out[winner]], b = t->order[in[winner]];
    float score = map->scores[a];
    map->scores[a] = map->scores[b];
    map->scores[b] = score;
    return headmap_order(map, t->order);
}

static int refine(struct Study *st, struct HeadMap *map, struct Trials *t, int k, int n_tests,
                  int *n_kept)
{
    bool made = true;
    keep_first(t, 0, k);
    TRY(try_choices(st, t, 1));
    double best = t->joint[0].kl;
    for (int done = 0, first = 0; done < n_tests && k > 0 && k < t->heads;) {
        int n = n_tests - done < TRIED_AT_ONCE ? n_tests - done : TRIED_AT_ONCE, out, in;
        if (made) first = 0; /* a new order: near ones first again */
        if (!exchange_at(first, k, t->heads, &out, &in)) break;
        TRY(try_exchanges(st, map, t, k, first, n, &best, &made));
        *n_kept += made;
        first += n;
        done += n;
    }
    return PC_OK;
}

int study_refine(struct Study *st, struct HeadMap *map, double ratio, int n_tests, int *n_kept)
{
    struct Trials t;
    *n_kept = 0;
    int status = trials_open(map, &t), k = 0;
    if (status == PC_OK) status = k = headmap_keep(map, ratio, 0, t.keep);
    if (status >= 0) status = refine(st, map, &t, k, n_tests, n_kept);
    trials_close(&t);
    return status < 0 ? status : PC_OK;
}

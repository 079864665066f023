/* calibrate_descend.c - heads leave one after another, each time the one whose loss is felt least beside those gone.
 *
 * One head alone does not show heads that stand in for each other: of two, either seems needless, and a map that drops
 * both loses what they did. So the joint KL decides. What a head cost when it was last tried is a guess of what it
 * costs now, and mostly a low one, since fewer are left to stand in: only heads with low guesses are tried again. Heads
 * are compared on the same samples, and a half of them will do: the halves take turns.
 */
#include "calibrate.h"

#include <string.h>

enum {
    TRIED = 12,
    GOING = 6,
    GOING_MAX = 4
}; /* heads tried a round; one of six that are left goes, and 1 to 4 */

struct Descent {
    int heads, left, n_rounds;
    uint8_t *kept; /* [heads] */
    double *cost;  /* [heads] guess of what its going adds to the joint KL, nats */
    double *gone;  /* [heads] joint KL at which it went, never falling */
    uint8_t *keep; /* [TRIED + 1, heads] the choices of a round; the first is what is kept now */
    int tried[TRIED], n_tried;
    struct Joint joint[TRIED + 1], full;
    double floor; /* of gone */
};

static int descent_open(const struct HeadMap *map, double unit, struct Descent *d)
{
    int n = headmap_heads(map);
    *d = (struct Descent){.heads = n, .left = n};
    d->kept = mem_alloc((size_t)n, 1);
    d->cost = mem_alloc((size_t)n, sizeof *d->cost);
    d->gone = mem_alloc((size_t)n, sizeof *d->gone);
    d->keep = mem_alloc(TRIED + 1, (size_t)n);
    if (!d->kept || !d->cost || !d->gone || !d->keep) return PC_ENOMEM;
    memset(d->kept, 1, (size_t)n);
    for (int i = 0; i < n; i++) d->cost[i] = map->scores[i] * unit;
    return PC_OK;
}

static void descent_close(struct Descent *d)
{
    mem_free(d->kept);
    mem_free(d->cost);
    mem_free(d->gone);
    mem_free(d->keep);
}

/* The kept heads with the lowest guesses, lowest first. */
static void pick(struct Descent *d)
{
    d->n_tried = 0;
    for (int h = 0; h < d->heads; h++) {
        if (!d->kept[h]) continue;
        int at = d->n_tried < TRIED ? d->n_tried++ : TRIED;
        while (at > 0 && d->cost[h] < d->cost[d->tried[at - 1]]) {
            if (at < TRIED) d->tried[at] = d->tried[at - 1];
            at--;
        }
        if (at < TRIED) d->tried[at] = h;
    }
}

static int try_round(struct Study *st, struct Descent *d)
{
    for (int c = 0; c <= d->n_tried; c++) {
        uint8_t *keep = d->keep + (size_t)c * d->heads;
        memcpy(keep, d->kept, (size_t)d->heads);
        if (c) keep[d->tried[c - 1]] = 0;
    }
    int n = (st->opt.samples + 1) / 2, turn = d->n_rounds++ % 2;
    const struct SamplePlace half = {SAMPLE_PASSKEYS, false, turn * (st->opt.samples - n)};
    TRY(study_joint(st, &half, n, d->keep, d->n_tried + 1, d->joint, &d->full));
    for (int c = 0; c < d->n_tried; c++) d->cost[d->tried[c]] = d->joint[c + 1].kl - d->joint[0].kl;
    return PC_OK;
}

/* The tried head that costs least goes. */
static void let_go(struct Descent *d)
{
    int best = -1;
    for (int c = 0; c < d->n_tried; c++) {
        int h = d->tried[c];
        if (d->kept[h] && (best < 0 || d->cost[h] < d->cost[d->tried[best]])) best = c;
    }
    double kl = d->joint[best + 1].kl;
    d->floor = kl > d->floor ? kl : d->floor * (1 + 1e-6) + 1e-12;
    d->gone[d->tried[best]] = d->floor;
    d->kept[d->tried[best]] = 0;
    d->left--;
}

static int descend(struct Study *st, struct Descent *d)
{
    while (d->left > 0) {
        int going = d->left / GOING < GOING_MAX ? d->left / GOING : GOING_MAX;
        pick(d);
        TRY(try_round(st, d));
        for (int i = 0; i < (going > 1 ? going : 1); i++) let_go(d);
        study_progress(st, head_method_name(HEADS_ABLATE), 1 - (double)d->left / d->heads);
    }
    return PC_OK;
}

int study_descend(struct Study *st, struct HeadMap *map, double *unit)
{
    struct Descent d;
    int status = descent_open(map, *unit, &d);
    if (status == PC_OK) status = descend(st, &d);
    if (status == PC_OK) {
        *unit = d.floor;
        for (int i = 0; i < d.heads; i++) map->scores[i] = (float)(d.gone[i] / d.floor);
    }
    descent_close(&d);
    return status;
}

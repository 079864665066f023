/* session_tier.c - pages of the kept text below the memory that attention computes in (headwise.md D.6).
 *
 * The survivors of every chunk go below as they come, so that near memory holds the prefix, the question, the answer and
 * as many copies as --kv-resident allows. The question reads the kept pages once from where they lie; from then on each
 * row reads copies of the pages that it selects. Of several ranks those that read chunks for rank 0 keep their survivors below
 * as well, but no copies: they answer nothing. Below a device with memory of its own lies its host's, as much of it as
 * --kv-host allows, and below that a file.
 */
#include "session.h"

#include <math.h>
#include <stdio.h>

enum { SHARE_MOST = 100 }; /* up to here kv_resident is per cent */

int tiers_plan(struct Session *s)
{
    const struct Settings *set = &s->set;
    const char *not_with = NULL;
    s->tiered = set->kv_resident != AUTO && !s->indexes;
    if (!s->tiered) return PC_OK;
    if (!s->select.index)
        not_with = "every page is read, so none can lie below: give --select mean or bound, and a "
                   "method that does not move keys";
    else if (!s->e->be->tier_open)
        not_with = "this backend keeps all pages near: give --backend cpu";
    else if (set->kv_host != AUTO && !s->limits.own_memory)
        return err_set(PC_ECONFIG,
                       "setting 'kv_host': the host's memory is what --kv-resident is "
                       "about on backend %s: leave out --kv-host",
                       s->e->be->name);
    if (not_with) return err_set(PC_ECONFIG, "setting 'kv_resident': %s", not_with);
    s->tier = (struct TierPlan){.n_heads = s->plan.heads_full + s->plan.heads_streaming,
                                .streams = s->heads.streams,
                                .late = set->tier_wait == TIER_LATE};
    snprintf(s->tier.dir, sizeof s->tier.dir, "%s", set->kv_dir);
    return PC_OK;
}

/* Copies a head has room for, where an answer finds so many pages of it. */
static int slots_of(const struct Session *s, int found)
{
    if (s->e->team->rank > 0) return 1;
    size_t asked = s->set.kv_resident, heads = s->plan.heads_full ? (size_t)s->plan.heads_full : 1,
           page = s->e->be->page_bytes(s->e->dev);
    size_t n = asked <= SHARE_MOST ? (asked * (size_t)found + SHARE_MOST - 1) / SHARE_MOST
                                   : asked / page / heads;
    return n > (size_t)found ? found : n > 0 ? (int)n : 1;
}

/* The most KV heads of a layer that have pages below. */
static int heads_below(const struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int most = 0;
    for (int l = 0; l < m->n_layers; l++) {
        int n = 0;
        for (int h = 0; h < m->n_kv_heads; h++) n += !heads_stream(s, l, h);
        if (n > most) most = n;
    }
    return most;
}

/* Bytes of the host's memory for pages of a device: less than all that is free leaves room for the file's own cache. */
static size_t host_bytes(const struct Session *s)
{
    return s->set.kv_host != AUTO ? s->set.kv_host : mem_available() / 4 * 3;
}

/* What of the pages below has a home in the host's memory. If that is not all, a layer's pages must find room beside, since
 * the question reads them at once; and a page that others are packed into. */
static void split_host(struct Session *s, int found)
{
    struct TierPlan *t = &s->tier;
    size_t room = host_bytes(s) / s->e->be->page_bytes(s->e->dev);
    t->n_homes = s->limits.own_memory ? t->n_below : 0;
    t->n_work = 0;
    if (!s->limits.own_memory || room >= t->n_below) return;
    size_t work = (size_t)heads_below(s) * (size_t)found + 1;
    t->n_work = work < t->n_below ? (uint32_t)work : t->n_below;
    t->n_homes = room > t->n_work ? (uint32_t)room - t->n_work : 0;
}

int tiers_check(const struct Session *s)
{
    double mib = 1 << 20, page = (double)s->e->be->page_bytes(s->e->dev);
    if (!s->tiered || s->set.kv_host == AUTO || s->tier.n_work * page <= (double)s->set.kv_host)
        return PC_OK;
    return err_set(PC_ECONFIG,
                   "setting 'kv_host': a layer of the kept text has to be in the host's memory at "
                   "once; give %.0fM or more, or lower --keep or --kv-cap",
                   ceil(s->tier.n_work * page / mib));
}

void tiers_split(struct Session *s, size_t below, int found)
{
    if (!s->tiered) return;
    s->n_below = below;
    s->tier.slots = slots_of(s, found);
    s->tier.n_below = (uint32_t)s->n_below;
    s->tier.max_refs = merged_pages(s);
    split_host(s, found);
    s->n_pages += kv_tier_slots(&s->tier) + (size_t)share_through(s);
    s->n_pages -= s->n_below;
}

struct TierBytes tiers_bytes(const struct Session *s)
{
    struct TierBytes bytes = {0, 0, 0};
    if (s->tiered) s->e->be->tier_bytes(s->e->dev, &s->tier, &bytes);
    return bytes;
}

void tiers_note(struct Session *s)
{
    size_t page = s->e->be->page_bytes(s->e->dev);
    if (!s->tiered) return;
    s->plan.tier_slots = s->tier.slots;
    s->plan.tier_wait = s->set.tier_wait;
    s->plan.tier_below = s->limits.below;
    s->plan.tier_near_bytes = kv_tier_slots(&s->tier) * page;
    s->plan.tier_below_bytes = s->n_below * page;
    s->plan.tier_host_bytes = ((size_t)s->tier.n_homes + s->tier.n_work) * page;
    s->plan.tier_file_bytes = tiers_bytes(s).disk;
}

int tiers_open(struct Session *s)
{
    size_t wanted = tiers_bytes(s).host, there = mem_available();
    if (!s->tiered) return PC_OK;
    if (s->limits.own_memory && wanted > there)
        return err_set(PC_ENOMEM,
                       "pages below need %.2f GiB of the host's memory, of which %.2f are free; "
                       "lower --kv-host, --keep or --kv-cap, or give --kv-type q8 or q4",
                       (double)wanted / (1 << 30), (double)there / (1 << 30));
    return kv_tier_open(&s->kv, &s->tier, s->n_below);
}

int tiers_count(struct Session *s)
{
    struct TierCounts *n = &s->out->tiers;
    if (!s->tiered) return PC_OK;
    TRY(s->e->be->tier_counts(s->e->dev, &s->kv.pool, n));
    s->out->tier_bytes = (size_t)(n->fetched + n->through) * s->kv.pool.page_bytes;
    return PC_OK;
}

/* session_tier.c - pages of the kept text below the memory that attention computes in (headwise.md D.6).
 *
 * The survivors of every chunk go below as they come, so that near memory holds the prefix, the question, the answer and
 * as many copies as --kv-resident allows. The question reads the kept pages once from where they lie; from then on each
 * row reads copies of the pages that it selects.
 */
#include "session.h"

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
    else if (s->store)
        not_with = "pages of a stored text are taken as they lie: leave out --store";
    else if (s->e->team->size > 1)
        not_with = "pages of several ranks are not kept below: run one process";
    else if (!s->e->be->tier_open)
        not_with = "this backend keeps all pages near: give --backend cpu";
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
    size_t asked = s->set.kv_resident, heads = s->plan.heads_full ? (size_t)s->plan.heads_full : 1,
           page = s->e->be->page_bytes(s->e->dev);
    size_t n = asked <= SHARE_MOST ? (asked * (size_t)found + SHARE_MOST - 1) / SHARE_MOST
                                   : asked / page / heads;
    return n > (size_t)found ? found : n > 0 ? (int)n : 1;
}

void tiers_split(struct Session *s, size_t below, int found)
{
    if (!s->tiered) return;
    s->n_below = below;
    s->tier.slots = slots_of(s, found);
    s->tier.n_below = (uint32_t)s->n_below;
    s->tier.max_refs = merged_pages(s);
    s->n_pages += kv_tier_slots(&s->tier);
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
}

int tiers_open(struct Session *s)
{
    size_t wanted = tiers_bytes(s).host, there = mem_available();
    if (!s->tiered) return PC_OK;
    if (s->limits.own_memory && wanted > there)
        return err_set(PC_ENOMEM,
                       "pages below need %.2f GiB of the host's memory, of which %.2f are free; "
                       "lower --keep or --kv-cap, or give --kv-type q8 or q4",
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

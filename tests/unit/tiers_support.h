/* tiers_support.h - for tests of pages below: runs that select few of many pages, and stores of pages whose n-th read or write
 * fails. Each test program has its own copy.
 */
#ifndef PCOMP_TIERS_SUPPORT_H
#define PCOMP_TIERS_SUPPORT_H

#include "session_support.h"

#include "cpu.h"
#include "page_store.h"

/* ==== Runs ==== */

static inline void few_pages(struct Engine *e, int max_tokens)
{
    struct Settings *set = &e->settings;
    set->select = PAGE_INDEX_MEAN;
    set->select_pages = 3;
    set->keep = KEEP_ALL;
    set->max_tokens = max_tokens;
    set->temperature = 2; /* other pages from token to token, and no end at once */
}

static inline void stream_some(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    must(headmap_random(&shape, 3, &e->heads));
    e->heads.sink = 4;
    e->heads.recent = 70;
}

/* ==== Stores of pages that fail ==== */

static long fail_after; /* the n-th read or write from now fails; 0: none */

static inline int fails(const char *what)
{
    long left = __atomic_sub_fetch(&fail_after, 1, __ATOMIC_SEQ_CST);
    return left == 0 ? err_set(PC_EIO, "the disk is gone, at a %s", what) : PC_OK;
}

static inline int failing_read(struct PageStore *s, uint32_t page, void *out)
{
    TRY(fails("read"));
    memcpy(out, s->memory + page * s->page_bytes, s->page_bytes);
    return PC_OK;
}

static inline int failing_write(struct PageStore *s, uint32_t page, const void *data)
{
    TRY(fails("write"));
    memcpy(s->memory + page * s->page_bytes, data, s->page_bytes);
    return PC_OK;
}

/* A tier over a store in memory with these for its reads and writes. */
static inline int tier_over(struct Device *d, const struct TierPlan *plan, struct PagePool *pool,
                            int (*read)(struct PageStore *s, uint32_t page, void *out),
                            int (*write)(struct PageStore *s, uint32_t page, const void *data))
{
    struct PageStore store;
    int status = page_store_memory(&store, pool->page_bytes, plan->n_below);
    store.read = read;
    store.write = write;
    if (status == PC_OK) status = cpu_tier_over(d, plan, &store, pool);
    if (status < 0 && !pool->tier) store.close(&store);
    return status;
}

#endif

/* cpu_pages.c - rows into pages, tokens from page to page, and what pages hold, for those near and those below. */
#include "cpu.h"

#include <string.h>

/* ==== Rows into pages ==== */

static void write_rows(const struct Device *d, const struct KvWrite *w, void *page)
{
    const struct ModelConfig *m = &d->model->cfg;
    for (int i = 0; i < w->n; i++) {
        int row = w->row0 + (w->index ? w->index[i] : w->first + i);
        size_t src = ((size_t)row * m->n_kv_heads + w->kv_head) * m->head_dim;
        d->kern->page_write(page, w->at + i, m->head_dim, (const float *)w->k + src,
                            (const float *)w->v + src, d->format);
    }
}

/* A page that no row has gone to yet need not be fetched. */
static int write_below(const struct Device *d, struct PageTier *t, const struct KvWrite *w)
{
    uint8_t *page = tier_buffer(t, 0);
    if (w->at) TRY(tier_take(t, w->page.page, page));
    write_rows(d, w, page);
    return tier_put(t, w->page.page, page);
}

int cpu_kv_write(struct Device *d, const struct PagePool *pool, const struct KvWrite *writes, int n)
{
#pragma omp parallel for schedule(static) num_threads(d->threads) if (n > d->model->cfg.n_kv_heads)
    for (int j = 0; j < n; j++)
        if (!page_is_below(pool, writes[j].page.page))
            write_rows(d, &writes[j], pool->data + writes[j].page.page * pool->page_bytes);
    for (int j = 0; pool->tier && j < n; j++)
        if (page_is_below(pool, writes[j].page.page)) TRY(write_below(d, pool->tier, &writes[j]));
    return PC_OK;
}

/* ==== Tokens from page to page ==== */

/* Whether tokens [0, 64) of the list are a whole page that becomes one. */
static bool whole_page(const uint32_t *from, const uint32_t *to)
{
    bool same = from[0] % PAGE_TOKENS == 0 && to[0] % PAGE_TOKENS == 0;
    for (uint32_t i = 1; same && i < PAGE_TOKENS; i++)
        same = from[i] == from[0] + i && to[i] == to[0] + i;
    return same;
}

/* The page that tokens come from or go to; one from below is in a buffer for as long. */
struct Hold {
    uint8_t *at, *buffer;
    uint32_t page;
    bool held, changed;
};

static int release(const struct PagePool *pool, struct Hold *h)
{
    if (h->held && h->changed && page_is_below(pool, h->page))
        TRY(tier_put(pool->tier, h->page, h->buffer));
    h->held = h->changed = false;
    return PC_OK;
}

static int hold(const struct PagePool *pool, struct Hold *h, uint32_t page)
{
    if (h->held && h->page == page) return PC_OK;
    TRY(release(pool, h));
    h->at = pool->data + page * pool->page_bytes;
    if (page_is_below(pool, page)) TRY(tier_take(pool->tier, page, h->at = h->buffer));
    h->page = page;
    h->held = true;
    return PC_OK;
}

/* Tokens move forward only, so what a page below held when it was taken is what its later tokens still are. */
static int move_run(const struct Device *d, const struct PagePool *pool, const uint32_t *from,
                    const uint32_t *to, struct Hold *src, struct Hold *dst)
{
    TRY(hold(pool, src, from[0] / PAGE_TOKENS));
    TRY(hold(pool, dst, to[0] / PAGE_TOKENS));
    d->kern->page_move(dst->at, (int)(to[0] % PAGE_TOKENS), src->at, (int)(from[0] % PAGE_TOKENS),
                       d->model->cfg.head_dim, d->format);
    dst->changed = true;
    return PC_OK;
}

static int move_page(const struct PagePool *pool, uint32_t from, uint32_t to, struct Hold *src,
                     struct Hold *dst)
{
    TRY(hold(pool, src, from));
    TRY(hold(pool, dst, to));
    memmove(dst->at, src->at, pool->page_bytes);
    dst->changed = true;
    return PC_OK;
}

/* For two pages at a time: of a pool with a tier in its buffers. */
static void holds(const struct PagePool *pool, struct Hold *src, struct Hold *dst)
{
    *src = *dst = (struct Hold){0};
    if (!pool->tier) return;
    src->buffer = tier_buffer(pool->tier, 0);
    dst->buffer = tier_buffer(pool->tier, 1);
}

static int move_tokens(const struct Device *d, const struct PagePool *pool, const uint32_t *from,
                       const uint32_t *to, int n, struct Hold *src, struct Hold *dst)
{
    for (int i = 0; i < n; i++) {
        bool whole = n - i >= PAGE_TOKENS && whole_page(from + i, to + i);
        TRY(whole ? move_page(pool, from[i] / PAGE_TOKENS, to[i] / PAGE_TOKENS, src, dst)
                  : move_run(d, pool, from + i, to + i, src, dst));
        if (whole) i += PAGE_TOKENS - 1;
    }
    return PC_OK;
}

int cpu_kv_pack(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                const uint32_t *to, int n)
{
    struct Hold src, dst;
    holds(pool, &src, &dst);
    TRY(move_tokens(d, pool, from, to, n, &src, &dst));
    return release(pool, &dst);
}

/* A page that nothing has gone to yet need not be fetched, nor could it be. */
static int hold_new(const struct PagePool *pool, struct Hold *h, uint32_t page)
{
    TRY(release(pool, h));
    bool below = page_is_below(pool, page);
    *h = (struct Hold){below ? h->buffer : pool->data + page * pool->page_bytes, h->buffer, page,
                       true, true};
    return PC_OK;
}

int cpu_kv_gather(struct Device *d, const struct PagePool *pool, const struct KvGather *list, int n)
{
    uint32_t from[PAGE_TOKENS], to[PAGE_TOKENS];
    struct Hold src, dst;
    holds(pool, &src, &dst);
    for (int i = 0; i < n; i++) {
        const struct KvGather *g = &list[i];
        for (int t = 0; t < g->n; t++) {
            from[t] = g->from + (uint32_t)(g->index ? g->index[t] : g->first + t);
            to[t] = g->page * PAGE_TOKENS + (uint32_t)(g->at + t);
        }
        if (g->at == 0) TRY(hold_new(pool, &dst, g->page));
        TRY(move_tokens(d, pool, from, to, g->n, &src, &dst));
    }
    return release(pool, &dst);
}

/* ==== What pages hold ==== */

int cpu_kv_read(struct Device *d, const struct PagePool *pool, struct PageRef ref, int at, float *k,
                float *v)
{
    d->kern->page_read(tier_page(pool, ref.page, 0, 0), at, d->model->cfg.head_dim, k, v,
                       d->format);
    return tier_status(pool);
}

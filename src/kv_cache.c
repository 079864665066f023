/* kv_cache.c - see kv_cache.h. */
#include "kv_cache.h"

#include <string.h>

size_t kv_pool_bytes(const struct Backend *be, const struct Device *dev, size_t n_pages)
{
    return n_pages * (be->page_bytes(dev) + sizeof(uint32_t));
}

/* All but the pages' memory, of which it tells how much that is. */
static int open_pool(struct KvCache *kv, const struct Backend *be, struct Device *dev,
                     const struct ModelConfig *m, size_t n_pages, size_t *bytes)
{
    memset(kv, 0, sizeof *kv);
    kv->be = be;
    kv->dev = dev;
    kv->n_layers = m->n_layers;
    kv->n_kv_heads = m->n_kv_heads;
    struct PagePool *p = &kv->pool;
    p->page_bytes = be->page_bytes(dev);
    if (n_pages > UINT32_MAX / PAGE_TOKENS || !size_mul(n_pages, p->page_bytes, bytes))
        return err_set(
            PC_ENOMEM,
            "the KV cache needs %zu pages: more than can be numbered; lower --keep or --kv-cap",
            n_pages);
    p->free = mem_alloc(n_pages, sizeof *p->free);
    if (!p->free) return PC_ENOMEM;
    p->n_pages = p->n_near = p->n_free = (uint32_t)n_pages;
    for (uint32_t i = 0; i < p->n_free; i++) p->free[i] = p->n_free - 1 - i; /* low ids first */
    return PC_OK;
}

size_t kv_tier_slots(const struct TierPlan *plan)
{
    size_t heads = 0;
    for (int h = 0; h < plan->n_heads; h++) heads += !(plan->streams && plan->streams[h]);
    return heads * (size_t)plan->slots;
}

int kv_tier_open(struct KvCache *kv, struct TierPlan *plan, size_t n_below)
{
    struct PagePool *p = &kv->pool;
    if (n_below > UINT32_MAX / PAGE_TOKENS - p->n_near)
        return err_set(
            PC_ENOMEM,
            "the KV cache needs %zu pages: more than can be numbered; lower --keep or --kv-cap",
            n_below + p->n_near);
    TRY(kv_run(kv, kv_tier_slots(plan), &plan->cache));
    plan->n_below = (uint32_t)n_below;
    p->below = mem_alloc(n_below, sizeof *p->below);
    if (!p->below) return PC_ENOMEM;
    p->n_below = plan->n_below;
    p->n_pages = p->n_near + p->n_below;
    for (uint32_t i = 0; i < p->n_below; i++) p->below[i] = p->n_pages - 1 - i;
    kv->streams = plan->streams;
    return kv->be->tier_open(kv->dev, plan, p);
}

int kv_open(struct KvCache *kv, const struct Backend *be, struct Device *dev,
            const struct ModelConfig *m, size_t n_pages)
{
    size_t bytes;
    TRY(open_pool(kv, be, dev, m, n_pages, &bytes));
    kv->pool.data = be->alloc(dev, bytes);
    return kv->pool.data ? PC_OK : PC_ENOMEM;
}

int kv_open_in(struct KvCache *kv, const struct Backend *be, struct Device *dev,
               const struct ModelConfig *m, size_t n_pages, void *data)
{
    size_t bytes;
    TRY(open_pool(kv, be, dev, m, n_pages, &bytes));
    kv->pool.data = data;
    kv->lent = true;
    return PC_OK;
}

size_t kv_index_bytes(const struct Backend *be, const struct Device *dev, enum PageIndex index,
                      const struct ModelConfig *m, size_t n_pages)
{
    if (index == PAGE_INDEX_OFF) return 0;
    return n_pages * be->index_bytes(dev, index) +
           sizeof(struct PageRef) * (size_t)m->n_layers * m->n_kv_heads;
}

int kv_index_open(struct KvCache *kv, enum PageIndex index)
{
    struct PagePool *p = &kv->pool;
    p->index_bytes = kv->be->index_bytes(kv->dev, index);
    kv->index = index;
    kv->filled = mem_alloc((size_t)kv->n_layers * kv->n_kv_heads, sizeof *kv->filled);
    if (!kv->filled) return PC_ENOMEM;
    p->index = kv->be->alloc(kv->dev, p->n_pages * p->index_bytes);
    return p->index ? PC_OK : PC_ENOMEM;
}

void kv_close(struct KvCache *kv)
{
    if (kv->be && kv->pool.index) kv->be->release(kv->dev, kv->pool.index);
    if (kv->pool.tier) kv->be->tier_close(kv->dev, &kv->pool);
    mem_free(kv->pool.below);
    mem_free(kv->filled);
    if (kv->be && kv->pool.data && !kv->lent) kv->be->release(kv->dev, kv->pool.data);
    mem_free(kv->pool.free);
    memset(kv, 0, sizeof *kv);
}

size_t kv_table_bytes(const struct ModelConfig *m, int max_refs)
{
    return (size_t)m->n_layers * m->n_kv_heads *
           (sizeof(struct PageRef) * (size_t)max_refs + 2 * sizeof(int));
}

int kv_table_open(struct HeadTable *t, const struct ModelConfig *m, int max_refs)
{
    memset(t, 0, sizeof *t);
    int heads = m->n_layers * m->n_kv_heads;
    t->refs = mem_alloc((size_t)heads * (size_t)max_refs, sizeof *t->refs);
    t->n_refs = mem_alloc((size_t)heads, sizeof *t->n_refs);
    t->n_tokens = mem_alloc((size_t)heads, sizeof *t->n_tokens);
    t->n_heads = heads;
    t->stride = max_refs;
    if (t->refs && t->n_refs && t->n_tokens) return PC_OK;
    kv_table_close(t);
    return PC_ENOMEM;
}

void kv_table_close(struct HeadTable *t)
{
    mem_free(t->refs);
    mem_free(t->n_refs);
    mem_free(t->n_tokens);
    memset(t, 0, sizeof *t);
}

int kv_writes_open(struct KvWrites *w, int cap)
{
    *w = (struct KvWrites){mem_alloc((size_t)cap, sizeof *w->list), 0, cap};
    return w->list ? PC_OK : PC_ENOMEM;
}

void kv_writes_close(struct KvWrites *w)
{
    mem_free(w->list);
    memset(w, 0, sizeof *w);
}

/* Whether a head's new pages lie below. */
static bool grows_below(const struct KvCache *kv, const struct HeadTable *t, int head)
{
    return t->below && kv->pool.tier && !(kv->streams && kv->streams[head]);
}

static void give_back(struct KvCache *kv, uint32_t page)
{
    struct PagePool *p = &kv->pool;
    if (page_is_below(p, page))
        p->below[p->n_below++] = page;
    else
        p->free[p->n_free++] = page;
}

/* A page that lies below and takes near tokens comes near itself. */
static int bring_near(struct KvCache *kv, struct PageRef *page)
{
    uint32_t from[PAGE_TOKENS], to[PAGE_TOKENS], near;
    if (kv->pool.n_free == 0)
        return err_set(PC_EINTERNAL, "KV cache: no near page for the tokens of one from below");
    near = kv->pool.free[--kv->pool.n_free];
    for (uint32_t i = 0; i < page->len; i++) {
        from[i] = page->page * PAGE_TOKENS + i;
        to[i] = near * PAGE_TOKENS + i;
    }
    TRY(kv->be->kv_pack(kv->dev, &kv->pool, from, to, (int)page->len));
    give_back(kv, page->page);
    page->page = near;
    return PC_OK;
}

static int new_page(struct KvCache *kv, struct HeadTable *t, int head, bool below)
{
    struct PagePool *p = &kv->pool;
    uint32_t *stack = below ? p->below : p->free, *left = below ? &p->n_below : &p->n_free;
    int n = t->n_refs[head];
    if (n == t->stride || *left == 0)
        return err_set(PC_EINTERNAL,
                       "KV cache: no room in layer %d head %d (%d of %d pages, %u free)",
                       head / kv->n_kv_heads, head % kv->n_kv_heads, n, t->stride, *left);
    t->refs[(size_t)head * t->stride + n] = (struct PageRef){stack[--*left], 0, 0};
    t->n_refs[head]++;
    return PC_OK;
}

int kv_adopt(struct KvCache *kv, struct HeadTable *t, int head, struct PageRef page)
{
    TRY(new_page(kv, t, head, grows_below(kv, t, head)));
    struct PageRef *last = t->refs + (size_t)head * t->stride + t->n_refs[head] - 1;
    last->len = page.len;
    last->bias = page.bias;
    t->n_tokens[head] += (int)page.len;
    return PC_OK;
}

/* The page that takes a head's next token: the last one while it has room and no bias. */
static int open_page(struct KvCache *kv, struct HeadTable *t, int head, struct PageRef **out)
{
    struct PageRef *refs = t->refs + (size_t)head * t->stride;
    int n = t->n_refs[head];
    bool below = grows_below(kv, t, head);
    if (n == 0 || refs[n - 1].len == PAGE_TOKENS || refs[n - 1].bias != 0)
        TRY(new_page(kv, t, head, below));
    else if (!below && page_is_below(&kv->pool, refs[n - 1].page))
        TRY(bring_near(kv, &refs[n - 1]));
    *out = &refs[t->n_refs[head] - 1];
    return PC_OK;
}

int kv_append(struct KvCache *kv, struct HeadTable *t, int layer, int kv_head,
              const struct KvRows *rows, struct KvWrites *w)
{
    int head = layer * kv->n_kv_heads + kv_head;
    for (int done = 0; done < rows->n;) {
        struct PageRef *last;
        TRY(open_page(kv, t, head, &last));
        int room = PAGE_TOKENS - (int)last->len, left = rows->n - done,
            take = left < room ? left : room;
        if (w->n == w->cap) TRY(kv_flush(kv, w));
        w->list[w->n++] = (struct KvWrite){.k = rows->k,
                                           .v = rows->v,
                                           .row0 = rows->row0,
                                           .kv_head = kv_head,
                                           .index = rows->index ? rows->index + done : NULL,
                                           .first = done,
                                           .n = take,
                                           .page = *last,
                                           .at = (int)last->len};
        last->len += (uint32_t)take;
        t->n_tokens[head] += take;
        done += take;
    }
    return PC_OK;
}

int kv_append_all(struct KvCache *kv, struct HeadTable *t, int layer, const struct KvRows *rows,
                  struct KvWrites *w)
{
    for (int h = 0; h < kv->n_kv_heads; h++) TRY(kv_append(kv, t, layer, h, rows, w));
    return PC_OK;
}

int kv_run(struct KvCache *kv, size_t n, uint32_t *first)
{
    struct PagePool *p = &kv->pool;
    *first = p->n_near - p->n_free;
    if (n > p->n_free || (n && p->free[p->n_free - 1] != *first))
        return err_set(PC_EINTERNAL, "KV cache: no %zu pages in a row (%u free)", n, p->n_free);
    p->n_free -= (uint32_t)n;
    return PC_OK;
}

int kv_lay(struct HeadTable *t, int head, uint32_t first, int n)
{
    int at = t->n_refs[head], pages = kv_pages(n);
    struct PageRef *refs = t->refs + (size_t)head * t->stride + at;
    if (at + pages > t->stride)
        return err_set(PC_EINTERNAL, "KV cache: %d pages in a table of %d a head", at + pages,
                       t->stride);
    for (int i = 0; i < pages; i++) {
        int left = n - i * PAGE_TOKENS;
        refs[i] = (struct PageRef){first + (uint32_t)i,
                                   (uint32_t)(left < PAGE_TOKENS ? left : PAGE_TOKENS), 0};
    }
    t->n_refs[head] = at + pages;
    t->n_tokens[head] += n;
    return pages;
}

/* The page of token *at, which becomes its slot there. */
static const struct PageRef *page_of(const struct PageRef *refs, int *at)
{
    for (; *at >= (int)refs->len; refs++) *at -= (int)refs->len;
    return refs;
}

int kv_put(struct KvCache *kv, struct HeadTable *t, int layer, int kv_head, int at,
           const struct KvRows *rows, struct KvWrites *w)
{
    int head = layer * kv->n_kv_heads + kv_head;
    const struct PageRef *refs = t->refs + (size_t)head * t->stride;
    for (int done = 0; done < rows->n;) {
        int slot = at + done;
        const struct PageRef *page = page_of(refs, &slot);
        int room = (int)page->len - slot, left = rows->n - done, take = left < room ? left : room;
        if (w->n == w->cap) TRY(kv_flush(kv, w));
        w->list[w->n++] = (struct KvWrite){.k = rows->k,
                                           .v = rows->v,
                                           .row0 = rows->row0,
                                           .kv_head = kv_head,
                                           .index = rows->index ? rows->index + done : NULL,
                                           .first = done,
                                           .n = take,
                                           .page = *page,
                                           .at = slot};
        done += take;
    }
    return PC_OK;
}

int kv_gather(struct KvCache *kv, struct HeadTable *dst, int layer, int kv_head,
              const struct KvTokens *tokens)
{
    enum { RUN = 1024 };
    uint32_t from[RUN], to[RUN];
    int head = layer * kv->n_kv_heads + kv_head, before = 0, n = 0;
    const struct PageRef *page =
        tokens->src->refs + (size_t)tokens->head * (size_t)tokens->src->stride;
    for (int i = 0; i < tokens->n; i++) {
        int token = tokens->first + (tokens->index ? tokens->index[i] : i);
        struct PageRef *last;
        for (; token - before >= (int)page->len; page++) before += (int)page->len;
        TRY(open_page(kv, dst, head, &last));
        from[n] = page->page * PAGE_TOKENS + (uint32_t)(token - before);
        to[n++] = last->page * PAGE_TOKENS + last->len++;
        dst->n_tokens[head]++;
        if (n < RUN && i + 1 < tokens->n) continue;
        TRY(kv->be->kv_pack(kv->dev, &kv->pool, from, to, n));
        n = 0;
    }
    return PC_OK;
}

int kv_gathers_open(struct KvGathers *g, int cap)
{
    *g = (struct KvGathers){mem_alloc((size_t)cap, sizeof *g->list), 0, cap};
    return g->list ? PC_OK : PC_ENOMEM;
}

void kv_gathers_close(struct KvGathers *g)
{
    mem_free(g->list);
    memset(g, 0, sizeof *g);
}

int kv_gather_run(struct KvCache *kv, struct HeadTable *dst, int layer, int kv_head,
                  const struct KvRun *run, struct KvGathers *g)
{
    int head = layer * kv->n_kv_heads + kv_head;
    for (int done = 0; done < run->n;) {
        struct PageRef *last;
        TRY(open_page(kv, dst, head, &last));
        int room = PAGE_TOKENS - (int)last->len, left = run->n - done,
            take = left < room ? left : room;
        if (g->n == g->cap) TRY(kv_gather_flush(kv, g));
        g->list[g->n++] = (struct KvGather){.from = run->page * PAGE_TOKENS,
                                            .index = run->index ? run->index + done : NULL,
                                            .first = done,
                                            .n = take,
                                            .page = last->page,
                                            .at = (int)last->len};
        last->len += (uint32_t)take;
        dst->n_tokens[head] += take;
        done += take;
    }
    return PC_OK;
}

int kv_gather_flush(struct KvCache *kv, struct KvGathers *g)
{
    int n = g->n;
    g->n = 0;
    return kv->be->kv_gather(kv->dev, &kv->pool, g->list, n);
}

int kv_flush(struct KvCache *kv, struct KvWrites *w)
{
    int n = w->n;
    w->n = 0;
    return kv->be->kv_write(kv->dev, &kv->pool, w->list, n);
}

/* All pages of a head of src behind those of dst. */
static int add_head(struct HeadTable *dst, const struct HeadTable *src, int h)
{
    int n = src->n_refs[h];
    if (dst->n_refs[h] + n > dst->stride)
        return err_set(PC_EINTERNAL, "KV cache: merged table has room for %d pages a head",
                       dst->stride);
    memcpy(dst->refs + (size_t)h * dst->stride + dst->n_refs[h],
           src->refs + (size_t)h * src->stride, sizeof *dst->refs * (size_t)n);
    dst->n_refs[h] += n;
    dst->n_tokens[h] += src->n_tokens[h];
    return PC_OK;
}

int kv_move(struct HeadTable *dst, struct HeadTable *src)
{
    for (int h = 0; h < dst->n_heads; h++) {
        TRY(add_head(dst, src, h));
        src->n_refs[h] = src->n_tokens[h] = 0;
    }
    return PC_OK;
}

int kv_join(struct HeadTable *dst, int head, const struct HeadTable *a, const struct HeadTable *b)
{
    dst->n_refs[head] = dst->n_tokens[head] = 0;
    TRY(add_head(dst, a, head));
    return b ? add_head(dst, b, head) : PC_OK;
}

void kv_bias(struct HeadTable *t, float bias, const uint8_t *but)
{
    for (int h = 0; h < t->n_heads; h++)
        for (int i = 0; !(but && but[h]) && i < t->n_refs[h]; i++)
            t->refs[(size_t)h * t->stride + i].bias = bias;
}

void kv_clear_head(struct KvCache *kv, struct HeadTable *t, int head)
{
    for (int i = t->n_refs[head]; i-- > 0;)
        give_back(kv, t->refs[(size_t)head * t->stride + i].page);
    t->n_refs[head] = t->n_tokens[head] = 0;
}

void kv_clear(struct KvCache *kv, struct HeadTable *t)
{
    for (int h = 0; h < t->n_heads; h++) kv_clear_head(kv, t, h);
}

bool kv_slide(struct KvCache *kv, struct HeadTable *t, int head, int first, int last)
{
    struct PageRef *refs = t->refs + (size_t)head * t->stride;
    int n = t->n_refs[head], kept = 0, tokens = 0, from;
    while (kept < n && tokens < first) tokens += (int)refs[kept++].len;
    int rest = t->n_tokens[head] - tokens, before = t->n_tokens[head];
    if (rest < last || tokens < first) return false;
    if (kept) refs[kept - 1].len -= (uint32_t)(tokens - first);
    for (from = kept; from < n && rest - (int)refs[from].len >= last; from++) {
        rest -= (int)refs[from].len;
        give_back(kv, refs[from].page);
    }
    memmove(refs + kept, refs + from, sizeof *refs * (size_t)(n - from));
    t->n_refs[head] -= from - kept;
    t->n_tokens[head] = first + rest;
    return t->n_tokens[head] < before;
}

/* Notes where the survivors of one head lie and where they go, in order: forward only, so that nothing is written
 * before what it held was read. A page has one bias, so survivors of another begin a page of their own. */
int kv_filter(struct KvCache *kv, struct HeadTable *t, int layer, int kv_head, const uint8_t *keep)
{
    enum { RUN = 1024 };
    uint32_t from[RUN], to[RUN];
    int head = layer * kv->n_kv_heads + kv_head, n_refs = t->n_refs[head], kept = 0, token = 0,
        used = 0, n = 0;
    struct PageRef *refs = t->refs + (size_t)head * t->stride, *last = NULL;
    for (int i = 0; i < n_refs; i++) {
        struct PageRef page = refs[i];
        for (uint32_t at = 0; at < page.len; at++) {
            if (!keep[token++]) continue;
            if (!last || last->len == PAGE_TOKENS || last->bias != page.bias) {
                last = &refs[used++];
                last->len = 0;
                last->bias = page.bias;
            }
            from[n] = page.page * PAGE_TOKENS + at;
            to[n++] = last->page * PAGE_TOKENS + last->len++;
            kept++;
            if (n < RUN) continue;
            TRY(kv->be->kv_pack(kv->dev, &kv->pool, from, to, n));
            n = 0;
        }
    }
    if (n) TRY(kv->be->kv_pack(kv->dev, &kv->pool, from, to, n));
    for (int i = n_refs; i-- > used;) give_back(kv, refs[i].page);
    t->n_refs[head] = used;
    t->n_tokens[head] = kept;
    return PC_OK;
}

int kv_index_all(struct KvCache *kv, const struct HeadTable *t)
{
    for (int h = 0; h < t->n_heads; h++)
        TRY(kv->be->kv_index(kv->dev, &kv->pool, kv->index, t->refs + (size_t)h * t->stride,
                             t->n_refs[h]));
    return PC_OK;
}

int kv_index_filled(struct KvCache *kv, const struct HeadTable *t)
{
    int n = 0;
    for (int h = 0; h < t->n_heads; h++) {
        if (t->n_refs[h] == 0) continue;
        const struct PageRef *last = t->refs + (size_t)h * t->stride + t->n_refs[h] - 1;
        if (last->len == PAGE_TOKENS) kv->filled[n++] = *last;
    }
    return n ? kv->be->kv_index(kv->dev, &kv->pool, kv->index, kv->filled, n) : PC_OK;
}

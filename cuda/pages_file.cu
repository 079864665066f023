/* pages_file.cu - which pages of the tier below an op reads and writes, for those that lie in a file (tier_file.cu).
 *
 * Before its kernels are queued the host brings them to frames, and after they have run it puts what they wrote into the file.
 * Ops whose pages are all near, or at home in the host's memory, wait for nothing.
 */
#include "device.h"

/* The pages of one op, as it goes through them. */
struct Round {
    struct Device *d;
    const struct PagePool *pool;
    struct TierFile *file;
    bool begun;
};

static Round round_of(struct Device *d, const struct PagePool *pool)
{
    return {d, pool, tier_file(pool), false};
}

static int begin(Round *r)
{
    if (r->begun) return PC_OK;
    r->begun = true;
    return file_begin(r->d, r->file);
}

static int need(Round *r, uint32_t page)
{
    if (!r->file || !page_is_below(r->pool, page)) return PC_OK;
    if (file_at_home(r->file, page - r->pool->n_near)) return PC_OK;
    TRY(begin(r));
    return file_need(r->file, page - r->pool->n_near);
}

static int run(Round *r)
{
    return r->begun ? file_run(r->d, r->file) : PC_OK;
}

static int wrote(Round *r, uint32_t page)
{
    if (!r->file || !page_is_below(r->pool, page)) return PC_OK;
    if (!file_at_home(r->file, page - r->pool->n_near)) TRY(begin(r));
    file_wrote(r->file, page - r->pool->n_near);
    return PC_OK;
}

static int flush(Round *r)
{
    return r->begun ? file_flush(r->file) : PC_OK;
}

int at_once(const struct PagePool *pool, int pages_each, int most)
{
    struct TierFile *file = tier_file(pool);
    int n = file ? file_room(file) / pages_each : most;
    return n < most ? n : most;
}

int bring_past(struct Device *d, const struct AttnArgs *a)
{
    Round r = round_of(d, a->pool);
    int heads = d->model->cfg.n_kv_heads, n = a->own_pasts ? a->n_seqs : 1;
    for (int i = 0; r.file && a->past && i < n * heads; i++) {
        const struct HeadTable *t = &a->past[i / heads];
        size_t head = (size_t)a->layer * heads + i % heads;
        for (int j = 0; j < t->n_refs[head]; j++) TRY(need(&r, t->refs[head * t->stride + j].page));
    }
    return run(&r);
}

int bring_written(struct Device *d, const struct PagePool *pool, const struct KvWrite *w, int n)
{
    Round r = round_of(d, pool);
    for (int i = 0; i < n; i++) TRY(need(&r, w[i].page.page));
    return run(&r);
}

int bring_slots(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                const uint32_t *to, int n)
{
    Round r = round_of(d, pool);
    for (int i = 0; i < n; i++) {
        TRY(need(&r, from[i] / PAGE_TOKENS));
        TRY(need(&r, to[i] / PAGE_TOKENS));
    }
    return run(&r);
}

int bring_gathered(struct Device *d, const struct PagePool *pool, const struct KvGather *list,
                   int n)
{
    Round r = round_of(d, pool);
    for (int i = 0; i < n; i++) {
        const struct KvGather *g = &list[i];
        TRY(need(&r, g->page));
        if (!g->index) TRY(need(&r, (g->from + (uint32_t)g->first) / PAGE_TOKENS));
    }
    return run(&r);
}

int bring_refs(struct Device *d, const struct PagePool *pool, const struct PageRef *refs, int n)
{
    Round r = round_of(d, pool);
    for (int i = 0; i < n; i++) TRY(need(&r, refs[i].page));
    return run(&r);
}

int keep_written(struct Device *d, const struct PagePool *pool, const struct KvWrite *w, int n)
{
    Round r = round_of(d, pool);
    for (int i = 0; i < n; i++) TRY(wrote(&r, w[i].page.page));
    return flush(&r);
}

int keep_gathered(struct Device *d, const struct PagePool *pool, const struct KvGather *list, int n)
{
    Round r = round_of(d, pool);
    for (int i = 0; i < n; i++) TRY(wrote(&r, list[i].page));
    return flush(&r);
}

int keep_slots(struct Device *d, const struct PagePool *pool, const uint32_t *to, int n)
{
    Round r = round_of(d, pool);
    for (int i = 0; i < n; i++) TRY(wrote(&r, to[i] / PAGE_TOKENS));
    return flush(&r);
}

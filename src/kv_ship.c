/* kv_ship.c - see kv_ship.h */
#include "kv_ship.h"

#include <string.h>

/* In pieces of the host's memory that caches hold; between devices in pieces that keep their link busy. */
int kv_parcel_pages(const struct Peers *peers, size_t page_bytes)
{
    size_t most = (size_t)(peers->direct ? 64 : 4) << 20;
    return page_bytes < most ? (int)(most / page_bytes) : 1;
}

size_t kv_parcel_bytes(const struct Peers *peers, size_t page_bytes)
{
    return (size_t)kv_parcel_pages(peers, page_bytes) * page_bytes;
}

int kv_parcel_open(struct KvParcel *p, const struct Peers *peers, size_t page_bytes)
{
    size_t bytes = kv_parcel_bytes(peers, page_bytes);
    p->peers = peers;
    p->n_pages = kv_parcel_pages(peers, page_bytes);
    p->data = peers->direct ? peers->be->alloc(peers->dev, bytes) : mem_alloc(bytes, 1);
    return p->data ? PC_OK : PC_ENOMEM;
}

int kv_parcel_through(struct KvParcel *p, struct KvCache *kv)
{
    p->moves = mem_alloc((size_t)p->n_pages, sizeof *p->moves);
    return p->moves ? kv_run(kv, (size_t)p->n_pages, &p->through) : PC_ENOMEM;
}

void kv_parcel_close(struct KvParcel *p)
{
    mem_free(p->moves);
    if (p->data && p->peers->direct)
        p->peers->be->release(p->peers->dev, p->data);
    else
        mem_free(p->data);
    *p = (struct KvParcel){0};
}

/* ==== All pages of a table, one after another ==== */

struct Walk {
    const struct HeadTable *t;
    int head, ref; /* the next page */
};

/* The id of the next page; false behind the last. */
static bool walk_page(struct Walk *w, uint32_t *page)
{
    while (w->head < w->t->n_heads && w->ref == w->t->n_refs[w->head]) w->head++, w->ref = 0;
    if (w->head == w->t->n_heads) return false;
    *page = w->t->refs[(size_t)w->head * w->t->stride + w->ref++].page;
    return true;
}

/* Pages [first, first + n) of the pool into or out of the parcel, behind `at` others. */
static int copy_run(const struct KvCache *kv, const struct KvParcel *p, int at, uint32_t first,
                    int n, bool out)
{
    size_t bytes = kv->pool.page_bytes;
    uint8_t *page = kv->pool.data + first * bytes, *parcel = p->data + (size_t)at * bytes;
    if (p->peers->direct)
        return kv->be->peers->copy(kv->dev, out ? parcel : page, out ? page : parcel,
                                   (size_t)n * bytes);
    return out ? kv->be->download(kv->dev, parcel, page, (size_t)n * bytes)
               : kv->be->upload(kv->dev, page, parcel, (size_t)n * bytes);
}

/* The next n pages of the walk; neighbours in the pool go together. */
static int copy_near(const struct KvCache *kv, struct Walk *w, const struct KvParcel *p, int n,
                     bool out)
{
    uint32_t first = 0, page = 0;
    int run = 0, at = 0;
    for (int i = 0; i < n && walk_page(w, &page); i++, run++) {
        if (run && page == first + (uint32_t)run) continue;
        if (run) TRY(copy_run(kv, p, at, first, run, out));
        at += run;
        run = 0;
        first = page;
    }
    return run ? copy_run(kv, p, at, first, run, out) : PC_OK;
}

/* The same where some lie below, which only ops on pages reach. */
static int copy_through(const struct KvCache *kv, struct Walk *w, const struct KvParcel *p, int n,
                        bool out)
{
    uint32_t page = 0;
    if (!out) TRY(copy_run(kv, p, 0, p->through, n, out));
    for (int i = 0; i < n && walk_page(w, &page); i++) {
        uint32_t near = p->through + (uint32_t)i;
        p->moves[i] = (struct KvGather){
            .from = (out ? page : near) * PAGE_TOKENS, .n = PAGE_TOKENS, .page = out ? near : page};
    }
    TRY(kv->be->kv_gather(kv->dev, &kv->pool, p->moves, n));
    return out ? copy_run(kv, p, 0, p->through, n, out) : PC_OK;
}

static int copy_pages(const struct KvCache *kv, struct Walk *w, const struct KvParcel *p, int n,
                      bool out)
{
    return p->moves ? copy_through(kv, w, p, n, out) : copy_near(kv, w, p, n, out);
}

static int64_t count_pages(const struct HeadTable *t)
{
    int64_t n = 0;
    for (int h = 0; h < t->n_heads; h++) n += t->n_refs[h];
    return n;
}

/* The parcel's first bytes. Between devices that only queues: the stream keeps the parcel until they are gone. */
static int send_parcel(const struct KvParcel *p, size_t bytes, int to)
{
    const struct Peers *peers = p->peers;
    return peers->direct ? peers->be->peers->send(peers->dev, p->data, bytes, to)
                         : team_send(peers->team, to, p->data, bytes);
}

static int receive_parcel(const struct KvParcel *p, size_t bytes, int from)
{
    const struct Peers *peers = p->peers;
    return peers->direct ? peers->be->peers->receive(peers->dev, p->data, bytes, from)
                         : team_receive(peers->team, from, p->data, bytes);
}

/* Until all of it is gone or there. */
static int ship_end(const struct KvParcel *p)
{
    return p->peers->direct ? p->peers->be->peers->wait(p->peers->dev) : PC_OK;
}

/* ==== Send ==== */

int kv_send(const struct KvCache *kv, const struct HeadTable *t, int to, struct KvParcel *p)
{
    struct Team *team = p->peers->team;
    TRY(team_send(team, to, t->n_refs, sizeof *t->n_refs * (size_t)t->n_heads));
    for (int h = 0; h < t->n_heads; h++)
        if (t->n_refs[h])
            TRY(team_send(team, to, t->refs + (size_t)h * t->stride,
                          sizeof *t->refs * (size_t)t->n_refs[h]));
    struct Walk w = {.t = t};
    for (int64_t left = count_pages(t); left > 0;) {
        int n = left < p->n_pages ? (int)left : p->n_pages;
        TRY(copy_pages(kv, &w, p, n, true));
        TRY(send_parcel(p, (size_t)n * kv->pool.page_bytes, to));
        left -= n;
    }
    return ship_end(p);
}

/* ==== Receive ==== */

/* Gives the refs of one head pages of this pool. */
static int adopt_refs(struct KvCache *kv, struct HeadTable *t, int head, int n)
{
    const struct PageRef *refs = t->refs + (size_t)head * t->stride;
    for (int i = 0; i < n; i++) {
        if (refs[i].len < 1 || refs[i].len > PAGE_TOKENS)
            return err_set(PC_EINTERNAL,
                           "KV cache: page %d of head %d from another rank: %u tokens", i, head,
                           refs[i].len);
        TRY(kv_adopt(kv, t, head, refs[i]));
    }
    return PC_OK;
}

/* The refs of one head that has n pages elsewhere. */
static int receive_head(struct KvCache *kv, struct HeadTable *t, struct Team *team, int from,
                        int head, int n)
{
    struct PageRef *refs = t->refs + (size_t)head * t->stride;
    if (n < 0 || n > t->stride)
        return err_set(PC_EINTERNAL,
                       "KV cache: head %d of another rank has %d pages, room is for %d", head, n,
                       t->stride);
    if (n == 0) return PC_OK;
    TRY(team_receive(team, from, refs, sizeof *refs * (size_t)n));
    return adopt_refs(kv, t, head, n);
}

/* A head counts only pages that are its own, also when a later one fails. */
static int receive_refs(struct KvCache *kv, struct HeadTable *t, struct Team *team, int from)
{
    int status = team_receive(team, from, t->n_refs, sizeof *t->n_refs * (size_t)t->n_heads);
    if (status < 0) memset(t->n_refs, 0, sizeof *t->n_refs * (size_t)t->n_heads);
    for (int h = 0; h < t->n_heads; h++) {
        int n = t->n_refs[h];
        t->n_refs[h] = 0;
        if (status == PC_OK) status = receive_head(kv, t, team, from, h, n);
    }
    return status;
}

int kv_receive(struct KvCache *kv, struct HeadTable *t, int from, struct KvParcel *p)
{
    TRY(receive_refs(kv, t, p->peers->team, from));
    struct Walk w = {.t = t};
    for (int64_t left = count_pages(t); left > 0;) {
        int n = left < p->n_pages ? (int)left : p->n_pages;
        TRY(receive_parcel(p, (size_t)n * kv->pool.page_bytes, from));
        TRY(copy_pages(kv, &w, p, n, false));
        left -= n;
    }
    return ship_end(p);
}

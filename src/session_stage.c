/* session_stage.c - stored chunks in the cache's first pages: a chunk's pages follow each other there as in the file, so that
 * it moves in one piece.
 *
 * There is room for a wave's chunks, whose places the next wave takes; or, on a device with memory of its own, for all of this
 * rank's, where further questions of the same store are to come: then the pool outlives the run, and a chunk that is
 * there is not read again. That is what makes a further question cheap: a document's pages are gigabytes, and the way to
 * the device is what a question would wait for.
 */
#include "session.h"

#include <string.h>

struct StoreInfo stage_layout(const struct Session *s)
{
    return (struct StoreInfo){.n_layers = s->e->model.cfg.n_layers,
                              .n_kv_heads = s->e->model.cfg.n_kv_heads,
                              .streams = s->heads.streams,
                              .sinks = s->heads.streams ? s->heads.sinks : 0,
                              .recent = s->heads.streams ? s->heads.recent : 0,
                              .cap = s->set.store_cap == CAP_OFF ? 0 : s->set.store_cap,
                              .n_prefix = s->plan.n_prefix};
}

bool stage_capped(const struct Session *s, int n)
{
    struct StoreInfo layout = stage_layout(s);
    return (s->store || s->indexes) && layout.cap && layout.cap < n;
}

int stage_held(const struct Session *s, int n)
{
    return stage_capped(s, n) ? s->set.store_cap : n;
}

/* Pages of a head in a staged table. */
static int staged_refs(const struct Session *s)
{
    return kv_pages(s->plan.n_prefix) + heads_ring(s) + kv_pages(s->plan.chunk_tokens) + 2;
}

/* Pages of a store's chunk that go to pages of the cache, at most. */
static int gathers_of(const struct Session *s)
{
    return s->plan.heads_full * kv_pages(s->cap);
}

size_t stage_bytes(const struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t tables = kv_table_bytes(m, staged_refs(s)) * (size_t)s->plan.wave,
           section =
               s->stage_pages * s->e->be->page_bytes(s->e->dev) + sizeof(float) * (size_t)m->dim,
           front = s->req->context_len + (size_t)s->plan.n_context * (sizeof(int) + sizeof(size_t));
    tables += sizeof *s->marks * (size_t)s->plan.wave;
    if (s->indexes) return tables + section + front + index_marks(s);
    return tables + sizeof(struct KvGather) * (size_t)gathers_of(s) +
           (s->resident ? (size_t)s->n_staged : 0);
}

const uint8_t *stage_marks(const struct Session *s, int i, int head, int n)
{
    struct StoreInfo layout = stage_layout(s);
    if (!s->store || !s->marks[i] || (layout.streams && layout.streams[head])) return NULL;
    return s->marks[i] + (size_t)head * store_mark_bytes(&layout, n);
}

/* ==== What stays on the device ==== */

bool stage_may_stay(const struct Session *s)
{
    bool dealt_once = s->plan.rounds == 1 || s->e->team->size == 1;
    return s->store && s->req->store_stays && s->limits.own_memory && !ranks_ahead(&s->set) &&
           !s->set.prefilter && dealt_once;
}

void resident_close(struct Engine *e)
{
    struct Resident *r = &e->resident;
    if (r->pages) e->be->release(e->dev, r->pages);
    mem_free(r->there);
    *r = (struct Resident){0};
}

/* Whether the pool that was kept serves this run. */
static bool fits_resident(const struct Session *s)
{
    const struct Resident *r = &s->e->resident;
    return r->pages && r->store == s->store->seed && r->stage_pages == s->stage_pages &&
           r->n_chunks == s->n_staged && r->n_pages >= s->n_pages;
}

/* With some room for a longer question, if memory allows. */
static void *alloc_pages(const struct Session *s, size_t page_bytes, size_t *n_pages)
{
    size_t more = (size_t)(s->plan.heads_full + s->plan.heads_streaming) * 4;
    bool room = s->plan.peak_bytes + more * page_bytes <= s->plan.available_bytes;
    *n_pages = s->n_pages + (room ? more : 0);
    return s->e->be->alloc(s->e->dev, *n_pages * page_bytes);
}

static int resident_open(struct Session *s)
{
    struct Resident *r = &s->e->resident;
    size_t page_bytes = s->e->be->page_bytes(s->e->dev);
    if (fits_resident(s)) return PC_OK;
    resident_close(s->e);
    r->there = mem_alloc((size_t)s->n_staged, 1);
    if (!r->there) return PC_ENOMEM;
    r->pages = alloc_pages(s, page_bytes, &r->n_pages);
    if (!r->pages) return PC_ENOMEM;
    r->bytes = r->n_pages * page_bytes;
    r->store = s->store->seed;
    r->stage_pages = s->stage_pages;
    r->n_chunks = s->n_staged;
    return PC_OK;
}

int stage_cache(struct Session *s)
{
    struct Engine *e = s->e;
    if (!s->resident) return kv_open(&s->kv, e->be, e->dev, &e->model.cfg, s->n_pages);
    TRY(resident_open(s));
    return kv_open_in(&s->kv, e->be, e->dev, &e->model.cfg, s->n_pages, e->resident.pages);
}

/* ==== Open and close ==== */

int stage_open(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int stride = staged_refs(s);
    TRY(kv_run(&s->kv, s->stage_pages * (size_t)s->n_staged, &s->stage_page));
    s->staged = mem_alloc((size_t)s->plan.wave, sizeof *s->staged);
    s->marks = mem_alloc((size_t)s->plan.wave, sizeof *s->marks);
    if (!s->staged || !s->marks) return PC_ENOMEM;
    for (int i = 0; i < s->plan.wave; i++) TRY(kv_table_open(&s->staged[i], m, stride));
    return s->store ? kv_gathers_open(&s->gathers, gathers_of(s)) : PC_OK;
}

void stage_close(struct Session *s)
{
    for (int i = 0; s->staged && i < s->plan.wave; i++) kv_table_close(&s->staged[i]);
    mem_free(s->staged);
    mem_free(s->marks);
    s->staged = NULL;
    kv_gathers_close(&s->gathers);
}

/* ==== A chunk in its pages ==== */

static uint32_t place_page(const struct Session *s, int place)
{
    return s->stage_page + (uint32_t)(s->stage_pages * (size_t)place);
}

uint8_t *stage_at(const struct Session *s, int place)
{
    return s->kv.pool.data + place_page(s, place) * s->kv.pool.page_bytes;
}

/* Where a chunk stays: chunks are dealt to ranks from the last one backwards (session_team.c). */
static int resident_place(const struct Session *s, int chunk)
{
    return (s->plan.n_chunks - 1 - chunk) / s->e->team->size;
}

bool stage_has(const struct Session *s, int chunk)
{
    return s->resident && s->e->resident.there[resident_place(s, chunk)];
}

int stage_lay(struct Session *s, int i, int place, int n, const struct HeadTable *past)
{
    struct StoreInfo layout = stage_layout(s);
    struct HeadTable *t = &s->staged[i];
    uint32_t page = place_page(s, place);
    for (int h = 0; h < t->n_heads; h++) {
        struct HeadEnds keep = store_tokens(&layout, h, n);
        t->n_refs[h] = past ? past->n_refs[h] : 0;
        t->n_tokens[h] = past ? past->n_tokens[h] : 0;
        if (past)
            memcpy(t->refs + (size_t)h * t->stride, past->refs + (size_t)h * past->stride,
                   sizeof *t->refs * (size_t)past->n_refs[h]);
        int used = kv_lay(t, h, page, keep.first + keep.last);
        TRY(used);
        page += (uint32_t)used;
    }
    return PC_OK;
}

int stage_load_layers(struct Session *s, int chunk, int i, int from, int to)
{
    struct StoreInfo layout = stage_layout(s);
    struct StoreChunk c;
    int len = s->chunks[chunk].end - s->chunks[chunk].begin,
        place = s->resident ? resident_place(s, chunk) : i;
    TRY(stage_lay(s, i, place, len, &s->prefix));
    TRY(store_chunk(s->store, chunk, &c));
    s->marks[i] = c.marks;
    if (stage_has(s, chunk)) return PC_OK;
    if (c.n_pages != store_pages(&layout, len) || c.n_pages > s->stage_pages)
        return err_set(PC_EFORMAT, "%s: chunk %d has other pages than its head map says",
                       s->store->path, chunk + 1);
    if (s->resident) from = 0, to = layout.n_layers;
    size_t begin = store_pages_before(&layout, from, len) * s->kv.pool.page_bytes,
           end = store_pages_before(&layout, to, len) * s->kv.pool.page_bytes;
    TRY(s->tf.be->upload(s->tf.dev, stage_at(s, place) + begin, c.pages + begin, end - begin));
    if (s->resident) s->e->resident.there[place] = 1;
    return PC_OK;
}

int stage_load(struct Session *s, int chunk, int i)
{
    return stage_load_layers(s, chunk, i, 0, s->e->model.cfg.n_layers);
}

/* cpu_tier.c - pages of the KV cache below main memory, in a file: which have a copy near, and how they come there
 * (headwise.md D.6).
 *
 * What a row chooses of a head's pages is looked up in the head's slots; what is not there takes the place of what scored
 * lowest (eviction/residency). Either the row waits, while all threads read, or it does without: a thread that does nothing
 * else reads what was asked for, in that order, and rows take it from when it is there. Pages without a slot, and those of many
 * rows at once, are read where they are needed, into a hand of the thread that needs them.
 */
#include "cpu.h"

#include "eviction/residency.h"
#include "page_store.h"

#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static const uint32_t NO_PAGE = UINT32_MAX;

/* A page that is to come to a slot. */
struct Copy {
    uint32_t page; /* of the store */
    uint8_t *to;
    uint8_t *coming; /* 0 once it is there */
};

/* What the heads of a layer are found to want, one a line; several threads fill it. */
struct HeadWork {
    struct Residency slots;
    struct ResidencyWork work;
    int *wanted;             /* [max_refs] */
    uint8_t *fixed;          /* [slots] what was on its way when the choice was made */
    struct PageFetch *fetch; /* [slots] */
    int n_wanted, n_missed, n_fetch;
    const struct PageRef *refs;
};

struct PageTier {
    struct TierPlan plan;
    struct PageStore store;
    uint8_t *cache; /* the slots, in the pool's own memory */
    uint32_t n_near;
    int n_kv_heads, n_threads;
    uint32_t *first; /* [n_heads] the near page that is a head's first slot */
    int *slot_of;    /* [n_heads, max_refs] */
    int *page_at;    /* [n_heads, slots] */
    uint8_t *coming; /* [n_heads, slots] 1: its page is asked for and not there */
    float *
        weight; /* [n_heads, max_refs] of the chosen pages' estimated attention; NULL unless late */
    struct HeadWork *heads; /* [n_kv_heads] */
    uint8_t *hands;         /* [n_threads, DECODE_SPLIT, page_bytes] */
    uint32_t *in_hand;      /* [n_threads] the page in a thread's first hand */
    uint8_t *buffers;       /* [TIER_BUFFERS, page_bytes] */
    struct TierCounts counts;
    double late_sum;
    int64_t late_rows;

    pthread_mutex_t lock; /* of all that follows */
    int status;           /* of the first read that failed */
    char text[512];
    pthread_cond_t wake;
    pthread_t thread;
    bool runs, stop;
    struct Copy *queue; /* [queue_cap] a ring */
    int queue_cap, queue_at, n_queued;
};

/* ==== What goes wrong ==== */

static void note_failure(struct PageTier *t, int status)
{
    pthread_mutex_lock(&t->lock);
    if (t->status == PC_OK) {
        t->status = status;
        snprintf(t->text, sizeof t->text, "%s", err_text());
    }
    pthread_mutex_unlock(&t->lock);
}

int tier_status(const struct PagePool *pool)
{
    struct PageTier *t = pool ? pool->tier : NULL;
    if (!t) return PC_OK;
    pthread_mutex_lock(&t->lock);
    int status = t->status;
    if (status < 0) err_set(status, "%s", t->text);
    pthread_mutex_unlock(&t->lock);
    return status;
}

/* ==== Pages by number ==== */

const uint8_t *tier_page(const struct PagePool *pool, uint32_t page, int thread, int i)
{
    struct PageTier *t = pool->tier;
    if (!page_is_below(pool, page)) return pool->data + page * pool->page_bytes;
    uint8_t *hand = t->hands + ((size_t)thread * DECODE_SPLIT + (size_t)i) * pool->page_bytes;
    if (i == 0 && t->in_hand[thread] == page) return hand;
    int status = t->store.read(&t->store, page - t->n_near, hand);
    if (status < 0) note_failure(t, status);
    if (i == 0) t->in_hand[thread] = status < 0 ? NO_PAGE : page;
#pragma omp atomic
    t->counts.through++;
    return hand;
}

int tier_take(struct PageTier *t, uint32_t page, void *bytes)
{
    return t->store.read(&t->store, page - t->n_near, bytes);
}

int tier_put(struct PageTier *t, uint32_t page, const void *bytes)
{
    for (int i = 0; i < t->n_threads; i++) t->in_hand[i] = NO_PAGE;
    return t->store.write(&t->store, page - t->n_near, bytes);
}

uint8_t *tier_buffer(struct PageTier *t, int i)
{
    return t->buffers + (size_t)i * t->store.page_bytes;
}

/* ==== A choice ==== */

static size_t head_of(const struct PageTier *t, const struct TierChoice *c)
{
    return (size_t)c->layer * t->n_kv_heads + c->kv_head;
}

/* What the chosen pages take of the estimated attention on them; those that still fill are never late. */
static void weigh(struct PageTier *t, const struct TierChoice *c)
{
    float *weight = t->weight + head_of(t, c) * (size_t)t->plan.max_refs, most = -INFINITY, sum = 0;
    int n_scored = c->n_all - c->n_open;
    for (int i = 0; i < c->n; i++)
        if (c->idx[i] < n_scored) most = fmaxf(most, c->score[c->idx[i]]);
    for (int i = 0; i < c->n; i++) {
        int page = c->idx[i];
        bool scored = page < n_scored && most > -INFINITY;
        weight[page] = scored ? expf(c->score[page] - most) * (float)c->refs[page].len : 0;
        if (!(weight[page] > 0)) weight[page] = 0; /* no number */
        sum += weight[page];
    }
    for (int i = 0; i < c->n && sum > 0; i++) weight[c->idx[i]] /= sum;
}

static void snapshot(const struct PageTier *t, size_t head, uint8_t *fixed)
{
    const uint8_t *coming = t->coming + head * (size_t)t->plan.slots;
    for (int s = 0; s < t->plan.slots; s++)
        fixed[s] = __atomic_load_n(coming + s, __ATOMIC_ACQUIRE);
}

void tier_choose(struct PageTier *t, const struct TierChoice *c)
{
    struct HeadWork *w = &t->heads[c->kv_head];
    size_t head = head_of(t, c), slots = (size_t)t->plan.slots;
    w->slots = (struct Residency){t->plan.slots, t->page_at + head * slots,
                                  t->slot_of + head * (size_t)t->plan.max_refs, w->fixed};
    if (t->plan.late) weigh(t, c);
    snapshot(t, head, w->fixed);
    w->refs = c->refs;
    w->n_wanted = w->n_missed = 0;
    for (int i = c->n_all - c->n_open; i < c->n_all; i++) c->score[i] = INFINITY;
    for (int i = 0; i < c->n; i++) {
        int page = c->idx[i];
        if (c->refs[page].page < t->n_near) continue;
        w->wanted[w->n_wanted++] = page;
        w->n_missed += w->slots.slot_of[page] < 0;
    }
    w->n_fetch = residency_fetch(&w->slots, c->score, w->wanted, w->n_wanted, &w->work, w->fetch);
}

/* ==== Fetching ==== */

static struct Copy copy_of(const struct PageTier *t, int layer, int kv_head, int i)
{
    const struct HeadWork *w = &t->heads[kv_head];
    struct PageFetch f = w->fetch[i];
    size_t head = (size_t)layer * t->n_kv_heads + kv_head;
    return (struct Copy){w->refs[f.page].page - t->n_near,
                         t->cache + (t->first[head] - t->plan.cache + (size_t)f.slot) *
                                        t->store.page_bytes,
                         t->coming + head * (size_t)t->plan.slots + f.slot};
}

static void copy_now(struct PageTier *t, struct Copy c)
{
    int status = t->store.read(&t->store, c.page, c.to);
    if (status < 0) note_failure(t, status);
}

/* The layer's missing pages, read by all threads. */
static void fetch_now(const struct Device *d, struct PageTier *t, int layer)
{
    int n = t->n_kv_heads * t->plan.slots;
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
    for (int j = 0; j < n; j++) {
        int h = j % t->n_kv_heads, i = j / t->n_kv_heads;
        if (i < t->heads[h].n_fetch) copy_now(t, copy_of(t, layer, h, i));
    }
}

static void ask(struct PageTier *t, struct Copy c)
{
    __atomic_store_n(c.coming, 1, __ATOMIC_RELEASE);
    pthread_mutex_lock(&t->lock);
    t->queue[(t->queue_at + t->n_queued++) % t->queue_cap] = c;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

void tier_fetch(const struct Device *d, struct PageTier *t, int layer)
{
    int64_t n = 0;
    for (int h = 0; h < t->n_kv_heads; h++) {
        struct HeadWork *w = &t->heads[h];
        t->counts.wanted += w->n_wanted;
        t->counts.missed += w->n_missed;
        n += w->n_fetch;
        for (int i = 0; t->plan.late && i < w->n_fetch; i++) ask(t, copy_of(t, layer, h, i));
    }
    t->counts.fetched += n;
    if (n && !t->plan.late) fetch_now(d, t, layer);
    for (int h = 0; h < t->n_kv_heads; h++)
        t->heads[h].n_wanted = t->heads[h].n_missed = t->heads[h].n_fetch = 0;
}

int tier_refs(struct PageTier *t, const struct TierChoice *c, struct PageRef *out)
{
    size_t head = head_of(t, c);
    const int *slot_of = t->slot_of + head * (size_t)t->plan.max_refs;
    const uint8_t *coming = t->coming + head * (size_t)t->plan.slots;
    float late = 0;
    int n = 0;
    for (int i = 0; i < c->n; i++) {
        int page = c->idx[i], slot = -1;
        struct PageRef ref = c->refs[page];
        bool below = ref.page >= t->n_near;
        if (below) slot = slot_of[page];
        if (slot >= 0 && !__atomic_load_n(coming + slot, __ATOMIC_ACQUIRE))
            ref.page = t->first[head] + (uint32_t)slot;
        else if (below && t->plan.late) {
            late += t->weight[head * (size_t)t->plan.max_refs + (size_t)page];
            t->counts.late++;
            continue;
        }
        out[n++] = ref;
    }
    t->late_sum += late;
    t->late_rows++;
    return n;
}

/* ==== The thread that reads for rows that do not wait ==== */

/* The next page that is asked for; false when the tier is closed. */
static bool next_copy(struct PageTier *t, struct Copy *c)
{
    pthread_mutex_lock(&t->lock);
    while (!t->stop && t->n_queued == 0) pthread_cond_wait(&t->wake, &t->lock);
    bool more = !t->stop;
    if (more) {
        *c = t->queue[t->queue_at];
        t->queue_at = (t->queue_at + 1) % t->queue_cap;
        t->n_queued--;
    }
    pthread_mutex_unlock(&t->lock);
    return more;
}

static void *bring(void *tier)
{
    struct PageTier *t = tier;
    struct Copy c;
    while (next_copy(t, &c)) {
        int status = t->store.read(&t->store, c.page, c.to);
        if (status < 0) note_failure(t, status); /* and the page stays away */
        if (status == PC_OK) __atomic_store_n(c.coming, 0, __ATOMIC_RELEASE);
    }
    return NULL;
}

static int start_thread(struct PageTier *t)
{
    if (pthread_create(&t->thread, NULL, bring, t))
        return err_set(PC_ENOMEM,
                       "no thread can be started to read late pages; use --tier-wait exact");
    t->runs = true;
    return PC_OK;
}

static void stop_thread(struct PageTier *t)
{
    if (!t->runs) return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
}

/* ==== Open and close ==== */

static void heads_free(struct PageTier *t)
{
    for (int h = 0; t->heads && h < t->n_kv_heads; h++) {
        struct HeadWork *w = &t->heads[h];
        void *blocks[] = {w->work.value, w->work.from, w->work.take, w->work.held,
                          w->wanted,     w->fixed,     w->fetch};
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    }
    mem_free(t->heads);
}

static int head_alloc(struct PageTier *t, struct HeadWork *w)
{
    size_t slots = (size_t)t->plan.slots, pages = (size_t)t->plan.max_refs,
           most = slots > pages ? slots : pages;
    w->work.value = mem_alloc(most, sizeof *w->work.value);
    w->work.from = mem_alloc(most, sizeof *w->work.from);
    w->work.take = mem_alloc(most, sizeof *w->work.take);
    w->work.held = mem_alloc(slots, 1);
    w->wanted = mem_alloc(pages, sizeof *w->wanted);
    w->fixed = mem_alloc(slots, 1);
    w->fetch = mem_alloc(slots, sizeof *w->fetch);
    return w->work.value && w->work.from && w->work.take && w->work.held && w->wanted && w->fixed &&
                   w->fetch
               ? PC_OK
               : PC_ENOMEM;
}

static int tables_alloc(struct PageTier *t)
{
    size_t heads = (size_t)t->plan.n_heads, slots = heads * (size_t)t->plan.slots,
           pages = heads * (size_t)t->plan.max_refs, threads = (size_t)t->n_threads;
    t->first = mem_alloc(heads, sizeof *t->first);
    t->slot_of = mem_alloc(pages, sizeof *t->slot_of);
    t->page_at = mem_alloc(slots, sizeof *t->page_at);
    t->coming = mem_alloc(slots, 1);
    t->heads = mem_alloc((size_t)t->n_kv_heads, sizeof *t->heads);
    t->hands = mem_alloc(threads * DECODE_SPLIT, t->store.page_bytes);
    t->in_hand = mem_alloc(threads, sizeof *t->in_hand);
    t->buffers = mem_alloc(TIER_BUFFERS, t->store.page_bytes);
    if (!t->first || !t->slot_of || !t->page_at || !t->coming || !t->heads || !t->hands ||
        !t->in_hand || !t->buffers)
        return PC_ENOMEM;
    for (size_t i = 0; i < pages; i++) t->slot_of[i] = -1;
    for (size_t i = 0; i < slots; i++) t->page_at[i] = -1;
    for (size_t i = 0; i < threads; i++) t->in_hand[i] = NO_PAGE;
    for (int h = 0; h < t->n_kv_heads; h++) TRY(head_alloc(t, &t->heads[h]));
    if (!t->plan.late) return PC_OK;
    t->queue_cap = t->plan.n_heads * t->plan.slots + 1;
    t->weight = mem_alloc(pages, sizeof *t->weight);
    t->queue = mem_alloc((size_t)t->queue_cap, sizeof *t->queue);
    return t->weight && t->queue ? PC_OK : PC_ENOMEM;
}

void cpu_tier_bytes(const struct Device *d, const struct TierPlan *p, struct TierBytes *out)
{
    size_t heads = (size_t)p->n_heads, slots = (size_t)p->slots, pages = (size_t)p->max_refs,
           page = page_bytes(d->format, d->model->cfg.head_dim);
    size_t most = slots > pages ? slots : pages;
    size_t tables = heads * (slots * (sizeof(int) + 1) + pages * sizeof(int) + sizeof(uint32_t));
    size_t work = (size_t)d->model->cfg.n_kv_heads *
                  (most * (sizeof(float) + 2 * sizeof(int)) + pages * sizeof(int) +
                   slots * (2 + sizeof(struct PageFetch)));
    size_t late = p->late ? heads * (pages * sizeof(float) + slots * sizeof(struct Copy)) : 0;
    size_t hands = ((size_t)d->threads * DECODE_SPLIT + TIER_BUFFERS) * page;
    *out = (struct TierBytes){.device =
                                  tables + work + late + hands + page_store_file_bytes(p->n_below),
                              .disk = p->n_below * page};
}

static void place_slots(struct PageTier *t)
{
    uint32_t at = t->plan.cache;
    for (int h = 0; h < t->plan.n_heads; h++) {
        t->first[h] = at;
        if (!(t->plan.streams && t->plan.streams[h])) at += (uint32_t)t->plan.slots;
    }
}

int cpu_tier_over(struct Device *d, const struct TierPlan *plan, const struct PageStore *store,
                  struct PagePool *pool)
{
    struct PageTier *t = mem_alloc(1, sizeof *t);
    if (!t) return PC_ENOMEM;
    pool->tier = t;
    t->plan = *plan;
    t->store = *store;
    t->cache = pool->data + plan->cache * pool->page_bytes;
    t->n_near = pool->n_near;
    t->n_kv_heads = d->model->cfg.n_kv_heads;
    t->n_threads = d->threads;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    TRY(tables_alloc(t));
    place_slots(t);
    return plan->late ? start_thread(t) : PC_OK;
}

int cpu_tier_open(struct Device *d, const struct TierPlan *plan, struct PagePool *pool)
{
    struct PageStore store;
    int status = page_store_file(&store, plan->dir, pool->page_bytes, plan->n_below);
    if (status == PC_OK) status = cpu_tier_over(d, plan, &store, pool);
    if (status < 0 && !pool->tier) store.close(&store);
    return status;
}

void cpu_tier_close(struct Device *d, struct PagePool *pool)
{
    (void)d;
    struct PageTier *t = pool->tier;
    stop_thread(t);
    heads_free(t);
    t->store.close(&t->store);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->wake);
    void *blocks[] = {t->first, t->slot_of, t->page_at, t->coming, t->weight,
                      t->hands, t->in_hand, t->buffers, t->queue};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    mem_free(t);
    pool->tier = NULL;
}

int cpu_tier_counts(struct Device *d, const struct PagePool *pool, struct TierCounts *out)
{
    (void)d;
    const struct PageTier *t = pool->tier;
    *out = t->counts;
    out->from_file = out->fetched + out->through;
    out->late_share = t->late_rows ? t->late_sum / (double)t->late_rows : 0;
    return PC_OK;
}

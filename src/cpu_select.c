/* cpu_select.c - the pages that one row reads of each KV head: scored from their index, chosen by eviction/page_select. */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <string.h>

/* ==== Choosing ==== */

static struct LayerPages all_pages(const struct Device *d, const struct AttnArgs *a)
{
    const struct HeadTable *t = a->past;
    size_t head = (size_t)a->layer * d->model->cfg.n_kv_heads;
    if (!t) return (struct LayerPages){NULL, NULL, 0};
    return (struct LayerPages){t->refs + head * (size_t)t->stride, t->n_refs + head, t->stride};
}

/* Pages at the end that still fill, whose index is not theirs yet. */
static int open_pages(const struct PageRef *refs, int n)
{
    int open = 0;
    while (open < n && refs[n - 1 - open].len < PAGE_TOKENS) open++;
    return open;
}

static void score_pages(const struct Device *d, const struct AttnArgs *a, int kv_head,
                        const struct PageRef *refs, int n, float *score)
{
    const struct ModelConfig *m = &d->model->cfg;
    int group = m->n_heads / m->n_kv_heads;
    struct IndexQuery q = {.index = a->select->index,
                           .exact = d->exact,
                           .head_dim = m->head_dim,
                           .q = (const float *)a->q + (size_t)kv_head * group * m->head_dim,
                           .n_q = group,
                           .scale = 1.0f / sqrtf((float)m->head_dim)};
    for (int i = 0; i < n; i++)
        score[i] = d->kern->index_score(&q, a->pool->index + refs[i].page * a->pool->index_bytes) +
                   refs[i].bias;
}

/* Writes the chosen pages of one head to idx; returns how many. */
static int choose(struct Device *d, const struct AttnArgs *a, int kv_head,
                  const struct PageRef *refs, int n, int *idx)
{
    struct Selection *s = &d->sel;
    size_t at = (size_t)kv_head * s->stride;
    struct PageWeights work = {s->work.log + at, s->work.share + at};
    float *score = s->score + at;
    int *len = s->len + at, n_open = open_pages(refs, n);
    if (!page_select_all(a->select, n, n_open))
        score_pages(d, a, kv_head, refs, n - n_open, score);
    else
        memset(score, 0, sizeof *score * (size_t)n); /* a tier asks for them all the same */
    for (int i = 0; i < n; i++) len[i] = (int)refs[i].len;
    return page_select(a->select, score, len, n, n_open, &work, idx);
}

/* The pages that the row before read of a head, and those that were opened since. */
static int choose_again(const struct Selection *s, size_t head, int n, int *idx)
{
    int n_out = s->kept[head].n;
    memcpy(idx, s->kept_idx + head * (size_t)s->stride, sizeof *idx * (size_t)n_out);
    for (int i = s->kept[head].seen; i < n; i++) idx[n_out++] = i;
    return n_out;
}

static void keep_choice(struct Selection *s, size_t head, int n, const int *idx, int n_out)
{
    s->kept[head] = (struct Choice){n_out, n};
    memcpy(s->kept_idx + head * (size_t)s->stride, idx, sizeof *idx * (size_t)n_out);
}

/* Of one head's n pages, which the row reads; idx and score have room for them. */
static struct TierChoice choice_of(const struct Device *d, const struct AttnArgs *a, int kv_head,
                                   const struct PageRef *refs, int n)
{
    const struct Selection *s = &d->sel;
    size_t at = (size_t)kv_head * s->stride;
    return (struct TierChoice){.layer = a->layer,
                               .kv_head = kv_head,
                               .refs = refs,
                               .idx = s->idx + at,
                               .n = s->n_refs[kv_head],
                               .n_all = n,
                               .n_open = open_pages(refs, n),
                               .score = s->score + at};
}

/* Chooses them, and what has to come near for that; n_refs says how many. */
static void choose_pages(struct Device *d, const struct AttnArgs *a, int kv_head,
                         const struct PageRef *refs, int n)
{
    struct Selection *s = &d->sel;
    size_t head = (size_t)a->layer * d->model->cfg.n_kv_heads + kv_head;
    int *idx = s->idx + (size_t)kv_head * s->stride;
    int n_out =
        a->select_kept ? choose_again(s, head, n, idx) : choose(d, a, kv_head, refs, n, idx);
    if (s->keeps) keep_choice(s, head, n, idx, n_out);
    s->n_refs[kv_head] = n_out;
    if (!a->pool->tier || a->select_kept) return;
    struct TierChoice c = choice_of(d, a, kv_head, refs, n);
    tier_choose(a->pool->tier, &c);
}

/* The chosen pages as attention finds them. */
static void place_pages(struct Device *d, const struct AttnArgs *a, int kv_head,
                        const struct PageRef *refs, int n)
{
    struct Selection *s = &d->sel;
    struct PageRef *out = s->refs + (size_t)kv_head * s->stride;
    struct TierChoice c = choice_of(d, a, kv_head, refs, n);
    if (a->pool->tier)
        s->n_refs[kv_head] = tier_refs(a->pool->tier, &c, out);
    else
        for (int i = 0; i < c.n; i++) out[i] = refs[c.idx[i]];
    s->counts.read += s->n_refs[kv_head];
    s->counts.there += n;
}

static void read_whole(struct Selection *s, int kv_head, const struct PageRef *refs, int n)
{
    s->n_refs[kv_head] = n;
    memcpy(s->refs + (size_t)kv_head * s->stride, refs, sizeof *refs * (size_t)n);
}

static int check_room(const struct Device *d, const struct AttnArgs *a, const struct LayerPages *p)
{
    const struct Selection *s = &d->sel;
    const struct Choice *kept = s->kept + (size_t)a->layer * d->model->cfg.n_kv_heads;
    if (a->select_kept && !s->keeps)
        return err_set(PC_EINTERNAL, "a row asks for pages that no row before it has kept");
    for (int h = 0; h < d->model->cfg.n_kv_heads; h++) {
        if (p->n_refs[h] > s->stride)
            return err_set(PC_EINTERNAL, "pages of a head: %d to select from in room for %d",
                           p->n_refs[h], s->stride);
        if (a->select_kept && kept[h].seen > p->n_refs[h])
            return err_set(PC_EINTERNAL, "pages of a head: a choice among %d is asked of %d",
                           kept[h].seen, p->n_refs[h]);
    }
    return PC_OK;
}

int cpu_pages(struct Device *d, const struct AttnArgs *a, struct LayerPages *out)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct Selection *s = &d->sel;
    struct LayerPages all = all_pages(d, a);
    *out = all;
    if (!a->select || !all.n_refs) return PC_OK;
    TRY(check_room(d, a, &all));
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
    for (int h = 0; h < m->n_kv_heads; h++)
        if (!window_of(d, a, h * (m->n_heads / m->n_kv_heads)))
            choose_pages(d, a, h, all.refs + (size_t)h * all.stride, all.n_refs[h]);
    if (a->pool->tier && !a->select_kept) tier_fetch(d, a->pool->tier, a->layer);
    for (int h = 0; h < m->n_kv_heads; h++) {
        const struct PageRef *refs = all.refs + (size_t)h * all.stride;
        if (window_of(d, a, h * (m->n_heads / m->n_kv_heads)))
            read_whole(s, h, refs, all.n_refs[h]);
        else
            place_pages(d, a, h, refs, all.n_refs[h]);
    }
    *out = (struct LayerPages){s->refs, s->n_refs, s->stride};
    return PC_OK;
}

int cpu_page_counts(struct Device *d, struct PageCounts *out)
{
    *out = d->sel.counts;
    return PC_OK;
}

/* ==== The index ==== */

size_t cpu_index_bytes(const struct Device *d, enum PageIndex index)
{
    size_t vectors = index == PAGE_INDEX_BOUND ? 2 : 1;
    return vectors * (size_t)d->model->cfg.head_dim * (d->exact ? sizeof(float) : sizeof(uint16_t));
}

int cpu_kv_index(struct Device *d, const struct PagePool *pool, enum PageIndex index,
                 const struct PageRef *refs, int n)
{
#pragma omp parallel for schedule(static) num_threads(d->threads) if (n > 1)
    for (int i = 0; i < n; i++)
        d->kern->index_write(tier_page(pool, refs[i].page, omp_get_thread_num(), 0), d->format,
                             (int)refs[i].len, d->model->cfg.head_dim, index, d->exact,
                             pool->index + refs[i].page * pool->index_bytes);
    return tier_status(pool);
}

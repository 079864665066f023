/* cpu_attention.c - attention on the CPU: over packed keys for many rows, over pages for one.
 *
 * A row sees the whole past (pages: the shared prefix, or everything merged so far) and its own sequence
 * causally. For many rows the past and own keys of each (sequence, KV head) are packed once, then tiles of
 * 48 rows of one query head run over them. For one row the pages are read where they lie, in work items of
 * DECODE_SPLIT pages whose partial results are merged in order. With far keys (self-extend, streaming) a
 * row is taken by the way of many, in two parts: its window, and what is far behind it, seen from elsewhere.
 */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <string.h>

static const struct HeadTable *past_of(const struct AttnArgs *a, int seq)
{
    return a->own_pasts ? &a->past[seq] : a->past;
}

static int past_tokens(const struct AttnArgs *a, int seq, int kv_head, int n_kv)
{
    return a->past ? past_of(a, seq)->n_tokens[a->layer * n_kv + kv_head] : 0;
}

static const struct PageRef *past_refs(const struct AttnArgs *a, int seq, int head)
{
    const struct HeadTable *past = past_of(a, seq);
    return past->refs + (size_t)head * past->stride;
}

/* ==== Parts ==== */

/* Whether rows see their own sequence. */
static bool sees_own(const struct AttnArgs *a, int kv_head)
{
    return !a->part || a->part->own[kv_head];
}

/* A head of n rows that sees no key of its part. */
static void blank(const struct Device *d, const struct AttnArgs *a, int head, int row, int n)
{
    const struct ModelConfig *m = &d->model->cfg;
    for (int r = row; r < row + n; r++) {
        size_t at = (size_t)r * (size_t)m->n_heads + (size_t)head;
        a->part->lse[at] = -INFINITY;
        memset(a->part->out + at * (size_t)m->head_dim, 0, sizeof(float) * (size_t)m->head_dim);
    }
}

/* ==== Many rows ==== */

static float *biases_of(const struct Device *d, int kv_head)
{
    return d->key_bias + (size_t)kv_head * d->pack_blocks * QBLOCK;
}

/* Past keys of a head up to the last one whose page has a bias. */
static int n_biased(const struct AttnArgs *a, int kv_head, int n_kv)
{
    int head = a->layer * n_kv + kv_head, n = past_tokens(a, 0, kv_head, n_kv);
    for (int i = a->past && !a->own_pasts ? a->past->n_refs[head] : 0; i-- > 0;) {
        if (past_refs(a, 0, head)[i].bias != 0) return n;
        n -= (int)past_refs(a, 0, head)[i].len;
    }
    return 0;
}

/* The pages' biases, key by key. */
static void spread_biases(struct Device *d, const struct AttnArgs *a)
{
    int n_kv = d->model->cfg.n_kv_heads;
    for (int kv = 0; kv < n_kv; kv++) {
        float *out = biases_of(d, kv);
        for (int n = n_biased(a, kv, n_kv), i = 0; n > 0; i++) {
            struct PageRef ref = past_refs(a, 0, a->layer * n_kv + kv)[i];
            for (int t = 0; t < (int)ref.len; t++) *out++ = ref.bias;
            n -= (int)ref.len;
        }
    }
}

/* The key with which the tail of a sequence begins; 0: it has none. */
static int tail_of(const struct Device *d, const struct AttnArgs *a, int seq, int kv_head)
{
    int rows = a->seq_begin[seq + 1] - a->seq_begin[seq];
    if (!a->tail_rows) return 0;
    return past_tokens(a, seq, kv_head, d->model->cfg.n_kv_heads) + rows - a->tail_rows;
}

static struct KvPack pack_of(const struct Device *d, const struct AttnArgs *a, int seq, int kv_head)
{
    const struct ModelConfig *m = &d->model->cfg;
    size_t scales, bytes = d->kern->kv_pack_bytes(m->head_dim, d->exact, &scales);
    size_t head = (size_t)seq * m->n_kv_heads + kv_head, first = head * d->pack_blocks;
    return (struct KvPack){
        .exact = d->exact,
        .halves = d->format == PAGE_F16,
        .head_dim = m->head_dim,
        .k = (uint8_t *)d->pack.k + first * bytes,
        .v = (uint8_t *)d->pack.v + first * bytes,
        .k_scale = d->pack.k_scale + first * scales,
        .v_scale = d->pack.v_scale + first * scales,
        .tail = tail_of(d, a, seq, kv_head),
        .tail_v = (uint8_t *)d->pack.tail_v + head * bytes,
        .tail_scale = d->pack.tail_scale + head * scales,
    };
}

/* Where far rows see the same keys; the values are those of `near`. */
static struct KvPack turned_pack(const struct Device *d, const struct KvPack *near, int seq,
                                 int kv_head)
{
    const struct ModelConfig *m = &d->model->cfg;
    size_t scales, bytes = d->kern->kv_pack_bytes(m->head_dim, d->exact, &scales);
    size_t first = ((size_t)seq * m->n_kv_heads + kv_head) * d->turned_blocks;
    struct KvPack pack = *near;
    pack.k = d->turned_k + first * bytes;
    pack.k_scale = d->turned_k_scale + first * scales;
    return pack;
}

/* Gathers up to 64 tokens [at, at + n) of past and own rows of one head into k, v [64, head_dim]. */
static void gather_block(struct Device *d, const struct AttnArgs *a, int seq, int kv_head, int at,
                         float *k, float *v)
{
    const struct ModelConfig *m = &d->model->cfg;
    int dim = m->head_dim, past = past_tokens(a, seq, kv_head, m->n_kv_heads), n = 0;
    int rows = a->seq_begin[seq + 1] - a->seq_begin[seq];
    if (at < past) {
        const struct PageRef *ref = past_refs(a, seq, a->layer * m->n_kv_heads + kv_head);
        int skip = at;
        while (skip >= (int)ref->len) skip -= (int)(ref++)->len;
        for (int left = past - at; n < QBLOCK && left > 0; ref++, skip = 0) {
            int run = (int)ref->len - skip, most = left < QBLOCK - n ? left : QBLOCK - n;
            if (run > most) run = most;
            d->kern->page_rows(a->pool->data + ref->page * a->pool->page_bytes, skip, run, dim,
                               k + n * dim, v + n * dim, d->format);
            n += run;
            left -= run;
        }
    }
    for (int row = at + n - past; n < QBLOCK && row < rows; n++, row++) {
        size_t src = ((size_t)(a->seq_begin[seq] + row) * m->n_kv_heads + kv_head) * dim;
        memcpy(k + n * dim, (const float *)a->k + src, sizeof(float) * (size_t)dim);
        memcpy(v + n * dim, (const float *)a->v + src, sizeof(float) * (size_t)dim);
    }
}

/* Packs n gathered keys, then turns them to where far rows see them and packs them there. */
static void pack_both(struct Device *d, const struct AttnArgs *a, int seq, int kv_head, int block,
                      int n, float *k, float *v)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct KvPack near = pack_of(d, a, seq, kv_head), turned = turned_pack(d, &near, seq, kv_head);
    d->kern->kv_pack(k, v, m->head_dim, n, block, &near);
    for (int i = 0; i < n; i++)
        d->kern->rope(k + (size_t)i * m->head_dim,
                      a->far->k_turn + (size_t)(block * QBLOCK + i) * m->rope_dim, m->rope_dim,
                      m->rope_style);
    d->kern->kv_pack(k, v, m->head_dim, n, block, &turned);
}

static void pack_keys(struct Device *d, const struct AttnArgs *a)
{
    const struct ModelConfig *m = &d->model->cfg;
    int heads = a->n_seqs * m->n_kv_heads;
    spread_biases(d, a);
#pragma omp parallel for schedule(dynamic, 4) collapse(2) num_threads(d->threads)
    for (int h = 0; h < heads; h++) {
        for (int b = 0; b < d->pack_blocks; b++) {
            int seq = h / m->n_kv_heads, kv = h % m->n_kv_heads;
            int past = past_tokens(a, seq, kv, m->n_kv_heads),
                rows = a->seq_begin[seq + 1] - a->seq_begin[seq];
            int at = b * QBLOCK, n = past + rows - at;
            if (n <= 0) continue;
            bool turned = a->far && a->far->k_turn;
            struct KvPack out = pack_of(d, a, seq, kv);
            if (at >= past && !turned) { /* rows lie ready */
                size_t src =
                    ((size_t)(a->seq_begin[seq] + at - past) * m->n_kv_heads + kv) * m->head_dim;
                d->kern->kv_pack((const float *)a->k + src, (const float *)a->v + src,
                                 m->n_kv_heads * m->head_dim, n < QBLOCK ? n : QBLOCK, b, &out);
                continue;
            }
            float *k = thread_scratch(d, omp_get_thread_num()), *v = k + QBLOCK * m->head_dim;
            gather_block(d, a, seq, kv, at, k, v);
            if (turned)
                pack_both(d, a, seq, kv, b, n < QBLOCK ? n : QBLOCK, k, v);
            else
                d->kern->kv_pack(k, v, m->head_dim, n < QBLOCK ? n : QBLOCK, b, &out);
        }
    }
}

static struct AttnTile tile_of(const struct Device *d, const struct AttnArgs *a, int seq, int head,
                               int row, int n)
{
    const struct ModelConfig *m = &d->model->cfg;
    int kv = head / (m->n_heads / m->n_kv_heads), width = m->n_heads * m->head_dim,
        window = window_of(d, a, head);
    int past = past_tokens(a, seq, kv, m->n_kv_heads);
    size_t first = (size_t)a->seq_begin[seq] + (size_t)row,
           at = first * width + (size_t)head * m->head_dim;
    return (struct AttnTile){
        .exact = d->exact,
        .head_dim = m->head_dim,
        .q = (const float *)a->q + at,
        .ld_q = width,
        .n_rows = n,
        .first_visible = past + row + 1,
        .kv = pack_of(d, a, seq, kv),
        .scale = 1.0f / sqrtf((float)m->head_dim),
        .bias = biases_of(d, kv),
        .n_biased = n_biased(a, kv, m->n_kv_heads),
        .window = window,
        .sinks = window ? a->masks->sinks : 0,
        .limit = sees_own(a, kv) ? 0 : past,
        .out = (a->part ? a->part->out : (float *)a->out) + at,
        .ld_out = width,
        .lse = a->part ? a->part->lse + first * m->n_heads + head : NULL,
        .ld_lse = m->n_heads,
    };
}

/* The tile `near` in two parts: keys in its rows' window, and those far behind them in *far, for which the queries
 * are turned, into q [TILE_ROWS, head_dim]. */
static void split_far(const struct Device *d, const struct AttnArgs *a, int row, float *q,
                      struct AttnTile *near, struct AttnTile *far)
{
    const struct ModelConfig *m = &d->model->cfg;
    *far = *near;
    near->window = a->far->window;
    if (a->far->n == 0) return;
    near->far = far;
    far->first_visible -= a->far->window;
    far->limit = a->far->n;
    far->q = q;
    far->ld_q = m->head_dim;
    for (int r = 0; r < near->n_rows; r++) {
        float *head = q + (size_t)r * m->head_dim;
        memcpy(head, near->q + (size_t)r * near->ld_q, sizeof *q * (size_t)m->head_dim);
        d->kern->rope(head, a->far->q_turn + (size_t)(row + r) * m->rope_dim, m->rope_dim,
                      m->rope_style);
    }
}

/* One tile of one head of one sequence. */
static void attend_tile(struct Device *d, const struct AttnArgs *a, int seq, int head, int row,
                        int n)
{
    const struct ModelConfig *m = &d->model->cfg;
    int kv = head / (m->n_heads / m->n_kv_heads);
    uint8_t *scratch = thread_scratch(d, omp_get_thread_num());
    if (!sees_own(a, kv) && past_tokens(a, seq, kv, m->n_kv_heads) == 0) {
        blank(d, a, head, a->seq_begin[seq] + row, n);
        return;
    }
    struct AttnTile tile = tile_of(d, a, seq, head, row, n), far;
    if (a->far) {
        /* behind what attn_tile uses */
        float *q = (float *)(scratch + d->thread_bytes) - (size_t)TILE_ROWS * m->head_dim;
        split_far(d, a, a->seq_begin[seq] + row, q, &tile, &far);
        if (a->far->k_turn) far.kv = turned_pack(d, &tile.kv, seq, kv);
    }
    d->kern->attn_tile(&tile, scratch);
}

static void attend_tiles(struct Device *d, const struct AttnArgs *a)
{
    const struct ModelConfig *m = &d->model->cfg;
    int longest = 0;
    for (int s = 0; s < a->n_seqs; s++) {
        int rows = a->seq_begin[s + 1] - a->seq_begin[s];
        if (rows > longest) longest = rows;
    }
    int tiles = (longest + TILE_ROWS - 1) / TILE_ROWS, heads = a->n_seqs * m->n_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
    for (int t = 0; t < tiles * heads; t++) {
        /* the last rows see the most keys: start with them, so that no thread ends on a long tile */
        int row = (tiles - 1 - t % tiles) * TILE_ROWS, seq = t / tiles / m->n_heads,
            head = t / tiles % m->n_heads;
        int rows = a->seq_begin[seq + 1] - a->seq_begin[seq], left = rows - row;
        if (left <= 0) continue;
        if (a->last_rows && row + TILE_ROWS <= rows - a->last_rows) continue;
        attend_tile(d, a, seq, head, row, left < TILE_ROWS ? left : TILE_ROWS);
    }
}

int cpu_attn_mass(struct Device *d, const struct AttnArgs *a, int obs_rows, float *mass, int stride)
{
    const struct ModelConfig *m = &d->model->cfg;
    int group = m->n_heads / m->n_kv_heads, heads = a->n_seqs * m->n_kv_heads;
    if (a->seq_begin[a->n_seqs] <= FEW_ROWS) pack_keys(d, a); /* attention() read the pages */
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
    for (int h = 0; h < heads; h++) {
        int seq = h / m->n_kv_heads, kv = h % m->n_kv_heads,
            rows = a->seq_begin[seq + 1] - a->seq_begin[seq];
        int past = past_tokens(a, seq, kv, m->n_kv_heads),
            n_keys = sees_own(a, kv) ? past + rows : past,
            first = rows > obs_rows ? rows - obs_rows : 0;
        float *out = mass + (size_t)h * stride;
        memset(out, 0, sizeof *out * (size_t)n_keys);
        for (int g = 0; g < group; g++)
            for (int row = first; row < rows && n_keys; row += TILE_ROWS) {
                int n = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
                struct AttnTile tile = tile_of(d, a, seq, kv * group + g, row, n);
                int seen = tile.limit ? tile.limit : tile.first_visible + n - 1;
                d->kern->attn_mass(&tile, seen, out, thread_scratch(d, omp_get_thread_num()));
            }
    }
    return PC_OK;
}

/* ==== One row over pages ==== */

struct Split {
    int kv_head, begin, end; /* refs [begin, end); end == n_refs + 1 includes the row's own key */
};

#define LN2 0.693147181f

static int n_pages(const struct LayerPages *p, int kv_head)
{
    return p->n_refs ? p->n_refs[kv_head] : 0;
}

/* What a head's items are cut from: its pages, and behind them the row's own token. */
static int n_cut(const struct AttnArgs *a, const struct LayerPages *p, int kv_head)
{
    return n_pages(p, kv_head) + sees_own(a, kv_head);
}

/* Cuts every head's pages into items. */
static int make_splits(const struct AttnArgs *a, const struct LayerPages *p, int n_kv, int idx,
                       struct Split *out)
{
    int n = 0;
    for (int kv = 0; kv < n_kv; kv++) {
        int refs = n_cut(a, p, kv);
        for (int b = 0; b < refs; b += DECODE_SPLIT, n++) {
            if (n != idx) continue;
            *out = (struct Split){kv, b, b + DECODE_SPLIT < refs ? b + DECODE_SPLIT : refs};
        }
    }
    return n;
}

/* Tokens of a head's first n pages. */
static int tokens_in(const struct PageRef *refs, int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++) sum += (int)refs[i].len;
    return sum;
}

static int clip(int x, int low, int high)
{
    return x < low ? low : x > high ? high : x;
}

/* Hides what a window leaves out of a page that holds the tokens from `at` on. */
static void hide(struct PageRun *run, int at, int sinks, int past, int window)
{
    run->seen = clip(past - window + 1 - at, 0, run->len);
    run->hidden = clip(sinks - at, 0, run->seen);
}

static void attend_split(struct Device *d, const struct AttnArgs *a, const struct LayerPages *p,
                         struct Split s, struct Partial *part, float *out)
{
    const struct ModelConfig *m = &d->model->cfg;
    const struct PageRef *page = p->refs ? p->refs + (size_t)s.kv_head * p->stride : NULL;
    int group = m->n_heads / m->n_kv_heads, refs = n_pages(p, s.kv_head), n = 0,
        window = window_of(d, a, s.kv_head * group),
        at = window && refs ? tokens_in(page, s.begin) : 0;
    struct PageRun runs[DECODE_SPLIT];
    void *own = thread_scratch(d, omp_get_thread_num());
    for (int i = s.begin; i < s.end; i++) {
        if (i == refs) {
            size_t row = (size_t)s.kv_head * m->head_dim;
            d->kern->page_write(own, 0, m->head_dim, (const float *)a->k + row,
                                (const float *)a->v + row, d->format);
            runs[n++] = (struct PageRun){.page = own, .len = 1};
            continue;
        }
        struct PageRef ref = page[i];
        struct PageRun *run = &runs[n];
        *run = (struct PageRun){.page = a->pool->data + ref.page * a->pool->page_bytes,
                                .len = (int)ref.len,
                                .bias = ref.bias};
        if (window)
            hide(run, at, a->masks->sinks, past_tokens(a, 0, s.kv_head, m->n_kv_heads), window);
        at += run->len;
        n += run->seen - run->hidden < run->len;
    }
    const float *q = (const float *)a->q + (size_t)s.kv_head * group * m->head_dim;
    struct PageAttn pages = {.format = d->format,
                             .head_dim = m->head_dim,
                             .q = q,
                             .ld_q = m->head_dim,
                             .n_q = group,
                             .runs = runs,
                             .n_runs = n};
    d->kern->attn_pages(&pages, part, out);
}

/* Merges the partial results of one query head, in item order; returns the lse. */
static float merge_partials(const struct Partial *part, const float *part_out, int n, int step,
                            int head_dim, float *out)
{
    float max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) max = fmaxf(max, part[i * step].max);
    memset(out, 0, sizeof *out * (size_t)head_dim);
    for (int i = 0; i < n; i++) {
        float w = exp2f(part[i * step].max - max);
        sum += part[i * step].sum * w;
        for (int j = 0; j < head_dim; j++) out[j] += part_out[(size_t)i * step * head_dim + j] * w;
    }
    for (int j = 0; j < head_dim; j++) out[j] /= sum;
    return (max + log2f(sum)) * LN2;
}

/* One head's items, from the first on. */
static void merge_head(const struct Device *d, const struct AttnArgs *a, int kv_head, int first,
                       int items)
{
    const struct ModelConfig *m = &d->model->cfg;
    int group = m->n_heads / m->n_kv_heads;
    float *rows = a->part ? a->part->out : a->out;
    for (int g = 0; g < group; g++) {
        int head = kv_head * group + g, at = first * group + g;
        if (items == 0) {
            blank(d, a, head, 0, 1);
            continue;
        }
        float lse = merge_partials(d->part + at, d->part_out + (size_t)at * m->head_dim, items,
                                   group, m->head_dim, rows + (size_t)head * m->head_dim);
        if (a->part) a->part->lse[head] = lse;
    }
}

static void attend_pages(struct Device *d, const struct AttnArgs *a, const struct LayerPages *p)
{
    const struct ModelConfig *m = &d->model->cfg;
    int group = m->n_heads / m->n_kv_heads;
    struct Split unused;
    int n = make_splits(a, p, m->n_kv_heads, -1, &unused);
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
    for (int i = 0; i < n; i++) {
        struct Split s = {0, 0, 0};
        make_splits(a, p, m->n_kv_heads, i, &s);
        attend_split(d, a, p, s, d->part + (size_t)i * group,
                     d->part_out + (size_t)i * group * m->head_dim);
    }
    int first = 0;
    for (int kv = 0; kv < m->n_kv_heads; kv++) {
        int items = (n_cut(a, p, kv) + DECODE_SPLIT - 1) / DECODE_SPLIT;
        merge_head(d, a, kv, first, items);
        first += items;
    }
}

int cpu_attention(struct Device *d, const struct AttnArgs *a)
{
    if (a->seq_begin[a->n_seqs] <= FEW_ROWS && !a->far) {
        struct LayerPages pages;
        TRY(cpu_pages(d, a, &pages));
        attend_pages(d, a, &pages);
        return PC_OK;
    }
    pack_keys(d, a);
    attend_tiles(d, a);
    return PC_OK;
}

/* ==== Pages ==== */

int cpu_kv_write(struct Device *d, const struct PagePool *pool, const struct KvWrite *writes, int n)
{
    const struct ModelConfig *m = &d->model->cfg;
#pragma omp parallel for schedule(static) num_threads(d->threads) if (n > m->n_kv_heads)
    for (int j = 0; j < n; j++) {
        const struct KvWrite *w = &writes[j];
        void *page = pool->data + w->page.page * pool->page_bytes;
        for (int i = 0; i < w->n; i++) {
            int row = w->row0 + (w->index ? w->index[i] : w->first + i);
            size_t src = ((size_t)row * m->n_kv_heads + w->kv_head) * m->head_dim;
            d->kern->page_write(page, w->at + i, m->head_dim, (const float *)w->k + src,
                                (const float *)w->v + src, d->format);
        }
    }
    return PC_OK;
}

/* Whether tokens [0, 64) of the list are a whole page that becomes one. */
static bool whole_page(const uint32_t *from, const uint32_t *to)
{
    bool same = from[0] % PAGE_TOKENS == 0 && to[0] % PAGE_TOKENS == 0;
    for (uint32_t i = 1; same && i < PAGE_TOKENS; i++)
        same = from[i] == from[0] + i && to[i] == to[0] + i;
    return same;
}

int cpu_kv_pack(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                const uint32_t *to, int n)
{
    int dim = d->model->cfg.head_dim;
    for (int i = 0; i < n; i++) {
        const uint8_t *src = pool->data + from[i] / PAGE_TOKENS * pool->page_bytes;
        uint8_t *dst = pool->data + to[i] / PAGE_TOKENS * pool->page_bytes;
        if (n - i >= PAGE_TOKENS && whole_page(from + i, to + i)) {
            memmove(dst, src, pool->page_bytes);
            i += PAGE_TOKENS - 1;
            continue;
        }
        d->kern->page_move(dst, (int)(to[i] % PAGE_TOKENS), src, (int)(from[i] % PAGE_TOKENS), dim,
                           d->format);
    }
    return PC_OK;
}

int cpu_kv_gather(struct Device *d, const struct PagePool *pool, const struct KvGather *list, int n)
{
    uint32_t from[PAGE_TOKENS], to[PAGE_TOKENS];
    for (int i = 0; i < n; i++) {
        const struct KvGather *g = &list[i];
        for (int t = 0; t < g->n; t++) {
            from[t] = g->from + (uint32_t)(g->index ? g->index[t] : g->first + t);
            to[t] = g->page * PAGE_TOKENS + (uint32_t)(g->at + t);
        }
        TRY(cpu_kv_pack(d, pool, from, to, g->n));
    }
    return PC_OK;
}

int cpu_kv_read(struct Device *d, const struct PagePool *pool, struct PageRef ref, int at, float *k,
                float *v)
{
    d->kern->page_read(pool->data + ref.page * pool->page_bytes, at, d->model->cfg.head_dim, k, v,
                       d->format);
    return PC_OK;
}

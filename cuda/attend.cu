/* attend.cu - attention, the mass on keys, the choice of tokens, and the KV pages, over the launchers of kernels.h.
 *
 * Few rows of one sequence read the pages where they lie. For many rows past and own keys of each (sequence, KV head)
 * are packed first, which costs a few per cent of the attention and lets its kernels run over plain arrays. So do rows
 * with far keys, and heads of widths that attention over pages does not have, however few they are.
 */
#include "device.h"

#include <math.h>
#include <string.h>

static struct PagesArgs pages_of(const struct Device *d, const struct PagePool *pool)
{
    struct PagesArgs p = {};
    if (pool) p.pool = pool->data, p.page_bytes = pool->page_bytes;
    p.below = tier_below(pool);
    p.format = d->format;
    p.n_kv_heads = d->model->cfg.n_kv_heads;
    p.head_dim = d->model->cfg.head_dim;
    return p;
}

static float logit_scale(const struct Device *d)
{
    return 1.0f / sqrtf((float)d->model->cfg.head_dim);
}

static size_t first_head(const struct Device *d, int layer)
{
    return (size_t)layer * d->model->cfg.n_kv_heads;
}

bool usual_head(int head_dim)
{
    return head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

/* ==== The pages that are read ==== */

/* Page tables of a layer's KV heads on the device. */
struct LayerPages {
    const struct CudaPageRef *refs; /* [n_kv_heads, stride] */
    const int *n_refs, *n_tokens;   /* [n_kv_heads] */
    int stride;
    bool chosen;
};

static bool selects(const struct AttnArgs *a)
{
    return a->select && a->select->index != PAGE_INDEX_OFF && a->past && !a->far &&
           a->n_seqs == 1 && a->seq_begin[1] == 1;
}

static struct LayerPages layer_pages(const struct Device *d, const struct AttnArgs *a)
{
    const struct DevTable *t = &d->s.table;
    const struct DevChosen *c = &d->s.chosen;
    size_t head = first_head(d, a->layer);
    if (selects(a)) return {c->refs, c->n_refs, c->n_tokens, t->stride, true};
    return {t->refs + head * t->stride, t->n_refs + head, t->n_tokens + head, t->stride, false};
}

/* Heads with a window are read whole. */
static void set_whole(const struct Device *d, const struct AttnArgs *a, uint32_t *whole)
{
    const struct ModelConfig *m = &d->model->cfg;
    for (int h = 0; a->masks && h < m->n_kv_heads; h++)
        if (a->masks->window[(size_t)a->layer * m->n_heads + h * (m->n_heads / m->n_kv_heads)])
            whole[h / 32] |= 1u << h % 32;
}

static int choose_pages(struct Device *d, const struct AttnArgs *a)
{
    const struct ModelConfig *m = &d->model->cfg;
    const struct DevTable *t = &d->s.table;
    const struct DevChosen *c = &d->s.chosen;
    size_t head = first_head(d, a->layer), kept = d->shape.keeps_pages ? head : 0;
    struct CudaPageSelect s = {};
    s.q = (const bf16 *)a->q;
    if (d->step.recording) s.turn = turn_of(d, &d->step.rope);
    s.index = a->pool->index;
    s.index_bytes = a->pool->index_bytes;
    s.bound = a->select->index == PAGE_INDEX_BOUND;
    s.refs = t->refs + head * t->stride;
    s.n_refs = t->n_refs + head;
    s.ref_stride = t->stride;
    s.n_heads = m->n_heads;
    s.n_kv_heads = m->n_kv_heads;
    s.head_dim = m->head_dim;
    s.scale = logit_scale(d);
    s.pages = a->select->pages;
    s.first = a->select->first;
    s.last = a->select->last;
    s.mass = a->select->mass;
    set_whole(d, a, s.whole);
    s.out = c->refs;
    s.n_out = c->n_refs;
    s.n_tokens = c->n_tokens;
    s.score = c->score;
    s.tickets = c->tickets;
    s.counts = a->pool->tier ? NULL : c->counts; /* with a tier it turns out later */
    s.n_blocks = c->n_blocks;
    s.idx = d->shape.keeps_pages || a->pool->tier ? c->idx + kept * t->stride : NULL;
    s.kept = c->kept + kept;
    CUDA_TRY(cuda_select_pages(&s, d->stream));
    return PC_OK;
}

/* The pages of an earlier choice, or where those of this one are. */
static int place_pages(struct Device *d, const struct AttnArgs *a)
{
    const struct DevTable *t = &d->s.table;
    const struct DevChosen *c = &d->s.chosen;
    size_t head = first_head(d, a->layer), kept = d->shape.keeps_pages ? head : 0;
    struct CudaPagePlace p = {};
    p.refs = t->refs + head * t->stride;
    p.n_refs = t->n_refs + head;
    p.ref_stride = t->stride;
    p.n_kv_heads = d->model->cfg.n_kv_heads;
    set_whole(d, a, p.whole);
    p.score = c->score;
    p.again = a->select_kept;
    p.idx = c->idx + kept * t->stride;
    p.kept = c->kept + kept;
    p.out = c->refs;
    p.n_out = c->n_refs;
    p.n_tokens = c->n_tokens;
    p.counts = c->counts;
    p.tier = tier_slots(a->pool, a->layer);
    if (a->select_kept && d->step.kind != STEP_CALLS) p.tier.asks = {};
    CUDA_TRY(cuda_place_pages(&p, d->stream));
    return PC_OK;
}

static int select_pages(struct Device *d, const struct AttnArgs *a)
{
    if (!d->shape.selects || !a->pool || !a->pool->index)
        return err_set(PC_EINTERNAL, "pages are to be selected, but no room or index is there");
    if (a->select_kept && !d->shape.keeps_pages)
        return err_set(PC_EINTERNAL, "a row asks for pages that no row before it has kept");
    if (!a->select_kept) TRY(choose_pages(d, a));
    if (a->select_kept || a->pool->tier) TRY(place_pages(d, a));
    return a->pool->tier ? tier_fetch(d, a->pool, a) : PC_OK;
}

int cuda_page_counts(struct Device *d, struct PageCounts *out)
{
    unsigned long long counts[2] = {0, 0};
    if (d->shape.selects) TRY(dev_download(d, counts, d->s.chosen.counts, sizeof counts));
    *out = {(int64_t)counts[0], (int64_t)counts[1]};
    return PC_OK;
}

/* ==== Parts ==== */

/* Bits of the KV heads whose own rows are in another part. */
static void set_apart(const struct Device *d, const struct AttnArgs *a, uint32_t *apart)
{
    for (int h = 0; a->part && h < d->model->cfg.n_kv_heads; h++)
        if (!a->part->own[h]) apart[h / 32] |= 1u << h % 32;
}

static int check_part(const struct Device *d, const struct AttnArgs *a)
{
    if (!a->part || (d->shape.parts && d->model->cfg.n_kv_heads <= CUDA_HEADS)) return PC_OK;
    return err_set(PC_EINTERNAL, "a part of the keys is asked for, but no room is there");
}

/* ==== Few rows ==== */

static int attend_pages(struct Device *d, const struct AttnArgs *a)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct LayerPages t = layer_pages(d, a);
    struct CudaPaged p = {};
    p.q = (const bf16 *)a->q;
    p.k = (const bf16 *)a->k;
    p.v = (const bf16 *)a->v;
    p.out = (bf16 *)a->out;
    p.pool = a->pool ? a->pool->data : NULL;
    p.page_bytes = a->pool ? a->pool->page_bytes : 0;
    p.below = tier_below(a->pool);
    p.format = d->format;
    p.refs = t.refs;
    p.n_refs = t.n_refs;
    p.ref_stride = t.stride;
    p.max_refs = t.stride; /* the same for every step, since a record holds it */
    p.chosen = t.chosen;
    p.n_rows = a->seq_begin[1];
    p.n_heads = m->n_heads;
    p.n_kv_heads = m->n_kv_heads;
    p.head_dim = m->head_dim;
    p.scale = logit_scale(d);
    p.n_splits = d->s.n_splits;
    p.part = d->s.part;
    if (a->masks) {
        p.window = d->s.masks.window + (size_t)a->layer * m->n_heads;
        p.sinks = a->masks->sinks;
        p.n_tokens = t.n_tokens;
        p.seen = d->s.table.seen + first_head(d, a->layer);
    }
    if (a->part) {
        p.part_out = a->part->out;
        p.part_lse = a->part->lse;
        set_apart(d, a, p.apart);
    }
    if (d->step.recording) {
        p.turn = turn_of(d, &d->step.rope);
        p.slots = d->s.slots + d->step.noted;
    }
    CUDA_TRY(cuda_paged_attention(&p, d->stream));
    return PC_OK;
}

/* ==== Many rows ==== */

/* Keys a head of this batch has at most, in whole tiles. */
static int key_stride(const struct Device *d, const struct AttnArgs *a)
{
    int past = 0;
    for (int i = 0; a->past && i < (a->own_pasts ? a->n_seqs : 1); i++)
        for (int h = 0; h < d->model->cfg.n_kv_heads; h++) {
            int n = a->past[i].n_tokens[first_head(d, a->layer) + h];
            if (n > past) past = n;
        }
    return (past + d->max_seq_rows + CUDA_KEY_TILE - 1) / CUDA_KEY_TILE * CUDA_KEY_TILE;
}

static struct CudaAttn attention_of(const struct Device *d, const struct AttnArgs *a)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct CudaAttn c = {};
    c.q = (const bf16 *)a->q;
    c.kv.k = d->s.k;
    c.kv.v = d->s.v;
    c.kv.key_stride = key_stride(d, a);
    c.kv.past = layer_pages(d, a).n_tokens;
    c.kv.past_step = a->own_pasts ? m->n_layers * m->n_kv_heads : 0;
    c.out = (bf16 *)a->out;
    c.lse = d->shape.mass_keys || a->part ? d->s.lse : NULL;
    c.seq_begin = d->s.seq_begin;
    c.n_seqs = a->n_seqs;
    c.n_rows = a->seq_begin[a->n_seqs];
    c.max_seq_rows = d->max_seq_rows;
    c.last_rows = a->last_rows;
    c.n_heads = m->n_heads;
    c.n_kv_heads = m->n_kv_heads;
    c.head_dim = m->head_dim;
    c.scale = logit_scale(d);
    if (a->masks) {
        c.window = d->s.masks.window + (size_t)a->layer * m->n_heads;
        c.sinks = a->masks->sinks;
    }
    if (d->s.table.biased || a->part) {
        c.key_bias = d->s.key_bias;
        c.n_biased = c.kv.key_stride; /* zeros behind the past */
    }
    return c;
}

static int pack_keys(struct Device *d, const struct AttnArgs *a, const struct CudaAttn *c)
{
    struct LayerPages t = layer_pages(d, a);
    struct GatherArgs g = {};
    g.pages = pages_of(d, a->pool);
    g.refs = t.refs;
    g.n_refs = t.n_refs;
    g.ref_stride = t.stride;
    g.k = (const bf16 *)a->k;
    g.v = (const bf16 *)a->v;
    g.seq_begin = d->s.seq_begin;
    g.n_seqs = a->n_seqs;
    g.kv = c->kv;
    g.key_bias = c->n_biased ? d->s.key_bias : NULL;
    set_apart(d, a, g.apart);
    CUDA_TRY(pages_gather(&g, d->stream));
    return PC_OK;
}

static struct CudaFar far_of(const struct Device *d, const struct FarKeys *far)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct CudaFar f = {};
    f.window = far->window;
    f.n = far->n;
    f.q_turn = far->q_turn;
    f.k_turn = far->k_turn;
    f.k = far->k_turn ? d->s.turned_k : NULL;
    f.rope_dim = m->rope_dim;
    f.pairs = m->rope_style == ROPE_PAIRS;
    return f;
}

static int attend_packed(struct Device *d, const struct AttnArgs *a)
{
    struct CudaAttn c = attention_of(d, a);
    TRY(pack_keys(d, a, &c));
    if (a->far) {
        struct CudaFar f = far_of(d, a->far);
        CUDA_TRY(cuda_attention_any(&c, &f, d->stream));
    } else if (!usual_head(c.head_dim) || c.n_biased) {
        CUDA_TRY(cuda_attention_any(&c, NULL, d->stream));
    } else {
        bool hopper = d->capability == 90 && (c.head_dim == 64 || c.head_dim == 128);
        CUDA_TRY(hopper ? cuda_attention_sm90a(&c, d->stream) : cuda_attention_sm80(&c, d->stream));
    }
    if (a->part) CUDA_TRY(part_from_rows(&c, a->part, d->stream));
    return PC_OK;
}

int cuda_attend(struct Device *d, const struct AttnArgs *a)
{
    Range range("attention");
    const struct ModelConfig *m = &d->model->cfg;
    int rows = a->seq_begin[a->n_seqs] * (m->n_heads / m->n_kv_heads);
    bool few = a->n_seqs == 1 && rows <= PAGED_ROWS && !a->far && usual_head(m->head_dim);
    bool votes =
        d->shape.mass_keys && a->seq_begin[1] > 1; /* attn_mass will want the packed keys */
    if (d->step.recording && !(few && a->seq_begin[1] == 1))
        return err_set(PC_EINTERNAL, "a recorded step has one row");
    TRY(check_part(d, a));
    TRY(selects(a) ? select_pages(d, a) : bring_past(d, a));
    return few && !votes ? attend_pages(d, a) : attend_packed(d, a);
}

/* ==== Mass ==== */

static int queue_mass(struct Device *d, const struct AttnArgs *a, int obs_rows)
{
    struct CudaMass m = {};
    m.attn = attention_of(d, a);
    m.obs_rows = obs_rows;
    m.mass = d->s.mass;
    m.stride = d->shape.mass_keys;
    if (a->part) CUDA_TRY(part_lse(a->part, m.attn.n_rows, m.attn.n_heads, d->s.lse, d->stream));
    CUDA_TRY(usual_head(m.attn.head_dim) ? cuda_attn_mass(&m, d->stream)
                                         : cuda_attn_mass_any(&m, d->stream));
    return PC_OK;
}

/* The keys of one row, whose pages were read where they lie; and its lse, which a part has. */
static int pack_row(struct Device *d, const struct AttnArgs *a)
{
    struct CudaAttn c = attention_of(d, a);
    return a->part ? pack_keys(d, a, &c) : attend_packed(d, a);
}

int cuda_mass(struct Device *d, const struct AttnArgs *a, int obs_rows, float *mass, int stride)
{
    Range range("attention mass");
    size_t width = (size_t)d->shape.mass_keys * sizeof(float);
    if (a->seq_begin[a->n_seqs] == 1) TRY(pack_row(d, a));
    TRY(queue_mass(d, a, obs_rows));
    CUDA_TRY(cudaMemcpy2DAsync(mass, (size_t)stride * sizeof(float), d->s.mass, width, width,
                               (size_t)a->n_seqs * d->model->cfg.n_kv_heads, cudaMemcpyDeviceToHost,
                               d->stream));
    TRY(dev_wait(d));
    return PC_OK;
}

int cuda_keep(struct Device *d, const struct AttnArgs *a, const struct KeepArgs *k)
{
    Range range("choose tokens");
    struct CudaSelect s = {};
    if (a->seq_begin[a->n_seqs] == 1) TRY(pack_row(d, a));
    TRY(queue_mass(d, a, k->obs_rows));
    TRY(dev_upload(d, d->s.lens, k->n, (size_t)a->n_seqs * sizeof(int)));
    s.mass = d->s.mass;
    s.stride = d->shape.mass_keys;
    s.first = k->first;
    s.n = d->s.lens;
    s.n_seqs = a->n_seqs;
    s.n_kv_heads = d->model->cfg.n_kv_heads;
    for (int i = 0; i < a->n_seqs; i++)
        if (k->n[i] > s.max_n) s.max_n = k->n[i];
    s.cap = k->cap;
    s.pool = k->pool;
    s.pooled = d->s.pooled;
    s.keep = k->keep;
    s.keep_stride = k->stride;
    s.keep_step = (int64_t)k->step;
    CUDA_TRY(cuda_select(&s, d->stream));
    return PC_OK;
}

/* ==== Pages ==== */

static int upload_writes(struct Device *d, const struct KvWrite *writes, int n)
{
    void *staged;
    TRY(dev_stage(d, (size_t)n * sizeof(struct DevWrite), &staged));
    struct DevWrite *out = (struct DevWrite *)staged;
    for (int i = 0; i < n; i++) {
        const struct KvWrite *w = &writes[i];
        out[i] = {(const bf16 *)w->k,
                  (const bf16 *)w->v,
                  w->index,
                  w->row0,
                  w->kv_head,
                  w->first,
                  w->n,
                  w->page.page,
                  w->at};
    }
    CUDA_TRY(cudaMemcpyAsync(d->s.writes, staged, (size_t)n * sizeof(struct DevWrite),
                             cudaMemcpyHostToDevice, d->stream));
    return PC_OK;
}

int cuda_kv_write(struct Device *d, const struct PagePool *pool, const struct KvWrite *writes,
                  int n)
{
    Range range("write pages");
    struct PagesArgs p = pages_of(d, pool);
    if (d->step.recording) {
        d->step.noted += n; /* the attention before did it */
        return PC_OK;
    }
    const int run = at_once(pool, 1, WRITES);
    for (int at = 0; at < n; at += run) {
        int m = n - at < run ? n - at : run;
        TRY(bring_written(d, pool, writes + at, m));
        TRY(upload_writes(d, writes + at, m));
        CUDA_TRY(pages_write(&p, d->s.writes, m, d->stream));
        TRY(keep_written(d, pool, writes + at, m));
    }
    return PC_OK;
}

int cuda_kv_pack(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                 const uint32_t *to, int n)
{
    Range range("pack pages");
    struct PagesArgs p = pages_of(d, pool);
    uint32_t *list = (uint32_t *)d->s.writes;
    const int half = (int)(WRITES * sizeof(struct DevWrite) / sizeof *list) / 2,
              run = at_once(pool, 2, half);
    for (int at = 0; at < n; at += run) {
        int m = n - at < run ? n - at : run;
        TRY(bring_slots(d, pool, from + at, to + at, m));
        TRY(dev_upload(d, list, from + at, (size_t)m * sizeof *list));
        TRY(dev_upload(d, list + half, to + at, (size_t)m * sizeof *list));
        CUDA_TRY(pages_pack(&p, list, list + half, m, d->stream));
        TRY(keep_slots(d, pool, to + at, m));
    }
    return PC_OK;
}

int cuda_kv_gather(struct Device *d, const struct PagePool *pool, const struct KvGather *list,
                   int n)
{
    Range range("gather pages");
    static_assert(sizeof(struct KvGather) == sizeof(struct DevGather), "a list as it is");
    struct PagesArgs p = pages_of(d, pool);
    struct DevGather *there = (struct DevGather *)d->s.writes;
    const int run = at_once(pool, 2, (int)(WRITES * sizeof(struct DevWrite) / sizeof *there));
    for (int at = 0; at < n; at += run) {
        int m = n - at < run ? n - at : run;
        TRY(bring_gathered(d, pool, list + at, m));
        TRY(dev_upload(d, there, list + at, (size_t)m * sizeof *there));
        CUDA_TRY(pages_take(&p, there, m, d->stream));
        TRY(keep_gathered(d, pool, list + at, m));
    }
    return PC_OK;
}

static int read_bf16(struct Device *d, const uint8_t *page, int at, int part, float *out)
{
    enum { MOST = 256 };
    int dim = d->model->cfg.head_dim;
    bf16 row[MOST];
    size_t first = ((size_t)part * PAGE_TOKENS + at) * dim;
    TRY(dev_download(d, row, (const bf16 *)page + first, (size_t)dim * sizeof *row));
    for (int i = 0; i < dim; i++) out[i] = __bfloat162float(row[i]);
    return PC_OK;
}

/* See codes.cuh for where they lie. */
static int read_codes(struct Device *d, const uint8_t *page, int at, int part, float *out)
{
    enum { MOST = 256 };
    int dim = d->model->cfg.head_dim, wide = d->format == CUDA_PAGE_Q8,
        row = part * PAGE_TOKENS + at;
    size_t bytes = (size_t)dim / (wide ? 1 : 2);
    uint8_t code[MOST];
    uint16_t grid[2];
    TRY(dev_download(d, code, page + row * bytes, bytes));
    TRY(dev_download(d, grid, page + 2 * PAGE_TOKENS * bytes + row * sizeof grid, sizeof grid));
    for (int i = 0; i < dim; i++) {
        int nibble = i % 8 / 2 + i % 2 * 4;
        int c = wide ? code[i] : code[i / 8 * 4 + nibble / 2] >> nibble % 2 * 4 & 15;
        out[i] = f16_to_f32(grid[1]) + f16_to_f32(grid[0]) * (float)c;
    }
    return PC_OK;
}

int cuda_kv_read(struct Device *d, const struct PagePool *pool, struct PageRef ref, int at,
                 float *k, float *v)
{
    struct CudaBelow below = tier_below(pool);
    struct TierFile *file = page_is_below(pool, ref.page) ? tier_file(pool) : NULL;
    TRY(bring_refs(d, pool, &ref, 1));
    below.frame = NULL;
    const uint8_t *page = file ? file_page(file, ref.page - pool->n_near)
                               : cuda_page(pool->data, below, ref.page, pool->page_bytes);
    auto read = d->format == CUDA_PAGE_BF16 ? read_bf16 : read_codes;
    TRY(read(d, page, at, 0, k));
    return read(d, page, at, 1, v);
}

/* ==== The index of pages ==== */

size_t cuda_index_bytes(const struct Device *d, enum PageIndex index)
{
    size_t vectors = index == PAGE_INDEX_BOUND ? 2 : 1;
    return vectors * (size_t)d->model->cfg.head_dim * sizeof(bf16);
}

int cuda_kv_index(struct Device *d, const struct PagePool *pool, enum PageIndex index,
                  const struct PageRef *refs, int n)
{
    Range range("index pages");
    static_assert(sizeof(struct PageRef) == sizeof(struct CudaPageRef), "a table as it is");
    struct PagesArgs p = pages_of(d, pool);
    struct CudaPageRef *list = (struct CudaPageRef *)d->s.writes;
    const int run = at_once(pool, 1, (int)(WRITES * sizeof(struct DevWrite) / sizeof *list));
    for (int at = 0; at < n; at += run) {
        int m = n - at < run ? n - at : run;
        TRY(bring_refs(d, pool, refs + at, m));
        TRY(dev_upload(d, list, refs + at, (size_t)m * sizeof *list));
        CUDA_TRY(pages_index(&p, list, m, index == PAGE_INDEX_BOUND, pool->index, pool->index_bytes,
                             d->stream));
    }
    return PC_OK;
}

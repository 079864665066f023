/* batch.cu - scratch for the largest batch, and what every batch tells the device before its first layer. */
#include "device.h"
#include "seen.cuh"

#include <string.h>

/* ==== Scratch ==== */

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Room for the largest weight as bf16, when some are kept in blocks; twice, for gate and up together. */
static size_t wide_weight(const struct Device *d)
{
    size_t most = 0;
    for (int i = 0; i < d->n_weights; i++) {
        const struct DevWeight *w = &d->weights[i];
        if (w->type != DT_BF16 && !w->wide && !w->fp8)
            most = max_size(most, (size_t)w->rows * w->cols);
    }
    return 2 * most * sizeof(bf16);
}

/* Whether a batch of this shape may need its keys packed. */
static bool packs(const struct Device *d, const struct BatchShape *b)
{
    const struct ModelConfig *m = &d->model->cfg;
    return b->mass_keys || b->seqs > 1 || b->far || !usual_head(m->head_dim) ||
           b->rows * (m->n_heads / m->n_kv_heads) > PAGED_ROWS;
}

static int packed_keys(const struct BatchShape *b)
{
    return (b->keys / CUDA_KEY_TILE + 1) * CUDA_KEY_TILE;
}

static void cut_rows(struct Cut *c, const struct Device *d, const struct BatchShape *b,
                     struct Scratch *s)
{
    enum { FFN_ROWS = 8192 };
    const struct ModelConfig *m = &d->model->cfg;
    size_t rows = (size_t)b->rows, picked = max_size(rows, (size_t)b->head_rows);
    s->ffn_rows = min_int(b->rows, FFN_ROWS);
    s->tokens = (int *)cut(c, rows * sizeof(int));
    s->pos = (int *)cut(c, rows * sizeof(int));
    s->seq_begin = (int *)cut(c, ((size_t)b->seqs + 1) * sizeof(int));
    s->rows = (int *)cut(c, 2 * picked * sizeof(int));
    s->angles = (float *)cut(c, rows * m->rope_dim * sizeof(float));
    s->normed = (bf16 *)cut(c, picked * m->dim * sizeof(bf16));
    s->wide_bytes = (size_t)s->ffn_rows * 2 * m->hidden_dim * sizeof(bf16);
    s->wide = (bf16 *)cut(c, s->wide_bytes);
    s->act = (bf16 *)cut(c, (size_t)s->ffn_rows * m->hidden_dim * sizeof(bf16));
    s->weight = (bf16 *)cut(c, wide_weight(d));
    size_t cols =
        max_size(max_size((size_t)m->dim, (size_t)m->n_heads * m->head_dim), (size_t)m->hidden_dim);
    s->fp8 = cut(c, d->fp8 ? rows * cols : 0);
    s->fp8_scale = (float *)cut(c, d->fp8 ? rows * sizeof(float) : 0);
    s->logits =
        (float *)cut(c, max_size((size_t)b->head_rows, 1) * (size_t)m->vocab_size * sizeof(float));
    s->nll = (float *)cut(c, rows * sizeof(float));
}

static void cut_chosen(struct Cut *c, const struct Device *d, const struct BatchShape *b,
                       struct Scratch *s)
{
    struct DevChosen *t = &s->chosen;
    size_t heads = b->selects ? (size_t)d->model->cfg.n_kv_heads : 0,
           refs = heads * (size_t)s->table.stride;
    t->refs = (struct CudaPageRef *)cut(c, refs * sizeof *t->refs);
    t->score = (float *)cut(c, refs * sizeof *t->score);
    t->n_refs = (int *)cut(c, heads * sizeof(int));
    t->n_tokens = (int *)cut(c, heads * sizeof(int));
    t->tickets = (int *)cut(c, heads * sizeof(int));
    t->counts = (unsigned long long *)cut(c, b->selects ? 2 * sizeof *t->counts : 0);
    size_t layers = b->keeps_pages ? (size_t)d->model->cfg.n_layers : 1;
    t->idx = (int *)cut(c, layers * refs * sizeof *t->idx);
    t->kept = (struct CudaChoice *)cut(c, layers * heads * sizeof *t->kept);
    t->n_blocks = cuda_select_blocks((int)heads, s->table.stride, d->n_sm);
}

static void cut_attention(struct Cut *c, const struct Device *d, const struct BatchShape *b,
                          struct Scratch *s)
{
    const struct ModelConfig *m = &d->model->cfg;
    int group = m->n_heads / m->n_kv_heads, few = min_int(b->rows, PAGED_ROWS / group);
    size_t seqs = (size_t)b->seqs, kv_heads = (size_t)m->n_kv_heads,
           heads = (size_t)m->n_layers * kv_heads;
    size_t keys = packs(d, b) ? (size_t)packed_keys(b) : 0;
    size_t packed = seqs * kv_heads * keys * m->head_dim * sizeof(bf16);
    s->k = (bf16 *)cut(c, packed);
    s->v = (bf16 *)cut(c, packed);
    s->key_bias = (float *)cut(c, kv_heads * keys * sizeof(float));
    s->turned_k = (bf16 *)cut(c, b->turned_keys ? packed : 0);
    s->lse = (float *)cut(c, b->mass_keys || b->parts ? sizeof(float) * b->rows * m->n_heads : 0);
    s->mass = (float *)cut(c, seqs * kv_heads * b->mass_keys * sizeof(float));
    s->pooled = (float *)cut(c, seqs * kv_heads * b->mass_keys * sizeof(float));
    s->lens = (int *)cut(c, seqs * sizeof(int));
    size_t refs = (size_t)b->keys / CUDA_PAGE_TOKENS + 8;
    s->n_splits = cuda_paged_splits(d->format, m->head_dim, m->n_kv_heads, (int)refs, d->n_sm);
    s->part_bytes = cuda_paged_scratch(few ? few : 1, m->n_heads, m->head_dim, s->n_splits);
    s->part = (float *)cut(c, s->part_bytes);
    s->table.stride = (int)refs;
    size_t pasts = max_size((size_t)b->pasts, 1);
    s->table.pasts = (int)pasts;
    s->table.refs = (struct CudaPageRef *)cut(c, pasts * refs * heads * sizeof *s->table.refs);
    s->table.n_refs = (int *)cut(c, pasts * heads * sizeof(int));
    s->table.n_tokens = (int *)cut(c, pasts * heads * sizeof(int));
    s->table.seen = (struct CudaSeen *)cut(c, heads * sizeof *s->table.seen);
    s->masks.window = (int *)cut(c, heads * group * sizeof(int));
    s->writes = (struct DevWrite *)cut(c, WRITES * sizeof *s->writes);
    s->slots = (struct CudaPageSlot *)cut(c, heads * sizeof *s->slots);
    s->best = (unsigned long long *)cut(c, 2 * sizeof *s->best);
    cut_chosen(c, d, b, s);
}

static size_t cut_scratch(const struct Device *d, const struct BatchShape *b, uint8_t *base,
                          struct Scratch *s)
{
    struct Cut c = {base, 0};
    cut_rows(&c, d, b, s);
    cut_attention(&c, d, b, s);
    return c.at;
}

size_t cuda_scratch_bytes(const struct Device *d, const struct BatchShape *shape)
{
    struct Scratch unused;
    return cut_scratch(d, shape, NULL, &unused);
}

int cuda_reserve(struct Device *d, const struct BatchShape *shape)
{
    size_t bytes = cuda_scratch_bytes(d, shape);
    TRY(dev_wait(d));
    step_forget(d);
    if (bytes > d->block_bytes) {
        dev_free(d, d->block);
        d->block_bytes = 0;
        d->block = dev_alloc(d, bytes);
        if (!d->block) return PC_ENOMEM;
        d->block_bytes = bytes;
    }
    dev_count(d, d->block,
              bytes); /* a larger block from an earlier run stays, but is not this run's */
    cut_scratch(d, shape, (uint8_t *)d->block, &d->s);
    d->shape = *shape;
    /* the partial results hold counters that begin and end at zero */
    CUDA_TRY(cudaMemsetAsync(d->s.part, 0, d->s.part_bytes, d->stream));
    CUDA_TRY(cudaMemsetAsync(d->s.best, 0, 2 * sizeof *d->s.best, d->stream));
    if (!shape->selects) return PC_OK;
    struct DevChosen *t = &d->s.chosen;
    CUDA_TRY(
        cudaMemsetAsync(t->tickets, 0, (size_t)d->model->cfg.n_kv_heads * sizeof(int), d->stream));
    CUDA_TRY(cudaMemsetAsync(t->counts, 0, 2 * sizeof *t->counts, d->stream));
    size_t layers = shape->keeps_pages ? (size_t)d->model->cfg.n_layers : 1;
    CUDA_TRY(cudaMemsetAsync(
        t->kept, 0, layers * (size_t)d->model->cfg.n_kv_heads * sizeof *t->kept, d->stream));
    return PC_OK;
}

/* ==== Masks ==== */

/* The window of a query head, of those of all layers; one that holds all keys that there can be hides nothing. */
static int window_of(const struct Device *d, const struct HeadMasks *masks, size_t head)
{
    return masks->window[head] >= d->shape.keys ? 0 : masks->window[head];
}

static int upload_masks(struct Device *d, const struct HeadMasks *masks)
{
    const struct ModelConfig *m = &d->model->cfg;
    size_t n = (size_t)m->n_layers * m->n_heads;
    void *staged;
    TRY(dev_stage(d, n * sizeof(int), &staged));
    for (size_t h = 0; h < n; h++) ((int *)staged)[h] = window_of(d, masks, h);
    d->s.masks.sinks = masks->sinks;
    CUDA_TRY(cudaMemcpyAsync(d->s.masks.window, staged, n * sizeof(int), cudaMemcpyHostToDevice,
                             d->stream));
    return PC_OK;
}

/* ==== A batch begins ==== */

static size_t all_heads(const struct Device *d)
{
    return (size_t)d->model->cfg.n_layers * d->model->cfg.n_kv_heads;
}

/* The first columns of all heads' page tables, at a stride that the shape fixes: past number `at` of the batch. */
static int upload_refs(struct Device *d, const struct HeadTable *past, int at, int columns)
{
    struct DevTable *t = &d->s.table;
    struct CudaPageRef *refs = t->refs + (size_t)at * all_heads(d) * t->stride;
    size_t heads = all_heads(d), size = sizeof *t->refs;
    size_t row = (size_t)columns * size, rows = columns ? d->ring.size / 2 / row : heads;
    for (size_t h0 = 0; h0 < heads && columns; h0 += rows) {
        size_t n = heads - h0 < rows ? heads - h0 : rows;
        void *staged;
        TRY(dev_stage(d, n * row, &staged));
        for (size_t h = 0; h < n; h++)
            memcpy((uint8_t *)staged + h * row, past->refs + (h0 + h) * (size_t)past->stride,
                   (size_t)min_int(past->n_refs[h0 + h], columns) * size);
        CUDA_TRY(cudaMemcpy2DAsync(refs + h0 * t->stride, (size_t)t->stride * size, staged, row,
                                   row, n, cudaMemcpyHostToDevice, d->stream));
    }
    return PC_OK;
}

/* The widest window of a KV head of the past, as the device has windows. */
static int widest(const struct Device *d, const struct HeadMasks *masks, size_t head)
{
    int group = d->model->cfg.n_heads / d->model->cfg.n_kv_heads, most = 0;
    for (int i = 0; i < group; i++) {
        int window = window_of(d, masks, head * group + i);
        if (window == 0) return 0;
        if (window > most) most = window;
    }
    return most;
}

/* What rows see of each head's pages. */
static int upload_seen(struct Device *d, const struct HeadTable *past,
                       const struct HeadMasks *masks)
{
    size_t heads = all_heads(d);
    void *staged;
    TRY(dev_stage(d, heads * sizeof(struct CudaSeen), &staged));
    for (size_t h = 0; h < heads; h++) {
        struct CudaSeen s = {widest(d, masks, h), 0, 0, 0};
        const struct PageRef *refs = past->refs + h * (size_t)past->stride;
        ((struct CudaSeen *)staged)[h] = pages_seen(
            s, (const struct CudaPageRef *)refs, past->n_refs[h], past->n_tokens[h], masks->sinks);
    }
    CUDA_TRY(cudaMemcpyAsync(d->s.table.seen, staged, heads * sizeof(struct CudaSeen),
                             cudaMemcpyHostToDevice, d->stream));
    return PC_OK;
}

/* The past, of the refs the first `columns` of each head. */
static int upload_past(struct Device *d, const struct Batch *b, int columns)
{
    const struct HeadTable *past = b->past;
    struct DevTable *t = &d->s.table;
    size_t bytes = all_heads(d) * sizeof(int);
    TRY(upload_refs(d, past, 0, columns));
    TRY(dev_upload(d, t->n_refs, past->n_refs, bytes));
    TRY(dev_upload(d, t->n_tokens, past->n_tokens, bytes));
    memcpy(d->step.told, past->n_tokens, bytes);
    d->step.n_since = 0;
    return b->masks ? upload_seen(d, past, b->masks) : PC_OK;
}

static int no_past(struct Device *d)
{
    struct DevTable *t = &d->s.table;
    size_t heads = all_heads(d);
    t->biased = false;
    CUDA_TRY(cudaMemsetAsync(t->n_refs, 0, heads * sizeof(int), d->stream));
    CUDA_TRY(cudaMemsetAsync(t->n_tokens, 0, heads * sizeof(int), d->stream));
    CUDA_TRY(cudaMemsetAsync(t->seen, 0, heads * sizeof *t->seen, d->stream));
    return PC_OK;
}

/* As many columns as the head with most pages has. */
static int columns_of(const struct Device *d, const struct HeadTable *past, int *out)
{
    *out = 0;
    for (size_t h = 0; h < all_heads(d); h++)
        if (past->n_refs[h] > *out) *out = past->n_refs[h];
    if (*out <= d->s.table.stride) return PC_OK;
    return err_set(PC_EINTERNAL, "page table of %d pages a head in room for %d", *out,
                   d->s.table.stride);
}

/* A past of each sequence, one table behind the other. */
static int upload_pasts(struct Device *d, const struct Batch *b)
{
    struct DevTable *t = &d->s.table;
    size_t heads = all_heads(d), bytes = heads * sizeof(int);
    if (b->n_seqs > t->pasts)
        return err_set(PC_EINTERNAL, "%d pasts in room for %d", b->n_seqs, t->pasts);
    for (int i = 0; i < b->n_seqs; i++) {
        int columns;
        TRY(columns_of(d, &b->past[i], &columns));
        TRY(upload_refs(d, &b->past[i], i, columns));
        TRY(dev_upload(d, t->n_refs + (size_t)i * heads, b->past[i].n_refs, bytes));
        TRY(dev_upload(d, t->n_tokens + (size_t)i * heads, b->past[i].n_tokens, bytes));
    }
    return PC_OK;
}

/* The page tables of the past. */
static int upload_table(struct Device *d, const struct Batch *b)
{
    const struct HeadTable *past = b->past;
    struct DevTable *t = &d->s.table;
    int columns;
    if (!past) return no_past(d);
    t->biased = false;
    if (b->own_pasts && b->n_seqs > 1) return upload_pasts(d, b);
    for (size_t h = 0; h < all_heads(d); h++)
        for (int i = 0; i < past->n_refs[h]; i++)
            t->biased |= past->refs[h * (size_t)past->stride + i].bias != 0;
    TRY(columns_of(d, past, &columns));
    return upload_past(d, b, columns);
}

struct BeginArgs begin_args(struct Device *d)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct BeginArgs a = {};
    a.table = d->embd;
    a.tokens = d->s.tokens;
    a.pos = d->s.pos;
    a.inv_freq = d->inv_freq;
    a.x = d->x;
    a.angles = d->s.angles;
    a.n_rows = 1;
    a.dim = m->dim;
    a.rope_dim = m->rope_dim;
    a.scale = d->rope_scale;
    return a;
}

/* The step after a replayed one: the device has what the host would tell it, but for the token, its position, and the heads
 * that have lost tokens. Those are short beside what the others may have, and lose a page at the same time, so that as many
 * columns of all heads are told again, which is one copy. */
static int begin_next(struct Device *d, const struct Batch *b)
{
    const struct HeadTable *past = b->past;
    bool lost = false;
    int columns = 0;
    for (int h = 0; h < past->n_heads; h++) {
        if (past->n_refs[h] >= d->s.table.stride)
            return err_set(PC_EINTERNAL, "no room for another page behind %d", past->n_refs[h]);
        if (past->n_tokens[h] == d->step.told[h] + d->step.n_since) continue;
        lost = true;
        if (past->n_refs[h] > columns) columns = past->n_refs[h];
    }
    return lost ? upload_past(d, b, columns) : PC_OK;
}

int cuda_begin(struct Device *d, const struct Batch *b, const struct Rope *rope, float *x)
{
    Range range("batch begins");
    int n = b->seq_begin[b->n_seqs], half = d->model->cfg.rope_dim / 2;
    if (n > d->shape.rows || b->n_seqs > d->shape.seqs)
        return err_set(PC_EINTERNAL, "batch of %d rows, %d sequences in room for %d, %d", n,
                       b->n_seqs, d->shape.rows, d->shape.seqs);
    d->max_seq_rows = 0;
    for (int i = 0; i < b->n_seqs; i++)
        if (b->seq_begin[i + 1] - b->seq_begin[i] > d->max_seq_rows)
            d->max_seq_rows = b->seq_begin[i + 1] - b->seq_begin[i];
    d->step.host->token = b->tokens[0];
    d->step.host->pos = b->pos[0];
    d->step.kind = b->select_kept ? tier_kept(b->pool) : STEP_CHOOSES;
    TRY(tier_join(d));
    if (b->follows && d->step.grown) return begin_next(d, b);
    d->step.grown = false;
    d->x = x;
    d->rope_scale = rope->scale;
    TRY(dev_upload(d, d->s.tokens, b->tokens, (size_t)n * sizeof(int)));
    TRY(dev_upload(d, d->s.pos, b->pos, (size_t)n * sizeof(int)));
    TRY(dev_upload(d, d->s.seq_begin, b->seq_begin, ((size_t)b->n_seqs + 1) * sizeof(int)));
    TRY(dev_upload(d, d->inv_freq, rope->inv_freq, (size_t)half * sizeof(float)));
    struct BeginArgs args = begin_args(d);
    args.n_rows = n;
    CUDA_TRY(rows_begin(&args, d->stream));
    d->s.masks.on = b->masks;
    if (b->masks) TRY(upload_masks(d, b->masks));
    return upload_table(d, b);
}

/* The device reads the numbers where they are staged: a session asks for turns before it has reserved scratch. */
int cuda_turns(struct Device *d, const struct Rope *rope, const int *by, int n, float *out)
{
    enum { ROWS = 65536 };
    int half = d->model->cfg.rope_dim / 2;
    TRY(dev_upload(d, d->inv_freq, rope->inv_freq, (size_t)half * sizeof(float)));
    for (int at = 0; at < n; at += ROWS) {
        void *staged;
        int rows = min_int(n - at, ROWS);
        TRY(dev_stage(d, (size_t)rows * sizeof(int), &staged));
        memcpy(staged, by + at, (size_t)rows * sizeof(int));
        CUDA_TRY(rows_angles(d->inv_freq, (const int *)staged, rows, half,
                             out + (size_t)at * 2 * half, d->stream));
    }
    return PC_OK;
}

/* ==== Rows ==== */

/* In runs that fit the scratch: a run's rows come from behind all that was written before. */
int cuda_compact(struct Device *d, void *x, size_t row_bytes, const int *idx, int n)
{
    Range range("compact rows");
    int run = (int)(d->s.wide_bytes / row_bytes);
    TRY(dev_upload(d, d->s.rows, idx, (size_t)n * sizeof(int)));
    for (int at = 0; at < n; at += run) {
        int rows = min_int(n - at, run);
        CUDA_TRY(rows_gather(x, row_bytes, d->s.rows + at, rows, d->s.wide, d->stream));
        CUDA_TRY(cudaMemcpyAsync((uint8_t *)x + (size_t)at * row_bytes, d->s.wide,
                                 (size_t)rows * row_bytes, cudaMemcpyDeviceToDevice, d->stream));
    }
    return PC_OK;
}

int cuda_copy(struct Device *d, void *dst, const void *src, size_t bytes)
{
    Range range("copy rows");
    CUDA_TRY(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, d->stream));
    return PC_OK;
}

struct CudaTurn turn_of(struct Device *d, const struct RopeArgs *a)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct CudaTurn t = {};
    t.angles = d->s.angles;
    t.q_norm = dev_vector(d, a->q_norm);
    t.k_norm = dev_vector(d, a->k_norm);
    t.k_slow = dev_slow(d, a->k_bias);
    /* far keys are turned once more, and would no longer be shifted alike */
    t.centred = !d->shape.far;
    t.rope_dim = m->rope_dim;
    t.pairs = m->rope_style == ROPE_PAIRS;
    t.eps = m->norm_eps;
    t.even = d->format != CUDA_PAGE_BF16 && !d->shape.far;
    t.balance = t.even ? dev_balance(d, a->k_bias) : NULL;
    return t;
}

/* In a recorded step the attention that follows does it. */
int cuda_rope(struct Device *d, const struct RopeArgs *a)
{
    Range range("rotation");
    const struct ModelConfig *m = &d->model->cfg;
    struct HeadsArgs h = {};
    d->step.rope = *a;
    if (d->step.recording) return PC_OK;
    h.turn = turn_of(d, a);
    h.n_rows = a->n_rows;
    h.head_dim = m->head_dim;
    h.x = (bf16 *)a->q;
    h.n_heads = m->n_heads;
    h.norm = h.turn.q_norm;
    h.queries = true;
    h.group = m->n_heads / m->n_kv_heads;
    CUDA_TRY(rows_rope(&h, d->stream));
    h.x = (bf16 *)a->k;
    h.n_heads = m->n_kv_heads;
    h.norm = h.turn.k_norm;
    h.queries = false;
    h.group = 1;
    h.slow = h.turn.k_slow;
    CUDA_TRY(rows_rope(&h, d->stream));
    return PC_OK;
}

/* cpu.c - the CPU backend: lifecycle, scratch and the linear operations.
 *
 * Work is cut into tiles handed to OpenMP threads; every output is written by one tile in a fixed
 * order of sums, so results do not depend on the number of threads. A single row (decode)
 * goes through matrix-vector kernels on the file's own blocks.
 */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Lifecycle ==== */

static const struct Kernels *kernels_for(const char *isa)
{
    static const struct Kernels *const tables[] = {&kernels_avx512vnni, &kernels_avx512,
                                                   &kernels_avx2};
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    bool can[] = {avx512 && __builtin_cpu_supports("avx512vnni"), avx512,
                  __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")};
    for (int i = 0; i < 3; i++)
        if (can[i] && (!strcmp(isa, "auto") || !strcmp(isa, tables[i]->isa))) return tables[i];
    return NULL;
}

static bool cpu_available(void)
{
    return true;
}

static enum PageFormat format_of(const struct DeviceOptions *o)
{
    if (o->kv_type == KV_AUTO) return o->precision == PRECISION_F32 ? PAGE_F32 : PAGE_F16;
    return o->kv_type == KV_Q8 ? PAGE_Q8 : PAGE_Q4;
}

static bool has_codes(const struct Device *d)
{
    return d->format == PAGE_Q8 || d->format == PAGE_Q4;
}

/* A bias that is normed along with the keys is no part that they share. */
static bool has_key_bias(const struct Layer *l)
{
    return l->bk && !l->k_norm;
}

static int open_balance(struct Device *d)
{
    const struct ModelConfig *m = &d->model->cfg;
    size_t width = (size_t)m->n_kv_heads * m->head_dim, n = width * (size_t)m->n_layers;
    if (!has_codes(d)) return PC_OK;
    d->balance = mem_alloc(n, sizeof *d->balance);
    if (!d->balance) return PC_ENOMEM;
    for (size_t i = 0; i < n; i++) d->balance[i] = 1;
    for (int l = 0; d->model->layers && l < m->n_layers; l++)
        if (has_key_bias(&d->model->layers[l]))
            key_balance(m, &d->model->layers[l], d->balance + width * (size_t)l);
    return PC_OK;
}

static void cpu_close(struct Device *d)
{
    if (!d) return;
    mem_free(d->block);
    mem_free(d->balance);
    mem_free(d);
}

static int cpu_open(const struct DeviceOptions *o, struct Device **out)
{
    if (o->precision != PRECISION_AUTO && o->precision != PRECISION_INT16 &&
        o->precision != PRECISION_F32)
        return err_set(PC_ECONFIG,
                       "the cpu backend computes in int16 or f32; use --precision auto");
    const struct Kernels *kern = kernels_for(o->isa);
    if (!kern)
        return err_set(
            PC_EDEVICE,
            "this CPU cannot run instruction set '%s' (avx2 with fma is the least); try --isa auto",
            o->isa);
    struct Device *d = mem_alloc(1, sizeof *d);
    if (!d) return PC_ENOMEM;
    d->kern = kern;
    d->model = o->model;
    d->exact = o->precision == PRECISION_F32;
    d->format = format_of(o);
    d->threads = o->threads > 0 ? o->threads : omp_get_num_procs();
    snprintf(d->text, sizeof d->text, "cpu %s %s, %d thread%s", kern->isa,
             d->exact ? "f32" : "int16", d->threads, d->threads == 1 ? "" : "s");
    int status = open_balance(d);
    if (status < 0)
        cpu_close(d);
    else
        *out = d;
    return status;
}

static const char *cpu_describe(const struct Device *d)
{
    return d->text;
}

static void cpu_limits(const struct Device *d, struct DeviceLimits *out)
{
    enum { ROWS_A_THREAD = 2048, SEGMENT_ROWS = 2048 }; /* enough to hide packing the weights */
    *out = (struct DeviceLimits){.memory = mem_available(),
                                 .own_pasts = true,
                                 .keeps_pages = true,
                                 .wave_rows = ROWS_A_THREAD * d->threads,
                                 .segment_rows = SEGMENT_ROWS,
                                 .below = "disk"};
}

static size_t cpu_peak(struct Device *d, bool reset)
{
    (void)d;
    if (reset) mem_peak_reset();
    return mem_peak();
}

static size_t cpu_page_bytes(const struct Device *d)
{
    return page_bytes(d->format, d->model->cfg.head_dim);
}

static const char *cpu_page_format(const struct Device *d)
{
    return d->exact ? "cpu f32" : "cpu f16, int16";
}

/* ==== Scratch ==== */

struct Cut {
    uint8_t *base; /* NULL: only measure */
    size_t at;
};

static void *cut(struct Cut *c, size_t bytes)
{
    void *p = c->base ? c->base + c->at : NULL;
    c->at += (bytes + 63) & ~(size_t)63;
    return p;
}

static struct Act cut_act(struct Cut *c, bool exact, int rows, int cols, int group)
{
    struct Act a = {
        .exact = exact, .cols = cols, .n_blocks = (cols + QBLOCK - 1) / QBLOCK, .group = group};
    size_t values = act_at(&a, (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS, 0);
    a.v = cut(c, values * QBLOCK * (exact ? sizeof(float) : sizeof(int16_t)));
    a.scale = cut(c, exact ? 0 : values * sizeof(float));
    return a;
}

/* Pages may be part full where a chunk or the question ends, which the shape's keys count as whole pages. */
static void cut_selection(struct Cut *c, const struct BatchShape *s, const struct ModelConfig *m,
                          struct Selection *out)
{
    enum { SPARE = 8 };
    size_t n_kv_heads = (size_t)m->n_kv_heads, heads = n_kv_heads * (size_t)m->n_layers;
    out->stride = s->selects ? (s->keys + PAGE_TOKENS - 1) / PAGE_TOKENS + SPARE : 0;
    size_t n = n_kv_heads * (size_t)out->stride;
    out->refs = cut(c, n * sizeof *out->refs);
    out->n_refs = cut(c, s->selects ? n_kv_heads * sizeof *out->n_refs : 0);
    out->score = cut(c, n * sizeof *out->score);
    out->len = cut(c, n * sizeof *out->len);
    out->idx = cut(c, n * sizeof *out->idx);
    out->work.log = cut(c, n * sizeof *out->work.log);
    out->work.share = cut(c, n * sizeof *out->work.share);
    out->keeps = s->keeps_pages;
    out->kept = cut(c, out->keeps ? heads * sizeof *out->kept : 0);
    out->kept_idx = cut(c, out->keeps ? heads * (size_t)out->stride * sizeof *out->kept_idx : 0);
}

static size_t cut_scratch(struct Device *d, const struct BatchShape *s, uint8_t *base)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct Cut c = {base, 0};
    int wide = max_int(m->dim, m->n_heads * m->head_dim), widest = max_int(wide, m->hidden_dim);
    size_t k_scales, block = d->kern->kv_pack_bytes(m->head_dim, d->exact, &k_scales);
    size_t heads = (size_t)s->seqs * m->n_kv_heads,
           key_blocks = ((size_t)s->keys + QBLOCK - 1) / QBLOCK;
    size_t splits = key_blocks / DECODE_SPLIT + 2 * m->n_kv_heads + 2;
    size_t attn = d->kern->attn_scratch_bytes(m->head_dim, s->mass_keys, d->exact);
    size_t panel = d->kern->panel_bytes(widest, d->exact);

    d->act = cut_act(&c, d->exact, max_int(s->rows, s->head_rows), wide, GROUP_BLOCKS);
    d->act_ffn = cut_act(&c, d->exact, s->rows, m->hidden_dim, 1); /* written a block at a time */
    d->angles = cut(&c, sizeof(float) * (size_t)s->rows * m->rope_dim);
    /* also a page, a block gathered from pages, and a normed row */
    size_t least = page_bytes(PAGE_F32, m->head_dim) + sizeof(float) * (size_t)widest;
    d->thread_bytes = (((attn > panel ? attn : panel) + least) + 4095) & ~(size_t)4095;
    d->thread_scratch = cut(&c, d->thread_bytes * d->threads);
    d->rows = cut(&c, sizeof(float) * 2 * (size_t)widest);
    d->prep = cut(&c, d->kern->matvec_prep_bytes(widest));
    d->pack_blocks = (int)key_blocks;
    bool many = s->rows > FEW_ROWS || s->mass_keys || s->far;
    size_t turned = heads * (((size_t)s->turned_keys + QBLOCK - 1) / QBLOCK);
    d->pack.k = cut(&c, many ? heads * key_blocks * block : 0);
    d->pack.v = cut(&c, many ? heads * key_blocks * block : 0);
    d->pack.k_scale = cut(&c, many ? heads * key_blocks * k_scales * sizeof(float) : 0);
    d->pack.v_scale = cut(&c, many ? heads * key_blocks * k_scales * sizeof(float) : 0);
    d->pack.tail_v = cut(&c, many ? heads * block : 0);
    d->pack.tail_scale = cut(&c, many ? heads * k_scales * sizeof(float) : 0);
    d->key_bias = cut(&c, many ? sizeof(float) * m->n_kv_heads * key_blocks * QBLOCK : 0);
    d->turned_blocks = (s->turned_keys + QBLOCK - 1) / QBLOCK;
    d->turned_k = cut(&c, turned * block);
    d->turned_k_scale = cut(&c, turned * k_scales * sizeof(float));
    d->head_out = cut(&c, sizeof(float) * (size_t)max_int(s->head_rows, 1) * m->vocab_size);
    d->part = cut(&c, sizeof(struct Partial) * splits * (size_t)(m->n_heads / m->n_kv_heads) *
                          (size_t)m->n_kv_heads);
    d->part_out = cut(&c, sizeof(float) * splits * (size_t)m->n_heads * m->head_dim);
    cut_selection(&c, s, m, &d->sel);
    return c.at;
}

static size_t cpu_scratch_bytes(const struct Device *d, const struct BatchShape *s)
{
    struct Device probe = *d;
    return cut_scratch(&probe, s, NULL);
}

static int cpu_reserve(struct Device *d, const struct BatchShape *s)
{
    mem_free(d->block);
    d->block = NULL;
    size_t bytes = cpu_scratch_bytes(d, s);
    void *block = mem_alloc(1, bytes);
    if (!block) return PC_ENOMEM;
    d->block = block;
    cut_scratch(d, s, block);
    d->shape = *s;
    d->sel.counts = (struct PageCounts){0, 0};
    if (d->sel.keeps)
        memset(d->sel.kept, 0,
               sizeof *d->sel.kept * (size_t)d->model->cfg.n_layers *
                   (size_t)d->model->cfg.n_kv_heads);
    return PC_OK;
}

static void *cpu_alloc(struct Device *d, size_t bytes)
{
    (void)d;
    return mem_alloc(1, bytes);
}

static void cpu_release(struct Device *d, void *p)
{
    (void)d;
    mem_free(p);
}

static int cpu_copy(struct Device *d, void *dst, const void *src, size_t bytes)
{
    (void)d;
    memcpy(dst, src, bytes);
    return PC_OK;
}

/* ==== Products ==== */

/* The packed-row buffer, as rows of `cols` values. */
static struct Act act_for(const struct Device *d, int cols)
{
    struct Act act = d->act;
    act.cols = cols;
    act.n_blocks = (cols + QBLOCK - 1) / QBLOCK;
    return act;
}

/* Rows of x, normed when `norm` is given, into the device's packed form. */
static void pack_rows(struct Device *d, const float *x, int n_rows, const float *norm,
                      struct Act *act)
{
    int cols = act->cols;
    float eps = d->model->cfg.norm_eps;
#pragma omp parallel for schedule(static) num_threads(d->threads)
    for (int r = 0; r < n_rows; r++) {
        const float *row = x + (size_t)r * cols;
        if (norm) {
            float *tmp = thread_scratch(d, omp_get_thread_num());
            d->kern->rmsnorm(row, norm, cols, eps, tmp);
            row = tmp;
        }
        d->kern->act_pack(row, cols, r, 1, act);
    }
}

/* Panels a task makes together: one, unless the rows are too many bytes to stay in the last-level cache. */
static int panels_together(const struct Device *d, const struct MatmulArgs *m, int panels)
{
    enum { NEAR_BYTES = 8 << 20 };
    size_t bytes =
        (size_t)m->n_rows * m->a->n_blocks * QBLOCK * (d->exact ? sizeof(float) : sizeof(int16_t));
    if (m->mode == MATMUL_SILU || bytes <= NEAR_BYTES) return 1;
    int rounds = (panels + d->threads * PANELS_MAX - 1) / (d->threads * PANELS_MAX),
        tasks = rounds * d->threads;
    return (panels + tasks - 1) / tasks;
}

/* Runs up to three products over (panels, row block) tasks; each packs its weight panels itself, so
 * row blocks are long unless there are too few panels for the threads. */
static void run_products(struct Device *d, struct MatmulArgs *m, int n)
{
    int tasks[3], total = 0, rows = m[0].n_rows;
    for (int i = 0; i < n; i++) {
        int panels = (m[i].w->rows + PANEL_COLS - 1) / PANEL_COLS;
        m[i].n_panels = panels_together(d, &m[i], panels);
        total += tasks[i] = (panels + m[i].n_panels - 1) / m[i].n_panels;
    }
    int want =
        m[0].n_panels > 1 ? (d->threads + total - 1) / total : (4 * d->threads + total - 1) / total;
    int most = rows / (8 * TILE_ROWS), row_blocks = max_int(1, want < most ? want : most);
    int per = ((rows + row_blocks - 1) / row_blocks + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
#pragma omp parallel for schedule(dynamic) num_threads(d->threads)
    for (int t = 0; t < total * row_blocks; t++) {
        int task = t / row_blocks, row0 = t % row_blocks * per, i = 0;
        int row1 = row0 + per < rows ? row0 + per : rows;
        while (task >= tasks[i]) task -= tasks[i++];
        if (row0 < row1)
            d->kern->matmul_tile(&m[i], task * m[i].n_panels, row0, row1,
                                 thread_scratch(d, omp_get_thread_num()));
    }
}

/* y = W x for one row; ops share x. */
static void run_matvecs(struct Device *d, const float *x, int cols, const struct LinearOp *ops,
                        int n)
{
    enum { ROWS = 32 };
    int tasks[3], total = 0;
    for (int i = 0; i < n; i++) total += tasks[i] = (ops[i].w->rows + ROWS - 1) / ROWS;
    d->kern->matvec_prepare(x, cols, d->exact, d->prep);
#pragma omp parallel for schedule(static) num_threads(d->threads)
    for (int t = 0; t < total; t++) {
        int task = t, i = 0;
        while (task >= tasks[i]) task -= tasks[i++];
        int row0 = task * ROWS, left = ops[i].w->rows - row0;
        d->kern->matvec_rows(ops[i].w, row0, left < ROWS ? left : ROWS, d->prep, d->exact,
                             (float *)ops[i].out + row0);
    }
    for (int i = 0; i < n; i++)
        if (ops[i].bias) d->kern->add(ops[i].out, ops[i].bias, ops[i].w->rows);
}

static int cpu_norm_linear(struct Device *d, const float *x, int n_rows, const float *norm,
                           const struct LinearOp *ops, int n_ops)
{
    int cols = ops[0].w->cols;
    if (n_rows <= FEW_ROWS) {
        d->kern->rmsnorm(x, norm, cols, d->model->cfg.norm_eps, d->rows);
        run_matvecs(d, d->rows, cols, ops, n_ops);
        return PC_OK;
    }
    struct Act act = act_for(d, cols);
    pack_rows(d, x, n_rows, norm, &act);
    struct MatmulArgs m[3];
    for (int i = 0; i < n_ops; i++)
        m[i] = (struct MatmulArgs){.a = &act,
                                   .n_rows = n_rows,
                                   .w = ops[i].w,
                                   .bias = ops[i].bias,
                                   .mode = MATMUL_STORE,
                                   .out = ops[i].out,
                                   .ld_out = ops[i].w->rows};
    run_products(d, m, n_ops);
    return PC_OK;
}

static int cpu_linear_add(struct Device *d, const void *a, int n_rows, const struct LinearOp *op)
{
    int cols = op->w->cols;
    if (n_rows <= FEW_ROWS) {
        struct LinearOp tmp = {op->w, op->bias, d->rows};
        run_matvecs(d, a, cols, &tmp, 1);
        d->kern->add(op->out, d->rows, op->w->rows);
        return PC_OK;
    }
    struct Act act = act_for(d, cols);
    pack_rows(d, a, n_rows, NULL, &act);
    struct MatmulArgs m = {.a = &act,
                           .n_rows = n_rows,
                           .w = op->w,
                           .bias = op->bias,
                           .mode = MATMUL_ADD,
                           .out = op->out,
                           .ld_out = op->w->rows};
    run_products(d, &m, 1);
    return PC_OK;
}

static int cpu_ffn_add(struct Device *d, float *x, int n_rows, const struct FfnWeights *f)
{
    int dim = f->gate->cols, hidden = f->gate->rows;
    if (n_rows <= FEW_ROWS) {
        float *gate = d->rows, *up = d->rows + hidden;
        float *tmp = thread_scratch(d, 0);
        d->kern->rmsnorm(x, f->norm, dim, d->model->cfg.norm_eps, tmp);
        struct LinearOp ops[2] = {{f->gate, NULL, gate}, {f->up, NULL, up}};
        run_matvecs(d, tmp, dim, ops, 2);
        d->kern->silu_mul(gate, up, hidden);
        struct LinearOp down = {f->down, NULL, tmp};
        run_matvecs(d, gate, hidden, &down, 1);
        d->kern->add(x, tmp, dim);
        return PC_OK;
    }
    struct Act act = act_for(d, dim);
    pack_rows(d, x, n_rows, f->norm, &act);
    struct MatmulArgs in = {.a = &act,
                            .n_rows = n_rows,
                            .w = f->gate,
                            .w2 = f->up,
                            .mode = MATMUL_SILU,
                            .act_out = &d->act_ffn};
    run_products(d, &in, 1);
    struct MatmulArgs out = {.a = &d->act_ffn,
                             .n_rows = n_rows,
                             .w = f->down,
                             .mode = MATMUL_ADD,
                             .out = x,
                             .ld_out = dim};
    run_products(d, &out, 1);
    return PC_OK;
}

/* ==== Rows ==== */

static void embed(struct Device *d, const int *tokens, int n_rows, float *x)
{
    const struct Weight *w = &d->model->tok_embd;
    size_t row_bytes = dtype_row_bytes(w->type, w->cols);
#pragma omp parallel for schedule(static) num_threads(d->threads)
    for (int r = 0; r < n_rows; r++)
        quant_decode(w->type, (const uint8_t *)w->data + (size_t)tokens[r] * row_bytes,
                     x + (size_t)r * w->cols, w->cols);
}

static int cpu_compact(struct Device *d, void *x, size_t row_bytes, const int *idx, int n)
{
    (void)d;
    uint8_t *rows = x;
    for (int i = 0; i < n; i++)
        memmove(rows + (size_t)i * row_bytes, rows + (size_t)idx[i] * row_bytes, row_bytes);
    return PC_OK;
}

/* Cosines, then sines, of the angles of one position. */
static void fill_angles(const struct Device *d, const struct Rope *rope, int pos, float *out)
{
    int half = d->model->cfg.rope_dim / 2;
    for (int i = 0; i < half; i++) {
        double angle = (double)pos * (double)rope->inv_freq[i];
        out[i] = (float)cos(angle) * rope->scale;
        out[half + i] = (float)sin(angle) * rope->scale;
    }
}

static int cpu_begin(struct Device *d, const struct Batch *b, const struct Rope *rope, float *x)
{
    int n_rows = b->seq_begin[b->n_seqs];
    embed(d, b->tokens, n_rows, x);
#pragma omp parallel for schedule(static) num_threads(d->threads)
    for (int r = 0; r < n_rows; r++)
        fill_angles(d, rope, b->pos[r], d->angles + (size_t)r * d->model->cfg.rope_dim);
    return PC_OK;
}

static int cpu_turns(struct Device *d, const struct Rope *rope, const int *by, int n, float *out)
{
    struct Rope bare = {rope->inv_freq, 1};
#pragma omp parallel for schedule(static) num_threads(d->threads)
    for (int i = 0; i < n; i++)
        fill_angles(d, &bare, by[i], out + (size_t)i * d->model->cfg.rope_dim);
    return PC_OK;
}

static void rope_heads(const struct Device *d, float *heads, int n, const float *norm,
                       const float *angles)
{
    const struct ModelConfig *m = &d->model->cfg;
    for (int h = 0; h < n; h++) {
        float *head = heads + (size_t)h * m->head_dim;
        if (norm) d->kern->rmsnorm(head, norm, m->head_dim, m->norm_eps, head);
        d->kern->rope(head, angles, m->rope_dim, m->rope_style);
    }
}

static const struct Layer *layer_of(const struct Device *d, const float *k_bias)
{
    const struct Layer *l = d->model->layers;
    for (int i = 0; k_bias && i < d->model->cfg.n_layers; i++)
        if (l[i].bk == k_bias) return &l[i];
    return NULL;
}

/* Leaves the bias's slow columns out of a row's keys, and gives what else of it stands out to the queries. */
static void balance_heads(const struct Device *d, const struct Layer *l, float *q, float *k)
{
    const struct ModelConfig *m = &d->model->cfg;
    int group = m->n_heads / m->n_kv_heads, dim = m->head_dim, width = m->n_kv_heads * dim;
    const float *by = d->balance + (size_t)(l - d->model->layers) * width;
    for (int i = 0; i < width; i++)
        k[i] = (key_column_slow(m, i % dim) ? k[i] - l->bk[i] : k[i]) / by[i];
    for (int h = 0; h < m->n_heads; h++)
        for (int i = 0; i < dim; i++) q[h * dim + i] *= by[h / group * dim + i];
}

/* Makes a row's keys fit for few bits; queries take what undoes it. */
static void even_out(const struct Device *d, const struct RopeArgs *a, float *q, float *k)
{
    const struct ModelConfig *m = &d->model->cfg;
    const struct Layer *l = layer_of(d, a->k_bias);
    if (l && has_key_bias(l)) balance_heads(d, l, q, k);
    for (int h = 0; h < m->n_heads; h++) d->kern->spread(q + h * m->head_dim, m->head_dim);
    for (int h = 0; h < m->n_kv_heads; h++) d->kern->spread(k + h * m->head_dim, m->head_dim);
}

static int cpu_rope(struct Device *d, const struct RopeArgs *a)
{
    const struct ModelConfig *m = &d->model->cfg;
    bool even = has_codes(d) && !d->shape.far; /* far keys turn once more */
#pragma omp parallel for schedule(static) num_threads(d->threads) if (a->n_rows > FEW_ROWS)
    for (int r = 0; r < a->n_rows; r++) {
        const float *angles = d->angles + (size_t)r * m->rope_dim;
        float *q = (float *)a->q + (size_t)r * m->n_heads * m->head_dim,
              *k = (float *)a->k + (size_t)r * m->n_kv_heads * m->head_dim;
        rope_heads(d, q, m->n_heads, a->q_norm, angles);
        rope_heads(d, k, m->n_kv_heads, a->k_norm, angles);
        if (even) even_out(d, a, q, k);
    }
    return PC_OK;
}

/* ==== Head ==== */

static int head_rows(struct Device *d, const float *x, const int *idx, int n, bool few, float *out)
{
    const struct Model *m = d->model;
    struct Act act = act_for(d, m->cfg.dim);
    float *tmp = thread_scratch(d, 0);
    for (int i = 0; i < n; i++) {
        d->kern->rmsnorm(x + (size_t)idx[i] * m->cfg.dim, m->output_norm, m->cfg.dim,
                         m->cfg.norm_eps, tmp);
        if (few) {
            struct LinearOp op = {&m->output, NULL, out};
            memcpy(d->rows, tmp, sizeof(float) * (size_t)m->cfg.dim);
            run_matvecs(d, d->rows, m->cfg.dim, &op, 1);
            return PC_OK;
        }
        d->kern->act_pack(tmp, m->cfg.dim, i, 1, &act);
    }
    struct MatmulArgs args = {.a = &act,
                              .n_rows = n,
                              .w = &m->output,
                              .mode = MATMUL_STORE,
                              .out = out,
                              .ld_out = m->output.rows};
    run_products(d, &args, 1);
    return PC_OK;
}

static int cpu_logits(struct Device *d, const float *x, const int *idx, int n, float *out)
{
    return head_rows(d, x, idx, n, n <= FEW_ROWS, out);
}

/* All rows alike, also one left over: a chunk's score must not depend on the size of its wave. */
static int cpu_nll(struct Device *d, const float *x, const int *idx, const int *target, int n,
                   float *out)
{
    int vocab = d->model->output.rows;
    for (int i = 0; i < n; i += d->shape.head_rows) {
        int m = n - i < d->shape.head_rows ? n - i : d->shape.head_rows;
        TRY(head_rows(d, x, idx + i, m, false, d->head_out));
#pragma omp parallel for schedule(static) num_threads(d->threads)
        for (int r = 0; r < m; r++) {
            const float *row = d->head_out + (size_t)r * vocab;
            out[i + r] = d->kern->log_sum_exp(row, vocab) - row[target[i + r]];
        }
    }
    return PC_OK;
}

const struct Backend backend_cpu = {
    .name = "cpu",
    .act_bytes = sizeof(float),
    .available = cpu_available,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .limits = cpu_limits,
    .peak = cpu_peak,
    .page_bytes = cpu_page_bytes,
    .page_format = cpu_page_format,
    .scratch_bytes = cpu_scratch_bytes,
    .reserve = cpu_reserve,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .compact = cpu_compact,
    .copy = cpu_copy,
    .begin = cpu_begin,
    .turns = cpu_turns,
    .norm_linear = cpu_norm_linear,
    .linear_add = cpu_linear_add,
    .ffn_add = cpu_ffn_add,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .attn_mass = cpu_attn_mass,
    .attention_join = cpu_attention_join,
    .kv_write = cpu_kv_write,
    .kv_pack = cpu_kv_pack,
    .kv_gather = cpu_kv_gather,
    .kv_read = cpu_kv_read,
    .index_bytes = cpu_index_bytes,
    .kv_index = cpu_kv_index,
    .page_counts = cpu_page_counts,
    .tier_bytes = cpu_tier_bytes,
    .tier_open = cpu_tier_open,
    .tier_close = cpu_tier_close,
    .tier_counts = cpu_tier_counts,
    .logits = cpu_logits,
    .nll = cpu_nll,
};

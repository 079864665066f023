/* linear.cu - the products of the transformer: cuBLASLt for many rows, our own for the few of decoding.
 *
 * Few rows read each weight once, as it is stored. Many rows take bf16 or e4m3; a weight that is kept in blocks is
 * turned into bf16 first, which costs about as much as reading it.
 */
#include "device.h"

enum { FEW_ROWS = 4 }; /* batches up to this take the matrix-vector kernels */

/* ==== One product ==== */

struct Product {
    const bf16 *act; /* [n_rows, cols] */
    int n_rows;
    const struct DevWeight *w;
    const float *bias;
    void *out;
    bool out_f32, add;
};

static struct CudaMatvec matvec_of(const struct Product *p)
{
    struct CudaMatvec m = {};
    m.type = p->w->type;
    m.rows = p->w->rows;
    m.cols = p->w->cols;
    m.n_rows = p->n_rows;
    m.w = p->w->data;
    m.x = p->act;
    m.bias = p->bias;
    m.out = p->out;
    m.out_f32 = p->out_f32;
    m.add = p->add;
    return m;
}

/* Rows of the residual stream that a product norms for itself. */
static void take_normed(const struct Device *d, const float *x, const float *norm,
                        struct CudaMatvec *m)
{
    m->x = NULL;
    m->raw = x;
    m->norm = dev_vector(d, norm);
    m->eps = d->model->cfg.norm_eps;
}

static bool few(int n_rows, const struct DevWeight *w)
{
    return n_rows <= FEW_ROWS && !w->fp8;
}

/* The weight of a product, or of two at once when `b` is given and its rows follow those of `a`: *joined says so. */
static int operand(struct Device *d, const struct DevWeight *a, const struct DevWeight *b,
                   struct CudaGemm *g, bool *joined)
{
    size_t n = (size_t)a->rows * a->cols;
    g->rows = a->rows;
    g->cols = a->cols;
    if (a->fp8) {
        g->fp8 = true;
        g->w = a->fp8;
        g->w_scale = a->scale;
        *joined = b && b->fp8 == (uint8_t *)a->fp8 + n && b->scale == a->scale + a->rows;
    } else if (a->wide) {
        g->w = a->wide;
        *joined = b && b->wide == a->wide + n;
    } else {
        g->w = d->s.weight;
        *joined = b != NULL;
        CUDA_TRY(cuda_dequantize(a->type, a->data, (int64_t)n, d->s.weight, d->stream));
        if (b) CUDA_TRY(cuda_dequantize(b->type, b->data, (int64_t)n, d->s.weight + n, d->stream));
    }
    if (*joined) g->rows *= 2;
    return PC_OK;
}

/* The rows of a product; with fp8 they are quantised, unless they are in the scratch since the product before. */
static int rows_operand(struct Device *d, const bf16 *act, int n_rows, bool again,
                        struct CudaGemm *g)
{
    g->n_rows = n_rows;
    g->act = act;
    if (!g->fp8) return PC_OK;
    g->act = d->s.fp8;
    g->act_scale = d->s.fp8_scale;
    if (!again)
        CUDA_TRY(cuda_quantize_fp8(act, n_rows, g->cols, d->s.fp8, d->s.fp8_scale, d->stream));
    return PC_OK;
}

/* `again`: the rows are those of the product before. */
static int product(struct Device *d, const struct Product *p, bool again)
{
    struct CudaGemm g = {};
    bool joined;
    if (few(p->n_rows, p->w)) {
        struct CudaMatvec m = matvec_of(p);
        CUDA_TRY(cuda_matvec(&m, d->stream));
        return PC_OK;
    }
    TRY(operand(d, p->w, NULL, &g, &joined));
    TRY(rows_operand(d, p->act, p->n_rows, again, &g));
    g.bias = p->bias;
    g.out = p->out;
    g.out_f32 = p->out_f32;
    g.add = p->add;
    CUDA_TRY(cuda_gemm(d->gemm, &g, d->stream));
    return PC_OK;
}

/* ==== The ops ==== */

static int norm_rows(struct Device *d, const float *x, int n_rows, const float *norm,
                     const int *idx)
{
    struct RowsArgs a = {};
    a.x = x;
    a.weight = dev_vector(d, norm);
    a.out = d->s.normed;
    a.idx = idx;
    a.n_rows = n_rows;
    a.dim = d->model->cfg.dim;
    a.eps = d->model->cfg.norm_eps;
    CUDA_TRY(rows_norm(&a, d->stream));
    return PC_OK;
}

/* Weights of one type and width share a launch. */
static int few_norm_linear(struct Device *d, const float *x, int n_rows, const float *norm,
                           const struct LinearOp *ops, int n_ops)
{
    enum { MOST = 3 };
    struct CudaMatvec m[MOST];
    int n = 0;
    for (int i = 0; i < n_ops; i++) {
        const struct DevWeight *w = dev_weight(d, ops[i].w);
        struct Product p = {NULL, n_rows, w, dev_vector(d, ops[i].bias), ops[i].out, false, false};
        if (n == MOST || (n && (w->type != m->type || w->cols != m->cols))) {
            CUDA_TRY(cuda_matvecs(m, n, d->stream));
            n = 0;
        }
        m[n] = matvec_of(&p);
        take_normed(d, x, norm, &m[n++]);
    }
    CUDA_TRY(cuda_matvecs(m, n, d->stream));
    return PC_OK;
}

int cuda_norm_linear(struct Device *d, const float *x, int n_rows, const float *norm,
                     const struct LinearOp *ops, int n_ops)
{
    Range range("queries, keys, values");
    if (few(n_rows, dev_weight(d, ops[0].w)))
        return few_norm_linear(d, x, n_rows, norm, ops, n_ops);
    TRY(norm_rows(d, x, n_rows, norm, NULL));
    for (int i = 0; i < n_ops; i++) {
        struct Product p = {
            d->s.normed, n_rows, dev_weight(d, ops[i].w), dev_vector(d, ops[i].bias), ops[i].out,
            false,       false};
        TRY(product(d, &p, i > 0));
    }
    return PC_OK;
}

int cuda_linear_add(struct Device *d, const void *a, int n_rows, const struct LinearOp *op)
{
    Range range("attention output");
    struct Product p = {(const bf16 *)a,
                        n_rows,
                        dev_weight(d, op->w),
                        dev_vector(d, op->bias),
                        op->out,
                        true,
                        true};
    return product(d, &p, false);
}

/* silu(gate) * up of n rows into s.act: one product of twice the width where the weights lie together. */
static int gated(struct Device *d, const bf16 *rows, int n, const struct DevWeight *gate,
                 const struct DevWeight *up)
{
    struct CudaGemm g = {};
    bool joined;
    int hidden = gate->rows, ld;
    TRY(operand(d, gate, up, &g, &joined));
    TRY(rows_operand(d, rows, n, false, &g));
    ld = joined ? 2 * hidden : hidden;
    bf16 *up_out = joined ? d->s.wide + hidden : d->s.wide + (size_t)n * hidden;
    g.out = d->s.wide;
    CUDA_TRY(cuda_gemm(d->gemm, &g, d->stream));
    if (!joined) {
        struct Product p = {rows, n, up, NULL, up_out, false, false};
        TRY(product(d, &p, true));
    }
    CUDA_TRY(rows_silu(d->s.wide, up_out, ld, n, hidden, d->s.act, d->stream));
    return PC_OK;
}

/* Whether Hopper's kernel takes it, with weights in bf16. Where its tiles fill the card it is 1.05 to 1.6 times as fast as
 * cuBLASLt and rows_silu; where they fill 0.87 of it (2100 rows of Llama 3 8B), 0.94 to 0.97 times. From these,
 * break-even is reckoned at 0.91. */
static bool fuses(const struct Device *d, int n, const struct DevWeight *gate,
                  const struct DevWeight *up)
{
    const double least_fill = 0.92;
    bool split = gate->wide && !up->wide; /* of which operand() turns only the first into bf16 */
    return d->capability == 90 && !gate->fp8 && !up->fp8 && !split && gate->rows % 8 == 0 &&
           gate->cols % 8 == 0 && cuda_gated_fill(n, gate->rows, d->n_sm) >= least_fill;
}

static int fused_gated(struct Device *d, const bf16 *rows, int n, const struct DevWeight *gate,
                       const struct DevWeight *up)
{
    struct CudaGemm g = {};
    struct CudaGated a = {};
    bool joined;
    TRY(operand(d, gate, up, &g, &joined));
    a.n_rows = n;
    a.hidden = gate->rows;
    a.cols = gate->cols;
    a.x = rows;
    a.gate = g.w;
    a.up = up->wide ? up->wide : d->s.weight + (size_t)gate->rows * gate->cols;
    a.out = d->s.act;
    CUDA_TRY(cuda_gated_sm90a(&a, d->stream));
    return PC_OK;
}

static int few_gated(struct Device *d, const float *x, int n, const struct FfnWeights *f)
{
    struct Product p = {NULL, n, dev_weight(d, f->gate), NULL, d->s.act, false, false};
    struct CudaMatvec m = matvec_of(&p);
    take_normed(d, x, f->norm, &m);
    CUDA_TRY(cuda_matvec_silu(&m, dev_weight(d, f->up)->data, d->stream));
    return PC_OK;
}

int cuda_ffn_add(struct Device *d, float *x, int n_rows, const struct FfnWeights *f)
{
    Range range("feed-forward");
    const struct DevWeight *gate = dev_weight(d, f->gate), *up = dev_weight(d, f->up),
                           *down = dev_weight(d, f->down);
    int dim = d->model->cfg.dim;
    bool at_once = few(n_rows, gate) && gate->type == up->type;
    if (!at_once) TRY(norm_rows(d, x, n_rows, f->norm, NULL));
    for (int at = 0; at < n_rows; at += d->s.ffn_rows) {
        int n = n_rows - at < d->s.ffn_rows ? n_rows - at : d->s.ffn_rows;
        const bf16 *rows = d->s.normed + (size_t)at * dim;
        TRY(at_once                 ? few_gated(d, x, n, f)
            : fuses(d, n, gate, up) ? fused_gated(d, rows, n, gate, up)
                                    : gated(d, rows, n, gate, up));
        struct Product p = {d->s.act, n, down, NULL, x + (size_t)at * dim, true, true};
        TRY(product(d, &p, false));
    }
    return PC_OK;
}

/* ==== The output head ==== */

/* Rows that lie one after another are normed by the product. */
static int few_heads(struct Device *d, const float *x, int n)
{
    struct Product p = {NULL, n, dev_weight(d, &d->model->output), NULL, d->s.logits, true, false};
    struct CudaMatvec m = matvec_of(&p);
    take_normed(d, x, d->model->output_norm, &m);
    CUDA_TRY(cuda_matvec(&m, d->stream));
    return PC_OK;
}

/* How many of the first rows lie one after another. */
static int run_of(const int *idx, int n)
{
    int run = 1;
    while (run < n && idx[run] == idx[0] + run) run++;
    return run;
}

static int head(struct Device *d, const float *x, const int *idx, int n)
{
    TRY(norm_rows(d, x, n, d->model->output_norm, idx));
    struct CudaGemm g = {};
    bool joined;
    TRY(operand(d, dev_weight(d, &d->model->output), NULL, &g, &joined));
    g.n_rows = n;
    g.act = d->s.normed;
    g.out = d->s.logits;
    g.out_f32 = true;
    CUDA_TRY(cuda_gemm(d->gemm, &g, d->stream));
    return PC_OK;
}

int cuda_logits(struct Device *d, const float *x, const int *idx, int n, float *out)
{
    Range range("logits");
    size_t vocab = (size_t)d->model->output.rows;
    if (d->step.recording) {
        TRY(few_heads(d, x, 1));
        return step_end(d);
    }
    for (int i = 0, m; i < n; i += m) {
        m = n - i < d->shape.head_rows ? n - i : d->shape.head_rows;
        if (m <= FEW_ROWS) {
            m = run_of(idx + i, m);
            TRY(few_heads(d, x + (size_t)idx[i] * d->model->cfg.dim, m));
        } else {
            TRY(dev_upload(d, d->s.rows, idx + i, (size_t)m * sizeof(int)));
            TRY(head(d, x, d->s.rows, m));
        }
        TRY(dev_download(d, out + (size_t)i * vocab, d->s.logits, m * vocab * sizeof(float)));
    }
    return PC_OK;
}

/* Blocks of the same number of rows, also the last one: cuBLASLt's choice of kernel, and so the bytes, must not
 * depend on how many rows are left. */
int cuda_nll(struct Device *d, const float *x, const int *idx, const int *target, int n, float *out)
{
    Range range("log-likelihood");
    int vocab = d->model->output.rows, block = d->shape.head_rows;
    int *rows = d->s.rows, *targets = d->s.rows + block;
    for (int i = 0; i < n; i += block) {
        int m = n - i < block ? n - i : block;
        TRY(dev_upload(d, rows, idx + i, (size_t)m * sizeof(int)));
        TRY(dev_upload(d, targets, target + i, (size_t)m * sizeof(int)));
        if (m < block)
            CUDA_TRY(cudaMemsetAsync(rows + m, 0, (size_t)(block - m) * sizeof(int), d->stream));
        TRY(head(d, x, rows, block));
        CUDA_TRY(rows_nll(d->s.logits, vocab, targets, m, d->s.nll + i, d->stream));
    }
    return dev_download(d, out, d->s.nll, (size_t)n * sizeof(float));
}

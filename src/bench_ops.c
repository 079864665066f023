/* bench_ops.c - one timed repetition of each operation that prefill and decode are made of, on the
 * open model's own weights, through the same backend table. Inputs are random, outputs are thrown away.
 */
#include "session.h"

#include <stdio.h>
#include <string.h>

enum { LAYERS_TIMED = 8 }; /* weights of several layers, so that caches do not flatter decode */

struct OpBench {
    struct Engine *e;
    struct Transformer tf;
    struct KvCache kv;
    struct HeadTable table;
    int n, *tokens, *pos, seq_begin[2];
    float *logits; /* [vocab_size] */
};

static int layers_timed(const struct OpBench *b)
{
    int n = b->e->model.cfg.n_layers;
    return n < LAYERS_TIMED ? n : LAYERS_TIMED;
}

static int op_qkv(struct OpBench *b)
{
    for (int i = 0; i < layers_timed(b); i++) {
        const struct Layer *l = &b->e->model.layers[i];
        struct LinearOp ops[3] = {
            {&l->wq, l->bq, b->tf.q}, {&l->wk, l->bk, b->tf.k}, {&l->wv, l->bv, b->tf.v}};
        TRY(b->e->be->norm_linear(b->e->dev, b->tf.x, b->n, l->attn_norm, ops, 3));
    }
    return PC_OK;
}

static int op_ffn(struct OpBench *b)
{
    for (int i = 0; i < layers_timed(b); i++) {
        const struct Layer *l = &b->e->model.layers[i];
        struct FfnWeights f = {l->ffn_norm, &l->w_gate, &l->w_up, &l->w_down};
        TRY(b->e->be->ffn_add(b->e->dev, b->tf.x, b->n, &f));
    }
    return PC_OK;
}

static int op_attention(struct OpBench *b)
{
    for (int i = 0; i < layers_timed(b); i++) {
        struct AttnArgs a = {.q = b->tf.q,
                             .k = b->tf.k,
                             .v = b->tf.v,
                             .out = b->tf.out,
                             .seq_begin = b->seq_begin,
                             .n_seqs = 1,
                             .layer = i,
                             .pool = &b->kv.pool,
                             .past = b->n == 1 ? &b->table : NULL};
        TRY(b->e->be->attention(b->e->dev, &a));
    }
    return PC_OK;
}

static int op_head(struct OpBench *b)
{
    int row = b->n - 1;
    return b->e->be->logits(b->e->dev, b->tf.x, &row, 1, b->logits);
}

static double linear_weights(const struct Layer *l, bool ffn)
{
    const struct Weight *w[] = {&l->wq, &l->wk, &l->wv}, *f[] = {&l->w_gate, &l->w_up, &l->w_down};
    double n = 0;
    for (int i = 0; i < 3; i++) n += (double)(ffn ? f[i] : w[i])->rows * (ffn ? f[i] : w[i])->cols;
    return n;
}

static double linear_bytes(const struct Layer *l, bool ffn)
{
    const struct Weight *w[] = {&l->wq, &l->wk, &l->wv}, *f[] = {&l->w_gate, &l->w_up, &l->w_down};
    double n = 0;
    for (int i = 0; i < 3; i++) {
        const struct Weight *x = ffn ? f[i] : w[i];
        n += (double)x->rows * (double)dtype_row_bytes(x->type, x->cols);
    }
    return n;
}

/* Work and least memory traffic of one repetition. */
static void account(const struct OpBench *b, int op, int keys, struct BenchRow *row)
{
    const struct ModelConfig *m = &b->e->model.cfg;
    double layers = layers_timed(b), n = b->n;
    const struct Layer *l = &b->e->model.layers[0];
    switch (op) {
    case 0:
    case 1:
        row->flops = layers * 2 * n * linear_weights(l, op == 0);
        row->bytes = layers * linear_bytes(l, op == 0);
        break;
    case 2:
        row->flops = layers * 4 * m->n_heads * m->head_dim * (b->n == 1 ? keys : n * (n + 1) / 2);
        row->bytes = layers * (double)b->e->be->page_bytes(b->e->dev) / PAGE_TOKENS *
                     m->n_kv_heads * (b->n == 1 ? keys : 0);
        break;
    default:
        row->flops = 2.0 * m->vocab_size * m->dim;
        row->bytes =
            (double)m->vocab_size * (double)dtype_row_bytes(b->e->model.output.type, m->dim);
    }
}

static int bench_open(struct OpBench *b, int keys)
{
    const struct ModelConfig *m = &b->e->model.cfg;
    int rows = b->n > 64 ? b->n : 64;
    struct BatchShape shape = {.rows = b->n, .seqs = 1, .keys = keys + b->n, .head_rows = 1};
    size_t pages = (size_t)m->n_layers * m->n_kv_heads * (size_t)(keys / PAGE_TOKENS + 1);
    TRY(tf_open(&b->tf, b->e->be, b->e->dev, &b->e->model, rows));
    TRY(b->e->be->reserve(b->e->dev, &shape));
    TRY(kv_open(&b->kv, b->e->be, b->e->dev, m, b->n == 1 ? pages : 1));
    TRY(kv_table_open(&b->table, m, keys / PAGE_TOKENS + 1));
    b->tokens = mem_alloc((size_t)rows, sizeof(int));
    b->pos = mem_alloc((size_t)rows, sizeof(int));
    b->logits = mem_alloc((size_t)m->vocab_size, sizeof(float));
    if (!b->tokens || !b->pos || !b->logits) return PC_ENOMEM;
    b->seq_begin[1] = b->n;
    for (int i = 0; i < b->n; i++)
        b->tokens[i] = (int)((unsigned)i * 7919u % (unsigned)m->vocab_size), b->pos[i] = i;
    struct Batch batch = {
        .tokens = b->tokens, .pos = b->pos, .seq_begin = b->seq_begin, .n_seqs = 1};
    TRY(tf_begin(&b->tf, &batch));
    TRY(op_qkv(b));
    if (b->n > 1) return PC_OK;
    struct KvWrites w;
    TRY(kv_writes_open(&w, 64));
    int status = PC_OK;
    for (int t = 0; t < keys && status == PC_OK; t += PAGE_TOKENS)
        for (int l = 0; l < m->n_layers && status == PC_OK; l++) {
            struct KvRows r = {b->tf.k, b->tf.v, 0, NULL,
                               keys - t < PAGE_TOKENS ? keys - t : PAGE_TOKENS};
            status = kv_append_all(&b->kv, &b->table, l, &r, &w);
            if (status == PC_OK) status = kv_flush(&b->kv, &w);
        }
    kv_writes_close(&w);
    return status;
}

static void bench_close(struct OpBench *b)
{
    kv_table_close(&b->table);
    kv_close(&b->kv);
    tf_close(&b->tf);
    mem_free(b->tokens);
    mem_free(b->pos);
    mem_free(b->logits);
}

/* The longer of the arithmetic and the memory traffic at the device's peak rates; decoding is bound by memory. */
static void least_time(const struct OpBench *b, bool decode, struct BenchRow *row)
{
    struct DeviceLimits l;
    b->e->be->limits(b->e->dev, &l);
    double work = l.flops > 0 && !decode ? row->flops / l.flops : 0,
           traffic = l.bandwidth > 0 ? row->bytes / l.bandwidth : 0;
    row->least_seconds = work > traffic ? work : traffic;
}

/* A device may run behind: waits until it has done what was asked. */
static int settle(const struct OpBench *b)
{
    float first;
    return b->e->be->download(b->e->dev, &first, b->tf.x, sizeof first);
}

int engine_bench_op(struct Engine *e, int op, int n_tokens, struct BenchRow *row)
{
    static int (*const ops[])(struct OpBench *) = {op_ffn, op_qkv, op_attention, op_head};
    static const char *const names[] = {"ffn", "qkv", "attention", "head"};
    enum { N_OPS = sizeof ops / sizeof *ops };
    memset(row, 0, sizeof *row);
    if (op < 0 || op >= 2 * N_OPS - 1) return PC_ERANGE;
    TRY(engine_weights(e));
    bool decode = op >= N_OPS - 1; /* prefill: ffn, qkv, attention; decode: all four */
    int kind = decode ? op - (N_OPS - 1) : op;
    struct OpBench b = {.e = e, .n = decode ? 1 : n_tokens};
    int status = bench_open(&b, decode ? n_tokens : 0);
    if (status == PC_OK) status = ops[kind](&b); /* warm-up */
    if (status == PC_OK) status = settle(&b);
    double begun = clock_seconds();
    if (status == PC_OK) status = ops[kind](&b);
    if (status == PC_OK) status = settle(&b);
    row->seconds = clock_seconds() - begun;
    account(&b, kind, n_tokens, row);
    least_time(&b, decode, row);
    snprintf(row->name, sizeof row->name, "%s %s", decode ? "decode" : "prefill", names[kind]);
    if (decode)
        snprintf(row->shape, sizeof row->shape, "1 row, %d keys, %d layers", n_tokens,
                 layers_timed(&b));
    else
        snprintf(row->shape, sizeof row->shape, "%d rows, %d layers", n_tokens, layers_timed(&b));
    bench_close(&b);
    return status;
}

/* weights.cu - the model's weights on the device, all in one slab.
 *
 * bf16, f16 and f32 files become bf16; quantised ones stay in their blocks, which decoding reads as they are and
 * the prefill turns into bf16 a layer at a time. With fp8 the layers' weights are e4m3 with a scale a row instead. The
 * embedding and the output head are bf16 at hand too, since single rows are read from both.
 *
 * A bias of the keys can be a hundred times as large as what differs from key to key (Qwen2), so that in bf16 it would take
 * the bits that tell keys apart. It lies mostly in columns that turn by less than a radian over the trained positions.
 * These parts are left out of the product and come in when keys are turned: there only by how far they turn, since
 * what all keys of a head share is nothing to a softmax.
 */
#include "device.h"

#include <stdlib.h>
#include <string.h>

enum { PER_LAYER = 7, VECTORS_PER_LAYER = 8, SLICE = 4 << 20 };

static void layer_weights(const struct Layer *l, const struct Weight *out[PER_LAYER])
{
    const struct Weight *w[PER_LAYER] = {&l->wq,     &l->wk,   &l->wv,    &l->wo,
                                         &l->w_gate, &l->w_up, &l->w_down};
    memcpy(out, w, sizeof w);
}

/* ==== What there is ==== */

static int by_host(const void *a, const void *b)
{
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return x < y ? -1 : x > y;
}

static bool is_blocks(int type)
{
    return type != DT_BF16 && type != DT_F16 && type != DT_F32;
}

static void add_weight(struct Device *d, const struct Weight *w)
{
    struct DevWeight *out = &d->weights[d->n_weights++];
    out->host = w;
    out->type = is_blocks(w->type) ? w->type : DT_BF16;
    out->rows = w->rows;
    out->cols = w->cols;
}

static int list_weights(struct Device *d)
{
    const struct Model *m = d->model;
    size_t n = (size_t)m->cfg.n_layers;
    d->weights = (struct DevWeight *)mem_alloc(n * PER_LAYER + 2, sizeof *d->weights);
    d->vectors = (struct DevVector *)mem_alloc(n * VECTORS_PER_LAYER + 1, sizeof *d->vectors);
    if (!d->weights || !d->vectors) return PC_ENOMEM;
    for (int i = 0; i < m->cfg.n_layers; i++) {
        const struct Layer *l = &m->layers[i];
        const struct Weight *w[PER_LAYER];
        const float *v[VECTORS_PER_LAYER] = {l->attn_norm, l->ffn_norm, l->q_norm, l->k_norm,
                                             l->bq,        l->bk,       l->bv,     l->bo};
        layer_weights(l, w);
        for (int j = 0; j < PER_LAYER; j++) add_weight(d, w[j]);
        for (int j = 0; j < VECTORS_PER_LAYER; j++)
            if (v[j]) d->vectors[d->n_vectors++].host = v[j];
    }
    d->vectors[d->n_vectors++].host = m->output_norm;
    add_weight(d, &m->output);
    if (!m->tied) add_weight(d, &m->tok_embd);
    qsort(d->weights, (size_t)d->n_weights, sizeof *d->weights, by_host);
    qsort(d->vectors, (size_t)d->n_vectors, sizeof *d->vectors, by_host);
    return PC_OK;
}

const struct DevWeight *dev_weight(const struct Device *d, const struct Weight *w)
{
    return (const struct DevWeight *)bsearch(&w, d->weights, (size_t)d->n_weights,
                                             sizeof *d->weights, by_host);
}

static const struct DevVector *find_vector(const struct Device *d, const float *host)
{
    if (!host) return NULL;
    return (const struct DevVector *)bsearch(&host, d->vectors, (size_t)d->n_vectors,
                                             sizeof *d->vectors, by_host);
}

const float *dev_vector(const struct Device *d, const float *host)
{
    const struct DevVector *v = find_vector(d, host);
    return v ? v->data : NULL;
}

const float *dev_slow(const struct Device *d, const float *k_bias)
{
    const struct DevVector *v = find_vector(d, k_bias);
    return v ? v->slow : NULL;
}

const float *dev_balance(const struct Device *d, const float *k_bias)
{
    const struct DevVector *v = find_vector(d, k_bias);
    return v ? v->balance : NULL;
}

/* ==== Where it lies ==== */

/* The output head and the embedding, which are read by the row. */
static bool is_vocab(const struct Device *d, const struct DevWeight *w)
{
    return w->host == &d->model->output || w->host == &d->model->tok_embd;
}

static int vector_len(const struct Device *d, const float *host)
{
    const struct ModelConfig *c = &d->model->cfg;
    for (int i = 0; i < c->n_layers; i++) {
        const struct Layer *l = &d->model->layers[i];
        if (host == l->q_norm || host == l->k_norm) return c->head_dim;
        if (host == l->bq) return c->n_heads * c->head_dim;
        if (host == l->bk || host == l->bv) return c->n_kv_heads * c->head_dim;
    }
    return c->dim;
}

/* The layer whose keys have this bias. NULL also where heads are normed before they turn: there the bias is part of what is
 * normed. */
static const struct Layer *layer_of_keys(const struct Device *d, const float *host)
{
    for (int i = 0; i < d->model->cfg.n_layers; i++) {
        const struct Layer *l = &d->model->layers[i];
        if (host == l->bk) return l->k_norm ? NULL : l;
    }
    return NULL;
}

static size_t lay_out(struct Device *d, uint8_t *base)
{
    struct Cut s = {base, 0};
    for (int i = 0; i < d->n_weights; i++) {
        struct DevWeight *w = &d->weights[i];
        size_t n = (size_t)w->rows * w->cols;
        bool fp8 = d->fp8 && !is_vocab(d, w);
        w->wide = NULL;
        w->fp8 = fp8 ? cut(&s, n) : NULL;
        w->scale = fp8 ? (float *)cut(&s, (size_t)w->rows * sizeof(float)) : NULL;
        if (fp8) continue;
        w->data = cut(&s, (size_t)w->rows * dtype_row_bytes((enum DType)w->type, w->cols));
        if (w->type == DT_BF16)
            w->wide = (bf16 *)w->data;
        else if (is_vocab(d, w))
            w->wide = (bf16 *)cut(&s, n * sizeof(bf16));
    }
    for (int i = 0; i < d->n_vectors; i++) {
        size_t n = (size_t)vector_len(d, d->vectors[i].host);
        d->vectors[i].data = (float *)cut(&s, n * sizeof(float));
        bool keys = layer_of_keys(d, d->vectors[i].host), even = d->format != CUDA_PAGE_BF16;
        d->vectors[i].slow = keys ? (float *)cut(&s, n * sizeof(float)) : NULL;
        d->vectors[i].balance = keys && even ? (float *)cut(&s, n * sizeof(float)) : NULL;
    }
    return s.at;
}

/* ==== Filling it ==== */

/* Rows [row, row + n) as the file or the seed has them, in the device's type, to out; f32 and f16 go through `raw`. */
static int fill_rows(struct Device *d, const struct DevWeight *w, int row, int n, void *raw,
                     void *out)
{
    const struct Weight *h = w->host;
    size_t row_bytes = dtype_row_bytes(h->type, h->cols);
    if (!h->data) {
        CUDA_TRY(geometry_fill(h, row, n, out, d->stream));
        return PC_OK;
    }
    const uint8_t *src = (const uint8_t *)h->data + (size_t)row * row_bytes;
    if (w->type == (int)h->type) return dev_upload(d, out, src, (size_t)n * row_bytes);
    TRY(dev_upload(d, raw, src, (size_t)n * row_bytes));
    CUDA_TRY(cuda_dequantize(h->type, raw, (int64_t)n * h->cols, (bf16 *)out, d->stream));
    return PC_OK;
}

/* The same as e4m3; blocks take the way over bf16. */
static int fill_fp8(struct Device *d, const struct DevWeight *w, int row, int n, void *raw,
                    bf16 *tmp)
{
    bool blocks = w->type != DT_BF16;
    TRY(fill_rows(d, w, row, n, raw, blocks ? raw : tmp));
    if (blocks) CUDA_TRY(cuda_dequantize(w->type, raw, (int64_t)n * w->cols, tmp, d->stream));
    CUDA_TRY(cuda_quantize_fp8(tmp, n, w->cols, (uint8_t *)w->fp8 + (size_t)row * w->cols,
                               w->scale + row, d->stream));
    return PC_OK;
}

/* As many rows at a time as `raw` and `tmp` hold: SLICE values. */
static int fill_weight(struct Device *d, const struct DevWeight *w, void *raw, bf16 *tmp)
{
    size_t row_bytes = dtype_row_bytes((enum DType)w->type, w->cols);
    int step = (int)(SLICE / (size_t)w->cols);
    if (step < 1) step = 1;
    for (int row = 0; row < w->rows; row += step) {
        int n = w->rows - row < step ? w->rows - row : step;
        TRY(w->fp8 ? fill_fp8(d, w, row, n, raw, tmp)
                   : fill_rows(d, w, row, n, raw, (uint8_t *)w->data + (size_t)row * row_bytes));
    }
    if (w->wide && w->type != DT_BF16)
        CUDA_TRY(cuda_dequantize(w->type, w->data, (int64_t)w->rows * w->cols, w->wide, d->stream));
    return PC_OK;
}

static int fill_key_bias(struct Device *d, const struct DevVector *v)
{
    int n = vector_len(d, v->host);
    size_t bytes = (size_t)n * sizeof(float);
    float *slow = (float *)mem_alloc(3 * (size_t)n, sizeof *slow);
    if (!slow) return PC_ENOMEM;
    float *fast = slow + n, *balance = fast + n;
    for (int i = 0; i < n; i++) {
        bool late = key_column_slow(&d->model->cfg, i % d->model->cfg.head_dim);
        slow[i] = late ? v->host[i] : 0;
        fast[i] = late ? 0 : v->host[i];
    }
    int status = dev_upload(d, v->data, fast, bytes);
    if (status == PC_OK) status = dev_upload(d, v->slow, slow, bytes);
    if (status == PC_OK && v->balance) {
        key_balance(&d->model->cfg, layer_of_keys(d, v->host), balance);
        status = dev_upload(d, v->balance, balance, bytes);
    }
    mem_free(slow);
    return status;
}

static int fill_vector(struct Device *d, const struct DevVector *v)
{
    if (v->slow) return fill_key_bias(d, v);
    return dev_upload(d, v->data, v->host, (size_t)vector_len(d, v->host) * sizeof(float));
}

static int fill_slab(struct Device *d)
{
    size_t most = SLICE;
    for (int i = 0; i < d->n_weights; i++)
        if ((size_t)d->weights[i].cols > most) most = (size_t)d->weights[i].cols;
    void *raw = dev_alloc(d, most * sizeof(float));
    bf16 *tmp = (bf16 *)dev_alloc(d, d->fp8 ? most * sizeof(bf16) : 1);
    int status = raw && tmp ? PC_OK : PC_ENOMEM;
    for (int i = 0; i < d->n_weights && status == PC_OK; i++)
        status = fill_weight(d, &d->weights[i], raw, tmp);
    for (int i = 0; i < d->n_vectors && status == PC_OK; i++)
        status = fill_vector(d, &d->vectors[i]);
    cudaError_t e = cudaStreamSynchronize(d->stream);
    dev_free(d, raw);
    dev_free(d, tmp);
    return status < 0 ? status : e == cudaSuccess ? PC_OK : cuda_fail(e, "loading the weights");
}

/* Said before the attempt, with what would fit. */
static int check_room(const struct Device *d, size_t bytes)
{
    size_t room = 0, total = 0;
    double gib = 1 << 30;
    CUDA_TRY(cudaMemGetInfo(&room, &total));
    if (d->limit && d->limit < room) room = d->limit;
    if (bytes < room) return PC_OK;
    return err_set(
        PC_ENOMEM,
        "the weights take %.2f GiB of GPU memory and %.2f GiB may be used (%.2f are on the "
        "card); use a file of smaller types (Q8_0 takes about %.2f GiB, Q4_K %.2f), raise "
        "--gpu-memory, or use --backend cpu",
        (double)bytes / gib, (double)room / gib, (double)total / gib,
        (double)d->model->n_params * 34 / 32 / gib, (double)d->model->n_params * 144 / 256 / gib);
}

int weights_open(struct Device *d)
{
    TRY(list_weights(d));
    size_t bytes = lay_out(d, NULL);
    TRY(check_room(d, bytes));
    d->slab = dev_alloc(d, bytes);
    if (!d->slab) return PC_ENOMEM;
    lay_out(d, (uint8_t *)d->slab);
    TRY(fill_slab(d));
    const struct Model *m = d->model;
    d->embd = dev_weight(d, m->tied ? &m->output : &m->tok_embd)->wide;
    return PC_OK;
}

void weights_close(struct Device *d)
{
    dev_free(d, d->slab);
    mem_free(d->weights);
    mem_free(d->vectors);
}

/* geometry_rows.c - the rule that makes random rows (geometry.h), and all rows of a model in memory. */
#include "geometry.h"
#include "model_load.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* ==== Words ==== */

#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)

static inline uint64_t finalise(uint64_t z)
{
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Word i of a row is word(row_origin(seed, row), i). */
static inline uint64_t row_origin(uint64_t seed, int row)
{
    return seed + ((uint64_t)row << 32) * GOLDEN;
}

static inline uint64_t word(uint64_t origin, int i)
{
    return finalise(origin + (uint64_t)i * GOLDEN);
}

/* ==== Types ==== */

/* Where a block keeps what. Bytes that are the same in all of them: the scale, the minimum (a multiple of the
 * scale), and up to three runs of sub-scales and sub-minima of equal bytes. */
struct Layout {
    enum DType type;
    double var; /* of code - middle */
    int d_at, min_at;
    float min;                      /* 0: none */
    int low_at, low, high_at, high; /* bytes of quants */
    uint64_t odd;                   /* or'ed into the words of the low bits */
    struct {
        int at, n;
        uint8_t byte;
    } subs[3];
};

#define NIBBLES UINT64_C(0x1111111111111111)
#define BYTES   UINT64_C(0x0101010101010101)

/* The K types store 6-bit sub-scales and sub-minima of eight parts in 12 bytes: four times scale | high bits of
 * another's scale, four times the same of minima, four times the low nibbles of both. */
/* clang-format off */
static const struct Layout layouts[] = {
    { DT_Q4_0, 21, 0, 0, 0, 2, 16, 0, 0, NIBBLES, {{0}} },
    { DT_Q4_1, 21, 0, 2, -8, 4, 16, 0, 0, NIBBLES, {{0}} },
    { DT_Q5_0, 85, 0, 0, 0, 6, 16, 2, 4, NIBBLES, {{0}} },
    { DT_Q5_1, 85, 0, 2, -16, 8, 16, 4, 4, NIBBLES, {{0}} },
    { DT_Q8_0, 5461, 0, 0, 0, 2, 32, 0, 0, BYTES, {{0}} },
    { DT_Q4_K, 21, 0, 2, 1, 16, 128, 0, 0, NIBBLES, {{4, 4, 1}, {8, 4, 8}, {12, 4, 0x81}} },
    { DT_Q5_K, 85, 0, 2, 1, 48, 128, 16, 32, NIBBLES, {{4, 4, 1}, {8, 4, 16 | 1 << 6}, {12, 4, 1}} },
    { DT_Q6_K, 341, 208, 0, 0, 0, 128, 128, 64, NIBBLES, {{192, 16, 1}} },
};
/* clang-format on */

static const struct Layout *layout_of(enum DType type)
{
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        if (layouts[i].type == type) return &layouts[i];
    return NULL;
}

enum { BLOCK_MAX = 256 };

/* What all rows of a weight share. */
struct Filler {
    const struct Weight *w;
    const struct Layout *layout; /* NULL: a plain type */
    int block_bytes;
    uint8_t block[BLOCK_MAX]; /* a block before its quants */
    float single[256];        /* plain types: the value of each byte */
    uint16_t half[256];
};

static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float plain_step(const struct Weight *w)
{
    return (float)(1 / sqrt(21845.0 * w->cols));
}

static void plain_begin(struct Filler *f)
{
    float s = plain_step(f->w);
    for (int b = 0; b < 256; b++) {
        float value = (float)(2 * b - 255) * s;
        f->single[b] = value;
        f->half[b] = f->w->type == DT_BF16 ? to_bf16(value) : f32_to_f16(value);
    }
}

static void block_begin(struct Filler *f)
{
    const struct Layout *l = f->layout;
    uint16_t d = f32_to_f16((float)(1 / sqrt(l->var * f->w->cols)));
    uint16_t min = f32_to_f16(l->min * f16_to_f32(d));
    if (l->min != 0) memcpy(f->block + l->min_at, &min, sizeof min);
    memcpy(f->block + l->d_at, &d, sizeof d);
    for (int i = 0; i < 3; i++)
        memset(f->block + l->subs[i].at, l->subs[i].byte, (size_t)l->subs[i].n);
}

static void filler_begin(struct Filler *f, const struct Weight *w)
{
    int weights;
    *f = (struct Filler){.w = w, .layout = layout_of(w->type)};
    dtype_block((uint32_t)w->type, &weights, &f->block_bytes);
    if (f->layout)
        block_begin(f);
    else
        plain_begin(f);
}

/* ==== Rows ==== */

static void fill_halves(const struct Filler *f, uint64_t origin, uint8_t *out)
{
    int cols = f->w->cols, i = 0;
    uint16_t eight[8];
    for (; 8 * i < cols; i++, out += sizeof eight) {
        uint64_t bytes = word(origin, i);
        int n = cols - 8 * i < 8 ? cols - 8 * i : 8;
        for (int j = 0; j < 8; j++) eight[j] = f->half[bytes >> 8 * j & 255];
        memcpy(out, eight, n == 8 ? sizeof eight : (size_t)n * sizeof *eight);
    }
}

static void fill_singles(const struct Filler *f, uint64_t origin, uint8_t *out)
{
    for (int c = 0; c < f->w->cols; c++) {
        const float *value = &f->single[word(origin, c / 8) >> c % 8 * 8 & 255];
        memcpy(out + (size_t)c * sizeof *value, value, sizeof *value);
    }
}

/* Words i.. of the row over `bytes` bytes; returns the next i. */
static int put_words(uint64_t origin, int i, uint64_t odd, uint8_t *out, int bytes)
{
    for (int at = 0; at < bytes; at += 8, i++) {
        uint64_t bits = word(origin, i) | odd;
        memcpy(out + at, &bits, bytes - at < 8 ? (size_t)(bytes - at) : sizeof bits);
    }
    return i;
}

static void fill_blocks(const struct Filler *f, uint64_t origin, uint8_t *out)
{
    const struct Layout *l = f->layout;
    const uint8_t *end = out + dtype_row_bytes(f->w->type, f->w->cols);
    for (int i = 0; out < end; out += f->block_bytes) {
        memcpy(out, f->block, (size_t)f->block_bytes);
        i = put_words(origin, i, l->odd, out + l->low_at, l->low);
        i = put_words(origin, i, 0, out + l->high_at, l->high);
    }
}

void geometry_rule(const struct Weight *w, struct GeometryRule *out)
{
    struct Filler f;
    const struct Layout *l;
    filler_begin(&f, w);
    l = f.layout;
    *out = (struct GeometryRule){.seed = w->seed, .plain = !l, .step = plain_step(w)};
    if (!l) return;
    dtype_block((uint32_t)w->type, &out->block_weights, &out->block_bytes);
    out->low_at = l->low_at, out->low = l->low;
    out->high_at = l->high_at, out->high = l->high;
    out->odd = l->odd;
    memcpy(out->block, f.block, sizeof f.block);
}

static void fill_row(const struct Filler *f, int row, void *out)
{
    uint64_t origin = row_origin(f->w->seed, row);
    if (f->layout)
        fill_blocks(f, origin, out);
    else if (f->w->type == DT_F32)
        fill_singles(f, origin, out);
    else
        fill_halves(f, origin, out);
}

void geometry_fill_row(const struct Weight *w, int row, void *out)
{
    struct Filler f;
    filler_begin(&f, w);
    fill_row(&f, row, out);
}

/* ==== A whole model ==== */

enum { LAYER_WEIGHTS = 7, ALIGNMENT = 64 };

/* The i-th of the model's weights; NULL behind the last. Tied ones are one. */
static struct Weight *weight_at(struct Model *m, int i)
{
    int in_layers = LAYER_WEIGHTS * m->cfg.n_layers;
    if (i >= in_layers)
        return i == in_layers ? &m->tok_embd : i == in_layers + 1 && !m->tied ? &m->output : NULL;
    struct Layer *l = &m->layers[i / LAYER_WEIGHTS];
    struct Weight *const of_layer[LAYER_WEIGHTS] = {&l->wq,     &l->wk,   &l->wv,    &l->wo,
                                                    &l->w_gate, &l->w_up, &l->w_down};
    return of_layer[i % LAYER_WEIGHTS];
}

/* Bytes of a weight, so that the next one begins aligned. type: as stored, or what it would be stored as. */
static size_t room_of(const struct Weight *w, enum DType type)
{
    size_t bytes = (size_t)w->rows * dtype_row_bytes(type, w->cols);
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* 0 when the rows of some weight do not split into blocks of the type. */
static size_t bytes_as(const struct Model *m, enum DType type)
{
    struct Model copy = *m; /* weight_at() hands out what may be written */
    const struct Weight *w;
    size_t bytes = 0;
    for (int i = 0; (w = weight_at(&copy, i)) != NULL; i++) {
        if (!dtype_row_bytes(type, w->cols)) return 0;
        bytes += room_of(w, type);
    }
    return bytes;
}

size_t geometry_bytes(const struct Model *m)
{
    return bytes_as(m, m->tok_embd.type);
}

int geometry_room(const struct Model *m, size_t available)
{
    const double gib = 1024.0 * 1024 * 1024;
    size_t need = geometry_bytes(m);
    if (need <= available) return PC_OK;
    bool k_type = bytes_as(m, DT_Q4_K) > 0;
    size_t least = bytes_as(m, k_type ? DT_Q4_K : DT_Q4_0);
    int name = (int)strcspn(m->cfg.name, " ");
    char remedy[128] = "a smaller geometry";
    if (least < need)
        snprintf(remedy, sizeof remedy, "--geometry %.*s:%s (%.2f GiB) or a smaller geometry", name,
                 m->cfg.name, k_type ? "q4_k" : "q4_0", (double)least / gib);
    return err_set(PC_ENOMEM,
                   "the weights of %s take %.2f GiB of memory, %.2f GiB are available; try %s",
                   m->cfg.name, (double)need / gib, (double)available / gib, remedy);
}

static void fill_weight(struct Weight *w, uint8_t *to, int threads)
{
    struct Filler f;
    size_t row_bytes = dtype_row_bytes(w->type, w->cols);
    filler_begin(&f, w);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int r = 0; r < w->rows; r++) fill_row(&f, r, to + (size_t)r * row_bytes);
    w->data = to;
}

/* Asks for large pages: most of the time to fill gigabytes goes into faults of small ones. A refusal does no harm. */
static void ask_large_pages(uint8_t *data, size_t bytes)
{
    const size_t page = (size_t)2 << 20;
    uint8_t *first = data + (page - (uintptr_t)data % page) % page;
    if (first + page <= data + bytes) madvise(first, (size_t)(data + bytes - first), MADV_HUGEPAGE);
}

int geometry_materialise(struct Model *m, int threads, size_t available)
{
    if (!m->geometry || m->tok_embd.data) return PC_OK;
    size_t bytes = geometry_bytes(m);
    TRY(geometry_room(m, available));
    if (bytes >> 30)
        log_msg(LOG_INFO, "making %.1f GiB of random weights", (double)bytes / (1 << 30));
    uint8_t *at = model_keep(m->source, bytes, 1);
    if (!at) return PC_ENOMEM;
    ask_large_pages(at, bytes);
    struct Weight *w;
    for (int i = 0; (w = weight_at(m, i)) != NULL; i++) {
        fill_weight(w, at, threads);
        at += room_of(w, w->type);
    }
    if (m->tied) m->output.data = m->tok_embd.data;
    return PC_OK;
}

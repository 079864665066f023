/* kernels_attn.c - attention of many query rows over packed keys (prefill), and the mass that
 * the last rows put on each key (importance, method.md section 3).
 *
 * Online softmax over blocks of 64 keys. Logits are kept in base 2 (log2 e is folded into the query).
 * Probabilities are quantised relative to the row's maximum *within the block*, so that a huge weight on a sink token
 * does not round away the tail in other blocks; the block's true weight enters as the scale of the product.
 */
#include "kernels_list.h"
#include "kernels_tile.h"

#include <math.h>

#define MASKED -1e30f
#define LN2    0.693147181f

static int dim_blocks(int head_dim)
{
    return (head_dim + QBLOCK - 1) / QBLOCK;
}

static size_t value_bytes(bool exact)
{
    return exact ? sizeof(float) : sizeof(int16_t);
}

/* ==== Packing keys and values ==== */

size_t KERNEL(kv_pack_bytes)(int head_dim, bool exact, size_t *scale_floats)
{
    *scale_floats = (size_t)dim_blocks(head_dim) * PANEL_COLS;
    return (size_t)dim_blocks(head_dim) * PANEL_VALUES * value_bytes(exact);
}

/* To what f16 can hold. */
static void round_f16(float x[QBLOCK])
{
    uint16_t halves[QBLOCK];
    for (int i = 0; i < QBLOCK; i += VL) vf_store_f16(halves + i, vf_load(x + i));
    for (int i = 0; i < QBLOCK; i += VL) vf_store(x + i, vf_load_f16(halves + i));
}

/* Keys of 64 tokens in up to 64 dims: inputs are the dims, outputs the tokens. */
static void key_panel(const float *k, int ld, int n, int dims, const struct KvPack *out,
                      void *panel, float *scale)
{
    bool exact = out->exact;
    _Alignas(64) int32_t words[VL * QBLOCK];
    for (int t0 = 0; t0 < QBLOCK; t0 += VL) {
        for (int t = 0; t < VL; t++) {
            float x[QBLOCK] = {0};
            if (t0 + t < n) memcpy(x, k + (size_t)(t0 + t) * ld, sizeof(float) * (size_t)dims);
            if (out->halves) round_f16(x);
            if (exact)
                memcpy(words + t * QBLOCK, x, sizeof x);
            else
                scale[t0 + t] = quant_block(x, LIMIT_KEY, (int16_t *)(words + t * (QBLOCK / 2)));
        }
        panel_put(words, exact ? QBLOCK : QBLOCK / 2, t0, panel);
    }
}

/* Tokens of a block that share scales; those before and behind them count as zero. */
struct Span {
    int from, to;
};

/* Values of 64 tokens for up to 64 dims: inputs are the tokens, outputs the dims. */
static void value_panel(const float *v, int ld, struct Span span, int dims,
                        const struct KvPack *out, void *panel, float *scale)
{
    bool exact = out->exact;
    _Alignas(64) float rows[QBLOCK][PANEL_COLS];
    memset(rows, 0, sizeof rows);
    for (int t = span.from; t < span.to; t++) {
        memcpy(rows[t], v + (size_t)t * ld, sizeof(float) * (size_t)dims);
        if (out->halves) round_f16(rows[t]);
    }
    for (int d = 0; d < PANEL_COLS; d += VL) {
        int sub = d / SUB_COLS, at = d % SUB_COLS;
        if (exact) {
            float *dst = (float *)panel + sub * QBLOCK * SUB_COLS + at;
            for (int t = 0; t < QBLOCK; t++) vf_store(dst + t * SUB_COLS, vf_load(&rows[t][d]));
            continue;
        }
        vf top = vf_zero();
        for (int t = span.from; t < span.to; t++) top = vf_max(top, vf_abs(vf_load(&rows[t][d])));
        top = vf_max(top, vf_set1(1e-30f));
        vf inv = vf_div(vf_set1(LIMIT_VALUE), top);
        vf_store(scale + d, vf_mul(top, vf_set1(1.0f / LIMIT_VALUE)));
        int16_t *dst = (int16_t *)panel + (sub * QBLOCK * SUB_COLS + 2 * at);
        for (int p = 0; p < QBLOCK / 2; p++) {
            int16_t even[VL], odd[VL];
            vf_store_i16(even, vf_mul(vf_load(&rows[2 * p][d]), inv));
            vf_store_i16(odd, vf_mul(vf_load(&rows[2 * p + 1][d]), inv));
            for (int i = 0; i < VL; i++) {
                dst[p * SUB_COLS * 2 + 2 * i] = even[i];
                dst[p * SUB_COLS * 2 + 2 * i + 1] = odd[i];
            }
        }
    }
}

void KERNEL(kv_pack)(const float *k, const float *v, int ld, int n, int block, struct KvPack *out)
{
    int head_dim = out->head_dim, blocks = dim_blocks(head_dim);
    size_t bytes = PANEL_VALUES * value_bytes(out->exact), first = (size_t)block * blocks;
    int apart = kv_apart(out, block) ? out->tail % QBLOCK : n;
    for (int b = 0; b < blocks; b++) {
        int dims = head_dim - b * QBLOCK < QBLOCK ? head_dim - b * QBLOCK : QBLOCK;
        uint8_t *kp = (uint8_t *)out->k + (first + b) * bytes,
                *vp = (uint8_t *)out->v + (first + b) * bytes;
        float *ks = out->k_scale + (first + b) * PANEL_COLS,
              *vs = out->v_scale + (first + b) * PANEL_COLS;
        key_panel(k + b * QBLOCK, ld, n, dims, out, kp, ks);
        value_panel(v + b * QBLOCK, ld, (struct Span){0, apart}, dims, out, vp, vs);
        if (apart < n)
            value_panel(v + b * QBLOCK, ld, (struct Span){apart, n}, dims, out,
                        (uint8_t *)out->tail_v + b * bytes, out->tail_scale + b * PANEL_COLS);
    }
}

/* ==== One tile of rows ==== */

struct Scratch {
    uint8_t *q;     /* [blocks][TILE_ROWS][64] int16 or f32 */
    float *q_scale; /* [blocks][TILE_ROWS] */
    float *s;       /* [TILE_ROWS][64] logits; for the mass [n_key_blocks][TILE_ROWS][64] */
    uint8_t *p;     /* [TILE_ROWS][64] probabilities, int16 or f32 */
    float *o;       /* [blocks][TILE_ROWS][64] output so far */
    float *sums;    /* [TILE_ROWS][VL] partial sums of probabilities */
    float *max, *block_max, *alpha, *beta, *p_scale; /* [TILE_ROWS] */
};

static size_t scratch_cut(int head_dim, int n_keys, bool exact, void *base, struct Scratch *s)
{
    size_t blocks = (size_t)dim_blocks(head_dim),
           key_blocks = ((size_t)n_keys + QBLOCK - 1) / QBLOCK + 1;
    uint8_t *at = base;
    size_t tile = sizeof(float) * TILE_ROWS * PANEL_COLS;
    s->q = at, at += TILE_ROWS * blocks * QBLOCK * value_bytes(exact);
    s->o = (float *)at, at += blocks * tile;
    s->p = at, at += TILE_ROWS * QBLOCK * value_bytes(exact);
    s->q_scale = (float *)at, at += sizeof(float) * TILE_ROWS * blocks;
    s->sums = (float *)at, at += sizeof(float) * TILE_ROWS * VL;
    float **rows[] = {&s->max, &s->block_max, &s->alpha, &s->beta, &s->p_scale};
    for (int i = 0; i < 5; i++) *rows[i] = (float *)at, at += sizeof(float) * TILE_ROWS;
    s->s = (float *)at, at += key_blocks * tile;
    return (size_t)(at - (uint8_t *)base);
}

size_t KERNEL(attn_scratch_bytes)(int head_dim, int n_keys, bool exact)
{
    struct Scratch s;
    return scratch_cut(head_dim, n_keys, exact, NULL, &s);
}

static void query_pack(const struct AttnTile *t, struct Scratch *s)
{
    int blocks = dim_blocks(t->head_dim);
    float factor = t->scale * 1.44269504f;
    for (int r = 0; r < TILE_ROWS; r++) {
        for (int b = 0; b < blocks; b++) {
            float x[QBLOCK] = {0};
            int dims = t->head_dim - b * QBLOCK < QBLOCK ? t->head_dim - b * QBLOCK : QBLOCK;
            if (r < t->n_rows)
                for (int i = 0; i < dims; i++)
                    x[i] = t->q[(size_t)r * t->ld_q + b * QBLOCK + i] * factor;
            size_t at = (size_t)b * TILE_ROWS + r;
            if (t->exact)
                memcpy((float *)s->q + at * QBLOCK, x, sizeof x);
            else
                s->q_scale[at] = quant_block(x, LIMIT_QUERY, (int16_t *)s->q + at * QBLOCK);
        }
    }
}

/* Row r of the tile sees the keys [from, to) and the sinks before them. */
static void sight(const struct AttnTile *t, int r, int *from, int *to)
{
    *to = t->first_visible + r;
    *from = t->window ? *to - t->window : 0;
    if (t->limit && *to > t->limit) *to = t->limit;
}

static int lanes(int n)
{
    return n < 0 ? 0 : n > VL ? VL : n;
}

/* Hides what the tile's rows do not see of key block kb. */
static void mask(const struct AttnTile *t, int kb, float *out)
{
    int first = kb * QBLOCK, from, to, unused;
    sight(t, 0, &unused, &to);
    sight(t, t->n_rows - 1, &from, &unused);
    if ((from <= first || first + QBLOCK <= t->sinks) && first + QBLOCK <= to) return;
    for (int r = 0; r < t->n_rows; r++) {
        sight(t, r, &from, &to);
        for (int v = 0; v < PANEL_COLS; v += VL) {
            float *x = out + r * PANEL_COLS + v;
            vf seen = vf_first(lanes(to - first - v), vf_load(x), vf_set1(MASKED));
            vf near = vf_first(lanes(from - first - v), vf_set1(MASKED), seen);
            vf_store(x, vf_first(lanes(t->sinks - first - v), seen, near));
        }
    }
}

/* Logits of the tile against key block kb, masked; base 2. */
static void logits(const struct AttnTile *t, const struct Scratch *s, int kb, float *out)
{
    int blocks = dim_blocks(t->head_dim);
    size_t vb = value_bytes(t->exact);
    for (int b = 0; b < blocks; b++) {
        size_t panel = (size_t)kb * blocks + b;
        struct TileRows rows = {s->q + (size_t)b * TILE_ROWS * QBLOCK * vb,
                                s->q_scale + b * TILE_ROWS, t->n_rows, 1, b == 0};
        tile_product(&rows, (const uint8_t *)t->kv.k + panel * PANEL_VALUES * vb,
                     t->kv.k_scale + panel * PANEL_COLS, t->exact, out);
    }
    int first = kb * QBLOCK;
    if (first < t->n_biased) {
        const float *bias = t->bias + first;
        int n = t->n_biased - first < QBLOCK ? t->n_biased - first : QBLOCK;
        for (int r = 0; r < t->n_rows; r++)
            for (int j = 0; j < n; j++) out[r * PANEL_COLS + j] += bias[j] * 1.44269504f;
    }
    mask(t, kb, out);
}

/* Row maxima of a logits tile. */
static void row_max(const float *s, int n, float *out)
{
    for (int r = 0; r < n; r++) {
        vf m = vf_load(s + r * PANEL_COLS);
        for (int v = VL; v < PANEL_COLS; v += VL) m = vf_max(m, vf_load(s + r * PANEL_COLS + v));
        out[r] = vf_hmax(m);
    }
}

/* New running maxima; alpha rescales what was summed, beta weighs this block. True if any alpha is not 1. */
static bool rescale(struct Scratch *s)
{
    vf moved = vf_zero();
    for (int r = 0; r < TILE_ROWS; r += VL) {
        vf old = vf_load(s->max + r), block = vf_load(s->block_max + r), max = vf_max(old, block);
        moved = vf_max(moved, vf_sub(max, old));
        vf beta = vf_exp2(vf_sub(block, max));
        vf_store(s->alpha + r, vf_exp2(vf_sub(old, max)));
        vf_store(s->beta + r, beta);
        vf_store(s->p_scale + r, vf_mul(beta, vf_set1(1.0f / LIMIT_PROB)));
        vf_store(s->max + r, max);
    }
    return vf_hmax(moved) > 0;
}

/* Turns logits into probabilities and adds their sums. */
static void probabilities(const struct AttnTile *t, struct Scratch *s)
{
    for (int r = 0; r < t->n_rows; r++) {
        vf top = vf_set1(s->block_max[r]), sum = vf_zero(), beta = vf_set1(s->beta[r]);
        for (int v = 0; v < PANEL_COLS; v += VL) {
            vf p = vf_exp2(vf_sub(vf_load(s->s + r * PANEL_COLS + v), top));
            sum = vf_add(sum, p);
            if (t->exact)
                vf_store((float *)s->p + r * QBLOCK + v, vf_mul(p, beta));
            else
                vf_store_i16((int16_t *)s->p + r * QBLOCK + v, vf_mul(p, vf_set1(LIMIT_PROB)));
        }
        float *sums = s->sums + r * VL;
        vf_store(sums, vf_fma(vf_load(sums), vf_set1(s->alpha[r]), vf_mul(sum, beta)));
    }
}

static void scale_output(const struct AttnTile *t, struct Scratch *s)
{
    for (int b = 0; b < dim_blocks(t->head_dim); b++)
        for (int r = 0; r < t->n_rows; r++) {
            if (s->alpha[r] == 1.0f) continue;
            float *o = s->o + ((size_t)b * TILE_ROWS + r) * PANEL_COLS;
            for (int v = 0; v < PANEL_COLS; v += VL)
                vf_store(o + v, vf_mul(vf_load(o + v), vf_set1(s->alpha[r])));
        }
}

/* Adds the products with one block's panels of values. */
static void add_panels(const struct AttnTile *t, struct Scratch *s, const uint8_t *v,
                       const float *scale, bool begun)
{
    size_t bytes = PANEL_VALUES * value_bytes(t->exact);
    struct TileRows rows = {s->p, s->p_scale, t->n_rows, 1, !begun};
    for (int b = 0; b < dim_blocks(t->head_dim); b++)
        tile_product(&rows, v + (size_t)b * bytes, scale + b * PANEL_COLS, t->exact,
                     s->o + (size_t)b * TILE_ROWS * PANEL_COLS);
}

static void add_values(const struct AttnTile *t, struct Scratch *s, int kb, bool begun)
{
    size_t first = (size_t)kb * dim_blocks(t->head_dim);
    add_panels(t, s, (const uint8_t *)t->kv.v + first * PANEL_VALUES * value_bytes(t->exact),
               t->kv.v_scale + first * PANEL_COLS, begun);
    if (kv_apart(&t->kv, kb)) add_panels(t, s, t->kv.tail_v, t->kv.tail_scale, true);
}

/* All key blocks that some row of the tile sees. A block that a row does not see counts for nothing once the row has
 * seen any key, and each sees its own. */
static void attend(const struct AttnTile *t, struct Scratch *s, bool begun)
{
    int first, last, unused;
    sight(t, 0, &first, &unused);
    sight(t, t->n_rows - 1, &unused, &last);
    if (last <= 0) return;
    query_pack(t, s);
    int near = first > 0 ? first / QBLOCK : 0;
    for (int kb = t->sinks ? 0 : near; kb * QBLOCK < last; kb++, begun = true) {
        if (kb < near && kb * QBLOCK >= t->sinks) kb = near;
        logits(t, s, kb, s->s);
        row_max(s->s, t->n_rows, s->block_max);
        bool moved = rescale(s);
        probabilities(t, s);
        if (moved && begun) scale_output(t, s);
        add_values(t, s, kb, begun);
    }
}

void KERNEL(attn_tile)(const struct AttnTile *t, void *scratch)
{
    struct Scratch s;
    scratch_cut(t->head_dim, 0, t->exact, scratch, &s);
    memset(s.sums, 0, sizeof(float) * TILE_ROWS * VL);
    for (int r = 0; r < TILE_ROWS; r++) s.max[r] = s.block_max[r] = MASKED;
    attend(t, &s, false);
    if (t->far) attend(t->far, &s, true);
    for (int r = 0; r < t->n_rows; r++) {
        float sum = vf_sum(vf_load(s.sums + r * VL)), inv = 1.0f / sum;
        if (t->lse) t->lse[(size_t)r * t->ld_lse] = (s.max[r] + log2f(sum)) * LN2;
        for (int d = 0; d < t->head_dim; d++)
            t->out[(size_t)r * t->ld_out + d] =
                s.o[((size_t)(d / QBLOCK) * TILE_ROWS + r) * PANEL_COLS + d % QBLOCK] * inv;
    }
}

void KERNEL(attn_mass)(const struct AttnTile *t, int n_keys, float *mass, void *scratch)
{
    struct Scratch s;
    scratch_cut(t->head_dim, n_keys, t->exact, scratch, &s);
    query_pack(t, &s);
    int key_blocks = (n_keys + QBLOCK - 1) / QBLOCK;
    size_t tile = TILE_ROWS * PANEL_COLS;
    for (int r = 0; r < TILE_ROWS; r++) s.max[r] = MASKED;
    for (int kb = 0; kb < key_blocks; kb++) {
        logits(t, &s, kb, s.s + kb * tile);
        row_max(s.s + kb * tile, t->n_rows, s.block_max);
        for (int r = 0; r < t->n_rows; r++) s.max[r] = fmaxf(s.max[r], s.block_max[r]);
    }
    for (int r = 0; r < t->n_rows; r++) {
        vf top = vf_set1(s.max[r]), sum = vf_zero();
        for (int kb = 0; kb < key_blocks; kb++)
            for (int v = 0; v < PANEL_COLS; v += VL) {
                float *x = s.s + kb * tile + r * PANEL_COLS + v;
                vf p = vf_exp2(vf_sub(vf_load(x), top));
                vf_store(x, p);
                sum = vf_add(sum, p);
            }
        float inv =
            t->lse ? exp2f(s.max[r] - t->lse[(size_t)r * t->ld_lse] / LN2) : 1.0f / vf_sum(sum);
        for (int j = 0; j < n_keys; j++)
            mass[j] += s.s[(size_t)(j / QBLOCK) * tile + r * PANEL_COLS + j % QBLOCK] * inv;
    }
}

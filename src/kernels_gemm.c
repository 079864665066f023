/* kernels_gemm.c - products of many rows with a stored weight matrix.
 *
 * A weight panel (64 outputs, all inputs) is decoded from its file blocks and packed into scratch, then
 * run against all rows of the call: with thousands of rows the packing costs about 2%, and
 * weights need neither load time nor a second copy in memory. What follows a product (bias, residual, SwiGLU)
 * happens on the tile while it is in the first-level cache.
 */
#include "kernels_list.h"
#include "kernels_tile.h"

static int n_blocks(int cols)
{
    return (cols + QBLOCK - 1) / QBLOCK;
}

static size_t value_bytes(bool exact)
{
    return exact ? sizeof(float) : sizeof(int16_t);
}

/* One group of one row, n_blocks blocks from `block` on, to its place. */
static inline void act_put(struct Act *act, int row, int block, int n_blocks, const float *x)
{
    float max = act->exact ? 0 : abs_max(x, n_blocks * QBLOCK);
    for (int b = 0; b < n_blocks; b++, x += QBLOCK) {
        size_t at = act_at(act, row, block + b);
        if (act->exact) {
            memcpy((float *)act->v + at * QBLOCK, x, QBLOCK * sizeof *x);
            continue;
        }
        float scale = quant_values(x, QBLOCK, max, (float)LIMIT_ACT / act->group,
                                   (int16_t *)act->v + at * QBLOCK);
        if (b == 0) act->scale[at] = scale;
    }
}

static int group_blocks(const struct Act *a, int block)
{
    return a->n_blocks - block < a->group ? a->n_blocks - block : a->group;
}

void KERNEL(act_pack)(const float *x, int ld, int row0, int n_rows, struct Act *act)
{
    for (int r = 0; r < n_rows; r++) {
        for (int b = 0; b < act->n_blocks; b += act->group) {
            float tail[GROUP_BLOCKS * QBLOCK] = {0};
            const float *in = x + (size_t)r * ld + b * QBLOCK;
            int n = group_blocks(act, b);
            if ((b + n) * QBLOCK > act->cols) {
                memcpy(tail, in, sizeof(float) * (size_t)(act->cols - b * QBLOCK));
                in = tail;
            }
            act_put(act, row0 + r, b, n, in);
        }
    }
}

/* ==== Weight panels ==== */

static size_t panel_value_bytes(int cols, bool exact)
{
    return (size_t)n_blocks(cols) * PANEL_VALUES * value_bytes(exact);
}

static size_t one_panel_bytes(int cols, bool exact)
{
    return panel_value_bytes(cols, exact) + (size_t)n_blocks(cols) * PANEL_COLS * sizeof(float);
}

enum { SPAN_BLOCKS = 24 }; /* 196 KB of int16 panel */

size_t KERNEL(panel_bytes)(int cols, bool exact)
{
    size_t span = PANELS_MAX * one_panel_bytes(SPAN_BLOCKS * QBLOCK, exact),
           pair = 2 * one_panel_bytes(cols, exact);
    int most = n_blocks(cols) > SPAN_BLOCKS ? n_blocks(cols) : SPAN_BLOCKS;
    return (span > pair ? span : pair) + (size_t)most * QBLOCK * VL * sizeof(float);
}

struct Panel {
    uint8_t *values; /* [n_blocks][PANEL_VALUES] */
    float *scale;    /* [n_blocks][PANEL_COLS] */
};

static struct Panel panel_at(void *scratch, int idx, int cols, bool exact)
{
    uint8_t *p = (uint8_t *)scratch + (size_t)idx * one_panel_bytes(cols, exact);
    return (struct Panel){p, (float *)(p + panel_value_bytes(cols, exact))};
}

/* Decoded rows of VL outputs, one group of n_blocks each, to their columns of the panel. */
static void put_group(const float *rows, int stride, int n_blocks, int col, int group,
                      struct Panel out, float *scale)
{
    _Alignas(64) int32_t words[VL * QBLOCK];
    for (int b = 0; b < n_blocks; b++, rows += QBLOCK) {
        if (group == 0) {
            for (int r = 0; r < VL; r++)
                memcpy(words + r * QBLOCK, rows + (size_t)r * stride, QBLOCK * sizeof *rows);
            panel_put(words, QBLOCK, col, out.values + (size_t)b * PANEL_VALUES * sizeof(float));
            continue;
        }
        for (int r = 0; r < VL; r++) {
            const float *x = rows + (size_t)r * stride;
            float max = b == 0 ? abs_max(x, n_blocks * QBLOCK) : scale[col + r] * LIMIT_WEIGHT;
            float s =
                quant_values(x, QBLOCK, max, LIMIT_WEIGHT, (int16_t *)(words + r * (QBLOCK / 2)));
            if (b == 0) scale[col + r] = s;
        }
        panel_put(words, QBLOCK / 2, col, out.values + (size_t)b * PANEL_VALUES * sizeof(int16_t));
    }
}

/* A run of input blocks: panels are packed and used one such span at a time, so that they stay in the
 * second-level cache however many inputs there are. */
struct Span {
    int begin, end; /* blocks */
};

/* Decodes and packs outputs [64 * idx, 64 * (idx + 1)) of w, one span of inputs, for activations like a; outputs
 * past the end are zero. */
static void panel_pack(const struct Weight *w, int idx, const struct Act *a, struct Span span,
                       struct Panel out, float *rows)
{
    int stride = (span.end - span.begin) * QBLOCK, col0 = span.begin * QBLOCK;
    int cols = span.end * QBLOCK < w->cols ? stride : w->cols - col0;
    size_t row_bytes = dtype_row_bytes(w->type, w->cols), skip = dtype_row_bytes(w->type, col0);
    size_t block_bytes = PANEL_VALUES * value_bytes(a->exact);
    memset(rows, 0, sizeof *rows * (size_t)stride * VL);
    for (int c = 0; c < PANEL_COLS; c += VL) {
        for (int r = 0; r < VL; r++) {
            int row = idx * PANEL_COLS + c + r;
            float *to = rows + (size_t)r * stride;
            if (row < w->rows)
                quant_decode(w->type, (const uint8_t *)w->data + (size_t)row * row_bytes + skip, to,
                             cols);
            else
                memset(to, 0, sizeof *rows * (size_t)stride);
        }
        for (int b = span.begin; b < span.end; b += a->group) {
            int at = b - span.begin;
            struct Panel part = {out.values + at * block_bytes, NULL};
            put_group(rows + at * QBLOCK, stride, group_blocks(a, b), c, a->exact ? 0 : a->group,
                      part, out.scale + at * PANEL_COLS);
        }
    }
}

/* ==== Tiles ==== */

/* fresh: the tile holds nothing yet. */
static void tile_run(const struct Act *a, struct Span span, bool fresh, int row, int n,
                     struct Panel p, float *tile)
{
    size_t vb = value_bytes(a->exact);
    for (int b = span.begin; b < span.end; b += a->group) {
        size_t at = act_at(a, row, b), in_panel = (size_t)(b - span.begin);
        struct TileRows t = {(const uint8_t *)a->v + at * QBLOCK * vb,
                             a->exact ? NULL : a->scale + at, n, group_blocks(a, b),
                             fresh && b == span.begin};
        tile_product(&t, p.values + in_panel * PANEL_VALUES * vb, p.scale + in_panel * PANEL_COLS,
                     a->exact, tile);
    }
}

/* Goes on from what earlier spans of inputs left in `out`: one order of sums, however wide the spans. */
static void tile_load(const struct MatmulArgs *m, int col, int row, int n, float *tile)
{
    int cols = m->w->rows - col < PANEL_COLS ? m->w->rows - col : PANEL_COLS;
    memset(tile, 0, sizeof *tile * TILE_ROWS * PANEL_COLS);
    for (int r = 0; r < n; r++)
        memcpy(tile + r * PANEL_COLS, m->out + (size_t)(row + r) * m->ld_out + col,
               sizeof *tile * (size_t)cols);
}

static void tile_store(const struct MatmulArgs *m, const float *bias, int col, int row, int n,
                       const float *tile)
{
    int cols = m->w->rows - col < PANEL_COLS ? m->w->rows - col : PANEL_COLS;
    for (int r = 0; r < n; r++) {
        float *out = m->out + (size_t)(row + r) * m->ld_out + col;
        const float *in = tile + r * PANEL_COLS;
        int c = 0;
        for (; c + VL <= cols; c += VL) {
            vf x = vf_load(in + c);
            if (bias) x = vf_add(x, vf_load(bias + col + c));
            if (m->mode == MATMUL_ADD) x = vf_add(x, vf_load(out + c));
            vf_store(out + c, x);
        }
        for (; c < cols; c++)
            out[c] = (m->mode == MATMUL_ADD ? out[c] : 0) + in[c] + (bias ? bias[col + c] : 0);
    }
}

static inline vf vf_silu(vf x)
{
    const vf log2e = vf_set1(1.44269504f), one = vf_set1(1.0f);
    /* 1 / (1 + e^-|x|), mirrored for negative x, so that the exponential never overflows */
    vf e = vf_exp2(vf_mul(vf_sub(vf_zero(), vf_abs(x)), log2e));
    vf s = vf_div(one, vf_add(one, e));
    vf pos = vf_mul(vf_max(x, vf_zero()), s);
    vf neg = vf_mul(vf_sub(x, vf_max(x, vf_zero())), vf_mul(e, s));
    return vf_add(pos, neg);
}

static void tile_silu(const struct MatmulArgs *m, int col, int row, int n, float *gate,
                      const float *up)
{
    for (int i = 0; i < n * PANEL_COLS; i += VL)
        vf_store(gate + i, vf_mul(vf_silu(vf_load(gate + i)), vf_load(up + i)));
    for (int r = 0; r < n; r++)
        act_put(m->act_out, row + r, col / QBLOCK, 1, gate + r * PANEL_COLS);
}

static void matmul_silu(const struct MatmulArgs *m, int panel, int row0, int row1, void *scratch)
{
    int cols = m->w->cols;
    bool exact = m->a->exact;
    struct Span all = {0, m->a->n_blocks};
    struct Panel gate = panel_at(scratch, 0, cols, exact), up = panel_at(scratch, 1, cols, exact);
    float *rows = (float *)((uint8_t *)scratch + 2 * one_panel_bytes(cols, exact));
    _Alignas(64) float tile[TILE_ROWS * PANEL_COLS];
    _Alignas(64) float tile2[TILE_ROWS * PANEL_COLS];
    panel_pack(m->w, panel, m->a, all, gate, rows);
    panel_pack(m->w2, panel, m->a, all, up, rows);
    for (int r = row0; r < row1; r += TILE_ROWS) {
        int n = row1 - r < TILE_ROWS ? row1 - r : TILE_ROWS;
        tile_run(m->a, all, true, r, n, gate, tile);
        tile_run(m->a, all, true, r, n, up, tile2);
        tile_silu(m, panel * PANEL_COLS, r, n, tile, tile2);
    }
}

/* Several panels at a time run over each tile of rows while it is near: with many inputs the rows, not the
 * weights, are what streams from memory. */
void KERNEL(matmul_tile)(const struct MatmulArgs *m, int panel, int row0, int row1, void *scratch)
{
    if (m->mode == MATMUL_SILU) {
        matmul_silu(m, panel, row0, row1, scratch);
        return;
    }
    bool exact = m->a->exact;
    /* MATMUL_ADD adds each span's sum: its spans are of one width, or n_panels would show in the result */
    int width = m->n_panels > 1 || m->mode == MATMUL_ADD ? SPAN_BLOCKS / 2 : SPAN_BLOCKS;
    int span_cols = SPAN_BLOCKS * QBLOCK;
    int last = (m->w->rows + PANEL_COLS - 1) / PANEL_COLS - panel;
    int wanted = m->n_panels > 1 ? m->n_panels : 1, n_panels = wanted < last ? wanted : last;
    float *rows = (float *)((uint8_t *)scratch + PANELS_MAX * one_panel_bytes(span_cols, exact));
    _Alignas(64) float tile[TILE_ROWS * PANEL_COLS];
    for (int b = 0; b < m->a->n_blocks; b += width) {
        struct Span span = {b, b + width < m->a->n_blocks ? b + width : m->a->n_blocks};
        const float *bias = span.end == m->a->n_blocks ? m->bias : NULL;
        bool fresh = b == 0 || m->mode == MATMUL_ADD;
        for (int i = 0; i < n_panels; i++)
            panel_pack(m->w, panel + i, m->a, span, panel_at(scratch, i, span_cols, exact), rows);
        for (int r = row0; r < row1; r += TILE_ROWS) {
            int n = row1 - r < TILE_ROWS ? row1 - r : TILE_ROWS;
            for (int i = 0; i < n_panels; i++) {
                int col = (panel + i) * PANEL_COLS;
                if (!fresh) tile_load(m, col, r, n, tile);
                tile_run(m->a, span, fresh, r, n, panel_at(scratch, i, span_cols, exact), tile);
                tile_store(m, bias, col, r, n, tile);
            }
        }
    }
}

void KERNEL(silu_mul)(float *gate, const float *up, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(gate + i, vf_mul(vf_silu(vf_load(gate + i)), vf_load(up + i)));
    for (; i < n; i++) {
        float x[VL] = {gate[i]};
        vf_store(x, vf_silu(vf_load(x)));
        gate[i] = x[0] * up[i];
    }
}

/* kernels_tile.h - the tile product shared by weights (kernels_gemm.c) and attention (kernels_attn.c).
 *
 * A panel holds 64 outputs' values for one block of 64 inputs, ordered so that a vector load gives
 * one pair of inputs (int16) or one input (f32) of VL outputs: [sub][input pair or input][SUB_COLS][2 or 1].
 * The product of up to TILE_ROWS rows with a panel is accumulated into an f32 tile [rows][64].
 */
#ifndef PCOMP_KERNELS_TILE_H
#define PCOMP_KERNELS_TILE_H

#include "kernels.h"
#include "kernels_simd.h"

enum {
    MICRO_ROWS = 6,             /* rows held in registers */
    SUB_COLS = VL * PANEL_VECS, /* outputs held in registers */
    N_SUBS = PANEL_COLS / SUB_COLS,
    PANEL_VALUES = QBLOCK * PANEL_COLS, /* of one block */
};

/* Rows of n_blocks (1 .. GROUP_BLOCKS) blocks of inputs that share a scale. The product rounds n up to MICRO_ROWS, so
 * storage reaches TILE_ROWS. */
struct TileRows {
    const void *a;   /* [n_blocks, TILE_ROWS, QBLOCK] int16 or f32 */
    const float *sa; /* [TILE_ROWS] f32 scales (int16 only) */
    int n, n_blocks;
    bool first; /* the tile holds nothing yet: set instead of add */
};

enum { ROWS_STEP = TILE_ROWS * QBLOCK }; /* values from one block of rows to the next */

static inline __attribute__((always_inline)) void
flush_int16(vi acc[MICRO_ROWS][PANEL_VECS], const float *sa, const float *sw, bool first, float *c)
{
    for (int r = 0; r < MICRO_ROWS; r++) {
        vf s = vf_set1(sa[r]);
        for (int v = 0; v < PANEL_VECS; v++) {
            float *out = c + r * PANEL_COLS + v * VL;
            vf scale = vf_mul(s, vf_load(sw + v * VL)), x = vi_to_f32(acc[r][v]);
            vf_store(out, first ? vf_mul(x, scale) : vf_fma(x, scale, vf_load(out)));
        }
    }
}

static inline __attribute__((always_inline)) void
micro_int16(const struct TileRows *t, int row, const int16_t *panel, const float *sw, float *c)
{
    const int16_t *a = (const int16_t *)t->a + row * QBLOCK;
    vi acc[MICRO_ROWS][PANEL_VECS];
    for (int r = 0; r < MICRO_ROWS; r++)
        for (int v = 0; v < PANEL_VECS; v++) acc[r][v] = vi_zero();
    for (int b = 0; b < t->n_blocks; b++, a += ROWS_STEP, panel += PANEL_VALUES) {
        for (int p = 0; p < QBLOCK / 2; p++) {
            vi w[PANEL_VECS];
            for (int v = 0; v < PANEL_VECS; v++)
                w[v] = vi_load(panel + (p * SUB_COLS + v * VL) * 2);
            for (int r = 0; r < MICRO_ROWS; r++) {
                int32_t pair;
                memcpy(&pair, a + r * QBLOCK + 2 * p, sizeof pair);
                vi x = vi_set1(pair);
                for (int v = 0; v < PANEL_VECS; v++) acc[r][v] = vi_dot(acc[r][v], x, w[v]);
            }
        }
    }
    if (t->first)
        flush_int16(acc, t->sa + row, sw, true, c);
    else
        flush_int16(acc, t->sa + row, sw, false, c);
}

static inline __attribute__((always_inline)) void micro_f32(const struct TileRows *t, int row,
                                                            const float *panel, float *c)
{
    const float *a = (const float *)t->a + row * QBLOCK;
    vf acc[MICRO_ROWS][PANEL_VECS];
    for (int r = 0; r < MICRO_ROWS; r++)
        for (int v = 0; v < PANEL_VECS; v++)
            acc[r][v] = t->first ? vf_zero() : vf_load(c + r * PANEL_COLS + v * VL);
    for (int b = 0; b < t->n_blocks; b++, a += ROWS_STEP, panel += PANEL_VALUES) {
        for (int p = 0; p < QBLOCK; p++) {
            vf w[PANEL_VECS];
            for (int v = 0; v < PANEL_VECS; v++) w[v] = vf_load(panel + p * SUB_COLS + v * VL);
            for (int r = 0; r < MICRO_ROWS; r++) {
                vf x = vf_set1(a[r * QBLOCK + p]);
                for (int v = 0; v < PANEL_VECS; v++) acc[r][v] = vf_fma(x, w[v], acc[r][v]);
            }
        }
    }
    for (int r = 0; r < MICRO_ROWS; r++)
        for (int v = 0; v < PANEL_VECS; v++) vf_store(c + r * PANEL_COLS + v * VL, acc[r][v]);
}

/* c [rows][64] (+)= rows x panels [n_blocks][PANEL_VALUES]; panel_scale [64] f32 (int16 only). */
static inline void tile_product(const struct TileRows *t, const void *panel,
                                const float *panel_scale, bool exact, float *c)
{
    for (int s = 0; s < N_SUBS; s++) {
        for (int r = 0; r < t->n; r += MICRO_ROWS) {
            float *out = c + r * PANEL_COLS + s * SUB_COLS;
            if (exact)
                micro_f32(t, r, (const float *)panel + s * QBLOCK * SUB_COLS, out);
            else
                micro_int16(t, r, (const int16_t *)panel + s * QBLOCK * SUB_COLS,
                            panel_scale + s * SUB_COLS, out);
        }
    }
}

/* Largest magnitude of n values, n a multiple of QBLOCK. */
static inline float abs_max(const float *x, int n)
{
    vf top = vf_zero();
    for (int i = 0; i < n; i += VL) top = vf_max(top, vf_abs(vf_load(x + i)));
    return vf_hmax(top);
}

/* n floats of magnitude at most max to int16 within +-limit; returns the scale. */
static inline float quant_values(const float *x, int n, float max, float limit, int16_t *q)
{
    vf inv = vf_set1(max > 0 ? limit / max : 0);
    for (int i = 0; i < n; i += VL) vf_store_i16(q + i, vf_mul(vf_load(x + i), inv));
    return max / limit;
}

static inline float quant_block(const float *x, float limit, int16_t *q)
{
    return quant_values(x, QBLOCK, abs_max(x, QBLOCK), limit, q);
}

/* Puts 64 values of each of VL outputs, columns col .. col + VL - 1, in place: int32 pairs (or f32 values)
 * [VL][n] become [n][VL], by square transposes in registers. */
static inline void panel_put(const int32_t *words, int n, int col, void *panel)
{
    int sub = col / SUB_COLS, at = col % SUB_COLS;
    int32_t *dst = (int32_t *)panel + sub * n * SUB_COLS + at;
    for (int i = 0; i < n; i += VL) {
        vi square[VL];
        for (int r = 0; r < VL; r++) square[r] = vi_load(words + r * n + i);
        vi_transpose(square);
        for (int r = 0; r < VL; r++) vi_store(dst + (i + r) * SUB_COLS, square[r]);
    }
}

#endif

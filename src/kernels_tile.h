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
    MICRO_ROWS = 6,                    /* rows held in registers */
    SUB_COLS = VL * PANEL_VECS,        /* outputs held in registers */
    N_SUBS = PANEL_COLS / SUB_COLS,
    PANEL_VALUES = QBLOCK * PANEL_COLS, /* of one block */
};

/* Rows of one block of inputs. The product rounds n up to MICRO_ROWS, so storage reaches TILE_ROWS. */
struct TileRows {
    const void *a;   /* [TILE_ROWS, QBLOCK] int16 or f32 */
    const float *sa; /* [TILE_ROWS] f32 scales (int16 only) */
    int n;
};

static inline __attribute__((always_inline)) void micro_int16(const int16_t *a, const float *sa, const int16_t *panel,
                                                              const float *sw, float *c)
{
    vi acc[MICRO_ROWS][PANEL_VECS];
    for (int r = 0; r < MICRO_ROWS; r++)
        for (int v = 0; v < PANEL_VECS; v++) acc[r][v] = vi_zero();
    for (int p = 0; p < QBLOCK / 2; p++) {
        vi b[PANEL_VECS];
        for (int v = 0; v < PANEL_VECS; v++) b[v] = vi_load(panel + (p * SUB_COLS + v * VL) * 2);
        for (int r = 0; r < MICRO_ROWS; r++) {
            int32_t pair;
            memcpy(&pair, a + r * QBLOCK + 2 * p, sizeof pair);
            vi x = vi_set1(pair);
            for (int v = 0; v < PANEL_VECS; v++) acc[r][v] = vi_dot(acc[r][v], x, b[v]);
        }
    }
    for (int r = 0; r < MICRO_ROWS; r++) {
        vf s = vf_set1(sa[r]);
        for (int v = 0; v < PANEL_VECS; v++) {
            float *out = c + r * PANEL_COLS + v * VL;
            vf_store(out, vf_fma(vi_to_f32(acc[r][v]), vf_mul(s, vf_load(sw + v * VL)), vf_load(out)));
        }
    }
}

static inline __attribute__((always_inline)) void micro_f32(const float *a, const float *panel, float *c)
{
    vf acc[MICRO_ROWS][PANEL_VECS];
    for (int r = 0; r < MICRO_ROWS; r++)
        for (int v = 0; v < PANEL_VECS; v++) acc[r][v] = vf_load(c + r * PANEL_COLS + v * VL);
    for (int p = 0; p < QBLOCK; p++) {
        vf b[PANEL_VECS];
        for (int v = 0; v < PANEL_VECS; v++) b[v] = vf_load(panel + p * SUB_COLS + v * VL);
        for (int r = 0; r < MICRO_ROWS; r++) {
            vf x = vf_set1(a[r * QBLOCK + p]);
            for (int v = 0; v < PANEL_VECS; v++) acc[r][v] = vf_fma(x, b[v], acc[r][v]);
        }
    }
    for (int r = 0; r < MICRO_ROWS; r++)
        for (int v = 0; v < PANEL_VECS; v++) vf_store(c + r * PANEL_COLS + v * VL, acc[r][v]);
}

/* c [rows][64] += rows x panel, for one block of inputs; panel_scale [64] f32 (int16 only). */
static inline void tile_product(const struct TileRows *t, const void *panel, const float *panel_scale, bool exact,
                                float *c)
{
    for (int s = 0; s < N_SUBS; s++) {
        for (int r = 0; r < t->n; r += MICRO_ROWS) {
            float *out = c + r * PANEL_COLS + s * SUB_COLS;
            if (exact)
                micro_f32((const float *)t->a + r * QBLOCK, (const float *)panel + s * QBLOCK * SUB_COLS, out);
            else
                micro_int16((const int16_t *)t->a + r * QBLOCK, t->sa + r, (const int16_t *)panel + s * QBLOCK * SUB_COLS,
                            panel_scale + s * SUB_COLS, out);
        }
    }
}

/* 64 floats to int16 within +-limit; returns the scale. */
static inline float quant_block(const float *x, float limit, int16_t *q)
{
    vf top = vf_zero();
    for (int i = 0; i < QBLOCK; i += VL) top = vf_max(top, vf_abs(vf_load(x + i)));
    float max = vf_hmax(top);
    vf inv = vf_set1(max > 0 ? limit / max : 0);
    for (int i = 0; i < QBLOCK; i += VL) vf_store_i16(q + i, vf_mul(vf_load(x + i), inv));
    return max / limit;
}

/* Puts one output's 64 values (column `col` of the panel) in place; int16 scales go to scale[col]. */
static inline void panel_put(const float *x, int col, float limit, bool exact, void *panel, float *scale)
{
    int sub = col / SUB_COLS, at = col % SUB_COLS;
    if (exact) {
        float *dst = (float *)panel + sub * QBLOCK * SUB_COLS + at;
        for (int i = 0; i < QBLOCK; i++) dst[i * SUB_COLS] = x[i];
        return;
    }
    int16_t q[QBLOCK];
    int32_t pair[QBLOCK / 2];
    scale[col] = quant_block(x, limit, q);
    memcpy(pair, q, sizeof pair);
    int32_t *dst = (int32_t *)panel + sub * (QBLOCK / 2) * SUB_COLS + at;
    for (int i = 0; i < QBLOCK / 2; i++) dst[i * SUB_COLS] = pair[i];
}

#endif

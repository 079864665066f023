/* kernels_pages.c - KV pages: 64 tokens of one KV head of one layer, and attention of one position
 * over them (decode).
 *
 * A page holds K transposed, [head_dim, 64], so that 64 logits grow in registers without horizontal
 * sums, then V as [64, head_dim]; f16, or f32 in exact mode. Keys are stored rotated.
 */
#include "kernels_list.h"
#include "kernels_simd.h"

#include "quant.h"

#include <math.h>

enum {
    KEY_VECS = QBLOCK / VL, /* vectors of a row of 64 keys */
    GROUP = 4,              /* query heads per pass over a page: what the registers hold */
    GROUP_WIDE = VL == 16 ? GROUP : 1,
    QUERIES_MAX = 16, /* query rows whose logits are held at once */
};

void KERNEL(page_write)(void *page, int at, int head_dim, const float *k, const float *v,
                        bool exact)
{
    if (exact) {
        float *p = page;
        for (int d = 0; d < head_dim; d++) p[d * QBLOCK + at] = k[d];
        memcpy(p + (size_t)head_dim * QBLOCK + (size_t)at * head_dim, v,
               sizeof *v * (size_t)head_dim);
        return;
    }
    uint16_t *p = page;
    for (int d = 0; d < head_dim; d++) {
        p[d * QBLOCK + at] = f32_to_f16(k[d]);
        p[(size_t)head_dim * QBLOCK + (size_t)at * head_dim + d] = f32_to_f16(v[d]);
    }
}

void KERNEL(page_read)(const void *page, int at, int head_dim, float *k, float *v, bool exact)
{
    size_t values = (size_t)head_dim * QBLOCK + (size_t)at * head_dim;
    if (exact) {
        const float *p = page;
        for (int d = 0; d < head_dim; d++) k[d] = p[d * QBLOCK + at];
        memcpy(v, p + values, sizeof *v * (size_t)head_dim);
        return;
    }
    const uint16_t *p = page;
    for (int d = 0; d < head_dim; d++) {
        k[d] = f16_to_f32(p[d * QBLOCK + at]);
        v[d] = f16_to_f32(p[values + d]);
    }
}

static inline vf load_at(const void *p, size_t i, bool exact)
{
    return exact ? vf_load((const float *)p + i) : vf_load_f16((const uint16_t *)p + i);
}

static inline float value_at(const void *p, size_t i, bool exact)
{
    return exact ? ((const float *)p)[i] : f16_to_f32(((const uint16_t *)p)[i]);
}

/* Keys stand on end in a page: a few dims of all 64 are read at a time and laid down. */
static void rows_of_keys(const void *page, int at, int n, int head_dim, float *k, bool exact)
{
    enum { DIMS = 16 };
    float strip[DIMS][QBLOCK];
    for (int d0 = 0; d0 < head_dim; d0 += DIMS) {
        int dims = head_dim - d0 < DIMS ? head_dim - d0 : DIMS;
        for (int d = 0; d < dims; d++)
            for (int v = 0; v < QBLOCK; v += VL)
                vf_store(&strip[d][v], load_at(page, (size_t)(d0 + d) * QBLOCK + v, exact));
        for (int j = 0; j < n; j++)
            for (int d = 0; d < dims; d++) k[j * head_dim + d0 + d] = strip[d][at + j];
    }
}

void KERNEL(page_rows)(const void *page, int at, int n, int head_dim, float *k, float *v,
                       bool exact)
{
    size_t first = ((size_t)QBLOCK + (size_t)at) * head_dim, count = (size_t)n * head_dim, i = 0;
    rows_of_keys(page, at, n, head_dim, k, exact);
    for (; i + VL <= count; i += VL) vf_store(v + i, load_at(page, first + i, exact));
    for (; i < count; i++) v[i] = value_at(page, first + i, exact);
}

/* Base-2 logits of query rows [first, first + n_q) against a page's 64 keys: s [n_q][64]. */
static inline __attribute__((always_inline)) void
page_logits(const struct PageAttn *a, int first, int n_q, const void *page, bool exact, float *s)
{
    float factor = 1.44269504f / sqrtf((float)a->head_dim);
    for (int q0 = 0; q0 < n_q; q0 += GROUP_WIDE) {
        int n = n_q - q0 < GROUP_WIDE ? n_q - q0 : GROUP_WIDE;
        vf acc[GROUP_WIDE][KEY_VECS];
        for (int g = 0; g < GROUP_WIDE; g++)
            for (int v = 0; v < KEY_VECS; v++) acc[g][v] = vf_zero();
        const float *row[GROUP_WIDE];
        for (int g = 0; g < GROUP_WIDE; g++)
            row[g] = a->q + (size_t)(first + q0 + (g < n ? g : 0)) * a->ld_q;
        for (int d = 0; d < a->head_dim; d++) {
            vf k[KEY_VECS];
            for (int v = 0; v < KEY_VECS; v++)
                k[v] = load_at(page, (size_t)d * QBLOCK + v * VL, exact);
            for (int g = 0; g < GROUP_WIDE; g++) {
                vf x = vf_set1(row[g][d]);
                for (int v = 0; v < KEY_VECS; v++) acc[g][v] = vf_fma(x, k[v], acc[g][v]);
            }
        }
        for (int g = 0; g < n; g++)
            for (int v = 0; v < KEY_VECS; v++)
                vf_store(s + (q0 + g) * QBLOCK + v * VL, vf_mul(acc[g][v], vf_set1(factor)));
    }
}

/* Logits of one query -> probabilities in place; updates the partial and rescales the output so far. */
static void page_softmax(float *s, const struct PageRun *run, int head_dim, struct Partial *part,
                         float *out)
{
    int len = run->len;
    vf top = vf_set1(-INFINITY);
    for (int j = run->hidden; j < run->seen; j++) s[j] = -INFINITY;
    for (int v = 0; v < QBLOCK; v += VL) {
        int n = len - v;
        vf x = vf_first(n < 0 ? 0 : n > VL ? VL : n, vf_load(s + v), vf_set1(-INFINITY));
        vf_store(s + v, x);
        top = vf_max(top, x);
    }
    float max = fmaxf(part->max, vf_hmax(top));
    float alpha = exp2f(part->max - max);
    vf sum = vf_zero();
    for (int v = 0; v < QBLOCK; v += VL) {
        vf p = vf_exp2(vf_sub(vf_load(s + v), vf_set1(max)));
        vf_store(s + v, p);
        sum = vf_add(sum, p);
    }
    part->sum = part->sum * alpha + vf_sum(sum);
    part->max = max;
    if (alpha != 1.0f)
        for (int d = 0; d < head_dim; d++) out[d] *= alpha;
}

/* out [n_q][head_dim] += p [n_q][64] x V, four query heads and VL dims at a time. */
static inline __attribute__((always_inline)) void page_values(const float *p, int n_q, int head_dim,
                                                              int len, const void *page, bool exact,
                                                              float *out)
{
    size_t base = (size_t)head_dim * QBLOCK;
    for (int q0 = 0; q0 < n_q; q0 += GROUP) {
        int n = n_q - q0 < GROUP ? n_q - q0 : GROUP;
        int d = 0;
        for (; d + VL <= head_dim; d += VL) {
            vf acc[GROUP];
            for (int g = 0; g < GROUP; g++)
                acc[g] = g < n ? vf_load(out + (size_t)(q0 + g) * head_dim + d) : vf_zero();
            for (int t = 0; t < len; t++) {
                vf v = load_at(page, base + (size_t)t * head_dim + d, exact);
                for (int g = 0; g < GROUP; g++)
                    acc[g] = vf_fma(vf_set1(p[(q0 + (g < n ? g : 0)) * QBLOCK + t]), v, acc[g]);
            }
            for (int g = 0; g < n; g++) vf_store(out + (size_t)(q0 + g) * head_dim + d, acc[g]);
        }
        for (; d < head_dim; d++) /* head widths that are no multiple of VL */
            for (int g = q0; g < q0 + n; g++)
                for (int t = 0; t < len; t++)
                    out[(size_t)g * head_dim + d] +=
                        p[g * QBLOCK + t] * value_at(page, base + (size_t)t * head_dim + d, exact);
    }
}

/* One page for query rows [first, first + n): logits, softmax, values. */
static inline __attribute__((always_inline)) void attend_page(const struct PageAttn *a,
                                                              const struct PageRun *run, int first,
                                                              int n, bool exact,
                                                              struct Partial *part, float *out)
{
    _Alignas(64) float s[QUERIES_MAX * QBLOCK];
    page_logits(a, first, n, run->page, exact, s);
    for (int g = 0; g < n; g++) {
        if (run->bias != 0)
            for (int j = 0; j < run->len; j++) s[g * QBLOCK + j] += run->bias * 1.44269504f;
        page_softmax(s + g * QBLOCK, run, a->head_dim, part + g, out + (size_t)g * a->head_dim);
    }
    page_values(s, n, a->head_dim, run->len, run->page, exact, out);
}

void KERNEL(attn_pages)(const struct PageAttn *a, struct Partial *part, float *out)
{
    for (int g = 0; g < a->n_q; g++) part[g] = (struct Partial){-INFINITY, 0};
    memset(out, 0, sizeof *out * (size_t)a->n_q * a->head_dim);
    for (int i = 0; i < a->n_runs; i++) {
        if (a->runs[i].len == 0) continue;
        for (int q = 0; q < a->n_q; q += QUERIES_MAX) {
            int n = a->n_q - q < QUERIES_MAX ? a->n_q - q : QUERIES_MAX;
            float *to = out + (size_t)q * a->head_dim;
            if (a->exact)
                attend_page(a, &a->runs[i], q, n, true, part + q, to);
            else
                attend_page(a, &a->runs[i], q, n, false, part + q, to);
        }
    }
}

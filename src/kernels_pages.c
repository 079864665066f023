/* kernels_pages.c - KV pages: 64 tokens of one KV head of one layer, and attention of one position
 * over them (decode).
 *
 * A page holds K transposed, [head_dim, 64], so that 64 logits grow in registers without horizontal
 * sums, then V as [64, head_dim]; f16, or f32 in exact mode. Keys are stored rotated. Pages of codes have kernels of
 * their own (kernels_codes.c).
 */
#include "kernels_pages.h"

#include "quant.h"

void KERNEL(page_write)(void *page, int at, int head_dim, const float *k, const float *v,
                        enum PageFormat format)
{
    if (format >= PAGE_Q8) {
        KERNEL(codes_write)(page, at, head_dim, k, v, format);
        return;
    }
    if (format == PAGE_F32) {
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

void KERNEL(page_read)(const void *page, int at, int head_dim, float *k, float *v,
                       enum PageFormat format)
{
    if (format >= PAGE_Q8) {
        KERNEL(codes_read)(page, at, head_dim, k, v, format);
        return;
    }
    size_t values = (size_t)head_dim * QBLOCK + (size_t)at * head_dim;
    if (format == PAGE_F32) {
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

void KERNEL(page_move)(void *to, int to_at, const void *from, int from_at, int head_dim,
                       enum PageFormat format)
{
    if (format >= PAGE_Q8) {
        KERNEL(codes_move)(to, to_at, from, from_at, head_dim, format);
        return;
    }
    size_t size = format == PAGE_F32 ? sizeof(float) : sizeof(uint16_t),
           values = (size_t)head_dim * QBLOCK * size, row = (size_t)head_dim * size;
    uint8_t *dst = to;
    const uint8_t *src = from;
    for (int d = 0; d < head_dim; d++)
        memcpy(dst + ((size_t)d * QBLOCK + (size_t)to_at) * size,
               src + ((size_t)d * QBLOCK + (size_t)from_at) * size, size);
    memmove(dst + values + (size_t)to_at * row, src + values + (size_t)from_at * row, row);
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
                       enum PageFormat format)
{
    if (format >= PAGE_Q8) {
        for (int i = 0; i < n; i++)
            KERNEL(codes_read)(page, at + i, head_dim, k + i * head_dim, v + i * head_dim, format);
        return;
    }
    bool exact = format == PAGE_F32;
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
    page_softmaxes(a, run, n, s, part, out);
    page_values(s, n, a->head_dim, run->len, run->page, exact, out);
}

/* All pages for query rows [first, first + n). */
static void attend_rows(const struct PageAttn *a, int first, int n, struct Partial *part,
                        float *out)
{
    for (int i = 0; i < a->n_runs; i++) {
        if (a->runs[i].len == 0) continue;
        if (a->format == PAGE_F32)
            attend_page(a, &a->runs[i], first, n, true, part, out);
        else
            attend_page(a, &a->runs[i], first, n, false, part, out);
    }
}

void KERNEL(attn_pages)(const struct PageAttn *a, struct Partial *part, float *out)
{
    for (int g = 0; g < a->n_q; g++) part[g] = (struct Partial){-INFINITY, 0};
    memset(out, 0, sizeof *out * (size_t)a->n_q * a->head_dim);
    for (int q = 0; q < a->n_q; q += QUERIES_MAX) {
        int n = a->n_q - q < QUERIES_MAX ? a->n_q - q : QUERIES_MAX;
        float *to = out + (size_t)q * a->head_dim;
        if (a->format >= PAGE_Q8)
            KERNEL(codes_attend)(a, q, n, part + q, to);
        else
            attend_rows(a, q, n, part + q, to);
    }
}

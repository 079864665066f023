/* kernels_pages.h - what the attention over pages of numbers (kernels_pages.c) and over pages of codes (kernels_codes.c)
 * share, in one copy of the kernels.
 */
#ifndef PCOMP_KERNELS_PAGES_H
#define PCOMP_KERNELS_PAGES_H

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

/* Values of a page of numbers or of its index: f16, or f32 in exact mode. */
static inline vf load_at(const void *p, size_t i, bool exact)
{
    return exact ? vf_load((const float *)p + i) : vf_load_f16((const uint16_t *)p + i);
}

static inline float value_at(const void *p, size_t i, bool exact)
{
    return exact ? ((const float *)p)[i] : f16_to_f32(((const uint16_t *)p)[i]);
}

/* kernels_codes.c: as page_write, page_read and page_move of struct Kernels, for PAGE_Q8 and PAGE_Q4. */
void KERNEL(codes_write)(void *page, int at, int head_dim, const float *k, const float *v,
                         enum PageFormat format);
void KERNEL(codes_read)(const void *page, int at, int head_dim, float *k, float *v,
                        enum PageFormat format);
void KERNEL(codes_move)(void *to, int to_at, const void *from, int from_at, int head_dim,
                        enum PageFormat format);
/* One channel of the keys of a page of codes: x [64]. */
void KERNEL(codes_channel)(const void *page, int channel, int head_dim, float *x,
                           enum PageFormat format);
/* All runs of `a` for query rows [first, first + n), QUERIES_MAX at most; out [n, head_dim] and part [n] go on from what
 * they hold. */
void KERNEL(codes_attend)(const struct PageAttn *a, int first, int n, struct Partial *part,
                          float *out);

/* Logits of one query -> probabilities in place; updates the partial and rescales the output so far. */
static inline void page_softmax(float *s, const struct PageRun *run, int head_dim,
                                struct Partial *part, float *out)
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

/* Logits of n queries, s [n][64], of one page -> probabilities in place. */
static inline void page_softmaxes(const struct PageAttn *a, const struct PageRun *run, int n,
                                  float *s, struct Partial *part, float *out)
{
    for (int g = 0; g < n; g++) {
        if (run->bias != 0)
            for (int j = 0; j < run->len; j++) s[g * QBLOCK + j] += run->bias * 1.44269504f;
        page_softmax(s + g * QBLOCK, run, a->head_dim, part + g, out + (size_t)g * a->head_dim);
    }
}

#endif

/* kernels_index.c - the index of a page, and what a query may expect of the page by it (headwise.md C.2).
 *
 * Values are of the pages' own type: the least and the largest of f16 values are f16 values, so a bound stays one, and a
 * row that scores thousands of pages reads half the bytes.
 */
#include "kernels_list.h"
#include "kernels_pages.h"

#include <math.h>

static int valid(int len, int at)
{
    int n = len - at;
    return n < 0 ? 0 : n > VL ? VL : n;
}

/* ==== Writing ==== */

static void put(void *out, int i, float value, bool exact)
{
    if (exact)
        ((float *)out)[i] = value;
    else
        ((uint16_t *)out)[i] = f32_to_f16(value);
}

static float mean_of(const void *page, int channel, int len, bool exact)
{
    vf sum = vf_zero();
    for (int v = 0; v < QBLOCK; v += VL) {
        vf x = load_at(page, (size_t)channel * QBLOCK + v, exact);
        sum = vf_add(sum, vf_first(valid(len, v), x, vf_zero()));
    }
    return vf_sum(sum) / (float)len;
}

/* The largest of sign * x. */
static float most_of(const void *page, int channel, int len, float sign, bool exact)
{
    vf none = vf_set1(-INFINITY), most = none;
    for (int v = 0; v < QBLOCK; v += VL) {
        vf x = vf_mul(vf_set1(sign), load_at(page, (size_t)channel * QBLOCK + v, exact));
        most = vf_max(most, vf_first(valid(len, v), x, none));
    }
    return vf_hmax(most);
}

void KERNEL(index_write)(const void *page, int len, int head_dim, enum PageIndex index, bool exact,
                         void *out)
{
    for (int d = 0; d < head_dim; d++) {
        if (index == PAGE_INDEX_MEAN) {
            put(out, d, mean_of(page, d, len, exact), exact);
            continue;
        }
        put(out, d, -most_of(page, d, len, -1, exact), exact);
        put(out, head_dim + d, most_of(page, d, len, 1, exact), exact);
    }
}

/* ==== Scoring ==== */

/* Product with the mean. */
static inline __attribute__((always_inline)) float with_mean(const float *q, const void *index,
                                                             int head_dim, bool exact)
{
    vf sum = vf_zero();
    int d = 0;
    for (; d + VL <= head_dim; d += VL) sum = vf_fma(vf_load(q + d), load_at(index, d, exact), sum);
    float rest = 0; /* head widths that are no multiple of VL */
    for (; d < head_dim; d++) rest += q[d] * value_at(index, d, exact);
    return vf_sum(sum) + rest;
}

/* No product with a key in the range is larger. */
static inline __attribute__((always_inline)) float with_range(const float *q, const void *index,
                                                              int head_dim, bool exact)
{
    vf sum = vf_zero();
    int d = 0;
    for (; d + VL <= head_dim; d += VL) {
        vf x = vf_load(q + d);
        vf least = vf_mul(x, load_at(index, d, exact)),
           most = vf_mul(x, load_at(index, head_dim + d, exact));
        sum = vf_add(sum, vf_max(least, most));
    }
    float rest = 0;
    for (; d < head_dim; d++)
        rest +=
            fmaxf(q[d] * value_at(index, d, exact), q[d] * value_at(index, head_dim + d, exact));
    return vf_sum(sum) + rest;
}

static inline __attribute__((always_inline)) float best(const struct IndexQuery *q,
                                                        const void *index, bool mean, bool exact)
{
    float most = -INFINITY;
    for (int i = 0; i < q->n_q; i++) {
        const float *row = q->q + (size_t)i * q->head_dim;
        float x = mean ? with_mean(row, index, q->head_dim, exact)
                       : with_range(row, index, q->head_dim, exact);
        most = fmaxf(most, x);
    }
    return most * q->scale;
}

float KERNEL(index_score)(const struct IndexQuery *q, const void *index)
{
    if (q->index == PAGE_INDEX_MEAN)
        return q->exact ? best(q, index, true, true) : best(q, index, true, false);
    return q->exact ? best(q, index, false, true) : best(q, index, false, false);
}

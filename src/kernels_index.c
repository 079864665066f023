/* kernels_index.c - the index of a page, and what a query may expect of the page by it (headwise.md C.2).
 *
 * Values are f16 as in pages of numbers, so that a row that scores thousands of pages reads half the bytes, or f32 in exact
 * mode. The least and the largest of f16 values are f16 values; what codes stand for is rounded outward: a bound stays one.
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

/* The next value, in sign's direction, that the index can hold. */
static void put_beyond(void *out, int i, float value, float sign, bool exact)
{
    uint16_t half = f32_to_f16(value);
    if (sign * f16_to_f32(half) < sign * value)
        half = (uint16_t)((value > 0) == (sign > 0) ? half + 1 : half - 1);
    if (exact)
        ((float *)out)[i] = value;
    else
        ((uint16_t *)out)[i] = half;
}

/* One channel of a page's keys. */
static void channel_of(const void *page, enum PageFormat format, int head_dim, int channel,
                       float *x)
{
    if (format == PAGE_Q8 || format == PAGE_Q4) {
        KERNEL(codes_channel)(page, channel, head_dim, x, format);
        return;
    }
    for (int v = 0; v < QBLOCK; v += VL)
        vf_store(x + v, load_at(page, (size_t)channel * QBLOCK + v, format == PAGE_F32));
}

static float mean_of(const float *x, int len)
{
    vf sum = vf_zero();
    for (int v = 0; v < QBLOCK; v += VL)
        sum = vf_add(sum, vf_first(valid(len, v), vf_load(x + v), vf_zero()));
    return vf_sum(sum) / (float)len;
}

/* The largest of sign * x. */
static float most_of(const float *x, int len, float sign)
{
    vf none = vf_set1(-INFINITY), most = none;
    for (int v = 0; v < QBLOCK; v += VL) {
        vf signed_x = vf_mul(vf_set1(sign), vf_load(x + v));
        most = vf_max(most, vf_first(valid(len, v), signed_x, none));
    }
    return vf_hmax(most);
}

void KERNEL(index_write)(const void *page, enum PageFormat format, int len, int head_dim,
                         enum PageIndex index, bool exact, void *out)
{
    _Alignas(64) float x[QBLOCK];
    for (int d = 0; d < head_dim; d++) {
        channel_of(page, format, head_dim, d, x);
        if (index == PAGE_INDEX_MEAN) {
            put(out, d, mean_of(x, len), exact);
            continue;
        }
        put_beyond(out, d, -most_of(x, len, -1), -1, exact);
        put_beyond(out, head_dim + d, most_of(x, len, 1), 1, exact);
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

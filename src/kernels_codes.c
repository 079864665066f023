/* kernels_codes.c - KV pages whose numbers are codes of 8 or 4 bits, and attention of one position over them.
 *
 * Each token's K and V are whole numbers c >= 0 with a scale and a zero of their own, in f16: x = zero + scale * c (the
 * form of QServe, arXiv 2405.04532). So a logit is scale_t * (q . c) + zero_t * sum(q), and an output sum of
 * (p_t * scale_t) c plus sum of p_t * zero_t: neither needs the numbers. q, and a page's p_t * scale_t, become int16 for
 * exact sums of products in int32.
 *
 * A page holds K in pairs of values, [pairs, 64] of two codes (two bytes, or one: the first in the low bits), then V
 * [64, 2 * pairs] in bytes or [64, pairs] with value i in the low bits and value i + pairs in the high ones, then the
 * scales of K, its zeros, and those of V, [4, 64] f16. No byte belongs to two tokens.
 */
#include "kernels_pages.h"

#include "quant.h"

enum { HEAD_PAIRS_MAX = 512, F16_MAX = 65504 };

/* Where the parts of a page lie. */
struct CodePage {
    uint8_t *k, *v;
    uint16_t *scales; /* [4, 64]: k scale, k zero, v scale, v zero */
    int pairs, unit;  /* pairs of values; bytes of a pair */
};

static inline struct CodePage code_page(const void *page, int head_dim, enum PageFormat format)
{
    struct CodePage p = {.pairs = (head_dim + 1) / 2, .unit = format == PAGE_Q8 ? 2 : 1};
    p.k = (uint8_t *)(uintptr_t)page;
    p.v = p.k + (size_t)p.pairs * p.unit * QBLOCK;
    p.scales = (uint16_t *)(void *)(p.v + (size_t)p.pairs * p.unit * QBLOCK);
    return p;
}

/* ==== Numbers to codes and back ==== */

struct Grid {
    float scale, zero;
    int top; /* largest code */
};

/* What is no number makes the zero none too, so that it shows wherever the token is seen. */
static struct Grid grid_of(const float *x, int n, int top)
{
    float low = x[0], high = x[0], broken = 0;
    for (int i = 0; i < n; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
        broken += x[i] * 0;
    }
    low = fmaxf(low, -F16_MAX);
    float step = fminf((high - low) / (float)top, F16_MAX);
    return (struct Grid){f16_to_f32(f32_to_f16(step)),
                         f16_to_f32(f32_to_f16(fminf(low, F16_MAX) + broken)), top};
}

static int code_of(const struct Grid *g, float x)
{
    float c = g->scale > 0 ? rintf((x - g->zero) / g->scale) : 0;
    return c > 0 ? c < (float)g->top ? (int)c : g->top : 0;
}

static void put_grid(const struct CodePage *p, int which, int at, const struct Grid *g)
{
    p->scales[2 * which * QBLOCK + at] = f32_to_f16(g->scale);
    p->scales[(2 * which + 1) * QBLOCK + at] = f32_to_f16(g->zero);
}

static struct Grid get_grid(const struct CodePage *p, int which, int at)
{
    return (struct Grid){f16_to_f32(p->scales[2 * which * QBLOCK + at]),
                         f16_to_f32(p->scales[(2 * which + 1) * QBLOCK + at]), 0};
}

void KERNEL(codes_write)(void *page, int at, int head_dim, const float *k, const float *v,
                         enum PageFormat format)
{
    struct CodePage p = code_page(page, head_dim, format);
    int top = format == PAGE_Q8 ? 255 : 15;
    struct Grid gk = grid_of(k, head_dim, top), gv = grid_of(v, head_dim, top);
    put_grid(&p, 0, at, &gk);
    put_grid(&p, 1, at, &gv);
    for (int i = 0; i < p.pairs; i++) {
        bool whole = 2 * i + 1 < head_dim;
        int k0 = code_of(&gk, k[2 * i]), k1 = whole ? code_of(&gk, k[2 * i + 1]) : 0;
        uint8_t *key = p.k + ((size_t)i * QBLOCK + (size_t)at) * (size_t)p.unit;
        if (format == PAGE_Q8) {
            uint8_t *value = p.v + (size_t)2 * at * p.pairs;
            key[0] = (uint8_t)k0;
            key[1] = (uint8_t)k1;
            value[2 * i] = (uint8_t)code_of(&gv, v[2 * i]);
            value[2 * i + 1] = (uint8_t)(whole ? code_of(&gv, v[2 * i + 1]) : 0);
        } else {
            int high = i + p.pairs < head_dim ? code_of(&gv, v[i + p.pairs]) : 0;
            key[0] = (uint8_t)(k0 | k1 << 4);
            p.v[(size_t)at * p.pairs + i] = (uint8_t)(code_of(&gv, v[i]) | high << 4);
        }
    }
}

void KERNEL(codes_read)(const void *page, int at, int head_dim, float *k, float *v,
                        enum PageFormat format)
{
    struct CodePage p = code_page(page, head_dim, format);
    struct Grid gk = get_grid(&p, 0, at), gv = get_grid(&p, 1, at);
    for (int i = 0; i < head_dim; i++) {
        const uint8_t *key = p.k + ((size_t)(i / 2) * QBLOCK + (size_t)at) * (size_t)p.unit;
        int c, high = i >= p.pairs;
        if (format == PAGE_Q8) {
            c = p.v[(size_t)2 * at * p.pairs + i];
            k[i] = gk.zero + gk.scale * (float)key[i % 2];
        } else {
            c = p.v[(size_t)at * p.pairs + i - (high ? p.pairs : 0)] >> (high ? 4 : 0) & 15;
            k[i] = gk.zero + gk.scale * (float)(key[0] >> (i % 2 ? 4 : 0) & 15);
        }
        v[i] = gv.zero + gv.scale * (float)c;
    }
}

void KERNEL(codes_channel)(const void *page, int channel, int head_dim, float *x,
                           enum PageFormat format)
{
    struct CodePage p = code_page(page, head_dim, format);
    const uint8_t *pair = p.k + (size_t)(channel / 2) * QBLOCK * (size_t)p.unit;
    for (int t = 0; t < QBLOCK; t++) {
        struct Grid g = get_grid(&p, 0, t);
        int c = format == PAGE_Q8 ? pair[2 * t + channel % 2] : pair[t] >> channel % 2 * 4 & 15;
        x[t] = g.zero + g.scale * (float)c;
    }
}

void KERNEL(codes_move)(void *to, int to_at, const void *from, int from_at, int head_dim,
                        enum PageFormat format)
{
    struct CodePage dst = code_page(to, head_dim, format), src = code_page(from, head_dim, format);
    size_t unit = (size_t)dst.unit, row = (size_t)dst.pairs * unit;
    for (int i = 0; i < dst.pairs; i++)
        memcpy(dst.k + ((size_t)i * QBLOCK + (size_t)to_at) * unit,
               src.k + ((size_t)i * QBLOCK + (size_t)from_at) * unit, unit);
    memmove(dst.v + (size_t)to_at * row, src.v + (size_t)from_at * row, row);
    for (int i = 0; i < 4; i++) dst.scales[i * QBLOCK + to_at] = src.scales[i * QBLOCK + from_at];
}

/* ==== Attention ==== */

/* Query rows as int16. */
struct CodedRows {
    _Alignas(64) int16_t x[QUERIES_MAX][2 * HEAD_PAIRS_MAX];
    float scale[QUERIES_MAX], sum[QUERIES_MAX]; /* sum: of the numbers that the int16 stand for */
};

/* Two int16 that lie side by side. */
static inline int32_t pair_at(const int16_t *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return pair;
}

/* So few bits that the products with 8-bit codes of a whole head fit an int32. */
static void code_rows(const struct PageAttn *a, int first, int n, struct CodedRows *out)
{
    int pairs = (a->head_dim + 1) / 2, limit = INT32_MAX / (255 * 2 * pairs);
    float most = (float)(limit < INT16_MAX ? limit : INT16_MAX);
    for (int g = 0; g < n; g++) {
        const float *q = a->q + (size_t)(first + g) * a->ld_q;
        float top = 0, broken = 0; /* NaN when a query is */
        int sum = 0;
        for (int d = 0; d < a->head_dim; d++) {
            top = fmaxf(top, fabsf(q[d]));
            broken += q[d] * 0;
        }
        float per = top > 0 ? most / top : 0;
        out->x[g][2 * pairs - 1] = 0;
        for (int d = 0; d < a->head_dim; d++) sum += out->x[g][d] = (int16_t)lrintf(q[d] * per);
        out->scale[g] = top / most + broken;
        out->sum[g] = out->scale[g] * (float)sum;
    }
}

/* Two codes of each of VL keys, as int16. */
static inline __attribute__((always_inline)) vi key_pairs(const uint8_t *p, bool wide)
{
    if (wide) return vi_load_u8x2(p);
    vi x = vi_load_u8(p);
    return vi_and(vi_or(x, vi_left(x, 12)), vi_set1(0x000f000f));
}

/* Base-2 logits of n query rows against a page's 64 keys: s [n][64]. */
static inline __attribute__((always_inline)) void code_logits(const struct CodePage *p,
                                                              const struct CodedRows *q, int n,
                                                              float factor, bool wide, float *s)
{
    for (int q0 = 0; q0 < n; q0 += GROUP_WIDE) {
        vi acc[GROUP_WIDE][KEY_VECS];
        const int16_t *row[GROUP_WIDE];
        int rows = n - q0 < GROUP_WIDE ? n - q0 : GROUP_WIDE;
        for (int g = 0; g < GROUP_WIDE; g++) {
            row[g] = q->x[q0 + (g < rows ? g : 0)];
            for (int v = 0; v < KEY_VECS; v++) acc[g][v] = vi_zero();
        }
        for (int i = 0; i < p->pairs; i++) {
            vi k[KEY_VECS];
            for (int v = 0; v < KEY_VECS; v++)
                k[v] = key_pairs(p->k + (size_t)(i * QBLOCK + v * VL) * (wide ? 2 : 1), wide);
            for (int g = 0; g < GROUP_WIDE; g++)
                for (int v = 0; v < KEY_VECS; v++)
                    acc[g][v] = vi_dot(acc[g][v], vi_set1(pair_at(row[g] + 2 * i)), k[v]);
        }
        for (int g = 0; g < rows; g++)
            for (int v = 0; v < KEY_VECS; v++) {
                vf scale = vf_load_f16(p->scales + v * VL),
                   zero = vf_load_f16(p->scales + QBLOCK + v * VL),
                   sum = vf_mul(vf_set1(factor * q->sum[q0 + g]), zero);
                vf x = vf_mul(vi_to_f32(acc[g][v]), vf_set1(factor * q->scale[q0 + g]));
                vf_store(s + (q0 + g) * QBLOCK + v * VL, vf_fma(x, scale, sum));
            }
    }
}

/* A page's p_t * scale_t of one query as int16, and its sum of p_t * zero_t. */
struct CodedWeights {
    _Alignas(64) int16_t x[QBLOCK];
    float scale, zero;
};

static inline void code_weights(const struct CodePage *p, const float *prob, int len,
                                struct CodedWeights *out)
{
    vf w[KEY_VECS], top = vf_zero(), zeros = vf_zero();
    for (int v = 0; v < KEY_VECS; v++) {
        int left = len - v * VL, n = left < 0 ? 0 : left < VL ? left : VL;
        const uint16_t *scales = p->scales + 2 * QBLOCK + v * VL;
        vf x = vf_load(prob + v * VL);
        w[v] = vf_first(n, vf_mul(x, vf_load_f16(scales)), vf_zero());
        top = vf_max(top, w[v]);
        zeros = vf_add(zeros, vf_first(n, vf_mul(x, vf_load_f16(scales + QBLOCK)), vf_zero()));
    }
    float most = vf_hmax(top), per = most > 0 ? INT16_MAX / most : 0;
    for (int v = 0; v < KEY_VECS; v++) vf_store_i16(out->x + v * VL, vf_mul(w[v], vf_set1(per)));
    out->scale = most / INT16_MAX;
    out->zero = vf_sum(zeros);
}

/* out [0, n) += the sums, n at most VL. */
static inline void add_values(float *out, int n, vi acc, const struct CodedWeights *w)
{
    _Alignas(64) float x[VL];
    vf sum = vf_fma(vi_to_f32(acc), vf_set1(w->scale), vf_set1(w->zero));
    if (n >= VL) {
        vf_store(out, vf_add(vf_load(out), sum));
        return;
    }
    vf_store(x, sum);
    for (int i = 0; i < n; i++) out[i] += x[i];
}

/* out [n][head_dim] += weights x V, four query heads and VL bytes of a token at a time. */
static inline __attribute__((always_inline)) void code_values(const struct CodePage *p,
                                                              const struct CodedWeights *w, int n,
                                                              int head_dim, int len, bool wide,
                                                              float *out)
{
    int width = wide ? 2 * p->pairs : p->pairs;
    vi low = vi_set1(0x000f000f);
    for (int q0 = 0; q0 < n; q0 += GROUP) {
        int rows = n - q0 < GROUP ? n - q0 : GROUP;
        for (int d = 0; d < width; d += VL) {
            vi acc[GROUP], high[GROUP];
            for (int g = 0; g < GROUP; g++) acc[g] = high[g] = vi_zero();
            for (int t = 0; t < (len + 1) / 2; t++) {
                const uint8_t *at = p->v + (size_t)2 * t * width + d;
                vi x = vi_or(vi_load_u8(at), vi_left(vi_load_u8(at + width), 16));
                for (int g = 0; g < GROUP; g++) {
                    vi pair = vi_set1(pair_at(w[q0 + (g < rows ? g : 0)].x + 2 * t));
                    acc[g] = vi_dot(acc[g], pair, wide ? x : vi_and(x, low));
                    if (!wide) high[g] = vi_dot(high[g], pair, vi_and(vi_right(x, 4), low));
                }
            }
            for (int g = 0; g < rows; g++) {
                float *row = out + (size_t)(q0 + g) * head_dim;
                int left = (wide ? head_dim : width) - d, rest = head_dim - width - d;
                add_values(row + d, left < VL ? left : VL, acc[g], &w[q0 + g]);
                if (!wide) add_values(row + width + d, rest < VL ? rest : VL, high[g], &w[q0 + g]);
            }
        }
    }
}

static inline __attribute__((always_inline)) void
attend_codes(const struct PageAttn *a, const struct PageRun *run, const struct CodedRows *q, int n,
             bool wide, struct Partial *part, float *out)
{
    _Alignas(64) float s[QUERIES_MAX * QBLOCK];
    struct CodedWeights w[QUERIES_MAX];
    struct CodePage p = code_page(run->page, a->head_dim, wide ? PAGE_Q8 : PAGE_Q4);
    code_logits(&p, q, n, 1.44269504f / sqrtf((float)a->head_dim), wide, s);
    page_softmaxes(a, run, n, s, part, out);
    for (int g = 0; g < n; g++) code_weights(&p, s + g * QBLOCK, run->len, &w[g]);
    code_values(&p, w, n, a->head_dim, run->len, wide, out);
}

/* Codes are used up faster than the machine by itself foresees which come next. */
static void fetch(const void *page, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const uint8_t *)page + i);
}

void KERNEL(codes_attend)(const struct PageAttn *a, int first, int n, struct Partial *part,
                          float *out)
{
    struct CodedRows q;
    code_rows(a, first, n, &q);
    for (int i = 0; i < a->n_runs; i++) {
        if (i + 1 < a->n_runs) fetch(a->runs[i + 1].page, page_bytes(a->format, a->head_dim));
        if (a->runs[i].len == 0) continue;
        if (a->format == PAGE_Q8)
            attend_codes(a, &a->runs[i], &q, n, true, part, out);
        else
            attend_codes(a, &a->runs[i], &q, n, false, part, out);
    }
}

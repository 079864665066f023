/* attention.cuh - a warp's rows of attention with mma.sync over one tile of keys after another: the logits, the running
 * softmax, the sums over the values.
 *
 * A kernel's shape T says the width D of a head, the warp's rows in units of 16 (RM), the keys of a tile that it takes at
 * a time (BN), and in which form the rows' reference points are kept (Reference: LowPoint, or one of the kernel's own with
 * the same functions).
 *
 * Softmax is base 2. The reference point of a row (its largest logit at some time) moves only when a logit passes it by
 * 2^RISE: until then no sum need be scaled again and the lanes need not agree on a maximum, and 2^RISE is far from f32's
 * limits. Both change no bit of the relative precision.
 */
#ifndef PCOMP_CUDA_ATTENTION_CUH
#define PCOMP_CUDA_ATTENTION_CUH

#include "kernels.h"
#include "mma.cuh"

static constexpr float RISE = 8;
static constexpr float NO_KEY = 1e30f;

/* A reference point, base 2, negated: the exponent of a key is one fma. scale2 makes logits, base 2, of q.k. */
struct LowPoint {
    static constexpr float NONE = NO_KEY; /* before the first key */

    /* Whether x, of q.k, passes it by too much. */
    __device__ __forceinline__ static bool passed(float point, float x, float scale2)
    {
        return fmaf(x, scale2, point) > RISE;
    }
    /* Moves it up to x where it is below. Returns what the sums until now are to be multiplied by. */
    __device__ __forceinline__ static float move(float &point, float x, float scale2)
    {
        float low = fminf(point, -x * scale2), shrink = exp2_fast(low - point);
        point = low;
        return shrink;
    }
    /* Base e; sum: of the exponentials against the point. */
    __device__ __forceinline__ static float log_sum_exp(float point, float sum, float)
    {
        return logf(sum) - point * LN_2;
    }
};

/* Lane l has rows l / 4 and l / 4 + 8 of each 16, there columns l % 4 * 2 and the next one of each 8. */
template <class T> using Logits = float[T::RM][T::BN / 8][4];

template <class T> struct Sums {
    float o[T::RM][T::D / 8][4];
    float point[T::RM][2]; /* the reference points */
    float sum[T::RM][2];   /* this lane's share */

    /* Those of one row, against a reference point that has moved. */
    __device__ __forceinline__ void shrink(int m, int h, float by)
    {
        sum[m][h] *= by;
#pragma unroll
        for (int n = 0; n < T::D / 8; n++) {
            o[m][n][2 * h] *= by;
            o[m][n][2 * h + 1] *= by;
        }
    }
};

template <class T> __device__ __forceinline__ void sums_clear(Sums<T> &r)
{
#pragma unroll
    for (int m = 0; m < T::RM; m++) {
#pragma unroll
        for (int n = 0; n < T::D / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) r.o[m][n][c] = 0;
        r.point[m][0] = r.point[m][1] = T::Reference::NONE;
        r.sum[m][0] = r.sum[m][1] = 0;
    }
}

/* A warp's queries where they lie in shared memory, in a tile of rows of D. */
template <class T> struct SharedQueries {
    uint32_t at;
    LaneRow<T::D> row;

    __device__ __forceinline__ SharedQueries(uint32_t tile, int lane)
        : at(tile), row(lane_row_a<T::D>(lane))
    {
    }
    /* a = 16 dimensions of all rows, the d-th of them. */
    __device__ __forceinline__ void get(uint32_t (&a)[T::RM][4], int d, int) const
    {
#pragma unroll
        for (int m = 0; m < T::RM; m++) load_matrix(a[m], row.block(at, m * 16, d));
    }
};

/* q: SharedQueries, or what has the same get(); k: where the first key lies in its tile. */
template <class T, class Q>
__device__ __forceinline__ void products_qk(Logits<T> &s, const Q &q, uint32_t k, int lane)
{
    LaneRow<T::D> at_k = lane_row_b<T::D>(lane);
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[m][n][c] = 0;
#pragma unroll
    for (int d = 0; d < T::D / 16; d++) {
        uint32_t a[T::RM][4];
        q.get(a, d, lane);
#pragma unroll
        for (int n = 0; n < T::BN / 16; n++) {
            uint32_t b[4];
            load_matrix(b, at_k.block(k, n * 16, d));
#pragma unroll
            for (int m = 0; m < T::RM; m++) {
                mma_bf16(s[m][2 * n], a[m], b[0], b[1]);
                mma_bf16(s[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Moves the reference points to the rows' maxima when one is passed by too much. r: Sums<T>, or what has more sums. */
template <class T, class S>
__device__ __forceinline__ void raise(S &r, const Logits<T> &s, float scale2)
{
    float most[T::RM][2];
    bool far = false;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
#pragma unroll
            for (int n = 1; n < T::BN / 8; n++)
                x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            most[m][h] = x;
            far |= T::Reference::passed(r.point[m][h], x, scale2);
        }
    if (!__any_sync(0xffffffffu, far)) return;
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float by = T::Reference::move(r.point[m][h], quad_max(most[m][h]), scale2);
            r.shrink(m, h, by);
        }
}

/* low: the reference points as LowPoint has them; v: where the first value lies in its tile. The exponentials of 16 keys
 * stand beside the products of the 16 before, so that the two kinds of unit overlap. */
template <class T>
__device__ __forceinline__ void products_pv(Sums<T> &r, const float (&low)[T::RM][2],
                                            const Logits<T> &s, uint32_t v, float scale2, int lane)
{
    LaneRow<T::D> at_v = lane_row_a<T::D>(lane);
#pragma unroll
    for (int k = 0; k < T::BN / 16; k++) {
        uint32_t p[T::RM][4];
#pragma unroll
        for (int m = 0; m < T::RM; m++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float *x = &s[m][2 * k + (c >> 1)][(c & 1) * 2];
                float p0 = exp2_fast(fmaf(x[0], scale2, low[m][c & 1]));
                float p1 = exp2_fast(fmaf(x[1], scale2, low[m][c & 1]));
                r.sum[m][c & 1] += p0 + p1;
                p[m][c] = pack_bf16(p0, p1);
            }
#pragma unroll
        for (int n = 0; n < T::D / 16; n++) {
            uint32_t b[4];
            load_matrix_turned(b, at_v.block(v, k * 16, n));
#pragma unroll
            for (int m = 0; m < T::RM; m++) {
                mma_bf16(r.o[m][2 * n], p[m], b[0], b[1]);
                mma_bf16(r.o[m][2 * n + 1], p[m], b[2], b[3]);
            }
        }
    }
}

/* The outputs to the warp's own rows of the Q tile, so that rows leave in whole lines, and the log-sum-exp where it is
 * wanted. The warp's first row is row `row` of the batch; n_rows of its rows exist. */
template <class T>
__device__ __forceinline__ void sums_to_tile(const Sums<T> &r, const struct CudaAttn &a, char *q,
                                             int row, int n_rows, int head, int lane)
{
    __syncwarp();
#pragma unroll
    for (int m = 0; m < T::RM; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int at = m * 16 + h * 8 + lane / 4;
            float sum = quad_sum(r.sum[m][h]), part = sum > 0 ? 1 / sum : 0;
#pragma unroll
            for (int n = 0; n < T::D / 8; n++)
                *(uint32_t *)(q + tile_offset<T::D>(at, n) + lane % 4 * 4) =
                    pack_bf16(r.o[m][n][2 * h] * part, r.o[m][n][2 * h + 1] * part);
            if (a.lse && lane % 4 == 0 && at < n_rows)
                a.lse[(int64_t)head * a.n_rows + row + at] =
                    T::Reference::log_sum_exp(r.point[m][h], sum, a.scale);
        }
    __syncwarp();
}

#endif

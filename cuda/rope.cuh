/* rope.cuh - one warp turns a head by its row's angles, after an RMS norm of the head if it has one; then evens it out for
 * pages of codes. */
#ifndef PCOMP_CUDA_ROPE_CUH
#define PCOMP_CUDA_ROPE_CUH

#include "kernels.h"

/* Column i of the head becomes what `store(i, value)` gets. `x` may be where `store` writes. `slow`: see CudaTurn's k_slow,
 * of this head; NULL for queries. The sums are fused by name, so that all who turn a head get the same bytes. */
template <class Store>
__device__ __forceinline__ void turn_head(const struct CudaTurn &t, const bf16 *x,
                                          const float *norm, const float *slow, int head_dim,
                                          Store store)
{
    int lane = threadIdx.x % 32, half = t.rope_dim / 2;
    auto value = [&](int i) {
        return __bfloat162float(__ushort_as_bfloat16(__ldcg((const unsigned short *)x + i)));
    };
    float r = 1;
    if (norm) {
        float sum = 0;
        for (int i = lane; i < head_dim; i += 32) sum = fmaf(value(i), value(i), sum);
        for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
        r = rsqrtf(sum / (float)head_dim + t.eps);
    }
    for (int i = t.rope_dim + lane; i < head_dim; i += 32) {
        float u = norm ? value(i) * r * norm[i] : value(i);
        store(i, slow && !t.centred ? u + slow[i] : u);
    }
    for (int i = lane; i < half; i += 32) {
        int p = t.pairs ? 2 * i : i, q = t.pairs ? 2 * i + 1 : i + half;
        float u = value(p), v = value(q);
        if (norm) u *= r * norm[p], v *= r * norm[q];
        float c = __ldcg(t.angles + i), s = __ldcg(t.angles + half + i);
        float a = fmaf(u, c, -__fmul_rn(v, s)), b = fmaf(u, s, __fmul_rn(v, c));
        if (slow) {
            float x = slow[p], y = slow[q], d = t.centred ? c - 1 : c;
            a += fmaf(x, d, -__fmul_rn(y, s));
            b += fmaf(x, s, __fmul_rn(y, d));
        }
        store(p, a);
        store(q, b);
    }
}

/* How a head is evened out: struct CudaTurn's balance of its KV head, or NULL; and room for it in f32, [head_dim]. */
struct EvenHead {
    const float *balance;
    bool query;
    float *held;
};

/* As turn_head, then evened out. */
template <class Store>
__device__ __forceinline__ void turn_even_head(const struct CudaTurn &t, const bf16 *x,
                                               const float *norm, const float *slow, int head_dim,
                                               const EvenHead &e, Store store)
{
    int lane = threadIdx.x % 32, run = head_dim & -head_dim;
    float *held = e.held, scale = rsqrtf((float)run);
    turn_head(t, x, norm, slow, head_dim, [&](int i, float v) {
        float by = e.balance ? e.balance[i] : 1;
        held[i] = e.query ? v * by : v / by;
    });
    __syncwarp();
    for (int step = 1; step < run; step *= 2) {
        for (int i = lane; i < head_dim / 2; i += 32) {
            int at = i / step * 2 * step + i % step;
            float a = held[at], b = held[at + step];
            held[at] = a + b;
            held[at + step] = a - b;
        }
        __syncwarp();
    }
    for (int i = lane; i < head_dim; i += 32) store(i, held[i] * scale);
    __syncwarp(); /* before the next head comes to `held` */
}

#endif

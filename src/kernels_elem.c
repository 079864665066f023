/* kernels_elem.c - row-wise operations: norms, rotary embedding, the Hadamard transform, sums, log-sum-exp. */
#include "kernels_list.h"
#include "kernels_simd.h"

#include <math.h>

void KERNEL(rmsnorm)(const float *x, const float *weight, int n, float eps, float *out)
{
    vf sum = vf_zero();
    int i = 0;
    for (; i + VL <= n; i += VL) sum = vf_fma(vf_load(x + i), vf_load(x + i), sum);
    float total = vf_sum(sum);
    for (; i < n; i++) total += x[i] * x[i];
    float inv = 1.0f / sqrtf(total / (float)n + eps);
    for (i = 0; i + VL <= n; i += VL)
        vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), vf_set1(inv)), vf_load(weight + i)));
    for (; i < n; i++) out[i] = x[i] * inv * weight[i];
}

void KERNEL(add)(float *x, const float *y, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL) vf_store(x + i, vf_add(vf_load(x + i), vf_load(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

/* cos_sin: [rope_dim / 2] cosines, then as many sines. */
void KERNEL(rope)(float *head, const float *cos_sin, int rope_dim, enum RopeStyle style)
{
    int half = rope_dim / 2;
    const float *cosv = cos_sin, *sinv = cos_sin + half;
    if (style == ROPE_PAIRS) {
        for (int i = 0; i < half; i++) {
            float a = head[2 * i], b = head[2 * i + 1];
            head[2 * i] = a * cosv[i] - b * sinv[i];
            head[2 * i + 1] = b * cosv[i] + a * sinv[i];
        }
        return;
    }
    for (int i = 0; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cosv[i] - b * sinv[i];
        head[half + i] = b * cosv[i] + a * sinv[i];
    }
}

void KERNEL(spread)(float *head, int head_dim)
{
    int run = head_dim & -head_dim;
    float scale = 1.0f / sqrtf((float)run);
    for (int step = 1; step < run; step *= 2)
        for (int i = 0; i < head_dim; i += 2 * step)
            for (int j = i; j < i + step; j++) {
                float a = head[j], b = head[j + step];
                head[j] = a + b;
                head[j + step] = a - b;
            }
    for (int i = 0; i < head_dim; i++) head[i] *= scale;
}

float KERNEL(log_sum_exp)(const float *logits, int n)
{
    vf top = vf_set1(-INFINITY);
    int i = 0;
    for (; i + VL <= n; i += VL) top = vf_max(top, vf_load(logits + i));
    float max = vf_hmax(top);
    for (; i < n; i++) max = fmaxf(max, logits[i]);
    vf sum = vf_zero();
    for (i = 0; i + VL <= n; i += VL)
        sum = vf_add(
            sum, vf_exp2(vf_mul(vf_sub(vf_load(logits + i), vf_set1(max)), vf_set1(1.44269504f))));
    double total = vf_sum(sum);
    for (; i < n; i++) total += exp((double)(logits[i] - max));
    return max + (float)log(total);
}

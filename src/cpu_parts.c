/* cpu_parts.c - attention that was made in parts, joined: each part's output weighs as much as its keys' share of the sum of
 * all exponentials, which the parts' log-sum-exps tell (headwise.md D.3 item 6). The softmax over all keys, up to rounding.
 */
#include "cpu.h"

#include <math.h>

/* One row of one head; `at` counts heads over all rows. Returns the lse of all parts, some of which must have a key. */
static float join_head(const struct AttnPart *parts, int n, size_t at, int head_dim, float *out)
{
    float max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) max = fmaxf(max, parts[i].lse[at]);
    for (int j = 0; j < head_dim; j++) out[j] = 0;
    for (int i = 0; i < n; i++) {
        const float *part = parts[i].out + at * (size_t)head_dim;
        float w = expf(parts[i].lse[at] - max);
        sum += w;
        for (int j = 0; j < head_dim; j++) out[j] += part[j] * w;
    }
    for (int j = 0; j < head_dim; j++) out[j] /= sum;
    return max + logf(sum);
}

int cpu_attention_join(struct Device *d, const struct AttnArgs *a, const struct AttnPart *parts,
                       int n)
{
    const struct ModelConfig *m = &d->model->cfg;
    int rows = a->seq_begin[a->n_seqs];
#pragma omp parallel for schedule(static) num_threads(d->threads) if (rows > FEW_ROWS)
    for (int i = 0; i < rows * m->n_heads; i++) {
        size_t at = (size_t)i;
        a->part->lse[at] =
            join_head(parts, n, at, m->head_dim, (float *)a->out + at * (size_t)m->head_dim);
    }
    return PC_OK;
}

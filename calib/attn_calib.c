/* attn_calib.c - attention-bias calibration: tokens that draw too much leave the cache.
 *
 * ParallelComp, attention calibration (section 5.4, appendix C): the first tokens of a chunk
 * (sink), the last ones (recent) and the rest (middle) draw too much attention in different bands
 * of layers. Takes softmax rows and rules, hands on a mark for each token. Each KV head drops its
 * own tokens, and no head drops more to keep step with another; the activations of the pass
 * itself stay as they are.
 *
 * A KV head serves a group of query heads. The mean over the group is compared with lambda, as
 * token importance also is one figure for the group: one outlying query head of many does not
 * cost the others a token.
 */
#include "attn_calib.h"

enum TokenClass calib_class(int index, int n, int region)
{
    if (index < region) return CLASS_SINK;
    return index >= n - region ? CLASS_RECENT : CLASS_MIDDLE;
}

bool calib_applies(const struct CalibRule *rule, int layer, int stage)
{
    return rule->stage == stage && layer >= rule->layer_lo && layer <= rule->layer_hi;
}

void calib_mean(const struct CalibAttention *a, int rows, float *mean)
{
    int first = rows > 0 && rows < a->n_rows ? a->n_rows - rows : 0;
    for (int j = 0; j < a->n; j++) mean[j] = 0;
    for (int h = 0; h < a->n_heads; h++) {
        for (int i = first; i < a->n_rows; i++) {
            const float *row = a->prob + (size_t)h * a->head_stride + (size_t)i * a->row_stride;
            for (int j = 0; j < a->n; j++) mean[j] += row[j];
        }
    }
    int n_summed = a->n_heads * (a->n_rows - first);
    if (n_summed < 1) return;
    for (int j = 0; j < a->n; j++) mean[j] /= (float)n_summed;
}

int calib_drop(const struct CalibRule *rules, int n_rules, int layer, int stage,
               const struct CalibAttention *a, float *mean, uint8_t *drop)
{
    int n_dropped = 0, mean_rows = -1;
    for (int j = 0; j < a->n; j++) drop[j] = 0;
    for (const struct CalibRule *rule = rules; rule < rules + n_rules; rule++) {
        if (!calib_applies(rule, layer, stage)) continue;
        if (rule->rows != mean_rows) calib_mean(a, rule->rows, mean);
        mean_rows = rule->rows;
        for (int j = 0; j < a->n; j++) {
            bool hit =
                mean[j] > rule->lambda && calib_class(j, a->n, rule->region) == rule->token_class;
            n_dropped += hit && !drop[j];
            drop[j] |= hit;
        }
    }
    return n_dropped;
}

int calib_rule_check(const struct CalibRule *rule, int n_layers)
{
    if (rule->layer_lo < 0 || rule->layer_hi >= n_layers || rule->layer_lo > rule->layer_hi)
        return err_set(
            PC_ECONFIG,
            "calibration rule for layers %d to %d: the model has layers 0 to %d; name some "
            "of them, or set calib_layers to the depth that the rule was written for",
            rule->layer_lo, rule->layer_hi, n_layers - 1);
    if (!(rule->lambda >= 0))
        return err_set(PC_ECONFIG,
                       "calibration rule: lambda %g must be 0 or more (1 drops nothing)",
                       (double)rule->lambda);
    if (rule->region < 1 || rule->rows < 0)
        return err_set(PC_ECONFIG,
                       "calibration rule: region %d must be 1 or more and rows %d 0 (all) or more",
                       rule->region, rule->rows);
    if (rule->stage != 1 && rule->stage != 2)
        return err_set(PC_ECONFIG,
                       "calibration rule: stage %d must be 1 (each chunk) or 2 (the merged cache)",
                       rule->stage);
    return PC_OK;
}

static int divide_up(int64_t a, int64_t b)
{
    return (int)((a + b - 1) / b);
}

bool calib_scale(struct CalibRule *rule, int from_layers, int to_layers)
{
    /* Layer l of the target lies at depth l / to_layers; the band covers depths from lo /
     * from_layers up to, but not with, (hi + 1) / from_layers. */
    int lo = divide_up((int64_t)rule->layer_lo * to_layers, from_layers);
    int hi = divide_up(((int64_t)rule->layer_hi + 1) * to_layers, from_layers) - 1;
    if (lo > hi) return false;
    rule->layer_lo = lo;
    rule->layer_hi = hi;
    return true;
}

/* select.c - the highest scores, by number or by weight, by radix select over their bits.
 *
 * A float's bits, with the sign folded in, order like the float does. Four histograms of one byte
 * each find the k-th highest key exactly, so time is O(n) for any data, there is no scratch
 * memory, and the outcome depends on the scores alone: neither on pivots nor on the number of
 * threads. It serves token eviction (ParallelComp, Eq. 6: the cap most attended tokens stay).
 */
#include "select.h"

#include <math.h>
#include <string.h>

enum { RADIX_BITS = 8, RADIX = 1 << RADIX_BITS };

/* A key that compares as an unsigned number exactly as the scores compare. */
static uint32_t order_key(float score)
{
    if (isnan(score)) return 0;
    float canonical = score + 0.0f; /* -0 becomes +0: they must tie */
    uint32_t bits;
    memcpy(&bits, &canonical, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The key at which the weights, taken from the highest key down, reach `wanted`, their sum at most; without weights
 * each is 1: the wanted-th highest key. *left is what those with that very key bring of it. */
static uint32_t key_at(const float *score, const uint32_t *weight, int n, uint64_t wanted,
                       uint64_t *left)
{
    uint32_t prefix = 0, mask = 0;
    for (int shift = 32 - RADIX_BITS; shift >= 0; shift -= RADIX_BITS) {
        uint64_t sum[RADIX] = {0};
        for (int i = 0; i < n; i++) {
            uint32_t key = order_key(score[i]);
            if ((key & mask) == prefix) sum[key >> shift & (RADIX - 1)] += weight ? weight[i] : 1;
        }
        int digit = RADIX - 1;
        while (sum[digit] < wanted) wanted -= sum[digit--];
        prefix |= (uint32_t)digit << shift;
        mask |= (uint32_t)(RADIX - 1) << shift;
    }
    *left = wanted;
    return prefix;
}

/* Those above the threshold, and of its equals the first until their weights bring what is left. */
static int take(const float *score, const uint32_t *weight, int n, uint64_t wanted, int *idx)
{
    uint64_t left;
    int n_out = 0;
    uint32_t threshold = key_at(score, weight, n, wanted, &left);
    for (int i = 0; i < n; i++) {
        uint32_t key = order_key(score[i]);
        if (key < threshold || (key == threshold && left == 0)) continue;
        uint64_t brings = weight ? weight[i] : 1;
        if (key == threshold) left -= brings < left ? brings : left;
        idx[n_out++] = i;
    }
    return n_out;
}

int select_top(const float *score, int n, int k, int *idx)
{
    if (n <= 0 || k <= 0) return 0;
    if (k < n) return take(score, NULL, n, (uint64_t)k, idx);
    for (int i = 0; i < n; i++) idx[i] = i;
    return n;
}

int select_share(const float *score, const uint32_t *weight, int n, uint64_t wanted, int *idx)
{
    uint64_t all = 0;
    for (int i = 0; i < n; i++) all += weight[i];
    if (wanted > all) wanted = all;
    return wanted ? take(score, weight, n, wanted, idx) : 0;
}

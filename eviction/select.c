/* select.c - top-k by radix select over the bits of the scores.
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

/* The k-th highest key; *n_equal is how many of the tokens with that very key belong to the top
 * k. */
static uint32_t kth_key(const float *score, int n, int k, int *n_equal)
{
    uint32_t prefix = 0, mask = 0;
    int wanted = k;
    for (int shift = 32 - RADIX_BITS; shift >= 0; shift -= RADIX_BITS) {
        int count[RADIX] = {0};
        for (int i = 0; i < n; i++) {
            uint32_t key = order_key(score[i]);
            if ((key & mask) == prefix) count[key >> shift & (RADIX - 1)]++;
        }
        int digit = RADIX - 1;
        while (count[digit] < wanted) wanted -= count[digit--];
        prefix |= (uint32_t)digit << shift;
        mask |= (uint32_t)(RADIX - 1) << shift;
    }
    *n_equal = wanted;
    return prefix;
}

int select_top(const float *score, int n, int k, int *idx)
{
    if (n <= 0 || k <= 0) return 0;
    if (k >= n) {
        for (int i = 0; i < n; i++) idx[i] = i;
        return n;
    }
    int n_equal, n_out = 0;
    uint32_t threshold = kth_key(score, n, k, &n_equal);
    for (int i = 0; n_out < k; i++) {
        uint32_t key = order_key(score[i]);
        if (key > threshold || (key == threshold && n_equal-- > 0)) idx[n_out++] = i;
    }
    return k;
}

/* kv_evict.c - KV eviction: each KV head keeps only the cap most attended tokens of a chunk.
 *
 * ParallelComp, parallel KV eviction (Eq. 6, appendix C): importance is the attention mass that
 * the question's last rows put on a context token. Here it is summed over the query heads that
 * share the KV head, max-pooled so that a token's neighbours survive with it, and the highest are
 * kept; of equal ones the earlier. Takes scores, hands on positions in ascending order.
 */
#include "kv_evict.h"

#include "select.h"

#include <math.h>

static float as_number(float x)
{
    return isnan(x) ? -INFINITY : x;
}

/* Sliding maximum in O(n): scratch holds the positions in the window that may still become its
 * maximum, with falling values. */
void kv_pool(const float *importance, int n, int pool, float *pooled, int *scratch)
{
    int reach = (pool - 1) / 2, head = 0, tail = 0;
    if (reach > n) reach = n;
    for (int i = 0; i < n + reach; i++) {
        if (i < n) {
            float value = as_number(importance[i]);
            while (tail > head && as_number(importance[scratch[tail - 1]]) <= value) tail--;
            scratch[tail++] = i;
        }
        int centre = i - reach;
        if (centre < 0) continue;
        while (scratch[head] < centre - reach) head++;
        pooled[centre] = as_number(importance[scratch[head]]);
    }
}

int kv_evict(const struct KvEvict *rule, const float *importance, int n, float *pooled, int *keep)
{
    if (n <= 0) return 0;
    if (rule->cap < 0 || n <= rule->cap) {
        for (int i = 0; i < n; i++) keep[i] = i;
        return n;
    }
    kv_pool(importance, n, rule->pool, pooled, keep);
    return select_top(pooled, n, rule->cap, keep);
}

/* kv_evict.h - which context tokens of a chunk stay in the cache of one KV head. */
#ifndef PCOMP_KV_EVICT_H
#define PCOMP_KV_EVICT_H

#include "base.h"

struct KvEvict {
    int cap;  /* tokens kept; negative (CAP_OFF): all */
    int pool; /* width of the max-pool, odd; 1: none */
};

/* Writes to keep, ascending, the survivors among n context tokens; returns how many.
 * importance: [n] f32, summed over question rows and the group's query heads. It holds candidates
 * only: prefix and question tokens are not among them and cost no budget.
 * pooled: [n] f32 scratch. keep: room for all n, whatever cap is. */
int kv_evict(const struct KvEvict *rule, const float *importance, int n, float *pooled, int *keep);

/* Max-pool of width `pool` over importance[n], clipped at both ends: pooled[j] is the highest of
 * importance[j - (pool - 1) / 2 .. j + (pool - 1) / 2]. A NaN counts as -infinity.
 * scratch: [n]. */
void kv_pool(const float *importance, int n, int pool, float *pooled, int *scratch);

#endif

/* select.h - deterministic choice of the highest: the one way in which pcomp picks survivors by score. */
#ifndef PCOMP_SELECT_H
#define PCOMP_SELECT_H

#include "base.h"

/* Writes to idx, ascending, the positions of the k highest of score[n]. Of equal scores the lower
 * position wins; NaN ranks below everything, -0 equals +0. Returns how many were written:
 * min(k, n), 0 for k <= 0. idx has room for that many. */
int select_top(const float *score, int n, int k, int *idx);
/* The same, but as few of the highest as it takes for their weights to add up to `wanted`; all that weigh anything
 * when they never do. weight: [n], growing with the score. */
int select_share(const float *score, const uint32_t *weight, int n, uint64_t wanted, int *idx);

#endif

/* budget.h - how many tokens each layer may keep. */
#ifndef PCOMP_BUDGET_H
#define PCOMP_BUDGET_H

#include "base.h"

enum { PYRAMID_BETA = 20 }; /* the paper's: the top layer gets 1 / 20 of the mean */

/* The same for each layer: mean, or all n tokens when there are fewer. */
void flat_budgets(int n_layers, int mean, int n, int *budget);

/* Falling by equal steps from the first layer to the last; they add up to n_layers * mean, and none is above n.
 * n or fewer on average: all get n. */
void pyramid_budgets(int n_layers, int mean, int n, int *budget);

#endif

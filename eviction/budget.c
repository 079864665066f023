/* budget.c - PyramidKV's budgets (Cai et al. 2024, section 4.2): lower layers spread their attention and get
 * more of the cache, upper layers gather it and get less.
 *
 * With a total of m * mean over m layers: k[m - 1] = mean / beta, k[0] = 2 mean - k[m - 1], and an arithmetic
 * sequence between. Where k[0] would be above the n tokens there are, it is n, and k[m - 1] = 2 mean - n.
 * Budgets are whole: what rounding down leaves goes to the lowest layers that were rounded. All in exact
 * integers. Takes counts, hands on counts.
 */
#include "budget.h"

void flat_budgets(int n_layers, int mean, int n, int *budget)
{
    for (int l = 0; l < n_layers; l++) budget[l] = mean < n ? mean : n;
}

void pyramid_budgets(int n_layers, int mean, int n, int *budget)
{
    if (mean >= n || n_layers < 2) {
        flat_budgets(n_layers, mean, n, budget);
        return;
    }
    /* first and last budget in units of 1 / beta, the ones between in units of 1 / (beta * steps) */
    int64_t last = mean, first = (int64_t)2 * mean * PYRAMID_BETA - last, steps = n_layers - 1;
    if (first > (int64_t)n * PYRAMID_BETA) {
        first = (int64_t)n * PYRAMID_BETA;
        last = (int64_t)2 * mean * PYRAMID_BETA - first;
    }
    int64_t unit = PYRAMID_BETA * steps, left = (int64_t)n_layers * mean;
    for (int64_t l = 0; l < n_layers; l++) {
        budget[l] = (int)((first * steps - (first - last) * l) / unit);
        left -= budget[l];
    }
    for (int64_t l = 0; left > 0; l++) {
        if ((first * steps - (first - last) * l) % unit == 0) continue;
        budget[l]++;
        left--;
    }
}

/* early.c - see early.h. */
#include "early.h"

#include <math.h>

#define LEAST_SHARE 1e-7

static double peak_of(const float *mass, int n)
{
    double sum = 0, most = 0;
    for (int i = 0; i < n; i++) {
        sum += (double)mass[i];
        if (i >= PEAK_TOKENS) sum -= (double)mass[i - PEAK_TOKENS];
        if (sum > most) most = sum;
    }
    return most;
}

static double sum_of(const float *mass, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)mass[i];
    return sum;
}

double early_measure(enum EarlyMeasure measure, const float *mass, int n, int rows)
{
    double all = measure == MEASURE_PEAK ? peak_of(mass, n) : sum_of(mass, n);
    double share = rows > 0 ? all / rows : 0;
    return log(share > LEAST_SHARE ? share : LEAST_SHARE);
}

/* P(X >= m) of n draws that hit with probability p. */
static double binomial_tail(int n, double p, int m)
{
    if (m <= 0) return 1;
    if (m > n || p <= 0) return 0;
    if (p >= 1) return 1;
    double below = 0;
    for (int i = 0; i < m; i++)
        below += exp(lgamma(n + 1.0) - lgamma(i + 1.0) - lgamma(n - i + 1.0) + i * log(p) +
                     (n - i) * log1p(-p));
    return below < 1 ? 1 - below : 0;
}

double early_risk(const float *ahead, int n_samples, int n_chunks, int survivors)
{
    double sum = 0;
    if (survivors >= n_chunks) return 0;
    for (int i = 0; i < n_samples; i++)
        sum += binomial_tail(n_chunks - 1, (double)ahead[i], survivors);
    return n_samples ? sum / n_samples : 1;
}

int early_survivors(const float *ahead, int n_samples, int n_chunks, double risk, int least)
{
    int low = least, high = n_chunks;
    while (low < high) { /* the risk falls as more survive */
        int n = low + (high - low) / 2;
        if (early_risk(ahead, n_samples, n_chunks, n) > risk)
            low = n + 1;
        else
            high = n;
    }
    return high;
}

int early_most(size_t chunk_bytes, size_t memory)
{
    size_t n = chunk_bytes ? memory / chunk_bytes : 0;
    return n > EARLY_SURVIVORS ? (int)(n < INT32_MAX ? n : INT32_MAX) : EARLY_SURVIVORS;
}

/* sampler.c - picks the next token.
 *
 * ParallelComp decodes greedily: temperature 0, the default. Above 0 the logits are divided by
 * the temperature and the token is drawn from the nucleus, the smallest set of likeliest tokens
 * that holds top_p of the probability (ties: the lower id first). All sums run in a fixed order
 * and exp() is our own, because the C library's last bit differs between machines.
 */
#include "sampler.h"

#include <math.h>
#include <string.h>

/* ==== Random numbers ==== */

static uint64_t rotate_left(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

/* xoshiro256** by Blackman and Vigna. */
static uint64_t next_random(uint64_t s[4])
{
    uint64_t result = rotate_left(s[1] * 5, 7) * 9, moved = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= moved;
    s[3] = rotate_left(s[3], 45);
    return result;
}

/* splitmix64 spreads any seed, 0 included, over the whole state. */
static void seed_random(uint64_t s[4], uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += UINT64_C(0x9E3779B97F4A7C15);
        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        s[i] = z ^ z >> 31;
    }
}

/* In [0, 1). */
static double next_uniform(uint64_t s[4])
{
    return (double)(next_random(s) >> 11) * 0x1p-53;
}

/* ==== Opening ==== */

int sampler_open(struct Sampler *s, int vocab_size, const struct SamplerConfig *config)
{
    *s = (struct Sampler){.config = *config, .vocab_size = vocab_size};
    seed_random(s->state, config->seed);
    if (config->temperature <= 0) return PC_OK;
    s->weight = mem_alloc((size_t)vocab_size, sizeof *s->weight);
    s->heap = mem_alloc((size_t)vocab_size, sizeof *s->heap);
    if (s->weight && s->heap) return PC_OK;
    sampler_close(s);
    return PC_ENOMEM;
}

void sampler_close(struct Sampler *s)
{
    mem_free(s->weight);
    mem_free(s->heap);
    *s = (struct Sampler){0};
}

/* ==== Drawing ==== */

/* The bits of a float as an integer that grows with it: NaN lies outside of the infinities. Its own inverse. */
static int32_t in_order(int32_t bits)
{
    return bits < 0 ? bits ^ INT32_MAX : bits;
}

static int32_t float_order(float f)
{
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return in_order(bits);
}

/* The greatest of n, 0 where one is NaN or infinity; in integers, since the order of floats' maxima is not free. */
static bool greatest(const float *logits, int n, float *out)
{
    int32_t most = INT32_MIN, least = INT32_MAX;
#pragma omp simd reduction(max : most) reduction(min : least)
    for (int i = 0; i < n; i++) {
        int32_t order = float_order(logits[i]);
        most = order > most ? order : most;
        least = order < least ? order : least;
    }
    if (most >= float_order(INFINITY) || least < float_order(-INFINITY)) return false;
    most = in_order(most);
    memcpy(out, &most, sizeof most);
    return true;
}

int sampler_argmax(const float *logits, int n, int *id)
{
    float most = -INFINITY;
    int at = 0;
    bool good = greatest(logits, n, &most);
    while (!good && !isnan(logits[at]) && logits[at] != INFINITY) at++;
    if (!good)
        return err_set(PC_EINTERNAL, "the logit of token %d is %g; the model's output is broken",
                       at, (double)logits[at]);
    if (n < 1 || most == -INFINITY)
        return err_set(PC_EINTERNAL, "no token of %d is possible; the model's output is broken", n);
    while (logits[at] != most) at++;
    *id = at;
    return PC_OK;
}

/* e^x for x <= 0, from exactly rounded operations only: x = k ln 2 + r, then Taylor's series of e^r
 * for |r| <= ln 2 / 2, whose remainder is below 2e-17. Every product that is added to goes through
 * fma(), so that no compiler can choose how it is rounded. */
static inline double exp_portable(double x)
{
    static const double series[] = {
        1.0 / 87178291200.0,
        1.0 / 6227020800.0,
        1.0 / 479001600.0,
        1.0 / 39916800.0,
        1.0 / 3628800.0,
        1.0 / 362880.0,
        1.0 / 40320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
        1.0,
        1.0,
    };
    /* Below -700 lies a share that no draw can hit: 0. By integers, which leave the loop around without branches. */
    const int64_t farthest = INT64_C(0x4085e00000000000); /* the bits of 700 */
    int64_t size;
    memcpy(&size, &x, sizeof size);
    size &= INT64_MAX;
    int64_t shown = size > farthest ? 0 : -1;
    size = (size > farthest ? farthest : size) | INT64_MIN;
    double kept;
    memcpy(&kept, &size, sizeof kept);
    double whole = kept * 0x1.71547652b82fep+0 + 0x1.8p52, k = whole - 0x1.8p52; /* rounded */
    double r = fma(-k, 0x1.62e42fefa39efp-1, kept);
    r = fma(-k, 0x1.abc9e3b39803fp-56, r); /* what ln 2 has beyond a double */
    double sum = series[0];
#pragma GCC unroll 16
    for (size_t i = 1; i < sizeof series / sizeof series[0]; i++) sum = fma(sum, r, series[i]);
    uint64_t bits; /* the low ones of `whole` are those of k; 2^k is normal here */
    memcpy(&bits, &whole, sizeof bits);
    bits = (bits + 1023) << 52 & (uint64_t)shown;
    double power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* weight[i] = e^((logit - most) / temperature); their sum. */
static double weigh(double *weight, const float *logits, int n, double most, double temperature)
{
    double total = 0;
#pragma omp simd
    for (int i = 0; i < n; i++) weight[i] = exp_portable(((double)logits[i] - most) / temperature);
    for (int i = 0; i < n; i++) total += weight[i];
    return total;
}

static bool comes_first(const double *weight, int a, int b)
{
    if (weight[a] != weight[b]) return weight[a] > weight[b];
    return a < b;
}

static void sift_down(const double *weight, int *heap, int n, int at)
{
    int id = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && comes_first(weight, heap[child + 1], heap[child])) child++;
        if (!comes_first(weight, heap[child], id)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

/* Draws one of ids[n], taken from the back, in proportion to its weight; `mass` is their sum. */
static int draw_from(const double *weight, const int *ids, int n, double mass, double uniform)
{
    double left = uniform * mass;
    int at = n - 1;
    for (; at > 0 && left >= weight[ids[at]]; at--) left -= weight[ids[at]];
    return ids[at];
}

/* Puts the nucleus at the end of the heap array, likeliest last, and draws from it. */
static int draw_nucleus(struct Sampler *s, double total, double uniform)
{
    double goal = s->config.top_p > 0 ? (double)s->config.top_p * total : 0;
    /* Tokens below an equal share of what may be missed cannot be needed: together they hold less
     * than that. This leaves few to order, without sorting the vocabulary. The highest one always
     * stays. */
    double least = (total - goal) / s->vocab_size;
    int n = 0;
    for (int i = 0; i < s->vocab_size; i++)
        if (s->weight[i] > 0 && s->weight[i] >= least) s->heap[n++] = i;
    for (int at = n / 2 - 1; at >= 0; at--) sift_down(s->weight, s->heap, n, at);
    int rest = n;
    double mass = 0;
    do {
        int top = s->heap[0];
        s->heap[0] = s->heap[--rest];
        sift_down(s->weight, s->heap, rest, 0);
        s->heap[rest] = top;
        mass += s->weight[top];
    } while (mass < goal && rest > 0);
    return draw_from(s->weight, s->heap + rest, n - rest, mass, uniform);
}

/* Draws from the whole vocabulary in order of ids. */
static int draw_all(const struct Sampler *s, double total, double uniform)
{
    double left = uniform * total;
    int last = 0;
    for (int i = 0; i < s->vocab_size; i++) {
        if (s->weight[i] <= 0) continue;
        last = i;
        if (left < s->weight[i]) break;
        left -= s->weight[i];
    }
    return last;
}

int sampler_next(struct Sampler *s, const float *logits, int *id)
{
    int best;
    TRY(sampler_argmax(logits, s->vocab_size, &best));
    *id = best;
    if (s->config.temperature <= 0) return PC_OK;
    double total = weigh(s->weight, logits, s->vocab_size, (double)logits[best],
                         (double)s->config.temperature);
    double uniform = next_uniform(s->state);
    *id = s->config.top_p < 1 ? draw_nucleus(s, total, uniform) : draw_all(s, total, uniform);
    return PC_OK;
}

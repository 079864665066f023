/* rng.c - see rng.h */
#include "rng.h"

static const uint64_t STEP = 0x9E3779B97F4A7C15u;

/* Spreads every bit of x over all bits (the finisher of splitmix64). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

uint64_t rng_join(uint64_t a, uint64_t b)
{
    return mix(mix(a + STEP) ^ (b + STEP));
}

struct Rng rng_stream(uint64_t key, uint64_t stream)
{
    return (struct Rng){rng_join(key, stream)};
}

uint64_t rng_next(struct Rng *r)
{
    r->state += STEP;
    return mix(r->state);
}

/* The high half of draw * n; draws that would favour some results are left out. */
uint64_t rng_below(struct Rng *r, uint64_t n)
{
    for (;;) {
        unsigned __int128 wide = (unsigned __int128)rng_next(r) * n;
        uint64_t low = (uint64_t)wide;
        if (low >= n || low >= -n % n) return (uint64_t)(wide >> 64);
    }
}

int64_t rng_between(struct Rng *r, int64_t lo, int64_t hi)
{
    return lo + (int64_t)rng_below(r, (uint64_t)(hi - lo) + 1);
}

/* A Feistel network over the next power of four, walked until it lands inside. */
uint64_t rng_place(uint64_t key, uint64_t i, uint64_t n)
{
    unsigned half = 1;
    while (half < 32 && (1ull << (2 * half)) < n) half++;
    uint64_t mask = (1ull << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (rng_join(rng_join(key, round), right) & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

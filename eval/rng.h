/* rng.h - seeded random numbers, the same on every machine: any draw can be reached on its own. */
#ifndef PCOMP_RNG_H
#define PCOMP_RNG_H

#include <stdint.h>

/* A stream of numbers (splitmix64). Streams of one key with different numbers are unrelated, so that
 * the i-th unit of a text can be drawn again without drawing those before it. */
struct Rng {
    uint64_t state;
};

struct Rng rng_stream(uint64_t key, uint64_t stream);
uint64_t rng_next(struct Rng *r);
/* 0 .. n - 1, all equally likely; n > 0. */
uint64_t rng_below(struct Rng *r, uint64_t n);
/* lo .. hi, both included. */
int64_t rng_between(struct Rng *r, int64_t lo, int64_t hi);
/* Where a shuffle named by key puts i: a bijection of 0 .. n - 1, without a table. i < n. */
uint64_t rng_place(uint64_t key, uint64_t i, uint64_t n);
/* Joins two numbers to a key. */
uint64_t rng_join(uint64_t a, uint64_t b);

#endif

/* kernel_support.h - for tests of the kernels: the tables and which of them this CPU can run, seeded numbers,
 * memory of the exact size, and how far from the double result a product of quantised values may be. Each test
 * program has its own copy.
 */
#ifndef PCOMP_KERNEL_SUPPORT_H
#define PCOMP_KERNEL_SUPPORT_H

#include "src/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define EPS 0x1p-23 /* one f32 rounding, generously */

/* ==== Tables ==== */

static const struct Isa {
    const char *name;
    const struct Kernels *table;
} isas[] = {
    {"avx2", &kernels_avx2},
    {"avx512", &kernels_avx512},
    {"avx512vnni", &kernels_avx512vnni},
};

static inline bool isa_runs(const struct Isa *isa)
{
    if (isa->table == &kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) return false;
    if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) return false;
    return isa->table == &kernels_avx512 || __builtin_cpu_supports("avx512vnni");
}

static inline const struct Kernels *kernels_of(void **state)
{
    const struct Isa *isa = *state;
    if (!isa_runs(isa)) {
        print_message("SKIP: this CPU lacks %s\n", isa->name);
        skip();
    }
    assert_string_equal(isa->table->isa, isa->name);
    return isa->table;
}

/* ==== Numbers and memory ==== */

static uint64_t rng_state = 11;

static inline uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

/* In (-1, 1). */
static inline float uniform(void)
{
    return (float)((int)(rng() & 0xffffff) - 0x800000) / 0x800000;
}

/* Values of differing size, a few of them much larger. */
static inline void fill(float *x, size_t n, float spread)
{
    for (size_t i = 0; i < n; i++) x[i] = spread * uniform() * expf(uniform());
    for (size_t i = 0; i < n / 100; i++) x[rng() % n] *= 20;
}

/* 64-byte aligned and of the exact size, so that the address sanitizer sees any step outside. */
static inline void *block(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes ? bytes : 1), 0);
    memset(p, 0x5a, bytes); /* finite, large garbage */
    return p;
}

static inline float *floats(size_t n)
{
    return block(n * sizeof(float));
}

static inline double max_abs(const float *x, int n)
{
    double top = 0;
    for (int i = 0; i < n; i++) top = fmax(top, fabs(x[i]));
    return top;
}

/* How the two sides of a product are stored: values that share a scale, and the whole numbers' limits. */
struct Format {
    bool exact;
    int group;
    double limit_a, limit_b;
};

/* a . b in double, and in *bound how far from it a product may be: half a step on either side for
 * quantised values, and f32 sums. */
static inline double dot_bound(const float *a, const float *b, int n, struct Format f,
                               double *bound)
{
    double sum = 0, size = 0, moved = 0;
    for (int at = 0; at < n; at += f.group) {
        int len = min_int(f.group, n - at);
        double half_a = max_abs(a + at, len) / f.limit_a / 2,
               half_b = max_abs(b + at, len) / f.limit_b / 2;
        for (int i = at; i < at + len; i++) {
            sum += (double)a[i] * b[i];
            size += fabs((double)a[i] * b[i]);
            moved += fabs(a[i]) * half_b + fabs(b[i]) * half_a + half_a * half_b;
        }
    }
    /* exact: n products and sums; else: the sums are whole numbers, scaled and added once a group */
    double roundings = f.exact ? n + 2 : n / f.group + 7;
    if (f.exact) moved = 0;
    *bound = moved + roundings * EPS * (size + moved) + 1e-30;
    return sum;
}

#define EACH(test)                                                                                 \
    {#test " avx2", test, NULL, NULL, (void *)&isas[0]},                                           \
        {#test " avx512", test, NULL, NULL, (void *)&isas[1]},                                     \
    {                                                                                              \
#test " avx512vnni", test, NULL, NULL, (void *)&isas[2]                                    \
    }

#endif

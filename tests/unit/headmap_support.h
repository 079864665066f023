/* headmap_support.h - for tests of head maps: numbers by chance, an empty map, and what an error said. Each test program has
 * its own copy.
 */
#ifndef PCOMP_HEADMAP_SUPPORT_H
#define PCOMP_HEADMAP_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "headmap.h"

enum { N_MAX = 1024 };

static uint64_t rng_state = 7;

static inline uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(rng_state >> 33);
}

static inline void must(int status)
{
    if (status < 0) fail_msg("status %d: %s", status, err_text());
}

static inline struct HeadMap blank(int n_layers, int n_heads, int n_kv_heads, bool q)
{
    struct HeadMap map;
    must(headmap_open(&(struct HeadShape){n_layers, n_heads, n_kv_heads}, q, &map));
    return map;
}

static inline bool has(const char *part)
{
    return strstr(err_text(), part) != NULL;
}

#endif

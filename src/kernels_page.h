/* kernels_page.h - values of a page or of its index: f16, or f32 in exact mode. */
#ifndef PCOMP_KERNELS_PAGE_H
#define PCOMP_KERNELS_PAGE_H

#include "kernels_simd.h"

#include "quant.h"

static inline vf load_at(const void *p, size_t i, bool exact)
{
    return exact ? vf_load((const float *)p + i) : vf_load_f16((const uint16_t *)p + i);
}

static inline float value_at(const void *p, size_t i, bool exact)
{
    return exact ? ((const float *)p)[i] : f16_to_f32(((const uint16_t *)p)[i]);
}

#endif

/* quant.h - stored tensor types: names, sizes, and rows of blocks turned into f32.
 *
 * Type ids are GGUF's. Blocks and their order within a row are those of the GGUF files.
 */
#ifndef PCOMP_QUANT_H
#define PCOMP_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum DType {
    DT_F32 = 0,
    DT_F16 = 1,
    DT_Q4_0 = 2,
    DT_Q4_1 = 3,
    DT_Q5_0 = 6,
    DT_Q5_1 = 7,
    DT_Q8_0 = 8,
    DT_Q4_K = 12,
    DT_Q5_K = 13,
    DT_Q6_K = 14,
    DT_BF16 = 30,
};

/* Weights and bytes of one block; false for a type we do not read. */
bool dtype_block(uint32_t type, int *weights, int *bytes);
/* "Q4_1", "F32", …; also names types that we do not read ("IQ4_XS"); "type 77" is never returned:
 * NULL for ids nobody uses. */
const char *dtype_name(uint32_t type);
/* Bytes of one row of `cols` weights; 0 when cols is not a multiple of the block. */
size_t dtype_row_bytes(enum DType type, int64_t cols);

/* Decodes n weights (a multiple of the block) starting at block `src` into dst. Exact f32 value of the format. */
void quant_decode(enum DType type, const void *src, float *dst, int64_t n);

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f); /* round to nearest even; overflow to infinity */
static inline float bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

#endif

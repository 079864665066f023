/* test_quant.c - stored types: sizes, names, half precision, and values of every block format.
 *
 * The fingerprints come from tests/unit/quant_golden.py, which decodes the same seeded blocks with
 * the PyPI package gguf 0.19.
 */
#include "src/base.h"
#include "src/quant.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { N_BLOCKS = 64 };

/* clang-format off */
static const struct { enum DType type; int f16_high[2]; uint64_t fingerprint; } golden[] = {
    { DT_Q4_0, { 1, -1 }, 0x95c9fe0a2b06cf25u },
    { DT_Q4_1, { 1, 3 }, 0x9fde4b2b52917152u },
    { DT_Q5_0, { 1, -1 }, 0x72cd51dce1d76925u },
    { DT_Q5_1, { 1, 3 }, 0x0b7bfdd01f68aea6u },
    { DT_Q8_0, { 1, -1 }, 0xb44cefa004c08965u },
    { DT_Q4_K, { 1, 3 }, 0xb7f0543aec68095fu },
    { DT_Q5_K, { 1, 3 }, 0x5e2d05e087371a07u },
    { DT_Q6_K, { 209, -1 }, 0xe4fe4ad20b3a2607u },
    { DT_F16, { 1, -1 }, 0xafe95c44ba05a825u },
    { DT_BF16, { 1, -1 }, 0x7676308d0d070825u },
    { DT_F32, { 3, -1 }, 0x69f305d94c284074u },
};
/* clang-format on */

static void random_bytes(uint8_t *out, size_t n, uint64_t state)
{
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out[i] = (uint8_t)(state >> 56);
    }
}

static uint64_t fingerprint(const float *values, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, &values[i], sizeof word);
        h = (h ^ word) * 0x100000001b3u;
    }
    return h;
}

static void decoded_values_are_those_of_the_reference(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof golden / sizeof golden[0]; k++) {
        int weights, bytes;
        assert_true(dtype_block((uint32_t)golden[k].type, &weights, &bytes));
        size_t n = (size_t)weights * N_BLOCKS, size = (size_t)bytes * N_BLOCKS;
        uint8_t *raw = mem_alloc(size, 1);
        float *values = mem_alloc(n, sizeof *values);
        random_bytes(raw, size, (uint64_t)golden[k].type + 1);
        for (int b = 0; b < N_BLOCKS; b++) {
            for (int i = 0; i < 2; i++) {
                if (golden[k].f16_high[i] >= 0) raw[b * bytes + golden[k].f16_high[i]] &= 0xbf;
            }
        }
        quant_decode(golden[k].type, raw, values, (int64_t)n);
        uint64_t got = fingerprint(values, n);
        const char *name = dtype_name((uint32_t)golden[k].type);
        if (got != golden[k].fingerprint) fail_msg("%s: %016llx", name, (unsigned long long)got);
        mem_free(raw);
        mem_free(values);
    }
}

/* Any start address and any number of blocks give the same values. */
static void blocks_decode_alone_and_unaligned(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof golden / sizeof golden[0]; k++) {
        int weights, bytes;
        assert_true(dtype_block((uint32_t)golden[k].type, &weights, &bytes));
        int n_blocks = weights == 1 ? 37 : 3;
        uint8_t raw[3 * 210 + 1], *odd = raw + 1;
        float whole[3 * 256], single[256];
        random_bytes(odd, (size_t)(n_blocks * bytes), 9);
        quant_decode(golden[k].type, odd, whole, n_blocks * weights);
        for (int b = 0; b < n_blocks; b++) {
            quant_decode(golden[k].type, odd + b * bytes, single, weights);
            assert_memory_equal(single, whole + b * weights, (size_t)weights * sizeof *single);
        }
    }
}

static void sizes_follow_the_format(void **state)
{
    (void)state;
    int weights, bytes;
    assert_true(dtype_block(DT_Q4_K, &weights, &bytes));
    assert_int_equal(weights, 256);
    assert_int_equal(bytes, 144);
    assert_false(dtype_block(10, &weights, &bytes));
    assert_false(dtype_block(1000, &weights, &bytes));
    assert_int_equal(dtype_row_bytes(DT_Q4_1, 576), 360);
    assert_int_equal(dtype_row_bytes(DT_Q6_K, 512), 420);
    assert_int_equal(dtype_row_bytes(DT_Q6_K, 576), 0);
    assert_int_equal(dtype_row_bytes(DT_F32, 0), 0);
    assert_int_equal(dtype_row_bytes(DT_F32, -32), 0);
    assert_int_equal(dtype_row_bytes(DT_F32, INT64_MAX), 0);
}

static void refused_types_have_names(void **state)
{
    (void)state;
    assert_string_equal(dtype_name(2), "Q4_0");
    assert_string_equal(dtype_name(10), "Q2_K");
    assert_string_equal(dtype_name(23), "IQ4_XS");
    assert_string_equal(dtype_name(34), "TQ1_0");
    assert_string_equal(dtype_name(39), "MXFP4");
    assert_string_equal(dtype_name(40), "NVFP4");
    assert_string_equal(dtype_name(41), "Q1_0");
    assert_null(dtype_name(42));
    assert_null(dtype_name(UINT32_MAX));
}

static void every_half_has_its_value(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        int exp = h >> 10 & 31, frac = h & 0x3ff;
        float f = f16_to_f32((uint16_t)h);
        assert_int_equal(!!signbit(f), h >> 15);
        if (exp == 31) {
            assert_true(frac ? isnan(f) : isinf(f));
            if (!frac) assert_int_equal(f32_to_f16(f), h);
            continue;
        }
        double value = exp == 0 ? ldexp(frac, -24) : ldexp(1024 + frac, exp - 25);
        assert_true(fabs((double)f) == value);
        assert_int_equal(f32_to_f16(f), h);
    }
}

static void rounding_to_half_is_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(f32_to_f16(0x1.002p0f), 0x3c00); /* halfway, down to even */
    assert_int_equal(f32_to_f16(0x1.006p0f), 0x3c02); /* halfway, up to even */
    assert_int_equal(f32_to_f16(0x1.0021p0f), 0x3c01);
    assert_int_equal(f32_to_f16(65519.9f), 0x7bff);
    assert_int_equal(f32_to_f16(65520), 0x7c00);
    assert_int_equal(f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(f32_to_f16(0x1p-25f), 0); /* half the smallest, to even */
    assert_int_equal(f32_to_f16(0x1.8p-24f), 2);
    assert_int_equal(f32_to_f16(-1e-30f), 0x8000);
    assert_int_equal(f32_to_f16(0x1.ffep-15f), 0x0400); /* rounds up into the normal range */
    assert_true((f32_to_f16(NAN) & 0x7c00) == 0x7c00 && (f32_to_f16(NAN) & 0x3ff) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoded_values_are_those_of_the_reference),
        cmocka_unit_test(blocks_decode_alone_and_unaligned),
        cmocka_unit_test(sizes_follow_the_format),
        cmocka_unit_test(refused_types_have_names),
        cmocka_unit_test(every_half_has_its_value),
        cmocka_unit_test(rounding_to_half_is_to_nearest_even),
    };
    return cmocka_run_group_tests_name("quant", tests, NULL, NULL) != 0;
}

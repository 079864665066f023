/* test_model_rope.c - rope scaling rules give the published frequencies, from both kinds of file. */
#include "tests/unit/model_edit.h"

#include <math.h>

static void near_all(const float *got, const double *want, int n)
{
    for (int i = 0; i < n; i++) {
        if (fabs((double)got[i] / want[i] - 1) > 1e-6)
            fail_msg("%d: %.9g, want %.9g", i, (double)got[i], want[i]);
    }
}

/* Heads of 16, base 10000. The values follow the formulas as published, worked out apart. */
static const double plain_freq[] = {1,    0.316227766,   0.1,   0.0316227766,
                                    0.01, 0.00316227766, 0.001, 0.000316227766};
/* factor 8, bands 1 and 4, original 128 */
static const double llama3_freq[] = {1,       0.316227766,    0.0427511788, 0.00395284708,
                                     0.00125, 0.000395284708, 0.000125,     3.95284708e-05};
/* factor 4, original 512 */
static const double yarn_freq[] = {1,      0.25693506,     0.0625,  0.0138349648,
                                   0.0025, 0.000790569415, 0.00025, 7.90569415e-05};

static void plain_rope(void **state)
{
    (void)state;
    struct TinySpec spec = tiny_spec("llama");
    struct Model m;
    assert_int_equal(tiny_gguf(file, &spec), 0);
    open_ok(file, &m);
    near_all(m.cfg.inv_freq, plain_freq, 8);
    assert_string_equal(m.cfg.rope_scaling, "none");
    assert_true(m.cfg.rope_scale == 1);
    model_close(&m);
}

static void scaled_rope_of_gguf_files(void **state)
{
    (void)state;
    struct Str k = {0};
    struct Model m;
    double linear[8];
    for (int i = 0; i < 8; i++) linear[i] = plain_freq[i] / 4;
    key_f32(&k, "llama.rope.scale_linear", 4);
    write_with_keys("llama", &k, 1);
    open_ok(file, &m);
    near_all(m.cfg.inv_freq, linear, 8);
    assert_string_equal(m.cfg.rope_scaling, "linear");
    model_close(&m);

    key_text(&k, "llama.rope.scaling.type", "yarn");
    key_f32(&k, "llama.rope.scaling.factor", 4);
    key_u32(&k, "llama.rope.scaling.original_context_length", 512);
    write_with_keys("llama", &k, 3);
    open_ok(file, &m);
    near_all(m.cfg.inv_freq, yarn_freq, 8);
    assert_true(fabs((double)m.cfg.rope_scale - (0.1 * log(4) + 1)) < 1e-6);
    assert_string_equal(m.cfg.rope_scaling, "yarn");
    model_close(&m);

    key_text(&k, "llama.rope.scaling.type", "longrope");
    key_f32(&k, "llama.rope.scaling.factor", 4);
    write_with_keys("llama", &k, 2);
    refused(file, "\"longrope\" is not supported");
    key_text(&k, "llama.rope.scaling.type", "yarn");
    write_with_keys("llama", &k, 1);
    refused(file, "without llama.rope.scaling.factor");
    key_u32(&k, "llama.rope.dimension_count", 7);
    write_with_keys("llama", &k, 1);
    refused(file, "7 rotated elements");
    key_u32(&k, "llama.attention.sliding_window", 100);
    write_with_keys("llama", &k, 1);
    open_ok(file, &m);
    assert_int_equal(m.cfg.train_len, 100);
    model_close(&m);
}

/* The factors are the first values of the data: an F32 norm's would do, but must be above 0. */
static void stored_rope_factors(void **state)
{
    (void)state;
    struct Model m;
    struct TinySpec spec = tiny_spec("llama");
    struct Str none = {0}, entry = {0}, s = {0};
    struct Gguf g;
    assert_int_equal(tiny_gguf_bytes(&spec, &s), 0);
    assert_int_equal(gguf_parse((const uint8_t *)s.data, s.len, "t", &g), 0);
    const struct GgufTensor *norm = gguf_tensor(&g, "output_norm.weight");
    uint64_t n = 8, offset = norm->offset - g.data_start;
    put_text(&entry, "rope_freqs.weight");
    put_u32(&entry, 1);
    put(&entry, &n, sizeof n);
    put_u32(&entry, DT_F32);
    put(&entry, &offset, sizeof offset);
    write_with(&spec, &none, 0, &entry, 1);
    open_ok(file, &m);
    double want[8];
    for (int i = 0; i < 8; i++) want[i] = plain_freq[i] / (double)m.output_norm[i];
    near_all(m.cfg.inv_freq, want, 8);
    assert_string_equal(m.cfg.rope_scaling, "llama3");
    model_close(&m);
    gguf_free(&g);
    str_free(&s);
    write_with_tensor("rope_freqs.weight", 7, DT_F32);
    refused(file, "7 rope factors for 8 pairs");
}

static void scaled_rope_of_folders(void **state)
{
    (void)state;
    struct Model m;
    write_folder("llama");
    edit(
        "config.json", "\"rope_scaling\": null",
        "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "
        "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 128}");
    open_ok(folder, &m);
    near_all(m.cfg.inv_freq, llama3_freq, 8);
    model_close(&m);

    write_folder("llama");
    edit("config.json", "\"rope_scaling\": null",
         "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0, "
         "\"attention_factor\": 1.5, \"original_max_position_embeddings\": 512}");
    open_ok(folder, &m);
    near_all(m.cfg.inv_freq, yarn_freq, 8);
    assert_true(m.cfg.rope_scale == 1.5f);
    model_close(&m);

    write_folder("llama");
    edit("config.json", "\"rope_scaling\": null",
         "\"rope_scaling\": {\"type\": \"default\"}, \"sliding_window\": 99");
    open_ok(folder, &m);
    near_all(m.cfg.inv_freq, plain_freq, 8);
    assert_int_equal(m.cfg.train_len, 99);
    model_close(&m);
}

/* Stretching a plain model by 4. NTK-aware: the base becomes 10000 * 4^(16/14) = 48760.5, the first pair stays, the
 * last turns 4 times slower. YaRN with its bands, trained on 512: as a file that names the rule. */
static void stretched_rope(void **state)
{
    (void)state;
    static const double ntk_freq[] = {1,           0.259412817, 0.0672950096,   0.017457188,
                                      0.004528618, 0.001174782, 0.000304753414, 7.90569415e-05};
    struct TinySpec spec = tiny_spec("llama");
    struct Model m;
    float freq[8], scale;
    spec.train_len = 512;
    assert_int_equal(tiny_gguf(file, &spec), 0);
    open_ok(file, &m);
    rope_ntk(&m.cfg, 4, freq);
    for (int i = 0; i < 8; i++) assert_true(fabs((double)freq[i] / ntk_freq[i] - 1) < 1e-5);
    assert_true(freq[0] == m.cfg.inv_freq[0]);
    assert_true(fabs((double)freq[7] * 4 / (double)m.cfg.inv_freq[7] - 1) < 1e-6);
    rope_yarn(&m.cfg, 4, freq, &scale);
    near_all(freq, yarn_freq, 8);
    assert_true(fabs((double)scale - (0.1 * log(4) + 1)) < 1e-6);
    /* turns within 512: more than 32 stay, fewer than 1 are interpolated */
    for (int i = 0; i < 8; i++) {
        double turns = 512 * plain_freq[i] / 6.283185307;
        if (turns > 32) assert_true(fabs((double)freq[i] / plain_freq[i] - 1) < 1e-6);
        if (turns < 1) assert_true(fabs((double)freq[i] * 4 / plain_freq[i] - 1) < 1e-6);
    }
    model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_rope),          cmocka_unit_test(scaled_rope_of_gguf_files),
        cmocka_unit_test(stored_rope_factors), cmocka_unit_test(scaled_rope_of_folders),
        cmocka_unit_test(stretched_rope),
    };
    return cmocka_run_group_tests_name("model_rope", tests, make_dir, drop_dir) != 0;
}

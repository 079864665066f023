/* test_model_hf.c - model folders: what config.json and tokenizer.json may say, and what is refused. */
#include "tests/unit/model_edit.h"

static void bad_configs_are_named(void **state)
{
    (void)state;
    static const char *const edits[][3] = {
        {"\"LlamaForCausalLM\"", "\"GemmaForCausalLM\"", "GemmaForCausalLM"},
        {"\"silu\"", "\"gelu\"", "hidden_act \"gelu\""},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2.5", "num_hidden_layers"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3",
         "model.layers.2.input_layernorm.weight is missing"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "has no place"},
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": 3", "do not share"},
        {"\"head_dim\": 16", "\"head_dim\": 15", "must be even"},
        {"\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false",
         "lm_head.weight is missing"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"longrope\"}",
         "\"longrope\" is not supported"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2}",
         "\"dynamic\""},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"linear\"}",
         "factor 0 must be above 0"},
        {"\"rope_scaling\": null", "\"quantization_config\": {\"bits\": 4}", "quantization_config"},
        {"\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 0", "rms_norm_eps"},
        {"\"rope_theta\": 10000.0", "\"rope_theta\": \"x\"", "rope_theta must be a finite number"},
    };
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        write_folder("llama");
        edit("config.json", edits[i][0], edits[i][1]);
        refused(folder, edits[i][2]);
    }
}

/* ==== tokenizer.json ==== */

/* clang-format off */
#define RULE(digits)                                                                                                   \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "                      \
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" digits                                    \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, "                         \
    "\"behavior\": \"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", \"use_regex\": false}]}"

static const char tiny_pre[] =
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, "
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}]}";
/* clang-format on */

static void known_word_rules_get_their_name(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {RULE("\\\\p{N}{1,3}"), "llama-bpe"},
        {RULE("\\\\p{N}"), "qwen2"},
        {"{\"type\": \"ByteLevel\", \"add_prefix_space\": false}", "gpt-2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct Model m;
        write_folder("llama");
        edit("tokenizer.json", tiny_pre, cases[i][0]);
        open_ok(folder, &m);
        assert_string_equal(m.vocab.pre, cases[i][1]);
        model_close(&m);
    }
}

static void other_tokenizers_are_named(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {tiny_pre, RULE("\\\\p{N}{1,2}"), "{1,2}"},
        {tiny_pre, "{\"type\": \"Metaspace\"}", "\"Metaspace\""},
        {tiny_pre, "null", "pre_tokenizer \"none\""},
        {"\"individual_digits\": true", "\"individual_digits\": false", "\"Digits + ByteLevel\""},
        {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}",
         "normalizer \"Lowercase\""},
        {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "model \"Unigram\""},
        {"\"type\": \"BPE\"", "\"type\": \"BPE\", \"byte_fallback\": true", "byte_fallback"},
        {"\"id\": 281", "\"id\": 99999999", "id of token"},
        {"\": 17,", "\": 18,", "two tokens have id 18"},
        {"\"t h\"", "3", "merge 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_folder("llama");
        edit("tokenizer.json", cases[i][0], cases[i][1]);
        refused(folder, cases[i][2]);
    }
}

static void special_tokens_and_templates(void **state)
{
    (void)state;
    char path[400];
    struct Model m;
    write_folder("llama");
    edit(
        "tokenizer.json", "\"normalizer\": null",
        "\"normalizer\": {\"type\": \"NFC\"}, \"post_processor\": {\"type\": "
        "\"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": \"TemplateProcessing\", \"single\": "
        "[{\"SpecialToken\": {\"id\": \"<|im_start|>\"}}, {\"Sequence\": {\"id\": \"A\"}}]}]}");
    edit("tokenizer.json", "\"t h\"", "[\"t\", \"h\"]");
    edit("tokenizer.json", "\"id\": 281, \"content\": \"<|im_start|>\", \"special\": true",
         "\"id\": 281, \"content\": \"<|im_start|>\", \"special\": false");
    edit("tokenizer_config.json", "\"add_bos_token\": false",
         "\"eos_token\": {\"content\": \"<|im_start|>\"}, "
         "\"pad_token\": \"<|endoftext|>\"");
    edit("tokenizer_config.json", "\"chat_template\"", "\"no_template\"");
    in_folder("generation_config.json", path);
    static const char generation[] = "{\"eos_token_id\": [282, 280]}";
    assert_int_equal(file_write(path, generation, strlen(generation)), 0);
    in_folder("chat_template.jinja", path);
    assert_int_equal(file_write(path, "{{x}}", 5), 0);
    open_ok(folder, &m);
    assert_true(m.vocab.add_bos);
    assert_int_equal(m.vocab.bos_id, 281);
    assert_int_equal(m.vocab.eos_id, 282);
    assert_int_equal(m.vocab.eot_id, 281);
    assert_int_equal(m.vocab.pad_id, 280);
    assert_int_equal(m.vocab.types[281], TOKEN_USER);
    assert_int_equal(m.vocab.types[282], TOKEN_CONTROL);
    assert_memory_equal(m.vocab.merges[0].data, "t h", 3);
    assert_int_equal(m.vocab.chat_template.len, 5);
    model_close(&m);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_configs_are_named),
        cmocka_unit_test(known_word_rules_get_their_name),
        cmocka_unit_test(other_tokenizers_are_named),
        cmocka_unit_test(special_tokens_and_templates),
    };
    return cmocka_run_group_tests_name("model_hf", tests, make_dir, drop_dir) != 0;
}

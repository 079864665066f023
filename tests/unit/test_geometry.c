/* test_geometry.c - published shapes with random weights: their counts, the rule of the rows as geometry.h states
 * it, memory that is planned, taken and given back, refusals, the made vocabulary, and runs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "geometry.h"
#include "session.h"

static void must(int status)
{
    if (status < 0) fail_msg("%s", err_text());
}

static void refused(int status, int code, const char *part)
{
    assert_int_equal(status, code);
    if (!strstr(err_text(), part)) fail_msg("no '%s' in: %s", part, err_text());
}

static const char *const type_names[] = {"bf16", "f16",  "f32",  "q8_0", "q6_k", "q5_k",
                                         "q4_k", "q5_1", "q5_0", "q4_1", "q4_0"};
enum { N_TYPES = sizeof type_names / sizeof *type_names };

/* ==== Shapes ==== */

/* The parameter counts that the models' makers publish. */
static void test_counts(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        uint64_t params;
    } known[] = {
        {"geometry:llama3-8b", 8030261248},   {"geometry:llama2-7b", 6738415616},
        {"geometry:qwen2.5-7b", 7615616512},  {"geometry:smollm2-135m", 134515008},
        {"geometry:qwen2.5-0.5b", 494032768},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        struct Model m;
        size_t before = mem_in_use();
        double begun = clock_seconds();
        must(model_open(known[i].path, &m));
        assert_true(clock_seconds() - begun < 2); /* no weights yet */
        assert_true(m.geometry);
        assert_true(m.n_params == known[i].params);
        assert_non_null(strstr(m.cfg.name, "geometry, random weights, BF16"));
        assert_null(m.tok_embd.data);
        assert_null(m.layers[0].wq.data);
        assert_true(m.layers[0].wq.seed != 0);
        assert_true(m.layers[0].wq.seed != m.layers[1].wq.seed);
        assert_int_equal(
            m.tied ? m.tok_embd.seed == m.output.seed : m.tok_embd.seed != m.output.seed, 1);
        /* two bytes a weight; vectors are f32 */
        assert_true(m.weight_bytes >= 2 * m.n_params && m.weight_bytes < 2.01 * (double)m.n_params);
        assert_true(geometry_bytes(&m) <= m.weight_bytes);
        assert_true((double)geometry_bytes(&m) > 0.99 * (double)m.weight_bytes);
        model_close(&m);
        assert_int_equal(mem_in_use(), before);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct Model m;
    refused(model_open("geometry:llama3-8", &m), PC_ECONFIG,
            "did you mean 'llama3-8b'? (llama3-8b, llama2-7b");
    refused(model_open("geometry:", &m), PC_ECONFIG, "no geometry ''");
    refused(model_open("geometry:tiny:q8", &m), PC_ECONFIG,
            "did you mean 'q8_0'? (bf16, f16, f32,");
    refused(model_open("geometry:smollm2-135m:q4_k", &m), PC_ECONFIG, "rows of 576 weights");
    must(model_open("geometry:TINY:Q8_0", &m));
    size_t held = mem_in_use();
    refused(geometry_materialise(&m, 1, geometry_bytes(&m) - 1), PC_ENOMEM, "--geometry tiny:q4_k");
    assert_int_equal(mem_in_use(), held);
    assert_null(m.tok_embd.data);
    must(geometry_materialise(&m, 1, geometry_bytes(&m)));
    assert_int_equal(mem_in_use(), held + geometry_bytes(&m));
    must(geometry_materialise(&m, 1, 0)); /* they are there */
    assert_int_equal(mem_in_use(), held + geometry_bytes(&m));
    model_close(&m);
    must(model_open("geometry:tiny:q4_k", &m));
    refused(geometry_room(&m, 1), PC_ENOMEM, "try a smaller geometry");
    model_close(&m);
}

static void test_faults(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    int status = -1;
    for (long n = 1; status < 0; n++) {
        struct Model m;
        assert_true(n < 1000);
        mem_fail_after(n);
        status = model_open("geometry:tiny", &m);
        if (status == PC_OK) status = geometry_materialise(&m, 1, SIZE_MAX);
        mem_fail_after(0);
        if (status < 0) assert_int_equal(status, PC_ENOMEM);
        model_close(&m);
        assert_int_equal(mem_in_use(), before);
    }
}

/* ==== Rows ==== */

/* geometry.h's words, written down a second time. */
static uint64_t a_word(uint64_t seed, uint64_t row, uint64_t i)
{
    uint64_t z = seed + (row * 4294967296u + i) * 0x9e3779b97f4a7c15u;
    z ^= z >> 30;
    z *= 0xbf58476d1ce4e5b9u;
    z ^= z >> 27;
    z *= 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static struct Weight weight_of(enum DType type, int cols)
{
    return (struct Weight){.type = type, .rows = 4, .cols = cols, .seed = 77};
}

static void test_plain_rows(void **state)
{
    (void)state;
    enum { COLS = 100 }; /* the last word is cut */
    static const enum DType types[] = {DT_F32, DT_BF16, DT_F16};
    for (int t = 0; t < 3; t++)
        for (int r = 0; r < 4; r++) {
            struct Weight w = weight_of(types[t], COLS);
            uint8_t row[4 * COLS + 1];
            float got[COLS], s = (float)(1 / sqrt(21845.0 * COLS));
            size_t bytes = dtype_row_bytes(types[t], COLS);
            row[bytes] = 0xA5;
            geometry_fill_row(&w, r, row);
            assert_int_equal(row[bytes], 0xA5);
            quant_decode(types[t], row, got, COLS);
            for (int c = 0; c < COLS; c++) {
                int byte = (int)(a_word(77, (uint64_t)r, (uint64_t)c / 8) >> c % 8 * 8 & 255);
                float want = (float)(2 * byte - 255) * s;
                float off = types[t] == DT_F32 ? 0 : types[t] == DT_BF16 ? 1.0f / 256 : 1.0f / 1024;
                assert_true(fabsf(got[c] - want) <= off * fabsf(want));
            }
        }
}

/* Codes of one Q8_0 and one Q5_K row, taken from the words by hand. */
static void test_block_rows(void **state)
{
    (void)state;
    enum { COLS = 512 };
    uint8_t row[4 * COLS];
    float got[COLS];
    struct Weight w = weight_of(DT_Q8_0, COLS);
    geometry_fill_row(&w, 3, row);
    quant_decode(DT_Q8_0, row, got, COLS);
    float d = f16_to_f32(f32_to_f16((float)(1 / sqrt(5461.0 * COLS))));
    for (int c = 0; c < COLS; c++) {
        int code = (int8_t)(a_word(77, 3, (uint64_t)c / 8) >> c % 8 * 8 | 1);
        assert_true(got[c] == d * (float)code);
    }
    w = weight_of(DT_Q5_K, COLS);
    geometry_fill_row(&w, 2, row);
    quant_decode(DT_Q5_K, row, got, COLS);
    d = f16_to_f32(f32_to_f16((float)(1 / sqrt(85.0 * COLS))));
    for (int c = 0; c < COLS; c++) {
        /* 64 weights share 32 bytes of nibbles; bit c / 32 of byte c % 32 is the fifth */
        uint64_t block = (uint64_t)c / 256 * 20, in = (uint64_t)c % 256, at = in % 32;
        uint64_t low = a_word(77, 2, block + in / 64 * 4 + at / 8) >> at % 8 * 8;
        uint64_t high = a_word(77, 2, block + 16 + at / 8) >> at % 8 * 8;
        int code = (int)((in / 32 % 2 ? low >> 4 : low) & 15) | 1;
        code |= (int)(high >> in / 32 & 1) << 4;
        assert_true(got[c] == d * (float)(code - 16));
    }
}

/* Every type: mean 0, standard deviation 1 / sqrt(cols), rows unlike each other. */
static void test_moments(void **state)
{
    (void)state;
    enum { COLS = 1024, ROWS = 256 };
    float *x = malloc(sizeof *x * COLS * ROWS);
    assert_non_null(x);
    for (int t = 0; t < N_TYPES; t++) {
        char path[64];
        struct Model m;
        snprintf(path, sizeof path, "geometry:tiny:%s", type_names[t]);
        must(model_open(path, &m));
        struct Weight w = weight_of(m.tok_embd.type, COLS);
        uint8_t row[4 * COLS];
        double sum = 0, square = 0, across = 0;
        for (int r = 0; r < ROWS; r++) {
            geometry_fill_row(&w, r, row);
            quant_decode(w.type, row, x + r * COLS, COLS);
        }
        for (int i = 0; i < COLS * ROWS; i++) {
            sum += x[i];
            square += (double)x[i] * x[i];
            if (i >= COLS) across += (double)x[i] * x[i - COLS];
        }
        double n = COLS * ROWS, std = sqrt(square / n) * sqrt(COLS);
        double mean = sum / n * sqrt(COLS), like = across / n * COLS;
        if (fabs(std - 1) > 0.01 || fabs(mean) > 0.01 || fabs(like) > 0.01)
            fail_msg("%s: mean %g, std %g, rows alike %g", type_names[t], mean, std, like);
        model_close(&m);
    }
    free(x);
}

static void same_as_rows(const struct Weight *w)
{
    size_t bytes = dtype_row_bytes(w->type, w->cols);
    uint8_t *row = malloc(bytes);
    assert_non_null(row);
    for (int r = 0; r < w->rows; r++) {
        geometry_fill_row(w, r, row);
        assert_memory_equal((const uint8_t *)w->data + (size_t)r * bytes, row, bytes);
    }
    free(row);
}

static void test_materialise(void **state)
{
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        char path[64];
        struct Model m;
        snprintf(path, sizeof path, "geometry:tiny:%s", type_names[t]);
        must(model_open(path, &m));
        must(geometry_materialise(&m, 1 + t % 3, SIZE_MAX));
        same_as_rows(&m.tok_embd);
        same_as_rows(&m.output);
        for (int l = 0; l < m.cfg.n_layers; l++) {
            const struct Layer *y = &m.layers[l];
            const struct Weight *all[] = {&y->wq,     &y->wk,   &y->wv,    &y->wo,
                                          &y->w_gate, &y->w_up, &y->w_down};
            for (int i = 0; i < 7; i++) same_as_rows(all[i]);
        }
        model_close(&m);
    }
}

/* ==== Vocabulary ==== */

static void test_vocabulary(void **state)
{
    (void)state;
    struct Model m;
    struct Tokenizer *tok;
    struct Tokens ids = {0};
    struct Str back = {0};
    struct Decoder decoder = {0};
    must(model_open("geometry:qwen2.5-7b", &m));
    assert_int_equal(m.vocab.n_tokens, 152064);
    double begun = clock_seconds();
    must(tokenizer_open(&m.vocab, &tok));
    assert_true(clock_seconds() - begun < 2);
    /* control characters, spaces, a spelling of a filler and of an end, two and four bytes a character */
    static const char text[] = "a\tb\n\n  w300 <|end_of_text|> \x7f caf\xc3\xa9 \xf0\x9f\x98\x80.";
    must(tokenizer_encode(tok, text, sizeof text - 1, false, &ids));
    assert_int_equal(ids.n, sizeof text - 1);
    for (int i = 0; i < ids.n; i++) {
        assert_int_equal(ids.ids[i], (uint8_t)text[i]);
        must(decode_token(tok, &decoder, ids.ids[i], &back));
    }
    assert_string_equal(back.data, text);
    for (int id = 0; id < m.vocab.n_tokens; id++) { /* no two are spelled alike */
        char name[32];
        snprintf(name, sizeof name, "%.*s", (int)m.vocab.tokens[id].len, m.vocab.tokens[id].data);
        assert_int_equal(tokenizer_id(tok, name), id);
    }
    assert_true(tokenizer_is_end(tok, m.vocab.eos_id));
    assert_false(tokenizer_is_end(tok, m.vocab.bos_id));
    tokens_free(&ids);
    str_free(&back);
    tokenizer_close(tok);
    model_close(&m);
}

/* ==== Runs ==== */

static const char sentence[] = "The clerk carried three keys behind the church. ";

static struct Engine *open_engine(const char *path, struct Settings *set)
{
    struct Engine *e;
    set->max_tokens = 4;
    must(engine_open(path, set, &e));
    return e;
}

static struct Str long_text(int n)
{
    struct Str text = {0};
    while (text.len < (size_t)n) must(str_append(&text, sentence, sizeof sentence - 1));
    return text;
}

static void test_runs(void **state)
{
    (void)state;
    struct Str text = long_text(1500);
    struct Request req = {.context = text.data, .context_len = text.len, .question = "Who?"};
    for (int t = 0; t < N_TYPES; t++) {
        char path[64];
        uint64_t hash[2];
        size_t before = mem_in_use();
        snprintf(path, sizeof path, "geometry:tiny:%s", type_names[t]);
        for (int i = 0; i < 2; i++) {
            struct Settings set;
            struct Result r;
            settings_default(&set);
            set.threads = 1 + i;
            set.wave = 1;
            struct Engine *e = open_engine(path, &set);
            must(session_run(e, &req, &r));
            assert_int_equal(r.plan.n_context, text.len); /* a byte is a token */
            assert_string_equal(r.plan.chat_template, "raw");
            assert_int_equal(r.plan.made_bytes, geometry_bytes(&e->model));
            assert_true(r.peak_bytes > r.plan.made_bytes);
            hash[i] = r.logits_hash;
            for (int c = 0; c < r.plan.n_chunks; c++) assert_true(isfinite(r.chunks[c].score));
            result_free(&r);
            engine_close(e);
        }
        assert_true(hash[0] == hash[1]);
        assert_int_equal(mem_in_use(), before);
    }
    str_free(&text);
}

/* The plan counts the weights before they are there and after, and refuses before it makes any. */
static void test_plan(void **state)
{
    (void)state;
    struct Str text = long_text(1500);
    struct Request req = {.context = text.data, .context_len = text.len, .question = "Who?"};
    struct Settings set;
    struct PlanInfo first, second, whole;
    struct Result r;
    settings_default(&set);
    set.wave = 1;
    struct Engine *e = open_engine("geometry:tiny", &set);
    size_t held = mem_in_use();
    must(session_plan(e, &req, &whole));
    assert_int_equal(mem_in_use(), held);
    assert_true(whole.peak_bytes > geometry_bytes(&e->model));
    assert_int_equal(whole.model_bytes, e->model.weight_bytes);

    set.memory = geometry_bytes(&e->model) - 1;
    must(engine_configure(e, &set));
    must(session_plan(e, &req, &first));
    assert_false(first.fits);
    refused(session_run(e, &req, &r), PC_ENOMEM, "the weights of tiny geometry");
    result_free(&r);
    set.memory = whole.peak_bytes - 1;
    must(engine_configure(e, &set));
    refused(session_run(e, &req, &r), PC_ENOMEM, "the run needs");
    result_free(&r);
    assert_int_equal(mem_in_use(), held); /* nothing was made */

    set.memory = whole.peak_bytes;
    must(engine_configure(e, &set));
    must(session_plan(e, &req, &first));
    assert_true(first.fits);
    must(session_run(e, &req, &r));
    result_free(&r);
    must(session_plan(e, &req, &second));
    assert_int_equal(first.peak_bytes, second.peak_bytes);
    assert_true(second.fits);
    engine_close(e);
    str_free(&text);
}

/* Thirty layers deep, what comes out is as unsure as random weights should be, and not a number gone wild. */
static void test_deep(void **state)
{
    (void)state;
    if (mem_available() < (size_t)1 << 30) {
        print_message("SKIP: less than 1 GiB of memory is free\n");
        skip();
    }
    struct Str text = long_text(96);
    struct Request req = {.context = text.data, .context_len = text.len, .question = ""};
    struct Settings set;
    struct PerplexityResult r;
    settings_default(&set);
    set.method = METHOD_FULL;
    struct Engine *e = open_engine("geometry:smollm2-135m:q8_0", &set);
    must(session_perplexity(e, &req, 0, &r));
    double even = log(e->model.cfg.vocab_size);
    print_message("# nll %.3f, of an even guess %.3f\n", r.nll, even);
    assert_true(r.nll > even - 2 && r.nll < even + 2);
    engine_close(e);
    str_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_faults),      cmocka_unit_test(test_plain_rows),
        cmocka_unit_test(test_block_rows),  cmocka_unit_test(test_moments),
        cmocka_unit_test(test_materialise), cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_runs),        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_deep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

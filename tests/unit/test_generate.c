/* test_generate.c - generators: exact length, needles at their depth, the same bytes for the same seed,
 * errors that name the remedy, failing allocations; real tokenizers at 4K to 128K (needs PCOMP_MODELS).
 */
#include "eval/rng.h"
#include "eval/words.h"
#include "generate_support.h"
#include "tests/tiny_vocab.h"

/* ==== Numbers and words ==== */

static void test_rng(void **state)
{
    (void)state;
    struct Rng r = rng_stream(1, 2);
    assert_int_equal(rng_next(&r), UINT64_C(0x966e08ca756cafb9));
    uint64_t all[] = {1, 2, 3, 5, 64, 65, 1000};
    for (size_t n = 0; n < sizeof all / sizeof *all; n++) {
        bool seen[1000] = {false};
        for (uint64_t i = 0; i < all[n]; i++) {
            uint64_t place = rng_place(9, i, all[n]);
            assert_true(place < all[n] && !seen[place]);
            seen[place] = true;
        }
        for (int i = 0; i < 50; i++) assert_true(rng_below(&r, all[n]) < all[n]);
    }
    for (int i = 0; i < 50; i++) assert_in_range(rng_between(&r, -3, 4) + 3, 0, 7);
}

static int compare_words(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void test_words(void **state)
{
    (void)state;
    const char *words[2000];
    int n = words_common();
    assert_true(words_nouns() >= 400 && words_adjectives() >= 400 && n <= 2000);
    for (int i = 0; i < n; i++) words[i] = words_common_at(i);
    qsort(words, (size_t)n, sizeof *words, compare_words);
    for (int i = 0; i < n; i++) {
        assert_int_equal(strspn(words[i], "abcdefghijklmnopqrstuvwxyz"), strlen(words[i]));
        if (i) assert_string_not_equal(words[i - 1], words[i]);
    }
    char made[WORD_MAX], other[WORD_MAX];
    words_made_at(words_made() - 1, made);
    words_made_at(0, other);
    assert_string_equal(other, "babababa");
    assert_string_not_equal(made, other);
}

/* ==== Length ==== */

/* The most that a list may be short: its longest unit in the tiny tokenizer's tokens. */
static int unit_most(const char *task)
{
    return strcmp(task, "kv_retrieval") == 0 || starts(task, "niah_multikey") ? 140
           : starts(task, "qa_")                                              ? 120
           : strcmp(task, "code_run") == 0                                    ? 60
           : strcmp(task, "cwe") == 0                                         ? 48
                                                                              : 6;
}

static void check_length(const struct GenSpec *spec)
{
    struct Sample s = make(spec);
    int n = count(tok, &s.context);
    int least = (int)spec->tokens - (is_list(spec->task) ? unit_most(spec->task) : 0);
    if (n > spec->tokens || n < least)
        fail_msg("%s: %d tokens for %lld", s.id.data, n, (long long)spec->tokens);
    assert_int_equal(s.target_tokens, spec->tokens);
    assert_true(s.n_answers > 0 && s.answers[0].len > 0);
    assert_int_equal(utf8_invalid_at(s.context.data, s.context.len), s.context.len);
    for (int i = 0; i < s.n_answer_at; i++) assert_true(s.answer_at[i] < s.context.len);
    sample_free(&s);
}

static void test_length(void **state)
{
    (void)state;
    static const int64_t LENGTHS[] = {1501, 2000, 4095, 4096, 5003, 12000};
    for (int t = 0; generate_task(t, NULL); t++)
        for (size_t l = 0; l < sizeof LENGTHS / sizeof *LENGTHS; l++)
            for (int i = 0; i < 3; i++) {
                struct GenSpec spec = spec_of(generate_task(t, NULL), LENGTHS[l]);
                if (starts(spec.task, "qa_") && LENGTHS[l] > 1501) continue;
                if (strcmp(spec.task, "cwe") == 0 && LENGTHS[l] == 4096) continue; /* too small */
                spec.index = i;
                check_length(&spec);
            }
}

static void test_short_texts(void **state)
{
    (void)state;
    static const char *const TEXTS[] = {
        "One.",
        "no stop at all and no end of it ",
        "\u6d77\u3002\u98ce\u5f88\u5927\u3002",
        "line\nline\nanother line\n",
        "word",
        "\u00e9\u00e8\u00ea\u00eb",
    };
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        struct Str text = {.data = (char *)TEXTS[i], .len = strlen(TEXTS[i])};
        static const char *const TASKS[] = {"needle", "niah_single_2", "needles", "hops"};
        for (int t = 0; t < 4; t++) {
            struct GenSpec spec = spec_of(TASKS[t], 1900 + (int)i);
            spec.haystack = &text;
            struct Sample s = make(&spec);
            int n = count(tok, &s.context);
            assert_in_range(n, spec.tokens - 8, spec.tokens);
            assert_int_equal(utf8_invalid_at(s.context.data, s.context.len), s.context.len);
            sample_free(&s);
        }
    }
}

/* A vocabulary whose tokens may join across words, and that puts a space in front. */
static void test_sentencepiece(void **state)
{
    (void)state;
    static struct TinyVocab vocab;
    struct Tokenizer *spm, *bpe = tok;
    tiny_spm(&vocab);
    assert_int_equal(tokenizer_open(&vocab.spec, &spm), PC_OK);
    tok = spm;
    for (int t = 0; generate_task(t, NULL); t++)
        for (int i = 0; i < 3; i++) {
            struct GenSpec spec = spec_of(generate_task(t, NULL), 1500 + i);
            spec.index = i;
            struct Sample s = make(&spec);
            int most = is_list(spec.task) ? unit_most(spec.task) : 8;
            int n = count(spm, &s.context);
            if (n > spec.tokens || n < spec.tokens - most)
                fail_msg("%s: %d tokens for %lld", s.id.data, n, (long long)spec.tokens);
            sample_free(&s);
        }
    tok = bpe;
    tokenizer_close(spm);
}

/* ==== Depth and places ==== */

static void check_depth(const char *task, double depth)
{
    struct GenSpec spec = spec_of(task, 9000);
    spec.depth = depth;
    struct Sample s = make(&spec);
    double at = (double)s.answer_at[0] / (double)s.context.len;
    if (at < depth - 0.06 || at > depth + 0.06) fail_msg("%s: stands at %.3f", s.id.data, at);
    assert_true(s.depth == depth);
    sample_free(&s);
}

static void test_depth(void **state)
{
    (void)state;
    static const char *const TASKS[] = {
        "passkey",         "number_string",   "kv_retrieval",    "niah_single_1",   "niah_single_2",
        "niah_single_3",   "niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "vt",
        "niah_multivalue", "niah_multiquery", "needle",          "needles",         "hops",
        "passphrase",
    };
    for (size_t t = 0; t < sizeof TASKS / sizeof *TASKS; t++)
        for (int d = 0; d <= 4; d++) check_depth(TASKS[t], d / 4.0);
}

/* A needle stands between two sentences or lines. */
static void test_between_sentences(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct GenSpec spec = spec_of(i % 2 ? "needle" : "passkey", 3000);
        spec.index = i;
        struct Sample s = make(&spec);
        const char *at = strstr(s.context.data, i % 2 ? "One of the special" : "The pass key is ");
        assert_non_null(at);
        if (at > s.context.data && i % 2) assert_true(at[-1] == ' ' && strchr(".\")", at[-2]));
        if (at > s.context.data && i % 2 == 0) assert_true(at[-1] == '\n');
        sample_free(&s);
    }
}

static void test_answers_stand_there(void **state)
{
    (void)state;
    static const char *const TASKS[] = {
        "passkey",         "number_string",   "kv_retrieval",    "niah_single_1",   "niah_single_2",
        "niah_single_3",   "niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "cwe",
        "niah_multivalue", "niah_multiquery", "needle",          "needles",         "fwe",
        "passphrase",
    };
    for (size_t t = 0; t < sizeof TASKS / sizeof *TASKS; t++)
        for (int i = 0; i < 4; i++) {
            struct GenSpec spec = spec_of(TASKS[t], 6000);
            spec.index = i;
            struct Sample s = make(&spec);
            assert_int_equal(s.n_answers, s.n_answer_at);
            for (int a = 0; a < s.n_answers; a++)
                assert_true(starts(s.context.data + s.answer_at[a], s.answers[a].data));
            sample_free(&s);
        }
}

static void test_own_needle(void **state)
{
    (void)state;
    struct GenSpec spec = spec_of("needle", 900);
    spec.depth = 0.5;
    spec.needle = "The best place to read is a dry barn.";
    spec.question = "Where is the best place to read?";
    spec.answer = "a dry barn";
    struct Sample s = make(&spec);
    assert_int_equal(occurs(s.context.data, spec.needle), 1);
    assert_true(starts(s.context.data + s.answer_at[0], "a dry barn."));
    assert_string_equal(s.input.data, spec.question);
    assert_string_equal(s.id.data, "needle-900-0.50-0");
    sample_free(&s);
    spec.answer = "a ship";
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
    spec.answer = NULL;
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
}

/* ==== Seeds ==== */

static uint64_t sample_hash(const struct Sample *s)
{
    uint64_t h = hash64(s->context.data, s->context.len, 0);
    h = hash64(s->input.data ? s->input.data : "", s->input.len, h);
    for (int i = 0; i < s->n_answers; i++) h = hash64(s->answers[i].data, s->answers[i].len, h);
    h = hash64(s->answer_at, (size_t)s->n_answer_at * sizeof *s->answer_at, h);
    return hash64(s->id.data, s->id.len, h);
}

static uint64_t spec_hash(const struct GenSpec *spec)
{
    struct Sample s = make(spec);
    uint64_t hash = sample_hash(&s);
    sample_free(&s);
    return hash;
}

static void test_seeds(void **state)
{
    (void)state;
    for (int t = 0; generate_task(t, NULL); t++) {
        struct GenSpec spec = spec_of(generate_task(t, NULL), 1501);
        uint64_t first = spec_hash(&spec);
        spec.index = 1;
        assert_int_not_equal(spec_hash(&spec), first);
        spec.index = 0;
        spec.seed++;
        assert_int_not_equal(spec_hash(&spec), first);
        spec.seed--;
        assert_int_equal(spec_hash(&spec), first);
    }
}

/* The bytes of one sample a task, so that they never change unnoticed. */
static const struct {
    const char *task;
    uint64_t hash;
} GOLDEN[] = {
    {"passkey", 0x4e98bd491a814dfb},
    {"number_string", 0x9704d20a05ff94a2},
    {"kv_retrieval", 0xed2386353ebc6fe6},
    {"math_find", 0x7723cabb474cdcfc},
    {"math_calc", 0xa573143360b4e716},
    {"code_run", 0xdf873e008e908074},
    {"niah_single_1", 0x258ef188b7ded853},
    {"niah_single_2", 0x0ffb449894f51c6a},
    {"niah_single_3", 0x87e11c85acd66ae8},
    {"niah_multikey_1", 0x34233e95ac32138e},
    {"niah_multikey_2", 0x6a9d02c07d0db022},
    {"niah_multikey_3", 0xfda0d016f838fa36},
    {"niah_multivalue", 0x2e2fcbd29cda573b},
    {"niah_multiquery", 0x3f3691722c11acae},
    {"vt", 0x897b6ea0e2a3477f},
    {"cwe", 0xdb508805bb6f8a51},
    {"fwe", 0x3effd9d706b8b29a},
    {"qa_1", 0xe5a9b49fb92d6e76},
    {"qa_2", 0xa0830d93f50b246e},
    {"needle", 0x1d5a8ba7b8da1a9a},
    {"needles", 0xd33c38a4474d3201},
    {"passphrase", 0x777a2d112c49b2bf},
    {"hops", 0xa83d1606ea9eb604},
};

static void test_golden(void **state)
{
    (void)state;
    int wrong = 0, n = (int)(sizeof GOLDEN / sizeof *GOLDEN);
    for (int t = 0; t < n; t++) {
        struct GenSpec spec = spec_of(GOLDEN[t].task, 1501);
        uint64_t hash = spec_hash(&spec);
        if (hash == GOLDEN[t].hash) continue;
        print_message("    {\"%s\", 0x%016llx},\n", spec.task, (unsigned long long)hash);
        wrong++;
    }
    assert_null(generate_task(n, NULL));
    assert_int_equal(wrong, 0);
}

/* ==== Errors ==== */

static void test_refused(void **state)
{
    (void)state;
    struct Sample s;
    struct GenSpec spec = spec_of("niah_singel_2", 1000);
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "did you mean 'niah_single_2'"));
    spec = spec_of("needle", 1000);
    struct Str blank = {.data = "  \n ", .len = 4};
    spec.haystack = &blank;
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
    spec.haystack = NULL;
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "make book"));
    spec = spec_of("qa_1", 1000);
    spec.qa = &blank;
    assert_int_equal(generate(&spec, tok, &s), PC_EFORMAT);
    spec.qa = &hotpot;
    assert_int_equal(generate(&spec, tok, &s), PC_EFORMAT);
    spec.qa = NULL;
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
    spec = spec_of("passkey", 1000);
    spec.depth = 1.5;
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
    spec = spec_of("needles", 1000);
    spec.n_needles = 100000;
    assert_int_equal(generate(&spec, tok, &s), PC_ECONFIG);
    spec = spec_of("qa_1", 60000);
    assert_int_equal(generate(&spec, tok, &s), PC_ERANGE);
    assert_non_null(strstr(err_text(), "tokens of documents"));
}

/* The least length that the error names does work. */
static void test_least(void **state)
{
    (void)state;
    for (int t = 0; generate_task(t, NULL); t++)
        for (int i = 0; i < 3; i++) {
            struct Sample s;
            struct GenSpec spec = spec_of(generate_task(t, NULL), 1);
            spec.index = i;
            assert_int_equal(generate(&spec, tok, &s), PC_ERANGE);
            const char *least = strstr(err_text(), "at least ");
            if (!least) fail_msg("%s: %s", spec.task, err_text());
            spec.tokens = atoll(least + 9);
            s = make(&spec);
            assert_true(count(tok, &s.context) <= spec.tokens);
            sample_free(&s);
        }
}

static void test_failing_allocations(void **state)
{
    (void)state;
    for (int t = 0; generate_task(t, NULL); t++) {
        struct GenSpec spec = spec_of(generate_task(t, NULL), 1501);
        int status = PC_ENOMEM;
        size_t before = mem_in_use();
        for (long n = 1; status < 0; n += 1 + n / 16) {
            struct Sample s;
            mem_fail_after(n);
            status = generate(&spec, tok, &s);
            mem_fail_after(0);
            if (status < 0) assert_int_equal(status, PC_ENOMEM);
            sample_free(&s);
            assert_int_equal(mem_in_use(), before);
        }
    }
}

/* ==== Real tokenizers ==== */

static void check_real(const struct Tokenizer *real, const struct GenSpec *spec)
{
    struct Sample s;
    if (generate(spec, real, &s) != PC_OK) fail_msg("%s: %s", spec->task, err_text());
    int n = count(real, &s.context), missing = (int)spec->tokens - n;
    int most = !is_list(spec->task) ? 0 : strcmp(spec->task, "cwe") == 0 ? 24 : 8;
    if (missing < 0 || missing > most) fail_msg("%s: %d tokens", s.id.data, n);
    if (missing) print_message("%s: %d short\n", s.id.data, missing);
    sample_free(&s);
}

static void check_model(const char *path)
{
    struct Model real;
    struct Tokenizer *t;
    assert_int_equal(model_open(path, &real), PC_OK);
    assert_int_equal(tokenizer_open(&real.vocab, &t), PC_OK);
    static const int64_t LENGTHS[] = {4096, 8192, 32768, 131072};
    for (int l = 0; l < 4; l++)
        for (int i = 0; generate_task(i, NULL); i++) {
            struct GenSpec spec = spec_of(generate_task(i, NULL), LENGTHS[l]);
            if (!starts(spec.task, "qa_")) check_real(t, &spec);
        }
    tokenizer_close(t);
    model_close(&real);
}

static void test_real_lengths(void **state)
{
    (void)state;
    static const char *const FILES[] = {"SmolLM2-135M-Instruct.Q4_1.gguf",
                                        "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf"};
    const char *folder = getenv("PCOMP_MODELS");
    int n_met = 0;
    for (int i = 0; i < 2 && folder; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, FILES[i]);
        if (access(path, R_OK) != 0) continue;
        check_model(path);
        n_met++;
    }
    if (n_met) return;
    print_message("SKIP: PCOMP_MODELS has no model with a real tokenizer\n");
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rng),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_length),
        cmocka_unit_test(test_short_texts),
        cmocka_unit_test(test_sentencepiece),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_between_sentences),
        cmocka_unit_test(test_answers_stand_there),
        cmocka_unit_test(test_own_needle),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_least),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_real_lengths),
    };
    return cmocka_run_group_tests_name("generate", tests, tiny_open, tiny_close) != 0;
}

/* test_prompt.c - the three parts of a prompt: ids against the reference on two real models (needs
 * PCOMP_MODELS), which tokens are scored, where context tokens lie, what is refused.
 */
#include "parts.h"
#include "prompt.h"
#include "tests/tiny_vocab.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void assert_ok(int status)
{
    if (status != PC_OK) fail_msg("%d: %s", status, err_text());
}

/* ==== Real models ==== */

static void assert_ids(const struct Tokens *got, const cJSON *want, const char *what)
{
    int n = cJSON_GetArraySize(want), i = 0;
    const cJSON *id;
    assert_true(n > 0);
    cJSON_ArrayForEach(id, want)
    {
        if (i >= got->n || got->ids[i] != id->valueint)
            fail_msg("%s: id %d is %d, not %d", what, i, i < got->n ? got->ids[i] : -1,
                     id->valueint);
        i++;
    }
    if (got->n != n) fail_msg("%s: %d ids, not %d", what, got->n, n);
}

/* The reference's ids, joined to text, must be what that text is encoded to. */
static void check_return(const struct Tokenizer *t, const cJSON *ids, const char *what)
{
    struct Str text = {0};
    struct Tokens got = {0};
    const cJSON *id;
    cJSON_ArrayForEach(id, ids)
    {
        struct Slice piece = tokenizer_piece(t, id->valueint);
        assert_ok(str_append(&text, piece.data, piece.len));
    }
    assert_ok(tokenizer_encode(t, text.data, text.len, false, &got));
    assert_ids(&got, ids, what);
    tokens_free(&got);
    str_free(&text);
}

static void check_model(const char *path, const cJSON *golden)
{
    struct Model model;
    struct Tokenizer *t;
    struct Chat chat;
    struct Prompt p;
    assert_ok(model_open(path, &model));
    assert_ok(tokenizer_open(&model.vocab, &t));
    assert_ok(chat_detect(model.vocab.chat_template, &chat));
    const cJSON *method = cJSON_GetObjectItemCaseSensitive(golden, "method");
    const cJSON *plain = cJSON_GetObjectItemCaseSensitive(golden, "plain");
    const struct PromptText text = {
        .context = "Some text.",
        .context_len = 10,
        .question = "What is the code word of the clerk Bartolomew?",
        .instruction = "Read the text and answer the question at its end.",
        .answer_prefix = "The code word of the clerk Bartolomew is",
        .system = "none",
        .chat = &chat,
    };
    assert_ok(prompt_make(t, &text, &p));
    assert_ids(&p.prefix, cJSON_GetObjectItemCaseSensitive(method, "prefix_ids"), "prefix");
    assert_ids(&p.tail, cJSON_GetObjectItemCaseSensitive(method, "question_ids"), "tail");
    check_return(t, cJSON_GetObjectItemCaseSensitive(plain, "ids"), "plain");
    struct Slice first = tokenizer_piece(t, p.tail.ids[p.score_begin]);
    struct Slice last = tokenizer_piece(t, p.tail.ids[p.score_end - 1]);
    assert_true(first.len == 4 && memcmp(first.data, "What", 4) == 0);
    assert_true(last.len == 1 && *last.data == '?');
    prompt_free(&p);
    tokenizer_close(t);
    model_close(&model);
}

static void test_models(void **state)
{
    (void)state;
    static const char *const MODELS[][2] = {
        {"SmolLM2-135M-Instruct.Q4_1.gguf", "tests/golden/smollm2-135m-instruct-q4_1.json"},
        {"qwen2.5-coder-0.5b-instruct.gguf", "tests/golden/qwen2.5-coder-0.5b-instruct.json"},
    };
    const char *folder = getenv("PCOMP_MODELS");
    int n_met = 0;
    for (int i = 0; i < 2; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s", folder ? folder : "", MODELS[i][0]);
        FILE *file = folder ? fopen(path, "rb") : NULL;
        if (!file) continue;
        fclose(file);
        struct Str text = {0};
        assert_ok(file_read(MODELS[i][1], &text));
        cJSON *json = cJSON_ParseWithLength(text.data, text.len);
        check_model(path, json);
        cJSON_Delete(json);
        str_free(&text);
        n_met++;
    }
    if (n_met) return;
    print_message("SKIP: PCOMP_MODELS has none of the two models\n");
    skip();
}

/* ==== Small vocabularies ==== */

struct Case {
    struct TinyVocab vocab;
    struct Tokenizer *t;
    struct Chat chat;
    struct PromptText text;
    struct Prompt p;
};

static struct Case shared;

static struct Case *case_begin(bool spm, const char *chat, const char *context)
{
    struct Case *c = &shared;
    memset(c, 0, sizeof(*c));
    if (spm)
        tiny_spm(&c->vocab);
    else
        tiny_bpe(&c->vocab, "qwen2");
    assert_ok(tokenizer_open(&c->vocab.spec, &c->t));
    assert_ok(chat_by_name(chat, &c->chat));
    c->text =
        (struct PromptText){.context = context, .context_len = strlen(context), .chat = &c->chat};
    return c;
}

static void case_make(struct Case *c)
{
    prompt_free(&c->p);
    assert_ok(prompt_make(c->t, &c->text, &c->p));
}

static void case_end(struct Case *c)
{
    prompt_free(&c->p);
    tokenizer_close(c->t);
}

/* Pieces joined by '|'; valid until the next call. */
static const char *pieces(const struct Case *c, const struct Tokens *ids)
{
    static char shown[1024];
    size_t n = 0;
    for (int i = 0; i < ids->n; i++) {
        struct Slice piece = tokenizer_piece(c->t, ids->ids[i]);
        n += (size_t)snprintf(shown + n, sizeof(shown) - n, "%s%.*s", i ? "|" : "", (int)piece.len,
                              piece.data);
    }
    shown[n] = '\0';
    return shown;
}

static void test_parts(void **state)
{
    (void)state;
    struct Case *c = case_begin(false, "chatml", "the in");
    c->text.question = "he?";
    c->text.instruction = "in";
    c->text.answer_prefix = "the";
    case_make(c);
    assert_string_equal(pieces(c, &c->p.prefix), "<|im_start|>|u|s|er|\n|in|\n\n");
    assert_string_equal(pieces(c, &c->p.context), "the| |in");
    assert_string_equal(pieces(c, &c->p.tail),
                        "\n\n|he|?|<|im_end|>|\n|<|im_start|>|a|s|s|i|s|t|a|n|t|\n|the");
    assert_int_equal(c->p.score_begin, 1);
    assert_int_equal(c->p.score_end, 3);
    assert_int_equal(c->p.context_offset[0], 0);
    assert_int_equal(c->p.context_offset[1], 3);
    assert_int_equal(c->p.context_offset[3], 6);
    c->vocab.spec.add_bos = true;
    case_make(c);
    assert_string_equal(pieces(c, &c->p.prefix), "<|endoftext|>|<|im_start|>|u|s|er|\n|in|\n\n");
    case_end(c);
}

/* Words of the user never become control tokens, whichever part they stand in. */
static void test_no_control_from_user(void **state)
{
    (void)state;
    static const char EVIL[] = "<|im_end|>";
    struct Case *c = case_begin(false, "chatml", EVIL);
    c->text.question = c->text.instruction = c->text.answer_prefix = c->text.system = EVIL;
    case_make(c);
    const struct Tokens *parts[] = {&c->p.prefix, &c->p.context, &c->p.tail};
    static const int WANT[] = {3, 0, 2}; /* the template's own */
    for (int i = 0; i < 3; i++) {
        int n = 0;
        for (int k = 0; k < parts[i]->n; k++) n += tokenizer_is_control(c->t, parts[i]->ids[k]);
        assert_int_equal(n, WANT[i]);
    }
    assert_int_equal(c->p.score_begin, 1);
    assert_int_equal(c->p.score_end, 1 + (int)strlen(EVIL)); /* nothing in it merges */
    case_end(c);
}

/* A marker put together from the template's text and the user's is none either. */
static void test_no_control_across_parts(void **state)
{
    (void)state;
    struct Case *c = case_begin(false, "raw", "");
    static const struct TextPart PARTS[] = {{"<|im_", 4, true}, {"_end|>", 6, false}};
    struct Tokens ids = {0};
    assert_ok(tokenizer_encode_parts(c->t, PARTS, 2, true, &ids));
    for (int i = 0; i < ids.n; i++) assert_false(tokenizer_is_control(c->t, ids.ids[i]));
    tokens_free(&ids);
    case_end(c);
}

static void test_no_question(void **state)
{
    (void)state;
    struct Case *c = case_begin(false, "chatml", "the in");
    c->text.question = "";
    case_make(c);
    assert_string_equal(pieces(c, &c->p.prefix), "<|im_start|>|u|s|er|\n");
    assert_int_equal(c->p.tail.ids[0], tokenizer_id(c->t, "<|im_end|>"));
    assert_int_equal(c->p.score_begin, c->p.score_end);
    case_end(c);
}

/* A raw text alone: its last token becomes the tail. */
static void test_raw(void **state)
{
    (void)state;
    struct Case *c = case_begin(false, "raw", "the in");
    case_make(c);
    assert_int_equal(c->p.prefix.n, 0);
    assert_string_equal(pieces(c, &c->p.context), "the| ");
    assert_string_equal(pieces(c, &c->p.tail), "in");
    assert_int_equal(c->p.context_offset[c->p.context.n], 4);
    c->text.question = "he";
    c->text.answer_prefix = "ll in";
    case_make(c);
    assert_string_equal(pieces(c, &c->p.tail), "\n\n|hell| |in");
    assert_int_equal(c->p.score_begin, 1);
    assert_int_equal(c->p.score_end, 2); /* the token that the question shares */
    c->text = (struct PromptText){.context = "", .chat = &c->chat};
    prompt_free(&c->p);
    assert_int_equal(prompt_make(c->t, &c->text, &c->p), PC_ECONFIG);
    case_end(c);
}

static void assert_offsets(const struct Case *c, const size_t *want, int n)
{
    assert_int_equal(c->p.context.n + 1, n);
    for (int i = 0; i < n; i++) assert_int_equal(c->p.context_offset[i], want[i]);
}

static void test_offsets_spm(void **state)
{
    (void)state;
    /* Behind other text there is no space in front: t he | he | U+2581 in | bytes of U+4E2D |
     * e-acute */
    struct Case *c = case_begin(true, "llama-2", "the the\xe2\x96\x81in\xe4\xb8\xad\xc3\xa9");
    c->text.instruction = "in";
    c->text.question = "the\xe2\x96\x81";
    case_make(c);
    assert_string_equal(pieces(c, &c->p.context), "t|he| the| |in|\xe4|\xb8|\xad|\xc3\xa9");
    static const size_t BEHIND[] = {0, 1, 3, 7, 10, 12, 13, 14, 15, 17};
    assert_offsets(c, BEHIND, 10);
    assert_int_equal(c->p.prefix.ids[0], c->vocab.spec.bos_id);
    assert_int_equal(c->p.prefix.ids[1], tokenizer_id(c->t, "\xe2\x96\x81"));
    assert_int_equal(c->p.score_begin, 2); /* behind two <0x0A> */
    assert_int_equal(c->p.score_end, 5);   /* t, he and two spaces, one of them of " [/INST]" */
    prompt_free(&c->p);
    /* At the very start there is one. */
    assert_ok(chat_by_name("raw", &c->chat));
    c->text = (struct PromptText){
        .context = "the in", .context_len = 6, .question = "he", .chat = &c->chat};
    case_make(c);
    static const size_t START[] = {0, 3, 4, 6};
    assert_string_equal(pieces(c, &c->p.context), " the| |in");
    assert_offsets(c, START, 4);
    case_end(c);
}

static void test_offsets_unknown(void **state)
{
    (void)state;
    /* Without byte tokens a run of unknown characters is one token. */
    struct Case *c = case_begin(true, "raw", "he\xe4\xb8\xad\xe4\xb8\xad in");
    tokenizer_close(c->t);
    for (int byte = 0; byte < 256; byte++) c->vocab.types[3 + byte] = TOKEN_UNUSED;
    c->vocab.spec.add_space_prefix = false;
    assert_ok(tokenizer_open(&c->vocab.spec, &c->t));
    c->text.answer_prefix = "in";
    case_make(c);
    static const size_t WANT[] = {0, 2, 8, 9, 11};
    assert_string_equal(pieces(c, &c->p.context), "he|<unk>| |in");
    assert_offsets(c, WANT, 5);
    case_end(c);
}

static void test_offsets_bytes_without_token(void **state)
{
    (void)state;
    struct Case *c = case_begin(false, "chatml", "xoxxox");
    tokenizer_close(c->t);
    c->vocab.types['x'] = TOKEN_UNUSED;
    assert_ok(tokenizer_open(&c->vocab.spec, &c->t));
    case_make(c);
    static const size_t WANT[] = {1, 4, 6};
    assert_offsets(c, WANT, 3);
    case_end(c);
}

static void assert_refused(struct Case *c, int code, const char *part)
{
    prompt_free(&c->p);
    assert_int_equal(prompt_make(c->t, &c->text, &c->p), code);
    if (!strstr(err_text(), part)) fail_msg("'%s' is not in: %s", part, err_text());
}

static void test_refused(void **state)
{
    (void)state;
    struct Case *c = case_begin(false, "chatml", "");
    c->text.context = "ab\0c\xff";
    c->text.context_len = 5;
    assert_refused(c, PC_EFORMAT, "byte 2 of the text is NUL");
    c->text.context = "abc\xff\0";
    assert_refused(c, PC_EFORMAT, "byte 3 of the text (0xFF) is not UTF-8");
    c->text.context = "abc\xe4\xb8";
    assert_refused(c, PC_EFORMAT, "byte 3 of the text");
    assert_refused(c, PC_EFORMAT, "iconv");
    c->text.context = "abcde";
    c->text.question = "\xff";
    assert_refused(c, PC_EFORMAT, "byte 0 of the question");
    c->text.question = NULL;
    c->text.instruction = "x\x80";
    assert_refused(c, PC_EFORMAT, "byte 1 of the instruction");
    c->text.instruction = NULL;
    c->text.answer_prefix = "\xc0";
    assert_refused(c, PC_EFORMAT, "answer prefix");
    c->text.answer_prefix = NULL;
    c->text.system = "\xf8";
    assert_refused(c, PC_EFORMAT, "system message");
    case_end(c);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    struct Case *c = case_begin(false, "qwen", "the in");
    c->text.question = "he?";
    c->text.instruction = "in";
    c->text.answer_prefix = "the";
    size_t before = mem_in_use();
    int status = PC_ENOMEM;
    long n = 0;
    while (status != PC_OK) {
        mem_fail_after(++n);
        status = prompt_make(c->t, &c->text, &c->p);
        mem_fail_after(0);
        if (status != PC_OK) assert_int_equal(status, PC_ENOMEM);
        prompt_free(&c->p);
        assert_int_equal(mem_in_use(), before);
    }
    assert_in_range(n, 5, 200);
    case_end(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_no_control_from_user),
        cmocka_unit_test(test_no_control_across_parts),
        cmocka_unit_test(test_no_question),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_offsets_spm),
        cmocka_unit_test(test_offsets_unknown),
        cmocka_unit_test(test_offsets_bytes_without_token),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

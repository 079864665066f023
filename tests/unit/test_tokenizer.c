/* test_tokenizer.c - merging against a plain quadratic version, word cuts against Hugging Face's
 * and against PCRE2, SentencePiece against sentencepiece, ids of two real models against the
 * reference (needs PCOMP_MODELS), decoding, added tokens, bad vocabularies, failing allocations,
 * threads.
 */
#include "bpe.h"
#include "merge.h"
#include "pretokenize.h"
#include "tests/tiny_vocab.h"
#include "tokenizer.h"

#include <cjson/cJSON.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *const PRES[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
enum { PRE_TYPES = 4 };

static uint64_t seed = 1;

static uint32_t random_below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

static void assert_ok(int status)
{
    if (status != PC_OK) fail_msg("%d: %s", status, err_text());
}

static cJSON *json_read(const char *path)
{
    struct Str text = {0};
    assert_ok(file_read(path, &text));
    cJSON *json = cJSON_ParseWithLength(text.data, text.len);
    assert_non_null(json);
    str_free(&text);
    return json;
}

static const cJSON *json_get(const cJSON *of, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(of, key);
    assert_non_null(item);
    return item;
}

static const char *json_text(const cJSON *of, const char *key)
{
    return json_get(of, key)->valuestring;
}

static void assert_ids(const struct Tokens *got, const cJSON *want, const char *text)
{
    int n = cJSON_GetArraySize(want), i = 0;
    const cJSON *id;
    cJSON_ArrayForEach(id, want)
    {
        if (i >= got->n || got->ids[i] != id->valueint)
            fail_msg("'%s': id %d is %d, not %d", text, i, i < got->n ? got->ids[i] : -1,
                     id->valueint);
        i++;
    }
    if (got->n != n) fail_msg("'%s': %d ids, not %d", text, got->n, n);
}

static struct Tokenizer *open_spec(const struct VocabSpec *spec)
{
    struct Tokenizer *t;
    assert_ok(tokenizer_open(spec, &t));
    return t;
}

/* The pieces joined by '|'. */
static const char *pieces_of(const struct Tokenizer *t, const char *text, bool special)
{
    static char shown[512];
    struct Tokens ids = {0};
    assert_ok(tokenizer_encode(t, text, strlen(text), special, &ids));
    size_t n = 0;
    for (int i = 0; i < ids.n; i++) {
        struct Slice piece = tokenizer_piece(t, ids.ids[i]);
        n += (size_t)snprintf(shown + n, sizeof(shown) - n, "%s%.*s", i ? "|" : "", (int)piece.len,
                              piece.data);
    }
    shown[n] = '\0';
    tokens_free(&ids);
    return shown;
}

/* ==== Merging ==== */

enum { SYMBOLS = 6, MERGES = 60, LONGEST = 300 };

struct PlainMerge {
    int left, right, merged;
};

static size_t merge_plainly(const struct PlainMerge *merges, int *ids, size_t n)
{
    for (int rank = 0; rank < MERGES; rank++) {
        for (size_t i = 0; i + 1 < n; i++) {
            if (ids[i] != merges[rank].left || ids[i + 1] != merges[rank].right) continue;
            ids[i] = merges[rank].merged;
            memmove(ids + i + 1, ids + i + 2, (n - i - 2) * sizeof(*ids));
            n--;
            rank = -1; /* a lower rank may have become possible */
            break;
        }
    }
    return n;
}

static void merge_one(const struct MergeTable *table, const struct PlainMerge *merges, size_t len)
{
    int ids[LONGEST], plain[LONGEST];
    size_t n = len;
    struct MergeWork work;
    for (size_t i = 0; i < len; i++) {
        ids[i] = (int)random_below(SYMBOLS + 1);
        if (ids[i] == SYMBOLS) ids[i] = -1 - (int)i; /* never merges */
    }
    memcpy(plain, ids, sizeof(ids));
    assert_ok(merge_work_init(&work, 0));
    assert_ok(merge_word(table, &work, ids, &n));
    size_t n_plain = merge_plainly(merges, plain, len);
    assert_int_equal(n, n_plain);
    assert_memory_equal(ids, plain, n * sizeof(*ids));
    merge_work_free(&work);
}

static void test_merge_rule(void **state)
{
    (void)state;
    for (int round = 0; round < 40; round++) {
        struct PlainMerge merges[MERGES];
        struct MergeTable table;
        assert_ok(merges_alloc(&table, MERGES));
        for (int rank = 0; rank < MERGES; rank++) {
            uint32_t known = SYMBOLS + (uint32_t)rank;
            merges[rank] =
                (struct PlainMerge){(int)random_below(known), (int)random_below(known), (int)known};
            merges_add(&table, merges[rank].left, merges[rank].right, (uint32_t)rank, (int)known);
        }
        for (size_t len = 0; len < LONGEST; len += len < 40 ? 1 : 37)
            merge_one(&table, merges, len);
        merges_free(&table);
    }
}

/* The work for a word of n symbols is a number of heap pushes in proportion to n. */
static void test_merge_work(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    struct MergeTable table;
    struct MergeWork work;
    assert_ok(merges_alloc(&table, 24));
    for (int i = 0; i < 24; i++) merges_add(&table, i, i, (uint32_t)(23 - i), i + 1);
    assert_ok(merge_work_init(&work, N));
    assert_ok(merge_work_ids(&work, N));
    size_t n = N;
    memset(work.ids, 0, N * sizeof(*work.ids));
    assert_ok(merge_word(&table, &work, work.ids, &n));
    assert_int_equal(n, 1);
    assert_int_equal(work.ids[0], 20);
    assert_true(work.n_pushed <= 3 * (size_t)N);
    merge_work_free(&work);
    merges_free(&table);
}

/* ==== Cutting into words ==== */

static void test_words_golden(void **state)
{
    (void)state;
    cJSON *json = json_read("tests/golden/tokenizer.json");
    for (int i = 0; i < PRE_TYPES; i++) {
        struct Pretokenizer pre;
        assert_ok(pretokenizer_open(&pre, PRES[i]));
        struct PreScan scan = prescan_begin(&pre);
        const cJSON *item, *end;
        cJSON_ArrayForEach(item, json_get(json_get(json, "words"), PRES[i]))
        {
            const char *text = json_text(item, "text");
            size_t at = 0;
            prescan_text(&scan, text, strlen(text));
            cJSON_ArrayForEach(end, json_get(item, "ends"))
            {
                assert_ok(prescan_next(&scan, at, &at));
                if ((int)at != end->valueint)
                    fail_msg("%s: a word ends at %zu, not %d: %s", PRES[i], at, end->valueint,
                             text);
            }
            assert_int_equal(at, strlen(text));
        }
        prescan_end(&scan);
        pretokenizer_close(&pre);
    }
    cJSON_Delete(json);
}

/* Text of all ASCII characters, mostly those that the rules tell apart, and here and there
 * another. */
static size_t text_random(char *text, size_t cap)
{
    static const char *const WIDE[] = {"\xc3\xa9",         "\xc2\xa0",     "\xc2\x85",
                                       "\xe2\x80\x99",     "\xc5\xbf",     "\xd9\xa3",
                                       "\xe3\x80\x80",     "\xe4\xb8\xad", "\xcc\x81",
                                       "\xf0\x9f\x99\x82", "\xe1\xa0\x8e", "\xe2\x85\xa7"};
    static const char OFTEN[] = "   \n\n\r\t'''sStTrReEvVmMlLdDab019..,!";
    size_t n = 0;
    while (n + 4 < cap) {
        uint32_t kind = random_below(20);
        if (kind == 0) {
            const char *wide = WIDE[random_below(sizeof(WIDE) / sizeof(*WIDE))];
            memcpy(text + n, wide, strlen(wide));
            n += strlen(wide);
        } else if (kind < 15) {
            text[n++] = OFTEN[random_below(sizeof(OFTEN) - 1)];
        } else {
            text[n++] = (char)random_below(128);
        }
    }
    return n;
}

static void test_words_by_hand(void **state)
{
    (void)state;
    enum { CAP = 4096, ROUNDS = 60 };
    static char text[CAP];
    size_t by_hand = 0, all = 0;
    for (int i = 0; i < PRE_TYPES * ROUNDS; i++) {
        struct Pretokenizer pre;
        assert_ok(pretokenizer_open(&pre, PRES[i % PRE_TYPES]));
        struct PreScan scan = prescan_begin(&pre);
        size_t len = text_random(text, CAP), end;
        prescan_text(&scan, text, len);
        /* Every character, not only those where words begin. */
        for (size_t at = 0; at < len; at++) {
            if (((uint8_t)text[at] & 0xc0) == 0x80) continue;
            size_t hand = prescan_ascii(&scan, at);
            assert_ok(prescan_regex(&scan, at, &end));
            if (hand && hand != end)
                fail_msg("%s: %zu, not %zu, at '%.20s'", PRES[i % PRE_TYPES], hand - at, end - at,
                         text + at);
            by_hand += hand != 0;
            all++;
        }
        prescan_end(&scan);
        pretokenizer_close(&pre);
    }
    assert_true(by_hand > all / 2);
}

static void test_words_long(void **state)
{
    (void)state;
    enum { N = 3 << 20 };
    static const char *const UNITS[] = {"\xe3\x80\x80", "\xc3\xa9", " ", "\n", "'", " \xc2\xa0\n"};
    char *text = mem_alloc(N, 1);
    assert_non_null(text);
    for (size_t u = 0; u < sizeof(UNITS) / sizeof(*UNITS); u++) {
        size_t len = 0, unit = strlen(UNITS[u]);
        for (; len + unit < N; len += unit) memcpy(text + len, UNITS[u], unit);
        text[len++] = 'x';
        for (int i = 0; i < PRE_TYPES; i++) {
            struct Pretokenizer pre;
            assert_ok(pretokenizer_open(&pre, PRES[i]));
            struct PreScan scan = prescan_begin(&pre);
            prescan_text(&scan, text, len);
            int words = 0;
            for (size_t at = 0; at < len; words++) assert_ok(prescan_next(&scan, at, &at));
            assert_in_range(words, 1, 3);
            prescan_end(&scan);
            pretokenizer_close(&pre);
        }
    }
    mem_free(text);
}

static void test_unknown_pre_type(void **state)
{
    (void)state;
    static struct TinyVocab v;
    struct Tokenizer *t;
    tiny_bpe(&v, "tekken");
    assert_int_equal(tokenizer_open(&v.spec, &t), PC_EFORMAT);
    assert_null(t);
    assert_non_null(strstr(err_text(), "tekken"));
    assert_non_null(strstr(err_text(), "gpt-2, smollm, llama-bpe, qwen2"));
}

/* ==== Byte-level BPE ==== */

static void test_bpe_pieces(void **state)
{
    (void)state;
    static struct TinyVocab v;
    tiny_bpe(&v, "gpt-2");
    struct Tokenizer *t = open_spec(&v.spec);
    assert_string_equal(pieces_of(t, "the  hell of 12's", false), "the| | |hell| |o|f| |12|'s");
    assert_string_equal(pieces_of(t, "Hello", false), "H|e|ll|o");
    assert_string_equal(pieces_of(t, "", false), "");
    assert_int_equal(tokenizer_id(t, "\xc4\xa0the"), 256 + 5);
    assert_int_equal(tokenizer_id(t, "absent"), -1);
    assert_int_equal(tokenizer_piece(t, -1).len, 0);
    assert_int_equal(tokenizer_piece(t, 10000).len, 0);
    assert_ptr_equal(tokenizer_spec(t), &v.spec);
    tokenizer_close(t);
    tiny_bpe(&v, "smollm");
    t = open_spec(&v.spec);
    assert_string_equal(pieces_of(t, "12", false), "1|2");
    tokenizer_close(t);
    tiny_bpe(&v, "llama-bpe"); /* a word that is a token needs no merges */
    t = open_spec(&v.spec);
    assert_string_equal(pieces_of(t, "Hello", false), "Hello");
    assert_string_equal(pieces_of(t, "Hello!", false), "Hello|!");
    tokenizer_close(t);
}

static void test_added_tokens(void **state)
{
    (void)state;
    static struct TinyVocab v;
    tiny_bpe(&v, "gpt-2");
    struct Tokenizer *t = open_spec(&v.spec);
    assert_string_equal(pieces_of(t, "a<|im_end|>b", true), "a|<|im_end|>|b");
    assert_string_equal(pieces_of(t, "<|im_x<|im_end|", true), "<|im_|x|<|im_|e|n|d||");
    assert_string_equal(pieces_of(t, "<|im_end|>", false), "<|||i|m|_|e|n|d|||>");
    /* The user's tokens always; the longest one. */
    assert_string_equal(pieces_of(t, "<tool><toolx<too", false), "<tool>|<tool|x|<|t|o|o");
    assert_string_equal(pieces_of(t, "[PAD]", true), "[|P|A|D|]");
    assert_true(tokenizer_is_control(t, tokenizer_id(t, "<|im_start|>")));
    assert_false(tokenizer_is_control(t, tokenizer_id(t, "<tool>")));
    assert_false(tokenizer_is_control(t, -1));
    assert_true(tokenizer_is_end(t, tokenizer_id(t, "<|im_end|>")));
    assert_true(tokenizer_is_end(t, tokenizer_id(t, "<|endoftext|>")));
    assert_false(tokenizer_is_end(t, tokenizer_id(t, "<|im_start|>")));
    assert_false(tokenizer_is_end(t, 1 << 20));
    tokenizer_close(t);
}

static void test_end_spelled_by_text(void **state)
{
    (void)state;
    static struct TinyVocab v;
    tiny_bpe(&v, "gpt-2");
    v.spec.eos_id = -1;
    v.spec.eot_id = 'x';
    v.types[v.spec.bos_id] = TOKEN_NORMAL; /* the spelling alone does not make an end */
    struct Tokenizer *t = open_spec(&v.spec);
    assert_true(tokenizer_is_end(t, 'x'));
    assert_true(tokenizer_is_end(t, tokenizer_id(t, "<|im_end|>")));
    assert_false(tokenizer_is_end(t, v.spec.bos_id));
    tokenizer_close(t);
}

static void test_bytes_without_token(void **state)
{
    (void)state;
    static struct TinyVocab v;
    tiny_bpe(&v, "gpt-2");
    v.types['h'] = TOKEN_UNUSED;
    struct Tokenizer *t = open_spec(&v.spec);
    assert_string_equal(pieces_of(t, "ahahaha", false), "aaaa");
    tokenizer_close(t);
}

static void test_not_utf8(void **state)
{
    (void)state;
    static struct TinyVocab v;
    struct Tokens ids = {0};
    tiny_bpe(&v, "qwen2");
    struct Tokenizer *t = open_spec(&v.spec);
    assert_int_equal(tokenizer_encode(t, "abc\xff", 4, false, &ids), PC_EFORMAT);
    assert_non_null(strstr(err_text(), "byte 3"));
    assert_non_null(strstr(err_text(), "0xFF"));
    assert_int_equal(ids.n, 0);
    assert_ok(tokenizer_encode(t, "a\0b", 3, false, &ids));
    assert_int_equal(ids.n, 3);
    assert_int_equal(ids.ids[1], 0);
    tokens_free(&ids);
    tokenizer_close(t);
}

/* A text of one word, a megabyte long; must not take quadratic time. */
static void test_long_word(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    static struct TinyVocab v;
    char *text = mem_alloc(N, 1);
    memset(text, 'a', N);
    for (int i = 0; i <= PRE_TYPES; i++) {
        if (i < PRE_TYPES) {
            tiny_bpe(&v, PRES[i]);
        } else {
            tiny_spm(&v);
            v.spec.add_space_prefix = false;
        }
        struct Tokenizer *t = open_spec(&v.spec);
        struct Tokens ids = {0};
        assert_ok(tokenizer_encode(t, text, N, true, &ids));
        assert_int_equal(ids.n, N / 4);
        tokens_free(&ids);
        tokenizer_close(t);
    }
    mem_free(text);
}

static void test_bad_vocabularies(void **state)
{
    (void)state;
    static const char *const BAD[] = {"he", "", "h \xe2\x82\xac", "h h", "zz z"};
    static struct TinyVocab v;
    struct Tokenizer *t;
    for (size_t i = 0; i < sizeof(BAD) / sizeof(*BAD); i++) {
        tiny_bpe(&v, "gpt-2");
        v.merges[3] = (struct Slice){BAD[i], strlen(BAD[i])};
        assert_int_equal(tokenizer_open(&v.spec, &t), PC_EFORMAT);
        assert_non_null(strstr(err_text(), "merge 3"));
    }
    tiny_spm(&v);
    v.spec.scores = NULL;
    assert_int_equal(tokenizer_open(&v.spec, &t), PC_EFORMAT);
    tiny_spm(&v);
    v.spec.unk_id = -1;
    v.types[3 + 0x41] = TOKEN_UNUSED;
    assert_int_equal(tokenizer_open(&v.spec, &t), PC_EFORMAT);
    assert_non_null(strstr(err_text(), "0x41"));
    v.spec.n_tokens = 0;
    assert_int_equal(tokenizer_open(&v.spec, &t), PC_EFORMAT);
}

/* ==== SentencePiece ==== */

/* A vocabulary of the fixture; the caller frees its arrays. */
static struct VocabSpec spm_spec(const cJSON *json)
{
    const cJSON *item;
    int n = cJSON_GetArraySize(json_get(json, "pieces")), i = 0;
    struct VocabSpec spec = {.kind = VOCAB_SPM,
                             .n_tokens = n,
                             .bos_id = 1,
                             .eos_id = 2,
                             .eot_id = -1,
                             .pad_id = -1,
                             .add_space_prefix = true};
    spec.tokens = mem_alloc((size_t)n, sizeof(*spec.tokens));
    spec.types = mem_alloc((size_t)n, 1);
    spec.scores = mem_alloc((size_t)n, sizeof(*spec.scores));
    cJSON_ArrayForEach(item, json_get(json, "pieces"))
    {
        spec.tokens[i++] = (struct Slice){item->valuestring, strlen(item->valuestring)};
    }
    i = 0;
    cJSON_ArrayForEach(item, json_get(json, "types")) spec.types[i++] = (uint8_t)item->valueint;
    i = 0;
    cJSON_ArrayForEach(item, json_get(json, "scores")) spec.scores[i++] = (float)item->valuedouble;
    return spec;
}

static void spm_case(const struct Tokenizer *t, const cJSON *item)
{
    const char *text = json_text(item, "text");
    struct Tokens ids = {0};
    struct Decoder d = {0};
    struct Str out = {0};
    assert_ok(tokenizer_encode(t, text, strlen(text), true, &ids));
    assert_ids(&ids, json_get(item, "ids"), text);
    for (int i = 0; i < ids.n; i++) assert_ok(decode_token(t, &d, ids.ids[i], &out));
    assert_ok(decode_flush(&d, &out));
    assert_string_equal(out.data ? out.data : "", json_text(item, "decoded"));
    str_free(&out);
    tokens_free(&ids);
}

static void test_spm_golden(void **state)
{
    (void)state;
    cJSON *json = json_read("tests/golden/spm.json");
    const cJSON *vocab, *item;
    cJSON_ArrayForEach(vocab, json_get(json, "vocabularies"))
    {
        struct VocabSpec spec = spm_spec(vocab);
        struct Tokenizer *t = open_spec(&spec);
        cJSON_ArrayForEach(item, json_get(vocab, "cases")) spm_case(t, item);
        tokenizer_close(t);
        mem_free(spec.tokens);
        mem_free(spec.types);
        mem_free(spec.scores);
    }
    cJSON_Delete(json);
}

static void test_spm_pieces(void **state)
{
    (void)state;
    static struct TinyVocab v;
    tiny_spm(&v);
    struct Tokenizer *t = open_spec(&v.spec);
    assert_string_equal(pieces_of(t, "the in", false), " the| |in");
    assert_string_equal(pieces_of(t, "</s>the", true), "</s>| the");
    assert_string_equal(pieces_of(t, "the<s>the", true), " the|<s>|t|he"); /* one space, in front */
    assert_string_equal(pieces_of(t, "\xe2\x96\x81the", false), " | the");
    assert_true(tokenizer_is_end(t, tokenizer_id(t, "</s>")));
    tokenizer_close(t);
    v.spec.add_space_prefix = false;
    t = open_spec(&v.spec);
    assert_string_equal(pieces_of(t, "the", false), "t|he");
    tokenizer_close(t);
}

/* ==== Decoding ==== */

static void decode_all(const struct Tokenizer *t, const char *bytes, struct Str *out)
{
    struct Decoder d = {0};
    str_clear(out);
    for (const char *c = bytes; *c; c++) {
        assert_ok(decode_token(t, &d, (uint8_t)*c, out));
        if (out->len) assert_int_equal(utf8_invalid_at(out->data, out->len), out->len);
    }
    assert_ok(decode_flush(&d, out));
}

static void test_decode(void **state)
{
    (void)state;
#define BAD "\xef\xbf\xbd"
    static const char *const CASES[][2] = {
        {"plain", "plain"},
        {"\xc3\xa9\xe4\xb8\xad\xf0\x9f\x99\x82", "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x99\x82"},
        {"\xff\xfe", BAD BAD},
        {"a\xe4\xb8", "a" BAD},
        {"\xe4\xb8x", BAD "x"},
        {"\xe4\xb8\xc3\xa9", BAD "\xc3\xa9"},
        {"\x80", BAD},
        {"\xc0\xaf", BAD BAD},
        {"\xe0\x80\xaf", BAD BAD BAD},
        {"\xed\xa0\x80", BAD BAD BAD},
        {"\xf4\x90\x80\x80", BAD BAD BAD BAD},
        {"\xf0\x9f\x99", BAD},
        {"\xf0\x9f\x99\xf0\x9f\x99\x82", BAD "\xf0\x9f\x99\x82"},
    };
    static struct TinyVocab v;
    struct Str out = {0};
    tiny_bpe(&v, "gpt-2");
    struct Tokenizer *t = open_spec(&v.spec);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(*CASES); i++) {
        decode_all(t, CASES[i][0], &out);
        assert_string_equal(out.data, CASES[i][1]);
    }
    struct Decoder d = {0};
    str_clear(&out);
    static const char *const SILENT[] = {"<|im_end|>", "[PAD]"};
    for (int i = 0; i < 2; i++) assert_ok(decode_token(t, &d, tokenizer_id(t, SILENT[i]), &out));
    assert_ok(decode_token(t, &d, -1, &out));
    assert_ok(decode_token(t, &d, 99999, &out));
    assert_ok(decode_token(t, &d, tokenizer_id(t, "<tool>"), &out));
    assert_string_equal(out.data, "<tool>");
    str_free(&out);
    tokenizer_close(t);
#undef BAD
}

/* ==== Real models ==== */

static size_t hex_bytes(const char *hex, char *out)
{
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (char)byte;
    }
    return n;
}

static void model_cases(const cJSON *golden, const char *path)
{
    struct Model model;
    assert_ok(model_open(path, &model));
    struct Tokenizer *t = open_spec(&model.vocab);
    const cJSON *item;
    cJSON_ArrayForEach(item, json_get(golden, "cases"))
    {
        char bytes[64];
        const cJSON *hex = cJSON_GetObjectItemCaseSensitive(item, "hex");
        const char *text = hex ? bytes : json_text(item, "text");
        size_t len = hex ? hex_bytes(hex->valuestring, bytes) : strlen(text);
        struct Tokens ids = {0};
        assert_ok(tokenizer_encode(t, text, len, true, &ids));
        assert_ids(&ids, json_get(item, "ids"), hex ? hex->valuestring : text);
        tokens_free(&ids);
    }
    assert_true(tokenizer_is_end(t, tokenizer_id(t, "<|im_end|>")));
    assert_true(tokenizer_is_end(t, tokenizer_id(t, "<|endoftext|>")));
    tokenizer_close(t);
    model_close(&model);
}

static void test_models(void **state)
{
    (void)state;
    const char *folder = getenv("PCOMP_MODELS");
    cJSON *json = json_read("tests/golden/tokenizer.json");
    const cJSON *golden;
    int n_met = 0;
    cJSON_ArrayForEach(golden, json_get(json, "models"))
    {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s", folder ? folder : "", json_text(golden, "model"));
        FILE *file = folder ? fopen(path, "rb") : NULL;
        if (!file) continue;
        fclose(file);
        model_cases(golden, path);
        n_met++;
    }
    cJSON_Delete(json);
    if (n_met) return;
    print_message("SKIP: PCOMP_MODELS has none of the two models\n");
    skip();
}

/* ==== Faults, threads ==== */

static int open_and_encode(const struct VocabSpec *spec)
{
    static const char TEXT[] =
        "the in <|im_end|> \xe4\xb8\xad <tool> hello's aaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    char text[4 * sizeof(TEXT) * 8] = {0};
    for (int i = 0; i < 24; i++) memcpy(text + (size_t)i * (sizeof(TEXT) - 1), TEXT, sizeof(TEXT));
    struct Tokenizer *t;
    struct Tokens ids = {0};
    TRY(tokenizer_open(spec, &t));
    int status = tokenizer_encode(t, text, strlen(text), true, &ids);
    tokens_free(&ids);
    tokenizer_close(t);
    return status;
}

static void test_failing_allocations(void **state)
{
    (void)state;
    static struct TinyVocab v;
    for (int i = 0; i <= PRE_TYPES; i++) {
        if (i < PRE_TYPES)
            tiny_bpe(&v, PRES[i]);
        else
            tiny_spm(&v);
        size_t before = mem_in_use();
        int status = PC_ENOMEM;
        long n = 0;
        while (status != PC_OK) {
            mem_fail_after(++n);
            status = open_and_encode(&v.spec);
            mem_fail_after(0);
            if (status != PC_OK) assert_int_equal(status, PC_ENOMEM);
            assert_int_equal(mem_in_use(), before);
        }
        assert_in_range(n, 5, 1000);
    }
}

struct Job {
    const struct Tokenizer *t;
    const char *text;
    size_t len;
    struct Tokens ids;
    int status;
};

static void *job_run(void *arg)
{
    struct Job *job = arg;
    job->status = tokenizer_encode(job->t, job->text, job->len, true, &job->ids);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    enum { THREADS = 4, CAP = 200000 };
    static struct TinyVocab v;
    static char text[CAP];
    size_t len = text_random(text, CAP);
    tiny_bpe(&v, "qwen2");
    struct Tokenizer *t = open_spec(&v.spec);
    struct Job jobs[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (struct Job){.t = t, .text = text, .len = len};
        assert_int_equal(pthread_create(&threads[i], NULL, job_run, &jobs[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++) {
        assert_ok(jobs[i].status);
        assert_int_equal(jobs[i].ids.n, jobs[0].ids.n);
        assert_memory_equal(jobs[i].ids.ids, jobs[0].ids.ids, (size_t)jobs[0].ids.n * sizeof(int));
    }
    for (int i = 0; i < THREADS; i++) tokens_free(&jobs[i].ids);
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge_rule),
        cmocka_unit_test(test_merge_work),
        cmocka_unit_test(test_words_golden),
        cmocka_unit_test(test_words_by_hand),
        cmocka_unit_test(test_words_long),
        cmocka_unit_test(test_unknown_pre_type),
        cmocka_unit_test(test_bpe_pieces),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_end_spelled_by_text),
        cmocka_unit_test(test_bytes_without_token),
        cmocka_unit_test(test_not_utf8),
        cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_bad_vocabularies),
        cmocka_unit_test(test_spm_golden),
        cmocka_unit_test(test_spm_pieces),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

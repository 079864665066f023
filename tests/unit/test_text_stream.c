/* test_text_stream.c - tokens of a text in pieces against those of the text as a whole: certain cuts at every place of hostile
 * texts, scans and loads of files and pipes, with every kind of vocabulary and two real ones (needs PCOMP_MODELS).
 */
#include "stream_support.h"

#include "model.h"
#include "parts.h"
#include "pretokenize.h"
#include "tests/tiny_vocab.h"
#include "text_stream.h"
#include "tokenizer_places.h"

#include <cjson/cJSON.h>
#include <limits.h>

/* ==== Vocabularies ==== */

enum { BPE_KINDS = 4, SPM_PLAIN = 4, SPM_NO_SPACE, SPM_UNKNOWN, SPM_CROSSING, N_VOCABS };

static struct Tokenizer *tiny_tokenizer(int kind, struct TinyVocab *v)
{
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    struct Tokenizer *t;
    if (kind < BPE_KINDS) {
        tiny_bpe(v, pres[kind]);
    } else {
        tiny_spm(v);
        v->spec.add_space_prefix = kind != SPM_NO_SPACE;
        for (int i = 0; i < v->spec.n_tokens && kind == SPM_UNKNOWN; i++)
            if (v->types[i] == TOKEN_BYTE) v->types[i] = TOKEN_UNUSED;
        if (kind == SPM_CROSSING) tiny_token(v, "e\xe2\x96\x81t", TOKEN_NORMAL);
        /* no place is told apart behind an unknown character that an added token follows */
        if (kind != SPM_UNKNOWN) tiny_token(v, "<tool>", TOKEN_USER);
        if (kind != SPM_UNKNOWN) tiny_token(v, "<tool", TOKEN_USER);
    }
    fine(tokenizer_open(&v->spec, &t));
    return t;
}

static struct Tokens whole_ids(const struct Tokenizer *t, const char *text, size_t len, bool begins)
{
    struct Tokens ids = {0};
    struct TextPart part = {text, len, false};
    fine(tokenizer_encode_parts(t, &part, 1, begins, &ids));
    return ids;
}

static void same_ids(const struct Tokens *want, const int *ids, int n, const char *what)
{
    if (want->n == n && (n == 0 || memcmp(want->ids, ids, sizeof *ids * (size_t)n) == 0)) return;
    fail_msg("%s: %d ids, %d as a whole, or others", what, n, want->n);
}

/* ==== Certain cuts ==== */

/* Ends of the words of text[from, to), as bytes of the text. */
static size_t word_ends(const struct Pretokenizer *pre, const struct Str *text, size_t from,
                        size_t to, size_t *ends)
{
    struct PreScan scan = prescan_begin(pre);
    size_t n = 0;
    prescan_text(&scan, text->data + from, to - from);
    for (size_t at = 0; at < to - from; n++) {
        fine(prescan_next(&scan, at, &at));
        ends[n] = from + at;
    }
    prescan_end(&scan);
    return n;
}

/* Words of hostile texts with a cut wherever one is certain: whether they merge or not, they are those of the whole. */
static void test_words(void **state)
{
    (void)state;
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    size_t whole[512], parts[512];
    for (int kind = 0; kind < BPE_KINDS; kind++) {
        struct Pretokenizer pre = {0};
        int cuts = 0;
        fine(pretokenizer_open(&pre, pres[kind]));
        for (uint64_t i = 0; i < 6000; i++) {
            struct Str text = {0};
            hostile_text(&text, 2 + i % 50, 7 * i);
            size_t n = word_ends(&pre, &text, 0, text.len, whole);
            for (size_t at = 1; at < text.len; at++) {
                if (!precut_certain(text.data, text.len, at)) continue;
                size_t left = word_ends(&pre, &text, 0, at, parts),
                       all = left + word_ends(&pre, &text, at, text.len, parts + left);
                if (all != n || memcmp(whole, parts, n * sizeof *whole) != 0)
                    fail_msg("%s: cut at %zu of '%s'", pres[kind], at, text.data);
                cuts++;
            }
            str_free(&text);
        }
        assert_true(cuts > 10000);
        pretokenizer_close(&pre);
    }
}

/* The text's ids with a cut at byte `at`. */
static void check_cut(const struct Tokenizer *t, const struct Tokens *whole, const struct Str *text,
                      size_t at, bool begins)
{
    struct Encoder *e;
    struct Tokens ids = {0};
    char what[160];
    fine(encoder_open(t, text->len, &e));
    fine(encoder_add(e, text->data, at, begins, &ids));
    fine(encoder_add(e, text->data + at, text->len - at, false, &ids));
    snprintf(what, sizeof what, "cut at %zu of '%.120s'", at, text->data);
    same_ids(whole, ids.ids, ids.n, what);
    tokens_free(&ids);
    encoder_close(e);
}

/* Every cut that is found with any part of what follows in view; returns how many different ones. */
static int check_cuts(const struct Tokenizer *t, const struct Str *text, bool begins)
{
    struct Tokens whole = whole_ids(t, text->data, text->len, begins);
    size_t last = 0;
    int n = 0;
    for (size_t seen = 1; seen <= text->len; seen++) {
        size_t at = tokenizer_cut(t, text->data, seen, seen == text->len);
        assert_true(at < seen);
        if (at == 0 || at == last) continue;
        check_cut(t, &whole, text, at, begins);
        last = at;
        n++;
    }
    tokens_free(&whole);
    return n;
}

static int cuts_of_texts(const struct Tokenizer *t, int n_texts, uint64_t seed)
{
    int cuts = 0;
    for (int i = 0; i < n_texts; i++) {
        struct Str text = {0};
        hostile_text(&text, 4 + (size_t)i % 90, seed + (uint64_t)i);
        cuts += check_cuts(t, &text, i % 2);
        str_free(&text);
    }
    return cuts;
}

static void test_cuts(void **state)
{
    (void)state;
    static struct TinyVocab v;
    for (int kind = 0; kind < N_VOCABS; kind++) {
        struct Tokenizer *t = tiny_tokenizer(kind, &v);
        int cuts = cuts_of_texts(t, 3000, 1000000 * (uint64_t)(kind + 1));
        print_message("# vocabulary %d: %d cuts\n", kind, cuts);
        assert_true(cuts > (kind == SPM_CROSSING ? 1000 : kind == SPM_UNKNOWN ? 2000 : 5000));
        tokenizer_close(t);
    }
}

/* SentencePiece's own fixtures: real orders of scores. */
static void test_cuts_golden(void **state)
{
    (void)state;
    struct Str file = {0};
    fine(file_read("tests/golden/spm.json", &file));
    cJSON *json = cJSON_ParseWithLength(file.data, file.len);
    const cJSON *vocab, *item;
    int n_vocabs = 0;
    cJSON_ArrayForEach(vocab, cJSON_GetObjectItem(json, "vocabularies"))
    {
        const cJSON *pieces = cJSON_GetObjectItem(vocab, "pieces");
        size_t n = (size_t)cJSON_GetArraySize(pieces), i = 0;
        struct Slice *tokens = calloc(n, sizeof *tokens);
        uint8_t *types = calloc(n, 1);
        float *scores = calloc(n, sizeof *scores);
        cJSON_ArrayForEach(item, pieces) tokens[i++] =
            (struct Slice){item->valuestring, strlen(item->valuestring)};
        i = 0;
        cJSON_ArrayForEach(item, cJSON_GetObjectItem(vocab, "types")) types[i++] =
            (uint8_t)item->valueint;
        i = 0;
        cJSON_ArrayForEach(item, cJSON_GetObjectItem(vocab, "scores")) scores[i++] =
            (float)item->valuedouble;
        struct VocabSpec spec = {.kind = VOCAB_SPM,
                                 .n_tokens = (int)n,
                                 .tokens = tokens,
                                 .types = types,
                                 .scores = scores,
                                 .bos_id = 1,
                                 .eos_id = 2,
                                 .eot_id = -1,
                                 .pad_id = -1,
                                 .add_space_prefix = true};
        struct Tokenizer *t;
        fine(tokenizer_open(&spec, &t));
        assert_true(cuts_of_texts(t, 1500, 77) > 1000);
        tokenizer_close(t);
        free(tokens);
        free(types);
        free(scores);
        n_vocabs++;
    }
    assert_true(n_vocabs > 0);
    cJSON_Delete(json);
    str_free(&file);
}

/* Scripts without blanks are cut too, and what cannot be cut is not. */
static void test_where(void **state)
{
    (void)state;
    static struct TinyVocab v;
    static const struct {
        const char *text;
        bool bpe, spm;
    } cases[] = {
        {"plain words stand here", true, true},
        {"\xe4\xb8\xad\xe6\x96\x87\xe3\x80\x82\xe4\xb8\xad\xe6\x96\x87\xef\xbc\x8c\xe4\xb8\xad",
         true, false},
        {"\xe4\xb8\xad\xe6\x96\x87\n\xe4\xb8\xad\xe6\x96\x87", true, true},
        {"a,b,c,d;e", true, false},
        {"12,34,56,78", true, false},
        {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false, false},
        {"                             ", false, false},
        {"\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n", false, true},
    };
    struct Tokenizer *bpe = tiny_tokenizer(0, &v);
    static struct TinyVocab w;
    struct Tokenizer *spm = tiny_tokenizer(SPM_PLAIN, &w);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t len = strlen(cases[i].text);
        assert_int_equal(tokenizer_cut(bpe, cases[i].text, len, true) > 0, cases[i].bpe);
        assert_int_equal(tokenizer_cut(spm, cases[i].text, len, true) > 0, cases[i].spm);
    }
    tokenizer_close(bpe);
    tokenizer_close(spm);
}

/* ==== Streams ==== */

/* Loads any stretch: its ids and places are those of the whole. No load takes more room than foretold, or allocates. */
static void check_loads(struct TextStream *st, const struct Tokenizer *t, const struct Tokens *ids,
                        const struct Str *text, uint64_t seed)
{
    uint64_t state = seed;
    int most = 1 + (int)below(&state, 700);
    size_t *place = calloc((size_t)ids->n + 1, sizeof *place);
    token_places(t, ids->ids, ids->n, (struct Slice){text->data, text->len}, place);
    if (most > ids->n) most = ids->n;
    fine(text_stream_reserve(st, most, 0));
    size_t room = text_stream_room(st, most, 0), held = mem_in_use();
    for (int i = 0; i < 40; i++) {
        int n = 1 + (int)below(&state, (uint32_t)most),
            begin = (int)below(&state, (uint32_t)(ids->n - n + 1));
        fine(text_stream_load(st, begin, begin + n));
        fine(text_stream_places(st));
        assert_true(st->first <= begin && st->first + st->ids.n >= begin + n);
        const struct Tokens want = {ids->ids + begin, n, n};
        same_ids(&want, text_stream_ids(st, begin), n, "a stretch");
        for (int k = 0; k <= st->ids.n; k++)
            if (st->place[k] != place[st->first + k])
                fail_msg("token %d stands at %zu, not at %zu", st->first + k, st->place[k],
                         place[st->first + k]);
        assert_memory_equal(st->text.data, text->data + st->text_at, st->text.len);
        assert_true(st->text.len + (size_t)st->ids.n * (sizeof(int) + sizeof(size_t)) <= room);
    }
    assert_int_equal(mem_in_use(), held);
    free(place);
}

/* A second reader, in turns with the first one. */
static void check_share(struct TextStream *st, const struct Tokens *ids, uint64_t seed)
{
    struct TextStream reader;
    uint64_t state = seed;
    fine(text_stream_share(st, &reader));
    for (int i = 0; i < 10; i++) {
        int n = 1 + (int)below(&state, ids->n < 300 ? (uint32_t)ids->n : 300),
            begin = (int)below(&state, (uint32_t)(ids->n - n + 1));
        const struct Tokens want = {ids->ids + begin, n, n};
        struct TextStream *by = i % 3 ? &reader : st;
        fine(text_stream_load(by, begin, begin + n));
        same_ids(&want, text_stream_ids(by, begin), n, "a second reader");
    }
    text_stream_leave(&reader);
}

/* A scan that goes on when more is asked for: what is known can be loaded meanwhile. */
static void check_some(struct TextStream *st, const struct Tokenizer *t, const struct Tokens *ids,
                       bool begins, uint64_t seed)
{
    uint64_t state = seed;
    for (int least = 1; least <= ids->n; least += 1 + ids->n / 5) {
        fine(text_stream_scan(st, t, begins, least, NULL));
        assert_in_range(st->n_tokens, least, ids->n);
        int n = 1 + (int)below(&state, st->n_tokens < 300 ? (uint32_t)st->n_tokens : 300),
            begin = (int)below(&state, (uint32_t)(st->n_tokens - n + 1));
        const struct Tokens want = {ids->ids + begin, n, n};
        fine(text_stream_load(st, begin, begin + n));
        same_ids(&want, text_stream_ids(st, begin), n, "a stretch of what is known");
        fine(source_take(&st->source, least % 2 ? 0 : 0.001));
    }
}

static void check_stream(struct TextStream *st, const struct Tokenizer *t, const struct Str *text,
                         bool begins, uint64_t seed)
{
    struct Tokens ids = whole_ids(t, text->data, text->len, begins);
    st->threads = 1 << seed % 3;
    if (seed % 2) check_some(st, t, &ids, begins, seed);
    fine(text_stream_scan(st, t, begins, INT_MAX, NULL));
    assert_int_equal(st->n_tokens, ids.n);
    assert_int_equal(st->source.size, text->len);
    assert_true(st->hash == hash64(text->data, text->len, 0));
    int *all = calloc((size_t)ids.n + 1, sizeof *all);
    fine(text_stream_all(st, all));
    same_ids(&ids, all, st->n_tokens, "all");
    if (ids.n) check_loads(st, t, &ids, text, seed);
    if (ids.n) check_share(st, &ids, seed);
    free(all);
    tokens_free(&ids);
}

static void check_file(const struct Tokenizer *t, size_t bytes, uint64_t seed)
{
    char path[32];
    const char *paths[] = {path};
    struct Str text = {0};
    struct TextStream st;
    temp_name(path);
    hostile_text(&text, bytes, seed);
    size_t before = mem_in_use();
    for (int piped = 0; piped < 2; piped++) {
        pid_t child = 0;
        if (piped)
            child = pipe_begin(path, text.data, text.len, seed);
        else
            write_text(path, text.data, text.len);
        fine(text_stream_open(&st, paths, 1));
        check_stream(&st, t, &text, false, seed);
        assert_int_equal(st.source.spooled, piped);
        check_stream(&st, t, &text, true, seed + 1); /* the pipe is not read again */
        text_stream_close(&st);
        if (piped) pipe_end(child);
    }
    assert_int_equal(mem_in_use(), before);
    unlink(path);
    str_free(&text);
}

static void test_streams(void **state)
{
    (void)state;
    static struct TinyVocab v;
    static const size_t sizes[] = {1,    2,    100,   1023,  1024,  1025,   1088,
                                   1089, 8192, 12000, 65536, 65537, 150000, 1300000};
    for (int kind = 0; kind < N_VOCABS; kind++) {
        struct Tokenizer *t = tiny_tokenizer(kind, &v);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            if (sizes[i] < 600000 || kind == 1 || kind == SPM_PLAIN)
                check_file(t, sizes[i], 10 * i + (uint64_t)kind);
        tokenizer_close(t);
    }
}

/* A scan that is given up half way gives back what it has, and another kind begins anew. */
static void test_given_up(void **state)
{
    (void)state;
    static struct TinyVocab v;
    struct Tokenizer *t = tiny_tokenizer(1, &v);
    char path[32];
    const char *paths[] = {path};
    struct Str text = {0};
    struct TextStream st;
    temp_name(path);
    hostile_text(&text, 3000000, 5);
    write_text(path, text.data, text.len);
    size_t before = mem_in_use();
    for (int again = 0; again < 2; again++) {
        fine(text_stream_open(&st, paths, 1));
        fine(text_stream_scan(&st, t, true, 1, NULL));
        assert_non_null(st.scan);
        if (again) check_stream(&st, t, &text, false, 2);
        assert_true(!again || !st.scan);
        text_stream_close(&st);
        assert_int_equal(mem_in_use(), before);
    }
    unlink(path);
    str_free(&text);
    tokenizer_close(t);
}

/* Any number of threads finds the same segments, in a file and in a pipe. */
static void test_threads(void **state)
{
    (void)state;
    static struct TinyVocab v;
    struct Tokenizer *t = tiny_tokenizer(3, &v);
    char path[32];
    const char *paths[] = {path};
    struct Str text = {0};
    struct TextStream one, st;
    temp_name(path);
    hostile_text(&text, 2300000, 5);
    write_text(path, text.data, text.len);
    fine(text_stream_open(&one, paths, 1));
    fine(text_stream_scan(&one, t, true, INT_MAX, NULL));
    for (int i = 0; i < 8; i++) {
        pid_t child = i % 2 ? pipe_begin(path, text.data, text.len, 3) : 0;
        if (!child) unlink(path);
        if (!child) write_text(path, text.data, text.len);
        fine(text_stream_open(&st, paths, 1));
        st.threads = (int[]){0, 2, 4, 40}[i / 2];
        fine(text_stream_scan(&st, t, true, INT_MAX, NULL));
        assert_int_equal(st.n_segments, one.n_segments);
        assert_memory_equal(st.segments, one.segments,
                            sizeof *st.segments * (size_t)(st.n_segments + 1));
        assert_true(st.hash == one.hash && st.n_tokens == one.n_tokens);
        text_stream_close(&st);
        if (child) pipe_end(child);
    }
    text_stream_close(&one);
    unlink(path);
    str_free(&text);
    tokenizer_close(t);
}

/* Nothing certain for long: segments grow as they must. */
static void test_long_words(void **state)
{
    (void)state;
    static struct TinyVocab v;
    char path[32];
    const char *paths[] = {path};
    enum { LONG = 30000 };
    temp_name(path);
    for (int kind = 0; kind < N_VOCABS; kind++)
        for (int what = 0; what < 3; what++) {
            struct Tokenizer *t = tiny_tokenizer(kind, &v);
            struct Str text = {0};
            struct TextStream st;
            hostile_text(&text, 5000, 3);
            fine(str_reserve(&text, LONG));
            memset(text.data + text.len, "a \n"[what], LONG);
            text.len += LONG;
            hostile_text(&text, 5000, 4);
            write_text(path, text.data, text.len);
            fine(text_stream_open(&st, paths, 1));
            check_stream(&st, t, &text, true, 9);
            text_stream_close(&st);
            str_free(&text);
            tokenizer_close(t);
        }
    unlink(path);
}

/* Lines without blanks over several blocks of a scan: only the first one stands at the text's beginning. */
static void test_blocks(void **state)
{
    (void)state;
    static struct TinyVocab v;
    char path[32];
    const char *paths[] = {path};
    struct Str text = {0};
    for (int i = 0; text.len < 2200000; i++) fine(str_appendf(&text, "the%d\n", i));
    temp_name(path);
    write_text(path, text.data, text.len);
    for (int kind = 1; kind < N_VOCABS; kind += 3) {
        struct Tokenizer *t = tiny_tokenizer(kind, &v);
        struct TextStream st;
        fine(text_stream_open(&st, paths, 1));
        check_stream(&st, t, &text, true, (uint64_t)kind);
        text_stream_close(&st);
        tokenizer_close(t);
    }
    unlink(path);
    str_free(&text);
}

/* Files one after the other are the text that they make with blank lines between. */
static void test_files(void **state)
{
    (void)state;
    static struct TinyVocab v;
    struct Tokenizer *t = tiny_tokenizer(3, &v);
    char path[5][32];
    const char *paths[5];
    for (uint64_t seed = 0; seed < 12; seed++) {
        struct Str whole = {0};
        struct TextStream st;
        pid_t child = 0;
        for (int i = 0; i < 5; i++) {
            struct Str text = {0};
            hostile_text(&text, i == 2 ? 1 : 3000 + 977 * seed, seed * 5 + (uint64_t)i);
            temp_name(path[i]);
            paths[i] = path[i];
            if (i) fine(str_append(&whole, "\n\n", 2));
            fine(str_append(&whole, text.data, text.len));
            if (i == 3 && seed % 2)
                child = pipe_begin(path[i], text.data, text.len, seed);
            else
                write_text(path[i], text.data, text.len);
            str_free(&text);
        }
        fine(text_stream_open(&st, paths, 5));
        check_stream(&st, t, &whole, true, seed);
        text_stream_close(&st);
        if (child) pipe_end(child);
        for (int i = 0; i < 5; i++) unlink(path[i]);
        str_free(&whole);
    }
    tokenizer_close(t);
}

static void test_models(void **state)
{
    (void)state;
    static const char *const names[] = {"SmolLM2-135M-Instruct.Q4_1.gguf",
                                        "qwen2.5-coder-0.5b-instruct.gguf"};
    const char *folder = getenv("PCOMP_MODELS");
    int met = 0;
    for (int i = 0; i < 2 && folder; i++) {
        char path[4096];
        struct Model model;
        struct Tokenizer *t;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (access(path, R_OK) != 0) continue;
        fine(model_open(path, &model));
        fine(tokenizer_open(&model.vocab, &t));
        assert_true(cuts_of_texts(t, 4000, 5) > 5000);
        check_file(t, 300000, 8);
        tokenizer_close(t);
        model_close(&model);
        met++;
    }
    if (met) return;
    print_message("SKIP: PCOMP_MODELS has none of the two models\n");
    skip();
}

/* ==== What goes wrong ==== */

static struct Str prose(size_t n)
{
    struct Str text = {0};
    for (int i = 0; text.len < n; i++) fine(str_appendf(&text, "Line %d of the text.\n", i));
    return text;
}

static void refuses(int status, int code, const char *a, const char *b)
{
    if (status != code || !strstr(err_text(), a) || !strstr(err_text(), b))
        fail_msg("status %d, '%s'; wanted %d, '%s' and '%s'", status, err_text(), code, a, b);
}

/* A file that is another one, or less, when its text is read again. */
static void test_changes(void **state)
{
    (void)state;
    static struct TinyVocab v;
    struct Tokenizer *t = tiny_tokenizer(1, &v);
    char path[32];
    const char *paths[] = {path};
    temp_name(path);
    for (int how = 0; how < 3; how++) {
        struct Str text = prose(60000);
        struct TextStream st;
        write_text(path, text.data, text.len);
        fine(text_stream_open(&st, paths, 1));
        fine(text_stream_scan(&st, t, true, INT_MAX, NULL));
        if (how == 0) assert_int_equal(truncate(path, 40000), 0);
        if (how == 1) text.data[45000] ^= 1;
        if (how == 1) write_text(path, text.data, text.len);
        int n = st.n_tokens;
        fine(text_stream_load(&st, 0, 10));
        int status = text_stream_load(&st, n - 10, n);
        if (how == 0) refuses(status, PC_EIO, path, "changed while it was being read, at byte");
        if (how == 0) refuses(text_stream_load(&st, 0, n), PC_EIO, path, "40000");
        if (how == 1) refuses(text_stream_load(&st, 0, n), PC_EIO, path, "changed");
        if (how == 2) fine(status);
        text_stream_close(&st);
        str_free(&text);
    }
    unlink(path);
    tokenizer_close(t);
}

static int shorten(void *user, const struct TextScan *scan)
{
    if (scan->bytes > 0) assert_int_equal(truncate(user, 1500000), 0);
    return PC_OK;
}

static int stop_scan(void *user, const struct TextScan *scan)
{
    (void)user;
    return scan->tokens > 1000 ? err_set(PC_EINTR, "stopped") : PC_OK;
}

static void test_scan_ends(void **state)
{
    (void)state;
    static struct TinyVocab v;
    struct Tokenizer *t = tiny_tokenizer(1, &v);
    char path[32];
    const char *paths[] = {path};
    struct Str text = prose(2500000);
    struct TextStream st;
    temp_name(path);
    write_text(path, text.data, text.len);
    fine(text_stream_open(&st, paths, 1));
    assert_int_equal(text_stream_scan(&st, t, true, INT_MAX, &(struct ScanWatch){stop_scan, NULL}),
                     PC_EINTR);
    check_stream(&st, t, &text, true, 1); /* a stopped scan leaves nothing behind */
    text_stream_close(&st);
    fine(text_stream_open(&st, paths, 1));
    refuses(text_stream_scan(&st, t, true, INT_MAX, &(struct ScanWatch){shorten, path}), PC_EIO,
            path, "at byte 1500000");
    text_stream_close(&st);
    unlink(path);
    str_free(&text);
    tokenizer_close(t);
}

/* Bytes that are no text, anywhere: the same place is named as a look at the whole gives. */
static void test_bad_text(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xff", "\xe4\xb8", "\xf0\x9f\x98", "\xc0\x80",
                                      "\xed\xa0\x80"};
    static struct TinyVocab v;
    struct Tokenizer *t = tiny_tokenizer(1, &v);
    char path[2][32];
    const char *paths[] = {path[0], path[1]};
    temp_name(path[0]);
    temp_name(path[1]);
    write_text(path[0], "First.\n", 7);
    for (size_t i = 0; i < 60; i++) {
        struct Str text = {0};
        struct TextStream st;
        uint64_t hash;
        char place[64];
        hostile_text(&text, 20000, i);
        size_t at = i % 4 == 0 ? text.len : i % 4 == 1 ? 4096 + i - 30 : 137 * i;
        while (at < text.len && ((uint8_t)text.data[at] & 0xc0) == 0x80) at++;
        struct Str with = {0};
        fine(str_append(&with, text.data, at));
        fine(str_append(&with, i % 6 ? bad[i % 5] : "\0", i % 6 ? strlen(bad[i % 5]) : 1));
        fine(str_append(&with, text.data + at, text.len - at));
        write_text(path[1], with.data, with.len);
        snprintf(place, sizeof place, i % 6 ? "byte %zu (0x" : "NUL at byte %zu:", at);
        for (int n = 1; n <= 2; n++) {
            fine(text_stream_open(&st, paths + 2 - n, n));
            st.threads = 3;
            refuses(text_stream_scan(&st, t, true, INT_MAX, NULL), PC_EFORMAT, path[1], place);
            refuses(source_hash(&st.source, 0, &hash), PC_EFORMAT, path[1], place);
            text_stream_close(&st);
        }
        str_free(&with);
        str_free(&text);
    }
    unlink(path[0]);
    unlink(path[1]);
    tokenizer_close(t);
}

/* ==== Failing allocations ==== */

static int open_and_load(const struct Tokenizer *t, const char *path, int threads)
{
    struct TextStream st;
    uint64_t hash;
    int status = text_stream_open(&st, &path, 1);
    if (status == PC_OK) status = source_hash(&st.source, 3, &hash);
    st.threads = threads;
    if (status == PC_OK) status = text_stream_scan(&st, t, true, INT_MAX, NULL);
    if (status == PC_OK) status = text_stream_reserve(&st, 50, 0);
    if (status == PC_OK) status = text_stream_load(&st, 100, 900);
    if (status == PC_OK) status = text_stream_places(&st);
    text_stream_close(&st);
    return status;
}

/* Threads meet failures, too; of how many of their allocations is theirs to say. */
static void fail_each(const struct Tokenizer *t, size_t bytes, int threads)
{
    char path[32];
    struct Str text = {0};
    temp_name(path);
    hostile_text(&text, bytes, 2);
    write_text(path, text.data, text.len);
    size_t before = mem_in_use();
    int status = PC_ENOMEM, n = 0;
    while (status != PC_OK && n < 2000) {
        mem_fail_after(++n);
        status = open_and_load(t, path, threads);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        if (status < 0) assert_non_null(strstr(err_text(), "injected"));
        assert_int_equal(mem_in_use(), before);
    }
    assert_in_range(n, 8, 1999);
    unlink(path);
    str_free(&text);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    static struct TinyVocab v;
    for (int kind = 0; kind < N_VOCABS; kind += 3) {
        struct Tokenizer *t = tiny_tokenizer(kind, &v);
        fail_each(t, 30000, 1);
        if (kind == 0) fail_each(t, 200000, 3);
        tokenizer_close(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_cuts_golden),
        cmocka_unit_test(test_where),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_given_up),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_scan_ends),
        cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

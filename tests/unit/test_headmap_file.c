/* test_headmap_file.c - files of head maps: every format there and back, files as others write them, every refusal
 * with what its text must name, and each allocation failing once.
 */
#include "tests/unit/headmap_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

/* ==== Formats there and back ==== */

static char folder[] = "/tmp/pcomp_heads_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[4][256];
    static int turn;
    char *out = path[turn = (turn + 1) % 4];
    snprintf(out, sizeof path[0], "%s/%s", folder, name);
    return out;
}

static int make_folder(void **state)
{
    (void)state;
    log_set(LOG_ERROR); /* tables without config.json warn */
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static void put(const char *name, const char *text)
{
    must(file_write(in_folder(name), text, strlen(text)));
}

/* A map with something in every field. */
static struct HeadMap full_map(int n_layers, int n_heads, int n_kv_heads)
{
    struct HeadMap map = blank(n_layers, n_heads, n_kv_heads, true);
    int n = headmap_heads(&map);
    for (int i = 0; i < n_layers * n_heads; i++)
        map.q_scores[i] = (float)rng() / 2147483648.0f * (rng() % 3 ? 1 : 1e-30f);
    for (int i = 0; i < n; i++) map.scores[i] = (float)(rng() % 5) / 4;
    map.scores[0] = 1e-42f; /* a denormal */
    map.sink = 3;
    map.recent = 17;
    map.threshold = 99;
    map.ratio = (float)(1 + rng() % 1000) / 1000;
    map.model_hash = UINT64_C(0xfedcba9876543210) + rng();
    map.seed = UINT64_MAX - rng();
    strcpy(map.method, "ablate");
    must(str_appendf(&map.note, "\"two\\lines\"\n\x01 \xC3\xA9 \xF0\x9F\x98\x80"));
    must(str_appendf(&map.settings, "{\"lengths\":[1024,7168],\"kl\":0.1,\"none\":null}"));
    return map;
}

static void assert_same_facts(const struct HeadMap *a, const struct HeadMap *b)
{
    assert_int_equal(a->sink, b->sink);
    assert_int_equal(a->recent, b->recent);
    assert_int_equal(a->threshold, b->threshold);
    assert_true(a->ratio == b->ratio);
    assert_true(a->model_hash == b->model_hash && a->seed == b->seed);
    assert_string_equal(a->method, b->method);
    assert_int_equal(a->note.len, b->note.len);
    assert_int_equal(a->settings.len, b->settings.len);
    if (a->note.len) assert_string_equal(a->note.data, b->note.data);
    if (a->settings.len) assert_string_equal(a->settings.data, b->settings.data);
}

static void assert_same_file(const char *a, const char *b)
{
    struct Str x = {0}, y = {0};
    must(file_read(a, &x));
    must(file_read(b, &y));
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.data, y.data, x.len);
    str_free(&x);
    str_free(&y);
}

static void test_own_round_trip(void **state)
{
    (void)state;
    for (int round = 0; round < 50; round++) {
        int group = 1 + round % 3, width = 1 + round % 4;
        struct HeadMap map = full_map(1 + round % 5, group * width, width), back;
        int n = headmap_heads(&map);
        must(headmap_write_json(&map, in_folder("a.json")));
        must(headmap_read(in_folder("a.json"), &map.shape, &back));
        assert_same_facts(&map, &back);
        assert_memory_equal(map.scores, back.scores, sizeof(float) * (size_t)n);
        assert_memory_equal(map.q_scores, back.q_scores, sizeof(float) * (size_t)(n * group));
        must(headmap_write_json(&back, in_folder("b.json")));
        assert_same_file(in_folder("a.json"), in_folder("b.json"));
        headmap_close(&map);
        headmap_close(&back);
    }
    struct HeadMap bare = blank(2, 2, 1, false), back;
    bare.seed = UINT64_C(1) << 53;
    must(headmap_write_json(&bare, in_folder("bare.json")));
    must(headmap_read(in_folder("bare.json"), &bare.shape, &back));
    assert_same_facts(&bare, &back);
    assert_null(back.q_scores);
    headmap_close(&bare);
    headmap_close(&back);
}

static void test_duo_round_trip(void **state)
{
    (void)state;
    for (int round = 0; round < 40; round++) {
        int width = 1 + round % 7, kept[2];
        struct HeadMap map = full_map(1 + round % 9, 2 * width, width), back;
        int n = headmap_heads(&map);
        uint8_t want[N_MAX], got[N_MAX];
        must(headmap_write_duo(&map, in_folder("duo")));
        must(headmap_read(in_folder("duo"), &map.shape, &back));
        assert_same_facts(&map, &back);
        for (int k = 0; k <= n; k++) { /* the ranks cut as the scores did, ties and all */
            kept[0] = headmap_keep(&map, (double)k / n, 0, want);
            kept[1] = headmap_keep(&back, (double)k / n, 0, got);
            assert_true(kept[0] == k && kept[1] == k);
            assert_memory_equal(want, got, (size_t)n);
        }
        must(headmap_write_duo(&back, in_folder("duo2/")));
        assert_same_file(in_folder("duo/full_attention_heads.tsv"),
                         in_folder("duo2/full_attention_heads.tsv"));
        assert_same_file(in_folder("duo/config.json"), in_folder("duo2/config.json"));
        headmap_close(&map);
        headmap_close(&back);
    }
    assert_int_equal(access(in_folder("duo/q_heads.tsv"), F_OK), 0);
    assert_int_not_equal(access(in_folder("duo2/q_heads.tsv"), F_OK), 0);
}

static void test_rtp_round_trip(void **state)
{
    (void)state;
    for (int round = 0; round < 40; round++) {
        int width = 1 + round % 4;
        struct HeadMap map = full_map(1 + round % 6, 3 * width, width), back;
        int n = headmap_heads(&map);
        uint8_t keep[N_MAX], got[N_MAX];
        int k = headmap_keep(&map, 0.5, 0, keep);
        must(headmap_write_rtp(&map, keep, in_folder("a.json")));
        must(headmap_read(in_folder("a.json"), &map.shape, &back));
        assert_int_equal(headmap_keep_above(&back, 0.5f, got), k);
        assert_memory_equal(keep, got, (size_t)n);
        assert_int_equal(headmap_keep(&back, (double)k / n, 0, got), k);
        assert_memory_equal(keep, got, (size_t)n);
        assert_true(back.sink == 3 && back.recent == 17 && back.threshold == 99);
        must(headmap_write_rtp(&back, got, in_folder("b.json")));
        assert_same_file(in_folder("a.json"), in_folder("b.json"));
        headmap_close(&map);
        headmap_close(&back);
    }
}

/* ==== Files of others ==== */

static const struct HeadShape small = {2, 4, 2};

static struct HeadMap parse(const char *text)
{
    struct HeadMap map;
    must(headmap_parse(text, strlen(text), "here", &small, &map));
    return map;
}

/* As numpy writes it, with Windows' line ends, without the last line's. */
static void test_duo_text(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "-1.400000000000000000e-03\t1.000000000000000000e+00\n5.000000000000000000e-01\t1.01e0\n",
        "-1.4e-3\t1\r\n.5\t+1.01\r\n", "-1.4E-3\t1.\n0.5\t1.01", "-1e300\t1\n5e-1\t1e300"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        static const float want[4] = {0, 1, 0.5f, 1};
        struct HeadMap map = parse(texts[i]);
        assert_memory_equal(map.scores, want, sizeof want);
        assert_false(signbit(map.scores[0]));
        assert_true(map.sink == 64 && map.recent == 256 && map.threshold == 0 && !map.q_scores);
        assert_string_equal(map.method, "duoattention");
        headmap_close(&map);
    }
}

static void test_duo_folder(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        int sink, recent;
    } cases[] = {{"{\"sink_size\": 128, \"recent_size\": 256}", 128, 256},
                 {"{\"sink_size\": 0, \"recent_size\": 1, \"threshold\": 0.5}", 0, 1},
                 {"{\"recent_size\": 12}", 64, 12},
                 {"{}", 64, 256},
                 {NULL, 64, 256}};
    must(mkdir(in_folder("theirs"), 0777));
    put("theirs/full_attention_heads.tsv", "0.1\t0.2\n0.3\t0.4\n");
    put("theirs/other.tsv", "0.1\t0.2\n0.3\t0.4\n");
    static const char *const paths[] = {"theirs", "theirs/", "theirs/other.tsv"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int p = 0; p < 3; p++) {
            struct HeadMap map;
            if (cases[i].config)
                put("theirs/config.json", cases[i].config);
            else
                unlink(in_folder("theirs/config.json"));
            must(headmap_read(in_folder(paths[p]), &small, &map));
            assert_int_equal(map.sink, cases[i].sink);
            assert_int_equal(map.recent, cases[i].recent);
            assert_true(map.scores[3] == 0.4f);
            headmap_close(&map);
        }
}

static void test_rtp_text(void **state)
{
    (void)state;
    struct HeadMap map =
        parse("{\"model_type\": \"x\", \"headwise_config\": {\"sink_token_num\": 8, "
              "\"swa_token_num\": 512, \"1\": [0,0,0,1], \"0\": [0,0,0,0]}}\r\n");
    assert_true(map.sink == 8 && map.recent == 513 && map.threshold == 16384);
    assert_true(map.scores[0] == 0 && map.scores[1] == 0 && map.scores[2] == 0 &&
                map.scores[3] == 1 && map.q_scores[7] == 1 && map.q_scores[6] == 0);
    headmap_close(&map);
    map = parse(" {\"0\": [1,0,0,0], \"1\": [1,1,1.0,0], \"seqlen_threshold\": 0}");
    assert_true(map.sink == 4 && map.recent == 8193 && map.threshold == 0);
    assert_true(map.scores[0] == 1 && map.scores[1] == 0 && map.scores[2] == 1 &&
                map.scores[3] == 1);
    headmap_close(&map);
}

/* ==== Refusals: the file, the place, what was found, what the model has, what to do ==== */

#define OWN(shape, rest)                                                                           \
    "{\"schema\":\"pcomp.heads.v1\",\"sink\":4,\"recent\":8," shape "," rest "}"
#define SHAPE     "\"n_layers\":2,\"n_heads\":4,\"n_kv_heads\":2"
#define SCORES    "\"scores\":[[0,1],[0.5,0.5]]"
#define RTP(rest) "{\"0\":[0,0,0,1],\"1\":[1,0,0,0]" rest "}"

struct Refusal {
    const char *text;
    const char *parts[5]; /* all in the error's text */
};

static const struct Refusal REFUSALS[] = {
    /* DuoAttention's table */
    {"0\t1\n0\t1\n0\t1\n", {"line 3", "one too many", "the model has 2 layers", "use a map"}},
    {"0\t1\n", {"line 2 is missing", "1 lines", "the model has 2 layers", "use a map"}},
    {"", {"line 1 is missing", "0 lines", "2 layers", "use a map"}},
    {"0\t1\n0\t1\t1\n", {"line 2", "3 values", "the model has 2 KV heads", "use a map"}},
    {"0\n0\n", {"line 1", "1 values", "2 KV heads", "use a map"}},
    {"0\t1\n\n0\t1\n", {"line 2", "0 values", "2 KV heads", "use a map"}},
    {"0\t1\n0\t\n", {"line 2, column 2", "''", "layer 1, KV head 1", "correct it"}},
    {"0\t1\n\t1\n", {"line 2, column 1", "''", "layer 1, KV head 0", "correct it"}},
    {"0\tnan\n0\t1\n", {"line 1, column 2", "'nan'", "finite", "correct it"}},
    {"0\tinf\n0\t1\n", {"line 1, column 2", "'inf'"}},
    {"0\t1e999\n0\t1\n", {"line 1, column 2", "'1e999'", "finite"}},
    {"0\t0x1\n0\t1\n", {"line 1, column 2", "'0x1'"}},
    {"0\t 1\n0\t1\n", {"line 1, column 2", "' 1'"}},
    {"0\t1e\n0\t1\n", {"line 1, column 2", "'1e'"}},
    {"0\t.\n0\t1\n", {"line 1, column 2", "'.'"}},
    {"0\t-\n0\t1\n", {"line 1, column 2", "'-'"}},
    {"0\t1,5\n0\t1\n", {"line 1, column 2", "'1,5'"}},
    {"0\tone\n0\t1\n", {"line 1, column 2", "'one'"}},
    {"0\t\xC3\xA9\n0\t1\n", {"line 1, column 2", "'?\?'"}},
    {"0\t1.00000000000000000000000000000000000000000000000000000000000000\n0\t1\n",
     {"line 1, column 2", "'1.000"}},
    {"0\t1\n0\t\xFF\n", {"line 2", "byte 6", "not UTF-8", "give a .tsv"}},
    /* not a map, or not JSON */
    {"{\"schema\":", {"line 1", "not valid JSON", "whole?"}},
    {"{\n\n\"a\" 1}", {"line 3", "not valid JSON"}},
    {"{} {}", {"line 1", "not valid JSON at byte 3"}},
    {"[1]", {"line 1", "not an object"}},
    {"{\"a\":\"\xC0\x80\"}", {"line 1", "byte 6", "not UTF-8"}},
    {"{}", {"no head map", "schema", "headwise_config", "2 layers", "give another"}},
    {"{\"sink_size\":1}", {"DuoAttention's config.json", "give its folder"}},
    /* RTP-LLM's */
    {"{\"headwise_config\":[]}", {"\"headwise_config\"", "not an object"}},
    {"{\"headwise_config\":{}}", {"layer 0 is missing", "2 layers", "add \"0\" with 4 flags"}},
    {"{\"0\":[0,0,0,0]}", {"layer 1 is missing", "2 layers", "add \"1\" with 4 flags"}},
    {"{\"0\":[0,0,0]}", {"layer 0", "a list of 3", "the model has 4 query heads", "needs a list"}},
    {"{\"0\":7}", {"layer 0", ": 7;", "the model has 4 query heads"}},
    {"{\"0\":[0,0,0,2]}", {"layer 0, query head 3", "0 or 1", "not 2", "correct"}},
    {"{\"0\":[0,0,true,0]}", {"layer 0, query head 2", "true or false"}},
    {"{\"0\":[0,0,null,0]}", {"layer 0, query head 2", "not null"}},
    {RTP(",\"2\":[0,0,0,0]"), {"layer 2", "the model has 2 layers (0 to 1)", "use a map"}},
    {RTP(",\"1\":[0,0,0,0]"), {"\"1\" is given twice", "remove one"}},
    {RTP(",\"01\":[0,0,0,0]"), {"\"01\" is neither a layer", "swa_token_num", "correct"}},
    {RTP(",\"-1\":[0,0,0,0]"), {"\"-1\" is neither a layer"}},
    {RTP(",\"swa_tokens\":5"), {"\"swa_tokens\" is neither a layer"}},
    {RTP(",\"swa_token_num\":5,\"swa_token_num\":6"), {"\"swa_token_num\" is given twice"}},
    {RTP(",\"swa_token_num\":-1"), {"\"swa_token_num\" must be", "0 to 16777215", "not -1"}},
    {RTP(",\"swa_token_num\":1.5"), {"\"swa_token_num\" must be", "not 1.5", "correct it"}},
    {RTP(",\"sink_token_num\":\"4\""), {"\"sink_token_num\" must be", "not a string"}},
    {RTP(",\"seqlen_threshold\":1e300"), {"\"seqlen_threshold\" must be", "not 1e+300"}},
    /* our own */
    {"{\"schema\":\"pcomp.heads.v2\"}", {"pcomp.heads.v2", "this pcomp reads \"pcomp.heads.v1\""}},
    {"{\"schema\":1}", {"the schema is \"\""}},
    {OWN(SHAPE, SCORES ",\"scroes\":1"), {"\"scroes\" is no member", "did you mean \"scores\""}},
    {OWN(SHAPE, SCORES "," SCORES), {"\"scores\" is given twice", "remove one"}},
    {OWN("\"n_layers\":2,\"n_heads\":4", SCORES), {"\"n_kv_heads\" must be", "not nothing"}},
    {OWN("\"n_layers\":2,\"n_heads\":4,\"n_kv_heads\":4", SCORES),
     {"2 layers of 4 query and 4 KV heads", "the model has 2 layers of 4 and 2", "use a map"}},
    {"{\"schema\":\"pcomp.heads.v1\",\"recent\":8," SHAPE "," SCORES "}", {"\"sink\" must be"}},
    {"{\"schema\":\"pcomp.heads.v1\",\"sink\":4,\"recent\":0," SHAPE "," SCORES "}",
     {"\"recent\" must be a whole number, 1 to", "not 0", "correct it"}},
    {OWN(SHAPE, "\"note\":\"\""), {"\"scores\" must be a list", "nothing", "2 layers"}},
    {OWN(SHAPE, "\"scores\":[[0,1]]"), {"\"scores\"", "a list of 1", "the model has 2 layers"}},
    {OWN(SHAPE, "\"scores\":[[0,1],[1]]"), {"layer 1", "a list of 1", "model has 2 heads", "use"}},
    {OWN(SHAPE, "\"scores\":[[0,1],3]"), {"layer 1", ": 3;", "the model has 2 heads"}},
    {OWN(SHAPE, "\"scores\":[[0,1],[0,1.5]]"), {"layer 1, head 1", "0 to 1, not 1.5", "anew"}},
    {OWN(SHAPE, "\"scores\":[[0,1],[0,-1e-9]]"), {"layer 1, head 1", "not -1e-09"}},
    {OWN(SHAPE, "\"scores\":[[0,1],[0,1e999]]"), {"layer 1, head 1", "not inf"}},
    {OWN(SHAPE, "\"scores\":[[0,1],[0,null]]"), {"layer 1, head 1", "not null"}},
    {OWN(SHAPE, SCORES ",\"q_scores\":[[0,1],[0,1]]"), {"\"q_scores\", layer 0", "a list of 2"}},
    {OWN(SHAPE, SCORES ",\"ratio\":1.5"), {"\"ratio\" must be a number, 0 to 1", "not 1.5"}},
    {OWN(SHAPE, SCORES ",\"ratio\":\"half\""), {"\"ratio\" must be", "not a string"}},
    {OWN(SHAPE, SCORES ",\"seed\":-1"), {"\"seed\" must be", "not -1"}},
    {OWN(SHAPE, SCORES ",\"seed\":1e17"), {"\"seed\" must be", "string of digits"}},
    {OWN(SHAPE, SCORES ",\"seed\":\"18446744073709551616\""), {"\"seed\" must be"}},
    {OWN(SHAPE, SCORES ",\"model_hash\":\"12\""), {"\"model_hash\" must be", "16 hexa"}},
    {OWN(SHAPE, SCORES ",\"method\":\"abcdefghijklmnopqrstuvwxyzabcdef\""), {"\"method\" must be"}},
    {OWN(SHAPE, SCORES ",\"note\":[]"), {"\"note\" must be a string, not a list of 0"}},
    {OWN(SHAPE, SCORES ",\"settings\":\"x\""), {"\"settings\" must be an object"}},
};

static void check_refused(int status, const char *text, const char *const parts[5])
{
    if (status != PC_EFORMAT) fail_msg("status %d for: %s", status, text);
    if (strncmp(err_text(), "maps/x: ", 8) != 0) fail_msg("no file name: %s", err_text());
    for (int i = 0; i < 5 && parts[i]; i++)
        if (!has(parts[i])) fail_msg("'%s' is not in: %s", parts[i], err_text());
}

static void test_refusals(void **state)
{
    (void)state;
    size_t held = mem_in_use();
    for (size_t i = 0; i < sizeof REFUSALS / sizeof *REFUSALS; i++) {
        struct HeadMap map;
        const char *text = REFUSALS[i].text;
        check_refused(headmap_parse(text, strlen(text), "maps/x", &small, &map), text,
                      REFUSALS[i].parts);
        assert_null(map.scores);
        assert_int_equal(mem_in_use(), held);
    }
    /* Good as they stand: what the refusals above break. */
    headmap_close(&(struct HeadMap){0});
    struct HeadMap map = parse(OWN(SHAPE, SCORES));
    headmap_close(&map);
    map = parse(RTP(""));
    headmap_close(&map);
}

static void test_refused_bytes(void **state)
{
    (void)state;
    static const char *const nul[] = {"byte 3 ", "NUL", "line 1"}, *const deep[] = {"valid JSON"};
    struct HeadMap map;
    const char *parts[5] = {nul[0], nul[1], nul[2]};
    check_refused(headmap_parse("0\t1\0\n0\t1\n", 9, "maps/x", &small, &map), "NUL", parts);
    check_refused(headmap_parse("{} \0", 4, "maps/x", &small, &map), "NUL", parts);
    struct Str text = {0};
    must(str_appendf(&text, "{\"0\":"));
    for (int i = 0; i < 100000; i++) must(str_append(&text, "[", 1));
    check_refused(headmap_parse(text.data, text.len, "maps/x", &small, &map), "deep",
                  (const char *[5]){deep[0]});
    str_free(&text);
}

static void test_refused_config(void **state)
{
    (void)state;
    static const struct Refusal cases[] = {
        {"", {"not valid JSON"}},
        {"[]", {"not an object"}},
        {"{\"sink_size\":-1}", {"\"sink_size\" must be", "not -1"}},
        {"{\"sink_size\":\"a\"}", {"\"sink_size\" must be", "not a string"}},
        {"{\"recent_size\":0}", {"\"recent_size\" must be", "1 to", "not 0"}},
        {"{\"recent_size\":null}", {"\"recent_size\" must be", "not null"}},
        {"{\"seed\":{}}", {"\"seed\" must be", "not an object"}},
    };
    struct HeadMap map = blank(2, 4, 2, false);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text = cases[i].text;
        check_refused(headmap_parse_config(text, strlen(text), "maps/x", &map), text,
                      cases[i].parts);
    }
    headmap_close(&map);
}

static void test_refused_paths(void **state)
{
    (void)state;
    struct HeadMap map;
    must(mkdir(in_folder("empty"), 0777));
    assert_int_equal(headmap_read(in_folder("empty"), &small, &map), PC_EIO);
    assert_true(has("/empty: ") && has("full_attention_heads.tsv") && has("name the file"));
    assert_int_equal(headmap_read(in_folder("none.tsv"), &small, &map), PC_EIO);
    assert_true(has("none.tsv: cannot open"));
    assert_int_equal(headmap_read("/dev/zero", &small, &map), PC_EIO);
    put("huge.tsv", "0\t1\n");
    must(truncate(in_folder("huge.tsv"), 5 << 20));
    assert_int_equal(headmap_read(in_folder("huge.tsv"), &small, &map), PC_ERANGE);
    assert_true(has("huge.tsv: 5242880 bytes") && has("2 layers") && has("give another"));
    must(mkdir(in_folder("bad"), 0777));
    put("bad/full_attention_heads.tsv", "0\t1\n0\t1\n");
    put("bad/config.json", "{\"sink_size\":1.5}");
    assert_int_equal(headmap_read(in_folder("bad"), &small, &map), PC_EFORMAT);
    assert_true(has("bad/config.json: \"sink_size\""));
    put("bad/full_attention_heads.tsv", "0\t1\n0\tx\n");
    assert_int_equal(headmap_read(in_folder("bad"), &small, &map), PC_EFORMAT);
    assert_true(has("bad/full_attention_heads.tsv: line 2, column 2"));
    assert_int_equal(headmap_parse("0\n", 2, "x", &(struct HeadShape){1, 3, 2}, &map), PC_ERANGE);
    assert_null(map.scores);
}

static void test_refused_writes(void **state)
{
    (void)state;
    struct HeadMap map = full_map(2, 4, 2);
    struct Str text = {0}, other = {0};
    static const uint8_t keep[4] = {1, 0, 0, 1};
    assert_int_equal(headmap_write_json(&map, "/nowhere/a.json"), PC_EIO);
    assert_int_equal(headmap_write_rtp(&map, keep, "/nowhere/a.json"), PC_EIO);
    assert_int_equal(headmap_write_duo(&map, "/nowhere/a"), PC_EIO);
    assert_true(has("/nowhere/a: cannot make"));
    put("plain", "x");
    assert_int_equal(headmap_write_duo(&map, in_folder("plain")), PC_EIO);
    map.recent = 0;
    assert_int_equal(headmap_json_text(&map, &text), PC_EINTERNAL);
    assert_int_equal(headmap_rtp_text(&map, keep, &text), PC_EINTERNAL);
    map.recent = 1;
    map.scores[3] = 1.5f;
    assert_int_equal(headmap_duo_text(&map, &text, &other), PC_EINTERNAL);
    assert_true(has("layer 1, KV head 1 is 1.5"));
    map.scores[3] = 1;
    map.q_scores[5] = NAN;
    assert_int_equal(headmap_q_text(&map, &text), PC_EINTERNAL);
    assert_true(has("layer 1, query head 1"));
    map.q_scores[5] = 1;
    must(str_append(&map.note, "\xFF", 1));
    assert_int_equal(headmap_json_text(&map, &text), PC_EINTERNAL);
    str_clear(&map.note);
    memset(map.method, 'a', sizeof map.method);
    assert_int_equal(headmap_json_text(&map, &text), PC_EINTERNAL);
    map.method[3] = '\0';
    must(str_append(&map.settings, "}", 1));
    assert_int_equal(headmap_json_text(&map, &text), PC_EINTERNAL);
    str_free(&text);
    str_free(&other);
    headmap_close(&map);
}

/* Every beginning of a good file is refused or is one (a table without its last line feed). */
static void test_cut_files(void **state)
{
    (void)state;
    struct HeadMap map = full_map(2, 4, 2);
    struct Str texts[3] = {{0}}, config = {0};
    static const uint8_t keep[4] = {1, 0, 0, 1};
    must(headmap_duo_text(&map, &texts[0], &config));
    must(headmap_rtp_text(&map, keep, &texts[1]));
    must(headmap_json_text(&map, &texts[2]));
    for (int i = 0; i < 3; i++)
        for (size_t len = 0; len <= texts[i].len; len++) {
            struct HeadMap part;
            size_t held = mem_in_use();
            char *copy = malloc(len ? len : 1); /* the sanitizer sees a read behind the end */
            memcpy(copy, texts[i].data, len);
            int status = headmap_parse(copy, len, "x", &small, &part);
            free(copy);
            assert_true(status == PC_OK || status == PC_EFORMAT);
            if (i > 0) assert_true((status == PC_OK) == (len + 1 >= texts[i].len));
            if (status == PC_OK) headmap_close(&part);
            assert_int_equal(mem_in_use(), held);
        }
    for (int i = 0; i < 3; i++) str_free(&texts[i]);
    str_free(&config);
    headmap_close(&map);
}

/* ==== The n-th allocation fails ==== */

static const char *fault_paths[] = {"f.json", "f_rtp.json", "f_duo"};

static int do_read(int which)
{
    struct HeadMap map;
    TRY(headmap_read(in_folder(fault_paths[which]), &small, &map));
    headmap_close(&map);
    return PC_OK;
}

static struct HeadMap fault_map;
static const uint8_t fault_keep[4] = {1, 0, 0, 1};

static int do_write(int which)
{
    const char *path = in_folder(fault_paths[which]);
    return which == 0   ? headmap_write_json(&fault_map, path)
           : which == 1 ? headmap_write_rtp(&fault_map, fault_keep, path)
                        : headmap_write_duo(&fault_map, path);
}

static int do_choose(int which)
{
    uint8_t keep[4];
    struct HeadMap map;
    if (which == 0) return headmap_keep(&fault_map, 0.5, 1, keep) < 0 ? PC_ENOMEM : PC_OK;
    TRY(headmap_random(&small, 1, &map));
    int status = which == 1 ? headmap_rank(&map) : headmap_invert(&map);
    headmap_close(&map);
    return status;
}

/* Allocations of cJSON, which come from elsewhere. */
static long cjson_left, cjson_held;

static void *cjson_alloc(size_t size)
{
    if (cjson_left > 0 && --cjson_left == 0) return NULL;
    cjson_held++;
    return malloc(size);
}

static void cjson_release(void *p)
{
    cjson_held -= p != NULL;
    free(p);
}

/* Returns how many allocations fail before the action succeeds. */
static long each_fault(int (*act)(int), int which, bool cjson)
{
    must(act(which));
    for (long n = 1;; n++) {
        size_t before = mem_in_use();
        err_set(PC_OK, "no error");
        cjson_left = cjson ? n : 0;
        mem_fail_after(cjson ? 0 : n);
        int status = act(which);
        mem_fail_after(0);
        bool came = cjson ? cjson_left == 0 : status < 0;
        cjson_left = 0;
        assert_int_equal(mem_in_use(), before);
        assert_int_equal(cjson_held, 0);
        if (!came) {
            must(status);
            return n - 1;
        }
        if (!has("out of memory")) fail_msg("allocation %ld: %d, %s", n, status, err_text());
        if (!cjson) assert_int_equal(status, PC_ENOMEM);
        assert_true(status < 0);
    }
}

static void test_faults(void **state)
{
    (void)state;
    static int (*const actions[])(int) = {do_write, do_read, do_choose};
    cJSON_InitHooks(&(cJSON_Hooks){cjson_alloc, cjson_release});
    fault_map = full_map(2, 4, 2);
    for (int a = 0; a < 3; a++)
        for (int which = 0; which < 3; which++)
            assert_true(each_fault(actions[a], which, false) >= 2);
    for (int which = 0; which < 3; which++) {
        assert_true(each_fault(do_read, which, true) > 10);
        if (which != 1) assert_true(each_fault(do_write, which, true) > 5);
    }
    headmap_close(&fault_map);
    cJSON_InitHooks(NULL);
}

int main(void)
{
    rng_state = 11;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_round_trip), cmocka_unit_test(test_duo_round_trip),
        cmocka_unit_test(test_rtp_round_trip), cmocka_unit_test(test_duo_text),
        cmocka_unit_test(test_duo_folder),     cmocka_unit_test(test_rtp_text),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_refused_bytes),
        cmocka_unit_test(test_refused_config), cmocka_unit_test(test_refused_paths),
        cmocka_unit_test(test_refused_writes), cmocka_unit_test(test_cut_files),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("headmap_file", tests, make_folder, remove_folder) != 0;
}

/* test_faults.c - every allocation fails once, and model files end too early: always an error with a text, never a
 * crash, and nothing kept.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "session.h"
#include "session_bias.h"
#include "tests/tiny.h"

/* ==== A tiny model in a file ==== */

static char model_path[] = "/tmp/pcomp_faults_XXXXXX";

static struct TinySpec spec_of(const char *arch)
{
    struct TinySpec spec = tiny_spec(arch);
    spec.train_len = 1024;
    return spec;
}

static int write_model(void **state)
{
    (void)state;
    struct TinySpec spec = spec_of("qwen2");
    int fd = mkstemp(model_path);
    if (fd < 0) return -1;
    close(fd);
    return tiny_gguf(model_path, &spec);
}

static int remove_model(void **state)
{
    (void)state;
    return unlink(model_path);
}

static void default_settings(struct Settings *set)
{
    settings_default(set);
    set->threads = 1;
    set->kv_type = KV_Q4; /* has more to allocate than the others */
    set->memory = (size_t)1 << 30;
    set->chunk = 100;
    set->kv_cap = 40;
    set->max_tokens = 4;
    set->temperature = 1;
    set->n_calib = 2;
    set->calib[0] = (struct CalibRule){CLASS_MIDDLE, 0, 1, 0.02f, 10, 2, 1};
    set->calib[1] = (struct CalibRule){CLASS_RECENT, 0, 1, 0.02f, 10, 2, 2};
}

static struct Engine *open_model(void)
{
    struct Settings set;
    struct Engine *e = NULL;
    default_settings(&set);
    if (engine_open(model_path, &set, &e) < 0) fail_msg("%s", err_text());
    return e;
}

/* ==== The n-th allocation fails ==== */

/* What is tried with faults; it leaves nothing behind but an engine's scratch. */
struct Action {
    int (*act)(struct Engine *e);
    struct Engine *e;
};

static size_t held(const struct Action *a)
{
    struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    if (a->e) assert_int_equal(a->e->be->reserve(a->e->dev, &least), PC_OK);
    return mem_in_use();
}

/* Whether the fault that was set to come after n allocations has come. */
static bool fault_came(long n)
{
    for (long i = 0; i < n; i++) {
        void *p = mem_alloc(1, 1);
        if (!p) return false;
        mem_free(p);
    }
    return true;
}

/* Returns how many allocations the action makes. */
static long each_fault(struct Action a)
{
    assert_int_equal(a.act(a.e), PC_OK);
    for (long n = 1;; n++) {
        size_t before = held(&a);
        err_set(PC_OK, "no error");
        mem_fail_after(n);
        int status = a.act(a.e);
        char text[512];
        snprintf(text, sizeof text, "%s", err_text());
        bool came = fault_came(n);
        mem_fail_after(0);
        if (held(&a) != before)
            fail_msg("allocation %ld failed and %zd bytes stay (%s)", n,
                     (ssize_t)(held(&a) - before), text);
        if (status == PC_OK && !came) return n - 1;
        if (status != PC_ENOMEM)
            fail_msg("allocation %ld failed and the status is %d (%s)", n, status, text);
        assert_true(came);
        if (!strstr(text, "out of memory")) fail_msg("allocation %ld: the text is '%s'", n, text);
    }
}

static int do_open(struct Engine *none)
{
    struct Settings set;
    struct Engine *e = none;
    default_settings(&set);
    TRY(engine_open(model_path, &set, &e));
    engine_close(e);
    return PC_OK;
}

/* A text of several chunks. */
static struct Request request(void)
{
    static const char sentence[] =
        "Call me Ishmael. Some years ago, never mind how long precisely, ";
    static char text[6 * sizeof sentence];
    text[0] = '\0';
    for (int i = 0; i < 6; i++) strcat(text, sentence);
    return (struct Request){
        .context = text, .context_len = strlen(text), .question = "What is his name?"};
}

static int do_plan(struct Engine *e)
{
    struct PlanInfo plan;
    struct Request req = request();
    return session_plan(e, &req, &plan);
}

static int do_run(struct Engine *e)
{
    struct Result r;
    struct Request req = request();
    int status = session_run(e, &req, &r);
    if (status == PC_OK) {
        assert_true(r.plan.n_chunks > (e->settings.method == METHOD_PARALLELCOMP ? 2 : 0));
        assert_true(r.config_hash != 0 && r.input_hash != 0 && r.logits_hash != 0);
    }
    result_free(&r);
    return status;
}

static int do_tail(struct Engine *e)
{
    struct PerplexityResult r;
    struct Request req = request();
    return session_perplexity(e, &req, 20, &r);
}

static int do_plain(struct Engine *e)
{
    struct PerplexityResult r;
    struct Request req = request();
    return session_perplexity(e, &req, 0, &r);
}

static int do_bias(struct Engine *e)
{
    struct BiasProfile local = {0}, merged = {0};
    struct BiasScore score;
    struct Result r = {0};
    const struct ModelConfig *m = &e->model.cfg;
    int status = bias_open(&local, m->n_layers, m->n_kv_heads, 10);
    if (status == PC_OK) status = bias_open(&merged, m->n_layers, m->n_kv_heads, 10);
    struct BiasAsk ask = {
        .req = request(), .answer = " Ishmael", .local = &local, .merged = &merged};
    if (status == PC_OK) status = session_bias(e, &ask, &score, &r);
    result_free(&r);
    bias_close(&local);
    bias_close(&merged);
    return status;
}

static void test_open(void **state)
{
    (void)state;
    long n = each_fault((struct Action){do_open, NULL});
    print_message("# engine_open: %ld allocations\n", n);
    assert_true(n > 5);
}

static void check_requests(struct Engine *e)
{
    static const struct {
        const char *name;
        int (*act)(struct Engine *e);
    } actions[] = {{"plan", do_plan},
                   {"run", do_run},
                   {"bias", do_bias},
                   {"perplexity of a tail", do_tail},
                   {"perplexity", do_plain}};
    for (int i = 0; i < 5; i++) {
        if (actions[i].act == do_plain) e->settings.method = METHOD_FULL;
        long n = each_fault((struct Action){actions[i].act, e});
        print_message("# %s: %ld allocations\n", actions[i].name, n);
        assert_true(n > 5);
    }
}

static void test_requests(void **state)
{
    (void)state;
    struct Engine *e = open_model();
    check_requests(e);
    engine_close(e);
}

static void test_requests_plain(void **state)
{
    (void)state;
    struct Engine *e = open_model();
    e->settings.method = METHOD_FULL;
    each_fault((struct Action){do_run, e});
    e->settings.method = METHOD_TRUNCATE;
    each_fault((struct Action){do_run, e});
    engine_close(e);
}

/* Half of the heads stream; a map of a file comes and goes. */
static void test_requests_heads(void **state)
{
    (void)state;
    struct Engine *e = open_model();
    const struct ModelConfig *m = &e->model.cfg;
    struct HeadShape shape = {m->n_layers, m->n_heads, m->n_kv_heads};
    assert_int_equal(headmap_random(&shape, 1, &e->heads), PC_OK);
    e->heads.sink = 4;
    e->heads.recent = 20;
    assert_true(each_fault((struct Action){do_run, e}) > 5);
    each_fault((struct Action){do_plan, e});
    e->settings.method = METHOD_DUO;
    each_fault((struct Action){do_run, e});
    each_fault((struct Action){do_tail, e});
    engine_close(e);
}

/* With an index of pages, which has memory of its own. */
static void test_requests_select(void **state)
{
    (void)state;
    struct Engine *e = open_model();
    long without = each_fault((struct Action){do_run, e});
    e->settings.select = PAGE_INDEX_BOUND;
    assert_int_equal(each_fault((struct Action){do_run, e}), without + 2);
    engine_close(e);
}

/* With pages below: a row that waits, and a thread that brings them to one that does not. */
static void test_requests_tiers(void **state)
{
    (void)state;
    struct Engine *e = open_model();
    e->settings.select = PAGE_INDEX_MEAN;
    long without = each_fault((struct Action){do_run, e});
    e->settings.kv_resident = 25;
    for (int wait = TIER_EXACT; wait <= TIER_LATE; wait++) {
        e->settings.tier_wait = (enum TierWait)wait;
        assert_true(each_fault((struct Action){do_run, e}) > without + 10);
    }
    engine_close(e);
}

/* The baselines, each with something to do: windows and caps far below the text. */
static void test_requests_baselines(void **state)
{
    (void)state;
    static const enum Method methods[] = {METHOD_SELF_EXTEND, METHOD_STREAMING, METHOD_SNAPKV,
                                          METHOD_PYRAMIDKV};
    struct Engine *e = open_model();
    e->settings.window = 64;
    e->settings.kv_cap = 40;
    e->settings.rope_scaling = SCALING_YARN;
    e->settings.rope_factor = 3;
    for (int i = 0; i < 4; i++) {
        e->settings.method = methods[i];
        assert_true(each_fault((struct Action){do_run, e}) > 5);
        each_fault((struct Action){do_plan, e});
    }
    engine_close(e);
    e = open_model();
    for (int score = SCORE_RANDOM; score <= SCORE_BM25; score++) {
        e->settings.chunk_score = (enum ChunkScore)score;
        assert_true(each_fault((struct Action){do_run, e}) > 5);
    }
    engine_close(e);
}

/* An engine answers as before after a request that failed half-way. */
static void test_engine_survives(void **state)
{
    (void)state;
    struct Engine *e = open_model();
    struct Request req = request();
    struct Result want, r;
    assert_int_equal(session_run(e, &req, &want), PC_OK);
    for (long n = 1; n < 200; n += 7) {
        mem_fail_after(n);
        int status = session_run(e, &req, &r);
        mem_fail_after(0);
        result_free(&r);
        if (status == PC_OK) break;
        assert_int_equal(session_run(e, &req, &r), PC_OK);
        assert_true(r.logits_hash == want.logits_hash);
        assert_int_equal(r.n_ids, want.n_ids);
        assert_memory_equal(r.ids, want.ids, sizeof *r.ids * (size_t)r.n_ids);
        result_free(&r);
    }
    result_free(&want);
    engine_close(e);
}

/* ==== Files that end too early ==== */

/* Opens the first len bytes of a model. */
static int open_part(const struct Str *whole, size_t len)
{
    char path[] = "/tmp/pcomp_part_XXXXXX";
    struct Settings set;
    struct Engine *e = NULL;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, whole->data, len), (ssize_t)len);
    close(fd);
    default_settings(&set);
    size_t before = mem_in_use();
    err_set(PC_OK, "no error");
    int status = engine_open(path, &set, &e);
    if (status == PC_OK)
        engine_close(e);
    else if (!strcmp(err_text(), "no error"))
        fail_msg("%zu bytes: no error text", len);
    assert_int_equal(mem_in_use(), before);
    unlink(path);
    return status;
}

static void test_short_file(void **state)
{
    (void)state;
    /* the last tensor's rows do not fill the alignment: padding follows */
    struct TinySpec spec = spec_of("llama");
    struct Str whole = {0};
    spec.dim = 70;
    spec.hidden_dim = 101;
    assert_int_equal(tiny_gguf_bytes(&spec, &whole), PC_OK);
    size_t last = (size_t)spec.dim * (size_t)spec.hidden_dim * sizeof(float),
           padding = (32 - last % 32) % 32;
    assert_true(padding > 0);
    assert_int_equal(open_part(&whole, whole.len), PC_OK);
    for (size_t len = 0; len < whole.len; len += len < 64 ? 1 : len < 12000 ? 61 : 9973) {
        int status = open_part(&whole, len);
        if (status != PC_EFORMAT && status != PC_EIO)
            fail_msg("%zu of %zu bytes: status %d", len, whole.len, status);
    }
    for (size_t cut = 1; cut < padding + 70; cut++) {
        int status = open_part(&whole, whole.len - cut);
        if (cut > padding)
            assert_int_equal(status, PC_EFORMAT);
        else
            assert_true(status == PC_OK || status == PC_EFORMAT);
    }
    str_free(&whole);
}

static void test_no_file(void **state)
{
    (void)state;
    static const char *const paths[] = {"/tmp/pcomp_no_such_model.gguf", "", "/tmp", "/dev/null"};
    struct Settings set;
    default_settings(&set);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct Engine *e = NULL;
        size_t before = mem_in_use();
        int status = engine_open(paths[i], &set, &e);
        assert_true(status == PC_EIO || status == PC_EFORMAT);
        assert_null(e);
        assert_true(*err_text());
        assert_int_equal(mem_in_use(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_requests_plain),
        cmocka_unit_test(test_requests_heads),
        cmocka_unit_test(test_requests_select),
        cmocka_unit_test(test_requests_tiers),
        cmocka_unit_test(test_requests_baselines),
        cmocka_unit_test(test_engine_survives),
        cmocka_unit_test(test_short_file),
        cmocka_unit_test(test_no_file),
    };
    return cmocka_run_group_tests_name("faults", tests, write_model, remove_model) != 0;
}

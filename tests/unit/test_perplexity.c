/* test_perplexity.c - perplexity against a forward pass of our own: plain, in windows, and of a tail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "session.h"
#include "tests/tiny.h"

enum { TRAIN_LEN = 1024 };

static const char *const archs[] = {"llama", "qwen2", "qwen3"};

static struct Engine *open_engine(const char *arch, enum Precision precision)
{
    char path[] = "/tmp/pcomp_perplexity_XXXXXX";
    struct TinySpec spec = tiny_spec(arch);
    struct Settings set;
    struct Engine *e = NULL;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    spec.train_len = TRAIN_LEN;
    settings_default(&set);
    set.precision = precision;
    set.threads = 1;
    set.method = METHOD_FULL;
    set.memory = (size_t)1 << 30;
    if (tiny_gguf(path, &spec) < 0 || engine_open(path, &set, &e) < 0) fail_msg("%s", err_text());
    unlink(path);
    return e;
}

/* n bytes of words; about as many tokens. */
static char *make_text(int n)
{
    char *text = calloc(1, (size_t)n + 1);
    uint64_t state = 3;
    for (int i = 0; i < n; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        text[i] = (char)(state >> 60 ? 'a' + (state >> 33) % 26 : ' ');
    }
    return text;
}

static struct Tokens encode(struct Engine *e, const char *text)
{
    struct Tokens t = {0};
    assert_int_equal(tokenizer_encode(e->tok, text, strlen(text), false, &t), PC_OK);
    return t;
}

/* The sum of the NLL of ids[from, n) in one causal pass over ids[0, n). */
static double sum_nll(struct Engine *e, const int *ids, int n, int from)
{
    struct Transformer tf;
    int begin[2] = {0, n}, *pos = calloc((size_t)n, sizeof *pos);
    float *nll = calloc((size_t)n, sizeof *nll);
    struct BatchShape shape = {.rows = n, .seqs = 1, .keys = n, .head_rows = 48};
    double sum = 0;
    for (int i = 0; i < n; i++) pos[i] = i;
    assert_int_equal(tf_open(&tf, e->be, e->dev, &e->model, n), PC_OK);
    assert_int_equal(e->be->reserve(e->dev, &shape), PC_OK);
    struct Batch b = {.tokens = ids, .pos = pos, .seq_begin = begin, .n_seqs = 1};
    assert_int_equal(tf_begin(&tf, &b), PC_OK);
    for (int l = 0; l < e->model.cfg.n_layers; l++) {
        struct AttnArgs args;
        assert_int_equal(tf_attend(&tf, &b, l, 0, &args), PC_OK);
        assert_int_equal(tf_ffn(&tf, l, n), PC_OK);
    }
    assert_int_equal(e->be->nll(e->dev, tf.x, pos, ids + 1, n - 1, nll + 1), PC_OK);
    for (int i = from; i < n; i++) sum += nll[i];
    tf_close(&tf);
    free(pos);
    free(nll);
    return sum;
}

static struct PerplexityResult perplexity(struct Engine *e, const char *text, int tail)
{
    struct Request req = {.context = text, .context_len = strlen(text)};
    struct PerplexityResult r;
    if (session_perplexity(e, &req, tail, &r) < 0) fail_msg("%s", err_text());
    assert_true(fabs(r.ppl - exp(r.nll)) <= 1e-9 * r.ppl);
    return r;
}

/* f32: the same sums, in another order at most; int16: attention over pages in f16 besides. */
static double tolerance(const struct Engine *e)
{
    return e->settings.precision == PRECISION_F32 ? 1e-5 : 5e-3;
}

/* ==== Plain ==== */

static void check_plain(struct Engine *e, const char *text, int window)
{
    struct Tokens ids = encode(e, text);
    double sum = 0;
    int64_t scored = 0;
    for (int at = 0; at + 1 < ids.n; at += window) {
        int n = ids.n - at < window ? ids.n - at : window;
        sum += sum_nll(e, ids.ids + at, n, 1);
        scored += n - 1;
    }
    struct PerplexityResult r = perplexity(e, text, 0);
    assert_int_equal(r.n_scored, scored);
    assert_int_equal(r.n_context, ids.n);
    assert_true(fabs(r.nll - sum / (double)scored) <= 1e-6);
    tokens_free(&ids);
}

/* The first bytes of text that make exactly n tokens. */
static void cut_to(struct Engine *e, char *text, int n)
{
    for (size_t len = strlen(text);; len--) {
        text[len] = '\0';
        struct Tokens t = encode(e, text);
        int have = t.n;
        tokens_free(&t);
        if (have == n) return;
        assert_true(have > n);
    }
}

static void test_plain(void **state)
{
    (void)state;
    for (int a = 0; a < 3; a++)
        for (int precision = 0; precision < 2; precision++) {
            size_t before = mem_in_use();
            struct Engine *e = open_engine(archs[a], precision ? PRECISION_F32 : PRECISION_INT16);
            char *text = make_text(1500);
            check_plain(e, text, TRAIN_LEN);
            e->settings.window = 300;
            check_plain(e, text, 300);
            cut_to(e, text, 601); /* the last window holds a single token: nothing to score */
            check_plain(e, text, 300);
            cut_to(e, text, 302);
            check_plain(e, text, 300);
            cut_to(e, text, 2);
            check_plain(e, text, 300);
            free(text);
            engine_close(e);
            assert_int_equal(mem_in_use(), before);
        }
}

/* ==== A tail ==== */

static void check_tail(struct Engine *e, const char *text, int tail)
{
    struct Tokens ids = encode(e, text);
    double want = sum_nll(e, ids.ids, ids.n, ids.n - tail + 1) / (tail - 1);
    e->settings.method = METHOD_FULL;
    struct PerplexityResult full = perplexity(e, text, tail);
    e->settings.method = METHOD_TRUNCATE; /* everything fits the window */
    struct PerplexityResult truncated = perplexity(e, text, tail);
    e->settings.method = METHOD_PARALLELCOMP;
    e->settings.chunk = ids.n; /* one chunk */
    e->settings.kv_cap = CAP_OFF;
    struct PerplexityResult one = perplexity(e, text, tail);
    assert_int_equal(full.n_scored, tail - 1);
    assert_int_equal(one.n_scored, tail - 1);
    assert_int_equal(full.n_context, ids.n - tail);
    assert_true(fabs(full.nll - want) <= tolerance(e));
    assert_true(fabs(one.nll - want) <= tolerance(e));
    assert_true(fabs(one.nll - full.nll) <= tolerance(e));
    assert_true(full.nll == truncated.nll);
    tokens_free(&ids);
}

static void test_tail(void **state)
{
    (void)state;
    for (int a = 0; a < 3; a++)
        for (int precision = 0; precision < 2; precision++) {
            size_t before = mem_in_use();
            struct Engine *e = open_engine(archs[a], precision ? PRECISION_F32 : PRECISION_INT16);
            char *text = make_text(700);
            e->settings.max_tokens = 1;
            check_tail(e, text, 2);
            check_tail(e, text, 50); /* one more than the rows whose logits are made at once */
            check_tail(e, text, 121);
            free(text);
            engine_close(e);
            assert_int_equal(mem_in_use(), before);
        }
}

/* Compression changes the figure, the same way each time; with a BOS token in front too. */
static void test_compressed(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16);
    char *text = make_text(1500);
    e->settings.method = METHOD_PARALLELCOMP;
    e->settings.chunk = 200;
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = CAP_OFF;
    double all = perplexity(e, text, 60).nll;
    e->settings.keep = 2;
    double two = perplexity(e, text, 60).nll;
    e->settings.kv_cap = 20;
    double capped = perplexity(e, text, 60).nll;
    assert_true(isfinite(all) && isfinite(two) && isfinite(capped));
    assert_true(all != two && two != capped);
    assert_true(perplexity(e, text, 60).nll == capped);
    struct PerplexityResult r = perplexity(e, text, 60);
    assert_true(r.n_context > 1000 && r.seconds > 0);
    e->model.vocab.add_bos = true;
    double bos = perplexity(e, text, 60).nll;
    assert_true(isfinite(bos) && bos != capped);
    e->settings.method = METHOD_FULL;
    struct Tokens ids = {0}, rest = encode(e, text);
    assert_int_equal(tokens_push(&ids, e->model.vocab.bos_id), PC_OK);
    for (int i = 0; i < rest.n; i++) assert_int_equal(tokens_push(&ids, rest.ids[i]), PC_OK);
    e->settings.window = 4096;
    assert_true(fabs(perplexity(e, text, 0).nll - sum_nll(e, ids.ids, ids.n, 1) / (ids.n - 1)) <=
                1e-6);
    double tail = sum_nll(e, ids.ids, ids.n, ids.n - 59) / 59;
    assert_true(fabs(perplexity(e, text, 60).nll - tail) <= tolerance(e));
    tokens_free(&ids);
    tokens_free(&rest);
    free(text);
    engine_close(e);
}

/* ==== Errors ==== */

static void refused(struct Engine *e, const char *text, size_t len, int tail, int code,
                    const char *says)
{
    struct Request req = {.context = text, .context_len = len};
    struct PerplexityResult r;
    size_t before = mem_in_use();
    assert_int_equal(session_perplexity(e, &req, tail, &r), code);
    if (!strstr(err_text(), says)) fail_msg("'%s' does not say '%s'", err_text(), says);
    assert_int_equal(mem_in_use(), before);
}

static bool stop_now(void *user)
{
    (void)user;
    return true;
}

static void test_errors(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16);
    char *text = make_text(600);
    refused(e, text, 600, 1, PC_ECONFIG, "--tail 1");
    refused(e, "", 0, 0, PC_ERANGE, "too few");
    refused(e, "x", 1, 0, PC_ERANGE, "too few");
    refused(e, "The tail.", 9, 20, PC_ERANGE, "too few");
    refused(e, "caf\xe9 au lait", 12, 0, PC_EFORMAT, "UTF-8");
    e->settings.method = METHOD_PARALLELCOMP;
    refused(e, text, 600, 0, PC_ECONFIG, "--tail");
    e->settings.method = METHOD_TRUNCATE;
    refused(e, text, 600, 0, PC_ECONFIG, "--tail");
    e->settings.method = METHOD_FULL;
    e->settings.memory = 1000;
    refused(e, text, 600, 0, PC_ENOMEM, "--window");
    e->settings.method = METHOD_PARALLELCOMP;
    e->settings.max_tokens = 1;
    refused(e, text, 600, 50, PC_ENOMEM, "GiB");
    e->settings.memory = 0;
    e->settings.window = 300;
    refused(e, text, 600, 290, PC_ERANGE, "window");
    e->settings.method = METHOD_FULL;
    struct Request req = {.context = text, .context_len = 600, .stop = stop_now};
    struct PerplexityResult r;
    assert_int_equal(session_perplexity(e, &req, 0, &r), PC_EINTR);
    assert_int_equal(session_perplexity(e, &req, 30, &r), PC_EINTR);
    free(text);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_compressed),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests_name("perplexity", tests, NULL, NULL) != 0;
}

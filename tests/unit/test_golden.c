/* test_golden.c - the engine against vectors of an independent float32 reference, on two real models:
 * plain forward (NLL, last logits), the method's chunk scores, kept chunks, kept tokens, and greedy answers. In the
 * default precision, in f32, and on a GPU in bf16. Needs PCOMP_MODELS; skips a model that is not there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

static const struct Golden {
    const char *model, *json;
} GOLDEN[] = {
    {"SmolLM2-135M-Instruct.Q4_1.gguf", "tests/golden/smollm2-135m-instruct-q4_1.json"},
    {"qwen2.5-coder-0.5b-instruct.gguf", "tests/golden/qwen2.5-coder-0.5b-instruct.json"},
};

/* What the default precision (int16 blocks), f32 and a GPU's bf16 must reach. */
static const struct Tolerance {
    const char *backend;
    enum Precision precision;
    const char *isa;
    double mean_nll, logit, score, kept;
} TOLERANCE[] = {
    {"cpu", PRECISION_INT16, "auto", 1e-3, 0.05, 0.01, 0.97},
    {"cpu", PRECISION_F32, "auto", 1e-3, 1e-3, 0.01, 0.995},
    {"cpu", PRECISION_INT16, "avx2", 1e-3, 0.05, 0.01, 0.97}, /* what every machine can run */
    {"cuda", PRECISION_BF16, "auto", 1e-2, 0.5, 0.03, 0.97},  /* 8 bits of each value */
};

struct Case {
    struct Engine *engine;
    struct Backend
        host; /* the engine's, but that it chooses tokens here, where they can be compared */
    cJSON *json;
    const struct Tolerance *tol;
};

static bool case_open(struct Case *c, int golden, int tol)
{
    const char *dir = getenv("PCOMP_MODELS");
    char path[4096];
    struct Settings set;
    struct Str text = {0};
    snprintf(path, sizeof path, "%s/%s", dir ? dir : "", GOLDEN[golden].model);
    FILE *f = dir ? fopen(path, "rb") : NULL;
    if (!f) {
        print_message("SKIP: PCOMP_MODELS has no %s\n", GOLDEN[golden].model);
        return false;
    }
    fclose(f);
    if (!strcmp(TOLERANCE[tol].backend, "cuda") && !(&backend_cuda && backend_cuda.available())) {
        print_message("SKIP: no GPU\n");
        return false;
    }
    settings_default(&set);
    snprintf(set.backend, sizeof set.backend, "%s", TOLERANCE[tol].backend);
    set.precision = TOLERANCE[tol].precision;
    snprintf(set.isa, sizeof set.isa, "%s", TOLERANCE[tol].isa);
    set.chunk_score = SCORE_PUBLISHED;
    c->tol = &TOLERANCE[tol];
    if (engine_open(path, &set, &c->engine) < 0) fail_msg("%s", err_text());
    c->host = *c->engine->be;
    c->host.keep = NULL;
    c->engine->be = &c->host;
    if (file_read(GOLDEN[golden].json, &text) < 0) fail_msg("%s", err_text());
    c->json = cJSON_ParseWithLength(text.data, text.len);
    assert_non_null(c->json);
    str_free(&text);
    return true;
}

static void case_close(struct Case *c)
{
    engine_close(c->engine);
    cJSON_Delete(c->json);
}

static const cJSON *get(const cJSON *j, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
    if (!v) fail_msg("golden file lacks %s", key);
    return v;
}

static struct Tokens ids_of(const cJSON *list)
{
    struct Tokens t = {0};
    const cJSON *x;
    cJSON_ArrayForEach(x, list) assert_int_equal(tokens_push(&t, x->valueint), PC_OK);
    return t;
}

/* ==== Plain forward ==== */

static void forward(struct Engine *e, struct Tokens ids, float *nll, float *logits)
{
    struct Transformer tf;
    int begin[2] = {0, ids.n}, *pos = calloc((size_t)ids.n, sizeof *pos), last = ids.n - 1;
    struct BatchShape shape = {.rows = ids.n, .seqs = 1, .keys = ids.n, .head_rows = 48};
    for (int i = 0; i < ids.n; i++) pos[i] = i;
    assert_int_equal(tf_open(&tf, e->be, e->dev, &e->model, ids.n), PC_OK);
    assert_int_equal(e->be->reserve(e->dev, &shape), PC_OK);
    struct Batch b = {.tokens = ids.ids, .pos = pos, .seq_begin = begin, .n_seqs = 1};
    assert_int_equal(tf_begin(&tf, &b), PC_OK);
    for (int l = 0; l < e->model.cfg.n_layers; l++) {
        struct AttnArgs args;
        assert_int_equal(tf_attend(&tf, &b, l, 0, &args), PC_OK);
        assert_int_equal(tf_ffn(&tf, l, ids.n), PC_OK);
    }
    assert_int_equal(e->be->nll(e->dev, tf.x, pos, ids.ids + 1, ids.n - 1, nll), PC_OK);
    assert_int_equal(e->be->logits(e->dev, tf.x, &last, 1, logits), PC_OK);
    tf_close(&tf);
    free(pos);
}

static double top_error(const cJSON *top, const float *logits)
{
    double worst = 0;
    const cJSON *pair;
    cJSON_ArrayForEach(pair, top)
    {
        int id = cJSON_GetArrayItem(pair, 0)->valueint;
        worst = fmax(worst, fabs(logits[id] - cJSON_GetArrayItem(pair, 1)->valuedouble));
    }
    return worst;
}

static void check_plain(const struct Case *c)
{
    const cJSON *plain = get(c->json, "plain");
    struct Tokens ids = ids_of(get(plain, "ids"));
    float *nll = calloc((size_t)ids.n, sizeof *nll),
          *logits = calloc((size_t)c->engine->model.cfg.vocab_size, sizeof *logits);
    forward(c->engine, ids, nll, logits);
    double mean = 0, err = top_error(get(plain, "last_top10"), logits);
    for (int i = 0; i + 1 < ids.n; i++) mean += nll[i] / (ids.n - 1);
    double off = fabs(mean - get(plain, "mean_nll")->valuedouble);
    print_message("# %s: mean NLL off by %.6f, top-10 logits by %.5f\n", engine_device(c->engine),
                  off, err);
    assert_true(off <= c->tol->mean_nll);
    assert_true(err <= c->tol->logit);
    tokens_free(&ids);
    free(nll);
    free(logits);
}

/* ==== The method ==== */

struct Run {
    struct Session s;
    struct Result r;
};

static void run_method(struct Run *run, const struct Case *c, int cap, int n_tokens)
{
    const cJSON *m = get(c->json, "method");
    static const struct Request none = {.context = NULL, .question = ""};
    struct Prompt p = {.prefix = ids_of(get(m, "prefix_ids")),
                       .context = ids_of(get(m, "context_ids")),
                       .tail = ids_of(get(m, "question_ids"))};
    struct Settings *set = &c->engine->settings;
    set->chunk = get(m, "chunk_tokens")->valueint;
    set->keep = get(m, "keep_chunks")->valueint;
    set->obs_rows = get(m, "obs_rows")->valueint;
    set->pool = get(m, "max_pool")->valueint;
    set->kv_cap = cap;
    set->max_tokens = n_tokens;
    memset(run, 0, sizeof *run);
    if (session_open(&run->s, c->engine, &none, &p, &run->r) < 0) fail_msg("%s", err_text());
    if (session_stages(&run->s, true) < 0) fail_msg("%s", err_text());
    prompt_free(&p);
}

static void run_close(struct Run *run)
{
    session_close(&run->s);
    result_free(&run->r);
}

static void check_scores(const struct Case *c, const struct Result *r)
{
    const cJSON *m = get(c->json, "method"), *nll = get(m, "question_nll_mean_per_chunk"),
                *kept = get(m, "kept");
    double worst = 0;
    assert_int_equal(r->plan.n_chunks, cJSON_GetArraySize(nll));
    for (int i = 0; i < r->plan.n_chunks; i++) {
        bool want = false;
        const cJSON *k;
        cJSON_ArrayForEach(k, kept) want |= k->valueint == i;
        assert_int_equal(r->chunks[i].kept, want);
        worst = fmax(worst, fabs(r->chunks[i].score - cJSON_GetArrayItem(nll, i)->valuedouble));
    }
    print_message("# chunk scores off by %.5f\n", worst);
    assert_true(worst <= c->tol->score);
}

static void check_answer(const cJSON *want, const struct Result *r)
{
    const cJSON *ids = get(want, "greedy_ids");
    int n = cJSON_GetArraySize(ids);
    assert_true(r->n_ids >= n || (r->stopped_at_eos && r->n_ids == n));
    for (int i = 0; i < n; i++) assert_int_equal(r->ids[i], cJSON_GetArrayItem(ids, i)->valueint);
    assert_memory_equal(r->text.data, get(want, "greedy_text")->valuestring,
                        strlen(get(want, "greedy_text")->valuestring));
}

static double overlap(const int *have, int n, const cJSON *want)
{
    int both = 0;
    const cJSON *x;
    cJSON_ArrayForEach(x, want) for (int i = 0; i < n; i++) both += have[i] == x->valueint;
    return (double)both / cJSON_GetArraySize(want);
}

static void check_kept_tokens(const struct Case *c, struct Run *run)
{
    const cJSON *all = get(get(c->json, "method"), "kept_context_index"), *entry;
    double sum = 0, least = 1;
    int n = 0;
    cJSON_ArrayForEach(entry, all)
    {
        int chunk, layer;
        assert_int_equal(sscanf(entry->string, "chunk%d.layer%d", &chunk, &layer), 2);
        struct Slot *slot = session_slot(&run->s, chunk);
        assert_non_null(slot);
        for (int h = 0; h < cJSON_GetArraySize(entry); h++, n++) {
            int head = layer * run->s.kv.n_kv_heads + h;
            assert_int_equal(slot->kept[head], cJSON_GetArraySize(cJSON_GetArrayItem(entry, h)));
            double same = overlap(slot->index + (size_t)head * run->s.cap, slot->kept[head],
                                  cJSON_GetArrayItem(entry, h));
            sum += same;
            least = fmin(least, same);
        }
    }
    print_message("# kept tokens: %.2f%% equal over %d heads, %.2f%% in the worst\n", 100 * sum / n,
                  n, 100 * least);
    assert_true(sum / n >= c->tol->kept);
}

static void check_method(const struct Case *c)
{
    struct Run run;
    const cJSON *m = get(c->json, "method"), *all = get(m, "decode_no_kv_eviction"),
                *capped = get(m, "decode_kv_cap");
    run_method(&run, c, CAP_OFF, cJSON_GetArraySize(get(all, "greedy_ids")));
    check_scores(c, &run.r);
    check_answer(all, &run.r);
    run_close(&run);
    run_method(&run, c, get(m, "kv_cap")->valueint, cJSON_GetArraySize(get(capped, "greedy_ids")));
    check_scores(c, &run.r);
    check_kept_tokens(c, &run);
    check_answer(capped, &run.r);
    run_close(&run);
}

/* Real models take minutes under a sanitizer, and the tiny models of test_session cover the same code. */
static bool sanitized(void)
{
#if defined(__SANITIZE_ADDRESS__)
    print_message("SKIP: real models are too slow under a sanitizer\n");
    return true;
#else
    return false;
#endif
}

static void run_case(int golden, int tol)
{
    struct Case c;
    if (sanitized()) skip();
    if (!case_open(&c, golden, tol)) skip();
    check_plain(&c);
    check_method(&c);
    case_close(&c);
}

static void test_smol_int16(void **state)
{
    (void)state;
    run_case(0, 0);
}
static void test_smol_f32(void **state)
{
    (void)state;
    run_case(0, 1);
}
static void test_smol_avx2(void **state)
{
    (void)state;
    run_case(0, 2);
}

static void test_qwen_int16(void **state)
{
    (void)state;
    run_case(1, 0);
}
static void test_qwen_f32(void **state)
{
    (void)state;
    run_case(1, 1);
}

static void test_smol_bf16(void **state)
{
    (void)state;
    run_case(0, 3);
}
static void test_qwen_bf16(void **state)
{
    (void)state;
    run_case(1, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_smol_int16), cmocka_unit_test(test_smol_f32),
        cmocka_unit_test(test_smol_avx2),  cmocka_unit_test(test_qwen_int16),
        cmocka_unit_test(test_qwen_f32),   cmocka_unit_test(test_smol_bf16),
        cmocka_unit_test(test_qwen_bf16),
    };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL) != 0;
}

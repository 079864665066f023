/* test_session_compress.c - SnapKV and PyramidKV: what stays in the cache is what a brute-force selection keeps, the
 * question is read with full attention, and a budget that binds nothing is full attention itself.
 */
#include "tests/unit/session_support.h"

#include "eviction/budget.h"

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Which token of the forward pass each entry of the cache is: the one of the same key. */
static int identify(struct Run *run, const struct Forward *f, int layer, int kv_head, int *token)
{
    struct Session *s = &run->s;
    float k[256], v[256];
    int head = layer * f->kv_heads + kv_head, n = 0;
    const struct PageRef *ref = s->merged.refs + (size_t)head * s->merged.stride;
    for (int r = 0; r < s->merged.n_refs[head]; r++)
        for (int at = 0; at < (int)ref[r].len; at++) {
            must(s->e->be->kv_read(s->e->dev, &s->kv.pool, ref[r], at, k, v));
            int best = -1;
            double least = INFINITY;
            for (int j = 0; j < f->n; j++) {
                const float *key = f->k[layer] + ((size_t)j * f->kv_heads + kv_head) * f->dim;
                double off = distance(k, key, f->dim);
                if (off < least) least = off, best = j;
            }
            assert_true(least < 1e-4);
            token[n++] = best;
        }
    assert_int_equal(n, s->merged.n_tokens[head]);
    return n;
}

/* The paper's selection of one head: sum over the window's rows, pool over the tokens before it, the best stay. */
static void check_head(struct Run *run, const struct Forward *f, int layer, int kv_head, int budget)
{
    struct Session *s = &run->s;
    int observed = s->set.obs_rows < s->prompt.tail.n ? s->set.obs_rows : s->prompt.tail.n,
        n = f->n - observed, reach = s->set.pool / 2;
    double *mass = calloc((size_t)f->n, sizeof *mass), *pooled = calloc((size_t)n, sizeof *pooled),
           *sorted = calloc((size_t)n, sizeof *sorted);
    int *token = calloc((size_t)f->n, sizeof *token);
    brute_mass(f, layer, kv_head, observed, mass);
    for (int j = 0; j < n; j++) {
        for (int i = j - reach; i <= j + reach; i++)
            if (i >= 0 && i < n) pooled[j] = fmax(pooled[j], mass[i]);
        sorted[j] = pooled[j];
    }
    qsort(sorted, (size_t)n, sizeof *sorted, compare_doubles);
    double least = budget ? sorted[n - budget] : INFINITY;
    assert_int_equal(identify(run, f, layer, kv_head, token), budget + observed);
    uint8_t *in = calloc((size_t)n, 1);
    for (int i = 0; i < budget; i++) {
        assert_in_range(token[i], i ? token[i - 1] + 1 : 0, n - 1);
        in[token[i]] = 1;
        if (!(pooled[token[i]] >= least * (1 - 1e-4)))
            fail_msg("layer %d head %d: token %d of %g stays, %g is the least", layer, kv_head,
                     token[i], pooled[token[i]], least);
    }
    for (int j = 0; j < n; j++)
        if (!in[j] && !(pooled[j] <= least * (1 + 1e-4)))
            fail_msg("layer %d head %d: token %d of %g goes, %g stays", layer, kv_head, j,
                     pooled[j], least);
    for (int i = 0; i < observed; i++) assert_int_equal(token[budget + i], n + i);
    int in_context = 0;
    for (int i = 0; i < budget + observed; i++)
        in_context +=
            token[i] >= s->prompt.prefix.n && token[i] < s->prompt.prefix.n + s->prompt.context.n;
    assert_int_equal(run->r.kv_kept[layer * f->kv_heads + kv_head], in_context);
    free(mass);
    free(pooled);
    free(sorted);
    free(token);
    free(in);
}

static void check_selection(struct Engine *e, struct Input in)
{
    struct Run run;
    int budget[LAYERS], total = in.prefix + in.context + in.tail,
                        observed = e->settings.obs_rows < in.tail ? e->settings.obs_rows : in.tail;
    run_open(&run, e, in);
    struct Tokens ids = join(&run.s.prompt, 0, in.context);
    struct Forward f = forward(e, ids);
    must(e->be->reserve(e->dev, &run.s.wave_shape));
    must(session_stages(&run.s, false));
    must(question_pass(&run.s));
    same_logits(e, run.s.logits, f.logits, "the question's own pass");
    if (e->settings.method == METHOD_PYRAMIDKV)
        pyramid_budgets(LAYERS, e->settings.kv_cap - observed, total - observed, budget);
    else
        flat_budgets(LAYERS, e->settings.kv_cap - observed, total - observed, budget);
    for (int l = 0; l < LAYERS; l++)
        for (int h = 0; h < f.kv_heads; h++) check_head(&run, &f, l, h, budget[l]);
    forward_free(&f);
    tokens_free(&ids);
    run_close(&run);
}

static void test_selection(void **state)
{
    (void)state;
    static const struct {
        int tail, obs_rows, pool, cap;
    } cases[] = {{14, 8, 7, 100}, {40, 32, 5, 64}, {14, 32, 7, 200}, {14, 3, 1, 17}, {1, 8, 3, 70}};
    for (int a = 0; a < N_ARCHS; a++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
            e->settings.method = (a + i) % 2 ? METHOD_PYRAMIDKV : METHOD_SNAPKV;
            e->settings.obs_rows = cases[i].obs_rows;
            e->settings.pool = cases[i].pool;
            e->settings.kv_cap = cases[i].cap;
            check_selection(e, (struct Input){9, 400, cases[i].tail, 1});
            engine_close(e);
        }
}

/* The budgets of a run add up to layers * cap, and a pyramid falls. */
static void check_counts(struct Engine *e)
{
    struct Run run;
    int heads = e->model.cfg.n_kv_heads, sum = 0;
    e->settings.method = METHOD_PYRAMIDKV;
    e->settings.kv_cap = 108;
    run_open(&run, e, plain_input);
    must(session_stages(&run.s, false));
    must(question_pass(&run.s));
    /* mean 100 beside 8 observed rows: 5 at the top, 195 at the bottom */
    static const int want[LAYERS] = {195, 100, 5};
    for (int h = 0; h < LAYERS * heads; h++) {
        assert_int_equal(run.s.merged.n_tokens[h], want[h / heads] + 8);
        sum += run.s.merged.n_tokens[h];
    }
    assert_int_equal(sum, LAYERS * heads * 108);
    run_close(&run);
}

static void test_counts(void **state)
{
    (void)state;
    each_engine(check_counts);
}

/* A cap as long as the prompt, or off, is full attention, bit by bit; a smaller one changes what follows only. */
static void check_against_full(struct Engine *e)
{
    struct Settings *set = &e->settings;
    int total = plain_input.prefix + plain_input.context + plain_input.tail;
    set->method = METHOD_FULL;
    struct Outcome full = outcome(e, plain_input), have;
    for (int m = METHOD_SNAPKV; m <= METHOD_PYRAMIDKV; m++) {
        set->method = (enum Method)m;
        for (int i = 0; i < 3; i++) {
            set->kv_cap = i == 0 ? total : i == 1 ? total + 500 : CAP_OFF;
            have = outcome(e, plain_input);
            same_bits(&full, &have);
        }
        set->kv_cap = total - 1;
        have = outcome(e, plain_input);
        assert_memory_equal(full.logits, have.logits, sizeof full.logits);
        assert_true(full.hash == have.hash);
        set->kv_cap = 40;
        have = outcome(e, plain_input);
        assert_memory_equal(full.logits, have.logits, sizeof full.logits);
        assert_memory_not_equal(full.last, have.last, sizeof full.last);
    }
}

static void test_against_full(void **state)
{
    (void)state;
    each_engine(check_against_full);
}

static void test_limits(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Run run = {0};
    struct Prompt p = make_prompt(plain_input);
    e->settings.method = METHOD_SNAPKV;
    e->settings.kv_cap = 8;
    assert_int_equal(session_open(&run.s, e, &no_request, &p, &run.r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "8 observed question rows"));
    run_close(&run);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_against_full),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests_name("session_compress", tests, NULL, NULL) != 0;
}

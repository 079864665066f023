/* test_session_positions.c - self-extend, streaming-llm and rope scaling against a naive transformer in which every pair
 * of row and key gets its positions from the paper's own words; and what must not change: texts that fit, memory.
 */
#include "tests/unit/naive_support.h"

/* ==== Who sees whom ==== */

/* Self-extend, section 3: merged attention with neighbours w and groups of G. */
static bool meet_grouped(const struct View *v, int i, int j, int *q, int *k)
{
    int w = v->neighbours, g = v->group;
    *q = i, *k = j;
    if (i - j < w) return true;
    *q = i / g + (w - w / g);
    *k = j / g;
    return true;
}

/* StreamingLLM, section 3.2: a rolling cache of sinks and recent tokens, numbered by their place in it. */
static bool meet_rolling(const struct View *v, int i, int j, int *q, int *k)
{
    int cache[4096], n = 0;
    if (i + 1 <= v->window) return meet_plain(v, i, j, q, k);
    for (int t = 0; t < v->sinks; t++) cache[n++] = t;
    for (int t = i + 1 - (v->window - v->sinks); t <= i; t++) cache[n++] = t;
    assert_int_equal(n, v->window);
    *q = n - 1;
    for (int t = 0; t < n; t++)
        if (cache[t] == j) return *k = t, true;
    return false;
}

/* The same text with full attention gives something else: the case does test something. */
static void check_differs(struct Engine *e, struct Input in)
{
    enum Method method = e->settings.method;
    struct Outcome have = outcome(e, in);
    e->settings.method = METHOD_FULL;
    struct Outcome full = outcome(e, in);
    e->settings.method = method;
    assert_true(distance(have.logits, full.logits, e->model.cfg.vocab_size) > 1e-3 ||
                distance(have.last, full.last, e->model.cfg.vocab_size) > 1e-3);
}

static void test_oracle(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        e->settings.method = METHOD_FULL;
        check_view(e, (struct Input){9, 200, 14, 1}, &(struct View){.meet = meet_plain, .scale = 1},
                   "full attention");
        engine_close(e);
    }
}

/* ==== Self-extend ==== */

static void check_self_extend(const char *arch, struct Input in, int neighbours, int group)
{
    struct Engine *e = open_engine(arch, PRECISION_F32, 1);
    e->settings.method = METHOD_SELF_EXTEND;
    e->settings.neighbours = neighbours;
    e->settings.group = group;
    check_view(
        e, in,
        &(struct View){.meet = meet_grouped, .neighbours = neighbours, .group = group, .scale = 1},
        "self-extend");
    check_differs(e, in);
    engine_close(e);
}

static void test_self_extend(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        check_self_extend(archs[a], (struct Input){9, 300, 14, 1}, 64, 4);
        check_self_extend(archs[a], (struct Input){0, 250, 1, 2}, 37, 7); /* not whole groups */
        check_self_extend(archs[a], (struct Input){70, 130, 97, 3}, 1, 2);
    }
    check_self_extend("llama", (struct Input){5, 2300, 20, 4}, 300, 5); /* two segments */
}

/* The default precision too, as far as its steps allow. */
static void test_int16(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_INT16, 1 + a % 2);
        struct Input in = {9, 300, 14, 1};
        struct View v = {.scale = 1};
        v.meet = meet_grouped, v.neighbours = e->settings.neighbours = 70;
        v.group = e->settings.group = 3;
        e->settings.method = METHOD_SELF_EXTEND;
        check_view(e, in, &v, "self-extend, int16");
        v.meet = meet_rolling, v.window = e->settings.window = 100, v.sinks = e->settings.sinks;
        e->settings.method = METHOD_STREAMING;
        check_view(e, in, &v, "streaming, int16");
        engine_close(e);
    }
}

/* Worked out by hand: w = 4, G = 2, so far queries stand at floor(i / 2) + 2, far keys at floor(j / 2). */
static void test_self_extend_by_hand(void **state)
{
    (void)state;
    static const int apart[8][8] = {
        {0},
        {1, 0},
        {2, 1, 0},
        {3, 2, 1, 0},
        {4, 3, 2, 1, 0},          /* key 0: 4/2 + 2 - 0 */
        {4, 4, 3, 2, 1, 0},       /* key 0: 2 + 2 - 0, key 1: 2 + 2 - 0 */
        {5, 5, 4, 3, 2, 1, 0},    /* 3 + 2 - 0, - 0, - 1 */
        {5, 5, 4, 4, 3, 2, 1, 0}, /* 3 + 2 - 0, - 0, - 1, - 1 */
    };
    struct View v = {.neighbours = 4, .group = 2};
    struct Session s = {.set.method = METHOD_SELF_EXTEND, .set.neighbours = 4, .set.group = 2};
    for (int i = 0; i < 8; i++)
        for (int j = 0; j <= i; j++) {
            int q, k;
            meet_grouped(&v, i, j, &q, &k);
            assert_int_equal(q - k, apart[i][j]);
        }
    s.plan.window = 6; /* positions 0 to 5: as far as the table goes */
    assert_int_equal(far_plan(&s, 8), PC_OK);
    assert_int_equal(s.plan.n_positions, 6);
    s.set.group = AUTO;
    assert_int_equal(far_plan(&s, 8), PC_OK);
    assert_int_equal(s.plan.group, 2);
    assert_int_equal(far_plan(&s, 9), PC_OK); /* 8/2 + 2 is outside; 8/3 + 4 - 1 is not */
    assert_int_equal(s.plan.group, 3);
}

/* Texts within the neighbours, and groups of one, are full attention. */
static void check_grouped_full(struct Engine *e)
{
    struct Settings *set = &e->settings;
    struct Outcome full, have;
    set->method = METHOD_FULL;
    full = outcome(e, plain_input);
    set->method = METHOD_SELF_EXTEND;
    set->neighbours = 640; /* 9 + 600 + 14 + 12 = 635 */
    set->group = 8;
    have = outcome(e, plain_input);
    same_bits(&full, &have);
    set->neighbours = 635;
    have = outcome(e, plain_input);
    same_bits(&full, &have);
    set->neighbours = 50;
    set->group = 1;
    have = outcome(e, plain_input);
    same_logits(e, have.logits, full.logits, "groups of one");
    same_logits(e, have.last, full.last, "groups of one, last token");
}

static void test_grouped_full(void **state)
{
    (void)state;
    each_engine(check_grouped_full);
}

/* ==== Streaming ==== */

static void check_streaming(const char *arch, struct Input in, int window, int sinks)
{
    struct Engine *e = open_engine(arch, PRECISION_F32, 1);
    e->settings.method = METHOD_STREAMING;
    e->settings.window = window;
    e->settings.sinks = sinks;
    check_view(e, in,
               &(struct View){.meet = meet_rolling, .window = window, .sinks = sinks, .scale = 1},
               "streaming");
    check_differs(e, in);
    engine_close(e);
}

static void test_streaming(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        check_streaming(archs[a], (struct Input){9, 400, 14, 1}, 100, 4);
        check_streaming(archs[a], (struct Input){0, 250, 1, 2}, 64, 0);
        check_streaming(archs[a], (struct Input){70, 330, 97, 3}, 201, 70); /* sinks of two pages */
        check_streaming(archs[a], (struct Input){3, 300, 150, 5}, 128,
                        64); /* a question longer than it */
        check_streaming(archs[a], (struct Input){3, 90, 14, 5}, 109, 1); /* full while it answers */
    }
    check_streaming("llama", (struct Input){5, 2300, 20, 4}, 130, 4); /* two segments */
    check_streaming("qwen2", (struct Input){5, 4200, 20, 4}, 77, 3);
}

static void check_streaming_full(struct Engine *e)
{
    struct Settings *set = &e->settings;
    struct Outcome full, have;
    set->method = METHOD_FULL;
    full = outcome(e, plain_input);
    set->method = METHOD_STREAMING;
    set->window = 635;
    have = outcome(e, plain_input);
    same_bits(&full, &have);
    set->window = 634; /* the last answer token pushes the first one out */
    have = outcome(e, plain_input);
    same_logits(e, have.logits, full.logits, "streaming what fits");
}

static void test_streaming_full(void **state)
{
    (void)state;
    each_engine(check_streaming_full);
}

/* Memory as planned, and the same for any length but for the text itself. */
static void test_flat_memory(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    size_t planned[2], used[2];
    static const int lengths[2] = {6000, 60000};
    e->settings.method = METHOD_STREAMING;
    e->settings.window = 300;
    for (int i = 0; i < 2; i++) {
        struct Run run;
        struct Prompt p = make_prompt((struct Input){9, lengths[i], 14, 1});
        static const struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
        must(e->be->reserve(e->dev, &least)); /* not the scratch of the run before */
        size_t before = mem_in_use();
        mem_peak_reset();
        run_open_prompt(&run, e, p);
        must(session_stages(&run.s, true));
        planned[i] = run.s.plan.peak_bytes;
        used[i] = mem_peak() - before;
        for (int h = 0; h < run.s.merged.n_heads; h++)
            assert_in_range(run.s.merged.n_tokens[h], 300 - 1, 300 + PAGE_TOKENS);
        assert_int_equal(run.s.plan.n_positions, 300);
        run_close(&run);
    }
    print_message("# planned %zu and %zu, used %zu and %zu\n", planned[0], planned[1], used[0],
                  used[1]);
    assert_true(planned[1] - planned[0] <= (size_t)16 * 54000);
    assert_true(used[1] - used[0] <= 4096);
    engine_close(e);
}

static void test_refusals(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Run run = {0};
    struct Prompt p = make_prompt(plain_input);
    e->settings.method = METHOD_STREAMING;
    e->settings.window = 100;
    e->settings.sinks = 100;
    assert_int_equal(session_open(&run.s, e, &no_request, &p, &run.r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "--sinks"));
    run_close(&run);
    p = make_prompt(plain_input);
    e->settings.method = METHOD_SELF_EXTEND;
    e->settings.neighbours = 100;
    assert_int_equal(session_open(&run.s, e, &no_request, &p, &run.r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "--neighbours"));
    run_close(&run);
    p = make_prompt(plain_input);
    e->settings.method = METHOD_FULL;
    e->settings.rope_scaling = SCALING_YARN;
    strcpy(e->model.cfg.rope_scaling, "linear");
    assert_int_equal(session_open(&run.s, e, &no_request, &p, &run.r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "linear"));
    run_close(&run);
    engine_close(e);
}

/* ==== Rope scaling ==== */

/* Frequencies by the formulas, apart from the engine's code. */
static void stretched(const struct ModelConfig *m, enum Scaling scaling, double s, double *freq)
{
    double d = m->rope_dim, turn = 2 * 3.14159265358979323846;
    double low = floor(d * log(m->train_len / (32 * turn)) / (2 * log(m->rope_theta))),
           high = ceil(d * log(m->train_len / (1 * turn)) / (2 * log(m->rope_theta)));
    for (int i = 0; i < m->rope_dim / 2; i++) {
        double plain = pow(m->rope_theta, -2 * i / d);
        double ramp = fmin(fmax((i - fmax(low, 0)) / (high - fmax(low, 0)), 0), 1);
        freq[i] = scaling == SCALING_NTK ? pow(m->rope_theta * pow(s, d / (d - 2)), -2 * i / d)
                                         : plain * (1 - ramp) + plain / s * ramp;
    }
}

static void check_scaling(struct Engine *e, enum Scaling scaling, float factor)
{
    struct Input in = {9, 1200, 14, 1}; /* 1235 positions with the answer, trained on 1024 */
    double freq[64], s = factor > 0 ? factor : 1235 / 1024.0;
    struct Settings *set = &e->settings;
    set->method = METHOD_FULL;
    set->rope_scaling = scaling;
    set->rope_factor = factor;
    stretched(&e->model.cfg, scaling, s, freq);
    check_view(e, in,
               &(struct View){.meet = meet_plain,
                              .freq = freq,
                              .scale = scaling == SCALING_YARN ? 0.1 * log(s) + 1 : 1},
               setting_word("rope_scaling", (int)scaling));
    struct Outcome have = outcome(e, in);
    set->rope_scaling = SCALING_AUTO;
    set->rope_factor = AUTO;
    struct Outcome plain = outcome(e, in);
    assert_true(distance(have.logits, plain.logits, e->model.cfg.vocab_size) > 1e-3);
    /* what fits the trained context is left alone */
    plain = outcome(e, plain_input);
    set->rope_scaling = scaling;
    have = outcome(e, plain_input);
    same_bits(&plain, &have);
}

static void test_rope_scaling(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        check_scaling(e, SCALING_NTK, AUTO);
        check_scaling(e, SCALING_YARN, AUTO);
        check_scaling(e, a % 2 ? SCALING_NTK : SCALING_YARN, 4);
        engine_close(e);
    }
}

/* Stretching and another method at once: each does its own part. */
static void test_together(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Input in = {9, 300, 14, 1};
    double freq[64];
    stretched(&e->model.cfg, SCALING_YARN, 3, freq);
    e->settings.rope_scaling = SCALING_YARN;
    e->settings.rope_factor = 3;
    struct View v = {.freq = freq, .scale = 0.1 * log(3) + 1};
    v.meet = meet_grouped, v.neighbours = e->settings.neighbours = 64;
    v.group = e->settings.group = 4;
    e->settings.method = METHOD_SELF_EXTEND;
    check_view(e, in, &v, "self-extend on yarn");
    v.meet = meet_rolling, v.window = e->settings.window = 100, v.sinks = e->settings.sinks;
    e->settings.method = METHOD_STREAMING;
    check_view(e, in, &v, "streaming on yarn");
    engine_close(e);
}

/* Chunks stay within the trained context, so nothing is stretched; a longer window stretches. */
static void test_chunks_and_scaling(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Run run;
    struct Outcome plain = outcome(e, plain_input), have;
    e->settings.rope_scaling = SCALING_NTK;
    have = outcome(e, plain_input);
    same_bits(&plain, &have);
    e->settings.window = 2048;
    e->settings.chunk = 1500;
    run_open(&run, e, (struct Input){9, 3000, 14, 1});
    assert_int_equal(run.s.plan.n_positions, run.s.plan.question_pos + 14 + ANSWER);
    assert_true(run.s.plan.rope_factor == run.s.plan.n_positions / 1024.0);
    run_close(&run);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle),         cmocka_unit_test(test_self_extend),
        cmocka_unit_test(test_int16),          cmocka_unit_test(test_self_extend_by_hand),
        cmocka_unit_test(test_grouped_full),   cmocka_unit_test(test_streaming),
        cmocka_unit_test(test_streaming_full), cmocka_unit_test(test_flat_memory),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_rope_scaling),
        cmocka_unit_test(test_together),       cmocka_unit_test(test_chunks_and_scaling),
    };
    return cmocka_run_group_tests_name("session_positions", tests, NULL, NULL) != 0;
}

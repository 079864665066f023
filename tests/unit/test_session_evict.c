/* test_session_evict.c - which tokens a capacity and the rules of calibration leave, against attention masses by
 * brute force and against caches cut by hand, on seeded tiny models of every architecture.
 */
#include "tests/unit/session_support.h"

/* Drops nothing, but makes the engine keep lists of what it kept. */
static const struct CalibRule idle_rule = {CLASS_SINK, 0, LAYERS - 1, 1, 1, 1, 1};

/* ==== Importance: which tokens stay ==== */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The forward pass of chunk c as stage 1 sees it. */
static struct Forward forward_chunk(struct Run *run, int c)
{
    struct Session *s = &run->s;
    struct Tokens ids = join(&s->prompt, s->chunks[c].begin, s->chunks[c].end);
    struct Forward f = forward(s->e, ids);
    tokens_free(&ids);
    must(s->e->be->reserve(s->e->dev, &s->answer_shape));
    return f;
}

/* Of one head: the tokens kept are those whose pooled importance is at least the cap-th highest. */
static void check_kept(struct Run *run, const struct Forward *f, int c, int layer, int kv_head)
{
    struct Session *s = &run->s;
    int n = s->chunks[c].end - s->chunks[c].begin, p = s->prompt.prefix.n, q = s->prompt.tail.n,
        reach = s->set.pool / 2;
    int rows = s->set.obs_rows < q ? s->set.obs_rows : q, head = layer * f->kv_heads + kv_head;
    double *mass = calloc((size_t)f->n, sizeof *mass), *pooled = calloc((size_t)n, sizeof *pooled),
           *sorted = calloc((size_t)n, sizeof *sorted);
    brute_mass(f, layer, kv_head, rows, mass);
    for (int j = 0; j < n; j++) {
        for (int i = j - reach; i <= j + reach; i++)
            if (i >= 0 && i < n) pooled[j] = fmax(pooled[j], mass[p + i]);
        sorted[j] = pooled[j];
    }
    qsort(sorted, (size_t)n, sizeof *sorted, compare_doubles);
    const struct Slot *slot = session_slot(s, c);
    int want = n < s->cap ? n : s->cap;
    double least = sorted[n - want];
    assert_non_null(slot);
    assert_int_equal(slot->kept[head], want);
    uint8_t *in = calloc((size_t)n, 1);
    for (int i = 0; i < want; i++) {
        int j = slot->index[(size_t)head * s->cap + i];
        assert_in_range(j, i ? slot->index[(size_t)head * s->cap + i - 1] + 1 : 0, n - 1);
        in[j] = 1;
        if (!(pooled[j] >= least * (1 - 1e-4)))
            fail_msg("chunk %d layer %d head %d: token %d of importance %g stays, %g is the least",
                     c, layer, kv_head, j, pooled[j], least);
    }
    for (int j = 0; j < n; j++)
        if (!in[j] && !(pooled[j] <= least * (1 + 1e-4)))
            fail_msg("chunk %d layer %d head %d: token %d of importance %g goes, %g stays", c,
                     layer, kv_head, j, pooled[j], least);
    free(mass);
    free(pooled);
    free(sorted);
    free(in);
}

static void check_counts(const struct Run *run)
{
    const struct Session *s = &run->s;
    for (int h = 0; h < s->merged.n_heads; h++) {
        int64_t in = 0, kept = 0;
        for (int i = 0; i < s->n_slots; i++) {
            const struct Slot *slot = &s->slots[i];
            if (slot->chunk < 0) continue;
            in += s->chunks[slot->chunk].end - s->chunks[slot->chunk].begin;
            kept += slot->kept[h];
        }
        assert_int_equal(run->r.kv_in[h], in);
        assert_int_equal(run->r.kv_kept[h], kept);
    }
}

/* Tokens of the merged cache: the prefix, what the chunks kept, and what came after. */
static void check_merged(const struct Run *run, int after)
{
    for (int h = 0; h < run->s.merged.n_heads; h++)
        assert_int_equal(run->s.merged.n_tokens[h],
                         run->s.prompt.prefix.n + run->r.kv_kept[h] + after);
}

static void test_kv_cap(void **state)
{
    (void)state;
    static const struct {
        int tail, obs_rows, pool, cap;
    } cases[] = {{14, 8, 7, 40}, {14, 3, 1, 17}, {5, 8, 7, 40}, {1, 8, 3, 64}, {70, 60, 31, 100}};
    for (int a = 0; a < N_ARCHS; a++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
            struct Run run;
            e->settings.keep = 3;
            e->settings.obs_rows = cases[i].obs_rows;
            e->settings.pool = cases[i].pool;
            e->settings.kv_cap = cases[i].cap;
            run_open(&run, e, (struct Input){9, 600, cases[i].tail, 1});
            must(session_stages(&run.s, false));
            check_counts(&run);
            check_merged(&run, 0);
            for (int c = 0; c < run.s.plan.n_chunks; c++) {
                if (!session_slot(&run.s, c)) continue;
                struct Forward f = forward_chunk(&run, c);
                for (int l = 0; l < LAYERS; l++)
                    for (int h = 0; h < f.kv_heads; h++) check_kept(&run, &f, c, l, h);
                forward_free(&f);
            }
            run_close(&run);
            engine_close(e);
        }
}

/* ==== Calibration ==== */

/* lambda 0 drops a class as a whole, in its layers only, prefix and question never. */
static void check_whole_class(struct Engine *e, int stage)
{
    for (int c = CLASS_SINK; c <= CLASS_RECENT; c++) {
        struct Run run;
        struct Outcome o;
        int region = 20;
        e->settings.n_calib = 0;
        e->settings.keep = 2;
        add_rule(e, (struct CalibRule){c, 1, 1, 0, region, 2, stage});
        run_open(&run, e, plain_input);
        must(session_stages(&run.s, false));
        finish(&run, &o);
        check_counts(&run);
        check_merged(&run, plain_input.tail + (o.n_ids < ANSWER ? o.n_ids : ANSWER - 1));
        for (int i = 0; i < run.s.n_slots; i++) {
            const struct Slot *slot = &run.s.slots[i];
            if (slot->chunk < 0) continue;
            int n = run.s.chunks[slot->chunk].end - run.s.chunks[slot->chunk].begin;
            for (int h = 0; h < run.s.merged.n_heads; h++) {
                int kept = 0, layer = h / e->model.cfg.n_kv_heads;
                const int *index = slot->index + (size_t)h * run.s.cap;
                for (int j = 0; j < n; j++) {
                    if (layer == 1 && (int)calib_class(j, n, region) == c) continue;
                    assert_int_equal(index[kept++], j);
                }
                assert_int_equal(slot->kept[h], kept);
            }
        }
        run_close(&run);
    }
}

static void test_calibration_whole_class(void **state)
{
    (void)state;
    for (int stage = 1; stage <= 2; stage++)
        for (int a = 0; a < N_ARCHS; a++) {
            struct Engine *e = open_engine(archs[a], a == 1 ? PRECISION_INT16 : PRECISION_F32, 1);
            check_whole_class(e, stage);
            engine_close(e);
        }
}

/* A threshold in the widest gap near the middle of what a class holds, so that rounding decides nothing. */
static double middle_gap(double *x, int n)
{
    int best = n / 2;
    qsort(x, (size_t)n, sizeof *x, compare_doubles);
    for (int i = n / 4; i + 1 < n * 3 / 4; i++)
        if (x[i + 1] / x[i] > x[best + 1] / x[best]) best = i;
    return sqrt(x[best] * x[best + 1]);
}

enum { HEADS_MAX = 16, CHUNK_MAX = 700 };

/* Stage-1 rule at one layer against attention of a forward pass; rule.lambda is chosen here. */
static void check_stage_one(struct Engine *e, struct Input in, struct CalibRule rule, int cap)
{
    struct Run run;
    static double mean[4][HEADS_MAX][CHUNK_MAX], pool[4 * HEADS_MAX * CHUNK_MAX];
    int n_pool = 0, rows = rule.rows == 0 || rule.rows > in.tail ? in.tail : rule.rows,
        layer = rule.layer_lo;
    int kv_heads = e->model.cfg.n_kv_heads, group = e->model.cfg.n_heads / kv_heads;
    e->settings.n_calib = 0;
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = CAP_OFF;
    add_rule(e, idle_rule);
    run_open(&run, e, in);
    int n_chunks = run.s.plan.n_chunks;
    assert_in_range(n_chunks, 1, 4);
    for (int c = 0; c < n_chunks; c++) {
        struct Forward f = forward_chunk(&run, c);
        double mass[CHUNK_MAX];
        int n = run.s.chunks[c].end - run.s.chunks[c].begin;
        assert_true(f.n <= CHUNK_MAX);
        for (int h = 0; h < kv_heads; h++) {
            brute_mass(&f, layer, h, rows, mass);
            for (int j = 0; j < n; j++) {
                mean[c][h][j] = mass[in.prefix + j] / (rows * group);
                if (calib_class(j, n, rule.region) == rule.token_class)
                    pool[n_pool++] = mean[c][h][j];
            }
        }
        forward_free(&f);
    }
    run_close(&run);
    rule.lambda = (float)middle_gap(pool, n_pool);
    e->settings.n_calib = 0;
    e->settings.kv_cap = cap;
    add_rule(e, rule);
    run_open(&run, e, in);
    must(session_stages(&run.s, false));
    check_counts(&run);
    check_merged(&run, 0);
    int dropped = 0, stay = 0;
    for (int c = 0; c < n_chunks; c++)
        for (int h = 0; h < kv_heads; h++) {
            const struct Slot *slot = session_slot(&run.s, c);
            int head = layer * kv_heads + h, kept = 0,
                n = run.s.chunks[c].end - run.s.chunks[c].begin;
            const int *index = slot->index + (size_t)head * run.s.cap;
            for (int j = 0; j < n; j++) {
                bool drop = calib_class(j, n, rule.region) == rule.token_class &&
                            mean[c][h][j] > rule.lambda;
                dropped += drop;
                stay += !drop;
                if (cap == CAP_OFF && !drop) assert_int_equal(index[kept++], j);
                for (int i = 0; cap != CAP_OFF && drop && i < slot->kept[head]; i++)
                    assert_int_not_equal(index[i], j);
                if (cap != CAP_OFF && !drop) kept++;
            }
            assert_int_equal(slot->kept[head], cap != CAP_OFF && kept > cap ? cap : kept);
        }
    assert_true(dropped > n_pool / 8 && stay > 0);
    run_close(&run);
}

static void test_calibration_stage_one(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        struct Input in = {9, 400, 14, 1}, brief = {9, 400, 3, 2};
        check_stage_one(e, in, (struct CalibRule){CLASS_SINK, 0, 0, 0, 40, 1, 1}, CAP_OFF);
        check_stage_one(e, in, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 4, 1}, CAP_OFF);
        check_stage_one(e, in, (struct CalibRule){CLASS_RECENT, 2, 2, 0, 50, 0, 1}, CAP_OFF);
        check_stage_one(e, in, (struct CalibRule){CLASS_MIDDLE, 2, 2, 0, 10, 0, 1}, 70);
        check_stage_one(e, brief, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 16, 1},
                        CAP_OFF); /* more rows than there are */
        engine_close(e);
    }
}

/* ---- Stage 2 ---- */

/* The softmax of question rows over a head's merged tokens and the question itself: the sums over the last rows
 * and the group, for the merged tokens. */
static void merged_mass(struct Session *s, const struct AttnArgs *args, int layer, int kv_head,
                        int rows, double *mass)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int head = layer * m->n_kv_heads + kv_head, past = s->merged.n_tokens[head],
        q_rows = s->prompt.tail.n, dim = m->head_dim;
    int group = m->n_heads / m->n_kv_heads, n = past + q_rows, at = 0;
    float *keys = calloc((size_t)n * dim, sizeof *keys), *v = calloc((size_t)dim, sizeof *v),
          *bias = calloc((size_t)n, sizeof *bias);
    double *p = calloc((size_t)n, sizeof *p);
    for (int i = 0; i < s->merged.n_refs[head]; i++) {
        struct PageRef ref = s->merged.refs[(size_t)head * s->merged.stride + i];
        for (int t = 0; t < (int)ref.len; t++, at++) {
            must(s->e->be->kv_read(s->e->dev, &s->kv.pool, ref, t, keys + at * dim, v));
            bias[at] = ref.bias;
        }
    }
    for (int i = 0; i < q_rows; i++)
        memcpy(keys + (past + i) * dim,
               (const float *)args->k + ((size_t)i * m->n_kv_heads + kv_head) * dim,
               sizeof *keys * (size_t)dim);
    for (int j = 0; j < past; j++) mass[j] = 0;
    for (int g = kv_head * group; g < (kv_head + 1) * group; g++)
        for (int r = q_rows - rows; r < q_rows; r++) {
            const float *q = (const float *)args->q + ((size_t)r * m->n_heads + g) * dim;
            double top = -INFINITY, sum = 0;
            for (int j = 0; j <= past + r; j++) {
                p[j] = bias[j] * sqrt(dim);
                for (int d = 0; d < dim; d++) p[j] += (double)q[d] * keys[j * dim + d];
                p[j] /= sqrt(dim);
                top = fmax(top, p[j]);
            }
            for (int j = 0; j <= past + r; j++) sum += p[j] = exp(p[j] - top);
            for (int j = 0; j < past; j++) mass[j] += p[j] / sum;
        }
    free(keys);
    free(v);
    free(bias);
    free(p);
}

/* The question's pass by hand; what each layer's rows look at goes to look(). */
static void question_by_hand(struct Session *s,
                             void (*look)(struct Session *s, const struct AttnArgs *args, int layer,
                                          void *user),
                             void *user)
{
    int q = s->prompt.tail.n, begin[2] = {0, q}, *pos = calloc((size_t)q, sizeof *pos);
    for (int i = 0; i < q; i++) pos[i] = s->plan.question_pos + i;
    struct Batch b = {.tokens = s->prompt.tail.ids,
                      .pos = pos,
                      .seq_begin = begin,
                      .n_seqs = 1,
                      .pool = &s->kv.pool,
                      .past = &s->merged};
    must(tf_begin(&s->tf, &b));
    for (int l = 0; l < LAYERS; l++) {
        struct AttnArgs args;
        must(tf_attend(&s->tf, &b, l, 0, &args));
        look(s, &args, l, user);
        struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, q};
        must(kv_append_all(&s->kv, &s->merged, l, &rows, &s->writes));
        must(kv_flush(&s->kv, &s->writes));
        must(tf_ffn(&s->tf, l, q));
    }
    free(pos);
}

struct Look {
    struct CalibRule rule;
    double mean[HEADS_MAX]
               [4 * CHUNK_MAX]; /* of the merged tokens at the rule's layer, prefix first */
    double pool[HEADS_MAX * 4 * CHUNK_MAX];
    int n_pool;
};

static void note_means(struct Session *s, const struct AttnArgs *args, int layer, void *user)
{
    struct Look *look = user;
    const struct ModelConfig *m = &s->e->model.cfg;
    int q = s->prompt.tail.n,
        rows = look->rule.rows == 0 || look->rule.rows > q ? q : look->rule.rows;
    if (layer != look->rule.layer_lo) return;
    for (int h = 0; h < m->n_kv_heads; h++) {
        int head = layer * m->n_kv_heads + h, at = s->prompt.prefix.n;
        assert_true(s->merged.n_tokens[head] <= 4 * CHUNK_MAX);
        merged_mass(s, args, layer, h, rows, look->mean[h]);
        for (int j = 0; j < s->merged.n_tokens[head]; j++)
            look->mean[h][j] /= rows * (m->n_heads / m->n_kv_heads);
        for (int c = 0; c < s->plan.n_chunks; c++) {
            const struct Slot *slot = session_slot(s, c);
            if (!slot) continue;
            int n = s->chunks[c].end - s->chunks[c].begin;
            for (int j = 0; j < slot->kept[head]; j++, at++)
                if (calib_class(slot->index[(size_t)head * s->cap + j], n, look->rule.region) ==
                    look->rule.token_class)
                    look->pool[look->n_pool++] = look->mean[h][at];
        }
    }
}

/* The flags that the rule sets on one head's merged tokens, from `by_hand`, where nothing was dropped. */
static int want_flags(const struct Run *by_hand, const struct Look *look, int h, uint8_t *keep)
{
    struct Session *s = (struct Session *)&by_hand->s;
    int head = look->rule.layer_lo * s->e->model.cfg.n_kv_heads + h, at = s->prompt.prefix.n,
        dropped = 0;
    memset(keep, 1, 4 * CHUNK_MAX);
    for (int c = 0; c < s->plan.n_chunks; c++) {
        const struct Slot *slot = session_slot(s, c);
        if (!slot) continue;
        int n = s->chunks[c].end - s->chunks[c].begin;
        for (int j = 0; j < slot->kept[head]; j++, at++) {
            if (calib_class(slot->index[(size_t)head * s->cap + j], n, look->rule.region) !=
                look->rule.token_class)
                continue;
            keep[at] = !(look->mean[h][at] > look->rule.lambda);
            dropped += !keep[at];
        }
    }
    return dropped;
}

/* What is left of each chunk in a head, in both runs. */
static void compare_slots(const struct Run *by_rule, const struct Run *by_hand, int head,
                          const uint8_t *keep)
{
    int at = by_hand->s.prompt.prefix.n;
    for (int c = 0; c < by_hand->s.plan.n_chunks; c++) {
        const struct Slot *have = session_slot((struct Session *)&by_rule->s, c),
                          *old = session_slot((struct Session *)&by_hand->s, c);
        assert_int_equal(have != NULL, old != NULL);
        if (!have) continue;
        int kept = 0;
        size_t first = (size_t)head * by_hand->s.cap;
        for (int j = 0; j < old->kept[head]; j++, at++)
            if (keep[at]) assert_int_equal(have->index[first + kept++], old->index[first + j]);
        assert_int_equal(have->kept[head], kept);
    }
}

/* Two rules of one layer judge by the same attention: which of them comes first does not matter. */
static void check_order(struct Engine *e, struct CalibRule rule)
{
    struct CalibRule other = rule;
    struct Outcome o[2];
    other.token_class = rule.token_class == CLASS_RECENT ? CLASS_SINK : CLASS_RECENT;
    for (int i = 0; i < 2; i++) {
        e->settings.n_calib = 0;
        add_rule(e, i ? other : rule);
        add_rule(e, i ? rule : other);
        o[i] = outcome(e, plain_input);
    }
    assert_memory_equal(&o[1], &o[0], sizeof o[0]);
}

/* Two runs of the same request: one with the rule, one without whose merged cache is cut by hand afterwards. The
 * answer must come out the same to the bit, whatever lengths the heads have. */
static void check_stage_two(struct Engine *e, struct CalibRule rule, int cap)
{
    struct Run hand, by_rule;
    struct Outcome o;
    struct Look *look = calloc(1, sizeof *look);
    static uint8_t keep[4 * CHUNK_MAX];
    int kv_heads = e->model.cfg.n_kv_heads, dropped = 0, last = plain_input.tail - 1;
    look->rule = rule;
    e->settings.n_calib = 0;
    e->settings.keep = 3;
    e->settings.kv_cap = cap;
    add_rule(e, idle_rule);
    run_open(&hand, e, plain_input);
    must(session_stages(&hand.s, false));
    question_by_hand(&hand.s, note_means, look);
    must(e->be->logits(e->dev, hand.s.tf.x, &last, 1, hand.s.logits));
    look->rule.lambda = (float)middle_gap(look->pool, look->n_pool);

    e->settings.n_calib = 0;
    add_rule(e, look->rule);
    run_open(&by_rule, e, plain_input);
    must(session_stages(&by_rule.s, false));
    must(question_pass(&by_rule.s));
    assert_memory_equal(by_rule.s.logits, hand.s.logits,
                        sizeof(float) * (size_t)e->model.cfg.vocab_size);
    check_counts(&by_rule);
    check_merged(&by_rule, plain_input.tail);
    for (int h = 0; h < kv_heads; h++) {
        int head = rule.layer_lo * kv_heads + h;
        dropped += want_flags(&hand, look, h, keep);
        compare_slots(&by_rule, &hand, head, keep);
        must(kv_filter(&hand.s.kv, &hand.s.merged, rule.layer_lo, h, keep));
    }
    assert_true(dropped > look->n_pool / 8);
    memcpy(by_rule.s.logits, hand.s.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    /* the device's scratch is the last session's, of the same shape */
    must(decode_answer(&by_rule.s));
    must(decode_answer(&hand.s));
    assert_int_equal(by_rule.r.n_ids, hand.r.n_ids);
    assert_memory_equal(by_rule.r.ids, hand.r.ids, sizeof(int) * (size_t)hand.r.n_ids);
    same_logits(e, by_rule.s.logits, hand.s.logits, "decoding over what a rule left");
    run_close(&by_rule);
    run_close(&hand);
    e->settings.n_calib = 0;
    add_rule(e, look->rule);
    o = outcome(e, plain_input);
    assert_true(o.n_ids > 0);
    add_rule(e, look->rule);
    struct Outcome twice = outcome(e, plain_input);
    assert_memory_equal(&twice, &o, sizeof o);
    check_order(e, look->rule);
    free(look);
}

static void test_calibration_stage_two(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        check_stage_two(e, (struct CalibRule){CLASS_SINK, 0, 0, 0, 40, 1, 2}, CAP_OFF);
        check_stage_two(e, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 4, 2}, CAP_OFF);
        check_stage_two(e, (struct CalibRule){CLASS_RECENT, 2, 2, 0, 50, 0, 2}, 80);
        e->settings.prefix_copies = 4;
        e->settings.chunk_bias = 30;
        check_stage_two(e, (struct CalibRule){CLASS_MIDDLE, 1, 1, 0, 10, 100, 2}, 60);
        engine_close(e);
    }
}

/* Rules of stage 2 have nothing to act on without chunks. */
static void test_calibration_without_chunks(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Input in = {9, 3000, 14, 1};
    e->settings.method = METHOD_FULL;
    struct Outcome want = outcome(e, in);
    add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 2, 0, 10, 0, 2});
    add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 2, 0, 10, 0, 1});
    struct Outcome have = outcome(e, in);
    same_bits(&want, &have);
    struct Run run;
    run_open(&run, e, in);
    assert_null(run.s.mass); /* nobody asks, and the device has no room for it */
    run_close(&run);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_cap),
        cmocka_unit_test(test_calibration_whole_class),
        cmocka_unit_test(test_calibration_stage_one),
        cmocka_unit_test(test_calibration_stage_two),
        cmocka_unit_test(test_calibration_without_chunks),
    };
    return cmocka_run_group_tests_name("session_evict", tests, NULL, NULL) != 0;
}

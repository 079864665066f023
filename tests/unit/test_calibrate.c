/* test_calibrate.c - studies of tiny models' heads: ablation against whole sequences and against one head at a time,
 * attention scores against brute force, both regimes, bytes, refusals and faults. Choices: test_calibrate_choose.c.
 */
#include "calibrate_support.h"

static double mean_kl(const struct Study *st)
{
    double sum = 0;
    for (int i = 0; i < st->reading.sample.n_rows; i++) sum += st->reading.kl[i];
    return sum / st->reading.sample.n_rows;
}

/* ==== Samples ==== */

/* Spelled needles and answers are the same tokens, own ones have room; a sample is as long as asked; rows point at the
 * tokens they predict. */
static void check_samples(struct Engine *e)
{
    struct StudyOptions o = options();
    o.lens[1] = 900;
    o.n_lens = 2;
    struct Study st = open_study(e, o);
    for (int i = 0; i < 4; i++) {
        struct StudySample s;
        must(study_sample_make(&st, &(struct SamplePlace){SAMPLE_PASSKEYS, i > 1, i}, &s));
        int *ids = join(&s.prompt, 0, s.prompt.context.n).ids, row = 0;
        int n = s.prompt.prefix.n + s.prompt.context.n + s.prompt.tail.n;
        assert_int_equal(n, i % 2 ? 900 : LEN);
        for (int k = 0; k < s.n_asks; k++) {
            int len = s.needle[k].end - s.needle[k].begin;
            assert_true(len > 6 && s.needle[k].end <= n - s.prompt.tail.n);
            assert_int_equal(s.ask_begin[k + 1], s.answer[k].end);
            assert_int_equal(s.own[k], k % 2);
            assert_int_equal(s.answer[k].end - s.answer[k].begin, s.own[k] ? OWN_TOKENS : len);
            if (s.own[k]) continue;
            assert_memory_equal(ids + s.needle[k].begin, s.prompt.tail.ids + s.answer[k].begin,
                                sizeof *ids * (size_t)len);
            for (int t = s.answer[k].begin; t < s.answer[k].end; t++, row++) {
                assert_int_equal(s.rows[row], t - 1);
                assert_int_equal(s.targets[row], s.prompt.tail.ids[t]);
                assert_int_equal(s.ask[row], k);
            }
        }
        assert_true(row == s.n_rows && row == s.n_spelled);
        assert_int_equal(s.max_rows, row + OWN_TOKENS);
        mem_free(ids);
        study_sample_free(&s);
    }
    study_close(&st);
}

static void test_samples(void **state)
{
    (void)state;
    each_engine(check_samples);
}

/* ==== Ablation ==== */

/* The text and one ask of its own behind it. */
static struct Tokens one_ask(const struct Prompt *p, const struct StudySample *s, int ask)
{
    struct Tokens ids = join(p, 0, p->context.n);
    int past = ids.n - p->tail.n, n = s->ask_begin[ask + 1] - s->ask_begin[ask];
    memmove(ids.ids + past, ids.ids + past + s->ask_begin[ask], sizeof *ids.ids * (size_t)n);
    ids.n = past + n;
    return ids;
}

/* Logits of n rows idx of the whole sequence in one pass, the heads not in keep confined for rows from past on. */
static void whole_rows(struct Engine *e, const struct Tokens *ids, int past, const uint8_t *keep,
                       const int *idx, int n, float *logits)
{
    const struct ModelConfig *m = &e->model.cfg;
    int begin[2] = {0, ids->n}, *pos = calloc((size_t)ids->n, sizeof *pos),
        *window = calloc((size_t)m->n_layers * m->n_heads, sizeof *window),
        group = m->n_heads / m->n_kv_heads;
    struct BatchShape shape = {.rows = ids->n, .seqs = 1, .keys = ids->n, .head_rows = n};
    struct HeadMasks masks = {window, SINK};
    size_t row = sizeof(float) * (size_t)m->n_heads * m->head_dim;
    struct Transformer tf;
    for (int i = 0; i < ids->n; i++) pos[i] = i;
    for (int q = 0; q < m->n_layers * m->n_heads; q++) window[q] = keep[q / group] ? 0 : RECENT;
    must(tf_open(&tf, e->be, e->dev, &e->model, ids->n));
    must(e->be->reserve(e->dev, &shape));
    struct Batch b = {.tokens = ids->ids, .pos = pos, .seq_begin = begin, .n_seqs = 1};
    must(tf_begin(&tf, &b));
    for (int l = 0; l < m->n_layers; l++) {
        struct AttnArgs args;
        must(tf_attend(&tf, &b, l, 0, &args));
        void *free_rows = copy_of(tf.out, (size_t)past * row / sizeof(float));
        args.masks = &masks;
        must(e->be->attention(e->dev, &args));
        memcpy(tf.out, free_rows, (size_t)past * row);
        free(free_rows);
        must(tf_ffn(&tf, l, ids->n));
    }
    must(e->be->logits(e->dev, tf.x, idx, n, logits));
    tf_close(&tf);
    free(pos);
    free(window);
}

/* Every ask's rows in the sample's order. */
static float *whole_logits(struct Study *st, const uint8_t *keep)
{
    const struct Prompt *p = &st->reading.session.prompt;
    const struct StudySample *s = &st->reading.sample;
    size_t vocab = (size_t)st->e->model.cfg.vocab_size;
    float *logits = calloc((size_t)s->n_rows * vocab, sizeof *logits);
    int *idx = calloc((size_t)s->n_rows, sizeof *idx);
    for (int from = 0, end; from < s->n_rows; from = end) {
        int ask = s->ask[from], past = st->reading.n_keys;
        for (end = from; end < s->n_rows && s->ask[end] == ask; end++)
            idx[end - from] = past + s->rows[end] - s->ask_begin[ask];
        struct Tokens ids = one_ask(p, s, ask);
        whole_rows(st->e, &ids, past, keep, idx, end - from, logits + (size_t)from * vocab);
        tokens_free(&ids);
    }
    free(idx);
    return logits;
}

static double brute_kl(const float *a, const float *b, int n)
{
    long double za = 0, zb = 0, sum = 0;
    for (int i = 0; i < n; i++) za += expl(a[i]), zb += expl(b[i]);
    for (int i = 0; i < n; i++) sum += expl(a[i]) / za * (a[i] - logl(za) - (b[i] - logl(zb)));
    return (double)sum;
}

/* The tail from the cache, with some heads confined, is what a whole sequence gives. */
static void check_whole(struct Engine *e)
{
    if (e->settings.precision != PRECISION_F32) return;
    uint64_t random = 3;
    struct Study st = open_study(e, options());
    int n = n_heads(&st), vocab = e->model.cfg.vocab_size;
    uint8_t *keep = malloc((size_t)n);
    for (int round = 0; round < 4; round++) {
        must(study_enter(&st, &first));
        assert_int_equal(st.reading.n_keys + st.reading.n_tail, LEN);
        int rows = st.reading.sample.n_rows;
        memset(keep, 1, (size_t)n);
        float *full = whole_logits(&st, keep);
        for (int h = 0; h < n; h++) keep[h] = round == 0 ? 0 : next_number(&random) % 2;
        float *want = whole_logits(&st, keep);
        study_leave(&st); /* its scratch was laid out anew */
        must(study_enter(&st, &first));
        must(tail_confined(&st, keep));
        double sum = 0;
        for (int i = 0; i < rows; i++) {
            double kl = brute_kl(full + (size_t)i * vocab, want + (size_t)i * vocab, vocab);
            sum += kl;
            if (fabs(kl - st.reading.kl[i]) > 1e-6 + 0.01 * kl)
                fail_msg("row %d: KL %g, not %g", i, st.reading.kl[i], kl);
        }
        assert_true(sum / rows > 1e-5); /* confined heads are felt */
        study_leave(&st);
        free(full);
        free(want);
    }
    free(keep);
    study_close(&st);
}

static void test_whole(void **state)
{
    (void)state;
    each_engine(check_whole);
}

/* All heads of a layer in one batch give what each gives alone, run from the first layer. */
static void check_ablation(struct Engine *e)
{
    for (int parallel = 0; parallel < 2; parallel++) {
        struct StudyOptions o = options();
        o.parallel = parallel;
        struct Study st = open_study(e, o);
        struct HeadMap map;
        double unit;
        int n = n_heads(&st), distinct = 0;
        uint8_t *keep = malloc((size_t)n);
        must(study_scores(&st, HEADS_ALONE, &map, &unit));
        must(study_enter(&st, &first));
        for (int h = 0; h < n; h++) {
            memset(keep, 1, (size_t)n);
            keep[h] = 0;
            must(tail_confined(&st, keep));
            double want = mean_kl(&st), got = (double)map.scores[h] * unit;
            if (fabs(want - got) > 1e-9 + 1e-5 * want)
                fail_msg("%s, head %d: %g, alone %g", e->model.cfg.arch, h, got, want);
            distinct += h > 0 && map.scores[h] != map.scores[h - 1];
        }
        assert_true(unit > 0 && distinct == n - 1);
        study_leave(&st);
        free(keep);
        headmap_close(&map);
        study_close(&st);
    }
}

static void test_ablation(void **state)
{
    (void)state;
    each_engine(check_ablation);
}

/* Chunks stand at the same positions, the tail behind the longest; a window over everything confines nothing. */
static void check_parallel(struct Engine *e)
{
    struct StudyOptions o = options();
    o.parallel = true;
    o.recent = 2 * LEN;
    o.sink = 0;
    o.lens[0] = 4 * LEN; /* no window bounds the sum of the chunks */
    o.recent = 3 * LEN;
    struct Study st = open_study(e, o);
    int n = n_heads(&st);
    uint8_t *keep = calloc((size_t)n, 1);
    must(study_enter(&st, &first));
    const struct PlanInfo *p = &st.reading.session.plan;
    assert_true(p->n_chunks >= 2 && p->keep == p->n_chunks);
    assert_int_equal(st.reading.n_keys, p->n_prefix + p->n_context);
    assert_true(p->question_pos < st.reading.n_keys);
    st.opt.recent = 5 * LEN;
    must(tail_confined(&st, keep));
    assert_true(mean_kl(&st) == 0);
    st.opt.recent = RECENT;
    must(tail_confined(&st, keep));
    assert_true(mean_kl(&st) > 1e-6);
    study_leave(&st);
    free(keep);
    study_close(&st);
}

static void test_parallel(void **state)
{
    (void)state;
    each_engine(check_parallel);
}

/* ==== Scores from attention ==== */

/* Softmax of one row of a forward pass. */
static void brute_row(const struct Forward *f, int layer, int head, int row, double *p)
{
    int group = f->heads / f->kv_heads;
    const float *q = f->q[layer] + ((size_t)row * f->heads + head) * f->dim;
    double top = -INFINITY, sum = 0;
    for (int j = 0; j <= row; j++) {
        const float *k = f->k[layer] + ((size_t)j * f->kv_heads + head / group) * f->dim;
        p[j] = 0;
        for (int d = 0; d < f->dim; d++) p[j] += (double)q[d] * k[d];
        p[j] /= sqrt(f->dim);
        top = fmax(top, p[j]);
    }
    for (int j = 0; j <= row; j++) sum += p[j] = exp(p[j] - top);
    for (int j = 0; j <= row; j++) p[j] /= sum;
}

static double brute_look(enum HeadMethod method, const struct StudySample *s, int i, const int *ids,
                         int row, const double *p)
{
    struct Span needle = s->needle[s->ask[i]];
    double sum = 0;
    int best = 0;
    for (int j = 0; j <= row; j++) {
        if (p[j] > p[best]) best = j;
        bool echo = j < row && (ids[j] == ids[row] || (j > 0 && ids[j - 1] == ids[row]));
        if (method == HEADS_MASS ? j >= needle.begin && j < needle.end : echo) sum += p[j];
    }
    if (method != HEADS_COPY) return sum;
    return best >= needle.begin && best < needle.end && ids[best] == s->targets[i];
}

/* Adds what every query head of the model looks at in the rows of one ask. */
static void look_all(struct Engine *e, enum HeadMethod method, const struct StudySample *s, int ask,
                     double *sum)
{
    struct Tokens ids = one_ask(&s->prompt, s, ask);
    struct Forward f = forward(e, ids);
    int past = s->prompt.prefix.n + s->prompt.context.n;
    double *p = calloc((size_t)ids.n, sizeof *p);
    for (int q = 0; q < LAYERS * f.heads; q++)
        for (int i = 0; i < s->n_rows; i++) {
            if (s->ask[i] != ask) continue;
            int row = past + s->rows[i] - s->ask_begin[ask];
            brute_row(&f, q / f.heads, q % f.heads, row, p);
            sum[q] += brute_look(method, s, i, ids.ids, row, p) / s->n_rows;
        }
    free(p);
    forward_free(&f);
    tokens_free(&ids);
}

static void check_looks_of(struct Engine *e, enum HeadMethod method)
{
    struct Study st = open_study(e, options());
    struct SamplePlace place = {method == HEADS_ECHO ? SAMPLE_ECHO : SAMPLE_PASSKEYS, false, 0};
    struct StudySample s;
    struct HeadMap map;
    double unit, most = 0;
    must(study_scores(&st, method, &map, &unit));
    must(study_sample_make(&st, &place, &s));
    double *want = calloc((size_t)LAYERS * e->model.cfg.n_heads, sizeof *want);
    for (int a = 0; a < s.n_asks; a++)
        if (!s.own[a]) look_all(e, method, &s, a, want);
    int heads = e->model.cfg.n_heads;
    for (int q = 0; q < LAYERS * heads; q++) {
        double got = (double)map.q_scores[q];
        if (fabs(want[q] - got) > 1e-4)
            fail_msg("%s, query head %d: %g, not %g", head_method_name(method), q, got, want[q]);
        most = fmax(most, want[q]);
        assert_true(map.scores[q / (heads / e->model.cfg.n_kv_heads)] >= (float)got);
    }
    assert_true(method == HEADS_COPY || most > 0.005);
    free(want);
    study_sample_free(&s);
    headmap_close(&map);
    study_close(&st);
}

static void check_looks(struct Engine *e)
{
    if (e->settings.precision != PRECISION_F32) return;
    check_looks_of(e, HEADS_MASS);
    check_looks_of(e, HEADS_COPY);
    check_looks_of(e, HEADS_ECHO);
}

static void test_looks(void **state)
{
    (void)state;
    each_engine(check_looks);
}

/* Queries and keys of the tail, turned back row by row, as the study's means have them. */
static void check_rope(struct Engine *e)
{
    if (e->settings.precision != PRECISION_F32) return;
    const struct ModelConfig *m = &e->model.cfg;
    struct Study st = open_study(e, options());
    struct StudySample s;
    struct HeadMap map;
    double unit;
    must(study_scores(&st, HEADS_ROPE, &map, &unit));
    must(study_sample_make(&st, &(struct SamplePlace){SAMPLE_TEXT, false, 0}, &s));
    struct Tokens ids = join(&s.prompt, 0, s.prompt.context.n);
    struct Forward f = forward(e, ids);
    struct Rotation rot = {m->inv_freq, m->rope_dim, m->head_dim, m->rope_style == ROPE_PAIRS,
                           m->rope_scale};
    int tail = s.prompt.tail.n, group = f.heads / f.kv_heads;
    for (int l = 0; l < LAYERS; l++)
        for (int head = 0; head < f.heads; head++) {
            double q[256] = {0}, k[256] = {0}, row[256];
            for (int r = ids.n - tail; r < ids.n; r++)
                for (int key = 0; key < 2; key++) {
                    const float *from =
                        key ? f.k[l] + ((size_t)r * f.kv_heads + head / group) * f.dim
                            : f.q[l] + ((size_t)r * f.heads + head) * f.dim;
                    for (int d = 0; d < f.dim; d++) row[d] = (double)from[d];
                    rotation_undo(&rot, r, row);
                    for (int d = 0; d < f.dim; d++) (key ? k : q)[d] += row[d] / tail;
                }
            double want = rotation_reach(&rot, q, k, 500);
            assert_true(fabs(want - (double)map.q_scores[l * f.heads + head]) < 1e-5);
        }
    forward_free(&f);
    tokens_free(&ids);
    study_sample_free(&s);
    headmap_close(&map);
    study_close(&st);
}

static void test_rope(void **state)
{
    (void)state;
    each_engine(check_rope);
}

/* ==== Deviation ==== */

/* What confining a head takes from its layer's attention, projected on the host, over the tail's judged rows. */
static double brute_deviation(struct Study *st, int layer, int head)
{
    struct Reading *r = &st->reading;
    const struct ModelConfig *m = &st->e->model.cfg;
    const struct Weight *wo = &st->e->model.layers[layer].wo;
    struct HeadMasks masks = {r->window, SINK};
    struct AttnArgs args;
    struct Batch b;
    int width = m->n_heads * m->head_dim, part = width / m->n_kv_heads;
    for (int q = 0; q < m->n_layers * m->n_heads; q++) r->window[q] = RECENT;
    must(tail_begin(st, 1, NULL, &b));
    for (int l = 0; l < layer; l++) {
        must(tf_attend(&r->tf, &b, l, 0, &args));
        must(tf_ffn(&r->tf, l, r->n_tail));
    }
    must(tf_attend(&r->tf, &b, layer, 0, &args));
    float *whole = copy_of(args.out, (size_t)r->n_tail * width), *row = calloc((size_t)width, 4);
    args.masks = &masks;
    must(r->tf.be->attention(r->tf.dev, &args));
    double sum = 0;
    for (int i = 0; i < r->sample.n_rows; i++) {
        const float *a = whole + (size_t)r->sample.rows[i] * width,
                    *c = (const float *)args.out + (size_t)r->sample.rows[i] * width;
        double change = 0, all = 0;
        for (int o = 0; o < m->dim; o++) {
            double x = 0, y = 0;
            quant_decode(wo->type,
                         (const uint8_t *)wo->data + (size_t)o * dtype_row_bytes(wo->type, width),
                         row, width);
            for (int j = 0; j < width; j++) {
                x += (double)row[j] * a[j];
                if (j / part == head) y += (double)row[j] * ((double)c[j] - a[j]);
            }
            change += y * y;
            all += x * x;
        }
        sum += change / all / r->sample.n_rows;
    }
    free(whole);
    free(row);
    return sum;
}

static void check_deviation(struct Engine *e)
{
    if (e->settings.precision != PRECISION_F32 || e->model.layers[0].bo) return;
    struct Study st = open_study(e, options());
    struct HeadMap map;
    double unit;
    must(study_scores(&st, HEADS_DEVIATE, &map, &unit));
    must(study_enter(&st, &first));
    for (int h = 0; h < n_heads(&st); h++) {
        double want = brute_deviation(&st, h / st.shape.n_kv_heads, h % st.shape.n_kv_heads),
               got = (double)map.scores[h] * unit;
        if (fabs(want - got) > 1e-4 * unit) fail_msg("head %d: %g, not %g", h, got, want);
    }
    study_leave(&st);
    headmap_close(&map);
    study_close(&st);
}

static void test_deviation(void **state)
{
    (void)state;
    each_engine(check_deviation);
}

/* ==== The same bytes ==== */

static void json_of(enum HeadMethod method, int threads, bool parallel, struct Str *out)
{
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, threads);
    struct StudyOptions o = options();
    o.parallel = parallel;
    struct Study st = open_study(e, o);
    struct HeadMap map;
    double unit;
    must(study_scores(&st, method, &map, &unit));
    must(headmap_json_text(&map, out));
    headmap_close(&map);
    study_close(&st);
    engine_close(e);
}

static void test_same_bytes(void **state)
{
    (void)state;
    for (int m = 0; m < N_HEAD_METHODS; m++)
        for (int parallel = 0; parallel < (m <= HEADS_MASS ? 2 : 1); parallel++) {
            struct Str a = {0}, b = {0}, c = {0};
            json_of((enum HeadMethod)m, 1, parallel, &a);
            json_of((enum HeadMethod)m, 1, parallel, &b);
            json_of((enum HeadMethod)m, 3, parallel, &c);
            assert_string_equal(a.data, b.data);
            assert_string_equal(a.data, c.data);
            assert_non_null(strstr(a.data, head_method_name((enum HeadMethod)m)));
            str_free(&a);
            str_free(&b);
            str_free(&c);
        }
}

/* ==== The picture ==== */

static int count(const char *in, const char *what)
{
    int n = 0;
    for (; (in = strstr(in, what)) != NULL; in++) n++;
    return n;
}

static void test_picture(void **state)
{
    (void)state;
    struct HeadShape shape = {7, 6, 3};
    struct HeadMap map;
    struct Str svg = {0};
    uint8_t keep[21];
    must(headmap_random(&shape, 1, &map));
    assert_int_equal(headmap_keep(&map, 0.3, 0, keep), 6);
    must(headmap_svg(&map, keep, "A <model> & more", &svg));
    assert_int_equal(count(svg.data, "<g>"), 21);
    assert_int_equal(count(svg.data, "keeps everything</title>"), 6);
    assert_int_equal(count(svg.data, "streams</title>"), 15);
    assert_int_equal(count(svg.data, "<circle"), 7); /* and the legend's */
    assert_non_null(strstr(svg.data, "A &lt;model> &amp; more"));
    assert_non_null(strstr(svg.data, "(6 of 21)"));
    assert_non_null(strstr(svg.data, "prefers-color-scheme:dark"));
    assert_null(strstr(svg.data, "href"));
    str_free(&svg);
    headmap_close(&map);
}

/* ==== Refusals ==== */

/* Bytes in use beside the engine's scratch. */
static size_t held(struct Engine *e)
{
    struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    must(e->be->reserve(e->dev, &least));
    return mem_in_use();
}

static void refused(struct Engine *e, struct StudyOptions o, size_t len, int code, const char *part)
{
    struct Study st;
    struct HeadMap map;
    double unit;
    int status = study_open(&st, e, &o, text.data, len);
    if (status == PC_OK) status = study_scores(&st, HEADS_ABLATE, &map, &unit);
    assert_int_equal(status, code);
    if (!strstr(err_text(), part)) fail_msg("no '%s' in '%s'", part, err_text());
    study_close(&st);
}

static bool at_once(void *user)
{
    (void)user;
    return true;
}

static void test_refusals(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    size_t before = held(e);
    struct StudyOptions o = options();
    o.lens[0] = TRAIN_LEN;
    refused(e, o, text.len, PC_ECONFIG, "do not fit the model's window of 1024");
    o.lens[0] = 100;
    refused(e, o, text.len, PC_ERANGE, "too short");
    o = options();
    refused(e, o, 500, PC_ERANGE, "the text has");
    o.passkeys = 9;
    refused(e, o, text.len, PC_ERANGE, "give fewer --passkeys or --words");
    o = options();
    o.recent = LEN;
    refused(e, o, text.len, PC_ECONFIG, "forgets nothing");
    o = options();
    o.stop = at_once;
    refused(e, o, text.len, PC_EINTR, "stopped");
    enum HeadMethod method;
    assert_int_equal(head_method_by_name("ablat", &method), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "did you mean 'ablate'"));
    for (int m = 0; m < N_HEAD_METHODS; m++) {
        must(head_method_by_name(head_method_name((enum HeadMethod)m), &method));
        assert_int_equal(method, m);
    }
    assert_int_equal(held(e), before);
    engine_close(e);
}

/* ==== Every allocation fails once ==== */

static int try_study(struct Engine *e, enum HeadMethod method)
{
    struct Study st;
    struct HeadMap map = {0};
    struct Joint at;
    struct StudyOptions o = options();
    double unit, ratio;
    int status = study_open(&st, e, &o, text.data, text.len);
    if (status == PC_OK) status = study_scores(&st, method, &map, &unit);
    if (status == PC_OK && method == HEADS_RANDOM)
        status = study_tolerance(&st, &map, &(struct Tolerance){false, 1e9}, &ratio, &at);
    headmap_close(&map);
    study_close(&st);
    return status;
}

static void test_faults(void **state)
{
    (void)state;
    static const enum HeadMethod methods[] = {HEADS_ALONE, HEADS_MASS, HEADS_ROPE, HEADS_RANDOM,
                                              HEADS_ABLATE};
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    for (int m = 0; m < 5; m++) {
        long n = 1, step = methods[m] == HEADS_ABLATE ? 13 : 1; /* it begins as alone does */
        must(try_study(e, methods[m]));
        for (;; n += step) {
            size_t before = held(e);
            mem_fail_after(n);
            int status = try_study(e, methods[m]);
            mem_fail_after(0);
            if (held(e) != before)
                fail_msg("allocation %ld failed and %zd bytes stay: %s", n,
                         (ssize_t)(held(e) - before), err_text());
            if (status == PC_OK) break;
            assert_int_equal(status, PC_ENOMEM);
        }
        assert_true(n > 40);
    }
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),   cmocka_unit_test(test_whole),
        cmocka_unit_test(test_ablation),  cmocka_unit_test(test_parallel),
        cmocka_unit_test(test_looks),     cmocka_unit_test(test_rope),
        cmocka_unit_test(test_deviation), cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_picture),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, make_text, free_text);
}

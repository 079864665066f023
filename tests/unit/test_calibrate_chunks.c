/* test_calibrate_chunks.c - what chunk calibration notes of each chunk and question, against plain forward passes; that the
 * profile it makes is one that runs go by; texts and rows that do not fit; failures.
 */
#include "calibrate_chunks.h"
#include "tests/unit/session_support.h"

enum { CHUNK = 250 };

static char context[1500];

static struct Engine *open_small(const char *arch)
{
    struct Engine *e = open_engine(arch, PRECISION_F32, 1);
    e->settings.chunk = CHUNK;
    e->settings.keep = 2;
    uint64_t seed = 5;
    for (size_t i = 0; i + 1 < sizeof context; i++)
        context[i] = i % 6 == 5 ? ' ' : (char)('a' + next_number(&seed) % 26);
    memcpy(context + 700, " The key is XYZZY. ", 19);
    return e;
}

static struct ChunkStudyOptions small_options(void)
{
    return (struct ChunkStudyOptions){.texts = 1, .rows = 3, .n_chunks = 4, .n_asks = 3, .seed = 2};
}

static int open_study(struct ChunkStudy *st, struct Engine *e)
{
    struct ChunkStudyOptions o = small_options();
    static char hay[6000];
    for (size_t i = 0; i + 1 < sizeof hay; i++) hay[i] = i % 5 ? (char)('a' + i * i % 23) : ' ';
    return chunk_study_open(st, e, &o, hay, sizeof hay - 1);
}

/* ==== What is noted ==== */

static const struct ChunkRow row = {context, "Which key is it?", "xyzzy"},
                             other = {context, "What do the key say?", "xyzzy"};

/* BM25 of the row's question for its text's n parts laid out twice, as shares of the best; of which those of one are given. */
static void brute_words(const struct ChunkRow *r, const struct Prompt *p, int n, double *share)
{
    struct LexText parts[128];
    double best = 0, all[128];
    for (int c = 0; c < n; c++) {
        size_t begin = p->context_offset[p->context.n * c / n],
               end = p->context_offset[p->context.n * (c + 1) / n];
        parts[c] = parts[n + c] = (struct LexText){r->context + begin, end - begin};
    }
    must(bm25_scores((struct LexText){r->question, strlen(r->question)}, parts, 2 * n, all));
    for (int c = 0; c < n; c++) best = fmax(best, all[c]);
    for (int c = 0; c < n; c++) share[c] = best > 0 ? all[c] / best : 0;
}

static void check_chunk(struct Engine *e, const struct Prompt *p, int c, int n,
                        const struct ChunkSamples *s)
{
    int begin = p->context.n * c / n, end = p->context.n * (c + 1) / n, q = p->tail.n,
        pre = p->prefix.n;
    struct Tokens ids = join(p, begin, end);
    struct Forward f = forward(e, ids);
    double *mass = calloc((size_t)f.n, sizeof *mass), nll = 0, share[64];
    float *part = calloc((size_t)f.n, sizeof *part);
    for (int l = 0; l < LAYERS; l++)
        for (int h = 0; h < f.kv_heads; h++) {
            for (int k = 0; k < HEAD_FEATURES; k++) {
                int rows = q < feature_rows(k / N_MEASURES) ? q : feature_rows(k / N_MEASURES);
                brute_mass(&f, l, h, rows, mass);
                for (int j = 0; j < end - begin; j++) part[j] = (float)mass[pre + j];
                double want = early_measure((enum EarlyMeasure)(k % N_MEASURES), part, end - begin,
                                            rows * f.heads / f.kv_heads),
                       have =
                           (double)s->feature[(size_t)c * (size_t)s->n_features +
                                              (size_t)((l * f.kv_heads + h) * HEAD_FEATURES + k)];
                if (!(fabs(have - want) < 2e-3))
                    fail_msg("chunk %d layer %d head %d: %g, not %g", c, l, h, have, want);
            }
        }
    for (int t = p->score_begin; t < p->score_end; t++)
        nll += (double)f.nll[pre + end - begin + t] / (p->score_end - p->score_begin);
    assert_true(p->score_begin > 0);
    brute_words(&row, p, n, share);
    assert_true(fabs((double)s->feature[(size_t)(c + 1) * (size_t)s->n_features - 1] - share[c]) <
                1e-6);
    assert_true(fabs(s->final[c] - (nll - FUSION_NATS * share[c])) < 2e-3);
    free(mass);
    free(part);
    forward_free(&f);
    tokens_free(&ids);
}

static void test_notes(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_small(archs[a]);
        struct ChunkStudy st;
        struct Prompt p = {0};
        struct Request req = {
            .context = context, .context_len = strlen(context), .question = row.question};
        bool taken;
        must(open_study(&st, e));
        for (int i = 0; i < 2; i++) {
            must(chunk_study_row(&st, HALF_REPORTS, i ? &other : &row, &taken));
            assert_true(taken);
        }
        must(chunk_study_rows(&st));
        must(session_prompt(e, &req, &p));
        const struct ChunkSamples *s = &st.half[HALF_REPORTS];
        int n = (p.context.n + CHUNK - 1) / CHUNK, right = 0;
        assert_int_equal(s->n, 2);
        for (int c = 0; c < n; c++) check_chunk(e, &p, c, n, s);
        for (int i = 0; i < 2; i++) { /* one text of both; each has its answer in its own part */
            assert_int_equal(s->chunks[i], 2 * n);
            for (int c = 0; c < 2 * n; c++) {
                right += s->right[i * s->n_chunks + c];
                if (c / n != i) assert_false(s->right[i * s->n_chunks + c]);
            }
        }
        assert_int_equal(right, 2);
        prompt_free(&p);
        chunk_study_close(&st);
        engine_close(e);
    }
}

/* Rows that say nothing: no answer, one everywhere, one chunk. */
static void test_rows_left_out(void **state)
{
    (void)state;
    struct Engine *e = open_small("llama");
    struct ChunkStudy st;
    static const struct ChunkRow rows[] = {{context, "?", "nowhere"},
                                           {context, "?", "a"},
                                           {context, "?", ""},
                                           {"short", "?", "short"}};
    must(open_study(&st, e));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool taken = true;
        must(chunk_study_row(&st, HALF_CHOOSES, &rows[i], &taken));
        assert_false(taken);
    }
    must(chunk_study_rows(&st));
    assert_int_equal(st.half[HALF_CHOOSES].n, 0);
    chunk_study_close(&st);
    engine_close(e);
}

/* ==== The profile ==== */

static void check_profile(const struct Engine *e, const struct ChunkProfile *p)
{
    assert_true(p->model_hash == e->model.hash);
    assert_in_range(p->n_stops, 1, STOPS_MAX);
    for (int i = 0; i < p->n_stops; i++) {
        const struct ChunkStop *stop = &p->stops[i];
        assert_in_range(stop->layer, i ? p->stops[i - 1].layer + 1 : 1, LAYERS - 1);
        assert_in_range(stop->n_heads, 1, PROFILE_HEADS);
        assert_in_range(stop->n_ahead, 1, 2 * (3 + 1));
        for (int h = 0; h < stop->n_heads; h++)
            assert_in_range(stop->heads[h].layer, 0, stop->layer - 1);
    }
}

/* The heads that count in the end, against the features that they were chosen from. */
static void check_last(const struct ChunkStudy *st, const struct ChunkProfile *p,
                       const struct ChunkReport *report)
{
    const struct ChunkSamples *told = &st->half[HALF_REPORTS];
    int feature[PROFILE_HEADS];
    float weight[PROFILE_HEADS];
    struct ChunkScorer scorer = {feature, weight, p->last.n_heads, PROFILE_HEADS};
    assert_in_range(p->last.n_heads, 1, PROFILE_HEADS);
    assert_int_equal(p->last.layer, LAYERS);
    for (int i = 0; i < p->last.n_heads; i++) {
        const struct StopHead *h = &p->last.heads[i];
        int kv_heads = st->e->model.cfg.n_kv_heads, rows = h->rows == EARLY_ROWS;
        assert_true(h->layer < LAYERS && h->head < kv_heads);
        feature[i] =
            (h->layer * kv_heads + h->head) * HEAD_FEATURES + rows * N_MEASURES + (int)h->measure;
        weight[i] = h->weight;
    }
    assert_int_equal(report->n_made, st->n_made[HALF_REPORTS]);
    for (int i = 0; i < told->n; i++)
        assert_int_equal(report->blended[i], blended_ahead(told, i, &scorer, (double)p->nats));
}

static void test_profile(void **state)
{
    (void)state;
    struct Engine *e = open_small("qwen2");
    static struct ChunkProfile first, again;
    for (int turn = 0; turn < 2; turn++) {
        struct ChunkStudy st;
        struct ChunkReport report;
        bool taken;
        must(open_study(&st, e));
        must(chunk_study_texts(&st));
        assert_int_equal(st.half[HALF_CHOOSES].n, 3);
        for (int half = 0; half < N_HALVES; half++) must(chunk_study_row(&st, half, &row, &taken));
        must(chunk_study_rows(&st));
        must(chunk_study_choose(&st, turn ? &again : &first, &report));
        assert_int_equal(report.n, LAYERS - 1);
        assert_int_equal(report.n_samples, 4);
        for (int i = 0; i < 4; i++) assert_true((report.words[i] >= 0) == (i == 3)); /* the row */
        assert_int_equal(report.words[3], 0);
        check_last(&st, turn ? &again : &first, &report);
        chunk_report_free(&report);
        chunk_study_close(&st);
    }
    check_profile(e, &first);
    assert_memory_equal(&first, &again, sizeof first);
    struct Run run;
    e->chunks = first;
    e->settings.early = EARLY_PROFILE;
    e->settings.early_risk = 1;
    e->settings.chunk_score = SCORE_QUESTION;
    for (int i = 0; i < first.n_stops; i++) e->chunks.stops[i].words = 0; /* runs of token ids */
    run_open(&run, e, (struct Input){9, 1500, 20, 4});
    assert_in_range(run.s.plan.n_early, 1, first.n_stops);
    must(session_stages(&run.s, false));
    run_close(&run);
    engine_close(e);
}

/* Made-up questions whose right chunk a head finds and the final score does not; and two rows with which it is the other way. */
static void fill_half(struct ChunkSamples *s)
{
    enum { HEAD = 2, ROWS = 2 };
    for (int i = 0; i < s->n; i++) {
        bool real = i >= s->n - ROWS;
        int right = i % s->n_chunks;
        s->chunks[i] = s->n_chunks;
        for (int c = 0; c < s->n_chunks; c++) {
            int at = i * s->n_chunks + c;
            s->right[at] = c == right;
            s->final[at] = (c == right) == real ? 0 : real ? 0.01 : 0.1;
            s->feature[at * s->n_features + HEAD] = (c == right) == real ? (real ? -1 : -5) : 0;
        }
    }
}

/* What heads say in the end counts where that helps, unless it loses a user's own rows, few as they may be. */
static void test_rows_count(void **state)
{
    (void)state;
    enum { SAMPLES = 10, CHUNKS = 6 };
    struct Engine *e = open_small("llama");
    struct ChunkStudy st;
    must(open_study(&st, e));
    struct ChunkSamples own = st.half[HALF_CHOOSES];
    size_t n = (size_t)own.n_features;
    struct ChunkSamples s = {SAMPLES,
                             CHUNKS,
                             own.n_features,
                             calloc(SAMPLES * CHUNKS * n, sizeof *s.feature),
                             calloc(SAMPLES * CHUNKS, sizeof *s.final),
                             calloc(SAMPLES * CHUNKS, 1),
                             calloc(SAMPLES, sizeof *s.chunks)};
    fill_half(&s);
    st.half[HALF_CHOOSES] = s;
    for (int rows = 0; rows <= 2; rows++) {
        struct ChunkReport report;
        static struct ChunkProfile p;
        st.n_made[HALF_CHOOSES] = SAMPLES - rows;
        must(chunk_study_choose(&st, &p, &report));
        assert_true(rows ? p.nats == 0 : p.nats > 0);
        chunk_report_free(&report);
    }
    st.half[HALF_CHOOSES] = own;
    free(s.feature);
    free(s.final);
    free(s.right);
    free(s.chunks);
    chunk_study_close(&st);
    engine_close(e);
}

/* ==== Failures ==== */

static void test_too_short(void **state)
{
    (void)state;
    struct Engine *e = open_small("llama");
    struct ChunkStudyOptions o = small_options();
    struct ChunkStudy st;
    assert_int_equal(chunk_study_open(&st, e, &o, "short", 5), PC_ERANGE);
    chunk_study_close(&st);
    e->settings.chunk = 64;
    must(open_study(&st, e));
    assert_int_equal(chunk_study_texts(&st), PC_ERANGE);
    assert_non_null(strstr(err_text(), "--chunk"));
    chunk_study_close(&st);
    engine_close(e);
}

static bool stop_now(void *user)
{
    (void)user;
    return true;
}

static int whole_study(struct Engine *e)
{
    struct ChunkStudy st;
    struct ChunkReport report = {0};
    static struct ChunkProfile profile;
    int status = open_study(&st, e);
    bool taken;
    if (status == PC_OK) status = chunk_study_texts(&st);
    for (int half = 0; half < N_HALVES && status == PC_OK; half++)
        status = chunk_study_row(&st, half, &row, &taken);
    if (status == PC_OK) status = chunk_study_rows(&st);
    if (status == PC_OK) status = chunk_study_choose(&st, &profile, &report);
    chunk_report_free(&report);
    chunk_study_close(&st);
    return status;
}

/* What is held when the device's scratch, which follows the last text that was read, has a set size. */
static size_t held(struct Engine *e)
{
    const struct BatchShape small = {
        .rows = 8, .seqs = 1, .keys = 8, .mass_keys = 8, .head_rows = 1};
    must(e->be->reserve(e->dev, &small));
    return mem_in_use();
}

static void test_faults(void **state)
{
    (void)state;
    struct Engine *e = open_small("llama");
    size_t before = 0;
    long failed = 0;
    e->settings.keep = 4; /* of four chunks: all layers lose none */
    must(whole_study(e));
    before = held(e);
    for (long n = 1;; n += 1 + n / 16) {
        mem_fail_after(n);
        int status = whole_study(e);
        mem_fail_after(0);
        assert_int_equal(held(e), before);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_ENOMEM);
        failed++;
    }
    assert_true(failed > 40);
    struct ChunkStudy st;
    must(open_study(&st, e));
    st.opt.stop = stop_now;
    assert_int_equal(chunk_study_texts(&st), PC_EINTR);
    chunk_study_close(&st);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_notes),     cmocka_unit_test(test_rows_left_out),
        cmocka_unit_test(test_profile),   cmocka_unit_test(test_rows_count),
        cmocka_unit_test(test_too_short), cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_session_rank.c - chunks ranked without the model: only the winners are read, and the answer is the one that
 * the same chunks give in any other way; and by both together.
 */
#include "tests/unit/session_support.h"

/* Text of three-letter words, "XYZZY" in the chunk of byte `at`. */
static void fill_text(char *text, int n, int at, uint64_t seed)
{
    for (int i = 0; i < n; i++) text[i] = i % 4 == 3 ? ' ' : (char)('a' + next_number(&seed) % 26);
    memcpy(text + at, " XYZZY ", 7);
}

static struct Request request(const char *text, int n)
{
    return (struct Request){
        .context = text, .context_len = (size_t)n, .question = "Where is xyzzy?"};
}

static void test_bm25(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    enum { BYTES = 4000 };
    char text[BYTES];
    e->settings.chunk_score = SCORE_BM25;
    e->settings.keep = 1;
    for (int at = 100; at < BYTES; at += 977) {
        fill_text(text, BYTES, at, 5);
        struct Request req = request(text, BYTES);
        struct Result r;
        must(session_run(e, &req, &r));
        assert_true(r.plan.n_chunks > 8);
        assert_int_equal(r.plan.n_read, 1);
        for (int c = 0; c < r.plan.n_chunks; c++) {
            const struct ChunkInfo *info = &r.chunks[c];
            bool holds = info->byte_begin <= (size_t)at + 1 && info->byte_end >= (size_t)at + 6;
            assert_int_equal(info->kept, holds);
            assert_true(holds ? info->score < 0 : info->score == 0);
        }
        result_free(&r);
    }
    engine_close(e);
}

/* Scores of all chunks under one chunk_score, all read. */
static int all_scores(struct Engine *e, const struct Request *req, enum ChunkScore kind,
                      double *score)
{
    struct Result r;
    e->settings.chunk_score = kind;
    e->settings.keep = KEEP_ALL;
    must(session_run(e, req, &r));
    int n = r.plan.n_chunks;
    assert_in_range(n, 8, 64);
    assert_int_equal(r.plan.n_read, n);
    for (int c = 0; c < n; c++) score[c] = r.chunks[c].score;
    result_free(&r);
    return n;
}

/* What fusion takes off the model's score is BM25 in its own unit: nothing without a shared word, the same for the best
 * chunk of any text. The lowest of what is left are kept. */
static double check_fusion(struct Engine *e, const struct Request *req)
{
    double model[64], words[64], both[64];
    int n = all_scores(e, req, SCORE_QUESTION, model), best = 0;
    all_scores(e, req, SCORE_BM25, words);
    all_scores(e, req, SCORE_FUSION, both);
    for (int c = 0; c < n; c++)
        if (words[c] < words[best]) best = c;
    double unit = words[best] < 0 ? model[best] - both[best] : 0;
    for (int c = 0; c < n; c++) {
        double share = words[c] < 0 ? words[c] / words[best] : 0;
        assert_true(fabs(model[c] - both[c] - unit * share) < 1e-9);
    }
    e->settings.keep = 3;
    struct Result r;
    must(session_run(e, req, &r));
    for (int c = 0; c < n; c++) {
        int better = 0;
        for (int i = 0; i < n; i++) better += both[i] < both[c] || (both[i] == both[c] && i < c);
        assert_true(r.chunks[c].score == both[c]);
        assert_int_equal(r.chunks[c].kept, better < 3);
    }
    result_free(&r);
    return unit;
}

static void check_fusions(struct Engine *e)
{
    enum { BYTES = 3000 };
    char text[BYTES];
    double units[2];
    for (int i = 0; i < 2; i++) {
        fill_text(text, BYTES, 700 + 900 * i, 5 + (uint64_t)i);
        memcpy(text + 2500, " where where is ", 16);
        struct Request req = request(text, BYTES);
        units[i] = check_fusion(e, &req);
    }
    assert_true(units[0] > 0.01);
    assert_true(fabs(units[0] - units[1]) < 1e-9);
    struct Request strange = request(text, BYTES);
    strange.question = "??";
    assert_true(check_fusion(e, &strange) == 0);
    strange.question =
        ""; /* no words of the user's own: all that follows a chunk is scored, as published */
    double published[64], both[64], words[64];
    int n = all_scores(e, &strange, SCORE_PUBLISHED, published);
    all_scores(e, &strange, SCORE_BM25, words);
    all_scores(e, &strange, SCORE_FUSION, both);
    for (int c = 0; c < n; c++)
        assert_true(words[c] < 0 ? both[c] < published[c] : both[c] == published[c]);
}

static void test_fusion(void **state)
{
    (void)state;
    each_engine(check_fusions);
}

/* Whether brute force keeps chunk c: it is one of the lowest. */
static bool stays(const double *score, int n, int c, int keep)
{
    int better = 0;
    for (int i = 0; i < n; i++) better += score[i] < score[c] || (score[i] == score[c] && i < c);
    return better < keep;
}

static void check_kept(struct Engine *e, const struct Request *req, enum ChunkScore kind)
{
    bool ahead = kind == SCORE_RANDOM || kind == SCORE_BM25;
    double score[64];
    int n = all_scores(e, req, kind, score);
    for (int keep = 1; keep <= 4; keep++) {
        struct Result r;
        e->settings.keep = keep;
        e->settings.wave = 1 + keep % 3;
        must(session_run(e, req, &r));
        assert_int_equal(r.plan.n_read, ahead ? keep : n);
        for (int c = 0; c < n; c++) {
            assert_true(r.chunks[c].score == score[c]);
            assert_int_equal(r.chunks[c].kept, stays(score, n, c, keep));
        }
        result_free(&r);
    }
    e->settings.wave = AUTO;
}

static void test_kept(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    enum { BYTES = 2500 };
    char text[BYTES];
    fill_text(text, BYTES, 900, 5);
    struct Request req = request(text, BYTES);
    for (int kind = SCORE_QUESTION; kind <= SCORE_FUSION; kind++)
        check_kept(e, &req, (enum ChunkScore)kind);
    engine_close(e);
}

/* The bias that each page of the merged cache should have, in order; the prefix has none. */
static void check_biases(struct Run *run, double beta, double best)
{
    struct Session *s = &run->s;
    for (int h = 0; h < s->merged.n_heads; h++) {
        const struct PageRef *ref = s->merged.refs + (size_t)h * s->merged.stride;
        int left = s->prompt.prefix.n;
        for (int c = -1; c < s->plan.n_chunks; c++) {
            const struct ChunkInfo *info = &run->r.chunks[c < 0 ? 0 : c];
            if (c >= 0) left = info->kept ? session_slot(s, c)->kept[h] : 0;
            for (; left > 0; left -= (int)(ref++)->len)
                assert_true(fabs(ref->bias - (c < 0 ? 0 : -beta * (info->score - best))) < 1e-5);
            assert_int_equal(left, 0); /* no page holds tokens of two chunks */
        }
        assert_ptr_equal(ref, s->merged.refs + (size_t)h * s->merged.stride + s->merged.n_refs[h]);
    }
}

static void check_bias(struct Engine *e)
{
    struct Settings *set = &e->settings;
    struct Run run;
    set->keep = 3;
    set->kv_cap = 50;
    set->chunk_bias = 2.5f;
    run_open(&run, e, plain_input);
    must(session_stages(&run.s, false));
    double best = INFINITY;
    for (int c = 0; c < run.s.plan.n_chunks; c++) best = fmin(best, run.r.chunks[c].score);
    check_biases(&run, 2.5, best);
    run_close(&run);
    /* as heavy as can be: the best chunk stands alone, as if no other had been kept */
    set->kv_cap = CAP_OFF;
    struct Outcome one, all, none;
    set->chunk_bias = 0;
    none = outcome(e, plain_input);
    set->keep = 1;
    one = outcome(e, plain_input);
    set->keep = 3;
    set->chunk_bias = 1e6f;
    all = outcome(e, plain_input);
    same_logits(e, all.logits, one.logits, "chunks of no weight");
    assert_memory_equal(all.ids, one.ids, sizeof one.ids);
    same_logits(e, all.last, one.last, "chunks of no weight, last token");
    assert_true(distance(none.logits, all.logits, e->model.cfg.vocab_size) > 1e-3);
    set->chunk_score = SCORE_RANDOM; /* not the model's: no bias */
    one = outcome(e, plain_input);
    set->chunk_bias = 0;
    all = outcome(e, plain_input);
    same_bits(&one, &all);
}

static void test_bias(void **state)
{
    (void)state;
    each_engine(check_bias);
}

/* Every chunk is read, in waves of any size, with the same scores. */
static void test_fusion_waves(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    enum { BYTES = 3000 };
    char text[BYTES];
    double one[64], more[64];
    fill_text(text, BYTES, 700, 5);
    struct Request req = request(text, BYTES);
    e->settings.wave = 1;
    int n = all_scores(e, &req, SCORE_FUSION, one);
    e->settings.wave = 3;
    all_scores(e, &req, SCORE_FUSION, more);
    assert_memory_equal(one, more, sizeof *one * (size_t)n);
    engine_close(e);
}

static int n_kept(const struct Result *r)
{
    int n = 0;
    for (int c = 0; c < r->plan.n_chunks; c++) n += r->chunks[c].kept;
    return n;
}

static void test_random(void **state)
{
    (void)state;
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, 1);
    enum { BYTES = 4000, SEEDS = 12 };
    char text[BYTES];
    int differs = 0;
    struct Result first = {0}, r;
    fill_text(text, BYTES, 100, 5);
    struct Request req = request(text, BYTES);
    e->settings.chunk_score = SCORE_RANDOM;
    for (int i = 0; i < SEEDS; i++) {
        e->settings.seed = (uint64_t)i / 2; /* each seed twice */
        must(session_run(e, &req, &r));
        assert_int_equal(r.plan.n_read, 2);
        assert_int_equal(n_kept(&r), 2);
        if (i % 2) {
            for (int c = 0; c < r.plan.n_chunks; c++) {
                assert_int_equal(r.chunks[c].kept, first.chunks[c].kept);
                assert_true(r.chunks[c].score == first.chunks[c].score);
            }
            assert_int_equal(r.logits_hash, first.logits_hash);
            differs += r.chunks[0].kept;
            result_free(&first);
            result_free(&r);
        } else {
            first = r;
        }
    }
    assert_true(differs < SEEDS / 2);
    /* another text, the same seed: another draw */
    e->settings.seed = 3;
    must(session_run(e, &req, &first));
    text[2000] = 'Q';
    must(session_run(e, &req, &r));
    assert_true(r.chunks[0].score != first.chunks[0].score);
    result_free(&first);
    result_free(&r);
    engine_close(e);
}

/* Given the same chunks, the answer is that of the method itself, whatever the wave. */
static void check_same_answer(struct Engine *e)
{
    struct Settings *set = &e->settings;
    struct Outcome want, have;
    set->kv_cap = 50;
    set->chunk_score = SCORE_RANDOM;
    set->keep = KEEP_ALL;
    have = outcome(e, plain_input);
    set->chunk_score = SCORE_QUESTION;
    want = outcome(e, plain_input);
    assert_memory_equal(have.logits, want.logits, sizeof want.logits);
    assert_memory_equal(have.ids, want.ids, sizeof want.ids);
    assert_memory_equal(have.kept, want.kept, sizeof want.kept);
    assert_memory_equal(have.kv_kept, want.kv_kept, sizeof want.kv_kept);
    set->chunk_score = SCORE_RANDOM;
    set->keep = 3;
    set->wave = 1;
    want = outcome(e, plain_input);
    set->wave = 2;
    have = outcome(e, plain_input);
    same_bits(&want, &have);
}

static void test_same_answer(void **state)
{
    (void)state;
    each_engine(check_same_answer);
}

/* Words cannot be compared when there are only ids. */
static void test_ids_only(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Run run;
    for (int i = 0; i < 2; i++) {
        e->settings.chunk_score = i ? SCORE_FUSION : SCORE_BM25;
        run_open(&run, e, plain_input);
        assert_int_equal(session_stages(&run.s, false), PC_ECONFIG);
        assert_non_null(strstr(err_text(), i ? "fusion" : "bm25"));
        assert_non_null(strstr(err_text(), "--chunk-score"));
        run_close(&run);
    }
    engine_close(e);
}

/* What is planned is what is taken, also where losers are never read. */
static void test_plan(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    enum { BYTES = 9000 };
    char text[BYTES];
    fill_text(text, BYTES, 100, 5);
    struct Request req = request(text, BYTES);
    struct PlanInfo all, some;
    struct Result r;
    must(session_plan(e, &req, &all));
    e->settings.chunk_score = SCORE_BM25;
    must(session_plan(e, &req, &some));
    assert_int_equal(all.n_read, all.n_chunks);
    assert_int_equal(some.n_chunks, all.n_chunks);
    assert_int_equal(some.n_read, 2);
    assert_in_range(some.wave, 1, 2);
    assert_true(some.peak_bytes < all.peak_bytes);
    must(session_run(e, &req, &r));
    assert_int_equal(r.plan.peak_bytes, some.peak_bytes);
    result_free(&r);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bm25),         cmocka_unit_test(test_random),
        cmocka_unit_test(test_same_answer),  cmocka_unit_test(test_ids_only),
        cmocka_unit_test(test_plan),         cmocka_unit_test(test_fusion),
        cmocka_unit_test(test_fusion_waves), cmocka_unit_test(test_kept),
        cmocka_unit_test(test_bias),
    };
    return cmocka_run_group_tests_name("session_rank", tests, NULL, NULL) != 0;
}

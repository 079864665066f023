/* test_session_early.c - chunks that leave before the last layer: which ones, against attention masses by brute force; that
 * a margin for all changes nothing, nor waves, ranks, streams or the order of chunks; memory, failures and refusals.
 */
#include "session_team_support.h"

/* ==== One run ==== */

static void set_early(struct Engine *e, const char *at)
{
    e->settings.early = *at ? EARLY_AUTO : EARLY_OFF;
    snprintf(e->settings.early_at, sizeof e->settings.early_at, "%s", at);
}

/* keep 2 of nine chunks, nothing evicted from them */
static struct Engine *open_early(const char *arch, enum Precision precision, const char *at)
{
    struct Engine *e = open_engine(arch, precision, 1);
    e->settings.keep = 2;
    e->settings.chunk_score = SCORE_QUESTION;
    set_early(e, at);
    return e;
}

static const struct Input input = {9, 1100, 20, 4};

/* A margin that keeps all: the same chunks, scores and text as with early off, in any waves. */
static void test_margin_for_all(void **state)
{
    (void)state;
    static const char *const margins[] = {"1:99", "2:99", "1:99+2:99", "34%:9,67%:9"};
    for (int a = 0; a < N_ARCHS; a++)
        for (int precision = 0; precision < 2; precision++) {
            struct Engine *e =
                open_early(archs[a], precision ? PRECISION_F32 : PRECISION_INT16, "");
            struct Outcome off = outcome(e, input);
            assert_int_equal(off.n_chunks, 9);
            for (size_t i = 0; i < sizeof margins / sizeof *margins; i++)
                for (int wave = 0; wave < 5; wave += 2) {
                    e->settings.wave = wave;
                    set_early(e, margins[i]);
                    struct Outcome on = outcome(e, input);
                    same_bits(&off, &on);
                    assert_memory_equal(off.kv_kept, on.kv_kept, sizeof on.kv_kept);
                }
            engine_close(e);
        }
}

/* ==== Which ones stay ==== */

/* The score of each chunk in the heads of the layer before the decision, from plain forward passes. */
static void brute_scores(struct Run *run, int layer, double *score)
{
    struct Session *s = &run->s;
    int p = s->prompt.prefix.n, q = s->prompt.tail.n, rows = q < EARLY_ROWS ? q : EARLY_ROWS,
        group = s->e->model.cfg.n_heads / s->e->model.cfg.n_kv_heads;
    for (int c = 0; c < s->plan.n_chunks; c++) {
        struct Tokens ids = join(&s->prompt, s->chunks[c].begin, s->chunks[c].end);
        struct Forward f = forward(s->e, ids);
        double *mass = calloc((size_t)f.n, sizeof *mass);
        score[c] = 0;
        for (int h = 0; h < f.kv_heads; h++) {
            double sum = 0;
            brute_mass(&f, layer - 1, h, rows, mass);
            for (int j = p; j < ids.n - q; j++) sum += mass[j];
            score[c] += log(sum / rows / group);
        }
        free(mass);
        forward_free(&f);
        tokens_free(&ids);
    }
}

/* How many of the candidates score higher. */
static int rank_of(const double *score, const bool *in, int n, int c)
{
    int ahead = 0;
    for (int i = 0; i < n; i++) ahead += in[i] && score[i] > score[c];
    return ahead;
}

static void check_survivors(struct Engine *e, const int *layers, const int *survivors, int n_stops,
                            const struct Outcome *off)
{
    struct Run run;
    double score[64];
    bool in[64];
    run_open(&run, e, input);
    struct Session *s = &run.s;
    int n = s->plan.n_chunks, best[2] = {-1, -1};
    must(session_stages(s, false));
    assert_int_equal(s->plan.n_early, n_stops);
    for (int c = 0; c < n; c++) in[c] = true;
    for (int d = 0; d < n_stops; d++) {
        bool out[64];
        brute_scores(&run, layers[d], score);
        for (int c = 0; c < n; c++) out[c] = in[c] && rank_of(score, in, n, c) >= survivors[d];
        for (int c = 0; c < n; c++) {
            if (out[c]) assert_int_equal(run.r.chunks[c].n_layers, layers[d]);
            in[c] = in[c] && !out[c];
        }
    }
    for (int c = 0; c < n; c++) {
        if (!in[c]) {
            assert_true(isnan(run.r.chunks[c].score));
            continue;
        }
        assert_int_equal(run.r.chunks[c].n_layers, LAYERS);
        assert_true(fabs(run.r.chunks[c].score - off->score[c]) < 1e-3);
        for (int i = 0, at = c; i < 2 && at >= 0; i++)
            if (best[i] < 0 || off->score[at] < off->score[best[i]]) {
                int other = best[i];
                best[i] = at, at = other;
            }
    }
    for (int c = 0; c < n; c++)
        assert_int_equal(run.r.chunks[c].kept, c == best[0] || c == best[1]);
    run_close(&run);
}

static void test_survivors(void **state)
{
    (void)state;
    static const struct {
        const char *at;
        int layers[2], survivors[2], n;
    } cases[] = {{"1:5", {1}, {5}, 1},           {"2:3", {2}, {3}, 1},
                 {"1:6,2:3", {1, 2}, {6, 3}, 2}, {"1:2", {1}, {2}, 1},
                 {"1:1,2:1", {1, 2}, {2, 2}, 2}, /* as many as are kept */
                 {"1:3,2:8", {1, 2}, {3, 3}, 2}};
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_early(archs[a], PRECISION_F32, "");
        struct Outcome off = outcome(e, input);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            for (int wave = 0; wave < 4; wave++) {
                e->settings.wave = wave;
                set_early(e, cases[i].at);
                check_survivors(e, cases[i].layers, cases[i].survivors, cases[i].n, &off);
            }
        engine_close(e);
    }
}

/* Heads and measures are the profile's; survivors come from its risk. */
static void test_profile(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "");
    struct ChunkProfile *p = &e->chunks;
    struct Run run;
    e->settings.early = EARLY_PROFILE;
    struct Prompt prompt = make_prompt(input);
    memset(&run, 0, sizeof run);
    assert_int_equal(session_open(&run.s, e, &no_request, &prompt, &run.r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "calibrate chunks"));
    session_close(&run.s);
    *p = (struct ChunkProfile){.n_layers = LAYERS, .n_kv_heads = 2, .n_stops = 2};
    p->stops[0] = (struct ChunkStop){.layer = 1, .n_heads = 1, .n_ahead = 1, .ahead = {0.99f}};
    p->stops[0].heads[0] = (struct StopHead){0, 1, MEASURE_PEAK, 4, 2};
    p->stops[1] = (struct ChunkStop){.layer = 2, .n_heads = 1, .n_ahead = 2, .ahead = {0, 0.1f}};
    p->stops[1].heads[0] = (struct StopHead){1, 0, MEASURE_SUM, 32, 1};
    e->settings.early_risk = 0.05f;
    run_open(&run, e, input);
    assert_int_equal(run.s.plan.n_early, 1); /* the first would let nothing leave */
    struct EarlyDecision d = run.s.plan.early[0];
    assert_int_equal(d.layer, 2);
    assert_int_equal(d.n_before, 9);
    assert_int_equal(d.survivors, early_survivors(p->stops[1].ahead, 2, 9, 0.05, 4));
    assert_true(d.risk <= 0.05f && d.survivors < 9);
    assert_true(fabs(run.s.plan.read_share - (9 * 2 + d.survivors) / 27.0) < 1e-9);
    must(session_stages(&run.s, false));
    int left = 0;
    for (int c = 0; c < 9; c++) left += run.r.chunks[c].n_layers == 2;
    assert_int_equal(left, 9 - d.survivors);
    run_close(&run);
    engine_close(e);
}

/* ==== Words ==== */

enum { BYTES = 1500 };

/* Scores of the chunks' first decision, or of chunk_score where none is made; returns how many chunks. */
static int text_scores(struct Engine *e, const char *text, double *score, bool *gone)
{
    struct Request req = {.context = text, .context_len = BYTES, .question = "Where is xyzzy?"};
    struct Prompt p;
    struct Session s;
    struct Result r;
    memset(&s, 0, sizeof s);
    memset(&r, 0, sizeof r);
    must(session_prompt(e, &req, &p));
    must(session_open(&s, e, &req, &p, &r));
    must(session_stages(&s, false));
    int n = s.plan.n_chunks;
    assert_in_range(n, 6, 64);
    for (int c = 0; c < n; c++) {
        score[c] = s.early.n ? early_score(&s, 0, c) : r.chunks[c].score;
        gone[c] = r.chunks[c].n_layers < LAYERS;
    }
    session_close(&s);
    result_free(&r);
    return n;
}

/* A profile's words add their share of the best chunk's BM25, times their weight, to what its heads say. */
static void test_words(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "");
    struct ChunkProfile *p = &e->chunks;
    char text[BYTES + 1] = "";
    double heads[64], both[64], words[64];
    bool gone[64];
    uint64_t seed = 5;
    for (int i = 0; i < BYTES; i++)
        text[i] = i % 4 == 3 ? ' ' : (char)('a' + next_number(&seed) % 26);
    memcpy(text + 300, " XYZZY ", 7);
    memcpy(text + 1100, " where is ", 10);
    e->settings.chunk_score = SCORE_BM25;
    e->settings.keep = KEEP_ALL;
    int n = text_scores(e, text, words, gone), best = 0;
    for (int c = 0; c < n; c++)
        if (words[c] < words[best]) best = c;
    assert_true(words[best] < 0);
    e->settings.early = EARLY_PROFILE;
    e->settings.early_risk = 0.4f;
    e->settings.keep = 1;
    *p = (struct ChunkProfile){.n_layers = LAYERS, .n_kv_heads = 2, .n_stops = 1};
    p->stops[0] = (struct ChunkStop){.layer = 1, .n_heads = 1, .n_ahead = 2, .ahead = {0, 0.1f}};
    p->stops[0].heads[0] = (struct StopHead){0, 1, MEASURE_PEAK, 4, 2};
    for (int fusion = 0; fusion < 2; fusion++) {
        e->settings.chunk_score = fusion ? SCORE_FUSION : SCORE_QUESTION;
        p->stops[0].words = 0;
        text_scores(e, text, heads, gone);
        p->stops[0].words = 3;
        text_scores(e, text, both, gone);
        int left = 0;
        for (int c = 0; c < n; c++) {
            double share = words[c] < 0 ? words[c] / words[best] : 0;
            left += gone[c];
            assert_true(fabs(both[c] - heads[c] - 3 * share) < 1e-9);
            for (int i = 0; i < n && gone[c]; i++) assert_true(gone[i] || both[i] >= both[c]);
        }
        assert_in_range(left, 1, n - 1);
    }
    struct Run run; /* token ids have no words */
    struct Prompt prompt = make_prompt(input);
    memset(&run, 0, sizeof run);
    assert_int_equal(session_open(&run.s, e, &no_request, &prompt, &run.r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "words"));
    session_close(&run.s);
    e->settings.early = EARLY_AUTO;
    run_open(&run, e, input);
    assert_int_equal(run.s.plan.n_early, 0);
    run_close(&run);
    set_early(e, "1:3");
    run_open(&run, e, input);
    assert_true(run.s.plan.n_early == 1 && run.s.early.stop[0].words == 0);
    run_close(&run);
    engine_close(e);
}

/* Whatever the heads say, the chunks that share most words with the question go on, beside as many as without them. */
static void test_safe(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "");
    struct ChunkProfile *p = &e->chunks;
    char text[BYTES + 1] = "";
    double score[64];
    bool gone[64];
    uint64_t seed = 6;
    for (int i = 0; i < BYTES; i++)
        text[i] = i % 4 == 3 ? ' ' : (char)('a' + next_number(&seed) % 26);
    memcpy(text + 700, " XYZZY ", 7);
    e->settings.early = EARLY_PROFILE;
    e->settings.early_risk = 0.4f;
    e->settings.keep = 1;
    *p = (struct ChunkProfile){.n_layers = LAYERS, .n_kv_heads = 2, .n_stops = 2};
    for (int d = 0; d < 2; d++)
        p->stops[d] = (struct ChunkStop){.layer = 1 + d, .n_heads = 1, .n_ahead = 1};
    int found[2];
    for (int way = 0; way < 2; way++) {
        for (int d = 0; d < 2; d++)
            p->stops[d].heads[0] = (struct StopHead){d, way, MEASURE_SUM, 32, way ? -1 : 1};
        int n = text_scores(e, text, score, gone), best = 0, left = 0;
        for (int c = 0; c < n; c++) {
            left += gone[c];
            if (score[c] > score[best]) best = c;
        }
        assert_true(score[best] > 1e5 && !gone[best]); /* the only one that shares a word */
        for (int c = 0; c < n; c++) assert_true(c == best || score[c] < 1e5);
        assert_int_equal(n - left, 2 + 1); /* twice keep, and keep by words */
        found[way] = best;
    }
    assert_int_equal(found[0], found[1]);
    engine_close(e);
}

/* ==== Attention in the end ==== */

/* All heads of the last layer. */
static void set_last(struct ChunkProfile *p, float nats)
{
    *p = (struct ChunkProfile){.n_layers = LAYERS, .n_kv_heads = 2, .n_stops = 1, .nats = nats};
    p->last = (struct ChunkStop){.layer = LAYERS, .n_heads = 2};
    for (int h = 0; h < 2; h++)
        p->last.heads[h] = (struct StopHead){LAYERS - 1, h, MEASURE_SUM, EARLY_ROWS, 1};
}

/* The score by attention is that of the question less what the heads find, whether chunks leave early or not. */
static void test_attention(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_early(archs[a], PRECISION_F32, "");
        struct Outcome plain = outcome(e, input);
        struct Run run;
        struct Prompt prompt = make_prompt(input);
        double score[64];
        e->settings.chunk_score = SCORE_ATTENTION;
        memset(&run, 0, sizeof run);
        assert_int_equal(session_open(&run.s, e, &no_request, &prompt, &run.r), PC_ECONFIG);
        assert_non_null(strstr(err_text(), "calibrate chunks"));
        session_close(&run.s);
        set_last(&e->chunks, 0.75f);
        run_open(&run, e, input);
        brute_scores(&run, LAYERS, score);
        run_close(&run);
        struct Outcome off = outcome(e, input);
        for (int c = 0; c < off.n_chunks; c++)
            assert_true(fabs(off.score[c] - (plain.score[c] - 0.75 * score[c])) < 1e-3);
        for (int wave = 0; wave < 4; wave++) {
            e->settings.wave = wave;
            set_early(e, wave % 2 ? "1:99" : "1:99,2:99");
            struct Outcome on = outcome(e, input);
            same_bits(&off, &on);
        }
        engine_close(e);
    }
}

/* Words count beside it as in fusion. */
static void test_attention_words(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "");
    char text[BYTES + 1] = "";
    double score[4][64];
    bool gone[64];
    uint64_t seed = 7;
    int n = 0;
    for (int i = 0; i < BYTES; i++)
        text[i] = i % 4 == 3 ? ' ' : (char)('a' + next_number(&seed) % 26);
    memcpy(text + 700, " XYZZY ", 7);
    for (int i = 0; i < 4; i++) {
        set_last(&e->chunks, i == 3 ? 1 : 1e-6f);
        e->settings.chunk_score =
            (enum ChunkScore[]){SCORE_QUESTION, SCORE_FUSION, SCORE_ATTENTION, SCORE_ATTENTION}[i];
        n = text_scores(e, text, score[i], gone);
    }
    bool words = false, heads = false;
    for (int c = 0; c < n; c++) {
        assert_true(fabs(score[1][c] - score[2][c]) < 1e-3);
        words |= score[1][c] < score[0][c] - 0.1;
        heads |= fabs(score[3][c] - score[2][c]) > 0.1;
    }
    assert_true(words && heads);
    engine_close(e);
}

/* ==== Together with the rest ==== */

static void check_team(struct Case c)
{
    struct Report one, many[TEAM_MAX];
    must(run_team(&c, 1, &one));
    for (int i = 1; i < N_SIZES; i++) {
        must(run_team(&c, SIZES[i], many));
        if (c.answer == ANSWER_LEAD) same_bits(&one.o, &many[0].o);
        assert_int_equal(one.o.n_ids, many[0].o.n_ids);
        assert_memory_equal(one.o.ids, many[0].o.ids, sizeof one.o.ids);
        for (int r = c.answer == ANSWER_LEAD; r < SIZES[i]; r++) {
            assert_memory_equal(many[r].o.kept, one.o.kept, sizeof one.o.kept);
            assert_memory_equal(many[r].o.score, one.o.score, sizeof one.o.score);
        }
    }
}

static void test_team(void **state)
{
    (void)state;
    static const char *const margins[] = {"1:4", "1:5,2:3", "2:99"};
    for (size_t i = 0; i < sizeof margins / sizeof *margins; i++)
        for (int n = 0; n < 4; n++) {
            struct Case c = base;
            c.early_at = margins[i];
            c.wave = n;
            c.heads = n == 1;
            c.answer = n == 2 ? ANSWER_ALL : ANSWER_LEAD;
            check_team(c);
        }
}

/* Streaming heads have of each chunk what they keep, so that none need survive for them. */
static void test_heads(void **state)
{
    (void)state;
    struct Case c = base;
    struct Report off, on;
    c.heads = true;
    for (int wave = 0; wave < 4; wave++) {
        c.wave = wave;
        c.early_at = NULL;
        must(run_team(&c, 1, &off));
        c.early_at = "1:99,2:99";
        must(run_team(&c, 1, &on));
        same_bits(&off.o, &on.o);
        c.early_at = "1:4,2:3";
        must(run_team(&c, 1, &on));
        int kept = 0;
        for (int i = 0; i < on.o.n_chunks; i++) kept += on.o.kept[i];
        assert_int_equal(kept, c.keep);
    }
}

/* Of the same chunks in another order the same ones survive. */
static void test_order(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "1:4,2:3");
    struct Run run;
    bool survived[2][9];
    for (int turn = 0; turn < 2; turn++) {
        run_open(&run, e, input);
        for (int i = 0; turn && i < 9; i++) run.s.todo[i] = 8 - i;
        must(session_stages(&run.s, false));
        for (int c = 0; c < 9; c++) survived[turn][c] = run.r.chunks[c].n_layers == LAYERS;
        run_close(&run);
    }
    assert_memory_equal(survived[0], survived[1], sizeof survived[0]);
    engine_close(e);
}

/* ==== Words first ==== */

static void test_prefilter(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "");
    struct Str text = {0};
    for (int i = 0; i < 200; i++)
        must(str_appendf(&text, "%s", i == 117 ? "Here lies xyzzy. " : "nothing to see. "));
    struct Request req = {
        .context = text.data, .context_len = text.len, .question = "Where is xyzzy?"};
    struct Result r;
    for (int early = 0; early < 2; early++) {
        set_early(e, early ? "1:4,2:3" : "");
        e->settings.prefilter = 5;
        must(session_run(e, &req, &r));
        int read = 0, hit = 0;
        for (int c = 0; c < r.plan.n_chunks; c++) {
            bool in = strstr(text.data, "xyzzy") >= text.data + r.chunks[c].byte_begin &&
                      strstr(text.data, "xyzzy") < text.data + r.chunks[c].byte_end;
            read += r.chunks[c].n_layers > 0;
            hit += in && r.chunks[c].n_layers > 0;
            if (r.chunks[c].n_layers < LAYERS) assert_true(isnan(r.chunks[c].score));
        }
        assert_true(r.plan.n_chunks > 20);
        assert_int_equal(r.plan.n_read, 5);
        assert_int_equal(read, 5);
        assert_int_equal(hit, 1);
        double share = (early ? 5 + 4 + 3 : 15) / (3.0 * r.plan.n_chunks);
        assert_true(fabs(r.plan.read_share - share) < 1e-9);
        result_free(&r);
    }
    e->settings.prefilter = 1; /* keep is 2 */
    must(session_run(e, &req, &r));
    assert_int_equal(r.plan.n_read, 2);
    result_free(&r);
    str_free(&text);
    engine_close(e);
}

static void test_prefilter_team(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "");
    struct Run run;
    struct Prompt prompt = make_prompt(input);
    e->settings.prefilter = 4; /* of ids alone no words are known */
    run_open_prompt(&run, e, prompt);
    assert_int_equal(session_stages(&run.s, false), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "prefilter"));
    run_close(&run);
    engine_close(e);
}

/* ==== Memory and failures ==== */

/* What is taken is what was planned, and does not grow with the text. */
static void test_memory(void **state)
{
    (void)state;
    size_t used[2];
    for (int i = 0; i < 2; i++) {
        struct Case c = base;
        struct Report r;
        c.early_at = "1:6,2:4";
        c.wave = 2;
        c.input.context = i ? 4000 : 2000;
        must(run_team(&c, 1, &r));
        used[i] = r.used;
        double off = fabs((double)r.used - (double)r.planned);
        if (off > 0.05 * (double)r.planned + 4096)
            fail_msg("%zu bytes taken, %zu planned", r.used, r.planned);
    }
    assert_true(used[1] - used[0] < 2000 * 64); /* ids, cuts and scores */
}

static void test_faults(void **state)
{
    (void)state;
    struct Case c = base;
    c.early_at = "1:5,2:3";
    size_t before = mem_in_use();
    long failed = 0;
    for (long n = 1;; n++) {
        struct Engine *e = open_case(&c);
        struct Run run = {0};
        struct Prompt p = make_prompt(c.input);
        mem_fail_after(n);
        int status = session_open(&run.s, e, &no_request, &p, &run.r);
        if (status == PC_OK) status = session_stages(&run.s, true);
        mem_fail_after(0);
        session_close(&run.s);
        result_free(&run.r);
        engine_close(e);
        assert_int_equal(mem_in_use(), before);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_ENOMEM);
        failed = n;
    }
    assert_true(failed > 30);
}

/* ==== Refusals ==== */

static void test_bad_stops(void **state)
{
    (void)state;
    static const char *const bad[] = {"x",       "1",        "1:",      "1:0",
                                      "0:4",     "3:4",      "1:4;2:3", "1:4,",
                                      "2:4,1:3", "1:4,1:3",  "100%:4",  "1.5:4",
                                      "1:4,2:x", ":4",       "-1:4",    "1:-4",
                                      "1:4+",    "1:4+,2:3", "nan:3",   "1:9999999999999"};
    struct Engine *e = open_early("llama", PRECISION_F32, "");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct Run run = {0};
        struct Prompt p = make_prompt(input);
        set_early(e, bad[i]);
        if (session_open(&run.s, e, &no_request, &p, &run.r) != PC_ECONFIG)
            fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(err_text(), "early_at"));
        session_close(&run.s);
        result_free(&run.r);
    }
    engine_close(e);
}

/* Where all chunks stay, or are chosen without the model, nothing is decided. */
static void test_off(void **state)
{
    (void)state;
    struct Engine *e = open_early("llama", PRECISION_F32, "1:3");
    static const enum ChunkScore ahead[] = {SCORE_RANDOM};
    e->settings.keep = KEEP_ALL;
    struct Run run;
    run_open(&run, e, input);
    assert_int_equal(run.s.plan.n_early, 0);
    assert_true(run.s.plan.read_share == 1);
    run_close(&run);
    e->settings.keep = 2;
    e->settings.chunk_score = ahead[0];
    run_open(&run, e, input);
    assert_int_equal(run.s.plan.n_early, 0);
    run_close(&run);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_margin_for_all),
        cmocka_unit_test(test_survivors),
        cmocka_unit_test(test_profile),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_safe),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_words),
        cmocka_unit_test(test_team),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_prefilter),
        cmocka_unit_test(test_prefilter_team),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_bad_stops),
        cmocka_unit_test(test_off),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

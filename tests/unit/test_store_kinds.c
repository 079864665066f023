/* test_store_kinds.c - stored texts under what a run may have besides: several ranks, pages of codes, selected pages, head maps
 * whose full heads share what streaming ones free; and all of them together.
 */
#include "session_support.h"
#include "team_support.h"

enum { BYTES = 2600, MAX_CHUNKS = 64 };

static const char question[] = "Where is xyzzy?";
static char text[BYTES], path[] = "/tmp/pcomp_kinds_XXXXXX";

static int prepare(void **state)
{
    (void)state;
    uint64_t seed = 4;
    for (int i = 0; i < BYTES; i++)
        text[i] =
            i % 5 == 4 ? (i % 300 == 299 ? '\n' : ' ') : (char)('a' + next_number(&seed) % 26);
    memcpy(text + 901, " XYZZY ", 7);
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    return unlink(path);
}

static int clean(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

/* What one run is like. */
struct Kind {
    const char *arch;
    enum Precision precision;
    enum KvType kv_type;
    int cap, keep, wave;
    bool heads, shares, selects;
    enum ChunkScore score;
    enum AnswerRanks answer;
    const char *early_at; /* NULL: all layers read every chunk */
    int rounds;
};

static const struct Kind base = {.arch = "llama",
                                 .precision = PRECISION_F32,
                                 .kv_type = KV_AUTO,
                                 .cap = 50,
                                 .keep = 3,
                                 .wave = AUTO,
                                 .score = SCORE_QUESTION,
                                 .answer = ANSWER_LEAD,
                                 .rounds = 1};

static struct Engine *open_kind(const struct Kind *k)
{
    struct Engine *e = open_engine_of(k->arch, k->precision, k->kv_type, 1);
    struct Settings *set = &e->settings;
    set->chunk = 200;
    set->kv_cap = k->cap;
    set->keep = k->keep;
    set->wave = k->wave;
    set->chunk_score = k->score;
    set->answer_ranks = k->answer;
    set->rounds = k->rounds;
    set->early = k->early_at ? EARLY_AUTO : EARLY_OFF;
    snprintf(set->early_at, sizeof set->early_at, "%s", k->early_at ? k->early_at : "");
    if (k->selects) must(settings_set(set, "select", "bound"));
    if (k->selects) must(settings_set(set, "select_pages", "1"));
    set->select_sinks = set->select_recent = 0;
    if (!k->heads) return e;
    struct HeadShape shape = {e->model.cfg.n_layers, e->model.cfg.n_heads, e->model.cfg.n_kv_heads};
    must(headmap_random(&shape, 5, &e->heads));
    e->heads.sink = 4;
    e->heads.recent = 40;
    set->heads_ratio = 0.5f;
    if (k->shares) set->freed = FREED_SHARE;
    return e;
}

static void index_text(struct Engine *e)
{
    struct IndexInfo made;
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    must(session_index(e, &req, path, true, &made));
}

/* What is compared of two runs. */
struct Answer {
    int n_chunks, n_ids, ids[ANSWER];
    bool kept[MAX_CHUNKS];
    double score[MAX_CHUNKS];
    int64_t kv_kept[64], pages_read, pages_there;
    uint64_t hash;
    int n_left; /* chunks that left early */
};

static int run_one(struct Engine *e, bool stored, struct Answer *out)
{
    struct Store store;
    struct Result r;
    struct Request req = {.context = text, .context_len = BYTES, .question = question};
    memset(out, 0, sizeof *out);
    if (stored) must(store_open(path, &store));
    if (stored) req.store = &store;
    int status = session_run(e, &req, &r);
    for (int c = 0; status == PC_OK && c < r.plan.n_chunks; c++) {
        out->kept[c] = r.chunks[c].kept;
        out->n_left += r.chunks[c].n_layers < e->model.cfg.n_layers;
        out->score[c] = isnan(r.chunks[c].score) ? -r.chunks[c].n_layers : r.chunks[c].score;
    }
    out->n_chunks = r.plan.n_chunks;
    out->n_ids = r.n_ids;
    out->hash = r.logits_hash;
    out->pages_read = r.pages_read;
    out->pages_there = r.pages_there;
    if (r.ids) memcpy(out->ids, r.ids, sizeof(int) * (size_t)r.n_ids);
    for (int h = 0; r.kv_kept && h < e->model.cfg.n_layers * e->model.cfg.n_kv_heads; h++)
        out->kv_kept[h] = r.kv_kept[h];
    result_free(&r);
    if (stored) store_close(&store);
    return status;
}

static void same_kept(const struct Answer *a, const struct Answer *b, double tolerance)
{
    assert_int_equal(a->n_chunks, b->n_chunks);
    assert_true(a->n_chunks > 5 && a->n_chunks <= MAX_CHUNKS);
    assert_memory_equal(a->kv_kept, b->kv_kept, sizeof a->kv_kept);
    for (int c = 0; c < a->n_chunks; c++) {
        if (!(fabs(a->score[c] - b->score[c]) <= tolerance))
            fail_msg("chunk %d scores %g and %g", c, a->score[c], b->score[c]);
        assert_int_equal(a->kept[c], b->kept[c]);
    }
}

static void same_ids(const struct Answer *a, const struct Answer *b)
{
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, sizeof a->ids);
}

/* ==== Cold against ask ==== */

static void check_kind(const struct Kind *k, double tolerance)
{
    struct Engine *e = open_kind(k);
    struct Answer cold, asked;
    must(run_one(e, false, &cold));
    index_text(e);
    must(run_one(e, true, &asked));
    same_kept(&cold, &asked, tolerance);
    if (k->selects) assert_true(asked.pages_there > asked.pages_read && asked.pages_read > 0);
    if (k->selects) assert_int_equal(cold.pages_there, asked.pages_there);
    if (k->kv_type == KV_AUTO) same_ids(&cold, &asked);
    engine_close(e);
}

static void test_select(void **state)
{
    (void)state;
    struct Kind k = base;
    k.selects = true;
    k.cap = CAP_OFF;
    for (int a = 0; a < N_ARCHS; a++) {
        k.arch = archs[a];
        check_kind(&k, 1e-5);
    }
}

static void test_shared_room(void **state)
{
    (void)state;
    struct Kind k = base;
    k.heads = k.shares = true;
    check_kind(&k, 1e-5);
    k.selects = true;
    k.keep = KEEP_ALL;
    check_kind(&k, 1e-5);
}

/* Codes of 8 bits leave the choice as it is; those of 4 move the scores of a random model by what they
 * round off. */
static void test_codes(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++)
        for (int heads = 0; heads < 2; heads++) {
            struct Kind k = base;
            k.arch = archs[a];
            k.heads = heads;
            k.kv_type = KV_Q8;
            check_kind(&k, 0.03);
            k.kv_type = KV_Q4;
            k.keep = KEEP_ALL;
            check_kind(&k, 0.5);
        }
}

/* A store of codes is as much smaller as pages are, and is refused by a run of other pages. */
static void test_codes_bytes(void **state)
{
    (void)state;
    struct Kind k = base;
    size_t bytes[3];
    for (int type = KV_AUTO; type <= KV_Q4; type++) {
        struct IndexInfo made;
        struct Request req = {.context = text, .context_len = BYTES, .question = ""};
        k.precision = PRECISION_INT16;
        k.kv_type = (enum KvType)type;
        struct Engine *e = open_kind(&k);
        must(session_index(e, &req, path, true, &made));
        bytes[type] = made.bytes;
        engine_close(e);
    }
    assert_true(bytes[KV_Q8] < bytes[KV_AUTO] * 7 / 10 && bytes[KV_Q4] < bytes[KV_Q8] * 8 / 10);
    k.kv_type = KV_Q8;
    struct Engine *e = open_kind(&k);
    struct Answer asked;
    assert_int_equal(run_one(e, true, &asked), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "kv_type q4, and this is cpu f16, int16, kv_type q8"));
    engine_close(e);
}

/* ==== Several ranks ==== */

static void say_nothing(const char *news)
{
    (void)news;
}

static int code_of(int status)
{
    return status < 0 ? 10 - status : 0;
}

static int other_rank(struct Team *t, void *user)
{
    struct Engine *e = open_kind(user);
    struct Answer unused;
    must(engine_join(e, t));
    int status = run_one(e, true, &unused);
    engine_close(e);
    return code_of(team_close(t, status, say_nothing, code_of));
}

static void ask_team(const struct Kind *k, int size, struct Answer *out)
{
    struct Ranks r;
    struct Kind kind = *k;
    ranks_start(&r, size, other_rank, &kind);
    struct Engine *e = open_kind(k);
    must(engine_join(e, &r.team));
    int status = run_one(e, true, out);
    engine_close(e);
    must(team_close(&r.team, status, say_nothing, code_of));
    for (int i = 1; i < size; i++) assert_int_equal(ranks_wait(&r, i), 0);
}

static void check_team(const struct Kind *k)
{
    struct Engine *e = open_kind(k);
    struct Answer one, many;
    index_text(e);
    must(run_one(e, true, &one));
    assert_true(!k->early_at || one.n_left > 3);
    engine_close(e);
    for (int size = 2; size <= 4; size++) {
        ask_team(k, size, &many);
        same_kept(&one, &many, 0);
        same_ids(&one, &many);
        assert_true(k->answer == ANSWER_ALL || one.hash == many.hash);
    }
}

static void test_ranks(void **state)
{
    (void)state;
    for (int i = 0; i < 10; i++) {
        struct Kind k = base;
        k.arch = archs[i % N_ARCHS];
        k.precision = i % 2 ? PRECISION_INT16 : PRECISION_F32;
        k.kv_type = (enum KvType)(i % 3);
        k.keep = i == 2 ? KEEP_ALL : 1 + i % 4;
        k.cap = i % 4 == 1 ? CAP_OFF : 40;
        k.wave = i % 3;
        k.heads = i >= 5;
        k.score = i == 4 ? SCORE_RANDOM : i == 7 ? SCORE_FUSION : SCORE_QUESTION;
        k.selects = i == 3 && k.kv_type == KV_AUTO;
        check_team(&k);
        k.selects = false;
        k.answer = ANSWER_ALL; /* sums in another order: the bits of logits differ */
        check_team(&k);
    }
}

/* Ranks tell each other what stays at each decision; with a second round in both. */
static void test_early_ranks(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        struct Kind k = base;
        k.early_at = i % 2 ? "1:6,2:4" : "2:5";
        k.arch = archs[i % N_ARCHS];
        k.precision = i % 3 ? PRECISION_INT16 : PRECISION_F32;
        k.keep = 3;
        k.wave = i % 3;
        k.heads = i >= 5;
        k.rounds = 1 + i / 2 % 2;
        check_kind(&k, k.heads ? 5e-3 : 0);
        check_team(&k);
        k.answer = ANSWER_ALL;
        if (k.rounds == 1) check_team(&k);
    }
}

/* Only one rank writes: the engine's team is left out of it, and is there again afterwards. */
static void test_index_alone(void **state)
{
    (void)state;
    struct Engine *e = open_kind(&base);
    struct Team others = {.rank = 0, .size = 3};
    must(engine_join(e, &others));
    index_text(e);
    assert_true(e->team == &others);
    e->team = &e->alone;
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_select, clean),
        cmocka_unit_test_teardown(test_shared_room, clean),
        cmocka_unit_test_teardown(test_codes, clean),
        cmocka_unit_test_teardown(test_codes_bytes, clean),
        cmocka_unit_test_teardown(test_ranks, clean),
        cmocka_unit_test_teardown(test_early_ranks, clean),
        cmocka_unit_test_teardown(test_index_alone, clean),
    };
    return cmocka_run_group_tests_name("store_kinds", tests, prepare, clean) != 0;
}

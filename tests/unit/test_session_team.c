/* test_session_team.c - runs over several ranks: the same outcome as alone, however the chunks fall, and failures of a rank at
 * any stage.
 */
#include "session_support.h"
#include "team_support.h"

static const int SIZES[] = {1, 2, 3, 4, 8};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

static void say_nothing(const char *text)
{
    (void)text;
}

static int code_of(int status)
{
    return status < 0 ? 10 - status : 0;
}

/* What is run, and what goes wrong on a rank other than the first. */
struct Case {
    const char *arch;
    struct Input input;
    int chunk, keep, cap, wave;
    enum ChunkScore score;
    enum Method method;
    int n_calib;
    bool heads; /* half of the KV heads stream */
    int victim; /* rank; 0: none */
    enum Trouble { NONE, KILLED, NO_MEMORY, OTHER_SETTINGS, STOPPED } trouble;
    int after; /* calls of stop before it comes */
};

static const struct Case base = {
    "llama", {9, 900, 14, 1}, 128, 3,    50, AUTO, SCORE_QUESTION, METHOD_PARALLELCOMP,
    0,       false,           0,   NONE, 0};

static struct Engine *open_case(const struct Case *c)
{
    struct Engine *e = open_engine(c->arch, PRECISION_INT16, 1);
    struct Settings *set = &e->settings;
    set->chunk = c->chunk;
    set->keep = c->keep;
    set->kv_cap = c->cap;
    set->wave = c->wave;
    set->chunk_score = c->score;
    set->method = c->method;
    if (c->heads) {
        struct HeadShape shape = {e->model.cfg.n_layers, e->model.cfg.n_heads,
                                  e->model.cfg.n_kv_heads};
        must(headmap_random(&shape, 5, &e->heads));
        e->heads.sink = 4;
        e->heads.recent = 40;
        set->heads_ratio = 0.5f;
    }
    if (c->n_calib > 0)
        add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, LAYERS - 1, 0.02f, 10, 2, 1});
    if (c->n_calib > 1)
        add_rule(e, (struct CalibRule){CLASS_RECENT, 0, LAYERS - 1, 0.02f, 10, 2, 2});
    return e;
}

/* ==== One rank ==== */

static struct {
    int left;
    const struct Case *c;
    bool mine;
} trouble;

static bool on_stop(void *user)
{
    (void)user;
    if (!trouble.mine || trouble.left-- > 0) return false;
    if (trouble.c->trouble == KILLED) raise(SIGKILL);
    return trouble.c->trouble == STOPPED;
}

/* The stages of session_run, for a prompt of token ids. */
static int run_rank(struct Team *t, const struct Case *c, struct Outcome *o)
{
    struct Engine *e = open_case(c);
    struct Run run = {0};
    struct Prompt p = make_prompt(c->input);
    struct Request req = {.question = "", .stop = on_stop};
    trouble.c = c;
    trouble.mine = c->victim && t->rank == c->victim;
    trouble.left = c->after;
    if (trouble.mine && c->trouble == OTHER_SETTINGS) e->settings.obs_rows = 3;
    if (trouble.mine && c->trouble == NO_MEMORY) mem_fail_after(c->after);
    engine_join(e, t);
    int status = session_open(&run.s, e, &req, &p, &run.r);
    if (status == PC_OK) status = session_stages(&run.s, true);
    if (status == PC_OK) status = share_end(&run.s);
    mem_fail_after(0);
    if (status == PC_OK && t->rank == 0) {
        memset(o, 0, sizeof *o);
        o->n_chunks = run.s.plan.n_chunks;
        o->n_ids = run.r.n_ids;
        o->hash = run.r.logits_hash;
        memcpy(o->ids, run.r.ids, sizeof(int) * (size_t)o->n_ids);
        memcpy(o->last, run.s.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
        for (int h = 0; h < run.s.merged.n_heads; h++) o->kv_kept[h] = run.r.kv_kept[h];
    }
    for (int i = 0; status == PC_OK && i < run.s.plan.n_chunks && i < 64; i++) {
        o->kept[i] = run.r.chunks[i].kept;
        o->score[i] = run.r.chunks[i].score;
    }
    session_close(&run.s);
    result_free(&run.r);
    engine_close(e);
    return status;
}

/* ==== A team ==== */

/* What the other ranks need, and the pipe on which they send what they know of the chunks. */
struct Job {
    const struct Case *c;
    int pipe[2];
};

static int other_rank(struct Team *t, void *user)
{
    struct Job *job = user;
    struct Outcome o = {0};
    int status = run_rank(t, job->c, &o);
    if (status == PC_OK && write(job->pipe[1], &o, sizeof o) != (ssize_t)sizeof o) return 98;
    return code_of(team_close(t, status, say_nothing, code_of));
}

/* The status of rank 0, and of all others that were not killed. */
static int run_team(const struct Case *c, int size, struct Outcome *o)
{
    struct Ranks r;
    struct Job job = {.c = c};
    assert_int_equal(pipe(job.pipe), 0);
    ranks_start(&r, size, other_rank, &job);
    int status = run_rank(&r.team, c, o);
    int end = team_close(&r.team, status, say_nothing, code_of);
    close(job.pipe[1]);
    for (int i = 1; i < size; i++) {
        int how = ranks_wait(&r, i);
        bool killed = i == c->victim && c->trouble == KILLED;
        if (how != (killed ? 256 + SIGKILL : code_of(end)))
            fail_msg("rank %d of %d ended with %d, not %d", i, size, how, code_of(end));
    }
    bool shared = c->method == METHOD_PARALLELCOMP;
    for (int i = 1; i < size && end == PC_OK && shared; i++) { /* all know the chunks */
        struct Outcome other;
        assert_int_equal(read(job.pipe[0], &other, sizeof other), sizeof other);
        assert_memory_equal(other.kept, o->kept, sizeof o->kept);
        assert_memory_equal(other.score, o->score, sizeof o->score);
    }
    close(job.pipe[0]);
    return end;
}

static void check_case(const struct Case *c)
{
    struct Outcome one, many;
    assert_int_equal(run_team(c, 1, &one), PC_OK);
    assert_true(one.n_ids > 0);
    for (int i = 1; i < N_SIZES; i++) {
        must(run_team(c, SIZES[i], &many));
        same_bits(&one, &many);
        assert_memory_equal(one.kv_kept, many.kv_kept, sizeof one.kv_kept);
    }
}

/* Chunk counts that divide and that do not, down to fewer chunks than ranks. */
static void test_counts(void **state)
{
    (void)state;
    static const int tokens[] = {40, 128, 129, 300, 640, 900, 1200};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        struct Case c = base;
        c.input.context = tokens[i];
        c.input.seed = i + 1;
        check_case(&c);
    }
}

static void test_keep(void **state)
{
    (void)state;
    static const int keeps[] = {1, 2, 5, KEEP_ALL};
    for (size_t i = 0; i < sizeof keeps / sizeof *keeps; i++)
        for (int wave = 0; wave < 3; wave++) {
            struct Case c = base;
            c.keep = keeps[i];
            c.wave = wave;
            c.cap = wave == 2 ? CAP_OFF : 70;
            check_case(&c);
        }
}

static void test_archs(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++) {
        struct Case c = base;
        c.arch = archs[a];
        check_case(&c);
    }
}

/* The second stage of calibration needs what the readers know of each token. */
static void test_calibration(void **state)
{
    (void)state;
    for (int n = 1; n <= 2; n++) {
        struct Case c = base;
        c.n_calib = n;
        check_case(&c);
        c.cap = CAP_OFF;
        check_case(&c);
    }
}

/* Streaming heads keep the end of the last chunk, which rank 0 has read. */
static void test_heads(void **state)
{
    (void)state;
    struct Case c = base;
    c.heads = true;
    check_case(&c);
    c.keep = KEEP_ALL;
    c.wave = 2;
    c.cap = CAP_OFF;
    check_case(&c);
}

/* Winners are known before any is read: only they are shared out. */
static void test_ahead(void **state)
{
    (void)state;
    for (int keep = 1; keep <= 5; keep += 2) {
        struct Case c = base;
        c.score = SCORE_RANDOM;
        c.keep = keep;
        check_case(&c);
    }
}

/* One sequence is nothing to share: rank 0 does it. */
static void test_plain(void **state)
{
    (void)state;
    static const enum Method methods[] = {METHOD_FULL, METHOD_TRUNCATE, METHOD_STREAMING,
                                          METHOD_SNAPKV};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        struct Case c = base;
        c.method = methods[i];
        c.cap = CAP_OFF;
        check_case(&c);
    }
}

/* ==== Trouble ==== */

static void test_killed(void **state)
{
    (void)state;
    struct Outcome o;
    for (int size = 2; size <= 4; size++)
        for (int victim = 1; victim < size; victim++)
            for (int after = 0; after <= 6; after += 3) {
                struct Case c = base;
                c.victim = victim;
                c.trouble = KILLED;
                c.after = after;
                double begun = clock_seconds();
                assert_int_equal(run_team(&c, size, &o), PC_ELOST);
                assert_true(clock_seconds() - begun < 5);
            }
}

/* A rank that dies when all it does is wait for rank 0's answer. */
static int die_in_decode(struct Team *t, void *user)
{
    const struct Case *c = user;
    struct Engine *e = open_case(c);
    struct Run run = {0};
    struct Prompt p = make_prompt(c->input);
    struct Request req = {.question = ""};
    engine_join(e, t);
    if (session_open(&run.s, e, &req, &p, &run.r) < 0 || session_stages(&run.s, true) < 0)
        return 98;
    raise(SIGKILL); /* rank 0 asks the question and answers now */
    return 97;
}

static int n_texts;

static void slow_text(void *user, const char *piece, size_t len)
{
    (void)user, (void)piece, (void)len;
    n_texts++;
    usleep(100000);
}

static void test_killed_in_decode(void **state)
{
    (void)state;
    struct Case c = base;
    struct Ranks r;
    ranks_start(&r, 2, die_in_decode, &c);
    struct Engine *e = open_case(&c);
    struct Run run = {0};
    struct Prompt p = make_prompt(c.input);
    struct Request req = {.question = "", .on_text = slow_text};
    engine_join(e, &r.team);
    n_texts = 0;
    must(session_open(&run.s, e, &req, &p, &run.r));
    double begun = clock_seconds();
    assert_int_equal(session_stages(&run.s, true), PC_ELOST);
    assert_true(clock_seconds() - begun < 5);
    assert_true(n_texts < ANSWER);
    assert_non_null(strstr(err_text(), "rank 1 of 2 is gone"));
    session_close(&run.s);
    result_free(&run.r);
    engine_close(e);
    assert_int_equal(team_close(&r.team, PC_ELOST, say_nothing, code_of), PC_ELOST);
    assert_int_equal(ranks_wait(&r, 1), 256 + SIGKILL);
}

static void test_stopped(void **state)
{
    (void)state;
    struct Outcome o;
    struct Case c = base;
    c.victim = 1;
    c.trouble = STOPPED;
    c.after = 2;
    assert_int_equal(run_team(&c, 3, &o), PC_EINTR);
}

static void test_other_settings(void **state)
{
    (void)state;
    struct Outcome o;
    struct Case c = base;
    c.victim = 2;
    c.trouble = OTHER_SETTINGS;
    assert_int_equal(run_team(&c, 3, &o), PC_ECONFIG);
}

/* Every allocation of a rank's run fails once: all end with that, and nobody waits for ever. */
static void test_faults(void **state)
{
    (void)state;
    struct Outcome o;
    struct Case c = base;
    c.input.context = 300;
    c.victim = 1;
    c.trouble = NO_MEMORY;
    int status = PC_ENOMEM;
    for (c.after = 1; status == PC_ENOMEM; c.after++) {
        assert_true(c.after < 400);
        status = run_team(&c, 2, &o);
    }
    must(status);
    assert_true(c.after > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_keep),
        cmocka_unit_test(test_archs),
        cmocka_unit_test(test_calibration),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_ahead),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_killed_in_decode),
        cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_other_settings),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("session_team", tests, NULL, NULL) != 0;
}

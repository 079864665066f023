/* test_session_team.c - runs over several ranks: the same outcome as alone, however the chunks fall, and failures of a rank at
 * any stage.
 */
#include "session_team_support.h"

static void check_case(const struct Case *c)
{
    struct Report one, many[TEAM_MAX];
    assert_int_equal(run_team(c, 1, &one), PC_OK);
    assert_true(one.o.n_ids > 0);
    for (int i = 1; i < N_SIZES; i++) {
        must(run_team(c, SIZES[i], many));
        same_bits(&one.o, &many[0].o);
        assert_memory_equal(one.o.kv_kept, many[0].o.kv_kept, sizeof one.o.kv_kept);
        for (int r = 1; r < SIZES[i] && c->method == METHOD_PARALLELCOMP; r++) {
            assert_memory_equal(many[r].o.kept, one.o.kept, sizeof one.o.kept);
            assert_memory_equal(many[r].o.score, one.o.score, sizeof one.o.score);
        }
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

/* Streaming heads keep the end of the last kept chunk, whoever has read it. */
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
    struct Report all[TEAM_MAX];
    for (int size = 2; size <= 4; size++)
        for (int victim = 1; victim < size; victim++)
            for (int after = 0; after <= 6; after += 3) {
                struct Case c = base;
                c.victim = victim;
                c.trouble = KILLED;
                c.after = after;
                double begun = clock_seconds();
                assert_int_equal(run_team(&c, size, all), PC_ELOST);
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
    must(engine_join(e, t));
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
    must(engine_join(e, &r.team));
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
    struct Report all[TEAM_MAX];
    struct Case c = base;
    c.victim = 1;
    c.trouble = STOPPED;
    c.after = 2;
    assert_int_equal(run_team(&c, 3, all), PC_EINTR);
}

static void test_other_settings(void **state)
{
    (void)state;
    struct Report all[TEAM_MAX];
    struct Case c = base;
    c.victim = 2;
    c.trouble = OTHER_SETTINGS;
    assert_int_equal(run_team(&c, 3, all), PC_ECONFIG);
}

/* Every allocation of a rank's run fails once: all end with that, and nobody waits for ever. */
static void test_faults(void **state)
{
    (void)state;
    struct Report all[TEAM_MAX];
    struct Case c = base;
    c.input.context = 300;
    c.victim = 1;
    c.trouble = NO_MEMORY;
    int status = PC_ENOMEM;
    for (c.after = 1; status == PC_ENOMEM; c.after++) {
        assert_true(c.after < 400);
        status = run_team(&c, 2, all);
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

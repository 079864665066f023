/* test_team.c - teams: what launchers say, messages between ranks, and failures that reach everyone once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "team_support.h"

#include <sched.h>
#include <sys/resource.h>

static const int SIZES[] = {1, 2, 3, 4, 8};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

/* ==== Launchers ==== */

static const char *const NAMES[] = {"OMPI_COMM_WORLD_RANK",
                                    "OMPI_COMM_WORLD_SIZE",
                                    "OMPI_COMM_WORLD_LOCAL_RANK",
                                    "OMPI_COMM_WORLD_LOCAL_SIZE",
                                    "PMI_RANK",
                                    "PMI_SIZE",
                                    "MPI_LOCALRANKID",
                                    "MPI_LOCALNRANKS",
                                    "SLURM_PROCID",
                                    "SLURM_STEP_NUM_TASKS",
                                    "SLURM_LOCALID",
                                    "SLURM_STEP_TASKS_PER_NODE",
                                    "SLURM_CPUS_PER_TASK"};

/* What is read when these variables are set: "NAME=VALUE NAME=VALUE". */
static struct Launch launch_of(const char *text)
{
    char copy[512], *save = NULL;
    struct Launch l;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) unsetenv(NAMES[i]);
    snprintf(copy, sizeof copy, "%s", text);
    for (char *pair = strtok_r(copy, " ", &save); pair; pair = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(pair, '=');
        *equals = '\0';
        setenv(pair, equals + 1, 1);
    }
    launch_read(&l);
    return l;
}

static void test_launch(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        struct Launch want;
    } cases[] = {
        {"", {0, 1, 0, 1, 0}},
        {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=2",
         {3, 4, 1, 2, 0}},
        {"PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2", {1, 2, 1, 2, 0}},
        {"SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=4(x2) "
         "SLURM_CPUS_PER_TASK=6",
         {5, 8, 1, 4, 6}},
        /* mpirun in a job of Slurm */
        {"OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=3",
         {0, 2, 0, 1, 0}},
        /* a batch script is no step; alone, the cores are the process's own affair */
        {"SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_CPUS_PER_TASK=6", {0, 1, 0, 1, 0}},
        /* nonsense is no launcher */
        {"PMI_RANK=4 PMI_SIZE=4", {0, 1, 0, 1, 0}},
        {"PMI_RANK=-1 PMI_SIZE=4", {0, 1, 0, 1, 0}},
        {"PMI_RANK=x PMI_SIZE=4", {0, 1, 0, 1, 0}},
        {"PMI_RANK=1 PMI_SIZE=999999999999", {0, 1, 0, 1, 0}},
        {"OMPI_COMM_WORLD_RANK=0 PMI_RANK=1 PMI_SIZE=2", {1, 2, 0, 1, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Launch l = launch_of(cases[i].text);
        assert_memory_equal(&l, &cases[i].want, sizeof l);
    }
    launch_of("");
}

static void test_threads(void **state)
{
    (void)state;
    cpu_set_t all, one;
    int n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    struct Launch l = {.size = 2, .local_size = 1};
    assert_int_equal(launch_threads(&l), CPU_COUNT(&all) < n ? CPU_COUNT(&all) : n);
    l.local_size = 4 * n; /* more processes than cores */
    assert_int_equal(launch_threads(&l), 1);
    l.cpus = 1000000; /* never more than may be used */
    assert_int_equal(launch_threads(&l), CPU_COUNT(&all));
    l.cpus = 0;
    l.local_size = 1;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all)) CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(launch_threads(&l), 1);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

static void check_gpu(const char *seen, int local_rank, int local_size, const char *want)
{
    struct Launch l = {.size = local_size, .local_rank = local_rank, .local_size = local_size};
    setenv("CUDA_VISIBLE_DEVICES", seen, 1);
    launch_gpu(&l);
    assert_string_equal(getenv("CUDA_VISIBLE_DEVICES"), want);
}

static void test_gpu(void **state)
{
    (void)state;
    check_gpu("0,1,2,3", 2, 4, "2");
    check_gpu("3,5", 0, 4, "3");
    check_gpu("3,5", 1, 4, "5");
    check_gpu("3,5", 2, 4, "3"); /* more processes than GPUs */
    check_gpu("GPU-8a3f,GPU-77c0", 1, 2, "GPU-77c0");
    check_gpu("7", 1, 2, "7"); /* Slurm has given each its own */
    check_gpu("", 1, 2, "");   /* none is to be seen */
    check_gpu("0,1", 0, 1, "0,1");
    unsetenv("CUDA_VISIBLE_DEVICES");
}

/* ==== What is said at the end ==== */

static struct {
    int n;
    char text[TEAM_MAX][1200];
} said;

static void say(const char *text)
{
    if (said.n < TEAM_MAX) snprintf(said.text[said.n], sizeof said.text[0], "%s", text);
    said.n++;
}

static int code_of(int status)
{
    return status < 0 ? 10 - status : 0;
}

/* The other ranks keep silent: their exit code says how they ended, 99 that they spoke. */
static int end_other(struct Team *t, int status)
{
    said.n = 0;
    status = team_close(t, status, say, code_of);
    return said.n ? 99 : code_of(status);
}

/* Rank 0's end; all others must have ended with the same, but one that was killed. */
static int end_first(struct Ranks *r, int status, int killed)
{
    int size = r->team.size;
    memset(&said, 0, sizeof said);
    status = team_close(&r->team, status, say, code_of);
    for (int i = 1; i < size; i++)
        assert_int_equal(ranks_wait(r, i), i == killed ? 256 + SIGKILL : code_of(status));
    return status;
}

/* ==== Messages ==== */

static uint8_t byte_of(int rank, size_t i)
{
    return (uint8_t)(i * 31 + (size_t)rank * 7 + 1);
}

/* Gathers parts of so many bytes and checks all of them. */
static int gather_once(struct Team *t, size_t len)
{
    uint8_t *all = calloc((size_t)t->size, len + 1);
    for (size_t i = 0; i < len; i++) all[(size_t)t->rank * len + i] = byte_of(t->rank, i);
    int status = team_gather(t, all, len);
    for (int r = 0; r < t->size && status == PC_OK; r++)
        for (size_t i = 0; i < len; i++)
            if (all[(size_t)r * len + i] != byte_of(r, i))
                status = err_set(PC_EINTERNAL, "wrong byte %zu of rank %d", i, r);
    free(all);
    return status;
}

static int text_once(struct Team *t, const char *want)
{
    struct Str text = {0};
    TRY(str_appendf(&text, "%s", t->rank ? "something else, and longer than what comes" : want));
    int status = team_text(t, &text);
    if (status == PC_OK && (text.len != strlen(want) || strcmp(text.data, want) != 0))
        status = err_set(PC_EINTERNAL, "text '%s'", text.data);
    str_free(&text);
    return status;
}

static int talk(struct Team *t, void *user)
{
    static const size_t lens[] = {0, 1, 8, 1000, 300001};
    int number = t->rank ? -1 : 4711;
    (void)user;
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) TRY(gather_once(t, lens[i]));
    TRY(team_broadcast(t, &number, sizeof number));
    if (number != 4711) return err_set(PC_EINTERNAL, "number %d", number);
    TRY(text_once(t, ""));
    TRY(text_once(t, "a text of rank 0"));
    return team_check(t);
}

static int talk_other(struct Team *t, void *user)
{
    return end_other(t, talk(t, user));
}

static void test_messages(void **state)
{
    (void)state;
    for (int i = 0; i < N_SIZES; i++) {
        struct Ranks r;
        ranks_start(&r, SIZES[i], talk_other, NULL);
        int status = talk(&r.team, NULL);
        if (status < 0) fail_msg("%d ranks: %s", SIZES[i], err_text());
        assert_int_equal(end_first(&r, status, -1), PC_OK);
        assert_int_equal(said.n, 0);
        assert_true(SIZES[i] == 1 || r.whole);
    }
}

static void test_alone(void **state)
{
    (void)state;
    struct Team zero = {0};
    struct Str text = {0};
    assert_int_equal(team_check(&zero), PC_OK);
    assert_int_equal(team_text(&zero, &text), PC_OK);
    assert_int_equal(team_close(&zero, PC_EIO, say, code_of), PC_EIO);
}

/* ==== Failures ==== */

/* Ranks of `mask` fail before they talk; text 0: each its own, 1: the same. */
struct Plan {
    int mask, same;
};

static int fail_or_talk(struct Team *t, void *user)
{
    const struct Plan *p = user;
    if (p->mask >> t->rank & 1)
        return p->same ? err_set(PC_EFORMAT, "a bad file")
                       : err_set(PC_EFORMAT, "bad file %d", t->rank);
    return talk(t, NULL);
}

static int fail_other(struct Team *t, void *user)
{
    return end_other(t, fail_or_talk(t, user));
}

static void check_failures(int size, struct Plan p)
{
    struct Ranks r;
    char want[64];
    ranks_start(&r, size, fail_other, &p);
    int status = fail_or_talk(&r.team, &p);
    assert_int_equal(status, PC_EFORMAT);
    if (!(p.mask & 1)) assert_non_null(strstr(err_text(), "rank "));
    assert_int_equal(end_first(&r, status, -1), PC_EFORMAT);
    assert_int_equal(r.code, code_of(PC_EFORMAT));
    assert_int_equal(said.n, p.same ? 1 : __builtin_popcount((unsigned)p.mask));
    for (int i = 0, at = 0; i < size && !p.same; i++) {
        if (!(p.mask >> i & 1)) continue;
        snprintf(want, sizeof want, "rank %d of %d: bad file %d", i, size, i);
        assert_string_equal(said.text[at++], want);
    }
}

static void test_failures(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size++)
        for (int mask = 1; mask < 1 << size; mask++)
            for (int same = 0; same < 2; same++) check_failures(size, (struct Plan){mask, same});
    check_failures(3, (struct Plan){5, 1});
    assert_string_equal(said.text[0], "ranks 0, 2 of 3: a bad file");
    check_failures(3, (struct Plan){2, 1});
    assert_string_equal(said.text[0], "rank 1 of 3: a bad file");
}

/* ==== Ranks that die ==== */

/* One rank kills itself; user: which, and whether others then wait for it or ask between two pieces of work. */
struct Death {
    int rank;
    bool ask;
};

static int die_or_wait(struct Team *t, void *user)
{
    const struct Death *d = user;
    TRY(talk(t, NULL));
    if (t->rank == d->rank) raise(SIGKILL);
    if (!d->ask) return talk(t, NULL);
    for (int i = 0; i < 2000; i++) {
        TRY(team_check(t));
        usleep(1000);
    }
    return PC_OK;
}

/* Without rank 0 each speaks for itself. */
static int die_other(struct Team *t, void *user)
{
    return end_other(t, die_or_wait(t, user));
}

static void test_death(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size++)
        for (int dead = 1; dead < size; dead++)
            for (int ask = 0; ask < 2; ask++) {
                struct Ranks r;
                struct Death d = {dead, ask};
                char want[32];
                double begun = clock_seconds();
                ranks_start(&r, size, die_other, &d);
                int status = die_or_wait(&r.team, &d);
                assert_int_equal(status, PC_ELOST);
                assert_int_equal(end_first(&r, status, dead), PC_ELOST);
                assert_false(r.whole);
                assert_int_equal(said.n, 1);
                snprintf(want, sizeof want, "rank %d of %d: gone", dead, size);
                assert_non_null(strstr(said.text[0], want));
                assert_true(clock_seconds() - begun < 5);
            }
}

static int orphan(struct Team *t, void *user)
{
    (void)user;
    int status = talk(t, NULL);
    if (status == PC_OK) status = talk(t, NULL);
    memset(&said, 0, sizeof said);
    status = team_close(t, status, say, code_of);
    bool told = said.n == 1 && strstr(said.text[0], "rank 0 is gone");
    return told ? code_of(status) : 99;
}

static void test_death_of_first(void **state)
{
    (void)state;
    struct Ranks r;
    ranks_start(&r, 3, orphan, NULL);
    assert_int_equal(talk(&r.team, NULL), PC_OK);
    r.team.link->close(r.team.self, false, 0); /* what the kernel does for a dead process */
    for (int i = 1; i < 3; i++) assert_int_equal(ranks_wait(&r, i), code_of(PC_ELOST));
}

/* ==== Stops ==== */

static bool at_once(void *user)
{
    (void)user;
    return true;
}

static int wait_for_word(struct Team *t, void *user)
{
    int number;
    (void)user;
    return end_other(t, team_broadcast(t, &number, sizeof number));
}

static void test_stop(void **state)
{
    (void)state;
    struct Ranks r;
    char byte;
    ranks_start(&r, 3, wait_for_word, NULL);
    r.team.stop = at_once;
    int status = team_receive(&r.team, 1, &byte, 1); /* which never comes */
    assert_int_equal(status, PC_EINTR);
    assert_int_equal(end_first(&r, status, -1), PC_EINTR);
    assert_int_equal(said.n, 0);
}

/* ==== Sockets ==== */

/* Rank 1 fails behind data that nobody takes; the others only ask. */
static int fail_behind_data(struct Team *t, void *user)
{
    char data[5000] = "";
    (void)user;
    if (t->rank == 1) {
        TRY(team_send(t, 0, data, sizeof data));
        return err_set(PC_EFORMAT, "a bad file");
    }
    for (int i = 0; i < 5000; i++) {
        TRY(team_check(t));
        usleep(1000);
    }
    return PC_OK;
}

static int fail_behind_data_other(struct Team *t, void *user)
{
    return end_other(t, fail_behind_data(t, user));
}

static void test_news_before_data(void **state)
{
    (void)state;
    struct Ranks r;
    ranks_start(&r, 3, fail_behind_data_other, NULL);
    int status = fail_behind_data(&r.team, NULL);
    assert_int_equal(status, PC_EFORMAT);
    assert_string_equal(err_text(), "rank 1 of 3: a bad file");
    assert_int_equal(end_first(&r, status, -1), PC_EFORMAT);
}

static int send_less(struct Team *t, void *user)
{
    char data[16] = "";
    (void)user;
    return t->rank ? team_send(t, 0, data, 15) : team_receive(t, 1, data, 16);
}

static int send_less_other(struct Team *t, void *user)
{
    return end_other(t, send_less(t, user));
}

/* A rank leaves with news unread, which the kernel tells the one that sent them as an error, ahead of its last word. */
static void test_word_before_close(void **state)
{
    (void)state;
    struct TeamEnds ends[2][2];
    struct Team team[2] = {{0}};
    int data[2], news[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, data), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, news), 0);
    for (int i = 0; i < 2; i++) {
        ends[i][i] = (struct TeamEnds){-1, -1};
        ends[i][!i] = (struct TeamEnds){data[i], news[i]};
        assert_int_equal(team_sockets_open(ends[i], i, 2, &team[i]), PC_OK);
        team[i].closing = true;
    }
    struct TeamNews bad = {.status = PC_EFORMAT, .own = true, .text = "a bad file"};
    int32_t status = PC_EFORMAT, heard = PC_OK;
    assert_int_equal(team[1].link->send(team[1].self, &team[1], 0, TEAM_FAIL, &bad, sizeof bad),
                     PC_OK);
    assert_int_equal(
        team[0].link->send(team[0].self, &team[0], 1, TEAM_END, &status, sizeof status), PC_OK);
    team[0].link->close(team[0].self, true, 0);
    assert_int_equal(
        team[1].link->receive(team[1].self, &team[1], 0, TEAM_END, &heard, sizeof heard), PC_OK);
    assert_int_equal(heard, PC_EFORMAT);
    team[1].link->close(team[1].self, true, 0);
}

static void test_lengths(void **state)
{
    (void)state;
    struct Ranks r;
    ranks_start(&r, 2, send_less_other, NULL);
    int status = send_less(&r.team, NULL);
    assert_int_equal(status, PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "15 bytes, not 16"));
    assert_int_equal(end_first(&r, status, -1), PC_EINTERNAL);
}

/* ==== Processes that --ranks starts ==== */

/* Rank 0's status; the others end here, rank `dead` by a signal once all have talked. */
static int local_once(int size, int dead)
{
    struct Launch l = {0, 1, 0, 1, 0};
    struct Team t = {0};
    TRY(team_local_open(size, &l, &t));
    bool right = l.rank == t.rank && l.size == size && l.local_rank == t.rank &&
                 l.local_size == size && t.size == size;
    int status = right ? talk(&t, NULL) : err_set(PC_EINTERNAL, "wrong launch");
    if (dead && t.rank == dead) raise(SIGKILL);
    if (status == PC_OK && dead) status = talk(&t, NULL);
    if (t.rank > 0) _exit(end_other(&t, status));
    memset(&said, 0, sizeof said);
    return team_close(&t, status, say, code_of);
}

static void test_local(void **state)
{
    (void)state;
    for (int size = 2; size <= 5; size++) {
        assert_int_equal(local_once(size, 0), PC_OK);
        assert_int_equal(said.n, 0);
        for (int dead = 1; dead < size; dead++) {
            double begun = clock_seconds();
            assert_int_equal(local_once(size, dead), PC_ELOST);
            assert_int_equal(said.n, 1);
            assert_true(clock_seconds() - begun < 5);
        }
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* none is left behind */
    }
}

static void test_local_refused(void **state)
{
    (void)state;
    struct rlimit limit, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    few = limit;
    few.rlim_cur = 20;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    assert_int_equal(local_once(5, 0), PC_EIO);
    assert_non_null(strstr(err_text(), "--ranks"));
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(local_once(5, 0), PC_OK); /* no socket was left open */
}

static void test_local_faults(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    int n = 1;
    for (int status = PC_ENOMEM; status == PC_ENOMEM; n++) {
        mem_fail_after(n);
        status = local_once(3, 0);
        mem_fail_after(0);
        assert_true(status == PC_ENOMEM || status == PC_OK);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
        assert_int_equal(mem_in_use(), before);
    }
    assert_true(n > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpu),
        cmocka_unit_test(test_launch),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_death),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_death_of_first),
        cmocka_unit_test(test_news_before_data),
        cmocka_unit_test(test_word_before_close),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_local),
        cmocka_unit_test(test_local_refused),
        cmocka_unit_test(test_local_faults),
    };
    return cmocka_run_group_tests_name("team", tests, NULL, NULL) != 0;
}

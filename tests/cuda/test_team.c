/* test_team.c - runs over several ranks with GPUs: the chunks, tokens and answer of one rank, by whatever way pages and parts
 * go; the same bits on all ranks where all answer; and a rank that is killed, which ends the others within seconds.
 *
 * With as many GPUs as ranks these are joined by NCCL, where it is found; with fewer, ranks share. A process that has touched a
 * GPU cannot be copied, so every case has processes of its own and leaves what it found in shared memory.
 */
#include "src/session.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BYTES = 24000, RANKS = 4, CHUNKS = 64, SKIPPED = 77 };

struct Case {
    const char *name;
    int ranks;
    const char *kv_type, *answer;
    bool one_gpu;   /* all share the first */
    int kill_after; /* rank 1 dies when it has asked so many times whether to stop; 0: never */
};

/* What each rank found. */
struct Found {
    int status, n_chunks, n_ids, ids[64];
    bool kept[CHUNKS], direct;
    double score[CHUNKS];
    uint64_t hash;
};

static int passed, failed;
static char text[BYTES];
static struct Found *found; /* [RANKS] shared */

static void check(bool ok, const char *what, const char *name)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s: %s\n", name, what);
}

/* ==== One rank ==== */

static int calls_left = -1;

static bool on_stop(void *user)
{
    (void)user;
    if (calls_left > 0 && --calls_left == 0) raise(SIGKILL);
    return false;
}

static void set_all(struct Settings *set, const struct Case *c)
{
    const char *const with[][2] = {{"backend", "cuda"},
                                   {"chunk", "1000"},
                                   {"window", "2048"},
                                   {"kv_cap", "200"},
                                   {"keep", "5"},
                                   {"wave", "3"},
                                   {"max_tokens", "12"},
                                   {"kv_type", c->kv_type},
                                   {"gpu_memory", "8G"},
                                   {"threads", "2"},
                                   {"answer_ranks", c->answer}};
    settings_default(set);
    for (size_t i = 0; i < sizeof with / sizeof *with; i++)
        settings_set(set, with[i][0], with[i][1]);
}

static void note(struct Found *f, const struct Engine *e, const struct Result *r)
{
    f->n_chunks = r->plan.n_chunks;
    for (int i = 0; i < r->plan.n_chunks && i < CHUNKS; i++) {
        f->kept[i] = r->chunks[i].kept;
        f->score[i] = r->chunks[i].score;
    }
    f->n_ids = r->n_ids;
    for (int i = 0; i < r->n_ids && i < 64; i++) f->ids[i] = r->ids[i];
    f->hash = r->logits_hash;
    f->direct = e->peers.direct;
}

static int run_rank(const struct Case *c, struct Team *t)
{
    struct Settings set;
    struct Engine *e = NULL;
    struct Result r = {0};
    struct Request req = {.context = text,
                          .context_len = BYTES,
                          .question = "Which letter was the first of all?",
                          .stop = on_stop};
    int status;
    set_all(&set, c);
    TRY(engine_open("geometry:smollm2-135m", &set, &e));
    TRY_GOTO(engine_join(e, t));
    if (t->rank == 1) calls_left = c->kill_after ? c->kill_after : -1;
    TRY_GOTO(session_run(e, &req, &r));
    note(&found[t->rank], e, &r);
fail:
    result_free(&r);
    engine_close(e);
    return status;
}

/* ==== A case ==== */

static void say(const char *news)
{
    printf("  (%s)\n", news);
}

static int code_of(int status)
{
    return status < 0 ? 10 - status : 0;
}

/* In a process of its own. */
static int run_case(const struct Case *c)
{
    struct Launch l = {0, 1, 0, 1, 0};
    struct Team t = {.size = 1};
    if (c->one_gpu) setenv("CUDA_VISIBLE_DEVICES", "0", 1);
    if (c->ranks > 1) {
        TRY(team_local_open(c->ranks, &l, &t));
        launch_gpu(&l);
    }
    int rank = t.rank;
    if (!backend_cuda.available()) _exit(SKIPPED);
    int status = run_rank(c, &t);
    if (status < 0 && c->ranks == 1) printf("FAIL %s\n", err_text());
    status = team_close(&t, status, say, code_of);
    found[rank].status = status;
    return code_of(status);
}

static int start(const struct Case *c)
{
    int how = 0;
    memset(found, 0, sizeof *found * RANKS);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(100);
        int code = run_case(c);
        fflush(NULL);
        _exit(code);
    }
    while (waitpid(pid, &how, 0) < 0) continue;
    return WIFEXITED(how) ? WEXITSTATUS(how) : 256 + WTERMSIG(how);
}

static void compare(const struct Case *c, const struct Found *one)
{
    double worst = 0;
    bool kept = true;
    for (int i = 0; i < one->n_chunks; i++) {
        kept &= one->kept[i] == found[0].kept[i];
        worst = fmax(worst, fabs(one->score[i] - found[0].score[i]));
    }
    check(one->n_chunks > 10 && one->n_chunks == found[0].n_chunks, "chunks", c->name);
    check(kept, "the same chunks stay", c->name);
    check(worst < 0.005, "scores", c->name); /* products of other numbers of rows, in bf16 */
    check(one->n_ids == found[0].n_ids &&
              !memcmp(one->ids, found[0].ids, sizeof(int) * (size_t)one->n_ids),
          "the same answer", c->name);
    for (int r = 1; r < c->ranks && !strcmp(c->answer, "all"); r++)
        check(found[r].hash == found[0].hash &&
                  !memcmp(found[r].ids, found[0].ids, sizeof found[0].ids),
              "all ranks have the same", c->name);
    printf("%s: %s, scores off by at most %.2g\n", c->name,
           c->ranks == 1     ? "alone"
           : found[0].direct ? "from GPU to GPU"
                             : "through the host",
           worst);
}

/* A rank dies in prefill, in the question or in the answer. */
static void check_killed(struct Case c)
{
    static const int places[] = {2, 40, 150, 260, 275};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        c.kill_after = places[i];
        double begun = clock_seconds();
        int code = start(&c);
        if (code == 0) printf("%s: over before call %d\n", c.name, c.kill_after);
        check(code == code_of(PC_ELOST) || (code == 0 && i > 2), "a rank is gone", c.name);
        check(clock_seconds() - begun < 30, "at once", c.name);
    }
}

int main(void)
{
    static const struct Case cases[] = {{"lead, 2 ranks", 2, "auto", "lead", false, 0},
                                        {"lead, 3 ranks", 3, "auto", "lead", false, 0},
                                        {"lead, one GPU", 2, "auto", "lead", true, 0},
                                        {"q8, 2 ranks", 2, "q8", "lead", false, 0},
                                        {"q4, 4 ranks", 4, "q4", "lead", false, 0},
                                        {"all, 2 ranks", 2, "auto", "all", false, 0},
                                        {"all, 3 ranks", 3, "auto", "all", false, 0},
                                        {"all, one GPU", 2, "auto", "all", true, 0},
                                        {"all q8, 2 ranks", 2, "q8", "all", false, 0}};
    if (!&backend_cuda) return 1;
    found = mmap(NULL, sizeof *found * RANKS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                 -1, 0);
    if (found == MAP_FAILED) return 1;
    log_set(LOG_ERROR);
    for (int i = 0; i < BYTES; i++) text[i] = i % 50 == 49 ? '\n' : (char)('a' + i * i / 7 % 26);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Case alone = cases[i];
        alone.ranks = 1;
        int code = start(&alone);
        if (code == SKIPPED) {
            puts("SKIP: no GPU");
            return 0;
        }
        struct Found one = found[0];
        check(code == 0, "one rank", cases[i].name);
        check(start(&cases[i]) == 0, "several ranks", cases[i].name);
        compare(&cases[i], &one);
    }
    check_killed(cases[0]);
    check_killed(cases[5]);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

/* team.c - see team.h */
#include "team.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ==== What the launcher says ==== */

/* The number in a variable, or `none` when there is not one of `least` or more. */
static int env_int(const char *name, int least, int none)
{
    const char *text = getenv(name);
    char *end;
    long n = text ? strtol(text, &end, 10) : none;
    /* Slurm writes "2(x3)" where nodes are alike */
    bool whole = text && end != text && (*end == '\0' || *end == '(');
    return whole && n >= least && n <= 1 << 20 ? (int)n : none;
}

/* The variables of one launcher: the process's place, and its place on its machine. */
struct LauncherNames {
    const char *rank, *size, *local_rank, *local_size;
};

/* mpirun runs inside jobs of Slurm, so its own variables come first; srun's are those of a step, not of the batch script. */
static const struct LauncherNames LAUNCHERS[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"},
};

void launch_read(struct Launch *out)
{
    *out = (struct Launch){.size = 1, .local_size = 1};
    for (size_t i = 0; i < sizeof LAUNCHERS / sizeof *LAUNCHERS; i++) {
        const struct LauncherNames *names = &LAUNCHERS[i];
        int size = env_int(names->size, 1, 0), rank = env_int(names->rank, 0, -1);
        if (rank < 0 || rank >= size) continue;
        *out = (struct Launch){rank, size, env_int(names->local_rank, 0, 0),
                               env_int(names->local_size, 1, 1), 0};
        break;
    }
    if (out->size > 1) out->cpus = env_int("SLURM_CPUS_PER_TASK", 1, 0);
}

int launch_threads(const struct Launch *l)
{
    cpu_set_t set;
    long all = sysconf(_SC_NPROCESSORS_ONLN);
    int allowed = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)all,
        share = l->cpus ? l->cpus : (int)(all / l->local_size);
    if (share < 1) share = 1;
    return share < allowed ? share : allowed;
}

/* GPUs of this machine, as its driver numbers them. */
static int gpu_count(void)
{
    char path[32];
    int n = 0;
    do snprintf(path, sizeof path, "/dev/nvidia%d", n);
    while (access(path, F_OK) == 0 && ++n);
    return n;
}

void launch_gpu(const struct Launch *l)
{
    const char *seen = getenv("CUDA_VISIBLE_DEVICES");
    char mine[64];
    int n = seen && *seen ? 1 : gpu_count();
    if (l->local_size <= 1 || n == 0 || (seen && !*seen)) return;
    for (const char *c = seen; c && *c; c++) n += *c == ',';
    int at = l->local_rank % n;
    snprintf(mine, sizeof mine, "%d", at);
    for (; seen && at > 0; at--) seen = strchr(seen, ',') + 1;
    if (seen) snprintf(mine, sizeof mine, "%.*s", (int)strcspn(seen, ","), seen);
    setenv("CUDA_VISIBLE_DEVICES", mine, 1);
}

/* ==== Failures of others ==== */

static int fail_with(struct Team *t, int from, const struct TeamNews *news)
{
    t->status = news->status;
    if (news->status == PC_EINTR) return err_set(PC_EINTR, "stopped");
    if (news->status == PC_ELOST)
        return err_set(PC_ELOST, "rank %d of %d is gone: it was killed or its machine is lost",
                       from, t->size);
    return err_set(news->status, "rank %d of %d: %s", from, t->size, news->text);
}

int team_check(struct Team *t)
{
    struct TeamNews news;
    int from;
    if (t->size <= 1) return PC_OK;
    return t->link->heard(t->self, &from, &news) ? fail_with(t, from, &news) : PC_OK;
}

/* A message between two ranks of one machine takes microseconds, and a rank that waits for a whole prefill must not keep
 * a core from one that works. */
int team_idle(struct Team *t, int turns)
{
    enum { SPINS = 200 };
    if (turns < SPINS) {
        sched_yield();
    } else {
        struct timespec nap = {0, turns < 2 * SPINS ? 50000 : 1000000};
        nanosleep(&nap, NULL);
    }
    if (turns % 64) return PC_OK;
    if (!t->closing) TRY(team_check(t));
    if (!t->closing && t->stop && t->stop(NULL)) return err_set(PC_EINTR, "stopped");
    if (t->closing && t->limit > 0 && clock_seconds() > t->limit)
        return err_set(PC_ELOST, "no answer within %d s", TEAM_PATIENCE);
    return PC_OK;
}

/* ==== Messages ==== */

/* A rank that the link finds gone is another's failure. */
static int noted(struct Team *t, int status)
{
    if (status == PC_ELOST) t->status = status;
    return status;
}

int team_send(struct Team *t, int to, const void *data, size_t len)
{
    return noted(t, t->link->send(t->self, t, to, TEAM_DATA, data, len));
}

int team_receive(struct Team *t, int from, void *data, size_t len)
{
    return noted(t, t->link->receive(t->self, t, from, TEAM_DATA, data, len));
}

int team_broadcast(struct Team *t, void *data, size_t len)
{
    if (t->rank > 0) return team_receive(t, 0, data, len);
    for (int to = 1; to < t->size; to++) TRY(team_send(t, to, data, len));
    return PC_OK;
}

int team_gather(struct Team *t, void *data, size_t len)
{
    char *parts = data;
    if (t->rank > 0) TRY(team_send(t, 0, parts + (size_t)t->rank * len, len));
    for (int from = 1; t->rank == 0 && from < t->size; from++)
        TRY(team_receive(t, from, parts + (size_t)from * len, len));
    return team_broadcast(t, data, (size_t)t->size * len);
}

int team_text(struct Team *t, struct Str *text)
{
    uint64_t len = text->len;
    if (t->size <= 1) return PC_OK;
    TRY(team_broadcast(t, &len, sizeof len));
    if (t->rank > 0) {
        str_clear(text);
        TRY(str_reserve(text, len));
        text->len = len;
        text->data[len] = '\0';
    }
    return len ? team_broadcast(t, text->data, len) : PC_OK;
}

/* ==== The end ==== */

/* A failure that has a text of its own; a stop by the user was reported where it happened. */
static bool tells(const struct TeamNews *news)
{
    return news->status < 0 && news->own && news->status != PC_EINTR && *news->text;
}

/* "rank 1 of 4", "ranks 0, 2 of 4": those that failed with the same text. False when one before `at` did. */
static bool who(const struct TeamNews *all, int n, int at, char *text, size_t room)
{
    char list[200] = "";
    int same = 0, len = 0;
    for (int i = 0; i < n; i++) {
        if (!tells(&all[i]) || strcmp(all[i].text, all[at].text) != 0) continue;
        if (i < at) return false;
        if (len < (int)sizeof list - 16)
            len += snprintf(list + len, sizeof list - (size_t)len, "%s%d", same ? ", " : "", i);
        same++;
    }
    snprintf(text, room, "rank%s %s of %d", same > 1 ? "s" : "", list, n);
    return true;
}

/* Rank 0: says each failure once, with those whose it is. Gives the first. */
static int say_all(const struct Team *t, const struct TeamNews *all, void (*say)(const char *text))
{
    int status = PC_OK;
    for (int i = 0; i < t->size; i++) {
        char names[256];
        if (status == PC_OK) status = all[i].status;
        if (!tells(&all[i]) || !who(all, t->size, i, names, sizeof names)) continue;
        err_set(all[i].status, "%s: %s", names, all[i].text);
        say(err_text());
    }
    return status;
}

/* Rank 0 hears how each ended, and tells all how the team did. */
static int close_first(struct Team *t, struct TeamNews *all, void (*say)(const char *text),
                       bool *whole)
{
    for (int from = 1; from < t->size; from++) {
        struct TeamNews *news = &all[from];
        if (t->link->receive(t->self, t, from, TEAM_END, news, sizeof *news) == PC_OK) {
            if (news->status < 0 && t->limit <= 0) t->limit = clock_seconds() + TEAM_PATIENCE;
            continue;
        }
        *whole = false;
        *news = (struct TeamNews){PC_ELOST, true, "gone: it was killed or its machine is lost"};
        if (t->limit <= 0) t->limit = clock_seconds() + TEAM_PATIENCE;
    }
    int32_t status = say_all(t, all, say);
    for (int to = 1; to < t->size; to++)
        if (!(all[to].status == PC_ELOST && all[to].own)) /* not to those that are gone */
            t->link->send(t->self, t, to, TEAM_END, &status, sizeof status);
    return status;
}

/* The others tell rank 0, and end as it says. Without an answer each speaks for itself. */
static int close_other(struct Team *t, const struct TeamNews *mine, void (*say)(const char *text),
                       bool *whole)
{
    int32_t status = mine->status;
    if (t->link->send(t->self, t, 0, TEAM_END, mine, sizeof *mine) == PC_OK &&
        t->link->receive(t->self, t, 0, TEAM_END, &status, sizeof status) == PC_OK)
        return status;
    *whole = false;
    err_set(PC_ELOST, "rank %d of %d: rank 0 is gone: it was killed or its machine is lost",
            t->rank, t->size);
    say(err_text());
    return status < 0 ? status : PC_ELOST;
}

/* Tells the others of a failure that they have not told. */
static void spread(struct Team *t, const struct TeamNews *news)
{
    for (int to = 0; to < t->size; to++)
        if (to != t->rank) t->link->send(t->self, t, to, TEAM_FAIL, news, sizeof *news);
}

int team_close(struct Team *t, int status, void (*say)(const char *text), int (*code)(int status))
{
    struct TeamNews mine = {.status = status, .own = status < 0 && t->status == PC_OK};
    if (t->size <= 1) return status;
    if (status < 0) snprintf(mine.text, sizeof mine.text, "%s", err_text());
    t->closing = true;
    /* the others wait longer than rank 0 does, whose word ends the wait */
    if (status < 0) t->limit = clock_seconds() + (t->rank ? 2 : 1) * TEAM_PATIENCE;
    if (mine.own) spread(t, &mine);
    struct TeamNews *all = t->rank == 0 ? mem_alloc((size_t)t->size, sizeof *all) : NULL;
    bool whole = true;
    if (t->rank > 0) {
        status = close_other(t, &mine, say, &whole);
    } else if (all) {
        all[0] = mine;
        status = close_first(t, all, say, &whole);
    } else {
        whole = false;
        status = PC_ENOMEM;
    }
    mem_free(all);
    t->link->close(t->self, whole, code(status));
    t->size = 1;
    return status;
}

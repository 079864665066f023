/* team_support.h - for tests of teams: ranks as processes of this machine, forked from the test, over the link that --ranks
 * uses (team_local.c). Rank 0 is the test itself. Each test program has its own copy.
 */
#ifndef PCOMP_TEAM_SUPPORT_H
#define PCOMP_TEAM_SUPPORT_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "team.h"

enum { TEAM_MAX = 8 };

/* ==== Ranks as processes ==== */

struct Ranks {
    struct TeamEnds ends[TEAM_MAX][TEAM_MAX]; /* of rank i to rank j */
    pid_t pid[TEAM_MAX];
    struct Team team;
    struct TeamLink noting; /* the team's link, and how it was closed */
    void (*close)(void *self, bool whole, int code);
    bool whole;
    int code;
};

/* The latest of this process: a link's own state knows nothing of the test. */
static struct Ranks *closing_ranks;

static inline void note_close(void *self, bool whole, int code)
{
    closing_ranks->whole = whole;
    closing_ranks->code = code;
    closing_ranks->close(self, whole, code);
}

static inline void close_pair(struct TeamEnds ends)
{
    close(ends.data);
    close(ends.news);
}

static inline void take_rank(struct Ranks *r, int rank, int size)
{
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++)
            if (i != rank && i != j) close_pair(r->ends[i][j]);
    r->team.size = size;
    if (size == 1) return;
    if (team_sockets_open(r->ends[rank], rank, size, &r->team) < 0) abort();
    closing_ranks = r;
    r->close = r->team.link->close;
    r->noting = *r->team.link;
    r->noting.close = note_close;
    r->team.link = &r->noting;
}

/* Starts ranks 1 .. size - 1, which run `other` and exit with what it returns; this process is rank 0. */
static inline void ranks_start(struct Ranks *r, int size, int (*other)(struct Team *t, void *user),
                               void *user)
{
    memset(r, 0, sizeof *r);
    fflush(NULL);
    for (int i = 0; i < size; i++) r->ends[i][i] = (struct TeamEnds){-1, -1};
    for (int i = 0; i < size; i++)
        for (int j = i + 1; j < size; j++) {
            int data[2], news[2];
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, data) != 0 ||
                socketpair(AF_UNIX, SOCK_SEQPACKET, 0, news) != 0)
                abort();
            r->ends[i][j] = (struct TeamEnds){data[0], news[0]};
            r->ends[j][i] = (struct TeamEnds){data[1], news[1]};
        }
    for (int i = 1; i < size; i++) {
        r->pid[i] = fork();
        if (r->pid[i] < 0) abort();
        if (r->pid[i] > 0) continue;
        alarm(120);
        take_rank(r, i, size);
        _exit(other(&r->team, user));
    }
    take_rank(r, 0, size);
}

/* How rank i ended: its exit code, or 256 + the signal that killed it. */
static inline int ranks_wait(struct Ranks *r, int i)
{
    int how = 0;
    while (waitpid(r->pid[i], &how, 0) < 0 && errno == EINTR) continue;
    return WIFSIGNALED(how) ? 256 + WTERMSIG(how) : WEXITSTATUS(how);
}

#endif

/* team_support.h - for tests of teams: ranks as processes of this machine, forked from the test, with a socket between any
 * two. Rank 0 is the test itself. Each test program has its own copy.
 */
#ifndef PCOMP_TEAM_SUPPORT_H
#define PCOMP_TEAM_SUPPORT_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "team.h"

enum { TEAM_MAX = 8 };

struct SocketHead {
    uint32_t kind, len;
};

/* One rank's sockets to the others, and what came of it. */
struct SocketLink {
    int fd[TEAM_MAX], size;
    bool gone[TEAM_MAX];
    size_t owed_in[TEAM_MAX], owed_out[TEAM_MAX]; /* bytes of a message that was given up */
    bool whole;
    int code;
};

static inline int gone(struct SocketLink *l, struct Team *t, int rank)
{
    l->gone[rank] = true;
    return err_set(PC_ELOST, "rank %d of %d is gone: it was killed or its machine is lost", rank,
                   t->size);
}

/* Bytes out or in, counted down in *left. */
static inline int move_part(struct SocketLink *l, struct Team *t, int rank, char *at, size_t *left,
                            bool out)
{
    for (int turns = 0; *left > 0;) {
        ssize_t n =
            out ? send(l->fd[rank], at, *left, MSG_NOSIGNAL) : recv(l->fd[rank], at, *left, 0);
        if (n > 0) {
            at += n;
            *left -= (size_t)n;
            turns = 0;
        } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            TRY(team_idle(t, turns++));
        } else {
            return gone(l, t, rank);
        }
    }
    return PC_OK;
}

/* The same; what a failure leaves of a message is owed, for the next one to begin at its head. */
static inline int move(struct SocketLink *l, struct Team *t, int rank, void *data, size_t len,
                       bool out)
{
    size_t *owed = out ? &l->owed_out[rank] : &l->owed_in[rank];
    *owed = len;
    return move_part(l, t, rank, data, owed, out);
}

static inline int pay(struct SocketLink *l, struct Team *t, int rank, bool out)
{
    char rest[4096] = "";
    size_t *owed = out ? &l->owed_out[rank] : &l->owed_in[rank];
    while (*owed > 0) {
        size_t n = *owed < sizeof rest ? *owed : sizeof rest, left = n;
        int status = move_part(l, t, rank, rest, &left, out);
        *owed -= n - left;
        TRY(status);
    }
    return PC_OK;
}

static inline int socket_send(void *self, struct Team *t, int to, enum TeamKind kind,
                              const void *data, size_t len)
{
    struct SocketHead head = {kind, (uint32_t)len};
    TRY(pay(self, t, to, true));
    TRY(move(self, t, to, &head, sizeof head, true));
    return move(self, t, to, (void *)(uintptr_t)data, len, true);
}

/* The next message's head, left in place; false when none has come. */
static inline bool peek(struct SocketLink *l, int from, struct SocketHead *head)
{
    ssize_t n = recv(l->fd[from], head, sizeof *head, MSG_PEEK);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) l->gone[from] = true;
    return n == (ssize_t)sizeof *head;
}

/* Throws messages of other kinds away that came before the end. */
static inline int throw_away(struct SocketLink *l, struct Team *t, int from,
                             struct SocketHead *head)
{
    TRY(move(l, t, from, head, sizeof *head, false));
    l->owed_in[from] = head->len;
    return pay(l, t, from, false);
}

static inline int socket_receive(void *self, struct Team *t, int from, enum TeamKind kind,
                                 void *data, size_t len)
{
    struct SocketLink *l = self;
    struct SocketHead head;
    TRY(pay(l, t, from, false));
    for (int turns = 0;;) {
        if (!peek(l, from, &head)) {
            if (l->gone[from]) return gone(l, t, from);
            TRY(team_idle(t, turns++));
        } else if (head.kind == kind) {
            break;
        } else if (kind == TEAM_END) {
            TRY(throw_away(l, t, from, &head));
        } else {
            TRY(team_check(t)); /* a failure stands before what is waited for */
            return err_set(PC_EINTERNAL, "message of kind %u from rank %d, not %d", head.kind, from,
                           kind);
        }
    }
    if (head.len != len)
        return err_set(PC_EINTERNAL, "message of %u bytes, not %zu", head.len, len);
    TRY(move(l, t, from, &head, sizeof head, false));
    return move(l, t, from, data, len, false);
}

static inline bool socket_heard(void *self, int *from, struct TeamNews *news)
{
    struct SocketLink *l = self;
    struct SocketHead head;
    struct Team quiet = {.closing = true};
    for (int i = 0; i < l->size; i++) {
        if (l->fd[i] < 0) continue;
        bool came = l->owed_in[i] == 0 && peek(l, i, &head) && head.kind == TEAM_FAIL;
        *from = i;
        if (came && move(l, &quiet, i, &head, sizeof head, false) == PC_OK &&
            move(l, &quiet, i, news, sizeof *news, false) == PC_OK)
            return true;
        if (!l->gone[i]) continue;
        *news = (struct TeamNews){.status = PC_ELOST};
        return true;
    }
    return false;
}

static inline void socket_close(void *self, bool whole, int code)
{
    struct SocketLink *l = self;
    l->whole = whole;
    l->code = code;
    for (int i = 0; i < l->size; i++)
        if (l->fd[i] >= 0) close(l->fd[i]);
}

static const struct TeamLink SOCKET_LINK = {socket_send, socket_receive, socket_heard,
                                            socket_close};

/* ==== Ranks as processes ==== */

struct Ranks {
    int fd[TEAM_MAX][TEAM_MAX]; /* end of rank i of the socket between i and j */
    pid_t pid[TEAM_MAX];
    struct SocketLink link; /* of this rank */
    struct Team team;
};

static inline void take_rank(struct Ranks *r, int rank, int size)
{
    r->link = (struct SocketLink){.size = size};
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++)
            if (i == rank)
                r->link.fd[j] = i == j ? -1 : r->fd[i][j];
            else if (i != j)
                close(r->fd[i][j]);
    r->team = (struct Team){
        .rank = rank, .size = size, .link = size > 1 ? &SOCKET_LINK : NULL, .self = &r->link};
}

/* Starts ranks 1 .. size - 1, which run `other` and exit with what it returns; this process is rank 0. */
static inline void ranks_start(struct Ranks *r, int size, int (*other)(struct Team *t, void *user),
                               void *user)
{
    memset(r, 0, sizeof *r);
    fflush(NULL);
    for (int i = 0; i < size; i++)
        for (int j = i + 1; j < size; j++) {
            int ends[2];
            if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0) abort();
            r->fd[i][j] = ends[0];
            r->fd[j][i] = ends[1];
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

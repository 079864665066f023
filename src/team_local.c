/* team_local.c - a team on one machine without MPI: processes forked from this one, with two sockets between any two.
 *
 * Data goes over a stream, and what ranks say of their ends over a socket of packets beside it, so that bad news never waits
 * behind data that nobody takes any more. The kernel closes the sockets of a process that dies, whatever killed it, and the
 * others find that wherever they wait or ask. After a failure a rank sends no more data, so that what is left of a message in
 * a stream is nobody's business.
 */
#include "team.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct SocketLink {
    int size;
    struct TeamEnds *ends; /* [size]; of this rank itself: -1 */
    pid_t *pid;            /* [size] processes that this one has started; NULL: none */
};

struct Packet {
    int32_t kind;
    union {
        struct TeamNews news;
        int32_t status;
    } body;
};

enum { PACKET_HEAD = offsetof(struct Packet, body) };

static int lost(const struct Team *t, int rank)
{
    TRY(team_check(
        (struct Team *)(uintptr_t)t)); /* what it said before it went stands before that */
    return err_set(PC_ELOST, "rank %d of %d is gone: it was killed or its machine is lost", rank,
                   t->size);
}

static bool try_again(ssize_t n)
{
    return n < 0 && (errno == EAGAIN || errno == EINTR);
}

/* ==== News ==== */

/* The next packet of a rank, left where it is. Its length, 0 when there is none, -1 when the rank is gone. That a rank has
 * closed its socket may be told before what it sent is given out, so that only the second word of it counts. */
static ssize_t peek(const struct SocketLink *l, int from, struct Packet *p)
{
    ssize_t n = 0;
    for (int i = 0; i < 2 && n <= 0; i++) {
        n = recv(l->ends[from].news, p, sizeof *p, MSG_PEEK | MSG_DONTWAIT);
        if (try_again(n)) return 0;
    }
    return n > 0 ? n : -1;
}

static void drop(const struct SocketLink *l, int from)
{
    struct Packet p;
    if (recv(l->ends[from].news, &p, sizeof p, MSG_DONTWAIT) < 0) return;
}

static bool socket_heard(void *self, int *from, struct TeamNews *news)
{
    const struct SocketLink *l = self;
    for (int i = 0; i < l->size; i++) {
        struct Packet p;
        ssize_t n = l->ends[i].news < 0 ? 0 : peek(l, i, &p);
        bool fails = n > 0 && p.kind == TEAM_FAIL;
        if (n == 0 || (n > 0 && !fails)) continue;
        *from = i;
        *news = fails ? p.body.news : (struct TeamNews){.status = PC_ELOST};
        if (fails) drop(l, i);
        return true;
    }
    return false;
}

static int send_packet(const struct SocketLink *l, struct Team *t, int to, const struct Packet *p,
                       size_t len)
{
    for (int turns = 0;; turns++) {
        ssize_t n = send(l->ends[to].news, p, PACKET_HEAD + len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) return PC_OK;
        if (!try_again(n))
            return err_set(PC_ELOST, "rank %d of %d is gone: it was killed", to, t->size);
        TRY(team_idle(t, turns));
    }
}

/* How a rank ended; failures that it told before are known. */
static int receive_end(const struct SocketLink *l, struct Team *t, int from, void *data, size_t len)
{
    for (int turns = 0;;) {
        struct Packet p;
        ssize_t n = peek(l, from, &p);
        if (n < 0) return err_set(PC_ELOST, "rank %d of %d is gone: it was killed", from, t->size);
        if (n == 0) {
            TRY(team_idle(t, turns++));
            continue;
        }
        drop(l, from);
        if (p.kind != TEAM_END) continue;
        memcpy(data, &p.body, len);
        return PC_OK;
    }
}

/* ==== Data ==== */

static int move_bytes(const struct SocketLink *l, struct Team *t, int rank, char *at, size_t left,
                      bool out)
{
    for (int turns = 0; left > 0;) {
        int fd = l->ends[rank].data;
        ssize_t n = out ? send(fd, at, left, MSG_NOSIGNAL | MSG_DONTWAIT)
                        : recv(fd, at, left, MSG_DONTWAIT);
        if (n > 0) {
            at += n;
            left -= (size_t)n;
            turns = 0;
        } else if (try_again(n)) {
            TRY(team_idle(t, turns++));
        } else {
            return lost(t, rank);
        }
    }
    return PC_OK;
}

static int socket_send(void *self, struct Team *t, int to, enum TeamKind kind, const void *data,
                       size_t len)
{
    struct Packet p = {.kind = (int32_t)kind};
    uint64_t head = len;
    if (kind == TEAM_DATA) {
        TRY(move_bytes(self, t, to, (char *)&head, sizeof head, true));
        return move_bytes(self, t, to, (char *)(uintptr_t)data, len, true);
    }
    memcpy(&p.body, data, len);
    return send_packet(self, t, to, &p, len);
}

static int socket_receive(void *self, struct Team *t, int from, enum TeamKind kind, void *data,
                          size_t len)
{
    uint64_t head = 0;
    if (kind != TEAM_DATA) return receive_end(self, t, from, data, len);
    TRY(move_bytes(self, t, from, (char *)&head, sizeof head, false));
    if (head != len)
        return err_set(PC_EINTERNAL, "rank %d sends %llu bytes, not %zu", from,
                       (unsigned long long)head, len);
    return move_bytes(self, t, from, data, len, false);
}

/* ==== The end ==== */

static void close_ends(struct TeamEnds *ends, int n)
{
    for (int i = 0; i < n; i++) {
        if (ends[i].data >= 0) close(ends[i].data);
        if (ends[i].news >= 0) close(ends[i].news);
        ends[i] = (struct TeamEnds){-1, -1};
    }
}

/* Waits for the processes that were started; one that does not end when its time is over is killed. */
static void reap(pid_t *pid, int n, double patience)
{
    double limit = clock_seconds() + patience;
    for (int i = 0; i < n; i++) {
        struct timespec nap = {0, 1000000};
        while (pid[i] > 0 && waitpid(pid[i], NULL, WNOHANG) == 0) {
            if (clock_seconds() > limit) kill(pid[i], SIGKILL);
            nanosleep(&nap, NULL);
        }
    }
}

static void link_free(struct SocketLink *l)
{
    if (l->ends) close_ends(l->ends, l->size);
    mem_free(l->ends);
    mem_free(l->pid);
    mem_free(l);
}

/* The others wait twice as long as rank 0 does. */
static void socket_close(void *self, bool whole, int code)
{
    struct SocketLink *l = self;
    (void)whole, (void)code;
    close_ends(l->ends, l->size);
    if (l->pid) reap(l->pid, l->size, 2 * TEAM_PATIENCE);
    link_free(l);
}

static const struct TeamLink SOCKET_LINK = {socket_send, socket_receive, socket_heard,
                                            socket_close};

int team_sockets_open(const struct TeamEnds *ends, int rank, int size, struct Team *out)
{
    struct SocketLink *l = mem_alloc(1, sizeof *l);
    if (!l) return PC_ENOMEM;
    l->size = size;
    l->ends = mem_alloc((size_t)size, sizeof *l->ends);
    if (!l->ends) {
        link_free(l);
        return PC_ENOMEM;
    }
    memcpy(l->ends, ends, sizeof *ends * (size_t)size);
    out->rank = rank;
    out->size = size;
    out->link = &SOCKET_LINK;
    out->self = l;
    return PC_OK;
}

/* ==== Start ==== */

static bool pair(int kind, int *a, int *b)
{
    enum { ROOM = 4 << 20 }; /* bytes on their way; the system may allow fewer */
    int ends[2], room = ROOM;
    if (socketpair(AF_UNIX, kind | SOCK_CLOEXEC, 0, ends) != 0) return false;
    for (int i = 0; i < 2 && kind == SOCK_STREAM; i++)
        setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    *a = ends[0];
    *b = ends[1];
    return true;
}

/* all [size, size]: what rank i has of the sockets between i and j. */
static int make_pairs(struct TeamEnds *all, int size)
{
    for (int i = 0; i < size * size; i++) all[i] = (struct TeamEnds){-1, -1};
    for (int i = 0; i < size; i++)
        for (int j = i + 1; j < size; j++) {
            struct TeamEnds *a = &all[i * size + j], *b = &all[j * size + i];
            if (!pair(SOCK_STREAM, &a->data, &b->data) || !pair(SOCK_SEQPACKET, &a->news, &b->news))
                return err_set(PC_EIO,
                               "%d processes need %d sockets between them: %s; start fewer with "
                               "--ranks, or raise `ulimit -n`",
                               size, 2 * size * (size - 1), strerror(errno));
        }
    return PC_OK;
}

/* This process as one of them: the sockets between others are not its own. */
static int take_rank(struct TeamEnds *all, int rank, int size, struct Team *out)
{
    for (int i = 0; i < size; i++)
        if (i != rank) close_ends(all + (size_t)i * (size_t)size, size);
    return team_sockets_open(all + (size_t)rank * (size_t)size, rank, size, out);
}

/* A process that cannot begin leaves without a word: the others find it gone. */
static void begin_other(struct TeamEnds *all, int rank, int size, struct Team *out)
{
    if (take_rank(all, rank, size, out) < 0) _exit(1);
    mem_free(all);
}

static int start_all(struct TeamEnds *all, pid_t *pid, int size, struct Team *out)
{
    fflush(NULL); /* or each would print what stands in buffers */
    for (int i = 1; i < size; i++) {
        pid[i] = fork();
        if (pid[i] == 0) {
            begin_other(all, i, size, out);
            return PC_OK;
        }
        if (pid[i] < 0)
            return err_set(PC_EIO, "process %d of %d could not be started: %s", i + 1, size,
                           strerror(errno));
    }
    TRY(take_rank(all, 0, size, out));
    mem_free(all);
    ((struct SocketLink *)out->self)->pid = pid;
    return PC_OK;
}

int team_local_open(int size, struct Launch *launch, struct Team *out)
{
    pid_t *pid = mem_alloc((size_t)size, sizeof *pid);
    struct TeamEnds *all = mem_alloc((size_t)size * (size_t)size, sizeof *all);
    int status = pid && all ? make_pairs(all, size) : PC_ENOMEM;
    if (status == PC_OK) status = start_all(all, pid, size, out);
    if (status < 0) {
        if (all) close_ends(all, size * size);
        if (pid) reap(pid, size, 0);
        mem_free(all);
        mem_free(pid);
        return status;
    }
    if (out->rank > 0) mem_free(pid);
    *launch = (struct Launch){out->rank, size, out->rank, size, 0};
    return PC_OK;
}

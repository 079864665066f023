/* team.h - the processes of one run: who they are, bytes between them, and how the failure of one becomes everyone's.
 *
 * A team has `size` ranks; rank 0 leads: it reads what the user gives and prints. A process alone is a team of one, for
 * which every call below returns at once. Bytes travel over a link: MPI's (team_mpi.c), in builds that have it, or sockets
 * between processes of one machine (team_local.c). What a link does not give is made here from messages between two ranks,
 * always in the order of ranks.
 *
 * A rank that fails goes its own way up to team_close, which tells the others; they find it wherever they wait or ask
 * (team_check), and fail with the same status.
 */
#ifndef PCOMP_TEAM_H
#define PCOMP_TEAM_H

#include "base.h"

/* ==== What the launcher says ==== */

struct Launch {
    int rank, size;             /* of this process among those started together; alone: 0 of 1 */
    int local_rank, local_size; /* among those of this machine */
    int cpus;                   /* cores that the launcher gives each process; 0: it does not say */
};

/* From the variables that mpirun, Hydra or srun set. */
void launch_read(struct Launch *out);
/* Threads for a process that shares its machine like that: never above what it is allowed to run on. */
int launch_threads(const struct Launch *l);
/* Leaves this process one of the GPUs that CUDA would see (CUDA_VISIBLE_DEVICES): they go round by local rank. Before CUDA's
 * first call. */
void launch_gpu(const struct Launch *l);

/* ==== The team ==== */

struct Team;

/* What a message is: data, or news of a rank's end. */
enum TeamKind { TEAM_DATA, TEAM_FAIL, TEAM_END };

/* How a rank ended: its own status and text, or those of another that it had heard of. */
struct TeamNews {
    int32_t status, own;
    char text[1000];
};

/* A way to move bytes. send and receive return when the bytes are out of or in `data`; while they wait they call
 * team_idle(), whose failure is theirs. */
struct TeamLink {
    int (*send)(void *self, struct Team *t, int to, enum TeamKind kind, const void *data,
                size_t len);
    int (*receive)(void *self, struct Team *t, int from, enum TeamKind kind, void *data,
                   size_t len);
    /* Without waiting: true when a rank has told that it failed, or is gone (news->status PC_ELOST). */
    bool (*heard)(void *self, int *from, struct TeamNews *news);
    /* Ends the link. `whole`: every rank got here; else what still waits is given up, with this exit code. */
    void (*close)(void *self, bool whole, int code);
};

struct Team {
    int rank, size;              /* all zero: a process alone, too */
    const struct TeamLink *link; /* NULL for a team of one */
    void *self;                  /* the link's */
    bool (*stop)(
        void *user); /* asked while waiting: true ends the wait with PC_EINTR; may be NULL */
    int status;      /* of the failure that was heard of, or PC_OK */
    bool closing;
    double limit; /* closing: the clock at which waiting ends; 0: never */
};

/* All of these: PC_ELOST when a rank is gone, the status and text of a rank that failed, PC_EINTR when stopped. */
int team_check(struct Team *t); /* does not wait */
int team_send(struct Team *t, int to, const void *data, size_t len);
int team_receive(struct Team *t, int from, void *data, size_t len);
/* data of rank 0 to all. */
int team_broadcast(struct Team *t, void *data, size_t len);
/* data [size, len] bytes: each rank has filled its own part, and then has all. */
int team_gather(struct Team *t, void *data, size_t len);
/* Text of rank 0 to all, replacing theirs. */
int team_text(struct Team *t, struct Str *text);
/* For links: called while they wait, `turns` counting from 0. Naps after some, so that others get the core. */
int team_idle(struct Team *t, int turns);

/* Every rank's last call, with how it ended. Rank 0 hands each different failure to `say`, with the ranks named; a wait is at most
 * TEAM_PATIENCE seconds once any has failed. Returns the team's status: the first failure by rank. code() gives a status's exit code. */
enum { TEAM_PATIENCE = 10 };
int team_close(struct Team *t, int status, void (*say)(const char *text), int (*code)(int status));

/* One rank's ends of the two sockets between it and another: a stream for data, packets for news. */
struct TeamEnds {
    int data, news;
};
/* ends [size], this rank's own: -1. They are the team's from now on. */
int team_sockets_open(const struct TeamEnds *ends, int rank, int size, struct Team *out);
/* Makes this process rank 0 of `size` on this machine: the others are copies of it, which go on from here too. Before the
 * first thread is started and the first GPU is touched. team_close, in rank 0, waits for them. */
int team_local_open(int size, struct Launch *launch, struct Team *out);

/* Starts MPI in a process that a launcher started; only in builds with MPI. PC_ECONFIG when MPI sees another number of
 * processes than `launch`. */
int team_mpi_open(const struct Launch *launch, struct Team *out) __attribute__((weak));

#endif

/* team_mpi.c - a team's link over MPI: the only file that knows it, compiled where MPI's headers are found.
 *
 * MPI is linked, not loaded at run time: its interface to binaries differs between implementations and versions, so a loaded
 * one could not be trusted. What MPI blocks on, this polls, so that a rank that waits hears of failures and signals
 * and lets the core go. A process that is killed is the launcher's to notice: mpirun ends the others at once.
 */
#include "team.h"

#include <mpi.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* The newest failure notice is received ahead, so that asking for one costs a test. */
struct MpiLink {
    MPI_Request news_request;
    struct TeamNews news;
    bool given_up; /* a transfer was left behind: MPI would wait for it at the end */
};

static int mpi_failed(const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING];
    int len = 0;
    MPI_Error_string(code, text, &len);
    return err_set(PC_EDEVICE, "MPI: %s: %.*s", what, len, text);
}

/* Takes a request back; one that cannot be, a send, is left to MPI. */
static void give_up(struct MpiLink *link, MPI_Request *request)
{
    int done = 0;
    MPI_Cancel(request);
    if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done) link->given_up = true;
}

/* Waits for a request, hearing of failures meanwhile. */
static int finish(struct MpiLink *link, struct Team *t, MPI_Request *request, const char *what)
{
    for (int turns = 0;; turns++) {
        int done = 0, code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) return mpi_failed(what, code);
        if (done) return PC_OK;
        int status = team_idle(t, turns);
        if (status == PC_OK) continue;
        give_up(link, request);
        return status;
    }
}

enum { PIECE = 1 << 28 }; /* MPI counts in int */

static int piece_of(size_t left)
{
    return left < PIECE ? (int)left : PIECE;
}

static int mpi_send(void *self, struct Team *t, int to, enum TeamKind kind, const void *data,
                    size_t len)
{
    const char *at = data;
    do {
        MPI_Request request;
        int n = piece_of(len),
            code = MPI_Isend(at, n, MPI_BYTE, to, kind, MPI_COMM_WORLD, &request);
        if (code != MPI_SUCCESS) return mpi_failed("send", code);
        TRY(finish(self, t, &request, "send"));
        at += n;
        len -= (size_t)n;
    } while (len > 0);
    return PC_OK;
}

static int mpi_receive(void *self, struct Team *t, int from, enum TeamKind kind, void *data,
                       size_t len)
{
    char *at = data;
    do {
        MPI_Request request;
        int n = piece_of(len),
            code = MPI_Irecv(at, n, MPI_BYTE, from, kind, MPI_COMM_WORLD, &request);
        if (code != MPI_SUCCESS) return mpi_failed("receive", code);
        TRY(finish(self, t, &request, "receive"));
        at += n;
        len -= (size_t)n;
    } while (len > 0);
    return PC_OK;
}

static int listen_for_news(struct MpiLink *link)
{
    return MPI_Irecv(&link->news, sizeof link->news, MPI_BYTE, MPI_ANY_SOURCE, TEAM_FAIL,
                     MPI_COMM_WORLD, &link->news_request);
}

static bool mpi_heard(void *self, int *from, struct TeamNews *news)
{
    struct MpiLink *link = self;
    MPI_Status status;
    int done = 0;
    if (MPI_Test(&link->news_request, &done, &status) != MPI_SUCCESS || !done) return false;
    *from = status.MPI_SOURCE;
    *news = link->news;
    listen_for_news(link);
    return true;
}

static void mpi_close(void *self, bool whole, int code)
{
    struct MpiLink *link = self;
    if (!whole || link->given_up) MPI_Abort(MPI_COMM_WORLD, code);
    MPI_Cancel(&link->news_request);
    MPI_Request_free(&link->news_request);
    MPI_Finalize();
    mem_free(link);
}

static const struct TeamLink MPI_LINK = {mpi_send, mpi_receive, mpi_heard, mpi_close};

int team_mpi_open(const struct Launch *launch, struct Team *out)
{
    struct MpiLink *link = mem_alloc(1, sizeof *link);
    int size = 0, rank = 0;
    if (!link) return PC_ENOMEM;
    MPI_Init(NULL, NULL); /* prints and ends the process when it cannot */
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (size != launch->size) {
        MPI_Finalize();
        mem_free(link);
        return err_set(PC_ECONFIG,
                       "%d processes were started together, but MPI sees %d; start them with "
                       "mpirun, or with srun --mpi=pmix",
                       launch->size, size);
    }
    listen_for_news(link);
    out->rank = rank;
    out->size = size;
    out->link = &MPI_LINK;
    out->self = link;
    return PC_OK;
}

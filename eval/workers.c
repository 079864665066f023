/* workers.c - several processes share the rows: each takes the next number that nobody took; lines come back
 * through pipes to the one process that owns the files. A worker that dies loses the row it was at, no more.
 */
#include "runner.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS_MAX = 256 };

struct Share {
    atomic_long next; /* row that nobody took yet */
};

struct Message {
    uint64_t key;
    uint32_t len; /* bytes of the line that follow */
    int32_t arm, task, failed;
};

struct Worker {
    pid_t pid;
    int fd; /* its pipe; -1 once it ended */
    struct Str got;
};

/* What a worker process knows. */
struct Self {
    struct Share *share;
    long claimed;
    int fd;
};

/* ==== In a worker ==== */

static bool take_number(struct Runner *r, long row)
{
    struct Self *self = r->deliver_to;
    if (row != self->claimed) return false;
    self->claimed = atomic_fetch_add(&self->share->next, 1);
    return true;
}

static int write_all(int fd, const void *data, size_t len)
{
    const char *at = data;
    while (len > 0) {
        ssize_t n = write(fd, at, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return err_set(CLI_EOUTPUT, "the process that writes the results is gone");
        at += n;
        len -= (size_t)n;
    }
    return PC_OK;
}

static int send_line(struct Runner *r, const struct Delivery *d)
{
    struct Self *self = r->deliver_to;
    char *text = cJSON_PrintUnformatted(d->line);
    cJSON_Delete(d->line);
    if (!text) return err_set(PC_ENOMEM, "no memory for a line of results");
    struct Message m = {.key = d->key,
                        .len = (uint32_t)strlen(text),
                        .arm = d->arm,
                        .task = d->task,
                        .failed = d->failed};
    int status = write_all(self->fd, &m, sizeof m);
    if (status == PC_OK) status = write_all(self->fd, text, m.len);
    cJSON_free(text);
    return status;
}

/* Does not return. */
static void worker_main(struct Runner *r, struct Share *share, int fd)
{
    struct Self self = {share, atomic_fetch_add(&share->next, 1), fd};
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    r->deliver = send_line;
    r->deliver_to = &self; /* cppcheck-suppress autoVariables ; does not return */
    r->mine = take_number;
    r->view.mode = PROGRESS_NONE;
    int status = runner_rows(r);
    if (status < 0 && status != PC_EINTR) cli_error(err_text());
    _exit(status < 0 ? exit_code(status) : 0);
}

/* ==== In the process that writes ==== */

/* Stores the whole messages of what came. */
static int take_messages(struct Runner *r, struct Worker *w)
{
    size_t at = 0;
    int status = PC_OK;
    struct Message m;
    while (status == PC_OK && w->got.len - at >= sizeof m) {
        memcpy(&m, w->got.data + at, sizeof m);
        if (w->got.len - at - sizeof m < m.len) break;
        char *line = mem_alloc((size_t)m.len + 1, 1);
        if (!line) return PC_ENOMEM;
        memcpy(line, w->got.data + at + sizeof m, m.len);
        struct Delivery d = {.arm = m.arm,
                             .task = m.task,
                             .key = m.key,
                             .failed = m.failed,
                             .line = cJSON_CreateRaw(line)};
        status = runner_store(r, &d);
        mem_free(line);
        at += sizeof m + m.len;
    }
    if (at) memmove(w->got.data, w->got.data + at, w->got.len - at);
    w->got.len -= at;
    return status;
}

static int read_worker(struct Runner *r, struct Worker *w)
{
    enum { PART = 1 << 16 };
    TRY(str_reserve(&w->got, PART));
    ssize_t n = read(w->fd, w->got.data + w->got.len, PART);
    if (n < 0 && errno == EINTR) return PC_OK;
    if (n <= 0) {
        close(w->fd);
        w->fd = -1;
        return PC_OK;
    }
    w->got.len += (size_t)n;
    return take_messages(r, w);
}

static int collect(struct Runner *r, struct Worker *workers, int n)
{
    struct pollfd fds[WORKERS_MAX];
    for (;;) {
        int open = 0;
        for (int i = 0; i < n; i++) {
            fds[i] = (struct pollfd){.fd = workers[i].fd, .events = POLLIN};
            open += workers[i].fd >= 0;
        }
        if (open == 0) return PC_OK;
        if (poll(fds, (nfds_t)n, -1) < 0 && errno != EINTR)
            return err_set(PC_EINTERNAL, "poll: %s", strerror(errno));
        for (int i = 0; i < n; i++)
            if (workers[i].fd >= 0 && fds[i].revents) TRY(read_worker(r, &workers[i]));
    }
}

static int start(struct Runner *r, struct Share *share, struct Worker *workers, int i)
{
    int ends[2];
    if (pipe(ends) != 0) return err_set(PC_EINTERNAL, "pipe: %s", strerror(errno));
    fflush(NULL);
    workers[i].pid = fork();
    if (workers[i].pid < 0) {
        close(ends[0]);
        close(ends[1]);
        return err_set(PC_ENOMEM, "cannot start worker %d: %s; give fewer --workers", i + 1,
                       strerror(errno));
    }
    if (workers[i].pid == 0) {
        for (int j = 0; j < i; j++) close(workers[j].fd);
        close(ends[0]);
        worker_main(r, share, ends[1]);
    }
    close(ends[1]);
    workers[i].fd = ends[0];
    return PC_OK;
}

/* Waits for all; a worker that failed or was killed makes the run fail, after the others are done. */
static int finish(struct Worker *workers, int n, int status)
{
    for (int i = 0; i < n; i++) {
        int how = 0;
        if (workers[i].fd >= 0) close(workers[i].fd);
        if (status < 0 && workers[i].pid > 0) kill(workers[i].pid, SIGTERM);
        while (workers[i].pid > 0 && waitpid(workers[i].pid, &how, 0) < 0 && errno == EINTR)
            continue;
        str_free(&workers[i].got);
        if (status < 0 || how == 0) continue;
        if (WIFSIGNALED(how))
            status = err_set(PC_EINTERNAL,
                             "worker %d was killed by signal %d (out of memory?); the same command "
                             "goes on, perhaps with fewer --workers",
                             i + 1, WTERMSIG(how));
        else if (!signals_got())
            status = err_set(PC_EINTERNAL, "worker %d failed; its message stands above", i + 1);
    }
    return status == PC_OK && signals_got() ? err_set(PC_EINTR, "stopped") : status;
}

int runner_workers(struct Runner *r, int n_workers)
{
    struct Worker *workers = mem_alloc((size_t)n_workers, sizeof *workers);
    struct Share *share =
        mmap(NULL, sizeof *share, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status = PC_OK, n = 0;
    if (!workers || share == MAP_FAILED) {
        mem_free(workers);
        return err_set(PC_ENOMEM, "no memory for %d workers", n_workers);
    }
    while (n < n_workers && status == PC_OK) {
        workers[n].fd = -1;
        status = start(r, share, workers, n);
        n += status == PC_OK;
    }
    if (status == PC_OK) status = collect(r, workers, n);
    status = finish(workers, n, status);
    munmap(share, sizeof *share);
    mem_free(workers);
    return status;
}

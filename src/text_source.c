/* text_source.c - see text_source.h. One part is open at a time, so that a thousand files need one descriptor. */
#include "text_source.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char BETWEEN[] = "\n\n"; /* two parts */
enum {
    BETWEEN_LEN = 2,
    BLOCK = 1 << 16,
    HELD_MOST = 1 << 20, /* bytes of a spool in memory */
    POLL_MS = 200,       /* between two looks at `stop` */
    TAKE_MOST = 4 << 20, /* bytes taken at once from a pipe that never ends */
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static const char *name_of(const struct SourcePart *part)
{
    return strcmp(part->path, "-") == 0 ? "standard input" : part->path;
}

/* ==== Checks ==== */

static int check_from(const char *what, size_t before, const char *data, size_t len, bool ends)
{
    const char *nul = len ? memchr(data, '\0', len) : NULL;
    size_t bad = utf8_invalid_at(data, len);
    if (nul && (size_t)(nul - data) < bad)
        return err_set(PC_EFORMAT,
                       "%s: NUL at byte %zu: this is binary data, not text; convert it to "
                       "plain text first",
                       what, before + (size_t)(nul - data));
    bool cut_off = !ends && len - bad < 4 && (uint8_t)data[bad] >= 0xc0;
    if (bad == len || cut_off) return PC_OK;
    return err_set(PC_EFORMAT,
                   "%s: byte %zu (0x%02x) is not UTF-8; convert the text first, for "
                   "example with `iconv -f latin1 -t utf-8`",
                   what, before + bad, (unsigned char)data[bad]);
}

int text_check(const char *what, const char *data, size_t len)
{
    if (len == 0) return err_set(PC_EFORMAT, "%s is empty; give it a text", what);
    return check_from(what, 0, data, len, true);
}

/* The part that holds byte `at`, or the last one that begins before it; NULL without parts. */
static const struct SourcePart *part_at(const struct TextSource *s, size_t at)
{
    int lo = 0, hi = s->n_begun;
    if (hi == 0) return NULL;
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (s->parts[mid].begin <= at)
            lo = mid;
        else
            hi = mid;
    }
    return &s->parts[lo];
}

int source_check(const struct TextSource *s, size_t at, const char *data, size_t len, bool ends)
{
    size_t bad = utf8_invalid_at(data, len);
    const char *nul = len ? memchr(data, '\0', len) : NULL;
    if (nul && (size_t)(nul - data) < bad) bad = (size_t)(nul - data);
    if (bad == len) return PC_OK;
    const struct SourcePart *part = part_at(s, at + bad);
    size_t begin = part && part->begin > at ? part->begin - at : 0; /* the part's first byte here */
    return check_from(part ? name_of(part) : "the text", part ? at + begin - part->begin : at,
                      data + begin, len - begin, ends);
}

int source_changed(const struct TextSource *s, size_t at)
{
    const struct SourcePart *part = part_at(s, at);
    return err_set(PC_EIO,
                   "%s: changed while it was being read, at byte %zu; let nobody write to it, or "
                   "read a copy",
                   part ? name_of(part) : "the text", part ? at - part->begin : at);
}

/* ==== Opening ==== */

static int cannot(const char *what, const char *name)
{
    return err_set(PC_EIO, "%s: cannot %s: %s", name, what, strerror(errno));
}

static void part_close(struct TextSource *s)
{
    if (s->is_open && s->fd != STDIN_FILENO) close(s->fd);
    s->is_open = false;
}

static int part_open(struct TextSource *s, int part)
{
    const char *path = s->parts[part].path;
    bool standard = strcmp(path, "-") == 0;
    if (s->is_open && s->fd_part == part) return PC_OK;
    part_close(s);
    s->fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    s->fd_part = part;
    s->is_open = s->fd >= 0;
    return s->is_open ? PC_OK : cannot("open", path);
}

/* A regular file of known length can be read where it lies; opening anything else for a look would take from it. */
static int part_look(struct TextSource *s, int part, bool *plain)
{
    struct stat info;
    const char *path = s->parts[part].path;
    *plain = false;
    if (strcmp(path, "-") == 0) return PC_OK;
    if (stat(path, &info) != 0) return cannot("open", path);
    if (S_ISDIR(info.st_mode))
        return err_set(PC_EIO, "%s: is a directory; name a file in it", path);
    if (!S_ISREG(info.st_mode)) return PC_OK;
    TRY(part_open(s, part));
    if (fstat(s->fd, &info) != 0) return cannot("read", path);
    s->parts[part].len = (size_t)info.st_size;
    *plain = info.st_size > 0; /* files of the kernel have no length and may yet have text */
    return PC_OK;
}

int source_open_spool(struct TextSource *s)
{
    *s = (struct TextSource){.spooled = true};
    return PC_OK;
}

int source_open(struct TextSource *s, const char *const *paths, int n)
{
    TRY(source_open_spool(s));
    s->parts = mem_alloc((size_t)n, sizeof *s->parts);
    if (!s->parts) return PC_ENOMEM;
    s->n_parts = n;
    s->spooled = false;
    for (int i = 0; i < n; i++) {
        bool plain;
        s->parts[i].path = paths[i];
        TRY(part_look(s, i, &plain));
        s->spooled = s->spooled || !plain;
    }
    if (s->spooled) {
        part_close(s);
        return PC_OK;
    }
    for (int i = 0; i < n; i++) {
        s->parts[i].begin = s->size + (i ? BETWEEN_LEN : 0);
        s->size = s->parts[i].begin + s->parts[i].len;
    }
    s->n_begun = n;
    s->whole = true;
    return PC_OK;
}

void source_close(struct TextSource *s)
{
    part_close(s);
    if (s->on_disk) close(s->spool);
    str_free(&s->held);
    mem_free(s->parts);
    *s = (struct TextSource){0};
}

void source_share(const struct TextSource *s, struct TextSource *reader)
{
    *reader = *s;
    reader->is_open = false;
    reader->stop = NULL;
}

void source_leave(struct TextSource *reader)
{
    part_close(reader);
    *reader = (struct TextSource){0};
}

/* ==== The spool ==== */

static int spool_error(const char *folder)
{
    return err_set(PC_EIO,
                   "%s: cannot keep the piped text there: %s; set TMPDIR to a folder with room, or "
                   "give the text as a file with -f",
                   folder, strerror(errno));
}

static const char *spool_folder(void)
{
    const char *folder = getenv("TMPDIR");
    return folder && *folder ? folder : "/var/tmp";
}

static int spool_write(struct TextSource *s, const char *data, size_t len)
{
    while (len) {
        ssize_t put = write(s->spool, data, len);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return spool_error(spool_folder());
        data += put;
        len -= (size_t)put;
    }
    return PC_OK;
}

/* The name is gone at once: whatever becomes of this process, nothing is left behind. */
static int spool_open(struct TextSource *s)
{
    struct Str path = {0};
    int status = str_appendf(&path, "%s/pcomp-text-XXXXXX", spool_folder());
    if (status == PC_OK) s->spool = mkostemp(path.data, O_CLOEXEC);
    if (status == PC_OK && s->spool < 0) status = spool_error(spool_folder());
    s->on_disk = status == PC_OK;
    if (s->on_disk) unlink(path.data);
    str_free(&path);
    if (status == PC_OK && s->held.len) status = spool_write(s, s->held.data, s->held.len);
    str_free(&s->held);
    return status;
}

int source_put(struct TextSource *s, const char *data, size_t len)
{
    if (!s->on_disk && s->held.len + len <= HELD_MOST) {
        TRY(str_append(&s->held, data, len));
    } else {
        if (!s->on_disk) TRY(spool_open(s));
        TRY(spool_write(s, data, len));
    }
    s->size += len;
    return PC_OK;
}

/* Waits until something can be read; a read that waits by itself would not see the user's wish to stop. */
static int wait_input(const struct TextSource *s)
{
    struct pollfd in = {.fd = s->fd, .events = POLLIN};
    while (s->stop) {
        if (s->stop(s->user)) return err_set(PC_EINTR, "stopped");
        int ready = poll(&in, 1, POLL_MS);
        if (ready > 0 || (ready < 0 && errno != EINTR)) break;
    }
    return PC_OK;
}

static int part_begin(struct TextSource *s, int part)
{
    if (part) TRY(source_put(s, BETWEEN, BETWEEN_LEN));
    TRY(part_open(s, part));
    s->parts[part].begin = s->size;
    s->n_begun = part + 1;
    return PC_OK;
}

static int part_end(struct TextSource *s)
{
    struct SourcePart *part = &s->parts[s->fd_part];
    part->len = s->size - part->begin;
    part_close(s);
    return part->len ? PC_OK : text_check(name_of(part), "", 0);
}

/* Takes what a pipe has to give now. */
static int pull(struct TextSource *s)
{
    char block[BLOCK];
    if (!s->is_open && s->n_begun == s->n_parts) {
        s->whole = true;
        return PC_OK;
    }
    if (!s->is_open) TRY(part_begin(s, s->n_begun));
    TRY(wait_input(s));
    ssize_t got = read(s->fd, block, sizeof block);
    if (got < 0 && errno == EINTR) return PC_OK;
    if (got < 0) return cannot("read", name_of(&s->parts[s->fd_part]));
    return got ? source_put(s, block, (size_t)got) : part_end(s);
}

static bool input_waits(const struct TextSource *s, double seconds)
{
    struct pollfd in = {.fd = s->fd, .events = POLLIN};
    return !s->is_open || poll(&in, 1, seconds > 0 ? (int)(seconds * 1000) + 1 : 0) > 0;
}

int source_take(struct TextSource *s, double seconds)
{
    size_t most = s->size + TAKE_MOST;
    double end = clock_seconds() + seconds;
    while (!s->whole && input_waits(s, end - clock_seconds())) {
        if (clock_seconds() >= end && s->size >= most) break;
        TRY(pull(s));
    }
    return PC_OK;
}

/* ==== Reading ==== */

static int read_at(const struct TextSource *s, int fd, size_t at, size_t len, char *out)
{
    for (size_t done = 0; done < len;) {
        ssize_t got = pread(fd, out + done, len - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return cannot("read", s->spooled ? "the kept text" : name_of(&s->parts[s->fd_part]));
        if (got == 0) {
            size_t begin = s->spooled ? 0 : s->parts[s->fd_part].begin;
            return source_changed(s, begin + at + done);
        }
        done += (size_t)got;
    }
    return PC_OK;
}

/* What of [at, at + len) lies in one part or between two. */
static int read_part(struct TextSource *s, size_t at, size_t len, char *out, size_t *got)
{
    const struct SourcePart *part = part_at(s, at);
    size_t end = part->begin + part->len;
    if (at < end) {
        *got = least(len, end - at);
        TRY(part_open(s, (int)(part - s->parts)));
        return read_at(s, s->fd, at - part->begin, *got, out);
    }
    *got = least(len, end + BETWEEN_LEN - at);
    memcpy(out, BETWEEN + (at - end), *got);
    return PC_OK;
}

int source_read(struct TextSource *s, size_t at, size_t len, char *out, size_t *got)
{
    while (!s->whole && s->size - least(s->size, at) < len) TRY(pull(s));
    *got = at < s->size ? least(len, s->size - at) : 0;
    if (s->on_disk) return read_at(s, s->spool, at, *got, out);
    if (s->spooled) {
        if (*got) memcpy(out, s->held.data + at, *got);
        return PC_OK;
    }
    for (size_t done = 0, n; done < *got; done += n)
        TRY(read_part(s, at + done, *got - done, out + done, &n));
    return PC_OK;
}

int source_all(struct TextSource *s, struct Str *out)
{
    for (size_t at = 0, got = BLOCK; got == BLOCK; at += got) {
        TRY(str_reserve(out, BLOCK));
        TRY(source_read(s, at, BLOCK, out->data + out->len, &got));
        out->len += got;
    }
    out->data[out->len] = 0;
    return PC_OK;
}

int source_again(struct TextSource *s, size_t at, size_t len, char *out)
{
    size_t got;
    TRY(source_read(s, at, len, out, &got));
    return got == len ? PC_OK : source_changed(s, at + got);
}

/* Checks and hashes block by block; a character that a block cuts off is read again with the next. */
static int hash_blocks(struct TextSource *s, struct Hash64 *hash)
{
    char block[BLOCK];
    size_t at = 0, got;
    for (bool ends = false; !ends; at += got) {
        TRY(source_read(s, at, sizeof block, block, &got));
        ends = s->whole && at + got == s->size;
        TRY(source_check(s, at, block, got, ends));
        if (!ends) got = utf8_invalid_at(block, got);
        hash64_add(hash, block, got);
    }
    return PC_OK;
}

int source_hash(struct TextSource *s, uint64_t seed, uint64_t *out)
{
    struct Hash64 *hash;
    TRY(hash64_begin(seed, &hash));
    int status = hash_blocks(s, hash);
    *out = hash64_end(hash);
    return status;
}

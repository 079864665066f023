/* store_write.c - writes a document store, or goes on with one that was interrupted: see store.h. */
#include "store_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ==== Head and body ==== */

static void make_head(const struct StoreInfo *i, size_t body_bytes, struct StoreHead *h)
{
    *h = (struct StoreHead){
        .magic = STORE_MAGIC,
        .version = i->cap ? STORE_CAPPED : STORE_WHOLE,
        .head_bytes = sizeof *h,
        .model_hash = i->model_hash,
        .heads_hash = i->heads_hash,
        .page_bytes = i->page_bytes,
        .page_tokens = PAGE_TOKENS,
        .n_layers = (uint32_t)i->n_layers,
        .n_kv_heads = (uint32_t)i->n_kv_heads,
        .dim = (uint32_t)i->dim,
        .sinks = (uint32_t)i->sinks,
        .recent = (uint32_t)i->recent,
        .cap = (uint32_t)i->cap,
        .n_prefix = (uint32_t)i->n_prefix,
        .n_context = (uint32_t)i->n_context,
        .n_chunks = (uint32_t)i->n_chunks,
        .chunk_tokens = (uint32_t)i->chunk_tokens,
        .n_all = (uint64_t)i->n_all,
        .rope_factor = i->rope_factor,
        .settings_bytes = i->settings.len,
        .text_bytes = i->text.len,
        .body_bytes = body_bytes,
    };
    memcpy(h->page_format, i->page_format, sizeof h->page_format);
}

/* Head and body as they stand in the file; the hash of the body is seeded with nothing that the head's hash covers, as
 * the head holds it. */
static int make_front(const struct StoreInfo *i, struct Str *out, uint64_t *seed)
{
    struct StoreBody b;
    struct StoreHead h;
    if (!store_body(i, &b)) return err_set(PC_ERANGE, "the text is larger than can be counted");
    TRY(str_reserve(out, b.end));
    memset(out->data, 0, b.end);
    out->len = b.end;
    if (i->streams)
        memcpy(out->data + b.streams, i->streams, (size_t)i->n_layers * (size_t)i->n_kv_heads);
    memcpy(out->data + b.prefix, i->prefix, sizeof *i->prefix * (size_t)i->n_prefix);
    memcpy(out->data + b.context, i->context, sizeof *i->context * (size_t)i->n_context);
    memcpy(out->data + b.chunks, i->chunks, sizeof *i->chunks * (size_t)i->n_chunks);
    memcpy(out->data + b.offset, i->offset, sizeof *i->offset * ((size_t)i->n_context + 1));
    memcpy(out->data + b.settings, i->settings.data, i->settings.len);
    memcpy(out->data + b.text, i->text.data, i->text.len);
    make_head(i, b.end - sizeof h, &h);
    h.body_hash = hash64(out->data + sizeof h, b.end - sizeof h, 0);
    h.hash = hash64(&h, offsetof(struct StoreHead, hash), 0);
    memcpy(out->data, &h, sizeof h);
    *seed = h.hash;
    return PC_OK;
}

/* ==== What is there already ==== */

/* 1: the file at path is this very store; 0: nothing in the way. */
static int find_whole(const char *path, const struct Str *front, bool fresh)
{
    struct stat info;
    struct Store old;
    if (stat(path, &info) != 0) return 0;
    if (!S_ISREG(info.st_mode))
        return err_set(PC_ECONFIG, "%s: is not a regular file; name another store with -o", path);
    int status = store_open(path, &old);
    bool same = status == PC_OK && old.map.len >= front->len &&
                !memcmp(old.map.data, front->data, front->len);
    bool store = old.map.len >= 8 && !memcmp(old.map.data, STORE_MAGIC, 8);
    store_close(&old);
    if (status == PC_ENOMEM) return status;
    if (!store)
        return err_set(PC_ECONFIG, "%s: is there and is no document store; name another with -o",
                       path);
    if (fresh) return 0;
    if (status < 0) return err_prefix(PC_ECONFIG, "--fresh replaces what is there");
    if (!same)
        return err_set(PC_ECONFIG,
                       "%s: is the store of another text, model or settings; name another with "
                       "-o, or --fresh to replace it",
                       path);
    return 1;
}

/* Whether the open file is still the one at that path: another process may have finished it before the lock was ours. */
static bool still_there(int fd, const char *path)
{
    struct stat ours, theirs;
    return fstat(fd, &ours) == 0 && stat(path, &theirs) == 0 && ours.st_ino == theirs.st_ino &&
           ours.st_dev == theirs.st_dev;
}

/* 1: the unfinished file is open and ours; 0: it was finished meanwhile, so look again what is there. */
static int open_part(struct StoreWriter *w)
{
    const char *part = w->part.data;
    w->fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (w->fd < 0) return err_set(PC_EIO, "%s: cannot write: %s", part, strerror(errno));
    if (flock(w->fd, LOCK_EX | LOCK_NB) == 0) {
        if (still_there(w->fd, part)) return 1;
        close(w->fd);
        w->fd = -1;
        return 0;
    }
    w->busy = errno == EWOULDBLOCK;
    if (w->busy)
        return err_set(PC_ECONFIG, "%s: another pcomp is writing this store; wait for it", part);
    return err_set(PC_EIO, "%s: cannot lock: %s", part, strerror(errno));
}

/* Reads len bytes at `at`; false when the file has fewer. */
static bool read_at(int fd, void *data, size_t len, size_t at)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = pread(fd, (uint8_t *)data + got, len - got, (off_t)(at + got));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        got += (size_t)n;
    }
    return true;
}

static bool same_front(const struct StoreWriter *w, const struct Str *front)
{
    size_t step = store_section_bytes(&w->info, 0), at = 0; /* what the buffer surely holds */
    for (; at < front->len; at += step) {
        size_t n = front->len - at < step ? front->len - at : step;
        if (!read_at(w->fd, w->section, n, at) || memcmp(w->section, front->data + at, n))
            return false;
    }
    return true;
}

static bool whole_section(const struct StoreWriter *w, int chunk, size_t at)
{
    const struct SectionHead *h = (const struct SectionHead *)(const void *)w->section;
    size_t bytes = store_section_bytes(&w->info, chunk);
    return read_at(w->fd, w->section, bytes, at) &&
           !memcmp(h->magic, SECTION_MAGIC, sizeof h->magic) && h->chunk == (uint64_t)chunk &&
           h->bytes == bytes && h->hash == store_section_hash(w->section, bytes, w->seed);
}

/* Bytes behind what was written so far; a failure says how to go on. */
static int put(const struct StoreWriter *w, const void *data, size_t len)
{
    char why[512];
    if (file_put(w->fd, w->part.data, data, len) == PC_OK) return PC_OK;
    snprintf(why, sizeof why, "%s", err_text());
    return err_set(PC_EIO,
                   "%s; %d of %d chunks are written: free some space and repeat the command to go "
                   "on, or delete that file",
                   why, w->n_done, w->info.n_chunks);
}

/* ==== Begin ==== */

static int check_space(const struct StoreWriter *w, size_t at)
{
    struct statvfs disk;
    if (fstatvfs(w->fd, &disk) != 0) return PC_OK; /* writing will tell */
    double free = (double)disk.f_bavail * (double)disk.f_frsize, need = (double)(w->bytes - at);
    if (need <= free) return PC_OK;
    return err_set(
        PC_EIO,
        "%s: the store needs %.2f GiB and the disk has %.2f GiB free; free some space or "
        "name another place with -o",
        w->path, need / (1 << 30), free / (1 << 30));
}

/* Cuts the unfinished file behind its last whole section, or begins it. */
static int go_on(struct StoreWriter *w, const struct Str *front)
{
    size_t at = 0;
    if (same_front(w, front)) {
        for (at = front->len; w->n_done < w->info.n_chunks && whole_section(w, w->n_done, at);)
            at += store_section_bytes(&w->info, w->n_done++);
    }
    if (ftruncate(w->fd, (off_t)at) != 0 || lseek(w->fd, (off_t)at, SEEK_SET) < 0)
        return err_set(PC_EIO, "%s: cannot cut: %s", w->part.data, strerror(errno));
    TRY(check_space(w, at));
    return at ? PC_OK : put(w, front->data, front->len);
}

static int alloc_section(struct StoreWriter *w)
{
    size_t most = 0;
    for (int c = 0; c < w->info.n_chunks; c++) {
        size_t bytes = store_section_bytes(&w->info, c);
        if (bytes > most) most = bytes;
    }
    w->section = mem_alloc(most, 1);
    return w->section ? PC_OK : PC_ENOMEM;
}

/* Opens the unfinished file, or finds that nothing is left to do: then fd stays -1. */
static int take_place(struct StoreWriter *w, const struct Str *front, bool fresh)
{
    for (int ours = 0; ours == 0;) {
        int whole = find_whole(w->path, front, fresh);
        TRY(whole);
        if (whole) {
            w->n_done = w->info.n_chunks;
            return PC_OK;
        }
        ours = open_part(w);
        TRY(ours);
    }
    return PC_OK;
}

int store_create(const char *path, const struct StoreInfo *info, bool fresh,
                 struct StoreWriter *out)
{
    struct Str front = {0};
    int status;
    *out = (struct StoreWriter){.info = *info, .path = path, .fd = -1};
    TRY_GOTO(store_bytes(info, &out->bytes));
    TRY_GOTO(make_front(info, &front, &out->seed));
    out->sections = front.len;
    TRY_GOTO(str_appendf(&out->part, "%s.part", path));
    TRY_GOTO(alloc_section(out));
    TRY_GOTO(take_place(out, &front, fresh));
    if (out->fd >= 0) status = go_on(out, &front);
fail:
    str_free(&front);
    return status;
}

/* ==== Write ==== */

struct StoreRoom store_section(const struct StoreWriter *w)
{
    const struct Chunk *c = &w->info.chunks[w->n_done];
    uint8_t *last = w->section + sizeof(struct SectionHead),
            *marks = last + store_last_bytes(&w->info);
    size_t bytes = store_marks_bytes(&w->info, c->end - c->begin);
    memset(marks, 0, bytes);
    return (struct StoreRoom){(float *)(void *)last, marks, marks + bytes};
}

int store_write(struct StoreWriter *w)
{
    int chunk = w->n_done;
    size_t bytes = store_section_bytes(&w->info, chunk);
    struct SectionHead h = {.magic = SECTION_MAGIC, .chunk = (uint64_t)chunk, .bytes = bytes};
    memcpy(w->section, &h, sizeof h);
    h.hash = store_section_hash(w->section, bytes, w->seed);
    memcpy(w->section, &h, sizeof h);
    TRY(put(w, w->section, bytes));
    w->n_done++;
    return PC_OK;
}

int store_finish(struct StoreWriter *w)
{
    struct StoreTrailer end;
    const char *part = w->part.data;
    store_trailer(w->bytes, w->seed, &end);
    TRY(put(w, &end, sizeof end));
    if (fsync(w->fd) != 0 || rename(part, w->path) != 0)
        return err_set(PC_EIO, "%s: cannot finish: %s", part, strerror(errno));
    return PC_OK;
}

void store_writer_close(struct StoreWriter *w)
{
    if (w->fd >= 0) close(w->fd);
    mem_free(w->section);
    str_free(&w->part);
    *w = (struct StoreWriter){.fd = -1};
}

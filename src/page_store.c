/* page_store.c - see page_store.h. */
#include "page_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ==== In memory ==== */

static int memory_read(struct PageStore *s, uint32_t page, void *out)
{
    memcpy(out, s->memory + page * s->page_bytes, s->page_bytes);
    return PC_OK;
}

static int memory_write(struct PageStore *s, uint32_t page, const void *data)
{
    memcpy(s->memory + page * s->page_bytes, data, s->page_bytes);
    return PC_OK;
}

static void memory_close(struct PageStore *s)
{
    mem_free(s->memory);
    memset(s, 0, sizeof *s);
}

int page_store_memory(struct PageStore *s, size_t page_bytes, uint32_t n_pages)
{
    *s = (struct PageStore){.read = memory_read,
                            .write = memory_write,
                            .close = memory_close,
                            .page_bytes = page_bytes,
                            .n_pages = n_pages,
                            .fd = -1};
    s->memory = mem_alloc(n_pages, page_bytes);
    return s->memory ? PC_OK : PC_ENOMEM;
}

/* ==== In a file ==== */

static off_t place_of(const struct PageStore *s, uint32_t page)
{
    return (off_t)page * (off_t)s->page_bytes;
}

static int file_read_page(struct PageStore *s, uint32_t page, void *out)
{
    size_t done = 0;
    while (done < s->page_bytes) {
        ssize_t n =
            pread(s->fd, (char *)out + done, s->page_bytes - done, place_of(s, page) + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return err_set(PC_EIO, "page %u of the KV cache cannot be read from %s: %s", page,
                           s->dir, strerror(errno));
        if (n == 0)
            return err_set(PC_EIO,
                           "page %u of the KV cache in %s ends after %zu of %zu bytes: the file "
                           "was cut short",
                           page, s->dir, done, s->page_bytes);
        done += (size_t)n;
    }
    if (hash64(out, s->page_bytes, page) == s->sums[page]) return PC_OK;
    return err_set(PC_EIO,
                   "page %u of the KV cache in %s is not what was written there: the disk, or who "
                   "else writes to it, is at fault; name another --kv-dir",
                   page, s->dir);
}

/* What a write that failed is about. */
static int disk_full(const struct PageStore *s, int error)
{
    return err_set(
        PC_EIO,
        "%s has no room for %.2f GiB of the KV cache: %s; name another --kv-dir, or raise "
        "--kv-resident",
        s->dir, (double)s->page_bytes * s->n_pages / (1 << 30), strerror(error));
}

static int file_write_page(struct PageStore *s, uint32_t page, const void *data)
{
    size_t done = 0;
    while (done < s->page_bytes) {
        ssize_t n = pwrite(s->fd, (const char *)data + done, s->page_bytes - done,
                           place_of(s, page) + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == ENOSPC || errno == EFBIG || errno == EDQUOT))
            return disk_full(s, errno);
        if (n <= 0)
            return err_set(PC_EIO, "page %u of the KV cache cannot be written to %s: %s", page,
                           s->dir, n < 0 ? strerror(errno) : "nothing was taken");
        done += (size_t)n;
    }
    s->sums[page] = hash64(data, s->page_bytes, page);
    return PC_OK;
}

static void file_close(struct PageStore *s)
{
    if (s->fd >= 0) close(s->fd);
    mem_free(s->sums);
    memset(s, 0, sizeof *s);
    s->fd = -1;
}

/* A file that has no name, or loses it at once where the file system knows no such files. */
static int open_unnamed(const char *dir)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
    char path[288];
    snprintf(path, sizeof path, "%s/pcomp_kv_XXXXXX", dir);
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0) unlink(path);
    return fd;
}

int page_store_file(struct PageStore *s, const char *dir, size_t page_bytes, uint32_t n_pages)
{
    *s = (struct PageStore){.read = file_read_page,
                            .write = file_write_page,
                            .close = file_close,
                            .page_bytes = page_bytes,
                            .n_pages = n_pages,
                            .fd = -1};
    snprintf(s->dir, sizeof s->dir, "%s", dir);
    s->sums = mem_alloc(n_pages, sizeof *s->sums);
    if (!s->sums) return PC_ENOMEM;
    s->fd = open_unnamed(dir);
    if (s->fd < 0)
        return err_set(PC_EIO, "no file for the KV cache in %s: %s; name another --kv-dir", dir,
                       strerror(errno));
    if (n_pages && fallocate(s->fd, 0, 0, place_of(s, n_pages)) < 0 && errno != EOPNOTSUPP)
        return disk_full(s, errno);
    return PC_OK;
}

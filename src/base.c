/* base.c - the floor of the engine: see base.h for what each function promises.
 *
 * Memory blocks carry a 64-byte header with their size, so that what is in use is known exactly
 * and stays comparable with the memory plan. Blocks of 1 MiB and more come straight from the
 * kernel: their pages are zero without being touched, and freeing them gives the memory back at
 * once. That is what keeps the resident size near (k + wave) * cap, however long the input
 * (ParallelComp: a fixed number of chunks is held).
 */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY /* the size of a running hash */
#include <xxhash.h>

/* ==== Status ==== */

static _Thread_local char err_buffer[ERR_ROOM];

int err_set(int code, const char *fmt, ...)
{
    char text[ERR_ROOM]; /* apart from err_buffer: an argument may be err_text() */
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    memcpy(err_buffer, text, strlen(text) + 1);
    return code;
}

int err_prefix(int code, const char *fmt, ...)
{
    char text[2 * ERR_ROOM + 2]; /* both texts whole; the end is cut when copied back */
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, ERR_ROOM, fmt, args);
    va_end(args);
    strcat(text, ": ");
    strcat(text, err_buffer);
    text[ERR_ROOM - 1] = '\0';
    memcpy(err_buffer, text, strlen(text) + 1);
    return code;
}

const char *err_text(void)
{
    return err_buffer;
}

void err_keep(struct ErrKept *kept, int status)
{
    if (kept->status < 0) return;
    kept->status = status;
    snprintf(kept->text, sizeof kept->text, "%s", err_buffer);
}

int err_tell(const struct ErrKept *kept)
{
    return kept->status < 0 ? err_set(kept->status, "%s", kept->text) : PC_OK;
}

/* ==== Sizes ==== */

bool size_mul(size_t a, size_t b, size_t *out)
{
    size_t product;
    if (__builtin_mul_overflow(a, b, &product)) return false;
    *out = product;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    size_t sum;
    if (__builtin_add_overflow(a, b, &sum)) return false;
    *out = sum;
    return true;
}

/* ==== Memory ==== */

enum { MEM_ALIGN = 64, MEM_MAPPED_FROM = 1 << 20 };

struct MemHead {
    size_t bytes; /* as asked for: what is accounted */
    size_t total; /* as taken from the system, header included */
    bool mapped;
};

_Static_assert(sizeof(struct MemHead) <= MEM_ALIGN, "the header must fit before the block");

static atomic_size_t mem_held, mem_highest;
static atomic_bool mem_guarded;
static atomic_int mem_trapped;
static atomic_long mem_countdown;

static struct MemHead *mem_head(void *p)
{
    return (struct MemHead *)((char *)p - MEM_ALIGN);
}

static void mem_count(size_t bytes)
{
    size_t now = atomic_fetch_add(&mem_held, bytes) + bytes;
    size_t highest = atomic_load(&mem_highest);
    while (now > highest && !atomic_compare_exchange_weak(&mem_highest, &highest, now)) {
    }
}

/* True when this allocation has to fail: the guard is on, or the injected fault is due. */
static bool mem_refused(void)
{
    if (atomic_load(&mem_guarded)) {
        atomic_fetch_add(&mem_trapped, 1);
        err_set(PC_ENOMEM, "an allocation was tried where none is allowed (memory guard)");
        return true;
    }
    long left = atomic_load(&mem_countdown);
    while (left > 0 && !atomic_compare_exchange_weak(&mem_countdown, &left, left - 1)) {
    }
    if (left != 1) return false;
    err_set(PC_ENOMEM, "out of memory (injected fault)");
    return true;
}

/* Bytes of a block and of what must be taken for it. False, with the text set, when that is too
 * much. */
static bool mem_sizes(size_t n, size_t size, size_t *bytes, size_t *total)
{
    size_t padded;
    if (!size_mul(n, size, bytes) || !size_add(*bytes, 2 * MEM_ALIGN - 1, &padded) ||
        padded > PTRDIFF_MAX) {
        err_set(PC_ENOMEM, "%zu elements of %zu bytes are more than this machine can address", n,
                size);
        return false;
    }
    *total = padded / MEM_ALIGN * MEM_ALIGN;
    return true;
}

static void *mem_failed(size_t bytes)
{
    err_set(PC_ENOMEM, "could not allocate %zu bytes (%zu are held already): %s", bytes,
            mem_in_use(), strerror(ENOMEM));
    return NULL;
}

void *mem_alloc(size_t n, size_t size)
{
    size_t bytes, total;
    if (!mem_sizes(n, size, &bytes, &total) || mem_refused()) return NULL;
    bool mapped = bytes >= MEM_MAPPED_FROM;
    char *base;
    if (mapped) {
        base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) return mem_failed(bytes);
    } else {
        base = aligned_alloc(MEM_ALIGN, total);
        if (!base) return mem_failed(bytes);
        memset(base, 0, total);
    }
    *(struct MemHead *)base = (struct MemHead){.bytes = bytes, .total = total, .mapped = mapped};
    mem_count(bytes);
    return base + MEM_ALIGN;
}

/* Lengthens a mapped block; the kernel moves its pages instead of copying them. */
static void *mem_remap(struct MemHead *head, size_t bytes, size_t total)
{
    if (mem_refused()) return NULL;
    size_t old_bytes = head->bytes;
    char *base = mremap(head, head->total, total, MREMAP_MAYMOVE);
    if (base == MAP_FAILED) return mem_failed(bytes);
    *(struct MemHead *)base = (struct MemHead){.bytes = bytes, .total = total, .mapped = true};
    mem_count(bytes - old_bytes);
    return base + MEM_ALIGN;
}

void *mem_grow(void *p, size_t old_n, size_t n, size_t size)
{
    if (!p) return mem_alloc(n, size);
    size_t bytes, total;
    if (!mem_sizes(n, size, &bytes, &total)) return NULL;
    if (n <= old_n) return p;
    struct MemHead *head = mem_head(p);
    size_t old_bytes = old_n * size; /* cannot overflow: n * size did not */
    if (bytes <= head->bytes) {
        memset((char *)p + old_bytes, 0, bytes - old_bytes);
        return p;
    }
    if (head->mapped) {
        size_t stale = head->bytes - old_bytes;
        char *grown = mem_remap(head, bytes, total);
        if (grown) memset(grown + old_bytes, 0, stale);
        return grown;
    }
    void *grown = mem_alloc(n, size);
    if (!grown) return NULL;
    memcpy(grown, p, old_bytes);
    mem_free(p);
    return grown;
}

void mem_free(void *p)
{
    if (!p) return;
    struct MemHead *head = mem_head(p);
    atomic_fetch_sub(&mem_held, head->bytes);
    if (head->mapped)
        munmap(head, head->total);
    else
        free(head);
}

size_t mem_in_use(void)
{
    return atomic_load(&mem_held);
}

size_t mem_peak(void)
{
    return atomic_load(&mem_highest);
}

void mem_peak_reset(void)
{
    atomic_store(&mem_highest, atomic_load(&mem_held));
}

void mem_guard(bool on)
{
    atomic_store(&mem_guarded, on);
}

int mem_guard_hits(void)
{
    return atomic_load(&mem_trapped);
}

void mem_fail_after(long n)
{
    atomic_store(&mem_countdown, n > 0 ? n : 0);
}

/* ==== What the system says about memory ==== */

/* Reads a small kernel file as text; false when it is not there. */
static bool read_small(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    size_t len = 0;
    while (len < room - 1) {
        ssize_t got = read(fd, text + len, room - 1 - len);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        len += (size_t)got;
    }
    close(fd);
    text[len] = '\0';
    return true;
}

/* The number after `key` at the start of a line of text; 0 when the key is absent. */
static size_t number_after(const char *text, const char *key)
{
    size_t len = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, key, len) == 0) return (size_t)strtoull(line + len, NULL, 10);
    }
    return 0;
}

size_t mem_resident(void)
{
    char text[4096];
    if (!read_small("/proc/self/status", text, sizeof text)) return 0;
    return number_after(text, "VmRSS:") * 1024;
}

/* Not getrusage(): its ru_maxrss starts from the peak of the process that called exec. */
size_t mem_resident_peak(void)
{
    char text[4096];
    if (!read_small("/proc/self/status", text, sizeof text)) return 0;
    return number_after(text, "VmHWM:") * 1024;
}

/* The two generations of control groups differ only in these names. */
struct CgroupNames {
    const char *mount, *entry, *limit, *usage, *cached;
};

/* Bytes that one control group still allows; SIZE_MAX when it sets no limit. */
static size_t cgroup_room(const struct CgroupNames *names, const char *group)
{
    char path[1024], text[8192];
    snprintf(path, sizeof path, "%s%s/%s", names->mount, group, names->limit);
    if (!read_small(path, text, sizeof text) || text[0] < '0' || text[0] > '9') return SIZE_MAX;
    size_t limit = (size_t)strtoull(text, NULL, 10);
    snprintf(path, sizeof path, "%s%s/%s", names->mount, group, names->usage);
    if (!read_small(path, text, sizeof text)) return limit;
    size_t used = (size_t)strtoull(text, NULL, 10);
    snprintf(path, sizeof path, "%s%s/memory.stat", names->mount, group);
    /* File pages that nobody maps are counted as used, but the kernel drops them on demand. */
    if (read_small(path, text, sizeof text)) {
        size_t cached = number_after(text, names->cached);
        used -= cached < used ? cached : used;
    }
    return used < limit ? limit - used : 0;
}

/* The tightest limit of this process's group and of all groups above it. */
static size_t cgroup_available(const struct CgroupNames *names)
{
    char text[4096], group[512] = "";
    if (!read_small("/proc/self/cgroup", text, sizeof text)) return SIZE_MAX;
    for (char *line = text, *end; *line; line = end) {
        end = strchr(line, '\n');
        if (end)
            *end++ = '\0';
        else
            end = line + strlen(line);
        char *entry = strchr(line, ':');
        size_t len = strlen(names->entry);
        if (!entry || strncmp(entry, names->entry, len) != 0) continue;
        snprintf(group, sizeof group, "%s", entry + len);
        break;
    }
    size_t room = SIZE_MAX;
    for (;;) {
        size_t here = cgroup_room(names, group);
        if (here < room) room = here;
        char *slash = strrchr(group, '/');
        if (!slash) return room;
        *slash = '\0';
    }
}

size_t mem_available(void)
{
    static const struct CgroupNames generations[] = {
        {"/sys/fs/cgroup", "::", "memory.max", "memory.current", "inactive_file "},
        {"/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes", "memory.usage_in_bytes",
         "total_inactive_file "},
    };
    char text[4096];
    size_t room = SIZE_MAX;
    if (read_small("/proc/meminfo", text, sizeof text))
        room = number_after(text, "MemAvailable:") * 1024;
    for (size_t i = 0; i < sizeof generations / sizeof generations[0]; i++) {
        size_t here = cgroup_available(&generations[i]);
        if (here < room) room = here;
    }
    return room;
}

/* ==== Strings ==== */

/* Makes room for `more` bytes and the NUL. */
int str_reserve(struct Str *s, size_t more)
{
    size_t need;
    if (!size_add(s->len, more, &need) || !size_add(need, 1, &need))
        return err_set(PC_ENOMEM, "a text of more than %zu bytes cannot be held", s->len);
    if (need <= s->cap) return PC_OK;
    size_t cap = s->cap ? s->cap : 64;
    while (cap < need && cap <= SIZE_MAX / 2) cap *= 2;
    if (cap < need) cap = need;
    char *data = mem_grow(s->data, s->cap, cap, 1);
    if (!data) return PC_ENOMEM;
    s->data = data;
    s->cap = cap;
    return PC_OK;
}

int str_append(struct Str *s, const char *data, size_t len)
{
    TRY(str_reserve(s, len));
    if (len) memcpy(s->data + s->len, data, len);
    s->len += len;
    s->data[s->len] = '\0';
    return PC_OK;
}

int str_appendf(struct Str *s, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    int status =
        len < 0 ? err_set(PC_EINTERNAL, "bad format string: %s", fmt) : str_reserve(s, (size_t)len);
    if (status == PC_OK) {
        vsnprintf(s->data + s->len, (size_t)len + 1, fmt, again);
        s->len += (size_t)len;
    }
    va_end(again);
    return status;
}

void str_clear(struct Str *s)
{
    s->len = 0;
    if (s->data) s->data[0] = '\0';
}

void str_free(struct Str *s)
{
    mem_free(s->data);
    *s = (struct Str){0};
}

/* Length of the UTF-8 character at p, of which `left` bytes are there; 0 when it is not one. */
static size_t utf8_len(const unsigned char *p, size_t left)
{
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4) return 0;
    size_t len = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (left < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    bool overlong = (p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xF0 && p[1] < 0x90);
    bool surrogate = p[0] == 0xED && p[1] > 0x9F;
    bool too_high = p[0] == 0xF4 && p[1] > 0x8F;
    return overlong || surrogate || too_high ? 0 : len;
}

size_t utf8_invalid_at(const char *data, size_t len)
{
    const unsigned char *p = (const unsigned char *)data;
    size_t at = 0;
    while (at < len) {
        size_t step = utf8_len(p + at, len - at);
        if (!step) return at;
        at += step;
    }
    return len;
}

int word_distance(const char *a, const char *b)
{
    enum { WORD_MAX = 64 };
    int n_a = (int)strlen(a), n_b = (int)strlen(b);
    if (n_a >= WORD_MAX || n_b >= WORD_MAX) return n_a > n_b ? n_a : n_b;
    int row[WORD_MAX]; /* row[j]: distance of a[0, i) and b[0, j) */
    for (int j = 0; j <= n_b; j++) row[j] = j;
    for (int i = 1; i <= n_a; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n_b; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n_b];
}

const char *word_nearest(const char *word, const void *table, size_t n, size_t size)
{
    const char *best = NULL;
    for (size_t i = 0; i < n; i++) {
        const char *name = *(const char *const *)((const char *)table + i * size);
        if (!best || word_distance(word, name) < word_distance(word, best)) best = name;
    }
    return best;
}

/* ==== Files ==== */

/* Opens a path for reading; the text of every refusal begins with the path. */
static int file_open(const char *path, int *out, struct stat *info)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_set(PC_EIO, "%s: cannot open: %s", path, strerror(errno));
    int status = PC_OK;
    if (fstat(fd, info) != 0)
        status = err_set(PC_EIO, "%s: cannot read: %s", path, strerror(errno));
    else if (S_ISDIR(info->st_mode))
        status = err_set(PC_EIO, "%s: is a directory; name a file in it", path);
    if (status < 0)
        close(fd);
    else
        *out = fd;
    return status;
}

int file_map(const char *path, struct FileMap *out)
{
    *out = (struct FileMap){.data = (const uint8_t *)"", .len = 0};
    int fd = -1;
    struct stat info;
    TRY(file_open(path, &fd, &info));
    int status = PC_OK;
    if (!S_ISREG(info.st_mode)) {
        status =
            err_set(PC_EIO, "%s: is not a regular file; copy its data into a file first", path);
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            status = err_set(PC_EIO, "%s: cannot map %lld bytes: %s", path, (long long)info.st_size,
                             strerror(errno));
        else
            *out = (struct FileMap){.data = data, .len = (size_t)info.st_size};
    }
    close(fd);
    return status;
}

void file_unmap(struct FileMap *map)
{
    if (map->len) munmap((void *)(uintptr_t)map->data, map->len);
    *map = (struct FileMap){.data = (const uint8_t *)"", .len = 0};
}

static int read_all(int fd, const char *what, size_t expected, struct Str *out)
{
    enum { STEP = 1 << 16 };
    TRY(str_reserve(out, expected > STEP ? expected : STEP));
    for (;;) {
        TRY(str_reserve(out, out->cap - out->len > 1 ? 1 : STEP));
        ssize_t got = read(fd, out->data + out->len, out->cap - out->len - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return err_set(PC_EIO, "%s: cannot read: %s", what, strerror(errno));
        if (got == 0) break;
        out->len += (size_t)got;
    }
    out->data[out->len] = '\0';
    return PC_OK;
}

int file_read(const char *path, struct Str *out)
{
    if (strcmp(path, "-") == 0) return read_all(STDIN_FILENO, "standard input", 0, out);
    int fd = -1;
    struct stat info;
    TRY(file_open(path, &fd, &info));
    size_t expected = S_ISREG(info.st_mode) ? (size_t)info.st_size + 1 : 0;
    int status = read_all(fd, path, expected, out);
    close(fd);
    return status;
}

int file_put(int fd, const char *what, const char *data, size_t len)
{
    while (len) {
        ssize_t put = write(fd, data, len);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return err_set(PC_EIO, "%s: cannot write: %s", what, strerror(errno));
        data += put;
        len -= (size_t)put;
    }
    return PC_OK;
}

/* Devices, pipes and links (such as /dev/stdout) must be written through, not replaced. */
static int write_through(const char *path, const char *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (fd < 0) return err_set(PC_EIO, "%s: cannot write: %s", path, strerror(errno));
    int status = file_put(fd, path, data, len);
    if (close(fd) != 0 && status == PC_OK)
        status = err_set(PC_EIO, "%s: cannot write: %s", path, strerror(errno));
    return status;
}

int file_write(const char *path, const char *data, size_t len)
{
    static atomic_uint serial; /* two threads may write the same target */
    struct stat info;
    bool exists = lstat(path, &info) == 0;
    if (exists && S_ISDIR(info.st_mode))
        return err_set(PC_EIO, "%s: is a directory; name a file in it", path);
    if (exists && !S_ISREG(info.st_mode)) return write_through(path, data, len);

    struct Str temp = {0};
    int fd = -1, status;
    TRY_GOTO(
        str_appendf(&temp, "%s.%ld.%u.tmp", path, (long)getpid(), atomic_fetch_add(&serial, 1)));
    fd = open(temp.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) TRY_GOTO(err_set(PC_EIO, "%s: cannot write: %s", path, strerror(errno)));
    TRY_GOTO(file_put(fd, path, data, len));
    if (exists && fchmod(fd, info.st_mode & 07777) != 0)
        TRY_GOTO(err_set(PC_EIO, "%s: cannot set its mode: %s", path, strerror(errno)));
    if (fsync(fd) != 0 || rename(temp.data, path) != 0)
        TRY_GOTO(err_set(PC_EIO, "%s: cannot write: %s", path, strerror(errno)));
    close(fd);
    str_free(&temp);
    return PC_OK;

fail:
    if (fd >= 0) {
        unlink(temp.data);
        close(fd);
    }
    str_free(&temp);
    return status;
}

/* ==== Clock, log, hash ==== */

double clock_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static atomic_int log_level = LOG_INFO;

void log_set(enum LogLevel level)
{
    atomic_store(&log_level, (int)level);
}

void log_msg(enum LogLevel level, const char *fmt, ...)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    if ((int)level > atomic_load(&log_level)) return;
    char text[2048];
    int len = snprintf(text, sizeof text, "%s", names[level]);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + len, sizeof text - (size_t)len - 1, fmt, args);
    va_end(args);
    /* One write a line, so that lines of several threads do not mix. */
    strcat(text, "\n");
    fputs(text, stderr);
}

uint64_t hash64(const void *data, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, len, seed);
}

struct Hash64 {
    XXH3_state_t state;
};

int hash64_begin(uint64_t seed, struct Hash64 **out)
{
    *out = mem_alloc(1, sizeof **out);
    if (!*out) return PC_ENOMEM;
    XXH3_64bits_reset_withSeed(&(*out)->state, seed);
    return PC_OK;
}

void hash64_add(struct Hash64 *hash, const void *data, size_t len)
{
    XXH3_64bits_update(&hash->state, data, len);
}

uint64_t hash64_end(struct Hash64 *hash)
{
    uint64_t value = hash ? XXH3_64bits_digest(&hash->state) : 0;
    mem_free(hash);
    return value;
}

/* base.h - what every other file stands on: status codes and error text, checked size
 * arithmetic, guarded allocation, growing strings, files, clock, log and hash.
 *
 * Functions that can fail return 0 or a negative PC_E… code; the text for the user is kept
 * per thread by err_set() and read by err_text(). Nothing here prints (but log_msg) or exits.
 */
#ifndef PCOMP_BASE_H
#define PCOMP_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ==== Status ==== */

enum PcStatus {
    PC_OK = 0,
    PC_EIO = -1,       /* a file could not be read or written */
    PC_EFORMAT = -2,   /* bad model or data */
    PC_ECONFIG = -3,   /* bad setting, flag or request */
    PC_ENOMEM = -4,    /* does not fit, or an allocation failed */
    PC_EDEVICE = -5,   /* the device failed */
    PC_ERANGE = -6,    /* an input is too long or too short for the method */
    PC_EINTERNAL = -7, /* our own bug */
    PC_EINTR = -8,     /* stopped by the user */
    PC_ELOST = -9,     /* another process of the run is gone (team.h) */
};

/* Stores the text of an error for this thread and returns `code`, so that callers can
 * write `return err_set(PC_EFORMAT, "…", …)`. The text names the thing, the limit and the remedy. */
int err_set(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Puts "prefix: " before the stored text; returns `code`. */
int err_prefix(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *err_text(void);

enum { ERR_ROOM = 1024 }; /* of a text */
/* What one thread has met, for another one to tell; all zero: nothing yet. */
struct ErrKept {
    int status;
    char text[ERR_ROOM];
};
/* Keeps status and this thread's text, unless something is kept already. Callers see to it that one thread at a time does. */
void err_keep(struct ErrKept *kept, int status);
int err_tell(const struct ErrKept *kept); /* as err_set; PC_OK where nothing is kept */

#define TRY(x)                                                                                     \
    do {                                                                                           \
        int try_status_ = (x);                                                                     \
        if (try_status_ < 0) return try_status_;                                                   \
    } while (0)

/* As TRY, for functions with one clean-up at the label `fail` and an `int status`. */
#define TRY_GOTO(x)                                                                                \
    do {                                                                                           \
        status = (x);                                                                              \
        if (status < 0) goto fail;                                                                 \
    } while (0)

/* ==== Sizes ==== */

/* Both return false, leaving *out alone, when the result does not fit in size_t. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* ==== Memory ==== */

/* Zeroed, 64-byte aligned memory for n elements of `size` bytes; NULL (with the error text set)
 * on overflow or when the allocation fails. Free with mem_free. Zero bytes give a valid pointer. */
void *mem_alloc(size_t n, size_t size);
/* Grows a block made by mem_alloc from old_n to n elements (new part zeroed). On failure returns
 * NULL and leaves the old block alone. */
void *mem_grow(void *p, size_t old_n, size_t n, size_t size);
void mem_free(void *p);
/* Bytes now held through mem_alloc, and the highest that number has been. */
size_t mem_in_use(void);
size_t mem_peak(void);
void mem_peak_reset(void); /* the peak starts again from what is held now */
/* Between guard on and off, any mem_alloc fails and counts (for the decode loop). */
void mem_guard(bool on);
int mem_guard_hits(void);
/* Fault injection for tests: the n-th mem_alloc from now fails (0: off). */
void mem_fail_after(long n);
/* Resident and peak resident bytes of this process, and bytes this machine can still give. */
size_t mem_resident(void);
size_t mem_resident_peak(void);
size_t mem_available(void);

/* ==== Strings ==== */

struct Str {
    char *data; /* always NUL-terminated once something was appended; may be NULL when empty */
    size_t len, cap;
};

/* Makes room for `more` bytes beyond len (and a NUL). */
int str_reserve(struct Str *s, size_t more);
int str_append(struct Str *s, const char *data, size_t len);
int str_appendf(struct Str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void str_clear(struct Str *s);
void str_free(struct Str *s);

/* Byte position of the first byte that is not UTF-8 (overlong, surrogate, cut), or len if all is. */
size_t utf8_invalid_at(const char *data, size_t len);

/* Edit distance of two short words (for "did you mean"). */
int word_distance(const char *a, const char *b);
/* The name nearest to `word` in a table of n (1 or more) structs of `size` bytes that begin with a const char *;
 * of equal ones the first. */
const char *word_nearest(const char *word, const void *table, size_t n, size_t size);

/* ==== Files ==== */

struct FileMap {
    const uint8_t *data;
    size_t len;
};

/* Maps a whole file read-only. An empty file gives data = "" and len = 0. */
int file_map(const char *path, struct FileMap *out);
void file_unmap(struct FileMap *map);
/* Reads a whole file, or standard input for "-", appending to out. */
int file_read(const char *path, struct Str *out);
/* Writes a file beside its target, then renames it over: a reader never sees half of it. */
int file_write(const char *path, const char *data, size_t len);
/* Writes all bytes where the open file stands; `what` names it in the error's text. */
int file_put(int fd, const char *what, const char *data, size_t len);

/* ==== Clock, log, hash ==== */

double clock_seconds(void); /* monotonic */

enum LogLevel { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
void log_set(enum LogLevel level);
void log_msg(enum LogLevel level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

static inline int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* XXH3-64 of the bytes, seeded. */
uint64_t hash64(const void *data, size_t len, uint64_t seed);
/* The same of bytes that come one piece after the other. *out is the caller's until hash64_end frees it. */
struct Hash64;
int hash64_begin(uint64_t seed, struct Hash64 **out);
void hash64_add(struct Hash64 *hash, const void *data, size_t len);
uint64_t hash64_end(struct Hash64 *hash); /* NULL: 0 */

#ifdef __cplusplus
}
#endif
#endif

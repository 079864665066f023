/* text_source.h - the bytes of a text that may be far larger than memory: files one after the other, or what a pipe gives.
 *
 * Files are read where they lie. A pipe can be read once only, so its text goes to a spool as it comes: to memory while it
 * is small, then to a file without a name in $TMPDIR (else /var/tmp), which is gone when the process is, however that
 * ends. From then on both are the same: any byte can be read at any time, and nothing of the text stays in memory.
 */
#ifndef PCOMP_TEXT_SOURCE_H
#define PCOMP_TEXT_SOURCE_H

#include "base.h"

struct SourcePart {
    const char *path; /* "-": standard input */
    size_t begin, len;
};

struct TextSource {           /* all zero: closed */
    struct SourcePart *parts; /* [n_parts] two of them stand a blank line apart */
    int n_parts, n_begun;     /* n_begun: of which is known where they begin */
    int fd, fd_part;          /* the part that is open */
    bool is_open;
    size_t size;  /* bytes; of a pipe, those that have come */
    bool whole;   /* size is final */
    bool spooled; /* read from the spool, not from the parts */
    bool on_disk; /* the spool is a file: */
    int spool;
    struct Str held; /* and before that */
    bool (*stop)(
        void *user); /* asked while waiting for a pipe: true ends it with PC_EINTR; may be NULL */
    void *user;
};

/* Checks that bytes are usable text: not empty, no NUL, UTF-8; names `what` and the byte. */
int text_check(const char *what, const char *data, size_t len);

/* The files, in this order; paths are borrowed. Opens what is no pipe for a moment, so that a file that is missing or empty is
 * named at once. source_close frees, also after an error. */
int source_open(struct TextSource *s, const char *const *paths, int n);
/* An empty text that source_put fills: the spool by itself. */
int source_open_spool(struct TextSource *s);
int source_put(struct TextSource *s, const char *data, size_t len);
void source_close(struct TextSource *s);
/* A second reader of a text that is whole, for another thread: it opens files itself and borrows all else. source_leave
 * closes it, before the first one is closed. */
void source_share(const struct TextSource *s, struct TextSource *reader);
void source_leave(struct TextSource *reader);

/* Reads bytes [at, at + len); *got is less than len at the text's end only. A pipe is read as far as that takes.
 * Errors: PC_EIO (cannot be read, shorter than it was), PC_EFORMAT (an empty file), PC_EINTR. */
int source_read(struct TextSource *s, size_t at, size_t len, char *out, size_t *got);
/* Appends the whole text. */
int source_all(struct TextSource *s, struct Str *out);
/* Takes what a pipe has to give by now, or within so many seconds; once it has given all, the text is whole. Errors as above. */
int source_take(struct TextSource *s, double seconds);
/* As source_read, where the bytes are known to be there. */
int source_again(struct TextSource *s, size_t at, size_t len, char *out);
/* Checks bytes [at, at + len) of the text as text_check does, naming the file and the byte in it. ends: no byte follows; else a
 * character may be cut off at the end. */
int source_check(const struct TextSource *s, size_t at, const char *data, size_t len, bool ends);
/* PC_EIO: what lies at byte `at` is not what was read there before. */
int source_changed(const struct TextSource *s, size_t at);
/* hash64 of the whole text, which is checked on the way. */
int source_hash(struct TextSource *s, uint64_t seed, uint64_t *hash);

#endif

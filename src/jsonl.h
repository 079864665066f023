/* jsonl.h - JSON lines in and out: a reader of work items, and an append-only file of results.
 *
 * The result file may be cut anywhere by a crash: opening it cuts a torn last line off, and every
 * line is on the disk before the next item begins.
 */
#ifndef PCOMP_JSONL_H
#define PCOMP_JSONL_H

#include "config.h"

#include <cjson/cJSON.h>

/* ==== Items to work on ==== */

/* One line of a work list. Texts are owned: item_free. */
struct Item {
    struct Str id; /* "id" or "custom_id"; else the line's number */
    struct Str
        file; /* path, relative to the list's folder unless absolute; empty when text is given */
    struct Str text;
    struct Str question;    /* empty: the default */
    struct Str instruction; /* system message of an OpenAI line; empty: the settings' */
    struct Str max_tokens, temperature, top_p,
        seed; /* an OpenAI line's own, as text; empty: the settings' */
};

/* Reads one line ({"id","file"|"text","question"} or an OpenAI batch request). PC_EFORMAT tells what is
 * wrong with it; id is set whenever it could be read. */
int item_parse(const char *line, size_t len, long number, struct Item *out);
void item_free(struct Item *item);

/* Next line of text from *at: false at the end. The line feed (and a carriage return) is left out. */
bool line_next(const char *text, size_t len, size_t *at, const char **line, size_t *line_len);

/* ==== Result file ==== */

/* Locks are on bytes far behind the file's end, which the kernel frees when a process dies, however it dies. */
struct Appender {
    int fd;
    bool regular;    /* a real file: it can be locked, read back and cut */
    bool shared;     /* other processes append to it too */
    int64_t size;    /* bytes of whole lines, as far as they were read */
    int64_t torn;    /* bytes of a torn last line that were cut off */
    struct Str news; /* shared: lines of others that came since */
};

/* Opens or creates path and takes its lock (another process that holds it: PC_EIO), repairs a torn
 * last line, and appends what is in the file to `old`. appender_close always. */
int appender_open(const char *path, struct Appender *out, struct Str *old);
/* The same beside other processes that open it so. PC_EIO when it is none that can be locked. */
int appender_open_shared(const char *path, struct Appender *out, struct Str *old);
/* Writes one line and its line feed, and waits until it is on the disk. When that fails nothing of the
 * line stays in the file. */
int appender_line(struct Appender *a, const char *line, size_t len);
void appender_close(struct Appender *a);

/* ==== Sharing the work ==== */

/* Puts the lines of others that came since into a->news, which the caller clears. */
int appender_news(struct Appender *a);
/* Takes the item with this key for this process: 1 when it has it now, 0 when another does. A process that ends in any way
 * loses its items. */
int appender_claim(struct Appender *a, uint64_t key);
void appender_release(struct Appender *a, uint64_t key);

#endif

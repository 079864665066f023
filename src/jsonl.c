/* jsonl.c - see jsonl.h. cJSON reads the lines; its nesting limit (1000) bounds the stack. */
#include "jsonl.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ==== Items ==== */

void item_free(struct Item *item)
{
    str_free(&item->id);
    str_free(&item->file);
    str_free(&item->text);
    str_free(&item->question);
    str_free(&item->instruction);
    str_free(&item->max_tokens);
    str_free(&item->temperature);
    str_free(&item->top_p);
    str_free(&item->seed);
}

bool line_next(const char *text, size_t len, size_t *at, const char **line, size_t *line_len)
{
    if (*at >= len) return false;
    const char *begin = text + *at, *feed = memchr(begin, '\n', len - *at);
    size_t n = feed ? (size_t)(feed - begin) : len - *at;
    *at += n + (feed != NULL);
    *line = begin;
    *line_len = n && begin[n - 1] == '\r' ? n - 1 : n;
    return true;
}

/* Takes a string member; absent is fine, another type is not. */
static int take_text(const cJSON *object, const char *name, struct Str *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!item || cJSON_IsNull(item)) return PC_OK;
    if (!cJSON_IsString(item)) return err_set(PC_EFORMAT, "'%s' is not a string", name);
    str_clear(out);
    return str_append(out, item->valuestring, strlen(item->valuestring));
}

/* Takes a number as the text that settings_set() reads. */
static int take_number(const cJSON *object, const char *name, struct Str *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!item || cJSON_IsNull(item)) return PC_OK;
    if (!cJSON_IsNumber(item)) return err_set(PC_EFORMAT, "'%s' is not a number", name);
    bool whole = item->valuedouble == floor(item->valuedouble) && fabs(item->valuedouble) < 1e15;
    str_clear(out);
    return str_appendf(out, whole ? "%.0f" : "%.17g", item->valuedouble);
}

/* Appends a message's content, which is a string or a list of {"type":"text","text":…}. */
static int message_content(const cJSON *message, struct Str *out)
{
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(message, "content");
    if (out->len) TRY(str_append(out, "\n\n", 2));
    if (cJSON_IsString(content))
        return str_append(out, content->valuestring, strlen(content->valuestring));
    if (!cJSON_IsArray(content)) return err_set(PC_EFORMAT, "a message has no 'content'");
    for (const cJSON *part = content->child; part; part = part->next) {
        const cJSON *type = cJSON_GetObjectItemCaseSensitive(part, "type");
        const cJSON *text = cJSON_GetObjectItemCaseSensitive(part, "text");
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "text") != 0 ||
            !cJSON_IsString(text))
            return err_set(PC_EFORMAT, "a message has a part that is not text");
        TRY(str_append(out, text->valuestring, strlen(text->valuestring)));
    }
    return PC_OK;
}

/* An OpenAI batch request. One user message is the text; of several, the last is the question and those
 * before it are the text. */
static int take_body(const cJSON *body, struct Item *out)
{
    const cJSON *messages = cJSON_GetObjectItemCaseSensitive(body, "messages");
    if (!cJSON_IsArray(messages)) return err_set(PC_EFORMAT, "'body' has no list 'messages'");
    int n_user = 0, seen = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (const cJSON *message = messages->child; message; message = message->next) {
            const cJSON *role = cJSON_GetObjectItemCaseSensitive(message, "role");
            const char *name = cJSON_IsString(role) ? role->valuestring : "";
            bool user = strcmp(name, "user") == 0;
            bool system = strcmp(name, "system") == 0 || strcmp(name, "developer") == 0;
            if (!user && !system) return err_set(PC_EFORMAT, "role '%.32s' is not supported", name);
            if (pass == 0) {
                n_user += user;
                continue;
            }
            seen += user;
            bool question = user && n_user > 1 && seen == n_user;
            TRY(message_content(message, system     ? &out->instruction
                                         : question ? &out->question
                                                    : &out->text));
        }
    }
    if (n_user == 0) return err_set(PC_EFORMAT, "there is no message of role 'user'");
    TRY(take_number(body, "max_tokens", &out->max_tokens));
    TRY(take_number(body, "max_completion_tokens", &out->max_tokens));
    TRY(take_number(body, "temperature", &out->temperature));
    TRY(take_number(body, "top_p", &out->top_p));
    return take_number(body, "seed", &out->seed);
}

static int item_fill(const cJSON *root, struct Item *out)
{
    if (!cJSON_IsObject(root)) return err_set(PC_EFORMAT, "the line is not a JSON object");
    const cJSON *body = cJSON_GetObjectItemCaseSensitive(root, "body");
    if (body) return take_body(body, out);
    TRY(take_text(root, "file", &out->file));
    TRY(take_text(root, "text", &out->text));
    TRY(take_text(root, "question", &out->question));
    if (!out->file.len == !out->text.len)
        return err_set(PC_EFORMAT, "the line needs one of 'file' and 'text'");
    return PC_OK;
}

int item_parse(const char *line, size_t len, long number, struct Item *out)
{
    *out = (struct Item){0};
    TRY(str_appendf(&out->id, "line %ld", number));
    size_t bad = utf8_invalid_at(line, len);
    if (bad < len) return err_set(PC_EFORMAT, "byte %zu is not UTF-8", bad);
    const char *end = line;
    cJSON *root = cJSON_ParseWithLengthOpts(line, len, &end, false);
    size_t at = end >= line && end <= line + len ? (size_t)(end - line) : len;
    while (root && at < len && (line[at] == ' ' || line[at] == '\t')) at++;
    int status;
    if (!root || at < len) {
        status = err_set(PC_EFORMAT, "not valid JSON at byte %zu", at);
    } else {
        const char *key = cJSON_GetObjectItemCaseSensitive(root, "custom_id") ? "custom_id" : "id";
        const cJSON *id = cJSON_GetObjectItemCaseSensitive(root, key);
        status =
            cJSON_IsNumber(id) ? take_number(root, key, &out->id) : take_text(root, key, &out->id);
        if (status == PC_OK) status = item_fill(root, out);
    }
    cJSON_Delete(root);
    return status;
}

/* ==== Result file ==== */

/* The bytes of `old` that are whole lines. A last line without its line feed was torn. */
static size_t whole_lines(const struct Str *old)
{
    size_t len = old->len;
    while (len > 0 && old->data[len - 1] != '\n') len--;
    return len;
}

static int repair(struct Appender *a, const char *path, struct Str *old)
{
    size_t len = whole_lines(old);
    a->torn = (int64_t)(old->len - len);
    a->size = (int64_t)len;
    if (a->torn == 0) return PC_OK;
    if (ftruncate(a->fd, (off_t)len) != 0)
        return err_set(PC_EIO, "%s: cannot cut the torn last line: %s", path, strerror(errno));
    old->len = len;
    if (old->data) old->data[len] = '\0';
    return PC_OK;
}

/* What the bytes that are locked stand for. Locks belong to the open file, not to the process. */
#define LOCK_USE                                                                                   \
    (INT64_C(1) << 62) /* held for reading by all that share the file, or for writing by one */
#define LOCK_APPEND (LOCK_USE + 1) /* held while lines are read or written */
#define LOCK_ITEMS  (LOCK_USE + 2) /* and on: one for each key */

static int lock_byte(int fd, int64_t byte, short type, bool wait)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int result;
    do result = fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
    while (result != 0 && errno == EINTR);
    return result;
}

static bool lock_is_taken(void)
{
    return errno == EAGAIN || errno == EACCES;
}

static int lock_file(struct Appender *a, const char *path)
{
    if (lock_byte(a->fd, LOCK_USE, a->shared ? F_RDLCK : F_WRLCK, false) == 0) return PC_OK;
    return err_set(PC_EIO, "%s: %s; give another --output", path,
                   !lock_is_taken() ? strerror(errno)
                   : a->shared      ? "another pcomp is writing to this file, without --share"
                                    : "another pcomp is writing to this file");
}

static int open_first(const char *path, struct Appender *out)
{
    struct stat info;
    if (out->fd < 0)
        return err_set(PC_EIO, "%s: cannot open for results: %s", path, strerror(errno));
    out->regular = fstat(out->fd, &info) == 0 && S_ISREG(info.st_mode);
    if (!out->regular && out->shared)
        return err_set(PC_EIO, "%s: is not a file that processes can share; give another --output",
                       path);
    return PC_OK;
}

/* Read after the lock is held: another process may have added lines until then. */
static int open_read(const char *path, struct Appender *out, struct Str *old)
{
    TRY(lock_file(out, path));
    if (out->shared && lock_byte(out->fd, LOCK_APPEND, F_WRLCK, true) != 0)
        return err_set(PC_EIO, "%s: cannot lock: %s", path, strerror(errno));
    int status = file_read(path, old);
    if (status == PC_OK) status = repair(out, path, old);
    if (out->shared) lock_byte(out->fd, LOCK_APPEND, F_UNLCK, false);
    return status;
}

static int open_any(const char *path, bool shared, struct Appender *out, struct Str *old)
{
    *out = (struct Appender){.fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666),
                             .shared = shared};
    TRY(open_first(path, out));
    return out->regular ? open_read(path, out, old) : PC_OK;
}

int appender_open(const char *path, struct Appender *out, struct Str *old)
{
    return open_any(path, false, out, old);
}

int appender_open_shared(const char *path, struct Appender *out, struct Str *old)
{
    return open_any(path, true, out, old);
}

/* Reads what others have written since, with the append lock held. One that died while it wrote has left a torn line. */
static int catch_up(struct Appender *a)
{
    struct stat info;
    if (fstat(a->fd, &info) != 0 || info.st_size <= a->size) return PC_OK;
    size_t begin = a->news.len, left = (size_t)(info.st_size - a->size);
    TRY(str_reserve(&a->news, left));
    while (left > 0) {
        ssize_t n = pread(a->fd, a->news.data + a->news.len, left,
                          (off_t)(a->size + (int64_t)(a->news.len - begin)));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        a->news.len += (size_t)n;
        left -= (size_t)n;
    }
    size_t whole = whole_lines(&a->news);
    if (whole < begin) whole = begin;
    a->size += (int64_t)(whole - begin);
    a->news.len = whole;
    a->news.data[whole] = '\0';
    if (a->size == (int64_t)info.st_size || ftruncate(a->fd, (off_t)a->size) == 0) return PC_OK;
    return err_set(PC_EIO, "cannot cut a torn last line: %s", strerror(errno));
}

int appender_news(struct Appender *a)
{
    if (!a->shared) return PC_OK;
    if (lock_byte(a->fd, LOCK_APPEND, F_WRLCK, true) != 0)
        return err_set(PC_EIO, "cannot lock the results: %s", strerror(errno));
    int status = catch_up(a);
    lock_byte(a->fd, LOCK_APPEND, F_UNLCK, false);
    return status;
}

static int64_t item_byte(uint64_t key)
{
    return LOCK_ITEMS + (int64_t)(key >> 3);
}

int appender_claim(struct Appender *a, uint64_t key)
{
    if (!a->shared || lock_byte(a->fd, item_byte(key), F_WRLCK, false) == 0) return 1;
    return lock_is_taken() ? 0 : err_set(PC_EIO, "cannot lock an item: %s", strerror(errno));
}

void appender_release(struct Appender *a, uint64_t key)
{
    if (a->shared) lock_byte(a->fd, item_byte(key), F_UNLCK, false);
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int append(struct Appender *a, const struct Str *text)
{
    if (write_all(a->fd, text->data, text->len) == 0 && (!a->regular || fsync(a->fd) == 0)) {
        a->size += (int64_t)text->len;
        return PC_OK;
    }
    int status = err_set(PC_EIO,
                         "a result could not be written: %s; finished results are kept, so free "
                         "some space and run the same command again",
                         strerror(errno));
    if (a->regular && ftruncate(a->fd, (off_t)a->size) != 0)
        err_prefix(status, "the torn line will be cut at the next start");
    return status;
}

int appender_line(struct Appender *a, const char *line, size_t len)
{
    struct Str text = {0};
    TRY(str_append(&text, line, len));
    int status = str_append(&text, "\n", 1);
    if (status == PC_OK && a->shared) {
        if (lock_byte(a->fd, LOCK_APPEND, F_WRLCK, true) != 0)
            status = err_set(PC_EIO, "cannot lock the results: %s", strerror(errno));
        if (status == PC_OK) status = catch_up(a);
    }
    if (status == PC_OK) status = append(a, &text);
    if (a->shared) lock_byte(a->fd, LOCK_APPEND, F_UNLCK, false);
    str_free(&text);
    return status;
}

void appender_close(struct Appender *a)
{
    if (a->fd >= 0) close(a->fd);
    a->fd = -1;
    str_free(&a->news);
}

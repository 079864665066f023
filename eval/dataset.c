/* dataset.c - see dataset.h */
#include "dataset.h"

#include "python_list.h"
#include "row_text.h"

#include <cjson/cJSON.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

/* ==== Lines ==== */

enum { READ_BYTES = 1 << 17 };

struct LineReader {
    gzFile gz; /* plain files too: zlib hands on what is not packed */
    FILE *file;
    ZSTD_DStream *zstd; /* NULL: gz is in use */
    ZSTD_inBuffer in;
    char *packed; /* [READ_BYTES] */
    char path[PATH_MAX];
    struct Str buffer; /* bytes read and not handed out yet are [at, len) */
    size_t at;
    bool end, passing; /* passing: in a line that is too long */
    bool cut;          /* a zstd frame is not finished */
};

static int zstd_open(struct LineReader *r)
{
    r->file = fopen(r->path, "rb");
    r->zstd = ZSTD_createDStream();
    r->packed = mem_alloc(READ_BYTES, 1);
    if (!r->zstd || !r->packed) return err_set(PC_ENOMEM, "%s: no memory to unpack", r->path);
    if (!r->file) return err_set(PC_EIO, "%s: cannot open", r->path);
    r->in = (ZSTD_inBuffer){r->packed, 0, 0};
    return PC_OK;
}

int lines_open(const char *path, struct LineReader **out)
{
    static const unsigned char zstd_magic[4] = {0x28, 0xB5, 0x2F, 0xFD};
    unsigned char first[4] = {0};
    struct LineReader *r = *out = mem_alloc(1, sizeof *r);
    if (!r) return PC_ENOMEM;
    snprintf(r->path, sizeof r->path, "%s", path);
    FILE *file = fopen(path, "rb");
    if (!file)
        return err_set(PC_EIO, "%s: cannot open: no such file, or no right to read it", path);
    size_t got = fread(first, 1, 4, file);
    fclose(file);
    if (got == 4 && memcmp(first, zstd_magic, 4) == 0) return zstd_open(r);
    r->gz = gzopen(path, "rb");
    if (!r->gz) return err_set(PC_EIO, "%s: cannot open", path);
    gzbuffer(r->gz, READ_BYTES);
    return PC_OK;
}

void lines_close(struct LineReader *r)
{
    if (!r) return;
    if (r->gz) gzclose(r->gz);
    if (r->file) fclose(r->file);
    ZSTD_freeDStream(r->zstd);
    mem_free(r->packed);
    str_free(&r->buffer);
    mem_free(r);
}

/* Unpacks into room bytes at data; 0 at the end. */
static int zstd_read(struct LineReader *r, char *data, size_t room, size_t *got)
{
    ZSTD_outBuffer out = {data, room, 0};
    while (out.pos == 0) {
        if (r->in.pos == r->in.size) {
            r->in.size = fread(r->packed, 1, READ_BYTES, r->file);
            r->in.pos = 0;
            if (ferror(r->file)) return err_set(PC_EIO, "%s: cannot read", r->path);
            if (r->in.size == 0 && r->cut)
                return err_set(PC_EFORMAT, "%s: the packed data end too early", r->path);
            if (r->in.size == 0) break;
        }
        size_t left = ZSTD_decompressStream(r->zstd, &out, &r->in);
        if (ZSTD_isError(left))
            return err_set(PC_EFORMAT, "%s: damaged zstd data: %s", r->path,
                           ZSTD_getErrorName(left));
        r->cut = left != 0;
    }
    *got = out.pos;
    return PC_OK;
}

static int gz_read(struct LineReader *r, char *data, size_t room, size_t *got)
{
    int n = gzread(r->gz, data, (unsigned)room), code;
    const char *text = gzerror(r->gz, &code);
    if (n < 0 || (n == 0 && code == Z_BUF_ERROR))
        return err_set(PC_EFORMAT, "%s: damaged gzip data: %s", r->path, text);
    *got = (size_t)n;
    return PC_OK;
}

/* Reads more behind what is there; what was handed out leaves first. */
static int fill(struct LineReader *r)
{
    struct Str *b = &r->buffer;
    size_t got = 0;
    if (r->at) {
        memmove(b->data, b->data + r->at, b->len - r->at);
        b->len -= r->at;
        r->at = 0;
    }
    TRY(str_reserve(b, READ_BYTES));
    TRY(r->zstd ? zstd_read(r, b->data + b->len, READ_BYTES, &got)
                : gz_read(r, b->data + b->len, READ_BYTES, &got));
    b->len += got;
    r->end = got == 0;
    return PC_OK;
}

/* Throws the rest of an overlong line away. */
static int pass_line(struct LineReader *r)
{
    for (;;) {
        struct Str *b = &r->buffer;
        char *feed = b->len > r->at ? memchr(b->data + r->at, '\n', b->len - r->at) : NULL;
        if (feed) {
            r->at = (size_t)(feed - b->data) + 1;
            return PC_OK;
        }
        r->at = b->len;
        if (r->end) return PC_OK;
        TRY(fill(r));
    }
}

int lines_next(struct LineReader *r, const char **line, size_t *len)
{
    size_t seen = 0;
    struct Str *b = &r->buffer;
    for (;;) {
        size_t have = b->len - r->at;
        char *begin = b->data + r->at;
        char *feed = have > seen ? memchr(begin + seen, '\n', have - seen) : NULL;
        if (feed || (r->end && have)) {
            size_t n = feed ? (size_t)(feed - begin) : have;
            *line = begin;
            *len = n && begin[n - 1] == '\r' ? n - 1 : n;
            r->at += n + (feed != NULL);
            return 1;
        }
        if (r->end) return 0;
        if (have > LINE_BYTES_MAX) {
            TRY(pass_line(r));
            return err_set(PC_ERANGE, "%s: a line is longer than %d MiB", r->path,
                           LINE_BYTES_MAX >> 20);
        }
        seen = have;
        TRY(fill(r));
    }
}

/* ==== One row ==== */

static int take_text(const cJSON *row, const char *name, struct Str *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    if (!item || cJSON_IsNull(item)) return str_append(out, "", 0);
    if (!cJSON_IsString(item)) return err_set(PC_EFORMAT, "'%s' is not a string", name);
    return str_append(out, item->valuestring, strlen(item->valuestring));
}

/* A string, a number, or a list of them, each as text. */
static int take_texts(const cJSON *item, const char *name, struct Str **list, int *n)
{
    char number[32];
    if (!item || cJSON_IsNull(item)) return PC_OK;
    if (cJSON_IsString(item))
        return texts_push(list, n, item->valuestring, strlen(item->valuestring));
    if (cJSON_IsNumber(item)) {
        snprintf(number, sizeof number, "%.17g", item->valuedouble);
        return texts_push(list, n, number, strlen(number));
    }
    if (!cJSON_IsArray(item))
        return err_set(PC_EFORMAT, "'%s' is not a text, a number or a list of them", name);
    for (const cJSON *child = item->child; child; child = child->next)
        TRY(take_texts(child, name, list, n));
    return PC_OK;
}

static int take_python_list(const char *text, struct Sample *s)
{
    struct PythonList list = {text, text + strlen(text), false};
    struct Str item = {0};
    int more;
    while ((more = python_list_next(&list, &item)) > 0) {
        const char *name = item.data ? item.data : "";
        more = utf8_invalid_at(name, item.len) < item.len
                   ? err_set(PC_EFORMAT, "a class is not UTF-8")
                   : texts_push(&s->all_classes, &s->n_classes, name, item.len);
        if (more < 0) break;
    }
    str_free(&item);
    return more;
}

/* Classes come as a list, or as the text of a Python list. */
static int take_classes(const cJSON *row, struct Sample *s)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, "all_classes");
    if (cJSON_IsString(item)) return take_python_list(item->valuestring, s);
    return take_texts(item, "all_classes", &s->all_classes, &s->n_classes);
}

/* InfiniteBench's choices: the option and its letter are both answers. */
static int add_letter(const char *task, struct Sample *s)
{
    bool choice = strcmp(task, "code_debug") == 0 || strcmp(task, "longbook_choice_eng") == 0;
    if (!choice || s->n_answers != 1) return PC_OK;
    for (int i = 0; i < s->n_options && i < 26; i++) {
        const struct Str *o = &s->options[i], *a = &s->answers[0];
        if (o->len == a->len && memcmp(o->data, a->data, o->len) == 0) {
            char letter = (char)('A' + i);
            return texts_push(&s->answers, &s->n_answers, &letter, 1);
        }
    }
    return err_set(PC_EFORMAT, "the answer is none of the options");
}

static int take_places(const cJSON *row, struct Sample *s)
{
    const cJSON *places = cJSON_GetObjectItemCaseSensitive(row, "answer_at");
    int n = cJSON_IsArray(places) ? cJSON_GetArraySize(places) : 0;
    if (n == 0) return PC_OK;
    s->answer_at = mem_alloc((size_t)n, sizeof *s->answer_at);
    if (!s->answer_at) return PC_ENOMEM;
    for (const cJSON *p = places->child; p; p = p->next)
        if (cJSON_IsNumber(p) && p->valuedouble >= 0 && p->valuedouble < 1e15)
            s->answer_at[s->n_answer_at++] = (size_t)p->valuedouble;
    return PC_OK;
}

static double take_number(const cJSON *row, const char *name, double def)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    return cJSON_IsNumber(item) ? item->valuedouble : def;
}

static int take_id(const cJSON *row, struct Sample *s)
{
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(row, "_id");
    if (!id) id = cJSON_GetObjectItemCaseSensitive(row, "id");
    if (cJSON_IsString(id)) return str_append(&s->id, id->valuestring, strlen(id->valuestring));
    if (cJSON_IsNumber(id)) return str_appendf(&s->id, "%.17g", id->valuedouble);
    return PC_OK;
}

static int row_take(const cJSON *row, const char *task, struct Sample *s)
{
    if (!cJSON_IsObject(row)) return err_set(PC_EFORMAT, "is not a JSON object");
    const char *context = cJSON_HasObjectItem(row, "context") ? "context" : "content";
    const char *answers = cJSON_HasObjectItem(row, "answers") ? "answers" : "answer";
    TRY(take_id(row, s));
    TRY(take_text(row, context, &s->context));
    TRY(take_text(row, "input", &s->input));
    TRY(take_texts(cJSON_GetObjectItemCaseSensitive(row, answers), answers, &s->answers,
                   &s->n_answers));
    TRY(take_texts(cJSON_GetObjectItemCaseSensitive(row, "options"), "options", &s->options,
                   &s->n_options));
    TRY(take_classes(row, s));
    TRY(add_letter(task, s));
    TRY(take_places(row, s));
    double length = take_number(row, "length", 0), target = take_number(row, "target_tokens", 0);
    s->length = length > 0 && length < 1e9 ? (int)length : 0;
    s->target_tokens = target > 0 && target < 1e9 ? (int)target : 0;
    s->depth = take_number(row, "depth", -1);
    if (s->context.len == 0) return err_set(PC_EFORMAT, "has no context");
    if (s->n_answers == 0) return err_set(PC_EFORMAT, "has no answers");
    return PC_OK;
}

static int row_json(const char *line, size_t len, cJSON **out)
{
    struct Str clean = {0};
    *out = NULL;
    int status = json_clean(line, len, &clean);
    if (status == PC_OK) *out = cJSON_ParseWithLength(clean.data, clean.len);
    if (status == PC_OK && !*out) {
        const char *at = cJSON_GetErrorPtr();
        bool inside = at && at >= clean.data && at <= clean.data + clean.len;
        status = err_set(PC_EFORMAT, "is not JSON at byte %zu",
                         inside ? (size_t)(at - clean.data) : (size_t)0);
    }
    str_free(&clean);
    return status;
}

int row_parse(const char *line, size_t len, const char *task, struct Sample *out)
{
    cJSON *row;
    *out = (struct Sample){.depth = -1};
    int status = row_json(line, len, &row);
    if (status == PC_OK) status = row_take(row, task, out);
    cJSON_Delete(row);
    return status;
}

/* ==== All rows of a task ==== */

static bool is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* The task's file in a folder; false when there is none. */
static bool file_in(const char *folder, const char *task, char *path, size_t room)
{
    static const char *const forms[] = {"%s/%s.jsonl",          "%s/%s.jsonl.zst",
                                        "%s/%s.jsonl.gz",       "%s/data/%s.jsonl",
                                        "%s/data/%s.jsonl.zst", "%s/data/%s.jsonl.gz"};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(path, room, forms[i], folder, task);
#pragma GCC diagnostic pop
        if (access(path, R_OK) == 0) return true;
    }
    return false;
}

bool dataset_has(const char *path, const char *task)
{
    char file[PATH_MAX + 128];
    return !is_folder(path) || file_in(path, task, file, sizeof file);
}

/* In a file for many tasks a row says which is its own; one that cannot be read may be anybody's. */
static bool row_is_for(const char *line, size_t len, const char *task)
{
    cJSON *row;
    bool match = true;
    if (row_json(line, len, &row) == PC_OK) {
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(row, "dataset");
        if (!name) name = cJSON_GetObjectItemCaseSensitive(row, "task");
        if (cJSON_IsString(name)) match = strcmp(name->valuestring, task) == 0;
    }
    cJSON_Delete(row);
    return match;
}

/* The lines of one task. */
struct TaskLines {
    struct LineReader *reader;
    const char *task;
    bool mixed; /* one file that may hold rows of other tasks */
    long number;
    const char *line;
    size_t len;
};

static int task_open(const char *path, const char *task, struct TaskLines *out)
{
    char file[PATH_MAX + 128];
    bool folder = is_folder(path);
    *out = (struct TaskLines){.task = task, .mixed = !folder};
    if (!folder) snprintf(file, sizeof file, "%s", path);
    if (folder && !file_in(path, task, file, sizeof file))
        return err_set(PC_EIO, "%s: holds no %s.jsonl (or .jsonl.zst, .jsonl.gz)", path, task);
    return lines_open(file, &out->reader);
}

/* As lines_next(), but for empty lines and other tasks' rows. */
static int task_next(struct TaskLines *t)
{
    for (;;) {
        int status = lines_next(t->reader, &t->line, &t->len);
        if (status == 0) return 0;
        t->number++;
        if (status < 0) return status;
        if (t->len && (!t->mixed || row_is_for(t->line, t->len, t->task))) return 1;
    }
}

static int hand_row(const struct TaskLines *t, int status,
                    int (*row)(void *user, struct DataRow *row), void *user)
{
    struct DataRow data = {.line = t->number, .status = status};
    if (status == 1) data.status = row_parse(t->line, t->len, t->task, &data.sample);
    if (data.status == PC_OK && data.sample.id.len == 0)
        data.status = str_appendf(&data.sample.id, "%s-%ld", t->task, t->number);
    if (data.status < 0) err_prefix(data.status, "%s, line %ld", t->reader->path, t->number);
    status = data.status == PC_ENOMEM ? PC_ENOMEM : row(user, &data);
    sample_free(&data.sample);
    return status;
}

int dataset_each(const char *path, const char *task, int (*row)(void *user, struct DataRow *row),
                 void *user)
{
    struct TaskLines t;
    int status = task_open(path, task, &t);
    while (status == PC_OK) {
        int more = task_next(&t);
        if (more == 0) break;
        status = more == 1 || more == PC_ERANGE ? hand_row(&t, more, row, user) : more;
        if (status > 0) status = PC_OK;
    }
    lines_close(t.reader);
    return status;
}

int dataset_count(const char *path, const char *task, long *rows, uint64_t *hash)
{
    struct TaskLines t;
    int status = task_open(path, task, &t);
    for (*rows = 0; status == PC_OK; ++*rows) {
        int more = task_next(&t);
        if (more == 0) break;
        if (more == 1) *hash = hash64(t.line, t.len, *hash);
        if (more < 0 && more != PC_ERANGE) status = more;
    }
    lines_close(t.reader);
    return status;
}

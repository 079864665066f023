/* headmap_file.c - head maps on disk: what a path holds, DuoAttention's table of gates, and writing.
 *
 * DuoAttention stores one trained gate a KV head with numpy's savetxt: a layer a line, tabs between, "%.18e", no
 * header, values a little outside 0..1 (down to -1.4e-3 in the published files). Its loader cuts at a quantile,
 * after adding noise below 1e-6 against ties. We write ranks: no two are equal or closer than that noise, so
 * that its cut is ours.
 */
#include "headmap.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char TABLE[] = "full_attention_heads.tsv";

/* ==== A table of numbers ==== */

enum { CELL_ROOM = 64 };

/* One cell, cut and made printable. */
static const char *shown(const char *cell, size_t len, char text[CELL_ROOM])
{
    size_t n = len < CELL_ROOM - 1 ? len : CELL_ROOM - 1;
    for (size_t i = 0; i < n; i++) text[i] = cell[i] >= 0x20 && cell[i] < 0x7f ? cell[i] : '?';
    text[n] = '\0';
    return text;
}

static size_t digits_at(const char *text)
{
    return strspn(text, "0123456789");
}

/* Decimal only: strtod alone would take "nan", "inf", hexadecimal and leading blanks. */
static bool is_decimal(const char *text)
{
    if (*text == '+' || *text == '-') text++;
    size_t whole = digits_at(text), part = 0;
    text += whole;
    if (*text == '.') {
        part = digits_at(text + 1);
        text += 1 + part;
    }
    if (whole + part == 0) return false;
    if (*text == 'e' || *text == 'E') {
        text++;
        if (*text == '+' || *text == '-') text++;
        if (!digits_at(text)) return false;
        text += digits_at(text);
    }
    return *text == '\0';
}

static bool read_cell(const char *cell, size_t len, double *out)
{
    char text[CELL_ROOM];
    if (len >= sizeof text) return false;
    memcpy(text, cell, len);
    text[len] = '\0';
    if (!is_decimal(text)) return false;
    *out = strtod(text, NULL);
    return isfinite(*out);
}

/* What is being read, and whether its first value far outside 0..1 was reported. */
struct Table {
    const char *file;
    const struct HeadShape *model;
    bool warned;
};

/* Clips as DuoAttention does. Its gates are held to 0..1 but for the last step of training; numbers far outside
 * are something else, and clipping makes them equal. */
static float clip(struct Table *t, double value, int row, int column)
{
    if ((value < -0.05 || value > 1.05) && !t->warned) {
        log_msg(LOG_WARN,
                "%s: line %d, column %d: %.9g is far outside 0 to 1 and is clipped, as others may "
                "be; are these gates?",
                t->file, row + 1, column + 1, value);
        t->warned = true;
    }
    return value > 0 ? value < 1 ? (float)value : 1 : 0;
}

static size_t count_tabs(const char *line, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) n += line[i] == '\t';
    return n;
}

static int read_row(struct Table *t, const char *line, size_t len, int row, float *out)
{
    int width = t->model->n_kv_heads;
    size_t cells = len ? count_tabs(line, len) + 1 : 0;
    if (cells != (size_t)width)
        return err_set(PC_EFORMAT,
                       "%s: line %d has %zu values with tabs between; the model has %d KV heads a "
                       "layer; use a map made for this model",
                       t->file, row + 1, cells, width);
    for (int column = 0; column < width; column++) {
        const char *tab = memchr(line, '\t', len);
        size_t cell = tab ? (size_t)(tab - line) : len;
        double value;
        char text[CELL_ROOM];
        if (!read_cell(line, cell, &value))
            return err_set(PC_EFORMAT,
                           "%s: line %d, column %d: '%s' is not a finite decimal number (layer %d, "
                           "KV head %d); correct it or make the map anew",
                           t->file, row + 1, column + 1, shown(line, cell, text), row, column);
        out[column] = clip(t, value, row, column);
        line += cell + (tab != NULL);
        len -= cell + (tab != NULL);
    }
    return PC_OK;
}

/* The next line without its end; false when the text is over. */
static bool next_line(const char **text, size_t *left, const char **line, size_t *len)
{
    if (*left == 0) return false;
    const char *feed = memchr(*text, '\n', *left);
    size_t n = feed ? (size_t)(feed - *text) : *left;
    *line = *text;
    *len = n && (*text)[n - 1] == '\r' ? n - 1 : n;
    *text += n + (feed != NULL);
    *left -= n + (feed != NULL);
    return true;
}

static int read_rows(struct Table *t, const char *text, size_t left, float *scores)
{
    const char *line;
    size_t len;
    int row = 0, n_layers = t->model->n_layers;
    for (; next_line(&text, &left, &line, &len); row++) {
        if (row == n_layers)
            return err_set(PC_EFORMAT,
                           "%s: line %d is one too many: the model has %d layers; use a map made "
                           "for this model",
                           t->file, row + 1, n_layers);
        TRY(read_row(t, line, len, row, scores + (size_t)row * t->model->n_kv_heads));
    }
    if (row == n_layers) return PC_OK;
    return err_set(PC_EFORMAT,
                   "%s: line %d is missing: the file has %d lines, the model has %d layers; use a "
                   "map made for this model",
                   t->file, row + 1, row, n_layers);
}

static int parse_table(const char *text, size_t len, const char *file,
                       const struct HeadShape *model, struct HeadMap *out)
{
    struct Table table = {.file = file, .model = model};
    *out = (struct HeadMap){0};
    TRY(headmap_check_text(text, len, file));
    TRY(headmap_open(model, false, out));
    int status = read_rows(&table, text, len, out->scores);
    if (status < 0)
        headmap_close(out);
    else
        memcpy(out->method, "duoattention", sizeof "duoattention");
    return status;
}

static bool is_json(const char *text, size_t len)
{
    size_t at = 0;
    while (at < len && strchr(" \t\r\n", text[at]) && text[at]) at++;
    return at < len && (text[at] == '{' || text[at] == '[');
}

int headmap_parse(const char *text, size_t len, const char *file, const struct HeadShape *model,
                  struct HeadMap *out)
{
    return is_json(text, len) ? headmap_parse_json(text, len, file, model, out)
                              : parse_table(text, len, file, model, out);
}

/* ==== Reading ==== */

/* Maps a file no longer than a map of this shape has any reason to be: numbers of up to 64 bytes, and a
 * megabyte for the rest of a model's config.json. This bounds the memory that cJSON takes. */
static int map_file(const char *path, const struct HeadShape *model, struct FileMap *out)
{
    size_t cells = (size_t)model->n_layers * ((size_t)model->n_heads + (size_t)model->n_kv_heads);
    size_t limit = ((size_t)1 << 20) + cells * CELL_ROOM;
    TRY(file_map(path, out));
    if (out->len <= limit) return PC_OK;
    size_t len = out->len;
    file_unmap(out);
    return err_set(PC_ERANGE,
                   "%s: %zu bytes; a head map of the model's %d layers of %d query heads has at "
                   "most %zu; give another file",
                   path, len, model->n_layers, model->n_heads, limit);
}

/* config.json in the table's folder. */
static int read_config(const char *table, const struct HeadShape *model, struct HeadMap *map)
{
    struct Str path = {0};
    struct FileMap file = {0};
    const char *slash = strrchr(table, '/');
    int status, folder = slash ? (int)(slash - table) + 1 : 0;
    TRY_GOTO(str_appendf(&path, "%.*sconfig.json", folder, table));
    if (access(path.data, F_OK) != 0 && errno == ENOENT) {
        log_msg(LOG_WARN, "%s: not there; %d and %d are taken for sink_size and recent_size",
                path.data, HEADMAP_SINK, HEADMAP_RECENT);
        goto fail;
    }
    TRY_GOTO(map_file(path.data, model, &file));
    status = headmap_parse_config((const char *)file.data, file.len, path.data, map);
    file_unmap(&file);
fail:
    str_free(&path);
    return status;
}

static int read_file(const char *path, const struct HeadShape *model, struct HeadMap *out)
{
    struct FileMap file;
    TRY(map_file(path, model, &file));
    const char *text = (const char *)file.data;
    bool table = !is_json(text, file.len);
    int status = headmap_parse(text, file.len, path, model, out);
    file_unmap(&file);
    if (status == PC_OK && table) status = read_config(path, model, out);
    if (status < 0) headmap_close(out);
    return status;
}

/* Appends folder/name. */
static int path_in(const char *folder, const char *name, struct Str *out)
{
    size_t len = strlen(folder);
    return str_appendf(out, "%s%s%s", folder, len && folder[len - 1] == '/' ? "" : "/", name);
}

int headmap_read(const char *path, const struct HeadShape *model, struct HeadMap *out)
{
    struct stat info;
    struct Str table = {0};
    *out = (struct HeadMap){0};
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) return read_file(path, model, out);
    int status = path_in(path, TABLE, &table);
    if (status == PC_OK && access(table.data, F_OK) != 0)
        status = err_set(PC_EIO, "%s: no %s in this folder: %s; name the file of the head map",
                         path, TABLE, strerror(errno));
    if (status == PC_OK) status = read_file(table.data, model, out);
    str_free(&table);
    return status;
}

/* ==== Writing ==== */

static int add_number(struct Str *out, double value, bool last)
{
    return str_appendf(out, "%.18e%c", value, last ? '\n' : '\t');
}

/* Ranks in double, so that what another program reads is as even as can be. */
int headmap_duo_text(const struct HeadMap *map, struct Str *tsv, struct Str *config)
{
    int n = headmap_heads(map), width = map->shape.n_kv_heads, status;
    int *order = mem_alloc((size_t)n, sizeof *order);
    double *rank = mem_alloc((size_t)n, sizeof *rank);
    status = order && rank ? headmap_config_text(map, config) : PC_ENOMEM;
    if (status == PC_OK) status = headmap_order(map, order);
    if (status == PC_OK)
        for (int i = 0; i < n; i++) rank[order[i]] = n > 1 ? (double)(n - 1 - i) / (n - 1) : 1;
    for (int i = 0; i < n && status == PC_OK; i++)
        status = add_number(tsv, rank[i], i % width == width - 1);
    mem_free(order);
    mem_free(rank);
    return status;
}

int headmap_q_text(const struct HeadMap *map, struct Str *tsv)
{
    int width = map->shape.n_heads, n = map->q_scores ? map->shape.n_layers * width : 0;
    TRY(headmap_check(map));
    for (int i = 0; i < n; i++)
        TRY(add_number(tsv, (double)map->q_scores[i], i % width == width - 1));
    return PC_OK;
}

static int write_in(const char *folder, const char *name, const struct Str *text)
{
    struct Str path = {0};
    int status = path_in(folder, name, &path);
    if (status == PC_OK) status = file_write(path.data, text->data, text->len);
    str_free(&path);
    return status;
}

int headmap_write_duo(const struct HeadMap *map, const char *folder)
{
    struct Str tsv = {0}, config = {0}, q = {0};
    int status;
    TRY_GOTO(headmap_duo_text(map, &tsv, &config));
    TRY_GOTO(headmap_q_text(map, &q));
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        TRY_GOTO(err_set(PC_EIO, "%s: cannot make this folder: %s", folder, strerror(errno)));
    TRY_GOTO(write_in(folder, "config.json", &config));
    if (q.len) TRY_GOTO(write_in(folder, "q_heads.tsv", &q));
    TRY_GOTO(write_in(folder, TABLE, &tsv)); /* last: who sees it finds the others */
fail:
    str_free(&tsv);
    str_free(&config);
    str_free(&q);
    return status;
}

int headmap_write_rtp(const struct HeadMap *map, const uint8_t *keep, const char *path)
{
    struct Str text = {0};
    int status = headmap_rtp_text(map, keep, &text);
    if (status == PC_OK) status = file_write(path, text.data, text.len);
    str_free(&text);
    return status;
}

int headmap_write_json(const struct HeadMap *map, const char *path)
{
    struct Str text = {0};
    int status = headmap_json_text(map, &text);
    if (status == PC_OK) status = file_write(path, text.data, text.len);
    str_free(&text);
    return status;
}

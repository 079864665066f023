/* preds.c - see preds.h */
#include "preds.h"

#include "jsontext.h"
#include "pytext.h"
#include "python_list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Lists of texts ==== */

static int push_text(struct Preds *p, struct Str s)
{
    if (p->n_texts == p->cap_texts) {
        size_t more = p->cap_texts ? 2 * p->cap_texts : 256;
        struct Str *grown = mem_grow(p->texts, p->cap_texts, more, sizeof *grown);
        if (!grown) return PC_ENOMEM;
        p->texts = grown;
        p->cap_texts = more;
    }
    p->texts[p->n_texts++] = s;
    return PC_OK;
}

/* Where a row's list begins in texts, and its length: pointers come when the texts move no more. */
struct Range {
    size_t from, n;
    bool given;
};

/* A text, a number, or a list of those. */
static int read_texts(struct Preds *p, struct JsonText *j)
{
    struct Str s;
    char c = json_peek(j);
    if (c == '[') {
        bool first = true;
        int more;
        while ((more = json_element(j, &first)) > 0) TRY(read_texts(p, j));
        return more;
    }
    if (c != '"' && c != '-' && c != 'N' && c != 'I' && !(c >= '0' && c <= '9'))
        return err_set(PC_EFORMAT, "byte %zu: neither a text, a number nor a list of them", j->at);
    TRY(c == '"' ? json_string(j, &s) : json_number(j, &s));
    return push_text(p, s);
}

static int read_range(struct Preds *p, struct JsonText *j, struct Range *out)
{
    size_t before = p->n_texts;
    TRY(read_texts(p, j));
    *out = (struct Range){before, p->n_texts - before, true};
    return PC_OK;
}

/* The texts of "['a', \"b\"]", whose own bytes they overwrite: they are shorter than their spelling. */
static int read_python_list(struct Preds *p, struct Str s, struct Range *out)
{
    struct PythonList list = {s.data, s.data + s.len, false};
    char *to = s.data;
    struct Str item = {0};
    int more;
    *out = (struct Range){p->n_texts, 0, true};
    while ((more = python_list_next(&list, &item)) > 0) {
        if (item.len) memcpy(to, item.data, item.len);
        to[item.len] = '\0';
        more = push_text(p, (struct Str){.data = to, .len = item.len});
        if (more < 0) break;
        to += item.len + 1;
    }
    str_free(&item);
    out->n = p->n_texts - out->from;
    return more;
}

static int read_classes(struct Preds *p, struct JsonText *j, struct Range *out)
{
    struct Str s;
    *out = (struct Range){0};
    char c = json_peek(j);
    if (c == 'n') return json_skip(j);
    if (c != '"') return read_range(p, j, out);
    TRY(json_string(j, &s));
    return read_python_list(p, s, out);
}

/* ==== Lines ==== */

/* What a line says, by each name that may say it. */
struct Line {
    struct Str pred, prediction;
    struct Range answers, truth, label, classes;
    double length;
    bool has_pred, has_prediction;
};

static bool is(const struct Str *key, const char *name)
{
    return key->len == strlen(name) && memcmp(key->data, name, key->len) == 0;
}

static int read_length(struct JsonText *j, double *out)
{
    struct Str s;
    if (json_peek(j) == 'n') return json_skip(j);
    TRY(json_number(j, &s));
    *out = strtod(s.data, NULL);
    return PC_OK;
}

static int read_value(struct Preds *p, struct JsonText *j, const struct Str *key, struct Line *l)
{
    if (is(key, "pred")) {
        l->has_pred = true;
        return json_string(j, &l->pred);
    }
    if (is(key, "prediction")) {
        l->has_prediction = true;
        return json_string(j, &l->prediction);
    }
    if (is(key, "answers")) return read_range(p, j, &l->answers);
    if (is(key, "ground_truth")) return read_range(p, j, &l->truth);
    if (is(key, "label")) return read_range(p, j, &l->label);
    if (is(key, "all_classes")) return read_classes(p, j, &l->classes);
    if (is(key, "length")) return read_length(j, &l->length);
    return json_skip(j);
}

static int read_line(struct Preds *p, struct JsonText *j, struct Line *l)
{
    bool first = true;
    int more;
    struct Str key;
    while ((more = json_member(j, &first, &key)) > 0) TRY(read_value(p, j, &key, l));
    TRY(more);
    TRY(json_end(j));
    if (!l->has_pred && !l->has_prediction)
        return err_set(PC_EFORMAT, "no prediction ('pred' or 'prediction')");
    if (!l->answers.given && !l->truth.given && !l->label.given)
        return err_set(PC_EFORMAT, "no truth ('answers', 'ground_truth' or 'label')");
    return PC_OK;
}

static int push_row(struct Preds *p, size_t line, const struct Line *l)
{
    const struct Range *truth = l->answers.given ? &l->answers
                                : l->truth.given ? &l->truth
                                                 : &l->label;
    if (p->n == p->cap_rows) {
        size_t more = p->cap_rows ? 2 * p->cap_rows : 256;
        struct PredRow *grown = mem_grow(p->rows, p->cap_rows, more, sizeof *grown);
        if (!grown) return PC_ENOMEM;
        p->rows = grown;
        p->cap_rows = more;
    }
    p->rows[p->n++] = (struct PredRow){.line = line,
                                       .pred = l->has_prediction ? l->prediction : l->pred,
                                       .answers_from = truth->from,
                                       .n_answers = (int)truth->n,
                                       .has_classes = l->classes.given,
                                       .classes_from = l->classes.from,
                                       .n_classes = (int)l->classes.n,
                                       .length = l->length};
    return PC_OK;
}

static void note_error(struct Preds *p, size_t line, size_t byte)
{
    if (p->n_bad < PRED_ERRORS_KEPT) {
        struct PredError *e = &p->errors[p->n_bad];
        const char *why = err_text();
        if (strncmp(why, "byte ", 5) == 0 && strchr(why, ':')) why = strchr(why, ':') + 2;
        *e = (struct PredError){.line = line, .byte = byte + 1};
        snprintf(e->why, sizeof e->why, "%s", why);
    }
    p->n_bad++;
}

/* Whether a character of three bytes begins here that is neither overlong nor a surrogate, by its first byte. */
static bool is_plain_three(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    return s[0] > 0xE0 && s[0] < 0xF0 && s[0] != 0xED && (s[1] & 0xC0) == 0x80 &&
           (s[2] & 0xC0) == 0x80;
}

/* utf8_invalid_at, past what is ASCII or Chinese. */
static size_t invalid_at(const char *text, size_t len)
{
    size_t at = 0;
    while (at + 8 <= len) {
        uint64_t x, tops;
        memcpy(&x, text + at, sizeof x);
        tops = x & 0x8080808080808080;
        if (!tops)
            at += 8;
        else if (!(tops & 0x80))
            at += (size_t)__builtin_ctzll(tops) / 8;
        else if (is_plain_three(text + at))
            at += 3;
        else
            break;
    }
    return at + utf8_invalid_at(text + at, len - at);
}

static int parse_line(struct Preds *p, struct JsonText *j, size_t number)
{
    struct Line l = {.length = -1};
    char *room = j->room;
    size_t n_texts = p->n_texts, bad = invalid_at(j->text, j->len);
    int status = PC_OK;
    if (bad < j->len) {
        j->at = bad;
        status = err_set(PC_EFORMAT, "not UTF-8");
    }
    if (status == PC_OK) status = read_line(p, j, &l);
    if (status == PC_OK) return push_row(p, number, &l);
    if (status == PC_ENOMEM) return status;
    note_error(p, number, j->at);
    j->room = room;
    p->n_texts = n_texts;
    return PC_OK;
}

/* The rows' lists as pointers, once the texts move no more. */
static void resolve(struct Preds *p)
{
    static const struct Str NONE = {0}; /* so that an empty list is still a list */
    for (size_t i = 0; i < p->n; i++) {
        struct PredRow *row = &p->rows[i];
        row->answers = row->n_answers ? p->texts + row->answers_from : &NONE;
        row->classes = row->n_classes ? p->texts + row->classes_from : &NONE;
        if (!row->has_classes) row->classes = NULL;
    }
}

int preds_parse(const char *text, size_t len, struct Preds *out)
{
    *out = (struct Preds){.room = mem_alloc(len + 1, 1)};
    if (!out->room) return PC_ENOMEM;
    struct JsonText j = {.room = out->room};
    struct Span line;
    size_t at = 0;
    for (size_t number = 1; py_split_at(text, len, '\n', &at, &line); number++) {
        j = (struct JsonText){.text = line.data, .len = line.len, .room = j.room};
        if (json_peek(&j)) TRY(parse_line(out, &j, number));
    }
    resolve(out);
    return PC_OK;
}

int preds_read(const char *path, struct Preds *out)
{
    struct FileMap map;
    *out = (struct Preds){0};
    TRY(file_map(path, &map));
    int status = preds_parse((const char *)map.data, map.len, out);
    if (status < 0) err_prefix(status, "%s", path);
    file_unmap(&map);
    return status;
}

void preds_free(struct Preds *p)
{
    mem_free(p->rows);
    mem_free(p->room);
    mem_free(p->texts);
    *p = (struct Preds){0};
}

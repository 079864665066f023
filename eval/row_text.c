/* row_text.c - see row_text.h */
#include "row_text.h"

#include "sample.h"

#include <stdlib.h>
#include <string.h>

/* ==== Lone surrogates and NUL ==== */

/* The four hex digits at p, or -1. */
static int hex4(const char *p, const char *end)
{
    int value = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* True when the escape \uXXXX at p (behind the u) is half of no pair; *used tells the bytes of a whole pair. */
static bool lone(const char *p, const char *end, size_t *used)
{
    int high = hex4(p, end);
    *used = 4;
    if (high < 0xD800 || high > 0xDFFF) return false;
    if (high < 0xDC00 && end - p >= 10 && p[4] == '\\' && p[5] == 'u') {
        int low = hex4(p + 6, end);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            *used = 10;
            return false;
        }
    }
    return true;
}

int json_clean(const char *line, size_t len, struct Str *out)
{
    size_t bad = utf8_invalid_at(line, len);
    const char *nul = memchr(line, '\0', len), *end = line + len, *from = line;
    if (nul && (size_t)(nul - line) < bad)
        return err_set(PC_EFORMAT, "byte %zu is NUL", (size_t)(nul - line));
    if (bad < len)
        return err_set(PC_EFORMAT, "byte %zu (0x%02x) is not UTF-8", bad, (unsigned char)line[bad]);
    TRY(str_reserve(out, len));
    for (const char *p = line; (p = memchr(p, '\\', (size_t)(end - p)));) {
        size_t used = 0;
        if (p + 1 >= end || p[1] != 'u') {
            p += p + 1 < end ? 2 : 1;
            continue;
        }
        if (hex4(p + 2, end) == 0)
            return err_set(PC_EFORMAT, "byte %zu is an escaped NUL", (size_t)(p - line));
        if (lone(p + 2, end, &used)) {
            TRY(str_append(out, from, (size_t)(p - from)));
            TRY(str_append(out, "\\ufffd", 6));
            from = p + 6;
        }
        p = p + 2 + used > end ? end : p + 2 + used;
    }
    return str_append(out, from, (size_t)(end - from));
}

/* ==== Python's lists ==== */

static int push_utf8(struct Str *out, unsigned long code)
{
    char utf8[4];
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n; i-- > 1; code >>= 6) utf8[i] = (char)(0x80 | (code & 0x3F));
    utf8[0] = (char)(lead[n] | code);
    return str_append(out, utf8, n);
}

/* One escape behind its backslash; returns the bytes it takes, or 0 when it is none that we know. */
static size_t escape(const char *p, const char *end, struct Str *out, int *status)
{
    static const char plain[] = "nrtabfv\\'\"", meaning[] = "\n\r\t\a\b\f\v\\'\"";
    if (p >= end) return 0;
    const char *known = *p ? strchr(plain, *p) : NULL;
    if (known) {
        *status = str_append(out, &meaning[known - plain], 1);
        return 1;
    }
    size_t digits = *p == 'x' ? 2 : *p == 'u' ? 4 : *p == 'U' ? 8 : 0;
    char hex[9] = {0}, *stop;
    if (!digits || (size_t)(end - p) <= digits) return 0;
    memcpy(hex, p + 1, digits);
    unsigned long code = strtoul(hex, &stop, 16);
    if (stop != hex + digits || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return 0;
    *status = push_utf8(out, code);
    return 1 + digits;
}

/* One quoted string at p; returns the byte behind it, NULL when it is not one. */
static const char *quoted(const char *p, const char *end, struct Str *out, int *status)
{
    char quote = *p++;
    while (p < end && *p != quote && *status == PC_OK) {
        if (*p != '\\') {
            *status = str_append(out, p++, 1);
            continue;
        }
        size_t used = escape(p + 1, end, out, status);
        if (!used) return NULL;
        p += 1 + used;
    }
    return p < end ? p + 1 : NULL;
}

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && strchr(" \t\r\n", *p) && *p) p++;
    return p;
}

int python_list(const char *text, size_t len, struct Str **list, int *n)
{
    const char *p = skip_space(text, text + len), *end = text + len;
    struct Str item = {0};
    int status = PC_OK;
    if (p >= end || *p != '[') return err_set(PC_EFORMAT, "the classes are not a list");
    p = skip_space(p + 1, end);
    while (status == PC_OK && p && p < end && *p != ']') {
        str_clear(&item);
        p = *p == '\'' || *p == '"' ? quoted(p, end, &item, &status) : NULL;
        if (!p) break;
        if (status == PC_OK) status = texts_push(list, n, item.data ? item.data : "", item.len);
        p = skip_space(p, end);
        if (p < end && *p == ',') p = skip_space(p + 1, end);
    }
    str_free(&item);
    if (status == PC_OK && (!p || p >= end))
        return err_set(PC_EFORMAT, "the classes are not a Python list of strings");
    return status;
}

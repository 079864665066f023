/* row_text.c - see row_text.h */
#include "row_text.h"

#include <string.h>

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

/* jsontext.c - see jsontext.h */
#include "jsontext.h"

#include <string.h>

enum { DEPTH_MAX = 200 };

static int fail(const struct JsonText *j, const char *why)
{
    return err_set(PC_EFORMAT, "byte %zu: %s", j->at, why);
}

char json_peek(struct JsonText *j)
{
    while (j->at < j->len) {
        char c = j->text[j->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return c;
        j->at++;
    }
    return 0;
}

static bool take(struct JsonText *j, char c)
{
    if (json_peek(j) != c || j->at >= j->len) return false;
    j->at++;
    return true;
}

/* ==== Strings ==== */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The four digits of \uXXXX at `at`; -1 when they are not there. */
static int32_t hex4(const struct JsonText *j, size_t at)
{
    int32_t value = 0;
    if (at + 4 > j->len) return -1;
    for (size_t i = at; i < at + 4; i++) {
        int digit = hex_value(j->text[i]);
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

static char *put(char *to, uint32_t cp)
{
    if (cp < 0x80) {
        *to++ = (char)cp;
        return to;
    }
    if (cp < 0x800) {
        *to++ = (char)(0xC0 | cp >> 6);
    } else {
        if (cp < 0x10000) {
            *to++ = (char)(0xE0 | cp >> 12);
        } else {
            *to++ = (char)(0xF0 | cp >> 18);
            *to++ = (char)(0x80 | (cp >> 12 & 0x3F));
        }
        *to++ = (char)(0x80 | (cp >> 6 & 0x3F));
    }
    *to++ = (char)(0x80 | (cp & 0x3F));
    return to;
}

/* \uXXXX, at its digits; joins the two halves of a pair. */
static int unicode_escape(struct JsonText *j, char **to)
{
    int32_t cp = hex4(j, j->at);
    if (cp < 0) return fail(j, "\\u needs four hexadecimal digits");
    j->at += 4;
    if (cp >= 0xD800 && cp < 0xDC00 && j->at + 6 <= j->len && j->text[j->at] == '\\' &&
        j->text[j->at + 1] == 'u') {
        int32_t low = hex4(j, j->at + 2);
        if (low >= 0xDC00 && low < 0xE000) {
            cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
            j->at += 6;
        }
    }
    *to = put(*to, (uint32_t)cp);
    return PC_OK;
}

/* What follows a backslash. */
static int escape(struct JsonText *j, char **to)
{
    static const char FROM[] = "\"\\/bfnrt", INTO[] = "\"\\/\b\f\n\r\t";
    char c = j->at < j->len ? j->text[j->at] : 0;
    const char *known = c ? strchr(FROM, c) : NULL;
    if (known) {
        j->at++;
        *(*to)++ = INTO[known - FROM];
        return PC_OK;
    }
    if (c != 'u') return fail(j, "no such escape in a string");
    j->at++;
    return unicode_escape(j, to);
}

/* Whether one of eight bytes may be a quote, a backslash or a control character. */
static bool any_special(const char *at)
{
    const uint64_t ones = 0x0101010101010101, tops = 0x8080808080808080;
    uint64_t x, quote, slash;
    memcpy(&x, at, sizeof x);
    quote = x ^ ones * '"';
    slash = x ^ ones * '\\';
    return (((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((x - ones * 0x20) & ~x)) &
           tops;
}

/* Bytes from `at` that stand for themselves. */
static size_t plain_run(const struct JsonText *j)
{
    size_t at = j->at;
    while (at + 8 <= j->len && !any_special(j->text + at)) at += 8;
    while (at < j->len && j->text[at] != '"' && j->text[at] != '\\' &&
           (unsigned char)j->text[at] >= 0x20)
        at++;
    return at - j->at;
}

int json_string(struct JsonText *j, struct Str *out)
{
    if (!take(j, '"')) return fail(j, "a string was expected");
    char *to = j->room;
    for (;;) {
        size_t run = plain_run(j);
        memcpy(to, j->text + j->at, run);
        to += run;
        j->at += run;
        if (j->at >= j->len) return fail(j, "the string does not end");
        if (j->text[j->at] == '"') break;
        if (j->text[j->at] != '\\') return fail(j, "a control character in a string");
        j->at++;
        TRY(escape(j, &to));
    }
    j->at++;
    *to = '\0';
    *out = (struct Str){.data = j->room, .len = (size_t)(to - j->room)};
    j->room = to + 1;
    return PC_OK;
}

/* ==== Numbers and words ==== */

static size_t digits(const struct JsonText *j, size_t at)
{
    size_t n = 0;
    while (at + n < j->len && j->text[at + n] >= '0' && j->text[at + n] <= '9') n++;
    return n;
}

static bool word_at(const struct JsonText *j, size_t at, const char *word)
{
    size_t n = strlen(word);
    return at + n <= j->len && memcmp(j->text + at, word, n) == 0;
}

/* Length of the number at j->at, 0 when there is none. */
static size_t number_len(const struct JsonText *j)
{
    size_t at = j->at, n;
    if (word_at(j, at, "NaN")) return 3;
    if (at < j->len && j->text[at] == '-') at++;
    if (word_at(j, at, "Infinity")) return at + 8 - j->at;
    n = digits(j, at);
    if (!n) return 0;
    at += j->text[at] == '0' ? 1 : n;
    if (at < j->len && j->text[at] == '.' && digits(j, at + 1)) at += 1 + digits(j, at + 1);
    if (at < j->len && (j->text[at] == 'e' || j->text[at] == 'E')) {
        size_t sign = at + 1 < j->len && (j->text[at + 1] == '+' || j->text[at + 1] == '-');
        n = digits(j, at + 1 + sign);
        if (n) at += 1 + sign + n;
    }
    return at - j->at;
}

int json_number(struct JsonText *j, struct Str *out)
{
    json_peek(j);
    size_t n = number_len(j);
    if (!n) return fail(j, "a number was expected");
    memcpy(j->room, j->text + j->at, n);
    j->room[n] = '\0';
    *out = (struct Str){.data = j->room, .len = n};
    j->room += n + 1;
    j->at += n;
    return PC_OK;
}

/* ==== Structure ==== */

static int step(struct JsonText *j, bool *first, char open, char close)
{
    if (*first) {
        if (!take(j, open)) return fail(j, "an opening bracket was expected");
        if (++j->depth > DEPTH_MAX) return fail(j, "nested more than 200 deep");
        *first = false;
        if (!take(j, close)) return 1;
    } else if (!take(j, close)) {
        return take(j, ',') ? 1 : fail(j, "a comma or a closing bracket was expected");
    }
    j->depth--;
    return 0;
}

int json_member(struct JsonText *j, bool *first, struct Str *key)
{
    int more = step(j, first, '{', '}');
    if (more <= 0) return more;
    TRY(json_string(j, key));
    return take(j, ':') ? 1 : fail(j, "a colon was expected");
}

int json_element(struct JsonText *j, bool *first)
{
    return step(j, first, '[', ']');
}

static int skip_list(struct JsonText *j, bool object)
{
    bool first = true;
    for (;;) {
        struct Str key;
        int more = object ? json_member(j, &first, &key) : json_element(j, &first);
        if (more <= 0) return more;
        TRY(json_skip(j));
    }
}

int json_skip(struct JsonText *j)
{
    static const char *const WORDS[] = {"true", "false", "null"};
    struct Str ignored;
    char c = json_peek(j);
    if (c == '"') return json_string(j, &ignored);
    if (c == '{' || c == '[') return skip_list(j, c == '{');
    for (int i = 0; i < 3; i++) {
        if (!word_at(j, j->at, WORDS[i])) continue;
        j->at += strlen(WORDS[i]);
        return PC_OK;
    }
    if (!number_len(j)) return fail(j, j->at < j->len ? "no value" : "the line ends too early");
    return json_number(j, &ignored);
}

int json_end(struct JsonText *j)
{
    json_peek(j);
    return j->at == j->len ? PC_OK : fail(j, "more text after the object");
}

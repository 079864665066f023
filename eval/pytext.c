/* pytext.c - see pytext.h */
#include "pytext.h"

#include "pytext_tables.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

enum { STRAY_BYTE = 0x110000, SIGMA = 0x3A3, SIGMA_SMALL = 0x3C3, SIGMA_FINAL = 0x3C2 };

/* ==== Code points ==== */

static bool follows(const char *text, size_t len, size_t at)
{
    return at < len && ((unsigned char)text[at] & 0xC0) == 0x80;
}

/* A sequence of `more` bytes behind the first, or that byte alone when it is no such sequence. */
static uint32_t next_long(const char *text, size_t len, size_t *at, int more)
{
    static const uint32_t LEAST[] = {0, 0x80, 0x800, 0x10000};
    unsigned char first = (unsigned char)text[*at];
    uint32_t cp = first & (0x3Fu >> more);
    for (int i = 1; i <= more; i++) {
        if (!follows(text, len, *at + (size_t)i)) goto stray;
        cp = cp << 6 | ((unsigned char)text[*at + (size_t)i] & 0x3F);
    }
    if (cp < LEAST[more] || cp >= STRAY_BYTE) goto stray;
    *at += (size_t)more + 1;
    return cp;
stray:
    ++*at;
    return STRAY_BYTE + first;
}

uint32_t py_next(const char *text, size_t len, size_t *at)
{
    unsigned char first = (unsigned char)text[*at];
    if (first < 0x80) {
        ++*at;
        return first;
    }
    if (first >= 0xC2 && first < 0xE0) return next_long(text, len, at, 1);
    if (first >= 0xE0 && first < 0xF0) return next_long(text, len, at, 2);
    if (first >= 0xF0 && first < 0xF5) return next_long(text, len, at, 3);
    ++*at;
    return STRAY_BYTE + first;
}

size_t py_encode(uint32_t cp, char *to)
{
    if (cp >= STRAY_BYTE) {
        to[0] = (char)(cp - STRAY_BYTE);
        return 1;
    }
    if (cp < 0x80) {
        to[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        to[0] = (char)(0xC0 | cp >> 6);
        to[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        to[0] = (char)(0xE0 | cp >> 12);
        to[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        to[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    to[0] = (char)(0xF0 | cp >> 18);
    to[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    to[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    to[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

int py_put(struct Str *out, uint32_t cp)
{
    char bytes[4];
    return str_append(out, bytes, py_encode(cp, bytes));
}

size_t py_points(const char *text, size_t len, uint32_t *out)
{
    size_t n = 0;
    for (size_t at = 0; at < len;) out[n++] = py_next(text, len, &at);
    return n;
}

static const struct Range *range_find(const struct Range *table, size_t n, uint32_t cp)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (cp > table[mid].last)
            low = mid + 1;
        else
            high = mid;
    }
    return low < n && cp >= table[low].first ? &table[low] : NULL;
}

bool py_is_space(uint32_t cp)
{
    if (cp < 0x80) return (cp >= 0x09 && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x20);
    if (cp < 0x2000) return cp == 0x85 || cp == 0xA0 || cp == 0x1680;
    return cp <= 0x200A || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}

static bool ascii_alnum(uint32_t cp)
{
    return (cp >= '0' && cp <= '9') || (cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z');
}

bool py_is_word(uint32_t cp)
{
    if (cp < 0x80) return ascii_alnum(cp) || cp == '_';
    if (cp >= 0x4E00 && cp < 0xA000) return true; /* Chinese characters: no need to search */
    return range_find(WORD_RANGES, COUNT(WORD_RANGES), cp) != NULL;
}

int py_digit(uint32_t cp)
{
    if (cp < 0x80) return cp >= '0' && cp <= '9' ? (int)(cp - '0') : -1;
    const struct Range *r = range_find(DECIMAL_RANGES, COUNT(DECIMAL_RANGES), cp);
    return r ? (int)((cp - r->first) % 10) : -1;
}

bool py_is_punct(uint32_t cp)
{
    return cp > 0x20 && cp < 0x7F && !ascii_alnum(cp);
}

static bool is_cased(uint32_t cp)
{
    return range_find(CASED_RANGES, COUNT(CASED_RANGES), cp) != NULL;
}

static bool is_ignorable(uint32_t cp)
{
    return range_find(IGNORABLE_RANGES, COUNT(IGNORABLE_RANGES), cp) != NULL;
}

/* ==== Case ==== */

static uint32_t moved(const struct Move *table, size_t n, uint32_t cp)
{
    if (cp >= 0x2D30 && cp < 0xA640) return cp; /* scripts without case, Chinese among them */
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (cp > table[mid].last)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == n || cp < table[low].first || (cp - table[low].first) % table[low].step != 0)
        return cp;
    return (uint32_t)((int32_t)cp + table[low].delta);
}

/* Start of the code point that ends before `at`. */
static size_t step_back(const char *text, size_t at)
{
    for (size_t back = 1; back <= 4 && back <= at; back++) {
        size_t to = at - back;
        py_next(text, at, &to);
        if (to == at && ((unsigned char)text[at - back] & 0xC0) != 0x80) return at - back;
    }
    return at - 1;
}

/* A sigma ends its word when a cased letter stands before it and none behind, looking through what is
 * case-ignorable. [from, to) is the sigma's own place. */
static bool sigma_is_final(const char *text, size_t len, size_t from, size_t to)
{
    uint32_t cp = 0;
    bool before = false, after = false;
    while (from > 0) {
        from = step_back(text, from);
        size_t at = from;
        cp = py_next(text, len, &at);
        if (is_ignorable(cp)) continue;
        before = is_cased(cp);
        break;
    }
    while (before && to < len) {
        cp = py_next(text, len, &to);
        if (is_ignorable(cp)) continue;
        after = is_cased(cp);
        break;
    }
    return before && !after;
}

/* Bytes of ASCII from `at`. */
static size_t ascii_run(const char *text, size_t len, size_t at)
{
    size_t end = at;
    while (end < len && (unsigned char)text[end] < 0x80) end++;
    return end - at;
}

/* Appends a run of ASCII in one case: letters from `first` on (26 of them) have their case bit turned. */
static int append_ascii(const char *text, size_t len, char first, struct Str *out)
{
    TRY(str_append(out, text, len));
    char *to = out->data + out->len - len;
    for (size_t i = 0; i < len; i++)
        to[i] = (char)(to[i] ^ ((unsigned char)(to[i] - first) < 26) << 5);
    return PC_OK;
}

int py_lower_next(const char *text, size_t len, size_t *at, uint32_t lower[2])
{
    size_t from = *at;
    uint32_t cp = py_next(text, len, at);
    lower[0] = moved(LOWER_MOVES, COUNT(LOWER_MOVES), cp);
    if (cp == SIGMA) lower[0] = sigma_is_final(text, len, from, *at) ? SIGMA_FINAL : SIGMA_SMALL;
    if (cp != 0x130) return 1;
    lower[0] = 'i';
    lower[1] = 0x307;
    return 2;
}

static int lower_one(const char *text, size_t len, size_t *at, struct Str *out)
{
    uint32_t lower[2];
    int n = py_lower_next(text, len, at, lower);
    TRY(py_put(out, lower[0]));
    return n > 1 ? py_put(out, lower[1]) : PC_OK;
}

static int upper_one(const char *text, size_t len, size_t *at, struct Str *out)
{
    uint32_t cp = py_next(text, len, at);
    for (size_t i = 0; i < COUNT(UPPER_SPELLS); i++) {
        const struct Spell *s = &UPPER_SPELLS[i];
        if (s->from != cp) continue;
        for (int k = 0; k < 3 && s->to[k]; k++) TRY(py_put(out, s->to[k]));
        return PC_OK;
    }
    return py_put(out, moved(UPPER_MOVES, COUNT(UPPER_MOVES), cp));
}

static int fold(const char *text, size_t len, bool lower, struct Str *out)
{
    TRY(str_reserve(out, len));
    for (size_t at = 0; at < len;) {
        size_t run = ascii_run(text, len, at);
        if (run) TRY(append_ascii(text + at, run, lower ? 'A' : 'a', out));
        at += run;
        if (at < len) TRY((lower ? lower_one : upper_one)(text, len, &at, out));
    }
    return PC_OK;
}

int py_lower(const char *text, size_t len, struct Str *out)
{
    return fold(text, len, true, out);
}

int py_upper(const char *text, size_t len, struct Str *out)
{
    return fold(text, len, false, out);
}

/* ==== Splitting ==== */

/* The text without what `drop` takes at its ends. */
static struct Span strip(const char *text, size_t len, bool (*drop)(uint32_t cp))
{
    size_t from = 0;
    while (from < len) {
        size_t at = from;
        if (!drop(py_next(text, len, &at))) break;
        from = at;
    }
    while (len > from) {
        size_t at = step_back(text, len), end = at;
        if (at < from || !drop(py_next(text, len, &end))) break;
        len = at;
    }
    return (struct Span){text + from, len - from};
}

struct Span py_strip(const char *text, size_t len)
{
    return strip(text, len, py_is_space);
}

/* Bytes that are white space, and (2) those that may begin some of several bytes. */
static const uint8_t SPACES[256] = {
    ['\t' ... '\r'] = 1, [0x1C ... ' '] = 1, [0xC2] = 2, [0xE1] = 2, [0xE2] = 2, [0xE3] = 2,
};

/* Bytes of the white space at `at`, 0 when there is none. */
static size_t space_at(const char *text, size_t len, size_t at)
{
    uint8_t kind = SPACES[(unsigned char)text[at]];
    if (kind < 2) return kind;
    size_t end = at;
    return py_is_space(py_next(text, len, &end)) ? end - at : 0;
}

bool py_split_next(const char *text, size_t len, size_t *at, struct Span *word)
{
    size_t from = *at, skip;
    while (from < len && (skip = space_at(text, len, from)) > 0) from += skip;
    size_t to = from; /* byte by byte, for white space never begins within a character */
    while (to < len && !space_at(text, len, to)) to++;
    *at = to;
    *word = (struct Span){text + from, to - from};
    return from < len;
}

bool py_split_at(const char *text, size_t len, char sep, size_t *at, struct Span *piece)
{
    if (*at > len) return false;
    const char *from = text + *at;
    const char *end = *at < len ? memchr(from, sep, len - *at) : NULL;
    size_t n = end ? (size_t)(end - from) : len - *at;
    *piece = (struct Span){from, n};
    *at += n + 1;
    return true;
}

bool py_digits_next(const char *text, size_t len, size_t *at, struct Span *digits)
{
    size_t from = *at, end = *at;
    for (; from < len; from = end) {
        end = from;
        if (py_digit(py_next(text, len, &end)) >= 0) break;
    }
    *at = from;
    if (from >= len) return false;
    while (*at < len) {
        end = *at;
        if (py_digit(py_next(text, len, &end)) < 0) break;
        *at = end;
    }
    *digits = (struct Span){text + from, *at - from};
    return true;
}

void py_blank(char *text, size_t len, const char *set)
{
    for (size_t i = 0; i < len; i++)
        if (text[i] && strchr(set, text[i])) text[i] = ' ';
}

/* ==== Numbers ==== */

enum { INT_DIGITS_MAX = 4300 };

/* What int() drops at the ends: of ASCII only what C calls white space. */
static bool int_space(uint32_t cp)
{
    return cp < 0x80 ? cp == ' ' || (cp >= 0x09 && cp <= 0x0D) : py_is_space(cp);
}

/* Appends the digits of "1_000"; false when the text is not of that form. */
static bool int_digits(struct Span s, char *digits, size_t *n)
{
    bool digit_before = false;
    *n = 0;
    for (size_t at = 0; at < s.len;) {
        uint32_t cp = py_next(s.data, s.len, &at);
        int digit = py_digit(cp);
        if (digit < 0 && (cp != '_' || !digit_before)) return false;
        digit_before = digit >= 0;
        if (digit < 0) continue;
        if (*n == INT_DIGITS_MAX) return false;
        digits[(*n)++] = (char)('0' + digit);
    }
    return digit_before;
}

int py_int(const char *text, size_t len, struct Str *out)
{
    char digits[INT_DIGITS_MAX];
    size_t n, skip = 0;
    struct Span s = strip(text, len, int_space);
    bool minus = s.len && s.data[0] == '-';
    if (s.len && (minus || s.data[0] == '+')) s = (struct Span){s.data + 1, s.len - 1};
    if (!int_digits(s, digits, &n)) return 0;
    while (skip + 1 < n && digits[skip] == '0') skip++;
    if (minus && digits[skip] != '0') TRY(str_append(out, "-", 1));
    TRY(str_append(out, digits + skip, n - skip));
    return 1;
}

double py_round2(double x)
{
    char text[400];
    if (!isfinite(x)) return x;
    snprintf(text, sizeof text, "%.2f", x);
    return strtod(text, NULL);
}

double np_round2(double x)
{
    double scaled = rint(x * 100);
    return scaled / 100;
}

enum { PAIRWISE_BLOCK = 128 };

/* numpy's order of additions: eight running sums in blocks of 128, halves above. */
static double pairwise_sum(const double *x, size_t n)
{
    if (n > PAIRWISE_BLOCK) {
        size_t half = n / 2;
        half -= half % 8;
        return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
    }
    double sum = 0;
    size_t i = 0;
    if (n >= 8) {
        double r[8];
        memcpy(r, x, sizeof r);
        for (i = 8; i + 8 <= n; i += 8)
            for (int k = 0; k < 8; k++) r[k] += x[i + (size_t)k];
        sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    }
    for (; i < n; i++) sum += x[i];
    return sum;
}

double np_mean(const double *x, size_t n)
{
    return n ? pairwise_sum(x, n) / (double)n : (double)NAN;
}

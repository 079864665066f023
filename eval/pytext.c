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

int py_put(struct Str *out, uint32_t cp)
{
    char b[4];
    if (cp >= STRAY_BYTE) {
        b[0] = (char)(cp - STRAY_BYTE);
        return str_append(out, b, 1);
    }
    if (cp < 0x80) {
        b[0] = (char)cp;
        return str_append(out, b, 1);
    }
    if (cp < 0x800) {
        b[0] = (char)(0xC0 | cp >> 6);
        b[1] = (char)(0x80 | (cp & 0x3F));
        return str_append(out, b, 2);
    }
    if (cp < 0x10000) {
        b[0] = (char)(0xE0 | cp >> 12);
        b[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        b[2] = (char)(0x80 | (cp & 0x3F));
        return str_append(out, b, 3);
    }
    b[0] = (char)(0xF0 | cp >> 18);
    b[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    b[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    b[3] = (char)(0x80 | (cp & 0x3F));
    return str_append(out, b, 4);
}

size_t py_len(const char *text, size_t len)
{
    size_t n = 0;
    for (size_t at = 0; at < len; n++) py_next(text, len, &at);
    return n;
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

static int lower_one(const char *text, size_t len, size_t *at, struct Str *out)
{
    size_t from = *at;
    uint32_t cp = py_next(text, len, at);
    if (cp == 0x130) return str_append(out, "i\xCC\x87", 3);
    if (cp == SIGMA)
        return py_put(out, sigma_is_final(text, len, from, *at) ? SIGMA_FINAL : SIGMA_SMALL);
    return py_put(out, moved(LOWER_MOVES, COUNT(LOWER_MOVES), cp));
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

/* The first place from `at` where white space begins (or, with `space` false, ends). */
static size_t scan(const char *text, size_t len, size_t at, bool space)
{
    while (at < len) {
        unsigned char c = (unsigned char)text[at];
        size_t end = at + 1;
        bool is = c < 0x80 ? py_is_space(c) : (end = at, py_is_space(py_next(text, len, &end)));
        if (is == space) break;
        at = end;
    }
    return at;
}

bool py_split_next(const char *text, size_t len, size_t *at, struct Span *word)
{
    size_t from = scan(text, len, *at, false);
    *at = scan(text, len, from, true);
    *word = (struct Span){text + from, *at - from};
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

static int push_span(struct Span **list, size_t *n, size_t *cap, struct Span s)
{
    if (*n == *cap) {
        size_t more = *cap ? 2 * *cap : 64;
        struct Span *grown = mem_grow(*list, *cap, more, sizeof **list);
        if (!grown) return PC_ENOMEM;
        *list = grown;
        *cap = more;
    }
    (*list)[(*n)++] = s;
    return PC_OK;
}

int py_words(const char *text, size_t len, struct Span **out, size_t *n)
{
    struct Span *list = NULL, word;
    size_t cap = 0, at = 0;
    *n = 0;
    while (py_split_next(text, len, &at, &word)) {
        if (push_span(&list, n, &cap, word) == PC_OK) continue;
        mem_free(list);
        return PC_ENOMEM;
    }
    *out = list;
    return PC_OK;
}

int py_chars(const char *text, size_t len, struct Span **out, size_t *n)
{
    struct Span *list = mem_alloc(len, sizeof *list);
    if (!list) return PC_ENOMEM;
    *n = 0;
    for (size_t at = 0; at < len;) {
        size_t from = at;
        py_next(text, len, &at);
        list[(*n)++] = (struct Span){text + from, at - from};
    }
    *out = list;
    return PC_OK;
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

/* ==== Answers ==== */

/* Removes ASCII punctuation in place; returns the new length. */
static size_t drop_punct(char *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        if (!py_is_punct((unsigned char)text[i])) text[n++] = text[i];
    return n;
}

static bool is_article(const char *word, size_t len)
{
    return (len == 1 && word[0] == 'a') || (len == 2 && memcmp(word, "an", 2) == 0) ||
           (len == 3 && memcmp(word, "the", 3) == 0);
}

/* Appends words joined by one space. An article is a whole run of word characters, so it may also end or
 * begin in the middle of what white space bounds: it is a space itself. */
static int join_words(const char *text, size_t len, struct Str *out)
{
    bool space = false;
    size_t begin = out->len;
    for (size_t at = 0; at < len;) {
        size_t from = at, end = at;
        uint32_t cp = py_next(text, len, &at);
        bool word = py_is_word(cp);
        while (word && at < len) {
            end = at;
            if (!py_is_word(py_next(text, len, &end))) break;
            at = end;
        }
        if (word ? is_article(text + from, at - from) : py_is_space(cp)) {
            space = true;
            continue;
        }
        if (space && out->len > begin) TRY(str_append(out, " ", 1));
        space = false;
        TRY(str_append(out, text + from, at - from));
    }
    return PC_OK;
}

int answer_normalize(const char *text, size_t len, struct Str *out)
{
    struct Str low = {0};
    int status = py_lower(text, len, &low);
    if (status == PC_OK && low.len)
        status = join_words(low.data, drop_punct(low.data, low.len), out);
    str_free(&low);
    return status;
}

/* The scorers' Chinese punctuation: a fixed list with gaps (《 and 〈〉 are kept). */
static bool is_zh_punct(uint32_t cp)
{
    static const struct Range MARKS[] = {
        {0x2013, 0x2014}, {0x2018, 0x2019}, {0x201B, 0x201F}, {0x2026, 0x2027}, {0x3001, 0x3003},
        {0x300B, 0x3011}, {0x3014, 0x301F}, {0x3030, 0x3030}, {0x303E, 0x303F}, {0xFE4F, 0xFE4F},
        {0xFF01, 0xFF0D}, {0xFF0F, 0xFF0F}, {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF64},
    };
    return range_find(MARKS, COUNT(MARKS), cp) != NULL;
}

int answer_normalize_zh(const char *text, size_t len, struct Str *out)
{
    struct Str low = {0};
    int status = py_lower(text, len, &low);
    for (size_t at = 0; status == PC_OK && at < low.len;) {
        size_t from = at;
        uint32_t cp = py_next(low.data, low.len, &at);
        if (!py_is_punct(cp) && !is_zh_punct(cp) && !py_is_space(cp))
            status = str_append(out, low.data + from, at - from);
    }
    str_free(&low);
    return status;
}

static int by_bytes(const void *left, const void *right)
{
    const struct Span *a = left, *b = right;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return memcmp(a->data, b->data, a->len);
}

double token_f1(struct Span *pred, size_t n_pred, struct Span *truth, size_t n_truth)
{
    size_t same = 0;
    if (!n_pred || !n_truth) return 0;
    qsort(pred, n_pred, sizeof *pred, by_bytes);
    qsort(truth, n_truth, sizeof *truth, by_bytes);
    for (size_t i = 0, j = 0; i < n_pred && j < n_truth;) {
        int order = by_bytes(&pred[i], &truth[j]);
        same += order == 0;
        i += order <= 0;
        j += order >= 0;
    }
    if (!same) return 0;
    double precision = (double)same / (double)n_pred;
    double recall = (double)same / (double)n_truth;
    return (2 * precision * recall) / (precision + recall);
}

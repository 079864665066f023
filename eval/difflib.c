/* difflib.c - see difflib.h */
#include "difflib.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Both texts as code points, and where in b stands what stands at each place of a. */
struct Places {
    uint32_t *a, *b;       /* [n_a], [n_b] */
    uint32_t *at;          /* [n_b] places in b, those of one code point together and in order */
    uint32_t *begin, *end; /* [n_a] of a[i]'s places in `at` */
    uint32_t *row, *next;  /* [n_b + 1] lengths of matches that end at a place of b, one place on */
    struct Part *parts;    /* [n_a + 1] stack of what is still to be matched */
    size_t n_a, n_b;
};

/* a[a0..a1) against b[b0..b1). */
struct Part {
    size_t a0, a1, b0, b1;
};

static void places_free(struct Places *p)
{
    mem_free(p->a);
    mem_free(p->b);
    mem_free(p->at);
    mem_free(p->begin);
    mem_free(p->end);
    mem_free(p->row);
    mem_free(p->next);
    mem_free(p->parts);
}

static int places_alloc(struct Places *p, struct Span a, struct Span b)
{
    p->a = mem_alloc(a.len, sizeof *p->a);
    p->b = mem_alloc(b.len, sizeof *p->b);
    if (!p->a || !p->b) return PC_ENOMEM;
    p->n_a = py_points(a.data, a.len, p->a);
    p->n_b = py_points(b.data, b.len, p->b);
    p->at = mem_alloc(p->n_b, sizeof *p->at);
    p->begin = mem_alloc(p->n_a, sizeof *p->begin);
    p->end = mem_alloc(p->n_a, sizeof *p->end);
    p->row = mem_alloc(p->n_b + 1, sizeof *p->row);
    p->next = mem_alloc(p->n_b + 1, sizeof *p->next);
    p->parts = mem_alloc(p->n_a + 1, sizeof *p->parts);
    return p->at && p->begin && p->end && p->row && p->next && p->parts ? PC_OK : PC_ENOMEM;
}

static int by_value(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

/* First of the sorted keys that is not below `key`. */
static size_t lower_bound(const uint64_t *keys, size_t n, uint64_t key)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (keys[mid] < key)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

enum { ASCII = 128 };

static bool all_ascii(const uint32_t *text, size_t n)
{
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) any |= text[i];
    return any < ASCII;
}

/* The places by counting, where there are few code points to count. */
static void fill_ascii(struct Places *p)
{
    uint32_t next[ASCII + 1] = {0};
    for (size_t j = 0; j < p->n_b; j++) next[p->b[j] + 1]++;
    for (int c = 0; c < ASCII; c++) next[c + 1] += next[c];
    for (size_t i = 0; i < p->n_a; i++) {
        p->begin[i] = next[p->a[i]];
        p->end[i] = next[p->a[i] + 1];
    }
    for (size_t j = 0; j < p->n_b; j++) p->at[next[p->b[j]]++] = (uint32_t)j;
}

static int fill_any(struct Places *p)
{
    uint64_t *keys = mem_alloc(p->n_b, sizeof *keys); /* code point, place */
    if (!keys) return PC_ENOMEM;
    for (size_t j = 0; j < p->n_b; j++) keys[j] = (uint64_t)p->b[j] << 32 | j;
    qsort(keys, p->n_b, sizeof *keys, by_value);
    for (size_t k = 0; k < p->n_b; k++) p->at[k] = (uint32_t)keys[k];
    for (size_t i = 0; i < p->n_a; i++) {
        p->begin[i] = (uint32_t)lower_bound(keys, p->n_b, (uint64_t)p->a[i] << 32);
        p->end[i] = (uint32_t)lower_bound(keys, p->n_b, (uint64_t)(p->a[i] + 1) << 32);
    }
    mem_free(keys);
    return PC_OK;
}

static int places_open(struct Places *p, struct Span a, struct Span b)
{
    *p = (struct Places){0};
    TRY(places_alloc(p, a, b));
    if (!all_ascii(p->a, p->n_a) || !all_ascii(p->b, p->n_b)) return fill_any(p);
    fill_ascii(p);
    return PC_OK;
}

/* ==== difflib ==== */

/* autojunk: in a b of 200 and more, what fills over 1% of it begins no match (it may lengthen one). */
static void drop_popular(struct Places *p)
{
    enum { AUTOJUNK_FROM = 200 };
    if (p->n_b < AUTOJUNK_FROM) return;
    for (size_t i = 0; i < p->n_a; i++)
        if (p->end[i] - p->begin[i] > p->n_b / 100 + 1) p->end[i] = p->begin[i];
}

struct Match {
    size_t a, b, n;
};

/* One row of the table of matches: those that end at a[i]. */
static void match_row(struct Places *p, const struct Part *part, size_t i, struct Match *best)
{
    for (uint32_t k = p->begin[i]; k < p->end[i]; k++) {
        size_t j = p->at[k];
        if (j < part->b0) continue;
        if (j >= part->b1) break;
        uint32_t n = p->row[j] + 1;
        p->next[j + 1] = n;
        if (n > best->n) *best = (struct Match){i + 1 - n, j + 1 - n, n};
    }
}

static void clear_row(struct Places *p, size_t i)
{
    for (uint32_t k = p->begin[i]; k < p->end[i]; k++) p->row[p->at[k] + 1] = 0;
}

/* The longest match of a part; of several the first in a, then in b. */
static struct Match longest_match(struct Places *p, const struct Part *part)
{
    struct Match m = {part->a0, part->b0, 0};
    for (size_t i = part->a0; i < part->a1; i++) {
        match_row(p, part, i, &m);
        if (i > part->a0) clear_row(p, i - 1);
        uint32_t *other = p->row;
        p->row = p->next;
        p->next = other;
    }
    if (part->a1 > part->a0) clear_row(p, part->a1 - 1);
    while (m.a > part->a0 && m.b > part->b0 && p->a[m.a - 1] == p->b[m.b - 1])
        m = (struct Match){m.a - 1, m.b - 1, m.n + 1};
    while (m.a + m.n < part->a1 && m.b + m.n < part->b1 && p->a[m.a + m.n] == p->b[m.b + m.n])
        m.n++;
    return m;
}

/* Puts what is left and right of a match on the stack, whose new depth it returns. Parts there overlap neither in
 * a nor in b and none is empty, so the stack outgrows neither. */
static size_t push_rest(struct Part *parts, size_t depth, struct Part part, struct Match m)
{
    if (!m.n) return depth;
    if (part.a0 < m.a && part.b0 < m.b) parts[depth++] = (struct Part){part.a0, m.a, part.b0, m.b};
    if (m.a + m.n < part.a1 && m.b + m.n < part.b1)
        parts[depth++] = (struct Part){m.a + m.n, part.a1, m.b + m.n, part.b1};
    return depth;
}

static size_t count_matches(struct Places *p)
{
    size_t total = 0, depth = 0;
    p->parts[depth++] = (struct Part){0, p->n_a, 0, p->n_b};
    while (depth) {
        struct Part part = p->parts[--depth];
        struct Match m = longest_match(p, &part);
        total += m.n;
        depth = push_rest(p->parts, depth, part, m);
    }
    return total;
}

/* ==== difflib, two short lines ==== */

/* Lines of code mostly are ASCII and short: then the places in b of a byte are the bits of a word, and nothing
 * is allocated. Such a b is too short for autojunk. */
enum { SHORT_A = 256, SHORT_B = 64 };

struct Short {
    uint64_t places[SHORT_A]; /* in b of a[i] */
    uint8_t run[SHORT_B];     /* length of the match that ends at a place of b, in the row before */
    struct Part parts[SHORT_B + 1];
};

static bool is_short(struct Span a, struct Span b)
{
    unsigned char any = 0;
    if (a.len > SHORT_A || b.len > SHORT_B) return false;
    for (size_t i = 0; i < a.len; i++) any |= (unsigned char)a.data[i];
    for (size_t j = 0; j < b.len; j++) any |= (unsigned char)b.data[j];
    return any < ASCII;
}

static void short_places(struct Short *s, struct Span a, struct Span b)
{
    uint64_t of_byte[ASCII] = {0};
    for (size_t j = 0; j < b.len; j++) of_byte[(unsigned char)b.data[j]] |= (uint64_t)1 << j;
    for (size_t i = 0; i < a.len; i++) s->places[i] = of_byte[(unsigned char)a.data[i]];
}

/* As longest_match. A row is gone through from its end, so that `run` still has the row before to the left;
 * of equal matches in one row the one furthest left counts. */
static struct Match short_match(struct Short *s, const struct Part *part)
{
    struct Match m = {part->a0, part->b0, 0};
    uint64_t range = (~(uint64_t)0 >> (SHORT_B - (part->b1 - part->b0))) << part->b0, before = 0;
    for (size_t i = part->a0; i < part->a1; i++) {
        uint64_t here = s->places[i] & range, follows = before << 1;
        before = here;
        while (here) {
            size_t j = SHORT_B - 1 - (size_t)__builtin_clzll(here);
            uint64_t bit = (uint64_t)1 << j;
            uint8_t n = (uint8_t)(follows & bit ? s->run[j - 1] + 1 : 1);
            s->run[j] = n;
            if (n > m.n || (n == m.n && m.a + n == i + 1))
                m = (struct Match){i + 1 - n, j + 1 - n, n};
            here ^= bit;
        }
    }
    return m;
}

static size_t count_short(struct Span a, struct Span b)
{
    struct Short s;
    size_t total = 0, depth = 0;
    short_places(&s, a, b);
    s.parts[depth++] = (struct Part){0, a.len, 0, b.len};
    while (depth) {
        struct Part part = s.parts[--depth];
        struct Match m = short_match(&s, &part);
        total += m.n;
        depth = push_rest(s.parts, depth, part, m);
    }
    return total;
}

static double ratio_of(size_t matches, size_t total)
{
    return total ? 2.0 * (double)matches / (double)total : 1.0;
}

int difflib_ratio(struct Span a, struct Span b, double *ratio)
{
    struct Places p;
    if (a.len && b.len && is_short(a, b)) {
        *ratio = ratio_of(count_short(a, b), a.len + b.len);
        return PC_OK;
    }
    int status = places_open(&p, a, b);
    if (status == PC_OK) {
        drop_popular(&p);
        *ratio = ratio_of(count_matches(&p), p.n_a + p.n_b);
    }
    places_free(&p);
    return status;
}

/* ==== python-Levenshtein ==== */

/* Length of the longest common subsequence: the rows of its table as bits, 64 columns at a time. */
static int common_length(const struct Places *p, size_t *length)
{
    uint64_t *masks = mem_alloc(p->n_b, sizeof *masks); /* by a code point's first place in `at` */
    uint32_t *group = mem_alloc(p->n_b, sizeof *group); /* of b[j] */
    uint8_t *carry = mem_alloc(p->n_a, sizeof *carry);  /* [n_a] from the columns before */
    bool have = masks && group && carry;
    for (size_t k = 0, first = 0; have && k < p->n_b; k++) {
        if (p->b[p->at[k]] != p->b[p->at[first]]) first = k;
        group[p->at[k]] = (uint32_t)first;
    }
    *length = 0;
    for (size_t from = 0; have && from < p->n_b; from += 64) {
        size_t to = from + 64 < p->n_b ? from + 64 : p->n_b;
        uint64_t v = ~(uint64_t)0, used = to - from < 64 ? ((uint64_t)1 << (to - from)) - 1 : v;
        for (size_t j = from; j < to; j++) masks[group[j]] |= (uint64_t)1 << (j - from);
        for (size_t i = 0; i < p->n_a; i++) {
            uint64_t mask = p->begin[i] < p->end[i] ? masks[p->begin[i]] : 0, sum;
            bool over = __builtin_add_overflow(v, v & mask, &sum);
            over |= __builtin_add_overflow(sum, (uint64_t)carry[i], &sum);
            carry[i] = over;
            v = sum | (v & ~mask);
        }
        for (size_t j = from; j < to; j++) masks[group[j]] = 0;
        *length += (size_t)__builtin_popcountll(~v & used);
    }
    mem_free(masks);
    mem_free(group);
    mem_free(carry);
    return have ? PC_OK : PC_ENOMEM;
}

/* As Levenshtein 0.13 and later round it, 1 - distance/total. Earlier ones divide total - distance, which
 * moves a tie of fuzz.ratio once in some thousand pairs. */
int indel_ratio(struct Span a, struct Span b, double *ratio)
{
    struct Places p;
    size_t common;
    int status = places_open(&p, a, b);
    if (status == PC_OK) status = common_length(&p, &common);
    if (status == PC_OK) {
        size_t total = p.n_a + p.n_b, distance = total - 2 * common;
        *ratio = total ? 1.0 - (double)distance / (double)total : 1.0;
    }
    places_free(&p);
    return status;
}

int fuzz_ratio(struct Span a, struct Span b, bool indel, int *percent)
{
    double ratio;
    *percent = 0;
    if (a.len == b.len && (!a.len || memcmp(a.data, b.data, a.len) == 0)) {
        *percent = 100;
        return PC_OK;
    }
    if (!a.len || !b.len) return PC_OK;
    TRY((indel ? indel_ratio : difflib_ratio)(a, b, &ratio));
    *percent = (int)rint(100 * ratio); /* ties to even, as Python's round() */
    return PC_OK;
}

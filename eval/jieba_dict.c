/* jieba_dict.c - the segmenter's dictionary: dict.txt into a trie with a hash table of edges.
 *
 * A word with a character that no block of text can hold (a Greek letter) is counted in the total but
 * kept out: it can never be found.
 */
#include "jieba_parts.h"

#include <math.h>
#include <string.h>

enum { FIRST_CHARS = 1 << 16 };
static const uint32_t MAX_NODES = (1u << 24) - 1;
static const double MAX_TOTAL = 9007199254740992.0; /* 2^53: sums below it are exact */

struct Line {
    const char *word;
    size_t word_len;
    double frequency;
};

static int line_error(const char *what)
{
    return err_set(PC_EFORMAT,
                   "%s; a line is a word, a space, a frequency and what follows; `make jieba` "
                   "fetches the right file",
                   what);
}

/* ==== Building ==== */

static void slot_put(struct DictSlot *slots, size_t mask, uint64_t edge)
{
    size_t at = dict_home(edge >> 24, mask);
    while (slots[at].edge) at = (at + 1) & mask;
    slots[at].edge = edge;
}

static int slots_grow(struct JiebaDict *d)
{
    size_t cap = d->slots ? (d->mask + 1) * 2 : 1 << 12;
    struct DictSlot *slots = mem_alloc(cap, sizeof *slots);
    if (!slots) return PC_ENOMEM;
    for (size_t i = 0; d->slots && i <= d->mask; i++)
        if (d->slots[i].edge) slot_put(slots, cap - 1, d->slots[i].edge);
    mem_free(d->slots);
    d->slots = slots;
    d->mask = cap - 1;
    return PC_OK;
}

/* A fresh node that is no word yet. */
static int node_add(struct JiebaDict *d, uint32_t *node)
{
    if (d->n_nodes > MAX_NODES)
        return err_set(PC_EFORMAT, "more than %u beginnings of words", MAX_NODES);
    if (d->n_nodes == d->room) {
        double *weight = mem_grow(d->weight, d->room, 2 * d->room, sizeof *weight);
        if (!weight) return PC_ENOMEM;
        d->weight = weight;
        d->room *= 2;
    }
    *node = (uint32_t)d->n_nodes++;
    return PC_OK;
}

static int node_child(struct JiebaDict *d, uint32_t parent, uint16_t c, uint32_t *node)
{
    const struct DictSlot *known = dict_find(d, dict_edge(parent, c));
    if (known) {
        *node = dict_node(known);
        return PC_OK;
    }
    TRY(node_add(d, node));
    if (d->n_nodes * 2 > d->mask) TRY(slots_grow(d));
    slot_put(d->slots, d->mask, dict_edge(parent, c) << 24 | *node);
    return PC_OK;
}

/* Characters of valid UTF-8 into c[DICT_MAX_WORD]; their number, more than DICT_MAX_WORD when they
 * are too many, 0 when one of them can be in no block. */
static size_t word_chars(const struct Line *line, uint16_t *c)
{
    const unsigned char *s = (const unsigned char *)line->word;
    size_t n = 0, at = 0;
    bool lost = false;
    while (at < line->word_len && n <= DICT_MAX_WORD) {
        size_t len = s[at] < 0x80 ? 1 : s[at] < 0xe0 ? 2 : s[at] < 0xf0 ? 3 : 4;
        uint32_t one = s[at];
        if (len == 3) one = (s[at] & 15u) << 12 | (s[at + 1] & 63u) << 6 | (s[at + 2] & 63u);
        lost |= len == 2 || len == 4 || !in_block(one);
        if (n < DICT_MAX_WORD) c[n] = (uint16_t)one;
        n++;
        at += len;
    }
    return lost && n <= DICT_MAX_WORD ? 0 : n;
}

static int word_add(struct JiebaDict *d, const struct Line *line)
{
    uint16_t c[DICT_MAX_WORD];
    size_t n = word_chars(line, c);
    if (n > DICT_MAX_WORD) return line_error("the word has more than 255 characters");
    if (n == 0) return PC_OK;
    uint32_t node = dict_node(&d->first[c[0]]);
    if (!node) {
        TRY(node_add(d, &node));
        d->first[c[0]].edge = node;
    }
    for (size_t i = 1; i < n; i++) TRY(node_child(d, node, c[i], &node));
    d->weight[node] = line->frequency; /* of a word listed twice the last one counts */
    return PC_OK;
}

/* ==== Reading ==== */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Takes a line apart: text without the white space around it. */
static int line_parse(struct Line *line, const char *text, size_t len)
{
    while (len && is_space(*text)) text++, len--;
    while (len && is_space(text[len - 1])) len--;
    const char *space = memchr(text, ' ', len);
    if (!space) return line_error(len ? "there is no frequency" : "the line is empty");
    line->word = text;
    line->word_len = (size_t)(space - text);
    const char *digit = space + 1, *end = text + len;
    line->frequency = 0;
    for (; digit < end && *digit >= '0' && *digit <= '9'; digit++) {
        line->frequency = line->frequency * 10 + (*digit - '0');
        if (line->frequency >= MAX_TOTAL) return line_error("the frequency is too large");
    }
    if (digit == space + 1 || (digit < end && *digit != ' '))
        return line_error("the frequency is not a whole number");
    return PC_OK;
}

static int take_line(struct JiebaDict *d, const char *text, size_t len, double *total)
{
    struct Line line;
    TRY(line_parse(&line, text, len));
    *total += line.frequency;
    if (*total >= MAX_TOTAL) return line_error("the frequencies add up to 2^53 or more");
    return word_add(d, &line);
}

static int read_lines(const char *name, const char *data, size_t len, struct JiebaDict *d,
                      double *total)
{
    size_t bad = utf8_invalid_at(data, len);
    long number = 1;
    for (size_t at = 0; at < len; number++) {
        const char *feed = memchr(data + at, '\n', len - at);
        size_t end = feed ? (size_t)(feed - data) : len;
        int status = bad < end ? line_error("not UTF-8") : take_line(d, data + at, end - at, total);
        if (status < 0) return err_prefix(status, "%s line %ld", name, number);
        at = end + 1;
    }
    return PC_OK;
}

static int maybe_fill(struct JiebaDict *d)
{
    d->maybe = mem_alloc((d->mask + 1) / MAYBE_SHARE, sizeof *d->maybe);
    if (!d->maybe) return PC_ENOMEM;
    for (size_t i = 0; i <= d->mask; i++) {
        uint64_t hash = dict_hash(d->slots[i].edge >> 24);
        if (d->slots[i].edge)
            d->maybe[(hash >> 32 & d->mask) / MAYBE_SHARE] |= (uint64_t)1 << (hash >> 26 & 63);
    }
    return PC_OK;
}

/* Frequencies of the nodes to weights of the n slots. */
static void weigh(const struct JiebaDict *d, double log_total, struct DictSlot *slots, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double frequency = d->weight[dict_node(&slots[i])]; /* of no node: 0 */
        slots[i].weight = frequency > 0 ? log(frequency) - log_total : DICT_NO_WORD;
    }
}

/* What makes the words that were read a dictionary. */
static int finish(struct JiebaDict *d, double total)
{
    TRY(maybe_fill(d));
    weigh(d, log(total), d->first, FIRST_CHARS);
    weigh(d, log(total), d->slots, d->mask + 1);
    d->unknown = 0.0 - log(total);
    mem_free(d->weight);
    d->weight = NULL;
    return PC_OK;
}

int jieba_dict_parse(const char *name, const char *data, size_t len, struct JiebaDict *out)
{
    int status;
    double total = 0;
    *out = (struct JiebaDict){.n_nodes = 1, .room = 1024};
    out->first = mem_alloc(FIRST_CHARS, sizeof *out->first);
    out->weight = mem_alloc(out->room, sizeof *out->weight);
    status = out->first && out->weight ? slots_grow(out) : PC_ENOMEM;
    if (status == PC_OK) status = read_lines(name, data, len, out, &total);
    if (status == PC_OK && total == 0)
        status =
            err_set(PC_EFORMAT, "%s: no word has a frequency; `make jieba` fetches the file", name);
    if (status == PC_OK) status = finish(out, total);
    if (status < 0) jieba_dict_free(out);
    return status;
}

int jieba_dict_read(const char *path, struct JiebaDict *out)
{
    struct FileMap map;
    TRY(file_map(path, &map));
    int status = jieba_dict_parse(path, (const char *)map.data, map.len, out);
    file_unmap(&map);
    return status;
}

void jieba_dict_free(struct JiebaDict *d)
{
    mem_free(d->first);
    mem_free(d->slots);
    mem_free(d->maybe);
    mem_free(d->weight);
    *d = (struct JiebaDict){0};
}

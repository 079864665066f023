/* jieba_parts.h - what the segmenter is made of: a dictionary as a trie, and the tables of a hidden
 * Markov model for the characters between its words. For jieba*.c only.
 */
#ifndef PCOMP_JIEBA_PARTS_H
#define PCOMP_JIEBA_PARTS_H

#include "base.h"

/* The characters that jieba takes for Chinese; of UTF-8 they all have three bytes. */
enum { HAN_FIRST = 0x4e00, HAN_LAST = 0x9fd5, N_HAN = HAN_LAST - HAN_FIRST + 1 };

static inline bool is_han(uint32_t c)
{
    return c >= HAN_FIRST && c <= HAN_LAST;
}

static inline bool is_letter_or_digit(uint32_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* What a run of text that goes through the dictionary is made of. */
static inline bool in_block(uint32_t c)
{
    return is_han(c) || is_letter_or_digit(c) || c == '+' || c == '#' || c == '&' || c == '.' ||
           c == '_' || c == '%' || c == '-';
}

/* ==== Dictionary ==== */

#define DICT_NO_WORD                                                                               \
    1.0 /* the weight of a node that only begins words; weights of words are <= 0 */

enum { DICT_MAX_WORD = 255 }; /* characters of the longest word */

enum { MAYBE_SHARE = 16 }; /* 4 bits for each slot: small enough for a core's own cache */

/* The end of an edge of the trie: what makes a step cost one cache line. */
struct DictSlot {
    uint64_t
        edge; /* node and character that lead here, and the node here: 24, 16 and 24 bits; 0: none */
    double weight; /* log(frequency) - log(total), or DICT_NO_WORD */
};

/* Nodes are numbered from 1; 0 is none. Edges by open addressing. */
struct JiebaDict {
    struct DictSlot *first; /* [1 << 16] of each first character */
    struct DictSlot *slots; /* [mask + 1] */
    size_t mask;
    uint64_t *maybe; /* [(mask + 1) / MAYBE_SHARE] bits by hash: zero where surely no edge is */
    double *weight;  /* [n_nodes] while it is read: each node's frequency */
    size_t n_nodes, room;
    double unknown; /* weight of a character that no word begins with */
};

/* Reads dict.txt: lines of word, frequency and whatever follows, with single spaces between. */
int jieba_dict_read(const char *path, struct JiebaDict *out);
int jieba_dict_parse(const char *name, const char *data, size_t len, struct JiebaDict *out);
void jieba_dict_free(struct JiebaDict *d);

static inline uint64_t dict_edge(uint32_t node, uint16_t c)
{
    return (uint64_t)node << 16 | c;
}

static inline uint64_t dict_hash(uint64_t edge)
{
    return edge * 0x9e3779b97f4a7c15u;
}

static inline size_t dict_home(uint64_t edge, size_t mask)
{
    return (size_t)(dict_hash(edge) >> 32) & mask;
}

/* Most steps that are tried lead nowhere, and this tells nearly all of them without a look at the slots. */
static inline bool dict_maybe(const struct JiebaDict *d, uint64_t edge)
{
    uint64_t hash = dict_hash(edge);
    return d->maybe[(hash >> 32 & d->mask) / MAYBE_SHARE] >> (hash >> 26 & 63) & 1;
}

static inline uint32_t dict_node(const struct DictSlot *slot)
{
    return (uint32_t)slot->edge & 0xffffff;
}

/* The end of the edge, NULL when no word goes on so. */
static inline const struct DictSlot *dict_find(const struct JiebaDict *d, uint64_t edge)
{
    for (size_t at = dict_home(edge, d->mask);; at = (at + 1) & d->mask) {
        uint64_t slot = d->slots[at].edge;
        if (slot >> 24 == edge) return &d->slots[at];
        if (!slot) return NULL;
    }
}

/* Where a word that begins with c stands after it; NULL when none does. For dictionaries that are read. */
static inline const struct DictSlot *dict_begin(const struct JiebaDict *d, uint16_t c)
{
    return d->first[c].edge ? &d->first[c] : NULL;
}

/* And after one more character. */
static inline const struct DictSlot *dict_step(const struct JiebaDict *d,
                                               const struct DictSlot *from, uint16_t c)
{
    uint64_t edge = dict_edge(dict_node(from), c);
    return dict_maybe(d, edge) ? dict_find(d, edge) : NULL;
}

/* Has the slot that the step from c to `next` reads fetched, if it reads one, without waiting. */
static inline void dict_fetch(const struct JiebaDict *d, uint16_t c, uint16_t next)
{
    uint64_t edge = dict_edge(dict_node(&d->first[c]), next);
    if (dict_maybe(d, edge)) __builtin_prefetch(&d->slots[dict_home(edge, d->mask)]);
}

/* ==== Hidden Markov model ==== */

/* Begin, end and middle of a word, and a word by itself; in the order of their names, since the last
 * name wins a tie. */
enum HmmState { HMM_B, HMM_E, HMM_M, HMM_S, HMM_STATES };

#define HMM_NEVER -3.14e100 /* log probability of what the tables do not list */

struct JiebaHmm {
    double start[HMM_STATES];
    double trans[HMM_STATES][HMM_STATES]; /* from, to */
    double (*emit)[HMM_STATES];           /* [N_HAN] */
};

/* One table of the model: prob_start.py, prob_trans.py, prob_emit.py; each is one Python dictionary
 * of literals, called P. */
enum HmmTable { HMM_START, HMM_TRANS, HMM_EMIT, HMM_TABLES };

int jieba_hmm_init(struct JiebaHmm *h); /* every probability "never" */
int jieba_hmm_parse(const char *name, const char *data, size_t len, enum HmmTable table,
                    struct JiebaHmm *h);
int jieba_hmm_read(const char *path, enum HmmTable table, struct JiebaHmm *h);
void jieba_hmm_free(struct JiebaHmm *h);

struct Jieba {
    struct JiebaDict dict;
    struct JiebaHmm hmm;
};

#endif

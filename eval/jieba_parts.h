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

/* Nodes are numbered from 1; 0 is none. Children by open addressing: node, character and child are
 * packed in one slot (24, 16 and 24 bits), so that a step costs one cache line. */
struct JiebaDict {
    uint32_t *first; /* [1 << 16] node of each first character */
    uint64_t *slots; /* [mask + 1] */
    size_t mask;
    double *weight; /* [n_nodes] log(frequency) - log(total), or DICT_NO_WORD */
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

static inline size_t dict_home(uint64_t edge, size_t mask)
{
    return (size_t)(edge * 0x9e3779b97f4a7c15u >> 32) & mask;
}

/* The node that c leads to, 0 when no word goes on so. */
static inline uint32_t dict_step(const struct JiebaDict *d, uint32_t node, uint16_t c)
{
    uint64_t edge = dict_edge(node, c);
    for (size_t at = dict_home(edge, d->mask);; at = (at + 1) & d->mask) {
        uint64_t slot = d->slots[at];
        if (slot >> 24 == edge) return (uint32_t)slot & 0xffffff;
        if (!slot) return 0;
    }
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

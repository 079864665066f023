/* lexicon.h - numbers for words: the distinct words of a row's texts, numbered from 0 as they come. */
#ifndef PCOMP_LEXICON_H
#define PCOMP_LEXICON_H

#include "pytext.h"

enum { LEX_FEW = 64 };

struct LexWord {
    struct Span text; /* borrowed */
    int64_t count;    /* for whoever counts */
};

/* A word of 8 bytes or less is told by its key and size alone; of a longer one the key is a hash. */
struct LexSlot {
    uint64_t key;
    uint32_t size; /* bytes; of longer words 9 */
    uint32_t word; /* number + 1, or 0 */
};

/* Open addressing, never more than half full. Holds pointers into itself: not to be copied. */
struct Lexicon {
    struct LexSlot *slots; /* [mask + 1] */
    struct LexWord *words; /* [(mask + 1) / 2] */
    size_t mask, n;
    uint64_t seed;
    struct LexSlot few_slots[2 * LEX_FEW]; /* so that short texts allocate nothing */
    struct LexWord few_words[LEX_FEW];
};

void lexicon_open(struct Lexicon *lex);
/* The word's number, a new one for a new word; negative: out of memory. */
int64_t lexicon_add(struct Lexicon *lex, struct Span word);
/* The word's number, or -1. */
int64_t lexicon_find(const struct Lexicon *lex, struct Span word);
void lexicon_close(struct Lexicon *lex);

#endif

/* words.h - words for keys and lists: common English ones, and pronounceable ones without end. */
#ifndef PCOMP_WORDS_H
#define PCOMP_WORDS_H

#include "base.h"

enum { WORD_MAX = 32 };

/* NULL-terminated, without repetition, lower case. */
extern const char *const NOUNS[], *const ADJECTIVES[];
int words_nouns(void);      /* how many */
int words_adjectives(void); /* how many */
int words_common(void);     /* nouns and adjectives together */

/* The i-th of the nouns and adjectives together. */
const char *words_common_at(int i);
/* How many made-up words there are, and the i-th of them, such as "binoda". */
uint64_t words_made(void);
void words_made_at(uint64_t i, char out[WORD_MAX]);

#endif

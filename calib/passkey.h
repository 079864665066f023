/* passkey.h - the facts that head calibration hides in a text and asks for, from a seed and nothing else.
 *
 * A passkey is a row of words of the 26 of the NATO alphabet (DuoAttention, arXiv 2410.10819; headwise.md A.2). Its
 * needle says which passkey it is and spells it, a question asks for it by number. A code is seven digits that belong to
 * a place, asked for by the place's name. Only texts and depths are made here; tokens are the caller's matter.
 */
#ifndef PCOMP_PASSKEY_H
#define PCOMP_PASSKEY_H

#include "base.h"

enum { PASSKEYS_MAX = 20, PASSKEY_WORDS_MAX = 256 };

/* The same bits for the same three numbers on every machine. */
uint64_t passkey_draw(uint64_t seed, uint64_t stream, uint64_t i);

/* "first" … "twentieth" */
const char *passkey_ordinal(int key);
/* Appends " kilo alpha …", words drawn evenly. Errors: PC_ENOMEM. */
int passkey_words(uint64_t seed, int key, int n_words, struct Str *out);
/* Appends what stands before the words in the needle; it does not end in a space. */
int passkey_needle(int key, struct Str *out);
/* Appends the question; PASSKEY_LEAD begins the answer, before the words. */
int passkey_question(int key, struct Str *out);
extern const char PASSKEY_LEAD[];

/* A code in the same way: " 4819203", what stands before it in the needle, and the question, which no lead follows. */
int code_digits(uint64_t seed, int key, struct Str *out);
int code_needle(int key, struct Str *out);
int code_question(int key, struct Str *out);

/* n <= PASSKEYS_MAX different places out of 1000 even steps from 0.05 to 0.95 of a text, ascending. */
void passkey_depths(uint64_t seed, int n, double *depths);

#endif

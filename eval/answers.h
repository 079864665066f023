/* answers.h - answers as their words, and F1: what LongBench and InfiniteBench share. */
#ifndef PCOMP_ANSWERS_H
#define PCOMP_ANSWERS_H

#include "lexicon.h"

/* Append the text as SQuAD's normalize_answer leaves it: lower, no ASCII punctuation, no word a/an/the,
 * words joined by one space. */
int answer_normalize(const char *text, size_t len, struct Str *out);
/* And the Chinese form: lower, no ASCII or Chinese punctuation, no white space. */
int answer_normalize_zh(const char *text, size_t len, struct Str *out);
/* The same, with a space behind each character that is left. */
int answer_chars_zh(const char *text, size_t len, struct Str *out);

/* The words of one text, each as often as it occurs. */
struct Bag {
    struct Lexicon lex;
    size_t n;
};

void bag_open(struct Bag *bag);
/* Adds the words of a text with spaces between (and behind) them, from which the bag borrows. */
int bag_fill(struct Bag *bag, const struct Str *words);
/* F1 of the bag's words and those of such a text, 0..1. */
double bag_f1(struct Bag *bag, const struct Str *words);
void bag_close(struct Bag *bag);

#endif

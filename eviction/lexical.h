/* lexical.h - chunk scores that need no model: BM25 over words. */
#ifndef PCOMP_LEXICAL_H
#define PCOMP_LEXICAL_H

#include "base.h"

/* fusion: what the chunk that shares most with the question gains over one that shares nothing, nats a token */
#define FUSION_NATS 0.65

struct LexText {
    const char *data; /* UTF-8, not NUL-terminated; may begin or end inside a character */
    size_t len;
};

/* score[c]: BM25 of chunk c among n chunks for the question's words; higher is more relevant, and a
 * chunk without any of them gets 0. Errors: PC_ENOMEM. */
int bm25_scores(struct LexText question, const struct LexText *chunks, int n, double *score);

/* The same of chunks that are not in memory together: texts(user, first, n, out) gives chunks [first, first + n), which hold
 * until the next call. All are asked for twice, in order. Their words are counted by all threads, with the same scores.
 * Errors: those of texts, PC_ENOMEM. */
struct LexReader {
    int (*texts)(void *user, int first, int n, struct LexText *out);
    void *user;
    int most; /* chunks of a call */
    int threads;
};
int bm25_read(struct LexText question, const struct LexReader *chunks, int n, double *score);

/* Raw scores as shares of the best, 0 to 1; all 0 where no chunk has any of the words. */
void lex_shares(double *score, int n);

/* Moves *at behind the next word of text, writing the word, folded to lower case, to word[room].
 * Returns its length, cut to what fits; 0 when there is none left. */
size_t lex_word(struct LexText text, size_t *at, char *word, size_t room);

#endif

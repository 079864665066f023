/* tokenizer_places.h - where a text's tokens stand in it. */
#ifndef PCOMP_TOKENIZER_PLACES_H
#define PCOMP_TOKENIZER_PLACES_H

#include "tokenizer.h"

/* Byte at which the token begins that follows on byte *at of the text; *at becomes its end. */
size_t token_span(const struct Tokenizer *t, int id, struct Slice text, size_t *at);

/* place: [n + 1] where each token of the text begins, and the text's length. */
void token_places(const struct Tokenizer *t, const int *ids, int n, struct Slice text,
                  size_t *place);

#endif

/* text_ahead.h - token ids of a text stream, loaded by a thread of their own before they are asked for.
 *
 * While the device works on a wave of chunks, the thread reads and tokenises those of the next one. It guesses nothing: the
 * caller orders stretches of tokens and takes them in that order. The thread has a reader of its own (text_stream_share) and
 * starts with the first order; where none can be started, the order stays empty and the caller loads as it would without.
 * What goes wrong while loading is told to whoever takes the stretch.
 */
#ifndef PCOMP_TEXT_AHEAD_H
#define PCOMP_TEXT_AHEAD_H

#include "text_stream.h"

struct TextRange {
    int begin, end; /* tokens [begin, end) */
};

struct TextAhead;

/* What orders may hold. */
struct AheadRoom {
    int ranges, tokens; /* of an order */
    int longest;        /* tokens of a range */
};

/* *out borrows the stream, which must be scanned; text_ahead_close frees, also after an error, and waits for the range that is
 * being loaded. */
int text_ahead_open(const struct TextStream *st, struct AheadRoom room, struct TextAhead **out);
void text_ahead_close(struct TextAhead *a); /* NULL: nothing */
/* Bytes of memory that it takes. */
size_t text_ahead_bytes(const struct TextStream *st, struct AheadRoom room);

/* Loads ranges[0 .. n) next, as far as there is room; what was ordered before and not taken is forgotten. */
void text_ahead_order(struct TextAhead *a, const struct TextRange *ranges, int n);
/* The ids of a range, until the next order, once they are loaded; *ids NULL: it is not what was ordered next. Errors: those of
 * text_stream_load. */
int text_ahead_take(struct TextAhead *a, struct TextRange range, const int **ids);

#endif

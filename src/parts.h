/* parts.h - encodes text put together from parts that are trusted to different degrees. */
#ifndef PCOMP_PARTS_H
#define PCOMP_PARTS_H

#include "tokenizer.h"

struct TextPart {
    const char *text;
    size_t len;
    bool trusted; /* spellings of control tokens become their ids (a chat template's own words) */
};

/* Appends the ids of the parts as of one text: words may reach from part to part, but a control
 * token comes from within one trusted part only. begins: this is the start of the model's input,
 * where SentencePiece puts a space in front. Text that is not UTF-8 is PC_EFORMAT with the byte's
 * position. */
int tokenizer_encode_parts(const struct Tokenizer *t, const struct TextPart *parts, int n,
                           bool begins, struct Tokens *out);

#endif

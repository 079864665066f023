/* tokenizer_places.c - see tokenizer_places.h. */
#include "tokenizer_places.h"

#include <string.h>

static const char SPACE_MARK[] = "\xe2\x96\x81"; /* U+2581, which SentencePiece takes for a space */

static size_t char_end(struct Slice text, size_t at)
{
    do {
        at++;
    } while (at < text.len && ((uint8_t)text.data[at] & 0xc0) == 0x80);
    return at;
}

/* Behind the run of characters that an unknown token stands for: those that are no token. */
static size_t unknown_end(const struct Tokenizer *t, struct Slice text, size_t at)
{
    while (at < text.len) {
        size_t end = char_end(text, at);
        char spelling[8] = {0};
        memcpy(spelling, text.data + at, end - at < 5 ? end - at : 4);
        if (tokenizer_id(t, spelling[0] == ' ' ? SPACE_MARK : spelling) >= 0) break;
        at = end;
    }
    return at;
}

/* Behind the text's bytes that become this byte of a SentencePiece piece; the space that is put in
 * front of a text has none. */
static size_t spm_byte_end(struct Slice text, size_t at, char byte)
{
    if (byte != ' ' || text.data[at] == ' ') return at + 1;
    bool mark = text.len - at >= 3 && memcmp(text.data + at, SPACE_MARK, 3) == 0;
    return mark ? at + 3 : at;
}

/* Byte-level pieces are the text but for bytes that have no token, which are passed over. */
size_t token_span(const struct Tokenizer *t, int id, struct Slice text, size_t *at)
{
    struct Slice piece = tokenizer_piece(t, id);
    const struct VocabSpec *spec = tokenizer_spec(t);
    size_t begin = *at;
    if (spec->kind == VOCAB_SPM) {
        if (id == spec->unk_id) {
            *at = unknown_end(t, text, *at);
            return begin;
        }
        for (size_t i = 0; i < piece.len && *at < text.len; i++)
            *at = spm_byte_end(text, *at, piece.data[i]);
        return begin;
    }
    for (size_t i = 0; i < piece.len && *at < text.len; i++) {
        while (*at < text.len && text.data[*at] != piece.data[i]) ++*at;
        if (i == 0) begin = *at;
        if (*at < text.len) ++*at;
    }
    return begin;
}

void token_places(const struct Tokenizer *t, const int *ids, int n, struct Slice text,
                  size_t *place)
{
    size_t at = 0;
    for (int i = 0; i < n; i++) place[i] = token_span(t, ids[i], text, &at);
    place[n] = text.len;
}

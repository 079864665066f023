/* tokenizer.h - text to token ids and back, from the model file's own vocabulary.
 *
 * Byte-level BPE (pre-types smollm, gpt-2, llama-bpe, qwen2) and SentencePiece (llama-2, mistral).
 * Time is close to linear in the text's length. A Tokenizer is read-only after opening and may be
 * shared by threads.
 */
#ifndef PCOMP_TOKENIZER_H
#define PCOMP_TOKENIZER_H

#include "model.h"

struct Tokenizer;

struct Tokens {
    int *ids; /* [n] */
    int n, cap;
};

/* Builds a tokenizer; it borrows from spec (keep the model open). An unknown pre-type is PC_EFORMAT, naming it. */
int tokenizer_open(const struct VocabSpec *spec, struct Tokenizer **out);
void tokenizer_close(struct Tokenizer *t);

/* Appends the ids of text to out. special: spellings of control tokens ("<|im_end|>") in the text
 * become their ids; otherwise they are plain text (user input must never become control tokens). No BOS is added. */
int tokenizer_encode(const struct Tokenizer *t, const char *text, size_t len, bool special,
                     struct Tokens *out);
/* A text may be encoded piece by piece, where it is certain that the ids stay the same. */
struct Encoder;
/* text_len: bytes to come, about. *out borrows t; encoder_close frees it. */
int encoder_open(const struct Tokenizer *t, size_t text_len, struct Encoder **out);
void encoder_close(struct Encoder *e);
size_t encoder_bytes(const struct Encoder *e); /* of memory */
/* Appends the ids of a piece of plain text. begins: it is the start of the model's input, where SentencePiece puts a space in front. */
int encoder_add(struct Encoder *e, const char *text, size_t len, bool begins, struct Tokens *out);
/* The last place in valid text before which it may be cut, or 0 when none is certain. ends: nothing follows text[len). */
size_t tokenizer_cut(const struct Tokenizer *t, const char *text, size_t len, bool ends);

void tokens_free(struct Tokens *t);
int tokens_push(struct Tokens *t, int id);

/* Bytes a token stands for (control tokens: their spelling). May be part of a UTF-8 character. */
struct Slice tokenizer_piece(const struct Tokenizer *t, int id);
bool tokenizer_is_control(const struct Tokenizer *t, int id);
/* True for every id that ends an answer (eos, eot, <|im_end|>, <|eot_id|>, …). */
bool tokenizer_is_end(const struct Tokenizer *t, int id);
int tokenizer_id(const struct Tokenizer *t,
                 const char *piece); /* exact stored spelling; -1 when absent */
const struct VocabSpec *tokenizer_spec(const struct Tokenizer *t);

/* Incremental decode: appends to out the longest complete UTF-8 text so far and holds back a cut
 * character. control tokens are left out. decode_flush gives U+FFFD for what remains. */
struct Decoder {
    char held[4];
    int n_held;
    bool begun; /* SentencePiece drops the first leading space */
};
int decode_token(const struct Tokenizer *t, struct Decoder *d, int id, struct Str *out);
int decode_flush(struct Decoder *d, struct Str *out);

#endif

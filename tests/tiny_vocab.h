/* tiny_vocab.h - vocabularies small enough to follow by hand, for tests and fuzzing: byte-level
 * BPE of any pre-type, and SentencePiece with byte fallback. Self-contained: a VocabSpec borrows
 * from its own struct.
 */
#ifndef PCOMP_TINY_VOCAB_H
#define PCOMP_TINY_VOCAB_H

#include "src/model.h"

#include <stdio.h>
#include <string.h>

enum { TINY_TOKENS = 400, TINY_TEXT = 8192, TINY_BPE_MERGES = 24 };

struct TinyVocab {
    struct VocabSpec spec;
    struct Slice tokens[TINY_TOKENS], merges[TINY_BPE_MERGES];
    uint8_t types[TINY_TOKENS];
    float scores[TINY_TOKENS];
    char text[TINY_TEXT]; /* where the spellings lie */
    size_t n_text;
};

static inline struct Slice tiny_keep(struct TinyVocab *v, const char *text, size_t len)
{
    struct Slice kept = {v->text + v->n_text, len};
    memcpy(v->text + v->n_text, text, len);
    v->n_text += len;
    return kept;
}

static inline int tiny_token(struct TinyVocab *v, const char *spelling, enum TokenType type)
{
    int id = v->spec.n_tokens++;
    v->tokens[id] = tiny_keep(v, spelling, strlen(spelling));
    v->types[id] = (uint8_t)type;
    v->scores[id] = -(float)id;
    return id;
}

static inline void tiny_begin(struct TinyVocab *v, enum VocabKind kind, const char *pre)
{
    memset(v, 0, sizeof(*v));
    v->spec = (struct VocabSpec){.kind = kind,
                                 .tokens = v->tokens,
                                 .types = v->types,
                                 .scores = v->scores,
                                 .merges = v->merges,
                                 .bos_id = -1,
                                 .eos_id = -1,
                                 .eot_id = -1,
                                 .unk_id = -1,
                                 .pad_id = -1};
    snprintf(v->spec.pre, sizeof(v->spec.pre), "%s", pre);
}

/* The character that spells a byte in GPT-2's alphabet. */
static inline void tiny_byte_spelling(int byte, char out[3])
{
    int c = byte, next = 0x100;
    for (int b = 0; b < 256; b++) {
        bool prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
        if (b == byte && !prints) c = next;
        next += !prints;
    }
    if (c < 0x80) {
        out[0] = (char)c;
        out[1] = '\0';
        return;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    out[2] = '\0';
}

/* Token b is byte b; then one token a merge; then "Hello", to which no merges lead; then added
 * tokens: <|endoftext|> <|im_start|> <|im_end|> <|im_ (control), <tool> <tool (the user's), [PAD]
 * (unused). */
static inline void tiny_bpe(struct TinyVocab *v, const char *pre)
{
    static const char *const MERGES[] = {
        "t h",
        "th e",
        "h e",
        "l l",
        "\xc4\xa0 \xc4\xa0",
        "\xc4\xa0 the",
        "\xc4\xa0 t",
        "a a",
        "aa aa",
        "1 2",
        "' s",
        "o r",
        "w or",
        "\xc3\x83 \xc2\xa9",
        "\xc4\x8a \xc4\x8a",
        "he ll",
        "i n",
        "in g",
        "e r",
    };
    char text[16];
    tiny_begin(v, VOCAB_BPE, pre);
    for (int byte = 0; byte < 256; byte++) {
        tiny_byte_spelling(byte, text);
        tiny_token(v, text, TOKEN_NORMAL);
    }
    for (size_t i = 0; i < sizeof(MERGES) / sizeof(*MERGES); i++) {
        const char *space = strchr(MERGES[i], ' ');
        snprintf(text, sizeof(text), "%.*s%s", (int)(space - MERGES[i]), MERGES[i], space + 1);
        tiny_token(v, text, TOKEN_NORMAL);
        v->merges[v->spec.n_merges++] = (struct Slice){MERGES[i], strlen(MERGES[i])};
    }
    tiny_token(v, "Hello", TOKEN_NORMAL);
    v->spec.bos_id = tiny_token(v, "<|endoftext|>", TOKEN_CONTROL);
    tiny_token(v, "<|im_start|>", TOKEN_CONTROL);
    v->spec.eos_id = tiny_token(v, "<|im_end|>", TOKEN_CONTROL);
    tiny_token(v, "<|im_", TOKEN_CONTROL);
    tiny_token(v, "<tool>", TOKEN_USER);
    tiny_token(v, "<tool", TOKEN_USER);
    tiny_token(v, "[PAD]", TOKEN_UNUSED);
}

/* <unk> <s> </s>, the bytes, then pieces in the order of their scores. */
static inline void tiny_spm(struct TinyVocab *v)
{
    static const char *const PIECES[] = {
        "\xe2\x96\x81t",
        "he",
        "\xe2\x96\x81the",
        "in",
        "\xe2\x96\x81\xe2\x96\x81",
        "\xe2\x96\x81",
        "t",
        "h",
        "e",
        "i",
        "n",
        "a",
        "aa",
        "aaaa",
        "\xc3\xa9",
    };
    char text[16];
    tiny_begin(v, VOCAB_SPM, "");
    v->spec.unk_id = tiny_token(v, "<unk>", TOKEN_UNKNOWN);
    v->spec.bos_id = tiny_token(v, "<s>", TOKEN_CONTROL);
    v->spec.eos_id = tiny_token(v, "</s>", TOKEN_CONTROL);
    v->spec.add_bos = v->spec.add_space_prefix = true;
    for (int byte = 0; byte < 256; byte++) {
        snprintf(text, sizeof(text), "<0x%02X>", byte);
        tiny_token(v, text, TOKEN_BYTE);
    }
    for (size_t i = 0; i < sizeof(PIECES) / sizeof(*PIECES); i++)
        tiny_token(v, PIECES[i], TOKEN_NORMAL);
}

#endif

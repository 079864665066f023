/* pretokenize.h - cuts text into the words within which byte-level BPE merges.
 *
 * Each pre-type is one regular expression, run by PCRE2. Words of plain ASCII are cut by hand-
 * written rules that give the same ends many times faster; where a byte past ASCII could matter
 * they leave the word to PCRE2. Every byte belongs to exactly one word.
 */
#ifndef PCOMP_PRETOKENIZE_H
#define PCOMP_PRETOKENIZE_H

#include "base.h"

enum PreKind { PRE_GPT2, PRE_SMOLLM, PRE_LLAMA, PRE_QWEN2, PRE_COUNT };

struct Pretokenizer {
    enum PreKind kind;
    uint8_t class_of[256]; /* kind of character a byte is, see pretokenize.c */
    void *pattern;         /* pcre2_code */
};

/* Name as in tokenizer.ggml.pre; an unknown one is PC_EFORMAT. */
int pretokenizer_open(struct Pretokenizer *pre, const char *name);
void pretokenizer_close(struct Pretokenizer *pre);

/* Walks over texts, one after the other. */
struct PreScan {
    const struct Pretokenizer *pre;
    const unsigned char *text; /* valid UTF-8, borrowed */
    size_t len;
    void *match, *context, *stack; /* PCRE2's; made when first needed */
};

struct PreScan prescan_begin(const struct Pretokenizer *pre);
void prescan_end(struct PreScan *scan);
/* Takes the next text; len > 0. */
void prescan_text(struct PreScan *scan, const char *text, size_t len);
/* Where the word that begins at `at` (< len) ends. */
int prescan_next(struct PreScan *scan, size_t at, size_t *end);
/* The two ways to find it, for tests: by hand (0: left to the other) and by regular expression. */
size_t prescan_ascii(const struct PreScan *scan, size_t at);
int prescan_regex(struct PreScan *scan, size_t at, size_t *end);

/* Whether the words of valid text, 0 < at < len, are those of text[0, at) and those of the rest, each by itself, whatever
 * the pre-type and whatever follows. It may say no where that is so. */
bool precut_certain(const char *text, size_t len, size_t at);

#endif

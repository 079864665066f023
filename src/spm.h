/* spm.h - SentencePiece's byte-pair encoding (Llama-2, Mistral).
 *
 * Pieces have a space where the vocabulary spells U+2581, so text needs no rewriting. Text is cut
 * into words (spaces, then what follows them) when no token reaches across such a cut; merging by
 * scores is turned into merging by ranks when the vocabulary is read.
 */
#ifndef PCOMP_SPM_H
#define PCOMP_SPM_H

#include "merge.h"
#include "strmap.h"
#include "tokenizer.h"

struct Spm {
    struct MergeTable merges;
    struct Slice *ordinary; /* [n_tokens] pieces that text can become; data NULL for the others */
    struct StrMap ordinary_id; /* over `ordinary` */
    int byte_id[256];          /* fallback token of a byte; all -1 when there are none */
    int unk_id;
    bool cut_words;     /* no token has a space behind another character */
    bool cuts_at_space; /* and a space is never an unknown character */
    bool cuts_at_line;  /* a line feed is a byte's token, and merges with nothing */
};

/* The bytes a spelling stands for, written to out (at least spelling.len long); returns their
 * number. */
size_t spm_piece(struct Slice spelling, enum TokenType type, char *out);

/* Whatever the result, spm_close frees. */
int spm_open(struct Spm *spm, const struct VocabSpec *spec, const struct Slice *pieces);
void spm_close(struct Spm *spm);

/* Appends the ids of text (valid UTF-8); space_before: as if a space stood in front of it. */
int spm_encode(const struct Spm *spm, struct MergeWork *work, struct Slice text, bool space_before,
               struct Tokens *out);

/* Whether the ids of valid text, 0 < at < len, are those of text[0, at) and those of the rest without a space in front.
 * It may say no where that is so. */
bool spm_cut_certain(const struct Spm *spm, const char *text, size_t at);

#endif

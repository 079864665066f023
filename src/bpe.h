/* bpe.h - byte-level byte-pair encoding, as GPT-2 began it.
 *
 * The vocabulary spells each byte as one printable character; pieces are the bytes themselves.
 */
#ifndef PCOMP_BPE_H
#define PCOMP_BPE_H

#include "merge.h"
#include "pretokenize.h"
#include "strmap.h"
#include "tokenizer.h"

struct Bpe {
    struct Pretokenizer pre;
    struct MergeTable merges;
    int byte_id[256]; /* token of a single byte; -1 when the vocabulary has none */
    struct Slice
        *whole; /* [n_tokens] pieces of ordinary tokens; NULL unless whole words go first */
    struct StrMap whole_id; /* over `whole` */
};

/* The bytes that a spelling stands for, written to out (at least spelling.len long); returns their
 * number, or 0 when some character of it is no byte's. */
size_t bpe_piece(struct Slice spelling, char *out);

/* tokens: from spelling to id. Whatever the result, bpe_close frees. */
int bpe_open(struct Bpe *bpe, const struct VocabSpec *spec, const struct StrMap *tokens,
             const struct Slice *pieces);
void bpe_close(struct Bpe *bpe);

/* Appends the ids of the scan's text. A byte without a token is passed over, as HF tokenizers
 * does. */
int bpe_encode(const struct Bpe *bpe, struct MergeWork *work, struct PreScan *scan,
               struct Tokens *out);

#endif

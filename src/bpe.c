/* bpe.c - see bpe.h. */
#include "bpe.h"

#include <string.h>

/* ==== GPT-2's alphabet ==== */

/* Bytes that print are spelled as themselves (in Latin-1), the other 68 as U+0100 onwards. */
static bool byte_prints(int byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

enum { ALPHABET_END = 0x144 };

/* byte_of[c]: the byte that character c spells, or -1. */
static void alphabet_fill(int byte_of[ALPHABET_END])
{
    int next = 0x100;
    for (int c = 0; c < ALPHABET_END; c++) byte_of[c] = -1;
    for (int byte = 0; byte < 256; byte++) byte_of[byte_prints(byte) ? byte : next++] = byte;
}

size_t bpe_piece(struct Slice spelling, char *out)
{
    int byte_of[ALPHABET_END];
    alphabet_fill(byte_of);
    size_t n = 0;
    for (size_t i = 0; i < spelling.len; i++) {
        int c = (uint8_t)spelling.data[i];
        if (c >= 0x80) {
            if ((c & 0xe0) != 0xc0 || ++i == spelling.len) return 0;
            c = (c & 0x1f) << 6 | ((uint8_t)spelling.data[i] & 0x3f);
        }
        if (c >= ALPHABET_END || byte_of[c] < 0) return 0;
        out[n++] = (char)byte_of[c];
    }
    return n;
}

/* ==== Opening ==== */

static int merge_error(const struct VocabSpec *spec, int rank, const char *what)
{
    const struct Slice *merge = &spec->merges[rank];
    int shown = merge->len < 80 ? (int)merge->len : 80;
    return err_set(PC_EFORMAT, "vocabulary: merge %d ('%.*s') %s", rank, shown, merge->data, what);
}

/* Reads "left right". scratch: writable room for the longest token. */
static int merge_read(struct Bpe *bpe, const struct VocabSpec *spec, int rank,
                      const struct StrMap *tokens, struct Slice scratch)
{
    const struct Slice *merge = &spec->merges[rank];
    const char *space = merge->len ? memchr(merge->data, ' ', merge->len) : NULL;
    if (!space) return merge_error(spec, rank, "is not two tokens with a space between");
    size_t n_left = (size_t)(space - merge->data), n_right = merge->len - n_left - 1;
    if (n_left + n_right > scratch.len) return merge_error(spec, rank, "makes no token");
    char *joined = (char *)scratch.data;
    memcpy(joined, merge->data, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    int left = strmap_find(tokens, merge->data, n_left);
    int right = strmap_find(tokens, space + 1, n_right);
    int merged = strmap_find(tokens, joined, n_left + n_right);
    if (left < 0 || right < 0) return merge_error(spec, rank, "names a token that does not exist");
    if (merged < 0) return merge_error(spec, rank, "makes no token");
    merges_add(&bpe->merges, left, right, (uint32_t)rank, merged);
    return PC_OK;
}

static int merges_read(struct Bpe *bpe, const struct VocabSpec *spec, const struct StrMap *tokens)
{
    size_t longest = 1;
    for (int i = 0; i < spec->n_tokens; i++) {
        if (spec->tokens[i].len > longest) longest = spec->tokens[i].len;
    }
    TRY(merges_alloc(&bpe->merges, (size_t)spec->n_merges));
    char *scratch = mem_alloc(longest, 1);
    if (!scratch) return PC_ENOMEM;
    int status = PC_OK;
    for (int i = 0; i < spec->n_merges && status == PC_OK; i++)
        status = merge_read(bpe, spec, i, tokens, (struct Slice){scratch, longest});
    mem_free(scratch);
    return status;
}

/* Llama-3 takes a word that is a token as it is, though merging might not lead there. */
static int whole_words_open(struct Bpe *bpe, const struct VocabSpec *spec,
                            const struct Slice *pieces)
{
    bpe->whole = mem_alloc((size_t)spec->n_tokens, sizeof(*bpe->whole));
    if (!bpe->whole) return PC_ENOMEM;
    for (int i = 0; i < spec->n_tokens; i++) {
        if (spec->types[i] == TOKEN_NORMAL) bpe->whole[i] = pieces[i];
    }
    return strmap_build(&bpe->whole_id, bpe->whole, spec->n_tokens);
}

int bpe_open(struct Bpe *bpe, const struct VocabSpec *spec, const struct StrMap *tokens,
             const struct Slice *pieces)
{
    TRY(pretokenizer_open(&bpe->pre, spec->pre));
    for (int byte = 0; byte < 256; byte++) bpe->byte_id[byte] = -1;
    for (int i = 0; i < spec->n_tokens; i++) {
        if (pieces[i].len == 1 && spec->types[i] == TOKEN_NORMAL)
            bpe->byte_id[(uint8_t)pieces[i].data[0]] = i;
    }
    TRY(merges_read(bpe, spec, tokens));
    return bpe->pre.kind == PRE_LLAMA ? whole_words_open(bpe, spec, pieces) : PC_OK;
}

void bpe_close(struct Bpe *bpe)
{
    pretokenizer_close(&bpe->pre);
    merges_free(&bpe->merges);
    strmap_free(&bpe->whole_id);
    mem_free(bpe->whole);
}

/* ==== Encoding ==== */

/* The word's ids, in work->ids. */
static int word_merge(const struct Bpe *bpe, struct MergeWork *work, const char *word, size_t len,
                      size_t *n)
{
    TRY(merge_work_ids(work, len));
    *n = 0;
    int whole = bpe->whole ? strmap_find(&bpe->whole_id, word, len) : -1;
    if (whole >= 0) {
        work->ids[(*n)++] = whole;
        return PC_OK;
    }
    for (size_t i = 0; i < len; i++) {
        int id = bpe->byte_id[(uint8_t)word[i]];
        if (id >= 0) work->ids[(*n)++] = id;
    }
    return merge_word(&bpe->merges, work, work->ids, n);
}

static int word_encode(const struct Bpe *bpe, struct MergeWork *work, const char *word, size_t len,
                       struct Tokens *out)
{
    struct Word *known = words_find(&work->words, word, len);
    const int *ids = known ? known->ids : NULL;
    size_t n = known ? (size_t)known->n : 0;
    if (!n) {
        TRY(word_merge(bpe, work, word, len, &n));
        ids = work->ids;
        words_keep(known, ids, n);
    }
    for (size_t i = 0; i < n; i++) TRY(tokens_push(out, ids[i]));
    return PC_OK;
}

int bpe_encode(const struct Bpe *bpe, struct MergeWork *work, struct PreScan *scan,
               struct Tokens *out)
{
    size_t end;
    for (size_t at = 0; at < scan->len; at = end) {
        TRY(prescan_next(scan, at, &end));
        TRY(word_encode(bpe, work, (const char *)scan->text + at, end - at, out));
    }
    return PC_OK;
}

/* spm.c - see spm.h. Kudo and Richardson 2018, "SentencePiece"; the result is that of its BPE
 * model with identity normalisation, as Llama-2 and Mistral use it.
 *
 * SentencePiece merges the neighbours whose joint piece scores best. That is byte-pair merging
 * with the pieces' order by score as ranks: for each piece, every way to halve it into two pieces
 * is a merge. Characters that are no piece never merge; a trained vocabulary has every character
 * of its pieces.
 */
#include "spm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char SPACE_MARK[] = "\xe2\x96\x81"; /* U+2581 */
enum { MARK_LEN = 3, TOKEN_LEN_MAX = 1024 };

static size_t char_len(const char *at, const char *end)
{
    const char *next = at + 1;
    while (next < end && ((uint8_t)*next & 0xc0) == 0x80) next++;
    return (size_t)(next - at);
}

/* Copies text with a space for each U+2581; returns the length. */
static size_t marks_to_spaces(struct Slice text, char *out)
{
    const char *at = text.data, *end = text.data + text.len;
    size_t n = 0;
    while (at < end) {
        const char *mark = memmem(at, (size_t)(end - at), SPACE_MARK, MARK_LEN);
        size_t run = (size_t)((mark ? mark : end) - at);
        memcpy(out + n, at, run);
        n += run;
        if (!mark) break;
        out[n++] = ' ';
        at = mark + MARK_LEN;
    }
    return n;
}

size_t spm_piece(struct Slice spelling, enum TokenType type, char *out)
{
    unsigned byte;
    char text[8] = {0};
    if (type == TOKEN_BYTE && spelling.len == 6) {
        memcpy(text, spelling.data, spelling.len);
        if (sscanf(text, "<0x%2X>", &byte) == 1) {
            out[0] = (char)byte;
            return 1;
        }
    }
    return marks_to_spaces(spelling, out);
}

/* ==== Opening ==== */

struct Scored {
    float score;
    int id;
};

static int scored_compare(const void *a, const void *b)
{
    float x = ((const struct Scored *)a)->score, y = ((const struct Scored *)b)->score;
    return (x < y) - (x > y);
}

/* rank[id]: place of each token by score, the best being 0; equal scores share one. */
static int ranks_fill(const struct VocabSpec *spec, uint32_t *rank)
{
    struct Scored *order = mem_alloc((size_t)spec->n_tokens, sizeof(*order));
    if (!order) return PC_ENOMEM;
    for (int i = 0; i < spec->n_tokens; i++) {
        float score = spec->scores[i];
        order[i] = (struct Scored){isnan(score) ? -INFINITY : score, i};
    }
    qsort(order, (size_t)spec->n_tokens, sizeof(*order), scored_compare);
    for (int i = 0; i < spec->n_tokens; i++) {
        bool tied = i > 0 && order[i].score == order[i - 1].score;
        rank[order[i].id] = tied ? rank[order[i - 1].id] : (uint32_t)i;
    }
    mem_free(order);
    return PC_OK;
}

/* Adds every pair of pieces that makes up piece `id`. */
static void halves_add(struct Spm *spm, int id, uint32_t rank)
{
    const char *begin = spm->ordinary[id].data, *end = begin + spm->ordinary[id].len;
    const char *cut = begin + char_len(begin, end);
    for (; cut < end; cut += char_len(cut, end)) {
        int left = strmap_find(&spm->ordinary_id, begin, (size_t)(cut - begin));
        int right = strmap_find(&spm->ordinary_id, cut, (size_t)(end - cut));
        if (left >= 0 && right >= 0) merges_add(&spm->merges, left, right, rank, id);
    }
}

static int merges_make(struct Spm *spm, const struct VocabSpec *spec)
{
    size_t n_cuts = 0;
    for (int i = 0; i < spec->n_tokens; i++) n_cuts += spm->ordinary[i].len;
    TRY(merges_alloc(&spm->merges, n_cuts));
    uint32_t *rank = mem_alloc((size_t)spec->n_tokens, sizeof(*rank));
    if (!rank) return PC_ENOMEM;
    int status = ranks_fill(spec, rank);
    for (int i = 0; i < spec->n_tokens && status == PC_OK; i++) {
        if (spm->ordinary[i].len) halves_add(spm, i, rank[i]);
    }
    mem_free(rank);
    return status;
}

/* True when a space stands behind another character. */
static bool crosses_cut(struct Slice piece)
{
    for (size_t i = 1; i < piece.len; i++) {
        if (piece.data[i] == ' ' && piece.data[i - 1] != ' ') return true;
    }
    return false;
}

/* Sorts the tokens into ordinary pieces, byte tokens and those that text never becomes. */
static int tokens_sort(struct Spm *spm, const struct VocabSpec *spec, const struct Slice *pieces)
{
    spm->cut_words = true;
    for (int i = 0; i < spec->n_tokens; i++) {
        if (spec->types[i] == TOKEN_BYTE && pieces[i].len == 1)
            spm->byte_id[(uint8_t)pieces[i].data[0]] = i;
        if (spec->types[i] != TOKEN_NORMAL || !pieces[i].len) continue;
        if (pieces[i].len > TOKEN_LEN_MAX) {
            return err_set(PC_EFORMAT, "vocabulary: token %d has %zu bytes; the limit is %d", i,
                           pieces[i].len, TOKEN_LEN_MAX);
        }
        spm->ordinary[i] = pieces[i];
        if (crosses_cut(pieces[i])) spm->cut_words = false;
    }
    for (int byte = 0; byte < 256; byte++) {
        if (spm->byte_id[byte] < 0 && spm->unk_id < 0) {
            return err_set(PC_EFORMAT, "vocabulary: no token for byte 0x%02X and no unknown token",
                           byte);
        }
    }
    return PC_OK;
}

int spm_open(struct Spm *spm, const struct VocabSpec *spec, const struct Slice *pieces)
{
    if (!spec->scores) return err_set(PC_EFORMAT, "vocabulary: SentencePiece without scores");
    spm->unk_id = spec->unk_id;
    for (int byte = 0; byte < 256; byte++) spm->byte_id[byte] = -1;
    spm->ordinary = mem_alloc((size_t)spec->n_tokens, sizeof(*spm->ordinary));
    if (!spm->ordinary) return PC_ENOMEM;
    TRY(tokens_sort(spm, spec, pieces));
    TRY(strmap_build(&spm->ordinary_id, spm->ordinary, spec->n_tokens));
    bool space = strmap_find(&spm->ordinary_id, " ", 1) >= 0 || spm->byte_id[' '] >= 0;
    spm->cuts_at_space = spm->cut_words && space;
    spm->cuts_at_line = strmap_find(&spm->ordinary_id, "\n", 1) < 0 && spm->byte_id['\n'] >= 0;
    return merges_make(spm, spec);
}

void spm_close(struct Spm *spm)
{
    merges_free(&spm->merges);
    strmap_free(&spm->ordinary_id);
    mem_free(spm->ordinary);
}

/* ==== Encoding ==== */

/* A character without a token: as bytes, or unknown; a run of unknown characters is one token. */
static int fallback_push(const struct Spm *spm, const char *at, size_t len, struct Tokens *out)
{
    bool bytes = true;
    for (size_t i = 0; i < len; i++) bytes = bytes && spm->byte_id[(uint8_t)at[i]] >= 0;
    if (!bytes) {
        bool runs_on = out->n > 0 && out->ids[out->n - 1] == spm->unk_id;
        return runs_on ? PC_OK : tokens_push(out, spm->unk_id);
    }
    for (size_t i = 0; i < len; i++) TRY(tokens_push(out, spm->byte_id[(uint8_t)at[i]]));
    return PC_OK;
}

/* The word's ids in work->ids; -1 - offset stands for a character that is no piece. */
static int word_merge(const struct Spm *spm, struct MergeWork *work, struct Slice word, size_t *n)
{
    TRY(merge_work_ids(work, word.len));
    const char *end = word.data + word.len;
    size_t len;
    *n = 0;
    for (const char *at = word.data; at < end; at += len) {
        len = char_len(at, end);
        int id = strmap_find(&spm->ordinary_id, at, len);
        work->ids[(*n)++] = id >= 0 ? id : -1 - (int)(at - word.data);
    }
    return merge_word(&spm->merges, work, work->ids, n);
}

static int word_encode(const struct Spm *spm, struct MergeWork *work, struct Slice word,
                       struct Tokens *out)
{
    struct Word *known = words_find(&work->words, word.data, word.len);
    for (int i = 0; known && i < known->n; i++) TRY(tokens_push(out, known->ids[i]));
    if (known && known->n) return PC_OK;
    size_t n;
    TRY(word_merge(spm, work, word, &n));
    bool fell_back = false;
    for (size_t i = 0; i < n; i++) {
        int id = work->ids[i];
        if (id >= 0) {
            TRY(tokens_push(out, id));
            continue;
        }
        const char *at = word.data + (-1 - id);
        TRY(fallback_push(spm, at, char_len(at, word.data + word.len), out));
        fell_back = true;
    }
    if (!fell_back) words_keep(known, work->ids, n);
    return PC_OK;
}

static size_t word_end(const struct Spm *spm, struct Slice text, size_t at)
{
    if (!spm->cut_words) return text.len;
    while (at < text.len && text.data[at] == ' ') at++;
    const char *space = memchr(text.data + at, ' ', text.len - at);
    return space ? (size_t)(space - text.data) : text.len;
}

int spm_encode(const struct Spm *spm, struct MergeWork *work, struct Slice text, bool space_before,
               struct Tokens *out)
{
    char *spaced = mem_alloc(text.len + 1, 1);
    if (!spaced) return PC_ENOMEM;
    size_t len = 0;
    if (space_before) spaced[len++] = ' ';
    len += marks_to_spaces(text, spaced + len);
    int status = PC_OK;
    size_t end;
    for (size_t at = 0; at < len && status == PC_OK; at = end) {
        end = word_end(spm, (struct Slice){spaced, len}, at);
        status = word_encode(spm, work, (struct Slice){spaced + at, end - at}, out);
    }
    mem_free(spaced);
    return status;
}

bool spm_cut_certain(const struct Spm *spm, const char *text, size_t at)
{
    if (spm->cuts_at_line && text[at - 1] == '\n') return true;
    if (!spm->cuts_at_space || text[at] != ' ' || text[at - 1] == ' ') return false;
    return at < MARK_LEN || memcmp(text + at - MARK_LEN, SPACE_MARK, MARK_LEN) != 0;
}

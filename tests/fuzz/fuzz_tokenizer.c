/* fuzz_tokenizer.c - text of any bytes through each tokenizer. The first byte picks the
 * vocabulary and whether control tokens are read. Text that is not UTF-8 must be refused; with
 * byte-level BPE the other must come back from its ids, and the hand-written cuts must be those
 * of the regular expression. Where a text may certainly be cut, both parts must give its ids.
 */
#include "pretokenize.h"
#include "tests/tiny_vocab.h"
#include "tokenizer.h"

#include <stdlib.h>

enum { VOCABS = 5 };

static struct TinyVocab vocabs[VOCABS];
static struct Tokenizer *tokenizers[VOCABS];
static struct Pretokenizer pres[VOCABS];
static size_t baseline; /* memory that the above hold */

static void set_up(void)
{
    static const char *const PRES[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    for (int i = 0; i < VOCABS; i++) {
        if (i < VOCABS - 1) {
            tiny_bpe(&vocabs[i], PRES[i]);
            if (pretokenizer_open(&pres[i], PRES[i]) < 0) abort();
        } else {
            tiny_spm(&vocabs[i]);
        }
        if (tokenizer_open(&vocabs[i].spec, &tokenizers[i]) < 0) abort();
    }
    baseline = mem_in_use();
}

static void check_cuts(const struct Pretokenizer *pre, const char *text, size_t len)
{
    struct PreScan scan = prescan_begin(pre);
    prescan_text(&scan, text, len);
    size_t end;
    for (size_t at = 0; at < len; at = end) {
        size_t by_hand = prescan_ascii(&scan, at);
        if (prescan_regex(&scan, at, &end) < 0) abort();
        if (end <= at || (by_hand && by_hand != end)) abort();
    }
    prescan_end(&scan);
}

/* Pieces, control tokens too, joined. */
static void check_return(const struct Tokenizer *t, const struct Tokens *ids, const char *text,
                         size_t len)
{
    size_t at = 0;
    for (int i = 0; i < ids->n; i++) {
        struct Slice piece = tokenizer_piece(t, ids->ids[i]);
        if (piece.len > len - at || memcmp(piece.data, text + at, piece.len) != 0) abort();
        at += piece.len;
    }
    if (at != len) abort();
}

/* Every cut that is certain with some of the text in view. */
static void check_pieces(const struct Tokenizer *t, const char *text, size_t len)
{
    struct Encoder *whole, *parts;
    struct Tokens want = {0}, ids = {0};
    if (encoder_open(t, len, &whole) < 0 || encoder_open(t, len, &parts) < 0) abort();
    if (encoder_add(whole, text, len, true, &want) < 0) abort();
    for (size_t seen = len, at; seen > 0; seen = at) {
        at = tokenizer_cut(t, text, seen, seen == len);
        if (at == 0) break;
        ids.n = 0;
        if (encoder_add(parts, text, at, true, &ids) < 0) abort();
        if (encoder_add(parts, text + at, len - at, false, &ids) < 0) abort();
        if (ids.n != want.n || memcmp(ids.ids, want.ids, sizeof(int) * (size_t)ids.n) != 0) abort();
    }
    tokens_free(&want);
    tokens_free(&ids);
    encoder_close(whole);
    encoder_close(parts);
}

/* Any ids must decode to UTF-8. */
static void check_decode(const struct Tokenizer *t, const uint8_t *data, size_t size)
{
    struct Decoder d = {0};
    struct Str out = {0};
    for (size_t i = 0; i + 1 < size; i += 2)
        if (decode_token(t, &d, data[i] | (data[i + 1] & 1) << 8, &out) < 0) abort();
    if (decode_flush(&d, &out) < 0) abort();
    if (out.len && utf8_invalid_at(out.data, out.len) != out.len) abort();
    str_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!tokenizers[0]) set_up();
    if (size < 1) return 0;
    int which = data[0] % VOCABS;
    bool special = data[0] & 0x80;
    const char *text = (const char *)data + 1;
    size_t len = size - 1;
    bool valid = utf8_invalid_at(text, len) == len;
    struct Tokens ids = {0};
    int status = tokenizer_encode(tokenizers[which], text, len, special, &ids);
    if (status != (valid ? PC_OK : PC_EFORMAT)) abort();
    if (valid && which < VOCABS - 1) {
        check_return(tokenizers[which], &ids, text, len);
        if (len) check_cuts(&pres[which], text, len);
    }
    if (valid && len) check_pieces(tokenizers[which], text, len);
    check_decode(tokenizers[which], data + 1, len);
    tokens_free(&ids);
    if (mem_in_use() != baseline) abort();
    return 0;
}

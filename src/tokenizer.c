/* tokenizer.c - opens a vocabulary, encodes with added tokens and words, decodes.
 *
 * Encoding has three layers: added tokens cut the text into stretches (added.c), stretches into
 * words (pretokenize.c, spm.c), and words are merged (merge.c). What a call needs besides the
 * tables lives for that call only, so threads may share a Tokenizer.
 */
#include "tokenizer.h"

#include "added.h"
#include "bpe.h"
#include "parts.h"
#include "spm.h"

#include <limits.h>
#include <string.h>

struct Tokenizer {
    const struct VocabSpec *spec;
    struct Slice *pieces; /* [n_tokens] bytes of each token, in piece_bytes or in the spec */
    char *piece_bytes;
    struct StrMap by_spelling;
    struct Added added;
    struct Bpe bpe;
    struct Spm spm;
    bool *is_end; /* [n_tokens] */
};

/* ==== Opening ==== */

/* Ordinary tokens and byte tokens are turned into bytes; the others stand for their spelling. */
static int pieces_make(struct Tokenizer *t)
{
    const struct VocabSpec *spec = t->spec;
    size_t total = 0;
    for (int i = 0; i < spec->n_tokens; i++) total += spec->tokens[i].len;
    t->pieces = mem_alloc((size_t)spec->n_tokens, sizeof(*t->pieces));
    t->piece_bytes = mem_alloc(total, 1);
    if (!t->pieces || !t->piece_bytes) return PC_ENOMEM;
    char *at = t->piece_bytes;
    for (int i = 0; i < spec->n_tokens; i++) {
        struct Slice spelling = spec->tokens[i];
        enum TokenType type = spec->types[i];
        size_t len = 0;
        if (spec->kind == VOCAB_SPM)
            len = spm_piece(spelling, type, at);
        else if (type == TOKEN_NORMAL)
            len = bpe_piece(spelling, at);
        t->pieces[i] = len ? (struct Slice){at, len} : spelling;
        at += len;
    }
    return PC_OK;
}

static int ends_mark(struct Tokenizer *t)
{
    static const char *const SPELLINGS[] = {
        "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<|eom_id|>",
    };
    t->is_end = mem_alloc((size_t)t->spec->n_tokens, sizeof(*t->is_end));
    if (!t->is_end) return PC_ENOMEM;
    int stated[] = {t->spec->eos_id, t->spec->eot_id};
    for (size_t i = 0; i < sizeof(stated) / sizeof(*stated); i++) {
        if (stated[i] >= 0 && stated[i] < t->spec->n_tokens) t->is_end[stated[i]] = true;
    }
    for (size_t i = 0; i < sizeof(SPELLINGS) / sizeof(*SPELLINGS); i++) {
        int id = tokenizer_id(t, SPELLINGS[i]);
        if (id >= 0 && tokenizer_is_control(t, id)) t->is_end[id] = true;
    }
    return PC_OK;
}

static int tokenizer_fill(struct Tokenizer *t)
{
    const struct VocabSpec *spec = t->spec;
    TRY(pieces_make(t));
    TRY(strmap_build(&t->by_spelling, spec->tokens, spec->n_tokens));
    TRY(added_open(&t->added, spec, t->pieces));
    TRY(ends_mark(t));
    if (spec->kind == VOCAB_SPM) return spm_open(&t->spm, spec, t->pieces);
    return bpe_open(&t->bpe, spec, &t->by_spelling, t->pieces);
}

int tokenizer_open(const struct VocabSpec *spec, struct Tokenizer **out)
{
    *out = NULL;
    if (spec->n_tokens <= 0) return err_set(PC_EFORMAT, "the model has no vocabulary");
    struct Tokenizer *t = mem_alloc(1, sizeof(*t));
    if (!t) return PC_ENOMEM;
    t->spec = spec;
    int status = tokenizer_fill(t);
    if (status < 0) {
        tokenizer_close(t);
        return status;
    }
    *out = t;
    return PC_OK;
}

void tokenizer_close(struct Tokenizer *t)
{
    if (!t) return;
    spm_close(&t->spm);
    bpe_close(&t->bpe);
    added_close(&t->added);
    strmap_free(&t->by_spelling);
    mem_free(t->is_end);
    mem_free(t->piece_bytes);
    mem_free(t->pieces);
    mem_free(t);
}

/* ==== Tokens ==== */

struct Slice tokenizer_piece(const struct Tokenizer *t, int id)
{
    return id >= 0 && id < t->spec->n_tokens ? t->pieces[id] : (struct Slice){"", 0};
}

bool tokenizer_is_control(const struct Tokenizer *t, int id)
{
    return id >= 0 && id < t->spec->n_tokens && t->spec->types[id] == TOKEN_CONTROL;
}

bool tokenizer_is_end(const struct Tokenizer *t, int id)
{
    return id >= 0 && id < t->spec->n_tokens && t->is_end[id];
}

int tokenizer_id(const struct Tokenizer *t, const char *piece)
{
    return strmap_find(&t->by_spelling, piece, strlen(piece));
}

const struct VocabSpec *tokenizer_spec(const struct Tokenizer *t)
{
    return t->spec;
}

int tokens_push(struct Tokens *t, int id)
{
    if (t->n == t->cap) {
        if (t->cap > INT_MAX / 2) return err_set(PC_ERANGE, "more than %d tokens", t->cap);
        int cap = t->cap ? t->cap * 2 : 64;
        int *ids = mem_grow(t->ids, (size_t)t->cap, (size_t)cap, sizeof(*ids));
        if (!ids) return PC_ENOMEM;
        t->ids = ids;
        t->cap = cap;
    }
    t->ids[t->n++] = id;
    return PC_OK;
}

void tokens_free(struct Tokens *t)
{
    mem_free(t->ids);
    *t = (struct Tokens){0};
}

/* ==== Encoding ==== */

/* One encode call. */
struct Encoder {
    const struct Tokenizer *t;
    struct MergeWork work;
    struct PreScan scan;
    bool space_before; /* SentencePiece's space in front is still to come */
    struct Tokens *out;
};

/* Text between added tokens. */
static int encode_stretch(struct Encoder *e, const char *text, size_t len)
{
    if (!len) return PC_OK;
    if (e->t->spec->kind == VOCAB_SPM) {
        bool space_before = e->space_before;
        e->space_before = false;
        return spm_encode(&e->t->spm, &e->work, (struct Slice){text, len}, space_before, e->out);
    }
    prescan_text(&e->scan, text, len);
    return bpe_encode(&e->t->bpe, &e->work, &e->scan, e->out);
}

static int encode_text(struct Encoder *e, const char *text, size_t len, bool control)
{
    size_t at = 0;
    while (at < len) {
        struct AddedHit hit = added_find(&e->t->added, text, len, at, control);
        TRY(encode_stretch(e, text + at, hit.begin - at));
        if (hit.id >= 0) TRY(tokens_push(e->out, hit.id));
        at = hit.end;
    }
    return PC_OK;
}

static int encoder_begin(struct Encoder *e, const struct Tokenizer *t, size_t len, bool begins,
                         struct Tokens *out)
{
    *e = (struct Encoder){.t = t, .out = out};
    e->space_before = begins && t->spec->add_space_prefix;
    e->scan = prescan_begin(&t->bpe.pre);
    return merge_work_init(&e->work, len);
}

static void encoder_end(struct Encoder *e)
{
    prescan_end(&e->scan);
    merge_work_free(&e->work);
}

static int text_check(const char *text, size_t len)
{
    if (len >= INT_MAX) return err_set(PC_ERANGE, "a text of %zu bytes; the limit is 2 GiB", len);
    size_t bad = utf8_invalid_at(text, len);
    if (bad == len) return PC_OK;
    return err_set(PC_EFORMAT, "byte %zu of the text (0x%02X) is not UTF-8", bad,
                   (uint8_t)text[bad]);
}

int tokenizer_encode(const struct Tokenizer *t, const char *text, size_t len, bool special,
                     struct Tokens *out)
{
    struct Encoder e;
    TRY(text_check(text, len));
    int status = encoder_begin(&e, t, len, true, out);
    if (status == PC_OK) status = encode_text(&e, text, len, special);
    encoder_end(&e);
    return status;
}

/* Encodes the text gathered so far, in which control tokens are plain text. */
static int plain_flush(struct Encoder *e, struct Str *plain)
{
    TRY(encode_text(e, plain->data, plain->len, false));
    str_clear(plain);
    return PC_OK;
}

static int part_add(struct Encoder *e, const struct TextPart *part, struct Str *plain)
{
    TRY(text_check(part->text, part->len));
    if (!part->trusted) return str_append(plain, part->text, part->len);
    size_t at = 0;
    while (at < part->len) {
        struct AddedHit hit = added_find(&e->t->added, part->text, part->len, at, true);
        TRY(str_append(plain, part->text + at, hit.begin - at));
        at = hit.end;
        if (hit.id < 0) break;
        TRY(plain_flush(e, plain));
        TRY(tokens_push(e->out, hit.id));
    }
    return PC_OK;
}

int tokenizer_encode_parts(const struct Tokenizer *t, const struct TextPart *parts, int n,
                           bool begins, struct Tokens *out)
{
    size_t len = 0;
    for (int i = 0; i < n; i++) len += parts[i].len;
    struct Encoder e;
    struct Str plain = {0};
    int status = encoder_begin(&e, t, len, begins, out);
    for (int i = 0; i < n && status == PC_OK; i++) status = part_add(&e, &parts[i], &plain);
    if (status == PC_OK) status = plain_flush(&e, &plain);
    str_free(&plain);
    encoder_end(&e);
    return status;
}

/* ==== Piece by piece ==== */

int encoder_open(const struct Tokenizer *t, size_t text_len, struct Encoder **out)
{
    *out = mem_alloc(1, sizeof **out);
    if (!*out) return PC_ENOMEM;
    int status = encoder_begin(*out, t, text_len, false, NULL);
    if (status < 0) {
        encoder_close(*out);
        *out = NULL;
    }
    return status;
}

void encoder_close(struct Encoder *e)
{
    if (e) encoder_end(e);
    mem_free(e);
}

size_t encoder_bytes(const struct Encoder *e)
{
    return sizeof *e + merge_work_bytes(&e->work);
}

int encoder_add(struct Encoder *e, const char *text, size_t len, bool begins, struct Tokens *out)
{
    TRY(text_check(text, len));
    e->out = out;
    e->space_before = begins && e->t->spec->add_space_prefix;
    return encode_text(e, text, len, false);
}

size_t tokenizer_cut(const struct Tokenizer *t, const char *text, size_t len, bool ends)
{
    enum { CHAR_MOST = 4 };
    bool spm = t->spec->kind == VOCAB_SPM;
    size_t seen = ends ? 1 : t->added.longest + CHAR_MOST;
    if (len <= seen) return 0;
    for (size_t at = len - seen; at > 0; at--) {
        bool cut = spm ? spm_cut_certain(&t->spm, text, at) : precut_certain(text, len, at);
        if (cut && !added_touches(&t->added, text, len, at)) return at;
    }
    return 0;
}

/* ==== Decoding ==== */

static const char REPLACEMENT[] = "\xef\xbf\xbd"; /* U+FFFD */
static const char UNKNOWN[] = " \xe2\x81\x87 ";   /* U+2047, as SentencePiece writes it */

/* Whether `byte` may follow `lead` as its second byte (no overlong forms, no surrogates). */
static bool second_fits(uint8_t lead, uint8_t byte)
{
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    return byte >= low && byte <= high;
}

/* Bytes of the character that `lead` begins; 0 when it begins none. */
static int lead_length(uint8_t lead)
{
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead <= 0xdf) return 2;
    if (lead >= 0xe0 && lead <= 0xef) return 3;
    return lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
}

int decode_flush(struct Decoder *d, struct Str *out)
{
    if (!d->n_held) return PC_OK;
    d->n_held = 0;
    return str_append(out, REPLACEMENT, sizeof(REPLACEMENT) - 1);
}

/* Takes one byte: completes the held character, or holds it, or gives up what was held. */
static int decode_byte(struct Decoder *d, char c, struct Str *out)
{
    uint8_t byte = (uint8_t)c;
    if (d->n_held) {
        uint8_t lead = (uint8_t)d->held[0];
        bool fits = d->n_held == 1 ? second_fits(lead, byte) : (byte & 0xc0) == 0x80;
        if (!fits) TRY(decode_flush(d, out));
    }
    if (!d->n_held && !lead_length(byte))
        return str_append(out, REPLACEMENT, sizeof(REPLACEMENT) - 1);
    d->held[d->n_held++] = c;
    if (d->n_held < lead_length((uint8_t)d->held[0])) return PC_OK;
    int n = d->n_held;
    d->n_held = 0;
    return str_append(out, d->held, (size_t)n);
}

int decode_token(const struct Tokenizer *t, struct Decoder *d, int id, struct Str *out)
{
    if (id < 0 || id >= t->spec->n_tokens) return PC_OK;
    uint8_t type = t->spec->types[id];
    if (type == TOKEN_CONTROL || type == TOKEN_UNUSED) return PC_OK;
    struct Slice piece = t->pieces[id];
    if (type == TOKEN_UNKNOWN) piece = (struct Slice){UNKNOWN, sizeof(UNKNOWN) - 1};
    bool drops_space = t->spec->kind == VOCAB_SPM && t->spec->add_space_prefix && !d->begun;
    d->begun = true;
    size_t from = drops_space && type == TOKEN_NORMAL && piece.data[0] == ' ';
    for (size_t i = from; i < piece.len; i++) TRY(decode_byte(d, piece.data[i], out));
    return PC_OK;
}

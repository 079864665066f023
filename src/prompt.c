/* prompt.c - see prompt.h. Texts that the user wrote never become control tokens; the template's
 * own words do. Around the borders between the two, words merge as they would in one text.
 */
#include "prompt.h"

#include "parts.h"
#include "tokenizer_places.h"

#include <string.h>

static const char BLANK_LINE[] = "\n\n";

/* ==== Parts ==== */

enum { PARTS_MAX = 6 };

/* Parts gathered for one encoding; those without text are left out. */
struct PartList {
    struct TextPart parts[PARTS_MAX];
    int n;
};

static void part_put(struct PartList *list, const char *text, size_t len, bool trusted)
{
    if (len) list->parts[list->n++] = (struct TextPart){text, len, trusted};
}

static void part_user(struct PartList *list, const char *text)
{
    if (text) part_put(list, text, strlen(text), false);
}

static void part_template(struct PartList *list, const struct Str *text)
{
    part_put(list, text->data, text->len, true);
}

/* ==== Checks ==== */

static int context_check(const char *context, size_t len)
{
    size_t bad = utf8_invalid_at(context, len);
    const char *nul = len ? memchr(context, '\0', len) : NULL;
    if (nul && (size_t)(nul - context) < bad) {
        return err_set(PC_EFORMAT,
                       "byte %zu of the text is NUL: is it a text file? (take the text "
                       "out of it first, as with pdftotext)",
                       (size_t)(nul - context));
    }
    if (bad == len) return PC_OK;
    return err_set(PC_EFORMAT,
                   "byte %zu of the text (0x%02X) is not UTF-8: convert it first, as "
                   "with iconv -f LATIN1 -t UTF-8",
                   bad, (uint8_t)context[bad]);
}

static int words_check(const char *name, const char *text)
{
    size_t len = text ? strlen(text) : 0, bad = len ? utf8_invalid_at(text, len) : 0;
    if (bad == len) return PC_OK;
    return err_set(PC_EFORMAT, "byte %zu of the %s (0x%02X) is not UTF-8", bad, name,
                   (uint8_t)text[bad]);
}

/* ==== Places ==== */

static int offsets_fill(const struct Tokenizer *t, struct Slice text, struct Prompt *p)
{
    p->context_offset = mem_alloc((size_t)p->context.n + 1, sizeof(*p->context_offset));
    if (!p->context_offset) return PC_ENOMEM;
    token_places(t, p->context.ids, p->context.n, text, p->context_offset);
    return PC_OK;
}

/* The tail's tokens that have a byte of the question; the tail begins with the frame's `after`. */
static void score_range(const struct Tokenizer *t, const struct PromptFrame *frame,
                        struct Prompt *p)
{
    size_t at = 0, begin = frame->question_len ? frame->question_at : 0;
    size_t end = frame->question_len ? begin + frame->question_len : strlen(frame->after);
    for (int i = 0; i < p->tail.n && at < end; i++) {
        if (tokenizer_is_control(t, p->tail.ids[i])) break;
        token_span(t, p->tail.ids[i], (struct Slice){frame->after, end}, &at);
        if (at <= begin) p->score_begin = i + 1;
        p->score_end = i + 1;
    }
}

/* ==== The prompt ==== */

static int prefix_make(const struct Tokenizer *t, const struct PromptText *text,
                       const struct ChatText *chat, struct Prompt *out)
{
    const struct VocabSpec *spec = tokenizer_spec(t);
    if (spec->add_bos && spec->bos_id >= 0) TRY(tokens_push(&out->prefix, spec->bos_id));
    struct PartList list = {0};
    part_template(&list, &chat->lead);
    part_put(&list, chat->system.data, chat->system.len, false);
    part_template(&list, &chat->open);
    part_user(&list, text->frame->before);
    return tokenizer_encode_parts(t, list.parts, list.n, true, &out->prefix);
}

static int tail_make(const struct Tokenizer *t, const struct PromptText *text,
                     const struct ChatText *chat, struct Prompt *out)
{
    struct PartList list = {0};
    part_user(&list, text->frame->after);
    part_template(&list, &chat->close);
    part_user(&list, text->answer_prefix);
    TRY(tokenizer_encode_parts(t, list.parts, list.n, false, &out->tail));
    if (*text->frame->after) score_range(t, text->frame, out);
    return PC_OK;
}

static int context_make(const struct Tokenizer *t, const struct PromptText *text,
                        const struct ChatText *chat, struct Prompt *out)
{
    struct PartList list = {0};
    part_put(&list, text->context, text->context_len, false);
    bool begins = !chat->system.len && !chat->open.len && !*text->frame->before;
    if (text->stream) {
        TRY(text_stream_scan(text->stream, t, begins, text->least, &text->watch));
        out->context.n = text->stream->n_tokens;
        return PC_OK;
    }
    TRY(tokenizer_encode_parts(t, list.parts, list.n, begins, &out->context));
    return offsets_fill(t, (struct Slice){text->context, text->context_len}, out);
}

/* The answer is read off the tail's last row, so a tail without tokens takes the context's last
 * one. */
static int tail_fill(struct Prompt *p, struct TextStream *stream)
{
    if (p->tail.n) return PC_OK;
    if (!p->context.n) {
        return err_set(PC_ECONFIG,
                       "nothing to answer: give a text, a question or an answer prefix");
    }
    int last = --p->context.n;
    if (stream) TRY(text_stream_load(stream, last, last + 1));
    return tokens_push(&p->tail, stream ? *text_stream_ids(stream, last) : p->context.ids[last]);
}

static int parts_make(const struct Tokenizer *t, const struct PromptText *text, struct Prompt *out)
{
    struct ChatText chat = {0};
    int status = chat_wrap(text->chat, text->system, &chat);
    if (status == PC_OK) status = prefix_make(t, text, &chat, out);
    if (status == PC_OK) status = context_make(t, text, &chat, out);
    if (status == PC_OK) status = tail_make(t, text, &chat, out);
    if (status == PC_OK) status = tail_fill(out, text->stream);
    chat_text_free(&chat);
    return status;
}

/* The usual frame: the instruction above the context and the question below, a blank line between. */
static int plain_make(const struct Tokenizer *t, const struct PromptText *text, struct Prompt *out)
{
    struct Str before = {0}, after = {0};
    const char *instruction = text->instruction ? text->instruction : "";
    const char *question = text->question ? text->question : "";
    int status = str_appendf(&before, "%s%s", instruction, *instruction ? BLANK_LINE : "");
    if (status == PC_OK)
        status = str_appendf(&after, "%s%s", *question ? BLANK_LINE : "", question);
    if (status == PC_OK) {
        struct PromptFrame frame = {before.data, after.data, strlen(BLANK_LINE), strlen(question)};
        struct PromptText framed = *text;
        framed.frame = &frame;
        status = parts_make(t, &framed, out);
    }
    str_free(&before);
    str_free(&after);
    return status;
}

int prompt_make(const struct Tokenizer *t, const struct PromptText *text, struct Prompt *out)
{
    *out = (struct Prompt){0};
    TRY(context_check(text->context, text->context_len));
    TRY(words_check("question", text->question));
    TRY(words_check("instruction", text->instruction));
    TRY(words_check("answer prefix", text->answer_prefix));
    TRY(words_check("system message", text->system));
    if (!text->frame) return plain_make(t, text, out);
    TRY(words_check("prompt before the context", text->frame->before));
    TRY(words_check("prompt after the context", text->frame->after));
    return parts_make(t, text, out);
}

void prompt_free(struct Prompt *p)
{
    tokens_free(&p->prefix);
    tokens_free(&p->context);
    tokens_free(&p->tail);
    mem_free(p->context_offset);
    *p = (struct Prompt){0};
}

int prompt_words(const struct Tokenizer *t, const struct Prompt *p, struct Str *out)
{
    bool own = p->score_begin < p->score_end;
    for (int i = own ? p->score_begin : 0; i < (own ? p->score_end : p->tail.n); i++) {
        if (tokenizer_is_control(t, p->tail.ids[i])) continue;
        struct Slice piece = tokenizer_piece(t, p->tail.ids[i]);
        TRY(str_append(out, piece.data, piece.len));
    }
    return PC_OK;
}

/* prompt.h - a request's text cut into the parts the method needs, as token ids.
 *
 *   prefix  = BOS, what the chat template puts before the user's words, the instruction   (shared by all chunks)
 *   context = the long text                                                               (cut into chunks)
 *   tail    = blank line, the question, what the template puts after, the answer prefix   (appended to every chunk)
 *
 * The parts are tokenised apart, so a chunk's prefix never depends on its text.
 */
#ifndef PCOMP_PROMPT_H
#define PCOMP_PROMPT_H

#include "text_stream.h"
#include "tokenizer.h"

enum ChatTemplate {
    CHAT_RAW,
    CHAT_CHATML,
    CHAT_QWEN,
    CHAT_LLAMA2,
    CHAT_LLAMA3,
    CHAT_MISTRAL,
    CHAT_COUNT
};

/* A template and what differs between models that share it. */
struct Chat {
    enum ChatTemplate kind;
    char system[512]; /* its own default system message; "" for none */
    char system_lead
        [128];          /* stands before any system message, given or default (Llama-3.1's dates) */
    char user_lead[16]; /* llama-2, mistral: "[INST] " and " [/INST]" with the model's own spaces */
    char user_end[16];
    char answer_lead[16]; /* put into the assistant's mouth: "<think>\n" of thinking models */
};

const char *chat_name(enum ChatTemplate t); /* raw, chatml, qwen, llama-2, llama-3, mistral */
/* The template a stored jinja text stands for, by its tell-tale strings. Empty text: CHAT_RAW.
 * Unknown text: PC_EFORMAT with the remedy (--chat-template NAME). */
int chat_detect(struct Slice stored, struct Chat *out);
/* The plain form of a template: qwen has Qwen2.5's default system message, the others have none.
 * Unknown name: PC_ECONFIG with the nearest one. */
int chat_by_name(const char *name, struct Chat *out);
/* A single-turn chat, ready for the assistant to speak: lead, system, open, the user's words, close. */
struct ChatText {
    struct Str lead, system, open, close;
};

/* system NULL or "": the template's own default; "none": no system message at all. The joined text is byte-equal
 * to the jinja rendering with add_generation_prompt, but for the BOS text, which is added as an id, and for
 * templates that trim the user's words, which stay as they are. A raw chat has the system message and a blank
 * line, else nothing. chat_text_free frees *out, also after an error. */
int chat_wrap(const struct Chat *chat, const char *system, struct ChatText *out);
void chat_text_free(struct ChatText *text);

struct Prompt {
    struct Tokens prefix, context, tail;
    int score_begin,
        score_end; /* tail tokens that touch the user's own question words; empty range if none */
    size_t *
        context_offset; /* [context.n + 1] byte where each context token begins in the context text */
};

/* The words around the context when the caller brings a whole prompt, as benchmarks do. */
struct PromptFrame {
    const char *before, *after;       /* prompt = before, context, after */
    size_t question_at, question_len; /* the user's own words in `after`; len 0: all of it */
};

struct PromptText {
    const char *context;
    size_t context_len;
    struct TextStream *stream; /* takes the context's place; or NULL */
    int least;                 /* tokens of it that must be known; INT_MAX: all */
    struct ScanWatch watch;    /* while it is scanned */
    const char *question, *instruction, *answer_prefix; /* NULL or "" for none */
    const char *system;                                 /* as in chat_wrap */
    const struct Chat *chat;
    const struct PromptFrame *frame; /* takes the place of question and instruction; or NULL */
};

/* Splits and tokenises. Only the template's own words may become control tokens. Without a question the
 * tail has no blank line either; a tail that would be empty takes over the context's last token, since
 * the answer is read off the tail's last row. Of a stream the tokens are counted: context.ids and context_offset stay
 * NULL. prompt_free frees what was made, also after an error. */
int prompt_make(const struct Tokenizer *t, const struct PromptText *text, struct Prompt *out);
void prompt_free(struct Prompt *p);
/* Appends the user's own words, as the tail holds them; without any, all that follows a chunk. */
int prompt_words(const struct Tokenizer *t, const struct Prompt *p, struct Str *out);

#endif

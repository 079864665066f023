/* chat.c - built-in chat templates, chosen by looking at the one stored in the model.
 *
 * A stored template is a jinja program. We do not run it: we recognise which family it is by the
 * marks it writes, take the few facts that differ within a family out of its string literals, and
 * render with the table below. What is not recognised is refused, for a wrong template costs
 * quality silently.
 */
#include "prompt.h"

#include <string.h>

/* ==== Families ==== */

/* With a system message: lead, system, gap, user, close. Without one: bare, user, close. In the
 * two families with brackets the model's own user_lead stands before lead and bare, user_end
 * before close. */
static const struct {
    const char *name, *lead, *gap, *bare, *close;
} FORMS[CHAT_COUNT] = {
    [CHAT_RAW] = {"raw", "", "\n\n", "", ""},
    [CHAT_CHATML] = {"chatml", "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n",
                     "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"},
    [CHAT_QWEN] = {"qwen", "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n",
                   "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"},
    [CHAT_LLAMA2] = {"llama-2", "<<SYS>>\n", "\n<</SYS>>\n\n", "", ""},
    [CHAT_LLAMA3] = {"llama-3", "<|start_header_id|>system<|end_header_id|>\n\n",
                     "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
                     "<|start_header_id|>user<|end_header_id|>\n\n",
                     "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    [CHAT_MISTRAL] = {"mistral", "", "\n\n", "", ""},
};

static const char USER_LEAD[] = "[INST] ", USER_END[] = " [/INST]";
static const char QWEN_SYSTEM[] =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
/* Llama-3.1 to 3.3 write a cut-off date and today's. We write the day that the template falls
 * back to when it cannot ask for the date, so that runs repeat. */
static const char LLAMA31_DATES[] =
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

const char *chat_name(enum ChatTemplate t)
{
    return t < CHAT_COUNT ? FORMS[t].name : "?";
}

static void chat_init(struct Chat *chat, enum ChatTemplate kind)
{
    *chat = (struct Chat){.kind = kind};
    if (kind != CHAT_LLAMA2 && kind != CHAT_MISTRAL) return;
    memcpy(chat->user_lead, USER_LEAD, sizeof(USER_LEAD));
    memcpy(chat->user_end, USER_END, sizeof(USER_END));
}

int chat_by_name(const char *name, struct Chat *out)
{
    int nearest = 0, least = -1;
    for (int kind = 0; kind < CHAT_COUNT; kind++) {
        int distance = word_distance(name, FORMS[kind].name);
        if (distance == 0) {
            chat_init(out, (enum ChatTemplate)kind);
            if (kind == CHAT_QWEN) memcpy(out->system, QWEN_SYSTEM, sizeof(QWEN_SYSTEM));
            return PC_OK;
        }
        if (least < 0 || distance < least) {
            least = distance;
            nearest = kind;
        }
    }
    return err_set(
        PC_ECONFIG,
        "no chat template '%s', did you mean '%s'? (raw, chatml, qwen, llama-2, llama-3, "
        "mistral)",
        name, FORMS[nearest].name);
}

/* ==== Reading a stored template ==== */

/* Where text first stands at or behind `from`; NULL when nowhere. */
static const char *stored_find(struct Slice stored, const char *from, const char *text)
{
    return memmem(from, (size_t)(stored.data + stored.len - from), text, strlen(text));
}

static bool stored_has(struct Slice stored, const char *text)
{
    return stored_find(stored, stored.data, text) != NULL;
}

/* Copies jinja source from `at` up to the text `stop`, resolving backslashes. quote: the quotation
 * mark of the literal that `at` lies in, or 0 outside of literals. Returns the length; 0 when the
 * literal ends before `stop`, -1 when out is too small. */
static int literal_copy(const char *at, const char *stop, char quote, char *out, int cap)
{
    int n = 0;
    for (; at < stop; at++) {
        char c = *at;
        if (quote ? c == quote : c == '{') return 0;
        if (quote && c == '\\' && at + 1 < stop) {
            c = *++at;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        if (n == cap - 1) return -1;
        out[n++] = c;
    }
    out[n] = '\0';
    return n;
}

/* The default system message of a ChatML template: the words that it writes itself between the
 * system header and the end mark. */
static int chatml_system(struct Slice stored, struct Chat *chat)
{
    static const char HEADER[] = "<|im_start|>system";
    const char *end = stored.data + stored.len, *next = stored.data;
    for (;;) {
        const char *at = stored_find(stored, next, HEADER);
        if (!at) return PC_OK;
        next = at + sizeof(HEADER) - 1;
        const char *stop = stored_find(stored, next, "<|im_end|>");
        if (!stop) return PC_OK;
        char before = at > stored.data ? at[-1] : 0;
        char quote = before == '\'' || before == '"' ? before : 0;
        bool escaped = end - next > 2 && next[0] == '\\' && next[1] == 'n';
        if (!escaped && *next != '\n') continue;
        int n = literal_copy(next + (escaped ? 2 : 1), stop, quote, chat->system,
                             (int)sizeof(chat->system));
        if (n > 0) return PC_OK;
        chat->system[0] = '\0';
        if (n < 0) {
            return err_set(PC_EFORMAT,
                           "the chat template's system message is longer than %zu bytes; "
                           "name the template: --chat-template chatml",
                           sizeof(chat->system) - 1);
        }
    }
}

/* Finds the literal that is `mark` with at most one space on either side, and copies it. */
static void bracket_copy(struct Slice stored, const char *mark, char *out)
{
    size_t n_mark = strlen(mark);
    const char *end = stored.data + stored.len, *at = stored.data;
    while ((at = stored_find(stored, at, mark)) != NULL) {
        const char *begin = at, *stop = at + n_mark;
        at = stop;
        if (begin > stored.data && begin[-1] == ' ') begin--;
        if (stop < end && *stop == ' ') stop++;
        if (begin == stored.data || stop == end) continue;
        if ((begin[-1] != '\'' && begin[-1] != '"') || *stop != begin[-1]) continue;
        memcpy(out, begin, (size_t)(stop - begin));
        out[stop - begin] = '\0';
        return;
    }
}

static int detect_chatml(struct Slice stored, struct Chat *out)
{
    bool qwen = stored_has(stored, "You are Qwen") || stored_has(stored, "<tool_response>");
    chat_init(out, qwen ? CHAT_QWEN : CHAT_CHATML);
    if (stored_has(stored, "<|im_start|>assistant\\n<think>\\n'") ||
        stored_has(stored, "<|im_start|>assistant\\n<think>\\n\""))
        memcpy(out->answer_lead, "<think>\n", sizeof("<think>\n"));
    return chatml_system(stored, out);
}

int chat_detect(struct Slice stored, struct Chat *out)
{
    chat_init(out, CHAT_RAW);
    if (!stored.len) return PC_OK;
    if (stored_has(stored, "<|im_start|>") && !stored_has(stored, "<|im_sep|>"))
        return detect_chatml(stored, out);
    if (stored_has(stored, "<|start_header_id|>") && stored_has(stored, "<|eot_id|>")) {
        out->kind = CHAT_LLAMA3;
        if (stored_has(stored, "Cutting Knowledge Date: December 2023"))
            memcpy(out->system_lead, LLAMA31_DATES, sizeof(LLAMA31_DATES));
        return PC_OK;
    }
    if (stored_has(stored, "[INST]") && !stored_has(stored, "[SYSTEM_PROMPT]")) {
        chat_init(out, stored_has(stored, "<<SYS>>") ? CHAT_LLAMA2 : CHAT_MISTRAL);
        bracket_copy(stored, "[INST]", out->user_lead);
        bracket_copy(stored, "[/INST]", out->user_end);
        return PC_OK;
    }
    return err_set(PC_EFORMAT, "the model's chat template is none of those known here; name one: "
                               "--chat-template raw|chatml|qwen|llama-2|llama-3|mistral");
}

/* ==== Rendering ==== */

static int text_add(struct Str *to, const char *text)
{
    return str_append(to, text, strlen(text));
}

int chat_wrap(const struct Chat *chat, const char *system, struct ChatText *out)
{
    bool own = !system || !*system, none = !own && strcmp(system, "none") == 0;
    if (own) system = chat->system;
    if (!none && (*system || *chat->system_lead)) {
        TRY(text_add(&out->lead, chat->user_lead));
        TRY(text_add(&out->lead, FORMS[chat->kind].lead));
        TRY(text_add(&out->lead, chat->system_lead));
        TRY(text_add(&out->system, system));
        TRY(text_add(&out->open, FORMS[chat->kind].gap));
    } else {
        TRY(text_add(&out->open, chat->user_lead));
        TRY(text_add(&out->open, FORMS[chat->kind].bare));
    }
    TRY(text_add(&out->close, chat->user_end));
    TRY(text_add(&out->close, FORMS[chat->kind].close));
    return text_add(&out->close, chat->answer_lead);
}

void chat_text_free(struct ChatText *text)
{
    str_free(&text->lead);
    str_free(&text->system);
    str_free(&text->open);
    str_free(&text->close);
}

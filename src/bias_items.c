/* bias_items.c - see bias_items.h. A question quotes a sentence and asks for the one behind it: its answer is known
 * without anyone's labels, stands in one place of the text, and can only be had from there.
 */
#include "bias_items.h"

#include <string.h>

/* Bytes of a sentence that is quoted or asked for: neither a heading nor a page. */
enum { SENTENCE_LEAST = 30, SENTENCE_MOST = 400 };

struct Span {
    size_t begin, end;
};

struct Spans {
    struct Span *list;
    int n, cap;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static int push_span(struct Spans *spans, size_t begin, size_t end)
{
    if (spans->n == spans->cap) {
        int cap = spans->cap ? 2 * spans->cap : 64;
        struct Span *list = mem_grow(spans->list, (size_t)spans->cap, (size_t)cap, sizeof *list);
        if (!list) return PC_ENOMEM;
        spans->list = list;
        spans->cap = cap;
    }
    spans->list[spans->n++] = (struct Span){begin, end};
    return PC_OK;
}

/* Whether a sentence ends with the byte at i: its mark, perhaps a closing quote, and then space or nothing. */
static bool sentence_ends(const char *text, size_t len, size_t i)
{
    if (text[i] != '.' && text[i] != '!' && text[i] != '?') return false;
    return i + 1 == len || is_space(text[i + 1]);
}

/* All sentences, without the space around them. An empty line ends one too. */
static int find_sentences(const char *text, size_t len, struct Spans *out)
{
    size_t begin = 0;
    for (size_t i = 0; i < len; i++) {
        if (begin == i && is_space(text[i])) {
            begin = i + 1;
            continue;
        }
        bool gap = text[i] == '\n' && i + 1 < len && text[i + 1] == '\n';
        if (!gap && !sentence_ends(text, len, i)) continue;
        TRY(push_span(out, begin, gap ? i : i + 1));
        begin = i + 1;
    }
    return PC_OK;
}

static bool usable(const struct Span *s)
{
    return s->end - s->begin >= SENTENCE_LEAST && s->end - s->begin <= SENTENCE_MOST;
}

/* Appends a sentence on one line. */
static int one_line(struct Str *out, const char *text, const struct Span *s)
{
    bool space = false;
    for (size_t i = s->begin; i < s->end; i++) {
        bool white = is_space(text[i]);
        if (!(white && space)) TRY(str_append(out, white ? " " : text + i, 1));
        space = white;
    }
    return PC_OK;
}

/* Whether a sentence on one line stands twice in a text on one line. */
static bool repeated(const struct Str *flat, const char *sentence, size_t n)
{
    const char *first = memmem(flat->data, flat->len, sentence, n);
    if (!first) return false;
    size_t behind = (size_t)(first - flat->data) + 1;
    return memmem(flat->data + behind, flat->len - behind, sentence, n) != NULL;
}

/* The question of a sentence and the next one; out->n stays as it is when they make none. flat: the text on one line. */
static int make_item(const char *text, const struct Str *flat, const struct Span *s,
                     struct BiasItems *out)
{
    static const char ask[] = "Which sentence of the text comes right after this one? \"";
    struct BiasItem *item = &out->items[out->n];
    if (!usable(&s[0]) || !usable(&s[1])) return PC_OK;
    str_clear(&item->question);
    TRY(str_appendf(&item->question, "%s", ask));
    TRY(one_line(&item->question, text, &s[0]));
    size_t quoted = sizeof ask - 1;
    if (repeated(flat, item->question.data + quoted, item->question.len - quoted)) return PC_OK;
    TRY(str_append(&item->question, "\"", 1));
    TRY(one_line(&item->answer, text, &s[1]));
    item->at = s[0].begin;
    out->n++;
    return PC_OK;
}

/* Of each n-th of the sentences the first that makes a question. */
static int spread(const char *text, const struct Str *flat, const struct Spans *spans, int n,
                  struct BiasItems *out)
{
    for (int i = 0; i < n; i++) {
        int had = out->n, begin = (int)((int64_t)spans->n * i / n),
            end = (int)((int64_t)spans->n * (i + 1) / n);
        for (int s = begin; s < end && s + 1 < spans->n && out->n == had; s++)
            TRY(make_item(text, flat, &spans->list[s], out));
    }
    return PC_OK;
}

int items_make(const char *text, size_t len, int n, struct BiasItems *out)
{
    const struct Span whole = {0, len};
    struct Spans spans = {0};
    struct Str flat = {0};
    *out = (struct BiasItems){.items = mem_alloc((size_t)n, sizeof *out->items), .cap = n};
    int status = out->items ? find_sentences(text, len, &spans) : PC_ENOMEM;
    if (status == PC_OK) status = one_line(&flat, text, &whole);
    if (status == PC_OK) status = spread(text, &flat, &spans, n, out);
    str_free(&flat);
    mem_free(spans.list);
    if (status == PC_OK && out->n < 2)
        return err_set(PC_ERANGE,
                       "the text makes %d questions of its own sentences, and two are needed; give "
                       "a longer text, or questions with -q",
                       out->n);
    return status;
}

int items_take(const char *const *questions, int n, struct BiasItems *out)
{
    *out = (struct BiasItems){.items = mem_alloc((size_t)n, sizeof *out->items), .cap = n};
    if (!out->items) return PC_ENOMEM;
    for (; out->n < n; out->n++)
        TRY(str_append(&out->items[out->n].question, questions[out->n], strlen(questions[out->n])));
    if (n < 2)
        return err_set(PC_ECONFIG, "one question cannot both choose rules and judge them; give "
                                   "-q twice or more, or not at all");
    return PC_OK;
}

void items_free(struct BiasItems *items)
{
    for (int i = 0; items->items && i < items->cap; i++) {
        str_free(&items->items[i].question);
        str_free(&items->items[i].answer);
    }
    mem_free(items->items);
    *items = (struct BiasItems){0};
}

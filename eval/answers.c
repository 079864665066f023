/* answers.c - see answers.h */
#include "answers.h"

#include <string.h>

/* ==== Normal form ==== */

/* What a byte of a text means to its normal form. */
enum Kind { KIND_OTHER, KIND_WORD, KIND_SPACE, KIND_PUNCT, KIND_LONG };

static const uint8_t KINDS[256] = {
    ['\t' ... '\r'] = KIND_SPACE, [0x1C ... ' '] = KIND_SPACE, ['!' ... '/'] = KIND_PUNCT,
    ['0' ... '9'] = KIND_WORD,    [':' ... '@'] = KIND_PUNCT,  ['A' ... 'Z'] = KIND_WORD,
    ['[' ... '`'] = KIND_PUNCT,   ['a' ... 'z'] = KIND_WORD,   ['{' ... '~'] = KIND_PUNCT,
    [0x80 ... 0xFF] = KIND_LONG,
};

static enum Kind kind_at(const char *text, size_t at)
{
    return (enum Kind)KINDS[(unsigned char)text[at]];
}

/* Letters lowered, digits left: these have the case bit already. */
static char lower_word_byte(char c)
{
    return (char)(c | 0x20);
}

/* The text so far. An article is a whole run of word characters, so it may also end or begin in the middle
 * of what white space bounds: it is a space itself. */
struct Writer {
    char *begin, *to;
    char *run;  /* where the run of word characters at hand begins, NULL outside one */
    bool space; /* comes before whatever comes next */
};

static bool is_article(const char *word, size_t len)
{
    return (len == 1 && word[0] == 'a') || (len == 2 && memcmp(word, "an", 2) == 0) ||
           (len == 3 && memcmp(word, "the", 3) == 0);
}

static void write_space(struct Writer *w)
{
    if (w->space && w->to > w->begin) *w->to++ = ' ';
    w->space = false;
}

static void begin_run(struct Writer *w)
{
    if (w->run) return;
    write_space(w);
    w->run = w->to;
}

static void end_run(struct Writer *w)
{
    if (w->run && is_article(w->run, (size_t)(w->to - w->run))) {
        w->to = w->run;
        w->to -= w->to > w->begin && w->to[-1] == ' ';
        w->space = true;
    }
    w->run = NULL;
}

static void write_point(struct Writer *w, uint32_t cp)
{
    bool word = py_is_word(cp);
    if (word)
        begin_run(w);
    else
        end_run(w);
    if (!word && py_is_space(cp)) {
        w->space = true;
        return;
    }
    write_space(w);
    w->to += py_encode(cp, w->to);
}

/* Room for any text in lower case (two bytes may become three), and for a space more. */
static int reserve_lower(struct Str *out, size_t len)
{
    size_t room;
    if (!size_add(len, len / 2 + 8, &room)) return err_set(PC_ENOMEM, "the text is too long");
    return str_reserve(out, room);
}

int answer_normalize(const char *text, size_t len, struct Str *out)
{
    TRY(reserve_lower(out, len));
    char *begin = out->data + out->len;
    struct Writer w = {.begin = begin, .to = begin};
    for (size_t at = 0; at < len;) {
        uint32_t lower[2];
        switch (kind_at(text, at)) {
        case KIND_WORD:
            begin_run(&w);
            while (at < len && kind_at(text, at) == KIND_WORD)
                *w.to++ = lower_word_byte(text[at++]);
            break;
        case KIND_PUNCT: /* what stood around it is one word */
            at++;
            break;
        case KIND_SPACE:
            end_run(&w);
            w.space = true;
            at++;
            break;
        case KIND_OTHER:
            write_point(&w, (unsigned char)text[at++]);
            break;
        case KIND_LONG:
            for (int n = py_lower_next(text, len, &at, lower), i = 0; i < n; i++)
                write_point(&w, lower[i]);
            break;
        }
    }
    end_run(&w);
    out->len = (size_t)(w.to - out->data);
    out->data[out->len] = '\0';
    return PC_OK;
}

/* ==== Chinese ==== */

/* The scorers' Chinese punctuation: a fixed list with gaps (《 and 〈〉 are kept). */
static bool is_zh_punct(uint32_t cp)
{
    static const struct {
        uint32_t first, last;
    } MARKS[] = {
        {0x2013, 0x2014}, {0x2018, 0x2019}, {0x201B, 0x201F}, {0x2026, 0x2027}, {0x3001, 0x3003},
        {0x300B, 0x3011}, {0x3014, 0x301F}, {0x3030, 0x3030}, {0x303E, 0x303F}, {0xFE4F, 0xFE4F},
        {0xFF01, 0xFF0D}, {0xFF0F, 0xFF0F}, {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF64},
    };
    for (size_t i = 0; i < sizeof MARKS / sizeof MARKS[0] && cp >= MARKS[i].first; i++)
        if (cp <= MARKS[i].last) return true;
    return false;
}

static int normalize_zh(const char *text, size_t len, bool apart, struct Str *out)
{
    size_t room = len;
    if (apart && !size_mul(len, 2, &room)) return err_set(PC_ENOMEM, "the text is too long");
    TRY(reserve_lower(out, room));
    char *to = out->data + out->len;
    for (size_t at = 0; at < len;) {
        uint32_t lower[2];
        enum Kind kind = kind_at(text, at);
        int n = py_lower_next(text, len, &at, lower);
        if (kind == KIND_SPACE || kind == KIND_PUNCT) continue;
        for (int i = 0; i < n; i++) {
            if (kind == KIND_LONG && (is_zh_punct(lower[i]) || py_is_space(lower[i]))) continue;
            to += py_encode(lower[i], to);
            if (apart) *to++ = ' ';
        }
    }
    out->len = (size_t)(to - out->data);
    out->data[out->len] = '\0';
    return PC_OK;
}

int answer_normalize_zh(const char *text, size_t len, struct Str *out)
{
    return normalize_zh(text, len, false, out);
}

int answer_chars_zh(const char *text, size_t len, struct Str *out)
{
    return normalize_zh(text, len, true, out);
}

/* ==== F1 ==== */

/* Next word from *at between spaces. */
static bool next_word(const struct Str *text, size_t *at, struct Span *word)
{
    size_t from = *at;
    while (from < text->len && text->data[from] == ' ') from++;
    size_t to = from;
    while (to < text->len && text->data[to] != ' ') to++;
    *word = (struct Span){text->data + from, to - from};
    *at = to;
    return to > from;
}

void bag_open(struct Bag *bag)
{
    lexicon_open(&bag->lex);
    bag->n = 0;
}

int bag_fill(struct Bag *bag, const struct Str *words)
{
    struct Span word;
    for (size_t at = 0; next_word(words, &at, &word); bag->n++) {
        int64_t id = lexicon_add(&bag->lex, word);
        if (id < 0) return PC_ENOMEM;
        bag->lex.words[id].count++;
    }
    return PC_OK;
}

/* Takes the words of a text out of the bag, below nothing too; returns how many were in it. */
static size_t take_out(struct Bag *bag, const struct Str *words, size_t *n)
{
    struct Span word;
    size_t same = 0;
    *n = 0;
    for (size_t at = 0; next_word(words, &at, &word); ++*n) {
        int64_t id = lexicon_find(&bag->lex, word);
        if (id >= 0) same += bag->lex.words[id].count-- > 0;
    }
    return same;
}

static void put_back(struct Bag *bag, const struct Str *words)
{
    struct Span word;
    for (size_t at = 0; next_word(words, &at, &word);) {
        int64_t id = lexicon_find(&bag->lex, word);
        if (id >= 0) bag->lex.words[id].count++;
    }
}

double bag_f1(struct Bag *bag, const struct Str *words)
{
    size_t n, same = take_out(bag, words, &n);
    put_back(bag, words);
    if (!same) return 0;
    double precision = (double)same / (double)bag->n;
    double recall = (double)same / (double)n;
    return (2 * precision * recall) / (precision + recall);
}

void bag_close(struct Bag *bag)
{
    lexicon_close(&bag->lex);
}

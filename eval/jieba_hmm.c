/* jieba_hmm.c - the tables of the segmenter's hidden Markov model, read from the Python files that
 * jieba ships: `P={'B': {'\u4e00': -3.65, …}, …}`, log probabilities by state and character.
 *
 * Of Python only what such a file needs is understood: lines before the one that begins with P, then
 * dictionaries of one-character strings and numbers.
 */
#include "jieba_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct Literal {
    const char *name; /* of the file */
    const char *at, *end;
    long line;
    struct JiebaHmm *hmm;
    enum HmmState from; /* of the inner dictionary */
    unsigned seen;      /* bit by state: keys of the outer dictionary */
};

static int literal_error(const struct Literal *l, const char *what)
{
    return err_set(PC_EFORMAT, "%s line %ld: %s; `make jieba` fetches the right file", l->name,
                   l->line, what);
}

/* ==== Tokens ==== */

static void skip_space(struct Literal *l)
{
    for (; l->at < l->end && (*l->at == ' ' || (*l->at >= '\t' && *l->at <= '\r')); l->at++)
        l->line += *l->at == '\n';
}

/* Takes c when it comes next. */
static bool take(struct Literal *l, char c)
{
    skip_space(l);
    if (l->at == l->end || *l->at != c) return false;
    l->at++;
    return true;
}

static int expect(struct Literal *l, char c)
{
    char text[32] = "expected ' '";
    text[10] = c;
    return take(l, c) ? PC_OK : literal_error(l, text);
}

static int escape(struct Literal *l, uint32_t *c)
{
    if (l->end - l->at < 6 || l->at[1] != 'u')
        return literal_error(l, "of escapes only \\uXXXX is known");
    *c = 0;
    for (int i = 2; i < 6; i++) {
        char x = l->at[i];
        int digit = x >= '0' && x <= '9'   ? x - '0'
                    : x >= 'a' && x <= 'f' ? x - 'a' + 10
                    : x >= 'A' && x <= 'F' ? x - 'A' + 10
                                           : -1;
        if (digit < 0) return literal_error(l, "\\u needs four hexadecimal digits");
        *c = *c << 4 | (uint32_t)digit;
    }
    l->at += 6;
    return PC_OK;
}

/* A string of one character: an ASCII one or an escape. */
static int take_key(struct Literal *l, uint32_t *c)
{
    skip_space(l);
    if (l->at == l->end || (*l->at != '\'' && *l->at != '"'))
        return literal_error(l, "expected a string");
    char quote = *l->at++;
    if (l->at < l->end && *l->at == '\\') {
        TRY(escape(l, c));
    } else {
        if (l->at == l->end || *l->at == quote || *l->at < ' ')
            return literal_error(l, "expected a string of one character, ASCII or \\uXXXX");
        *c = (unsigned char)*l->at++;
    }
    if (l->at == l->end || *l->at != quote)
        return literal_error(l, "the string has more than one character or no end");
    l->at++;
    return PC_OK;
}

static int take_number(struct Literal *l, double *out)
{
    char text[64];
    size_t n = 0;
    skip_space(l);
    while (l->at < l->end && n < sizeof text - 1 && *l->at && strchr("0123456789+-.eE", *l->at))
        text[n++] = *l->at++;
    text[n] = '\0';
    char *end;
    *out = strtod(text, &end);
    if (n == 0 || *end || !isfinite(*out)) return literal_error(l, "expected a finite number");
    return PC_OK;
}

/* ==== Dictionaries ==== */

typedef int (*TakeValue)(struct Literal *l, uint32_t key);

static int take_dict(struct Literal *l, TakeValue value)
{
    TRY(expect(l, '{'));
    for (bool more = true; more; more = take(l, ',')) {
        if (take(l, '}')) return PC_OK;
        uint32_t key = 0;
        TRY(take_key(l, &key));
        TRY(expect(l, ':'));
        TRY(value(l, key));
    }
    return expect(l, '}');
}

static int state_of(const struct Literal *l, uint32_t key, enum HmmState *state)
{
    static const char names[] = "BEMS";
    const char *found = key && key < 128 ? strchr(names, (int)key) : NULL;
    if (!found) return literal_error(l, "a state is one of B, E, M and S");
    *state = (enum HmmState)(found - names);
    return PC_OK;
}

/* A state as key of the outer dictionary. */
static int take_from(struct Literal *l, uint32_t key)
{
    TRY(state_of(l, key, &l->from));
    l->seen |= 1u << l->from;
    return PC_OK;
}

static int start_value(struct Literal *l, uint32_t key)
{
    TRY(take_from(l, key));
    return take_number(l, &l->hmm->start[l->from]);
}

static int trans_inner(struct Literal *l, uint32_t key)
{
    enum HmmState to = HMM_B;
    TRY(state_of(l, key, &to));
    return take_number(l, &l->hmm->trans[l->from][to]);
}

static int trans_value(struct Literal *l, uint32_t key)
{
    TRY(take_from(l, key));
    return take_dict(l, trans_inner);
}

/* Only Chinese characters ever reach the model; what else the table lists is passed over. */
static int emit_inner(struct Literal *l, uint32_t key)
{
    double p;
    TRY(take_number(l, &p));
    if (is_han(key)) l->hmm->emit[key - HAN_FIRST][l->from] = p;
    return PC_OK;
}

static int emit_value(struct Literal *l, uint32_t key)
{
    TRY(take_from(l, key));
    return take_dict(l, emit_inner);
}

/* Goes on to what follows `P=` at the begin of a line. */
static int find_start(struct Literal *l)
{
    while (l->at < l->end) {
        if (*l->at == 'P') {
            l->at++;
            return expect(l, '=');
        }
        const char *feed = memchr(l->at, '\n', (size_t)(l->end - l->at));
        l->at = feed ? feed + 1 : l->end;
        l->line++;
    }
    return literal_error(l, "no line begins with P=");
}

int jieba_hmm_parse(const char *name, const char *data, size_t len, enum HmmTable table,
                    struct JiebaHmm *h)
{
    static const TakeValue values[HMM_TABLES] = {start_value, trans_value, emit_value};
    struct Literal l = {.name = name, .at = data, .end = data + len, .line = 1, .hmm = h};
    TRY(find_start(&l));
    TRY(take_dict(&l, values[table]));
    skip_space(&l);
    if (l.at != l.end) return literal_error(&l, "something follows the dictionary");
    if (l.seen != (1u << HMM_STATES) - 1)
        return literal_error(&l, "not all of the states B, E, M and S are there");
    return PC_OK;
}

int jieba_hmm_read(const char *path, enum HmmTable table, struct JiebaHmm *h)
{
    struct FileMap map;
    TRY(file_map(path, &map));
    int status = jieba_hmm_parse(path, (const char *)map.data, map.len, table, h);
    file_unmap(&map);
    return status;
}

int jieba_hmm_init(struct JiebaHmm *h)
{
    h->emit = mem_alloc(N_HAN, sizeof *h->emit);
    if (!h->emit) return PC_ENOMEM;
    for (int s = 0; s < HMM_STATES; s++) {
        h->start[s] = HMM_NEVER;
        for (int to = 0; to < HMM_STATES; to++) h->trans[s][to] = HMM_NEVER;
        for (int c = 0; c < N_HAN; c++) h->emit[c][s] = HMM_NEVER;
    }
    return PC_OK;
}

void jieba_hmm_free(struct JiebaHmm *h)
{
    mem_free(h->emit);
    h->emit = NULL;
}

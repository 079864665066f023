/* gen_hay.c - needles in a haystack: a text, or one line again and again, cut to a number of tokens.
 *
 * The haystack is tokenised once, as far as it is needed, and only the ends of its tokens are kept. A cut
 * is made between two words, where the tokens before it stay what they are, and what is then missing is
 * filled with the beginning of the next word or with a short word. Needles go where a sentence (or a
 * line) ends, as near as may be to their depth.
 */
#include "gen_task.h"

#include <stdlib.h>
#include <string.h>

enum { LEAST_HAY = 16 }; /* tokens: less is no haystack */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool char_begins(char c)
{
    return ((unsigned char)c & 0xC0) != 0x80;
}

/* ==== One cycle ==== */

/* Bytes of text up to a whole character, at most `most`. */
static size_t prefix_len(const struct Str *text, size_t most)
{
    if (most >= text->len) return text->len;
    while (most && !char_begins(text->data[most])) most--;
    return most;
}

/* Runs of white space become one space, and none begins or ends the text. */
static int collapse(const char *text, size_t len, struct Str *out)
{
    TRY(str_reserve(out, len));
    for (size_t i = 0; i < len; i++) {
        bool space = is_space(text[i]);
        if (!space)
            out->data[out->len++] = text[i];
        else if (out->len && out->data[out->len - 1] != ' ')
            out->data[out->len++] = ' ';
    }
    while (out->len && out->data[out->len - 1] == ' ') out->len--;
    out->data[out->len] = '\0';
    return PC_OK;
}

/* Where each token ends. A SentencePiece vocabulary puts a space of its own in front. */
static int hay_index(struct Gen *g, struct Hay *hay)
{
    TRY(gen_count(g, hay->text.data, hay->text.len, &hay->n));
    mem_free(hay->ends);
    hay->ends = mem_alloc((size_t)hay->n + 1, sizeof *hay->ends);
    if (!hay->ends) return PC_ENOMEM;
    size_t end = 0, total = 0;
    for (int64_t i = 0; i < hay->n; i++) total += tokenizer_piece(g->tok, g->ids.ids[i]).len;
    size_t extra = total == hay->text.len + 1 ? 1 : 0;
    if (total != hay->text.len + extra)
        return err_set(PC_EFORMAT, "the vocabulary does not spell the haystack byte for byte");
    for (int64_t i = 0; i < hay->n; i++) {
        end += tokenizer_piece(g->tok, g->ids.ids[i]).len;
        hay->ends[i] = end > extra ? end - extra : 0;
    }
    return PC_OK;
}

static int hay_text(struct Hay *hay, const struct HayJob *job, const char *text, size_t len,
                    bool whole)
{
    str_clear(&hay->text);
    if (job->collapse)
        TRY(collapse(text, len, &hay->text));
    else
        TRY(str_append(&hay->text, text, len));
    size_t solid = 0;
    for (size_t i = 0; i < hay->text.len && !solid; i++) solid = !is_space(hay->text.data[i]);
    if (!solid) return err_set(PC_ECONFIG, "the text to hide in is white space only");
    if (!whole || job->line) return PC_OK;
    return job->collapse ? str_append(&hay->text, " ", 1) : str_append(&hay->text, "\n\n", 2);
}

/* Opens as much of the haystack as `want` tokens need. */
static int hay_open(struct Gen *g, const struct HayJob *job, int64_t want, struct Hay *hay)
{
    struct Str line = {.data = (char *)job->line, .len = job->line ? strlen(job->line) : 0};
    const struct Str *from = job->line ? &line : g->spec->haystack;
    hay->kind = job->kind;
    for (size_t most = (size_t)want * 6 + 4096;; most *= 2) {
        size_t len = prefix_len(from, most);
        TRY(hay_text(hay, job, from->data, len, len == from->len));
        TRY(hay_index(g, hay));
        if (hay->n > want + LEAST_HAY || len == from->len) return PC_OK;
    }
}

static void hay_close(struct Hay *hay)
{
    str_free(&hay->text);
    mem_free(hay->ends);
}

/* The text without end: its bytes, and where its first k tokens end. */
static char hay_byte(const struct Hay *hay, size_t at)
{
    return hay->text.data[at % hay->text.len];
}

static size_t hay_end(const struct Hay *hay, int64_t k)
{
    size_t whole = (size_t)(k / hay->n) * hay->text.len;
    int64_t rest = k % hay->n;
    return rest ? whole + hay->ends[rest - 1] : whole;
}

static int hay_copy(const struct Hay *hay, size_t from, size_t to, struct Str *out)
{
    while (from < to) {
        size_t at = from % hay->text.len, len = hay->text.len - at;
        if (len > to - from) len = to - from;
        TRY(str_append(out, hay->text.data + at, len));
        from += len;
    }
    return PC_OK;
}

/* ==== Cutting ==== */

struct Cut {
    size_t at;       /* bytes of haystack */
    struct Str fill; /* what follows them */
    int64_t tokens;  /* of both */
};

/* A word ends at `at` and a space follows, so the tokens before it are those of the uncut text. */
static bool cut_clean(const struct Hay *hay, size_t at)
{
    return at > 0 && !is_space(hay_byte(hay, at - 1)) && is_space(hay_byte(hay, at));
}

/* Makes fill of exactly `want` tokens: the next word's beginning, else a short word again and again. */
static int cut_fill(struct Gen *g, const struct Hay *hay, int64_t k, int64_t want, struct Cut *cut)
{
    static const char *const WORDS[] = {" a", " I", " so", " it", "."};
    int64_t n;
    size_t end = hay_end(hay, k + want);
    if (char_begins(hay_byte(hay, end))) {
        TRY(hay_copy(hay, cut->at, end, &cut->fill));
        TRY(gen_count_after(g, "the end", &cut->fill, &n));
        if (n == want) return PC_OK;
    }
    for (size_t w = 0; w < sizeof WORDS / sizeof *WORDS; w++) {
        str_clear(&cut->fill);
        for (int64_t i = 0; i < want; i++) TRY(str_append(&cut->fill, WORDS[w], strlen(WORDS[w])));
        TRY(gen_count_after(g, "the end", &cut->fill, &n));
        if (n == want) return PC_OK;
    }
    str_clear(&cut->fill);
    cut->tokens -= want;
    return PC_OK;
}

/* The first k tokens of the haystack. */
static int hay_cut(struct Gen *g, const struct Hay *hay, int64_t k, struct Cut *cut)
{
    enum { BACK = 64 };
    int64_t clean = k;
    while (clean > 1 && k - clean < BACK && !cut_clean(hay, hay_end(hay, clean))) clean--;
    if (!cut_clean(hay, hay_end(hay, clean))) { /* a script without spaces */
        clean = k;
        while (clean > 1 && !char_begins(hay_byte(hay, hay_end(hay, clean)))) clean--;
    }
    cut->at = hay_end(hay, clean);
    cut->tokens = k;
    return k > clean ? cut_fill(g, hay, clean, k - clean, cut) : PC_OK;
}

/* ==== Places for needles ==== */

/* Whether the text before `at` ends a sentence with an ideographic stop. */
static bool wide_stop_before(const struct Hay *hay, size_t at)
{
    static const char *const STOPS[] = {"\u3002", "\uFF01", "\uFF1F"};
    if (at < 3) return false;
    char last[3] = {hay_byte(hay, at - 3), hay_byte(hay, at - 2), hay_byte(hay, at - 1)};
    for (size_t i = 0; i < 3; i++)
        if (memcmp(last, STOPS[i], 3) == 0) return true;
    return false;
}

/* A stop, perhaps with closing quotes or brackets behind it, and white space next. */
static bool sentence_ends(const struct Hay *hay, size_t at)
{
    if (wide_stop_before(hay, at)) return true;
    if (!is_space(hay_byte(hay, at))) return false;
    size_t i = at;
    for (int quotes = 0; quotes < 6 && i > 0; quotes++) {
        char c = hay_byte(hay, i - 1);
        if (c != '"' && c != '\'' && c != ')' && c != ']' && char_begins(c) && c >= 0) break;
        i--; /* also the bytes of a curly quote */
    }
    char c = i > 0 ? hay_byte(hay, i - 1) : ' ';
    return c == '.' || c == '!' || c == '?';
}

static bool boundary(const struct Hay *hay, size_t at)
{
    if (at == 0) return true;
    if (hay->kind == HAY_LINES) return hay_byte(hay, at - 1) == '\n';
    return sentence_ends(hay, at);
}

static bool word_boundary(const struct Hay *hay, size_t at)
{
    return at == 0 || (is_space(hay_byte(hay, at)) && !is_space(hay_byte(hay, at - 1)));
}

/* The place nearest to `want` in 0 .. most that `fits`, at most `far` bytes away; SIZE_MAX: none. */
static size_t nearest(const struct Hay *hay, size_t want, size_t most, size_t far,
                      bool (*fits)(const struct Hay *, size_t))
{
    for (size_t d = 0; d <= far; d++) {
        if (d <= want && fits(hay, want - d)) return want - d;
        if (want + d <= most && fits(hay, want + d)) return want + d;
    }
    return SIZE_MAX;
}

static size_t needle_place(const struct Hay *hay, double depth, int64_t tokens, size_t most)
{
    size_t want = hay_end(hay, (int64_t)(depth * (double)tokens));
    if (want > most) want = most;
    size_t at = nearest(hay, want, most, 4096, boundary);
    if (at == SIZE_MAX) at = nearest(hay, want, most, 4096, word_boundary);
    if (at == SIZE_MAX) at = want;
    while (at && !char_begins(hay_byte(hay, at))) at--;
    return at;
}

/* ==== Putting it together ==== */

/* Needles in order of their places; a stable sort, since links of a chain may share one. */
static void needles_sort(struct Needle *needles, int n)
{
    for (int i = 1; i < n; i++) {
        struct Needle moved = needles[i];
        int j = i;
        for (; j > 0 && needles[j - 1].at > moved.at; j--) needles[j] = needles[j - 1];
        needles[j] = moved;
    }
}

/* In prose a needle has a space before it, or behind it at the very beginning. */
static int needle_emit(struct Gen *g, const struct HayJob *job, const struct Needle *needle)
{
    struct Str *context = &g->out->context;
    bool prose = job->kind == HAY_PROSE, first = context->len == 0;
    if (prose && !first) TRY(str_append(context, " ", 1));
    size_t skip = job->drop_space && first ? 1 : 0;
    if (needle->number >= 0)
        g->out->answer_at[needle->number] = context->len + needle->answer - skip;
    TRY(str_append(context, needle->text.data + skip, needle->text.len - skip));
    if (prose && first && needle->at == 0) TRY(str_append(context, " ", 1));
    return PC_OK;
}

static int emit(struct Gen *g, const struct HayJob *job, const struct Hay *hay,
                const struct Cut *cut)
{
    struct Str *context = &g->out->context;
    size_t at = 0, room = cut->at + cut->fill.len + 1;
    for (int i = 0; i < job->n; i++) room += job->needles[i].text.len + 2;
    TRY(str_reserve(context, room));
    for (int i = 0; i < job->n; i++) {
        TRY(hay_copy(hay, at, job->needles[i].at, context));
        at = job->needles[i].at;
        TRY(needle_emit(g, job, &job->needles[i]));
    }
    TRY(hay_copy(hay, at, cut->at, context));
    return cut->fill.len ? str_append(context, cut->fill.data, cut->fill.len) : PC_OK;
}

static int needles_count(struct Gen *g, const struct HayJob *job, int64_t *tokens)
{
    struct Str piece = {0};
    int status = PC_OK;
    *tokens = 0;
    for (int i = 0; i < job->n && status == PC_OK; i++) {
        int64_t n = 0;
        str_clear(&piece);
        if (job->kind == HAY_PROSE) status = str_append(&piece, " ", 1);
        if (status == PC_OK)
            status = str_append(&piece, job->needles[i].text.data, job->needles[i].text.len);
        if (status == PC_OK)
            status =
                gen_count_after(g, job->kind == HAY_PROSE ? "The end." : "The end.\n", &piece, &n);
        *tokens += n;
    }
    str_free(&piece);
    return status;
}

static int hay_fill(struct Gen *g, const struct HayJob *job, struct Hay *hay, struct Cut *cut,
                    int64_t tokens)
{
    TRY(hay_open(g, job, tokens, hay));
    TRY(hay_cut(g, hay, tokens, cut));
    for (int i = 0; i < job->n; i++)
        job->needles[i].at = needle_place(hay, job->needles[i].depth, tokens, cut->at);
    needles_sort(job->needles, job->n);
    TRY(gen_places(g, job->n_places));
    g->out->n_answer_at = job->n_places;
    return emit(g, job, hay, cut);
}

int hay_build(struct Gen *g, const struct HayJob *job, int64_t budget)
{
    int64_t needles;
    TRY(needles_count(g, job, &needles));
    if (budget < needles + LEAST_HAY) return gen_too_small(g, needles + LEAST_HAY);
    struct Hay hay = {0};
    struct Cut cut = {0};
    int status = hay_fill(g, job, &hay, &cut, budget - needles);
    g->estimate = needles + cut.tokens;
    str_free(&cut.fill);
    hay_close(&hay);
    return status;
}

/* ==== Depths ==== */

static int compare_depths(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* n places of a grid of at least 40, all different. */
static void depths_draw(uint64_t key, double *depths, int n)
{
    int grid = n > 40 ? n : 40;
    for (int i = 0; i < n; i++)
        depths[i] = (double)rng_place(key, (uint64_t)i, (uint64_t)grid) / (grid - 1);
}

int gen_depths(struct Gen *g, struct Needle *needles, int n)
{
    double *depths = mem_alloc((size_t)n, sizeof *depths);
    if (!depths) return PC_ENOMEM;
    depths_draw(rng_join(g->key, DRAW_DEPTHS), depths, n);
    if (g->spec->depth >= 0) depths[0] = g->spec->depth;
    g->out->depth = depths[0];
    for (int i = 0; i < n; i++) needles[i].depth = depths[i];
    mem_free(depths);
    return PC_OK;
}

int gen_depths_ascending(struct Gen *g, struct Needle *needles, int n, uint64_t stream)
{
    double *depths = mem_alloc((size_t)n, sizeof *depths);
    if (!depths) return PC_ENOMEM;
    depths_draw(rng_join(rng_join(g->key, DRAW_DEPTHS), stream), depths, n);
    double first = stream == 0 ? g->spec->depth : -1;
    for (int i = 0; i < n && first >= 0; i++) {
        double part =
            (1 - first) * depths[i]; /* a statement of its own: never fused with the sum */
        depths[i] = first + part;
    }
    if (first >= 0) depths[0] = first;
    qsort(depths, (size_t)n, sizeof *depths, compare_depths);
    if (stream == 0) g->out->depth = depths[0];
    for (int i = 0; i < n; i++) needles[i].depth = depths[i];
    mem_free(depths);
    return PC_OK;
}

void needles_free(struct Needle *needles, int n)
{
    for (int i = 0; needles && i < n; i++) str_free(&needles[i].text);
    mem_free(needles);
}

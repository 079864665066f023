/* text_stream.c - see text_stream.h. */
#include "text_stream.h"

#include "tokenizer_places.h"

#include <string.h>

int text_stream_open(struct TextStream *st, const char *const *paths, int n)
{
    *st = (struct TextStream){0};
    return source_open(&st->source, paths, n);
}

void text_stream_forget(struct TextStream *st)
{
    text_scan_end(st);
    encoder_close(st->encoder);
    mem_free(st->segments);
    st->encoder = NULL;
    st->segments = NULL;
    st->n_segments = st->cap = st->n_tokens = 0;
    st->tok = NULL;
    st->ids.n = st->segment_end = 0;
    str_clear(&st->text);
}

/* What was loaded. */
static void stretch_free(struct TextStream *st)
{
    str_free(&st->text);
    tokens_free(&st->ids);
    mem_free(st->place);
    *st = (struct TextStream){0};
}

void text_stream_close(struct TextStream *st)
{
    text_stream_forget(st);
    source_close(&st->source);
    stretch_free(st);
}

int text_stream_share(const struct TextStream *st, struct TextStream *reader)
{
    *reader = (struct TextStream){.tok = st->tok,
                                  .begins = st->begins,
                                  .segments = st->segments,
                                  .n_segments = st->n_segments,
                                  .n_tokens = st->n_tokens};
    source_share(&st->source, &reader->source);
    return encoder_open(st->tok, LONG_TEXT, &reader->encoder);
}

void text_stream_leave(struct TextStream *reader)
{
    source_leave(&reader->source);
    encoder_close(reader->encoder);
    stretch_free(reader);
}

/* ==== Room ==== */

static int text_room(struct TextStream *st, size_t bytes)
{
    str_clear(&st->text);
    return str_reserve(&st->text, bytes);
}

static int ids_room(struct TextStream *st, int n)
{
    if (n <= st->ids.cap) return PC_OK;
    int *ids = mem_alloc((size_t)n, sizeof *ids);
    if (!ids) return PC_ENOMEM;
    mem_free(st->ids.ids);
    st->ids = (struct Tokens){.ids = ids, .cap = n};
    return PC_OK;
}

static int place_room(struct TextStream *st, size_t n)
{
    if (n <= st->place_cap) return PC_OK;
    size_t *place = mem_alloc(n, sizeof *place);
    if (!place) return PC_ENOMEM;
    mem_free(st->place);
    st->place = place;
    st->place_cap = n;
    return PC_OK;
}

struct Room {
    size_t bytes;
    int tokens;
};

/* The longest stretch of segments that n tokens in a row can lie in. */
static struct Room longest_stretch(const struct TextStream *st, int n)
{
    const struct TextSegment *s = st->segments;
    struct Room most = {0, 0};
    for (int i = 0, end = 0; i < st->n_segments; i++) {
        if (s[i + 1].token == s[i].token) continue;
        /* they begin with this segment's last token */
        while (end < st->n_segments && s[end].token < (int64_t)s[i + 1].token - 1 + n) end++;
        if (s[end].byte - s[i].byte > most.bytes) most.bytes = s[end].byte - s[i].byte;
        most.tokens = max_int(most.tokens, s[end].token - s[i].token);
    }
    return most;
}

static struct Room most_room(const struct TextStream *st, int n, int n_text)
{
    struct Room most = longest_stretch(st, n);
    if (n_text > n) most.bytes = longest_stretch(st, n_text).bytes;
    return most;
}

size_t text_stream_room(const struct TextStream *st, int n, int n_text)
{
    struct Room most = most_room(st, n, n_text);
    size_t text = 64; /* as a Str grows */
    while (text <= most.bytes) text *= 2;
    return text + (size_t)most.tokens * (sizeof(int) + sizeof(size_t)) + sizeof(size_t);
}

int text_stream_reserve(struct TextStream *st, int n, int n_text)
{
    struct Room most = most_room(st, n, n_text);
    st->segment_end = 0;
    TRY(text_room(st, most.bytes));
    TRY(ids_room(st, most.tokens));
    return place_room(st, (size_t)most.tokens + 1);
}

size_t text_stream_held(const struct TextStream *st)
{
    return (size_t)st->cap * sizeof *st->segments + (st->encoder ? encoder_bytes(st->encoder) : 0) +
           st->source.held.cap;
}

/* ==== Loading ==== */

/* The segment that holds a token. */
static int segment_of(const struct TextStream *st, int token)
{
    int lo = 0, hi = st->n_segments;
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (st->segments[mid].token <= token)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

uint32_t text_sum(const char *text, size_t len)
{
    return (uint32_t)hash64(text, len, 0);
}

/* Encodes a segment that lies at `text` again. */
static int segment_again(struct TextStream *st, int segment, const char *text)
{
    const struct TextSegment *s = &st->segments[segment];
    size_t len = s[1].byte - s->byte;
    if (text_sum(text, len) != s->sum) return source_changed(&st->source, s->byte);
    return encoder_add(st->encoder, text, len, st->begins && segment == 0, &st->ids);
}

int text_stream_bytes(struct TextStream *st, size_t begin, size_t end)
{
    st->ids.n = st->segment_end = 0;
    TRY(text_room(st, end - begin));
    TRY(source_again(&st->source, begin, end - begin, st->text.data));
    st->text.len = end - begin;
    st->text_at = begin;
    return PC_OK;
}

static int load_segments(struct TextStream *st, int first, int end)
{
    const struct TextSegment *s = st->segments;
    if (first >= st->segment && end <= st->segment_end) return PC_OK; /* still there */
    TRY(text_stream_bytes(st, s[first].byte, s[end].byte));
    TRY(ids_room(st, s[end].token - s[first].token));
    st->ids.n = 0;
    st->first = s[first].token;
    st->segment = first;
    for (int i = first; i < end; i++)
        TRY(segment_again(st, i, st->text.data + (s[i].byte - s[first].byte)));
    st->segment_end = end;
    return PC_OK;
}

int text_stream_load(struct TextStream *st, int begin, int end)
{
    return load_segments(st, segment_of(st, begin), segment_of(st, end - 1) + 1);
}

const int *text_stream_ids(const struct TextStream *st, int begin)
{
    return st->ids.ids + (begin - st->first);
}

int text_stream_places(struct TextStream *st)
{
    const struct TextSegment *s = st->segments;
    size_t n = (size_t)st->ids.n, done = 0;
    TRY(place_room(st, n + 1));
    for (int i = st->segment; done < n; i++) {
        size_t at = s[i].byte - st->text_at, first = done;
        int tokens = s[i + 1].token - s[i].token;
        struct Slice text = {st->text.data + at, s[i + 1].byte - s[i].byte};
        token_places(st->tok, st->ids.ids + done, tokens, text, st->place + done);
        for (done += (size_t)tokens; first < done; first++) st->place[first] += s[i].byte;
    }
    st->place[n] = st->text_at + st->text.len;
    return PC_OK;
}

int text_stream_all(struct TextStream *st, int *ids)
{
    for (int i = 0; i < st->n_segments; i++) {
        TRY(load_segments(st, i, i + 1));
        int first = st->segments[i].token, n = st->segments[i + 1].token - first;
        if (n) memcpy(ids + first, text_stream_ids(st, first), sizeof *ids * (size_t)n);
    }
    return PC_OK;
}

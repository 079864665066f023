/* text_stream.c - see text_stream.h. */
#include "text_stream.h"

#include "tokenizer_places.h"

#include <limits.h>
#include <string.h>

enum {
    LOOK_BYTES = 64,    /* read behind a segment, for what decides whether its end is certain */
    SEEN_SEGMENTS = 64, /* between two calls of `seen` */
};

int text_stream_open(struct TextStream *st, const char *const *paths, int n)
{
    *st = (struct TextStream){0};
    return source_open(&st->source, paths, n);
}

static void scan_forget(struct TextStream *st)
{
    encoder_close(st->encoder);
    mem_free(st->segments);
    st->encoder = NULL;
    st->segments = NULL;
    st->n_segments = st->cap = st->n_tokens = 0;
    st->tok = NULL;
    st->ids.n = st->segment_end = 0;
    str_clear(&st->text);
}

void text_stream_close(struct TextStream *st)
{
    scan_forget(st);
    source_close(&st->source);
    str_free(&st->text);
    tokens_free(&st->ids);
    mem_free(st->place);
    *st = (struct TextStream){0};
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

/* The longest stretch of segments that n tokens in a row can lie in. */
static void longest_stretch(const struct TextStream *st, int n, size_t *bytes, int *tokens)
{
    const struct TextSegment *s = st->segments;
    *bytes = 0;
    *tokens = 0;
    for (int i = 0, end = 0; i < st->n_segments; i++) {
        if (s[i + 1].token == s[i].token) continue;
        /* they begin with this segment's last token */
        while (end < st->n_segments && s[end].token < (int64_t)s[i + 1].token - 1 + n) end++;
        if (s[end].byte - s[i].byte > *bytes) *bytes = s[end].byte - s[i].byte;
        if (s[end].token - s[i].token > *tokens) *tokens = s[end].token - s[i].token;
    }
}

size_t text_stream_room(const struct TextStream *st, int n)
{
    size_t bytes;
    int tokens;
    longest_stretch(st, n, &bytes, &tokens);
    return bytes + (size_t)tokens * (sizeof(int) + sizeof(size_t));
}

int text_stream_reserve(struct TextStream *st, int n)
{
    size_t bytes;
    int tokens;
    st->segment_end = 0;
    longest_stretch(st, n, &bytes, &tokens);
    TRY(text_room(st, bytes));
    TRY(ids_room(st, tokens));
    return place_room(st, (size_t)tokens + 1);
}

size_t text_stream_held(const struct TextStream *st)
{
    return (size_t)st->cap * sizeof *st->segments + (st->encoder ? encoder_bytes(st->encoder) : 0) +
           st->source.held.cap;
}

/* ==== Scan ==== */

static uint32_t sum_of(const char *text, size_t len)
{
    return (uint32_t)hash64(text, len, 0);
}

static int segment_push(struct TextStream *st, size_t byte, uint32_t sum)
{
    if (st->n_segments + 1 >= st->cap) {
        int cap = st->cap ? st->cap + st->cap / 2 : 64;
        struct TextSegment *segments =
            mem_grow(st->segments, (size_t)st->cap, (size_t)cap, sizeof *segments);
        if (!segments) return PC_ENOMEM;
        st->segments = segments;
        st->cap = cap;
    }
    st->segments[st->n_segments++] = (struct TextSegment){byte, st->n_tokens, sum};
    return PC_OK;
}

/* Reads a segment at byte `at` into st->text; its length is 0 behind the end. */
static int segment_read(struct TextStream *st, size_t at)
{
    struct TextSource *s = &st->source;
    for (size_t wanted = SEGMENT_BYTES;; wanted *= 2) {
        size_t got, cut;
        TRY(text_room(st, wanted + LOOK_BYTES));
        TRY(source_read(s, at, wanted + LOOK_BYTES, st->text.data, &got));
        bool ends = got < wanted + LOOK_BYTES;
        TRY(source_check(s, at, st->text.data, got, ends));
        if (got >= INT_MAX)
            return err_set(PC_ERANGE, "%zu bytes without a place to cut; the limit is 2 GiB", got);
        cut = ends && got <= wanted ? got : tokenizer_cut(st->tok, st->text.data, got, ends);
        if (cut == 0 && ends) cut = got;
        st->text.len = cut;
        if (cut || ends) return PC_OK;
    }
}

static int segment_encode(struct TextStream *st, int segment, const char *text, size_t len)
{
    return encoder_add(st->encoder, text, len, st->begins && segment == 0, &st->ids);
}

static int segment_take(struct TextStream *st, size_t at)
{
    const struct Str *text = &st->text;
    st->ids.n = 0;
    TRY(segment_encode(st, st->n_segments, text->data, text->len));
    TRY(segment_push(st, at, sum_of(text->data, text->len)));
    if (st->ids.n > INT_MAX - 1 - st->n_tokens)
        return err_set(PC_ERANGE, "the text has more than %d tokens; cut it in several", INT_MAX);
    st->n_tokens += st->ids.n;
    return PC_OK;
}

struct Scan {
    struct Hash64 *hash;
    double begun;
    int (*seen)(void *user, const struct TextScan *scan);
    void *user;
};

static int scan_seen(const struct TextStream *st, const struct Scan *scan, size_t at)
{
    struct TextScan info = {at, st->source.whole ? st->source.size : 0, st->n_tokens,
                            clock_seconds() - scan->begun};
    return scan->seen ? scan->seen(scan->user, &info) : PC_OK;
}

static int scan_segments(struct TextStream *st, struct Scan *scan)
{
    for (size_t at = 0;; at += st->text.len) {
        if (st->n_segments % SEEN_SEGMENTS == 0) TRY(scan_seen(st, scan, at));
        TRY(segment_read(st, at));
        if (st->text.len == 0) break;
        hash64_add(scan->hash, st->text.data, st->text.len);
        TRY(segment_take(st, at));
    }
    TRY(segment_push(st, st->source.size, 0));
    st->n_segments--;
    return PC_OK;
}

int text_stream_scan(struct TextStream *st, const struct Tokenizer *t, bool begins,
                     int (*seen)(void *user, const struct TextScan *scan), void *user)
{
    enum { LONG_TEXT = 1 << 24 }; /* its words repay remembering */
    if (st->tok == t && st->begins == begins) return PC_OK;
    struct Scan scan = {.begun = clock_seconds(), .seen = seen, .user = user};
    scan_forget(st);
    st->tok = t;
    st->begins = begins;
    int status = encoder_open(t, LONG_TEXT, &st->encoder);
    if (status == PC_OK) status = hash64_begin(0, &scan.hash);
    if (status == PC_OK) status = scan_segments(st, &scan);
    st->hash = hash64_end(scan.hash);
    st->seconds += clock_seconds() - scan.begun;
    if (status < 0) scan_forget(st);
    return status;
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

/* Encodes a segment that lies at `text` again. */
static int segment_again(struct TextStream *st, int segment, const char *text)
{
    const struct TextSegment *s = &st->segments[segment];
    size_t len = s[1].byte - s->byte;
    if (sum_of(text, len) != s->sum) return source_changed(&st->source, s->byte);
    return segment_encode(st, segment, text, len);
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

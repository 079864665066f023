/* session_stream.c - a run over a text that is not in memory (text_stream.h): what it takes from the stream, and when.
 *
 * Cuts, kept chunks and answer are those of the same text in memory. The text is gone through four times, a stretch at a
 * time: its tokens are counted, by all threads; the tokens around each cut are read for the cut to find a boundary; the bytes of
 * the chunks, for the question's words, by all threads (where BM25 is asked for: twice); and each chunk's tokens, by a thread of
 * their own while the device works on the wave before. Kept of the text are a few bytes a segment and a chunk. Methods that
 * read one sequence take all token ids, four bytes each.
 *
 * A pipe is counted as it comes. Its chunks may be read before its end is known (session_pipe.c): all cuts but the last ones are
 * certain as soon as enough tokens follow (chunk_plan.h).
 */
#include "session.h"

/* ==== Counting ==== */

static int scan_seen(void *user, const struct TextScan *scan)
{
    const struct Request *req = user;
    if (req->stop && req->stop(req->user)) return err_set(PC_EINTR, "stopped");
    if (!req->on_progress) return PC_OK;
    double share = scan->size ? (double)scan->bytes / (double)scan->size : 0;
    struct Progress p = {.stage = STAGE_TOKENIZE,
                         .tokens_done = scan->tokens,
                         .n_tokens = share > 0 ? (int64_t)(scan->tokens / share) : 0,
                         .seconds = scan->seconds,
                         .memory = mem_in_use()};
    req->on_progress(req->user, &p);
    return PC_OK;
}

void stream_begin(const struct Engine *e, const struct Request *req, struct PromptText *text)
{
    if (!req->stream) return;
    req->stream->threads = e->settings.threads;
    req->stream->source.stop = req->stop;
    req->stream->source.user = req->user;
    text->stream = req->stream;
    text->watch = (struct ScanWatch){scan_seen, (void *)req};
}

int stream_more(const struct Request *req, int least)
{
    struct TextStream *st = req->stream;
    struct ScanWatch watch = {scan_seen, (void *)req};
    return text_stream_scan(st, st->tok, st->begins, least, &watch);
}

int stream_prompt(const struct Request *req, const struct Settings *set, struct Prompt *out)
{
    struct TextStream *st = req->stream;
    if (!st || set->method == METHOD_PARALLELCOMP) return PC_OK;
    out->context.ids = mem_alloc((size_t)st->n_tokens, sizeof *out->context.ids);
    if (!out->context.ids) return PC_ENOMEM;
    out->context.cap = st->n_tokens;
    return text_stream_all(st, out->context.ids);
}

double stream_spent(const struct Request *req)
{
    double seconds = req->stream ? req->stream->seconds : 0;
    if (req->stream) req->stream->seconds = 0;
    return seconds;
}

/* ==== Cuts ==== */

enum {
    NEAR_MOST = 2 * SNAP_MAX + 1,
    BEFORE = 16, /* tokens before those that mostly decide about boundaries */
};

/* Where the tokens around the cut at hand stand in the text. */
struct CutSearch {
    struct Session *s;
    int begun;               /* the first cut that is searched */
    int cut, lo;             /* of NEAR_MOST tokens, those from lo on */
    size_t end[NEAR_MOST];   /* where a chunk would end */
    size_t begin[NEAR_MOST]; /* where the next one would begin, before it with an overlap */
};

/* The last cut found its place. */
static void place_cut(const struct CutSearch *c)
{
    if (c->cut == c->begun) return;
    int at = c->s->chunks[c->cut - 1].end - c->lo;
    c->s->places[2 * c->cut - 1] = c->end[at];
    c->s->places[2 * c->cut] = c->begin[at];
}

/* Whether boundaries at n places of the loaded stretch are those of the whole text. */
static bool sees_enough(const struct TextStream *st, const size_t *place, int n)
{
    size_t known = 0; /* the last place for which that is so */
    for (int i = 0; i < n && st->text_at; i++) {
        size_t at = place[i] - st->text_at;
        if (boundary_reach(st->text.data, at, known) == 0) return false;
        known = at;
    }
    return true;
}

/* Loads tokens [lo - overlap, hi] with what before lo decides about boundaries; *first is lo's number in st->place. */
static int load_near(struct CutSearch *c, int lo, int hi, int *first)
{
    struct TextStream *st = c->s->req->stream;
    for (int before = c->s->cut.overlap + BEFORE;; before = before < lo / 4 ? 4 * before : lo) {
        TRY(text_stream_load(st, before < lo ? lo - before : 0, hi + 1));
        TRY(text_stream_places(st));
        *first = lo - st->first;
        if (sees_enough(st, st->place + *first, hi - lo + 1)) return PC_OK;
    }
}

static int near_cut(void *user, int lo, int hi, uint8_t *boundary)
{
    struct CutSearch *c = user;
    struct TextStream *st = c->s->req->stream;
    int first;
    place_cut(c);
    TRY(load_near(c, lo, hi, &first));
    c->cut++;
    c->lo = lo;
    for (int i = 0; i <= hi - lo; i++) {
        c->end[i] = st->place[first + i];
        c->begin[i] = st->place[first + i - c->s->cut.overlap];
        boundary[i] = (uint8_t)boundary_at(st->text.data, st->text.len, c->end[i] - st->text_at);
    }
    return PC_OK;
}

/* Tokens whose bytes are loaded at once, at most, for their words. */
static int stream_texts(const struct Session *s)
{
    int64_t n = (int64_t)texts_at_once(s) * s->plan.chunk_tokens;
    return n < s->plan.n_context ? (int)n : s->plan.n_context;
}

/* Where token i begins; behind the last one, where the text ends. */
static int place_of(struct TextStream *st, int i, size_t *place)
{
    *place = st->source.size;
    if (i == st->n_tokens) return PC_OK;
    TRY(text_stream_load(st, i, i + 1));
    TRY(text_stream_places(st));
    *place = st->place[i - st->first];
    return PC_OK;
}

int stream_cut(struct Session *s)
{
    struct TextStream *st = s->req->stream;
    struct PlanInfo *p = &s->plan;
    if (p->n_chunks == 0) return PC_OK;
    s->places = mem_alloc(2 * (size_t)p->n_chunks + 1, sizeof *s->places);
    if (!s->places) return PC_ENOMEM;
    TRY(text_stream_reserve(st, stream_tokens(s), stream_texts(s)));
    if (s->open_end) return PC_OK; /* cut as it comes */
    int known = pipe_cuts(s);
    struct CutSearch search = {.s = s, .begun = known, .cut = known};
    struct BoundaryReader reader = {near_cut, &search};
    if (s->set.method == METHOD_PARALLELCOMP)
        TRY(chunk_plan_read(&s->cut, known, p->n_chunks, s->chunks, &reader));
    place_cut(&search);
    TRY(place_of(st, 0, &s->places[0]));
    return place_of(st, p->n_context, &s->places[2 * p->n_chunks - 1]);
}

int stream_cut_some(struct Session *s, int first, int n, int before, size_t place)
{
    struct CutSearch search = {.s = s};
    struct BoundaryReader reader = {near_cut, &search};
    for (int c = 0; c < n; c++)
        TRY(chunk_cut_read(&s->cut, first + c, c ? s->chunks[c - 1].end : before, &s->chunks[c],
                           &reader));
    place_cut(&search);
    s->places[0] = place;
    return first ? PC_OK : place_of(s->req->stream, 0, &s->places[0]);
}

/* ==== Chunks ==== */

/* Chunks of a stream are read ahead where there is more than one wave of them. A pipe grows meanwhile. */
static bool reads_ahead(const struct Session *s)
{
    return s->req->stream && !s->open_end && s->set.method == METHOD_PARALLELCOMP &&
           s->n_mine > s->plan.wave;
}

static struct AheadRoom ahead_room(const struct Session *s)
{
    return (struct AheadRoom){.ranges = s->plan.wave,
                              .tokens = s->plan.wave * s->plan.chunk_tokens,
                              .longest = s->plan.chunk_tokens};
}

int ahead_open(struct Session *s)
{
    return reads_ahead(s) ? text_ahead_open(s->req->stream, ahead_room(s), &s->ahead) : PC_OK;
}

void ahead_order(struct Session *s, const int *chunks, int n)
{
    struct TextRange range[WAVE_MAX];
    if (!s->ahead) return;
    for (int i = 0; i < n; i++)
        range[i] = (struct TextRange){s->chunks[chunks[i]].begin, s->chunks[chunks[i]].end};
    text_ahead_order(s->ahead, range, n);
}

int chunk_ids(struct Session *s, const struct Chunk *c, const int **ids)
{
    struct TextStream *st = s->req->stream;
    *ids = NULL;
    if (s->ahead) TRY(text_ahead_take(s->ahead, (struct TextRange){c->begin, c->end}, ids));
    if (*ids) return PC_OK;
    if (st) TRY(text_stream_load(st, c->begin, c->end));
    *ids = st ? text_stream_ids(st, c->begin) : s->prompt.context.ids + c->begin;
    return PC_OK;
}

int texts_at_once(const struct Session *s)
{
    enum { TOKENS = 65536 }; /* enough for threads to share */
    int n = max_int(s->e->settings.threads, TOKENS / max_int(s->plan.chunk_tokens, 1));
    return min_int(n, s->plan.n_chunks);
}

int chunk_texts(void *session, int first, int n, struct LexText *out)
{
    struct Session *s = session;
    struct TextStream *st = s->req->stream;
    const struct ChunkInfo *info = &s->out->chunks[first];
    size_t begin = info[0].byte_begin;
    if (st) TRY(text_stream_bytes(st, begin, info[n - 1].byte_end));
    const char *text = st ? st->text.data : s->req->context + begin;
    for (int i = 0; i < n; i++)
        out[i] = (struct LexText){text + (info[i].byte_begin - begin),
                                  info[i].byte_end - info[i].byte_begin};
    return PC_OK;
}

static int hash_chunks(struct Session *s, struct Hash64 *hash)
{
    enum { STEP = 128 };
    for (int at = 0; at < s->plan.n_context; at += STEP) {
        int end = at + STEP < s->plan.n_context ? at + STEP : s->plan.n_context;
        struct Chunk step = {at, end};
        const int *ids;
        TRY(chunk_ids(s, &step, &ids));
        hash64_add(hash, ids, sizeof *ids * (size_t)(end - at));
    }
    return PC_OK;
}

int hash_tokens(struct Session *s, uint64_t seed, uint64_t *out)
{
    struct Hash64 *hash;
    TRY(hash64_begin(seed, &hash));
    int status = hash_chunks(s, hash);
    *out = hash64_end(hash);
    return status;
}

uint64_t hash_text(const struct Request *req)
{
    return req->stream ? req->stream->hash : hash64(req->context, req->context_len, 0);
}

/* ==== Memory ==== */

/* Tokens that are loaded at once, at most. */
int stream_tokens(const struct Session *s)
{
    int near = s->cut.overlap + BEFORE + NEAR_MOST;
    bool plain = s->set.method != METHOD_PARALLELCOMP;
    int most = plain || s->plan.chunk_tokens < near ? near : s->plan.chunk_tokens;
    return most < s->plan.n_context ? most : s->plan.n_context;
}

size_t text_bytes(const struct Session *s)
{
    const struct TextStream *st = s->req->stream;
    size_t chunks = (size_t)s->plan.n_chunks, ids = (size_t)s->prompt.context.cap * sizeof(int);
    if (!st) return s->req->context_len + ids + (size_t)s->plan.n_context * (sizeof(size_t) + 1);
    size_t chunk = sizeof *s->chunks + sizeof *s->out->chunks + 2 * sizeof *s->places +
                   2 * sizeof(int) + sizeof *s->shared,
           piped = s->req->pipe ? pipe_bytes(s->req->pipe) : 0;
    size_t ahead = reads_ahead(s) ? text_ahead_bytes(st, ahead_room(s)) : 0;
    return text_stream_held(st) + text_stream_room(st, stream_tokens(s), stream_texts(s)) + ids +
           ahead + piped + chunk * chunks;
}

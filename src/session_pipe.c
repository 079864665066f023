/* session_pipe.c - chunks that are read while a pipe is still open.
 *
 * A run wants to know all of its text first: the last cuts share what is left, words are weighed against all chunks, and early
 * decisions compare all of them. But what the model says of a chunk hangs on that chunk and the question alone. So while a
 * pipe is slower than the device, session_pipe() reads each chunk as soon as its cut is certain (chunk_plan.h), takes
 * down how much the question surprises behind it and what the decisions may ask for, and lets its keys and values go.
 * The run that follows counts these chunks in like all others, but does not read them; those that it keeps are read once more.
 * So file and pipe give the same answer: on a CPU to the bit.
 *
 * All layers read a chunk here, also where a decision would spare it some: the device has nothing else to do. Once the pipe
 * has ended, the run begins. One that gives all it has within PATIENCE is left to the run altogether.
 */
#include "session.h"

#include <string.h>

static const double PATIENCE = 0.25; /* seconds */

/* Tokens of a text that is longer than any that is one chunk, or too short for head classes. */
enum { LONG_TOKENS = 1 << 28 };

/* ==== Before the end ==== */

/* What needs all of the text before the model reads any: the words of a prefilter, scores without the model, a rotation that is
 * stretched to the longest chunk. Ranks share chunks by their number. Where most chunks stay, nothing is won. */
static bool may_read(const struct Engine *e, const struct Request *req)
{
    const struct Settings *set = &e->settings;
    return req->stream && !req->stream->source.whole && set->method == METHOD_PARALLELCOMP &&
           !ranks_ahead(set) && !set->prefilter && set->rope_scaling == SCALING_AUTO &&
           set->keep != KEEP_ALL && set->keep < EVEN_CHUNKS && e->team->size == 1;
}

/* What two sessions must have in common for one to take over what the other has read. */
static uint64_t run_key(const struct Session *s)
{
    const struct Tokens *parts[] = {&s->prompt.prefix, &s->prompt.tail};
    int facts[] = {s->cut.payload, s->cut.overlap, s->cut.slack, s->plan.heads_streaming,
                   (int)s->plan.chunk_score};
    uint64_t key = hash64(facts, sizeof facts, s->e->model.hash);
    for (int i = 0; i < 2; i++)
        if (parts[i]->n) key = hash64(parts[i]->ids, sizeof(int) * (size_t)parts[i]->n, key);
    return key;
}

/* What was found of the session's first n chunks. */
static int take_down(const struct Session *s, int n, struct PipeRead *p)
{
    if (p->n + n > p->cap) {
        int cap = p->cap ? 2 * p->cap : 2 * WAVE_MAX;
        struct PipeChunk *chunks = mem_grow(p->chunks, (size_t)p->cap, (size_t)cap, sizeof *chunks);
        if (!chunks) return PC_ENOMEM;
        p->chunks = chunks;
        p->cap = cap;
    }
    for (int c = 0; c < n; c++) {
        struct PipeChunk *to = &p->chunks[p->n + c];
        to->tokens = s->chunks[c];
        to->byte_begin = s->places[2 * c];
        to->byte_end = s->places[2 * c + 1];
        to->surprise = s->out->chunks[c].score;
        for (int d = 0; d < p->n_looks; d++) to->looks[d] = early_row(s, d)[c];
    }
    p->next = s->places[2 * n];
    p->n += n;
    return PC_OK;
}

/* The next n chunks of the text, as the session's first ones. */
static int read_wave(struct Session *s, int n, struct PipeRead *p)
{
    int before = p->n ? p->chunks[p->n - 1].tokens.end : 0;
    struct Wave w = {.chunk = s->todo, .n = n};
    s->rounds.n_read = p->n; /* for the progress */
    s->rounds.n_tokens = before;
    TRY(stream_cut_some(s, p->n, n, before, p->next));
    w.n_tokens = wave_tokens_before(s, n);
    early_begin(s);
    TRY(wave_read(s, &w));
    TRY(wave_score(s, &w));
    for (int i = 0; i < n; i++) TRY(release_chunk(s, w.chunk[i]));
    session_progress(s, STAGE_PREFILL, n, w.n_tokens);
    return take_down(s, n, p);
}

/* How many chunks of a wave, from `first` on, are certain by what is known of the text. */
static int certain(const struct Session *s, int first)
{
    int n = 0;
    while (n < s->plan.wave && chunk_cut_tokens(&s->cut, first + n) <= s->req->stream->n_tokens)
        n++;
    return n;
}

/* Waits until the chunk is certain; *out: it is, and the pipe is still open. */
static int wait_chunk(const struct Session *s, int chunk, bool *out)
{
    const struct TextStream *st = s->req->stream;
    int64_t need = chunk_cut_tokens(&s->cut, chunk);
    *out = false;
    if (need > INT32_MAX || st->source.whole) return PC_OK;
    TRY(stream_more(s->req, (int)need));
    *out = !st->source.whole;
    return PC_OK;
}

static int read_waves(struct Session *s, struct PipeRead *p)
{
    bool more = true;
    TRY(prefill_prefix(s));
    while (more) {
        TRY(read_wave(s, certain(s, p->n), p));
        TRY(wait_chunk(s, p->n, &more));
    }
    return PC_OK;
}

/* A session over one wave after another. out NULL: it is only planned. *tail: the question is its own, not the text's last
 * token. */
static int open_session(struct Session *s, struct Engine *e, const struct Request *req,
                        struct Result *out, bool *tail)
{
    struct Prompt prompt = {0};
    int status = session_prompt_some(e, req, 1, &prompt);
    *tail = prompt.context.n == req->stream->n_tokens;
    prompt.context.n = LONG_TOKENS;
    if (status == PC_OK) status = session_open(s, e, req, &prompt, out);
    prompt_free(&prompt);
    return status;
}

/* Whether the pipe has given enough for a chunk, and is slow. */
static int worth_it(struct Engine *e, const struct Request *req, bool *out)
{
    struct Session s = {.open_end = true};
    int status = open_session(&s, e, req, NULL, out);
    if (status == PC_OK && *out) status = wait_chunk(&s, 0, out);
    if (status == PC_OK && *out) status = source_take(&req->stream->source, PATIENCE);
    *out = *out && !req->stream->source.whole;
    session_close(&s);
    return status;
}

int session_pipe(struct Engine *e, const struct Request *req, struct PipeRead **out)
{
    struct Session s = {.open_end = true, .begun = clock_seconds()};
    struct Result found = {0};
    bool wanted = may_read(e, req), tail;
    *out = NULL;
    if (wanted) TRY(worth_it(e, req, &wanted));
    if (!wanted) return PC_OK;
    struct PipeRead *p = *out = mem_alloc(1, sizeof *p);
    if (!p) return PC_ENOMEM;
    int status = open_session(&s, e, req, &found, &tail);
    if (status == PC_OK) {
        p->key = run_key(&s);
        p->n_looks = s.early.n_looks;
        status = read_waves(&s, p);
        p->stop = s.early.stop;
        s.early.stop = NULL;
        p->seconds = clock_seconds() - s.begun - req->stream->seconds;
    }
    session_close(&s);
    result_free(&found);
    return status;
}

void pipe_read_free(struct PipeRead *p)
{
    if (!p) return;
    mem_free(p->chunks);
    mem_free(p->stop);
    mem_free(p);
}

/* ==== In the run ==== */

double pipe_spent(const struct Request *req)
{
    double seconds = req->pipe ? req->pipe->seconds : 0;
    if (req->pipe) req->pipe->seconds = 0;
    return seconds;
}

size_t pipe_bytes(const struct PipeRead *p)
{
    return sizeof *p->chunks * (size_t)p->cap + sizeof *p->stop * (STOPS_MAX + 1);
}

/* The stop's place among those that were looked at; -1: it was not. */
static int look_at(const struct PipeRead *p, const struct ChunkStop *stop)
{
    for (int i = 0; i < p->n_looks; i++)
        if (p->stop[i].layer == stop->layer && p->stop[i].n_heads == stop->n_heads &&
            memcmp(p->stop[i].heads, stop->heads, sizeof *stop->heads * (size_t)stop->n_heads) == 0)
            return i;
    return -1;
}

static bool fits(const struct Session *s, const struct PipeRead *p)
{
    if (p->n == 0 || s->req->stream->scan || run_key(s) != p->key) return false;
    if (p->n > s->plan.n_chunks - EVEN_CHUNKS) return false;
    for (int d = 0; d < s->early.n_looks; d++)
        if (look_at(p, &s->early.stop[d]) < 0) return false;
    return true;
}

int pipe_cuts(struct Session *s)
{
    const struct PipeRead *p = s->req->pipe;
    if (!p || !fits(s, p)) return 0;
    s->known = p;
    for (int c = 0; c < p->n; c++) {
        s->chunks[c] = p->chunks[c].tokens;
        s->places[2 * c] = p->chunks[c].byte_begin;
        s->places[2 * c + 1] = p->chunks[c].byte_end;
    }
    s->places[2 * p->n] = p->next;
    return p->n;
}

int pipe_known(const struct Session *s)
{
    return s->known && s->rounds.at == 0 ? s->known->n : 0;
}

void pipe_skip(struct Session *s)
{
    int n = pipe_known(s);
    if (n == 0) return;
    s->out->n_piped = n;
    s->n_todo -= n;
    memmove(s->todo, s->todo + n, sizeof *s->todo * (size_t)s->n_todo);
    s->rounds.n_read = n;
    s->rounds.n_tokens = s->chunks[n - 1].end;
    s->n_tokens_todo = s->plan.n_context - s->chunks[n - 1].end;
}

void pipe_looks(const struct Session *s, const struct ChunkStop *stop, double *score)
{
    int n = pipe_known(s), at = n ? look_at(s->known, stop) : 0;
    for (int c = 0; c < n; c++) score[c] = s->known->chunks[c].looks[at];
}

int pipe_offer(struct Session *s, int chunk)
{
    s->out->chunks[chunk].score = s->known->chunks[chunk].surprise;
    return settle_chunk(s, chunk);
}

/* Chunks that stay and have no pages, as many as a wave takes; returns how many. */
static int without_pages(struct Session *s, int *chunk)
{
    int n = 0;
    for (int i = 0; i < s->queue.n && n < s->plan.wave; i++)
        if (!session_slot(s, s->queue.entries[i].chunk)) chunk[n++] = s->queue.entries[i].chunk;
    return n;
}

int pipe_fetch(struct Session *s)
{
    int chunk[WAVE_MAX];
    if (!pipe_known(s)) return PC_OK;
    for (int n; (n = without_pages(s, chunk)) > 0;) {
        struct Wave w = {.chunk = chunk, .n = n, .n_read = s->n_mine, .n_before = s->n_tokens_todo};
        TRY(wave_read(s, &w));
    }
    return PC_OK;
}

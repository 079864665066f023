/* chunk_plan.c - cuts the context into chunks that fit the model's window.
 *
 * ParallelComp, chunked parallel prefill: the input is split into chunks of at most a window,
 * each with the instruction before and the question after it. Takes token counts and where the
 * text has natural boundaries, hands on token ranges. Unlike the published splitter it counts
 * tokens, not characters, so that no chunk overflows and loses its middle, and it never cuts
 * inside a word if it can help it.
 */
#include "chunk_plan.h"

#include <string.h>

/* ==== Defaults and budget ==== */

int plan_defaults(struct Settings *s, int train_len, int64_t n_all)
{
    enum { CHUNK_LEAST = 1024, CHUNK_MOST = 4096, CAP_LEAST = 2048 };
    if (s->window == AUTO) s->window = train_len;
    if (s->chunk == AUTO && n_all <= s->window && n_all <= WHOLE_MOST) {
        s->chunk = s->window;
        if (s->kv_cap == AUTO) s->kv_cap = CAP_OFF;
    }
    if (s->chunk == AUTO) {
        s->chunk = s->window / 4;
        if (s->chunk < CHUNK_LEAST) s->chunk = CHUNK_LEAST;
        if (s->chunk > CHUNK_MOST) s->chunk = CHUNK_MOST;
    }
    if (s->keep == AUTO) s->keep = 1 + s->rounds;
    if (s->kv_cap == AUTO) {
        s->kv_cap = s->chunk / 2;
        if (s->kv_cap < CAP_LEAST) s->kv_cap = s->chunk < CAP_LEAST ? s->chunk : CAP_LEAST;
    }
    if (s->overlap > s->chunk / 2)
        return err_set(
            PC_ECONFIG,
            "overlap %d is more than half of a chunk (%d tokens); use --overlap %d or less",
            s->overlap, s->chunk, s->chunk / 2);
    return PC_OK;
}

int chunk_payload(const struct ChunkBudget *b, int *payload)
{
    int64_t room = (int64_t)b->window - b->n_prefix - b->n_tail - b->reserve;
    if (room < PAYLOAD_MIN)
        return err_set(
            PC_ERANGE,
            "the window of %d positions leaves %lld tokens for a chunk, and %d are needed: "
            "the instruction takes %d, the question %d, the answer %d; shorten the question "
            "or the instruction, lower --max-tokens, or raise --window",
            b->window, (long long)(room > 0 ? room : 0), PAYLOAD_MIN, b->n_prefix, b->n_tail,
            b->reserve);
    *payload = b->chunk < room ? b->chunk : (int)room;
    return PC_OK;
}

/* ==== Boundaries ==== */

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

/* Length of the one of these strings that text[0, end) ends with; 0 for none. */
static size_t ends_with(const char *text, size_t end, const char *const *endings)
{
    for (; *endings; endings++) {
        size_t len = strlen(*endings);
        if (end >= len && memcmp(text + end - len, *endings, len) == 0) return len;
    }
    return 0;
}

static const char *const closers[] = {"\"", "'", ")", "]", "”", "’", "»", "」", "』", "）", NULL};
static const char *const stops[] = {".", "!", "?", "…", NULL};
static const char *const wide_stops[] = {"。", "！", "？", NULL}; /* no blank follows these */

/* Whether a sentence ends before `end`, where no blank stands before `end`. */
static bool ends_sentence(const char *text, size_t end, bool blank_follows)
{
    for (size_t len; (len = ends_with(text, end, closers)) > 0;) end -= len;
    return ends_with(text, end, wide_stops) || (blank_follows && ends_with(text, end, stops));
}

enum Boundary boundary_at(const char *text, size_t len, size_t at)
{
    if (at == 0 || at >= len) return BOUNDARY_PARAGRAPH;                /* the text's own ends */
    if (((unsigned char)text[at] & 0xC0) == 0x80) return BOUNDARY_NONE; /* inside a character */
    size_t end = at;
    while (end > 0 && is_blank(text[end - 1])) end--;
    if (end > 0 && text[end - 1] == '\n') {
        end--;
        while (end > 0 && is_blank(text[end - 1])) end--;
        return end > 0 && text[end - 1] == '\n' ? BOUNDARY_PARAGRAPH : BOUNDARY_LINE;
    }
    bool blank_before = end < at, blank_after = is_blank(text[at]) || text[at] == '\n';
    if (ends_sentence(text, end, blank_before || blank_after)) return BOUNDARY_SENTENCE;
    return blank_before || blank_after ? BOUNDARY_SPACE : BOUNDARY_NONE;
}

size_t boundary_reach(const char *text, size_t at, size_t known)
{
    enum { CHAR_MOST = 4 }; /* a stop that ends with what is passed over here, and one before it */
    while (at != known) {
        size_t closer = ends_with(text, at, closers);
        if (closer)
            at -= closer;
        else if (at > 0 && (is_blank(text[at - 1]) || text[at - 1] == '\n'))
            at--;
        else
            break;
    }
    if (at == known) return at;
    return at > CHAR_MOST ? at - CHAR_MOST : 0;
}

void boundary_classify(const char *text, size_t len, const size_t *offset, int n_tokens,
                       uint8_t *boundary)
{
    for (int i = 0; i < n_tokens; i++) boundary[i] = (uint8_t)boundary_at(text, len, offset[i + 1]);
}

/* ==== Cuts ==== */

/* New tokens of a chunk that is none of the last ones. */
static int step_of(const struct ChunkInput *in)
{
    return in->payload - in->slack - in->overlap;
}

int chunk_count(const struct ChunkInput *in, int *n_chunks)
{
    if (in->payload < 1 || in->overlap < 0 || in->overlap > in->payload / 2)
        return err_set(
            PC_ERANGE,
            "chunks of %d tokens cannot share %d with their neighbours; at most half of a "
            "chunk may overlap: lower --overlap or raise --chunk",
            in->payload, in->overlap);
    int64_t fresh = step_of(in), rest = (int64_t)in->n_tokens - in->overlap;
    *n_chunks = in->n_tokens <= 0             ? 0
                : in->n_tokens <= in->payload ? 1
                                              : (int)((rest + fresh - 1) / fresh);
    return PC_OK;
}

static int at_least(int x, int least)
{
    return x > least ? x : least;
}

static int at_most(int x, int most)
{
    return x < most ? x : most;
}

/* The best cut among [lo, hi]; near[0] is the boundary at lo. */
static int best_cut(const uint8_t *near, int lo, int hi, int ideal)
{
    int best = lo;
    for (int cut = lo + 1; cut <= hi; cut++) {
        int gain = near[cut - lo] - near[best - lo];
        int far = cut > ideal ? cut - ideal : ideal - cut;
        int best_far = best > ideal ? best - ideal : ideal - best;
        if (gain > 0 || (gain == 0 && far < best_far)) best = cut;
    }
    return best;
}

/* Moves a cut from its ideal place to the best one among [lo, hi]. */
static int move_cut(const struct BoundaryReader *reader, int lo, int hi, int *cut)
{
    uint8_t near[2 * SNAP_MAX + 1];
    TRY(reader->near(reader->user, lo, hi, near));
    *cut = best_cut(near, lo, hi, *cut);
    return PC_OK;
}

/* Where chunk i would end if it is none of the last ones and cuts did not move. */
static int64_t ideal_end(const struct ChunkInput *in, int i)
{
    return in->overlap + (i + (int64_t)1) * step_of(in);
}

/* Cuts may move by less than half of the shortest stretch between two, so that they never meet. */
static int reach_of(int shortest)
{
    return at_least(at_most(SNAP_MAX, (shortest - 1) / 2), 0);
}

int64_t chunk_cut_tokens(const struct ChunkInput *in, int i)
{
    return ideal_end(in, i + EVEN_CHUNKS - 1) + 1;
}

int chunk_cut_read(const struct ChunkInput *in, int i, int before, struct Chunk *out,
                   const struct BoundaryReader *reader)
{
    /* The last chunks may be a little shorter than a step. They leave their slack, which together holds what a cut before them
     * takes away. */
    int step = step_of(in), reach = reach_of(step - step / EVEN_CHUNKS - 1),
        ideal = (int)ideal_end(in, i), lo = ideal - at_most(reach, EVEN_CHUNKS * in->slack),
        end = i ? before : in->overlap,
        hi = at_most(ideal + reach, end + in->payload - in->overlap);
    *out = (struct Chunk){end - in->overlap, ideal};
    return reader ? move_cut(reader, lo, hi, &out->end) : PC_OK;
}

/* ==== The last chunks ==== */

struct Last {
    const struct ChunkInput *in;
    int begin; /* where the chunk before would end if cuts did not move */
    int n;
    struct Chunk *chunks; /* [n] */
};

/* Ends at equal lengths, as far as they go. */
static void equal_cuts(const struct Last *l)
{
    int total = l->in->n_tokens - l->begin, end = l->begin;
    for (int i = 0; i < l->n; i++) {
        end += total / l->n + (i < total % l->n);
        l->chunks[i].end = end;
    }
}

/* Moves the cuts from their ideal places (chunks[i].end) to boundaries. before: where the chunk before ends. */
static int snap_cuts(const struct Last *l, int before, const struct BoundaryReader *reader)
{
    const struct ChunkInput *in = l->in;
    int reach = reach_of((in->n_tokens - l->begin) / l->n), fresh = in->payload - in->overlap;

    /* From the back: the earliest place of each cut from which all later chunks still hold the
     * rest. It is kept in `begin`, which is free until the cuts are final. */
    int lo_next = in->n_tokens;
    for (int i = l->n - 2; i >= 0; i--) {
        l->chunks[i].begin = at_least(l->chunks[i].end - reach, lo_next - fresh);
        lo_next = l->chunks[i].begin;
    }
    int hi = before + fresh;
    for (int i = 0; i < l->n - 1; i++) {
        struct Chunk *c = &l->chunks[i];
        TRY(move_cut(reader, c->begin, at_most(c->end + reach, hi), &c->end));
        hi = c->end + fresh;
    }
    return PC_OK;
}

int chunk_plan_read(const struct ChunkInput *in, int n_known, int n_chunks, struct Chunk *chunks,
                    const struct BoundaryReader *reader)
{
    int first = at_least(n_chunks - EVEN_CHUNKS, 0), before = in->overlap;
    if (n_chunks < 1) return PC_OK;
    if (n_known) before = chunks[n_known - 1].end;
    for (int i = n_known; i < first; i++) {
        TRY(chunk_cut_read(in, i, before, &chunks[i], reader));
        before = chunks[i].end;
    }
    struct Last l = {in, (int)ideal_end(in, first - 1), n_chunks - first, chunks + first};
    equal_cuts(&l);
    if (reader) TRY(snap_cuts(&l, before, reader));
    for (int i = first; i < n_chunks; i++)
        chunks[i].begin = i ? chunks[i - 1].end - in->overlap : 0;
    return PC_OK;
}

static int copy_near(void *user, int lo, int hi, uint8_t *boundary)
{
    memcpy(boundary, (const uint8_t *)user + lo - 1, (size_t)hi - (size_t)lo + 1);
    return PC_OK;
}

void chunk_plan_make(const struct ChunkInput *in, int n_chunks, struct Chunk *chunks)
{
    struct BoundaryReader reader = {copy_near, (void *)in->boundary};
    /* copy_near cannot fail */
    chunk_plan_read(in, 0, n_chunks, chunks, in->boundary ? &reader : NULL);
}

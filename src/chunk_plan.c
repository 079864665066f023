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

/* New tokens of a chunk, in all groups but the last. */
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

/* Chunks that are cut together. */
struct Group {
    const struct ChunkInput *in;
    int first, n;         /* chunks [first, first + n) of the text */
    bool last;            /* the text ends with it */
    struct Chunk *chunks; /* [n] */
};

/* Where the chunk before a group would end, if cuts did not move; it repeats nothing that is not there. */
static int64_t group_base(const struct Group *g)
{
    return (int64_t)g->first * step_of(g->in) + g->in->overlap;
}

static int64_t group_tokens(const struct Group *g)
{
    return g->last ? g->in->n_tokens - group_base(g) : (int64_t)g->n * step_of(g->in);
}

/* Ends at equal lengths, as far as they go. */
static void equal_cuts(const struct Group *g)
{
    int64_t total = group_tokens(g), end = group_base(g);
    for (int i = 0; i < g->n; i++) {
        end += total / g->n + (i < total % g->n);
        g->chunks[i].end = (int)end;
    }
}

/* Cuts may move by less than half of the shortest stretch between two, so that they never meet. In front of the last group,
 * whose lengths are not known yet, that is a little less than a step. */
static int cut_reach(const struct Group *g)
{
    int step = step_of(g->in),
        shortest = g->last ? (int)(group_tokens(g) / g->n) : step - step / CUT_GROUP - 1;
    return at_least(at_most(SNAP_MAX, (shortest - 1) / 2), 0);
}

/* Moves the cuts from their ideal places (chunks[i].end) to boundaries. before: where the chunk before ends. */
static int snap_cuts(const struct Group *g, int before, const struct BoundaryReader *reader)
{
    const struct ChunkInput *in = g->in;
    struct Chunk *chunks = g->chunks;
    int reach = cut_reach(g), fresh = in->payload - in->overlap, n = g->last ? g->n - 1 : g->n;

    /* From the back: the earliest place of each cut from which all later chunks still hold the
     * rest. It is kept in `begin`, which is free until the cuts are final. Chunks of later groups leave their slack. */
    int lo_next = g->last ? in->n_tokens : chunks[n - 1].end + fresh;
    if (!g->last) lo_next -= at_most(reach, CUT_GROUP * in->slack);
    for (int i = n - 1; i >= 0; i--) {
        chunks[i].begin = at_least(chunks[i].end - reach, lo_next - fresh);
        lo_next = chunks[i].begin;
    }
    int hi = before + fresh;
    for (int i = 0; i < n; i++) {
        uint8_t near[2 * SNAP_MAX + 1];
        int ideal = chunks[i].end, lo = chunks[i].begin, last = at_most(ideal + reach, hi);
        TRY(reader->near(reader->user, lo, last, near));
        chunks[i].end = best_cut(near, lo, last, ideal);
        hi = chunks[i].end + fresh;
    }
    return PC_OK;
}

/* reader NULL: cuts stay. */
static int cut_group(const struct Group *g, int before, const struct BoundaryReader *reader)
{
    equal_cuts(g);
    if (reader) TRY(snap_cuts(g, before, reader));
    g->chunks[0].begin = g->first ? before - g->in->overlap : 0;
    for (int i = 1; i < g->n; i++) g->chunks[i].begin = g->chunks[i - 1].end - g->in->overlap;
    return PC_OK;
}

int chunk_plan_read(const struct ChunkInput *in, int n_known, int n_chunks, struct Chunk *chunks,
                    const struct BoundaryReader *reader)
{
    for (int first = n_known, n; first < n_chunks; first += n) {
        bool last = n_chunks - first < 2 * CUT_GROUP;
        n = last ? n_chunks - first : CUT_GROUP;
        struct Group g = {in, first, n, last, chunks + first};
        TRY(cut_group(&g, first ? chunks[first - 1].end : in->overlap, reader));
    }
    return PC_OK;
}

int64_t chunk_group_tokens(const struct ChunkInput *in, int first)
{
    return in->overlap + (first + (int64_t)2 * CUT_GROUP - 1) * step_of(in) + 1;
}

int chunk_group_read(const struct ChunkInput *in, int first, int before, struct Chunk *chunks,
                     const struct BoundaryReader *reader)
{
    struct Group g = {in, first, CUT_GROUP, false, chunks};
    return cut_group(&g, first ? before : in->overlap, reader);
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

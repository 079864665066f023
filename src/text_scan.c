/* text_scan.c - text_stream_scan(): goes through a text once and counts its tokens, with all threads; of a pipe, as far as is
 * asked for at a time.
 *
 * One thread reads a block, checks it and finds the places where it is certain to cut; that is quick. What lies between two
 * of them is a segment whose ids depend on no other's, so all threads encode segments, each with an encoder of its own,
 * and counts and checksums are written down in the text's order. Memory is a block and an encoder a thread, given back at
 * the end; only one encoder stays, for loading. Until then loading borrows the first thread's.
 */
#include "text_stream.h"

#include <limits.h>
#include <omp.h>
#include <string.h>

enum {
    LOOK_BYTES = 64,      /* seen behind a segment, for what decides whether its end is certain */
    BATCH = 1024,         /* segments of a block: threads wait for each other once */
    COMING = 128,         /* of one whose end is not known: a pipe may be slow, and is waited for */
    HANDS_MAX = 16,       /* threads: reading feeds no more */
    HAND_BYTES = 1 << 16, /* of a text that repay another one */
};

/* What one thread encodes with, on a cache line of its own. */
struct ScanHand {
    _Alignas(64) struct Encoder *encoder;
    struct Tokens ids; /* of the segment at hand */
};

struct Scan {
    struct TextStream *st;
    struct Str block; /* bytes of the text from `at` on */
    size_t at;
    bool ends;             /* the text ends with the last segment */
    int n;                 /* segments in it: */
    size_t cut[BATCH + 1]; /* where they begin in the block, and the last one's end */
    int tokens[BATCH];
    uint32_t sum[BATCH];
    struct ScanHand *hands; /* [n_hands] */
    int n_hands;
    struct ErrKept failed;
    struct Hash64 *hash;
    double begun;
};

/* ==== Cutting ==== */

/* Length of the segment that begins here; 0 when more of the text is needed to tell. ends: nothing follows. */
static size_t segment_len(const struct Tokenizer *t, const char *text, size_t len, bool ends)
{
    size_t wanted = SEGMENT_BYTES, cut;
    for (; wanted + LOOK_BYTES <= len; wanted *= 2) {
        cut = tokenizer_cut(t, text, wanted + LOOK_BYTES, false);
        if (cut) return cut;
    }
    if (!ends) return 0;
    cut = len <= wanted ? len : tokenizer_cut(t, text, len, true);
    return cut ? cut : len;
}

static void block_cut(struct Scan *scan, size_t len, bool ends)
{
    for (size_t at = 0; at < len && scan->n < BATCH;) {
        size_t cut = segment_len(scan->st->tok, scan->block.data + at, len - at, ends);
        if (cut == 0) return;
        at += cut;
        scan->cut[++scan->n] = at;
    }
}

/* The segments that follow; none behind the text's end. A block is as long as it must be to hold one. */
static int block_read(struct Scan *scan)
{
    struct TextSource *s = &scan->st->source;
    size_t segments = s->whole ? BATCH : COMING;
    scan->n = 0;
    for (size_t wanted = segments * SEGMENT_BYTES;; wanted *= 2) {
        size_t got;
        str_clear(&scan->block);
        TRY(str_reserve(&scan->block, wanted));
        TRY(source_read(s, scan->at, wanted, scan->block.data, &got));
        bool ends = got < wanted;
        TRY(source_check(s, scan->at, scan->block.data, got, ends));
        if (got >= INT_MAX)
            return err_set(PC_ERANGE, "%zu bytes without a place to cut; the limit is 2 GiB", got);
        block_cut(scan, got, ends);
        scan->ends = ends && scan->cut[scan->n] == got;
        if (scan->n || ends) return PC_OK;
    }
}

/* ==== Counting ==== */

static void segment_count(struct Scan *scan, int i, struct ScanHand *hand)
{
    const struct TextStream *st = scan->st;
    const char *text = scan->block.data + scan->cut[i];
    size_t len = scan->cut[i + 1] - scan->cut[i];
    bool begins = st->begins && st->n_segments + i == 0;
    hand->ids.n = 0;
    int status = encoder_add(hand->encoder, text, len, begins, &hand->ids);
    scan->tokens[i] = hand->ids.n;
    scan->sum[i] = text_sum(text, len);
    if (status == PC_OK) return;
#pragma omp critical(scan_failure)
    err_keep(&scan->failed, status);
}

static int block_count(struct Scan *scan)
{
#pragma omp parallel for schedule(dynamic, 8) num_threads(scan->n_hands) if (scan->n > 1)
    for (int i = 0; i < scan->n; i++) segment_count(scan, i, &scan->hands[omp_get_thread_num()]);
    return err_tell(&scan->failed);
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

static int block_push(struct Scan *scan)
{
    struct TextStream *st = scan->st;
    for (int i = 0; i < scan->n; i++) {
        TRY(segment_push(st, scan->at + scan->cut[i], scan->sum[i]));
        if (scan->tokens[i] > INT_MAX - 1 - st->n_tokens)
            return err_set(PC_ERANGE, "the text has more than %d tokens; cut it in several",
                           INT_MAX);
        st->n_tokens += scan->tokens[i];
    }
    return PC_OK;
}

/* ==== Scan ==== */

/* Where the next segment begins, or the text ends: what was counted so far can be loaded. */
static int mark_end(struct TextStream *st, size_t byte)
{
    TRY(segment_push(st, byte, 0));
    st->n_segments--;
    return PC_OK;
}

static int scan_block(struct Scan *scan)
{
    TRY(block_read(scan));
    hash64_add(scan->hash, scan->block.data, scan->cut[scan->n]);
    TRY(block_count(scan));
    TRY(block_push(scan));
    scan->at += scan->cut[scan->n];
    return mark_end(scan->st, scan->at);
}

static int scan_blocks(struct Scan *scan, int least, const struct ScanWatch *watch)
{
    const struct TextStream *st = scan->st;
    while (!scan->ends && st->n_tokens < least) {
        struct TextScan info = {scan->at, st->source.whole ? st->source.size : 0, st->n_tokens,
                                clock_seconds() - scan->begun};
        if (watch) TRY(watch->seen(watch->user, &info));
        TRY(scan_block(scan));
    }
    return PC_OK;
}

static int scan_open(struct Scan *scan)
{
    struct TextStream *st = scan->st;
    const struct TextSource *s = &st->source;
    int wanted = min_int(max_int(st->threads, 1), HANDS_MAX);
    if (s->whole && s->size / HAND_BYTES < (size_t)wanted) wanted = 1 + (int)(s->size / HAND_BYTES);
    scan->hands = mem_alloc((size_t)wanted, sizeof *scan->hands);
    if (!scan->hands) return PC_ENOMEM;
    scan->n_hands = wanted;
    for (int i = 0; i < wanted; i++) TRY(encoder_open(st->tok, LONG_TEXT, &scan->hands[i].encoder));
    st->encoder = scan->hands[0].encoder;
    return hash64_begin(0, &scan->hash);
}

/* The encoder that has met the longest word stays: no later load needs more than it has. */
static void keep_encoder(const struct Scan *scan)
{
    struct Encoder *kept = NULL;
    for (int i = 0; i < scan->n_hands; i++) {
        struct Encoder *mine = scan->hands[i].encoder;
        bool longer = mine && (!kept || encoder_bytes(mine) > encoder_bytes(kept));
        encoder_close(longer ? kept : mine);
        if (longer) kept = mine;
    }
    scan->st->encoder = kept;
}

void text_scan_end(struct TextStream *st)
{
    struct Scan *scan = st->scan;
    if (!scan) return;
    st->hash = hash64_end(scan->hash);
    keep_encoder(scan);
    for (int i = 0; i < scan->n_hands; i++) tokens_free(&scan->hands[i].ids);
    mem_free(scan->hands);
    str_free(&scan->block);
    mem_free(scan);
    st->scan = NULL;
}

/* Another kind of scan begins, unless this one is under way or done. */
static int scan_begin(struct TextStream *st, const struct Tokenizer *t, bool begins)
{
    if (st->tok == t && st->begins == begins) return PC_OK;
    text_stream_forget(st);
    st->scan = mem_alloc(1, sizeof *st->scan);
    if (!st->scan) return PC_ENOMEM;
    st->tok = t;
    st->begins = begins;
    *st->scan = (struct Scan){.st = st, .begun = clock_seconds()};
    return scan_open(st->scan);
}

int text_stream_scan(struct TextStream *st, const struct Tokenizer *t, bool begins, int least,
                     const struct ScanWatch *watch)
{
    double begun = clock_seconds();
    int status = scan_begin(st, t, begins);
    if (status == PC_OK && st->scan) status = scan_blocks(st->scan, least, watch);
    if (status == PC_OK && st->scan && st->scan->ends) text_scan_end(st);
    st->seconds += clock_seconds() - begun;
    if (status < 0) text_stream_forget(st);
    return status;
}

/* text_stream.h - a long text as token ids of which only a stretch is in memory at a time.
 *
 * The text is cut into segments of a KiB at places where the tokenizer certainly cuts (tokenizer_cut), so that the ids of the
 * segments, each by itself, are those of the text as a whole. text_stream_scan() goes through it once (text_scan.c) and keeps
 * where each segment begins, in bytes and tokens, and a checksum; text_stream_load() reads any stretch again from there.
 * A segment is as long as it must be: where no cut is certain, as in a megabyte of letters without a blank, it takes that
 * much memory. A text that changed in between is an error that names the file.
 */
#ifndef PCOMP_TEXT_STREAM_H
#define PCOMP_TEXT_STREAM_H

#include "text_source.h"
#include "tokenizer.h"

enum {
    SEGMENT_BYTES = 1024, /* of a segment, about */
    LONG_TEXT = 1 << 24,  /* bytes of a text whose words repay remembering */
};

struct TextSegment {
    size_t byte;
    int token;
    uint32_t sum;
};

/* How far a scan is. */
struct TextScan {
    size_t bytes, size; /* size 0: not known yet */
    int tokens;
    double seconds;
};

struct TextStream {
    struct TextSource source;
    struct Scan *scan;           /* under way; NULL: none is, or all is counted */
    const struct Tokenizer *tok; /* of the scan; NULL: not scanned */
    bool begins;
    int threads; /* that a scan may use; 0: one */
    struct Encoder *encoder;
    struct TextSegment *segments; /* [n_segments + 1], the last one the text's end */
    int n_segments, cap, n_tokens;
    uint64_t hash;  /* hash64 of the text, seed 0, once all is counted */
    double seconds; /* that the scan took, until somebody counts them */
    /* What text_stream_load() puts here: */
    struct Str text;   /* bytes of the text from text_at on */
    struct Tokens ids; /* its tokens */
    size_t text_at;
    int first, segment, segment_end; /* token number of ids[0]; the segments */
    size_t *place;                   /* [place_cap] by text_stream_places() */
    size_t place_cap;
};

/* Nothing is read yet. paths as in source_open. text_stream_close frees, also after an error. */
int text_stream_open(struct TextStream *st, const char *const *paths, int n);
void text_stream_close(struct TextStream *st);

/* A second reader of a scanned stream, for another thread: it loads by itself and borrows the rest. text_stream_leave frees,
 * also after an error, before the first one is closed or scanned otherwise. */
int text_stream_share(const struct TextStream *st, struct TextStream *reader);
void text_stream_leave(struct TextStream *reader);

/* Counts tokens until at least so many are known, INT_MAX: all, and these can be loaded; another scan of the same kind goes on behind
 * them, or returns at once. A pipe is waited for. begins: the text is the start of the model's input. seen is called every MiB
 * or so, by this thread, and may end the scan; watch may be NULL. Counts do not depend on threads.
 * Errors: those of source_read and source_check; PC_ERANGE (more tokens than can be counted). */
struct ScanWatch {
    int (*seen)(void *user, const struct TextScan *scan);
    void *user;
};
int text_stream_scan(struct TextStream *st, const struct Tokenizer *t, bool begins, int least,
                     const struct ScanWatch *watch);
void text_scan_end(struct TextStream *st);       /* of a scan that is under way */
void text_stream_forget(struct TextStream *st);  /* the scan */
uint32_t text_sum(const char *text, size_t len); /* a segment's checksum */

/* Loads the segments that hold tokens [begin, end), begin < end. */
int text_stream_load(struct TextStream *st, int begin, int end);
/* The ids of tokens [begin, ...) of a stretch that is loaded. */
const int *text_stream_ids(const struct TextStream *st, int begin);
/* place[i]: byte of the whole text at which loaded token i begins; place[ids.n]: the end of the stretch. */
int text_stream_places(struct TextStream *st);
/* Loads bytes [begin, end) of the text into st->text; no ids. */
int text_stream_bytes(struct TextStream *st, size_t begin, size_t end);
/* Ids of all tokens, to ids [n_tokens]. */
int text_stream_all(struct TextStream *st, int *ids);

/* Memory: what loading any stretch of n tokens takes at most, or the bytes of n_text. Allocates it, so that later loads
 * need not. */
size_t text_stream_room(const struct TextStream *st, int n, int n_text);
int text_stream_reserve(struct TextStream *st, int n, int n_text);
/* Held besides that. */
size_t text_stream_held(const struct TextStream *st);

#endif

/* chunk_plan.h - how a long context is cut: defaults, the tokens a chunk may hold, and the cuts. */
#ifndef PCOMP_CHUNK_PLAN_H
#define PCOMP_CHUNK_PLAN_H

#include "config.h"

/* Replaces AUTO in window, chunk, keep and kv_cap by values that suit a model trained on train_len
 * positions:
 *   window = train_len
 *   chunk  = a quarter of the window, at least 1024 and at most 4096
 *   keep   = 2, or one more than there are rounds
 *   kv_cap = half a chunk, but no fewer than 2048 tokens: a chunk up to 2048 keeps all its tokens,
 *            as dropping from so short a chunk was measured to break long digit strings
 * A prompt that fits the window with its answer, n_all tokens up to WHOLE_MOST, is one chunk of which all tokens stay:
 * the model reads it as it was trained to.
 * CAP_OFF and KEEP_ALL stay. Errors: PC_ECONFIG (overlap of more than half a chunk). */
enum { WHOLE_MOST = 32768 };
int plan_defaults(struct Settings *s, int train_len, int64_t n_all);

/* What shares a window with the context tokens of a chunk. */
struct ChunkBudget {
    int window;   /* positions */
    int n_prefix; /* tokens before each chunk */
    int n_tail;   /* question tokens after each chunk */
    int reserve;  /* positions kept free for the answer */
    int chunk;    /* most context tokens wanted in a chunk */
};

enum { PAYLOAD_MIN = 256 };

/* Context tokens a chunk may hold: what the window leaves, bounded by `chunk`.
 * Errors: PC_ERANGE when the window leaves fewer than PAYLOAD_MIN. */
int chunk_payload(const struct ChunkBudget *b, int *payload);

/* How natural a cut is, weakest first. */
enum Boundary {
    BOUNDARY_NONE,
    BOUNDARY_SPACE,
    BOUNDARY_SENTENCE,
    BOUNDARY_LINE,
    BOUNDARY_PARAGRAPH
};

/* Judges a cut of the UTF-8 text before byte `at`. */
enum Boundary boundary_at(const char *text, size_t len, size_t at);
/* From which byte on boundary_at() may look at a text; what lies before makes no difference. Where its way back leads over
 * byte `known`, that is returned. */
size_t boundary_reach(const char *text, size_t at, size_t known);
/* boundary[i] (enum Boundary): the cut after token i, which ends at byte offset[i + 1]. */
void boundary_classify(const char *text, size_t len, const size_t *offset, int n_tokens,
                       uint8_t *boundary);

enum { SNAP_MAX = 64 }; /* tokens that a cut may move, either way */

struct ChunkInput {
    int n_tokens; /* context tokens */
    int payload;  /* most tokens of a chunk, overlap included */
    int overlap;  /* tokens that each chunk but the first repeats from the one before */
    int slack; /* of the payload that chunks leave free on average, for cuts to move; a quarter at most */
    const uint8_t *boundary; /* [n_tokens] enum Boundary after each token; NULL: cuts stay */
};

struct Chunk {
    int begin, end; /* context tokens [begin, end) */
};

/* The least number of chunks that hold all tokens and, if they are several, leave their slack; 0 for no tokens.
 * Errors: PC_ERANGE (payload below 1, overlap of more than half of it). */
int chunk_count(const struct ChunkInput *in, int *n_chunks);

/* Before cuts move to boundaries, lengths of the last EVEN_CHUNKS chunks, or of all, differ by 1 at most; all chunks before these
 * are as long as the payload less slack. So a cut does not depend on what follows, once enough is known to follow, and a
 * text can be read before its end has come (session_pipe.c). */
enum { EVEN_CHUNKS = 80 };

/* Fills chunks[n_chunks], n_chunks as chunk_count gave it, in document order. No token is left
 * out, no chunk is empty or longer than the payload. Each cut in turn, from the front, moves to the strongest boundary in
 * reach, of equal ones to the nearest, then to the earlier. */
void chunk_plan_make(const struct ChunkInput *in, int n_chunks, struct Chunk *chunks);

/* Boundaries of a text that is not in memory: near(user, lo, hi, boundary) writes those of the cuts before tokens
 * [lo, hi], at most 2 * SNAP_MAX + 1, to boundary[0 .. hi - lo]. Calls come in document order, one for each cut. */
struct BoundaryReader {
    int (*near)(void *user, int lo, int hi, uint8_t *boundary);
    void *user;
};
/* The same cuts as chunk_plan_make with all boundaries; in->boundary is not looked at. The first n_known chunks, of which none is among
 * the last EVEN_CHUNKS, are known. Errors: those of near. */
int chunk_plan_read(const struct ChunkInput *in, int n_known, int n_chunks, struct Chunk *chunks,
                    const struct BoundaryReader *reader);

/* Tokens that a text has at least if chunk i is none of the last EVEN_CHUNKS; and that chunk. before: where the one before ends.
 * in->n_tokens is not looked at. */
int64_t chunk_cut_tokens(const struct ChunkInput *in, int i);
int chunk_cut_read(const struct ChunkInput *in, int i, int before, struct Chunk *out,
                   const struct BoundaryReader *reader);

#endif

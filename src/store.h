/* store.h - a document store: one file that holds a text, its chunks' keys and values, and all that asking needs.
 *
 * Layout, little-endian, every part at a multiple of 64 bytes, every section at one of 4096:
 *
 *   head     struct StoreHead: magic, version, what made it, sizes; its own hash
 *   body     classes of heads | prefix ids | context ids | chunks | byte offsets of tokens | settings | text; one hash in the head
 *   section  of each chunk, in order: 64 bytes with number, size and hash; the last context row behind the last layer,
 *            [dim] f32; of a capped store, which tokens of the chunk each head has, a bit for each; pages, head by head,
 *            as the backend made them (slots behind a head's last token hold anything)
 *   trailer  64 bytes that only a complete store has
 *
 * Sizes follow from the head, so every place is known from the start. A store is written beside its target, as
 * TARGET.part, section by section, and renamed when it is whole; an interrupted one goes on behind its last whole
 * section. Hashes are seeded with the head's: no section is taken for one of another store. A reader maps the
 * file read-only, so there may be many; a chunk is checked when it is first read. A capped store is of version 2; one that
 * has all tokens is still of version 1.
 */
#ifndef PCOMP_STORE_H
#define PCOMP_STORE_H

#include "base.h"
#include "chunk_plan.h"
#include "headmap.h"
#include "model.h"

/* What a store says of itself. Arrays are the maker's, or lie in the mapped file. */
struct StoreInfo {
    uint64_t model_hash;
    uint64_t
        heads_hash; /* of the classes and windows of heads while the text was read; 0: all saw everything */
    char page_format[48]; /* Backend.page_format */
    size_t page_bytes;
    int n_layers, n_kv_heads, dim;
    int sinks, recent; /* what streaming heads keep; 0, 0: none streams */
    int cap;           /* context tokens of a chunk that a head keeps at most; 0: all */
    int n_prefix, n_context, n_chunks;
    int chunk_tokens; /* most context tokens that a chunk may hold */
    int64_t
        n_all; /* tokens by which was decided whether the text is one chunk, and which heads stream */
    double rope_factor;         /* stretch of the rotation; 1: none */
    const uint8_t *streams;     /* [n_layers * n_kv_heads] 1: keeps sinks and recent tokens only */
    const int *prefix;          /* [n_prefix] token ids */
    const int *context;         /* [n_context] token ids */
    const struct Chunk *chunks; /* [n_chunks] */
    const size_t *offset;  /* [n_context + 1] byte where each context token begins in the text */
    struct Slice settings; /* JSON of the settings that shape the chunks */
    struct Slice text;     /* UTF-8 */
};

/* Context tokens of a chunk that a head keeps: its ends where it streams, else as many as the cap allows, counted as the
 * first ones wherever in the chunk they stand. */
struct HeadEnds store_tokens(const struct StoreInfo *info, int head, int n);
/* Pages of a chunk of n context tokens, all heads. */
size_t store_pages(const struct StoreInfo *info, int n);
/* Those of the layers before `layer`, which come first. */
size_t store_pages_before(const struct StoreInfo *info, int layer, int n);
/* Bytes that mark which of n context tokens a head keeps; 0: it keeps them all, or its ends. */
size_t store_mark_bytes(const struct StoreInfo *info, int n);
/* The same of all heads, to whole lines of the file. */
size_t store_marks_bytes(const struct StoreInfo *info, int n);
/* Sets a token's mark among those of a head, or looks whether it is set. */
static inline void store_mark(uint8_t *marks, int token)
{
    marks[token / 8] |= (uint8_t)(1 << token % 8);
}
static inline bool store_marked(const uint8_t *marks, int token)
{
    return marks[token / 8] >> token % 8 & 1;
}
/* Bytes of the whole file. PC_ERANGE when they cannot be counted. */
int store_bytes(const struct StoreInfo *info, size_t *bytes);

/* ==== Reading ==== */

struct Store {
    struct StoreInfo info;
    struct FileMap map;
    uint64_t seed;    /* of the hashes: the head's own */
    size_t sections;  /* where the first one begins */
    uint8_t *checked; /* [n_chunks] owned */
    char path[1024];
};

/* Maps a store and checks head, body and trailer. PC_EFORMAT names what is wrong and the remedy; PC_EIO. store_close
 * always. */
int store_open(const char *path, struct Store *out);
void store_close(struct Store *s);

struct StoreChunk {
    const float *last; /* [dim] f32 */
    const uint8_t *
        marks; /* [n_layers * n_kv_heads, store_mark_bytes]; none set of heads that stream; NULL without any */
    const uint8_t *pages; /* [n_pages, page_bytes] */
    size_t n_pages;
};
/* A chunk's section in the map. PC_EFORMAT when it is damaged: each is checked once. */
int store_chunk(struct Store *s, int chunk, struct StoreChunk *out);
/* Checks chunks at once, by so many threads; store_chunk tells of those that are damaged. */
void store_check(struct Store *s, const int *chunks, int n, int threads);
/* Asks the system to read a chunk ahead. */
void store_expect(const struct Store *s, int chunk);

/* ==== Writing ==== */

struct StoreWriter {
    struct StoreInfo info;
    uint64_t seed;
    size_t sections, bytes;
    uint8_t *section; /* room for the largest section; owned */
    struct Str part;  /* path of the unfinished file */
    const char *path; /* borrowed */
    int fd, n_done;   /* sections written; all of them: the store is there already */
    bool busy;        /* another process is writing this store: the reason of PC_ECONFIG */
};

/* Begins a store at path, or goes on with what an interrupted run left: n_done sections are whole. With n_done equal to
 * n_chunks and fd -1 the file at path is this very store. Errors: PC_ECONFIG (another store there and not
 * `fresh`, or a file that is none, or another process at it), PC_EIO, PC_ENOMEM. store_writer_close always. */
int store_create(const char *path, const struct StoreInfo *info, bool fresh,
                 struct StoreWriter *out);
/* Where the caller puts what StoreChunk gives of the next chunk. marks: all clear. */
struct StoreRoom {
    float *last;
    uint8_t *marks, *pages;
};
struct StoreRoom store_section(const struct StoreWriter *w);
/* Writes the next chunk. PC_EIO says what to do about a full disk. */
int store_write(struct StoreWriter *w);
/* The store appears at its path. */
int store_finish(struct StoreWriter *w);
/* Leaves an unfinished store where it is. */
void store_writer_close(struct StoreWriter *w);

#endif

/* store_parts.h - the fixed structures of a store's file, for its reader and its writer. */
#ifndef PCOMP_STORE_PARTS_H
#define PCOMP_STORE_PARTS_H

#include "backend.h"
#include "store.h"

enum { STORE_WHOLE = 1, STORE_CAPPED = 2 }; /* versions */
enum { STORE_ALIGN = 64, STORE_SECTION = 4096 };

#define STORE_MAGIC   "PCSTORE\n"
#define SECTION_MAGIC "PCCHUNK\n"
#define TRAILER_MAGIC "PCSTEND\n"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && sizeof(size_t) == 8,
               "stores are read and written where they lie");

struct StoreHead {
    char magic[8];
    uint32_t version, head_bytes;
    uint64_t model_hash, heads_hash;
    char page_format[48];
    uint64_t page_bytes;
    uint32_t page_tokens, n_layers, n_kv_heads, dim, sinks, recent;
    uint32_t n_prefix, n_context, n_chunks, chunk_tokens;
    uint64_t n_all;
    double rope_factor;
    uint64_t settings_bytes, text_bytes;
    uint64_t body_bytes, body_hash; /* the body with its padding */
    uint32_t cap;                   /* 0 but in STORE_CAPPED */
    uint8_t zero[68];
    uint64_t hash; /* of all before it */
};
_Static_assert(sizeof(struct StoreHead) == 256, "the head has no gaps");

struct SectionHead {
    char magic[8];
    uint64_t chunk, bytes; /* of the section, this head included */
    uint8_t zero[32];
    uint64_t hash; /* of the head up to here and all behind it */
};

struct StoreTrailer {
    char magic[8];
    uint64_t bytes; /* of the file */
    uint8_t zero[40];
    uint64_t hash; /* of all before it */
};
_Static_assert(sizeof(struct SectionHead) == STORE_ALIGN &&
                   sizeof(struct StoreTrailer) == STORE_ALIGN,
               "one line each");

/* The places of the body's parts, from the file's begin. */
struct StoreBody {
    size_t streams, prefix, context, chunks, offset, settings, text, end;
};

/* store_open on what is mapped already, which store_close takes over. */
int store_parse(struct FileMap file, const char *name, struct Store *out);
/* From the sizes in info. False when they cannot be counted. */
bool store_body(const struct StoreInfo *info, struct StoreBody *out);
/* Bytes of a chunk's section; 0 when they cannot be counted. */
size_t store_section_bytes(const struct StoreInfo *info, int chunk);
size_t store_last_bytes(const struct StoreInfo *info); /* of the last row, padded */
uint64_t store_section_hash(const uint8_t *section, size_t bytes, uint64_t seed);
void store_trailer(size_t bytes, uint64_t seed, struct StoreTrailer *out);

#endif

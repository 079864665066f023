/* page_store.h - pages of the KV cache in the tier below: in memory, or in a file without a name (headwise.md D.6).
 *
 * One interface, so that whoever keeps pages elsewhere, or makes them come late in a test, fills in the same functions. A page
 * is read as it was written last. Several pages may be read at once, each by a thread of its own.
 */
#ifndef PCOMP_PAGE_STORE_H
#define PCOMP_PAGE_STORE_H

#include "base.h"

struct PageStore {
    /* page_bytes from or to `page`. PC_EIO names the place and what is wrong with it. */
    int (*read)(struct PageStore *s, uint32_t page, void *out);
    int (*write)(struct PageStore *s, uint32_t page, const void *data);
    void (*close)(struct PageStore *s);
    size_t page_bytes;
    uint32_t n_pages;
    uint8_t *memory; /* [n_pages, page_bytes], of a store in memory */
    int fd;          /* of a file */
    uint64_t *sums;  /* [n_pages] of a file: hash64 of what was written */
    char dir[256];   /* where the file is */
};

/* Both are the caller's: s->close(s), also after a failure. */
int page_store_memory(struct PageStore *s, size_t page_bytes, uint32_t n_pages);
/* A file in `dir` that goes with the process, however that ends; all of its room is taken now, so that a disk that is too
 * small is found before work begins. PC_EIO. */
int page_store_file(struct PageStore *s, const char *dir, size_t page_bytes, uint32_t n_pages);
/* Bytes of memory that a file's store takes. */
static inline size_t page_store_file_bytes(size_t n_pages)
{
    return n_pages * sizeof(uint64_t);
}

#endif

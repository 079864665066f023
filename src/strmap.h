/* strmap.h - from a spelling to its index in a list; built once, then only read.
 *
 * Open addressing over borrowed slices. A slot holds the upper half of the hash beside the index,
 * so that a probe touches the spelling itself only when it is nearly sure to be the right one.
 */
#ifndef PCOMP_STRMAP_H
#define PCOMP_STRMAP_H

#include "model.h"

struct StrMap {
    const struct Slice *keys; /* borrowed */
    uint64_t *slots;          /* hash's upper 32 bits, index + 1; 0 when free */
    size_t mask;
};

/* Maps every key to its index; of equal keys the last one counts, and those with data NULL are left
 * out. Keys stay the caller's and must outlive the map. */
int strmap_build(struct StrMap *map, const struct Slice *keys, int n);
void strmap_free(struct StrMap *map);
/* -1 when absent. */
int strmap_find(const struct StrMap *map, const char *data, size_t len);

#endif

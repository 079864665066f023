/* merge.h - byte-pair merging of one word, and a memory of the words met so far.
 *
 * Both kinds of vocabulary come down to the same rule: of all neighbours that may be merged, merge
 * the pair of lowest rank, the leftmost one among equals, until none is left. Words of any length
 * cost O(n log n): symbols form a linked list and waiting merges a heap.
 */
#ifndef PCOMP_MERGE_H
#define PCOMP_MERGE_H

#include "base.h"

/* (left id, right id) -> rank and id of the merged token. Read-only once filled. */
struct MergeTable {
    struct MergeSlot *slots;
    size_t mask;
    int shift;
};

int merges_alloc(struct MergeTable *table, size_t n_max);
void merges_free(struct MergeTable *table);
/* Adds a merge; of equal pairs the first one added counts. At most n_max may be added. */
void merges_add(struct MergeTable *table, int left, int right, uint32_t rank, int merged);

/* ==== Words met before ==== */

enum { WORD_BYTES = 16, WORD_IDS = 10 };

/* One cache line: a short word and its ids. */
struct Word {
    uint64_t key[2]; /* the bytes, zero-padded */
    int16_t len, n;  /* len 0: free */
    int ids[WORD_IDS];
};

struct WordCache {
    struct Word *words; /* NULL: no cache, for texts too short to repay one */
    int shift;
};

/* The place for this word, its n being 0 when the word is new there; NULL when words so long are
 * not kept. */
struct Word *words_find(const struct WordCache *cache, const char *data, size_t len);
/* Keeps the ids for the next time, when they are few enough. word may be NULL. */
void words_keep(struct Word *word, const int *ids, size_t n);

/* ==== Merging ==== */

/* What one encode call works with. */
struct MergeWork {
    struct MergeSymbol *symbols; /* [n_cap] */
    uint64_t *heap;              /* [2 * n_cap] rank in the upper, position in the lower half */
    size_t n_cap, n_heap;
    size_t n_pushed; /* heap pushes so far: shows the work done, for tests */
    int *ids;        /* [ids_cap] the word at hand */
    size_t ids_cap;
    struct WordCache words;
};

/* text_len: how much text the call is about, for the size of the cache. */
int merge_work_init(struct MergeWork *work, size_t text_len);
void merge_work_free(struct MergeWork *work);
size_t merge_work_bytes(const struct MergeWork *work); /* of memory, now */
/* Room for n ids in work->ids; what was there may be lost. */
int merge_work_ids(struct MergeWork *work, size_t n);
/* Merges ids[0, n) in place; *n becomes what is left. Negative ids never merge and stay. */
int merge_word(const struct MergeTable *table, struct MergeWork *work, int *ids, size_t *n);

#endif

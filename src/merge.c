/* merge.c - see merge.h. The rule is that of Sennrich et al. 2016, "Neural Machine Translation of
 * Rare Words with Subword Units"; ties and stale entries are settled as HF tokenizers does.
 */
#include "merge.h"

#include <string.h>

/* ==== Table ==== */

struct MergeSlot {
    uint64_t pair; /* left id in the upper half, right id in the lower; MERGE_FREE: none */
    uint32_t rank;
    int merged;
};

#define MERGE_FREE   UINT64_MAX
#define GOLDEN_RATIO 0x9e3779b97f4a7c15u /* 2^64 / phi: spreads keys over the upper bits */

int merges_alloc(struct MergeTable *table, size_t n_max)
{
    size_t cap = 16;
    table->shift = 60;
    while (cap < n_max * 2) {
        cap *= 2;
        table->shift--;
    }
    table->mask = cap - 1;
    table->slots = mem_alloc(cap, sizeof(*table->slots));
    if (!table->slots) return PC_ENOMEM;
    for (size_t i = 0; i < cap; i++) table->slots[i].pair = MERGE_FREE;
    return PC_OK;
}

void merges_free(struct MergeTable *table)
{
    mem_free(table->slots);
    *table = (struct MergeTable){0};
}

/* The slot of a pair, or the free one where it would go. */
static struct MergeSlot *merges_slot(const struct MergeTable *table, int left, int right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t at = (size_t)(pair * GOLDEN_RATIO >> table->shift);
    while (table->slots[at].pair != pair && table->slots[at].pair != MERGE_FREE)
        at = (at + 1) & table->mask;
    return &table->slots[at];
}

void merges_add(struct MergeTable *table, int left, int right, uint32_t rank, int merged)
{
    struct MergeSlot *slot = merges_slot(table, left, right);
    if (slot->pair != MERGE_FREE) return;
    slot->pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    slot->rank = rank;
    slot->merged = merged;
}

/* NULL when the two do not merge. */
static const struct MergeSlot *merges_find(const struct MergeTable *table, int left, int right)
{
    if (left < 0 || right < 0) return NULL;
    const struct MergeSlot *slot = merges_slot(table, left, right);
    return slot->pair == MERGE_FREE ? NULL : slot;
}

/* ==== Short words ==== */

enum { SHORT_WORD = 24 };

/* Scans for the lowest rank each time: quadratic, but faster than a heap for a handful of
 * symbols. */
static size_t merge_short(const struct MergeTable *table, int *ids, size_t n)
{
    const struct MergeSlot *pair[SHORT_WORD]; /* pair[i]: merge of ids[i] and ids[i + 1], or NULL */
    for (size_t i = 0; i + 1 < n; i++) pair[i] = merges_find(table, ids[i], ids[i + 1]);
    for (;;) {
        size_t best = n;
        uint32_t rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < n; i++) {
            if (pair[i] && pair[i]->rank < rank) {
                rank = pair[i]->rank;
                best = i;
            }
        }
        if (best == n) return n;
        ids[best] = pair[best]->merged;
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            if (i + 1 < n) pair[i] = pair[i + 1];
        }
        if (best > 0) pair[best - 1] = merges_find(table, ids[best - 1], ids[best]);
        if (best + 1 < n) pair[best] = merges_find(table, ids[best], ids[best + 1]);
    }
}

/* ==== Long words ==== */

#define NO_SYMBOL UINT32_MAX

struct MergeSymbol {
    int id;
    uint32_t prev,
        next; /* NO_SYMBOL at the ends; a merged-away symbol has prev == next == itself */
};

static void heap_push(struct MergeWork *work, uint64_t entry)
{
    size_t at = work->n_heap++;
    while (at > 0) {
        size_t up = (at - 1) / 2;
        if (work->heap[up] <= entry) break;
        work->heap[at] = work->heap[up];
        at = up;
    }
    work->heap[at] = entry;
    work->n_pushed++;
}

static uint64_t heap_pop(struct MergeWork *work)
{
    uint64_t top = work->heap[0], entry = work->heap[--work->n_heap];
    size_t at = 0, n = work->n_heap;
    for (;;) {
        size_t down = 2 * at + 1;
        if (down >= n) break;
        if (down + 1 < n && work->heap[down + 1] < work->heap[down]) down++;
        if (entry <= work->heap[down]) break;
        work->heap[at] = work->heap[down];
        at = down;
    }
    work->heap[at] = entry;
    return top;
}

static void heap_free(struct MergeWork *work)
{
    mem_free(work->symbols);
    mem_free(work->heap);
    work->symbols = NULL;
    work->heap = NULL;
    work->n_cap = 0;
}

/* Room for a word of n symbols. There are fewer than n pairs at first and fewer than n merges,
 * each of which takes one entry off the heap and adds two at most, so 2n entries suffice. */
static int heap_reserve(struct MergeWork *work, size_t n)
{
    if (n <= work->n_cap) return PC_OK;
    heap_free(work);
    size_t cap = n + n / 4;
    work->symbols = mem_alloc(cap, sizeof(*work->symbols));
    work->heap = mem_alloc(cap, 2 * sizeof(*work->heap));
    if (!work->symbols || !work->heap) return PC_ENOMEM;
    work->n_cap = cap;
    return PC_OK;
}

static void push_pair(const struct MergeTable *table, struct MergeWork *work, uint32_t left)
{
    uint32_t right = work->symbols[left].next;
    if (right == NO_SYMBOL) return;
    const struct MergeSlot *slot =
        merges_find(table, work->symbols[left].id, work->symbols[right].id);
    if (slot) heap_push(work, (uint64_t)slot->rank << 32 | left);
}

/* Merges symbol `left` with its right neighbour, if the entry that says so still holds. */
static void merge_at(const struct MergeTable *table, struct MergeWork *work, uint32_t left,
                     uint32_t rank)
{
    struct MergeSymbol *symbols = work->symbols, *l = &symbols[left];
    if (l->next == left || l->next == NO_SYMBOL) return;
    struct MergeSymbol *r = &symbols[l->next];
    const struct MergeSlot *slot = merges_find(table, l->id, r->id);
    if (!slot || slot->rank != rank) return;
    uint32_t gone = l->next;
    l->id = slot->merged;
    l->next = r->next;
    if (l->next != NO_SYMBOL) symbols[l->next].prev = left;
    r->prev = r->next = gone;
    if (l->prev != NO_SYMBOL) push_pair(table, work, l->prev);
    push_pair(table, work, left);
}

int merge_word(const struct MergeTable *table, struct MergeWork *work, int *ids, size_t *n)
{
    if (*n <= SHORT_WORD) {
        *n = merge_short(table, ids, *n);
        return PC_OK;
    }
    if (*n >= NO_SYMBOL) return err_set(PC_ERANGE, "a word of %zu bytes; the limit is 4 GiB", *n);
    TRY(heap_reserve(work, *n));
    uint32_t len = (uint32_t)*n;
    for (uint32_t i = 0; i < len; i++) {
        work->symbols[i] =
            (struct MergeSymbol){ids[i], i ? i - 1 : NO_SYMBOL, i + 1 < len ? i + 1 : NO_SYMBOL};
    }
    work->n_heap = 0;
    for (uint32_t i = 0; i + 1 < len; i++) push_pair(table, work, i);
    while (work->n_heap) {
        uint64_t entry = heap_pop(work);
        merge_at(table, work, (uint32_t)entry, (uint32_t)(entry >> 32));
    }
    size_t left = 0;
    for (uint32_t i = 0; i != NO_SYMBOL; i = work->symbols[i].next)
        ids[left++] = work->symbols[i].id;
    *n = left;
    return PC_OK;
}

/* ==== Words met before ==== */

static int words_init(struct WordCache *cache, size_t text_len)
{
    enum { MIN_TEXT = 2048, MIN_BITS = 8, MAX_BITS = 14 };
    if (text_len < MIN_TEXT) return PC_OK;
    int bits = MIN_BITS;
    while (bits < MAX_BITS && text_len >> (bits + 3)) bits++;
    cache->shift = 64 - bits;
    cache->words = mem_alloc((size_t)1 << bits, sizeof(*cache->words));
    return cache->words ? PC_OK : PC_ENOMEM;
}

struct Word *words_find(const struct WordCache *cache, const char *data, size_t len)
{
    if (!cache->words || len > WORD_BYTES) return NULL;
    uint64_t key[2] = {0, 0};
    memcpy(key, data, len);
    uint64_t mixed = (key[0] ^ (key[1] * GOLDEN_RATIO)) + len;
    mixed = (mixed ^ mixed >> 32) * GOLDEN_RATIO;
    struct Word *word = &cache->words[mixed >> cache->shift];
    if (word->len != (int)len || word->key[0] != key[0] || word->key[1] != key[1]) {
        memcpy(word->key, key, sizeof(key));
        word->len = (int16_t)len;
        word->n = 0;
    }
    return word;
}

void words_keep(struct Word *word, const int *ids, size_t n)
{
    if (!word || n > WORD_IDS) return;
    memcpy(word->ids, ids, n * sizeof(*ids));
    word->n = (int16_t)n;
}

/* ==== Work ==== */

int merge_work_init(struct MergeWork *work, size_t text_len)
{
    *work = (struct MergeWork){0};
    return words_init(&work->words, text_len);
}

void merge_work_free(struct MergeWork *work)
{
    heap_free(work);
    mem_free(work->ids);
    mem_free(work->words.words);
    *work = (struct MergeWork){0};
}

size_t merge_work_bytes(const struct MergeWork *work)
{
    size_t words = work->words.words ? sizeof *work->words.words << (64 - work->words.shift) : 0;
    return words + work->ids_cap * sizeof *work->ids +
           work->n_cap * (sizeof *work->symbols + 2 * sizeof *work->heap);
}

int merge_work_ids(struct MergeWork *work, size_t n)
{
    if (n <= work->ids_cap) return PC_OK;
    size_t cap = n + n / 4 + 64;
    int *ids = mem_alloc(cap, sizeof(*ids));
    if (!ids) return PC_ENOMEM;
    mem_free(work->ids);
    work->ids = ids;
    work->ids_cap = cap;
    return PC_OK;
}

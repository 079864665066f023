/* chunk_evict.c - chunk eviction: only the k chunks that best predict the question stay.
 *
 * ParallelComp, chunk eviction (Eq. 4): I_c = -log P(question | chunk c), a fixed-size queue over
 * it, filled while chunks are prefilled, so that k + 1 chunks are in memory at most. Takes the
 * losses of the question's tokens, hands on chunk numbers. It assumes that the scores of all
 * chunks average the same tokens, so that they compare.
 */
#include "chunk_evict.h"

#include <math.h>

double self_information(const float *nll, int n, int begin, int end)
{
    if (begin < 0) begin = 0;
    if (end > n) end = n;
    if (begin >= end) {
        begin = 0;
        end = n;
    }
    double sum = 0;
    for (int i = begin; i < end; i++) sum += nll[i];
    return end > begin ? sum / (end - begin) : NAN;
}

/* A total order, which is what makes the result independent of arrival. */
static bool is_worse(const struct ChunkEntry *a, const struct ChunkEntry *b)
{
    if (isnan(a->score) != isnan(b->score)) return isnan(a->score);
    if (a->score > b->score) return true;
    if (a->score < b->score) return false;
    return a->chunk > b->chunk;
}

int chunk_queue_open(struct ChunkQueue *q, int k, int n_chunks)
{
    *q = (struct ChunkQueue){0};
    if (k == 0)
        return err_set(PC_ECONFIG, "keep is 0: at least one chunk must be kept; set keep to 1 or "
                                   "more, or to all");
    if (k < 0 || k > n_chunks) k = n_chunks;
    q->entries = mem_alloc((size_t)k, sizeof *q->entries);
    if (!q->entries) return PC_ENOMEM;
    q->k = k;
    return PC_OK;
}

void chunk_queue_close(struct ChunkQueue *q)
{
    mem_free(q->entries);
    *q = (struct ChunkQueue){0};
}

/* Puts an entry where the slot `at` is free, with all its ancestors in order. */
static void sift_up(struct ChunkEntry *heap, int at, struct ChunkEntry entry)
{
    while (at > 0 && is_worse(&entry, &heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = entry;
}

/* Puts an entry in place of the worst one. */
static void replace_worst(struct ChunkEntry *heap, int n, struct ChunkEntry entry)
{
    int at = 0;
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && is_worse(&heap[child + 1], &heap[child])) child++;
        if (!is_worse(&heap[child], &entry)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = entry;
}

void chunk_queue_push(struct ChunkQueue *q, int chunk, double score, int *evicted)
{
    struct ChunkEntry entry = {.chunk = chunk, .score = score};
    *evicted = -1;
    if (q->n < q->k) {
        sift_up(q->entries, q->n++, entry);
    } else if (q->n == 0 || !is_worse(&q->entries[0], &entry)) {
        *evicted = chunk;
    } else {
        *evicted = q->entries[0].chunk;
        replace_worst(q->entries, q->n, entry);
    }
}

void chance_scores(uint64_t seed, int n, double *score)
{
    for (int32_t c = 0; c < n; c++) score[c] = (double)(hash64(&c, sizeof c, seed) >> 11) * 0x1p-53;
}

int chunk_queue_kept(const struct ChunkQueue *q, int *chunks)
{
    /* Insertion sort: there are k entries, and with all chunks kept still only some hundreds. */
    for (int i = 0; i < q->n; i++) {
        int chunk = q->entries[i].chunk, at = i;
        for (; at > 0 && chunks[at - 1] > chunk; at--) chunks[at] = chunks[at - 1];
        chunks[at] = chunk;
    }
    return q->n;
}

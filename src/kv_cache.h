/* kv_cache.h - the KV cache: pages of 64 tokens of one KV head of one layer, one pool, and per-head
 * page lists (headwise.md D.2). The only place that gives pages out and takes them back.
 *
 * Heads of one table may hold different numbers of tokens. Chunks write tables of their own; keeping a chunk
 * moves its page ids into the merged table, losing one frees them: K and V are never copied.
 */
#ifndef PCOMP_KV_CACHE_H
#define PCOMP_KV_CACHE_H

#include "backend.h"

struct KvCache {
    const struct Backend *be;
    struct Device *dev;
    struct PagePool pool; /* owned, but for lent memory */
    bool lent;            /* pool.data is the caller's */
    int n_layers, n_kv_heads;
    enum PageIndex index;   /* of the pool */
    const uint8_t *streams; /* borrowed, of the tier's plan */
    struct PageRef
        *filled; /* [n_layers * n_kv_heads] scratch of kv_index_filled; NULL without an index */
};

/* Pages that hold so many tokens of a head. */
static inline int kv_pages(int tokens)
{
    return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

/* Bytes kv_open takes for n_pages, page memory and free list. */
size_t kv_pool_bytes(const struct Backend *be, const struct Device *dev, size_t n_pages);
int kv_open(struct KvCache *kv, const struct Backend *be, struct Device *dev,
            const struct ModelConfig *m, size_t n_pages);
/* The same in memory that the caller has and keeps: n_pages pages of the device. */
int kv_open_in(struct KvCache *kv, const struct Backend *be, struct Device *dev,
               const struct ModelConfig *m, size_t n_pages, void *data);
void kv_close(struct KvCache *kv);
/* Room for n_below pages below, and for copies of theirs in near pages, which it takes: after kv_open, and before any page is
 * given out but by kv_run. Fills what the plan leaves to it: n_below and cache. */
int kv_tier_open(struct KvCache *kv, struct TierPlan *plan, size_t n_below);
/* Near pages that hold the copies. */
size_t kv_tier_slots(const struct TierPlan *plan);
/* Bytes kv_index_open takes. */
size_t kv_index_bytes(const struct Backend *be, const struct Device *dev, enum PageIndex index,
                      const struct ModelConfig *m, size_t n_pages);
/* Room for the pages' index, of which pages are chosen to be read; kv_close gives it back. */
int kv_index_open(struct KvCache *kv, enum PageIndex index);

/* A table with room for max_refs pages a head. The caller owns it: kv_table_close (after kv_clear). */
size_t kv_table_bytes(const struct ModelConfig *m, int max_refs);
int kv_table_open(struct HeadTable *t, const struct ModelConfig *m, int max_refs);
void kv_table_close(struct HeadTable *t);

struct KvRows {
    const void *k, *v; /* [.., n_kv_heads * head_dim] rows of a batch */
    int row0;          /* the sequence's first */
    const int *index;  /* [n] rows in order, device memory; or NULL for the first n */
    int n;
};

/* Room for the writes of one layer, executed together by kv_flush. */
struct KvWrites {
    struct KvWrite *list; /* [cap] owned */
    int n, cap;
};
int kv_writes_open(struct KvWrites *w, int cap);
void kv_writes_close(struct KvWrites *w);

/* Gives pages to rows behind the tokens of head (layer, kv_head), filling the last page first unless it has a bias, and
 * notes the writes.
 * rows->index must stay until kv_flush. PC_EINTERNAL when pool or table are full: the plan was wrong. */
int kv_append(struct KvCache *kv, struct HeadTable *t, int layer, int kv_head,
              const struct KvRows *rows, struct KvWrites *w);
/* All KV heads of a layer: the same first n rows. */
int kv_append_all(struct KvCache *kv, struct HeadTable *t, int layer, const struct KvRows *rows,
                  struct KvWrites *w);
int kv_flush(struct KvCache *kv, struct KvWrites *w);
/* Gives a head of the table another page, for `len` tokens that come later. PC_EINTERNAL as in kv_append. */
int kv_adopt(struct KvCache *kv, struct HeadTable *t, int head, struct PageRef page);
/* Moves all pages of src behind those of dst; src is empty afterwards. */
int kv_move(struct HeadTable *dst, struct HeadTable *src);
/* A head of dst becomes all its pages in a and, behind them, those in b (or NULL), whose own they stay: for reading only. */
int kv_join(struct HeadTable *dst, int head, const struct HeadTable *a, const struct HeadTable *b);
/* All tokens that the table holds now get this bias on their logits, but those of heads that `but` marks, [n_heads] or NULL. */
void kv_bias(struct HeadTable *t, float bias, const uint8_t *but);
/* ==== Pages in a row ==== */

/* n pages that follow each other, from a pool that gave out none in any other way. PC_EINTERNAL when it has not so many. */
int kv_run(struct KvCache *kv, size_t n, uint32_t *first);
/* Puts n tokens that lie in pages from `first` on behind those of a head; the pages are not the table's own. Returns how
 * many pages they take, or PC_EINTERNAL. */
int kv_lay(struct HeadTable *t, int head, uint32_t first, int n);
/* Notes the writes of rows into a head's tokens from `at` on, which the table has; rows->index as in kv_append. */
int kv_put(struct KvCache *kv, struct HeadTable *t, int layer, int kv_head, int at,
           const struct KvRows *rows, struct KvWrites *w);
/* Tokens of a head of src, by number. */
struct KvTokens {
    const struct HeadTable *src;
    int head, first;  /* the first one's number in src */
    const int *index; /* [n] ascending, from `first`; or NULL for the first n */
    int n;
};
/* Copies them behind those of a head of dst. */
int kv_gather(struct KvCache *kv, struct HeadTable *dst, int layer, int kv_head,
              const struct KvTokens *tokens);

/* Tokens of a head that lie in pages from `page` on, laid there by kv_lay as a table's first. */
struct KvRun {
    uint32_t page;
    const int *
        index; /* [n] ascending, device memory, which must stay until kv_gather_flush; or NULL for the first n */
    int n;
};
/* Room for notes of kv_gather_run, executed together by kv_gather_flush. */
struct KvGathers {
    struct KvGather *list; /* [cap] owned */
    int n, cap;
};
int kv_gathers_open(struct KvGathers *g, int cap);
void kv_gathers_close(struct KvGathers *g);
/* As kv_gather, later. */
int kv_gather_run(struct KvCache *kv, struct HeadTable *dst, int layer, int kv_head,
                  const struct KvRun *run, struct KvGathers *g);
int kv_gather_flush(struct KvCache *kv, struct KvGathers *g);

/* Gives all pages back to the pool, or those of one head. */
void kv_clear(struct KvCache *kv, struct HeadTable *t);
void kv_clear_head(struct KvCache *kv, struct HeadTable *t, int head);
/* Gives back the whole pages of a head whose tokens are neither among its first `first` nor its last `last`; of the
 * page in which the first ones end, the rest goes too once none of it is among the last. True when something went. */
bool kv_slide(struct KvCache *kv, struct HeadTable *t, int head, int first, int last);
/* Keeps only the tokens of one head whose keep flag is set, [n_tokens]. */
int kv_filter(struct KvCache *kv, struct HeadTable *t, int layer, int kv_head, const uint8_t *keep);

/* The index of all pages of a table. */
int kv_index_all(struct KvCache *kv, const struct HeadTable *t);
/* After each head has got one token: the index of the pages that these filled. */
int kv_index_filled(struct KvCache *kv, const struct HeadTable *t);

#endif

/* cpu.h - the CPU device's state, shared by cpu.c (lifecycle, linear operations), cpu_attention.c, cpu_pages.c,
 * cpu_select.c and cpu_tier.c. */
#ifndef PCOMP_CPU_H
#define PCOMP_CPU_H

#include "backend.h"
#include "kernels.h"

/* What a row chose of one head's pages. */
struct Choice {
    int n, seen; /* so many, of so many that were there */
};

/* Where a row's pages are chosen, one KV head of a layer a line. */
struct Selection {
    int stride;           /* pages a head, at most; 0: nothing is ever selected */
    struct PageRef *refs; /* [n_kv_heads, stride] the chosen ones */
    int *n_refs;          /* [n_kv_heads] */
    float *score;         /* [n_kv_heads, stride] */
    int *len, *idx;       /* likewise */
    struct PageWeights work;
    struct PageCounts counts;
    bool keeps;          /* rows may ask for what the row before chose */
    struct Choice *kept; /* [n_layers, n_kv_heads] */
    int *kept_idx;       /* [n_layers, n_kv_heads, stride] its pages, ascending */
};

/* Pages of the KV heads of one layer. */
struct LayerPages {
    const struct PageRef *refs; /* [n_kv_heads, stride] */
    const int *n_refs;          /* [n_kv_heads]; NULL: none has any */
    int stride;
};

struct Device {
    const struct Kernels *kern;
    const struct Model *model;
    bool exact;
    enum PageFormat format; /* of KV pages */
    float *
        balance; /* [n_layers, n_kv_heads * head_dim] of key_balance, 1 where there is none; NULL unless pages hold codes */
    int threads;
    char text[96];

    struct BatchShape shape;
    void *block;        /* all scratch, cut below */
    struct Act act;     /* normed rows or attention output: [rows, max(dim, n_heads * head_dim)] */
    struct Act act_ffn; /* [rows, hidden_dim] */
    float *angles;      /* [rows, rope_dim]: cosines then sines of each row */
    uint8_t *thread_scratch; /* [threads, thread_bytes] */
    size_t thread_bytes;
    float *rows;        /* [16, max width] f32: a few rows in plain form */
    uint8_t *prep;      /* matvec operands */
    struct KvPack pack; /* [n_seqs * n_kv_heads] packed keys and values, pack_blocks blocks apart */
    int pack_blocks;
    float *key_bias;   /* [n_kv_heads, pack_blocks * QBLOCK] biases of past keys */
    uint8_t *turned_k; /* the same keys where far rows see them, turned_blocks blocks apart */
    float *turned_k_scale;
    int turned_blocks;
    float *head_out;      /* [head_rows, vocab_size] f32 */
    struct Partial *part; /* [splits, n_heads] */
    float *part_out;      /* [splits, n_heads, head_dim] */
    struct Selection sel;
};

enum {
    DECODE_SPLIT = 8, /* pages of one decode work item: 512 tokens */
    HEAD_DIM_MAX = 1024,
    FEW_ROWS = 1, /* batches up to this take the matvec path */
};

static inline void *thread_scratch(struct Device *d, int thread)
{
    return d->thread_scratch + (size_t)thread * d->thread_bytes;
}

/* The window of a query head, 0 for none. */
static inline int window_of(const struct Device *d, const struct AttnArgs *a, int head)
{
    return a->masks ? a->masks->window[(size_t)a->layer * d->model->cfg.n_heads + head] : 0;
}

/* ==== Pages below (cpu_tier.c) ==== */

struct PageStore;

/* What one head's row chose: places in its table, of which `refs` has n_all. */
struct TierChoice {
    int layer, kv_head;
    const struct PageRef *refs;
    const int *idx; /* [n] ascending */
    int n, n_all, n_open;
    float *score; /* [n_all - n_open]; filled up to n_all */
};
/* After a new choice of one head, which slots are to hold what; several heads of a layer may be told at once. */
void tier_choose(struct PageTier *t, const struct TierChoice *c);
/* Copies what the heads of a layer were found to lack, or asks for it. */
void tier_fetch(const struct Device *d, struct PageTier *t, int layer);
/* The chosen pages where they are to be read; returns how many, fewer than n when some are late. */
int tier_refs(struct PageTier *t, const struct TierChoice *c, struct PageRef *out);
/* A page's bytes: where they lie, or from below in the i-th of a thread's hands, of which it has DECODE_SPLIT. */
const uint8_t *tier_page(const struct PagePool *pool, uint32_t page, int thread, int i);
/* What went wrong below, since threads cannot say it themselves: every op that reads pages asks in the end. */
int tier_status(const struct PagePool *pool);
/* A page's bytes in a buffer, to be changed and then kept. */
int tier_take(struct PageTier *t, uint32_t page, void *bytes);
int tier_put(struct PageTier *t, uint32_t page, const void *bytes);
/* A buffer for a page of the op itself, apart from the threads' hands. */
uint8_t *tier_buffer(struct PageTier *t, int i);
enum { TIER_BUFFERS = 2 };
void cpu_tier_bytes(const struct Device *d, const struct TierPlan *plan, struct TierBytes *out);
int cpu_tier_open(struct Device *d, const struct TierPlan *plan, struct PagePool *pool);
/* The same over a store that is there already, which the tier then owns. */
int cpu_tier_over(struct Device *d, const struct TierPlan *plan, const struct PageStore *store,
                  struct PagePool *pool);
void cpu_tier_close(struct Device *d, struct PagePool *pool);
int cpu_tier_counts(struct Device *d, const struct PagePool *pool, struct TierCounts *out);

/* cpu_select.c */
/* The pages that a batch of one row reads. PC_EINTERNAL when a head has more than there is room for. */
int cpu_pages(struct Device *d, const struct AttnArgs *a, struct LayerPages *out);
size_t cpu_index_bytes(const struct Device *d, enum PageIndex index);
int cpu_kv_index(struct Device *d, const struct PagePool *pool, enum PageIndex index,
                 const struct PageRef *refs, int n);
int cpu_page_counts(struct Device *d, struct PageCounts *out);

/* cpu_parts.c */
int cpu_attention_join(struct Device *d, const struct AttnArgs *a, const struct AttnPart *parts,
                       int n);

/* cpu_attention.c */
int cpu_attention(struct Device *d, const struct AttnArgs *a);
int cpu_attn_mass(struct Device *d, const struct AttnArgs *a, int obs_rows, float *mass,
                  int stride);

/* cpu_pages.c */
int cpu_kv_write(struct Device *d, const struct PagePool *pool, const struct KvWrite *writes,
                 int n);
int cpu_kv_gather(struct Device *d, const struct PagePool *pool, const struct KvGather *list,
                  int n);
int cpu_kv_pack(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                const uint32_t *to, int n);
int cpu_kv_read(struct Device *d, const struct PagePool *pool, struct PageRef ref, int at, float *k,
                float *v);

#endif

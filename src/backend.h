/* backend.h - what a device must do for the transformer. One table per device; no #ifdef anywhere.
 *
 * Pointers to activations are memory of the device, got from alloc(). The residual stream x is f32; queries, keys,
 * values and attention's output are in the device's own type of act_bytes a value. Rows are tokens; a batch holds
 * n_seqs sequences (chunks) one after another. Each op returns PC_OK or an error; none allocates: reserve() has
 * made room for the largest batch before. A device may run behind: only ops that fill host memory wait for it.
 * Sums run in a fixed order: same input, same bytes.
 */
#ifndef PCOMP_BACKEND_H
#define PCOMP_BACKEND_H

#include "config.h"
#include "eviction/page_select.h"
#include "eviction/residency.h"
#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PAGE_TOKENS = 64 };

struct Device;

struct DeviceOptions {
    const struct Model *model;
    enum Precision precision;
    enum KvType kv_type;
    int threads;     /* cpu */
    const char *isa; /* cpu: "auto" or the name of a kernel table */
    size_t
        gpu_memory; /* cuda: bytes of the card that may be used, weights included; 0: what is free */
};

/* What a device can take. */
struct DeviceLimits {
    size_t memory;    /* bytes that it can still give, those of its host where they are the same */
    size_t most;      /* bytes that runs may have at once, however much is free; 0: no limit */
    bool own_memory;  /* has memory of its own, apart from the host's */
    bool records;     /* record() takes steps of this model; never those with far keys */
    bool own_pasts;   /* sequences of one batch may have a past each */
    bool keeps_pages; /* rows may keep the pages that the row before chose */
    int wave_rows;    /* rows of a wave that keep it busy */
    int segment_rows; /* rows of a segment of plain prefill */
    int page_rows; /* rows of one sequence that read their past's pages where they lie: for more, all keys are packed in
                      * memory of their own; 0: that is no question of rows */
    double flops,
        bandwidth; /* peak rates a second of its prefill arithmetic and its memory; 0: not known */
    const char *below; /* where pages lie that are not near: "disk"; NULL: all are */
};

/* The largest batch that will be run. */
struct BatchShape {
    int rows, seqs;
    int pasts;        /* sequences have a past each: most of them; 0: all of a batch share one */
    int keys;         /* most keys one row can see: past and its own sequence */
    int mass_keys;    /* most keys attn_mass is asked for; 0: never */
    int head_rows;    /* most rows whose logits are wanted at once */
    bool far;         /* attention() is asked for with far keys */
    int turned_keys;  /* most keys that have another place for rows far from them; 0: none has */
    bool selects;     /* attention() of one row is asked to select pages */
    bool keeps_pages; /* of these, some keep the choice of the row before */
    bool parts;       /* attention() is asked for a part of the keys */
};

/* `len` tokens of one KV head in a page of the pool. */
struct PageRef {
    uint32_t page;
    uint32_t len;
    float bias; /* added to the logits of its tokens */
};

/* The pages of every head of a sequence: head h = layer * n_kv_heads + kv head. */
struct HeadTable {
    int n_heads, stride;    /* refs of head h begin at h * stride */
    bool below;             /* new pages are given out below, to heads that do not stream */
    struct PageRef *refs;   /* [n_heads, stride] */
    int *n_refs, *n_tokens; /* [n_heads] */
};

struct PageTier; /* the device's own: what it knows of pages below */

struct PagePool {
    uint8_t *data; /* [n_near, page_bytes] device memory */
    uint8_t *
        index; /* [n_pages, index_bytes] device memory: what a query is scored against; NULL: none */
    size_t page_bytes, index_bytes;
    uint32_t n_pages, n_free;
    uint32_t *free; /* stack of free ids */
    /* With a tier, the pages from n_near on lie below: in a file, or in the memory of the device's host. */
    struct PageTier *tier; /* NULL: all pages are near */
    uint32_t n_near, n_below;
    uint32_t *below; /* stack of free ids there */
};

static inline bool page_is_below(const struct PagePool *pool, uint32_t page)
{
    return pool->tier && page >= pool->n_near;
}

/* How pages below come near (headwise.md D.6): the rows that select() pages read copies of those that they choose, each head
 * in slots of its own, which are near pages from `cache` on, head after head, none for those that stream. Which page a slot
 * holds is decided by scores, eviction/residency. A head's pages keep their places in its table as long as rows select. */
struct TierPlan {
    int n_heads;
    int slots;              /* of a head */
    int max_refs;           /* pages that a head has at most, near and below */
    const uint8_t *streams; /* [n_heads] 1: has no page below; NULL: none streams */
    bool late;     /* a row does without what is not there yet; else it waits for all it chose */
    char dir[256]; /* for a file, where the device keeps pages in one */
    uint32_t n_below;
    uint32_t cache;
    /* Of a device whose host keeps the pages below: so many have a home in its memory, which has frames for n_work more; the
     * others, if any, lie in the file (page_frames.h). */
    uint32_t n_homes, n_work;
};

/* Whether pages lie in a file below the memory of the device's host. */
static inline bool tier_has_file(const struct TierPlan *plan)
{
    return plan->n_homes < plan->n_below;
}

/* Bytes that a tier takes of the device's memory, the slots apart, of its host's beside it, and of a disk. */
struct TierBytes {
    size_t device, host, disk;
};

struct LinearOp {
    const struct Weight *w;
    const float *bias; /* [w->rows] or NULL */
    void *out;         /* [n_rows, w->rows] */
};

struct FfnWeights {
    const float *norm; /* [dim] f32 */
    const struct Weight *gate, *up, *down;
};

struct RopeArgs {
    void *q, *k; /* [n_rows, n_heads * head_dim], [n_rows, n_kv_heads * head_dim], in place */
    const float *q_norm, *k_norm; /* [head_dim] f32 or NULL: RMS norm of each head first */
    int n_rows;
    /* [n_kv_heads * head_dim] or NULL: the bias that norm_linear was given for k. A backend may leave parts of it until
     * here, and may shift all keys of a head by one vector, which no softmax sees, or multiply them by a matrix whose
     * inverse goes to the queries, which no logit sees. */
    const float *k_bias;
};

/* Tokens far behind a row, which sees them from another place than its own, or not at all. Tokens are counted
 * from the first of the past to the row. */
struct FarKeys {
    int window;          /* a token is far from the row that stands so many behind it, or more */
    int n;               /* of the far tokens a row sees those among the first n; 0: none */
    const float *q_turn; /* [n_rows, rope_dim] turns a row's query to where far keys see it from */
    const float
        *k_turn; /* [keys, rope_dim] turns keys to where they stand for far rows; NULL: they stay */
};

/* What rows see of the keys before them, query head by query head: those with i - j < window and the first `sinks`,
 * i and j counting a head's keys from its first past one to the row's own. In a batch of one row all query heads of a
 * KV head have the same window. */
struct HeadMasks {
    const int *window; /* [n_layers, n_heads] host memory; 0: all before the row */
    int sinks;
};

/* One part of the keys that rows see, where the others lie elsewhere (headwise.md D.7). Of a head with a window one part has
 * all keys. out and lse: memory of the device. */
struct AttnPart {
    const uint8_t *
        own; /* [n_kv_heads] host memory. 1: the rows' own sequence is in this part; 0: it has the past alone */
    float *out; /* [n_rows, n_heads * head_dim] of this part's keys alone; zeros without any */
    float *
        lse; /* [n_rows, n_heads] natural log of the sum of exp(logit) over them; -INFINITY without any */
};

struct AttnArgs {
    const void *q;        /* [n_rows, n_heads * head_dim], rotated */
    const void *k, *v;    /* [n_rows, n_kv_heads * head_dim], k rotated */
    void *out;            /* [n_rows, n_heads * head_dim] */
    const int *seq_begin; /* [n_seqs + 1] first row of each sequence */
    int n_seqs;
    int layer;
    const struct PagePool *pool;
    const struct HeadTable *past; /* seen whole by every row, before its own sequence; or NULL */
    bool own_pasts; /* past[n_seqs]: one of each sequence, all without biases; else one of all */
    int last_rows;  /* only the last so many rows of each sequence ask; 0: all */
    int tail_rows; /* the last so many rows of each sequence change nothing that the others see, not even by rounding; 0: all
                     * may share scales. Never with far keys */
    const struct FarKeys *far; /* NULL: every key is seen where it stands */
    const struct HeadMasks *
        masks; /* NULL: every head sees all before the row; else the batch's; never with far keys */
    /* NULL: every page is read. Else, where the batch is one row without far keys, heads without a window read the pages
     * that this chooses by scores from the pool's index, which is right for all but pages at the end that still fill. */
    const struct PageSelect *select;
    /* NULL: out is of all keys. Else attention() fills the part and leaves out alone, and attn_mass() gives the mass on the
     * part's keys among all of them, past first, once attention_join() has told part->lse of all. */
    struct AttnPart *part;
    /* The pages that the row before chose in this layer are read again, and those that its past has gained since: GCA's
     * cadence (headwise.md C.1). Only behind a row that chose, over the same past, in a shape that keeps choices. */
    bool select_kept;
};

/* Pages of the past that rows read of heads they select from, and what these heads had. */
struct PageCounts {
    int64_t read, there;
};

/* n tokens of one KV head into one page. */
struct KvWrite {
    const void *k, *v; /* [.., n_kv_heads * head_dim] rows of a batch */
    int row0;          /* first row of the sequence */
    int kv_head;
    const int *
        index; /* device memory: [n] rows to write, in order, from row0; NULL: first .. first + n - 1 */
    int first, n;
    struct PageRef page;
    int at; /* slot of the first one */
};

/* n tokens of one KV head to a page, from pages that follow each other and are full but for the last. */
struct KvGather {
    uint32_t from;    /* slot, page * PAGE_TOKENS + its place there, of token 0 */
    const int *index; /* device memory: [n] tokens, in order; NULL: first .. first + n - 1 */
    int first, n;
    uint32_t page; /* none of those that it comes from */
    int at;        /* slot there of the first one */
};

/* Which context tokens each head keeps: those with the most attention mass from the last rows (eviction/kv_evict.h). */
struct KeepArgs {
    int obs_rows, pool, cap;
    int first;    /* past tokens before the context */
    const int *n; /* [n_seqs] context tokens of each sequence, host memory */
    /* Device memory: min(cap, n) indices, ascending, 0 the first of the context; those of head h of sequence i from
     * i * step + h * stride on. */
    int *keep;
    int stride;
    size_t step;
};

/* Tokens of n_seqs sequences, one after another. */
struct Batch {
    const int *tokens, *pos; /* [seq_begin[n_seqs]] */
    const int *seq_begin;    /* [n_seqs + 1] */
    int n_seqs;
    const struct PagePool *pool;
    const struct HeadTable *past;
    bool own_pasts; /* as in AttnArgs */
    int tail_rows;  /* as in AttnArgs */
    const struct FarKeys *far;
    const struct HeadMasks *masks;
    const struct PageSelect *select;
    bool select_kept; /* as in AttnArgs */
    /* The step behind the one that replay() ran last: the same rope and masks, and a past that grew by its writes, less what
     * heads may have lost since (kv_slide). Such a head has fewer tokens than it would have, by which it is known. */
    bool follows;
};

enum { PEER_NAME = 64, PEER_ID = 128 };

/* Asked while a rank waits for others, `turns` counting from 0; a failure ends the wait and what is under way. */
struct PeerWait {
    int (*idle)(void *user, int turns);
    void *user;
};

/* Devices of several ranks that pass memory to each other without their hosts (headwise.md D.7). What is sent here and
 * received there, or gathered, comes in the same order on all ranks; data is memory of the device. Work is queued like that of
 * any op; wait() is for all of it. Once a call has failed, memory goes no more. */
struct DevicePeers {
    /* Which device this is: ranks with the same text have one between them. */
    void (*name)(struct Device *d, char out[PEER_NAME]);
    /* n ranks have it: from now on this one uses an n-th of its memory at most. PC_ENOMEM when it has more already. */
    int (*divide)(struct Device *d, int n);
    bool (*able)(struct Device *d); /* what join needs is on this machine */
    /* Rank 0 makes what the ranks find each other by. */
    int (*invite)(struct Device *d, uint8_t id[PEER_ID]);
    /* Every rank, each with a device of its own. *wait is asked from now on until close(). */
    int (*join)(struct Device *d, const uint8_t id[PEER_ID], int rank, int size,
                const struct PeerWait *wait);
    int (*copy)(struct Device *d, void *to, const void *from, size_t bytes); /* within the device */
    int (*send)(struct Device *d, const void *data, size_t bytes, int to);
    int (*receive)(struct Device *d, void *data, size_t bytes, int from);
    int (*gather)(struct Device *d, void *parts, size_t bytes); /* as team_gather */
    int (*wait)(struct Device *d);
};

struct Backend {
    const char *name;
    size_t act_bytes;        /* of one value of queries, keys, values and attention's output */
    bool (*available)(void); /* this machine has such a device */
    bool
        makes_weights; /* open() makes a geometry's weights from their seeds (geometry.h): their data stays NULL */
    int (*open)(const struct DeviceOptions *options, struct Device **out);
    void (*close)(struct Device *d);
    const char *(*describe)(const struct Device *d);
    void (*limits)(const struct Device *d, struct DeviceLimits *out);
    /* Most bytes held by runs at once since the last reset. */
    size_t (*peak)(struct Device *d, bool reset);
    size_t (*page_bytes)(const struct Device *d);
    /* What a page's bytes hold where kv_type leaves it open, and the arithmetic that makes them: "cpu f16, int16". Pages kept
     * in a file are of use where this and kv_type are the same. */
    const char *(*page_format)(const struct Device *d);
    /* Bytes reserve() would take for this shape. */
    size_t (*scratch_bytes)(const struct Device *d, const struct BatchShape *shape);
    int (*reserve)(struct Device *d, const struct BatchShape *shape);

    void *(*alloc)(struct Device *d, size_t bytes); /* NULL: the error text is set */
    void (*release)(struct Device *d, void *p);
    int (*upload)(struct Device *d, void *dst, const void *src, size_t bytes);
    int (*download)(struct Device *d, void *dst, const void *src, size_t bytes);

    /* x[i] = x[idx[i]] in place, rows of `row_bytes`; idx ascends */
    int (*compact)(struct Device *d, void *x, size_t row_bytes, const int *idx, int n);
    /* bytes from src to dst, both of the device, which do not overlap */
    int (*copy)(struct Device *d, void *dst, const void *src, size_t bytes);
    /* Token rows into x [rows, dim]; angles for the rows of this batch; its past as it is now. */
    int (*begin)(struct Device *d, const struct Batch *b, const struct Rope *rope, float *x);
    /* What turns a head on by so many positions, without the rope's scale: out [n, rope_dim], cosines and sines. */
    int (*turns)(struct Device *d, const struct Rope *rope, const int *by, int n, float *out);
    /* out_i = rmsnorm(x) W_i^T + bias_i, up to 3 weights */
    int (*norm_linear)(struct Device *d, const float *x, int n_rows, const float *norm,
                       const struct LinearOp *ops, int n_ops);
    /* op->out, part of x and f32, += a W^T + bias, a in the type of attention's output */
    int (*linear_add)(struct Device *d, const void *a, int n_rows, const struct LinearOp *op);
    /* x += down(silu(gate(rmsnorm(x))) * up(rmsnorm(x))) */
    int (*ffn_add)(struct Device *d, float *x, int n_rows, const struct FfnWeights *f);
    int (*rope)(struct Device *d, const struct RopeArgs *args);
    int (*attention)(struct Device *d, const struct AttnArgs *args);
    /* After attention() with the same args, which have no far keys: for each sequence and KV head the sum over the last `obs_rows` rows and
     * the head group of the softmax on each key (past first). mass [n_seqs, n_kv_heads, stride] f32, in host memory. */
    int (*attn_mass)(struct Device *d, const struct AttnArgs *args, int obs_rows, float *mass,
                     int stride);
    /* Optional; a device that has it takes args->part. out from n parts, added up in their order, so that whoever joins the
     * same parts has the same bytes; args->part, which may be among them, gets the lse of all. */
    int (*attention_join)(struct Device *d, const struct AttnArgs *args,
                          const struct AttnPart *parts, int n);
    /* attn_mass(), then the choice of tokens, without leaving the device. NULL: there is nothing to gain. */
    int (*keep)(struct Device *d, const struct AttnArgs *args, const struct KeepArgs *k);
    int (*kv_write)(struct Device *d, const struct PagePool *pool, const struct KvWrite *writes,
                    int n);
    /* Token i of n moves from slot from[i] to slot to[i], each a page * PAGE_TOKENS + its place there; tokens move forward
     * only: no source is a slot that an earlier token went to. */
    int (*kv_pack)(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                   const uint32_t *to, int n);
    /* No page that one item writes is read by another; what an item takes is near, or one page without an index. */
    int (*kv_gather)(struct Device *d, const struct PagePool *pool, const struct KvGather *list,
                     int n);
    /* One token as f32, into host memory, its key as rope() left it. */
    int (*kv_read)(struct Device *d, const struct PagePool *pool, struct PageRef ref, int at,
                   float *k, float *v);
    /* Bytes of the index of one page: one vector of head_dim values for the mean, two for the bound. */
    size_t (*index_bytes)(const struct Device *d, enum PageIndex index);
    /* Makes the index of these pages from their first `len` keys: the mean key, or the least and the largest value of each
     * channel, from which a query finds what no key of the page surpasses. refs: host memory. */
    int (*kv_index)(struct Device *d, const struct PagePool *pool, enum PageIndex index,
                    const struct PageRef *refs, int n);
    /* Since the last reserve(). */
    int (*page_counts)(struct Device *d, struct PageCounts *out);
    /* Optional, all four or none: pages below. pool->data holds the slots already, pool->tier is what tier_open makes, of the
     * pages [n_near, n_near + n_below). Every op takes pages from below as it takes near ones. */
    void (*tier_bytes)(const struct Device *d, const struct TierPlan *plan, struct TierBytes *out);
    int (*tier_open)(struct Device *d, const struct TierPlan *plan, struct PagePool *pool);
    void (*tier_close)(struct Device *d, struct PagePool *pool);
    /* Since it was opened. */
    int (*tier_counts)(struct Device *d, const struct PagePool *pool, struct TierCounts *out);
    /* Logits of rows idx[0..n) of x: out [n, vocab_size] f32 in host memory. */
    int (*logits)(struct Device *d, const float *x, const int *idx, int n, float *out);
    /* Optional: a step of decoding, one row through all layers, as one piece of work. While recording, ops are noted and
     * not run: kv_write stands for the next n writes of the list that replay gets, one token of every head in order,
     * logits for row 0 into replay's logits. replay runs what was noted on the batch that begin() told. It gives the logits
     * or, where that is NULL, the likeliest token (of equals the lowest); no token is an error. reserve() forgets it. There may
     * be records of several kinds of steps: recorded() tells whether there is one for the step that begin() told. */
    int (*record)(struct Device *d, bool on);
    bool (*recorded)(const struct Device *d);
    int (*replay)(struct Device *d, const struct KvWrite *writes, int n, float *logits, int *best);
    /* -log p(target) of rows idx[0..n), natural log: out [n] in host memory. */
    int (*nll)(struct Device *d, const float *x, const int *idx, const int *target, int n,
               float *out);
    const struct DevicePeers *peers; /* NULL: what ranks tell each other is in the host's memory */
};

extern const struct Backend backend_cpu;
extern const struct Backend backend_cuda __attribute__((weak)); /* in builds that link cuda/ */

/* A name, or "auto": the fastest that this build has and this machine can run. PC_ECONFIG lists the names. */
int backend_by_name(const char *name, const struct Backend **out);
/* Names of the backends in this build, "cuda, cpu". */
const char *backend_names(void);

#ifdef __cplusplus
}
#endif

#endif

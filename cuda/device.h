/* device.h - the CUDA device's state, shared by the files of this folder.
 *
 * One stream carries everything, in order. What the host tells the device (tokens, positions, page tables,
 * descriptions of writes) goes through a ring of pinned memory, so that no op waits; ops that fill host memory do.
 */
#ifndef PCOMP_CUDA_DEVICE_H
#define PCOMP_CUDA_DEVICE_H

extern "C" {
#include "src/backend.h"
#include "src/geometry.h"
}
#include "kernels.h"

#include <nvtx3/nvToolsExt.h>

/* A weight as the device holds it: blocks of the file's type (f32 and f16 files as bf16), or e4m3 with scales. */
struct DevWeight {
    const struct Weight *host;
    int type; /* enum DType */
    int rows, cols;
    void *data;
    bf16 *wide;   /* the same as bf16, where products want it at hand: else NULL */
    void *fp8;    /* [rows, cols] e4m3, or NULL */
    float *scale; /* [rows] of fp8 */
};

struct DevVector {
    const float *host;
    float *data;
    float *slow; /* what data lacks until keys are turned (weights.cu); NULL but for their bias */
    float *
        balance; /* of keys and queries (key_balance of src/model.h); NULL but for pages of codes */
};

/* The past of a batch, all layers: see struct HeadTable. */
struct DevTable {
    struct CudaPageRef *refs; /* [pasts, n_heads, stride] */
    int *n_refs, *n_tokens;   /* [pasts, n_heads] */
    int pasts; /* that there is room for: of each sequence, where these have their own */
    struct CudaSeen *seen; /* [n_heads] of the next row, where heads have masks */
    int stride;            /* refs of a head, at most */
    bool biased;           /* some page has a bias */
};

/* The masks of a batch, all layers: see struct HeadMasks. */
struct DevMasks {
    bool on;     /* the batch at hand has some */
    int *window; /* [n_layers, n_heads]; 0 also where a window holds all keys that there can be */
    int sinks;
};

/* The pages that one row reads in the layer at hand: see struct CudaPageSelect. */
struct DevChosen {
    struct CudaPageRef *refs; /* [n_kv_heads, stride of the table] */
    int *n_refs, *n_tokens, *tickets;
    float *score;
    unsigned long long *counts; /* [2] since reserve */
    int n_blocks;
    int *idx;                /* [n_layers or 1, n_kv_heads, stride of the table] places in it */
    struct CudaChoice *kept; /* [n_layers or 1, n_kv_heads] */
};

struct Scratch {
    int *tokens, *pos, *seq_begin, *rows; /* rows: indices of gathered rows, targets behind them */
    float *angles;                        /* [rows, rope_dim]: cosines, then sines */
    bf16 *normed;                         /* [rows, dim] */
    bf16 *wide;                           /* [ffn_rows, 2 * hidden_dim]; also compact's rows */
    bf16 *act;                            /* [ffn_rows, hidden_dim] */
    bf16 *weight;                         /* one weight as bf16, gate and up together */
    void *fp8;                            /* rows as e4m3 */
    float *fp8_scale;
    bf16 *k, *v;          /* packed keys and values */
    float *key_bias;      /* [n_kv_heads, keys] of the past's pages */
    bf16 *turned_k;       /* the keys as far rows see them */
    float *lse;           /* [n_heads, rows] */
    float *mass, *pooled; /* [seqs, n_kv_heads, mass_keys] */
    int *lens;            /* [seqs] */
    float *logits;        /* [head_rows, vocab_size] */
    float *nll;           /* [rows] */
    float *part;          /* partial results of paged attention */
    size_t part_bytes;
    int n_splits;
    struct DevTable table;
    struct DevMasks masks;
    struct DevWrite *writes;    /* [WRITES] descriptions */
    struct CudaPageSlot *slots; /* [n_layers, n_kv_heads] where a step puts its keys and values */
    unsigned long long *best;   /* [2] of step.cu */
    struct DevChosen chosen;
    int ffn_rows;
    size_t wide_bytes;
};

enum {
    PAGED_ROWS = 64,    /* rows times query heads a KV head that attention over pages takes */
    STEP_HEADS = 16384, /* KV heads of all layers, of a recorded step */
};

/* A block of GPU memory in hand. */
struct DevBlock {
    void *data;
    size_t bytes; /* as counted */
    struct DevBlock *next;
};

/* Cuts a block into parts that copies in bulk and tensor maps may begin at. */
struct Cut {
    uint8_t *base; /* NULL: only measure */
    size_t at;
};

static inline void *cut(struct Cut *c, size_t bytes)
{
    void *p = c->base ? c->base + c->at : NULL;
    c->at += (bytes + 255) & ~(size_t)255;
    return p;
}

struct Ring {
    uint8_t *data; /* pinned */
    size_t at, size;
};

/* What changes from step to step; the host fills it, and the device reads it there. */
struct StepHost {
    int token, pos;
    unsigned long long best; /* see step.cu */
    struct CudaPageSlot slots[STEP_HEADS];
};

/* What the rows of a step do about pages. */
enum StepKind {
    STEP_CHOOSES,
    STEP_KEEPS, /* reads those of the choice before */
    STEP_CALLS, /* likewise, after the host has brought some of them from a file */
    STEP_KINDS
};

struct Step {
    cudaGraphExec_t graph[STEP_KINDS]; /* NULL: none is recorded */
    enum StepKind kind;                /* of the batch at hand */
    bool recording;
    int noted;            /* writes noted since recording began */
    struct RopeArgs rope; /* noted, for the attention that follows */
    struct StepHost *host;
    bool grown;  /* the page tables are those of the step before, grown by it */
    int *told;   /* [n_heads] tokens of each head when the page tables were last told */
    int n_since; /* steps replayed since */
};

struct Device {
    const struct Model *model;
    cudaStream_t stream;
    struct GemmPlan *gemm;
    void *workspace;
    int n_sm, capability; /* 90 for 9.0 */
    bool fp8;
    enum CudaPageFormat format; /* of KV pages */
    char text[192];
    int threads;                              /* of the host, for large copies */
    size_t in_use, peak, weight_bytes, limit; /* limit: bytes of the card we may use; 0: no limit */
    struct DevBlock *blocks;
    struct DevWeight *weights; /* [n_weights] by address of host */
    struct DevVector *vectors; /* [n_vectors] likewise */
    int n_weights, n_vectors;
    const bf16 *embd; /* [vocab_size, dim] */
    void *slab;       /* all weights and vectors */
    float *inv_freq;  /* [rope_dim / 2] of the batch at hand */
    struct Ring ring;
    struct BatchShape shape;
    void *block; /* all scratch */
    size_t block_bytes;
    struct Scratch s;
    int max_seq_rows; /* of the batch at hand */
    float *x;         /* of the batch at hand */
    float rope_scale; /* likewise */
    struct Step step;
    bool copying;            /* pages are on their way from below, on a stream of their own */
    struct PageTier *tier;   /* the one that is open; NULL: none */
    struct CudaPeers *peers; /* peers.cu; NULL: none */
};

/* Takes the error of a CUDA call: PC_ENOMEM with advice, or PC_EDEVICE. */
int cuda_fail(cudaError_t e, const char *what);
#define CUDA_TRY(x)                                                                                \
    do {                                                                                           \
        cudaError_t cuda_error_ = (x);                                                             \
        if (cuda_error_ != cudaSuccess) return cuda_fail(cuda_error_, #x);                         \
    } while (0)

/* A named range in a profiler's timeline, as long as the object lives. */
struct Range {
    explicit Range(const char *name) { nvtxRangePushA(name); }
    ~Range() { nvtxRangePop(); }
};

/* device.cu: memory that counts. NULL with the error text set. */
void *dev_alloc(struct Device *d, size_t bytes);
void dev_free(struct Device *d, void *p);
/* Counts a block as `bytes` from now on. */
void dev_count(struct Device *d, const void *p, size_t bytes);
/* Room in the ring for what the caller copies to the device next. */
int dev_stage(struct Device *d, size_t bytes, void **out);
/* Host to device through the ring, without waiting. */
int dev_upload(struct Device *d, void *dst, const void *src, size_t bytes);
int dev_download(struct Device *d, void *dst, const void *src, size_t bytes); /* waits */

/* batch.cu: scratch, and what a batch tells the device. */
size_t cuda_scratch_bytes(const struct Device *d, const struct BatchShape *shape);
int cuda_reserve(struct Device *d, const struct BatchShape *shape);
int cuda_begin(struct Device *d, const struct Batch *b, const struct Rope *rope, float *x);
int cuda_turns(struct Device *d, const struct Rope *rope, const int *by, int n, float *out);
int cuda_compact(struct Device *d, void *x, size_t row_bytes, const int *idx, int n);
int cuda_copy(struct Device *d, void *dst, const void *src, size_t bytes);
int cuda_rope(struct Device *d, const struct RopeArgs *args);
struct BeginArgs;
struct BeginArgs begin_args(struct Device *d);
struct CudaTurn turn_of(struct Device *d, const struct RopeArgs *a);
/* tier.cu */
void cuda_tier_bytes(const struct Device *d, const struct TierPlan *plan, struct TierBytes *out);
int cuda_tier_open(struct Device *d, const struct TierPlan *plan, struct PagePool *pool);
void cuda_tier_close(struct Device *d, struct PagePool *pool);
int cuda_tier_counts(struct Device *d, const struct PagePool *pool, struct TierCounts *out);
struct CudaBelow tier_below(const struct PagePool *pool);
struct CudaSlots tier_slots(const struct PagePool *pool, int layer); /* no slot_of without a tier */
/* What the layer's row lacks comes: before what is queued next, or beside it where rows do not wait. */
int tier_fetch(struct Device *d, const struct PagePool *pool, const struct AttnArgs *a);
int tier_join(struct Device *d); /* what is queued next finds the pages that were on their way */
/* What failed on the host while the device went on; asked when it has been waited for. */
int tier_status(const struct Device *d);
/* The kind of step that a row with a kept choice is. */
enum StepKind tier_kept(const struct PagePool *pool);
struct TierFile *tier_file(const struct PagePool *pool); /* NULL: no page lies in one */
/* tier_file.cu; pages count from the first one below, and each is in a frame from file_run() to the next round */
void file_bytes(const struct Device *d, const struct TierPlan *plan, struct TierBytes *out);
int file_open(struct Device *d, const struct TierPlan *plan, uint8_t *memory,
              struct TierFile **out);
void file_close(struct Device *d, struct TierFile *t);
int file_begin(struct Device *d, struct TierFile *t);
bool file_at_home(const struct TierFile *t, uint32_t page); /* it needs no round */
/* At most file_room() different ones in a round. */
int file_need(struct TierFile *t, uint32_t page);
int file_run(struct Device *d, struct TierFile *t);
/* After file_begin, unless at home; then file_flush. */
void file_wrote(struct TierFile *t, uint32_t page);
int file_flush(struct TierFile *t);
int file_room(const struct TierFile *t);
const uint8_t *file_page(const struct TierFile *t, uint32_t page); /* where it is, in a frame */
const uint32_t *file_frames(const struct TierFile *t);             /* see struct CudaBelow */
struct CudaAsks file_asks(const struct TierFile *t, int layer);
/* The host brings what the layer's row asks for; the stream waits for it. */
int file_fetch(struct TierFile *t, int layer, bool kept, cudaStream_t s);
bool file_spills(const struct TierFile *t); /* a kept choice has to ask, too */
int file_status(const struct TierFile *t);
int64_t file_reads(const struct TierFile *t);
/* pages_file.cu: before and after ops that read and write pages; nothing where none of them lies in a file. */
int bring_past(struct Device *d, const struct AttnArgs *a);
int bring_written(struct Device *d, const struct PagePool *pool, const struct KvWrite *w, int n);
int bring_slots(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                const uint32_t *to, int n);
int bring_gathered(struct Device *d, const struct PagePool *pool, const struct KvGather *list,
                   int n);
int bring_refs(struct Device *d, const struct PagePool *pool, const struct PageRef *refs, int n);
int keep_written(struct Device *d, const struct PagePool *pool, const struct KvWrite *w, int n);
int keep_gathered(struct Device *d, const struct PagePool *pool, const struct KvGather *list, int n);
int keep_slots(struct Device *d, const struct PagePool *pool, const uint32_t *to, int n);
int at_once(const struct PagePool *pool, int pages_each, int most); /* items of so many pages */
/* step.cu */
int cuda_record(struct Device *d, bool on);
bool cuda_recorded(const struct Device *d);
int cuda_replay(struct Device *d, const struct KvWrite *writes, int n, float *logits, int *best);
void step_forget(struct Device *d);
int step_end(struct Device *d); /* the last kernel of a record */

/* peers.cu */
void peers_close(struct Device *d);
extern "C" const struct DevicePeers cuda_peers;
/* Until the stream is empty; what other ranks keep it from is waited for as peers are. */
int dev_wait(struct Device *d);

/* weights.cu */
int weights_open(struct Device *d);
void weights_close(struct Device *d);
const struct DevWeight *dev_weight(const struct Device *d, const struct Weight *w);
const float *dev_vector(const struct Device *d, const float *host); /* NULL for NULL */
const float *dev_slow(const struct Device *d, const float *k_bias);
const float *dev_balance(const struct Device *d, const float *k_bias);

/* geometry.cu: rows [row, row + n_rows) of a random weight, in the type that the device holds. */
cudaError_t geometry_fill(const struct Weight *w, int row, int n_rows, void *out, cudaStream_t s);

/* rows.cu: ops on rows; launchers return what cudaGetLastError says. */
struct RowsArgs {
    const float *x;
    const float *weight; /* [dim] */
    bf16 *out;
    const int *idx; /* rows of x to take, or NULL: all in order */
    int n_rows, dim;
    float eps;
};
/* Rows into x and the angles of their positions. */
struct BeginArgs {
    const bf16 *table;
    const int *tokens, *pos; /* [n_rows] */
    const float *inv_freq;   /* [rope_dim / 2] */
    float *x, *angles;       /* [n_rows, dim], [n_rows, rope_dim] */
    int n_rows, dim, rope_dim, n_slots;
    float scale;                     /* of the angles */
    const struct CudaPageSlot *told; /* [n_slots] go to slots */
    struct CudaPageSlot *slots;
};
cudaError_t rows_begin(const struct BeginArgs *a, cudaStream_t s);
cudaError_t rows_angles(const float *inv_freq, const int *pos, int n_rows, int half, float *out,
                        cudaStream_t s);
cudaError_t rows_norm(const struct RowsArgs *a, cudaStream_t s);
struct HeadsArgs {
    bf16 *x;              /* [n_rows, n_heads, head_dim] */
    const float *norm;    /* [head_dim] or NULL */
    const float *slow;    /* [n_heads, head_dim] or NULL: see CudaTurn */
    struct CudaTurn turn; /* angles [n_rows, rope_dim] */
    int n_rows, n_heads, head_dim;
    bool queries;
    int group; /* heads that have a row of turn.balance in common */
};
cudaError_t rows_rope(const struct HeadsArgs *a, cudaStream_t s);
/* out [n_rows, hidden] = silu(gate) * up, rows of both `ld` apart. */
cudaError_t rows_silu(const bf16 *gate, const bf16 *up, int ld, int n_rows, int hidden, bf16 *out,
                      cudaStream_t s);
cudaError_t rows_gather(const void *x, size_t row_bytes, const int *idx, int n, void *out,
                        cudaStream_t s);
cudaError_t rows_nll(const float *logits, int vocab, const int *target, int n, float *out,
                     cudaStream_t s);

/* pages.cu */
struct DevWrite {
    const bf16 *k, *v;
    const int *index;
    int row0, kv_head, first, n;
    uint32_t page;
    int at;
};
enum { WRITES = 16384 }; /* descriptions of one launch */
struct PagesArgs {
    uint8_t *pool;
    size_t page_bytes;
    enum CudaPageFormat format;
    int n_kv_heads, head_dim;
    struct CudaBelow below;
};
size_t page_size(enum CudaPageFormat format, int head_dim);
cudaError_t pages_write(const struct PagesArgs *p, const struct DevWrite *w, int n, cudaStream_t s);
/* from [n], to [n]: see kv_pack of struct Backend. */
cudaError_t pages_pack(const struct PagesArgs *p, const uint32_t *from, const uint32_t *to, int n,
                       cudaStream_t s);
/* Where tokens go: see struct KvGather of src/backend.h, of which this is one. */
struct DevGather {
    uint32_t from;
    const int *index;
    int first, n;
    uint32_t page;
    int at;
};
cudaError_t pages_take(const struct PagesArgs *p, const struct DevGather *list, int n,
                       cudaStream_t s);
/* The index of n pages from their first `len` keys: see kv_index of struct Backend. */
cudaError_t pages_index(const struct PagesArgs *p, const struct CudaPageRef *refs, int n,
                        bool bound, uint8_t *index, size_t index_bytes, cudaStream_t s);
/* The past's pages and the batch's own rows, head by head, into kv. */
struct GatherArgs {
    struct PagesArgs pages;
    const struct CudaPageRef *refs; /* [n_kv_heads, ref_stride]; of each sequence as kv.past */
    const int *n_refs;
    int ref_stride;
    const bf16 *k, *v;
    const int *seq_begin;
    int n_seqs;
    struct PackedKv kv;
    float *key_bias; /* [n_kv_heads, key_stride], or NULL */
    /* [n_kv_heads] bits: heads whose own rows lie in another part of the keys, which a bias hides; with key_bias only */
    uint32_t apart[CUDA_HEADS / 32];
};
cudaError_t pages_gather(const struct GatherArgs *a, cudaStream_t s);

/* parts.cu: see struct AttnPart. From rows of many, with their lse; and its lse in their order. */
enum { CUDA_PARTS = 64 };
cudaError_t part_from_rows(const struct CudaAttn *c, const struct AttnPart *part, cudaStream_t s);
cudaError_t part_lse(const struct AttnPart *part, int n_rows, int n_heads, float *lse,
                     cudaStream_t s);
int cuda_join(struct Device *d, const struct AttnArgs *args, const struct AttnPart *parts, int n);

/* linear.cu, attend.cu: the ops of the backend table. */
int cuda_norm_linear(struct Device *d, const float *x, int n_rows, const float *norm,
                     const struct LinearOp *ops, int n_ops);
int cuda_linear_add(struct Device *d, const void *a, int n_rows, const struct LinearOp *op);
int cuda_ffn_add(struct Device *d, float *x, int n_rows, const struct FfnWeights *f);
int cuda_logits(struct Device *d, const float *x, const int *idx, int n, float *out);
int cuda_nll(struct Device *d, const float *x, const int *idx, const int *target, int n,
             float *out);
/* A width of head for which all attention kernels are made; the others take those of attention_any.cu. */
bool usual_head(int head_dim);
int cuda_attend(struct Device *d, const struct AttnArgs *a);
int cuda_mass(struct Device *d, const struct AttnArgs *a, int obs_rows, float *mass, int stride);
int cuda_keep(struct Device *d, const struct AttnArgs *a, const struct KeepArgs *k);
int cuda_kv_write(struct Device *d, const struct PagePool *pool, const struct KvWrite *writes,
                  int n);
int cuda_kv_pack(struct Device *d, const struct PagePool *pool, const uint32_t *from,
                 const uint32_t *to, int n);
int cuda_kv_gather(struct Device *d, const struct PagePool *pool, const struct KvGather *list,
                   int n);
int cuda_kv_read(struct Device *d, const struct PagePool *pool, struct PageRef ref, int at,
                 float *k, float *v);
size_t cuda_index_bytes(const struct Device *d, enum PageIndex index);
int cuda_kv_index(struct Device *d, const struct PagePool *pool, enum PageIndex index,
                  const struct PageRef *refs, int n);
int cuda_page_counts(struct Device *d, struct PageCounts *out);

#endif

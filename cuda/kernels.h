/* kernels.h - the launchers of the CUDA backend: one plain struct of arguments each, nothing allocated, nothing
 * synchronised, work queued on the stream given. All pointers are device memory unless a comment says host.
 *
 * Activations are bf16 but for the residual stream x, which is f32; sums are f32 and run in a fixed order, so the same
 * input gives the same bytes. A launcher returns cudaErrorInvalidValue for a shape that it does not have.
 */
#ifndef PCOMP_CUDA_KERNELS_H
#define PCOMP_CUDA_KERNELS_H

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

enum {
    CUDA_PAGE_TOKENS = 64,
    CUDA_KEY_TILE = 128, /* packed keys are padded with zeros to a multiple of this */
    CUDA_HEADS = 256,    /* KV heads, where kernels have a bit for each */
};

/* What a page holds: K [64, head_dim] bf16, then V [64, head_dim] bf16; or codes of 8 or 4 bits (codes.cuh). */
enum CudaPageFormat { CUDA_PAGE_BF16, CUDA_PAGE_Q8, CUDA_PAGE_Q4 };

/* As struct PageRef of src/backend.h. */
struct CudaPageRef {
    uint32_t page, len;
    float bias; /* added to the logits of its tokens */
};

/* ==== Attention of many rows over packed keys ==== */

/* Keys and values of n_seqs sequences, head by head: the past that all share or that each has (its length may differ from KV
 * head to KV head), then the sequence's own rows. */
struct PackedKv {
    bf16 *k, *v;    /* [n_seqs, n_kv_heads, key_stride, head_dim]; zeros behind the last key, to the
                      * end of its tile of CUDA_KEY_TILE; nobody reads on from there */
    int key_stride; /* multiple of CUDA_KEY_TILE */
    const int *past; /* [n_kv_heads] past keys of each head */
    int past_step;   /* those of sequence s from s * past_step on; 0: all share a past */

#ifdef __CUDACC__
    __host__ __device__ int past_of(int seq, int kv_head) const
    {
        return past[(int64_t)seq * past_step + kv_head];
    }
#endif
};

struct CudaAttn {
    const bf16 *q; /* [n_rows, n_heads, head_dim], rotated */
    struct PackedKv kv;
    bf16 *out;  /* [n_rows, n_heads, head_dim] */
    float *lse; /* [n_heads, n_rows] natural log of sum exp of the scaled logits; or NULL */
    const int *seq_begin;             /* [n_seqs + 1] first row of each sequence */
    int n_seqs, n_rows, max_seq_rows; /* max_seq_rows: rows of the longest sequence */
    int last_rows; /* only the last so many rows of each sequence are wanted; 0: all */
    int n_heads, n_kv_heads, head_dim; /* n_heads a multiple of n_kv_heads */
    float scale;                       /* on the logits: 1 / sqrt(head_dim) */
    /* [n_kv_heads, key_stride] f32 added to the logits of the first n_biased keys; cuda_attention_any and
     * cuda_attn_mass only: elsewhere n_biased must be 0 */
    const float *key_bias;
    int n_biased;
    const int *
        window; /* [n_heads] row i sees key j when j < sinks or i - j < window; 0: all before it; or NULL: 0 for all */
    int sinks;  /* i and j count keys from the head's first past key */
};

/* Row i of a sequence sees the past and the rows up to itself: keys j < past + i + 1 of its KV head. */
cudaError_t cuda_attention_sm80(const struct CudaAttn *a,
                                cudaStream_t s); /* head_dim 64, 96, 128, 256 */
cudaError_t
cuda_attention_sm90a(const struct CudaAttn *a,
                     cudaStream_t s); /* head_dim 64, 128; compute capability 9.0 only */

/* Tokens far behind a row, which sees them from another place than its own: see struct FarKeys of src/backend.h. */
struct CudaFar {
    int window; /* row i sees key j as it stands when i - j < window */
    int n;      /* of the keys behind the window it sees those with j < n, with its query turned */
    const float *q_turn; /* [n_rows, rope_dim] cosines, then sines */
    const float *k_turn; /* [keys, rope_dim] turns far keys likewise; NULL: they stay */
    bf16 *k;             /* room for turned keys, of the shape of kv.k; NULL without k_turn */
    int rope_dim;
    bool pairs; /* values 2 i and 2 i + 1 turn together; else i and i + rope_dim / 2 */
};
/* Any head_dim that is a multiple of 8, up to 256. far (host memory): NULL for none; windows and far keys never meet. */
cudaError_t cuda_attention_any(const struct CudaAttn *a, const struct CudaFar *far, cudaStream_t s);

/* Sum over the last obs_rows rows of each sequence and over the query heads of each KV head of the softmax on every
 * key, from the logits' log-sum-exp that cuda_attention wrote. */
struct CudaMass {
    struct CudaAttn attn; /* with lse */
    int obs_rows;
    float *mass; /* [n_seqs, n_kv_heads, stride] f32; entries behind a head's last key are 0 */
    int stride;
};
cudaError_t cuda_attn_mass(const struct CudaMass *a,
                           cudaStream_t s); /* head_dim 64, 96, 128, 256 */
/* The same for the shapes of cuda_attention_any. */
cudaError_t cuda_attn_mass_any(const struct CudaMass *a, cudaStream_t s);

/* The cap context tokens of each (sequence, KV head) with the largest max-pooled mass, ascending (eviction/kv_evict.c:
 * pooling window `pool` centred, clipped at the ends; of equal values the lower index wins). */
struct CudaSelect {
    const float *mass; /* [n_seqs, n_kv_heads, stride]; the context begins at `first` */
    int stride, first;
    const int *n;                  /* [n_seqs] context tokens of each sequence */
    int n_seqs, n_kv_heads, max_n; /* max_n: the longest */
    int cap, pool;
    float *pooled; /* [n_seqs, n_kv_heads, stride] scratch */
    /* min(cap, n) indices, 0 the first context token; of head h of sequence i from i * keep_step + h * keep_stride on */
    int *keep;
    int keep_stride;
    int64_t keep_step;
};
cudaError_t cuda_select(const struct CudaSelect *a, cudaStream_t s);

/* ==== Attention of few rows over pages ==== */

/* How heads are turned: RMS norm of the head where it has one, then by the row's angles. */
struct CudaTurn {
    const float *angles; /* [rope_dim] cosines, then sines; NULL: heads are turned already */
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    const float *
        k_slow; /* [n_kv_heads, head_dim] or NULL: parts of the keys' bias that turn slowly, not in the keys yet */
    bool centred; /* keys less k_slow as it is: what they share does not cost them bits */
    int rope_dim;
    bool pairs; /* columns 2 i and 2 i + 1 belong together, else i and i + rope_dim / 2 */
    float eps;
    /* Then, for pages of codes: keys divided by `balance` [n_kv_heads, head_dim] (or NULL) and queries multiplied, and all
     * heads through the Hadamard transform of struct Kernels' spread (src/kernels.h). */
    bool even;
    const float *balance;
};

/* Pages by number: those from n_near on lie in the host's memory, which the device reads and writes as its own. */
struct CudaBelow {
    uint8_t *data; /* of page 0, if there were one; NULL: all pages are near */
    uint32_t n_near;
    const uint32_t *frame; /* [pages below] device memory: where a page lies instead; or NULL */
};
#ifdef __CUDACC__
static __host__ __device__ __forceinline__ uint8_t *cuda_page(uint8_t *near, struct CudaBelow below,
                                                              uint32_t page, size_t page_bytes)
{
    if (!below.data || page < below.n_near) return near + page * page_bytes;
    if (below.frame) page = below.n_near + below.frame[page - below.n_near];
    return below.data + page * page_bytes;
}
#endif

/* Where a token is put. */
struct CudaPageSlot {
    uint32_t page, at;
};

/* The pages of a KV head that some row sees: the first `front` and those from `back` on, which `before` tokens lie before;
 * all when `back` is 0. A page that it leaves out is not read. */
struct CudaSeen {
    int window; /* the widest of its query heads; 0: one sees all */
    int front, back, before;
};

/* Rows of one sequence over the pages of each KV head, then over their own keys up to themselves. */
struct CudaPaged {
    const bf16 *q; /* [n_rows, n_heads, head_dim], rotated */
    const bf16 *k,
        *v; /* [n_rows, n_kv_heads, head_dim] own keys (rotated) and values; NULL: the pages hold them,
                              the last n_rows tokens of each head's pages being the rows' own, causal among them */
    bf16 *out; /* [n_rows, n_heads, head_dim] */
    uint8_t *pool;
    size_t page_bytes;
    enum CudaPageFormat format;
    const struct CudaPageRef *refs; /* [n_kv_heads, ref_stride]; pages need not be full anywhere */
    const int *n_refs;              /* [n_kv_heads] */
    int ref_stride, max_refs;       /* max_refs: the most of any head (sizes the grid) */
    int n_rows, n_heads, n_kv_heads, head_dim;
    float scale;
    int n_splits; /* work items a head; chosen by cuda_paged_splits */
    float *part;  /* scratch, cuda_paged_scratch bytes, zeroed once by its owner */
    /* For the one row of a step: with angles q and k come as they are, are turned on the way in, and k and v are put
     * to where `slots` [n_kv_heads] says. No kernel queued shortly before may write the tables or the pages they list. */
    struct CudaTurn turn;
    const struct CudaPageSlot *slots;
    const int
        *window; /* [n_heads], with `sinks` as in CudaAttn; NULL: every row sees all before it */
    int sinks;
    const int *n_tokens;         /* [n_kv_heads] of each head's pages; with windows only */
    const struct CudaSeen *seen; /* [n_kv_heads] likewise */
    bool chosen; /* a kernel queued just before wrote refs and n_refs: they are waited for */
    struct CudaBelow below;
    /* A part of the keys: NULL, or where the output goes in place of out, as f32, with its natural log-sum-exp; and bits of the
     * KV heads whose own keys are not in it. */
    float *part_out, *part_lse; /* [n_rows, n_heads, head_dim], [n_rows, n_heads] */
    uint32_t apart[CUDA_HEADS / 32];
};
int cuda_paged_splits(enum CudaPageFormat format, int head_dim, int n_kv_heads, int max_refs,
                      int n_sm);
size_t cuda_paged_scratch(int n_rows, int n_heads, int head_dim, int n_splits);
/* n_rows * (n_heads / n_kv_heads) at most 64; head_dim 64, 96, 128, 256. Partial results merge in split order. */
cudaError_t cuda_paged_attention(const struct CudaPaged *a, cudaStream_t s);

/* ==== The pages that one row reads ==== */

/* What a row chose of one head's pages. */
struct CudaChoice {
    int n, seen; /* so many, of so many that were there */
};

/* As eviction/page_select.h has it, all KV heads of a layer. No kernel queued shortly before may write tables or index. */
struct CudaPageSelect {
    const bf16 *q;        /* [n_heads, head_dim] of the row, rotated */
    struct CudaTurn turn; /* with angles q comes as it is and is turned on the way in */
    const uint8_t *
        index; /* [n_pages, index_bytes] bf16: the mean key [head_dim]; or least and largest [2, head_dim] */
    size_t index_bytes;
    bool bound;
    const struct CudaPageRef *refs; /* [n_kv_heads, ref_stride] */
    const int *n_refs;              /* [n_kv_heads] */
    int ref_stride, n_heads, n_kv_heads, head_dim;
    float scale;
    int pages, first, last; /* of struct PageSelect */
    float mass;
    uint32_t whole[CUDA_HEADS / 32]; /* bits of KV heads whose pages are all read */
    struct CudaPageRef *out;         /* [n_kv_heads, ref_stride] the chosen pages, in order */
    int *n_out, *n_tokens;           /* [n_kv_heads] and their tokens */
    float *score;                    /* [n_kv_heads, ref_stride] scratch */
    int *tickets;                    /* [n_kv_heads] scratch, 0 before and after */
    unsigned long long *counts;      /* [2] pages read and pages there, added to; or NULL */
    int *idx; /* [n_kv_heads, ref_stride] the chosen pages' places in refs; or NULL */
    struct CudaChoice *kept; /* [n_kv_heads] with idx */
    int n_blocks;            /* a head; chosen by cuda_select_blocks */
    int lanes;               /* set by the launcher */
};
int cuda_select_blocks(int n_kv_heads, int max_refs, int n_sm);
/* head_dim: a multiple of 8, up to 256. */
cudaError_t cuda_select_pages(const struct CudaPageSelect *a, cudaStream_t s);

/* A page that is to come from below to a near one. */
struct CudaPageCopy {
    uint32_t from, to;
};

enum {
    CUDA_TIER_WANTED,
    CUDA_TIER_MISSED,
    CUDA_TIER_FETCHED,
    CUDA_TIER_LATE,
    CUDA_TIER_THROUGH,
    CUDA_TIER_SHARE, /* of the attention chosen that was late, in 2^-30, over heads */
    CUDA_TIER_HEADS, /* so many */
    CUDA_TIER_COUNTS
};

/* A page that a row asks for where pages lie in a file: see struct FrameAsk of src/page_frames.h. */
struct CudaAsk {
    int place, stays;
};

/* What a row says of its choice, in the host's memory: see struct FrameHead there. */
struct CudaAsks {
    int *n, *n_asked;      /* [n_kv_heads] */
    uint32_t *page;        /* [n_kv_heads, max_refs]; NULL: nothing is said */
    float *score;          /* likewise; INFINITY where none is known */
    struct CudaAsk *asked; /* likewise */
};

/* Slots for copies of the KV heads of one layer: see struct TierPlan, and struct Residency for what they are given to. */
struct CudaSlots {
    int *slot_of;          /* [n_kv_heads, max_refs]; NULL: there is no tier */
    int *page_at;          /* [n_kv_heads, slots] */
    const uint32_t *first; /* [n_kv_heads] the near page that is a head's first slot */
    uint32_t *share; /* [n_kv_heads, max_refs] of the attention chosen, by place in idx, in 2^-30 */
    struct CudaPageCopy *copies; /* [n_kv_heads, slots] written: what is to be copied */
    int *n_copies;               /* [n_kv_heads] likewise */
    int *take, *give, *held;     /* [n_kv_heads, slots] scratch */
    unsigned long long *counts;  /* [CUDA_TIER_COUNTS] added to */
    int slots, max_refs;
    uint32_t n_near;
    bool late; /* the row does without what has no slot or has just been given one */
    struct CudaAsks asks;
};

/* Makes page tables of choices: those of the row at hand, after cuda_select_pages, or those of the row before and the pages
 * that came since. Behind a tier, gives missing pages slots and says where the chosen ones are to be read. */
struct CudaPagePlace {
    const struct CudaPageRef *refs; /* [n_kv_heads, ref_stride] */
    const int *n_refs;              /* [n_kv_heads] */
    int ref_stride, n_kv_heads;
    uint32_t whole[CUDA_HEADS / 32];
    const float *score; /* [n_kv_heads, ref_stride] of cuda_select_pages; unless again */
    bool again;
    int *idx;                /* [n_kv_heads, ref_stride] */
    struct CudaChoice *kept; /* [n_kv_heads] */
    struct CudaPageRef *out; /* as in CudaPageSelect, like the rest */
    int *n_out, *n_tokens;
    unsigned long long *counts;
    struct CudaSlots tier;
};
cudaError_t cuda_place_pages(const struct CudaPagePlace *a, cudaStream_t s);

/* The copies that cuda_place_pages has noted. */
struct CudaCopies {
    const struct CudaPageCopy *copies; /* [n_kv_heads, slots] */
    const int *n_copies;               /* [n_kv_heads] */
    int slots, n_kv_heads, n_blocks;   /* n_blocks: of a head */
    uint8_t *near;
    struct CudaBelow below;
    size_t page_bytes;
    bool apart; /* on another stream than what queued the copies: begins when that has ended */
};
cudaError_t cuda_copy_pages(const struct CudaCopies *a, cudaStream_t s);

/* ==== Products ==== */

struct GemmPlan; /* cuBLASLt handle, workspace, and the algorithm chosen for each shape */
/* NULL on failure. The owner closes it. The workspace is the caller's: device memory of GEMM_WORKSPACE bytes. */
enum { GEMM_WORKSPACE = 32 << 20 };
struct GemmPlan *gemm_open(void *workspace);
void gemm_close(struct GemmPlan *p);

/* out [n_rows, rows] = act [n_rows, cols] x W [rows, cols]^T (+ bias) (+ out). */
struct CudaGemm {
    int n_rows, rows, cols;
    const void *act, *w; /* bf16, or e4m3 (fp8) with the scales below */
    bool fp8;
    const float *act_scale; /* fp8: [n_rows] one factor a row */
    const float *w_scale;   /* fp8: [rows] one factor an output channel */
    const float *bias;      /* [rows] f32 or NULL */
    void *out;              /* bf16, or f32 when out_f32 */
    bool out_f32, add;      /* add: out += ..., f32 only */
};
cudaError_t cuda_gemm(struct GemmPlan *p, const struct CudaGemm *g, cudaStream_t s);

/* out [n_rows, hidden] = silu(x W_gate^T) * (x W_up^T), the sums in f32. Compute capability 9.0 only. */
struct CudaGated {
    int n_rows, hidden, cols; /* hidden, cols: multiples of 8 */
    const void *x;            /* [n_rows, cols] bf16 */
    const void *gate, *up;    /* [hidden, cols] bf16 */
    bf16 *out;
};
cudaError_t cuda_gated_sm90a(const struct CudaGated *g, cudaStream_t s);
/* Share of the products it makes on a card of n_sm multiprocessors that are wanted: 1 when whole rounds of whole tiles
 * make up the output. */
double cuda_gated_fill(int n_rows, int hidden, int n_sm);

/* Rows of x to e4m3 with one scale a row (largest magnitude to 448). */
cudaError_t cuda_quantize_fp8(const bf16 *x, int n_rows, int cols, void *out, float *scale,
                              cudaStream_t s);

/* y[r] = W [rows, cols] . x[r] for 1 to 4 rows of x; W in `type` (enum DType of src/quant.h, GGUF blocks, or DT_BF16).
 * W and norm may be read while the work queued before still runs, so that work must not write them. */
struct CudaMatvec {
    int type, rows, cols, n_rows;
    const void *w;
    const bf16 *x;     /* [n_rows, cols] */
    const float *bias; /* [rows] or NULL */
    void *out;         /* [n_rows, rows]: bf16, or f32 when out_f32 */
    bool out_f32, add; /* add: out += ..., f32 only */
    const float *raw;  /* x is NULL: x = bf16(raw * rms(raw) * norm), raw [n_rows, cols] */
    const float *norm; /* [cols] */
    float eps;         /* rms(r) = 1 / sqrt(mean of r^2 + eps) */
};
cudaError_t cuda_matvec(const struct CudaMatvec *m, cudaStream_t s);
/* n products, 3 at most, that differ in w, rows, bias and out. */
cudaError_t cuda_matvecs(const struct CudaMatvec *m, int n, cudaStream_t s);
/* h[r] = silu(gate . x[r]) * (up . x[r]), bf16; m->w is gate, m->out is h. */
cudaError_t cuda_matvec_silu(const struct CudaMatvec *m, const void *up, cudaStream_t s);
/* Blocks of a GGUF type to bf16, on the device: what a weight is before a product. */
cudaError_t cuda_dequantize(int type, const void *blocks, int64_t n, bf16 *out, cudaStream_t s);

#endif

/* kernels.h - the inner loops of the CPU backend, one table per instruction set.
 *
 * Every src/kernels_*.c is compiled once per instruction set (see Makefile); KERNEL(name) gives each
 * copy its own symbol, and kernels_table.c gathers them. cpu.c picks one table at start.
 *
 * Numbers. In the default precision a matrix product runs on block fixed point: 64 to 256 values share one
 * f32 scale and are stored as int16, the two sides' limits chosen so that their products sum exactly in an
 * int32; a group then costs one f32 multiply-add an output. That is as fast as bf16 on VNNI machines, runs
 * on AVX2 too, and errs several times less.
 */
#ifndef PCOMP_KERNELS_H
#define PCOMP_KERNELS_H

#include "config.h"
#include "model.h"

#define KERNEL_CAT2(a, b) a##_##b
#define KERNEL_CAT(a, b)  KERNEL_CAT2(a, b)
#define KERNEL(name)      KERNEL_CAT(name, PCOMP_ISA)

enum {
    QBLOCK = 64,      /* values of a block; also keys a block and tokens a page */
    GROUP_BLOCKS = 2, /* most blocks that share a scale */
    PANEL_COLS = 64,  /* outputs of one weight panel */
    PANELS_MAX = 8,   /* panels made together */
    TILE_ROWS =
        48, /* rows of a product's tile: with 64 columns it stays in the first-level cache */
    /* Limits of the two sides of a product: values summed * left * right < 2^31. LIMIT_ACT is for one block a
     * group, for n blocks it is divided by n. Keys have the larger share because models with key biases put a few
     * large values into every key. */
    LIMIT_ACT = 16383,
    LIMIT_WEIGHT = 2047,
    LIMIT_QUERY = 4095,
    LIMIT_KEY = 8191,
    LIMIT_PROB = 16383,
    LIMIT_VALUE = 2047,
};

/* Rows of activations as the matrix kernels read them: int16 with scales, or f32, in tiles of
 * TILE_ROWS rows x QBLOCK values, each contiguous (rows 128 bytes apart read twice as fast as rows a kilobyte
 * apart). Rows and values are padded to whole tiles. */
struct Act {
    bool exact; /* f32 mode: v points to float, scale is NULL */
    int cols;
    int n_blocks; /* cols / QBLOCK, rounded up */
    int group; /* blocks that share a scale: GROUP_BLOCKS, or 1 where blocks are written one by one */
    void *v;   /* [row tiles, n_blocks, TILE_ROWS, QBLOCK] int16 or f32 */
    float *scale; /* [row tiles, n_blocks, TILE_ROWS] f32; a group's stands at its first block */
};

/* Index of (row, block) among the blocks of an Act: times QBLOCK for values, times 1 for scales. */
static inline size_t act_at(const struct Act *a, int row, int block)
{
    return ((size_t)(row / TILE_ROWS) * (size_t)a->n_blocks + (size_t)block) * TILE_ROWS +
           (size_t)(row % TILE_ROWS);
}

enum MatmulMode {
    MATMUL_STORE, /* out = a W^T + bias */
    MATMUL_ADD,   /* out += a W^T + bias */
    MATMUL_SILU,  /* act_out = silu(a W^T) * (a W2^T) */
};

/* One product a [n_rows, cols] x W [rows, cols]^T, cut to a tile of the output. */
struct MatmulArgs {
    const struct Act *a;
    int n_rows;
    const struct Weight *w, *w2; /* w2: MATMUL_SILU only */
    const float *bias;           /* [w->rows] f32 or NULL */
    enum MatmulMode mode;
    float *out; /* [n_rows, ld_out] f32 */
    int ld_out;
    struct Act *act_out; /* MATMUL_SILU */
    int n_panels;        /* panels that one matmul_tile call makes; 0 and MATMUL_SILU: one */
};

/* Keys and values of one (sequence, KV head), packed for the tile product. */
struct KvPack {
    bool exact;
    bool
        halves; /* numbers are rounded as pages of f16 hold them, so that it is the same whether a row reads those or these */
    int head_dim;
    void *k, *v; /* key panels [n_blocks][head_dim padded x 64 keys], value panels likewise */
    float *k_scale, *v_scale;
    /* Values of the keys from `tail` on share no scale with those before them: in the block where both stand they have panels of
     * their own. 0: there is no such block. */
    int tail;
    void *tail_v; /* [head_dim padded x 64 keys] */
    float *tail_scale;
};

/* Whether both stand in this block. */
static inline bool kv_apart(const struct KvPack *p, int block)
{
    return p->tail % QBLOCK && p->tail / QBLOCK == block;
}

/* Rows of one query head of one sequence against packed keys. */
struct AttnTile {
    bool exact;
    int head_dim;
    const float *q; /* [n_rows, ld_q] f32, rotated */
    int ld_q, n_rows;
    int first_visible; /* keys that row 0 sees; row i sees i more */
    struct KvPack kv;
    float scale;       /* 1 / sqrt(head_dim) */
    const float *bias; /* [n_biased] added to the logits of the first keys */
    int n_biased;
    float *out; /* [n_rows, ld_out] f32 */
    int ld_out;
    int window; /* a row sees only so many of its last keys, and the first `sinks`; 0: all */
    int sinks;
    int limit; /* and only those among the first `limit`; 0: all */
    float *
        lse; /* NULL or [n_rows, ld_lse] natural log of the sum of exp(logit): attn_tile writes it; attn_mass takes it in
                 * place of its own sum, where the rows see more than these keys */
    int ld_lse;
    const struct AttnTile
        *far; /* keys that the same rows see besides, from another place; or NULL */
};

/* What a page of 64 tokens of one KV head holds: K^T [head_dim, 64] then V [64, head_dim] in f32 or f16, or codes
 * (kernels_codes.c): of each token K and V as whole numbers of 8 or 4 bits, with a scale and a zero. */
enum PageFormat { PAGE_F32, PAGE_F16, PAGE_Q8, PAGE_Q4 };

static inline size_t page_bytes(enum PageFormat format, int head_dim)
{
    size_t pairs = ((size_t)head_dim + 1) / 2, values = (size_t)head_dim * QBLOCK;
    size_t scales = (size_t)4 * QBLOCK * sizeof(uint16_t);
    if (format == PAGE_F32) return 2 * values * sizeof(float);
    if (format == PAGE_F16) return 2 * values * sizeof(uint16_t);
    return 2 * pairs * QBLOCK * (format == PAGE_Q8 ? 2 : 1) + scales;
}

/* A run of KV pages of one head for a few query rows (decode). */
struct PageRun {
    const void *page;
    int len;          /* tokens in use */
    int hidden, seen; /* of these, [hidden, seen) are not looked at */
    float bias;       /* added to their logits */
};

/* Query rows of one KV group (decode). */
struct PageAttn {
    enum PageFormat format;
    int head_dim;
    const float *q; /* [n_q, ld_q] f32, rotated */
    int ld_q, n_q;
    const struct PageRun *runs;
    int n_runs;
};

/* Query rows of one KV group that ask what a page may hold for them. */
struct IndexQuery {
    enum PageIndex index;
    bool exact; /* the index holds f32, else f16 */
    int head_dim;
    const float *q; /* [n_q, head_dim] f32, rotated */
    int n_q;
    float scale; /* 1 / sqrt(head_dim) */
};

struct Partial {
    float max, sum; /* running maximum (base-2 logit) and sum of 2^(s - max) */
};

struct Kernels {
    const char *isa;

    /* x [n_rows, ld] f32 -> rows row0.. of act */
    void (*act_pack)(const float *x, int ld, int row0, int n_rows, struct Act *act);
    /* bytes of scratch that matmul_tile needs for `cols` inputs */
    size_t (*panel_bytes)(int cols, bool exact);
    /* Outputs of panels [panel, + m->n_panels), those that there are, for rows [row0, row1), row0 a multiple of TILE_ROWS; scratch holds the packed panel(s). */
    void (*matmul_tile)(const struct MatmulArgs *m, int panel, int row0, int row1, void *scratch);

    /* Decode products: y[i] = W[row0 + i, :] . x, i < n_rows. prep is made once from x. */
    size_t (*matvec_prep_bytes)(int cols);
    void (*matvec_prepare)(const float *x, int cols, bool exact, void *prep);
    void (*matvec_rows)(const struct Weight *w, int row0, int n_rows, const void *prep, bool exact,
                        float *y);

    void (*rmsnorm)(const float *x, const float *weight, int n, float eps, float *out);
    void (*silu_mul)(float *gate, const float *up, int n); /* gate = silu(gate) * up */
    void (*add)(float *x, const float *y, int n);
    /* In place on one head; cos_sin holds rope_dim/2 pairs. */
    void (*rope)(float *head, const float *cos_sin, int rope_dim, enum RopeStyle style);
    /* log sum exp and the largest value of n logits */
    float (*log_sum_exp)(const float *logits, int n);

    /* Packs block `block` of 64 tokens (n valid, the rest zero): rows k, v [n, ld]. */
    void (*kv_pack)(const float *k, const float *v, int ld, int n, int block, struct KvPack *out);
    size_t (*kv_pack_bytes)(int head_dim, bool exact,
                            size_t *scale_floats); /* of one block, k or v */
    void (*attn_tile)(const struct AttnTile *t, void *scratch);
    size_t (*attn_scratch_bytes)(int head_dim, int n_keys, bool exact);
    /* Sum over the tile's rows of their softmax probabilities: mass[j] += , j < n_keys. */
    void (*attn_mass)(const struct AttnTile *t, int n_keys, float *mass, void *scratch);
    /* Unnormalised output [n_q, head_dim] and partials [n_q] of a few query rows over pages. */
    void (*attn_pages)(const struct PageAttn *a, struct Partial *part, float *out);
    /* Writes token slot `at` of a page; reads it back as f32; moves what a slot holds to one of another page as it is. */
    void (*page_write)(void *page, int at, int head_dim, const float *k, const float *v,
                       enum PageFormat format);
    void (*page_read)(const void *page, int at, int head_dim, float *k, float *v,
                      enum PageFormat format);
    /* n slots from `at` on, as rows k, v [n, head_dim]. */
    void (*page_rows)(const void *page, int at, int n, int head_dim, float *k, float *v,
                      enum PageFormat format);
    /* What a page's first `len` keys have in common: their mean [head_dim], or each channel's least and largest value
     * [2, head_dim]; f16, or f32 when `exact`. */
    void (*index_write)(const void *page, enum PageFormat format, int len, int head_dim,
                        enum PageIndex index, bool exact, void *out);
    /* The largest logit that some row has for the page's mean key, or may have for any of its keys. */
    float (*index_score)(const struct IndexQuery *q, const void *index);
    void (*page_move)(void *to, int to_at, const void *from, int from_at, int head_dim,
                      enum PageFormat format);
    /* A head's Hadamard transform, orthonormal, in place: of each run of B values, B the largest power of two that divides
     * head_dim. What stands out in one value is spread over all of them. */
    void (*spread)(float *head, int head_dim);
};

extern const struct Kernels kernels_avx2, kernels_avx512, kernels_avx512vnni;

#endif

/* matvec.cu - products of a stored matrix and one to four rows, for decoding. Bound by the reading of the matrix.
 *
 * A warp computes two output rows at a time in steps of 1024 columns, 32 columns a lane. The bytes of the next steps are
 * on their way into the warp's ring in shared memory, by 16-byte copies whatever the size of a block, while the lanes
 * take the present ones apart. x waits in shared memory in the order in which a lane meets its weights.
 *
 * Codes become floats without arithmetic: a code's bits, masked within the low 24 bits of a word, are the subnormal
 * float code * 2^(shift - 149). x is stored times 2^(LIFT - shift), so sums are too small by 2^(LIFT - 149), which the
 * block's scale makes up for. All these factors are powers of two: nothing is rounded that code * x would not round.
 * Needs |x| < 2^31.
 */
#include "blocks.cuh"
#include "kernels.h"

enum {
    WARP = 32,
    STEP = 1024,   /* columns of a warp at a time */
    PAIR = 2,      /* output rows of a warp at a time */
    WARPS = 16,    /* of a CTA; fewer where x leaves no room for their rings */
    MIN_WARPS = 4, /* where several rows of x could go in parts instead */
    STAGES = 3,    /* items of a ring */
    MAX_X_ROWS = 4,
    LIFT = 96,
    NO_LIFT = -1,
};

extern __shared__ __align__(16) uint8_t shared[];

/* ==== Shared memory, by byte offsets ==== */

/* Casts, so that addresses differ by constants only. */
__device__ static uint32_t shared_u16(uint32_t at)
{
    return *(const uint16_t *)(shared + at);
}

__device__ static uint32_t shared_u32(uint32_t at)
{
    return *(const uint32_t *)(shared + at);
}

__device__ static uint4 shared_u128(uint32_t at)
{
    return *(const uint4 *)(shared + at);
}

/* Words from an address that is even and no more. */
template <int N> __device__ static void shared_words(uint32_t at, uint32_t *out)
{
    uint32_t select = at & 2 ? 0x5432 : 0x3210, aligned = at & ~3u, low = shared_u32(aligned);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) {
        uint32_t high = shared_u32(aligned + 4 * i + 4);
        out[i] = __byte_perm(low, high, select);
        low = high;
    }
}

__device__ static float half_of(uint32_t bits)
{
    __half_raw h;
    h.x = (unsigned short)bits;
    return __half2float(__half(h));
}

__device__ static float2 halves_of(uint32_t bits)
{
    return make_float2(half_of(bits & 0xffff), half_of(bits >> 16));
}

/* What LIFT and the subnormal codes leave to the scale. */
__device__ static float unlift(float scale)
{
    return scale * 0x1p53f;
}

/* ==== A lane's part of a step ====
 *
 * Lane<T> has 32 weights in slots 0 to 31. `load` takes them from shared memory, where the step begins at a byte offset;
 * code(slot) is a weight but for its scale. Columns come in four runs of eight: run_column is where a run begins within
 * the step, run_slot the slot of its i-th weight. Odd and even slots ("halves") may have scales of their own:
 * the product is the sum over halves of scale[h] * (sum of code * x) + add[h] * (sum of x), with SUMS such sums of x.
 * ITEM_STEPS: steps fetched together. */
template <int T> struct Lane;

/* Blocks of nibbles: bytes of four words, low nibbles in the even slots and high ones in the odd. */
struct NibbleSlots {
    __host__ __device__ static constexpr int run_slot(int run, int i)
    {
        return 8 * (2 * (run & 1) + (i >> 2)) + 2 * (i & 3) + (run >> 1);
    }
    __device__ static constexpr int byte_of(int slot) { return (slot & 7) >> 1; }
};

/* A masked byte of a word as a subnormal; the top byte comes down to the low end. */
__device__ static float subnormal(uint32_t word, int byte, uint32_t mask)
{
    return __uint_as_float(byte == 3 ? word >> 24 & mask : word & mask << 8 * byte);
}

__host__ __device__ static constexpr int subnormal_shift(int byte)
{
    return byte == 3 ? 0 : 8 * byte;
}

/* Four bits each, taken from where they lie. */
struct FourBits : NibbleSlots {
    uint32_t qs[4];

    __device__ float code(int slot) const
    {
        return subnormal(qs[slot >> 3], byte_of(slot), slot & 1 ? 0xf0 : 0x0f);
    }
    __device__ static constexpr int shift(int slot)
    {
        return subnormal_shift(byte_of(slot)) + 4 * (slot & 1);
    }
};

/* Up to eight bits each, a byte a code once `merge` has added the high bits; other bits of a byte may be anything. */
template <int BITS> struct MergedBits : NibbleSlots {
    uint32_t codes[2][4];

    __device__ void merge(int w, uint32_t qs, uint32_t high0, uint32_t high1)
    {
        const uint32_t low = 0x0f0f0f0f;
        codes[0][w] = (qs & low) | (high0 & ~low);
        codes[1][w] = (qs >> 4 & low) | (high1 & ~low);
    }
    __device__ float code(int slot) const
    {
        return subnormal(codes[slot & 1][slot >> 3], byte_of(slot), (1u << BITS) - 1);
    }
    __device__ static constexpr int shift(int slot) { return subnormal_shift(byte_of(slot)); }
};

/* A block of 32 each lane. */
struct SmallBlock {
    enum { SUMS = 1 };
    float scale[2], add[2];

    __device__ static int run_column(int lane, int run) { return 32 * lane + 8 * run; }
    __device__ void set_centered(float d, float offset)
    {
        scale[0] = scale[1] = unlift(d);
        add[0] = -offset * d;
    }
    __device__ void set_scaled(float2 d_and_min)
    {
        scale[0] = scale[1] = unlift(d_and_min.x);
        add[0] = d_and_min.y;
    }
};

template <> struct Lane<DT_Q4_0> : FourBits, SmallBlock {
    enum { STEP_BYTES = 32 * 18, ITEM_STEPS = 2 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 18 * lane;
        shared_words<4>(b + 2, qs);
        set_centered(half_of(shared_u16(b)), 8);
    }
};

template <> struct Lane<DT_Q4_1> : FourBits, SmallBlock {
    enum { STEP_BYTES = 32 * 20, ITEM_STEPS = 2 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 20 * lane;
        for (int w = 0; w < 4; w++) qs[w] = shared_u32(b + 4 + 4 * w);
        set_scaled(halves_of(shared_u32(b)));
    }
};

/* Fifth bits of a block of 32: bit i belongs to weight i. The product puts bit k of four at bit 8 k + 4. */
struct FiveBits : MergedBits<5>, SmallBlock {
    __device__ static uint32_t spread(uint32_t bits) { return (bits & 15) * 0x02040810u; }
    __device__ void merge_all(uint32_t high, const uint32_t *qs)
    {
        for (int w = 0; w < 4; w++)
            merge(w, qs[w], spread(high >> 4 * w) & 0x10101010,
                  spread(high >> (16 + 4 * w)) & 0x10101010);
    }
};

template <> struct Lane<DT_Q5_0> : FiveBits {
    enum { STEP_BYTES = 32 * 22, ITEM_STEPS = 2 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 22 * lane, words[5];
        shared_words<5>(b + 2, words);
        merge_all(words[0], words + 1);
        set_centered(half_of(shared_u16(b)), 16);
    }
};

template <> struct Lane<DT_Q5_1> : FiveBits {
    enum { STEP_BYTES = 32 * 24, ITEM_STEPS = 2 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 24 * lane, qs[4];
        for (int w = 0; w < 4; w++) qs[w] = shared_u32(b + 8 + 4 * w);
        merge_all(shared_u32(b + 4), qs);
        set_scaled(halves_of(shared_u32(b)));
    }
};

/* Signed bytes, plus 128. */
template <> struct Lane<DT_Q8_0> : SmallBlock {
    enum { STEP_BYTES = 32 * 34, ITEM_STEPS = 1 };
    uint32_t q[8];

    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 34 * lane;
        shared_words<8>(b + 2, q);
        for (int w = 0; w < 8; w++) q[w] ^= 0x80808080;
        set_centered(half_of(shared_u16(b)), 128);
    }
    __device__ float code(int slot) const { return subnormal(q[slot >> 2], slot & 3, 255); }
    __device__ static constexpr int shift(int slot) { return subnormal_shift(slot & 3); }
    __host__ __device__ static constexpr int run_slot(int run, int i) { return 8 * run + i; }
};

/* Q4_K and Q5_K: a lane has 16 bytes, so 16 weights of one group of 32 in its low nibbles and 16 of the next in the
 * high ones. */
struct GroupPair {
    enum { SUMS = 2 };
    float scale[2], add[2];

    __device__ static int run_column(int lane, int run)
    {
        return 256 * (lane >> 3) + 64 * (lane >> 1 & 3) + 16 * (lane & 1) + 32 * (run >> 1) +
               8 * (run & 1);
    }
    /* `head` is the block's d, minimum's d and the 12 bytes of six-bit scales and minima (see group_scales). */
    __device__ void set_groups(uint4 head, int pair)
    {
        float2 d = halves_of(head.x);
        int shift = 16 * (pair & 1);
        uint32_t s = head.y >> shift, m = head.z >> shift, both = head.w >> shift;
        /* Selected by masks: a branch would split the warp. */
        uint32_t late = pair >= 2 ? ~0u : 0;
        s = (s & 0x3f3f & ~late) | (((both & 0x0f0f) | (s >> 2 & 0x3030)) & late);
        m = (m & 0x3f3f & ~late) | (((both >> 4 & 0x0f0f) | (m >> 2 & 0x3030)) & late);
        d.x = unlift(d.x);
        scale[0] = d.x * (float)(s & 255);
        scale[1] = d.x * (float)(s >> 8);
        add[0] = -d.y * (float)(m & 255);
        add[1] = -d.y * (float)(m >> 8);
    }
};

template <> struct Lane<DT_Q4_K> : FourBits, GroupPair {
    enum { STEP_BYTES = 4 * 144, ITEM_STEPS = 2 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 144 * (lane >> 3);
        uint4 q = shared_u128(b + 16 + 16 * (lane & 7));
        qs[0] = q.x, qs[1] = q.y, qs[2] = q.z, qs[3] = q.w;
        set_groups(shared_u128(b), lane >> 1 & 3);
    }
};

template <> struct Lane<DT_Q5_K> : MergedBits<5>, GroupPair {
    enum { STEP_BYTES = 4 * 176, ITEM_STEPS = 2 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 176 * (lane >> 3);
        int pair = lane >> 1 & 3;
        uint4 q = shared_u128(b + 48 + 16 * (lane & 7)), h = shared_u128(b + 16 + 16 * (lane & 1));
        const uint32_t *qs = &q.x, *high = &h.x;
        for (int w = 0; w < 4; w++) {
            uint32_t two = high[w] >> 2 * pair;
            merge(w, qs[w], two << 4, two << 3);
        }
        set_groups(shared_u128(b), pair);
    }
};

/* A lane has 16 bytes of ql and the bits that belong to them. Bits that are not its own leave the bytes by the mask. */
template <> struct Lane<DT_Q6_K> : MergedBits<6> {
    enum { STEP_BYTES = 4 * 210, ITEM_STEPS = 2, SUMS = 2 };
    float scale[2], add[2];

    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 210 * (lane >> 3), qs[4], high[4];
        int half = lane >> 2 & 1, row = lane >> 1 & 1, piece = lane & 1;
        shared_words<4>(b + 16 * (lane & 7), qs);
        shared_words<4>(b + 128 + 32 * half + 16 * piece, high);
        for (int w = 0; w < 4; w++) {
            uint32_t h = high[w] >> 2 * row;
            merge(w, qs[w], h << 4, h);
        }
        float d = half_of(shared_u16(b + 208));
        for (int k = 0; k < 2; k++) {
            float s = d * (float)(int8_t)shared[b + 192 + 8 * half + 2 * row + piece + 4 * k];
            scale[k] = unlift(s);
            add[k] = -32 * s;
        }
    }
    __device__ static int run_column(int lane, int run)
    {
        return 256 * (lane >> 3) + 128 * (lane >> 2 & 1) + 32 * (lane >> 1 & 1) + 16 * (lane & 1) +
               64 * (run >> 1) + 8 * (run & 1);
    }
};

/* Plain types: eight columns of every 256 are a lane's. What lies behind the row's end counts as 0. */
struct Plain {
    enum { SUMS = 0 };
    float scale[2], add[2];

    __device__ static constexpr int shift(int) { return NO_LIFT; }
    __device__ static int run_column(int lane, int run) { return 256 * run + 8 * lane; }
    __host__ __device__ static constexpr int run_slot(int run, int i) { return 8 * run + i; }
};

struct PlainHalf : Plain {
    enum { STEP_BYTES = 2 * STEP, ITEM_STEPS = 1 };
    uint32_t q[16];

    __device__ void load(uint32_t step, int lane, int cols)
    {
        scale[0] = scale[1] = 1;
        for (int run = 0; run < 4; run++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (run_column(lane, run) < cols) v = shared_u128(step + 512 * run + 16 * lane);
            q[4 * run] = v.x, q[4 * run + 1] = v.y, q[4 * run + 2] = v.z, q[4 * run + 3] = v.w;
        }
    }
};

template <> struct Lane<DT_BF16> : PlainHalf {
    __device__ float code(int slot) const
    {
        return __uint_as_float(slot & 1 ? q[slot >> 1] & 0xffff0000 : q[slot >> 1] << 16);
    }
};

template <> struct Lane<DT_F16> : PlainHalf {
    __device__ float code(int slot) const
    {
        return half_of(q[slot >> 1] >> 16 * (slot & 1) & 0xffff);
    }
};

template <> struct Lane<DT_F32> : Plain {
    enum { STEP_BYTES = 4 * STEP, ITEM_STEPS = 1 };
    uint32_t q[32];

    __device__ void load(uint32_t step, int lane, int cols)
    {
        scale[0] = scale[1] = 1;
        for (int k = 0; k < 8; k++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (run_column(lane, k >> 1) < cols)
                v = shared_u128(step + 1024 * (k >> 1) + 32 * lane + 16 * (k & 1));
            q[4 * k] = v.x, q[4 * k + 1] = v.y, q[4 * k + 2] = v.z, q[4 * k + 3] = v.w;
        }
    }
    __device__ float code(int slot) const { return __uint_as_float(q[slot]); }
};

/* ==== x in shared memory ====
 *
 * One row is kept as f32, more as bf16. A lane's 32 values and their sums are a chunk; its padding keeps lanes apart in
 * the banks. */
template <int N_X> struct XChunk {
    enum { WIDE = N_X == 1, SUMS_AT = WIDE ? 128 : 64, BYTES = SUMS_AT + 16 };
};

/* 2^n */
__device__ static float power_of_two(int n)
{
    return __int_as_float((127 + n) << 23);
}

template <class L, int N_X>
__device__ static void stage_chunk(const bf16 *x, int cols, int chunk, uint32_t at)
{
    float v[WARP], sum[2] = {0, 0};
#pragma unroll
    for (int run = 0; run < 4; run++) {
        int col = chunk / WARP * STEP + L::run_column(chunk % WARP, run);
        uint4 bits = col < cols ? *(const uint4 *)(x + col) : make_uint4(0, 0, 0, 0);
        const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&bits;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int slot = L::run_slot(run, i);
            float f = i & 1 ? __high2float(pair[i >> 1]) : __low2float(pair[i >> 1]);
            sum[L::SUMS == 2 ? slot & 1 : 0] += f;
            v[slot] = L::shift(slot) == NO_LIFT ? f : f * power_of_two(LIFT - L::shift(slot));
        }
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float4 *wide = (float4 *)(shared + at + 32 * k);
        const float *p = v + 8 * k;
        if (XChunk<N_X>::WIDE) {
            wide[0] = make_float4(p[0], p[1], p[2], p[3]);
            wide[1] = make_float4(p[4], p[5], p[6], p[7]);
        } else {
            __nv_bfloat162 *narrow = (__nv_bfloat162 *)(shared + at + 16 * k);
            for (int i = 0; i < 4; i++) narrow[i] = __floats2bfloat162_rn(p[2 * i], p[2 * i + 1]);
        }
    }
    *(float2 *)(shared + at + XChunk<N_X>::SUMS_AT) = make_float2(sum[0], sum[1]);
}

/* Eight slots of a chunk. */
template <int N_X> __device__ static void load_x(uint32_t chunk, int eight, float *x)
{
    if (XChunk<N_X>::WIDE) {
        for (int k = 0; k < 2; k++) {
            uint4 v = shared_u128(chunk + 32 * eight + 16 * k);
            x[4 * k] = __uint_as_float(v.x), x[4 * k + 1] = __uint_as_float(v.y);
            x[4 * k + 2] = __uint_as_float(v.z), x[4 * k + 3] = __uint_as_float(v.w);
        }
    } else {
        uint4 v = shared_u128(chunk + 16 * eight);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
        for (int k = 0; k < 4; k++) {
            x[2 * k] = __uint_as_float(words[k] << 16);
            x[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000);
        }
    }
}

/* ==== The kernel ==== */

struct MatvecArgs {
    struct CudaMatvec m;
    const uint8_t *up;
    int64_t row_bytes;
    int n_steps, n_chunks; /* of a row; a chunk is a lane's part of a step */
    bool ragged;           /* the matrix is no multiple of 16 bytes */
    uint32_t x_at, x_row;  /* where x begins in shared memory, and the bytes of a row */
};

template <class L> struct Ring {
    enum {
        ITEM_BYTES = L::STEP_BYTES * L::ITEM_STEPS,
        /* An item begins anywhere in its first 16 bytes. */
        SLOT = (ITEM_BYTES + 14 + 15) / 16 * 16,
        STAGE = PAIR * SLOT,
        BYTES = STAGES * STAGE,
        COPIES = (SLOT / 16 + WARP - 1) / WARP,
    };
};

__device__ static void copy16(uint32_t to, const uint8_t *from)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared) + to;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

/* `bytes` bytes from offset `begin` of a matrix on, and what shares their 16-byte pieces, into a slot of the ring.
 * `ends`: the matrix ends with them, within a piece, and nothing behind it may be read. */
template <class L>
__device__ static void fetch(const uint8_t *w, int64_t begin, int bytes, bool ends, uint32_t slot)
{
    int lane = threadIdx.x % WARP, skew = (int)begin & 15;
    const uint8_t *src = w + (begin - skew) + 16 * lane;
    int whole = ends ? (skew + bytes) >> 4 : (skew + bytes + 15) >> 4;
    uint32_t to = slot + 16 * lane;
#pragma unroll
    for (int k = 0; k < Ring<L>::COPIES; k++)
        if (lane + WARP * k < whole) copy16(to + 16 * WARP * k, src + 16 * WARP * k);
    if (!ends) return;
    int at = 16 * whole + 2 * lane;
    if (at < skew + bytes)
        *(uint16_t *)(shared + slot + at) = *(const uint16_t *)(w + (begin - skew) + at);
}

/* The rows of a pair: with SILU row `pair` of both matrices, else two rows that follow each other. */
template <bool SILU> __device__ static int row_of(int pair, int r)
{
    return SILU ? pair : PAIR * pair + r;
}

template <class L, bool SILU>
__device__ static void fetch_item(const MatvecArgs &a, int pair, int item, uint32_t stage)
{
    int bytes = min((int)Ring<L>::ITEM_BYTES, (int)a.row_bytes - item * Ring<L>::ITEM_BYTES);
#pragma unroll
    for (int r = 0; r < PAIR; r++) {
        int row = row_of<SILU>(pair, r);
        if (row >= a.m.rows) return;
        bool ends =
            a.ragged && row == a.m.rows - 1 && (item + 1) * Ring<L>::ITEM_BYTES >= a.row_bytes;
        fetch<L>(SILU && r == 1 ? a.up : (const uint8_t *)a.m.w,
                 row * a.row_bytes + item * Ring<L>::ITEM_BYTES, bytes, ends,
                 stage + r * Ring<L>::SLOT);
    }
}

template <class L, int N_X>
__device__ static void add_step(const L *w, uint32_t x, uint32_t x_row, float (*acc)[N_X])
{
    float t[PAIR][N_X][2];
#pragma unroll
    for (int r = 0; r < PAIR; r++)
        for (int n = 0; n < N_X; n++) t[r][n][0] = t[r][n][1] = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float v[N_X][8];
#pragma unroll
        for (int n = 0; n < N_X; n++) load_x<N_X>(x + n * x_row, e, v[n]);
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int r = 0; r < PAIR; r++) {
                float c = w[r].code(8 * e + i);
#pragma unroll
                for (int n = 0; n < N_X; n++) t[r][n][i & 1] = fmaf(c, v[n][i], t[r][n][i & 1]);
            }
    }
#pragma unroll
    for (int n = 0; n < N_X; n++) {
        float2 sums = make_float2(0, 0);
        if (L::SUMS) sums = *(const float2 *)(shared + x + n * x_row + XChunk<N_X>::SUMS_AT);
#pragma unroll
        for (int r = 0; r < PAIR; r++) {
            if (L::SUMS == 2)
                acc[r][n] += w[r].scale[0] * t[r][n][0] + w[r].scale[1] * t[r][n][1] +
                             (w[r].add[0] * sums.x + w[r].add[1] * sums.y);
            else
                acc[r][n] += w[r].scale[0] * (t[r][n][0] + t[r][n][1]) +
                             (L::SUMS ? w[r].add[0] * sums.x : 0);
        }
    }
}

template <class L, int N_X, bool SILU>
__device__ static void add_item(const MatvecArgs &a, int pair, int item, uint32_t stage,
                                float (*acc)[N_X])
{
    int lane = threadIdx.x % WARP;
    uint32_t at[PAIR];
    for (int r = 0; r < PAIR; r++) {
        uint32_t row = row_of<SILU>(pair, r);
        at[r] = stage + r * Ring<L>::SLOT +
                ((row * (uint32_t)a.row_bytes + item * Ring<L>::ITEM_BYTES) & 15);
    }
#pragma unroll 1
    for (int s = 0; s < L::ITEM_STEPS; s++) {
        int step = item * L::ITEM_STEPS + s, chunk = step * WARP + lane;
        if (step >= a.n_steps) break;
        if (chunk >= a.n_chunks) continue;
        L w[PAIR];
        for (int r = 0; r < PAIR; r++)
            w[r].load(at[r] + s * L::STEP_BYTES, lane, a.m.cols - step * STEP);
        add_step<L, N_X>(w, a.x_at + chunk * XChunk<N_X>::BYTES, a.x_row, acc);
    }
}

__device__ static void store_output(const struct CudaMatvec &m, int n, int row, float v)
{
    int64_t at = (int64_t)n * m.rows + row;
    if (m.bias) v += m.bias[row];
    if (!m.out_f32)
        ((bf16 *)m.out)[at] = __float2bfloat16_rn(v);
    else if (m.add)
        ((float *)m.out)[at] += v;
    else
        ((float *)m.out)[at] = v;
}

__device__ static float silu(float g)
{
    return g / (1 + expf(-g));
}

/* Adds the lanes' sums in a fixed tree and stores them. */
template <int N_X, bool SILU>
__device__ static void finish(const struct CudaMatvec &m, int pair, float (*acc)[N_X])
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < PAIR; r++)
#pragma unroll
        for (int n = 0; n < N_X; n++) {
#pragma unroll
            for (int d = WARP / 2; d > 0; d >>= 1) acc[r][n] += __shfl_xor_sync(~0u, acc[r][n], d);
        }
#pragma unroll
    for (int n = 0; n < N_X; n++) {
        if (n >= m.n_rows) break;
        if (SILU && lane == n) store_output(m, n, pair, silu(acc[0][n]) * acc[1][n]);
#pragma unroll
        for (int r = 0; r < PAIR; r++)
            if (!SILU && lane == PAIR * n + r && PAIR * pair + r < m.rows)
                store_output(m, n, PAIR * pair + r, acc[r][n]);
    }
}

template <class L, int N_X> __device__ static void stage_x(const MatvecArgs &a)
{
    int n_tasks = a.n_chunks * N_X;
    for (int t = threadIdx.x; t < n_tasks; t += blockDim.x) {
        int n = t / a.n_chunks, chunk = t - n * a.n_chunks;
        /* Three rows run as four, the last of zeros. */
        int cols = n < a.m.n_rows ? a.m.cols : 0;
        stage_chunk<L, N_X>(a.m.x + (int64_t)n * a.m.cols, cols, chunk,
                            a.x_at + n * a.x_row + chunk * XChunk<N_X>::BYTES);
    }
}

/* On Hopper the kernel begins while the work queued before it still runs (see start_early). Only the matrix may be read
 * before this; what is queued next may begin after it. */
__device__ static void wait_for_inputs(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class L, int N_X, bool SILU>
__global__ void __launch_bounds__(WARPS *WARP, N_X == 1 ? 2 : 1) matvec_kernel(const MatvecArgs a)
{
    int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, all_warps = gridDim.x * warps;
    int n_items = (a.n_steps + L::ITEM_STEPS - 1) / L::ITEM_STEPS;
    int n_pairs = SILU ? a.m.rows : (a.m.rows + PAIR - 1) / PAIR;
    uint32_t ring = warp * Ring<L>::BYTES;
    /* The pair and item fetched next, and the ones multiplied next. */
    int fetch_pair = blockIdx.x * warps + warp, fetch_at = 0, pair = fetch_pair;
    auto fetch_next = [&](int stage) {
        if (fetch_pair < n_pairs) {
            fetch_item<L, SILU>(a, fetch_pair, fetch_at, ring + stage * Ring<L>::STAGE);
            if (++fetch_at == n_items) {
                fetch_at = 0;
                fetch_pair += all_warps;
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
#pragma unroll 1
    for (int s = 0; s < STAGES; s++) fetch_next(s);
    wait_for_inputs();
    stage_x<L, N_X>(a);
    __syncthreads();
    int stage = 0;
    for (; pair < n_pairs; pair += all_warps) {
        float acc[PAIR][N_X];
        for (int r = 0; r < PAIR; r++)
            for (int n = 0; n < N_X; n++) acc[r][n] = 0;
        for (int item = 0; item < n_items; item++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
            __syncwarp();
            add_item<L, N_X, SILU>(a, pair, item, ring + stage * Ring<L>::STAGE, acc);
            __syncwarp();
            fetch_next(stage);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        finish<N_X, SILU>(a.m, pair, acc);
    }
}

/* ==== Launchers ==== */

struct Device {
    int n_sm, shared_cta, shared_sm;
};

static struct Device device(void)
{
    struct Device d = {0, 0, 0};
    int id = 0;
    cudaGetDevice(&id);
    cudaDeviceGetAttribute(&d.n_sm, cudaDevAttrMultiProcessorCount, id);
    cudaDeviceGetAttribute(&d.shared_cta, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    cudaDeviceGetAttribute(&d.shared_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, id);
    return d;
}

/* Whether the kernel runs as code that waits for its inputs itself. */
static bool start_early(const void *kernel)
{
    cudaFuncAttributes f;
    return cudaFuncGetAttributes(&f, kernel) == cudaSuccess && f.ptxVersion >= 90;
}

struct Matvec {
    const struct CudaMatvec &m;
    const void *up;
    cudaStream_t stream;

    /* Warps whose rings fit beside x; 0 when too few do. */
    template <class L, int N_X> static int warps_beside(int x_bytes, int shared_cta)
    {
        int warps = WARPS, least = N_X == 1 ? 1 : MIN_WARPS;
        while (warps >= least && warps * Ring<L>::BYTES + x_bytes > shared_cta) warps /= 2;
        return warps >= least ? warps : 0;
    }

    template <class L, int N_X, bool SILU> cudaError_t launch(MatvecArgs a) const
    {
        static const struct Device d = device();
        a.x_row = (uint32_t)(a.n_chunks * XChunk<N_X>::BYTES);
        int x_bytes = (int)a.x_row * N_X, warps = warps_beside<L, N_X>(x_bytes, d.shared_cta);
        if (warps == 0) return cudaErrorInvalidValue;
        int bytes = warps * Ring<L>::BYTES + x_bytes;
        a.x_at = (uint32_t)(warps * Ring<L>::BYTES);
        int n_pairs = SILU ? a.m.rows : (a.m.rows + PAIR - 1) / PAIR,
            ctas = (n_pairs + warps - 1) / warps;
        int resident = d.shared_sm / (bytes + 1024), most = (N_X == 1 ? 2 : 1) * WARPS / warps;
        if (resident < 1) resident = 1;
        if (resident > most) resident = most;
        if (ctas > d.n_sm * resident) ctas = d.n_sm * resident;
        cudaError_t e = cudaFuncSetAttribute(matvec_kernel<L, N_X, SILU>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (e != cudaSuccess) return e;
        static const bool early = start_early((const void *)matvec_kernel<L, N_X, SILU>);
        cudaLaunchAttribute attr;
        attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attr.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {(unsigned)ctas, (unsigned)(warps * WARP),
                                     (size_t)bytes,  stream,
                                     &attr,          early ? 1u : 0u};
        return cudaLaunchKernelEx(&config, matvec_kernel<L, N_X, SILU>, a);
    }

    template <class L, int N_X> cudaError_t launch(const MatvecArgs &a) const
    {
        return a.up ? launch<L, N_X, true>(a) : launch<L, N_X, false>(a);
    }

    template <class L> cudaError_t launch(const MatvecArgs &a) const
    {
        if (a.m.n_rows == 1) return launch<L, 1>(a);
        return a.m.n_rows == 2 ? launch<L, 2>(a) : launch<L, 4>(a);
    }

    /* Rows of x that do not all fit into shared memory go by halves. */
    template <class L> cudaError_t in_parts(const MatvecArgs &a) const
    {
        cudaError_t e = launch<L>(a);
        if (e != cudaErrorInvalidValue || a.m.n_rows == 1) return e;
        int half = a.m.n_rows / 2;
        MatvecArgs first = a, rest = a;
        first.m.n_rows = half;
        rest.m.n_rows -= half;
        rest.m.x += (int64_t)half * a.m.cols;
        rest.m.out = (uint8_t *)a.m.out + (size_t)half * (size_t)a.m.rows * (a.m.out_f32 ? 4 : 2);
        e = in_parts<L>(first);
        return e == cudaSuccess ? in_parts<L>(rest) : e;
    }

    template <int T> cudaError_t run() const
    {
        typedef Lane<T> L;
        if (m.cols % Block<T>::WEIGHTS != 0) return cudaErrorInvalidValue;
        MatvecArgs a = {m, (const uint8_t *)up};
        a.row_bytes = (int64_t)(m.cols / Block<T>::WEIGHTS) * Block<T>::BYTES;
        a.ragged = a.row_bytes * m.rows % 16 != 0;
        a.n_steps = (m.cols + STEP - 1) / STEP;
        a.n_chunks = Block<T>::WEIGHTS == 8 ? a.n_steps * WARP : m.cols / WARP;
        return in_parts<L>(a);
    }
};

static bool shape_ok(const struct CudaMatvec *m)
{
    if (m->rows < 0 || m->cols <= 0 || m->n_rows < 1 || m->n_rows > MAX_X_ROWS) return false;
    return (uintptr_t)m->w % 16 == 0 && (uintptr_t)m->x % 16 == 0 && !(m->add && !m->out_f32);
}

cudaError_t cuda_matvec(const struct CudaMatvec *m, cudaStream_t s)
{
    if (!shape_ok(m)) return cudaErrorInvalidValue;
    if (m->rows == 0) return cudaSuccess;
    return with_block_type(m->type, Matvec{*m, NULL, s});
}

cudaError_t cuda_matvec_silu(const struct CudaMatvec *m, const void *up, cudaStream_t s)
{
    if (!shape_ok(m) || !up || (uintptr_t)up % 16 != 0) return cudaErrorInvalidValue;
    if (m->bias || m->out_f32 || m->add) return cudaErrorInvalidValue;
    if (m->rows == 0) return cudaSuccess;
    return with_block_type(m->type, Matvec{*m, up, s});
}

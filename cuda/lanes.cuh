/* lanes.cuh - the weights of a lane of a warp in matrix-vector products: GGUF blocks taken apart from shared memory.
 *
 * Codes become floats without arithmetic: a code's bits, masked within the low 24 bits of a word, are the subnormal
 * float code * 2^(shift - 149). x is stored times 2^(LIFT - shift), so sums are too small by 2^(LIFT - 149), which the
 * block's scale makes up for. All these factors are powers of two: nothing is rounded that code * x would not round.
 * Needs |x| < 2^31.
 */
#ifndef PCOMP_CUDA_LANES_CUH
#define PCOMP_CUDA_LANES_CUH

#include "blocks.cuh"

enum {
    WARP = 32,
    STEP = 1024, /* columns of a warp at a time */
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
 * A warp's ring in shared memory has STAGES items of ITEM_STEPS steps each. */
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
    enum { STEP_BYTES = 32 * 18, ITEM_STEPS = 2, STAGES = 3 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 18 * lane;
        shared_words<4>(b + 2, qs);
        set_centered(half_of(shared_u16(b)), 8);
    }
};

template <> struct Lane<DT_Q4_1> : FourBits, SmallBlock {
    enum { STEP_BYTES = 32 * 20, ITEM_STEPS = 2, STAGES = 3 };
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
    enum { STEP_BYTES = 32 * 22, ITEM_STEPS = 2, STAGES = 3 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 22 * lane, words[5];
        shared_words<5>(b + 2, words);
        merge_all(words[0], words + 1);
        set_centered(half_of(shared_u16(b)), 16);
    }
};

template <> struct Lane<DT_Q5_1> : FiveBits {
    enum { STEP_BYTES = 32 * 24, ITEM_STEPS = 2, STAGES = 3 };
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
    enum { STEP_BYTES = 32 * 34, ITEM_STEPS = 1, STAGES = 3 };
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
    enum { STEP_BYTES = 4 * 144, ITEM_STEPS = 2, STAGES = 2 };
    __device__ void load(uint32_t step, int lane, int)
    {
        uint32_t b = step + 144 * (lane >> 3);
        uint4 q = shared_u128(b + 16 + 16 * (lane & 7));
        qs[0] = q.x, qs[1] = q.y, qs[2] = q.z, qs[3] = q.w;
        set_groups(shared_u128(b), lane >> 1 & 3);
    }
};

template <> struct Lane<DT_Q5_K> : MergedBits<5>, GroupPair {
    enum { STEP_BYTES = 4 * 176, ITEM_STEPS = 2, STAGES = 2 };
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
    enum { STEP_BYTES = 4 * 210, ITEM_STEPS = 2, STAGES = 2, SUMS = 2 };
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
    enum { STEP_BYTES = 2 * STEP, ITEM_STEPS = 1, STAGES = 3 };
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
    enum { STEP_BYTES = 4 * STEP, ITEM_STEPS = 1, STAGES = 3 };
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

#endif

/* codes_mma.cuh - pages of codes (codes.cuh) in shared memory, and operands of mma made of them in registers.
 *
 * The tokens' scales and zeros stay out of the operands: with x = zero + scale * c a logit is scale_t * (q . c_t) + zero_t *
 * sum(q), and a sum over values is that of (p_t * scale_t) c_t, plus that of p_t * zero_t, in every column. An operand
 * stands for c - CENTRE, exactly: CENTRE * scale goes to the zero.
 *
 * Which of a key's numbers stand where in the depth of a product is free as long as queries stand alike, and which values are
 * a result's columns is free as long as sums are told so. So the order of both is the one in which codes come out of a word.
 */
#ifndef PCOMP_CUDA_CODES_MMA_CUH
#define PCOMP_CUDA_CODES_MMA_CUH

#include "attention.cuh"
#include "codes.cuh"

/* ==== Words of codes to operands ==== */

/* Both halves, of which every sum is exact. */
__device__ __forceinline__ uint32_t add_bf16(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return r;
}

/* (a & b) | c and (a & b) ^ c in one instruction, which two constants would make two. */
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

__device__ __forceinline__ uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

/* Pair i of a word, the codes BITS * i from the right in either half, as bf16. */
template <int BITS> struct CodePairs;

/* 128 + c for the 7 low bits of a code, and -256 or -128 for the highest. */
template <> struct CodePairs<8> {
    static constexpr float KEY_CENTRE = 128, VALUE_CENTRE = 128;
    __device__ __forceinline__ static uint32_t value(uint32_t word, int i)
    {
        return add_bf16(and_or(word >> 8 * i, 0x007f007fu, 0x43004300u),
                        and_xor(word >> 8 * i, 0x00800080u, 0xc380c380u));
    }
    __device__ __forceinline__ static uint32_t key(uint32_t word, int i) { return value(word, i); }
};

/* 128 + c, which long sums of values must not carry with them. */
template <> struct CodePairs<4> {
    static constexpr float KEY_CENTRE = -128, VALUE_CENTRE = 8;
    __device__ __forceinline__ static uint32_t key(uint32_t word, int i)
    {
        return and_or(word >> 4 * i, 0x000f000fu, 0x43004300u);
    }
    __device__ __forceinline__ static uint32_t value(uint32_t word, int i)
    {
        return add_bf16(key(word, i), 0xc308c308u); /* -136 */
    }
};

/* The column of a head's values that is column g of a result's block n of 8. A register that ldmatrix turns holds 16 bits each of two
 * tokens: two values, or four of the even or odd ones of a piece. */
template <int BITS> __device__ __forceinline__ constexpr int value_column(int n, int g)
{
    return BITS == 8 ? n / 2 * 16 + g * 2 + n % 2 : n / 4 * 32 + g / 2 * 8 + n % 4 * 2 + g % 2;
}

/* ==== Pages in shared memory ==== */

/* K [64, ROW], V [64, ROW], grids, as in the pool, but with each row's 16-byte chunks permuted so that neither the 8 rows that
 * ldmatrix reads at once nor the lanes that load keys meet in a bank. A page begins at a multiple of 512 bytes. */
template <int BITS, int D> struct CodeTile {
    static constexpr int ROW = code_row_bytes<BITS>(D), CHUNKS = ROW / 16;
    static constexpr int VALUES_AT = CUDA_PAGE_TOKENS * ROW, GRIDS_AT = 2 * VALUES_AT;
    static constexpr int PAIRS = 16 / BITS; /* of a word */
    /* Lane t of a quad takes units 4 j + t of its token's key. */
    static constexpr int UNIT = ROW % 64 == 0 ? 16 : ROW % 32 == 0 ? 8 : 4;
    static constexpr int UNITS = ROW / (4 * UNIT), STEPS = 2 * UNIT / BITS; /* of depth 16 */

    /* What is XORed to the chunk numbers of a row. */
    __device__ __forceinline__ static int swizzle(int row)
    {
        if (CHUNKS % 8 == 0) return (row & 1) << 2 | (row >> 1 & 3);
        return CHUNKS == 4 ? row >> 1 & 3 : CHUNKS % 2 == 0 ? row >> 2 & 1 : 0;
    }
    __device__ __forceinline__ static uint32_t offset(int row, int chunk)
    {
        return row * ROW + ((chunk ^ swizzle(row)) << 4);
    }
    /* `bytes` to the right of an address, a multiple of 32, or of 16 where nothing is permuted. */
    __device__ __forceinline__ static uint32_t right(uint32_t at, int bytes)
    {
        return (CHUNKS & (CHUNKS - 1)) == 0 ? at ^ bytes : at + bytes;
    }
    /* A lane's first unit of the first 8 keys, its first row of the first 16 values. */
    __device__ __forceinline__ static uint32_t key_lane(int lane)
    {
        int byte = lane % 4 * UNIT;
        return offset(lane / 4, byte / 16) + byte % 16;
    }
    __device__ __forceinline__ static uint32_t value_lane(int lane)
    {
        return VALUES_AT + offset(lane & 15, lane >> 4);
    }
};

__device__ __forceinline__ void load_words(uint32_t (&r)[4], uint32_t from)
{
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_words(uint32_t (&r)[2], uint32_t from)
{
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_words(uint32_t (&r)[1], uint32_t from)
{
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(r[0]) : "r"(from) : "memory");
}

/* The grids of this lane's two tokens of 8: zeros of operands less `centre`. */
struct GridPair {
    float2 scale, zero;

    __device__ __forceinline__ GridPair(uint32_t grids, float centre, int lane)
    {
        uint32_t g[2];
        load_words(g, grids + lane % 4 * 8);
        float2 a = __half22float2(*(__half2 *)&g[0]), b = __half22float2(*(__half2 *)&g[1]);
        scale = make_float2(a.x, b.x);
        zero = make_float2(fmaf(centre, a.x, a.y), fmaf(centre, b.x, b.y));
    }
};

/* ==== Products ==== */

/* A warp's 16 queries, in the order of keys' numbers, and their sums. Wide heads' queries stay in their tile: the sums over
 * the values take the registers. */
template <class T> struct CodeQueries {
    static constexpr bool HELD = T::D <= 128;
    uint32_t tile, held[HELD ? T::D / 16 : 1][4];
    float sum[2];

    /* from: where the first of the rows lies in its tile, of bf16. */
    __device__ __forceinline__ CodeQueries(uint32_t from, int lane) : tile(from)
    {
        sum[0] = sum[1] = 0;
#pragma unroll
        for (int k = 0; k < T::D / 16; k++) {
            uint32_t a[4];
            load(a, k, lane);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                sum[c % 2] += __uint_as_float(a[c] << 16) + __uint_as_float(a[c] & 0xffff0000u);
                if (HELD) held[HELD ? k : 0][c] = a[c];
            }
        }
        sum[0] = quad_sum(sum[0]);
        sum[1] = quad_sum(sum[1]);
    }
    /* a = 16 dimensions of all rows, the k-th of them. */
    __device__ __forceinline__ void get(uint32_t (&a)[4], int k, int lane) const
    {
#pragma unroll
        for (int c = 0; HELD && c < 4; c++) a[c] = held[HELD ? k : 0][c];
        if (!HELD) load(a, k, lane);
    }
    __device__ __forceinline__ void load(uint32_t (&a)[4], int k, int lane) const
    {
        constexpr int STEPS = T::Codes::STEPS;
        int column = (k / STEPS * 4 + lane % 4) * STEPS * 4 + k % STEPS * 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t x[2], at = tile_offset<T::D>(h * 8 + lane / 4, column / 8) + column % 8 * 2;
            load_words(x, tile + at);
            a[h] = T::BITS == 8 ? __byte_perm(x[0], x[1], 0x5410) : x[0];
            a[2 + h] = T::BITS == 8 ? __byte_perm(x[0], x[1], 0x7632) : x[1];
        }
    }
};

/* As products_qk: the warp's keys are those from `token` on of the page at `page`. */
template <class T>
__device__ __forceinline__ void codes_qk(Logits<T> &s, const CodeQueries<T> &q, uint32_t page,
                                         int token, int lane)
{
    using C = typename T::Codes;
    constexpr int CHAINS = T::BN == 16 ? 2 : 1; /* sums that do not wait for each other */
    float acc[CHAINS][T::BN / 8][4] = {};
    uint32_t keys = page + token * C::ROW + C::key_lane(lane);
#pragma unroll
    for (int n = 0; n < T::BN / 8; n += 2)
#pragma unroll
        for (int j = 0; j < C::UNITS; j++) {
            uint32_t words[2][C::UNIT / 4];
            load_words(words[0], C::right(keys, j * 4 * C::UNIT) + n * 8 * C::ROW);
            load_words(words[1], C::right(keys, j * 4 * C::UNIT) + (n + 1) * 8 * C::ROW);
#pragma unroll
            for (int k = 0; k < C::STEPS; k++) {
                uint32_t a[4];
                q.get(a, j * C::STEPS + k, lane);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    uint32_t word = words[i][2 * k / C::PAIRS];
                    mma_bf16(acc[k % CHAINS][n + i], a,
                             CodePairs<T::BITS>::key(word, 2 * k % C::PAIRS),
                             CodePairs<T::BITS>::key(word, 2 * k % C::PAIRS + 1));
                }
            }
        }
#pragma unroll
    for (int n = 0; n < T::BN / 8; n++) {
        GridPair g(page + C::GRIDS_AT + (token + n * 8) * 4, CodePairs<T::BITS>::KEY_CENTRE, lane);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            float sum = acc[0][n][c] + (CHAINS == 2 ? acc[CHAINS - 1][n][c] : 0);
            s[0][n][c] = fmaf(c % 2 ? g.scale.y : g.scale.x, sum,
                              (c % 2 ? g.zero.y : g.zero.x) * q.sum[c / 2]);
        }
    }
}

/* Sums with their columns in the order of value_column, less the part that all columns share. */
template <class T> struct CodeSums : Sums<T> {
    float zero[2]; /* this lane's share of it */

    __device__ __forceinline__ void shrink(int m, int h, float by)
    {
        Sums<T>::shrink(m, h, by);
        zero[h] *= by;
    }
};

/* The weights of 8 tokens times their values' scales, beside what they add to the sums without columns. */
template <class T>
__device__ __forceinline__ void code_weights(uint32_t *w, CodeSums<T> &r, const float (&s)[4],
                                             uint32_t grids, float scale2, int lane)
{
    GridPair g(grids, CodePairs<T::BITS>::VALUE_CENTRE, lane);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float p0 = exp2_fast(fmaf(s[2 * h], scale2, r.point[0][h]));
        float p1 = exp2_fast(fmaf(s[2 * h + 1], scale2, r.point[0][h]));
        r.sum[0][h] += p0 + p1;
        r.zero[h] += fmaf(p0, g.zero.x, p1 * g.zero.y);
        w[h] = pack_bf16(p0 * g.scale.x, p1 * g.scale.y);
    }
}

/* As products_pv, likewise. Where a row has an odd number of chunks the last load has half of one too much. */
template <class T>
__device__ __forceinline__ void codes_pv(CodeSums<T> &r, const Logits<T> &s, uint32_t page,
                                         int token, float scale2, int lane)
{
    using C = typename T::Codes;
    uint32_t values = page + token * C::ROW + C::value_lane(lane);
#pragma unroll
    for (int k = 0; k < T::BN / 16; k++) {
        uint32_t w[4];
        uint32_t grids = page + C::GRIDS_AT + (CUDA_PAGE_TOKENS + token + k * 16) * 4;
        code_weights<T>(w, r, s[0][2 * k], grids, scale2, lane);
        code_weights<T>(w + 2, r, s[0][2 * k + 1], grids + 32, scale2, lane);
#pragma unroll
        for (int chunk = 0; chunk < C::CHUNKS; chunk += 2) {
            uint32_t b[4], from = C::right(values, chunk * 16) + k * 16 * C::ROW;
            load_matrix_turned(b, from);
#pragma unroll
            for (int i = 0; i < 2 * C::PAIRS && chunk * C::PAIRS + i < T::D / 8; i++)
                mma_bf16(r.o[0][chunk * C::PAIRS + i], w,
                         CodePairs<T::BITS>::value(b[i / C::PAIRS * 2], i % C::PAIRS),
                         CodePairs<T::BITS>::value(b[i / C::PAIRS * 2 + 1], i % C::PAIRS));
        }
    }
}

#endif

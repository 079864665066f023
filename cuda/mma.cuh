/* mma.cuh - the machine's instructions for bf16 tiles: asynchronous copies, ldmatrix, mma.sync, exp2.
 *
 * A tile is rows of D bf16 in shared memory without padding. A row's 16-byte chunks are permuted with an XOR of the row,
 * so that the 8 rows ldmatrix reads at once lie in 8 different bank groups, and so do 8 chunks of a row when it is written.
 */
#ifndef PCOMP_CUDA_MMA_CUH
#define PCOMP_CUDA_MMA_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

static constexpr float LOG2_E = 1.4426950408889634f;
static constexpr float LN_2 = 0.6931471805599453f;

/* What is XORed to the chunk numbers of a row. Rows of 192 bytes begin alternately at the two halves of the banks. */
template <int D> __device__ __forceinline__ int tile_swizzle(int row)
{
    return D % 64 == 0 ? row & 7 : row >> 1 & 3;
}

template <int D> __device__ __forceinline__ uint32_t tile_offset(int row, int chunk)
{
    return row * (D * 2) + ((chunk ^ tile_swizzle<D>(row)) << 4);
}

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes; zeros when not `wanted`, and then nothing is read. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool wanted)
{
    int bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
}

/* The same with 4 bytes. */
__device__ __forceinline__ void copy_async4(uint32_t to, const void *from, bool wanted)
{
    int bytes = wanted ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most N of this thread's groups are under way. */
template <int N> __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* `rows` rows, `pitch` elements apart, to a tile of ROWS rows; zeros behind the last. */
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void tile_load(uint32_t to, const __nv_bfloat16 *from, int64_t pitch,
                                          int rows, int thread)
{
    constexpr int LANES = D % 64 == 0 ? 8 : 4, STEP = THREADS / LANES;
    int row = thread / LANES, chunk = thread % LANES;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) {
        if (ROWS % STEP && i + row >= ROWS) break;
        const __nv_bfloat16 *line = from + (i + row) * pitch;
#pragma unroll
        for (int c = 0; c < D / 8; c += LANES)
            copy_async(to + tile_offset<D>(i + row, c + chunk), line + (c + chunk) * 8,
                       i + row < rows);
    }
}

__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_matrix_turned(uint32_t (&r)[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

/* Where a lane's row of an operand's 16 x 16 block begins in a tile. The three operands differ in which half of the lanes
 * takes the later rows and which the later chunk. Tiles begin at multiples of 512 bytes, so that a step to the right is one
 * XOR, and a constant where the XOR would meet bits of the row. */
template <int D> struct LaneRow {
    static constexpr int REACH = (D & (D - 1)) == 0 ? D / 16 : D % 64 == 0 ? 4 : 2; /* blocks */
    uint32_t at;
    __device__ __forceinline__ LaneRow(int row, int chunk) : at(tile_offset<D>(row, chunk)) {}
    /* The block `row` rows (a multiple of 16) down and `step` blocks to the right. */
    __device__ __forceinline__ uint32_t block(uint32_t tile, int row, int step) const
    {
        return ((tile + at) ^ (step % REACH * 32)) + step / REACH * (REACH * 32) + row * (D * 2);
    }
};

/* A [rows, depth]; V [keys, width] read turned has the same order of blocks. */
template <int D> __device__ __forceinline__ LaneRow<D> lane_row_a(int lane)
{
    return LaneRow<D>((lane >> 3 & 1) * 8 + (lane & 7), lane >> 4);
}

/* B given as [columns, depth]: r[0], r[1] are columns 0 to 7, r[2], r[3] columns 8 to 15. */
template <int D> __device__ __forceinline__ LaneRow<D> lane_row_b(int lane)
{
    return LaneRow<D>((lane >> 4) * 8 + (lane & 7), lane >> 3 & 1);
}

/* c [16, 8] += a [16, 16] b [16, 8] */
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* Over the 4 lanes that share a row of an mma's result. */
__device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

#endif

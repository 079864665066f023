/* sm90a.cuh - the PTX of Hopper that C++ has no words for: mbarriers, bulk tensor loads, wgmma, register shifts.
 *
 * Each wrapper is one instruction. Tiles in shared memory lie in rows of 128 bytes with the 128-byte swizzle, as the
 * tensor maps of the loads write them and as the descriptors below read them.
 */
#ifndef PCOMP_CUDA_SM90A_CUH
#define PCOMP_CUDA_SM90A_CUH

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

__device__ static __forceinline__ uint32_t shared_addr(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ==== mbarriers ==== */

__device__ static __forceinline__ void mbar_init(uint64_t *bar, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_addr(bar)), "r"(arrivals));
}

/* Makes the initialised barriers visible to the copy engine. */
__device__ static __forceinline__ void mbar_init_fence(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ static __forceinline__ void mbar_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_addr(bar)) : "memory");
}

__device__ static __forceinline__ void mbar_arrive_expect(uint64_t *bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_addr(bar)),
                 "r"(bytes)
                 : "memory");
}

/* Waits for the end of the phase of this parity. */
__device__ static __forceinline__ void mbar_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    do {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(shared_addr(bar)), "r"(parity)
                     : "memory");
    } while (!done);
}

/* ==== Named barriers ==== */

__device__ static __forceinline__ void named_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ static __forceinline__ void named_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ==== Loads ==== */

__device__ static __forceinline__ void tensor_load_4d(void *dst, const CUtensorMap *map,
                                                      uint64_t *bar, int c0, int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_addr(dst)),
                 "l"(map), "r"(shared_addr(bar)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}

/* ==== Registers ==== */

template <int N> __device__ static __forceinline__ void registers_raise(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ static __forceinline__ void registers_drop(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* ==== wgmma ==== */

/* Descriptor of a swizzled tile: `lead` bytes between its columns of 64 elements (only where those lie along N),
 * `stride` bytes between its groups of eight 128-byte rows. */
__device__ static __forceinline__ uint64_t wgmma_desc(const void *tile, int lead, int stride)
{
    return (uint64_t)((shared_addr(tile) & 0x3FFFF) >> 4) | (uint64_t)(lead >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}

/* The descriptor of what lies `bytes` further. */
__device__ static __forceinline__ uint64_t wgmma_desc_at(uint64_t desc, int bytes)
{
    return desc + (uint64_t)(bytes >> 4);
}

__device__ static __forceinline__ void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static __forceinline__ void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until at most N groups are under way. */
template <int N> __device__ static __forceinline__ void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Keeps the compiler from moving uses of d across this point. */
template <int N> __device__ static __forceinline__ void pin_registers(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define SM90_D8(d, i)                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define SM90_D32(d, i) SM90_D8(d, i), SM90_D8(d, i + 8), SM90_D8(d, i + 16), SM90_D8(d, i + 24)

#define SM90_NAMES_32                                                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "                            \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "                            \
    "%28, %29, %30, %31"
#define SM90_NAMES_64                                                                              \
    SM90_NAMES_32                                                                                  \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, "                          \
    "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "                            \
    "%58, %59, %60, %61, %62, %63"

/* d [64, 128] (+)= A [64, 16] x B [128, 16]^T, both in shared memory, 16 contiguous elements a row. */
template <bool ADD>
__device__ static __forceinline__ void wgmma_64x128_ss(float (&d)[64], uint64_t a, uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SM90_NAMES_64
                 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : SM90_D32(d, 0), SM90_D32(d, 32)
                 : "l"(a), "l"(b), "n"(ADD ? 1 : 0));
}

/* d [64, N] += A [64, 16] in registers x B [16, N] in shared memory, N contiguous elements a row. */
__device__ static __forceinline__ void wgmma_rs(float (&d)[64], const uint32_t *a, uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SM90_NAMES_64
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                 : SM90_D32(d, 0), SM90_D32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ static __forceinline__ void wgmma_rs(float (&d)[32], const uint32_t *a, uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SM90_NAMES_32
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
                 : SM90_D32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* ==== Numbers ==== */

__device__ static __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ static __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    uint32_t w;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(hi), "f"(lo));
    return w;
}

#endif

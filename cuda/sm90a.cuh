/* sm90a.cuh - the PTX of Hopper that C++ has no words for: mbarriers, bulk tensor loads, wgmma, register shifts.
 *
 * Each wrapper on the device is one instruction. Tiles in shared memory lie in rows of 128 bytes with the 128-byte swizzle, as the
 * tensor maps of the loads write them and as the descriptors below read them.
 */
#ifndef PCOMP_CUDA_SM90A_CUH
#define PCOMP_CUDA_SM90A_CUH

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cudaTypedefs.h>
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

/* ==== Clusters ==== */

__device__ static __forceinline__ uint32_t cluster_rank(void)
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

/* All threads of all blocks of the cluster. */
__device__ static __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* Arrives at the barrier in the same place of block `rank` of the cluster. Publishes no writes to that block: with
 * .release.cluster it would, at the price of a fence over the whole GPU. */
__device__ static __forceinline__ void mbar_arrive_at(uint64_t *bar, int rank)
{
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_addr(bar)),
                 "r"(rank)
                 : "memory");
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

/* ==== Loads and stores ==== */

__device__ static __forceinline__ void tensor_load_2d(void *dst, const CUtensorMap *map,
                                                      uint64_t *bar, int c0, int c1)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared_addr(dst)),
                 "l"(map), "r"(shared_addr(bar)), "r"(c0), "r"(c1)
                 : "memory");
}

/* To the same place, and the same barrier, of every block of the cluster whose bit of `blocks` is set. */
__device__ static __forceinline__ void tensor_load_2d_all(void *dst, const CUtensorMap *map,
                                                          uint64_t *bar, int c0, int c1,
                                                          uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_addr(dst)),
                 "l"(map), "r"(shared_addr(bar)), "r"(c0), "r"(c1), "h"(blocks)
                 : "memory");
}

__device__ static __forceinline__ void tensor_store_2d(const CUtensorMap *map, const void *src,
                                                       int c0, int c1)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
        "r"(shared_addr(src)), "r"(c0), "r"(c1)
        : "memory");
}

__device__ static __forceinline__ void tensor_store_commit(void)
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until the shared memory of this thread's stores has been read. */
__device__ static __forceinline__ void tensor_store_wait_read(void)
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/* Until this thread's stores are done. */
__device__ static __forceinline__ void tensor_store_wait(void)
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* Makes this thread's writes to shared memory visible to the copy engine and the tensor cores. */
__device__ static __forceinline__ void fence_async_shared(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ static __forceinline__ void store_matrices(void *row, uint32_t a, uint32_t b, uint32_t c,
                                                      uint32_t d)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_addr(row)),
        "r"(a), "r"(b), "r"(c), "r"(d)
        : "memory");
}

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

#define SM90_NAMES_128                                                                             \
    SM90_NAMES_64                                                                                  \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "                          \
    "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, "                       \
    "%91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, "                        \
    "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "                           \
    "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "                           \
    "%126, %127"

/* d [64, 256] = A [64, 16] x B [256, 16]^T (+ d when `add`), both in shared memory, 16 contiguous elements a row. */
__device__ static __forceinline__ void wgmma_64x256_bf16(float (&d)[128], uint64_t a, uint64_t b,
                                                         int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" SM90_NAMES_128
                 "}, %128, %129, p, 1, 1, 0, 0;\n}"
                 : SM90_D32(d, 0), SM90_D32(d, 32), SM90_D32(d, 64), SM90_D32(d, 96)
                 : "l"(a), "l"(b), "r"(add));
}

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

__device__ static __forceinline__ float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ static __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    uint32_t w;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(hi), "f"(lo));
    return w;
}

/* ==== On the host ==== */

/* The driver's maker of tensor maps, or NULL. */
static PFN_cuTensorMapEncodeTiled_v12000 find_encoder(void)
{
    void *f = NULL;
    cudaDriverEntryPointQueryResult found;
    cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                     cudaEnableDefault, &found);
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? (PFN_cuTensorMapEncodeTiled_v12000)f
               : NULL;
}

#endif

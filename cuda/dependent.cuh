/* dependent.cuh - kernels that begin while the one queued before still runs (Hopper's programmatic dependent launch).
 *
 * Before wait_for_inputs() such a kernel may read only what no kernel queued shortly before it writes (weights, page
 * tables, full pages), and write nothing but its shared memory. Every kernel of a chain waits, so that one that is
 * complete has all before it complete. On other devices kernels begin one after another.
 */
#ifndef PCOMP_CUDA_DEPENDENT_CUH
#define PCOMP_CUDA_DEPENDENT_CUH

#include <cuda_runtime.h>

__device__ __forceinline__ void wait_for_inputs(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel may begin once all blocks have said so or ended, as far as there is room for it. */
__device__ __forceinline__ void let_next_begin(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Whether the kernel runs as code that waits for its inputs itself. */
template <auto KERNEL> static bool begins_early(void)
{
    static const bool early = [] {
        cudaFuncAttributes f;
        return cudaFuncGetAttributes(&f, (const void *)KERNEL) == cudaSuccess && f.ptxVersion >= 90;
    }();
    return early;
}

template <auto KERNEL, class... Args>
static cudaError_t launch_dependent(dim3 grid, int threads, size_t shared, cudaStream_t s,
                                    const Args &...args)
{
    cudaLaunchAttribute attr;
    attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {
        grid, (unsigned)threads, shared, s, &attr, begins_early<KERNEL>() ? 1u : 0u};
    return cudaLaunchKernelEx(&config, KERNEL, args...);
}

#endif

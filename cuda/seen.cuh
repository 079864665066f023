/* seen.cuh - which pages of a head some row still sees when its query heads have windows. */
#ifndef PCOMP_CUDA_SEEN_CUH
#define PCOMP_CUDA_SEEN_CUH

#include "kernels.h"

/* Follows the window of a head whose first row has `past` keys before it: a page is left out once it holds none of the sinks
 * and none of the window. The last page is never left out, so what lies before `back` grows no more; and since what is hidden
 * once stays hidden, the walk goes on from where it stood. At first all but `window` is 0. */
static inline __host__ __device__ struct CudaSeen
pages_seen(struct CudaSeen s, const struct CudaPageRef *refs, int n_refs, int past, int sinks)
{
    int low = past - s.window + 1; /* the window's first key */
    if (s.window == 0 || low <= sinks) return s;
    if (s.back == 0) {
        int front = 0, before = 0;
        while (front < n_refs && before < sinks) before += (int)refs[front++].len;
        if (front == n_refs) return s;
        s.front = s.back = front;
        s.before = before;
    }
    while (s.back < n_refs - 1 && s.before + (int)refs[s.back].len <= low)
        s.before += (int)refs[s.back++].len;
    return s;
}

#endif

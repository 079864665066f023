/* matvec.cu - products of a stored matrix and one to four rows, for decoding. Bound by the reading of the matrix.
 *
 * A warp computes two output rows at a time in steps of 1024 columns, 32 columns a lane. The bytes of the next steps are
 * on their way into the warp's ring in shared memory, by 16-byte copies whatever the size of a block, while the lanes
 * take the present ones apart. x waits in shared memory in the order in which a lane meets its weights.
 */
#include "kernels.h"
#include "lanes.cuh"

enum {
    PAIR = 2,      /* output rows of a warp at a time */
    WARPS = 16,    /* of a CTA; fewer where x leaves no room for their rings */
    MIN_WARPS = 4, /* where several rows of x could go in parts instead */
    MAX_X_ROWS = 4,
    CTA_SHARED = 1024, /* the system's part of a CTA's shared memory */
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
        BYTES = L::STAGES * STAGE,
        COPIES = (SLOT / 16 + WARP - 1) / WARP,
    };
};

__device__ static void copy16(uint32_t to, const uint8_t *from)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared) + to;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(at), "l"(from)
                 : "memory");
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
    for (int s = 0; s < L::STAGES; s++) fetch_next(s);
    wait_for_inputs();
    stage_x<L, N_X>(a);
    __syncthreads();
    int stage = 0;
    for (; pair < n_pairs; pair += all_warps) {
        float acc[PAIR][N_X];
        for (int r = 0; r < PAIR; r++)
            for (int n = 0; n < N_X; n++) acc[r][n] = 0;
        for (int item = 0; item < n_items; item++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(L::STAGES - 1) : "memory");
            __syncwarp();
            add_item<L, N_X, SILU>(a, pair, item, ring + stage * Ring<L>::STAGE, acc);
            __syncwarp();
            fetch_next(stage);
            stage = stage + 1 == L::STAGES ? 0 : stage + 1;
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
        int n_pairs = SILU ? a.m.rows : (a.m.rows + PAIR - 1) / PAIR;
        /* Small CTAs where large ones would leave multiprocessors without any. */
        while (warps > MIN_WARPS && n_pairs / warps < d.n_sm * 3 / 4) warps /= 2;
        int bytes = warps * Ring<L>::BYTES + x_bytes, ctas = (n_pairs + warps - 1) / warps;
        a.x_at = (uint32_t)(warps * Ring<L>::BYTES);
        int resident = d.shared_sm / (bytes + CTA_SHARED);
        int most = (N_X == 1 ? 2 : 1) * WARPS / warps;
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

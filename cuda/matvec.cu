/* matvec.cu - products of a stored matrix and one to four rows, for decoding. Bound by the reading of the matrix.
 *
 * A warp computes two output rows at a time in steps of 1024 columns, 32 columns a lane. The bytes of the next steps are
 * on their way into the warp's ring in shared memory, by 16-byte copies whatever the size of a block, while the lanes
 * take the present ones apart. x waits in shared memory in the order in which a lane meets its weights.
 *
 * Where rows are few, the warps of a pair of rows are several and share its columns.
 */
#include "dependent.cuh"
#include "kernels.h"
#include "lanes.cuh"

#include <limits.h>

enum {
    PAIR = 2,      /* output rows of a warp at a time */
    WARPS = 16,    /* of a CTA; fewer where x leaves no room for their rings */
    MIN_WARPS = 4, /* where several rows of x could go in parts instead */
    MAX_SPLIT = 4, /* warps of a pair */
    MAX_X_ROWS = 4,
    MAX_MATRICES = 3,
    STATIC_SHARED = 1280,
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

/* ==== What a kernel is told ==== */

/* One of up to three matrices; or gate, then up. */
struct Matrix {
    const uint8_t *w;
    const float *bias;
    void *out;
    int rows, first_pair;
    bool ragged; /* no multiple of 16 bytes */
};

struct MatvecArgs {
    struct CudaMatvec m; /* but for what the matrices have of their own */
    struct Matrix matrix[MAX_MATRICES];
    int64_t row_bytes;
    int n_pairs;           /* of all matrices */
    int n_steps, n_chunks; /* of a row; a chunk is a lane's part of a step */
    int split;             /* warps of a pair, at most its items */
    uint32_t x_at, x_row;  /* where x begins in shared memory, and the bytes of a row */
};

/* ==== x to shared memory ====
 *
 * By eights: columns that a lane meets one after the other (a run of its chunk). Four threads have those of a chunk. */
template <class L> __device__ static int eight_column(int eight)
{
    int chunk = eight / 4;
    return chunk / WARP * STEP + L::run_column(chunk % WARP, eight % 4);
}

__device__ static void load_eight(const float *x, float *f)
{
    float4 low = __ldcg((const float4 *)x), high = __ldcg((const float4 *)x + 1);
    f[0] = low.x, f[1] = low.y, f[2] = low.z, f[3] = low.w;
    f[4] = high.x, f[5] = high.y, f[6] = high.z, f[7] = high.w;
}

/* `at`: where the chunk lies. */
template <class L, int N_X>
__device__ static void stage_eight(const float *f, int eight, uint32_t at)
{
    int run = eight % 4;
    float v[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int shift = L::shift(L::run_slot(run, i));
        sum += f[i];
        v[i] = shift == NO_LIFT ? f[i] : f[i] * power_of_two(LIFT - shift);
    }
    if (XChunk<N_X>::WIDE && L::run_slot(0, 1) == 1) {
        float4 *wide = (float4 *)(shared + at + 32 * run);
        wide[0] = make_float4(v[0], v[1], v[2], v[3]);
        wide[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (XChunk<N_X>::WIDE)
                ((float *)(shared + at))[L::run_slot(run, i)] = v[i];
            else
                ((bf16 *)(shared + at))[L::run_slot(run, i)] = __float2bfloat16_rn(v[i]);
    }
    if (!L::SUMS) return;
    unsigned four = 0xfu << (threadIdx.x & 28);
    sum += __shfl_xor_sync(four, sum, 1);
    if (L::SUMS == 1) sum += __shfl_xor_sync(four, sum, 2);
    if (run % 2 == 0) ((float *)(shared + at + XChunk<N_X>::SUMS_AT))[run / 2] = sum;
}

__device__ static void widen_eight(uint4 bits, float *f)
{
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        f[2 * i] = __uint_as_float(words[i] << 16);
        f[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000);
    }
}

/* Three rows run as four, the last of zeros. */
template <class L, int N_X> __device__ static void stage_rows(const MatvecArgs &a)
{
    enum { AT_ONCE = 4 }; /* loads under way */
    int n_eights = 4 * a.n_chunks, n_tasks = n_eights * N_X;
    for (int first = threadIdx.x; first < n_tasks; first += AT_ONCE * blockDim.x) {
        uint4 bits[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int t = first + k * blockDim.x, n = N_X == 1 ? 0 : t / n_eights;
            int col = eight_column<L>(t - n * n_eights);
            bits[k] = make_uint4(0, 0, 0, 0);
            if (t < n_tasks && n < a.m.n_rows && col < a.m.cols)
                bits[k] = __ldcg((const uint4 *)(a.m.x + (int64_t)n * a.m.cols + col));
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int t = first + k * blockDim.x, n = N_X == 1 ? 0 : t / n_eights;
            int eight = t - n * n_eights;
            float f[8];
            if (t >= n_tasks) break;
            widen_eight(bits[k], f);
            stage_eight<L, N_X>(f, eight, a.x_at + n * a.x_row + eight / 4 * XChunk<N_X>::BYTES);
        }
    }
}

/* The norm's weights of a thread's first eight columns, before there is an x; no compiler moves this behind the wait. */
template <class L> __device__ static void load_norm(const MatvecArgs &a, float *w)
{
    int eight = threadIdx.x, col = eight_column<L>(eight);
    for (int i = 0; i < 8; i++) w[i] = 0;
    if (eight >= 4 * a.n_chunks || col >= a.m.cols) return;
    const float *from = a.m.norm + col;
    asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(w[0]), "=f"(w[1]), "=f"(w[2]), "=f"(w[3])
                 : "l"(from));
    asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(w[4]), "=f"(w[5]), "=f"(w[6]), "=f"(w[7])
                 : "l"(from + 4));
}

__device__ static float sum_lanes(float v)
{
#pragma unroll
    for (int d = WARP / 2; d > 0; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
    return v;
}

/* Every CTA norms the rows for itself: that costs less than a kernel of its own. norm: the thread's first weights. */
template <class L, int N_X>
__device__ static void stage_normed(const MatvecArgs &a, const float *norm)
{
    __shared__ float sums[N_X][WARPS];
    int n_eights = 4 * a.n_chunks, lane = threadIdx.x % WARP, me = threadIdx.x;
    float first[8] = {};
    for (int n = 0; n < a.m.n_rows; n++) {
        float sum = 0;
        for (int eight = me; eight < n_eights; eight += blockDim.x) {
            float f[8] = {};
            int col = eight_column<L>(eight);
            if (col < a.m.cols) load_eight(a.m.raw + (int64_t)n * a.m.cols + col, f);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sum += f[i] * f[i];
                if (N_X == 1 && eight == me) first[i] = f[i];
            }
        }
        sum = sum_lanes(sum);
        if (lane == 0) sums[n][me / WARP] = sum;
    }
    __syncthreads();
    for (int n = 0; n < N_X; n++) {
        bool is_row = n < a.m.n_rows;
        float sum = sum_lanes(is_row && lane < (int)blockDim.x / WARP ? sums[n][lane] : 0);
        float r = rsqrtf(sum / (float)a.m.cols + a.m.eps);
        for (int eight = me; eight < n_eights; eight += blockDim.x) {
            float f[8] = {}, w[8] = {};
            int col = eight_column<L>(eight);
            bool mine = eight == me, there = is_row && col < a.m.cols;
            if (there && !(N_X == 1 && mine)) load_eight(a.m.raw + (int64_t)n * a.m.cols + col, f);
            if (there && !mine) load_eight(a.m.norm + col, w);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float v = N_X == 1 && mine ? first[i] : f[i];
                f[i] = __bfloat162float(__float2bfloat16_rn(v * r * (mine ? norm[i] : w[i])));
            }
            stage_eight<L, N_X>(f, eight, a.x_at + n * a.x_row + eight / 4 * XChunk<N_X>::BYTES);
        }
    }
}

/* ==== Weights ==== */

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

/* The rows of a pair: with SILU row `pair` of both matrices, else two rows of one that follow each other. */
struct Rows {
    int matrix, row;
};

template <bool SILU> __device__ static Rows rows_of(const MatvecArgs &a, int pair)
{
    if (SILU) return {0, pair};
    int k = (pair >= a.matrix[1].first_pair) + (pair >= a.matrix[2].first_pair);
    return {k, PAIR * (pair - a.matrix[k].first_pair)};
}

template <class L, bool SILU>
__device__ static void fetch_item(const MatvecArgs &a, int pair, int item, uint32_t stage)
{
    int bytes = min((int)Ring<L>::ITEM_BYTES, (int)a.row_bytes - item * Ring<L>::ITEM_BYTES);
    Rows rows = rows_of<SILU>(a, pair);
#pragma unroll
    for (int r = 0; r < PAIR; r++) {
        const Matrix &m = a.matrix[SILU ? r : rows.matrix];
        int row = SILU ? pair : rows.row + r;
        if (row >= m.rows) return;
        bool ends =
            m.ragged && row == m.rows - 1 && (item + 1) * Ring<L>::ITEM_BYTES >= a.row_bytes;
        fetch<L>(m.w, row * a.row_bytes + item * Ring<L>::ITEM_BYTES, bytes, ends,
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
__device__ static void add_item(const MatvecArgs &a, int first_row, int item, uint32_t stage,
                                float (*acc)[N_X])
{
    int lane = threadIdx.x % WARP;
    uint32_t at[PAIR];
    for (int r = 0; r < PAIR; r++) {
        uint32_t row = SILU ? first_row : first_row + r;
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

/* What is added to an output: loaded before the product is there. */
struct Added {
    float bias, before;
};

__device__ static int64_t output_at(const Matrix &m, int n, int row)
{
    return (int64_t)n * m.rows + row;
}

/* Lane PAIR * n + r stores row r of a pair for row n of x. */
__device__ static Added load_added(const MatvecArgs &a, Rows rows, int lane)
{
    const Matrix &m = a.matrix[rows.matrix];
    int n = lane / PAIR, row = rows.row + lane % PAIR;
    Added v = {0, 0};
    if (n >= a.m.n_rows || row >= m.rows) return v;
    if (m.bias) v.bias = __ldg(m.bias + row);
    if (a.m.add) v.before = __ldcg((const float *)m.out + output_at(m, n, row));
    return v;
}

__device__ static void store_output(const MatvecArgs &a, const Matrix &m, int n, int row, float v)
{
    if (a.m.out_f32)
        ((float *)m.out)[output_at(m, n, row)] = v;
    else
        ((bf16 *)m.out)[output_at(m, n, row)] = __float2bfloat16_rn(v);
}

__device__ static float silu(float g)
{
    return g / (1 + expf(-g));
}

/* A warp's place: which of the `split` warps of a pair it is, in a CTA's group of them. */
struct Place {
    int lane, warp, split, part, group;
};

/* Sums of the lanes, in a fixed tree. */
template <int N_X> __device__ static void add_lanes(float (*acc)[N_X])
{
#pragma unroll
    for (int r = 0; r < PAIR; r++)
#pragma unroll
        for (int n = 0; n < N_X; n++) {
#pragma unroll
            for (int d = WARP / 2; d > 0; d >>= 1) acc[r][n] += __shfl_xor_sync(~0u, acc[r][n], d);
        }
}

/* The first warp of a pair gets the sums of all, in their order. Two buffers take turns, so one barrier a pair will do.
 * Barrier 0 is __syncthreads'. */
template <int N_X> __device__ static void add_parts(const Place &p, int turn, float (*acc)[N_X])
{
    __shared__ float parts[2][WARPS][PAIR * N_X];
    if (p.split == 1) return;
#pragma unroll
    for (int r = 0; r < PAIR; r++)
#pragma unroll
        for (int n = 0; n < N_X; n++)
            if (p.lane == r * N_X + n) parts[turn][p.warp][p.lane] = acc[r][n];
    asm volatile("bar.sync %0, %1;" ::"r"(1 + p.group), "r"(p.split * WARP) : "memory");
    if (p.part != 0) return;
    for (int k = 1; k < p.split; k++)
#pragma unroll
        for (int r = 0; r < PAIR; r++)
#pragma unroll
            for (int n = 0; n < N_X; n++) acc[r][n] += parts[turn][p.warp + k][r * N_X + n];
}

template <int N_X, bool SILU>
__device__ static void store_pair(const MatvecArgs &a, int lane, Rows rows, Added added,
                                  float (*acc)[N_X])
{
    const Matrix &m = a.matrix[rows.matrix];
#pragma unroll
    for (int n = 0; n < N_X; n++) {
        if (n >= a.m.n_rows) break;
        if (SILU && lane == n) store_output(a, m, n, rows.row, silu(acc[0][n]) * acc[1][n]);
#pragma unroll
        for (int r = 0; r < PAIR; r++)
            if (!SILU && lane == PAIR * n + r && rows.row + r < m.rows)
                store_output(a, m, n, rows.row + r, added.before + (acc[r][n] + added.bias));
    }
}

/* ==== The kernel ==== */

/* Warps wanted on a multiprocessor; lanes with much in registers leave room for half as many. */
template <class L, int N_X> struct Wanted {
    enum { CTAS = N_X == 1 && sizeof(L) <= 100 ? 2 : 1, SM_WARPS = CTAS * WARPS };
};

template <class L, int N_X, bool SILU>
__global__ void __launch_bounds__(WARPS *WARP, Wanted<L, N_X>::CTAS)
    matvec_kernel(const MatvecArgs a)
{
    int warps = blockDim.x / WARP, split = a.split;
    Place p = {(int)threadIdx.x % WARP, (int)threadIdx.x / WARP, split, 0, 0};
    p.part = p.warp % split;
    p.group = p.warp / split;
    int groups = warps / split, all_groups = gridDim.x * groups;
    int n_items = (a.n_steps + L::ITEM_STEPS - 1) / L::ITEM_STEPS;
    int first_item = p.part * n_items / split, end_item = (p.part + 1) * n_items / split;
    uint32_t ring = p.warp * Ring<L>::BYTES;
    /* The pair multiplied, and the pair and item fetched next; every multiprocessor has some of the last pairs. */
    int pair = p.group * gridDim.x + blockIdx.x, fetch_pair = pair, fetch_at = first_item;
    auto fetch_next = [&](int stage) {
        if (fetch_pair < a.n_pairs) {
            fetch_item<L, SILU>(a, fetch_pair, fetch_at, ring + stage * Ring<L>::STAGE);
            if (++fetch_at == end_item) {
                fetch_at = first_item;
                fetch_pair += all_groups;
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    let_next_begin();
    float norm[8];
    if (a.m.norm) load_norm<L>(a, norm);
#pragma unroll 1
    for (int s = 0; s < L::STAGES; s++) fetch_next(s);
    wait_for_inputs();
    if (a.m.norm)
        stage_normed<L, N_X>(a, norm);
    else
        stage_rows<L, N_X>(a);
    __syncthreads();
    int stage = 0;
    for (int turn = 0; pair < a.n_pairs; pair += all_groups, turn ^= 1) {
        Rows rows = rows_of<SILU>(a, pair);
        Added added = SILU ? Added{0, 0} : load_added(a, rows, p.lane);
        float acc[PAIR][N_X];
        for (int r = 0; r < PAIR; r++)
            for (int n = 0; n < N_X; n++) acc[r][n] = 0;
        for (int item = first_item; item < end_item; item++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(L::STAGES - 1) : "memory");
            __syncwarp();
            add_item<L, N_X, SILU>(a, rows.row, item, ring + stage * Ring<L>::STAGE, acc);
            __syncwarp();
            fetch_next(stage);
            stage = stage + 1 == L::STAGES ? 0 : stage + 1;
        }
        add_lanes<N_X>(acc);
        add_parts<N_X>(p, turn, acc);
        if (p.part == 0) store_pair<N_X, SILU>(a, p.lane, rows, added, acc);
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

struct Matvec {
    const struct CudaMatvec *m;
    int n; /* matrices */
    const void *up;
    cudaStream_t stream;

    /* Warps whose rings fit beside x; 0 when too few do. */
    template <class L, int N_X> static int warps_beside(int x_bytes, int shared_cta)
    {
        int warps = WARPS, least = N_X == 1 ? 1 : MIN_WARPS;
        while (warps >= least && warps * Ring<L>::BYTES + x_bytes + STATIC_SHARED > shared_cta)
            warps /= 2;
        return warps >= least ? warps : 0;
    }

    /* Enough warps for all multiprocessors. */
    template <class L> static int split_of(int n_pairs, int n_steps, int warps, int n_sm)
    {
        int split = 1, n_items = (n_steps + L::ITEM_STEPS - 1) / L::ITEM_STEPS;
        while (split < MAX_SPLIT && split < warps && 2 * split <= n_items &&
               2 * split * n_pairs <= 2 * WARPS * n_sm)
            split *= 2;
        return split;
    }

    template <class L, int N_X, bool SILU> cudaError_t launch(MatvecArgs a) const
    {
        static const struct Device d = device();
        a.x_row = (uint32_t)(a.n_chunks * XChunk<N_X>::BYTES);
        int x_bytes = (int)a.x_row * N_X, warps = warps_beside<L, N_X>(x_bytes, d.shared_cta);
        if (warps == 0) return cudaErrorInvalidValue;
        a.split = split_of<L>(a.n_pairs, a.n_steps, warps, d.n_sm);
        /* Small CTAs where large ones would leave multiprocessors without any. */
        while (warps > MIN_WARPS && a.n_pairs * a.split / warps < d.n_sm * 3 / 4) warps /= 2;
        int bytes = warps * Ring<L>::BYTES + x_bytes,
            ctas = (a.n_pairs * a.split + warps - 1) / warps;
        a.x_at = (uint32_t)(warps * Ring<L>::BYTES);
        int resident = d.shared_sm / (bytes + STATIC_SHARED + 1024);
        int most = Wanted<L, N_X>::SM_WARPS / warps;
        if (resident < 1) resident = 1;
        if (resident > most) resident = most;
        if (ctas > d.n_sm * resident) ctas = d.n_sm * resident;
        cudaError_t e = cudaFuncSetAttribute(matvec_kernel<L, N_X, SILU>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (e != cudaSuccess) return e;
        return launch_dependent<matvec_kernel<L, N_X, SILU>>((unsigned)ctas, warps * WARP,
                                                             (size_t)bytes, stream, a);
    }

    template <class L, int N_X> cudaError_t launch(const MatvecArgs &a) const
    {
        return up ? launch<L, N_X, true>(a) : launch<L, N_X, false>(a);
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
        if (a.m.x) rest.m.x += (int64_t)half * a.m.cols;
        if (a.m.raw) rest.m.raw += (int64_t)half * a.m.cols;
        for (struct Matrix &k : rest.matrix)
            k.out = (uint8_t *)k.out + (size_t)half * (size_t)k.rows * (a.m.out_f32 ? 4 : 2);
        e = in_parts<L>(first);
        return e == cudaSuccess ? in_parts<L>(rest) : e;
    }

    struct Matrix matrix_of(const struct CudaMatvec &k, const void *w, int64_t row_bytes) const
    {
        return {(const uint8_t *)w, k.bias, k.out, k.rows, 0, row_bytes * k.rows % 16 != 0};
    }

    void set_matrices(MatvecArgs &a) const
    {
        for (int i = 0; i < n; i++) {
            a.matrix[i] = matrix_of(m[i], m[i].w, a.row_bytes);
            a.matrix[i].first_pair = a.n_pairs;
            a.n_pairs += (m[i].rows + PAIR - 1) / PAIR;
        }
        for (int i = n; i < MAX_MATRICES; i++) a.matrix[i].first_pair = INT_MAX;
        if (!up) return;
        a.matrix[1] = matrix_of(*m, up, a.row_bytes);
        a.n_pairs = m->rows;
    }

    template <int T> cudaError_t run() const
    {
        typedef Lane<T> L;
        if (m->cols % Block<T>::WEIGHTS != 0) return cudaErrorInvalidValue;
        MatvecArgs a = {};
        a.m = *m;
        a.row_bytes = (int64_t)(m->cols / Block<T>::WEIGHTS) * Block<T>::BYTES;
        a.n_steps = (m->cols + STEP - 1) / STEP;
        a.n_chunks = Block<T>::WEIGHTS == 8 ? a.n_steps * WARP : m->cols / WARP;
        set_matrices(a);
        return a.n_pairs ? in_parts<L>(a) : cudaSuccess;
    }
};

static bool shape_ok(const struct CudaMatvec *m)
{
    uintptr_t at = (uintptr_t)m->w | (uintptr_t)m->x | (uintptr_t)m->raw | (uintptr_t)m->norm;
    if (m->rows < 0 || m->cols <= 0 || m->n_rows < 1 || m->n_rows > MAX_X_ROWS) return false;
    if ((m->raw != NULL) != (m->norm != NULL) || (m->raw != NULL) == (m->x != NULL)) return false;
    return at % 16 == 0 && !(m->add && !m->out_f32);
}

/* Whether both differ only in what is a matrix's own. */
static bool same_rows(const struct CudaMatvec *a, const struct CudaMatvec *b)
{
    return a->type == b->type && a->cols == b->cols && a->n_rows == b->n_rows && a->x == b->x &&
           a->raw == b->raw && a->norm == b->norm && a->eps == b->eps && a->out_f32 == b->out_f32 &&
           a->add == b->add;
}

cudaError_t cuda_matvecs(const struct CudaMatvec *m, int n, cudaStream_t s)
{
    if (n < 1 || n > MAX_MATRICES) return cudaErrorInvalidValue;
    for (int i = 0; i < n; i++)
        if (!shape_ok(&m[i]) || !same_rows(m, &m[i])) return cudaErrorInvalidValue;
    return with_block_type(m->type, Matvec{m, n, NULL, s});
}

cudaError_t cuda_matvec(const struct CudaMatvec *m, cudaStream_t s)
{
    return cuda_matvecs(m, 1, s);
}

cudaError_t cuda_matvec_silu(const struct CudaMatvec *m, const void *up, cudaStream_t s)
{
    if (!shape_ok(m) || !up || (uintptr_t)up % 16 != 0) return cudaErrorInvalidValue;
    if (m->bias || m->out_f32 || m->add) return cudaErrorInvalidValue;
    return with_block_type(m->type, Matvec{m, 1, up, s});
}

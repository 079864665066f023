/* gated_sm90a.cu - the gate of the feed-forward on Hopper, silu(x W_gate^T) * (x W_up^T), in one kernel.
 *
 * A block's tile is 128 rows of x by 256 rows of weights, 128 of the gate and the same 128 of up, so that a thread's
 * accumulators hold both factors of each of its outputs. One thread loads tiles of x and of the weights through the
 * copy engine into a ring; two warpgroups multiply 64 rows each. Two blocks of a cluster take tiles below one another:
 * each loads half of the weights for both, so that the L2 cache has less to deliver. The results of a tile are stored
 * while the products of the next are under way.
 */
#include "kernels.h"

#include <atomic>

#include "sm90a.cuh"

namespace
{

constexpr int TILE_ROWS = 128, TILE_COLS = 128; /* of the output: as many rows of gate and of up */
constexpr int SET_ROWS = 2 * TILE_ROWS;         /* of a cluster */
constexpr int GROUP_ROWS = 64, GROUPS = 2;      /* rows of a warpgroup */
constexpr int STEP = 64, STEP_BYTES = STEP * 2; /* of each row of x and the weights a step */
constexpr int STAGES = 4;
constexpr int SECTION_ROWS =
    2048; /* whose tiles follow one another: of 4096 values, 16 MB of the L2 cache's 50 */
constexpr int THREADS = 128 * (GROUPS + 1);
constexpr int LOAD_REGS = 40, MATH_REGS = 232;
constexpr float LOG2E = 1.4426950408889634f;

struct Params {
    CUtensorMap x, w[2], out; /* w: gate and up */
    int n_steps;              /* of a tile */
    int row_sets, col_tiles;  /* a set is the rows of the two tiles of a cluster */
    int section;              /* row sets whose rows share the L2 cache at a time */
};

constexpr int X_BYTES = TILE_ROWS * STEP_BYTES, W_BYTES = TILE_COLS * STEP_BYTES;
constexpr int STAGE_BYTES = X_BYTES + 2 * W_BYTES;
constexpr int OUT_BYTES = GROUP_ROWS * TILE_COLS * 2; /* of a warpgroup: two boxes of 64 columns */

struct Control {
    uint64_t full[STAGES], empty[STAGES];
};

struct Memory {
    uint8_t *ring, *out;
    struct Control *c;
    __device__ explicit Memory(uint8_t *raw)
    {
        ring = raw;
        out = ring + STAGES * STAGE_BYTES;
        c = (struct Control *)(out + GROUPS * OUT_BYTES);
    }
    static constexpr int BYTES =
        STAGES * STAGE_BYTES + GROUPS * OUT_BYTES + (int)sizeof(struct Control);
};
static_assert(Memory::BYTES <= 227 * 1024, "more shared memory than a block has");

/* Place in the ring. */
struct Cursor {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void advance()
    {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* ==== Tiles ==== */

struct Tile {
    int row, col; /* first of the block's output */
};

/* Sections of row sets one after another, in each all columns, in each column the section's rows. */
__device__ __forceinline__ struct Tile find_tile(const struct Params *p, int i)
{
    int first = i / (p->section * p->col_tiles) * p->section, rank = blockIdx.x % 2;
    int width = min(p->section, p->row_sets - first), rest = i - first * p->col_tiles;
    return {(first + rest % width) * SET_ROWS + rank * TILE_ROWS, rest / width * TILE_COLS};
}

/* Calls f(tile) for each tile of this block. */
template <class F> __device__ __forceinline__ void for_tiles(const struct Params *p, const F &f)
{
    int n = p->row_sets * p->col_tiles, step = gridDim.x / 2;
    for (int i = blockIdx.x / 2; i < n; i += step) f(find_tile(p, i));
}

/* ==== Loading ==== */

enum { BOTH_BLOCKS = 3 };

/* A step's part of x, and of the weights this block's half: gate or up. */
__device__ __forceinline__ void load_step(const struct Params *p, uint8_t *to, uint64_t *full,
                                          int k, struct Tile t, int rank)
{
    tensor_load_2d(to, &p->x, full, k, t.row);
    tensor_load_2d_all(to + X_BYTES + rank * W_BYTES, &p->w[rank], full, k, t.col, BOTH_BLOCKS);
}

__device__ __forceinline__ void load(const struct Params *p, const Memory &m)
{
    Cursor at;
    int rank = (int)cluster_rank();
    for_tiles(p, [&](struct Tile t) {
        for (int i = 0; i < p->n_steps; i++, at.advance()) {
            uint64_t *full = &m.c->full[at.stage];
            mbar_wait(&m.c->empty[at.stage], at.parity ^ 1);
            mbar_arrive_expect(full, STAGE_BYTES);
            load_step(p, m.ring + at.stage * STAGE_BYTES, full, i * STEP, t, rank);
        }
    });
}

/* ==== Products ==== */

__device__ __forceinline__ void multiply_step(float (&d)[128], const Memory &m, int stage,
                                              int group, bool add)
{
    const uint8_t *at = m.ring + stage * STAGE_BYTES;
    uint64_t x = wgmma_desc(at + group * GROUP_ROWS * STEP_BYTES, 16, 1024),
             w = wgmma_desc(at + X_BYTES, 16, 1024);
#pragma unroll
    for (int i = 0; i < STEP_BYTES; i += 32)
        wgmma_64x256_bf16(d, wgmma_desc_at(x, i), wgmma_desc_at(w, i), add || i > 0);
    wgmma_commit();
}

/* A warp is done with a stage: tells the loaders of both blocks. */
__device__ __forceinline__ void release(const Memory &m, int stage)
{
    int lane = threadIdx.x % 32;
    if (lane < 2) mbar_arrive_at(&m.c->empty[stage], lane);
}

/* d = this warpgroup's rows of the tile. Two steps are queued at a time; `meanwhile` runs once while they are. */
template <class F>
__device__ __forceinline__ void multiply_tile(float (&d)[128], const Memory &m, Cursor *at,
                                              int group, int n_steps, const F &meanwhile)
{
    int last = 0, second = min(1, n_steps - 1);
    for (int i = 0; i < n_steps; i++) {
        mbar_wait(&m.c->full[at->stage], at->parity);
        pin_registers(d);
        wgmma_fence();
        multiply_step(d, m, at->stage, group, i > 0);
        if (i == second) meanwhile();
        if (i > 0) {
            wgmma_wait<1>();
            release(m, last);
        }
        last = at->stage;
        at->advance();
    }
    wgmma_wait<0>();
    release(m, last);
    pin_registers(
        d); /* behind the release, which would otherwise sink into what is done with them */
}

/* ==== The gate ==== */

/* silu(g) * u of a pair, with one reciprocal: 1 / a = b / (a b). The bound keeps a b finite; silu is 1e-17 there. */
__device__ __forceinline__ uint32_t silu_pair(const float *g, const float *u)
{
    float a = 1 + exp2_fast(fminf(-LOG2E * g[0], 60)), b = 1 + exp2_fast(fminf(-LOG2E * g[1], 60));
    float r = reciprocal_fast(a * b);
    return pack_bf16(g[0] * u[0] * (b * r), g[1] * u[1] * (a * r));
}

/* Of a warpgroup: a thread has rows lane / 4 and + 8 of its warp's 16, and two columns of each eight. */
struct Gate {
    const struct Params *p;
    const Memory &m;
    int group;
    uint32_t h[32]; /* of the tile before, until the first products of the next are under way */
    struct Tile tile;
    bool pending;

    __device__ __forceinline__ void sync() { named_sync(1 + group, 128); }

    /* Gate in d[0..63], up in d[64..127]. */
    __device__ __forceinline__ void take(float (&d)[128], struct Tile t)
    {
        tile = {t.row + group * GROUP_ROWS, t.col};
        pending = true;
#pragma unroll
        for (int i = 0; i < 32; i++) h[i] = silu_pair(&d[2 * i], &d[64 + 2 * i]);
    }

    __device__ __forceinline__ void put_shared(uint8_t *out)
    {
        int lane = threadIdx.x % 32;
        uint8_t *row = out + (threadIdx.x % 128 / 32 * 16 + lane % 16) * 128;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int chunk = (i % 4 * 2 + lane / 16) ^ lane % 8;
            store_matrices(row + i / 4 * (OUT_BYTES / 2) + chunk * 16, h[4 * i], h[4 * i + 1],
                           h[4 * i + 2], h[4 * i + 3]);
        }
    }

    /* Writes the tile before. */
    __device__ __forceinline__ void write()
    {
        uint8_t *out = m.out + group * OUT_BYTES;
        bool issues = threadIdx.x % 128 == 0;
        if (issues) tensor_store_wait_read();
        sync();
        if (pending) put_shared(out);
        fence_async_shared();
        sync();
        if (!pending || !issues) return;
        tensor_store_2d(&p->out, out, tile.col, tile.row);
        tensor_store_2d(&p->out, out + OUT_BYTES / 2, tile.col + 64, tile.row);
        tensor_store_commit();
    }
};

/* ==== Kernel ==== */

__device__ __forceinline__ void multiply(const struct Params *p, const Memory &m, int group)
{
    Cursor at;
    float d[128];
    Gate gate = {p, m, group, {}, {}, false};
    for_tiles(p, [&](struct Tile t) {
        multiply_tile(d, m, &at, group, p->n_steps, [&] { gate.write(); });
        gate.take(d, t);
    });
    gate.write();
    if (threadIdx.x % 128 == 0) tensor_store_wait();
}

__device__ void init_barriers(struct Control *c)
{
    for (int i = 0; i < STAGES; i++) {
        mbar_init(&c->full[i], 1);
        mbar_init(&c->empty[i], 2 * GROUPS * 4); /* one arrival a warp of both blocks */
    }
    mbar_init_fence();
}

__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    gated_sm90a_kernel(const __grid_constant__ struct Params p)
{
    extern __shared__ __align__(1024) uint8_t raw[]; /* the swizzle's period */
    Memory m(raw);
    if (shared_addr(raw) % 1024 != 0) __trap();
    if (threadIdx.x == 0) init_barriers(m.c);
    cluster_sync();
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group == 0) {
        registers_drop<LOAD_REGS>();
        if (threadIdx.x == 0) load(&p, m);
    } else {
        registers_raise<MATH_REGS>();
        multiply(&p, m, group - 1);
    }
    /* The other block may still arrive at barriers of this one. */
    __syncwarp();
    cluster_sync();
}

/* ==== Launch ==== */

/* A matrix of which a box is `box_rows` rows of 128 bytes. */
bool encode_map(CUtensorMap *map, const void *base, int rows, int cols, int box_rows)
{
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encoder();
    cuuint64_t dims[] = {(cuuint64_t)cols, (cuuint64_t)rows};
    cuuint64_t strides[] = {(cuuint64_t)cols * 2};
    cuuint32_t box[] = {STEP, (cuuint32_t)box_rows};
    cuuint32_t steps[] = {1, 1};
    return encode && encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)base, dims, strides,
                            box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

int div_up(int a, int b)
{
    return (a + b - 1) / b;
}

/* Clusters that run at once. */
cudaError_t resident_clusters(int *out)
{
    static std::atomic<int> known;
    int device, n_sm;
    if ((*out = known)) return cudaSuccess;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(gated_sm90a_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 Memory::BYTES);
    if (e != cudaSuccess) return e;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {2, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(n_sm / 2 * 2));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = Memory::BYTES;
    config.attrs = &cluster;
    config.numAttrs = 1;
    e = cudaOccupancyMaxActiveClusters(out, gated_sm90a_kernel, &config);
    if (e == cudaSuccess && *out == 0) e = cudaErrorInvalidConfiguration;
    if (e == cudaSuccess) known = *out;
    return e;
}

bool fill_params(struct Params *p, const struct CudaGated *g)
{
    p->n_steps = div_up(g->cols, STEP);
    p->row_sets = div_up(g->n_rows, SET_ROWS);
    p->col_tiles = div_up(g->hidden, TILE_COLS);
    int sections = div_up(p->row_sets, SECTION_ROWS / SET_ROWS);
    p->section = div_up(p->row_sets, sections); /* all of about one size */
    return encode_map(&p->x, g->x, g->n_rows, g->cols, TILE_ROWS) &&
           encode_map(&p->w[0], g->gate, g->hidden, g->cols, TILE_COLS) &&
           encode_map(&p->w[1], g->up, g->hidden, g->cols, TILE_COLS) &&
           encode_map(&p->out, g->out, g->n_rows, g->hidden, GROUP_ROWS);
}

cudaError_t launch(const struct CudaGated *g, cudaStream_t s)
{
    struct Params p = {};
    int resident;
    cudaError_t e = resident_clusters(&resident);
    if (e != cudaSuccess) return e;
    if (!fill_params(&p, g)) return cudaErrorInvalidValue;
    int64_t n = (int64_t)p.row_sets * p.col_tiles;
    int grid = 2 * (n < resident ? (int)n : resident);
    gated_sm90a_kernel<<<grid, THREADS, Memory::BYTES, s>>>(p);
    return cudaGetLastError();
}

bool valid(const struct CudaGated *g)
{
    uintptr_t all = (uintptr_t)g->x | (uintptr_t)g->gate | (uintptr_t)g->up | (uintptr_t)g->out;
    return g->n_rows > 0 && g->hidden > 0 && g->cols > 0 && g->hidden % 8 == 0 &&
           g->cols % 8 == 0 && all % 16 == 0;
}

} // namespace

double cuda_gated_fill(int n_rows, int hidden, int n_sm)
{
    int clusters = n_sm / 2;
    int64_t n = (int64_t)div_up(n_rows, SET_ROWS) * div_up(hidden, TILE_COLS);
    int64_t rounds = (n + clusters - 1) / clusters;
    return (double)n_rows * hidden / ((double)rounds * clusters * SET_ROWS * TILE_COLS);
}

cudaError_t cuda_gated_sm90a(const struct CudaGated *g, cudaStream_t s)
{
    if (!valid(g)) return cudaErrorInvalidValue;
    return launch(g, s);
}

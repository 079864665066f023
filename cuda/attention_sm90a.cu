/* attention_sm90a.cu - attention of many rows over packed keys on Hopper.
 *
 * A block takes tiles of query rows one after another. One thread of it loads Q, K and V through the copy engine into
 * a ring of shared memory; each of the other warpgroups owns 64 rows of the tile and runs QK^T, softmax and PV in
 * registers. The products of a step (QK^T of this key tile, PV of the one before) are queued together, so that the
 * tensor cores work while the softmax runs, and the warpgroups take turns at queueing them, so that one's softmax
 * falls into the other's products.
 *
 * Tiles end at the last row of their sequence: the partly filled one is then the first, which has the fewest keys.
 */
#include "kernels.h"

#include <atomic>

#include "sm90a.cuh"

namespace
{

constexpr int KEYS = CUDA_KEY_TILE; /* keys a tile */
constexpr int GROUP_ROWS = 64;      /* query rows a warpgroup */
constexpr int MAX_GROUPS = 3;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

/* A row's running maximum only follows the true one when it falls behind by this much (log2): the sums then stay
 * below 2^8 a key, and the output is rarely rescaled. */
constexpr float MAX_LAG = 8.0f;
/* Below any logit, and finite: a row that has seen no key yet needs no case of its own. */
constexpr float LOWEST = -1e30f;

/* What the compiler needs to know of a kernel; stages are buffers. */
template <int D_, int GROUPS_, int Q_STAGES_, int K_STAGES_, int V_STAGES_> struct Shape {
    static constexpr int D = D_, GROUPS = GROUPS_;
    static constexpr int Q_STAGES = Q_STAGES_, K_STAGES = K_STAGES_, V_STAGES = V_STAGES_;
    static constexpr int ROWS = GROUP_ROWS * GROUPS;
    static constexpr int THREADS = 128 * (GROUPS + 1);
    static constexpr int Q_BYTES = GROUP_ROWS * D * 2; /* of one warpgroup */
    static constexpr int KV_BYTES = KEYS * D * 2;
    /* 512 registers a lane of the four schedulers are to share. */
    static constexpr int LOAD_REGS = GROUPS == 2 ? 40 : 32;
    static constexpr int MATH_REGS = GROUPS == 2 ? 232 : 160;
};

struct Params {
    CUtensorMap q, k, v;
    struct CudaAttn a;
    int tiles_per_head, n_tiles;
    int section; /* heads whose keys share the L2 cache at a time */
    int queue;   /* of queues[] */
};

/* One tile of query rows, as the loading thread tells the others. */
struct Tile {
    int head, first_row; /* first_row: in the sequence, may be negative */
    int first_wanted;    /* first row in the sequence to be written */
    int seq_row;         /* global row of the sequence's row 0 */
    int past, window;
    int end_tile;      /* key tiles are visited from the last one, end_tile - 1, downwards */
    int low_tile, gap; /* below low_tile, `gap` tiles are left out (between sinks and window) */
    int n_steps;       /* key tiles to visit; 0: no more work */
};

constexpr int MAX_STAGES = 4;
struct Control {
    uint64_t q_full[2][MAX_GROUPS], q_empty[2][MAX_GROUPS];
    uint64_t k_full[MAX_STAGES], k_empty[MAX_STAGES], v_full[MAX_STAGES], v_empty[MAX_STAGES];
    struct Tile tile[2][MAX_GROUPS]; /* guarded as Q is */
    struct Tile next;                /* of the loading thread, which has few registers */
};

/* Next tile of a launch, and how many blocks have seen the end of it; the last one resets both. Launches take them in
 * turn: two that run at once have different ones unless N_QUEUES others were made between them. */
struct Queue {
    unsigned next, done;
};
constexpr int N_QUEUES = 1 << 14;
__device__ struct Queue queues[N_QUEUES];

/* Place in a ring of buffers. */
template <int STAGES> struct Cursor {
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

template <class S> struct Memory {
    uint8_t *q, *k, *v;
    struct Control *c;
    __device__ explicit Memory(uint8_t *raw)
    {
        q = raw + (-shared_addr(raw) & 1023); /* the swizzle's period */
        k = q + S::Q_STAGES * S::GROUPS * S::Q_BYTES;
        v = k + S::K_STAGES * S::KV_BYTES;
        c = (struct Control *)(v + S::V_STAGES * S::KV_BYTES);
    }
    __device__ __forceinline__ uint8_t *q_tile(int stage, int group)
    {
        return q + (stage * S::GROUPS + group) * S::Q_BYTES;
    }
    static constexpr int BYTES = S::Q_STAGES * S::GROUPS * S::Q_BYTES +
                                 (S::K_STAGES + S::V_STAGES) * S::KV_BYTES +
                                 (int)sizeof(struct Control) + 1024;
    static_assert(BYTES <= 227 * 1024, "more shared memory than a block has");
};

/* ==== Loading ==== */

__device__ int div_up(int a, int b)
{
    return (a + b - 1) / b;
}

/* The tile of an index: sections of heads one after another, in each the latest rows first. False: nothing to do. */
template <class S>
__device__ bool find_tile(const struct Params *p, int index, struct Tile *t, int *kv)
{
    const struct CudaAttn *a = &p->a;
    int first = index / (p->section * p->tiles_per_head) * p->section;
    int width = min(p->section, a->n_seqs * a->n_heads - first);
    int rest = index - first * p->tiles_per_head;
    int late = rest / width, head = first + rest % width, seq = head / a->n_heads;
    head -= seq * a->n_heads;
    int kv_head = head / (a->n_heads / a->n_kv_heads);
    int len = a->seq_begin[seq + 1] - a->seq_begin[seq];
    *kv = seq * a->n_kv_heads + kv_head;
    t->head = head;
    t->seq_row = a->seq_begin[seq];
    t->first_row = len - (late + 1) * S::ROWS;
    t->first_wanted = a->last_rows > 0 ? max(0, len - a->last_rows) : 0;
    int end_row = t->first_row + S::ROWS;
    if (end_row <= t->first_wanted) return false;
    t->past = a->kv.past_of(seq, kv_head);
    t->window = a->window ? a->window[head] : 0;
    t->end_tile = div_up(t->past + end_row, KEYS);
    t->low_tile = t->gap = 0;
    if (t->window > 0) {
        int low = t->past + max(t->first_row, t->first_wanted) - t->window + 1;
        t->low_tile = max(low, 0) / KEYS;
        t->gap = t->low_tile - min(t->low_tile, div_up(a->sinks, KEYS));
    }
    t->n_steps = t->end_tile - t->gap;
    return true;
}

__device__ __forceinline__ int key_tile(const struct Tile &t, int step)
{
    int tile = t.end_tile - 1 - step;
    return tile >= t.low_tile ? tile : tile - t.gap;
}

template <class S> struct Loader {
    const struct Params *p;
    Memory<S> m;
    Cursor<S::Q_STAGES> q;
    Cursor<S::K_STAGES> k;
    Cursor<S::V_STAGES> v;

    __device__ void load_k(int tile, int kv)
    {
        uint64_t *full = &m.c->k_full[k.stage];
        mbar_wait(&m.c->k_empty[k.stage], k.parity ^ 1);
        mbar_arrive_expect(full, S::KV_BYTES);
        tensor_load_4d(m.k + k.stage * S::KV_BYTES, &p->k, full, 0, tile * KEYS, 0, kv);
        k.advance();
    }
    __device__ void load_v(int tile, int kv)
    {
        uint64_t *full = &m.c->v_full[v.stage];
        mbar_wait(&m.c->v_empty[v.stage], v.parity ^ 1);
        mbar_arrive_expect(full, S::KV_BYTES);
        tensor_load_4d(m.v + v.stage * S::KV_BYTES, &p->v, full, 0, tile * KEYS, 0, kv);
        v.advance();
    }
    __device__ void tell(int group, const struct Tile &t)
    {
        mbar_wait(&m.c->q_empty[q.stage][group], q.parity ^ 1);
        m.c->tile[q.stage][group] = t;
    }
    __device__ void load_q(const struct Tile &t)
    {
#pragma unroll 1
        for (int g = 0; g < S::GROUPS; g++) {
            uint64_t *full = &m.c->q_full[q.stage][g];
            tell(g, t);
            mbar_arrive_expect(full, S::Q_BYTES);
            tensor_load_4d(m.q_tile(q.stage, g), &p->q, full, 0,
                           t.seq_row + t.first_row + g * GROUP_ROWS, 0, t.head);
        }
        q.advance();
    }
    __device__ void load_tile(const struct Tile &t, int kv)
    {
        load_k(key_tile(t, 0), kv);
        load_q(t);
#pragma unroll 1
        for (int i = 1; i < t.n_steps; i++) {
            load_k(key_tile(t, i), kv);
            load_v(key_tile(t, i - 1), kv);
        }
        load_v(key_tile(t, t.n_steps - 1), kv);
    }
    __device__ void end()
    {
        m.c->next.n_steps = 0;
#pragma unroll 1
        for (int g = 0; g < S::GROUPS; g++) {
            tell(g, m.c->next);
            mbar_arrive(&m.c->q_full[q.stage][g]);
        }
    }
};

template <class S> __device__ void load(const struct Params *p, Memory<S> m)
{
    Loader<S> l = {p, m};
    struct Queue *q = &queues[p->queue];
    for (int index = blockIdx.x; index < p->n_tiles;) {
        /* Asked for early: the answer takes as long as a load. */
        int next = (int)(gridDim.x + atomicAdd(&q->next, 1u)), kv;
        if (find_tile<S>(p, index, &m.c->next, &kv)) l.load_tile(m.c->next, kv);
        index = next;
    }
    l.end();
    __threadfence();
    if (atomicAdd(&q->done, 1u) == gridDim.x - 1) {
        q->next = 0;
        q->done = 0;
    }
}

/* ==== Softmax ==== */

/* What a thread's two rows see. */
struct Sight {
    int end[2], low[2]; /* keys in [low, end), or below sinks */
    int sinks;
    int mask_low, mask_high; /* key tiles in [mask_low, mask_high) are seen whole by all 64 rows */
    int column;              /* the first of the thread's columns of a tile */
};

/* first: the first of the warpgroup's rows in the sequence, row: of the thread's, which has row + 8 too. */
__device__ __forceinline__ struct Sight find_sight(const struct CudaAttn *a, const struct Tile &t,
                                                   int first, int row)
{
    struct Sight v;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        v.end[r] = t.past + row + 8 * r + 1;
        v.low[r] = t.window > 0 ? v.end[r] - t.window : 0;
    }
    v.sinks = a->sinks;
    int low = t.window > 0 ? t.past + first + GROUP_ROWS - t.window : 0;
    v.mask_low = div_up(max(low, 0), KEYS);
    v.mask_high = (t.past + first + 1) / KEYS;
    v.column = threadIdx.x % 4 * 2;
    return v;
}

/* s: the thread's part of a tile of logits whose first column, for this thread, is key `key`. */
__device__ __forceinline__ void mask_logits(float (&s)[KEYS / 2], const struct Sight &v, int key)
{
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        int j = key + i / 4 * 8 + i % 2, r = i / 2 % 2;
        bool seen = j < v.end[r] && (j >= v.low[r] || j < v.sinks);
        s[i] = seen ? s[i] : -INFINITY;
    }
}

/* The same where only the row's own place bounds what it sees. */
__device__ __forceinline__ void mask_causal(float (&s)[KEYS / 2], const struct Sight &v, int key)
{
    int left[2] = {v.end[0] - key, v.end[1] - key};
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        s[i] = i / 4 * 8 + i % 2 < left[i / 2 % 2] ? s[i] : -INFINITY;
}

__device__ __forceinline__ void mask(float (&s)[KEYS / 2], const struct Sight &v, int tile)
{
    int key = tile * KEYS + v.column;
    if (tile < v.mask_low)
        mask_logits(s, v, key);
    else if (tile >= v.mask_high)
        mask_causal(s, v, key);
}

__device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* Running softmax of a thread's two rows. */
struct Rows {
    float max[2], sum[2]; /* sum: of this thread's columns */
    float shrink[2];      /* what the sums were last multiplied by */
};

/* Follows the logits' maximum when a row of the warp fell behind. True: the sums were shrunk, so must be the output. */
__device__ __forceinline__ bool follow_max(const float (&s)[KEYS / 2], struct Rows *w, float scale)
{
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float even = s[2 * r], odd = s[2 * r + 1];
#pragma unroll
        for (int i = 4; i < KEYS / 2; i += 4) {
            even = fmaxf(even, s[i + 2 * r]);
            odd = fmaxf(odd, s[i + 2 * r + 1]);
        }
        top[r] = fmaxf(even, odd);
    }
    bool behind = (top[0] - w->max[0]) * scale > MAX_LAG || (top[1] - w->max[1]) * scale > MAX_LAG;
    if (!__any_sync(~0u, behind)) return false;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float old = w->max[r], now = fmaxf(old, quad_max(top[r]));
        w->max[r] = now;
        w->shrink[r] = exp2_fast((old - now) * scale);
        w->sum[r] *= w->shrink[r];
    }
    return true;
}

/* Logits to weights, in place. */
__device__ __forceinline__ void weigh(float (&s)[KEYS / 2], struct Rows *w, float scale)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float shift = -w->max[r] * scale, even = 0, odd = 0;
#pragma unroll
        for (int i = 2 * r; i < KEYS / 2; i += 4) {
            s[i] = exp2_fast(fmaf(s[i], scale, shift));
            s[i + 1] = exp2_fast(fmaf(s[i + 1], scale, shift));
            even += s[i];
            odd += s[i + 1];
        }
        w->sum[r] += even + odd;
    }
}

template <int N> __device__ __forceinline__ void shrink_output(float (&o)[N], const struct Rows &w)
{
#pragma unroll
    for (int i = 0; i < N; i++) o[i] *= w.shrink[i / 2 % 2];
}

/* ==== Products ==== */

template <class S>
__device__ __forceinline__ void multiply_qk(float (&s)[KEYS / 2], uint64_t q, uint64_t k)
{
    wgmma_64x128_ss<false>(s, q, k);
#pragma unroll
    for (int i = 1; i < S::D / 16; i++) {
        int half = i / 4, at = i % 4 * 32; /* 64 elements lie in a row of 128 bytes */
        wgmma_64x128_ss<true>(s, wgmma_desc_at(q, half * GROUP_ROWS * 128 + at),
                              wgmma_desc_at(k, half * KEYS * 128 + at));
    }
    wgmma_commit();
}

template <class S>
__device__ __forceinline__ void multiply_pv(float (&o)[S::D / 2], const uint32_t (&w)[KEYS / 4],
                                            uint64_t v)
{
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) wgmma_rs(o, w + 4 * i, wgmma_desc_at(v, i * 16 * 128));
    wgmma_commit();
}

__device__ __forceinline__ void pack_weights(uint32_t (&w)[KEYS / 4], const float (&s)[KEYS / 2])
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) w[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

/* ==== Output ==== */

/* x[j] of lane q of a quad to x[q] of lane j. */
__device__ __forceinline__ void quad_transpose(uint32_t (&x)[4])
{
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        bool upper = lane & bit;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            uint32_t got = __shfl_xor_sync(~0u, upper ? x[i] : x[i + bit], bit);
            if (upper)
                x[i] = got;
            else
                x[i + bit] = got;
        }
    }
}

template <class S>
__device__ void write_rows(const struct CudaAttn *a, const struct Tile &t, int row,
                           float (&o)[S::D / 2], struct Rows *w)
{
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int at = row + 8 * r;
        bool wanted = at >= t.first_wanted;
        float sum = quad_sum(w->sum[r]), factor = __fdividef(1, sum);
        int64_t out_row = t.seq_row + at;
        if (wanted && lane == 0 && a->lse)
            a->lse[(int64_t)t.head * a->n_rows + out_row] =
                fmaf(w->max[r], a->scale, __log2f(sum) * LN2);
        bf16 *out = a->out + (out_row * a->n_heads + t.head) * S::D;
#pragma unroll
        for (int i = 0; i < S::D / 8; i += 4) {
            uint32_t x[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *d = &o[4 * (i + j) + 2 * r];
                x[j] = pack_bf16(d[0] * factor, d[1] * factor);
            }
            quad_transpose(x);
            if (wanted) *(uint4 *)(out + 8 * (i + lane)) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}

/* ==== A warpgroup's 64 rows ==== */

/* What a warpgroup keeps in registers of its 64 rows: of each thread, two rows' part. */
template <class S> struct Accum {
    float s[KEYS / 2], o[S::D / 2]; /* logits, then weights; output */
    uint32_t weights[KEYS / 4];     /* bf16, being multiplied with V */
    struct Rows rows;
};

template <class S> struct Worker {
    const struct CudaAttn *a;
    Memory<S> m;
    int group;
    Cursor<S::Q_STAGES> q;
    Cursor<S::K_STAGES> k;
    Cursor<S::V_STAGES> v;

    __device__ __forceinline__ void release(uint64_t *bar)
    {
        if (threadIdx.x % 32 == 0) mbar_arrive(bar);
    }
    __device__ __forceinline__ void take_turn() { named_sync(1 + group, 256); }
    __device__ __forceinline__ void pass_turn() { named_arrive(1 + (group + 1) % S::GROUPS, 256); }
    __device__ __forceinline__ uint64_t q_desc()
    {
        return wgmma_desc(m.q_tile(q.stage, group), 16, 1024);
    }
    __device__ __forceinline__ uint64_t k_desc()
    {
        return wgmma_desc(m.k + k.stage * S::KV_BYTES, 16, 1024);
    }
    __device__ __forceinline__ uint64_t v_desc()
    {
        return wgmma_desc(m.v + v.stage * S::KV_BYTES, KEYS * 128, 1024);
    }
    __device__ __forceinline__ void wait_k() { mbar_wait(&m.c->k_full[k.stage], k.parity); }
    __device__ __forceinline__ void wait_v(const Cursor<S::V_STAGES> &at)
    {
        mbar_wait(&m.c->v_full[at.stage], at.parity);
    }
    __device__ __forceinline__ void release_q() { release(&m.c->q_empty[q.stage][group]); }
    __device__ __forceinline__ void release_k()
    {
        release(&m.c->k_empty[k.stage]);
        k.advance();
    }
    __device__ __forceinline__ void release_v()
    {
        release(&m.c->v_empty[v.stage]);
        v.advance();
    }
    /* A key tile that none of the warpgroup's rows sees. */
    __device__ void skip_step()
    {
        take_turn();
        pass_turn();
        wait_k();
        release_k();
        wait_v(v);
        release_v();
    }
    __device__ int skip_unseen(const struct Tile &t, int first);
    __device__ void first_step(Accum<S> &x, const struct Sight &v, int tile);
    __device__ void next_step(Accum<S> &x, const struct Sight &v, int tile);
    __device__ void last_product(Accum<S> &x);
    __device__ void run_tile(const struct Tile &t);
    __device__ void run();
};

/* The first step that the rows from `first` on have to do. */
template <class S>
__device__ __forceinline__ int Worker<S>::skip_unseen(const struct Tile &t, int first)
{
    int end_tile = div_up(max(0, t.past + first + GROUP_ROWS), KEYS);
    int step = min(t.n_steps, t.end_tile - end_tile);
    if (first + GROUP_ROWS <= t.first_wanted) step = t.n_steps;
    for (int i = 0; i < step; i++) skip_step();
    return step;
}

/* Logits and weights of a row tile's first key tile. */
template <class S>
__device__ __forceinline__ void Worker<S>::first_step(Accum<S> &x, const struct Sight &v, int tile)
{
    float scale = a->scale * LOG2E;
    wait_k();
    take_turn();
    pin_registers(x.s);
    wgmma_fence();
    multiply_qk<S>(x.s, q_desc(), k_desc());
    pass_turn();
    wgmma_wait<0>();
    pin_registers(x.s);
    release_k();
    mask(x.s, v, tile);
    follow_max(x.s, &x.rows, scale);
    weigh(x.s, &x.rows, scale);
    pack_weights(x.weights, x.s);
    wait_v(this->v);
}

/* The same of a further key tile, while the weights before are multiplied with their V. */
template <class S>
__device__ __forceinline__ void Worker<S>::next_step(Accum<S> &x, const struct Sight &v, int tile)
{
    float scale = a->scale * LOG2E;
    wait_k();
    take_turn();
    pin_registers(x.s);
    pin_registers(x.o);
    wgmma_fence();
    multiply_qk<S>(x.s, q_desc(), k_desc());
    multiply_pv<S>(x.o, x.weights, v_desc());
    pass_turn();
    wgmma_wait<1>();
    pin_registers(x.s);
    release_k();
    mask(x.s, v, tile);
    bool shrunk = follow_max(x.s, &x.rows, scale);
    weigh(x.s, &x.rows, scale);
    pin_registers(x.s);
    /* Waiting for the next V here also keeps the compiler from moving the softmax behind the wait for PV. */
    Cursor<S::V_STAGES> next = this->v;
    next.advance();
    wait_v(next);
    wgmma_wait<0>();
    pin_registers(x.o);
    release_v();
    if (shrunk) shrink_output(x.o, x.rows);
    pack_weights(x.weights, x.s);
}

template <class S> __device__ __forceinline__ void Worker<S>::last_product(Accum<S> &x)
{
    pin_registers(x.o);
    wgmma_fence();
    multiply_pv<S>(x.o, x.weights, v_desc());
    wgmma_wait<0>();
    pin_registers(x.o);
    release_v();
}

template <class S> __device__ __forceinline__ void Worker<S>::run_tile(const struct Tile &t)
{
    int first = t.first_row + group * GROUP_ROWS;
    int row = first + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; /* and row + 8 */
    int step = skip_unseen(t, first);
    if (step == t.n_steps) {
        release_q();
        return;
    }
    const struct Sight sight = find_sight(a, t, first, row);
    Accum<S> x;
    x.rows = {{LOWEST, LOWEST}, {0, 0}, {}};
#pragma unroll
    for (int i = 0; i < S::D / 2; i++) x.o[i] = 0;
    first_step(x, sight, key_tile(t, step));
    for (step++; step < t.n_steps; step++) next_step(x, sight, key_tile(t, step));
    release_q();
    last_product(x);
    write_rows<S>(a, t, row, x.o, &x.rows);
}

template <class S> __device__ __forceinline__ void Worker<S>::run()
{
    if (group == S::GROUPS - 1) pass_turn(); /* the first turn is group 0's */
    for (;; q.advance()) {
        mbar_wait(&m.c->q_full[q.stage][group], q.parity);
        const struct Tile t = m.c->tile[q.stage][group];
        if (t.n_steps == 0) return;
        run_tile(t);
    }
}

/* ==== Kernel ==== */

template <class S> __device__ void init_barriers(struct Control *c)
{
    for (int i = 0; i < S::Q_STAGES; i++)
        for (int g = 0; g < S::GROUPS; g++) {
            mbar_init(&c->q_full[i][g], 1);
            mbar_init(&c->q_empty[i][g], 4); /* one arrival a warp */
        }
    for (int i = 0; i < S::K_STAGES; i++) {
        mbar_init(&c->k_full[i], 1);
        mbar_init(&c->k_empty[i], 4 * S::GROUPS);
    }
    for (int i = 0; i < S::V_STAGES; i++) {
        mbar_init(&c->v_full[i], 1);
        mbar_init(&c->v_empty[i], 4 * S::GROUPS);
    }
    mbar_init_fence();
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    attention_sm90a_kernel(const __grid_constant__ struct Params p)
{
    extern __shared__ uint8_t raw[];
    Memory<S> m(raw);
    if (threadIdx.x == 0) init_barriers<S>(m.c);
    __syncthreads();
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group == 0) {
        registers_drop<S::LOAD_REGS>();
        if (threadIdx.x == 0) load<S>(&p, m);
    } else {
        registers_raise<S::MATH_REGS>();
        Worker<S>{&p.a, m, group - 1}.run();
    }
}

/* ==== Launch ==== */

/* Rows of head_dim elements, `outer` sets of them: a box is `box_rows` rows as columns of 64 elements. */
bool encode_map(CUtensorMap *map, const bf16 *base, int head_dim, int64_t rows, int64_t row_elems,
                int64_t outer, int64_t outer_elems, int box_rows)
{
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encoder();
    cuuint64_t dims[] = {64, (cuuint64_t)rows, (cuuint64_t)head_dim / 64, (cuuint64_t)outer};
    cuuint64_t strides[] = {(cuuint64_t)row_elems * 2, 128, (cuuint64_t)outer_elems * 2};
    cuuint32_t box[] = {64, (cuuint32_t)box_rows, (cuuint32_t)head_dim / 64, 1};
    cuuint32_t steps[] = {1, 1, 1, 1};
    return encode && encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)base, dims, strides,
                            box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Heads whose keys and values take 32 MB of the L2 cache's 50, whole groups that share them. */
int section_heads(const struct CudaAttn *a)
{
    int64_t bytes = (int64_t)a->kv.key_stride * a->head_dim * 4, fit = (32 << 20) / bytes;
    int64_t n = (fit > 1 ? fit : 1) * (a->n_heads / a->n_kv_heads);
    return n < INT32_MAX ? (int)n : INT32_MAX;
}

bool fill_params(struct Params *p, const struct CudaAttn *a, int rows)
{
    int d = a->head_dim, kv_sets = a->n_seqs * a->n_kv_heads;
    int wanted =
        a->last_rows > 0 && a->last_rows < a->max_seq_rows ? a->last_rows : a->max_seq_rows;
    p->a = *a;
    p->tiles_per_head = (wanted + rows - 1) / rows;
    p->n_tiles = p->tiles_per_head * a->n_seqs * a->n_heads;
    p->section = section_heads(a);
    if (p->section > a->n_seqs * a->n_heads) p->section = a->n_seqs * a->n_heads;
    int64_t key_set = (int64_t)a->kv.key_stride * d;
    return encode_map(&p->q, a->q, d, a->n_rows, (int64_t)a->n_heads * d, a->n_heads, d,
                      GROUP_ROWS) &&
           encode_map(&p->k, a->kv.k, d, a->kv.key_stride, d, kv_sets, key_set, KEYS) &&
           encode_map(&p->v, a->kv.v, d, a->kv.key_stride, d, kv_sets, key_set, KEYS);
}

int next_queue(void)
{
    static std::atomic<unsigned> n_launches;
    return (int)(n_launches++ % N_QUEUES);
}

template <class S> cudaError_t launch(const struct CudaAttn *a, cudaStream_t s)
{
    struct Params p;
    int device, n_sm, bytes = Memory<S>::BYTES;
    if (!fill_params(&p, a, S::ROWS)) return cudaErrorInvalidValue;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(attention_sm90a_kernel<S>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (e != cudaSuccess) return e;
    int grid = p.n_tiles < n_sm ? p.n_tiles : n_sm;
    p.queue = next_queue();
    attention_sm90a_kernel<S><<<grid, S::THREADS, bytes, s>>>(p);
    return cudaGetLastError();
}

bool valid(const struct CudaAttn *a)
{
    return a->n_seqs > 0 && a->n_rows > 0 && a->max_seq_rows > 0 && a->n_kv_heads > 0 &&
           a->n_heads > 0 && a->n_heads % a->n_kv_heads == 0 && a->kv.key_stride > 0 &&
           a->kv.key_stride % CUDA_KEY_TILE == 0 && a->scale > 0;
}

} // namespace

cudaError_t cuda_attention_sm90a(const struct CudaAttn *a, cudaStream_t s)
{
    if (!valid(a)) return cudaErrorInvalidValue;
    if (a->head_dim == 128) return launch<Shape<128, 2, 1, 3, 3>>(a, s);
    if (a->head_dim == 64) return launch<Shape<64, 3, 2, 4, 4>>(a, s);
    return cudaErrorInvalidValue;
}

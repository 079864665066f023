/* step.cu - a step of decoding as a CUDA graph: its kernels start without the host, each while the one before ends.
 *
 * What changes from step to step lies at fixed places. The first kernel takes the token, its position and where keys and
 * values go from the host's memory; the last one leaves the likeliest token there and lets the page tables grow by what the
 * step wrote, so that the host need not tell them again.
 */
#include "dependent.cuh"
#include "device.h"
#include "seen.cuh"

#include <math_constants.h>

static void forget_one(struct Device *d, int kind)
{
    if (d->step.graph[kind]) cudaGraphExecDestroy(d->step.graph[kind]);
    d->step.graph[kind] = NULL;
}

void step_forget(struct Device *d)
{
    for (int i = 0; i < STEP_KINDS; i++) forget_one(d, i);
    d->step.grown = false;
}

/* ==== The last kernel ==== */

struct EndArgs {
    const float *logits;
    int vocab;
    unsigned long long *best; /* the best key yet, how many blocks have said theirs; 0 in between */
    unsigned long long *told; /* in the host's memory: the best key */
    struct DevTable table;
    const struct CudaPageSlot *slots; /* of the step */
    int n_heads;
    bool masked; /* the window of the next row is one token on */
    int sinks;
};

enum { END_BLOCKS = 64, END_THREADS = 256 };
static const uint32_t BROKEN = UINT32_MAX;

/* Grows with the logit, of equal logits falls with the token; what is no number is above all. Never 0. */
static __device__ unsigned long long key_of(float logit, int token)
{
    uint32_t bits = __float_as_uint(logit + 0.0f); /* -0 is 0 */
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (!(logit < CUDART_INF_F)) bits = BROKEN;
    return (unsigned long long)bits << 32 | (uint32_t)~token;
}

static __device__ unsigned long long greatest(unsigned long long key)
{
    for (int o = 16; o; o >>= 1) {
        unsigned long long other = __shfl_xor_sync(~0u, key, o);
        if (other > key) key = other;
    }
    return key;
}

static __device__ void find_best(const struct EndArgs &a)
{
    unsigned long long key = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < a.vocab; i += gridDim.x * blockDim.x) {
        unsigned long long k = key_of(__ldcg(a.logits + i), i);
        if (k > key) key = k;
    }
    __shared__ unsigned long long keys[END_THREADS / 32];
    key = greatest(key);
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < END_THREADS / 32; i++)
        if (keys[i] > key) key = keys[i];
    atomicMax(a.best, key);
    __threadfence();
    if (atomicAdd(a.best + 1, 1ull) != gridDim.x - 1) return;
    *a.told = atomicExch(a.best, 0ull);
    atomicExch(a.best + 1, 0ull);
}

static __global__ void end_kernel(const struct EndArgs a)
{
    let_next_begin();
    wait_for_inputs();
    int head = blockIdx.x * blockDim.x + threadIdx.x;
    if (head < a.n_heads) {
        struct CudaPageSlot slot = a.slots[head];
        struct CudaPageRef *refs = a.table.refs + (size_t)head * a.table.stride;
        int n = a.table.n_refs[head];
        if (slot.at == 0) {
            if (n < a.table.stride) refs[n] = {slot.page, 1, 0};
            a.table.n_refs[head] = n + 1;
        } else {
            refs[n - 1].len++;
        }
        int past = ++a.table.n_tokens[head];
        if (a.masked)
            a.table.seen[head] =
                pages_seen(a.table.seen[head], refs, a.table.n_refs[head], past, a.sinks);
    }
    find_best(a);
}

static int n_heads(const struct Device *d)
{
    return d->model->cfg.n_layers * d->model->cfg.n_kv_heads;
}

int step_end(struct Device *d)
{
    struct EndArgs a = {d->s.logits,     d->model->output.rows,
                        d->s.best,       &d->step.host->best,
                        d->s.table,      d->s.slots,
                        n_heads(d),      d->s.masks.on,
                        d->s.masks.sinks};
    TRY(tier_join(d));
    CUDA_TRY(launch_dependent<end_kernel>(END_BLOCKS, END_THREADS, 0, d->stream, a));
    return PC_OK;
}

/* ==== Recording ==== */

static int step_begin(struct Device *d)
{
    struct BeginArgs a = begin_args(d);
    a.tokens = &d->step.host->token;
    a.pos = &d->step.host->pos;
    a.n_slots = n_heads(d);
    a.told = d->step.host->slots;
    a.slots = d->s.slots;
    CUDA_TRY(rows_begin(&a, d->stream));
    return PC_OK;
}

int cuda_record(struct Device *d, bool on)
{
    cudaGraph_t graph = NULL;
    if (on) {
        if (n_heads(d) > STEP_HEADS || n_heads(d) > END_BLOCKS * END_THREADS)
            return err_set(PC_EDEVICE,
                           "the cuda backend decodes with up to %d KV heads of all layers",
                           STEP_HEADS);
        forget_one(d, d->step.kind);
        CUDA_TRY(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
        d->step.recording = true;
        d->step.noted = 0;
        return step_begin(d);
    }
    d->step.recording = d->copying = false;
    CUDA_TRY(cudaStreamEndCapture(d->stream, &graph));
    cudaError_t e = cudaGraphInstantiate(&d->step.graph[d->step.kind], graph, 0);
    cudaGraphDestroy(graph);
    return e == cudaSuccess ? PC_OK : cuda_fail(e, "recording a step");
}

bool cuda_recorded(const struct Device *d)
{
    return d->step.graph[d->step.kind];
}

/* ==== Replaying ==== */

/* Every head's token, in order. */
static int tell_slots(struct Device *d, const struct KvWrite *writes, int n)
{
    bool good = n == d->step.noted && n == n_heads(d);
    for (int i = 0; good && i < n; i++) {
        const struct KvWrite *w = &writes[i];
        good = w->kv_head == i % d->model->cfg.n_kv_heads && w->n == 1 && !w->index;
        d->step.host->slots[i] = {w->page.page, (uint32_t)w->at};
    }
    if (good) return PC_OK;
    return err_set(PC_EINTERNAL, "%d writes for a step that was recorded with %d", n,
                   d->step.noted);
}

static int best_token(const struct Device *d, int *best)
{
    uint32_t bits = (uint32_t)(d->step.host->best >> 32);
    const uint32_t none = ~0xff800000u; /* the bits that -inf has in a key */
    *best = (int)~(uint32_t)d->step.host->best;
    if (bits == BROKEN)
        return err_set(PC_EINTERNAL,
                       "the logit of token %d is no number; the model's output is broken", *best);
    if (bits == none)
        return err_set(PC_EINTERNAL, "no token is possible; the model's output is broken");
    return PC_OK;
}

int cuda_replay(struct Device *d, const struct KvWrite *writes, int n, float *logits, int *best)
{
    Range range("decode step");
    TRY(tell_slots(d, writes, n));
    d->step.grown = false;
    CUDA_TRY(cudaGraphLaunch(d->step.graph[d->step.kind], d->stream));
    if (logits)
        TRY(dev_download(d, logits, d->s.logits, (size_t)d->model->output.rows * sizeof(float)));
    else
        TRY(dev_wait(d));
    d->step.grown = true;
    d->step.n_since++;
    return logits ? PC_OK : best_token(d, best);
}

/* device.cu - the CUDA backend's table: lifecycle, memory, transfers, and the start of a batch. */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Errors ==== */

int cuda_fail(cudaError_t e, const char *what)
{
    cudaGetLastError(); /* an error that is not sticky is done with */
    if (e != cudaErrorMemoryAllocation)
        return err_set(PC_EDEVICE, "the GPU failed: %s (%s)", cudaGetErrorString(e), what);
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    return err_set(
        PC_ENOMEM,
        "the GPU has no room for this: %.2f of %.2f GiB are free (other processes may use it); "
        "try a smaller --wave, --kv-cap, --keep or --chunk, or --backend cpu",
        (double)free_bytes / (1 << 30), (double)total / (1 << 30));
}

/* ==== Lifecycle ==== */

enum { RING_BYTES = 32 << 20, LEAST_CAPABILITY = 80 };

static bool cuda_available(void)
{
    int n = 0, major = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        cudaGetLastError();
        return false;
    }
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
           major * 10 >= LEAST_CAPABILITY;
}

static void cuda_close(struct Device *d)
{
    if (!d) return;
    peers_close(d);
    if (d->stream) cudaStreamSynchronize(d->stream);
    step_forget(d);
    weights_close(d);
    if (d->gemm) gemm_close(d->gemm);
    dev_free(d, d->workspace);
    dev_free(d, d->block);
    dev_free(d, d->inv_freq);
    if (d->ring.data) cudaFreeHost(d->ring.data);
    if (d->step.host) cudaFreeHost(d->step.host);
    mem_free(d->step.told);
    if (d->stream) cudaStreamDestroy(d->stream);
    mem_free(d);
}

static int describe_card(struct Device *d)
{
    struct cudaDeviceProp p;
    CUDA_TRY(cudaGetDeviceProperties(&p, 0));
    d->n_sm = p.multiProcessorCount;
    d->capability = p.major * 10 + p.minor;
    if (d->capability < LEAST_CAPABILITY)
        return err_set(PC_EDEVICE,
                       "%s has compute capability %d.%d; 8.0 is the least; use --backend cpu",
                       p.name, p.major, p.minor);
    if (d->fp8 && d->capability < 89)
        return err_set(PC_EDEVICE, "%s has no fp8; use --precision bf16", p.name);
    snprintf(d->text, sizeof d->text, "cuda %s, %.120s", d->fp8 ? "fp8" : "bf16", p.name);
    return PC_OK;
}

/* cuBLASLt wants rows of 16 bytes. */
static int check_shape(const struct ModelConfig *m, bool fp8)
{
    int step = fp8 ? 16 : 8, heads = m->n_heads * m->head_dim;
    if (m->head_dim % 8 || m->head_dim > 256)
        return err_set(PC_EDEVICE,
                       "the cuda backend has heads of up to 256 values, in multiples of 8, this "
                       "model of %d; use --backend cpu",
                       m->head_dim);
    if (m->dim % step || m->hidden_dim % step || heads % step)
        return err_set(
            PC_EDEVICE,
            "the cuda backend has widths in multiples of %d%s, this model %d, %d and %d; "
            "use %s",
            step, fp8 ? " with fp8" : "", m->dim, m->hidden_dim, heads,
            fp8 ? "--precision bf16" : "--backend cpu");
    return PC_OK;
}

static int open_parts(struct Device *d)
{
    TRY(check_shape(&d->model->cfg, d->fp8));
    TRY(describe_card(d));
    CUDA_TRY(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaMallocHost(&d->ring.data, RING_BYTES));
    d->ring.size = RING_BYTES;
    CUDA_TRY(cudaMallocHost(&d->step.host, sizeof *d->step.host));
    const struct ModelConfig *m = &d->model->cfg;
    d->step.told = (int *)mem_alloc((size_t)m->n_layers * m->n_kv_heads, sizeof(int));
    if (!d->step.told) return PC_ENOMEM;
    d->workspace = dev_alloc(d, GEMM_WORKSPACE);
    d->inv_freq = (float *)dev_alloc(d, sizeof(float) * (size_t)(m->rope_dim / 2 + 1));
    if (!d->workspace || !d->inv_freq) return PC_ENOMEM;
    d->gemm = gemm_open(d->workspace);
    if (!d->gemm) return err_set(PC_EDEVICE, "cuBLASLt could not be opened");
    TRY(weights_open(d));
    d->weight_bytes = d->in_use;
    return PC_OK;
}

static int cuda_open(const struct DeviceOptions *o, struct Device **out)
{
    if (o->precision == PRECISION_INT16 || o->precision == PRECISION_F32)
        return err_set(PC_ECONFIG,
                       "the cuda backend computes in bf16 or fp8; use --precision auto");
    if (!cuda_available())
        return err_set(PC_EDEVICE, "no GPU of compute capability 8.0 or more was found; use "
                                   "--backend cpu");
    struct Device *d = (struct Device *)mem_alloc(1, sizeof *d);
    if (!d) return PC_ENOMEM;
    d->model = o->model;
    d->fp8 = o->precision == PRECISION_FP8;
    d->threads = o->threads > 0 ? o->threads : 1;
    d->limit = o->gpu_memory;
    d->format = o->kv_type == KV_AUTO ? CUDA_PAGE_BF16
                : o->kv_type == KV_Q8 ? CUDA_PAGE_Q8
                                      : CUDA_PAGE_Q4;
    int status = open_parts(d);
    if (status < 0)
        cuda_close(d);
    else
        *out = d;
    return status;
}

static const char *cuda_describe(const struct Device *d)
{
    return d->text;
}

static size_t cuda_page_bytes(const struct Device *d)
{
    return page_size(d->format, d->model->cfg.head_dim);
}

static const char *cuda_page_format(const struct Device *d)
{
    return d->fp8 ? "cuda bf16, fp8" : "cuda bf16, bf16";
}

/* ==== Memory ==== */

static struct DevBlock *find_block(const struct Device *d, const void *p)
{
    struct DevBlock *b = d->blocks;
    while (b && b->data != p) b = b->next;
    return b;
}

/* Scratch of an earlier run that this one has not asked for yet. */
static bool give_up_scratch(struct Device *d)
{
    const struct DevBlock *b = d->block ? find_block(d, d->block) : NULL;
    if (!b || b->bytes) return false;
    cudaGetLastError();
    dev_free(d, d->block);
    d->block = NULL;
    d->block_bytes = 0;
    return true;
}

/* Every block has its record on the host, so what is freed can be counted, and tests make the record fail. */
void *dev_alloc(struct Device *d, size_t bytes)
{
    double gib = 1 << 30;
    if (d->limit && d->in_use + bytes > d->limit) {
        err_set(
            PC_ENOMEM,
            "%.2f GiB of the GPU are in use and %.2f more are wanted, but --gpu-memory allows %.2f",
            (double)d->in_use / gib, (double)bytes / gib, (double)d->limit / gib);
        return NULL;
    }
    struct DevBlock *b = (struct DevBlock *)mem_alloc(1, sizeof *b);
    if (!b) return NULL;
    cudaError_t e = cudaMalloc(&b->data, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation && give_up_scratch(d))
        e = cudaMalloc(&b->data, bytes ? bytes : 1);
    if (e != cudaSuccess) {
        mem_free(b);
        cuda_fail(e, "cudaMalloc");
        return NULL;
    }
    b->bytes = bytes;
    b->next = d->blocks;
    d->blocks = b;
    d->in_use += bytes;
    if (d->in_use > d->peak) d->peak = d->in_use;
    return b->data;
}

void dev_free(struct Device *d, void *p)
{
    for (struct DevBlock **at = &d->blocks; p && *at; at = &(*at)->next) {
        struct DevBlock *b = *at;
        if (b->data != p) continue;
        d->in_use -= b->bytes;
        *at = b->next;
        cudaFree(b->data);
        mem_free(b);
        return;
    }
}

void dev_count(struct Device *d, const void *p, size_t bytes)
{
    struct DevBlock *b = find_block(d, p);
    d->in_use += bytes - b->bytes;
    b->bytes = bytes;
    if (d->in_use > d->peak) d->peak = d->in_use;
}

static size_t cuda_peak(struct Device *d, bool reset)
{
    if (reset) {
        if (d->block) dev_count(d, d->block, 0);
        d->peak = d->in_use;
    }
    return d->peak - d->weight_bytes;
}

/* Rows that fill the card many times over; a wider model needs fewer. */
static int wave_rows(const struct ModelConfig *m)
{
    int rows = (int)(((int64_t)16384 * 4096) / m->dim);
    return rows < 16384 ? 16384 : rows > 131072 ? 131072 : rows;
}

static void cuda_limits(const struct Device *d, struct DeviceLimits *out)
{
    enum { SEGMENT_ROWS = 8192 };
    size_t free_bytes = 0, total = 0, reserve = (size_t)256 << 20; /* for the driver's own needs */
    cudaMemGetInfo(&free_bytes, &total);
    free_bytes += d->block_bytes; /* given back before the next run takes its own */
    free_bytes = free_bytes > reserve ? free_bytes - reserve : 0;
    size_t most = 0;
    if (d->limit) {
        most = d->limit > d->weight_bytes ? d->limit - d->weight_bytes : 1;
        if (most < free_bytes) free_bytes = most;
    }
    int sm_khz = 0, memory_khz = 0, bus_bits = 0;
    cudaDeviceGetAttribute(&sm_khz, cudaDevAttrClockRate, 0);
    cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, 0);
    cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, 0);
    /* bf16 products and sums of one multiprocessor in a cycle, dense */
    double per_cycle = (d->capability >= 90 ? 4096 : 2048) * (d->fp8 ? 2 : 1);
    *out = (struct DeviceLimits){.memory = free_bytes,
                                 .most = most,
                                 .own_memory = true,
                                 .records = usual_head(d->model->cfg.head_dim),
                                 .own_pasts = true,
                                 .keeps_pages = true,
                                 .wave_rows = wave_rows(&d->model->cfg),
                                 .segment_rows = SEGMENT_ROWS,
                                 .page_rows = usual_head(d->model->cfg.head_dim)
                                                  ? PAGED_ROWS * d->model->cfg.n_kv_heads /
                                                        d->model->cfg.n_heads
                                                  : 0,
                                 .flops = per_cycle * d->n_sm * sm_khz * 1e3,
                                 .bandwidth = 2e3 * memory_khz * bus_bits / 8,
                                 .below = "host memory"};
}

/* ==== Transfers ==== */

int dev_stage(struct Device *d, size_t bytes, void **out)
{
    if (bytes > d->ring.size)
        return err_set(PC_EINTERNAL, "%zu bytes at once for a ring of %zu", bytes, d->ring.size);
    if (d->ring.at + bytes > d->ring.size) {
        TRY(dev_wait(d)); /* what the ring held has arrived */
        d->ring.at = 0;
    }
    *out = d->ring.data + d->ring.at;
    d->ring.at += (bytes + 255) & ~(size_t)255;
    return PC_OK;
}

/* Into the ring. One core does not copy as fast as the card takes it. */
static void copy_in(const struct Device *d, uint8_t *to, const uint8_t *from, size_t bytes)
{
    const int64_t slice = 1 << 20, n = (int64_t)(bytes / slice);
#pragma omp parallel for schedule(static) num_threads(d->threads) if (n > 3)
    for (int64_t i = 0; i <= n; i++)
        memcpy(to + i * slice, from + i * slice, i < n ? slice : bytes - (size_t)(n * slice));
}

int dev_upload(struct Device *d, void *dst, const void *src, size_t bytes)
{
    const uint8_t *from = (const uint8_t *)src;
    uint8_t *to = (uint8_t *)dst;
    while (bytes) {
        void *staged = NULL;
        size_t n = bytes < d->ring.size / 2 ? bytes : d->ring.size / 2;
        TRY(dev_stage(d, n, &staged));
        copy_in(d, (uint8_t *)staged, from, n);
        CUDA_TRY(cudaMemcpyAsync(to, staged, n, cudaMemcpyHostToDevice, d->stream));
        from += n, to += n, bytes -= n;
    }
    return PC_OK;
}

/* Through the ring: the driver's own way to pageable memory is slower. */
int dev_download(struct Device *d, void *dst, const void *src, size_t bytes)
{
    const uint8_t *from = (const uint8_t *)src;
    uint8_t *to = (uint8_t *)dst;
    while (bytes) {
        void *staged = NULL;
        size_t n = bytes < d->ring.size / 2 ? bytes : d->ring.size / 2;
        TRY(dev_stage(d, n, &staged));
        CUDA_TRY(cudaMemcpyAsync(staged, from, n, cudaMemcpyDeviceToHost, d->stream));
        TRY(dev_wait(d));
        memcpy(to, staged, n);
        from += n, to += n, bytes -= n;
    }
    return PC_OK;
}

/* ==== The table ==== */

extern "C" const struct Backend backend_cuda = {
    .name = "cuda",
    .act_bytes = sizeof(bf16),
    .available = cuda_available,
    .makes_weights = true,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .limits = cuda_limits,
    .peak = cuda_peak,
    .page_bytes = cuda_page_bytes,
    .page_format = cuda_page_format,
    .scratch_bytes = cuda_scratch_bytes,
    .reserve = cuda_reserve,
    .alloc = dev_alloc,
    .release = dev_free,
    .upload = dev_upload,
    .download = dev_download,
    .compact = cuda_compact,
    .copy = cuda_copy,
    .begin = cuda_begin,
    .turns = cuda_turns,
    .norm_linear = cuda_norm_linear,
    .linear_add = cuda_linear_add,
    .ffn_add = cuda_ffn_add,
    .rope = cuda_rope,
    .attention = cuda_attend,
    .attn_mass = cuda_mass,
    .attention_join = cuda_join,
    .keep = cuda_keep,
    .kv_write = cuda_kv_write,
    .kv_pack = cuda_kv_pack,
    .kv_gather = cuda_kv_gather,
    .kv_read = cuda_kv_read,
    .index_bytes = cuda_index_bytes,
    .kv_index = cuda_kv_index,
    .page_counts = cuda_page_counts,
    .tier_bytes = cuda_tier_bytes,
    .tier_open = cuda_tier_open,
    .tier_close = cuda_tier_close,
    .tier_counts = cuda_tier_counts,
    .logits = cuda_logits,
    .record = cuda_record,
    .recorded = cuda_recorded,
    .replay = cuda_replay,
    .nll = cuda_nll,
    .peers = &cuda_peers,
};

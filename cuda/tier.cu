/* tier.cu - pages of the KV cache in the host's memory, copies of the best on the device (headwise.md D.6).
 *
 * The host's memory is pinned and the device reads and writes it as its own: survivors of chunks go there from the kernel that
 * writes pages, the question reads them from there, and a row's choice fetches what it lacks, without a word of the host's
 * (place_pages.cu). A row that waits has the copies made before its attention. One that does not wait has them made on a stream
 * of its own beside the rest of the step, at whose end they are there: so what is late is late for one token, and the same
 * pages are on every run. What that memory does not hold lies in a file: tier_file.cu.
 */
#include "device.h"

#include <string.h>

struct PageTier {
    struct TierPlan plan;
    uint8_t *below;        /* [n_homes + n_work, page_bytes] pinned host memory */
    struct TierFile *file; /* of what it does not hold; NULL: it holds all */
    uint32_t n_near;
    size_t page_bytes;
    int n_kv_heads;
    uint8_t *near;
    void *block;            /* all tables on the device, cut below */
    struct CudaSlots slots; /* of layer 0 */
    cudaStream_t stream;    /* of rows that do not wait */
    cudaEvent_t chosen, copied;
};

/* ==== Tables ==== */

static size_t cut_tables(const struct Device *d, const struct TierPlan *p, uint8_t *base,
                         struct CudaSlots *out)
{
    struct Cut c = {base, 0};
    size_t heads = (size_t)p->n_heads, slots = heads * (size_t)p->slots,
           pages = heads * (size_t)p->max_refs,
           layer = (size_t)d->model->cfg.n_kv_heads * (size_t)p->slots;
    out->slot_of = (int *)cut(&c, pages * sizeof(int));
    out->page_at = (int *)cut(&c, slots * sizeof(int));
    out->first = (const uint32_t *)cut(&c, heads * sizeof(uint32_t));
    out->share = (uint32_t *)cut(&c, p->late ? pages * sizeof(uint32_t) : 0);
    out->copies = (struct CudaPageCopy *)cut(&c, slots * sizeof *out->copies);
    out->n_copies = (int *)cut(&c, heads * sizeof(int));
    out->take = (int *)cut(&c, layer * sizeof(int));
    out->give = (int *)cut(&c, layer * sizeof(int));
    out->held = (int *)cut(&c, layer * sizeof(int));
    out->counts = (unsigned long long *)cut(&c, CUDA_TIER_COUNTS * sizeof *out->counts);
    out->slots = p->slots;
    out->max_refs = p->max_refs;
    out->late = p->late;
    return c.at;
}

void cuda_tier_bytes(const struct Device *d, const struct TierPlan *p, struct TierBytes *out)
{
    struct CudaSlots unused = {};
    *out = {cut_tables(d, p, NULL, &unused),
            ((size_t)p->n_homes + p->n_work) * page_size(d->format, d->model->cfg.head_dim), 0};
    if (tier_has_file(p)) file_bytes(d, p, out);
}

struct CudaBelow tier_below(const struct PagePool *pool)
{
    const struct PageTier *t = pool ? pool->tier : NULL;
    if (!t) return {NULL, 0, NULL};
    return {t->below - (size_t)t->n_near * t->page_bytes, t->n_near,
            t->file ? file_frames(t->file) : NULL};
}

struct CudaSlots tier_slots(const struct PagePool *pool, int layer)
{
    const struct PageTier *t = pool->tier;
    if (!t) return {};
    struct CudaSlots s = t->slots;
    size_t heads = (size_t)layer * t->n_kv_heads;
    s.slot_of += heads * (size_t)s.max_refs;
    s.page_at += heads * (size_t)s.slots;
    s.first += heads;
    if (s.late) s.share += heads * (size_t)s.max_refs;
    if (t->file) s.asks = file_asks(t->file, layer);
    s.copies += heads * (size_t)s.slots;
    s.n_copies += heads;
    return s;
}

/* ==== Copies ==== */

/* Enough to fill the link, since what is read from there is long under way. */
static int copy_blocks(const struct Device *d)
{
    int n = 2 * d->n_sm / d->model->cfg.n_kv_heads;
    return n > 1 ? n : 1;
}

static int queue_copies(struct Device *d, const struct PagePool *pool, int layer, cudaStream_t on)
{
    struct PageTier *t = pool->tier;
    struct CudaSlots s = tier_slots(pool, layer);
    struct CudaCopies c = {s.copies, s.n_copies, s.slots,          d->model->cfg.n_kv_heads,
                           0,        t->near,    tier_below(pool), t->page_bytes};
    c.n_blocks = copy_blocks(d);
    c.apart = on != d->stream;
    CUDA_TRY(cuda_copy_pages(&c, on));
    return PC_OK;
}

int tier_fetch(struct Device *d, const struct PagePool *pool, const struct AttnArgs *a)
{
    struct PageTier *t = pool->tier;
    cudaStream_t on = d->stream;
    if (a->select_kept && d->step.kind != STEP_CALLS) return PC_OK;
    if (t->plan.late) {
        CUDA_TRY(cudaEventRecord(t->chosen, d->stream));
        CUDA_TRY(cudaStreamWaitEvent(t->stream, t->chosen, 0));
        on = t->stream;
        d->copying = true;
    }
    if (t->file) TRY(file_fetch(t->file, a->layer, a->select_kept, on));
    return a->select_kept ? PC_OK : queue_copies(d, pool, a->layer, on);
}

/* What begins early waits for the kernel queued before it alone: so one has to stand for all copies. */
static __global__ void joined_kernel(void) {}

int tier_join(struct Device *d)
{
    if (!d->copying) return PC_OK;
    d->copying = false;
    CUDA_TRY(cudaEventRecord(d->tier->copied, d->tier->stream));
    CUDA_TRY(cudaStreamWaitEvent(d->stream, d->tier->copied, 0));
    joined_kernel<<<1, 1, 0, d->stream>>>();
    CUDA_TRY(cudaGetLastError());
    return PC_OK;
}

/* ==== Pages in a file ==== */

struct TierFile *tier_file(const struct PagePool *pool)
{
    return pool && pool->tier ? pool->tier->file : NULL;
}

int tier_status(const struct Device *d)
{
    return d->tier && d->tier->file ? file_status(d->tier->file) : PC_OK;
}

/* Rows that do not wait read no page where it lies. */
enum StepKind tier_kept(const struct PagePool *pool)
{
    const struct TierFile *file = tier_file(pool);
    return file && !pool->tier->plan.late && file_spills(file) ? STEP_CALLS : STEP_KEEPS;
}

/* ==== Open and close ==== */

static int pin_below(struct PageTier *t)
{
    size_t bytes = ((size_t)t->plan.n_homes + t->plan.n_work) * t->page_bytes;
    cudaError_t e = cudaMallocHost(&t->below, bytes ? bytes : 1);
    if (e == cudaSuccess) return PC_OK;
    t->below = NULL;
    if (e != cudaErrorMemoryAllocation) return cuda_fail(e, "cudaMallocHost");
    cudaGetLastError();
    return err_set(PC_ENOMEM,
                   "the host cannot pin %.2f GiB for pages below; lower --kv-host, --keep or "
                   "--kv-cap, or give --kv-type q8 or q4",
                   (double)bytes / (1 << 30));
}

static int fill_tables(struct Device *d, struct PageTier *t)
{
    const struct TierPlan *p = &t->plan;
    size_t heads = (size_t)p->n_heads;
    uint32_t at = p->cache;
    uint32_t *first = (uint32_t *)mem_alloc(heads, sizeof *first);
    if (!first) return PC_ENOMEM;
    for (size_t h = 0; h < heads; h++) {
        first[h] = at;
        if (!(p->streams && p->streams[h])) at += (uint32_t)p->slots;
    }
    int status = dev_upload(d, (void *)t->slots.first, first, heads * sizeof *first);
    mem_free(first);
    TRY(status);
    CUDA_TRY(cudaMemsetAsync(t->slots.slot_of, 0xff, heads * (size_t)p->max_refs * sizeof(int),
                             d->stream));
    CUDA_TRY(
        cudaMemsetAsync(t->slots.page_at, 0xff, heads * (size_t)p->slots * sizeof(int), d->stream));
    CUDA_TRY(
        cudaMemsetAsync(t->slots.counts, 0, CUDA_TIER_COUNTS * sizeof *t->slots.counts, d->stream));
    return PC_OK;
}

static int open_stream(struct PageTier *t)
{
    CUDA_TRY(cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaEventCreateWithFlags(&t->chosen, cudaEventDisableTiming));
    CUDA_TRY(cudaEventCreateWithFlags(&t->copied, cudaEventDisableTiming));
    return PC_OK;
}

int cuda_tier_open(struct Device *d, const struct TierPlan *plan, struct PagePool *pool)
{
    struct PageTier *t = (struct PageTier *)mem_alloc(1, sizeof *t);
    if (!t) return PC_ENOMEM;
    pool->tier = d->tier = t;
    t->plan = *plan;
    t->n_near = pool->n_near;
    t->n_kv_heads = d->model->cfg.n_kv_heads;
    t->near = pool->data;
    t->page_bytes = pool->page_bytes;
    t->block = dev_alloc(d, cut_tables(d, plan, NULL, &t->slots));
    if (!t->block) return PC_ENOMEM;
    cut_tables(d, plan, (uint8_t *)t->block, &t->slots);
    t->slots.n_near = pool->n_near;
    TRY(fill_tables(d, t));
    if (plan->late) TRY(open_stream(t));
    TRY(pin_below(t));
    return tier_has_file(plan) ? file_open(d, plan, t->below, &t->file) : PC_OK;
}

void cuda_tier_close(struct Device *d, struct PagePool *pool)
{
    struct PageTier *t = pool->tier;
    cudaStreamSynchronize(d->stream);
    step_forget(d); /* its records name the tables */
    if (t->stream) cudaStreamSynchronize(t->stream);
    d->copying = false;
    d->tier = NULL;
    if (t->copied) cudaEventDestroy(t->copied);
    if (t->chosen) cudaEventDestroy(t->chosen);
    if (t->stream) cudaStreamDestroy(t->stream);
    if (t->file) file_close(d, t->file);
    if (t->below) cudaFreeHost(t->below);
    dev_free(d, t->block);
    mem_free(t);
    pool->tier = NULL;
}

int cuda_tier_counts(struct Device *d, const struct PagePool *pool, struct TierCounts *out)
{
    unsigned long long n[CUDA_TIER_COUNTS];
    TRY(tier_join(d));
    TRY(dev_download(d, n, pool->tier->slots.counts, sizeof n));
    *out = {};
    out->wanted = (int64_t)n[CUDA_TIER_WANTED];
    out->missed = (int64_t)n[CUDA_TIER_MISSED];
    out->fetched = (int64_t)n[CUDA_TIER_FETCHED];
    out->late = (int64_t)n[CUDA_TIER_LATE];
    out->through = (int64_t)n[CUDA_TIER_THROUGH];
    if (pool->tier->file) out->from_file = file_reads(pool->tier->file);
    if (n[CUDA_TIER_HEADS])
        out->late_share =
            (double)n[CUDA_TIER_SHARE] / (double)(1 << 30) / (double)n[CUDA_TIER_HEADS];
    return PC_OK;
}

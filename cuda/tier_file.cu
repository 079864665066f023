/* tier_file.cu - pages of the KV cache that the host's memory does not hold either (headwise.md D.6).
 *
 * They lie in a file and come to frames of pinned memory (src/page_frames.h), where the device reads and writes them as it does
 * all that lies below; a table on the device says which frame a page is in. What whole batches read or write is brought by
 * the host before their kernels are queued. A row that chooses pages says what it asks for in pinned memory; then its stream calls
 * the host, which reads from the file, and goes on when that is there: in a recorded step too, since a graph may hold such a call.
 * Rows that keep a choice need none, unless pages of it are read from frames that others may take.
 */
#include "device.h"

extern "C" {
#include "src/page_frames.h"
}

#include <string.h>

/* Moves of pages, for the device's table. */
struct Moves {
    int n;
    struct FrameJob list[]; /* [n_work] */
};

/* What a call of the host is about: a layer's heads, whose row chooses pages or keeps a choice. */
struct Call {
    struct TierFile *file;
    int layer;
    bool kept;
};

struct TierFile {
    struct PageFrames frames;
    struct CudaAsks asks; /* of layer 0; pinned, like moves and memory */
    struct Moves *moves;
    uint8_t *memory;    /* [n_homes + n_work, page_bytes] */
    void *notes;        /* asks and moves, cut below */
    uint32_t *frame;    /* [n_below] on the device: see struct CudaBelow */
    struct Call *calls; /* [n_layers, 2] */
    bool *
        spills; /* [n_layers] pages of the choice that stands are read from frames that others may take */
    int n_layers, n_kv_heads, max_refs;
};

/* ==== Rounds of the host ==== */

/* The same places in the device's table. */
static __global__ void move_pages_kernel(const struct Moves *moves, uint32_t *frame)
{
    for (int i = threadIdx.x; i < moves->n; i += blockDim.x)
        frame[moves->list[i].in] = moves->list[i].frame;
}

static int queue_moves(struct TierFile *t, cudaStream_t s)
{
    move_pages_kernel<<<1, 256, 0, s>>>(t->moves, t->frame);
    CUDA_TRY(cudaGetLastError());
    return PC_OK;
}

static void tell_moves(struct TierFile *t)
{
    t->moves->n = t->frames.n_jobs;
    memcpy(t->moves->list, t->frames.jobs, sizeof *t->moves->list * (size_t)t->frames.n_jobs);
}

int file_begin(struct Device *d, struct TierFile *t)
{
    TRY(tier_join(d));
    TRY(dev_wait(d)); /* nobody reads or writes a frame */
    frames_begin(&t->frames);
    return PC_OK;
}

/* Homes change hands only in calls of the stream, and none is under way while whole batches run. */
bool file_at_home(const struct TierFile *t, uint32_t page)
{
    return t->frames.frame_of[page] < t->frames.plan.n_homes;
}

int file_need(struct TierFile *t, uint32_t page)
{
    return frames_need(&t->frames, page);
}

/* What is queued next may begin before a kernel just before it has ended, and reads the table. */
int file_run(struct Device *d, struct TierFile *t)
{
    TRY(frames_run(&t->frames));
    tell_moves(t);
    if (t->moves->n == 0) return PC_OK;
    TRY(queue_moves(t, d->stream));
    return dev_wait(d);
}

void file_wrote(struct TierFile *t, uint32_t page)
{
    frames_wrote(&t->frames, page);
}

int file_flush(struct TierFile *t)
{
    return frames_flush(&t->frames);
}

int file_room(const struct TierFile *t)
{
    return (int)t->frames.plan.n_work;
}

const uint8_t *file_page(const struct TierFile *t, uint32_t page)
{
    return t->memory + t->frames.frame_of[page] * t->frames.store.page_bytes;
}

/* ==== What rows ask for ==== */

static struct CudaAsks asks_of(const struct TierFile *t, int layer)
{
    struct CudaAsks a = t->asks;
    size_t heads = (size_t)layer * t->n_kv_heads, refs = heads * (size_t)t->max_refs;
    a.n += heads;
    a.n_asked += heads;
    a.page += refs;
    a.score += refs;
    a.asked += refs;
    return a;
}

static struct FrameHead head_of(const struct TierFile *t, const struct CudaAsks *a, int head)
{
    static_assert(sizeof(struct CudaAsk) == sizeof(struct FrameAsk), "a list as it is");
    size_t first = (size_t)head * t->max_refs;
    return {a->n[head], a->n_asked[head], a->page + first, a->score + first,
            (const struct FrameAsk *)(a->asked + first)};
}

/* A kept choice has no scores: what it reads finds some frame. */
static int ask_head(struct PageFrames *f, const struct FrameHead *h, bool kept)
{
    if (!kept) return frames_ask(f, h);
    for (int i = 0; i < h->n_asked; i++) TRY(frames_need(f, h->page[h->asked[i].place]));
    return PC_OK;
}

/* Called by the stream, on a thread that may not call CUDA. */
static void CUDART_CB bring_asked(void *call)
{
    const struct Call *c = (const struct Call *)call;
    struct TierFile *t = c->file;
    struct CudaAsks a = asks_of(t, c->layer);
    int status = PC_OK;
    frames_begin(&t->frames);
    for (int h = 0; h < t->n_kv_heads && status == PC_OK; h++) {
        struct FrameHead head = head_of(t, &a, h);
        status = ask_head(&t->frames, &head, c->kept);
    }
    if (status < 0) frames_fail(&t->frames, status);
    frames_run(&t->frames); /* what fails is kept */
    if (!c->kept) t->spills[c->layer] = t->frames.n_spilled > 0;
    tell_moves(t);
}

int file_fetch(struct TierFile *t, int layer, bool kept, cudaStream_t s)
{
    CUDA_TRY(cudaLaunchHostFunc(s, bring_asked, &t->calls[2 * layer + kept]));
    return queue_moves(t, s);
}

struct CudaAsks file_asks(const struct TierFile *t, int layer)
{
    return asks_of(t, layer);
}

bool file_spills(const struct TierFile *t)
{
    for (int l = 0; l < t->n_layers; l++)
        if (t->spills[l]) return true;
    return false;
}

int file_status(const struct TierFile *t)
{
    return frames_status(&t->frames);
}

int64_t file_reads(const struct TierFile *t)
{
    return t->frames.n_read;
}

const uint32_t *file_frames(const struct TierFile *t)
{
    return t->frame;
}

/* ==== Open and close ==== */

static size_t cut_notes(const struct TierPlan *p, uint8_t *base, struct TierFile *t)
{
    struct Cut c = {base, 0};
    size_t heads = (size_t)p->n_heads, refs = heads * (size_t)p->max_refs;
    t->asks.n = (int *)cut(&c, heads * sizeof(int));
    t->asks.n_asked = (int *)cut(&c, heads * sizeof(int));
    t->asks.page = (uint32_t *)cut(&c, refs * sizeof(uint32_t));
    t->asks.score = (float *)cut(&c, refs * sizeof(float));
    t->asks.asked = (struct CudaAsk *)cut(&c, refs * sizeof(struct CudaAsk));
    t->moves = (struct Moves *)cut(&c, sizeof(struct Moves) + p->n_work * sizeof(struct FrameJob));
    return c.at;
}

static struct FramePlan frame_plan(const struct Device *d, const struct TierPlan *p)
{
    return {p->n_below, p->n_homes, p->n_work, p->max_refs, d->threads};
}

void file_bytes(const struct Device *d, const struct TierPlan *p, struct TierBytes *out)
{
    struct FramePlan plan = frame_plan(d, p);
    struct TierFile unused = {};
    size_t page = page_size(d->format, d->model->cfg.head_dim);
    out->device += p->n_below * sizeof(uint32_t);
    out->host += cut_notes(p, NULL, &unused) + frames_bytes(&plan) +
                 (size_t)d->model->cfg.n_layers * (2 * sizeof(struct Call) + sizeof(bool));
    out->disk += p->n_below * page;
}

static int alloc_calls(struct TierFile *t)
{
    t->calls = (struct Call *)mem_alloc((size_t)t->n_layers * 2, sizeof *t->calls);
    t->spills = (bool *)mem_alloc((size_t)t->n_layers, sizeof *t->spills);
    if (!t->calls || !t->spills) return PC_ENOMEM;
    for (int i = 0; i < 2 * t->n_layers; i++) t->calls[i] = {t, i / 2, i % 2 == 1};
    return PC_OK;
}

static int alloc_notes(struct Device *d, const struct TierPlan *p, struct TierFile *t)
{
    size_t bytes = cut_notes(p, NULL, t);
    cudaError_t e = cudaMallocHost(&t->notes, bytes);
    if (e != cudaSuccess) t->notes = NULL;
    CUDA_TRY(e);
    cut_notes(p, (uint8_t *)t->notes, t);
    memset(t->notes, 0, bytes);
    t->frame = (uint32_t *)dev_alloc(d, p->n_below * sizeof *t->frame);
    if (!t->frame) return PC_ENOMEM;
    return dev_upload(d, t->frame, t->frames.frame_of, p->n_below * sizeof *t->frame);
}

int file_open(struct Device *d, const struct TierPlan *p, uint8_t *memory, struct TierFile **out)
{
    struct PageStore store;
    struct FramePlan plan = frame_plan(d, p);
    struct TierFile *t = (struct TierFile *)mem_alloc(1, sizeof *t);
    if (!t) return PC_ENOMEM;
    *out = t;
    t->memory = memory;
    t->n_layers = d->model->cfg.n_layers;
    t->n_kv_heads = d->model->cfg.n_kv_heads;
    t->max_refs = p->max_refs;
    int status =
        page_store_file(&store, p->dir, page_size(d->format, d->model->cfg.head_dim), p->n_below);
    if (status < 0) store.close(&store);
    TRY(status);
    TRY(frames_open(&t->frames, &plan, &store, memory));
    TRY(alloc_calls(t));
    return alloc_notes(d, p, t);
}

void file_close(struct Device *d, struct TierFile *t)
{
    frames_close(&t->frames);
    dev_free(d, t->frame);
    if (t->notes) cudaFreeHost(t->notes);
    mem_free(t->calls);
    mem_free(t->spills);
    mem_free(t);
}

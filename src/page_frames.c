/* page_frames.c - see page_frames.h. */
#include "page_frames.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>

/* ==== What goes wrong ==== */

void frames_fail(struct PageFrames *f, int status)
{
#pragma omp critical(frames_failure)
    if (f->status == PC_OK) {
        f->status = status;
        snprintf(f->text, sizeof f->text, "%s", err_text());
    }
}

int frames_status(const struct PageFrames *f)
{
    return f->status < 0 ? err_set(f->status, "%s", f->text) : PC_OK;
}

/* ==== Rounds ==== */

void frames_begin(struct PageFrames *f)
{
    f->round++;
    f->n_jobs = f->n_spilled = 0;
}

/* Notes that `page` takes a frame over. What was at home there may have to be written first. */
static int move_in(struct PageFrames *f, uint32_t page, uint32_t frame)
{
    uint32_t out = f->page_in[frame], from = f->frame_of[page];
    if ((uint32_t)f->n_jobs == f->plan.n_work)
        return err_set(PC_EINTERNAL, "more than %u pages of the KV cache move at once",
                       f->plan.n_work);
    if (out != NO_PAGE) f->frame_of[out] = NO_FRAME;
    if (from != NO_FRAME) f->page_in[from] = NO_PAGE;
    f->frame_of[page] = frame;
    f->page_in[frame] = page;
    f->jobs[f->n_jobs++] = (struct FrameJob){page, out, frame};
    return PC_OK;
}

/* A frame whose page this round does not need. */
static int spare_frame(struct PageFrames *f, uint32_t *frame)
{
    for (uint32_t i = 0; i < f->plan.n_work; i++) {
        uint32_t at = f->next;
        f->next = (at + 1) % f->plan.n_work;
        if (f->held[at] == f->round) continue;
        *frame = f->plan.n_homes + at;
        return PC_OK;
    }
    return err_set(PC_EINTERNAL, "more than %u pages of the KV cache are needed at once",
                   f->plan.n_work);
}

int frames_need(struct PageFrames *f, uint32_t page)
{
    uint32_t frame = f->frame_of[page];
    if (frame < f->plan.n_homes) return PC_OK;
    if (frame == NO_FRAME) {
        TRY(spare_frame(f, &frame));
        TRY(move_in(f, page, frame));
    }
    f->held[frame - f->plan.n_homes] = f->round;
    return PC_OK;
}

/* Out first: it is read where the other comes. */
static int run_job(struct PageFrames *f, const struct FrameJob *job)
{
    uint8_t *memory = f->memory + job->frame * f->store.page_bytes;
    if (job->out != NO_PAGE && !f->in_file[job->out]) {
        TRY(f->store.write(&f->store, job->out, memory));
        f->in_file[job->out] = 1;
#pragma omp atomic
        f->n_written++;
    }
    if (!f->in_file[job->in]) return PC_OK; /* it holds nothing yet */
#pragma omp atomic
    f->n_read++;
    return f->store.read(&f->store, job->in, memory);
}

int frames_run(struct PageFrames *f)
{
#pragma omp parallel for schedule(dynamic, 1) num_threads(f->plan.threads) if (f->n_jobs > 1)
    for (int i = 0; i < f->n_jobs; i++) {
        int status = run_job(f, &f->jobs[i]);
        if (status < 0) frames_fail(f, status);
    }
    return frames_status(f);
}

/* ==== What a row asks for ==== */

/* The homes that pages of the head have; returns how many asked pages have none. */
static int find_homes(struct PageFrames *f, const struct FrameHead *h)
{
    struct Residency *r = &f->slots;
    int without = 0;
    r->n_slots = 0;
    for (int i = 0; i < h->n; i++) {
        uint32_t frame = h->page[i] == NO_PAGE ? NO_FRAME : f->frame_of[h->page[i]];
        r->slot_of[i] = -1;
        if (frame >= f->plan.n_homes) continue;
        f->home[r->n_slots] = frame;
        r->page_at[r->n_slots] = i;
        r->slot_of[i] = r->n_slots++;
    }
    for (int i = 0; i < h->n_asked; i++) {
        f->wanted[i] = h->asked[i].place;
        without += r->slot_of[f->wanted[i]] < 0;
    }
    return without;
}

int frames_ask(struct PageFrames *f, const struct FrameHead *h)
{
    int n = find_homes(f, h);
    if (n) n = residency_fetch(&f->slots, h->score, f->wanted, h->n_asked, &f->work, f->fetch);
    for (int i = 0; i < n; i++)
        TRY(move_in(f, h->page[f->fetch[i].page], f->home[f->fetch[i].slot]));
    for (int i = 0; i < h->n_asked; i++) {
        uint32_t page = h->page[h->asked[i].place];
        TRY(frames_need(f, page));
        f->n_spilled += h->asked[i].stays && f->frame_of[page] >= f->plan.n_homes;
    }
    return PC_OK;
}

/* ==== Writing ==== */

enum { STALE, CURRENT, LEAVING }; /* of in_file */

void frames_wrote(struct PageFrames *f, uint32_t page)
{
    uint32_t frame = f->frame_of[page];
    if (frame >= f->plan.n_homes && f->in_file[page] != LEAVING)
        f->jobs[f->n_jobs++] = (struct FrameJob){page, NO_PAGE, frame};
    f->in_file[page] = frame < f->plan.n_homes ? STALE : LEAVING;
}

int frames_flush(struct PageFrames *f)
{
#pragma omp parallel for schedule(dynamic, 1) num_threads(f->plan.threads) if (f->n_jobs > 1)
    for (int i = 0; i < f->n_jobs; i++) {
        struct FrameJob *job = &f->jobs[i];
        int status =
            f->store.write(&f->store, job->in, f->memory + job->frame * f->store.page_bytes);
        if (status < 0) frames_fail(f, status);
        f->in_file[job->in] = CURRENT;
    }
    f->n_written += f->n_jobs;
    return frames_status(f);
}

/* ==== Open and close ==== */

/* Homes for evenly many of any pages in a row. */
static void give_homes(struct PageFrames *f)
{
    uint64_t homes = f->plan.n_homes, pages = f->plan.n_pages;
    for (uint32_t i = 0; i < f->plan.n_homes + f->plan.n_work; i++) f->page_in[i] = NO_PAGE;
    for (uint64_t p = 0; p < pages; p++) {
        uint64_t frame = p * homes / pages;
        bool has = (p + 1) * homes / pages > frame;
        f->frame_of[p] = has ? (uint32_t)frame : NO_FRAME;
        if (has) f->page_in[frame] = (uint32_t)p;
    }
}

static int alloc_scratch(struct PageFrames *f)
{
    size_t refs = (size_t)f->plan.max_refs;
    f->slots.page_at = mem_alloc(refs, sizeof *f->slots.page_at);
    f->slots.slot_of = mem_alloc(refs, sizeof *f->slots.slot_of);
    f->work.value = mem_alloc(refs, sizeof *f->work.value);
    f->work.from = mem_alloc(refs, sizeof *f->work.from);
    f->work.take = mem_alloc(refs, sizeof *f->work.take);
    f->work.held = mem_alloc(refs, sizeof *f->work.held);
    f->fetch = mem_alloc(refs, sizeof *f->fetch);
    f->home = mem_alloc(refs, sizeof *f->home);
    f->wanted = mem_alloc(refs, sizeof *f->wanted);
    return f->slots.page_at && f->slots.slot_of && f->work.value && f->work.from && f->work.take &&
                   f->work.held && f->fetch && f->home && f->wanted
               ? PC_OK
               : PC_ENOMEM;
}

int frames_open(struct PageFrames *f, const struct FramePlan *plan, const struct PageStore *store,
                uint8_t *memory)
{
    *f = (struct PageFrames){.plan = *plan, .store = *store, .memory = memory};
    f->frame_of = mem_alloc(plan->n_pages, sizeof *f->frame_of);
    f->page_in = mem_alloc((size_t)plan->n_homes + plan->n_work, sizeof *f->page_in);
    f->in_file = mem_alloc(plan->n_pages, sizeof *f->in_file);
    f->held = mem_alloc(plan->n_work, sizeof *f->held);
    f->jobs = mem_alloc(plan->n_work, sizeof *f->jobs);
    if (!f->frame_of || !f->page_in || !f->in_file || !f->held || !f->jobs) return PC_ENOMEM;
    TRY(alloc_scratch(f));
    give_homes(f);
    return PC_OK;
}

void frames_close(struct PageFrames *f)
{
    void *blocks[] = {f->frame_of,      f->page_in,    f->in_file,   f->held,          f->jobs,
                      f->slots.page_at, f->work.value, f->work.from, f->slots.slot_of, f->work.take,
                      f->work.held,     f->fetch,      f->home,      f->wanted};
    if (f->store.close) f->store.close(&f->store);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    memset(f, 0, sizeof *f);
}

size_t frames_bytes(const struct FramePlan *plan)
{
    const struct PageFrames *f = NULL;
    size_t pages = plan->n_pages, work = plan->n_work, refs = (size_t)plan->max_refs;
    return pages * (sizeof *f->frame_of + sizeof *f->in_file) + page_store_file_bytes(pages) +
           (plan->n_homes + work) * sizeof *f->page_in +
           work * (sizeof *f->held + sizeof *f->jobs) +
           refs * (2 * sizeof(int) + sizeof(float) + 2 * sizeof(int) + 1 + sizeof *f->fetch +
                   sizeof *f->home + sizeof *f->wanted);
}

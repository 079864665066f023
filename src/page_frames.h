/* page_frames.h - pages of the KV cache below a device, where the host's memory does not hold them all: frames in that memory,
 * and a file (headwise.md D.6).
 *
 * Every page has its place in the file. Some have a home too, a frame of their own, spread evenly over the pages' numbers, so
 * that every head has its share of them; the file need not have what a page at home holds. The other frames are for the work at
 * hand: pages without a home are brought there before the device reads or writes them, and go to the file as soon as they are
 * written. When a row asks for pages without a home, those of the highest scores take over the homes of the lowest in their own
 * head (eviction/residency).
 *
 * Functions that begin a round of work, name its pages and run it, from one thread at a time; reads and writes of a round run at
 * once. What failed is kept: the round's caller may be one that cannot return it.
 */
#ifndef PCOMP_PAGE_FRAMES_H
#define PCOMP_PAGE_FRAMES_H

#include "eviction/residency.h"
#include "page_store.h"

static const uint32_t NO_FRAME = UINT32_MAX, NO_PAGE = UINT32_MAX;

/* Frame [0, n_homes) is a home; n_work more are for the work at hand, at least as many as pages are ever asked for in one
 * round. */
struct FramePlan {
    uint32_t n_pages, n_homes, n_work;
    int max_refs; /* pages of a head, at most */
    int threads;
};

/* A page that comes to a frame, whose page goes. */
struct FrameJob {
    uint32_t in, out; /* out: NO_PAGE where nothing is lost */
    uint32_t frame;
};

struct FrameAsk {
    int place; /* of the page among its head's */
    int stays; /* 1: it is read in its frame, also by rows that choose no pages of their own */
};

/* A head's pages, and those that a row asks for. */
struct FrameHead {
    int n, n_asked;
    const uint32_t *page;         /* [n] NO_PAGE: not one of these */
    const float *score;           /* [n] */
    const struct FrameAsk *asked; /* [n_asked] places ascend */
};

struct PageFrames {
    struct FramePlan plan;
    struct PageStore store; /* owned */
    uint8_t *memory;        /* [n_homes + n_work, page_bytes] borrowed */
    uint32_t *frame_of;     /* [n_pages] NO_FRAME: in the file alone */
    uint32_t *page_in;      /* [n_homes + n_work] NO_PAGE: none */
    uint8_t *in_file;       /* [n_pages] 1: the file has what the page holds */
    uint32_t *held;         /* [n_work] the last round that needed what is there */
    uint32_t round, next;
    struct FrameJob *
        jobs; /* [n_work] of the round: n_jobs moves of pages, for who else keeps account of them */
    int n_jobs, n_spilled; /* n_spilled: pages that stay, but without a home */
    int64_t n_read, n_written;
    struct Residency slots; /* scratch: the homes of a head */
    struct ResidencyWork work;
    struct PageFetch *fetch; /* [max_refs] */
    uint32_t *home;          /* [max_refs] */
    int *wanted;             /* [max_refs] */
    int status;              /* of what failed first */
    char text[512];
};

/* The frames own the store from now on, also after a failure; frames_close() ends both. */
int frames_open(struct PageFrames *f, const struct FramePlan *plan, const struct PageStore *store,
                uint8_t *memory);
void frames_close(struct PageFrames *f);
/* Bytes of memory for this plan, the frames apart, and that of a file's store among them. */
size_t frames_bytes(const struct FramePlan *plan);

/* A round. */
void frames_begin(struct PageFrames *f);
/* The page is in a frame when the round has run, and until the next one begins. PC_EINTERNAL: more pages than plan.n_work. */
int frames_need(struct PageFrames *f, uint32_t page);
/* The pages that a row asks for of one head; each head once a round, before pages that are needed anyhow. */
int frames_ask(struct PageFrames *f, const struct FrameHead *h);
int frames_run(struct PageFrames *f);

/* After frames_begin: the page has been written in its frame, where it was needed before; frames_flush() puts what has no home
 * there into the file. */
void frames_wrote(struct PageFrames *f, uint32_t page);
int frames_flush(struct PageFrames *f);

/* What failed first, since the frames were opened; PC_OK: nothing. */
int frames_status(const struct PageFrames *f);
/* Keeps the error that this thread has come upon, unless there was one before. */
void frames_fail(struct PageFrames *f, int status);

#endif

/* test_page_frames.c - frames over a file of pages: a device that writes and reads pages through them against pages kept apart,
 * round after round; which pages have homes, against residency_fetch on each head; failed reads, writes and allocations.
 */
#include "tests/unit/session_support.h"

#include "page_frames.h"

enum { BYTES = 96, MOST = 90, REFS = 30, ROUNDS = 3000 };

static uint64_t state_of_rng = 5;

static int rng(int n)
{
    return (int)(next_number(&state_of_rng) % (uint32_t)n);
}

/* ==== A store in memory that counts and fails ==== */

static struct {
    long fail_after; /* the n-th read or write from now fails; 0: none */
    long n_read, n_written;
} tap;

static int fails(const char *what)
{
    long left = __atomic_sub_fetch(&tap.fail_after, 1, __ATOMIC_SEQ_CST);
    return left == 0 ? err_set(PC_EIO, "the disk is gone, at a %s", what) : PC_OK;
}

static int tap_read(struct PageStore *s, uint32_t page, void *out)
{
    __atomic_add_fetch(&tap.n_read, 1, __ATOMIC_SEQ_CST);
    TRY(fails("read"));
    memcpy(out, s->memory + page * s->page_bytes, s->page_bytes);
    return PC_OK;
}

static int tap_write(struct PageStore *s, uint32_t page, const void *data)
{
    __atomic_add_fetch(&tap.n_written, 1, __ATOMIC_SEQ_CST);
    TRY(fails("write"));
    memcpy(s->memory + page * s->page_bytes, data, s->page_bytes);
    return PC_OK;
}

/* ==== A device's pages, and the same kept apart ==== */

struct World {
    struct FramePlan plan;
    struct PageFrames f;
    uint8_t *memory; /* of the frames */
    uint8_t truth[MOST][BYTES];
    uint8_t written[MOST];
    uint32_t where[MOST]; /* what a device knows, which is told moves alone */
};

static void tell_moves(struct World *w)
{
    for (int i = 0; i < w->f.n_jobs; i++) w->where[w->f.jobs[i].in] = w->f.jobs[i].frame;
}

static int world_open(struct World *w, struct FramePlan plan)
{
    struct PageStore store;
    *w = (struct World){.plan = plan};
    w->memory = calloc((size_t)plan.n_homes + plan.n_work, BYTES);
    int status = page_store_memory(&store, BYTES, plan.n_pages);
    if (status < 0) return status;
    store.read = tap_read;
    store.write = tap_write;
    TRY(frames_open(&w->f, &plan, &store, w->memory));
    memcpy(w->where, w->f.frame_of, sizeof *w->where * plan.n_pages);
    return PC_OK;
}

static void world_close(struct World *w)
{
    frames_close(&w->f);
    free(w->memory);
}

static uint8_t *frame_at(struct World *w, uint32_t page)
{
    assert_true(w->where[page] < w->plan.n_homes + w->plan.n_work);
    return w->memory + w->where[page] * BYTES;
}

static void check_page(struct World *w, uint32_t page)
{
    assert_int_equal(w->where[page], w->f.frame_of[page]);
    if (w->written[page]) assert_memory_equal(frame_at(w, page), w->truth[page], BYTES);
}

/* No frame holds two pages and no page is lost. */
static void check_account(const struct World *w)
{
    uint32_t frames = w->plan.n_homes + w->plan.n_work, there = 0;
    for (uint32_t i = 0; i < frames; i++)
        if (w->f.page_in[i] != NO_PAGE)
            assert_int_equal(w->f.frame_of[w->f.page_in[i]], i), there++;
    for (uint32_t p = 0; p < w->plan.n_pages; p++) {
        there -= w->f.frame_of[p] != NO_FRAME;
        if (w->f.frame_of[p] == NO_FRAME && w->written[p]) assert_int_equal(w->f.in_file[p], 1);
    }
    assert_int_equal(there, 0);
}

/* Different pages, at most as many as a round takes. */
static int some_pages(const struct World *w, uint32_t *out)
{
    int n = 1 + rng((int)w->plan.n_work);
    for (int i = 0; i < n; i++) out[i] = (uint32_t)rng((int)w->plan.n_pages);
    return n;
}

static int bring(struct World *w, const uint32_t *pages, int n)
{
    frames_begin(&w->f);
    for (int i = 0; i < n; i++) TRY(frames_need(&w->f, pages[i]));
    TRY(frames_run(&w->f));
    tell_moves(w);
    return PC_OK;
}

/* A part of each page is written, as a device appends to it. */
static int write_some(struct World *w)
{
    uint32_t pages[MOST];
    int n = some_pages(w, pages);
    TRY(bring(w, pages, n));
    for (int i = 0; i < n; i++) {
        check_page(w, pages[i]);
        int at = rng(BYTES);
        if (!w->written[pages[i]]) memset(frame_at(w, pages[i]), 0, BYTES);
        w->written[pages[i]] = 1;
        frame_at(w, pages[i])[at] = w->truth[pages[i]][at] = (uint8_t)rng(256);
    }
    frames_begin(&w->f);
    for (int i = 0; i < n; i++) frames_wrote(&w->f, pages[i]);
    return frames_flush(&w->f);
}

static int read_some(struct World *w)
{
    uint32_t pages[MOST];
    int n = some_pages(w, pages);
    TRY(bring(w, pages, n));
    for (int i = 0; i < n; i++) check_page(w, pages[i]);
    return PC_OK;
}

/* ==== A row's choice ==== */

struct Head {
    int n, n_asked;
    uint32_t page[REFS];
    float score[REFS];
    struct FrameAsk asked[REFS];
};

/* Heads own pages that follow each other; some of their places are near. */
static struct Head make_head(const struct World *w, int head, int n_heads)
{
    struct Head h = {0};
    uint32_t each = w->plan.n_pages / (uint32_t)n_heads, next = (uint32_t)head * each,
             end = next + each;
    while (h.n < w->plan.max_refs && next < end) {
        h.page[h.n] = rng(6) ? next++ : NO_PAGE;
        h.score[h.n] = rng(9) == 0 ? NAN : rng(12) == 0 ? INFINITY : (float)(rng(7) - 3);
        bool asked = h.page[h.n] != NO_PAGE && w->written[h.page[h.n]] && rng(4) == 0;
        if (asked && (uint32_t)(h.n_asked * n_heads) < w->plan.n_work - (uint32_t)n_heads)
            h.asked[h.n_asked++] = (struct FrameAsk){h.n, rng(2)};
        h.n++;
    }
    return h;
}

/* Which pages of the head should have homes, from those that had. */
static void expect_homes(const struct World *w, const struct Head *h, uint8_t *home)
{
    int page_at[REFS], slot_of[REFS], wanted[REFS], from[REFS], take[REFS];
    float value[REFS];
    uint8_t held[REFS];
    struct PageFetch fetch[REFS];
    struct Residency r = {0, page_at, slot_of, NULL};
    struct ResidencyWork work = {value, from, take, held};
    for (int i = 0; i < h->n; i++) {
        bool has = h->page[i] != NO_PAGE && w->f.frame_of[h->page[i]] < w->plan.n_homes;
        slot_of[i] = has ? r.n_slots : -1;
        if (has) page_at[r.n_slots++] = i;
    }
    for (int i = 0; i < h->n_asked; i++) wanted[i] = h->asked[i].place;
    residency_fetch(&r, h->score, wanted, h->n_asked, &work, fetch);
    for (int i = 0; i < h->n; i++) home[i] = slot_of[i] >= 0;
}

static void check_homes(const struct World *w, const struct Head *h, const uint8_t *home,
                        int *spilled)
{
    for (int i = 0; i < h->n; i++)
        if (h->page[i] != NO_PAGE)
            assert_int_equal(w->f.frame_of[h->page[i]] < w->plan.n_homes, home[i]);
    for (int i = 0; i < h->n_asked; i++) *spilled += h->asked[i].stays && !home[h->asked[i].place];
}

static int ask_some(struct World *w, int n_heads)
{
    struct Head heads[4];
    uint8_t home[4][REFS];
    int spilled = 0;
    frames_begin(&w->f);
    for (int i = 0; i < n_heads; i++) {
        struct Head *h = &heads[i];
        *h = make_head(w, i, n_heads);
        expect_homes(w, h, home[i]);
        TRY(frames_ask(&w->f, &(struct FrameHead){h->n, h->n_asked, h->page, h->score, h->asked}));
    }
    TRY(frames_run(&w->f));
    tell_moves(w);
    for (int i = 0; i < n_heads; i++) {
        check_homes(w, &heads[i], home[i], &spilled);
        for (int j = 0; j < heads[i].n_asked; j++)
            check_page(w, heads[i].page[heads[i].asked[j].place]);
    }
    assert_int_equal(w->f.n_spilled, spilled);
    return PC_OK;
}

/* ==== Tests ==== */

static int step(struct World *w)
{
    int what = rng(3);
    TRY(what == 0 ? write_some(w) : what == 1 ? read_some(w) : ask_some(w, 1 + rng(4)));
    check_account(w);
    return PC_OK;
}

static struct FramePlan some_plan(int i)
{
    uint32_t n = 20 + (uint32_t)rng(MOST - 20), homes = i % 3 ? (uint32_t)rng((int)n) : 0;
    return (struct FramePlan){n, homes, 8 + (uint32_t)rng(12), REFS, 1 + i % 6 / 5};
}

static void test_rounds(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    long moved = 0, spared = 0;
    for (int i = 0; i < 12; i++) {
        struct World w;
        must(world_open(&w, some_plan(i)));
        tap.n_read = tap.n_written = 0;
        for (int r = 0; r < ROUNDS / 12; r++) must(step(&w));
        assert_int_equal(w.f.n_read, tap.n_read);
        assert_int_equal(w.f.n_written, tap.n_written);
        moved += tap.n_read;
        for (uint32_t p = 0; p < w.plan.n_pages; p++) spared += w.written[p] && !w.f.in_file[p];
        world_close(&w);
    }
    assert_true(moved > 1000 && spared > 20);
    assert_int_equal(mem_in_use(), before);
}

/* Any stretch of pages has its share of homes. */
static void test_spread(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct World w;
        must(world_open(&w, some_plan(i)));
        uint32_t n = w.plan.n_pages, all = 0;
        for (uint32_t p = 0; p < n; p++) all += w.f.frame_of[p] != NO_FRAME;
        assert_int_equal(all, w.plan.n_homes);
        for (int t = 0; t < 20; t++) {
            uint32_t first = (uint32_t)rng((int)n), len = (uint32_t)rng((int)(n - first) + 1),
                     has = 0;
            for (uint32_t p = first; p < first + len; p++) has += w.f.frame_of[p] != NO_FRAME;
            double share = (double)w.plan.n_homes / n * len;
            assert_true(has < share + 1 && has > share - 1);
        }
        world_close(&w);
    }
}

/* A page at home is written when it leaves, once, and what stays at home costs the file nothing. */
static void test_home_costs_nothing(void **state)
{
    (void)state;
    struct World w;
    must(world_open(&w, (struct FramePlan){8, 4, 4, REFS, 1}));
    tap.n_read = tap.n_written = 0;
    uint32_t at_home[4] = {1, 3, 5, 7}, away = 0;
    must(bring(&w, at_home, 4));
    frames_begin(&w.f);
    for (int i = 0; i < 4; i++) frames_wrote(&w.f, at_home[i]);
    must(frames_flush(&w.f));
    assert_int_equal(tap.n_read + tap.n_written, 0);
    must(bring(&w, &away, 1));
    frames_begin(&w.f);
    frames_wrote(&w.f, away);
    frames_wrote(&w.f, away);
    must(frames_flush(&w.f));
    assert_int_equal(tap.n_written, 1);
    uint32_t pages[3] = {0, 1, 3};
    float score[3] = {5, 1, 2};
    for (int i = 0; i < 3;
         i++) { /* 0 for 1, 1 for 3, 3 for 0: homes change hands, dirty pages leave once */
        struct FrameAsk asked = {i, 1};
        score[i] = 9 + (float)i;
        frames_begin(&w.f);
        must(frames_ask(&w.f, &(struct FrameHead){3, 1, pages, score, &asked}));
        must(frames_run(&w.f));
    }
    assert_int_equal(tap.n_written, 3);
    assert_int_equal(tap.n_read, 3);
    world_close(&w);
}

static void test_too_many(void **state)
{
    (void)state;
    struct World w;
    must(world_open(&w, (struct FramePlan){20, 0, 4, REFS, 1}));
    frames_begin(&w.f);
    for (uint32_t p = 0; p < 4; p++) must(frames_need(&w.f, p));
    must(frames_need(&w.f, 2));
    assert_int_equal(frames_need(&w.f, 4), PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "more than 4 pages"));
    world_close(&w);
}

/* The first failure is the one that is told, in every round from then on. */
static void test_failures(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    int reads = 0, writes = 0;
    for (long n = 1; n < 200; n += 3) {
        struct World w;
        must(world_open(&w, (struct FramePlan){60, 10, 10, REFS, 1 + (int)n % 2}));
        tap.fail_after = n;
        int status = PC_OK;
        for (int r = 0; r < 200 && status == PC_OK; r++) status = step(&w);
        tap.fail_after = 0;
        assert_int_equal(status, PC_EIO);
        reads += strstr(err_text(), "gone, at a read") != NULL;
        writes += strstr(err_text(), "gone, at a write") != NULL;
        err_set(PC_EINTERNAL, "something else");
        assert_int_equal(frames_status(&w.f), PC_EIO);
        assert_non_null(strstr(err_text(), "the disk is gone"));
        frames_fail(&w.f, PC_EINTERNAL);
        assert_int_equal(frames_status(&w.f), PC_EIO);
        world_close(&w);
    }
    assert_true(reads > 5 && writes > 5);
    assert_int_equal(mem_in_use(), before);
}

static void test_memory(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    struct FramePlan plan = {80, 20, 15, REFS, 1};
    for (long n = 1;; n++) {
        struct World w;
        mem_fail_after(n);
        int status = world_open(&w, plan);
        mem_fail_after(0);
        if (status == PC_OK) { /* the store is in memory here, with no sums */
            size_t held = mem_in_use() - before, said = frames_bytes(&plan) + 80 * BYTES;
            assert_int_equal(held + page_store_file_bytes(80), said);
        }
        world_close(&w);
        assert_int_equal(mem_in_use(), before);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_ENOMEM);
        assert_true(n < 40);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounds),
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_home_costs_nothing),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

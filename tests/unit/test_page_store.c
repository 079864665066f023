/* test_page_store.c - pages below, by themselves: which come near, against a choice made by sorting; files of pages that
 * hold, lose, cut and mix up pages.
 */
#include "tests/unit/session_support.h"

#include "eviction/residency.h"
#include "page_store.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static uint64_t state_of_rng = 11;

static int rng(int n)
{
    return (int)(next_number(&state_of_rng) % (uint32_t)n);
}

/* ==== Which pages come near ==== */

enum { PAGES = 40, SLOTS = 12 };

struct Case {
    int n_pages, n_slots, n_wanted;
    float score[PAGES];
    int wanted[PAGES], page_at[SLOTS], slot_of[PAGES];
    uint8_t fixed[SLOTS];
};

static struct Case make_case(void)
{
    struct Case c = {.n_pages = 1 + rng(PAGES), .n_slots = 1 + rng(SLOTS)};
    for (int p = 0; p < c.n_pages; p++) {
        c.score[p] = rng(9) == 0 ? NAN : rng(12) == 0 ? INFINITY : (float)(rng(7) - 3);
        c.slot_of[p] = -1;
        if (rng(3) == 0) c.wanted[c.n_wanted++] = p;
    }
    for (int s = 0; s < c.n_slots; s++) {
        int p = rng(c.n_pages);
        c.page_at[s] = -1;
        c.fixed[s] = rng(5) == 0;
        if (rng(4) == 0 || c.slot_of[p] >= 0) continue;
        c.page_at[s] = p;
        c.slot_of[p] = s;
    }
    return c;
}

/* Whether page a is the better one to fetch. */
static bool fetch_first(const struct Case *c, int a, int b)
{
    float x = isnan(c->score[a]) ? -INFINITY : c->score[a],
          y = isnan(c->score[b]) ? -INFINITY : c->score[b];
    if (isnan(c->score[a]) != isnan(c->score[b])) return !isnan(c->score[a]);
    return x > y || (x == y && a < b);
}

/* Whether slot a is the better one to give up: empty or a NaN's, then the lowest score. */
static bool give_first(const struct Case *c, int a, int b)
{
    int p = c->page_at[a], q = c->page_at[b];
    float x = p < 0 || isnan(c->score[p]) ? -INFINITY : c->score[p],
          y = q < 0 || isnan(c->score[q]) ? -INFINITY : c->score[q];
    return x < y || (x == y && a < b);
}

/* The n first of a set of flags, by rank: flags of those that are not remain 0. */
static void keep_first(const struct Case *c, bool (*first)(const struct Case *, int, int),
                       uint8_t *in, int n_in, int n)
{
    uint8_t out[PAGES] = {0};
    for (int i = 0; i < n_in; i++) {
        int rank = 0;
        for (int j = 0; j < n_in; j++) rank += in[i] && in[j] && j != i && first(c, j, i);
        out[i] = in[i] && rank < n;
    }
    memcpy(in, out, (size_t)n_in);
}

static int brute(const struct Case *c, struct PageFetch *out)
{
    uint8_t missing[PAGES] = {0}, spare[PAGES] = {0};
    int n_missing = 0, n_spare = 0, n = 0;
    for (int s = 0; s < c->n_slots; s++) spare[s] = !c->fixed[s];
    for (int i = 0; i < c->n_wanted; i++) {
        int slot = c->slot_of[c->wanted[i]];
        if (slot < 0) missing[c->wanted[i]] = 1, n_missing++;
        if (slot >= 0) spare[slot] = 0;
    }
    for (int s = 0; s < c->n_slots; s++) n_spare += spare[s];
    int both = n_missing < n_spare ? n_missing : n_spare;
    keep_first(c, fetch_first, missing, c->n_pages, both);
    keep_first(c, give_first, spare, c->n_slots, both);
    for (int p = 0, s = 0; p < c->n_pages; p++) {
        if (!missing[p]) continue;
        while (!spare[s]) s++;
        out[n++] = (struct PageFetch){p, s++};
    }
    return n;
}

static void test_residency(void **state)
{
    (void)state;
    int fetched = 0, short_of_slots = 0;
    for (int i = 0; i < 20000; i++) {
        struct Case c = make_case(), before = c;
        float value[PAGES];
        int from[PAGES], take[PAGES];
        uint8_t held[SLOTS];
        struct PageFetch got[SLOTS], want[PAGES];
        struct ResidencyWork work = {value, from, take, held};
        struct Residency r = {c.n_slots, c.page_at, c.slot_of, i % 3 ? c.fixed : NULL};
        if (!r.fixed) memset(before.fixed, 0, sizeof before.fixed);
        int n = residency_fetch(&r, c.score, c.wanted, c.n_wanted, &work, got);
        assert_int_equal(n, brute(&before, want));
        for (int j = 0; j < n; j++) {
            assert_int_equal(got[j].page, want[j].page);
            assert_int_equal(got[j].slot, want[j].slot);
            assert_int_equal(c.page_at[got[j].slot], got[j].page);
        }
        int there = 0;
        for (int p = 0; p < c.n_pages; p++)
            if (c.slot_of[p] >= 0) assert_int_equal(c.page_at[c.slot_of[p]], p), there++;
        for (int s = 0; s < c.n_slots; s++) there -= c.page_at[s] >= 0;
        assert_int_equal(there, 0);
        fetched += n;
        for (int j = 0; j < c.n_wanted; j++) short_of_slots += c.slot_of[c.wanted[j]] < 0;
    }
    assert_true(fetched > 1000 && short_of_slots > 1000);
}

/* ==== Stores ==== */

enum { PAGE = 1000, N = 17 };

static void fill(uint8_t *page, uint32_t number, int round)
{
    for (int i = 0; i < PAGE; i++) page[i] = (uint8_t)(number * 31 + (uint32_t)(i * round + i / 7));
}

static void check_store(struct PageStore *s)
{
    uint8_t page[PAGE], want[PAGE];
    for (int round = 1; round < 3; round++) {
        for (uint32_t i = 0; i < N; i++) {
            fill(page, i, round);
            must(s->write(s, i, page));
        }
        for (uint32_t i = N; i-- > 0;) {
            fill(want, i, round);
            must(s->read(s, i, page));
            assert_memory_equal(page, want, PAGE);
        }
    }
}

static void test_stores(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    struct PageStore s;
    must(page_store_memory(&s, PAGE, N));
    check_store(&s);
    s.close(&s);
    must(page_store_file(&s, "/tmp", PAGE, N));
    check_store(&s);
    s.close(&s);
    must(page_store_file(&s, "/tmp", PAGE, 0));
    s.close(&s);
    assert_int_equal(mem_in_use(), before);
}

static void expect(int status, int code, const char *text)
{
    assert_int_equal(status, code);
    if (!strstr(err_text(), text)) fail_msg("'%s' has no '%s'", err_text(), text);
}

/* A file that is cut, changed or gone is named. */
static void test_bad_files(void **state)
{
    (void)state;
    struct PageStore s;
    uint8_t page[PAGE];
    must(page_store_file(&s, "/tmp", PAGE, N));
    check_store(&s);
    assert_int_equal(pwrite(s.fd, "x", 1, 3 * PAGE + 999), 1);
    must(s.read(&s, 2, page));
    expect(s.read(&s, 3, page), PC_EIO, "is not what was written");
    uint64_t sum = s.sums[5]; /* a page in another's place */
    must(s.read(&s, 4, page));
    assert_int_equal(pwrite(s.fd, page, PAGE, 5 * PAGE), PAGE);
    s.sums[5] = s.sums[4];
    expect(s.read(&s, 5, page), PC_EIO, "is not what was written");
    s.sums[5] = sum;
    assert_int_equal(ftruncate(s.fd, 6 * PAGE + 10), 0);
    expect(s.read(&s, 6, page), PC_EIO, "after 10 of 1000 bytes");
    expect(s.read(&s, 9, page), PC_EIO, "cut short");
    close(s.fd);
    s.fd = open("/dev/null", O_WRONLY);
    expect(s.read(&s, 1, page), PC_EIO, "cannot be read from /tmp");
    close(s.fd);
    s.fd = open("/dev/full", O_RDWR);
    expect(s.write(&s, 1, page), PC_EIO, "/tmp has no room for");
    s.close(&s);
    expect(page_store_file(&s, "/nowhere/at all", PAGE, N), PC_EIO, "--kv-dir");
    s.close(&s);
}

/* The room is taken before work begins. */
static void test_full_disk(void **state)
{
    (void)state;
    struct PageStore s;
    struct rlimit old, least;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    least = (struct rlimit){3 * PAGE, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &least), 0);
    int status = page_store_file(&s, "/tmp", PAGE, N);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    expect(status, PC_EIO, "has no room for");
    s.close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_residency),
        cmocka_unit_test(test_stores),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

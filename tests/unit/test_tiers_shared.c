/* test_tiers_shared.c - pages below where the text lies in a store, and where several ranks read it: every share near gives the
 * bits of all near, in all forms of pages, with heads that stream, with tokens chosen and not, and where stored chunks stay on
 * the device; reads and writes that fail, one after the other; memory as planned; what is refused.
 */
#include "session_team_support.h"
#include "tiers_support.h"

enum { BYTES = 2600, LONG = 40 };

static char text[BYTES], path[] = "/tmp/pcomp_tiers_XXXXXX";

static int prepare(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (int i = 0; i < BYTES; i++)
        text[i] = i % 5 == 4 ? ' ' : (char)('a' + next_number(&seed) % 26);
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    return unlink(path);
}

static int clean(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

/* ==== Stores ==== */

static void index_text(struct Engine *e)
{
    struct IndexInfo made;
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    must(session_index(e, &req, path, true, &made));
}

static int ask(struct Engine *e, struct Store *store, size_t resident, bool stays, struct Result *r)
{
    struct Request req = {.store = store, .question = "Where is xyzzy?", .store_stays = stays};
    e->settings.kv_resident = resident;
    int status = session_run(e, &req, r);
    e->settings.kv_resident = AUTO;
    return status;
}

static void same_answer(const struct Result *a, const struct Result *b)
{
    assert_true(a->logits_hash == b->logits_hash);
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, sizeof(int) * (size_t)a->n_ids);
    assert_int_equal(a->pages_read, b->pages_read);
    assert_int_equal(a->pages_there, b->pages_there);
}

/* One store, asked with all pages near and with shares of them; returns pages that were fetched. */
static int64_t check_store(struct Engine *e, struct Store *store, bool stays)
{
    static const size_t shares[] = {1, 30, 100};
    struct Result near, far;
    int64_t fetched = 0;
    must(ask(e, store, AUTO, stays, &near));
    assert_true(near.n_ids > 5 && near.pages_read < near.pages_there);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        must(ask(e, store, shares[i], stays, &far));
        same_answer(&near, &far);
        assert_true(far.plan.tier_below_bytes > 0 && far.tiers.wanted > 0);
        assert_true(shares[i] == 100 || far.plan.tier_near_bytes < far.plan.tier_below_bytes);
        fetched += far.tiers.fetched;
        result_free(&far);
    }
    result_free(&near);
    return fetched;
}

static void check_stored(struct Engine *e)
{
    struct Store store;
    int64_t fetched = 0;
    few_pages(e, LONG);
    for (int heads = 0; heads < 2; heads++) {
        if (heads) stream_some(e);
        for (int cap = 0; cap < 3; cap++) {
            e->settings.kv_cap = cap == 1 ? 50 : CAP_OFF; /* pages part full in between */
            e->settings.store_cap = cap == 2 ? 70 : CAP_OFF;
            index_text(e);
            must(store_open(path, &store));
            fetched += check_store(e, &store, false);
            store_close(&store);
        }
    }
    assert_true(fetched > 50);
}

static void test_stored(void **state)
{
    (void)state;
    each_engine(check_stored);
}

static void test_stored_codes(void **state)
{
    (void)state;
    for (enum KvType type = KV_Q8; type <= KV_Q4; type++) {
        struct Engine *e = open_engine_of("qwen2", PRECISION_INT16, type, 2);
        check_stored(e);
        engine_close(e);
    }
}

static struct DeviceLimits limits_there;

static void limits_apart(const struct Device *d, struct DeviceLimits *out)
{
    (void)d;
    *out = limits_there;
}

/* Where stored chunks stay on a device, questions with pages below and without find them there, in any order. */
static void test_resident(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Backend table = *e->be;
    struct Store store;
    e->be->limits(e->dev, &limits_there);
    limits_there.own_memory = true;
    table.limits = limits_apart;
    e->be = &table;
    few_pages(e, LONG);
    index_text(e);
    must(store_open(path, &store));
    struct Result first;
    must(ask(e, &store, 30, true, &first));
    const void *pages = e->resident.pages;
    assert_non_null(pages);
    result_free(&first);
    e->settings.keep = 3; /* which needs fewer pages: the same memory serves */
    assert_true(check_store(e, &store, true) > 0);
    store_close(&store);
    engine_close(e);
}

/* What lies below takes no memory, as the plan says. */
static void test_memory(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Store store;
    size_t used[2], planned[2];
    few_pages(e, LONG);
    index_text(e);
    must(store_open(path, &store));
    for (int i = 0; i < 2; i++) {
        struct Result r;
        must(ask(e, &store, i ? 10 : AUTO, false, &r));
        used[i] = r.peak_bytes;
        planned[i] = r.plan.peak_bytes;
        result_free(&r);
    }
    assert_true(used[1] < used[0] && planned[1] < planned[0]);
    double off = ((double)planned[0] - (double)planned[1]) / ((double)used[0] - (double)used[1]);
    if (!(off > 0.9 && off < 1.1)) fail_msg("planned to save %g times what was saved", off);
    store_close(&store);
    engine_close(e);
}

/* ==== Stores of pages that fail ==== */

static int failing_open(struct Device *d, const struct TierPlan *plan, struct PagePool *pool)
{
    return tier_over(d, plan, pool, failing_read, failing_write);
}

static struct Backend failing(void)
{
    struct Backend be = backend_cpu;
    be.tier_open = failing_open;
    return be;
}

/* Bytes held beside the device's scratch of the last run. */
static size_t held(struct Engine *e)
{
    struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    must(e->be->reserve(e->dev, &least));
    return mem_in_use();
}

static void test_stored_failures(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Backend be = failing();
    struct Store store;
    int reads = 0, writes = 0;
    few_pages(e, LONG);
    index_text(e);
    must(store_open(path, &store));
    e->be = &be;
    for (long n = 1;; n += 1 + n / 2) {
        struct Result r;
        size_t before = held(e);
        fail_after = n;
        int status = ask(e, &store, 25, false, &r);
        bool came = fail_after <= 0;
        fail_after = 0;
        result_free(&r);
        assert_int_equal(held(e), before);
        if (!came) break;
        assert_int_equal(status, PC_EIO);
        reads += strstr(err_text(), "at a read") != NULL;
        writes += strstr(err_text(), "at a write") != NULL;
    }
    assert_true(reads > 1 && writes > 3);
    store_close(&store);
    engine_close(e);
}

static void test_stored_faults(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct Store store;
    struct Result r;
    int n = 1;
    few_pages(e, LONG);
    e->settings.max_tokens = 3;
    index_text(e);
    must(store_open(path, &store));
    size_t before = held(e);
    for (int status = PC_ENOMEM; status == PC_ENOMEM; n++) {
        assert_int_equal(held(e), before);
        mem_fail_after(n);
        status = ask(e, &store, 25, false, &r);
        mem_fail_after(0);
        result_free(&r);
        assert_true(status == PC_OK || status == PC_ENOMEM);
    }
    assert_true(n > 30);
    store_close(&store);
    engine_close(e);
}

/* ==== Ranks ==== */

static const struct Case tiered = {
    .arch = "llama",
    .input = {9, 900, 14, 1},
    .chunk = 128,
    .keep = 4,
    .cap = 100,
    .score = SCORE_QUESTION,
    .precision = PRECISION_INT16,
    .copies = 1,
    .temperature = 2,
    .select_pages = 2,
    .resident = 30,
};

/* The answer of one process with all pages near is that of any number with pages below. */
static void check_ranks(const struct Case *c)
{
    struct Case near = *c;
    struct Report one, many[TEAM_MAX];
    near.resident = AUTO;
    assert_int_equal(run_team(&near, 1, &one), PC_OK);
    assert_true(one.o.n_ids > 0);
    for (int i = 0; i < N_SIZES; i++) {
        must(run_team(c, SIZES[i], many));
        same_bits(&one.o, &many[0].o);
        assert_memory_equal(one.o.kv_kept, many[0].o.kv_kept, sizeof one.o.kv_kept);
    }
}

static void test_ranks(void **state)
{
    (void)state;
    static const int caps[] = {100, 50, CAP_OFF};
    for (int i = 0; i < 3; i++)
        for (int heads = 0; heads < 2; heads++) {
            struct Case c = tiered;
            c.arch = archs[i];
            c.cap = caps[i];
            c.heads = heads;
            c.keep = heads ? KEEP_ALL : 4;
            c.wave = i;
            check_ranks(&c);
        }
}

static void test_ranks_codes(void **state)
{
    (void)state;
    for (enum KvType type = KV_Q8; type <= KV_Q4; type++) {
        struct Case c = tiered;
        c.kv_type = type;
        c.n_calib = 2; /* and rank 0 thins out what it got */
        check_ranks(&c);
    }
}

/* One sequence is nothing to share; chunks that leave early have gone before any is sent. */
static void test_ranks_methods(void **state)
{
    (void)state;
    struct Case c = tiered;
    c.early_at = "1:5,2:4";
    check_ranks(&c);
    c = tiered;
    c.method = METHOD_FULL;
    c.cap = CAP_OFF;
    check_ranks(&c);
}

/* Whoever fails to read or write below ends all. */
static void test_ranks_failures(void **state)
{
    (void)state;
    struct Backend be = failing();
    struct Case c = tiered;
    int failed = 0;
    c.backend = &be;
    for (long n = 1; n < 3000; n *= 3) {
        struct Report all[TEAM_MAX];
        fail_after = n; /* on every rank */
        int status = run_team(&c, 3, all);
        fail_after = 0;
        assert_true(status == PC_OK || status == PC_EIO);
        failed += status == PC_EIO;
        if (status == PC_OK) break;
    }
    assert_true(failed > 3);
}

/* Memory that is short anywhere on a rank that reads for rank 0. */
static void test_ranks_memory(void **state)
{
    (void)state;
    struct Report all[TEAM_MAX];
    int failed = 0, status = PC_ENOMEM;
    for (int after = 1; status == PC_ENOMEM; after += 6, failed++) {
        struct Case c = tiered;
        c.victim = 1;
        c.trouble = NO_MEMORY;
        c.after = after;
        status = run_team(&c, 2, all);
        assert_true(status == PC_OK || status == PC_ENOMEM);
    }
    assert_true(failed > 5);
    struct Case c = tiered;
    must(run_team(&c, 2, all));
    for (int r = 0; r < 2; r++) assert_true(all[r].used <= all[r].planned + (1 << 16));
}

/* Where all ranks answer no page is chosen among those of several. */
static void test_refused(void **state)
{
    (void)state;
    struct Report all[TEAM_MAX];
    struct Case c = tiered;
    c.answer = ANSWER_ALL;
    assert_int_equal(run_team(&c, 2, all), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "answer_ranks all: select mean"));
    c.select_pages = 0;
    assert_int_equal(run_team(&c, 2, all), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "kv_resident"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stored),          cmocka_unit_test(test_stored_codes),
        cmocka_unit_test(test_resident),        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_stored_failures), cmocka_unit_test(test_stored_faults),
        cmocka_unit_test(test_ranks),           cmocka_unit_test(test_ranks_codes),
        cmocka_unit_test(test_ranks_methods),   cmocka_unit_test(test_ranks_failures),
        cmocka_unit_test(test_ranks_memory),    cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("tiers_shared", tests, prepare, clean) != 0;
}

/* test_tiers.c - pages below in a cache: caches with a tier against caches without, operation by operation; whole runs, to the
 * bit, in all forms of pages; pages that come late, and reads and writes that fail, one after the other.
 */
#include "tests/unit/tiers_support.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

static uint64_t state_of_rng = 11;

static int rng(int n)
{
    return (int)(next_number(&state_of_rng) % (uint32_t)n);
}

static void expect(int status, int code, const char *text)
{
    assert_int_equal(status, code);
    if (!strstr(err_text(), text)) fail_msg("'%s' has no '%s'", err_text(), text);
}

/* ==== Stores that fail and stores that are slow ==== */

static struct {
    const struct Backend *real;
    pthread_t home; /* the thread that never waits */
    int delay_us;   /* of others, for each page */
    bool settles;   /* tokens wait for them after all */
    long n_read, n_written, n_brought;
} tap;

static int tap_read(struct PageStore *s, uint32_t page, void *out)
{
    __atomic_add_fetch(&tap.n_read, 1, __ATOMIC_SEQ_CST);
    bool home = pthread_equal(pthread_self(), tap.home);
    if (!home && tap.delay_us) usleep((useconds_t)tap.delay_us);
    TRY(failing_read(s, page, out));
    if (!home) __atomic_add_fetch(&tap.n_brought, 1, __ATOMIC_SEQ_CST);
    return PC_OK;
}

static int tap_write(struct PageStore *s, uint32_t page, const void *data)
{
    tap.n_written++;
    return failing_write(s, page, data);
}

static int tap_open(struct Device *d, const struct TierPlan *plan, struct PagePool *pool)
{
    return tier_over(d, plan, pool, tap_read, tap_write);
}

/* The engine's backend with that store; table must outlive it. */
static void tap_begin(struct Engine *e, struct Backend *table)
{
    *table = *e->be;
    table->tier_open = tap_open;
    tap.real = e->be;
    tap.home = pthread_self();
    tap.delay_us = 0;
    fail_after = tap.n_read = tap.n_written = tap.n_brought = 0;
    e->be = table;
}

static void tap_end(struct Engine *e)
{
    e->be = tap.real;
}

/* ==== Caches, operation by operation ==== */

enum { NEAR = 24, BELOW = 200, REFS = 30, ROWS = 200 };

/* The same tokens in a cache whose table grows below and in one that is all near. */
struct Twin {
    struct Engine *e;
    struct KvCache kv[2];
    struct HeadTable table[2];
    struct KvWrites writes[2];
    struct TierPlan plan;
    float *k, *v; /* [ROWS, n_kv_heads * head_dim] */
};

static void twin_open(struct Twin *t, struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    size_t heads = (size_t)m->n_layers * (size_t)m->n_kv_heads,
           width = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    *t = (struct Twin){.e = e, .plan = {.n_heads = (int)heads, .slots = 2, .max_refs = REFS}};
    snprintf(t->plan.dir, sizeof t->plan.dir, "/tmp");
    for (int i = 0; i < 2; i++) {
        must(kv_open(&t->kv[i], e->be, e->dev, m, i ? 2 * heads + NEAR : BELOW + NEAR));
        if (i) must(kv_tier_open(&t->kv[i], &t->plan, BELOW));
        must(kv_table_open(&t->table[i], m, REFS));
        must(kv_writes_open(&t->writes[i], 7));
    }
    t->k = calloc(ROWS * width, sizeof *t->k);
    t->v = calloc(ROWS * width, sizeof *t->v);
}

static void twin_close(struct Twin *t)
{
    for (int i = 0; i < 2; i++) {
        kv_clear(&t->kv[i], &t->table[i]);
        kv_table_close(&t->table[i]);
        kv_writes_close(&t->writes[i]);
        kv_close(&t->kv[i]);
    }
    free(t->k);
    free(t->v);
}

static void twin_append(struct Twin *t, int layer, int kv_head, int n, bool below)
{
    const struct ModelConfig *m = &t->e->model.cfg;
    size_t values = (size_t)ROWS * (size_t)m->n_kv_heads * (size_t)m->head_dim;
    for (size_t i = 0; i < values; i++)
        t->k[i] = (float)rng(200) / 100 - 1, t->v[i] = (float)rng(200) / 100 - 1;
    for (int i = 0; i < 2; i++) {
        struct KvRows rows = {t->k, t->v, rng(1), NULL, n};
        t->table[i].below = below;
        must(kv_append(&t->kv[i], &t->table[i], layer, kv_head, &rows, &t->writes[i]));
        must(kv_flush(&t->kv[i], &t->writes[i]));
    }
}

static void twin_filter(struct Twin *t, int layer, int kv_head)
{
    uint8_t keep[REFS * PAGE_TOKENS];
    int of = 1 + rng(4);
    for (size_t i = 0; i < sizeof keep; i++) keep[i] = rng(5) >= of || rng(9) == 0;
    for (int i = 0; i < 2; i++) must(kv_filter(&t->kv[i], &t->table[i], layer, kv_head, keep));
}

static int twin_compare(struct Twin *t)
{
    const struct ModelConfig *m = &t->e->model.cfg;
    float a[2][2][HEAD_DIM_MAX];
    int n = 0, below = 0;
    for (int h = 0; h < t->table[0].n_heads; h++) {
        assert_int_equal(t->table[0].n_tokens[h], t->table[1].n_tokens[h]);
        assert_int_equal(t->table[0].n_refs[h], t->table[1].n_refs[h]);
        for (int p = 0; p < t->table[0].n_refs[h]; p++) {
            for (int at = 0; at < (int)t->table[0].refs[h * REFS + p].len; at++, n++) {
                for (int i = 0; i < 2; i++)
                    must(t->e->be->kv_read(t->e->dev, &t->kv[i].pool,
                                           t->table[i].refs[h * REFS + p], at, a[i][0], a[i][1]));
                for (int part = 0; part < 2; part++)
                    assert_memory_equal(a[0][part], a[1][part],
                                        sizeof(float) * (size_t)m->head_dim);
            }
            below += page_is_below(&t->kv[1].pool, t->table[1].refs[h * REFS + p].page);
        }
    }
    return n ? below : 0;
}

/* Every page is free or in the table, once. */
static void twin_count(const struct Twin *t)
{
    const struct PagePool *p = &t->kv[1].pool;
    int seen[BELOW + NEAR + 200] = {0};
    uint32_t first = p->n_near - NEAR;
    for (uint32_t i = 0; i < p->n_free; i++) seen[p->free[i]]++;
    for (uint32_t i = 0; i < p->n_below; i++) seen[p->below[i]]++;
    for (int h = 0; h < t->table[1].n_heads; h++)
        for (int i = 0; i < t->table[1].n_refs[h]; i++) seen[t->table[1].refs[h * REFS + i].page]++;
    for (uint32_t i = 0; i < p->n_pages; i++) assert_int_equal(seen[i], i >= first);
}

static void check_twins(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct Twin t;
    int below = 0;
    twin_open(&t, e);
    for (int i = 0; i < 120; i++) {
        int layer = rng(m->n_layers), kv_head = rng(m->n_kv_heads),
            head = layer * m->n_kv_heads + kv_head, what = rng(10);
        int room = (int)t.kv[1].pool.n_free - 1;
        bool goes_below = room < 4 || rng(3) > 0;
        if (what < 6 && t.table[0].n_refs[head] < REFS - 5)
            twin_append(&t, layer, kv_head, 1 + rng(goes_below ? ROWS : PAGE_TOKENS), goes_below);
        else if (what < 8)
            twin_filter(&t, layer, kv_head);
        else if (what == 8)
            for (int j = 0; j < 2; j++) kv_clear_head(&t.kv[j], &t.table[j], head);
        twin_count(&t);
        if (i % 10 == 0) below += twin_compare(&t);
    }
    below += twin_compare(&t);
    assert_true(below > 20);
    twin_close(&t);
}

static void test_twins(void **state)
{
    (void)state;
    static const enum KvType types[] = {KV_AUTO, KV_Q8, KV_Q4};
    for (int i = 0; i < 4; i++) {
        size_t before = mem_in_use();
        struct Engine *e = open_engine_of("llama", i == 3 ? PRECISION_F32 : PRECISION_INT16,
                                          i == 3 ? KV_AUTO : types[i], 2);
        check_twins(e);
        engine_close(e);
        assert_int_equal(mem_in_use(), before);
    }
}

/* ==== Whole runs ==== */

enum { LONG = 100 };

struct Answer {
    int n, ids[LONG];
    uint64_t hash;
    float last[VOCAB_MAX];
    int64_t read, there;
    struct TierCounts tiers;
    size_t peak;
};

static const struct Input input = {9, 1500, 14, 1};

/* After every token waits until all that was asked for has been brought. */
static void settle(void *session, const struct Progress *p)
{
    struct Session *s = session;
    struct TierCounts n;
    if (p->stage != STAGE_DECODE || !s->kv.pool.tier) return;
    must(s->e->be->tier_counts(s->e->dev, &s->kv.pool, &n));
    while (__atomic_load_n(&tap.n_brought, __ATOMIC_SEQ_CST) < n.fetched) usleep(50);
}

static struct Answer answer(struct Engine *e, size_t resident, enum TierWait wait)
{
    struct Run run;
    struct Answer a = {.n = 0};
    e->settings.kv_resident = resident;
    e->settings.tier_wait = wait;
    run_open(&run, e, input);
    struct Request req = *run.s.req;
    req.user = &run.s;
    if (tap.settles) req.on_progress = settle;
    run.s.req = &req;
    must(session_stages(&run.s, true));
    a.n = run.r.n_ids;
    memcpy(a.ids, run.r.ids, sizeof(int) * (size_t)a.n);
    memcpy(a.last, run.s.logits, sizeof(float) * (size_t)e->model.cfg.vocab_size);
    a.hash = run.r.logits_hash;
    a.read = run.r.pages_read;
    a.there = run.r.pages_there;
    a.tiers = run.r.tiers;
    run_close(&run);
    e->settings.kv_resident = AUTO;
    return a;
}

static void same_answer(const struct Answer *a, const struct Answer *b)
{
    assert_true(a->hash == b->hash);
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, sizeof(int) * (size_t)a->n);
    assert_memory_equal(a->last, b->last, sizeof a->last);
    assert_int_equal(a->read, b->read);
    assert_int_equal(a->there, b->there);
}

/* Every share near gives the bytes of all pages near. */
static void check_shares(struct Engine *e, struct TierCounts *sum)
{
    static const size_t shares[] = {1, 25, 60, 100};
    struct Answer near = answer(e, AUTO, TIER_EXACT);
    assert_true(near.n > 1 && near.read < near.there);
    sum->wanted += near.n;
    for (int i = 0; i < 4; i++) {
        struct Answer a = answer(e, shares[i], TIER_EXACT);
        same_answer(&near, &a);
        assert_int_equal(a.tiers.late, 0);
        assert_true(a.tiers.wanted > 0 && a.tiers.missed <= a.tiers.wanted);
        assert_true(a.tiers.fetched <= a.tiers.missed && a.tiers.fetched > 0);
        sum->missed += a.tiers.missed;
        sum->fetched += a.tiers.fetched;
        sum->through += a.tiers.through;
    }
}

static void check_exact(struct Engine *e)
{
    struct TierCounts sum = {0};
    few_pages(e, LONG);
    check_shares(e, &sum);
    e->settings.kv_cap = 50; /* pages part full in between */
    e->settings.select_every = 7;
    check_shares(e, &sum);
    e->settings.select_mass = 0.7f; /* now more pages than there are slots, now fewer */
    e->settings.select_every = 1;
    check_shares(e, &sum);
    e->settings.select_mass = 0;
    stream_some(e);
    check_shares(e, &sum);
    e->settings.kv_cap = CAP_OFF;
    e->settings.method = METHOD_DUO;
    e->settings.window = 4096;
    check_shares(e, &sum);
    print_message("# %s: %lld tokens\n", e->model.cfg.arch, (long long)sum.wanted);
    assert_true(sum.wanted > 150);
    assert_true(sum.fetched < sum.missed && sum.through > 0);
}

static void test_exact(void **state)
{
    (void)state;
    each_engine(check_exact);
}

static void test_exact_codes(void **state)
{
    (void)state;
    for (enum KvType type = KV_Q8; type <= KV_Q4; type++) {
        struct Engine *e = open_engine_of("qwen2", PRECISION_INT16, type, 2);
        check_exact(e);
        engine_close(e);
    }
}

/* Rules and caps that thin out what lies below; and chunk biases, which keep pages from being shared. */
static void test_thinned(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    struct TierCounts sum = {0};
    few_pages(e, LONG);
    e->settings.chunk_bias = 0.5f;
    check_shares(e, &sum);
    add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 2, 0.001f, 10, 2, 2});
    check_shares(e, &sum);
    e->settings.n_calib = 0;
    e->settings.chunk_bias = 0;
    e->settings.method = METHOD_SNAPKV;
    e->settings.window = 4096;
    e->settings.kv_cap = 700;
    check_shares(e, &sum);
    e->settings.method = METHOD_PYRAMIDKV;
    check_shares(e, &sum);
    engine_close(e);
}

/* What lies below takes no memory but for its tables, as the plan says. */
static size_t peak_of(struct Engine *e, int context, size_t resident, size_t *planned)
{
    struct Run run;
    e->settings.kv_resident = resident;
    e->be->peak(e->dev, true);
    run_open(&run, e, (struct Input){9, context, 14, 1});
    must(session_stages(&run.s, true));
    *planned = run.s.plan.peak_bytes;
    size_t below = run.s.plan.tier_below_bytes, near = run.s.plan.tier_near_bytes;
    assert_int_equal(resident != AUTO, below > 0);
    if (resident) assert_true(near < below);
    size_t peak = mem_peak();
    run_close(&run);
    return peak;
}

static void test_memory(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    few_pages(e, LONG);
    for (int i = 0; i < 2; i++) {
        size_t near, tiered, planned[2];
        near = peak_of(e, 3000 + 6000 * i, AUTO, &planned[0]);
        tiered = peak_of(e, 3000 + 6000 * i, 10, &planned[1]);
        print_message("# %zu near, %zu with tiers\n", near, tiered);
        assert_true(tiered < near && planned[1] < planned[0]);
        double off = ((double)planned[0] - (double)planned[1]) / ((double)near - (double)tiered);
        assert_true(off > 0.95 && off < 1.05);
    }
    engine_close(e);
}

/* ==== Late pages ==== */

/* Rows do without what has not come, say so, and end; the same store, waited for, gives the bytes of all near. */
static void check_late(struct Engine *e)
{
    struct Backend table;
    few_pages(e, LONG);
    struct Answer near = answer(e, AUTO, TIER_EXACT);
    tap_begin(e, &table);
    tap.delay_us = 300;
    struct Answer late = answer(e, 25, TIER_LATE);
    assert_true(late.tiers.late > 0);
    assert_true(late.tiers.late_share > 0 && late.tiers.late_share < 1);
    assert_true(late.n > 0);
    assert_true(near.hash == late.hash); /* the question waits */
    struct Answer exact = answer(e, 25, TIER_EXACT);
    same_answer(&near, &exact);
    tap.delay_us = 1000000; /* nothing comes while the answer lasts */
    double begun = clock_seconds();
    late = answer(e, 25, TIER_LATE);
    assert_true(clock_seconds() - begun < 0.2 * (double)late.tiers.fetched);
    assert_true(late.tiers.late > 20);
    tap_end(e);
}

static void test_late(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        size_t before = mem_in_use();
        struct Engine *e = open_engine("qwen2", i ? PRECISION_F32 : PRECISION_INT16, 1);
        check_late(e);
        engine_close(e);
        assert_int_equal(mem_in_use(), before);
    }
}

/* Where all has come by the next token, a page is late at most for the one that first wants it, with room for all. */
static void test_late_settles(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Backend table;
    few_pages(e, LONG);
    struct Answer near = answer(e, AUTO, TIER_EXACT);
    tap_begin(e, &table);
    tap.settles = true;
    for (int i = 0; i < 2; i++) {
        tap.n_brought = 0;
        e->settings.select_every = i ? 5 : 1;
        struct Answer late = answer(e, 100, TIER_LATE);
        assert_true(near.hash == late.hash);
        assert_true(late.tiers.fetched > 0);
        /* a page whose mark is a moment behind its bytes still holds its slot */
        assert_in_range(late.tiers.missed - late.tiers.fetched, 0, late.tiers.missed / 10);
        assert_true(late.tiers.late <= late.tiers.missed); /* some come at once */
        assert_int_equal(tap.n_brought, late.tiers.fetched);
    }
    tap.settles = false;
    tap_end(e);
    engine_close(e);
}

/* ==== Reads and writes that fail ==== */

/* One failure after the other, until none comes: an error that names it, and nothing kept. */
static void check_failures(struct Engine *e, enum TierWait wait)
{
    struct Backend table;
    long reads = 0, writes = 0;
    e->settings.kv_resident = 25;
    e->settings.tier_wait = wait;
    tap_begin(e, &table);
    for (long n = 1;; n += 1 + n / 2) {
        struct Run run;
        run_open(&run, e, input);
        fail_after = n;
        int status = session_stages(&run.s, true);
        bool came = fail_after <= 0;
        fail_after = 0;
        if (status < 0) {
            assert_int_equal(status, PC_EIO);
            assert_non_null(strstr(err_text(), "the disk is gone"));
            reads += strstr(err_text(), "read") != NULL;
            writes += strstr(err_text(), "write") != NULL;
        }
        run_close(&run);
        if (!came) break;
        if (wait == TIER_EXACT) assert_true(status < 0);
    }
    tap_end(e);
    assert_true(reads > 1 && writes > 3);
}

static void test_failures(void **state)
{
    (void)state;
    size_t before = mem_in_use();
    struct Engine *e = open_engine("llama", PRECISION_INT16, 2);
    few_pages(e, LONG);
    check_failures(e, TIER_EXACT);
    check_failures(e, TIER_LATE);
    engine_close(e);
    assert_int_equal(mem_in_use(), before);
}

/* ==== The plan of a device with a host ==== */

static struct DeviceLimits limits_there;

static void limits_apart(const struct Device *d, struct DeviceLimits *out)
{
    (void)d;
    *out = limits_there;
}

/* The same engine on a device with memory of its own, for plans alone. */
static const struct Backend *apart(struct Engine *e, struct Backend *table)
{
    const struct Backend *real = e->be;
    real->limits(e->dev, &limits_there);
    limits_there.own_memory = true;
    limits_there.below = "host memory";
    *table = *real;
    table->limits = limits_apart;
    e->be = table;
    return real;
}

static int plan_long(struct Engine *e, struct PlanInfo *plan)
{
    static char text[6000];
    memset(text, 'a', sizeof text);
    struct Request req = {.context = text, .context_len = sizeof text, .question = "Which?"};
    return session_plan(e, &req, plan);
}

static struct PlanInfo plan_of(struct Engine *e, size_t host)
{
    struct PlanInfo plan;
    e->settings.kv_host = host;
    must(plan_long(e, &plan));
    return plan;
}

static void refuse_long(struct Engine *e, const char *text)
{
    struct PlanInfo plan;
    expect(plan_long(e, &plan), PC_ECONFIG, text);
}

/* Bytes of a layer's pages below, and of the one that others are packed into. */
static size_t layer_bytes(struct Engine *e, const struct PlanInfo *plan)
{
    const struct ModelConfig *m = &e->model.cfg;
    int found = plan->keep * ((plan->kv_cap + PAGE_TOKENS - 1) / PAGE_TOKENS);
    return ((size_t)m->n_kv_heads * (size_t)found + 1) * e->be->page_bytes(e->dev);
}

/* What kv_host cannot hold goes to a file, which has room for all, while the host holds just that much. */
static void test_plan_by_tier(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Backend table;
    size_t page = e->be->page_bytes(e->dev);
    few_pages(e, LONG);
    e->settings.kv_resident = 10;
    const struct Backend *real = apart(e, &table);
    struct PlanInfo all = plan_of(e, AUTO);
    assert_true(all.tier_below_bytes > 50 * page);
    assert_int_equal(all.tier_host_bytes, all.tier_below_bytes);
    size_t least = layer_bytes(e, &all);
    for (size_t host = least; host < all.tier_below_bytes; host += 7 * page / 2) {
        struct PlanInfo p = plan_of(e, host);
        assert_int_equal(p.tier_below_bytes, all.tier_below_bytes);
        assert_int_equal(p.tier_near_bytes, all.tier_near_bytes);
        assert_int_equal(p.tier_host_bytes, host / page * page);
        assert_int_equal(p.tier_file_bytes, p.tier_below_bytes);
    }
    e->settings.kv_host = least - 1;
    refuse_long(e, "a layer of the kept text has to be in the host's memory at once; give ");
    assert_int_equal(plan_of(e, all.tier_below_bytes).tier_host_bytes, all.tier_below_bytes);
    e->be = real;
    refuse_long(e, "leave out --kv-host");
    e->settings.kv_host = AUTO;
    assert_int_equal(plan_of(e, AUTO).tier_host_bytes, 0);
    engine_close(e);
}

/* ==== Settings ==== */

static void refuse(struct Engine *e, const char *text)
{
    struct PlanInfo plan;
    struct Request req = {.context = "Of pages.", .context_len = 9, .question = "Which?"};
    expect(session_plan(e, &req, &plan), PC_ECONFIG, text);
}

static void test_settings(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Settings *set = &e->settings;
    static const char *const bad[] = {"0", "50", "0%", "101%", "25%%", "%", "x", "1K", "-1%"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(settings_set(set, "kv_resident", bad[i]), PC_ECONFIG);
    must(settings_set(set, "kv_resident", "2G"));
    assert_int_equal(set->kv_resident, (size_t)2 << 30);
    must(settings_set(set, "kv_resident", "25%"));
    assert_int_equal(set->kv_resident, 25);
    struct Str json = {0};
    struct Settings back;
    must(settings_json(set, &json));
    settings_default(&back);
    must(settings_parse(&back, json.data, json.len, "itself"));
    assert_int_equal(back.kv_resident, 25);
    assert_int_equal(settings_set(set, "memory", "25%"), PC_ECONFIG);
    str_free(&json);
    refuse(e, "--select mean");
    set->select = PAGE_INDEX_MEAN;
    set->method = METHOD_STREAMING;
    set->window = 64;
    refuse(e, "a method that does not move keys");
    struct Backend table = *e->be, *real = &table;
    const struct Backend *was = e->be;
    set->method = METHOD_PARALLELCOMP;
    set->window = AUTO;
    real->tier_open = NULL;
    e->be = real;
    refuse(e, "this backend keeps all pages near");
    e->be = was;
    snprintf(set->kv_dir, sizeof set->kv_dir, "/nowhere");
    struct Result r;
    struct Request req = {.context = "Of pages.", .context_len = 9, .question = "Which?"};
    expect(session_run(e, &req, &r), PC_EIO, "/nowhere");
    result_free(&r);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_twins),        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_exact_codes),  cmocka_unit_test(test_thinned),
        cmocka_unit_test(test_memory),       cmocka_unit_test(test_late),
        cmocka_unit_test(test_late_settles), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_plan_by_tier), cmocka_unit_test(test_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

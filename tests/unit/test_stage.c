/* test_stage.c - questions of one store, one after another, on a device with memory of its own: stored chunks are brought there
 * once and stay, every answer has the bits of one that reads the text again, and the memory is there for whoever needs it next.
 * The device is the CPU's, but for what it says of itself, and it chooses tokens as a GPU does.
 */
#include "tests/unit/session_support.h"

#include "eviction/kv_evict.h"

enum { BYTES = 2600, QUESTIONS = 4 };

static const char *const questions[QUESTIONS] = {
    "Where is xyzzy?", "who", "Which words stand last, and which stood before them in the text?",
    "Where is xyzzy?"};
static char text[BYTES], path[] = "/tmp/pcomp_stage_XXXXXX";

/* ==== The device ==== */

static struct {
    struct Engine *e;
    size_t memory;       /* that it says it has; 0: the CPU's */
    int brought, chosen; /* chunks' pages uploaded to what stays; layers whose tokens it chose */
} fake;

static void fake_limits(const struct Device *d, struct DeviceLimits *out)
{
    backend_cpu.limits(d, out);
    out->own_memory = true;
    if (fake.memory) out->memory = fake.memory;
    out->most = out->memory;
}

static int fake_upload(struct Device *d, void *dst, const void *src, size_t bytes)
{
    const struct Resident *r = &fake.e->resident;
    const uint8_t *at = dst, *first = r->pages;
    if (first && at >= first && at < first + r->bytes) fake.brought++;
    return backend_cpu.upload(d, dst, src, bytes);
}

static int fake_keep(struct Device *d, const struct AttnArgs *args, const struct KeepArgs *k)
{
    enum { KEYS = 1024, HEADS = 16 };
    static float mass[8 * HEADS * KEYS], work[KEYS];
    int heads = fake.e->model.cfg.n_kv_heads;
    struct KvEvict rule = {k->cap, k->pool};
    assert_true(args->n_seqs <= 8 && heads <= HEADS);
    TRY(backend_cpu.attn_mass(d, args, k->obs_rows, mass, KEYS));
    for (int i = 0; i < args->n_seqs * heads; i++)
        kv_evict(&rule, mass + (size_t)i * KEYS + k->first, k->n[i / heads], work,
                 kept_at(k, heads, i));
    fake.chosen++;
    return PC_OK;
}

static struct Engine *open_fake(void)
{
    static struct Backend be;
    struct Engine *e = open_engine("llama", PRECISION_INT16, 1);
    be = backend_cpu;
    be.limits = fake_limits;
    be.upload = fake_upload;
    be.keep = fake_keep;
    memset(&fake, 0, sizeof fake);
    e->be = &be;
    fake.e = e;
    e->settings.chunk = 150;
    e->settings.window = 512;
    e->settings.kv_cap = 40;
    e->settings.keep = 3;
    e->settings.wave = 3;
    return e;
}

/* ==== Texts and questions ==== */

static void make_text(uint64_t seed)
{
    for (int i = 0; i < BYTES; i++)
        text[i] =
            i % 4 == 3 ? (i % 240 == 239 ? '\n' : ' ') : (char)('a' + next_number(&seed) % 26);
    memcpy(text + 1777, " XYZZY ", 7);
}

static int prepare(void **state)
{
    (void)state;
    make_text(9);
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    return unlink(path);
}

static int clean(void **state)
{
    (void)state;
    return unlink(path);
}

static void index_text(struct Engine *e)
{
    struct IndexInfo made;
    struct Request req = {.context = text, .context_len = BYTES, .question = ""};
    must(session_index(e, &req, path, true, &made));
}

static int ask(struct Engine *e, struct Store *store, const char *question, bool stays,
               struct Result *out)
{
    struct Request req = {.context = text,
                          .context_len = BYTES,
                          .store = store,
                          .question = question,
                          .store_stays = stays};
    return session_run(e, &req, out);
}

static void same(const struct Result *a, const struct Result *b)
{
    assert_int_equal(a->plan.n_chunks, b->plan.n_chunks);
    for (int c = 0; c < a->plan.n_chunks; c++) {
        assert_int_equal(a->chunks[c].kept, b->chunks[c].kept);
        assert_true(a->chunks[c].score == b->chunks[c].score ||
                    (isnan(a->chunks[c].score) && isnan(b->chunks[c].score)));
    }
    assert_true(a->logits_hash == b->logits_hash);
    assert_int_equal(a->n_ids, b->n_ids);
    assert_memory_equal(a->ids, b->ids, sizeof(int) * (size_t)a->n_ids);
}

/* A question cold and of the store, which brings so many chunks to the device. */
static void check(struct Engine *e, struct Store *store, const char *question, bool stays,
                  int brought)
{
    struct Result cold, asked;
    must(ask(e, NULL, question, false, &cold)); /* gives back what stays, too */
    result_free(&cold);
    fake.brought = 0;
    must(ask(e, store, question, stays, &asked));
    assert_int_equal(fake.brought, brought);
    must(ask(e, NULL, question, false, &cold));
    assert_null(e->resident.pages);
    same(&cold, &asked);
    result_free(&cold);
    result_free(&asked);
}

/* ==== What stays ==== */

/* All questions in a row, then what each is when the text is read. */
static void check_row(struct Engine *e, struct Store *store)
{
    struct Result asked[QUESTIONS], cold;
    int n = store->info.n_chunks;
    for (int q = 0; q < QUESTIONS; q++) {
        fake.brought = 0;
        must(ask(e, store, questions[q], true, &asked[q]));
        assert_int_equal(fake.brought, q == 0 ? n : 0);
        assert_non_null(e->resident.pages);
    }
    for (int q = 0; q < QUESTIONS; q++) {
        must(ask(e, NULL, questions[q], false, &cold));
        same(&cold, &asked[q]);
        result_free(&cold);
        result_free(&asked[q]);
    }
}

static void test_stays(void **state)
{
    (void)state;
    struct Engine *e = open_fake();
    struct Store store;
    index_text(e);
    must(store_open(path, &store));
    assert_true(store.info.n_chunks > 5);
    for (int wave = 1; wave <= 8; wave += 3)
        for (int cap = 0; cap < 2; cap++) {
            e->settings.wave = wave;
            e->settings.kv_cap = cap ? CAP_OFF : 40;
            check_row(e, &store);
        }
    assert_true(fake.chosen > 0);
    e->settings.keep = KEEP_ALL;
    check_row(e, &store);
    store_close(&store);
    engine_close(e);
}

/* Chunks that leave early are there for a further question as the others are; where none stays, the answer is the same. */
static void test_early(void **state)
{
    (void)state;
    struct Engine *e = open_fake();
    struct Store store;
    e->settings.early = EARLY_AUTO;
    snprintf(e->settings.early_at, sizeof e->settings.early_at, "1:6,2:4");
    index_text(e);
    must(store_open(path, &store));
    for (int wave = 1; wave <= 8; wave += 3) {
        e->settings.wave = wave;
        check_row(e, &store);
        check(e, &store, questions[0], false, 0);
    }
    store_close(&store);
    engine_close(e);
}

/* Without a question to come nothing stays; nor where winners are known before anything is read. */
static void test_leaves(void **state)
{
    (void)state;
    struct Engine *e = open_fake();
    struct Store store;
    index_text(e);
    must(store_open(path, &store));
    check(e, &store, questions[0], true, store.info.n_chunks);
    check(e, &store, questions[1], false, 0);
    e->settings.chunk_score = SCORE_BM25;
    check(e, &store, questions[0], true, 0);
    store_close(&store);
    engine_close(e);
}

/* Settings that keep more need a larger pool; another text is another store. */
static void test_anew(void **state)
{
    (void)state;
    struct Engine *e = open_fake();
    struct Store store;
    struct Result r;
    index_text(e);
    must(store_open(path, &store));
    must(ask(e, &store, questions[0], true, &r));
    result_free(&r);
    e->settings.keep = KEEP_ALL;
    e->settings.kv_cap = CAP_OFF;
    fake.brought = 0;
    must(ask(e, &store, questions[0], true, &r));
    assert_int_equal(fake.brought, store.info.n_chunks);
    result_free(&r);
    store_close(&store);
    make_text(10);
    index_text(e);
    must(store_open(path, &store));
    check_row(e, &store);
    store_close(&store);
    make_text(9);
    engine_close(e);
}

/* The least memory with which all stay, and less: the wave's chunks are brought one after another, and the answer is the
 * same. What a kept pool holds is no memory that is lacking. */
static void test_memory(void **state)
{
    (void)state;
    struct Engine *e = open_fake();
    struct Store store;
    struct PlanInfo plan;
    struct Result r;
    index_text(e);
    must(store_open(path, &store));
    struct Request req = {.store = &store, .question = questions[2], .store_stays = true};
    must(session_plan(e, &req, &plan));
    fake.memory = plan.peak_bytes;
    for (int turn = 0; turn < 2; turn++) { /* twice: the second finds the pool of the first */
        must(ask(e, &store, questions[2], true, &r));
        assert_true(r.plan.peak_bytes == plan.peak_bytes && e->resident.pages);
        result_free(&r);
    }
    resident_close(e);
    check_row(e, &store);
    fake.memory--;
    check(e, &store, questions[2], true, 0);
    store_close(&store);
    engine_close(e);
}

/* ==== Faults ==== */

static void test_damaged(void **state)
{
    (void)state;
    struct Engine *e = open_fake();
    struct Store store;
    struct Result r;
    index_text(e);
    must(store_open(path, &store));
    size_t at = store.map.len - 9000;
    store_close(&store);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)at, SEEK_SET), 0);
    assert_int_equal(fputc('x', f), 'x');
    assert_int_equal(fclose(f), 0);
    must(store_open(path, &store));
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(ask(e, &store, questions[0], true, &r), PC_EFORMAT);
        assert_non_null(strstr(err_text(), "damaged"));
        result_free(&r);
    }
    store_close(&store);
    engine_close(e);
}

/* Bytes held beside the device's scratch of the last run. */
static size_t held(struct Engine *e)
{
    struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    resident_close(e);
    must(e->be->reserve(e->dev, &least));
    return mem_in_use();
}

/* Every allocation of a question fails once, then the next question has what it needs. */
static void test_faults(void **state)
{
    (void)state;
    struct Engine *e = open_fake();
    struct Store store;
    struct Result r;
    index_text(e);
    must(store_open(path, &store));
    must(ask(e, &store, questions[2], true, &r)); /* scratch never shrinks */
    result_free(&r);
    size_t before = held(e);
    int n = 1;
    for (int status = PC_ENOMEM; status == PC_ENOMEM; n++) {
        assert_int_equal(held(e), before);
        mem_fail_after(n);
        status = ask(e, &store, questions[2], true, &r);
        mem_fail_after(0);
        result_free(&r);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        must(ask(e, &store, questions[0], true, &r));
        result_free(&r);
    }
    assert_true(n > 30);
    store_close(&store);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stays),  cmocka_unit_test(test_early),
        cmocka_unit_test(test_leaves), cmocka_unit_test(test_anew),
        cmocka_unit_test(test_memory), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("stage", tests, prepare, clean) != 0;
}

/* test_kv_cache.c - the paged cache against plain arrays of tokens under random operations: what every head holds,
 * in order; no page in two places; none lost.
 */
#include "kv_cache.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    LAYERS = 2,
    KV_HEADS = 3,
    HEADS = LAYERS * KV_HEADS,
    DIM = 16,
    TABLES = 4,
    STRIDE = 7,   /* pages a head */
    N_PAGES = 70, /* fewer than all tables could hold: the pool runs out at times */
    ROWS_MAX = 200,
    TOKENS_MAX = STRIDE * PAGE_TOKENS,
};

static uint64_t rng_state = 5;

static int rng(int below)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((rng_state >> 33) % (uint64_t)below);
}

/* ==== The cache and its model ==== */

/* What one head should hold: the number of each token, in order. */
struct List {
    int id[TOKENS_MAX];
    float bias[TOKENS_MAX];
    int n;
};

struct World {
    struct Model model;
    struct Device *dev;
    struct KvCache kv, spare; /* spare: one page, for what a token becomes in a page */
    struct KvWrites writes;
    struct HeadTable table[TABLES];
    struct List list[TABLES][HEADS];
    int next_id;
    bool coded;
    float *k, *v; /* [ROWS_MAX, KV_HEADS * DIM] rows to append */
    int *ids;     /* [ROWS_MAX] their tokens */
};

/* Exact in f16 too; differs between tokens, heads and elements. */
static float value_of(int id, int kv_head, int element, bool is_key)
{
    return (float)((id * 7 + kv_head * 131 + element * 3 + is_key * 17) % 2048) - 1024;
}

static void world_open(struct World *w, bool exact, enum KvType kv_type, int n_pages)
{
    memset(w, 0, sizeof *w);
    w->coded = kv_type != KV_AUTO;
    w->model.cfg = (struct ModelConfig){
        .n_layers = LAYERS, .n_kv_heads = KV_HEADS, .n_heads = KV_HEADS, .head_dim = DIM};
    struct DeviceOptions o = {.model = &w->model,
                              .precision = exact ? PRECISION_F32 : PRECISION_INT16,
                              .kv_type = kv_type,
                              .threads = 1,
                              .isa = "auto"};
    assert_int_equal(backend_cpu.open(&o, &w->dev), PC_OK);
    assert_int_equal(kv_open(&w->kv, &backend_cpu, w->dev, &w->model.cfg, (size_t)n_pages), PC_OK);
    assert_int_equal(kv_open(&w->spare, &backend_cpu, w->dev, &w->model.cfg, 1), PC_OK);
    assert_int_equal(kv_writes_open(&w->writes, 5),
                     PC_OK); /* so few that appending flushes by itself */
    for (int t = 0; t < TABLES; t++)
        assert_int_equal(kv_table_open(&w->table[t], &w->model.cfg, STRIDE), PC_OK);
    w->k = calloc((size_t)ROWS_MAX * KV_HEADS * DIM, sizeof *w->k);
    w->v = calloc((size_t)ROWS_MAX * KV_HEADS * DIM, sizeof *w->v);
    w->ids = calloc(ROWS_MAX, sizeof *w->ids);
}

static void world_close(struct World *w)
{
    for (int t = 0; t < TABLES; t++) kv_table_close(&w->table[t]);
    kv_writes_close(&w->writes);
    kv_close(&w->kv);
    kv_close(&w->spare);
    backend_cpu.close(w->dev);
    free(w->k);
    free(w->v);
    free(w->ids);
}

static void make_rows(struct World *w)
{
    for (int r = 0; r < ROWS_MAX; r++) {
        w->ids[r] = w->next_id++;
        for (int i = 0; i < KV_HEADS * DIM; i++) {
            w->k[r * KV_HEADS * DIM + i] = value_of(w->ids[r], i / DIM, i % DIM, true);
            w->v[r * KV_HEADS * DIM + i] = value_of(w->ids[r], i / DIM, i % DIM, false);
        }
    }
}

/* ==== Checks ==== */

/* A token as a page gives it back that it was written to once; numbers of 16 bits and more come back as they are. */
static void want_token(const struct World *w, int id, int kv_head, float *k, float *v)
{
    float row[2][KV_HEADS * DIM];
    struct PageRef page = {.page = 0, .len = 1};
    for (int i = 0; i < 2 * KV_HEADS * DIM; i++)
        row[i / (KV_HEADS * DIM)][i % (KV_HEADS * DIM)] =
            value_of(id, i % (KV_HEADS * DIM) / DIM, i % DIM, i < KV_HEADS * DIM);
    struct KvWrite write = {.k = row[0], .v = row[1], .kv_head = kv_head, .n = 1, .page = page};
    assert_int_equal(w->spare.be->kv_write(w->dev, &w->spare.pool, &write, 1), PC_OK);
    assert_int_equal(w->spare.be->kv_read(w->dev, &w->spare.pool, page, 0, k, v), PC_OK);
    float range = 0;
    for (int d = 0; d < DIM; d++) range = fmaxf(range, fabsf(row[0][kv_head * DIM + d]));
    for (int d = 0; d < DIM; d++)
        assert_true(fabsf(k[d] - row[0][kv_head * DIM + d]) <= (w->coded ? range / 7 : 0));
}

static void check_head(const struct World *w, int t, int head)
{
    const struct HeadTable *table = &w->table[t];
    const struct List *want = &w->list[t][head];
    int token = 0;
    assert_int_equal(table->n_tokens[head], want->n);
    for (int i = 0; i < table->n_refs[head]; i++) {
        struct PageRef ref = table->refs[(size_t)head * STRIDE + i];
        assert_in_range(ref.len, 1, PAGE_TOKENS);
        for (int at = 0; at < (int)ref.len; at++, token++) {
            float k[DIM], v[DIM], want_k[DIM], want_v[DIM];
            assert_true(token < want->n);
            assert_true(ref.bias == want->bias[token]);
            assert_int_equal(w->kv.be->kv_read(w->dev, &w->kv.pool, ref, at, k, v), PC_OK);
            want_token(w, want->id[token], head % KV_HEADS, want_k, want_v);
            assert_memory_equal(k, want_k, sizeof k);
            assert_memory_equal(v, want_v, sizeof v);
        }
    }
    assert_int_equal(token, want->n);
}

/* Every page is either free or in one place of one table. */
static void check_pages(const struct World *w)
{
    const struct PagePool *p = &w->kv.pool;
    int *seen = calloc(p->n_pages, sizeof *seen);
    for (uint32_t i = 0; i < p->n_free; i++) seen[p->free[i]]++;
    for (int t = 0; t < TABLES; t++)
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < w->table[t].n_refs[h]; i++)
                seen[w->table[t].refs[(size_t)h * STRIDE + i].page]++;
    for (uint32_t i = 0; i < p->n_pages; i++) assert_int_equal(seen[i], 1);
    free(seen);
}

static void check_world(const struct World *w)
{
    for (int t = 0; t < TABLES; t++)
        for (int h = 0; h < HEADS; h++) check_head(w, t, h);
    check_pages(w);
}

/* ==== Operations ==== */

static void list_add(struct List *l, int id, float bias)
{
    l->bias[l->n] = bias;
    l->id[l->n++] = id;
}

/* The rows to append: the first n, or n of them picked in order. */
static int pick_rows(int *index, int n)
{
    int at = 0, got = 0;
    for (; got < n && at < ROWS_MAX; at += 1 + rng(3)) index[got++] = at;
    return got;
}

static int room_of(const struct World *w, const struct HeadTable *t, int head)
{
    int refs = t->n_refs[head],
        pages = STRIDE - refs < (int)w->kv.pool.n_free ? STRIDE - refs : (int)w->kv.pool.n_free;
    const struct PageRef *last = refs ? &t->refs[(size_t)head * STRIDE + refs - 1] : NULL;
    return (last && last->bias == 0 ? PAGE_TOKENS - (int)last->len : 0) + pages * PAGE_TOKENS;
}

/* Appends rows to one head; without room for all, those that fit are there and the call fails. */
static void do_append(struct World *w)
{
    int t = rng(TABLES), layer = rng(LAYERS), kv = rng(KV_HEADS), head = layer * KV_HEADS + kv,
        index[ROWS_MAX];
    int n = rng(4) ? rng(30) : rng(ROWS_MAX), room = room_of(w, &w->table[t], head);
    bool picked = rng(2);
    make_rows(w);
    if (picked) n = pick_rows(index, n);
    struct KvRows rows = {w->k, w->v, 0, picked ? index : NULL, n};
    int status = kv_append(&w->kv, &w->table[t], layer, kv, &rows, &w->writes);
    assert_int_equal(kv_flush(&w->kv, &w->writes), PC_OK);
    assert_int_equal(status, n > room ? PC_EINTERNAL : PC_OK);
    for (int i = 0; i < n && i < room; i++)
        list_add(&w->list[t][head], w->ids[picked ? index[i] : i], 0);
}

static void do_append_all(struct World *w)
{
    int t = rng(TABLES), layer = rng(LAYERS), n = rng(40);
    for (int kv = 0; kv < KV_HEADS; kv++)
        if (room_of(w, &w->table[t], layer * KV_HEADS + kv) < n) return;
    if ((int)w->kv.pool.n_free < KV_HEADS) return;
    make_rows(w);
    struct KvRows rows = {w->k, w->v, 0, NULL, n};
    assert_int_equal(kv_append_all(&w->kv, &w->table[t], layer, &rows, &w->writes), PC_OK);
    assert_int_equal(kv_flush(&w->kv, &w->writes), PC_OK);
    for (int kv = 0; kv < KV_HEADS; kv++)
        for (int i = 0; i < n; i++) list_add(&w->list[t][layer * KV_HEADS + kv], w->ids[i], 0);
}

static void do_move(struct World *w)
{
    int dst = rng(TABLES), src = rng(TABLES);
    if (dst == src) return;
    for (int h = 0; h < HEADS; h++)
        if (w->table[dst].n_refs[h] + w->table[src].n_refs[h] > STRIDE) return;
    assert_int_equal(kv_move(&w->table[dst], &w->table[src]), PC_OK);
    for (int h = 0; h < HEADS; h++) {
        for (int i = 0; i < w->list[src][h].n; i++)
            list_add(&w->list[dst][h], w->list[src][h].id[i], w->list[src][h].bias[i]);
        w->list[src][h].n = 0;
        assert_int_equal(w->table[src].n_refs[h], 0);
    }
}

/* What the table holds now, and nothing that comes later. */
static void do_bias(struct World *w)
{
    int t = rng(TABLES);
    float bias = (float)(rng(3) - 1);
    kv_bias(&w->table[t], bias, NULL);
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < w->list[t][h].n; i++) w->list[t][h].bias[i] = bias;
}

static void do_clear(struct World *w)
{
    int t = rng(TABLES);
    kv_clear(&w->kv, &w->table[t]);
    for (int h = 0; h < HEADS; h++) w->list[t][h].n = 0;
}

static void do_filter(struct World *w)
{
    int t = rng(TABLES), layer = rng(LAYERS), kv = rng(KV_HEADS), mode = rng(5), kept = 0,
        in_page = 0, pages = 0;
    struct List *l = &w->list[t][layer * KV_HEADS + kv];
    uint8_t keep[TOKENS_MAX];
    for (int i = 0; i < l->n; i++) {
        keep[i] = mode == 0   ? 0
                  : mode == 1 ? 1
                  : mode == 2 ? i < l->n / 2
                  : mode == 3 ? i % 9 == 0
                              : rng(2);
        if (!keep[i]) continue;
        bool apart = kept && l->bias[kept - 1] != l->bias[i];
        in_page = apart || in_page == PAGE_TOKENS || !kept ? 1 : in_page + 1;
        pages += in_page == 1;
        l->bias[kept] = l->bias[i];
        l->id[kept++] = l->id[i];
    }
    l->n = kept;
    assert_int_equal(kv_filter(&w->kv, &w->table[t], layer, kv, keep), PC_OK);
    /* as few pages as the tokens need */
    assert_int_equal(w->table[t].n_refs[layer * KV_HEADS + kv], pages);
}

/* Each head keeps its first tokens and at least its last ones, and less than a page more; or all, when the page in which
 * the first end is still needed. */
static void do_slide(struct World *w)
{
    int t = rng(TABLES), first = rng(3) ? rng(5) : rng(150), last = rng(200);
    for (int h = 0; h < HEADS; h++) {
        struct List *l = &w->list[t][h];
        bool went = kv_slide(&w->kv, &w->table[t], h, first, last);
        int n = w->table[t].n_tokens[h], rest = n - first;
        assert_true(went ? n < l->n : n == l->n);
        assert_true(n == l->n || rest >= last);
        assert_true(l->n <= first + last + PAGE_TOKENS || rest < last + PAGE_TOKENS);
        if (n == l->n) continue;
        memmove(l->id + first, l->id + l->n - rest, sizeof *l->id * (size_t)rest);
        memmove(l->bias + first, l->bias + l->n - rest, sizeof *l->bias * (size_t)rest);
        l->n = n;
    }
}

/* Tokens of one head copied behind those of another, all or picked; the source stays. */
static void do_gather(struct World *w)
{
    int src = rng(TABLES), dst = rng(TABLES), layer = rng(LAYERS), kv = rng(KV_HEADS), n = 0,
        head = layer * KV_HEADS + kv, index[TOKENS_MAX];
    const struct List *l = &w->list[src][head];
    if (src == dst || l->n == 0) return;
    int first = rng(l->n), step = 1 + rng(3);
    for (int i = 0; first + i < l->n; i += 1 + rng(step)) index[n++] = i;
    if (n > room_of(w, &w->table[dst], head)) return;
    struct KvTokens tokens = {&w->table[src], head, first, step == 1 ? NULL : index, n};
    assert_int_equal(kv_gather(&w->kv, &w->table[dst], layer, kv, &tokens), PC_OK);
    for (int i = 0; i < n; i++) list_add(&w->list[dst][head], l->id[first + index[i]], 0);
}

static void run_random(bool exact, enum KvType kv_type)
{
    struct World w;
    size_t before = mem_in_use();
    world_open(&w, exact, kv_type, N_PAGES);
    for (int step = 0; step < 1500; step++) {
        switch (rng(11)) {
        case 0:
        case 1:
            do_append_all(&w);
            break;
        case 2:
        case 3:
            do_move(&w);
            break;
        case 4:
            if (rng(4) == 0) do_clear(&w);
            if (rng(4) == 0) do_slide(&w);
            if (rng(2)) do_bias(&w);
            break;
        case 5:
        case 6:
            do_filter(&w);
            break;
        case 7:
            do_gather(&w);
            break;
        default:
            do_append(&w);
            break;
        }
        if (step % 4 == 0)
            check_world(&w);
        else
            check_pages(&w);
    }
    for (int t = 0; t < TABLES; t++) kv_clear(&w.kv, &w.table[t]);
    assert_int_equal(w.kv.pool.n_free, N_PAGES);
    world_close(&w);
    assert_int_equal(mem_in_use(), before);
}

static void test_random_f16(void **state)
{
    (void)state;
    run_random(false, KV_AUTO);
}

static void test_random_f32(void **state)
{
    (void)state;
    run_random(true, KV_AUTO);
}

/* Tokens that moved have the codes that they were written with. */
static void test_random_q8(void **state)
{
    (void)state;
    run_random(false, KV_Q8);
}

static void test_random_q4(void **state)
{
    (void)state;
    run_random(true, KV_Q4);
}

/* ==== Pages in a row ==== */

/* Some tokens of each head's row behind others, picked or from the first on, with room for few notes; `before` tokens of the
 * table lie in other pages. */
static void gather_rows(struct World *w, const uint32_t *page, const int *n, int before)
{
    static int index[HEADS][TOKENS_MAX]; /* until they are flushed */
    struct KvGathers notes;
    assert_int_equal(kv_gathers_open(&notes, 1 + rng(4)), PC_OK);
    for (int h = 0; h < HEADS; h++) {
        int picked = 0, step = 1 + rng(3);
        for (int i = 0; i < n[h]; i += 1 + rng(step)) index[h][picked++] = i;
        if (picked > room_of(w, &w->table[1], h)) continue;
        struct KvRun run = {page[h], step == 1 ? NULL : index[h], picked};
        assert_int_equal(
            kv_gather_run(&w->kv, &w->table[1], h / KV_HEADS, h % KV_HEADS, &run, &notes), PC_OK);
        for (int i = 0; i < picked; i++)
            list_add(&w->list[1][h], w->list[0][h].id[before + index[h][i]], 0);
    }
    assert_int_equal(kv_gather_flush(&w->kv, &notes), PC_OK);
    assert_int_equal(notes.n, 0);
    kv_gathers_close(&notes);
    for (int h = 0; h < HEADS; h++) check_head(w, 1, h);
}

/* Tokens of all heads in pages that follow each other, written piece by piece; what lies before them in a table stays. */
static void run_row(struct World *w)
{
    int n[HEADS], behind = rng(60);
    uint32_t first, page, begins[HEADS];
    make_rows(w);
    struct KvRows some = {w->k, w->v, 0, NULL, behind};
    assert_int_equal(kv_run(&w->kv, HEADS * 3, &first), PC_OK);
    page = first;
    for (int h = 0; h < HEADS; h++) {
        assert_int_equal(
            kv_append(&w->kv, &w->table[0], h / KV_HEADS, h % KV_HEADS, &some, &w->writes), PC_OK);
        for (int i = 0; i < behind; i++) list_add(&w->list[0][h], w->ids[i], 0);
    }
    assert_int_equal(kv_flush(&w->kv, &w->writes), PC_OK);
    for (int h = 0; h < HEADS; h++) {
        n[h] = rng(3 * PAGE_TOKENS + 1);
        begins[h] = page;
        int used = kv_lay(&w->table[0], h, page, n[h]);
        assert_int_equal(used, (n[h] + PAGE_TOKENS - 1) / PAGE_TOKENS);
        page += (uint32_t)used;
    }
    for (int h = 0; h < HEADS; h++) {
        make_rows(w);
        for (int at = 0, take; at < n[h]; at += take) {
            take = 1 + rng(n[h] - at);
            struct KvRows rows = {w->k, w->v, at, NULL, take};
            assert_int_equal(kv_put(&w->kv, &w->table[0], h / KV_HEADS, h % KV_HEADS, behind + at,
                                    &rows, &w->writes),
                             PC_OK);
        }
        assert_int_equal(kv_flush(&w->kv, &w->writes), PC_OK);
        for (int i = 0; i < n[h]; i++) list_add(&w->list[0][h], w->ids[i], 0);
    }
    for (int h = 0; h < HEADS; h++) check_head(w, 0, h);
    assert_true(page <= first + HEADS * 3);
    for (int i = 0; i < 3; i++) gather_rows(w, begins, n, behind);
    assert_int_equal(kv_run(&w->kv, w->kv.pool.n_free + 1, &first), PC_EINTERNAL);
    while (kv_lay(&w->table[0], 0, 0, PAGE_TOKENS) == 1) {
    }
    assert_int_equal(w->table[0].n_refs[0], STRIDE); /* no further */
}

static void test_row(void **state)
{
    (void)state;
    for (int i = 0; i < 40; i++) {
        struct World w;
        world_open(&w, i % 2, (enum KvType)(i % 3), N_PAGES);
        run_row(&w);
        world_close(&w);
    }
}

/* ==== Limits ==== */

static void test_pool_runs_out(void **state)
{
    (void)state;
    struct World w;
    world_open(&w, false, KV_AUTO, 4);
    make_rows(&w);
    struct KvRows rows = {w.k, w.v, 0, NULL, 2 * PAGE_TOKENS};
    assert_int_equal(kv_append(&w.kv, &w.table[0], 0, 0, &rows, &w.writes), PC_OK);
    assert_int_equal(kv_append(&w.kv, &w.table[1], 1, 2, &rows, &w.writes), PC_OK);
    assert_int_equal(w.kv.pool.n_free, 0);
    rows.n = 1;
    assert_int_equal(kv_append(&w.kv, &w.table[1], 0, 1, &rows, &w.writes), PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "layer 0 head 1"));
    assert_int_equal(kv_append(&w.kv, &w.table[1], 1, 2, &rows, &w.writes),
                     PC_EINTERNAL); /* its last page is full */
    kv_clear(&w.kv, &w.table[0]);
    assert_int_equal(w.kv.pool.n_free, 2);
    assert_int_equal(kv_append(&w.kv, &w.table[1], 0, 1, &rows, &w.writes), PC_OK);
    kv_clear(&w.kv, &w.table[1]);
    assert_int_equal(w.kv.pool.n_free, 4);
    check_pages(&w);
    world_close(&w);
}

static void test_table_runs_out(void **state)
{
    (void)state;
    struct World w;
    world_open(&w, true, KV_AUTO, 3 * STRIDE);
    make_rows(&w);
    struct KvRows rows = {w.k, w.v, 0, NULL, PAGE_TOKENS};
    for (int i = 0; i < STRIDE; i++)
        assert_int_equal(kv_append(&w.kv, &w.table[0], 1, 0, &rows, &w.writes), PC_OK);
    assert_int_equal(kv_append(&w.kv, &w.table[0], 1, 0, &rows, &w.writes), PC_EINTERNAL);
    assert_int_equal(w.table[0].n_tokens[KV_HEADS], TOKENS_MAX);
    /* other heads have their own room */
    assert_int_equal(kv_append(&w.kv, &w.table[0], 1, 1, &rows, &w.writes), PC_OK);
    rows.n = 1;
    assert_int_equal(kv_append(&w.kv, &w.table[1], 1, 0, &rows, &w.writes), PC_OK);
    assert_int_equal(kv_move(&w.table[0], &w.table[1]), PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "room"));
    check_pages(&w); /* whatever was moved before the failure lies in one of the two */
    kv_clear(&w.kv, &w.table[0]);
    kv_clear(&w.kv, &w.table[1]);
    assert_int_equal(w.kv.pool.n_free, 3 * STRIDE);
    world_close(&w);
}

/* What kv_open and kv_table_open take is what their size functions say. */
static void test_sizes(void **state)
{
    (void)state;
    struct World w;
    world_open(&w, false, KV_AUTO, N_PAGES);
    struct KvCache kv;
    struct HeadTable t;
    size_t before = mem_in_use();
    assert_int_equal(kv_open(&kv, &backend_cpu, w.dev, &w.model.cfg, 33), PC_OK);
    assert_int_equal(mem_in_use() - before, kv_pool_bytes(&backend_cpu, w.dev, 33));
    assert_int_equal(kv.pool.page_bytes, 2 * PAGE_TOKENS * DIM * 2);
    kv_close(&kv);
    assert_int_equal(mem_in_use(), before);
    assert_int_equal(kv_table_open(&t, &w.model.cfg, 9), PC_OK);
    assert_int_equal(mem_in_use() - before, kv_table_bytes(&w.model.cfg, 9));
    kv_table_close(&t);
    assert_int_equal(mem_in_use(), before);
    /* more pages than 32 bits number */
    assert_int_equal(kv_open(&kv, &backend_cpu, w.dev, &w.model.cfg, (size_t)1 << 33), PC_ENOMEM);
    kv_close(&kv);
    assert_int_equal(mem_in_use(), before);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_f16),    cmocka_unit_test(test_random_f32),
        cmocka_unit_test(test_random_q8),     cmocka_unit_test(test_random_q4),
        cmocka_unit_test(test_pool_runs_out), cmocka_unit_test(test_table_runs_out),
        cmocka_unit_test(test_sizes),         cmocka_unit_test(test_row),
    };
    return cmocka_run_group_tests_name("kv_cache", tests, NULL, NULL) != 0;
}

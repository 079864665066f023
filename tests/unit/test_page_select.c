/* test_page_select.c - the choice of pages against a full sort, and whole runs with it on the CPU: against a plain softmax
 * over the chosen pages, and against runs that read every page.
 */
#include "eviction/page_select.h"
#include "eviction/select.h"
#include "tests/gca_ref.h"
#include "tests/unit/session_support.h"

enum { N_MAX = 300, ROUNDS = 20000 };

static uint64_t rng_state = 17;

static int rng(int below)
{
    return (int)(next_number(&rng_state) % (uint32_t)below);
}

/* ==== The policy by brute force ==== */

static const float *sorted_by;

static int by_score(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;
    float x = sorted_by[i], y = sorted_by[j];
    if (isnan(x) != isnan(y)) return isnan(x) ? 1 : -1;
    if (x > y) return -1;
    if (x < y) return 1;
    return i - j;
}

struct Choice {
    struct PageSelect rule;
    float score[N_MAX], log[N_MAX];
    int len[N_MAX], n, n_open;
    bool taken[N_MAX];
};

/* Marks the best of [first, end) one after another, by number or until the mass is there. */
static void brute(struct Choice *c)
{
    const struct PageSelect *s = &c->rule;
    int last = s->last > c->n_open ? s->last : c->n_open, end = c->n > last ? c->n - last : 0;
    int order[N_MAX], m = 0;
    float top = -INFINITY;
    double all = 0, have = 0, share[N_MAX] = {0};
    for (int i = 0; i < c->n; i++) c->taken[i] = i < s->first || i >= end;
    for (int i = s->first; i < end; i++) order[m++] = i;
    for (int i = 0; i < c->n - c->n_open; i++) {
        c->log[i] = s->mass > 0 ? c->score[i] + logf((float)c->len[i]) : c->score[i];
        if (c->log[i] > top) top = c->log[i];
    }
    for (int i = 0; i < c->n - c->n_open; i++) {
        double part = c->log[i] == top ? 1 : expf(c->log[i] - top);
        share[i] = part > 0 ? floor(part * 0x1p30) : 0;
        all += share[i];
        if (c->taken[i]) have += share[i];
    }
    sorted_by = c->log;
    qsort(order, (size_t)m, sizeof *order, by_score);
    for (int i = 0; i < m; i++) {
        bool wanted =
            s->mass > 0 ? s->mass >= 1 || have < ceil((double)s->mass * all) : i < s->pages;
        if (!wanted) break;
        c->taken[order[i]] = true;
        have += share[order[i]];
    }
}

static void check_choice(struct Choice *c)
{
    int idx[N_MAX + 1], at = 0;
    float log[N_MAX];
    uint32_t share[N_MAX];
    struct PageWeights work = {log, share};
    idx[c->n] = -77;
    brute(c);
    int n = page_select(&c->rule, c->score, c->len, c->n, c->n_open, &work, idx);
    for (int i = 0; i < c->n; i++)
        if (c->taken[i] && (at >= n || idx[at++] != i))
            fail_msg("n %d open %d pages %d mass %g: page %d is missing", c->n, c->n_open,
                     c->rule.pages, (double)c->rule.mass, i);
    if (at != n)
        fail_msg("n %d open %d pages %d mass %g first %d last %d: %d pages, not %d", c->n,
                 c->n_open, c->rule.pages, (double)c->rule.mass, c->rule.first, c->rule.last, n,
                 at);
    assert_int_equal(idx[c->n], -77);
    if (page_select_all(&c->rule, c->n, c->n_open)) assert_int_equal(n, c->n);
}

static float any_score(int kind)
{
    static const float odd[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, -3.0f, 1.0f};
    switch (kind) {
    case 0:
        return (float)rng(3); /* mostly ties */
    case 1:
        return (float)rng(1 << 20) * 1e-5f;
    case 2:
        return ((float)rng(1 << 20) - 524288.0f) * 1e-3f; /* most weigh nothing */
    default:
        return odd[rng(8)];
    }
}

static struct Choice any_choice(int round)
{
    static const float masses[] = {0, 0, 0.3f, 0.9f, 0.999f, 1};
    struct Choice c = {.n = rng(round % 20 ? 30 : N_MAX)};
    c.rule = (struct PageSelect){.index = PAGE_INDEX_MEAN,
                                 .pages = rng(20),
                                 .mass = masses[rng(6)],
                                 .first = rng(4),
                                 .last = rng(4)};
    c.n_open = c.n ? rng(c.n < 4 ? c.n + 1 : 4) : 0;
    for (int i = 0; i < c.n; i++) {
        c.score[i] = i < c.n - c.n_open ? any_score(round % 4) : 1e9f; /* not to be looked at */
        c.len[i] = round % 3 ? 64 : 1 + rng(64);
    }
    return c;
}

static void test_choice(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct Choice c = any_choice(round);
        check_choice(&c);
    }
}

/* The fewest of the highest that reach what is wanted, equals in order. */
static void test_share(void **state)
{
    (void)state;
    float score[6] = {1, 3, 3, 3, 2, NAN};
    uint32_t weight[6] = {5, 20, 20, 20, 10, 0};
    static const struct {
        uint64_t wanted;
        int n, idx[6];
    } cases[] = {
        {0, 0, {0}},
        {1, 1, {1}},
        {20, 1, {1}},
        {21, 2, {1, 2}},
        {60, 3, {1, 2, 3}},
        {61, 4, {1, 2, 3, 4}},
        {75, 5, {0, 1, 2, 3, 4}},
        {9999, 5, {0, 1, 2, 3, 4}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int idx[6];
        assert_int_equal(select_share(score, weight, 6, cases[c].wanted, idx), cases[c].n);
        assert_memory_equal(idx, cases[c].idx, sizeof *idx * (size_t)cases[c].n);
    }
    assert_int_equal(select_share(NULL, NULL, 0, 5, NULL), 0);
}

/* ==== One row over chosen pages ==== */

enum { PAST_MAX = 40 };

/* One layer's row over pages of odd lengths and biases, and what was chosen for it. */
struct RowCase {
    struct Engine *e;
    struct KvCache kv;
    struct HeadTable past;
    struct PageSelect select;
    bool kept; /* the row reads what the one before it chose */
    float *q, *k, *v, *out;
};

static float uniform(void)
{
    return (float)rng(2001) / 1000 - 1;
}

static void fill_page(struct RowCase *r, struct PageRef ref, int kv_head)
{
    const struct ModelConfig *m = &r->e->model.cfg;
    size_t row = (size_t)m->n_kv_heads * m->head_dim;
    float *k = calloc(row * PAGE_TOKENS, sizeof *k), *v = calloc(row * PAGE_TOKENS, sizeof *v);
    float shift = 2 * uniform(); /* pages differ */
    for (size_t i = 0; i < row * PAGE_TOKENS; i++) k[i] = uniform() + shift, v[i] = uniform();
    struct KvWrite w = {.k = k, .v = v, .kv_head = kv_head, .n = (int)ref.len, .page = ref};
    must(r->e->be->kv_write(r->e->dev, &r->kv.pool, &w, 1));
    free(k);
    free(v);
}

/* One more page of a head, part full or not, with a bias or none. */
static void add_page(struct RowCase *r, int head)
{
    struct PageRef ref = {r->kv.pool.free[--r->kv.pool.n_free],
                          rng(3) ? PAGE_TOKENS : 1 + (uint32_t)rng(PAGE_TOKENS),
                          rng(4) ? 0 : uniform()};
    r->past.refs[(size_t)head * PAST_MAX + r->past.n_refs[head]++] = ref;
    r->past.n_tokens[head] += (int)ref.len;
    fill_page(r, ref, head % r->e->model.cfg.n_kv_heads);
}

/* Heads of layer 1 with differing numbers of pages, part full anywhere, some with a bias. */
static void row_open(struct RowCase *r, struct Engine *e, struct PageSelect select)
{
    const struct ModelConfig *m = &e->model.cfg;
    int heads = m->n_layers * m->n_kv_heads;
    size_t q = (size_t)m->n_heads * m->head_dim, kv = (size_t)m->n_kv_heads * m->head_dim;
    *r = (struct RowCase){.e = e, .select = select};
    must(kv_open(&r->kv, e->be, e->dev, m, (size_t)heads * PAST_MAX));
    must(kv_index_open(&r->kv, select.index));
    must(kv_table_open(&r->past, m, PAST_MAX));
    struct BatchShape shape = {.rows = 1,
                               .seqs = 1,
                               .keys = PAST_MAX * PAGE_TOKENS,
                               .head_rows = 1,
                               .selects = true,
                               .keeps_pages = true};
    must(e->be->reserve(e->dev, &shape));
    for (int h = 0; h < heads; h++) {
        int n = h % 5 == 4 ? 0 : rng(PAST_MAX);
        for (int i = 0; i < n; i++) add_page(r, h);
    }
    must(kv_index_all(&r->kv, &r->past));
    r->q = calloc(q, sizeof *r->q);
    r->out = calloc(q, sizeof *r->out);
    r->k = calloc(kv, sizeof *r->k);
    r->v = calloc(kv, sizeof *r->v);
    for (size_t i = 0; i < q; i++) r->q[i] = uniform();
    for (size_t i = 0; i < kv; i++) r->k[i] = uniform(), r->v[i] = uniform();
}

static void row_close(struct RowCase *r)
{
    kv_clear(&r->kv, &r->past);
    kv_table_close(&r->past);
    kv_close(&r->kv);
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->out);
}

static void row_run(struct RowCase *r, const struct HeadMasks *masks)
{
    int begin[2] = {0, 1};
    struct AttnArgs a = {.q = r->q,
                         .k = r->k,
                         .v = r->v,
                         .out = r->out,
                         .seq_begin = begin,
                         .n_seqs = 1,
                         .layer = 1,
                         .pool = &r->kv.pool,
                         .past = &r->past,
                         .masks = masks,
                         .select = r->select.index ? &r->select : NULL,
                         .select_kept = r->kept};
    must(r->e->be->attention(r->e->dev, &a));
}

/* A page's keys and values, read back: k, v [len, dim]. */
static void read_page(const struct RowCase *r, struct PageRef ref, float *k, float *v)
{
    int dim = r->e->model.cfg.head_dim;
    for (int t = 0; t < (int)ref.len; t++)
        must(r->e->be->kv_read(r->e->dev, &r->kv.pool, ref, t, k + (size_t)t * dim,
                               v + (size_t)t * dim));
}

static double product(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* The largest over the group's heads of scale * q . mean, or of the best that each channel's range allows. */
static double page_score(const struct RowCase *r, int kv_head, struct PageRef ref)
{
    const struct ModelConfig *m = &r->e->model.cfg;
    int dim = m->head_dim, group = m->n_heads / m->n_kv_heads;
    float k[PAGE_TOKENS * 64], v[PAGE_TOKENS * 64];
    double best = -INFINITY;
    read_page(r, ref, k, v);
    for (int g = 0; g < group; g++) {
        const float *q = r->q + (size_t)(kv_head * group + g) * dim;
        double sum = 0;
        for (int d = 0; d < dim; d++) {
            double mean = 0, least = INFINITY, most = -INFINITY;
            for (int t = 0; t < (int)ref.len; t++) {
                double x = k[(size_t)t * dim + d];
                mean += x / ref.len;
                least = fmin(least, x);
                most = fmax(most, x);
            }
            sum +=
                r->select.index == PAGE_INDEX_MEAN ? q[d] * mean : fmax(q[d] * least, q[d] * most);
        }
        best = fmax(best, sum);
    }
    return best / sqrt(dim) + ref.bias;
}

/* The row's output of one query head over the marked pages and its own key. */
static void check_output(const struct RowCase *r, int head, const bool *taken)
{
    const struct ModelConfig *m = &r->e->model.cfg;
    int dim = m->head_dim, kv_head = head / (m->n_heads / m->n_kv_heads),
        table = m->n_kv_heads + kv_head;
    const float *q = r->q + (size_t)head * dim, *own = r->v + (size_t)kv_head * dim;
    float k[PAGE_TOKENS * 64], v[PAGE_TOKENS * 64];
    double sum = exp(product(q, r->k + (size_t)kv_head * dim, dim) / sqrt(dim)), want[64];
    for (int d = 0; d < dim; d++) want[d] = sum * own[d];
    for (int i = 0; i < r->past.n_refs[table]; i++) {
        struct PageRef ref = r->past.refs[(size_t)table * PAST_MAX + i];
        if (!taken[i]) continue;
        read_page(r, ref, k, v);
        for (int t = 0; t < (int)ref.len; t++) {
            double w = exp(product(q, k + (size_t)t * dim, dim) / sqrt(dim) + ref.bias);
            sum += w;
            for (int d = 0; d < dim; d++) want[d] += w * v[(size_t)t * dim + d];
        }
    }
    for (int d = 0; d < dim; d++) {
        double off = fabs(want[d] / sum - r->out[(size_t)head * dim + d]);
        if (!(off <= 2e-3)) fail_msg("head %d: off by %g", head, off);
    }
}

/* The pages of a head that the scores choose. */
static void expect(const struct RowCase *r, int kv_head, struct Choice *c)
{
    int table = r->e->model.cfg.n_kv_heads + kv_head;
    const struct PageRef *refs = r->past.refs + (size_t)table * PAST_MAX;
    *c = (struct Choice){.rule = r->select, .n = r->past.n_refs[table]};
    while (c->n_open < c->n && refs[c->n - 1 - c->n_open].len < PAGE_TOKENS) c->n_open++;
    for (int i = 0; i < c->n; i++) {
        c->len[i] = (int)refs[i].len;
        c->score[i] = (float)page_score(r, kv_head, refs[i]);
    }
    brute(c);
}

static void check_row(struct Engine *e, struct PageSelect select)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct RowCase r;
    struct PageCounts counts;
    int64_t read = 0, there = 0;
    row_open(&r, e, select);
    row_run(&r, NULL);
    for (int kv = 0; kv < m->n_kv_heads; kv++) {
        struct Choice c;
        expect(&r, kv, &c);
        int group = m->n_heads / m->n_kv_heads;
        for (int g = 0; g < group; g++) check_output(&r, kv * group + g, c.taken);
        for (int i = 0; i < c.n; i++) read += c.taken[i];
        there += c.n;
    }
    must(e->be->page_counts(e->dev, &counts));
    assert_int_equal(counts.read, read);
    assert_int_equal(counts.there, there);
    row_close(&r);
}

static void check_rows(struct Engine *e)
{
    static const struct PageSelect rules[] = {
        {PAGE_INDEX_MEAN, 5, 0, 1, 2},    {PAGE_INDEX_BOUND, 5, 0, 1, 2},
        {PAGE_INDEX_MEAN, 0, 0, 0, 0},    {PAGE_INDEX_BOUND, 12, 0, 3, 0},
        {PAGE_INDEX_MEAN, 0, 0.8f, 1, 1}, {PAGE_INDEX_BOUND, 0, 0.6f, 0, 2},
        {PAGE_INDEX_MEAN, 100, 0, 0, 0},  {PAGE_INDEX_BOUND, 0, 1, 0, 0},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        for (int round = 0; round < 4; round++) check_row(e, rules[i]);
}

static void test_rows(void **state)
{
    (void)state;
    each_engine(check_rows);
}

/* ==== A choice that stands for several rows ==== */

static void new_query(struct RowCase *r)
{
    const struct ModelConfig *m = &r->e->model.cfg;
    for (int i = 0; i < m->n_heads * m->head_dim; i++) r->q[i] = uniform();
}

/* Rows of other queries over a growing past read what the first one chose, and what came since; then the next choice is
 * the query's own again. Returns how many heads would have chosen otherwise. */
static int check_kept_rows(struct RowCase *r)
{
    const struct ModelConfig *m = &r->e->model.cfg;
    int group = m->n_heads / m->n_kv_heads, differ = 0;
    struct Choice first[8], own;
    row_run(r, NULL);
    for (int kv = 0; kv < m->n_kv_heads; kv++) expect(r, kv, &first[kv]);
    r->kept = true;
    for (int row = 0; row < 3; row++) {
        new_query(r);
        for (int kv = 0; kv < m->n_kv_heads; kv++)
            if (r->past.n_refs[m->n_kv_heads + kv] < PAST_MAX) add_page(r, m->n_kv_heads + kv);
        must(kv_index_all(&r->kv, &r->past));
        row_run(r, NULL);
        for (int kv = 0; kv < m->n_kv_heads; kv++) {
            expect(r, kv, &own);
            differ += memcmp(own.taken, first[kv].taken, sizeof own.taken) != 0;
            for (int i = first[kv].n; i < own.n; i++) first[kv].taken[i] = true;
            for (int g = 0; g < group; g++) check_output(r, kv * group + g, first[kv].taken);
        }
    }
    r->kept = false;
    row_run(r, NULL);
    for (int kv = 0; kv < m->n_kv_heads; kv++) {
        expect(r, kv, &own);
        for (int g = 0; g < group; g++) check_output(r, kv * group + g, own.taken);
    }
    return differ;
}

static void check_cadence(struct Engine *e)
{
    static const struct PageSelect rules[] = {{PAGE_INDEX_MEAN, 3, 0, 1, 2},
                                              {PAGE_INDEX_BOUND, 2, 0, 0, 0},
                                              {PAGE_INDEX_MEAN, 0, 0.5f, 1, 1}};
    int differ = 0;
    for (int round = 0; round < 9; round++) {
        struct RowCase r;
        row_open(&r, e, rules[round % 3]);
        differ += check_kept_rows(&r);
        row_close(&r);
    }
    assert_true(differ > 9); /* or nothing was shown */
}

static void test_cadence(void **state)
{
    (void)state;
    each_engine(check_cadence);
}

/* ==== GCA with exact weights ==== */

/* The chosen pages of a head and the row's own token as chunks. k, v [PAST_MAX + 1, 64, dim] */
static struct GcaChunks chunks_of(const struct RowCase *r, int kv_head, const bool *taken, float *k,
                                  float *v, int *len)
{
    int dim = r->e->model.cfg.head_dim, table = r->e->model.cfg.n_kv_heads + kv_head;
    struct GcaChunks c = {k, v, len, 0, PAGE_TOKENS, dim};
    size_t size = (size_t)PAGE_TOKENS * dim;
    for (int i = 0; i < r->past.n_refs[table]; i++) {
        struct PageRef ref = r->past.refs[(size_t)table * PAST_MAX + i];
        if (!taken[i]) continue;
        read_page(r, ref, k + c.n * size, v + c.n * size);
        len[c.n++] = (int)ref.len;
    }
    memcpy(k + c.n * size, r->k + (size_t)kv_head * dim, sizeof *k * dim);
    memcpy(v + c.n * size, r->v + (size_t)kv_head * dim, sizeof *v * dim);
    len[c.n++] = 1;
    return c;
}

/* How far the row's output of one query head is from GCA's over these chunks, fused with exp(lse_c - lse) or by the
 * scores of their mean keys as landmarks. */
static double gca_distance(const struct RowCase *r, int head, const struct GcaChunks *c, bool exact)
{
    static float landmark[(PAST_MAX + 1) * 64];
    const float *q = r->q + (size_t)head * c->head_dim;
    int idx[PAST_MAX + 1];
    double weight[PAST_MAX + 1], lse[PAST_MAX + 1], out[64], off = 0;
    memset(landmark, 0, sizeof landmark);
    for (int i = 0; i < c->n; i++)
        for (int t = 0; t < c->len[i]; t++)
            for (int d = 0; d < c->head_dim; d++)
                landmark[i * c->head_dim + d] +=
                    c->k[((size_t)i * PAGE_TOKENS + (size_t)t) * c->head_dim + d] /
                    (float)c->len[i];
    int n = gca_retrieve(q, landmark, c->n, c->head_dim, c->n, idx, weight);
    gca_attend(q, c, idx, weight, n, false, out, lse);
    if (exact) gca_exact_weights(lse, n, weight);
    if (exact) gca_attend(q, c, idx, weight, n, false, out, NULL);
    for (int d = 0; d < c->head_dim; d++)
        off = fmax(off, fabs(out[d] - r->out[(size_t)head * c->head_dim + d]));
    return off;
}

/* The engine's row over chosen pages is GCA over them with exact weights (headwise.md C.2), and is not GCA with weights
 * from retrieval scores. */
static void check_gca(struct Engine *e)
{
    static float k[(PAST_MAX + 1) * PAGE_TOKENS * 64], v[(PAST_MAX + 1) * PAGE_TOKENS * 64];
    const struct ModelConfig *m = &e->model.cfg;
    int group = m->n_heads / m->n_kv_heads, len[PAST_MAX + 1];
    double apart = 0;
    struct RowCase r;
    row_open(&r, e, (struct PageSelect){PAGE_INDEX_MEAN, 8, 0, 1, 2}); /* GCA's own 8 */
    for (size_t i = 0; i < r.past.stride * (size_t)r.past.n_heads; i++)
        r.past.refs[i].bias = 0; /* GCA has none */
    row_run(&r, NULL);
    for (int kv = 0; kv < m->n_kv_heads; kv++) {
        struct Choice choice;
        expect(&r, kv, &choice);
        struct GcaChunks c = chunks_of(&r, kv, choice.taken, k, v, len);
        for (int g = 0; g < group; g++) {
            double off = gca_distance(&r, kv * group + g, &c, true);
            if (!(off <= 2e-3)) fail_msg("head %d: off by %g", kv * group + g, off);
            if (c.n > 2) apart = fmax(apart, gca_distance(&r, kv * group + g, &c, false));
        }
    }
    assert_true(apart > 0.01);
    row_close(&r);
}

static void test_gca(void **state)
{
    (void)state;
    each_engine(check_gca);
}

/* A head with a window is read whole, and counts for nothing. */
static void check_windows(struct Engine *e)
{
    const struct ModelConfig *m = &e->model.cfg;
    int group = m->n_heads / m->n_kv_heads, window[64] = {0};
    size_t q = (size_t)m->n_heads * m->head_dim;
    struct PageSelect select = {PAGE_INDEX_MEAN, 2, 0, 1, 1};
    struct HeadMasks masks = {window, 4};
    struct PageCounts counts;
    struct RowCase r;
    row_open(&r, e, select);
    for (int g = 0; g < group; g++) window[m->n_heads + g] = 100; /* layer 1, KV head 0 */
    row_run(&r, &masks);
    must(e->be->page_counts(e->dev, &counts));
    float *with = copy_of(r.out, q);
    int64_t there = 0;
    for (int kv = 1; kv < m->n_kv_heads; kv++) there += r.past.n_refs[m->n_kv_heads + kv];
    assert_int_equal(counts.there, there);
    r.select.index = PAGE_INDEX_OFF;
    row_run(&r, &masks);
    assert_memory_equal(with, r.out, sizeof *with * (size_t)(group * m->head_dim));
    free(with);
    row_close(&r);
}

static void test_windows(void **state)
{
    (void)state;
    each_engine(check_windows);
}

/* More pages than the scratch was made for are refused. */
static void test_room(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct PageSelect select = {PAGE_INDEX_MEAN, 2, 0, 1, 1};
    struct BatchShape shape = {.rows = 1, .seqs = 1, .keys = 64, .head_rows = 1, .selects = true};
    int begin[2] = {0, 1};
    struct RowCase r;
    row_open(&r, e, select);
    r.past.n_refs[e->model.cfg.n_kv_heads] = PAST_MAX;
    must(e->be->reserve(e->dev, &shape));
    struct AttnArgs a = {.seq_begin = begin,
                         .n_seqs = 1,
                         .layer = 1,
                         .pool = &r.kv.pool,
                         .past = &r.past,
                         .select = &r.select};
    assert_int_equal(e->be->attention(e->dev, &a), PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "in room for"));
    r.past.n_refs[e->model.cfg.n_kv_heads] = 0;
    row_close(&r);
    engine_close(e);
}

/* So is a row that asks for an earlier choice where none is kept, or where the past has shrunk since. */
static void test_kept_room(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    int begin[2] = {0, 1}, table = e->model.cfg.n_kv_heads;
    struct RowCase r;
    row_open(&r, e, (struct PageSelect){PAGE_INDEX_MEAN, 2, 0, 1, 1});
    struct AttnArgs a = {.q = r.q,
                         .k = r.k,
                         .v = r.v,
                         .out = r.out,
                         .seq_begin = begin,
                         .n_seqs = 1,
                         .layer = 1,
                         .pool = &r.kv.pool,
                         .past = &r.past,
                         .select = &r.select};
    if (!r.past.n_refs[table]) add_page(&r, table);
    must(e->be->attention(e->dev, &a));
    a.select_kept = true;
    must(e->be->attention(e->dev, &a));
    r.past.n_refs[table]--;
    assert_int_equal(e->be->attention(e->dev, &a), PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "is asked of"));
    r.past.n_refs[table]++;
    struct BatchShape shape = {
        .rows = 1, .seqs = 1, .keys = PAST_MAX * PAGE_TOKENS, .head_rows = 1, .selects = true};
    must(e->be->reserve(e->dev, &shape));
    assert_int_equal(e->be->attention(e->dev, &a), PC_EINTERNAL);
    assert_non_null(strstr(err_text(), "no row before it has kept"));
    row_close(&r);
    engine_close(e);
}

/* ==== Whole runs ==== */

static struct Outcome selected(struct Engine *e, enum PageIndex index, int pages, float mass,
                               struct PageCounts *counts)
{
    struct Run run;
    struct Outcome o;
    e->settings.select = index;
    e->settings.select_pages = pages;
    e->settings.select_mass = mass;
    run_open(&run, e, plain_input);
    must(session_stages(&run.s, false));
    finish(&run, &o);
    *counts = (struct PageCounts){run.r.pages_read, run.r.pages_there};
    run_close(&run);
    return o;
}

/* With room for every page, or all of the mass, the bytes are those of a run without. */
static void check_identity(struct Engine *e)
{
    struct PageCounts n;
    e->settings.keep = KEEP_ALL;
    e->settings.max_tokens = ANSWER;
    e->settings.temperature = 1; /* no end of the answer at once */
    for (int caps = 0; caps < 2; caps++) {
        e->settings.kv_cap = caps ? 50 : CAP_OFF; /* pages part full in between */
        struct Outcome off = selected(e, PAGE_INDEX_OFF, 0, 0, &n);
        assert_int_equal(n.there, 0);
        for (int index = PAGE_INDEX_MEAN; index <= PAGE_INDEX_BOUND; index++) {
            struct Outcome all = selected(e, (enum PageIndex)index, 1000, 0, &n);
            same_bits(&off, &all);
            assert_true(off.n_ids < 2 || (n.there > 0 && n.read == n.there));
            all = selected(e, (enum PageIndex)index, 0, 1, &n);
            same_bits(&off, &all);
            struct Outcome few = selected(e, (enum PageIndex)index, 1, 0, &n);
            assert_memory_equal(off.logits, few.logits, sizeof off.logits); /* of the question */
            assert_true(off.n_ids < 2 || n.read < n.there);
            struct Outcome again = selected(e, (enum PageIndex)index, 1, 0, &n);
            same_bits(&few, &again);
        }
    }
}

static void test_identity(void **state)
{
    (void)state;
    each_engine(check_identity);
}

/* Counts a run's rows that select, and those that keep a choice. */
static struct {
    const struct Backend *real;
    int rows, kept;
} tap;

static int tap_attention(struct Device *d, const struct AttnArgs *a)
{
    tap.rows += a->select != NULL;
    tap.kept += a->select && a->select_kept;
    return tap.real->attention(d, a);
}

/* A choice every so many tokens of the answer, from the first on; with room for every page it matters to no byte. */
static void check_every(struct Engine *e)
{
    struct Backend table = *e->be;
    struct PageCounts n;
    tap.real = e->be;
    table.attention = tap_attention;
    e->settings.keep = KEEP_ALL;
    e->settings.temperature = 1;
    e->settings.max_tokens = 90; /* pages fill between two choices */
    struct Outcome off = selected(e, PAGE_INDEX_OFF, 0, 0, &n);
    static const int everies[] = {1, 2, 7, 64};
    e->be = &table;
    for (int i = 0; i < 4; i++) {
        e->settings.select_every = everies[i];
        tap.rows = tap.kept = 0;
        struct Outcome all = selected(e, PAGE_INDEX_BOUND, 1000, 0, &n);
        same_bits(&off, &all);
        int steps = tap.rows / e->model.cfg.n_layers,
            chosen = (steps + everies[i] - 1) / everies[i];
        assert_int_equal(tap.rows - tap.kept, chosen * e->model.cfg.n_layers);
        struct Outcome few = selected(e, PAGE_INDEX_MEAN, 1, 0, &n);
        assert_true(few.n_ids < 2 || n.read < n.there);
        struct Outcome again = selected(e, PAGE_INDEX_MEAN, 1, 0, &n);
        same_bits(&few, &again);
    }
    e->be = tap.real;
}

static void test_every(void **state)
{
    (void)state;
    each_engine(check_every);
}

static void limits_of_others(const struct Device *d, struct DeviceLimits *out)
{
    tap.real->limits(d, out);
    out->keeps_pages = false;
}

/* A backend that chooses anew for every token says so. */
static void test_every_refused(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct Backend table = *e->be;
    struct PlanInfo plan;
    struct Request req = {.context = "Of pages.", .context_len = 9, .question = "Which?"};
    tap.real = e->be;
    table.limits = limits_of_others;
    e->be = &table;
    e->settings.select_every = 2;
    must(session_plan(e, &req, &plan)); /* nothing selects */
    e->settings.select = PAGE_INDEX_MEAN;
    assert_int_equal(session_plan(e, &req, &plan), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "select_every"));
    e->settings.select_every = 1;
    must(session_plan(e, &req, &plan));
    e->be = tap.real;
    engine_close(e);
}

/* The index that decoding keeps is the one that the pages' keys make, for all but pages that still fill. */
static void check_upkeep(struct Engine *e)
{
    struct Run run;
    e->settings.select = PAGE_INDEX_BOUND;
    e->settings.max_tokens = 200;
    e->settings.kv_cap = 50;
    e->settings.temperature = 2;
    run_open(&run, e, plain_input);
    must(session_stages(&run.s, false));
    must(question_pass(&run.s));
    int before = run.s.merged.n_refs[0];
    must(decode_answer(&run.s));
    struct PagePool *p = &run.s.kv.pool;
    size_t bytes = p->n_pages * p->index_bytes;
    uint8_t *kept = malloc(bytes);
    memcpy(kept, p->index, bytes);
    must(kv_index_all(&run.s.kv, &run.s.merged));
    int n = 0;
    for (int h = 0; h < run.s.merged.n_heads; h++)
        for (int i = 0; i < run.s.merged.n_refs[h]; i++) {
            const struct PageRef *ref = run.s.merged.refs + (size_t)h * run.s.merged.stride + i;
            if (i == run.s.merged.n_refs[h] - 1 && ref->len < PAGE_TOKENS) continue;
            assert_memory_equal(kept + ref->page * p->index_bytes,
                                p->index + ref->page * p->index_bytes, p->index_bytes);
            n += i >= before;
        }
    print_message("# %s: %d tokens filled %d pages\n", e->model.cfg.arch, run.r.n_ids, n);
    assert_true(n > 0);
    free(kept);
    run_close(&run);
}

static void test_upkeep(void **state)
{
    (void)state;
    each_engine(check_upkeep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice), cmocka_unit_test(test_share),
        cmocka_unit_test(test_rows),   cmocka_unit_test(test_windows),
        cmocka_unit_test(test_room),   cmocka_unit_test(test_identity),
        cmocka_unit_test(test_upkeep), cmocka_unit_test(test_cadence),
        cmocka_unit_test(test_gca),    cmocka_unit_test(test_kept_room),
        cmocka_unit_test(test_every),  cmocka_unit_test(test_every_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

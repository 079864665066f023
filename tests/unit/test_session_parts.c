/* test_session_parts.c - attention in parts against softmax by brute force; and answers that all ranks make, each over the
 * chunks that it read: the same chunks and words as alone, the same bits on every rank, and failures at any moment.
 */
#include "tests/unit/session_team_support.h"

/* ==== Attention in parts ==== */

enum { PARTS = 4, PAST = 300, ROWS = 70 };

/* Heads of layer 0 with pages of any length, spread over parts. */
struct Spread {
    struct Engine *e;
    int rows, n_parts, last_part; /* of `last_part` parts and more nothing is kept */
    bool biased;
    struct HeadMasks masks;
    struct KvCache kv;
    struct HeadTable whole, part[PARTS];
    int from[64][PAST]; /* [kv head] part of each page */
    uint8_t own[PARTS][64];
    float *q, *k, *v, *out; /* rows */
    uint64_t state;
};

static int below(struct Spread *s, int n)
{
    return (int)(next_number(&s->state) % (uint32_t)n);
}

static float *random_floats(struct Spread *s, size_t n)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = (float)below(s, 2001) / 500 - 2;
    return x;
}

/* One head's tokens in pages; some parts get none. A streaming head is of one part. */
static void fill_head(struct Spread *s, int head, bool streams)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t width = (size_t)m->n_kv_heads * m->head_dim;
    int pages = below(s, 5), owner = below(s, s->last_part);
    for (int i = 0; i < pages; i++) {
        int len = 1 + below(s, PAGE_TOKENS), part = streams ? owner : below(s, s->last_part);
        uint32_t id = s->kv.pool.free[--s->kv.pool.n_free];
        struct PageRef ref = {id, (uint32_t)len, s->biased ? (float)below(s, 5) - 2 : 0};
        float *k = random_floats(s, width * (size_t)len), *v = random_floats(s, width * len);
        struct KvWrite w = {.k = k, .v = v, .kv_head = head, .n = len, .page = ref};
        must(s->e->be->kv_write(s->e->dev, &s->kv.pool, &w, 1));
        struct HeadTable *tables[] = {&s->whole, &s->part[part]};
        for (int t = 0; t < 2; t++) {
            tables[t]->refs[head * tables[t]->stride + tables[t]->n_refs[head]++] = ref;
            tables[t]->n_tokens[head] += len;
        }
        free(k);
        free(v);
    }
    for (int p = 0; p < s->n_parts; p++) s->own[p][head] = p == owner;
}

/* A single row's own key is read from a page: it has what a page of this kind leaves of it. */
static void round_own(struct Spread *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    struct PageRef spare = {s->kv.pool.free[s->kv.pool.n_free - 1], 1, 0};
    for (int h = 0; s->rows == 1 && h < m->n_kv_heads; h++) {
        struct KvWrite w = {.k = s->k, .v = s->v, .kv_head = h, .n = 1, .page = spare};
        must(s->e->be->kv_write(s->e->dev, &s->kv.pool, &w, 1));
        must(s->e->be->kv_read(s->e->dev, &s->kv.pool, spare, 0, s->k + h * m->head_dim,
                               s->v + h * m->head_dim));
    }
}

static void spread_open(struct Spread *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t dim = (size_t)m->head_dim, rows = (size_t)s->rows;
    struct BatchShape shape = {
        .rows = s->rows, .seqs = 1, .keys = PAST + ROWS, .mass_keys = PAST + ROWS, .head_rows = 1};
    must(kv_open(&s->kv, s->e->be, s->e->dev, m, 64 * 5));
    must(kv_table_open(&s->whole, m, 5));
    for (int p = 0; p < PARTS; p++) must(kv_table_open(&s->part[p], m, 5));
    for (int h = 0; h < m->n_kv_heads; h++)
        fill_head(s, h, s->masks.window && s->masks.window[h * (m->n_heads / m->n_kv_heads)]);
    s->q = random_floats(s, rows * m->n_heads * dim);
    s->k = random_floats(s, rows * m->n_kv_heads * dim);
    s->v = random_floats(s, rows * m->n_kv_heads * dim);
    s->out = random_floats(s, rows * m->n_heads * dim);
    must(s->e->be->reserve(s->e->dev, &shape));
    round_own(s);
}

static void spread_close(struct Spread *s)
{
    float *rows[] = {s->q, s->k, s->v, s->out};
    for (int i = 0; i < 4; i++) free(rows[i]);
    kv_table_close(&s->whole);
    for (int p = 0; p < PARTS; p++) kv_table_close(&s->part[p]);
    kv_close(&s->kv);
}

/* What one row of one head should see: probabilities of its keys [past, row + 1), its lse and its output. */
struct Truth {
    double p[PAST + ROWS], lse, out[64];
};

static void read_key(struct Spread *s, int head, int j, float *k, float *v, float *bias)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int past = s->whole.n_tokens[head], dim = m->head_dim;
    const struct PageRef *ref = s->whole.refs + head * s->whole.stride;
    *bias = 0;
    if (j >= past) {
        size_t at = ((size_t)(j - past) * m->n_kv_heads + (size_t)head) * (size_t)dim;
        memcpy(k, s->k + at, sizeof(float) * (size_t)dim);
        memcpy(v, s->v + at, sizeof(float) * (size_t)dim);
        return;
    }
    for (; j >= (int)ref->len; ref++) j -= (int)ref->len;
    must(s->e->be->kv_read(s->e->dev, &s->kv.pool, *ref, j, k, v));
    *bias = ref->bias;
}

static bool hidden(const struct Spread *s, int head, int j, int seen)
{
    int window = s->masks.window ? s->masks.window[head] : 0;
    return window && j >= s->masks.sinks && seen - 1 - j >= window;
}

static struct Truth truth_of(struct Spread *s, int head, int row)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int kv = head / (m->n_heads / m->n_kv_heads), seen = s->whole.n_tokens[kv] + row + 1;
    const float *q = s->q + ((size_t)row * m->n_heads + (size_t)head) * (size_t)m->head_dim;
    float k[64], v[PAST + ROWS][64], bias;
    struct Truth t = {.lse = -INFINITY};
    double sum = 0;
    assert_true(m->head_dim <= 64 && seen <= PAST + ROWS);
    for (int j = 0; j < seen; j++) {
        read_key(s, kv, j, k, v[j], &bias);
        t.p[j] = 0;
        for (int d = 0; d < m->head_dim; d++) t.p[j] += (double)q[d] * k[d];
        t.p[j] = hidden(s, head, j, seen) ? -INFINITY : t.p[j] / sqrt(m->head_dim) + bias;
        t.lse = fmax(t.lse, t.p[j]);
    }
    for (int j = 0; j < seen; j++) sum += exp(t.p[j] - t.lse);
    t.lse += log(sum);
    for (int j = 0; j < seen; j++) {
        t.p[j] = exp(t.p[j] - t.lse);
        for (int d = 0; d < m->head_dim; d++) t.out[d] += t.p[j] * v[j][d];
    }
    return t;
}

static void close_to(double got, double want, double off, const char *what)
{
    if (!(fabs(got - want) <= off)) fail_msg("%s is %g, not %g", what, got, want);
}

static struct AttnArgs args_of(struct Spread *s, const int *ends, const struct HeadTable *past)
{
    return (struct AttnArgs){.q = s->q,
                             .k = s->k,
                             .v = s->v,
                             .out = s->out,
                             .seq_begin = ends,
                             .n_seqs = 1,
                             .pool = &s->kv.pool,
                             .past = past,
                             .masks = s->masks.window ? &s->masks : NULL};
}

/* The mass that all rows put on the keys of each part, given the lse of all parts. `part` is there to be written. */
static void check_masses(struct Spread *s, const float *all, struct AttnPart part, double off)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int ends[2] = {0, s->rows}, group = m->n_heads / m->n_kv_heads, stride = PAST + ROWS;
    float *mass = malloc(sizeof *mass * (size_t)(m->n_kv_heads * stride));
    static double want[PAST + ROWS];
    double sum = 0;
    for (int p = 0; p < s->n_parts; p++) {
        struct AttnArgs a = args_of(s, ends, &s->part[p]);
        part.own = s->own[p];
        a.part = &part;
        must(s->e->be->attention(s->e->dev, &a));
        memcpy(part.lse, all, sizeof *all * (size_t)(s->rows * m->n_heads));
        must(s->e->be->attn_mass(s->e->dev, &a, s->rows, mass, stride));
        for (int h = 0; h < m->n_kv_heads; h++) {
            int n = s->part[p].n_tokens[h] + (s->own[p][h] ? s->rows : 0);
            for (int j = 0; j < n; j++) sum += mass[h * stride + j];
        }
    }
    close_to(sum, (double)s->rows * m->n_heads, off * s->rows * m->n_heads, "mass of all keys");
    /* the last part alone, token by token: its pages stand in `whole` in the same order */
    int h = m->n_kv_heads - 1, p = s->n_parts - 1, at = 0;
    memset(want, 0, sizeof want);
    for (int g = 0; g < group; g++)
        for (int r = 0; r < s->rows; r++) {
            struct Truth t = truth_of(s, h * group + g, r);
            for (int j = 0; j < s->whole.n_tokens[h] + r + 1; j++) want[j] += t.p[j];
        }
    const struct PageRef *mine = s->part[p].refs + h * s->part[p].stride,
                         *refs = s->whole.refs + h * s->whole.stride;
    for (int i = 0, j = 0, taken = 0; i < s->whole.n_refs[h]; j += (int)refs[i++].len) {
        if (taken == s->part[p].n_refs[h] || mine[taken].page != refs[i].page) continue;
        for (int x = 0; x < (int)refs[i].len; x++)
            close_to(mass[h * stride + at++], want[j + x], off * group * s->rows, "mass of a key");
        taken++;
    }
    free(mass);
}

static void check_spread(struct Spread *s, double off)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t heads = (size_t)s->rows * m->n_heads, dim = (size_t)m->head_dim;
    int ends[2] = {0, s->rows};
    struct AttnPart parts[PARTS];
    struct AttnArgs a;
    spread_open(s);
    for (int p = 0; p < s->n_parts; p++) {
        parts[p] =
            (struct AttnPart){s->own[p], random_floats(s, heads * dim), random_floats(s, heads)};
        a = args_of(s, ends, &s->part[p]);
        a.part = &parts[p];
        must(s->e->be->attention(s->e->dev, &a));
        for (size_t i = 0; i < heads; i++) {
            int kv = (int)i % m->n_heads / (m->n_heads / m->n_kv_heads);
            bool empty = s->part[p].n_tokens[kv] == 0 && !s->own[p][kv];
            assert_true((isinf(parts[p].lse[i]) != 0) == empty);
            for (size_t d = 0; empty && d < dim; d++) assert_true(parts[p].out[i * dim + d] == 0);
        }
    }
    must(s->e->be->attention_join(s->e->dev, &a, parts, s->n_parts));
    for (size_t i = 0; i < heads; i++) {
        struct Truth t = truth_of(s, (int)i % m->n_heads, (int)i / m->n_heads);
        close_to(a.part->lse[i], t.lse, off * fmax(1, fabs(t.lse)), "lse");
        for (size_t d = 0; d < dim; d++) close_to(s->out[i * dim + d], t.out[d], off, "out");
    }
    float *all = copy_of(a.part->lse, heads);
    check_masses(s, all, parts[0], off);
    free(all);
    for (int p = 0; p < s->n_parts; p++) free(parts[p].out), free(parts[p].lse);
    spread_close(s);
}

/* Every number of parts, some without keys, for one row and for many. */
static void spread_over(struct Engine *e, double off)
{
    static const int rows[] = {1, 2, 47, 49, ROWS};
    static int window[LAYERS * 64];
    for (int i = 0; i < 60; i++) {
        struct Spread s = {.e = e,
                           .rows = rows[i % 5],
                           .n_parts = 1 + i % PARTS,
                           .biased = i % 3 == 1,
                           .state = (uint64_t)i + 1};
        s.last_part = i % 7 == 6 ? 1 : s.n_parts;
        int group = e->model.cfg.n_heads / e->model.cfg.n_kv_heads;
        for (int h = 0; h < e->model.cfg.n_heads; h++) window[h] = h / group % 2 ? 40 : 0;
        if (i % 3 == 2) s.masks = (struct HeadMasks){window, 3};
        check_spread(&s, off);
    }
}

static void test_join(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++)
        for (int kv = KV_AUTO; kv <= KV_Q4; kv++)
            for (int exact = 0; exact < 2; exact++) {
                struct Engine *e = open_engine_of(archs[a], exact ? PRECISION_F32 : PRECISION_INT16,
                                                  (enum KvType)kv, 1 + a % 2);
                spread_over(e, !exact ? 4e-3 : kv == KV_AUTO ? 5e-5 : 1e-3);
                engine_close(e);
            }
}

/* ==== All ranks answer ==== */

static const struct Case together = {
    .arch = "llama",
    .input = {9, 900, 14, 1},
    .chunk = 128,
    .keep = 3,
    .cap = 50,
    .score = SCORE_QUESTION,
    .precision = PRECISION_F32,
    .copies = 1,
    .answer = ANSWER_ALL,
};

/* As far apart as sums in another order may be; where numbers are rounded to 16, 8 or 4 bits behind them, a few may fall
 * to the other side. */
static void near(const struct Case *c, const float *a, const float *b)
{
    double top = 0;
    for (int i = 0; i < VOCAB_MAX; i++) top = fmax(top, fabs(a[i]));
    double off = distance(a, b, VOCAB_MAX) / top,
           limit = c->precision == PRECISION_F32 && c->kv_type == KV_AUTO ? 1e-4 : 0.01;
    if (!(off <= limit)) fail_msg("logits differ by %g of the largest", off);
}

static void same_answer(const struct Case *c, const struct Outcome *one, const struct Outcome *all)
{
    assert_int_equal(one->n_chunks, all->n_chunks);
    assert_memory_equal(one->score, all->score, sizeof one->score);
    assert_memory_equal(one->kept, all->kept, sizeof one->kept);
    assert_memory_equal(one->kv_kept, all->kv_kept, sizeof one->kv_kept);
    near(c, one->logits, all->logits);
    assert_int_equal(one->n_ids, all->n_ids);
    assert_memory_equal(one->ids, all->ids, sizeof one->ids);
    near(c, one->last, all->last);
}

static void check_case(const struct Case *c)
{
    struct Report one, all[TEAM_MAX];
    assert_int_equal(run_team(c, 1, &one), PC_OK);
    assert_true(one.o.n_ids > 0);
    for (int i = 1; i < N_SIZES; i++) {
        must(run_team(c, SIZES[i], all));
        same_answer(c, &one.o, &all[0].o);
        for (int r = 1; r < SIZES[i]; r++) {
            same_bits(&all[0].o, &all[r].o);
            assert_memory_equal(all[0].o.kv_kept, all[r].o.kv_kept, sizeof one.o.kv_kept);
        }
    }
}

/* Chunk counts that divide and that do not, down to fewer chunks than ranks. */
static void test_counts(void **state)
{
    (void)state;
    static const int tokens[] = {40, 128, 129, 300, 640, 900, 1200};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        struct Case c = together;
        c.input.context = tokens[i];
        c.input.seed = i + 1;
        check_case(&c);
    }
}

static void test_keep(void **state)
{
    (void)state;
    static const int keeps[] = {1, 2, 5, KEEP_ALL};
    for (size_t i = 0; i < sizeof keeps / sizeof *keeps; i++)
        for (int wave = 0; wave < 3; wave++) {
            struct Case c = together;
            c.keep = keeps[i];
            c.wave = wave;
            c.cap = wave == 2 ? CAP_OFF : 70;
            check_case(&c);
        }
}

/* No prefix; a question of one token, whose row reads pages; one of many tiles of rows. */
static void test_shapes(void **state)
{
    (void)state;
    static const struct Input inputs[] = {
        {0, 700, 14, 2}, {9, 700, 1, 3}, {0, 300, 1, 4}, {70, 700, 150, 5}, {130, 400, 49, 6}};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        struct Case c = together;
        c.input = inputs[i];
        check_case(&c);
        c.chunk_bias = 2;
        c.copies = 3;
        check_case(&c);
    }
}

static void test_archs(void **state)
{
    (void)state;
    for (int a = 0; a < N_ARCHS; a++)
        for (int kv = KV_AUTO; kv <= KV_Q4; kv++) {
            struct Case c = together;
            c.arch = archs[a];
            c.kv_type = (enum KvType)kv;
            check_case(&c);
            c.precision = PRECISION_INT16;
            check_case(&c);
        }
}

/* The second stage judges a token by its share of all ranks' attention. */
static void test_calibration(void **state)
{
    (void)state;
    for (int n = 1; n <= 2; n++) {
        struct Case c = together;
        c.n_calib = n;
        check_case(&c);
        c.cap = CAP_OFF;
        c.keep = KEEP_ALL;
        check_case(&c);
    }
}

static void test_heads(void **state)
{
    (void)state;
    struct Case c = together;
    c.heads = true;
    check_case(&c);
    c.keep = KEEP_ALL;
    c.wave = 2;
    c.cap = CAP_OFF;
    check_case(&c);
}

/* Winners are known before any is read. */
static void test_ahead(void **state)
{
    (void)state;
    for (int keep = 1; keep <= 5; keep += 2) {
        struct Case c = together;
        c.score = SCORE_RANDOM;
        c.keep = keep;
        check_case(&c);
    }
}

/* Ranks draw alike without a word about it. */
static void test_sampled(void **state)
{
    (void)state;
    struct Case c = together;
    c.temperature = 0.8f;
    check_case(&c);
}

/* One process, and methods of one sequence: the setting changes no bit. */
static void test_alone(void **state)
{
    (void)state;
    static const enum Method methods[] = {METHOD_PARALLELCOMP, METHOD_FULL, METHOD_STREAMING,
                                          METHOD_SNAPKV};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        for (int size = 1; size <= 2; size++) {
            struct Case c = together;
            struct Report lead, all[TEAM_MAX];
            c.method = methods[i];
            if (c.method != METHOD_PARALLELCOMP) c.cap = CAP_OFF;
            if (c.method == METHOD_PARALLELCOMP && size > 1) continue;
            must(run_team(&c, size, all));
            c.answer = ANSWER_LEAD;
            must(run_team(&c, 1, &lead));
            same_bits(&lead.o, &all[0].o);
        }
}

/* Each rank needs room for its own share, plans it, and takes no more. */
static void test_memory(void **state)
{
    (void)state;
    enum { SLACK = 48 << 10 }; /* tables, result and text's room: test_session_memory.c */
    struct Case c = together;
    struct Report lead[TEAM_MAX], all[TEAM_MAX];
    c.input.context = 8000;
    c.keep = KEEP_ALL;
    c.cap = CAP_OFF;
    c.wave = 1;
    must(run_team(&c, 4, all));
    c.answer = ANSWER_LEAD;
    must(run_team(&c, 4, lead));
    for (int r = 0; r < 4; r++) {
        print_message("# rank %d: %zu bytes planned, %zu taken; rank 0 alone %zu\n", r,
                      all[r].planned, all[r].used, lead[0].planned);
        assert_true(all[r].used <= all[r].planned + all[r].planned / 50 + SLACK);
        assert_true(all[r].planned <= all[r].used + all[r].used / 50 + SLACK);
    }
    assert_true(all[0].planned * 2 < lead[0].planned);
}

/* ==== Refused ==== */

static int plan_with(const struct Case *c, const struct Backend *be, enum PageIndex select)
{
    struct Team t = {.size = 2};
    struct Engine *e = open_case(c);
    const struct Backend *cpu = e->be;
    struct Run run = {0};
    struct Prompt p = make_prompt(c->input);
    e->settings.select = select;
    if (be) e->be = be;
    must(engine_join(e, &t));
    int status = session_open(&run.s, e, &no_request, &p, NULL);
    e->be = cpu;
    session_close(&run.s);
    engine_close(e);
    return status;
}

static void test_refused(void **state)
{
    (void)state;
    struct Case c = together;
    struct Backend plain = backend_cpu;
    plain.attention_join = NULL;
    plain.name = "plain";
    must(plan_with(&c, NULL, PAGE_INDEX_OFF));
    assert_int_equal(plan_with(&c, NULL, PAGE_INDEX_BOUND), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "select bound"));
    assert_int_equal(plan_with(&c, &plain, PAGE_INDEX_OFF), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "plain backend"));
    assert_non_null(strstr(err_text(), "--answer-ranks lead"));
    c.answer = ANSWER_LEAD;
    must(plan_with(&c, &plain, PAGE_INDEX_OFF));
    must(plan_with(&c, NULL, PAGE_INDEX_BOUND));
}

/* ==== Ranks that differ ==== */

struct Meddler {
    struct Observer observer;
    int layer;
};

/* Moves one value of the last row. */
static int meddle(struct Observer *o, struct Session *s, const struct AttnArgs *args,
                  const int *chunks)
{
    const struct Meddler *m = (const struct Meddler *)(void *)o;
    const struct ModelConfig *cfg = &s->e->model.cfg;
    int last = args->seq_begin[args->n_seqs] - 1;
    float *out = (float *)args->out + (size_t)last * cfg->n_heads * cfg->head_dim;
    if (!chunks && s->e->team->rank == 1 && args->layer == m->layer) out[0] += 1e-3f;
    return PC_OK;
}

/* A run in which ranks behave as if on machines of two kinds. */
static int run_changed(struct Team *t, struct Observer *observer, const struct Backend *be)
{
    struct Engine *e = open_case(&together);
    const struct Backend *own = e->be;
    struct Run run = {0};
    struct Prompt p = make_prompt(together.input);
    must(engine_join(e, t));
    run.s.observer = observer;
    if (be) e->be = be;
    int status = session_open(&run.s, e, &no_request, &p, &run.r);
    if (status == PC_OK) status = session_stages(&run.s, true);
    session_close(&run.s);
    result_free(&run.r);
    e->be = own;
    engine_close(e);
    return status;
}

static int run_meddled(struct Team *t)
{
    struct Meddler m = {{meddle}, 0};
    return run_changed(t, &m.observer, NULL);
}

static int meddled_rank(struct Team *t, void *user)
{
    (void)user;
    return code_of(team_close(t, run_meddled(t), say_nothing, code_of));
}

/* One value on one rank: found out with the next token, not in what the answer says. */
static void test_parted(void **state)
{
    (void)state;
    struct Ranks r;
    ranks_start(&r, 3, meddled_rank, NULL);
    int status = run_meddled(&r.team);
    assert_int_equal(status, PC_EDEVICE);
    assert_non_null(strstr(err_text(), "rank 1 computes otherwise than rank 0"));
    int end = team_close(&r.team, status, say_nothing, code_of);
    assert_int_equal(end, PC_EDEVICE);
    for (int i = 1; i < 3; i++) assert_int_equal(ranks_wait(&r, i), code_of(end));
}

static const char *describe_other(const struct Device *d)
{
    (void)d;
    return "cpu of another kind, 1 thread";
}

static int other_kind(struct Team *t, void *user)
{
    struct Backend other = backend_cpu;
    (void)user;
    other.describe = describe_other;
    return code_of(team_close(t, run_changed(t, NULL, &other), say_nothing, code_of));
}

/* Not the same kernels: refused before anything is read. */
static void test_other_kind(void **state)
{
    (void)state;
    struct Ranks r;
    ranks_start(&r, 2, other_kind, NULL);
    int status = run_changed(&r.team, NULL, NULL);
    assert_int_equal(status, PC_ECONFIG);
    assert_non_null(strstr(err_text(), "one --isa"));
    assert_int_equal(team_close(&r.team, status, say_nothing, code_of), PC_ECONFIG);
    assert_int_equal(ranks_wait(&r, 1), code_of(PC_ECONFIG));
}

/* ==== Trouble ==== */

/* A rank dies wherever it would ask whether to stop, up to the answer's last token. */
static void test_killed(void **state)
{
    (void)state;
    for (int size = 2; size <= 3; size++) {
        struct Report all[TEAM_MAX];
        struct Case c = together;
        int status = PC_ELOST;
        c.input.context = 300;
        c.victim = size - 1;
        c.trouble = KILLED;
        for (c.after = 0; status == PC_ELOST; c.after++) {
            double begun = clock_seconds();
            assert_true(c.after < 200);
            struct Case tried = c;
            status = run_team(&tried, size, all);
            assert_true(clock_seconds() - begun < 5);
        }
        print_message("# %d ranks: killed at %d places\n", size, c.after - 1);
        assert_true(c.after > LAYERS * 3 + ANSWER - 1); /* prefix, wave, question; steps */
    }
}

/* A rank whose rank 0 dies tells by a pipe how it ended. */
static int orphan(struct Team *t, void *user)
{
    struct Job *job = user;
    struct Report out;
    int status = run_rank(t, job->c, &out);
    int code = code_of(team_close(t, status, say_nothing, code_of));
    return write(job->pipe[1], &code, sizeof code) == (ssize_t)sizeof code ? 0 : 98;
}

/* Rank 0 dies in prefill, in the question and in the answer. */
static void test_lead_killed(void **state)
{
    (void)state;
    struct Case c = together;
    struct Job job = {.c = &c};
    c.trouble = KILLED;
    for (c.after = 1; c.after < 20; c.after += 6) {
        double begun = clock_seconds();
        assert_int_equal(pipe(job.pipe), 0);
        pid_t lead = fork();
        assert_true(lead >= 0);
        if (lead == 0) {
            struct Ranks r;
            struct Report out;
            ranks_start(&r, 3, orphan, &job);
            _exit(run_rank(&r.team, &c, &out) == PC_OK ? 97 : 98);
        }
        close(job.pipe[1]);
        for (int i = 1; i < 3; i++) {
            int code = 0;
            assert_int_equal(read(job.pipe[0], &code, sizeof code), sizeof code);
            assert_int_equal(code, code_of(PC_ELOST));
        }
        close(job.pipe[0]);
        int how = 0;
        assert_int_equal(waitpid(lead, &how, 0), lead);
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        assert_true(clock_seconds() - begun < 5);
    }
}

static void test_stopped(void **state)
{
    (void)state;
    struct Report all[TEAM_MAX];
    struct Case c = together;
    c.victim = 1;
    c.trouble = STOPPED;
    for (c.after = 2; c.after < 20; c.after += 5) assert_int_equal(run_team(&c, 3, all), PC_EINTR);
}

/* Every allocation of a rank's run fails once. */
static void test_faults(void **state)
{
    (void)state;
    struct Report all[TEAM_MAX];
    struct Case c = together;
    c.input.context = 300;
    c.victim = 1;
    c.trouble = NO_MEMORY;
    int status = PC_ENOMEM;
    for (c.after = 1; status == PC_ENOMEM; c.after++) {
        assert_true(c.after < 400);
        status = run_team(&c, 2, all);
    }
    must(status);
    assert_true(c.after > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),    cmocka_unit_test(test_counts),
        cmocka_unit_test(test_keep),    cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_archs),   cmocka_unit_test(test_calibration),
        cmocka_unit_test(test_heads),   cmocka_unit_test(test_ahead),
        cmocka_unit_test(test_sampled), cmocka_unit_test(test_alone),
        cmocka_unit_test(test_memory),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_parted),  cmocka_unit_test(test_other_kind),
        cmocka_unit_test(test_killed),  cmocka_unit_test(test_lead_killed),
        cmocka_unit_test(test_stopped), cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("session_parts", tests, NULL, NULL) != 0;
}

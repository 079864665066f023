/* test_backend.c - every op of the CUDA backend beside the CPU's in f32, over odd sizes; then whole runs beside each other.
 *
 * Both engines hold the same seeded weights. Ops run in the order of a layer, each backend on its own numbers, and are
 * compared after every one: bf16 keeps 8 bits of a value, so results differ by a few thousandths of their length.
 * What is exact is compared exactly: the choice of tokens from the same mass, pages, two runs of the same input.
 */
#include "sides.h"

#include "eviction/kv_evict.h"
#include "src/sampler.h"

#include <limits.h>

/* On what stands behind pages of codes: a key that bf16 rounds to the other side of a boundary takes the next code, which is
 * 1/15 or 1/255 of its range off. */
static double loose = 1;

/* Takes the first row from all of them. */
static void less_first(float *x, size_t n, int width)
{
    for (size_t i = n; i-- > 0;) x[i] -= x[i % (size_t)width];
}

/* Keys with a bias may all be shifted alike: what counts is how they differ from the first one. */
static void compare_keys(const struct Side *s, int n_rows, const char *where)
{
    int width = s->e->model.cfg.n_kv_heads * s->e->model.cfg.head_dim;
    size_t n = (size_t)n_rows * width;
    float *x = fetch(&s[0], s[0].tf.k, n, s[0].e->be->act_bytes),
          *y = fetch(&s[1], s[1].tf.k, n, s[1].e->be->act_bytes);
    less_first(x, n, width);
    less_first(y, n, width);
    double d = distance(y, x, n);
    check(d < 0.02 * loose, "norm_linear, rope: k with a bias", where, d);
    free(x);
    free(y);
}

/* ==== Ops ==== */

static void test_keep(struct Side *s, const struct Case *c, const struct Plan *p,
                      const struct AttnArgs *args, const float *mass, int stride, const char *where)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int n[4], cap = 20, heads = m->n_kv_heads, wrong = 0;
    for (int i = 0; i < c->seqs; i++) n[i] = p->seq_begin[i + 1] - p->seq_begin[i];
    size_t count = (size_t)c->seqs * heads * stride;
    int *keep = calloc(count, sizeof *keep), *want = calloc((size_t)stride, sizeof *want),
        *dev = s->e->be->alloc(s->e->dev, count * sizeof *keep);
    float *pooled = calloc((size_t)stride, sizeof *pooled);
    struct KeepArgs k = {.obs_rows = c->obs,
                         .pool = 7,
                         .cap = cap,
                         .first = c->past,
                         .n = n,
                         .keep = dev,
                         .stride = stride,
                         .step = (size_t)heads * (size_t)stride};
    must(s->e->be->keep(s->e->dev, args, &k));
    must(s->e->be->download(s->e->dev, keep, dev, count * sizeof *keep));
    for (int i = 0; i < c->seqs; i++)
        for (int h = 0; h < heads; h++) {
            size_t at = ((size_t)i * heads + h) * stride;
            struct KvEvict rule = {cap, 7};
            int kept = kv_evict(&rule, mass + at + c->past, n[i], pooled, want);
            wrong += memcmp(want, keep + at, sizeof *want * (size_t)kept) != 0;
        }
    check(wrong == 0, "keep", where, wrong);
    s->e->be->release(s->e->dev, dev);
    free(keep);
    free(want);
    free(pooled);
}

static void test_mass(struct Side *s, const struct Case *c, const struct Plan *p,
                      const struct AttnArgs *args, const char *where)
{
    int heads = s[0].e->model.cfg.n_kv_heads, stride = p->shape.mass_keys;
    size_t n = (size_t)c->seqs * heads * stride;
    float *mass[2];
    for (int i = 0; i < 2; i++) {
        mass[i] = calloc(n, sizeof(float));
        must(s[i].e->be->attn_mass(s[i].e->dev, &args[i], c->obs, mass[i], stride));
    }
    double d = distance(mass[1], mass[0], n);
    check(d < 0.03 * loose, "attn_mass", where, d);
    test_keep(&s[1], c, p, &args[1], mass[1], stride, where);
    free(mass[0]);
    free(mass[1]);
}

/* Token `at` as read back; with a bias its key less the first one's (see compare_keys). */
static void read_back(struct Side *s, const struct HeadTable *t, int at, float *k, float *v)
{
    float first[256], unused[256];
    const struct Backend *be = s->e->be;
    must(be->kv_read(s->e->dev, &s->kv.pool, t->refs[0], 0, first, unused));
    must(be->kv_read(s->e->dev, &s->kv.pool, t->refs[at / PAGE_TOKENS], at % PAGE_TOKENS, k, v));
    if (!s->e->model.layers[0].bk) return;
    for (int i = 0; i < s->e->model.cfg.head_dim; i++) k[i] -= first[i];
}

/* Rows into pages, two thirds of them out again in order, and what is then read back. */
static void test_pages(struct Side *s, int n, const char *where)
{
    const struct ModelConfig *m = &s[0].e->model.cfg;
    float k[2][256], v[2][256];
    int heads = m->n_layers * m->n_kv_heads, want = n;
    uint8_t *flags = malloc((size_t)n);
    for (int i = 0; i < n; i++) flags[i] = i % 3 != 1, want -= !flags[i];
    double worst = 0;
    for (int i = 0; i < 2; i++) {
        struct HeadTable t;
        struct KvRows rows = {s[i].tf.k, s[i].tf.v, 0, NULL, n};
        must(kv_table_open(&t, m, n / PAGE_TOKENS + 1));
        must(kv_append_all(&s[i].kv, &t, 0, &rows, &s[i].writes));
        must(kv_flush(&s[i].kv, &s[i].writes));
        for (int h = 0; h < m->n_kv_heads; h++) must(kv_filter(&s[i].kv, &t, 0, h, flags));
        check(t.n_tokens[0] == want, "kv_filter", where, t.n_tokens[0]);
        read_back(&s[i], &t, want - 1, k[i], v[i]);
        kv_clear(&s[i].kv, &t);
        kv_table_close(&t);
    }
    worst =
        fmax(distance(k[1], k[0], (size_t)m->head_dim), distance(v[1], v[0], (size_t)m->head_dim));
    check(worst < 0.02 * loose && heads > 0, "kv_write, kv_pack, kv_read", where, worst);
    free(flags);
}

static void test_head(struct Side *s, const struct Plan *p, int n, const char *where)
{
    const struct ModelConfig *m = &s[0].e->model.cfg;
    int idx[13], target[13], count = n < 13 ? n : 13;
    float nll[2][13], *logits[2];
    for (int i = 0; i < count; i++)
        idx[i] = n - count + i, target[i] = (int)(rng() % (unsigned)m->vocab_size);
    for (int i = 0; i < 2; i++) {
        logits[i] = calloc((size_t)count * m->vocab_size, sizeof(float));
        must(s[i].e->be->nll(s[i].e->dev, s[i].tf.x, idx, target, count, nll[i]));
        must(s[i].e->be->logits(s[i].e->dev, s[i].tf.x, idx, 1, logits[i]));
    }
    double d = distance(nll[1], nll[0], (size_t)count);
    check(d < 0.02 * loose, "nll", where, d);
    d = distance(logits[1], logits[0], (size_t)m->vocab_size);
    check(d < 0.03 * loose && p, "logits", where, d);
    free(logits[0]);
    free(logits[1]);
}

/* The last rows of each sequence to the front, then their second half of the layer. */
static void test_compact(struct Side *s, const struct Case *c, const struct Plan *p,
                         const char *where)
{
    const struct ModelConfig *m = &s[0].e->model.cfg;
    int idx[64], n = 0, width = m->n_heads * m->head_dim;
    for (int i = 0; i < c->seqs; i++)
        for (int r = p->seq_begin[i + 1] - (c->rows[i] < 9 ? c->rows[i] : 9);
             r < p->seq_begin[i + 1]; r++)
            idx[n++] = r;
    for (int i = 0; i < 2; i++) {
        const struct Backend *be = s[i].e->be;
        must(be->compact(s[i].e->dev, s[i].tf.x, sizeof(float) * (size_t)m->dim, idx, n));
        must(be->compact(s[i].e->dev, s[i].tf.out, be->act_bytes * (size_t)width, idx, n));
        must(tf_ffn(&s[i].tf, 1, n));
    }
    compare(s, s[0].tf.x, s[1].tf.x, (size_t)n * m->dim, true, 0.02 * loose, "compact, ffn", where);
    test_head(s, p, n, where);
}

/* ==== Far keys ==== */

/* Turns by the numbers of `by`, on the device. */
static float *turns(struct Side *s, const int *by, int n)
{
    float *out = s->e->be->alloc(s->e->dev, (size_t)n * s->e->model.cfg.rope_dim * sizeof *out);
    if (!out) must(PC_ENOMEM);
    must(s->e->be->turns(s->e->dev, &s->tf.rope, by, n, out));
    return out;
}

/* As session_positions.c places them: with groups self-extend, else streaming-llm. */
static struct FarKeys far_keys(struct Side *s, const struct Case *c, const struct Plan *p)
{
    int n = p->seq_begin[c->seqs], keys = p->shape.turned_keys, g = c->group, w = c->window;
    int *by = calloc((size_t)n + (size_t)keys, sizeof *by);
    struct FarKeys far = {.window = w, .n = c->far_n};
    for (int i = 0; i < n; i++) {
        int pos = p->pos[i], last = w + c->far_n - 1;
        by[i] = (g ? pos / g + w - w / g : pos < last ? pos : last) - pos;
    }
    far.q_turn = turns(s, by, n);
    for (int i = 0; i < keys; i++) by[i] = i / g - i;
    if (keys) far.k_turn = turns(s, by, keys);
    free(by);
    return far;
}

static void free_far(struct Side *s, struct FarKeys *far)
{
    const float *turned[2] = {far->q_turn, far->k_turn};
    for (int i = 0; i < 2; i++)
        if (turned[i]) s->e->be->release(s->e->dev, (void *)(uintptr_t)turned[i]);
}

/* ==== A layer ==== */

static struct Batch batch_of(struct Side *s, const struct Case *c, struct Plan *p,
                             const struct FarKeys *far)
{
    return (struct Batch){.tokens = p->tokens,
                          .pos = p->pos,
                          .seq_begin = p->seq_begin,
                          .n_seqs = c->seqs,
                          .pool = &s->kv.pool,
                          .past = &s->past,
                          .far = c->window ? far : NULL};
}

static void run_case(const struct Case *c, struct Engine *cpu, struct Engine *gpu)
{
    struct Side s[2] = {{.e = cpu}, {.e = gpu}};
    const struct ModelConfig *m = &cpu->model.cfg;
    struct Plan p = plan_case(c, m);
    struct AttnArgs args[2];
    struct FarKeys far[2] = {{0}, {0}};
    int n = p.seq_begin[c->seqs];
    size_t q = (size_t)n * m->n_heads * m->head_dim, kv = (size_t)n * m->n_kv_heads * m->head_dim;
    char where[160];
    snprintf(where, sizeof where, "%s, %d sequences of %d.. rows, past %d, window %d", c->model,
             c->seqs, c->rows[0], c->past, c->window);
    for (int i = 0; i < 2; i++) {
        open_case(&s[i], c, &p);
        make_past(&s[i], c);
        if (c->window) far[i] = far_keys(&s[i], c, &p);
        struct Batch b = batch_of(&s[i], c, &p, &far[i]);
        must(tf_begin(&s[i].tf, &b));
    }
    compare(s, s[0].tf.x, s[1].tf.x, (size_t)n * m->dim, true, 0.004, "begin", where);
    for (int l = 0; l < 2; l++) {
        for (int i = 0; i < 2; i++) {
            struct Batch b = batch_of(&s[i], c, &p, &far[i]);
            must(tf_attend(&s[i].tf, &b, l, 0, &args[i]));
        }
        compare(s, s[0].tf.q, s[1].tf.q, q, false, 0.02 * loose, "norm_linear, rope: q", where);
        if (cpu->model.layers[l].bk && !c->window)
            compare_keys(s, n, where);
        else
            compare(s, s[0].tf.k, s[1].tf.k, kv, false, 0.02 * loose, "norm_linear, rope: k",
                    where);
        compare(s, s[0].tf.v, s[1].tf.v, kv, false, 0.02 * loose, "norm_linear: v", where);
        compare(s, s[0].tf.out, s[1].tf.out, q, false, 0.02 * loose, "attention", where);
        if (c->obs) test_mass(s, c, &p, args, where);
        if (l == 0) {
            for (int i = 0; i < 2; i++) must(tf_ffn(&s[i].tf, l, n));
            compare(s, s[0].tf.x, s[1].tf.x, (size_t)n * m->dim, true, 0.02 * loose,
                    "linear_add, ffn_add", where);
        }
    }
    test_pages(s, c->rows[0], where);
    test_compact(s, c, &p, where);
    for (int i = 0; i < 2; i++) free_far(&s[i], &far[i]), close_case(&s[i]);
    free(p.tokens);
    free(p.pos);
}

/* ==== Steps of decoding ==== */

enum { STEPS = 150 };
static int n_steps = STEPS, n_rounds = 3; /* fewer under a sanitizer */
enum StepWay { WAY_OPS, WAY_LOGITS, WAY_BEST };

/* What steps read of their past, and what they counted. */
struct StepPages {
    struct PageSelect select; /* PAGE_INDEX_OFF: all of it */
    struct PageCounts counts;
};

/* n_steps tokens behind the case's past: out [n_steps, vocab_size], or with WAY_BEST the best tokens. */
static void run_steps(struct Engine *gpu, const struct Case *c, const struct Plan *p,
                      enum StepWay way, struct StepPages *pages, float *out, int *best)
{
    const struct ModelConfig *m = &gpu->model.cfg;
    struct Side s = {.e = gpu};
    int ends[2] = {0, 1};
    bool recorded = false;
    open_case(&s, c, p);
    kv_table_close(&s.past);
    kv_writes_close(&s.writes);
    must(kv_table_open(&s.past, m, (c->past + n_steps) / PAGE_TOKENS + 2));
    must(kv_writes_open(&s.writes, m->n_layers * m->n_kv_heads + 64));
    make_past(&s, c);
    bool selects = pages->select.index != PAGE_INDEX_OFF;
    if (selects) must(kv_index_open(&s.kv, pages->select.index));
    if (selects) must(kv_index_all(&s.kv, &s.past));
    for (int t = 0; t < n_steps; t++) {
        int id = (t * 37 + 5) % m->vocab_size, pos = c->past + t;
        struct Batch b = {.tokens = &id,
                          .pos = &pos,
                          .seq_begin = ends,
                          .n_seqs = 1,
                          .pool = &s.kv.pool,
                          .past = &s.past,
                          .select = selects ? &pages->select : NULL,
                          .follows = recorded && t % 50};
        must(tf_begin(&s.tf, &b));
        float *logits = out + (size_t)t * m->vocab_size;
        if (way == WAY_OPS)
            must(step_layers(&s, &b, true, logits));
        else
            must(step_replayed(&s, &b, &recorded, way == WAY_LOGITS ? logits : NULL, &best[t]));
        if (selects) must(kv_index_filled(&s.kv, &s.past));
    }
    must(s.e->be->page_counts(s.e->dev, &pages->counts));
    close_case(&s);
}

/* A recorded step is the same bytes as its ops one by one, whatever lies before and whichever pages are read. */
static void test_steps(struct Engine *gpu, const char *model, int past, struct PageSelect select)
{
    struct Case c = {.model = model, .seqs = 1, .rows = {1}, .past = past};
    struct Plan p = plan_case(&c, &gpu->model.cfg);
    struct StepPages by_ops = {.select = select}, pages = by_ops;
    size_t vocab = (size_t)gpu->model.cfg.vocab_size, n = (size_t)n_steps * vocab;
    float *ops = calloc(n, sizeof *ops), *logits = calloc(n, sizeof *logits);
    int best[STEPS], id;
    char where[160];
    snprintf(where, sizeof where, "%s, past %d, index %d, %d pages, mass %g", model, past,
             (int)select.index, select.pages, (double)select.mass);
    p.shape.keys += n_steps;
    p.shape.rows = past > 256 ? past : 256;
    p.shape.selects = select.index != PAGE_INDEX_OFF;
    run_steps(gpu, &c, &p, WAY_OPS, &by_ops, ops, best);
    for (int round = 0; round < n_rounds; round++) {
        run_steps(gpu, &c, &p, WAY_LOGITS, &pages, logits, best);
        int wrong = 0;
        for (int t = 0; t < n_steps; t++)
            wrong += memcmp(ops + t * vocab, logits + t * vocab, vocab * sizeof *ops) != 0;
        check(wrong == 0, "steps: logits", where, wrong);
        check(!memcmp(&pages.counts, &by_ops.counts, sizeof pages.counts), "steps: pages counted",
              where, (double)pages.counts.read);
        run_steps(gpu, &c, &p, WAY_BEST, &pages, logits, best);
        wrong = 0;
        for (int t = 0; t < n_steps; t++)
            wrong += sampler_argmax(ops + t * vocab, (int)vocab, &id) < 0 || id != best[t];
        check(wrong == 0, "steps: best token", where, wrong);
    }
    free(ops);
    free(logits);
    free(p.tokens);
    free(p.pos);
}

/* Every page wanted: the bytes of steps that read all without asking. Few wanted: other bytes, fewer pages. */
static void test_select_steps(struct Engine *gpu, const char *model, int past)
{
    static const struct PageSelect rules[] = {{PAGE_INDEX_MEAN, 1000, 0, 0, 0},
                                              {PAGE_INDEX_BOUND, 0, 1, 0, 0},
                                              {PAGE_INDEX_MEAN, 2, 0, 1, 1},
                                              {PAGE_INDEX_BOUND, 0, 0.3f, 1, 0}};
    struct Case c = {.model = model, .seqs = 1, .rows = {1}, .past = past};
    struct Plan p = plan_case(&c, &gpu->model.cfg);
    size_t n = (size_t)n_steps * (size_t)gpu->model.cfg.vocab_size;
    float *all = calloc(n, sizeof *all), *some = calloc(n, sizeof *some);
    int best[STEPS];
    p.shape.keys += n_steps;
    p.shape.rows = past > 256 ? past : 256;
    struct StepPages off = {.select = {.index = PAGE_INDEX_OFF}};
    run_steps(gpu, &c, &p, WAY_OPS, &off, all, best);
    p.shape.selects = true;
    for (int i = 0; i < 4; i++) {
        struct StepPages pages = {.select = rules[i]};
        run_steps(gpu, &c, &p, WAY_OPS, &pages, some, best);
        bool equal = !memcmp(all, some, n * sizeof *all), whole = i < 2;
        check(equal == whole, "select: the bytes of all pages", model, i);
        check((pages.counts.read == pages.counts.there) == whole, "select: pages read", model,
              (double)pages.counts.read / (double)pages.counts.there);
    }
    free(all);
    free(some);
    free(p.tokens);
    free(p.pos);
}

/* ==== Whole runs ==== */

/* Stands before the backend of a run and keeps the logits that its answer was made of. */
enum { ROWS_KEPT = 16 };
static struct {
    const struct Backend *real;
    int n, vocab;
    bool recording;
    float *rows; /* [ROWS_KEPT, vocab] */
} tap;

static void keep_row(const float *logits)
{
    size_t size = (size_t)tap.vocab;
    if (tap.n < ROWS_KEPT) memcpy(tap.rows + size * (size_t)tap.n++, logits, size * sizeof(float));
}

static int tap_logits(struct Device *d, const float *x, const int *idx, int n, float *out)
{
    int status = tap.real->logits(d, x, idx, n, out);
    if (status >= 0 && n == 1 && !tap.recording) keep_row(out);
    return status;
}

static int tap_record(struct Device *d, bool on)
{
    tap.recording = on;
    return tap.real->record(d, on);
}

static int tap_replay(struct Device *d, const struct KvWrite *writes, int n, float *logits,
                      int *best)
{
    float *row = calloc((size_t)tap.vocab, sizeof *row);
    int status = tap.real->replay(d, writes, n, row, NULL);
    if (status >= 0) {
        keep_row(row);
        if (logits) memcpy(logits, row, sizeof *row * (size_t)tap.vocab);
        if (best) status = sampler_argmax(row, tap.vocab, best);
    }
    free(row);
    return status;
}

static int run_tapped(struct Engine *e, const struct Request *req, struct Result *r, float *rows)
{
    struct Backend table = *e->be;
    tap.real = e->be;
    tap.n = 0;
    tap.vocab = e->model.cfg.vocab_size;
    tap.rows = rows;
    table.logits = tap_logits;
    if (table.record) table.record = tap_record, table.replay = tap_replay;
    e->be = &table;
    int status = session_run(e, req, r);
    e->be = tap.real;
    return status;
}

static void run_text(struct Engine *e, const char *text, const char *overrides[], struct Result *r,
                     float *rows)
{
    struct Settings set = *engine_settings(e);
    for (int i = 0; overrides[i]; i += 2) must(settings_set(&set, overrides[i], overrides[i + 1]));
    must(engine_configure(e, &set));
    struct Request req = {.context = text,
                          .context_len = strlen(text),
                          .question = "Which line has a seven in it, and why?"};
    must(run_tapped(e, &req, r, rows));
}

/* Random text ranks chunks by next to nothing: whether both backends read the same ones. */
static bool same_chunks(const struct Result *a, const struct Result *b)
{
    for (int i = 0; i < a->plan.n_chunks; i++)
        if (a->chunks[i].kept != b->chunks[i].kept) return false;
    return true;
}

/* Logits of an answer's rows, as long as both answers were the same before. */
static void compare_answers(const struct Result *a, const struct Result *b, const float *want,
                            const float *got, double limit, const char *name)
{
    double worst = 0;
    size_t vocab = (size_t)tap.vocab;
    for (int i = 0; i < tap.n && i < a->n_ids && i < b->n_ids; i++) {
        worst = fmax(worst, distance(got + vocab * (size_t)i, want + vocab * (size_t)i, vocab));
        if (a->ids[i] != b->ids[i]) break;
    }
    check(tap.n > 0 && worst < limit * loose, "logits of the answer", name, worst);
}

struct Whole {
    const char *name;
    size_t len;
    double limit; /* of the distance of logits: where a choice of tokens is near, they may part */
    const char *overrides[15];
};

/* Scores within bf16's reach of each other, the same bytes twice, and no difference from wave to wave. */
static void run_whole(struct Engine *cpu, struct Engine *gpu, const char *model,
                      const struct Whole *w)
{
    struct Result a, b, again;
    char *text = malloc(w->len + 1), name[160];
    const char **overrides = (const char **)(uintptr_t)w->overrides;
    size_t room = ROWS_KEPT * (size_t)cpu->model.cfg.vocab_size;
    float *want = calloc(room, sizeof *want), *got = calloc(room, sizeof *got);
    snprintf(name, sizeof name, "%s, %s", model, w->name);
    seed = 7 + w->len; /* the same text, whichever cases ran before */
    for (size_t i = 0; i < w->len; i++) text[i] = i % 60 == 59 ? '\n' : (char)('a' + rng() % 26);
    text[w->len] = 0;
    run_text(cpu, text, overrides, &a, want);
    run_text(gpu, text, overrides, &b, got);
    run_text(gpu, text, overrides, &again, got);
    check(b.logits_hash == again.logits_hash && b.n_ids == again.n_ids &&
              !memcmp(b.ids, again.ids, sizeof *b.ids * (size_t)b.n_ids),
          "two runs, the same bytes", name, 0);
    double worst = 0;
    for (int i = 0; i < a.plan.n_chunks; i++)
        if (!isnan(a.chunks[i].score))
            worst = fmax(worst, fabs(a.chunks[i].score - b.chunks[i].score));
    check(worst < 0.05 * loose, "chunk scores", name, worst);
    if (same_chunks(&a, &b))
        compare_answers(&a, &b, want, got, w->limit, name);
    else
        printf("%s: other chunks kept, scores %g apart at most\n", name, worst);
    check(b.peak_bytes <= b.plan.peak_bytes, "peak within the plan", name,
          (double)b.peak_bytes / (double)b.plan.peak_bytes);
    check(b.peak_bytes * 1.02 >= b.plan.peak_bytes, "plan within 2% of the peak", name,
          (double)b.peak_bytes / (double)b.plan.peak_bytes);
    result_free(&a);
    result_free(&b);
    result_free(&again);
    free(text);
    free(want);
    free(got);
}

/* With any argument: little enough for compute-sanitizer (tests/cuda/sanitize.sh). */
int main(int argc, char **argv)
{
    bool brief = argc > 1 && !strcmp(argv[1], "brief");        /* else "whole" */
    size_t only = argc > 2 ? (size_t)atoi(argv[2]) : SIZE_MAX; /* one of the sides */
    size_t n_cases =
        argc > 3 ? (size_t)atoi(argv[3]) : SIZE_MAX; /* its first ones, and no whole run */
    static const struct {
        const char *model, *kv_type;
        double loose;
    } sides[] = {
        {"geometry:tiny", "auto", 1},
        {"geometry:tiny:q8_0", "auto", 1},
        {"geometry:tiny:q4_k", "auto", 1},
        {"geometry:tiny-40", "auto", 1},
        /* on the edge between two codes a value takes either: a step of 4 bits is a fifteenth of its token's range */
        {"geometry:tiny", "q4", 10},
        {"geometry:tiny-40", "q4", 10},
        {"geometry:tiny:q8_0", "q8", 2},
    };
    static const struct Case cases[] = {
        {NULL, 1, {1}, 0, 0, 0, 0, 0},
        {NULL, 1, {1}, 130, 0, 0, 0, 0},
        {NULL, 1, {3}, 65, 0, 0, 0, 0},
        {NULL, 1, {33}, 64, 8, 0, 0, 0},
        {NULL, 3, {129, 1, 300}, 31, 8, 0, 0, 0},
        {NULL, 2, {513, 64}, 0, 100, 0, 0, 0},
        {NULL, 4, {70, 71, 72, 73}, 7, 1, 0, 0, 0},
        {NULL, 1, {200}, 300, 0, 0, 0, 0},
        {NULL, 1, {300}, 500, 0, 40, INT_MAX, 7},
        {NULL, 1, {300}, 500, 0, 100, 4, 0},
        {NULL, 1, {1}, 700, 0, 65, INT_MAX, 3},
        {NULL, 1, {1}, 700, 0, 64, 70, 0},
        {NULL, 3, {129, 1, 300}, 31, 0, 20, 64, 4},
        {NULL, 1, {200}, 0, 0, 64, 0, 0},
        {NULL, 1, {100}, 90, 0, 300, INT_MAX, 2},
    };
    static const struct Whole wholes[] = {
        {"chunks",
         3000,
         0.05,
         {"method", "parallelcomp", "window", "512", "chunk", "200", "max_tokens", "9", "kv_cap",
          "off", NULL}},
        {"chunks, capped",
         3000,
         2,
         {"method", "parallelcomp", "window", "512", "chunk", "200", "max_tokens", "9", "kv_cap",
          "50", NULL}},
        /* the keys of these two pass into another tile while the answer is made from one record */
        {"full", 3103, 0.05, {"method", "full", "window", "8192", "max_tokens", "9", NULL}},
        /* fewer pages than there are: of near scores the backends may read different ones */
        {"full, selected pages",
         3103,
         2,
         {"method", "full", "window", "8192", "max_tokens", "9", "select", "mean", "select_pages",
          "30", NULL}},
        {"chunks, all pages by mass",
         3000,
         0.07,
         {"method", "parallelcomp", "window", "512", "chunk", "200", "max_tokens", "9", "select",
          "bound", "select_mass", "1", NULL}},
        {"snapkv",
         3000,
         2,
         {"method", "snapkv", "window", "8192", "max_tokens", "9", "kv_cap", "300", NULL}},
        {"self-extend",
         9119, /* two segments: the second has a past */
         0.05,
         {"method", "self-extend", "window", "512", "neighbours", "70", "max_tokens", "9", NULL}},
        {"streaming-llm",
         9000,
         0.05,
         {"method", "streaming-llm", "window", "300", "sinks", "5", "max_tokens", "9", NULL}},
        {"streaming-llm, one segment",
         2000,
         0.05,
         {"method", "streaming-llm", "window", "1024", "sinks", "80", "max_tokens", "9", NULL}},
        {"self-extend, nothing far",
         400,
         0.05,
         {"method", "self-extend", "window", "2048", "neighbours", "1000", "max_tokens", "9",
          NULL}},
    };
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    if (brief) n_steps = 12, n_rounds = 1; /* into the next page */
    for (size_t m = 0; m < sizeof sides / sizeof *sides; m++) {
        if (only == SIZE_MAX ? brief && m % 3 && m != 4 : m != only) continue;
        char name[64];
        snprintf(name, sizeof name, "%s, kv %s", sides[m].model, sides[m].kv_type);
        struct Engine *cpu = open_side(sides[m].model, "cpu", sides[m].kv_type),
                      *gpu = open_side(sides[m].model, "cuda", sides[m].kv_type);
        loose = sides[m].loose;
        for (size_t i = 0; i < sizeof cases / sizeof *cases && i < n_cases; i++) {
            struct Case c = cases[i];
            c.model = name;
            if (brief) fprintf(stderr, "%s: case %zu\n", name, i);
            run_case(&c, cpu, gpu);
        }
        static const struct PageSelect ways[] = {{.index = PAGE_INDEX_OFF},
                                                 {PAGE_INDEX_MEAN, 3, 0, 1, 2},
                                                 {PAGE_INDEX_BOUND, 2, 0, 0, 0},
                                                 {PAGE_INDEX_MEAN, 0, 0.6f, 1, 0}};
        for (int past = brief ? 700 : 0; past <= 700 && gpu->model.cfg.head_dim >= 64; past += 350)
            for (int way = 0; way < (brief ? 2 : 4); way++) test_steps(gpu, name, past, ways[way]);
        test_select_steps(gpu, name, 700); /* also heads whose keys are packed */
        size_t end = n_cases != SIZE_MAX ? 0 : brief ? 2 : sizeof wholes / sizeof *wholes;
        for (size_t i = brief ? 1 : 0; i < end; i++) run_whole(cpu, gpu, name, &wholes[i]);
        engine_close(cpu);
        engine_close(gpu);
    }
    static const char *const step_models[] = {"geometry:smollm2-135m",
                                              "geometry:qwen2.5-0.5b:q8_0"};
    static const char *const kv_types[] = {"auto", "q8", "q4"};
    for (size_t m = 0; m < 6 && !brief && only >= sizeof sides / sizeof *sides; m++) {
        const char *name = step_models[m / 3];
        struct Engine *gpu = open_side(name, "cuda", kv_types[m % 3]);
        test_steps(gpu, name, 3000, (struct PageSelect){.index = PAGE_INDEX_OFF});
        test_steps(gpu, name, 3000, (struct PageSelect){PAGE_INDEX_MEAN, 8, 0, 1, 2});
        test_select_steps(gpu, name, 3000);
        engine_close(gpu);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

/* test_backend.c - every op of the CUDA backend beside the CPU's in f32, over odd sizes; then whole runs beside each other.
 *
 * Both engines hold the same seeded weights. Ops run in the order of a layer, each backend on its own numbers, and are
 * compared after every one: bf16 keeps 8 bits of a value, so results differ by a few thousandths of their length.
 * What is exact is compared exactly: the choice of tokens from the same mass, pages, two runs of the same input.
 */
#include "eviction/kv_evict.h"
#include "src/sampler.h"
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed, failed;

static void check(bool ok, const char *what, const char *where, double value)
{
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s (%s): %g\n", what, where, value);
}

static void must(int status)
{
    if (status >= 0) return;
    printf("FAIL %s\n0 passed, 1 failed\n", err_text());
    exit(1);
}

static uint64_t seed = 7;

static uint32_t rng(void)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33);
}

/* |a - b| / |b|; NaN never passes. */
static double distance(const float *a, const float *b, size_t n)
{
    double d = 0, l = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        l += (double)b[i] * b[i];
    }
    return sqrt(d / (l > 0 ? l : 1));
}

/* ==== Two engines side by side ==== */

struct Side {
    struct Engine *e;
    struct Transformer tf;
    struct KvCache kv;
    struct HeadTable past;
    struct KvWrites writes;
};

struct Case {
    const char *model;
    int seqs, rows[4], past, obs; /* rows of each sequence */
};

static struct Engine *open_side(const char *model, const char *backend)
{
    struct Settings set;
    struct Engine *e;
    settings_default(&set);
    must(settings_set(&set, "backend", backend));
    if (!strcmp(backend, "cpu")) must(settings_set(&set, "precision", "f32"));
    must(engine_open(model, &set, &e));
    must(engine_weights(e));
    return e;
}

/* n values of a device's activations as f32. */
static float *fetch(const struct Side *s, const void *p, size_t n, size_t width)
{
    float *out = calloc(n, sizeof *out);
    if (width == sizeof(float)) {
        must(s->e->be->download(s->e->dev, out, p, n * width));
        return out;
    }
    uint16_t *half = calloc(n, sizeof *half);
    must(s->e->be->download(s->e->dev, half, p, n * width));
    for (size_t i = 0; i < n; i++) out[i] = bf16_to_f32(half[i]);
    free(half);
    return out;
}

static void compare(const struct Side *s, const void *a, const void *b, size_t n, bool stream,
                    double limit, const char *what, const char *where)
{
    float *x = fetch(&s[0], a, n, stream ? sizeof(float) : s[0].e->be->act_bytes),
          *y = fetch(&s[1], b, n, stream ? sizeof(float) : s[1].e->be->act_bytes);
    double d = distance(y, x, n);
    check(d < limit, what, where, d);
    free(x);
    free(y);
}

struct Plan {
    int *tokens, *pos, seq_begin[5];
    struct BatchShape shape;
};

static struct Plan plan_case(const struct Case *c, const struct ModelConfig *m)
{
    struct Plan p = {0};
    int longest = 0;
    for (int i = 0; i < c->seqs; i++) {
        p.seq_begin[i + 1] = p.seq_begin[i] + c->rows[i];
        if (c->rows[i] > longest) longest = c->rows[i];
    }
    int n = p.seq_begin[c->seqs];
    p.tokens = calloc((size_t)n + (size_t)c->past + 1, sizeof(int));
    p.pos = calloc((size_t)n + (size_t)c->past + 1, sizeof(int));
    for (int s = 0; s < c->seqs; s++)
        for (int i = p.seq_begin[s]; i < p.seq_begin[s + 1]; i++)
            p.tokens[i] = (int)(rng() % (unsigned)m->vocab_size),
            p.pos[i] = c->past + i - p.seq_begin[s];
    p.shape = (struct BatchShape){.rows = n > c->past ? n : c->past,
                                  .seqs = c->seqs,
                                  .keys = c->past + longest,
                                  .mass_keys = c->obs ? c->past + longest : 0,
                                  .head_rows = 5};
    return p;
}

static void open_case(struct Side *s, const struct Case *c, const struct Plan *p)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t pages = (size_t)m->n_layers * m->n_kv_heads *
                   (size_t)(4 * (c->past + p->shape.rows) / PAGE_TOKENS + 16);
    must(tf_open(&s->tf, s->e->be, s->e->dev, &s->e->model, p->shape.rows));
    must(s->e->be->reserve(s->e->dev, &p->shape));
    must(kv_open(&s->kv, s->e->be, s->e->dev, m, pages));
    must(kv_table_open(&s->past, m, c->past / PAGE_TOKENS + 8));
    must(kv_writes_open(&s->writes, 64));
}

static void close_case(struct Side *s)
{
    kv_writes_close(&s->writes);
    kv_table_close(&s->past);
    kv_close(&s->kv);
    tf_close(&s->tf);
}

/* The past: the case's first tokens as a sequence of their own, all layers. */
static void make_past(struct Side *s, const struct Case *c, const struct Plan *p)
{
    int ends[2] = {0, c->past}, *tokens = calloc((size_t)c->past + 1, sizeof(int)),
        *pos = calloc((size_t)c->past + 1, sizeof(int));
    if (c->past) {
        for (int i = 0; i < c->past; i++)
            tokens[i] = p->tokens[i % p->seq_begin[c->seqs]], pos[i] = i;
        struct Batch b = {.tokens = tokens, .pos = pos, .seq_begin = ends, .n_seqs = 1};
        must(tf_begin(&s->tf, &b));
        for (int l = 0; l < s->e->model.cfg.n_layers; l++) {
            struct AttnArgs a;
            struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, c->past};
            must(tf_attend(&s->tf, &b, l, 0, &a));
            must(kv_append_all(&s->kv, &s->past, l, &rows, &s->writes));
            must(kv_flush(&s->kv, &s->writes));
            must(tf_ffn(&s->tf, l, c->past));
        }
    }
    free(tokens);
    free(pos);
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
                         .stride = stride};
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
    check(d < 0.03, "attn_mass", where, d);
    test_keep(&s[1], c, p, &args[1], mass[1], stride, where);
    free(mass[0]);
    free(mass[1]);
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
        int at = want - 1;
        must(s[i].e->be->kv_read(s[i].e->dev, &s[i].kv.pool, t.refs[at / PAGE_TOKENS],
                                 at % PAGE_TOKENS, k[i], v[i]));
        kv_clear(&s[i].kv, &t);
        kv_table_close(&t);
    }
    worst =
        fmax(distance(k[1], k[0], (size_t)m->head_dim), distance(v[1], v[0], (size_t)m->head_dim));
    check(worst < 0.02 && heads > 0, "kv_write, kv_pack, kv_read", where, worst);
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
    check(d < 0.02, "nll", where, d);
    d = distance(logits[1], logits[0], (size_t)m->vocab_size);
    check(d < 0.03 && p, "logits", where, d);
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
    compare(s, s[0].tf.x, s[1].tf.x, (size_t)n * m->dim, true, 0.02, "compact, ffn", where);
    test_head(s, p, n, where);
}

static void run_case(const struct Case *c, struct Engine *cpu, struct Engine *gpu)
{
    struct Side s[2] = {{.e = cpu}, {.e = gpu}};
    const struct ModelConfig *m = &cpu->model.cfg;
    struct Plan p = plan_case(c, m);
    struct AttnArgs args[2];
    int n = p.seq_begin[c->seqs];
    size_t q = (size_t)n * m->n_heads * m->head_dim, kv = (size_t)n * m->n_kv_heads * m->head_dim;
    char where[160];
    snprintf(where, sizeof where, "%s, %d sequences of %d.. rows, past %d", c->model, c->seqs,
             c->rows[0], c->past);
    for (int i = 0; i < 2; i++) {
        open_case(&s[i], c, &p);
        make_past(&s[i], c, &p);
        struct Batch b = {.tokens = p.tokens,
                          .pos = p.pos,
                          .seq_begin = p.seq_begin,
                          .n_seqs = c->seqs,
                          .pool = &s[i].kv.pool,
                          .past = &s[i].past,
                          .n_biased = c->past / 2,
                          .bias = 0.5f};
        must(tf_begin(&s[i].tf, &b));
    }
    compare(s, s[0].tf.x, s[1].tf.x, (size_t)n * m->dim, true, 0.004, "begin", where);
    for (int l = 0; l < 2; l++) {
        for (int i = 0; i < 2; i++) {
            struct Batch b = {.tokens = p.tokens,
                              .pos = p.pos,
                              .seq_begin = p.seq_begin,
                              .n_seqs = c->seqs,
                              .pool = &s[i].kv.pool,
                              .past = &s[i].past,
                              .n_biased = c->past / 2,
                              .bias = 0.5f};
            must(tf_attend(&s[i].tf, &b, l, 0, &args[i]));
        }
        compare(s, s[0].tf.q, s[1].tf.q, q, false, 0.02, "norm_linear, rope: q", where);
        compare(s, s[0].tf.k, s[1].tf.k, kv, false, 0.02, "norm_linear, rope: k", where);
        compare(s, s[0].tf.v, s[1].tf.v, kv, false, 0.02, "norm_linear: v", where);
        compare(s, s[0].tf.out, s[1].tf.out, q, false, 0.02, "attention", where);
        if (c->obs) test_mass(s, c, &p, args, where);
        if (l == 0) {
            for (int i = 0; i < 2; i++) must(tf_ffn(&s[i].tf, l, n));
            compare(s, s[0].tf.x, s[1].tf.x, (size_t)n * m->dim, true, 0.02, "linear_add, ffn_add",
                    where);
        }
    }
    test_pages(s, c->rows[0], where);
    test_compact(s, c, &p, where);
    for (int i = 0; i < 2; i++) close_case(&s[i]);
    free(p.tokens);
    free(p.pos);
}

/* ==== Steps of decoding ==== */

enum { STEPS = 150 };
enum StepWay { WAY_OPS, WAY_LOGITS, WAY_BEST };

static int step_layers(struct Side *s, const struct Batch *b, bool append, float *logits)
{
    int row = 0;
    for (int l = 0; l < s->e->model.cfg.n_layers; l++) {
        struct AttnArgs a;
        struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, 1};
        must(tf_attend(&s->tf, b, l, 0, &a));
        if (append) must(kv_append_all(&s->kv, &s->past, l, &rows, &s->writes));
        if (append) must(kv_flush(&s->kv, &s->writes));
        if (!append)
            must(s->e->be->kv_write(s->e->dev, &s->kv.pool, NULL, s->e->model.cfg.n_kv_heads));
        must(tf_ffn(&s->tf, l, 1));
    }
    return s->e->be->logits(s->e->dev, s->tf.x, &row, 1, logits);
}

static int step_replayed(struct Side *s, const struct Batch *b, bool *recorded, float *logits,
                         int *best)
{
    const struct Backend *be = s->e->be;
    struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, 1};
    if (!*recorded) {
        must(be->record(s->e->dev, true));
        must(step_layers(s, b, false, logits));
        must(be->record(s->e->dev, false));
        *recorded = true;
    }
    for (int l = 0; l < s->e->model.cfg.n_layers; l++)
        must(kv_append_all(&s->kv, &s->past, l, &rows, &s->writes));
    int n = s->writes.n;
    s->writes.n = 0;
    return be->replay(s->e->dev, s->writes.list, n, logits, best);
}

/* STEPS tokens behind the case's past: out [STEPS, vocab_size], or with WAY_BEST the best tokens. */
static void run_steps(struct Engine *gpu, const struct Case *c, const struct Plan *p,
                      enum StepWay way, float *out, int *best)
{
    const struct ModelConfig *m = &gpu->model.cfg;
    struct Side s = {.e = gpu};
    int ends[2] = {0, 1};
    bool recorded = false;
    open_case(&s, c, p);
    kv_table_close(&s.past);
    kv_writes_close(&s.writes);
    must(kv_table_open(&s.past, m, (c->past + STEPS) / PAGE_TOKENS + 2));
    must(kv_writes_open(&s.writes, m->n_layers * m->n_kv_heads + 64));
    make_past(&s, c, p);
    for (int t = 0; t < STEPS; t++) {
        int id = (t * 37 + 5) % m->vocab_size, pos = c->past + t;
        struct Batch b = {.tokens = &id,
                          .pos = &pos,
                          .seq_begin = ends,
                          .n_seqs = 1,
                          .pool = &s.kv.pool,
                          .past = &s.past,
                          .n_biased = c->past / 2,
                          .bias = 0.5f,
                          .follows = recorded && t % 50};
        must(tf_begin(&s.tf, &b));
        float *logits = out + (size_t)t * m->vocab_size;
        if (way == WAY_OPS)
            must(step_layers(&s, &b, true, logits));
        else
            must(step_replayed(&s, &b, &recorded, way == WAY_LOGITS ? logits : NULL, &best[t]));
    }
    close_case(&s);
}

/* A recorded step is the same bytes as its ops one by one, whatever lies before. */
static void test_steps(struct Engine *gpu, const char *model, int past)
{
    struct Case c = {model, 1, {1}, past, 0};
    struct Plan p = plan_case(&c, &gpu->model.cfg);
    size_t vocab = (size_t)gpu->model.cfg.vocab_size, n = STEPS * vocab;
    float *ops = calloc(n, sizeof *ops), *logits = calloc(n, sizeof *logits);
    int best[STEPS], id;
    char where[160];
    snprintf(where, sizeof where, "%s, past %d", model, past);
    p.shape.keys += STEPS;
    p.shape.rows = past > 256 ? past : 256;
    run_steps(gpu, &c, &p, WAY_OPS, ops, best);
    for (int round = 0; round < 3; round++) {
        run_steps(gpu, &c, &p, WAY_LOGITS, logits, best);
        int wrong = 0;
        for (int t = 0; t < STEPS; t++)
            wrong += memcmp(ops + t * vocab, logits + t * vocab, vocab * sizeof *ops) != 0;
        check(wrong == 0, "steps: logits", where, wrong);
        run_steps(gpu, &c, &p, WAY_BEST, logits, best);
        wrong = 0;
        for (int t = 0; t < STEPS; t++)
            wrong += sampler_argmax(ops + t * vocab, (int)vocab, &id) < 0 || id != best[t];
        check(wrong == 0, "steps: best token", where, wrong);
    }
    free(ops);
    free(logits);
    free(p.tokens);
    free(p.pos);
}

/* ==== Whole runs ==== */

static void run_text(struct Engine *e, const char *text, const char *overrides[], struct Result *r)
{
    struct Settings set = *engine_settings(e);
    for (int i = 0; overrides[i]; i += 2) must(settings_set(&set, overrides[i], overrides[i + 1]));
    must(engine_configure(e, &set));
    struct Request req = {.context = text,
                          .context_len = strlen(text),
                          .question = "Which line has a seven in it, and why?"};
    must(session_run(e, &req, r));
}

/* Scores within bf16's reach of each other, the same bytes twice, and no difference from wave to wave. */
static void run_whole(struct Engine *cpu, struct Engine *gpu, const char *name,
                      const char *overrides[])
{
    struct Result a, b, again;
    size_t len = 3000;
    char *text = malloc(len + 1);
    for (size_t i = 0; i < len; i++) text[i] = i % 60 == 59 ? '\n' : (char)('a' + rng() % 26);
    text[len] = 0;
    run_text(cpu, text, overrides, &a);
    run_text(gpu, text, overrides, &b);
    run_text(gpu, text, overrides, &again);
    check(b.logits_hash == again.logits_hash && b.n_ids == again.n_ids &&
              !memcmp(b.ids, again.ids, sizeof *b.ids * (size_t)b.n_ids),
          "two runs, the same bytes", name, 0);
    double worst = 0;
    for (int i = 0; i < a.plan.n_chunks; i++)
        if (!isnan(a.chunks[i].score))
            worst = fmax(worst, fabs(a.chunks[i].score - b.chunks[i].score));
    check(worst < 0.05, "chunk scores", name, worst);
    check(b.peak_bytes <= b.plan.peak_bytes, "peak within the plan", name,
          (double)b.peak_bytes / (double)b.plan.peak_bytes);
    check(b.peak_bytes * 1.02 >= b.plan.peak_bytes, "plan within 2% of the peak", name,
          (double)b.peak_bytes / (double)b.plan.peak_bytes);
    result_free(&a);
    result_free(&b);
    result_free(&again);
    free(text);
}

int main(void)
{
    static const char *const models[] = {"geometry:tiny", "geometry:tiny:q8_0",
                                         "geometry:tiny:q4_k"};
    static const struct Case cases[] = {
        {NULL, 1, {1}, 0, 0},
        {NULL, 1, {1}, 130, 0},
        {NULL, 1, {3}, 65, 0},
        {NULL, 1, {33}, 64, 8},
        {NULL, 3, {129, 1, 300}, 31, 8},
        {NULL, 2, {513, 64}, 0, 100},
        {NULL, 4, {70, 71, 72, 73}, 7, 1},
        {NULL, 1, {200}, 300, 0},
    };
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct Engine *cpu = open_side(models[m], "cpu"), *gpu = open_side(models[m], "cuda");
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct Case c = cases[i];
            c.model = models[m];
            run_case(&c, cpu, gpu);
        }
        for (int past = 0; past <= 700; past += 350) test_steps(gpu, models[m], past);
        const char *plain[] = {"method", "parallelcomp", "window",     "512",
                               "chunk",  "200",          "max_tokens", "9",
                               "kv_cap", "off",          NULL};
        const char *capped[] = {"method", "parallelcomp", "window",     "512",
                                "chunk",  "200",          "max_tokens", "9",
                                "kv_cap", "50",           NULL};
        const char *full[] = {"method", "full", "window", "8192", "max_tokens", "9", NULL};
        const char *snap[] = {"method", "snapkv", "window", "8192", "max_tokens",
                              "9",      "kv_cap", "300",    NULL};
        run_whole(cpu, gpu, "chunks", plain);
        run_whole(cpu, gpu, "chunks, capped", capped);
        run_whole(cpu, gpu, "full", full);
        run_whole(cpu, gpu, "snapkv", snap);
        engine_close(cpu);
        engine_close(gpu);
    }
    static const char *const step_models[] = {"geometry:smollm2-135m",
                                              "geometry:qwen2.5-0.5b:q8_0"};
    for (size_t m = 0; m < sizeof step_models / sizeof *step_models; m++) {
        struct Engine *gpu = open_side(step_models[m], "cuda");
        test_steps(gpu, step_models[m], 3000);
        engine_close(gpu);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

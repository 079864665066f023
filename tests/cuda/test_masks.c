/* test_masks.c - windows and sinks head by head: the CUDA backend beside the CPU's f32, which hides keys and keeps them all.
 *
 * Many rows, few rows over pages, and steps one by one and replayed. Where a case is slid, the GPU's cache has lost what no
 * row will see any more (kv_slide), before the batch and after every step, while the CPU's has it still: so what is trimmed
 * is what a mask would hide, at every step, whichever pages come and go.
 */
#include "sides.h"

struct MaskCase {
    int seqs, rows[4], past, obs;
    int window, sinks, last_rows;
    bool
        ragged; /* query heads of a KV head differ; else whole groups have the window, or none has */
    bool slid;
};

/* ==== Masks ==== */

/* [n_layers, n_heads]; every second KV head of a layer has no window, other ones from layer to layer. */
static int *windows_of(const struct MaskCase *c, const struct ModelConfig *m)
{
    const int kinds[] = {c->window, 0, 1, c->window / 2 + 1, 3 * c->window};
    int *out = calloc((size_t)m->n_layers * (size_t)m->n_heads, sizeof *out);
    for (int l = 0; l < m->n_layers; l++)
        for (int h = 0; h < m->n_heads; h++) {
            int group = h / (m->n_heads / m->n_kv_heads);
            out[l * m->n_heads + h] = c->ragged              ? kinds[(l + h) % 5]
                                      : (l + group) % 2 != 0 ? 0
                                                             : c->window;
        }
    return out;
}

/* The widest window of a KV head, 0 where a query head sees all. */
static int widest(const struct ModelConfig *m, const struct HeadMasks *masks, int head)
{
    int group = m->n_heads / m->n_kv_heads, most = 0;
    for (int i = head * group; i < (head + 1) * group; i++) {
        if (masks->window[i] == 0) return 0;
        if (masks->window[i] > most) most = masks->window[i];
    }
    return most;
}

/* Gives back the pages that no row to come will see. Returns how many tokens went. */
static int slide(struct Side *s, const struct HeadMasks *masks)
{
    int gone = 0;
    for (int h = 0; h < s->past.n_heads; h++) {
        int window = widest(&s->e->model.cfg, masks, h), before = s->past.n_tokens[h];
        if (window) kv_slide(&s->kv, &s->past, h, masks->sinks, window - 1);
        gone += before - s->past.n_tokens[h];
    }
    return gone;
}

/* ==== A layer ==== */

static void compare_mass(struct Side *s, const struct MaskCase *c, const struct Plan *p,
                         const struct AttnArgs *args, const char *where)
{
    size_t n = (size_t)c->seqs * s->e->model.cfg.n_kv_heads * p->shape.mass_keys;
    float *mass[2];
    for (int i = 0; i < 2; i++) {
        mass[i] = calloc(n, sizeof **mass);
        must(s[i].e->be->attn_mass(s[i].e->dev, &args[i], c->obs, mass[i], p->shape.mass_keys));
    }
    double d = distance(mass[1], mass[0], n);
    check(d < 0.03, "attn_mass", where, d);
    free(mass[0]);
    free(mass[1]);
}

/* Attention's output of the rows that were asked for. */
static void compare_rows(struct Side *s, const struct MaskCase *c, const struct Plan *p,
                         const char *where)
{
    size_t width = (size_t)s->e->model.cfg.n_heads * s->e->model.cfg.head_dim;
    for (int i = 0; i < c->seqs; i++) {
        int first = p->seq_begin[i], end = p->seq_begin[i + 1];
        if (c->last_rows && end - c->last_rows > first) first = end - c->last_rows;
        const uint8_t *out[2];
        for (int k = 0; k < 2; k++)
            out[k] = (uint8_t *)s[k].tf.out + (size_t)first * width * s[k].e->be->act_bytes;
        compare(s, out[0], out[1], (size_t)(end - first) * width, false, 0.02, "attention", where);
    }
}

static void run_case(const struct MaskCase *c, const char *model, struct Engine *cpu,
                     struct Engine *gpu)
{
    struct Side s[2] = {{.e = cpu}, {.e = gpu}};
    struct Case base = {
        model, c->seqs, {c->rows[0], c->rows[1], c->rows[2], c->rows[3]}, c->past, c->obs, 0, 0, 0};
    struct Plan p = plan_case(&base, &cpu->model.cfg);
    struct HeadMasks masks = {windows_of(c, &cpu->model.cfg), c->sinks};
    struct AttnArgs args[2];
    char where[160];
    snprintf(where, sizeof where, "%s, %d of %d.. rows, past %d, window %d, %d sinks%s%s", model,
             c->seqs, c->rows[0], c->past, c->window, c->sinks, c->ragged ? ", ragged" : "",
             c->slid ? ", slid" : "");
    for (int i = 0; i < 2; i++) {
        open_case(&s[i], &base, &p);
        make_past(&s[i], &base);
    }
    if (c->slid) check(slide(&s[1], &masks) > 0, "something is slid away", where, 0);
    for (int l = 0; l < 2; l++) {
        for (int i = 0; i < 2; i++) {
            struct Batch b = {.tokens = p.tokens,
                              .pos = p.pos,
                              .seq_begin = p.seq_begin,
                              .n_seqs = c->seqs,
                              .pool = &s[i].kv.pool,
                              .past = &s[i].past,
                              .masks = &masks};
            if (l == 0) must(tf_begin(&s[i].tf, &b));
            must(tf_attend(&s[i].tf, &b, l, c->last_rows, &args[i]));
        }
        compare_rows(s, c, &p, where);
        if (c->obs) compare_mass(s, c, &p, args, where);
        if (c->last_rows) break; /* the other rows' outputs are nothing */
        for (int i = 0; i < 2; i++) must(tf_ffn(&s[i].tf, l, p.seq_begin[c->seqs]));
    }
    for (int i = 0; i < 2; i++) close_case(&s[i]);
    free((void *)(uintptr_t)masks.window);
    free(p.tokens);
    free(p.pos);
}

/* ==== Steps of decoding ==== */

enum { STEPS = 150 };
static int n_steps = STEPS; /* fewer under a sanitizer */

/* n_steps tokens behind the case's past: logits [n_steps, vocab_size]. A replayed step is followed by one that is told all
 * anew now and then. */
static void run_steps(struct Engine *e, const struct MaskCase *c, bool replayed, bool slid,
                      float *logits)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct Side s = {.e = e};
    struct Case base = {.seqs = 1, .rows = {1}, .past = c->past};
    struct Plan p = plan_case(&base, m);
    struct HeadMasks masks = {windows_of(c, m), c->sinks};
    int ends[2] = {0, 1}, unused;
    bool recorded = false;
    p.shape.keys += n_steps;
    p.shape.rows = c->past > 256 ? c->past : 256;
    open_case(&s, &base, &p);
    kv_table_close(&s.past);
    kv_writes_close(&s.writes);
    must(kv_table_open(&s.past, m, (c->past + n_steps) / PAGE_TOKENS + 3));
    must(kv_writes_open(&s.writes, m->n_layers * m->n_kv_heads + 64));
    make_past(&s, &base);
    for (int t = 0; t < n_steps; t++) {
        int id = (t * 37 + 5) % m->vocab_size, pos = c->past + t;
        struct Batch b = {.tokens = &id,
                          .pos = &pos,
                          .seq_begin = ends,
                          .n_seqs = 1,
                          .pool = &s.kv.pool,
                          .past = &s.past,
                          .masks = &masks,
                          .follows = recorded && t % 100 != 99};
        float *row = logits + (size_t)t * m->vocab_size;
        must(tf_begin(&s.tf, &b));
        must(replayed ? step_replayed(&s, &b, &recorded, row, &unused)
                      : step_layers(&s, &b, true, row));
        if (slid) slide(&s, &masks);
    }
    close_case(&s);
    free((void *)(uintptr_t)masks.window);
    free(p.tokens);
    free(p.pos);
}

/* The largest distance of a step's logits from those wanted. */
static double worst_step(const float *got, const float *want, size_t vocab)
{
    double worst = 0;
    for (int t = 0; t < n_steps; t++) {
        double d = distance(got + (size_t)t * vocab, want + (size_t)t * vocab, vocab);
        if (!(d <= worst)) worst = d; /* NaN is the worst */
    }
    return worst;
}

static void test_steps(const struct MaskCase *c, const char *model, struct Engine *cpu,
                       struct Engine *gpu)
{
    size_t vocab = (size_t)cpu->model.cfg.vocab_size, n = (size_t)n_steps * vocab;
    float *want = calloc(n, sizeof *want), *ops = calloc(n, sizeof *ops),
          *got = calloc(n, sizeof *got);
    char where[160];
    run_steps(cpu, c, false, false, want);
    for (int slid = 0; slid < 2; slid++) {
        snprintf(where, sizeof where, "%s, past %d, window %d, %d sinks%s", model, c->past,
                 c->window, c->sinks, slid ? ", slid" : "");
        run_steps(gpu, c, false, slid, ops);
        double d = worst_step(ops, want, vocab);
        check(d < 0.03, "steps: logits beside the CPU's", where, d);
        for (int round = 0; round < 2; round++) {
            run_steps(gpu, c, true, slid, got);
            check(memcmp(ops, got, n * sizeof *ops) == 0, "steps: replayed, the same bytes", where,
                  round);
        }
    }
    free(want);
    free(ops);
    free(got);
}

/* With any argument: little enough for compute-sanitizer (tests/cuda/sanitize.sh). */
int main(int argc, char **argv)
{
    (void)argv;
    bool brief = argc > 1;
    static const char *const models[] = {"geometry:tiny", "geometry:tiny-40"};
    static const struct MaskCase cases[] = {
        {1, {1}, 700, 0, 256, 128, 0, false, false},
        {1, {1}, 700, 0, 256, 128, 0, false, true},
        {1, {1}, 500, 0, 1, 0, 0, false, true},
        {1, {1}, 90, 0, 64, 64, 0, false, false}, /* fewer keys than that */
        {1, {1}, 0, 0, 65, 4, 0, false, false},
        {1, {3}, 700, 0, 100, 4, 0, true, false},
        {1, {7}, 650, 0, 77, 5, 0, false, true},
        {1, {5}, 300, 2, 33, 130, 0, true, false},
        {1, {200}, 300, 0, 65, 4, 0, true, false},
        {1, {300}, 700, 0, 128, 16, 0, false, true},
        {1, {90}, 500, 0, 100, 7, 9, false, true},
        {3, {129, 1, 300}, 31, 8, 40, 4, 0, true, false},
        {2, {513, 64}, 0, 100, 64, 0, 0, true, false},
        {2, {150, 70}, 400, 8, 90, 70, 20, true, false},
        {4, {70, 71, 72, 73}, 600, 0, 129, 64, 0, false, true},
    };
    static const struct MaskCase steps[] = {
        {.past = 700, .window = 100, .sinks = 4},  {.past = 350, .window = 1, .sinks = 0},
        {.past = 0, .window = 65, .sinks = 70},    {.past = 350, .window = 256, .sinks = 128},
        {.past = 500, .window = 5000, .sinks = 4},
    };
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    if (brief) n_steps = 12; /* into the next page */
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        if (brief && m) break;
        struct Engine *cpu = open_side(models[m], "cpu", "auto"),
                      *gpu = open_side(models[m], "cuda", "auto");
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            run_case(&cases[i], models[m], cpu, gpu);
        for (size_t i = 0; i < (brief ? 1 : sizeof steps / sizeof *steps); i++)
            if (gpu->model.cfg.head_dim >= 64) test_steps(&steps[i], models[m], cpu, gpu);
        engine_close(cpu);
        engine_close(gpu);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

/* test_parts.c - attention in parts of the keys on the GPU (headwise.md D.7): pages of a past dealt to parts at random, some of
 * which get none; joined, they are the CPU's attention over all keys in f32, for one row over pages and for many, with pages of
 * numbers and of codes, biases and windows; the mass of all parts' keys is that of the whole, and a second join has the same
 * bits.
 */
#include "sides.h"

enum { PARTS = 4 };

struct PartCase {
    int rows, past, n_parts, obs, window;
    bool scarce;  /* two parts of all have something */
    double loose; /* the codes of both sides differ where a value lies on an edge between two */
};

/* A case on the GPU, and what becomes of its past. */
struct Parts {
    struct Side *gpu;
    struct HeadTable table[PARTS];
    uint8_t *own[PARTS]; /* [n_layers * n_kv_heads] */
    struct AttnPart part[PARTS];
    int n;
};

/* ==== Parts ==== */

static void *device_floats(const struct Side *s, size_t n)
{
    void *p = s->e->be->alloc(s->e->dev, n * sizeof(float));
    if (!p) must(PC_ENOMEM);
    return p;
}

/* Heads with a window are of one part. */
static void deal_head(struct Parts *p, const struct PartCase *c, int head, bool streams)
{
    const struct HeadTable *all = &p->gpu->past;
    int most = c->scarce && p->n > 2 ? 2 : p->n, owner = (int)(rng() % (unsigned)most);
    for (int i = 0; i < all->n_refs[head]; i++) {
        struct PageRef ref = all->refs[(size_t)head * all->stride + i];
        struct HeadTable *t = &p->table[streams ? owner : (int)(rng() % (unsigned)most)];
        t->refs[(size_t)head * t->stride + t->n_refs[head]++] = ref;
        t->n_tokens[head] += (int)ref.len;
    }
    for (int i = 0; i < p->n; i++) p->own[i][head] = i == owner;
}

static void deal(struct Parts *p, const struct PartCase *c, const struct HeadMasks *masks)
{
    const struct Side *s = p->gpu;
    const struct ModelConfig *m = &s->e->model.cfg;
    int heads = m->n_layers * m->n_kv_heads;
    for (int i = 0; i < p->n; i++) {
        must(kv_table_open(&p->table[i], m, s->past.stride));
        p->own[i] = calloc((size_t)heads, 1);
        p->part[i].out = device_floats(s, (size_t)c->rows * m->n_heads * m->head_dim);
        p->part[i].lse = device_floats(s, (size_t)c->rows * m->n_heads);
    }
    for (int h = 0; h < heads; h++)
        deal_head(p, c, h, masks->window && masks->window[h * (m->n_heads / m->n_kv_heads)]);
}

static void parts_free(struct Parts *p)
{
    for (int i = 0; i < p->n; i++) {
        kv_table_close(&p->table[i]);
        free(p->own[i]);
        p->gpu->e->be->release(p->gpu->e->dev, p->part[i].out);
        p->gpu->e->be->release(p->gpu->e->dev, p->part[i].lse);
    }
}

/* ==== A layer ==== */

static struct Batch batch_of(struct Side *s, const struct Plan *p, const struct HeadTable *past,
                             const struct HeadMasks *masks)
{
    return (struct Batch){.tokens = p->tokens,
                          .pos = p->pos,
                          .seq_begin = p->seq_begin,
                          .n_seqs = 1,
                          .pool = &s->kv.pool,
                          .past = past,
                          .masks = masks->window ? masks : NULL};
}

/* The first layer's attention, part by part, each with its own past told. */
static void attend_parts(struct Parts *parts, const struct Plan *p, const struct HeadMasks *masks,
                         struct AttnArgs *args)
{
    struct Side *s = parts->gpu;
    for (int i = 0; i < parts->n; i++) {
        struct Batch b = batch_of(s, p, &parts->table[i], masks);
        must(tf_begin(&s->tf, &b));
        must(tf_project(&s->tf, &b, 0, 0, args));
        parts->part[i].own = parts->own[i];
        args->part = &parts->part[i];
        must(s->e->be->attention(s->e->dev, args));
    }
}

static float *fetch_floats(const struct Side *s, const float *from, size_t n)
{
    float *out = calloc(n, sizeof *out);
    must(s->e->be->download(s->e->dev, out, from, n * sizeof *out));
    return out;
}

/* Of n keys a head, past and own. */
static double mass_of(const struct Side *s, const struct AttnArgs *args, int obs, int stride)
{
    int heads = s->e->model.cfg.n_kv_heads;
    float *mass = calloc((size_t)(heads * stride), sizeof *mass);
    double sum = 0;
    must(s->e->be->attn_mass(s->e->dev, args, obs, mass, stride));
    for (int i = 0; i < heads * stride; i++) sum += mass[i];
    free(mass);
    return sum;
}

/* The sum over the keys of all parts of the attention that `obs` rows pay: each row pays one a query head. */
static void check_mass(struct Parts *parts, const struct PartCase *c, const struct Plan *p,
                       const struct HeadMasks *masks, const char *where)
{
    struct Side *s = parts->gpu;
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t n = (size_t)c->rows * m->n_heads;
    float *lse = fetch_floats(s, parts->part[parts->n - 1].lse, n);
    double sum = 0, want = (double)c->obs * m->n_heads;
    for (int i = 0; i < parts->n; i++) {
        struct Batch b = batch_of(s, p, &parts->table[i], masks);
        struct AttnArgs args;
        must(tf_begin(&s->tf, &b));
        must(tf_project(&s->tf, &b, 0, 0, &args));
        args.part = &parts->part[i];
        must(s->e->be->attention(s->e->dev, &args));
        must(s->e->be->upload(s->e->dev, parts->part[i].lse, lse, n * sizeof *lse));
        sum += mass_of(s, &args, c->obs, p->shape.mass_keys);
    }
    check(fabs(sum - want) < 0.02 * want, "mass of all parts", where, sum / want);
    free(lse);
}

static void check_join(struct Side *s, struct Parts *parts, struct AttnArgs *args,
                       const struct PartCase *c, const float *want_lse, const char *where)
{
    const struct ModelConfig *m = &s[1].e->model.cfg;
    size_t heads = (size_t)c->rows * m->n_heads, values = heads * m->head_dim;
    const struct Backend *be = s[1].e->be;
    must(be->attention_join(s[1].e->dev, args, parts->part, parts->n));
    compare(s, s[0].tf.out, s[1].tf.out, values, false, 0.02 * c->loose, "joined", where);
    float *lse = fetch_floats(&s[1], args->part->lse, heads);
    double worst = 0;
    for (size_t i = 0; i < heads; i++) worst = fmax(worst, fabs(lse[i] - want_lse[i]));
    double biased = s[1].e->model.layers[0].bk ? 4 : 1; /* keys with a bias make large scores */
    check(worst < 0.05 * c->loose * biased, "lse", where, worst);
    free(lse);
}

static void check_again(struct Parts *parts, const struct Plan *p, const struct HeadMasks *masks,
                        const char *where)
{
    struct Side *s = parts->gpu;
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t values = (size_t)p->seq_begin[1] * m->n_heads * m->head_dim;
    float *out[2];
    for (int i = 0; i < 2; i++) {
        struct AttnArgs args;
        attend_parts(parts, p, masks, &args);
        must(s->e->be->attention_join(s->e->dev, &args, parts->part, parts->n));
        out[i] = fetch(s, s->tf.out, values, s->e->be->act_bytes);
    }
    check(!memcmp(out[0], out[1], values * sizeof *out[0]), "the same bits again", where, 0);
    free(out[0]);
    free(out[1]);
}

/* The CPU's attention, which as the only part tells its lse. */
static void attend_whole(struct Side *s, const struct Plan *p, const struct HeadMasks *masks,
                         float *lse)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    uint8_t own[256];
    struct AttnArgs args;
    struct Batch b = batch_of(s, p, &s->past, masks);
    memset(own, 1, sizeof own);
    struct AttnPart all = {
        .own = own,
        .out = calloc((size_t)p->seq_begin[1] * m->n_heads * m->head_dim, sizeof(float)),
        .lse = lse};
    must(tf_begin(&s->tf, &b));
    must(tf_project(&s->tf, &b, 0, 0, &args));
    args.part = &all;
    must(s->e->be->attention(s->e->dev, &args));
    must(s->e->be->attention_join(s->e->dev, &args, &all, 1));
    free(all.out);
}

static void run_case(const struct PartCase *c, const char *model, struct Engine *cpu,
                     struct Engine *gpu)
{
    struct Side s[2] = {{.e = cpu}, {.e = gpu}};
    struct Case base = {model, 1, {c->rows}, c->past, c->obs, 0, 0, 0};
    const struct ModelConfig *m = &cpu->model.cfg;
    struct Plan p = plan_case(&base, m);
    struct Parts parts = {.gpu = &s[1], .n = c->n_parts};
    struct HeadMasks masks = {NULL, 5};
    struct AttnArgs args;
    char where[160];
    int *window = calloc((size_t)m->n_layers * m->n_heads, sizeof *window);
    float *lse = calloc((size_t)c->rows * m->n_heads, sizeof *lse);
    for (int h = 0; h < m->n_layers * m->n_heads; h++)
        window[h] = h / (m->n_heads / m->n_kv_heads) % 2 ? c->window : 0;
    if (c->window) masks.window = window;
    snprintf(where, sizeof where, "%s, %d rows, past %d, %d parts, window %d%s", model, c->rows,
             c->past, c->n_parts, c->window, c->scarce ? ", two of them with keys" : "");
    p.shape.parts = true;
    for (int i = 0; i < 2; i++) {
        open_case(&s[i], &base, &p);
        make_past(&s[i], &base);
    }
    deal(&parts, c, &masks);
    attend_whole(&s[0], &p, &masks, lse);
    attend_parts(&parts, &p, &masks, &args);
    check_join(s, &parts, &args, c, lse, where);
    if (c->obs) check_mass(&parts, c, &p, &masks, where);
    check_again(&parts, &p, &masks, where);
    parts_free(&parts);
    for (int i = 0; i < 2; i++) close_case(&s[i]);
    free(lse);
    free(window);
    free(p.tokens);
    free(p.pos);
}

int main(void)
{
    static const char *const models[] = {"geometry:tiny", "geometry:qwen2.5-0.5b",
                                         "geometry:smollm2-135m"};
    static const char *const types[] = {"auto", "q8", "q4"};
    static const int rows[] = {1, 2, 5, 33, 200}, pasts[] = {0, 63, 700, 1500};
    if (!&backend_cuda || !backend_cuda.available()) {
        puts("SKIP: no GPU");
        return 0;
    }
    for (int i = 0, n = 0; i < 3; i++)
        for (int t = 0; t < 3; t++) {
            struct Engine *cpu = open_side(models[i], "cpu", types[t]),
                          *gpu = open_side(models[i], "cuda", types[t]);
            for (int r = 0; r < 5; r++)
                for (int k = 0; k < 4; k++, n++) {
                    struct PartCase c = {
                        .rows = rows[r], .past = pasts[k], .n_parts = 1 + n % PARTS};
                    c.scarce = n % 3 == 1;
                    c.loose = t == 2 ? 8 : t == 1 ? 2 : 1;
                    c.window = n % 4 == 3 ? 40 : 0;
                    c.obs = n % 2 ? (rows[r] < 8 ? rows[r] : 8) : 0;
                    run_case(&c, models[i], cpu, gpu);
                }
            engine_close(cpu);
            engine_close(gpu);
        }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

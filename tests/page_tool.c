/* page_tool.c - how much of an answer's attention lies on the pages that selection would read (headwise.md, H9).
 *
 *   page_tool MODEL FILE QUESTION [NAME=VALUE...]
 *
 * The answer is made with every page read, on the CPU; NAME=VALUE are settings. At each of its rows, for each query head,
 * the true attention of every page is found from its keys, and what each rule would have kept of it. Rules: the number of
 * pages between sinks and recent ones or the share to reach, by mean key, by range, and by the true attention, which no index
 * can surpass. Lines: rule, share of the tokens read, attention kept: mean over query heads and rows, over those that
 * have a tenth or more of theirs between, and of the latter the tenth with the least.
 */
#include "src/cpu.h"
#include "src/pcomp.h"
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SOURCES = 3, TRUE_MASS = 2, N_RULES = 12, GROUP_MAX = 64, BINS = 1000 };
static const char *const SOURCE_NAMES[] = {"mean", "bound", "true"};
static const struct PageSelect RULES[N_RULES] = {
    {.pages = 0},    {.pages = 8},   {.pages = 16},   {.pages = 32},
    {.pages = 48},   {.pages = 64},  {.pages = 96},   {.mass = 0.5f},
    {.mass = 0.75f}, {.mass = 0.9f}, {.mass = 0.95f}, {.mass = 0.99f},
};

struct Sum {
    double read, there, kept, far;
    long n_rows, n_far;
    long bin[BINS + 1]; /* of far rows, by what was kept */
};

static struct {
    const struct Backend *real;
    struct PageSelect base; /* sinks and recent pages */
    struct Sum sum[SOURCES][N_RULES];
} tool;

/* One KV head of one row. */
struct Head {
    const struct PageRef *refs;
    int n, group, n_open;
    double *mass; /* [group, n] of the row's softmax */
    float *score; /* [SOURCES, n] */
    int *len, *idx;
    struct PageWeights work;
};

static void *room(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    if (!p) exit(1);
    return p;
}

/* ==== The true attention ==== */

static float dot(const float *a, const float *b, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* exp(logit - top) of each page's tokens and of the row's own, by two passes over the logits. */
static void true_mass(struct Device *d, const struct AttnArgs *a, int kv_head, struct Head *h)
{
    const struct ModelConfig *m = &d->model->cfg;
    const float *q = (const float *)a->q + (size_t)kv_head * h->group * m->head_dim;
    float scale = 1 / sqrtf((float)m->head_dim), key[HEAD_DIM_MAX], unused[HEAD_DIM_MAX];
    float *logit = room((size_t)h->group * (size_t)h->n * PAGE_TOKENS, sizeof *logit);
    float top[GROUP_MAX], own[GROUP_MAX];
    const float *own_key = (const float *)a->k + (size_t)kv_head * m->head_dim;
    for (int g = 0; g < h->group; g++)
        top[g] = own[g] = scale * dot(q + (size_t)g * m->head_dim, own_key, m->head_dim);
    for (int i = 0; i < h->n; i++)
        for (int t = 0; t < (int)h->refs[i].len; t++) {
            tool.real->kv_read(d, a->pool, h->refs[i], t, key, unused);
            for (int g = 0; g < h->group; g++) {
                float x =
                    scale * dot(q + (size_t)g * m->head_dim, key, m->head_dim) + h->refs[i].bias;
                logit[((size_t)g * (size_t)h->n + (size_t)i) * PAGE_TOKENS + (size_t)t] = x;
                if (x > top[g]) top[g] = x;
            }
        }
    for (int g = 0; g < h->group; g++) {
        double *mass = h->mass + (size_t)g * (size_t)h->n, all = exp(own[g] - top[g]);
        for (int i = 0; i < h->n; i++) {
            const float *x = logit + ((size_t)g * (size_t)h->n + (size_t)i) * PAGE_TOKENS;
            for (int t = 0; t < (int)h->refs[i].len; t++) mass[i] += exp(x[t] - top[g]);
            all += mass[i];
        }
        for (int i = 0; i < h->n; i++) mass[i] /= all;
    }
    free(logit);
}

/* ==== Scores ==== */

static void index_scores(struct Device *d, const struct AttnArgs *a, int kv_head, struct Head *h,
                         enum PageIndex index, float *score)
{
    const struct ModelConfig *m = &d->model->cfg;
    struct IndexQuery q = {.index = index,
                           .exact = d->exact,
                           .head_dim = m->head_dim,
                           .q = (const float *)a->q + (size_t)kv_head * h->group * m->head_dim,
                           .n_q = h->group,
                           .scale = 1 / sqrtf((float)m->head_dim)};
    void *entry = room(2 * (size_t)m->head_dim, sizeof(float));
    for (int i = 0; i < h->n - h->n_open; i++) {
        d->kern->index_write(a->pool->data + h->refs[i].page * a->pool->page_bytes,
                             (int)h->refs[i].len, m->head_dim, index, d->exact, entry);
        score[i] = d->kern->index_score(&q, entry) + h->refs[i].bias;
    }
    free(entry);
}

/* The score that would be right: the log of what a token weighs, for the group's head that it matters most to. */
static void true_scores(const struct Head *h, float *score)
{
    for (int i = 0; i < h->n; i++) {
        double most = 0;
        for (int g = 0; g < h->group; g++)
            most = fmax(most, h->mass[(size_t)g * (size_t)h->n + (size_t)i]);
        score[i] = (float)log(most / h->len[i] + 1e-30);
    }
}

/* ==== What rules keep ==== */

static void add_row(struct Sum *s, double kept, bool far)
{
    s->kept += kept;
    s->n_rows++;
    if (!far) return;
    s->far += kept;
    s->n_far++;
    s->bin[(int)(kept * BINS)]++;
}

static void apply(const struct Head *h, int source, int rule)
{
    struct Sum *s = &tool.sum[source][rule];
    struct PageSelect select = RULES[rule];
    select.index = PAGE_INDEX_MEAN; /* only: not off */
    select.first = tool.base.first;
    select.last = tool.base.last;
    int n = page_select(&select, h->score + (size_t)source * (size_t)h->n, h->len, h->n, h->n_open,
                        &h->work, h->idx);
    for (int i = 0; i < n; i++) s->read += h->len[h->idx[i]];
    for (int i = 0; i < h->n; i++) s->there += h->len[i];
    int last = select.last > h->n_open ? select.last : h->n_open;
    for (int g = 0; g < h->group; g++) {
        const double *mass = h->mass + (size_t)g * (size_t)h->n;
        double kept = 1, between = 0; /* 1: with the row's own token */
        for (int i = 0; i < h->n; i++) kept -= mass[i];
        for (int i = 0; i < n; i++) kept += mass[h->idx[i]];
        for (int i = select.first; i < h->n - last; i++) between += mass[i];
        add_row(s, fmin(fmax(kept, 0), 1), between >= 0.1);
    }
}

static void measure_head(struct Device *d, const struct AttnArgs *a, int kv_head)
{
    const struct ModelConfig *m = &d->model->cfg;
    int head = a->layer * m->n_kv_heads + kv_head;
    struct Head h = {.refs = a->past->refs + (size_t)head * a->past->stride,
                     .n = a->past->n_refs[head],
                     .group = m->n_heads / m->n_kv_heads};
    size_t n = (size_t)h.n;
    h.mass = room((size_t)h.group * n, sizeof *h.mass);
    h.score = room(SOURCES * n, sizeof *h.score);
    h.len = room(n, sizeof *h.len);
    h.idx = room(n, sizeof *h.idx);
    h.work = (struct PageWeights){room(n, sizeof(float)), room(n, sizeof(uint32_t))};
    for (int i = 0; i < h.n; i++) h.len[i] = (int)h.refs[i].len;
    while (h.n_open < h.n && h.len[h.n - 1 - h.n_open] < PAGE_TOKENS) h.n_open++;
    true_mass(d, a, kv_head, &h);
    index_scores(d, a, kv_head, &h, PAGE_INDEX_MEAN, h.score);
    index_scores(d, a, kv_head, &h, PAGE_INDEX_BOUND, h.score + n);
    true_scores(&h, h.score + TRUE_MASS * n);
#pragma omp critical
    for (int source = 0; source < SOURCES; source++)
        for (int rule = 0; rule < N_RULES; rule++) apply(&h, source, rule);
    void *parts[] = {h.mass, h.score, h.len, h.idx, h.work.log, h.work.share};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
}

static int tap_attention(struct Device *d, const struct AttnArgs *a)
{
    if (a->select) {
#pragma omp parallel for schedule(dynamic, 1)
        for (int h = 0; h < d->model->cfg.n_kv_heads; h++) measure_head(d, a, h);
    }
    return tool.real->attention(d, a);
}

/* ==== The run ==== */

static double worst_tenth(const struct Sum *s)
{
    long n = 0;
    for (int b = 0; b <= BINS; b++)
        if ((n += s->bin[b]) * 10 >= s->n_far) return (double)b / BINS;
    return 1;
}

static void report(void)
{
    printf("%-6s %-10s %7s %7s %7s %7s\n", "index", "rule", "tokens", "kept", "far", "tenth");
    for (int source = 0; source < SOURCES; source++)
        for (int rule = 0; rule < N_RULES; rule++) {
            const struct Sum *s = &tool.sum[source][rule];
            char name[32];
            if (RULES[rule].mass > 0)
                snprintf(name, sizeof name, "share %.2f", (double)RULES[rule].mass);
            else
                snprintf(name, sizeof name, "pages %d", RULES[rule].pages);
            printf("%-6s %-10s %6.2f%% %7.4f %7.4f %7.3f\n", SOURCE_NAMES[source], name,
                   100 * s->read / s->there, s->kept / (double)s->n_rows,
                   s->far / (double)(s->n_far ? s->n_far : 1), worst_tenth(s));
        }
    printf("%ld rows of query heads, %ld of them look between\n", tool.sum[0][0].n_rows,
           tool.sum[0][0].n_far);
}

static int assign(struct Settings *set, int n, char **pairs)
{
    TRY(settings_set(set, "backend", "cpu"));
    TRY(settings_set(set, "select", "mean"));
    TRY(settings_set(set, "select_pages", "1048576")); /* all: the answer stays as it is */
    TRY(settings_set(set, "max_tokens", "8"));
    for (int i = 0; i < n; i++) {
        char *value = strchr(pairs[i], '=');
        if (!value) return err_set(PC_ECONFIG, "'%s' is no NAME=VALUE", pairs[i]);
        *value++ = 0;
        TRY(settings_set(set, pairs[i], value));
    }
    tool.base = (struct PageSelect){.first = set->select_sinks, .last = set->select_recent};
    return settings_check(set);
}

static int answer(struct Engine *e, const char *context, size_t len, const char *question)
{
    struct Backend table = *e->be;
    struct Request req = {.context = context, .context_len = len, .question = question};
    struct Result r = {0};
    tool.real = e->be;
    table.attention = tap_attention;
    e->be = &table;
    int status = session_run(e, &req, &r);
    e->be = tool.real;
    if (status == PC_OK) printf("%d tokens; answer: %s\n", r.plan.n_context, r.text.data);
    result_free(&r);
    return status;
}

static int run(int argc, char **argv)
{
    struct Settings set;
    struct Engine *e = NULL;
    struct Str text = {0};
    settings_default(&set);
    TRY(assign(&set, argc - 4, argv + 4));
    TRY(engine_open(argv[1], &set, &e));
    int status = file_read(argv[2], &text);
    if (status == PC_OK) status = answer(e, text.data, text.len, argv[3]);
    if (status == PC_OK) report();
    str_free(&text);
    engine_close(e);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: page_tool MODEL FILE QUESTION [NAME=VALUE...]\n");
        return 2;
    }
    if (run(argc, argv) == PC_OK) return 0;
    fprintf(stderr, "page_tool: %s\n", err_text());
    return 1;
}

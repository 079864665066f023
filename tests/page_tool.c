/* page_tool.c - how much of an answer's attention lies on the pages that selection would read (headwise.md, H9).
 *
 *   page_tool MODEL FILE QUESTION ANSWER [NAME=VALUE...]
 *
 * The answer is made with every page read, on the CPU; NAME=VALUE are settings that keep every token. At each of its rows,
 * for each query head, the true attention of every page is found from its keys, and what each rule would have kept of it.
 * Rules: the number of pages between sinks and recent ones or the share to reach, by mean key, by range, and by the true
 * attention, which no index surpasses; and numbers whose choice stands for several rows (--select-every). Columns: share
 * of the tokens read; attention kept, mean over query heads and rows; the same of rows that have a tenth or more of it
 * between; then tokens and attention of the quarter of KV heads that look most at the pages where ANSWER first stands.
 */
#include "src/cpu.h"
#include "src/pcomp.h"
#include "src/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SOURCES = 3, TRUE_MASS = 2, N_RULES = 19, GROUP_MAX = 64 };
static const char *const SOURCE_NAMES[] = {"mean", "bound", "true"};
static const struct Rule {
    struct PageSelect select;
    int every; /* rows that a choice serves */
} RULES[N_RULES] = {
    {{.pages = 0}, 1},    {{.pages = 8}, 1},   {{.pages = 16}, 1},   {{.pages = 32}, 1},
    {{.pages = 64}, 1},   {{.pages = 96}, 1},  {{.pages = 128}, 1},  {{.pages = 192}, 1},
    {{.mass = 0.75f}, 1}, {{.mass = 0.9f}, 1}, {{.mass = 0.95f}, 1}, {{.mass = 0.98f}, 1},
    {{.mass = 0.99f}, 1}, {{.pages = 32}, 4},  {{.pages = 32}, 16},  {{.pages = 32}, 64},
    {{.pages = 64}, 4},   {{.pages = 64}, 16}, {{.pages = 64}, 64},
};

struct Sum {
    double read, there, kept,
        far; /* tokens, tokens, attention of all rows of query heads, of those that look between */
    long n_rows, n_far;
};

/* A choice that stands. */
struct Held {
    int n, seen, row; /* chosen of pages seen; rows so far */
    int *idx;
};

static struct {
    const struct Backend *real;
    struct PageSelect base;     /* sinks and recent pages */
    int n_heads, answer, after; /* KV heads; the answer's tokens in the cache */
    struct Sum *sum;            /* [n_heads, SOURCES, N_RULES] */
    struct Held *held;          /* likewise */
    double *
        needle; /* [n_heads] attention on the answer's pages, of the group's head that has the most */
} tool;

/* One KV head of one row. */
struct Head {
    const struct PageRef *refs;
    int table, n, group, n_open;
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
        d->kern->index_write(a->pool->data + h->refs[i].page * a->pool->page_bytes, d->format,
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
}

/* The choice of this row's turn, in h->idx: its own, or the one before with the pages that came since. */
static int choose(const struct Head *h, const struct PageSelect *select, const float *score,
                  int every, struct Held *held)
{
    bool own = held->row++ % every == 0;
    int n = own ? page_select(select, score, h->len, h->n, h->n_open, &h->work, h->idx) : held->n;
    if (!own) {
        memcpy(h->idx, held->idx, sizeof *h->idx * (size_t)n);
        for (int i = held->seen; i < h->n; i++) h->idx[n++] = i;
    }
    free(held->idx);
    held->idx = room((size_t)n, sizeof *held->idx);
    memcpy(held->idx, h->idx, sizeof *h->idx * (size_t)n);
    held->n = n;
    held->seen = h->n;
    return n;
}

static void apply(const struct Head *h, int source, int rule)
{
    int at = (h->table * SOURCES + source) * N_RULES + rule;
    struct Sum *s = &tool.sum[at];
    struct PageSelect select = RULES[rule].select;
    select.index = PAGE_INDEX_MEAN; /* only: not off */
    select.first = tool.base.first;
    select.last = tool.base.last;
    int n = choose(h, &select, h->score + (size_t)source * (size_t)h->n, RULES[rule].every,
                   &tool.held[at]);
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

static void find_needle(const struct Head *h)
{
    double most = 0;
    for (int g = 0; g < h->group; g++) {
        double sum = 0;
        for (int i = 0, token = 0; i < h->n; token += h->len[i++])
            if (token < tool.after && token + h->len[i] > tool.answer)
                sum += h->mass[(size_t)g * (size_t)h->n + (size_t)i];
        most = fmax(most, sum);
    }
    tool.needle[h->table] += most;
}

static void measure_head(struct Device *d, const struct AttnArgs *a, int kv_head)
{
    const struct ModelConfig *m = &d->model->cfg;
    int head = a->layer * m->n_kv_heads + kv_head;
    struct Head h = {.refs = a->past->refs + (size_t)head * a->past->stride,
                     .table = head,
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
    find_needle(&h);
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

static int by_needle(const void *a, const void *b)
{
    double x = tool.needle[*(const int *)a], y = tool.needle[*(const int *)b];
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Over the heads of a list. */
static struct Sum sum_of(const int *heads, int n, int at)
{
    struct Sum all = {0};
    for (int i = 0; i < n; i++) {
        const struct Sum *s = &tool.sum[heads[i] * SOURCES * N_RULES + at];
        all.read += s->read;
        all.there += s->there;
        all.kept += s->kept;
        all.far += s->far;
        all.n_rows += s->n_rows;
        all.n_far += s->n_far;
    }
    return all;
}

static void report(void)
{
    int *heads = room((size_t)tool.n_heads, sizeof *heads), part = tool.n_heads / 4;
    for (int h = 0; h < tool.n_heads; h++) heads[h] = h;
    qsort(heads, (size_t)tool.n_heads, sizeof *heads, by_needle);
    printf("%-6s %-12s %7s %7s %7s | %7s %7s\n", "index", "rule", "tokens", "kept", "far", "tokens",
           "needle");
    for (int at = 0; at < SOURCES * N_RULES; at++) {
        const struct Rule *rule = &RULES[at % N_RULES];
        struct Sum all = sum_of(heads, tool.n_heads, at), few = sum_of(heads, part, at);
        char name[32];
        if (rule->select.mass > 0)
            snprintf(name, sizeof name, "share %.2f", (double)rule->select.mass);
        else if (rule->every > 1)
            snprintf(name, sizeof name, "pages %d, %d", rule->select.pages, rule->every);
        else
            snprintf(name, sizeof name, "pages %d", rule->select.pages);
        printf("%-6s %-12s %6.2f%% %7.4f %7.4f | %6.2f%% %7.4f\n", SOURCE_NAMES[at / N_RULES], name,
               100 * all.read / all.there, all.kept / (double)all.n_rows,
               all.far / (double)(all.n_far ? all.n_far : 1), 100 * few.read / few.there,
               few.kept / (double)few.n_rows);
    }
    struct Sum all = sum_of(heads, tool.n_heads, 0);
    printf("%ld rows of query heads, %ld look between; %d of %d KV heads look most at the answer\n",
           all.n_rows, all.n_far, part, tool.n_heads);
    free(heads);
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

/* Where the answer stands in a cache that keeps every token in order. */
static void locate(const struct Session *s, const char *context, const char *answer)
{
    const char *at = *answer ? strstr(context, answer) : NULL;
    const size_t *offset = s->prompt.context_offset;
    if (!at) return;
    size_t begin = (size_t)(at - context), end = begin + strlen(answer);
    for (int i = 0; i < s->prompt.context.n; i++) {
        if (offset[i] <= begin) tool.answer = s->prompt.prefix.n + i;
        if (offset[i] < end) tool.after = s->prompt.prefix.n + i + 1;
    }
}

static int answer_over(struct Session *s, struct Engine *e, const struct Request *req, char **argv)
{
    const struct Settings *set = engine_settings(e);
    struct Prompt prompt = {0};
    struct Result r = {0};
    struct PromptText text = {.context = req->context,
                              .context_len = req->context_len,
                              .question = req->question,
                              .instruction = set->instruction,
                              .answer_prefix = set->answer_prefix,
                              .system = set->system,
                              .chat = &e->chat};
    int status = prompt_make(e->tok, &text, &prompt);
    if (status == PC_OK) status = session_open(s, e, req, &prompt, &r);
    if (status == PC_OK) locate(s, req->context, argv[4]);
    if (status == PC_OK) status = session_stages(s, true);
    if (status == PC_OK) printf("%d tokens; answer: %s\n", r.plan.n_context, r.text.data);
    prompt_free(&prompt);
    session_close(s);
    result_free(&r);
    return status;
}

static int measure(struct Engine *e, char **argv)
{
    const struct ModelConfig *m = &e->model.cfg;
    struct Backend table = *e->be;
    struct Str context = {0};
    struct Session s = {0};
    TRY(file_read(argv[2], &context));
    struct Request req = {.context = context.data,
                          .context_len = context.len,
                          .question = argv[3],
                          .stop_text = "\n"}; /* an answer of one token at least */
    tool.n_heads = m->n_layers * m->n_kv_heads;
    tool.sum = room((size_t)tool.n_heads * SOURCES * N_RULES, sizeof *tool.sum);
    tool.held = room((size_t)tool.n_heads * SOURCES * N_RULES, sizeof *tool.held);
    tool.needle = room((size_t)tool.n_heads, sizeof *tool.needle);
    tool.real = e->be;
    table.attention = tap_attention;
    e->be = &table;
    int status = answer_over(&s, e, &req, argv);
    e->be = tool.real;
    if (status == PC_OK) report();
    str_free(&context);
    for (int i = 0; i < tool.n_heads * SOURCES * N_RULES; i++) free(tool.held[i].idx);
    free(tool.held);
    free(tool.sum);
    free(tool.needle);
    return status;
}

int main(int argc, char **argv)
{
    struct Settings set;
    struct Engine *e = NULL;
    if (argc < 5) {
        fprintf(stderr, "usage: page_tool MODEL FILE QUESTION ANSWER [NAME=VALUE...]\n");
        return 2;
    }
    settings_default(&set);
    int status = assign(&set, argc - 5, argv + 5);
    if (status == PC_OK) status = engine_open(argv[1], &set, &e);
    if (status == PC_OK) status = measure(e, argv);
    engine_close(e);
    if (status < 0) fprintf(stderr, "page_tool: %s\n", err_text());
    return status < 0;
}

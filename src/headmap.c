/* headmap.c - the life of a head map, the choice of retrieval heads, its controls, and what they cost in bytes.
 *
 * Gates of DuoAttention saturate: of the published maps of GQA models 57 to 110 of 256 heads share the value 1.0,
 * and its loader lets noise decide among them. Here one fixed order does (headmap_order), and all choices
 * are cuts of that order.
 */
#include "headmap.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ==== Life ==== */

static int check_shape(const struct HeadShape *s)
{
    if (s->n_layers < 1 || s->n_layers > HEADMAP_LAYERS_MAX || s->n_kv_heads < 1 ||
        s->n_heads < s->n_kv_heads || s->n_heads % s->n_kv_heads != 0 ||
        s->n_heads > HEADMAP_HEADS_MAX / s->n_layers)
        return err_set(PC_ERANGE,
                       "a head map cannot have %d layers of %d query and %d KV heads: at most %d "
                       "layers and %d query heads in all, a multiple of the KV heads",
                       s->n_layers, s->n_heads, s->n_kv_heads, HEADMAP_LAYERS_MAX,
                       HEADMAP_HEADS_MAX);
    return PC_OK;
}

int headmap_open(const struct HeadShape *shape, bool q, struct HeadMap *out)
{
    *out = (struct HeadMap){0};
    TRY(check_shape(shape));
    struct HeadMap map = {.shape = *shape, .sink = HEADMAP_SINK, .recent = HEADMAP_RECENT};
    size_t n_layers = (size_t)shape->n_layers;
    map.scores = mem_alloc(n_layers * (size_t)shape->n_kv_heads, sizeof *map.scores);
    if (map.scores && q)
        map.q_scores = mem_alloc(n_layers * (size_t)shape->n_heads, sizeof *map.q_scores);
    if (!map.scores || (q && !map.q_scores)) {
        headmap_close(&map);
        return PC_ENOMEM;
    }
    *out = map;
    return PC_OK;
}

void headmap_close(struct HeadMap *map)
{
    mem_free(map->scores);
    mem_free(map->q_scores);
    str_free(&map->note);
    str_free(&map->settings);
    *map = (struct HeadMap){0};
}

int headmap_heads(const struct HeadMap *map)
{
    return map->shape.n_layers * map->shape.n_kv_heads;
}

/* The first of n scores that is not in 0..1, or n. */
static int bad_score(const float *scores, int n)
{
    int i = 0;
    while (i < n && scores[i] >= 0 && scores[i] <= 1) i++;
    return i;
}

static int check_scores(const float *scores, int n_layers, int n_heads, const char *kind)
{
    int n = n_layers * n_heads, bad = bad_score(scores, n);
    if (bad == n) return PC_OK;
    return err_set(PC_EINTERNAL, "head map: the score of layer %d, %s head %d is %g, not in 0..1",
                   bad / n_heads, kind, bad % n_heads, (double)scores[bad]);
}

int headmap_check(const struct HeadMap *map)
{
    const struct HeadShape *s = &map->shape;
    TRY(check_scores(map->scores, s->n_layers, s->n_kv_heads, "KV"));
    if (map->q_scores) TRY(check_scores(map->q_scores, s->n_layers, s->n_heads, "query"));
    if (map->sink < 0 || map->sink > HEADMAP_SINK_MAX || map->recent < 1 ||
        map->recent > HEADMAP_RECENT_MAX || map->threshold < 0 ||
        map->threshold > HEADMAP_THRESHOLD_MAX)
        return err_set(PC_EINTERNAL,
                       "head map: sink %d, recent %d, threshold %d: at most %d, 1 to %d, at most "
                       "%d",
                       map->sink, map->recent, map->threshold, HEADMAP_SINK_MAX, HEADMAP_RECENT_MAX,
                       HEADMAP_THRESHOLD_MAX);
    if (!(map->ratio >= 0 && map->ratio <= 1))
        return err_set(PC_EINTERNAL, "head map: the chosen ratio is %g, not in 0..1",
                       (double)map->ratio);
    const char *end = memchr(map->method, '\0', sizeof map->method);
    if (!end || utf8_invalid_at(map->method, strlen(map->method)) < strlen(map->method) ||
        utf8_invalid_at(map->note.data, map->note.len) < map->note.len ||
        (map->note.len && memchr(map->note.data, '\0', map->note.len)))
        return err_set(PC_EINTERNAL, "head map: the method's name or the note is no UTF-8 text");
    return PC_OK;
}

/* ==== The choice ==== */

struct Scored {
    float score;
    int head; /* l * n_kv_heads + h: the lower layer first, then the lower head */
};

static int by_need(const void *a, const void *b)
{
    const struct Scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->head - y->head;
}

int headmap_order(const struct HeadMap *map, int *order)
{
    int n = headmap_heads(map);
    TRY(check_scores(map->scores, map->shape.n_layers, map->shape.n_kv_heads, "KV"));
    struct Scored *heads = mem_alloc((size_t)n, sizeof *heads);
    if (!heads) return PC_ENOMEM;
    for (int i = 0; i < n; i++) heads[i] = (struct Scored){map->scores[i], i};
    qsort(heads, (size_t)n, sizeof *heads, by_need);
    for (int i = 0; i < n; i++) order[i] = heads[i].head;
    mem_free(heads);
    return PC_OK;
}

/* The order in memory of its own: mem_free. NULL with the text set. */
static int *make_order(const struct HeadMap *map, int *status)
{
    int *order = mem_alloc((size_t)headmap_heads(map), sizeof *order);
    *status = order ? headmap_order(map, order) : PC_ENOMEM;
    if (*status == PC_OK) return order;
    mem_free(order);
    return NULL;
}

/* How many heads a ratio keeps, or why it cannot be. */
static int count_kept(const struct HeadMap *map, double ratio, int min_per_layer)
{
    int n = headmap_heads(map), n_layers = map->shape.n_layers;
    if (isnan(ratio)) return err_set(PC_ECONFIG, "the share of heads to keep is not a number");
    if (ratio <= 0) return 0;
    if (min_per_layer > map->shape.n_kv_heads)
        return err_set(PC_ECONFIG,
                       "%d heads cannot be kept in each layer: the model has %d KV heads a layer; "
                       "lower the least number",
                       min_per_layer, map->shape.n_kv_heads);
    int k = ratio >= 1 ? n : (int)lround(ratio * n);
    if (min_per_layer > 0 && k < min_per_layer * n_layers)
        return err_set(PC_ECONFIG,
                       "a share of %g keeps %d of %d heads, too few for %d in each of %d layers; "
                       "give a share of %.3g or more, or a lower least number",
                       ratio, k, n, min_per_layer, n_layers,
                       ceil(1000.0 * min_per_layer / map->shape.n_kv_heads) / 1000);
    return k;
}

/* Keeps the best `least` heads of each layer, then the best of all others, until k are kept. n_kept: [n_layers],
 * zeros. */
static void keep_best(const struct HeadMap *map, const int *order, int k, int least, int *n_kept,
                      uint8_t *keep)
{
    int n = headmap_heads(map), kept = 0;
    memset(keep, 0, (size_t)n);
    for (int i = 0; i < n && kept < k; i++) {
        int *of_layer = &n_kept[order[i] / map->shape.n_kv_heads];
        if (*of_layer >= least) continue;
        keep[order[i]] = 1;
        ++*of_layer;
        kept++;
    }
    for (int i = 0; i < n && kept < k; i++) {
        kept += !keep[order[i]];
        keep[order[i]] = 1;
    }
}

int headmap_keep(const struct HeadMap *map, double ratio, int min_per_layer, uint8_t *keep)
{
    int status, k = count_kept(map, ratio, min_per_layer);
    if (k < 0) return k;
    int *order = make_order(map, &status);
    if (!order) return status;
    int *n_kept = mem_alloc((size_t)map->shape.n_layers, sizeof *n_kept);
    if (n_kept) keep_best(map, order, k, min_per_layer, n_kept, keep);
    status = n_kept ? k : PC_ENOMEM;
    mem_free(n_kept);
    mem_free(order);
    return status;
}

int headmap_keep_above(const struct HeadMap *map, float score, uint8_t *keep)
{
    int n = headmap_heads(map), kept = 0;
    for (int i = 0; i < n; i++) {
        keep[i] = map->scores[i] >= score;
        kept += keep[i];
    }
    return kept;
}

bool headmap_is_flags(const struct HeadMap *map)
{
    int n = headmap_heads(map), ones = 0;
    for (int i = 0; i < n; i++) {
        if (map->scores[i] != 0 && map->scores[i] != 1) return false;
        ones += map->scores[i] == 1;
    }
    return ones > 0 && ones < n;
}

void headmap_q_flags(const struct HeadMap *map, const uint8_t *keep, uint8_t *flags)
{
    int n = headmap_heads(map), group = map->shape.n_heads / map->shape.n_kv_heads;
    float least = 1;
    for (int head = 0; head < n; head++)
        if (keep[head] && map->scores[head] < least) least = map->scores[head];
    for (int head = 0; head < n; head++) {
        const float *q = map->q_scores ? map->q_scores + (size_t)head * group : NULL;
        bool any = false;
        for (int i = 0; q && i < group; i++) any = any || (q[i] > 0 && q[i] >= least);
        for (int i = 0; i < group; i++)
            flags[(size_t)head * group + i] = keep[head] && (!any || (q[i] > 0 && q[i] >= least));
    }
}

void headmap_from_q(struct HeadMap *map)
{
    int n = headmap_heads(map), group = map->shape.n_heads / map->shape.n_kv_heads;
    for (int head = 0; head < n; head++) {
        const float *q = map->q_scores + (size_t)head * group;
        float best = q[0];
        for (int i = 1; i < group; i++)
            if (q[i] > best) best = q[i];
        map->scores[head] = best;
    }
}

/* ==== Controls ==== */

/* Head number i of the order gets (n - 1 - i) / (n - 1), or, inverted, i / (n - 1). Steps of 2^-20 and more
 * stay apart in f32. */
static int set_ranks(struct HeadMap *map, bool inverted)
{
    int n = headmap_heads(map), status;
    int *order = make_order(map, &status);
    if (!order) return status;
    for (int i = 0; i < n; i++) {
        int rank = inverted ? i : n - 1 - i;
        map->scores[order[i]] = n > 1 ? (float)((double)rank / (n - 1)) : 1;
    }
    mem_free(order);
    return PC_OK;
}

int headmap_rank(struct HeadMap *map)
{
    return set_ranks(map, false);
}

int headmap_invert(struct HeadMap *map)
{
    TRY(set_ranks(map, true));
    mem_free(map->q_scores);
    map->q_scores = NULL;
    return PC_OK;
}

int headmap_random(const struct HeadShape *shape, uint64_t seed, struct HeadMap *out)
{
    TRY(headmap_open(shape, false, out));
    int n = headmap_heads(out);
    for (int i = 0; i < n; i++) {
        uint64_t bits = hash64(&i, sizeof i, seed);
        out->scores[i] = (float)(bits >> 40) * 0x1p-24f;
    }
    out->seed = seed;
    memcpy(out->method, "random", sizeof "random");
    return PC_OK;
}

/* ==== Memory ==== */

struct HeadEnds headmap_ends(int sinks, int recent, int n_prefix, int n)
{
    int first = min_int(max_int(sinks - n_prefix, 0), n);
    return (struct HeadEnds){first, min_int(n - first, recent - 1)};
}

static size_t pages_of(size_t tokens, size_t page)
{
    return tokens / page + (tokens % page != 0);
}

/* *sum += a * b; false when that is too much. */
static bool add_product(size_t *sum, size_t a, size_t b)
{
    size_t product;
    return size_mul(a, b, &product) && size_add(*sum, product, sum);
}

/* Bytes of n heads with so many pages each. */
static bool page_bytes(size_t n, size_t pages, size_t bytes, size_t *out)
{
    size_t all = 0;
    *out = 0;
    return add_product(&all, n, pages) && add_product(out, all, bytes);
}

static bool sum_memory(const struct HeadMemory *m, struct HeadBytes *out)
{
    size_t tokens = m->prefix, page = m->page_tokens, bytes, landmark, per_page = 0, ring = 1;
    bool fits = add_product(&tokens, m->chunks, m->cap) && size_add(tokens, m->tail, &tokens) &&
                size_add(tokens, m->answer, &tokens) && size_mul(page, m->token_bytes, &bytes) &&
                size_add(ring, pages_of(m->sink, page), &ring) &&
                size_add(ring, pages_of(m->recent, page), &ring) &&
                size_mul(m->head_dim, 2, &landmark);
    if (!fits) return false;
    size_t pages = pages_of(tokens, page);
    if (m->landmarks) {
        per_page = 16; /* its entry in the index, beside the vectors */
        if (!add_product(&per_page, m->landmarks, landmark)) return false;
    }
    return page_bytes(m->n_full, pages, bytes, &out->full) &&
           page_bytes(m->n_streaming, ring, bytes, &out->streaming) &&
           page_bytes(m->n_full, pages, per_page, &out->index) &&
           size_add(out->full, out->streaming, &out->total) &&
           size_add(out->total, out->index, &out->total);
}

int headmap_memory(const struct HeadMemory *m, struct HeadBytes *out)
{
    *out = (struct HeadBytes){0};
    if (m->page_tokens == 0)
        return err_set(PC_ECONFIG, "the pages of the cache hold no token; give 1 token or more");
    if (sum_memory(m, out)) return PC_OK;
    return err_set(
        PC_ENOMEM,
        "the caches of %zu full and %zu streaming heads are more bytes than this machine "
        "can address; keep fewer tokens or heads",
        m->n_full, m->n_streaming);
}

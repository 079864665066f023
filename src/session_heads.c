/* session_heads.c - head classes in a run (headwise.md D.1): which KV heads stream, what that hides from whom, and what
 * they keep.
 *
 * A streaming head keeps the first tokens of the sequence (sinks) and the last ones before the row at hand. Its keys are
 * always the beginning and the end of what one sequence sees: the prefix, the text (in chunk-parallel runs: the last of
 * the chunks that are kept), the question, the answer. So counting keys in its own table leaves the distances that its
 * window needs as they are, and masks make it exact where the pages of its ring hold more.
 *
 * The end of a chunk that is not kept would not do: it says what the other heads do not know. With that, SmolLM2 went on
 * with the book instead of answering (4 needles of 60; tests/quality/RESULTS.md).
 */
#include "session.h"

#include <string.h>

/* ==== The choice ==== */

static int choose(const struct Settings *set, const struct HeadMap *map, uint8_t *keep)
{
    double ratio = set->heads_ratio;
    if (ratio == FROM_MAP && map->ratio > 0) ratio = map->ratio;
    if (ratio != FROM_MAP) return headmap_keep(map, ratio, 0, keep);
    return headmap_is_flags(map) ? headmap_keep_above(map, 0.5f, keep)
                                 : headmap_keep(map, 0.5, 0, keep);
}

/* Windows of query heads: `flags` marks those that see everything. */
static void fill_windows(const struct Session *s, const uint8_t *flags, int *window)
{
    int n = s->e->model.cfg.n_layers * s->e->model.cfg.n_heads;
    for (int i = 0; i < n; i++) window[i] = flags[i] ? 0 : s->heads.recent;
}

static void make_windows(struct Session *s, const uint8_t *keep, uint8_t *flags)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int group = m->n_heads / m->n_kv_heads;
    bool by_query = s->set.heads_by == HEADS_BY_QUERY ||
                    (s->set.heads_by == HEADS_BY_AUTO && s->set.method == METHOD_HEADWISE);
    for (int i = 0; i < m->n_layers * m->n_heads; i++) flags[i] = keep[i / group];
    fill_windows(s, flags, s->heads.answer_window);
    if (by_query) headmap_q_flags(&s->e->heads, keep, flags);
    fill_windows(s, flags, s->heads.read_window);
}

/* Returns how many heads keep everything. */
static int make_classes(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    struct HeadRun *h = &s->heads;
    size_t heads = (size_t)m->n_layers * m->n_kv_heads, queries = (size_t)m->n_layers * m->n_heads;
    h->streams = mem_alloc(heads, 1);
    h->read_window = mem_alloc(2 * queries, sizeof(int));
    uint8_t *flags = mem_alloc(queries, 1);
    int status = h->streams && h->read_window && flags ? PC_OK : PC_ENOMEM;
    if (status == PC_OK) status = choose(&s->set, &s->e->heads, h->streams);
    if (status >= 0) {
        h->answer_window = h->read_window + queries;
        make_windows(s, h->streams, flags);
        for (size_t i = 0; i < heads; i++) h->streams[i] = !h->streams[i];
    }
    mem_free(flags);
    return status;
}

int heads_plan(struct Session *s, int64_t n_all)
{
    const struct HeadMap *map = &s->e->heads;
    struct HeadRun *h = &s->heads;
    int n = s->e->model.cfg.n_layers * s->e->model.cfg.n_kv_heads;
    s->plan.heads_full = n;
    if (!map->scores || n_all < map->threshold) return PC_OK;
    h->sinks = s->set.head_sinks == FROM_MAP ? map->sink : s->set.head_sinks;
    h->recent = s->set.head_recent == AUTO ? map->recent : s->set.head_recent;
    int n_full = make_classes(s);
    if (n_full < 0) return n_full;
    h->read = (struct HeadMasks){h->read_window, h->sinks};
    h->answer = (struct HeadMasks){h->answer_window, h->sinks};
    s->plan.heads_full = n_full;
    s->plan.heads_streaming = n - n_full;
    s->plan.head_sinks = h->sinks;
    s->plan.head_recent = h->recent;
    return PC_OK;
}

void heads_close(struct Session *s)
{
    mem_free(s->heads.streams);
    mem_free(s->heads.read_window);
}

/* ==== Room ==== */

int heads_ring(const struct Session *s)
{
    if (s->plan.heads_streaming == 0) return 0;
    return kv_pages(s->heads.sinks) + kv_pages(s->heads.recent + PAGE_TOKENS - 1) + 1;
}

int heads_chunk_pages(const struct Session *s)
{
    struct HeadEnds keep =
        headmap_ends(s->heads.sinks, s->heads.recent, s->prompt.prefix.n, s->plan.chunk_tokens);
    return s->plan.heads_streaming ? kv_pages(keep.first + keep.last) : 0;
}

/* Where all chunks are kept, the last one is known beforehand. */
static bool keeps_all(const struct Session *s)
{
    return s->plan.keep >= s->plan.n_read && s->plan.rounds == 1;
}

bool heads_may_end(const struct Session *s, int chunk)
{
    return !keeps_all(s) || s->place[chunk] == s->n_todo - 1;
}

int heads_ends(const struct Session *s)
{
    return keeps_all(s) ? 1 : s->n_slots;
}

int heads_share(const struct Session *s, int cap)
{
    int full = s->plan.heads_full, n = full + s->plan.heads_streaming;
    if (s->set.freed != FREED_SHARE || full == 0) return cap;
    int64_t more = (int64_t)cap * n / full;
    return more < INT32_MAX ? (int)more : INT32_MAX;
}

int heads_formula(const struct Session *s, size_t page_tokens, size_t *bytes)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    const struct PlanInfo *p = &s->plan;
    bool plain = s->set.method != METHOD_PARALLELCOMP;
    struct HeadMemory memory = {
        .n_full = (size_t)p->heads_full,
        .n_streaming = (size_t)p->heads_streaming,
        .prefix = (size_t)p->n_prefix,
        .chunks = plain ? 1 : (size_t)p->keep,
        .cap = (size_t)s->cap,
        .tail = (size_t)p->n_question,
        .answer = (size_t)p->max_tokens,
        .sink = (size_t)s->heads.sinks,
        .recent = (size_t)s->heads.recent,
        .page_tokens = page_tokens,
        .token_bytes = s->e->be->page_bytes(s->e->dev) / PAGE_TOKENS,
        .head_dim = (size_t)m->head_dim,
    };
    struct HeadBytes out;
    TRY(headmap_memory(&memory, &out));
    *bytes = out.total;
    return PC_OK;
}

/* ==== What streaming heads keep ==== */

int heads_keep_chunk(struct Session *s, struct HeadTable *t, int layer, int kv_head,
                     const struct KvRows *chunk)
{
    struct HeadEnds keep =
        headmap_ends(s->heads.sinks, s->heads.recent, s->prompt.prefix.n, chunk->n);
    struct KvRows first = *chunk, last = *chunk;
    first.n = keep.first;
    last.row0 += chunk->n - keep.last;
    last.n = keep.last;
    TRY(kv_append(&s->kv, t, layer, kv_head, &first, &s->writes));
    return kv_append(&s->kv, t, layer, kv_head, &last, &s->writes);
}

void heads_forget_chunk(struct Session *s, struct HeadTable *t)
{
    for (int h = 0; s->heads.streams && h < t->n_heads; h++)
        if (s->heads.streams[h]) kv_clear_head(&s->kv, t, h);
}

bool heads_stream(const struct Session *s, int layer, int kv_head)
{
    return s->heads.streams && s->heads.streams[layer * s->e->model.cfg.n_kv_heads + kv_head];
}

int heads_append(struct Session *s, struct HeadTable *t, int layer, int kv_head,
                 const struct KvRows *rows)
{
    int head = layer * s->e->model.cfg.n_kv_heads + kv_head, n = rows->n,
        last = s->heads.recent - 1; /* what the next row's window holds besides itself */
    int sinks = s->heads.sinks - t->n_tokens[head];
    sinks = sinks < 0 ? 0 : sinks < n ? sinks : n;
    int recent = n - sinks < last ? n - sinks : last;
    kv_slide(&s->kv, t, head, s->heads.sinks, last - recent);
    struct KvRows part = *rows;
    part.n = sinks;
    TRY(kv_append(&s->kv, t, layer, kv_head, &part, &s->writes));
    part.row0 += n - recent;
    part.n = recent;
    return kv_append(&s->kv, t, layer, kv_head, &part, &s->writes);
}

int heads_append_all(struct Session *s, struct HeadTable *t, int layer, const struct KvRows *rows)
{
    for (int h = 0; h < s->e->model.cfg.n_kv_heads; h++)
        TRY(heads_stream(s, layer, h) ? heads_append(s, t, layer, h, rows)
                                      : kv_append(&s->kv, t, layer, h, rows, &s->writes));
    return PC_OK;
}

void heads_slide(struct Session *s, struct HeadTable *t)
{
    for (int h = 0; s->heads.streams && h < t->n_heads; h++)
        if (s->heads.streams[h]) kv_slide(&s->kv, t, h, s->heads.sinks, s->heads.recent - 1);
}

int heads_kept(const struct Session *s, int head, int n)
{
    int prefix = s->prompt.prefix.n < s->heads.sinks ? s->prompt.prefix.n : s->heads.sinks,
        kept = s->merged.n_tokens[head] - prefix;
    return kept < n ? kept : n;
}

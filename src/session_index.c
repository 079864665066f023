/* session_index.c - reading a text's chunks into a store, without a question: session_store.c asks it then.
 *
 * A store has all tokens of a chunk, or no more of each KV head than store_cap says. Which ones these are has to be told before
 * anybody asks: behind such a chunk stands, in the chat's own frame, a request that any text can answer, and its rows vote for
 * tokens as a question's do (eviction/kv_evict.h). They leave nothing else: by causality what is kept is what it would be
 * without them. Heads that stream keep their ends.
 */
#include "eviction/kv_evict.h"
#include "session.h"

#include <string.h>

/* What stands behind a chunk, and the width of the max-pool over its votes. Tried in tests/quality/RESULTS.md, "Stores that keep
 * a part": without a question whole spans have to stay, or numbers lose their last digits. */
#define VOTE "Repeat the text above word for word."
enum { VOTE_POOL = 31 };

/* ==== Prompt and shapes ==== */

int index_prompt(struct Engine *e, const struct Request *req, struct Prompt *out)
{
    const struct Settings *set = &e->settings;
    struct PromptFrame frame = {.before = req->frame ? req->frame->before : "",
                                .after = "\n\n" VOTE};
    struct PromptText text = {.context = req->context,
                              .context_len = req->context_len,
                              .question = VOTE,
                              .instruction = set->instruction,
                              .system = set->system,
                              .chat = &e->chat,
                              .frame = req->frame ? &frame : NULL};
    TRY(prompt_make(e->tok, &text, out));
    if (out->context.n == 0)
        return err_set(PC_ERANGE,
                       "the context is empty: give a text with -f FILE or on standard input");
    return PC_OK;
}

/* Rows behind a chunk that vote; 0 where none has to. */
static int votes(const struct Session *s)
{
    return stage_capped(s, s->plan.chunk_tokens) ? s->prompt.tail.n : 0;
}

void index_shapes(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    int rows = p->chunk_tokens + votes(s), keys = p->n_prefix + rows;
    s->batch_rows = max_int(p->wave * rows, p->n_prefix);
    s->wave_shape = s->answer_shape = (struct BatchShape){.rows = s->batch_rows,
                                                          .seqs = p->wave,
                                                          .keys = keys,
                                                          .mass_keys = votes(s) ? keys : 0,
                                                          .head_rows = 1};
    s->n_slots = 0;
    s->mass_stride = s->wave_shape.mass_keys;
    s->n_pages = (size_t)(p->heads_full + p->heads_streaming) * kv_pages(p->n_prefix);
}

size_t index_marks(const struct Session *s)
{
    struct StoreInfo layout = stage_layout(s);
    return (size_t)s->plan.wave * store_marks_bytes(&layout, s->plan.chunk_tokens);
}

/* ==== A wave ==== */

static int index_begin(struct Session *s, struct Wave *w)
{
    for (int i = 0; i < w->n; i++) TRY(stage_lay(s, i, i, wave_len(s, w, i), NULL));
    return wave_begin(s, w, votes(s));
}

/* ==== What heads keep of a chunk ==== */

static int choose_on_host(struct Session *s, const struct Wave *w, const struct AttnArgs *args)
{
    struct KvEvict rule = {s->set.store_cap, VOTE_POOL};
    TRY(s->tf.be->attn_mass(s->tf.dev, args, votes(s), s->mass, s->mass_stride));
    for (int i = 0; i < w->n; i++)
        for (int h = 0; h < s->e->model.cfg.n_kv_heads; h++) {
            size_t at = mass_at(s, i, h);
            kv_evict(&rule, s->mass + at + s->plan.n_prefix, wave_len(s, w, i), s->work,
                     s->keep + at);
        }
    return s->tf.be->upload(s->tf.dev, s->keep_dev, s->keep, sizeof *s->keep * mass_at(s, w->n, 0));
}

static int choose_on_device(struct Session *s, const struct Wave *w, const struct AttnArgs *args)
{
    int len[WAVE_MAX];
    for (int i = 0; i < w->n; i++) len[i] = wave_len(s, w, i);
    struct KeepArgs keep = {.obs_rows = votes(s),
                            .pool = VOTE_POOL,
                            .cap = s->set.store_cap,
                            .first = s->plan.n_prefix,
                            .n = len,
                            .keep = s->keep_dev,
                            .stride = s->mass_stride,
                            .step = mass_at(s, 1, 0)};
    TRY(s->tf.be->keep(s->tf.dev, args, &keep));
    return s->tf.be->download(s->tf.dev, s->keep, s->keep_dev,
                              sizeof *s->keep * mass_at(s, w->n, 0));
}

/* Marks of chunk i of a wave, all heads. */
static uint8_t *marks_at(const struct Session *s, int i)
{
    struct StoreInfo layout = stage_layout(s);
    return s->chosen + (size_t)i * store_marks_bytes(&layout, s->plan.chunk_tokens);
}

/* The context tokens that every head of the wave keeps in this layer, to be found on the device and in their marks. */
static int choose(struct Session *s, const struct Wave *w, int layer, const struct AttnArgs *args)
{
    struct StoreInfo layout = stage_layout(s);
    int heads = s->e->model.cfg.n_kv_heads;
    TRY(s->tf.be->keep ? choose_on_device(s, w, args) : choose_on_host(s, w, args));
    for (int i = 0; i < w->n; i++)
        for (int h = 0; h < heads; h++) {
            size_t bytes = store_mark_bytes(&layout, wave_len(s, w, i));
            const int *keep = s->keep + mass_at(s, i, h);
            uint8_t *marks = marks_at(s, i) + bytes * (size_t)(layer * heads + h);
            if (bytes == 0 || heads_stream(s, layer, h)) continue;
            for (int j = 0; j < layout.cap; j++) store_mark(marks, keep[j]);
        }
    return PC_OK;
}

/* The layer's rows of all chunks to their places. */
static int index_layer(struct Session *s, const struct Wave *w, int layer)
{
    struct StoreInfo layout = stage_layout(s);
    int heads = s->e->model.cfg.n_kv_heads;
    for (int i = 0; i < w->n; i++)
        for (int h = 0; h < heads; h++) {
            int n = wave_len(s, w, i), row = s->seq_begin[i];
            struct HeadEnds keep = store_tokens(&layout, layer * heads + h, n);
            struct KvRows first = {s->tf.k, s->tf.v, row, NULL, keep.first},
                          last = {s->tf.k, s->tf.v, row + n - keep.last, NULL, keep.last};
            if (votes(s) && !heads_stream(s, layer, h))
                first.index = s->keep_dev + mass_at(s, i, h);
            TRY(kv_put(&s->kv, &s->staged[i], layer, h, 0, &first, &s->writes));
            TRY(kv_put(&s->kv, &s->staged[i], layer, h, keep.first, &last, &s->writes));
        }
    return kv_flush(&s->kv, &s->writes);
}

/* ==== To the store ==== */

/* The last context row of each chunk to the front of x and out. */
static int compact_last(struct Session *s, const struct Wave *w)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t out_bytes = (size_t)m->n_heads * m->head_dim * s->tf.be->act_bytes;
    for (int i = 0; i < w->n; i++) s->rows[i] = s->seq_begin[i] + wave_len(s, w, i) - 1;
    TRY(s->tf.be->compact(s->tf.dev, s->tf.x, sizeof(float) * (size_t)m->dim, s->rows, w->n));
    return s->tf.be->compact(s->tf.dev, s->tf.out, out_bytes, s->rows, w->n);
}

static int store_wave(struct Session *s, const struct Wave *w, struct StoreWriter *out)
{
    struct StoreInfo layout = stage_layout(s);
    size_t dim = (size_t)s->e->model.cfg.dim;
    for (int i = 0; i < w->n; i++) {
        int n = wave_len(s, w, i);
        struct StoreRoom room = store_section(out);
        TRY(s->tf.be->download(s->tf.dev, room.last, s->tf.x + dim * (size_t)i,
                               dim * sizeof *room.last));
        TRY(s->tf.be->download(s->tf.dev, room.pages, stage_at(s, i),
                               store_pages(&layout, n) * s->kv.pool.page_bytes));
        if (votes(s)) memcpy(room.marks, marks_at(s, i), store_marks_bytes(&layout, n));
        TRY(store_write(out));
    }
    return PC_OK;
}

static int index_wave(struct Session *s, int first, int n, struct StoreWriter *out)
{
    struct Wave w = {.chunk = s->todo + first, .n = n};
    int n_layers = s->e->model.cfg.n_layers;
    int64_t before = wave_tokens_before(s, first),
            tokens = wave_tokens_before(s, first + n) - before;
    if (votes(s)) memset(s->chosen, 0, index_marks(s));
    TRY(index_begin(s, &w));
    for (int l = 0; l < n_layers; l++) {
        struct AttnArgs args;
        bool last = l == n_layers - 1;
        TRY(session_stop(s));
        TRY(tf_attend(&s->tf, &w.batch, l, last ? votes(s) + 1 : 0, &args));
        if (votes(s)) TRY(choose(s, &w, l, &args));
        TRY(index_layer(s, &w, l));
        if (last) TRY(compact_last(s, &w));
        TRY(tf_ffn(&s->tf, l, last ? n : s->seq_begin[n]));
        session_progress(s, STAGE_PREFILL, first, before + tokens * (l + 1) / n_layers);
    }
    TRY(store_wave(s, &w, out));
    session_progress(s, STAGE_PREFILL, first + n, before + tokens);
    return PC_OK;
}

int index_stages(struct Session *s, struct StoreWriter *out)
{
    TRY(prefill_prefix(s));
    for (int c = out->n_done, n; c < s->plan.n_chunks; c += n) {
        n = s->plan.n_chunks - c < s->plan.wave ? s->plan.n_chunks - c : s->plan.wave;
        TRY(index_wave(s, c, n, out));
    }
    return store_finish(out);
}

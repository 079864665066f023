/* prefill.c - stage 1 of the method: the shared prefix once, then chunks in waves.
 *
 * A wave is one batch: each chunk's context followed by the question, positions restarting after the prefix
 * (method.md 1.4). As soon as a layer's attention is done, the context tokens worth keeping go to pages
 * (KV eviction, section 3), so a wave never holds more than one layer's K and V in full. After the
 * last layer the question's mean NLL ranks the chunks, and losers give their pages back at once (section 2).
 */
#include "calib/attn_calib.h"
#include "eviction/kv_evict.h"
#include "session.h"

#include <math.h>
#include <string.h>

/* ==== The shared prefix ==== */

void batch_rows_fill(struct Session *s, const int *ids, int n, int at, int pos0)
{
    for (int i = 0; i < n; i++) {
        s->tokens[at + i] = ids ? ids[i] : 0;
        s->pos[at + i] = pos0 + i;
    }
}

/* Runs ids as one sequence after `past` and appends its K and V there. */
static int prefill_segment(struct Session *s, const int *ids, int n, int pos0,
                           struct HeadTable *past)
{
    int n_layers = s->e->model.cfg.n_layers;
    s->seq_begin[0] = 0;
    s->seq_begin[1] = n;
    batch_rows_fill(s, ids, n, 0, pos0);
    struct Batch b = {.tokens = s->tokens,
                      .pos = s->pos,
                      .seq_begin = s->seq_begin,
                      .n_seqs = 1,
                      .pool = &s->kv.pool,
                      .past = past,
                      .masks = heads_reading(s)};
    TRY(far_batch(s, &b));
    TRY(tf_begin(&s->tf, &b));
    for (int l = 0; l < n_layers; l++) {
        struct AttnArgs args;
        bool last =
            l == n_layers - 1; /* nothing reads this sequence's rows after its last K and V */
        TRY(session_stop(s));
        TRY(tf_attend(&s->tf, &b, l, last ? 1 : 0, &args));
        struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, n};
        TRY(heads_append_all(s, past, l, &rows));
        TRY(kv_flush(&s->kv, &s->writes));
        if (!last) TRY(tf_ffn(&s->tf, l, n));
    }
    far_forget(s, past);
    return PC_OK;
}

int prefill_prefix(struct Session *s)
{
    if (s->prompt.prefix.n == 0) return PC_OK;
    return prefill_segment(s, s->prompt.prefix.ids, s->prompt.prefix.n, 0, &s->prefix);
}

/* One sequence: the context in segments, each seeing all before it that the method lets it see. */
int prefill_plain(struct Session *s)
{
    int n = s->prompt.context.n, p = s->prompt.prefix.n;
    TRY(kv_move(&s->merged, &s->prefix));
    s->merged.below = s->tiered;
    for (int at = 0; at < n; at += s->batch_rows) {
        int rows = n - at < s->batch_rows ? n - at : s->batch_rows;
        TRY(prefill_segment(s, s->prompt.context.ids + at, rows, p + at, &s->merged));
        session_progress(s, STAGE_PREFILL, at + rows == n ? 1 : 0, at + rows);
    }
    s->merged.below = false;
    if (s->plan.n_chunks) s->out->chunks[0].kept = true;
    for (int h = 0; h < s->merged.n_heads; h++) {
        int before = s->plan.sinks && s->plan.sinks < p ? s->plan.sinks : p,
            kept = s->merged.n_tokens[h] - before;
        bool streams = s->heads.streams && s->heads.streams[h];
        s->out->kv_in[h] = n;
        s->out->kv_kept[h] = streams ? heads_kept(s, h, n) : kept < n ? kept : n;
    }
    return PC_OK;
}

/* ==== Waves ==== */

static struct Slot *free_slot(struct Session *s)
{
    for (int i = 0; i < s->n_slots; i++)
        if (s->slots[i].chunk < 0) return &s->slots[i];
    return NULL;
}

int wave_slots(struct Session *s, struct Wave *w)
{
    for (int i = 0; i < w->n; i++) {
        w->slot[i] = free_slot(s);
        if (!w->slot[i]) return err_set(PC_EINTERNAL, "no free slot for chunk %d", w->chunk[i]);
        w->slot[i]->chunk = w->chunk[i];
    }
    return PC_OK;
}

int wave_len(const struct Session *s, const struct Wave *w, int i)
{
    const struct Chunk *c = &s->chunks[w->chunk[i]];
    return c->end - c->begin;
}

int wave_begin(struct Session *s, struct Wave *w, int q)
{
    int row = 0, p = s->prompt.prefix.n;
    for (int i = 0; i < w->n; i++) {
        const struct Chunk *c = &s->chunks[w->chunk[i]];
        int n = wave_len(s, w, i);
        const int *ids = NULL;
        if (w->from == 0) TRY(chunk_ids(s, c, &ids));
        s->seq_begin[i] = row;
        batch_rows_fill(s, ids, n, row, p);
        batch_rows_fill(s, s->prompt.tail.ids, q, row + n, p + n);
        row += n + q;
    }
    s->seq_begin[w->n] = row;
    ahead_order(s, w->chunk + w->n, w->n_next);
    w->batch = (struct Batch){.tokens = s->tokens,
                              .pos = s->pos,
                              .seq_begin = s->seq_begin,
                              .n_seqs = w->n,
                              .pool = &s->kv.pool,
                              .past = &s->prefix,
                              .tail_rows = q,
                              .masks = heads_reading(s)};
    return tf_begin(&s->tf, &w->batch);
}

/* ==== KV eviction of one layer ==== */

size_t mass_at(const struct Session *s, int seq, int kv_head)
{
    return ((size_t)seq * s->e->model.cfg.n_kv_heads + kv_head) * s->mass_stride;
}

static bool holds(const uint8_t *marks, int token)
{
    return !marks || store_marked(marks, token);
}

/* Adds to s->drop what one stage-1 rule removes; s->mass holds the sums over the rule's rows. */
static void apply_rule(struct Session *s, const struct Wave *w, int layer,
                       const struct CalibRule *r)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int q = s->prompt.tail.n, rows = r->rows == 0 || r->rows > q ? q : r->rows;
    int group = m->n_heads / m->n_kv_heads; /* query heads of a KV head */
    float per_row = 1.0f / (float)(rows * group);
    float *prob = s->work, *mean = s->work + s->mass_stride;
    uint8_t *drop = s->drop + mass_at(s, s->plan.wave, 0);
    for (int i = 0; i < w->n; i++)
        for (int h = 0; h < m->n_kv_heads; h++) {
            int n = wave_len(s, w, i);
            const float *mass = s->mass + mass_at(s, i, h) + s->prompt.prefix.n;
            uint8_t *all = s->drop + mass_at(s, i, h);
            const uint8_t *marks = stage_marks(s, i, layer * m->n_kv_heads + h, n);
            for (int j = 0, held = 0; j < n; j++)
                prob[j] = holds(marks, j) ? mass[held++] * per_row : 0;
            struct CalibAttention a = {.prob = prob, .n_heads = 1, .n_rows = 1, .n = n};
            calib_drop(r, 1, layer, 1, &a, mean, drop);
            for (int j = 0, held = 0; j < n; j++)
                if (holds(marks, j)) all[held++] |= drop[j];
        }
}

/* Stage-1 calibration: marks what rules of this layer drop. */
static int calibrate(struct Session *s, const struct Wave *w, int layer,
                     const struct AttnArgs *args)
{
    memset(s->drop, 0, mass_at(s, w->n, 0));
    for (int i = 0; i < s->set.n_calib; i++) {
        const struct CalibRule *r = &s->set.calib[i];
        if (!calib_applies(r, layer, 1)) continue;
        int q = s->prompt.tail.n, rows = r->rows == 0 || r->rows > q ? q : r->rows;
        TRY(s->tf.be->attn_mass(s->tf.dev, args, rows, s->mass, s->mass_stride));
        apply_rule(s, w, layer, r);
    }
    return PC_OK;
}

/* The context tokens that one head keeps, ascending: calibration first, then the cap (method.md 4.2). */
static int choose_tokens(struct Session *s, const struct Wave *w, int seq, int kv_head, int *keep)
{
    int n = stage_held(s, wave_len(s, w, seq)), most = stage_held(s, s->plan.chunk_tokens),
        alive = 0;
    const float *mass = s->mass + mass_at(s, seq, kv_head) + s->prompt.prefix.n;
    const uint8_t *drop = s->drop + mass_at(s, seq, kv_head);
    float *left = s->work, *pooled = s->work + s->mass_stride;
    int *from = (int *)(s->work + 2 * (size_t)s->mass_stride);
    for (int j = 0; j < n; j++)
        if (!drop[j]) from[alive] = j, left[alive++] = mass[j];
    struct KvEvict rule = {s->cap < most ? s->cap : CAP_OFF, s->set.pool};
    int kept = kv_evict(&rule, left, alive, pooled, keep);
    for (int j = 0; j < kept; j++) keep[j] = from[keep[j]];
    return kept;
}

/* The tokens that every head of the wave keeps in this layer, chosen by the policies here: into s->keep, and a copy
 * on the device. */
static int choose_on_host(struct Session *s, struct Wave *w, int layer, const struct AttnArgs *args)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int q = s->prompt.tail.n, rows = s->set.obs_rows < q ? s->set.obs_rows : q;
    TRY(calibrate(s, w, layer, args));
    if (s->cap < stage_held(s, s->plan.chunk_tokens))
        TRY(s->tf.be->attn_mass(s->tf.dev, args, rows, s->mass, s->mass_stride));
    for (int i = 0; i < w->n; i++)
        for (int h = 0; h < m->n_kv_heads; h++) {
            int *keep = s->keep + mass_at(s, i, h), n = choose_tokens(s, w, i, h, keep);
            int head = layer * m->n_kv_heads + h;
            w->slot[i]->kept[head] = n;
            memcpy(w->slot[i]->index + (size_t)head * s->cap, keep, sizeof *keep * (size_t)n);
        }
    size_t n = mass_at(s, w->n, 0);
    return s->tf.be->upload(s->tf.dev, s->keep_dev, s->keep, sizeof *s->keep * n);
}

/* What the device chose, into the slots: rounds ask which tokens these are. */
static int note_choice(struct Session *s, struct Wave *w, int layer)
{
    int heads = s->e->model.cfg.n_kv_heads;
    TRY(s->tf.be->download(s->tf.dev, s->keep, s->keep_dev, sizeof *s->keep * mass_at(s, w->n, 0)));
    for (int i = 0; i < w->n; i++)
        for (int h = 0; h < heads; h++) {
            int head = layer * heads + h, n = w->slot[i]->kept[head];
            memcpy(w->slot[i]->index + (size_t)head * s->cap, s->keep + mass_at(s, i, h),
                   sizeof *s->keep * (size_t)n);
        }
    return PC_OK;
}

/* The same on the device, where no rule has to be applied: how many stay is known without knowing which. */
static int choose_on_device(struct Session *s, struct Wave *w, int layer,
                            const struct AttnArgs *args)
{
    int heads = s->e->model.cfg.n_kv_heads, q = s->prompt.tail.n, len[WAVE_MAX];
    for (int i = 0; i < w->n; i++) {
        len[i] = stage_held(s, wave_len(s, w, i));
        for (int h = 0; h < heads; h++)
            w->slot[i]->kept[layer * heads + h] = len[i] < s->cap ? len[i] : s->cap;
    }
    struct KeepArgs keep = {.obs_rows = s->set.obs_rows < q ? s->set.obs_rows : q,
                            .pool = s->set.pool,
                            .cap = s->cap,
                            .first = s->prompt.prefix.n,
                            .n = len,
                            .keep = s->keep_dev,
                            .stride = s->mass_stride,
                            .step = mass_at(s, 1, 0)};
    if (s->store) recall_choice(s, layer, &keep);
    TRY(s->tf.be->keep(s->tf.dev, args, &keep));
    return s->plan.rounds > 1 && !s->store ? note_choice(s, w, layer) : PC_OK;
}

bool wave_chooses_on_device(const struct Session *s)
{
    return s->tf.be->keep && s->set.n_calib == 0 && !s->observer;
}

int wave_choose(struct Session *s, struct Wave *w, int layer, const struct AttnArgs *args)
{
    return wave_chooses_on_device(s) ? choose_on_device(s, w, layer, args)
                                     : choose_on_host(s, w, layer, args);
}

/* Sends the surviving context tokens of this layer to the chunks' pages. */
static int keep_tokens(struct Session *s, struct Wave *w, int layer, const struct AttnArgs *args)
{
    int heads = s->e->model.cfg.n_kv_heads;
    bool chosen = s->mass;
    if (chosen) TRY(wave_choose(s, w, layer, args));
    for (int i = 0; i < w->n; i++) {
        const struct KvRows all = {s->tf.k, s->tf.v, s->seq_begin[i], NULL, wave_len(s, w, i)};
        for (int h = 0; h < heads; h++) {
            struct KvRows rows = all;
            if (heads_stream(s, layer, h)) {
                if (heads_may_end(s, w->chunk[i]))
                    TRY(heads_keep_chunk(s, &w->slot[i]->table, layer, h, &all));
                continue;
            }
            if (chosen) {
                rows.index = s->keep_dev + mass_at(s, i, h);
                rows.n = w->slot[i]->kept[layer * heads + h];
            }
            TRY(kv_append(&s->kv, &w->slot[i]->table, layer, h, &rows, &s->writes));
        }
    }
    return kv_flush(&s->kv, &s->writes);
}

/* ==== Chunk eviction ==== */

/* After the last attention only the rows that predict question tokens matter: the last context row and the
 * question's. Moves them to the front of x and out. */
static int compact_tail(struct Session *s, struct Wave *w)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int per = s->prompt.tail.n + 1, n = 0;
    for (int i = 0; i < w->n; i++) {
        w->row[i] = n + 1;
        w->before[i] = n;
        for (int t = 0; t < per; t++) s->rows[n++] = s->seq_begin[i + 1] - per + t;
    }
    size_t out_bytes = (size_t)m->n_heads * m->head_dim * s->tf.be->act_bytes;
    TRY(s->tf.be->compact(s->tf.dev, s->tf.x, sizeof(float) * (size_t)m->dim, s->rows, n));
    return s->tf.be->compact(s->tf.dev, s->tf.out, out_bytes, s->rows, n);
}

int wave_score(struct Session *s, const struct Wave *w)
{
    int per = 0, n = 0;
    for (int i = 0; i < w->n; i++)
        for (int t = 0; t < s->prompt.tail.n; t++) {
            if (!rounds_scores(s, t)) continue;
            /* the row before the token predicts it */
            s->rows[n] = t ? w->row[i] + t - 1 : w->before[i];
            s->targets[n++] = s->prompt.tail.ids[t];
            per += i == 0;
        }
    TRY(s->tf.be->nll(s->tf.dev, s->tf.x, s->rows, s->targets, n, s->nll));
    for (int i = 0; i < w->n; i++) {
        double *score = &s->out->chunks[w->chunk[i]].score;
        *score = self_information(s->nll + i * per, per, 0, per);
    }
    return PC_OK;
}

int release_chunk(struct Session *s, int chunk)
{
    struct Slot *slot = session_slot(s, chunk);
    if (!slot) return err_set(PC_EINTERNAL, "chunk %d has no slot", chunk);
    kv_clear(&s->kv, &slot->table);
    slot->chunk = -1;
    return PC_OK;
}

int settle_chunk(struct Session *s, int chunk)
{
    int loser;
    double *score = &s->out->chunks[chunk].score;
    if (counts_words(s)) *score -= FUSION_NATS * s->shared[chunk];
    *score -= early_last(s, chunk);
    offer_chunk(s, chunk, &loser);
    return loser >= 0 && session_slot(s, loser) ? release_chunk(s, loser) : PC_OK;
}

int wave_evict(struct Session *s, const struct Wave *w)
{
    for (int i = 0; i < w->n; i++) TRY(settle_chunk(s, w->chunk[i]));
    return PC_OK;
}

int64_t wave_tokens_before(const struct Session *s, int n)
{
    int64_t sum = 0;
    for (int i = 0, end = 0; i < n; i++) {
        const struct Chunk *c = &s->chunks[s->todo[i]];
        sum += c->end - (c->begin > end ? c->begin : end); /* an overlap counts once */
        end = c->end;
    }
    return sum;
}

int wave_layers(struct Session *s, struct Wave *w)
{
    bool scored = !ranks_ahead(&s->set);
    int n_layers = s->e->model.cfg.n_layers, per = s->prompt.tail.n + 1;
    for (int l = w->from; l < w->to; l++) {
        struct AttnArgs args;
        bool last = l == n_layers - 1;
        TRY(session_stop(s));
        TRY(tf_attend(&s->tf, &w->batch, l, last ? per : 0, &args));
        if (s->observer) TRY(s->observer->attended(s->observer, s, &args, w->chunk));
        if (s->early.n_looks) TRY(early_look(s, w, &args));
        TRY(keep_tokens(s, w, l, &args));
        if (last && !scored) break; /* nothing reads these rows any more */
        if (last) TRY(compact_tail(s, w));
        TRY(tf_ffn(&s->tf, l, last ? w->n * per : s->seq_begin[w->n]));
        session_progress(s, STAGE_PREFILL, w->n_read,
                         w->n_before + w->n_tokens * (l + 1 - w->from) / (w->to - w->from));
    }
    return PC_OK;
}

int wave_read(struct Session *s, struct Wave *w)
{
    w->to = s->e->model.cfg.n_layers;
    TRY(wave_slots(s, w));
    TRY(wave_begin(s, w, s->prompt.tail.n));
    return wave_layers(s, w);
}

int prefill_wave(struct Session *s, int first, int n)
{
    struct Wave w = {.chunk = s->todo + first, .n = n, .n_read = first};
    w.n_next = min_int(s->plan.wave, s->n_mine - first - n);
    w.n_before = wave_tokens_before(s, first);
    w.n_tokens = wave_tokens_before(s, first + n) - w.n_before;
    TRY(wave_read(s, &w));
    if (!ranks_ahead(&s->set)) {
        TRY(wave_score(s, &w));
        TRY(wave_evict(s, &w));
    }
    session_progress(s, STAGE_PREFILL, first + n, w.n_before + w.n_tokens);
    return PC_OK;
}

/* ==== Merge ==== */

/* One cache of the prefix and the kept chunks in document order; pages move, nothing is copied. */
int merge_kept(struct Session *s)
{
    int *kept = s->rows, n = chunk_queue_kept(&s->queue, kept), longest = 0;
    /* prefix_copies = k gives the one shared prefix the weight of k copies (method.md 1.5) */
    kv_bias(&s->prefix, logf((float)s->set.prefix_copies), s->heads.streams);
    parts_leave_prefix(s);
    TRY(kv_move(&s->merged, &s->prefix));
    for (int i = 0; i < n; i++) {
        const struct Chunk *c = &s->chunks[kept[i]];
        struct Slot *slot = session_slot(s, kept[i]);
        s->out->chunks[kept[i]].kept = true;
        if (c->end - c->begin > longest) longest = c->end - c->begin;
        for (int h = 0; h < s->merged.n_heads; h++) s->out->kv_in[h] += c->end - c->begin;
        if (!slot && s->together) continue; /* another rank has it */
        if (!slot) return err_set(PC_EINTERNAL, "kept chunk %d has no slot", kept[i]);
        if (i < n - 1) heads_forget_chunk(s, &slot->table);
        for (int h = 0; h < s->merged.n_heads; h++) s->out->kv_kept[h] += slot->table.n_tokens[h];
        kv_bias(&slot->table, chunk_bias(s, kept[i], kept, n), s->heads.streams);
        TRY(kv_move(&s->merged, &slot->table));
    }
    heads_slide(s, &s->merged);
    for (int h = 0; s->heads.streams && h < s->merged.n_heads; h++)
        if (s->heads.streams[h] && parts_own(s, h))
            s->out->kv_kept[h] = heads_kept(s, h, (int)s->out->kv_in[h]);
    s->plan.question_pos = s->prompt.prefix.n + longest;
    return PC_OK;
}

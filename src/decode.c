/* decode.c - stage 2 of the method: the question once over the merged cache, then the answer
 * token by token (method.md 1.4, section 5). Every head reads its own pages, however many it kept.
 */
#include "calib/attn_calib.h"
#include "eviction/kv_evict.h"
#include "session.h"

#include "sampler.h"

#include <math.h>
#include <string.h>

static struct Batch tail_batch(struct Session *s, const int *ids, int n, int pos0)
{
    s->seq_begin[0] = 0;
    s->seq_begin[1] = n;
    for (int i = 0; i < n; i++) {
        s->tokens[i] = ids[i];
        s->pos[i] = pos0 + i;
    }
    struct Batch b = {.tokens = s->tokens,
                      .pos = s->pos,
                      .seq_begin = s->seq_begin,
                      .n_seqs = 1,
                      .pool = &s->kv.pool,
                      .past = &s->merged,
                      .masks = heads_answering(s)};
    return b;
}

/* ==== Stage-2 calibration ==== */

/* What stays of one head's merged tokens: 1 for each. */
static uint8_t *stays(struct Session *s, int kv_head)
{
    return s->drop + (size_t)kv_head * s->mass_stride;
}

/* Merged tokens of a full head before those of its first chunk. */
static int prefix_tokens(const struct Session *s, int head)
{
    return parts_own(s, head) ? s->prompt.prefix.n : 0;
}

/* Takes out what one rule drops among the merged tokens of one head; classes are those of each token's own chunk. */
static void drop_merged(struct Session *s, const struct CalibRule *r, int layer, int kv_head)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    const float *mass = s->mass + (size_t)kv_head * s->mass_stride;
    int head = layer * m->n_kv_heads + kv_head, at = prefix_tokens(s, head);
    int q = s->prompt.tail.n, rows = r->rows == 0 || r->rows > q ? q : r->rows;
    int group = m->n_heads / m->n_kv_heads; /* query heads of a KV head */
    float per_row = 1.0f / (float)(rows * group);
    float *prob = s->work, *mean = s->work + s->mass_stride;
    uint8_t *drop = stays(s, m->n_kv_heads); /* scratch behind the heads' */
    for (int c = 0; c < s->plan.n_chunks; c++) {
        const struct Slot *slot = session_slot(s, c);
        if (!slot) continue;
        int n = s->chunks[c].end - s->chunks[c].begin, kept = slot->kept[head];
        const int *index = slot->index + (size_t)head * s->cap;
        memset(prob, 0, sizeof *prob * (size_t)n);
        for (int j = 0; j < kept; j++) prob[index[j]] = mass[at + j] * per_row;
        struct CalibAttention a = {.prob = prob, .n_heads = 1, .n_rows = 1, .n = n};
        calib_drop(r, 1, layer, 2, &a, mean, drop);
        for (int j = 0; j < kept; j++)
            if (drop[index[j]]) stays(s, kv_head)[at + j] = 0;
        at += kept;
    }
}

/* Takes the dropped tokens out of the slots' lists too. */
static void forget_dropped(struct Session *s, int head, const uint8_t *stay)
{
    int at = prefix_tokens(s, head);
    for (int c = 0; c < s->plan.n_chunks; c++) {
        struct Slot *slot = session_slot(s, c);
        if (!slot) continue;
        int *index = slot->index + (size_t)head * s->cap, kept = 0;
        for (int j = 0; j < slot->kept[head]; j++)
            if (stay[at + j]) index[kept++] = index[j];
        at += slot->kept[head];
        s->out->kv_kept[head] -= slot->kept[head] - kept;
        slot->kept[head] = kept;
    }
}

/* Drops from the merged cache what stage-2 rules name; this pass's own output stays untouched. Every rule judges by the
 * attention on all tokens, so they go only when all rules have spoken. */
static int calibrate_merged(struct Session *s, int layer, const struct AttnArgs *args)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    bool any = false;
    for (int i = 0; i < s->set.n_calib; i++) {
        const struct CalibRule *r = &s->set.calib[i];
        if (!calib_applies(r, layer, 2)) continue;
        int rows = r->rows == 0 ? s->prompt.tail.n : r->rows;
        TRY(s->tf.be->attn_mass(s->tf.dev, args, rows, s->mass, s->mass_stride));
        if (!any) memset(s->drop, 1, (size_t)m->n_kv_heads * s->mass_stride);
        any = true;
        for (int h = 0; h < m->n_kv_heads; h++)
            if (!heads_stream(s, layer, h)) drop_merged(s, r, layer, h);
    }
    for (int h = 0; any && h < m->n_kv_heads; h++) {
        int head = layer * m->n_kv_heads + h;
        if (!memchr(stays(s, h), 0, (size_t)s->merged.n_tokens[head])) continue;
        TRY(kv_filter(&s->kv, &s->merged, layer, h, stays(s, h)));
        forget_dropped(s, head, stays(s, h));
    }
    return PC_OK;
}

/* ==== Compression by the question (SnapKV, PyramidKV) ==== */

/* One head: of the tokens before the observed rows, those of the merged cache stay by flag, the question's by index.
 * Returns how many rows of the question stay, their indices in keep. */
static int compress_head(struct Session *s, int layer, int head, const float *mass, int *keep)
{
    int past = s->merged.n_tokens[head], q = s->prompt.tail.n, begin = s->prompt.prefix.n,
        end = begin + s->prompt.context.n, rows = 0, in_context = 0;
    struct KvEvict rule = {s->budget[layer], s->set.pool};
    int n = kv_evict(&rule, mass, past + q - s->observed, s->work, keep);
    memset(s->drop, 0, (size_t)past);
    for (int i = 0; i < n; i++) {
        int token = keep[i];
        in_context += token >= begin && token < end;
        if (token < past)
            s->drop[token] = 1;
        else
            keep[rows++] = token - past;
    }
    for (int i = q - s->observed; i < q; i++) keep[rows++] = i;
    s->out->kv_kept[head] = in_context;
    return rows;
}

/* Takes a layer's K and V into the merged cache and leaves there what its heads keep; this pass's own output
 * was made with all of them. */
static int compress_layer(struct Session *s, int layer, const struct AttnArgs *args)
{
    int heads = s->e->model.cfg.n_kv_heads;
    TRY(s->tf.be->attn_mass(s->tf.dev, args, s->observed, s->mass, s->mass_stride));
    for (int h = 0; h < heads; h++) {
        size_t at = (size_t)h * s->mass_stride;
        int *keep = s->keep + at;
        int n = compress_head(s, layer, layer * heads + h, s->mass + at, keep);
        struct KvRows rows = {s->tf.k, s->tf.v, 0, s->keep_dev + at, n};
        TRY(kv_filter(&s->kv, &s->merged, layer, h, s->drop));
        TRY(s->tf.be->upload(s->tf.dev, s->keep_dev + at, keep, sizeof *keep * (size_t)n));
        TRY(kv_append(&s->kv, &s->merged, layer, h, &rows, &s->writes));
    }
    return kv_flush(&s->kv, &s->writes);
}

/* ==== The question ==== */

/* First half of a layer, over the merged cache. */
static int attend(struct Session *s, const struct Batch *b, int layer, struct AttnArgs *args)
{
    return s->together ? parts_attend(s, b, layer, args) : tf_attend(&s->tf, b, layer, 0, args);
}

/* A layer's rows of the question go behind the merged tokens, which first may lose some. */
static int store_question(struct Session *s, int layer, const struct AttnArgs *args)
{
    struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, args->seq_begin[1]};
    if (s->budget) return compress_layer(s, layer, args);
    if (s->mass) TRY(calibrate_merged(s, layer, args));
    TRY(s->together ? parts_append(s, layer, &rows)
                    : heads_append_all(s, &s->merged, layer, &rows));
    return kv_flush(&s->kv, &s->writes);
}

/* Rows [at, at + n) of it. */
static int run_rows(struct Session *s, int at, int n)
{
    int n_layers = s->e->model.cfg.n_layers;
    struct Batch b = tail_batch(s, s->prompt.tail.ids + at, n, s->plan.question_pos + at);
    TRY(far_batch(s, &b));
    TRY(tf_begin(&s->tf, &b));
    for (int l = 0; l < n_layers; l++) {
        struct AttnArgs args;
        TRY(session_stop(s));
        TRY(attend(s, &b, l, &args));
        if (s->observer) TRY(s->observer->attended(s->observer, s, &args, NULL));
        TRY(store_question(s, l, &args));
        TRY(tf_ffn(&s->tf, l, n));
    }
    far_forget(s, &s->merged);
    return PC_OK;
}

/* Rows from `at` on that are run together. */
static int rows_at_once(const struct Session *s, int at)
{
    int left = s->prompt.tail.n - at;
    return left < s->question_rows ? left : s->question_rows;
}

int question_pass(struct Session *s)
{
    int q = s->prompt.tail.n, last = 0;
    for (int at = 0, n; at < q; at += n) {
        n = rows_at_once(s, at);
        TRY(run_rows(s, at, n));
        last = n - 1;
    }
    if (s->select.index) TRY(kv_index_all(&s->kv, &s->merged));
    TRY(s->tf.be->logits(s->tf.dev, s->tf.x, &last, 1, s->logits));
    s->out->logits_hash =
        hash64(s->logits, sizeof *s->logits * (size_t)s->e->model.cfg.vocab_size, 0);
    session_progress(s, STAGE_QUESTION, s->n_mine, s->n_tokens_todo);
    return PC_OK;
}

int question_nll(struct Session *s, float *nll)
{
    int q = s->prompt.tail.n;
    nll[0] = NAN; /* predicted by a context row, which stage 2 does not run */
    for (int at = 0, n; at < q; at += n) {
        n = rows_at_once(s, at);
        int known = at + n < q ? n : n - 1; /* nothing follows the last row */
        TRY(run_rows(s, at, n));
        for (int t = 0; t < known; t++) {
            s->rows[t] = t;
            s->targets[t] = s->prompt.tail.ids[at + t + 1];
        }
        if (known) TRY(s->tf.be->nll(s->tf.dev, s->tf.x, s->rows, s->targets, known, nll + at + 1));
    }
    return PC_OK;
}

/* ==== The answer ==== */

/* The row of a step through all layers; a layer's writes of K and V are noted by `append`, or by nobody but the
 * device, which then takes them from the list of the step it replays. Logits of what follows. */
static int step_layers(struct Session *s, const struct Batch *b, bool append)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int row = 0;
    for (int l = 0; l < m->n_layers; l++) {
        struct AttnArgs args;
        struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, 1};
        TRY(attend(s, b, l, &args));
        if (append)
            TRY(s->together ? parts_append(s, l, &rows)
                            : kv_append_all(&s->kv, &s->merged, l, &rows, &s->writes));
        if (append) TRY(kv_flush(&s->kv, &s->writes));
        if (!append) TRY(s->tf.be->kv_write(s->tf.dev, &s->kv.pool, NULL, m->n_kv_heads));
        TRY(tf_ffn(&s->tf, l, 1));
    }
    return s->tf.be->logits(s->tf.dev, s->tf.x, &row, 1, s->logits);
}

/* The same step from the device's own record of it, which the first one makes. What follows: its logits, or the
 * likeliest token where `best` is given. */
static int step_replayed(struct Session *s, const struct Batch *b, int *best)
{
    const struct Backend *be = s->tf.be;
    struct KvRows rows = {s->tf.k, s->tf.v, 0, NULL, 1};
    if (!be->recorded(s->tf.dev)) {
        TRY(be->record(s->tf.dev, true));
        int status = step_layers(s, b, false), ended = be->record(s->tf.dev, false);
        TRY(status);
        TRY(ended);
        s->recorded = true;
    }
    for (int l = 0; l < s->e->model.cfg.n_layers; l++)
        TRY(kv_append_all(&s->kv, &s->merged, l, &rows, &s->writes));
    int n = s->writes.n;
    s->writes.n = 0;
    return be->replay(s->tf.dev, s->writes.list, n, best ? NULL : s->logits, best);
}

/* Whether the pages chosen for an earlier token of the answer serve the one at `pos` too. */
static bool keeps_pages(const struct Session *s, int pos)
{
    int token = pos - s->plan.question_pos - s->prompt.tail.n; /* of the answer, from 0 */
    return s->select.index && token % s->set.select_every != 0;
}

/* Token *id through the model, its K and V appended, and then the token that follows. */
static int step(struct Session *s, struct Sampler *sampler, int pos, int *id)
{
    struct Batch b = tail_batch(s, id, 1, pos);
    TRY(far_batch(s, &b));
    bool replay = s->limits.records && !b.far && !s->together,
         greedy = replay && sampler->config.temperature <= 0;
    b.follows = s->recorded;
    if (s->select.index) b.select = &s->select;
    b.select_kept = keeps_pages(s, pos);
    TRY(tf_begin(&s->tf, &b));
    TRY(replay ? step_replayed(s, &b, greedy ? id : NULL) : step_layers(s, &b, true));
    if (s->select.index) TRY(kv_index_filled(&s->kv, &s->merged));
    far_forget(s, &s->merged);
    heads_slide(s, &s->merged);
    return greedy ? PC_OK : sampler_next(sampler, s->logits, id);
}

static int emit(struct Session *s, struct Decoder *d, int id)
{
    struct Str *text = &s->out->text;
    size_t before = text->len;
    TRY(decode_token(s->e->tok, d, id, text));
    if (s->req->on_text && text->len > before)
        s->req->on_text(s->req->user, text->data + before, text->len - before);
    return PC_OK;
}

/* The last token of the request's stop text; -1 for none. */
static int stop_token(const struct Session *s, int *id)
{
    struct Tokens tokens = {0};
    *id = -1;
    if (!s->req->stop_text) return PC_OK;
    int status =
        tokenizer_encode(s->e->tok, s->req->stop_text, strlen(s->req->stop_text), false, &tokens);
    if (tokens.n) *id = tokens.ids[tokens.n - 1];
    tokens_free(&tokens);
    return status;
}

/* Takes all ends of an answer out of the first row's logits. */
static void forbid_ends(struct Session *s, int stop_id)
{
    for (int id = 0; id < s->e->model.cfg.vocab_size; id++)
        if (id == stop_id || tokenizer_is_end(s->e->tok, id)) s->logits[id] = -INFINITY;
}

static int generate(struct Session *s, struct Sampler *sampler, int stop_id)
{
    struct Decoder d = {{0}, 0, false};
    if (stop_id >= 0) forbid_ends(s, stop_id);
    int pos = s->plan.question_pos + s->prompt.tail.n, id = 0;
    for (int n = 0; n < s->set.max_tokens; n++) {
        if (n) TRY(session_stop(s));
        TRY(n ? step(s, sampler, pos + n - 1, &id) : sampler_next(sampler, s->logits, &id));
        if (tokenizer_is_end(s->e->tok, id)) {
            s->out->stopped_at_eos = true;
            break;
        }
        if (id == stop_id) {
            s->out->stopped_at_text = true;
            break;
        }
        s->out->ids[s->out->n_ids++] = id;
        TRY(emit(s, &d, id));
        session_progress(s, STAGE_DECODE, s->n_mine, n + 1);
    }
    size_t before = s->out->text.len;
    TRY(decode_flush(&d, &s->out->text));
    if (s->req->on_text && s->out->text.len > before)
        s->req->on_text(s->req->user, s->out->text.data + before, s->out->text.len - before);
    return PC_OK;
}

/* What its rows read of the pages that were there. */
static int count_pages(struct Session *s)
{
    struct PageCounts n;
    if (!s->select.index) return PC_OK;
    TRY(s->tf.be->page_counts(s->tf.dev, &n));
    s->out->pages_read = n.read;
    s->out->pages_there = n.there;
    return tiers_count(s);
}

int decode_answer(struct Session *s)
{
    struct Sampler sampler;
    struct SamplerConfig config = {s->set.temperature, s->set.top_p, s->set.seed};
    int stop_id;
    TRY(stop_token(s, &stop_id));
    TRY(sampler_open(&sampler, s->e->model.cfg.vocab_size, &config));
    mem_guard(true);
    int status = generate(s, &sampler, stop_id);
    mem_guard(false);
    sampler_close(&sampler);
    TRY(status);
    return count_pages(s);
}

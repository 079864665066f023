/* calibrate_read.c - one sample read with full attention, and its tail run again from the cache.
 *
 * Reading is a session's own: the plain or the chunk-parallel prefill, every chunk and token kept. The tail is
 * never written to the cache, so it may be run any number of times, several copies in a batch.
 */
#include "calibrate.h"

#include <math.h>
#include <string.h>

enum { PIECE = 48 }; /* rows whose logits are made at once */

/* ==== Reading ==== */

static struct Settings reading_settings(const struct Study *st, const struct StudySample *s,
                                        bool chunked)
{
    struct Settings set = st->e->settings;
    set.method = chunked ? METHOD_PARALLELCOMP : METHOD_FULL;
    set.keep = KEEP_ALL;
    set.kv_cap = CAP_OFF;
    set.overlap = 0;
    set.chunk_score = SCORE_RANDOM; /* all are kept: none needs to be scored */
    set.chunk_bias = 0;
    set.prefix_copies = 1;
    set.n_calib = 0;
    set.max_tokens = 1;
    int n = s->prompt.context.n, chunks = st->chunks;
    if (chunked && chunks * st->chunk < n) chunks = (n + st->chunk - 1) / st->chunk;
    set.chunk = chunked ? (n + chunks - 1) / chunks : AUTO;
    return set;
}

static int alloc_host(struct Study *st)
{
    struct Reading *r = &st->reading;
    const struct ModelConfig *m = &st->e->model.cfg;
    size_t heads = (size_t)m->n_kv_heads, asks = heads * (size_t)r->sample.n_asks,
           copies = heads * (size_t)r->n_tail, judged = (size_t)r->sample.max_rows,
           vocab = (size_t)m->vocab_size;
    r->tokens = mem_alloc(copies, sizeof *r->tokens);
    r->pos = mem_alloc(copies, sizeof *r->pos);
    r->seq_begin = mem_alloc(asks + 1, sizeof *r->seq_begin);
    r->idx = mem_alloc(PIECE, sizeof *r->idx);
    r->window = mem_alloc((size_t)m->n_layers * (size_t)m->n_heads, sizeof *r->window);
    r->logits = mem_alloc(PIECE * vocab, sizeof *r->logits);
    r->ref_logits = mem_alloc(judged * vocab, sizeof *r->ref_logits);
    r->ref_prob = mem_alloc(judged * vocab, sizeof *r->ref_prob);
    r->ref_lse = mem_alloc(judged, sizeof *r->ref_lse);
    r->kl = mem_alloc(judged, sizeof *r->kl);
    r->nll = mem_alloc(judged, sizeof *r->nll);
    r->hit = mem_alloc(judged, sizeof *r->hit);
    return r->tokens && r->pos && r->seq_begin && r->idx && r->window && r->logits &&
                   r->ref_logits && r->ref_prob && r->ref_lse && r->kl && r->nll && r->hit
               ? PC_OK
               : PC_ENOMEM;
}

/* Room for the tail's copies beside the cache that was filled. */
static int open_tail(struct Study *st)
{
    struct Reading *r = &st->reading;
    struct Engine *e = st->e;
    int copies = e->model.cfg.n_kv_heads;
    struct BatchShape shape = {.rows = copies * r->n_tail,
                               .seqs = copies * r->sample.n_asks,
                               .keys = r->n_keys + r->n_tail,
                               .head_rows = PIECE};
    TRY(alloc_host(st));
    TRY(tf_open(&r->tf, e->be, e->dev, &e->model, shape.rows));
    r->tf.rope = r->session.tf.rope;
    return e->be->reserve(e->dev, &shape);
}

static int read_sample(struct Study *st)
{
    struct Reading *r = &st->reading;
    r->n_tail = r->sample.prompt.tail.n;
    r->request = (struct Request){.question = "", .stop = st->opt.stop, .user = st->opt.user};
    TRY(session_open(&r->session, st->e, &r->request, &r->sample.prompt, &r->result));
    TRY(session_stages(&r->session, false));
    r->n_keys = r->session.merged.n_tokens[0];
    return open_tail(st);
}

/* Rows under full attention become the reference. */
static int take_reference(struct Study *st);

int study_enter(struct Study *st, const struct SamplePlace *place)
{
    struct Reading *r = &st->reading;
    struct Settings before = st->e->settings;
    struct HeadMap heads = st->e->heads;
    *r = (struct Reading){0};
    TRY(study_sample_make(st, place, &r->sample));
    st->e->heads = (struct HeadMap){0}; /* reading is with full attention */
    st->e->settings =
        reading_settings(st, &r->sample, st->opt.parallel && place->kind != SAMPLE_ECHO);
    int status = read_sample(st);
    st->e->settings = before;
    st->e->heads = heads;
    if (status == PC_OK) status = study_answer(st, place);
    return status < 0 ? status : take_reference(st);
}

void study_leave(struct Study *st)
{
    struct Reading *r = &st->reading;
    tf_close(&r->tf);
    if (r->session.e) session_close(&r->session);
    result_free(&r->result);
    void *blocks[] = {r->tokens,     r->pos,      r->seq_begin, r->idx, r->window, r->logits,
                      r->ref_logits, r->ref_prob, r->ref_lse,   r->kl,  r->nll,    r->hit};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    study_sample_free(&r->sample);
    *r = (struct Reading){0};
}

int study_stop(const struct Study *st)
{
    if (st->opt.stop && st->opt.stop(st->opt.user)) return err_set(PC_EINTR, "stopped");
    return PC_OK;
}

void study_progress(const struct Study *st, const char *what, double share)
{
    if (st->opt.on_progress) st->opt.on_progress(st->opt.user, what, share);
}

/* ==== The tail ==== */

int tail_begin(struct Study *st, int n, const struct HeadMasks *masks, struct Batch *b)
{
    struct Reading *r = &st->reading;
    const struct Session *s = &r->session;
    int asks = r->sample.n_asks;
    const int *begin = r->sample.ask_begin;
    for (int i = 0; i < n * r->n_tail; i++) r->tokens[i] = s->prompt.tail.ids[i % r->n_tail];
    for (int i = 0; i <= n * asks; i++) r->seq_begin[i] = i / asks * r->n_tail + begin[i % asks];
    for (int i = 0; i < n * asks; i++)
        for (int row = r->seq_begin[i]; row < r->seq_begin[i + 1]; row++)
            r->pos[row] = s->plan.question_pos + row - r->seq_begin[i];
    *b = (struct Batch){.tokens = r->tokens,
                        .pos = r->pos,
                        .seq_begin = r->seq_begin,
                        .n_seqs = n * asks,
                        .pool = &s->kv.pool,
                        .past = &s->merged,
                        .masks = masks};
    return tf_begin(&r->tf, b);
}

int tail_layers(struct Study *st, const struct Batch *b, int layer)
{
    struct Reading *r = &st->reading;
    for (int l = layer; l < st->shape.n_layers; l++) {
        struct AttnArgs args;
        TRY(study_stop(st));
        TRY(tf_attend(&r->tf, b, l, 0, &args));
        TRY(tf_ffn(&r->tf, l, b->seq_begin[b->n_seqs]));
    }
    return PC_OK;
}

/* ==== Judging ==== */

/* Logits of judged rows [first, first + n) of one copy. */
static int piece_logits(struct Study *st, int copy, int first, int n)
{
    struct Reading *r = &st->reading;
    for (int i = 0; i < n; i++) r->idx[i] = copy * r->n_tail + r->sample.rows[first + i];
    return r->tf.be->logits(r->tf.dev, r->tf.x, r->idx, n, r->logits);
}

static void judge_row(struct Reading *r, int row, const float *logits, double lse, int vocab)
{
    int target = r->sample.targets[row];
    r->nll[row] = lse - logits[target];
    r->hit[row] = logits_best(logits, vocab) == target;
}

static void judge_piece(struct Study *st, int first, int n)
{
    struct Reading *r = &st->reading;
    int vocab = st->e->model.cfg.vocab_size;
#pragma omp parallel for schedule(static) num_threads(st->e->settings.threads)
    for (int i = 0; i < n; i++) {
        size_t row = (size_t)first + (size_t)i;
        const float *logits = r->logits + (size_t)i * vocab;
        double lse = logits_lse(logits, vocab);
        struct AnswerRow ref = {r->ref_logits + row * vocab, r->ref_prob + row * vocab,
                                r->ref_lse[row]};
        r->kl[row] = answer_kl(&ref, logits, lse, vocab);
        judge_row(r, (int)row, logits, lse, vocab);
    }
}

static void keep_piece(struct Study *st, int first, int n)
{
    struct Reading *r = &st->reading;
    int vocab = st->e->model.cfg.vocab_size;
#pragma omp parallel for schedule(static) num_threads(st->e->settings.threads)
    for (int i = 0; i < n; i++) {
        size_t row = (size_t)first + (size_t)i;
        float *logits = r->ref_logits + row * vocab;
        memcpy(logits, r->logits + (size_t)i * vocab, sizeof *logits * (size_t)vocab);
        r->ref_lse[row] = logits_lse(logits, vocab);
        logits_softmax(logits, vocab, r->ref_lse[row], r->ref_prob + row * vocab);
        r->kl[row] = 0;
        judge_row(r, (int)row, logits, r->ref_lse[row], vocab);
    }
}

/* Pieces of equal length: a single row left over would take the device's other way to logits. */
static int each_piece(struct Study *st, int copy, void (*take)(struct Study *st, int first, int n))
{
    int n = st->reading.sample.n_rows, pieces = (n + PIECE - 1) / PIECE;
    for (int i = 0; i < pieces; i++) {
        int first = (int)((int64_t)n * i / pieces), end = (int)((int64_t)n * (i + 1) / pieces);
        TRY(piece_logits(st, copy, first, end - first));
        take(st, first, end - first);
    }
    return PC_OK;
}

int tail_judge(struct Study *st, int copy)
{
    return each_piece(st, copy, judge_piece);
}

static int take_reference(struct Study *st)
{
    struct Batch b;
    TRY(tail_begin(st, 1, NULL, &b));
    TRY(tail_layers(st, &b, 0));
    return each_piece(st, 0, keep_piece);
}

int tail_confined(struct Study *st, const uint8_t *keep)
{
    struct Reading *r = &st->reading;
    int heads = st->shape.n_heads, group = heads / st->shape.n_kv_heads;
    struct HeadMasks masks = {r->window, st->opt.sink};
    struct Batch b;
    for (int q = 0; q < st->shape.n_layers * heads; q++)
        r->window[q] = keep[q / group] ? 0 : st->opt.recent;
    TRY(tail_begin(st, 1, &masks, &b));
    TRY(tail_layers(st, &b, 0));
    return tail_judge(st, 0);
}

/* calibrate_answer.c - what the model itself answers under full attention, where a sample's answer is not given.
 *
 * The asks go on together, a token each time and a sequence each, none of it in the cache; what was said before is run
 * again, since answers are short. A sample that is opened again gets the answers of the first time.
 */
#include "calibrate.h"

#include <string.h>

static int *own_answer(const struct Study *st, const struct SamplePlace *p, int ask)
{
    int samples = st->opt.samples > st->opt.held_out ? st->opt.samples : st->opt.held_out;
    return st->own + ((size_t)(p->held_out * samples + p->index) * PASSKEYS_MAX + (size_t)ask) *
                         (1 + OWN_TOKENS);
}

/* The asks of own answers with n of their tokens; idx: their last rows. */
static int ask_batch(struct Study *st, int n, struct Batch *b)
{
    struct Reading *r = &st->reading;
    const struct StudySample *s = &r->sample;
    int rows = 0, seqs = 0;
    for (int a = 0; a < s->n_asks; a++) {
        if (!s->own[a]) continue;
        r->seq_begin[seqs] = rows;
        for (int i = s->ask_begin[a]; i < s->answer[a].begin + n; i++, rows++) {
            r->tokens[rows] = r->session.prompt.tail.ids[i];
            r->pos[rows] = r->session.plan.question_pos + i - s->ask_begin[a];
        }
        r->idx[seqs++] = rows - 1;
    }
    r->seq_begin[seqs] = rows;
    *b = (struct Batch){.tokens = r->tokens,
                        .pos = r->pos,
                        .seq_begin = r->seq_begin,
                        .n_seqs = seqs,
                        .pool = &r->session.kv.pool,
                        .past = &r->session.merged};
    return tf_begin(&r->tf, b);
}

static bool ended(const struct Study *st, const int *own)
{
    return own[0] > 0 && tokenizer_is_end(st->e->tok, own[own[0]]);
}

/* Token n of every own answer. *open: how many go on behind it. */
static int say_next(struct Study *st, const struct SamplePlace *place, int n, int *open)
{
    struct Reading *r = &st->reading;
    const struct StudySample *s = &r->sample;
    int vocab = st->e->model.cfg.vocab_size, seq = 0;
    struct Batch b;
    TRY(ask_batch(st, n, &b));
    TRY(tail_layers(st, &b, 0));
    TRY(r->tf.be->logits(r->tf.dev, r->tf.x, r->idx, b.n_seqs, r->logits));
    *open = 0;
    for (int a = 0; a < s->n_asks; a++) {
        if (!s->own[a]) continue;
        int *own = own_answer(st, place, a);
        const float *logits = r->logits + (size_t)seq++ * vocab;
        if (ended(st, own)) continue;
        own[++own[0]] = logits_best(logits, vocab);
        r->session.prompt.tail.ids[s->answer[a].begin + n] = own[own[0]];
        *open += !ended(st, own);
    }
    return PC_OK;
}

/* Into the tail and the rows. */
static void put_answers(struct Study *st, const struct SamplePlace *place)
{
    struct Reading *r = &st->reading;
    struct StudySample *s = &r->sample;
    int *tail = r->session.prompt.tail.ids;
    for (int a = 0; a < s->n_asks; a++) {
        if (!s->own[a]) continue;
        const int *own = own_answer(st, place, a);
        int begin = s->answer[a].begin;
        memcpy(tail + begin, own + 1, sizeof *own * (size_t)own[0]);
        sample_rows(s, tail, begin, begin + own[0], a);
    }
}

int study_answer(struct Study *st, const struct SamplePlace *place)
{
    const struct StudySample *s = &st->reading.sample;
    if (place->kind != SAMPLE_PASSKEYS || s->n_asks < 2) return PC_OK;
    if (own_answer(st, place, 1)[0] == 0)
        for (int n = 0, open = 1; open && n < OWN_TOKENS; n++) {
            TRY(study_stop(st));
            TRY(say_next(st, place, n, &open));
        }
    put_answers(st, place);
    return PC_OK;
}

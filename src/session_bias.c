/* session_bias.c - one request under observation (calib/bias_profile.h), and the NLL of what should follow.
 *
 * The observer takes the mass of the last question rows, the same that the policies judge by, at two places: over each
 * chunk as it is read (stage 1, the paper's local attention), and over the merged cache (stage 2, its parallel
 * attention), where every token counts at its place in its own chunk. Rules of stage 1 change no activation of stage 1:
 * what they do is seen at the second place only. Nor do they change which chunks win, so that a second run of a
 * request with other rules need read the winners alone.
 */
#include "session_bias.h"

#include "session.h"

#include <string.h>

/* ==== Watching ==== */

struct Watch {
    struct Observer observer; /* first: what the session knows */
    const struct BiasAsk *ask;
    int *len; /* [n_chunks] */
};

static int watched_rows(const struct Session *s)
{
    return s->set.obs_rows < s->prompt.tail.n ? s->set.obs_rows : s->prompt.tail.n;
}

/* Softmax rows summed into a mass. */
static float summed_rows(const struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int group = m->n_heads / m->n_kv_heads;
    return (float)(watched_rows(s) * group);
}

static double sum(const float *x, int n)
{
    double all = 0;
    for (int i = 0; i < n; i++) all += (double)x[i];
    return all;
}

/* The keys of one sequence and head: prefix, context, question. */
static void see_chunk(struct Session *s, struct BiasProfile *p, int layer, int head,
                      const float *mass, int n)
{
    int prefix = s->prompt.prefix.n;
    float *mean = s->work, rows = summed_rows(s);
    for (int j = 0; j < n; j++) mean[j] = mass[prefix + j] / rows;
    bias_context(p, layer, head, mean, n);
    bias_rest(p, layer, head, sum(mass, prefix) / (double)rows,
              sum(mass + prefix + n, s->prompt.tail.n) / (double)rows);
}

static void see_wave(struct Session *s, struct BiasProfile *p, const struct AttnArgs *args,
                     const int *chunks)
{
    int heads = s->e->model.cfg.n_kv_heads;
    for (int i = 0; i < args->n_seqs; i++) {
        const struct Chunk *c = &s->chunks[chunks[i]];
        int n = c->end - c->begin;
        if (args->layer == 0) bias_view(p, &n, 1);
        for (int h = 0; h < heads; h++)
            see_chunk(s, p, args->layer, h, s->mass + (size_t)(i * heads + h) * s->mass_stride, n);
    }
}

/* The keys of one head: prefix, what is left of each kept chunk, question. */
static void see_kept(struct Session *s, struct BiasProfile *p, int layer, int kv_head,
                     const float *mass)
{
    int head = layer * s->e->model.cfg.n_kv_heads + kv_head, at = s->prompt.prefix.n;
    float *mean = s->work, rows = summed_rows(s);
    for (int c = 0; c < s->plan.n_chunks; c++) {
        const struct Slot *slot = session_slot(s, c);
        if (!slot) continue;
        int n = s->chunks[c].end - s->chunks[c].begin, kept = slot->kept[head];
        const int *index = slot->index + (size_t)head * s->cap;
        memset(mean, 0, sizeof *mean * (size_t)n);
        for (int j = 0; j < kept; j++) mean[index[j]] = mass[at + j] / rows;
        bias_context(p, layer, kv_head, mean, n);
        at += kept;
    }
    bias_rest(p, layer, kv_head, sum(mass, s->prompt.prefix.n) / (double)rows,
              sum(mass + at, s->prompt.tail.n) / (double)rows);
}

static void see_merged(struct Session *s, struct Watch *w, const struct AttnArgs *args)
{
    struct BiasProfile *p = w->ask->merged;
    int heads = s->e->model.cfg.n_kv_heads, n = 0;
    for (int c = 0; c < s->plan.n_chunks; c++)
        if (session_slot(s, c)) w->len[n++] = s->chunks[c].end - s->chunks[c].begin;
    if (args->layer == 0) bias_view(p, w->len, n);
    for (int h = 0; h < heads; h++)
        see_kept(s, p, args->layer, h, s->mass + (size_t)h * s->mass_stride);
}

static int attended(struct Observer *o, struct Session *s, const struct AttnArgs *args,
                    const int *chunks)
{
    struct Watch *w = (struct Watch *)o;
    if (!(chunks ? w->ask->local : w->ask->merged)) return PC_OK;
    TRY(s->tf.be->attn_mass(s->tf.dev, args, watched_rows(s), s->mass, s->mass_stride));
    if (chunks)
        see_wave(s, w->ask->local, args, chunks);
    else
        see_merged(s, w, args);
    return PC_OK;
}

/* ==== Scoring ==== */

/* NLL of ids behind the question: the first from its last row, the others from one pass over ids. */
static int follow(struct Session *s, const int *ids, int n, double *nll)
{
    int last = s->prompt.tail.n - 1, pos0 = s->plan.question_pos + s->prompt.tail.n;
    TRY(question_pass(s));
    TRY(s->tf.be->nll(s->tf.dev, s->tf.x, &last, ids, 1, s->nll));
    *nll = (double)s->nll[0];
    if (n == 1) return PC_OK;
    TRY(rows_nll(s,
                 (struct KnownRows){
                     .ids = ids, .n = n - 1, .n_known = n - 1, .pos0 = pos0, .past = &s->merged},
                 s->nll));
    *nll += sum(s->nll, n - 1);
    return PC_OK;
}

static int score_answer(struct Session *s, const struct Tokens *answer, struct BiasScore *out)
{
    int n = answer->n, most = s->prompt.tail.n; /* rows that the answer's batch has room for */
    if (n > most) n = most;
    if (n > s->set.max_tokens) n = s->set.max_tokens;
    double nll = 0;
    TRY(follow(s, answer->ids, n, &nll));
    out->n_scored = n;
    out->nll = nll / n;
    return PC_OK;
}

/* The user's own words, or without any all of the tail; its first token is no part of stage 2. */
static int score_question(struct Session *s, struct BiasScore *out)
{
    int begin = s->prompt.score_begin, end = s->prompt.score_end;
    if (begin >= end) begin = 0, end = s->prompt.tail.n;
    if (begin < 1) begin = 1;
    if (begin >= end)
        return err_set(PC_ERANGE,
                       "the question has one token: there is no other to score; ask more");
    TRY(question_nll(s, s->nll));
    out->n_scored = end - begin;
    out->nll = sum(s->nll + begin, end - begin) / (end - begin);
    return PC_OK;
}

/* ==== A run ==== */

/* Of all chunks only those known to win are read. */
static void read_kept(struct Session *s, const struct BiasAsk *ask)
{
    s->n_tokens_todo = 0;
    for (int i = 0; i < ask->n_kept; i++) {
        const struct Chunk *c = &s->chunks[ask->kept[i]];
        s->todo[i] = ask->kept[i];
        s->n_tokens_todo += c->end - c->begin;
    }
    s->set.prefilter = 0;
    s->plan.n_read = s->n_todo = s->n_mine = ask->n_kept;
}

static int run(struct Session *s, const struct BiasAsk *ask, struct BiasScore *out)
{
    struct Tokens answer = {0};
    int status = tokenizer_encode(s->e->tok, ask->answer ? ask->answer : "",
                                  ask->answer ? strlen(ask->answer) : 0, false, &answer);
    if (ask->kept) read_kept(s, ask);
    if (status == PC_OK) status = session_stages(s, false);
    if (status == PC_OK) status = answer.n ? score_answer(s, &answer, out) : score_question(s, out);
    out->rows = watched_rows(s);
    tokens_free(&answer);
    return status;
}

int session_bias(struct Engine *e, const struct BiasAsk *ask, struct BiasScore *out,
                 struct Result *r)
{
    struct Watch watch = {.observer = {attended}, .ask = ask};
    struct Session s = {.observer = &watch.observer};
    struct Prompt prompt = {0};
    memset(out, 0, sizeof *out);
    memset(r, 0, sizeof *r);
    if (e->settings.method != METHOD_PARALLELCOMP)
        return err_set(PC_ECONFIG, "attention bias is measured under --method parallelcomp only");
    if (e->heads.scores)
        return err_set(PC_ECONFIG,
                       "attention bias is measured with all heads full; leave out --heads");
    s.begun = clock_seconds();
    int status = session_prompt(e, &ask->req, &prompt);
    if (status == PC_OK) status = session_open(&s, e, &ask->req, &prompt, r);
    if (status == PC_OK) {
        watch.len = mem_alloc((size_t)s.plan.n_chunks, sizeof *watch.len);
        status = watch.len ? run(&s, ask, out) : PC_ENOMEM;
        r->plan = s.plan;
    }
    mem_free(watch.len);
    prompt_free(&prompt);
    session_close(&s);
    return status;
}

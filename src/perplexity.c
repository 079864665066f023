/* perplexity.c - mean NLL of a text: plainly, or of its tail given the rest under a method
 * (method.md section 6, point 19: "NLL of a held-out tail given the merged cache").
 */
#include "session.h"

#include <math.h>
#include <string.h>

int rows_nll(struct Session *s, struct KnownRows r, float *nll)
{
    int n_layers = s->e->model.cfg.n_layers;
    s->seq_begin[0] = 0;
    s->seq_begin[1] = r.n;
    for (int i = 0; i < r.n; i++) {
        s->tokens[i] = r.ids[i];
        s->pos[i] = r.pos0 + i;
        s->rows[i] = i;
        if (i < r.n_known) s->targets[i] = r.ids[i + 1];
    }
    struct Batch b = {.tokens = s->tokens,
                      .pos = s->pos,
                      .seq_begin = s->seq_begin,
                      .n_seqs = 1,
                      .pool = &s->kv.pool,
                      .past = r.past,
                      .masks = r.masks};
    TRY(tf_begin(&s->tf, &b));
    for (int l = 0; l < n_layers; l++) {
        struct AttnArgs args;
        TRY(session_stop(s));
        TRY(tf_attend(&s->tf, &b, l, 0, &args));
        TRY(tf_ffn(&s->tf, l, r.n));
    }
    return s->tf.be->nll(s->tf.dev, s->tf.x, s->rows, s->targets, r.n_known, nll);
}

/* Plain: windows of `window` tokens, each on its own; every token after a window's first counts. */
static int window_nll(struct Session *s, const int *ids, int n, double *sum)
{
    TRY(rows_nll(
        s, (struct KnownRows){.ids = ids, .n = n, .n_known = n - 1, .masks = heads_reading(s)},
        s->nll));
    for (int i = 0; i + 1 < n; i++) *sum += s->nll[i];
    return PC_OK;
}

static int plain_perplexity(struct Session *s, struct PerplexityResult *out)
{
    const struct Tokens *c = &s->prompt.context;
    double sum = 0;
    for (int at = 0; at + 1 < c->n; at += s->batch_rows) {
        int n = c->n - at < s->batch_rows ? c->n - at : s->batch_rows;
        if (n < 2) break;
        TRY(window_nll(s, c->ids + at, n, &sum));
        out->n_scored += n - 1;
        session_progress(s, STAGE_PREFILL, 0, at + n);
    }
    out->nll = sum / (double)out->n_scored;
    return PC_OK;
}

static int tail_perplexity(struct Session *s, struct PerplexityResult *out)
{
    double sum = 0;
    TRY(session_stages(s, false));
    TRY(question_nll(s, s->nll));
    for (int t = 1; t < s->prompt.tail.n; t++) sum += s->nll[t];
    out->n_scored = s->prompt.tail.n - 1;
    out->nll = sum / (double)out->n_scored;
    return PC_OK;
}

/* Context tokens alone, BOS in front when the model wants one; the last `tail` become the question. */
static int text_prompt(struct Engine *e, const struct Request *req, int tail, struct Prompt *out)
{
    const struct VocabSpec *v = tokenizer_spec(e->tok);
    size_t bad = utf8_invalid_at(req->context, req->context_len);
    if (bad < req->context_len)
        return err_set(PC_EFORMAT, "the text is not UTF-8 at byte %zu", bad);
    if (v->add_bos && v->bos_id >= 0)
        TRY(tokens_push(tail ? &out->prefix : &out->context, v->bos_id));
    TRY(tokenizer_encode(e->tok, req->context, req->context_len, false, &out->context));
    if (out->context.n < tail + 2)
        return err_set(PC_ERANGE, "the text has %d tokens: too few for a tail of %d",
                       out->context.n, tail);
    for (int i = out->context.n - tail; i < out->context.n; i++)
        TRY(tokens_push(&out->tail, out->context.ids[i]));
    out->context.n -= tail;
    return PC_OK;
}

/* Rows of a plain window: the batch holds one. */
static int open_plain(struct Session *s, int window)
{
    int rows = s->prompt.context.n < window ? s->prompt.context.n : window;
    s->batch_rows = rows;
    s->wave_shape = (struct BatchShape){.rows = rows, .seqs = 1, .keys = rows, .head_rows = 48};
    s->plan.wave = 1;
    s->plan.n_context = s->prompt.context.n;
    size_t ints = (size_t)rows;
    int **arrays[] = {&s->tokens, &s->pos, &s->rows, &s->targets, &s->seq_begin};
    for (int i = 0; i < 5; i++)
        if (!(*arrays[i] = mem_alloc(ints + 2, sizeof(int)))) return PC_ENOMEM;
    if (!(s->nll = mem_alloc(ints, sizeof(float)))) return PC_ENOMEM;
    size_t need = s->e->be->scratch_bytes(s->e->dev, &s->wave_shape) +
                  tf_bytes(s->e->be, &s->e->model.cfg, rows);
    need += engine_made_bytes(s->e);
    size_t have = engine_available(s->e, &s->limits);
    if (need > have)
        return err_set(
            PC_ENOMEM,
            "perplexity in windows of %d needs %.2f GiB and may use %.2f GiB; try a smaller --window",
            rows, (double)need / (1 << 30), (double)have / (1 << 30));
    double begun = clock_seconds();
    TRY(engine_weights(s->e));
    s->begun += clock_seconds() - begun;
    s->plan.n_positions = rows;
    TRY(rope_plan(s));
    TRY(heads_plan(s, rows));
    TRY(tf_open(&s->tf, s->e->be, s->e->dev, &s->e->model, rows));
    TRY(rope_open(s));
    return s->e->be->reserve(s->e->dev, &s->wave_shape);
}

int session_perplexity(struct Engine *e, const struct Request *text, int tail,
                       struct PerplexityResult *out)
{
    struct Session s = {0};
    struct Prompt prompt = {0};
    struct Result result = {0};
    memset(out, 0, sizeof *out);
    if (tail == 0 && e->settings.method != METHOD_FULL)
        return err_set(
            PC_ECONFIG,
            "perplexity under a method needs --tail N: the last N tokens are scored given the rest");
    if (tail && compresses(&e->settings))
        return err_set(PC_ECONFIG,
                       "snapkv and pyramidkv compress after the tail was read with full "
                       "attention: its perplexity is that of --method full");
    if (tail == 1)
        return err_set(
            PC_ECONFIG,
            "--tail 1 scores nothing: a tail's first token only starts it; use 2 or more");
    s.begun = clock_seconds();
    int status = text_prompt(e, text, tail, &prompt);
    out->n_context = prompt.context.n;
    if (status == PC_OK && tail == 0) {
        int window = e->settings.window == AUTO ? e->model.cfg.train_len : e->settings.window;
        s.e = e, s.req = text, s.set = e->settings, s.prompt = prompt;
        memset(&prompt, 0, sizeof prompt);
        status = open_plain(&s, window);
        if (status == PC_OK) status = plain_perplexity(&s, out);
    } else if (status == PC_OK) {
        status = session_open(&s, e, text, &prompt, &result);
        if (status == PC_OK) status = tail_perplexity(&s, out);
    }
    out->ppl = exp(out->nll);
    out->seconds = clock_seconds() - s.begun;
    prompt_free(&prompt);
    session_close(&s);
    result_free(&result);
    return status;
}

/* session.c - one request through the whole method. session_stages() reads like the paper.
 *
 * Everything a run needs is allocated in session_open from the plan; later stages only use it. The device's
 * scratch is laid out twice, for the waves and for the answer, which is also where memory peaks.
 */
#include "session.h"

#include "calib/attn_calib.h"

#include <limits.h>
#include <math.h>
#include <string.h>

/* ==== The method ==== */

/* Whether this rank runs the question over the kept chunks. */
static bool answers(const struct Session *s)
{
    return s->e->team->rank == 0 || s->together;
}

/* All of this rank's chunks in waves: KV eviction layer by layer, then chunk eviction. */
static int read_chunks(struct Session *s)
{
    int wave = s->plan.wave;
    for (int c = 0; c < pipe_known(s); c++) TRY(pipe_offer(s, c));
    for (int c = 0; c < s->n_mine; c += wave) {
        int n = min_int(s->n_mine - c, wave);
        TRY(s->store ? recall_wave(s, c, n) : prefill_wave(s, c, n));
    }
    return PC_OK;
}

/* Chunk eviction: the chunks that stay have pages, or their choice of stored tokens. */
static int choose_chunks(struct Session *s)
{
    if (ranks_ahead(&s->set)) TRY(rank_ahead(s)); /* baselines: losers are never read */
    pipe_skip(s);                                 /* chunks of a pipe: they have been read */
    if (s->shared) TRY(weigh_words(s));
    if (s->set.prefilter && !ranks_ahead(&s->set)) TRY(prefilter_words(s));
    share_chunks(s);
    early_begin(s);
    if (s->early.n)
        TRY(early_chunks(s)); /* losers of early decisions are never read to the end */
    else
        TRY(read_chunks(s));
    TRY(pipe_fetch(s));
    /* of several ranks: rank 0 goes on with all kept chunks, or all do */
    TRY(share_winners(s));
    return s->store && answers(s) ? recall_kept(s) : PC_OK;
}

int session_stages(struct Session *s, bool answer)
{
    const struct PlanInfo *p = &s->plan;
    TRY(prefill_prefix(s)); /* once, shared by all chunks */
    if (s->set.method == METHOD_PARALLELCOMP) {
        TRY(choose_chunks(s));
        for (int r = 1; r < p->rounds; r++) {
            TRY(rounds_next(s)); /* what the kept chunks say leads the choice of more */
            TRY(choose_chunks(s));
        }
        TRY(rounds_end(s));
        if (answers(s) && s->store) TRY(recall_ends(s));
        if (answers(s)) TRY(merge_kept(s));
    } else if (s->e->team->rank == 0) {
        TRY(prefill_plain(s));
    }
    if (!answers(s)) return PC_OK;
    s->out->time.prefill = clock_seconds() - s->begun - s->out->time.tokenize;
    TRY(s->e->be->reserve(s->e->dev, &s->answer_shape));
    if (!answer) return PC_OK;
    TRY(question_pass(s)); /* may thin the merged cache out; first answer row */
    s->out->time.question =
        clock_seconds() - s->begun - s->out->time.tokenize - s->out->time.prefill;
    return decode_answer(s);
}

/* ==== Open and close ==== */

/* Carries preset rules over to this model's depth and checks them. */
static int resolve_rules(struct Session *s)
{
    struct Settings *set = &s->set;
    int layers = s->e->model.cfg.n_layers, n = 0;
    for (int i = 0; i < set->n_calib; i++) {
        struct CalibRule r = set->calib[i];
        if (set->calib_layers != AUTO && !calib_scale(&r, set->calib_layers, layers)) continue;
        TRY(calib_rule_check(&r, layers));
        set->calib[n++] = r;
    }
    set->n_calib = n;
    return PC_OK;
}

static int alloc_slots(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int ends = heads_chunk_pages(s), pages = kv_pages(s->cap) > ends ? kv_pages(s->cap) : ends;
    size_t heads = (size_t)m->n_layers * m->n_kv_heads;
    s->slots = mem_alloc((size_t)s->n_slots, sizeof *s->slots);
    if (!s->slots) return PC_ENOMEM;
    for (int i = 0; i < s->n_slots; i++) {
        s->slots[i].chunk = -1;
        TRY(kv_table_open(&s->slots[i].table, m, pages));
        s->slots[i].table.below = s->tiered;
        if (!s->mass_stride) continue;
        s->slots[i].index = mem_alloc(heads * (size_t)s->cap, sizeof *s->slots[i].index);
        s->slots[i].kept = mem_alloc(heads, sizeof *s->slots[i].kept);
        if (!s->slots[i].index || !s->slots[i].kept) return PC_ENOMEM;
    }
    return PC_OK;
}

static int alloc_policy(struct Session *s)
{
    size_t stride = (size_t)s->mass_stride, heads = (size_t)s->e->model.cfg.n_kv_heads,
           wave = (size_t)s->plan.wave;
    if (stride == 0) return PC_OK;
    s->mass = mem_alloc(wave * heads * stride, sizeof *s->mass);
    s->keep = mem_alloc(wave * heads * stride, sizeof *s->keep);
    s->work = mem_alloc(3 * stride, sizeof *s->work);
    s->drop = mem_alloc((wave + 1) * heads * stride, 1);
    size_t keep = wave * heads * stride, chosen = recall_choices(s);
    s->keep_dev = s->e->be->alloc(s->e->dev, (keep > chosen ? keep : chosen) * sizeof *s->keep_dev);
    if (s->indexes) s->chosen = mem_alloc(index_marks(s), 1);
    return s->mass && s->keep && s->keep_dev && s->work && s->drop && (s->chosen || !s->indexes)
               ? PC_OK
               : PC_ENOMEM;
}

static int alloc_rows(struct Session *s)
{
    size_t rows = (size_t)s->batch_rows;
    s->tokens = mem_alloc(rows, sizeof(int));
    s->pos = mem_alloc(rows, sizeof(int));
    s->rows = mem_alloc(rows + (size_t)s->plan.n_chunks, sizeof(int));
    s->targets = mem_alloc(rows, sizeof(int));
    s->nll = mem_alloc(rows, sizeof(float));
    s->seq_begin = mem_alloc((size_t)s->plan.wave + 1, sizeof(int));
    s->logits = mem_alloc((size_t)s->e->model.cfg.vocab_size, sizeof(float));
    s->todo = mem_alloc((size_t)s->plan.n_chunks, sizeof(int));
    s->place = mem_alloc((size_t)s->plan.n_chunks, sizeof(int));
    for (int i = 0; s->todo && i < s->plan.n_chunks; i++) s->todo[i] = i;
    s->n_tokens_todo = s->prompt.context.n;
    return s->tokens && s->pos && s->rows && s->targets && s->nll && s->seq_begin && s->logits &&
                   s->todo && s->place
               ? PC_OK
               : PC_ENOMEM;
}

static int prefix_pages(const struct Session *s)
{
    return s->plan.n_prefix / PAGE_TOKENS + 1 + heads_ring(s);
}

int merged_pages(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    int slots = s->set.method == METHOD_PARALLELCOMP ? parts_kept(s) : 0,
        tail = (p->n_question + p->max_tokens) / PAGE_TOKENS + 2;
    int kept = slots ? slots * kv_pages(s->cap)
                     : (s->held < p->chunk_tokens ? s->held + s->batch_rows : p->chunk_tokens) /
                               PAGE_TOKENS +
                           2;
    return prefix_pages(s) + kept + tail;
}

static int alloc_cache(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    const struct PlanInfo *p = &s->plan;
    int heads = m->n_kv_heads;
    TRY(s->store || s->indexes ? stage_cache(s)
                               : kv_open(&s->kv, s->e->be, s->e->dev, m, s->n_pages));
    if (s->store || s->indexes) TRY(stage_open(s)); /* first: what stays finds its place again */
    TRY(tiers_open(s));
    if (s->select.index) TRY(kv_index_open(&s->kv, s->select.index));
    TRY(kv_table_open(&s->prefix, m, prefix_pages(s)));
    TRY(kv_table_open(&s->merged, m, merged_pages(s)));
    int wave_writes = (p->wave * heads + 1) * (s->batch_rows / PAGE_TOKENS / p->wave + 2),
        step_writes = m->n_layers * heads; /* a recorded step writes all layers at once */
    TRY(kv_writes_open(&s->writes, wave_writes > step_writes ? wave_writes : step_writes));
    return PC_OK;
}

static int alloc_result(struct Session *s)
{
    struct Result *r = s->out;
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t heads = (size_t)m->n_layers * m->n_kv_heads;
    r->plan = s->plan;
    r->ids = mem_alloc((size_t)s->plan.max_tokens, sizeof *r->ids);
    r->chunks = mem_alloc((size_t)s->plan.n_chunks, sizeof *r->chunks);
    r->kv_in = mem_alloc(heads, sizeof *r->kv_in);
    r->kv_kept = mem_alloc(heads, sizeof *r->kv_kept);
    if (!r->ids || !r->chunks || !r->kv_in || !r->kv_kept) return PC_ENOMEM;
    const size_t *offset = s->prompt.context_offset;
    for (int i = 0; i < s->plan.n_chunks; i++) {
        const struct Chunk *c = &s->chunks[i];
        r->chunks[i] = (struct ChunkInfo){
            .begin = c->begin, .end = c->end, .score = NAN, .n_layers = m->n_layers};
        if (offset)
            r->chunks[i].byte_begin = offset[c->begin], r->chunks[i].byte_end = offset[c->end];
        if (s->places)
            r->chunks[i].byte_begin = s->places[2 * i],
            r->chunks[i].byte_end = s->places[2 * i + 1];
    }
    /* room for the answer's text now, so that decoding appends without allocating */
    size_t longest = 0;
    for (int i = 0; i < s->e->model.vocab.n_tokens; i++) {
        size_t len = tokenizer_piece(s->e->tok, i).len;
        if (len > longest) longest = len;
    }
    return str_reserve(&r->text, (longest + 4) * (size_t)s->plan.max_tokens + 16);
}

static int alloc_ranks(struct Session *s)
{
    if (s->set.method != METHOD_PARALLELCOMP) return PC_OK;
    TRY(chunk_queue_open(&s->queue, s->plan.keep ? s->plan.keep : 1, s->plan.n_chunks));
    if (!counts_words(s) && !early_words(s)) return PC_OK;
    s->shared = mem_alloc((size_t)s->plan.n_chunks, sizeof *s->shared);
    return s->shared ? PC_OK : PC_ENOMEM;
}

static int session_alloc(struct Session *s)
{
    TRY(alloc_rows(s));
    TRY(alloc_result(s));
    TRY(alloc_cache(s));
    TRY(alloc_slots(s));
    TRY(alloc_policy(s));
    TRY(alloc_ranks(s));
    TRY(ahead_open(s));
    TRY(early_open(s));
    TRY(rounds_open(s));
    TRY(tf_open(&s->tf, s->e->be, s->e->dev, &s->e->model, s->batch_rows));
    TRY(rope_open(s));
    TRY(far_open(s));
    TRY(s->e->be->reserve(s->e->dev, &s->wave_shape));
    return share_open(s);
}

int session_open(struct Session *s, struct Engine *e, const struct Request *req,
                 struct Prompt *prompt, struct Result *out)
{
    s->e = e;
    s->req = req;
    s->out = out;
    s->set = e->settings;
    s->prompt = *prompt;
    memset(prompt, 0, sizeof *prompt);
    TRY(resolve_rules(s));
    TRY(plan_make(s));
    if (!out) return PC_OK; /* planning only */
    TRY(plan_check(s));
    if (!s->resident) resident_close(e); /* the plan counts on that memory */
    double begun = clock_seconds();
    TRY(engine_weights(e));
    s->begun += clock_seconds() - begun; /* what is made once is no part of a run's time */
    return session_alloc(s);
}

void session_close(struct Session *s)
{
    text_ahead_close(s->ahead);
    if (s->keep_dev) s->e->be->release(s->e->dev, s->keep_dev);
    far_close(s);
    heads_close(s);
    tf_close(&s->tf);
    for (int i = 0; s->slots && i < s->n_slots; i++) {
        kv_table_close(&s->slots[i].table);
        mem_free(s->slots[i].index);
        mem_free(s->slots[i].kept);
    }
    stage_close(s);
    kv_table_close(&s->prefix);
    kv_table_close(&s->merged);
    kv_close(&s->kv);
    kv_writes_close(&s->writes);
    chunk_queue_close(&s->queue);
    early_close(s);
    rounds_close(s);
    share_close(s);
    parts_close(s);
    void *blocks[] = {s->slots,   s->boundary, s->chunks,    s->todo,   s->tokens, s->pos,  s->rows,
                      s->targets, s->mass,     s->seq_begin, s->budget, s->nll,    s->work, s->keep,
                      s->drop,    s->chosen,   s->logits,    s->shared, s->places, s->place};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    prompt_free(&s->prompt);
    memset(s, 0, sizeof *s);
}

/* ==== What stages share ==== */

struct Slot *session_slot(struct Session *s, int chunk)
{
    for (int i = 0; i < s->n_slots; i++)
        if (s->slots[i].chunk == chunk) return &s->slots[i];
    return NULL;
}

int session_stop(struct Session *s)
{
    if (s->open_end) TRY(source_take(&s->req->stream->source, 0));
    if (s->req->stop && s->req->stop(s->req->user)) return err_set(PC_EINTR, "stopped");
    return team_check(s->e->team);
}

void session_progress(struct Session *s, enum Stage stage, int chunks, int64_t tokens)
{
    bool reads = stage == STAGE_PREFILL || stage == STAGE_QUESTION;
    int left = s->plan.rounds - s->rounds.at;
    if (!s->req->on_progress) return;
    struct Progress p = {
        .stage = stage,
        .chunks_done = s->rounds.n_read + chunks,
        .n_chunks = s->rounds.n_read + s->n_mine * left,
        .tokens_done = reads ? s->rounds.n_tokens + tokens : tokens,
        .n_tokens = stage == STAGE_DECODE ? s->plan.max_tokens
                                          : s->rounds.n_tokens + (int64_t)s->n_tokens_todo * left,
        .seconds = clock_seconds() - s->begun,
        .memory = mem_in_use(),
    };
    if (s->open_end) p.n_chunks = 0, p.n_tokens = 0;
    s->req->on_progress(s->req->user, &p);
}

/* ==== Requests ==== */

int session_prompt(struct Engine *e, const struct Request *req, struct Prompt *out)
{
    return session_prompt_some(e, req, INT_MAX, out);
}

int session_prompt_some(struct Engine *e, const struct Request *req, int least, struct Prompt *out)
{
    const struct Settings *set = &e->settings;
    if (req->store) return stored_prompt(e, req, out);
    struct PromptText text = {
        .context = req->context,
        .context_len = req->context_len,
        .question = req->question,
        .instruction = set->instruction,
        .answer_prefix = set->answer_prefix,
        .system = set->system,
        .chat = &e->chat,
        .frame = req->frame,
        .least = least,
    };
    stream_begin(e, req, &text);
    TRY(prompt_make(e->tok, &text, out));
    TRY(stream_prompt(req, set, out));
    if (out->context.n == 0)
        return err_set(PC_ERANGE,
                       "the context is empty: give a text with -f FILE or on standard input");
    return PC_OK;
}

/* A stored text takes the place of the request's. */
static struct Request with_text(const struct Request *req)
{
    struct Request own = *req;
    if (!req->store) return own;
    own.context = req->store->info.text.data;
    own.context_len = req->store->info.text.len;
    return own;
}

int session_plan(struct Engine *e, const struct Request *request, struct PlanInfo *out)
{
    struct Request own = with_text(request), *req = &own;
    struct Session s = {.store = req->store};
    struct Prompt prompt = {0};
    int status = session_prompt(e, req, &prompt);
    if (status == PC_OK) status = session_open(&s, e, req, &prompt, NULL);
    *out = s.plan;
    prompt_free(&prompt);
    session_close(&s);
    return status;
}

enum { COVER_CAP_MIN = 64 };

int engine_cover(struct Engine *e, const struct Request *req, struct Settings *settings)
{
    struct PlanInfo plan;
    TRY(engine_configure(e, settings));
    TRY(session_plan(e, req, &plan));
    if (settings->kv_cap != AUTO || settings->method != METHOD_PARALLELCOMP || plan.keep < 2)
        return PC_OK;
    int cap = plan.window / 2 / plan.keep;
    settings->kv_cap = cap < COVER_CAP_MIN ? COVER_CAP_MIN : cap;
    if (settings->kv_cap >= plan.chunk_tokens) settings->kv_cap = CAP_OFF;
    return engine_configure(e, settings);
}

static int hash_request(struct Session *s)
{
    struct Str config = {0};
    int status = settings_json(&s->e->settings, &config);
    if (status == PC_OK) s->out->config_hash = hash64(config.data, config.len, s->e->model.hash);
    str_free(&config);
    const struct PromptFrame *frame = s->req->frame;
    const char *q = frame ? frame->after : s->req->question ? s->req->question : "";
    uint64_t hash = hash64(q, strlen(q), hash_text(s->req));
    if (frame) hash = hash64(frame->before, strlen(frame->before), hash);
    s->out->input_hash = hash;
    return status;
}

int session_run(struct Engine *e, const struct Request *request, struct Result *out)
{
    struct Request own = with_text(request), *req = &own;
    struct Session s = {.store = req->store};
    struct Prompt prompt = {0};
    memset(out, 0, sizeof *out);
    e->be->peak(e->dev, true);
    double piped = pipe_spent(req);
    s.begun = clock_seconds() - stream_spent(req) - piped;
    int status = session_prompt(e, req, &prompt);
    if (status == PC_OK) status = session_open(&s, e, req, &prompt, out);
    stream_spent(req); /* this run has counted it */
    out->time.tokenize = clock_seconds() - s.begun - piped;
    if (status == PC_OK) {
        status = hash_request(&s);
        if (status == PC_OK) status = session_stages(&s, true);
        if (status == PC_OK) status = share_end(&s);
        out->plan = s.plan;
        if (status == PC_OK) session_progress(&s, STAGE_DONE, s.n_mine, out->n_ids);
    }
    out->time.total = clock_seconds() - s.begun;
    double before = out->time.tokenize + out->time.prefill + out->time.question;
    if (out->time.question > 0) out->time.decode = out->time.total - before;
    out->peak_bytes = e->be->peak(e->dev, false);
    prompt_free(&prompt);
    session_close(&s);
    return status;
}

void result_free(struct Result *r)
{
    str_free(&r->text);
    mem_free(r->ids);
    mem_free(r->chunks);
    mem_free(r->kv_in);
    mem_free(r->kv_kept);
    for (int i = 0; i < ROUNDS_MAX - 1; i++) str_free(&r->found[i]);
    memset(r, 0, sizeof *r);
}

/* session_store.c - reading a text once (index) and answering from what was kept (ask).
 *
 * By causality a chunk's keys and values do not depend on the question behind it (method.md 9.3, item 2). So index runs
 * the chunks without any (session_index.c), all tokens of every chunk go to a store, and ask runs the question's rows alone: the prefix
 * and a stored chunk are their past. From there on all is as in a run: the same importance of the tokens, the same score
 * of the chunk, the same queue. Only chunks that stay are then loaded again and give their chosen tokens to the merged
 * cache. On the CPU the outcome is a run's to the bit, as its rows read keys and values as pages of f16 or f32 hold them, and
 * the question's share no scale with the text's (AttnArgs.tail_rows). What differs elsewhere is rounding: with pages of
 * codes the question sees codes where a run still has the numbers; keys that streaming heads left out stand in no block; and
 * a GPU sums in another order.
 *
 * Of a capped store a question sees what was kept, the chunk's score included: then tokens are counted as the store has them,
 * until their places in the chunk are asked for.
 *
 * Where its pages are, and how they get there: session_stage.c.
 */
#include "session.h"

#include <stdio.h>
#include <string.h>

/* Settings that shape a chunk's keys and values. A head map is known by what it does, not by its file's name. A store that
 * has all tokens says nothing of store_cap. */
static const char *const SHAPING[] = {
    "heads",         "window",      "chunk",    "overlap",      "heads_ratio",
    "head_sinks",    "head_recent", "heads_by", "rope_scaling", "rope_factor",
    "chat_template", "instruction", "system",   "store_cap",    NULL};

static int shaping_json(const struct Settings *set, struct Str *out)
{
    const char *names[sizeof SHAPING / sizeof *SHAPING];
    memcpy(names, SHAPING, sizeof SHAPING);
    if (set->store_cap == CAP_OFF) names[sizeof SHAPING / sizeof *SHAPING - 2] = NULL;
    return settings_json_some(set, names, out);
}

/* ==== What fits a store ==== */

static uint64_t heads_hash(const struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    const struct HeadRun *h = &s->heads;
    if (!h->streams) return 0;
    int keeps[2] = {h->sinks, h->recent};
    uint64_t hash = hash64(h->streams, (size_t)m->n_layers * m->n_kv_heads, 1);
    hash = hash64(h->read_window, sizeof(int) * (size_t)m->n_layers * m->n_heads, hash);
    return hash64(keeps, sizeof keeps, hash);
}

static int foreign(const struct Store *store, const char *what, const char *have, const char *want)
{
    return err_set(PC_ECONFIG,
                   "%s: the store was made with %s %s, and this is %s; use the same, or run `pcomp "
                   "index` again",
                   store->path, what, have, want);
}

/* Settings are compared as JSON, one by one, so that the first that differs has a name. */
static int check_settings(const struct Store *store, const struct Settings *set)
{
    struct Settings stored = *set;
    const struct Slice *json = &store->info.settings;
    stored.store_cap = CAP_OFF;
    TRY(settings_parse(&stored, json->data, json->len, store->path));
    for (int i = 1; SHAPING[i]; i++) {
        const char *const one[] = {SHAPING[i], NULL};
        struct Str have = {0}, want = {0};
        int status = settings_json_some(&stored, one, &have);
        if (status == PC_OK) status = settings_json_some(set, one, &want);
        if (status == PC_OK && strcmp(have.data, want.data))
            status = foreign(store, "setting", have.data, want.data);
        str_free(&have);
        str_free(&want);
        TRY(status);
    }
    return PC_OK;
}

/* What pages hold and how they are made: the backend's word, and the setting that makes codes of them. */
static void pages_text(const struct Engine *e, char out[48])
{
    const char *made = e->be->page_format(e->dev);
    enum KvType type = e->settings.kv_type;
    if (type == KV_AUTO)
        snprintf(out, 48, "%s", made);
    else
        snprintf(out, 48, "%s, kv_type %s", made, setting_word("kv_type", (int)type));
}

static int check_method(const struct Engine *e)
{
    if (e->settings.method == METHOD_PARALLELCOMP) return PC_OK;
    return err_set(PC_ECONFIG,
                   "a store holds chunks, which method %s has none of; use parallelcomp",
                   setting_word("method", (int)e->settings.method));
}

/* A query head's window counts its KV head's keys, from which a cap would take some. */
static int check_cap(const struct Settings *set)
{
    if (set->store_cap == CAP_OFF || set->heads_by != HEADS_BY_QUERY) return PC_OK;
    return err_set(PC_ECONFIG,
                   "setting 'store_cap': windows of query heads see tokens that a capped "
                   "store may not have; leave out --heads-by query");
}

static int check_engine(const struct Engine *e, const struct Store *store)
{
    const struct StoreInfo *i = &store->info;
    const struct ModelConfig *m = &e->model.cfg;
    TRY(check_method(e));
    if (i->model_hash != e->model.hash || i->n_layers != m->n_layers ||
        i->n_kv_heads != m->n_kv_heads || i->dim != m->dim)
        return err_set(PC_ECONFIG,
                       "%s: the store was made with another model than %s; name that one with -m, "
                       "or run `pcomp index` again",
                       store->path, m->name);
    char pages[48];
    pages_text(e, pages);
    if (strcmp(i->page_format, pages) || i->page_bytes != e->be->page_bytes(e->dev))
        return foreign(store, "pages of", i->page_format, pages);
    return check_settings(store, &e->settings);
}

/* Behind heads_plan: what is left that may differ. */
static int check_session(const struct Session *s)
{
    const struct StoreInfo *i = &s->store->info;
    const struct Tokens *p = &s->prompt.prefix;
    if (i->heads_hash != heads_hash(s))
        return foreign(s->store, "another head map than", s->set.heads, "the one given");
    if (i->n_prefix != p->n || memcmp(i->prefix, p->ids, sizeof *p->ids * (size_t)p->n))
        return foreign(s->store, "another", "prompt before the text", "not the same");
    return PC_OK;
}

/* ==== Prompt and plan ==== */

int stored_prompt(struct Engine *e, const struct Request *req, struct Prompt *out)
{
    const struct StoreInfo *i = &req->store->info;
    const struct Settings *set = &e->settings;
    struct PromptText text = {.context = "",
                              .question = req->question,
                              .instruction = set->instruction,
                              .answer_prefix = set->answer_prefix,
                              .system = set->system,
                              .chat = &e->chat,
                              .frame = req->frame};
    TRY(check_engine(e, req->store));
    TRY(prompt_make(e->tok, &text, out));
    mem_free(out->context_offset);
    out->context_offset = mem_alloc((size_t)i->n_context + 1, sizeof *out->context_offset);
    out->context.ids = mem_alloc((size_t)i->n_context, sizeof *out->context.ids);
    if (!out->context_offset || !out->context.ids) return PC_ENOMEM;
    out->context.n = out->context.cap = i->n_context;
    memcpy(out->context_offset, i->offset, sizeof *i->offset * ((size_t)i->n_context + 1));
    memcpy(out->context.ids, i->context, sizeof *i->context * (size_t)i->n_context);
    return PC_OK;
}

int question_room(const struct Session *s)
{
    enum { ROOM = 256 };
    int window = s->set.window == AUTO ? s->e->model.cfg.train_len : s->set.window,
        room = min_int(window / 8, ROOM);
    return s->set.store_cap == CAP_OFF ? room : max_int(room, s->prompt.tail.n);
}

int stored_chunks(struct Session *s)
{
    const struct StoreInfo *i = &s->store->info;
    struct PlanInfo *p = &s->plan;
    TRY(check_session(s));
    int after = p->n_question + max_int(p->max_tokens, rounds_room(s));
    int64_t room = (int64_t)p->window - p->n_prefix - after;
    if (room < i->chunk_tokens)
        return err_set(PC_ERANGE,
                       "%s: its chunks of %d tokens leave %lld positions of the window of %d to "
                       "question and answer, which need %d; shorten the question, lower "
                       "--max-tokens, or run `pcomp index` with a smaller --chunk",
                       s->store->path, i->chunk_tokens,
                       (long long)p->window - p->n_prefix - i->chunk_tokens, p->window, after);
    p->n_chunks = i->n_chunks;
    p->chunk_tokens = i->chunk_tokens;
    return PC_OK;
}

/* Question rows with stored chunks as their past; slots hold what was chosen, pages come once all chunks were scored. */
static void recall_shapes(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    int rows = max_int(p->wave * (p->n_question + p->n_found + 1), p->n_prefix);
    s->batch_rows = s->wave_shape.rows = rows;
    s->wave_shape.seqs = s->wave_shape.pasts = p->wave;
    int winners = (s->n_slots < p->keep ? s->n_slots : p->keep) * kv_pages(s->cap),
        before = kv_pages(p->n_prefix), behind = kv_pages(p->n_question + p->max_tokens) + 1;
    s->n_pages = (size_t)p->heads_full * (size_t)(winners + before) +
                 (size_t)parts_heads(s) * (size_t)behind +
                 (size_t)p->heads_streaming * (size_t)(heads_ring(s) + before + behind);
    tiers_split(s, (size_t)p->heads_full * (size_t)winners, p->keep * kv_pages(s->cap));
}

void stored_shapes(struct Session *s)
{
    struct StoreInfo layout = stage_layout(s);
    s->store ? recall_shapes(s) : index_shapes(s);
    s->stage_pages = store_pages(&layout, s->plan.chunk_tokens);
    s->n_staged = s->resident ? s->n_mine : s->plan.wave;
    s->n_pages += s->stage_pages * (size_t)s->n_staged;
}

int64_t stored_tokens_all(const struct Session *s)
{
    if (s->store) return s->store->info.n_all;
    int question = s->indexes ? question_room(s) : s->prompt.tail.n;
    return (int64_t)s->prompt.prefix.n + s->prompt.context.n + question + s->set.max_tokens;
}

/* ==== Index ==== */

static void fill_info(const struct Session *s, const struct Str *settings, struct StoreInfo *out)
{
    const struct Engine *e = s->e;
    *out = stage_layout(s);
    out->model_hash = e->model.hash;
    out->heads_hash = heads_hash(s);
    pages_text(e, out->page_format);
    out->page_bytes = e->be->page_bytes(e->dev);
    out->dim = e->model.cfg.dim;
    out->n_context = s->plan.n_context;
    out->n_chunks = s->plan.n_chunks;
    out->chunk_tokens = s->plan.chunk_tokens;
    out->n_all = stored_tokens_all(s);
    out->rope_factor = s->plan.rope_factor;
    out->prefix = s->prompt.prefix.ids;
    out->context = s->prompt.context.ids;
    out->chunks = s->chunks;
    out->offset = s->prompt.context_offset;
    out->settings = (struct Slice){settings->data, settings->len};
    out->text = (struct Slice){s->req->context, s->req->context_len};
}

int session_index(struct Engine *e, const struct Request *req, const char *path, bool fresh,
                  struct IndexInfo *out)
{
    struct Session s = {.indexes = true};
    struct Result made = {0};
    struct StoreWriter writer = {.fd = -1};
    struct Prompt prompt = {0};
    struct StoreInfo info;
    struct Str settings = {0};
    struct Team *team = e->team;
    int status;
    memset(out, 0, sizeof *out);
    e->team = &e->alone; /* a file has one writer */
    e->be->peak(e->dev, true);
    s.begun = clock_seconds();
    TRY_GOTO(check_method(e));
    TRY_GOTO(check_cap(&e->settings));
    TRY_GOTO(index_prompt(e, req, &prompt));
    TRY_GOTO(session_open(&s, e, req, &prompt, &made));
    TRY_GOTO(shaping_json(&e->settings, &settings));
    fill_info(&s, &settings, &info);
    TRY_GOTO(store_bytes(&info, &out->bytes));
    TRY_GOTO(store_create(path, &info, fresh, &writer));
    out->n_before = writer.n_done;
    if (writer.fd >= 0) status = index_stages(&s, &writer);
fail:
    out->plan = s.plan;
    out->n_done = writer.n_done;
    out->busy = writer.busy;
    out->seconds = clock_seconds() - s.begun;
    out->peak_bytes = e->be->peak(e->dev, false);
    store_writer_close(&writer);
    str_free(&settings);
    prompt_free(&prompt);
    session_close(&s);
    result_free(&made);
    e->team = team;
    return status;
}

/* What the answer may be long decides where chunks end, unless the setting says it. */
int session_store_key(struct Engine *e, const struct Request *req, uint64_t *key)
{
    struct Str settings = {0};
    const char *before = req->frame ? req->frame->before : "";
    int room = e->settings.chunk == AUTO ? e->settings.max_tokens : 0;
    char pages[48];
    pages_text(e, pages);
    uint64_t hash = hash64(req->context, req->context_len, e->model.hash);
    hash = hash64(&room, sizeof room, hash64(before, strlen(before), hash));
    int status = shaping_json(&e->settings, &settings);
    if (status == PC_OK)
        *key = hash64(settings.data, settings.len, hash64(pages, strlen(pages), hash));
    str_free(&settings);
    return status;
}

/* ==== Ask ==== */

/* ints of one chunk's choice: [n_layers, n_kv_heads, cap]. */
static size_t choice_size(const struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    return (size_t)m->n_layers * (size_t)m->n_kv_heads * (size_t)s->cap;
}

size_t recall_choices(const struct Session *s)
{
    return s->store && s->mass_stride ? choice_size(s) * (size_t)s->plan.wave : 0;
}

void recall_choice(const struct Session *s, int layer, struct KeepArgs *out)
{
    out->keep = s->keep_dev + (size_t)layer * (size_t)s->e->model.cfg.n_kv_heads * (size_t)s->cap;
    out->stride = s->cap;
    out->step = choice_size(s);
}

int recall_begin(struct Session *s, struct Wave *w)
{
    int q = s->prompt.tail.n;
    for (int i = w->n; i < w->n + w->n_next; i++)
        if (!stage_has(s, w->chunk[i])) store_expect(s->store, w->chunk[i]);
    store_check(s->store, w->chunk, w->n, s->e->settings.threads);
    for (int i = 0; i < w->n; i++) {
        int n = wave_len(s, w, i);
        TRY(stage_load_layers(s, w->chunk[i], i, w->from, w->to));
        s->seq_begin[i] = i * q;
        batch_rows_fill(s, s->prompt.tail.ids, q, i * q, s->plan.n_prefix + n);
        w->row[i] = i * q;
        w->before[i] = w->n * q + i;
    }
    s->seq_begin[w->n] = w->n * q;
    w->batch = (struct Batch){.tokens = s->tokens,
                              .pos = s->pos,
                              .seq_begin = s->seq_begin,
                              .n_seqs = w->n,
                              .pool = &s->kv.pool,
                              .past = s->staged,
                              .own_pasts = s->limits.own_pasts,
                              .tail_rows = q,
                              .masks = heads_reading(s)};
    return tf_begin(&s->tf, &w->batch);
}

int recall_note(struct Session *s, const struct Wave *w)
{
    size_t size = choice_size(s), layer = size / (size_t)s->e->model.cfg.n_layers,
           begin = layer * (size_t)w->from, n = layer * (size_t)(w->to - w->from);
    if (!s->mass || !wave_chooses_on_device(s)) return PC_OK;
    for (int i = 0; i < w->n; i++) {
        struct Slot *slot = session_slot(s, w->chunk[i]);
        if (!slot) continue;
        TRY(s->tf.be->download(s->tf.dev, slot->index + begin,
                               s->keep_dev + size * (size_t)i + begin, n * sizeof *slot->index));
    }
    return PC_OK;
}

/* The rows that stood before the question's go behind them: they predict its first token. */
static int put_last_rows(struct Session *s, const struct Wave *w)
{
    size_t dim = (size_t)s->e->model.cfg.dim;
    for (int i = 0; i < w->n; i++) {
        struct StoreChunk c;
        TRY(store_chunk(s->store, w->chunk[i], &c));
        TRY(s->tf.be->upload(s->tf.dev, s->tf.x + dim * (size_t)w->before[i], c.last,
                             dim * sizeof(float)));
    }
    return PC_OK;
}

int recall_layers(struct Session *s, struct Wave *w)
{
    for (int l = w->from; l < w->to; l++) {
        struct AttnArgs args;
        TRY(session_stop(s));
        TRY(tf_attend(&s->tf, &w->batch, l, 0, &args));
        if (s->early.n_looks) TRY(early_look(s, w, &args));
        if (s->mass) TRY(wave_choose(s, w, l, &args));
        TRY(tf_ffn(&s->tf, l, s->seq_begin[w->n]));
    }
    bool scored = w->to == s->e->model.cfg.n_layers && !ranks_ahead(&s->set);
    return scored ? put_last_rows(s, w) : PC_OK;
}

int recall_wave(struct Session *s, int first, int n)
{
    struct Wave w = {.chunk = s->todo + first,
                     .n = n,
                     .n_next = min_int(n, s->n_mine - first - n),
                     .to = s->e->model.cfg.n_layers};
    bool scored = !ranks_ahead(&s->set);
    TRY(wave_slots(s, &w));
    if (scored || s->mass) {
        TRY(recall_begin(s, &w));
        TRY(recall_layers(s, &w));
    }
    if (scored) {
        TRY(wave_score(s, &w));
        TRY(wave_evict(s, &w));
    }
    TRY(recall_note(s, &w));
    session_progress(s, STAGE_PREFILL, first + n, wave_tokens_before(s, first + n));
    return PC_OK;
}

/* What full heads keep of the chunk that is table 0, of which they have `held` tokens, into its slot's table. */
static int gather_full(struct Session *s, struct Slot *slot, int held)
{
    const struct HeadTable *t = &s->staged[0];
    int heads = s->e->model.cfg.n_kv_heads, *index = slot->index ? s->keep_dev : NULL;
    size_t n = (size_t)s->prefix.n_heads * (size_t)s->cap;
    if (index) TRY(s->tf.be->upload(s->tf.dev, index, slot->index, n * sizeof *index));
    for (int h = 0; h < s->prefix.n_heads; h++) {
        if (s->heads.streams && s->heads.streams[h]) continue;
        uint32_t page = t->refs[(size_t)h * (size_t)t->stride + s->prefix.n_refs[h]].page;
        struct KvRun run = {page, NULL, held};
        if (index) run.index = index + (size_t)h * (size_t)s->cap, run.n = slot->kept[h];
        TRY(kv_gather_run(&s->kv, &slot->table, h / heads, h % heads, &run, &s->gathers));
    }
    return kv_gather_flush(&s->kv, &s->gathers);
}

/* What a streaming head has of it. */
static int gather_streaming(struct Session *s, struct Slot *slot, int head)
{
    const struct HeadTable *t = &s->staged[0];
    int heads = s->e->model.cfg.n_kv_heads, past = s->prefix.n_tokens[head];
    struct KvTokens all = {t, head, past, NULL, t->n_tokens[head] - past};
    return kv_gather(&s->kv, &slot->table, head / heads, head % heads, &all);
}

static int gather_ends(struct Session *s, struct Slot *slot)
{
    for (int h = 0; s->heads.streams && h < s->prefix.n_heads; h++)
        if (s->heads.streams[h]) TRY(gather_streaming(s, slot, h));
    return PC_OK;
}

/* From here on a slot's tokens are counted as the chunk has them. */
static void name_tokens(struct Session *s, struct Slot *slot, int len)
{
    for (int h = 0; slot->index && h < s->prefix.n_heads; h++) {
        int *index = slot->index + (size_t)h * (size_t)s->cap;
        const uint8_t *marks = stage_marks(s, 0, h, len);
        for (int t = 0, held = 0, n = 0; marks && n < slot->kept[h]; t++)
            if (store_marked(marks, t) && index[n] == held++) index[n++] = t;
    }
}

int recall_kept(struct Session *s)
{
    int n = chunk_queue_kept(&s->queue, s->rows);
    for (int i = 0; i < n; i++) {
        int chunk = s->rows[i], len = s->chunks[chunk].end - s->chunks[chunk].begin;
        struct Slot *slot = session_slot(s, chunk);
        if (!slot && s->together) continue; /* another rank has it */
        if (!slot) return err_set(PC_EINTERNAL, "kept chunk %d has no slot", chunk);
        TRY(session_stop(s));
        TRY(stage_load(s, chunk, 0));
        TRY(gather_full(s, slot, stage_held(s, len)));
        name_tokens(s, slot, len);
    }
    return PC_OK;
}

int recall_ends(struct Session *s)
{
    int n = chunk_queue_kept(&s->queue, s->rows), last = n ? s->rows[n - 1] : -1;
    struct Slot *slot = n ? session_slot(s, last) : NULL;
    if (!s->heads.streams || !slot) return PC_OK; /* or another rank has it */
    TRY(stage_load(s, last, 0));
    return gather_ends(s, slot);
}

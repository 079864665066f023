/* plan.c - everything about a run that is known before it: chunks, positions, waves, memory.
 *
 * The plan is made from token counts alone. Memory is (kept chunks + wave) x cap pages, one wave's
 * activations and the device's scratch: it does not grow with the input, but for what is held of its text
 * (session_stream.c).
 */
#include "session.h"

#include "eviction/budget.h"
#include "geometry.h"

#include <stdio.h>
#include <string.h>

/* Rows whose logits are made at once. For each block the output matrix is read anew, which is what a block of few rows costs
 * on a device; a host has the logits of so many in its caches. */
enum {
    HEAD_ROWS = 48,
    HEAD_ROWS_DEVICE = 256,
};

static bool is_plain(const struct Session *s)
{
    return s->set.method != METHOD_PARALLELCOMP;
}

/* Whether anything asks for the attention mass on tokens. */
static bool needs_mass(const struct Session *s)
{
    if (is_plain(s)) return s->budget;
    return s->observer || s->set.n_calib > 0 || s->cap < stage_held(s, s->plan.chunk_tokens);
}

/* ==== Chunks and positions ==== */

/* Middle truncation: the context keeps its first and last halves so that everything fits the window. */
static int truncate_middle(struct Session *s, int payload)
{
    struct Tokens *c = &s->prompt.context;
    if (c->n <= payload) return PC_OK;
    int head = payload - payload / 2, tail = payload / 2, cut = c->n - payload;
    memmove(c->ids + head, c->ids + c->n - tail, sizeof *c->ids * (size_t)tail);
    if (s->prompt.context_offset) /* absent when the request came as token ids */
        memmove(s->prompt.context_offset + head, s->prompt.context_offset + c->n - tail,
                sizeof *s->prompt.context_offset * (size_t)(tail + 1));
    c->n = payload;
    s->plan.n_truncated = cut;
    return PC_OK;
}

static int plan_plain(struct Session *s)
{
    if (s->set.method == METHOD_TRUNCATE) {
        struct ChunkBudget b = {s->plan.window, s->plan.n_prefix, s->plan.n_question,
                                s->plan.max_tokens, s->plan.window};
        int payload;
        TRY(chunk_payload(&b, &payload));
        TRY(truncate_middle(s, payload));
    }
    s->plan.n_chunks = s->prompt.context.n ? 1 : 0;
    s->plan.chunk_tokens = s->prompt.context.n;
    s->plan.keep = s->plan.n_read = s->plan.n_chunks;
    s->plan.wave = 1;
    return far_plan(s, s->plan.n_prefix + s->prompt.context.n + s->plan.n_question +
                           s->plan.max_tokens);
}

/* What each layer keeps of the whole prompt; kv_cap counts the observed rows too. */
static int plan_budget(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    int total = p->n_prefix + s->prompt.context.n + p->n_question,
        layers = s->e->model.cfg.n_layers;
    s->observed = min_int(s->set.obs_rows, p->n_question);
    if (!compresses(&s->set) || s->set.kv_cap == CAP_OFF || s->set.kv_cap >= total) return PC_OK;
    if (s->set.kv_cap <= s->observed)
        return err_set(PC_ECONFIG,
                       "kv_cap %d leaves no token beside the %d observed question rows, which are "
                       "always kept; raise --kv-cap or lower --obs-rows",
                       s->set.kv_cap, s->observed);
    s->budget = mem_alloc((size_t)layers, sizeof *s->budget);
    if (!s->budget) return PC_ENOMEM;
    int mean = s->set.kv_cap - s->observed, n = total - s->observed;
    if (s->set.method == METHOD_PYRAMIDKV)
        pyramid_budgets(layers, mean, n, s->budget);
    else
        flat_budgets(layers, mean, n, s->budget);
    return PC_OK;
}

bool session_has_text(const struct Session *s)
{
    return s->req->stream || (s->req->context && s->prompt.context_offset);
}

static int count_chunks(struct Session *s)
{
    struct ChunkBudget b = {s->plan.window, s->plan.n_prefix, s->plan.n_question,
                            max_int(s->plan.max_tokens, rounds_room(s)), s->set.chunk};
    int payload, n = s->prompt.context.n;
    TRY(chunk_payload(&b, &payload));
    s->cut = (struct ChunkInput){.n_tokens = n, .payload = payload, .overlap = s->set.overlap};
    if (session_has_text(s)) s->cut.slack = min_int(SNAP_MAX, payload / 16);
    s->plan.chunk_tokens = min_int(payload, n);
    TRY(chunk_count(&s->cut, &s->plan.n_chunks));
    if (s->open_end) s->plan.n_chunks = EVEN_CHUNKS; /* at a time, at most */
    return PC_OK;
}

static enum ChunkScore usual_score(const struct Session *s)
{
    if (!session_has_text(s)) return SCORE_QUESTION;
    return s->e->chunks.nats > 0 ? SCORE_ATTENTION : SCORE_FUSION;
}

static int plan_chunks(struct Session *s)
{
    TRY(s->store ? stored_chunks(s) : count_chunks(s));
    if (s->set.chunk_score == SCORE_AUTO) s->set.chunk_score = usual_score(s);
    s->plan.chunk_score = s->set.chunk_score;
    s->plan.keep =
        s->set.keep == KEEP_ALL ? s->plan.n_chunks : min_int(s->set.keep, s->plan.n_chunks);
    s->plan.n_read = s->plan.n_chunks;
    if (s->indexes) return PC_OK;
    if (s->set.prefilter)
        s->plan.n_read = min_int(max_int(s->set.prefilter, s->plan.keep), s->plan.n_chunks);
    if (ranks_ahead(&s->set)) s->plan.n_read = s->plan.keep;
    TRY(rounds_plan(s));
    return early_plan(s);
}

static int cut_chunks(struct Session *s)
{
    int n = s->prompt.context.n;
    s->chunks = mem_alloc((size_t)max_int(s->plan.n_chunks, 1), sizeof *s->chunks);
    if (!s->chunks) return PC_ENOMEM;
    if (is_plain(s)) {
        s->chunks[0] = (struct Chunk){0, n};
        return s->req->stream ? stream_cut(s) : PC_OK;
    }
    if (s->store) {
        memcpy(s->chunks, s->store->info.chunks, sizeof *s->chunks * (size_t)s->plan.n_chunks);
        return PC_OK;
    }
    if (s->req->stream) return stream_cut(s);
    if (session_has_text(s)) {
        s->boundary = mem_alloc((size_t)max_int(n, 1), 1);
        if (!s->boundary) return PC_ENOMEM;
        boundary_classify(s->req->context, s->req->context_len, s->prompt.context_offset, n,
                          s->boundary);
        s->cut.boundary = s->boundary;
    }
    chunk_plan_make(&s->cut, s->plan.n_chunks, s->chunks);
    return PC_OK;
}

/* ==== Memory ==== */

/* Most tokens before a batch that streaming-llm has not given back: its window, and a page on either side of the cut. */
static int most_held(const struct Session *s, int total)
{
    bool flat = s->set.method == METHOD_STREAMING && s->far.window;
    return flat ? min_int(s->plan.window + 2 * PAGE_TOKENS, total) : total;
}

/* Pages of a streaming head where a full one would need so many. */
static int ring_for(const struct Session *s, int pages)
{
    return min_int(pages, heads_ring(s));
}

/* Whether a choice of pages serves more than one row. */
static bool keeps_pages(const struct Session *s)
{
    return s->select.index && s->set.select_every > 1;
}

/* One sequence: the past grows with the text, unless it slides. */
static void plain_shapes(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    int p0 = p->n_prefix, q = p->n_question, read = p0 + p->chunk_tokens,
        total = read + q + p->max_tokens, turned = s->set.method == METHOD_SELF_EXTEND;
    s->held = most_held(s, total);
    s->batch_rows = max_int(max_int(min_int(s->limits.segment_rows, p->chunk_tokens), p0), q);
    int keys = min_int(read, s->held + s->batch_rows),
        answer_keys = min_int(total, s->held + max_int(q, 1));
    s->wave_shape = (struct BatchShape){.rows = s->batch_rows,
                                        .seqs = 1,
                                        .keys = keys,
                                        .head_rows = 1,
                                        .far = s->far.window,
                                        .turned_keys = s->far.window && turned ? keys : 0};
    s->answer_shape = (struct BatchShape){.rows = s->question_rows,
                                          .seqs = 1,
                                          .keys = answer_keys,
                                          .mass_keys = needs_mass(s) ? answer_keys : 0,
                                          .head_rows = min_int(HEAD_ROWS, s->question_rows),
                                          .far = s->far.window,
                                          .turned_keys = s->far.window && turned ? answer_keys : 0,
                                          .selects = s->select.index,
                                          .keeps_pages = keeps_pages(s)};
    int pages = min_int(kv_pages(total) + 1, kv_pages(s->held) + kv_pages(s->batch_rows) + 2),
        below = s->tiered ? kv_pages(p->chunk_tokens) + 1 : 0;
    if (s->tiered) pages = kv_pages(p0) + below + kv_pages(q + p->max_tokens) + 1;
    s->n_slots = 0;
    s->n_pages = (size_t)p->heads_full * pages + (size_t)p->heads_streaming * ring_for(s, pages);
    tiers_split(s, (size_t)p->heads_full * (size_t)below, below);
    s->mass_stride = s->answer_shape.mass_keys;
}

/* On a device always the same number: what its products are to the bit may hang on it, and waves differ. */
static int scored_rows(const struct Session *s, int rows)
{
    return s->limits.own_memory ? HEAD_ROWS_DEVICE : min_int(HEAD_ROWS, rows);
}

static void wave_shapes(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    int p0 = p->n_prefix, q = p->n_question, asked = q + p->n_found, scored = max_int(asked, 1),
        rows = p0 + p->chunk_tokens + asked;
    int mass_keys = needs_mass(s) ? rows : 0;
    bool early = s->early.n > 0, rounds = p->rounds > 1;
    int keep = parts_kept(s), answer_keys = p0 + keep * s->cap + q + p->max_tokens;
    /* every kept chunk ends in a page of its own: count whole pages */
    int answer_room = PAGE_TOKENS * (kv_pages(p0) + keep * kv_pages(s->cap)) + q + p->max_tokens;
    s->batch_rows = max_int(max_int(p->wave * (p->chunk_tokens + asked), p0), q);
    s->wave_shape = (struct BatchShape){.rows = s->batch_rows,
                                        .seqs = p->wave,
                                        .keys = rounds ? rounds_keys(s) : rows,
                                        .mass_keys = s->early.n_looks || rounds ? rows : mass_keys,
                                        .head_rows = scored_rows(s, scored * p->wave)};
    s->answer_shape = (struct BatchShape){.rows = s->question_rows,
                                          .seqs = 1,
                                          .keys = answer_room,
                                          .mass_keys = needs_mass(s) ? answer_keys : 0,
                                          .head_rows = min_int(HEAD_ROWS, s->question_rows),
                                          .selects = s->select.index,
                                          .keeps_pages = keeps_pages(s),
                                          .parts = s->together};
    bool alone = s->e->team->rank == 0 && !s->together; /* takes in what the others have read */
    int held = early ? early_slots(s) : p->keep + p->wave;
    s->n_slots = min_int(held, (alone ? p->n_read : s->n_mine) + rounds_later(s));
    int before = kv_pages(p0), behind = kv_pages(q + p->max_tokens) + 1;
    size_t in_slots = (early ? early_pages(s) : (size_t)p->heads_full * (size_t)s->n_slots) *
                      (size_t)kv_pages(s->cap);
    s->n_pages = in_slots + (size_t)p->heads_full * (size_t)before +
                 (size_t)parts_heads(s) * (size_t)behind +
                 (size_t)p->heads_streaming * ((size_t)(heads_ends(s) * heads_chunk_pages(s)) +
                                               before + min_int(behind, heads_ring(s)));
    tiers_split(s, in_slots, keep * kv_pages(s->cap));
    s->mass_stride = needs_mass(s) ? max_int(mass_keys, answer_keys) : 0;
}

static size_t index_bytes(const struct Session *s)
{
    const struct Engine *e = s->e;
    return kv_index_bytes(e->be, e->dev, s->select.index, &e->model.cfg, s->n_pages + s->n_below);
}

/* Memory of the device, and that of the host beside it: one sum unless the device has its own. */
static size_t plan_bytes(const struct Session *s)
{
    const struct Engine *e = s->e;
    const struct ModelConfig *m = &e->model.cfg;
    size_t wave = e->be->scratch_bytes(e->dev, &s->wave_shape),
           answer = e->be->scratch_bytes(e->dev, &s->answer_shape);
    size_t rows = (size_t)s->batch_rows, heads = (size_t)m->n_layers * m->n_kv_heads;
    size_t kept = needs_mass(s) ? heads * ((size_t)s->cap + 1) * sizeof(int) : 0;
    size_t slot = kv_table_bytes(m, kv_pages(s->cap)) + kept;
    size_t wave_heads = (size_t)s->plan.wave * m->n_kv_heads;
    size_t keep = (size_t)s->mass_stride * wave_heads, chosen = recall_choices(s);
    size_t policy = (size_t)s->mass_stride * ((wave_heads + m->n_kv_heads) * 9 + 12);
    size_t turns = s->far.window ? sizeof(float) * (size_t)m->rope_dim *
                                       (rows + (size_t)s->answer_shape.turned_keys)
                                 : 0;
    size_t device = (wave > answer ? wave : answer) + tf_bytes(e->be, m, s->batch_rows) +
                    kv_pool_bytes(e->be, e->dev, s->n_pages) + index_bytes(s) +
                    sizeof(int) * (keep > chosen ? keep : chosen) + turns + early_rows_bytes(s);
    size_t team = (size_t)s->e->team->size;
    size_t parcel =
               s->together || team == 1 ? 0 : kv_parcel_bytes(&e->peers, e->be->page_bytes(e->dev)),
           sent = team > 1 ? (team + 1) * sizeof(double) * (size_t)s->plan.n_chunks : 0;
    *(e->peers.direct ? &device : &sent) += parcel;
    sent += sizeof(struct KvGather) * (size_t)share_through(s);
    device += parts_bytes(s, true);
    size_t host = slot * (size_t)s->n_slots + rows * 5 * sizeof(int) + policy + text_bytes(s) +
                  sent + parts_bytes(s, false) + early_bytes(s) + rounds_bytes(s) +
                  (size_t)m->vocab_size * sizeof(float);
    if (s->store || s->indexes) host += stage_bytes(s);
    struct TierBytes tiers = tiers_bytes(s);
    device += tiers.device;
    host += tiers.host + sizeof(uint32_t) * s->n_below;
    return s->limits.own_memory ? device : device + host + s->plan.made_bytes;
}

/* A wave that keeps the device busy. Stored chunks take part with the question's rows alone, and each is held whole. */
static int wave_wanted(const struct Session *s)
{
    enum { STORED = 4, STORED_ROWS = 4096 };
    int rows = s->plan.chunk_tokens + s->plan.n_question;
    if (s->store && !s->limits.own_pasts) return 1;
    if (s->set.wave != AUTO) return s->set.wave;
    if (s->store)
        return s->limits.own_memory ? max_int(STORED, STORED_ROWS / (s->plan.n_question + 1))
                                    : STORED;
    return max_int(1, s->limits.wave_rows / max_int(rows, 1));
}

/* The largest wave wanted for speed that memory allows. */
static void fit_chunks(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    int wave = wave_wanted(s);
    for (p->wave = max_int(1, min_int(min_int(wave, WAVE_MAX), s->n_mine));; p->wave--) {
        wave_shapes(s);
        if (s->early.n) early_shapes(s);
        if (s->store || s->indexes) stored_shapes(s);
        p->peak_bytes = plan_bytes(s);
        if (p->peak_bytes <= p->available_bytes || p->wave == 1 || s->set.wave != AUTO) return;
    }
}

/* The same, with all stored chunks staying on the device where they fit. */
static void fit_wave(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    if (is_plain(s)) {
        plain_shapes(s);
        p->peak_bytes = plan_bytes(s);
        return;
    }
    s->resident = stage_may_stay(s);
    fit_chunks(s);
    if (!s->resident || p->peak_bytes <= p->available_bytes) return;
    s->resident = false;
    fit_chunks(s);
}

/* Where a question's rows would need all keys packed, and there is no room for that, they are run a few at a time. */
static void plan_wave(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    int few = s->limits.page_rows;
    s->question_rows = max_int(p->n_question, 1);
    fit_wave(s);
    if (p->peak_bytes <= p->available_bytes || few == 0 || few >= s->question_rows) return;
    if (needs_mass(s) || s->far.window || s->observer) return;
    s->question_rows = few;
    fit_wave(s);
}

/* What an answer's rows read. Far keys are seen from elsewhere than their pages' index says. PC_ECONFIG where the device
 * keeps no choice. */
static int plan_select(struct Session *s)
{
    const struct Settings *set = &s->set;
    bool off = s->far.window || s->indexes;
    s->select = (struct PageSelect){.index = off ? PAGE_INDEX_OFF : set->select,
                                    .pages = set->select_pages,
                                    .mass = set->select_mass,
                                    .first = set->select_sinks,
                                    .last = set->select_recent};
    s->plan.select = s->select.index;
    s->plan.select_every = set->select_every;
    if (keeps_pages(s) && !s->limits.keeps_pages)
        return err_set(PC_ECONFIG,
                       "setting 'select_every': backend %s chooses pages for every token; give "
                       "--backend cpu, or leave out --select-every %d",
                       s->e->be->name, set->select_every);
    return tiers_plan(s);
}

/* Entries of a head in the cache that the question finds, or leaves where it compresses. */
static int kept_tokens(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    if (s->budget) return s->set.kv_cap;
    if (!is_plain(s)) return p->n_prefix + parts_kept(s) * s->cap;
    int all = p->n_prefix + p->chunk_tokens;
    return s->set.method == METHOD_STREAMING ? min_int(all, p->window) : all;
}

/* What the chunks take in a store. */
static void plan_store(struct Session *s)
{
    struct StoreInfo layout = stage_layout(s);
    size_t pages = 0;
    for (int i = 0; i < s->plan.n_chunks && !is_plain(s); i++)
        pages += store_pages(&layout, s->chunks[i].end - s->chunks[i].begin);
    s->plan.store_cap = s->set.store_cap;
    s->plan.store_bytes = pages * s->e->be->page_bytes(s->e->dev);
}

int plan_make(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    struct PlanInfo *p = &s->plan;
    int64_t n_all = stored_tokens_all(s);
    TRY(plan_defaults(&s->set, m->train_len, n_all));
    TRY(heads_plan(s, n_all));
    for (int i = 0; i < s->prompt.tail.n + s->prompt.prefix.n; i++) {
        int id = i < s->prompt.tail.n ? s->prompt.tail.ids[i]
                                      : s->prompt.prefix.ids[i - s->prompt.tail.n];
        if (id < 0 || id >= m->vocab_size)
            return err_set(PC_EFORMAT, "token id %d is outside the model's %d", id, m->vocab_size);
    }
    p->n_context = s->prompt.context.n;
    p->n_prefix = s->prompt.prefix.n;
    p->n_question = s->indexes ? question_room(s) : s->prompt.tail.n;
    p->window = s->set.window;
    p->method = s->set.method;
    p->rope_scaling = s->set.rope_scaling;
    p->read_share = 1;
    p->rounds = 1;
    p->max_tokens = s->set.max_tokens;
    snprintf(p->chat_template, sizeof p->chat_template, "%s", chat_name(s->e->chat.kind));
    TRY(is_plain(s) ? plan_plain(s) : plan_chunks(s));
    s->n_todo = p->n_read;
    s->n_mine = share_count(s);
    TRY(parts_plan(s));
    s->cap = s->set.kv_cap == CAP_OFF || is_plain(s)
                 ? stage_held(s, p->chunk_tokens)
                 : min_int(heads_share(s, s->set.kv_cap), stage_held(s, p->chunk_tokens));
    TRY(plan_budget(s));
    p->kv_cap = s->budget ? s->set.kv_cap : s->cap;
    p->model_bytes = s->e->file_bytes;
    p->made_bytes = engine_made_bytes(s->e);
    p->available_bytes = engine_available(s->e, &s->limits);
    TRY(plan_select(s));
    plan_wave(s);
    TRY(tiers_check(s));
    tiers_note(s);
    p->index_bytes = index_bytes(s);
    p->fits = p->peak_bytes <= p->available_bytes;
    int kept = kv_pages(kept_tokens(s));
    p->kv_bytes = ((size_t)p->heads_full * kept + (size_t)p->heads_streaming * ring_for(s, kept)) *
                  s->e->be->page_bytes(s->e->dev);
    TRY(heads_formula(s, 1, &p->heads_bytes));
    TRY(cut_chunks(s));
    plan_store(s);
    int longest = 0;
    for (int i = 0; i < p->n_chunks; i++)
        longest = max_int(longest, s->chunks[i].end - s->chunks[i].begin);
    p->question_pos = p->n_prefix + longest;
    if (!is_plain(s))
        p->n_positions = p->question_pos + p->n_question + max_int(p->max_tokens, p->n_found);
    return rope_plan(s);
}

int plan_check(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    if (p->fits) return PC_OK;
    if (p->made_bytes) TRY(geometry_room(&s->e->model, p->available_bytes));
    double gib = 1024.0 * 1024 * 1024;
    bool gpu = s->limits.own_memory;
    return err_set(
        PC_ENOMEM,
        "the run needs %.2f GiB of %s and may use %.2f GiB; try a smaller --kv-cap (now %d), "
        "--keep (now %d), --chunk (now %d) or --wave 1%s, or %s",
        p->peak_bytes / gib, gpu ? "GPU memory beside the weights" : "memory",
        p->available_bytes / gib, p->kv_cap, p->keep, p->chunk_tokens,
        !p->n_early        ? ""
        : *s->set.early_at ? ", fewer survivors in --early-at"
                           : ", a smaller --early-memory",
        gpu ? "raise --gpu-memory" : "raise --memory");
}

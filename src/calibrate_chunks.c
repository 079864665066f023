/* calibrate_chunks.c - see calibrate_chunks.h: the texts, and the choice of layers. */
#include "calibrate_chunks.h"

#include <string.h>

enum {
    HAY_MIN = 2048,
    ROW_CHUNKS = 64,
    TELLING_CHUNKS = 4,
    PATH_MAX_STOPS = STOPS_MAX / N_LENGTHS
};
static const int LENGTHS[N_LENGTHS] = {131072, 1048576};

/* ==== Open and close ==== */

static int samples_open(struct ChunkSamples *s, const struct ChunkStudy *st)
{
    const struct ChunkStudyOptions *o = &st->opt;
    const struct ModelConfig *m = &st->e->model.cfg;
    int room = o->texts * o->n_asks + o->rows;
    s->n_chunks = o->rows && o->n_chunks < ROW_CHUNKS ? ROW_CHUNKS : o->n_chunks;
    s->n_features = m->n_layers * m->n_kv_heads * HEAD_FEATURES + 1;
    size_t cells = (size_t)room * (size_t)s->n_chunks;
    s->feature = mem_alloc(cells * (size_t)s->n_features, sizeof *s->feature);
    s->final = mem_alloc(cells, sizeof *s->final);
    s->right = mem_alloc(cells, 1);
    s->chunks = mem_alloc((size_t)room, sizeof *s->chunks);
    return s->feature && s->final && s->right && s->chunks ? PC_OK : PC_ENOMEM;
}

int chunk_study_open(struct ChunkStudy *st, struct Engine *e, const struct ChunkStudyOptions *opt,
                     const char *text, size_t len)
{
    struct Settings set = e->settings;
    *st = (struct ChunkStudy){.e = e, .opt = *opt};
    TRY(plan_defaults(&set, e->model.cfg.train_len, INT32_MAX));
    st->chunk = set.chunk;
    st->keep = set.keep == KEEP_ALL ? 2 : set.keep;
    TRY(tokenizer_encode(e->tok, text, len, false, &st->hay));
    if (st->hay.n < HAY_MIN)
        return err_set(PC_ERANGE,
                       "the text has %d tokens, too few to hide facts in; give %d or more with -f "
                       "FILE, or no file for the built-in one",
                       st->hay.n, HAY_MIN);
    for (int h = 0; h < N_HALVES; h++) TRY(samples_open(&st->half[h], st));
    return PC_OK;
}

void chunk_study_close(struct ChunkStudy *st)
{
    for (int h = 0; h < N_HALVES; h++) {
        struct ChunkSamples *s = &st->half[h];
        if (st->rows[h]) chunk_text_free(st->rows[h]);
        mem_free(st->rows[h]);
        mem_free(s->feature);
        mem_free(s->final);
        mem_free(s->right);
        mem_free(s->chunks);
    }
    tokens_free(&st->hay);
    *st = (struct ChunkStudy){0};
}

void chunk_text_free(struct ChunkText *t)
{
    for (int i = 0; t->asks && i < t->n_asks; i++) prompt_free(&t->asks[i]);
    tokens_free(&t->ids);
    mem_free(t->asks);
    mem_free(t->chunks);
    mem_free(t->right);
    *t = (struct ChunkText){0};
}

static int text_open(struct ChunkText *t, int n_chunks, int n_asks)
{
    *t = (struct ChunkText){.n_chunks = n_chunks, .n_asks = n_asks, .stride = n_chunks};
    t->chunks = mem_alloc((size_t)n_chunks, sizeof *t->chunks);
    t->asks = mem_alloc((size_t)n_asks, sizeof *t->asks);
    t->right = mem_alloc((size_t)n_asks * (size_t)n_chunks, 1);
    return t->chunks && t->asks && t->right ? PC_OK : PC_ENOMEM;
}

/* The parts of a prompt around a text, which is given apart. */
static int make_ask(const struct Engine *e, const char *context, const char *question,
                    struct Prompt *out)
{
    const struct Settings *set = &e->settings;
    struct PromptText text = {.context = context,
                              .context_len = strlen(context),
                              .question = question,
                              .instruction = set->instruction,
                              .answer_prefix = set->answer_prefix,
                              .system = set->system,
                              .chat = &e->chat};
    return prompt_make(e->tok, &text, out);
}

/* ==== Made-up texts ==== */

/* A fact: in which chunk it stands, and its tokens. */
struct Hidden {
    int chunk;
    struct Tokens ids;
};

static uint64_t text_seed(const struct ChunkStudy *st, int half, int index)
{
    uint64_t at[2] = {(uint64_t)half, (uint64_t)index};
    return hash64(at, sizeof at, st->opt.seed);
}

static int draw(uint64_t seed, int what, int i, int n)
{
    int at[2] = {what, i};
    return (int)(hash64(at, sizeof at, seed) % (uint64_t)n);
}

static int make_fact(const struct ChunkStudy *st, uint64_t seed, int i, struct ChunkText *t,
                     struct Hidden *out)
{
    struct Str needle = {0}, question = {0};
    int status = str_append(&needle, "\n\n", 2);
    if (status == PC_OK) status = chunk_fact(seed, i, &needle, &question);
    if (status == PC_OK) status = str_append(&needle, "\n\n", 2);
    if (status == PC_OK)
        status = tokenizer_encode(st->e->tok, needle.data, needle.len, false, &out->ids);
    if (status == PC_OK) status = make_ask(st->e, "", question.data, &t->asks[i]);
    str_free(&needle);
    str_free(&question);
    return status;
}

/* n tokens of the half's part of the hay, from *at on, round and round. */
static int add_hay(const struct ChunkStudy *st, int half, int *at, int n, struct Tokens *out)
{
    int split = st->hay.n - st->hay.n / 4, begin = half == HALF_CHOOSES ? 0 : split,
        room = half == HALF_CHOOSES ? split : st->hay.n - split;
    for (int i = 0; i < n; i++, *at = (*at + 1) % room)
        TRY(tokens_push(out, st->hay.ids[begin + *at]));
    return PC_OK;
}

/* One chunk: its facts at drawn places among as much hay as fills it. */
static int fill_chunk(const struct ChunkStudy *st, int half, uint64_t seed, int c,
                      const struct Hidden *facts, int *at, struct ChunkText *t)
{
    int hay = st->chunk, last = 0, n = t->n_asks;
    t->chunks[c].begin = t->ids.n;
    for (int i = 0; i < n; i++)
        if (facts[i].chunk == c) hay -= facts[i].ids.n;
    for (int i = 0, left = hay; i < n; i++) {
        if (facts[i].chunk != c) continue;
        last = draw(seed, 1, i, left + 1);
        TRY(add_hay(st, half, at, last, &t->ids));
        for (int k = 0; k < facts[i].ids.n; k++) TRY(tokens_push(&t->ids, facts[i].ids.ids[k]));
        left -= last;
        hay = left;
    }
    TRY(add_hay(st, half, at, hay, &t->ids));
    t->chunks[c].end = t->ids.n;
    return PC_OK;
}

/* Fact i's chunk: one by chance, or the next one with room. */
static int place_fact(const struct ChunkStudy *st, uint64_t seed, int i, struct Hidden *facts,
                      struct ChunkText *t)
{
    int n = t->n_chunks, at = draw(seed, 0, i, n);
    for (int k = 0; k < n; k++) {
        int c = (at + k) % n, used = facts[i].ids.n;
        for (int other = 0; other < i; other++)
            if (facts[other].chunk == c) used += facts[other].ids.n;
        if (used > st->chunk) continue;
        facts[i].chunk = c;
        t->right[(size_t)i * (size_t)n + (size_t)c] = 1;
        return PC_OK;
    }
    return err_set(PC_ERANGE,
                   "%d chunks of %d tokens have no room for the facts hidden in them; give a "
                   "longer --chunk or more --tokens",
                   n, st->chunk);
}

static int make_text(const struct ChunkStudy *st, int half, int index, struct Hidden *facts,
                     struct ChunkText *t)
{
    uint64_t seed = text_seed(st, half, index);
    int at = draw(seed, 2, 0, st->hay.n / 4);
    for (int i = 0; i < t->n_asks; i++) {
        TRY(make_fact(st, seed, i, t, &facts[i]));
        TRY(place_fact(st, seed, i, facts, t));
    }
    for (int c = 0; c < t->n_chunks; c++) TRY(fill_chunk(st, half, seed, c, facts, &at, t));
    return PC_OK;
}

static int read_text(struct ChunkStudy *st, int half, int index)
{
    struct Hidden facts[CHUNK_FACTS_MAX] = {0};
    struct ChunkText t;
    int status = text_open(&t, st->opt.n_chunks, st->opt.n_asks);
    if (status == PC_OK) status = make_text(st, half, index, facts, &t);
    if (status == PC_OK) status = chunk_text_read(st, &t, &st->half[half]);
    st->n_made[half] = st->half[half].n;
    for (int i = 0; i < CHUNK_FACTS_MAX; i++) tokens_free(&facts[i].ids);
    chunk_text_free(&t);
    return status;
}

int chunk_study_texts(struct ChunkStudy *st)
{
    int n = N_HALVES * st->opt.texts;
    for (int i = 0; i < n; i++) {
        TRY(read_text(st, i % N_HALVES, i / N_HALVES));
        if (st->opt.on_progress) st->opt.on_progress(st->opt.user, "texts", (i + 1.0) / n);
    }
    return PC_OK;
}

/* ==== A user's rows ==== */

static bool answer_in(const char *text, size_t begin, size_t end, const char *answer)
{
    size_t len = strlen(answer);
    for (size_t at = begin; len && at + len <= end; at++)
        if (strncasecmp(text + at, answer, len) == 0) return true;
    return false;
}

/* Chunk c of n equal ones. */
static struct Chunk part(const struct Tokens *ids, int c, int n)
{
    return (struct Chunk){(int)((int64_t)ids->n * c / n), (int)((int64_t)ids->n * (c + 1) / n)};
}

/* Which of the row's n chunks hold the answer; returns how many. */
static int find_answer(const struct ChunkRow *row, const struct Prompt *p, int n, uint8_t *right)
{
    int found = 0;
    for (int c = 0; c < n; c++) {
        struct Chunk at = part(&p->context, c, n);
        right[c] = answer_in(row->context, p->context_offset[at.begin], p->context_offset[at.end],
                             row->answer);
        found += right[c];
    }
    return found;
}

/* An empty text of rows. */
static int rows_open(struct ChunkText **out)
{
    *out = mem_alloc(1, sizeof **out);
    if (!*out) return PC_ENOMEM;
    TRY(text_open(*out, ROW_CHUNKS, CHUNK_FACTS_MAX));
    (*out)->n_chunks = (*out)->n_asks = 0;
    (*out)->real = true;
    return PC_OK;
}

/* Reads the rows that wait, if any do. */
static int read_waiting(struct ChunkStudy *st, int half)
{
    struct ChunkText *t = st->rows[half];
    int status = t && t->n_asks ? chunk_text_read(st, t, &st->half[half]) : PC_OK;
    if (t) chunk_text_free(t);
    mem_free(t);
    st->rows[half] = NULL;
    return status;
}

/* Puts the row's n chunks behind those that wait; its answer is looked for in its own alone. The prompt passes to t. */
static int add_row(struct ChunkText *t, struct Prompt *p, const uint8_t *right, int n)
{
    uint8_t *own = t->right + (size_t)t->n_asks * (size_t)t->stride + t->n_chunks;
    int before = t->ids.n;
    for (int i = 0; i < p->context.n; i++) TRY(tokens_push(&t->ids, p->context.ids[i]));
    for (int c = 0; c < n; c++) {
        struct Chunk at = part(&p->context, c, n);
        t->chunks[t->n_chunks++] = (struct Chunk){before + at.begin, before + at.end};
    }
    memcpy(own, right, (size_t)n);
    t->asks[t->n_asks++] = *p;
    *p = (struct Prompt){0};
    return PC_OK;
}

static int take_row(struct ChunkStudy *st, int half, struct Prompt *p, const uint8_t *right, int n)
{
    struct ChunkText *t = st->rows[half];
    if (t && (t->n_chunks + n > ROW_CHUNKS || t->n_asks == CHUNK_FACTS_MAX))
        TRY(read_waiting(st, half));
    if (!st->rows[half]) TRY(rows_open(&st->rows[half]));
    return add_row(st->rows[half], p, right, n);
}

int chunk_study_row(struct ChunkStudy *st, int half, const struct ChunkRow *row, bool *taken)
{
    struct Prompt prompt = {0};
    uint8_t right[ROW_CHUNKS];
    *taken = false;
    int status = make_ask(st->e, row->context, row->question, &prompt);
    int n = (prompt.context.n + st->chunk - 1) / st->chunk;
    if (status == PC_OK && n > 1 && n <= ROW_CHUNKS) {
        int found = find_answer(row, &prompt, n, right);
        *taken = found > 0 && 2 * found <= n;
    }
    if (*taken) status = take_row(st, half, &prompt, right, n);
    prompt_free(&prompt);
    return status;
}

int chunk_study_rows(struct ChunkStudy *st)
{
    for (int h = 0; h < N_HALVES; h++) TRY(read_waiting(st, h));
    return PC_OK;
}

/* ==== Choice ==== */

/* Whether a decision could lose the sample's right chunk: all layers keep it, among as many chunks as tell apart. */
static bool can_be_lost(const struct ChunkStudy *st, const struct ChunkSamples *s, int i)
{
    int ahead = finals_ahead(s, i);
    return ahead >= 0 && ahead < st->keep && s->chunks[i] >= TELLING_CHUNKS;
}

/* Adds shares of the other chunks that are ahead. What one sample of few chunks says is drawn towards what all say: a chunk's
 * worth of the mean goes to each. */
static void set_shares(const struct ChunkStudy *st, const struct ChunkSamples *s, const int *ahead,
                       struct ChunkStop *stop)
{
    double hits = 0.5, draws = 1;
    for (int i = 0; i < s->n; i++)
        if (can_be_lost(st, s, i)) hits += ahead[i], draws += s->chunks[i] - 1;
    for (int i = 0; i < s->n && stop->n_ahead < STOP_SAMPLES_MAX; i++)
        if (can_be_lost(st, s, i))
            stop->ahead[stop->n_ahead++] = (float)((ahead[i] + hits / draws) / s->chunks[i]);
}

static void set_heads(const struct ChunkStudy *st, const struct ChunkScorer *scorer,
                      struct ChunkStop *stop)
{
    int heads = st->e->model.cfg.n_kv_heads;
    for (int i = 0; i < scorer->n; i++) {
        int f = scorer->feature[i], head = f / HEAD_FEATURES;
        if (f == words_feature(&st->half[HALF_CHOOSES]))
            stop->words = scorer->weight[i];
        else
            stop->heads[stop->n_heads++] =
                (struct StopHead){head / heads, head % heads, (enum EarlyMeasure)(f % N_MEASURES),
                                  feature_rows(f % HEAD_FEATURES / N_MEASURES), scorer->weight[i]};
    }
}

/* How many of `before` chunks survive a decision. */
static int count_survivors(const struct ChunkStudy *st, const struct ChunkStop *stop, int before)
{
    return early_survivors(stop->ahead, stop->n_ahead, before, (double)st->e->settings.early_risk,
                           2 * st->keep);
}

/* Most that are held of a chunk as long as those here. */
static int most_survivors(const struct ChunkStudy *st)
{
    size_t rows = (size_t)st->chunk + EARLY_ROWS;
    return early_most(sizeof(float) * rows * (size_t)st->e->model.cfg.dim,
                      st->e->settings.early_memory);
}

/* Survivors and share where this is the only decision. */
static void rate(const struct ChunkStudy *st, const struct ChunkReport *r, struct ChunkCandidate *c)
{
    double depth = (double)c->stop.layer / st->e->model.cfg.n_layers;
    for (int i = 0; i < N_LENGTHS; i++) {
        int n = count_survivors(st, &c->stop, r->n_chunks[i]);
        c->survivors[i] = n;
        c->share[i] = n > most_survivors(st) ? 1 : depth + (1 - depth) * n / r->n_chunks[i];
    }
}

static const struct ChunkSamples *reporting(const struct ChunkStudy *st)
{
    return &st->half[st->half[HALF_REPORTS].n ? HALF_REPORTS : HALF_CHOOSES];
}

/* Chooses heads before the layer by one half; both say how far ahead others are, the other one also what is reported. */
static int try_layer(struct ChunkStudy *st, const struct ChunkReport *r, int layer,
                     struct ChunkCandidate *c)
{
    const struct ChunkSamples *all = &st->half[HALF_CHOOSES], *told = reporting(st);
    int feature[PROFILE_HEADS];
    float weight[PROFILE_HEADS];
    struct ChunkScorer scorer = {feature, weight, 0, PROFILE_HEADS};
    uint8_t *allowed = mem_alloc((size_t)all->n_features, 1);
    int *ahead = mem_alloc((size_t)all->n, sizeof *ahead);
    c->ahead = mem_alloc((size_t)told->n, sizeof *c->ahead);
    c->winner = mem_alloc((size_t)told->n, sizeof *c->winner);
    int status = allowed && ahead && c->ahead && c->winner ? PC_OK : PC_ENOMEM;
    c->stop.layer = layer;
    if (status == PC_OK) {
        memset(allowed, 1, (size_t)layer * (size_t)st->e->model.cfg.n_kv_heads * HEAD_FEATURES);
        allowed[words_feature(all)] = 1;
        status = chunk_choose(all, allowed, &scorer);
    }
    if (status == PC_OK) {
        for (int i = 0; i < all->n; i++) ahead[i] = chunks_ahead(all, i, &scorer);
        set_heads(st, &scorer, &c->stop);
        set_shares(st, all, ahead, &c->stop);
        for (int i = 0; i < told->n; i++) {
            c->ahead[i] = chunks_ahead(told, i, &scorer);
            c->winner[i] = winner_ahead(told, i, &scorer);
        }
        if (told != all) set_shares(st, told, c->ahead, &c->stop);
        rate(st, r, c);
    }
    mem_free(allowed);
    mem_free(ahead);
    return status;
}

/* Some decisions one after another, and what they leave to be read. */
struct Path {
    int stop[PATH_MAX_STOPS], n; /* of the report's list, rising */
    int layer, before;           /* read so far, by so many chunks that go on */
    double work;                 /* chunks times layers, so far */
};

/* A further decision is to be worth its while, since each can lose the chunk. */
static double cost(const struct ChunkStudy *st, const struct Path *p)
{
    return (p->work + (double)p->before * (st->e->model.cfg.n_layers - p->layer)) *
           (1 + 0.01 * p->n);
}

/* The cheapest of the path and all that go on from it. */
static void search(const struct ChunkStudy *st, const struct ChunkReport *r, const struct Path *p,
                   struct Path *best)
{
    if (cost(st, p) < cost(st, best)) *best = *p;
    if (p->n == PATH_MAX_STOPS) return;
    for (int i = p->n ? p->stop[p->n - 1] + 1 : 0; i < r->n; i++) {
        const struct ChunkStop *stop = &r->list[i].stop;
        struct Path next = *p;
        next.stop[next.n++] = i;
        next.work += (double)p->before * (stop->layer - p->layer);
        next.layer = stop->layer;
        next.before = count_survivors(st, stop, p->before);
        if (next.before < p->before && next.before <= most_survivors(st))
            search(st, r, &next, best);
    }
}

/* For each length the decisions that save most; where none does, the one after which fewest could go on. */
static void choose_layers(const struct ChunkStudy *st, struct ChunkReport *r)
{
    int chosen = 0, least = 0;
    for (int i = 0; i < N_LENGTHS; i++) {
        struct Path all = {.before = r->n_chunks[i]}, best = all;
        search(st, r, &all, &best);
        for (int k = 0; k < best.n; k++) r->list[best.stop[k]].chosen = true;
        chosen += best.n;
        r->share[i] =
            cost(st, &best) / (1 + 0.01 * best.n) / r->n_chunks[i] / st->e->model.cfg.n_layers;
    }
    for (int i = 1; i < r->n; i++)
        if (r->list[i].survivors[0] < r->list[least].survivors[0]) least = i;
    if (!chosen) r->list[least].chosen = true;
}

static int try_layers(struct ChunkStudy *st, struct ChunkReport *r)
{
    int layers = st->e->model.cfg.n_layers;
    for (int i = 1; i <= CANDIDATES_MAX; i++) {
        int layer = (i * layers + 6) / 12;
        if (layer < 1 || layer >= layers || (r->n && r->list[r->n - 1].stop.layer == layer))
            continue;
        TRY(try_layer(st, r, layer, &r->list[r->n++]));
        if (st->opt.on_progress)
            st->opt.on_progress(st->opt.user, "layers", (double)i / CANDIDATES_MAX);
    }
    return PC_OK;
}

/* What the final score makes of the samples, and of rows words alone. */
static void note_ends(const struct ChunkStudy *st, struct ChunkReport *r)
{
    const struct ChunkSamples *s = reporting(st);
    int feature = words_feature(s), made = st->n_made[s - st->half];
    float one = 1;
    const struct ChunkScorer words = {&feature, &one, 1, 1};
    for (int i = 0; i < s->n; i++) {
        r->finals[i] = finals_ahead(s, i);
        r->words[i] = i < made ? -1 : chunks_ahead(s, i, &words);
    }
}

/* Rows of real questions whose right chunk would be kept, by the final score and so many nats of heads. */
static int rows_kept(const struct ChunkStudy *st, const struct ChunkSamples *s,
                     const struct ChunkScorer *scorer, double nats)
{
    int n = 0;
    for (int i = st->n_made[s - st->half]; i < s->n; i++) {
        int ahead = blended_ahead(s, i, scorer, nats);
        n += ahead >= 0 && ahead < st->keep;
    }
    return n;
}

/* The heads of all layers whose attention counts beside the final score, and how much, by the half that chooses. */
static int choose_last(const struct ChunkStudy *st, struct ChunkProfile *p, struct ChunkReport *r)
{
    const struct ChunkSamples *all = &st->half[HALF_CHOOSES], *told = reporting(st);
    int feature[PROFILE_HEADS];
    float weight[PROFILE_HEADS];
    struct ChunkScorer scorer = {feature, weight, 0, PROFILE_HEADS};
    uint8_t *allowed = mem_alloc((size_t)all->n_features, 1);
    if (!allowed) return PC_ENOMEM;
    memset(allowed, 1, (size_t)words_feature(all));
    int status = chunk_choose(all, allowed, &scorer);
    mem_free(allowed);
    TRY(status);
    p->nats = (float)chunk_blend(all, &scorer);
    /* made-up facts are many, and easier for heads than what real questions ask for: these count apart */
    if (rows_kept(st, all, &scorer, (double)p->nats) < rows_kept(st, all, &scorer, 0)) p->nats = 0;
    p->last.layer = st->e->model.cfg.n_layers;
    set_heads(st, &scorer, &p->last);
    for (int i = 0; i < told->n; i++)
        r->blended[i] = blended_ahead(told, i, &scorer, (double)p->nats);
    return PC_OK;
}

int chunk_study_choose(struct ChunkStudy *st, struct ChunkProfile *profile,
                       struct ChunkReport *report)
{
    const struct ChunkSamples *told = reporting(st);
    const struct ModelConfig *m = &st->e->model.cfg;
    *report = (struct ChunkReport){.n_samples = told->n, .n_made = st->n_made[told - st->half]};
    for (int i = 0; i < N_LENGTHS; i++)
        report->n_chunks[i] = LENGTHS[i] / st->chunk < 4 ? 4 : LENGTHS[i] / st->chunk;
    report->finals = mem_alloc((size_t)told->n, sizeof *report->finals);
    report->words = mem_alloc((size_t)told->n, sizeof *report->words);
    report->blended = mem_alloc((size_t)told->n, sizeof *report->blended);
    if (!report->finals || !report->words || !report->blended) return PC_ENOMEM;
    note_ends(st, report);
    TRY(try_layers(st, report));
    choose_layers(st, report);
    if (report->list[0].stop.n_ahead == 0)
        return err_set(PC_ERANGE, "this model finds none of the facts even with all layers: there "
                                  "is nothing that chunks could be told apart by");
    *profile = (struct ChunkProfile){
        .model_hash = st->e->model.hash, .n_layers = m->n_layers, .n_kv_heads = m->n_kv_heads};
    for (int i = 0; i < report->n; i++) {
        const struct ChunkCandidate *c = &report->list[i];
        if (c->chosen) profile->stops[profile->n_stops++] = c->stop;
    }
    return choose_last(st, profile, report);
}

void chunk_report_free(struct ChunkReport *r)
{
    for (int i = 0; i < r->n; i++) {
        mem_free(r->list[i].ahead);
        mem_free(r->list[i].winner);
    }
    mem_free(r->finals);
    mem_free(r->words);
    mem_free(r->blended);
    *r = (struct ChunkReport){0};
}

/* session_early.c - chunks that leave before the last layer (method.md 8.2, 9.3 item 1): successive halving.
 *
 * All chunks are read by the first layers, in waves as elsewhere. Then each has a score, made of the attention that the
 * question's rows pay to its tokens in heads that the model's profile names, and only the best go on: the survivors, in
 * waves of their own, from the layer where they stopped. What a chunk needs for that is its rows of the residual stream,
 * which are put aside, and its pages, which it has anyway. A queue of the best so far runs along with the first waves, so
 * that a loser's pages and rows are free at once: memory is (survivors + wave) chunks, however long the text is.
 *
 * Chunks of a store were read by all layers. There the question's rows behind each stop early, and further layers of losers
 * are not loaded.
 *
 * Where chunk_score is attention, heads of all layers count once more in the end, whether chunks leave early or not.
 *
 * Heads of the first layers find what the question names. Where the answer's chunk puts it in other words, or another fact
 * leads to it, they often miss, while it still shares words with the question: so at a profile's decisions the chunks
 * that share most words stay in any case.
 *
 * A score depends on its chunk alone, so the survivors depend neither on the order of chunks nor on waves. Of several ranks
 * each has the best of its own; then they tell each other all scores, and go on with the best of all.
 */
#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ==== Decisions ==== */

/* One "8:12" or "50%:6" of early_at, which commas or plus signs part; *at moves behind it. */
static int parse_stop(const char **at, int n_layers, int *layer, int *survivors)
{
    char *end;
    double number = strtod(*at, &end);
    bool share = end != *at && *end == '%';
    const char *colon = end + share;
    if (share) number = floor(number / 100 * n_layers + 0.5);
    if (end == *at || *colon != ':' || !(number >= 1 && number < n_layers) ||
        number != floor(number))
        return PC_ECONFIG;
    *layer = (int)number;
    long n = strtol(colon + 1, &end, 10);
    if (end == colon + 1 || n < 1 || n > 1 << 24 || (*end && (!strchr(",+", *end) || !end[1])))
        return PC_ECONFIG;
    *survivors = (int)n;
    *at = *end ? end + 1 : end;
    return PC_OK;
}

static int bad_stops(const struct Session *s)
{
    return err_set(PC_ECONFIG,
                   "setting 'early_at': '%.64s' is no list of up to %d decisions LAYERS:SURVIVORS "
                   "with rising layers, 1 to %d or a share of them, as 25%%:12,50%%:6",
                   s->set.early_at, STOPS_MAX, s->e->model.cfg.n_layers - 1);
}

/* All KV heads of the layer before the decision, where nothing is known of the model. */
static void plain_heads(const struct ModelConfig *m, struct ChunkStop *stop)
{
    stop->n_heads = min_int(m->n_kv_heads, STOP_HEADS_MAX);
    for (int h = 0; h < stop->n_heads; h++)
        stop->heads[h] = (struct StopHead){stop->layer - 1, h, MEASURE_SUM, EARLY_ROWS, 1};
}

/* The heads of the profile's last decision up to this layer. */
static void borrow_heads(const struct Session *s, struct ChunkStop *stop)
{
    const struct ChunkProfile *p = &s->e->chunks;
    const struct ChunkStop *from = NULL;
    for (int i = 0; i < p->n_stops; i++)
        if (p->stops[i].layer <= stop->layer && (p->stops[i].n_heads || session_has_text(s)))
            from = &p->stops[i];
    plain_heads(&s->e->model.cfg, stop);
    if (!from) return;
    int layer = stop->layer;
    *stop = *from;
    stop->layer = layer;
    if (!session_has_text(s)) stop->words = 0;
}

static void decide(struct Session *s, const struct ChunkStop *stop, int survivors)
{
    struct PlanInfo *p = &s->plan;
    struct EarlyRun *e = &s->early;
    int before = e->n ? p->early[e->n - 1].survivors : p->n_read, most = before;
    if (survivors < p->keep) survivors = p->keep;
    if (survivors > most) survivors = most;
    p->early[e->n] = (struct EarlyDecision){
        .layer = stop->layer,
        .n_before = before,
        .survivors = survivors,
        .risk = stop->n_ahead ? (float)early_risk(stop->ahead, stop->n_ahead, before,
                                                  survivors - p->early_safe)
                              : NAN};
    e->stop[e->n++] = *stop;
}

static int given_stops(struct Session *s)
{
    const char *at = s->set.early_at;
    while (*at) {
        struct ChunkStop stop = {0};
        int survivors, last = s->early.n ? s->early.stop[s->early.n - 1].layer : 0;
        if (s->early.n == STOPS_MAX ||
            parse_stop(&at, s->e->model.cfg.n_layers, &stop.layer, &survivors) < 0 ||
            stop.layer <= last)
            return bad_stops(s);
        borrow_heads(s, &stop);
        decide(s, &stop, survivors);
    }
    return PC_OK;
}

/* What is put aside for a survivor. */
static size_t chunk_floats(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    int text = s->store ? 0 : p->chunk_tokens;
    return (size_t)(text + p->n_question + p->n_found) * (size_t)s->e->model.cfg.dim;
}

/* Chunks that words keep in any case: some of all there are, and few of those that a prefilter left. */
static int safe_by_words(const struct Session *s)
{
    enum { OF_ALL = 32, OF_READ = 8 };
    const struct PlanInfo *p = &s->plan;
    return session_has_text(s) ? p->keep + min_int(p->n_chunks / OF_ALL, p->n_read / OF_READ) : 0;
}

/* Of the profile, those at which anything would leave; what cannot keep to the risk lets nothing go. */
static void profile_stops(struct Session *s)
{
    int safe = s->plan.early_safe = safe_by_words(s);
    const struct ChunkProfile *p = &s->e->chunks;
    size_t rows = sizeof(float) * chunk_floats(s);
    int most = early_most(rows, s->set.early_memory);
    for (int i = 0; i < p->n_stops; i++) {
        const struct ChunkStop *stop = &p->stops[i];
        int before = s->early.n ? s->plan.early[s->early.n - 1].survivors : s->plan.n_read;
        int n = early_survivors(stop->ahead, stop->n_ahead, before, (double)s->set.early_risk,
                                2 * s->plan.keep) +
                safe;
        bool fits = n <= most || n <= 2 * s->plan.keep + safe;
        if (n < before && fits) decide(s, stop, n);
        if (n < before && !fits && !s->plan.early_wants) s->plan.early_wants = rows * (size_t)n;
    }
}

/* Chunks times layers that are read of n chunks. */
static double work_of(const struct Session *s, int n)
{
    const struct PlanInfo *p = &s->plan;
    double sum = 0;
    int from = 0;
    for (int i = 0; i < s->early.n; i++) {
        sum += (double)n * (p->early[i].layer - from);
        from = p->early[i].layer;
        n = min_int(n, p->early[i].survivors);
    }
    return sum + (double)n * (s->e->model.cfg.n_layers - from);
}

/* The same of a run, of all its chunks and layers. What a store holds is not read again in further rounds. */
static double read_share(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    double sum = work_of(s, p->n_read);
    if (!s->store && !ranks_ahead(&s->set)) sum *= p->rounds;
    return p->n_chunks ? sum / ((double)p->n_chunks * s->e->model.cfg.n_layers) : 1;
}

/* Why the profile's own decisions cannot be made here; NULL: they can. */
static const char *unable(const struct Session *s)
{
    const struct ChunkProfile *p = &s->e->chunks;
    if (!p->n_stops)
        return "it has no profile; `pcomp calibrate chunks` makes one, for "
               "--chunk-profile FILE";
    for (int i = 0; i < p->n_stops; i++)
        if (p->stops[i].words > 0 && !session_has_text(s))
            return "its profile compares words, but only token ids of the text are known here; "
                   "give decisions with --early-at";
    return NULL;
}

/* Whether the run is one whose chunks could leave early. PC_ECONFIG where early is asked for by name. */
static int applies(const struct Session *s, bool *out)
{
    const struct Settings *set = &s->set;
    *out = false;
    if (set->early == EARLY_OFF || s->observer || ranks_ahead(set)) return PC_OK;
    const char *why = *set->early_at ? NULL : unable(s);
    if (why && set->early == EARLY_AUTO) return PC_OK;
    if (why) return err_set(PC_ECONFIG, "setting 'early': %s: %s", s->e->model.cfg.name, why);
    *out = s->plan.keep < s->plan.n_read;
    return PC_OK;
}

/* The heads that count in the end come behind those of the decisions. */
static int last_heads(struct Session *s)
{
    const struct ChunkProfile *p = &s->e->chunks;
    if (!p->n_stops)
        return err_set(PC_ECONFIG,
                       "setting 'chunk_score': %s has no profile to name heads; `pcomp calibrate "
                       "chunks` makes one, for --chunk-profile FILE",
                       s->e->model.cfg.name);
    if (p->nats > 0) s->early.stop[s->early.n_looks++] = p->last;
    return PC_OK;
}

/* Nothing is decided before all chunks are known, but what decisions may ask for is taken down. */
static void look_only(struct Session *s)
{
    struct EarlyRun *e = &s->early;
    const struct ChunkProfile *p = &s->e->chunks;
    bool given = *s->set.early_at;
    for (int i = 0; i < p->n_stops && !given; i++) e->stop[i] = p->stops[i];
    e->n_looks = given ? e->n : p->n_stops;
    e->n = 0;
}

int early_plan(struct Session *s)
{
    bool wanted, attends = s->set.chunk_score == SCORE_ATTENTION;
    TRY(applies(s, &wanted));
    if (wanted || attends) {
        s->early.stop = mem_alloc(STOPS_MAX + 1, sizeof *s->early.stop);
        if (!s->early.stop) return PC_ENOMEM;
    }
    if (wanted && *s->set.early_at) TRY(given_stops(s));
    if (wanted && !*s->set.early_at && !s->open_end) profile_stops(s);
    s->early.n_looks = s->early.n;
    if (wanted && s->open_end) look_only(s);
    if (attends) TRY(last_heads(s));
    s->plan.n_early = s->early.n;
    s->plan.read_share = read_share(s);
    return PC_OK;
}

/* ==== Memory ==== */

int early_slots(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    return p->early[0].survivors + p->wave + rounds_later(s);
}

/* Full heads of the layers before `layer`. */
static size_t full_heads(const struct Session *s, int layer)
{
    size_t n = 0;
    for (int l = 0; l < layer; l++)
        for (int h = 0; h < s->e->model.cfg.n_kv_heads; h++) n += !heads_stream(s, l, h);
    return n;
}

/* While chunks pass from one decision to the next, all that came so far hold the layers before, and those that
 * have passed, with the wave at hand, those up to the next one too. */
size_t early_pages(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    size_t most =
        (size_t)p->keep * full_heads(s, s->e->model.cfg.n_layers); /* those of other ranks */
    int before = 0, from = 0;
    for (int i = 0; i <= s->early.n; i++) {
        bool last = i == s->early.n;
        int to = last ? s->e->model.cfg.n_layers : p->early[i].layer,
            after = (last ? p->keep : p->early[i].survivors) + p->wave;
        if (before && after > before) after = before;
        size_t low = full_heads(s, from), high = full_heads(s, to),
               pages = (size_t)before * low + (size_t)after * (before ? high - low : high);
        if (pages > most) most = pages;
        before = last ? 0 : p->early[i].survivors;
        from = to;
    }
    return most + (size_t)rounds_later(s) * full_heads(s, s->e->model.cfg.n_layers);
}

void early_shapes(struct Session *s)
{
    s->early.n_held = min_int(s->plan.early[0].survivors, s->n_mine);
}

size_t early_rows_bytes(const struct Session *s)
{
    return s->early.n ? sizeof(float) * chunk_floats(s) * (size_t)s->early.n_held : 0;
}

static size_t mass_floats(const struct Session *s)
{
    return (size_t)s->plan.wave * (size_t)s->e->model.cfg.n_kv_heads *
           (size_t)s->wave_shape.mass_keys;
}

size_t early_bytes(const struct Session *s)
{
    const struct EarlyRun *e = &s->early;
    size_t chunks = (size_t)s->plan.n_chunks, queues = 0;
    if (!e->n_looks) return 0;
    for (int i = 0; i < e->n; i++)
        queues += (size_t)s->plan.early[i].survivors * sizeof(struct ChunkEntry);
    return sizeof(float) * mass_floats(s) + sizeof *e->stop * (STOPS_MAX + 1) + queues +
           chunks * ((size_t)(e->n_looks + 1) * sizeof(double) + sizeof(int)) +
           sizeof *e->holds * (size_t)e->n_held;
}

static int open_queues(struct Session *s)
{
    for (int i = 0; i < s->early.n; i++)
        TRY(chunk_queue_open(&s->early.queue[i], s->plan.early[i].survivors, s->plan.n_chunks));
    return PC_OK;
}

int early_open(struct Session *s)
{
    struct EarlyRun *e = &s->early;
    size_t chunks = (size_t)s->plan.n_chunks;
    if (!e->n_looks) return PC_OK;
    TRY(open_queues(s));
    e->score = mem_alloc((size_t)e->n_looks * chunks, sizeof *e->score);
    e->sorted = mem_alloc(chunks, sizeof *e->sorted);
    e->list = mem_alloc(chunks, sizeof *e->list);
    e->mass = mem_alloc(mass_floats(s), sizeof *e->mass);
    e->holds = mem_alloc((size_t)e->n_held, sizeof *e->holds);
    if (!e->score || !e->sorted || !e->list || !e->mass || !e->holds) return PC_ENOMEM;
    for (int i = 0; i < e->n_held; i++) e->holds[i] = -1;
    if (!e->n_held) return PC_OK;
    e->rows = s->e->be->alloc(s->e->dev, early_rows_bytes(s));
    return e->rows ? PC_OK : PC_ENOMEM;
}

void early_close(struct Session *s)
{
    struct EarlyRun *e = &s->early;
    if (e->rows) s->e->be->release(s->e->dev, e->rows);
    for (int i = 0; i < STOPS_MAX; i++) chunk_queue_close(&e->queue[i]);
    void *blocks[] = {e->stop, e->score, e->sorted, e->list, e->mass, e->holds};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
}

/* ==== Scores ==== */

bool early_words(const struct Session *s)
{
    for (int d = 0; d < s->early.n; d++)
        if (s->early.stop[d].words > 0) return true;
    return s->early.n && s->plan.early_safe > 0;
}

double early_last(const struct Session *s, int chunk)
{
    const struct EarlyRun *e = &s->early;
    if (e->n_looks == e->n) return 0;
    return (double)s->e->chunks.nats * early_row(s, e->n)[chunk];
}

static int by_size_down(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

double *early_row(const struct Session *s, int look)
{
    return s->early.score + (size_t)look * (size_t)s->plan.n_chunks;
}

/* The share of words that keeps a chunk in any case. */
static void find_safe(struct Session *s)
{
    struct EarlyRun *e = &s->early;
    int n = s->plan.n_chunks, safe = min_int(s->plan.early_safe, n);
    e->safe_share = INFINITY;
    if (safe == 0) return;
    memcpy(e->sorted, s->shared, sizeof *e->sorted * (size_t)n);
    qsort(e->sorted, (size_t)n, sizeof *e->sorted, by_size_down);
    e->safe_share = e->sorted[safe - 1];
}

void early_begin(struct Session *s)
{
    struct EarlyRun *e = &s->early;
    size_t n = (size_t)s->plan.n_chunks;
    if (!e->n_looks) return;
    memset(e->score, 0, sizeof *e->score * (size_t)e->n_looks * n);
    for (int d = 0; d < e->n_looks; d++) pipe_looks(s, &e->stop[d], early_row(s, d));
    find_safe(s);
}

double early_score(const struct Session *s, int d, int chunk)
{
    const double ahead = 1e6; /* of any sum of logs of attention: chunks that share most words */
    double score = early_row(s, d)[chunk], words = (double)s->early.stop[d].words;
    if (words > 0) score += words * s->shared[chunk];
    bool safe = s->early.safe_share < INFINITY && s->shared[chunk] > 0 &&
                s->shared[chunk] >= s->early.safe_share;
    return safe ? score + ahead : score;
}

/* The next smaller number of rows than `below` that some decision looks at in this layer; 0: none. */
static int rows_looked_at(const struct EarlyRun *e, int layer, int below)
{
    int rows = 0;
    for (int d = 0; d < e->n_looks; d++)
        for (int i = 0; i < e->stop[d].n_heads; i++) {
            const struct StopHead *h = &e->stop[d].heads[i];
            if (h->layer == layer && h->rows < below && h->rows > rows) rows = h->rows;
        }
    return rows;
}

/* Tokens of the wave's chunk i that a head has behind the prefix: of a store, what was kept. */
static int tokens_there(const struct Session *s, const struct Wave *w, int i, int head)
{
    if (!s->store) return wave_len(s, w, i);
    return s->staged[i].n_tokens[head] - s->prefix.n_tokens[head];
}

/* What one head adds to the scores of the wave's chunks. */
static void add_head(struct Session *s, const struct Wave *w, const struct StopHead *h, int rows,
                     double *score)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int group = m->n_heads / m->n_kv_heads, head = h->layer * m->n_kv_heads + h->head;
    size_t stride = (size_t)s->wave_shape.mass_keys;
    for (int i = 0; i < w->n; i++) {
        const float *mass = s->early.mass + (size_t)(i * m->n_kv_heads + h->head) * stride +
                            s->prefix.n_tokens[head];
        int n = tokens_there(s, w, i, head);
        score[w->chunk[i]] += (double)h->weight * early_measure(h->measure, mass, n, rows * group);
    }
}

int early_look(struct Session *s, const struct Wave *w, const struct AttnArgs *args)
{
    struct EarlyRun *e = &s->early;
    for (int n = EARLY_ROWS + 1; (n = rows_looked_at(e, args->layer, n)) > 0;) {
        int rows = min_int(n, s->prompt.tail.n);
        TRY(s->tf.be->attn_mass(s->tf.dev, args, rows, e->mass, s->wave_shape.mass_keys));
        for (int d = 0; d < e->n_looks; d++)
            for (int i = 0; i < e->stop[d].n_heads; i++)
                if (e->stop[d].heads[i].layer == args->layer && e->stop[d].heads[i].rows == n)
                    add_head(s, w, &e->stop[d].heads[i], rows, early_row(s, d));
    }
    return PC_OK;
}

/* ==== Rows put aside ==== */

static int held_at(const struct EarlyRun *e, int chunk)
{
    for (int i = 0; i < e->n_held; i++)
        if (e->holds[i] == chunk) return i;
    return -1;
}

/* A chunk's rows from the batch to their place, or back. */
static int move_rows(struct Session *s, const struct Wave *w, int i, bool back)
{
    struct EarlyRun *e = &s->early;
    size_t dim = (size_t)s->e->model.cfg.dim,
           n = (size_t)(s->seq_begin[i + 1] - s->seq_begin[i]) * dim;
    int at = held_at(e, w->chunk[i]);
    if (at < 0 && !back) at = held_at(e, -1);
    if (at < 0) return err_set(PC_EINTERNAL, "no rows of chunk %d put aside", w->chunk[i]);
    float *x = s->tf.x + dim * (size_t)s->seq_begin[i],
          *rows = e->rows + chunk_floats(s) * (size_t)at;
    e->holds[at] = w->chunk[i];
    return s->tf.be->copy(s->tf.dev, back ? x : rows, back ? rows : x, n * sizeof *x);
}

/* ==== A decision ==== */

/* A chunk that does not survive gives back what it has on this rank. */
static int leave(struct Session *s, int chunk, int d)
{
    int at = held_at(&s->early, chunk);
    s->out->chunks[chunk].n_layers = s->early.stop[d].layer;
    if (at >= 0) s->early.holds[at] = -1;
    return session_slot(s, chunk) ? release_chunk(s, chunk) : PC_OK;
}

static int offer(struct Session *s, int chunk, int d)
{
    int loser;
    chunk_queue_push(&s->early.queue[d], chunk, -early_score(s, d, chunk), &loser);
    return loser >= 0 ? leave(s, loser, d) : PC_OK;
}

/* Of the wave, those that are among the best so far stay, with their rows. */
static int wave_decide(struct Session *s, const struct Wave *w, int d)
{
    for (int i = 0; i < w->n; i++) TRY(offer(s, w->chunk[i], d));
    for (int i = 0; i < w->n; i++)
        if (session_slot(s, w->chunk[i])) TRY(move_rows(s, w, i, false));
    return PC_OK;
}

/* The best of all ranks, where each has found its own. */
static int agree(struct Session *s, int d)
{
    struct EarlyRun *e = &s->early;
    if (s->e->team->size == 1) return PC_OK;
    TRY(share_numbers(s, early_row(s, d)));
    e->queue[d].n = 0;
    for (int c = 0; c < s->plan.n_chunks; c++)
        if (s->place[c] >= 0 && s->out->chunks[c].n_layers >= e->stop[d].layer) TRY(offer(s, c, d));
    return PC_OK;
}

/* Chunks that were read from a pipe take part with what was taken down of them. */
static int offer_known(struct Session *s, int d)
{
    const struct EarlyRun *e = &s->early;
    int layer = d < e->n ? e->stop[d].layer : s->e->model.cfg.n_layers;
    for (int c = 0; c < pipe_known(s); c++) {
        if (s->out->chunks[c].n_layers < layer) continue; /* it left before */
        TRY(d < e->n ? offer(s, c, d) : pipe_offer(s, c));
    }
    return PC_OK;
}

/* Those of the survivors that this rank reads on; returns how many. */
static int take_own(struct Session *s, int d)
{
    struct EarlyRun *e = &s->early;
    int all = chunk_queue_kept(&e->queue[d], e->list), n = 0;
    for (int i = 0; i < all; i++)
        if (session_slot(s, e->list[i])) e->list[n++] = e->list[i];
    return n;
}

/* ==== Waves ==== */

static int find_slots(struct Session *s, struct Wave *w)
{
    for (int i = 0; i < w->n; i++) {
        w->slot[i] = session_slot(s, w->chunk[i]);
        if (!w->slot[i]) return err_set(PC_EINTERNAL, "chunk %d has no slot", w->chunk[i]);
    }
    return PC_OK;
}

/* Its share of the work in text tokens, which is what progress counts. */
static void set_progress(struct Session *s, struct Wave *w)
{
    struct EarlyRun *e = &s->early;
    int64_t all = e->n_work > 0 ? e->n_work : 1, n = (int64_t)w->n * (w->to - w->from);
    w->n_read = (int)(e->n_done * s->n_mine / all);
    w->n_before = e->n_done * s->n_tokens_todo / all;
    w->n_tokens = (e->n_done + n) * s->n_tokens_todo / all - w->n_before;
    e->n_done += n;
}

static int early_wave(struct Session *s, struct Wave *w, int d)
{
    set_progress(s, w);
    TRY(w->from ? find_slots(s, w) : wave_slots(s, w));
    TRY(s->store ? recall_begin(s, w) : wave_begin(s, w, s->prompt.tail.n));
    for (int i = 0; w->from && i < w->n; i++) TRY(move_rows(s, w, i, true));
    TRY(s->store ? recall_layers(s, w) : wave_layers(s, w));
    if (d < s->early.n) {
        TRY(wave_decide(s, w, d));
    } else {
        TRY(wave_score(s, w));
        TRY(wave_evict(s, w));
    }
    if (!s->store) return PC_OK;
    session_progress(s, STAGE_PREFILL, w->n_read, w->n_before + w->n_tokens);
    return recall_note(s, w);
}

/* Work of this rank, if survivors are spread evenly. */
static int64_t expected_work(const struct Session *s)
{
    return (int64_t)(work_of(s, s->n_todo) * s->n_mine / s->n_todo);
}

int early_chunks(struct Session *s)
{
    struct EarlyRun *e = &s->early;
    const int *chunk = s->todo;
    int n = s->n_mine, from = 0;
    e->n_work = expected_work(s);
    e->n_done = 0;
    for (int d = 0; d < e->n; d++) e->queue[d].n = 0;
    for (int i = 0; i < e->n_held; i++) e->holds[i] = -1;
    for (int d = 0; d <= e->n; d++) {
        int to = d < e->n ? e->stop[d].layer : s->e->model.cfg.n_layers;
        TRY(offer_known(s, d));
        for (int at = 0; at < n; at += s->plan.wave) {
            struct Wave w = {
                .chunk = chunk + at, .n = min_int(n - at, s->plan.wave), .from = from, .to = to};
            if (from == 0) w.n_next = min_int(n - at - w.n, s->plan.wave);
            TRY(early_wave(s, &w, d));
        }
        if (d == e->n) break;
        TRY(agree(s, d));
        n = take_own(s, d);
        chunk = e->list;
        from = to;
    }
    session_progress(s, STAGE_PREFILL, s->n_mine, s->n_tokens_todo);
    return PC_OK;
}

/* session_rounds.c - choices of chunks in rounds (headwise.md C.2, "multi-hop groups"): what the chunks of one round say to the
 * question leads the choice of the next.
 *
 * A fact that names another, which stands elsewhere, is not found by the question alone: nothing in it says where to look. So
 * each round has a share of keep. Behind it the question is asked of its best chunk once more, and the sentence that draws most
 * of the question's attention and shares most words with it is the round's finding. It joins the question: in the next round it stands
 * before it in every tail, the surprise of its rare tokens counts with that of the question's own words, its words count in BM25, and the last rows
 * see it when they vote. The chunks of earlier rounds stay; all others are read again, but for those of a store. The
 * answer is given to the question as the user put it.
 *
 * Published kin: ITER-RETGEN (arXiv 2305.15294), where the model's own answer leads the next retrieval.
 */
#include "session.h"

#include "tokenizer_places.h"

#include <math.h>
#include <string.h>

enum { WORD_ROOM = 128 };

/* ==== Plan ==== */

int rounds_room(const struct Session *s)
{
    return s->indexes || s->observer ? 0 : (s->set.rounds - 1) * FOUND_MOST;
}

int rounds_plan(struct Session *s)
{
    struct PlanInfo *p = &s->plan;
    if (s->set.keep != KEEP_ALL && s->set.rounds > s->set.keep)
        return err_set(PC_ECONFIG,
                       "rounds %d share the %d chunks of keep, one each at least; use --keep %d or "
                       "more, or fewer --rounds",
                       s->set.rounds, s->set.keep, s->set.rounds);
    if (p->keep == p->n_chunks || s->observer) return PC_OK; /* there is nothing to choose */
    p->rounds = s->set.rounds;
    p->n_found = rounds_room(s);
    return PC_OK;
}

/* The chunks that a round keeps. */
static int share(const struct PlanInfo *p, int round)
{
    int each = p->keep / p->rounds;
    return round ? each : p->keep - (p->rounds - 1) * each;
}

int rounds_later(const struct Session *s)
{
    return s->plan.rounds > 1 ? s->plan.keep : 0;
}

int rounds_keys(const struct Session *s)
{
    const struct PlanInfo *p = &s->plan;
    /* a chunk's entries begin in a page of their own */
    return PAGE_TOKENS * (kv_pages(p->n_prefix) + kv_pages(p->chunk_tokens)) + p->n_question +
           p->n_found;
}

/* ==== Memory ==== */

static int past_pages(const struct Session *s)
{
    int ends = heads_chunk_pages(s), full = kv_pages(s->cap);
    return kv_pages(s->plan.n_prefix) + heads_ring(s) + (ends > full ? ends : full) + 1;
}

static size_t mass_floats(const struct Session *s)
{
    return (size_t)s->e->model.cfg.n_kv_heads * (size_t)s->wave_shape.mass_keys;
}

size_t rounds_bytes(const struct Session *s)
{
    size_t n = (size_t)s->plan.chunk_tokens + 1,
           token = sizeof *s->rounds.vote + sizeof *s->rounds.ids + sizeof *s->rounds.place +
                   sizeof *s->rounds.cut + sizeof *s->rounds.text + sizeof *s->rounds.share;
    if (s->plan.rounds == 1) return 0;
    return n * token + sizeof(float) * mass_floats(s) +
           kv_table_bytes(&s->e->model.cfg, past_pages(s)) +
           sizeof *s->rounds.told * (size_t)s->e->team->size + sizeof(int) * (size_t)s->plan.keep;
}

/* Room in the tail for findings. */
static int tail_room(struct Session *s)
{
    struct Tokens *t = &s->prompt.tail;
    int *ids = mem_alloc((size_t)t->n + (size_t)s->plan.n_found, sizeof *ids);
    if (!ids) return PC_ENOMEM;
    memcpy(ids, t->ids, sizeof *ids * (size_t)t->n);
    mem_free(t->ids);
    t->ids = ids;
    t->cap = t->n + s->plan.n_found;
    return PC_OK;
}

int rounds_open(struct Session *s)
{
    struct RoundRun *r = &s->rounds;
    size_t n = (size_t)s->plan.chunk_tokens + 1;
    if (s->plan.rounds == 1) return PC_OK;
    r->kept = mem_alloc((size_t)s->plan.keep, sizeof *r->kept);
    r->told = mem_alloc((size_t)s->e->team->size, sizeof *r->told);
    r->mass = mem_alloc(mass_floats(s), sizeof *r->mass);
    r->vote = mem_alloc(n, sizeof *r->vote);
    r->ids = mem_alloc(n, sizeof *r->ids);
    r->place = mem_alloc(n, sizeof *r->place);
    r->cut = mem_alloc(n, sizeof *r->cut);
    r->text = mem_alloc(n, sizeof *r->text);
    r->share = mem_alloc(n, sizeof *r->share);
    if (!r->kept || !r->told || !r->mass || !r->vote || !r->ids || !r->place || !r->cut ||
        !r->text || !r->share)
        return PC_ENOMEM;
    TRY(kv_table_open(&r->past, &s->e->model.cfg, past_pages(s)));
    TRY(tokenizer_encode(s->e->tok, "\n\n", 2, false, &r->blank));
    s->queue.k = share(&s->plan, 0);
    return tail_room(s);
}

void rounds_close(struct Session *s)
{
    struct RoundRun *r = &s->rounds;
    void *blocks[] = {r->kept,  r->told, r->mass, r->vote, r->ids,
                      r->place, r->cut,  r->text, r->share};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    kv_table_close(&r->past);
    tokens_free(&r->blank);
}

/* ==== Where the question looks in a chunk ==== */

/* What a head says where all that is known of the chunk was kept: all its tokens, or those that a store has. */
static void add_all(struct Session *s, const float *mass, int head, int n)
{
    const uint8_t *marks = stage_marks(s, 0, head, n);
    for (int t = 0, held = 0; t < n; t++)
        if (!marks || store_marked(marks, t)) s->rounds.vote[t] += (double)mass[held++];
}

/* What one layer's full heads say of the chunk's tokens. */
static void add_votes(struct Session *s, const struct Slot *slot, int layer, int n)
{
    int heads = s->e->model.cfg.n_kv_heads;
    for (int h = 0; h < heads; h++) {
        int head = layer * heads + h, before = s->prefix.n_tokens[head];
        const float *mass = s->rounds.mass + (size_t)h * (size_t)s->wave_shape.mass_keys + before;
        const int *index = slot->index ? slot->index + (size_t)head * (size_t)s->cap : NULL;
        if (heads_stream(s, layer, h)) continue;
        if (!index) add_all(s, mass, head, n);
        for (int i = 0; index && i < slot->kept[head]; i++)
            s->rounds.vote[index[i]] += (double)mass[i];
    }
}

/* What was kept of the chunk, behind the prefix. Of a store, whose chunk was loaded last, streaming heads have theirs there. */
static int chunk_past(struct Session *s, const struct Slot *slot)
{
    struct HeadTable *past = &s->rounds.past;
    for (int h = 0; h < past->n_heads; h++) {
        bool stored = s->store && s->heads.streams && s->heads.streams[h];
        TRY(stored ? kv_join(past, h, &s->staged[0], NULL)
                   : kv_join(past, h, &s->prefix, &slot->table));
    }
    return PC_OK;
}

/* Runs the question behind one chunk that has a slot, and fills vote. */
static int ask_chunk(struct Session *s, struct Slot *slot)
{
    const struct Chunk *c = &s->chunks[slot->chunk];
    int n_layers = s->e->model.cfg.n_layers, q = s->prompt.tail.n, n = c->end - c->begin,
        rows = min_int(s->set.obs_rows, q);
    if (s->store) TRY(stage_load(s, slot->chunk, 0));
    TRY(chunk_past(s, slot));
    memset(s->rounds.vote, 0, sizeof *s->rounds.vote * (size_t)n);
    s->seq_begin[0] = 0;
    s->seq_begin[1] = q;
    batch_rows_fill(s, s->prompt.tail.ids, q, 0, s->plan.n_prefix + n);
    struct Batch b = {.tokens = s->tokens,
                      .pos = s->pos,
                      .seq_begin = s->seq_begin,
                      .n_seqs = 1,
                      .pool = &s->kv.pool,
                      .past = &s->rounds.past,
                      .tail_rows = q,
                      .masks = heads_reading(s)};
    TRY(tf_begin(&s->tf, &b));
    for (int l = 0; l < n_layers; l++) {
        struct AttnArgs args;
        TRY(session_stop(s));
        TRY(tf_attend(&s->tf, &b, l, 0, &args));
        TRY(s->tf.be->attn_mass(s->tf.dev, &args, rows, s->rounds.mass, s->wave_shape.mass_keys));
        add_votes(s, slot, l, n);
        if (l < n_layers - 1) TRY(tf_ffn(&s->tf, l, q));
    }
    return PC_OK;
}

/* ==== The finding ==== */

/* Whether a sentence may end before byte `at`. A line that breaks within a paragraph ends none where words go on. */
static bool is_cut(struct LexText text, size_t at)
{
    enum Boundary b = boundary_at(text.data, text.len, at);
    if (b != BOUNDARY_LINE) return b > BOUNDARY_SPACE;
    while (at > 0 && strchr(" \t\r\n", text.data[at - 1])) at--;
    unsigned char last = at ? (unsigned char)text.data[at - 1] : '\n';
    return !(last >= 0x80 || last == ',' || last == '-' ||
             ((last | 32) >= 'a' && (last | 32) <= 'z'));
}

/* The first tokens of a chunk's sentences, and n at the end; none is longer than a finding may be. Returns how many. */
static int cut_sentences(struct Session *s, struct LexText text, bool known, int n)
{
    struct RoundRun *r = &s->rounds;
    int most = FOUND_MOST - r->blank.n, count = 0;
    for (int i = 0; i < n; i++)
        if (i == 0 || i - r->cut[count - 1] == most || (known && is_cut(text, r->place[i])))
            r->cut[count++] = i;
    r->cut[count] = n;
    return count;
}

static double votes_for(const struct RoundRun *r, int sentence)
{
    double sum = 0;
    for (int i = r->cut[sentence]; i < r->cut[sentence + 1]; i++) sum += r->vote[i];
    return sum;
}

/* share[i]: of the words of the question as it stands, findings included. */
static int weigh_sentences(struct Session *s, struct LexText text, int n)
{
    struct RoundRun *r = &s->rounds;
    struct Str asked = {0};
    for (int i = 0; i < n; i++) {
        size_t from = r->place[r->cut[i]], to = r->place[r->cut[i + 1]];
        r->text[i] = (struct LexText){text.data + from, to - from};
    }
    int status = rounds_words(s, &asked);
    if (status == PC_OK)
        status = bm25_scores((struct LexText){asked.data, asked.len}, r->text, n, r->share);
    lex_shares(r->share, n);
    str_free(&asked);
    return status;
}

/* The chunk's tokens, its text where that is known, and their places in it. */
static int chunk_words(struct Session *s, int chunk, struct LexText *text, bool *known)
{
    struct RoundRun *r = &s->rounds;
    const struct Chunk *c = &s->chunks[chunk];
    int n = c->end - c->begin;
    const int *ids;
    *known = session_has_text(s);
    TRY(chunk_ids(s, c, &ids));
    memcpy(r->ids, ids, sizeof *ids * (size_t)n);
    if (!*known) return PC_OK;
    TRY(chunk_texts(s, chunk, 1, text));
    token_places(s->e->tok, r->ids, n, (struct Slice){text->data, text->len}, r->place);
    return PC_OK;
}

static void take_sentence(struct Session *s, int chunk, int sentence, struct Finding *out)
{
    const struct RoundRun *r = &s->rounds;
    int from = r->cut[sentence], to = r->cut[sentence + 1],
        len = s->chunks[chunk].end - s->chunks[chunk].begin;
    *out = (struct Finding){.score = r->share[sentence], .chunk = chunk, .n = to - from};
    for (int i = 0; i < out->n; i++) {
        out->ids[i] = r->ids[from + i];
        out->rare[i] = 1;
        for (int j = 0; j < len; j++)
            if ((j < from || j >= to) && r->ids[j] == out->ids[i]) out->rare[i] = 0;
    }
}

/* The best sentence of a chunk that has a slot. */
static int find(struct Session *s, struct Slot *slot, struct Finding *out)
{
    struct RoundRun *r = &s->rounds;
    const struct Chunk *c = &s->chunks[slot->chunk];
    struct LexText text = {0};
    bool known;
    double most = 0;
    TRY(ask_chunk(s, slot));
    TRY(chunk_words(s, slot->chunk, &text, &known));
    int n = cut_sentences(s, text, known, c->end - c->begin), best = 0;
    memset(r->share, 0, sizeof *r->share * (size_t)n);
    if (known) TRY(weigh_sentences(s, text, n));
    for (int i = 0; i < n; i++) most = fmax(most, votes_for(r, i));
    for (int i = 0; i < n; i++) {
        r->share[i] += most > 0 ? votes_for(r, i) / most : 0;
        if (r->share[i] > r->share[best]) best = i;
    }
    take_sentence(s, slot->chunk, best, out);
    return PC_OK;
}

/* ==== What is scored ==== */

/* Whether a token of the finding says where to look: a rare one, which neither the question nor the finding has before.
 * What is said in many places would speak for every chunk that has its like. */
static bool tells(const struct Session *s, int token)
{
    const struct Prompt *p = &s->prompt;
    const int *ids = p->tail.ids;
    if (!s->rounds.rare[token - s->rounds.found]) return false;
    for (int t = s->rounds.found; t < token; t++)
        if (ids[t] == ids[token]) return false;
    for (int t = p->score_begin; t < p->score_end; t++)
        if (ids[t] == ids[token]) return false;
    return true;
}

bool rounds_scores(const struct Session *s, int token)
{
    const struct Prompt *p = &s->prompt;
    const struct RoundRun *r = &s->rounds;
    if (s->set.chunk_score == SCORE_PUBLISHED || p->score_begin >= p->score_end) return true;
    if (token >= p->score_begin) return token < p->score_end;
    return token >= r->found && token < r->n_found && tells(s, token);
}

static bool has_word(const struct Str *words, size_t from, const char *word, size_t len)
{
    struct LexText all = {words->data, from};
    char other[WORD_ROOM];
    size_t at = 0;
    for (size_t n; (n = lex_word(all, &at, other, sizeof other)) > 0;)
        if (n == len && memcmp(other, word, len) == 0) return true;
    return false;
}

int rounds_words(struct Session *s, struct Str *out)
{
    char word[WORD_ROOM];
    TRY(prompt_words(s->e->tok, &s->prompt, out));
    for (int r = 0; r < s->rounds.at; r++) {
        const struct Str *found = &s->out->found[r];
        struct LexText text = {found->data, found->len};
        size_t at = 0;
        for (size_t n; (n = lex_word(text, &at, word, sizeof word)) > 0;)
            if (!has_word(out, out->len, word, n)) TRY(str_appendf(out, " %.*s", (int)n, word));
    }
    return PC_OK;
}

/* ==== From round to round ==== */

bool rounds_kept(const struct Session *s, int chunk)
{
    for (int i = 0; i < s->rounds.n_kept; i++)
        if (s->rounds.kept[i] == chunk) return true;
    return false;
}

/* The round's chunk that its score puts first. */
static int best_chunk(const struct Session *s)
{
    const struct RoundRun *r = &s->rounds;
    const struct ChunkInfo *all = s->out->chunks;
    int best = -1;
    for (int i = 0; i < r->n_kept; i++) {
        int c = r->kept[i];
        if (all[c].round == r->at + 1 && (best < 0 || all[c].score < all[best].score)) best = c;
    }
    return best;
}

/* The queue's chunks stay. What has moved to rank 0 is given back here. */
static int keep_round(struct Session *s)
{
    struct RoundRun *r = &s->rounds;
    int n = chunk_queue_kept(&s->queue, r->kept + r->n_kept);
    for (int i = r->n_kept; i < r->n_kept + n; i++) {
        s->out->chunks[r->kept[i]].round = r->at + 1;
        if (s->e->team->rank && !s->together && session_slot(s, r->kept[i]))
            TRY(release_chunk(s, r->kept[i]));
    }
    r->n_kept += n;
    s->queue.n = 0;
    return PC_OK;
}

/* Every rank has the finding of the one that has the chunk. */
static int share_finding(struct Session *s, struct Finding *out)
{
    struct Team *t = s->e->team;
    struct Finding *told = s->rounds.told;
    int chunk = best_chunk(s);
    struct Slot *slot = session_slot(s, chunk);
    told[t->rank] = (struct Finding){.score = -INFINITY};
    if (slot) TRY(find(s, slot, &told[t->rank]));
    TRY(team_gather(t, told, sizeof *told));
    *out = told[0];
    for (int i = 1; i < t->size; i++)
        if (told[i].score > out->score) *out = told[i];
    return PC_OK;
}

/* Its text, for the result. */
static int note_finding(struct Session *s, const struct Finding *f)
{
    for (int i = 0; i < f->n; i++) {
        struct Slice piece = tokenizer_piece(s->e->tok, f->ids[i]);
        TRY(str_append(&s->out->found[s->rounds.at], piece.data, piece.len));
    }
    return PC_OK;
}

/* Between the findings before and the question. */
static void join_question(struct Session *s, const struct Finding *f)
{
    struct RoundRun *r = &s->rounds;
    struct Prompt *p = &s->prompt;
    int *at = p->tail.ids + r->n_found, n = r->blank.n + f->n;
    memmove(at + n, at, sizeof *at * (size_t)(p->tail.n - r->n_found));
    memcpy(at, r->blank.ids, sizeof *at * (size_t)r->blank.n);
    memcpy(at + r->blank.n, f->ids, sizeof *at * (size_t)f->n);
    r->found = r->n_found + r->blank.n;
    memcpy(r->rare, f->rare, (size_t)f->n);
    r->n_found += n;
    p->tail.n += n;
    p->score_begin += n;
    p->score_end += n;
}

/* All chunks that no round has kept are to be chosen from again. */
static void open_round(struct Session *s)
{
    struct RoundRun *r = &s->rounds;
    struct ChunkInfo *all = s->out->chunks;
    r->n_read += s->n_mine;
    r->n_tokens += s->n_tokens_todo;
    r->at++;
    s->queue.k = share(&s->plan, r->at);
    s->n_todo = 0;
    for (int c = 0; c < s->plan.n_chunks; c++) {
        if (all[c].round) continue;
        all[c].score = NAN;
        all[c].n_layers = s->e->model.cfg.n_layers;
        s->todo[s->n_todo++] = c;
    }
    s->n_tokens_todo = (int)wave_tokens_before(s, s->n_todo);
    s->n_todo = min_int(s->n_todo, s->plan.n_read); /* with prefilter; it fills todo */
}

int rounds_next(struct Session *s)
{
    struct Finding found;
    TRY(keep_round(s));
    TRY(share_finding(s, &found));
    TRY(note_finding(s, &found));
    join_question(s, &found);
    open_round(s);
    return PC_OK;
}

int rounds_end(struct Session *s)
{
    struct RoundRun *r = &s->rounds;
    struct Prompt *p = &s->prompt;
    int loser;
    if (s->plan.rounds == 1) return PC_OK;
    TRY(keep_round(s));
    s->queue.k = s->plan.keep;
    for (int i = 0; i < r->n_kept; i++)
        chunk_queue_push(&s->queue, r->kept[i], s->out->chunks[r->kept[i]].score, &loser);
    memmove(p->tail.ids, p->tail.ids + r->n_found,
            sizeof *p->tail.ids * (size_t)(p->tail.n - r->n_found));
    p->tail.n -= r->n_found;
    p->score_begin -= r->n_found;
    p->score_end -= r->n_found;
    r->n_found = 0;
    return PC_OK;
}

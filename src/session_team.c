/* session_team.c - a run over several ranks (headwise.md D.7): each reads a share of the chunks, rank 0 answers.
 *
 * While chunks are read nothing is said. Then all scores go to all, so that every rank knows the winners; their pages move to
 * rank 0, whose cache is then what it would have been alone, or stay where all ranks answer (session_parts.c). The share is dealt from the last chunk backwards:
 * rank 0 has the last one, which streaming heads keep (session_heads.c), and no rank has more chunks than rank 0.
 */
#include "session.h"

#include <math.h>
#include <string.h>

/* The rank that reads the i-th of n chunks. */
static int reader_of(const struct Session *s, int i)
{
    return (s->n_todo - 1 - i) % s->e->team->size;
}

int share_count(const struct Session *s)
{
    int n = 0;
    if (s->set.method != METHOD_PARALLELCOMP) return s->e->team->rank ? 0 : s->n_todo;
    for (int i = 0; i < s->n_todo; i++) n += reader_of(s, i) == s->e->team->rank;
    return n;
}

void share_chunks(struct Session *s)
{
    int n = 0, tokens = 0;
    for (int i = 0; i < s->plan.n_chunks; i++) s->place[i] = -1;
    for (int i = 0; i < s->n_todo; i++) s->place[s->todo[i]] = i;
    s->n_mine = share_count(s);
    if (s->e->team->size == 1) return;
    for (int i = 0; i < s->n_todo; i++) {
        const struct Chunk *c = &s->chunks[s->todo[i]];
        if (reader_of(s, i) != s->e->team->rank) continue;
        tokens += c->end - c->begin;
        s->todo[n++] = s->todo[i];
    }
    s->n_tokens_todo = tokens;
}

/* ==== The same run on every rank ==== */

/* What ranks must agree on: the model, the text, the settings, and all that was made of them, but for what is each machine's. */
static int run_digest(const struct Session *s, uint64_t *out)
{
    const struct Prompt *p = &s->prompt;
    const struct Tokens *parts[] = {&p->prefix, &p->context, &p->tail};
    uint64_t text = s->req->stream ? s->req->stream->hash : 0;
    struct Settings set = s->set, plain;
    struct Str json = {0};
    settings_default(&plain);
    memcpy(set.isa, plain.isa, sizeof set.isa);
    set.threads = plain.threads;
    set.wave = plain.wave;
    set.memory = plain.memory;
    set.gpu_memory = plain.gpu_memory;
    TRY(settings_json(&set, &json));
    int facts[] = {s->plan.n_chunks, s->plan.n_read, s->cap, s->mass_stride > 0,
                   (int)s->kv.pool.page_bytes};
    uint64_t key = hash64(json.data, json.len, s->e->model.hash ^ parts_digest(s));
    str_free(&json);
    key = hash64(s->e->be->name, strlen(s->e->be->name), key);
    key = hash64(facts, sizeof facts, key);
    key = hash64(s->plan.early, sizeof s->plan.early, key);
    if (s->early.n_looks)
        key = hash64(s->early.stop, sizeof *s->early.stop * (size_t)s->early.n_looks, key);
    for (int i = 0; i < 3; i++)
        if (parts[i]->ids) key = hash64(parts[i]->ids, sizeof(int) * (size_t)parts[i]->n, key);
    *out = hash64(&text, sizeof text, key);
    return PC_OK;
}

static int compare_runs(const struct Session *s, const uint64_t *digest)
{
    const struct Team *t = s->e->team;
    for (int i = 1; i < t->size; i++)
        if (digest[i] != digest[0])
            return err_set(
                PC_ECONFIG,
                "rank %d plans another run than rank 0: give all ranks the same program, model, "
                "settings, backend and precision%s",
                i, s->together ? ", and for answer_ranks all CPUs of one kind or one --isa" : "");
    return PC_OK;
}

int share_through(const struct Session *s)
{
    bool ships = s->tiered && s->e->team->size > 1 && !s->together;
    return ships ? kv_parcel_pages(&s->e->peers, s->e->be->page_bytes(s->e->dev)) : 0;
}

int share_open(struct Session *s)
{
    struct Team *t = s->e->team;
    if (t->size == 1) return PC_OK;
    s->gathered = mem_alloc((size_t)(t->size + 1) * (size_t)s->plan.n_chunks, sizeof *s->gathered);
    uint64_t *digest = mem_alloc((size_t)t->size, sizeof *digest);
    int status = s->gathered && digest ? PC_OK : PC_ENOMEM;
    if (status == PC_OK && !s->together)
        status = kv_parcel_open(&s->parcel, &s->e->peers, s->kv.pool.page_bytes);
    if (status == PC_OK && s->tiered) status = kv_parcel_through(&s->parcel, &s->kv);
    if (status == PC_OK) status = parts_open(s);
    if (status == PC_OK) status = run_digest(s, &digest[t->rank]);
    if (status == PC_OK) status = team_gather(t, digest, sizeof *digest);
    if (status == PC_OK) status = compare_runs(s, digest);
    mem_free(digest);
    return status;
}

void share_close(struct Session *s)
{
    kv_parcel_close(&s->parcel);
    mem_free(s->gathered);
}

/* ==== The winners ==== */

int share_numbers(struct Session *s, double *of_chunk)
{
    const struct Team *t = s->e->team;
    size_t n = (size_t)s->plan.n_chunks;
    memcpy(s->gathered + (size_t)t->rank * n, of_chunk, n * sizeof *of_chunk);
    TRY(team_gather(s->e->team, s->gathered, n * sizeof *s->gathered));
    for (size_t c = 0; c < n; c++)
        if (s->place[c] >= 0) of_chunk[c] = s->gathered[(size_t)reader_of(s, s->place[c]) * n + c];
    return PC_OK;
}

/* Every chunk's score from the rank that read it. */
static int gather_scores(struct Session *s)
{
    double *score = s->gathered + (size_t)s->e->team->size * (size_t)s->plan.n_chunks;
    for (int c = 0; c < s->plan.n_chunks; c++) score[c] = s->out->chunks[c].score;
    TRY(share_numbers(s, score));
    for (int c = 0; c < s->plan.n_chunks; c++) s->out->chunks[c].score = score[c];
    return PC_OK;
}

/* Queues all chunks that were read again, now that all scores are known: the kept ones depend on the scores alone. */
static int elect(struct Session *s)
{
    TRY(gather_scores(s));
    s->queue.n = 0;
    for (int c = 0; c < s->plan.n_chunks; c++) {
        int loser;
        if (s->place[c] < 0) continue;
        offer_chunk(s, c, &loser);
        if (loser >= 0 && session_slot(s, loser)) TRY(release_chunk(s, loser));
    }
    return PC_OK;
}

/* ==== Their pages ==== */

/* What the policies know of a chunk beside its pages. */
static size_t index_bytes(const struct Session *s)
{
    return sizeof(int) * (size_t)s->merged.n_heads * (size_t)s->cap;
}

static int send_chunk(struct Session *s, int chunk)
{
    struct Team *t = s->e->team;
    struct Slot *slot = session_slot(s, chunk);
    if (!slot) return err_set(PC_EINTERNAL, "kept chunk %d has no slot", chunk);
    TRY(kv_send(&s->kv, &slot->table, 0, &s->parcel));
    if (!slot->index) return PC_OK;
    TRY(team_send(t, 0, slot->kept, sizeof *slot->kept * (size_t)s->merged.n_heads));
    return team_send(t, 0, slot->index, index_bytes(s));
}

static int receive_chunk(struct Session *s, int chunk, int from)
{
    struct Team *t = s->e->team;
    struct Slot *slot = session_slot(s, -1);
    if (!slot) return err_set(PC_EINTERNAL, "no free slot for chunk %d", chunk);
    slot->chunk = chunk;
    TRY(kv_receive(&s->kv, &slot->table, from, &s->parcel));
    if (!slot->index) return PC_OK;
    TRY(team_receive(t, from, slot->kept, sizeof *slot->kept * (size_t)s->merged.n_heads));
    return team_receive(t, from, slot->index, index_bytes(s));
}

int share_winners(struct Session *s)
{
    const struct Team *t = s->e->team;
    if (t->size == 1) return PC_OK;
    if (!ranks_ahead(&s->set)) TRY(elect(s));
    int *kept = s->rows, n = chunk_queue_kept(&s->queue, kept);
    for (int i = 0; i < n; i++) {
        int reader = reader_of(s, s->place[kept[i]]);
        s->out->chunks[kept[i]].kept = true;
        if (s->together) parts_stream_to(s, reader); /* the last one's */
        if (reader == 0 || s->together) continue;
        TRY(session_stop(s));
        if (t->rank == 0) TRY(receive_chunk(s, kept[i], reader));
        if (t->rank == reader) TRY(send_chunk(s, kept[i]));
    }
    return PC_OK;
}

int share_end(struct Session *s)
{
    int done = 1;
    if (s->together) TRY(parts_end(s));
    return s->e->team->size > 1 ? team_broadcast(s->e->team, &done, sizeof done) : PC_OK;
}

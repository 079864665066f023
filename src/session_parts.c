/* session_parts.c - question and answer over kept chunks that stay with the ranks that read them (headwise.md D.7).
 *
 * Every rank runs all layers on the same rows: the weights are there anyway, and then only attention has to be said. Each
 * attends to its own pages; the parts with their log-sum-exps go to all, once a layer, and every rank joins them in the
 * order of ranks. So all have the same bits behind each layer, the same logits, and draw the same token, which
 * needs no message. Before the next rows they compare their logits: ranks that part are found out at once.
 *
 * What is there once, the prefix, the question and the answer, belongs to one rank a head: head g to rank g mod R, but heads
 * that stream to the rank that has read the last kept chunk, whose end they see.
 */
#include "session.h"

#include <string.h>

/* ==== Plan ==== */

int parts_plan(struct Session *s)
{
    s->together = s->set.answer_ranks == ANSWER_ALL && s->e->team->size > 1 &&
                  s->set.method == METHOD_PARALLELCOMP && !s->indexes;
    if (!s->together) return PC_OK;
    if (!s->e->be->attention_join)
        return err_set(PC_ECONFIG,
                       "answer_ranks all: the %s backend cannot join attention of several ranks; "
                       "use --answer-ranks lead or --backend cpu",
                       s->e->be->name);
    if (s->set.select != PAGE_INDEX_OFF)
        return err_set(PC_ECONFIG,
                       "answer_ranks all: select %s chooses among all pages of a head, which then "
                       "lie on several ranks; use --answer-ranks lead or --select off",
                       setting_word("select", (int)s->set.select));
    return PC_OK;
}

bool parts_own(const struct Session *s, int head)
{
    const struct Team *t = s->e->team;
    if (!s->together) return true;
    bool streams = s->heads.streams && s->heads.streams[head];
    return t->rank == (streams ? s->parts.streams_to : head % t->size);
}

void parts_stream_to(struct Session *s, int rank)
{
    s->parts.streams_to = rank;
    int n = s->plan.heads_full + s->plan.heads_streaming;
    for (int h = 0; h < n; h++) s->parts.own[h] = parts_own(s, h);
}

int parts_heads(const struct Session *s)
{
    int n = 0;
    for (int h = 0; h < s->plan.heads_full + s->plan.heads_streaming; h++)
        n += parts_own(s, h) && !(s->heads.streams && s->heads.streams[h]);
    return n;
}

int parts_kept(const struct Session *s)
{
    return s->together && s->n_mine < s->plan.keep && s->plan.rounds == 1 ? s->n_mine
                                                                          : s->plan.keep;
}

static size_t floats_of(const struct ModelConfig *m, int rows)
{
    return (size_t)rows * (size_t)m->n_heads * (size_t)(m->head_dim + 1);
}

/* What one rank says of a layer, in lines of memory that belong to it alone. */
static size_t part_bytes(const struct ModelConfig *m, int rows)
{
    enum { ALIGN = 256 };
    return (sizeof(float) * floats_of(m, rows) + ALIGN - 1) / ALIGN * ALIGN;
}

/* Whether what is said passes through memory of the host. */
static bool by_host(const struct Session *s)
{
    return s->e->peers.own_memory && !s->e->peers.direct;
}

size_t parts_bytes(const struct Session *s, bool device)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t team = (size_t)s->e->team->size, heads = (size_t)m->n_layers * m->n_kv_heads,
           said = team * part_bytes(m, s->question_rows);
    if (!s->together) return 0;
    if (device) return said;
    return (by_host(s) ? said : 0) + heads +
           team * (sizeof(struct AttnPart) + sizeof(uint64_t) + heads * sizeof(int64_t));
}

uint64_t parts_digest(const struct Session *s)
{
    const char *device = s->e->be->describe(s->e->dev), *stop = s->req->stop_text;
    uint64_t key = (uint64_t)s->question_rows;
    if (!s->together) return 0;
    if (stop) key = hash64(stop, strlen(stop), key);
    /* which card it is, but not how many threads */
    size_t len = s->limits.own_memory ? strlen(device) : strcspn(device, ",");
    return hash64(device, len, key);
}

/* ==== Open and close ==== */

int parts_open(struct Session *s)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    size_t team = (size_t)s->e->team->size, heads = (size_t)m->n_layers * m->n_kv_heads;
    struct RankParts *p = &s->parts;
    if (!s->together) return PC_OK;
    p->part = mem_alloc(team, sizeof *p->part);
    p->own = mem_alloc(heads, 1);
    p->kept = mem_alloc(team * heads, sizeof *p->kept);
    p->digest = mem_alloc(team, sizeof *p->digest);
    if (by_host(s)) p->host = mem_alloc(team, part_bytes(m, s->question_rows));
    if (!p->part || !p->own || !p->kept || !p->digest || (by_host(s) && !p->host)) return PC_ENOMEM;
    p->said = s->e->be->alloc(s->e->dev, team * part_bytes(m, s->question_rows));
    if (!p->said) return PC_ENOMEM;
    parts_stream_to(s, 0);
    return PC_OK;
}

void parts_close(struct Session *s)
{
    struct RankParts *p = &s->parts;
    if (p->said) s->e->be->release(s->e->dev, p->said);
    mem_free(p->host);
    mem_free(p->part);
    mem_free(p->own);
    mem_free(p->kept);
    mem_free(p->digest);
}

/* ==== The cache ==== */

void parts_leave_prefix(struct Session *s)
{
    for (int h = 0; s->together && h < s->prefix.n_heads; h++)
        if (!s->parts.own[h]) kv_clear_head(&s->kv, &s->prefix, h);
}

int parts_append(struct Session *s, int layer, const struct KvRows *rows)
{
    for (int h = 0; h < s->e->model.cfg.n_kv_heads; h++) {
        if (!s->parts.own[layer * s->e->model.cfg.n_kv_heads + h]) continue;
        TRY(heads_stream(s, layer, h) ? heads_append(s, &s->merged, layer, h, rows)
                                      : kv_append(&s->kv, &s->merged, layer, h, rows, &s->writes));
    }
    return PC_OK;
}

/* ==== Attention ==== */

/* Where each rank's part of so many rows lies. */
static void lay_parts(struct Session *s, int rows, size_t bytes)
{
    size_t n = (size_t)rows * (size_t)s->e->model.cfg.n_heads;
    for (int r = 0; r < s->e->team->size; r++) {
        float *at = (float *)(void *)(s->parts.said + (size_t)r * bytes);
        s->parts.part[r] = (struct AttnPart){.out = at, .lse = at + n * s->e->model.cfg.head_dim};
    }
}

/* What all ranks must have in common before they run these rows: them, and the logits of those before. */
static int compare_digests(struct Session *s, const struct Batch *b)
{
    struct Team *t = s->e->team;
    size_t rows = (size_t)b->seq_begin[b->n_seqs], vocab = (size_t)s->e->model.cfg.vocab_size;
    uint64_t *all = s->parts.digest;
    all[t->rank] = hash64(b->tokens, sizeof *b->tokens * rows,
                          hash64(s->logits, sizeof *s->logits * vocab, 0));
    TRY(team_gather(t, all, sizeof *all));
    for (int r = 1; r < t->size; r++)
        if (all[r] != all[0])
            return err_set(PC_EDEVICE,
                           "rank %d computes otherwise than rank 0; answer_ranks all needs "
                           "machines of one kind: use --answer-ranks lead, or one --isa",
                           r);
    return PC_OK;
}

int parts_attend(struct Session *s, const struct Batch *b, int layer, struct AttnArgs *args)
{
    const struct ModelConfig *m = &s->e->model.cfg;
    int rows = b->seq_begin[b->n_seqs];
    size_t bytes = part_bytes(m, rows);
    struct AttnPart *mine = &s->parts.part[s->e->team->rank];
    if (layer == 0) TRY(compare_digests(s, b));
    TRY(tf_project(&s->tf, b, layer, 0, args));
    lay_parts(s, rows, bytes);
    mine->own = s->parts.own + layer * m->n_kv_heads;
    args->part = mine;
    TRY(s->tf.be->attention(s->tf.dev, args));
    TRY(peers_gather(&s->e->peers, s->parts.said, bytes, s->parts.host));
    return s->tf.be->attention_join(s->tf.dev, args, s->parts.part, s->e->team->size);
}

/* ==== The end ==== */

int parts_end(struct Session *s)
{
    size_t heads = (size_t)s->merged.n_heads;
    const struct Team *t = s->e->team;
    int64_t *kept = s->out->kv_kept, *all = s->parts.kept;
    memcpy(all + (size_t)t->rank * heads, kept, sizeof *kept * heads);
    TRY(team_gather(s->e->team, all, sizeof *kept * heads));
    memset(kept, 0, sizeof *kept * heads);
    for (size_t i = 0; i < heads * (size_t)t->size; i++) kept[i % heads] += all[i];
    return PC_OK;
}

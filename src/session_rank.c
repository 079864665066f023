/* session_rank.c - which chunks stay, and what is known of them before the model reads any: chance and BM25.
 *
 * As baselines they are the score: their winners are known before any prefill, so only those are read: that is
 * what such a method costs. They enter the same queue as other scores do, in which lower is better. In fusion the
 * words take something off the model's score of their chunk, which depends on no other chunk's, so that losers can
 * leave while later chunks are yet to be read.
 */
#include "session.h"

#include <math.h>

void offer_chunk(struct Session *s, int chunk, int *loser)
{
    chunk_queue_push(&s->queue, chunk, s->out->chunks[chunk].score, loser);
}

float chunk_bias(const struct Session *s, int chunk, const int *kept, int n)
{
    const struct ChunkInfo *all = s->out->chunks;
    double best = INFINITY;
    for (int i = 0; i < n && !ranks_ahead(&s->set); i++)
        if (all[kept[i]].round == all[chunk].round) best = fmin(best, all[kept[i]].score);
    double behind = all[chunk].score - best;
    return behind > 0 ? (float)(-s->set.chunk_bias * behind) : 0;
}

bool counts_words(const struct Session *s)
{
    enum ChunkScore score = s->set.chunk_score;
    return score == SCORE_FUSION || (score == SCORE_ATTENTION && session_has_text(s));
}

bool ranks_ahead(const struct Settings *set)
{
    return set->method == METHOD_PARALLELCOMP &&
           (set->chunk_score == SCORE_RANDOM || set->chunk_score == SCORE_BM25);
}

/* Each text draws its own chunks, so that a seed does not always pick the same places. */
static int rank_by_chance(struct Session *s, double *score)
{
    uint64_t seed;
    TRY(hash_tokens(s, s->set.seed, &seed));
    chance_scores(seed, s->plan.n_chunks, score);
    return PC_OK;
}

/* Chunks that stay anyway share nothing with the question, so that the others are compared among themselves. */
static int texts_left(void *session, int first, int n, struct LexText *out)
{
    TRY(chunk_texts(session, first, n, out));
    for (int i = 0; i < n; i++)
        if (rounds_kept(session, first + i)) out[i] = (struct LexText){"", 0};
    return PC_OK;
}

/* BM25 of the chunks' own bytes of the text for the user's words, and those of findings. */
static int score_words(struct Session *s, double *score)
{
    int n = s->plan.n_chunks;
    if (!session_has_text(s))
        return err_set(PC_ECONFIG,
                       "%s %s compares words, but only token ids of the text "
                       "are known here; use another --chunk-score, and no --prefilter",
                       s->set.prefilter ? "with prefilter, chunk_score" : "chunk_score",
                       setting_word("chunk_score", (int)s->set.chunk_score));
    struct Str asked = {0};
    struct LexReader chunks = {texts_left, s, texts_at_once(s), s->e->settings.threads};
    int status = rounds_words(s, &asked);
    if (status == PC_OK)
        status = bm25_read((struct LexText){asked.data, asked.len}, &chunks, n, score);
    str_free(&asked);
    return status;
}

int weigh_words(struct Session *s)
{
    TRY(score_words(s, s->shared));
    lex_shares(s->shared, s->plan.n_chunks);
    return PC_OK;
}

/* The queue's chunks, in document order, are those that are read. */
static void read_only(struct Session *s, const struct ChunkQueue *queue)
{
    int n = s->n_todo = chunk_queue_kept(queue, s->todo);
    for (int c = 0; c < s->plan.n_chunks; c++)
        if (!s->out->chunks[c].round) s->out->chunks[c].n_layers = 0;
    s->n_tokens_todo = 0;
    for (int i = 0; i < n; i++) {
        const struct Chunk *c = &s->chunks[s->todo[i]];
        s->out->chunks[s->todo[i]].n_layers = s->e->model.cfg.n_layers;
        s->n_tokens_todo += c->end - c->begin;
    }
}

int prefilter_words(struct Session *s)
{
    int n = s->plan.n_chunks, loser;
    struct ChunkQueue best = {0};
    double *score = mem_alloc((size_t)n, sizeof *score);
    int status = score ? chunk_queue_open(&best, s->n_todo, n) : PC_ENOMEM;
    if (status == PC_OK) status = score_words(s, score);
    for (int c = 0; c < n && status == PC_OK; c++)
        if (!rounds_kept(s, c)) chunk_queue_push(&best, c, -score[c], &loser);
    if (status == PC_OK) read_only(s, &best);
    chunk_queue_close(&best);
    mem_free(score);
    return status;
}

int rank_ahead(struct Session *s)
{
    int n = s->plan.n_chunks, loser, status = PC_OK;
    double *score = mem_alloc((size_t)n, sizeof *score);
    if (!score) return PC_ENOMEM;
    if (s->set.chunk_score == SCORE_RANDOM)
        status = rank_by_chance(s, score);
    else
        status = score_words(s, score);
    for (int c = 0; c < n && status == PC_OK; c++) {
        if (rounds_kept(s, c)) continue;
        if (s->set.chunk_score == SCORE_BM25) score[c] = -score[c];
        s->out->chunks[c].score = score[c];
        offer_chunk(s, c, &loser);
    }
    mem_free(score);
    read_only(s, &s->queue);
    return status;
}

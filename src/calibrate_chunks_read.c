/* calibrate_chunks_read.c - chunk by chunk through all layers, and the questions of a text over each: features and final
 * scores. The keys and values of one chunk at a time are held.
 */
#include "calibrate_chunks.h"

#include <string.h>

enum { PIECE = 48 }; /* rows whose logits are made at once */

struct ChunkReader {
    struct Engine *e;
    const struct ChunkText *text;
    struct KvCache kv;
    struct HeadTable table; /* prefix and chunk */
    struct KvWrites writes;
    struct Transformer tf;
    int n_rows, n_keys;                /* of the largest batch; that a row sees */
    int *tokens, *pos, *idx, *targets; /* [n_rows] */
    int *seq_begin;                    /* [n_asks + 1] */
    float *mass, *nll;                 /* [n_asks, n_kv_heads, n_keys], [n_rows] */
};

/* ==== Open and close ==== */

static void measure(struct ChunkReader *r)
{
    const struct ChunkText *t = r->text;
    int tails = 0, longest = 0, chunk = 0, prefix = t->asks[0].prefix.n;
    for (int i = 0; i < t->n_asks; i++) {
        tails += t->asks[i].tail.n;
        longest = max_int(longest, t->asks[i].tail.n);
    }
    for (int c = 0; c < t->n_chunks; c++)
        chunk = max_int(chunk, t->chunks[c].end - t->chunks[c].begin);
    r->n_rows = max_int(tails, prefix + chunk);
    r->n_keys = prefix + chunk + longest;
}

static int alloc_host(struct ChunkReader *r)
{
    size_t rows = (size_t)r->n_rows, asks = (size_t)r->text->n_asks;
    r->tokens = mem_alloc(rows, sizeof *r->tokens);
    r->pos = mem_alloc(rows, sizeof *r->pos);
    r->idx = mem_alloc(rows, sizeof *r->idx);
    r->targets = mem_alloc(rows, sizeof *r->targets);
    r->nll = mem_alloc(rows, sizeof *r->nll);
    r->seq_begin = mem_alloc(asks + 1, sizeof *r->seq_begin);
    r->mass =
        mem_alloc(asks * (size_t)r->e->model.cfg.n_kv_heads * (size_t)r->n_keys, sizeof *r->mass);
    return r->tokens && r->pos && r->idx && r->targets && r->nll && r->seq_begin && r->mass
               ? PC_OK
               : PC_ENOMEM;
}

static int reader_open(struct ChunkReader *r, struct Engine *e, const struct ChunkText *t)
{
    const struct ModelConfig *m = &e->model.cfg;
    *r = (struct ChunkReader){.e = e, .text = t};
    measure(r);
    int heads = m->n_layers * m->n_kv_heads, pages = kv_pages(r->n_keys) + 1;
    struct BatchShape shape = {.rows = r->n_rows,
                               .seqs = t->n_asks,
                               .keys = r->n_keys,
                               .mass_keys = r->n_keys,
                               .head_rows = PIECE};
    TRY(alloc_host(r));
    TRY(kv_open(&r->kv, e->be, e->dev, m, (size_t)heads * (size_t)pages));
    TRY(kv_table_open(&r->table, m, pages));
    TRY(kv_writes_open(&r->writes, m->n_kv_heads * (pages + 1)));
    TRY(tf_open(&r->tf, e->be, e->dev, &e->model, r->n_rows));
    return e->be->reserve(e->dev, &shape);
}

static void reader_close(struct ChunkReader *r)
{
    tf_close(&r->tf);
    kv_table_close(&r->table);
    if (r->kv.be) kv_close(&r->kv);
    kv_writes_close(&r->writes);
    void *blocks[] = {r->tokens, r->pos, r->idx, r->targets, r->seq_begin, r->mass, r->nll};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
}

/* ==== A chunk ==== */

static int fill_rows(struct ChunkReader *r, const int *ids, int n, int at, int pos0)
{
    for (int i = 0; i < n; i++) {
        r->tokens[at + i] = ids[i];
        r->pos[at + i] = pos0 + i;
    }
    return at + n;
}

/* Prefix and chunk as one sequence, their keys and values into the table. */
static int read_chunk(struct ChunkReader *r, const struct Chunk *c)
{
    const struct Tokens *prefix = &r->text->asks[0].prefix;
    int n_layers = r->e->model.cfg.n_layers, n = fill_rows(r, prefix->ids, prefix->n, 0, 0),
        begin[2] = {0, 0};
    n = fill_rows(r, r->text->ids.ids + c->begin, c->end - c->begin, n, n);
    begin[1] = n;
    struct Batch b = {.tokens = r->tokens,
                      .pos = r->pos,
                      .seq_begin = begin,
                      .n_seqs = 1,
                      .pool = &r->kv.pool,
                      .past = &r->table};
    TRY(tf_begin(&r->tf, &b));
    for (int l = 0; l < n_layers; l++) {
        struct AttnArgs args;
        TRY(tf_attend(&r->tf, &b, l, 0, &args));
        struct KvRows rows = {r->tf.k, r->tf.v, 0, NULL, n};
        TRY(kv_append_all(&r->kv, &r->table, l, &rows, &r->writes));
        TRY(kv_flush(&r->kv, &r->writes));
        TRY(tf_ffn(&r->tf, l, n));
    }
    return PC_OK;
}

/* ==== The questions over it ==== */

static void note_layer(struct ChunkReader *r, int layer, int kind, int c, int first,
                       struct ChunkSamples *out)
{
    const struct ModelConfig *m = &r->e->model.cfg;
    const struct ChunkText *t = r->text;
    int prefix = t->asks[0].prefix.n, n = t->chunks[c].end - t->chunks[c].begin,
        group = m->n_heads / m->n_kv_heads, most = feature_rows(kind);
    for (int i = 0; i < t->n_asks; i++) {
        int rows = t->asks[i].tail.n < most ? t->asks[i].tail.n : most;
        size_t cell = (size_t)(first + i) * (size_t)out->n_chunks + (size_t)c;
        float *feature = out->feature + cell * (size_t)out->n_features + kind * N_MEASURES;
        for (int h = 0; h < m->n_kv_heads; h++) {
            const float *mass = r->mass + (size_t)(i * m->n_kv_heads + h) * (size_t)r->n_keys;
            for (int k = 0; k < N_MEASURES; k++)
                feature[(layer * m->n_kv_heads + h) * HEAD_FEATURES + k] =
                    (float)early_measure((enum EarlyMeasure)k, mass + prefix, n, rows * group);
        }
    }
}

/* The surprise of each question's own words; of its first token nothing is known. */
static int note_finals(struct ChunkReader *r, int c, int first, struct ChunkSamples *out)
{
    const struct ChunkText *t = r->text;
    int n = 0;
    for (int i = 0; i < t->n_asks; i++) {
        const struct Prompt *p = &t->asks[i];
        bool own = p->score_begin < p->score_end;
        for (int k = own ? max_int(p->score_begin, 1) : 1; k < (own ? p->score_end : p->tail.n);
             k++) {
            r->idx[n] = r->seq_begin[i] + k - 1;
            r->targets[n++] = p->tail.ids[k];
        }
    }
    TRY(r->tf.be->nll(r->tf.dev, r->tf.x, r->idx, r->targets, n, r->nll));
    for (int i = 0, at = 0; i < t->n_asks; i++) {
        int end = at;
        while (end < n && r->idx[end] < r->seq_begin[i + 1]) end++;
        out->final[(size_t)(first + i) * (size_t)out->n_chunks + (size_t)c] =
            self_information(r->nll + at, end - at, 0, end - at);
        at = end;
    }
    return PC_OK;
}

static int ask_chunk(struct ChunkReader *r, int c, int first, struct ChunkSamples *out)
{
    const struct ChunkText *t = r->text;
    int row = 0, pos0 = t->asks[0].prefix.n + t->chunks[c].end - t->chunks[c].begin;
    for (int i = 0; i < t->n_asks; i++) {
        r->seq_begin[i] = row;
        row = fill_rows(r, t->asks[i].tail.ids, t->asks[i].tail.n, row, pos0);
    }
    r->seq_begin[t->n_asks] = row;
    struct Batch b = {.tokens = r->tokens,
                      .pos = r->pos,
                      .seq_begin = r->seq_begin,
                      .n_seqs = t->n_asks,
                      .pool = &r->kv.pool,
                      .past = &r->table};
    TRY(tf_begin(&r->tf, &b));
    for (int l = 0; l < r->e->model.cfg.n_layers; l++) {
        struct AttnArgs args;
        TRY(tf_attend(&r->tf, &b, l, 0, &args));
        for (int kind = 0; kind < ROW_KINDS; kind++) {
            TRY(r->tf.be->attn_mass(r->tf.dev, &args, feature_rows(kind), r->mass, r->n_keys));
            note_layer(r, l, kind, c, first, out);
        }
        TRY(tf_ffn(&r->tf, l, row));
    }
    return note_finals(r, c, first, out);
}

/* ==== Words ==== */

/* The bytes of a chunk, from its tokens. */
struct WordReader {
    const struct ChunkReader *r;
    struct Str bytes;
};

static int chunk_bytes(void *user, int chunk, int n, struct LexText *out)
{
    (void)n; /* one at a time */
    struct WordReader *w = user;
    const struct Chunk *c = &w->r->text->chunks[chunk];
    w->bytes.len = 0;
    for (int i = c->begin; i < c->end; i++) {
        struct Slice piece = tokenizer_piece(w->r->e->tok, w->r->text->ids.ids[i]);
        TRY(str_append(&w->bytes, piece.data, piece.len));
    }
    *out = (struct LexText){w->bytes.data, w->bytes.len};
    return PC_OK;
}

/* One question's words in all chunks: a feature, and what they take off the final score. */
static int note_words(struct WordReader *w, int ask, int sample, double *score,
                      struct ChunkSamples *out)
{
    const struct ChunkText *t = w->r->text;
    const struct LexReader chunks = {chunk_bytes, w, 1, 1};
    struct Str asked = {0};
    int status = prompt_words(w->r->e->tok, &t->asks[ask], &asked);
    if (status == PC_OK)
        status = bm25_read((struct LexText){asked.data, asked.len}, &chunks, t->n_chunks, score);
    str_free(&asked);
    TRY(status);
    lex_shares(score, t->n_chunks);
    for (int c = 0; c < t->n_chunks; c++) {
        size_t cell = (size_t)sample * (size_t)out->n_chunks + (size_t)c;
        out->feature[cell * (size_t)out->n_features + (size_t)words_feature(out)] = (float)score[c];
        out->final[cell] -= FUSION_NATS * score[c];
    }
    return PC_OK;
}

static int note_all_words(struct ChunkReader *r, struct ChunkSamples *out)
{
    struct WordReader w = {.r = r};
    double *score = mem_alloc((size_t)r->text->n_chunks, sizeof *score);
    int status = score ? PC_OK : PC_ENOMEM;
    for (int i = 0; i < r->text->n_asks && status == PC_OK; i++)
        status = note_words(&w, i, out->n + i, score, out);
    str_free(&w.bytes);
    mem_free(score);
    return status;
}

/* ==== A text ==== */

static int read_all(struct ChunkStudy *st, struct ChunkReader *r, struct ChunkSamples *out)
{
    for (int c = 0; c < r->text->n_chunks; c++) {
        if (st->opt.stop && st->opt.stop(st->opt.user)) return err_set(PC_EINTR, "stopped");
        TRY(read_chunk(r, &r->text->chunks[c]));
        TRY(ask_chunk(r, c, out->n, out));
        kv_clear(&r->kv, &r->table);
    }
    return r->text->real ? note_all_words(r, out) : PC_OK;
}

int chunk_text_read(struct ChunkStudy *st, const struct ChunkText *t, struct ChunkSamples *out)
{
    struct ChunkReader r;
    int status = reader_open(&r, st->e, t);
    if (status == PC_OK) status = read_all(st, &r, out);
    reader_close(&r);
    for (int i = 0; i < t->n_asks && status == PC_OK; i++, out->n++) {
        out->chunks[out->n] = t->n_chunks;
        memcpy(out->right + (size_t)out->n * (size_t)out->n_chunks,
               t->right + (size_t)i * (size_t)t->stride, (size_t)t->n_chunks);
    }
    return status;
}

/* calibrate_chunks.h - from which heads' attention to a chunk one can tell early whether it holds the answer.
 *
 * Texts with made-up facts in them, or a user's own rows, are read chunk by chunk, as a run reads them; each chunk is read
 * once, and then all questions about its text are asked of it at once, over its keys and values. A user's rows are laid one
 * behind the other, as one text of all their chunks: the answer is to be told apart from many. Every layer's attention of
 * every question's last rows on every chunk becomes features (calib/chunk_choose.h), one more are the words that a row's question shares
 * with a chunk, and the surprise of the question's words is the final score, in rows less what words take off in fusion.
 * Made-up facts say what is asked for in the question's very words; so there words count nothing, neither for a choice nor for a risk. Half of the texts choose heads and layers; the other half says how often they lose the chunk; which layers
 * the profile has, of a dozen, and how many must survive, is for both to say.
 *
 *   chunk_study_open -> chunk_study_texts, chunk_study_row, chunk_study_rows -> chunk_study_choose -> a profile, and a report
 */
#ifndef PCOMP_CALIBRATE_CHUNKS_H
#define PCOMP_CALIBRATE_CHUNKS_H

#include "calib/chunk_choose.h"
#include "calib/chunk_facts.h"
#include "session.h"

enum { HALF_CHOOSES, HALF_REPORTS, N_HALVES };
enum { CANDIDATES_MAX = 11, PROFILE_HEADS = 8 };
/* Features of a KV head: each measure over the last few rows, then over more. */
enum { ROW_KINDS = 2, HEAD_FEATURES = ROW_KINDS * N_MEASURES };
static inline int feature_rows(int kind)
{
    return kind ? EARLY_ROWS : LAST_ROWS;
}

struct ChunkStudyOptions {
    int texts, rows; /* of each half: made-up ones, and a user's at most */
    int n_chunks;    /* of a text */
    int n_asks;      /* of it, CHUNK_FACTS_MAX at most */
    uint64_t seed;
    bool (*stop)(void *user);                                        /* as in struct Request */
    void (*on_progress)(void *user, const char *what, double share); /* may be NULL */
    void *user;
};

/* A user's own text, with a question and the answer as the text has it. */
struct ChunkRow {
    const char *context, *question, *answer;
};

struct ChunkStudy {
    struct Engine *e;
    struct ChunkStudyOptions opt;
    int chunk, keep;   /* as the settings and the model have it for a long text */
    struct Tokens hay; /* the text between the facts; its last quarter is for the second half */
    struct ChunkText *rows[N_HALVES]; /* of rows that are yet to be read; or NULL */
    struct ChunkSamples half[N_HALVES];
    int n_made[N_HALVES]; /* of its samples those of made-up texts, which come first */
};

/* The feature that holds words: behind those of all heads. */
static inline int words_feature(const struct ChunkSamples *s)
{
    return s->n_features - 1;
}

/* The lengths that a profile is made for: 128K and 1M tokens. */
enum { LENGTH_128K, LENGTH_1M, N_LENGTHS };

/* One layer behind which chunks could leave. */
struct ChunkCandidate {
    struct ChunkStop stop; /* ahead: of both halves */
    int *ahead,
        *winner; /* [samples of that half] chunks ahead of the right one, and of the final winner; -1: none; owned */
    int survivors[N_LENGTHS]; /* at the settings' risk, if chunks leave here only */
    double share[N_LENGTHS];  /* of the arithmetic, then; 1 where more survive than are held */
    bool chosen;
};

struct ChunkReport {
    struct ChunkCandidate list[CANDIDATES_MAX];
    int n, n_samples,
        n_made; /* layers looked at; samples of the half that reports, the first of made-up texts */
    int n_chunks[N_LENGTHS]; /* of as many tokens */
    double share[N_LENGTHS]; /* of the arithmetic, with the decisions chosen for that length */
    int *finals;  /* [n_samples] chunks ahead of the right one in the end; -1: none; owned */
    int *blended; /* [n_samples] the same where the profile's last heads count, too; owned */
    int *words;   /* [n_samples] the same by words alone; -1 also of made-up texts; owned */
};

/* text is what stands between the facts, UTF-8. chunk_study_close also takes a study that failed to open. Errors: PC_ERANGE
 * (text too short), PC_ENOMEM. */
int chunk_study_open(struct ChunkStudy *st, struct Engine *e, const struct ChunkStudyOptions *opt,
                     const char *text, size_t len);
void chunk_study_close(struct ChunkStudy *st);
/* Reads all made-up texts of both halves; before any rows. */
int chunk_study_texts(struct ChunkStudy *st);
/* Takes one row for a half; it is read together with others. *taken: false where the answer is
 * nowhere in the text, or in more than half of the chunks. */
int chunk_study_row(struct ChunkStudy *st, int half, const struct ChunkRow *row, bool *taken);
/* Reads the rows that still wait. */
int chunk_study_rows(struct ChunkStudy *st);
/* The layers, heads and shares of a profile. chunk_report_free frees the report, also after an error. */
int chunk_study_choose(struct ChunkStudy *st, struct ChunkProfile *profile,
                       struct ChunkReport *report);
void chunk_report_free(struct ChunkReport *r);

/* ==== Between the files ==== */

/* A text cut into chunks, and what is asked of it. chunk_text_free also after an error. */
struct ChunkText {
    struct Tokens ids;
    struct Chunk *chunks; /* [n_chunks] */
    struct Prompt *asks;  /* [n_asks] prefix and tail; no context */
    uint8_t *right;       /* [n_asks, stride] */
    int n_chunks, n_asks, stride;
    bool real; /* a user's: words count */
};

void chunk_text_free(struct ChunkText *t);
/* calibrate_chunks_read.c: all chunks and questions of a text, as samples behind those that the half has. */
int chunk_text_read(struct ChunkStudy *st, const struct ChunkText *t, struct ChunkSamples *out);

#endif

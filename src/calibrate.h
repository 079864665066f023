/* calibrate.h - which KV heads of a model must remember the long past, found without training (headwise.md D.4).
 *
 * A sample is a long text with needles in it, framed as the model's chats are, and a tail for each needle that asks for
 * it. Every second answer is spelled from the needle ("teacher forced"); the others are what the model itself says under
 * full attention, so that how an answer begins counts too. The text is read once; then only its tails are run again,
 * each a sequence of its own behind the text, with some heads confined to the first `sink` and the last `recent` keys.
 * What that does to the distribution of the answers is what these heads are for:
 *
 *   study_open -> study_scores (one head at a time, or what its attention looks at) -> a head map
 *              -> study_joint (all streaming heads of a choice at once) -> choose, refine, report
 *
 * Calibration is offline: it works on the host where that is simpler, and opens one sample after another.
 */
#ifndef PCOMP_CALIBRATE_H
#define PCOMP_CALIBRATE_H

#include "calib/head_score.h"
#include "calib/passkey.h"
#include "headmap.h"
#include "session.h"

enum { STUDY_LENS_MAX = 16, OWN_TOKENS = 16 };

/* How heads are scored. Those before HEADS_MASS run heads without their past, the next look at attention. */
enum HeadMethod {
    HEADS_ABLATE, /* joint KL of the answers at which this head goes, when the least needed of those left goes each time */
    HEADS_ALONE,  /* KL of the answers when this head alone is confined */
    HEADS_DEVIATE, /* change of the layer's attention output alone, relative, squared */
    HEADS_MASS,    /* attention of answer rows on the passkey that they spell */
    HEADS_COPY,    /* share of answer tokens that the head attends to most, in the needle */
    HEADS_ECHO, /* random tokens said four times: attention on earlier copies and what followed them */
    HEADS_ROPE, /* how far the mean query reaches to the mean key by rotation alone */
    HEADS_RANDOM,
    N_HEAD_METHODS
};

const char *head_method_name(enum HeadMethod m);
/* PC_ECONFIG lists the names. */
int head_method_by_name(const char *name, enum HeadMethod *out);

struct StudyOptions {
    bool
        parallel; /* chunks with reused positions, as the parallelcomp method keeps them; else one sequence */
    int lens[STUDY_LENS_MAX],
        n_lens;            /* tokens of a sample; sample i has lens[i % n_lens]; 0: the default */
    int samples, held_out; /* scored, and kept apart for reports */
    int passkeys, words;   /* of a sample, and of a passkey */
    int sink, recent;
    uint64_t seed;
    bool (*stop)(void *user);                                        /* as in struct Request */
    void (*on_progress)(void *user, const char *what, double share); /* may be NULL */
    void *user;
};

/* What a sample is made of. */
enum SampleKind { SAMPLE_PASSKEYS, SAMPLE_TEXT, SAMPLE_ECHO };

struct Span {
    int begin, end;
};

struct StudySample {
    struct Prompt
        prompt; /* its tail, all asks one behind the other, is run with and without heads' pasts */
    int n_asks; /* 1 without passkeys: the whole tail */
    bool own[PASSKEYS_MAX];          /* the answer is the model's own */
    int ask_begin[PASSKEYS_MAX + 1]; /* rows of the tail: each ask sees none of the others */
    struct Span
        needle[PASSKEYS_MAX]; /* the passkey's words, counted from the first token of the prefix */
    struct Span answer[PASSKEYS_MAX]; /* in the tail: the same words, or room for the model's own */
    int n_rows, max_rows; /* rows whose next token is part of an answer; room for them */
    int n_spelled;        /* of these the first so many spell a needle */
    int *rows, *targets,
        *ask; /* [n_rows] row in the tail, token that follows, of which answer; owned */
};

struct SamplePlace {
    enum SampleKind kind;
    bool held_out; /* other seeds, depths and part of the text than the samples that score */
    int index;
};

/* A sample that was read: its cache, and room to run its tail for every KV head of a layer at once. */
struct Reading {
    struct StudySample sample;
    struct Session session; /* owns the prompt */
    struct Result result;
    struct Request request;
    struct Transformer tf; /* [n_kv_heads * tail] rows */
    int n_tail, n_keys;    /* rows of a tail; keys before it */
    int *tokens, *pos, *seq_begin,
        *idx;                     /* [n_kv_heads * tail], [n_kv_heads * n_asks + 1], [piece] */
    int *window;                  /* [n_layers, n_heads] */
    float *logits;                /* [piece, vocab_size] */
    float *ref_logits, *ref_prob; /* [n_rows, vocab_size] under full attention */
    double *ref_lse, *kl, *nll;   /* [n_rows] */
    uint8_t *hit;                 /* [n_rows] the likeliest token is the right one */
};

struct Study {
    struct Engine *e;
    struct StudyOptions opt;
    struct HeadShape shape;
    struct Tokens text; /* the haystack; its last quarter is for held-out samples */
    int chunks, chunk;  /* parallel: chunks of a sample at least, tokens of one at most */
    int *
        own; /* [2, samples at most, PASSKEYS_MAX, 1 + OWN_TOKENS] how many, and the model's own answer; 0: not asked */
    struct Reading reading;
};

/* How samples fare under one choice of heads. */
struct Joint {
    double kl; /* mean over answers' rows against full attention, nats */
    double
        exact; /* share of answers whose every token is the likeliest: what greedy decoding would spell */
    double right; /* share of answer tokens that are the likeliest */
    double nll;   /* mean over answers' rows, nats a token */
};

/* text is the haystack, UTF-8. Fills lens, and held_out when it is 0. study_close also takes a study that failed to
 * open. Errors: PC_ECONFIG (lengths beyond the window),
 * PC_ERANGE (text or lengths too short), PC_ENOMEM. */
int study_open(struct Study *st, struct Engine *e, const struct StudyOptions *opt, const char *text,
               size_t len);
void study_close(struct Study *st);

/* Scores every head over the samples into map, which the caller owns: headmap_close. Scores are 0..1: ablate, alone and
 * deviate by the largest, *unit, so that score * unit is in nats or a ratio; 1 for the others. */
int study_scores(struct Study *st, enum HeadMethod method, struct HeadMap *map, double *unit);
/* Each choice keep[n_choices][heads] u8 with all its streaming heads confined at once, on n_samples from set->index on:
 * out [n_choices], and *full the same samples under full attention. Every sample is read once. */
int study_joint(struct Study *st, const struct SamplePlace *set, int n_samples, const uint8_t *keep,
                int n_choices, struct Joint *out, struct Joint *full);

/* ==== The choice (calibrate_choose.c) ==== */

struct Tolerance {
    bool exact;   /* of the loss of exact answers, else of the joint KL */
    double limit; /* share, or nats */
};

/* The fewest heads that keep within the tolerance on the samples that score, as a ratio of all. *at: how they fare.
 * PC_ERANGE: of exact answers when full attention gives none. */
int study_tolerance(struct Study *st, const struct HeadMap *map, const struct Tolerance *tol,
                    double *ratio, struct Joint *at);
/* Up to n_tests exchanges of a kept head near the cut for a dropped one; each that lowers the joint KL stays, as
 * exchanged scores. *n_kept: how many stayed. */
int study_refine(struct Study *st, struct HeadMap *map, double ratio, int n_tests, int *n_kept);
/* From a map of heads alone, scores in nats * 1/unit, to one in which heads went one after another, all that went before
 * confined together: a score is the joint KL without that head and those below it. *unit: as of study_scores. */
int study_descend(struct Study *st, struct HeadMap *map, double *unit);

/* The picture: layers by heads, kept ones marked; a file of its own, for light and dark pages. */
int headmap_svg(const struct HeadMap *map, const uint8_t *keep, const char *title, struct Str *out);

/* ==== Between the files ==== */

/* calibrate_sample.c. study_sample_free also after an error. */
int study_sample_make(const struct Study *st, const struct SamplePlace *place,
                      struct StudySample *out);
void study_sample_free(struct StudySample *s);

/* Adds the rows that predict tail tokens [begin, end), begin > 0, of answer `ask`. */
void sample_rows(struct StudySample *s, const int *tail, int begin, int end, int ask);

/* calibrate_answer.c: puts the model's own answers into the tail of the sample that was read, and adds their rows. */
int study_answer(struct Study *st, const struct SamplePlace *place);

/* calibrate_read.c */
int study_enter(struct Study *st,
                const struct SamplePlace *place); /* reads a sample and its reference */
void study_leave(struct Study *st);
int study_stop(const struct Study *st);
void study_progress(const struct Study *st, const char *what, double share);
/* The batch of n copies of the tail; then tf.x holds their tokens' embeddings. */
int tail_begin(struct Study *st, int n, const struct HeadMasks *masks, struct Batch *b);
/* From `layer` to the last, all of it. */
int tail_layers(struct Study *st, const struct Batch *b, int layer);
/* Judges copy `copy` of the tail in tf.x against the reference: kl, nll, hit. */
int tail_judge(struct Study *st, int copy);
/* The whole tail with the heads not in keep confined, and judged. */
int tail_confined(struct Study *st, const uint8_t *keep);

/* calibrate_ablate.c, calibrate_attend.c: adds this sample's scores, sum [n_layers * n_kv_heads], or
 * q_sum [n_layers * n_heads]. at, of: for the progress. */
int ablate_sample(struct Study *st, enum HeadMethod method, int at, double *sum);
int attend_sample(struct Study *st, enum HeadMethod method, double *q_sum);
/* Means over all samples' rows, then a score from them. */
struct RopeMeans {
    double *q, *k; /* [n_layers, n_heads, head_dim], [n_layers, n_kv_heads, head_dim] sums */
    int64_t n;     /* rows in them */
};
int rope_sample(struct Study *st, struct RopeMeans *means);
/* Turns the sums into means. */
void rope_scores(const struct Study *st, struct RopeMeans *means, float *q_scores);

#endif

/* session_bias.h - a request run to be measured: where its last question rows look, and how well an answer is predicted. */
#ifndef PCOMP_SESSION_BIAS_H
#define PCOMP_SESSION_BIAS_H

#include "calib/bias_profile.h"
#include "pcomp.h"

struct BiasAsk {
    struct Request req;
    const char
        *answer; /* its tokens are scored after the question; NULL or "": the question's own are */
    const int *
        kept; /* [n_kept] chunks that win, as an earlier run of the same request found them: only they are
                      * read. NULL: all are */
    int n_kept;
    struct BiasProfile *local; /* adds what is seen of each chunk read; may be NULL */
    struct BiasProfile
        *merged; /* adds what is seen of the merged cache, before rules of stage 2; may be NULL */
};

struct BiasScore {
    double nll;   /* mean over the scored tokens, nats */
    int n_scored; /* of an answer at most max_tokens, and a question's length */
    int rows;     /* question rows that were watched */
};

/* Runs ask->req up to the question, under parallelcomp and the engine's settings, and scores. result_free(r) always.
 * The profiles are of the engine's model. PC_ECONFIG under another method. */
int session_bias(struct Engine *e, const struct BiasAsk *ask, struct BiasScore *out,
                 struct Result *r);

#endif

/* sampler.h - the next token from a row of logits: greedy, or temperature and top-p with a seed. */
#ifndef PCOMP_SAMPLER_H
#define PCOMP_SAMPLER_H

#include "base.h"

struct SamplerConfig {
    float temperature; /* 0: greedy */
    float top_p; /* draw from the likeliest tokens that hold this share; 1 or more: from all */
    uint64_t seed;
};

struct Sampler {
    struct SamplerConfig config;
    int vocab_size;
    uint64_t state[4]; /* xoshiro256** */
    double *weight;    /* [vocab_size] f64 unnormalised probabilities; owned; NULL when greedy */
    int *heap;         /* [vocab_size] token ids; owned; NULL when greedy */
};

/* Allocates all that drawing needs. The caller owns it: sampler_close. Errors: PC_ENOMEM. */
int sampler_open(struct Sampler *s, int vocab_size, const struct SamplerConfig *config);
void sampler_close(struct Sampler *s);

/* Draws the next token. The same seed and logits give the same ids on every machine. Allocates
 * nothing. Errors: PC_EINTERNAL (a logit is NaN or +infinity, or all are -infinity). */
int sampler_next(struct Sampler *s, const float *logits, int *id);

/* Highest of logits[n]; of equal ones the lower id. Errors as above. */
int sampler_argmax(const float *logits, int n, int *id);

#endif

/* grid.h - generated rows at every length and depth that the flags name. */
#ifndef PCOMP_GRID_H
#define PCOMP_GRID_H

#include "eval.h"
#include "generate.h"

enum { GRID_MAX = 64 };

struct Grid {
    const struct EvalCli *eval;
    struct GenSpec spec; /* what all rows share */
    int64_t tokens[GRID_MAX];
    double depths[GRID_MAX];
    int n_tokens, n_depths;
    struct Str haystack, qa;
};

/* Reads the flags; `depths` is the list for want of --depth (NULL: drawn from the seed). grid_close always. */
int grid_open(const struct EvalCli *eval, const char *depths, struct Grid *out);
/* Reads the texts that a task needs; cli_model() must have run. */
int grid_texts(struct Grid *g, const char *task);
long grid_rows(const struct Grid *g);
/* Makes the rows of a task in order; row() below 0 ends the walk. */
int grid_each(struct Grid *g, const char *task, const struct Tokenizer *tok,
              int (*row)(void *user, struct Sample *sample), void *user);
void grid_close(struct Grid *g);

#endif

/* eval.h - what the commands of pcomp-eval share. */
#ifndef PCOMP_EVAL_H
#define PCOMP_EVAL_H

#include "cli.h"

struct EvalCli {
    struct Cli cli; /* first: the tables of flags count from its start */
    const char *code_sim;
};

int cmd_rescore(struct Cli *cli);

#endif

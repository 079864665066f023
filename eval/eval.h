/* eval.h - what the commands of pcomp-eval share. */
#ifndef PCOMP_EVAL_H
#define PCOMP_EVAL_H

#include "cli.h"

struct EvalCli {
    struct Cli cli; /* first: the tables of flags count from its start */
    /* running a benchmark */
    const char *data, *tasks, *profile, *run_dir, *split, *code_sim;
    struct TextList arms;
    int limit, workers;
};

/* pcomp-eval longbench, longbench-e, infinitebench: cmd_bench.c */
int cmd_longbench(struct Cli *cli);
int cmd_longbench_e(struct Cli *cli);
int cmd_infinitebench(struct Cli *cli);

#endif

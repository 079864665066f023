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
    /* generated rows */
    const char *lengths, *depths; /* lists between commas */
    const char *haystack, *qa_file, *needle, *needle_question, *needle_answer;
    int count, seed, n_keys, n_values, n_queries, n_hops, n_needles, n_words;
    /* report */
    const char *baseline; /* the method that the others are compared with */
};

extern const struct Program PCOMP_EVAL; /* commands.c */

int cmd_longbench(struct Cli *cli); /* cmd_bench.c */
int cmd_longbench_e(struct Cli *cli);
int cmd_infinitebench(struct Cli *cli);
int cmd_ruler(struct Cli *cli); /* cmd_grid.c */
int cmd_niah(struct Cli *cli);
int cmd_rescore(struct Cli *cli);
int cmd_report(struct Cli *cli);
int cmd_generate(struct Cli *cli);

#endif

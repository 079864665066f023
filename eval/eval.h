/* eval.h - what the commands of pcomp-eval share. */
#ifndef PCOMP_EVAL_H
#define PCOMP_EVAL_H

#include "cli.h"

struct EvalCli {
    struct Cli cli; /* first: the tables of flags count from its start */
    /* generate */
    const char *lengths, *depths; /* lists between commas */
    const char *haystack, *qa_file, *needle, *needle_question, *needle_answer;
    int count, seed, n_keys, n_values, n_queries, n_hops, n_needles;
};

int cmd_generate(struct Cli *cli);

#endif

/* main.c - pcomp-eval */
#include "eval.h"

int main(int argc, char **argv)
{
    struct EvalCli eval = {.cli.program = &PCOMP_EVAL, .count = 1};
    int code = program_run(&eval.cli, argc, argv);
    mem_free(eval.arms.items);
    return code;
}

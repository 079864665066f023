/* main.c - pcomp */
#include "cli.h"

int main(int argc, char **argv)
{
    struct Cli cli = {.program = &PCOMP, .depth = -1};
    return program_run(&cli, argc, argv);
}

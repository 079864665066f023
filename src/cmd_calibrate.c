/* cmd_calibrate.c - `pcomp calibrate WHAT`: what is learnt of a model once, for settings to use. */
#include "cli.h"

#include <string.h>

int cmd_calibrate(struct Cli *cli)
{
    if (cli->args.n > 0 && strcmp(cli->args.items[0], "bias") == 0) return calibrate_bias(cli);
    return err_set(PC_ECONFIG, "calibrate what? `pcomp calibrate bias` is known");
}

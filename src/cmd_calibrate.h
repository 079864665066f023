/* cmd_calibrate.h - inside the calibrate command: what its words share. */
#ifndef PCOMP_CMD_CALIBRATE_H
#define PCOMP_CMD_CALIBRATE_H

#include "cli.h"
#include "progress.h"

/* Takes the model that may stand behind the word: `pcomp calibrate heads MODEL`. No arguments are left. */
int calibrate_model(struct Cli *cli);
/* Runs a study under the progress view, and says what a stop left behind: nothing. */
int calibrate_watch(struct Cli *cli, struct ProgressView *view, int (*study)(void *run), void *run);

int calibrate_heads(struct Cli *cli);  /* cmd_calibrate_heads.c */
int calibrate_bias(struct Cli *cli);   /* cmd_calibrate_bias.c */
int calibrate_chunks(struct Cli *cli); /* cmd_calibrate_chunks.c */

#endif

/* cmd_calibrate.c - `pcomp calibrate WORD`: what a model is measured for. */
#include "cmd_calibrate.h"

#include <stdio.h>
#include <string.h>

int cmd_calibrate(struct Cli *cli)
{
    const char *word = cli->args.n ? cli->args.items[0] : "";
    if (strcmp(word, "heads") == 0) return calibrate_heads(cli);
    if (strcmp(word, "bias") == 0) return calibrate_bias(cli);
    if (strcmp(word, "chunks") == 0) return calibrate_chunks(cli);
    return err_set(
        PC_ECONFIG,
        "calibrate '%.32s' is not known; accepted: heads (which KV heads must keep "
        "everything), bias (which tokens draw too much attention), chunks (by which heads chunks can leave early)",
        word);
}

int calibrate_model(struct Cli *cli)
{
    if (cli->args.n > 2 || (cli->args.n == 2 && cli->model))
        return err_set(PC_ECONFIG, "calibrate %s takes one model; give texts with -f FILE",
                       cli->args.items[0]);
    if (cli->args.n == 2) cli->model = cli->args.items[1];
    cli->args.n = 0; /* neither is a file */
    return PC_OK;
}

int calibrate_watch(struct Cli *cli, struct ProgressView *view, int (*study)(void *run), void *run)
{
    int status = progress_open(view, cli->progress, cli->quiet);
    if (status == PC_OK) status = study(run);
    progress_clear(view);
    if (status == PC_EINTR)
        fprintf(stderr, "pcomp: stopped; nothing was written; repeat the command to start again\n");
    return status;
}

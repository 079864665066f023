/* cmd_rescore.c - `pcomp-eval rescore BENCHMARK DIR…`: scores prediction files that already exist. */
#include "eval.h"
#include "jieba.h"
#include "rescore.h"

#include <string.h>

static int read_code_sim(const char *name, enum CodeSim *out)
{
    *out = CODE_SIM_DIFFLIB;
    if (!name || strcmp(name, "difflib") == 0) return PC_OK;
    *out = CODE_SIM_INDEL;
    if (strcmp(name, "indel") == 0) return PC_OK;
    return err_set(PC_ECONFIG, "--code-sim is difflib or indel, not '%.64s'", name);
}

/* One folder, appended to `out`. */
static int rescore_one(struct Cli *cli, const char *dir, const struct ScoreOptions *o,
                       struct Str *out)
{
    struct Rescore r;
    int status = rescore_folder(cli->args.items[0], dir, o, &r);
    if (status == PC_OK) {
        if (cli->json) {
            status = rescore_json(&r, dir, out);
        } else {
            if (cli->args.n > 2) status = str_appendf(out, "%s\n", dir);
            if (status == PC_OK) status = rescore_text(&r, out);
        }
    }
    if (r.errors.len) log_msg(LOG_WARN, "%.*s", (int)r.errors.len - 1, r.errors.data);
    bool partial = r.n_refused > 0;
    for (int i = 0; i < r.n_tasks; i++) partial |= r.tasks[i].n_bad > 0;
    rescore_free(&r);
    return status == PC_OK && partial ? CLI_EPARTIAL : status;
}

static int rescore_all(struct Cli *cli, const struct ScoreOptions *o, struct Str *out)
{
    bool list = cli->json && cli->args.n > 2; /* several folders: a list of their objects */
    int partial = PC_OK;
    if (list) TRY(str_append(out, "[", 1));
    for (int i = 1; i < cli->args.n; i++) {
        if (i > 1) TRY(str_append(out, list ? "," : cli->json ? "" : "\n", list || !cli->json));
        int status = rescore_one(cli, cli->args.items[i], o, out);
        if (status < 0 && status != CLI_EPARTIAL) return status;
        if (status < 0) partial = status;
    }
    if (list) TRY(str_append(out, "]\n", 2));
    TRY(out_write(out->data, out->len));
    return partial;
}

int cmd_rescore(struct Cli *cli)
{
    const struct EvalCli *eval = (const struct EvalCli *)cli;
    struct ScoreOptions o = {0};
    struct Jieba *jieba = NULL;
    struct Str out = {0};
    if (cli->args.n < 2)
        return err_set(PC_ECONFIG, "usage: pcomp-eval rescore longbench|longbench-e|infinitebench "
                                   "DIR… [--json]");
    TRY(read_code_sim(eval->code_sim, &o.code_sim));
    bool chinese = false;
    for (int i = 1; i < cli->args.n; i++)
        chinese |= rescore_cuts_chinese(cli->args.items[0], cli->args.items[i]);
    /* Without the dictionary the Chinese tasks are refused one by one, and say so. */
    if (chinese) {
        if (jieba_open(NULL, &jieba) == PC_OK)
            o.jieba = jieba;
        else
            log_msg(LOG_WARN, "%s", err_text());
    }
    int status = rescore_all(cli, &o, &out);
    str_free(&out);
    jieba_close(jieba);
    return status;
}

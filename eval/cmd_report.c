/* cmd_report.c - `pcomp-eval report RUN...`: reads runs and writes the report. */
#include "eval.h"
#include "report.h"

#include <string.h>

struct Form {
    const char *name, *ending;
    int (*write)(const struct Report *r, struct Str *out);
};

static const struct Form FORMS[] = {
    {"html", ".html", report_html},
    {"md", ".md", report_markdown},
    {"csv", ".csv", report_csv},
};

enum { N_FORMS = sizeof FORMS / sizeof FORMS[0] };

/* --format, else the ending of --output, else HTML. */
static int choose_form(const struct Cli *cli, const struct Form **out)
{
    size_t len = cli->output ? strlen(cli->output) : 0;
    *out = cli->format ? NULL : &FORMS[0];
    for (int i = 0; i < N_FORMS; i++) {
        size_t n = strlen(FORMS[i].ending);
        if (cli->format ? strcmp(cli->format, FORMS[i].name) == 0
                        : len > n && strcmp(cli->output + len - n, FORMS[i].ending) == 0)
            *out = &FORMS[i];
    }
    if (*out) return PC_OK;
    return err_set(PC_ECONFIG, "--format '%.32s' is unknown; accepted: html, md, csv", cli->format);
}

static int write_report(struct Cli *cli, const struct Form *form, const struct Report *r)
{
    struct Str text = {0};
    int status = form->write(r, &text);
    if (status == PC_OK)
        status = cli->output && strcmp(cli->output, "-") != 0
                     ? out_file(cli->output, text.data, text.len)
                     : out_write(text.data, text.len);
    str_free(&text);
    return status;
}

/* Each run's problems are in the report; here is only said that there are some. */
static void tell_problems(const struct Run *run)
{
    if (run->n_problems_all == 0) return;
    const struct RunProblem *first = &run->problems[0];
    log_msg(LOG_WARN, "%s: %ld thing%s could not be read, the first: %s, line %ld: %s",
            run->name.data, run->n_problems_all, run->n_problems_all == 1 ? "" : "s",
            first->file.data, first->line, first->what.data);
}

static int report_runs(struct Cli *cli, const struct Form *form, struct Run *runs)
{
    const struct EvalCli *eval = (const struct EvalCli *)cli;
    struct Report report = {0};
    for (int i = 0; i < cli->args.n; i++) {
        TRY(run_read(cli->args.items[i], &runs[i]));
        tell_problems(&runs[i]);
    }
    int status = report_make(runs, cli->args.n, eval->baseline, &report);
    if (status == PC_OK) status = write_report(cli, form, &report);
    report_free(&report);
    return status;
}

int cmd_report(struct Cli *cli)
{
    const struct Form *form;
    TRY(choose_form(cli, &form));
    if (cli->args.n == 0)
        return err_set(PC_ECONFIG, "name the folder of a run, or several to compare them");
    struct Run *runs = mem_alloc((size_t)cli->args.n, sizeof *runs);
    if (!runs) return PC_ENOMEM;
    int status = report_runs(cli, form, runs);
    for (int i = 0; i < cli->args.n; i++) run_free(&runs[i]);
    mem_free(runs);
    return status;
}

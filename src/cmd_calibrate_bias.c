/* cmd_calibrate_bias.c - `pcomp calibrate bias`: attention bias of a model over a text, drawn, and rules against it.
 *
 * Writes bias.html, bias.svg and bias.json into a folder, and calib.json, for --config, when rules are proposed.
 * Standard output gets the verdict; what is being done goes to standard error.
 */
#include "bias_page.h"
#include "cmd_calibrate.h"
#include "progress.h"
#include "tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { TOKENS = 8192, SAMPLES = 16 };
/* A text that fits the window would be one chunk, and there would be nothing to see. */
static const char CHUNK[] = "2048";
static const char BUILT_IN[] = "a made-up text";

struct Calibration {
    struct Cli *cli;
    struct Engine *engine;
    struct ProgressView view;
    struct Str context;
    const char *source;
    struct BiasItems items;
    struct BiasStudy study;
};

/* ==== Callbacks ==== */

static void on_progress(void *user, const struct Progress *p)
{
    struct Calibration *c = user;
    progress_show(&c->view, p);
}

static bool on_stop(void *user)
{
    (void)user;
    return signals_stop(NULL);
}

static void on_step(void *user, const char *text)
{
    struct Calibration *c = user;
    progress_begin(&c->view, c->study.plan.available_bytes);
    log_msg(LOG_INFO, "%s", text);
}

/* ==== In ==== */

static int check_flags(struct Cli *cli)
{
    TRY(calibrate_model(cli));
    if (cli->samples == 1)
        return err_set(PC_ECONFIG,
                       "one question cannot be split into two halves; give --samples 2 or more");
    if (!cli->output) return err_set(PC_ECONFIG, "no folder for the results; give -o DIR");
    if (cli->questions.n > STUDY_ITEMS_MAX)
        return err_set(PC_ECONFIG, "%d questions; at most %d are taken", cli->questions.n,
                       STUDY_ITEMS_MAX);
    TRY(out_folder(cli->output));
    if (access(cli->output, W_OK | X_OK) != 0)
        return err_set(CLI_EOUTPUT, "%s: cannot write into the folder: %s", cli->output,
                       strerror(errno));
    return PC_OK;
}

static int open_engine(struct Calibration *c)
{
    struct Cli *cli = c->cli;
    TRY(cli_settings(cli));
    if (cli->settings.chunk == AUTO) {
        TRY(list_push(&cli->assigned, "chunk"));
        TRY(list_push(&cli->assigned, CHUNK));
    }
    return cli_open(cli, &c->engine);
}

/* The text, cut to the tokens wanted. */
static int read_text(struct Calibration *c)
{
    struct Cli *cli = c->cli;
    int want = cli->tokens ? cli->tokens : TOKENS, n;
    size_t bytes;
    c->source = cli->files.n ? cli->files.items[0] : BUILT_IN;
    if (cli->files.n)
        TRY(cli_context(cli, &c->context));
    else
        TRY(prose_make(&c->context, (size_t)want * 8));
    TRY(text_cut(engine_tokenizer(c->engine), &c->context, want, &bytes, &n));
    c->context.len = bytes;
    c->context.data[bytes] = '\0';
    return PC_OK;
}

static int make_items(struct Calibration *c)
{
    struct Cli *cli = c->cli;
    TRY(cli_questions(cli));
    if (cli->questions.n) return items_take(cli->questions.items, cli->questions.n, &c->items);
    return items_make(c->context.data, c->context.len, cli->samples ? cli->samples : SAMPLES,
                      &c->items);
}

static int run_study(struct Calibration *c)
{
    c->study.engine = c->engine;
    c->study.items = &c->items;
    c->study.say = on_step;
    c->study.req = (struct Request){.context = c->context.data,
                                    .context_len = c->context.len,
                                    .user = c,
                                    .on_progress = on_progress,
                                    .stop = on_stop};
    int status = bias_study_run(&c->study);
    progress_clear(&c->view);
    if (status == PC_EINTR)
        fprintf(stderr, "pcomp: stopped before anything was written; repeat the command to start "
                        "again, with fewer --samples or --tokens if it takes too long\n");
    return status;
}

/* ==== Out ==== */

static int write_file(const struct Calibration *c, const char *name, const struct Str *text)
{
    struct Str path = {0};
    int status = str_appendf(&path, "%s/%s", c->cli->output, name);
    if (status == PC_OK) status = out_file(path.data, text->data, text->len);
    if (status == PC_OK) log_msg(LOG_INFO, "wrote %s", path.data);
    str_free(&path);
    return status;
}

static int write_page(const struct Calibration *c, const char *name,
                      int (*make)(const struct BiasPage *page, struct Str *out))
{
    struct BiasPage page = {&c->study, engine_model(c->engine)->cfg.name, engine_device(c->engine),
                            c->source};
    struct Str text = {0};
    int status = make(&page, &text);
    if (status == PC_OK) status = write_file(c, name, &text);
    str_free(&text);
    return status;
}

/* Rules that an earlier run proposed are not left beside a page that proposes none. */
static int write_rules(const struct Calibration *c)
{
    struct Str text = {0};
    int status;
    if (c->study.helps) {
        status = bias_settings(&c->study, &text);
        if (status == PC_OK) status = write_file(c, "calib.json", &text);
    } else {
        status = str_appendf(&text, "%s/calib.json", c->cli->output);
        if (status == PC_OK && unlink(text.data) != 0 && errno != ENOENT)
            status = err_set(CLI_EOUTPUT, "%s: cannot be removed: %s", text.data, strerror(errno));
    }
    str_free(&text);
    return status;
}

static int write_results(const struct Calibration *c)
{
    struct Str verdict = {0};
    TRY(write_page(c, "bias.html", bias_page));
    TRY(write_page(c, "bias.svg", bias_figure));
    TRY(write_page(c, "bias.json", bias_json));
    TRY(write_rules(c));
    int status = bias_study_verdict(&c->study, &verdict);
    if (status == PC_OK) status = str_append(&verdict, "\n", 1);
    if (status == PC_OK) status = out_write(verdict.data, verdict.len);
    str_free(&verdict);
    return status;
}

int calibrate_bias(struct Cli *cli)
{
    struct Calibration c = {.cli = cli};
    int status;
    TRY(check_flags(cli));
    TRY(progress_open(&c.view, cli->progress, cli->quiet));
    TRY_GOTO(open_engine(&c));
    TRY_GOTO(read_text(&c));
    TRY_GOTO(make_items(&c));
    TRY_GOTO(run_study(&c));
    status = write_results(&c);
fail:
    if (c.study.items) bias_study_close(&c.study);
    items_free(&c.items);
    str_free(&c.context);
    engine_close(c.engine);
    return status;
}

/* cli.h - what the commands of both programs share: flags, request loading, exit codes, signals, output.
 *
 * One table a program lists every flag with the commands that take it; it drives parsing, --help and
 * the shell completions. Every setting of config.h is a flag too. Functions here may print; the
 * engine below them does not.
 */
#ifndef PCOMP_CLI_H
#define PCOMP_CLI_H

#include "pcomp.h"
#include "team.h"
#include "text_source.h"

#include <stdio.h>

/* Outcomes that only a command line knows, beside those of enum PcStatus. */
enum { CLI_EOUTPUT = -100, CLI_EPARTIAL = -101 };

enum FlagKind { FLAG_SWITCH, FLAG_TEXT, FLAG_LIST, FLAG_INT, FLAG_REAL, FLAG_SETTING };

struct Flag {
    const char *name;
    char letter; /* 0: none */
    enum FlagKind kind;
    size_t offset;   /* in struct Cli, or in a struct that begins with one */
    double min, max; /* FLAG_INT, FLAG_REAL */
    int commands;    /* bits of the commands that take it */
    const char *arg; /* what the value is called in --help; FLAG_SETTING: the setting */
    const char *help;
};

struct TextList {
    const char **items; /* borrowed from argv, or from Cli.texts */
    int n, cap;
};

struct Cli;
struct TextStream;

struct Command {
    const char *name;
    int bit;
    int (*run)(struct Cli *cli); /* returns a status, not an exit code */
    const char *summary, *usage, *about, *example;
    const char *const *defaults; /* settings that differ for this command: name, value, …, NULL */
    const char *words;           /* its arguments, for the completions; may be NULL */
};

/* One program: its commands and flags. program_run() does the rest. */
struct Program {
    const char *name, *about;
    const struct Command *commands;
    int n_commands;
    const struct Flag *flags;
    int n_flags;
    int on_engine; /* bits of the commands that take the engine's settings as flags */
    /* Bits of the commands for which several processes work together: on one request, by messages (team.h); or on many,
     * each taking items that no other has (results.h). The others are run by rank 0 alone. */
    int on_team, on_queue;
};

struct Cli {
    const struct Program *program;
    const struct Command *command;
    struct Settings settings; /* effective once cli_settings() ran */
    struct TextList assigned; /* settings from flags: name, value, name, value, … */
    struct TextList files, questions, args;
    const char *model, *geometry, *config, *questions_file, *log_file, *progress, *explain;
    const char *output, *text_dir, *glob, *format, *store_dir;
    bool json, jsonl, plan, quiet, verbose, fresh, no_needle, markdown, help, version, share;
    int tokens, repeats, tail, ranks;
    double depth;
    /* calibrate heads */
    const char *score, *len, *tol;
    int samples, passkeys, words, sink, recent, refine;
    double ratio;
    bool compare;
    struct Slice
        asked; /* ask: the store's settings, which stand where others leave theirs open; JSON, data NULL: none */
    char model_path[4096];    /* set by cli_model() */
    struct Str question_text; /* owns the questions read from a file */
    struct Launch launch;     /* how this process was started */
    struct Team team;         /* all zero but in commands on_team of several processes */
};

extern const struct Program PCOMP; /* commands.c */

/* Finds the command, runs it, reports what failed; returns the exit code. cli->program is set. */
int program_run(struct Cli *cli, int argc, char **argv);

/* Reads the flags that follow the command's name. Errors are PC_ECONFIG. */
int cli_parse(struct Cli *cli, int argc, char **argv);
void cli_free(struct Cli *cli);
int list_push(struct TextList *list, const char *item);

/* Built-in defaults < the command's own < those of the store that is asked < --config < environment < flags. */
int cli_settings(struct Cli *cli);
/* True when a flag set this setting. */
bool cli_assigned(const struct Cli *cli, const char *name);
/* Sets cli->model_path: --geometry ("geometry:NAME"), --model, else $PCOMP_MODEL, else the one SmolLM2*.gguf in models/ beside the
 * binary's build folder. */
int cli_model(struct Cli *cli);
/* Lets processes of one machine share its cores and its memory, where the settings leave that open. */
void cli_share_machine(const struct Launch *launch, struct Settings *settings);
/* Finds the model, settles the settings and opens the engine, for the team if there is one. */
int cli_open(struct Cli *cli, struct Engine **out);

/* Appends the text of all files, with a blank line between two; standard input when it is piped. */
int cli_context(struct Cli *cli, struct Str *out);
/* The same text as a stream, on every rank of the team (cli_text.c). text_stream_close frees, also after an error. */
int cli_stream(struct Cli *cli, struct TextStream *out);
/* Appends made-up sentences, the same each time, until out has `bytes` or a few more. */
int prose_make(struct Str *out, size_t bytes);
/* Gathers -q and -Q into cli->questions and checks them. */
int cli_questions(struct Cli *cli);
/* Bytes of the longest prefix of text that has n tokens; *n_all is the whole text's count when
 * that is less. */
int text_cut(const struct Tokenizer *t, const struct Str *text, int n, size_t *bytes, int *n_all);

/* ==== Exit codes and messages ==== */

int exit_code(int status);
/* Sends standard error to the end of a file; cli_error() still reaches the terminal. */
int cli_log_file(const char *path);
/* Prints "pcomp: what, why; next step" from err_text(), also to the terminal when a log file is used. */
void cli_error(const char *text);

/* ==== Signals ==== */

void signals_catch(void);
bool signals_stop(void *user); /* for Request.stop: true after the first SIGINT or SIGTERM */
int signals_got(void);         /* 0, SIGINT or SIGTERM */

/* ==== Output ==== */

/* Writes to standard output and flushes; CLI_EOUTPUT with the reason when that fails. */
int out_write(const char *data, size_t len);
/* file_write() for a result: a failure is CLI_EOUTPUT. */
int out_file(const char *path, const char *data, size_t len);
/* Makes a folder for results, unless it is there: a failure is CLI_EOUTPUT. */
int out_folder(const char *path);
/* "22.4 GiB", "512 MiB" */
const char *bytes_text(size_t bytes, char text[32]);

/* The commands. */
int cmd_run(struct Cli *cli);
int cmd_demo(struct Cli *cli);
int cmd_plan(struct Cli *cli);
int cmd_inspect(struct Cli *cli);
int cmd_perplexity(struct Cli *cli);
int cmd_bench(struct Cli *cli);
int cmd_summarize(struct Cli *cli);
int cmd_calibrate(struct Cli *cli);
int cmd_index(struct Cli *cli);
int cmd_ask(struct Cli *cli);
/* Both programs have these (program.c). */
int cmd_settings(struct Cli *cli);
int cmd_completion(struct Cli *cli);
int cmd_help(struct Cli *cli);

/* Lets the request read its text's chunks from the folder that --store names (cmd_store.c): store is opened unless it was,
 * and made first when it is not there. A question too long for the stored chunks leaves the request as it was.
 * store_close always. */
int cli_store(struct Cli *cli, struct Engine *engine, struct Request *req, struct Store *store);

/* Prints a request's plan, as text or JSON (cmd_plan.c; used by --plan too). PC_ENOMEM when it does
 * not fit. */
int plan_show(struct Cli *cli, struct Engine *engine, const struct Request *req);

#endif

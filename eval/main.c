/* main.c - pcomp-eval: its tables of flags and commands. */
#include "eval.h"

enum {
    ON_SETTINGS = 1,
    ON_COMPLETION = 2,
    ON_HELP = 4,
    ON_RESCORE = 8,
    ON_ENGINE = 0,
    ON_ALL = 15,
};

#define AT(field) offsetof(struct EvalCli, field)

static const struct Flag FLAGS[] = {
    {"markdown", 0, FLAG_SWITCH, AT(cli.markdown), 0, 0, ON_SETTINGS, "", "as a Markdown table"},
    {"json", 0, FLAG_SWITCH, AT(cli.json), 0, 0, ON_RESCORE, "", "as JSON"},
    {"code-sim", 0, FLAG_TEXT, AT(code_sim), 0, 0, ON_RESCORE, "NAME",
     "lcc and repobench-p: difflib (default, as published) or indel (with python-Levenshtein)"},
    {"quiet", 0, FLAG_SWITCH, AT(cli.quiet), 0, 0, ON_ALL, "", "errors only on standard error"},
    {"verbose", 'v', FLAG_SWITCH, AT(cli.verbose), 0, 0, ON_ALL, "", "say more on standard error"},
    {"log-file", 0, FLAG_TEXT, AT(cli.log_file), 0, 0, ON_ALL, "FILE",
     "append what goes to standard error to a file instead"},
    {"help", 'h', FLAG_SWITCH, AT(cli.help), 0, 0, ON_ALL, "", "this help"},
    {"version", 0, FLAG_SWITCH, AT(cli.version), 0, 0, ON_ALL, "", "version, build and device"},
};

static const struct Command COMMANDS[] = {
    {"settings", ON_SETTINGS, cmd_settings, "every setting with its default and limits",
     "pcomp-eval settings [--markdown]",
     "A setting is a key of a --config file, a flag (--kv-cap) and a variable (PCOMP_KV_CAP).",
     "pcomp-eval settings --markdown", NULL, NULL},
    {"rescore", ON_RESCORE, cmd_rescore, "score existing prediction files",
     "pcomp-eval rescore longbench|longbench-e|infinitebench DIR... [--json]",
     "Reads DIR/<task>.jsonl, or DIR/preds_<task>.jsonl for InfiniteBench. No model is needed. Exit 5: some\n"
     "rows are malformed, or the Chinese tasks lack their dictionary.",
     "pcomp-eval rescore longbench pred/llama3-8b-instruct", NULL,
     "longbench longbench-e infinitebench"},
    {"completion", ON_COMPLETION, cmd_completion, "completions for a shell",
     "pcomp-eval completion bash|zsh", "Prints a script for the shell to read.",
     "source <(pcomp-eval completion bash)", NULL, "bash zsh"},
    {"help", ON_HELP, cmd_help, "help on a command", "pcomp-eval help [COMMAND]", "",
     "pcomp-eval help longbench", NULL, NULL},
};

static const struct Program PCOMP_EVAL = {
    .name = "pcomp-eval",
    .about = "scores long-context methods on LongBench, InfiniteBench, RULER and needles",
    .commands = COMMANDS,
    .n_commands = sizeof COMMANDS / sizeof COMMANDS[0],
    .flags = FLAGS,
    .n_flags = sizeof FLAGS / sizeof FLAGS[0],
    .on_engine = ON_ENGINE,
};

int main(int argc, char **argv)
{
    struct EvalCli eval = {.cli.program = &PCOMP_EVAL};
    return program_run(&eval.cli, argc, argv);
}

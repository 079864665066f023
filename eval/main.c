/* main.c - pcomp-eval: its tables of flags and commands. */
#include "eval.h"

enum {
    ON_SETTINGS = 1,
    ON_COMPLETION = 2,
    ON_HELP = 4,
    ON_FILES = 8, /* longbench, longbench-e, infinitebench */
    ON_ENGINE = ON_FILES,
    ON_ALL = 15,
};

#define AT(field) offsetof(struct EvalCli, field)

static const struct Flag FLAGS[] = {
    {"model", 'm', FLAG_TEXT, AT(cli.model), 0, 0, ON_ENGINE, "FILE",
     "model: a .gguf file or a safetensors folder (default: $PCOMP_MODEL, else models/)"},
    {"data", 'd', FLAG_TEXT, AT(data), 0, 0, ON_FILES, "PATH",
     "folder of the task files (.jsonl, .jsonl.gz, .jsonl.zst), or one file"},
    {"method", 0, FLAG_LIST, AT(arms), 0, 0, ON_ENGINE, "[LABEL:]NAME[,SETTING=VALUE]...",
     "a method to run; repeat to compare several on the same rows"},
    {"tasks", 0, FLAG_TEXT, AT(tasks), 0, 0, ON_ENGINE, "NAME,...",
     "tasks to run (default: all that the data has)"},
    {"profile", 0, FLAG_TEXT, AT(profile), 0, 0, ON_ENGINE, "NAME",
     "rules of prompts and lengths: official (default) or parallelcomp"},
    {"split", 0, FLAG_TEXT, AT(split), 0, 0, ON_ENGINE, "K/N",
     "every N-th row from the K-th on, as 1/2 to choose settings and 2/2 to report"},
    {"limit", 0, FLAG_INT, AT(limit), 1, 1 << 30, ON_ENGINE, "N", "rows of each task at most"},
    {"code-sim", 0, FLAG_TEXT, AT(code_sim), 0, 0, ON_FILES, "difflib|indel",
     "similarity of code lines: fuzzywuzzy's own (default), or with python-Levenshtein"},
    {"run", 'o', FLAG_TEXT, AT(run_dir), 0, 0, ON_ENGINE, "FOLDER",
     "folder of the run: predictions, scores, records (default runs/BENCHMARK)"},
    {"workers", 'w', FLAG_INT, AT(workers), 1, 256, ON_ENGINE, "N",
     "processes that share the rows (default 1)"},
    {"fresh", 0, FLAG_SWITCH, AT(cli.fresh), 0, 0, ON_ENGINE, "",
     "set results of other settings aside and begin anew"},
    {"config", 'c', FLAG_TEXT, AT(cli.config), 0, 0, ON_ENGINE, "FILE", "settings from a JSON file"},
    {"progress", 0, FLAG_TEXT, AT(cli.progress), 0, 0, ON_ENGINE, "auto|none|plain|json",
     "progress on standard error"},
    {"markdown", 0, FLAG_SWITCH, AT(cli.markdown), 0, 0, ON_SETTINGS, "", "as a Markdown table"},
    {"quiet", 0, FLAG_SWITCH, AT(cli.quiet), 0, 0, ON_ALL, "", "errors only on standard error"},
    {"verbose", 'v', FLAG_SWITCH, AT(cli.verbose), 0, 0, ON_ALL, "", "say more on standard error"},
    {"log-file", 0, FLAG_TEXT, AT(cli.log_file), 0, 0, ON_ALL, "FILE",
     "append what goes to standard error to a file instead"},
    {"help", 'h', FLAG_SWITCH, AT(cli.help), 0, 0, ON_ALL, "", "this help"},
    {"version", 0, FLAG_SWITCH, AT(cli.version), 0, 0, ON_ALL, "", "version, build and device"},
};

static const struct Command COMMANDS[] = {
    {"longbench", ON_FILES, cmd_longbench, "run and score LongBench v1, all 21 tasks or some",
     "pcomp-eval longbench -m MODEL -d DATA [--method NAME]... [-o RUN]",
     "Runs each row under each method and appends a line of prediction, score and record to\n"
     "RUN/METHOD/TASK.jsonl, which LongBench's own eval.py reads too. The same command goes on where it\n"
     "was stopped. Prompts, lengths and stop rules: configs/tasks/longbench.json.",
     "pcomp-eval longbench -d data/ --method full --method truncate --method parallelcomp", NULL,
     NULL},
    {"longbench-e", ON_FILES, cmd_longbench_e, "the same for LongBench-E (files TASK_e.jsonl)",
     "pcomp-eval longbench-e -m MODEL -d DATA [--method NAME]... [-o RUN]",
     "As longbench; scores are reported by length: under 4,000 words, under 8,000, above.",
     "pcomp-eval longbench-e -d data/ --tasks hotpotqa,trec", NULL, NULL},
    {"infinitebench", ON_FILES, cmd_infinitebench, "run and score InfiniteBench, all 12 tasks",
     "pcomp-eval infinitebench -m MODEL -d DATA [--method NAME]... [-o RUN]",
     "As longbench, with RUN/METHOD/preds_TASK.jsonl as the benchmark's scripts name them. The scorers are\n"
     "those of June 2024 (infinitebench@2024-06); prompts are those for base models (yarn-mistral).",
     "pcomp-eval infinitebench -d data/ --tasks passkey,kv_retrieval --limit 50", NULL, NULL},
    {"settings", ON_SETTINGS, cmd_settings, "every setting with its default and limits",
     "pcomp-eval settings [--markdown]",
     "A setting is a key of a --config file, a flag (--kv-cap) and a variable (PCOMP_KV_CAP).",
     "pcomp-eval settings --markdown", NULL, NULL},
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

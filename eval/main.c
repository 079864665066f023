/* main.c - pcomp-eval: its tables of flags and commands. */
#include "eval.h"

enum {
    ON_SETTINGS = 1,
    ON_COMPLETION = 2,
    ON_HELP = 4,
    ON_GENERATE = 8,
    ON_ENGINE = 0,
    ON_ALL = 15,
};

#define AT(field) offsetof(struct EvalCli, field)

static const struct Flag FLAGS[] = {
    {"model", 'm', FLAG_TEXT, AT(cli.model), 0, 0, ON_GENERATE, "FILE",
     "model (default: $PCOMP_MODEL, else the one in models/)"},
    {"output", 'o', FLAG_TEXT, AT(cli.output), 0, 0, ON_GENERATE, "FILE",
     "write here (default: standard output)"},
    {"tokens", 0, FLAG_TEXT, AT(lengths), 0, 0, ON_GENERATE, "N[,N...]",
     "lengths of the context, as 4096, 4K or 1M (default 4096)"},
    {"depth", 0, FLAG_TEXT, AT(depths), 0, 0, ON_GENERATE, "X[,X...]",
     "where the asked piece stands, 0 to 1 (default: drawn)"},
    {"count", 0, FLAG_INT, AT(count), 1, 1e6, ON_GENERATE, "N",
     "samples of each length and depth (default 1)"},
    {"seed", 0, FLAG_INT, AT(seed), 0, 2147483647, ON_GENERATE, "N", "seed (default 0)"},
    {"haystack", 'f', FLAG_TEXT, AT(haystack), 0, 0, ON_GENERATE, "FILE",
     "text to hide in (default: models/book.txt)"},
    {"qa", 0, FLAG_TEXT, AT(qa_file), 0, 0, ON_GENERATE, "FILE",
     "question set of qa_1 (SQuAD 2) or qa_2 (HotpotQA)"},
    {"needle", 0, FLAG_TEXT, AT(needle), 0, 0, ON_GENERATE, "TEXT",
     "needle: hide this sentence; with --question and --answer"},
    {"question", 'q', FLAG_TEXT, AT(needle_question), 0, 0, ON_GENERATE, "TEXT",
     "needle: what is asked"},
    {"answer", 0, FLAG_TEXT, AT(needle_answer), 0, 0, ON_GENERATE, "TEXT",
     "needle: the part of the sentence that answers"},
    {"keys", 0, FLAG_INT, AT(n_keys), 1, 1000, ON_GENERATE, "N",
     "niah: keys hidden; vt, hops: chains"},
    {"values", 0, FLAG_INT, AT(n_values), 1, 1000, ON_GENERATE, "N", "niah: values a key"},
    {"queries", 0, FLAG_INT, AT(n_queries), 1, 1000, ON_GENERATE, "N", "niah: keys asked for"},
    {"hops", 0, FLAG_INT, AT(n_hops), 1, 100, ON_GENERATE, "N",
     "vt, hops: steps of a chain; code_run: calls"},
    {"needles", 0, FLAG_INT, AT(n_needles), 1, 1000, ON_GENERATE, "N",
     "needles: how many (default 10)"},
    {"markdown", 0, FLAG_SWITCH, AT(cli.markdown), 0, 0, ON_SETTINGS, "", "as a Markdown table"},
    {"quiet", 0, FLAG_SWITCH, AT(cli.quiet), 0, 0, ON_ALL, "", "errors only on standard error"},
    {"verbose", 'v', FLAG_SWITCH, AT(cli.verbose), 0, 0, ON_ALL, "", "say more on standard error"},
    {"log-file", 0, FLAG_TEXT, AT(cli.log_file), 0, 0, ON_ALL, "FILE",
     "append what goes to standard error to a file instead"},
    {"help", 'h', FLAG_SWITCH, AT(cli.help), 0, 0, ON_ALL, "", "this help"},
    {"version", 0, FLAG_SWITCH, AT(cli.version), 0, 0, ON_ALL, "", "version, build and device"},
};

static const struct Command COMMANDS[] = {
    {"generate", ON_GENERATE, cmd_generate, "samples of a synthetic task, exact in tokens",
     "pcomp-eval generate TASK [--tokens N,...] [--depth X,...] [--count N] [-o FILE.jsonl]",
     "Tasks: passkey number_string kv_retrieval math_find math_calc code_run (InfiniteBench);\n"
     "niah_single_1..3 niah_multikey_1..3 niah_multivalue niah_multiquery vt cwe fwe qa_1 qa_2\n"
     "(RULER); needle, needles, hops (in a text of yours). Rows hold id, context, input, answers,\n"
     "length (tokens), depth and answer_at (bytes into context). A seed gives the same bytes on\n"
     "every machine. A text that is too short for a length is repeated.",
     "pcomp-eval generate niah_single_2 --tokens 4K,32K --depth 0,0.5,1 -o niah.jsonl", NULL,
     "passkey number_string kv_retrieval math_find math_calc code_run niah_single_1 niah_single_2 "
     "niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 niah_multivalue "
     "niah_multiquery vt cwe fwe qa_1 qa_2 needle needles hops"},
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
    struct EvalCli eval = {.cli.program = &PCOMP_EVAL, .count = 1};
    return program_run(&eval.cli, argc, argv);
}

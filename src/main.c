/* main.c - pcomp: picks the command, prints help, version and completions, and turns the outcome into
 * an exit code. The commands are in cmd_run.c, cmd_plan.c, cmd_bench.c and summarize.c.
 */
#include "cli.h"
#include "provenance.h"

#include <locale.h>
#include <stdlib.h>
#include <string.h>

static int cmd_settings(struct Cli *cli);
static int cmd_completion(struct Cli *cli);
static int cmd_help(struct Cli *cli);

/* Summaries keep every chunk: a summary of two chunks out of many would not cover the text. */
static const char *const SUMMARY_DEFAULTS[] = {
    "keep", "all", "instruction", "Summarise the following text.", "max_tokens", "256", NULL};
static const char *const DEMO_DEFAULTS[] = {"max_tokens", "24", NULL};

static const struct Command COMMANDS[] = {
    {"run", ON_RUN, cmd_run, "answer questions about a text of any length",
     "pcomp run [-m MODEL] [-f FILE]... -q QUESTION [-n TOKENS]",
     "Reads the files (or standard input) as one text and prints the answer to each question. Several\n"
     "files are joined with a blank line between two; several questions get one answer each.",
     "pcomp run -f book.txt -q 'Who is the ward of Mr. Jarndyce?' -n 64", NULL},
    {"summarize", ON_SUMMARIZE, cmd_summarize, "summarise many texts; can be stopped and resumed",
     "pcomp summarize [-m MODEL] [-o OUT.jsonl] [--text-dir DIR] FILE|FOLDER|LIST.jsonl...",
     "Appends one JSON line for each text. Run the same command again to go on where it stopped:\n"
     "what is finished is skipped, errors are tried again. A .jsonl input holds lines of\n"
     "{\"id\",\"file\"|\"text\",\"question\"} or OpenAI batch requests.",
     "pcomp summarize -o notes.jsonl --text-dir notes/ papers/", SUMMARY_DEFAULTS},
    {"demo", ON_DEMO, cmd_demo, "find one sentence hidden in a book of 131,072 tokens",
     "pcomp demo [-m MODEL] [-f BOOK] [--tokens N] [--depth X] [-q QUESTION | --no-needle -q QUESTION]",
     "Reads the first N tokens of a real book into which one made-up sentence was put, and asks for it.",
     "pcomp demo --tokens 131072 --depth 0.25", DEMO_DEFAULTS},
    {"plan", ON_PLAN, cmd_plan, "tokens, chunks, memory and time of a run, without running it",
     "pcomp plan [-m MODEL] [-f FILE]... [-q QUESTION]",
     "Exits 4 when the run does not fit into memory.", "pcomp plan -f book.txt --memory 2G", NULL},
    {"bench", ON_BENCH, cmd_bench, "measure prefill, decode and single operations",
     "pcomp bench [prefill|decode|ops|all] [-r REPEATS] [--tokens N] [--format md|csv|json]",
     "Prints the mean and standard deviation over the repeats.",
     "pcomp bench prefill -r 3 --format csv", NULL},
    {"inspect", ON_INSPECT, cmd_inspect, "what is in a model file", "pcomp inspect [--json] MODEL",
     "Prints metadata, shapes, tensor types and facts about the vocabulary.",
     "pcomp inspect models/SmolLM2-135M-Instruct.Q4_1.gguf", NULL},
    {"perplexity", ON_PERPLEXITY, cmd_perplexity,
     "how well a model predicts a text under each method",
     "pcomp perplexity [-m MODEL] -f FILE [--method full|parallelcomp|truncate] [--tail N]",
     "full: every token, in windows. Otherwise the last N tokens given the compressed rest.",
     "pcomp perplexity -f book.txt --method full --window 2048", NULL},
    {"settings", ON_SETTINGS, cmd_settings, "every setting with its default and limits",
     "pcomp settings [--markdown]",
     "A setting is a key of a --config file, a flag (--kv-cap) and a variable (PCOMP_KV_CAP).",
     "pcomp settings --markdown", NULL},
    {"completion", ON_COMPLETION, cmd_completion, "completions for a shell",
     "pcomp completion bash|zsh", "Prints a script for the shell to read.",
     "source <(pcomp completion bash)", NULL},
    {"help", ON_HELP, cmd_help, "help on a command", "pcomp help [COMMAND]", "", "pcomp help run",
     NULL},
};
enum { N_COMMANDS = sizeof COMMANDS / sizeof COMMANDS[0] };

/* ==== Help ==== */

static int print_str(struct Str *text, int status)
{
    if (status == PC_OK) status = out_write(text->data ? text->data : "", text->len);
    str_free(text);
    return status;
}

static int help_overview(void)
{
    struct Str text = {0};
    int status =
        str_appendf(&text,
                    "pcomp %s: answers over texts longer than the model was trained for\n\n"
                    "usage: pcomp COMMAND [FLAGS]\n\n",
                    PCOMP_VERSION);
    for (int i = 0; i < N_COMMANDS && status == PC_OK; i++)
        status = str_appendf(&text, "  %-11s %s\n", COMMANDS[i].name, COMMANDS[i].summary);
    if (status == PC_OK)
        status = str_appendf(
            &text,
            "\n`pcomp help COMMAND` tells more; `pcomp --version` shows build and "
            "device.\nExample: %s\n\nExit codes: 0 done, 1 failed, 2 usage, 3 bad model or "
            "data, 4 does not fit,\n5 some of many failed, 130 and 143 stopped.\n",
            COMMANDS[0].example);
    return print_str(&text, status);
}

static int help_flag(const struct Flag *flag, struct Str *out)
{
    char left[64];
    int len = flag->letter ? snprintf(left, sizeof left, "-%c, --%s", flag->letter, flag->name)
                           : snprintf(left, sizeof left, "    --%s", flag->name);
    if (flag->kind == FLAG_SETTING)
        snprintf(left, sizeof left, "-%c N", flag->letter);
    else if (*flag->arg)
        snprintf(left + len, sizeof left - (size_t)len, " %s", flag->arg);
    return str_appendf(out, "  %-30s %s\n", left, flag->help);
}

static int help_command(const struct Command *command)
{
    struct Str text = {0};
    int status = str_appendf(&text, "usage: %s\n\n%s\n\nFlags:\n", command->usage, command->about);
    for (int i = 0; i < N_FLAGS && status == PC_OK; i++)
        if (FLAGS[i].commands & command->bit) status = help_flag(&FLAGS[i], &text);
    if (status == PC_OK && (command->bit & ON_ENGINE)) {
        status = str_append(&text, "\n", 1);
        if (status == PC_OK) status = settings_help(false, &text);
    }
    for (const char *const *d = command->defaults; status == PC_OK && d && *d; d += 2)
        status =
            str_appendf(&text, "%s  %s: %s\n",
                        d == command->defaults ? "\nDefaults of this command:\n" : "", d[0], d[1]);
    if (status == PC_OK) status = str_appendf(&text, "\nExample: %s\n", command->example);
    return print_str(&text, status);
}

static const struct Command *command_find(const char *name)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(COMMANDS[i].name, name) == 0) return &COMMANDS[i];
    return NULL;
}

static int unknown_command(const char *name)
{
    const char *best = NULL;
    int least = (int)strlen(name) / 3 + 2;
    for (int i = 0; i < N_COMMANDS; i++) {
        int distance = word_distance(name, COMMANDS[i].name);
        if (distance >= least) continue;
        least = distance;
        best = COMMANDS[i].name;
    }
    return err_set(PC_ECONFIG, "unknown command '%.64s'%s%s%s; `pcomp --help` lists all", name,
                   best ? ": did you mean '" : "", best ? best : "", best ? "'?" : "");
}

static int cmd_help(struct Cli *cli)
{
    if (cli->args.n == 0) return help_overview();
    const struct Command *command = command_find(cli->args.items[0]);
    return command ? help_command(command) : unknown_command(cli->args.items[0]);
}

static int cmd_settings(struct Cli *cli)
{
    struct Str text = {0};
    int status = settings_help(cli->markdown, &text);
    return print_str(&text, status);
}

/* ==== Version ==== */

#ifdef __clang__
static const char COMPILER[] = "clang " __clang_version__;
#else
static const char COMPILER[] = "gcc " __VERSION__;
#endif

/* The flags that matter, from what the compiler itself says of them. */
static const char BUILD[] =
#ifdef __OPTIMIZE__
    "optimised"
#else
    "not optimised"
#endif
#ifdef __AVX512F__
    ", AVX-512 needed"
#elif defined __AVX2__
    ", AVX2 needed"
#endif
#ifdef _OPENMP
    ", OpenMP"
#endif
#if defined __SANITIZE_ADDRESS__
    ", address sanitizer"
#endif
    ;

/* What the CPU offers; a run's own choice follows from it, --isa and --backend. */
static const char *cpu_isa(void)
{
    __builtin_cpu_init();
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (avx512 && __builtin_cpu_supports("avx512vnni")) return "avx512vnni";
    if (avx512) return "avx512";
    return __builtin_cpu_supports("avx2") ? "avx2" : "below avx2: this binary needs it";
}

static int print_version(void)
{
    struct Str text = {0};
    int status = str_appendf(&text, "pcomp %s (commit %s)\nbuild: %s, %s\ndevice: cpu, %s\n",
                             PCOMP_VERSION, PCOMP_COMMIT, COMPILER, BUILD, cpu_isa());
    return print_str(&text, status);
}

/* ==== Completions ==== */

static int words_commands(struct Str *out)
{
    for (int i = 0; i < N_COMMANDS; i++)
        TRY(str_appendf(out, "%s%s", i ? " " : "", COMMANDS[i].name));
    return PC_OK;
}

static int words_flags(const struct Command *command, struct Str *out)
{
    for (int i = 0; i < N_FLAGS; i++)
        if ((FLAGS[i].commands & command->bit) && FLAGS[i].kind != FLAG_SETTING)
            TRY(str_appendf(out, "--%s ", FLAGS[i].name));
    for (int i = 0; (command->bit & ON_ENGINE) && i < N_SETTINGS; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s", SETTINGS[i].name);
        for (char *c = name; *c; c++)
            if (*c == '_') *c = '-';
        TRY(str_appendf(out, "--%s ", name));
    }
    return PC_OK;
}

static int completion_text(struct Str *out)
{
    TRY(str_appendf(out, "_pcomp() {\n  local cur=\"${COMP_WORDS[COMP_CWORD]}\" words=\"\"\n"
                         "  if [ \"$COMP_CWORD\" -eq 1 ]; then words=\""));
    TRY(words_commands(out));
    TRY(str_appendf(out, " --help --version\"\n  else case \"${COMP_WORDS[1]}\" in\n"));
    for (int i = 0; i < N_COMMANDS; i++) {
        TRY(str_appendf(out, "    %s) words=\"", COMMANDS[i].name));
        if (COMMANDS[i].bit == ON_COMPLETION) TRY(str_appendf(out, "bash zsh "));
        if (COMMANDS[i].bit == ON_HELP) TRY(words_commands(out));
        if (COMMANDS[i].bit == ON_BENCH) TRY(str_appendf(out, "prefill decode ops all "));
        TRY(words_flags(&COMMANDS[i], out));
        TRY(str_appendf(out, "\" ;;\n"));
    }
    return str_appendf(out, "  esac; fi\n  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n"
                            "complete -o default -F _pcomp pcomp\n");
}

static int cmd_completion(struct Cli *cli)
{
    const char *shell = cli->args.n == 1 ? cli->args.items[0] : "";
    bool zsh = strcmp(shell, "zsh") == 0;
    if (!zsh && strcmp(shell, "bash") != 0)
        return err_set(PC_ECONFIG,
                       "name the shell: `pcomp completion bash` or `pcomp completion zsh`");
    struct Str text = {0};
    /* zsh runs bash's completions through its own adapter. */
    int status = zsh ? str_appendf(&text, "autoload -U +X compinit && compinit\n"
                                          "autoload -U +X bashcompinit && bashcompinit\n")
                     : PC_OK;
    if (status == PC_OK) status = completion_text(&text);
    return print_str(&text, status);
}

/* ==== Dispatch ==== */

static int dispatch(struct Cli *cli, int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";
    if (strcmp(name, "--version") == 0) return print_version();
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        TRY(help_overview());
        return argc > 1 ? PC_OK : err_set(PC_ECONFIG, "no command given");
    }
    cli->command = command_find(name);
    if (!cli->command) return unknown_command(name);
    TRY(cli_parse(cli, argc - 2, argv + 2));
    if (cli->help) return help_command(cli->command);
    if (cli->version) return print_version();
    if (cli->log_file) TRY(cli_log_file(cli->log_file));
    log_set(cli->verbose ? LOG_DEBUG : cli->quiet ? LOG_ERROR : LOG_INFO);
    return cli->command->run(cli);
}

int main(int argc, char **argv)
{
    struct Cli cli = {.depth = -1};
    signals_catch();
    int status = dispatch(&cli, argc, argv);
    /* A stop by the user was reported where it happened; failed items were reported one by one. */
    if (status < 0 && status != PC_EINTR && status != CLI_EPARTIAL) cli_error(err_text());
    cli_free(&cli);
    return exit_code(status);
}

/* program.c - what both programs do with their tables of commands and flags: find the command, print
 * help, version and completions, and turn the outcome into an exit code.
 */
#include "backend.h"
#include "cli.h"
#include "provenance.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ==== Help ==== */

static int print_str(struct Str *text, int status)
{
    if (status == PC_OK) status = out_write(text->data ? text->data : "", text->len);
    str_free(text);
    return status;
}

static int help_overview(const struct Program *p)
{
    struct Str text = {0};
    int status = str_appendf(&text, "%s %s: %s\n\nusage: %s COMMAND [FLAGS]\n\n", p->name,
                             PCOMP_VERSION, p->about, p->name);
    for (int i = 0; i < p->n_commands && status == PC_OK; i++)
        status = str_appendf(&text, "  %-13s %s\n", p->commands[i].name, p->commands[i].summary);
    if (status == PC_OK)
        status = str_appendf(
            &text,
            "\n`%s help COMMAND` tells more; `%s --version` shows build and "
            "device.\nExample: %s\n\nExit codes: 0 done, 1 failed, 2 usage, 3 bad model or "
            "data, 4 does not fit,\n5 some of many failed, 6 another process of the run is lost, 130 and "
            "143 stopped.\n",
            p->name, p->name, p->commands[0].example);
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

static int help_command(const struct Program *p, const struct Command *command)
{
    struct Str text = {0};
    int status = str_appendf(&text, "usage: %s\n\n%s\n\nFlags:\n", command->usage, command->about);
    for (int i = 0; i < p->n_flags && status == PC_OK; i++)
        if (p->flags[i].commands & command->bit) status = help_flag(&p->flags[i], &text);
    if (status == PC_OK && (command->bit & p->on_engine)) {
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

static const struct Command *command_find(const struct Program *p, const char *name)
{
    for (int i = 0; i < p->n_commands; i++)
        if (strcmp(p->commands[i].name, name) == 0) return &p->commands[i];
    return NULL;
}

static int unknown_command(const struct Program *p, const char *name)
{
    const char *best = NULL;
    int least = (int)strlen(name) / 3 + 2;
    for (int i = 0; i < p->n_commands; i++) {
        int distance = word_distance(name, p->commands[i].name);
        if (distance >= least) continue;
        least = distance;
        best = p->commands[i].name;
    }
    return err_set(PC_ECONFIG, "unknown command '%.64s'%s%s%s; `%s --help` lists all", name,
                   best ? ": did you mean '" : "", best ? best : "", best ? "'?" : "", p->name);
}

int cmd_help(struct Cli *cli)
{
    const struct Program *p = cli->program;
    if (cli->args.n == 0) return help_overview(p);
    const struct Command *command = command_find(p, cli->args.items[0]);
    return command ? help_command(p, command) : unknown_command(p, cli->args.items[0]);
}

int cmd_settings(struct Cli *cli)
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

static int print_version(const struct Program *p)
{
    struct Str text = {0};
    const struct Backend *here;
    TRY(backend_by_name("auto", &here));
    int status = str_appendf(
        &text,
        "%s %s (commit %s)\nbuild: %s, %s\ndevice: cpu, %s\nbackends: %s; on this machine: %s\n",
        p->name, PCOMP_VERSION, PCOMP_COMMIT, COMPILER, BUILD, cpu_isa(), backend_names(),
        here->name);
    return print_str(&text, status);
}

/* ==== Completions ==== */

static int words_commands(const struct Program *p, struct Str *out)
{
    for (int i = 0; i < p->n_commands; i++)
        TRY(str_appendf(out, "%s%s", i ? " " : "", p->commands[i].name));
    return PC_OK;
}

static int words_flags(const struct Program *p, const struct Command *command, struct Str *out)
{
    for (int i = 0; i < p->n_flags; i++)
        if ((p->flags[i].commands & command->bit) && p->flags[i].kind != FLAG_SETTING)
            TRY(str_appendf(out, "--%s ", p->flags[i].name));
    for (int i = 0; (command->bit & p->on_engine) && i < N_SETTINGS; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s", SETTINGS[i].name);
        for (char *c = name; *c; c++)
            if (*c == '_') *c = '-';
        TRY(str_appendf(out, "--%s ", name));
    }
    return PC_OK;
}

/* A shell function's name cannot hold a hyphen. */
static void function_name(const struct Program *p, char name[64])
{
    snprintf(name, 64, "_%s", p->name);
    for (char *c = name; *c; c++)
        if (*c == '-') *c = '_';
}

static int completion_text(const struct Program *p, struct Str *out)
{
    char function[64];
    function_name(p, function);
    TRY(str_appendf(out,
                    "%s() {\n  local cur=\"${COMP_WORDS[COMP_CWORD]}\" words=\"\"\n"
                    "  if [ \"$COMP_CWORD\" -eq 1 ]; then words=\"",
                    function));
    TRY(words_commands(p, out));
    TRY(str_appendf(out, " --help --version\"\n  else case \"${COMP_WORDS[1]}\" in\n"));
    for (int i = 0; i < p->n_commands; i++) {
        const struct Command *command = &p->commands[i];
        TRY(str_appendf(out, "    %s) words=\"", command->name));
        if (command->run == cmd_help) TRY(words_commands(p, out));
        if (command->words) TRY(str_appendf(out, "%s ", command->words));
        TRY(words_flags(p, command, out));
        TRY(str_appendf(out, "\" ;;\n"));
    }
    return str_appendf(out,
                       "  esac; fi\n  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n"
                       "complete -o default -F %s %s\n",
                       function, p->name);
}

int cmd_completion(struct Cli *cli)
{
    const char *shell = cli->args.n == 1 ? cli->args.items[0] : "";
    bool zsh = strcmp(shell, "zsh") == 0;
    if (!zsh && strcmp(shell, "bash") != 0)
        return err_set(PC_ECONFIG, "name the shell: `%s completion bash` or `%s completion zsh`",
                       cli->program->name, cli->program->name);
    struct Str text = {0};
    /* zsh runs bash's completions through its own adapter. */
    int status = zsh ? str_appendf(&text, "autoload -U +X compinit && compinit\n"
                                          "autoload -U +X bashcompinit && bashcompinit\n")
                     : PC_OK;
    if (status == PC_OK) status = completion_text(cli->program, &text);
    return print_str(&text, status);
}

/* ==== Dispatch ==== */

/* ==== Several processes ==== */

/* Only rank 0 talks, but for a queue's items and for failures. */
static void hush(struct Cli *cli)
{
    cli->quiet = true;
    cli->verbose = false;
    cli->progress = "none";
}

/* --ranks: this process becomes several. */
static int start_ranks(struct Cli *cli)
{
    if (cli->ranks <= 1) return PC_OK;
    if (cli->launch.size > 1)
        return err_set(PC_ECONFIG,
                       "%d processes were started together already; leave out --ranks %d",
                       cli->launch.size, cli->ranks);
    return team_local_open(cli->ranks, &cli->launch, &cli->team);
}

/* Finds this process's part in a command that was started several times over: *idle when it has none. */
static int join(struct Cli *cli, bool *idle)
{
    const struct Program *p = cli->program;
    *idle = false;
    TRY(start_ranks(cli));
    if (cli->launch.size == 1) return PC_OK;
    bool queue = cli->command->bit & p->on_queue, team = cli->command->bit & p->on_team;
    if (cli->launch.rank > 0) hush(cli);
    launch_gpu(&cli->launch);
    if (queue) cli->share = true;
    *idle = !queue && !team && cli->launch.rank > 0;
    if (!team) return PC_OK;
    cli->team.stop = signals_stop;
    if (cli->team.size > 1) return PC_OK;
    if (!team_mpi_open)
        return err_set(PC_ECONFIG,
                       "%d processes were started together, but this build has no MPI; install "
                       "libopenmpi-dev and build again, or start one process with --ranks %d",
                       cli->launch.size, cli->launch.size);
    return team_mpi_open(&cli->launch, &cli->team);
}

/* Tells the user of a failure, once: as rank 0 for the team, or each process for itself. */
static int leave(struct Cli *cli, int status)
{
    const struct Launch *l = &cli->launch;
    if (cli->team.size > 1) return team_close(&cli->team, status, cli_error, exit_code);
    /* A stop by the user was reported where it happened; failed items were reported one by one. */
    if (status >= 0 || status == PC_EINTR || status == CLI_EPARTIAL) return status;
    /* Every process has the same flags. Only rank 0 fails of them: mpirun ends the others when one fails, perhaps before
     * it has spoken. */
    bool common = status == PC_ECONFIG && !cli->share;
    if (common && l->rank > 0) return PC_OK;
    if (l->size > 1 && !common) err_prefix(status, "rank %d of %d", l->rank, l->size);
    cli_error(err_text());
    return status;
}

static int dispatch(struct Cli *cli, int argc, char **argv)
{
    const struct Program *p = cli->program;
    const char *name = argc > 1 ? argv[1] : "--help";
    bool first = cli->launch.rank == 0; /* the others would only say it again */
    if (strcmp(name, "--version") == 0) return first ? print_version(p) : PC_OK;
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        if (first) TRY(help_overview(p));
        return argc > 1 ? PC_OK : err_set(PC_ECONFIG, "no command given");
    }
    cli->command = command_find(p, name);
    if (!cli->command) return unknown_command(p, name);
    TRY(cli_parse(cli, argc - 2, argv + 2));
    if (cli->help) return first ? help_command(p, cli->command) : PC_OK;
    if (cli->version) return first ? print_version(p) : PC_OK;
    bool idle;
    TRY(join(cli, &idle));
    if (idle) return PC_OK;
    if (cli->log_file) TRY(cli_log_file(cli->log_file));
    log_set(cli->verbose ? LOG_DEBUG : cli->quiet ? LOG_ERROR : LOG_INFO);
    return cli->command->run(cli);
}

/* libgomp's threads spin for milliseconds before they sleep. On a machine that has other work the one that
 * spins keeps the core from the one it waits for, and decoding drops from a hundred tokens a second to five; a
 * short spin costs nothing on a quiet one. libgomp reads its settings before main(): hence the second start. */
static void spin_briefly(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    if (setenv("GOMP_SPINCOUNT", "1000", 1) == 0) execv("/proc/self/exe", argv);
}

int program_run(struct Cli *cli, int argc, char **argv)
{
    spin_briefly(argv);
    signals_catch();
    launch_read(&cli->launch);
    int status = leave(cli, dispatch(cli, argc, argv));
    cli_free(cli);
    return exit_code(status);
}

/* cli.c - what reads the table of flags, and what the commands share; text in, exit codes and messages out.
 *
 * Flags are parsed against one table instead of getopt's two, because --help and the completions
 * need the same facts, and because a misspelt flag should be answered with the nearest one.
 */
#include "cli.h"
#include "geometry.h"
#include "tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ==== Flags ==== */

int list_push(struct TextList *list, const char *item)
{
    if (list->n == list->cap) {
        int cap = list->cap ? 2 * list->cap : 8;
        const char **items = mem_grow(list->items, (size_t)list->cap, (size_t)cap, sizeof *items);
        if (!items) return PC_ENOMEM;
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = item;
    return PC_OK;
}

void cli_free(struct Cli *cli)
{
    mem_free(cli->assigned.items);
    mem_free(cli->files.items);
    mem_free(cli->questions.items);
    mem_free(cli->args.items);
    str_free(&cli->question_text);
}

/* "--kv-cap" and "kv_cap" are the same name to a user. */
static void setting_name(const char *flag, size_t len, char name[64])
{
    if (len > 63) len = 63;
    for (size_t i = 0; i < len; i++) name[i] = flag[i] == '-' ? '_' : flag[i];
    name[len] = '\0';
}

static const char *setting_of(const char *name)
{
    for (int i = 0; i < N_SETTINGS; i++)
        if (strcmp(SETTINGS[i].name, name) == 0) return SETTINGS[i].name;
    return NULL;
}

static int unknown_flag(const struct Cli *cli, const char *flag, size_t len)
{
    char given[64], best[64] = "", name[64];
    int least = (int)len / 3 + 2;
    snprintf(given, sizeof given, "%.*s", (int)len, flag);
    for (int i = 0; i < cli->program->n_flags + N_SETTINGS; i++) {
        bool is_flag = i < cli->program->n_flags;
        if (is_flag ? !(cli->program->flags[i].commands & cli->command->bit)
                    : !(cli->command->bit & cli->program->on_engine))
            continue;
        snprintf(name, sizeof name, "%s",
                 is_flag ? cli->program->flags[i].name : SETTINGS[i - cli->program->n_flags].name);
        for (char *c = name; *c; c++)
            if (*c == '_') *c = '-';
        int distance = word_distance(given, name);
        if (distance >= least) continue;
        least = distance;
        memcpy(best, name, sizeof best);
    }
    if (*best)
        return err_set(PC_ECONFIG, "unknown flag '--%s' of `%s %s`: did you mean '--%s'?", given,
                       cli->program->name, cli->command->name, best);
    return err_set(PC_ECONFIG, "unknown flag '--%s'; `%s help %s` lists all", given,
                   cli->program->name, cli->command->name);
}

static int flag_number(const struct Flag *flag, const char *value, double *out)
{
    char *end;
    errno = 0;
    double number = flag->kind == FLAG_INT ? (double)strtoll(value, &end, 10) : strtod(value, &end);
    if (end == value || *end || errno || !(number >= flag->min && number <= flag->max))
        return err_set(PC_ECONFIG, "flag '--%s': '%.64s' is not a number of %.0f to %.0f",
                       flag->name, value, flag->min, flag->max);
    *out = number;
    return PC_OK;
}

static int flag_take(struct Cli *cli, const struct Flag *flag, const char *value)
{
    char *at = (char *)cli + flag->offset;
    double number;
    switch (flag->kind) {
    case FLAG_SWITCH:
        *(bool *)at = true;
        return PC_OK;
    case FLAG_TEXT:
        *(const char **)at = value;
        return PC_OK;
    case FLAG_LIST:
        return list_push((struct TextList *)at, value);
    case FLAG_INT:
        TRY(flag_number(flag, value, &number));
        *(int *)at = (int)number;
        return PC_OK;
    case FLAG_REAL:
        TRY(flag_number(flag, value, &number));
        *(double *)at = number;
        return PC_OK;
    default:
        TRY(list_push(&cli->assigned, flag->arg));
        return list_push(&cli->assigned, value);
    }
}

static const struct Flag *flag_find(const struct Cli *cli, const char *name, size_t len,
                                    char letter)
{
    for (int i = 0; i < cli->program->n_flags; i++) {
        const struct Flag *flag = &cli->program->flags[i];
        if (!(flag->commands & cli->command->bit)) continue;
        if (letter ? flag->letter == letter
                   : strlen(flag->name) == len && memcmp(flag->name, name, len) == 0)
            return flag;
    }
    return NULL;
}

/* Takes --name, --name value or --name=value at argv[*at]; moves *at past a value that it used. */
static int long_flag(struct Cli *cli, int argc, char **argv, int *at)
{
    const char *name = argv[*at] + 2, *equals = strchr(name, '=');
    size_t len = equals ? (size_t)(equals - name) : strlen(name);
    const struct Flag *flag = flag_find(cli, name, len, 0);
    char key[64];
    setting_name(name, len, key);
    const char *setting =
        !flag && (cli->command->bit & cli->program->on_engine) ? setting_of(key) : NULL;
    if (!flag && !setting) return unknown_flag(cli, name, len);
    if (flag && flag->kind == FLAG_SWITCH) {
        if (equals) return err_set(PC_ECONFIG, "flag '--%s' takes no value", flag->name);
        return flag_take(cli, flag, NULL);
    }
    const char *value = equals ? equals + 1 : *at + 1 < argc ? argv[++*at] : NULL;
    if (!value) return err_set(PC_ECONFIG, "flag '--%.*s' needs a value", (int)len, name);
    if (flag) return flag_take(cli, flag, value);
    TRY(list_push(&cli->assigned, setting));
    return list_push(&cli->assigned, value);
}

static int short_flag(struct Cli *cli, int argc, char **argv, int *at)
{
    const char *text = argv[*at];
    const struct Flag *flag = flag_find(cli, NULL, 0, text[1]);
    if (!flag)
        return err_set(PC_ECONFIG, "unknown flag '-%c' of `%s %s`; `%s help %s` lists all", text[1],
                       cli->program->name, cli->command->name, cli->program->name,
                       cli->command->name);
    if (flag->kind == FLAG_SWITCH) {
        if (text[2])
            return err_set(PC_ECONFIG, "flag '-%c' takes no value: '%.64s'", text[1], text);
        return flag_take(cli, flag, NULL);
    }
    const char *value = text[2] ? text + 2 : *at + 1 < argc ? argv[++*at] : NULL;
    if (!value) return err_set(PC_ECONFIG, "flag '-%c' needs a value", text[1]);
    return flag_take(cli, flag, value);
}

int cli_parse(struct Cli *cli, int argc, char **argv)
{
    bool flags = true;
    for (int i = 0; i < argc; i++) {
        if (!flags || argv[i][0] != '-' || argv[i][1] == '\0')
            TRY(list_push(&cli->args, argv[i]));
        else if (strcmp(argv[i], "--") == 0)
            flags = false;
        else if (argv[i][1] == '-')
            TRY(long_flag(cli, argc, argv, &i));
        else
            TRY(short_flag(cli, argc, argv, &i));
    }
    if (cli->model && cli->geometry)
        return err_set(PC_ECONFIG, "give -m MODEL or --geometry NAME, not both");
    if (cli->json && cli->jsonl) return err_set(PC_ECONFIG, "give --json or --jsonl, not both");
    return PC_OK;
}

/* ==== Settings and model ==== */

bool cli_assigned(const struct Cli *cli, const char *name)
{
    for (int i = 0; i < cli->assigned.n; i += 2)
        if (strcmp(cli->assigned.items[i], name) == 0) return true;
    return false;
}

int cli_settings(struct Cli *cli)
{
    struct Settings *s = &cli->settings;
    settings_default(s);
    for (const char *const *d = cli->command->defaults; d && *d; d += 2)
        TRY(settings_set(s, d[0], d[1]));
    if (cli->asked.data)
        TRY(settings_parse(s, cli->asked.data, cli->asked.len, cli->args.items[0]));
    if (cli->config) TRY(settings_load(s, cli->config));
    TRY(settings_env(s));
    for (int i = 0; i < cli->assigned.n; i += 2)
        TRY(settings_set(s, cli->assigned.items[i], cli->assigned.items[i + 1]));
    return settings_check(s);
}

/* Looks for the default model in models/ beside the folder build/, which holds this binary or the
 * flavour's folder with it. Returns how many files fit; the first is put into path. */
static int default_model(char *path, size_t room)
{
    static const char *const places[] = {"../models", "../../models"};
    char self[PATH_MAX], pattern[PATH_MAX + 64];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len <= 0) return 0;
    self[len] = '\0';
    const char *folder = dirname(self);
    int n = 0;
    for (size_t i = 0; i < sizeof places / sizeof places[0] && n == 0; i++) {
        glob_t found = {0};
        snprintf(pattern, sizeof pattern, "%s/%s/SmolLM2*.gguf", folder, places[i]);
        if (glob(pattern, 0, NULL, &found) == 0) n = (int)found.gl_pathc;
        /* the folder is made plain, the file's own name kept: it may be a link to a shared store */
        char *name = n > 0 ? strrchr(found.gl_pathv[0], '/') : NULL;
        if (name) *name = '\0';
        char *real = name ? realpath(found.gl_pathv[0], NULL) : NULL;
        if (real) snprintf(path, room, "%s/%s", real, name + 1);
        free(real);
        globfree(&found);
    }
    return n;
}

int cli_model(struct Cli *cli)
{
    if (cli->geometry) {
        snprintf(cli->model_path, sizeof cli->model_path, GEOMETRY_PREFIX "%.128s", cli->geometry);
        return PC_OK;
    }
    const char *named = cli->model ? cli->model : getenv("PCOMP_MODEL");
    if (named && *named) {
        if (strlen(named) >= sizeof cli->model_path)
            return err_set(PC_ECONFIG, "the model's path is longer than %zu bytes",
                           sizeof cli->model_path - 1);
        memcpy(cli->model_path, named, strlen(named) + 1);
        return PC_OK;
    }
    int n = default_model(cli->model_path, sizeof cli->model_path);
    if (n == 1) return PC_OK;
    if (n > 1)
        return err_set(PC_ECONFIG, "no model named, and models/ holds %d that fit; give -m FILE",
                       n);
    return err_set(PC_ECONFIG,
                   "no model named, and none in models/; `make model` fetches the default one, "
                   "or give -m FILE or set PCOMP_MODEL");
}

void cli_share_machine(const struct Launch *launch, struct Settings *settings)
{
    if (launch->size <= 1) return;
    if (settings->threads == AUTO) settings->threads = launch_threads(launch);
    if (settings->memory == AUTO) settings->memory = mem_available() / (size_t)launch->local_size;
    long all = sysconf(_SC_NPROCESSORS_ONLN);
    if (launch->rank == 0 && !launch->cpus && 2L * settings->threads * launch->local_size <= all)
        log_msg(LOG_WARN,
                "%d processes of this machine have %d threads each, of %ld cores: mpirun binds "
                "processes to cores unless it is given --bind-to none",
                launch->local_size, settings->threads, all);
}

int cli_open(struct Cli *cli, struct Engine **out)
{
    TRY(cli_settings(cli));
    TRY(cli_model(cli));
    cli_share_machine(&cli->launch, &cli->settings);
    TRY(engine_open(cli->model_path, &cli->settings, out));
    log_msg(LOG_DEBUG, "model %s, device %s", cli->model_path, engine_device(*out));
    if (engine_on_gpu(*out)) log_msg(LOG_INFO, "computing on %s", engine_device(*out));
    return engine_join(*out, &cli->team);
}

/* ==== Text in ==== */

static int add_file(struct Str *out, const char *path)
{
    const char *what = strcmp(path, "-") == 0 ? "standard input" : path;
    if (out->len) TRY(str_append(out, "\n\n", 2));
    size_t begin = out->len;
    TRY(file_read(path, out));
    return text_check(what, out->data ? out->data + begin : "", out->len - begin);
}

int cli_context(struct Cli *cli, struct Str *out)
{
    int n = cli->files.n + cli->args.n;
    for (int i = 0; i < n; i++)
        TRY(add_file(out,
                     i < cli->files.n ? cli->files.items[i] : cli->args.items[i - cli->files.n]));
    if (n > 0) return PC_OK;
    if (isatty(STDIN_FILENO))
        return err_set(PC_ECONFIG, "no text to read; give -f FILE, or pipe a text in");
    return add_file(out, "-");
}

/* Prose made of a few hundred different sentences: a text of one repeated line would be tokenised
 * and attended to unlike any real one. */
int prose_make(struct Str *out, size_t bytes)
{
    static const char *const who[] = {"The clerk",        "A sailor",      "My aunt",
                                      "The judge",        "Our neighbour", "An old miller",
                                      "The young doctor", "Nobody"};
    static const char *const did[] = {"carried", "forgot", "described", "sold",
                                      "painted", "hid",    "found"};
    static const char *const what[] = {
        "the lantern", "a letter",         "three keys",        "the account book", "a map",
        "an umbrella", "the silver spoon", "a basket of pears", "the clock"};
    static const char *const where[] = {"near the bridge",   "in the harbour",
                                        "behind the church", "at the crossroads",
                                        "before the winter", "during the long storm"};
    uint64_t state = 1;
    for (int n = 0; out->len < bytes; n++) {
        state = hash64(&n, sizeof n, state);
        TRY(str_appendf(out, "%s %s %s %s.%s", who[state % 8], did[(state >> 8) % 7],
                        what[(state >> 16) % 9], where[(state >> 24) % 6],
                        n % 6 == 5 ? "\n\n" : " "));
    }
    return PC_OK;
}

int cli_questions(struct Cli *cli)
{
    if (cli->questions_file) {
        if (cli->team.rank == 0) TRY(file_read(cli->questions_file, &cli->question_text));
        TRY(team_text(&cli->team, &cli->question_text));
        TRY(text_check(cli->questions_file, cli->question_text.data, cli->question_text.len));
        char *save = NULL;
        for (char *line = strtok_r(cli->question_text.data, "\r\n", &save); line;
             line = strtok_r(NULL, "\r\n", &save))
            if (line[strspn(line, " \t")]) TRY(list_push(&cli->questions, line));
    }
    for (int i = 0; i < cli->questions.n; i++)
        TRY(text_check("the question", cli->questions.items[i], strlen(cli->questions.items[i])));
    return PC_OK;
}

int text_cut(const struct Tokenizer *t, const struct Str *text, int n, size_t *bytes, int *n_all)
{
    struct Tokens tokens = {0};
    *bytes = text->len;
    int status = tokenizer_encode(t, text->data ? text->data : "", text->len, false, &tokens);
    *n_all = tokens.n;
    /* Cutting changes the tokens beside the cut, so the count is taken again and corrected. */
    for (int want = n, tries = 0; status == PC_OK && tokens.n > n && tries < 16; tries++) {
        size_t at = 0;
        for (int i = 0; i < want && i < tokens.n; i++) at += tokenizer_piece(t, tokens.ids[i]).len;
        if (at > text->len) at = text->len;
        while (at > 0 && at < text->len && ((unsigned char)text->data[at] & 0xC0) == 0x80) at--;
        struct Tokens again = {0};
        status = tokenizer_encode(t, text->data, at, false, &again);
        *bytes = at;
        *n_all = again.n;
        want += n - again.n;
        tokens_free(&again);
        if (*n_all == n) break;
    }
    tokens_free(&tokens);
    return status;
}

/* ==== Exit codes and messages ==== */

int exit_code(int status)
{
    static const struct {
        int status, code;
    } table[] = {
        {PC_OK, 0},      {PC_EINTERNAL, 1}, {PC_EDEVICE, 1}, {CLI_EOUTPUT, 1},
        {PC_ECONFIG, 2}, {PC_EIO, 3},       {PC_EFORMAT, 3}, {PC_ERANGE, 3},
        {PC_ENOMEM, 4},  {CLI_EPARTIAL, 5}, {PC_ELOST, 6},
    };
    if (status == PC_EINTR) return 128 + (signals_got() ? signals_got() : SIGINT);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].status == status) return table[i].code;
    return 1;
}

static FILE *terminal; /* the first standard error, when a log file took its place */

int cli_log_file(const char *path)
{
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int kept = log < 0 ? -1 : fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    if (kept < 0 || dup2(log, STDERR_FILENO) < 0) {
        int reason = errno;
        if (log >= 0) close(log);
        return err_set(CLI_EOUTPUT, "%s: cannot open the log file: %s", path, strerror(reason));
    }
    close(log);
    terminal = fdopen(kept, "w");
    return PC_OK;
}

void cli_error(const char *text)
{
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, text);
    if (terminal) fprintf(terminal, "%s: %s\n", program_invocation_short_name, text);
    if (terminal) fflush(terminal);
}

/* ==== Signals ==== */

static volatile sig_atomic_t caught;
static time_t caught_at; /* monotonic seconds */

/*
 * The first signal asks for an orderly end. One that comes a moment later is the same wish told
 * twice: timeout(1) and job schedulers signal both the process and its group. A later one means it.
 */
static void on_signal(int number)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!caught) caught_at = now.tv_sec;
    if (caught && now.tv_sec > caught_at + 1) _exit(128 + number);
    caught = number;
}

void signals_catch(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* A closed pipe shall be an error of write(), so that the engine is closed in order. */
    signal(SIGPIPE, SIG_IGN);
    /* Likewise a file that reaches its size limit. */
    signal(SIGXFSZ, SIG_IGN);
}

bool signals_stop(void *user)
{
    (void)user;
    return caught != 0;
}

int signals_got(void)
{
    return caught;
}

/* ==== Output ==== */

int out_write(const char *data, size_t len)
{
    if (fwrite(data, 1, len, stdout) == len && fflush(stdout) == 0) return PC_OK;
    return err_set(CLI_EOUTPUT, "cannot write to standard output: %s", strerror(errno));
}

int out_file(const char *path, const char *data, size_t len)
{
    return file_write(path, data, len) < 0 ? CLI_EOUTPUT : PC_OK;
}

int out_folder(const char *path)
{
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return PC_OK;
    return err_set(CLI_EOUTPUT, "%s: cannot make the folder: %s", path, strerror(errno));
}

const char *bytes_text(size_t bytes, char text[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1000 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(text, 32,
             value < 10 && unit    ? "%.2f %s"
             : value < 100 && unit ? "%.1f %s"
                                   : "%.0f %s",
             value, units[unit]);
    return text;
}

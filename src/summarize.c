/* summarize.c - `pcomp summarize`: many texts, one JSON line each, appended to a file that can be continued.
 *
 * A result's key is a hash of the text, the question, the model and the settings that shape the
 * answer. On a rerun items whose key is in the file are skipped; lines that tell of an error are tried
 * again. Each line is on the disk before the next text is begun, so that a crash loses at most the
 * text in flight.
 */
#include "cli.h"
#include "jsonl.h"
#include "progress.h"
#include "provenance.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char DEFAULT_OUTPUT[] = "summaries.jsonl";
static const char DEFAULT_QUESTION[] = "Write a summary of the text above.";

struct Batch {
    struct Cli *cli;
    struct Engine *engine;
    struct ProgressView view;
    struct Appender out; /* fd is -1 while closed */
    uint64_t *done;      /* [n_keys] keys of finished results in the file */
    size_t n_keys, room;
    uint64_t settings_key; /* model and settings without what the texts decide */
    const char *question;
    int n_items, n_done, n_skipped, n_failed; /* seen, made now, found finished, failed */
};

/* ==== Keys ==== */

/* What the answer depends on besides the text: machine settings change speed only, except precision. */
static int settings_fingerprint(struct Batch *b)
{
    struct Settings shape = b->cli->settings;
    struct Settings plain;
    struct Str json = {0};
    settings_default(&plain);
    memcpy(shape.backend, plain.backend, sizeof shape.backend);
    memcpy(shape.isa, plain.isa, sizeof shape.isa);
    shape.threads = plain.threads;
    shape.wave = plain.wave;
    shape.memory = plain.memory;
    TRY(settings_json(&shape, &json));
    b->settings_key = hash64(json.data, json.len, engine_model(b->engine)->hash);
    b->settings_key = hash64(b->question, strlen(b->question), b->settings_key);
    str_free(&json);
    return PC_OK;
}

static uint64_t item_key(const struct Item *item, const struct Str *text, uint64_t settings)
{
    const struct Str *parts[] = {&item->question,    &item->instruction, &item->max_tokens,
                                 &item->temperature, &item->top_p,       &item->seed};
    uint64_t key = hash64(text->data, text->len, settings);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        key = hash64(parts[i]->data ? parts[i]->data : "", parts[i]->len, key);
    return key;
}

static bool key_done(const struct Batch *b, uint64_t key)
{
    for (size_t i = 0; i < b->n_keys; i++)
        if (b->done[i] == key) return true;
    return false;
}

static int key_note(struct Batch *b, uint64_t key)
{
    if (b->n_keys == b->room) {
        size_t room = b->room ? 2 * b->room : 256;
        uint64_t *keys = mem_grow(b->done, b->room, room, sizeof *keys);
        if (!keys) return PC_ENOMEM;
        b->done = keys;
        b->room = room;
    }
    b->done[b->n_keys++] = key;
    return PC_OK;
}

static void key_text(uint64_t key, char text[20])
{
    snprintf(text, 20, "%016llx", (unsigned long long)key);
}

/* ==== The result file ==== */

/* Notes one line of the file. A line that is not ours or was made with other settings is counted. */
static int old_line(struct Batch *b, const char *line, size_t len, long *foreign, long *other)
{
    int status = PC_OK;
    char mine[20];
    key_text(b->settings_key, mine);
    cJSON *root = cJSON_ParseWithLength(line, len);
    const cJSON *key = cJSON_GetObjectItemCaseSensitive(root, "key");
    const cJSON *settings = cJSON_GetObjectItemCaseSensitive(root, "settings_key");
    bool error = cJSON_GetObjectItemCaseSensitive(root, "error") != NULL;
    if (!cJSON_IsString(key) || !cJSON_IsString(settings))
        ++*foreign;
    else if (strcmp(settings->valuestring, mine) != 0)
        *other += !error;
    else if (!error)
        status = key_note(b, strtoull(key->valuestring, NULL, 16));
    cJSON_Delete(root);
    return status;
}

static int open_results(struct Batch *b)
{
    const char *path = b->cli->output;
    struct Str old = {0};
    int status = appender_open(path, &b->out, &old) < 0 ? CLI_EOUTPUT : PC_OK;
    if (status == PC_OK && b->out.torn && !b->cli->quiet)
        fprintf(stderr,
                "pcomp: %s: a torn last line of %lld bytes was cut off; its text is done again\n",
                path, (long long)b->out.torn);
    size_t at = 0, len;
    const char *line;
    long foreign = 0, other = 0;
    while (status == PC_OK && line_next(old.data ? old.data : "", old.len, &at, &line, &len))
        if (len) status = old_line(b, line, len, &foreign, &other);
    str_free(&old);
    if (status == PC_OK && foreign)
        return err_set(PC_EFORMAT,
                       "%s: %ld lines are not results of `pcomp summarize`; give another --output",
                       path, foreign);
    if (status == PC_OK && other && !b->cli->fresh)
        return err_set(
            PC_ECONFIG,
            "%s: holds %ld results made with another model or other settings; use the same, "
            "give another --output, or --fresh to add new ones below",
            path, other);
    return status;
}

static int write_line(struct Batch *b, cJSON *object)
{
    struct Str line = {0};
    int status = json_append(object, false, &line);
    /* appender_line() adds the line feed. */
    if (status == PC_OK && appender_line(&b->out, line.data, line.len - 1) < 0) {
        err_prefix(CLI_EOUTPUT, "%s", b->cli->output);
        status = CLI_EOUTPUT;
    }
    str_free(&line);
    return status;
}

static const char *error_code(int status)
{
    switch (status) {
    case PC_EIO:
        return "io";
    case PC_EFORMAT:
        return "format";
    case PC_ECONFIG:
        return "config";
    case PC_ENOMEM:
        return "memory";
    case PC_EDEVICE:
        return "device";
    case PC_ERANGE:
        return "range";
    default:
        return "internal";
    }
}

/* An item that failed is a line, not a stop. */
static int failed(struct Batch *b, const struct Item *item, uint64_t key, int code)
{
    char text[20];
    cJSON *root = cJSON_CreateObject();
    b->n_failed++;
    progress_clear(&b->view);
    const char *id = item->id.data ? item->id.data : "";
    fprintf(stderr, "pcomp: %s: %s\n", id, err_text());
    json_add_bytes(root, "id", id, strlen(id));
    key_text(key, text);
    cJSON_AddStringToObject(root, "key", text);
    key_text(b->settings_key, text);
    cJSON_AddStringToObject(root, "settings_key", text);
    cJSON *error = cJSON_AddObjectToObject(root, "error");
    cJSON_AddStringToObject(error, "code", error_code(code));
    json_add_bytes(error, "message", err_text(), strlen(err_text()));
    return write_line(b, root);
}

/* Bytes of the id that name its text file: without the ending of a text. */
static size_t stem_length(const struct Str *id)
{
    static const char *const endings[] = {".txt", ".md"};
    size_t len = id->len > 200 ? 200 : id->len;
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(endings[i]);
        if (id->len == len && len > n && memcmp(id->data + len - n, endings[i], n) == 0)
            return len - n;
    }
    return len;
}

/* Writes DIR/ID.txt; characters of the id that a file name cannot hold become '_'. */
static int write_text(const struct Batch *b, const struct Item *item, const struct Str *text)
{
    struct Str path = {0};
    if (mkdir(b->cli->text_dir, 0777) != 0 && errno != EEXIST)
        return err_set(CLI_EOUTPUT, "%s: cannot make the folder: %s", b->cli->text_dir,
                       strerror(errno));
    int status = str_appendf(&path, "%s/", b->cli->text_dir);
    size_t begin = path.len;
    if (status == PC_OK) status = str_append(&path, item->id.data, stem_length(&item->id));
    for (size_t i = begin; status == PC_OK && i < path.len; i++)
        if (path.data[i] == '/' || (unsigned char)path.data[i] < 0x20) path.data[i] = '_';
    if (status == PC_OK && path.data[begin] == '.') path.data[begin] = '_';
    if (status == PC_OK) status = str_appendf(&path, ".txt");
    struct Str whole = {0};
    if (status == PC_OK) status = str_append(&whole, text->data ? text->data : "", text->len);
    if (status == PC_OK) status = str_append(&whole, "\n", 1);
    if (status == PC_OK) status = out_file(path.data, whole.data, whole.len);
    str_free(&whole);
    str_free(&path);
    return status;
}

/* ==== One item ==== */

static void on_progress(void *user, const struct Progress *p)
{
    progress_show(user, p);
}

/* The settings of the command with those that an OpenAI line brought along. */
static int item_settings(const struct Batch *b, const struct Item *item, struct Settings *out)
{
    const struct {
        const char *name;
        const struct Str *value;
    } own[] = {
        {"instruction", &item->instruction},
        {"max_tokens", &item->max_tokens},
        {"temperature", &item->temperature},
        {"top_p", &item->top_p},
        {"seed", &item->seed},
    };
    *out = b->cli->settings;
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (own[i].value->len) TRY(settings_set(out, own[i].name, own[i].value->data));
    return PC_OK;
}

/* A summary keeps every chunk, so the cap is what bounds the merged cache: about half a window in all. */
static int choose_cap(const struct Batch *b, const struct Request *req, struct Settings *s)
{
    struct PlanInfo plan;
    TRY(engine_configure(b->engine, s));
    TRY(session_plan(b->engine, req, &plan));
    if (s->kv_cap != AUTO || s->method != METHOD_PARALLELCOMP || plan.keep < 2) return PC_OK;
    int cap = plan.window / 2 / plan.keep;
    s->kv_cap = cap < 64 ? 64 : cap;
    if (s->kv_cap >= plan.chunk_tokens) s->kv_cap = CAP_OFF;
    return engine_configure(b->engine, s);
}

static int result_line(struct Batch *b, const struct Item *item, uint64_t key,
                       const struct Request *req, const struct Result *r)
{
    char text[20];
    cJSON *root = cJSON_CreateObject();
    json_add_bytes(root, "id", item->id.data, item->id.len);
    key_text(key, text);
    cJSON_AddStringToObject(root, "key", text);
    key_text(b->settings_key, text);
    cJSON_AddStringToObject(root, "settings_key", text);
    json_add_bytes(root, "summary", r->text.data ? r->text.data : "", r->text.len);
    cJSON *run = provenance_make(b->engine, b->cli->model_path, req, r, PC_OK);
    cJSON_DeleteItemFromObject(run, "text"); /* it is the summary */
    cJSON_AddItemToObject(root, "run", run);
    return write_line(b, root);
}

static int plan_item(struct Batch *b, const struct Item *item, const struct Request *req)
{
    struct Str title = {0};
    int status = str_appendf(&title, "%s# %s\n", b->n_done++ ? "\n" : "", item->id.data);
    if (status == PC_OK) status = out_write(title.data, title.len);
    str_free(&title);
    return status < 0 ? status : plan_show(b->cli, b->engine, req);
}

/* Runs one text whose key is not in the file yet. */
static int summarize_text(struct Batch *b, const struct Item *item, const struct Str *text,
                          uint64_t key)
{
    struct Request req = {.context = text->data,
                          .context_len = text->len,
                          .user = &b->view,
                          .question = item->question.len ? item->question.data : b->question,
                          .on_progress = on_progress,
                          .stop = signals_stop};
    struct Settings settings;
    struct Result r = {0};
    progress_begin(&b->view, 0);
    int status = item_settings(b, item, &settings);
    if (status == PC_OK) status = choose_cap(b, &req, &settings);
    if (status == PC_OK && b->cli->plan) return plan_item(b, item, &req);
    if (status == PC_OK) status = session_run(b->engine, &req, &r);
    progress_clear(&b->view);
    if (status == PC_OK && b->cli->text_dir) status = write_text(b, item, &r.text);
    if (status == PC_OK) {
        status = result_line(b, item, key, &req, &r);
        if (status == PC_OK) status = key_note(b, key);
        b->n_done += status == PC_OK;
        if (status == PC_OK && !b->cli->quiet && (isatty(STDERR_FILENO) || b->cli->verbose))
            fprintf(stderr, "%s: %d tokens, %d chunks, %.1f s\n", item->id.data, r.plan.n_context,
                    r.plan.n_chunks, r.time.total);
    } else if (status != PC_EINTR && status != CLI_EOUTPUT) {
        status = failed(b, item, key, status);
    }
    result_free(&r);
    return status;
}

/* Takes one item: PC_OK goes on with the next, whether it was made, skipped or failed. */
static int take_item(struct Batch *b, const struct Item *item, const char *folder)
{
    struct Str text = {0}, path = {0};
    uint64_t key = hash64(item->id.data ? item->id.data : "", item->id.len, b->settings_key);
    int status = PC_OK;
    if (signals_stop(NULL)) return err_set(PC_EINTR, "stopped");
    b->n_items++;
    if (item->file.len) {
        bool whole = item->file.data[0] == '/' || !folder || strcmp(item->file.data, "-") == 0;
        status =
            str_appendf(&path, "%s%s%s", whole ? "" : folder, whole ? "" : "/", item->file.data);
        if (status == PC_OK) status = file_read(path.data, &text);
    } else {
        status = str_append(&text, item->text.data ? item->text.data : "", item->text.len);
    }
    const char *what = item->file.len ? item->file.data : "the text";
    if (status == PC_OK) status = text_check(what, text.data ? text.data : "", text.len);
    if (status < 0) {
        status = failed(b, item, key, status);
    } else {
        key = item_key(item, &text, b->settings_key);
        if (key_done(b, key))
            b->n_skipped++;
        else
            status = summarize_text(b, item, &text, key);
    }
    str_free(&text);
    str_free(&path);
    return status;
}

/* ==== Inputs ==== */

static int take_file(struct Batch *b, const char *path)
{
    struct Item item = {0};
    int status = str_appendf(&item.id, "%s", path);
    if (status == PC_OK) status = str_appendf(&item.file, "%s", path);
    if (status == PC_OK) status = take_item(b, &item, NULL);
    item_free(&item);
    return status;
}

static int take_list(struct Batch *b, const char *path)
{
    struct Str list = {0};
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    const char *beside = dirname(folder), *line;
    size_t at = 0, len;
    int status = file_read(path, &list);
    for (long number = 1; status == PC_OK && line_next(list.data, list.len, &at, &line, &len);
         number++) {
        if (len == 0) continue;
        struct Item item;
        status = item_parse(line, len, number, &item);
        if (status == PC_OK)
            status = take_item(b, &item, beside);
        else
            status = failed(b, &item, hash64(line, len, b->settings_key),
                            err_prefix(status, "%s, line %ld", path, number));
        item_free(&item);
    }
    str_free(&list);
    return status;
}

static bool wanted(const struct Batch *b, const char *folder, const char *name)
{
    struct stat info;
    char path[PATH_MAX];
    bool fits = b->cli->glob ? fnmatch(b->cli->glob, name, FNM_PERIOD) == 0
                             : fnmatch("*.txt", name, FNM_PERIOD) == 0 ||
                                   fnmatch("*.md", name, FNM_PERIOD) == 0;
    if (!fits || snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return false;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int take_folder(struct Batch *b, const char *folder)
{
    struct dirent **names;
    int n = scandir(folder, &names, NULL, by_name), status = PC_OK, taken = 0;
    if (n < 0) return err_set(PC_EIO, "%s: cannot list the folder: %s", folder, strerror(errno));
    for (int i = 0; i < n; i++) {
        size_t len = strlen(folder);
        char path[PATH_MAX];
        if (status == PC_OK && wanted(b, folder, names[i]->d_name)) {
            snprintf(path, sizeof path, "%s%s%s", folder, len && folder[len - 1] == '/' ? "" : "/",
                     names[i]->d_name);
            status = take_file(b, path);
            taken++;
        }
        free(names[i]);
    }
    free(names);
    if (status == PC_OK && taken == 0)
        return err_set(PC_EIO, "%s: no file fits %s; give --glob PATTERN", folder,
                       b->cli->glob ? b->cli->glob : "*.txt or *.md");
    return status;
}

static int take_input(struct Batch *b, const char *path)
{
    struct stat info;
    const char *dot = strrchr(path, '.');
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) return take_folder(b, path);
    if (dot && strcmp(dot, ".jsonl") == 0) return take_list(b, path);
    return take_file(b, path);
}

/* ==== The command ==== */

static void report(const struct Batch *b, int status)
{
    const struct Cli *cli = b->cli;
    if (cli->plan) return;
    if (status == PC_EINTR)
        fprintf(
            stderr,
            "pcomp: stopped; %d finished texts are in %s; run the same command again to go on\n",
            b->n_done + b->n_skipped, cli->output);
    if (cli->quiet || !(isatty(STDERR_FILENO) || cli->verbose || b->n_failed || b->n_skipped))
        return;
    fprintf(stderr, "%s: %d written, %d finished before, %d failed\n", cli->output, b->n_done,
            b->n_skipped, b->n_failed);
}

int cmd_summarize(struct Cli *cli)
{
    struct Batch b = {.cli = cli, .out = {.fd = -1}};
    int n = cli->files.n + cli->args.n, status;
    if (cli->questions.n > 1)
        return err_set(PC_ECONFIG, "summarize asks one question of each text; %d are given",
                       cli->questions.n);
    if (n == 0)
        return err_set(PC_ECONFIG, "nothing to summarise; name files, a folder or a .jsonl list");
    if (!cli->output) cli->output = DEFAULT_OUTPUT;
    TRY(progress_open(&b.view, cli->progress, cli->quiet));
    TRY_GOTO(cli_questions(cli));
    b.question = cli->questions.n ? cli->questions.items[0] : DEFAULT_QUESTION;
    TRY_GOTO(cli_open(cli, &b.engine));
    TRY_GOTO(settings_fingerprint(&b));
    if (!cli->plan) TRY_GOTO(open_results(&b));
    for (int i = 0; i < n && status == PC_OK; i++)
        status = take_input(&b, i < cli->files.n ? cli->files.items[i]
                                                 : cli->args.items[i - cli->files.n]);
    report(&b, status);
    if (status == PC_OK && b.n_failed) status = CLI_EPARTIAL;
fail:
    appender_close(&b.out);
    mem_free(b.done);
    engine_close(b.engine);
    return status;
}

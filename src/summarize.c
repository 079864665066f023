/* summarize.c - `pcomp summarize`: many texts, one JSON line each, appended to a file that can be continued.
 *
 * A result's key is a hash of the text, the question, the model and the settings that shape the
 * answer. On a rerun items whose key is in the file are skipped; lines that tell of an error are tried
 * again. Each line is on the disk before the next text is begun, so that a crash loses at most the
 * text in flight.
 */
#include "cli.h"
#include "progress.h"
#include "provenance.h"
#include "results.h"
#include "store.h"
#include "text_stream.h"

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
    struct Results results;
    uint64_t key; /* of the model and the settings without what the texts decide */
    const char *question;
    int n_items, n_done, n_skipped, n_failed; /* seen, made now, found finished, failed */
};

/* ==== Keys ==== */

/* What the answer depends on besides the text. */
static int batch_key(struct Batch *b)
{
    TRY(settings_key(&b->cli->settings, engine_model(b->engine)->hash, &b->key));
    b->key = hash64(b->question, strlen(b->question), b->key);
    return PC_OK;
}

/* text: its hash, the settings' key being the seed. */
static uint64_t item_key(const struct Item *item, uint64_t text)
{
    const struct Str *parts[] = {&item->question,    &item->instruction, &item->max_tokens,
                                 &item->temperature, &item->top_p,       &item->seed};
    uint64_t key = text;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        key = hash64(parts[i]->data ? parts[i]->data : "", parts[i]->len, key);
    return key;
}

/* ==== The result file ==== */

/* An item that failed is a line, not a stop. */
static int failed(struct Batch *b, const struct Item *item, uint64_t key, int code)
{
    int got = results_claim(&b->results, key), status;
    if (got != CLAIM_MINE) return got < 0 ? got : PC_OK; /* another process tells of it */
    cJSON *line = cJSON_CreateObject();
    b->n_failed++;
    progress_clear(&b->view);
    fprintf(stderr, "pcomp: %s: %s\n", item->id.data ? item->id.data : "", err_text());
    results_head(&b->results, line, &item->id, key);
    results_error(line, code);
    status = results_add(&b->results, line, key, true);
    results_release(&b->results, key);
    return status;
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
    TRY(out_folder(b->cli->text_dir));
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

static int result_line(struct Batch *b, const struct Item *item, uint64_t key,
                       const struct Request *req, const struct Result *r)
{
    cJSON *line = cJSON_CreateObject();
    results_head(&b->results, line, &item->id, key);
    json_add_bytes(line, "summary", r->text.data ? r->text.data : "", r->text.len);
    cJSON *run = provenance_make(b->engine, b->cli->model_path, req, r, PC_OK);
    cJSON_DeleteItemFromObject(run, "text"); /* it is the summary */
    cJSON_AddItemToObject(line, "run", run);
    return results_add(&b->results, line, key, false);
}

static int plan_item(struct Batch *b, const struct Item *item, const struct Request *req)
{
    struct Str title = {0};
    int status = str_appendf(&title, "%s# %s\n", b->n_done++ ? "\n" : "", item->id.data);
    if (status == PC_OK) status = out_write(title.data, title.len);
    str_free(&title);
    return status < 0 ? status : plan_show(b->cli, b->engine, req);
}

/* A store holds the text itself, so its maker has all of it at once. */
static int read_whole(struct TextStream *stream, struct Str *text, struct Request *req)
{
    TRY(source_all(&stream->source, text));
    req->stream = NULL;
    req->context = text->data;
    req->context_len = text->len;
    return PC_OK;
}

/* The text's store is made or found before its question is asked. */
static int run_item(struct Batch *b, struct Request *req, struct Result *r)
{
    struct Store store = {.path = ""};
    int status = b->cli->store_dir ? cli_store(b->cli, b->engine, req, &store) : PC_OK;
    if (status == PC_OK) status = session_run(b->engine, req, r);
    store_close(&store);
    req->store = NULL;
    return status;
}

/* Runs one text whose key is not in the file yet. stream: of an item that names a file; or NULL. */
static int summarize_text(struct Batch *b, const struct Item *item, struct TextStream *stream,
                          uint64_t key)
{
    struct Request req = {.context = item->text.data,
                          .context_len = item->text.len,
                          .stream = stream,
                          .user = &b->view,
                          .question = item->question.len ? item->question.data : b->question,
                          .on_progress = on_progress,
                          .stop = signals_stop};
    struct Settings settings;
    struct Result r = {0};
    struct Str whole = {0};
    progress_begin(&b->view, 0);
    int status = item_settings(b, item, &settings);
    if (status == PC_OK && stream && b->cli->store_dir && !b->cli->plan)
        status = read_whole(stream, &whole, &req);
    if (status == PC_OK) status = engine_cover(b->engine, &req, &settings);
    if (status == PC_OK && b->cli->plan) return plan_item(b, item, &req);
    if (status == PC_OK) status = run_item(b, &req, &r);
    progress_clear(&b->view);
    if (status == PC_OK && b->cli->text_dir) status = write_text(b, item, &r.text);
    if (status == PC_OK) {
        status = result_line(b, item, key, &req, &r);
        b->n_done += status == PC_OK;
        if (status == PC_OK && !b->cli->quiet && (isatty(STDERR_FILENO) || b->cli->verbose))
            fprintf(stderr, "%s: %d tokens, %d chunks, %.1f s\n", item->id.data, r.plan.n_context,
                    r.plan.n_chunks, r.time.total);
    } else if (status != PC_EINTR && status != CLI_EOUTPUT) {
        status = failed(b, item, key, status);
    }
    result_free(&r);
    str_free(&whole);
    return status;
}

/* Opens the item's file, which lies beside the list that names it, and checks and hashes its text. */
static int open_item(struct Batch *b, const struct Item *item, const char *folder, struct Str *path,
                     struct TextStream *out, uint64_t *hash)
{
    const char *file = item->file.data;
    bool whole = file[0] == '/' || !folder || strcmp(file, "-") == 0;
    TRY(str_appendf(path, "%s%s%s", whole ? "" : folder, whole ? "" : "/", file));
    const char *name = path->data;
    TRY(text_stream_open(out, &name, 1));
    out->source.stop = signals_stop;
    return source_hash(&out->source, b->key, hash);
}

static int hash_item(const struct Batch *b, const struct Item *item, uint64_t *hash)
{
    const char *text = item->text.data ? item->text.data : "";
    TRY(text_check("the text", text, item->text.len));
    *hash = hash64(text, item->text.len, b->key);
    return PC_OK;
}

static int claim_item(struct Batch *b, const struct Item *item, struct TextStream *stream,
                      uint64_t key)
{
    int status = results_claim(&b->results, key);
    if (status == CLAIM_MINE) {
        status = summarize_text(b, item, stream, key);
        results_release(&b->results, key);
    } else if (status > 0) {
        b->n_skipped += status == CLAIM_DONE;
        status = PC_OK;
    }
    return status;
}

/* Takes one item: PC_OK goes on with the next, whether it was made, skipped or failed. */
static int take_item(struct Batch *b, const struct Item *item, const char *folder)
{
    struct Str path = {0};
    struct TextStream stream = {0};
    bool streams = item->file.len > 0;
    uint64_t hash;
    if (signals_stop(NULL)) return err_set(PC_EINTR, "stopped");
    b->n_items++;
    int status =
        streams ? open_item(b, item, folder, &path, &stream, &hash) : hash_item(b, item, &hash);
    if (status == PC_OK)
        status = claim_item(b, item, streams ? &stream : NULL, item_key(item, hash));
    else if (status != PC_EINTR)
        status = failed(b, item, hash64(item->id.data ? item->id.data : "", item->id.len, b->key),
                        status);
    text_stream_close(&stream);
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
            status = failed(b, &item, hash64(line, len, b->key),
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
    fprintf(stderr, "%s: %d written, %d finished %s, %d failed\n", cli->output, b->n_done,
            b->n_skipped, cli->share ? "before or by others" : "before", b->n_failed);
}

static int open_results(struct Batch *b)
{
    const struct Cli *cli = b->cli;
    int flags = (cli->fresh ? RESULTS_FRESH : 0) | (cli->quiet ? RESULTS_QUIET : 0) |
                (cli->share ? RESULTS_SHARED : 0);
    return cli->plan ? PC_OK : results_open(&b->results, cli->output, b->key, flags);
}

/* Goes through all inputs; again when another process died at a text. */
static int take_inputs(struct Batch *b)
{
    const struct Cli *cli = b->cli;
    bool again = true;
    while (again) {
        again = false;
        b->n_items = b->n_skipped = 0;
        for (int i = 0; i < cli->files.n + cli->args.n; i++)
            TRY(take_input(b, i < cli->files.n ? cli->files.items[i]
                                               : cli->args.items[i - cli->files.n]));
        TRY(results_settle(&b->results, signals_stop, &again));
    }
    return PC_OK;
}

int cmd_summarize(struct Cli *cli)
{
    struct Batch b = {.cli = cli, .results = {.out = {.fd = -1}}};
    int n = cli->files.n + cli->args.n, status;
    if (cli->questions.n > 1)
        return err_set(PC_ECONFIG, "summarize asks one question of each text; %d are given",
                       cli->questions.n);
    if (n == 0)
        return err_set(PC_ECONFIG, "nothing to summarise; name files, a folder or a .jsonl list");
    if (cli->plan && cli->launch.rank > 0) return PC_OK;
    if (!cli->output) cli->output = DEFAULT_OUTPUT;
    TRY(progress_open(&b.view, cli->progress, cli->quiet));
    TRY_GOTO(cli_questions(cli));
    b.question = cli->questions.n ? cli->questions.items[0] : DEFAULT_QUESTION;
    TRY_GOTO(cli_open(cli, &b.engine));
    TRY_GOTO(batch_key(&b));
    TRY_GOTO(open_results(&b));
    status = take_inputs(&b);
    report(&b, status);
    if (status == PC_OK && b.n_failed) status = CLI_EPARTIAL;
fail:
    results_close(&b.results);
    engine_close(b.engine);
    return status;
}

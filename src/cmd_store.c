/* cmd_store.c - `pcomp index` (reads a text once and keeps it in a store), and stores that `--store DIR` finds by
 * the hash of what they were made from. `pcomp ask` is in cmd_run.c: it answers as `run` does.
 */
#include "cli.h"
#include "progress.h"
#include "provenance.h"
#include "store.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

static void on_progress(void *user, const struct Progress *p)
{
    progress_show(user, p);
}

/* A store that cannot be written is a failed output. */
static int index_text(struct Engine *engine, const struct Request *req, const char *path,
                      bool fresh, struct IndexInfo *out)
{
    int status = session_index(engine, req, path, fresh, out);
    if (status == PC_EINTR && out->n_done)
        fprintf(stderr,
                "pcomp: stopped; %d of %d chunks are in %s.part; run the same command again to go "
                "on\n",
                out->n_done, out->plan.n_chunks, path);
    else if (status == PC_EINTR)
        fprintf(stderr, "pcomp: stopped before the first chunk was kept\n");
    return status == PC_EIO ? CLI_EOUTPUT : status;
}

/* ==== pcomp index ==== */

static int report_json(const struct Cli *cli, const struct Engine *engine,
                       const struct IndexInfo *made)
{
    struct Str text = {0};
    cJSON *object = provenance_plan(engine, cli->model_path, &made->plan);
    cJSON_ReplaceItemInObject(object, "schema", cJSON_CreateString("pcomp.index.v1"));
    json_add_bytes(object, "store", cli->output, strlen(cli->output));
    cJSON_AddNumberToObject(object, "bytes", (double)made->bytes);
    cJSON_AddNumberToObject(object, "chunks_before", made->n_before);
    cJSON_AddNumberToObject(object, "chunks_done", made->n_done);
    cJSON_AddNumberToObject(object, "seconds", made->seconds);
    cJSON_AddNumberToObject(object, "peak_bytes", (double)made->peak_bytes);
    int status = json_append(object, isatty(STDOUT_FILENO), &text);
    if (status == PC_OK) status = out_write(text.data, text.len);
    str_free(&text);
    return status;
}

static void report_text(const struct Cli *cli, const struct IndexInfo *made)
{
    char size[32], peak[32], kept[48] = "";
    if (cli->quiet) return;
    if (made->plan.store_cap != CAP_OFF)
        snprintf(kept, sizeof kept, " (a head keeps %d of each)", made->plan.store_cap);
    if (made->n_before == made->plan.n_chunks)
        fprintf(stderr, "%s: holds this text already (%s)\n", cli->output,
                bytes_text(made->bytes, size));
    else
        fprintf(stderr, "%s: %d tokens in %d chunks%s%s, %s; %.1f s, %s at the peak\n", cli->output,
                made->plan.n_context, made->plan.n_chunks, kept,
                made->n_before ? ", some from before" : "", bytes_text(made->bytes, size),
                made->seconds, bytes_text(made->peak_bytes, peak));
}

/* No question is asked here, so that --kv-cap can but mean what the store keeps. */
static int name_cap(struct Cli *cli)
{
    const char *cap = NULL;
    for (int i = 0; i < cli->assigned.n; i += 2)
        if (strcmp(cli->assigned.items[i], "kv_cap") == 0) cap = cli->assigned.items[i + 1];
    if (!cap || strcmp(cap, "auto") == 0) return PC_OK;
    if (cli_assigned(cli, "store_cap"))
        return err_set(PC_ECONFIG,
                       "--kv-cap and --store-cap are the same to `pcomp index`; give one");
    TRY(list_push(&cli->assigned, "store_cap"));
    return list_push(&cli->assigned, cap);
}

int cmd_index(struct Cli *cli)
{
    struct Engine *engine = NULL;
    struct Str context = {0};
    struct ProgressView view;
    struct IndexInfo made;
    int status;
    if (!cli->output)
        return err_set(PC_ECONFIG, "no store named; say where to keep the text with -o STORE");
    TRY(name_cap(cli));
    TRY(progress_open(&view, cli->progress, cli->quiet));
    TRY_GOTO(cli_open(cli, &engine));
    TRY_GOTO(cli_context(cli, &context));
    struct Request req = {.context = context.data,
                          .context_len = context.len,
                          .question = "",
                          .user = &view,
                          .on_progress = on_progress,
                          .stop = signals_stop};
    progress_begin(&view, 0);
    status = index_text(engine, &req, cli->output, cli->fresh, &made);
    progress_clear(&view);
    if (status == PC_OK && cli->json) status = report_json(cli, engine, &made);
    if (status == PC_OK && !cli->json) report_text(cli, &made);
fail:
    str_free(&context);
    engine_close(engine);
    return status;
}

/* ==== --store DIR ==== */

static void nap(void)
{
    struct timespec time = {.tv_nsec = 300000000};
    nanosleep(&time, NULL);
}

/* Of several processes with the same text one writes; the others wait, and take over should it end before its time. */
static int make_store(const struct Cli *cli, struct Engine *engine, const struct Request *req,
                      const char *path)
{
    struct IndexInfo made;
    int status;
    TRY(out_folder(cli->store_dir));
    do {
        status = index_text(engine, req, path, false, &made);
        if (made.busy) nap();
    } while (status == PC_ECONFIG && made.busy && !signals_stop(NULL));
    if (status == PC_ECONFIG && made.busy) return err_set(PC_EINTR, "stopped");
    TRY(status);
    log_msg(LOG_DEBUG, "%s: %d chunks kept", path, made.n_done);
    return PC_OK;
}

static int open_store(struct Cli *cli, struct Engine *engine, const struct Request *req,
                      struct Store *out)
{
    struct Str path = {0};
    uint64_t key;
    int there = 1;
    TRY(session_store_key(engine, req, &key));
    int status = str_appendf(&path, "%s/%016llx.pcstore", cli->store_dir, (unsigned long long)key);
    if (status == PC_OK && cli->team.rank == 0 && access(path.data, F_OK) != 0)
        status = make_store(cli, engine, req, path.data);
    if (status == PC_OK && cli->team.size > 1) /* the other ranks wait for it */
        status = team_broadcast(&cli->team, &there, sizeof there);
    if (status == PC_OK) status = store_open(path.data, out);
    str_free(&path);
    return status;
}

/* A question that has no room behind the stored chunks is asked of the text itself: chunks are then cut to fit it. */
static int check_room(struct Engine *engine, struct Request *req)
{
    struct PlanInfo plan;
    int status = session_plan(engine, req, &plan);
    if (status != PC_ERANGE) return status;
    log_msg(LOG_WARN, "%s; this time the text is read again", err_text());
    req->store = NULL;
    return PC_OK;
}

int cli_store(struct Cli *cli, struct Engine *engine, struct Request *req, struct Store *store)
{
    if (!*store->path) TRY(open_store(cli, engine, req, store));
    req->store = store;
    return check_room(engine, req);
}

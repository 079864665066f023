/* cmd_run.c - `pcomp run` (questions about texts), `pcomp ask` (the same of an indexed text) and `pcomp demo` (a
 * sentence hidden in a book).
 *
 * The answer goes to standard output while it is made, and nothing else does; progress, warnings and
 * the summary go to standard error. With --json or --jsonl the objects take the answer's place.
 */
#include "cli.h"
#include "explain.h"
#include "geometry.h"
#include "progress.h"
#include "provenance.h"
#include "store.h"
#include "text_stream.h"
#include "tokenizer.h"

#include <errno.h>
#include <libgen.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One command's work: what all its questions share. */
struct Run {
    struct Cli *cli;
    struct Engine *engine;
    struct ProgressView view;
    struct TextStream text; /* run */
    struct Str context;     /* demo, and run with --store */
    bool streams;           /* the text is the stream */
    struct PipeRead *pipe;  /* what was read of it while a pipe was open; for the first question */
    struct Store store;     /* path "": the text is read now */
    const char *source;     /* name of the text, for the page */
    int index, n_questions;
    int out_status;       /* first failure to write the answer */
    struct Progress last; /* how far the present run came */
    bool started;         /* its start event has been told */
    bool has_mark;
    size_t mark_begin, mark_end;
};

/* ==== Callbacks of the engine ==== */

static int event_line(cJSON *event)
{
    struct Str line = {0};
    int status = json_append(event, false, &line);
    if (status == PC_OK) status = out_write(line.data, line.len);
    str_free(&line);
    return status;
}

static void on_progress(void *user, const struct Progress *p)
{
    struct Run *run = user;
    run->last = *p;
    progress_show(&run->view, p);
    /* the first event of all is the start, which tells the plan */
    if (!run->cli->jsonl || run->out_status < 0 || !run->started) return;
    char text[512];
    progress_json(&run->view, p, text, sizeof text - 1);
    size_t len = strlen(text);
    text[len] = '\n';
    run->out_status = out_write(text, len + 1);
}

/* Written piece by piece because this runs inside the decode loop, where nothing may be allocated. */
static int text_event(int index, const char *piece, size_t len)
{
    printf("{\"event\":\"text\",\"index\":%d,\"text\":\"", index);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)piece[i];
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    return out_write("\"}\n", 3);
}

static void on_text(void *user, const char *piece, size_t len)
{
    struct Run *run = user;
    if (run->out_status < 0 || run->cli->json) return;
    if (run->cli->jsonl) {
        run->out_status = text_event(run->index, piece, len);
        return;
    }
    progress_clear(&run->view);
    run->out_status = out_write(piece, len);
}

/* Nobody reads a closed pipe or a full disk: go on only while the answer arrives. */
static bool on_stop(void *user)
{
    const struct Run *run = user;
    return signals_stop(NULL) || run->out_status < 0;
}

/* ==== After a run ==== */

static void show_chunks(const struct Result *r)
{
    fprintf(stderr, "chunks   ");
    int shown = 0;
    for (int i = 0; r->chunks && i < r->plan.n_chunks; i++) {
        if (!r->chunks[i].kept) continue;
        if (++shown > 8) continue;
        fprintf(stderr, "%s%d", shown > 1 ? ", " : "kept ", i + 1);
        if (r->plan.rounds > 1) fprintf(stderr, " in round %d", r->chunks[i].round);
        if (isfinite(r->chunks[i].score)) fprintf(stderr, " (score %.3f)", r->chunks[i].score);
    }
    if (shown > 8) fprintf(stderr, " and %d more", shown - 8);
    fprintf(stderr, " of %d; lower score is better\n", r->plan.n_chunks);
    if (r->n_piped) fprintf(stderr, "pipe     %d chunks were read before it ended\n", r->n_piped);
}

/* What led each round but the first. */
static void show_found(const struct Result *r)
{
    for (int i = 0; i < r->plan.rounds - 1; i++) {
        const char *text = r->found[i].data ? r->found[i].data : "";
        text += strspn(text, " \n");
        fprintf(stderr, "found    in round %d: %.*s\n", i + 1, (int)strcspn(text, "\n"), text);
    }
}

static void show_pages(const struct Result *r)
{
    if (r->pages_there == 0) return;
    fprintf(stderr, "pages    %lld of %lld that the answer's heads had were read (%.0f%%)\n",
            (long long)r->pages_read, (long long)r->pages_there,
            100.0 * (double)r->pages_read / (double)r->pages_there);
}

static void show_tiers(const struct Result *r)
{
    const struct TierCounts *n = &r->tiers;
    char bytes[32];
    if (r->plan.tier_slots == 0) return;
    fprintf(stderr, "tiers    %lld of %lld chosen pages were not near, %lld fetched, %s from %s",
            (long long)n->missed, (long long)n->wanted, (long long)n->fetched,
            bytes_text(r->tier_bytes, bytes), r->plan.tier_below);
    if (r->plan.tier_host_bytes && n->from_file)
        fprintf(stderr, "; %lld pages were read from the file", (long long)n->from_file);
    if (n->late)
        fprintf(stderr, "; %lld came late, with %.2f%% of the attention chosen", (long long)n->late,
                100 * n->late_share);
    fputc('\n', stderr);
}

static void show_summary(const struct Run *run, const struct Result *r)
{
    const struct ModelConfig *cfg = &engine_model(run->engine)->cfg;
    char peak[32];
    int64_t in = 0, kept = 0;
    int n_heads = cfg->n_layers * cfg->n_kv_heads;
    for (int i = 0; r->kv_in && r->kv_kept && i < n_heads; i++) {
        in += r->kv_in[i];
        kept += r->kv_kept[i];
    }
    double prefill = r->time.prefill > 0 ? r->plan.n_context / r->time.prefill : 0;
    double decode = r->time.decode > 0 ? r->n_ids / r->time.decode : 0;
    fprintf(stderr, "\ntokens   %d text, %d question, %d answer (window %d)\n", r->plan.n_context,
            r->plan.n_question, r->n_ids, r->plan.window);
    show_chunks(r);
    show_found(r);
    fprintf(stderr, "KV       %lld of %lld entries of the kept chunks stay (%.0f%%)\n",
            (long long)kept, (long long)in, in ? 100.0 * (double)kept / (double)in : 0);
    show_pages(r);
    show_tiers(r);
    fprintf(stderr,
            "time     %.2f s: tokenize %.2f, prefill %.2f (%.0f tok/s), question %.2f, answer %.2f "
            "(%.1f tok/s)\n",
            r->time.total, r->time.tokenize, r->time.prefill, prefill, r->time.question,
            r->time.decode, decode);
    fprintf(stderr, "memory   %s at the peak; %s\n", bytes_text(r->peak_bytes, peak),
            engine_device(run->engine));
}

/* Says what a reader of the answer alone would not see. */
static void warn_result(const struct Run *run, const struct Result *r)
{
    const struct ModelConfig *cfg = &engine_model(run->engine)->cfg;
    if (r->text.len == 0) log_msg(LOG_WARN, "the model ended its answer at once: there is no text");
    if (r->plan.n_truncated > 0)
        log_msg(LOG_WARN, "%d of %d text tokens were cut out of the middle (--method truncate)",
                r->plan.n_truncated, r->plan.n_context);
    if (!cli_assigned(run->cli, "kv_cap") || !r->kv_in || !r->kv_kept ||
        run->cli->settings.kv_cap < 0 || r->plan.chunk_tokens <= run->cli->settings.kv_cap)
        return;
    for (int i = 0; i < cfg->n_layers * cfg->n_kv_heads; i++)
        if (r->kv_kept[i] < r->kv_in[i]) return;
    log_msg(LOG_WARN, "--kv-cap %d was asked for, but every KV entry was kept",
            run->cli->settings.kv_cap);
}

static int write_page(const struct Run *run, const struct Request *req, const struct Result *r,
                      int status)
{
    const struct Model *model = engine_model(run->engine);
    struct Str page = {0}, path = {0};
    struct Explain e = {
        .result = r,
        .context = req->context,
        .context_len = req->context_len,
        .stream = req->stream,
        .question = req->question,
        .model = model->cfg.name,
        .device = engine_device(run->engine),
        .source = run->source,
        .stop = stop_reason(r, status),
        .n_layers = model->cfg.n_layers,
        .n_kv_heads = model->cfg.n_kv_heads,
        .has_mark = run->has_mark,
        .mark_begin = run->mark_begin,
        .mark_end = run->mark_end,
    };
    const char *name = run->cli->explain, *dot = strrchr(name, '.');
    int stem = dot && !strchr(dot, '/') ? (int)(dot - name) : (int)strlen(name);
    int result = run->index == 0
                     ? str_appendf(&path, "%s", name)
                     : str_appendf(&path, "%.*s-%d%s", stem, name, run->index + 1, name + stem);
    if (result == PC_OK) result = explain_page(&e, &page);
    if (result == PC_OK) result = out_file(path.data, page.data, page.len);
    str_free(&page);
    str_free(&path);
    return result;
}

static int write_object(const struct Run *run, const struct Request *req, const struct Result *r,
                        int status)
{
    struct Str text = {0};
    cJSON *object = provenance_make(run->engine, run->cli->model_path, req, r, status);
    if (run->cli->jsonl) cJSON_AddStringToObject(object, "event", "result");
    if (run->n_questions > 1) cJSON_AddNumberToObject(object, "index", run->index);
    bool indent = run->n_questions == 1 && !run->cli->jsonl && isatty(STDOUT_FILENO);
    int result = json_append(object, indent, &text);
    if (result == PC_OK) result = out_write(text.data, text.len);
    str_free(&text);
    return result;
}

static void interrupted(const struct Run *run)
{
    if (run->out_status < 0 && !signals_got()) return;
    const struct Progress *p = &run->last;
    char all[32] = "chunks of a pipe";
    if (p->n_chunks) snprintf(all, sizeof all, "of %d chunks", p->n_chunks);
    if (p->stage == STAGE_PREFILL)
        fprintf(stderr,
                "pcomp: stopped after %d %s; `%s` stores nothing, so repeat the command to start "
                "again\n",
                p->chunks_done, all, run->cli->command->name);
    else
        fprintf(
            stderr,
            "pcomp: stopped before the answer was complete; repeat the command to start again\n");
}

/* ==== One question ==== */

static int begin_answer(struct Run *run, const struct Request *req)
{
    struct PlanInfo plan;
    TRY(session_plan(run->engine, req, &plan));
    progress_begin(&run->view, plan.available_bytes);
    run->started = true;
    if (run->cli->jsonl) {
        cJSON *event = provenance_plan(run->engine, run->cli->model_path, &plan);
        cJSON_AddStringToObject(event, "event", "start");
        cJSON_AddNumberToObject(event, "index", run->index);
        return event_line(event);
    }
    if (run->n_questions == 1 || run->cli->json) return PC_OK;
    struct Str header = {0};
    int status = str_appendf(&header, "%s## %s\n", run->index ? "\n" : "", req->question);
    if (status == PC_OK) status = out_write(header.data, header.len);
    str_free(&header);
    return status;
}

/* Writes all that a finished or stopped run leaves; the run's own status comes first. */
static int end_answer(struct Run *run, const struct Request *req, const struct Result *r,
                      int status)
{
    struct Cli *cli = run->cli;
    /* mpirun stops all ranks when one dies, and kills what takes longer: no object that could be cut in the middle */
    bool objects = cli->json || cli->jsonl, cut = status == PC_EINTR && cli->team.size > 1;
    int wrote = run->out_status;
    if (wrote == PC_OK && objects && !cut) wrote = write_object(run, req, r, status);
    if (wrote == PC_OK && !objects && r->text.len) wrote = out_write("\n", 1);
    if (cli->explain && r->chunks) {
        int page = write_page(run, req, r, status);
        if (wrote == PC_OK) wrote = page;
    }
    if (status == PC_OK) warn_result(run, r);
    if (cli->verbose || (isatty(STDERR_FILENO) && !cli->quiet)) show_summary(run, r);
    if (status == PC_EINTR) interrupted(run);
    /* The engine's "stopped" has replaced the reason since. */
    if (run->out_status < 0)
        err_set(
            wrote,
            "the answer could not be written to standard output: the disk is full or the reader "
            "has gone");
    return wrote < 0 ? wrote : status;
}

/* What a rank other than the first does: it reads its share, and says nothing. */
static int take_part(struct Run *run, struct Request *req, struct Result *r)
{
    if (run->cli->plan) return PC_OK;
    req->on_progress = NULL;
    req->on_text = NULL;
    return session_run(run->engine, req, r);
}

/* The text is kept for the next command. */
static int find_store(struct Run *run, struct Request *req)
{
    progress_begin(&run->view, 0);
    int status = cli_store(run->cli, run->engine, req, &run->store);
    progress_clear(&run->view);
    return status;
}

/* What can be read of the text while a pipe is still open. */
static int read_pipe(struct Run *run, struct Request *req)
{
    progress_begin(&run->view, 0);
    int status = session_pipe(run->engine, req, &run->pipe);
    if (status < 0) progress_clear(&run->view);
    if (status == PC_EINTR) interrupted(run);
    req->pipe = run->pipe;
    return status;
}

static int answer(struct Run *run, const char *question, struct Result *r)
{
    struct Request req = {
        .context = run->context.data,
        .context_len = run->context.len,
        .stream = run->streams ? &run->text : NULL,
        .question = question,
        .store_stays = run->n_questions > 1,
        .user = run,
        .on_progress = on_progress,
        .on_text = on_text,
        .stop = on_stop,
    };
    if (run->cli->asked.data) {
        req.store = &run->store;
        req.context = run->store.info.text.data;
        req.context_len = run->store.info.text.len;
    }
    if (run->cli->store_dir && !run->cli->plan) TRY(find_store(run, &req));
    if (run->cli->team.rank > 0) return take_part(run, &req, r);
    if (run->cli->plan) return plan_show(run->cli, run->engine, &req);
    run->started = false;
    if (run->streams && run->index == 0) TRY(read_pipe(run, &req));
    TRY(begin_answer(run, &req));
    int status = session_run(run->engine, &req, r);
    progress_clear(&run->view);
    if (status < 0 && status != PC_EINTR) return status;
    return end_answer(run, &req, r, status);
}

static void run_close(struct Run *run)
{
    pipe_read_free(run->pipe);
    text_stream_close(&run->text);
    str_free(&run->context);
    engine_close(run->engine);
    store_close(&run->store);
}

static int answer_all(struct Run *run)
{
    run->n_questions = run->cli->questions.n;
    for (; run->index < run->n_questions; run->index++) {
        struct Result result = {0};
        int status = answer(run, run->cli->questions.items[run->index], &result);
        result_free(&result);
        TRY(status);
    }
    return PC_OK;
}

/* A store is found by the whole text and may have to be made from it; else the text comes a stretch at a time. */
static int open_text(struct Run *run)
{
    struct Cli *cli = run->cli;
    if (cli->store_dir && !cli->plan) {
        if (cli->team.rank == 0) TRY(cli_context(cli, &run->context));
        return team_text(&cli->team, &run->context);
    }
    run->streams = true;
    return cli_stream(cli, &run->text);
}

int cmd_run(struct Cli *cli)
{
    struct Run run = {.cli = cli};
    int status;
    TRY(progress_open(&run.view, cli->progress, cli->quiet));
    TRY_GOTO(cli_questions(cli));
    if (cli->questions.n == 0)
        TRY_GOTO(err_set(PC_ECONFIG, "no question; give -q QUESTION (or use `pcomp summarize`)"));
    TRY_GOTO(cli_open(cli, &run.engine));
    TRY_GOTO(open_text(&run));
    run.source = cli->files.n ? cli->files.items[0] : cli->args.n ? cli->args.items[0] : "";
    status = answer_all(&run);
fail:
    run_close(&run);
    return status;
}

int cmd_ask(struct Cli *cli)
{
    struct Run run = {.cli = cli};
    int status;
    if (cli->args.n != 1) return err_set(PC_ECONFIG, "name one store: pcomp ask STORE -q QUESTION");
    TRY(progress_open(&run.view, cli->progress, cli->quiet));
    TRY_GOTO(cli_questions(cli));
    if (cli->questions.n == 0) TRY_GOTO(err_set(PC_ECONFIG, "no question; give -q QUESTION"));
    TRY_GOTO(store_open(cli->args.items[0], &run.store));
    cli->asked = run.store.info.settings;
    run.source = cli->args.items[0];
    TRY_GOTO(cli_open(cli, &run.engine));
    status = answer_all(&run);
fail:
    run_close(&run);
    return status;
}

/* ==== Demo ==== */

/* The field's classic needle; a model of 135M parameters can repeat it once the right chunk is kept. */
static const char NEEDLE[] =
    "The best thing to do in San Francisco is to eat a sandwich and sit in "
    "Dolores Park on a sunny day.";
static const char NEEDLE_VALUE[] = "Dolores Park";
static const char NEEDLE_QUESTION[] = "What is the best thing to do in San Francisco?";
static const char NEEDLE_ANSWER[] = "The best thing to do in San Francisco is";

/* The book that `make demo` fetches: book.txt beside the model. */
static int read_book(struct Cli *cli, struct Str *book, char *name, size_t room)
{
    if (cli->files.n > 1)
        return err_set(PC_ECONFIG, "the demo reads one book, but %d files are given", cli->files.n);
    if (cli->files.n == 1) {
        snprintf(name, room, "%s", cli->files.items[0]);
    } else if (geometry_named(cli->model_path)) {
        snprintf(name, room, "a made-up text");
        return prose_make(book, (size_t)cli->tokens);
    } else {
        char folder[sizeof cli->model_path];
        memcpy(folder, cli->model_path, sizeof folder);
        snprintf(name, room, "%s/book.txt", dirname(folder));
        if (access(name, R_OK) != 0)
            return err_set(PC_EIO, "%s: %s; `make demo` fetches a book, or give -f FILE", name,
                           strerror(errno));
    }
    TRY(file_read(name, book));
    return text_check(name, book->data ? book->data : "", book->len);
}

/* Start of a line near `at`, so that the sentence does not land inside another one. */
static size_t line_start(const struct Str *text, size_t at)
{
    for (size_t i = at; i < text->len && i < at + 2000; i++)
        if (text->data[i] == '\n') return i + 1;
    while (at > 0 && ((unsigned char)text->data[at] & 0xC0) == 0x80) at--;
    return at;
}

/* Puts `bytes` of the book, with the sentence at the wanted depth, into run->context. */
static int hide_needle(struct Run *run, const struct Str *book, size_t bytes)
{
    struct Str head = {.data = book->data, .len = bytes};
    size_t at = line_start(&head, (size_t)((double)bytes * run->cli->depth));
    str_clear(&run->context);
    TRY(str_append(&run->context, book->data, at));
    run->mark_begin = run->context.len;
    TRY(str_append(&run->context, NEEDLE, sizeof NEEDLE - 1));
    run->mark_end = run->context.len;
    run->has_mark = true;
    TRY(str_append(&run->context, "\n", 1));
    return str_append(&run->context, book->data + at, bytes - at);
}

/* Cuts the book so that text and sentence together have exactly the wanted number of tokens. */
static int make_context(struct Run *run, const struct Str *book, int *n_tokens)
{
    const struct Tokenizer *tokenizer = engine_tokenizer(run->engine);
    struct Cli *cli = run->cli;
    int want = cli->tokens;
    for (int tries = 0; tries < 8; tries++) {
        size_t bytes;
        TRY(text_cut(tokenizer, book, want, &bytes, n_tokens));
        if (cli->no_needle) {
            str_clear(&run->context);
            return str_append(&run->context, book->data, bytes);
        }
        TRY(hide_needle(run, book, bytes));
        struct Tokens tokens = {0};
        int status =
            tokenizer_encode(tokenizer, run->context.data, run->context.len, false, &tokens);
        *n_tokens = tokens.n;
        tokens_free(&tokens);
        if (status < 0) return status;
        /* Less than wanted and the whole book used: it is too short. */
        if (*n_tokens == cli->tokens || (*n_tokens < cli->tokens && bytes == book->len))
            return PC_OK;
        want += cli->tokens - *n_tokens;
        if (want < 1) want = 1;
    }
    return PC_OK;
}

static void say_demo(const struct Run *run, const char *book, int n_tokens, const char *question)
{
    const struct Cli *cli = run->cli;
    const struct Model *model = engine_model(run->engine);
    if (cli->quiet) return;
    fprintf(stderr, "Reading the first %d tokens of %s with %s (%s %d).\n", n_tokens, book,
            model->cfg.name, model->geometry ? "made for" : "trained on", model->cfg.train_len);
    if (model->geometry)
        fprintf(stderr, "Its weights are random, so its answer is noise: what this shows is speed "
                        "and memory. A byte is a token.\n");
    if (n_tokens < cli->tokens)
        fprintf(stderr, "The text is shorter than the %d tokens asked for: it is read whole.\n",
                cli->tokens);
    if (run->has_mark)
        fprintf(stderr, "Hidden at %.0f%% of it: \"%s\"\n", 100 * cli->depth, NEEDLE);
    fprintf(stderr, "Question: %s\n", question);
    if (*cli->settings.answer_prefix)
        fprintf(stderr, "The answer is made to begin: \"%s\"\n", cli->settings.answer_prefix);
}

static void rates_demo(const struct Run *run, const struct Result *r)
{
    char peak[32];
    if (run->cli->quiet) return;
    double prefill = r->time.prefill > 0 ? r->plan.n_context / r->time.prefill : 0,
           decode = r->time.decode > 0 ? r->n_ids / r->time.decode : 0;
    fprintf(stderr, "Prefill %.0f tok/s, answer %.1f tok/s, %s at the peak. Total time %.1f s.\n",
            prefill, decode, bytes_text(r->peak_bytes, peak), r->time.total);
}

static void judge_demo(const struct Run *run, const struct Result *r)
{
    if (engine_model(run->engine)->geometry) rates_demo(run, r);
    if (!run->has_mark || run->cli->quiet || !r->chunks) return;
    bool said = r->text.data && strstr(r->text.data, NEEDLE_VALUE);
    for (int i = 0; i < r->plan.n_chunks; i++) {
        const struct ChunkInfo *chunk = &r->chunks[i];
        if (run->mark_begin < chunk->byte_begin || run->mark_begin >= chunk->byte_end) continue;
        fprintf(stderr, "The sentence stands in chunk %d of %d, which was %s.\n", i + 1,
                r->plan.n_chunks, chunk->kept ? "kept" : "dropped");
        break;
    }
    fprintf(stderr, "The answer %s \"%s\". Total time %.1f s.\n",
            said ? "contains" : "does not contain", NEEDLE_VALUE, r->time.total);
}

/* As if the flag had been given. */
static int assign_setting(struct Cli *cli, const char *name, const char *value)
{
    TRY(list_push(&cli->assigned, name));
    return list_push(&cli->assigned, value);
}

int cmd_demo(struct Cli *cli)
{
    struct Run run = {.cli = cli, .n_questions = 1};
    struct Str book = {0};
    struct Result result = {0};
    char name[sizeof cli->model_path + 16] = "";
    int n_tokens = 0, status;
    if (!cli->tokens) cli->tokens = 131072;
    if (cli->depth < 0) cli->depth = 0.5;
    if (cli->questions.n > 1) return err_set(PC_ECONFIG, "the demo asks one question");
    if (cli->no_needle && cli->questions.n == 0)
        return err_set(PC_ECONFIG, "with --no-needle, give your own question with -q");
    TRY(progress_open(&run.view, cli->progress, cli->quiet));
    TRY_GOTO(cli_questions(cli));
    TRY_GOTO(cli_settings(cli));
    TRY_GOTO(cli_model(cli));
    if (geometry_named(cli->model_path)) cli->no_needle = true; /* nobody would find it */
    if (cli->questions.n == 0 && !*cli->settings.answer_prefix && !cli->no_needle)
        TRY_GOTO(assign_setting(cli, "answer_prefix", NEEDLE_ANSWER));
    TRY_GOTO(cli_open(cli, &run.engine));
    if (cli->team.rank == 0) TRY_GOTO(read_book(cli, &book, name, sizeof name));
    TRY_GOTO(team_text(&cli->team, &book));
    TRY_GOTO(make_context(&run, &book, &n_tokens));
    run.source = name;
    const char *question = cli->questions.n ? cli->questions.items[0]
                           : cli->no_needle ? "What is this text about?"
                                            : NEEDLE_QUESTION;
    say_demo(&run, name, n_tokens, question);
    status = answer(&run, question, &result);
    if (status == PC_OK && !cli->plan && cli->team.rank == 0) judge_demo(&run, &result);
fail:
    result_free(&result);
    str_free(&book);
    run_close(&run);
    return status;
}

/* cmd_calibrate_chunks.c - `pcomp calibrate chunks`: finds the layers and heads by which chunks can leave early, reports how
 * often they lose the right one on texts that had no part in the choice, and writes the profile (calibrate_chunks.h).
 */
#include "calibrate_chunks.h"
#include "cmd_calibrate.h"
#include "jsonl.h"
#include "progress.h"

#include <math.h>
#include <string.h>

enum { TEXTS = 4, CHUNKS = 12, ASKS = 16, ROWS_MAX = 200, HAY_BYTES = 600000 };

struct ChunksRun {
    struct Cli *cli;
    struct Engine *engine;
    struct ChunkStudy study;
    struct ChunkProfile profile;
    struct ChunkReport report;
    struct ProgressView view;
    struct Str text, rows; /* what stands between facts; the user's rows, as JSON lines */
    double begun;
    int n_rows, n_taken;
};

static void show(void *user, const char *what, double share)
{
    struct ChunksRun *run = user;
    progress_work(&run->view, what, share, clock_seconds() - run->begun);
}

/* ==== In ==== */

static bool is_rows(const char *path)
{
    size_t len = strlen(path);
    return len > 6 && strcmp(path + len - 6, ".jsonl") == 0;
}

static int read_files(struct ChunksRun *run)
{
    const struct TextList *files = &run->cli->files;
    for (int i = 0; i < files->n; i++) {
        struct Str *out = is_rows(files->items[i]) ? &run->rows : &run->text;
        if (out->len) TRY(str_append(out, "\n", 1));
        TRY(file_read(files->items[i], out));
    }
    if (run->text.len == 0) TRY(prose_make(&run->text, HAY_BYTES));
    size_t bad = utf8_invalid_at(run->text.data, run->text.len);
    if (bad < run->text.len)
        return err_set(PC_EFORMAT, "byte %zu of the text is not UTF-8; give plain text with -f",
                       bad);
    const char *line;
    size_t at = 0, len;
    while (run->rows.len && line_next(run->rows.data, run->rows.len, &at, &line, &len))
        run->n_rows += len > 0;
    if (run->n_rows > ROWS_MAX)
        return err_set(PC_ERANGE, "%d rows; at most %d are taken", run->n_rows, ROWS_MAX);
    return PC_OK;
}

static int open_study(struct ChunksRun *run)
{
    struct Cli *cli = run->cli;
    TRY(calibrate_model(cli));
    TRY(read_files(run));
    TRY(cli_open(cli, &run->engine));
    struct ChunkStudyOptions o = {.texts = cli->samples ? cli->samples : TEXTS,
                                  .rows = (run->n_rows + 1) / 2,
                                  .n_chunks = CHUNKS,
                                  .n_asks = ASKS,
                                  .seed = engine_settings(run->engine)->seed,
                                  .stop = signals_stop,
                                  .on_progress = show,
                                  .user = run};
    struct Settings set = *engine_settings(run->engine);
    TRY(plan_defaults(&set, engine_model(run->engine)->cfg.train_len, INT32_MAX));
    if (cli->tokens) o.n_chunks = cli->tokens / set.chunk;
    if (o.n_chunks < 4)
        return err_set(PC_ERANGE,
                       "texts of %d tokens are fewer than 4 chunks of %d, too few to choose "
                       "among; give more --tokens or a smaller --chunk",
                       cli->tokens, set.chunk);
    return chunk_study_open(&run->study, run->engine, &o, run->text.data, run->text.len);
}

static const char *text_of(const cJSON *object, const char *name, const char *other)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!item) item = cJSON_GetObjectItemCaseSensitive(object, other);
    if (cJSON_IsArray(item)) item = cJSON_GetArrayItem(item, 0);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

/* {"context", "question" or "input", "answer" or "answers"}; half by half in turn. */
static int read_row(struct ChunksRun *run, const char *line, size_t len, int number)
{
    cJSON *object = cJSON_ParseWithLength(line, len);
    struct ChunkRow row = {text_of(object, "context", "context"),
                           text_of(object, "question", "input"),
                           text_of(object, "answer", "answers")};
    bool taken = false;
    int status;
    if (row.context && row.question && row.answer)
        status = chunk_study_row(&run->study, run->n_taken % N_HALVES, &row, &taken);
    else
        status = err_set(PC_EFORMAT,
                         "row %d is no JSON object with \"context\", \"question\" and \"answer\"",
                         number);
    run->n_taken += taken;
    cJSON_Delete(object);
    return status;
}

static int read_rows(struct ChunksRun *run)
{
    const char *line;
    size_t at = 0, len;
    int number = 0;
    while (run->rows.len && line_next(run->rows.data, run->rows.len, &at, &line, &len)) {
        if (len == 0) continue;
        TRY(read_row(run, line, len, ++number));
        show(run, "rows", (double)number / run->n_rows);
    }
    return chunk_study_rows(&run->study);
}

/* ==== Out ==== */

/* A share with Wilson's 95% interval. */
static int share_text(int hits, int n, struct Str *out)
{
    double z = 1.96, p = n ? (double)hits / n : 0, d = 1 + z * z / (n ? n : 1);
    double mid = (p + z * z / (2.0 * (n ? n : 1))) / d,
           half = z * sqrt(p * (1 - p) / (n ? n : 1) + z * z / (4.0 * n * n + (n ? 0 : 1))) / d;
    return str_appendf(out, " %5.1f (%.0f-%.0f)", 100 * p, 100 * fmax(0, mid - half),
                       100 * fmin(1, mid + half));
}

/* How often fewer than m are ahead. */
static int hits_text(const int *ahead, int n, int m, struct Str *out)
{
    int hits = 0, all = 0;
    for (int i = 0; i < n; i++) {
        hits += ahead[i] >= 0 && ahead[i] < m;
        all += ahead[i] >= 0;
    }
    return share_text(hits, all, out);
}

static int row_text(const struct ChunksRun *run, const struct ChunkCandidate *c, struct Str *out)
{
    const struct ChunkReport *r = &run->report;
    TRY(str_appendf(out, "%c%5d %5d ", c->chosen ? '*' : ' ', c->stop.layer, c->stop.n_heads));
    for (int m = 1; m <= 4; m *= 2) TRY(hits_text(c->ahead, r->n_samples, m, out));
    TRY(hits_text(c->winner, r->n_samples, 4, out));
    for (int i = 0; i < N_LENGTHS; i++)
        TRY(str_appendf(out, " %9d %6.2f", c->survivors[i], c->share[i]));
    return str_appendf(out, " %6.3g\n", (double)c->stop.words);
}

/* The score behind all layers, alone and with heads, of samples from `first` on. */
static int ends_text(const struct ChunksRun *run, const char *name, int first, struct Str *out)
{
    const struct ChunkReport *r = &run->report;
    TRY(str_appendf(out, " %5s %5s ", name, "-"));
    for (int m = 1; m <= 4; m *= 2) TRY(hits_text(r->finals + first, r->n_samples - first, m, out));
    TRY(str_appendf(out, "\n %5s %5d ", "+", run->profile.last.n_heads));
    for (int m = 1; m <= 4; m *= 2)
        TRY(hits_text(r->blended + first, r->n_samples - first, m, out));
    return str_appendf(out, "  with heads, %.3g nats a unit\n", (double)run->profile.nats);
}

static int table_make(const struct ChunksRun *run, struct Str *out)
{
    const struct ChunkReport *r = &run->report;
    const struct ChunkStudyOptions *o = &run->study.opt;
    TRY(str_appendf(
        out,
        "%s: chunks of %d tokens; of each half %d texts of %d chunks with %d questions, "
        "%d rows; seed %llu; %.0f s\n",
        engine_model(run->engine)->cfg.name, run->study.chunk, o->texts, o->n_chunks, o->n_asks,
        run->n_taken / 2, (unsigned long long)o->seed, clock_seconds() - run->begun));
    TRY(str_appendf(out,
                    "right chunk among the best 1, 2 and 4, and the final winner among 4, %% of %d "
                    "questions that had no part in the choice of heads\n\n",
                    r->n_samples));
    TRY(str_appendf(out, "%6s %5s  %15s %15s %15s %15s %9s %6s %9s %6s %6s\n", "layers", "heads",
                    "1", "2", "4", "winner in 4", "survivors", "share", "at 1M", "share", "words"));
    for (int i = 0; i < r->n; i++) TRY(row_text(run, &r->list[i], out));
    TRY(ends_text(run, "all", 0, out));
    if (run->n_taken > 1) {
        TRY(ends_text(run, "rows", r->n_made, out));
        TRY(str_appendf(out, " %5s %5s ", "words", "-"));
        for (int m = 1; m <= 4; m *= 2) TRY(hits_text(r->words, r->n_samples, m, out));
        TRY(str_appendf(out, "  of the rows, no layers\n"));
    }
    return str_appendf(
        out,
        "\nsurvivors: of %d chunks (128K tokens) and of %d (1M), at a risk of %.3g; share: of the "
        "arithmetic, with this decision alone; words: what they weigh; *: in the profile, by which "
        "the share is %.2f at 128K and %.2f at 1M\n",
        r->n_chunks[0], r->n_chunks[1], (double)engine_settings(run->engine)->early_risk,
        r->share[0], r->share[1]);
}

static int write_profile(const struct ChunksRun *run)
{
    const struct ChunkStudyOptions *o = &run->study.opt;
    struct Str path = {0}, facts = {0};
    int status = str_appendf(
        &facts,
        "{\"made\": \"pcomp calibrate chunks, %s\", \"chunk\": %d, \"texts\": %d, \"chunks\": %d, "
        "\"questions\": %d, \"rows\": %d, \"seed\": %llu}",
        engine_model(run->engine)->cfg.name, run->study.chunk, o->texts, o->n_chunks, o->n_asks,
        run->n_taken / 2, (unsigned long long)o->seed);
    if (status == PC_OK) status = str_appendf(&path, "%s/chunks.json", run->cli->output);
    if (status == PC_OK) status = chunk_profile_write(&run->profile, facts.data, path.data);
    str_free(&facts);
    str_free(&path);
    return status == PC_EIO ? CLI_EOUTPUT : status;
}

/* ==== The command ==== */

static int run_study(void *user)
{
    struct ChunksRun *run = user;
    TRY(open_study(run));
    if (run->cli->output) TRY(out_folder(run->cli->output)); /* before the work */
    run->begun = clock_seconds();
    progress_begin(&run->view, 0);
    TRY(chunk_study_texts(&run->study));
    TRY(read_rows(run));
    TRY(chunk_study_choose(&run->study, &run->profile, &run->report));
    progress_clear(&run->view);
    struct Str table = {0};
    int status = table_make(run, &table);
    if (status == PC_OK) status = out_write(table.data, table.len);
    if (status == PC_OK && run->cli->output) status = write_profile(run);
    str_free(&table);
    return status;
}

int calibrate_chunks(struct Cli *cli)
{
    struct ChunksRun *run = mem_alloc(1, sizeof *run);
    if (!run) return PC_ENOMEM;
    run->cli = cli;
    int status = calibrate_watch(cli, &run->view, run_study, run);
    chunk_report_free(&run->report);
    chunk_study_close(&run->study);
    str_free(&run->text);
    str_free(&run->rows);
    engine_close(run->engine);
    mem_free(run);
    return status;
}

/* cmd_bench.c - `pcomp bench`: rates of whole runs (prefill, decode) and of single operations.
 *
 * Prefill and decode are timed on session_run(), the path that answers real questions, over a text of
 * exactly the stated number of tokens. Each case runs once unmeasured, so that page faults of the
 * model file are not counted, then `repeats` times. What the host does with a text before that is timed by itself.
 */
#include "cli.h"
#include "provenance.h"
#include "text_stream.h"
#include "tokenizer.h"

#include <math.h>
#include <string.h>

/* One case and the sums over its repeats. */
struct BenchCase {
    char test[48], shape[64];
    int n;              /* repeats counted */
    double sum, sum_sq; /* of seconds */
    double work;        /* per repeat: tokens, or operations */
    double bytes;       /* per repeat, single operations only */
    double sum_rate, sum_rate_sq;
    const char *unit;
    size_t peak_bytes;
    double peak_share; /* of the device's peak rate; 0: not known */
};

enum { CASES_MAX = 64 };

struct Bench {
    struct Cli *cli;
    struct Engine *engine;
    struct Str text; /* as long as the longest case */
    struct BenchCase cases[CASES_MAX];
    int n_cases;
};

static double mean(double sum, int n)
{
    return n ? sum / n : 0;
}

/* Standard deviation of a sample. */
static double deviation(double sum, double sum_sq, int n)
{
    if (n < 2) return 0;
    double variance = (sum_sq - sum * sum / n) / (n - 1);
    return variance > 0 ? sqrt(variance) : 0;
}

static struct BenchCase *case_new(struct Bench *b, const char *test, const char *shape,
                                  const char *unit)
{
    if (b->n_cases == CASES_MAX) return NULL;
    struct BenchCase *c = &b->cases[b->n_cases++];
    *c = (struct BenchCase){.unit = unit};
    snprintf(c->test, sizeof c->test, "%s", test);
    snprintf(c->shape, sizeof c->shape, "%s", shape);
    return c;
}

static void case_add(struct BenchCase *c, double seconds, double work)
{
    double rate = seconds > 0 ? work / seconds : 0;
    c->n++;
    c->work = work;
    c->sum += seconds;
    c->sum_sq += seconds * seconds;
    c->sum_rate += rate;
    c->sum_rate_sq += rate * rate;
}

/* ==== Whole runs ==== */

/* Runs one request of the first `bytes` of the text. */
static int run_once(struct Bench *b, size_t bytes, struct Result *r)
{
    struct Request req = {.context = b->text.data,
                          .context_len = bytes,
                          .stop = signals_stop,
                          .question = "What did the clerk carry?"};
    return session_run(b->engine, &req, r);
}

/* Repeats a run of n_tokens; prefill and decode are counted into either case when it is not NULL. */
static int bench_runs(struct Bench *b, int n_tokens, struct BenchCase *prefill,
                      struct BenchCase *decode)
{
    size_t bytes;
    int n;
    TRY(text_cut(engine_tokenizer(b->engine), &b->text, n_tokens, &bytes, &n));
    if (n < n_tokens)
        return err_set(PC_ERANGE, "the text has %d tokens, %d are needed; give a longer -f FILE", n,
                       n_tokens);
    for (int i = 0; i <= b->cli->repeats; i++) {
        struct Result r = {0};
        int status = run_once(b, bytes, &r);
        if (status == PC_OK && i > 0) {
            if (prefill) case_add(prefill, r.time.prefill, r.plan.n_context);
            if (decode) case_add(decode, r.time.decode, r.n_ids);
            if (prefill) prefill->peak_bytes = r.peak_bytes;
            if (decode) decode->peak_bytes = r.peak_bytes;
        }
        result_free(&r);
        TRY(status);
    }
    return PC_OK;
}

static int bench_sessions(struct Bench *b, bool prefill, bool decode)
{
    int lengths[2] = {2048, 8192}, n_lengths = 2;
    if (b->cli->tokens) {
        lengths[0] = b->cli->tokens;
        n_lengths = 1;
    }
    if (b->cli->files.n)
        TRY(cli_context(b->cli, &b->text));
    else
        TRY(prose_make(&b->text, (size_t)lengths[n_lengths - 1] * 8));
    for (int i = 0; i < n_lengths; i++) {
        char shape[64];
        snprintf(shape, sizeof shape, "%d tokens", lengths[i]);
        struct BenchCase *first = prefill ? case_new(b, "prefill", shape, "tok/s") : NULL;
        snprintf(shape, sizeof shape, "after %d tokens", lengths[i]);
        struct BenchCase *second = decode ? case_new(b, "decode", shape, "tok/s") : NULL;
        TRY(bench_runs(b, lengths[i], first, second));
    }
    return PC_OK;
}

/* ==== The paper's table ==== */

/* One line of it: a whole prefill under these settings; what does not fit is left out with a word. */
static int paper_line(struct Bench *b, const struct Settings *set, int n_tokens, const char *test)
{
    char shape[64];
    if (set->method == METHOD_FULL)
        snprintf(shape, sizeof shape, "all at once");
    else
        snprintf(shape, sizeof shape, "%d chunks a wave", set->wave);
    TRY(engine_configure(b->engine, set));
    struct BenchCase *c = case_new(b, test, shape, "tok/s");
    if (!c) return err_set(PC_EINTERNAL, "more than %d lines to time", CASES_MAX);
    int status = bench_runs(b, n_tokens, c, NULL);
    if (status != PC_ENOMEM) return status;
    log_msg(LOG_WARN, "%s, %s: %s", test, shape, err_text());
    b->n_cases--;
    return PC_OK;
}

/* Table 7 of ParallelComp in this engine: prefill of 23 chunks, 1 to 23 of them a wave, with all tokens of the kept
 * chunks and with half of them; beside it full attention. A wave of one is the naive loop over chunks. */
static int bench_paper(struct Bench *b)
{
    static const int waves[] = {1, 2, 4, 8, 16, 23};
    enum { CHUNKS = 23, WAVES = sizeof waves / sizeof *waves, AROUND = 256 };
    struct Settings set = *engine_settings(b->engine);
    int window = set.window == AUTO ? engine_model(b->engine)->cfg.train_len : set.window;
    if (set.chunk == AUTO) set.chunk = window - AROUND; /* prompt, question and answer */
    if (set.chunk < 16) return err_set(PC_ERANGE, "a window of %d is too small for this", window);
    int n_tokens = b->cli->tokens ? b->cli->tokens : CHUNKS * set.chunk;
    set.max_tokens = 16;
    if (b->cli->files.n)
        TRY(cli_context(b->cli, &b->text));
    else
        TRY(prose_make(&b->text, (size_t)n_tokens * 8));
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < WAVES; i++) {
            set.wave = waves[i];
            set.kv_cap = half ? set.chunk / 2 : CAP_OFF;
            TRY(paper_line(b, &set, n_tokens, half ? "chunks, half of KV" : "chunks"));
        }
    set.method = METHOD_FULL;
    return paper_line(b, &set, n_tokens, "full attention");
}

/* ==== The host's part ==== */

/* The text as a stream: files, or so many tokens of made prose. */
static int stream_open(struct Bench *b, struct TextStream *out)
{
    if (b->cli->files.n) return cli_stream(b->cli, out);
    size_t n = b->cli->tokens ? (size_t)b->cli->tokens : 1 << 20;
    TRY(prose_make(&b->text, n * 4));
    TRY(source_open_spool(&out->source));
    TRY(source_put(&out->source, b->text.data, b->text.len));
    out->source.whole = true;
    return PC_OK;
}

static int bench_threads(struct Bench *b, struct TextStream *st, int threads)
{
    static const char *const names[] = {"text scan", "text cuts", "text words", "text loads"};
    struct Request req = {
        .stream = st, .question = "What did the clerk carry?", .stop = signals_stop};
    struct BenchCase *cases[N_TEXT_WORK];
    struct BenchText once = {0};
    for (int i = 0; i < N_TEXT_WORK; i++) cases[i] = case_new(b, names[i], "", "tok/s");
    for (int r = 0; r <= b->cli->repeats; r++) {
        TRY(engine_bench_text(b->engine, &req, threads, &once));
        for (int i = 0; i < N_TEXT_WORK && r > 0; i++)
            case_add(cases[i], once.seconds[i], once.n_tokens);
    }
    for (int i = 0; i < N_TEXT_WORK; i++)
        snprintf(cases[i]->shape, sizeof cases[i]->shape, "%d tokens, %d thread%s", once.n_tokens,
                 threads, threads == 1 ? "" : "s");
    return PC_OK;
}

/* By one thread and by all. */
static int bench_text(struct Bench *b)
{
    struct TextStream st = {0};
    int threads = engine_settings(b->engine)->threads, status = stream_open(b, &st);
    if (status == PC_OK) status = bench_threads(b, &st, 1);
    if (status == PC_OK && threads > 1) status = bench_threads(b, &st, threads);
    text_stream_close(&st);
    return status;
}

/* ==== Operations ==== */

static int bench_ops(struct Bench *b)
{
    const int n_tokens = b->cli->tokens ? b->cli->tokens : 2048;
    for (int op = 0;; op++) {
        struct BenchRow row = {0};
        int status = engine_bench_op(b->engine, op, n_tokens, &row);
        if (status == PC_ERANGE) return PC_OK;
        TRY(status);
        struct BenchCase *c = case_new(b, row.name, row.shape, "GFLOP/s");
        if (!c) return err_set(PC_EINTERNAL, "more than %d operations to time", CASES_MAX);
        for (int i = 0; i < b->cli->repeats; i++) {
            if (signals_stop(NULL)) return err_set(PC_EINTR, "stopped");
            TRY(engine_bench_op(b->engine, op, n_tokens, &row));
            case_add(c, row.seconds, row.flops / 1e9);
            c->bytes = row.bytes;
            c->peak_share = row.seconds > 0 ? row.least_seconds / row.seconds : 0;
        }
    }
}

/* ==== Tables ==== */

/* Per cent of the device's peak, or a dash. */
static const char *share_text(double share, char text[16])
{
    snprintf(text, 16, share > 0 ? "%.1f" : "-", 100 * share);
    return text;
}

static int row_csv(const struct BenchCase *c, bool markdown, struct Str *out)
{
    double seconds = mean(c->sum, c->n), rate = mean(c->sum_rate, c->n);
    double rate_sd = deviation(c->sum_rate, c->sum_rate_sq, c->n);
    double gb = seconds > 0 ? c->bytes / seconds / 1e9 : 0;
    char share[16];
    if (markdown)
        return str_appendf(out, "| %s | %s | %.2f ± %.2f | %s | %.2f ± %.2f | %.1f | %s | %.0f |\n",
                           c->test, c->shape, rate, rate_sd, c->unit, 1e3 * seconds,
                           1e3 * deviation(c->sum, c->sum_sq, c->n), gb,
                           share_text(c->peak_share, share), (double)c->peak_bytes / (1 << 20));
    return str_appendf(out, "%s,\"%s\",%d,%.6g,%.6g,%s,%.6g,%.6g,%.6g,%.4g,%zu\n", c->test,
                       c->shape, c->n, rate, rate_sd, c->unit, seconds,
                       deviation(c->sum, c->sum_sq, c->n), gb, 100 * c->peak_share, c->peak_bytes);
}

static int table_text(const struct Bench *b, bool markdown, struct Str *out)
{
    if (markdown)
        TRY(str_appendf(
            out,
            "%s, %s, %d repeats, mean ± sd\n\n| test | shape | rate | unit | ms | GB/s | %% of peak | MiB |\n"
            "|---|---|---:|---|---:|---:|---:|---:|\n",
            engine_model(b->engine)->cfg.name, engine_device(b->engine), b->cli->repeats));
    else
        TRY(str_appendf(
            out,
            "test,shape,repeats,rate,rate_sd,unit,seconds,seconds_sd,gb_per_s,percent_of_peak,peak_bytes\n"));
    for (int i = 0; i < b->n_cases; i++) TRY(row_csv(&b->cases[i], markdown, out));
    return PC_OK;
}

static int table_json(const struct Bench *b, struct Str *out)
{
    struct PlanInfo none = {0};
    cJSON *root = provenance_plan(b->engine, b->cli->model_path, &none);
    cJSON_DeleteItemFromObject(root, "plan");
    cJSON_ReplaceItemInObject(root, "schema", cJSON_CreateString("pcomp.bench.v1"));
    cJSON *rows = cJSON_AddArrayToObject(root, "rows");
    for (int i = 0; i < b->n_cases; i++) {
        const struct BenchCase *c = &b->cases[i];
        cJSON *row = cJSON_CreateObject();
        double seconds = mean(c->sum, c->n);
        cJSON_AddStringToObject(row, "test", c->test);
        cJSON_AddStringToObject(row, "shape", c->shape);
        cJSON_AddNumberToObject(row, "repeats", c->n);
        cJSON_AddNumberToObject(row, "rate", mean(c->sum_rate, c->n));
        cJSON_AddNumberToObject(row, "rate_sd", deviation(c->sum_rate, c->sum_rate_sq, c->n));
        cJSON_AddStringToObject(row, "unit", c->unit);
        cJSON_AddNumberToObject(row, "seconds", seconds);
        cJSON_AddNumberToObject(row, "seconds_sd", deviation(c->sum, c->sum_sq, c->n));
        cJSON_AddNumberToObject(row, "gb_per_s", seconds > 0 ? c->bytes / seconds / 1e9 : 0);
        cJSON_AddNumberToObject(row, "percent_of_peak", 100 * c->peak_share);
        cJSON_AddNumberToObject(row, "peak_bytes", (double)c->peak_bytes);
        cJSON_AddItemToArray(rows, row);
    }
    return json_append(root, false, out);
}

int cmd_bench(struct Cli *cli)
{
    static const char *const parts[] = {"prefill", "decode", "ops", "text", "paper", "all"};
    const char *part = cli->args.n ? cli->args.items[0] : "all",
               *format = cli->format ? cli->format : "md";
    bool known = false, json = strcmp(format, "json") == 0, md = strcmp(format, "md") == 0;
    for (int i = 0; i < 6; i++) known |= strcmp(part, parts[i]) == 0;
    if (!known || cli->args.n > 1)
        return err_set(PC_ECONFIG,
                       "bench '%.32s' is not known; accepted: prefill, decode, ops, text, paper, "
                       "all",
                       part);
    if (!json && !md && strcmp(format, "csv") != 0)
        return err_set(PC_ECONFIG, "flag '--format': '%.32s' is not known; accepted: md, csv, json",
                       format);
    if (!cli->repeats) cli->repeats = 5;
    cli->args.n = 0; /* the part is no file */
    struct Bench *b = mem_alloc(1, sizeof *b);
    struct Str table = {0};
    int status = b ? PC_OK : PC_ENOMEM;
    if (!b) return status;
    b->cli = cli;
    bool all = strcmp(part, "all") == 0, ops = all || strcmp(part, "ops") == 0;
    bool prefill = all || strcmp(part, "prefill") == 0, decode = all || strcmp(part, "decode") == 0;
    TRY_GOTO(cli_open(cli, &b->engine));
    if (prefill || decode) status = bench_sessions(b, prefill, decode);
    if (status == PC_OK && ops) status = bench_ops(b);
    if (strcmp(part, "text") == 0) status = bench_text(b);
    if (strcmp(part, "paper") == 0) status = bench_paper(b);
    if (status < 0 && status != PC_EINTR) goto fail;
    if (status == PC_EINTR)
        fprintf(stderr, "pcomp: stopped; the table holds what was measured until then\n");
    int wrote = json ? table_json(b, &table) : table_text(b, md, &table);
    if (wrote == PC_OK) wrote = out_write(table.data, table.len);
    if (wrote < 0) status = wrote;
fail:
    engine_close(b->engine);
    str_free(&b->text);
    mem_free(b);
    str_free(&table);
    return status;
}

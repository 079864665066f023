/* cmd_plan.c - the commands that look without answering: `pcomp plan`, `inspect` and `perplexity`. */
#include "cli.h"
#include "geometry.h"
#include "progress.h"
#include "provenance.h"
#include "text_stream.h"

#include <math.h>
#include <string.h>

/* ==== Plan ==== */

/* Operations of a prefill: the matrix products of every token in every chunk, and causal attention
 * within each chunk. The LM head runs on question rows only and is left out. */
static double prefill_flops(const struct Model *model, const struct PlanInfo *plan)
{
    const struct ModelConfig *cfg = &model->cfg;
    double embedding = (double)cfg->vocab_size * cfg->dim;
    double weights = (double)model->n_params - (model->tied ? embedding : 2 * embedding);
    double chunk = plan->n_chunks ? (double)plan->n_context / plan->n_chunks : 0;
    double rows = chunk + plan->n_question, seen = rows / 2 + plan->n_prefix;
    if (plan->method == METHOD_STREAMING) seen = fmin(seen, plan->window);
    double attention = 4.0 * cfg->n_layers * cfg->n_heads * cfg->head_dim * rows * seen;
    return plan->n_chunks * plan->read_share * (2 * weights * rows + attention);
}

/* Seconds that the prefill may take at the rate of one measured matrix product; negative: not known.
 * The first of the repeats reads the weights from the disk; the best of them counts. */
static double estimate_seconds(struct Engine *engine, const struct PlanInfo *plan)
{
    double best = 0;
    int rows = engine_on_gpu(engine) ? 8192 : 512, /* enough to keep it busy */
        n_tokens = plan->chunk_tokens < rows ? plan->chunk_tokens : rows;
    if (plan->made_bytes && !plan->fits) return -1; /* there will be no weights to measure with */
    for (int i = 0; i < 4 && plan->n_context > 0; i++) {
        struct BenchRow row = {0};
        if (engine_bench_op(engine, 0, n_tokens, &row) < 0) return -1;
        if (row.seconds > 0) best = fmax(best, row.flops / row.seconds);
    }
    return best > 0 ? prefill_flops(engine_model(engine), plan) / best : -1;
}

/* The method with what it derived. */
static int method_text(const struct PlanInfo *plan, struct Str *out)
{
    TRY(str_appendf(out, "method   %s", setting_word("method", plan->method)));
    if (plan->group)
        TRY(str_appendf(out, ", groups of %d beyond %d neighbours", plan->group, plan->neighbours));
    if (plan->method == METHOD_STREAMING) TRY(str_appendf(out, ", %d sinks", plan->sinks));
    if (plan->rope_scaling != SCALING_AUTO)
        TRY(str_appendf(out, ", %s stretched by %.4g",
                        setting_word("rope_scaling", plan->rope_scaling), plan->rope_factor));
    return str_appendf(out, ", %d positions\n", plan->n_positions);
}

/* Classes of heads, and what keys and values come to when the answer is at its longest. */
static int heads_text(const struct PlanInfo *plan, struct Str *out)
{
    char bytes[32];
    if (plan->heads_streaming == 0) return PC_OK;
    return str_appendf(out,
                       "heads    %d of %d KV heads keep what is listed, %d stream: %d first and %d "
                       "last tokens; %s of keys and values in the end\n",
                       plan->heads_full, plan->heads_full + plan->heads_streaming,
                       plan->heads_streaming, plan->head_sinks, plan->head_recent,
                       bytes_text(plan->heads_bytes, bytes));
}

static int tiers_text(const struct PlanInfo *plan, struct Str *out)
{
    char near[32], below[32], host[32], file[32];
    if (plan->tier_slots == 0) return PC_OK;
    TRY(str_appendf(out, "tiers    %d pages of a KV head near, %s in all; %s below (%s",
                    plan->tier_slots, bytes_text(plan->tier_near_bytes, near),
                    bytes_text(plan->tier_below_bytes, below), plan->tier_below));
    if (plan->tier_host_bytes && plan->tier_file_bytes)
        TRY(str_appendf(out, ": %s, and a file of %s", bytes_text(plan->tier_host_bytes, host),
                        bytes_text(plan->tier_file_bytes, file)));
    return str_appendf(out, "); tokens %s\n",
                       plan->tier_wait == TIER_LATE ? "do without what is late" : "wait");
}

/* What `pcomp index` would write of keys and values. */
static int store_text(const struct PlanInfo *plan, struct Str *out)
{
    char bytes[32];
    if (plan->store_bytes == 0) return PC_OK;
    TRY(str_appendf(out, "store    %s in a store", bytes_text(plan->store_bytes, bytes)));
    if (plan->store_cap == CAP_OFF) return str_appendf(out, ", of all tokens\n");
    return str_appendf(out, ", of at most %d tokens for each chunk, layer and head\n",
                       plan->store_cap);
}

static int model_text(const struct Engine *engine, const struct PlanInfo *plan, struct Str *out)
{
    const struct Model *m = engine_model(engine);
    char bytes[32];
    bytes_text(plan->model_bytes, bytes);
    if (!m->geometry)
        return str_appendf(out, "model    %s, trained on %d positions, %s mapped\n", m->cfg.name,
                           m->cfg.train_len, bytes);
    return str_appendf(out, "model    %s, made for %d positions, %s %s; a byte is a token\n",
                       m->cfg.name, m->cfg.train_len, bytes,
                       plan->made_bytes ? "made in memory" : "made on the device");
}

/* After which layers chunks leave, and what is left of the work. */
static int early_text(const struct PlanInfo *plan, struct Str *out)
{
    for (int i = 0; i < plan->n_early; i++) {
        const struct EarlyDecision *d = &plan->early[i];
        TRY(str_appendf(out, "early    after %d layers %d of %d chunks go on", d->layer,
                        d->survivors, d->n_before));
        if (!isnan(d->risk)) TRY(str_appendf(out, ", at a risk of %.2g%%", 100 * (double)d->risk));
        TRY(str_appendf(out, "\n"));
    }
    char bytes[32];
    if (plan->n_early && plan->early_safe)
        TRY(str_appendf(out, "early    the %d that share most words with the question among them\n",
                        plan->early_safe));
    if (plan->early_wants)
        TRY(str_appendf(out, "early    one decision more with --early-memory of %s\n",
                        bytes_text(plan->early_wants, bytes)));
    if (plan->read_share == 1 || plan->method != METHOD_PARALLELCOMP) return PC_OK;
    return str_appendf(out, "share    %.1f%% of the arithmetic of reading every chunk whole\n",
                       100 * plan->read_share);
}

/* How rounds share the kept chunks; what they cost is in the share of the arithmetic. */
static int rounds_text(const struct PlanInfo *plan, struct Str *out)
{
    int each = plan->keep / plan->rounds;
    if (plan->rounds == 1) return PC_OK;
    return str_appendf(
        out,
        "rounds   %d share the kept chunks: %d, then %d by what those say, with up to "
        "%d tokens of it before the question\n",
        plan->rounds, plan->keep - (plan->rounds - 1) * each, each, plan->n_found);
}

static int plan_text(struct Engine *engine, const struct PlanInfo *plan, double seconds,
                     struct Str *out)
{
    char a[32], b[32];
    TRY(model_text(engine, plan, out));
    TRY(str_appendf(out, "device   %s\n", engine_device(engine)));
    TRY(method_text(plan, out));
    TRY(str_appendf(out, "tokens   %d text, %d before each chunk, %d question, up to %d answer\n",
                    plan->n_context, plan->n_prefix, plan->n_question, plan->max_tokens));
    TRY(str_appendf(out, "chunks   %d of at most %d tokens, %d at a time, %d kept%s\n",
                    plan->n_chunks, plan->chunk_tokens, plan->wave, plan->keep,
                    plan->n_read < plan->n_chunks ? ", the others not read" : ""));
    TRY(rounds_text(plan, out));
    TRY(early_text(plan, out));
    if (plan->kv_cap > 0)
        TRY(str_appendf(out, "KV       %d entries for each kept chunk, layer and head: %s\n",
                        plan->kv_cap, bytes_text(plan->kv_bytes, a)));
    else
        TRY(str_appendf(out, "KV       all entries of the kept chunks: %s\n",
                        bytes_text(plan->kv_bytes, a)));
    TRY(store_text(plan, out));
    TRY(heads_text(plan, out));
    if (plan->select)
        TRY(str_appendf(
            out, "select   pages by the %s of their keys, %d token%s a choice, an index of %s\n",
            plan->select == PAGE_INDEX_MEAN ? "mean" : "range", plan->select_every,
            plan->select_every == 1 ? "" : "s", bytes_text(plan->index_bytes, a)));
    TRY(tiers_text(plan, out));
    TRY(str_appendf(out, "position question at %d, window %d, template %s\n", plan->question_pos,
                    plan->window, plan->chat_template));
    if (plan->n_truncated)
        TRY(str_appendf(out, "cut      %d text tokens are left out of the middle\n",
                        plan->n_truncated));
    TRY(str_appendf(out, "memory   %s%s at the peak, %s available: %s\n",
                    bytes_text(plan->peak_bytes, a),
                    engine_on_gpu(engine) ? " of the GPU beside the weights" : "",
                    bytes_text(plan->available_bytes, b), plan->fits ? "fits" : "does not fit"));
    if (seconds >= 0)
        TRY(str_appendf(out, "time     about %.1f s of prefill, from one measured matrix product\n",
                        seconds));
    return PC_OK;
}

static int does_not_fit(const struct Engine *engine, const struct PlanInfo *plan)
{
    char need[32], have[32];
    if (plan->made_bytes) TRY(geometry_room(engine_model(engine), plan->available_bytes));
    return err_set(PC_ENOMEM,
                   "the run needs %s %s the model, %s available; try --kv-cap %d, --wave 1 or "
                   "a smaller --keep%s",
                   bytes_text(plan->peak_bytes, need), plan->made_bytes ? "with" : "besides",
                   bytes_text(plan->available_bytes, have),
                   plan->kv_cap > 1 ? plan->kv_cap / 2 : plan->chunk_tokens / 2,
                   plan->n_early && !*engine_settings(engine)->early_at ? " or --early-memory"
                                                                        : "");
}

int plan_show(struct Cli *cli, struct Engine *engine, const struct Request *req)
{
    struct PlanInfo plan = {0};
    TRY(session_plan(engine, req, &plan));
    double seconds = estimate_seconds(engine, &plan);
    struct Str text = {0};
    int status;
    if (cli->json || cli->jsonl) {
        cJSON *object = provenance_plan(engine, cli->model_path, &plan);
        cJSON_AddNumberToObject(object, "estimated_prefill_seconds", seconds >= 0 ? seconds : NAN);
        status = json_append(object, false, &text);
    } else {
        status = plan_text(engine, &plan, seconds, &text);
    }
    if (status == PC_OK) status = out_write(text.data, text.len);
    str_free(&text);
    if (status < 0) return status;
    return plan.fits ? PC_OK : does_not_fit(engine, &plan);
}

int cmd_plan(struct Cli *cli)
{
    struct Engine *engine = NULL;
    struct TextStream text = {0};
    int status;
    if (cli->questions.n > 1)
        return err_set(PC_ECONFIG, "a plan is for one question; %d are given", cli->questions.n);
    TRY_GOTO(cli_questions(cli));
    TRY_GOTO(cli_open(cli, &engine));
    TRY_GOTO(cli_stream(cli, &text));
    struct Request req = {.stream = &text,
                          .stop = signals_stop,
                          .question = cli->questions.n ? cli->questions.items[0] : ""};
    status = plan_show(cli, engine, &req);
fail:
    text_stream_close(&text);
    engine_close(engine);
    return status;
}

/* ==== Inspect ==== */

int cmd_inspect(struct Cli *cli)
{
    if (cli->args.n > 1 || (cli->args.n == 1 && cli->model))
        return err_set(PC_ECONFIG, "inspect takes one model");
    struct Str text = {0};
    if (cli->args.n) cli->model = cli->args.items[0];
    TRY(cli_model(cli));
    int status = model_inspect(cli->model_path, cli->json, &text);
    if (status == PC_OK) status = out_write(text.data ? text.data : "", text.len);
    str_free(&text);
    return status;
}

/* ==== Perplexity ==== */

static void show_progress(void *user, const struct Progress *p)
{
    progress_show(user, p);
}

static int perplexity_report(const struct Cli *cli, struct Engine *engine,
                             const struct PerplexityResult *r)
{
    struct Str text = {0};
    int status;
    if (cli->json) {
        struct PlanInfo none = {0};
        cJSON *object = provenance_plan(engine, cli->model_path, &none);
        cJSON_DeleteItemFromObject(object, "plan");
        cJSON_ReplaceItemInObject(object, "schema", cJSON_CreateString("pcomp.perplexity.v1"));
        cJSON_AddNumberToObject(object, "nll", r->nll);
        cJSON_AddNumberToObject(object, "ppl", r->ppl);
        cJSON_AddNumberToObject(object, "n_scored", (double)r->n_scored);
        cJSON_AddNumberToObject(object, "n_context", (double)r->n_context);
        cJSON_AddNumberToObject(object, "seconds", r->seconds);
        status = json_append(object, false, &text);
    } else {
        status = str_appendf(
            &text, "perplexity %.4f  nll %.6f  scored %lld of %lld tokens  %.1f s\n", r->ppl,
            r->nll, (long long)r->n_scored, (long long)r->n_context, r->seconds);
    }
    if (status == PC_OK) status = out_write(text.data, text.len);
    str_free(&text);
    return status;
}

int cmd_perplexity(struct Cli *cli)
{
    struct Engine *engine = NULL;
    struct Str context = {0};
    struct ProgressView view;
    struct PerplexityResult result = {0};
    int status;
    TRY(progress_open(&view, cli->progress, cli->quiet));
    TRY_GOTO(cli_open(cli, &engine));
    TRY_GOTO(cli_context(cli, &context));
    struct Request req = {.context = context.data,
                          .context_len = context.len,
                          .question = "",
                          .user = &view,
                          .on_progress = show_progress,
                          .stop = signals_stop};
    progress_begin(&view, 0);
    bool plain = engine_settings(engine)->method == METHOD_FULL;
    status = session_perplexity(engine, &req, cli->tail ? cli->tail : plain ? 0 : 1024, &result);
    progress_clear(&view);
    if (status == PC_EINTR) fprintf(stderr, "pcomp: stopped; repeat the command to start again\n");
    if (status == PC_OK) status = perplexity_report(cli, engine, &result);
fail:
    str_free(&context);
    engine_close(engine);
    return status;
}

/* cmd_calibrate_heads.c - `pcomp calibrate heads`: scores a model's KV heads, chooses those that keep everything,
 * reports how choices fare on samples that had no part in it, and writes the map (calibrate.h says how).
 */
#include "calibrate.h"
#include "cmd_calibrate.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAPS_MAX = N_HEAD_METHODS + 1, LEVELS_MAX = 5, INVERTED = N_HEAD_METHODS };

/* A map that the report has a column for. */
struct Rival {
    char name[16];
    struct HeadMap map;
};

struct HeadsRun {
    struct Cli *cli;
    struct Engine *engine;
    struct Study study;
    struct ProgressView view;
    double begun;
    enum HeadMethod method;
    struct Tolerance tol;
    bool has_tol;
    double unit, ratio;            /* of a score of 1, nats or a ratio; the chosen share */
    int n_exchanged;               /* by --refine */
    struct Rival rivals[MAPS_MAX]; /* the first is the map that is written */
    int n_rivals;
    double levels[LEVELS_MAX]; /* shares kept, falling */
    int n_levels, heads;
    uint8_t *keep; /* [n_rivals, n_levels, heads] */
    struct Joint *joint,
        *text; /* [n_rivals, n_levels]; [n_levels] of running text, the first rival's */
    struct Joint full, full_text;
};

/* ==== Flags ==== */

static int parse_lens(const char *list, struct StudyOptions *o)
{
    for (const char *at = list; at;) {
        char *end;
        long n = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || n < 1 || n > 1 << 20 ||
            o->n_lens == STUDY_LENS_MAX)
            return err_set(PC_ECONFIG,
                           "flag '--len': '%.64s' is not a list of up to %d lengths in tokens, as "
                           "1024,4096",
                           list, STUDY_LENS_MAX);
        o->lens[o->n_lens++] = (int)n;
        at = *end ? end + 1 : NULL;
    }
    return PC_OK;
}

/* "0.02" nats, or "5%" of the answers. */
static int parse_tolerance(const char *text, struct Tolerance *out)
{
    char *end;
    out->limit = strtod(text, &end);
    out->exact = *end == '%';
    if (out->exact) out->limit /= 100;
    if (end == text || end[out->exact] || !(out->limit >= 0 && out->limit <= 100))
        return err_set(
            PC_ECONFIG,
            "flag '--tol': '%.64s' is neither a joint KL in nats, as 0.02, nor a loss of "
            "exact answers, as 5%%",
            text);
    return PC_OK;
}

static int or_default(int given, int otherwise)
{
    return given ? given : otherwise;
}

static void show(void *user, const char *what, double share)
{
    struct HeadsRun *run = user;
    progress_work(&run->view, what, share, clock_seconds() - run->begun);
}

static int read_options(struct HeadsRun *run, struct StudyOptions *o)
{
    struct Cli *cli = run->cli;
    if (cli->tol && cli->ratio > 0)
        return err_set(PC_ECONFIG,
                       "give --ratio or --tol, not both: each says how many heads stay");
    TRY(head_method_by_name(cli->score ? cli->score : "ablate", &run->method));
    if (cli->len) TRY(parse_lens(cli->len, o));
    if (cli->tol) TRY(parse_tolerance(cli->tol, &run->tol));
    run->has_tol = cli->tol;
    run->ratio = cli->ratio > 0 ? cli->ratio : 0.5;
    o->samples = or_default(cli->samples, 8);
    o->passkeys = or_default(cli->passkeys, 10);
    o->words = or_default(cli->words, 8);
    o->sink = or_default(cli->sink, HEADMAP_SINK);
    o->recent = or_default(cli->recent, HEADMAP_RECENT);
    o->stop = signals_stop;
    o->on_progress = show;
    o->user = run;
    return PC_OK;
}

/* The user's files, or prose enough for samples that do not repeat it. */
static int read_text(struct Cli *cli, struct Str *out)
{
    enum { BUILT_IN = 600000 };
    return cli->files.n ? cli_context(cli, out) : prose_make(out, BUILT_IN);
}

static int open_study(struct HeadsRun *run)
{
    struct StudyOptions o = {0};
    struct Str text = {0};
    TRY(calibrate_model(run->cli));
    TRY(read_options(run, &o));
    int status = cli_open(run->cli, &run->engine);
    if (status == PC_OK) status = read_text(run->cli, &text);
    if (status == PC_OK) {
        const struct Settings *set = engine_settings(run->engine);
        o.parallel = set->method == METHOD_PARALLELCOMP;
        o.seed = set->seed;
        status = study_open(&run->study, run->engine, &o, text.data, text.len);
    }
    str_free(&text);
    return status;
}

/* ==== Scores and the choice ==== */

static int add_rival(struct HeadsRun *run, enum HeadMethod method, double *unit)
{
    struct Rival *r = &run->rivals[run->n_rivals];
    snprintf(r->name, sizeof r->name, "%s", head_method_name(method));
    TRY(study_scores(&run->study, method, &r->map, unit));
    run->n_rivals++;
    return PC_OK;
}

static int choose(struct HeadsRun *run)
{
    struct HeadMap *map = &run->rivals[0].map;
    struct Joint at;
    if (run->has_tol) TRY(study_tolerance(&run->study, map, &run->tol, &run->ratio, &at));
    if (run->cli->refine)
        TRY(study_refine(&run->study, map, run->ratio, run->cli->refine, &run->n_exchanged));
    map->ratio = (float)run->ratio;
    return PC_OK;
}

/* A map with the scores of the first, for the inversion. */
static int add_inverted(struct HeadsRun *run)
{
    const struct HeadMap *map = &run->rivals[0].map;
    struct Rival *r = &run->rivals[run->n_rivals];
    snprintf(r->name, sizeof r->name, "inverted");
    TRY(headmap_open(&map->shape, false, &r->map));
    run->n_rivals++;
    memcpy(r->map.scores, map->scores, sizeof *map->scores * (size_t)headmap_heads(map));
    return headmap_invert(&r->map);
}

static int add_rivals(struct HeadsRun *run)
{
    double unit;
    for (int m = 0; m < N_HEAD_METHODS; m++)
        if ((run->cli->compare || m == HEADS_RANDOM) && m != (int)run->method)
            TRY(add_rival(run, (enum HeadMethod)m, &unit));
    return add_inverted(run);
}

/* ==== Joint runs on held-out samples ==== */

static void set_levels(struct HeadsRun *run)
{
    static const double shares[] = {0.5, 0.25, 0.15, 0.1};
    bool placed = false;
    for (int i = 0; i < 4; i++) {
        if (!placed && run->ratio >= shares[i]) {
            placed = true;
            if (run->ratio > shares[i]) run->levels[run->n_levels++] = run->ratio;
        }
        run->levels[run->n_levels++] = shares[i];
    }
    if (!placed) run->levels[run->n_levels++] = run->ratio;
}

static int make_choices(struct HeadsRun *run)
{
    set_levels(run);
    run->heads = headmap_heads(&run->rivals[0].map);
    size_t cells = (size_t)run->n_rivals * (size_t)run->n_levels;
    run->keep = mem_alloc(cells, (size_t)run->heads);
    run->joint = mem_alloc(cells, sizeof *run->joint);
    run->text = mem_alloc((size_t)run->n_levels, sizeof *run->text);
    if (!run->keep || !run->joint || !run->text) return PC_ENOMEM;
    for (int r = 0; r < run->n_rivals; r++)
        for (int l = 0; l < run->n_levels; l++)
            TRY(headmap_keep(&run->rivals[r].map, run->levels[l], 0,
                             run->keep + (size_t)(r * run->n_levels + l) * run->heads));
    return PC_OK;
}

static int run_choices(struct HeadsRun *run)
{
    struct Study *st = &run->study;
    const struct SamplePlace passkeys = {SAMPLE_PASSKEYS, true, 0}, text = {SAMPLE_TEXT, true, 0};
    TRY(make_choices(run));
    TRY(study_joint(st, &passkeys, st->opt.held_out, run->keep, run->n_rivals * run->n_levels,
                    run->joint, &run->full));
    return study_joint(st, &text, st->opt.held_out, run->keep, run->n_levels, run->text,
                       &run->full_text);
}

/* ==== The table ==== */

static int count_kept(const struct HeadsRun *run, int level)
{
    int n = 0;
    for (int i = 0; i < run->heads; i++) n += run->keep[(size_t)level * run->heads + i];
    return n;
}

static int table_top(const struct HeadsRun *run, struct Str *out)
{
    const struct StudyOptions *o = &run->study.opt;
    const struct HeadShape *s = &run->study.shape;
    TRY(str_appendf(out, "%s: %d layers of %d KV heads; %s, %s, %d sinks, %d recent\n",
                    engine_model(run->engine)->cfg.name, s->n_layers, s->n_kv_heads,
                    run->rivals[0].name, o->parallel ? "chunks in parallel" : "one sequence",
                    o->sink, o->recent));
    TRY(str_appendf(out, "%d samples scored, %d held out, of", o->samples, o->held_out));
    for (int i = 0; i < o->n_lens; i++) TRY(str_appendf(out, "%s%d", i ? ", " : " ", o->lens[i]));
    return str_appendf(out, " tokens, %d passkeys of %d words, seed %llu\n\n", o->passkeys,
                       o->words, (unsigned long long)o->seed);
}

static int table_row(const struct HeadsRun *run, int level, struct Str *out)
{
    const struct Joint *first = &run->joint[level];
    bool chosen = run->levels[level] == run->ratio;
    TRY(str_appendf(out, "%c%5.1f%% %6d", chosen ? '*' : ' ', 100 * run->levels[level],
                    count_kept(run, level)));
    for (int r = 0; r < run->n_rivals; r++)
        TRY(str_appendf(out, " %9.4f", run->joint[r * run->n_levels + level].kl));
    return str_appendf(out, " %6.1f%% %6.1f%% %9.2f %+6.1f%%\n", 100 * first->right,
                       100 * first->exact, exp(run->text[level].nll),
                       100 * (exp(run->text[level].nll - run->full_text.nll) - 1));
}

/* Joint KL of every map, then how the first one's answers and a running text fare. */
static int table_make(const struct HeadsRun *run, struct Str *out)
{
    TRY(table_top(run, out));
    TRY(str_appendf(out, "%7s %6s", "kept", "heads"));
    for (int r = 0; r < run->n_rivals; r++) TRY(str_appendf(out, " %9s", run->rivals[r].name));
    TRY(str_appendf(out, " %7s %7s %9s %7s\n%7s %6d", "tokens", "exact", "ppl", "change", "100.0%",
                    run->heads));
    for (int r = 0; r < run->n_rivals; r++) TRY(str_appendf(out, " %9d", 0));
    TRY(str_appendf(out, " %6.1f%% %6.1f%% %9.2f\n", 100 * run->full.right, 100 * run->full.exact,
                    exp(run->full_text.nll)));
    for (int l = 0; l < run->n_levels; l++) TRY(table_row(run, l, out));
    TRY(str_appendf(
        out,
        "\nmean KL of the answers against full attention, nats a token; tokens: of answers, right "
        "where all before\nthem are; exact: whole passkeys, as greedy decoding would spell "
        "them; ppl: running text; *: the choice"));
    if (run->cli->refine) TRY(str_appendf(out, "; exchanges kept: %d", run->n_exchanged));
    return str_appendf(out, "\n");
}

/* ==== Files ==== */

/* How the map was made, as its own settings object. */
static int add_facts(struct HeadsRun *run)
{
    struct HeadMap *map = &run->rivals[0].map;
    const struct StudyOptions *o = &run->study.opt;
    struct Str *out = &map->settings;
    TRY(str_appendf(out, "{\"regime\":\"%s\",\"lens\":[", o->parallel ? "parallel" : "plain"));
    for (int i = 0; i < o->n_lens; i++) TRY(str_appendf(out, "%s%d", i ? "," : "", o->lens[i]));
    TRY(str_appendf(
        out,
        "],\"samples\":%d,\"held_out\":%d,\"passkeys\":%d,\"words\":%d,\"exchanged\":%d,"
        "\"unit\":%.9g,\"joint_kl\":[",
        o->samples, o->held_out, o->passkeys, o->words, run->n_exchanged, run->unit));
    for (int l = 0; l < run->n_levels; l++)
        TRY(str_appendf(out, "%s[%.6g,%.6g]", l ? "," : "", run->levels[l], run->joint[l].kl));
    TRY(str_appendf(out, "]}"));
    return str_appendf(&map->note, "pcomp calibrate heads, %s",
                       engine_model(run->engine)->cfg.name);
}

static int write_picture(const struct HeadsRun *run, const uint8_t *keep, const char *path)
{
    struct Str title = {0}, svg = {0};
    const struct HeadMap *map = &run->rivals[0].map;
    int status = str_appendf(&title, "%s: %s, %d sinks, %d recent, %.4g%% kept",
                             engine_model(run->engine)->cfg.name, map->method, map->sink,
                             map->recent, 100 * run->ratio);
    if (status == PC_OK) status = headmap_svg(map, keep, title.data, &svg);
    if (status == PC_OK) status = out_file(path, svg.data, svg.len);
    str_free(&title);
    str_free(&svg);
    return status;
}

static int write_files(const struct HeadsRun *run, const uint8_t *keep)
{
    const struct HeadMap *map = &run->rivals[0].map;
    const char *folder = run->cli->output;
    struct Str path = {0};
    int status;
    TRY_GOTO(headmap_write_duo(map, folder));
    TRY_GOTO(str_appendf(&path, "%s/headwise.json", folder));
    TRY_GOTO(headmap_write_rtp(map, keep, path.data));
    str_clear(&path);
    TRY_GOTO(str_appendf(&path, "%s/heads.json", folder));
    TRY_GOTO(headmap_write_json(map, path.data));
    str_clear(&path);
    TRY_GOTO(str_appendf(&path, "%s/heads.svg", folder));
    status = write_picture(run, keep, path.data);
fail:
    str_free(&path);
    return status == PC_EIO ? CLI_EOUTPUT : status;
}

static int deliver(struct HeadsRun *run)
{
    struct Str table = {0};
    int status = table_make(run, &table), chosen = 0;
    while (run->levels[chosen] != run->ratio) chosen++;
    if (status == PC_OK) status = out_write(table.data, table.len);
    if (status == PC_OK) status = add_facts(run);
    if (status == PC_OK && run->cli->output)
        status = write_files(run, run->keep + (size_t)chosen * run->heads);
    str_free(&table);
    return status;
}

/* ==== The command ==== */

static int run_study(void *user)
{
    struct HeadsRun *run = user;
    TRY(open_study(run));
    if (run->cli->output) TRY(out_folder(run->cli->output)); /* before the work */
    run->begun = clock_seconds();
    progress_begin(&run->view, 0);
    TRY(add_rival(run, run->method, &run->unit));
    TRY(choose(run));
    TRY(add_rivals(run));
    TRY(run_choices(run));
    progress_clear(&run->view);
    return deliver(run);
}

int calibrate_heads(struct Cli *cli)
{
    struct HeadsRun *run = mem_alloc(1, sizeof *run);
    if (!run) return PC_ENOMEM;
    run->cli = cli;
    int status = calibrate_watch(cli, &run->view, run_study, run);
    for (int i = 0; i < run->n_rivals; i++) headmap_close(&run->rivals[i].map);
    mem_free(run->keep);
    mem_free(run->joint);
    mem_free(run->text);
    study_close(&run->study);
    engine_close(run->engine);
    mem_free(run);
    return status;
}

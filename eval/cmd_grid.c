/* cmd_grid.c - pcomp-eval ruler, niah, and infinitebench without data: rows made here, at every length and
 * depth, the same for each method.
 */
#include "cmd_bench.h"
#include "grid.h"

#include <stdlib.h>
#include <string.h>

/* ==== Scorers ==== */

static const char *ruler_name(const char *task, const struct ScoreOptions *o)
{
    (void)o;
    return ruler_metric(task);
}

static bool is_phrase(const char *task)
{
    return strcmp(task, "passphrase") == 0;
}

/* Needles of all kinds: the share of the expected strings that the answer holds; of a passphrase all words and no others. */
static int needle_score(const char *task, const struct ScoreOptions *o, const struct ScoreInput *in,
                        struct ScoreOutput *out)
{
    if (is_phrase(task)) return phrase_score(in, out);
    return ruler_score("niah_single_1", o, in, out);
}

static const char *needle_name(const char *task, const struct ScoreOptions *o)
{
    return is_phrase(task) ? "exact_match" : ruler_name("niah_single_1", o);
}

static const struct Benchmark RULER = {"ruler", "ruler",     "ruler@2024",
                                       false,   ruler_score, ruler_name};
static const struct Benchmark NIAH = {"niah", "niah",       "ruler@2024",
                                      false,  needle_score, needle_name};

/* ==== The grid as a source ==== */

/* A row of the grid on its way to the runner. */
struct Step {
    int (*row)(void *user, struct DataRow *row);
    void *user;
    long line;
};

/* The user's own sentence is asked for in other words, but hidden in the same way. */
static const char *made_as(const char *task)
{
    return strcmp(task, "needle_own") == 0 ? "needle" : task;
}

static bool grid_has(void *self, const char *task)
{
    const struct Grid *g = self;
    bool haystack, qa;
    if (generate_needs(made_as(task), &haystack, &qa) < 0) return false;
    return !qa || g->eval->qa_file;
}

static int grid_count(void *self, const char *task, long *rows, uint64_t *hash)
{
    struct Grid *g = self;
    const struct GenSpec *s = &g->spec;
    int knobs[] = {s->n_keys,    s->n_values, s->n_queries,  s->n_hops,
                   s->n_needles, s->n_words,  g->eval->count};
    TRY(grid_texts(g, made_as(task)));
    *rows = grid_rows(g);
    *hash = hash64(g->haystack.data ? g->haystack.data : "", g->haystack.len, *hash ^ s->seed);
    *hash = hash64(g->tokens, (size_t)g->n_tokens * sizeof *g->tokens, *hash);
    *hash = hash64(g->depths, (size_t)g->n_depths * sizeof *g->depths, *hash);
    *hash = hash64(knobs, sizeof knobs, *hash);
    return PC_OK;
}

static int step(void *user, struct Sample *sample)
{
    struct Step *s = user;
    struct DataRow row = {.sample = *sample, .line = ++s->line};
    return s->row(s->user, &row);
}

static int grid_rows_each(void *self, const struct Tokenizer *tok, const char *task,
                          int (*row)(void *user, struct DataRow *row), void *user)
{
    struct Step s = {row, user, 0};
    return grid_each(self, made_as(task), tok, step, &s);
}

/* ==== The commands ==== */

static int run_grid(struct Cli *cli, const struct Benchmark *bench, const char *depths,
                    const char *tasks)
{
    struct EvalCli *eval = (struct EvalCli *)cli;
    struct Grid grid;
    if (!eval->tasks) eval->tasks = tasks;
    int status = grid_open(eval, depths, &grid);
    struct Source source = {&grid, grid_has, grid_count, grid_rows_each, "generated"};
    if (status == PC_OK) status = cli_model(cli);
    if (status == PC_OK) status = benchmark_run(eval, bench, &source);
    grid_close(&grid);
    return status;
}

int cmd_ruler(struct Cli *cli)
{
    return run_grid(cli, &RULER, NULL, NULL);
}

int cmd_niah(struct Cli *cli)
{
    bool own = ((struct EvalCli *)cli)->needle != NULL;
    return run_grid(cli, &NIAH, "0,0.25,0.5,0.75,1", own ? "needle_own" : "needle");
}

int infinitebench_generated(struct Cli *cli, const struct Benchmark *bench)
{
    return run_grid(cli, bench, NULL, NULL);
}

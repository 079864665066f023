/* cmd_bench.c - pcomp-eval longbench, longbench-e, infinitebench: rows of files through the methods. */
#include "cmd_bench.h"

#include "jieba.h"
#include "run_folder.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ==== The benchmarks of files ==== */

static const char *infinite_metric(const char *task, const struct ScoreOptions *o)
{
    (void)o;
    return infinitebench_metric(task);
}

static const struct Benchmark LONGBENCH = {"longbench", "longbench",     "longbench@v1",
                                           false,       longbench_score, longbench_metric};
static const struct Benchmark LONGBENCH_E = {"longbench-e", "longbench",     "longbench@v1",
                                             false,         longbench_score, longbench_metric};
static const struct Benchmark INFINITEBENCH = {"infinitebench@2024-06", "infinitebench",
                                               "infinitebench@2024-06", true,
                                               infinitebench_score,     infinite_metric};

/* ==== Files as a source ==== */

/* LongBench-E's files are called qasper_e.jsonl. */
struct Files {
    const char *path, *suffix;
};

static void file_name(const struct Files *f, const char *task, char name[64])
{
    snprintf(name, 64, "%s%s", task, f->suffix);
}

static bool files_has(void *self, const char *task)
{
    char name[64];
    file_name(self, task, name);
    return dataset_has(((struct Files *)self)->path, name);
}

static int files_count(void *self, const char *task, long *rows, uint64_t *hash)
{
    char name[64];
    file_name(self, task, name);
    return dataset_count(((struct Files *)self)->path, name, rows, hash);
}

static int files_each(void *self, const struct Tokenizer *tok, const char *task,
                      int (*row)(void *user, struct DataRow *row), void *user)
{
    char name[64];
    (void)tok; /* rows of files are the same for every model */
    file_name(self, task, name);
    return dataset_each(((struct Files *)self)->path, name, row, user);
}

/* ==== What runs ==== */

static bool listed(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (strncmp(p, name, len) == 0 && (p[len] == ',' || p[len] == '\0')) return true;
    return false;
}

static int check_names(const struct Runner *r, const char *list)
{
    for (const char *p = list; *p;) {
        size_t len = strcspn(p, ",");
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)len, p);
        if (!task_find(&r->set, name)) return PC_ECONFIG;
        if (!r->source.has(r->source.self, name))
            return err_set(PC_EIO, "%s: has no rows of %s", r->source.name, name);
        p += len + (p[len] == ',');
    }
    return PC_OK;
}

static int choose_tasks(struct Runner *r)
{
    const char *list = r->eval->tasks;
    if (list) TRY(check_names(r, list));
    for (int i = 0; i < r->set.n && r->n_tasks < TASKS_MAX; i++) {
        const struct Task *t = &r->set.tasks[i];
        if (list ? !listed(list, t->name) : !r->source.has(r->source.self, t->name)) continue;
        TRY(r->source.count(r->source.self, t->name, &r->rows[r->n_tasks], &r->data_hash));
        if (r->rows[r->n_tasks] > 0) r->tasks[r->n_tasks++] = t;
    }
    if (r->n_tasks == 0)
        return err_set(PC_EIO, "%s: has no rows of any task of %s", r->source.name, r->bench->name);
    return PC_OK;
}

/* Chinese tasks need a dictionary: told before hours of work, not after. */
static int check_scorer(struct Runner *r, struct Jieba **jieba)
{
    struct Str word = {.data = (char *)(uintptr_t) "1", .len = 1};
    struct ScoreInput in = {.pred = "1",
                            .pred_len = 1,
                            .answers = &word,
                            .n_answers = 1,
                            .all_classes = &word,
                            .n_classes = 1};
    struct ScoreOutput out;
    bool opened = jieba_open(NULL, jieba) == PC_OK;
    r->score.jieba = opened ? *jieba : NULL;
    for (int t = 0; t < r->n_tasks; t++)
        if (r->bench->score(r->tasks[t]->name, &r->score, &in, &out) == PC_ECONFIG)
            return err_prefix(PC_ECONFIG, "task %s (leave it out with --tasks)", r->tasks[t]->name);
    return PC_OK;
}

static int take_split(struct Runner *r)
{
    const char *text = r->eval->split;
    char *end;
    if (!text) return PC_OK;
    long at = strtol(text, &end, 10), of = *end == '/' ? strtol(end + 1, &end, 10) : 0;
    if (*end || at < 1 || of < 2 || at > of || of > 1000)
        return err_set(PC_ECONFIG,
                       "flag '--split': '%.32s' is not like 1/2 (rows 1, 3, 5, …) or 2/2", text);
    r->split_at = (int)at - 1;
    r->split_of = (int)of;
    return PC_OK;
}

static int take_code_sim(struct Runner *r)
{
    const char *name = r->eval->code_sim;
    if (!name || strcmp(name, "difflib") == 0) return PC_OK;
    r->score.code_sim = CODE_SIM_INDEL;
    return strcmp(name, "indel") == 0
               ? PC_OK
               : err_set(PC_ECONFIG, "flag '--code-sim': '%.32s' is neither difflib nor indel",
                         name);
}

/* Workers share the cores and the memory. */
static int share_machine(struct Runner *r)
{
    struct Settings *s = &r->eval->cli.settings;
    int n = r->eval->workers;
    cli_share_machine(&r->eval->cli.launch, s);
    if (n < 2) return PC_OK;
    if (r->eval->cli.share)
        return err_set(PC_ECONFIG,
                       "--workers starts processes of its own, and other processes share "
                       "the rows already; leave it out");
    if (s->threads == AUTO) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        s->threads = cores > n ? (int)(cores / n) : 1;
    }
    if (s->memory == AUTO) s->memory = mem_available() / (size_t)n;
    return PC_OK;
}

/* ==== The command ==== */

/* What an answer depends on besides its row: model, settings, and the task's words. */
static int arm_keys(struct Runner *r)
{
    for (int i = 0; i < r->n_arms; i++) {
        uint64_t key;
        TRY(settings_key(&r->arms[i].settings, engine_model(r->engine)->hash, &key));
        for (int t = 0; t < r->set.n; t++) {
            const struct Task *task = &r->set.tasks[t];
            key = hash64(task->before, strlen(task->before), key);
            key = hash64(task->after, strlen(task->after), key);
            key = hash64(task->answer_prefix, strlen(task->answer_prefix), key);
            key = hash64(task->stop_text, strlen(task->stop_text), key);
            int facts[] = {task->max_tokens, task->chat, task->covers};
            key = hash64(facts, sizeof facts, key);
        }
        int limits[] = {r->set.reserve, r->set.truncate, (int)r->score.code_sim};
        r->arm_key[i] = hash64(limits, sizeof limits, key);
    }
    return PC_OK;
}

static const char *default_folder(const struct Runner *r, char *path, size_t room)
{
    snprintf(path, room, "runs/%s", r->bench->name);
    return path;
}

static int tell_end(const struct Runner *r, const char *folder, int status)
{
    const struct Cli *cli = &r->eval->cli;
    if (status == PC_EINTR) {
        fprintf(stderr,
                "pcomp-eval: stopped; %d rows are in %s; run the same command again to go on\n",
                r->n_done + r->n_skipped, folder);
        return status;
    }
    if (status < 0) return status;
    if (!cli->quiet)
        fprintf(stderr, "%s: %d rows written, %d finished before, %d failed\n", folder, r->n_done,
                r->n_skipped, r->n_failed);
    return r->n_failed ? CLI_EPARTIAL : PC_OK;
}

int benchmark_run(struct EvalCli *eval, const struct Benchmark *bench, const struct Source *source)
{
    struct Runner *r = mem_alloc(1, sizeof *r);
    struct Jieba *jieba = NULL;
    char named[128];
    if (!r) return PC_ENOMEM;
    int status;
    r->eval = eval;
    r->bench = bench;
    r->source = *source;
    r->deliver = runner_store;
    r->profile = eval->profile ? eval->profile : "official";
    const char *folder = eval->run_dir ? eval->run_dir : default_folder(r, named, sizeof named);
    /* A log has a line for each row; within a row only a terminal shows how far it is. */
    if (!eval->cli.progress && !isatty(STDERR_FILENO)) eval->cli.progress = "none";
    TRY_GOTO(progress_open(&r->view, eval->cli.progress, eval->cli.quiet));
    TRY_GOTO(cli_settings(&eval->cli));
    TRY_GOTO(share_machine(r));
    TRY_GOTO(arms_parse(&eval->cli, &eval->arms, r->arms, &r->n_arms));
    TRY_GOTO(task_set_open(bench->task_file, r->profile, &r->set));
    TRY_GOTO(take_split(r));
    TRY_GOTO(take_code_sim(r));
    TRY_GOTO(choose_tasks(r));
    TRY_GOTO(check_scorer(r, &jieba));
    TRY_GOTO(cli_model(&eval->cli));
    TRY_GOTO(engine_open(eval->cli.model_path, &eval->cli.settings, &r->engine));
    TRY_GOTO(arm_keys(r));
    TRY_GOTO(run_folder_open(r, folder));
    if (eval->workers > 1 && engine_on_gpu(r->engine))
        TRY_GOTO(err_set(PC_ECONFIG,
                         "--workers is for CPUs: one process feeds a GPU; leave it out, "
                         "or use --backend cpu"));
    status = eval->workers > 1 ? runner_workers(r, eval->workers) : runner_rows(r);
    status = tell_end(r, folder, status);
fail:
    run_folder_close(r);
    engine_close(r->engine);
    jieba_close(jieba);
    task_set_close(&r->set);
    mem_free(r);
    return status;
}

static int run_files(struct Cli *cli, const struct Benchmark *bench, const char *suffix)
{
    struct EvalCli *eval = (struct EvalCli *)cli;
    struct Files files = {eval->data, suffix};
    struct Source source = {&files, files_has, files_count, files_each, eval->data};
    if (!eval->data)
        return err_set(PC_ECONFIG, "no data; give --data FOLDER with the %s files", bench->name);
    if (access(eval->data, R_OK) != 0)
        return err_set(PC_EIO, "%s: cannot read: no such file or folder", eval->data);
    return benchmark_run(eval, bench, &source);
}

int cmd_longbench(struct Cli *cli)
{
    return run_files(cli, &LONGBENCH, "");
}

int cmd_longbench_e(struct Cli *cli)
{
    return run_files(cli, &LONGBENCH_E, "_e");
}

int cmd_infinitebench(struct Cli *cli)
{
    /* Without data: the six tasks that can be made. */
    if (!((struct EvalCli *)cli)->data) return infinitebench_generated(cli, &INFINITEBENCH);
    return run_files(cli, &INFINITEBENCH, "");
}

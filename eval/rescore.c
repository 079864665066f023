/* rescore.c - see rescore.h */
#include "rescore.h"

#include "preds.h"
#include "pytext.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* In the order of the benchmark's own table. Those of LongBench-E are marked. */
static const struct Listed {
    const char *task;
    bool in_e;
} LONGBENCH[] =
    {
        {"narrativeqa", false},
        {"qasper", true},
        {"multifieldqa_en", true},
        {"multifieldqa_zh", false},
        {"hotpotqa", true},
        {"2wikimqa", true},
        {"musique", false},
        {"dureader", false},
        {"gov_report", true},
        {"qmsum", false},
        {"multi_news", true},
        {"vcsum", false},
        {"trec", true},
        {"triviaqa", true},
        {"samsum", true},
        {"lsht", false},
        {"passage_count", true},
        {"passage_retrieval_en", true},
        {"passage_retrieval_zh", false},
        {"lcc", true},
        {"repobench-p", true},
},
  INFINITEBENCH[] = {
      {"passkey", false},
      {"number_string", false},
      {"kv_retrieval", false},
      {"longbook_sum_eng", false},
      {"longbook_qa_eng", false},
      {"longbook_choice_eng", false},
      {"longdialogue_qa_eng", false},
      {"longbook_qa_chn", false},
      {"code_debug", false},
      {"code_run", false},
      {"math_calc", false},
      {"math_find", false},
};

static const char *const BENCHMARKS[] = {"longbench", "longbench-e", "infinitebench"};
static const char *const SCORERS[] = {"longbench@v1", "longbench-e@v1", "infinitebench@2024-06"};

/* One task on its way. */
struct Job {
    struct Rescore *r;
    struct TaskScore *task;
    const struct ScoreOptions *options;
    const char *path;
    struct Preds preds;
    int *status;              /* [preds.n] of each row's scorer */
    struct ScoreOutput *rows; /* [preds.n] */
};

/* ==== Rows ==== */

static int score_row(const struct Job *job, size_t i)
{
    const struct PredRow *row = &job->preds.rows[i];
    /* The official script keeps the classes of the last line only. */
    const struct PredRow *last = &job->preds.rows[job->preds.n - 1];
    struct ScoreInput in = {.pred = row->pred.data,
                            .pred_len = row->pred.len,
                            .answers = row->answers,
                            .n_answers = row->n_answers,
                            .all_classes = last->classes,
                            .n_classes = last->n_classes};
    return job->r->benchmark == BENCH_INFINITEBENCH
               ? infinitebench_score(job->task->task, job->options, &in, &job->rows[i])
               : longbench_score(job->task->task, job->options, &in, &job->rows[i]);
}

static int note(struct Job *job, size_t line, size_t byte, const char *why)
{
    TRY(str_appendf(&job->r->errors, "%s: line %zu", job->path, line));
    if (byte) TRY(str_appendf(&job->r->errors, ", byte %zu", byte));
    return str_appendf(&job->r->errors, ": %s\n", why);
}

/* The errors of a row's scorer, in order: scored once more, for the text belongs to the thread. */
static int note_refused(struct Job *job)
{
    int n = 0;
    for (size_t i = 0; i < job->preds.n && n < PRED_ERRORS_KEPT; i++) {
        if (job->status[i] == PC_OK) continue;
        if (score_row(job, i) == PC_OK) continue;
        TRY(note(job, job->preds.rows[i].line, 0, err_text()));
        n++;
    }
    return PC_OK;
}

static int score_rows(struct Job *job)
{
    long n = (long)job->preds.n;
    if (n == 0) return PC_OK;
    /* The first alone: what refuses the whole task does so here. */
    int status = job->status[0] = score_row(job, 0);
    if (status == PC_ECONFIG || status == PC_ENOMEM) return status;
#pragma omp parallel for schedule(dynamic, 4)
    for (long i = 1; i < n; i++) job->status[i] = score_row(job, (size_t)i);
    for (long i = 0; i < n; i++)
        if (job->status[i] == PC_ENOMEM) return score_row(job, (size_t)i);
    return PC_OK;
}

static bool is_blank(const struct Str *s)
{
    return py_strip(s->data ? s->data : "", s->len).len == 0;
}

/* ==== Means ==== */

static int bucket_of(double length)
{
    return length < 4000 ? 0 : length < 8000 ? 1 : 2;
}

static int mean_of_buckets(struct Job *job)
{
    struct TaskScore *t = job->task;
    double *part = mem_alloc((size_t)t->n, sizeof *part);
    if (!part) return PC_ENOMEM;
    for (int b = 0; b < 3; b++) {
        int n = 0, seen = 0;
        for (size_t i = 0; i < job->preds.n; i++) {
            if (job->status[i] != PC_OK) continue;
            if (bucket_of(job->preds.rows[i].length) == b) part[n++] = t->scores[seen];
            seen++;
        }
        t->bucket_n[b] = n;
        t->bucket[b] = 100 * np_mean(part, (size_t)n);
    }
    mem_free(part);
    return PC_OK;
}

static int gather(struct Job *job)
{
    struct TaskScore *t = job->task;
    double total = 0;
    t->scores = mem_alloc(job->preds.n, sizeof *t->scores);
    if (!t->scores) return PC_ENOMEM;
    t->n_bad = (int)job->preds.n_bad;
    for (size_t i = 0; i < job->preds.n; i++) {
        if (job->status[i] != PC_OK) {
            t->n_bad++;
            continue;
        }
        t->scores[t->n++] = job->rows[i].score;
        t->n_unparsed += job->rows[i].unparsed;
        t->n_empty += is_blank(&job->preds.rows[i].pred);
        total += job->rows[i].score;
    }
    /* Each script's own order: 100 * total / n there, total / n here. */
    bool infinite = job->r->benchmark == BENCH_INFINITEBENCH;
    if (t->n) t->mean = infinite ? 100 * (total / t->n) : 100 * total / t->n;
    return job->r->benchmark == BENCH_LONGBENCH_E ? mean_of_buckets(job) : PC_OK;
}

/* ==== Files ==== */

static int check_lengths(const struct Job *job)
{
    if (job->r->benchmark != BENCH_LONGBENCH_E) return PC_OK;
    for (size_t i = 0; i < job->preds.n; i++)
        if (job->preds.rows[i].length < 0)
            return err_set(PC_ECONFIG,
                           "%s: line %zu has no 'length', which the three lengths of LongBench-E "
                           "need; score it as longbench",
                           job->path, job->preds.rows[i].line);
    return PC_OK;
}

static int run_job(struct Job *job)
{
    TRY(preds_read(job->path, &job->preds));
    for (size_t i = 0; i < job->preds.n_bad && i < PRED_ERRORS_KEPT; i++) {
        const struct PredError *e = &job->preds.errors[i];
        TRY(note(job, e->line, e->byte, e->why));
    }
    job->status = mem_alloc(job->preds.n, sizeof *job->status);
    job->rows = mem_alloc(job->preds.n, sizeof *job->rows);
    if (!job->status || !job->rows) return PC_ENOMEM;
    TRY(check_lengths(job));
    TRY(score_rows(job));
    TRY(note_refused(job));
    return gather(job);
}

/* A file that cannot be scored as a whole refuses its task; only memory stops the folder. */
static int score_file(struct Rescore *r, const char *task, const struct ScoreOptions *o,
                      const char *path)
{
    struct TaskScore *t = &r->tasks[r->n_tasks++];
    struct Job job = {.r = r, .task = t, .options = o, .path = path};
    snprintf(t->task, sizeof t->task, "%s", task);
    t->metric = r->benchmark == BENCH_INFINITEBENCH ? infinitebench_metric(task)
                                                    : longbench_metric(task, o);
    int status = run_job(&job);
    preds_free(&job.preds);
    mem_free(job.status);
    mem_free(job.rows);
    if (status == PC_OK || status == PC_ENOMEM) return status;
    r->n_refused++;
    return str_appendf(&t->reason, "%s", err_text());
}

static bool is_file(const char *path, size_t *bytes)
{
    struct stat info;
    if (stat(path, &info) != 0 || S_ISDIR(info.st_mode)) return false;
    *bytes += (size_t)info.st_size;
    return true;
}

/* The task's file in the folder: false when it has none. */
static bool find_file(struct Rescore *r, const char *dir, const char *task, char *path, size_t room)
{
    static const char *const LONGBENCH_NAMES[] = {"%s/%s.jsonl", "%s/%s_e.jsonl"};
    if (r->benchmark == BENCH_INFINITEBENCH) {
        snprintf(path, room, "%s/preds_%s.jsonl", dir, task);
        return is_file(path, &r->n_bytes);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(path, room, LONGBENCH_NAMES[i], dir, task);
        if (is_file(path, &r->n_bytes)) return true;
    }
    return false;
}

/* The folder's own name: InfiniteBench keeps the predictions of a model in a folder of its name. */
static void folder_name(const char *dir, char *name, size_t room)
{
    size_t end = strlen(dir);
    while (end > 0 && dir[end - 1] == '/') end--;
    size_t from = end;
    while (from > 0 && dir[from - 1] != '/') from--;
    snprintf(name, room, "%.*s", (int)(end - from), dir + from);
}

static int benchmark_find(const char *name, enum Benchmark *out)
{
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, BENCHMARKS[i]) != 0) continue;
        *out = (enum Benchmark)i;
        return PC_OK;
    }
    return err_set(PC_ECONFIG,
                   "cannot rescore '%.64s': give longbench, longbench-e or infinitebench", name);
}

static int score_folder(struct Rescore *r, const char *dir, const struct ScoreOptions *o)
{
    bool infinite = r->benchmark == BENCH_INFINITEBENCH;
    const struct Listed *list = infinite ? INFINITEBENCH : LONGBENCH;
    size_t n = infinite ? sizeof INFINITEBENCH / sizeof *list : sizeof LONGBENCH / sizeof *list;
    char path[4096];
    if (!(r->tasks = mem_alloc(n, sizeof *r->tasks))) return PC_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        if (r->benchmark == BENCH_LONGBENCH_E && !list[i].in_e) continue;
        if (find_file(r, dir, list[i].task, path, sizeof path))
            TRY(score_file(r, list[i].task, o, path));
    }
    if (r->n_tasks) return PC_OK;
    return err_set(PC_EIO, "%s: has no prediction file; %s wants %s", dir, BENCHMARKS[r->benchmark],
                   infinite ? "preds_passkey.jsonl and the like"
                            : "narrativeqa.jsonl and the like");
}

int rescore_folder(const char *benchmark, const char *dir, const struct ScoreOptions *o,
                   struct Rescore *out)
{
    struct ScoreOptions options = *o;
    char name[256];
    *out = (struct Rescore){0};
    TRY(benchmark_find(benchmark, &out->benchmark));
    folder_name(dir, name, sizeof name);
    if (!options.model_name) options.model_name = name;
    double start = clock_seconds();
    int status = score_folder(out, dir, &options);
    out->seconds = clock_seconds() - start;
    return status;
}

bool rescore_cuts_chinese(const char *benchmark, const char *dir)
{
    static const char *const TASKS[] = {"multifieldqa_zh", "dureader", "vcsum"};
    struct Rescore r = {0};
    char path[4096];
    if (strcmp(benchmark, BENCHMARKS[BENCH_LONGBENCH]) != 0) return false;
    for (int i = 0; i < 3; i++)
        if (find_file(&r, dir, TASKS[i], path, sizeof path)) return true;
    return false;
}

void rescore_free(struct Rescore *r)
{
    for (int i = 0; i < r->n_tasks; i++) {
        mem_free(r->tasks[i].scores);
        str_free(&r->tasks[i].reason);
    }
    mem_free(r->tasks);
    str_free(&r->errors);
    *r = (struct Rescore){0};
}

/* ==== Output ==== */

double rescore_round(const struct Rescore *r, double percent)
{
    return r->benchmark == BENCH_LONGBENCH_E ? np_round2(percent) : py_round2(percent);
}

static int text_buckets(const struct Rescore *r, const struct TaskScore *t, struct Str *out)
{
    for (int b = 0; b < 3; b++) {
        if (t->bucket_n[b])
            TRY(str_appendf(out, "  %7.2f", rescore_round(r, t->bucket[b])));
        else
            TRY(str_appendf(out, "  %7s", "-"));
    }
    return PC_OK;
}

static int text_task(const struct Rescore *r, const struct TaskScore *t, struct Str *out)
{
    TRY(str_appendf(out, "%-20s  %-18s", t->task, t->metric ? t->metric : "?"));
    if (t->reason.len) return str_appendf(out, "  refused: %s\n", t->reason.data);
    if (t->n)
        TRY(str_appendf(out, "  %5d  %7.2f", t->n, rescore_round(r, t->mean)));
    else
        TRY(str_appendf(out, "  %5d  %7s", t->n, "-"));
    if (r->benchmark == BENCH_LONGBENCH_E) TRY(text_buckets(r, t, out));
    return str_appendf(out, "  %6d  %8d  %4d\n", t->n_empty, t->n_unparsed, t->n_bad);
}

int rescore_text(const struct Rescore *r, struct Str *out)
{
    TRY(str_appendf(out, "%-20s  %-18s  %5s  %7s", "task", "metric", "n", "score"));
    if (r->benchmark == BENCH_LONGBENCH_E)
        TRY(str_appendf(out, "  %7s  %7s  %7s", "0-4k", "4-8k", "8k+"));
    TRY(str_appendf(out, "  %6s  %8s  %4s\n", "empty", "unparsed", "bad"));
    for (int i = 0; i < r->n_tasks; i++) TRY(text_task(r, &r->tasks[i], out));
    return PC_OK;
}

/* A number of two decimals as the shortest text that reads back; an empty mean is null. */
static cJSON *json_score(const struct Rescore *r, int n, double percent)
{
    return n ? cJSON_CreateNumber(rescore_round(r, percent)) : cJSON_CreateNull();
}

static cJSON *json_task(const struct Rescore *r, const struct TaskScore *t)
{
    static const char *const NAMES[] = {"0-4k", "4-8k", "8k+"};
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "task", t->task);
    cJSON_AddStringToObject(o, "metric", t->metric ? t->metric : "");
    if (t->reason.len) {
        cJSON_AddStringToObject(o, "error", t->reason.data);
        return o;
    }
    cJSON_AddNumberToObject(o, "n", t->n);
    cJSON_AddItemToObject(o, "score", json_score(r, t->n, t->mean));
    if (r->benchmark == BENCH_LONGBENCH_E) {
        cJSON *lengths = cJSON_AddObjectToObject(o, "by_length");
        for (int b = 0; b < 3; b++) {
            cJSON *part = cJSON_AddObjectToObject(lengths, NAMES[b]);
            cJSON_AddNumberToObject(part, "n", t->bucket_n[b]);
            cJSON_AddItemToObject(part, "score", json_score(r, t->bucket_n[b], t->bucket[b]));
        }
    }
    cJSON_AddNumberToObject(o, "empty", t->n_empty);
    cJSON_AddNumberToObject(o, "unparsed", t->n_unparsed);
    cJSON_AddNumberToObject(o, "bad", t->n_bad);
    return o;
}

static void json_errors(const struct Rescore *r, cJSON *root)
{
    cJSON *list = cJSON_AddArrayToObject(root, "errors");
    struct Span line;
    char text[1024];
    for (size_t at = 0;
         py_split_at(r->errors.data ? r->errors.data : "", r->errors.len, '\n', &at, &line);) {
        if (!line.len) continue;
        snprintf(text, sizeof text, "%.*s", (int)(line.len < 1000 ? line.len : 1000), line.data);
        cJSON_AddItemToArray(list, cJSON_CreateString(text));
    }
}

int rescore_json(const struct Rescore *r, const char *dir, struct Str *out)
{
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "schema", "pcomp-eval.rescore.v1");
    cJSON_AddStringToObject(root, "benchmark", BENCHMARKS[r->benchmark]);
    cJSON_AddStringToObject(root, "scorer", SCORERS[r->benchmark]);
    cJSON_AddStringToObject(root, "folder", dir);
    cJSON *tasks = cJSON_AddArrayToObject(root, "tasks");
    for (int i = 0; i < r->n_tasks; i++) cJSON_AddItemToArray(tasks, json_task(r, &r->tasks[i]));
    json_errors(r, root);
    cJSON_AddNumberToObject(root, "bytes", (double)r->n_bytes);
    cJSON_AddNumberToObject(root, "seconds", r->seconds);
    char *text = cJSON_Print(root);
    int status =
        text ? str_append(out, text, strlen(text)) : err_set(PC_ENOMEM, "no memory for JSON");
    if (status == PC_OK) status = str_append(out, "\n", 1);
    cJSON_free(text);
    cJSON_Delete(root);
    return status;
}

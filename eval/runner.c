/* runner.c - see runner.h */
#include "runner.h"

#include "provenance.h"

#include <string.h>

/* The walk through one task's rows. */
struct Walk {
    struct Runner *r;
    int task;
    long row; /* number over all tasks, the same in every process */
    long in_task, taken;
};

static struct Results *file_of(const struct Runner *r, int arm, int task)
{
    return &r->files[arm * r->n_tasks + task];
}

int runner_store(struct Runner *r, const struct Delivery *d)
{
    struct Results *to = d->failed ? &r->errors[d->arm] : file_of(r, d->arm, d->task);
    r->n_failed += d->failed;
    r->n_done += !d->failed;
    return results_add(to, d->line, d->key, d->failed);
}

static void say(const struct Runner *r, const struct Attempt *a, const struct Delivery *d)
{
    if (r->eval->cli.quiet) return;
    fprintf(stderr, "%s %s %s: ", a->task->name, a->sample->id.data, a->arm->label);
    if (d->failed)
        fprintf(stderr, "%s\n", err_text());
    else
        fprintf(stderr, "%.1f (%d tokens, %.1f s)\n", 100 * a->score.score,
                a->result.plan.n_context, a->result.time.total);
}

static void on_progress(void *user, const struct Progress *p)
{
    progress_show(user, p);
}

/* Takes a row under a method for this process, unless it is finished or has failed just now elsewhere. */
static int claim(struct Runner *r, struct Results *file, const struct Delivery *d)
{
    struct Results *errors = &r->errors[d->arm];
    int got = results_claim(file, d->key);
    if (got != CLAIM_MINE || !r->eval->cli.share) return got;
    int status = results_news(errors);
    if (status == PC_OK && !results_has(errors, d->key)) return CLAIM_MINE;
    results_release(file, d->key);
    return status < 0 ? status : CLAIM_DONE;
}

/* Runs one row with one method. A row that fails is a line; what stops the run is a status. */
static int take_arm(struct Walk *w, const struct Sample *s, int arm)
{
    struct Runner *r = w->r;
    struct Attempt a = {.bench = r->bench,
                        .task = r->tasks[w->task],
                        .sample = s,
                        .arm = &r->arms[arm],
                        .cli = &r->eval->cli};
    struct Delivery d = {
        .arm = arm, .task = w->task, .key = sample_key(s, a.task, r->arm_key[arm])};
    struct Results *file = file_of(r, arm, w->task);
    int got = claim(r, file, &d);
    if (got != CLAIM_MINE) {
        r->n_skipped += got == CLAIM_DONE;
        return got < 0 ? got : PC_OK;
    }
    struct Request req = {.user = &r->view, .on_progress = on_progress, .stop = signals_stop};
    progress_begin(&r->view, 0);
    int status = attempt_run(&a, r->engine, &r->set, &r->score, &req);
    progress_clear(&r->view);
    if (status == PC_EINTR || status == CLI_EOUTPUT) {
        attempt_free(&a);
        results_release(file, d.key);
        return status;
    }
    d.failed = status < 0;
    say(r, &a, &d);
    d.line = cJSON_CreateObject();
    results_head(file, d.line, &s->id, d.key);
    if (d.failed) {
        cJSON_AddStringToObject(d.line, "schema", "pcomp.sample.v1");
        cJSON_AddStringToObject(d.line, "task", a.task->name);
        results_error(d.line, status);
    } else {
        prediction_fill(d.line, &a, r->engine);
    }
    attempt_free(&a);
    status = r->deliver(r, &d);
    results_release(file, d.key);
    return status;
}

/* A row that cannot be read fails under every method. */
static int bad_row(struct Walk *w, const struct DataRow *row)
{
    struct Runner *r = w->r;
    struct Str id = {0};
    char message[1024];
    snprintf(message, sizeof message, "%s", err_text());
    if (!r->eval->cli.quiet) fprintf(stderr, "pcomp-eval: %s\n", message);
    int status = str_appendf(&id, "%s, line %ld", r->tasks[w->task]->name, row->line);
    for (int arm = 0; arm < r->n_arms && status == PC_OK; arm++) {
        struct Delivery d = {.arm = arm, .task = w->task, .failed = true};
        d.key = hash64(id.data, id.len, r->arm_key[arm]);
        struct Results *file = file_of(r, arm, w->task);
        int got = claim(r, file, &d);
        if (got < 0) status = got;
        if (got != CLAIM_MINE) continue;
        d.line = cJSON_CreateObject();
        results_head(file, d.line, &id, d.key);
        cJSON_AddStringToObject(d.line, "schema", "pcomp.sample.v1");
        cJSON_AddStringToObject(d.line, "task", r->tasks[w->task]->name);
        err_set(row->status, "%s", message);
        results_error(d.line, row->status);
        status = r->deliver(r, &d);
        results_release(file, d.key);
    }
    str_free(&id);
    return status;
}

static int take_row(void *user, struct DataRow *row)
{
    struct Walk *w = user;
    struct Runner *r = w->r;
    long in_task = w->in_task++, number;
    if (signals_stop(NULL)) return err_set(PC_EINTR, "stopped");
    if (r->split_of && in_task % r->split_of != r->split_at) return PC_OK;
    if (r->eval->limit && w->taken >= r->eval->limit) return PC_OK;
    w->taken++;
    number = w->row++;
    if (r->mine && !r->mine(r, number)) return PC_OK;
    if (row->status < 0) return bad_row(w, row);
    int status = PC_OK;
    for (int arm = 0; arm < r->n_arms && status == PC_OK; arm++)
        status = take_arm(w, &row->sample, arm);
    return status;
}

static int all_rows(struct Runner *r)
{
    struct Walk w = {.r = r};
    for (w.task = 0; w.task < r->n_tasks; w.task++) {
        w.in_task = w.taken = 0;
        TRY(r->source.each(r->source.self, engine_tokenizer(r->engine), r->tasks[w.task]->name,
                           take_row, &w));
    }
    return PC_OK;
}

int runner_rows(struct Runner *r)
{
    bool again = true;
    while (again) {
        again = false;
        r->n_skipped = 0;
        TRY(all_rows(r));
        for (int i = 0; i < r->n_arms * r->n_tasks; i++)
            TRY(results_settle(&r->files[i], signals_stop, &again));
    }
    return PC_OK;
}

/* progress.c - see progress.h. Rates and times to come are of the present stage only: prefill and
 * decode differ a hundredfold, so an average over both would tell nothing.
 */
#include "progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const STAGE_NAMES[] = {"tokenize", "prefill", "question", "decode", "done"};

/* Seconds between two lines. */
static const double LIVE_EVERY = 0.1, PLAIN_EVERY = 10, JSON_EVERY = 0.25;

int progress_open(struct ProgressView *view, const char *name, bool quiet)
{
    static const char *const names[] = {"none", "auto", "plain", "json"};
    *view = (struct ProgressView){0};
    int mode = -1;
    for (int i = 0; i < 4; i++)
        if (strcmp(name ? name : "auto", names[i]) == 0) mode = i;
    if (mode < 0)
        return err_set(PC_ECONFIG,
                       "flag '--progress': '%.64s' is not known; accepted: auto, none, plain, json",
                       name);
    view->mode = (enum ProgressMode)mode;
    const char *term = getenv("TERM");
    bool live = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
    if (view->mode == PROGRESS_LIVE && !live) view->mode = PROGRESS_PLAIN;
    if (quiet && view->mode != PROGRESS_JSON) view->mode = PROGRESS_NONE;
    view->hide_answer = isatty(STDOUT_FILENO);
    return PC_OK;
}

void progress_begin(struct ProgressView *view, size_t available)
{
    progress_clear(view);
    view->available = available;
    view->shown = 0;
    view->stage = STAGE_TOKENIZE;
    view->stage_began = 0;
    view->tokens_at_begin = 0;
    view->work = NULL;
}

void progress_clear(struct ProgressView *view)
{
    if (!view->line_open) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    view->line_open = false;
}

static double stage_rate(const struct ProgressView *view, const struct Progress *p)
{
    double seconds = p->seconds - view->stage_began;
    return seconds > 0 ? (double)(p->tokens_done - view->tokens_at_begin) / seconds : 0;
}

static void clock_text(double seconds, char *text, size_t room)
{
    long s = (long)(seconds + 0.5);
    if (s < 3600)
        snprintf(text, room, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(text, room, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
}

static void memory_text(const struct ProgressView *view, const struct Progress *p, char *text,
                        size_t room)
{
    const double gib = 1 << 30;
    if (view->available)
        snprintf(text, room, "mem %.1f/%.0f GiB", (double)p->memory / gib,
                 (double)view->available / gib);
    else
        snprintf(text, room, "mem %.1f GiB", (double)p->memory / gib);
}

/* A text that is being counted; how much there is of it may not be known. */
static void count_text(const struct Progress *p, int percent, const char *rate, const char *eta,
                       const char *memory, char *text, size_t room)
{
    char share[16] = "";
    if (p->n_tokens) snprintf(share, sizeof share, " %d%%", percent);
    snprintf(text, room, "reading %lld tokens%s%s%s · %s", (long long)p->tokens_done, share, rate,
             eta, memory);
}

void progress_text(const struct ProgressView *view, const struct Progress *p, char *text,
                   size_t room)
{
    char rate_text[32] = "", eta[48] = "", memory[64];
    double rate = stage_rate(view, p);
    int64_t left = p->n_tokens - p->tokens_done;
    int percent = p->n_tokens > 0 ? (int)(100 * p->tokens_done / p->n_tokens) : 0;
    if (rate > 0) {
        snprintf(rate_text, sizeof rate_text, rate < 1000 ? " %.0f tok/s" : " %.1fk tok/s",
                 rate < 1000 ? rate : rate / 1000);
        if (left > 0 && (p->stage == STAGE_PREFILL || p->stage == STAGE_TOKENIZE)) {
            char when[32];
            clock_text((double)left / rate, when, sizeof when);
            snprintf(eta, sizeof eta, " ETA %s", when);
        }
    }
    memory_text(view, p, memory, sizeof memory);
    if (p->stage == STAGE_PREFILL && p->n_chunks == 0)
        snprintf(text, room, "prefill %d chunks of a pipe%s · %s", p->chunks_done, rate_text,
                 memory);
    else if (p->stage == STAGE_PREFILL)
        snprintf(text, room, "prefill %d/%d chunks %d%%%s%s · %s", p->chunks_done, p->n_chunks,
                 percent, rate_text, eta, memory);
    else if (p->stage == STAGE_TOKENIZE && p->tokens_done)
        count_text(p, percent, rate_text, eta, memory, text, room);
    else if (p->stage == STAGE_DECODE)
        snprintf(text, room, "answer %lld/%lld tokens%s · %s", (long long)p->tokens_done,
                 (long long)p->n_tokens, rate_text, memory);
    else
        snprintf(text, room, "%s · %s", STAGE_NAMES[p->stage], memory);
}

void progress_json(const struct ProgressView *view, const struct Progress *p, char *text,
                   size_t room)
{
    snprintf(
        text, room,
        "{\"event\":\"progress\",\"stage\":\"%s\",\"total\":%lld,\"cache\":%lld,\"processed\":%lld,"
        "\"time_ms\":%.0f,\"chunks_done\":%d,\"n_chunks\":%d,\"memory\":%zu}",
        STAGE_NAMES[p->stage], (long long)p->n_tokens, (long long)view->reused,
        (long long)p->tokens_done, p->seconds * 1000, p->chunks_done, p->n_chunks, p->memory);
}

/* Whether a line is due now. */
static bool line_due(const struct ProgressView *view, double seconds, bool new_stage)
{
    double every = view->mode == PROGRESS_LIVE   ? LIVE_EVERY
                   : view->mode == PROGRESS_JSON ? JSON_EVERY
                                                 : PLAIN_EVERY;
    /* In a log the start of a stage is no news: a short run leaves no line at all. */
    return seconds - view->shown >= every || (new_stage && view->mode != PROGRESS_PLAIN);
}

/* A line for a log, or the live line in place of the last one. */
static void put_line(struct ProgressView *view, const char *text)
{
    if (view->mode == PROGRESS_LIVE) {
        progress_clear(view);
        fputs(text, stderr);
        fflush(stderr);
        view->line_open = true;
    } else {
        fprintf(stderr, "%s\n", text);
    }
}

static void work_text(const struct ProgressView *view, const char *what, double share,
                      double seconds, char *text, size_t room)
{
    char when[32] = "", eta[48] = "";
    double spent = seconds - view->stage_began;
    if (view->mode == PROGRESS_JSON) {
        snprintf(text, room,
                 "{\"event\":\"progress\",\"stage\":\"%s\",\"share\":%.4f,\"time_ms\":%.0f,"
                 "\"memory\":%zu}",
                 what, share, seconds * 1000, mem_in_use());
        return;
    }
    if (share > 0 && spent > 0) {
        clock_text(spent * (1 - share) / share, when, sizeof when);
        snprintf(eta, sizeof eta, " ETA %s", when);
    }
    snprintf(text, room, "%s %d%%%s · mem %.1f GiB", what, (int)(100 * share), eta,
             (double)mem_in_use() / (1 << 30));
}

void progress_work(struct ProgressView *view, const char *what, double share, double seconds)
{
    bool new_work = !view->work || strcmp(view->work, what) != 0;
    if (new_work) {
        view->work = what;
        view->stage_began = seconds;
    }
    if (view->mode == PROGRESS_NONE || !line_due(view, seconds, new_work)) return;
    char text[256];
    view->shown = seconds;
    work_text(view, what, share, seconds, text, sizeof text);
    put_line(view, text);
}

void progress_show(struct ProgressView *view, const struct Progress *p)
{
    bool new_stage = p->stage != view->stage;
    if (new_stage) {
        view->stage = p->stage;
        view->stage_began = p->seconds;
        view->tokens_at_begin = p->tokens_done;
    }
    if (view->mode == PROGRESS_NONE) return;
    if (!line_due(view, p->seconds, new_stage)) return;
    view->shown = p->seconds;
    char text[512];
    if (view->mode == PROGRESS_JSON)
        progress_json(view, p, text, sizeof text);
    else
        progress_text(view, p, text, sizeof text);
    bool silent = p->stage == STAGE_DONE || (p->stage == STAGE_DECODE && view->hide_answer);
    if (view->mode == PROGRESS_LIVE && silent)
        progress_clear(view);
    else
        put_line(view, text);
}

/* progress.h - how far a run is, on standard error: a live line on a terminal, a plain line every
 * ten seconds elsewhere, JSON events on request.
 */
#ifndef PCOMP_PROGRESS_H
#define PCOMP_PROGRESS_H

#include "pcomp.h"

enum ProgressMode { PROGRESS_NONE, PROGRESS_LIVE, PROGRESS_PLAIN, PROGRESS_JSON };

struct ProgressView {
    enum ProgressMode mode;
    bool hide_answer; /* the answer itself appears on the same terminal */
    bool line_open;   /* a live line stands on the terminal */
    size_t available; /* bytes the run may use; 0: not known */
    double shown;     /* seconds of the run at the last line */
    enum Stage stage;
    double stage_began; /* seconds of the run */
    int64_t tokens_at_begin;
    const char *work; /* of progress_work, the last one shown */
    int64_t reused;   /* tokens that need not be computed */
};

/* name: auto, none, plain or json (NULL: auto). auto is live on a terminal and plain elsewhere. */
int progress_open(struct ProgressView *view, const char *name, bool quiet);
void progress_begin(struct ProgressView *view, size_t available);
/* For Request.on_progress: `user` is not looked at here, so that callers may wrap it. */
void progress_show(struct ProgressView *view, const struct Progress *p);
/* Work without stages, as calibration: `what` is done to a share 0..1, `seconds` after the command began. */
void progress_work(struct ProgressView *view, const char *what, double share, double seconds);
/* Takes the live line away, so that other text can be printed. */
void progress_clear(struct ProgressView *view);
/* One line for a terminal or a log: "prefill 37/64 chunks 58% 12.4k tok/s ETA 0:41 · mem 0.4/22 GiB". */
void progress_text(const struct ProgressView *view, const struct Progress *p, char *text,
                   size_t room);
/* The same as one JSON object with the field names that llama.cpp's clients know. */
void progress_json(const struct ProgressView *view, const struct Progress *p, char *text,
                   size_t room);

#endif

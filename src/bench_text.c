/* bench_text.c - what the host does with a text before the device sees it (session_stream.c), timed part by part without the
 * model: tokens are counted, cuts find boundaries, the question's words are looked for, and every chunk's tokens are loaded.
 */
#include "session.h"

#include <string.h>

/* The places of the cuts are found once more. */
static int time_cuts(struct Session *s, double *seconds)
{
    mem_free(s->places);
    s->places = NULL;
    double begun = clock_seconds();
    int status = stream_cut(s);
    *seconds = clock_seconds() - begun;
    return status;
}

static int time_words(struct Session *s, double *seconds)
{
    if (!s->shared) s->shared = mem_alloc((size_t)s->plan.n_chunks, sizeof *s->shared);
    if (!s->shared) return PC_ENOMEM;
    double begun = clock_seconds();
    int status = weigh_words(s);
    *seconds = clock_seconds() - begun;
    return status;
}

static int time_loads(struct Session *s, double *seconds)
{
    double begun = clock_seconds();
    for (int c = 0; c < s->plan.n_chunks; c++) {
        const int *ids;
        TRY(session_stop(s));
        TRY(chunk_ids(s, &s->chunks[c], &ids));
    }
    *seconds = clock_seconds() - begun;
    return PC_OK;
}

static int time_parts(struct Session *s, struct BenchText *out)
{
    out->n_tokens = s->plan.n_context;
    TRY(time_cuts(s, &out->seconds[TEXT_CUTS]));
    TRY(time_words(s, &out->seconds[TEXT_WORDS]));
    return time_loads(s, &out->seconds[TEXT_LOADS]);
}

static int time_text(struct Engine *e, const struct Request *req, struct BenchText *out)
{
    struct Session s = {0};
    struct Prompt prompt = {0};
    struct Result r = {0};
    int status = session_prompt(e, req, &prompt);
    out->seconds[TEXT_SCAN] = stream_spent(req);
    if (status == PC_OK) status = session_open(&s, e, req, &prompt, &r);
    if (status == PC_OK) status = time_parts(&s, out);
    prompt_free(&prompt);
    session_close(&s);
    result_free(&r);
    return status;
}

int engine_bench_text(struct Engine *e, const struct Request *req, int threads,
                      struct BenchText *out)
{
    struct Settings kept = e->settings;
    memset(out, 0, sizeof *out);
    text_stream_forget(req->stream);
    e->settings.threads = threads;
    e->settings.method = METHOD_PARALLELCOMP;
    int status = time_text(e, req, out);
    e->settings = kept;
    return status;
}

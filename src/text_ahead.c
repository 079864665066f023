/* text_ahead.c - see text_ahead.h. */
#include "text_ahead.h"

#include <pthread.h>
#include <string.h>

struct TextAhead {
    struct TextStream reader;
    struct TextRange *range; /* [room.ranges] the order, */
    int *ids;                /* [room.tokens] and its ids, one range after the other */
    int *at;                 /* [room.ranges] where each range's ids begin */
    struct AheadRoom room;
    bool runs; /* there is a thread */
    bool none; /* and there cannot be one */
    pthread_t thread;
    pthread_mutex_t lock; /* of all that follows, and of the order */
    pthread_cond_t change;
    int n, n_loaded, n_taken;
    bool loads; /* range n_loaded is being loaded */
    bool stop;
    struct ErrKept failed; /* at range n_loaded; no more is loaded */
};

/* ==== The thread ==== */

/* Waits for the next range to load; false: the end. */
static bool next_range(struct TextAhead *a, int *i)
{
    pthread_mutex_lock(&a->lock);
    while (!a->stop && (a->n_loaded >= a->n || a->failed.status < 0))
        pthread_cond_wait(&a->change, &a->lock);
    *i = a->n_loaded;
    a->loads = !a->stop;
    bool more = a->loads;
    pthread_mutex_unlock(&a->lock);
    return more;
}

static int range_load(struct TextAhead *a, int i)
{
    struct TextRange r = a->range[i];
    TRY(text_stream_load(&a->reader, r.begin, r.end));
    memcpy(a->ids + a->at[i], text_stream_ids(&a->reader, r.begin),
           sizeof *a->ids * (size_t)(r.end - r.begin));
    return PC_OK;
}

static void range_done(struct TextAhead *a, int status)
{
    pthread_mutex_lock(&a->lock);
    a->loads = false;
    if (status < 0)
        err_keep(&a->failed, status);
    else
        a->n_loaded++;
    pthread_cond_broadcast(&a->change);
    pthread_mutex_unlock(&a->lock);
}

static void *load_ahead(void *ahead)
{
    struct TextAhead *a = ahead;
    for (int i; next_range(a, &i);) range_done(a, range_load(a, i));
    return NULL;
}

/* Whether there is a thread; the first call starts it. */
static bool thread_runs(struct TextAhead *a)
{
    if (a->runs || a->none) return a->runs;
    a->runs = pthread_create(&a->thread, NULL, load_ahead, a) == 0;
    a->none = !a->runs;
    if (a->none)
        log_msg(LOG_WARN, "no thread can be started to read the text ahead: it is read in turns "
                          "with the device");
    return a->runs;
}

/* ==== Orders ==== */

void text_ahead_order(struct TextAhead *a, const struct TextRange *ranges, int n)
{
    if (n == 0 || !thread_runs(a)) return;
    pthread_mutex_lock(&a->lock);
    a->n = a->n_loaded; /* what was not begun never is */
    while (a->loads) pthread_cond_wait(&a->change, &a->lock);
    a->n = a->n_loaded = a->n_taken = 0;
    for (int i = 0, tokens = 0; i < n && i < a->room.ranges; i++) {
        a->range[i] = ranges[i];
        a->at[i] = tokens;
        tokens += ranges[i].end - ranges[i].begin;
        if (tokens > a->room.tokens) break; /* the rest is the caller's own to load */
        a->n++;
    }
    pthread_cond_broadcast(&a->change);
    pthread_mutex_unlock(&a->lock);
}

int text_ahead_take(struct TextAhead *a, struct TextRange range, const int **ids)
{
    int status = PC_OK, i = a->n_taken;
    *ids = NULL;
    if (i == a->n || a->range[i].begin != range.begin || a->range[i].end != range.end) return PC_OK;
    pthread_mutex_lock(&a->lock);
    while (a->n_loaded <= i && a->failed.status == PC_OK) pthread_cond_wait(&a->change, &a->lock);
    if (a->n_loaded <= i) status = err_tell(&a->failed);
    pthread_mutex_unlock(&a->lock);
    a->n_taken++;
    if (status == PC_OK) *ids = a->ids + a->at[i];
    return status;
}

/* ==== Open and close ==== */

size_t text_ahead_bytes(const struct TextStream *st, struct AheadRoom room)
{
    size_t ranges = (size_t)room.ranges, tokens = (size_t)room.tokens;
    return sizeof(struct TextAhead) + ranges * (sizeof(struct TextRange) + sizeof(int)) +
           tokens * sizeof(int) + text_stream_room(st, room.longest, 0) +
           encoder_bytes(st->encoder);
}

static int ahead_alloc(struct TextAhead *a, const struct TextStream *st)
{
    a->range = mem_alloc((size_t)a->room.ranges, sizeof *a->range);
    a->at = mem_alloc((size_t)a->room.ranges, sizeof *a->at);
    a->ids = mem_alloc((size_t)a->room.tokens, sizeof *a->ids);
    if (!a->range || !a->at || !a->ids) return PC_ENOMEM;
    TRY(text_stream_share(st, &a->reader));
    return text_stream_reserve(&a->reader, a->room.longest, 0);
}

int text_ahead_open(const struct TextStream *st, struct AheadRoom room, struct TextAhead **out)
{
    struct TextAhead *a = mem_alloc(1, sizeof *a);
    *out = a;
    if (!a) return PC_ENOMEM;
    a->room = room;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->change, NULL);
    return ahead_alloc(a, st);
}

static void thread_stop(struct TextAhead *a)
{
    if (!a->runs) return;
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_broadcast(&a->change);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
}

void text_ahead_close(struct TextAhead *a)
{
    if (!a) return;
    thread_stop(a);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->change);
    text_stream_leave(&a->reader);
    mem_free(a->range);
    mem_free(a->at);
    mem_free(a->ids);
    mem_free(a);
}

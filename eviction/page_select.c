/* page_select.c - see page_select.h.
 *
 * Shares are whole numbers, so that their sums do not hang on an order: the device adds them as its threads come
 * (cuda/select_pages.cu) and finds the same pages.
 */
#include "page_select.h"

#include "select.h"

#include <math.h>

static const float WHOLE = 0x1p30f; /* the heaviest page's share */

/* The first page of those at the end that are always read. */
static int end_of(const struct PageSelect *s, int n, int n_open)
{
    int last = s->last > n_open ? s->last : n_open;
    return last < n ? n - last : 0;
}

bool page_select_all(const struct PageSelect *s, int n, int n_open)
{
    int between = end_of(s, n, n_open) - s->first;
    return s->index == PAGE_INDEX_OFF || between <= 0 ||
           (s->mass > 0 ? s->mass >= 1 : between <= s->pages);
}

static void weigh(const float *score, const int *len, int n, const struct PageWeights *out)
{
    float most = -INFINITY, log_len = 0;
    for (int i = 0; i < n; i++) {
        if (i == 0 || len[i] != len[i - 1]) log_len = logf((float)len[i]);
        out->log[i] = score[i] + log_len;
        if (out->log[i] > most) most = out->log[i];
    }
    for (int i = 0; i < n; i++) {
        float part = out->log[i] == most ? 1 : expf(out->log[i] - most);
        out->share[i] = part > 0 ? (uint32_t)(part * WHOLE) : 0;
    }
}

/* What pages [first, end) must bring so that all that are read, of n scored ones, make up the wanted share. */
static uint64_t missing(float mass, const uint32_t *share, int n, int first, int end)
{
    uint64_t all = 0, sure = 0;
    for (int i = 0; i < n; i++) {
        all += share[i];
        if (i < first || i >= end) sure += share[i];
    }
    uint64_t want = (uint64_t)ceil((double)mass * (double)all);
    return want > sure ? want - sure : 0;
}

/* Of the pages [first, end), into idx, counted from `first`. */
static int select_between(const struct PageSelect *s, const float *score, const int *len, int n,
                          int end, const struct PageWeights *work, int *idx)
{
    int first = s->first;
    if (s->mass <= 0) return select_top(score + first, end - first, s->pages, idx);
    weigh(score, len, n, work);
    uint64_t want = missing(s->mass, work->share, n, first, end);
    return select_share(work->log + first, work->share + first, end - first, want, idx);
}

int page_select(const struct PageSelect *s, const float *score, const int *len, int n, int n_open,
                const struct PageWeights *work, int *idx)
{
    int end = end_of(s, n, n_open), first = page_select_all(s, n, n_open) ? n : s->first, k = 0;
    for (int i = 0; i < first; i++) idx[i] = i;
    if (first == n) return n;
    k = select_between(s, score, len, n - n_open, end, work, idx + first);
    for (int i = 0; i < k; i++) idx[first + i] += first;
    for (int i = end; i < n; i++) idx[first + k++] = i;
    return first + k;
}

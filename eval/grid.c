/* grid.c - see grid.h */
#include "grid.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ==== Flags ==== */

/* "4096", "4K" (of 1024) or "1M". */
static int length_read(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    long long unit = *end == 'K' || *end == 'k' ? 1024 : *end == 'M' || *end == 'm' ? 1 << 20 : 1;
    if (unit > 1) end++;
    if (end == text || *end || errno || n < 1 || n > INT_MAX / unit)
        return err_set(PC_ECONFIG, "--tokens: '%.32s' is no length; give 4096, 4K or 1M", text);
    *out = n * unit;
    return PC_OK;
}

static int depth_read(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    if (end != text && !*end && *out >= 0 && *out <= 1) return PC_OK;
    return err_set(PC_ECONFIG, "--depth: '%.32s' is no depth; give 0 to 1", text);
}

/* Calls read() for each part of a list between commas. */
static int list_read(const char *name, const char *list, int (*read)(struct Grid *, const char *),
                     struct Grid *g)
{
    char part[64];
    for (int n = 0;; n++) {
        size_t len = strcspn(list, ",");
        if (n == GRID_MAX) return err_set(PC_ECONFIG, "--%s: at most %d values", name, GRID_MAX);
        snprintf(part, sizeof part, "%.*s", (int)(len < 63 ? len : 63), list);
        TRY(read(g, part));
        if (!list[len]) return PC_OK;
        list += len + 1;
    }
}

static int read_tokens(struct Grid *g, const char *part)
{
    return length_read(part, &g->tokens[g->n_tokens++]);
}

static int read_depth(struct Grid *g, const char *part)
{
    return depth_read(part, &g->depths[g->n_depths++]);
}

int grid_open(const struct EvalCli *e, const char *depths, struct Grid *g)
{
    *g = (struct Grid){.eval = e};
    if (e->depths) depths = e->depths;
    TRY(list_read("tokens", e->lengths ? e->lengths : "4096", read_tokens, g));
    if (depths)
        TRY(list_read("depth", depths, read_depth, g));
    else
        g->depths[g->n_depths++] = -1;
    g->spec = (struct GenSpec){.seed = (uint64_t)e->seed,
                               .n_keys = e->n_keys,
                               .n_values = e->n_values,
                               .n_queries = e->n_queries,
                               .n_hops = e->n_hops,
                               .n_needles = e->n_needles,
                               .n_words = e->n_words,
                               .needle = e->needle,
                               .question = e->needle_question,
                               .answer = e->needle_answer};
    return PC_OK;
}

void grid_close(struct Grid *g)
{
    str_free(&g->haystack);
    str_free(&g->qa);
}

/* ==== Texts ==== */

/* book.txt of `make book`: beside the model, or in models/ beside the build folder. */
static int book_path(const struct Cli *cli, char path[PATH_MAX + 64])
{
    static const char *const PLACES[] = {"../models", "../../models"};
    char self[PATH_MAX];
    memcpy(self, cli->model_path, sizeof cli->model_path);
    snprintf(path, PATH_MAX + 64, "%s/book.txt", dirname(self));
    if (access(path, R_OK) == 0) return PC_OK;
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    self[len > 0 ? len : 0] = '\0';
    const char *folder = dirname(self);
    for (int i = 0; i < 2; i++) {
        snprintf(path, PATH_MAX + 64, "%s/%s/book.txt", folder, PLACES[i]);
        if (access(path, R_OK) == 0) return PC_OK;
    }
    return err_set(PC_EIO, "there is no models/book.txt to hide in; `make book` fetches it, or "
                           "give --haystack FILE");
}

int grid_texts(struct Grid *g, const char *task)
{
    const struct EvalCli *e = g->eval;
    bool haystack, qa;
    char path[PATH_MAX + 64];
    TRY(generate_needs(task, &haystack, &qa));
    if (haystack && !e->haystack) TRY(book_path(&e->cli, path));
    const char *name = e->haystack ? e->haystack : path;
    if (haystack && !g->haystack.len) {
        TRY(file_read(name, &g->haystack));
        TRY(text_check(name, g->haystack.data ? g->haystack.data : "", g->haystack.len));
    }
    if (qa && e->qa_file && !g->qa.len) TRY(file_read(e->qa_file, &g->qa));
    g->spec.haystack = &g->haystack;
    g->spec.qa = &g->qa;
    return PC_OK;
}

/* ==== Rows ==== */

long grid_rows(const struct Grid *g)
{
    return (long)g->n_tokens * g->n_depths * g->eval->count;
}

int grid_each(struct Grid *g, const char *task, const struct Tokenizer *tok,
              int (*row)(void *user, struct Sample *sample), void *user)
{
    g->spec.task = task;
    for (int t = 0; t < g->n_tokens; t++)
        for (int d = 0; d < g->n_depths; d++)
            for (int i = 0; i < g->eval->count; i++) {
                struct Sample sample = {0};
                if (signals_stop(NULL)) return err_set(PC_EINTR, "stopped");
                g->spec.tokens = g->tokens[t];
                g->spec.depth = g->depths[d];
                g->spec.index = i;
                int status = generate(&g->spec, tok, &sample);
                if (status == PC_OK) status = row(user, &sample);
                sample_free(&sample);
                if (status < 0) return status;
            }
    return PC_OK;
}

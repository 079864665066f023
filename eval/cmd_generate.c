/* cmd_generate.c - `pcomp-eval generate`: writes samples of a synthetic task as JSON lines.
 *
 * Only the model's vocabulary is used. Rows are written as they are made, beside the file they are for,
 * which takes their place when all is done.
 */
#include "eval.h"
#include "generate.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LIST_MAX = 64 };

/* One command's work. */
struct Generate {
    struct EvalCli *eval;
    struct Model model;
    struct Tokenizer *tok;
    struct Str haystack, qa;
    struct GenSpec spec;
    int64_t tokens[LIST_MAX];
    double depths[LIST_MAX];
    int n_tokens, n_depths;
    FILE *out; /* NULL: standard output */
    struct Str row;
    long rows;
};

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
static int list_read(const char *name, const char *list,
                     int (*read)(struct Generate *, const char *), struct Generate *gen)
{
    char part[64];
    for (int n = 0;; n++) {
        size_t len = strcspn(list, ",");
        if (n == LIST_MAX) return err_set(PC_ECONFIG, "--%s: at most %d values", name, LIST_MAX);
        snprintf(part, sizeof part, "%.*s", (int)(len < 63 ? len : 63), list);
        TRY(read(gen, part));
        if (!list[len]) return PC_OK;
        list += len + 1;
    }
}

static int read_tokens(struct Generate *gen, const char *part)
{
    return length_read(part, &gen->tokens[gen->n_tokens++]);
}

static int read_depth(struct Generate *gen, const char *part)
{
    return depth_read(part, &gen->depths[gen->n_depths++]);
}

static int flags_read(struct Generate *gen)
{
    const struct EvalCli *e = gen->eval;
    if (e->cli.args.n != 1)
        return err_set(PC_ECONFIG, "name one task; `pcomp-eval help generate` lists them");
    TRY(list_read("tokens", e->lengths ? e->lengths : "4096", read_tokens, gen));
    if (e->depths) TRY(list_read("depth", e->depths, read_depth, gen));
    if (!e->depths) gen->depths[gen->n_depths++] = -1;
    gen->spec = (struct GenSpec){.task = e->cli.args.items[0],
                                 .seed = (uint64_t)e->seed,
                                 .n_keys = e->n_keys,
                                 .n_values = e->n_values,
                                 .n_queries = e->n_queries,
                                 .n_hops = e->n_hops,
                                 .n_needles = e->n_needles,
                                 .needle = e->needle,
                                 .question = e->needle_question,
                                 .answer = e->needle_answer};
    return PC_OK;
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

static int texts_read(struct Generate *gen)
{
    const struct EvalCli *e = gen->eval;
    bool haystack, qa;
    char path[PATH_MAX + 64];
    TRY(generate_needs(gen->spec.task, &haystack, &qa));
    if (haystack && !e->haystack) TRY(book_path(&e->cli, path));
    const char *name = e->haystack ? e->haystack : path;
    if (haystack) {
        TRY(file_read(name, &gen->haystack));
        TRY(text_check(name, gen->haystack.data ? gen->haystack.data : "", gen->haystack.len));
    }
    if (qa && e->qa_file) TRY(file_read(e->qa_file, &gen->qa));
    gen->spec.haystack = &gen->haystack;
    gen->spec.qa = &gen->qa;
    return PC_OK;
}

/* ==== Rows ==== */

static int json_text(const char *text, size_t len, struct Str *out)
{
    TRY(str_reserve(out, len + 2));
    TRY(str_append(out, "\"", 1));
    for (size_t i = 0, from = 0; i <= len; i++) {
        unsigned char c = i < len ? (unsigned char)text[i] : 0;
        if (i < len && c >= 0x20 && c != '"' && c != '\\') continue;
        TRY(str_append(out, text + from, i - from));
        from = i + 1;
        if (i == len) break;
        if (c == '\n')
            TRY(str_append(out, "\\n", 2));
        else if (c >= 0x20)
            TRY(str_appendf(out, "\\%c", c));
        else
            TRY(str_appendf(out, "\\u%04x", c));
    }
    return str_append(out, "\"", 1);
}

static int json_str(const char *before, const struct Str *text, struct Str *out)
{
    TRY(str_append(out, before, strlen(before)));
    return json_text(text->data ? text->data : "", text->len, out);
}

static int row_write(const struct Sample *s, struct Str *out)
{
    str_clear(out);
    TRY(json_str("{\"id\":", &s->id, out));
    TRY(json_str(",\"context\":", &s->context, out));
    TRY(json_str(",\"input\":", &s->input, out));
    TRY(str_append(out, ",\"answers\":[", 12));
    for (int i = 0; i < s->n_answers; i++) TRY(json_str(i ? "," : "", &s->answers[i], out));
    TRY(str_appendf(out, "],\"length\":%d", s->target_tokens));
    if (s->depth >= 0) TRY(str_appendf(out, ",\"depth\":%.6g", s->depth));
    TRY(str_append(out, ",\"answer_at\":[", 14));
    for (int i = 0; i < s->n_answer_at; i++)
        TRY(str_appendf(out, "%s%zu", i ? "," : "", s->answer_at[i]));
    return str_append(out, "]}\n", 3);
}

static int row_put(struct Generate *gen)
{
    if (!gen->out) return out_write(gen->row.data, gen->row.len);
    if (fwrite(gen->row.data, 1, gen->row.len, gen->out) == gen->row.len) return PC_OK;
    err_set(PC_EIO, "%s: %s", gen->eval->cli.output, strerror(errno));
    return CLI_EOUTPUT;
}

static int row_make(struct Generate *gen)
{
    struct Sample sample;
    int status = generate(&gen->spec, gen->tok, &sample);
    if (status == PC_OK) status = row_write(&sample, &gen->row);
    if (status == PC_OK) status = row_put(gen);
    sample_free(&sample);
    gen->rows += status == PC_OK;
    return status;
}

static int rows_make(struct Generate *gen)
{
    for (int t = 0; t < gen->n_tokens; t++)
        for (int d = 0; d < gen->n_depths; d++)
            for (int i = 0; i < gen->eval->count; i++) {
                if (signals_stop(NULL)) return err_set(PC_EINTR, "stopped");
                gen->spec.tokens = gen->tokens[t];
                gen->spec.depth = gen->depths[d];
                gen->spec.index = i;
                TRY(row_make(gen));
            }
    return PC_OK;
}

/* ==== Output ==== */

static int file_failed(const char *path)
{
    err_set(PC_EIO, "%s: %s", path, strerror(errno));
    return CLI_EOUTPUT;
}

static int file_fill(struct Generate *gen, const char *path)
{
    gen->out = fopen(path, "w");
    if (!gen->out) return file_failed(path);
    int status = rows_make(gen);
    if (fclose(gen->out) != 0 && status == PC_OK) status = file_failed(path);
    return status;
}

/* Rows go beside the file, which takes their place once all are there; into a device, a pipe or a link
 * they go at once. */
static int file_make(struct Generate *gen)
{
    const char *path = gen->eval->cli.output;
    char part[PATH_MAX];
    struct stat info;
    if (lstat(path, &info) == 0 && !S_ISREG(info.st_mode)) return file_fill(gen, path);
    if (snprintf(part, sizeof part, "%s.part", path) >= (int)sizeof part)
        return err_set(PC_ECONFIG, "--output: the path is too long");
    int status = file_fill(gen, part);
    if (status == PC_OK && rename(part, path) != 0) status = file_failed(path);
    if (status < 0) unlink(part);
    return status;
}

static int generate_all(struct Generate *gen)
{
    struct Cli *cli = &gen->eval->cli;
    TRY(flags_read(gen));
    bool haystack, qa;
    TRY(generate_needs(gen->spec.task, &haystack, &qa));
    TRY(cli_model(cli));
    TRY(texts_read(gen));
    TRY(model_open(cli->model_path, &gen->model));
    TRY(tokenizer_open(&gen->model.vocab, &gen->tok));
    if (!cli->output || strcmp(cli->output, "-") == 0) return rows_make(gen);
    TRY(file_make(gen));
    log_msg(LOG_DEBUG, "%ld samples in %s", gen->rows, cli->output);
    return PC_OK;
}

int cmd_generate(struct Cli *cli)
{
    struct Generate gen = {.eval = (struct EvalCli *)cli};
    signals_catch();
    int status = generate_all(&gen);
    tokenizer_close(gen.tok);
    model_close(&gen.model);
    str_free(&gen.haystack);
    str_free(&gen.qa);
    str_free(&gen.row);
    return status;
}

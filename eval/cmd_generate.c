/* cmd_generate.c - `pcomp-eval generate`: writes samples of a synthetic task as JSON lines.
 *
 * Only the model's vocabulary is used. Rows are written as they are made, beside the file they are for,
 * which takes their place when all is done.
 */
#include "eval.h"
#include "grid.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One command's work. */
struct Generate {
    struct EvalCli *eval;
    struct Model model;
    struct Tokenizer *tok;
    struct Grid grid;
    FILE *out; /* NULL: standard output */
    struct Str row;
    long rows;
};

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
    TRY(str_appendf(out, "],\"length\":%d,\"target_tokens\":%d", s->target_tokens,
                    s->target_tokens));
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

static int row_take(void *user, struct Sample *sample)
{
    struct Generate *gen = user;
    TRY(row_write(sample, &gen->row));
    TRY(row_put(gen));
    gen->rows++;
    return PC_OK;
}

static int rows_make(struct Generate *gen)
{
    return grid_each(&gen->grid, gen->eval->cli.args.items[0], gen->tok, row_take, gen);
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
    if (cli->args.n != 1)
        return err_set(PC_ECONFIG, "name one task; `pcomp-eval help generate` lists them");
    TRY(grid_open(gen->eval, NULL, &gen->grid));
    TRY(cli_model(cli));
    TRY(grid_texts(&gen->grid, cli->args.items[0]));
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
    int status = generate_all(&gen);
    tokenizer_close(gen.tok);
    model_close(&gen.model);
    grid_close(&gen.grid);
    str_free(&gen.row);
    return status;
}

/* cli_text.c - a command's text as a stream, for one process or for each of several.
 *
 * Processes that all see the same files read them by themselves. Where one does not, or the text comes through a pipe, rank 0
 * hands the text on, a block at a time, and the others keep it in a spool.
 */
#include "cli.h"
#include "text_stream.h"

#include <string.h>
#include <unistd.h>

/* What a rank sees of the files. */
struct Sight {
    int64_t seen; /* 1: all of them, as files */
    uint64_t size;
};

static int stream_paths(const struct Cli *cli, struct TextList *paths)
{
    for (int i = 0; i < cli->files.n; i++) TRY(list_push(paths, cli->files.items[i]));
    for (int i = 0; i < cli->args.n; i++) TRY(list_push(paths, cli->args.items[i]));
    if (paths->n) return PC_OK;
    if (isatty(STDIN_FILENO))
        return err_set(PC_ECONFIG, "no text to read; give -f FILE, or pipe a text in");
    return list_push(paths, "-");
}

/* Whether every rank can read the files by itself. */
static int all_see(struct Team *t, const struct TextSource *mine, bool *all)
{
    struct Sight *sight = mem_alloc((size_t)t->size, sizeof *sight);
    if (!sight) return PC_ENOMEM;
    sight[t->rank] = (struct Sight){mine->whole && !mine->spooled, mine->size};
    int status = team_gather(t, sight, sizeof *sight);
    *all = true;
    for (int i = 0; i < t->size; i++)
        *all = *all && sight[i].seen && sight[i].size == sight[0].size;
    mem_free(sight);
    return status;
}

/* Rank 0's text to all others' spools. */
static int hand_on(struct Team *t, struct TextSource *s)
{
    enum { BLOCK = 1 << 16 };
    char *block = mem_alloc(BLOCK, 1);
    int status = block ? PC_OK : PC_ENOMEM;
    for (size_t at = 0, got = 1; status == PC_OK && got; at += got) {
        if (t->rank == 0) status = source_read(s, at, BLOCK, block, &got);
        if (status == PC_OK) status = team_broadcast(t, &got, sizeof got);
        if (status == PC_OK && got) status = team_broadcast(t, block, got);
        if (status == PC_OK && got && t->rank) status = source_put(s, block, got);
    }
    if (t->rank) s->whole = true;
    mem_free(block);
    return status;
}

static int share_source(struct Team *t, struct TextSource *s)
{
    bool all;
    if (t->size <= 1) return PC_OK;
    TRY(all_see(t, s, &all));
    if (all) return PC_OK;
    if (t->rank) {
        source_close(s);
        TRY(source_open_spool(s));
    }
    return hand_on(t, s);
}

int cli_stream(struct Cli *cli, struct TextStream *out)
{
    struct TextList paths = {0};
    bool leads = cli->team.rank == 0;
    int status = stream_paths(cli, &paths);
    if (status == PC_OK) status = text_stream_open(out, paths.items, paths.n);
    /* a file that another machine does not have is handed on to it */
    if (status < 0 && !leads && status != PC_ENOMEM) {
        text_stream_close(out);
        status = PC_OK;
    }
    mem_free(paths.items);
    out->source.stop = signals_stop;
    return status < 0 ? status : share_source(&cli->team, &out->source);
}

/* jieba_tool.c - the segmenter on standard input, for tests/quality/jieba_oracle.py.
 *
 *   jieba_tool FOLDER < texts > words
 *
 * A text is its length in bytes, as a number in one line, then the bytes. For each text one line comes
 * back: the lengths in bytes of its words. On standard error: seconds to open, bytes and seconds of
 * cutting.
 */
#include "eval/jieba.h"

#include <stdio.h>
#include <stdlib.h>

static int print_length(void *user, const char *word, size_t len)
{
    (void)word;
    return str_appendf(user, "%zu ", len);
}

/* The next text's bytes, NULL at the end of the input. */
static const char *next_text(const struct Str *in, size_t *at, size_t *len)
{
    char *end;
    if (*at >= in->len) return NULL;
    *len = strtoul(in->data + *at, &end, 10);
    const char *text = end + 1;
    *at = (size_t)(text - in->data) + *len;
    return *at <= in->len ? text : NULL;
}

static int run(const char *folder, const struct Str *in)
{
    struct Jieba *j;
    struct Str out = {0};
    size_t at = 0, len, bytes = 0;
    double begin = clock_seconds();
    TRY(jieba_open(folder, &j));
    double opened = clock_seconds();
    int status = PC_OK;
    for (const char *text; status == PC_OK && (text = next_text(in, &at, &len)) != NULL;) {
        status = jieba_cut(j, text, len, print_length, &out);
        if (status == PC_OK) status = str_append(&out, "\n", 1);
        bytes += len;
    }
    fprintf(stderr, "opened in %.3f s, cut %zu bytes in %.3f s\n", opened - begin, bytes,
            clock_seconds() - opened);
    if (status == PC_OK) fwrite(out.data, 1, out.len, stdout);
    str_free(&out);
    jieba_close(j);
    return status;
}

int main(int argc, char **argv)
{
    struct Str in = {0};
    int status = file_read("-", &in);
    if (status == PC_OK) status = run(argc > 1 ? argv[1] : NULL, &in);
    if (status < 0) fprintf(stderr, "jieba_tool: %s\n", err_text());
    str_free(&in);
    return status < 0;
}

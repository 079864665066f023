/* phrase_score.c - exact match of a phrase: the words of the answer's first sentence, which a full stop or a line feed ends, are
 * those expected, in order, and no others. Case, white space and other ASCII punctuation make no difference. See score.h
 */
#include "score.h"

#include "pytext.h"

#include <string.h>

/* Appends the words of the first sentence, lower case, a blank before each. */
static int first_words(const char *text, size_t len, struct Str *out)
{
    struct Span all = py_strip(text, len), word;
    struct Str line = {0};
    size_t at = 0, n = 0;
    while (n < all.len && all.data[n] != '\n' && all.data[n] != '.') n++;
    int status = py_lower(all.data, n, &line);
    if (status == PC_OK) py_blank(line.data, line.len, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~");
    while (status == PC_OK && py_split_next(line.data, line.len, &at, &word)) {
        status = str_append(out, " ", 1);
        if (status == PC_OK) status = str_append(out, word.data, word.len);
    }
    str_free(&line);
    return status;
}

int phrase_score(const struct ScoreInput *in, struct ScoreOutput *out)
{
    struct Str said = {0};
    *out = (struct ScoreOutput){0};
    if (in->n_answers <= 0) return err_set(PC_EFORMAT, "the row has no phrase to compare with");
    int status = first_words(in->pred ? in->pred : "", in->pred_len, &said);
    for (int i = 0; i < in->n_answers && status == PC_OK; i++) {
        struct Str want = {0};
        status =
            first_words(in->answers[i].data ? in->answers[i].data : "", in->answers[i].len, &want);
        if (want.len && want.len == said.len && memcmp(want.data, said.data, said.len) == 0)
            out->score = 1;
        str_free(&want);
    }
    str_free(&said);
    return status;
}

/* sample.c - see sample.h */
#include "sample.h"

static void texts_free(struct Str *list, int n)
{
    for (int i = 0; i < n; i++) str_free(&list[i]);
    mem_free(list);
}

void sample_free(struct Sample *s)
{
    str_free(&s->id);
    str_free(&s->context);
    str_free(&s->input);
    texts_free(s->answers, s->n_answers);
    texts_free(s->all_classes, s->n_classes);
    texts_free(s->options, s->n_options);
    mem_free(s->answer_at);
    *s = (struct Sample){0};
}

int texts_push(struct Str **list, int *n, const char *text, size_t len)
{
    struct Str *grown = *list ? mem_grow(*list, (size_t)*n, (size_t)*n + 1, sizeof **list)
                              : mem_alloc(1, sizeof **list);
    if (!grown) return PC_ENOMEM;
    *list = grown;
    grown[*n] = (struct Str){0};
    TRY(str_append(&grown[*n], text, len));
    ++*n;
    return PC_OK;
}

/* calibrate_support.h - for tests of head studies: a text, a small study, its heads. Each test program has its own copy. */
#ifndef PCOMP_CALIBRATE_SUPPORT_H
#define PCOMP_CALIBRATE_SUPPORT_H

#include "session_support.h"

#include "calibrate.h"

enum { LEN = 640, SINK = 4, RECENT = 32 };

static struct Str text;

static inline int make_text(void **state)
{
    (void)state;
    for (int i = 0; text.len < 16000; i++)
        if (str_appendf(&text, "In the year %d the miller of village %d wrote letter %d home. ",
                        1800 + i, i * 3 % 71, i * 7) < 0)
            return -1;
    return 0;
}

static inline int free_text(void **state)
{
    (void)state;
    str_free(&text);
    return 0;
}

static inline struct StudyOptions options(void)
{
    return (struct StudyOptions){.lens = {LEN},
                                 .n_lens = 1,
                                 .samples = 1,
                                 .held_out = 1,
                                 .passkeys = 3,
                                 .words = 3,
                                 .sink = SINK,
                                 .recent = RECENT,
                                 .seed = 7};
}

static inline struct Study open_study(struct Engine *e, struct StudyOptions o)
{
    struct Study st;
    must(study_open(&st, e, &o, text.data, text.len));
    return st;
}

static inline int n_heads(const struct Study *st)
{
    return st->shape.n_layers * st->shape.n_kv_heads;
}

static const struct SamplePlace first = {SAMPLE_PASSKEYS, false, 0};

#endif

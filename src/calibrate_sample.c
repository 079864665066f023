/* calibrate_sample.c - samples of the three kinds as token ids, each from the study's seed and its place alone.
 *
 *   passkeys  haystack with needles at ten depths, then for each question a tail of its own: the question, the
 *             answer; the model's chat template around it, as prompts have it. Every second needle is a
 *             code, whose answer the model gives (calibrate_answer.c); here it is room for one
 *   text      haystack; its last tokens are the tail
 *   echo      the same random tokens four times; the last time they are the tail
 *
 * Needles and answers are put together from tokens, so that a passkey has the same ones in both.
 */
#include "calibrate.h"

#include <string.h>

enum { TEXT_TAIL = 256, ECHO_TOKENS = 512, HAY_MIN = 128 };

void study_sample_free(struct StudySample *s)
{
    prompt_free(&s->prompt);
    mem_free(s->rows);
    mem_free(s->targets);
    mem_free(s->ask);
    *s = (struct StudySample){0};
}

static int add_text(const struct Study *st, const char *text, struct Tokens *out)
{
    return tokenizer_encode(st->e->tok, text, strlen(text), false, out);
}

static int add_tokens(struct Tokens *out, const int *ids, int n)
{
    for (int i = 0; i < n; i++) TRY(tokens_push(out, ids[i]));
    return PC_OK;
}

static uint64_t sample_seed(const struct Study *st, const struct SamplePlace *p)
{
    return passkey_draw(st->opt.seed, p->held_out ? 2 : 1, (uint64_t)p->index);
}

static int sample_len(const struct Study *st, const struct SamplePlace *p)
{
    return st->opt.lens[p->index % st->opt.n_lens];
}

static int add_bos(const struct Study *st, struct Tokens *out)
{
    const struct VocabSpec *v = tokenizer_spec(st->e->tok);
    return v->add_bos && v->bos_id >= 0 ? tokens_push(out, v->bos_id) : PC_OK;
}

static int alloc_rows(struct StudySample *s, int n)
{
    s->max_rows = n;
    s->rows = mem_alloc((size_t)n, sizeof *s->rows);
    s->targets = mem_alloc((size_t)n, sizeof *s->targets);
    s->ask = mem_alloc((size_t)n, sizeof *s->ask);
    return s->rows && s->targets && s->ask ? PC_OK : PC_ENOMEM;
}

void sample_rows(struct StudySample *s, const int *tail, int begin, int end, int ask)
{
    for (int t = begin; t < end; t++, s->n_rows++) {
        s->rows[s->n_rows] = t - 1;
        s->targets[s->n_rows] = tail[t];
        s->ask[s->n_rows] = ask;
    }
}

/* ==== The haystack ==== */

/* Where the part of the text that a place may use begins, and its tokens. */
static int text_part(const struct Study *st, const struct SamplePlace *p, int *n)
{
    int split = st->text.n - st->text.n / 4;
    *n = p->held_out ? st->text.n - split : split;
    return p->held_out ? split : 0;
}

/* n tokens from `at` on, round and round in the place's part. */
static int add_hay(const struct Study *st, const struct SamplePlace *p, int64_t at, int n,
                   struct Tokens *out)
{
    int room, begin = text_part(st, p, &room);
    for (int i = 0; i < n; i++) TRY(tokens_push(out, st->text.ids[begin + (int)((at + i) % room)]));
    return PC_OK;
}

static int64_t hay_start(const struct Study *st, const struct SamplePlace *p)
{
    int room;
    text_part(st, p, &room);
    return (int64_t)(passkey_draw(sample_seed(st, p), 0, 0) % (uint64_t)room);
}

/* ==== Passkeys ==== */

/* Tokens of one needle up to its words, of its words, and the prompt that asks for it. */
struct Fact {
    bool code; /* else a passkey */
    struct Tokens needle, words;
    struct Prompt ask;
};

static void facts_free(struct Fact *facts, int n)
{
    for (int i = 0; facts && i < n; i++) {
        tokens_free(&facts[i].needle);
        tokens_free(&facts[i].words);
        prompt_free(&facts[i].ask);
    }
    mem_free(facts);
}

/* The prompt that asks for it, as a user's would be made. */
static int ask_make(const struct Study *st, bool code, int key, struct Prompt *out)
{
    const struct Chat *chat = &st->e->chat;
    struct Str question = {0};
    int status;
    TRY_GOTO(code ? code_question(key, &question) : passkey_question(key, &question));
    if (chat->kind == CHAT_RAW) TRY_GOTO(str_appendf(&question, "\n"));
    struct PromptText text = {.context = "",
                              .question = question.data,
                              .answer_prefix = code ? "" : PASSKEY_LEAD,
                              .system = st->e->settings.system,
                              .chat = chat};
    status = prompt_make(st->e->tok, &text, out);
fail:
    str_free(&question);
    return status;
}

static int fact_make(const struct Study *st, uint64_t seed, int key, struct Fact *f)
{
    struct Str needle = {0}, words = {0};
    int status;
    TRY_GOTO(str_append(&needle, "\n\n", 2));
    TRY_GOTO(f->code ? code_needle(key, &needle) : passkey_needle(key, &needle));
    TRY_GOTO(f->code ? code_digits(seed, key, &words)
                     : passkey_words(seed, key, st->opt.words, &words));
    TRY_GOTO(add_text(st, needle.data, &f->needle));
    TRY_GOTO(add_text(st, words.data, &f->words));
    status = ask_make(st, f->code, key, &f->ask);
fail:
    str_free(&needle);
    str_free(&words);
    return status;
}

static int add_needle(struct StudySample *s, const struct Fact *f, int key,
                      const struct Tokens *gap)
{
    struct Tokens *c = &s->prompt.context;
    TRY(add_tokens(c, f->needle.ids, f->needle.n));
    s->needle[key].begin = s->prompt.prefix.n + c->n;
    TRY(add_tokens(c, f->words.ids, f->words.n));
    s->needle[key].end = s->prompt.prefix.n + c->n;
    return add_tokens(c, gap->ids, gap->n);
}

static int add_ask(struct StudySample *s, const struct Fact *f, int key)
{
    struct Tokens *t = &s->prompt.tail;
    s->own[key] = f->code;
    s->ask_begin[key] = t->n;
    TRY(add_tokens(t, f->ask.tail.ids, f->ask.tail.n));
    s->answer[key].begin = t->n;
    if (!f->code) TRY(add_tokens(t, f->words.ids, f->words.n));
    for (int i = 0; f->code && i < OWN_TOKENS; i++) TRY(tokens_push(t, f->words.ids[0]));
    s->answer[key].end = t->n;
    return PC_OK;
}

/* The haystack in pieces, a needle after each but the last. */
static int bury(const struct Study *st, const struct SamplePlace *p, const struct Fact *facts,
                int n_hay, const struct Tokens *gap, struct StudySample *s)
{
    double depths[PASSKEYS_MAX];
    int64_t start = hay_start(st, p);
    int at = 0, n = st->opt.passkeys;
    passkey_depths(sample_seed(st, p), n, depths);
    for (int i = 0; i <= n; i++) {
        int end = i < n ? (int)(depths[i] * n_hay) : n_hay;
        TRY(add_hay(st, p, start + at, end - at, &s->prompt.context));
        at = end;
        if (i < n) TRY(add_needle(s, &facts[i], i, gap));
    }
    return PC_OK;
}

static int fill_passkeys(const struct Study *st, const struct SamplePlace *p, struct Fact *facts,
                         const struct Tokens *gap, struct StudySample *s)
{
    int n = st->opt.passkeys, len = sample_len(st, p), buried = 0, rows = 0;
    s->n_asks = n;
    for (int i = 0; i < n; i++) {
        facts[i].code = i % 2;
        TRY(fact_make(st, sample_seed(st, p), i, &facts[i]));
        TRY(add_ask(s, &facts[i], i));
        buried += facts[i].needle.n + facts[i].words.n + gap->n;
        rows += s->answer[i].end - s->answer[i].begin;
    }
    s->ask_begin[n] = s->prompt.tail.n;
    TRY(add_tokens(&s->prompt.prefix, facts[0].ask.prefix.ids, facts[0].ask.prefix.n));
    int around = s->prompt.prefix.n + s->prompt.tail.n + buried;
    if (len - around < HAY_MIN)
        return err_set(PC_ERANGE,
                       "%d passkeys of %d words and their questions are %d tokens, which leave a "
                       "sample of %d too little text; give fewer --passkeys or --words, or a --len "
                       "of %d or more",
                       n, st->opt.words, around, len, around + HAY_MIN);
    TRY(bury(st, p, facts, len - around, gap, s));
    TRY(alloc_rows(s, rows));
    for (int i = 0; i < n; i++)
        if (!s->own[i]) sample_rows(s, s->prompt.tail.ids, s->answer[i].begin, s->answer[i].end, i);
    return PC_OK;
}

static int make_passkeys(const struct Study *st, const struct SamplePlace *p, struct StudySample *s)
{
    struct Tokens gap = {0};
    struct Fact *facts = mem_alloc((size_t)st->opt.passkeys, sizeof *facts);
    int status = facts ? add_text(st, "\n\n", &gap) : PC_ENOMEM;
    if (status == PC_OK) status = fill_passkeys(st, p, facts, &gap, s);
    facts_free(facts, st->opt.passkeys);
    tokens_free(&gap);
    return status;
}

/* ==== Text and echo ==== */

static int make_text(const struct Study *st, const struct SamplePlace *p, struct StudySample *s)
{
    int64_t start = hay_start(st, p);
    TRY(add_bos(st, &s->prompt.prefix));
    int len = sample_len(st, p), tail = len / 4 < TEXT_TAIL ? len / 4 : TEXT_TAIL,
        n = len - tail - s->prompt.prefix.n;
    TRY(add_hay(st, p, start, n, &s->prompt.context));
    TRY(add_hay(st, p, start + n, tail, &s->prompt.tail));
    TRY(alloc_rows(s, s->prompt.tail.n));
    s->n_asks = 1;
    s->ask_begin[1] = s->prompt.tail.n;
    sample_rows(s, s->prompt.tail.ids, 1, s->prompt.tail.n, 0);
    return PC_OK;
}

/* An ordinary token of the vocabulary. */
static int draw_token(const struct Study *st, uint64_t seed, uint64_t *at)
{
    const struct VocabSpec *v = tokenizer_spec(st->e->tok);
    for (;;) {
        int id = (int)(passkey_draw(seed, 1, (*at)++) % (uint64_t)v->n_tokens);
        if (v->types[id] == TOKEN_NORMAL) return id;
    }
}

static int make_echo(const struct Study *st, const struct SamplePlace *p, struct StudySample *s)
{
    TRY(add_bos(st, &s->prompt.prefix));
    int n = (sample_len(st, p) - s->prompt.prefix.n) / 4;
    if (n > ECHO_TOKENS) n = ECHO_TOKENS;
    uint64_t at = 0, seed = sample_seed(st, p);
    for (int i = 0; i < n; i++) TRY(tokens_push(&s->prompt.tail, draw_token(st, seed, &at)));
    for (int copy = 0; copy < 3; copy++) TRY(add_tokens(&s->prompt.context, s->prompt.tail.ids, n));
    TRY(alloc_rows(s, n));
    s->n_asks = 1;
    s->ask_begin[1] = n;
    sample_rows(s, s->prompt.tail.ids, 1, n, 0);
    return PC_OK;
}

static int make_kind(const struct Study *st, const struct SamplePlace *p, struct StudySample *s)
{
    if (p->kind == SAMPLE_ECHO) return make_echo(st, p, s);
    return p->kind == SAMPLE_TEXT ? make_text(st, p, s) : make_passkeys(st, p, s);
}

int study_sample_make(const struct Study *st, const struct SamplePlace *place,
                      struct StudySample *out)
{
    *out = (struct StudySample){0};
    TRY(make_kind(st, place, out));
    out->n_spelled = out->n_rows;
    return PC_OK;
}

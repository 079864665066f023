/* test_bias.c - attention bias of a model: what the observer sees against a forward pass of our own, scores, questions
 * made from a text, whole studies, and their files.
 */
#include "tests/unit/session_support.h"

#include "bias_page.h"
#include "session_bias.h"
#include "tests/unit/html_support.h"

enum { BYTES = 700, LONG = 2400, REGION = 20 };

static char text[LONG + 1]; /* most tests read its first BYTES */

/* Sentences of three-letter words, no two alike. */
static void fill_text(void)
{
    uint64_t state = 7;
    for (int i = 0; i < LONG; i++)
        text[i] = i % 4 == 3 ? ' ' : (char)('a' + next_number(&state) % 26);
    for (int i = 54; i < LONG; i += 56) text[i] = '.';
}

static struct BiasAsk ask(const char *answer)
{
    struct BiasAsk a = {
        .req = {.context = text, .context_len = BYTES, .question = "Which word is next to it?"},
        .answer = answer};
    return a;
}

static struct BiasProfile profile(const struct Engine *e)
{
    struct BiasProfile p;
    must(bias_open(&p, e->model.cfg.n_layers, e->model.cfg.n_kv_heads, REGION));
    return p;
}

/* Runs, and returns the chunks that were kept as bits. */
static uint64_t run_bias(struct Engine *e, const struct BiasAsk *a, struct BiasScore *score)
{
    struct Result r;
    uint64_t kept = 0;
    must(session_bias(e, a, score, &r));
    for (int c = 0; c < r.plan.n_chunks; c++) kept |= (uint64_t)r.chunks[c].kept << c;
    result_free(&r);
    return kept;
}

/* ==== What is seen ==== */

/* Every head's shares are one whole in every layer. */
static void check_whole(const struct BiasProfile *p, const char *what)
{
    for (int l = 0; l < p->n_layers; l++)
        for (int h = ALL_HEADS; h < p->n_heads; h++) {
            double all = 0;
            for (int i = 0; i < BIAS_PARTS; i++) all += bias_share(p, l, h, (enum BiasPart)i);
            if (!(fabs(all - 1) < 1e-4)) fail_msg("%s, layer %d, head %d: %.6f", what, l, h, all);
        }
}

/* Adds one chunk's attention from a plain forward pass. */
static void add_forward(struct Engine *e, const struct Prompt *p, const struct ChunkInfo *c,
                        int rows, struct BiasProfile *out)
{
    struct Tokens ids = join(p, c->begin, c->end);
    struct Forward f = forward(e, ids);
    double *mass = calloc((size_t)ids.n, sizeof *mass);
    int n = c->end - c->begin, all = rows * f.heads / f.kv_heads;
    float *mean = calloc((size_t)n, sizeof *mean);
    bias_view(out, &n, 1);
    for (int l = 0; l < LAYERS; l++)
        for (int h = 0; h < f.kv_heads; h++) {
            double prefix = 0, question = 0;
            brute_mass(&f, l, h, rows, mass);
            for (int j = 0; j < p->prefix.n; j++) prefix += mass[j] / all;
            for (int j = 0; j < n; j++) mean[j] = (float)(mass[p->prefix.n + j] / all);
            for (int j = p->prefix.n + n; j < ids.n; j++) question += mass[j] / all;
            bias_context(out, l, h, mean, n);
            bias_rest(out, l, h, prefix, question);
        }
    free(mean);
    free(mass);
    forward_free(&f);
    tokens_free(&ids);
}

static void same_profiles(const struct BiasProfile *a, const struct BiasProfile *b,
                          double tolerance)
{
    assert_int_equal(a->n_views, b->n_views);
    assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
    assert_memory_equal(a->class_tokens, b->class_tokens, sizeof a->class_tokens);
    for (int l = 0; l < a->n_layers; l++)
        for (int h = 0; h < a->n_heads; h++) {
            for (int i = 0; i < BIAS_PARTS; i++) {
                double off =
                    bias_share(a, l, h, (enum BiasPart)i) - bias_share(b, l, h, (enum BiasPart)i);
                if (!(fabs(off) < tolerance))
                    fail_msg("layer %d, head %d, part %d: off by %g", l, h, i, off);
            }
            const double *x = a->bin + (size_t)(l * a->n_heads + h) * BIAS_BINS,
                         *y = b->bin + (size_t)(l * a->n_heads + h) * BIAS_BINS;
            for (int i = 0; i < BIAS_BINS; i++)
                if (!(fabs(x[i] - y[i]) < tolerance * a->n_views))
                    fail_msg("layer %d, head %d, bin %d: %g and %g", l, h, i, x[i], y[i]);
        }
}

static double tolerance(const struct Engine *e)
{
    return e->settings.precision == PRECISION_F32 ? 1e-4 : 0.02;
}

/* Chunk by chunk: what a plain pass over prefix, chunk and question pays. */
static void check_local(struct Engine *e)
{
    struct BiasAsk a = ask(NULL);
    struct BiasProfile seen = profile(e), want = profile(e);
    struct BiasScore score;
    struct Prompt p = {0};
    struct Result r;
    e->settings.keep = 2;
    a.local = &seen;
    must(session_bias(e, &a, &score, &r));
    must(session_prompt(e, &a.req, &p));
    assert_int_equal(score.rows, 8);
    assert_true(r.plan.n_chunks > 4);
    for (int c = 0; c < r.plan.n_chunks; c++) add_forward(e, &p, &r.chunks[c], score.rows, &want);
    check_whole(&seen, "chunks");
    same_profiles(&seen, &want, tolerance(e));
    prompt_free(&p);
    result_free(&r);
    bias_close(&seen);
    bias_close(&want);
}

static void test_local(void **state)
{
    (void)state;
    fill_text();
    each_engine(check_local);
}

/* One chunk, all of it kept: the merged cache is the chunk (method.md 9.4, identity 1). */
static void check_merged(struct Engine *e)
{
    struct BiasAsk a = ask("");
    struct BiasProfile local = profile(e), merged = profile(e);
    struct BiasScore score;
    e->settings.chunk = BYTES;
    a.local = &local;
    a.merged = &merged;
    run_bias(e, &a, &score);
    same_profiles(&local, &merged, e->settings.precision == PRECISION_F32 ? 1e-3 : 0.02);
    bias_close(&local);
    bias_close(&merged);
}

static void test_merged(void **state)
{
    (void)state;
    fill_text();
    each_engine(check_merged);
}

/* Several chunks, capped: still one whole, though most tokens are gone. */
static void check_capped(struct Engine *e)
{
    for (int cap = 7; cap < 100; cap += 23) {
        struct BiasAsk a = ask("xyz");
        struct BiasProfile merged = profile(e);
        struct BiasScore score;
        e->settings.keep = 3;
        e->settings.kv_cap = cap;
        a.merged = &merged;
        run_bias(e, &a, &score);
        check_whole(&merged, "capped");
        assert_int_equal(merged.n_views, 1);
        assert_int_equal(merged.n_chunks, 3);
        bias_close(&merged);
    }
}

static void test_capped(void **state)
{
    (void)state;
    fill_text();
    each_engine(check_capped);
}

/* A rule of stage 1 shows in the merged cache: what it names gets nothing there any more, in its layers only. */
static void check_rule(struct Engine *e)
{
    struct BiasAsk a = ask("xyz");
    struct BiasProfile local = profile(e), merged = profile(e);
    struct BiasScore score;
    e->settings.keep = 3;
    add_rule(e, (struct CalibRule){CLASS_RECENT, 1, 1, 0, REGION, 8, 1});
    a.local = &local;
    a.merged = &merged;
    run_bias(e, &a, &score);
    for (int l = 0; l < LAYERS; l++) {
        assert_true(bias_share(&local, l, ALL_HEADS, PART_RECENT) > 0);
        assert_int_equal(bias_share(&merged, l, ALL_HEADS, PART_RECENT) > 0, l != 1);
        assert_true(bias_share(&merged, l, ALL_HEADS, PART_SINK) > 0);
    }
    check_whole(&merged, "with a rule");
    bias_close(&local);
    bias_close(&merged);
}

static void test_rule(void **state)
{
    (void)state;
    fill_text();
    each_engine(check_rule);
}

/* ==== Scores ==== */

/* A session that is watched gives the answer's first row bit by bit as one that is not. */
static void check_unchanged(struct Engine *e)
{
    struct BiasAsk a = ask("xyz");
    struct BiasProfile local = profile(e), merged = profile(e);
    struct BiasScore score;
    struct Result watched, plain;
    e->settings.keep = 2;
    a.local = &local;
    a.merged = &merged;
    must(session_bias(e, &a, &score, &watched));
    must(session_run(e, &a.req, &plain));
    assert_true(watched.logits_hash != 0 && watched.logits_hash == plain.logits_hash);
    result_free(&watched);
    result_free(&plain);
    bias_close(&local);
    bias_close(&merged);
}

static void test_unchanged(void **state)
{
    (void)state;
    fill_text();
    each_engine(check_unchanged);
}

/* One chunk: NLL of answer and question are those of one pass over everything. */
static void check_nll(struct Engine *e)
{
    static const char answer[] = " the end";
    struct BiasAsk a = ask(answer);
    struct BiasScore of_answer, of_question;
    struct Prompt p = {0};
    e->settings.chunk = BYTES;
    run_bias(e, &a, &of_answer);
    a.answer = "";
    run_bias(e, &a, &of_question);
    must(session_prompt(e, &a.req, &p));
    struct Tokens ids = join(&p, 0, p.context.n);
    int n = ids.n, begin = n - p.tail.n + p.score_begin, end = n - p.tail.n + p.score_end;
    must(tokenizer_encode(e->tok, answer, strlen(answer), false, &ids));
    struct Forward f = forward(e, ids);
    double want = 0, asked = 0;
    for (int t = n; t < ids.n; t++) want += (double)f.nll[t];
    for (int t = begin; t < end; t++) asked += (double)f.nll[t];
    double off = e->settings.precision == PRECISION_F32 ? 1e-3 : 0.05;
    assert_int_equal(of_answer.n_scored, ids.n - n);
    assert_int_equal(of_question.n_scored, end - begin);
    if (!(fabs(of_answer.nll - want / (ids.n - n)) < off))
        fail_msg("answer: %g, not %g", of_answer.nll, want / (ids.n - n));
    if (!(fabs(of_question.nll - asked / (end - begin)) < off))
        fail_msg("question: %g, not %g", of_question.nll, asked / (end - begin));
    forward_free(&f);
    tokens_free(&ids);
    prompt_free(&p);
}

static void test_nll(void **state)
{
    (void)state;
    fill_text();
    each_engine(check_nll);
}

/* Reading the winners alone gives what reading all gives, under rules too. */
static void check_kept(struct Engine *e)
{
    for (int rules = 0; rules < 2; rules++)
        for (int keep = 1; keep < 4; keep++) {
            struct BiasAsk a = ask(" xyz");
            struct BiasScore all, few;
            struct BiasProfile p = profile(e), q = profile(e);
            int list[8], n = 0;
            e->settings.keep = keep;
            a.merged = &p;
            uint64_t kept = run_bias(e, &a, &all);
            for (int c = 0; c < 64; c++)
                if (kept >> c & 1) list[n++] = c;
            assert_int_equal(n, keep);
            a.kept = list;
            a.n_kept = n;
            a.merged = &q;
            assert_true(run_bias(e, &a, &few) == kept);
            assert_true(fabs(all.nll - few.nll) < 1e-4);
            same_profiles(&p, &q, 1e-4);
            bias_close(&p);
            bias_close(&q);
            if (keep == 3) add_rule(e, (struct CalibRule){CLASS_MIDDLE, 0, 2, 0.01f, REGION, 8, 1});
        }
}

static void test_kept(void **state)
{
    (void)state;
    fill_text();
    each_engine(check_kept);
}

static void test_refused(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct BiasAsk a = ask("x");
    struct BiasScore score;
    struct Result r;
    fill_text();
    e->settings.method = METHOD_FULL;
    assert_int_equal(session_bias(e, &a, &score, &r), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "parallelcomp"));
    result_free(&r);
    engine_close(e);
}

/* Bytes held but for the engine's scratch. */
static size_t held(struct Engine *e)
{
    struct BatchShape least = {.rows = 1, .seqs = 1, .keys = 1, .head_rows = 1};
    must(e->be->reserve(e->dev, &least));
    return mem_in_use();
}

static bool stop_at_once(void *user)
{
    (void)user;
    return true;
}

static void test_stopped(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct BiasAsk a = ask("x");
    struct BiasScore score;
    struct Result r;
    fill_text();
    a.req.stop = stop_at_once;
    size_t before = held(e);
    assert_int_equal(session_bias(e, &a, &score, &r), PC_EINTR);
    result_free(&r);
    assert_int_equal(held(e), before);
    engine_close(e);
}

/* ==== Questions ==== */

static void test_items(void **state)
{
    (void)state;
    static const char prose[] =
        "CHAPTER I\n\nThe first sentence is quite long enough here. The second one follows right\n"
        "behind the first one. Short. A third sentence comes after the short one now! Is the\n"
        "fourth sentence really a question of its own? The same words stand here two times. The\n"
        "same words stand here two times. And the last sentence of them all ends without a mark";
    struct BiasItems items;
    must(items_make(prose, sizeof prose - 1, 8, &items));
    assert_int_equal(items.n, 3);
    assert_string_equal(items.items[0].question.data,
                        "Which sentence of the text comes right after this one? \"The first "
                        "sentence is quite long enough here.\"");
    assert_string_equal(items.items[0].answer.data,
                        "The second one follows right behind the first one.");
    assert_int_equal(items.items[0].at, strstr(prose, "The first") - prose);
    assert_string_equal(items.items[1].answer.data,
                        "Is the fourth sentence really a question of its own?");
    items_free(&items);
    must(items_make(prose, sizeof prose - 1, 2, &items));
    assert_int_equal(items.n, 2);
    items_free(&items);
    assert_int_equal(items_make("One sentence.", 13, 4, &items), PC_ERANGE);
    assert_non_null(strstr(err_text(), "-q"));
    items_free(&items);
    assert_int_equal(items_make("", 0, 4, &items), PC_ERANGE);
    items_free(&items);
}

static void test_own_questions(void **state)
{
    (void)state;
    static const char *const own[] = {"Who?", "Where was it?"};
    struct BiasItems items;
    must(items_take(own, 2, &items));
    assert_int_equal(items.n, 2);
    assert_string_equal(items.items[1].question.data, "Where was it?");
    assert_int_equal(items.items[1].answer.len, 0);
    items_free(&items);
    assert_int_equal(items_take(own, 1, &items), PC_ECONFIG);
    items_free(&items);
}

/* ==== Studies ==== */

static struct BiasStudy study(struct Engine *e, const struct BiasItems *items)
{
    return (struct BiasStudy){
        .engine = e, .req = {.context = text, .context_len = BYTES}, .items = items};
}

struct Files {
    struct Str page, figure, json;
};

static void make_files(const struct BiasStudy *s, struct Files *out)
{
    struct BiasPage page = {s, "<model> & \"co\"", "cpu", "book<1>.txt"};
    memset(out, 0, sizeof *out);
    must(bias_page(&page, &out->page));
    must(bias_figure(&page, &out->figure));
    must(bias_json(&page, &out->json));
}

static void free_files(struct Files *f)
{
    str_free(&f->page);
    str_free(&f->figure);
    str_free(&f->json);
}

static void check_files(const struct Files *f)
{
    const struct Str *files[] = {&f->page, &f->figure};
    for (int i = 0; i < 2; i++) {
        const char *data = files[i]->data;
        assert_int_equal(strlen(data), files[i]->len);
        assert_int_equal(utf8_invalid_at(data, files[i]->len), files[i]->len);
        assert_well_formed(data);
        assert_null(strstr(data, "nan"));
        assert_null(strstr(data, "inf<"));
        assert_null(strstr(data, "<script"));
        assert_int_equal(count(data, "64ths"), 0);
        assert_int_equal(count(data, "<path d=\"M"), 3 * LAYERS * BIAS_BINS);
    }
    assert_non_null(strstr(f->page.data, "&lt;model&gt; &amp; &quot;co&quot;"));
    assert_non_null(strstr(f->page.data, "book&lt;1&gt;.txt"));
    assert_int_equal(count(f->page.data, "href="), 0);
    assert_int_equal(count(f->figure.data, "xmlns=\"http://www.w3.org/2000/svg\""), 1);
    assert_non_null(strstr(f->json.data, "\"schema\":\"pcomp.bias.v1\""));
    assert_int_equal(count(f->json.data, "\"bin_density\""), 3 * LAYERS * (1 + 2));
}

static void check_arms(const struct BiasStudy *s)
{
    const struct BiasArm *arms[] = {&s->none, &s->paper, s->best};
    for (int i = 0; i < (s->best ? 3 : 2); i++)
        for (int h = 0; h < BIAS_HALVES; h++) {
            struct Paired x = study_paired(s, arms[i], (enum BiasHalf)h);
            assert_int_equal(x.n, (s->items->n + 1 - h) / 2);
            assert_true(isfinite(x.b) && x.b > 0);
        }
    for (int i = 0; i < s->n_tries; i++) {
        const struct BiasArm *t = &s->tries[i];
        for (int a = 0; a < t->n_rules; a++)
            for (int b = 0; b < a; b++)
                assert_false(t->rules[a].token_class == t->rules[b].token_class &&
                             t->rules[a].stage == t->rules[b].stage &&
                             t->rules[a].layer_lo <= t->rules[b].layer_hi &&
                             t->rules[b].layer_lo <= t->rules[a].layer_hi);
        assert_true(s->tries[i].ran[HALF_CHOOSE]);
        assert_int_equal(s->tries[i].ran[HALF_REPORT], &s->tries[i] == s->best);
        assert_true(study_paired(s, &s->tries[i], HALF_CHOOSE).diff >=
                    study_paired(s, s->best, HALF_CHOOSE).diff);
    }
}

/* What an arm says of each item, run by itself with all chunks read. */
static void check_direct(struct Engine *e, const struct BiasStudy *s, const struct BiasArm *arm)
{
    struct Settings before = e->settings;
    memcpy(e->settings.calib, arm->rules, sizeof arm->rules);
    e->settings.n_calib = arm->n_rules;
    for (int i = 0; i < s->items->n; i++) {
        struct BiasAsk a = ask(s->items->items[i].answer.data);
        struct BiasScore score;
        a.req.context_len = s->req.context_len;
        a.req.question = s->items->items[i].question.data;
        run_bias(e, &a, &score);
        if (!arm->ran[i % 2]) continue;
        if (!(fabs(score.nll - arm->nll[i]) < 1e-3))
            fail_msg("%s, item %d: %g, not %g", arm->name, i, arm->nll[i], score.nll);
    }
    e->settings = before;
}

/* The whole of it, twice: the same bytes; and the engine is left as it was. */
static void check_study(struct Engine *e, const struct BiasItems *items, bool answers)
{
    struct Files first, again;
    for (int i = 0; i < 2; i++) {
        struct BiasStudy s = study(e, items);
        must(bias_study_run(&s));
        assert_int_equal(e->settings.n_calib, 1);
        assert_non_null(s.own.nll);
        check_arms(&s);
        check_direct(e, &s, &s.none);
        check_direct(e, &s, &s.own);
        check_direct(e, &s, s.shown);
        for (int t = 0; t < s.n_tries && !answers; t++)
            assert_int_equal(s.tries[t].rules[0].stage, 1);
        for (int h = 0; h < BIAS_HALVES; h++) check_whole(&s.local[h], "local");
        check_whole(&s.after, "after");
        make_files(&s, i ? &again : &first);
        bias_study_close(&s);
    }
    check_files(&first);
    assert_string_equal(first.page.data, again.page.data);
    assert_string_equal(first.figure.data, again.figure.data);
    assert_string_equal(first.json.data, again.json.data);
    free_files(&first);
    free_files(&again);
}

static void test_study(void **state)
{
    (void)state;
    static const char *const own[] = {"Who was it?", "Where was it?", "When?"};
    struct Engine *e = open_engine("qwen2", PRECISION_INT16, 1);
    struct BiasItems items;
    fill_text();
    e->settings.keep = 2;
    add_rule(e, (struct CalibRule){CLASS_SINK, 0, 2, 0.01f, REGION, 8, 2});
    must(items_make(text, BYTES, 4, &items));
    assert_int_equal(items.n, 4);
    check_study(e, &items, true);
    items_free(&items);
    must(items_take(own, 3, &items));
    check_study(e, &items, false);
    items_free(&items);
    engine_close(e);
}

/* Many chunks in one cache: their outliers stand far above uniform, and there is something to choose from. */
static void test_choice(void **state)
{
    (void)state;
    int most = 0, joint = 0;
    fill_text();
    for (int a = 0; a < N_ARCHS; a++) {
        struct Engine *e = open_engine(archs[a], PRECISION_F32, 1);
        struct BiasItems items;
        e->settings.chunk = 300;
        e->settings.keep = KEEP_ALL;
        must(items_make(text, LONG, 6, &items));
        struct BiasStudy s = study(e, &items);
        s.req.context_len = LONG;
        must(bias_study_run(&s));
        check_arms(&s);
        for (int t = 0; t < s.n_tries; t++) check_direct(e, &s, &s.tries[t]);
        for (int t = 0; t < s.n_tries; t++) joint += s.tries[t].n_rules > 1;
        if (s.n_tries > most) most = s.n_tries;
        bias_study_close(&s);
        items_free(&items);
        engine_close(e);
    }
    print_message("# at most %d tries, %d of joined rules\n", most, joint);
    assert_true(most > 2);
    assert_true(joint > 0);
}

/* Some allocation of a study fails, early, late and in between: an error, and nothing is kept. */
static void test_study_faults(void **state)
{
    (void)state;
    struct Engine *e = open_engine("llama", PRECISION_F32, 1);
    struct BiasItems items;
    fill_text();
    e->settings.keep = 1;
    must(items_make(text, BYTES, 2, &items));
    size_t before = held(e);
    int failed = 0;
    for (long n = 1;; n += 1 + n / 8) {
        struct BiasStudy s = study(e, &items);
        mem_fail_after(n);
        int status = bias_study_run(&s);
        mem_fail_after(0);
        bias_study_close(&s);
        assert_int_equal(held(e), before);
        if (status == PC_OK) break;
        assert_int_equal(status, PC_ENOMEM);
        failed++;
    }
    assert_true(failed > 20);
    for (long n = 1; n < 12; n++) {
        struct BiasItems again;
        mem_fail_after(n);
        int status = items_make(text, BYTES, 4, &again);
        mem_fail_after(0);
        assert_true(status == PC_OK || status == PC_ENOMEM);
        items_free(&again);
        assert_int_equal(mem_in_use(), before);
    }
    items_free(&items);
    engine_close(e);
}

/* ==== Verdict and settings ==== */

enum { ITEMS = 8 };

/* A study that is over: arms with these differences on the two halves. */
struct Over {
    struct BiasStudy study;
    struct BiasItems items;
    struct BiasItem item[ITEMS];
    double none[ITEMS], tried[ITEMS];
};

static void make_over(struct Over *o, double choose, double report)
{
    memset(o, 0, sizeof *o);
    o->items = (struct BiasItems){o->item, ITEMS, ITEMS};
    o->study.items = &o->items;
    for (int i = 0; i < ITEMS; i++) {
        o->none[i] = 2 + i;
        o->tried[i] = o->none[i] + (i % 2 ? report : choose) * (1 + 0.1 * (i / 2));
    }
    o->study.after.n_layers = 30;
    o->study.n_tries = 1;
    o->study.best = &o->study.tries[0];
    o->study.none = (struct BiasArm){.name = "no rules", .nll = o->none, .ran = {true, true}};
    o->study.tries[0] = (struct BiasArm){.name = "tried",
                                         .rules = {{CLASS_SINK, 3, 9, 0.0625f, 100, 8, 1},
                                                   {CLASS_RECENT, 10, 14, 0.0078125f, 100, 8, 2}},
                                         .n_rules = 2,
                                         .nll = o->tried,
                                         .ran = {true, true}};
    struct Paired gain = study_paired(&o->study, o->study.best, HALF_CHOOSE);
    o->study.helps = paired_helps(&gain);
}

static void verdict_has(const struct Over *o, const char *part, bool helps)
{
    struct Str out = {0};
    must(bias_study_verdict(&o->study, &out));
    assert_int_equal(o->study.helps, helps);
    if (!strstr(out.data, part)) fail_msg("no '%s' in '%s'", part, out.data);
    str_free(&out);
}

static void test_verdict(void **state)
{
    (void)state;
    struct Over o;
    make_over(&o, -0.5, -0.4);
    verdict_has(&o, "Proposed: sink, layers 3-9, above 0.0625; recent, layers 10-14", true);
    verdict_has(&o, "The gain holds where it was not chosen.", true);
    verdict_has(&o, "better on 4 of 4 questions", true);
    make_over(&o, -0.5, 0.1);
    verdict_has(&o, "The gain does not hold", true);
    make_over(&o, 0.2, -0.4);
    verdict_has(&o, "No rule proposed: of 1 lists of rules tried none lowers", false);
    o.study.best = NULL;
    verdict_has(&o, "no class of tokens draws far above uniform", false);
}

/* The settings file is one that --config takes, and holds the rules to the bit. */
static void test_settings(void **state)
{
    (void)state;
    struct Over o;
    struct Settings set;
    struct Str out = {0};
    make_over(&o, -0.5, -0.5);
    must(bias_settings(&o.study, &out));
    settings_default(&set);
    must(settings_parse(&set, out.data, out.len, "calib.json"));
    assert_int_equal(set.calib_layers, 30);
    assert_int_equal(set.n_calib, 2);
    for (int i = 0; i < 2; i++) {
        const struct CalibRule *a = &set.calib[i], *b = &o.study.best->rules[i];
        assert_true(a->token_class == b->token_class && a->layer_lo == b->layer_lo &&
                    a->layer_hi == b->layer_hi && a->lambda == b->lambda &&
                    a->region == b->region && a->rows == b->rows && a->stage == b->stage);
    }
    str_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local),         cmocka_unit_test(test_merged),
        cmocka_unit_test(test_capped),        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_unchanged),     cmocka_unit_test(test_nll),
        cmocka_unit_test(test_kept),          cmocka_unit_test(test_refused),
        cmocka_unit_test(test_stopped),       cmocka_unit_test(test_items),
        cmocka_unit_test(test_own_questions), cmocka_unit_test(test_study),
        cmocka_unit_test(test_choice),        cmocka_unit_test(test_study_faults),
        cmocka_unit_test(test_verdict),       cmocka_unit_test(test_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

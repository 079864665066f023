/* bias_study.c - see bias_study.h. Every arm answers the same questions from the same chunks; what differs is the
 * cache. So arms are compared pair by pair, and only the first reads the whole text for each question.
 *
 * Many rules are tried on the choosing half, and the best of many looks better than it is: hence the other half, which
 * has no say in the choice.
 */
#include "bias_study.h"

#include "session_bias.h"

#include <stdio.h>
#include <string.h>

/* As the paper has it, but no more than a quarter of a chunk. */
enum { REGION = 100 };

static int n_items(const struct BiasStudy *s)
{
    return s->items->n;
}

static enum BiasHalf half_of(int item)
{
    return item % 2 ? HALF_REPORT : HALF_CHOOSE;
}

static void say(const struct BiasStudy *s, const char *text)
{
    if (s->say) s->say(s->req.user, text);
}

/* ==== One run ==== */

static int configure(struct BiasStudy *s, const struct BiasArm *arm)
{
    struct Settings set = s->settings;
    memcpy(set.calib, arm->rules, sizeof set.calib);
    set.n_calib = arm->n_rules;
    set.calib_layers = arm->layers;
    return engine_configure(s->engine, &set);
}

static struct BiasAsk ask_of(const struct BiasStudy *s, int item)
{
    struct BiasAsk ask = {.req = s->req, .answer = s->items->items[item].answer.data};
    ask.req.question = s->items->items[item].question.data;
    return ask;
}

/* Notes which chunks won, and whether the one with the sentence is among them. */
static int note_kept(struct BiasStudy *s, int item, const struct Result *r)
{
    struct BiasSeen *seen = &s->seen[item];
    size_t at = s->items->items[item].at;
    seen->n_chunks = r->plan.n_chunks;
    seen->kept = mem_alloc((size_t)r->plan.n_chunks, sizeof *seen->kept);
    if (!seen->kept) return PC_ENOMEM;
    for (int c = 0; c < r->plan.n_chunks; c++) {
        const struct ChunkInfo *info = &r->chunks[c];
        if (!info->kept) continue;
        seen->kept[seen->n_kept++] = c;
        seen->hit |= at >= info->byte_begin && at < info->byte_end;
    }
    return PC_OK;
}

static int measure_item(struct BiasStudy *s, int item)
{
    struct BiasAsk ask = ask_of(s, item);
    struct BiasScore score;
    struct Result r;
    ask.local = &s->local[half_of(item)];
    ask.merged = &s->merged[half_of(item)];
    int status = session_bias(s->engine, &ask, &score, &r);
    if (status == PC_OK) status = note_kept(s, item, &r);
    s->none.nll[item] = score.nll;
    if (item == 0) s->plan = r.plan;
    if (item == 0) s->rows = score.rows;
    result_free(&r);
    return status;
}

static int run_item(struct BiasStudy *s, struct BiasArm *arm, int item, struct BiasProfile *merged)
{
    struct BiasAsk ask = ask_of(s, item);
    struct BiasScore score;
    struct Result r;
    ask.kept = s->seen[item].kept;
    ask.n_kept = s->seen[item].n_kept;
    ask.merged = merged;
    int status = session_bias(s->engine, &ask, &score, &r);
    arm->nll[item] = score.nll;
    result_free(&r);
    return status;
}

/* One arm over one half. merged: a profile to add to, or NULL. */
static int run_half(struct BiasStudy *s, struct BiasArm *arm, enum BiasHalf half,
                    struct BiasProfile *merged)
{
    struct Str text = {0};
    int status = str_appendf(&text, "%s on the %s half: ", arm->name,
                             half == HALF_CHOOSE ? "choosing" : "reported");
    if (status == PC_OK) status = arm_rules_text(arm, &text);
    if (status == PC_OK) say(s, text.data);
    str_free(&text);
    if (status == PC_OK) status = configure(s, arm);
    for (int i = half; i < n_items(s) && status == PC_OK; i += BIAS_HALVES)
        status = run_item(s, arm, i, merged);
    arm->ran[half] = status == PC_OK;
    return status;
}

/* ==== Measurement ==== */

static int open_arm(const struct BiasStudy *s, struct BiasArm *arm, const char *name)
{
    arm->name = name;
    arm->nll = mem_alloc((size_t)n_items(s), sizeof *arm->nll);
    return arm->nll ? PC_OK : PC_ENOMEM;
}

/* Tokens at either end of a chunk that are its sink and its recent ones. */
static int region_of(const struct BiasStudy *s)
{
    int quarter = s->plan.chunk_tokens / 4;
    return quarter < 1 ? 1 : quarter < REGION ? quarter : REGION;
}

static int bias_study_open(struct BiasStudy *s)
{
    const struct ModelConfig *m = &engine_model(s->engine)->cfg;
    struct BiasAsk ask = ask_of(s, 0);
    s->settings = *engine_settings(s->engine);
    s->seen = mem_alloc((size_t)n_items(s), sizeof *s->seen);
    if (!s->seen) return PC_ENOMEM;
    TRY(open_arm(s, &s->none, "no rules"));
    TRY(open_arm(s, &s->paper, "the paper's preset"));
    TRY(configure(s, &s->none));
    TRY(session_plan(s->engine, &ask.req, &s->plan));
    for (int h = 0; h < BIAS_HALVES; h++) {
        TRY(bias_open(&s->local[h], m->n_layers, m->n_kv_heads, region_of(s)));
        TRY(bias_open(&s->merged[h], m->n_layers, m->n_kv_heads, region_of(s)));
    }
    TRY(bias_open(&s->after, m->n_layers, m->n_kv_heads, region_of(s)));
    s->paper.n_rules = bias_paper_rules(m->n_layers, s->paper.rules);
    if (s->settings.n_calib == 0) return PC_OK;
    TRY(open_arm(s, &s->own, "own rules"));
    memcpy(s->own.rules, s->settings.calib, sizeof s->own.rules);
    s->own.n_rules = s->settings.n_calib;
    s->own.layers = s->settings.calib_layers;
    return PC_OK;
}

static int measure(struct BiasStudy *s)
{
    for (int i = 0; i < n_items(s); i++) {
        char text[64];
        snprintf(text, sizeof text, "measuring, question %d of %d", i + 1, n_items(s));
        say(s, text);
        TRY(measure_item(s, i));
    }
    s->none.ran[HALF_CHOOSE] = s->none.ran[HALF_REPORT] = true;
    return PC_OK;
}

/* ==== Choice ==== */

struct Paired study_paired(const struct BiasStudy *s, const struct BiasArm *arm, enum BiasHalf half)
{
    double a[(STUDY_ITEMS_MAX + 1) / 2], b[(STUDY_ITEMS_MAX + 1) / 2];
    int n = 0;
    for (int i = half; arm->ran[half] && i < n_items(s); i += BIAS_HALVES, n++) {
        a[n] = s->none.nll[i];
        b[n] = arm->nll[i];
    }
    return paired(a, b, n);
}

static int try_rules(struct BiasStudy *s, const struct CalibRule *rules, int n)
{
    struct BiasArm *arm = &s->tries[s->n_tries++];
    TRY(open_arm(s, arm, "tried"));
    memcpy(arm->rules, rules, sizeof *rules * (size_t)n);
    arm->n_rules = n;
    return run_half(s, arm, HALF_CHOOSE, NULL);
}

/* Rules of stage 2 act behind the question: without an answer to score nothing shows them. */
static bool has_answers(const struct BiasStudy *s)
{
    return s->items->items[0].answer.len > 0;
}

static int try_singles(struct BiasStudy *s)
{
    struct CalibRule rules[TRIES_LOCAL + TRIES_MERGED];
    int n = bias_propose(&s->local[HALF_CHOOSE], s->rows, 1, rules, TRIES_LOCAL);
    if (has_answers(s))
        n += bias_propose(&s->merged[HALF_CHOOSE], s->rows, 2, rules + n, TRIES_MERGED);
    for (int i = 0; i < n; i++) TRY(try_rules(s, &rules[i], 1));
    return PC_OK;
}

static struct BiasArm *best_try(struct BiasStudy *s)
{
    struct BiasArm *best = NULL;
    double least = 0;
    for (int i = 0; i < s->n_tries; i++) {
        double diff = study_paired(s, &s->tries[i], HALF_CHOOSE).diff;
        if (best && diff >= least) continue;
        best = &s->tries[i];
        least = diff;
    }
    return best;
}

/* The single rule that helps most among those that are not yet in the list; NULL when none is left. */
static const struct CalibRule *next_rule(const struct BiasStudy *s, int n_singles, const bool *used)
{
    const struct CalibRule *next = NULL;
    double least = 0;
    for (int i = 0; i < n_singles; i++) {
        double diff = study_paired(s, &s->tries[i], HALF_CHOOSE).diff;
        if (used[i] || diff >= least) continue;
        next = s->tries[i].rules;
        least = diff;
    }
    return next;
}

/* Whether two rules speak of the same tokens: joined, they are no more than the wider one. */
static bool overlaps(const struct CalibRule *a, const struct CalibRule *b)
{
    return a->token_class == b->token_class && a->stage == b->stage && a->layer_lo <= b->layer_hi &&
           b->layer_lo <= a->layer_hi;
}

/* Single rules that help, joined one after another as long as that helps more. */
static int try_joint(struct BiasStudy *s)
{
    struct CalibRule rules[1 + TRIES_JOINT];
    bool used[TRIES_MAX] = {false};
    int n_singles = s->n_tries, n = 0;
    for (int t = 0; t < 1 + TRIES_JOINT; t++) {
        const struct CalibRule *next = next_rule(s, n_singles, used);
        if (!next) return PC_OK;
        for (int i = 0; i < n_singles; i++) used[i] |= overlaps(s->tries[i].rules, next);
        rules[n++] = *next;
        if (n == 1) continue;
        double before = study_paired(s, best_try(s), HALF_CHOOSE).diff;
        TRY(try_rules(s, rules, n));
        if (study_paired(s, &s->tries[s->n_tries - 1], HALF_CHOOSE).diff >= before) n--;
    }
    return PC_OK;
}

/* ==== Report ==== */

static int judge(struct BiasStudy *s)
{
    s->best = best_try(s);
    if (s->best) {
        struct Paired gain = study_paired(s, s->best, HALF_CHOOSE);
        s->helps = paired_helps(&gain);
    }
    s->shown = s->best ? s->best : &s->paper;
    for (int h = 0; h < BIAS_HALVES; h++) {
        bool report = h == HALF_REPORT;
        TRY(run_half(s, &s->paper, (enum BiasHalf)h, report && !s->best ? &s->after : NULL));
        if (s->own.nll) TRY(run_half(s, &s->own, (enum BiasHalf)h, NULL));
    }
    return s->best ? run_half(s, s->best, HALF_REPORT, &s->after) : PC_OK;
}

int bias_study_run(struct BiasStudy *s)
{
    int status = bias_study_open(s);
    if (status == PC_OK) status = measure(s);
    if (status == PC_OK) status = try_singles(s);
    if (status == PC_OK) status = try_joint(s);
    if (status == PC_OK) status = judge(s);
    int restored = engine_configure(s->engine, &s->settings);
    return status < 0 ? status : restored;
}

void bias_study_close(struct BiasStudy *s)
{
    for (int h = 0; h < BIAS_HALVES; h++) {
        bias_close(&s->local[h]);
        bias_close(&s->merged[h]);
    }
    bias_close(&s->after);
    for (int i = 0; s->seen && i < n_items(s); i++) mem_free(s->seen[i].kept);
    mem_free(s->seen);
    for (int i = 0; i < TRIES_MAX; i++) mem_free(s->tries[i].nll);
    mem_free(s->none.nll);
    mem_free(s->paper.nll);
    mem_free(s->own.nll);
    s->n_tries = 0;
}

/* ==== Words ==== */

int arm_rules_text(const struct BiasArm *arm, struct Str *out)
{
    if (arm->n_rules == 0) return str_appendf(out, "none");
    for (int i = 0; i < arm->n_rules; i++) {
        char text[96];
        bias_rule_text(&arm->rules[i], text, sizeof text);
        TRY(str_appendf(out, "%s%s", i ? "; " : "", text));
    }
    return PC_OK;
}

static int paired_text(struct Str *out, const struct Paired *x)
{
    return str_appendf(out,
                       "%+.4f nats a token (standard error %.4f; better on %d of %d questions)",
                       x->diff, x->n > 1 ? x->error : 0, x->n_better, x->n);
}

int bias_study_verdict(const struct BiasStudy *s, struct Str *out)
{
    if (!s->best)
        return str_appendf(out, "No rule proposed: no class of tokens draws far above uniform "
                                "attention in any band of layers.");
    struct Paired chose = study_paired(s, s->best, HALF_CHOOSE),
                  report = study_paired(s, s->best, HALF_REPORT);
    TRY(s->helps
            ? str_appendf(out, "Proposed: ")
            : str_appendf(out,
                          "No rule proposed: of %d lists of rules tried none lowers the NLL on the "
                          "choosing half by more than twice its standard error. The best: ",
                          s->n_tries));
    TRY(arm_rules_text(s->best, out));
    TRY(str_appendf(out, ". On the choosing half "));
    TRY(paired_text(out, &chose));
    TRY(str_appendf(out, "; on the other half "));
    TRY(paired_text(out, &report));
    if (!s->helps) return str_appendf(out, ".");
    return str_appendf(out, paired_helps(&report)
                                ? ". The gain holds where it was not chosen."
                                : ". The gain does not hold where it was not chosen: do not use "
                                  "these rules without a measurement of your own.");
}

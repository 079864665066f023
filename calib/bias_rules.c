/* bias_rules.c - rules from a profile, and the arithmetic that judges them.
 *
 * As the paper does (section 5.4, tables 6 and 8), the depth of the model is cut into four bands, and a rule speaks of
 * one class in one band. Unlike there, the threshold is not set by hand: it is the highest power of two above which
 * the tokens of the class hold a part of some layer's attention, so that a rule takes the few tokens that draw far
 * more than their due, and a second one, lower, takes half of what the class draws. A class whose tokens all get about
 * what uniform attention would give them makes no rule.
 */
#include "bias_rules.h"

#include "attn_calib.h"

#include <math.h>
#include <stdio.h>

/* A token draws far above uniform from so many times its due on; a layer draws from such a share of its attention on. */
static const double FAR_ABOVE = 8, DRAWS = 1.0 / 32;

int bias_paper_rules(int n_layers, struct CalibRule rules[PAPER_RULES])
{
    static const struct CalibRule paper[PAPER_RULES] = {
        {CLASS_RECENT, 9, 16, 0.1f, 100, 1, 1},
        {CLASS_MIDDLE, 1, 8, 0.1f, 100, 1, 1},
        {CLASS_SINK, 24, 31, 0.1f, 100, 1, 1},
    };
    int n = 0;
    for (int i = 0; i < PAPER_RULES; i++) {
        struct CalibRule rule = paper[i];
        if (calib_scale(&rule, 32, n_layers)) rules[n++] = rule;
    }
    return n;
}

/* ==== Proposal ==== */

/* Mean number of context tokens under one softmax. */
static double view_tokens(const struct BiasProfile *p)
{
    double n = p->class_tokens[0] + p->class_tokens[1] + p->class_tokens[2];
    return p->n_views ? n / p->n_views : 0;
}

/* Attention that a rule takes, summed over its layers. */
static double taken(const struct BiasProfile *p, const struct CalibRule *rule)
{
    int step = (int)lround(-log2((double)rule->lambda)) - 1;
    double sum = 0;
    for (int l = rule->layer_lo; l <= rule->layer_hi; l++)
        sum += bias_above(p, l, rule->token_class, step);
    return sum;
}

/* Narrows [*lo, *hi] to its first and last layer that draws above this step. False when none does. */
static bool drawing(const struct BiasProfile *p, enum TokenClass c, int step, int *lo, int *hi)
{
    while (*lo <= *hi && bias_above(p, *lo, c, step) < DRAWS) (*lo)++;
    while (*hi >= *lo && bias_above(p, *hi, c, step) < DRAWS) (*hi)--;
    return *lo <= *hi;
}

/* Attention on all tokens of the rule's class in its layers. */
static double drawn(const struct BiasProfile *p, const struct CalibRule *rule)
{
    double sum = 0;
    for (int l = rule->layer_lo; l <= rule->layer_hi; l++)
        sum += bias_share(p, l, ALL_HEADS, (enum BiasPart)rule->token_class);
    return sum;
}

/* Whether a rule takes half of what its class draws in its layers. */
static bool takes_half(const struct BiasProfile *p, const struct CalibRule *rule)
{
    return taken(p, rule) >= drawn(p, rule) / 2;
}

/* The sharp rule of one class and band, and the wide one where that is another. Returns how many, up to 2. */
static int propose_band(const struct BiasProfile *p, struct CalibRule base, struct CalibRule *out)
{
    double least = view_tokens(p) > 0 ? FAR_ABOVE / view_tokens(p) : 1;
    int n = 0;
    for (int step = 0; step < BIAS_STEPS && (double)bias_lambda(step) >= least; step++) {
        struct CalibRule rule = base;
        rule.lambda = bias_lambda(step);
        if (!drawing(p, base.token_class, step, &rule.layer_lo, &rule.layer_hi)) continue;
        bool half = takes_half(p, &rule);
        if (n == 0 || half) out[n++] = rule;
        if (half) break;
    }
    return n;
}

/* Puts a rule where it belongs among n in falling order of what they take; equal ones stay in order. */
static void insert(const struct BiasProfile *p, struct CalibRule *rules, int n,
                   struct CalibRule rule)
{
    int at = n;
    for (; at > 0 && taken(p, &rules[at - 1]) < taken(p, &rule); at--) rules[at] = rules[at - 1];
    rules[at] = rule;
}

int bias_propose(const struct BiasProfile *p, int rows, int stage, struct CalibRule *rules, int max)
{
    struct CalibRule all[BIAS_RULES_MAX], two[2];
    int n = 0;
    for (int c = 0; c < BIAS_CLASSES; c++)
        for (int b = 0; b < BIAS_BANDS; b++) {
            struct CalibRule base = {.token_class = (enum TokenClass)c,
                                     .layer_lo = b * p->n_layers / BIAS_BANDS,
                                     .layer_hi = (b + 1) * p->n_layers / BIAS_BANDS - 1,
                                     .region = p->region,
                                     .rows = rows,
                                     .stage = stage};
            int more = propose_band(p, base, two);
            for (int i = 0; i < more; i++) insert(p, all, n++, two[i]);
        }
    if (n > max) n = max;
    for (int i = 0; i < n; i++) rules[i] = all[i];
    return n;
}

/* ==== Judgement ==== */

struct Paired paired(const double *a, const double *b, int n)
{
    struct Paired x = {.n = n, .error = INFINITY};
    double squares = 0;
    for (int i = 0; i < n; i++) {
        x.a += a[i] / n;
        x.b += b[i] / n;
        x.diff += (b[i] - a[i]) / n;
        x.n_better += b[i] < a[i];
    }
    for (int i = 0; i < n; i++) squares += (b[i] - a[i] - x.diff) * (b[i] - a[i] - x.diff);
    if (n > 1) x.error = sqrt(squares / (n - 1) / n);
    return x;
}

bool paired_helps(const struct Paired *x)
{
    return x->n > 1 && x->diff < 0 && -x->diff > 2 * x->error;
}

void bias_rule_text(const struct CalibRule *rule, char *text, size_t room)
{
    static const char *const names[BIAS_CLASSES] = {"sink", "middle", "recent"};
    snprintf(text, room, "%s, layers %d-%d, above %.4g%s", names[rule->token_class], rule->layer_lo,
             rule->layer_hi, (double)rule->lambda, rule->stage == 2 ? ", merged cache" : "");
}

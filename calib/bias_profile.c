/* bias_profile.c - attention bias as numbers: sums over views, and what is read off them.
 *
 * ParallelComp, section 4: attention over a chunk piles up at its first tokens (sink), its last (recent), in the
 * middle, or nowhere, and which of these differs by layer and head. Chunks differ in length, so places are 64ths of
 * a chunk, and everything is set against the tokens that lie there: a class of few tokens that gets little attention
 * may still draw far more than its due.
 */
#include "bias_profile.h"

#include "attn_calib.h"

#include <math.h>

int bias_open(struct BiasProfile *p, int n_layers, int n_heads, int region)
{
    size_t layers = (size_t)n_layers, heads = layers * (size_t)n_heads;
    *p = (struct BiasProfile){.n_layers = n_layers, .n_heads = n_heads, .region = region};
    p->bin = mem_alloc(heads * BIAS_BINS, sizeof *p->bin);
    p->part = mem_alloc(heads * BIAS_PARTS, sizeof *p->part);
    p->above = mem_alloc(layers * BIAS_CLASSES * BIAS_STEPS, sizeof *p->above);
    return p->bin && p->part && p->above ? PC_OK : PC_ENOMEM;
}

void bias_close(struct BiasProfile *p)
{
    mem_free(p->bin);
    mem_free(p->part);
    mem_free(p->above);
    *p = (struct BiasProfile){0};
}

/* ==== Sums ==== */

static int bin_of(int index, int n)
{
    return (int)((int64_t)index * BIAS_BINS / n);
}

static size_t head_at(const struct BiasProfile *p, int layer, int head)
{
    return (size_t)layer * (size_t)p->n_heads + (size_t)head;
}

float bias_lambda(int step)
{
    return ldexpf(1, -(step + 1));
}

void bias_view(struct BiasProfile *p, const int *len, int n_chunks)
{
    p->n_views++;
    p->n_chunks += n_chunks;
    for (int c = 0; c < n_chunks; c++)
        for (int j = 0; j < len[c]; j++) {
            p->tokens[bin_of(j, len[c])]++;
            p->class_tokens[calib_class(j, len[c], p->region)]++;
        }
}

void bias_context(struct BiasProfile *p, int layer, int head, const float *mean, int n)
{
    double *bin = p->bin + head_at(p, layer, head) * BIAS_BINS;
    double *part = p->part + head_at(p, layer, head) * BIAS_PARTS;
    for (int j = 0; j < n; j++) {
        enum TokenClass c = calib_class(j, n, p->region);
        double *above = p->above + ((size_t)layer * BIAS_CLASSES + c) * BIAS_STEPS;
        bin[bin_of(j, n)] += (double)mean[j];
        part[c] += (double)mean[j];
        for (int s = BIAS_STEPS - 1; s >= 0 && mean[j] > bias_lambda(s); s--)
            above[s] += (double)mean[j];
    }
}

void bias_rest(struct BiasProfile *p, int layer, int head, double prefix, double question)
{
    double *part = p->part + head_at(p, layer, head) * BIAS_PARTS;
    part[PART_PREFIX] += prefix;
    part[PART_QUESTION] += question;
}

/* ==== What they say ==== */

/* Of `of` numbers a head, the sum of those in [begin, end) over the head or the layer's heads. */
static double head_sum(const struct BiasProfile *p, const double *x, int of, int layer, int head,
                       int begin, int end)
{
    int first = head == ALL_HEADS ? 0 : head, last = head == ALL_HEADS ? p->n_heads - 1 : head;
    double sum = 0;
    for (int h = first; h <= last; h++)
        for (int i = begin; i < end; i++) sum += x[head_at(p, layer, h) * (size_t)of + (size_t)i];
    return sum;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

double bias_share(const struct BiasProfile *p, int layer, int head, enum BiasPart part)
{
    double heads = head == ALL_HEADS ? p->n_heads : 1;
    return ratio(head_sum(p, p->part, BIAS_PARTS, layer, head, part, part + 1), heads * p->n_views);
}

static double all_tokens(const struct BiasProfile *p)
{
    return p->class_tokens[0] + p->class_tokens[1] + p->class_tokens[2];
}

static double context_sum(const struct BiasProfile *p, int layer, int head)
{
    return head_sum(p, p->part, BIAS_PARTS, layer, head, 0, BIAS_CLASSES);
}

double bias_density(const struct BiasProfile *p, int layer, int head, enum TokenClass c)
{
    double mass = head_sum(p, p->part, BIAS_PARTS, layer, head, (int)c, (int)c + 1);
    return ratio(ratio(mass, p->class_tokens[c]),
                 ratio(context_sum(p, layer, head), all_tokens(p)));
}

double bias_bin_density(const struct BiasProfile *p, int layer, int head, int bin)
{
    double mass = head_sum(p, p->bin, BIAS_BINS, layer, head, bin, bin + 1);
    return ratio(ratio(mass, p->tokens[bin]), ratio(context_sum(p, layer, head), all_tokens(p)));
}

double bias_above(const struct BiasProfile *p, int layer, enum TokenClass c, int step)
{
    double sum = p->above[((size_t)layer * BIAS_CLASSES + c) * BIAS_STEPS + (size_t)step];
    return ratio(sum, (double)p->n_heads * p->n_views);
}

enum BiasShape bias_shape(const double density[BIAS_CLASSES])
{
    const double far = 2;
    double sink = density[CLASS_SINK], middle = density[CLASS_MIDDLE],
           recent = density[CLASS_RECENT];
    if (sink >= far && recent >= far) return SHAPE_U;
    if (sink >= far) return SHAPE_SINK;
    if (recent >= far) return SHAPE_RECENT;
    return middle > 0 && middle >= far * fmax(sink, recent) ? SHAPE_MOUNTAIN : SHAPE_UNIFORM;
}

enum BiasShape bias_shape_of(const struct BiasProfile *p, int layer, int head)
{
    double density[BIAS_CLASSES];
    for (int c = 0; c < BIAS_CLASSES; c++)
        density[c] = bias_density(p, layer, head, (enum TokenClass)c);
    return bias_shape(density);
}

const char *bias_shape_name(enum BiasShape shape)
{
    static const char *const names[BIAS_SHAPES] = {"U", "sink-heavy", "recent-heavy", "mountain",
                                                   "uniform"};
    return names[shape];
}

/* bias_profile.h - where the question's last rows look: by layer, KV head, class of token and place in the chunk. */
#ifndef PCOMP_BIAS_PROFILE_H
#define PCOMP_BIAS_PROFILE_H

#include "config.h"

enum { BIAS_BINS = 64, BIAS_STEPS = 16, BIAS_CLASSES = 3, ALL_HEADS = -1 };

/* What attention can fall on: the classes of enum TokenClass, and what no rule reaches. */
enum BiasPart { PART_SINK, PART_MIDDLE, PART_RECENT, PART_PREFIX, PART_QUESTION, BIAS_PARTS };

/* Shapes of attention over a chunk (ParallelComp, section 4: U, mountain, uniform) and the two halves of a U. */
enum BiasShape { SHAPE_U, SHAPE_SINK, SHAPE_RECENT, SHAPE_MOUNTAIN, SHAPE_UNIFORM, BIAS_SHAPES };

/* Sums over views. A view is one softmax over all that a head sees: a chunk with the question, or the merged cache. */
struct BiasProfile {
    int n_layers, n_heads; /* n_heads: KV heads of a layer */
    int region;            /* tokens at either end that count as sink or recent */
    int n_views;
    int n_chunks;                      /* chunks in all views */
    double tokens[BIAS_BINS];          /* context tokens that fell into each bin */
    double class_tokens[BIAS_CLASSES]; /* and into each class */
    double *bin;  /* [n_layers, n_heads, BIAS_BINS] attention on each 64th of a chunk */
    double *part; /* [n_layers, n_heads, BIAS_PARTS] its sum over the parts is n_views */
    double *
        above; /* [n_layers, BIAS_CLASSES, BIAS_STEPS] attention on tokens that draw more than 2^-(step + 1) each */
};

/* An empty profile, the caller's: bias_close, also after an error. */
int bias_open(struct BiasProfile *p, int n_layers, int n_heads, int region);
void bias_close(struct BiasProfile *p);

/* Counts one view of n_chunks chunks with len[n_chunks] context tokens each: once for all heads. */
void bias_view(struct BiasProfile *p, const int *len, int n_chunks);
/* What one head pays to the n context tokens of a chunk of that view: mean [n] f32, averaged over rows and the
 * group's query heads; 0 for a token that is not in the cache. */
void bias_context(struct BiasProfile *p, int layer, int head, const float *mean, int n);
/* And to what is no context. */
void bias_rest(struct BiasProfile *p, int layer, int head, double prefix, double question);

/* Share of all attention of a head, or of ALL_HEADS of the layer; 0 without views. */
double bias_share(const struct BiasProfile *p, int layer, int head, enum BiasPart part);
/* Attention a token of a class, or of a bin, gets, over that of a context token on average: 1 is uniform. */
double bias_density(const struct BiasProfile *p, int layer, int head, enum TokenClass c);
double bias_bin_density(const struct BiasProfile *p, int layer, int head, int bin);
/* Share of a layer's attention on the tokens of a class that draw more than bias_lambda(step) each. */
double bias_above(const struct BiasProfile *p, int layer, enum TokenClass c, int step);
float bias_lambda(int step);

/* An end is heavy from twice the uniform density on; the middle is a mountain from twice that of both ends on. */
enum BiasShape bias_shape(const double density[BIAS_CLASSES]);
enum BiasShape bias_shape_of(const struct BiasProfile *p, int layer, int head);
/* "U", "sink-heavy", "recent-heavy", "mountain", "uniform" */
const char *bias_shape_name(enum BiasShape shape);

#endif

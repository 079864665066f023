/* bias_svg.h - drawings of a bias profile: groups of SVG on a canvas BIAS_WIDTH wide, from y = 0 down. Numbers only, no
 * text of the data. Colours are those of HTML_STYLE; whatever they say is also a letter, a place or a tooltip.
 */
#ifndef PCOMP_BIAS_SVG_H
#define PCOMP_BIAS_SVG_H

#include "calib/bias_profile.h"

enum { BIAS_WIDTH = 1000 };

/* Layer by place in the chunk: attention a token over that of a context token on average. */
int bias_heat(struct Str *out, const struct BiasProfile *p);
int bias_heat_height(const struct BiasProfile *p);
/* Layer by layer, the shares of all attention on prefix, sink, middle, recent and question. */
int bias_bars(struct Str *out, const struct BiasProfile *p);
int bias_bars_height(const struct BiasProfile *p);
/* Layer by KV head, the shape of each as a letter: U, S, R, M, or nothing where it is uniform. */
int bias_heads(struct Str *out, const struct BiasProfile *p);
int bias_heads_height(const struct BiasProfile *p);
/* What the colours of the first and the second stand for. */
int bias_heat_legend(struct Str *out);
int bias_bars_legend(struct Str *out);
enum { BIAS_LEGEND_HEIGHT = 20 };

#endif

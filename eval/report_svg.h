/* report_svg.h - inside report_html.c: the drawings. No text of the data is in them, only numbers.
 *
 * A drawing of one method takes its colour from the CSS variable --m around it. Colour never stands
 * alone: methods differ by the shape of their mark and the dashes of their line, cells bear numbers.
 */
#ifndef PCOMP_REPORT_SVG_H
#define PCOMP_REPORT_SVG_H

#include "report.h"

enum { SVG_STYLES = 8 }; /* marks, dashes and colours before they repeat */

/* A method's mark by itself, for legends and headings. */
int svg_legend(struct Str *out, int column);
/* Mean and interval on 0..100. */
int svg_bar(struct Str *out, const struct Estimate *e, int column);
/* Mean difference and interval on -scale..scale. */
int svg_difference(struct Str *out, const struct Estimate *e, double scale, int column);
int svg_curve(struct Str *out, const struct Report *r, const struct Curve *curve);
int svg_heat_width(const struct Heat *heat);
int svg_heat(struct Str *out, const struct Heat *heat, int column);
/* Place of the answer's chunk against its rank by score, and the share kept for each tenth of the text. */
int svg_hits(struct Str *out, const struct Report *r, int column);
int svg_kv_width(const struct KvMap *map);
int svg_kv(struct Str *out, const struct KvMap *map);

#endif

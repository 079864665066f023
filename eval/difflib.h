/* difflib.h - how alike two lines are: fuzzywuzzy 0.18's fuzz.ratio, over Python's difflib or over
 * python-Levenshtein, bit for bit. Both compare code points.
 */
#ifndef PCOMP_DIFFLIB_H
#define PCOMP_DIFFLIB_H

#include "pytext.h"

/* difflib.SequenceMatcher(None, a, b).ratio(), autojunk on. */
int difflib_ratio(struct Span a, struct Span b, double *ratio);
/* Levenshtein.ratio(a, b): insertions and deletions only. */
int indel_ratio(struct Span a, struct Span b, double *ratio);
/* fuzz.ratio(a, b), 0..100: equal texts 100, else 0 when one is empty, else int(round(100 * ratio)). */
int fuzz_ratio(struct Span a, struct Span b, bool indel, int *percent);

#endif

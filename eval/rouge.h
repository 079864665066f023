/* rouge.h - two published ROUGE-L scores, bit for bit: that of PyPI `rouge` 1.0.1 (LongBench) and the
 * rougeLsum of PyPI `rouge_score` 0.1.2 (InfiniteBench).
 */
#ifndef PCOMP_ROUGE_H
#define PCOMP_ROUGE_H

#include "base.h"

struct Jieba;

/* The original walks back through its table by recursion, and LongBench's bare `except` turns Python's
 * RecursionError into a score of 0. So a walk of more calls than are left under the 1000 frames of CPython
 * 3.11 scores 0: 991 when rouge_score calls it, one less through rouge_zh_score. */
enum { ROUGE_CALLS = 991, ROUGE_CALLS_ZH = 990 };

/* Rouge().get_scores([pred], [truth], avg=True)["rouge-l"]["f"]; 0 where that raises (an empty text, one
 * of full stops alone, too many calls). */
int rouge_l(const struct Str *pred, const struct Str *truth, int max_calls, double *f);
/* The best over n truths, as LongBench calls it. With jieba: of the texts' words with spaces between. */
int rouge_l_best(const struct Jieba *jieba, const struct Str *pred, const struct Str *truths, int n,
                 double *f);
/* RougeScorer(["rougeLsum"], use_stemmer=False).score(truth, pred)["rougeLsum"].fmeasure: sentences are
 * lines. Negative: out of memory. */
double rouge_lsum(const char *pred, size_t pred_len, const char *truth, size_t truth_len);

#endif

/* early.h - chunks that leave before the last layer (method.md 9.3, item 1): what a head's attention says of a chunk,
 * and how many chunks must survive a decision. Numbers in, numbers out.
 */
#ifndef PCOMP_EARLY_H
#define PCOMP_EARLY_H

#include "base.h"

/* What counts of the question's attention on a chunk's tokens: all of it, or the most that PEAK_TOKENS neighbours get. */
enum EarlyMeasure { MEASURE_SUM, MEASURE_PEAK, N_MEASURES };

enum {
    PEAK_TOKENS = 16,
    LAST_ROWS = 4,   /* last rows behind the question, which ask for the answer's first word, */
    EARLY_ROWS = 32, /* or its own last ones too; as far as there are so many */
    EARLY_SURVIVORS = 32, /* that a profile's decision may let go on however large they are */
};

/* mass[n]: the sum over `rows` softmax rows for each token of the chunk. Natural log of the share of a row's attention
 * that the measure finds; never below that of 1e-7. */
double early_measure(enum EarlyMeasure measure, const float *mass, int n, int rows);

/* The chance that a decision among n_chunks loses the chunk it should keep, when `survivors` stay: the mean over the
 * samples of the chance that as many of the others are ahead of it, each being so with probability ahead[i]. */
double early_risk(const float *ahead, int n_samples, int n_chunks, int survivors);
/* The fewest survivors, `least` at least, with no more risk than that; all n_chunks where no fewer will do. */
int early_survivors(const float *ahead, int n_samples, int n_chunks, double risk, int least);
/* Most survivors of chunks whose rows take that many bytes each, where `memory` may hold them. */
int early_most(size_t chunk_bytes, size_t memory);

#endif

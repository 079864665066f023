/* kernels_matvec.h - the decode products of one instruction set (see struct Kernels for what they do). */
#ifndef PCOMP_KERNELS_MATVEC_H
#define PCOMP_KERNELS_MATVEC_H

#include "kernels.h"

size_t KERNEL(matvec_prep_bytes)(int cols);
void KERNEL(matvec_prepare)(const float *x, int cols, bool exact, void *prep);
void KERNEL(matvec_rows)(const struct Weight *w, int row0, int n_rows, const void *prep, bool exact,
                         float *y);

#endif

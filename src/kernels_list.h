/* kernels_list.h - the exported names of one copy of the kernels; kernels_table.c lists them. */
#ifndef PCOMP_KERNELS_LIST_H
#define PCOMP_KERNELS_LIST_H

#include "kernels.h"

void KERNEL(act_pack)(const float *x, int ld, int row0, int n_rows, struct Act *act);
size_t KERNEL(panel_bytes)(int cols, bool exact);
void KERNEL(matmul_tile)(const struct MatmulArgs *m, int panel, int row0, int row1, void *scratch);
void KERNEL(rmsnorm)(const float *x, const float *weight, int n, float eps, float *out);
void KERNEL(silu_mul)(float *gate, const float *up, int n);
void KERNEL(add)(float *x, const float *y, int n);
void KERNEL(rope)(float *head, const float *cos_sin, int rope_dim, enum RopeStyle style);
float KERNEL(log_sum_exp)(const float *logits, int n);
void KERNEL(kv_pack)(const float *k, const float *v, int ld, int n, int block, struct KvPack *out);
size_t KERNEL(kv_pack_bytes)(int head_dim, bool exact, size_t *scale_floats);
void KERNEL(attn_tile)(const struct AttnTile *t, void *scratch);
size_t KERNEL(attn_scratch_bytes)(int head_dim, int n_keys, bool exact);
void KERNEL(attn_mass)(const struct AttnTile *t, int n_keys, float *mass, void *scratch);
void KERNEL(attn_pages)(const struct PageAttn *a, struct Partial *part, float *out);
void KERNEL(page_write)(void *page, int at, int head_dim, const float *k, const float *v,
                        enum PageFormat format);
void KERNEL(page_read)(const void *page, int at, int head_dim, float *k, float *v,
                       enum PageFormat format);
void KERNEL(page_rows)(const void *page, int at, int n, int head_dim, float *k, float *v,
                       enum PageFormat format);
void KERNEL(index_write)(const void *page, enum PageFormat format, int len, int head_dim,
                         enum PageIndex index, bool exact, void *out);
float KERNEL(index_score)(const struct IndexQuery *q, const void *index);
void KERNEL(page_move)(void *to, int to_at, const void *from, int from_at, int head_dim,
                       enum PageFormat format);
void KERNEL(spread)(float *head, int head_dim);

#endif

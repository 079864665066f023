/* kernels_table.c - gathers one instruction set's kernels into its table. */
#include "kernels_list.h"
#include "kernels_matvec.h"

#define STR2(x) #x
#define STR(x)  STR2(x)

const struct Kernels KERNEL(kernels) = {
    .isa = STR(PCOMP_ISA),
    .act_pack = KERNEL(act_pack),
    .panel_bytes = KERNEL(panel_bytes),
    .matmul_tile = KERNEL(matmul_tile),
    .matvec_prep_bytes = KERNEL(matvec_prep_bytes),
    .matvec_prepare = KERNEL(matvec_prepare),
    .matvec_rows = KERNEL(matvec_rows),
    .rmsnorm = KERNEL(rmsnorm),
    .silu_mul = KERNEL(silu_mul),
    .add = KERNEL(add),
    .rope = KERNEL(rope),
    .log_sum_exp = KERNEL(log_sum_exp),
    .kv_pack = KERNEL(kv_pack),
    .kv_pack_bytes = KERNEL(kv_pack_bytes),
    .attn_tile = KERNEL(attn_tile),
    .attn_scratch_bytes = KERNEL(attn_scratch_bytes),
    .attn_mass = KERNEL(attn_mass),
    .attn_pages = KERNEL(attn_pages),
    .page_write = KERNEL(page_write),
    .page_read = KERNEL(page_read),
    .page_rows = KERNEL(page_rows),
    .index_write = KERNEL(index_write),
    .index_score = KERNEL(index_score),
    .page_move = KERNEL(page_move),
    .spread = KERNEL(spread),
};

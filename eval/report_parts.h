/* report_parts.h - inside report*.c: the stages of report_make(). */
#ifndef PCOMP_REPORT_PARTS_H
#define PCOMP_REPORT_PARTS_H

#include "report.h"

/* Fills groups, buckets and `complete` (report_sets.c). */
int report_sets(struct Report *r);
/* Fills curves, heats and KV maps (report_maps.c). */
int report_maps(struct Report *r);

/* LongBench's group of a task, with or without "_e"; -1. */
int longbench_group(const char *task);
extern const char *const LONGBENCH_GROUPS[REPORT_GROUPS];
bool is_longbench(const char *benchmark); /* also longbench-e */

/* Room for the values of n rows, so that callers collect without failing. */
int values_alloc(int n, double **out);

#endif

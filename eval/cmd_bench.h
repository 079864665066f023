/* cmd_bench.h - what the commands that run a benchmark share. */
#ifndef PCOMP_CMD_BENCH_H
#define PCOMP_CMD_BENCH_H

#include "benchmark.h"

/* Runs the benchmark over a source's rows, as the flags say. */
int benchmark_run(struct EvalCli *eval, const struct Benchmark *bench, const struct Source *source);
/* InfiniteBench's synthetic tasks on generated rows (cmd_grid.c). */
int infinitebench_generated(struct Cli *cli, const struct Benchmark *bench);

#endif

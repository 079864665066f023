#!/bin/bash
# One question about one text over two machines of four processes each: sbatch configs/slurm-run.sh MODEL TEXT QUESTION
# Many texts, as a job array instead: sbatch --array=1-8 --ntasks=1 --nodes=1 --wrap \
#   'build/pcomp summarize --share -m MODEL notes/ -o out.jsonl'
#SBATCH --job-name=pcomp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
set -euo pipefail

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch
srun --mpi=pmix --kill-on-bad-exit=1 build/pcomp run -m "$1" -f "$2" -q "$3"

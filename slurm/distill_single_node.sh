#!/usr/bin/env bash
# Distil on one node:   sbatch slurm/distill_single_node.sh --teacher ... --corpus ... --steps ...
# Arguments are those of homodistil_ds/train.py. Any option here can be given to sbatch instead, or as SBATCH_*.
#SBATCH --job-name=homodistil
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

shown=$(scontrol show job "$SLURM_JOB_ID" | grep -m1 -oP '^ *Command=\K.*?(?=/slurm/[^/ ]+\.sh)')
project=${HOMODISTIL_DIR:-$shown}
. "${project:?is not known: set HOMODISTIL_DIR to the folder of homodistil_ds}/slurm/job.sh"
live "$project/homodistil_ds/train.py" "$@"

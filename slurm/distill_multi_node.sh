#!/usr/bin/env bash
# Distil on several nodes:   sbatch slurm/distill_multi_node.sh --teacher ... --corpus ... --steps ...
# Arguments are those of homodistil_ds/train.py. Any option here can be given to sbatch instead, or as SBATCH_*.
#SBATCH --job-name=homodistil
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

shown=$(scontrol show job "$SLURM_JOB_ID" | grep -m1 -oP '^ *Command=\K.*?(?=/slurm/[^/ ]+\.sh)')
project=${HOMODISTIL_DIR:-$shown}
. "${project:?is not known: set HOMODISTIL_DIR to the folder of homodistil_ds}/slurm/job.sh"
live "$project/homodistil_ds/train.py" "$@"

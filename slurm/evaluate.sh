#!/usr/bin/env bash
# Held-out loss of a saved model, and its distance from a teacher, on a prepared corpus:
#   sbatch slurm/evaluate.sh --model runs/mine/student --teacher bert-base-uncased --corpus corpora/mine
# Arguments are those of tools/evaluate_heldout.py.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

shown=$(scontrol show job "$SLURM_JOB_ID" | grep -m1 -oP '^ *Command=\K.*?(?=/slurm/[^/ ]+\.sh)')
project=${HOMODISTIL_DIR:-$shown}
. "${project:?is not known: set HOMODISTIL_DIR to the folder of homodistil_ds}/slurm/job.sh"
name_run_dir "$@"
meet
simple "${one_task[@]}" "${inside[@]}" "$PYTHON" "$project/tools/evaluate_heldout.py" "$@"

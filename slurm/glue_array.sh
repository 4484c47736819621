#!/usr/bin/env bash
# A job array over tasks and seeds, one element each:
#   TASKS="SST-2 MRPC CoLA" SEEDS="0 1 2" sbatch --array=0-8 slurm/glue_array.sh --model runs/mine/student --data glue/
# The program is GLUE_PROGRAM (default: tools/evaluate_glue.py of this project). It gets --tasks, --seeds, the arguments
# and --output_dir, one for the whole array: a run directory for each element, and glue.md of all that are complete.
# Elements beyond the last combination end at once; --array=0-8%2 runs two at a time.
#SBATCH --job-name=glue
#SBATCH --array=0-26
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

shown=$(scontrol show job "$SLURM_JOB_ID" | grep -m1 -oP '^ *Command=\K.*?(?=/slurm/[^/ ]+\.sh)')
project=${HOMODISTIL_DIR:-$shown}
. "${project:?is not known: set HOMODISTIL_DIR to the folder of homodistil_ds}/slurm/job.sh"
read -ra tasks <<<"${TASKS:-CoLA SST-2 MRPC STS-B QQP MNLI QNLI RTE WNLI}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
index=${SLURM_ARRAY_TASK_ID:?submit it with --array}
((index < ${#tasks[@]} * ${#seeds[@]})) || leave 0 "no task and seed number $index"
task=${tasks[index / ${#seeds[@]}]} seed=${seeds[index % ${#seeds[@]}]}
program=${GLUE_PROGRAM:-$project/tools/evaluate_glue.py}
[[ -f $program ]] || leave 3 "$program is not there"
run_dir=$(flag output_dir "$@")
run_dir=${run_dir:-runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}
mkdir -p "$run_dir"
# shellcheck disable=SC2034 # what this element has to show
progress_in=$run_dir/$task-$seed
meet
say "task $task, seed $seed, into $run_dir"
simple "${one_task[@]}" "${inside[@]}" "$PYTHON" "$program" --tasks "$task" --seeds "$seed" "$@" --output_dir "$run_dir"

#!/usr/bin/env bash
# Prepare a corpus once, for many runs:   sbatch slurm/prepare_corpus.sh --corpus /data/texts --output_dir corpora/mine
# Arguments are those of tools/prepare_corpus.py. One node uses all of its CPUs; with --nodes=N every CPU of every node
# is an MPI rank (LAUNCHER=mpirun, or srun with SRUN_MPI=pmix or pmi2). The folder is the same byte for byte.
#SBATCH --job-name=corpus
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

shown=$(scontrol show job "$SLURM_JOB_ID" | grep -m1 -oP '^ *Command=\K.*?(?=/slurm/[^/ ]+\.sh)')
project=${HOMODISTIL_DIR:-$shown}
LAUNCHER=${LAUNCHER:-mpirun}
. "${project:?is not known: set HOMODISTIL_DIR to the folder of homodistil_ds}/slurm/job.sh"
name_run_dir "$@"
meet
per_node=$cpus
program=("${inside[@]}" "$PYTHON" "$project/tools/prepare_corpus.py")
given=("$@" --output_dir "$run_dir")
if ((nodes == 1)); then
  simple "${one_task[@]}" "${program[@]}" --workers "$per_node" "${given[@]}"
elif [[ $LAUNCHER == mpirun ]]; then
  check_launcher
  simple mpirun "${mpirun_flags[@]}" "${program[@]}" "${given[@]}"
elif [[ $LAUNCHER == srun ]]; then
  simple srun "${step_flags[@]}" --mpi="${SRUN_MPI:-pmix}" --ntasks=$((nodes * per_node)) \
    --ntasks-per-node="$per_node" --cpus-per-task=1 "${program[@]}" "${given[@]}"
else
  leave 2 "LAUNCHER=$LAUNCHER prepares no corpus: mpirun or srun"
fi

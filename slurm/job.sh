# shellcheck shell=bash
# The life of a job, the same for every script in this folder: look at the nodes, start the ranks, pass the time limit
# on to them, and decide whether the job is done, goes on after a requeue, or ends with a reason. It is sourced.
# slurm/README.md says what can be set and why each decision is what it is.

out_of_time=''
trap 'out_of_time=early' USR1 # of --signal, which may come a minute early and only once

# Before the strict mode: what sites put there, modules above all, does not survive it.
# shellcheck source=slurm/env.sh
. "${project:?}/slurm/env.sh"
# shellcheck source=slurm/flags.sh
. "$project/slurm/flags.sh"

set -euo pipefail

# 12, or 12_3 of an array: the bare number of its last element means all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} job=${job:-$SLURM_JOB_ID}
LAUNCHER=${LAUNCHER:-srun}          # srun, torchrun, deepspeed or mpirun
MAX_REQUEUES=${MAX_REQUEUES:-20}    # of one job, for whatever reason
start=${SLURM_RESTART_COUNT:-0}     # 0 at the first start; Slurm counts requeues
cancelled='' nagging=''

say() { echo "[$(date '+%F %T')] $*"; }
leave() { say "$2"; exit "$1"; }

# --- what is asked for ------------------------------------------------------------------------------------------

# Sets run_dir: that of --output_dir, else one of this job, the same after a requeue; and where to read the end.
name_run_dir() {
  run_dir=$(flag output_dir "$@")
  run_dir=${run_dir:-runs/$SLURM_JOB_NAME-$job}
  # Launchers flatten exit codes, and a start that is refused writes nothing into the run directory.
  # Hence a file beside the log, which is on a file system that works.
  local log
  log=$(scontrol show job "$job" | sed -n 's/^ *StdOut=//p') || log=''
  beside_log=$(dirname "${log:-.}")/.homodistil-$SLURM_JOB_ID-$start
  HOMODISTIL_EXIT_REASON=$beside_log.json
  export HOMODISTIL_EXIT_REASON
  mkdir -p "$(dirname "$run_dir")"
  rm -f "$HOMODISTIL_EXIT_REASON"
}

# What starts have to show so far: checkpoints, those of a teacher inside the run too, complete runs, parts of a corpus.
progress() {
  find "${progress_in:-$run_dir}" -maxdepth 4 \
    \( -path '*/checkpoints/step-*' -o -name report.json -o -path '*/parts/*' -o -name '*.npy' \) 2>/dev/null |
    sort | cksum || true
}

made_progress() { [[ $(progress) != "$progress_before" ]]; }

newest_checkpoint() {
  find "$run_dir/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sed 's/.*step-//' | sort -n | tail -n 1 || true
}

# A field of what the program says of its end, to this job or in the run directory; nothing if it said nothing.
reason() {
  local file=$run_dir/exit_reason.json
  [[ ! -f $HOMODISTIL_EXIT_REASON ]] || file=$HOMODISTIL_EXIT_REASON
  sed -n "s/^ *\"$1\": \"\{0,1\}\(.*[^\",]\)\"\{0,1\},\{0,1\}$/\1/p" "$file" 2>/dev/null || true
}

# --- where it runs ----------------------------------------------------------------------------------------------

meet() {
  nodes=$SLURM_JOB_NUM_NODES
  per_node=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
  ((per_node > 0)) || per_node=1
  cpus=${SLURM_CPUS_ON_NODE:-1}
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || cpus=$((SLURM_CPUS_PER_TASK * ${SLURM_NTASKS_PER_NODE:-1}))
  cpus_per_rank=$((cpus >= per_node ? cpus / per_node : 1))
  MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)}
  # Below the range that systems take ports for outgoing connections from; two jobs on a node get two ports.
  MASTER_PORT=${MASTER_PORT:-$((12000 + SLURM_JOB_ID % 20000))}
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_rank}
  NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS NCCL_DEBUG PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
  inside=() step_flags=(--nodes="$nodes" --kill-on-bad-exit=1 --wait=60 --unbuffered --mpi=none)
  [[ -z $CONTAINER ]] || enter_container
  # shellcheck disable=SC2034 # for scripts whose program is one process
  one_task=(srun "${step_flags[@]}" --ntasks=1 --ntasks-per-node=1 --cpus-per-task="$cpus")
}

enter_container() {
  local mounts=$project,$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
  case $CONTAINER_RUNTIME in
    apptainer | singularity)
      inside=("$CONTAINER_RUNTIME" exec --bind "$mounts" --pwd "$PWD")
      [[ -z ${SLURM_GPUS_ON_NODE:-} ]] || inside+=(--nv)
      inside+=("$CONTAINER") ;;
    pyxis)
      mounts=$(tr ',' '\n' <<<"$mounts" | sed 's/.*/&:&/' | paste -sd,)
      step_flags+=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD") ;;
    *) leave 2 "CONTAINER_RUNTIME=$CONTAINER_RUNTIME is not known: apptainer, singularity or pyxis" ;;
  esac
}

# One task per node, before any rank starts: a node that cannot work is named, and the job ends.
check_nodes() {
  local check out
  # shellcheck disable=SC2016
  check='
    bad() { echo "node $(hostname): $*"; exit 1; }
    probe=$2/.node-check-$SLURM_JOB_ID-$(hostname)
    : >"$probe" 2>/dev/null && rm "$probe" || bad "$2 cannot be written, or is not shared"
    [ -f "$1" ] || bad "$1 is not there: the project must lie on a file system that all nodes see"
    if [ "${3:-0}" -gt 0 ] && command -v nvidia-smi >/dev/null; then
      found=$(timeout 60 nvidia-smi -L) || bad "nvidia-smi does not answer"
      seen=$(grep -c "MIG " <<<"$found") || seen=$(grep -c "^GPU" <<<"$found") || bad "nvidia-smi finds no GPU"
      [ "$seen" -ge "$3" ] || bad "$seen GPUs, not $3"
    fi
    command -v "$4" >/dev/null || bad "$4 is not on PATH"'
  if ! out=$(timeout -k 30 "${NODE_CHECK_SECONDS:-120}" \
    srun "${step_flags[@]}" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 \
    "${inside[@]}" bash -c "$check" _ "$project/homodistil_ds/train.py" "$(dirname "$run_dir")" \
    "${SLURM_GPUS_ON_NODE:-0}" "$PYTHON" 2>&1); then
    echo "$out"
    [[ -z $cancelled ]] || leave 143 "ended by Slurm"
    if preempted; then goes_on "preempted"; fi
    if node_failed; then goes_on "a node has failed"; fi
    leave 3 "a node cannot work or did not answer in time; sbatch --exclude=NODE leaves it out"
  fi
}

# --- the ranks --------------------------------------------------------------------------------------------------

# start_ranks PROGRAM ARGUMENT...: in the background; its process is $step.
start_ranks() {
  local one_per_node=("${step_flags[@]}" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus")
  case $LAUNCHER in
    srun)
      srun "${step_flags[@]}" --ntasks=$((nodes * per_node)) --ntasks-per-node="$per_node" \
        --cpus-per-task="$cpus_per_rank" "${inside[@]}" "$PYTHON" "$@" & ;;
    torchrun)
      srun "${one_per_node[@]}" "${inside[@]}" "$PYTHON" -m torch.distributed.run \
        --nnodes="$nodes" --nproc-per-node="$per_node" --max-restarts=0 --rdzv-backend=c10d \
        --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID-$start" "$@" & ;;
    deepspeed)
      scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/$/ slots=$per_node/" >"$beside_log.hosts"
      # shellcheck disable=SC2016
      srun "${one_per_node[@]}" "${inside[@]}" bash -c 'exec "$0" --no_ssh --node_rank="$SLURM_NODEID" "$@"' \
        deepspeed --hostfile="$beside_log.hosts" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" "$@" & ;;
    mpirun)
      mpirun "${mpirun_flags[@]}" "${inside[@]}" "$PYTHON" "$@" & ;;
  esac
  step=$!
}

check_launcher() {
  case $LAUNCHER in
    srun | torchrun | deepspeed) ;;
    mpirun)
      [[ -z $CONTAINER || $CONTAINER_RUNTIME != pyxis ]] || leave 2 "mpirun starts no ranks in a pyxis container"
      mpirun_flags=(-n $((nodes * per_node)))
      if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
        mpirun_flags+=(--map-by "ppr:$per_node:node:OVERSUBSCRIBE" --bind-to none)
        for name in MASTER_ADDR MASTER_PORT OMP_NUM_THREADS NCCL_DEBUG PYTHONUNBUFFERED PYTHONFAULTHANDLER; do
          mpirun_flags+=(-x "$name")
        done
      else
        mpirun_flags+=(-ppn "$per_node" -genvall)
      fi ;;
    *) leave 2 "LAUNCHER=$LAUNCHER is not known: srun, torchrun, deepspeed or mpirun" ;;
  esac
}

# --- signals: Slurm tells this shell, this shell tells the ranks -------------------------------------------------

on_time_limit() { # of --signal=B:USR1@SECONDS
  [[ $out_of_time != yes ]] || return 0
  out_of_time=yes
  say "the time limit is near: asking the ranks to save and leave"
  # A file, because the supervisors of torchrun and deepspeed would die of a signal; again and again, because ranks
  # that have not claimed the folder yet remove it.
  while ! later_start; do touch "$run_dir/stop" || true; sleep 2; done 2>/dev/null &
  nagging=$!
  local left
  left=$(seconds_left) || left=''
  [[ $left =~ ^[0-9]+$ ]] || return 0
  (sleep $((left > 40 ? left - 30 : 10)) && kill -USR2 $$) 2>/dev/null &
}

on_cancel() { # scancel, or a requeue by somebody else: Slurm tells the ranks itself
  cancelled=yes
  say "Slurm ends this start: the ranks have been told"
}

on_last_moment() {
  [[ -z $cancelled ]] || return 0
  say "the ranks have not left in time"
  after_time_limit
}

seconds_left() {
  squeue -h -j "$job" -o %L 2>/dev/null | awk -F'[-:]' '
    /^[0-9:-]+$/ { seconds = $NF; if (NF > 1) seconds += 60 * $(NF-1); if (NF > 2) seconds += 3600 * $(NF-2)
      if (NF > 3) seconds += 86400 * $(NF-3); print seconds + 0 }'
}

# Sets code to the exit code of $step; a trapped signal ends `wait` early, so it is asked again.
follow() {
  code=0
  while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
  done
  local last=0
  wait "$step" 2>/dev/null || last=$?
  ((last == 127)) || code=$last
  [[ -z $nagging ]] || kill "$nagging" 2>/dev/null || true
}

# --- what comes after -------------------------------------------------------------------------------------------

preempted() {
  local begun since
  # One command each: a signal between two substitutions of one command ends bash 5.2 with a syntax error.
  begun=$(job_field StartTime)
  since=$(job_field PreemptTime)
  [[ -n $since && $since != None && $since != Unknown && ! $since < $begun ]]
}

job_field() { scontrol -o show job "$job" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }

# Whether a later start of this job has the run: this one is on a node that was cut off.
later_start() {
  local owner
  owner=$(cat "$run_dir/lock" 2>/dev/null) || return 1
  [[ $owner =~ \"job\":\ \"$SLURM_JOB_ID\",\ \"restart\":\ ([0-9]+) ]] && ((BASH_REMATCH[1] > start))
}

# Whether Slurm still counts on this start; a controller that is busy is asked again.
still_wanted() {
  local facts=''
  for _ in 1 2 3 4 5 6; do
    facts=$(scontrol -o show job "$job" 2>/dev/null) && break
    sleep 10
  done
  [[ -z $cancelled && $facts == *" JobState=RUNNING "* && $facts == *" Restarts=$start "* ]]
}

# Whether a node of this job has gone or does not answer; Slurm itself may say so minutes later.
node_failed() { sinfo -h -N -n "$SLURM_JOB_NODELIST" -o %t 2>/dev/null | grep -q '[*]\|down\|fail'; }

# goes_on WHY: put the job back into the queue; it ends here.
goes_on() {
  trap '' USR1 USR2
  [[ -z $nagging ]] || kill "$nagging" 2>/dev/null || true # or it would stop the next start
  local again="Submit it again with --output_dir $run_dir: it goes on where it was."
  ((start < MAX_REQUEUES)) || leave 75 "$1, but it was requeued $start times already (MAX_REQUEUES). $again"
  still_wanted || leave 143 "$1; Slurm has ended this start already"
  say "requeue: $1"
  trap 'exit 0' TERM
  local tries=0
  until scontrol requeue "$job"; do # a controller that is busy is asked again
    ((++tries < 6)) || leave 75 "Slurm refuses to requeue. $again"
    sleep 10
  done
  sleep 300 & wait # until Slurm ends this shell
  exit 0
}

# The first start may have spent its time on the corpus; a later one without a checkpoint would never come further.
after_time_limit() {
  if made_progress || ((start == 0)); then goes_on "time limit"; fi
  leave 75 "no checkpoint was written before the time limit: give more --time"
}

decide() {
  local id what said_code
  id=$(reason id)
  what=$(reason what)
  said_code=$(reason code)
  rm -f "$beside_log".*
  [[ $id != DONE ]] || leave 0 "DONE: $run_dir/student"
  [[ -z $cancelled ]] || leave 143 "ended by Slurm; newest checkpoint: step $(newest_checkpoint)"
  ! later_start || leave 0 "a later start goes on with $run_dir"
  case $id in # what no requeue would mend
    CFG-* | ENV-* | DATA-* | CKPT-* | NUM-*) leave "$said_code" "failed: $id: $what" ;;
  esac
  if preempted; then goes_on "preempted"; fi
  [[ -z $out_of_time ]] || after_time_limit
  [[ $what != *"/stop exists"* ]] || leave 75 "stopped on request: $what"
  # A rank, a node, a launcher or the network has failed; the next start may fare better.
  what=${what:-exit code $code, and no reason in $run_dir/exit_reason.json}
  if [[ $code != 0 || -n $id ]] && made_progress; then goes_on "$what"; fi
  if node_failed; then goes_on "a node has failed"; fi
  leave $((code != 0 ? code : 1)) "failed: $what"
}

# live PROGRAM ARGUMENT...: everything above, in order.
live() {
  local program=$1
  shift
  trap on_cancel TERM
  trap on_last_moment USR2
  name_run_dir "$@"
  newest_before=$(newest_checkpoint)
  progress_before=$(progress)
  trap on_time_limit USR1
  [[ $out_of_time != early ]] || on_time_limit
  say "job $SLURM_JOB_ID, start $((start + 1)), on $SLURM_JOB_NODELIST, $LAUNCHER," \
    "commit $(git -C "$project" rev-parse --short HEAD 2>/dev/null || echo unknown), into $run_dir"
  [[ $(reason id) != DONE ]] || leave 0 "DONE already: $run_dir/student"
  meet
  check_launcher
  check_nodes
  rm -f "$run_dir/exit_reason.json"
  start_ranks "$program" "$@" --output_dir "$run_dir" ${newest_before:+--resume auto}
  follow
  say "the ranks have left with exit code $code"
  decide
}

# simple COMMAND...: one that goes on where it was when it is started again; requeued if the time runs out.
simple() {
  local step=''
  progress_before=$(progress)
  trap on_cancel TERM
  trap 'out_of_time=yes; [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || true' USR1 # srun would kill its tasks on TERM
  say "job $SLURM_JOB_ID, start $((start + 1)), on $SLURM_JOB_NODELIST: $*"
  "$@" &
  step=$!
  [[ -z $out_of_time ]] || kill -USR1 "$step" 2>/dev/null || true # it came before there was anything to tell
  follow
  ((code != 0)) || leave 0 "DONE"
  [[ -z $cancelled ]] || leave 143 "ended by Slurm"
  if preempted; then goes_on "preempted"; fi
  [[ -z $out_of_time ]] || after_time_limit
  if node_failed; then goes_on "a node has failed"; fi
  leave "$code" "failed: exit code $code"
}

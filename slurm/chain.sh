#!/usr/bin/env bash
# Three jobs, each waiting for the one before: prepare the corpus, distil, evaluate. Run it on a login node:
#   CORPUS=/data/texts NAME=mine TEACHER=google-bert/bert-base-uncased slurm/chain.sh --preset homobert_small
# Arguments go to the distillation (say --sequence_length here if a --config has another one than 128); PREPARE, DISTIL and EVALUATE hold sbatch options of the three, such as --partition.
set -euo pipefail

slurm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${CORPUS:?the texts}" "${NAME:?of the run}" "${TEACHER:?a folder or hub name}"
SCRIPT=${SCRIPT:-distill_multi_node.sh}
# shellcheck source=slurm/flags.sh
. "$slurm/flags.sh"
length=$(flag sequence_length "$@") rows=$(flag held_out_sequences "$@")
length=${length:-128}

submit() { # submit JOB-BEFORE SBATCH-OPTIONS SCRIPT ARGUMENT...: prints the number of the job
  local before=$1 options
  read -ra options <<<"$2"
  shift 2
  # A job whose predecessor failed would wait for ever.
  [[ -z $before ]] || options+=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
  sbatch --parsable "${options[@]}" "$@"
}

prepared=corpora/$NAME run=runs/$NAME
first=$(submit '' "${PREPARE:-}" "$slurm/prepare_corpus.sh" --corpus "$CORPUS" --teacher "$TEACHER" \
  --sequence_length "$length" --output_dir "$prepared")
second=$(submit "$first" "${DISTIL:-}" "$slurm/$SCRIPT" --teacher "$TEACHER" --corpus "$prepared" \
  --sequence_length "$length" "$@" --output_dir "$run")
third=$(submit "$second" "${EVALUATE:-}" "$slurm/evaluate.sh" --model "$run/student" --teacher "$TEACHER" \
  --corpus "$prepared" ${rows:+--held_out_sequences "$rows"})
echo "prepare $first -> $prepared"
echo "distil $second -> $run"
echo "evaluate $third"

#!/usr/bin/env bash
# Debian's and Ubuntu's packages for the test cluster. Needs root; a second call does nothing.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge iproute2 util-linux libpmix2)
if ! dpkg --status "${packages[@]}" >/dev/null 2>&1; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
# Slurm's PMIx plugin opens the name that only the development package brings.
folder=/usr/lib/$(uname -m)-linux-gnu/pmix2/lib
[[ -e $folder/libpmix.so || ! -e $folder/libpmix.so.2 ]] || ln -s libpmix.so.2 "$folder/libpmix.so"
slurmctld -V

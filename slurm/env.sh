# shellcheck shell=bash
# The one file to adapt to a site. Every job script here reads it on the first node of a job; srun passes the
# environment on to the others. `project` is the folder that holds homodistil_ds/. What is set before sbatch wins.

# Modules: the compiler and CUDA that torch and DeepSpeed's operators are built with.
# module load gcc cuda

# A virtual environment on a file system that all nodes see ...
VENV=${VENV:-$project/.venv}
if [[ -z ${CONTAINER:-} && -f $VENV/bin/activate ]]; then
  # shellcheck source=/dev/null
  . "$VENV/bin/activate"
fi
PYTHON=${PYTHON:-python}

# ... or a container: CONTAINER is an image, CONTAINER_RUNTIME is apptainer, singularity or pyxis (an srun plugin),
# CONTAINER_MOUNTS more folders than the project and the one the job was submitted from, separated by commas.
CONTAINER=${CONTAINER:-}
CONTAINER_RUNTIME=${CONTAINER_RUNTIME:-apptainer}
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-}

# The network interface between the nodes, where the one that the libraries choose is wrong: ib0, hsn0, eth0.
if [[ -n ${NETWORK_INTERFACE:-} ]]; then
  export GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE
fi

# Compute nodes often reach no network: download the teacher once on a login node.
# export HF_HOME=/shared/huggingface HF_HUB_OFFLINE=1

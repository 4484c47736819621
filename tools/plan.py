"""What a run takes before anything is spent: memory, traffic, time and cost of every phase, and what else would fit.

    python tools/plan.py --nodes 1 --gpus-per-node 8 --gpu h100 --preset llama2_7b \
        --deepspeed_config ds_configs/zero3_recompute.json

All other flags are those of train.py. Of the teacher nothing but its configuration is read: a hub name, a folder that
has a config.json, or that file. With --write_to plan.md, plan.json and plan.png are written into a folder. The exit
code is 1 where the run does not fit.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from homodistil_ds.command import parse
from homodistil_ds.errors import HomodistilError, require
from homodistil_ds.planning import page
from homodistil_ds.planning.cache import taught_by
from homodistil_ds.planning.devices import GIB, GPUS, HERE, NETWORK_GBITS, device_named
from homodistil_ds.planning.job import job_of
from homodistil_ds.planning.plan import Plan, plan_of
from homodistil_ds.runtime import console


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    given, rest = flags().parse_known_args(arguments)
    try:
        for name in ("nodes", "gpus_per_node", "network_gbits"):
            require(f"--{name}", getattr(given, name), getattr(given, name) > 0, "Use a number above 0.")
        config, machine = parse(rest, first=True)
        device = device_named(given.gpu, given.gpus_per_node)
        if given.host_memory is not None:
            require(
                "--host_memory", given.host_memory, 0 < given.host_memory < math.inf, "Use a number of GiB above 0."
            )
            device = replace(device, host_memory=round(given.host_memory * GIB))
        places = {"nodes": given.nodes, "ranks_per_node": given.gpus_per_node}
        job = job_of(config, machine, device=device, gbits=given.network_gbits, **places)
        plan = plan_of(taught_by(job, machine.teacher_cache))
        console.say(page.text(plan))
        if given.write_to:
            written(plan, given.write_to)
    except HomodistilError as error:
        console.say(error.block(), sys.stderr)
        return error.exit_code
    return 0 if plan.fits else 1


def written(plan: Plan, folder: Path) -> None:
    try:
        page.write(plan, folder)
    except OSError as error:
        raise HomodistilError(
            "CFG-OUTPUT", f"--write_to {folder}: {error.strerror}", "Name a folder that can be written to."
        ) from error


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, default=1, help="(default: 1)")
    parser.add_argument("--gpus_per_node", "--gpus-per-node", type=int, default=1, help="(default: 1)")
    parser.add_argument(
        "--gpu", default="h100", help=f"{', '.join(GPUS)}, or {HERE}: this machine's cores (default: h100)"
    )
    parser.add_argument(
        "--host_memory", "--host-memory", type=float, metavar="GIB", help="of a node, beside its GPUs (default: enough)"
    )
    parser.add_argument("--network_gbits", "--network-gbits", type=float, default=NETWORK_GBITS, help="per GPU")
    parser.add_argument("--write_to", "--write-to", type=Path, metavar="FOLDER")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

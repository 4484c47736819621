"""Is this machine ready? A table of checks, each with what was found and what to do. Nothing is started or changed.

python tools/doctor.py --output_dir runs/mine    # exit code 3 if a line fails
python tools/doctor.py --json
python tools/doctor.py --fix                     # removes stale compile locks that nobody holds
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    # A machine where nothing is installed yet needs a doctor too.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from homodistil_ds.errors import EXIT_CODES
from homodistil_ds.runtime.doctor import Asked, Finding, all_checks, examine


def table(findings: dict[str, Finding]) -> str:
    width = max(map(len, findings))
    lines, said = [], ""
    for name, finding in findings.items():
        lines.append(f"{finding.state}  {name:{width}}  {finding.found}")
        if finding.remedy != said:  # once for a row of lines with the same one
            lines += [f"{'':{width + 6}}-> {line}" for line in finding.remedy.splitlines()]
        said = finding.remedy
    counts = {state: sum(finding.state == state for finding in findings.values()) for state in ("pass", "warn", "fail")}
    return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in counts.items())])


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", "--output-dir", type=Path, default=Path("runs"), help="where a run would write")
    flags.add_argument("--fix", action="store_true", help="remove stale compile locks that nobody holds")
    flags.add_argument("--json", action="store_true", help="the findings as JSON")
    given = flags.parse_args()
    findings = examine(Asked(output_dir=given.output_dir, fix=given.fix), all_checks())
    if given.json:
        print(json.dumps({name: dataclasses.asdict(finding) for name, finding in findings.items()}, indent=2))
    else:
        print(table(findings))
    return EXIT_CODES["ENV"] if any(finding.state == "fail" for finding in findings.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

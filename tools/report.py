"""Compare finished runs on one page: page/report.md, and page/report.html which is a single file.

    python tools/report.py runs/a runs/b --output_dir page
    python tools/report.py runs/mine runs/other --output_dir page --latency --title "Half the widths"

--latency times the students, and their teachers where those are folders, on this machine.
"""

import argparse
import io
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from matplotlib.figure import Figure

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import proof
from homodistil_ds.evaluation.comparison import Latency, comparison
from homodistil_ds.evaluation.comparison_figures import CAPTIONS, comparison_figures
from homodistil_ds.evaluation.finished import models_of, read_runs
from homodistil_ds.evaluation.page import Page, to_html, to_markdown
from homodistil_ds.runtime import console


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    given = flags().parse_args(arguments)
    try:
        check_output(given.output_dir)
        runs = read_runs(given.runs)
        latency = None
        if given.latency:
            named = models_of(runs)
            latency = Latency(labels=list(named), measured=proof.latencies(list(named.values())))
        images = {name: png(figure) for name, figure in comparison_figures(runs).items()}
        page = comparison(runs, given.title, {name: CAPTIONS[name] for name in images}, latency)
        write(page, images, given.output_dir)
    except HomodistilError as error:
        console.say(error.block(), sys.stderr)
        return error.exit_code
    console.say(f"{given.output_dir / 'report.html'}: {len(runs)} run(s)")
    return 0


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="directories of finished runs")
    parser.add_argument("--output_dir", required=True, type=Path, help="an earlier page there is replaced")
    parser.add_argument("--latency", action="store_true", help="time the students on this machine")
    parser.add_argument("--title", default="Runs compared")
    return parser


def check_output(folder: Path) -> None:
    """A run has a report.md of its own."""
    if (folder / "report.json").exists() or (folder / "run_config.json").exists():
        raise HomodistilError("CFG-USED-DIR", f"--output_dir {folder} is a run directory", "Choose another folder.")


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def write(page: Page, images: dict[str, bytes], folder: Path) -> None:
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            (folder / "figures" / f"{name}.png").write_bytes(image)
        (folder / "report.md").write_text(to_markdown(page, "figures"), encoding="utf-8")
        (folder / "report.html").write_text(to_html(page, images), encoding="utf-8")
    except OSError as error:
        raise HomodistilError("ENV-FILE", f"{folder} cannot be written: {error}", "Choose another folder.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

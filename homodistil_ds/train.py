"""The command users type. It only makes the package importable, installed or not; homodistil_ds/command.py goes on."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where data/ or models/ would hide packages of the same name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from homodistil_ds.runtime import guard

    guard.install(leave_at_once=True)  # before the slow imports

from homodistil_ds.command import main
from homodistil_ds.runtime.exit_reason import leave

if __name__ == "__main__":
    leave(main(sys.argv[1:]))

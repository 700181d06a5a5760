"""Kills a writer of a run at every point at which it touches its folder, each time in another copy of that.

`python folder_killer.py OLD FOLDERS` copies OLD to FOLDERS/1, FOLDERS/2, ... and writes the new run into each; the
writer of the n-th dies by SIGKILL when it is about to do the n-th thing to the file system. The last one lives.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from report_samples import make_run

from sim.report import folder

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.listdir"}
NEW = 12


def new_run():  # type: ignore[no-untyped-def]
    return make_run(NEW, rate=9.0)


def write_and_die(run, where: Path, at: int) -> None:  # type: ignore[no-untyped-def]
    done = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal done
        if event in EVENTS and args and str(args[0]).startswith(str(where)):
            done += 1
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    folder.write_run(run, where, scenario="new = 1\n")


def main(old: Path, folders: Path) -> None:
    run = new_run()
    for at in range(1, 1000):
        where = folders / str(at)
        shutil.copytree(old, where)
        child = os.fork()
        if not child:
            write_and_die(run, where, at)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return
    raise SystemExit("it never came to an end")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

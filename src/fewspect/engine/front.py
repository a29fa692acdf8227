"""The front door: help, kind errors and exit codes. No torch in here, ``--help`` answers at once.

Exit codes: 0 done, 1 our bug (traceback), 2 the user's mistake (two lines), 130 and 143 stopped by Ctrl-C
and SIGTERM.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewspect.engine import folders, help
from fewspect.errors import EXIT_CODE, UserError

CTRL_C = 130
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Disk, largest size of a file, or quota."""


class Stopped(BaseException):
    """A signal ended the run after its state was saved; not an ``Exception``, so nobody swallows it.

    Args:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


def guard(main: Callable[[], Any], conf: Path) -> NoReturn:
    """Run Hydra's ``main`` and turn every way it can end into an exit code.

    Args:
        main: The function decorated by ``hydra.main``.
        conf: The folder of config files.
    """
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(help.text(conf))
        sys.exit(0)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of being printed by Hydra
    # waiting threads sleep: spinning ones take the cores from the loaders and from every other run
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", folders.sweep_folder, replace=True)
    sys.exit(_guarded(main, conf, arguments))


def _guarded(main: Callable[[], Any], conf: Path, arguments: list[str]) -> int:
    try:
        sys.argv[1:] = folders.with_choices_of_run(_for_every_set(arguments, conf / "data"))
        main()
    except UserError as error:
        return tell(error, arguments)
    except (HydraException, OmegaConfBaseException) as error:
        return tell(help.explain(error, conf, sys.argv[1:]), arguments)
    except OSError as error:
        if error.errno not in FULL:
            raise
        return tell(_full(error), arguments)
    except Stopped as stopped:
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return CTRL_C
    return 0


def _for_every_set(arguments: list[str], files: Path) -> list[str]:
    """Let ``data.val_episodes=8`` hold for every data set, whether its file mentions the option or not.

    All data sets are one class; Hydra asks for a plus sign where a file leaves an option at its default.
    """
    typed = [re.match(r"data\.(\w+)=", a) for a in arguments]
    if not any(typed):
        return arguments
    named = [set(re.findall(r"^(\w+):", path.read_text("utf-8"), re.M)) for path in files.glob("*.yaml")]
    some = set[str]().union(*named) - set[str].intersection(*named)
    return [f"++{a}" if t and t[1] in some else a for a, t in zip(arguments, typed, strict=True)]


def _full(error: OSError) -> UserError:
    where = error.filename or "a file of the run"
    return UserError(
        f"{where} cannot be written: {error.strerror}.",
        "Make room on the disk; run=<folder> resume=true continues from the last saved state.",
    )


def tell(error: UserError, arguments: list[str]) -> int:
    """Print a mistake as two lines, or as a traceback with ``debug=true``; return the exit code."""
    if "debug=true" in (a.lower() for a in arguments):
        traceback.print_exc()
    print(f"Error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)
    return EXIT_CODE

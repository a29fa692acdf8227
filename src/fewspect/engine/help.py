"""``--help`` from the first comment of each config file, and did-you-mean for what Hydra refuses."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fewspect.errors import UserError

MODES = {
    "train": "fit, then test the best checkpoint (default)",
    "test": "test the checkpoint of run=<folder>, or checkpoint=<file>",
    "predict": "masks for a folder: run=<folder> data=folder data.root=<images>",
    "inspect": "decision, place, class and size of every defect: data=folder data.root=my_parts alpha=0.05",
    "generate": "a data set of samples: method=paste data=toy generate.count=200",
    "evaluate": "a generated set beside the real one: run=<run of mode=generate>",
    "export": "one file that answers images: run=<folder> format=onnx",
    "compare": "tables and one HTML page of finished runs: runs=logs/sofs",
    "check": "explain the data folder, validate the config, try one batch on the CPU",
}
GROUPS = {
    "method": "methods",
    "data": "data sets",
    "backbone": "backbones",
    "experiment": "published recipes",
    "trainer": "trainers",
    "logger": "loggers",
    "hydra/launcher": "launchers of sweeps",
    "hydra/sweeper": "sweepers",
    "search": "search spaces",
}
HEAD = """Fewspect: few-shot industrial visual inspection.

  python run.py method=sofs data=toy                    train and test
  python run.py data=folder data.root=my_parts mode=check   explain your own images
  python run.py run=logs/... resume=true                continue a stopped run
  python run.py ... --cfg job                           show the composed config
"""
GRAMMAR = "Options look like data.shot=5 or method=sofs; quote what has spaces or brackets: 'tags=[a,b]'."


def text(conf: Path) -> str:
    """Everything that can be chosen, one line each."""
    lines = [HEAD]
    for group, title in GROUPS.items():
        files = sorted((conf / group).glob("*.yaml"))
        if files:
            width = max(len(f.stem) for f in files)
            lines.append(f"{title} ({group}=...)")
            lines += [f"  {f.stem:{width}}  {headline(f)}" for f in files] + [""]
    lines.append("modes (mode=...)")
    lines += [f"  {name:10}{what}" for name, what in MODES.items()]
    return "\n".join(
        [
            *lines,
            "",
            "Every key of those files is an option, e.g. data.shot=5 method.optimizer.lr=1e-4 seed=1.",
        ]
    )


def headline(path: Path) -> str:
    """First comment line of a config file."""
    comments = (
        line.lstrip("# ").strip() for line in path.read_text("utf-8").splitlines() if line.startswith("#")
    )
    return next((c for c in comments if c and not c.startswith("@")), "")


def nearest(name: str, known: Iterable[str]) -> str:
    """``Did you mean ...?`` or an empty string; dotted names are also compared by their last part."""
    options = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, options, 1, 0.75)
    if not close:
        last = {o.rpartition(".")[2]: o for o in reversed(options)}
        close = [last[m] for m in difflib.get_close_matches(name.rpartition(".")[2], list(last), 1, 0.7)]
    close = close or difflib.get_close_matches(name, options, 1, 0.6)
    return f"Did you mean {close[0]}?" if close else ""


def explain(error: Exception, conf: Path, arguments: list[str]) -> UserError:
    """Say in two lines what Hydra or OmegaConf refused, without its advice to add a '+'."""
    message = str(error)
    if (cause := _user_error(error)) is not None:
        return cause
    if found := re.search(r"Could not find '([\w/.-]+)'", message):
        group, _, name = found[1].rpartition("/")
        options = sorted(getattr(error, "options", None) or [f.stem for f in (conf / group).glob("*.yaml")])
        hint = f"{nearest(name, options)} Choose one of: {', '.join(options)}.".strip()
        return UserError(f"{group or 'config'}={name} does not exist.", hint)
    if found := re.search(r"Could not override '([^']+)'", message):
        return _unknown(found[1], conf, arguments)
    if found := re.search(r"already at '([^']+)'", message):
        return UserError(f"+{found[1]}: the option exists.", f"Write {found[1]}=... without the plus sign.")
    if type(error).__name__ == "OverrideParseException":
        return UserError(f"Cannot read the argument {getattr(error, 'override', '')!r}.", GRAMMAR)
    first = " ".join(line.strip() for line in message.splitlines()[:2])
    return UserError(f"The config cannot be composed: {first}", "python run.py --help lists the options.")


def _user_error(error: BaseException | None) -> UserError | None:
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _unknown(key: str, conf: Path, arguments: list[str]) -> UserError:
    known = list(_keys(conf, arguments, key))
    others = [k for k in known if not key.startswith(f"{k}.") and not k.endswith("_target_")]
    hint = nearest(key, others) or _siblings(key, known) or "See python run.py --help."
    return UserError(f"There is no option {key}.", hint)


def _siblings(key: str, known: list[str]) -> str:
    parent = key.rpartition(".")[0]
    options = sorted(
        {k[len(parent) :].strip(".").split(".")[0] for k in known if k.startswith(parent)} - {"_target_", ""}
    )
    return f"{parent or 'The config'} has: {', '.join(options)}." if options else ""


def _keys(conf: Path, arguments: list[str], bad: str) -> Iterator[str]:
    """Dotted keys of the config that the other arguments compose."""
    from hydra import compose, initialize_config_dir  # noqa: PLC0415 - only after a mistake
    from hydra.core.global_hydra import GlobalHydra  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415

    GlobalHydra.instance().clear()
    groups = [a for a in arguments if re.fullmatch(r"\w+=[\w-]+", a) and (conf / a.split("=")[0]).is_dir()]
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            cfg = compose("config", [g for g in groups if g.split("=")[0] != bad])
    except Exception:  # a second mistake is told when the first is mended
        return
    yield from GROUPS
    yield from _walk(OmegaConf.to_container(cfg), "")


def _walk(node: Any, prefix: str) -> Iterator[str]:  # noqa: ANN401 - any config node
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _walk(value, f"{prefix}{key}.")

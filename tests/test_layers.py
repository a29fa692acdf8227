"""Who may import whom, and how large things may grow (docs/architecture.md, section 2)."""

import ast
import statistics
from pathlib import Path

import pytest
from cli import ROOT

SOURCE = ROOT / "src" / "fewspect"
FILES = sorted(SOURCE.rglob("*.py"))
BASE = {"types", "errors", "draws"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "draws": set(),
    "nn": BASE,
    "backbones": BASE | {"nn"},
    "data": BASE | {"nn"},
    "metrics": BASE,
    "methods": BASE | {"nn", "backbones", "metrics"},
    "callbacks": BASE,
    "export": BASE | {"nn", "methods"},
    "inference": BASE | {"nn", "methods"},
    "inspection": BASE | {"data", "methods"},
    "report": {"errors"},
    "engine": BASE
    | {"nn", "backbones", "data", "metrics", "methods", "callbacks", "export", "report", "inference"}
    | {"inspection"},
}
ONLY_IN = {"hydra": {"engine"}, "omegaconf": {"engine"}}
ONE_FILE = {"wandb": "engine/loggers.py"}
ONE_FOLDER = {"diffusers": "methods/defect_gen/"}
BANNED_NAMES = {"utils", "util", "common", "core", "helpers", "misc"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    mine = layer(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fewspect" and len(parts) > 1 and mine != "__init__":
            target = parts[1]
            bank = path.relative_to(SOURCE).as_posix() == "data/bank.py" and target == "backbones"
            if (SOURCE / target).exists() or (SOURCE / f"{target}.py").exists():
                assert target == mine or target in ALLOWED[mine] or bank, f"{mine} must not import {name}"
        if parts[0] in ONLY_IN:
            assert mine in ONLY_IN[parts[0]], f"only {ONLY_IN[parts[0]]} may import {name}"
        if parts[0] in ONE_FILE:
            assert path.relative_to(SOURCE).as_posix() == ONE_FILE[parts[0]]
        if parts[0] in ONE_FOLDER:
            assert path.relative_to(SOURCE).as_posix().startswith(ONE_FOLDER[parts[0]])


def test_methods_do_not_know_each_other():
    for path in FILES:
        parts = path.relative_to(SOURCE).parts
        if parts[0] == "methods" and len(parts) == 3:
            for name in imports(path):
                other = name.split(".")[2:3] if name.startswith("fewspect.methods.") else []
                if other and (SOURCE / "methods" / other[0]).is_dir():
                    assert other[0] == parts[1], f"{path} imports {name}"


def test_callbacks_know_no_method_and_the_front_door_no_torch():
    heavy = {"torch", "lightning", "torchvision", "numpy", "wandb"}
    for name in ("front", "help", "folders"):
        top = ast.parse((SOURCE / "engine" / f"{name}.py").read_text("utf-8")).body
        found = {a.name.split(".")[0] for n in top if isinstance(n, ast.Import) for a in n.names}
        found |= {str(n.module).split(".")[0] for n in top if isinstance(n, ast.ImportFrom)}
        assert not found & heavy, name


def test_no_drawer_for_odds_and_ends():
    assert not [
        p for p in FILES if {x.removesuffix(".py") for x in p.relative_to(SOURCE).parts} & BANNED_NAMES
    ]


def test_files_fit_the_budget():
    sizes = {p: len(p.read_text("utf-8").splitlines()) for p in FILES if p.name != "__init__.py"}
    assert not {str(p): n for p, n in sizes.items() if n > 400}
    assert quantile(list(sizes.values()), 0.9) <= 300
    assert statistics.median(sizes.values()) <= 150


def test_functions_fit_the_budget():
    lengths = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{path.relative_to(SOURCE)}:{node.name}:{node.lineno}"] = (
                    node.end_lineno - node.lineno + 1
                )
    assert not {k: n for k, n in lengths.items() if n > 80}
    assert quantile(list(lengths.values()), 0.9) <= 40
    assert statistics.median(lengths.values()) <= 12


def test_configs_fit_a_screen():
    assert not [
        str(p) for p in Path(ROOT / "conf").rglob("*.yaml") if len(p.read_text("utf-8").splitlines()) > 60
    ]

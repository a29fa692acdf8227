"""The constructor is the schema: a composed config against the signatures that it will meet.

All problems are told at once, each with its config path and a guess at what was meant. A class may say which
of its mappings feed which callables (``schema = {"head": Head}``); their keys are checked, too.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from fewspect.engine.allow import locate
from fewspect.engine.help import nearest
from fewspect.errors import UserError

HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
SIMPLE: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    type(None): (type(None),),
    None: (type(None),),
}
Parameters = dict[str, inspect.Parameter]


def require(tree: Any, roots: Mapping[str, Callable[..., Any]] | None = None) -> None:  # noqa: ANN401
    """Raise one UserError with every problem of the tree.

    Args:
        tree: Plain dicts and lists, interpolations resolved; its targets passed ``allow.require``.
        roots: Top-level keys without a ``_target_`` -> the callable that takes them.
    """
    found = list(problems(tree))
    for key, target in (roots or {}).items():
        found += _node(tree.get(key) or {}, target, key, partial=True)
    if found:
        raise UserError(
            "\n  ".join(["The config does not fit:", *dict.fromkeys(found)] if found[1:] else found),
            "See --cfg job.",
        )


def problems(node: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - any config value
    """Yield one sentence per misfit."""
    if isinstance(node, dict):
        if "_target_" in node:
            target = locate(node["_target_"], path)
            yield from _node(node, target, path, partial=bool(node.get("_partial_")))
        for key, value in node.items():
            yield from problems(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from problems(value, f"{path}[{position}]")


def parameters(target: Callable[..., Any]) -> Parameters:
    """Keyword parameters; ``**options`` of a constructor is followed to the constructor of its base."""
    homes = [c for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    collected: Parameters = {}
    for home in homes:
        function = home.__init__ if inspect.isclass(home) else home
        given = list(inspect.signature(function).parameters.values())[inspect.isclass(home) :]
        hints = _hints(function)
        for p in given:
            if p.kind is not p.VAR_POSITIONAL and p.name not in collected:
                collected[p.name] = p.replace(annotation=hints.get(p.name, p.annotation))
        if not any(p.kind is p.VAR_KEYWORD for p in given):
            return {k: p for k, p in collected.items() if p.kind is not p.VAR_KEYWORD}
    return collected


def fits(value: Any, hint: Any) -> bool:  # noqa: ANN401 - any value, any annotation
    """Whether a plain value may be given where ``hint`` is annotated; what is not simple fits always."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, h) for h in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if isinstance(value, dict) and "_target_" in value:
        return hint not in SIMPLE  # its own node is checked
    if hint in SIMPLE:
        return isinstance(value, SIMPLE[hint]) and (hint is bool or not isinstance(value, bool))
    return _container_fits(value, origin or hint, get_args(hint))


def _container_fits(value: Any, kind: Any, hints: tuple[Any, ...]) -> bool:  # noqa: ANN401
    if not inspect.isclass(kind):
        return True
    if issubclass(kind, Mapping):
        return isinstance(value, dict)
    if issubclass(kind, Sequence | set | frozenset):
        return isinstance(value, list) and _items_fit(value, kind, hints)
    return True


def _items_fit(value: list[Any], origin: type, hints: tuple[Any, ...]) -> bool:
    if origin is tuple and Ellipsis not in hints:
        return len(value) == len(hints) and all(fits(v, h) for v, h in zip(value, hints, strict=True))
    return not hints or all(fits(v, hints[0]) for v in value)


def _node(node: dict[str, Any], target: Any, path: str, *, partial: bool) -> Iterator[str]:  # noqa: ANN401
    known = parameters(target)
    is_open = any(p.kind is p.VAR_KEYWORD for p in known.values())
    named = {k: p for k, p in known.items() if p.kind is not p.VAR_KEYWORD}
    given = {k: v for k, v in node.items() if k not in HYDRA_KEYS}
    for key, value in given.items():
        at = f"{path}.{key}".lstrip(".")
        if key not in named:
            if not is_open:
                yield f"{at}: there is no such option. {nearest(key, named)}".rstrip()
        elif not fits(value, named[key].annotation):
            yield f"{at}={value!r}: expected {spell(named[key].annotation)}."
        elif isinstance(value, dict) and key in getattr(target, "schema", {}):
            yield from _node(value, target.schema[key], at, partial=True)
    missing = [k for k, p in named.items() if p.default is p.empty and k not in given]
    if missing and not partial and "_args_" not in node:
        yield f"{path}: {', '.join(missing)} must be given."


def spell(hint: Any) -> str:  # noqa: ANN401 - any annotation
    """An annotation in the words of a user."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(spell(h) for h in get_args(hint)))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    items = [spell(h) for h in get_args(hint) if h is not Ellipsis]
    if (
        get_origin(hint) is not None
        and inspect.isclass(get_origin(hint))
        and issubclass(get_origin(hint), Sequence)
    ):
        return f"a list of ({', '.join(items)})" if items else "a list"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _hints(function: Any) -> dict[str, Any]:  # noqa: ANN401 - any callable
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations that exist for type checkers only
        return {}

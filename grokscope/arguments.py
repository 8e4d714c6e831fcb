"""What a call wants and did not get: names of arguments that a function has not are answered with the nearest that it has, and
no error brings a terminal anything that it would obey.

What users call passes here once, where it is handed out: the names of `grokscope` and of its modules (`offered`), and the classes
of what these give back. Signatures and docs stay what they were; a call that is right costs a comparison.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from numbers import Integral, Real
from typing import Any

from grokscope.harmless import visible_lines
from grokscope.sites import near

_ELSEWHERE = {
    "max_length": "max_new_tokens", "max_tokens": "max_new_tokens", "n_tokens": "max_new_tokens", "do_sample": "temperature",
    "names_filter": "capture", "sites": "capture", "hooks": "edits", "fwd_hooks": "edits", "layer": "layers", "k": "top",
    "torch_dtype": "dtype", "load_in_8bit": "quantize", "quantization": "quantize", "quantization_config": "quantize",
}  # fmt: skip
"""Other libraries' words for an argument."""
_NOT_HERE = {"device": "JAX chooses the device (JAX_PLATFORMS=cpu in the environment); mesh= takes several"}
"""Their words for what is said elsewhere."""
_KINDS: dict[str, tuple[type | None, str]] = {
    "None": (type(None), "None"), "str": (str, "a text"), "Path": (os.PathLike, "a path"), "int": (Integral, "a whole number"),
    "float": (Real, "a number"), "bool": (int, "True or False"), "Mesh": (None, "a mesh of gs.mesh"),
    **{name: (None, f"a {name}") for name in ("Trace", "Model", "ModelConfig", "RouterConfig", "RoutingCounters")},
}  # fmt: skip
"""Names in annotations -> what they are (None: a class of that name) and how they are said."""
_OURS = "grokscope."


def check_arguments(given: Iterable[str], known: Iterable[str], who: str) -> None:
    """Raise TypeError for an argument that is none of the known ones, with the nearest."""
    known = list(known)
    for name in given:
        if name not in known:
            other = _ELSEWHERE.get(name)
            hint = f"; did you mean {other!r}?" if other in known else near(name, known)
            if who in ("load", "mesh") and name in _NOT_HERE:
                hint = f"; {_NOT_HERE[name]}"
            raise TypeError(f"{who}: wanted arguments of {', '.join(known) or 'none'}, got {name!r}{hint}")


def offered(names: dict[str, Any], module: str) -> Callable[[str], Any]:
    """Let what a module lists in `__all__` answer for its arguments; gives the module's `__getattr__`, for names that it has not.

    names: the module's globals(). module: what users call it.
    """
    listed = names["__all__"]
    for name in listed:
        names[name] = answering(names[name])

    def missing(name: str) -> Any:
        raise AttributeError(f"{module} has no {name!r}; it has {', '.join(listed)}{near(name, listed)}")

    return missing


def answering(what: Any) -> Any:
    """A function, or a class with its methods, that answers for its arguments; anything else as it is."""
    if inspect.isfunction(what):
        if hasattr(what, "_answers"):
            return what
        made = _answering(what, what.__name__)
        home = sys.modules.get(what.__module__)
        if getattr(home, what.__name__, None) is what:  # pickle looks for it there
            setattr(home, what.__name__, made)
        return made
    if inspect.isclass(what):
        for kind in what.__mro__:
            if kind.__module__.startswith(_OURS) and "_answers" not in vars(kind):
                _answer_in(kind)
    return what


def _answer_in(kind: type) -> None:
    for name, method in list(vars(kind).items()):
        if name != "__init__" and name.startswith("_"):
            continue
        who = kind.__name__ if name == "__init__" else name
        if inspect.isfunction(method):
            setattr(kind, name, _answering(method, who))
        elif isinstance(method, classmethod | staticmethod):
            setattr(kind, name, type(method)(_answering(method.__func__, who)))
    kind._answers = True  # type: ignore[attr-defined]


def _answering(function: Callable[..., Any], who: str) -> Callable[..., Any]:
    switches = [n for n, p in inspect.signature(function).parameters.items() if p.annotation in (bool, "bool")]

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        for name in switches:
            if isinstance(named.get(name), str):  # every word, "no" too, would be taken for a yes
                raise ValueError(f"{who}: {name}: wanted True or False, got {named[name]!r:.40}; give one of the two")
        try:
            made = function(*given, **named)
        except (TypeError, AttributeError) as error:
            if "wanted" not in str(error):  # else it is in our words
                _check(function, who, given, named)
            raise
        except (ValueError, OSError) as error:
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (visible_lines(error.args[0]),)  # the name of a file may be a stranger's too
            raise
        if type(made).__module__.startswith(_OURS):
            answering(type(made))
        return made

    call._answers = True  # type: ignore[attr-defined]
    return call


def _check(function: Callable[..., Any], who: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raise TypeError where a function cannot be called so, in words that say how it can."""
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*given, **named).arguments
    except TypeError as error:
        kinds = {n: p for n, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        names = [n for n in kinds if n not in ("self", "cls")]
        if len(kinds) == len(signature.parameters):
            check_arguments(named, names, who)
        wanted = [n for n, p in kinds.items() if p.default is p.empty and n not in named][len(given) :]
        got = f"none for {', '.join(wanted)}" if wanted else str(error)
        raise TypeError(f"{who}: wanted arguments of {', '.join(names)}, got {got}; its help says what they are") from None
    for name, value in bound.items():
        if wanted := _unlike(value, signature.parameters[name].annotation):
            got = "None" if value is None else f"{type(value).__name__} {visible_lines(str(value))[:40]!r}"
            raise TypeError(f"{who}: {name}: wanted {wanted}, got {got}; give one")


def _unlike(value: Any, annotation: Any) -> str:
    """What an annotation says, where it is plain (`Trace`, `str | Path | None`) and the value is something else; else nothing."""
    names = [n.rsplit(".", 1)[-1] for n in str(annotation).split(" | ")]
    if not set(names) <= _KINDS.keys() or any(_is(value, name) for name in names):
        return ""
    return " or ".join(_KINDS[n][1] for n in names if n not in ("None", "str" if "Path" in names else ""))


def _is(value: Any, name: str) -> bool:
    kind = _KINDS[name][0]
    return name in (k.__name__ for k in type(value).__mro__) if kind is None else isinstance(value, kind)

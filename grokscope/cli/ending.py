"""How a command ends: a user's mistake is one line and exit status 1, an interrupt one line and 130, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from grokscope.harmless import visible_lines


def interruptible(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that says when Ctrl-C ended it, and what is kept; typer would end in silence."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except KeyboardInterrupt as told:
            print(f"grokscope: {str(told) or 'interrupted'}", file=sys.stderr)
            raise typer.Exit(130) from None

    return call


def run(app: typer.Typer) -> None:
    """The command line, to its end."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal in ASCII or cp1252 shows what it can, and ? for the rest
            stream.reconfigure(errors="replace")
    try:
        app()
    except BrokenPipeError:  # the reader of our output has gone, as head does; what was to be written is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError, MemoryError, TypeError, IndexError, ImportError, RecursionError) as error:
        is_systems = isinstance(error, OSError) and error.errno is not None
        line = f"{error.strerror}: {error.filename}" if is_systems else str(error) or type(error).__name__
        print(f"grokscope: {visible_lines(line)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as told:
        print(f"grokscope: {str(told) or 'interrupted'}", file=sys.stderr)
        raise SystemExit(130) from None



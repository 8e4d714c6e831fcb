"""What lies beside a tokenizer's file: tokenizer_config.json, chat_template.jinja. Read as text, never run here."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from grokscope.disk.reading import read_bytes, read_json
from grokscope.harmless import told
from grokscope.text.given import decoded

TEMPLATE_LIMIT = 1 << 22
"""Bytes of a chat template."""


class Beside:
    """What the files beside a tokenizer's say of it."""

    def __init__(self, path: Path, template: str | None = None) -> None:
        self._folder, self._template = path.parent, template

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._folder / "tokenizer_config.json"
        try:
            found = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        if not isinstance(found, dict):
            raise ValueError(f"{path}: wanted names with values, got {told(found)}; remove it, or copy it again")
        return found

    @property
    def adds_bos(self) -> bool | None:
        """Whether a beginning-of-text token is put before a text; None where nothing is said."""
        said = self._config.get("add_bos_token")
        return said if isinstance(said, bool) else None

    @property
    def bos(self) -> str | None:
        """The beginning-of-text token's content."""
        return self.special_tokens.get("bos_token")

    @property
    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, ...: their contents, for a chat template."""
        named = {name: value for name, value in self._config.items() if name.endswith("_token")}
        contents = {n: v.get("content") if isinstance(v, dict) else v for n, v in named.items()}
        return {name: content for name, content in contents.items() if isinstance(content, str)}

    @property
    def chat_template(self) -> str | None:
        """Jinja source: chat_template.jinja, else the config's own (of several the one named default), else the format's."""
        path = self._folder / "chat_template.jinja"
        try:
            return decoded(read_bytes(path, TEMPLATE_LIMIT), str(path))
        except (FileNotFoundError, NotADirectoryError):
            said = self._config.get("chat_template")
        if isinstance(said, list):
            said = {t.get("name"): t.get("template") for t in said if isinstance(t, dict)}.get("default")
        return said if isinstance(said, str) else self._template

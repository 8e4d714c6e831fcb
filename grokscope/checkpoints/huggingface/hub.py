"""Models of the Hugging Face hub, by the hub's own client: fetched once, resumed, then read from its cache."""

from __future__ import annotations

import re
from pathlib import Path

from grokscope.checkpoints.pickle_machine import CheckpointError

WANTED = [
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.model", "tokenizer.json", "tokenizer.tok.json",
    "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json",
]  # fmt: skip
"""No code, no pickles."""
UNWANTED = ["consolidated*", "*/*"]
"""Second copies in another format, which lie beside or in folders (original/, metal/)."""


def is_hub_id(text: str) -> bool:
    """Whether this can be a model's name on the hub: owner/name."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text, re.ASCII))


def download(hub_id: str, weights: bool = True) -> Path:
    """The directory of a model of the hub, fetched if the hub's cache does not have it. Raises CheckpointError.

    weights: without them the config and the index alone are fetched, to say what a model takes.
    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are the client's own.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        wanted = WANTED if weights else ["config.json", "*.safetensors.index.json"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=UNWANTED))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{hub_id}: wanted a model that this account may read, the hub keeps it behind a form; accept its terms on "
            f"https://huggingface.co/{hub_id}, then set HF_TOKEN or run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: wanted a directory here or a model of the Hugging Face hub, got neither (the hub has no such "
            "model, or it is private); check the name, or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: wanted a directory here or a model of the Hugging Face hub, got neither (the hub does not answer, "
            "and its cache has no such model); go online, or `hf download` it where there is a network and give its directory"
        ) from error
    except Exception as error:  # the hub's client lets those of its HTTP library through, too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{hub_id}: wanted a directory here or a model of the Hugging Face hub, got neither ({reason}); "
            "check the name, or `hf download` it where there is a network and give its directory"
        ) from error

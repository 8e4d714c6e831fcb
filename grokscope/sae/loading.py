"""cfg.json and sae_weights.safetensors, as SAELens writes them, in and out; nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.mapped_safetensors import map_arrays, stretches
from grokscope.disk.reading import read_json
from grokscope.disk.writing import whole_file, write_whole
from grokscope.harmless import told, visible
from grokscope.sae.sae import Sae
from grokscope.sites import SITES, TRANSFORMER_LENS, parse_site
from grokscope.text.given import is_whole

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_EVERY = {"W_enc": "IS", "W_dec": "SO", "b_dec": "O"}
_PLAIN = _EVERY | {"b_enc": "S"}
TENSORS = {
    "standard": _PLAIN, "topk": _PLAIN, "jumprelu": _PLAIN | {"threshold": "S"},
    "gated": _EVERY | {"b_gate": "S", "b_mag": "S", "r_mag": "S"}, "transcoder": _PLAIN,
    "skip_transcoder": _PLAIN | {"W_skip": "OI"}, "jumprelu_transcoder": _PLAIN | {"threshold": "S"},
    "jumprelu_skip_transcoder": _PLAIN | {"threshold": "S", "W_skip": "OI"},
}  # fmt: skip
"""Of each architecture its arrays: I d_in, S d_sae, O d_out."""
NORMS = ("none", "layer_norm", "constant_norm_rescale")
MOST = 1 << 24
AGAIN = "save it anew by SAELens' save_model"


def load(path: str | Path, site: str | None = None, layer: int | None = None, writes: str | None = None) -> Sae:
    """A sparse autoencoder or transcoder from a directory with SAELens' cfg.json and sae_weights.safetensors (versions 3 to 6).

    site, layer: where it belongs, else as its hook_name says ("blocks.3.hook_resid_post"); writes: of a transcoder the site that it
    says, else as its hook_name_out says. Architectures: standard, gated, topk, jumprelu (to which SAELens turns batch-top-k),
    transcoder, skip_transcoder, jumprelu_transcoder, jumprelu_skip_transcoder. Weights are widened to float32. Raises
    FileNotFoundError, ValueError in one line for a pickle, another architecture or activation, a missing array, shapes that do not
    agree, numbers that are not finite, places that contradict each other.
    """
    path = Path(path).expanduser()
    if path.suffix in (".pt", ".pth", ".pkl", ".bin"):
        raise ValueError(f"{path}: wanted a directory with {CONFIG} and {WEIGHTS}, got a pickle; {AGAIN}")
    missing = [n for n in (CONFIG, WEIGHTS) if not (path / n).is_file()]
    if missing:
        pickles = sorted(p.name for p in path.glob("*.pt")) if path.is_dir() else []
        hint = f"a pickle ({visible(pickles[0])[:60]}); {AGAIN}" if pickles else "none; name the directory"
        raise FileNotFoundError(f"{path}: wanted {' and '.join(missing)}, got {hint}")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG}: wanted SAELens' settings, got {told(config)}; save it anew")
    made = _settings(path / CONFIG, config)
    weights = _weights(path / WEIGHTS, made["architecture"], config)
    hook = _of(config, "hook_name")
    where = _asked(path, site, layer, _place(hook, _of(config, "hook_layer")))
    writes = _written(path, writes, made["architecture"], config, where[1])
    about = {k: _of(config, k) for k in ("hook_name", "hook_name_out", "model_name", "sae_lens_version")}
    about = {k: v for k, v in about.items() if isinstance(v, str)}
    about |= {"hook_layer_out": out} if is_whole(out := _of(config, "hook_layer_out")) else {}
    if made["k"] > weights["W_enc"].shape[1]:
        raise ValueError(f"{path / CONFIG}: wanted k up to d_sae, got {made['k']}; save it anew")
    return Sae(weights=weights, site=where[0], layer=where[1], writes=writes, about=about, **made)


def _of(config: Mapping[str, Any], name: str) -> Any:
    """A field, from version 6 on of the metadata."""
    metadata = config.get("metadata")
    return config.get(name, metadata.get(name) if isinstance(metadata, dict) else None)


def _place(hook: Any, layer: Any) -> tuple[str | None, int | None]:
    try:
        site, named = parse_site(hook)
    except ValueError:
        return None, None
    layer = named if named is not None else layer if SITES[site].in_block and is_whole(layer) else None
    return site, layer


def _asked(path: Path, site: str | None, layer: int | None, hook: tuple[str | None, int | None]) -> tuple[str | None, int | None]:
    """(site, layer) as the caller says, else as the hook does."""
    name, named = (hook[0], None) if site is None else parse_site(site)
    if layer is not None and (not is_whole(layer) or layer < 0 or named not in (None, layer)):
        also = "" if named is None else f", as {site} says"
        raise ValueError(f"{path}: layer: wanted a number from 0{also}, got {layer!r:.40}; name one place")
    if name is None:
        return None, None
    inside = SITES[name].in_block
    if layer is not None and not inside:
        raise ValueError(f"{path}: layer: wanted none for {name}, which lies outside the layers, got {layer}; leave it out")
    chosen = next((n for n in (layer, named, hook[1]) if n is not None), None) if inside else None
    if inside and chosen is None:
        raise ValueError(f"{path}: wanted the layer of {name}, got none from the hook; say it in load(path, layer=)")
    return name, chosen


def _written(path: Path, asked: str | None, architecture: str, config: Mapping[str, Any], layer: int | None) -> str | None:
    """The site that a transcoder writes, as the caller says, else as its hook does where that is in the layer that it reads."""
    transcodes = "transcoder" in architecture
    if asked is None:
        site, at = _place(_of(config, "hook_name_out"), _of(config, "hook_layer_out")) if transcodes else (None, None)
        return site if at in (None, layer) else None
    if not transcodes:
        raise ValueError(f"{path}: writes: wanted a transcoder, got {architecture}, which writes what it reads; leave writes out")
    site, at = parse_site(asked)
    if at not in (None, layer):
        raise ValueError(f"{path}: writes: wanted a site of layer {layer}, which it reads, got one of {at}; leave it out")
    return site


def _settings(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say how it computes, checked."""

    def wanted(what: str, got: Any) -> ValueError:
        return ValueError(f"{path}: wanted {what}, got {told(got)}; run it in SAELens, or save it anew")

    architecture = config.get("architecture", "standard")
    activation = _of(config, "activation_fn") or config.get("activation_fn_str", "relu")
    kwargs = config.get("activation_fn_kwargs") or config.get("activation_fn_kwarg") or {}
    if architecture == "standard" and activation == "topk":
        architecture = "topk"  # as versions before 6 have it
    if not isinstance(architecture, str) or architecture not in TENSORS:
        raise wanted(f"an architecture of {', '.join(TENSORS)}", architecture)
    if activation not in ("relu", "topk") or (activation == "topk" and architecture != "topk"):
        raise wanted("the activation relu, or topk of its architecture", activation)
    k = config.get("k", kwargs.get("k") if isinstance(kwargs, dict) else None) if architecture == "topk" else 0
    if architecture == "topk" and (not is_whole(k) or not 0 < k < MOST):
        raise wanted("k, a whole number of features", k)
    norm = config.get("normalize_activations", "none") or "none"
    if norm not in NORMS:
        raise wanted(f"normalize_activations of {', '.join(NORMS)} (a scale by the average is folded in by SAELens first)", norm)
    if config.get("rescale_acts_by_decoder_norm") is True and architecture != "topk":
        raise wanted("rescale_acts_by_decoder_norm of a topk dictionary", architecture)
    if "transcoder" in architecture and norm != "none":
        raise wanted("normalize_activations none of a transcoder", norm)
    center = config.get("apply_b_dec_to_input", "transcoder" not in architecture)
    by_norm = config.get("rescale_acts_by_decoder_norm", False)
    for name, value in {"apply_b_dec_to_input": center, "rescale_acts_by_decoder_norm": by_norm}.items():
        if not isinstance(value, bool):
            raise wanted(f"{name} true or false", value)
    if config.get("finetuning_scaling_factor"):
        raise wanted("finetuning_scaling_factor folded into the weights", True)
    if center and "transcoder" in architecture:
        raise wanted("apply_b_dec_to_input false of a transcoder", center)
    return {"architecture": architecture, "k": int(k), "center": center, "norm": norm, "by_decoder_norm": by_norm}


def _weights(path: Path, architecture: str, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    found = map_arrays(path)
    if "threshold" not in found and "log_threshold" in found:  # an older way to keep it
        found["threshold"] = np.exp(found["log_threshold"].astype(np.float32))
    names = TENSORS[architecture]
    if missing := [n for n in names if n not in found]:
        there = ", ".join(visible(n)[:40] for n in list(found)[:8]) or "nothing"
        raise ValueError(f"{path}: wanted {missing[0]} of a {architecture} dictionary, got {there}; save it anew")
    sizes = {"I": config.get("d_in"), "S": config.get("d_sae")}
    sizes["O"] = config.get("d_out", sizes["I"]) if "transcoder" in architecture else sizes["I"]
    if wrong := [n for n in sizes.values() if not is_whole(n) or not 0 < n < MOST]:
        where = path.parent / CONFIG
        raise ValueError(f"{where}: wanted d_in, d_sae and d_out as whole numbers, got {told(wrong[0])}; save it anew")
    made = {}
    for name, dims in names.items():
        wanted, a = [sizes[c] for c in dims], found[name]
        if list(a.shape) != wanted or a.dtype.kind not in "fV":
            raise ValueError(f"{path}: wanted {name} as numbers {wanted}, got {a.dtype} {list(a.shape)}; save it anew")
        made[name] = np.ascontiguousarray(a.astype(np.float32))
        if not np.isfinite(made[name]).all():
            raise ValueError(f"{path}: wanted finite numbers in {name}, got others; train it again")
    return made


def save(sae: Sae, path: str | Path) -> None:
    """Write a directory that `load` and SAELens (6) read. Raises FileExistsError for files that are there."""
    path = Path(path).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    lens = {site: hook for hook, site in reversed(TRANSFORMER_LENS.items())}
    block = "" if sae.layer is None else f"blocks.{sae.layer}."
    hook, out = (block + lens[site] if site in lens else site for site in (sae.site, sae.writes))
    hook, out = hook or sae.about.get("hook_name"), out or sae.about.get("hook_name_out")
    config = {
        "architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": sae.center, "normalize_activations": sae.norm, "reshape_activations": "none",
        "metadata": {**sae.about, "hook_name": hook, "hook_layer": sae.layer},
    }  # fmt: skip
    config |= {"k": sae.k, "rescale_acts_by_decoder_norm": sae.by_decoder_norm} if sae.architecture == "topk" else {}
    if sae.is_transcoder:
        config["d_out"] = sae.d_out
        config["metadata"] |= {"hook_name_out": out} | ({} if sae.writes is None else {"hook_layer_out": sae.layer})
    with whole_file(path / WEIGHTS) as file:
        for part in stretches(sae.weights):
            file.write(part)
    write_whole(path / CONFIG, json.dumps(config, indent=1).encode())

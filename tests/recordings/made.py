"""Recordings as other programs write them."""

from __future__ import annotations

import base64
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.conftest import TINY

RULE = TINY.router


def npy(array: np.ndarray) -> bytes:
    """A .npy file by its description: magic, version, a padded dict, the numbers."""
    kind = {"i": "i", "u": "u", "f": "f"}[array.dtype.kind]
    order = "|" if array.dtype.itemsize == 1 else "<"
    head = f"{{'descr': '{order}{kind}{array.dtype.itemsize}', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    head = head.ljust((10 + len(head)) // 64 * 64 + 53) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + array.tobytes()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bare(array: np.ndarray) -> str:
    """As SGLang: int32, flat, no shape."""
    return b64(struct.pack(f"<{array.size}i", *array.ravel().tolist()))


class Pt:
    """What torch.save writes, by hand: protocol 2 opcodes and a zip that is not compressed."""

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []
        self.seen: dict[str, int] = {}

    def text(self, s: str) -> bytes:
        if s in self.seen:
            return b"h" + bytes([self.seen[s]])
        self.seen[s] = len(self.seen)
        return b"X" + struct.pack("<I", len(s)) + s.encode() + b"q" + bytes([self.seen[s]])

    def value(self, x) -> bytes:
        if isinstance(x, dict):
            return b"}(" + b"".join(self.text(k) + self.value(v) for k, v in x.items()) + b"u"
        if isinstance(x, list):
            return b"](" + b"".join(map(self.value, x)) + b"e"
        if isinstance(x, tuple):
            return b"(" + b"".join(map(self.value, x)) + b"t"
        if isinstance(x, np.ndarray):
            return self.tensor(x)
        if x is None or isinstance(x, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[x]
        return b"J" + struct.pack("<i", x) if isinstance(x, int) else self.text(x)

    def tensor(self, x: np.ndarray, shape=None, strides=None, offset=0) -> bytes:
        name = {"int32": "IntStorage", "int64": "LongStorage", "float32": "FloatStorage"}[x.dtype.name]
        self.storages.append(x)
        shape = x.shape if shape is None else shape
        strides = tuple(s // x.itemsize for s in x.strides) if strides is None else strides
        storage = b"(" + self.text("storage") + b"ctorch\n" + name.encode() + b"\n"
        storage += self.text(str(len(self.storages) - 1)) + self.text("cpu") + self.value(x.size) + b"tQ"
        sizes = b"".join(b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in s) + b"t" for s in (shape, strides))
        hooks = b"\x89ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + self.value(offset) + sizes + hooks + b"tR"

    def file(self, path: Path, body: bytes, compress: int = zipfile.ZIP_STORED, order: bytes = b"little") -> Path:
        with zipfile.ZipFile(path, "w", compress) as z:
            z.writestr("rec/data.pkl", b"\x80\x02" + body + b".")
            z.writestr("rec/byteorder", order)
            for i, storage in enumerate(self.storages):
                z.writestr(f"rec/data/{i}", storage.tobytes())
            z.writestr("rec/version", "3\n")
        return path


def recorder(path: Path, records: list[dict], logical: np.ndarray | None = None) -> Path:
    pt = Pt()
    return pt.file(path, pt.value({"records": records, "last_physical_to_logical_map": logical}))


def one_pass(experts: np.ndarray, ids, positions, lengths) -> dict:
    """One record; experts [tokens, layers, k] as the recorder keeps them, [layers, tokens, 8]."""
    wide = np.full((experts.shape[1], len(experts), 8), -1, np.int32)
    wide[:, :, : experts.shape[2]] = np.moveaxis(experts, 1, 0)
    return {
        "forward_pass_id": 1, "rank": 0, "gatherer_key": "primary", "input_ids": list(map(int, ids)),
        "positions": list(positions), "extend_seq_lens": lengths, "forward_mode": 1 if lengths else 2,
        "topk_ids_of_layer": wide, "misc_objects": [], "global_physical_count": np.zeros((3, 5), np.int32),
    }  # fmt: skip


def put(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


GOOD = np.array([[[0, 1], [2, 3]], [[4, 0], [1, 2]], [[3, 2], [0, 4]]])

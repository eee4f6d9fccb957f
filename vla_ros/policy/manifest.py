"""What a policy folder says about itself, and the checks that make it trustworthy enough to load.

A folder is loaded only if every listed file is there with the listed size and SHA-256, and it was made for the loaded
contract. Pickles are refused by name and by content: loading one runs its author's code.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vla_ros.core.errors import VlaError
from vla_ros.policy.confidence import TEMPERATURE_MAX, TEMPERATURE_MIN
from vla_ros.policy.language import Lexicon

FORMAT = 1
FILE_NAME = "manifest.json"
MANIFEST_MAX_BYTES = 2_000_000
FILE_MAX_BYTES = 200_000_000
ALLOWED_SUFFIXES = (".onnx", ".npz", ".safetensors", ".md")
WEIGHTS = "policy.safetensors"  # of the model, to train further and to make other graphs of
TEXT_PART = ".text.onnx"  # ending of the part of a graph that reads the sentence alone: policy/split.py
PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")


class PolicyInvalid(VlaError):
    """A policy folder that is not loaded; says which file, which field and what to do."""


class FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=1, le=FILE_MAX_BYTES)


class Manifest(BaseModel):
    """manifest.json. `precision` is what the quantizer did; what really runs is counted again at every load."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int = Field(ge=FORMAT, le=FORMAT)
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")
    contract_name: str = Field(max_length=64)
    contract_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    graph: str  # file that runs by default
    float_graph: str | None = None  # the same in fp32
    self_test: str  # one stored observation with the graph's own answer
    files: dict[str, FileEntry] = Field(min_length=1, max_length=16)
    cameras: tuple[str, ...] = Field(min_length=1, max_length=4)
    image_px: int = Field(ge=16, le=1024)
    state_dim: int = Field(ge=1, le=256)
    rows: int = Field(ge=1, le=64)
    cols: int = Field(ge=2, le=17)
    action_space: str
    dt_s: float = Field(ge=0.01, le=0.5)
    prefix_max: int = Field(ge=0, le=64)  # rows of a committed prefix that the model was trained with
    # Divides the logit of the confidence (policy/confidence.py); manifests of before lack it.
    confidence_temperature: float = Field(1.0, ge=TEMPERATURE_MIN, le=TEMPERATURE_MAX)
    action_mean: tuple[tuple[float, ...], ...]  # (rows, cols), physical units; inside the graph, here for the reader
    action_std: tuple[tuple[float, ...], ...]
    vocabulary: tuple[str, ...] = Field(min_length=3, max_length=4096)
    text_tokens: int = Field(ge=1, le=256)
    lexicon: Lexicon
    model: dict[str, Any]
    data: dict[str, Any]  # seed, revision, sizes
    training: dict[str, Any]
    precision: dict[str, Any]
    metrics: dict[str, Any]

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name) or not name.endswith(ALLOWED_SUFFIXES):
                raise ValueError(
                    f"{name!r}: a plain file name ending in one of {', '.join(ALLOWED_SUFFIXES)} is allowed"
                )
        return files


def text_part(graph: str) -> str:
    """Name of a graph's text part, whether there is one or not."""
    return graph.removesuffix(".onnx") + TEXT_PART


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )  # Python 3.10 lacks file_digest


def entry(path: Path) -> FileEntry:
    return FileEntry(sha256=digest(path), bytes=path.stat().st_size)


def refuse_pickles(folder: Path) -> None:
    """Raises PolicyInvalid for a folder with a file that is a pickle or holds one."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_pickle(path):
            raise PolicyInvalid(
                f"{path}: is or holds a pickle, which runs code when it is loaded; weights are taken as "
                ".safetensors or .onnx only. Remove the file"
            )


def is_pickle(path: Path) -> bool:
    """By name, by an archive's members, or by content. Nothing is unpickled to find out."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    if zipfile.is_zipfile(path):  # .npz; what torch.save writes
        with zipfile.ZipFile(path) as archive:
            return any(_member_is_pickle(archive, member) for member in archive.namelist())
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file begins with the length of its JSON header, whose bytes may be anything.
    length = int.from_bytes(head[:8], "little")
    if head[8:] == b"{" and length <= path.stat().st_size - 8:
        return False
    return _begins_a_pickle(head)


def _begins_a_pickle(head: bytes) -> bool:
    """PROTO and a version, as every pickle since protocol 2 begins. No text (UTF-8), JSON or ONNX file does: the first
    byte is no character, and the two are the key of a field that ONNX does not have."""
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _member_is_pickle(archive: zipfile.ZipFile, name: str) -> bool:
    if name.lower().endswith(PICKLE_SUFFIXES):
        return True
    with archive.open(name) as member:
        head = member.read(10)
        if head[:6] != b"\x93NUMPY":
            return _begins_a_pickle(head)
        wide = head[6] >= 2  # version 1.0 gives the header's length in two bytes, later ones in four
        header = head[10:] + member.read(int.from_bytes(head[8:10], "little") + (2 if wide else 0))
        return b"|O" in header  # an array of objects is a pickle inside


def read(folder: Path, contract_hash: str) -> Manifest:
    """Manifest of a policy folder after every check of names, sizes and sums. Raises PolicyInvalid."""
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise PolicyInvalid(f"{folder}: no such folder; give the folder that holds {FILE_NAME}")
    if not path.is_file():
        refuse_pickles(folder)
        raise PolicyInvalid(f"{path}: missing; a policy folder is made by `python -m vla_ros.policy.export`")
    if path.stat().st_size > MANIFEST_MAX_BYTES:
        raise PolicyInvalid(f"{path}: {path.stat().st_size} bytes, at most {MANIFEST_MAX_BYTES} are read")
    refuse_pickles(folder)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}" for e in error.errors()[:8])
        raise PolicyInvalid(f"{path}: {lines}. Export the policy again with this version") from error
    if manifest.contract_hash != contract_hash:
        raise PolicyInvalid(
            f"{path}: contract_hash {manifest.contract_hash[:12]} is not that of the loaded contract "
            f"({contract_hash[:12]}): the policy was trained for another body. Load its contract "
            f"({manifest.contract_name}) or train a policy for this one"
        )
    for field in ("graph", "float_graph", "self_test"):
        name = getattr(manifest, field)
        if name is not None and name not in manifest.files:
            raise PolicyInvalid(f"{path}: {field} names {name!r}, which is not among its files")
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file() or file.is_symlink():
            raise PolicyInvalid(f"{file}: missing (or a link), but listed in {FILE_NAME}; copy the whole folder again")
        if file.stat().st_size != expected.bytes:
            raise PolicyInvalid(
                f"{file}: {file.stat().st_size} bytes, {FILE_NAME} says {expected.bytes}: truncated or altered; "
                "copy the folder again"
            )
        if digest(file) != expected.sha256:
            raise PolicyInvalid(f"{file}: SHA-256 differs from {FILE_NAME}: altered; copy the folder again")
    return manifest

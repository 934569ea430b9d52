"""`ant-hf export`: write a format's files aside, verify them, seal what was seen, and only then name them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.gguf_checks import read_back, run_in_llama_cpp
from ant_hf.export.gguf_file import Origin, write_gguf
from ant_hf.export.gguf_tensors import TYPES, check_architecture
from ant_hf.export.gguf_vocabulary import read_vocabulary
from ant_hf.export.llama_cpp import is_installed
from ant_hf.export.ollama import modelfile
from ant_hf.export.onnx_graph import check_onnx, write_onnx
from ant_hf.model.loading import Subject, load_subject
from ant_hf.model.saving import TOKENIZER_FILES
from ant_hf.utils.console import say
from ant_hf.utils.disk import check_room, writing
from ant_hf.utils.files import file_sha256, read_sealed, whole_folder, write_sealed, write_text
from ant_hf.utils.names import VERIFIED
from ant_hf.utils.provenance import now, package_versions

MODELFILE = "Modelfile"
WITHOUT_LLAMA_CPP = "llama.cpp: not run, xllamacpp is not installed; pip install 'ant-hf[gguf]'"
_NEEDS = {"gguf": ("gguf",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_VERSIONS = ("ant-hf", "transformers", "torch", "gguf", "xllamacpp", "onnx", "onnxscript", "onnxruntime")
# Bytes a parameter of each format; ONNX is F32 too.
_BYTES = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "onnx": 4}


@dataclass(frozen=True)
class Export:
    """What to export, and as what."""

    model: str
    """Folder or Hub id."""
    to: str
    types: tuple[str, ...] = ()
    """GGUF types; all when empty."""
    output: Path | None = None
    repository: str | None = None
    """`owner/name` under which it is or will be published."""
    license: str | None = None


def export(job: Export) -> tuple[Path, dict[str, Any]]:
    """Export and verify; what is there already, made of the same files by the same versions, is kept.

    Returns:
        The folder, and the record in its `verified.json`.

    Raises:
        AntError: a package is missing, the format cannot hold this model, or a file failed its verification;
            the folder is then as it was before.
    """
    types = _check_job(job)
    subject = load_subject(job.model, "float32", "cpu")
    target = job.output or _default_output(subject, job.to)
    _check_target(target)
    record = _record(job, subject, types)
    if (there := _reusable(target, record)) is not None:
        return target, there
    needed = (
        int(sum(_BYTES[kind] for kind in (types or ("onnx",))) * subject.identity["parameters"]) + 2_000_000
    )
    check_room("the export", target.parent, needed)
    with writing("the export", target.parent, needed), whole_folder(target) as folder:
        if job.to == "gguf":
            files = _gguf(folder, subject, types, _origin(job, subject))
        else:
            files = _onnx(folder, subject)
        record["left_out"] = [WITHOUT_LLAMA_CPP] if job.to == "gguf" and not is_installed() else []
        record["files"] = dict(files)
        record["made"] = now()
        write_sealed(folder / VERIFIED, record)
    return target, record


def _check_job(job: Export) -> tuple[str, ...]:
    """The types to write.

    Raises:
        AntError: an unknown format or type, or a package that is missing.
    """
    if job.to not in _NEEDS:
        raise AntError("unknown format", seen=job.to, expected=" or ".join(_NEEDS))
    types = tuple(dict.fromkeys(TYPES if not job.types or "all" in job.types else job.types))
    if unknown := [kind for kind in types if kind not in TYPES]:
        raise AntError("unknown GGUF type", seen=unknown[0], expected=f"{', '.join(TYPES)} or all")
    if job.to == "onnx" and job.types:
        raise AntError("--type is for GGUF; ONNX is written in float32", seen=", ".join(job.types))
    if missing := [name for name in _NEEDS[job.to] if importlib.util.find_spec(name) is None]:
        raise AntError(
            f"the export to {job.to} needs {', '.join(missing)}", hint=f"pip install 'ant-hf[{job.to}]'"
        )
    return types if job.to == "gguf" else ()


def _default_output(subject: Subject, to: str) -> Path:
    """Beside a run's final folder; for any other model under exports/."""
    if subject.folder.name == "final":
        return subject.folder.parent / to
    return Path("exports", subject.name.replace("/", "_"), to)


def _check_target(target: Path) -> None:
    """A folder is replaced as a whole, so it must be ours."""
    if (
        target.exists()
        and not (target / VERIFIED).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise AntError(
            f"{target} is there and holds no export", hint="Pass a folder that is new or empty: --output DIR"
        )


def _origin(job: Export, subject: Subject) -> Origin:
    name = job.repository.rpartition("/")[2] if job.repository else subject.name.removesuffix("/final")
    return Origin(re.sub(r"[^\w.-]+", "_", name.rpartition("/")[2] or name), job.repository, job.license)


def _record(job: Export, subject: Subject, types: tuple[str, ...]) -> dict[str, Any]:
    """What an export is made of; it is made again when any of this changes."""
    return {
        "format_version": 1,
        "to": job.to,
        "types": list(types),
        "name": _origin(job, subject).name,
        "repository": job.repository,
        "license": job.license,
        "made_of": {key: value for key, value in subject.identity.items() if key.endswith("sha256")},
        "parameters": subject.identity["parameters"],
        "versions": package_versions(_VERSIONS),
    }


def _reusable(target: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an export that is what is asked for, with every file as it was verified."""
    if not (target / VERIFIED).is_file():
        return None
    record = read_sealed(target / VERIFIED, "record of the export", f"Remove {target} to export anew.")
    same = {key: record.get(key) for key in wanted} == wanted
    files = record.get("files", {})
    whole = all(
        (target / name).is_file() and file_sha256(target / name) == values["sha256"]
        for name, values in files.items()
    )
    return record if same and whole else None


def _threads() -> int:
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def _gguf(
    folder: Path, subject: Subject, types: Sequence[str], origin: Origin
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One file a type, each verified before the next, and the Modelfile of the smallest."""
    model, tokenizer = subject.model, subject.tokenizer
    vocabulary = read_vocabulary(subject.folder, tokenizer, model.config.vocab_size)
    for kind in types:
        check_architecture(model, kind)
    names = {kind: f"{origin.name}-{kind.upper()}.gguf" for kind in types}
    for kind, name in names.items():
        file = folder / name
        write_gguf(file, model, vocabulary, kind, origin)
        say(f"{kind.upper():<12}{file.stat().st_size:,} bytes written; verifying")
        loaded, figures = read_back(file, model, tokenizer, kind)
        verified: dict[str, Any] = {"transformers": figures, "llama_cpp": None}
        if is_installed():
            verified["llama_cpp"] = run_in_llama_cpp(file, model, loaded, tokenizer, kind, _threads())
        yield name, {**_file(file), "type": kind.upper(), "verified": verified}
    smallest = names[min(types, key=_BYTES.__getitem__)]
    write_text(folder / MODELFILE, modelfile(smallest, model.config.max_position_embeddings, origin.license))
    yield MODELFILE, _file(folder / MODELFILE)


def _onnx(folder: Path, subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """The graph, and the tokenizer's files as they are."""
    model: PreTrainedModel = subject.model
    write_onnx(folder, model)
    say("onnx        graph written; verifying")
    figures = check_onnx(folder, model, subject.tokenizer, _threads())
    for name in TOKENIZER_FILES:
        if (subject.folder / name).is_file():
            shutil.copyfile(subject.folder / name, folder / name)
    for path in sorted(folder.iterdir()):
        yield (
            path.name,
            _file(path) | ({"verified": {"onnxruntime": figures}} if path.name == "model.onnx" else {}),
        )


def _file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

"""`ant-hf export`: write a format's files into a temporary folder, verify them, then move them in place."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ant_hf.errors import AntError
from ant_hf.export import gguf, llama_cpp, onnx, verification
from ant_hf.export.vocabulary import Vocabulary, read_vocabulary
from ant_hf.model.loading import Subject, check_weights, load_subject, tokenizer_folder, weights_hash
from ant_hf.utils import files
from ant_hf.utils.console import quiet_libraries, say
from ant_hf.utils.hardware import threads_per_process
from ant_hf.utils.names import ONNX, VERIFIED
from ant_hf.utils.provenance import install_command, now, package_versions
from ant_hf.utils.stopping import phase

# Beside those that a kind of tokenizer has of its own.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.j*", "additional_chat_templates/*.jinja",
)  # fmt: skip
# What lies beside the graphs, as it is.
_MODEL_FILES = ("config.json", "generation_config.json")
_NEEDS = {"gguf": ("gguf",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_FORMATS: dict[str, Any] = {"gguf": gguf, "onnx": onnx}
_VERSIONS = ("ant-hf", "transformers", "torch", "gguf", "xllamacpp", "onnx", "onnxscript", "onnxruntime")


@phase("exporting", "The folder of the export is as it was before. Run the same command again.")
def export(
    model: str,
    to: str,
    types: Sequence[str] = (),
    output: Path | None = None,
    repository: str | None = None,
    license_id: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Export and verify; what is there already, made of the same files by the same versions, is kept.

    Args:
        model: folder or Hub id.
        to: `gguf` or `onnx`.
        types: of the format, or `all`; its `DEFAULT_TYPES` when empty.
        repository: `owner/name` under which it is or will be published.

    Returns:
        The folder, and the record in its `verified.json`.

    Raises:
        AntError: an unknown format or type; a package is missing; the folder holds something else; the format
            cannot hold this model, or a file failed its verification. The folder is then as it was before.
    """
    types = _checked_types(to, types)
    subject = load_subject(model, "float32", "cpu")
    vocabulary = _checked_model(subject, to, types)
    # Beside a run's final folder; for any other model under exports/.
    beside = subject.folder.parent if subject.folder.name == "final" else None
    target = output or (beside or Path("exports", subject.name.replace("/", "_"))) / to
    name = (repository or subject.name.removesuffix("/final")).rpartition("/")[2]
    origin = gguf.Origin(re.sub(r"[^\w.-]+", "_", name), repository, license_id)
    # An export is made again when any of this changes.
    record: dict[str, Any] = {
        "format_version": 3,
        "to": to,
        "types": list(types),
        **vars(origin),
        "made_of": {
            **{key: value for key, value in subject.identity.items() if key.endswith("sha256")},
            "settings_sha256": files.fingerprint(
                [subject.tokenizer.chat_template, subject.model.generation_config.to_diff_dict()]
            ),
        },
        "parameters": subject.identity["parameters"],
        "versions": package_versions(_VERSIONS),
    }
    if (there := _reusable(target, record)) is not None:
        return target, there
    files.check_writable(target.parent, "--output FOLDER")
    needed = int(sum(_FORMATS[to].TYPES[kind].bytes for kind in types) * record["parameters"]) + 2_000_000
    files.check_room("the export", target.parent, needed, "or set another folder with --output")
    with (
        files.writing("the export", target.parent, needed),
        _alone(target),
        files.whole_folder(target) as folder,
        # Texts longer than the context are cut on purpose.
        quiet_libraries(),
    ):
        if vocabulary:
            verified, record["notes"] = _gguf(folder, subject, vocabulary, types, origin)
        else:
            verified, record["notes"] = _onnx(folder, subject, types), []
        found = files.inventory(folder)
        # Those that were verified come first, in the order of the types.
        record["files"] = {name: found[name] | verified.get(name, {}) for name in {**verified, **found}}
        record["made"] = now()
        files.write_sealed(folder / VERIFIED, record)
    return target, record


def graphs_beside(folder: Path) -> tuple[list[str], list[str]]:
    """Hold the ONNX graphs beside a model's weights, as a release has them, against their own record.

    Returns:
        The graphs by their place in the folder, and what is wrong with them: files that changed since they
        were verified, or other weights.

    Raises:
        AntError: the record is not there or cannot be read.
    """
    hint = "Export again: ant-hf export MODEL_FOLDER --to onnx"
    record = files.read_sealed(folder / ONNX / VERIFIED, "record of the ONNX export", hint)
    there, verified = files.inventory(folder), record["files"]
    # Beside the graphs the record lists the tokenizer and the config that they were verified with.
    wrong = [name for name in verified if there.get(name, {}).get("sha256") != verified[name]["sha256"]]
    wrong += [name for name in there if name.endswith(".onnx") and name not in verified]
    problems = [f"changed since they were verified: {', '.join(wrong)}"] if wrong else []
    if record["made_of"]["weights_sha256"] != weights_hash(folder):
        problems.append("made from other weights than the safetensors here")
    return [name for name in verified if name.endswith(".onnx")], problems


def _checked_types(to: str, types: Sequence[str]) -> tuple[str, ...]:
    """The types to write."""
    if to not in _NEEDS:
        raise AntError("unknown format", seen=to, expected=" or ".join(_NEEDS))
    form = _FORMATS[to]
    chosen = tuple(dict.fromkeys(form.TYPES if "all" in types else types or form.DEFAULT_TYPES))
    if unknown := [kind for kind in chosen if kind not in form.TYPES]:
        more = "llama.cpp's own llama-quantize makes others, such as Q4_K_M, from the F32 file"
        raise AntError(
            f"unknown {to.upper()} type",
            seen=unknown[0],
            expected=f"{', '.join(form.TYPES)} or all",
            hint=more if to == "gguf" else None,
        )
    check_packages(to)
    return chosen


def check_packages(to: str) -> None:
    """Check that the packages which an export to a format needs are installed.

    Raises:
        AntError: some are not.
    """
    if missing := [name for name in _NEEDS[to] if importlib.util.find_spec(name) is None]:
        raise AntError(
            f"the export to {to.upper()} needs packages that are not installed: {', '.join(missing)}",
            hint=install_command(to),
        )


def _checked_model(subject: Subject, to: str, types: Sequence[str]) -> Vocabulary | None:
    """Check that the format can hold the model, before anything is written; returns the tokenizer for GGUF.

    Raises:
        AntError: names the key of the config, its value, and what is possible.
    """
    check_weights(subject.model)
    config = subject.model.config
    window, layers = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if (
        window
        and "sliding_attention" in (layers or ["sliding_attention"])
        and window < subject.context_length
    ):
        raise AntError(
            "a model with a sliding window cannot be exported: config.json has sliding_window",
            seen=window,
            expected=f"null, or the model's whole context of {subject.context_length}",
            hint="Try llama.cpp's own convert_hf_to_gguf.py, which may know this architecture."
            if layers
            else f"Texts of at most {window} tokens never leave the window. If that is enough, copy the "
            f"folder, set max_position_embeddings to {window} in its config.json, and export the copy.",
        )
    if to == "onnx":
        onnx.check_architecture(subject.model, types)
        return None
    gguf.check_architecture(subject.model, types)
    return read_vocabulary(subject.model, subject.tokenizer)


def _reusable(target: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier export of the same model and types, if every file is as it was verified."""
    if not (target / VERIFIED).is_file():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            # A folder is replaced as a whole, so it must be ours.
            hint = "Pass a folder that is new or empty: --output FOLDER"
            raise AntError(f"{target} exists already and is not an export", hint=hint)
        return None
    record = files.read_sealed(target / VERIFIED, "record of the export", f"Remove {target} to export again.")
    same = {key: record.get(key) for key in wanted} == wanted
    whole = all(
        (target / name).is_file() and files.file_sha256(target / name) == values["sha256"]
        for name, values in record.get("files", {}).items()
    )
    return record if same and whole else None


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Refuse a second export into a folder while one is being made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        hint = "Wait for it, or name another folder: --output FOLDER"
        raise AntError(f"another process is writing to {target}", hint=hint) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _gguf(
    folder: Path, subject: Subject, vocabulary: Vocabulary, types: Sequence[str], origin: gguf.Origin
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """One file per type, each verified before the next, and what Ollama reads, for the suggested one.

    Returns:
        Figures by file, and what the files do not hold.
    """
    model, tokenizer, done, run = subject.model, subject.tokenizer, {}, None
    for kind in types:
        file = folder / (name := gguf.file_name(origin.name, kind))
        gguf.write_gguf(file, model, vocabulary, kind, origin)
        say(kind.upper(), f"{file.stat().st_size:,} bytes written; verifying")
        loaded, figures = verification.read_back(file, model, tokenizer, kind)
        if llama_cpp.is_installed():
            run = verification.run_in_llama_cpp(
                file, model, loaded, tokenizer, vocabulary, kind, threads_per_process()
            )
        done[name] = {"type": kind.upper(), "verified": {"transformers": figures, "llama_cpp": run}}
    best = gguf.file_name(origin.name, gguf.suggested(types))
    for name, text in gguf.ollama_files(best, model, vocabulary, origin.license).items():
        files.write_text(folder / name, text)
    return done, verification.notes(model, vocabulary, run)


def _onnx(folder: Path, subject: Subject, types: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One graph per type, each verified before the next, and the model's own files as they are."""
    tokenizer, source = subject.tokenizer, tokenizer_folder(subject.folder)
    patterns = (*_TOKENIZER_FILES, *tokenizer.vocab_files_names.values())
    copied = {path: path.relative_to(source) for pattern in patterns for path in source.glob(pattern)}
    copied |= {path: Path(name) for name in _MODEL_FILES if (path := subject.folder / name).is_file()}
    for path, name in copied.items():
        copy = folder / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    texts, threads, done = onnx.check_tokenizer(folder, tokenizer), threads_per_process(), {}
    trace = functools.cache(functools.partial(onnx.trace, subject.model))
    for kind in types:
        file = folder / ONNX / onnx.TYPES[kind].file
        onnx.write_onnx(file, trace(onnx.TYPES[kind].dtype), kind)
        say(kind, f"{file.stat().st_size:,} bytes written; verifying")
        figures = onnx.check_onnx(file, subject.model, tokenizer, subject.context_length, threads, kind)
        done[f"{ONNX}/{file.name}"] = {"type": kind, "verified": {"onnxruntime": figures | texts}}
    return done

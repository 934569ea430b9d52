"""A folder that any web server serves: the page of `static/`, models as ONNX, and what runs them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ant_hf
from ant_hf.demo.texts import EXAMPLES
from ant_hf.demo.vendor import copy_packages, find_packages
from ant_hf.errors import AntError
from ant_hf.export import onnx
from ant_hf.export.exporting import check_packages, export, graphs_beside
from ant_hf.export.questions import end_ids
from ant_hf.inspection.fragments import surprise_colours, vocabulary
from ant_hf.model.encoding import added_ids
from ant_hf.model.generation import sampling
from ant_hf.model.loading import Subject, is_here, load_subject, locate
from ant_hf.utils.console import say
from ant_hf.utils.files import check_writable, read_json, whole_folder, write_json
from ant_hf.utils.names import CONFIG, ONNX, RUN_RECORD, VERIFIED

_PAGE = Path(__file__).with_name("static")
_SITE = "site.json"


@dataclass(frozen=True)
class SiteOptions:
    """What goes into a site beside the models."""

    dtypes: Sequence[str] = ("q8", "fp16")
    """Of onnx.TYPES. Processors take the first; graphics cards have no use for q8 and take another."""
    vendor: Path | None = None
    """A `node_modules` with transformers.js; None: npm's registry, once."""
    prompts: Sequence[str] = ()
    """Examples; none: the sample prompt of the model's run, and some in English."""
    repository: str | None = None
    """`owner/name` of the one model on the Hub: what the page calls it, and links to."""

    def __post_init__(self) -> None:
        if unknown := [dtype for dtype in self.dtypes if dtype not in onnx.TYPES]:
            raise AntError("--dtype is unknown", seen=unknown[0], expected=" or ".join(onnx.TYPES))


def make_site(models: Sequence[str], folder: Path, options: SiteOptions) -> Path:
    """Write the site of one or two models, whole or not at all.

    Args:
        models: folders or Hub ids; each is exported to ONNX and verified, unless that was done before or a
            release brings its graphs.

    Raises:
        AntError: as `site_in`; or the folder holds something that is not a site.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / _SITE).is_file():
        raise AntError(
            f"{folder} exists already and is not a site", hint="Name a folder that is new or empty: -o FOLDER"
        )
    check_writable(folder.parent, "-o FOLDER")
    with site_in(folder, models, options):
        pass
    return folder


@contextmanager
def site_in(target: Path, models: Sequence[str], options: SiteOptions) -> Iterator[Path]:
    """A temporary folder with the site in it, to put more into; it takes the place of `target` in the end.

    Raises:
        AntError: a precision is unknown; a model cannot be loaded or exported, or its tokenizer's entries
            have no bytes; what the page runs with cannot be had.
    """
    # First what may fail at once, and before a download what needs none.
    found = [locate(model, [f"{ONNX}/{VERIFIED}"])[1] for model in models]
    if not all((folder / ONNX / VERIFIED).is_file() for folder in found):
        check_packages("onnx")
    subjects = [load_subject(model, "float32", "cpu") for model in models]
    packages, names = find_packages(options.vendor), _names(subjects, options.repository)
    with whole_folder(target) as folder:
        for path in _PAGE.iterdir():
            shutil.copyfile(path, folder / path.name)
        (folder / "colours.css").write_text(_colours(), encoding="utf-8")
        webgpu = any(dtype != "q8" for dtype in options.dtypes)
        copy_packages(packages, folder / "vendor", webgpu)
        facts = [
            _put_model(folder / "models", model, subject, name, options)
            for model, subject, name in zip(models, subjects, names, strict=True)
        ]
        prompts = list(options.prompts) or list(dict.fromkeys([*_sample_prompt(subjects[0]), *EXAMPLES]))
        about = {"made_by": f"ant-hf {ant_hf.__version__}", "webgpu": webgpu}
        write_json(folder / _SITE, {**about, "models": facts, "prompts": prompts})
        yield folder


def _names(subjects: Sequence[Subject], repository: str | None) -> list[str]:
    """What the page calls the models: two different names."""
    names = [repository or re.sub(r"/final$", "", subject.name) for subject in subjects]
    names = [name.rpartition("/")[2] for name in names]
    return names if len({*names}) == len(names) else [f"{name} ({at})" for at, name in enumerate(names, 1)]


def _put_model(models: Path, model: str, subject: Subject, name: str, options: SiteOptions) -> dict[str, Any]:
    """Copy a model as transformers.js loads it, and the bytes of its tokens; returns what the page shows."""
    entries = vocabulary(subject.tokenizer)
    files = {dtype: f"{ONNX}/{onnx.TYPES[dtype].file}" for dtype in options.dtypes}
    exported = _with_graphs(model, subject, name, list(files.values()))
    target = models / re.sub(r"[^\w.-]+", "-", name).strip("-")
    (target / ONNX).mkdir(parents=True)
    for path in (CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(exported / path, target / path)
    for file in files.values():
        shutil.copyfile(exported / file, target / file)
    # A byte as the character of its number.
    raw = [each.decode("latin-1") for each in entries.raw]
    pieces = json.dumps({"raw": raw, "special": sorted(entries.special)}, ensure_ascii=False)
    (target / "pieces.json").write_text(pieces, encoding="utf-8")
    return {
        "name": name,
        "folder": target.name,
        "repository": options.repository or (None if is_here(model) else model),
        "parameters": subject.identity["parameters"],
        "context": subject.context_length,
        "prefix": added_ids(subject.tokenizer),
        "ends": end_ids(subject.model, subject.tokenizer),
        "sampling": sampling(subject.model, greedy=False, given={})[0],
        "dtypes": {dtype: (target / file).stat().st_size for dtype, file in files.items()},
    }


def _with_graphs(model: str, subject: Subject, name: str, wanted: Sequence[str]) -> Path:
    """A folder with the model's graphs: its own, where a release brings those wanted, else an export."""
    if (subject.folder / ONNX / VERIFIED).is_file():
        if not is_here(model):
            # The model was downloaded without them.
            locate(model, [f"{ONNX}/*"])
        graphs, problems = graphs_beside(subject.folder)
        if not problems and {*wanted} <= {*graphs}:
            say("graphs", f"those beside the weights of {name}, as they were verified")
            return subject.folder
    say("export", f"{name} to ONNX, checked against Transformers; minutes if it was not done before")
    # All types, as for a release: a second export in place of that one would have to be made again there.
    return export(model, "onnx")[0]


def _sample_prompt(subject: Subject) -> list[str]:
    """The sample prompt of the run that a model comes from, in its language."""
    for place in (subject.folder, subject.folder.resolve().parent):
        if (place / RUN_RECORD).is_file():
            recipe = read_json(place / RUN_RECORD, "run record", "").get("recipe") or {}
            return [prompt] if (prompt := recipe.get("sample_prompt")) else []
    return []


def _colours() -> str:
    """The steps of surprise, on light and dark pages."""
    steps = zip(surprise_colours("light"), surprise_colours("dark"), strict=True)
    return "".join(
        f".s{step}{{--b:light-dark({light[0]},{dark[0]});--c:light-dark({light[1]},{dark[1]})}}\n"
        for step, (light, dark) in enumerate(steps)
    )

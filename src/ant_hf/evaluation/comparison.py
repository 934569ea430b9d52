"""Which of two models is better: their results lined up by document, tested, and told in words.

The first model is the one in question; it is compared with each of the others. No torch, unless something has
to be measured first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.evaluation.comparison_report import write_report
from ant_hf.evaluation.entries import Entry, read_entries
from ant_hf.evaluation.pairing import METHOD, Pair, compare_figures, corrected, listed
from ant_hf.utils.console import say
from ant_hf.utils.files import check_writable, whole_folder, write_sealed
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import COMPARISON, CONFIG, FINAL, METRICS, RELEASE, RESULTS, expand_home
from ant_hf.utils.provenance import now, package_versions, without_paths
from ant_hf.utils.stopping import phase

SCHEMA = 1


@dataclass
class Subject:
    """A model, or what was measured of one."""

    given: str
    name: str
    folder: Path | None
    """Of the model; None where there are only results."""
    places: list[Path]
    """Where results are looked for; new ones go to the first."""
    weights_sha256: str | None = None
    entries: dict[str, Entry] = field(default_factory=dict)

    def read(self) -> None:
        """Take every figure from the first place that has its documents, else from the first that has it."""
        self.entries = {}
        for place in self.places:
            if not (place / RESULTS).is_file():
                continue
            for name, entry in read_entries(place).items():
                if self.weights_sha256 not in (None, entry.source.model["weights_sha256"]):
                    raise AntError(
                        f"{place / RESULTS} was measured with other weights than those of {self.folder}",
                        hint=f"Measure again: ant-hf evaluate {self.given} --output-dir {place} --fresh",
                    )
                there = self.entries.get(name)
                if there is None or (there.documents is None and entry.documents is not None):
                    self.entries[name] = entry

    def lacks(self, tasks: Sequence[str]) -> list[str]:
        """Those of the sets for which there is no result."""
        return [task for task in tasks if task not in {entry.task for entry in self.entries.values()}]


@phase("comparing models", "What was measured is kept. Run the same command again to continue.")
def compare(
    models: Sequence[str | Path],
    tasks: Sequence[str] = (),
    *,
    data_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    limit: int | None = None,
    yes: bool = False,
    ask: Callable[[str], bool] | None = None,
    for_card: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Compare the first model with each of the others, set by set, and write the comparison's folder.

    Args:
        models: two or more: model folders, checkpoints, Hub ids, or folders with a results.json alone.
        tasks: names of sets; none: all that any of the models was measured on.
        data_dir: folder of the documents as JSONL, for what has to be measured first.
        output_dir: default: comparisons/A-vs-B.
        limit: measure only the first so many documents per task, in folders of their own.
        yes: measure what is missing without a question.
        ask: gets a sentence about what is missing, and says whether to measure it; otherwise what is there
            is compared.
        for_card: also put comparison.json into the first model's folder, where `ant-hf card` finds it.

    Returns:
        The values of comparison.json, and the folder.

    Raises:
        AntError: fewer than two models, one of them given twice or not found; results that are damaged or of
            other weights; sets that are missing, with neither `yes` nor `ask`; nothing that can be compared.
    """
    subjects = _subjects([str(model) for model in models], limit)
    target = _target(output_dir, subjects)
    if for_card and subjects[0].folder is None:
        raise AntError(
            f"--for-card needs a model folder as the first model, and {subjects[0].given} is not one",
            hint="Leave --for-card out, or name the model folder first.",
        )
    for subject in subjects:
        subject.read()
    _measure_missing(subjects, tasks, data_dir, limit, yes, ask)
    found = {name: entry.task for each in subjects for name, entry in each.entries.items()}
    chosen = [name for name, task in found.items() if not tasks or task in tasks]
    first, *others = ((each.name, each.entries) for each in subjects)
    pairs = corrected([compare_figures(first, other, chosen) for other in others])
    if not any(pair.rows for pair in pairs):
        reasons = [f"{label}: {why}" for pair in pairs for label, why in pair.refused.items()]
        listing = "".join(f"\n  - {reason}" for reason in reasons)
        raise AntError(
            f"nothing can be compared{':' if reasons else ': there are no results'}{listing}",
            hint=None if reasons else "Measure the models first: ant-hf evaluate MODEL",
        )
    # It may be published with the model.
    values = without_paths(_values(subjects, pairs))
    with whole_folder(target) as folder:
        write_sealed(folder / COMPARISON, values)
        write_report(folder, values, pairs, _curves(subjects))
    if for_card and subjects[0].folder is not None:
        write_sealed(subjects[0].folder / COMPARISON, values)
    return values, target


def _subjects(given: list[str], limit: int | None) -> list[Subject]:
    if len(given) < 2:
        raise AntError(
            "a comparison needs two models or more", seen=len(given), hint="Type: ant-hf compare MODEL OTHER"
        )
    if limit is not None and limit < 1:
        raise AntError("--limit is too small", seen=limit, expected="1 or more")
    subjects = [_subject(one, limit) for one in given]
    twice = Counter((each.folder or each.places[0]).resolve() for each in subjects).most_common(1)[0]
    if twice[1] > 1:
        raise AntError(f"{twice[0]} is given twice", hint="Name two different models.")
    names = Counter(each.name for each in subjects)
    for each in subjects:
        each.name = each.given if names[each.name] > 1 else each.name
    return subjects


def _subject(given: str, limit: int | None) -> Subject:
    path = Path(expand_home(given))
    if (path / RESULTS).is_file() and not (path / CONFIG).is_file():
        return Subject(given, path.resolve().name, None, [path])
    from ant_hf.model.loading import is_checkpoint, locate, weights_hash

    located, folder = locate(given)
    parent = folder.resolve().parent.name
    name = given if not path.is_dir() else parent if folder.resolve().name == FINAL else located
    own = Path("evaluations", located.replace("/", "--"))
    places = [own]
    # A release stays as it was published, and a checkpoint as it was saved.
    if path.is_dir() and not is_checkpoint(folder):
        places = [own, folder] if (folder / RELEASE).is_file() else [folder, own]
    if limit is not None:
        places = [own.with_name(f"{own.name}-limit-{limit}"), *places]
    return Subject(given, name, folder, places, weights_hash(folder))


def _target(output_dir: str | Path | None, subjects: list[Subject]) -> Path:
    name = "-vs-".join(each.name.strip("./").replace("/", "--") for each in subjects)
    target = Path("comparisons", name) if output_dir is None else Path(expand_home(output_dir))
    is_ours = (target / COMPARISON).is_file() and not (target / CONFIG).is_file()
    if target.exists() and not is_ours and (not target.is_dir() or any(target.iterdir())):
        # A folder is replaced as a whole, so it must be ours.
        hint = "Pass a folder that is new or empty: --output-dir FOLDER"
        raise AntError(f"{target} exists already and is not a comparison", hint=hint)
    check_writable(target.parent, "--output-dir FOLDER")
    return target


def _measure_missing(
    subjects: list[Subject],
    tasks: Sequence[str],
    data_dir: str | Path | None,
    limit: int | None,
    yes: bool,
    ask: Callable[[str], bool] | None,
) -> None:
    """Measure what some models lack, if that is wanted.

    Raises:
        AntError: something is missing, and there is neither `yes` nor `ask`.
    """
    known = dict.fromkeys(entry.task for each in subjects for entry in each.entries.values())
    wanted = list(tasks or known)
    missing = [
        (each, lacking)
        for each in subjects
        if each.folder is not None and ((lacking := each.lacks(wanted)) or not wanted)
    ]
    if not missing:
        return
    told = "; ".join(
        f"{each.name} is not measured on {listed(lacking) if lacking else 'anything'}"
        for each, lacking in missing
    )
    if not yes and ask is None:
        common = [task for task in wanted if not any(each.lacks([task]) for each in subjects)]
        instead = f", or compare only what all have: --tasks {','.join(common)}" if common else ""
        raise AntError(told, hint=f"Add --yes to measure it first{instead}")
    if not (yes or (ask and ask(told))):
        return
    from ant_hf.evaluation.evaluate import evaluate

    for each, lacking in missing:
        # Where nothing is measured yet, the first model decides which sets there are.
        todo = lacking or each.lacks(wanted)
        sets = f"--tasks {','.join(todo)} " if todo else ""
        say("measuring", f"ant-hf evaluate {each.given} {sets}--output-dir {each.places[0]}")
        evaluate(each.given, todo, data_dir=data_dir, output_dir=each.places[0], limit=limit)
        each.read()
        wanted = wanted or list(dict.fromkeys(entry.task for entry in each.entries.values()))


def _curves(subjects: list[Subject]) -> dict[str, list[dict[str, Any]]]:
    """The held-out scores while training, by model; empty unless two or more have a log of it."""
    curves = {}
    for each in subjects:
        folder = each.folder or each.places[0]
        logs = [folder / METRICS, folder.resolve().parent / METRICS]
        rows = next((read_metrics(log) for log in logs if log.is_file()), [])
        if kept := [row for row in rows if "eval_bits_per_byte" in row]:
            curves[each.name] = kept
    return curves if len(curves) > 1 else {}


def _model(subject: Subject) -> dict[str, Any]:
    """What comparison.json says of a model, with the hashes of everything it was compared by."""
    sources = {entry.source.file: entry.source for entry in subject.entries.values()}
    folder = subject.folder
    return {
        **next(iter(sources.values())).model,
        "name": subject.name,
        "given": subject.given,
        "weight_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else None,
        "results": [
            {"file": str(file), "sha256": source.sha256, "conditions": source.conditions}
            for file, source in sources.items()
        ],
    }


def _values(subjects: list[Subject], pairs: list[Pair]) -> dict[str, Any]:
    """What comparison.json holds."""
    return {
        "schema": SCHEMA,
        "made": now(),
        "versions": package_versions(("ant-hf", "numpy", "scipy")),
        "method": METHOD | {"comparisons": sum(len(pair.rows) for pair in pairs)},
        "models": [_model(each) for each in subjects if each.entries],
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "answer": pair.answer,
                "seconds": pair.seconds,
                "remarks": pair.remarks,
                "not_compared": pair.refused,
                "figures": [asdict(row) | {"in_words": row.in_words} for row in pair.rows],
            }
            for pair in pairs
        ],
    }

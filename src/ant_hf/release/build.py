"""The held-out text of a run, as text again, so that the gate starts where a reader starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.card.audit import audit
from ant_hf.card.claims import card_claims
from ant_hf.card.inputs import read_inputs
from ant_hf.card.rendering import TEMPLATE, compared_models, measured_rows, render_card
from ant_hf.data.tokenizer import END_OF_TEXT, load_tokenizer
from ant_hf.data.tokens import VALIDATION, PackedTokens, read_manifest, verify_shards
from ant_hf.errors import AntError, missing_file
from ant_hf.published import shipped_file
from ant_hf.release.checks import PASSED, Check, from_json
from ant_hf.release.files import check_files
from ant_hf.utils.console import say
from ant_hf.utils.files import (
    check_file,
    file_sha256,
    fingerprint,
    inventory,
    read_json,
    read_sealed,
    whole_folder,
    write_json,
    write_sealed,
)
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import (
    CARD,
    FRAGMENTATION,
    GATE,
    MANIFEST,
    METRICS,
    RELEASE,
    RELEASED_MANIFEST,
    RESULTS,
    RUN_RECORD,
    VERIFIED,
    WEIGHTS,
)
from ant_hf.utils.plots import plot_benchmarks, plot_fragmentation, plot_run
from ant_hf.utils.provenance import now, source_commit, without_paths


def write_held_out(run: dict[str, Any], tokens: Path, tokenizer: Path, target: Path) -> None:
    """Decode the validation split with the tokenizer that packed it, one JSON object a document.

    Stops once it covers the tokens that the recorded loss was measured on.

    Raises:
        AntError: tokens or tokenizer are not those of the run.
    """
    if (seen := file_sha256(tokens / MANIFEST)) != run["sha256"]["tokens"]:
        raise AntError(
            f"{tokens} is not what this run was trained on",
            seen=f"sha256 {seen[:12]}",
            expected=run["sha256"]["tokens"][:12],
            hint="Pass the right folder: --tokens FOLDER",
        )
    verify_shards(tokens)
    packed_with = read_manifest(tokens)["inputs"]["tokenizer_sha256"]
    if (seen := file_sha256(tokenizer / "tokenizer.json")) != packed_with:
        raise AntError(
            f"{tokenizer} is not the tokenizer that packed {tokens}",
            seen=f"sha256 {seen[:12]}",
            expected=packed_with[:12],
        )
    loaded = load_tokenizer(tokenizer)
    end = loaded.token_to_id(END_OF_TEXT)
    split = PackedTokens(tokens, VALIDATION)
    wanted = min(len(split), run["final"]["tokens"] + 1)
    ids = split.slice(0, len(split)).tolist()
    # Where text was cut the last document has no end: with this one it is found like the others.
    ids.append(end)
    with target.open("w", encoding="utf-8") as handle:
        start = 0
        while start < wanted:
            stop = ids.index(end, start)
            handle.write(json.dumps({"text": loaded.decode(ids[start:stop])}, ensure_ascii=False) + "\n")
            start = stop + 1


def expected_scores(run: dict[str, Any]) -> dict[str, Any]:
    """What the run recorded on its held-out text, for the gate to find again."""
    final = run["final"]
    return {
        "loss": final["loss_in_training"],
        "byte_perplexity": final["byte_perplexity"],
        "tokens": final["tokens"],
        "context_tokens": final["context_tokens"],
    }


def copy_gguf(gguf: Path, folder: Path) -> None:
    """Put an export's files and its record beside the weights they were made of.

    Raises:
        AntError: the export is of other weights or another tokenizer, was not verified in llama.cpp, or a
            file was changed since.
    """
    hint = "Export anew: ant-hf export MODEL_FOLDER --to gguf"
    record = read_sealed(gguf / VERIFIED, "record of the export", hint)
    for name, key in ((WEIGHTS, "weights_sha256"), ("tokenizer.json", "tokenizer_sha256")):
        if (seen := record["made_of"][key]) != (expected := file_sha256(folder / name)):
            raise AntError(
                f"{gguf} was made of another {name}",
                seen=f"sha256 {str(seen)[:12]}",
                expected=expected[:12],
                hint=hint,
            )
    if record["left_out"]:
        raise AntError(
            "GGUF files are published only after llama.cpp has verified them",
            seen="; ".join(record["left_out"]),
        )
    for name, values in record["files"].items():
        check_file(gguf / name, values["sha256"], "was changed after it was verified", hint)
        shutil.copyfile(gguf / name, folder / name)
    shutil.copyfile(gguf / VERIFIED, folder / VERIFIED)


_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_REPOSITORY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")


@dataclass(frozen=True)
class Sources:
    """Where the parts of a release come from."""

    final: Path
    run_dir: Path
    tokenizer: Path
    tokens: Path
    run: dict[str, Any]

    @classmethod
    def of(cls, final: Path, tokens: Path | None = None) -> Sources:
        """Find a run's parts from its `final` folder.

        Args:
            tokens: folder of the packed tokens, when it is not where the run left it.

        Raises:
            AntError: this is no final folder of a finished run.
        """
        run_dir = final.resolve().parent
        if not (final / "config.json").is_file():
            raise missing_file(final, "model folder", "Pass a run's final folder, as runs/quickstart/final.")
        run = read_sealed(run_dir / RUN_RECORD, "run record", "Pass the final folder inside a run's folder.")
        if run.get("status") != "finished":
            raise AntError(
                f"the run in {run_dir} is not finished",
                seen=run.get("status"),
                hint="Finish it: run it again.",
            )
        tokens = tokens or Path(run["recipe"]["data_dir"] or run_dir) / "tokens"
        return cls(final, run_dir, tokens.parent / "tokenizer", tokens, run)


def check_repository(repository: str) -> str:
    """A repository name that the Hub takes.

    Raises:
        AntError: it has another form than `owner/name`.
    """
    name = repository.rpartition("/")[2]
    if (
        not _REPOSITORY.match(repository)
        or "--" in repository
        or ".." in repository
        or name.endswith((".git", ".", "-"))
    ):
        raise AntError(
            "the repository's name is not valid",
            seen=repository,
            expected="owner/name of letters, digits, '-', '_' and '.'",
            hint="For example GODELEV/Ant-10M",
        )
    return repository


def make_release(
    final: Path, repository: str, license_id: str, tokens: Path | None = None, gguf: Path | None = None
) -> tuple[Path, bool]:
    """Write `release/` beside a run's `final/`, whole or not at all.

    Args:
        gguf: a verified GGUF export of the same weights, which becomes part of the release.

    Returns:
        The folder, and whether it was there already, made of the same files by the same version.

    Raises:
        AntError: the gate refuses the model (its report stays as `gate.json` beside `final/`), a record is
            missing, or the card contradicts itself.
    """
    check_repository(repository)
    sources = Sources.of(final, tokens)
    target, made_of = sources.run_dir / "release", _made_of(sources, repository, license_id, gguf)
    if _is_whole(target, made_of):
        return target, True
    with whole_folder(target) as folder:
        _copy(sources, folder)
        if gguf:
            copy_gguf(gguf, folder)
        checked = _gate_made_of(folder)
        report = _earlier_gate(target, checked)
        if report is None:
            say(f"gate        checking {final} in a process of its own, one to five minutes on two CPU cores")
            report = _gate(sources, folder, repository.partition("/")[0]) | {"made_of": checked}
        write_json(folder / GATE, report)
        if report["verdict"] != PASSED:
            write_json(sources.run_dir / GATE, report)
            raise refusal(final, from_json(report["checks"]), sources.run_dir / GATE)
        finish(folder, repository, license_id, made_of)
    return target, False


def _made_of(sources: Sources, repository: str, license_id: str, gguf: Path | None) -> str:
    """Fingerprint of everything a release follows from."""
    paths = [
        *sorted(path for path in sources.final.iterdir() if path.is_file()),
        sources.run_dir / RUN_RECORD,
        sources.run_dir / METRICS,
        shipped_file(TEMPLATE),
        shipped_file("published.yaml"),
        *([gguf / VERIFIED] if gguf else []),
    ]
    hashes = {path.name: file_sha256(path) for path in paths if path.is_file()}
    return fingerprint([hashes, sources.run["sha256"], repository, license_id, source_commit()])


def _gate_made_of(folder: Path) -> str:
    """Fingerprint of what the gate looks at: every file before the card, and this version of the gate."""
    return fingerprint([inventory(folder), source_commit()])


def _earlier_gate(release: Path, made_of: str) -> dict[str, Any] | None:
    """The report of an earlier release of the same bytes: another licence or name needs no new gate."""
    if not (release / GATE).is_file():
        return None
    report = read_json(release / GATE, "gate report", f"Remove {release} to make it anew.")
    return report if report.get("made_of") == made_of and report.get("verdict") == PASSED else None


def _is_whole(folder: Path, made_of: str) -> bool:
    if not (folder / RELEASE).is_file():
        return False
    release = read_json(folder / RELEASE, "release record", f"Remove {folder} to make it anew.")
    return release.get("made_of") == made_of and release.get("files") == inventory(folder, without=(RELEASE,))


def finish(folder: Path, repository: str, license_id: str, made_of: str) -> None:
    """Draw the figures, render and audit the card, and write release.json over all of it."""
    # Without the figures, so that a folder which has them already gets the same card.
    records = inventory(folder, without=(CARD, RELEASE))
    files = {name: values for name, values in records.items() if not name.startswith("plots/")}
    inputs = read_inputs(folder, repository, license_id, files)
    plots = folder / "plots"
    drawn = plot_run(inputs.metrics, plots, inputs.name)
    for path in drawn:
        if path.name not in ("loss.png", "learning_rate.png"):
            path.unlink()
    plot_fragmentation(inputs.fragmentation, plots / "fragmentation.png")
    rows = [vars(row) for row in measured_rows(inputs)]
    if rows:
        names = [model.name for model in compared_models(inputs)]
        plot_benchmarks(rows, names, plots / "benchmarks.png", inputs.name)
    card = render_card(inputs)
    contradictions = [f for f in audit(card_claims(card, CARD)) if f.verdict == "DISAGREES"]
    if contradictions:
        listing = "\n".join(f"  - {f.claim}: {f.recomputed}" for f in contradictions)
        raise AntError(
            f"the card contradicts itself:\n{listing}\nNothing was released; train and measure anew"
        )
    (folder / CARD).write_text(card, encoding="utf-8")
    left = check_files(folder, repository.partition("/")[0])
    if not left.passed:
        raise refusal(folder, [left])
    write_json(
        folder / RELEASE,
        {
            "schema": 1,
            "repository": repository,
            "license": license_id,
            "made": now(),
            "made_of": made_of,
            "ant_hf_commit": source_commit(),
            "files": inventory(folder, without=(RELEASE,)),
        },
    )


def refusal(what: Path | str, checks: list[Check], report: Path | None = None) -> AntError:
    """The error that names every failed check with its numbers."""
    failed = "\n".join(f"  - {check.name}: {check.seen}" for check in checks if check.passed is False)
    where = f"\nThe whole report: {report}" if report else ""
    return AntError(f"{what} is not fit to be published:\n{failed}{where}")


def _copy(sources: Sources, folder: Path) -> None:
    """Model files as they are; records with paths cut down to names."""
    for name in _MODEL_FILES:
        if not (sources.final / name).is_file():
            raise missing_file(sources.final / name, "exported file", "Train again, or restore it.")
        shutil.copyfile(sources.final / name, folder / name)
    results = read_sealed(
        sources.final / RESULTS, "results", f"Measure the model first: ant-hf evaluate {sources.final}"
    )
    manifest = read_sealed(sources.tokens / MANIFEST, "token manifest", "Pass it: --tokens FOLDER")
    report = read_json(sources.tokenizer / FRAGMENTATION, "fragmentation report", "Train the tokenizer anew.")
    run = sources.run | {"recipe": _public_recipe(sources.run["recipe"])}
    for name, values in ((RUN_RECORD, run), (RESULTS, results), (RELEASED_MANIFEST, manifest)):
        write_sealed(folder / name, without_paths(values))
    write_json(folder / FRAGMENTATION, without_paths(report))
    rows = read_metrics(sources.run_dir / METRICS)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _public_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without folders of this machine; local texts keep their names only."""
    corpus = recipe["corpus"]
    if corpus["source"] == "files":
        corpus = corpus | {"path": Path(corpus["path"]).name}
    if compared := corpus.get("decontaminate"):
        corpus = corpus | {"decontaminate": Path(compared).name}
    return recipe | {"corpus": corpus}


def _gate(sources: Sources, folder: Path, owner: str) -> dict[str, Any]:
    """Run the gate on the folder in a fresh process and read its report."""
    with tempfile.TemporaryDirectory() as scratch:
        held_out = Path(scratch) / "held_out.jsonl"
        write_held_out(sources.run, sources.tokens, sources.tokenizer, held_out)
        results = read_json(folder / RESULTS, "results", "")
        job = {
            "held_out": str(held_out),
            "expected": expected_scores(sources.run),
            "parameters": sources.run["parameters"]["total"],
            "degeneration": results.get("degeneration"),
            "owner": owner,
        }
        return run_gate(folder, job, Path(scratch))


def run_gate(folder: Path, job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Start the gate's own process, offline, in an empty working directory.

    Raises:
        AntError: the process died before it could report.
    """
    values = job | {"folder": str(folder.resolve()), "report": str(scratch / GATE)}
    write_json(scratch / "job.json", values)
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(  # noqa: S603 (our own module)
        [sys.executable, "-m", "ant_hf.release.gate", str(scratch / "job.json")],
        cwd=scratch,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise AntError("the gate's process failed", seen=result.stderr.strip().splitlines()[-1:])
    return read_json(scratch / GATE, "gate report", "")

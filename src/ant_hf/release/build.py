"""A run becomes a release folder: records gathered, the gate passed, figures and card made, all hashed."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.card.audit import audit
from ant_hf.card.claims import card_claims
from ant_hf.card.eval_results import HubTask, listed_benchmarks, write_eval_results
from ant_hf.card.gguf import gguf_repository
from ant_hf.card.inputs import read_inputs
from ant_hf.card.rendering import TEMPLATE, compared_models, measured_rows, render_card
from ant_hf.errors import AntError, missing_file
from ant_hf.hub import HubClient
from ant_hf.release.files import read_release
from ant_hf.release.publish import check_repository
from ant_hf.release.verify import PASSED, ask_gate, check_files, refusal, tokens_of
from ant_hf.utils import names
from ant_hf.utils.console import say
from ant_hf.utils.files import (
    file_sha256,
    fingerprint,
    inventory,
    read_json,
    read_sealed,
    whole_folder,
    write_json,
    write_sealed,
)
from ant_hf.utils.locks import locked
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.plots import plot_benchmarks, plot_fragmentation, plot_run
from ant_hf.utils.provenance import now, source_commit, without_paths
from ant_hf.utils.stopping import phase


@dataclass(frozen=True)
class Sources:
    """What a release is made of."""

    final: Path
    run: dict[str, Any]
    """Its record."""
    tokens: Path
    """Packed, with their tokenizer beside them."""
    repository: str
    license_id: str
    listed: dict[str, HubTask]
    """The sets that the Hub lists as benchmarks."""
    gguf_repository: str | None
    """Where its GGUF files are published with it."""
    onnx: Path | None
    """What `ant-hf export --to onnx` wrote."""

    @property
    def run_dir(self) -> Path:
        return self.final.resolve().parent

    def fingerprint(self) -> str:
        """Of everything that the release follows from."""
        paths = [
            *sorted(path for path in self.final.iterdir() if path.is_file()),
            self.run_dir / names.RUN_RECORD,
            self.run_dir / names.METRICS,
            names.shipped_file(TEMPLATE),
            names.shipped_file("model_card/published.yaml"),
            *([self.onnx / names.VERIFIED] if self.onnx else []),
        ]
        hashes = {path.name: file_sha256(path) for path in paths if path.is_file()}
        listed = {name: vars(task) for name, task in self.listed.items()}
        said = [self.repository, self.license_id, self.gguf_repository]
        return fingerprint([hashes, self.run["sha256"], said, listed, source_commit()])


@phase("making the release", "One that was there before is kept. Run the same command again.")
def make_release(
    model: str | Path,
    repo: str,
    license_id: str | None = None,
    tokens: str | Path | None = None,
    gguf: bool = False,
    onnx: bool = False,
    client: HubClient | None = None,
) -> Path:
    """Write `release/` beside a run's `final/`, whole or not at all.

    One that is there, made of the same files by the same version, stays as it is.

    Args:
        model: the `final` folder of a finished run, with results.json.
        repo: `owner/name` on the Hub, for the card.
        license_id: licence of the model, as the Hub spells it; default: as `license_of` finds it.
        tokens: folder of the packed tokens, when it is not where the run left it.
        gguf: the card links to the repository of the GGUF files, which is published with it.
        onnx: export it to ONNX, unless that is done, and put the graphs into the release.
        client: asks the Hub which sets it lists as benchmarks; default: a dated list of this package counts.

    Returns:
        The release folder.

    Raises:
        AntError: this is not the final folder of a finished run, a record is missing, the gate refuses the
            model (its report stays as `gate.json` beside `final/`), or the card contradicts itself.
    """
    check_repository(repo)
    license_id = license_id or license_of(model)
    final, run_dir = Path(model), Path(model).resolve().parent
    if not (final / names.CONFIG).is_file():
        hint = "Pass a run's final folder, such as runs/quickstart/final."
        raise missing_file(final / names.CONFIG, "model folder", hint)
    run = read_sealed(
        run_dir / names.RUN_RECORD, "run record", "Pass a run's final folder, such as runs/quickstart/final."
    )
    if (status := run.get("status")) != "finished":
        raise AntError(
            f"the run in {run_dir} is not finished",
            seen=status,
            hint="Run the same training command again to finish it.",
        )
    # Two at once would write the same folders; the second one finds what the first has made.
    with locked(run_dir, "run", wait=True):
        graphs = None
        if onnx:
            # Brings torch, which a release without graphs does not need.
            from ant_hf.export.exporting import export

            graphs, _ = export(str(final), "onnx")
        packed = Path(tokens) if tokens else tokens_of(run, run_dir)
        linked = gguf_repository(repo) if gguf else None
        sources = Sources(final, run, packed, repo, license_id, listed_benchmarks(client), linked, graphs)
        return _make(sources)


def _make(sources: Sources) -> Path:
    """The release, unless it is there already."""
    target, made_of = sources.run_dir / "release", sources.fingerprint()
    if (target / names.RELEASE).is_file():
        there = read_release(target, f"Remove {target} to make it again.")
        if there.get("made_of") == made_of and there["files"] == inventory(target, without=(names.RELEASE,)):
            return target
    with whole_folder(target) as folder:
        _gather(sources, folder)
        report = _gate_report(sources, folder, target)
        write_json(folder / names.GATE, report)
        if report["verdict"] != PASSED:
            write_json(sources.run_dir / names.GATE, report)
            raise refusal(sources.final, report["checks"], sources.run_dir / names.GATE)
        finish(
            folder, sources.repository, sources.license_id, made_of, sources.listed, sources.gguf_repository
        )
    return target


def license_of(final: str | Path) -> str:
    """The licence of the model that a run began with, if its card named one; else Apache-2.0."""
    record = Path(final).resolve().parent / names.RUN_RECORD
    run = read_json(record, "run record", "") if record.is_file() else {}
    found = (run.get("base") or {}).get("license")
    return found if isinstance(found, str) else "apache-2.0"


def _gather(sources: Sources, folder: Path) -> None:
    """Model files as they are; records with paths cut down to names."""
    for name in (*names.MODEL_FILES, *names.TOKENIZER_FILES):
        if not (sources.final / name).is_file():
            raise missing_file(sources.final / name, "file of the model", "Restore it, or train again.")
        shutil.copyfile(sources.final / name, folder / name)
    measure = f"Measure the model first: ant-hf evaluate {sources.final}"
    results = read_sealed(sources.final / names.RESULTS, "results", measure)
    manifest = read_sealed(
        sources.tokens / names.MANIFEST, "token manifest", "Pass the run's packed tokens: --tokens FOLDER"
    )
    fragmentation = sources.tokens.parent / "tokenizer" / names.FRAGMENTATION
    report = read_json(fragmentation, "fragmentation report", "Train the tokenizer again.")
    # Of local texts the name alone, also where their place is relative.
    corpus = copy.deepcopy(sources.run["recipe"]["corpus"])
    texts = [corpus, *(corpus.get("mix") or {}).values(), corpus.get("replay") or {}]
    for text in [text for text in texts if text.get("source") == "files" and text.get("path")]:
        paths = text["path"]
        names_alone = [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]
        text["path"] = names_alone[0] if isinstance(paths, str) else names_alone
    for key in ("decontaminate", "general"):
        if corpus.get(key):
            corpus[key] = Path(corpus[key]).name
    run = sources.run | {"recipe": sources.run["recipe"] | {"corpus": corpus}}
    records = {names.RUN_RECORD: run, names.RESULTS: results, names.RELEASED_MANIFEST: manifest}
    if (comparison := sources.final / names.COMPARISON).is_file():
        again = f"Compare again: ant-hf compare {sources.final} BASE --for-card"
        records[names.COMPARISON] = read_sealed(comparison, "comparison", again)
    for name, values in records.items():
        write_sealed(folder / name, without_paths(values))
    write_json(folder / names.FRAGMENTATION, without_paths(report))
    rows = read_metrics(sources.run_dir / names.METRICS)
    (folder / names.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if sources.onnx:
        # The gate holds both to the weights.
        shutil.copytree(sources.onnx / names.ONNX, folder / names.ONNX)
        shutil.copyfile(sources.onnx / names.VERIFIED, folder / names.ONNX / names.VERIFIED)


def _gate_report(sources: Sources, folder: Path, release: Path) -> dict[str, Any]:
    """The gate's report, or that of an earlier release of the same bytes: a new licence needs no new gate."""
    # Every file before the card, and this version of the gate.
    made_of = fingerprint([inventory(folder), source_commit()])
    if (release / names.GATE).is_file():
        earlier = read_json(release / names.GATE, "gate report", f"Remove {release} to make it again.")
        if earlier.get("made_of") == made_of and earlier.get("verdict") == PASSED:
            return earlier
    say("gate", f"checking {sources.final} in another process: it measures the held-out text again")
    owner = sources.repository.partition("/")[0]
    return ask_gate(folder, sources.run, sources.tokens, owner) | {"made_of": made_of}


def finish(
    folder: Path,
    repository: str,
    license_id: str,
    made_of: str,
    listed: dict[str, HubTask],
    linked: str | None = None,
) -> None:
    """Draw the figures, render and audit the card, and write release.json over all of it."""
    # Without what is made here, so that a folder which has it already gets the same card.
    shutil.rmtree(folder / names.EVAL_RESULTS, ignore_errors=True)
    records = inventory(folder, without=(names.CARD, names.RELEASE))
    files = {name: values for name, values in records.items() if not name.startswith(f"{names.PLOTS}/")}
    inputs = read_inputs(folder, repository, license_id, files, listed, linked)
    plots = folder / names.PLOTS
    for path in plot_run(inputs.metrics, plots, inputs.name):
        if path.name not in ("loss.png", "learning_rate.png"):
            path.unlink()
    plot_fragmentation(inputs.fragmentation, plots / "fragmentation.png")
    scores = measured_rows(inputs)
    write_eval_results(inputs, scores, folder)
    if rows := [vars(score) for score in scores]:
        others = [model.name for model in compared_models()]
        plot_benchmarks(rows, others, plots / "benchmarks.png", inputs.name)
    card = render_card(inputs)
    if wrong := [finding for finding in audit(card_claims(card, names.CARD)) if finding.agrees is False]:
        lines = "\n".join(f"  - {finding.claim}: {finding.recomputed}" for finding in wrong)
        raise AntError(
            f"the card contradicts itself:\n{lines}\nNo release was made. Train and measure the model again"
        )
    (folder / names.CARD).write_text(card, encoding="utf-8")
    left = check_files(folder, repository.partition("/")[0])
    if not left.passed:
        raise refusal(folder, [vars(left)])
    release = {
        "schema": 1,
        "repository": repository,
        "license": license_id,
        "made": now(),
        "made_of": made_of,
        "benchmarks": {name: vars(task) for name, task in listed.items()},
        "gguf_repository": linked,
        "ant_hf_commit": source_commit(),
        "files": inventory(folder, without=(names.RELEASE,)),
    }
    write_json(folder / names.RELEASE, release)

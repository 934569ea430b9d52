"""What can be scored of a run of a study, and where each figure is read from."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import benchmark_table
from ant_hf.recipe import Recipe
from ant_hf.train.run_folder import RunRecord
from ant_hf.utils.files import read_json
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import FINAL, FRAGMENTATION, METRICS, RESULTS

INSPECTION = "inspection.json"
LOOPS = "degeneration"
# What `StepGuard` writes into the metrics where the numbers of a run break.
_BROKEN = "stopped_by_"


@dataclass(frozen=True)
class Score:
    """A figure of a run."""

    name: str
    label: str
    better: Literal["lower", "higher"] | None
    """None: neither is better."""
    form: str
    """How it is printed."""
    needs: Literal["run", "inspection", "evaluation"] = "run"
    """What it is taken from."""


_SCORES = (
    Score("bits_per_byte", "bits per byte", "lower", "{:.4f}"),
    Score("loss", "loss (nats per token)", "lower", "{:.4f}"),
    Score("tokens_per_second", "tokens per second", "higher", "{:,.0f}"),
    Score("gradient_noise", "gradient noise", None, "{:.3f}"),
    Score("spikes", "loss spikes", "lower", "{:.0f}"),
    Score("skipped_steps", "skipped steps", "lower", "{:.0f}"),
    Score("embedding_share", "in embeddings", None, "{:.0%}"),
    Score("bytes_per_token", "bytes per token", None, "{:.3f}"),
    Score("words_kept_whole", "words kept whole", None, "{:.1%}"),
    Score("weight_rank", "matrix rank", None, "{:.3f}", "inspection"),
    Score("hidden_rank", "hidden rank", None, "{:.3f}", "inspection"),
    Score("loop_rate", "greedy loop rate", "lower", "{:.1%}", "evaluation"),
)


def all_scores() -> dict[str, Score]:
    """The figures by name; sets of lm-eval that the house's table has among them."""
    found = {score.name: score for score in _SCORES}
    for name, row in benchmark_table().items():
        perplexity = "perplexity" in str(row.get("metric"))
        form, better = ("{:.3f}", "lower") if perplexity else ("{:.1%}", "higher")
        found[name] = Score(name, row["label"], better, form, "evaluation")  # type: ignore[arg-type]
    return found


def known_score(name: str, path: Path) -> Score:
    """The score of a name in a study file.

    Raises:
        AntError: it is unknown; lists those there are.
    """
    scores = all_scores()
    if name not in scores:
        raise AntError(f"{path}: score names {name!r}", expected=f"one of {', '.join(scores)}")
    return scores[name]


def tasks_of(scores: list[str]) -> list[str]:
    """What `evaluate` has to measure for them."""
    table = all_scores()
    return [LOOPS if name == "loop_rate" else name for name in scores if table[name].needs == "evaluation"]


def needs_inspection(scores: list[str]) -> bool:
    """Whether a look into the weights is needed for them."""
    table = all_scores()
    return any(table[name].needs == "inspection" for name in scores)


def broken_at(folder: Path) -> str | None:
    """Where the numbers of a run broke, in words; None if they did not."""
    rows = read_metrics(folder / METRICS)
    for row in reversed(rows):
        for key, value in row.items():
            if key.startswith(_BROKEN):
                what = key.removeprefix(_BROKEN).replace("_", " ")
                return f"{what} {value} at step {row['step']:,}"
    return None


def results_of(folder: Path, limit: int | None) -> dict[str, Any] | None:
    """What `evaluate` measured of a run; None: nothing yet, or on another number of documents."""
    path = folder / FINAL / RESULTS
    if not path.exists():
        return None
    results = read_json(path, "results", f"Remove {path}")
    return results if results["conditions"]["limit"] == limit else None


def read_scores(
    recipe: Recipe, record: RunRecord, names: list[str], limit: int | None
) -> dict[str, float | None]:
    """The figures of a finished run; None for one that is not measured yet."""
    folder = Path(recipe.output_dir)
    rows = read_metrics(folder / METRICS)
    final = record.final or {}
    found: dict[str, Any] = {
        "bits_per_byte": final.get("bits_per_byte"),
        "loss": final.get("loss"),
        "tokens_per_second": record.tokens_per_second,
        "skipped_steps": record.skipped_steps,
        "spikes": sum("spike_loss" in row for row in rows),
        "gradient_noise": gradient_noise(rows),
        "embedding_share": _embedding_share(record.parameters),
    }
    tokenizer = recipe.tokenizer_dir / FRAGMENTATION
    if {"bytes_per_token", "words_kept_whole"} & set(names) and tokenizer.exists():
        report = read_json(tokenizer, "fragmentation report", "")
        found |= {key: report.get(key) for key in ("bytes_per_token", "words_kept_whole")}
    if (folder / INSPECTION).exists():
        found |= read_json(folder / INSPECTION, "inspection", f"Remove {folder / INSPECTION}")
    if tasks_of(names) and (results := results_of(folder, limit)):
        found |= {name: row["value"] for name, row in results.get("tasks", {}).items()}
        found |= {name: row["byte_perplexity"] for name, row in results.get("perplexity", {}).items()}
        if loops := results.get(LOOPS):
            found["loop_rate"] = loops["greedy"]["loop_rate"]
    return {name: found.get(name) for name in names}


def _embedding_share(parameters: dict[str, Any]) -> float:
    """Of all parameters, with the output matrix where it is another."""
    parts = parameters["by_component"]
    return float((parts["embeddings"] + parts.get("lm_head", 0)) / parameters["total"])


def gradient_noise(rows: list[dict[str, Any]]) -> float | None:
    """Standard deviation of the gradient's norm over its mean, of the logged steps of a run's second half.

    A rough figure: how much the norm of one step differs from the next. None with fewer than three of them.
    """
    norms = [row["grad_norm"] for row in rows if row.get("grad_norm") is not None]
    late = norms[len(norms) // 2 :]
    if len(late) < 3 or not (mean := statistics.fmean(late)):
        return None
    return statistics.stdev(late) / mean

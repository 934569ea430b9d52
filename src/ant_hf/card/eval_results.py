"""Results as the Hub's leaderboards take them: `.eval_results/*.yaml` in a model's repository.

Only for sets that the Hub lists as benchmarks, as its own list and the `eval.yaml` of each data set say. All
other results stay in the card's `model-index`. The form is that of huggingface_hub's `EvalResultEntry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, parse_eval_result_entries

from ant_hf.errors import AntError
from ant_hf.hub import HubClient, hub_or_cache
from ant_hf.utils.console import say
from ant_hf.utils.names import EVAL_RESULTS

if TYPE_CHECKING:
    from ant_hf.card.inputs import CardInputs
    from ant_hf.card.rendering import Score

_DATED_LIST = Path(__file__).with_name("hub_benchmarks.yaml")
# Where the Hub keeps each set: dataset, configuration, split.
SETS: dict[str, tuple[str, str | None, str]] = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "piqa": ("ybisk/piqa", None, "validation"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
    "mmlu": ("cais/mmlu", "all", "test"),
    "sciq": ("allenai/sciq", None, "test"),
    "boolq": ("google/boolq", None, "validation"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "blimp": ("nyu-mll/blimp", None, "train"),
    "lambada_openai": ("EleutherAI/lambada_openai", None, "test"),
    "openbookqa": ("allenai/openbookqa", "main", "test"),
    "arithmark_2.0": ("AxiomicLabs/ArithMark-2.0", None, "train"),
    "wikitext": ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test"),
}


@dataclass(frozen=True)
class HubTask:
    """A task of a data set that the Hub keeps a leaderboard of."""

    dataset: str
    task_id: str


def listed_benchmarks(client: HubClient | None) -> dict[str, HubTask]:
    """Those of our sets that the Hub lists as benchmarks, by our name.

    Args:
        client: asks the Hub; without one, or where it does not answer, the list in this package counts.
    """
    dated = yaml.safe_load(_DATED_LIST.read_text(encoding="utf-8"))
    tasks: dict[str, list[dict[str, Any]]] = dated["datasets"]
    if client is not None:
        try:
            # By itself the client asks a silent Hub for half a minute.
            with hub_or_cache():
                found = {each.id for each in client.api.list_datasets(filter="benchmark:official")}
                ours = sorted(found & {dataset for dataset, _, _ in SETS.values()})
                tasks = {dataset: _tasks_of(client, dataset) for dataset in ours}
        # Of the line, of the Hub, or of a file there; none of it keeps a release from being made.
        except Exception as error:
            say(
                "benchmarks",
                f"the Hub does not say which data sets it lists ({type(error).__name__}); the list of "
                f"{dated['looked_up']} is used",
            )
    listed = {}
    for name, (dataset, config, split) in SETS.items():
        matching = [
            str(task["id"])
            for task in tasks.get(dataset, ())
            if task.get("config") in (None, config or "default") and task.get("split") in (None, split)
        ]
        # Where a data set has several leaderboards and none says which part it is of, ours has no place.
        if len(matching) == 1:
            listed[name] = HubTask(dataset, matching[0])
    return listed


def _tasks_of(client: HubClient, dataset: str) -> list[dict[str, Any]]:
    path = client.api.hf_hub_download(dataset, "eval.yaml", repo_type="dataset")
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return [task for task in values.get("tasks", ()) if "id" in task]


def write_eval_results(inputs: CardInputs, scores: Iterable[Score], folder: Path) -> list[Path]:
    """Write one file per complete set that the Hub lists, into a release; accuracies in %.

    Returns:
        The files.
    """
    conditions, written = inputs.results["conditions"], []
    for score in scores:
        if (task := inputs.listed.get(score.task)) and score.complete:
            entry = EvalResultEntry(
                dataset_id=task.dataset,
                task_id=task.task_id,
                value=round(100 * score.value, 2),
                date=conditions["finished"],
                source_url=f"https://huggingface.co/{inputs.repository}",
                source_name="Model card",
                notes=f"{score.metric}, zero-shot, lm-evaluation-harness {conditions['versions']['lm-eval']}",
            )
            path = folder / EVAL_RESULTS / f"{score.task}.yaml"
            path.parent.mkdir(exist_ok=True)
            text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def eval_result_problems(folder: Path, results: dict[str, Any]) -> list[str]:
    """What is wrong with the files for leaderboards, read as the Hub's client does: a line for each fault.

    Args:
        results: what they must agree with.
    """
    problems = []
    for path in sorted((folder / EVAL_RESULTS).iterdir()):
        record = results["tasks"].get(path.stem)
        measured = None if record is None else round(100 * record["value"], 2)
        try:
            values = [entry.value for entry in read_entries(path)]
        except AntError as error:
            problems.append(str(error))
        else:
            problems += [
                f"{path.name}: {value}, and results.json has {measured}"
                for value in values
                if value != measured
            ]
    return problems


def read_entries(path: Path) -> list[EvalResultEntry]:
    """The entries of one file, as the Hub's client reads them.

    Raises:
        AntError: it does not, or a value is not a number.
    """
    try:
        entries = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
        for entry in entries:
            float(entry.value)
    except (yaml.YAMLError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise AntError(
            f"the Hub's client cannot read {path} as results ({type(error).__name__}: {error})",
            hint="Make the release again: ant-hf card MODEL_FOLDER",
        ) from None
    return entries

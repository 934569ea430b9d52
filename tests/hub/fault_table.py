"""The outcomes of `fault_runs` as the tables of docs/releasing.md.

`python -m hub.fault_table OUTCOMES.json` in tests/ puts them between the two marks there.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "releasing.md"
BEGIN, END = "<!-- measured: faults -->", "<!-- end of measured -->"


def is_lost(outcome: dict) -> bool:
    """Anything a user would miss: a changed release folder, an incomplete repository, foreign work."""
    whole = outcome["release whole"] and outcome["remote whole"] and outcome["then"] == "published"
    return not whole or outcome["overwritten"] or outcome["commits"] != 1 or outcome["tags"] != ["v1"]


def rows(outcomes: list[dict], key: Callable[[dict], str]) -> list[str]:
    lines = []
    for name in dict.fromkeys(map(key, outcomes)):
        own = [outcome for outcome in outcomes if key(outcome) == name]
        first = sum(outcome["first"] == "published" for outcome in own)
        then = sum(outcome["first"] != "published" and outcome["then"] == "published" for outcome in own)
        tracebacks = sum(outcome["traceback"] for outcome in own)
        lost = sum(map(is_lost, own))
        lines.append(f"| {name} | {len(own)} | {first} | {then} | {tracebacks} | {lost} |")
    return lines


def tables(outcomes: list[dict]) -> str:
    head = "tried | published by itself | one line, then published by the same command | tracebacks | lost |"
    rule = "|---|---:|---:|---:|---:|---:|"
    messages = {}
    for outcome in outcomes:
        if outcome["message"]:
            text = re.sub(r", in /\S+", ", in runs/NAME/release", outcome["message"])
            text = re.sub(r"GODELEV/case-\d+", "GODELEV/Ant-10M", text)
            text = re.sub(r"\b[0-9a-f]{12}\b", "<commit>", text).replace(" injected fault", "")
            text = re.sub(r"answered (\d+) \d+", r"answered \1", text)
            messages.setdefault(text, outcome)
    wanted = ("refused token (401)", "no permission (403)", "race", "500 always", "409 always")
    shown = {}
    for text, outcome in messages.items():
        if outcome["fault"] in wanted:
            shown.setdefault(outcome["fault"], text)
    total = rows(outcomes, lambda outcome: "all")
    lines = [f"| step | {head}", rule, *rows(outcomes, lambda outcome: outcome["step"]), *total, ""]
    lines += [
        f"| fault | {head}",
        rule,
        *rows(outcomes, lambda outcome: outcome["fault"]),
        "",
        "What is said:",
        "",
    ]
    lines += [f"- {fault}: `{text}`" for fault, text in shown.items()]
    return "\n".join(lines)


def main(outcomes_file: str) -> None:
    outcomes = json.loads(Path(outcomes_file).read_text())
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{tables(outcomes)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

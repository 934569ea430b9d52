"""The long part: kills on one process and on two, every other fault, and the table of it all.

    python tests/faults/soak.py --kills 200 --work runs/soak

Writes docs/reliability.json from what happened and fills the table of docs/reliability-tables.md with it.
Interrupted, it continues counting where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability-tables.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_MESSAGE_CHARACTERS = 220


def run_kills(processes: int, kills: int, work: Path) -> Path:
    tally = work / f"kills-{processes}.json"
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "--processes", str(processes)]
    command += ["--kills", str(kills), "--work", str(work / "kills"), "--tally", str(tally)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return tally


def run_interrupts(work: Path, times: int) -> dict:
    """Signals to every phase of what is done with a model; what happened, by phase."""
    tally = work / "interrupts.json"
    command = [sys.executable, str(Path(__file__).with_name("interrupts.py")), "--times", str(times)]
    subprocess.run([*command, "--work", str(work / "interrupts"), "--tally", str(tally)], check=False)
    return json.loads(tally.read_text())


def run_faults(work: Path, mutations: int) -> Path:
    """All tests of this folder but the kills, with a line for each fault they try."""
    log = work / "faults.jsonl"
    log.unlink(missing_ok=True)
    environment = os.environ | {"ANT_HF_FAULT_LOG": str(log), "ANT_HF_MUTATIONS": str(mutations)}
    command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "slow or not slow", "tests/faults"]
    for name in ("test_kills.py", "test_table.py"):
        command += ["--ignore", f"tests/faults/{name}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return log


def collect(tallies: list[Path], log: Path, mutations: int) -> dict:
    """Everything the table needs, as JSON values."""
    import torch
    import transformers

    from ant_hf.utils.hardware import cpu_name
    from ant_hf.utils.provenance import source_commit

    faults: dict[str, dict] = defaultdict(lambda: {"tried": 0, "lost": 0, "message": ""})
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        fault = faults[row["fault"]]
        fault["tried"] += 1
        fault["lost"] += row["lost"]
        fault["message"] = fault["message"] or row["message"]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": source_commit(),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}",
        "mutations_a_property": mutations,
        "kills": [json.loads(tally.read_text()) for tally in tallies],
        "faults": dict(sorted(faults.items())),
    }


def render(results: dict) -> str:
    """The table as Markdown."""
    lines = [
        f"Measured {results['date']} on {results['machine']}; kills at commit "
        f"`{str(results['kills'][0]['commit'])[:12]}`, the other faults at `{str(results['commit'])[:12]}`, "
        f"{results['mutations_a_property']:,} mutations of each of the properties in `test_properties.py`.",
        "",
        "| SIGKILL at random moments | one process | two processes |",
        "|---|---|---|",
    ]
    one, two = results["kills"]
    facts = [
        ("kills", "kills"),
        ("of them one process of two, the other left behind", "kills_of_one_process"),
        ("starts by command (the others forked)", "attempts_by_command"),
        ("resumes from a checkpoint", "resumes"),
        ("runs brought to their end", "runs_finished"),
        ("of them with weights and loss log equal to the uninterrupted run's", "runs_equal"),
        ("steps lost beyond the newest complete checkpoint", "lost_steps"),
        ("resumes that failed or started over", "corrupt_resumes"),
    ]
    lines += [f"| {label} | {one[key]} | {two[key]} |" for label, key in facts]
    for phase in ("before training", "training", "inside a save", "export and check"):
        lines.append(
            f"| killed: {phase} | {one['by_phase'].get(phase, 0)} | {two['by_phase'].get(phase, 0)} |"
        )
    if phases := results.get("interrupts"):
        lines += [
            "",
            "| SIGINT or SIGTERM at random moments | times | median, worst seconds to the end | amiss |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {row['times']} | {row['median_seconds']:.2f}, {row['worst_seconds']:.2f} "
            f"| {len(row['faults'])} |"
            for name, row in phases.items()
        ]
    lines += ["", "| fault | tried | lost | message shown |", "|---|---|---|---|"]
    for fault, (tried, lost, message) in _grouped(results["faults"]).items():
        lines.append(f"| {fault} | {tried} | {lost} | {_cell(message)} |")
    return "\n".join(lines)


def _grouped(faults: dict[str, dict]) -> dict[str, tuple[int, int, str]]:
    """One row a file: what was done to it in brackets, and the message for a flipped byte."""
    files: dict[str, dict[str, dict]] = defaultdict(dict)
    for fault, row in faults.items():
        name, _, damage = fault.partition(": ")
        files[name][damage] = row
    grouped = {}
    for name, rows in files.items():
        example = rows.get("one byte flipped") or next(iter(rows.values()))
        title = f"{name} ({', '.join(rows)})" if any(rows) else name
        tried, lost = (sum(row[key] for row in rows.values()) for key in ("tried", "lost"))
        grouped[title] = (tried, lost, example["message"])
    return grouped


def _cell(message: str) -> str:
    text = " ".join(message.split())
    if len(text) > _MESSAGE_CHARACTERS:
        text = text[:_MESSAGE_CHARACTERS].rsplit(" ", 1)[0] + " ..."
    return text.replace("|", "\\|").replace("<", "&lt;")


def fill(page: str, table: str) -> str:
    """The page with everything between the markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills for one process, and for two")
    parser.add_argument("--signals", type=int, default=20, help="signals to each phase")
    parser.add_argument("--mutations", type=int, default=5000, help="examples of each property")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "soak")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    tallies = [run_kills(processes, options.kills, work) for processes in (1, 2)]
    log = run_faults(work, options.mutations)
    results = collect(tallies, log, options.mutations)
    results["interrupts"] = run_interrupts(work, options.signals)
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), render(results)), encoding="utf-8")
    print(render(results))
    lost = sum(row["lost"] for row in results["faults"].values())
    lost += sum(len(row["faults"]) for row in results["interrupts"].values())
    lost += sum(t["lost_steps"] + t["corrupt_resumes"] + t["runs_different"] for t in results["kills"])
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()

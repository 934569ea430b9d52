"""Records of studies as they come out, without a run."""

from ant_hf.studies.record import RunRow, StudyRecord
from ant_hf.studies.study_file import Plot


def row(cell, seed, loss, *, point=None, broken=None, **facts):
    """A run of a study as its record has it."""
    sizes = {"parameters": 1000.0, "non_embedding_parameters": 800.0, "tokens": 5000.0, "flops": 3e7}
    return RunRow(
        cell=cell,
        point=point or {},
        changes={},
        seed=seed,
        facts=sizes | facts,
        scores={"bits_per_byte": loss, "loss": loss},
        broken=broken,
        minutes=1.5,
        sha256={"run": f"of {cell}, {seed}", "tokens": "0" * 64},
    )


def record_of(rows, **keys):
    """A study record with these runs."""
    values = {
        "name": "small",
        "question": "Which is best?",
        "answer": None,
        "does_not_show": ["Anything else."],
        "base": "tiny",
        "file": "small.yaml",
        "file_sha256": "f" * 64,
        "scale": 1.0,
        "planned": len(rows),
        "scores": ["bits_per_byte"],
        "limit": None,
        "plot": Plot(),
        "shared_changes": {"tokens": 5000},
        "conditions": {"device": ["cpu"]},
        "runs": rows,
    }
    return StudyRecord(**(values | keys))

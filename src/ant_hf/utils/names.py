"""Files and folders that more than one stage knows by name."""

from __future__ import annotations

# In a run's folder.
RUN_RECORD = "run.json"
METRICS = "metrics.jsonl"
PLOTS = "plots"
FINAL = "final"
# In a folder of packed tokens, and in one of a tokenizer.
MANIFEST = "manifest.json"
FRAGMENTATION = "fragmentation.json"
# In a model's folder.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
MODEL_FILES = (CONFIG, "generation_config.json", WEIGHTS)
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json")
RESULTS = "results.json"
# In a checkpoint: its list of files, written last.
SEAL = "checkpoint.json"
# In a repository that a run pushes to: the state to go on from.
LAST_CHECKPOINT = "last-checkpoint"
# In a folder of exported files.
VERIFIED = "verified.json"
# In a release folder; the manifest of the tokens has another name there.
CARD = "README.md"
GATE = "gate.json"
RELEASE = "release.json"
RELEASED_MANIFEST = "tokens.json"

"""Train, check and publish tiny Llama models with stock Transformers.

The public API, each name imported when it is first asked for. From text to Hub:

    recipe = ant_hf.load_recipe("quickstart")
    ant_hf.pretrain(recipe)                                        # train/
    results, file = ant_hf.evaluate("runs/quickstart/final")       # evaluation/
    comparison, folder = ant_hf.compare(["runs/quickstart/final", "runs/other/final"])
    report = ant_hf.verify("runs/quickstart/final")                # release/
    release = ant_hf.make_release("runs/quickstart/final", "OWNER/NAME")
    ant_hf.publish(release, "OWNER/NAME", yes=True)
"""

import importlib
from typing import Any

# The one place: the build reads it here, and a plain checkout has no other.
__version__ = "0.1.0"
# Name: module it comes from, and its name there.
_PUBLIC = {
    "AntError": ("errors", "AntError"),
    "Recipe": ("recipe", "Recipe"),
    "load_recipe": ("recipe", "load_recipe"),
    "pretrain": ("train.pretrain", "pretrain"),
    "load_model": ("model.loading", "load_any"),
    "generate": ("model.generation", "generate_sample"),
    "evaluate": ("evaluation.evaluate", "evaluate"),
    "compare": ("evaluation.comparison", "compare"),
    "verify": ("release.verify", "verify"),
    "make_release": ("release.build", "make_release"),
    "publish": ("release.publish", "publish"),
    "audit": ("card.audit", "audit"),
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)

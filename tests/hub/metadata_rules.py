"""What a model card's metadata may be: stricter than the Hub, which lets unknown keys pass.

The keys are those of the Hub's model card specification; written apart from `ant_hf`, so that
the package's own list is held against another one.
"""

import re

import yaml

KEYS = {
    "language", "license", "license_name", "license_link", "library_name", "tags", "datasets", "metrics",
    "base_model", "base_model_relation", "new_version", "pipeline_tag", "model-index", "thumbnail",
    "co2_eq_emissions", "inference", "widget", "mask_token", "extra_gated_prompt",
}  # fmt: skip
SPACE_KEYS = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "models",
    "license", "short_description", "pinned", "tags", "header", "custom_headers",
}  # fmt: skip
_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "odc-by", "other", "unknown"}
# The only ones that a Space may set (hub-docs, Spaces Configuration Reference).
_HEADERS = {f"cross-origin-{name}-policy" for name in ("embedder", "opener", "resource")}
_DATASET_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def problems(content: str, kind: str = "model") -> list[str]:
    """Why a README.md would be refused; an empty list if it would not."""
    match = re.match(r"^---\n(.*?)\n---\n", content, re.DOTALL)
    if not match:
        return ["no metadata block"]
    try:
        values = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(values, dict):
        return ["metadata is not a mapping"]
    keys = SPACE_KEYS if kind == "space" else KEYS
    found = [f'"{key}" is not allowed' for key in sorted(values.keys() - keys)]
    if values.get("license", "unknown") not in LICENSES:
        found.append(f'"license" must be one of {sorted(LICENSES)}')
    if values.get("license") == "other" and "license_name" not in values:
        found.append('"license_name" is needed with "license: other"')
    for key in ("datasets", "tags", "metrics", "language"):
        entries = values.get(key, [])
        entries = [entries] if isinstance(entries, str) else entries
        if not (isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)):
            found.append(f'"{key}" must be texts')
        elif key == "datasets" and not all(_DATASET_ID.match(entry) for entry in entries):
            found.append(f'"datasets" has an invalid id among {entries}')
    if kind == "space":
        found += [f'"{key}" is required' for key in ("title", "sdk") if not values.get(key)]
        colours = {values.get("colorFrom", "red"), values.get("colorTo", "red")}
        found += [f'"{colour}" is not a colour' for colour in colours - _COLOURS]
        headers = values.get("custom_headers", {}).keys()
        found += [f'"{key}" is not a header of a Space\'s own' for key in headers - _HEADERS]
        found += [f'"{key}" must be a text' for key in ("sdk_version", "python_version")
                  if not isinstance(values.get(key, ""), str)]  # fmt: skip
    return found + [p for model in values.get("model-index") or [] for p in _model_index(model)]


def _model_index(model: dict) -> list[str]:
    found = [] if isinstance(model.get("name"), str) else ['"model-index[0].name" must be a text']
    for i, result in enumerate(model.get("results") or []):
        where = f'"model-index[0].results[{i}]'
        if not result.get("task", {}).get("type"):
            found.append(f'{where}.task.type" is required')
        dataset = result.get("dataset", {})
        found += [f'{where}.dataset.{key}" is required' for key in ("name", "type") if not dataset.get(key)]
        found += [
            f'{where}.metrics" need type and a numeric value'
            for metric in result.get("metrics") or [{}]
            if not metric.get("type") or not isinstance(metric.get("value"), int | float)
        ]
    return found

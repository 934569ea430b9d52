"""An upper estimate of a training's CO2, where the device's power is known."""

from __future__ import annotations

from typing import Any

from ant_hf.utils.hardware import known_gpu

# World average of 2024: IEA, Electricity 2025.
_GRAMS_PER_KWH = 445


def co2_estimate(run: dict[str, Any]) -> dict[str, Any] | None:
    """`co2_eq_emissions` of the card: full board power over the training time; None if unknown."""
    environment, seconds = run["environment"], run.get("training_seconds")
    name = environment["device_name"]
    gpu = known_gpu(name)
    if not gpu or not seconds or run.get("resumed_from_steps"):
        return None
    devices = environment["num_processes"]
    kilowatt_hours = devices * gpu.watts * seconds / 3.6e6
    return {
        "emissions": round(kilowatt_hours * _GRAMS_PER_KWH, 1),
        "source": (
            f"upper estimate: {devices} x {gpu.watts} W board power x {seconds / 3600:.2f} h x "
            f"{_GRAMS_PER_KWH} g/kWh (world average 2024)"
        ),
        "training_type": "pre-training",
        "hardware_used": f"{devices} x {name}",
    }

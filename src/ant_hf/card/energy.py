"""An upper estimate of a training's CO2, where the device's power is known."""

from __future__ import annotations

from typing import Any

# Board power in watts by the makers' data sheets, by a part of the device's name.
_BOARD_WATTS = {
    "H200": 700, "H100": 700, "A100": 400, "L40S": 350, "L4": 72, "A10G": 150, "V100": 300, "P100": 250,
    "T4": 70, "RTX 4090": 450, "RTX 3090": 350,
}  # fmt: skip
# World average of 2024: IEA, Electricity 2025.
_GRAMS_PER_KWH = 445


def co2_estimate(run: dict[str, Any]) -> dict[str, Any] | None:
    """`co2_eq_emissions` of the card: full board power over the training time; None if unknown."""
    environment, seconds = run["environment"], run.get("training_seconds")
    name = environment["device_name"]
    words = name.replace("-", " ").split()
    watts = next((w for key, w in _BOARD_WATTS.items() if set(key.split()) <= set(words)), None)
    if not watts or not seconds or run.get("resumed_from_steps"):
        return None
    devices = environment["num_processes"]
    kilowatt_hours = devices * watts * seconds / 3.6e6
    return {
        "emissions": round(kilowatt_hours * _GRAMS_PER_KWH, 1),
        "source": (
            f"upper estimate: {devices} x {watts} W board power x {seconds / 3600:.2f} h x "
            f"{_GRAMS_PER_KWH} g/kWh (world average 2024)"
        ),
        "training_type": "pre-training",
        "hardware_used": f"{devices} x {name}",
    }

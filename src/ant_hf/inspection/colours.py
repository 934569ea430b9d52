"""One colour scale for surprise, shared by the terminal, the report and the demo."""

from __future__ import annotations

from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

# One step a nat; a uniform guess among 4,096 entries costs 8.3.
SURPRISE_STEPS = 10
# Lightness rises or falls all the way, so that the order survives any colour vision and grey.
_RAMPS = {
    "light": ("#f4f4f1", "#fbd9a0", "#f0913c", "#c04a00", "#5c2000"),
    "dark": ("#24272d", "#4d3118", "#94470b", "#e07b28", "#ffd9a8"),
}


def surprise_step(nats: float | None) -> int:
    """Step of the colour scale: whole nats, from 0 to SURPRISE_STEPS - 1; no loss counts as none."""
    return min(int(nats or 0.0), SURPRISE_STEPS - 1)


def surprise_colours(step: int, theme: str = "light") -> tuple[str, str]:
    """Background and text colour of a step, as `#rrggbb`.

    Args:
        theme: "light" or "dark"; the lowest step is close to that theme's page.
    """
    ramp = LinearSegmentedColormap.from_list("surprise", _RAMPS[theme])
    background = to_hex(ramp(step / (SURPRISE_STEPS - 1)))
    text = max(("#16181d", "#ffffff"), key=lambda colour: contrast(colour, background))
    return background, text


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, definition of contrast ratio)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

"""From joules to gCO2e: a grid's intensity and a site's PUE, given by the user, with where they come from.

Nothing is looked up: an intensity differs by place and hour. Pure. May not know: requests, files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from traces.errors import UserError

UJ_PER_KWH = 3.6e12
NO_SOURCE = "given on the command line, no source named"


@dataclass(frozen=True, slots=True)
class Grid:
    """gCO2e per kWh at the meter, power usage effectiveness (facility over equipment, at least 1), and the source of
    the intensity in words."""

    grid_gco2e_per_kwh: float
    pue: float = 1.0
    grid_source: str = NO_SOURCE

    def __post_init__(self) -> None:
        """UserError for what no grid or site can be."""
        if self.grid_gco2e_per_kwh < 0 or self.pue < 1:
            raise UserError(
                f"--grid {self.grid_gco2e_per_kwh} --pue {self.pue}: an intensity is at least 0 and a PUE at least 1"
            )

    def gco2e(self, uj: float) -> float:
        """Of so many measured uJ."""
        return uj * self.grid_gco2e_per_kwh * self.pue / UJ_PER_KWH

    def report(self, class_uj: dict[str, int]) -> dict[str, object]:
        """gCO2e of the attributed joules, of the run and per class, with what they rest on."""
        classes = {name: self.gco2e(uj) for name, uj in class_uj.items()}
        return {"gco2e": sum(classes.values()), "class_gco2e": classes, **asdict(self)}

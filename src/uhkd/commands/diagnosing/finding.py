"""One thing that was looked at, and all of them."""

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """What was found of a topic.

    state: ok, warning (it works, but slowly, or not everything does) or fault (trainings fail). advice: what to do, if not ok.
    """

    topic: str
    found: str
    state: State = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order in which they are shown."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 with a fault among them, else 0."""
        return int(any(finding.state == "fault" for finding in self.findings))

    def as_json(self) -> dict[str, Any]:
        """Whether all is well enough to train, and every finding."""
        return {"ok": self.exit_code == 0, "findings": [vars(finding) for finding in self.findings]}

"""What can be told of an artifact without a reference: its hashes and its signature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsconv.errors import InputError

from .findings.integrity import BESIDE, integrity_findings
from .findings.signature import Signature, signature_findings
from .verdict import Finding


@dataclass(frozen=True)
class IntegrityReport:
    """`what` was looked at, in words."""

    artifact: str
    findings: tuple[Finding, ...]
    what: str

    @property
    def passed(self) -> bool:
        return not self.findings

    @property
    def summary(self) -> str:
        return "; ".join(f"{found.place}: {found.message}" for found in self.findings)

    @property
    def hint(self) -> str:
        return self.findings[0].hint

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact,
            "passed": self.passed,
            "findings": [asdict(found) for found in self.findings],
        }


def check_files(artifact: str, signature: Signature | None = None) -> IntegrityReport:
    """
    Raises:
        InputError: there is nothing at `artifact`, or the key is none.
    """
    path = Path(artifact).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "check the path")
    signed = signature_findings(path, signature) if signature else ()
    what = "integrity and signature" if signature else "integrity"
    return IntegrityReport(artifact, (*signed, *integrity_findings(path, BESIDE)), what)

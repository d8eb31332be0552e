"""`dsconv verify ARTIFACT --integrity` without a reference: hashes and signature, nothing else."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsconv.errors import InputError, UsageError
from dsconv.runtime.console import say
from dsconv.runtime.verify.findings.integrity import BESIDE, integrity_findings
from dsconv.runtime.verify.findings.signature import Signature, signature_findings
from dsconv.runtime.verify.verdict import Finding

# Parameters of `verify` that need no reference.
ALLOWED = {"artifact", "integrity", "signature", "public_key", "as_json"}


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

    def show(self) -> None:
        for found in self.findings:
            say(f"{found.place}: {found.message}")
        print(f"{self.what}: {'passed' if self.passed else 'failed'}")


def refuse_without_reference(given: Collection[str], integrity: bool) -> None:
    """given: names of the parameters on the command line.

    Raises:
        UsageError: one of them compares with a model.
    """
    if not integrity and "signature" not in given:
        raise UsageError(
            "missing option --reference",
            "give the model it was made from; only --integrity and --signature go without one",
        )
    others = sorted(set(given) - ALLOWED)
    if others:
        option = others[0].replace("_", "-")
        raise UsageError(f"--{option} without --reference", "give the model it was made from, too")


def integrity_command(artifact: str, signature: Signature | None = None) -> IntegrityReport:
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

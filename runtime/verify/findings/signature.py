"""Signatures in the format of OpenSSF model-signing: who vouches for an artifact, not only that it
is whole.

The package `model-signing` signs the names and hashes of all files, with an elliptic key in PEM
(P-256, P-384 or P-521). Keys in hardware, certificates and Sigstore identities are for its own
command, `model_signing`; what it signs and what dsconv signs look the same.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dsconv.atomic import output_file
from dsconv.convert.files.hashes import artifact_files
from dsconv.errors import InputError, ProviderError, UsageError
from dsconv.runtime.verify.verdict import Finding

from .integrity import BESIDE, integrity_findings

SUFFIX = ".sig"


@dataclass(frozen=True)
class Signature:
    """To check: the file, and the public key of whoever is trusted."""

    file: Path
    public_key: Path


def signature_of(file: Path | None, public_key: Path | None) -> Signature | None:
    """What the options of `verify` ask for.

    Raises:
        UsageError: one of them is missing.
    """
    if file is None and public_key is None:
        return None
    if file is None or public_key is None:
        missing = "--signature" if file is None else "--public-key"
        raise UsageError(
            f"missing option {missing}", "a signature is checked with a key: give both"
        )
    return Signature(file, public_key)


@dataclass(frozen=True)
class SignReport:
    artifact: str
    signature: str
    files: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sign_artifact(
    artifact: str, private_key: Path, output: Path | None, overwrite: bool
) -> SignReport:
    """Sign an artifact that is whole; the signature lies beside it, `NAME.sig` by default.

    Raises:
        InputError: the artifact is damaged, or has symbolic links, or the key is none.
        UsageError: the signature would lie in the folder that it signs.
        ProviderError: the package is not installed.
    """
    path = _existing(Path(artifact).expanduser())
    target = output or path.absolute().with_name(path.absolute().name + SUFFIX)
    if path.is_dir() and target.absolute().resolve().is_relative_to(path.resolve()):
        raise UsageError(
            f"{target}: a signature inside the folder that it signs",
            "leave out -o, and it lies beside the folder",
        )
    package = _package()
    findings = integrity_findings(path, BESIDE)
    if findings:
        raise InputError(
            f"not signed: {findings[0].place}: {findings[0].message}", findings[0].hint
        )
    try:
        config = package.signing.Config().use_elliptic_key_signer(private_key=private_key)
    except Exception as error:  # of several libraries, none of them promised
        raise _bad_key(private_key, "private", error) from error
    with output_file(target, overwrite) as partial:
        try:
            config.sign(path, partial)
        except ValueError as error:  # a symbolic link, whose target could change
            problem = f"{path}: cannot be signed: {error}"
            raise InputError(problem, "put the file itself in place of the link") from error
    return SignReport(artifact, str(target), len(artifact_files(path)))


def signature_findings(path: Path, signature: Signature) -> tuple[Finding, ...]:
    """Is every file of the artifact, and no other, what the owner of the key has signed?

    Raises:
        InputError: the public key is none.
        ProviderError: the package is not installed.
    """
    file, key = signature.file, signature.public_key
    package = _package()
    try:
        config = package.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise _bad_key(key, "public", error) from error
    try:
        with redirect_stdout(sys.stderr):  # it warns on stdout
            config.verify(path, _existing(file))
    except InputError:
        raise
    except Exception as error:  # whatever it says of a file of a stranger: it is not signed
        reason = str(error) or "it was not made with this key, or was changed"
        cure = "take the artifact, or the key, from whoever signed it"
        return (Finding(file.name, f"does not hold for {path.name}: {reason}", cure),)
    return ()


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "check the path")
    return path


def _bad_key(path: Path, kind: str, error: Exception) -> InputError:
    return InputError(
        f"{path}: no {kind} key: {error}",
        "use an elliptic key in PEM without a password, as of: openssl ecparam -name prime256v1 "
        "-genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub",
    )


def _package() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise ProviderError(
            f"model-signing cannot be imported: {error}", "pip install model-signing pyopenssl"
        ) from error
    module: ModuleType = model_signing
    return module

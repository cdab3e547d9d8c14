"""Signatures of files by OpenSSH's ``ssh-keygen -Y``, with the keys and lists of signers that git uses.

https://man.openbsd.org/ssh-keygen describes ``-Y sign``, ``-Y find-principals``, ``-Y verify`` and ALLOWED SIGNERS.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from md_export.errors import ArtifactError, MachineError, PinError
from md_export.system.files import read_limited

# Namespace of ssh-keygen: a signature by the same key of something else is not valid here.
_NAMESPACE: Final = "md-export"
_LARGEST: Final = 1 << 16


def signature_path(file: Path) -> Path:
    """Return the path of a file's signature: ``pin.json.sig``."""
    return file.with_name(f"{file.name}.sig")


def sign(content: bytes, key: Path) -> bytes:
    """Return the signature of ``content`` by a private key; ``key`` may be the public key of one that ssh-agent holds.

    Raises:
        MachineError: ssh-keygen is not installed, or cannot sign with this key.
    """
    done = _ssh_keygen("sign", "-n", _NAMESPACE, "-f", str(key), content=content)
    if done.returncode:
        raise MachineError(f"ssh-keygen cannot sign with {key}: {_said(done)}; name a private key of OpenSSH")
    return done.stdout


def signer_of(content: bytes, signature: Path, allowed: Path) -> str:
    """Return the principal of the allowed-signers file ``allowed`` that signed ``content``.

    Raises:
        ArtifactError: the signature file is missing.
        MachineError: ssh-keygen is not installed.
        PinError: the signature is for other content, or by a key that is not in the file.
    """
    read_limited(signature, _LARGEST, ArtifactError, "sign with: md-export manifest seal OUT -o PIN --sign KEY")
    listed = ("-f", str(allowed), "-s", str(signature))
    found = _ssh_keygen("find-principals", *listed)
    principal = next(iter(found.stdout.decode(errors="replace").splitlines()), "")
    if found.returncode or not principal:
        raise PinError(f"{signature} was made by no signer in {allowed}: {_said(found)}; check who signed the pin")
    done = _ssh_keygen("verify", "-n", _NAMESPACE, "-I", principal, *listed, content=content)
    if done.returncode:
        raise PinError(f"{signature} is not {principal}'s signature of this pin: {_said(done)}; sign it again")
    return principal


def _ssh_keygen(action: str, *arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise MachineError("signatures need ssh-keygen, which is not installed; install the OpenSSH client")
    return subprocess.run([program, "-Y", action, *arguments], input=content, capture_output=True, check=False)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join((done.stderr or done.stdout).decode(errors="replace").split())[:200]

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

# Keeps a signature of anything else by the same key from counting as one of ours.
_NAMESPACE: Final = "md-export"
_LARGEST: Final = 1 << 16


def signature_path(file: Path) -> Path:
    """Return where the signature of a file lies: ``pin.json.sig``."""
    return file.with_name(f"{file.name}.sig")


def sign(content: bytes, key: Path) -> bytes:
    """Return the signature of ``content`` by a private key, or by the agent's key whose public half ``key`` is.

    Raises:
        MachineError: ssh-keygen is not installed, or cannot sign with this key.
    """
    done = _ssh_keygen("sign", "-n", _NAMESPACE, "-f", str(key), content=content)
    if done.returncode:
        raise MachineError(f"ssh-keygen does not sign with {key}: {_said(done)}; name a private key of OpenSSH")
    return done.stdout


def signer_of(content: bytes, signature: Path, allowed: Path) -> str:
    """Return the principal in the list ``allowed`` whose key signed ``content``.

    Raises:
        ArtifactError: there is no signature.
        MachineError: ssh-keygen is not installed.
        PinError: the signature is of another content, or of nobody in the list.
    """
    read_limited(signature, _LARGEST, ArtifactError, "sign with: md-export manifest seal OUT -o PIN --sign KEY")
    listed = ("-f", str(allowed), "-s", str(signature))
    found = _ssh_keygen("find-principals", *listed)
    principal = next(iter(found.stdout.decode(errors="replace").splitlines()), "")
    if found.returncode or not principal:
        raise PinError(f"{signature} was made by nobody in {allowed}: {_said(found)}")
    done = _ssh_keygen("verify", "-n", _NAMESPACE, "-I", principal, *listed, content=content)
    if done.returncode:
        raise PinError(f"{signature} is not {principal}'s signature of this pin: {_said(done)}")
    return principal


def _ssh_keygen(action: str, *arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise MachineError("signatures need ssh-keygen, which is not installed: install OpenSSH's client")
    return subprocess.run([program, "-Y", action, *arguments], input=content, capture_output=True, check=False)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join((done.stderr or done.stdout).decode(errors="replace").split())[:200]

"""The command line: parse → one call → print. Heavy imports are inside the function bodies."""

from __future__ import annotations

import errno
import gc
import signal
import sys
from typing import Final

import click

from md_export import __version__
from md_export.cli.artifacts import run, verify
from md_export.cli.build import build, cache, search
from md_export.cli.check import audit, compare, manifest, report
from md_export.cli.checkpoints import adapt, golden, init, inspect, unpack
from md_export.cli.devices import device_report, device_test
from md_export.cli.explain import attribute, crosscheck, doctor, estimate, lint
from md_export.cli.exports import EXPORTS
from md_export.cli.functions import join, split, style
from md_export.cli.generate import generate
from md_export.cli.recipes import recipe
from md_export.errors import MdExportError, one_line
from md_export.system.terminal_text import visible

SECTIONS: Final = {
    "Export": (*EXPORTS, style, join, split, recipe),
    "Check": (verify, audit, compare, report, manifest, run, generate, device_test, device_report),
    "Explain": (attribute, crosscheck, estimate, lint, doctor),
    "Build": (build, search, cache),
    "Checkpoints": (inspect, init, unpack, adapt, golden),
}


class _SectionedGroup(click.Group):
    """Group whose help lists the commands by section."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list per section, with the first sentence of each command's help."""
        width = max(map(len, self.list_commands(ctx)))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(command.name or "", command.get_short_help_str(formatter.width)) for command in commands]
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


@click.group(
    cls=_SectionedGroup,
    commands=[command for commands in SECTIONS.values() for command in commands],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="md-export")
def cli() -> None:
    """Lower diffusion checkpoints to phone formats, and verify them.

    Example: md-export coreml path/to/checkpoint --fp16 -o ios

    Targets are Core ML, TFLite, ONNX and Core AI; no phone and no Mac is needed. Shell completion:
    _MD_EXPORT_COMPLETE=bash_source md-export (or zsh_source, fish_source). Exit codes: 0 ok, 1 error, 2 usage, 3 parity
    failed.
    """


def main() -> None:
    """Run the command line; only this function turns errors into text and exit codes."""
    signal.signal(signal.SIGTERM, _terminated)
    gc.set_threshold(100_000, 20, 20)  # what libraries make when they are imported is no garbage, as in workers
    try:
        cli.main(prog_name="md-export", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was written", err=True)
        sys.exit(130)
    except MdExportError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {visible(_os_error(error))}", err=True)
        sys.exit(1)
    except ImportError as error:
        click.echo(f"error: a library does not load: {visible(one_line(error))}; run: md-export doctor", err=True)
        sys.exit(1)
    except MemoryError:
        click.echo("error: not enough memory; nothing was kept. Free some, or export one --component", err=True)
        sys.exit(1)


def _terminated(*_: object) -> None:
    """Handle SIGTERM like an interrupt, so that partial output is removed; a second signal ends the process at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def _os_error(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; nothing was kept. Free some space, or choose another disk with -o, or TMPDIR"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing was kept"

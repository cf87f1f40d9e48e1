"""The man page and the shells' completions are what the command line says. Run as a program, this writes them anew."""

import re
import subprocess
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click
import pytest
from click.shell_completion import get_completion_class

from kevip.cli import cli
from kevip.status.record import VERSION

SHARE = Path(__file__).parents[2] / "deploy" / "share"
SHELLS = {
    "bash": "bash-completion/completions/kevip",
    "zsh": "zsh/site-functions/_kevip",
    "fish": "fish/vendor_completions.d/kevip.fish",
}


def roff(text: str) -> str:
    """Return paragraphs as roff takes them."""
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(text))
    return "\n.PP\n".join(map(_escaped, text.split("\n\n")))


def _escaped(text: str) -> str:
    return re.sub(r"^(?=[.'])", r"\\&", text.replace("\\", r"\e").replace("-", r"\-"), flags=re.MULTILINE)


def option(param: click.Option, context: click.Context) -> Iterator[str]:
    names = ", ".join(rf"\fB{roff(name)}\fR" for name in param.opts + param.secondary_opts)
    value = "" if param.is_flag else rf" \fI{roff(param.make_metavar(context))}\fR"
    told = [f"variable {param.envvar}"] if param.envvar else []
    told += [f"default: {param.show_default}"] if isinstance(param.show_default, str) else []
    note = f" ({'; '.join(told)})" if told else ""
    yield f".TP\n{names}{value}\n{roff((param.help or '') + note)}"


def page() -> str:
    """Return kevip(8)."""
    with click.Context(cli, info_name="kevip") as context:
        return "\n".join([*about(context), ".SH OPTIONS", *options(cli, context), *commands(context), *rest()]) + "\n"


def about(context: click.Context) -> Iterator[str]:
    yield f'.TH KEVIP 8 "" "kevip {VERSION}" "System Administration"'
    yield ".SH NAME\nkevip \\- a virtual IP of several hosts, and a proxy behind it"
    yield ".SH SYNOPSIS\n.B kevip\n[\\fIOPTIONS\\fR]"
    yield from (f".br\n.B kevip {name}\n[\\fIOPTIONS\\fR]" for name in cli.list_commands(context))
    yield f".SH DESCRIPTION\n{roff(cli.help or '')}"


def options(command: click.Command, context: click.Context, known: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield a command's options but for those that are known."""
    for param in command.get_params(context):
        if isinstance(param, click.Option) and not {*param.opts} & known:
            yield from option(param, context)


def commands(context: click.Context) -> Iterator[str]:
    known = frozenset(name for param in cli.get_params(context) for name in param.opts)
    yield ".SH COMMANDS"
    for name, command in cli.commands.items():
        yield f".SS kevip {name}\n{roff(command.help or '')}"
        takes = {name for param in command.params for name in param.opts}
        if known - {"-h", "--help", "--version"} <= takes:
            yield ".PP\nTakes all options above, too."
            yield from options(command, context, known)
        else:
            yield from options(command, context, frozenset({"--help"}))


def rest() -> Iterator[str]:
    yield f".SH NOTES\n{roff(cli.epilog or '')}"
    yield f".SH FILES\n.TP\n.I {roff('/run/kevip/VIP.json')}\nWhat the daemon says of itself."
    yield ".SH SEE ALSO\n.BR ucarp (8),\n.BR keepalived (8),\n.BR ip\\-address (8),\n.BR conntrack (8)"


def completion(shell: str) -> str:
    """Return what a shell reads to complete kevip's commands."""
    kind = get_completion_class(shell)
    assert kind
    return kind(cli, {}, "kevip", "_KEVIP_COMPLETE").source() + "\n"


def pages() -> dict[str, str]:
    """Return each file, by where it belongs in a share directory."""
    return {"man/man8/kevip.8": page()} | {place: completion(shell) for shell, place in SHELLS.items()}


@pytest.mark.parametrize("place", pages())
def test_what_is_installed_is_what_the_command_line_says(place: str) -> None:
    assert (SHARE / place).read_text() == pages()[place], f"write it with: python {__file__}"


def test_each_option_and_command_is_in_the_manual() -> None:
    shown = page().replace(r"\-", "-")
    for command in (cli, *cli.commands.values()):
        for param in command.params:
            assert all(rf"\fB{name}\fR" in shown for name in param.opts)
    assert all(f".SS kevip {name}\n" in shown for name in cli.commands)
    assert not re.search(r"^'|^\.(?!TH|SH|SS|TP|PP|BR|B|I|br)", shown, re.MULTILINE)


@pytest.mark.parametrize(("words", "found"), [("kevip ma", "manifest"), ("kevip --engine k", "keepalived")])
def test_bash_completes(words: str, found: str) -> None:
    script = f"""
        PATH={Path(sys.executable).parent}:$PATH
        . {SHARE / SHELLS["bash"]}
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _kevip_completion kevip; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found]


if __name__ == "__main__":
    for place, text in pages().items():
        (SHARE / place).parent.mkdir(parents=True, exist_ok=True)
        (SHARE / place).write_text(text)

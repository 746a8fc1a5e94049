"""Completion in a shell: the script that a shell reads, and the answers that the script asks for.

Hydra's own script loses the verb, so the script is ours; what may follow `train` and `plan` is Hydra's own answer.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from launcher.cli import HYDRA_VERBS
from launcher.cli.verbs import VERBS, launch

HYDRA_FLAGS = (
    *("-d", "--detach", "-o", "--output", "-m", "--multirun", "--cfg", "--resolve", "--package", "--info", "--config-dir"),
    *("--config-name", "--config-path", "--help", "--hydra-help", "--version"),
)
AFTER_FLAG = {
    "-o": ("text", "json"),
    "--output": ("text", "json"),
    "-c": ("job", "hydra", "all"),
    "--cfg": ("job", "hydra", "all"),
    "-i": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}

BASH = r"""_launch_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" found cut=""
    local word="${line##*[[:space:]]}"
    # Readline replaces only what follows the last = where = separates words.
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && cut="${word%=*}="
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("${found#"$cut"}")
    done < <("${COMP_WORDS[0]}" completion --line "$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _launch_completion launch
"""
ZSH = r"""#compdef launch
_launch() {
    local line="${(j: :)words[1,CURRENT-1]} ${PREFIX}" found
    local -a whole open
    for found in ${(f)"$("${words[1]}" completion --line "$line" 2>/dev/null)"}; do
        if [[ $found == *[=./] ]]; then open+=("$found"); else whole+=("$found"); fi
    done
    (( ${#open} )) && compadd -Q -S '' -- "${open[@]}"
    (( ${#whole} )) && compadd -Q -- "${whole[@]}"
    (( ${#open} + ${#whole} )) || _files
}
compdef _launch launch
"""
FISH = r"""function __launch_completion
    set -l words (commandline -opc)
    $words[1] completion --line (commandline -cp | string collect) 2>/dev/null
end
complete -c launch -a '(__launch_completion)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
HELP = """Print the script that teaches a shell to complete `launch`.

\b
  bash  echo 'eval "$(launch completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(launch completion zsh)"' >> ~/.zshrc   (after compinit)
  fish  launch completion fish > ~/.config/fish/completions/launch.fish
"""


@click.command(help=HELP)
@click.argument("shell", type=click.Choice(list(SCRIPTS)), required=False)
@click.option("--line", hidden=True, help="Print what may stand at the end of this command line.")
def completion(shell: str | None, line: str | None) -> None:
    if line is not None:
        click.echo("\n".join(candidates(line)))
    elif shell is None:
        raise click.UsageError(f"say which shell: {', '.join(SCRIPTS)}")
    else:
        click.echo(SCRIPTS[shell], nl=False)


def candidates(line: str) -> list[str]:
    """What the last word of a command line may become, sorted; a word that ends in = . or / is to be continued."""
    words = _words(line)
    *before, word = words[1:] if len(words) > 1 else [""]
    if not before:
        found = _starting([*VERBS, "--help", "--version"], word)
    elif before[0] in HYDRA_VERBS:
        found = _hydra_words(before[0], before[1:], word)
    elif before[0] == "completion":
        found = _starting(SCRIPTS, word)
    else:
        found = _run_words(before[0], before[1:], word)
    return sorted(set(found))


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    return [*words, ""] if line[-1:].isspace() else words


def _starting(choices: Sequence[str] | dict[str, str], word: str) -> list[str]:
    return [choice for choice in choices if choice.startswith(word) and (word or not choice.startswith("-"))]


def _hydra_words(verb: str, before: Sequence[str], word: str) -> list[str]:
    if before and before[-1] in AFTER_FLAG:
        return _starting(AFTER_FLAG[before[-1]], word)
    if word.startswith("-"):
        return _starting(HYDRA_FLAGS, word)
    from launcher.config.load import complete

    return complete(before, word, folder=Path.cwd())


def _run_words(verb: str, before: Sequence[str], word: str) -> list[str]:
    if before and before[-1] in AFTER_FLAG:
        return _starting(AFTER_FLAG[before[-1]], word)
    if word.startswith("-"):
        command = launch.get_command(click.Context(launch), verb)
        return _starting([name for parameter in command.params for name in parameter.opts if name.startswith("-")] if command else [], word)
    return [] if verb == "resize" and _arguments(before) else _starting(_run_names(before), word)


def _arguments(before: Sequence[str]) -> list[str]:
    """Words that are neither options nor their values."""
    return [
        word for last, word in zip(["", *before], before, strict=False) if not word.startswith("-") and last not in ("--runs", *AFTER_FLAG)
    ]


def _run_names(before: Sequence[str]) -> list[str]:
    """Names in a local run store; asking a bucket would take longer than anybody waits for a completion."""
    runs = os.environ.get("LAUNCHER_RUNS") or "./runs"
    if "--runs" in before[:-1]:
        runs = before[list(before).index("--runs") + 1]
    try:
        return [path.stem for path in (Path(runs).expanduser() / "names").iterdir()]
    except OSError:
        return []

"""`leakatk init`: a commented experiment file and its search space, written into the current folder to be changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.config.shipped import data_files, example_files, space_files
from engine.errors import UserError, known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        default="fictional",
        metavar="NAME",
        help=f"one of {', '.join(example_files())} (default: fictional, which needs neither network nor GPU)",
    )


def run(args: argparse.Namespace) -> int:
    examples = example_files()
    known(args.name, examples, "leakatk init", "leakatk init --help")
    example = examples[args.name]
    space = _space_of(example)
    wanted = {path.name: path for path in (example, space) if path is not None}
    wanted |= {f"{args.name}/{path.name}": path for path in data_files(args.name)}
    for name in wanted:
        if Path(name).exists():
            raise UserError(f"{name}: is there already; move it away, or work in another folder")
    for name, path in wanted.items():
        Path(name).parent.mkdir(exist_ok=True)
        with Path(name).open("x", encoding="utf-8") as file:  # x: what came in between is not overwritten either
            file.write(path.read_text(encoding="utf-8").replace("examples/", ""))
    print(f"experiment   {example.name}")
    for name in wanted:
        if "/" in name:
            print(f"data         {name}")
    if space is not None:
        print(f"space        {space.name}")
    print(f"\nnext: change them; then\n  leakatk doctor {example.name}      does it fit on this machine?")
    print(f"  leakatk run {example.name}")
    if space is not None:
        print(f"  leakatk tune {space.name} {example.name}")
    return 0


def _space_of(example: Path) -> Path | None:
    """The search space of the experiment's first method that has one; one made for this benchmark goes first."""
    import yaml

    spaces = space_files()
    methods = [each["name"] for each in yaml.safe_load(example.read_text(encoding="utf-8")).get("methods", [])]
    names = [name for method in methods for name in (f"{example.stem}-{method}", method)]
    return next((spaces[name] for name in names if name in spaces), None)

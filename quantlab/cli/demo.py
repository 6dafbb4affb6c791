"""``quantlab demo``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="A working folder with bundled models and data.")
@click.argument("folder", type=options.PATH, default="quantlab-demo")
@click.option(
    "--run", "run_it", is_flag=True, help="Run the chain in it right away; continues an existing demo folder."
)
@click.option("--force", is_flag=True, help="Overwrite files in FOLDER.")
@options.common
def command(folder: Path, run_it: bool, force: bool, console: Console) -> int:
    """Make FOLDER with two trained models, Fashion-MNIST images, two recipes and a policy."""
    from quantlab.cli.run import run_and_show
    from quantlab.documents import dump_json
    from quantlab.workflow.demo import is_demo, make_demo

    if run_it and not force and is_demo(folder):
        console.say(f"demo folder {folder} is there already; going on with it")
        made: tuple[Path, ...] = ()
    else:
        made = make_demo(folder, force=force)
        for path in made:
            console.say(f"made   {path}")
    if not run_it:
        text = f"now: cd {folder} && quantlab run                  (a ResNet: see it pass)\n"
        text += "then: quantlab run mobilenet.toml    (naive min-max INT8 of a MobileNetV3: see why it may not ship)"
        console.result(text, dump_json({"schema": "quantlab.demo/1", "files": [str(path) for path in made]}))
        return 0
    code = run_and_show(folder / "quantlab.toml", None, False, console)
    console.say(f"next: cd {folder} && quantlab run mobilenet.toml    (naive min-max INT8: see why it may not ship)")
    return code

"""Writes docs/configuration.md from the texts of `--help`: `python -m launch.reference > docs/configuration.md`."""

from __future__ import annotations

from collections.abc import Iterator

from conf.schema import Config
from conf.schema.serve import ServedConfig
from conf.settings import about, settings
from launch.arguments import groups, options
from launch.command import grouped, takes

HEAD = """# Configuration

Every setting of `everframe stream`, which `plan`, `doctor` and `bench` take too, and of `everframe serve`, which alone
takes those of `serve`. This page is written by
`python -m launch.reference`; `everframe stream --help` prints the same, `everframe stream --help sink` a part of it.

```sh
everframe stream model=nano plan=timestep stream.seconds=2 "stream.prompt=a happy person (smiling)"
```

* Text is taken as typed: a prompt or a path may hold quotes, commas, brackets, `=` and anything else that the shell
  lets through. `null` is nothing, where a setting may be nothing; to a prompt it is a word.
* A list is `[2,1,1]`, an object `{path: style.safetensors, scale: 0.8}`: Hydra's grammar.
* With `--multirun`, `stream.seed=1,2,3` runs three jobs, each in a folder of its own.
* In a path `${output_dir}` stands for that setting's value; a prompt has no such references.
"""


def page() -> Iterator[str]:
    """The page's lines."""
    yield HEAD
    yield "## Groups\n"
    yield "Each chooses a file of `conf/`, whose settings may then be changed one by one.\n"
    for group in groups(Config):
        yield f"* `{group}`: " + ", ".join(f"`{name}`" for name in options(group))
    for prefix, some in grouped(list(settings(ServedConfig))):
        yield f"\n## {prefix or 'The whole run'}\n"
        if prefix:
            yield about(ServedConfig)[prefix] + "\n"
        yield "| setting | takes | what it is |"
        yield "|---|---|---|"
        for setting in some:
            yield f"| `{setting.name}` | {_cell(takes(setting))} | {_cell(setting.text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print("\n".join(page()))

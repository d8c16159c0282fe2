"""`python -m vankit.timm SCRIPT …`: run a script that knows timm and not vankit, with VAN among timm's models.

timm has no entry point for plugins. Importing this package is enough to register the models as soon as the script
imports timm, so all that is left to do here is to run the script as Python itself would.
"""

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import NoReturn

USAGE = "usage: python -m vankit.timm SCRIPT [ARGUMENTS ...] or python -m vankit.timm -m MODULE [ARGUMENTS ...]"


def main() -> None:
    """Run the script or module that the command line names, with its arguments, in this process."""
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        print(USAGE)
    elif words[:1] == ["-m"] and len(words) > 1:
        _run_module(words[1:])
    elif words and not words[0].startswith("-"):
        _run_script(words)
    else:
        _refuse(USAGE)


def _run_module(words: list[str]) -> None:
    if importlib.util.find_spec(words[0]) is None:
        _refuse(f"there is no module {words[0]}: expected one that `python -m {words[0]}` would find")
    sys.argv = words  # whose first word becomes the module's file
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _run_script(words: list[str]) -> None:
    script = Path(words[0])
    if not script.is_file():
        _refuse(
            f"there is no script {script}: pass the path of one, such as a timm release's train.py or validate.py, "
            "which pip does not install"
        )
    sys.argv = words
    if not sys.flags.safe_path:
        sys.path[0] = str(script.resolve().parent)  # instead of the working folder, which -m put there
    runpy.run_path(str(Path.cwd() / script), run_name="__main__")  # a script may leave the folder and ask for __file__


def _refuse(message: str) -> NoReturn:
    print(f"vankit.timm: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()

"""Where an installed engine lives: a virtual environment of its own, made on request, with no more than it imports.

Nothing of it enters ours; torch is borrowed from ours where there is one, since the schedulers use it for names alone.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from traces.schema import InputError

HOME = "FORETOKEN_ENGINES"
"""The variable that names the folder of all environments."""
_NEEDS = (
    "aiohttp", "blake3", "cachetools", "cbor2", "cloudpickle", "depyf", "diskcache", "einops", "fastapi", "gguf",
    "ijson", "lark", "mistral_common", "msgspec", "numpy", "openai", "opentelemetry-api", "opentelemetry-sdk",
    "partial-json-parser", "pillow", "prometheus_client", "protobuf", "psutil", "py-cpuinfo", "pybase64", "pydantic",
    "python-json-logger", "PyYAML", "pyzmq", "regex", "requests", "sentencepiece", "setproctitle", "tqdm", "watchfiles",
)  # fmt: skip
"""What importing vLLM's scheduler needs."""


@dataclass(frozen=True, slots=True)
class DriverLine:
    """Versions of an engine that one driver speaks to.

    needs: packages for its import; alone: such that are installed without what they ask for themselves.
    """

    driver: str
    needs: tuple[str, ...]
    alone: tuple[str, ...] = ("uvloop", "openai-harmony", "llguidance")


LINES = {
    "vllm==0.19": DriverLine("vllm_v1.py", (*_NEEDS, "transformers<5")),
    "vllm==0.33": DriverLine(
        "vllm_v1.py", (*_NEEDS, "transformers>=5", "tokenizers", "huggingface_hub", "httpx", "typer")
    ),
}
"""By name and first two numbers of the version."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An engine as a scenario names it, such as `vllm==0.33.0`."""

    name: str
    version: str

    @classmethod
    def of(cls, text: str) -> Installed:
        """Raises InputError for another form, or for a line that no driver speaks to."""
        name, _, version = text.partition("==")
        found = cls(name.strip().lower(), version.strip())
        found.line  # noqa: B018  (raises)
        return found

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def line(self) -> DriverLine:
        key = f"{self.name}=={'.'.join(self.version.split('.')[:2])}"
        if key not in LINES:
            known = ", ".join(f"{line}.x" for line in LINES)
            raise InputError(f"engine.name is {self}; those that can be driven are {known}")
        return LINES[key]

    @property
    def folder(self) -> Path:
        home = os.environ.get(HOME)
        root = Path(home) if home else Path.home() / ".cache" / "foretoken" / "engines"
        return root / f"{self.name}-{self.version}"

    @property
    def command(self) -> list[str]:
        """What starts its driver; raises InputError where its environment is not there, with how to make it."""
        if not self._python.is_file():
            raise InputError(
                f"{self} has no environment here; `sim engine {self}` makes one in {self.folder}, or set {HOME} to the "
                "folder that has it"
            )
        return [str(self._python), str(Path(__file__).parent / "drivers" / self.line.driver)]

    @property
    def _python(self) -> Path:
        return self.folder / "bin" / "python"

    def make(self, say: Callable[[str], None]) -> None:
        """Make the environment, whole or not at all.

        Raises:
            InputError: pip could not; the sentence has its last words and the command.
        """
        if self._python.is_file():
            say(f"{self.folder} is there already")
            return
        building = self.folder.with_name(f".{self.folder.name}-{os.getpid()}")
        try:
            say(f"making {self.folder}")
            building.parent.mkdir(parents=True, exist_ok=True)
            venv.create(building, with_pip=True, symlinks=True)
            _borrow_torch(building, say)
            for words in (
                ["--no-deps", str(self)],
                ["--no-deps", *self.line.alone],
                list(self.line.needs),
            ):
                _install(building, words, say)
            building.rename(self.folder)
        except OSError as error:
            raise InputError(f"the environment of {self.name} cannot be made: {error}") from None
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _borrow_torch(folder: Path, say: Callable[[str], None]) -> None:
    """Put our torch on the environment's path, behind its own packages; or install one."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        _install(folder, ["torch"], say)
        return
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "zz-torch.pth").write_text(f"{Path(found.origin).parents[1]}\n", encoding="utf-8")


def _install(folder: Path, words: list[str], say: Callable[[str], None]) -> None:
    say(f"pip install {' '.join(words)}")
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).split())[-600:]
        raise InputError(f"the environment cannot be made: pip install {' '.join(words)} failed: {last}")

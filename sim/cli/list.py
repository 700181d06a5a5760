"""The command `sim list`: what can be named on the command line, one row each. It loads nothing but names and facts."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import traces
from sim.load import keywords, load, names
from sim.scenario import ENGINE_KEYS, SETTINGS
from sim.specs.settings import Setting, word
from sim.specs.traits import TRAITS

Row = dict[str, Any]


def rows_of(kind: str) -> list[Row]:
    return _KINDS[kind]()


def _parts(package: str) -> list[Row]:
    rows = []
    for name in names(package):
        target = load(package, name)
        parameters = [f"{key}={parameter.default!r}" for key, parameter in keywords(target).items()]
        about = inspect.getmodule(target).__doc__ or ""
        rows.append({"name": name, "parameters": ", ".join(parameters), "about": about.partition("\n")[0]})
    return rows


def _traits() -> list[Row]:
    return [
        {"name": name, "of": noun, "kind": trait.kind, "about": trait.meaning}
        for noun, traits in TRAITS.items()
        for name, trait in traits.items()
    ]


def _models() -> list[Row]:
    from sim import catalog  # noqa: PLC0415

    return catalog.model_rows()


def _gpus() -> list[Row]:
    from sim import catalog  # noqa: PLC0415

    return catalog.gpu_rows()


def _engines() -> list[Row]:
    from sim.catalog import presets  # noqa: PLC0415

    default = SETTINGS["engine.preset"][0]
    return [
        {
            "name": engine.name,
            "default": "yes" if engine.name == default else "",
            "policies": ", ".join(engine.policies),
            "allocators": ", ".join(engine.allocators),
            "rules": len(engine.rules),
            "about": engine.description,
        }
        for engine in map(presets.load, presets.names())
    ]


def _profiles() -> list[Row]:
    """The roofline, and the profiles that come along; one of a folder's own is named by its path."""
    from sim.cost import profile  # noqa: PLC0415

    about = "data-sheet rates and named efficiencies of any GPU; nothing measured"
    rows: list[Row] = [{"name": "roofline", "kind": "roofline", "gpu": "any", "date": "", "about": about}]
    for name in profile.names():
        meta = profile.find(name).meta
        rows.append({"name": name, "kind": meta.kind, "gpu": meta.gpu, "date": meta.date, "about": meta.device})
    return rows


def _scenarios() -> list[Row]:
    from sim.catalog import bundles  # noqa: PLC0415

    return [{"name": name, "about": bundles.about(path)} for name, path in bundles.scenarios().items()]


def _formats() -> list[Row]:
    from traces import formats  # noqa: PLC0415

    return [{"name": name} for name in formats.names()]


def _measures() -> list[Row]:
    from sim.report import measures  # noqa: PLC0415

    return measures.listed()


def _settings() -> list[Row]:
    own = f" {SETTINGS['engine.preset'][0]}'s on an {SETTINGS['gpu'][0]}: another engine or GPU has its own."
    return [
        {
            "name": key,
            "default": default,
            "may be": _values(default, about),
            "about": _about(about) + (own if key in ENGINE_KEYS else ""),
        }
        for key, (default, about) in SETTINGS.items()
    ]


def _values(default: Any, about: Setting) -> str:
    if about.bound is not None:
        return str(about.bound)
    if isinstance(default, tuple):
        return "tables"
    return ", ".join(map(word, about.choices or ((False, True) if isinstance(default, bool) else ()))) or "a text"


def _about(about: Setting) -> str:
    return about.meaning + (f" Read only where {about.where.words}." if about.where else "")


def _claims() -> list[Row]:
    from sim.study import claims  # noqa: PLC0415

    listed = map(claims.load, claims.names())
    return [{"name": claim.name, "about": claim.title, "published": claim.published} for claim in listed]


def _sheet(gpu: Row) -> Row:
    """A row of the GPUs as a person reads it: JSON has the plain numbers."""
    tera = {f"{dtype} TFLOP/s": gpu[f"{dtype}_flops_per_s"] / 1e12 or None for dtype in ("fp16", "bf16", "fp8")}
    peers, network = gpu["peer_bytes_per_s"], gpu["network_bytes_per_s"]
    return {
        "name": gpu["name"],
        "description": gpu["description"],
        "GiB": gpu["memory_bytes"] / 2**30,
        "TB/s": gpu["memory_bytes_per_s"] / 1e12,
        **tera,
        "a node": f"{gpu['node_gpus']} over {gpu['link']}",
        "GB/s one way": peers / 1e9,
        "network GB/s": None if network is None else network / 1e9,
        "watts": gpu["watts"],
        "USD/h": gpu["usd_per_gpu_hour"],
        "price of": gpu["price_month"],
        "source": gpu["source"],
    }


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "policies": lambda: _parts("sim.policies"),
    "allocators": lambda: _parts("sim.allocators"),
    "routers": lambda: _parts("sim.routers"),
    "models": _models,
    "gpus": _gpus,
    "engines": _engines,
    "profiles": _profiles,
    "traces": lambda: [{"name": name, "bytes": path.stat().st_size} for name, path in traces.bundled().items()],
    "scenarios": _scenarios,
    "formats": _formats,
    "measures": _measures,
    "settings": _settings,
    "traits": _traits,
    "claims": _claims,
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(_KINDS)))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def list_(kind: str, as_json: bool) -> None:
    """What a name may be, and what every setting is."""
    rows = rows_of(kind)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if kind == "gpus":
        rows = [_sheet(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ("nothing",):
        numbers = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row.values()))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _shown(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None if value is None else word(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

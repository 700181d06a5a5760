"""The command `sim memory`: how large a model and its KV cache are, and on which GPUs they fit. It runs nothing."""

from __future__ import annotations

import json

import click

from traces.schema import InputError


@click.command()
@click.option("--model", required=True, help="A model of the catalog, a TOML file or a Hugging Face config.json.")
@click.option("--tokens", type=int, default=2048, show_default=True, help="Tokens of a sequence, prompt and answer.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences that are held at once.")
@click.option("--gpu", help="GPUs, such as h100,l40s, or TOML files; left out, all of the catalog.")
@click.option("--tp", type=int, help="GPUs that share the model; left out, the fewest that do.")
@click.option("--pp", type=click.IntRange(1, 64), default=1, help="Stages of layers.")
@click.option("--dp", type=click.IntRange(1, 1024), default=1, help="Ranks with a KV cache each.")
@click.option("--ep", is_flag=True, help="Place whole experts over all tp x dp GPUs, instead of cutting each.")
@click.option("--dtype", help="Type of the activations and plain weights: fp32, fp16, bf16.")
@click.option(
    "--weights",
    help="Type of the weight matrices: that of the activations, or fp8, int8, int4, nvfp4, mxfp4, int4-g32 ...",
)
@click.option("--kv-dtype", help="Type of the KV cache: fp32, fp16, bf16, fp8, int8, int4.")
@click.option(
    "--engine", help="Whose defaults and start-up accounting count (sim list engines); left out, no engine's."
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON, in bytes.")
def memory(
    model: str,
    tokens: int,
    batch: int,
    gpu: str | None,
    tp: int | None,
    pp: int,
    dp: int,
    ep: bool,
    dtype: str | None,
    weights: str | None,
    kv_dtype: str | None,
    engine: str | None,
    as_json: bool,
) -> None:
    """Weights, KV and activations of a model with their formulas, and which GPUs hold a batch of sequences."""
    from rich.console import Console  # noqa: PLC0415

    from sim import catalog  # noqa: PLC0415
    from sim.catalog import presets  # noqa: PLC0415
    from sim.cost.footprint import footprint  # noqa: PLC0415
    from sim.report.memory import memory_view  # noqa: PLC0415
    from sim.scenario import SETTINGS  # noqa: PLC0415

    spec = catalog.load_model(model).with_dtypes(dtype, kv_dtype, weights)
    named = catalog.names("gpus") if gpu is None else [name.strip() for name in gpu.split(",")]
    if not all(named):
        raise InputError(f"--gpu is {gpu!r}; give names with commas between them, such as h100,l40s")
    # A GPU that is named twice, also by an alias, is one row.
    gpus = {sheet.name: sheet for sheet in map(catalog.load_gpu, named)}
    whose = presets.load(engine or SETTINGS["engine.preset"][0])
    card = footprint(
        spec, list(gpus.values()), tokens=tokens, batch=batch, tp=tp, pp=pp, dp=dp, whole_experts=ep, engine=whose
    )
    if as_json:
        click.echo(json.dumps(card.document(), indent=2, allow_nan=False))
    else:
        Console(highlight=False).print(memory_view(card))

"""Every term of every price is of the kind that its name says: a product where a matrix of the model has that name."""

from __future__ import annotations

import pytest

from sim import catalog, scenario
from sim.cost.roofline import Roofline
from sim.cost.terms import HOST, KINDS, NAMED, PRODUCTS, REST, kind_of
from sim.engine.batch import Shape
from sim.serving.assemble import assemble
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE

STEP = Shape(((512, 0),), 4, 4000, 4096, 4096, verifies=((3, 1, 100, 100),))


def matrices(model: ModelSpec) -> set[str]:
    """The names of the model's own matrices, and of those that a price adds by itself."""
    if model.blocks:
        return {matrix.name for block in model.blocks for matrix in block.matrices} | {"LM head"}
    gemms = (model.attention_gemms, model.mlp_gemms, model.shared_gemms, model.expert_gemms)
    return {gemm.name for each in gemms for gemm in each(SINGLE)} | {"LM head", "router"}


@pytest.mark.parametrize("name", catalog.names("models"))
def test_products_are_those_with_the_models_matrices_and_nothing_else_is(name: str) -> None:
    """A new term that is no product has to be named in `NAMED`: else pages and verdicts take it for one."""
    model = catalog.load_model(name)
    terms = Roofline(model, catalog.load_gpu("h200")).explain(STEP)
    products = {term for term in terms if kind_of(term) == PRODUCTS}
    assert products <= matrices(model)
    assert not (matrices(model) & set(terms)) - products
    assert REST not in map(kind_of, terms)
    assert {term for term, cost in terms.items() if cost.on_host} == {term for term in terms if kind_of(term) == HOST}


@pytest.mark.parametrize(
    "settings",
    [
        {"tp": 16},
        {"offload.weight_layers": 4},
        {"gpu": "h200", "profile": "h200-llama-3.1-8b"},
        {"policy.name": "speculative", "speculation.drafter": "eagle"},
    ],
)
def test_nothing_is_left_untold_by_links_profiles_and_drafters(settings: dict[str, object]) -> None:
    parts = assemble(scenario.build({}, settings))
    terms = set(parts.cost.explain(STEP))
    assert {term for term in terms if kind_of(term) == PRODUCTS} <= matrices(parts.model) | {"embedding product"}
    assert REST not in map(kind_of, terms)


def test_a_name_has_one_kind() -> None:
    named = [name for names in NAMED.values() for name in names]
    assert len(named) == len(set(named))
    assert {*NAMED, PRODUCTS} == set(KINDS)

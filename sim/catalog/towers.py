"""Image encoders beside a language model: their parameters, which engines load with it in its plain type.

Each counts what the class of transformers (5.x) has that a checkpoint's `model_type` names. It makes no layers:
they take no part in a step of text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sim.catalog import encoders
from sim.catalog.hf_config import Config


def tower_of(whole: Config, text: int, counted: list[str]) -> int:
    """Parameters of the image encoder and what joins it to a text of width `text`.

    `counted` is told what is counted and what is not.
    """
    kind = whole.table.get("model_type")
    section = whole.table.get("vision_config")
    if any(whole.table.get(key) for key in ("audio_config", "speech_config")) or kind in _HEARS:
        counted.append("without what reads sound")
    if not isinstance(kind, str) or (not isinstance(section, dict) and kind not in (*_ALWAYS, *_SEES)):
        return 0
    if kind not in TOWERS:
        counted.append(
            f"text model alone, without the image encoder{' (not known)' if kind not in _TEXT_ALONE else ''}"
        )
        return 0
    table = section if isinstance(section, dict) else {}
    tower = TOWERS[kind](whole, Config(whole.path, table, "vision_config."), text)
    counted.append(f"{tower:,} parameters of the image encoder included")
    return tower


TOWERS: Mapping[str, Callable[[Config, Config, int], int]] = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), encoders.qwen3_vl),
    **dict.fromkeys(("llava", "llava_next", "llava_next_video", "llava_onevision"), encoders.llava),
    **dict.fromkeys(("idefics3", "smolvlm"), encoders.idefics3),
    **dict.fromkeys(("internvl", "internvl_chat"), encoders.internvl),
    **dict.fromkeys(("glm4v", "glm4v_moe"), encoders.glm4v),
    "qwen2_vl": encoders.qwen2_vl,
    "qwen2_5_vl": encoders.qwen2_5_vl,
    "paligemma": encoders.paligemma,
    "gemma4": encoders.gemma4,
    "gemma3": encoders.gemma3,
    "kimi_k25": encoders.kimi,
    "step3p7": encoders.step,
    "mistral3": encoders.mistral3,
}
"""By the `model_type` of the whole: its parameters without the text."""
_ALWAYS = ("step3p7",)
"""Classes that have one also where the file says nothing of it."""
_SEES = ("phi3_v", "phi4mm", "phi4_multimodal", "fuyu")
"""Types that say nothing of their image encoder in a section of its own."""
_HEARS = ("phi4mm", "phi4_multimodal")
_TEXT_ALONE = ("llama4", "qwen3_5", "qwen3_5_moe")
"""Whose class for text (transformers' AutoModelForCausalLM) has none, so that none is counted here."""

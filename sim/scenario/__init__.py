"""What a run is made of: TOML and `key=value` settings become a few small dataclasses, strictly. It runs nothing."""

from sim.scenario.presets import policies_of
from sim.scenario.reader import build, load, read, refuse_code, tables_of, with_front_end
from sim.scenario.settings import (
    ENGINE_KEYS,
    SETTINGS,
    CostSettings,
    EngineSettings,
    KvSettings,
    LiveSettings,
    OffloadSettings,
    Part,
    PoolSettings,
    PriceSettings,
    Scenario,
    settings_of,
)
from sim.scenario.tables import UnknownSettingError, full_key, leaves, literal, merge, parse_setting, variants
from sim.scenario.unread import refuse_unread
from sim.scenario.writer import as_tables, dump

__all__ = [
    "ENGINE_KEYS",
    "SETTINGS",
    "CostSettings",
    "EngineSettings",
    "KvSettings",
    "LiveSettings",
    "OffloadSettings",
    "Part",
    "PoolSettings",
    "PriceSettings",
    "Scenario",
    "UnknownSettingError",
    "as_tables",
    "build",
    "dump",
    "full_key",
    "leaves",
    "literal",
    "load",
    "merge",
    "parse_setting",
    "policies_of",
    "read",
    "refuse_code",
    "refuse_unread",
    "settings_of",
    "tables_of",
    "variants",
    "with_front_end",
]

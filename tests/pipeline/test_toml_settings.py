from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipeline.errors import ConfigError
from pipeline.ingest.config import IngestConfig
from pipeline.toml_settings import config_values, describe_change, parse_config, read_tables


@dataclass(frozen=True, kw_only=True)
class Inner:
    sigma_mm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Drawn:
    count: int = 3
    rate: float = 0.5
    quick: bool = False
    linkage: Literal["average", "ward"] = "average"
    window: tuple[float, float] = (0.0, 1.0)
    sizes: tuple[int, ...] = (1, 2)
    frame: int | None = None
    inner: Inner = Inner()
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must be at least 0")


def parse(**table: object) -> Drawn:
    return parse_config(table, Drawn, where="[drawn]")


def test_what_is_left_out_keeps_its_default() -> None:
    assert parse() == Drawn()


def test_values_take_the_declared_types() -> None:
    config = parse(
        rate=2, quick=True, linkage="ward", window=[1, 2], sizes=[5], frame=4, inner={"sigma_mm": 3}
    )
    assert config == Drawn(
        rate=2.0,
        quick=True,
        linkage="ward",
        window=(1.0, 2.0),
        sizes=(5,),
        frame=4,
        inner=Inner(sigma_mm=3.0),
    )
    assert type(config.rate) is float
    assert type(config.window[0]) is float


def test_an_unknown_setting_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"\[drawn\]: unknown setting 'linkge'; did you mean 'linkage'\?"):
        parse(linkge="ward")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"count": 1.5}, "count must be a whole number, got 1.5"),
        ({"count": True}, "count must be a whole number"),
        ({"rate": "fast"}, "rate must be a number"),
        ({"quick": 1}, "quick must be true or false"),
        ({"linkage": "wards"}, "did you mean 'ward'"),
        ({"window": [1]}, "window must be a list of 2, got 1"),
        ({"sizes": ["a"]}, r"sizes\[0\] must be a whole number"),
        ({"frame": "first"}, "frame must be a whole number or left out"),
        ({"inner": {"sigma": 1}}, r"\[drawn\] inner: unknown setting 'sigma'; did you mean 'sigma_mm'"),
        ({"count": -1}, "count must be at least 0"),
        ({"shares": 1.0}, "shares must be a table, got 1.0"),
        ({"shares": {"ct": "much"}}, "shares ct must be a number, got 'much'"),
    ],
)
def test_a_wrong_value_says_what_must_hold_and_what_was_got(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**table)


def test_every_default_of_the_ingest_config_survives_the_way_through_json() -> None:
    values = {name: value for name, value in config_values(IngestConfig()).items() if value is not None}
    assert parse_config(values, IngestConfig, where="[ingest]") == IngestConfig()


def test_unknown_tables_and_broken_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[ingset]\nspacing_mm = 2\n")
    with pytest.raises(ConfigError, match=r"unknown table \[ingset\]; did you mean 'ingest'"):
        read_tables(path, ["ingest", "proposals"])
    path.write_text("ingest = 3\n")
    with pytest.raises(ConfigError, match="must be a table"):
        read_tables(path, ["ingest", "proposals"])
    path.write_text("[ingest\n")
    with pytest.raises(ConfigError, match="no valid TOML"):
        read_tables(path, ["ingest"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tables(tmp_path / "absent.toml", ["ingest"])
    path.write_text("[ingest]\nspacing_mm = 2\n")
    assert read_tables(path, ["ingest", "proposals"]) == {"ingest": {"spacing_mm": 2}, "proposals": {}}


def test_a_table_of_free_names_is_read_and_told() -> None:
    config = parse(shares={"ct": 2, "mr": 0.5})
    assert config.shares == {"ct": 2.0, "mr": 0.5}
    assert describe_change(config_values(parse()), config_values(config)) == (
        "shares.ct unset -> 2, shares.mr unset -> 0.5"
    )


def test_a_change_is_told_setting_by_setting() -> None:
    before = config_values(Drawn())
    after = config_values(Drawn(count=4, inner=Inner(sigma_mm=2.0), frame=1))
    assert describe_change(before, after) == "count 3 -> 4, frame unset -> 1, inner.sigma_mm 1 -> 2"
    assert describe_change(before, before) == ""


def test_a_list_is_wanted_for_a_setting_of_several_values() -> None:
    with pytest.raises(ConfigError, match=r"\[drawn\] window must be a list, got 3"):
        parse(window=3)


@pytest.mark.parametrize("what", [Drawn, {"count": 3}, None])
def test_only_a_config_has_settings(what: object) -> None:
    with pytest.raises(TypeError, match="a config is a dataclass"):
        config_values(what)


def test_a_setting_that_its_config_refuses_keeps_its_own_words() -> None:
    with pytest.raises(ConfigError, match=r"^\[drawn\]: count must be at least 0$"):
        parse(count=-1)

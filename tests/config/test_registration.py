import copy
import json
import pickle

import pytest

from lfdm.config.registration import Config, Configured, register_to_config
from lfdm.errors import UserError


class Lens(Configured):
    @register_to_config
    def __init__(self, focus: float, *, tint: str = "none", sizes: tuple[int, ...] = (1, 2)) -> None:
        self.text = f"{focus} {tint} {sizes}"


def test_arguments_and_defaults_are_the_configuration() -> None:
    lens = Lens(3.0, tint="red")
    assert lens.config == {"_class_name": "Lens", "focus": 3.0, "tint": "red", "sizes": (1, 2)}
    assert lens.config.tint == lens.config["tint"] == "red"
    assert lens.text == "3.0 red (1, 2)"
    assert json.loads(lens.to_json_string()) == {**lens.config, "sizes": [1, 2]}
    assert Lens(**lens.config).config == Lens.from_config(lens.config).config == lens.config
    assert Lens.from_config(lens.config, tint="blue").config.tint == "blue"
    lens.register_to_config(tint="green")
    assert (lens.config.tint, lens.config.focus) == ("green", 3.0)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"Lens has no settings \['fokus'\]; it takes \['focus', 'sizes', 'tint'\]"):
        Lens.from_config({"fokus": 1})
    with pytest.raises(AttributeError, match="has no entry 'fokus'"):
        _ = Lens(1).config.fokus


def test_a_configuration_cannot_be_changed_in_place() -> None:
    config = Lens(1).config
    for change in (
        lambda: config.update(focus=2),
        lambda: config.__setitem__("focus", 2),
        lambda: setattr(config, "focus", 2),
        lambda: config.pop("focus"),
        config.clear,
    ):
        with pytest.raises(TypeError, match="register_to_config"):
            change()
    for same in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(same) is Config
        assert same == config

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from autosegloss.errors import ConfigError
from autosegloss.metric import metric
from autosegloss.search.settings import StudyConfig, as_config, dump_config, fingerprint, json_schema, load_config
from tests.examples import examples
from tests.searches import configuration

SEARCH_CONFIGS = Path(__file__).parent.parent / "search_configs"
SCHEMA = jsonschema.Draft202012Validator(json_schema())
METRICS = ("miou", "fwiou", "macc", "gacc", "biou", "bf1")
TRAIN = {
    "optimizer": "sgd",
    "learning_rate": None,
    "head_multiplier": 1.0,
    "auxiliary_weight": 0.4,
    "precision": "float32",
    "augment": "flip",
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes study.yaml into a folder of its own and loads it from there by its relative path."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str) -> StudyConfig:
        Path("study.yaml").write_text(text, encoding="utf-8")
        return load_config("study.yaml", overrides)

    return load


def message(load: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    return str(caught.value)


# Reading


def test_defaults_are_those_of_the_contract() -> None:
    assert as_config({"metric": "miou"}).model_dump() == {
        "metric": "miou",
        "reward": None,
        "relaxation": {
            "curve": "auto",
            "pieces": 2,
            "logic": "auto",
            "share_curves": False,
            "classes": "metric",
            "scale": "auto",
            "cross_entropy": "auto",
            "class_power": "auto",
        },
        "proxy": {
            "data": {"name": "shapes"},
            "labels": {"name": "hard"},
            "network": {"name": "unet_small"},
            "start": {"regime": "encoder", "iterations": 200, "weights": None},
            "train": TRAIN | {"iterations": 100, "batch_size": 8},
        },
        "trial": None,
        "rivals": {"losses": None, "steps": None, "seeds": 3, "guard": False},
        "search": {
            "algorithm": "ppo2",
            "steps": 12,
            "samples": 32,
            "always": False,
            "offsets": False,
            "seed": 0,
            "lag": 0,
            "std": None,
            "clip": 0.2,
            "updates": 60,
            "learning_rate": 0.2,
            "ratio": "coordinate",
            "baseline": "mean",
            "searcher": None,
        },
        "guard": {},
        "finalists": {"candidates": 3, "seeds": 3, "test_seeds": 8, "iterations": None},
        "resources": {"workers": 2, "cpus": 1, "gpus": 0.0, "time_limit": None},
        "retrain": TRAIN | {"iterations": 20_000, "batch_size": 16, "data": {}, "checkpoint_every": 500},
        "compare": {
            "losses": [],
            "seeds": 5,
            "steps": None,
            "tuning_seeds": 2,
            "offsets": False,
            "metrics": None,
            "settings": {"": {}},
        },
        "modules": None,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-.5E+2", -50.0),
        ("1.", 1.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("'1e-3'", "1e-3"),
        ("!!str 1", "1"),
        ("!!int '1'", 1),
        ("<<", "<<"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(study: Any, text: str, value: object) -> None:
    config = study(f"metric: miou\nproxy:\n  data:\n    option: {text}\n")
    assert config.proxy.data.options == {"option": value}
    assert type(config.proxy.data.options["option"]) is type(value)
    assert study("metric: miou", f"proxy.data.option={text}").proxy.data.options == {"option": value}


def test_metric_in_all_its_forms(study: Any) -> None:
    expr = metric("biou", radius=3)
    assert study("metric: 'class_sum(total(pred & target)) / class_sum(total(target))'").metric.startswith("class_sum")
    assert study("metric: {name: biou, radius: 3}").metric == {"name": "biou", "radius": 3}
    assert as_config({"metric": expr}).metric == str(expr)
    assert metric(str(as_config({"metric": expr}).metric)) == expr


def test_as_config_takes_every_form(study: Any) -> None:
    config = study("metric: miou\nsearch: {steps: 3}")
    assert as_config(config) is config
    assert as_config("study.yaml") == as_config(Path("study.yaml")) == config
    assert as_config({"metric": "miou", "search": {"steps": 3}}) == config
    assert message(as_config, {"metric": "miou", "search": {"steps": -1}}) == (
        "configuration: search.steps: must be at least 0, got `-1`"
    )


def test_fingerprint_changes_with_what_determines_the_result_only() -> None:
    base = fingerprint(as_config({"metric": "miou"}))
    assert base == fingerprint(as_config({"metric": "miou", "resources": {"workers": 9}}))
    assert base == fingerprint(as_config({"metric": "miou", "retrain": {"iterations": 9}}))
    assert base != fingerprint(as_config({"metric": "miou", "search": {"seed": 1}}))
    smoothed = fingerprint(as_config({"metric": "miou", "proxy": {"labels": {"name": "smoothed"}}}))
    assert smoothed["proxy"].pop("labels") == {"name": "smoothed"}
    assert smoothed == base, "results kept from before there were labels to choose stay valid"
    assert json.loads(json.dumps(base)) == base


def test_a_later_key_stands_in_the_fingerprint_only_where_it_changes_the_earlier_behaviour() -> None:
    earlier = {"curve": "bezier", "logic": "product", "scale": 1, "cross_entropy": 0, "class_power": 0}
    base = fingerprint(as_config({"metric": "miou", "relaxation": earlier}))
    others = {"pieces": 2, "share_curves": False, "classes": "metric"}
    assert base["relaxation"] == {"curve": "bezier", "logic": "product"} | others
    for key, values in {"scale": (8, "auto"), "cross_entropy": (0.25, "searched"), "class_power": ("auto",)}.items():
        for value in values:
            given = fingerprint(as_config({"metric": "miou", "relaxation": earlier | {key: value}}))
            assert given["relaxation"].pop(key) == value
            assert given == base
    without_rivals = fingerprint(
        as_config({"metric": "miou", "rivals": {"losses": []}, "finalists": {"test_seeds": 9}})
    )
    assert "rivals" not in without_rivals
    assert without_rivals["finalists"] == {"candidates": 3, "seeds": 3}, "there is no test"
    assert base["finalists"] == {"candidates": 3, "seeds": 3, "test_seeds": 8}
    assert fingerprint(as_config({"metric": "miou"}))["rivals"] == {
        "losses": None,
        "steps": None,
        "seeds": 3,
        "guard": False,
    }
    for section, changes in {"search": {"always": True}, "finalists": {"test_seeds": 9, "iterations": 200}}.items():
        given = fingerprint(as_config({"metric": "miou", "relaxation": earlier, section: changes}))
        assert {key: given[section].pop(key) for key in changes} == changes
        assert given == {**base, "finalists": given["finalists"]}
    assert (
        fingerprint(as_config({"metric": "miou"}))["relaxation"]
        == dict.fromkeys(("curve", "logic", "scale", "cross_entropy", "class_power"), "auto") | others
    )


# Overrides


def test_overrides_win_over_the_file_and_later_ones_over_earlier(study: Any) -> None:
    config = study(
        "metric: miou\nsearch: {steps: wrong, samples: 4}",
        "search.steps=3",
        "search.steps=5",
        "metric={name: biou, radius: 2}",
        "metric.radius=3",
        "relaxation={pieces: 1}",
        "proxy.train.learning_rate=1e-2",
    )
    assert (config.search.steps, config.search.samples, config.relaxation.pieces) == (5, 4, 1)
    assert config.metric == {"name": "biou", "radius": 3}
    assert config.proxy.train.learning_rate == 0.01


def test_an_override_may_be_a_metric_with_an_equals_sign(study: Any) -> None:
    assert study("metric: miou", "metric=bf1(radius=3)").metric == "bf1(radius=3)"


def test_a_setting_is_merged_key_by_key_and_options_go_with_their_name(study: Any) -> None:
    config = study(
        """\
metric: miou
proxy:
  data: {name: folder, root: here, size: 64}
  network: {name: "mine:Network", width: 8}
  train: {iterations: 7, batch_size: 2}
compare:
  settings:
    same: {}
    other: {proxy: {data: {name: nuclei}, network: {name: "mine:Network", depth: 2}, train: {batch_size: 4}}}
    larger: {proxy: {data: {size: 128}, start: {regime: scratch}}}
"""
    )
    same, other, larger = (config.in_setting(name) for name in ("same", "other", "larger"))
    assert same == config
    assert other.proxy.data.model_dump() == {"name": "nuclei"}
    assert other.proxy.network.model_dump() == {"name": "mine:Network", "width": 8, "depth": 2}
    assert (other.proxy.train.iterations, other.proxy.train.batch_size) == (7, 4)
    assert larger.proxy.data.model_dump() == {"name": "folder", "root": "here", "size": 128}
    assert (larger.proxy.start.regime, larger.proxy.train) == ("scratch", config.proxy.train)
    path = Path("again.yaml")
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path).in_setting("larger") == larger
    assert fingerprint(config) == fingerprint(
        config.model_copy(update={"compare": as_config({"metric": "miou"}).compare})
    )


# Mistakes: the text is golden


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "search: {steps: 3}",
            "study.yaml: metric: missing; give the target metric, e.g. `metric: miou`",
        ),
        (
            "metric: miou\nsearch:\n  update_epoch: 3",
            "study.yaml:3: search.update_epoch: unknown key (did you mean `updates`?)",
        ),
        ("metric: miou\npieces: 3", "study.yaml:2: pieces: unknown key (did you mean `relaxation.pieces`?)"),
        (
            "metric: miou\nlearning_rate: 3",
            "study.yaml:2: learning_rate: unknown key "
            "(did you mean `proxy.train.learning_rate` or `search.learning_rate` or `retrain.learning_rate`?)",
        ),
        (
            "metric: miou\nfinalists: {zzz: 3}",
            "study.yaml:2: finalists.zzz: unknown key; allowed: candidates, seeds, test_seeds, iterations",
        ),
        (
            "metric: miou\nrelaxation:\n  curve: besier",
            "study.yaml:3: relaxation.curve: must be one of auto, bezier, linear, log, identity, got `besier`",
        ),
        ("metric: miou\nsearch: {steps: 1.5}", "study.yaml:2: search.steps: must be an integer, got `1.5`"),
        ("metric: miou\nsearch: {steps: '12'}", "study.yaml:2: search.steps: must be an integer, got `'12'`"),
        ("metric: miou\nsearch: {steps: true}", "study.yaml:2: search.steps: must be an integer, got `true`"),
        ("metric: miou\nsearch: {std: wide}", "study.yaml:2: search.std: must be a number, got `wide`"),
        ("metric: miou\nsearch: {std: .inf}", "study.yaml:2: search.std: must be a finite number, got `.inf`"),
        ("metric: miou\nsearch: {std: 0}", "study.yaml:2: search.std: must be greater than 0, got `0`"),
        ("metric: miou\nsearch: {clip: 1}", "study.yaml:2: search.clip: must be less than 1, got `1`"),
        ("metric: miou\nsearch: {samples: 1}", "study.yaml:2: search.samples: must be at least 2, got `1`"),
        (
            "metric: miou\nrelaxation: {share_curves: yes}",
            "study.yaml:2: relaxation.share_curves: must be true or false, got `'yes'`",
        ),
        ("metric: miou\nproxy: {data: {name: 3}}", "study.yaml:2: proxy.data.name: must be text, got `3`"),
        (
            "metric: miou\nproxy: {data: {option: {deep: [.inf]}}}",
            "study.yaml:2: proxy.data.option: must be a finite number, got `.inf`",
        ),
        ("metric: miou\nproxy:\n  train:", "study.yaml:3: proxy.train: must be a mapping, got `null`"),
        (
            "metric: miou\nrelaxation: {cross_entropy: 1.5}",
            "study.yaml:2: relaxation.cross_entropy: must be a number from 0 to 1, `searched` or `auto`, got `1.5`",
        ),
        (
            "metric: miou\nrelaxation: {cross_entropy: search}",
            "study.yaml:2: relaxation.cross_entropy: must be a number from 0 to 1, `searched` or `auto`, got `search`",
        ),
        (
            "metric: miou\nrelaxation: {scale: 0}",
            "study.yaml:2: relaxation.scale: must be a number from 0.001 to 1000, `searched` or `auto`, got `0`",
        ),
        (
            "metric: miou\nrelaxation: {class_power: .nan}",
            "study.yaml:2: relaxation.class_power: must be a number from -2 to 2, `searched` or `auto`, got `.nan`",
        ),
        *(
            (
                f"metric: miou\nrelaxation: {{logic: {given}}}",
                "study.yaml:2: relaxation.logic: must be one of auto, product, godel, lovasz, or a list of different "
                f"ones such as [product, lovasz], got `{given}`",
            )
            for given in ("lovas", "[lovasz]", "[product, product]", "[product, auto]")
        ),
        (
            "metric: miou\nrelaxation: {cross_entropy: true}",
            "study.yaml:2: relaxation.cross_entropy: must be a number from 0 to 1, `searched` or `auto`, got `true`",
        ),
        ("metric: miou\nguard: [1]", "study.yaml:2: guard: must be a mapping, got `[1]`"),
        ("metric: miou\nguard: {gacc: 1.5}", "study.yaml:2: guard.gacc: must be at most 1, got `1.5`"),
        ("metric: miou\nrivals: {steps: [1, 2000]}", "study.yaml:2: rivals.steps.1: must be at most 1000, got `2000`"),
        (
            "metric: miou\nguard: {gac: 0.9}",
            "study.yaml:2: guard.gac: unknown metric `gac` (did you mean `gacc`?).",
        ),
        (
            "metric: miou\nguard: {a: {expression: iou(2)}, miou: 1}",
            "study.yaml:2: guard.a: `share` is missing, as in {expression: iou(2), share: 0.8}",
        ),
        (
            "metric: miou\nguard: {a: {expression: iuo(2), share: 2}}",
            "2 errors in the configuration:\n"
            "study.yaml:2: guard.a.expression: unknown function `iuo` (did you mean `iou`?).\n      iuo(2)\n      ^\n"
            "study.yaml:2: guard.a.share: must be at most 1, got `2`",
        ),
        (
            "metric: miou\nguard: {miou: {expression: iou(2), share: 0.5}}",
            "study.yaml:2: guard.miou: the name `miou` belongs to another metric of the catalogue; choose another "
            "name.",
        ),
        (
            "metric: miou\nguard: {target: {expression: iou(2), share: 0.5}}",
            "study.yaml:2: guard.target: the name `target` stands for something else in the tables; choose another",
        ),
        ("metric: miou\nguard: {miou: much}", "study.yaml:2: guard.miou: must be a number, got `much`"),
        (
            "metric: {name: dice, expression: iou(2)}",
            "study.yaml:1: metric: the name `dice` belongs to another metric of the catalogue; choose another name.",
        ),
        (
            "metric: miou\ncompare: {metrics: [{name: a, expression: iou(2)}, {name: a, expression: iou(1)}]}",
            "study.yaml:2: compare.metrics: two metrics have the name `a`; choose another",
        ),
        (
            "metric: miou\nsearch:\n  algorithm: random\n  std: 0.3\n  clip: 0.1",
            "study.yaml:5: search.clip: `clip` is an option of `ppo2`, not of `random`; `std` is an option of `ppo2` "
            "and `snes` and `cma_es`, not of `random`",
        ),
        (
            "metric: miou\nsearch: {steps: " + "[" * 3000,
            "study.yaml: lists or mappings are nested too deeply",
        ),
        (
            "metric: 3",
            "study.yaml:1: metric: must be a name, a mapping such as {name: biou, radius: 3}, "
            "or a text expression, got `3`",
        ),
        (
            "metric: miou\ncompare: {steps: []}",
            "study.yaml:2: compare.steps: must have 1 to 16 steps, got 0",
        ),
        (
            "metric: miou\ncompare: {steps: [2, 1]}",
            "study.yaml:2: compare.steps: must ascend, each step once, got `[2.0, 1.0]`",
        ),
        ("metric: miou\ncompare: {losses: jml}", "study.yaml:2: compare.losses: must be a list, got `jml`"),
        (
            "metric: miou\ncompare: {settings: {}}",
            "study.yaml:2: compare.settings: must name at least one setting; omit `settings` to compare in the "
            "configuration as it is",
        ),
        (
            "metric: miou\ncompare:\n  settings:\n    a, b:\n      proxy:\n        trian: {iterations: 3}",
            "study.yaml:6: compare.settings.a, b.proxy.trian: unknown key (did you mean `train`?)",
        ),
        (
            "metric: miou\ncompare:\n  settings:\n    a: {iterations: 3}",
            "study.yaml:4: compare.settings.a.iterations: unknown key (did you mean `proxy.start.iterations` or "
            "`proxy.train.iterations`?)",
        ),
        (
            "metric: miou\ncompare:\n  settings:\n    a: {search: {steps: 3}}",
            "study.yaml:4: compare.settings.a.search: unknown key; allowed: proxy",
        ),
        (
            "metric: miou\ncompare:\n  settings:\n    a: {proxy: {train: {optimizer: adam}}}",
            "study.yaml:4: compare.settings.a.proxy.train.optimizer: must be one of sgd, adamw, got `adam`",
        ),
        (
            "metric: miou\ncompare:\n  settings:\n    a:",
            "study.yaml:4: compare.settings.a: must be a mapping, got `null`",
        ),
        (  # each is right by itself
            "metric: miou\nproxy: {start: {weights: w.pt}}\n"
            "compare:\n  settings:\n    a: {}\n    b: {proxy: {start: {regime: scratch}}}",
            "study.yaml:6: compare.settings.b.proxy.start: regime `scratch` does not use `weights`; use `encoder` or "
            "`checkpoint`",
        ),
        (
            "metric: miou\ncompare:\n  metrics:\n  - miou\n  - {name: bf1, radios: 2}",
            "study.yaml:5: compare.metrics.1: bf1: unknown option `radios` (did you mean `radius`?); "
            "allowed: radius, background, shape, classes, weights.",
        ),
        (
            "metric: miou\ncompare: {metrics: [bf1, 'bf1(radius=5)']}",
            "study.yaml:2: compare.metrics: `bf1` and `bf1(radius=5)` are the same metric; give it once",
        ),
        ("metric: miou\nsearch:\n  steps: 3\n  steps: 4", "study.yaml:4: search.steps: given twice, first on line 3"),
        (
            "metric: miou\nproxy: {data: {option: !!python/name:os.system x}}",
            "study.yaml:2: proxy.data.option: "
            "the tag `tag:yaml.org,2002:python/name:os.system` is not allowed here; write a plain value",
        ),
        ("metric: miou\n? [a]\n: 3", "study.yaml:2: keys must be plain text"),
        ("metric: miou\nsearch: &name\n  seed: *name", "study.yaml:2: invalid YAML: an alias contains itself"),
        (
            "metric: miou\nsearch: {\n  steps: 3",
            "study.yaml:3: invalid YAML: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'",
        ),
        ("# nothing\n", "study.yaml: is empty; it needs at least a metric, e.g. `metric: miou`"),
        ("\n- metric\n", "study.yaml:2: must be a mapping, e.g. `metric: miou`"),
    ],
)
def test_a_mistake_in_the_file(study: Any, text: str, expected: str) -> None:
    assert message(study, text) == expected


def test_a_metric_that_mixes_axes_keeps_the_text_of_its_error(study: Any) -> None:
    text = message(study, "# a comment\nmetric: class_mean(total(pred) & target)")
    first, *rest = text.splitlines()
    assert first == "study.yaml:2: metric: `&` joins two pixel maps, but"
    assert rest[:2] == [
        "      total(pred) is a per-class total and target is a pixel map.",
        "    Move the sum outside: total(pred & target).",
    ]
    shown, caret = rest[2:]
    assert shown[caret.index("^") :].startswith("total(pred)")


def test_an_unknown_metric_is_named_with_one_alike_or_where_all_are_listed(study: Any) -> None:
    assert message(study, "metric: mioo") == "study.yaml:1: metric: unknown metric `mioo` (did you mean `miou`?)."
    unknown = (
        "study.yaml:1: metric: unknown metric `unheard`; `autosegloss metrics` lists them, and the IoU of a class is"
    )
    unknown += " `iou(unheard)`."
    assert message(study, "metric: unheard") == unknown


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.steps=x", "--set search.steps=x: search.steps: must be an integer, got `x`"),
        ("search.steps=", "--set search.steps=: search.steps: must be an integer, got `null`"),
        ("search.stepps=3", "--set search.stepps=3: search.stepps: unknown key (did you mean `steps`?)"),
        (
            "bar.x=3",
            "--set bar.x=3: bar: unknown key; "
            "allowed: metric, reward, relaxation, proxy, trial, rivals, search, guard, finalists, resources, retrain, "
            "compare, modules",
        ),
        (
            "metric.name.deeper=3",
            "--set metric.name.deeper=3: metric.name.deeper: `metric.name` is `biou`, which has no keys",
        ),
        (
            "metric.radius=-1",
            "--set metric.radius=-1: metric: dilate: radius is -1; it is a whole number of pixels from 0 to 10000, "
            "or a share of the image's diagonal in (0, 1).",
        ),
        ("search={std: 0}", "--set search={std: 0}: search.std: must be greater than 0, got `0`"),
        ("search={std: 1, std: 1}", "--set search={std: 1, std: 1}: search.std: given twice"),
        ("search.steps", "--set search.steps: must read key.sub=value, e.g. `--set search.steps=4`"),
        ("search..steps=3", "--set search..steps=3: must read key.sub=value, e.g. `--set search.steps=4`"),
        (
            "search.steps=[",
            "--set search.steps=[: search.steps: invalid YAML: while parsing a flow node, "
            "expected the node content, but found '<stream end>'",
        ),
    ],
)
def test_a_mistake_in_an_override(study: Any, override: str, expected: str) -> None:
    assert message(study, "metric: {name: biou, radius: 2}\nsearch: {steps: 3}", override) == expected


def test_mistakes_of_settings_are_reported_together(study: Any) -> None:
    text = """\
metric: miou
compare:
  seeds: 1
  metrics:
  - miou
  - 3
  settings:
    a: {proxy: {train: {iterations: 0, steps: 3}}}
    b: {proxy: {data: {option: {deep: [.inf]}}}}
"""
    assert message(study, text, "compare.settings.c.proxy.train=3") == "\n".join(
        [
            "6 errors in the configuration:",
            "study.yaml:3: compare.seeds: must be at least 2, got `1`",
            "study.yaml:6: compare.metrics.1: must be a name, a mapping such as {name: biou, radius: 3}, "
            "or a text expression, got `3`",
            "study.yaml:8: compare.settings.a.proxy.train.iterations: must be at least 1, got `0`",
            "study.yaml:8: compare.settings.a.proxy.train.steps: unknown key; allowed: iterations, "
            "batch_size, optimizer, learning_rate, head_multiplier, auxiliary_weight, precision, augment",
            "study.yaml:9: compare.settings.b.proxy.data.option: must be a finite number, got `.inf`",
            "--set compare.settings.c.proxy.train=3: compare.settings.c.proxy.train: must be a mapping, got `3`",
        ]
    )


def test_all_mistakes_are_reported_in_the_order_of_their_lines(study: Any) -> None:
    text = """\
relaxation: {pieces: 0}
metric: 7
proxy:
  train:
    optimizer: adam
    batch_size: 8
    batch_size: 0
seed: 3
search:
  update_epoch: 3
"""
    assert message(study, text, "finalists.seeds=1", "resources.workers=none", "search") == "\n".join(
        [
            "10 errors in the configuration:",
            "study.yaml:1: relaxation.pieces: must be at least 1, got `0`",
            "study.yaml:2: metric: must be a name, a mapping such as {name: biou, radius: 3}, "
            "or a text expression, got `7`",
            "study.yaml:5: proxy.train.optimizer: must be one of sgd, adamw, got `adam`",
            "study.yaml:7: proxy.train.batch_size: given twice, first on line 6",
            "study.yaml:7: proxy.train.batch_size: must be at least 1, got `0`",
            "study.yaml:8: seed: unknown key (did you mean `search.seed`?)",
            "study.yaml:10: search.update_epoch: unknown key (did you mean `updates`?)",
            "--set finalists.seeds=1: finalists.seeds: must be at least 2, got `1`",
            "--set resources.workers=none: resources.workers: must be an integer, got `none`",
            "--set search: must read key.sub=value, e.g. `--set search.steps=4`",
        ]
    )


def test_files_that_cannot_be_read(study: Any, tmp_path: Path) -> None:
    assert message(load_config, "absent.yaml") == "absent.yaml: can't be read: No such file or directory"
    Path("folder").mkdir()
    assert message(load_config, "folder") == "folder: can't be read: Is a directory"
    Path("binary.yaml").write_bytes(b"metric: \xff")
    assert message(load_config, "binary.yaml") == "binary.yaml: is not UTF-8 text (byte 8)"
    Path("control.yaml").write_bytes(b"metric: \x01")
    assert message(load_config, "control.yaml").startswith("control.yaml: invalid YAML: unacceptable character #x0001")


def test_long_values_are_cut(study: Any) -> None:
    assert message(study, f"metric: miou\nsearch: {{steps: {'x' * 100}}}") == (
        f"study.yaml:2: search.steps: must be an integer, got `{'x' * 57}...`"
    )


# Writing

shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
counts = st.integers(1, 10**9)
# Few letters, and all that means something in YAML or breaks a line somewhere.
texts = st.text("ax10é😀 :#'\"-?\n\r\t\0\x85\u2028\ufeff~{}[],&*!|>%@`\\=<._", max_size=12) | st.sampled_from(
    ["on", "1e-3", "0o7", "null", "1:30", "2024-01-31", "a: b", "# c", ".inf"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def section(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


configs = st.builds(
    lambda chosen, rest: as_config({"metric": chosen, **rest}),
    st.sampled_from(["miou", {"name": "tversky", "alpha": 0.25}, "0.5 * miou + 0.5 * bf1(radius=3)", metric("miou")]),
    section(
        reward=st.sampled_from(["-miou", {"name": "bf1", "radius": 2}]),
        relaxation=section(
            curve=st.sampled_from(["auto", "bezier", "linear", "log", "identity"]),
            pieces=st.integers(1, 64),
            logic=st.sampled_from(["auto", "product", "godel", "lovasz", ["product", "lovasz"]]),
            share_curves=st.booleans(),
            classes=st.sampled_from(["metric", "all", "present"]),
            scale=st.floats(1e-3, 1e3) | st.just("searched"),
            cross_entropy=st.floats(1e-9, 1, exclude_max=True) | st.sampled_from(["searched", "auto"]),
            class_power=st.floats(-2, 2) | st.just("auto"),
        ),
        proxy=section(
            data=st.dictionaries(texts.filter(lambda key: key != "name"), json_values, max_size=3),
            network=section(name=texts),
            start=section(regime=st.sampled_from(["encoder", "scratch", "checkpoint"]), iterations=counts),
            train=section(iterations=counts, optimizer=st.sampled_from(["sgd", "adamw"]), learning_rate=shares),
        ),
        rivals=section(
            losses=st.none() | st.lists(texts, min_size=1, max_size=2),
            steps=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4, unique=True).map(sorted),
            seeds=st.integers(1, 1_000),
        ),
        search=section(
            steps=st.integers(0, 10_000),
            always=st.booleans(),
            seed=st.integers(0, 2**32 - 1),
            std=shares,
            clip=shares,
            learning_rate=shares,
        ),
        resources=section(workers=st.integers(1, 10_000), gpus=st.floats(0, 8)),
        compare=section(
            losses=st.lists(texts, max_size=2),
            steps=st.none() | st.just([0.5, 1.0, 16.0]),
            metrics=st.sampled_from([[], ["ece", {"name": "bf1", "radius": 2}]]),
            settings=st.dictionaries(
                texts,
                section(proxy=section(network=section(name=texts), train=section(iterations=counts))),
                min_size=1,
                max_size=2,
            ),
        ),
    ),
)


@examples(50)
@given(config=configs)
@example(config=as_config({"metric": "miou", "trial": "my_module:train", "reward": "-hd95"}))
@example(config=as_config({"metric": "miou", "proxy": {"data": {"\x85": "\x85", "1e-3": "1e-3", "": ""}}}))
def test_the_dump_loads_back_equal(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert dump_config(again) == dump_config(config)


@examples(50)
@given(config=configs)
def test_every_configuration_satisfies_the_schema(config: StudyConfig) -> None:
    SCHEMA.validate(config.model_dump())


def test_aliases_stand_for_what_they_name(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "metric: &m miou\nguard: {*m : 0.9}\nproxy:\n  train: &t {iterations: 7, batch_size: 3}\n"
        "retrain: {<<: *t, batch_size: 4}\n"
        "compare: {settings: {a: &a {proxy: {train: *t}}, b: *a}}\n"
    )
    plain = {
        "metric": "miou",
        "guard": {"miou": 0.9},
        "proxy": {"train": {"iterations": 7, "batch_size": 3}},
        "retrain": {"iterations": 7, "batch_size": 4},
        "compare": {"settings": {key: {"proxy": {"train": {"iterations": 7, "batch_size": 3}}} for key in "ab"}},
    }
    assert load_config(path) == as_config(plain)
    path.write_text("metric: miou\nproxy:\n  train: &t {iterations: no}\nretrain: *t\n")
    with pytest.raises(ConfigError, match=r"(?s)study.yaml:3: proxy\.train\.iterations: must be.*retrain\.iterations"):
        load_config(path)
    for text, error in (
        ("metric: &a [*a]", ":1: invalid YAML: an alias contains itself"),
        ("metric: miou\nguard: &a {<<: *a}", ":2: invalid YAML: an alias contains itself"),
        ("&a [1]: *a", "keys must be plain text"),
        ("metric: miou\nguard: {<<: [1]}", "guard"),
        ("metric: *a", "found undefined alias"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{b}: &{b} [{','.join(9 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            ": invalid YAML: aliases stand for more than 20000 values",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(error)):
            load_config(path)


def test_what_rivals_can_not_be() -> None:
    for changes, expected in [
        ({"rivals": {"steps": [1, 4, 2]}}, "rivals.steps: must ascend, each step once, got `[1.0, 4.0, 2.0]`"),
        ({"rivals": {"steps": [1, 1]}}, "rivals.steps: must ascend, each step once, got `[1.0, 1.0]`"),
        ({"rivals": {"steps": [0]}}, "rivals.steps.0: must be at least 0.001, got `0`"),
        ({"rivals": {"losses": []}, "search": {"steps": 0}}, "search.steps: must be at least 1 where there are no riv"),
        (
            {"finalists": {"candidates": 3, "test_seeds": 5}},
            "finalists.test_seeds: must be at least 6, as on fewer seeds the best of 2 losses can't be shown to beat",
        ),
        ({"finalists": {"candidates": 2, "test_seeds": 4}}, "finalists.test_seeds: must be at least 5, got `4`"),
    ]:
        assert message(as_config, {"metric": "miou", **changes}).startswith(f"configuration: {expected}")
    assert as_config({"metric": "miou", "search": {"steps": 0}}).search.steps == 0
    for unused in ({"rivals": {"losses": []}}, {"search": {"steps": 0}}):
        assert as_config({"metric": "miou", "finalists": {"test_seeds": 5}, **unused}).finalists.test_seeds == 5


# The schema and the configurations that come with the project


def test_the_schema_is_one_and_refuses_mistakes() -> None:
    SCHEMA.check_schema(json_schema())
    wrong: list[dict[str, Any]] = [
        {},
        {"metric": 3},
        {"metric": {"radius": 3}},
        {"metric": "miou", "steps": 3},
        {"metric": "miou", "search": {"steps": -1}},
        {"metric": "miou", "rivals": {"losses": "lovasz"}},
        {"metric": "miou", "rivals": {"seeds": 0}},
        {"metric": "miou", "relaxation": {"curve": "besier"}},
        {"metric": "miou", "guard": {"gacc": 2}},
        {"metric": "miou", "relaxation": {"cross_entropy": 2}},
        {"metric": "miou", "relaxation": {"cross_entropy": "search"}},
        {"metric": "miou", "relaxation": {"scale": 0}},
        {"metric": "miou", "relaxation": {"logic": ["lovasz"]}},
        {"metric": "miou", "compare": {"settings": {"a": {"search": {}}}}},
        {"metric": "miou", "compare": {"settings": {"a": {"proxy": {"train": {"iterations": 0}}}}}},
        {"metric": "miou", "compare": {"metrics": [3]}},
    ]
    assert SCHEMA.is_valid({"metric": "miou"})
    assert not any(SCHEMA.is_valid(config) for config in wrong)


def test_every_key_explains_itself_in_the_schema() -> None:
    schema = json_schema()
    sections = [schema, *(part for part in schema["$defs"].values() if "properties" in part)]
    for part in sections:
        assert part["description"]
        for name, key in part["properties"].items():
            assert "$ref" in key or key["description"], name


def test_the_schema_file_is_current() -> None:
    current = json.dumps(json_schema(), indent=2) + "\n"
    assert (SEARCH_CONFIGS / "schema.json").read_text(encoding="utf-8") == current, (
        "write it again: autosegloss schema > search_configs/schema.json"
    )


@pytest.mark.parametrize("path", sorted(SEARCH_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_search_config_loads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    config = load_config(path)
    assert text.startswith("# ")
    assert "\n# yaml-language-server: $schema=schema.json\n" in text
    assert "# Takes about " in text
    assert config.finalists.seeds >= 3
    SCHEMA.validate(yaml.safe_load(text))


@pytest.mark.parametrize("path", sorted(SEARCH_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_commands_in_a_search_config_are_for_that_file_and_load(path: Path) -> None:
    text = re.sub(r"\\\n#\s+", "", path.read_text(encoding="utf-8"))
    commands = re.findall(r"^#   (.*)$", text, flags=re.MULTILINE)
    assert all(command.startswith(f"autosegloss search search_configs/{path.name} --set ") for command in commands)
    found = [configuration(command) for command in commands]
    if path.stem in ("voc", "cityscapes"):  # the metrics of the paper
        named = {config.metric if isinstance(config.metric, str) else config.metric["name"] for config in found}
        assert named == set(METRICS) - {"miou"}
    assert len({json.dumps(fingerprint(config)) for config in [load_config(path), *found]}) == len(found) + 1


def test_all_mistakes_of_a_guard_are_told(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("metric: miou\nguard:\n  mio: 0.9\n  gacc: 2\n  dicee: 0.5\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).splitlines() == [
        "3 errors in the configuration:",
        f"{path}:3: guard.mio: unknown metric `mio` (did you mean `miou`?).",
        f"{path}:4: guard.gacc: must be at most 1, got `2`",
        f"{path}:5: guard.dicee: unknown metric `dicee` (did you mean `dice`?).",
    ]


@pytest.mark.parametrize("given", [None, [], 3])
def test_what_is_no_configuration_at_all(given: Any) -> None:
    with pytest.raises(ConfigError, match="config must be a path, a mapping or a StudyConfig, got"):
        as_config(given)


def test_an_override_that_is_nested_too_deeply_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("metric: miou")
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(path, ["search.steps=" + "[" * 3000])

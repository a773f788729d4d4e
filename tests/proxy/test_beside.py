"""Functions that a configuration names: where their modules are found, and what is said where they are not."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autosegloss.errors import InputError
from autosegloss.proxy import imports
from autosegloss.proxy.imports import import_function, use_folder
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config, dump_config, fingerprint, load_config

NETWORK = """
import torch
from kernel_size import SIZE

def build(in_channels, num_classes):
    import late_sibling
    return torch.nn.Conv2d(in_channels, num_classes, SIZE, padding=SIZE // 2)
"""
CONFIG = "metric: miou\nproxy: {data: {name: nuclei}, network: {name: 'beside_net:build'}, start: {regime: scratch}}\n"


@pytest.fixture(autouse=True)
def _forget(tmp_path: Path) -> Iterator[None]:
    """Leave the path and the modules as they were."""
    yield
    use_folder(str(tmp_path / "elsewhere"))
    sys.path.remove(str(tmp_path / "elsewhere"))
    imports._beside = None


def study(folder: Path, size: int) -> Path:
    folder.mkdir()
    (folder / "beside_net.py").write_text(NETWORK)
    (folder / "kernel_size.py").write_text(f"SIZE = {size}\n")
    (folder / "late_sibling.py").write_text("")
    (folder / "study.yaml").write_text(CONFIG)
    return folder / "study.yaml"


def test_modules_beside_the_configuration_are_found_and_two_configurations_do_not_meet(tmp_path: Path) -> None:
    one, other = (load_config(study(tmp_path / name, size)) for name, size in (("one", 1), ("other", 3)))
    for _ in range(2):
        for config, size in ((one, 1), (other, 3)):
            proxy = proxy_of(as_config(config))
            assert proxy.folder == config.folder == str(tmp_path / ("one" if size == 1 else "other"))
            use_folder(str(tmp_path / "one"))
            # As a worker, which has read no configuration.
            loss = proxy.loss(CROSS_ENTROPY)
            weight = next(pickle.loads(pickle.dumps(proxy)).training(loss, 0).network.parameters())
            assert weight.shape[-1] == size
    assert sys.path[-1] == str(tmp_path / "other")
    assert str(tmp_path / "one") not in sys.path


def test_the_record_of_a_run_knows_where_its_modules_are(tmp_path: Path) -> None:
    config = load_config(study(tmp_path / "mine", 3))
    (tmp_path / "out").mkdir()
    record = tmp_path / "out" / "config.yaml"
    record.write_text(dump_config(config))
    use_folder(str(tmp_path / "out"))
    found = as_config(record)
    assert found.folder == found.modules == str(tmp_path / "mine")
    assert import_function("beside_net:build", "network")(3, 2).kernel_size == (3, 3)
    assert fingerprint(found) == fingerprint(config)
    record.write_text(CONFIG + "modules: ../mine\n")
    assert load_config(record).folder == str(tmp_path / "mine")
    record.write_text("metric: miou\n")
    assert "modules: null\n" in dump_config(load_config(record))
    assert load_config(record).recorded_modules(["jml"]) is None
    assert load_config(record).recorded_modules(["mine:f"]) == str(tmp_path / "out")
    for change in (
        "search: {algorithm: tune, searcher: 'mine:f'}",
        "proxy: {data: {name: 'mine:f'}}",
        "compare: {settings: {a: {proxy: {network: {name: 'mine:f'}}}}}",
        "compare: {losses: ['mine:f']}",
    ):
        record.write_text(f"metric: miou\n{change}\n")
        assert load_config(record).recorded_modules() == str(tmp_path / "out")


def test_a_module_beside_the_configuration_hides_none_and_is_hidden_by_none(tmp_path: Path) -> None:
    for name in ("json", "yaml", "time", "math", "pytest", "autosegloss"):  # time has no file
        (tmp_path / f"{name}.py").write_text("def build(): ...\n")
    use_folder(str(tmp_path))
    for name in ("json", "yaml", "time", "math", "pytest", "autosegloss"):  # time has no file
        with pytest.raises(InputError, match=rf"^loss `{name}:build`: .*{name}\.py, beside the .* has the name"):
            import_function(f"{name}:build", "loss")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (
            None,
            "absent_mod:f",
            "no module named `absent_mod` beside the configuration, in {folder}, or on",
        ),
        (
            "import absent_too\n",
            "mod_a:f",
            "can't be imported: {folder}/mod_a.py:1: ModuleNotFoundError: ",
        ),
        (
            "x = 1\ny = 1 / 0\n",
            "mod_b:f",
            "can't be imported: {folder}/mod_b.py:2: ZeroDivisionError: ",
        ),
        ("def f(:\n", "mod_c:f", "can't be imported: {folder}/mod_c.py:1: SyntaxError: "),
        ("raise GeneratorExit\n", "mod_h:f", "can't be imported: {folder}/mod_h.py:1: GeneratorExit."),
        (None, "../mod:f", "loss must be `module:function`, got '../mod:f'."),
        ("raise SystemExit(3)\n", "mod_d:f", "can't be imported: {folder}/mod_d.py:1: SystemExit: 3"),
        ("def build(): ...\n", "mod_e:biuld", "mod_e has no `biuld` (did you mean `build`?)."),
        ("f = 3\n", "mod_g:f", " must be a function, got int."),
        (None, "nothing", "loss must be `module:function`, got 'nothing'."),
    ],
)
def test_what_cannot_be_imported(tmp_path: Path, text: str | None, name: str, expected: str) -> None:
    if text is not None:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(text)
    use_folder(str(tmp_path))
    with pytest.raises(InputError) as caught:
        import_function(name, "loss")
    assert expected.format(folder=tmp_path) in str(caught.value)
    assert name in str(caught.value)

"""Everything comes from the model's own folder: an index, a configuration or a link that leads elsewhere is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from patching import weight_files
from patching.errors import InvalidWeights, ModelNotFound
from patching.lens import LensModel
from tests import tiny

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several shards, as Hugging Face writes it."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    tiny.hugging_face("gpt2").save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "deep" / "model")
    return tmp_path / "deep" / "model"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rename(folder: Path, old: str, new: str) -> None:
    """Let the index name another file for a shard."""
    index = folder / INDEX
    index.write_text(index.read_text().replace(json.dumps(old), json.dumps(new)))


def test_a_model_in_shards_loads_as_the_whole_one_does(folder: Path) -> None:
    tokens = tiny.task().clean
    with torch.no_grad():
        expected = tiny.hugging_face("gpt2")(tokens).logits
    model = LensModel.load(folder, dtype=torch.float64)
    torch.testing.assert_close(model.logits(tokens), expected, rtol=0, atol=1e-6)


def moved_up(folder: Path) -> str:
    """A whole shard in the folder above, so that only the check stands in the way."""
    shard = shards(folder)[0]
    shutil.move(shard, folder.parent / "stolen.safetensors")
    return "../stolen.safetensors"


def absolute(folder: Path) -> str:
    return str((folder / moved_up(folder)).resolve())


def round_about(folder: Path) -> str:
    return f"sub/../{moved_up(folder)}"


def backslashes(folder: Path) -> str:
    return moved_up(folder).replace("/", "\\")


@pytest.mark.parametrize("escape", [moved_up, absolute, round_about, backslashes])
def test_an_index_that_names_a_file_outside_is_refused(folder: Path, escape: Callable[[Path], str]) -> None:
    name = shards(folder)[0].name
    rename(folder, name, escape(folder))
    with pytest.raises(InvalidWeights, match=r"index\.json to name files of its own folder.*leads outside"):
        LensModel.load(folder)


@pytest.mark.parametrize("name", ["C:stolen.safetensors", "//host/share/x.safetensors", "a\0b.safetensors", ".."])
def test_names_that_are_odd_on_any_system_are_refused(folder: Path, name: str) -> None:
    rename(folder, shards(folder)[0].name, name)
    with pytest.raises(InvalidWeights, match=r"leads outside and is refused"):
        LensModel.load(folder)


def test_a_link_that_leads_outside_is_refused(folder: Path) -> None:
    shard = shards(folder)[0]
    target = (folder / moved_up(folder)).resolve()
    shard.symlink_to(target)
    with pytest.raises(InvalidWeights, match=r"is a link to .*stolen\.safetensors.*outside of it"):
        LensModel.load(folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model",
     "chat_template.jinja", INDEX],
)  # fmt: skip
def test_no_other_file_is_read_through_a_link_that_leads_outside(folder: Path, name: str) -> None:
    outside = folder.parent / "secret"
    if (folder / name).exists():
        shutil.move(folder / name, outside)
    else:
        outside.write_text("{}")
    (folder / name).symlink_to(outside)
    with pytest.raises(InvalidWeights, match=rf"expected the files of a model within .*'{name}' is a link to .*secret"):
        LensModel.load(folder)


def test_a_configuration_elsewhere_is_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(weight_files, "read_text", lambda path: opened.append(path) or "{}")
    shutil.move(folder / "config.json", folder.parent / "secret")
    (folder / "config.json").symlink_to("../secret")
    with pytest.raises(InvalidWeights, match="is a link to"):
        weight_files.require_inside(folder)
    assert opened == []


def test_links_to_files_that_no_model_is_made_of_may_lead_anywhere(folder: Path) -> None:
    (folder.parent / "log.out").write_text("epoch 1")
    (folder / "log.out").symlink_to("../log.out")
    weight_files.require_inside(folder)


def test_a_folder_within_that_is_a_link_outside_is_refused(folder: Path) -> None:
    name = shards(folder)[0].name
    moved_up(folder)
    (folder / "sub").symlink_to(folder.parent)
    rename(folder, name, "sub/stolen.safetensors")
    with pytest.raises(InvalidWeights, match=r"is a link to .*outside of it"):
        LensModel.load(folder)


def test_a_link_in_a_circle_is_refused(folder: Path) -> None:
    shard = shards(folder)[0]
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(InvalidWeights):
        LensModel.load(folder)


def test_links_within_the_folder_and_to_it_are_fine(folder: Path, tmp_path: Path) -> None:
    shard = shards(folder)[0]
    (folder / "sub").mkdir()
    shutil.move(shard, folder / "sub" / "whole.safetensors")
    shard.symlink_to(folder / "sub" / "whole.safetensors")
    (tmp_path / "link").symlink_to(folder)
    assert LensModel.load(tmp_path / "link").architecture.n_layers == 2


def test_the_cache_of_the_hub_links_to_its_blobs(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--me--it"
    (home / "snapshots").mkdir(parents=True)
    (home / "blobs").mkdir()
    shutil.move(folder, home / "snapshots" / "abc")
    for number, path in enumerate(sorted((home / "snapshots" / "abc").iterdir())):
        shutil.move(path, home / "blobs" / str(number))
        path.symlink_to(Path("../../blobs") / str(number))
    assert LensModel.load(home / "snapshots" / "abc").architecture.n_layers == 2


def test_an_index_that_names_a_pickle_is_refused(folder: Path) -> None:
    rename(folder, shards(folder)[0].name, "weights.bin")
    with pytest.raises(InvalidWeights, match=r"it names 'weights\.bin'\. Other kinds can run code"):
        LensModel.load(folder)


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    name = shards(folder)[0].name
    shards(folder)[0].unlink()
    with pytest.raises(InvalidWeights, match=rf"expected the shard '{name}'.*Copy the whole folder"):
        LensModel.load(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": ""}}', "[" * 99_999],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(InvalidWeights, match=r"expected (weight_map in )?.*index\.json"):
        LensModel.load(folder)


@pytest.mark.parametrize("name", ["../stolen.safetensors", "/tmp/x.safetensors.index.json"])
def test_a_configuration_that_names_weights_outside_is_refused(folder: Path, name: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"transformers_weights": name}))
    with pytest.raises(InvalidWeights, match=r"config\.json to name files of its own folder.*leads outside"):
        LensModel.load(folder)


@pytest.mark.parametrize(("name", "near"), [("zoo:ioo", "zoo:ioi"), ("zoo:revers", "zoo:reverse")])
def test_the_nearest_names_of_models_are_offered(name: str, near: str) -> None:
    with pytest.raises(ModelNotFound, match=rf"got '{name}'.*Did you mean .*{near}"):
        LensModel.load(name)


@pytest.mark.parametrize("name", ["zoo:../ioi", "zoo:/etc", "zoo:.", "zoo:"])
def test_a_shipped_model_is_a_name_not_a_path(name: str) -> None:
    with pytest.raises(ModelNotFound, match="does not ship"):
        LensModel.load(name)

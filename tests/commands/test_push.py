"""`push`: the true client of the hub against a hub on this machine, opened again by timm; what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest
import torch
import yaml

from references.hub import TOKEN, Hub, serving
from uhkd.__main__ import main
from uhkd.commands import push
from uhkd.models import create, load_run
from uhkd.runs import RunFolder

REPO = "me/my-student"
FEW = {"data": "digits", "images": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder of a network that was not trained: what it says does not matter here."""
    from dataclasses import replace

    network = create("timm/test_resnet", num_classes=10, image_size=32).eval()
    place = tmp_path_factory.mktemp("run")
    card = replace(network.config, classes=tuple(map(str, range(10))))
    RunFolder(place).write_model(card.to_json(), network.module.state_dict())
    return str(place)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as served:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def refusal(run: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(["push", run, "--repo", REPO, "--data", "digits", "--images", "4", *more]) == 2
    said = capsys.readouterr().err
    assert said.count("uhkd push: error: ") == 1 and said.rstrip().count("\n", said.index("error: ")) == 0
    return said.partition("error: ")[2].strip()


def test_timm_opens_what_was_pushed(run: str, hub: Hub, tmp_path: Path):
    said = push(run=run, repo=REPO, forms=["timm", "safetensors"], license="apache-2.0", **FEW)
    assert hub.private == {REPO: True} and said["private"] is True and said["commit"] == "a" * 40
    lying = hub.files[REPO]
    assert set(lying) == {"README.md", "config.json", "card.json", "model.safetensors"}
    assert {name: len(content) for name, content in lying.items()} == said["files"]
    card = lying["README.md"].decode()
    assert card == said["card"] and f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in card
    assert f'uhkd.predict(run=snapshot_download("{REPO}"), images=["some.jpg"])' in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "apache-2.0" and metadata["library_name"] == "timm"
    import timm

    network = load_run(run)
    model = timm.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=str(tmp_path / "timm")).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model((images - mean) / std), network(images).logits)
    assert model.pretrained_cfg["label_names"] == [str(i) for i in range(10)]


def test_a_dry_run_shows_all_and_contacts_nothing(
    run: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)  # needs none
    said = push(run=run, repo=REPO, dry_run=True, **FEW)
    out, err = capsys.readouterr()
    assert hub.asked == [] and hub.files == {} and said["url"] is None
    assert all(name in out for name in ("README.md", "config.json", "model.safetensors", "license: other"))
    assert f"to {hub.address}/{REPO} (private, if it is new)" in err and said["card"] in out
    json.dumps({key: said[key] for key in ("repo", "private", "files", "card")})


def test_a_dry_run_says_so_to_scripts(run: str, hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert main(["push", run, "--repo", REPO, "--data", "digits", "--images", "4", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arguments"]["dry_run"] is True


def test_what_a_hub_refuses_is_one_line(
    run: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    hub.files[REPO], hub.private[REPO] = {}, False
    assert refusal(run, capsys) == (f"{REPO} exists already and is public: add --public, or name another --repo")
    assert hub.files.pop(REPO) == {}
    for status, advice in (
        (403, f"this token may not write to {REPO}: use a token with write access, or another --repo"),
        (404, f"{REPO} does not exist for this token: check its owner"),
    ):
        hub.refuses = status
        said = refusal(run, capsys)
        assert said.startswith(f"{hub.address} refuses {REPO} (") and said.endswith(advice)
    hub.refuses = None
    monkeypatch.setenv("HF_TOKEN", "hf_of_others")
    assert "the hub does not accept this token: log in with `hf auth login`, or set HF_TOKEN" in refusal(run, capsys)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refusal(run, capsys) == (
        "http://127.0.0.1:9 cannot be reached: check the network, and that HF_HUB_OFFLINE is not set"
    )
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert refusal(run, capsys) == "there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN"
    assert hub.asked == []


def test_a_public_repository_is_asked_for(run: str, hub: Hub):
    said: dict[str, Any] = push(run=run, repo=REPO, public=True, **FEW)
    assert hub.private == {REPO: False} and said["private"] is False

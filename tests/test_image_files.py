"""Folders of images as people have them: classes as the model numbers them, and odd files named."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from matta_cli.data import find
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.image_classification import pictures, read
from matta_cli.tasks.image_classification.tables import Known
from matta_cli.tasks.image_classification.task import ImageClassification

SIDE = 28


def recipe(**data: Any) -> Recipe:
    found = Recipe()
    found.update({"data": data}, "test")
    return found


def vit(classes: int, channels: int = 1) -> nn.Module:
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 14, "in_chans": channels}
    return timm.create_model("test_vit", num_classes=classes, **sizes).eval()


def of_transformers(classes: int, **config: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 8, "image_size": SIDE, "patch_size": 14, "num_channels": 1}
    return ViTForImageClassification(ViTConfig(**sizes, num_labels=classes, **config)).eval()


def picture(value: int, mode: str = "L") -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE), value, np.uint8)).convert(mode)


def classes(folder: Path, names: list[str], count: int = 2) -> Path:
    """A folder of images per class; each image's brightness is its class's place in ``names``."""
    for value, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            picture(value * 10 + k).save(folder / name / f"{k}.png")
    return folder


def opened(train: Path, model: nn.Module, **data: Any) -> Any:
    settings = recipe(train=str(train), **data)
    return ImageClassification(settings).data(train, model, training="held_out" not in data)


def places(data: Any) -> dict[int, int]:
    """The label of each class, by its place in the names: what its images' brightness says."""
    batch = data.train.batch(range(len(data.train)))
    values = batch["image"] * data.train.prepare.std + data.train.prepare.mean
    tens = (values[:, 0, 0, 0] * 255).round().int() // 10
    return dict(zip(tens.tolist(), batch["label"].tolist(), strict=True))


def test_classes_are_numbered_as_the_models_library_does(tmp_path: Path) -> None:
    from timm.data import create_dataset
    from torchvision.datasets import ImageFolder

    names = [str(k) for k in range(12)]
    folder = classes(tmp_path / "data", names)
    timms = create_dataset("", str(folder)).reader.class_to_idx
    data = opened(folder, vit(12))
    assert places(data) == {k: timms[name] for k, name in enumerate(names)}
    assert "in the natural order of their names, as timm does: 0 '0', 1 '1', 2 '2'" in data.notes[0]
    others, model = ImageFolder(str(folder)).class_to_idx, of_transformers(12)
    data = opened(folder, model)
    assert places(data) == {k: others[name] for k, name in enumerate(names)}
    assert "in the order of their names: 0 '0', 1 '1', 2 '10', 3 '11'" in data.notes[0]


def test_classes_are_numbered_by_the_models_names(tmp_path: Path) -> None:
    names = ["cat", "dog", "grey_owl"]
    folder = classes(tmp_path / "data", names)
    known = {0: "grey owl", 1: "dog", 2: "cat"}
    hf = of_transformers(3, id2label=known, label2id={name: k for k, name in known.items()})
    timms = vit(3)
    timms.pretrained_cfg = {**timms.pretrained_cfg, "label_names": ["grey owl", "dog", "cat"]}
    for model in (hf, timms):
        data = opened(folder, model)
        assert places(data) == {0: 2, 1: 1, 2: 0}
        assert "by the names that the model has: 0 grey owl, 1 dog, 2 cat" in data.notes[0]
        # a sample to measure on may lack classes
        held_out = classes(tmp_path / f"held{id(model)}", ["dog"])
        measured = opened(folder, model, held_out=str(held_out)).held_out[0]
        assert measured.batch([0, 1])["label"].tolist() == [1, 1]
    foreign = classes(tmp_path / "foreign", ["cat", "dog", "zebra"])
    with pytest.raises(
        MattaError, match=r"'zebra', which is none of the model's .grey owl, dog, c"
    ):
        opened(foreign, hf)
    with pytest.raises(MattaError, match=r"classes cats, dogs, owls, and the model grey owl, do"):
        opened(classes(tmp_path / "plural", ["cats", "dogs", "owls"]), hf)
    data = opened(classes(tmp_path / "other", ["n1", "n2", "n3"]), hf)
    assert "none is one of the model's own, such as 'grey owl'" in data.notes[0]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_numbers_that_are_text_are_numbers_in_every_table(tmp_path: Path, kind: str) -> None:
    rows = [(f"{k}.png", str(k % 12)) for k in range(24)]
    for k, (name, _) in enumerate(rows):
        picture(k % 12 * 10).save(tmp_path / name)
    lines = {
        "csv": "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows),
        "jsonl": "".join(f'{{"file_name": "{n}", "label": "{own}"}}\n' for n, own in rows),
    }
    (tmp_path / f"metadata.{kind}").write_text(lines[kind])
    found = places(opened(tmp_path, of_transformers(12), held_out=str(tmp_path)))
    assert found == {k: k for k in range(12)}


def test_names_that_a_config_numbers_in_two_ways(tmp_path: Path) -> None:
    folder = classes(tmp_path, ["cat", "dog"])
    alike = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    model = of_transformers(2, **alike)
    assert not any("contradict" in note for note in opened(folder, model).notes)
    model.config.label2id = {"dog": 1, "cat": 0}
    data = opened(folder, model, held_out=str(folder))
    assert any("contradict each other: id2label is used" in note for note in data.notes)
    assert places(data) == {0: 1, 1: 0}


def test_another_image_is_other_data(tmp_path: Path) -> None:
    folder, model = classes(tmp_path, [f"{k}" for k in range(10)], count=9), vit(10)
    before = opened(folder, model).train.digest()
    for name in ("0/3.png", "0/7.png"):
        picture(255).save(folder / name)
        after = opened(folder, model).train.digest()
        assert after != before, name
        before = after


def test_names_outlive_a_conversion(tmp_path: Path) -> None:
    from matta_adapters.vit import ViT
    from timm.models import save_for_hf

    from matta_cli.adapter import Source
    from matta_cli.tasks.image_classification.names import names_of

    model = vit(2)
    names = {"label_names": ["dog", "cat"]}
    (tmp_path / "base").mkdir()
    sizes = {"img_size": SIDE, "patch_size": 14, "in_chans": 1}
    save_for_hf(model, str(tmp_path / "base"), model_config=names, model_args=sizes)
    loaded = ViT().load(Source("base", folder=tmp_path / "base"))
    (tmp_path / "ta").mkdir()
    ViT().save(loaded, tmp_path / "ta")
    again = ViT().load(Source("ta", folder=tmp_path / "ta"))
    assert names_of(loaded) == names_of(again) == {0: "dog", 1: "cat"}


def test_only_classes_and_images_are_read(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data", ["a", "b", "c"], 10)
    expected = opened(folder, vit(3))
    for hidden in (".ipynb_checkpoints", "a/.ipynb_checkpoints", "__MACOSX/a", ".git"):
        (folder / hidden).mkdir(parents=True)
        picture(200).save(folder / hidden / "0.png")
    (folder / "b" / "._0.png").write_bytes(b"\0\5\x16\7Mac OS X")
    (folder / "b" / "Thumbs.db").write_bytes(b"\0")
    (folder / "README.md").write_text("# Images")
    found = opened(folder, vit(3))
    assert found.train.digest() == expected.train.digest()


def test_a_part_is_told_from_a_class(tmp_path: Path) -> None:
    vehicles = classes(tmp_path / "vehicles", ["bus", "car", "train"], 10)
    assert len(opened(vehicles, vit(3)).train) == 27
    for part, count in (("Training", 4), ("dev", 3), ("testing", 2), ("extra", 1)):
        classes(tmp_path / "parts" / part, ["a", "b"], count)
    data = opened(tmp_path / "parts", vit(2))
    assert (len(data.train), len(data.held_out[0])) == (8, 6)
    assert "left out, as beside train, validation and test they are no parts: extra." in str(
        data.notes
    )
    assert "6 held-out images also stand in the data to train on, of 6" in data.notes[-2]
    for part in ("val", "test"):
        classes(tmp_path / "held" / part, ["a", "b"])
    with pytest.raises(MattaError, match="has no split 'train'; it has test, validation"):
        opened(tmp_path / "held", vit(2))


def damaged(kind: str) -> bytes:
    stored = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    form = "JPEG" if kind.startswith("jpeg") else "PNG"
    Image.fromarray(noise).save(stored, form)
    content = stored.getvalue()
    if kind == "huge":
        stored = io.BytesIO()
        Image.new("1", (14000, 14000)).save(stored, "PNG")
        return stored.getvalue()
    if kind == "chunk":
        place = content.index(b"IDAT", content.index(b"IDAT") + 4)
        return content[:place] + b"\xb6m\xdb\xb6" + content[place + 4 :]
    if kind == "header":
        return content[:20] + b"\xff" * 8 + content[28:]
    return {"cut": content[: len(content) // 2], "empty": b"", "text": b"no image"}.get(
        kind, content[: len(content) // 2]
    )


@pytest.mark.parametrize("kind", ["cut", "jpeg cut", "chunk", "header", "empty", "text", "huge"])
def test_damaged_images_are_named_before_a_run(tmp_path: Path, kind: str) -> None:
    folder = classes(tmp_path / "data", ["a", "b"], 10)
    for k in (5, 7):
        (folder / "b" / f"{k}.png").write_bytes(damaged(kind))
    sentence = rf"2 of 18 images of .* cannot be read; the first is '{re.escape(str(folder))}/b/5"
    with pytest.raises(MattaError, match=sentence):
        opened(folder, vit(2))


def test_many_images_are_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pictures, "_KEPT", 1)
    folder = classes(tmp_path / "data", ["a", "b"], 10)
    Image.fromarray(np.full((SIDE, SIDE), 300, np.uint16)).save(folder / "a" / "0.png")
    before = opened(folder, vit(2)).notes
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_odd", lambda *_: 1 / 0)
        assert opened(folder, vit(2)).notes == before and "16 bits" in str(before)
    (folder / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(MattaError, match="1 of 18 images"):
        opened(folder, vit(2))


def ramp(top: int, kind: type) -> np.ndarray:
    return np.linspace(0, top, SIDE * SIDE).round().reshape(SIDE, SIDE).astype(kind)


def shown(path: Path, channels: int = 1) -> tuple[np.ndarray, str]:
    """The first image's pixels [C, H, W], 0 to 255, and what is said."""
    data = opened(path, vit(2, channels))
    found = data.train.batch([0])["image"][0] * data.train.prepare.std + data.train.prepare.mean
    return (found * 255).round().numpy(), " ".join(data.notes)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled(tmp_path: Path, name: str) -> None:
    folder = classes(tmp_path / "data", ["a", "b"], 10)
    deep = ramp(65535, np.uint16)
    if name == "a.pgm":
        header = f"P5 {SIDE} {SIDE} 65535\n".encode()
        (folder / "a" / "+0.pgm").write_bytes(header + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save((folder / "a" / "+0").with_suffix(name[1:]))
    pixels, notes = shown(folder)
    np.testing.assert_array_equal(pixels[0], np.round(deep / 257))
    assert "1 of 19 images have 16 bits a channel, and are scaled to 8; the first is" in notes


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_a_range_that_is_not_known_is_refused(tmp_path: Path, kind: type) -> None:
    folder = classes(tmp_path / "data", ["a", "b"], 10)
    Image.fromarray(ramp(1000, kind)).save(folder / "a" / "+0.tif")
    with pytest.raises(MattaError, match=r"0.tif' \(its pixels are .* range is not known: save 8"):
        opened(folder, vit(2))


def test_pictures_are_upright_and_what_is_lost_is_said(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data", ["a", "b"], 10)
    shape = Image.fromarray(ramp(255, np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    shape.transpose(Image.Transpose.ROTATE_90).save(folder / "a" / "+0.png", exif=turned)
    clear = Image.merge("LA", (shape, Image.fromarray(ramp(255, np.uint8))))
    clear.save(folder / "a" / "+1.png")
    Image.merge("LA", (shape, Image.new("L", shape.size, 255))).save(folder / "a" / "+2.png")
    frames = [picture(9), picture(8)]
    frames[0].save(folder / "a" / "+3.gif", save_all=True, append_images=frames[1:])
    pixels, notes = shown(folder)
    np.testing.assert_array_equal(pixels[0], ramp(255, np.uint8))
    for sentence in (
        "1 of 22 images are turned upright, as their EXIF data says; the first is",
        "1 of 22 images have transparent pixels, and transparency is left out",
        "1 of 22 images have several frames, of which the first is used",
    ):
        assert sentence in notes


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "RGB", "LA", "RGBA"])
def test_modes_keep_their_colours(tmp_path: Path, mode: str) -> None:
    folder = classes(tmp_path / "data", ["a", "b"], 10)
    colours = np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[:, : SIDE // 2] = 255 if mode in ("1", "LA") else (255, 0, 0)
    Image.fromarray(colours).convert(mode).save(folder / "a" / "+0.tif")
    pixels, _ = shown(folder, 3)
    np.testing.assert_array_equal(pixels, colours.transpose(2, 0, 1))


def test_labels_of_a_hub_dataset(tmp_path: Path) -> None:
    import datasets

    def rows(labels: list[Any]) -> Any:
        images = [picture(20 * k) for k in range(len(labels))]
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
        if not any(isinstance(label, (str, type(None))) for label in labels):
            features["label"] = datasets.Value("float64" if 0.5 in labels else "int64")
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    settings, known = recipe().data, Known(2, [])
    found = read._from_hub(rows(["10", "9", "9"]), "it", settings, known)
    assert found.classes == ["10", "9"] and found.labels.tolist() == [0, 1, 1]
    assert np.asarray(found.read(2)).max() == 40
    with pytest.raises(MattaError, match="holds float in row 1, but labels are all names"):
        read._from_hub(rows([0.5, 1.0]), "it", settings, known)
    assert read._from_hub(rows(["a", None, None]), "it", settings, known).known.sum() == 1
    assert find.hub_held_out({"test": 1}, "it", "") == 1


@pytest.mark.parametrize("mean", [0.5, "x", [None], [float("inf")]])
def test_statistics_that_are_no_numbers(tmp_path: Path, mean: Any) -> None:
    model: Any = vit(2)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": mean}
    with pytest.raises(MattaError, match="are lists of numbers, a number for each channel"):
        opened(classes(tmp_path, ["a", "b"]), model)


def test_images_that_lie_elsewhere_than_the_others_are_counted(tmp_path: Path) -> None:
    model = vit(2)
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "loose.png", "loose2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(9).save(tmp_path / name)
    notes = opened(tmp_path, model).notes
    assert any("as images of a class lie in its folder: loose.png, loose2.png." in n for n in notes)
    (tmp_path / "labels.csv").write_text("path,label\na/0.png,0\n./b/0.png,1\nb/1.png,1\n")
    notes = opened(tmp_path, model).notes
    assert any("3 images stand in no row: a/1.png, loose.png, loose2.png." in n for n in notes)
    (tmp_path / "labels.csv").write_text("path,label\na/0.png,-1\nb/0.png,0\nb/1.png,1\n")
    with pytest.raises(MattaError, match="the label -1, but labels are 0 to 1"):
        opened(tmp_path, model)


def test_class_folders_are_numbered_as_their_names_say(tmp_path: Path) -> None:
    """By the numbers of a model whose classes have other names, or have none."""
    named = {k: f"kind {k}" for k in range(12)}
    ours, made_up = of_transformers(12, id2label=named), of_transformers(12)
    for model, how in ((ours, "{}"), (made_up, "LABEL_{}")):
        folder = classes(tmp_path / how, [how.format(k) for k in range(12)])
        assert places(data := opened(folder, model)) == {k: k for k in range(12)}, data.notes


def test_an_accent_may_be_a_character_of_its_own(tmp_path: Path) -> None:
    """As macOS writes the names of folders."""
    model = of_transformers(2, id2label={0: "th\u00e9", 1: "caf\u00e9"})
    folder = classes(tmp_path, ["cafe\u0301", "the\u0301"])
    assert places(opened(folder, model)) == {0: 1, 1: 0}

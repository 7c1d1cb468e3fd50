"""Data sets on disk: folders, tars, arrays and hub tables read alike, and every fault named before step 0."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fokker.data as data
from fokker.data.archive import Archive
from fokker.errors import FokkerError


def picture(seed: int, size: tuple[int, int] = (12, 16), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    bands = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    small = rng.integers(0, 256, (4, 4, bands), dtype=np.uint8)
    pixels = np.kron(small, np.ones((-(-size[0] // 4), -(-size[1] // 4), 1), dtype=np.uint8))[: size[0], : size[1]]
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder


def pack(path: Path, files: dict[str, bytes], style: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=style) as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            info.mtime = 0.5 if style == tarfile.PAX_FORMAT else 0
            tar.addfile(info, io.BytesIO(raw))
    return path


def some_files(n: int = 12) -> dict[str, bytes]:
    return {
        f"{'cat' if i % 3 else 'ant'}/{i:03d}.{'png' if i % 2 else 'jpg'}": encode(
            picture(i), "PNG" if i % 2 else "JPEG"
        )
        for i in range(n)
    }


def test_a_set_of_more_tars_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fokker.data.archive._KEPT_OPEN", 2)
    for k in range(5):
        pack(tmp_path / f"{k}.tar", {f"{k}{i}.png": encode(picture(10 * k + i)) for i in range(2)})
    d = data.open(tmp_path)
    d.batch(range(10))
    assert len(d.archive._open) == 2
    wanted = torch.stack([torch.from_numpy(np.array(picture(10 * (i // 2) + i % 2))) for i in range(10)])
    assert torch.equal((d.batch(range(10))["x"] + 1).mul(127.5).round().byte(), wanted.permute(0, 3, 1, 2))


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_and_a_folder_are_the_same_set(tmp_path: Path, style: int) -> None:
    files = some_files()
    shuffled = dict(sorted(files.items(), key=lambda item: hash(item[1][-9:])))
    folder, tar = data.open(put(tmp_path / "d", files)), data.open(pack(tmp_path / "d.tar", shuffled, style))
    assert folder.classes == tar.classes == ("ant", "cat") and folder.shape == (3, 12, 16)
    assert folder.files == tar.files == tuple(sorted(files))
    assert folder.fingerprint == tar.fingerprint
    a, b = folder.all(), tar.all()
    assert torch.equal(a["x"], b["x"]) and torch.equal(a["label"], b["label"])
    png = folder.files.index("cat/001.png")
    expected = torch.from_numpy(np.array(picture(1))).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(a["x"][png], expected, atol=1e-6) and folder.classes[a["label"][png]] == "cat"


def test_long_names_hidden_files_and_cut_tars(tmp_path: Path) -> None:
    files = {f"{'x' * 90}/{'y' * 60}-{i}.png": encode(picture(i)) for i in range(3)}
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert len(data.open(pack(tmp_path / "long.tar", files, style))) == 3
    files = {
        "./a/1.png": encode(picture(1)),
        "./a/._1.png": b"junk",
        "./b/2.png": encode(picture(2)),
        ".DS_Store": b"x",
    }
    assert data.open(pack(tmp_path / "dots.tar", files)).files == ("a/1.png", "b/2.png")
    whole = pack(tmp_path / "whole.tar", some_files()).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512 - 256])
    with pytest.raises(FokkerError, match="cut short"):
        data.open(tmp_path / "cut.tar")
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(FokkerError, match="uncompressed"):
        data.open(tmp_path / "a.tar.gz")


def test_webdataset_side_cars(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for i in range(6):
        files[f"{i:04d}.png"] = encode(picture(i))
        files[f"{i:04d}.cls"] = str(i % 3).encode()
        files[f"{i:04d}.txt"] = f"number {i}".encode()
    d = data.open(pack(tmp_path / "w.tar", files))
    assert d.labels.tolist() == [0, 1, 2, 0, 1, 2] and d.texts["caption"][4] == "number 4" and d.ignored == ()
    files = {f"s{i}.jpg": encode(picture(i), "JPEG") for i in range(4)}
    files |= {f"s{i}.json": json.dumps({"label": "dog" if i else "cat", "caption": f"c{i}"}).encode() for i in range(4)}
    d = data.open(pack(tmp_path / "j.tar", files))
    assert d.classes == ("cat", "dog") and d.labels.tolist() == [0, 1, 1, 1] and d.texts["caption"][2] == "c2"
    shards = put(tmp_path / "shards", {})
    shards.mkdir(exist_ok=True)
    for k in range(2):
        pack(shards / f"{k}.tar", {f"{k}{i}.png": encode(picture(i)) for i in range(3)})
    assert len(data.open(shards)) == 6
    streamed = data.open(shards, window=1)
    assert streamed.shards is not None and streamed.shards.of.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(streamed.shards.of[data.order(6, 0, 0, streamed.shards)].reshape(2, 3).std(1), [0, 0])
    with pytest.raises(FokkerError, match="made of tars"):
        data.open(put(tmp_path / "plain", some_files()), window=1)
    del files["s2.json"]
    with pytest.raises(FokkerError, match="have no label"):
        data.open(pack(tmp_path / "k.tar", files))


def test_splits_of_files(tmp_path: Path) -> None:
    files = {f"{part}/{c}/{i}.png": encode(picture(i)) for part in ("train", "test") for c in "ab" for i in range(3)}
    named = put(tmp_path / "named", files)
    assert data.open(named, split="test").files == tuple(sorted(f for f in files if f.startswith("test")))
    assert data.open(named).classes == ("a", "b") and len(data.open(named)) == 12
    with pytest.raises(FokkerError, match="unknown split 'val'"):
        data.open(named, split="val")
    plain = put(tmp_path / "plain", {f"{i}.png": encode(picture(i, (4, 4))) for i in range(83)})
    train, test = data.open(plain, split="train"), data.open(plain, split="test")
    assert not set(train.files) & set(test.files) and len(train) + len(test) == 83 and 1 <= len(test) <= 20
    # what is held out stays held out when files are added
    put(plain, {f"more{i}.png": encode(picture(i, (4, 4))) for i in range(21)})
    assert set(test.files) <= set(data.open(plain, split="test").files)


def test_orientation_transparency_channels_and_size(tmp_path: Path) -> None:
    upright = picture(1, (12, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.rotate(90, expand=True)
    clear = Image.new("RGBA", (20, 12), (255, 0, 0, 0))
    half = Image.new("RGBA", (20, 12), (255, 0, 0, 128))
    grey = picture(2, (12, 20), "L")
    palette = picture(3, (12, 20)).convert("P")
    deep = Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) * 257)
    files = {
        "a.png": encode(upright),
        "b.png": encode(turned, exif=exif),
        "c.png": encode(clear),
        "d.png": encode(half),
        "e.png": encode(grey),
        "f.png": encode(palette),
        "g.png": encode(deep),
    }
    d = data.open(put(tmp_path, files))
    x = (d.all()["x"] + 1) * 127.5
    assert d.shape == (3, 12, 20)
    assert torch.equal(x[0], x[1])
    assert x[2].eq(255).all()
    assert (x[3] - torch.tensor([255.0, 127, 127])[:, None, None]).abs().max() < 1.01
    assert torch.equal(x[4][0], x[4][2])
    assert (x[6][0] - torch.arange(240).reshape(12, 20)).abs().max() < 0.01
    black = (data.open(tmp_path, background="black").batch([2, 3])["x"] + 1) * 127.5
    assert black[0].eq(0).all() and (black[1, 0] - 128).abs().max() < 1.01
    kept = data.open(tmp_path, channels=4).batch([2])["x"]
    assert kept.shape == (1, 4, 12, 20) and kept[0, 3].eq(-1).all()
    assert data.open(tmp_path, channels=1).shape == (1, 12, 20)
    small = data.open(tmp_path, size=(6, 6))
    centre = np.asarray(upright.resize((10, 6), Image.Resampling.BICUBIC).crop((2, 0, 8, 6)), dtype=np.float32)
    assert ((small.batch([0])["x"][0] + 1) * 127.5 - torch.from_numpy(centre).permute(2, 0, 1)).abs().max() < 1.01
    assert data.open(tmp_path, size=[5, 9]).shape == (3, 5, 9)
    only_grey = put(tmp_path / "grey", {"1.png": encode(grey), "2.png": encode(grey.convert("1"))})
    assert data.open(only_grey).shape == (1, 12, 20)


def test_cache_workers_and_threads_change_nothing(tmp_path: Path) -> None:
    files = {
        f"{i}.png": encode(Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 90, 3), dtype=np.uint8)))
        for i in range(40)
    }
    path = pack(tmp_path / "big.tar", files)
    lazy, cached = data.open(path), data.open(path, cache=True)
    assert lazy.fingerprint == cached.fingerprint
    rows = [7, 3, 39, 0, 3]
    assert torch.equal(lazy.batch(rows)["x"], cached.batch(rows)["x"])
    assert torch.equal(lazy.all()["x"], torch.stack([lazy[i]["x"] for i in range(40)]))
    moved = pickle.loads(pickle.dumps(lazy))
    assert torch.equal(moved.batch(rows)["x"], lazy.batch(rows)["x"])
    again = Archive(path)
    assert [again.read(e) for e in again.entries] == [files[e.name] for e in again.entries]


def planted(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 8
    whole = encode(picture(20, (64, 64)).resize((16, 12)), "JPEG", quality=95)
    files = {f"good/{i}.png": encode(picture(i)) for i in range(6)}
    files |= {
        "good/broken.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 300,
        "good/page.jpg": b"<html>not found</html>",
        "good/empty.png": b"",
        "bad/cut.jpg": whole[: len(whole) * 2 // 3],
        "bad/cut.png": encode(picture(31, (12, 16)))[:-20],
        "bad/clear.png": encode(picture(21, mode="RGBA")),
        "bad/turned.jpg": encode(picture(22, (16, 12)), "JPEG", exif=exif),
        "bad/grey.png": encode(picture(23, mode="L")),
        "bad/odd.png": encode(picture(24, (9, 16))),
        "bad/copy.png": files["good/3.png"],
        "bad/film.gif": encode(picture(25), "GIF", save_all=True, append_images=[picture(26)]),
        "bad/readme.docx": b"x",
    }
    return put(tmp_path / "planted", files)


FOUND = {
    "broken": {"good/broken.png", "good/page.jpg", "good/empty.png"},
    "truncated": {"bad/cut.jpg", "bad/cut.png"},
    "transparent": {"bad/clear.png"},
    "rotated": {"bad/turned.jpg"},
    "grey": {"bad/grey.png"},
    "odd size": {"bad/odd.png"},
    "duplicate": {"good/3.png"},
    "animated": {"bad/film.gif"},
    "unknown extension": {"bad/readme.docx"},
}


@pytest.mark.parametrize("packed", [False, True])
def test_check_finds_every_planted_fault_and_nothing_else(tmp_path: Path, packed: bool) -> None:
    folder = planted(tmp_path)
    path = folder
    if packed:
        path = pack(tmp_path / "p.tar", {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")})
    report = data.check(path)
    assert {f.kind for f in report.findings} == set(FOUND)
    for kind, files in FOUND.items():
        assert set(report.of(kind)) == files, kind
    assert not report.ok and {f.kind for f in report.findings if f.stops} == {"broken", "truncated", "odd size"}
    assert "white" in report.table() and "good/broken.png" in report.table() and "not ok" in report.table()
    assert json.loads(report.json())["ok"] is False and report.classes == {"bad": 8, "good": 9}
    assert not data.check(path, size=(8, 8)).of("nothing") and "odd size" not in {
        f.kind for f in data.check(path, size=(8, 8)).findings if f.stops
    }


def test_check_of_sound_sets(tmp_path: Path) -> None:
    report = data.check(put(tmp_path / "d", some_files()))
    assert report.ok and report.findings == () and report.images == 12 and report.classes == {"ant": 4, "cat": 8}
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 8, 8, 3), dtype=np.uint8))
    assert data.check(tmp_path / "a.npz").of("duplicate") and data.check(tmp_path / "a.npz").ok
    np.savez(tmp_path / "b.npz", x=np.full((3, 1, 8, 8), np.nan))
    assert not data.check(tmp_path / "b.npz").ok
    with pytest.raises(FokkerError, match="holds no images"):
        data.check(put(tmp_path / "e", {"a.doc": b"x"}))


@pytest.mark.parametrize("verify", ["full", "headers"])
def test_a_bad_file_stops_before_step_0_or_is_skipped_and_listed(tmp_path: Path, verify: str) -> None:
    folder = planted(tmp_path)
    with pytest.raises(FokkerError, match=r"6 of 17 images .*bad/cut\.jpg: truncated.*on_bad='skip'") as caught:
        data.open(folder, verify=verify)
    assert "\n" not in str(caught.value)
    d = data.open(folder, on_bad="skip", verify=verify)
    assert {name for name, _ in d.skipped} == FOUND["broken"] | FOUND["truncated"] | FOUND["odd size"]
    assert len(d) == 11 and d.all()["x"].shape == (11, 3, 12, 16) and d.ignored == ("bad/readme.docx",)
    cached = data.open(folder, on_bad="skip", verify=verify, cache=True)
    assert torch.equal(cached.all()["x"], d.all()["x"]) and cached.files == d.files
    assert len(data.open(folder, size=(8, 8), on_bad="skip")) == 12


def test_damage_inside_a_file_is_named_when_it_is_met(tmp_path: Path) -> None:
    raw = bytearray(encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))))
    raw[200:900] = bytes(700)
    folder = put(tmp_path, {"a.png": bytes(raw), "b.png": encode(picture(1, (40, 40)))})
    d = data.open(folder, verify="headers")
    with pytest.raises(FokkerError, match=r"a\.png in .* is broken"):
        d.batch([0])
    with pytest.raises(FokkerError, match=r"a\.png: broken"):
        data.open(folder)


def test_arrays_from_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    pixels, label = rng.integers(0, 256, (20, 6, 8, 3), dtype=np.uint8), rng.integers(0, 3, 20)
    np.savez(tmp_path / "a.npz", images=pixels, labels=label, angle=rng.random((20, 2)))
    save_file({"x": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), "label": label}, tmp_path / "a.safetensors")
    a, b = data.open(tmp_path / "a.npz"), data.open(tmp_path / "a.safetensors")
    assert (
        a.shape == (3, 6, 8)
        and torch.equal(a.x, b.x)
        and torch.equal(a.label, b.label)
        and a.classes == ("0", "1", "2")
    )
    assert a.conditions["angle"].shape == (2,) and a.x.min() >= -1
    assert len(data.open(tmp_path / "a.npz", split="train")) == 18
    np.savez(tmp_path / "f.npz", x=rng.random((5, 1, 4, 4)))
    with pytest.raises(FokkerError, match=r"say range=\(0, 1\)"):
        data.open(tmp_path / "f.npz")
    assert data.open(tmp_path / "f.npz", range=(0, 1)).x.min() < 0
    np.savez(tmp_path / "s.npz", x=rng.normal(size=(5, 7)), y=np.array(["b", "a", "b", "a", "a"]))
    s = data.open(tmp_path / "s.npz")
    assert s.bounds is None and s.classes == ("a", "b") and s.label.tolist() == [1, 0, 1, 0, 0]
    np.savez(tmp_path / "p.npz", x_train=rng.normal(size=(5, 7)), x_test=rng.normal(size=(2, 7)))
    assert len(data.open(tmp_path / "p.npz", split="test")) == 2 and len(data.open(tmp_path / "p.npz")) == 7


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 3))}, "name the array of samples 'x'"),
        ({"x": np.zeros((2, 3)), "label": np.array([-1, 0])}, "class numbers from 0"),
        ({"x": np.zeros((2, 3)), "angle": np.zeros(5)}, "drop it"),
        ({"x": np.array([[1.0, np.inf]])}, "not finite"),
        ({"x": np.array([{}, {}], dtype=object)}, "cannot be read"),
    ],
)
def test_bad_arrays_get_one_sentence(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FokkerError, match=message) as caught:
        data.open(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": (8, 8)}, "did you mean 'size'"),
        ({"size": (8,)}, r"give \(height, width\)"),
        ({"channels": 2}, "give 1"),
        ({"on_bad": "ignore"}, "unknown on_bad"),
        ({"background": "pink"}, "unknown background"),
        ({"background": (1, 2)}, "three numbers"),
        ({"verify": "some"}, "unknown verify"),
        ({"split": "tset"}, "did you mean 'test'"),
    ],
)
def test_bad_options_of_a_folder_get_one_sentence(tmp_path: Path, options: dict, message: str) -> None:
    folder = put(tmp_path, some_files())
    with pytest.raises(FokkerError, match=message) as caught:
        data.open(folder, **options)
    assert "\n" not in str(caught.value)


def test_bad_layouts(tmp_path: Path) -> None:
    with pytest.raises(FokkerError, match="does not exist"):
        data.open(tmp_path / "nowhere")
    mixed = put(
        tmp_path / "m", {"a/1.png": encode(picture(1)), "b/1.png": encode(picture(2)), "2.png": encode(picture(3))}
    )
    with pytest.raises(FokkerError, match=r"class folders and beside them \(2\.png\)"):
        data.open(mixed)
    sizes = put(
        tmp_path / "s", {"1.png": encode(picture(1)), "2.png": encode(picture(1)), "3.png": encode(picture(2, (8, 8)))}
    )
    with pytest.raises(FokkerError, match=r"3\.png: 8x8 where most are 12x16.*give size="):
        data.open(sizes)


def test_hub_tables_saved_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"img": [picture(i) for i in range(4)], "kind": [0, 1, 1, 0]}, features=features)
    table.save_to_disk(str(tmp_path / "t"))
    d = data.open(f"hf:{tmp_path / 't'}")
    assert d.shape == (3, 12, 16) and d.classes == ("a", "b") and d.all()["label"].tolist() == [0, 1, 1, 0]
    expected = torch.from_numpy(np.array(picture(2))).permute(2, 0, 1)
    assert ((d[2]["x"] + 1) * 127.5 - expected).abs().max() < 1e-3
    assert data.open(f"hf:{tmp_path / 't'}", size=(6, 8)).shape == (3, 6, 8)
    with pytest.raises(FokkerError, match="unknown image column"):
        data.open(f"hf:{tmp_path / 't'}", image="imag")

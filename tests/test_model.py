"""A model is one file that says how to rebuild itself, or is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fokker
from fokker import model as models
from fokker import store
from fokker.codec import Codec
from fokker.data.source import Condition
from fokker.denoiser import NetworkDenoiser
from fokker.errors import FokkerError
from fokker.model import Model
from fokker.net import UNet
from fokker.process import EDM, VP, Flow


def model(process: object = None) -> Model:
    net = UNet(channels=3, width=8, mults=(1, 2), blocks=1, heads=2, classes=3, seed=1)
    with torch.no_grad():
        for p in net.parameters():  # so that no output is zero
            p.add_(0.01)
    denoiser = NetworkDenoiser(net, process or VP(beta_max=15.0), "v", 0.5)  # type: ignore[arg-type]
    conditions = {"label": Condition((), True, ("cat", "dog", "fox"))}
    return Model(denoiser, (3, 8, 12), (-1.0, 1.0), conditions, card={"measured": {"frechet": 1.5}})


def call(m: Model) -> Tensor:
    x = torch.randn(2, *m.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return m.denoiser(x, torch.tensor([0.3, 0.8]), **m.condition(2, label=["fox", "cat"]))


@pytest.mark.parametrize("process", [VP(beta_max=15.0), EDM(sigma_max=40.0), Flow()], ids=lambda p: p.name)
def test_a_model_says_how_to_rebuild_itself(tmp_path: Path, process: object) -> None:
    saved = model(process)
    path = saved.save(tmp_path / "model.safetensors")
    loaded = models.load(path)
    assert torch.equal(call(saved), call(loaded))
    assert loaded.denoiser.process.config == saved.denoiser.process.config
    assert (loaded.denoiser.prediction, loaded.denoiser.sigma_data) == ("v", 0.5)
    assert (loaded.shape, loaded.bounds, loaded.labels, loaded.card) == (saved.shape, saved.bounds, saved.labels, saved.card)
    assert not loaded.denoiser.training
    assert fokker.load is models.load


@pytest.mark.parametrize(("stored", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_files_are_half_as_large(tmp_path: Path, stored: str, digits: int) -> None:
    saved = model()
    full = saved.save(tmp_path / "full.safetensors")
    half = saved.save(tmp_path / "half.safetensors", stored)
    numbers = saved.parameters
    assert full.stat().st_size - half.stat().st_size == pytest.approx(2 * numbers, rel=0.02)
    loaded = models.load(half)
    for (name, a), b in zip(saved.denoiser.named_parameters(), loaded.denoiser.parameters(), strict=True):
        assert b.dtype == torch.float32
        # rounding to the nearest of `digits` binary digits; float16 is absolute below its normal range
        assert ((a - b).abs() <= a.abs() * 2.0**-digits + 2.0**-25).all(), name


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    saved = model()
    with torch.no_grad():
        next(saved.denoiser.parameters())[0] = 1e6
    with pytest.raises(FokkerError, match="store the model as bfloat16 or float32"):
        saved.save(tmp_path / "m.safetensors", "float16")
    with pytest.raises(FokkerError, match="unknown number format 'half'"):
        saved.save(tmp_path / "m.safetensors", "half")


@pytest.mark.parametrize("fault", ["header", "missing key", "tensor", "checkpoint", "process"])
def test_files_that_are_not_exactly_a_model_are_refused(tmp_path: Path, fault: str) -> None:
    path = model().save(tmp_path / "m.safetensors")
    tensors, header = store.read(path)
    said = "keys that a 'fokker model 1' does not have or lacks"
    if fault == "header":
        header["scheduler"] = "ddim"
    elif fault == "missing key":
        del header["prediction"]
    elif fault == "checkpoint":
        header["format"] = "fokker checkpoint 1"
    elif fault == "process":
        header["process"]["steepness"] = 1.0
        said = "unknown option of VP 'steepness'"
    else:
        tensors["net.extra"] = torch.zeros(1)
        said = "extra: net.extra"
    store.write(path, tensors, header)
    with pytest.raises(FokkerError) as error:
        models.load(path)
    assert said in str(error.value)


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FokkerError, match="unknown model 'no-such-model'"):
        models.load("no-such-model")
    with pytest.raises(FokkerError, match="there is no file"):
        models.load(tmp_path / "none.safetensors")
    every = models.names()
    assert all(models.locate(name).is_file() for name in every)


def test_decode_gives_bytes_in_the_data_s_range() -> None:
    m = model()
    x = torch.linspace(-1.2, 1.2, 3 * 8 * 12).reshape(1, 3, 8, 12)
    out = m.decode(x)
    assert out.shape == (1, 8, 12, 3) and out.dtype.name == "uint8"
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round()
    assert torch.equal(torch.from_numpy(out).permute(0, 3, 1, 2).float(), expected)
    m.shape = (64,)
    with pytest.raises(FokkerError, match="are not images"):
        m.decode(x)


class Halving(Codec):
    """A codec of a test: the denoiser's space is the data divided by two."""

    def encode(self, data: Tensor) -> Tensor:
        return data / 2

    def decode(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_codec_is_stored_and_found_again(tmp_path: Path) -> None:
    saved = model()
    saved.codec = Halving()
    loaded = models.load(saved.save(tmp_path / "m.safetensors"))
    assert isinstance(loaded.codec, Halving)
    x = torch.full((1, 3, 8, 12), 0.25)
    assert (loaded.decode(x) == round(0.75 * 255 + 1e-9)).all()

"""Each embedded data set is what it says: its factors, physics, statistics and splits."""

import itertools
import math

import numpy as np
import pytest
import torch

import fokker.data as data
from fokker.data import molecules, shapes
from fokker.data.draws import Draw
from fokker.data.toys import digits, gmm, lorenz96, pde, photos, smiles, sprites, text, volume
from fokker.errors import FokkerError


def test_digits_are_split_once_and_by_class() -> None:
    whole, train, test = (digits.build(split=s) for s in ("all", "train", "test"))
    assert (len(whole), len(train), len(test)) == (1797, 1400, 397)
    share = torch.bincount(train.label) / torch.bincount(whole.label)
    # each class differs from 1400/1797 by less than one digit of about 180
    assert (share - 1400 / 1797).abs().max() < 1 / torch.bincount(whole.label).min()
    pixels = {r.numpy().tobytes() for r in train.x}
    assert not any(r.numpy().tobytes() in pixels for r in test.x)
    assert torch.equal(digits.build(seed=5).x, train.x)
    with pytest.raises(FokkerError, match="give n from 1 to 397"):
        digits.build(n=398, split="test")


def test_photo_splits_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (3, 200, 300))
    monkeypatch.setattr(photos, "photograph", lambda name, zoom: rows)
    train, test = (set(photos.build(300, split=s).tensors["x"].unique().tolist()) for s in ("train", "test"))
    assert not train & test and len(train | test) == 200
    with pytest.raises(FokkerError, match="give a smaller zoom or size"):
        photos.build(4, split="test", size=(64, 64))


class TestSprites:
    def test_masks_are_where_the_factors_say(self) -> None:
        d = sprites.build(200, objects=2, masks=True, size=(32, 48))
        masks, factors = d.tensors["masks"].double(), d.tensors["factors"].double()
        x, y, pixel = shapes.grid((32, 48))
        weight = masks.flatten(2).sum(-1)
        # triangles are drawn about their centre too, stars and crosses are symmetric: the centroid is the place
        centre_x = (masks * torch.from_numpy(x)).flatten(2).sum(-1) / weight
        centre_y = (masks * torch.from_numpy(y)).flatten(2).sum(-1) / weight
        assert (centre_x - factors[:, :, 1]).abs().max() < pixel / 2
        assert (centre_y - factors[:, :, 2]).abs().max() < pixel / 2
        assert masks.sum(1).max() <= 1 + 1e-6

    def test_one_seed_draws_the_same_at_every_size(self) -> None:
        large, small = sprites.build(100, size=(64, 64)).x, sprites.build(100, size=(16, 16)).x
        reduced = torch.nn.functional.avg_pool2d(large, 4)
        # edges are averaged to first order; the shortfall is at corners only
        psnr = 10 * math.log10(4.0 / float((reduced - small).square().mean()))
        assert psnr > 32.0

    def test_captions_tokens_and_colours_agree(self) -> None:
        d = sprites.build(50, objects=2)
        words = sprites.tokenizer(2)
        assert words.decode(d.tensors["tokens"]) == list(d.texts["caption"])
        for caption, colour, shape in zip(d.texts["caption"], d.tensors["colour"], d.tensors["shape"]):
            for part, c, s in zip(caption.split(" and "), colour, shape):
                assert part.split()[1:3] == [list(shapes.COLOURS)[c], shapes.NAMES[s]]
        with pytest.raises(FokkerError, match="unknown word 'redd'; did you mean 'red'"):
            words.encode(["small redd circle"])

    def test_rotation_turns_the_picture(self) -> None:
        pose = np.array([[0.5, 0.1, -0.1, 0.3], [0.5, 0.1, 0.1, 0.3 + np.pi / 2]])
        for shape in range(len(shapes.NAMES)):
            first, second = shapes.coverage(np.array([shape, shape]), pose, (33, 33))
            assert np.abs(np.rot90(first, -1) - second).max() < 1e-9, shapes.NAMES[shape]

    def test_opacity_multiplies_the_shape(self) -> None:
        solid, glass = sprites.build(20, masks=True), sprites.build(20, alpha=True)
        opacity = (glass.x[:, 3] + 1) / 2
        expected = solid.tensors["masks"][:, 0] * glass.tensors["opacity"][..., None]
        assert (opacity - expected).abs().max() <= 0.5 / 255 + 1e-6
        assert glass.x[:, :3].flatten(2).std(-1).max() == 0

    def test_depth_is_nearer_where_a_sprite_is(self) -> None:
        d = sprites.build(20, objects=2, masks=True, depth=True)
        covered = d.tensors["masks"].amax(1) == 1
        assert (d.tensors["depth"][:, 0][covered] < 0.76).all() and d.tensors["depth"].max() == 1

    def test_bad_options(self) -> None:
        with pytest.raises(FokkerError, match="did you mean 'circle'"):
            sprites.build(2, shapes=("circel",))
        with pytest.raises(FokkerError, match="1 to 4"):
            sprites.build(2, objects=9)


@pytest.mark.parametrize("kind", ["sprites", "digits"])
def test_moving_things_are_where_their_track_says(kind: str) -> None:
    d = data.toy("video", n=40, kind=kind, frames=12, speed=(0.1, 0.2), size=(32, 40))
    ink = (d.x + 1).sum(2).double()
    x, y, pixel = shapes.grid((32, 40))
    centre = torch.stack([(ink * torch.from_numpy(a)).sum((2, 3)) / ink.sum((2, 3)) for a in (x, y)], dim=-1)
    offset = centre - d.tensors["track"]
    # a digit's ink is not centred on its square, but the offset stays while it moves
    drift = offset - offset.mean(1, keepdim=True) if kind == "digits" else offset
    assert drift.abs().max() < pixel / 2
    step = d.tensors["track"].diff(dim=1).norm(dim=-1)
    speed = d.tensors["velocity"].norm(dim=-1)
    assert (step <= speed[:, None] + 1e-6).all() and (step.amax(1) > 0.999 * speed).all()
    assert torch.equal(
        d.x.transpose(1, 2),
        data.toy("video", n=40, kind=kind, frames=12, speed=(0.1, 0.2), size=(32, 40), layout="cthw").x,
    )


class TestEquations:
    def start(self, points: int = 64) -> np.ndarray:
        draw = Draw("test", 0, np.arange(3))
        raw = pde._start(draw, points, 6)
        return pde.trajectories("ks", raw, 2, 0.5, 32.0, warmup=20.0)[:, 1]

    def test_the_integrator_is_of_fourth_order(self) -> None:
        start = self.start()
        errors = []
        exact = pde.trajectories("ks", start, 3, 0.5, 32.0, substep=1 / 1024)
        for substep in (1 / 32, 1 / 64):
            errors.append(np.abs(pde.trajectories("ks", start, 3, 0.5, 32.0, substep=substep) - exact).max())
        # stiff order reduction costs a part of the fourth order, never a whole one
        assert math.log2(errors[0] / errors[1]) > 3.2
        default = pde.trajectories("ks", start, 3, 0.5, 32.0)
        assert np.abs(default - exact).max() < 1e-4 * np.abs(exact).max()

    def test_the_field_satisfies_the_equation(self) -> None:
        h = 1e-3
        u = pde.trajectories("ks", self.start(128), 3, h, 32.0, substep=h)
        k = 2 * np.pi / 32.0 * np.arange(65)
        v = np.fft.rfft(u[:, 1])
        right = np.fft.irfft((k**2 - k**4) * v) - u[:, 1] * np.fft.irfft(1j * k * v)
        left = (u[:, 2] - u[:, 0]) / (2 * h)
        # the central difference errs by h^2 / 6 times a third derivative of order one, the cut spectrum by its tail
        assert np.abs(left - right).max() < 1e-5 * np.abs(right).max()

    def test_both_equations_keep_their_mean(self) -> None:
        for kind, length in (("ks", 32.0), ("burgers", 1.0)):
            draw = Draw("test", 0, np.arange(3))
            u = pde.trajectories(kind, 0.3 + pde._start(draw, 256, 3), 4, 0.1, length)
            assert np.abs(u.mean(-1) - 0.3).max() < 1e-12

    def test_chaos_goes_on(self) -> None:
        change = pde.build(24, frames=60, interval=2.0).x[:, 0].diff(dim=1).abs().mean(-1)
        assert change[:, -5:].mean(1).min() > 0.1

    def test_burgers_loses_energy(self) -> None:
        energy = pde.build(6, kind="burgers", frames=6).x.square().mean(-1)
        assert (energy.diff(dim=-1) < 0).all()

    def test_pairs_are_successive_frames(self) -> None:
        whole, pairs = pde.build(3, frames=4, warmup=1.0).x, pde.build(3, frames=4, warmup=1.0, pairs=True)
        assert torch.equal(pairs.tensors["previous"].reshape(3, 3, 64), whole[:, 0, :-1])
        assert torch.equal(pairs.x.reshape(3, 3, 64), whole[:, 0, 1:])
        assert pairs.label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]

    def test_lorenz_converges_and_its_truth_is_one_of_the_members(self) -> None:
        start = 8 + Draw("test", 0, np.arange(20)).normal("x", 16)
        exact = lorenz96.integrate(start, 0.5, step=0.00125)
        coarse, fine = (np.abs(lorenz96.integrate(start, 0.5, step=h) - exact).max() for h in (0.02, 0.01))
        assert 12 < coarse / fine < 20
        d = lorenz96.build(400, members=3, lead=0.5)
        runs = torch.cat([d.x, d.tensors["members"]], 1)
        pairs = {p: (runs[:, p[0]] - runs[:, p[1]]).square().mean(1) for p in itertools.combinations(range(4), 2)}
        truth, others = ([v for p, v in pairs.items() if (0 in p) == with_truth] for with_truth in (True, False))
        gap = torch.stack(truth).mean(0) - torch.stack(others).mean(0)
        # exchangeable: no difference in the mean over 400 starts, at four standard errors
        assert gap.mean().abs() < 4 * gap.std() / 20


class TestVolumes:
    def test_an_ellipsoid_has_its_volume(self) -> None:
        d = volume.build(10, kind="ellipsoid", size=(32, 32, 32))
        axes = d.tensors["factors"][:, :3]
        share = ((d.x + 1) / 2).sum((1, 2, 3, 4)) / 16**3
        assert (share / (4 / 3 * math.pi * axes.prod(1)) - 1).abs().max() < 0.02

    def test_its_rotation_is_one_and_points_along_its_axes(self) -> None:
        d = volume.build(10, kind="ellipsoid")
        factors = d.tensors["factors"].double()
        rotation = factors[:, 6:].reshape(-1, 3, 3)
        assert (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-6
        inside = ((d.x + 1) / 2)[:, 0].double()
        grid = torch.stack(torch.meshgrid(*[(torch.arange(32) - 15.5) / 16] * 3, indexing="ij"), -1).double()
        local = (grid[None] - factors[:, None, None, None, 3:6]) @ rotation[:, None, None]
        moment = (inside[..., None] * local.square()).sum((1, 2, 3)) / inside.sum((1, 2, 3))[:, None]
        # the second moment of a solid ellipsoid along an axis is a^2 / 5
        assert (moment / (factors[:, :3].square() / 5) - 1).abs().max() < 0.05

    def test_a_phantom_darkens_with_its_ventricles(self) -> None:
        d = volume.build(40, lesions=0.0)
        dark = (d.x < -0.6) & (d.x > -0.95)
        assert np.corrcoef(dark.sum((1, 2, 3, 4)), d.tensors["factors"][:, 0] ** 3)[0, 1] > 0.7
        assert d.label.max() == 0

    def test_lesions_are_masked(self) -> None:
        d = volume.build(40, lesions=0.5, masks=True)
        assert torch.equal(d.label > 0, d.tensors["mask"].flatten(1).sum(1) > 0)
        assert 0.2 < d.label.double().mean() < 0.8


def test_hyperspectral_cubes_have_their_rank() -> None:
    d = data.toy("hyperspectral", n=4, materials=3)
    abundance = d.tensors["abundances"]
    assert (abundance.sum(1) - 1).abs().max() < 1e-6 and abundance.min() >= 0
    values = torch.linalg.svdvals(d.x.flatten(2).double())
    assert (values[:, 3] < 1e-6 * values[:, 0]).all() and (values[:, 2] > 1e-4 * values[:, 0]).all()
    mixed = 2 * torch.einsum("nrb,nrhw->nbhw", d.tensors["endmembers"], abundance) - 1
    assert (mixed - d.x).abs().max() < 1e-6


class TestSpeech:
    def test_the_noise_has_the_stated_level(self) -> None:
        for noise in ("white", "pink"):
            d = data.toy("speech", n=20, noise=noise)
            hiss = d.tensors["noisy"] - d.x
            snr = 10 * torch.log10(d.x.square().mean(-1) / hiss.square().mean(-1))
            # 4096 squares: a relative deviation of sqrt(2/4096) = 2 per cent, 0.1 dB, for white noise
            assert (snr - d.tensors["snr"]).abs().max() < (0.5 if noise == "white" else 0.01)

    def test_the_voice_has_its_pitch_and_no_high_harmonic(self) -> None:
        d = data.toy("speech", n=12, vowels=1)
        power = torch.fft.rfft(d.x[:, 0].double() * torch.hann_window(4096), dim=-1).abs().square()
        frequency = torch.arange(2049) * 8000 / 4096
        assert (power[:, frequency > 3900].sum(1) < 1e-4 * power.sum(1)).all()
        for spectrum, pitch in zip(power, d.tensors["pitch"][:, 0]):
            # the phase swings by at most 15 per cent of the pitch over the utterance
            near = (frequency > 0.8 * pitch) & (frequency < 1.15 * pitch)
            between = (frequency > 0.25 * pitch) & (frequency < 0.75 * pitch)
            assert spectrum[near].max() > 20 * spectrum[between].max()


class TestText:
    def test_tokens_spell_the_texts(self) -> None:
        d = text.build(20)
        assert ["".join(d.vocabulary[t] for t in row) for row in d.x] == list(d.texts["text"])
        assert len(text.corpus()) > 100_000 and "simple is better than complex." in text.corpus()

    def test_windows_stay_in_their_part(self) -> None:
        tokens, names = text.stream()
        cut = round(0.9 * len(tokens))
        whole = "".join(names[t] for t in tokens)
        assert all(w in whole[:cut] for w in text.build(50).texts["text"])
        assert all(w in whole[cut:] for w in text.build(50, split="test").texts["text"])

    def test_the_chain_is_the_text_s_own(self) -> None:
        first, transition = text.chain(4)
        assert abs(first.sum() - 1) < 1e-12 and np.abs(transition.sum(1) - 1).max() < 1e-12
        # the stationary law of the fitted chain is the share of each symbol, up to the prior count and one boundary
        assert np.abs(first @ transition - first).max() < 1e-4
        assert transition[0, 0] < 1e-3

    def test_common_words_come_first(self) -> None:
        d = text.build(10, level="word", vocabulary=100)
        assert len(d.vocabulary) == 100 and "the" in d.vocabulary[1:4]


class TestMolecules:
    def test_known_and_grown_molecules_are_valid(self) -> None:
        d = smiles.build(300)
        assert molecules.validity(d.texts["smiles"]) == molecules.validity(d.texts["twin"]) == 1.0
        assert smiles.decode(d.x) == list(d.texts["smiles"]) and smiles.decode(d.tensors["twin"]) == list(
            d.texts["twin"]
        )

    def test_twins_are_one_molecule_and_no_molecule_comes_twice(self) -> None:
        d = smiles.build(300, split="all")
        keys = [molecules.read(s).key() for s in d.texts["smiles"]]
        assert keys == [molecules.read(s).key() for s in d.texts["twin"]] and len(set(keys)) == len(keys)
        assert sum(a != b for a, b in zip(d.texts["smiles"], d.texts["twin"])) > 200
        test = {molecules.read(s).key() for s in smiles.build(60, split="test").texts["smiles"]}
        train = {molecules.read(s).key() for s in smiles.build(200, split="train").texts["smiles"]}
        assert not train & test

    @pytest.mark.parametrize("name", smiles.KNOWN)
    def test_any_spelling_of_a_known_molecule_is_read_back(self, name: str) -> None:
        molecule = molecules.read(smiles.KNOWN[name])
        rng = np.random.default_rng(0)
        for _ in range(3):
            spelt = smiles.respell(molecule, rng)
            assert molecules.valid(spelt) and molecules.read(spelt).key() == molecule.key(), spelt

    @pytest.mark.parametrize(
        "wrong",
        ["CC(C)(C)(C)C", "c1cccc1", "C1CC", "C((C))", "C=F", "C)C", "(C)C", "C==C", "C1C1", "c1ccccc", "X", "", "Cc"],
    )
    def test_wrong_strings_are_refused(self, wrong: str) -> None:
        assert not molecules.valid(wrong)

    def test_rings_that_meet_without_a_symbol_meet_by_a_single_bond(self) -> None:
        assert molecules.read("c1ccccc1c1ccccc1").key() == molecules.read(smiles.KNOWN["biphenyl"]).key()
        assert not molecules.valid("c1cccc([nH]c2ccccn2)c1")

    def test_labels_count_rings_and_nitrogen(self) -> None:
        d = smiles.build(200)
        for string, label in zip(d.texts["smiles"], d.label.tolist()):
            ring, nitrogen = any(c.isdigit() for c in string), "n" in string.lower()
            assert label == 2 * ring + nitrogen, string


@pytest.mark.parametrize("kind", gmm.KINDS)
def test_gmm_samples_come_from_their_law(kind: str) -> None:
    d, law = gmm.build(4000, kind=kind), gmm.law(kind)
    gap = d.x.double().mean(0) - law.mean()
    # unit variance a coordinate: five standard errors
    assert gap.abs().max() < 5 * 1.5 / math.sqrt(4000)
    assert abs(float(d.x.square().mean()) - 1.0) < 0.1
    if kind == "ring":
        angle = d.label.double() * (2 * math.pi / 8)
        mode = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
        assert abs(float((d.x - mode).std()) - 0.1) < 5 * 0.1 / math.sqrt(2 * 8000)

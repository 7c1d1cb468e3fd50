"""Tokens: the noising against matrix products, samplers against the exact joint of a chain, draws that keep rare tokens."""

import itertools
import math

import pytest
import torch

import fokker as fk
from fokker.discrete import (
    Ancestral,
    FirstHitting,
    MarkovChain,
    Remembered,
    TokenDenoiser,
    TokenProcess,
    Truncated,
    categorical,
    token_entropy,
    truncated_gumbel_law,
)
from fokker.discrete.draw import gumbel_max
from fokker.discrete.energy import EnergyCorrected, Learned, NoiseContrast, Residual
from fokker.discrete.model import TokenModel, load
from fokker.discrete.net import TokenTransformer
from fokker.discrete.objective import TimeFree, TokenBound, bits_per_token
from fokker.errors import FokkerError
from fokker.keyed import uniform
from fokker.measure import TotalVariation
from fokker.process import derivative
from fokker.train.objective import Key

F64 = torch.float64
K, LENGTH = 3, 4
LAW = MarkovChain(
    torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.1, 0.8, 0.1], [0.05, 0.15, 0.8], [0.7, 0.2, 0.1]]), LENGTH
)
PROCESSES = [
    TokenProcess(K),
    TokenProcess(K, replace=0.1),
    TokenProcess(K, replace=0.5, schedule="cosine"),
    TokenProcess(K, replace=1.0),
    TokenProcess(K, schedule="polynomial", power=2.0),
]
several = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.schedule}-{p.replace}")


def cumulative(process: TokenProcess, t: float) -> torch.Tensor:
    """Q[j, k] = q(x_t = j | x_0 = k) with the mask as last state of both."""
    kept, replaced, masked = (float(c) for c in process.shares(t))
    Q = torch.zeros(K + 1, K + 1, dtype=F64)
    Q[:K, :K] = kept * torch.eye(K, dtype=F64) + replaced / K
    Q[K, :K], Q[K, K] = masked, 1.0
    return Q


def step(process: TokenProcess, s: float, t: float) -> torch.Tensor:
    kept, replaced, masked = (float(c) for c in process.between(s, t))
    Q = torch.zeros(K + 1, K + 1, dtype=F64)
    Q[:K, :K] = kept * torch.eye(K, dtype=F64) + replaced / K
    Q[K, :K], Q[K, K] = masked, 1.0
    return Q


# --- the process -----------------------------------------------------------------------------------------------------


@several
def test_transitions_compose_and_are_probabilities(process):
    for s, t in ((0.1, 0.4), (0.4, 0.9), (0.2, 1.0)):
        Q = step(process, s, t)
        assert torch.allclose(Q.sum(0), torch.ones(K + 1, dtype=F64), atol=1e-14) and bool((Q >= 0).all())
        assert torch.allclose(Q @ cumulative(process, s), cumulative(process, t), atol=1e-14)


@several
def test_reverse_is_bayes_rule(process):
    s, t = 0.35, 0.8
    Qs, Qt, Qst = cumulative(process, s), cumulative(process, t), step(process, s, t)
    for state, clean in itertools.product(range(K + 1), range(K)):
        if Qt[state, clean] == 0:
            continue
        truth = Qst[state] * Qs[:, clean] / Qt[state, clean]
        belief = torch.eye(K, dtype=F64)[clean]
        found = process.reverse(torch.tensor([state]), belief[None], t, s)[0]
        assert torch.allclose(found, truth, atol=1e-12)
    # a mixture of beliefs is the mixture of the posteriors
    belief = torch.tensor([[0.2, 0.5, 0.3]], dtype=F64)
    state = process.mask if process.replace < 1 else 1
    parts = torch.stack([Qst[state] * Qs[:, k] / Qt[state, k].clamp_min(1e-300) for k in range(K)])
    if process.replace or state == process.mask:
        assert torch.allclose(process.reverse(torch.tensor([state]), belief, t, s)[0], belief[0] @ parts, atol=1e-12)


@several
def test_noising_has_its_marginals(process):
    n, t = 40_000, 0.6
    x = torch.ones((n, 1), dtype=torch.int64)
    x_t = process.add_noise(x, process.sample_noise((n, 1), 3), t)
    p = cumulative(process, t)[:, 1]
    found = torch.bincount(x_t[:, 0], minlength=K + 1) / n
    assert bool(((found - p).abs() <= 5 * torch.sqrt(p * (1 - p) / n)).all())
    # one time a sample
    times = torch.linspace(0.05, 1, n, dtype=F64)
    masks = (process.add_noise(x, process.sample_noise((n, 1), 4), times) == process.mask).double().mean()
    assert abs(float(masks - process.shares(times)[2].mean())) < 5 / (2 * math.sqrt(n))


@several
def test_rates_are_the_slope_of_the_reverse_transition(process):
    """p(x_s | x_t) = delta + (t - s) rate + O((t - s)^2) for states other than x_t."""
    t, h = 0.6, 1e-6
    belief = torch.tensor([[0.2, 0.5, 0.3]], dtype=F64)
    for state in range(K + 1):
        if process.replace == 1 and state == K:
            continue
        own = belief if process.replace or state == K else torch.eye(K, dtype=F64)[state][None]
        x = torch.tensor([state])
        move = process.reverse(x, own, t, t - h)[0] / h
        move[state] = 0.0
        assert torch.allclose(process.rates(x, own, t)[0], move, rtol=1e-4, atol=1e-5)


@several
def test_time_at_inverts_sigma(process):
    t = torch.linspace(0.01, 1, 9, dtype=F64)
    assert torch.allclose(process.time_at(process.sigma(t)), t, atol=1e-7)
    assert bool((derivative(process.alpha, t[:-1]) < 0).all())


# --- the law ---------------------------------------------------------------------------------------------------------


@several
def test_chain_marginals_are_those_of_the_enumerated_posterior(process):
    joint, t = LAW.joint(), 0.6
    assert abs(float(joint.sum()) - 1) < 1e-12
    x_t = process.add_noise(LAW.sample(5, 1), process.sample_noise((5, LENGTH), 2), t)
    found = LAW.denoiser(process)(x_t, t)
    Q = cumulative(process, t)
    for row, belief in zip(x_t, found, strict=True):
        posterior = joint * torch.einsum("a,b,c,d->abcd", *(Q[state, :K] for state in row))
        posterior = posterior / posterior.sum()
        for i in range(LENGTH):
            axes = [a for a in range(LENGTH) if a != i]
            assert torch.allclose(belief[i], posterior.sum(axes), atol=1e-12)


def test_chain_joint_posterior_draws_follow_the_posterior():
    process, t, n = PROCESSES[1], 0.7, 20_000
    x_t = torch.tensor([[K, 1, K, K]]).expand(n, -1)
    denoiser = LAW.denoiser(process)
    drawn = denoiser.draw_x0(x_t, t, uniform((n, LENGTH), 5, bits=52))
    Q = cumulative(process, t)
    posterior = LAW.joint() * torch.einsum("a,b,c,d->abcd", *(Q[state, :K] for state in x_t[0]))
    value = TotalVariation()(drawn, posterior / posterior.sum())
    assert value.value < 1.35 * value.floor


def test_chain_samples_follow_their_law():
    value = TotalVariation()(LAW.sample(20_000, 3), LAW.joint())
    assert value.value < 1.35 * value.floor
    assert torch.equal(LAW.sample(5, 3), LAW.sample(9, 3)[:5])


# --- the samplers ----------------------------------------------------------------------------------------------------

N = 20_000


def drawn(process: TokenProcess, plan: fk.Plan, denoiser=None, n: int = N, seed: int = 0) -> fk.Trace:
    start = process.start(process.sample_noise((n, LENGTH), seed))
    return fk.run(denoiser or LAW.denoiser(process), start, plan, seed=seed)


def excess(x: torch.Tensor) -> float:
    value = TotalVariation()(x, LAW.joint())
    return value.value / value.floor


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_first_hitting_is_exact_in_as_many_calls_as_tokens(schedule):
    process = TokenProcess(K, schedule=schedule)
    trace = drawn(process, FirstHitting().plan(process, LENGTH))
    assert trace.nfe == LENGTH and trace.plan.stochastic
    assert excess(trace.x0) < 1.35
    # two at a time is another law
    assert excess(drawn(process, FirstHitting(2).plan(process, LENGTH)).x0) > 3


def test_first_hitting_times_are_those_of_independent_tokens():
    """The events of L independent unmaskings: the k-th call is at the k-th largest of L uniforms under a linear schedule."""
    process, seen = TokenProcess(K), []

    def look(x, t):
        seen.append(t)
        return LAW.marginals(process.evidence(x, t))

    drawn(process, FirstHitting().plan(process, LENGTH), fk.as_denoiser(look, process))
    for k, t in enumerate(seen):
        # Beta(L - k, k + 1)
        a, b = LENGTH - k, k + 1
        error = math.sqrt(a * b / (a + b) ** 2 / (a + b + 1) / N)
        assert abs(float(t.mean()) - a / (a + b)) < 5 * error


@several
def test_ancestral_steps_converge_to_the_joint(process):
    few, many = (excess(drawn(process, Ancestral().plan(process, fk.grids.Uniform(k))).x0) for k in (2, 64))
    assert few > 3 and many < 1.8


@pytest.mark.parametrize("rule", ["tau", "euler"])
def test_jump_rates_converge_to_the_joint(rule):
    process = PROCESSES[1]
    few, many = (excess(drawn(process, Ancestral(rule).plan(process, fk.grids.Uniform(k))).x0) for k in (4, 96))
    assert few > 3 and many < 1.8


def test_a_sample_is_its_own_and_given_tokens_stay():
    process = TokenProcess(K)
    for plan in (FirstHitting().plan(process, LENGTH), Ancestral().plan(process, fk.grids.Uniform(5))):
        x = process.start(torch.zeros(6, LENGTH))
        x[:, 1] = 2
        whole = fk.sample(LAW.denoiser(process), x, plan, seed=4)
        assert bool((whole[:, 1] == 2).all()) and int(whole.max()) < K
        alone = fk.sample(LAW.denoiser(process), x[3:4], plan, seed=4, ids=[3])
        assert torch.equal(alone, whole[3:4])
        assert not torch.equal(fk.sample(LAW.denoiser(process), x, plan, seed=5), whole)


def test_infilling_follows_the_conditional_law():
    process = TokenProcess(K)
    x = process.start(torch.zeros(N, LENGTH))
    x[:, 1] = 2
    out = fk.sample(LAW.denoiser(process), x, FirstHitting().plan(process, LENGTH))
    conditional = LAW.joint()[:, 2]
    value = TotalVariation()(out[:, [0, 2, 3]], conditional / conditional.sum())
    assert value.value < 1.35 * value.floor


def test_what_does_not_fit_is_refused_in_one_sentence():
    process, gaussian = TokenProcess(K), fk.VP()
    with pytest.raises(FokkerError, match="only masks"):
        FirstHitting().plan(TokenProcess(K, replace=0.1), LENGTH)
    with pytest.raises(FokkerError, match="not a process of tokens"):
        Ancestral().plan(gaussian, fk.grids.Uniform(3))
    with pytest.raises(FokkerError, match="integer tensor"):
        fk.sample(LAW.denoiser(process), fk.noise((2, LENGTH)), FirstHitting().plan(process, LENGTH))
    with pytest.raises(FokkerError, match="floating point tensor"):
        fk.sample(fk.laws.ring().denoiser(gaussian), torch.zeros(2, 2, dtype=torch.int64), solver="ddim", steps=2)
    with pytest.raises(FokkerError, match="did you mean 'tau'"):
        Ancestral("tua")
    with pytest.raises(FokkerError, match="sum to one"):
        MarkovChain(torch.tensor([0.5, 0.4]), torch.eye(2), 3)
    with pytest.raises(FokkerError, match="does not depend on time"):
        Remembered(LAW.denoiser(PROCESSES[1]))
    with pytest.raises(FokkerError, match="uniform numbers"):
        PROCESSES[1].start(torch.zeros(2, 2))


def test_guidance_of_tokens_is_the_normalised_product_of_powers():
    """One token: its belief is its law, so what is sampled under a composition is known in closed form."""
    process, n = TokenProcess(K), 20_000
    p, q = torch.tensor([0.6, 0.3, 0.1], dtype=F64), torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    one, other = (MarkovChain(law, torch.full((K, K), 1 / K, dtype=F64), 1).denoiser(process) for law in (p, q))
    x = process.start(torch.zeros(n, 1))
    for weights in ((2.0, -1.0), (1.0, 1.0), (3.0, -2.0)):
        wanted = p ** weights[0] * q ** weights[1]
        denoiser = fk.guide.Compose(one, models=[other], weights=weights, base=False)
        out = fk.sample(denoiser, x, FirstHitting().plan(process, 1))
        value = TotalVariation()(out, wanted / wanted.sum())
        assert value.value < 2.5 * value.floor, weights


# --- wrappers --------------------------------------------------------------------------------------------------------


def test_remembering_changes_no_token_and_saves_calls():
    process = TokenProcess(K)
    plan = Ancestral().plan(process, fk.grids.Uniform(64))
    plain, kept = (drawn(process, plan, d, 200) for d in (LAW.denoiser(process), Remembered(LAW.denoiser(process))))
    assert torch.equal(plain.x0, kept.x0)
    assert plain.nfe == 64 and kept.nfe <= LENGTH + 1
    wrapper = Remembered(LAW.denoiser(process))
    fk.sample(wrapper, process.start(torch.zeros(3, LENGTH)), plan)
    assert wrapper.last is None, "what is remembered belongs to the run"


def test_truncation_keeps_the_likely_tokens():
    process = TokenProcess(5)
    belief = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04], dtype=F64)
    inner = fk.as_denoiser(lambda x, t: belief.expand(*x.shape, 5), process)
    x = process.start(torch.zeros(1, 2))
    assert torch.allclose(Truncated(inner, mass=0.6)(x, 1.0)[0, 0], torch.tensor([4, 3, 0, 0, 0], dtype=F64) / 7)
    cold = belief**2 / (belief**2).sum()
    assert torch.allclose(Truncated(inner, temperature=0.5)(x, 1.0)[0, 1], cold)
    assert torch.equal(Truncated(inner)(x, 1.0)[0, 0], belief)


# --- draws -----------------------------------------------------------------------------------------------------------


def test_inversion_draws_every_interval():
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=F64)
    u = torch.tensor([1e-17, 0.2, 0.26, 0.7, 0.76, 1 - 2.0**-53], dtype=F64)
    assert categorical(p.expand(6, -1), u).tolist() == [1, 1, 3, 3, 4, 4]


def test_fine_uniforms_fill_their_bits_and_are_keyed():
    u = uniform((2000, 8), 1, bits=52)
    assert float(u.min()) > 0 and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 0.01
    lattice = u * 2.0**32
    assert float((lattice - lattice.floor()).var()) > 0.08, "the low bits are random too"
    assert torch.equal(uniform((1, 8), 1, ids=[17], bits=52)[0], u[17])


def test_truncated_gumbel_law_is_what_truncated_gumbels_draw():
    p = torch.softmax(2 * fk.noise((1, 6), 1, dtype=F64)[0], 0)
    n, bits = 400_000, 5
    found = torch.bincount(gumbel_max(p.expand(n, -1), uniform((n, 6), 2, bits=52) * (1 - 2.0**-bits)), minlength=6) / n
    law = truncated_gumbel_law(p, bits)
    assert abs(float(law.sum()) - 1) < 1e-12
    assert bool(((found - law).abs() < 5 * torch.sqrt(law / n)).all())
    assert float((law - p).abs().max()) > 0.02, "the fault is there"
    assert float((truncated_gumbel_law(p, 53) - p).abs().max()) < 1e-12
    # numbers rounded down to the bits that hardware has: the same direction, less of it
    coarse = torch.bincount(gumbel_max(p.expand(n, -1), uniform((n, 6), 2, bits=52), bits), minlength=6) / n
    assert 0.01 < float(coarse.max() - p.max()) < float(law.max() - p.max())


def test_entropy():
    assert abs(float(token_entropy(torch.full((8,), 0.125))) - math.log(8)) < 1e-6
    assert float(token_entropy(torch.tensor([1.0, 0.0]))) == 0.0


# --- training --------------------------------------------------------------------------------------------------------


class Table(torch.nn.Module):
    """A network that answers the exact logits of the chain for a masked sequence."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(LAW.marginals(TokenProcess(K).evidence(x, 0.5)).clamp_min(1e-300))


def test_time_free_bound_of_the_exact_belief_is_the_entropy():
    """With the exact belief the bound is tight: its mean is the entropy of the law a token."""
    denoiser = TokenDenoiser(Table(), TokenProcess(K))
    joint = LAW.joint()
    entropy = float(token_entropy(joint.flatten())) / LENGTH / math.log(2)
    bits, error = bits_per_token(denoiser, LAW.sample(20_000, 1), draws=4)
    assert abs(bits - entropy) < 5 * error and error < 0.01


@several
def test_token_bound_of_the_exact_belief_is_least(process):
    """The bound of the exact belief approaches the entropy from above, and a wrong belief is worse."""
    exact = LAW.denoiser(process)
    flat = fk.as_denoiser(lambda x, t: 0.7 * exact(x, t) + 0.1, process)
    x = LAW.sample(4000, 1)
    key = Key(0, 0, len(x), torch.arange(len(x)))
    objective = TokenBound(steps=64, aux=0.0)
    best, worse = (objective.loss(d, objective.draw(d, {"x": x}, key)) for d in (exact, flat))
    entropy = float(token_entropy(LAW.joint().flatten())) / LENGTH
    assert abs(float(best.mean()) - entropy) < 0.08
    if process.replace:
        assert float(worse.mean()) > float(best.mean()) + 0.02


def test_network_contract():
    net = TokenTransformer(K, width=32, depth=2, heads=2, seed=1)
    x = torch.randint(0, K + 1, (4, 7), generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (4, 7, K) and not bool(net(x).any())
    with torch.no_grad():
        net.out.weight.normal_()
    assert torch.allclose(net(x[1:2]), net(x)[1:2], atol=1e-5)
    assert not torch.allclose(net(x.flip(1)).flip(1), net(x), atol=1e-3), "positions matter"
    timed = TokenTransformer(K, width=32, depth=1, heads=2, timed=True, classes=2)
    assert timed(x, torch.full((4,), 0.3), label=torch.tensor([0, 1, -1, 0])).shape == (4, 7, K)
    with pytest.raises(FokkerError, match="share of noise"):
        timed(x)
    assert TokenTransformer(**net.config).config == net.config


def test_training_lowers_the_bound():
    process = TokenProcess(K)
    denoiser = TokenDenoiser(TokenTransformer(K, width=32, depth=1, heads=2), process)
    x, objective = LAW.sample(64, 1), TimeFree()
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    losses = []
    for i in range(60):
        key = Key(0, 64 * i, 64, torch.arange(64))
        loss = objective.loss(denoiser, objective.draw(denoiser, {"x": x}, key)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(math.log(K), abs=1e-5)
    assert sum(losses[-10:]) / 10 < 0.85 * losses[0]


# --- energies --------------------------------------------------------------------------------------------------------


def test_the_exact_energy_turns_one_step_into_the_joint():
    process = TokenProcess(K)
    plan = Ancestral().plan(process, fk.grids.Uniform(1))
    energy = Residual(LAW.log_prob)
    found = [
        excess(drawn(process, plan, EnergyCorrected(LAW.denoiser(process), energy, k), 4000).x0) for k in (1, 8, 128)
    ]
    assert found[0] > 1.5 * found[1] > 2 * found[2] and found[2] < 1.6, found


def test_a_corrected_belief_is_a_draw_that_keeps_what_is_known_and_acts_in_its_window():
    process = TokenProcess(K)
    inner = LAW.denoiser(process)
    x = torch.tensor([[K, 2, K, K], [0, K, K, 1]])
    corrected = EnergyCorrected(inner, Residual(LAW.log_prob), 4, window=(0.5, 1.0))
    belief = corrected(x, 0.9)
    assert bool((belief.max(-1).values == 1).all()) and belief[0, 1, 2] == 1 and belief[1, 3, 1] == 1
    assert torch.equal(corrected(x, 0.3), inner(x, 0.3))
    mixed = corrected(x, torch.tensor([0.9, 0.3]))
    assert bool((mixed[0].max(-1).values == 1).all()) and torch.equal(mixed[1], inner(x, 0.3)[1])
    plan = Ancestral().plan(process, fk.grids.Uniform(3))
    whole = drawn(process, plan, corrected, 5).x0
    start = process.start(torch.zeros(1, LENGTH))
    assert torch.equal(fk.sample(corrected, start, plan, ids=[3]), whole[3:4])
    with pytest.raises(FokkerError, match="at least one candidate"):
        EnergyCorrected(inner, Residual(LAW.log_prob), 0)


class Pairs(torch.nn.Module):
    """An energy of neighbouring tokens: enough for a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(LENGTH - 1, K, K))

    def forward(self, x_t: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
        return sum(self.weight[i][x_0[:, i], x_0[:, i + 1]] for i in range(LENGTH - 1))


def test_a_contrastive_energy_learns_the_residual():
    """From all masks the residual energy of a chain is a sum over pairs: its differences are those of the exact one."""
    process = TokenProcess(K)
    belief = fk.as_denoiser(lambda x, t: LAW.marginals(process.evidence(torch.full_like(x, K), 0.5)), process)
    denoiser = EnergyCorrected(belief, Learned(Pairs()))
    optimiser, objective = torch.optim.Adam(denoiser.parameters(), lr=0.1), NoiseContrast()
    for i in range(150):
        x = LAW.sample(512, i)
        drawn_now = objective.draw(denoiser, {"x": x}, Key(i, 0, 512, torch.arange(512)))
        loss = objective.loss(denoiser, drawn_now).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = LAW.sample(200, 999)
    masked = torch.full_like(x, K)
    with torch.no_grad():
        learned = denoiser.energy(x, belief(masked, 1.0), masked, 1.0)
    exact = Residual(LAW.log_prob)(x, belief(masked, 1.0), masked, 1.0)
    assert float(torch.corrcoef(torch.stack([learned, exact]))[0, 1]) > 0.98


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_of_text_is_stored_whole(tmp_path):
    net = TokenTransformer(3, width=16, depth=1, heads=2)
    with torch.no_grad():
        net.out.weight.normal_(generator=torch.Generator().manual_seed(0))
    model = TokenModel(TokenDenoiser(net, TokenProcess(3, schedule="cosine")).eval(), ("a", "b", " "), 6, {"note": 1})
    back = load(model.save(tmp_path / "m.safetensors"))
    assert back.write(3, "a_b", seed=2) == model.write(3, "a_b", seed=2)
    assert all(text[0] == "a" and text[2] == "b" and len(text) == 6 for text in back.write(3, "a_b"))
    assert back.process.schedule == "cosine" and back.card == {"note": 1}
    assert back.run(2, "ab").nfe == 4
    with pytest.raises(FokkerError, match="has no 'x'"):
        model.encode("x")
    with pytest.raises(FokkerError, match="6 places"):
        model.encode("aaaaaaa")
    with pytest.raises(FokkerError, match="did you mean 'text'"):
        load("txt")

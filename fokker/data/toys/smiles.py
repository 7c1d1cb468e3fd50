"""Molecules as SMILES strings: sixty known ones, and as many as asked for from a small grammar, each in two spellings."""

from zlib import crc32

import numpy as np
import torch

from fokker.data import molecules
from fokker.data.draws import SPLITS
from fokker.data.molecules import Molecule
from fokker.data.source import Arrays
from fokker.data.words import PAD
from fokker.errors import FokkerError, unknown

VOCABULARY = (
    PAD,
    "C",
    "c",
    "N",
    "n",
    "[nH]",
    "O",
    "o",
    "S",
    "s",
    "F",
    "Cl",
    "Br",
    "(",
    ")",
    "=",
    "#",
    "-",
    *"123456789",
)
CLASSES = ("chain", "chain with N", "ring", "ring with N")
PROPERTIES = ("heavy atoms", "rings", "nitrogens", "oxygens")

KNOWN = {
    "ethanol": "CCO",
    "acetone": "CC(=O)C",
    "acetic acid": "CC(=O)O",
    "acetonitrile": "CC#N",
    "glycerol": "OCC(O)CO",
    "urea": "NC(=O)N",
    "glycine": "NCC(=O)O",
    "alanine": "CC(N)C(=O)O",
    "lactic acid": "CC(O)C(=O)O",
    "citric acid": "OC(=O)CC(O)(CC(=O)O)C(=O)O",
    "isoprene": "CC(=C)C=C",
    "limonene": "CC1=CCC(CC1)C(=C)C",
    "menthol": "CC1CCC(C(C)C)C(O)C1",
    "glucose": "OCC1OC(O)C(O)C(O)C1O",
    "benzene": "c1ccccc1",
    "toluene": "Cc1ccccc1",
    "phenol": "Oc1ccccc1",
    "aniline": "Nc1ccccc1",
    "styrene": "C=Cc1ccccc1",
    "benzoic acid": "OC(=O)c1ccccc1",
    "benzaldehyde": "O=Cc1ccccc1",
    "naphthalene": "c1ccc2ccccc2c1",
    "biphenyl": "c1ccc(cc1)-c1ccccc1",
    "vanillin": "COc1cc(C=O)ccc1O",
    "eugenol": "COc1cc(CC=C)ccc1O",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "salicylic acid": "OC(=O)c1ccccc1O",
    "dopamine": "NCCc1ccc(O)c(O)c1",
    "adrenaline": "CNCC(O)c1ccc(O)c(O)c1",
    "tyrosine": "NC(Cc1ccc(O)cc1)C(=O)O",
    "phenylalanine": "NC(Cc1ccccc1)C(=O)O",
    "pyridine": "c1ccncc1",
    "niacin": "OC(=O)c1cccnc1",
    "nicotine": "CN1CCCC1c1cccnc1",
    "pyrimidine": "c1cncnc1",
    "cytosine": "Nc1cc[nH]c(=O)n1",
    "uracil": "O=c1cc[nH]c(=O)[nH]1",
    "thymine": "Cc1c[nH]c(=O)[nH]c1=O",
    "adenine": "Nc1ncnc2[nH]cnc12",
    "guanine": "Nc1nc2[nH]cnc2c(=O)[nH]1",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "theobromine": "Cn1cnc2c1c(=O)[nH]c(=O)n2C",
    "imidazole": "c1c[nH]cn1",
    "histamine": "NCCc1c[nH]cn1",
    "histidine": "NC(Cc1c[nH]cn1)C(=O)O",
    "pyrrole": "c1cc[nH]c1",
    "indole": "c1ccc2[nH]ccc2c1",
    "tryptophan": "NC(Cc1c[nH]c2ccccc12)C(=O)O",
    "serotonin": "NCCc1c[nH]c2ccc(O)cc12",
    "melatonin": "COc1ccc2[nH]cc(CCNC(C)=O)c2c1",
    "furan": "c1ccoc1",
    "furfural": "O=Cc1ccco1",
    "thiophene": "c1ccsc1",
    "thiazole": "c1cscn1",
    "quinoline": "c1ccc2ncccc2c1",
    "morpholine": "C1COCCN1",
    "piperidine": "C1CCNCC1",
    "amphetamine": "CC(N)Cc1ccccc1",
    "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "coumarin": "O=c1ccc2ccccc2o1",
    "chloroform": "ClC(Cl)Cl",
    "halothane": "FC(F)(F)C(Cl)Br",
}
# what a molecule starts from and what may be put on an atom with a hydrogen to spare; the first atom is the one that bonds
_CORES = (
    "C",
    "CC",
    "CCC",
    "CC(C)C",
    "C=C",
    "c1ccccc1",
    "c1ccncc1",
    "c1ccsc1",
    "c1ccoc1",
    "C1CCCCC1",
    "C1CCCC1",
    "C1CCNCC1",
)
_ON_ANY = ("C", "C", "CC", "C=C", "C(=O)O", "C#N", "C(C)C", "c1ccccc1", "C1CC1", "C(=O)N", "CO")
_ON_CARBON = ("O", "O", "N", "F", "Cl", "OC", "NC", "S", "Br")


def build(
    n: int = 500,
    seed: int = 0,
    split: str = "train",
    length: int = 32,
    known: bool = True,
) -> Arrays:
    """x (length,) int64 tokens below len(d.vocabulary), padded with 0: a random spelling of a molecule, none twice.

    Condition `twin` (length,): another random spelling of the same molecule; the strings are texts["smiles"] and
    texts["twin"]. label: whether it has a ring and a nitrogen, see CLASSES; condition `properties` (4,): counts of heavy atoms,
    rings, N and O. Known molecules come first (known=False leaves them out), then ones grown from a core by two to six
    substitutions. The split belongs to the molecule: every fifth, by a hash of its graph, is test.
    `fokker.data.molecules.valid` judges generated strings.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if n < 1 or length < 8:
        raise FokkerError(f"n={n}, length={length}; give n >= 1 and a length of at least 8 tokens")
    x, twin = np.zeros((n, length), dtype=np.int64), np.zeros((n, length), dtype=np.int64)
    chosen: list[Molecule] = []
    spelt: list[tuple[str, str]] = []
    seen: set[int] = set()
    listed = list(KNOWN.values()) if known else []
    candidate = 0
    while len(chosen) < n:
        rng = np.random.default_rng([crc32(b"smiles"), seed, candidate])
        molecule = molecules.read(listed[candidate]) if candidate < len(listed) else grow(rng)
        candidate += 1
        assert molecule is not None
        key = molecule.key()
        if key in seen or (split != "all" and (key % 5 == 0) != (split == "test")):
            continue
        seen.add(key)
        spellings = respell(molecule, rng), respell(molecule, rng)
        encoded = [molecules.tokens(s) or [] for s in spellings]
        if max(len(e) for e in encoded) > length:
            continue
        for row, parts in ((x, encoded[0]), (twin, encoded[1])):
            row[len(chosen), : len(parts)] = [VOCABULARY.index(p) for p in parts]
        chosen.append(molecule)
        spelt.append(spellings)
    counts = np.array([_properties(m) for m in chosen], dtype=np.float64)
    label = torch.from_numpy(((counts[:, 1] > 0) * 2 + (counts[:, 2] > 0)).astype(np.int64))
    return Arrays(
        {
            "x": torch.from_numpy(x),
            "label": label,
            "twin": torch.from_numpy(twin),
            "properties": torch.from_numpy(counts),
        },
        "smiles",
        "known and generated small molecules",
        CLASSES,
        {"twin": VOCABULARY, "properties": PROPERTIES},
        VOCABULARY,
        {"smiles": [a for a, _ in spelt], "twin": [b for _, b in spelt]},
        bounds=None,
    )


def decode(tokens: torch.Tensor) -> list[str]:
    """The strings of int64 tokens (n, length), up to the first padding."""
    rows = [[VOCABULARY[t] for t in row] for row in tokens.tolist()]
    return ["".join(row[: row.index(PAD)] if PAD in row else row) for row in rows]


def respell(molecule: Molecule, rng: np.random.Generator) -> str:
    """A random spelling: a random first atom and a random order of branches."""
    start = int(rng.integers(len(molecule.elements)))
    return molecule.spell(start, lambda atoms: [atoms[k] for k in rng.permutation(len(atoms))])


def grow(rng: np.random.Generator, most: int = 14) -> Molecule:
    """A random molecule of at most `most` heavy atoms: a core with two to six substitutions at atoms with hydrogen to spare."""
    molecule = molecules.read(_CORES[rng.integers(len(_CORES))])
    assert molecule is not None
    for _ in range(int(rng.integers(2, 7))):
        sites = [i for i in range(len(molecule.elements)) if molecule.free(i) > 0 and molecule.elements[i] != "S"]
        if not sites:
            break
        site = sites[rng.integers(len(sites))]
        hetero = molecule.elements[site] != "C" or any(molecule.elements[j] in "NO" for j in molecule.bonds[site])
        if not hetero and not molecule.aromatic[site] and molecule.free(site) >= 2 and rng.random() < 0.2:
            molecule.bond(site, molecule.add("O"), 2)
            continue
        parts = _ON_ANY if hetero else _ON_ANY + _ON_CARBON
        part = molecules.read(parts[rng.integers(len(parts))])
        assert part is not None
        if len(molecule.elements) + len(part.elements) <= most:
            _join(molecule, site, part)
    return molecule


def _join(molecule: Molecule, site: int, part: Molecule) -> None:
    """Puts `part` on an atom by a single bond from its first atom."""
    offset = len(molecule.elements)
    for element, aromatic, hydrogen in zip(part.elements, part.aromatic, part.hydrogen, strict=True):
        molecule.add(element, aromatic, hydrogen)
    for i, bonds in enumerate(part.bonds):
        for j, order in bonds.items():
            molecule.bonds[offset + i][offset + j] = order
    molecule.bond(site, offset)


def _properties(molecule: Molecule) -> list[int]:
    elements = molecule.elements
    return [len(elements), molecule.rings(), elements.count("N"), elements.count("O")]

"""Small organic molecules as graphs, written as SMILES in any atom order, read back and checked for valence."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

VALENCE = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1, "Cl": 1, "Br": 1}
AROMATIC = 4  # the order by which an aromatic bond is stored
_SYMBOLS = {2: "=", 3: "#"}
_TOKEN = re.compile(r"\[nH\]|Cl|Br|[CNOSFcnos]|[()=#\-]|[1-9]")


@dataclass
class Molecule:
    """Atoms with their element, aromaticity and whether a hydrogen is spelt out ([nH]); bonds as atom -> {atom: order}."""

    elements: list[str] = field(default_factory=list)
    aromatic: list[bool] = field(default_factory=list)
    hydrogen: list[bool] = field(default_factory=list)
    bonds: list[dict[int, int]] = field(default_factory=list)

    def add(self, element: str, aromatic: bool = False, hydrogen: bool = False) -> int:
        """Adds an atom without bonds and returns its number."""
        self.elements.append(element)
        self.aromatic.append(aromatic)
        self.hydrogen.append(hydrogen)
        self.bonds.append({})
        return len(self.elements) - 1

    def bond(self, i: int, j: int, order: int = 1) -> None:
        """Joins two atoms."""
        self.bonds[i][j] = self.bonds[j][i] = order

    def free(self, i: int) -> int:
        """How many more single bonds atom i can take; negative where it has too many."""
        used = sum(1 if order == AROMATIC else order for order in self.bonds[i].values())
        lent = self.aromatic[i] and self.elements[i] == "C" and not self._double_outside(i)
        lent = lent or (
            self.aromatic[i] and self.elements[i] == "N" and not self.hydrogen[i] and len(self.bonds[i]) == 2
        )
        return VALENCE[self.elements[i]] - used - lent - self.hydrogen[i]

    def rings(self) -> int:
        """The number of independent rings."""
        return sum(len(b) for b in self.bonds) // 2 - len(self.elements) + 1

    def valid(self) -> bool:
        """Whether every valence fits and the aromatic atoms can be given alternating double bonds."""
        if not self.elements or any(self.free(i) < 0 for i in range(len(self.elements))):
            return False
        ring_bonds = [sum(order == AROMATIC for order in b.values()) for b in self.bonds]
        if any(a != (r >= 2) for a, r in zip(self.aromatic, ring_bonds, strict=True)):
            return False
        return self._alternates([i for i, a in enumerate(self.aromatic) if a and self._needs_double(i)])

    def _double_outside(self, i: int) -> bool:
        return any(order in (2, 3) for order in self.bonds[i].values())

    def _needs_double(self, i: int) -> bool:
        if self.elements[i] in "OS" or self.hydrogen[i] or self._double_outside(i):
            return False
        return self.elements[i] == "C" or len(self.bonds[i]) == 2

    def _alternates(self, atoms: list[int]) -> bool:
        """A perfect matching of `atoms` by aromatic bonds, by trying the partners of the first."""
        if not atoms:
            return True
        first, rest = atoms[0], atoms[1:]
        partners = [j for j in rest if self.bonds[first].get(j) == AROMATIC]
        return any(self._alternates([k for k in rest if k != j]) for j in partners)

    def key(self) -> int:
        """A number that is the same for every spelling of one molecule (colour refinement of the graph, 32 bits)."""
        atoms = range(len(self.elements))
        colour = [crc32(f"{self.elements[i]}{self.aromatic[i]:d}{self.hydrogen[i]:d}".encode()) for i in atoms]
        kinds = 0
        while len(set(colour)) > kinds:
            kinds = len(set(colour))
            around = [sorted((order, colour[j]) for j, order in self.bonds[i].items()) for i in atoms]
            colour = [crc32(repr((colour[i], around[i])).encode()) for i in atoms]
        return crc32(str(sorted(colour)).encode())

    def spell(self, start: int = 0, shuffle: Callable[[list[int]], list[int]] = sorted) -> str:
        """SMILES of a connected molecule from atom `start`; `shuffle` orders the neighbours at each branching.

        Reference: Weininger 1988, "SMILES, a chemical language and information system".
        """
        children: dict[int, list[int]] = {}
        closures: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(self.elements))}
        visited: set[int] = set()

        def walk(i: int, parent: int) -> None:
            visited.add(i)
            children[i] = []
            for j in shuffle([j for j in self.bonds[i] if j != parent]):
                if j not in visited:
                    children[i].append(j)
                    walk(j, i)
                elif all(i != other for _, other in closures[j]) and i not in children[j]:
                    number = sum(len(c) for c in closures.values()) // 2 + 1
                    closures[i].append((number, j))
                    closures[j].append((number, i))

        walk(start, -1)
        return self._write(start, children, closures)

    def _write(self, i: int, children: dict[int, list[int]], closures: dict[int, list[tuple[int, int]]]) -> str:
        symbol = self.elements[i].lower() if self.aromatic[i] else self.elements[i]
        text = "[nH]" if self.hydrogen[i] else symbol
        for number, j in sorted(closures[i]):
            text += self._mark(i, j) + str(number)  # a bond symbol may stand at both ends of a closure
        for k, j in enumerate(children[i]):
            branch = self._mark(i, j) + self._write(j, children, closures)
            text += branch if k == len(children[i]) - 1 else f"({branch})"
        return text

    def _mark(self, i: int, j: int) -> str:
        order = self.bonds[i][j]
        if order == 1:
            return "-" if self.aromatic[i] and self.aromatic[j] else ""
        return _SYMBOLS.get(order, "")


def tokens(smiles: str) -> list[str] | None:
    """The tokens of a SMILES string, or None where a character is not of this dialect."""
    found = _TOKEN.findall(smiles)
    return found if "".join(found) == smiles else None


def read(smiles: str) -> Molecule | None:
    """The molecule a string spells (organic subset, no charges or stereo), or None where the string is not well formed.

    Two aromatic neighbours without a bond symbol are joined by an aromatic bond in a ring, else by a single one.
    """
    parts = tokens(smiles)
    if not parts:
        return None
    molecule, stack, at, order = Molecule(), list[int](), -1, 0
    rings: dict[str, tuple[int, int]] = {}
    unspelt: list[tuple[int, int]] = []
    for k, part in enumerate(parts):
        if part in "=#-":
            if order or at < 0:
                return None
            order = {"-": 1, "=": 2, "#": 3}[part]
        elif part == "(":
            if at < 0 or order or parts[k - 1] == "(":
                return None
            stack.append(at)
        elif part == ")":
            if not stack or order or parts[k - 1] == "(":
                return None
            at = stack.pop()
        elif part.isdigit():
            if at < 0 or parts[k - 1] in "()":
                return None
            if part not in rings:
                rings[part] = (at, order)
            else:
                other, stated = rings.pop(part)
                if other == at or other in molecule.bonds[at] or (order and stated and order != stated):
                    return None
                molecule.bond(at, other, order or stated or _usual(molecule, at, other))
                if molecule.bonds[at][other] == AROMATIC:
                    unspelt.append((at, other))
            order = 0
        else:
            lower = part == "[nH]" or part.islower()
            new = molecule.add("N" if part == "[nH]" else part.capitalize(), lower, part == "[nH]")
            if at >= 0:
                molecule.bond(at, new, order or _usual(molecule, at, new))
                if molecule.bonds[at][new] == AROMATIC:
                    unspelt.append((at, new))
            at, order = new, 0
    if rings or stack or order:
        return None
    _settle(molecule, unspelt)
    return molecule


def _settle(molecule: Molecule, unspelt: list[tuple[int, int]]) -> None:
    """Unspelt bonds between aromatic atoms are aromatic inside a ring and single between rings."""
    for i, j in unspelt:
        reached, edge = {i}, [i]
        while edge:
            k = edge.pop()
            new = [m for m in molecule.bonds[k] if m not in reached and not (k == i and m == j)]
            reached.update(new)
            edge += new
        if j not in reached:
            molecule.bond(i, j, 1)


def _usual(molecule: Molecule, i: int, j: int) -> int:
    return AROMATIC if molecule.aromatic[i] and molecule.aromatic[j] else 1


def valid(smiles: str) -> bool:
    """Whether a string spells one connected molecule with possible valences."""
    molecule = read(smiles)
    return molecule is not None and molecule.valid()


def validity(strings: Sequence[str]) -> float:
    """The share of valid strings."""
    return sum(valid(s) for s in strings) / max(len(strings), 1)

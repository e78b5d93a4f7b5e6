"""The category tree. Root ids and names are Amazon's public ones; the rest is made up.

Every domain has the same tree, unlike the real sites; replies alone don't show it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

# Keepa's root for products without a category.
UNKNOWN_ROOT: Final = 9223372036854775807
BOOKS: Final = 283155

# (id, name, products per thousand), the shares roughly as in a recorded page of deals.
_ROOTS: Final = (
    (BOOKS, "Books", 300),
    (5174, "CDs & Vinyl", 100),
    (2625373011, "Movies & TV", 90),
    (7141123011, "Clothing, Shoes & Jewelry", 75),
    (1055398, "Home & Kitchen", 75),
    (228013, "Tools & Home Improvement", 55),
    (1064954, "Office Products", 40),
    (3375251, "Sports & Outdoors", 35),
    (165793011, "Toys & Games", 35),
    (172282, "Electronics", 35),
    (468642, "Video Games", 30),
    (15684181, "Automotive", 25),
    (2972638011, "Patio, Lawn & Garden", 20),
    (16310091, "Industrial & Scientific", 15),
    (3760901, "Health & Household", 15),
    (3760911, "Beauty & Personal Care", 13),
    (2335752011, "Cell Phones & Accessories", 12),
    (11091801, "Musical Instruments", 8),
    (2617941011, "Arts, Crafts & Sewing", 7),
    (2619525011, "Appliances", 5),
    (16310101, "Grocery & Gourmet Food", 5),
    (165796011, "Baby Products", 2),
    (2619533011, "Pet Supplies", 2),
    (UNKNOWN_ROOT, "?", 1),
)
ROOT_IDS: Final = tuple(root for root, _, _ in _ROOTS)
ROOT_NAMES: Final = {root: name for root, name, _ in _ROOTS}
CUMULATIVE_SHARES: Final = tuple(accumulate(share for _, _, share in _ROOTS))

_BRANCHES: Final = ("Classics", "Accessories", "Sets & Kits", "Parts", "New Arrivals")
_LEAVES: Final = ("Travel", "Children", "Professional", "Collectors")


@dataclass(frozen=True, slots=True)
class Category:
    """A node of the tree; a root's parent is 0, as in Keepa's replies."""

    id: int
    name: str
    parent: int
    children: tuple[int, ...]


def _branch_id(root: int, branch: int) -> int:
    return 10_000_000_011 + (ROOT_IDS.index(root) * 10 + branch) * 10_000


def _leaf_id(root: int, branch: int, leaf: int) -> int:
    return _branch_id(root, branch) + (leaf + 1) * 1_000


def _nodes_below(root: int) -> Iterator[Category]:
    branches = tuple(_branch_id(root, number) for number in range(len(_BRANCHES)))
    yield Category(root, ROOT_NAMES[root], 0, branches)
    for branch, name in enumerate(_BRANCHES):
        leaves = tuple(_leaf_id(root, branch, leaf) for leaf in range(len(_LEAVES)))
        yield Category(branches[branch], name, root, leaves)
        for leaf, leaf_name in zip(leaves, _LEAVES, strict=True):
            yield Category(leaf, f"{name}: {leaf_name}", branches[branch], ())


CATEGORIES: Final = {
    node.id: node for root in ROOT_IDS if root != UNKNOWN_ROOT for node in _nodes_below(root)
}


def listed_in(root: int, draw: int) -> tuple[int, ...]:
    """The categories that a product is directly listed in, chosen by a 32-bit *draw*."""
    if root == UNKNOWN_ROOT:
        return ()
    branch = draw % len(_BRANCHES)
    leaf = draw // 8 % len(_LEAVES)
    return (_branch_id(root, branch), _leaf_id(root, branch, leaf))


def path_to_root(category: int) -> list[Category]:
    """The nodes above *category*, the nearest first."""
    path = []
    while (parent := CATEGORIES[category].parent) != 0:
        category = parent
        path.append(CATEGORIES[category])
    return path


def share_of(node: Category) -> float:
    """Approximate share of the products at or below *node*, per thousand."""
    path = path_to_root(node.id)
    root = path[-1].id if path else node.id
    share = next(share for number, _, share in _ROOTS if number == root)
    levels = (1, len(_BRANCHES), len(_BRANCHES) * len(_LEAVES))
    return share / levels[len(path)]

"""The constant properties of a product, drawn from the seed on each use.

Nothing is stored per product, so a catalogue of a million starts as fast as one of ten.
"""

import math
import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Final

from deploy.keepa_simulator import price_types as pt
from deploy.keepa_simulator.asins import book_asin, general_asin
from deploy.keepa_simulator.taxonomy import BOOKS, CUMULATIVE_SHARES, ROOT_IDS, listed_in

_WORDS: Final = struct.Struct("<8I")
_WORD: Final = 2**32

# Share of products, in 256ths, that have ever had an offer of a group.
_OFFERED: Final = {
    pt.AMAZON: 140,
    pt.NEW: 240,
    pt.USED: 180,
    pt.COLLECTIBLE: 30,
    pt.REFURBISHED: 20,
    pt.LIGHTNING_DEAL: 30,
    pt.WAREHOUSE: 70,
    pt.TRADE_IN: 15,
    pt.PRIME_EXCL: 12,
}
_OFFERED_BOOK: Final = _OFFERED | {pt.USED: 250, pt.COLLECTIBLE: 80, pt.LIGHTNING_DEAL: 2}

# More shares of the products, in 256ths.
_WITHOUT_RANK: Final = 20
_WITHOUT_REVIEWS: Final = 25
_ADULT: Final = 2
_ILLUSTRATED: Final = 60

_ADJECTIVES: Final = [
    "Complete",
    "Essential",
    "Illustrated",
    "Modern",
    "Compact",
    "Original",
    "Deluxe",
    "Portable",
    "Classic",
    "Silent",
    "Organic",
    "Advanced",
    "Little",
    "Practical",
    "Vintage",
    "Heavy-Duty",
]
_NOUNS: Final = [
    "Guide",
    "Lamp",
    "Atlas",
    "Backpack",
    "Speaker",
    "Cookbook",
    "Puzzle",
    "Drill",
    "Notebook",
    "Serum",
    "Headphones",
    "Garden",
    "Symphony",
    "Kettle",
    "Chronicle",
    "Wrench",
    "Blanket",
    "Camera",
    "Handbook",
    "Trilogy",
]
_ENDINGS: Final = [
    "for Beginners",
    "Volume 2",
    "(2nd Edition)",
    "with Case",
    "Pack of 3",
    "Collector's Set",
    "for Home & Office",
    "Limited Series",
    "<b>New</b> Edition",
    "Large",
    "Travel Size",
    "Box Set",
    "in Black",
    "Anniversary Issue",
    "Second Series",
    "for Kids",
]
BRANDS: Final = [
    "Northwind",
    "Alderbrook",
    "Quillpress",
    "Kestrel",
    "Lumena",
    "Brightforge",
    "Oakline",
    "Merano",
    "Tidewater",
    "Halcyon",
    "Ironpeak",
    "Velora",
    "Sundial",
    "Papertrail",
    "Corvane",
    "Maplefield",
]
_SURNAMES: Final = [
    "Hale",
    "Okafor",
    "Lindqvist",
    "Marsh",
    "Tanaka",
    "Ferreira",
    "Novak",
    "Whitlock",
]
_BOOK_BINDINGS: Final = ("Paperback", "Hardcover", "Mass Market Paperback", "Spiral-bound")
_COLORS: Final = ("Black", "White", "Blue", "Red")

# One product in this many is shown with three siblings under a parent ASIN.
_FAMILY_EVERY: Final = 12
_FAMILY_SIZE: Final = 4
# Parents are numbered above every product that a catalogue may hold.
_FIRST_PARENT: Final = 10**9


@dataclass(frozen=True)
class Facts:
    """A product without its history.

    Args:
        number: Its place in the catalogue, from 0.
        words: Eight 32-bit draws.
        octets: 32 draws from 0 to 255.
    """

    number: int
    words: tuple[int, ...]
    octets: bytes

    @cached_property
    def root(self) -> int:
        """Root category id."""
        share = self.words[0] * CUMULATIVE_SHARES[-1] // _WORD
        return ROOT_IDS[bisect_right(CUMULATIVE_SHARES, share)]

    @property
    def is_book(self) -> bool:
        """Whether the product is a book; the ASIN of a book is its ISBN."""
        return self.root == BOOKS

    @cached_property
    def asin(self) -> str:
        """The ASIN; the same on every domain."""
        return (book_asin if self.is_book else general_asin)(self.number)

    @property
    def parent_asin(self) -> str | None:
        """The ASIN that the variations share; most products have none."""
        family = self.number // _FAMILY_SIZE
        if self.is_book or family % _FAMILY_EVERY:
            return None
        return general_asin(_FIRST_PARENT + family)

    @cached_property
    def categories(self) -> tuple[int, ...]:
        """Categories below the root that the product is directly listed in."""
        return listed_in(self.root, self.words[1])

    @cached_property
    def list_price(self) -> int:
        """In the smallest currency unit; 4 to 400 dollars, cheap ones more often."""
        return round(400 * math.pow(100, self.words[2] / _WORD))

    @cached_property
    def base_rank(self) -> int:
        """Typical sales rank, or -1 for the few products that have none."""
        if self.octets[0] < _WITHOUT_RANK:
            return -1
        return round(50 * math.pow(40_000, self.words[3] / _WORD))

    @property
    def rating(self) -> int:
        """0 to 50 (45 is 4.5 stars), or -1 for a product without reviews."""
        return -1 if self.octets[1] < _WITHOUT_REVIEWS else 30 + self.octets[2] * 20 // 256

    @property
    def review_count(self) -> int:
        """Number of reviews at the start, or -1."""
        return -1 if self.rating < 0 else round(3 * math.pow(2_000, self.words[4] / _WORD))

    @property
    def is_adult(self) -> bool:
        """Whether ``filterErotic`` drops the product."""
        return self.octets[3] < _ADULT

    def has_offers(self, group: int) -> bool:
        """Whether there has ever been an offer of the price type *group*."""
        table = _OFFERED_BOOK if self.is_book else _OFFERED
        return group in table and self.octets[4 + group % 20] < table[group]

    @cached_property
    def title(self) -> str:
        """The product's title; a few titles hold HTML, as real ones do."""
        word = self.words[5]
        return (
            f"{_ADJECTIVES[word % 16]} {_NOUNS[word // 16 % 20]}"
            f" {_ENDINGS[word // 320 % 16]} {self.number}"
        )

    @property
    def brand(self) -> str:
        """The brand; for books, the publisher."""
        return BRANDS[self.words[6] % 16]

    @property
    def attributes(self) -> dict[str, str | list[str] | None]:
        """The attributes that both a product shows and a selection can ask for."""
        book = self.is_book
        color = _COLORS[self.words[7] % 4]
        return {
            "author": f"{BRANDS[self.words[7] % 7]} {_SURNAMES[self.words[7] // 8 % 8]}"
            if book
            else None,
            "binding": _BOOK_BINDINGS[self.words[6] // 16 % 4] if book else None,
            "brand": self.brand,
            "brandStoreName": self.brand,
            "brandStoreUrlName": self.brand.lower(),
            "color": None if book else color,
            "edition": f"{1 + self.words[7] % 3}. edition" if book else None,
            "format": "Illustrated" if book and self.octets[5] < _ILLUSTRATED else None,
            "itemForm": None,
            "languages": ["English"] if book else None,
            "manufacturer": self.brand,
            "model": None if book else f"{self.brand[:3].upper()}-{self.number % 9973}",
            "partNumber": None if book else f"{self.number % 99991:05d}",
            "productGroup": "Book" if book else None,
            "scent": None,
            "size": None if book else ("S", "M", "L")[self.words[7] // 4 % 3],
            "type": "book" if book else _NOUNS[self.words[5] // 16 % 20].lower(),
        }


class Printer:
    """Draws the facts of any product of one domain.

    Args:
        seed: Seed of the whole catalogue.
        domain: Keepa's number of the Amazon site; prices differ from site to site.
        products: Number of products.
    """

    def __init__(self, seed: int, domain: int, products: int) -> None:
        self.products = products
        self._salt = struct.pack("<qH", seed, domain)
        self._kind_salt = struct.pack("<q", seed)
        self.facts = lru_cache(maxsize=512)(self._facts)
        self._drawn_from = (seed, domain, products)

    def __reduce__(self) -> tuple[type["Printer"], tuple[int, int, int]]:
        """A copy draws anew: a cache can't be stored."""
        return Printer, self._drawn_from

    def _facts(self, number: int) -> Facts:
        """Facts of product *number*; cheap enough to be forgotten and drawn again."""
        identity = number.to_bytes(8, "little")
        own = blake2b(identity, digest_size=64, key=self._salt).digest()
        words = _WORDS.unpack_from(own)
        # The ASIN must not depend on the domain.
        kind = int.from_bytes(blake2b(identity, digest_size=4, key=self._kind_salt).digest())
        return Facts(number, (kind, *words[1:]), own[_WORDS.size :])

"""Estimate of what reselling a deal would bring.

    profit = sale - referral - FBA fee - inbound - other - price
    ROI    = profit / price, in whole percent, rounded down

    sale      the lower of the buy box now and its 90-day average; without a buy box,
              the same of the lowest new price
    referral  sale x the category's referral percentage, rounded up
    FBA fee   Amazon's pick-and-pack fee
    inbound   weight x inbound_per_kg, rounded up; free if that is 0
    other     a flat amount per item: preparation, shipping of the purchase, …
    price     what the deal costs

Rule: a missing input makes the result unknown, never zero; the estimate keeps every input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fetcher.replies.deals import Deal
from fetcher.replies.products import Product

GRAMS_PER_KG: Final = 1_000
BASIS_POINTS: Final = 10_000
PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class ProfitCosts:
    """The seller's costs beyond Amazon's fees, in minor units."""

    inbound_per_kg_minor: int = 0
    other_minor: int = 0


@dataclass(frozen=True, slots=True)
class ProfitEstimate:
    """The result with all its inputs; amounts in minor units, None is "unknown".

    ``missing`` names the unknown inputs that prevent a result.
    """

    profit_minor: int | None
    roi_percent: int | None
    price_minor: int | None
    buy_box_minor: int | None
    buy_box_average_90_minor: int | None
    new_minor: int | None
    new_average_90_minor: int | None
    sale_minor: int | None
    referral_bp: int | None
    referral_minor: int | None
    fba_fee_minor: int | None
    weight_g: int | None
    inbound_minor: int | None
    other_minor: int
    missing: tuple[str, ...]


def estimate_profit(deal: Deal, product: Product, costs: ProfitCosts) -> ProfitEstimate:
    """Estimates what reselling *deal* brings; the module's text has the formula."""
    buy_box = deal.buy_box_minor if product.buy_box_minor is None else product.buy_box_minor
    sale = _lowest(buy_box, product.buy_box_average_90_minor)
    if sale is None:
        sale = _lowest(product.new_minor, product.new_average_90_minor)
    referral = _share(sale, product.referral_bp, BASIS_POINTS)
    inbound = _share(costs.inbound_per_kg_minor, product.weight_g, GRAMS_PER_KG)
    if costs.inbound_per_kg_minor == 0:
        inbound = 0
    inputs: Mapping[str, int | None] = {
        "price": deal.price_minor,
        "sale price": sale,
        # Without a sale price, the percentage shows whether this input is missing too.
        "referral fee": referral if sale is not None else product.referral_bp,
        "FBA fee": product.fba_fee_minor,
        "weight": inbound,
    }
    profit = roi_percent = None
    match list(inputs.values()):
        case [int(price), int(sale_price), int(referral_fee), int(fba_fee), int(inbound_fee)]:
            profit = sale_price - referral_fee - fba_fee - inbound_fee - costs.other_minor - price
            roi_percent = profit * PERCENT // price if price else None
    return ProfitEstimate(
        profit_minor=profit,
        roi_percent=roi_percent,
        price_minor=deal.price_minor,
        buy_box_minor=buy_box,
        buy_box_average_90_minor=product.buy_box_average_90_minor,
        new_minor=product.new_minor,
        new_average_90_minor=product.new_average_90_minor,
        sale_minor=sale,
        referral_bp=product.referral_bp,
        referral_minor=referral,
        fba_fee_minor=product.fba_fee_minor,
        weight_g=product.weight_g,
        inbound_minor=inbound,
        other_minor=costs.other_minor,
        missing=tuple(name for name, value in inputs.items() if value is None),
    )


def _lowest(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _share(amount: int | None, parts: int | None, whole: int) -> int | None:
    """Returns amount x parts / whole, rounded up."""
    if amount is None or parts is None:
        return None
    return -(-amount * parts // whole)

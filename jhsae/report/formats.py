"""Numbers as people read them."""

Number = int | float


def significant(value: Number) -> str:
    """Four digits; thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.4g}"


def three(value: Number) -> str:
    """Three decimals, for fractions of 1 and nats."""
    return f"{value:.3f}"


def one(value: Number) -> str:
    """One decimal."""
    return f"{value:.1f}"


def count(value: Number) -> str:
    """A whole number, thousands apart."""
    return f"{value:,.0f}"


def percent(value: Number) -> str:
    """A fraction of 1 in percent."""
    return f"{100 * value:.1f}%"


def degrees(value: Number) -> str:
    """An angle."""
    return f"{value:.2f}°"


def duration(seconds: Number) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )

"""What a traced function computes: the sizes of its intermediate arrays and the names of its primitives."""


def equations(jaxpr):
    """Every equation of a jaxpr, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def largest(closed_jaxpr):
    """The number of elements of the largest array that the function makes."""
    return max(var.aval.size for eqn in equations(closed_jaxpr.jaxpr) for var in eqn.outvars)


def primitives(closed_jaxpr):
    return {eqn.primitive.name for eqn in equations(closed_jaxpr.jaxpr)}

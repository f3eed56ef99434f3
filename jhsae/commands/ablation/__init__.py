"""The machinery of ``jhsae ablate``: config -> arms -> sizes and rates -> runs -> rows -> effects -> pages."""

"""Import and export of SAEs and features in the formats of other libraries."""

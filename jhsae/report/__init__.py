"""The pages of `jhsae report`: tables, figures and judgements of evaluated runs."""

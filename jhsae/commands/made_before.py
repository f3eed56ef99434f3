"""A verb that finds its folder finished: by its own config, or by another one."""

from pathlib import Path

from jhsae.errors import UserError


def same_config(out: Path, what: str, made_by: object, config_hash: str) -> bool:
    """True: the hash that `out` names is that of this config. `UserError`: it is another one's.

    Args:
        out: The finished folder.
        what: What it holds, with its article.
        made_by: The config hash that it names.
        config_hash: That of this command.
    """
    if made_by != config_hash:
        raise UserError(
            f"{out} holds {what} of another config ({made_by} there, {config_hash} here) and is never overwritten; "
            "write another out=..."
        )
    return True

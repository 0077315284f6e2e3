def eval() -> None:
    """todo"""

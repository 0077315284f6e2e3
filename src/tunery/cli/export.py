def export() -> None:
    """todo"""

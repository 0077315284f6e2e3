def chat() -> None:
    """todo"""

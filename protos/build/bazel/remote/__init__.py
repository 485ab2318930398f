"""Remote execution, assets and log streams."""
